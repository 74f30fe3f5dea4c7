/* plan: what memory goes where, computed once before anything is loaded. */
#include "engine/impl.h"
#include "engine/options.h"
#include "engine/text/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Rows of logits of a step beyond one for each batch row: prompt log-probabilities are computed this many tokens at a time. */
#define EXTRA_LOGIT_ROWS 32u

/* Places that slots may have in all when the engine chooses the page size: each can be a mapping of its own. */
#define MAX_AUTO_PLACES 16384u
#define MAX_AUTO_PAGE_BYTES ((uint64_t)2 << 20)

/* Frames that pages go through to the disk where there is no host tier: so much of them, but within these numbers. */
#define STAGING_BYTES ((uint64_t)64 << 20)
#define MIN_STAGING_FRAMES 4u
#define MAX_STAGING_FRAMES 64u

/* Of either tier: their sum has to be a number. */
#define MAX_FRAMES (UINT32_MAX / 2 - 1)

perch_status plan_load_config(const perch_options *options, model_config *config, perch_error *err) {
    if (!options->path[0]) {
        return err_set(err, PERCH_E_CONFIG, "[model] path: not set");
    }
    return model_config_load(options->path, config, err);
}

perch_status plan_load_tokenizer(const perch_options *options, perch_tokenizer **out, perch_error *err) {
    char file[PERCH_PATH_CAP + 32];
    *out = NULL;
    if (options->tokenizer_path[0]) {
        return perch_tokenizer_create(options->tokenizer_path, out, err);
    }
    snprintf(file, sizeof file, "%s/tokenizer.json", options->path);
    return access(file, F_OK) == 0 ? perch_tokenizer_create(options->path, out, err) : PERCH_OK;
}

/*
 * A share of free memory is not taken beyond room for this many full-length sequences a slot: a small model would
 * fill the machine with pages that no one will use (docs/adr/0003).
 */
#define MAX_SHARE_SEQUENCES_PER_SLOT 16u

static uint64_t round_up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }

/* Bytes of KV of a full-length sequence. */
static uint64_t session_bytes(uint32_t session_len, uint64_t group_bytes) {
    return ((uint64_t)session_len + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS * group_bytes;
}

/*
 * The smallest page that holds a group or 2 MiB of one, but large enough that all slots together have no more places than
 * the system allows mappings.
 */
static uint64_t choose_page_bytes(uint64_t granularity, uint64_t group_bytes, uint64_t slot_bytes, uint32_t n_slots) {
    uint64_t page = granularity;
    while (page < group_bytes && page < MAX_AUTO_PAGE_BYTES) {
        page *= 2;
    }
    while (round_up(slot_bytes, page) / page * n_slots > MAX_AUTO_PLACES && page < slot_bytes) {
        page *= 2;
    }
    return page;
}

static double mib(uint64_t bytes) { return (double)bytes / 1048576; }

/* tier_bytes: what the host tier takes of the memory that the pool is in. */
static perch_status choose_n_pages(const perch_options *o, uint64_t left_bytes, uint64_t tier_bytes, plan_parts *parts,
                                   perch_plan *plan, perch_error *err) {
    cache_config *kv = &parts->cache;
    uint64_t least = cache_pages_per_slot(kv), n_pages;
    if (o->cache_bytes) {
        n_pages = o->cache_bytes / kv->page_bytes;
    } else if (o->cache_max_entry_count >= 1) {
        n_pages = (uint64_t)o->cache_max_entry_count * least;
    } else {
        uint64_t most = least * kv->n_slots * MAX_SHARE_SEQUENCES_PER_SLOT;
        n_pages = (uint64_t)((double)left_bytes * o->cache_max_entry_count) / kv->page_bytes;
        n_pages = n_pages < most ? n_pages : most;
    }
    kv->n_pages = n_pages > UINT32_MAX - 1 ? UINT32_MAX - 1 : (uint32_t)n_pages;
    if (n_pages < least) {
        bool could = least * kv->page_bytes <= left_bytes;
        return err_set(
            err, PERCH_E_NO_ROOM,
            "one sequence of session_len = %u tokens takes %.1f MiB of KV memory, the pool would have %.1f MiB "
            "(%.1f MiB are free, weights take %.1f, workspace %.1f and the host tier %.1f): lower [engine] "
            "session_len%s",
            parts->limits.session_len, mib(least * kv->page_bytes), mib(n_pages * kv->page_bytes),
            mib(plan->free_bytes), mib(plan->weights_bytes), mib(plan->workspace_bytes), mib(tier_bytes),
            could        ? " or raise [cache] cache_bytes or cache_max_entry_count"
            : tier_bytes ? " or [cache] host_bytes"
                         : "");
    }
    return PERCH_OK;
}

/*
 * The tiers below the device. Pages go to the disk through frames of the host tier; where that is not wanted, through a few that are
 * there for nothing else.
 */
static void plan_tiers(const perch_options *o, cache_config *kv, perch_plan *plan) {
    uint64_t n_frames = o->host_bytes / kv->page_bytes;
    uint32_t max_tokens = kv->prefix_index ? cache_page_tokens(kv) : 0;
    uint32_t n_disk = o->disk_bytes ? page_file_capacity(kv->page_bytes, max_tokens, o->disk_bytes) : 0;
    kv->n_frames = n_frames < MAX_FRAMES ? (uint32_t)n_frames : MAX_FRAMES;
    kv->n_disk_frames = n_disk < MAX_FRAMES ? n_disk : MAX_FRAMES;
    kv->restore = (cache_restore)o->restore;
    plan->host_bytes += disk_host_bytes(kv->n_disk_frames);
    plan->host_tier_bytes = kv->n_frames * kv->page_bytes;
    plan->disk_tier_bytes = kv->n_disk_frames ? o->disk_bytes : 0;
    if (kv->n_disk_frames && !kv->n_frames) {
        uint64_t n = STAGING_BYTES / kv->page_bytes;
        kv->n_frames = n < MIN_STAGING_FRAMES   ? MIN_STAGING_FRAMES
                       : n > MAX_STAGING_FRAMES ? MAX_STAGING_FRAMES
                                                : (uint32_t)n;
        plan->staging_bytes = kv->n_frames * kv->page_bytes;
    }
}

static perch_status plan_cache(const perch_options *o, const kernels_backend *backend, kernels_device *device,
                               const kv_layout *layout, plan_parts *parts, perch_plan *plan, perch_error *err) {
    uint64_t granularity = backend->kv_page_granularity(device);
    uint64_t slot_bytes = session_bytes(parts->limits.session_len, layout->group_bytes);
    cache_config *kv = &parts->cache;
    bool table = o->mapping == PERCH_MAPPING_TABLE || (o->mapping == PERCH_MAPPING_AUTO && granularity == 0);
    plan->mapping = table ? PERCH_MAPPING_TABLE : PERCH_MAPPING_VMM;
    kv->page_bytes = table ? layout->group_bytes : o->page_bytes;
    if (table && o->page_bytes) {
        return err_set(err, PERCH_E_CONFIG,
                       "[cache] page_bytes: a page is one group of 16 tokens with mapping = table");
    }
    if (!table && granularity == 0) {
        return err_set(err, PERCH_E_UNSUPPORTED, "[cache] mapping: %s can't do vmm, it needs table",
                       backend->describe(device));
    }
    if (!kv->page_bytes) {
        kv->page_bytes = choose_page_bytes(granularity, layout->group_bytes, slot_bytes, o->max_batch_size);
    } else if (!table && kv->page_bytes % granularity) {
        return err_set(err, PERCH_E_CONFIG, "[cache] page_bytes: %llu is not a multiple of the device's %llu",
                       (unsigned long long)kv->page_bytes, (unsigned long long)granularity);
    }
    kv->group_bytes = layout->group_bytes;
    kv->n_slots = o->max_batch_size;
    kv->session_len = parts->limits.session_len;
    kv->prefix_index = o->prefix_index == PERCH_ON;
    kv->policy = o->policy == PERCH_POLICY_COST ? CACHE_COST : CACHE_LRU;
    kv->chunk_pages = o->cache_chunk_size < 0 ? 0 : (uint32_t)o->cache_chunk_size;
    if (cache_pages_per_slot(kv) == 0) {
        return err_set(err, PERCH_E_NO_ROOM, "session_len = %u: a slot of %llu bytes is beyond any memory",
                       parts->limits.session_len, (unsigned long long)slot_bytes);
    }
    /* On a GPU the host's bookkeeping takes nothing of what is planned. */
    bool shared = !backend->async;
    uint64_t table_bytes = table ? (uint64_t)kv->n_slots * cache_pages_per_slot(kv) * sizeof(uint8_t *) : 0;
    *(shared ? &plan->host_bytes : &plan->reserve_bytes) += table_bytes;
    plan_tiers(o, kv, plan);
    uint64_t tier_bytes = plan->host_tier_bytes + plan->staging_bytes;
    uint64_t fixed = plan->weights_bytes + plan->workspace_bytes + plan->reserve_bytes;
    fixed += shared ? plan->host_bytes + tier_bytes : 0;
    uint64_t left = plan->free_bytes > fixed ? plan->free_bytes - fixed : 0;
    perch_status status = choose_n_pages(o, left, shared ? tier_bytes : 0, parts, plan, err);
    plan->pool_bytes = (uint64_t)kv->n_pages * kv->page_bytes;
    plan->host_bytes += cache_host_bytes(kv);
    plan->total_bytes = fixed + plan->pool_bytes + (shared ? cache_host_bytes(kv) : 0);
    if (status) {
        return status;
    }
    if (plan->total_bytes > plan->free_bytes) {
        return err_set(err, PERCH_E_NO_ROOM,
                       "weights %.1f + workspace %.1f + %s %.1f + KV pool %.1f = %.1f MiB, but %.1f MiB are free",
                       mib(plan->weights_bytes), mib(plan->workspace_bytes),
                       shared ? "bookkeeping and host tier" : "the device's own",
                       mib(shared ? plan->host_bytes + tier_bytes : plan->reserve_bytes), mib(plan->pool_bytes),
                       mib(plan->total_bytes), mib(plan->free_bytes));
    }
    return PERCH_OK;
}

static perch_status plan_limits(const perch_options *o, const model_config *config, kernels_dtype dtype,
                                plan_parts *parts, perch_error *err) {
    uint32_t session_len = o->session_len ? o->session_len : config->max_positions;
    if (session_len > config->max_positions) {
        return err_set(err, PERCH_E_CONFIG, "[engine] session_len: %u is more than the model's %u positions",
                       session_len, config->max_positions);
    }
    parts->limits.dtype = dtype;
    parts->limits.weight_format = device_weight_format(o);
    parts->limits.session_len = session_len;
    parts->limits.max_step_tokens = o->max_step_tokens;
    parts->limits.max_logit_rows = o->max_batch_size + EXTRA_LOGIT_ROWS;
    parts->sched = (sched_config){.max_batch_size = o->max_batch_size,
                                  .max_step_tokens = o->max_step_tokens,
                                  .prefill_reserve = o->prefill_reserve,
                                  .max_logit_rows = parts->limits.max_logit_rows,
                                  .age_steps = o->age_steps,
                                  .bypass_limit = o->bypass_limit,
                                  .by_prefix = o->schedule == PERCH_SCHEDULE_PREFIX,
                                  .prefix_patience = o->prefix_patience};
    return PERCH_OK;
}

static uint64_t step_host_bytes(const perch_options *o, const plan_parts *parts, uint32_t vocab_size) {
    return (uint64_t)o->max_step_tokens * (sizeof(int32_t) + 3 * sizeof(uint32_t)) +
           (uint64_t)o->max_batch_size * (sizeof(kernels_row) + sizeof(sched_row) +
                                          KERNELS_LANES * (sizeof(flight_row) + sizeof(kernels_choice))) +
           (uint64_t)parts->limits.max_logit_rows * sizeof(uint32_t) + sampler_bytes(vocab_size) +
           (o->trace_file[0] ? trace_bytes() : 0);
}

static void describe_model(const model_config *config, perch_plan *plan) {
    plan->n_parameters = model_n_parameters(config);
    plan->n_step_parameters =
        plan->n_parameters - (config->tied_embeddings ? 0 : (uint64_t)config->vocab_size * config->hidden_size);
    plan->n_layers = config->n_layers;
    plan->n_heads = config->n_heads;
    plan->n_kv_heads = config->n_kv_heads;
    plan->head_dim = config->head_dim;
    plan->hidden_size = config->hidden_size;
    plan->vocab_size = config->vocab_size;
    snprintf(plan->architecture, sizeof plan->architecture, "%s", model_arch_name(config->arch));
}

perch_status plan_make(const perch_options *o, const kernels_backend *backend, kernels_device *device,
                       const model_config *config, uint64_t tokenizer_host_bytes, plan_parts *parts, perch_plan *plan,
                       perch_error *err) {
    static const char *const dtypes[] = {[KERNELS_F32] = "f32", [KERNELS_F16] = "f16", [KERNELS_BF16] = "bf16"};
    kernels_dtype dtype = device_dtype(o, config, backend);
    const char *const formats[] = {[KERNELS_WEIGHT_DTYPE] = dtypes[dtype],
                                   [KERNELS_WEIGHT_BF16] = "bf16",
                                   [KERNELS_WEIGHT_INT8] = "int8",
                                   [KERNELS_WEIGHT_INT4] = "int4"};
    kv_layout layout;
    memset(parts, 0, sizeof *parts);
    perch_status status = plan_limits(o, config, dtype, parts, err);
    if (status) {
        return status;
    }
    memset(plan, 0, sizeof *plan);
    plan->struct_size = sizeof *plan;
    describe_model(config, plan);
    snprintf(plan->dtype, sizeof plan->dtype, "%s", dtypes[dtype]);
    snprintf(plan->weight_format, sizeof plan->weight_format, "%s", formats[device_weight_format(o)]);
    snprintf(plan->backend, sizeof plan->backend, "%s", backend->describe(device));
    status = backend->free_bytes(device, &plan->free_bytes, err);
    if (status) {
        return status;
    }
    model_memory_compute(backend, device, config, &parts->limits, &parts->model);
    model_kernels_limits(config, &parts->limits, o->max_batch_size, &parts->step);
    if (backend->async && backend->async->check && (status = backend->async->check(device, &parts->step, err))) {
        return status;
    }
    plan->weights_bytes = parts->model.weights_bytes;
    plan->workspace_bytes = parts->model.workspace_bytes;
    plan->reserve_bytes = backend->async ? backend->async->reserve_bytes(device, &parts->step) : 0;
    plan->context_bytes = backend->async && backend->async->context_bytes ? backend->async->context_bytes(device) : 0;
    plan->host_bytes = parts->model.host_bytes + tokenizer_host_bytes + step_host_bytes(o, parts, config->vocab_size);
    model_kv_layout(config, dtype, &layout);
    status = plan_cache(o, backend, device, &layout, parts, plan, err);
    const cache_config *kv = &parts->cache;
    uint32_t pages_per_slot = cache_pages_per_slot(kv);
    plan->kv_bytes_per_token = layout.group_bytes / KV_GROUP_TOKENS;
    plan->group_bytes = layout.group_bytes;
    plan->page_bytes = kv->page_bytes;
    plan->sequence_bytes = pages_per_slot * kv->page_bytes;
    plan->n_pages = kv->n_pages;
    plan->n_slots = kv->n_slots;
    plan->session_len = parts->limits.session_len;
    plan->n_full_sequences = pages_per_slot ? kv->n_pages / pages_per_slot : 0;
    plan->n_pool_tokens = plan->pool_bytes / layout.group_bytes * KV_GROUP_TOKENS;
    return status;
}

/* One backend: its device, and the plan for it. The device is closed again on failure, but for E_NO_ROOM's sake. */
static perch_status open_on(const perch_options *o, const kernels_backend *backend, const model_config *config,
                            uint64_t tokenizer_host_bytes, kernels_device **device, plan_parts *parts, perch_plan *plan,
                            perch_error *err) {
    perch_status status = device_open(o, config, backend, device, err);
    if (status) {
        return status;
    }
    status = plan_make(o, backend, *device, config, tokenizer_host_bytes, parts, plan, err);
    if (status && status != PERCH_E_NO_ROOM) {
        backend->close(*device);
        *device = NULL;
    }
    return status;
}

bool plan_may_use_cpu(perch_status status) {
    return status == PERCH_E_UNSUPPORTED || status == PERCH_E_NO_ROOM || status == PERCH_E_NOMEM ||
           status == PERCH_E_DEVICE;
}

perch_status plan_open(const perch_options *o, const model_config *config, uint64_t tokenizer_host_bytes,
                       const kernels_backend **backend, kernels_device **device, plan_parts *parts, perch_plan *plan,
                       perch_error *err) {
    perch_error why = {PERCH_OK, ""};
    perch_status status = PERCH_OK;
    *device = NULL;
    if (o->device != PERCH_DEVICE_CPU) {
        perch_error *reason = o->device == PERCH_DEVICE_CUDA ? err : &why;
        const kernels_backend *cuda;
        status = kernels_cuda(&cuda, reason);
        if (!status) {
            *backend = cuda;
            status = open_on(o, *backend, config, tokenizer_host_bytes, device, parts, plan, reason);
        }
        if (!status || o->device == PERCH_DEVICE_CUDA || !plan_may_use_cpu(status)) {
            if (status && o->device == PERCH_DEVICE_AUTO && err) {
                *err = why;
            }
            return status;
        }
        if (*device) {
            (*backend)->close(*device);
            *device = NULL;
        }
    }
    perch_status gpu_status = status;
    *backend = kernels_cpu();
    status = open_on(o, *backend, config, tokenizer_host_bytes, device, parts, plan, err);
    if (*device) {
        plan->gpu_status = gpu_status;
        snprintf(plan->note, sizeof plan->note, "%.*s", (int)sizeof plan->note - 1, why.message);
    }
    return status;
}

perch_status perch_plan_compute(const perch_options *options, perch_plan *plan, perch_error *err) {
    const kernels_backend *backend = kernels_cpu();
    kernels_device *device = NULL;
    perch_tokenizer *tokenizer = NULL;
    model_config config;
    plan_parts parts;
    perch_plan made;
    if (!options || !plan || plan->struct_size != sizeof *plan) {
        return err_set(err, PERCH_E_INVALID, "perch_plan_compute: options and plan (with struct_size) must be given");
    }
    perch_status status = options_check(options, err);
    if (!status) {
        status = plan_load_config(options, &config, err);
    }
    if (!status) {
        status = plan_load_tokenizer(options, &tokenizer, err);
    }
    if (!status) {
        status = plan_open(options, &config, tokenizer ? tokenizer_bytes(tokenizer) : 0, &backend, &device, &parts,
                           &made, err);
    }
    if (device) {
        *plan = made;
    }
    backend->close(device);
    perch_tokenizer_destroy(tokenizer);
    return status;
}
