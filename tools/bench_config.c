/*
 * bench_config: the [bench] section of an INI file, one row of a table for each key.
 */
#include "bench_config.h"

#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum value_kind { VALUE_U32, VALUE_U64, VALUE_REAL, VALUE_LIST, VALUE_PATH, VALUE_WORD, VALUE_VARY };

struct word {
    const char *name;
    uint32_t value;
};

struct row {
    struct bench_key info;
    enum value_kind kind;
    size_t offset;
    double min, max;
    const struct word *words; /* closed by a NULL name */
};

static const struct word workload_words[] = {
    {"grid", BENCH_GRID}, {"churn", BENCH_CHURN}, {"trace", BENCH_TRACE}, {"sessions", BENCH_SESSIONS}, {NULL, 0}};
static const struct word format_words[] = {
    {"auto", BENCH_FORMAT_AUTO}, {"mooncake", BENCH_FORMAT_MOONCAKE}, {"azure", BENCH_FORMAT_AZURE}, {NULL, 0}};
static const struct word executor_words[] = {{"engine", BENCH_ENGINE}, {"simulate", BENCH_SIMULATE}, {NULL, 0}};
static const struct word switch_words[] = {{"on", true}, {"off", false}, {NULL, 0}};
static const struct word vary_words[] = {{"one", false}, {"all", true}, {NULL, 0}};
static const struct word reuse_words[] = {{"fork", BENCH_REUSE_FORK}, {"none", BENCH_REUSE_NONE}, {NULL, 0}};

#define KEY(name, type_text, range_text, help_text, readers)                                                           \
    .info.key = name, .info.type = type_text, .info.range = range_text, .info.help = help_text,                        \
    .info.workloads = readers
#define SIMULATED(name, type_text, range_text, help_text, readers)                                                     \
    KEY(name, type_text, range_text, help_text, readers), .info.is_simulated = true
#define FIELD(value, name) .kind = value, .offset = offsetof(struct bench_config, name)
#define RANGE(from, to) .min = from, .max = to
#define ALL (BENCH_GRID | BENCH_CHURN | BENCH_TRACE | BENCH_SESSIONS)

static const struct row rows[] = {
    {KEY("workload", "grid | churn | trace | sessions", "", "What is measured.", ALL), FIELD(VALUE_WORD, workload),
     .words = workload_words},
    {KEY("executor", "engine | simulate", "",
         "engine: on the machine. simulate: the same scheduler and cache on a device that computes nothing, in its own "
         "time.",
         ALL),
     FIELD(VALUE_WORD, executor), .words = executor_words},
    {KEY("seed", "integer", "0..9000000000000000", "Of the prompts and of every random choice.", ALL),
     FIELD(VALUE_U64, seed), RANGE(0, 9e15)},
    {KEY("prompt_tokens", "list", "1..1000000",
         "Grid: lengths of the prompts. Churn and sessions: what a turn appends, one drawn each time.",
         BENCH_GRID | BENCH_CHURN | BENCH_SESSIONS),
     FIELD(VALUE_LIST, prompt_tokens), RANGE(1, 1e6)},
    {KEY("completion_tokens", "list", "1..1000000", "Tokens generated; used as prompt_tokens is.",
         BENCH_GRID | BENCH_CHURN | BENCH_SESSIONS),
     FIELD(VALUE_LIST, completion_tokens), RANGE(1, 1e6)},
    {KEY("concurrency", "list", "1..100000", "Requests in flight at once, at most; a run for each.", ALL),
     FIELD(VALUE_LIST, concurrency), RANGE(1, 1e5)},
    {KEY("repeats", "integer", "1..1000000", "Rounds measured for each cell of the grid.", BENCH_GRID),
     FIELD(VALUE_U32, repeats), RANGE(1, 1e6)},
    {KEY("warmup", "integer", "0..1000000", "Rounds (grid) or requests (others) before the measurement.", ALL),
     FIELD(VALUE_U32, warmup), RANGE(0, 1e6)},
    {KEY("sessions", "integer", "1..1000000", "Conversations that take turns; sessions: that begin in all.",
         BENCH_CHURN | BENCH_SESSIONS),
     FIELD(VALUE_U32, sessions), RANGE(1, 1e6)},
    {KEY("turns", "integer", "1..100000000", "Turns measured.", BENCH_CHURN), FIELD(VALUE_U32, turns), RANGE(1, 1e8)},
    {KEY("zipf_exponent", "real", "0..10", "Session k takes its turns with a frequency of 1 / k^s; 0 = all alike.",
         BENCH_CHURN),
     FIELD(VALUE_REAL, zipf_exponent), RANGE(0, 10)},
    {KEY("session_rate", "real", "0.000001..1000000", "Conversations that begin in a second, at random.",
         BENCH_SESSIONS),
     FIELD(VALUE_REAL, session_rate), RANGE(1e-6, 1e6)},
    {KEY("session_turns", "real", "1..1000000", "Turns of a conversation, mean of a geometric distribution.",
         BENCH_SESSIONS),
     FIELD(VALUE_REAL, session_turns), RANGE(1, 1e6)},
    {KEY("think_seconds", "real", "0..1000000", "From an answer to the next turn, mean of an exponential distribution.",
         BENCH_SESSIONS),
     FIELD(VALUE_REAL, think_seconds), RANGE(0, 1e6)},
    {KEY("trace", "path", "", "The trace; a relative path is taken from the INI file's folder.", BENCH_TRACE),
     FIELD(VALUE_PATH, trace)},
    {KEY("trace_format", "auto | mooncake | azure", "", "auto = mooncake for .jsonl, azure for .csv.", BENCH_TRACE),
     FIELD(VALUE_WORD, trace_format), .words = format_words},
    {KEY("reuse", "fork | none", "",
         "fork: a prompt that begins as an earlier one did is forked from that conversation.", BENCH_TRACE),
     FIELD(VALUE_WORD, reuse), .words = reuse_words},
    {KEY("speed", "real", "0..1000000", "Arrival times are divided by it; 0 = as fast as possible.", BENCH_TRACE),
     FIELD(VALUE_REAL, speed), RANGE(0, 1e6)},
    {KEY("scale_tokens", "real", "0.0001..1", "Prompts and completions are shortened by this factor.", BENCH_TRACE),
     FIELD(VALUE_REAL, scale_tokens), RANGE(0.0001, 1)},
    {KEY("laps", "integer", "1..10000", "So many times the trace, one behind the other, each time of other tokens.",
         BENCH_TRACE),
     FIELD(VALUE_U32, laps), RANGE(1, 1e4)},
    {KEY("max_requests", "integer", "0..100000000", "Requests measured; 0 = the whole trace.", BENCH_TRACE),
     FIELD(VALUE_U32, max_requests), RANGE(0, 1e8)},
    {KEY("max_seconds", "real", "0..1000000", "A run submits nothing this long after its warm-up; 0 = no limit.", ALL),
     FIELD(VALUE_REAL, max_seconds), RANGE(0, 1e6)},
    {KEY("copy_gbps", "real", "0..1000000",
         "What the device's memory copies, read + written: decoding is compared with it. 0 = not known.", BENCH_GRID),
     FIELD(VALUE_REAL, copy_gbps), RANGE(0, 1e6)},
    {KEY("matrix_tflops", "real", "0..1000000",
         "What its matrix products reach: prefill is compared with it. 0 = not known.", BENCH_GRID),
     FIELD(VALUE_REAL, matrix_tflops), RANGE(0, 1e6)},
    {KEY("vary", "section.key: value, value; ...", "",
         "Variants side by side: the first values, and then each other value of one key. In a file between quotes.",
         ALL),
     FIELD(VALUE_VARY, vary_text)},
    {KEY("combine", "one | all", "",
         "vary: variants differ from the first in one key, or there is one for every combination.", ALL),
     FIELD(VALUE_WORD, vary.all), .words = vary_words},
    {SIMULATED("belady", "on | off", "",
               "What an optimal replacement in the same memory would find of the trace's prompts (Belady's MIN).",
               BENCH_TRACE),
     FIELD(VALUE_WORD, belady), .words = switch_words},
    {SIMULATED("sim_memory_gib", "real", "0..1000000", "Memory of the simulated device; 0 = as much as the plan wants.",
               ALL),
     FIELD(VALUE_REAL, memory_gib), RANGE(0, 1e6)},
    {SIMULATED("sim_matrix_tflops", "real", "0.000001..1000000",
               "What its matrix products reach, in 10^12 operations a second.", ALL),
     FIELD(VALUE_REAL, hardware.matrix_tflops), RANGE(1e-6, 1e6)},
    {SIMULATED("sim_attention_tflops", "real", "0.000001..1000000", "What its attention reaches, likewise.", ALL),
     FIELD(VALUE_REAL, hardware.attention_tflops), RANGE(1e-6, 1e6)},
    {SIMULATED("sim_memory_gbps", "real", "0.000001..1000000",
               "What its memory reads and writes, in 10^9 bytes a second.", ALL),
     FIELD(VALUE_REAL, hardware.memory_gbps), RANGE(1e-6, 1e6)},
    {SIMULATED("sim_host_gbps", "real", "0.000001..1000000",
               "What is copied between it and the host tier, each way, in 10^9 bytes a second.", ALL),
     FIELD(VALUE_REAL, hardware.host_gbps), RANGE(1e-6, 1e6)},
    {SIMULATED("sim_disk_gbps", "real", "0.000001..1000000",
               "What its host's disk reads and writes, each, in 10^9 bytes a second.", ALL),
     FIELD(VALUE_REAL, hardware.disk_gbps), RANGE(1e-6, 1e6)},
    {SIMULATED("sim_launch_us", "real", "0..1000000", "What every step takes beside its arithmetic and memory traffic.",
               ALL),
     FIELD(VALUE_REAL, hardware.launch_us), RANGE(0, 1e6)},
};
enum { N_ROWS = sizeof(rows) / sizeof(rows[0]) };
_Static_assert(N_ROWS <= 64, "bench_config.was_set has a bit for each key");

void bench_config_init(struct bench_config *config) {
    *config = (struct bench_config){
        .workload = BENCH_GRID,
        .seed = 1,
        .prompt_tokens = {{128}, 1},
        .completion_tokens = {{32}, 1},
        .concurrency = {{4}, 1},
        .repeats = 3,
        .warmup = 1,
        .sessions = 64,
        .turns = 256,
        .zipf_exponent = 1.0,
        .session_rate = 1.0,
        .session_turns = 8.0,
        .think_seconds = 60.0,
        .laps = 1,
        .speed = 1.0,
        .scale_tokens = 1.0,
        .belady = true,
    };
    if (perch_hardware_init(&config->hardware, sizeof(config->hardware)) == PERCH_OK) {
        config->memory_gib = (double)config->hardware.memory_bytes / (1 << 30);
    }
}

const struct bench_key *bench_config_key(size_t index) { return index < N_ROWS ? &rows[index].info : NULL; }

static perch_status parse_number(const struct row *row, const char *text, double *out, perch_error *err) {
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    bool whole = row->kind != VALUE_REAL;
    if (end == text || *end != '\0' || errno != 0 || !isfinite(value) || (whole && value != floor(value))) {
        return tool_error(err, PERCH_E_CONFIG, "'%s' is not %s", text, whole ? "a whole number" : "a number");
    }
    if (value < row->min || value > row->max) {
        return tool_error(err, PERCH_E_CONFIG, "%s is out of range (%s)", text, row->info.range);
    }
    *out = value;
    return PERCH_OK;
}

/* Past what stands between two numbers of a list: blanks, with one comma among them at most. */
static const char *skip_separator(const char *at) {
    at += strspn(at, " \t");
    if (*at == ',') {
        at++;
        at += strspn(at, " \t");
        /* Nothing behind a comma is a number that's missing. */
        return *at == '\0' ? NULL : at;
    }
    return at;
}

/* "32, 128 512": numbers between commas or blanks. */
static perch_status parse_list(const struct row *row, const char *text, struct bench_list *out, perch_error *err) {
    struct bench_list list = {.n = 0};
    const char *at = text + strspn(text, " \t");
    while (at != NULL && *at != '\0') {
        size_t length = strcspn(at, ", \t");
        char item[32];
        if (length >= sizeof(item) || length == 0) {
            return tool_error(err, PERCH_E_CONFIG, "'%s' is not a list of whole numbers", text);
        }
        memcpy(item, at, length);
        item[length] = '\0';
        if (list.n == BENCH_MAX_LIST) {
            return tool_error(err, PERCH_E_CONFIG, "more than %d numbers", BENCH_MAX_LIST);
        }
        double value = 0.0;
        perch_status status = parse_number(row, item, &value, err);
        if (status != PERCH_OK) {
            return status;
        }
        list.values[list.n++] = (uint32_t)value;
        at = skip_separator(at + length);
    }
    if (at == NULL) {
        return tool_error(err, PERCH_E_CONFIG, "'%s' ends with a comma", text);
    }
    if (list.n == 0) {
        return tool_error(err, PERCH_E_CONFIG, "an empty list");
    }
    *out = list;
    return PERCH_OK;
}

static perch_status parse_word(const struct row *row, const char *text, uint32_t *out, perch_error *err) {
    for (const struct word *word = row->words; word->name != NULL; word++) {
        if (strcmp(text, word->name) == 0) {
            *out = word->value;
            return PERCH_OK;
        }
    }
    return tool_error(err, PERCH_E_CONFIG, "'%s' is not one of %s", text, row->info.type);
}

static perch_status parse_vary(const char *text, struct bench_config *config, perch_error *err) {
    struct bench_vary vary;
    perch_options options;
    perch_status status = strlen(text) < BENCH_VARY_TEXT_CAP
                              ? bench_vary_parse(text, &vary, err)
                              : tool_error(err, PERCH_E_CONFIG, "longer than %d bytes", BENCH_VARY_TEXT_CAP - 1);
    if (status == PERCH_OK && perch_options_init(&options, sizeof(options)) != PERCH_OK) {
        return tool_error(err, PERCH_E_INVALID, "perch.h and libperch do not match");
    }
    size_t n = status == PERCH_OK ? bench_vary_n_variants(&vary) : 0;
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        status = bench_vary_apply(&vary, i, &options, err);
    }
    if (status == PERCH_OK) {
        vary.all = config->vary.all;
        config->vary = vary;
        memcpy(config->vary_text, text, strlen(text) + 1);
    }
    return status;
}

perch_status bench_config_set(struct bench_config *config, const char *key, const char *value, perch_error *err) {
    size_t i = 0;
    while (i < N_ROWS && strcmp(rows[i].info.key, key) != 0) {
        i++;
    }
    if (i == N_ROWS) {
        return tool_error(err, PERCH_E_NOT_FOUND, "unknown key");
    }
    const struct row *row = &rows[i];
    void *field = (char *)config + row->offset;
    perch_status status = PERCH_OK;
    double number = 0.0;
    switch (row->kind) {
    case VALUE_LIST:
        status = parse_list(row, value, field, err);
        break;
    case VALUE_WORD:
        status = parse_word(row, value, field, err);
        break;
    case VALUE_VARY:
        status = parse_vary(value, config, err);
        break;
    case VALUE_PATH:
        if (snprintf(field, PERCH_PATH_CAP, "%s", value) >= PERCH_PATH_CAP) {
            status = tool_error(err, PERCH_E_CONFIG, "the path is longer than %d bytes", PERCH_PATH_CAP - 1);
        }
        break;
    default:
        status = parse_number(row, value, &number, err);
        if (status == PERCH_OK && row->kind == VALUE_REAL) {
            *(double *)field = number;
        } else if (status == PERCH_OK && row->kind == VALUE_U32) {
            *(uint32_t *)field = (uint32_t)number;
        } else if (status == PERCH_OK) {
            *(uint64_t *)field = (uint64_t)number;
        }
        break;
    }
    if (status == PERCH_OK) {
        config->was_set |= UINT64_C(1) << i;
    }
    return status;
}

bool bench_config_reads(const struct bench_config *config, const struct bench_key *key) {
    return (key->workloads & config->workload) != 0 && (!key->is_simulated || config->executor == BENCH_SIMULATE);
}

perch_status bench_config_check(const struct bench_config *config, perch_error *err) {
    for (size_t i = 0; i < N_ROWS; i++) {
        if ((config->was_set >> i & 1) == 0 || bench_config_reads(config, &rows[i].info)) {
            continue;
        }
        if ((rows[i].info.workloads & config->workload) != 0) {
            return tool_error(err, PERCH_E_CONFIG, "[bench] %s: does nothing with executor = engine", rows[i].info.key);
        }
        return tool_error(err, PERCH_E_CONFIG, "[bench] %s: does nothing with workload = %s", rows[i].info.key,
                          bench_workload_name(config->workload));
    }
    if (config->vary.all && config->vary.n_keys == 0) {
        return tool_error(err, PERCH_E_CONFIG, "[bench] combine: does nothing without vary");
    }
    if (config->workload == BENCH_TRACE && config->trace[0] == '\0') {
        return tool_error(err, PERCH_E_CONFIG, "[bench] trace: missing; workload = trace needs it");
    }
    return PERCH_OK;
}

static const char *word_name(const struct word *words, uint32_t value) {
    while (words->name != NULL && words->value != value) {
        words++;
    }
    return words->name != NULL ? words->name : "?";
}

const char *bench_workload_name(uint32_t workload) { return word_name(workload_words, workload); }

void bench_config_get(const struct bench_config *config, size_t index, char *out, size_t cap) {
    const struct row *row = &rows[index];
    const void *field = (const char *)config + row->offset;
    switch (row->kind) {
    case VALUE_U32:
        snprintf(out, cap, "%u", *(const uint32_t *)field);
        break;
    case VALUE_U64:
        snprintf(out, cap, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    case VALUE_REAL:
        snprintf(out, cap, "%.15g", *(const double *)field);
        break;
    case VALUE_LIST: {
        const struct bench_list *list = field;
        size_t at = 0;
        out[0] = '\0';
        for (uint32_t i = 0; i < list->n && at < cap; i++) {
            at += (size_t)snprintf(out + at, cap - at, i == 0 ? "%u" : ", %u", list->values[i]);
        }
        break;
    }
    case VALUE_PATH:
    case VALUE_VARY:
        snprintf(out, cap, "%s", (const char *)field);
        break;
    case VALUE_WORD:
        snprintf(out, cap, "%s", word_name(row->words, *(const uint32_t *)field));
        break;
    }
}
