/*
 * The trace of an engine that evicts, restores, preempts, forks and cancels: it is JSON, its steps follow one another in their
 * lanes with their phases inside, every span that begins ends and is nested, and its sums are those of perch_stats. On
 * a machine without a GPU all steps are in one lane; tracing_async_test is the same on a device of its own. And the statistics
 * file that other processes read.
 */
#include "base/jv.h"
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { N = 5, PROMPT = 150, SESSION = 256, N_HOST = 256, N_LANES = 2, MAX_SPANS = 1024 };

static char file[] = "/tmp/perch-tracing-XXXXXX";

static perch_options options_of(void) {
    perch_options o = host_options("long");
    o.session_len = SESSION;
    o.max_batch_size = 4;
    o.cache_max_entry_count = 2;
    o.page_bytes = 4096;
    o.host_bytes = N_HOST * o.page_bytes;
    o.prefix_index = PERCH_OFF;
    o.restore = PERCH_RESTORE_LOAD; /* however quick it is */
    snprintf(o.trace_file, sizeof o.trace_file, "%s", file);
    return o;
}

static perch_stats stats_of(perch_engine *e) {
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    return stats;
}

/* ------------------------------------------------------------- the life -- */

static void wait_for_copies(perch_engine *e) {
    const struct timespec ms = {.tv_nsec = 1000000};
    for (bool busy = true; busy; nanosleep(&ms, NULL)) {
        pthread_mutex_lock(&e->lock);
        busy = e->unsaved || cache_transfers_pending(e->kv, CACHE_STORE) ||
               cache_transfers_pending(e->kv, CACHE_LOAD) || cache_disk_pending(e->kv);
        pthread_mutex_unlock(&e->lock);
    }
}

static void submit(perch_engine *e, perch_sequence_id id, uint64_t seed, size_t n, uint32_t max_tokens,
                   uint32_t n_completions, perch_request_id *out) {
    int32_t tokens[PROMPT];
    perch_error err;
    host_tokens(seed, 96, tokens, n);
    perch_request q = host_request(e, id, tokens, n, max_tokens);
    q.flags |= PERCH_REQUEST_IGNORE_EOS;
    q.n_completions = n_completions;
    CHECK_MSG(perch_submit(e, &q, out, &err) == PERCH_OK, "%s", err.message);
}

static void collect(perch_engine *e, uint32_t n_done) {
    perch_event ev;
    CU_ASSERT_EQUAL(perch_event_init(&ev, sizeof ev), PERCH_OK);
    while (n_done > 0) {
        if (!CHECK_MSG(perch_next(e, &ev, HOST_HANGS_MS, NULL) == PERCH_OK, "an event is missing")) {
            break;
        }
        n_done -= ev.type == PERCH_EVENT_DONE;
    }
    perch_event_clear(&ev);
}

static bool is_async;

/*
 * Turns one after the other, more than there is room for; then all at once, one with two completions, one cancelled. Loses
 * events: it ends when there are some that the trace has not.
 */
static perch_stats live(const perch_options *options, bool loses_events) {
    perch_sequence_id ids[N];
    perch_request_id last;
    perch_engine *e = host_engine(options);
    perch_stats stats = {.struct_size = sizeof stats};
    if (!e) {
        return stats;
    }
    is_async = e->backend->async != NULL;
    for (int turn = 0; turn < 2; turn++) {
        for (uint32_t i = 0; i < N; i++) {
            if (turn == 0) {
                CU_ASSERT_EQUAL(perch_sequence_open(e, &ids[i], NULL), PERCH_OK);
            }
            submit(e, ids[i], 100u * (uint32_t)turn + i, turn ? 5 : PROMPT, 6, 1, &last);
            collect(e, 1);
            wait_for_copies(e);
        }
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < N; i++) {
        submit(e, ids[i], 1000 + i, 3, 60, i == 1 ? 2 : 1, &last);
        n += i == 1 ? 2 : 1;
    }
    CU_ASSERT_EQUAL(perch_cancel(e, last, NULL), PERCH_OK);
    collect(e, n);
    wait_for_copies(e);
    for (stats = stats_of(e); loses_events && stats.trace_lost == 0; stats = stats_of(e)) {
        usleep(1000);
    }
    perch_engine_destroy(e);
    return stats;
}

/* ------------------------------------------------------------- the trace -- */

typedef struct lane {
    int64_t begin, end, last_begin; /* of its last step */
    uint64_t n_steps;
} lane;

typedef struct span {
    int64_t id, last_ts;
    const char *open[4]; /* names, the outermost first */
    uint32_t n_open;
    bool ended;
} span;

typedef struct sums {
    lane lanes[N_LANES];
    span spans[MAX_SPANS]; /* requests' and copies' */
    uint32_t n_spans;
    int64_t last_end; /* of a step */
    uint64_t steps, step_us, host_us, phase_us, prefill, decode, evictions, evicted_pages, idle_us, preempted,
        readmitted, generated, cached, restored, restored_hits, pages[TRACE_N_ROUTES], bytes, finished[8], found[5];
} sums;

static int64_t number(const jv *object, const char *key) {
    const jv *value = jv_get(object, key);
    if (!CHECK_MSG(value && value->type == JV_INTEGER, "%s is no number", key)) {
        return 0;
    }
    return value->as.integer;
}

static uint64_t argument(const jv *event, const char *key) { return (uint64_t)number(jv_get(event, "args"), key); }

static bool is(const jv *event, const char *key, const char *value) {
    const char *text = jv_string(jv_get(event, key));
    return text && !strcmp(text, value);
}

static void look_at_slice(sums *s, const jv *event) {
    int64_t ts = number(event, "ts"), end = ts + number(event, "dur"), track = number(event, "tid");
    if (!CHECK_MSG(track >= 1 && track <= N_LANES, "a slice in track %lld", (long long)track)) {
        return;
    }
    lane *l = &s->lanes[track - 1];
    CHECK_MSG(ts >= l->last_begin, "a slice begins before the one before it");
    l->last_begin = ts;
    if (is(event, "name", "step")) {
        CHECK_MSG(ts >= l->end, "a step begins before the one before it in its lane has ended");
        l->begin = ts;
        l->end = end;
        l->n_steps++;
        s->steps++;
        CU_ASSERT_EQUAL(argument(event, "step"), s->steps);
        s->step_us += (uint64_t)(end - (ts > s->last_end ? ts : s->last_end));
        s->last_end = end;
        s->prefill += argument(event, "prefill_tokens");
        s->decode += argument(event, "decode_tokens");
        s->host_us += argument(event, "host_us");
        CU_ASSERT_TRUE(argument(event, "rows") > 0);
    } else {
        CHECK_MSG(ts >= l->begin && end <= l->end, "a phase lies outside its step");
        s->phase_us += (uint64_t)(end - ts);
    }
}

static span *span_of(sums *s, const jv *event) {
    const char *id = jv_string(jv_get(event, "id"));
    int64_t key = (id ? strtoll(id, NULL, 16) : 0) * 2 + is(event, "cat", "copy");
    for (uint32_t i = 0; i < s->n_spans; i++) {
        if (s->spans[i].id == key) {
            return &s->spans[i];
        }
    }
    CU_ASSERT_TRUE_FATAL(s->n_spans < MAX_SPANS);
    s->spans[s->n_spans].id = key;
    return &s->spans[s->n_spans++];
}

static void look_at_span(sums *s, const jv *event) {
    span *of = span_of(s, event);
    const char *name = jv_string(jv_get(event, "name"));
    CHECK_MSG(number(event, "ts") >= of->last_ts, "%s goes back in time", name);
    of->last_ts = number(event, "ts");
    CHECK_MSG(!of->ended, "%s behind the end", name);
    if (is(event, "ph", "b")) {
        CU_ASSERT_TRUE_FATAL(of->n_open < 3);
        of->open[of->n_open++] = name;
        CU_ASSERT_TRUE(of->n_open > 1 || is(event, "cat", "copy") || !strcmp(name, "request"));
    } else if (is(event, "ph", "e")) {
        if (CHECK_MSG(of->n_open > 0 && !strcmp(of->open[of->n_open - 1], name), "%s ends and is not open", name)) {
            of->ended = --of->n_open == 0;
        }
    } else {
        CU_ASSERT_TRUE(of->n_open > 0);
    }
}

static void look_at_request(sums *s, const jv *event) {
    if (is(event, "ph", "e") && is(event, "name", "request")) {
        s->generated += argument(event, "completion_tokens");
        for (int finish = PERCH_FINISH_NONE; finish <= PERCH_FINISH_ERROR; finish++) {
            s->finished[finish] +=
                !strcmp(jv_string(jv_get(jv_get(event, "args"), "finish")), perch_finish_name((perch_finish)finish));
        }
    }
}

static void look_at_instant(sums *s, const jv *event) {
    static const char *const classes[] = {"first turn", "hit", "partial hit", "miss", "fork"};
    if (is(event, "name", "evict") || is(event, "name", "evict closed")) {
        bool counts = is(event, "name", "evict");
        s->evictions += counts;
        s->idle_us += counts ? argument(event, "idle_us") : 0;
        s->evicted_pages += argument(event, "pages");
    }
    for (int i = 0; i < 5; i++) {
        if (is(event, "cat", "admission") && is(event, "name", classes[i])) {
            s->found[i]++;
            s->cached += i < 4 ? argument(event, "cached_tokens") : 0;
            s->restored += argument(event, "restored_tokens");
            s->restored_hits += i < 4 && argument(event, "restored_tokens") > 0;
        }
    }
    s->preempted += is(event, "name", "preempt");
    s->readmitted += is(event, "name", "readmit");
    CHECK_MSG(!is(event, "name", "events lost"), "events were lost");
}

static void look_at_gauges(const perch_stats *stats, const jv *event) {
    if (is(event, "name", "pages")) {
        CU_ASSERT_EQUAL(argument(event, "live") + argument(event, "cached") + argument(event, "free"),
                        stats->pages_total);
    }
}

static const char *const routes[] = {[TRACE_DEVICE_TO_HOST] = "device to host",
                                     [TRACE_HOST_TO_DEVICE] = "host to device",
                                     [TRACE_HOST_TO_DISK] = "host to disk",
                                     [TRACE_DISK_TO_HOST] = "disk to host"};

static void look_at(sums *s, const perch_stats *stats, const jv *event) {
    const char *phase = jv_string(jv_get(event, "ph"));
    CU_ASSERT_EQUAL(number(event, "pid"), getpid());
    switch (phase ? phase[0] : 0) {
    case 'X':
        look_at_slice(s, event);
        break;
    case 'b':
    case 'e':
    case 'n':
        look_at_span(s, event);
        look_at_request(s, event);
        if (is(event, "cat", "copy") && is(event, "ph", "b")) {
            for (int route = 0; route < TRACE_N_ROUTES; route++) {
                s->pages[route] += is(event, "name", routes[route]) ? argument(event, "pages") : 0;
            }
            s->bytes += argument(event, "bytes");
        }
        break;
    case 'i':
        look_at_instant(s, event);
        break;
    case 'C':
        look_at_gauges(stats, event);
        break;
    default:
        CU_ASSERT_TRUE(is(event, "ph", "M"));
    }
}

static void sums_agree(const sums *s, const perch_stats *stats) {
    CU_ASSERT_EQUAL(s->steps, stats->steps);
    CU_ASSERT_EQUAL(s->step_us, stats->step_us);
    CU_ASSERT_EQUAL(s->host_us, stats->host_us);
    CU_ASSERT_EQUAL(s->prefill, stats->prefill_tokens);
    CU_ASSERT_EQUAL(s->decode, stats->decode_tokens);
    CU_ASSERT_EQUAL(s->generated, stats->decode_tokens);
    CU_ASSERT_EQUAL(s->evictions, stats->evictions);
    CU_ASSERT_EQUAL(s->evicted_pages, stats->evicted_pages);
    CU_ASSERT_EQUAL(s->idle_us, stats->evicted_idle_us);
    CU_ASSERT_EQUAL(s->preempted, stats->preemptions);
    CU_ASSERT_EQUAL(s->pages[TRACE_DEVICE_TO_HOST], stats->saved_pages);
    CU_ASSERT_EQUAL(s->pages[TRACE_HOST_TO_DEVICE], stats->restored_pages);
    CU_ASSERT_EQUAL(s->pages[TRACE_HOST_TO_DISK], stats->spilled_pages);
    CU_ASSERT_EQUAL(s->pages[TRACE_DISK_TO_HOST], stats->fetched_pages);
    CU_ASSERT_EQUAL(s->bytes, stats->page_bytes * (stats->saved_pages + stats->restored_pages + stats->spilled_pages +
                                                   stats->fetched_pages));
    CU_ASSERT_EQUAL(s->restored_hits, stats->restored_hits);
    CU_ASSERT_EQUAL(s->found[0], stats->first_turns);
    CU_ASSERT_EQUAL(s->found[1], stats->hits);
    CU_ASSERT_EQUAL(s->found[2], stats->partial_hits);
    CU_ASSERT_EQUAL(s->found[3], stats->misses);
    CU_ASSERT_EQUAL(s->found[4], 1);
    CU_ASSERT_EQUAL(s->cached, stats->cached_tokens);
    CU_ASSERT_EQUAL(s->finished[PERCH_FINISH_CANCELLED], stats->requests_cancelled);
    CU_ASSERT_EQUAL(s->finished[PERCH_FINISH_LENGTH], stats->requests_finished + 1); /* one had two completions */
    CU_ASSERT_EQUAL(stats->trace_lost, 0);
}

static sums all;

static perch_stats read_life(const perch_options *o) {
    perch_stats stats = live(o, false);
    all = (sums){.n_spans = 0};
    perch_error err;
    jv_doc doc;
    FILE *f = fopen(file, "rb");
    char *text = calloc(1, 32 << 20);
    CU_ASSERT_TRUE_FATAL(f && text);
    size_t n = fread(text, 1, (32 << 20) - 1, f);
    fclose(f);
    if (CHECK_MSG(jv_parse(text, n, "the trace", &doc, &err) == PERCH_OK, "%s", err.message)) {
        for (uint32_t i = 0; i < doc.root->n; i++) {
            look_at(&all, &stats, &doc.root->as.children[i]);
        }
        sums_agree(&all, &stats);
        for (uint32_t i = 0; i < all.n_spans; i++) {
            CHECK_MSG(all.spans[i].ended, "%s of span %lld is open", all.spans[i].open[0], (long long)all.spans[i].id);
        }
        jv_free(&doc);
    }
    free(text);
    /* It would prove nothing of what did not happen. */
    CHECK_MSG(stats.evictions > 0 && stats.restored_pages > 0 && stats.preemptions > 0 && stats.hits > 0 &&
                  all.restored > 0,
              "%llu evictions, %llu pages restored, %llu preemptions, %llu hits", (unsigned long long)stats.evictions,
              (unsigned long long)stats.restored_pages, (unsigned long long)stats.preemptions,
              (unsigned long long)stats.hits);
    CU_ASSERT_EQUAL(all.lanes[1].n_steps > 0, is_async);
    CU_ASSERT_TRUE(stats.saved_us > 0);
    CU_ASSERT_TRUE(stats.evicted_idle_p50_us > 0 && stats.evicted_idle_us > 0);
    CU_ASSERT_TRUE(stats.host_pages_used > 0 && stats.host_pages_used <= stats.host_pages_total);
    return stats;
}

static void what_happened_stands_in_the_trace(void) {
    perch_options o = options_of();
    perch_stats stats = read_life(&o);
    CU_ASSERT_EQUAL(stats.host_pages_total, N_HOST);
    CU_ASSERT_EQUAL(stats.disk_pages_total, 0);
}

static void so_do_reads_and_writes_of_the_disk(void) {
    perch_options o = options_of();
    o.host_bytes = 12 * o.page_bytes;
    o.disk_bytes = 400 * o.page_bytes;
    o.disk_keep_ms = 0; /* nothing is written behind the statistics */
    snprintf(o.disk_path, sizeof o.disk_path, "%s.pages", file);
    perch_stats stats = read_life(&o);
    CHECK_MSG(stats.spilled_pages > 0 && stats.fetched_pages > 0, "%llu pages spilled, %llu fetched",
              (unsigned long long)stats.spilled_pages, (unsigned long long)stats.fetched_pages);
    CU_ASSERT_TRUE(stats.disk_pages_total > 0 && stats.disk_pages_total <= 400);
    CU_ASSERT_TRUE(stats.disk_pages_used > 0 && stats.disk_pages_used <= stats.disk_pages_total);
    CU_ASSERT_EQUAL(stats.disk_status, PERCH_OK);
    unlink(o.disk_path);
}

static void a_trace_that_cannot_be_written_is_refused_with_its_name(void) {
    perch_options o = options_of();
    perch_engine *e;
    perch_error err;
    snprintf(o.trace_file, sizeof o.trace_file, "%s/below-a-file", file);
    CU_ASSERT_EQUAL(perch_engine_create(&o, &e, &err), PERCH_E_IO);
    CHECK_MSG(strstr(err.message, "[engine] trace_file: cannot open /tmp/perch-tracing-") != NULL, "%s", err.message);
}

static void the_answers_do_not_depend_on_a_file_that_fails(void) {
    perch_options o = options_of();
    snprintf(o.trace_file, sizeof o.trace_file, "/dev/full");
    perch_stats stats = live(&o, true);
    CHECK_MSG(stats.requests_finished + stats.requests_cancelled == 3 * N && stats.status == PERCH_OK,
              "the engine was disturbed");
}

/* Half a second after it has nothing more to do, at most. */
static void the_statistics_file_says_what_the_engine_says(void) {
    char path[64];
    perch_sequence_id id;
    perch_request_id request_id;
    perch_options o = options_of();
    snprintf(path, sizeof path, "%s.stats", file);
    snprintf(o.stats_file, sizeof o.stats_file, "%s", path);
    o.trace_file[0] = 0;
    perch_engine *e = host_engine(&o);
    CU_ASSERT_PTR_NOT_NULL_FATAL(e);
    CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
    submit(e, id, 5, PROMPT, 40, 1, &request_id);
    collect(e, 1);
    perch_snapshot s = {.struct_size = sizeof s};
    perch_stats stats = stats_of(e);
    for (bool equal = false; !equal; usleep(1000)) {
        CU_ASSERT_EQUAL_FATAL(perch_snapshot_read(path, &s, NULL), PERCH_OK);
        stats = stats_of(e);
        equal = !memcmp(&s.stats, &stats, sizeof stats);
    }
    CU_ASSERT_EQUAL(s.stats.decode_tokens, 40);
    CU_ASSERT_EQUAL(s.stats.requests_finished, 1);
    CU_ASSERT_TRUE(s.stats.ttft_p50_us > 0 && s.stats.ttft_p50_us <= s.stats.ttft_p99_us);
    CU_ASSERT_EQUAL(s.running, 1);
    CU_ASSERT_EQUAL(s.pid, (uint32_t)getpid());
    CU_ASSERT_EQUAL(s.session_len, SESSION);
    CU_ASSERT_STRING_EQUAL(s.model, "long");
    CU_ASSERT_TRUE(s.backend[0] != 0 && s.uptime_us > 0);
    perch_engine_destroy(e);
    CU_ASSERT_EQUAL(perch_snapshot_read(path, &s, NULL), PERCH_E_NOT_FOUND);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(what_happened_stands_in_the_trace),
        TEST(so_do_reads_and_writes_of_the_disk),
        TEST(a_trace_that_cannot_be_written_is_refused_with_its_name),
        TEST(the_answers_do_not_depend_on_a_file_that_fails),
        TEST(the_statistics_file_says_what_the_engine_says),
    };
#undef TEST
    int fd = mkstemp(file);
    if (fd < 0) {
        perror(file);
        return 1;
    }
    close(fd);
    int code = test_main("tracing_test", tests, sizeof tests / sizeof *tests, argc, argv);
    unlink(file);
    return code;
}
