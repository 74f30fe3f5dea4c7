/*
 * demo_screen: a run of the demo as a picture on the terminal.
 */
#include "demo_screen.h"

#include <stdio.h>
#include <string.h>

#define FACT_US 1500000u
#define BAR_COLUMNS 10u
#define MAX_LABEL 16u
#define FIXED_ROWS 8u /* beside the conversations' */

/* Bytes that all names begin with, up to a '-', '_' or space: what need not be repeated in every line. */
static size_t common_prefix(const struct demo_run *run) {
    const char *first = run->talks[0].conversation->name;
    size_t common = run->n > 1 ? strlen(first) : 0;
    for (size_t i = 1; i < run->n; i++) {
        const char *name = run->talks[i].conversation->name;
        size_t length = 0;
        while (length < common && name[length] == first[length]) {
            length++;
        }
        common = length;
    }
    while (common > 0 && strchr("-_ ", first[common - 1]) == NULL) {
        common--;
    }
    return common;
}

void demo_screen_begin(struct demo_screen *screen, const struct demo_run *run) {
    memset(screen->slots, 0, sizeof(screen->slots));
    screen->n_samples = 0;
    screen->fact = NULL;
    screen->prefix = common_prefix(run);
    screen->label = 2;
    for (size_t i = 0; i < run->n; i++) {
        size_t width = screen_columns(run->talks[i].conversation->name + screen->prefix);
        screen->label = width > screen->label ? width : screen->label;
    }
    screen->label = screen->label < MAX_LABEL ? screen->label : MAX_LABEL;
}

void demo_screen_answered(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn) {
    struct demo_screen *screen = user;
    bool is_fact = talk->conversation->turns[turn].was_told;
    if (is_fact && (screen->fact == NULL || run->elapsed_us - screen->fact_us >= FACT_US)) {
        screen->fact = talk;
        screen->fact_turn = turn;
        screen->fact_us = run->elapsed_us;
    }
}

/* ------------------------------------------------------------ the frame's parts -- */

static void draw_title(struct demo_screen *screen, const struct demo_run *run) {
    char right[64];
    snprintf(right, sizeof(right), "facts right %zu of %zu  %5.1f s", run->n_facts_right, run->n_facts_asked,
             (double)run->elapsed_us / 1e6);
    screen_put(&screen->out, SCREEN_BOLD, "perch demo");
    screen_put(&screen->out, SCREEN_PLAIN, "  %zu conversations in the memory of %u", run->n,
               run->plan.n_full_sequences);
    size_t width = strlen(right);
    screen_put_blank_to(&screen->out, screen->out.column + 2);
    screen_put_blank_to(&screen->out, screen->out.columns > width ? screen->out.columns - width : 0);
    screen_put(&screen->out, run->n_right == run->n_answers ? SCREEN_GREEN : SCREEN_RED, "%s", right);
    screen_end_line(&screen->out);
}

static size_t find_slot(const struct demo_screen *screen, size_t n_slots, const struct demo_talk *talk) {
    size_t s = 0;
    while (s < n_slots && screen->slots[s] != talk) {
        s++;
    }
    return s;
}

/* Who left the batch leaves the slot; who came into it takes a free one. */
static void seat(struct demo_screen *screen, const struct demo_run *run, size_t n_slots) {
    for (size_t s = 0; s < n_slots; s++) {
        const struct demo_talk *talk = screen->slots[s];
        screen->slots[s] = talk != NULL && talk->info.residency == PERCH_SEQ_ACTIVE ? talk : NULL;
    }
    for (size_t i = 0; i < run->n; i++) {
        const struct demo_talk *talk = &run->talks[i];
        size_t place = find_slot(screen, n_slots, NULL);
        if (talk->info.residency == PERCH_SEQ_ACTIVE && place < n_slots &&
            find_slot(screen, n_slots, talk) == n_slots) {
            screen->slots[place] = talk;
        }
    }
}

static void draw_slots(struct demo_screen *screen, const struct demo_run *run) {
    size_t n_slots = run->plan.n_slots < DEMO_SCREEN_SLOTS ? run->plan.n_slots : DEMO_SCREEN_SLOTS;
    seat(screen, run, n_slots);
    screen_put(&screen->out, SCREEN_PLAIN, "slots");
    for (size_t s = 0; s < n_slots; s++) {
        screen_put(&screen->out, SCREEN_FAINT, "  %zu ", s + 1);
        size_t from = screen->out.column;
        screen_put_cut(&screen->out, SCREEN_GREEN, 16,
                       screen->slots[s] != NULL ? screen->slots[s]->conversation->name : "");
        screen_put_blank_to(&screen->out, from + 16);
    }
    screen_end_line(&screen->out);
}

static void draw_pages(struct demo_screen *screen, const struct demo_run *run) {
    const perch_stats *stats = &run->stats;
    char text[96];
    int length = snprintf(text, sizeof(text), "  %u live %u cached %u free", stats->pages_live, stats->pages_cached,
                          stats->pages_free);
    screen_put(&screen->out, SCREEN_PLAIN, "pages  ");
    size_t width = screen->out.columns > (size_t)length + screen->out.column
                       ? screen->out.columns - (size_t)length - screen->out.column
                       : 0;
    width = width < 64 ? width : 64;
    size_t total = stats->pages_total > 0 ? stats->pages_total : 1;
    size_t live = (stats->pages_live * width + total / 2) / total;
    size_t used = ((stats->pages_live + stats->pages_cached) * width + total / 2) / total;
    screen_put_solid(&screen->out, SCREEN_GREEN, live);
    screen_put_solid(&screen->out, SCREEN_YELLOW, used - live);
    screen_put_light(&screen->out, SCREEN_FAINT, width - used);
    screen_put(&screen->out, SCREEN_GREEN, "  %u live", stats->pages_live);
    screen_put(&screen->out, SCREEN_YELLOW, " %u cached", stats->pages_cached);
    screen_put(&screen->out, SCREEN_FAINT, " %u free", stats->pages_free);
    screen_end_line(&screen->out);
}

static size_t bar_cells(uint64_t n_tokens, uint32_t session_len) {
    return (size_t)((n_tokens * BAR_COLUMNS + session_len - 1) / session_len);
}

static void draw_state(struct demo_screen *screen, const struct demo_run *run, const perch_sequence_info *info) {
    static const char *const names[] = {"tokens", "resident", "active"};
    static const enum screen_style styles[] = {SCREEN_FAINT, SCREEN_YELLOW, SCREEN_GREEN};
    enum screen_style style = styles[info->residency];
    size_t from = screen->out.column;
    size_t kv = bar_cells(info->n_kv_tokens, run->plan.session_len);
    size_t all = bar_cells(info->n_tokens, run->plan.session_len);
    screen_put(&screen->out, style, "%s", names[info->residency]);
    screen_put_blank_to(&screen->out, from + 9);
    screen_put_solid(&screen->out, style, kv);
    screen_put_light(&screen->out, SCREEN_FAINT, all > kv ? all - kv : 0);
    screen_put_blank_to(&screen->out, from + 9 + BAR_COLUMNS);
    screen_put(&screen->out, SCREEN_PLAIN, " %4llu/%-4llu", (unsigned long long)info->n_kv_tokens,
               (unsigned long long)info->n_tokens);
}

/* The answer in full, if it fits beside a little of the question. */
static void put_exchange(struct demo_screen *screen, const struct demo_talk *talk, size_t number) {
    const struct demo_turn *turn = &talk->conversation->turns[number];
    const struct demo_answer *answer = &talk->answers[number];
    size_t room = screen->out.columns - screen->out.column;
    size_t question = screen_columns(turn->user);
    size_t rest = screen_columns(answer->text.data) + 1;
    size_t least = question < 12 ? question : 12;
    size_t most = room > rest + least ? room - rest : least;
    screen_put_cut(&screen->out, SCREEN_FAINT, most, turn->user);
    screen_put(&screen->out, SCREEN_PLAIN, " ");
    screen_put_cut(&screen->out,
                   !answer->right        ? SCREEN_RED
                   : turn->check != NULL ? SCREEN_GREEN
                                         : SCREEN_PLAIN,
                   screen->out.columns, answer->text.data);
}

static void put_label(struct demo_screen *screen, const struct demo_talk *talk) {
    screen_put_cut(&screen->out, SCREEN_PLAIN, screen->label, talk->conversation->name + screen->prefix);
    screen_put_blank_to(&screen->out, screen->label + 1);
}

static void draw_talk(struct demo_screen *screen, const struct demo_run *run, const struct demo_talk *talk) {
    size_t n_turns = talk->conversation->n_turns;
    put_label(screen, talk);
    screen_put(&screen->out, SCREEN_PLAIN, "%2zu/%-2zu ", talk->n_answers < n_turns ? talk->n_answers + 1 : n_turns,
               n_turns);
    draw_state(screen, run, &talk->info);
    screen_put(&screen->out, SCREEN_PLAIN, " %5llu  ", (unsigned long long)talk->info.n_evictions);
    if (talk->n_answers > 0) {
        put_exchange(screen, talk, talk->n_answers - 1);
    }
    screen_end_line(&screen->out);
}

/* As many conversations as fit. */
static void draw_talks(struct demo_screen *screen, const struct demo_run *run) {
    size_t n_fit = screen->out.rows > FIXED_ROWS ? screen->out.rows - FIXED_ROWS : 0;
    screen_put_blank_to(&screen->out, screen->label + 1);
    screen_put(&screen->out, SCREEN_FAINT, "turn  state    KV in memory/tokens evicted  question and answer");
    screen_end_line(&screen->out);
    for (size_t i = 0; i < run->n && i < n_fit; i++) {
        draw_talk(screen, run, &run->talks[i]);
    }
}

static void draw_totals(struct demo_screen *screen, const struct demo_run *run) {
    const perch_stats *stats = &run->stats;
    screen_put(
        &screen->out, SCREEN_PLAIN, "evictions %llu  hits %llu  partial hits %llu  misses %llu  preemptions %llu",
        (unsigned long long)stats->evictions, (unsigned long long)stats->hits, (unsigned long long)stats->partial_hits,
        (unsigned long long)stats->misses, (unsigned long long)stats->preemptions);
    screen_end_line(&screen->out);
    size_t last = screen->n_samples - 1;
    size_t first = last >= DEMO_SCREEN_SAMPLES ? last - DEMO_SCREEN_SAMPLES + 1 : 0;
    last %= DEMO_SCREEN_SAMPLES;
    first %= DEMO_SCREEN_SAMPLES;
    uint64_t us = screen->samples[last].us - screen->samples[first].us;
    double seconds = us > 0 ? (double)us / 1e6 : 1.0;
    screen_put(&screen->out, SCREEN_PLAIN, "prefill %6.0f tokens/s  decode %5.0f tokens/s  re-prefilled %llu tokens",
               (double)(screen->samples[last].prefill_tokens - screen->samples[first].prefill_tokens) / seconds,
               (double)(screen->samples[last].decode_tokens - screen->samples[first].decode_tokens) / seconds,
               (unsigned long long)stats->reprefill_tokens);
    screen_end_line(&screen->out);
}

static void draw_fact(struct demo_screen *screen) {
    const struct demo_talk *talk = screen->fact;
    if (talk == NULL) {
        return;
    }
    const struct demo_turn *asked = &talk->conversation->turns[screen->fact_turn];
    put_label(screen, talk);
    screen_put(&screen->out, SCREEN_FAINT, "turn %2zu  %s", asked->told + 1,
               talk->conversation->turns[asked->told].user);
    screen_put(&screen->out, SCREEN_PLAIN, "  evicted %llu times since",
               (unsigned long long)demo_evictions_since_told(talk, screen->fact_turn));
    screen_end_line(&screen->out);
    screen_put_blank_to(&screen->out, screen->label + 1);
    screen_put(&screen->out, SCREEN_FAINT, "turn %2zu  ", screen->fact_turn + 1);
    put_exchange(screen, talk, screen->fact_turn);
    screen_end_line(&screen->out);
}

/* ---------------------------------------------------------------- the frame -- */

static void sample(struct demo_screen *screen, const struct demo_run *run) {
    size_t i = screen->n_samples++ % DEMO_SCREEN_SAMPLES;
    screen->samples[i].us = run->elapsed_us;
    screen->samples[i].prefill_tokens = run->stats.prefill_tokens;
    screen->samples[i].decode_tokens = run->stats.decode_tokens;
}

void demo_screen_frame(void *user, const struct demo_run *run) {
    struct demo_screen *screen = user;
    sample(screen, run);
    screen_begin(&screen->out, FIXED_ROWS + run->n);
    draw_title(screen, run);
    draw_slots(screen, run);
    draw_pages(screen, run);
    screen_blank_line(&screen->out);
    draw_talks(screen, run);
    screen_blank_line(&screen->out);
    draw_totals(screen, run);
    screen_blank_line(&screen->out);
    draw_fact(screen);
    screen_end(&screen->out);
}
