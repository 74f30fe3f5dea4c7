/* INI files: what they set, and that whatever is wrong with one is said with file, section and key. */
#include "engine/options.h"

#include "tests/support/check.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALL_KEYS "tests/fuzz/corpus/ini/all_quoted" /* a seed of the fuzz target that has every key */

static char folder[64];

/* The path of a file in the test's own folder; static buffer. */
static const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_ini(const char *bytes, size_t n) {
    const char *path = in_folder("t.ini");
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, n, file) != n) {
        CU_FAIL_FATAL("the test's file can't be written");
    }
    fclose(file);
    return path;
}

/* Loads text over the defaults; *message gets the error, or "". Checks that a failure changes nothing. */
static perch_status load(const char *text, size_t n, const perch_ini_host *host, perch_options *o, char message[512]) {
    perch_error err = {PERCH_OK, ""};
    const char *path = write_ini(text, n);
    CU_ASSERT_EQUAL(perch_options_init(o, sizeof *o), PERCH_OK);
    perch_options before = *o;
    perch_status status = perch_options_load_ini(o, path, host, &err);
    CU_ASSERT_EQUAL(status, err.status);
    if (status) {
        CU_ASSERT_EQUAL(memcmp(o, &before, sizeof before), 0);
    }
    strcpy(message, err.message);
    return status;
}

static perch_options loaded(const char *text) {
    perch_options o;
    char message[512];
    CHECK_MSG(load(text, strlen(text), NULL, &o, message) == PERCH_OK, "%s", message);
    return o;
}

/* The message must be the file's path, then ": ", then reason. */
static void check_refused(const char *text, size_t n, const char *reason) {
    perch_options o;
    char message[512], expected[512];
    snprintf(expected, sizeof expected, "%s: %s", in_folder("t.ini"), reason);
    perch_status status = load(text, n, NULL, &o, message);
    CHECK_MSG(status == PERCH_E_CONFIG && strcmp(message, expected) == 0, "%d '%s' instead of '%s'", status, message,
              expected);
}

static void refused(const char *text, const char *reason) { check_refused(text, strlen(text), reason); }

static void test_every_section(void) {
    perch_options o;
    CU_ASSERT_EQUAL(perch_options_init(&o, sizeof o), PERCH_OK);
    perch_error err = {PERCH_OK, ""};
    CHECK_MSG(perch_options_load_ini(&o, ALL_KEYS, NULL, &err) == PERCH_OK, "%s", err.message);
    CU_ASSERT_EQUAL(o.device, PERCH_DEVICE_CPU);
    CU_ASSERT_EQUAL(o.queue_full, PERCH_QUEUE_REFUSE);
    CU_ASSERT_EQUAL(o.session_len, 4096);
    CU_ASSERT_EQUAL(o.bypass_limit, 10);
    CU_ASSERT_STRING_EQUAL(o.path, "tests/fuzz/corpus/ini/models/some; thing");
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, "/abs/tokenizer.json");
    CU_ASSERT_EQUAL(o.random_seed, UINT64_MAX);
    CU_ASSERT_EQUAL(o.cache_chunk_size, -1);
    CU_ASSERT_EQUAL(o.cache_max_entry_count, 12);
    CU_ASSERT_EQUAL(o.cache_bytes, 512u << 20);
    CU_ASSERT_EQUAL(o.page_bytes, 64u << 10);
    CU_ASSERT_EQUAL(o.min_p, 0.05);
    CU_ASSERT_EQUAL(o.top_k, 40);
    CU_ASSERT_EQUAL(o.threads, 0);
}

static void test_what_is_not_there_stays(void) {
    perch_options o = loaded("");
    perch_error err;
    o.max_batch_size = 3;
    o.top_k = 7;
    const char *text = "[engine]\nqueue_size=5\n";
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, write_ini(text, strlen(text)), NULL, &err), PERCH_OK);
    CU_ASSERT_EQUAL(o.max_batch_size, 3);
    CU_ASSERT_EQUAL(o.top_k, 7);
    CU_ASSERT_EQUAL(o.queue_size, 5);
}

static void test_ways_to_write_a_line(void) {
    perch_options o =
        loaded("; comment\n  # comment\n\n[ ENGINE ]  \r\nMax_Batch_Size=3\t; rows\r\n  queue_size  =  4 # waiting\n"
               "age_steps = '5' ; quoted\n[Model]\npath = \"/a b ; c # d = e\" # a path\n"
               "tokenizer_path = /x'y\"z\n[engine]\nbypass_limit = 6");
    CU_ASSERT_EQUAL(o.max_batch_size, 3);
    CU_ASSERT_EQUAL(o.queue_size, 4);
    CU_ASSERT_EQUAL(o.age_steps, 5);
    CU_ASSERT_EQUAL(o.bypass_limit, 6);
    CU_ASSERT_STRING_EQUAL(o.path, "/a b ; c # d = e");
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, "/x'y\"z");
    o = loaded("[model]\npath =\ntokenizer_path = \"\" # none\n[cache]\n[sampling]\n");
    CU_ASSERT_STRING_EQUAL(o.path, "");
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, "");
    o = loaded("[model]\npath = '/spaces  '\ntokenizer_path = /a = b\n");
    CU_ASSERT_STRING_EQUAL(o.path, "/spaces  ");
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, "/a = b");
}

static void test_keys_are_refused_by_name(void) {
    refused("[cache]\ncache_chunk_sise = 1\n",
            "[cache] cache_chunk_sise: unknown key (did you mean cache_chunk_size?)");
    refused("[engine]\nmax_batch_size = 0\n", "[engine] max_batch_size: 0 is out of range 1..4096");
    refused("[engine]\nmax_batch_size =\n", "[engine] max_batch_size: '' is not an integer");
    refused("[engine]\nmax_batch_size = 1 2\n", "[engine] max_batch_size: '1 2' is not an integer");
    refused("[engine]\nthreads = 1\n", "[engine] threads: unknown key (it belongs to [parallel])");
    refused("[engine]\nqueue_size = 1\n[cache]\n[engine]\nQueue_Size = 1\n", "[engine] queue_size: repeated");
    refused("[bench]\nx = 1\n", "[bench]: unknown section");
    refused("[bench]\n", "[bench]: unknown section");
    refused("[engin]\nx = 1\n", "[engin]: unknown section (did you mean [engine]?)");
    refused("threads = 1\n[parallel]\n", "line 1: the key threads stands before any [section]");
}

static void test_lines_are_refused_by_number(void) {
    static const char *const grammar = "[section] or key = value is expected";
    static const char *const section = "[section] is expected, and nothing behind it";
    static const struct {
        const char *line;
        const char *const *reason;
    } cases[] = {{"x", &grammar},
                 {"key", &grammar},
                 {"= 1", &grammar},
                 {"a b = 1", &grammar},
                 {"k\xC3\xA4 = 1", &grammar},
                 {"key : 1", &grammar},
                 {"[]", &section},
                 {"[ ]", &section},
                 {"[cache", &section},
                 {"[cache] ; x", &section},
                 {"[ca che]", &section},
                 {"[a:b]", &section},
                 {"[[cache]]", &section},
                 {"[cache] x = 1 ]", &section},
                 {"\xEF\xBB\xBF[cache]", &grammar}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[128], reason[128];
        snprintf(text, sizeof text, "[engine]\n\n%s\nqueue_size = 1\n", cases[i].line);
        snprintf(reason, sizeof reason, "line 3: %s", *cases[i].reason);
        refused(text, reason);
        snprintf(text, sizeof text, "[engine]\n\n%s", cases[i].line); /* as the last line, without a newline */
        refused(text, reason);
    }
}

static void test_values_that_would_be_cut_are_refused(void) {
    refused("[model]\npath = a#b\n", "line 2: a value with # or ; has to stand in quotes");
    refused("[model]\npath = a;b\n", "line 2: a value with # or ; has to stand in quotes");
    refused("[model]\npath = \"a\n", "line 2: the quote is not closed");
    refused("[model]\npath = '\n", "line 2: the quote is not closed");
    refused("[model]\npath = \"a\" b\n", "line 2: something follows the closing quote");
    refused("[model]\npath = 'a' 'b'\n", "line 2: something follows the closing quote");
    refused("[model]\npath = a \\\n/b\n", "line 2: ends in a backslash; lines can't be continued");
    refused("# comment \\\n[model]\n", "line 1: ends in a backslash; lines can't be continued");
    check_refused("[model]\npath = a\0b\n", 18, "line 2: holds a control character");
    check_refused("[model]\npath = a\rb\n", 18, "line 2: holds a control character");
    check_refused("[model]\npath = \x7F\n", 17, "line 2: holds a control character");
}

static void test_sizes_are_limited(void) {
    size_t n = 300 * 1024;
    char *text = malloc(n);
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    memset(text, 'x', n);
    text[0] = '#';
    check_refused(text, n, "more than 262144 bytes");
    check_refused(text, 1023, "line 1: longer than 1022 bytes");

    memcpy(text, "[model]\npath = ", 15);
    text[8 + 1022] = '\n'; /* the second line has 1022 bytes, the path 1015 of them; the folder doesn't matter */
    text[15] = '/';
    perch_options o;
    char message[512];
    CHECK_MSG(load(text, 8 + 1023, NULL, &o, message) == PERCH_OK, "%s", message);
    CU_ASSERT_EQUAL(strlen(o.path), 1015);
    text[15] = 'x'; /* now it does */
    int bytes = (int)strlen(folder) + 1 + 1015;
    snprintf(message, sizeof message,
             "[model] path: the path with the file's folder before it is %d bytes long, 1023 are allowed", bytes);
    check_refused(text, 8 + 1023, message);

    size_t rest = PERCH_PATH_CAP - (strlen(folder) + 1); /* with the folder and a 0 one byte too many */
    text[15 + rest] = '\n';
    check_refused(text, 15 + rest,
                  "[model] path: the path with the file's folder before it is 1024 bytes long, 1023 are allowed");
    CHECK_MSG(load(text, 15 + rest - 1, NULL, &o, message) == PERCH_OK, "%s", message);
    CU_ASSERT_EQUAL(strlen(o.path), PERCH_PATH_CAP - 1);

    int at = sprintf(text, "[bench]\n");
    for (int i = 0; i < 1024; i++) {
        at += sprintf(text + at, "k%d = %d\n", i, i);
    }
    check_refused(text, (size_t)at, "more than 1024 sections and keys");
    memset(text, 'k', 100);
    memcpy(text + 64, "=1\n", 4);
    refused(text, "line 1: [section] or key = value is expected");
    free(text);
}

static void test_files_that_cannot_be_read(void) {
    perch_options o = loaded("");
    perch_error err;
    char message[256];
    snprintf(message, sizeof message, "%s: No such file or directory", in_folder("missing.ini"));
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, in_folder("missing.ini"), NULL, &err), PERCH_E_IO);
    CU_ASSERT_STRING_EQUAL(err.message, message);
    snprintf(message, sizeof message, "%s: Is a directory", folder);
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, folder, NULL, &err), PERCH_E_IO);
    CU_ASSERT_STRING_EQUAL(err.message, message);
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, NULL, NULL, &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, "file: NULL");
    const perch_ini_host host = {NULL, NULL};
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, in_folder("t.ini"), &host, &err), PERCH_E_INVALID);
    CU_ASSERT_STRING_EQUAL(err.message, "host.key: NULL");
}

static void test_relative_paths_are_from_the_files_folder(void) {
    static const char *const text = "[model]\npath = ../models/x\ntokenizer_path = t.json\n";
    char here[1024], expected[1200];
    perch_options o = loaded(text);
    snprintf(expected, sizeof expected, "%s/../models/x", folder);
    CU_ASSERT_STRING_EQUAL(o.path, expected);
    snprintf(expected, sizeof expected, "%s/t.json", folder);
    CU_ASSERT_STRING_EQUAL(o.tokenizer_path, expected);

    /* A file without a folder is in the working directory, where relative paths are from anyway. */
    CU_ASSERT_PTR_NOT_NULL_FATAL(getcwd(here, sizeof here));
    CU_ASSERT_EQUAL_FATAL(chdir(folder), 0);
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, "t.ini", NULL, NULL), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(o.path, "../models/x");
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, "./t.ini", NULL, NULL), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(o.path, "./../models/x");
    CU_ASSERT_EQUAL(chdir(here), 0);

    /* What the host sets is from the working directory. */
    CU_ASSERT_EQUAL(perch_options_set(&o, "model.path", "y", NULL), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(o.path, "y");
}

/* A host with [bench] rate, a number, and a record of what it was asked. */
typedef struct host_log {
    char text[256];
} host_log;

static perch_status on_key(void *user, const char *section, const char *key, const char *value, perch_error *err) {
    host_log *log = user;
    size_t at = strlen(log->text);
    snprintf(log->text + at, sizeof log->text - at, "%s.%s=%s|", section, key, value);
    if (strcmp(section, "bench") != 0) {
        return PERCH_E_NOT_FOUND;
    }
    if (strcmp(key, "rate") == 0 && strspn(value, "0123456789.") != strlen(value)) {
        return err_set(err, PERCH_E_INVALID, "'%s' is not a rate", value);
    }
    return strcmp(key, "silent") == 0 ? PERCH_E_UNSUPPORTED : PERCH_OK;
}

static void check_host(const char *text, perch_status expected_status, const char *expected_log, const char *reason) {
    host_log log = {""};
    const perch_ini_host host = {on_key, &log};
    perch_options o;
    char message[512], expected[512] = "";
    perch_status status = load(text, strlen(text), &host, &o, message);
    if (reason) {
        snprintf(expected, sizeof expected, "%s: %s", in_folder("t.ini"), reason);
    }
    CHECK_MSG(status == expected_status && strcmp(message, expected) == 0, "%d '%s' instead of '%s'", status, message,
              expected);
    CHECK_MSG(strcmp(log.text, expected_log) == 0, "asked for '%s', should be '%s'", log.text, expected_log);
}

static void test_host_sections(void) {
    check_host("[bench]\nrate = 2.5\n[engine]\nqueue_size = 9\n[bench]\nName = \"a b\"\n", PERCH_OK,
               "bench.rate=2.5|bench.name=a b|", NULL);
    check_host("[bench]\nqueue_size = 1\n[engine]\nqueue_size = 2\n", PERCH_OK, "bench.queue_size=1|", NULL);
    check_host("[bench]\nrate = fast\n", PERCH_E_CONFIG, "bench.rate=fast|", "[bench] rate: 'fast' is not a rate");
    check_host("[bench]\nsilent = 1\n", PERCH_E_CONFIG, "bench.silent=1|", "[bench] silent: not supported");
    check_host("[bnech]\nrate = 1\n", PERCH_E_CONFIG, "bnech.rate=1|", "[bnech] rate: unknown section or key");
    check_host("[engine]\nrate = 1\n", PERCH_E_CONFIG, "", "[engine] rate: unknown key"); /* not the host's to know */
    check_host("[bench]\nrate = 1\nrate = 2\n", PERCH_E_CONFIG, "", "[bench] rate: repeated");
}

static void test_a_pipe_is_as_good_as_a_file(void) {
    int ends[2];
    char name[32];
    static const char *const text = "[parallel]\nthreads = 3\n";
    CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
    CU_ASSERT_EQUAL(write(ends[1], text, strlen(text)), (ssize_t)strlen(text));
    close(ends[1]);
    snprintf(name, sizeof name, "/proc/self/fd/%d", ends[0]);
    perch_options o = loaded("");
    perch_error err = {PERCH_OK, ""};
    CHECK_MSG(perch_options_load_ini(&o, name, NULL, &err) == PERCH_OK, "%s", err.message);
    CU_ASSERT_EQUAL(o.threads, 3);
    close(ends[0]);
}

static void *load_often(void *user) {
    const unsigned *threads = user;
    char path[128], text[64];
    snprintf(path, sizeof path, "%s/thread%u.ini", folder, *threads);
    FILE *file = fopen(path, "w");
    if (file) {
        snprintf(text, sizeof text, "[parallel]\nthreads = %u\n", *threads);
        fputs(text, file);
        fclose(file);
    }
    uintptr_t wrong = 0;
    for (int i = 0; i < 300; i++) {
        perch_options o;
        perch_error err;
        wrong += perch_options_init(&o, sizeof o) != PERCH_OK ||
                 perch_options_load_ini(&o, path, NULL, &err) != PERCH_OK || o.threads != *threads;
    }
    unlink(path);
    return (void *)wrong;
}

static void test_threads_load_at_once(void) {
    enum { N = 4 };
    pthread_t threads[N];
    unsigned numbers[N];
    for (unsigned i = 0; i < N; i++) {
        numbers[i] = i + 1;
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, load_often, &numbers[i]), 0);
    }
    for (unsigned i = 0; i < N; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        CHECK_MSG(wrong == NULL, "%lu loads went wrong", (unsigned long)(uintptr_t)wrong);
    }
}

static int count_descriptors(void) {
    int n = 0;
    DIR *open_files = opendir("/proc/self/fd");
    while (open_files && readdir(open_files)) {
        n++;
    }
    if (open_files) {
        closedir(open_files);
    }
    return n;
}

static void test_no_descriptor_stays_open(void) {
    static const char *const texts[] = {"[parallel]\nthreads = 1\n", "[parallel]\nthreads = x\n", "x", "[a]\nb = 1\n"};
    perch_options o;
    char message[512];
    int before = count_descriptors();
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        perch_status status = load(texts[i], strlen(texts[i]), NULL, &o, message);
        CU_ASSERT_EQUAL(status, i == 0 ? PERCH_OK : PERCH_E_CONFIG);
    }
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, in_folder("missing.ini"), NULL, NULL), PERCH_E_IO);
    CU_ASSERT_EQUAL(perch_options_load_ini(&o, folder, NULL, NULL), PERCH_E_IO);
    CU_ASSERT_EQUAL(count_descriptors(), before);
}

int main(int argc, char **argv) {
    const test_case tests[] = {
        {"every_section", test_every_section},
        {"what_is_not_there_stays", test_what_is_not_there_stays},
        {"ways_to_write_a_line", test_ways_to_write_a_line},
        {"keys_are_refused_by_name", test_keys_are_refused_by_name},
        {"lines_are_refused_by_number", test_lines_are_refused_by_number},
        {"values_that_would_be_cut_are_refused", test_values_that_would_be_cut_are_refused},
        {"sizes_are_limited", test_sizes_are_limited},
        {"files_that_cannot_be_read", test_files_that_cannot_be_read},
        {"relative_paths_are_from_the_files_folder", test_relative_paths_are_from_the_files_folder},
        {"host_sections", test_host_sections},
        {"a_pipe_is_as_good_as_a_file", test_a_pipe_is_as_good_as_a_file},
        {"threads_load_at_once", test_threads_load_at_once},
        {"no_descriptor_stays_open", test_no_descriptor_stays_open},
    };
    strcpy(folder, "/tmp/perch-ini-XXXXXX");
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    int result = test_main("ini", tests, sizeof tests / sizeof tests[0], argc, argv);
    unlink(in_folder("t.ini"));
    rmdir(folder);
    return result;
}
