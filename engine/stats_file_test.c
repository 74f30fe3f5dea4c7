/*
 * stats_file_test: what an engine writes is read whole or not at all, by another thread and by another process; who lives is told
 * from who left a file behind; what is no such file is refused. And the histogram that percentiles come from.
 */
#include "engine/stats_file.h"
#include "engine/times.h"
#include "tests/support/check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/perch-stats-XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[4][128];
    static int at;
    char *path = paths[at++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static stats_image about(void) {
    return (stats_image){.begun_us = time_us(), .session_len = 4096, .model = "Tiny", .backend = "cpu scalar"};
}

static stats_file *open_file(const char *path) {
    const stats_image image = about();
    perch_error err = {.status = PERCH_OK};
    stats_file *f = NULL;
    CHECK_MSG(stats_file_open(path, &image, &f, &err) == PERCH_OK, "%s", err.message);
    return f;
}

static perch_status read_file(const char *path, perch_snapshot *out, perch_error *err) {
    *out = (perch_snapshot){.struct_size = sizeof *out};
    return perch_snapshot_read(path, out, err);
}

static perch_snapshot snapshot_of(const char *path) {
    perch_snapshot s;
    perch_error err = {.status = PERCH_OK};
    CHECK_MSG(read_file(path, &s, &err) == PERCH_OK, "%s", err.message);
    return s;
}

/* ----------------------------------------------------------------- turns -- */

enum { N_PUTS = 20000 };

/* All words of a sample are the same number, so that a torn one shows. */
static stats_sample sample_of(uint64_t n) {
    stats_sample sample;
    uint64_t words[STATS_WORDS];
    for (size_t i = 0; i < STATS_WORDS; i++) {
        words[i] = n;
    }
    memcpy(&sample, words, sizeof sample);
    return sample;
}

static void *put_many(void *turn) {
    for (uint64_t n = 1; n <= N_PUTS; n++) {
        const stats_sample sample = sample_of(n);
        stats_turn_put(turn, &sample);
    }
    return NULL;
}

static void what_is_read_was_written_at_once(void) {
    static stats_turn turn;
    stats_sample got;
    pthread_t writer;
    uint64_t last = 0, n_got = 0;
    CU_ASSERT_EQUAL(pthread_create(&writer, NULL, put_many, &turn), 0);
    while (last < N_PUTS) {
        uint64_t words[STATS_WORDS];
        if (!stats_turn_get(&turn, &got)) {
            continue;
        }
        memcpy(words, &got, sizeof words);
        for (size_t i = 1; i < STATS_WORDS; i++) {
            if (!CHECK_MSG(words[i] == words[0], "word %zu is of another sample", i)) {
                i = STATS_WORDS;
            }
        }
        CU_ASSERT_TRUE(words[0] >= last);
        last = words[0];
        n_got++;
    }
    pthread_join(writer, NULL);
    CU_ASSERT_TRUE(n_got > 0);
}

static void a_write_that_never_ends_is_not_waited_for(void) {
    static stats_turn turn;
    stats_sample got;
    atomic_store(&turn.turn, 7);
    CU_ASSERT_FALSE(stats_turn_get(&turn, &got));
}

/* ----------------------------------------------------------------- files -- */

static void a_file_says_what_was_written_and_goes_with_its_engine(void) {
    const char *path = in_folder("one");
    perch_snapshot s;
    perch_error err;
    stats_file *f = open_file(path);
    s = snapshot_of(path);
    CU_ASSERT_EQUAL(s.stats.steps, 0);
    stats_sample sample = {.at_us = time_us(),
                           .stats = {.struct_size = sizeof(perch_stats), .steps = 77, .trace_lost = 5}};
    stats_file_write(f, &sample);
    s = snapshot_of(path);
    CU_ASSERT_EQUAL(s.stats.steps, 77);
    CU_ASSERT_EQUAL(s.stats.trace_lost, 5);
    CU_ASSERT_EQUAL(s.at_us, sample.at_us);
    CU_ASSERT_EQUAL(s.pid, (uint32_t)getpid());
    CU_ASSERT_EQUAL(s.running, 1);
    CU_ASSERT_EQUAL(s.session_len, 4096);
    CU_ASSERT_TRUE(s.age_us < 60000000);
    CU_ASSERT_STRING_EQUAL(s.model, "Tiny");
    CU_ASSERT_STRING_EQUAL(s.backend, "cpu scalar");
    CU_ASSERT_STRING_EQUAL(s.version, perch_version());
    stats_file_close(f);
    CU_ASSERT_EQUAL(read_file(path, &s, &err), PERCH_E_NOT_FOUND);
    CHECK_MSG(strstr(err.message, path) != NULL, "%s", err.message);
}

static void a_name_from_here_is_the_same_file_from_elsewhere(void) {
    char here[512];
    CU_ASSERT_PTR_NOT_NULL_FATAL(getcwd(here, sizeof here));
    CU_ASSERT_EQUAL_FATAL(chdir(folder), 0);
    stats_file *f = open_file("one");
    CU_ASSERT_EQUAL_FATAL(chdir(here), 0);
    CU_ASSERT_EQUAL(snapshot_of(in_folder("one")).running, 1);
    stats_file_close(f);
    CU_ASSERT_NOT_EQUAL(access(in_folder("one"), F_OK), 0);
}

static void a_living_engines_file_is_nobody_elses(void) {
    const char *path = in_folder("one");
    const stats_image image = about();
    perch_error err;
    stats_file *f = open_file(path), *other = f;
    CU_ASSERT_EQUAL(stats_file_open(path, &image, &other, &err), PERCH_E_BUSY);
    CU_ASSERT_PTR_NULL(other);
    CHECK_MSG(strstr(err.message, path) != NULL, "%s", err.message);
    CU_ASSERT_EQUAL(snapshot_of(path).running, 1);
    stats_file_close(f);
}

/* Runs it in a process of its own, which ends without closing what it opened. */
static void in_a_process_that_dies(void (*run)(void)) {
    int status = -1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        run();
        _exit(0);
    }
    CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
    CU_ASSERT_EQUAL(status, 0);
}

static void leave_one(void) { open_file(in_folder("left")); }
static void leave_in_the_folder(void) { open_file("auto"); }

static void what_a_dead_process_left_says_so_and_may_be_taken_over(void) {
    const char *path = in_folder("left");
    in_a_process_that_dies(leave_one);
    perch_snapshot s = snapshot_of(path);
    CU_ASSERT_EQUAL(s.running, 0);
    CU_ASSERT_NOT_EQUAL(s.pid, (uint32_t)getpid());
    stats_file *f = open_file(path);
    CU_ASSERT_EQUAL(snapshot_of(path).running, 1);
    CU_ASSERT_EQUAL(snapshot_of(path).pid, (uint32_t)getpid());
    stats_file_close(f);
}

static void auto_is_a_file_for_each_engine_and_tidies_up(void) {
    char dir[128], first[160], second[160];
    struct stat st;
    perch_error err;
    setenv("XDG_RUNTIME_DIR", folder, 1);
    CU_ASSERT_EQUAL(perch_stats_folder(dir, sizeof dir, &err), PERCH_OK);
    CU_ASSERT_STRING_EQUAL(dir, in_folder("perch"));
    CU_ASSERT_EQUAL(perch_stats_folder(dir, 5, &err), PERCH_E_BUFFER);
    CU_ASSERT_EQUAL(perch_stats_folder(dir, sizeof dir, &err), PERCH_OK);
    in_a_process_that_dies(leave_in_the_folder);
    CU_ASSERT_EQUAL(stat(dir, &st), 0);
    CU_ASSERT_EQUAL(st.st_mode & 0777, 0700);
    CU_ASSERT_TRUE(st.st_nlink >= 2);
    stats_file *a = open_file("auto"), *b = open_file("Auto");
    snprintf(first, sizeof first, "%s/%ld", dir, (long)getpid());
    snprintf(second, sizeof second, "%s/%ld.2", dir, (long)getpid());
    CU_ASSERT_EQUAL(snapshot_of(first).running, 1);
    CU_ASSERT_EQUAL(snapshot_of(second).running, 1);
    stats_file_close(a);
    stats_file_close(b);
    CU_ASSERT_EQUAL(rmdir(dir), 0); /* what the dead process left is gone as well */
}

static void a_folder_that_others_could_write_to_is_refused(void) {
    const stats_image image = about();
    perch_error err;
    stats_file *f;
    setenv("XDG_RUNTIME_DIR", folder, 1);
    CU_ASSERT_EQUAL(mkdir(in_folder("perch"), 0700), 0);
    CU_ASSERT_EQUAL(chmod(in_folder("perch"), 0777), 0);
    CU_ASSERT_EQUAL(stats_file_open("auto", &image, &f, &err), PERCH_E_IO);
    CHECK_MSG(strstr(err.message, "only this user") != NULL, "%s", err.message);
    CU_ASSERT_EQUAL(rmdir(in_folder("perch")), 0);
}

/* Changes n bytes of a living engine's file. */
static void spoil(const char *path, size_t offset, const void *bytes, size_t n) {
    int fd = open(path, O_WRONLY);
    CU_ASSERT_EQUAL(pwrite(fd, bytes, n, (off_t)offset), (ssize_t)n);
    close(fd);
}

static void check_refused(perch_status status, const char *path, const char *part) {
    perch_snapshot s;
    perch_error err = {.message = ""};
    CU_ASSERT_EQUAL(read_file(path, &s, &err), status);
    CHECK_MSG(strstr(err.message, part) != NULL && strstr(err.message, path) != NULL, "%s", err.message);
}

static void what_is_no_such_file_is_refused_with_its_name(void) {
    const char *path = in_folder("one");
    const uint32_t version = STATS_FILE_VERSION + 1, stats_bytes = sizeof(perch_stats) - 8;
    const uint64_t turn = 3;
    perch_snapshot s;
    stats_file *f = open_file(path);
    spoil(path, offsetof(stats_image, live.turn), &turn, sizeof turn);
    check_refused(PERCH_E_AGAIN, path, "ended while it wrote");
    spoil(path, offsetof(stats_image, version), &version, sizeof version);
    check_refused(PERCH_E_UNSUPPORTED, path, "another version of perch");
    spoil(path, offsetof(stats_image, version), &(uint32_t){STATS_FILE_VERSION}, sizeof version);
    spoil(path, offsetof(stats_image, stats_bytes), &stats_bytes, sizeof stats_bytes);
    check_refused(PERCH_E_UNSUPPORTED, path, "another version of perch");
    spoil(path, 0, "x", 1);
    check_refused(PERCH_E_FORMAT, path, "no statistics file");
    stats_file_close(f);
    check_refused(PERCH_E_FORMAT, folder, "no statistics file");
    check_refused(PERCH_E_FORMAT, "/dev/null", "no statistics file");
    close(open(path, O_CREAT | O_WRONLY, 0600));
    check_refused(PERCH_E_FORMAT, path, "no statistics file");
    spoil(path, 0, STATS_FILE_MAGIC, 8);
    check_refused(PERCH_E_FORMAT, path, "no statistics file");
    spoil(path, 8, "1234567890123456", 16);
    check_refused(PERCH_E_UNSUPPORTED, path, "another version of perch");
    CU_ASSERT_EQUAL(perch_snapshot_read(path, NULL, NULL), PERCH_E_INVALID);
    s = (perch_snapshot){.struct_size = 1};
    CU_ASSERT_EQUAL(perch_snapshot_read(path, &s, NULL), PERCH_E_INVALID);
    unlink(path);
}

static void a_file_that_cannot_be_made_is_a_status_that_names_it(void) {
    const stats_image image = about();
    perch_error err;
    stats_file *f;
    CU_ASSERT_EQUAL(stats_file_open(in_folder("no/such"), &image, &f, &err), PERCH_E_IO);
    CU_ASSERT_PTR_NULL(f);
    CHECK_MSG(strstr(err.message, "[engine] stats_file: cannot make ") && strstr(err.message, "/no/such: No such file"),
              "%s", err.message);
    CU_ASSERT_EQUAL(mkdir(in_folder("taken"), 0700), 0);
    CU_ASSERT_EQUAL(stats_file_open(in_folder("taken"), &image, &f, &err), PERCH_E_IO); /* rename onto a folder */
    CU_ASSERT_EQUAL(rmdir(in_folder("taken")), 0);
}

/* ------------------------------------------------------------- histogram -- */

static void times_fall_into_cells_that_stand_for_them(void) {
    uint32_t last = 0;
    for (uint64_t us = 0; us < UINT64_C(1) << 39; us = us + us / 16 + 1) {
        uint32_t cell = times_cell(us);
        uint64_t middle = times_of(cell);
        CHECK_MSG(cell >= last && cell < TIMES_CELLS, "%llu in cell %u behind %u", (unsigned long long)us, cell, last);
        CHECK_MSG(middle <= us + us / 8 && us <= middle + middle / 7, "%llu stands for %llu",
                  (unsigned long long)middle, (unsigned long long)us);
        CU_ASSERT_EQUAL(times_cell(middle), cell);
        last = cell;
    }
    CU_ASSERT_EQUAL(times_cell(UINT64_MAX), TIMES_CELLS - 1);
}

static void percentiles_are_those_of_what_was_added(void) {
    static times t;
    CU_ASSERT_EQUAL(times_percentile(&t, 50), 0);
    for (uint64_t us = 1; us <= 1000; us++) {
        times_add(&t, us);
    }
    CU_ASSERT_EQUAL(t.sum_us, 500500);
    static const uint32_t percents[] = {1, 50, 90, 99};
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++) {
        double wanted = 10.0 * percents[i], got = (double)times_percentile(&t, percents[i]);
        CHECK_MSG(got > wanted * 0.87 && got < wanted * 1.14, "%g is no percentile %u", got, percents[i]);
    }
    times_halve(&t);
    CHECK_MSG(t.n > 400 && t.n <= 500, "%llu", (unsigned long long)t.n);
    for (int i = 0; i < 2000; i++) {
        times_add(&t, 40);
    }
    CU_ASSERT_TRUE(times_percentile(&t, 50) >= 36 && times_percentile(&t, 50) <= 44);
}

int main(int argc, char **argv) {
#define TEST(name)                                                                                                     \
    { #name, name }
    static const test_case tests[] = {
        TEST(what_is_read_was_written_at_once),
        TEST(a_write_that_never_ends_is_not_waited_for),
        TEST(a_file_says_what_was_written_and_goes_with_its_engine),
        TEST(a_name_from_here_is_the_same_file_from_elsewhere),
        TEST(a_living_engines_file_is_nobody_elses),
        TEST(what_a_dead_process_left_says_so_and_may_be_taken_over),
        TEST(auto_is_a_file_for_each_engine_and_tidies_up),
        TEST(a_folder_that_others_could_write_to_is_refused),
        TEST(what_is_no_such_file_is_refused_with_its_name),
        TEST(a_file_that_cannot_be_made_is_a_status_that_names_it),
        TEST(times_fall_into_cells_that_stand_for_them),
        TEST(percentiles_are_those_of_what_was_added),
    };
#undef TEST
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    int code = test_main("stats_file_test", tests, sizeof tests / sizeof *tests, argc, argv);
    rmdir(folder);
    return code;
}
