/*
 * What steps need beside weights, workspace and KV, taken once: two lanes' batches, choices and results, attention's partial
 * results, the choices' scratch memory and each slot's history of tokens. One device allocation and one of pinned memory, so that
 * their sizes are what was planned.
 */
#include "kernels/cuda/choice.h"
#include "kernels/cuda/device.h"

#include "base/sampling_math.h"

#include <stdlib.h>

/*
 * What nobody can compute: code that the driver loads, and local memory that it makes room for, when a kernel is launched for
 * the first time. Graphs have an allowance of their own (graph.c).
 */
#define DRIVER_BYTES ((uint64_t)64 << 20)
#define BLOCK_BYTES ((uint64_t)2 << 20) /* what the driver gives out at once */

/* --- sizes */

uint32_t cuda_graph_rows(uint32_t n, uint32_t most) {
    uint32_t rows = 1;
    while (rows < n && rows <= most / 2) {
        rows *= 2;
    }
    return rows < n ? most : rows;
}

uint32_t cuda_graph_most(const kernels_limits *limits) {
    return limits->max_batch_size < limits->max_step_tokens ? limits->max_batch_size : limits->max_step_tokens;
}

kernels_limits cuda_graph_limits(const kernels_limits *limits, uint32_t n_rows) {
    kernels_limits graph = *limits;
    graph.max_step_tokens = graph.max_batch_size = n_rows;
    return graph;
}

bool cuda_chooses(const kernels_limits *limits) { return limits->vocab_size <= SAMPLING_MAX_VOCAB; }

uint32_t cuda_plans(const kernels_limits *limits) { return limits->window != 0 && limits->some_have_none ? 2 : 1; }

kernels_limits cuda_plan_limits(const kernels_limits *limits, uint32_t i) {
    kernels_limits plan = *limits;
    plan.window = i + 1 == cuda_plans(limits) ? limits->window : 0;
    return plan;
}

/* Where the next array of n elements begins, and *at behind it. */
static size_t place(size_t *at, size_t n, size_t element_bytes) {
    size_t begin = *at;
    *at += cuda_align(n * element_bytes);
    return begin;
}

void cuda_lane_layout(const lane_room *room, lane_layout *out) {
    size_t at = 0;
    for (uint32_t i = 0; i < CUDA_MAX_PLANS; i++) {
        out->counts[i] = place(&at, 1, sizeof(cuda_counts));
    }
    out->tokens = place(&at, room->tokens, sizeof(int32_t));
    out->token_from = place(&at, room->tokens, sizeof(uint32_t));
    out->positions = place(&at, room->tokens, sizeof(uint32_t));
    out->token_row = place(&at, room->tokens, sizeof(uint32_t));
    out->rows = place(&at, room->rows, sizeof(kernels_row));
    out->row_slot = place(&at, room->rows, sizeof(uint32_t));
    out->logit_tokens = place(&at, room->logits, sizeof(uint32_t));
    for (uint32_t i = 0; i < CUDA_MAX_PLANS; i++) {
        out->attend[i] = place(&at, room->attend[i], sizeof(cuda_attend_work));
        out->merge[i] = place(&at, room->merge[i], sizeof(cuda_merge_work));
    }
    out->bytes = at;
}

typedef struct sizes {
    size_t block, choices, chosen; /* of a lane */
    size_t partials, scratch, history;
    uint32_t max_merge;
    size_t host, device; /* all together */
} sizes;

/* Makes room for passes of one kind: such limits, so many rows of tokens and logits. */
static void add_pass(const kernels_device *device, const kernels_limits *limits, uint32_t n_logits, sizes *out) {
    lane_room room = {.tokens = limits->max_step_tokens, .rows = limits->max_batch_size, .logits = n_logits};
    lane_layout layout;
    for (uint32_t i = 0; i < cuda_plans(limits); i++) {
        const kernels_limits plan = cuda_plan_limits(limits, i);
        cuda_attention_sizes attention;
        cuda_attention_sizes_get(&plan, device->n_processors, &attention);
        room.attend[i] = attention.max_attend;
        room.merge[i] = attention.max_merge;
        out->partials = attention.partial_bytes > out->partials ? attention.partial_bytes : out->partials;
        out->max_merge = attention.max_merge > out->max_merge ? attention.max_merge : out->max_merge;
    }
    cuda_lane_layout(&room, &layout);
    out->block = layout.bytes > out->block ? layout.bytes : out->block;
}

static void compute_sizes(const kernels_device *device, const kernels_limits *limits, sizes *out) {
    const size_t n = limits->max_batch_size;
    const uint32_t n_choices = cuda_chooses(limits) ? limits->max_batch_size : 0;
    *out = (sizes){.choices = cuda_align(n * sizeof(cuda_choice)) + cuda_align(n * CUDA_MAX_BANS * sizeof(int32_t)),
                   .chosen = cuda_align(n * sizeof(kernels_chosen)),
                   .scratch = cuda_align(cuda_choose_scratch_bytes(n_choices, limits->vocab_size)),
                   .history = cuda_align(n * limits->session_len * sizeof(int32_t))};
    add_pass(device, limits, limits->max_logit_rows, out);
    for (uint32_t rows = 1, most = cuda_graph_most(limits); device->recorder.wanted;
         rows = rows <= most / 2 ? rows * 2 : most) {
        kernels_limits graph = cuda_graph_limits(limits, rows);
        add_pass(device, &graph, rows < limits->max_logit_rows ? rows : limits->max_logit_rows, out);
        if (rows == most) {
            break;
        }
    }
    out->partials = cuda_align(out->partials);
    out->host = KERNELS_LANES * (out->block + out->choices + out->chosen);
    out->device = out->host + out->partials + out->scratch + out->history;
}

uint64_t cuda_reserve_bytes(const kernels_device *device, const kernels_limits *limits) {
    sizes s;
    compute_sizes(device, limits, &s);
    return (s.device + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES + DRIVER_BYTES +
           (device->recorder.wanted ? CUDA_GRAPH_BYTES : 0);
}

/* --- reserve */

perch_status cuda_check_limits(const kernels_device *device, const kernels_limits *limits, perch_error *err) {
    if (device->reserved) {
        return err_set(err, PERCH_E_INVALID, "GPU %d is reserved already", device->ordinal);
    }
    if (limits->max_step_tokens == 0 || limits->max_batch_size == 0 || limits->session_len == 0 ||
        limits->vocab_size == 0 || limits->layout.element_bytes != CUDA_ACT_BYTES) {
        return err_set(err, PERCH_E_INVALID,
                       "steps of %u tokens and %u rows of %u tokens, a vocabulary of %u, KV of %u bytes an element",
                       limits->max_step_tokens, limits->max_batch_size, limits->session_len, limits->vocab_size,
                       limits->layout.element_bytes);
    }
    if (!cuda_attention_supports(limits->layout.head_dim)) {
        return err_set(err, PERCH_E_UNSUPPORTED, "head_dim = %u: the CUDA backend takes multiples of 8 up to 256",
                       limits->layout.head_dim);
    }
    return PERCH_OK;
}

static perch_status open_lane(kernels_device *device, cuda_lane *lane, perch_error *err) {
    cudaEvent_t *events[] = {&lane->uploaded, &lane->computed, &lane->done};
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < sizeof events / sizeof events[0] && status == PERCH_OK; i++) {
        status = cuda_check(device, cuda_event_create(events[i]), "an event of a step", err);
    }
    return status;
}

/* Cuts the two allocations up. */
static void hand_out(kernels_device *device, const sizes *s) {
    size_t at = 0, host_at = 0;
    for (uint32_t i = 0; i < KERNELS_LANES; i++) {
        cuda_lane *lane = &device->lanes[i];
        lane->host_block = device->host_arena + place(&host_at, s->block, 1);
        lane->host_choices = device->host_arena + place(&host_at, s->choices, 1);
        lane->host_chosen = (kernels_chosen *)(void *)(device->host_arena + place(&host_at, s->chosen, 1));
        lane->block = device->arena + place(&at, s->block, 1);
        lane->choices = device->arena + place(&at, s->choices, 1);
        lane->chosen = (kernels_chosen *)(void *)(device->arena + place(&at, s->chosen, 1));
    }
    device->partials = (float *)(void *)(device->arena + place(&at, s->partials, 1));
    device->choose_scratch = device->arena + place(&at, s->scratch, 1);
    device->history = (int32_t *)(void *)(device->arena + place(&at, s->history, 1));
}

static perch_status take_memory(kernels_device *device, const sizes *s, perch_error *err) {
    void *arena = NULL, *host_arena = NULL;
    perch_status status = cuda_take(device, s->device, "steps' batches, choices and partial results", &arena, err);
    device->arena = arena;
    if (status == PERCH_OK) {
        cudaError_t e = cudaMemsetAsync(arena, 0, s->device, device->compute);
        status = cuda_check(device, e, "zeroing steps' memory", err);
    }
    if (status == PERCH_OK) {
        cudaError_t e = cudaHostAlloc(&host_arena, s->host, cudaHostAllocDefault);
        status = cuda_check(device, e, "pinned memory for steps' batches", err);
        device->host_arena = host_arena;
    }
    if (status == PERCH_OK) {
        device->merge = malloc((s->max_merge > 0 ? s->max_merge : 1) * sizeof *device->merge);
        status = device->merge != NULL ? PERCH_OK : err_nomem(err, "a plan of attention");
    }
    for (uint32_t i = 0; i < KERNELS_LANES && status == PERCH_OK; i++) {
        status = open_lane(device, &device->lanes[i], err);
    }
    return status;
}

perch_status cuda_reserve(kernels_device *device, const kernels_limits *limits, perch_error *err) {
    sizes s;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK || (status = cuda_check_limits(device, limits, err)) != PERCH_OK) {
        return status;
    }
    compute_sizes(device, limits, &s);
    device->reserved = true;
    device->limits = *limits;
    status = take_memory(device, &s, err);
    if (status == PERCH_OK) {
        hand_out(device, &s);
        status = cuda_tune(device, limits, err);
    }
    /* The lanes' streams know nothing of what was zeroed on `compute`. */
    if (status == PERCH_OK) {
        status = cuda_check(device, cudaStreamSynchronize(device->compute), "reserving it", err);
    }
    if (status != PERCH_OK) {
        cuda_unreserve(device);
    }
    return status;
}

void cuda_unreserve(kernels_device *device) {
    for (uint32_t i = 0; i < KERNELS_LANES; i++) {
        cudaEvent_t events[] = {device->lanes[i].uploaded, device->lanes[i].computed, device->lanes[i].done};
        for (size_t k = 0; k < sizeof events / sizeof events[0]; k++) {
            if (events[k] != NULL) {
                (void)cudaEventDestroy(events[k]);
            }
        }
        device->lanes[i] = (cuda_lane){0};
    }
    free(device->merge);
    (void)cudaFreeHost(device->host_arena);
    (void)cudaFree(device->arena);
    device->merge = NULL;
    device->host_arena = device->arena = NULL;
    device->partials = NULL;
    device->choose_scratch = NULL;
    device->history = NULL;
    device->reserved = false;
}
