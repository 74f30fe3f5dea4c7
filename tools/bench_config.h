/*
 * bench_config: the [bench] section of an INI file.
 */
#ifndef PERCH_TOOLS_BENCH_CONFIG_H
#define PERCH_TOOLS_BENCH_CONFIG_H

#include "bench_vary.h"

#include "perch/perch.h"

#include <stdbool.h>

#define BENCH_MAX_LIST 16

enum bench_executor { BENCH_ENGINE = 0, BENCH_SIMULATE };

/* Bits, so that a key can say which workloads read it. */
enum bench_workload { BENCH_GRID = 1, BENCH_CHURN = 2, BENCH_TRACE = 4, BENCH_SESSIONS = 8 };

enum bench_trace_format { BENCH_FORMAT_AUTO = 0, BENCH_FORMAT_MOONCAKE, BENCH_FORMAT_AZURE };
enum bench_reuse { BENCH_REUSE_FORK = 0, BENCH_REUSE_NONE };

struct bench_list {
    uint32_t values[BENCH_MAX_LIST];
    uint32_t n;
};

struct bench_config {
    uint32_t workload; /* enum bench_workload */
    uint32_t executor; /* enum bench_executor */
    uint64_t was_set;  /* bit i: the i-th key was given */
    uint64_t seed;
    struct bench_list prompt_tokens;
    struct bench_list completion_tokens;
    struct bench_list concurrency;
    uint32_t repeats;
    uint32_t warmup;
    uint32_t sessions;
    uint32_t turns;
    double zipf_exponent;
    double session_rate;  /* a second */
    double session_turns; /* mean */
    double think_seconds; /* mean */
    char trace[PERCH_PATH_CAP];
    uint32_t trace_format; /* enum bench_trace_format */
    uint32_t reuse;        /* enum bench_reuse */
    double speed;
    double scale_tokens;
    uint32_t laps;
    uint32_t max_requests;
    double max_seconds;
    double copy_gbps;        /* 0 = not known */
    double matrix_tflops;    /* likewise */
    uint32_t belady;         /* whether the optimum is computed */
    double memory_gib;       /* of the simulated device; 0 = as much as the plan wants */
    perch_hardware hardware; /* but for its memory */
    char vary_text[BENCH_VARY_TEXT_CAP];
    struct bench_vary vary; /* what vary_text says */
};

/* One key; all strings are static. */
struct bench_key {
    const char *key;
    const char *type;
    const char *range;
    const char *help;
    uint32_t workloads; /* that read it, */
    bool is_simulated;  /* and only in a simulation */
};

void bench_config_init(struct bench_config *config);

/* Sets one key. E_NOT_FOUND: no such key; E_CONFIG: the message is the reason alone. */
perch_status bench_config_set(struct bench_config *config, const char *key, const char *value, perch_error *err);

/* Fails (E_CONFIG) if a key was given that the workload doesn't read, or one is missing that it needs. */
perch_status bench_config_check(const struct bench_config *config, perch_error *err);

/* Whether the workload and the executor read it. */
bool bench_config_reads(const struct bench_config *config, const struct bench_key *key);

/* The index-th key, or NULL; and its value as bench_config_set takes it. */
const struct bench_key *bench_config_key(size_t index);
void bench_config_get(const struct bench_config *config, size_t index, char *out, size_t cap);

const char *bench_workload_name(uint32_t workload);

#endif
