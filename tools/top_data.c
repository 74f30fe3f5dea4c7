/*
 * top_data: the engines that perch top looks at. See top_data.h.
 */
#include "top_data.h"

#include "text.h"
#include "tool.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_number(const char *word) { return word[0] != '\0' && strspn(word, "0123456789") == strlen(word); }

perch_status top_engines_init(struct top_engines *top, const char *word, const perch_options *options,
                              perch_error *err) {
    bool by_option = word == NULL && options->stats_file[0] != '\0' && strcasecmp(options->stats_file, "auto") != 0;
    const char *file = by_option ? options->stats_file : word;
    *top = (struct top_engines){.process = NULL};
    if (file != NULL && (by_option || !is_number(file))) {
        if (snprintf(top->file, sizeof(top->file), "%s", file) >= (int)sizeof(top->file)) {
            return tool_error(err, PERCH_E_INVALID, "the file's name is too long");
        }
        return PERCH_OK;
    }
    top->process = word;
    return perch_stats_folder(top->folder, sizeof(top->folder), err);
}

void top_engines_free(struct top_engines *top) {
    free(top->engines);
    *top = (struct top_engines){.process = NULL};
}

/* ----------------------------------------------------------------- looking -- */

/* The engine of that file, in its place by name; a new one is all zero but for the name. */
static struct top_engine *engine_of(struct top_engines *top, const char *file, perch_error *err) {
    size_t at = 0;
    while (at < top->n && strcmp(top->engines[at].file, file) < 0) {
        at++;
    }
    if (at < top->n && strcmp(top->engines[at].file, file) == 0) {
        return &top->engines[at];
    }
    if (grow((void **)&top->engines, &top->cap, top->n + 1, sizeof(*top->engines), err) != PERCH_OK) {
        return NULL;
    }
    memmove(&top->engines[at + 1], &top->engines[at], (top->n - at) * sizeof(*top->engines));
    top->n++;
    memset(&top->engines[at], 0, sizeof(top->engines[at]));
    memcpy(top->engines[at].file, file, strlen(file) + 1);
    return &top->engines[at];
}

/* Another process may have the file's name by now: then nothing goes on from what was before. */
static void keep(struct top_engine *engine, const perch_snapshot *snapshot) {
    bool same = engine->now.struct_size != 0 && engine->now.pid == snapshot->pid &&
                engine->now.at_us - engine->now.uptime_us == snapshot->at_us - snapshot->uptime_us;
    if (!same) {
        engine->before.struct_size = 0;
    } else if (snapshot->at_us > engine->now.at_us) {
        engine->before = engine->now;
    }
    engine->now = *snapshot;
    engine->seen = true;
}

static perch_status look_at(struct top_engines *top, const char *file, bool dead_too, perch_error *err) {
    perch_snapshot snapshot = {.struct_size = sizeof(snapshot)};
    perch_status status = perch_snapshot_read(file, &snapshot, err);
    if (status != PERCH_OK || (!snapshot.running && !dead_too)) {
        return status;
    }
    struct top_engine *engine = engine_of(top, file, err);
    if (engine == NULL) {
        return PERCH_E_NOMEM;
    }
    keep(engine, &snapshot);
    return PERCH_OK;
}

/* "123", and "123.2" for the second engine of a process. */
static bool is_meant(const struct top_engines *top, const char *name) {
    size_t length = strspn(name, "0123456789");
    if (length == 0 || (name[length] != '\0' && (name[length] != '.' || !is_number(name + length + 1)))) {
        return false;
    }
    return top->process == NULL || (strlen(top->process) == length && strncmp(name, top->process, length) == 0);
}

static perch_status look_in_folder(struct top_engines *top, perch_error *err) {
    perch_status status = PERCH_OK;
    DIR *dir = opendir(top->folder);
    struct dirent *at;
    while (dir != NULL && status == PERCH_OK && (at = readdir(dir)) != NULL) {
        char file[TOP_FILE_CAP];
        if (is_meant(top, at->d_name) &&
            snprintf(file, sizeof(file), "%s/%s", top->folder, at->d_name) < (int)sizeof(file)) {
            status = look_at(top, file, top->process != NULL, err) == PERCH_E_NOMEM ? PERCH_E_NOMEM : PERCH_OK;
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return status;
}

perch_status top_engines_look(struct top_engines *top, perch_error *err) {
    for (size_t i = 0; i < top->n; i++) {
        top->engines[i].seen = false;
    }
    perch_status status = top->file[0] != '\0' ? look_at(top, top->file, true, err) : look_in_folder(top, err);
    if (status != PERCH_OK) {
        return status;
    }
    size_t n = 0;
    for (size_t i = 0; i < top->n; i++) {
        if (top->engines[i].seen) {
            memmove(&top->engines[n++], &top->engines[i], sizeof(*top->engines));
        }
    }
    top->n = n;
    if (n > 0) {
        return PERCH_OK;
    }
    return top->process != NULL
               ? tool_error(err, PERCH_E_NOT_FOUND, "no engine of process %s keeps statistics in %s", top->process,
                            top->folder)
               : tool_error(err, PERCH_E_NOT_FOUND,
                            "no engine keeps statistics in %s; those that run with engine.stats_file=auto do",
                            top->folder);
}

/* ------------------------------------------------------------------- rates -- */

static double ratio(uint64_t part, uint64_t whole) { return whole > 0 ? (double)part / (double)whole : NAN; }

struct top_rates top_engine_rates(const struct top_engine *engine) {
    struct top_rates rates = {.hit_ratio = NAN, .cached_share = NAN};
    const perch_stats *now = &engine->now.stats;
    const perch_stats *before = &engine->before.stats;
    if (engine->before.struct_size == 0) {
        return rates;
    }
    double seconds = (double)(engine->now.at_us - engine->before.at_us) / 1e6;
#define GREW(field) (now->field - before->field)
    rates.prefill_tokens = (double)GREW(prefill_tokens) / seconds;
    rates.decode_tokens = (double)GREW(decode_tokens) / seconds;
    rates.requests = (double)(GREW(requests_finished) + GREW(requests_cancelled) + GREW(requests_failed)) / seconds;
    rates.evictions = (double)GREW(evictions) / seconds;
    rates.evicted_pages = (double)GREW(evicted_pages) / seconds;
    rates.to_host_bytes = (double)GREW(saved_pages) * (double)now->page_bytes / seconds;
    rates.to_device_bytes = (double)GREW(restored_pages) * (double)now->page_bytes / seconds;
    rates.to_disk_bytes = (double)GREW(spilled_pages) * (double)now->page_bytes / seconds;
    rates.from_disk_bytes = (double)GREW(fetched_pages) * (double)now->page_bytes / seconds;
    rates.step_ms = GREW(steps) > 0 ? (double)GREW(step_us) / (double)GREW(steps) / 1e3 : 0.0;
    rates.host_share = GREW(step_us) > 0 ? (double)GREW(host_us) / (double)GREW(step_us) : 0.0;
    rates.hit_ratio = ratio(GREW(hits) + GREW(partial_hits), GREW(hits) + GREW(partial_hits) + GREW(misses));
    rates.cached_share = ratio(GREW(cached_tokens), GREW(cached_tokens) + GREW(prefill_tokens));
#undef GREW
    return rates;
}
