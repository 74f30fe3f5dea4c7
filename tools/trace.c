/*
 * trace: reads recorded requests. Mooncake's format is JSON lines with {"timestamp" in ms, "input_length",
 * "output_length", "hash_ids" of 512-token blocks}; Azure's is CSV with TIMESTAMP, ContextTokens, GeneratedTokens.
 */
#include "trace.h"

#include "text.h"
#include "tool.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOONCAKE_BLOCK_TOKENS 512

void trace_free(struct trace *trace) {
    free(trace->requests);
    free(trace->blocks);
    *trace = (struct trace){0};
}

static perch_status add_request(struct trace *trace, struct trace_request request, perch_error *err) {
    void *requests = trace->requests;
    perch_status status = grow(&requests, &trace->cap, trace->n + 1, sizeof(*trace->requests), err);
    trace->requests = requests;
    if (status == PERCH_OK) {
        trace->requests[trace->n++] = request;
    }
    return status;
}

static perch_status add_blocks(struct trace *trace, const json_t *ids, struct trace_request *request,
                               perch_error *err) {
    size_t n = json_array_size(ids);
    void *blocks = trace->blocks;
    perch_status status = grow(&blocks, &trace->blocks_cap, trace->n_blocks + n, sizeof(*trace->blocks), err);
    trace->blocks = blocks;
    if (status != PERCH_OK) {
        return status;
    }
    request->first_block = trace->n_blocks;
    request->n_blocks = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0) {
            return tool_error(err, PERCH_E_FORMAT, "hash_ids[%zu] is not a whole number", i);
        }
        trace->blocks[trace->n_blocks++] = (uint64_t)json_integer_value(id);
    }
    return PERCH_OK;
}

static bool is_count(const json_t *json) {
    return json_is_integer(json) && json_integer_value(json) >= 0 && json_integer_value(json) <= INT32_MAX;
}

static perch_status add_mooncake(struct trace *trace, const char *line, perch_error *err) {
    json_error_t where;
    struct trace_request request = {0};
    json_t *json = json_loads(line, 0, &where);
    if (json == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "not JSON: %s", where.text);
    }
    const json_t *timestamp = json_object_get(json, "timestamp");
    const json_t *input = json_object_get(json, "input_length");
    const json_t *output = json_object_get(json, "output_length");
    const json_t *ids = json_object_get(json, "hash_ids");
    perch_status status = PERCH_OK;
    if (!json_is_number(timestamp) || !is_count(input) || !is_count(output) || !json_is_array(ids)) {
        status = tool_error(err, PERCH_E_FORMAT, "timestamp, input_length, output_length and hash_ids are needed");
    } else {
        request.arrival_s = json_number_value(timestamp) / 1000.0;
        request.prompt_tokens = (uint32_t)json_integer_value(input);
        request.completion_tokens = (uint32_t)json_integer_value(output);
        status = add_blocks(trace, ids, &request, err);
    }
    if (status == PERCH_OK) {
        uint32_t n_blocks = (request.prompt_tokens + MOONCAKE_BLOCK_TOKENS - 1) / MOONCAKE_BLOCK_TOKENS;
        if (request.n_blocks != n_blocks) {
            status = tool_error(err, PERCH_E_FORMAT, "%u hash_ids, but %u tokens are %u blocks", request.n_blocks,
                                request.prompt_tokens, n_blocks);
        }
    }
    json_decref(json);
    return status == PERCH_OK ? add_request(trace, request, err) : status;
}

/* ",374": a comma and a number, past which *at is set. */
static bool read_count(const char **at, uint32_t *out) {
    char *end = NULL;
    if ((*at)[0] != ',' || (*at)[1] < '0' || (*at)[1] > '9') {
        return false;
    }
    unsigned long value = strtoul(*at + 1, &end, 10);
    *at = end;
    *out = (uint32_t)value;
    return value <= INT32_MAX;
}

/* "2023-11-16 18:15:46.6805900,374,44" */
static perch_status add_azure(struct trace *trace, const char *line, perch_error *err) {
    struct trace_request request = {0};
    struct tm time = {0};
    const char *at = strptime(line, "%Y-%m-%d %H:%M:%S", &time);
    char *end = NULL;
    double fraction = 0.0;
    if (at != NULL && *at == '.') {
        fraction = strtod(at, &end);
        at = end;
    }
    if (at == NULL || !read_count(&at, &request.prompt_tokens) || !read_count(&at, &request.completion_tokens) ||
        at[strspn(at, " \t\r\n")] != '\0') {
        return tool_error(err, PERCH_E_FORMAT, "not of the form time,prompt tokens,generated tokens");
    }
    request.arrival_s = (double)timegm(&time) + fraction;
    return add_request(trace, request, err);
}

static int by_arrival(const void *a, const void *b) {
    const struct trace_request *x = a;
    const struct trace_request *y = b;
    return (x->arrival_s > y->arrival_s) - (x->arrival_s < y->arrival_s);
}

static perch_status read_lines(struct trace *trace, FILE *file, bool mooncake, size_t max_requests, perch_error *err) {
    char *line = NULL;
    size_t cap = 0;
    perch_status status = PERCH_OK;
    size_t number = 0;
    while (status == PERCH_OK && (max_requests == 0 || trace->n < max_requests) && getline(&line, &cap, file) >= 0) {
        number++;
        bool heading = !mooncake && number == 1 && (line[0] < '0' || line[0] > '9');
        if (heading || line[strspn(line, " \t\r\n")] == '\0') {
            continue;
        }
        perch_error reason = {.status = PERCH_OK};
        status = mooncake ? add_mooncake(trace, line, &reason) : add_azure(trace, line, &reason);
        if (status != PERCH_OK) {
            tool_error(err, status, "line %zu: %s", number, reason.message);
        }
    }
    free(line);
    return status;
}

perch_status trace_read(struct trace *trace, const char *path, enum bench_trace_format format, size_t max_requests,
                        perch_error *err) {
    *trace = (struct trace){0};
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return tool_error(err, PERCH_E_IO, "cannot open %s: %s", path, strerror(errno));
    }
    size_t length = strlen(path);
    bool mooncake = format == BENCH_FORMAT_MOONCAKE;
    if (format == BENCH_FORMAT_AUTO) {
        mooncake = length > 6 && strcmp(path + length - 6, ".jsonl") == 0;
        if (!mooncake && (length < 5 || strcmp(path + length - 4, ".csv") != 0)) {
            fclose(file);
            return tool_error(err, PERCH_E_CONFIG, "%s: neither .jsonl nor .csv; set bench.trace_format", path);
        }
    }
    perch_error reason = {.status = PERCH_OK};
    trace->block_tokens = mooncake ? MOONCAKE_BLOCK_TOKENS : 0;
    perch_status status = read_lines(trace, file, mooncake, max_requests, &reason);
    fclose(file);
    if (status == PERCH_OK && trace->n == 0) {
        status = tool_error(&reason, PERCH_E_FORMAT, "no requests");
    }
    if (status != PERCH_OK) {
        trace_free(trace);
        return tool_error(err, status, "%s: %s", path, reason.message);
    }
    qsort(trace->requests, trace->n, sizeof(*trace->requests), by_arrival);
    double first = trace->requests[0].arrival_s;
    for (size_t i = 0; i < trace->n; i++) {
        trace->requests[i].arrival_s -= first;
    }
    return PERCH_OK;
}

/* What a lap adds to the ids of blocks, so that no two laps have one in common. */
static uint64_t id_span(const struct trace *trace) {
    uint64_t most = 0;
    for (size_t i = 0; i < trace->n_blocks; i++) {
        most = trace->blocks[i] > most ? trace->blocks[i] : most;
    }
    return most + 1;
}

perch_status trace_lengthen(struct trace *trace, uint32_t laps, size_t max_requests, perch_error *err) {
    size_t n = trace->n;
    size_t n_blocks = trace->n_blocks;
    size_t n_wanted = max_requests != 0 && max_requests < n * laps ? max_requests : n * laps;
    double span_s = trace->requests[n - 1].arrival_s * (double)n / (double)(n > 1 ? n - 1 : 1);
    uint64_t span = id_span(trace);
    void *requests = trace->requests;
    void *blocks = trace->blocks;
    perch_status status = grow(&requests, &trace->cap, n * laps, sizeof(*trace->requests), err);
    trace->requests = requests;
    if (status == PERCH_OK) {
        status = grow(&blocks, &trace->blocks_cap, n_blocks * laps, sizeof(*trace->blocks), err);
        trace->blocks = blocks;
    }
    for (uint32_t lap = 1; status == PERCH_OK && lap < laps; lap++) {
        for (size_t i = 0; i < n; i++) {
            struct trace_request request = trace->requests[i];
            request.arrival_s += span_s * lap;
            request.first_block += n_blocks * lap;
            trace->requests[n * lap + i] = request;
        }
        for (size_t i = 0; i < n_blocks; i++) {
            trace->blocks[n_blocks * lap + i] = trace->blocks[i] + span * lap;
        }
    }
    if (status == PERCH_OK) {
        trace->n = n_wanted;
        trace->n_blocks = n_blocks * laps;
    }
    return status;
}
