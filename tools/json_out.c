/*
 * json_out: perch's structures as JSON.
 */
#include "json_out.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at text[0..n), or 0. */
static size_t utf8_length(const unsigned char *text, size_t n) {
    unsigned char c = text[0];
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (length == 0 || length > n) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((c == 0xe0 && text[1] < 0xa0) || (c == 0xed && text[1] >= 0xa0) || (c == 0xf0 && text[1] < 0x90) ||
        (c == 0xf4 && text[1] >= 0x90)) {
        return 0;
    }
    return length;
}

json_t *json_text(const char *text, size_t n_bytes) {
    if (n_bytes == 0) {
        return json_string("");
    }
    char *clean = malloc(3 * n_bytes);
    if (clean == NULL) {
        return NULL;
    }
    size_t n_clean = 0;
    for (size_t i = 0; i < n_bytes;) {
        size_t length = utf8_length((const unsigned char *)text + i, n_bytes - i);
        if (length == 0) {
            memcpy(clean + n_clean, "\xef\xbf\xbd", 3);
            n_clean += 3;
            i++;
        } else {
            memcpy(clean + n_clean, text + i, length);
            n_clean += length;
            i += length;
        }
    }
    json_t *json = json_stringn(clean, n_clean);
    free(clean);
    return json;
}

json_t *json_tokens(const int32_t *ids, size_t n) {
    json_t *array = json_array();
    for (size_t i = 0; array != NULL && i < n; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            array = NULL;
        }
    }
    return array;
}

static json_int_t whole(uint64_t n) { return n > (uint64_t)INT64_MAX ? INT64_MAX : (json_int_t)n; }

/* Adds a number; NULL, and nothing is left, where that or something before it failed. */
static json_t *with_number(json_t *object, const char *name, uint64_t value) {
    if (object != NULL && json_object_set_new(object, name, json_integer(whole(value))) != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* Measured: a millionth is more than it means. */
static json_t *with_real(json_t *object, const char *name, double value) {
    if (object != NULL && json_object_set_new(object, name, json_real(round(value * 1e6) / 1e6)) != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

json_t *json_stats(const perch_stats *stats) {
    json_t *out = json_pack("{s:s, s:s}", "status", perch_status_name(stats->status), "disk_status",
                            perch_status_name(stats->disk_status));
#define COUNT(field) out = with_number(out, #field, stats->field)
    COUNT(steps);
    COUNT(step_us);
    COUNT(host_us);
    COUNT(prefill_tokens);
    COUNT(reprefill_tokens);
    COUNT(decode_tokens);
    COUNT(requests_submitted);
    COUNT(requests_finished);
    COUNT(requests_cancelled);
    COUNT(requests_failed);
    COUNT(hits);
    COUNT(partial_hits);
    COUNT(misses);
    COUNT(first_turns);
    COUNT(cached_tokens);
    COUNT(prefix_tokens);
    COUNT(prefix_waits);
    COUNT(saved_pages);
    COUNT(restored_pages);
    COUNT(restored_tokens);
    COUNT(disk_found_pages);
    COUNT(spilled_pages);
    COUNT(fetched_pages);
    COUNT(fetched_tokens);
    COUNT(corrupt_pages);
    COUNT(failed_disk_reads);
    COUNT(failed_disk_writes);
    COUNT(raced_tokens);
    COUNT(declined_tokens);
    COUNT(evictions);
    COUNT(evicted_pages);
    COUNT(preemptions);
    COUNT(copied_pages);
    COUNT(mapped_pages);
    COUNT(unmapped_pages);
    COUNT(rows_running);
    COUNT(requests_waiting);
    COUNT(sequences_open);
    COUNT(sequences_resident);
    COUNT(slots_total);
    COUNT(slots_active);
    COUNT(pages_total);
    COUNT(pages_free);
    COUNT(pages_live);
    COUNT(pages_cached);
    COUNT(failed_graphs);
    COUNT(store_commits);
    COUNT(store_failures);
    COUNT(sequences_retired);
    COUNT(saved_us);
    COUNT(evicted_idle_us);
    COUNT(evicted_idle_p50_us);
    COUNT(page_bytes);
    COUNT(restored_hits);
    COUNT(host_pages_total);
    COUNT(host_pages_used);
    COUNT(disk_pages_total);
    COUNT(disk_pages_used);
    COUNT(ttft_p50_us);
    COUNT(ttft_p90_us);
    COUNT(ttft_p99_us);
    COUNT(trace_lost);
#undef COUNT
#define REAL(field) out = with_real(out, #field, stats->field)
    REAL(prefill_us);
    REAL(prefill_us_8k);
    REAL(host_latency_us);
    REAL(host_mbps);
    REAL(disk_latency_us);
    REAL(disk_mbps);
#undef REAL
    return out;
}

json_t *json_costs(const perch_costs *costs) {
    json_t *out = json_pack("{s:s}", "note", costs->note);
#define REAL(field) out = with_real(out, #field, costs->field)
    REAL(prefill_us);
    REAL(prefill_us_per_position);
    REAL(host_latency_us);
    REAL(host_mbps);
    REAL(disk_latency_us);
    REAL(disk_mbps);
#undef REAL
#define COUNT(field) out = with_number(out, #field, costs->field)
    COUNT(host_break_even);
    COUNT(disk_break_even);
    COUNT(n_layers_measured);
    COUNT(n_step_tokens);
    COUNT(n_positions);
#undef COUNT
    return out;
}

json_t *json_plan(const perch_plan *plan) {
    json_t *out = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "architecture", plan->architecture, "dtype", plan->dtype,
                            "weight_format", plan->weight_format, "backend", plan->backend, "mapping",
                            plan->mapping == PERCH_MAPPING_TABLE ? "table" : "vmm", "no_gpu", plan->note);
#define COUNT(field) out = with_number(out, #field, plan->field)
    COUNT(n_parameters);
    COUNT(n_step_parameters);
    COUNT(n_layers);
    COUNT(n_heads);
    COUNT(n_kv_heads);
    COUNT(head_dim);
    COUNT(hidden_size);
    COUNT(vocab_size);
    COUNT(free_bytes);
    COUNT(weights_bytes);
    COUNT(workspace_bytes);
    COUNT(reserve_bytes);
    COUNT(context_bytes);
    COUNT(host_bytes);
    COUNT(host_tier_bytes);
    COUNT(staging_bytes);
    COUNT(disk_tier_bytes);
    COUNT(pool_bytes);
    COUNT(total_bytes);
    COUNT(kv_bytes_per_token);
    COUNT(group_bytes);
    COUNT(page_bytes);
    COUNT(sequence_bytes);
    COUNT(n_pages);
    COUNT(n_slots);
    COUNT(session_len);
    COUNT(n_full_sequences);
    COUNT(n_pool_tokens);
#undef COUNT
    return out;
}

json_t *json_value(const char *text) {
    char *end = NULL;
    long long integer = strtoll(text, &end, 10);
    if (end != text && *end == '\0') {
        return json_integer(integer);
    }
    double real = strtod(text, &end);
    if (end != text && *end == '\0' && isfinite(real)) {
        return json_real(real);
    }
    return json_string(text);
}

json_t *json_options(const perch_options *options) {
    json_t *sections = json_object();
    const perch_option_info *info;
    for (size_t i = 0; sections != NULL && (info = perch_options_key(i)) != NULL; i++) {
        char name[128];
        char value[PERCH_PATH_CAP];
        snprintf(name, sizeof(name), "%s.%s", info->section, info->key);
        if (perch_options_get(options, name, value, sizeof(value), NULL) != PERCH_OK) {
            continue;
        }
        json_t *section = json_object_get(sections, info->section);
        if (section == NULL) {
            section = json_object();
            if (json_object_set_new(sections, info->section, section) != 0) {
                section = NULL;
            }
        }
        bool is_text = strcmp(info->type, "path") == 0 || strcmp(info->type, "text") == 0;
        if (section == NULL ||
            json_object_set_new(section, info->key, is_text ? json_text(value, strlen(value)) : json_value(value)) !=
                0) {
            json_decref(sections);
            sections = NULL;
        }
    }
    return sections;
}
