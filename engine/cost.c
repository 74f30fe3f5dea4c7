/* cost: rates of computing and loading by least squares that forget; see cost.h. */
#include "engine/cost.h"

#include <string.h>

/* What the terms of a step are. In the order in which they may explain it where the data don't tell. */
enum { PREFILL, PREFILL_POSITIONS, DECODE, DECODE_POSITIONS, FIXED };

#define POSITIONS 1024.0 /* positions are counted in so many, so that the rates are of like size */

/* What a step, and a load, still counts one later. */
#define STEP_FADE (1 - 1.0 / 256)
#define LOAD_FADE (1 - 1.0 / 64)

/* So many times the expected, or a part of it, is believed at most, once so many have been seen. */
#define BELIEVED 4.0
#define STEPS_BEFORE_DOUBT 16u
#define LOADS_BEFORE_DOUBT 8u

#define STEPS_TO_KNOW 2u /* with prefill, before anything is said about it */
#define STEPS_TO_TELL 8u /* rates are computed anew after so many */
#define SWEEPS 32u

/* How many steps the arithmetic of attention counts for, as evidence of what positions cost. */
#define ASSUMED_STEPS 1.0

void cost_init(cost_model *m, uint64_t page_bytes, uint32_t max_step_tokens, double token_flops,
               double position_flops) {
    memset(m, 0, sizeof *m);
    m->page_bytes = page_bytes;
    m->max_step_tokens = max_step_tokens;
    m->attention_share = token_flops > 0 ? position_flops * POSITIONS / token_flops : 0;
}

/* ---------------------------------------------------------------- steps -- */

static void terms_of(const cost_step *s, double x[COST_TERMS]) {
    x[PREFILL] = s->n_prefill;
    x[PREFILL_POSITIONS] = (double)s->prefill_positions / POSITIONS;
    x[DECODE] = s->n_decode;
    x[DECODE_POSITIONS] = (double)s->decode_positions / POSITIONS;
    x[FIXED] = 1;
}

static double expected_us(const cost_model *m, const double x[COST_TERMS]) {
    double us = 0;
    for (uint32_t i = 0; i < COST_TERMS; i++) {
        us += m->rate[i] * x[i];
    }
    return us;
}

static double believed(double us, double expected) {
    return us > expected * BELIEVED ? expected * BELIEVED : us < expected / BELIEVED ? expected / BELIEVED : us;
}

/*
 * The rates that the sums call for, none of them negative, by cyclic coordinate descent from those of before: where the sums
 * leave a direction open it stays where it was. The arithmetic of attention is one more observation.
 */
static void solve(cost_model *m) {
    double a[COST_TERMS][COST_TERMS], share = m->attention_share, w = ASSUMED_STEPS / (m->token_us * m->token_us);
    memcpy(a, m->normal, sizeof a);
    a[PREFILL_POSITIONS][PREFILL_POSITIONS] += w;
    a[PREFILL_POSITIONS][PREFILL] -= w * share;
    a[PREFILL][PREFILL_POSITIONS] -= w * share;
    a[PREFILL][PREFILL] += w * share * share;
    for (uint32_t sweep = 0; sweep < SWEEPS; sweep++) {
        for (uint32_t i = 0; i < COST_TERMS; i++) {
            double rest = m->right[i];
            for (uint32_t j = 0; j < COST_TERMS; j++) {
                rest -= j == i ? 0 : a[i][j] * m->rate[j];
            }
            if (a[i][i] > 0) {
                m->rate[i] = rest > 0 ? rest / a[i][i] : 0;
            }
        }
    }
}

bool cost_add_step(cost_model *m, const cost_step *s) {
    double x[COST_TERMS], us = s->us < 1 ? 1 : s->us;
    if (s->n_prefill == 0) {
        return false;
    }
    terms_of(s, x);
    double expected = expected_us(m, x);
    us = m->n_steps >= STEPS_BEFORE_DOUBT && expected > 0 ? believed(us, expected) : us;
    double scale =
        expected > us ? expected : us; /* errors are relative, to what was expected as well as to what came */
    for (uint32_t i = 0; i < COST_TERMS; i++) {
        for (uint32_t j = 0; j < COST_TERMS; j++) {
            m->normal[i][j] = m->normal[i][j] * STEP_FADE + x[i] * x[j] / (scale * scale);
        }
        m->right[i] = m->right[i] * STEP_FADE + x[i] * us / (scale * scale);
    }
    /* Weighted by tokens: the end of a prompt has few of them, and is no measure of the rest. */
    m->tokens = m->tokens * STEP_FADE + s->n_prefill;
    double part = s->n_prefill / m->tokens;
    m->usual_rows += (s->n_decode - m->usual_rows) * part;
    m->usual_positions += (x[DECODE_POSITIONS] - m->usual_positions) * part;
    m->token_us += (us / s->n_prefill - m->token_us) * part;
    m->n_steps++;
    bool tell = m->n_steps % STEPS_TO_TELL == 0 || m->n_steps < STEPS_BEFORE_DOUBT;
    if (tell) {
        solve(m);
    }
    return tell;
}

/* ---------------------------------------------------------------- loads -- */

/* Where all loads are of one size their slope means nothing: it stays, and the latency follows. */
static void fit(cost_link *l) {
    double spread = l->weight * l->bytes_bytes - l->bytes * l->bytes;
    if (spread > 1e-3 * l->weight * l->bytes_bytes) {
        l->us_per_byte = (l->weight * l->bytes_us - l->bytes * l->us) / spread;
    }
    l->us_per_byte = l->us_per_byte > 0 ? l->us_per_byte : 0;
    l->latency_us = (l->us - l->us_per_byte * l->bytes) / l->weight;
    if (l->latency_us < 0 || l->us_per_byte <= 0) { /* through the origin */
        l->latency_us = 0;
        l->us_per_byte = l->bytes_us / l->bytes_bytes;
    }
}

void cost_add_load(cost_model *m, cache_tier tier, uint64_t n_bytes, double us) {
    cost_link *l = &m->links[tier];
    double x = (double)n_bytes, expected = l->latency_us + x * l->us_per_byte;
    if (n_bytes == 0) {
        return;
    }
    us = us < 1 ? 1 : us;
    us = l->n_loads >= LOADS_BEFORE_DOUBT ? believed(us, expected) : us;
    double scale = expected > us ? expected : us, w = 1 / (scale * scale);
    l->weight = l->weight * LOAD_FADE + w;
    l->bytes = l->bytes * LOAD_FADE + w * x;
    l->bytes_bytes = l->bytes_bytes * LOAD_FADE + w * x * x;
    l->us = l->us * LOAD_FADE + w * us;
    l->bytes_us = l->bytes_us * LOAD_FADE + w * x * us;
    l->n_loads++;
    fit(l);
}

void cost_load_sent(cost_model *m, cache_tier tier, uint64_t ticket, uint64_t n_bytes, uint64_t now_us) {
    cost_link *l = &m->links[tier];
    l->under_way_bytes += n_bytes;
    if (l->n_sent < COST_UNDER_WAY) {
        l->sent[l->n_sent++] = (cost_sent){ticket, n_bytes, l->under_way_bytes, now_us};
    } else { /* a part of the last one, which is done when both are */
        cost_sent *last = &l->sent[l->n_sent - 1];
        *last = (cost_sent){ticket, last->n_bytes + n_bytes, last->load_bytes + n_bytes, last->sent_us};
    }
}

void cost_loads_done(cost_model *m, cache_tier tier, uint64_t ticket, uint64_t now_us) {
    cost_link *l = &m->links[tier];
    uint32_t n = 0;
    while (n < l->n_sent && l->sent[n].ticket <= ticket) {
        l->under_way_bytes -= l->sent[n++].n_bytes;
    }
    if (n > 0) { /* when those before the last were done nobody knows */
        cost_add_load(m, tier, l->sent[n - 1].load_bytes, (double)(now_us - l->sent[n - 1].sent_us));
    }
    l->n_sent -= n;
    memmove(l->sent, l->sent + n, l->n_sent * sizeof *l->sent);
}

/* --------------------------------------------------------------- answers -- */

void cost_get(const cost_model *m, cache_costs *out) {
    memset(out, 0, sizeof *out);
    if (m->n_steps < STEPS_TO_KNOW) {
        return;
    }
    double chunk = m->max_step_tokens - m->usual_rows;
    double beside = m->rate[FIXED] + m->rate[DECODE] * m->usual_rows + m->rate[DECODE_POSITIONS] * m->usual_positions;
    out->compute_us = m->rate[PREFILL] + beside / (chunk > 1 ? chunk : 1);
    out->compute_us_per_position = m->rate[PREFILL_POSITIONS] / POSITIONS;
    for (uint32_t tier = 0; tier < CACHE_N_TIERS; tier++) {
        out->latency_us[tier] = m->links[tier].latency_us;
        out->page_us[tier] = m->links[tier].us_per_byte * (double)m->page_bytes;
    }
}

double cost_compute_us(const cache_costs *costs, uint64_t n_tokens) {
    double n = (double)n_tokens;
    return n * costs->compute_us + n * (n - 1) / 2 * costs->compute_us_per_position;
}

double cost_load_us(const cache_costs *costs, cache_tier tier, uint64_t n_pages) {
    return costs->latency_us[tier] + (double)n_pages * costs->page_us[tier];
}

uint32_t cost_break_even(const cache_costs *costs, cache_tier tier, uint64_t page_bytes, uint64_t group_bytes,
                         uint32_t session_len) {
    uint32_t least = 0;
    if (costs->compute_us <= 0 || costs->page_us[tier] <= 0) {
        return 0;
    }
    for (uint32_t n = session_len / KV_GROUP_TOKENS * KV_GROUP_TOKENS; n > 0; n -= KV_GROUP_TOKENS) {
        uint64_t n_pages = (n / KV_GROUP_TOKENS * group_bytes + page_bytes - 1) / page_bytes;
        if (cost_load_us(costs, tier, n_pages) >= cost_compute_us(costs, n)) {
            break;
        }
        least = n;
    }
    return least;
}
