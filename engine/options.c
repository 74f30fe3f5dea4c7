/*
 * options: the table of all configuration keys, and the public functions over it. A key's default, range, storage and
 * description stand in one row, from which perch_options_init, INI files, set and get, checks and the documentation
 * come.
 */
#include "engine/options.h"

#include "engine/ini.h"
#include "engine/option.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ------------------------------------------------------------------ table -- */

static bool is_entry_count(const option_value *v) {
    return (v->real > 0 && v->real < 1) || (v->real >= 1 && v->real <= 1000000 && v->real == floor(v->real));
}

static bool is_page_size(const option_value *v) {
    return !v->negative && v->magnitude >= 4096 && v->magnitude <= UINT64_C(1) << 30 &&
           (v->magnitude & (v->magnitude - 1)) == 0;
}

static bool is_chunk_size(const option_value *v) {
    return v->negative ? v->magnitude == 1 : v->magnitude >= 1 && v->magnitude <= 1048576;
}

static bool is_temperature(const option_value *v) { return v->real >= 0 && isfinite(v->real); }
static bool is_share(const option_value *v) { return v->real > 0 && v->real <= 1; }
static bool is_ratio(const option_value *v) { return v->real >= 0 && v->real < 1; }
static bool is_penalty(const option_value *v) { return v->real > 0 && isfinite(v->real); }

#define FIELD(name) .offset = offsetof(perch_options, name)
/* The numbers that are checked and the text that tells them, from one place. */
#define RANGE(from, to) .least = from##u, .most = to##u, .info.range = #from ".." #to
#define INFO(section_name, key_name, type_text, default_text, help_text)                                               \
    .info.section = section_name, .info.key = key_name, .info.type = type_text, .info.default_value = default_text,    \
    .info.help = help_text

static const option table[] = {
    {INFO("engine", "device", "auto | cpu | cuda", "auto",
          "Where the model runs; auto is an NVIDIA GPU if there is one that all of it fits, else the CPU."),
     FIELD(device), .kind = OPTION_WORD, .info.range = ""},
    {INFO("engine", "gpu", "integer", "0", "Which GPU, as CUDA counts them; the CPU has no use for it."), FIELD(gpu),
     .kind = OPTION_U32, RANGE(0, 255)},
    {INFO("engine", "deterministic", "on | off", "on",
          "Answers are the same to the bit whatever else is in the batch and however often a sequence was evicted; off "
          "lets a GPU choose the fastest matrix product for each number of rows. The CPU always is."),
     FIELD(deterministic), .kind = OPTION_WORD, .info.range = ""},
    {INFO("engine", "graphs", "on | off", "on",
          "Steps of decode rows alone are replayed as CUDA graphs; not on the CPU."),
     FIELD(graphs), .kind = OPTION_WORD, .info.range = ""},
    {INFO("engine", "stats_file", "path | auto", "",
          "Keeps the engine's statistics in this file, for perch top; auto is one for each engine in "
          "$XDG_RUNTIME_DIR/perch, or /tmp/perch-UID; empty is none."),
     FIELD(stats_file), .kind = OPTION_PATH, .automatic = true, .info.range = ""},
    {INFO("engine", "trace_file", "path", "",
          "Writes what the engine does (steps, requests, copies, evictions) to this file, in the format of "
          "ui.perfetto.dev and chrome://tracing; empty is none."),
     FIELD(trace_file), .kind = OPTION_PATH, .info.range = ""},
    {INFO("engine", "queue_full", "wait | refuse", "wait", "What a submit does that finds the queue full."),
     FIELD(queue_full), .kind = OPTION_WORD, .info.range = ""},
    {INFO("engine", "session_len", "integer | auto", "auto",
          "Tokens a sequence can hold; auto is the model's positions, as RoPE scaling extends them."),
     FIELD(session_len), .kind = OPTION_U32, .automatic = true, RANGE(1, 16777216)},
    {INFO("engine", "max_batch_size", "integer", "16", "Rows of the persistent batch, each with a slot."),
     FIELD(max_batch_size), .kind = OPTION_U32, RANGE(1, 4096)},
    {INFO("engine", "max_step_tokens", "integer", "256",
          "Tokens that one step computes at most, decode rows and prefill chunks together; at least max_batch_size + "
          "prefill_reserve."),
     FIELD(max_step_tokens), .kind = OPTION_U32, RANGE(2, 1048576)},
    {INFO("engine", "prefill_reserve", "integer", "32", "Tokens of a step kept for prefill however many rows decode."),
     FIELD(prefill_reserve), .kind = OPTION_U32, RANGE(1, 1048576)},
    {INFO("engine", "queue_size", "integer", "1024", "Requests that may wait."), FIELD(queue_size), .kind = OPTION_U32,
     RANGE(1, 1048576)},
    {INFO("engine", "age_steps", "integer", "256",
          "Steps of waiting that raise a request's priority by one; 0 is never."),
     FIELD(age_steps), .kind = OPTION_U32, RANGE(0, 1000000000)},
    {INFO("engine", "bypass_limit", "integer", "64", "Admissions that may overtake a request that waits for memory."),
     FIELD(bypass_limit), .kind = OPTION_U32, RANGE(0, 1000000000)},
    {INFO("engine", "schedule", "fcfs | prefix", "fcfs",
          "Which of the requests of one priority goes first: the first that came, or the one that finds most of its "
          "tokens in the "
          "cache."),
     FIELD(schedule), .kind = OPTION_WORD, .info.range = ""},
    {INFO("engine", "prefix_patience", "integer", "64",
          "schedule = prefix: for so many steps a request may be overtaken because others find more in the cache; then "
          "it "
          "goes before all that came later. So it waits longer than under fcfs by no more than these steps and the "
          "longest "
          "running turn."),
     FIELD(prefix_patience), .kind = OPTION_U32, RANGE(0, 1000000000)},

    {INFO("model", "path", "path", "", "Hugging Face model directory; with weights = random also a config.json."),
     FIELD(path), .kind = OPTION_PATH, .info.range = ""},
    {INFO("model", "tokenizer_path", "path", "",
          "A tokenizer.json or its directory; empty is the one in path, if any."),
     FIELD(tokenizer_path), .kind = OPTION_PATH, .info.range = ""},
    {INFO("model", "weights", "file | random", "file", "Weights from the files, or random ones of the same shapes."),
     FIELD(weights), .kind = OPTION_WORD, .info.range = ""},
    {INFO("model", "dtype", "auto | f32 | bf16 | f16", "auto",
          "Arithmetic and KV type; auto is f32 for F32 checkpoints on the CPU, else bf16. CPU: f32, bf16; GPU: bf16, "
          "f16."),
     FIELD(dtype), .kind = OPTION_WORD, .info.range = ""},
    {INFO("model", "weight_format", "auto | bf16 | int8 | int4", "auto",
          "How the CPU keeps matrices, whatever the checkpoint has; auto is dtype. int8 and int4: whole numbers with a "
          "scale for each 32; int4 keeps embedding and output head in int8. GPU: auto."),
     FIELD(weight_format), .kind = OPTION_WORD, .info.range = ""},
    {INFO("model", "random_seed", "integer", "0", "What weights = random are drawn from."), FIELD(random_seed),
     .kind = OPTION_U64, RANGE(0, 18446744073709551615)},
    {INFO("model", "cache_dir", "path", "",
          "Folder for what is measured once and kept, as which matrix product is fastest; empty is perch in "
          "$XDG_CACHE_HOME or ~/.cache."),
     FIELD(cache_dir), .kind = OPTION_PATH, .info.range = ""},

    {INFO("cache", "mapping", "auto | vmm | table", "auto",
          "How a slot finds its pages: vmm maps them into one virtual range, table looks up each group of 16 tokens; "
          "auto "
          "is vmm where the device can."),
     FIELD(mapping), .kind = OPTION_WORD, .info.range = ""},
    {INFO("cache", "cache_chunk_size", "integer", "1",
          "Pages mapped at once as a sequence grows; -1 is the whole session_len ahead of time."),
     FIELD(cache_chunk_size), .kind = OPTION_I32, .fits = is_chunk_size, .info.range = "-1 or 1..1048576"},
    {INFO("cache", "cache_max_entry_count", "real", "0.8",
          "Size of the page pool: below 1 a share of the free memory (at most room for 16 full-length sequences a "
          "slot), "
          "from 1 on a number of full-length sequences."),
     FIELD(cache_max_entry_count), .kind = OPTION_REAL, .fits = is_entry_count,
     .info.range = "0 < x < 1 or an integer 1..1000000"},
    {INFO("cache", "cache_bytes", "bytes", "0", "Size of the page pool outright; 0 is by cache_max_entry_count."),
     FIELD(cache_bytes), .kind = OPTION_U64, .sized = true, RANGE(0, 18446744073709551615)},
    {INFO("cache", "page_bytes", "bytes | auto", "auto",
          "Size of a page of mapping = vmm; a multiple of the device's granularity."),
     FIELD(page_bytes), .kind = OPTION_U64, .sized = true, .automatic = true, .fits = is_page_size,
     .info.range = "4K..1G, powers of two"},
    {INFO("cache", "host_bytes", "bytes", "0",
          "Host memory for copies of KV that is evicted, which then comes back by copying instead of computing; whole "
          "pages of it are used, and less than one is none."),
     FIELD(host_bytes), .kind = OPTION_U64, .sized = true, RANGE(0, 18446744073709551615)},
    {INFO("cache", "disk_bytes", "bytes", "0",
          "Size of the file disk_path, for copies of KV that host_bytes has no room for; as many whole pages of it are "
          "used as fit, and less than one is none."),
     FIELD(disk_bytes), .kind = OPTION_U64, .sized = true, RANGE(0, 18446744073709551615)},
    {INFO("cache", "disk_path", "path", "",
          "The file of disk_bytes; made where it is missing. An engine with the same model, arithmetic and sizes finds "
          "the "
          "pages of the one before it; another one empties it. One engine at a time can have it."),
     FIELD(disk_path), .kind = OPTION_PATH, .info.range = ""},
    {INFO("cache", "disk_keep_ms", "integer", "5000",
          "At the engine's end: for how many milliseconds at most it writes idle KV to disk_path that is not there "
          "yet."),
     FIELD(disk_keep_ms), .kind = OPTION_U32, RANGE(0, 3600000)},
    {INFO("cache", "restore", "auto | load | compute | both", "auto",
          "How evicted KV comes back that there are copies of: auto is whichever way is quickest, both computes the "
          "front while it loads the rest. The other ways are for measurements."),
     FIELD(restore), .kind = OPTION_WORD, .info.range = ""},
    {INFO("cache", "policy", "lru | cost", "lru",
          "Who loses KV first when the pool is full: the conversation that was not used for the longest time, or the "
          "one "
          "whose KV is likely to save the least time for its size."),
     FIELD(policy), .kind = OPTION_WORD, .info.range = ""},
    {INFO("cache", "prefix_index", "on | off", "on",
          "Sequences of one namespace find the KV of tokens that they have in common at their beginning, in whole "
          "groups of 16, also that of closed sequences as long as nobody needs the memory, and share it."),
     FIELD(prefix_index), .kind = OPTION_WORD, .info.range = ""},

    {INFO("sampling", "temperature", "real | auto", "auto",
          "Default of requests, as all of this section; 0 is greedy; auto is generation_config.json's, else greedy."),
     FIELD(temperature), .kind = OPTION_REAL, .automatic = true, .fits = is_temperature, .info.range = "0 <= x"},
    {INFO("sampling", "top_p", "real | auto", "auto",
          "Keep the likeliest tokens that together reach this probability."),
     FIELD(top_p), .kind = OPTION_REAL, .automatic = true, .fits = is_share, .info.range = "0 < x <= 1"},
    {INFO("sampling", "min_p", "real | auto", "auto", "Keep tokens at least this times as likely as the likeliest."),
     FIELD(min_p), .kind = OPTION_REAL, .automatic = true, .fits = is_ratio, .info.range = "0 <= x < 1"},
    {INFO("sampling", "typical_p", "real | auto", "auto",
          "Keep the tokens of most typical information content that together reach this probability."),
     FIELD(typical_p), .kind = OPTION_REAL, .automatic = true, .fits = is_share, .info.range = "0 < x <= 1"},
    {INFO("sampling", "repetition_penalty", "real | auto", "auto",
          "Divides positive, multiplies negative logits of tokens that stand in the sequence; 1 is off."),
     FIELD(repetition_penalty), .kind = OPTION_REAL, .automatic = true, .fits = is_penalty, .info.range = "0 < x"},
    {INFO("sampling", "top_k", "integer | auto", "auto", "Keep this many of the likeliest tokens; 0 is all."),
     FIELD(top_k), .kind = OPTION_I32, .automatic = true, RANGE(0, 2147483647)},

    {INFO("parallel", "threads", "integer | auto", "auto",
          "CPU threads of the backend; auto is as many as CPUs this process may use."),
     FIELD(threads), .kind = OPTION_U32, .automatic = true, RANGE(1, 1024)},

    {INFO("store", "backend", "memory | lmdb | redis", "memory",
          "What keeps the sequences: the engine alone, a folder that survives it, or a Redis that engines share."),
     FIELD(store_backend), .kind = OPTION_WORD, .info.range = ""},
    {INFO("store", "path", "path", "", "The folder of lmdb, made if it is not there."), FIELD(store_path),
     .kind = OPTION_PATH, .info.range = ""},
    {INFO("store", "address", "text", "127.0.0.1:6379", "Where redis is: HOST, HOST:PORT or unix:PATH."),
     FIELD(store_address), .kind = OPTION_TEXT, .info.range = ""},
    {INFO("store", "prefix", "text", "perch",
          "What all keys in redis begin with. Engines with the same prefix share their sequences."),
     FIELD(store_prefix), .kind = OPTION_TEXT, .info.range = ""},
    {INFO("store", "password_file", "path", "", "A file whose first line is the password for redis; empty is none."),
     FIELD(store_password_file), .kind = OPTION_PATH, .info.range = ""},
    {INFO("store", "timeout_ms", "integer", "1000",
          "How long redis may take to connect, and to answer; then it counts as failed."),
     FIELD(store_timeout_ms), .kind = OPTION_U32, RANGE(1, 600000)},
    {INFO("store", "lease_ms", "integer", "10000",
          "An engine that gave redis no sign of life for so long loses its sequences to whoever opens them."),
     FIELD(store_lease_ms), .kind = OPTION_U32, RANGE(100, 3600000)},
    {INFO("store", "max_bytes", "bytes", "0",
          "Room for all sequences in the store, 4 bytes a token and 512 a sequence; beyond it those not open are "
          "retired, the least recently used first. 0 is no limit."),
     FIELD(store_max_bytes), .kind = OPTION_U64, .sized = true, RANGE(0, 18446744073709551615)},
    {INFO("store", "ttl", "integer", "0",
          "Seconds after which a sequence that is not open and was not used is retired; 0 is never."),
     FIELD(store_ttl), .kind = OPTION_U64, RANGE(0, 3155760000)},
};

enum { N_OPTIONS = sizeof table / sizeof table[0] };

const perch_option_info *perch_options_key(size_t index) { return index < N_OPTIONS ? &table[index].info : NULL; }

/* ---------------------------------------------------------------- look-up -- */

static bool is_section(const char *section) {
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcasecmp(table[i].info.section, section) == 0) {
            return true;
        }
    }
    return false;
}

static const option *find(const char *section, const char *key) {
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcasecmp(table[i].info.section, section) == 0 && strcasecmp(table[i].info.key, key) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

/* The reason alone, with the key that was perhaps meant: in its section first, elsewhere by its exact name. */
static perch_status unknown_key(const char *section, const char *key, perch_error *err) {
    const option *meant = NULL;
    unsigned best = UINT_MAX, distance;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcasecmp(table[i].info.section, section) == 0 && word_resembles(key, table[i].info.key, &distance) &&
            distance < best) {
            best = distance;
            meant = &table[i];
        }
    }
    if (meant) {
        return err_set(err, PERCH_E_CONFIG, "unknown key (did you mean %s?)", meant->info.key);
    }
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (strcasecmp(table[i].info.key, key) == 0) {
            return err_set(err, PERCH_E_CONFIG, "unknown key (it belongs to [%s])", table[i].info.section);
        }
    }
    return err_set(err, PERCH_E_CONFIG, "unknown key");
}

static perch_status unknown_section(const char *section, perch_error *err) {
    const char *meant = NULL;
    unsigned best = UINT_MAX, distance;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (word_resembles(section, table[i].info.section, &distance) && distance < best) {
            best = distance;
            meant = table[i].info.section;
        }
    }
    return meant ? err_set(err, PERCH_E_CONFIG, "unknown section (did you mean [%s]?)", meant)
                 : err_set(err, PERCH_E_CONFIG, "unknown section");
}

static perch_status check_handle(const perch_options *options, perch_error *err) {
    if (!options) {
        return err_set(err, PERCH_E_INVALID, "options: NULL");
    }
    if (options->struct_size != sizeof *options) {
        return err_set(err, PERCH_E_INVALID, "options.struct_size: %zu is not %zu; fill it in by perch_options_init",
                       options->struct_size, sizeof *options);
    }
    return PERCH_OK;
}

/* --------------------------------------------------------- init, set, get -- */

perch_status perch_options_init(perch_options *options, size_t struct_size) {
    if (!options || struct_size != sizeof *options) {
        return PERCH_E_INVALID;
    }
    memset(options, 0, sizeof *options);
    options->struct_size = struct_size;
    for (size_t i = 0; i < N_OPTIONS; i++) {
        perch_status status = option_parse(&table[i], table[i].info.default_value, options, NULL);
        if (status) {
            return status;
        }
    }
    return PERCH_OK;
}

/* Splits "section.key" and finds the option. On failure: unknown (E_CONFIG), the message complete. */
static perch_status find_dotted(const char *section_key, const option **out, perch_error *err) {
    char section[64];
    const char *dot = section_key ? strchr(section_key, '.') : NULL;
    if (!dot || dot == section_key || !dot[1] || (size_t)(dot - section_key) >= sizeof section) {
        return err_set(err, PERCH_E_CONFIG, "'%.64s' is no key: section.key is expected, like engine.max_batch_size",
                       section_key ? section_key : "");
    }
    memcpy(section, section_key, (size_t)(dot - section_key));
    section[dot - section_key] = 0;
    *out = find(section, dot + 1);
    if (*out) {
        return PERCH_OK;
    }
    perch_status status = is_section(section) ? unknown_key(section, dot + 1, err) : unknown_section(section, err);
    return err_prefix(err, status, "[%s] %.64s", section, dot + 1);
}

perch_status perch_options_set(perch_options *options, const char *section_key, const char *value, perch_error *err) {
    const option *o;
    perch_status status = check_handle(options, err);
    if (status) {
        return status;
    }
    if ((status = find_dotted(section_key, &o, err))) {
        return status;
    }
    if (!value) {
        return err_set(err, PERCH_E_INVALID, "[%s] %s: the value is NULL", o->info.section, o->info.key);
    }
    status = option_parse(o, value, options, err);
    return status ? err_prefix(err, status, "[%s] %s", o->info.section, o->info.key) : PERCH_OK;
}

perch_status perch_options_get(const perch_options *options, const char *section_key, char *out, size_t cap,
                               perch_error *err) {
    const option *o;
    perch_status status = check_handle(options, err);
    if (status) {
        return status;
    }
    if (find_dotted(section_key, &o, err)) {
        return err_prefix(err, PERCH_E_NOT_FOUND, "no such option");
    }
    size_t n = option_format(o, options, out, out ? cap : 0);
    if (!out || n >= cap) {
        return err_set(err, PERCH_E_BUFFER, "[%s] %s: %zu bytes are needed, the buffer has %zu", o->info.section,
                       o->info.key, n + 1, out ? cap : 0);
    }
    return PERCH_OK;
}

/* -------------------------------------------------------------- INI files -- */

/* A relative path is meant from the folder of the file that it stands in. */
static perch_status set_path(const option *o, const char *file, const char *value, perch_options *options,
                             perch_error *err) {
    const char *slash = strrchr(file, '/');
    char joined[PERCH_PATH_CAP];
    if (!slash || *value == '/' || *value == 0 || (o->automatic && strcasecmp(value, "auto") == 0)) {
        return option_parse(o, value, options, err);
    }
    int n = snprintf(joined, sizeof joined, "%.*s%s", (int)(slash + 1 - file), file, value);
    if (n < 0 || (size_t)n >= sizeof joined) {
        return err_set(err, PERCH_E_CONFIG,
                       "the path with the file's folder before it is %d bytes long, %d are allowed", n,
                       PERCH_PATH_CAP - 1);
    }
    return option_parse(o, joined, options, err);
}

static perch_status host_key(const perch_ini_host *host, const ini_entry *entry, perch_error *err) {
    perch_error reason = {PERCH_OK, ""};
    perch_status status = host->key(host->user, entry->section, entry->key, entry->value, &reason);
    if (status == PERCH_OK) {
        return PERCH_OK;
    }
    const char *text = reason.message[0]             ? reason.message
                       : status == PERCH_E_NOT_FOUND ? "unknown section or key"
                                                     : perch_status_text(status);
    return err_set(err, PERCH_E_CONFIG, "%s", text);
}

static perch_status apply_entry(perch_options *options, const char *file, const ini_entry *entry,
                                const perch_ini_host *host, perch_error *err) {
    if (!is_section(entry->section)) {
        if (!host) {
            return err_prefix(err, unknown_section(entry->section, err), "%s: [%s]", file, entry->section);
        }
        if (!entry->key) {
            return PERCH_OK;
        }
        perch_status status = host_key(host, entry, err);
        return status ? err_prefix(err, status, "%s: [%s] %s", file, entry->section, entry->key) : PERCH_OK;
    }
    if (!entry->key) {
        return PERCH_OK;
    }
    const option *o = find(entry->section, entry->key);
    perch_status status = !o                       ? unknown_key(entry->section, entry->key, err)
                          : o->kind == OPTION_PATH ? set_path(o, file, entry->value, options, err)
                                                   : option_parse(o, entry->value, options, err);
    return status ? err_prefix(err, status, "%s: [%s] %s", file, entry->section, entry->key) : PERCH_OK;
}

perch_status perch_options_load_ini(perch_options *options, const char *file, const perch_ini_host *host,
                                    perch_error *err) {
    ini *parsed;
    perch_status status = check_handle(options, err);
    if (status) {
        return status;
    }
    if (!file || (host && !host->key)) {
        return err_set(err, PERCH_E_INVALID, "%s: NULL", file ? "host.key" : "file");
    }
    if ((status = ini_load(file, &parsed, err))) {
        return status;
    }
    perch_options changed = *options;
    for (size_t i = 0; i < parsed->n_entries && !status; i++) {
        status = apply_entry(&changed, file, &parsed->entries[i], host, err);
    }
    if (!status) {
        *options = changed;
    }
    ini_destroy(parsed);
    return status;
}

/* ------------------------------------------------------------------ check -- */

perch_status options_check(const perch_options *options, perch_error *err) {
    perch_status status = check_handle(options, err);
    if (status) {
        return status;
    }
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if ((status = option_check(&table[i], options, err))) {
            return err_prefix(err, status, "[%s] %s", table[i].info.section, table[i].info.key);
        }
    }
    if (!options->path[0]) {
        return err_set(err, PERCH_E_CONFIG, "[model] path: not set");
    }
    if (options->max_step_tokens < options->max_batch_size + options->prefill_reserve) {
        return err_set(err, PERCH_E_CONFIG,
                       "[engine] max_step_tokens: %u is less than max_batch_size %u + prefill_reserve %u",
                       options->max_step_tokens, options->max_batch_size, options->prefill_reserve);
    }
    if (options->disk_bytes && !options->disk_path[0]) {
        return err_set(err, PERCH_E_CONFIG, "[cache] disk_path: not set, and disk_bytes is %llu",
                       (unsigned long long)options->disk_bytes);
    }
    if (options->store_backend == PERCH_STORE_LMDB && !options->store_path[0]) {
        return err_set(err, PERCH_E_CONFIG, "[store] path: not set, and backend is lmdb");
    }
    return PERCH_OK;
}
