/*
 * Memory is planned once: what the process really takes under more load than the pool holds stays within the plan + 5 % +
 * 64 MiB. What it takes is its resident size, but for the KV pool, a memory file, which is counted by the blocks that it has: pages
 * of idle sequences need not be mapped anywhere, and a page that forks share is mapped several times. Where nothing is
 * shared the kernel's own peak (VmHWM, loading included) is checked too.
 */
#include "tests/e2e/host.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLACK_BYTES (64ull << 20)

/* A line "NAME:   123 kB" of a file in /proc/self, in bytes; 0 if it is not there. */
static uint64_t proc_bytes(const char *file, const char *name) {
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen(file, "r");
    while (f && fgets(line, sizeof line, f)) {
        size_t n = strlen(name);
        if (!strncmp(line, name, n) && line[n] == ':') {
            sscanf(line + n + 1, "%llu", &kib);
            break;
        }
    }
    if (f) {
        fclose(f);
    }
    return kib * 1024;
}

/* Bytes of memory behind this process's memory files. */
static uint64_t memory_file_bytes(void) {
    uint64_t n_bytes = 0;
    DIR *dir = opendir("/proc/self/fd");
    for (struct dirent *at; dir && (at = readdir(dir));) {
        char path[300], target[256];
        struct stat st;
        snprintf(path, sizeof path, "/proc/self/fd/%s", at->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        if (strstr(target, "memfd:") && stat(path, &st) == 0) {
            n_bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return n_bytes;
}

static uint64_t taken_bytes(void) {
    const char *status = "/proc/self/status";
    return proc_bytes(status, "RssAnon") + proc_bytes(status, "RssFile") + memory_file_bytes();
}

static perch_options heavy_options(void) {
    perch_options o = host_options("heavy");
    o.cache_bytes = 192ull << 20;
    o.session_len = 600;
    o.max_batch_size = 4;
    o.max_step_tokens = 256;
    o.prefill_reserve = 64;
    o.threads = 2;
    return o;
}

/* Conversations in turn, more of them than fit; the most memory that was seen. */
static uint64_t load(perch_engine *e, uint32_t n_sequences, uint32_t n_completions) {
    enum { N_PROMPT = 400 };
    int32_t tokens[N_PROMPT];
    perch_event ev;
    uint64_t most = 0;
    uint32_t n_left = 0;
    perch_event_init(&ev, sizeof ev);
    for (uint32_t i = 0; i < n_sequences; i++) {
        perch_sequence_id id;
        CU_ASSERT_EQUAL_FATAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
        host_tokens(i, 4096, tokens, N_PROMPT);
        perch_request q = host_request(e, id, tokens, N_PROMPT, 8);
        q.n_completions = n_completions;
        q.sampling.temperature = 1;
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        CU_ASSERT_EQUAL_FATAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
        n_left += n_completions;
    }
    while (n_left > 0 && perch_next(e, &ev, HOST_HANGS_MS, NULL) == PERCH_OK) {
        if (ev.type == PERCH_EVENT_DONE) {
            CU_ASSERT_EQUAL(ev.finish, PERCH_FINISH_LENGTH);
            n_left--;
            uint64_t now = taken_bytes();
            most = now > most ? now : most;
        }
    }
    CU_ASSERT_EQUAL(n_left, 0);
    perch_event_clear(&ev);
    return most;
}

static void check_within_plan(perch_engine *e, uint64_t taken, const char *what) {
    perch_plan plan = {.struct_size = sizeof plan};
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    printf(
        "  %s: %.1f MiB, planned %.1f MiB (weights %.1f, workspace %.1f, host %.1f, pool %.1f); %llu pages evicted\n",
        what, (double)taken / 1048576, (double)plan.total_bytes / 1048576, (double)plan.weights_bytes / 1048576,
        (double)plan.workspace_bytes / 1048576, (double)plan.host_bytes / 1048576, (double)plan.pool_bytes / 1048576,
        (unsigned long long)stats.evicted_pages);
    CU_ASSERT_TRUE(stats.evicted_pages > stats.pages_total / 2); /* it was more than the pool holds */
    CHECK_MSG(taken <= plan.total_bytes + plan.total_bytes / 20 + SLACK_BYTES, "%llu bytes", (unsigned long long)taken);
    CHECK_MSG(taken >= plan.total_bytes / 2, "%llu bytes: the plan is of something else", (unsigned long long)taken);
}

static void the_peak_resident_size_stays_within_the_plan(void) {
    perch_options o = heavy_options();
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    check_within_plan(e, load(e, 16, 1), "taken");
    check_within_plan(e, proc_bytes("/proc/self/status", "VmHWM"), "peak resident size");
    perch_engine_destroy(e);
}

static void shared_pages_are_not_memory_twice(void) {
    perch_options o = heavy_options();
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    check_within_plan(e, load(e, 12, 3), "taken with forks");
    perch_engine_destroy(e);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(the_peak_resident_size_stays_within_the_plan),
        TEST(shared_pages_are_not_memory_twice),
    };
    return test_main("memory_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
