/* engine: creation, end, plan and statistics. */
#include "engine/impl.h"
#include "engine/options.h"
#include "engine/text/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

/* generation_config.json's value where [sampling] leaves it to the model, `off` where that has none either. */
static double sampling_default(double option, double of_model, double off) {
    return !isnan(option) ? option : !isnan(of_model) ? of_model : off;
}

static void set_default_sampling(perch_engine *e) {
    const perch_options *o = &e->options;
    const model_config *m = &e->config;
    perch_sampling *s = &e->default_sampling;
    s->struct_size = sizeof *s;
    s->temperature = sampling_default(o->temperature, m->temperature, 0);
    s->top_p = sampling_default(o->top_p, m->top_p, 1);
    s->min_p = sampling_default(o->min_p, m->min_p, 0);
    s->typical_p = sampling_default(o->typical_p, m->typical_p, 1);
    s->repetition_penalty = sampling_default(o->repetition_penalty, m->repetition_penalty, 1);
    s->top_k = o->top_k >= 0 ? o->top_k : m->top_k >= 0 ? m->top_k : 0;
}

/* The options as they took effect. */
static void set_effective_options(perch_engine *e) {
    perch_options *o = &e->options;
    kernels_dtype dtype = device_dtype(o, &e->config, e->backend);
    o->device = e->now_us                     ? o->device /* simulated: it is neither */
                : e->backend == kernels_cpu() ? PERCH_DEVICE_CPU
                                              : PERCH_DEVICE_CUDA;
    o->dtype = dtype == KERNELS_F32 ? PERCH_DTYPE_F32 : dtype == KERNELS_F16 ? PERCH_DTYPE_F16 : PERCH_DTYPE_BF16;
    o->mapping = e->plan.mapping;
    o->session_len = e->session_len;
    o->page_bytes = e->plan.page_bytes;
    o->cache_bytes = e->plan.pool_bytes;
    o->temperature = e->default_sampling.temperature;
    o->top_p = e->default_sampling.top_p;
    o->min_p = e->default_sampling.min_p;
    o->typical_p = e->default_sampling.typical_p;
    o->repetition_penalty = e->default_sampling.repetition_penalty;
    o->top_k = e->default_sampling.top_k;
}

static perch_status make_sync(perch_engine *e, perch_error *err) {
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic)) {
        return err_nomem(err, "condition variables");
    }
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    bool mutex = !pthread_mutex_init(&e->lock, NULL);
    bool work = mutex && !pthread_cond_init(&e->work, &monotonic);
    bool space = work && !pthread_cond_init(&e->space, &monotonic);
    bool event = space && !pthread_cond_init(&e->event, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (!event) {
        if (space) {
            pthread_cond_destroy(&e->space);
        }
        if (work) {
            pthread_cond_destroy(&e->work);
        }
        if (mutex) {
            pthread_mutex_destroy(&e->lock);
        }
        return err_nomem(err, "a mutex and its conditions");
    }
    e->sync_made = true;
    e->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return e->event_fd >= 0 ? PERCH_OK : err_set(err, PERCH_E_IO, "eventfd: no descriptor left");
}

static perch_status make_step_arrays(perch_engine *e, const plan_parts *parts, perch_error *err) {
    uint32_t n_tokens = parts->limits.max_step_tokens, n_rows = parts->sched.max_batch_size;
    e->batch_tokens = calloc(n_tokens, sizeof *e->batch_tokens);
    e->batch_token_from = calloc(n_tokens, sizeof *e->batch_token_from);
    e->batch_positions = calloc(n_tokens, sizeof *e->batch_positions);
    e->batch_token_row = calloc(n_tokens, sizeof *e->batch_token_row);
    e->batch_rows = calloc(n_rows, sizeof *e->batch_rows);
    e->logit_tokens = calloc(parts->limits.max_logit_rows, sizeof *e->logit_tokens);
    bool made = e->batch_tokens && e->batch_token_from && e->batch_positions && e->batch_token_row && e->batch_rows &&
                e->logit_tokens;
    for (uint32_t lane = 0; lane < KERNELS_LANES; lane++) {
        flight *f = &e->flights[lane];
        f->rows = calloc(n_rows, sizeof *f->rows);
        f->choices = calloc(n_rows, sizeof *f->choices);
        made = made && f->rows && f->choices;
    }
    if (!made) {
        return err_nomem(err, "the step's arrays");
    }
    return sampler_create(e->config.vocab_size, &e->sampler, err);
}

static perch_status check_tokenizer(const perch_engine *e, perch_error *err) {
    if (e->tokenizer && perch_tokenizer_n_tokens(e->tokenizer) > (int64_t)e->config.vocab_size) {
        return err_set(err, PERCH_E_FORMAT, "tokenizer.json has %d tokens, the model's vocab_size is %u",
                       perch_tokenizer_n_tokens(e->tokenizer), e->config.vocab_size);
    }
    return PERCH_OK;
}

/* Opens the device and everything on it, by the plan; what there is of it is closed by close_device. */
static perch_status open_device(perch_engine *e, const perch_options *o, plan_parts *parts, perch_error *err) {
    uint64_t tokenizer_host_bytes = e->tokenizer ? tokenizer_bytes(e->tokenizer) : 0;
    perch_status status =
        e->now_us ? plan_make(o, e->backend, e->device, &e->config, tokenizer_host_bytes, parts, &e->plan, err)
                  : plan_open(o, &e->config, tokenizer_host_bytes, &e->backend, &e->device, parts, &e->plan, err);
    if (!status) {
        status = model_load(e->backend, e->device, &e->config, &parts->limits,
                            o->weights == PERCH_WEIGHTS_RANDOM ? NULL : o->path, o->random_seed, o->progress,
                            o->progress_user, &e->model, err);
    }
    if (!status && e->backend->async) {
        status = e->backend->async->reserve(e->device, &parts->step, err);
    }
    if (!status) {
        const kernels_kv kv = {
            .mapping = e->plan.mapping == PERCH_MAPPING_TABLE ? KERNELS_TABLE : KERNELS_VMM,
            .page_bytes = parts->cache.page_bytes,
            .group_bytes = parts->cache.group_bytes,
            .n_pages = parts->cache.n_pages,
            .n_slots = parts->cache.n_slots,
            .pages_per_slot = cache_pages_per_slot(&parts->cache),
        };
        status = e->backend->kv_open(e->device, &kv, err);
        e->kv_is_open = !status;
    }
    if (!status && parts->cache.n_frames) {
        status = e->backend->host_open(e->device, parts->cache.n_frames, err);
    }
    return status;
}

static void close_device(perch_engine *e) {
    if (e->kv_is_open) {
        e->backend->kv_close(e->device);
    }
    model_destroy(e->model);
    e->backend->close(e->device);
    e->kv_is_open = false;
    e->model = NULL;
    e->device = NULL;
}

/* device = auto: what the plan could not foresee, as a GPU that another process fills meanwhile, is no reason to fail either. */
static perch_status open_some_device(perch_engine *e, plan_parts *parts, perch_error *err) {
    perch_error why = {PERCH_OK, ""};
    perch_status status = open_device(e, &e->options, parts, &why);
    if (status && !e->now_us && e->options.device == PERCH_DEVICE_AUTO && e->backend != kernels_cpu() &&
        plan_may_use_cpu(status)) {
        perch_options on_cpu = e->options;
        perch_status gpu_status = status;
        char note[sizeof e->plan.note];
        snprintf(note, sizeof note, "%.*s", (int)sizeof note - 1, why.message);
        close_device(e);
        on_cpu.device = PERCH_DEVICE_CPU;
        status = open_device(e, &on_cpu, parts, &why);
        e->plan.gpu_status = gpu_status;
        memcpy(e->plan.note, note, sizeof note);
    }
    if (status && err) {
        *err = why;
    }
    return status;
}

static perch_status load(perch_engine *e, plan_parts *parts, perch_error *err) {
    const perch_options *o = &e->options;
    perch_status status = plan_load_config(o, &e->config, err);
    if (status || (status = plan_load_tokenizer(o, &e->tokenizer, err)) || (status = check_tokenizer(e, err)) ||
        (status = open_some_device(e, parts, err))) {
        return status;
    }
    e->session_len = e->plan.session_len;
    if ((status = fingerprint_make(e, e->model_text, err)) ||
        (status = disk_open(e, parts, &parts->cache.hash_seed, err))) {
        return status;
    }
    if (!e->disk.file && getrandom(&parts->cache.hash_seed, sizeof parts->cache.hash_seed, GRND_NONBLOCK) < 0) {
        parts->cache.hash_seed = time_us(); /* early in a boot; nothing but speed depends on it */
    }
    status = cache_create(&parts->cache, &e->kv, err);
    if (status || (status = disk_take_over(e, parts, err)) ||
        (status = sched_init(&e->sched, &parts->sched, e->kv, completion_admitted, e, err))) {
        return status;
    }
    status = make_step_arrays(e, parts, err);
    return status ? status : costs_start(e, parts, err);
}

static perch_status open_store(perch_engine *e, perch_error *err) {
    const perch_options *o = &e->options;
    const store_config config = {.kind = o->store_backend,
                                 .path = o->store_path,
                                 .address = o->store_address,
                                 .prefix = o->store_prefix,
                                 .password_file = o->store_password_file,
                                 .timeout_ms = o->store_timeout_ms,
                                 .lease_ms = o->store_lease_ms,
                                 .max_bytes = o->store_max_bytes,
                                 .ttl_ms = o->store_ttl * 1000};
    return store_open(&config, &e->store, err);
}

static perch_status start_thread(perch_engine *e, perch_error *err) {
    if (pthread_create(&e->thread, NULL, step_main, e)) {
        return err_set(err, PERCH_E_NOMEM, "the step thread cannot be started");
    }
    e->thread_made = true;
    return PERCH_OK;
}

/* place: NULL, or where it runs in place of what the options ask for. */
static perch_status open_engine(const perch_options *options, const engine_place *place, bool start, perch_engine **out,
                                perch_error *err) {
    plan_parts parts;
    perch_engine *e = calloc(1, sizeof *e);
    if (!e) {
        if (place) {
            place->backend->close(place->device);
        }
        return err_nomem(err, "the engine");
    }
    e->options = *options;
    e->backend = place ? place->backend : kernels_cpu();
    e->device = place ? place->device : NULL;
    e->now_us = place ? place->now_us : NULL;
    e->event_fd = -1;
    perch_status status = options_check(options, err);
    if (!status) {
        status = make_sync(e, err);
    }
    if (!status) {
        status = load(e, &parts, err);
    }
    if (!status) {
        set_default_sampling(e);
        set_effective_options(e);
        status = sampling_check(&e->default_sampling, e->config.vocab_size, err);
        status = status ? err_prefix(err, PERCH_E_CONFIG, "[sampling] or generation_config.json") : PERCH_OK;
    }
    if (!status) {
        status = open_store(e, err);
    }
    if (!status) {
        status = observe_open(e, err);
    }
    if (!status && start) {
        status = start_thread(e, err);
    }
    if (status) {
        perch_engine_destroy(e);
        return status;
    }
    *out = e;
    return PERCH_OK;
}

perch_status engine_open(const perch_options *options, bool start, perch_engine **out, perch_error *err) {
    if (!options || !out) {
        return err_set(err, PERCH_E_INVALID, "perch_engine_create: options and out must be given");
    }
    *out = NULL;
    return open_engine(options, NULL, start, out, err);
}

perch_status engine_open_on(const perch_options *options, const engine_place *place, perch_engine **out,
                            perch_error *err) {
    *out = NULL;
    return open_engine(options, place, false, out, err);
}

void engine_sleep(perch_engine *e, uint32_t ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000L;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_cond_timedwait(&e->work, &e->lock, &until);
}

perch_status perch_engine_create(const perch_options *options, perch_engine **out, perch_error *err) {
    return engine_open(options, true, out, err);
}

static void free_requests(perch_engine *e) {
    for (size_t i = 0; i < e->requests.n_places; i++) {
        request *r = e->requests.places[i].object;
        if (r) {
            for (uint32_t k = 0; k < r->n_completions; k++) {
                sched_remove(&e->sched, &r->completions[k].item);
            }
            request_free(e, r);
        }
    }
    idtable_fini(&e->requests);
}

static void free_sequences(perch_engine *e) {
    for (size_t i = 0; i < e->sequences.n_places; i++) {
        if (e->sequences.places[i].object) {
            sequence_free(e, e->sequences.places[i].object);
        }
    }
    idtable_fini(&e->sequences);
}

void engine_leave(perch_engine *e) {
    e->n_inside--;
    if (e->stopping) {
        pthread_cond_broadcast(&e->work);
    }
}

void perch_engine_destroy(perch_engine *e) {
    if (!e) {
        return;
    }
    if (e->thread_made) {
        pthread_mutex_lock(&e->lock);
        e->stopping = true;
        pthread_cond_broadcast(&e->work);
        pthread_cond_broadcast(&e->space);
        pthread_cond_broadcast(&e->event);
        while (e->n_inside) {
            pthread_cond_wait(&e->work, &e->lock);
        }
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    if (e->disk.file && e->kv) {
        transfers_keep(e);
    }
    if (e->store) {
        store_drain(e->store);
        persist_let_go_all(e);
        store_close(e->store);
    }
    observe_close(e);
    free_requests(e);
    free_sequences(e);
    deadlines_fini(&e->deadlines);
    sched_fini(&e->sched);
    disk_close(e); /* what it writes is partly the cache's */
    cache_destroy(e->kv);
    close_device(e);
    perch_tokenizer_destroy(e->tokenizer);
    sampler_destroy(e->sampler);
    free(e->batch_tokens);
    free(e->batch_token_from);
    free(e->batch_positions);
    free(e->batch_token_row);
    free(e->batch_rows);
    free(e->logit_tokens);
    for (uint32_t lane = 0; lane < KERNELS_LANES; lane++) {
        free(e->flights[lane].rows);
        free(e->flights[lane].choices);
        free(e->flights[lane].kept_logits);
    }
    if (e->event_fd >= 0) {
        close(e->event_fd);
    }
    if (e->sync_made) {
        pthread_cond_destroy(&e->work);
        pthread_cond_destroy(&e->space);
        pthread_cond_destroy(&e->event);
        pthread_mutex_destroy(&e->lock);
    }
    free(e);
}

perch_status perch_engine_plan(const perch_engine *e, perch_plan *plan, perch_error *err) {
    if (!e || !plan || plan->struct_size != sizeof *plan) {
        return err_set(err, PERCH_E_INVALID, "perch_engine_plan: engine and plan (with struct_size) must be given");
    }
    *plan = e->plan;
    return PERCH_OK;
}

perch_status perch_engine_options(const perch_engine *e, perch_options *out, perch_error *err) {
    if (!e || !out || out->struct_size != sizeof *out) {
        return err_set(err, PERCH_E_INVALID, "perch_engine_options: engine and out (with struct_size) must be given");
    }
    *out = e->options;
    return PERCH_OK;
}

const perch_tokenizer *perch_engine_tokenizer(const perch_engine *e) { return e ? e->tokenizer : NULL; }

static void tier_stats(const cache_tier_stats *kv, perch_stats *stats) {
    stats->saved_pages = kv->saved_pages;
    stats->restored_pages = kv->restored_pages;
    stats->restored_tokens = kv->restored_tokens;
    stats->spilled_pages = kv->spilled_pages;
    stats->fetched_pages = kv->fetched_pages;
    stats->fetched_tokens = kv->fetched_tokens;
    stats->corrupt_pages = kv->corrupt_pages;
    stats->failed_disk_reads = kv->failed_reads;
    stats->failed_disk_writes = kv->failed_writes;
    stats->raced_tokens = kv->raced_tokens;
    stats->declined_tokens = kv->declined_tokens;
    stats->host_pages_total = kv->n_host_frames;
    stats->host_pages_used = kv->n_host_full;
    stats->disk_pages_total = kv->n_disk_frames;
    stats->disk_pages_used = kv->n_disk_full;
}

void engine_stats(perch_engine *e, perch_stats *stats) {
    cache_stats kv;
    store_counts stored;
    store_counts_get(e->store, &stored);
    *stats = e->stats;
    stats->struct_size = sizeof *stats;
    stats->status = e->dead;
    cache_stats_get(e->kv, &kv);
    costs_stats(e, stats);
    stats->disk_status = kv.tiers.disk_off ? e->disk.error : PERCH_OK;
    stats->preemptions = e->sched.preemptions;
    stats->prefix_waits = e->sched.prefix_waits;
    stats->rows_running = e->sched.n_running;
    stats->requests_waiting = e->n_queued;
    stats->sequences_open = e->sequences.n_objects;
    observe_stats(e, stats);
    stats->evictions = kv.evictions;
    stats->evicted_pages = kv.evicted_pages;
    stats->copied_pages = kv.copied_pages;
    stats->prefix_tokens = kv.adopted_tokens;
    tier_stats(&kv.tiers, stats);
    stats->mapped_pages = kv.maps;
    stats->unmapped_pages = kv.unmaps;
    stats->sequences_resident = kv.n_resident_entries;
    stats->page_bytes = e->plan.page_bytes;
    stats->slots_total = kv.n_slots;
    stats->slots_active = kv.n_slots_pinned;
    stats->pages_total = kv.n_pages;
    stats->pages_free = kv.n_free;
    stats->pages_live = kv.n_pinned;
    stats->pages_cached = kv.n_idle;
    stats->store_commits = stored.n_commits;
    stats->store_failures = stored.n_failures;
    stats->sequences_retired = stored.n_retired;
}

perch_status perch_engine_stats(perch_engine *e, perch_stats *stats, perch_error *err) {
    if (!e || !stats || stats->struct_size != sizeof *stats) {
        return err_set(err, PERCH_E_INVALID, "perch_engine_stats: engine and stats (with struct_size) must be given");
    }
    pthread_mutex_lock(&e->lock);
    engine_stats(e, stats);
    pthread_mutex_unlock(&e->lock);
    return PERCH_OK;
}
