/*
 * step_testing_body: a small model and sequences that come and go, served in steps as the engine does it: what the tests of steps and
 * of their graphs share.
 */
#ifndef PERCH_KERNELS_CUDA_STEP_TESTING_H
#define PERCH_KERNELS_CUDA_STEP_TESTING_H

#include "kernels/cuda/backend_testing.h"

#include <math.h>

#ifndef STEP_SLOTS
#define STEP_SLOTS 3
#endif

enum {
    VOCAB = 56,
    HIDDEN = 32,
    HEADS = 2,
    KV_HEADS = 1,
    DIM = 16,
    INTER = 40,
    LAYERS = 2,
    SLOTS = STEP_SLOTS,
    SERVED = 3, /* slots that sequences get */
    SESSION = 640,
    MAX_STEP = SLOTS < 24 ? 24 : SLOTS,
    CHUNK = 17,   /* of a prompt in one step */
    WINDOW = 300, /* of the second layer: at the long prompt's end it sees nothing of attention's first chunk */
    LONG = 590,   /* a prompt over several of those chunks, whose results are merged */
    QKV = (HEADS + 2 * KV_HEADS) * DIM,
    GROUP_BYTES = LAYERS * KV_HEADS * 2 * 16 * DIM * 2,
    N_SEQUENCES = 7,
    MAX_NEW = 9
};

static const kernels_limits limits = {
    .max_step_tokens = MAX_STEP,
    .max_batch_size = SLOTS,
    .max_logit_rows = SLOTS,
    .vocab_size = VOCAB,
    .session_len = SESSION,
    .n_heads = HEADS,
    .window = WINDOW,
    .some_have_none = true,
    .layout = {
        .n_layers = LAYERS, .n_kv_heads = KV_HEADS, .head_dim = DIM, .element_bytes = 2, .group_bytes = GROUP_BYTES}};

/* --- the model */

typedef struct model {
    kernels_device *device;
    kernels_weight *embedding, *qkv[LAYERS], *output[LAYERS], *gate_up[LAYERS], *down[LAYERS];
    void *x, *normed, *qkv_out, *heads, *gate_up_out, *gated, *logits;
    float *gain, *rope, *bias;
} model;

static kernels_weight *random_weight(kernels_device *device, test_rng *rng, uint32_t n_out, uint32_t n_in) {
    kernels_weight *weight = NULL;
    float *values = malloc((size_t)n_out * n_in * sizeof *values);
    for (size_t i = 0; i < (size_t)n_out * n_in; i++) {
        values[i] = ((float)test_rng_below(rng, 65) - 32) / 64;
    }
    CHECK_OK(cuda()->weight_create(device, n_out, n_in, KERNELS_WEIGHT_DTYPE, &weight, ERR));
    CHECK_OK(cuda()->weight_set_rows(device, weight, 0, n_out, KERNELS_F32, values, ERR));
    free(values);
    return weight;
}

static void *buffer(kernels_device *device, size_t n_floats, const float *values) {
    void *data = NULL;
    CHECK_OK(cuda()->alloc(device, n_floats * sizeof *values, &data, ERR));
    if (values != NULL) {
        CHECK_OK(cuda()->upload(device, data, values, n_floats * sizeof *values, ERR));
    }
    return data;
}

static void prepare(model *m) {
    const kernels_async *async = cuda()->async;
    CHECK_OK(async->prepare(m->device, m->embedding, KERNELS_PRODUCT_F32, NULL, ERR));
    for (uint32_t l = 0; l < LAYERS; l++) {
        CHECK_OK(async->prepare(m->device, m->qkv[l], KERNELS_PRODUCT_ACT, m->bias, ERR));
        CHECK_OK(async->prepare(m->device, m->output[l], KERNELS_PRODUCT_ADD, NULL, ERR));
        CHECK_OK(async->prepare(m->device, m->gate_up[l], KERNELS_PRODUCT_ACT, NULL, ERR));
        CHECK_OK(async->prepare(m->device, m->down[l], KERNELS_PRODUCT_ADD, NULL, ERR));
    }
}

static void model_open(model *m, kernels_device *device) {
    test_rng rng = {42};
    static float rope[SESSION][DIM / 2][2];
    float gain[HIDDEN], bias[QKV];
    *m = (model){.device = device};
    m->embedding = random_weight(device, &rng, VOCAB, HIDDEN);
    for (int l = 0; l < LAYERS; l++) {
        m->qkv[l] = random_weight(device, &rng, QKV, HIDDEN);
        m->output[l] = random_weight(device, &rng, HIDDEN, HEADS * DIM);
        m->gate_up[l] = random_weight(device, &rng, 2 * INTER, HIDDEN);
        m->down[l] = random_weight(device, &rng, HIDDEN, INTER);
    }
    for (int i = 0; i < HIDDEN; i++) {
        gain[i] = 1 + (float)i / 64;
    }
    for (int i = 0; i < QKV; i++) {
        bias[i] = (float)(i % 7 - 3) / 16;
    }
    for (int p = 0; p < SESSION; p++) {
        for (int i = 0; i < DIM / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / DIM);
            rope[p][i][0] = (float)cos(angle);
            rope[p][i][1] = (float)sin(angle);
        }
    }
    m->gain = buffer(device, HIDDEN, gain);
    m->bias = buffer(device, QKV, bias);
    prepare(m);
    m->rope = buffer(device, SESSION * DIM, &rope[0][0][0]);
    m->x = buffer(device, MAX_STEP * HIDDEN, NULL);
    m->normed = buffer(device, MAX_STEP * HIDDEN, NULL);
    m->qkv_out = buffer(device, MAX_STEP * QKV, NULL);
    m->heads = buffer(device, MAX_STEP * HEADS * DIM, NULL);
    m->gate_up_out = buffer(device, MAX_STEP * 2 * INTER, NULL);
    m->gated = buffer(device, MAX_STEP * INTER, NULL);
    m->logits = buffer(device, SLOTS * VOCAB, NULL);
}

static void queue_pass(const model *m, const kernels_batch *batch, const kernels_pass *pass) {
    const kernels_backend *k = cuda();
    kernels_device *d = m->device;
    const uint32_t n = pass->n_tokens;
    CHECK_OK(k->embed(d, m->embedding, batch, n, m->x, ERR));
    for (uint32_t l = 0; l < LAYERS; l++) {
        const kernels_attention attention = {
            .layout = limits.layout, .layer = l, .n_heads = HEADS, .window = l == 0 ? 0 : WINDOW, .scale = 0.25f};
        CHECK_OK(k->rmsnorm(d, m->x, m->gain, 1e-5f, n, HIDDEN, m->normed, ERR));
        CHECK_OK(k->linear(d, m->qkv[l], m->bias, m->normed, n, m->qkv_out, false, ERR));
        CHECK_OK(k->head_norm(d, m->qkv_out, n, QKV, 0, HEADS, DIM, m->gain, 1e-5f, ERR));
        CHECK_OK(k->rope_write(d, batch, &attention, m->rope, m->qkv_out, ERR));
        CHECK_OK(k->attention(d, batch, &attention, m->qkv_out, m->heads, ERR));
        CHECK_OK(k->linear(d, m->output[l], NULL, m->heads, n, m->x, true, ERR));
        CHECK_OK(k->rmsnorm(d, m->x, m->gain, 1e-5f, n, HIDDEN, m->normed, ERR));
        CHECK_OK(k->linear(d, m->gate_up[l], NULL, m->normed, n, m->gate_up_out, false, ERR));
        CHECK_OK(k->silu_mul(d, m->gate_up_out, n, INTER, m->gated, ERR));
        CHECK_OK(k->linear(d, m->down[l], NULL, m->gated, n, m->x, true, ERR));
    }
    if (pass->n_logits > 0) {
        CHECK_OK(k->rmsnorm(d, m->x, m->gain, 1e-5f, n, HIDDEN, m->normed, ERR));
        CHECK_OK(k->gather(d, batch, pass->n_logits, m->normed, HIDDEN * 2, m->heads, ERR));
        CHECK_OK(k->linear_f32(d, m->embedding, m->heads, pass->n_logits, m->logits, ERR));
    }
}

/* --- sequences and their schedule */

typedef struct sequence {
    int32_t tokens[SESSION]; /* that the host knows */
    uint32_t n_prompt, n_tokens, n_max;
    uint32_t n_computed; /* KV that steps have been queued for */
    uint32_t n_pending;  /* chosen by queued steps, not known yet */
    uint32_t choice;     /* the last one's number in its step */
    uint32_t slot;       /* or SLOTS */
    bool ended;
    float logits[MAX_NEW + 2]; /* of the tokens chosen */
    perch_sampling sampling;
} sequence;

typedef struct variant {
    kernels_mapping mapping;
    bool graphs, ahead, deterministic;
    bool one_plan; /* of attention, for the layers with a window and without */
    uint64_t seed;
} variant;

typedef struct world {
    variant variant;
    kernels_device *device;
    model model;
    sequence sequences[N_SEQUENCES];
    sequence *in_slot[SLOTS];
    uint32_t pages_of_slot[SLOTS][SESSION / 16]; /* or NO_PAGE */
    uint32_t n_mapped[SLOTS];
    uint32_t free_pages[SLOTS * SESSION / 16], n_free; /* last in, first out: pages and places meet again soon */
    uint32_t groups_per_page;
    sequence *chosen_for[KERNELS_LANES][SLOTS];
    uint32_t n_chosen[KERNELS_LANES];
    uint32_t n_replayed;
} world;

static void sequences_open(world *w) {
    test_rng rng = {7};
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        sequence *s = &w->sequences[i];
        *s = (sequence){.slot = SLOTS};
        s->n_prompt = s->n_tokens = i == 2 ? LONG : 1 + (uint32_t)test_rng_below(&rng, 40);
        s->n_max = s->n_prompt + 2 + (uint32_t)test_rng_below(&rng, MAX_NEW - 1);
        for (uint32_t t = 0; t < s->n_prompt; t++) {
            s->tokens[t] = (int32_t)test_rng_below(&rng, VOCAB);
        }
        s->sampling = (perch_sampling){.struct_size = sizeof s->sampling,
                                       .temperature = i % 2 == 0 ? 0 : 1.5,
                                       .top_p = i % 3 == 0 ? 0.9 : 1,
                                       .typical_p = 1,
                                       .repetition_penalty = i % 3 == 1 ? 1.3 : 1,
                                       .top_k = i == 5 ? 7 : 0,
                                       .n_logprobs = i == 2 ? 5 : 0,
                                       .seed = 1000 + i};
    }
}

static void world_open(world *w, const variant *v) {
    memset(w, 0, sizeof *w);
    w->variant = *v;
    testing_reset(v->seed);
    const kernels_config config = {.dtype = KERNELS_BF16, .deterministic = v->deterministic, .graphs = v->graphs};
    w->device = testing_open(&config);
    if (w->device == NULL) {
        return;
    }
    model_open(&w->model, w->device);
    kernels_limits reserved = limits;
    reserved.window = v->one_plan ? 0 : WINDOW;
    CHECK_OK(cuda()->async->reserve(w->device, &reserved, ERR));
    const bool table = v->mapping == KERNELS_TABLE;
    const uint64_t page_bytes = table ? GROUP_BYTES : cuda()->kv_page_granularity(w->device);
    w->groups_per_page = (uint32_t)(page_bytes / GROUP_BYTES);
    const uint32_t per_slot = (SESSION / 16 + w->groups_per_page - 1) / w->groups_per_page;
    const kernels_kv kv = {.mapping = v->mapping,
                           .page_bytes = page_bytes,
                           .group_bytes = GROUP_BYTES,
                           .n_pages = SLOTS * per_slot,
                           .n_slots = SLOTS,
                           .pages_per_slot = per_slot};
    CHECK_OK(cuda()->kv_open(w->device, &kv, ERR));
    for (uint32_t p = 0; p < kv.n_pages; p++) {
        w->free_pages[w->n_free++] = p;
    }
    sequences_open(w);
}

/* Admits sequences to free slots, and maps pages for what this step will have of each. */
static void admit(world *w) {
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        sequence *s = &w->sequences[i];
        for (uint32_t slot = 0; slot < SERVED && s->slot == SLOTS && !s->ended; slot++) {
            if (w->in_slot[slot] == NULL) {
                w->in_slot[slot] = s;
                s->slot = slot;
            }
        }
    }
}

static void map_up_to(world *w, uint32_t slot, uint32_t n_tokens) {
    while (w->n_mapped[slot] * w->groups_per_page * 16 < n_tokens) {
        uint32_t page = w->free_pages[--w->n_free], index = w->n_mapped[slot]++;
        w->pages_of_slot[slot][index] = page;
        const kv_command command = {.op = KV_MAP, .slot = slot, .index = index, .page = page};
        CHECK_OK(cuda()->kv_execute(w->device, &command, 1, ERR));
    }
}

/* The slot goes to others at once, though a step that has it may be queued still. */
static void leave(world *w, sequence *s) {
    uint32_t slot = s->slot;
    while (w->n_mapped[slot] > 0) {
        uint32_t index = --w->n_mapped[slot];
        const kv_command command = {.op = KV_UNMAP, .slot = slot, .index = index};
        CHECK_OK(cuda()->kv_execute(w->device, &command, 1, ERR));
        w->free_pages[w->n_free++] = w->pages_of_slot[slot][index];
    }
    w->in_slot[slot] = NULL;
    s->slot = SLOTS;
    s->ended = true;
}

typedef struct step {
    uint32_t n, n_rows, n_logits;
    int32_t tokens[MAX_STEP];
    uint32_t positions[MAX_STEP], token_row[MAX_STEP], token_from[MAX_STEP], logit_tokens[SLOTS];
    kernels_row rows[SLOTS];
    kernels_choice choices[SLOTS];
    sequence *chosen_for[SLOTS];
} step;

/* Decode rows, and pieces of prompts; false: nobody has anything to do. */
static bool build(world *w, step *st) {
    *st = (step){0};
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        sequence *s = w->in_slot[slot];
        uint32_t reach = s != NULL ? s->n_tokens + s->n_pending : 0;
        if (s == NULL || s->n_computed == reach || s->n_computed + 1 > s->n_max - 1) {
            continue;
        }
        uint32_t n = reach - s->n_computed, room = MAX_STEP - st->n;
        n = n < CHUNK ? n : CHUNK;
        n = n < room ? n : room;
        if (n == 0) {
            continue;
        }
        map_up_to(w, slot, s->n_computed + n);
        st->rows[st->n_rows] = (kernels_row){.kv = cuda()->kv_slot(w->device, slot),
                                             .first_token = st->n,
                                             .n_tokens = n,
                                             .first_position = s->n_computed,
                                             .slot = slot};
        for (uint32_t i = 0; i < n; i++) {
            uint32_t position = s->n_computed + i;
            bool known = position < s->n_tokens;
            st->tokens[st->n] = known ? s->tokens[position] : 0;
            st->token_from[st->n] = known ? KERNELS_GIVEN : s->choice;
            st->positions[st->n] = position;
            st->token_row[st->n++] = st->n_rows;
        }
        st->n_rows++;
        s->n_computed += n;
        if (s->n_computed == reach) {
            st->choices[st->n_logits] = (kernels_choice){.logit_row = st->n_logits,
                                                         .slot = slot,
                                                         .n_prompt = s->n_prompt,
                                                         .n_tokens = reach,
                                                         .sampling = &s->sampling,
                                                         .want_logprob = s->sampling.n_logprobs > 0};
            st->chosen_for[st->n_logits] = s;
            st->logit_tokens[st->n_logits++] = st->n - 1;
        }
    }
    return st->n > 0;
}

static void launch(world *w, uint32_t lane, const step *st) {
    kernels_pass pass;
    kernels_batch batch = {.n_tokens = st->n,
                           .n_rows = st->n_rows,
                           .n_logits = st->n_logits,
                           .tokens = st->tokens,
                           .positions = st->positions,
                           .token_row = st->token_row,
                           .rows = st->rows,
                           .logit_tokens = st->logit_tokens,
                           .token_from = st->token_from};
    CHECK_OK(cuda()->async->begin(w->device, lane, &batch, 1, &pass, ERR));
    CU_ASSERT(pass.n_tokens >= st->n && pass.n_tokens <= MAX_STEP && pass.n_logits >= st->n_logits &&
              pass.n_logits <= SLOTS);
    if (!pass.replayed) {
        queue_pass(&w->model, &batch, &pass);
        CHECK_OK(cuda()->async->end(w->device, lane, ERR));
    }
    w->n_replayed += pass.replayed;
    CHECK_OK(cuda()->async->choose(w->device, lane, w->model.logits, st->choices, st->n_logits, ERR));
    w->n_chosen[lane] = st->n_logits;
    for (uint32_t i = 0; i < st->n_logits; i++) {
        w->chosen_for[lane][i] = st->chosen_for[i];
        st->chosen_for[i]->n_pending++;
        st->chosen_for[i]->choice = i;
    }
}

static void land(world *w, uint32_t lane) {
    const kernels_chosen *chosen;
    CHECK_OK(cuda()->async->wait(w->device, lane, &chosen, ERR));
    for (uint32_t i = 0; i < w->n_chosen[lane] && chosen != NULL; i++) {
        sequence *s = w->chosen_for[lane][i];
        s->n_pending--;
        if (s->ended) {
            continue;
        }
        CU_ASSERT(chosen[i].token >= 0 && chosen[i].token < VOCAB && chosen[i].n_top == s->sampling.n_logprobs);
        s->logits[s->n_tokens - s->n_prompt] = chosen[i].logit;
        s->tokens[s->n_tokens++] = chosen[i].token;
        if (s->n_tokens == s->n_max || chosen[i].token == 3) { /* token 3 ends it, which nobody could know before */
            leave(w, s);
        }
    }
}

/* Serves all sequences to their end. */
static void serve(world *w) {
    step st;
    uint32_t lane = 0;
    bool flying = false;
    for (int i = 0; i < 1000; i++) {
        admit(w);
        bool any = build(w, &st);
        if (any) {
            launch(w, lane, &st);
        }
        if (w->variant.ahead && flying) {
            land(w, (lane + 1) % KERNELS_LANES);
        }
        if (!w->variant.ahead && any) {
            land(w, lane);
        }
        if (!any && !flying) {
            break;
        }
        flying = w->variant.ahead && any;
        lane = any || !w->variant.ahead ? (lane + 1) % KERNELS_LANES : lane;
    }
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        CU_ASSERT(w->sequences[i].ended);
    }
}

static const char *variant_name(const variant *v) {
    static char name[100];
    snprintf(name, sizeof name, "%s, graphs %d, ahead %d, seed %" PRIu64, v->mapping == KERNELS_TABLE ? "table" : "vmm",
             v->graphs, v->ahead, v->seed);
    return name;
}

static void check_same(const world *have, const world *want) {
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        const sequence *a = &have->sequences[i], *b = &want->sequences[i];
        CHECK_MSG(a->n_tokens == b->n_tokens && memcmp(a->tokens, b->tokens, b->n_tokens * sizeof *b->tokens) == 0 &&
                      memcmp(a->logits, b->logits, (b->n_tokens - b->n_prompt) * sizeof *b->logits) == 0,
                  "%s: sequence %u has %u tokens, not %u, or others", variant_name(&have->variant), i,
                  a->n_tokens - a->n_prompt, b->n_tokens - b->n_prompt);
    }
}

#endif
