/*
 * trace_test: what is put into a trace stands in its file, which can be read at any moment; whoever puts never waits for the
 * file; what gets lost is counted, and a file that fails ends behind a whole event.
 */
#include "base/jv.h"
#include "engine/trace.h"
#include "tests/support/check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/perch-trace-XXXXXX";

static const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static trace *open_trace(const char *path) {
    perch_error err = {.status = PERCH_OK};
    trace *t = NULL;
    CHECK_MSG(trace_open(path, "a \"name\"\\\n\xff", true, &t, &err) == PERCH_OK, "%s", err.message);
    return t;
}

static trace_record gauges(uint32_t i) {
    return (trace_record){.kind = TRACE_GAUGES, .at_us = i, .as.gauges = {.live = i, .waiting = 7}};
}

/* All that is in fd by now, closed by `end`. The caller frees it. */
static char *read_all(int fd, const char *end) {
    size_t n = 0, cap = 1 << 16;
    char *text = malloc(cap);
    for (ssize_t got = 1; text && got > 0;) {
        got = read(fd, text + n, cap - n - 8);
        n += got > 0 ? (size_t)got : 0;
        text = cap - n < 4096 ? realloc(text, cap *= 2) : text;
    }
    if (!text) {
        CU_FAIL_FATAL("out of memory");
        return NULL;
    }
    strcpy(text + n, end);
    return text;
}

static char *read_path(const char *path, const char *end) {
    int fd = open(path, O_RDONLY);
    char *text = read_all(fd, end);
    close(fd);
    return text;
}

typedef struct counted {
    uint64_t pages, last_live, n_lost; /* events of that name; lost ones as the file tells them */
    bool in_order;
} counted;

static counted count(const char *text) {
    counted c = {.in_order = true};
    jv_doc doc;
    perch_error err;
    if (!CHECK_MSG(jv_parse(text, strlen(text), "trace", &doc, &err) == PERCH_OK, "%s", err.message)) {
        return c;
    }
    CU_ASSERT_EQUAL(doc.root->type, JV_ARRAY);
    for (uint32_t i = 0; i < doc.root->n; i++) {
        const jv *event = &doc.root->as.children[i], *args = jv_get(event, "args");
        const char *name = jv_string(jv_get(event, "name"));
        CU_ASSERT_PTR_NOT_NULL_FATAL(name);
        if (!strcmp(name, "pages")) {
            uint64_t live = (uint64_t)jv_get(args, "live")->as.integer;
            c.in_order = c.in_order && (c.pages == 0 || live > c.last_live);
            c.last_live = live;
            c.pages++;
        } else if (!strcmp(name, "events lost")) {
            c.n_lost += (uint64_t)jv_get(args, "n")->as.integer;
        }
    }
    jv_free(&doc);
    return c;
}

static void what_is_put_stands_in_the_file(void) {
    enum { N = 5000 };
    trace *t = open_trace(in_folder("all"));
    for (uint32_t i = 0; i < N; i++) {
        const trace_record r = gauges(i);
        trace_put(t, &r);
    }
    CU_ASSERT_EQUAL(trace_n_lost(t), 0);
    trace_close(t);
    char *text = read_path(in_folder("all"), "");
    counted c = count(text);
    CU_ASSERT_EQUAL(c.pages, N);
    CU_ASSERT_TRUE(c.in_order);
    CU_ASSERT_EQUAL(c.n_lost, 0);
    CU_ASSERT_PTR_NOT_NULL(strstr(text, "perch a ?name????"));
    free(text);
}

static void a_trace_that_has_no_end_yet_can_be_read(void) {
    trace *t = open_trace(in_folder("begun"));
    const trace_record r = gauges(3);
    trace_put(t, &r);
    counted c = {.pages = 0};
    while (c.pages == 0) { /* a test that hangs here has failed */
        usleep(2000);
        char *text = read_path(in_folder("begun"), "]");
        c = text[0] == '[' ? count(text) : c;
        free(text);
    }
    CU_ASSERT_EQUAL(c.pages, 1);
    trace_close(t);
}

static void every_kind_of_record_is_JSON_with_the_longest_numbers_too(void) {
    char text[2 * TRACE_MOST_TEXT + 64];
    trace_record r;
    for (trace_kind kind = TRACE_STEP; kind <= TRACE_ARRIVED; kind++) {
        memset(&r, 0xff, sizeof r);
        r.kind = kind;
        switch (kind) {
        case TRACE_ADMIT:
            r.as.admit.found = TRACE_PARTIAL_HIT;
            break;
        case TRACE_FINISH:
            r.as.finish.phase = TRACE_PREFILL;
            r.as.finish.finish = PERCH_FINISH_STOP_STRING;
            break;
        case TRACE_EVICT:
            r.as.evict.closed = true;
            break;
        case TRACE_SENT:
            r.as.sent.route = TRACE_DEVICE_TO_HOST;
            break;
        case TRACE_ARRIVED:
            r.as.arrived.route = TRACE_DEVICE_TO_HOST;
            break;
        default:
            break;
        }
        size_t n = trace_format_begin(text, sizeof text, UINT32_MAX, "m", true);
        size_t more = trace_format(text + n, TRACE_MOST_TEXT, UINT32_MAX, &r);
        CHECK_MSG(more > 40 && more < TRACE_MOST_TEXT, "kind %d: %zu bytes", (int)kind, more);
        strcpy(text + n + more, "]");
        count(text);
    }
}

static void a_file_that_cannot_be_opened_is_a_status_that_names_it(void) {
    perch_error err;
    trace *t;
    CU_ASSERT_EQUAL(trace_open(in_folder("no/such"), "m", false, &t, &err), PERCH_E_IO);
    CU_ASSERT_PTR_NULL(t);
    CHECK_MSG(strstr(err.message, "/no/such: No such file") != NULL, "%s", err.message);
}

static void *close_trace(void *t) {
    trace_close(t);
    return NULL;
}

static void who_puts_does_not_wait_and_what_is_lost_is_told(void) {
    enum { N = 100000 }; /* more than ring, text and pipe hold */
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("pipe"));
    CU_ASSERT_EQUAL(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDWR | O_NONBLOCK); /* a reader that does not read */
    trace *t = open_trace(path);
    for (uint32_t i = 0; i < N; i++) {
        const trace_record r = gauges(i);
        trace_put(t, &r);
    }
    uint64_t n_lost = trace_n_lost(t);
    CU_ASSERT_TRUE(n_lost > 0 && n_lost < N);
    pthread_t closer;
    CU_ASSERT_EQUAL(pthread_create(&closer, NULL, close_trace, t), 0);
    char *text = calloc(1, 64 << 20);
    size_t n = 0;
    while (text && (n < 3 || strcmp(text + n - 3, "\n]\n") != 0)) { /* now it reads */
        ssize_t got = read(fd, text + n, 65536);
        n += got > 0 ? (size_t)got : 0;
    }
    pthread_join(closer, NULL);
    counted c = count(text);
    CU_ASSERT_EQUAL(c.n_lost, n_lost);
    CU_ASSERT_EQUAL(c.pages + n_lost, N);
    CU_ASSERT_TRUE(c.in_order);
    free(text);
    close(fd);
}

static void a_full_disk_is_counted_and_leaves_whole_events(void) {
    enum { N = 3000, LIMIT = 100000 };
    struct rlimit before, small;
    trace *t = open_trace(in_folder("full"));
    CU_ASSERT_EQUAL(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = LIMIT;
    CU_ASSERT_EQUAL(setrlimit(RLIMIT_FSIZE, &small), 0); /* which a signal tells as well: it must not end the process */
    for (uint32_t i = 0; i < N; i++) {
        const trace_record r = gauges(i);
        trace_put(t, &r);
    }
    for (uint64_t n_lost = 0; n_lost == 0; usleep(2000)) {
        n_lost = trace_n_lost(t);
    }
    trace_close(t);
    CU_ASSERT_EQUAL(setrlimit(RLIMIT_FSIZE, &before), 0);
    char *text = read_path(in_folder("full"), "]");
    counted c = count(text);
    CHECK_MSG(c.pages < N && strlen(text) <= LIMIT + 1, "%llu events, %zu bytes", (unsigned long long)c.pages,
              strlen(text));
    free(text);
}

static void a_reader_that_goes_away_does_not_end_the_process(void) {
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("left"));
    CU_ASSERT_EQUAL(mkfifo(path, 0600), 0);
    int fd = open(path, O_RDWR | O_NONBLOCK);
    trace *t = open_trace(path);
    close(fd);
    while (trace_n_lost(t) == 0) {
        const trace_record r = gauges(1);
        trace_put(t, &r);
        usleep(1000);
    }
    trace_close(t);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(what_is_put_stands_in_the_file),
        TEST(a_trace_that_has_no_end_yet_can_be_read),
        TEST(every_kind_of_record_is_JSON_with_the_longest_numbers_too),
        TEST(a_file_that_cannot_be_opened_is_a_status_that_names_it),
        TEST(who_puts_does_not_wait_and_what_is_lost_is_told),
        TEST(a_full_disk_is_counted_and_leaves_whole_events),
        TEST(a_reader_that_goes_away_does_not_end_the_process),
    };
#undef TEST
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    int code = test_main("trace_test", tests, sizeof tests / sizeof *tests, argc, argv);
    static const char *const files[] = {"all", "begun", "pipe", "full", "left"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        unlink(in_folder(files[i]));
    }
    rmdir(folder);
    return code;
}
