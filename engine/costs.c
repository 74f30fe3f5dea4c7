/*
 * costs: what KV takes to compute and to load on this machine: measured for an engine when it starts, corrected by its steps, told to
 * the cache, and measured by itself for whoever wants to know before there is an engine.
 */
#include "engine/impl.h"
#include "engine/measure.h"
#include "engine/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What an engine computes at start-up to know its rates: some milliseconds of a GPU, and of a CPU with a small model. */
#define START_FLOPS_CPU 2e8
#define START_FLOPS_GPU 5e12
#define START_LEAST_TOKENS 16u

/* What perch_costs_measure times: two contexts, each a few times, in passes of so many microseconds at most. */
#define MEASURE_POSITIONS 8192u
#define MEASURE_FIRST_TOKENS 32u
#define MEASURE_PASS_US 250000.0
#define MEASURE_REPEATS 3u
#define MEASURE_VOCAB 256u
#define MEASURE_LOAD_BYTES ((uint64_t)8 << 20)

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* ------------------------------------------------------------ an engine's -- */

void costs_init(const perch_plan *plan, uint32_t max_step_tokens, cost_model *m) {
    /* A parameter is a multiplication and an addition; so is each element of a query times a key, and of its value. */
    double token_flops = 2.0 * (double)plan->n_step_parameters;
    double position_flops = 4.0 * plan->n_layers * plan->n_heads * plan->head_dim;
    cost_init(m, plan->page_bytes, max_step_tokens, token_flops, position_flops);
}

perch_status costs_start(perch_engine *e, const plan_parts *parts, perch_error *err) {
    measured at = {.backend = e->backend,
                   .device = e->device,
                   .now_us = e->now_us,
                   .model = e->model,
                   .page_bytes = e->plan.page_bytes,
                   .group_bytes = e->plan.group_bytes,
                   .n_pages = e->plan.n_pages,
                   .n_frames = parts->cache.n_frames,
                   .layers_each = 1};
    double token_flops = 2.0 * (double)e->plan.n_step_parameters;
    double most = (e->backend->async ? START_FLOPS_GPU : START_FLOPS_CPU) / token_flops;
    uint32_t n = min_u32(parts->limits.max_step_tokens, e->session_len);
    n = most < n ? (uint32_t)most : n;
    costs_init(&e->plan, parts->limits.max_step_tokens, &e->costs);
    perch_status status = measure_loads(&at, &e->costs, err);
    if (!status && n >= START_LEAST_TOKENS) {
        status = measure_prefill(&at, 0, n, 2, &e->costs, NULL, err);
        status = status ? status : measure_prefill(&at, 0, n / 4, 2, &e->costs, NULL, err);
    }
    e->lane = at.lane;
    status = status ? status : disk_measure(e, parts, err);
    cache_costs costs;
    cost_get(&e->costs, &costs);
    cache_set_costs(e->kv, &costs);
    return status;
}

void costs_step(perch_engine *e, const flight *f, uint64_t us) {
    cost_step s = {.us = (double)us};
    for (uint32_t r = 0; r < f->n_rows; r++) {
        const flight_row *row = &f->rows[r];
        uint64_t n = row->n_tokens, positions = n * row->first_position + n * (n - 1) / 2;
        s.n_decode += n == 1;
        s.decode_positions += n == 1 ? positions : 0;
        s.n_prefill += n == 1 ? 0 : row->n_tokens;
        s.prefill_positions += n == 1 ? 0 : positions;
    }
    if (cost_add_step(&e->costs, &s)) {
        cache_costs costs;
        cost_get(&e->costs, &costs);
        cache_set_costs(e->kv, &costs);
    }
}

/* Of pages that take so many microseconds each. */
static double mbps_of(uint64_t page_bytes, double page_us) { return page_us > 0 ? (double)page_bytes / page_us : 0; }

void costs_stats(const perch_engine *e, perch_stats *stats) {
    cache_costs c;
    cost_get(&e->costs, &c);
    stats->prefill_us = c.compute_us;
    stats->prefill_us_8k = c.compute_us + 8192 * c.compute_us_per_position;
    stats->host_latency_us = c.latency_us[CACHE_HOST];
    stats->host_mbps = mbps_of(e->plan.page_bytes, c.page_us[CACHE_HOST]);
    stats->disk_latency_us = c.latency_us[CACHE_DISK];
    stats->disk_mbps = mbps_of(e->plan.page_bytes, c.page_us[CACHE_DISK]);
}

/* ------------------------------------------------------ without an engine -- */

/* One layer of the model on its device, with KV memory for one sequence and some frames. */
typedef struct bench {
    measured at;
    model_config config;
    model_limits limits;
    uint32_t n_positions;
    bool kv_is_open;
} bench;

/* Takes its shape from a plan whose device is open and has nothing on it. */
static perch_status bench_open(const perch_options *o, const model_config *config, const plan_parts *parts,
                               const perch_plan *plan, const kernels_backend *backend, kernels_device *device, bench *b,
                               perch_error *err) {
    kernels_limits step;
    kv_layout layout;
    b->config = *config;
    b->config.n_layers = 1;
    b->config.vocab_size = min_u32(config->vocab_size, MEASURE_VOCAB);
    b->limits = parts->limits;
    b->limits.session_len = b->n_positions = min_u32(parts->limits.session_len, MEASURE_POSITIONS);
    b->limits.max_step_tokens = min_u32(parts->limits.max_step_tokens, b->n_positions);
    b->limits.max_logit_rows = b->limits.max_step_tokens;
    model_kv_layout(&b->config, b->limits.dtype, &layout);
    uint64_t n_groups = (b->n_positions + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
    uint64_t n_pages = (n_groups * layout.group_bytes + plan->page_bytes - 1) / plan->page_bytes;
    uint64_t n_frames = MEASURE_LOAD_BYTES / plan->page_bytes;
    n_frames = n_frames ? n_frames : 1;
    b->at = (measured){.backend = backend,
                       .device = device,
                       .page_bytes = plan->page_bytes,
                       .group_bytes = layout.group_bytes,
                       .n_pages = (uint32_t)(n_pages > n_frames ? n_pages : n_frames),
                       .n_frames = (uint32_t)n_frames,
                       .all_logits = true,
                       .layers_each = config->n_layers};
    perch_status status =
        model_load(backend, device, &b->config, &b->limits, NULL, o->random_seed, NULL, NULL, &b->at.model, err);
    if (!status && backend->async) {
        model_kernels_limits(&b->config, &b->limits, 1, &step);
        status = backend->async->reserve(device, &step, err);
    }
    const kernels_kv kv = {.mapping = plan->mapping == PERCH_MAPPING_TABLE ? KERNELS_TABLE : KERNELS_VMM,
                           .page_bytes = plan->page_bytes,
                           .group_bytes = layout.group_bytes,
                           .n_pages = b->at.n_pages,
                           .n_slots = 1,
                           .pages_per_slot = (uint32_t)n_pages};
    status = status ? status : backend->kv_open(device, &kv, err);
    b->kv_is_open = !status;
    return status ? status : backend->host_open(device, b->at.n_frames, err);
}

/* Passes at the beginning of a sequence and at its end, as long as the machine does in a moment. */
static perch_status bench_prefill(bench *b, cost_model *m, perch_costs *out, perch_error *err) {
    uint32_t n = min_u32(MEASURE_FIRST_TOKENS, b->limits.max_step_tokens);
    double us;
    perch_status status = measure_prefill(&b->at, 0, n, 1, NULL, &us, err);
    double most = n * (MEASURE_PASS_US / (us < 1 ? 1 : us));
    n = most < n ? n : most < b->limits.max_step_tokens ? (uint32_t)most : b->limits.max_step_tokens;
    if (!status) {
        status = measure_prefill(&b->at, 0, n, MEASURE_REPEATS, m, NULL, err);
    }
    if (!status) {
        status = measure_prefill(&b->at, b->n_positions - n, n, MEASURE_REPEATS, m, NULL, err);
    }
    out->n_layers_measured = status ? 0 : 1;
    out->n_step_tokens = n;
    out->n_positions = b->n_positions;
    return status;
}

static void fill_in(const cost_model *m, const perch_plan *plan, perch_costs *out) {
    cache_costs c;
    cost_get(m, &c);
    out->prefill_us = c.compute_us;
    out->prefill_us_per_position = c.compute_us_per_position;
    out->host_latency_us = c.latency_us[CACHE_HOST];
    out->host_mbps = mbps_of(plan->page_bytes, c.page_us[CACHE_HOST]);
    out->disk_latency_us = c.latency_us[CACHE_DISK];
    out->disk_mbps = mbps_of(plan->page_bytes, c.page_us[CACHE_DISK]);
    out->host_break_even = cost_break_even(&c, CACHE_HOST, plan->page_bytes, plan->group_bytes, plan->session_len);
    out->disk_break_even = cost_break_even(&c, CACHE_DISK, plan->page_bytes, plan->group_bytes, plan->session_len);
}

perch_status perch_costs_measure(const perch_options *options, perch_costs *costs, perch_error *err) {
    const kernels_backend *backend = kernels_cpu();
    kernels_device *device = NULL;
    model_config config;
    plan_parts parts;
    perch_plan plan;
    perch_error why = {PERCH_OK, ""};
    if (!options || !costs || costs->struct_size != sizeof *costs) {
        return err_set(err, PERCH_E_INVALID, "perch_costs_measure: options and costs (with struct_size) must be given");
    }
    bench *b = calloc(1, sizeof *b);
    cost_model *m = calloc(1, sizeof *m);
    perch_status status = b && m ? PERCH_OK : err_nomem(err, "what costs are measured with");
    status = status ? status : options_check(options, err);
    status = status ? status : plan_load_config(options, &config, err);
    status = status ? status : plan_open(options, &config, 0, &backend, &device, &parts, &plan, err);
    if (!status) {
        memset(costs, 0, sizeof *costs);
        costs->struct_size = sizeof *costs;
        costs_init(&plan, parts.limits.max_step_tokens, m);
        perch_status timed = bench_open(options, &config, &parts, &plan, backend, device, b, &why);
        timed = timed ? timed : bench_prefill(b, m, costs, &why);
        if (!timed) {
            measure_loads(&b->at, m, &why);
        }
        fill_in(m, &plan, costs);
        snprintf(costs->note, sizeof costs->note, "%.*s", (int)sizeof costs->note - 1, why.message);
    }
    if (b && b->kv_is_open) {
        backend->kv_close(device);
    }
    model_destroy(b ? b->at.model : NULL);
    backend->close(device);
    free(b);
    free(m);
    return status;
}
