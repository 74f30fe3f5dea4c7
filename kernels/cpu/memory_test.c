/*
 * Buffers, and how much memory is free: made-up /proc and /sys trees for both versions of control groups, and the process's
 * own limits.
 */
#include "kernels/cpu/device.h"
#include "kernels/cpu/pair_testing.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void buffers_are_aligned_zeroed_and_whole(void) {
    static const size_t sizes[] = {0, 1, 63, 64, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (5 << 20) + 12345};
    side s = side_open_cpu(NULL, false, 1);
    uint8_t *buffers[9];
    for (size_t i = 0; i < 9; i++) {
        void *buffer = NULL;
        CHECK_OK(s.b->alloc(s.d, sizes[i], &buffer, ERR));
        CU_ASSERT_FATAL(buffer != NULL);
        CU_ASSERT((uintptr_t)buffer % 64 == 0);
        buffers[i] = buffer;
        size_t wrong = 0;
        for (size_t k = 0; k < sizes[i]; k++) {
            wrong += buffers[i][k] != 0;
        }
        CHECK_MSG(wrong == 0, "%zu of %zu bytes are not 0", wrong, sizes[i]);
        memset(buffers[i], (int)i + 1, sizes[i]);
    }
    for (size_t i = 0; i < 9; i++) {
        CU_ASSERT(sizes[i] == 0 || (buffers[i][0] == i + 1 && buffers[i][sizes[i] - 1] == i + 1));
    }
    uint8_t sent[100], received[100] = {0};
    memset(sent, 0xab, sizeof sent);
    CHECK_OK(s.b->upload(s.d, buffers[4] + 5, sent, sizeof sent, ERR));
    CHECK_OK(s.b->download(s.d, received, buffers[4] + 5, sizeof received, ERR));
    CU_ASSERT(memcmp(sent, received, sizeof sent) == 0 && buffers[4][4] == 5 && buffers[4][105] == 5);
    s.b->free(s.d, buffers[3]); /* from the middle, the end and the beginning; close frees the others */
    s.b->free(s.d, buffers[8]);
    s.b->free(s.d, buffers[0]);
    s.b->free(s.d, NULL);
    s.b->close(s.d);
}

static void impossible_sizes_are_refused(void) {
    side s = side_open_cpu(NULL, true, 1);
    void *buffer = s.d;
    kernels_weight *weight = (kernels_weight *)s.d;
    perch_error err = {0};
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX / 2, (size_t)1 << 46};
    for (size_t i = 0; i < 4; i++) {
        perch_status status = s.b->alloc(s.d, sizes[i], &buffer, &err);
        CHECK_MSG(status == PERCH_E_NOMEM && buffer == NULL, "%zu bytes: %d", sizes[i], status);
    }
    CU_ASSERT(s.b->weight_create(s.d, UINT32_MAX, 1u << 22, KERNELS_WEIGHT_DTYPE, &weight, &err) == PERCH_E_NOMEM &&
              weight == NULL);
    static const uint32_t shapes[][2] = {{0, 1}, {1, 0}, {1, UINT32_MAX}};
    for (size_t i = 0; i < 3; i++) {
        weight = (kernels_weight *)s.d;
        CU_ASSERT(s.b->weight_create(s.d, shapes[i][0], shapes[i][1], KERNELS_WEIGHT_DTYPE, &weight, &err) ==
                  PERCH_E_UNSUPPORTED);
        CU_ASSERT(weight == NULL);
    }
    s.b->close(s.d);
}

static void a_weight_takes_what_the_plan_says(void) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        side s = side_open_cpu(NULL, bf16, 1);
        /* 100 outputs fill two panels of 64, 33 inputs 17 pairs */
        uint64_t bytes = s.b->weight_bytes(s.d, 100, 33, KERNELS_WEIGHT_DTYPE), words = 128 * (bf16 ? 17 : 33);
        CHECK_MSG(bytes == words * 4 + sizeof(kernels_weight), "%" PRIu64, bytes);
        s.b->close(s.d);
    }
}

/* A folder with made-up files, removed again. */
typedef struct tree {
    char root[64];
} tree;

static void put(const tree *t, const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", t->root, path);
    for (char *slash = full + strlen(t->root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        (void)mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    CU_ASSERT_FATAL(file != NULL);
    fputs(text, file);
    fclose(file);
}

static tree tree_make(const char *cgroup, const char *mountinfo) {
    tree t;
    snprintf(t.root, sizeof t.root, "/tmp/perch-limits-XXXXXX");
    CU_ASSERT_FATAL(mkdtemp(t.root) != NULL);
    put(&t, "/proc/meminfo", "MemTotal:       2000000 kB\nMemFree:   5 kB\nMemAvailable:    1000000 kB\n");
    put(&t, "/proc/self/cgroup", cgroup);
    put(&t, "/proc/self/mountinfo", mountinfo);
    put(&t, "/proc/self/statm", "1000 10 5 1 0 600 0\n");
    return t;
}

static void tree_check(tree *t, uint64_t wanted, const char *what) {
    uint64_t got = 0;
    CHECK_OK(host_free_bytes(t->root, &got, ERR));
    CHECK_MSG(got == wanted, "%s: %" PRIu64 " instead of %" PRIu64, what, got, wanted);
}

static void tree_remove(tree *t) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", t->root);
    CU_ASSERT(system(command) == 0);
}

#define V2_MOUNT "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MOUNT "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"

static void without_limits_it_is_what_the_kernel_says(void) {
    tree t = tree_make("0::/a\n", V2_MOUNT);
    tree_check(&t, 1000000 * 1024ull, "no group has a file");
    put(&t, "/sys/fs/cgroup/a/memory.max", "max\n");
    put(&t, "/sys/fs/cgroup/a/memory.current", "5000\n");
    tree_check(&t, 1000000 * 1024ull, "no limit");
    tree_remove(&t);
}

static void version_2_groups_are_walked_to_the_top(void) {
    tree t = tree_make("0::/a/b/c\n", "28 1 8:1 / / rw - ext4 /dev/root rw\n" V2_MOUNT);
    put(&t, "/sys/fs/cgroup/a/b/c/memory.max", "max\n");
    put(&t, "/sys/fs/cgroup/a/b/c/memory.current", "100\n");
    put(&t, "/sys/fs/cgroup/a/b/memory.max", "900000\n");
    put(&t, "/sys/fs/cgroup/a/b/memory.current", "300000\n");
    tree_check(&t, 600000, "the middle one");
    put(&t, "/sys/fs/cgroup/a/b/memory.stat", "anon 7\nfile 260000\ninactive_file 150000\nactive_file 50000\n");
    tree_check(&t, 800000, "its file pages can be dropped");
    put(&t, "/sys/fs/cgroup/a/memory.max", "500000\n");
    put(&t, "/sys/fs/cgroup/a/memory.current", "450000\n");
    tree_check(&t, 50000, "the topmost");
    put(&t, "/sys/fs/cgroup/a/b/c/memory.high", "40100\n");
    tree_check(&t, 40000, "throttling counts as a limit");
    put(&t, "/sys/fs/cgroup/a/memory.current", "500001\n");
    tree_check(&t, 0, "more used than allowed");
    tree_remove(&t);
}

static void version_1_groups_are_walked_to_the_top(void) {
    tree t = tree_make("9:name=systemd:/x\n4:cpu,memory:/jobs/one\n0::/\n", V1_MOUNT);
    put(&t, "/sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", "9223372036854771712\n");
    put(&t, "/sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes", "4096\n");
    tree_check(&t, 1000000 * 1024ull, "unlimited");
    put(&t, "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "1000000\n");
    put(&t, "/sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "400000\n");
    put(&t, "/sys/fs/cgroup/memory/jobs/memory.stat",
        "inactive_file 1\ntotal_inactive_file 100000\ntotal_active_file 9\n");
    tree_check(&t, 700009, "the parent");
    tree_remove(&t);
}

/* In a container the process's path may be the host's, and the mount shows the container's own group as its top. */
static void groups_are_found_through_what_is_mounted(void) {
    tree t = tree_make("0::/docker/7f/in\n", "30 23 0:26 /docker/7f /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    put(&t, "/sys/fs/cgroup/in/memory.max", "700\n");
    put(&t, "/sys/fs/cgroup/in/memory.current", "100\n");
    tree_check(&t, 600, "below the mounted group");
    put(&t, "/sys/fs/cgroup/memory.max", "500\n");
    put(&t, "/sys/fs/cgroup/memory.current", "100\n");
    tree_check(&t, 400, "the mounted group itself");
    put(&t, "/proc/self/cgroup", "0::/elsewhere\n");
    tree_check(&t, 400, "a path that is not there");
    put(&t, "/proc/self/cgroup", "0::/docker/7fff\n");
    tree_check(&t, 400, "a path that only begins like the mounted one");
    tree_remove(&t);
}

static void rlimits_count(void) {
    tree t = tree_make("", "");
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct rlimit before, lowered;
    CU_ASSERT(getrlimit(RLIMIT_DATA, &before) == 0);
    lowered = before;
    lowered.rlim_cur = 600 * page + (400 << 20); /* statm says that 600 pages are data */
    CU_ASSERT(setrlimit(RLIMIT_DATA, &lowered) == 0);
    tree_check(&t, 400 << 20, "RLIMIT_DATA");
    CU_ASSERT(setrlimit(RLIMIT_DATA, &before) == 0);
    tree_remove(&t);
}

static void without_meminfo_it_is_an_error(void) {
    uint64_t bytes = 1;
    perch_error err = {0};
    CU_ASSERT(host_free_bytes("/nonexistent", &bytes, &err) == PERCH_E_DEVICE);
    CHECK_MSG(strstr(err.message, "meminfo") != NULL, "%s", err.message);
}

static void this_machine_has_some_memory(void) {
    side s = side_open_cpu(NULL, false, 1);
    uint64_t bytes = 0;
    CHECK_OK(s.b->free_bytes(s.d, &bytes, ERR));
    CHECK_MSG(bytes > 1 << 20, "%" PRIu64, bytes);
    s.b->close(s.d);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"buffers_are_aligned_zeroed_and_whole", buffers_are_aligned_zeroed_and_whole},
        {"impossible_sizes_are_refused", impossible_sizes_are_refused},
        {"a_weight_takes_what_the_plan_says", a_weight_takes_what_the_plan_says},
        {"without_limits_it_is_what_the_kernel_says", without_limits_it_is_what_the_kernel_says},
        {"version_2_groups_are_walked_to_the_top", version_2_groups_are_walked_to_the_top},
        {"version_1_groups_are_walked_to_the_top", version_1_groups_are_walked_to_the_top},
        {"groups_are_found_through_what_is_mounted", groups_are_found_through_what_is_mounted},
        {"rlimits_count", rlimits_count},
        {"without_meminfo_it_is_an_error", without_meminfo_it_is_an_error},
        {"this_machine_has_some_memory", this_machine_has_some_memory},
    };
    return test_main("cpu_memory_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
