/*
 * perch: serves LLaMA-family language models to many conversations at once.
 *
 * The only header that a host includes. It compiles alone as C11 and as C++17.
 *
 * The boundary. A host opens an engine (one model, one persistent batch, one fixed pool of KV memory), opens
 * sequences (conversations) in it, and submits requests (turns). Token IDs are what a sequence is; its keys and
 * values are a cache of them that the engine drops and computes again as memory demands, without any effect on
 * what is generated. Results come back through one completion queue that the host polls or waits on.
 *
 * Errors. Every function that can fail returns a perch_status, 0 being success. Where it takes a perch_error *, that is
 * optional (NULL is fine), owned by the caller, and filled only on failure. The library never prints, exits or aborts.
 *
 * Threads. An engine may be used from any number of threads at once, except that perch_engine_destroy must be the
 * last call. A perch_options, perch_event, perch_tokenizer_stream or perch_error belongs to one thread at a time. A
 * perch_tokenizer is read-only after creation and may be shared.
 *
 * Ownership is in the verb: create/destroy and open/close pair up, get borrows, copy copies. destroy(NULL) is fine.
 */
#ifndef PERCH_PERCH_H
#define PERCH_PERCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define PERCH_API
#else
#define PERCH_API __attribute__((visibility("default")))
#endif

#define PERCH_VERSION_MAJOR 0
#define PERCH_VERSION_MINOR 1
#define PERCH_VERSION_PATCH 0

/* ---------------------------------------------------------------- status -- */

/* One status type for everything: X(value, NAME, text). */
#define PERCH_STATUS_MAP(X)                                                                                            \
    X(0, OK, "success")                                                                                                \
    X(1, E_INVALID, "invalid argument")                                                                                \
    X(2, E_NOMEM, "out of host memory")                                                                                \
    X(3, E_IO, "input/output error")                                                                                   \
    X(4, E_FORMAT, "malformed file or text")                                                                           \
    X(5, E_UNSUPPORTED, "not supported")                                                                               \
    X(6, E_CONFIG, "invalid configuration")                                                                            \
    X(7, E_NOT_FOUND, "stale or unknown id, or no such thing")                                                         \
    X(8, E_BUSY, "the sequence has a request in flight")                                                               \
    X(9, E_TOO_LONG, "does not fit session_len")                                                                       \
    X(10, E_QUEUE_FULL, "the queue is full")                                                                           \
    X(11, E_TIMEOUT, "nothing happened within the time limit")                                                         \
    X(12, E_NO_ROOM, "the memory plan does not fit")                                                                   \
    X(13, E_DEVICE, "the device failed")                                                                               \
    X(14, E_SHUTDOWN, "the engine is shutting down")                                                                   \
    X(15, E_BUFFER, "the caller's buffer is too small")                                                                \
    X(16, E_AGAIN, "not possible right now")                                                                           \
    X(17, E_STORE, "the sequence store failed")                                                                        \
    X(18, E_RETIRED, "the sequence was retired from the store")                                                        \
    X(19, E_LEASED, "another engine has the sequence")                                                                 \
    X(20, E_MODEL, "the sequence is of another model")

typedef enum perch_status {
#define PERCH_STATUS_ENUM(value, name, text) PERCH_##name = value,
    PERCH_STATUS_MAP(PERCH_STATUS_ENUM)
#undef PERCH_STATUS_ENUM
} perch_status;

/* What went wrong and where, in one line without a newline. Owned by the caller. */
typedef struct perch_error {
    perch_status status;
    char message[508];
} perch_error;

/* The status' name, e.g. "E_INVALID"; and its text. Static strings; never NULL. */
PERCH_API const char *perch_status_name(perch_status status);
PERCH_API const char *perch_status_text(perch_status status);

/* "0.1.0"; a static string. */
PERCH_API const char *perch_version(void);

/* --------------------------------------------------------------- options -- */

#define PERCH_PATH_CAP 1024

typedef enum perch_device { PERCH_DEVICE_AUTO = 0, PERCH_DEVICE_CPU = 1, PERCH_DEVICE_CUDA = 2 } perch_device;
typedef enum perch_dtype {
    PERCH_DTYPE_AUTO = 0,
    PERCH_DTYPE_F32 = 1,
    PERCH_DTYPE_BF16 = 2,
    PERCH_DTYPE_F16 = 3
} perch_dtype;
typedef enum perch_weights { PERCH_WEIGHTS_FILE = 0, PERCH_WEIGHTS_RANDOM = 1 } perch_weights;
typedef enum perch_weight_format {
    PERCH_WEIGHT_FORMAT_AUTO = 0,
    PERCH_WEIGHT_FORMAT_BF16 = 1,
    PERCH_WEIGHT_FORMAT_INT8 = 2,
    PERCH_WEIGHT_FORMAT_INT4 = 3
} perch_weight_format;
typedef enum perch_mapping { PERCH_MAPPING_AUTO = 0, PERCH_MAPPING_VMM = 1, PERCH_MAPPING_TABLE = 2 } perch_mapping;
typedef enum perch_switch { PERCH_ON = 0, PERCH_OFF = 1 } perch_switch;
typedef enum perch_queue_full { PERCH_QUEUE_WAIT = 0, PERCH_QUEUE_REFUSE = 1 } perch_queue_full;
typedef enum perch_schedule { PERCH_SCHEDULE_FCFS = 0, PERCH_SCHEDULE_PREFIX = 1 } perch_schedule;
typedef enum perch_restore {
    PERCH_RESTORE_AUTO = 0,
    PERCH_RESTORE_LOAD = 1,
    PERCH_RESTORE_COMPUTE = 2,
    PERCH_RESTORE_BOTH = 3
} perch_restore;
typedef enum perch_policy { PERCH_POLICY_LRU = 0, PERCH_POLICY_COST = 1 } perch_policy;
typedef enum perch_store { PERCH_STORE_MEMORY = 0, PERCH_STORE_LMDB = 1, PERCH_STORE_REDIS = 2 } perch_store;

/* How far loading has come. Called on the thread that is in perch_engine_create; fraction is 0..1. */
typedef void (*perch_progress_fn)(void *user, const char *stage, double fraction);

/*
 * Everything an engine is configured by. perch_options_init fills in the defaults; then set fields directly, or read
 * an INI file, or set "section.key" strings. Field = [section] key of the same name, except where noted.
 * docs/configuration.md lists every key with type, range and default, and so does perch_options_key.
 */
typedef struct perch_options {
    size_t struct_size; /* sizeof(perch_options) of the caller; set by perch_options_init */

    /* [engine] */
    perch_device device;
    perch_queue_full queue_full; /* a submit that finds the queue full waits, or is refused */
    uint32_t session_len;     /* tokens a sequence can hold; 0 = the model's positions, as RoPE scaling extends them */
    uint32_t max_batch_size;  /* rows of the persistent batch = slots, 1..4096 */
    uint32_t max_step_tokens; /* tokens one step computes at most (decode rows + prefill chunks) */
    uint32_t prefill_reserve; /* tokens of a step kept for prefill however many rows decode */
    uint32_t queue_size;      /* requests that may wait */
    uint32_t age_steps;       /* steps of waiting that raise a request's priority by one; 0 = never */
    uint32_t bypass_limit;    /* admissions that may overtake a request that waits for memory */
    perch_schedule schedule;  /* who goes first of those that wait with the same priority */
    uint32_t prefix_patience; /* schedule prefix: steps for which a request may be overtaken for its prefix's sake */
    uint32_t gpu;             /* index of the GPU, device cuda or auto */
    perch_switch deterministic;      /* GPU: the same bits whatever else is in the batch; the CPU knows nothing else */
    perch_switch graphs;             /* GPU: steps of decode rows alone are replayed as CUDA graphs */
    char stats_file[PERCH_PATH_CAP]; /* perch_stats for other processes; "auto" = in perch_stats_folder; "" = none */
    char trace_file[PERCH_PATH_CAP]; /* what the engine does, as a file for ui.perfetto.dev; "" = none */

    /* [model] */
    char path[PERCH_PATH_CAP];           /* Hugging Face directory (with weights = random: or a config.json) */
    char tokenizer_path[PERCH_PATH_CAP]; /* "" = tokenizer.json in path, if there */
    perch_weights weights;
    perch_dtype dtype; /* arithmetic and KV type; auto = f32 for F32 checkpoints on the CPU, else bf16 */
    perch_weight_format weight_format; /* how matrices are kept on the CPU; auto = in dtype */
    uint64_t random_seed;              /* weights = random */
    char cache_dir[PERCH_PATH_CAP];    /* for what is measured once and kept; "" = perch in the user's cache folder */

    /* [cache] */
    perch_mapping mapping;
    int32_t cache_chunk_size;       /* pages mapped at once as a sequence grows; -1 = the whole session_len */
    double cache_max_entry_count;   /* 0<x<1: share of free memory (at most for 16 full-length sequences a slot);
                                     integer >= 1: full-length sequences */
    uint64_t cache_bytes;           /* the pool outright; 0 = by cache_max_entry_count */
    uint64_t page_bytes;            /* mapping vmm: power of two, a multiple of the device's granularity; 0 = chosen */
    uint64_t host_bytes;            /* host memory for copies of KV that is evicted, in whole pages; 0 = none */
    uint64_t disk_bytes;            /* of a file for copies that the host memory has no room for; 0 = none */
    char disk_path[PERCH_PATH_CAP]; /* that file */
    uint32_t disk_keep_ms;          /* perch_engine_destroy: for how long it writes idle KV to it */
    perch_restore restore;          /* how KV comes back that copies of exist; auto = whichever way is quickest */
    perch_switch prefix_index; /* sequences find and share the KV of equal beginnings, of closed sequences as well */
    perch_policy policy;       /* which idle conversations lose their KV first */

    /* [sampling]: defaults of requests. NaN or -1 = generation_config.json's value, or off where it has none */
    double temperature;        /* 0 = greedy */
    double top_p;              /* 0 < p <= 1; 1 = off */
    double min_p;              /* 0 <= p < 1; 0 = off */
    double typical_p;          /* 0 < p <= 1; 1 = off */
    double repetition_penalty; /* > 0; 1 = off */
    int32_t top_k;             /* 0 = off */

    /* [parallel] */
    uint32_t threads; /* CPU threads of the backend; 0 = the CPUs this process may use */

    /* [store], keys without "store_" */
    perch_store store_backend;
    char store_path[PERCH_PATH_CAP];          /* lmdb: its folder */
    char store_address[PERCH_PATH_CAP];       /* redis: HOST, HOST:PORT or unix:PATH */
    char store_prefix[PERCH_PATH_CAP];        /* redis: what all its keys begin with */
    char store_password_file[PERCH_PATH_CAP]; /* redis: its first line is the password; "" = there is none */
    uint32_t store_timeout_ms;                /* redis: connecting, and answering a group of writes */
    uint32_t store_lease_ms;  /* redis: after so long without a sign of life others may open what it had */
    uint64_t store_max_bytes; /* retained at most; 0 = no limit */
    uint64_t store_ttl;       /* seconds that a sequence nobody uses is retained; 0 = for ever */

    /* not in the INI file */
    perch_progress_fn progress; /* may be NULL */
    void *progress_user;
} perch_options;

/* One [section] key. All strings are static. */
typedef struct perch_option_info {
    const char *section;
    const char *key;
    const char *type;  /* "integer", "real", "bytes" (each perhaps " | auto"), "path", or the words, as "a | b" */
    const char *range; /* e.g. "1..4096"; "" where the type says it all */
    const char *default_value; /* as perch_options_set would take it */
    const char *help;          /* one sentence */
} perch_option_info;

/*
 * A host's own sections in the same INI file: called for each key of a section that is not perch's. Return PERCH_OK if
 * the key is the host's and its value fits, else a status with err filled in; PERCH_E_NOT_FOUND = no such section or key.
 */
typedef struct perch_ini_host {
    perch_status (*key)(void *user, const char *section, const char *key, const char *value, perch_error *err);
    void *user;
} perch_ini_host;

/* Fills in the defaults. struct_size is sizeof(perch_options). E_INVALID: NULL, or a size no version ever had. */
PERCH_API perch_status perch_options_init(perch_options *options, size_t struct_size);

/*
 * Reads an INI file over what is there. host may be NULL. An unknown, misspelt, repeated or out-of-range key is
 * E_CONFIG with "file: [section] key: reason"; options are then unchanged. Relative paths are taken from the
 * INI file's folder.
 */
PERCH_API perch_status perch_options_load_ini(perch_options *options, const char *file, const perch_ini_host *host,
                                              perch_error *err);

/* Sets one key: perch_options_set(o, "cache.cache_chunk_size", "4", &err). E_CONFIG names the key and the reason. */
PERCH_API perch_status perch_options_set(perch_options *options, const char *section_key, const char *value,
                                         perch_error *err);

/* Writes a key's value as text, with its 0, into out[cap]. E_NOT_FOUND, E_BUFFER. */
PERCH_API perch_status perch_options_get(const perch_options *options, const char *section_key, char *out, size_t cap,
                                         perch_error *err);

/* The index-th key in the order of the sections, or NULL behind the last. */
PERCH_API const perch_option_info *perch_options_key(size_t index);

/* ------------------------------------------------------------- tokenizer -- */

typedef struct perch_tokenizer perch_tokenizer;
typedef struct perch_tokenizer_stream perch_tokenizer_stream;

enum {
    PERCH_ENCODE_BOS = 1u << 0,     /* the post-processor's template: BOS before (and EOS behind, if it says so) */
    PERCH_ENCODE_SPECIAL = 1u << 1, /* special tokens written out in the text, like <|im_end|>, become their ids */
    PERCH_DECODE_SPECIAL = 1u << 2, /* decoding writes special tokens out instead of skipping them */
    PERCH_DECODE_CONTINUE = 1u << 3 /* the tokens continue a text: a leading space is kept, not stripped */
};

/* path: a tokenizer.json or a directory that holds one (and maybe a tokenizer_config.json). E_IO, E_FORMAT, E_UNSUPPORTED. */
PERCH_API perch_status perch_tokenizer_create(const char *path, perch_tokenizer **out, perch_error *err);
PERCH_API void perch_tokenizer_destroy(perch_tokenizer *tokenizer);

/*
 * Encodes text[n_bytes] (UTF-8; an invalid byte is taken as U+FFFD). tokens[cap] is the caller's; *n_tokens gets the
 * number of tokens that the text has, also on E_BUFFER, where it is more than cap (then tokens is not complete).
 */
PERCH_API perch_status perch_tokenizer_encode(const perch_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                              uint32_t flags, int32_t *tokens, size_t cap, size_t *n_tokens,
                                              perch_error *err);

/* Decodes tokens[n_tokens] into text[cap], always closed by a 0 that *n_bytes does not count. E_BUFFER as above. */
PERCH_API perch_status perch_tokenizer_decode(const perch_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                                              uint32_t flags, char *text, size_t cap, size_t *n_bytes,
                                              perch_error *err);

/* Number of ids, added tokens included; the id of a token's exact text or -1; BOS and the first EOS, or -1. */
PERCH_API int32_t perch_tokenizer_n_tokens(const perch_tokenizer *tokenizer);
PERCH_API int32_t perch_tokenizer_find(const perch_tokenizer *tokenizer, const char *content);
PERCH_API int32_t perch_tokenizer_bos(const perch_tokenizer *tokenizer);
PERCH_API int32_t perch_tokenizer_eos(const perch_tokenizer *tokenizer);

/*
 * Decoding as a stream: push gives the text that token adds and never ends within a UTF-8 character; flush gives what is
 * held back, and then the stream is as new. *text is borrowed until the next call on the stream, closed by a 0 that
 * *n_bytes does not count. The pieces joined are what perch_tokenizer_decode gives for all tokens at once. The tokenizer
 * must outlive the stream.
 */
PERCH_API perch_status perch_tokenizer_stream_create(const perch_tokenizer *tokenizer, uint32_t flags,
                                                     perch_tokenizer_stream **out, perch_error *err);
PERCH_API void perch_tokenizer_stream_destroy(perch_tokenizer_stream *stream);
PERCH_API perch_status perch_tokenizer_stream_push(perch_tokenizer_stream *stream, int32_t token, const char **text,
                                                   size_t *n_bytes, perch_error *err);
PERCH_API perch_status perch_tokenizer_stream_flush(perch_tokenizer_stream *stream, const char **text, size_t *n_bytes,
                                                    perch_error *err);

/* ------------------------------------------------------------------ chat -- */

/* One message of a chat. Both strings are the caller's, UTF-8, 0-terminated. */
typedef struct perch_chat_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} perch_chat_message;

/*
 * Renders messages[n] in a chat format into text[cap] (as perch_tokenizer_decode does with E_BUFFER). format: NULL = the
 * one that tokenizer_config.json's chat_template is, or "chatml", "llama2", "llama3", "mistral", "plain".
 * first: whether the first message opens the conversation; 0 gives the text to append to a conversation whose last
 * message was a generated answer. The text ends where the assistant's answer begins, and is to be encoded with
 * PERCH_ENCODE_SPECIAL (and PERCH_ENCODE_BOS for the first). A system message that the template itself brings along is
 * rendered where format is NULL, and in no named format. E_UNSUPPORTED: a template perch does not know.
 */
PERCH_API perch_status perch_chat_render(const perch_tokenizer *tokenizer, const char *format,
                                         const perch_chat_message *messages, size_t n, int first, char *text,
                                         size_t cap, size_t *n_bytes, perch_error *err);

/* ---------------------------------------------------------------- engine -- */

typedef struct perch_engine perch_engine;

/* What memory goes where; all sizes in bytes. The engine keeps to it from start to end. */
typedef struct perch_plan {
    size_t struct_size;       /* set by the caller: sizeof(perch_plan) */
    uint64_t free_bytes;      /* free on the device when the plan was made; on the CPU the cgroup's limit counts */
    uint64_t weights_bytes;   /* as the backend stores them */
    uint64_t workspace_bytes; /* activations, logits, tables */
    uint64_t reserve_bytes;   /* GPU: batches, partial results, workspace of matrix products, graphs */
    uint64_t host_bytes;      /* host memory: the engine's own bookkeeping and the tokenizer */
    uint64_t host_tier_bytes; /* host memory: [cache] host_bytes in whole pages */
    uint64_t staging_bytes;   /* host memory: what pages go through to the disk and back where there is no host tier */
    uint64_t pool_bytes;      /* n_pages * page_bytes */
    uint64_t total_bytes;     /* what of free_bytes is taken: the seven above, on a GPU without those of the host */
    uint64_t kv_bytes_per_token; /* of one sequence, all layers */
    uint64_t group_bytes;        /* of 16 tokens */
    uint64_t page_bytes;
    uint64_t sequence_bytes; /* of one full-length sequence, in whole pages */
    uint32_t n_pages;
    uint32_t n_slots;
    uint32_t session_len;
    uint32_t n_full_sequences; /* of session_len tokens that fit at once */
    uint64_t n_pool_tokens;    /* that fit in all */
    uint64_t n_parameters;
    uint32_t n_layers, n_heads, n_kv_heads, head_dim, hidden_size, vocab_size;
    char architecture[32]; /* "llama", "mistral", "qwen2", "qwen3" */
    char dtype[8];         /* "f32", "bf16", "f16" */
    char weight_format[8]; /* "int8", "int4", or as dtype */
    char backend[128];     /* "cpu avx512, 2 threads"; "cuda NVIDIA H200, …" */
    perch_mapping mapping;
    perch_status
        gpu_status; /* device auto that came to the CPU: why; E_UNSUPPORTED = there is no GPU to use, or no driver */
    char note[256]; /* and in words, else "" */
    uint64_t n_step_parameters; /* of n_parameters: all but the embedding, where that is not the output's matrix too */
    uint64_t
        context_bytes; /* GPU: the driver's context and what comes with it, taken before free_bytes; 0: not known */
    uint64_t disk_tier_bytes; /* disk: the file at [cache] disk_path */
} perch_plan;

/*
 * Counters since the start, and gauges (marked so) as of now. What a step computes is counted when it ends, what it decides
 * (admissions, evictions, preemptions) when it begins.
 * live = held by sequences in the batch, by those that the host has pinned, or while they are copied to or from the host tier; cached =
 * held by other idle ones.
 */
typedef struct perch_stats {
    size_t struct_size;  /* set by the caller: sizeof(perch_stats) */
    perch_status status; /* sticky: not OK once the engine is dead */
    uint32_t reserved0;
    uint64_t steps;
    uint64_t step_us;          /* sum of the steps' times */
    uint64_t host_us;          /* of which: scheduling, sampling and commit */
    uint64_t prefill_tokens;   /* computed as prompt, re-prefill included */
    uint64_t reprefill_tokens; /* of which: had been computed before and were evicted */
    uint64_t decode_tokens;    /* generated */
    uint64_t requests_submitted, requests_finished, requests_cancelled, requests_failed;
    uint64_t hits, partial_hits, misses, first_turns; /* at admission; first_turns had nothing to hit */
    uint64_t cached_tokens;                           /* prompt tokens that admissions found in the cache */
    uint64_t prefix_tokens;                 /* KV of tokens that sequences took from others, forks not counted */
    uint64_t saved_pages, restored_pages;   /* copied to the host tier, and back */
    uint64_t restored_tokens;               /* whose KV came back so instead of being computed */
    uint64_t disk_found_pages;              /* of an earlier engine, that were in the disk tier's file at the start */
    uint64_t spilled_pages;                 /* written to the disk tier */
    uint64_t fetched_pages, fetched_tokens; /* read from there, to be restored */
    uint64_t corrupt_pages;                 /* were not what had been written, and were computed */
    uint64_t failed_disk_reads, failed_disk_writes;
    uint64_t raced_tokens;    /* computed in front while what is behind them was loaded */
    uint64_t declined_tokens; /* computed though there were copies, since that was quicker */
    perch_status
        disk_status; /* a warning: not OK once the disk tier has failed so often that it is not used any more */
    uint32_t reserved1;
    uint64_t prefix_waits; /* requests that waited for a prefix that another was computing */
    uint64_t evictions;    /* sequences that lost pages */
    uint64_t evicted_pages;
    uint64_t preemptions;
    uint64_t copied_pages;                                      /* copy-on-write */
    uint64_t mapped_pages, unmapped_pages;                      /* commands executed */
    uint32_t rows_running;                                      /* gauge */
    uint32_t requests_waiting;                                  /* gauge */
    uint64_t sequences_open;                                    /* gauge */
    uint64_t sequences_resident;                                /* gauge: hold pages, idle */
    uint32_t slots_total, slots_active;                         /* gauge */
    uint32_t pages_total, pages_free, pages_live, pages_cached; /* gauge */
    uint64_t failed_graphs; /* GPU: could not be made or launched; such steps are queued kernel by kernel */
    uint64_t store_commits, store_failures; /* turns and syncs that the store took; ops it failed at */
    uint64_t sequences_retired;             /* by this engine, under the store's limits */
    uint64_t saved_us;            /* what computing cached_tokens would have taken, at the rate measured by then */
    uint64_t evicted_idle_us;     /* sum over evictions: how long what lost pages had been idle; */
    uint64_t evicted_idle_p50_us; /* and the median, to an eighth */
    uint64_t page_bytes;          /* of all pages here */
    uint64_t restored_hits;       /* of the hits and partial hits: some of it came back from a tier below the device */
    uint32_t host_pages_total, host_pages_used; /* gauge: frames of that tier, and those that hold a copy */
    uint32_t disk_pages_total, disk_pages_used; /* gauge */
    uint64_t ttft_p50_us, ttft_p90_us,
        ttft_p99_us;     /* submit to first token, of the last thousand or so requests; to an eighth */
    uint64_t trace_lost; /* events that trace_file lacks: they came too fast, or the file failed */
    /* gauges: what the engine has measured so far of the time that KV takes; 0: not known. See perch_costs */
    double prefill_us, prefill_us_8k; /* a token at position 0, and behind 8,192 others */
    double host_latency_us, host_mbps, disk_latency_us, disk_mbps;
} perch_stats;

/*
 * Loads the model and starts the engine. Options are copied. Blocks until the first request could run. On failure *out
 * is NULL. E_NO_ROOM: one full-length sequence does not fit; the message has the plan's figures.
 */
PERCH_API perch_status perch_engine_create(const perch_options *options, perch_engine **out, perch_error *err);

/*
 * Ends running requests without further events, joins the engine's threads, frees everything. Threads that wait in perch_next or
 * perch_submit come back with E_SHUTDOWN; no call may begin after this one. What lmdb or redis have of open sequences stays
 * there, retained or not: perch_sequence_close and perch_sequence_remove take it away, and the limits of [store]. With a disk
 * tier it writes idle KV there first, for disk_keep_ms at most, and waits for what the disk is still doing.
 */
PERCH_API void perch_engine_destroy(perch_engine *engine);

/*
 * The plan an engine runs by; and the plan that options would give, computed without loading weights. Where that does not fit
 * (E_NO_ROOM) the plan's figures are filled in all the same.
 */
PERCH_API perch_status perch_engine_plan(const perch_engine *engine, perch_plan *plan, perch_error *err);
PERCH_API perch_status perch_plan_compute(const perch_options *options, perch_plan *plan, perch_error *err);

/*
 * What it takes to have KV that is not on the device, as perch_costs_measure found it. Rates are 0 where they were not measured.
 */
typedef struct perch_costs {
    size_t struct_size;             /* set by the caller: sizeof(perch_costs) */
    double prefill_us;              /* to compute a token at position 0, in full steps; microseconds */
    double prefill_us_per_position; /* and what each position before it adds */
    double host_latency_us;         /* to load from the host tier: before the first byte, */
    double host_mbps;               /* and then 10^6 bytes a second */
    double disk_latency_us, disk_mbps;
    uint32_t host_break_even,
        disk_break_even;        /* from so many tokens of context on loading is quicker; 0: up to session_len never,
                                                  or not known */
    uint32_t n_layers_measured; /* of the model's, with random weights; 0: prefill was not measured */
    uint32_t n_step_tokens;     /* tokens of the longest pass that was timed */
    uint32_t n_positions;       /* the longest context that was timed */
    uint32_t reserved0;
    char note[256]; /* why something was not measured, else "" */
} perch_costs;

/*
 * Measures them on the device that the options ask for, in a few seconds at most and without the model's weights: passes of one layer
 * with random weights, and copies from host memory. A disk is measured by an engine that has it as a tier, see perch_stats: here it is
 * 0, as is what can't be measured, and `note` says why. Errors as perch_plan_compute.
 */
PERCH_API perch_status perch_costs_measure(const perch_options *options, perch_costs *costs, perch_error *err);

PERCH_API perch_status perch_engine_stats(perch_engine *engine, perch_stats *stats, perch_error *err);

/*
 * What an engine, here or in another process on this machine, has written to its [engine] stats_file: a tenth of a second
 * old at most while it computes, half a second while it idles.
 */
typedef struct perch_snapshot {
    size_t struct_size; /* set by the caller: sizeof(perch_snapshot) */
    uint32_t pid;       /* of its process, as that sees itself */
    uint32_t running;   /* 0: the process is gone, and this is what it left */
    uint64_t at_us;     /* when it was written, by the system's monotonic clock; */
    uint64_t age_us;    /* that long ago, */
    uint64_t uptime_us; /* and that long after the engine's start */
    uint32_t session_len;
    uint32_t reserved0;
    char model[256];   /* the last part of [model] path */
    char backend[128]; /* as perch_plan's */
    char version[16];  /* perch_version there */
    perch_stats stats;
} perch_snapshot;

/* Where engines with stats_file = auto have their files, one each: $XDG_RUNTIME_DIR/perch, or /tmp/perch-UID. E_BUFFER. */
PERCH_API perch_status perch_stats_folder(char *out, size_t cap, perch_error *err);

/*
 * Reads one. Any thread, no engine needed. E_NOT_FOUND: there is no such file, as when its engine was destroyed; E_IO; E_FORMAT: it
 * is something else; E_UNSUPPORTED: another version's; E_AGAIN: its process was killed in the middle of a write.
 */
PERCH_API perch_status perch_snapshot_read(const char *file, perch_snapshot *out, perch_error *err);

/* The model's tokenizer, borrowed for the engine's life; NULL if it has none (weights = random). */
PERCH_API const perch_tokenizer *perch_engine_tokenizer(const perch_engine *engine);

/* The options as they took effect (auto values replaced by what was chosen). out comes from perch_options_init. */
PERCH_API perch_status perch_engine_options(const perch_engine *engine, perch_options *out, perch_error *err);

/* ------------------------------------------------------------ simulation -- */

/*
 * A device that is only simulated: each operation takes the longer of its arithmetic and of its memory traffic at these rates.
 * Rates are what is reached, not what a data sheet promises. G and T are powers of 1000.
 */
typedef struct perch_hardware {
    size_t struct_size;
    uint64_t memory_bytes;   /* of the device, for the memory plan; 0 = as much as the plan wants */
    double matrix_tflops;    /* matrix products, 10^12 operations a second */
    double attention_tflops; /* attention's */
    double memory_gbps;      /* device memory, read and written, 10^9 bytes a second */
    double host_gbps;        /* between device and host tier, each way */
    double disk_gbps;        /* between host memory and disk, each way */
    double launch_us;        /* of every step, beside what it computes */
} perch_hardware;

/* An NVIDIA H200. struct_size is sizeof(perch_hardware). */
PERCH_API perch_status perch_hardware_init(perch_hardware *hardware, size_t struct_size);

/*
 * An engine that schedules, caches and evicts as any other, on a simulated device and in a time of its own, which begins at 0 and
 * passes in perch_simulation_advance alone: all of its times (deadlines, events, statistics, but for host_us) are of that. Options
 * are those of a GPU, [model] path with a config.json alone; what is chosen is not the model's, but depends on the seed and the position
 * alone. It has no threads: perch_next never waits, and a full queue always refuses. E_CONFIG: a [store] that outlives it; E_INVALID:
 * hardware; otherwise as perch_engine_create.
 */
PERCH_API perch_status perch_simulation_create(const perch_options *options, const perch_hardware *hardware,
                                               perch_engine **out, perch_error *err);

/*
 * Time passes, step by step, until there is an event to fetch or it is until_us (a step that has begun is waited for). *now_us
 * gets the time. UINT64_MAX: until there is an event; E_TIMEOUT where nothing is under way that could bring one. Otherwise, the
 * engine's sticky status.
 */
PERCH_API perch_status perch_simulation_advance(perch_engine *engine, uint64_t until_us, uint64_t *now_us,
                                                perch_error *err);

/* ------------------------------------------------------------- sequences -- */

/* A conversation. Carries a generation: a stale, closed or made-up id is E_NOT_FOUND. 0 is never valid. */
typedef uint64_t perch_sequence_id;

typedef enum perch_residency {
    PERCH_SEQ_TOKENS = 0,   /* token IDs only */
    PERCH_SEQ_RESIDENT = 1, /* idle, (a prefix of) its KV is on the device */
    PERCH_SEQ_ACTIVE = 2,   /* in the batch */
    PERCH_SEQ_HOST = 3,     /* idle, none of its KV is on the device, but in the host tier */
    PERCH_SEQ_DISK = 4      /* likewise, and only on the disk */
} perch_residency;

typedef struct perch_sequence_info {
    size_t struct_size; /* set by the caller: sizeof(perch_sequence_info) */
    perch_residency residency;
    uint32_t in_flight;     /* 1 while a request waits or runs */
    uint64_t n_tokens;      /* the conversation's length */
    uint64_t n_kv_tokens;   /* of which have KV on the device */
    uint64_t n_host_tokens; /* beyond those, as copies in the host tier */
    uint64_t n_disk_tokens; /* likewise, on the disk alone */
    uint64_t n_kv_computed; /* the most that ever had */
    uint64_t n_evictions;   /* times it lost pages */
    uint64_t n_stored;      /* of n_tokens, from the first on: those committed to the store */
} perch_sequence_info;

/*
 * What a host knows of a conversation's future, for the order in which idle ones lose their KV. It changes how soon answers come,
 * never what they are. 0 everywhere: nothing is known. Both policies heed them.
 */
typedef struct perch_hints {
    size_t struct_size;
    /*
     * 1: what it has on the device stays there while it is idle. At most half of the pool can be pinned; beyond that E_NO_ROOM, at the
     * call. What it grows by later is pinned, too. Where the oldest request could not go on otherwise, even with nothing else
     * in the batch, the pinned one that was used longest ago can be evicted until its next turn.
     */
    uint32_t pin;
    int32_t priority; /* -8..7: of two conversations the lower goes first, whatever else is known */
    uint64_t
        expect_return_ms; /* its next turn comes about so long after the end of the last, or after the call where none is
                                  in flight: until then it is likelier to come back, and then less */
    uint64_t ttl_ms;      /* idle for longer, it goes before all others */
} perch_hints;

typedef struct perch_sequence_options {
    size_t struct_size;
    /*
     * Sequences of one namespace may share the KV of equal beginnings; those of two never do, not even where their tokens are
     * equal: so nobody learns from a response's time what another tenant has asked. Forks are in their parent's. Default 0.
     */
    uint64_t cache_namespace;
    const char
        *key; /* in the store: 1..255 bytes that end with a 0. Default NULL = a new sequence, whose key is made up */
    uint32_t flags; /* PERCH_SEQUENCE_*, default none */
    uint32_t reserved0;
    const perch_hints *hints; /* the caller's until the call returns; default NULL = none */
} perch_sequence_options;

enum {
    PERCH_SEQUENCE_RETAIN = 1u << 0,  /* perch_sequence_close lets go of it: it stays in the store */
    PERCH_SEQUENCE_EXISTING = 1u << 1 /* E_NOT_FOUND where the store has no such sequence, instead of a new one */
};

/* The defaults. E_INVALID: struct_size is not sizeof(perch_sequence_options). */
PERCH_API perch_status perch_sequence_options_init(perch_sequence_options *options, size_t struct_size);

/* An empty sequence. */
PERCH_API perch_status perch_sequence_open(perch_engine *engine, perch_sequence_id *out, perch_error *err);

/*
 * Opens the sequence of the options' key as the store (below) has it, or a new one; without a key as perch_sequence_open.
 * options NULL = the defaults. E_INVALID: options did not come from init, or name a key or flags that can't be. With a key: E_BUSY:
 * open in this engine; E_LEASED: in another; E_RETIRED: the store has forgotten it, by its limits (perch_sequence_remove, and
 * the key can be used again); E_MODEL: its tokens are another model's or tokenizer's, err says what differs; E_TOO_LONG: it
 * has more than session_len tokens; E_FORMAT: what is stored is damaged; E_STORE. Waits for the store.
 */
PERCH_API perch_status perch_sequence_open_with(perch_engine *engine, const perch_sequence_options *options,
                                                perch_sequence_id *out, perch_error *err);

/* All zero. E_INVALID: struct_size is not sizeof(perch_hints). */
PERCH_API perch_status perch_hints_init(perch_hints *hints, size_t struct_size);

/* From now on these, instead of those before; not stored. At any time. E_INVALID names the field, E_NO_ROOM: pin, E_NOMEM. */
PERCH_API perch_status perch_sequence_hint(perch_engine *engine, perch_sequence_id sequence, const perch_hints *hints,
                                           perch_error *err);

/*
 * Ends the sequence and cancels its request, if one is in flight (whose last event still comes). The id is stale at once. It is
 * removed from the store as well, unless it was opened with PERCH_SEQUENCE_RETAIN. What that comes to in the store is
 * not waited for.
 */
PERCH_API perch_status perch_sequence_close(perch_engine *engine, perch_sequence_id sequence, perch_error *err);

/* Appends tokens[n] without generating; computed with the next request. Copied. E_BUSY, E_TOO_LONG, E_INVALID (range). */
PERCH_API perch_status perch_sequence_append(perch_engine *engine, perch_sequence_id sequence, const int32_t *tokens,
                                             size_t n, perch_error *err);

/* A new sequence that begins with the first n_tokens of this one (0..length). KV is shared, copied on write. E_BUSY. */
PERCH_API perch_status perch_sequence_fork(perch_engine *engine, perch_sequence_id sequence, uint64_t n_tokens,
                                           perch_sequence_id *out, perch_error *err);

/* Forgets all but the first n_tokens. E_BUSY; E_INVALID where it is shorter. */
PERCH_API perch_status perch_sequence_rewind(perch_engine *engine, perch_sequence_id sequence, uint64_t n_tokens,
                                             perch_error *err);

/* Copies token IDs into tokens[cap]; *n_tokens gets the length also on E_BUFFER. While a request runs: those committed. */
PERCH_API perch_status perch_sequence_tokens(perch_engine *engine, perch_sequence_id sequence, int32_t *tokens,
                                             size_t cap, size_t *n_tokens, perch_error *err);

PERCH_API perch_status perch_sequence_state(perch_engine *engine, perch_sequence_id sequence, perch_sequence_info *info,
                                            perch_error *err);

/* ----------------------------------------------------------------- store -- */

/*
 * Where sequences outlive the engine, [store] backend:
 *
 *   memory   nothing outlives it. Sequences opened by a key and retained can be opened again while the engine lives.
 *   lmdb     a folder of this machine, one engine at a time. Whatever was committed is there after a crash of the process or
 *            the machine.
 *   redis    shared by engines on many hosts. A sequence belongs to the engine that opened it, until that closes it, ends, or
 *            gives no sign of life for lease_ms. What a crash of Redis leaves is up to its configuration.
 *
 * Committed. With lmdb and redis every sequence is stored, whether it has a name or is given one here. A turn is *committed*
 * when everything the sequence holds by its end is in the store, however it ended: eos, length, cancelled or error. Its DONE
 * event (that of completion 0) can be fetched from then on and not before; TOKENS events don't wait. A turn without a DONE
 * is not in the store after a crash, neither its prompt nor its answer: submit it again. Where a turn can't be committed
 * its DONE says so (event.status is E_STORE or E_LEASED, with any finish): then what it added is in the engine's
 * memory alone, as n_stored of perch_sequence_state tells, until the next turn or perch_sequence_sync commits it all.
 * Tokens that came by append, rewind, fork or import are committed likewise: by the next turn or perch_sequence_sync.
 *
 * Opening a stored sequence brings back its tokens; its KV is computed again by its first request. Seeds, sampling
 * parameters and stop conditions belong to requests, and the draw at a position depends on nothing else: so there is no
 * further state, and a continued sequence generates what it would have generated. Its namespace is not stored.
 *
 * The calls of this section wait for the store, on the caller's thread; steps never do.
 */

#define PERCH_KEY_CAP 256

/* A sequence in the store. */
typedef struct perch_sequence_entry {
    char key[PERCH_KEY_CAP];
    uint64_t n_tokens, n_turns;      /* committed */
    uint64_t created_ms, touched_ms; /* since 1970-01-01 UTC */
    uint32_t is_open;                /* 1: in this engine or another */
    uint32_t reserved0;
} perch_sequence_entry;

/* Copies the key with its 0. E_NOT_FOUND: it has none (opened without options, and the store is memory). E_BUFFER. */
PERCH_API perch_status perch_sequence_key(perch_engine *engine, perch_sequence_id sequence, char *key, size_t cap,
                                          perch_error *err);

/*
 * Commits what the sequence holds and the store has not. With memory there is nothing to do. E_BUSY; E_LEASED: another engine
 * has taken it over after lease_ms without a sign of life from this one, and it can only be closed here; E_STORE.
 */
PERCH_API perch_status perch_sequence_sync(perch_engine *engine, perch_sequence_id sequence, perch_error *err);

/* Removes a sequence that nobody has open from the store, or the mark of a retired one. E_NOT_FOUND, E_BUSY, E_LEASED, E_STORE. */
PERCH_API perch_status perch_sequence_remove(perch_engine *engine, const char *key, perch_error *err);

/*
 * The stored sequences in the order of their keys' bytes, those behind `after` (NULL = from the first): up to cap of them into
 * entries[cap], *n how many. *n < cap: there are no more. entry_bytes is sizeof(perch_sequence_entry). With memory: those with
 * a key, open ones with the tokens that they were opened with.
 */
PERCH_API perch_status perch_sequence_list(perch_engine *engine, const char *after, perch_sequence_entry *entries,
                                           size_t cap, size_t entry_bytes, size_t *n, perch_error *err);

/*
 * A sequence as bytes[cap] that any machine's perch with the same model and tokenizer can import: tokens and what the
 * store knows of it, checksummed. *n_bytes gets the size also on E_BUFFER. E_BUSY.
 */
PERCH_API perch_status perch_sequence_export(perch_engine *engine, perch_sequence_id sequence, void *bytes, size_t cap,
                                             size_t *n_bytes, perch_error *err);

/*
 * A new sequence from bytes[n_bytes] of an export. options NULL: as perch_sequence_open. E_FORMAT: no export, or a damaged
 * one; E_UNSUPPORTED: a later version's; E_MODEL, E_TOO_LONG; E_BUSY, E_LEASED, E_RETIRED: the options' key is taken, also
 * (E_INVALID) by a stored sequence that nobody has open; E_STORE.
 */
PERCH_API perch_status perch_sequence_import(perch_engine *engine, const void *bytes, size_t n_bytes,
                                             const perch_sequence_options *options, perch_sequence_id *out,
                                             perch_error *err);

/* -------------------------------------------------------------- requests -- */

typedef uint64_t perch_request_id;

typedef struct perch_logit_bias {
    int32_t token;
    float bias; /* added to the logit; -100..100 */
} perch_logit_bias;

/*
 * How the next token is chosen. Order: logit bias and bans, penalties, temperature, top-k, typical, top-p, min-p, draw.
 * The draw is Philox4x32-10 of (seed, position in the sequence, completion) and of nothing else.
 */
typedef struct perch_sampling {
    size_t struct_size;
    double temperature;        /* >= 0; 0 = greedy (the lowest id among equals) */
    double top_p;              /* 0 < p <= 1 */
    double min_p;              /* 0 <= p < 1, relative to the likeliest token */
    double typical_p;          /* 0 < p <= 1: locally typical sampling (Meister et al., 2022) */
    double repetition_penalty; /* > 0: divides positive, multiplies negative logits of all tokens so far (CTRL, 2019) */
    double frequency_penalty;  /* -2..2, times the count among this request's generated tokens */
    double presence_penalty;   /* -2..2, once for each token generated by this request */
    int32_t top_k;             /* 0 = all */
    uint32_t n_logprobs;       /* 0..20 top log-probabilities a token, of the model's own distribution */
    uint64_t seed;
    const perch_logit_bias *logit_bias; /* [n_logit_bias], the caller's until perch_submit returns */
    size_t n_logit_bias;
    const int32_t *banned_tokens; /* [n_banned_tokens], never generated */
    size_t n_banned_tokens;
} perch_sampling;

enum {
    PERCH_REQUEST_IGNORE_EOS = 1u << 0,      /* EOS is a token like any other */
    PERCH_REQUEST_LOGPROBS = 1u << 1,        /* the chosen tokens' log-probabilities (implied by n_logprobs) */
    PERCH_REQUEST_PROMPT_LOGPROBS = 1u << 2, /* log-probabilities of the appended tokens given what precedes them */
    PERCH_REQUEST_NO_TEXT = 1u << 3          /* events carry tokens only */
};

/* One turn: tokens appended to a sequence and what is to be generated behind them. Everything is copied by perch_submit. */
typedef struct perch_request {
    size_t struct_size;
    perch_sequence_id sequence;
    const int32_t *tokens; /* [n_tokens] appended; may be empty if the sequence is not */
    size_t n_tokens;
    uint32_t max_tokens; /* generated at most; 0 = none: compute the KV (and prompt log-probabilities), then end */
    uint32_t min_tokens; /* before, EOS and stop tokens are never chosen and stop strings not looked for */
    /*
     * 1..256 completions of the one prompt. The first is the sequence's own; the others are made by forks that share its
     * KV and are closed when they end.
     */
    uint32_t n_completions;
    uint32_t flags;             /* PERCH_REQUEST_* */
    int32_t priority;           /* -8..7, higher first; ages */
    uint32_t timeout_ms;        /* deadline from now; 0 = none. At the deadline it ends with what it has */
    const int32_t *stop_tokens; /* [n_stop_tokens] beside the model's EOS; end the request, stay in the sequence */
    size_t n_stop_tokens;
    const char *const *stop_strings; /* [n_stop_strings], 0-terminated, 1..256 bytes; not part of the text
                                        returned, but their tokens stay in the sequence, as EOS does */
    size_t n_stop_strings;
    uint64_t user_data; /* handed back in events */
    perch_sampling sampling;
} perch_request;

/*
 * Fills in a request with the engine's defaults (sampling from generation_config.json and [sampling], greedy
 * otherwise; max_tokens 16, one completion). struct_size is sizeof(perch_request).
 */
PERCH_API perch_status perch_request_init(const perch_engine *engine, perch_request *request, size_t struct_size);

/*
 * Submits a turn. Refused here, with the parameter's name, if it could never run: E_INVALID, E_NOT_FOUND, E_BUSY (one
 * request a sequence at a time), E_TOO_LONG (length + n_tokens + max_tokens > session_len). A full queue blocks or is
 * E_QUEUE_FULL, as configured; E_TIMEOUT where it stays full for timeout_ms. On success exactly one PERCH_EVENT_DONE
 * follows for each completion.
 */
PERCH_API perch_status perch_submit(perch_engine *engine, const perch_request *request, perch_request_id *out,
                                    perch_error *err);

/* Ends a request at the next step; its DONE event says so. What it had generated stays in the sequence. E_NOT_FOUND. */
PERCH_API perch_status perch_cancel(perch_engine *engine, perch_request_id request, perch_error *err);

/* ---------------------------------------------------------------- events -- */

typedef enum perch_event_type {
    PERCH_EVENT_NONE = 0,
    PERCH_EVENT_TOKENS = 1, /* one or more tokens were generated since the last event of this completion */
    PERCH_EVENT_DONE = 2    /* the completion's last; may carry tokens as well */
} perch_event_type;

typedef enum perch_finish {
    PERCH_FINISH_NONE = 0,
    PERCH_FINISH_EOS = 1, /* the model's end-of-sequence token */
    PERCH_FINISH_STOP_TOKEN = 2,
    PERCH_FINISH_STOP_STRING = 3,
    PERCH_FINISH_LENGTH = 4, /* max_tokens */
    PERCH_FINISH_CANCELLED = 5,
    PERCH_FINISH_TIMEOUT = 6,
    PERCH_FINISH_ERROR = 7 /* status and message say what */
} perch_finish;

typedef struct perch_logprob {
    int32_t token;
    float logprob; /* natural logarithm */
} perch_logprob;

/*
 * What perch_next hands out. The buffers belong to the event and are used again by the next perch_next with it;
 * perch_event_clear frees them.
 */
typedef struct perch_event {
    size_t struct_size;
    perch_event_type type;
    perch_finish finish; /* DONE */
    perch_status
        status; /* DONE with FINISH_ERROR; with any finish, where the turn is not in the store: E_STORE, E_LEASED */
    uint32_t completion; /* 0..n_completions-1 */
    perch_request_id request;
    perch_sequence_id sequence;
    uint64_t user_data;
    const int32_t *tokens; /* [n_tokens] new ones */
    size_t n_tokens;
    const char *text; /* [text_bytes] + 0: what they add to the text; whole UTF-8 characters; "" without a tokenizer */
    size_t text_bytes;
    const float *logprobs;             /* [n_tokens], or NULL if not asked for */
    const perch_logprob *top_logprobs; /* [n_tokens][n_top], best first, or NULL */
    uint32_t n_top;
    uint32_t reserved0;
    const float
        *prompt_logprobs; /* DONE of PROMPT_LOGPROBS: [n_prompt_logprobs]; NaN for a token with nothing before */
    size_t n_prompt_logprobs;
    /* DONE: usage */
    uint64_t prompt_tokens;                   /* the conversation's length before generation */
    uint64_t cached_tokens;                   /* of which had their KV on the device or in the host tier at admission */
    uint64_t completion_tokens;               /* generated */
    uint64_t queue_us, prefill_us, decode_us; /* submit..admission, ..first token, ..end */
    const char *message;                      /* DONE with a status: what went wrong; "" otherwise */
    void *storage;                            /* private */
} perch_event;

/* Makes an event ready for its first perch_next. struct_size is sizeof(perch_event). */
PERCH_API perch_status perch_event_init(perch_event *event, size_t struct_size);

/*
 * Takes the next event, waiting for at most timeout_ms (0 = not at all, negative = for ever). Tokens of one completion
 * that pile up before they are fetched come as one event. On any failure the event is left empty (PERCH_EVENT_NONE). Events of one completion come in order. E_TIMEOUT: none.
 * E_NOMEM: nothing is lost, call again. After the engine died and every DONE was taken: the engine's sticky status.
 */
PERCH_API perch_status perch_next(perch_engine *engine, perch_event *event, int timeout_ms, perch_error *err);

/* Frees what the event holds and zeroes it. */
PERCH_API void perch_event_clear(perch_event *event);

/* Readable while perch_next would not have to wait; for poll and epoll. Owned by the engine: don't read or close it. */
PERCH_API int perch_event_fd(const perch_engine *engine);

/* "eos", "stop_token", "stop_string", "length", "cancelled", "timeout", "error"; static strings. */
PERCH_API const char *perch_finish_name(perch_finish finish);

#ifdef __cplusplus
}
#endif

#endif
