/* options: defaults, every key's way in and out as text, and what is refused, word for word. */
#include "engine/options.h"

#include "tests/support/check.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static perch_options defaults(void) {
    perch_options o;
    CU_ASSERT_EQUAL(perch_options_init(&o, sizeof o), PERCH_OK);
    return o;
}

static void test_defaults(void) {
    perch_options o = defaults();
    CU_ASSERT_EQUAL(o.struct_size, sizeof o);
    CU_ASSERT_EQUAL(o.device, PERCH_DEVICE_AUTO);
    CU_ASSERT_EQUAL(o.queue_full, PERCH_QUEUE_WAIT);
    CU_ASSERT_EQUAL(o.session_len, 0);
    CU_ASSERT_EQUAL(o.max_batch_size, 16);
    CU_ASSERT_EQUAL(o.max_step_tokens, 256);
    CU_ASSERT_EQUAL(o.prefill_reserve, 32);
    CU_ASSERT_EQUAL(o.queue_size, 1024);
    CU_ASSERT_EQUAL(o.age_steps, 256);
    CU_ASSERT_EQUAL(o.bypass_limit, 64);
    CU_ASSERT_STRING_EQUAL(o.path, "");
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, "");
    CU_ASSERT_EQUAL(o.weights, PERCH_WEIGHTS_FILE);
    CU_ASSERT_EQUAL(o.dtype, PERCH_DTYPE_AUTO);
    CU_ASSERT_EQUAL(o.weight_format, PERCH_WEIGHT_FORMAT_AUTO);
    CU_ASSERT_EQUAL(o.random_seed, 0);
    CU_ASSERT_EQUAL(o.mapping, PERCH_MAPPING_AUTO);
    CU_ASSERT_EQUAL(o.gpu, 0);
    CU_ASSERT_EQUAL(o.deterministic, PERCH_ON);
    CU_ASSERT_EQUAL(o.graphs, PERCH_ON);
    CU_ASSERT_STRING_EQUAL(o.cache_dir, "");
    CU_ASSERT_EQUAL(o.cache_chunk_size, 1);
    CU_ASSERT_EQUAL(o.cache_max_entry_count, 0.8);
    CU_ASSERT_EQUAL(o.cache_bytes, 0);
    CU_ASSERT_EQUAL(o.page_bytes, 0);
    CU_ASSERT_TRUE(isnan(o.temperature) && isnan(o.top_p) && isnan(o.min_p) && isnan(o.typical_p));
    CU_ASSERT_TRUE(isnan(o.repetition_penalty));
    CU_ASSERT_EQUAL(o.top_k, -1);
    CU_ASSERT_EQUAL(o.threads, 0);
    CU_ASSERT_PTR_NULL(o.progress);
    CU_ASSERT_PTR_NULL(o.progress_user);
}

static void test_unknown_sizes_are_refused(void) {
    perch_options o = defaults();
    perch_error err;
    char text[8], message[128];
    CU_ASSERT_EQUAL(perch_options_init(NULL, sizeof o), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_options_init(&o, sizeof o - 1), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_options_init(&o, 0), PERCH_E_INVALID);
    o.struct_size++;
    snprintf(message, sizeof message, "options.struct_size: %zu is not %zu; fill it in by perch_options_init",
             o.struct_size, sizeof o);
    CU_ASSERT_EQUAL(perch_options_set(&o, "parallel.threads", "1", &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, message);
    CU_ASSERT_EQUAL(perch_options_get(&o, "parallel.threads", text, sizeof text, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, "x.ini", NULL, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(options_check(&o, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_options_set(NULL, "parallel.threads", "1", &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, "options: NULL");
}

/* For each key: texts that are taken (and how they are written back) and texts that aren't. */
static const struct {
    const char *key;
    const char *good[6][2];
    const char *bad[7];
} keys[] = {
    {"engine.device", {{"cpu", "cpu"}, {"CPU", "cpu"}, {"cuda", "cuda"}, {"auto", "auto"}}, {"gpu", "", "cpu ", "aut"}},
    {"engine.gpu", {{"0", "0"}, {"255", "255"}}, {"256", "-1", "auto"}},
    {"engine.deterministic", {{"on", "on"}, {"off", "off"}, {"OFF", "off"}}, {"1", "yes", ""}},
    {"engine.graphs", {{"on", "on"}, {"off", "off"}}, {"0", "true"}},
    {"engine.stats_file", {{"/run/p", "/run/p"}, {"auto", "auto"}, {"", ""}}, {NULL}},
    {"engine.trace_file", {{"/tmp/t.json", "/tmp/t.json"}, {"", ""}}, {NULL}},
    {"engine.queue_full", {{"refuse", "refuse"}, {"wait", "wait"}}, {"", "1", "|"}},
    {"engine.session_len",
     {{"1", "1"}, {"16777216", "16777216"}, {"auto", "auto"}, {"Auto", "auto"}, {"0", "auto"}},
     {"16777217", "-1", "4K", "", "automatic"}},
    {"engine.max_batch_size",
     {{"1", "1"}, {"4096", "4096"}, {"007", "7"}},
     {"0", "4097", "auto", "1.0", "0x10", "+1", " 1"}},
    {"engine.max_step_tokens", {{"2", "2"}, {"1048576", "1048576"}}, {"1", "1048577", "99999999999999999999999"}},
    {"engine.prefill_reserve", {{"1", "1"}, {"1048576", "1048576"}}, {"0", "1048577"}},
    {"engine.queue_size", {{"1", "1"}, {"1048576", "1048576"}}, {"0", "1048577"}},
    {"engine.age_steps", {{"0", "0"}, {"-0", "0"}, {"1000000000", "1000000000"}}, {"-1", "1000000001", "4294967296"}},
    {"engine.bypass_limit", {{"0", "0"}, {"1000000000", "1000000000"}}, {"-1", "1000000001"}},
    {"engine.schedule", {{"fcfs", "fcfs"}, {"prefix", "prefix"}}, {"auto", "lifo", ""}},
    {"engine.prefix_patience", {{"0", "0"}, {"64", "64"}, {"1000000000", "1000000000"}}, {"-1", "1000000001"}},
    {"model.path", {{"a b/\xC3\xA4", "a b/\xC3\xA4"}, {"/x", "/x"}, {"", ""}}, {NULL}},
    {"model.tokenizer_path", {{"t.json", "t.json"}}, {NULL}},
    {"model.weights", {{"random", "random"}, {"file", "file"}}, {"none"}},
    {"model.dtype", {{"f32", "f32"}, {"BF16", "bf16"}, {"f16", "f16"}, {"auto", "auto"}}, {"fp16", "f", "32"}},
    {"model.weight_format",
     {{"auto", "auto"}, {"BF16", "bf16"}, {"int8", "int8"}, {"int4", "int4"}},
     {"q4", "i8", "f32"}},
    {"model.random_seed",
     {{"18446744073709551615", "18446744073709551615"}, {"0", "0"}},
     {"18446744073709551616", "-1", "1K", "1e3"}},
    {"model.cache_dir", {{"/var/cache/x", "/var/cache/x"}, {"", ""}}, {NULL}},
    {"cache.mapping", {{"vmm", "vmm"}, {"table", "table"}, {"auto", "auto"}}, {"paged", ""}},
    {"cache.cache_chunk_size", {{"-1", "-1"}, {"1", "1"}, {"1048576", "1048576"}}, {"0", "-2", "1048577", "auto"}},
    {"cache.cache_max_entry_count",
     {{"0.8", "0.8"},
      {"1e-3", "0.001"},
      {"0.30000000000000004", "0.30000000000000004"},
      {"1", "1"},
      {"1e6", "1000000"}},
     {"0", "-0.5", "1.5", "1000001", "nan", "inf", "auto"}},
    {"cache.cache_bytes",
     {{"0", "0"},
      {"1025", "1025"},
      {"512M", "512M"},
      {"1024k", "1M"},
      {"3T", "3T"},
      {"18446744073709551615", "18446744073709551615"}},
     {"-1", "1.5G", "16777216T", "M", "5MB", "5 M", "18446744073709551616"}},
    {"cache.page_bytes",
     {{"4096", "4K"}, {"64K", "64K"}, {"2M", "2M"}, {"1G", "1G"}, {"auto", "auto"}, {"0", "auto"}},
     {"2048", "2G", "12K", "-4096", "1"}},
    {"cache.host_bytes", {{"0", "0"}, {"1025", "1025"}, {"64G", "64G"}}, {"-1", "auto", "1.5G"}},
    {"cache.disk_bytes", {{"0", "0"}, {"1025", "1025"}, {"2T", "2T"}}, {"-1", "auto", "1.5G"}},
    {"cache.disk_path", {{"/var/lib/perch/kv", "/var/lib/perch/kv"}, {"", ""}}, {NULL}},
    {"cache.disk_keep_ms", {{"0", "0"}, {"5000", "5000"}}, {"-1", "3600001", "x"}},
    {"cache.restore",
     {{"auto", "auto"}, {"load", "load"}, {"Compute", "compute"}, {"both", "both"}},
     {"recompute", "", "1"}},
    {"cache.policy", {{"lru", "lru"}, {"COST", "cost"}}, {"lfu", ""}},
    {"cache.prefix_index", {{"on", "on"}, {"off", "off"}}, {"auto", "", "1"}},
    {"sampling.temperature",
     {{"0", "0"}, {"0.7", "0.7"}, {"100", "100"}, {"auto", "auto"}},
     {"-0.1", "nan", "1e999", "", "0x1"}},
    {"sampling.top_p", {{"1", "1"}, {"0.9", "0.9"}, {"1e-9", "1e-09"}, {"auto", "auto"}}, {"0", "1.01", "-1", "0,9"}},
    {"sampling.min_p", {{"0", "0"}, {".05", "0.05"}, {"auto", "auto"}}, {"1", "-0.01", "0.1x"}},
    {"sampling.typical_p", {{"1", "1"}, {"0.2", "0.2"}, {"auto", "auto"}}, {"0", "1.01"}},
    {"sampling.repetition_penalty", {{"1", "1"}, {"1.1", "1.1"}, {"auto", "auto"}}, {"0", "-1"}},
    {"sampling.top_k",
     {{"0", "0"}, {"50", "50"}, {"2147483647", "2147483647"}, {"auto", "auto"}, {"-1", "auto"}},
     {"-2", "2147483648"}},
    {"parallel.threads", {{"1", "1"}, {"1024", "1024"}, {"auto", "auto"}}, {"1025", "-1"}},
    {"store.backend", {{"memory", "memory"}, {"LMDB", "lmdb"}, {"redis", "redis"}}, {"disk", ""}},
    {"store.path", {{"/var/lib/perch", "/var/lib/perch"}, {"", ""}}, {NULL}},
    {"store.address", {{"unix:/run/redis.sock", "unix:/run/redis.sock"}, {"[::1]:6379", "[::1]:6379"}}, {NULL}},
    {"store.prefix", {{"{perch}", "{perch}"}, {"", ""}}, {NULL}},
    {"store.password_file", {{"/run/secrets/redis", "/run/secrets/redis"}, {"", ""}}, {NULL}},
    {"store.timeout_ms", {{"1", "1"}, {"600000", "600000"}}, {"0", "600001", "auto"}},
    {"store.lease_ms", {{"100", "100"}, {"3600000", "3600000"}}, {"99", "3600001"}},
    {"store.max_bytes", {{"0", "0"}, {"10G", "10G"}}, {"-1", "much"}},
    {"store.ttl", {{"0", "0"}, {"86400", "86400"}, {"3155760000", "3155760000"}}, {"-1", "3155760001", "1h"}},
};

static void check_good(const char *key, const char *text, const char *expected) {
    perch_options o = defaults(), again = defaults();
    perch_error err = {PERCH_OK, ""};
    char out[PERCH_PATH_CAP] = "?";
    CHECK_MSG(perch_options_set(&o, key, text, &err) == PERCH_OK, "%s = %s: %s", key, text, err.message);
    CHECK_MSG(perch_options_get(&o, key, out, sizeof out, &err) == PERCH_OK && strcmp(out, expected) == 0,
              "%s = %s: '%s', should be '%s'", key, text, out, expected);
    CU_ASSERT_EQUAL(perch_options_set(&again, key, out, &err), PERCH_OK);
    /* Only this field is touched, and the text that comes back sets the same bits. */
    CHECK_MSG(memcmp(&o, &again, sizeof o) == 0, "%s = %s: another value after '%s'", key, text, out);
}

static void check_bad(const char *key, const char *text) {
    perch_options o = defaults(), before = o;
    perch_error err = {PERCH_OK, ""};
    char start[128];
    snprintf(start, sizeof start, "[%.*s] %s: ", (int)strcspn(key, "."), key, strchr(key, '.') + 1);
    CHECK_MSG(perch_options_set(&o, key, text, &err) == PERCH_E_CONFIG, "%s = %s was taken", key, text);
    CHECK_MSG(strncmp(err.message, start, strlen(start)) == 0 && err.status == PERCH_E_CONFIG, "%s = %s: %s", key, text,
              err.message);
    CHECK_MSG(strstr(err.message, text) != NULL, "'%s' is not in '%s'", text, err.message);
    CU_ASSERT_EQUAL(memcmp(&o, &before, sizeof o), 0);
    CU_ASSERT_EQUAL(perch_options_set(&o, key, text, NULL), PERCH_E_CONFIG);
}

static void test_every_key(void) {
    size_t n = sizeof keys / sizeof keys[0];
    for (size_t i = 0; i < n; i++) {
        const perch_option_info *info = perch_options_key(i);
        char name[128];
        CU_ASSERT_PTR_NOT_NULL_FATAL(info);
        snprintf(name, sizeof name, "%s.%s", info->section, info->key);
        CHECK_MSG(strcmp(name, keys[i].key) == 0, "the %zu-th key is %s, should be %s", i, name, keys[i].key);
        check_good(name, info->default_value, info->default_value);
        for (size_t j = 0; j < 6 && keys[i].good[j][0]; j++) {
            check_good(name, keys[i].good[j][0], keys[i].good[j][1]);
        }
        for (size_t j = 0; j < 7 && keys[i].bad[j]; j++) {
            check_bad(name, keys[i].bad[j]);
        }
        CU_ASSERT_TRUE(strlen(info->help) > 10 && info->help[strlen(info->help) - 1] == '.');
    }
    CU_ASSERT_PTR_NULL(perch_options_key(n));
    CU_ASSERT_PTR_NULL(perch_options_key(SIZE_MAX));
}

static void test_set_writes_the_field(void) {
    perch_options o = defaults();
    static const char *const settings[][2] = {
        {"engine.queue_full", "refuse"},
        {"engine.bypass_limit", "9"},
        {"model.path", "m"},
        {"model.dtype", "bf16"},
        {"model.random_seed", "18446744073709551615"},
        {"cache.cache_chunk_size", "-1"},
        {"cache.page_bytes", "64K"},
        {"cache.cache_max_entry_count", "3"},
        {"sampling.top_k", "5"},
        {"sampling.min_p", "0.25"},
        {"parallel.threads", "2"},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        CU_ASSERT_EQUAL(perch_options_set(&o, settings[i][0], settings[i][1], NULL), PERCH_OK);
    }
    CU_ASSERT_EQUAL(o.queue_full, PERCH_QUEUE_REFUSE);
    CU_ASSERT_EQUAL(o.bypass_limit, 9);
    CU_ASSERT_STRING_EQUAL(o.path, "m");
    CU_ASSERT_EQUAL(o.dtype, PERCH_DTYPE_BF16);
    CU_ASSERT_EQUAL(o.random_seed, UINT64_MAX);
    CU_ASSERT_EQUAL(o.cache_chunk_size, -1);
    CU_ASSERT_EQUAL(o.page_bytes, 65536);
    CU_ASSERT_EQUAL(o.cache_max_entry_count, 3);
    CU_ASSERT_EQUAL(o.top_k, 5);
    CU_ASSERT_EQUAL(o.min_p, 0.25);
    CU_ASSERT_EQUAL(o.threads, 2);
}

static void test_errors_word_for_word(void) {
    static const char *const cases[][3] = {
        {"engine.max_batch_size", "0", "[engine] max_batch_size: 0 is out of range 1..4096"},
        {"engine.max_batch_size", "many", "[engine] max_batch_size: 'many' is not an integer"},
        {"engine.session_len", "-5", "[engine] session_len: -5 is out of range 1..16777216 (or auto)"},
        {"engine.device", "gpu", "[engine] device: 'gpu' is not one of auto | cpu | cuda"},
        {"cache.cache_bytes", "2MB", "[cache] cache_bytes: '2MB' is not a number of bytes, like 65536 or 512M"},
        {"cache.page_bytes", "12K", "[cache] page_bytes: 12K is out of range 4K..1G, powers of two (or auto)"},
        {"cache.cache_max_entry_count", "1.5",
         "[cache] cache_max_entry_count: 1.5 is out of range 0 < x < 1 or an integer 1..1000000"},
        {"sampling.top_p", "zero", "[sampling] top_p: 'zero' is not a finite number"},
        {"sampling.temperature", "1e999", "[sampling] temperature: '1e999' is not a finite number"},
        {"sampling.top_p", "0", "[sampling] top_p: 0 is out of range 0 < x <= 1 (or auto)"},
        {"cache.cache_chunk_sise", "1", "[cache] cache_chunk_sise: unknown key (did you mean cache_chunk_size?)"},
        {"cache.Cache_Chunk_Sise", "1", "[cache] Cache_Chunk_Sise: unknown key (did you mean cache_chunk_size?)"},
        {"engine.threads", "1", "[engine] threads: unknown key (it belongs to [parallel])"},
        {"engine.quite_different", "1", "[engine] quite_different: unknown key"},
        {"cahce.page_bytes", "1", "[cahce] page_bytes: unknown section (did you mean [cache]?)"},
        {"bench.x", "1", "[bench] x: unknown section"},
        {"threads", "1", "'threads' is no key: section.key is expected, like engine.max_batch_size"},
        {".threads", "1", "'.threads' is no key: section.key is expected, like engine.max_batch_size"},
        {"parallel.", "1", "'parallel.' is no key: section.key is expected, like engine.max_batch_size"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        perch_options o = defaults();
        perch_error err = {PERCH_OK, ""};
        CU_ASSERT_EQUAL(perch_options_set(&o, cases[i][0], cases[i][1], &err), PERCH_E_CONFIG);
        CHECK_MSG(strcmp(err.message, cases[i][2]) == 0, "'%s' instead of '%s'", err.message, cases[i][2]);
    }
}

static void test_long_texts(void) {
    perch_options o = defaults();
    perch_error err;
    char text[PERCH_PATH_CAP + 1], out[PERCH_PATH_CAP];
    memset(text, 'x', sizeof text);
    text[PERCH_PATH_CAP] = 0;
    CU_ASSERT_EQUAL(perch_options_set(&o, "model.path", text, &err), PERCH_E_CONFIG);
    CU_ASSERT_STRING_EQUAL(err.message, "[model] path: the path is 1024 bytes long, 1023 are allowed");
    CU_ASSERT_EQUAL(perch_options_set(&o, "engine.device", text, &err), PERCH_E_CONFIG);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "xxx...' is not one of auto | cpu | cuda"));
    text[PERCH_PATH_CAP - 1] = 0;
    CU_ASSERT_EQUAL(perch_options_set(&o, "model.path", text, &err), PERCH_OK);
    CU_ASSERT_EQUAL(perch_options_get(&o, "model.path", out, sizeof out, &err), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(out, text);
    CU_ASSERT_EQUAL(perch_options_set(&o, text, "1", &err), PERCH_E_CONFIG);
}

static void test_get_refuses(void) {
    perch_options o = defaults();
    perch_error err;
    char out[5];
    CU_ASSERT_EQUAL(perch_options_get(&o, "engine.max_step_tokens", out, 4, &err), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(out, "256");
    CU_ASSERT_EQUAL(perch_options_get(&o, "engine.max_step_tokens", out, 3, &err), PERCH_E_BUFFER);
    CU_ASSERT_STRING_EQUAL(err.message, "[engine] max_step_tokens: 4 bytes are needed, the buffer has 3");
    CU_ASSERT_EQUAL(perch_options_get(&o, "engine.max_step_tokens", NULL, 3, &err), PERCH_E_BUFFER);
    CU_ASSERT_EQUAL(perch_options_get(&o, "engine.max_step", out, sizeof out, &err), PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(err.status, PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(perch_options_get(&o, NULL, out, sizeof out, &err), PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(perch_options_set(&o, "engine.max_step_tokens", NULL, &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, "[engine] max_step_tokens: the value is NULL");
}

static void check_refused(const perch_options *o, const char *message) {
    perch_error err = {PERCH_OK, ""};
    CU_ASSERT_EQUAL(options_check(o, &err), PERCH_E_CONFIG);
    CHECK_MSG(strcmp(err.message, message) == 0, "'%s' instead of '%s'", err.message, message);
}

static void test_fields_set_directly_are_checked(void) {
    perch_options good = defaults(), o;
    check_refused(&good, "[model] path: not set");
    strcpy(good.path, "m");
    CU_ASSERT_EQUAL(options_check(&good, NULL), PERCH_OK);

#define REFUSED(change, message)                                                                                       \
    do {                                                                                                               \
        o = good;                                                                                                      \
        change;                                                                                                        \
        check_refused(&o, message);                                                                                    \
    } while (0)
    REFUSED(o.device = (perch_device)3, "[engine] device: the value 3 stands for none of auto | cpu | cuda");
    REFUSED(o.mapping = (perch_mapping)-1,
            "[cache] mapping: the value 4294967295 stands for none of auto | vmm | table");
    REFUSED(o.max_batch_size = 0, "[engine] max_batch_size: 0 is out of range 1..4096");
    REFUSED(o.session_len = UINT32_MAX, "[engine] session_len: 4294967295 is out of range 1..16777216 (or auto)");
    REFUSED(o.cache_chunk_size = INT32_MIN, "[cache] cache_chunk_size: -2147483648 is out of range -1 or 1..1048576");
    REFUSED(o.cache_max_entry_count = NAN,
            "[cache] cache_max_entry_count: nan is out of range 0 < x < 1 or an integer 1..1000000");
    REFUSED(o.cache_max_entry_count = INFINITY,
            "[cache] cache_max_entry_count: inf is out of range 0 < x < 1 or an integer 1..1000000");
    REFUSED(o.page_bytes = 5000, "[cache] page_bytes: 5000 is out of range 4K..1G, powers of two (or auto)");
    REFUSED(o.temperature = INFINITY, "[sampling] temperature: inf is out of range 0 <= x (or auto)");
    REFUSED(o.top_k = -2, "[sampling] top_k: -2 is out of range 0..2147483647 (or auto)");
    REFUSED(memset(o.tokenizer_path, 'x', sizeof o.tokenizer_path),
            "[model] tokenizer_path: the path has no end within 1024 bytes");
    REFUSED(o.max_batch_size = 225,
            "[engine] max_step_tokens: 256 is less than max_batch_size 225 + prefill_reserve 32");
#undef REFUSED
    good.max_batch_size = 224;
    CU_ASSERT_EQUAL(options_check(&good, NULL), PERCH_OK);
}

static void test_a_decimal_comma_of_the_host_does_not_matter(void) {
    static const char *const locales[] = {"de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "it_IT.UTF-8", "ru_RU.UTF-8"};
    size_t i = 0, n = sizeof locales / sizeof locales[0];
    while (i < n && !setlocale(LC_ALL, locales[i])) {
        i++;
    }
    if (i == n) {
        test_skip("no locale with a decimal comma is installed");
        return;
    }
    check_good("sampling.top_p", "0.9", "0.9");
    check_bad("sampling.top_p", "0,9");
    setlocale(LC_ALL, "C");
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"defaults", test_defaults},
        {"unknown_sizes_are_refused", test_unknown_sizes_are_refused},
        {"every_key_in_and_out", test_every_key},
        {"set_writes_the_field", test_set_writes_the_field},
        {"errors_word_for_word", test_errors_word_for_word},
        {"long_texts", test_long_texts},
        {"get_refuses", test_get_refuses},
        {"fields_set_directly_are_checked", test_fields_set_directly_are_checked},
        {"a_decimal_comma_of_the_host_does_not_matter", test_a_decimal_comma_of_the_host_does_not_matter},
    };
    return test_main("options", tests, sizeof tests / sizeof tests[0], argc, argv);
}
