/*
 * async_backend: the CPU backend behind the interface of a device that runs beside the host, as a libperch_cuda.so.0 of its
 * own. With LD_LIBRARY_PATH on its folder, `device = cuda` (and auto) is this: the engine launches a step before the one before it
 * has landed, feeds chosen tokens to the device, and the device chooses; at the speed and with the numerics of the CPU.
 *
 * It is strict where a GPU would be silently wrong: a lane that is begun before it was waited for, a token fed from a choice that
 * was never made, and a history that lacks a token that is asked for are E_DEVICE.
 */
#include "base/sampling_math.h"
#include "engine/sampler.h"
#include "kernels/abi.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNKNOWN (-1)

typedef struct lane {
    bool begun, waiting; /* between begin and wait */
    uint32_t n_choices;
    kernels_chosen *chosen; /* [max_batch_size]: what is on the device */
    kernels_chosen *copy;   /* [max_batch_size]: what wait hands out */
} lane;

typedef struct state {
    struct state *next;
    kernels_device *device;
    kernels_limits limits;
    lane lanes[KERNELS_LANES];
    int32_t *history; /* [max_batch_size][session_len] */
    int32_t *tokens;  /* [max_step_tokens]: of the pass under way, those that were fed among them */
    sampler *sampler;
} state;

static pthread_mutex_t states_lock = PTHREAD_MUTEX_INITIALIZER;
static state *states;

static state *state_of(const kernels_device *device) {
    pthread_mutex_lock(&states_lock);
    state *s = states;
    while (s && s->device != device) {
        s = s->next;
    }
    pthread_mutex_unlock(&states_lock);
    return s;
}

static void state_free(state *s) {
    for (uint32_t i = 0; i < KERNELS_LANES; i++) {
        free(s->lanes[i].chosen);
        free(s->lanes[i].copy);
    }
    free(s->history);
    free(s->tokens);
    sampler_destroy(s->sampler);
    free(s);
}

static perch_status async_open(const kernels_config *config, kernels_device **out, perch_error *err) {
    state *s = calloc(1, sizeof *s);
    perch_status status = s ? kernels_cpu()->open(config, out, err) : err_nomem(err, "the asynchronous device");
    if (status) {
        free(s);
        return status;
    }
    s->device = *out;
    pthread_mutex_lock(&states_lock);
    s->next = states;
    states = s;
    pthread_mutex_unlock(&states_lock);
    return PERCH_OK;
}

static void async_close(kernels_device *device) {
    pthread_mutex_lock(&states_lock);
    state **at = &states;
    while (*at && (*at)->device != device) {
        at = &(*at)->next;
    }
    state *s = *at;
    if (s) {
        *at = s->next;
    }
    pthread_mutex_unlock(&states_lock);
    if (s) {
        state_free(s);
    }
    kernels_cpu()->close(device);
}

static const char *async_describe(const kernels_device *device) {
    (void)device;
    return "cuda's stand-in";
}

static uint64_t async_reserve_bytes(const kernels_device *device, const kernels_limits *limits) {
    (void)device;
    return KERNELS_LANES * 2 * limits->max_batch_size * sizeof(kernels_chosen) +
           ((uint64_t)limits->max_batch_size * limits->session_len + limits->max_step_tokens) * sizeof(int32_t) +
           sampler_bytes(limits->vocab_size);
}

static perch_status async_reserve(kernels_device *device, const kernels_limits *limits, perch_error *err) {
    state *s = state_of(device);
    size_t n_history = (size_t)limits->max_batch_size * limits->session_len;
    s->limits = *limits;
    s->history = malloc(n_history * sizeof *s->history);
    s->tokens = calloc(limits->max_step_tokens, sizeof *s->tokens);
    bool made = s->history && s->tokens;
    for (uint32_t i = 0; i < KERNELS_LANES; i++) {
        s->lanes[i].chosen = calloc(limits->max_batch_size, sizeof *s->lanes[i].chosen);
        s->lanes[i].copy = calloc(limits->max_batch_size, sizeof *s->lanes[i].copy);
        made = made && s->lanes[i].chosen && s->lanes[i].copy;
    }
    if (!made) {
        return err_nomem(err, "the asynchronous device's lanes");
    }
    memset(s->history, 0xff, n_history * sizeof *s->history); /* UNKNOWN */
    return sampler_create(limits->vocab_size, &s->sampler, err);
}

/* Which token stands at t of the batch: given, or chosen in the other lane's step. */
static perch_status fed(const state *s, uint32_t lane_index, const kernels_batch *batch, uint32_t t, int32_t *token,
                        perch_error *err) {
    const lane *other = &s->lanes[(lane_index + 1) % KERNELS_LANES];
    uint32_t from = batch->token_from ? batch->token_from[t] : KERNELS_GIVEN;
    if (from == KERNELS_GIVEN) {
        *token = batch->tokens[t];
        return PERCH_OK;
    }
    if (from >= other->n_choices) {
        return err_set(err, PERCH_E_DEVICE, "token %u of the batch is choice %u of a step that made %u", t, from,
                       other->n_choices);
    }
    *token = other->chosen[from].token < 0 ? 0 : other->chosen[from].token;
    return PERCH_OK;
}

static perch_status async_begin(kernels_device *device, uint32_t lane_index, const kernels_batch *batch,
                                uint64_t graph_key, kernels_pass *pass, perch_error *err) {
    state *s = state_of(device);
    lane *l = &s->lanes[lane_index];
    (void)graph_key;
    if (l->begun || l->waiting) {
        return err_set(err, PERCH_E_DEVICE, "lane %u is begun before it was waited for", lane_index);
    }
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        perch_status status = fed(s, lane_index, batch, t, &s->tokens[t], err);
        if (status) {
            return status;
        }
        uint32_t slot = batch->rows[batch->token_row[t]].slot;
        s->history[(size_t)slot * s->limits.session_len + batch->positions[t]] = s->tokens[t];
    }
    l->begun = true;
    *pass = (kernels_pass){.n_tokens = batch->n_tokens, .n_logits = batch->n_logits, .replayed = false};
    return PERCH_OK;
}

static perch_status async_end(kernels_device *device, uint32_t lane_index, perch_error *err) {
    lane *l = &state_of(device)->lanes[lane_index];
    if (!l->begun) {
        return err_set(err, PERCH_E_DEVICE, "lane %u ends what never began", lane_index);
    }
    l->begun = false;
    l->waiting = true;
    l->n_choices = 0;
    return PERCH_OK;
}

static perch_status async_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                                uint32_t n_tokens, float *y, perch_error *err) {
    kernels_batch with_fed = *batch;
    with_fed.tokens = state_of(device)->tokens;
    with_fed.token_from = NULL;
    return kernels_cpu()->embed(device, weight, &with_fed, n_tokens, y, err);
}

static perch_status async_history(kernels_device *device, uint32_t slot, uint32_t first, uint32_t n,
                                  const int32_t *tokens, perch_error *err) {
    state *s = state_of(device);
    if (slot >= s->limits.max_batch_size || (uint64_t)first + n > s->limits.session_len) {
        return err_set(err, PERCH_E_DEVICE, "a history of slot %u, tokens %u to %u", slot, first, first + n);
    }
    memcpy(s->history + (size_t)slot * s->limits.session_len + first, tokens, n * sizeof *tokens);
    return PERCH_OK;
}

static bool async_can_choose(const kernels_device *device, const kernels_choice *choice) {
    (void)device;
    return choice->sampling->typical_p >= 1 && choice->sampling->n_logit_bias == 0;
}

/* What the host's sampler makes of a row, in the device's words. */
static perch_status choose_one(state *s, const float *logits, const kernels_choice *choice, kernels_chosen *out,
                               perch_error *err) {
    const perch_sampling *p = choice->sampling;
    const int32_t *history = s->history + (size_t)choice->slot * s->limits.session_len;
    bool whole = p->repetition_penalty != 1, generated = p->frequency_penalty != 0 || p->presence_penalty != 0;
    for (uint32_t i = whole ? 0 : choice->n_prompt; (whole || generated) && i < choice->n_tokens; i++) {
        if (history[i] == UNKNOWN) {
            return err_set(err, PERCH_E_DEVICE, "token %u of slot %u's history never came", i, choice->slot);
        }
    }
    const sampler_input in = {.logits = logits + (size_t)choice->logit_row * s->limits.vocab_size,
                              .sampling = p,
                              .tokens = history,
                              .n_tokens = choice->n_tokens,
                              .n_prompt = choice->n_prompt,
                              .completion = choice->completion,
                              .suppressed = choice->suppressed,
                              .n_suppressed = choice->n_suppressed,
                              .want_logprob = choice->want_logprob};
    sampler_choose(s->sampler, &in, out);
    return PERCH_OK;
}

static perch_status async_choose(kernels_device *device, uint32_t lane_index, const float *logits,
                                 const kernels_choice *choices, uint32_t n, perch_error *err) {
    state *s = state_of(device);
    lane *l = &s->lanes[lane_index];
    perch_status status = PERCH_OK;
    if (!l->waiting || n > s->limits.max_batch_size) {
        return err_set(err, PERCH_E_DEVICE, "lane %u can't make %u choices now", lane_index, n);
    }
    for (uint32_t i = 0; i < n && !status; i++) {
        status = choose_one(s, logits, &choices[i], &l->chosen[i], err);
    }
    l->n_choices = n;
    return status;
}

static perch_status async_wait(kernels_device *device, uint32_t lane_index, const kernels_chosen **out,
                               perch_error *err) {
    lane *l = &state_of(device)->lanes[lane_index];
    if (!l->waiting) {
        return err_set(err, PERCH_E_DEVICE, "lane %u is waited for, but nothing was launched", lane_index);
    }
    l->waiting = false;
    memcpy(l->copy, l->chosen, l->n_choices * sizeof *l->copy);
    *out = l->copy;
    return PERCH_OK;
}

static const kernels_async async = {
    .reserve_bytes = async_reserve_bytes,
    .reserve = async_reserve,
    .begin = async_begin,
    .end = async_end,
    .history = async_history,
    .can_choose = async_can_choose,
    .choose = async_choose,
    .wait = async_wait,
};

static kernels_backend backend;

static void make_backend(void) {
    backend = *kernels_cpu();
    backend.name = "cuda";
    backend.async = &async;
    backend.open = async_open;
    backend.close = async_close;
    backend.describe = async_describe;
    backend.embed = async_embed;
}

__attribute__((visibility("default"))) const kernels_backend *perch_cuda_backend(uint32_t abi);

const kernels_backend *perch_cuda_backend(uint32_t abi) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_backend);
    return abi == KERNELS_ABI ? &backend : NULL;
}
