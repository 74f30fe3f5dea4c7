/*
 * The page file: what was written comes back, also after a restart and after a kill; what was damaged never does; files
 * that are not ours, not this model's or in use are refused.
 */
#include "engine/tiers/page_impl.h"
#include "engine/tiers/page_testing.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static void check_outcomes(const page_result *results, size_t n, page_outcome expected) {
    for (size_t i = 0; i < n; i++) {
        CHECK_MSG(results[i].outcome == expected, "request %zu, frame %u: %d (%s)", i, results[i].frame,
                  (int)results[i].outcome, strerror(results[i].error));
    }
}

/* Writes pages 0..n-1, page p with the number base + p. */
static void write_pages(page_file *file, uint32_t n, uint64_t base) {
    uint8_t *data = testing_pages(n);
    page_request requests[TESTING_FRAMES];
    page_result results[TESTING_FRAMES];
    for (uint32_t i = 0; i < n; i++) {
        requests[i] = testing_write(i, data + i * TESTING_ROOM, base + i, TESTING_PAGE);
    }
    if (testing_run(file, requests, n, results)) {
        check_outcomes(results, n, PAGE_OK);
    }
    free(data);
}

static void what_was_written_comes_back(void) {
    /* Runs of neighbours, with memory side by side or not, a short page in the middle of one; frames alone. */
    static const uint32_t frames[] = {3, 4, 5, 6, 7, 20, 22, 21, 39, 0};
    enum { N = sizeof frames / sizeof frames[0] };
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
        page_file *file = testing_open(n_threads);
        uint8_t *data = testing_pages(2 * N);
        page_request requests[N];
        page_result results[N];
        page_record record;
        CU_ASSERT(!page_file_get(file, 3, &record) && !page_file_get(file, TESTING_FRAMES, &record));
        for (uint32_t i = 0; i < N; i++) {
            uint8_t *at = data + (i < 3 ? i : 2 * N - 1 - i) * TESTING_ROOM;
            requests[i] = testing_write(frames[i], at, 100 + i, i == 2 ? 5000 : TESTING_PAGE);
        }
        CU_ASSERT(testing_run(file, requests, N, results));
        check_outcomes(results, N, PAGE_OK);
        for (uint32_t i = 0; i < N; i++) {
            CU_ASSERT(results[i].frame == frames[i] && results[i].op == PAGE_WRITE);
            CU_ASSERT(requests[i].record.generation == i + 1);
            CU_ASSERT(page_file_get(file, frames[i], &record));
            CU_ASSERT(testing_same(&record, &requests[i].record));
            requests[i] = testing_read(frames[i], data + i * TESTING_ROOM);
        }
        memset(data, 0, 2 * N * TESTING_ROOM);
        CU_ASSERT(testing_run(file, requests, N, results));
        check_outcomes(results, N, PAGE_OK);
        for (uint32_t i = 0; i < N; i++) {
            CHECK_MSG(testing_has(data + i * TESTING_ROOM, i == 2 ? 5000 : TESTING_PAGE, 100 + i), "frame %u",
                      frames[i]);
            CU_ASSERT(testing_one(file, testing_read(frames[i], data)) == PAGE_OK); /* alone: it lies where it should */
            CU_ASSERT(testing_has(data, i == 2 ? 5000 : TESTING_PAGE, 100 + i));
        }
        free(data);
        page_file_close(file);
        unlink(testing_path);
    }
}

static void a_restart_finds_the_pages_again(void) {
    page_file *file = testing_open(2);
    uint8_t *data = testing_pages(1);
    page_record records[TESTING_FRAMES], record;
    CU_ASSERT(page_file_info_get(file).created);
    write_pages(file, 30, 1000);
    page_request again = testing_write(7, data, 77, 4097);
    CU_ASSERT(testing_one(file, again) == PAGE_OK);
    for (uint32_t i = 0; i < TESTING_FRAMES; i++) {
        CU_ASSERT(page_file_get(file, i, &records[i]) == (i < 30));
    }
    page_file_close(file);
    file = testing_open(2);
    const page_file_info info = page_file_info_get(file);
    CU_ASSERT(!info.created && info.n_pages == 30 && info.n_damaged == 0);
    for (uint32_t i = 0; i < TESTING_FRAMES; i++) {
        CU_ASSERT(page_file_get(file, i, &record) == (i < 30));
        if (i < 30) {
            CU_ASSERT(testing_same(&record, &records[i]));
            CU_ASSERT(testing_one(file, testing_read(i, data)) == PAGE_OK);
            CU_ASSERT(testing_has(data, i == 7 ? 4097 : TESTING_PAGE, i == 7 ? 77 : 1000 + i));
            CU_ASSERT(testing_has_tokens(file, i, i == 7 ? 77 : 1000 + i));
        }
    }
    page_request next = testing_write(35, data, 5, 10);
    page_result result;
    CU_ASSERT(testing_run(file, &next, 1, &result) && next.record.generation == 32);
    free(data);
    page_file_close(file);
    unlink(testing_path);
}

static void tokens_that_were_changed_are_not_given_out(void) {
    page_file *file = testing_open(1);
    int32_t tokens[TESTING_TOKENS];
    write_pages(file, 3, 50);
    const uint64_t at = page_tokens_at(file, 1);
    CU_ASSERT(!page_file_tokens(file, 3, tokens) && !page_file_tokens(file, TESTING_FRAMES, tokens));
    page_file_close(file);
    int fd = open(testing_path, O_RDWR | O_CLOEXEC), other = 12345;
    CU_ASSERT(pwrite(fd, &other, sizeof other, (off_t)at + 40) == (ssize_t)sizeof other);
    close(fd);
    file = testing_open(1);
    CU_ASSERT(testing_has_tokens(file, 0, 50) && testing_has_tokens(file, 2, 52));
    CU_ASSERT(!page_file_tokens(file, 1, tokens));
    page_file_close(file);
    unlink(testing_path);
}

static void a_file_of_another_model_is_refused_or_emptied(void) {
    page_file *file = testing_open(1);
    page_record record;
    write_pages(file, 2, 1);
    page_file_close(file);
    for (int i = 0; i < 4; i++) {
        static const char *const says[] = {"key begins with 74686520, not 00686520", "pages of 12800 bytes, not 8192",
                                           "40 frames, not 41", "24 tokens a page, not 25"};
        page_file_config other = testing_config(1);
        other.key[0] = i == 0 ? 0 : other.key[0];
        other.page_bytes = i == 1 ? 8192 : other.page_bytes;
        other.n_frames += i == 2;
        other.max_tokens += i == 3;
        CHECK_ERROR(page_file_open(&other, &file, &testing_error), PERCH_E_FORMAT, says[i]);
        CU_ASSERT(file == NULL && strstr(testing_error.message, testing_path) != NULL);
    }
    file = testing_open(1); /* nothing was changed */
    CU_ASSERT(page_file_get(file, 1, &record));
    page_file_close(file);
    page_file_config other = testing_config(1);
    other.key[31] = 'x';
    other.recreate = true;
    CU_ASSERT(page_file_open(&other, &file, &testing_error) == PERCH_OK);
    CU_ASSERT(page_file_info_get(file).created && !page_file_get(file, 1, &record));
    page_file_close(file);
    CU_ASSERT(page_file_open(&other, &file, &testing_error) == PERCH_OK); /* fits: it is kept */
    CU_ASSERT(!page_file_info_get(file).created);
    page_file_close(file);
    unlink(testing_path);
}

static void what_is_not_ours_is_never_touched(void) {
    static const char letters[] = "somebody's letters, which are longer than a header is, for the sake of the test";
    static const char *const contents[] = {"", "x", letters};
    page_file_config config = testing_config(1);
    page_file *file;
    config.recreate = true;
    for (int i = 1; i < 4; i++) { /* the last: zeros, as a disk's image begins */
        uint8_t got[4096] = {0}, want[4096] = {0};
        if (i < 3) {
            memcpy(want, contents[i], strlen(contents[i]));
        }
        const size_t n = i < 3 ? strlen(contents[i]) : sizeof want;
        int fd = open(testing_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CU_ASSERT(write(fd, want, n) == (ssize_t)n);
        CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_FORMAT, "no page file");
        CU_ASSERT(pread(fd, got, sizeof got, 0) == (ssize_t)n && memcmp(got, want, sizeof got) == 0);
        close(fd);
    }
    unlink(testing_path);
    config.path = testing_folder;
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_IO, "Is a directory");
    config.path = "/dev/null";
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_FORMAT, "no regular file");
    /* One whose making did not end is begun anew. */
    const page_header begun = {.magic = PAGE_MAGIC};
    int fd = open(testing_path, O_RDWR | O_CREAT, 0600);
    CU_ASSERT(write(fd, &begun, sizeof begun) == sizeof begun && ftruncate(fd, 100000) == 0);
    close(fd);
    file = testing_open(1);
    CU_ASSERT(page_file_info_get(file).created);
    page_file_close(file);
    unlink(testing_path);
}

static void one_at_a_time_has_the_file(void) {
    page_file *file = testing_open(1), *other = NULL;
    const page_file_config config = testing_config(1);
    struct stat has;
    CHECK_ERROR(page_file_open(&config, &other, &testing_error), PERCH_E_AGAIN, "in use by another process");
    pid_t child = fork();
    if (child == 0) {
        _exit(page_file_open(&config, &other, NULL) == PERCH_E_AGAIN ? 0 : 1);
    }
    int code = -1;
    CU_ASSERT(waitpid(child, &code, 0) == child && code == 0);
    CU_ASSERT(stat(testing_path, &has) == 0 && (has.st_mode & 0777) == 0600); /* conversations are in it */
    CU_ASSERT((uint64_t)has.st_size == page_file_info_get(file).file_bytes && has.st_blocks * 512 >= has.st_size);
    page_file_close(file);
    file = testing_open(1);
    page_file_close(file);
    unlink(testing_path);
}

static void flip(uint64_t byte, int bit) {
    uint8_t value = 0;
    int fd = open(testing_path, O_RDWR);
    CU_ASSERT(pread(fd, &value, 1, (off_t)byte) == 1);
    value ^= (uint8_t)(1 << bit);
    CU_ASSERT(pwrite(fd, &value, 1, (off_t)byte) == 1);
    close(fd);
}

static uint64_t frame_offset(uint32_t frame) { return 3 * PAGE_ALIGNMENT + frame * TESTING_ROOM; }

static void a_flipped_bit_of_a_page_is_noticed(void) {
    test_rng rng = {test_seed(3)};
    page_file *file = testing_open(1);
    uint8_t *data = testing_pages(TESTING_FRAMES);
    page_record record;
    write_pages(file, TESTING_FRAMES, 1);
    for (uint32_t i = 0; i < TESTING_FRAMES;
         i += 2) { /* the first byte, the last, and others; beyond the page nothing counts */
        uint64_t byte = i == 0   ? 0
                        : i == 2 ? TESTING_PAGE - 1
                        : i == 4 ? TESTING_PAGE
                                 : test_rng_below(&rng, TESTING_PAGE);
        flip(frame_offset(i) + byte, (int)test_rng_below(&rng, 8));
    }
    page_request requests[TESTING_FRAMES];
    page_result results[TESTING_FRAMES];
    for (uint32_t i = 0; i < TESTING_FRAMES; i++) {
        requests[i] = testing_read(i, data + i * TESTING_ROOM);
    }
    CU_ASSERT(testing_run(file, requests, TESTING_FRAMES, results)); /* in large transfers: each page by itself */
    for (uint32_t i = 0; i < TESTING_FRAMES; i++) {
        const bool is_whole = i % 2 == 1 || i == 4;
        CHECK_MSG(results[i].outcome == (is_whole ? PAGE_OK : PAGE_CORRUPT), "frame %u: %d", i, results[i].outcome);
        CU_ASSERT(page_file_get(file, i, &record) == is_whole);
    }
    write_pages(file, 2, 9); /* and can be written again */
    CU_ASSERT(testing_one(file, testing_read(0, data)) == PAGE_OK);
    free(data);
    page_file_close(file);
    unlink(testing_path);
}

/* Every byte of a record and of the header. */
static void a_flipped_bit_of_a_record_or_header_is_noticed(void) {
    page_file *file = testing_open(1);
    page_record record;
    write_pages(file, 3, 1);
    page_file_close(file);
    for (uint32_t byte = 0; byte < sizeof(disk_record); byte++) {
        flip(PAGE_ALIGNMENT + sizeof(disk_record) + byte, (int)(byte % 8));
        file = testing_open(1);
        const page_file_info info = page_file_info_get(file);
        CHECK_MSG(info.n_pages == 2 && info.n_damaged == 1 && !page_file_get(file, 1, &record), "byte %u", byte);
        page_file_close(file);
        flip(PAGE_ALIGNMENT + sizeof(disk_record) + byte, (int)(byte % 8));
    }
    /* A record that came to another frame's place. */
    disk_record moved;
    int fd = open(testing_path, O_RDWR);
    CU_ASSERT(pread(fd, &moved, sizeof moved, PAGE_ALIGNMENT) == sizeof moved);
    CU_ASSERT(pwrite(fd, &moved, sizeof moved, PAGE_ALIGNMENT + 9 * sizeof moved) == sizeof moved);
    close(fd);
    file = testing_open(1);
    CU_ASSERT(page_file_info_get(file).n_damaged == 1 && !page_file_get(file, 9, &record));
    page_file_close(file);
    const page_file_config config = testing_config(1);
    for (uint32_t byte = 0; byte < sizeof(page_header); byte++) {
        flip(byte, (int)(byte % 8));
        perch_status status = page_file_open(&config, &file, &testing_error);
        CHECK_MSG(status == PERCH_E_FORMAT, "byte %u: %s", byte, perch_status_name(status));
        page_file_close(file);
        flip(byte, (int)(byte % 8));
    }
    unlink(testing_path);
}

static void a_torn_or_short_page_is_noticed(void) {
    page_file *file = testing_open(1);
    uint8_t *data = testing_pages(1);
    page_record record;
    write_pages(file, 6, 1);
    /* Half of frame 2 is what frame 3 has: a write that did not end. */
    int fd = open(testing_path, O_RDWR);
    CU_ASSERT(pread(fd, data, 8192, (off_t)frame_offset(3)) == 8192);
    CU_ASSERT(pwrite(fd, data, 8192, (off_t)frame_offset(2)) == 8192);
    CU_ASSERT(testing_one(file, testing_read(2, data)) == PAGE_CORRUPT);
    CU_ASSERT(ftruncate(fd, (off_t)frame_offset(5) - 4096) == 0);
    page_request rest[] = {testing_read(3, data), testing_read(4, data), testing_read(5, data)};
    uint8_t *each = testing_pages(3);
    page_result results[3];
    for (int i = 0; i < 3; i++) {
        rest[i].data = each + (size_t)i * TESTING_ROOM;
    }
    CU_ASSERT(testing_run(file, rest, 3, results));
    CU_ASSERT(results[0].outcome == PAGE_OK && results[1].outcome == PAGE_CORRUPT &&
              results[2].outcome == PAGE_CORRUPT);
    page_file_close(file);
    CU_ASSERT(ftruncate(fd, PAGE_ALIGNMENT + 100) == 0); /* one record is left, and half of another */
    close(fd);
    file = testing_open(1);
    CU_ASSERT(page_file_info_get(file).n_pages == 1 && page_file_info_get(file).n_damaged == 1);
    CU_ASSERT(page_file_get(file, 0, &record) && testing_one(file, testing_read(0, data)) == PAGE_CORRUPT);
    free(each);
    free(data);
    page_file_close(file);
    unlink(testing_path);
}

/* Writes and syncs for ever; tells the number of each page that was synced. */
static void write_until_killed(int to_parent) {
    const page_file_config config = testing_config(2);
    page_file *file = NULL;
    uint8_t *data = testing_pages(4);
    if (page_file_open(&config, &file, NULL) != PERCH_OK) {
        _exit(1);
    }
    for (uint64_t round = 0;; round++) {
        page_request requests[5] = {
            {.op = PAGE_SYNC}, {.op = PAGE_SYNC}, {.op = PAGE_SYNC}, {.op = PAGE_SYNC}, {.op = PAGE_SYNC}};
        page_result results[5];
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t frame = (uint32_t)((5 * round + i) % TESTING_FRAMES);
            requests[i] = testing_write(frame, data + i * TESTING_ROOM, 8 * round + i, TESTING_PAGE);
        }
        if (!testing_run(file, requests, 5, results) || write(to_parent, &round, sizeof round) != sizeof round) {
            _exit(1);
        }
    }
}

static void a_kill_loses_no_synced_page_and_brings_no_wrong_one(void) {
    test_rng rng = {test_seed(11)};
    uint8_t *data = testing_pages(1);
    uint64_t n_pages = 0;
    for (uint64_t i = 0; i < test_scaled(12); i++) {
        int tube[2];
        uint64_t round = UINT64_MAX;
        CU_ASSERT_FATAL(pipe(tube) == 0);
        pid_t child = fork();
        if (child == 0) {
            write_until_killed(tube[1]);
        }
        close(tube[1]);
        (void)!read(tube[0], &round, sizeof round); /* the first, and then some time */
        usleep((useconds_t)test_rng_below(&rng, 20000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        for (uint64_t later; read(tube[0], &later, sizeof later) == sizeof later;) {
            round = later;
        }
        close(tube[0]);
        page_file *file = testing_open(1);
        CU_ASSERT(round != UINT64_MAX && page_file_info_get(file).n_damaged == 0);
        for (uint32_t frame = 0; frame < TESTING_FRAMES; frame++) {
            page_record record;
            if (page_file_get(file, frame, &record)) {
                page_outcome outcome = testing_one(file, testing_read(frame, data));
                const uint64_t written = record.prefix[0] / 8;
                n_pages += outcome == PAGE_OK;
                /* Torn is what may have been under way: a frame comes again after 8 rounds. */
                CHECK_MSG(outcome == PAGE_CORRUPT ? round + 1 >= written + 8
                                                  : testing_has(data, TESTING_PAGE, record.prefix[0]) &&
                                                        testing_has_tokens(file, frame, record.prefix[0]),
                          "frame %u of round %" PRIu64 " after round %" PRIu64 ": %d", frame, written, round,
                          (int)outcome);
            }
        }
        for (uint32_t k = 0; k < 4; k++) { /* the last that was synced */
            page_record record;
            const uint32_t frame = (uint32_t)((5 * round + k) % TESTING_FRAMES);
            CHECK_MSG(page_file_get(file, frame, &record) && record.prefix[0] == 8 * round + k, "frame %u", frame);
        }
        page_file_close(file);
        unlink(testing_path);
    }
    CHECK_MSG(n_pages > 4, "%" PRIu64 " pages were found", n_pages);
    free(data);
}

static void requests_that_cannot_be_are_refused(void) {
    page_file *file = testing_open(1);
    uint8_t *data = testing_pages(2);
    page_record record;
    page_result result;
    uint64_t first;
    write_pages(file, 1, 1);
    page_request many[65];
    const struct {
        page_request request;
        const char *says;
    } wrong[] = {
        {testing_read(TESTING_FRAMES, data), "frame 40 of 40"},
        {testing_read(5, data), "frame 5 is empty"},
        {testing_read(0, data + 512), "not aligned"},
        {testing_read(0, NULL), "not aligned"},
        {{.op = PAGE_WRITE, .frame = 3, .data = data}, "0 bytes of a page"},
        {{.op = PAGE_WRITE, .frame = 3, .data = data, .record = {.n_bytes = TESTING_PAGE + 1}},
         "12801 bytes of a page"},
        {{.op = PAGE_WRITE, .frame = 3, .data = data, .record = {.n_bytes = 1, .n_tokens = 1}}, "0 tokens"},
        {{.op = PAGE_WRITE,
          .frame = 3,
          .data = data,
          .tokens = testing_tokens(1),
          .record = {.n_bytes = 1, .n_tokens = TESTING_TOKENS + 1}},
         "25 tokens, a page has 24 at most"},
        {{.op = (page_op)3, .data = data}, "op 3"},
        {testing_read(0, data + TESTING_ROOM), "frame 0 has a request under way"}, /* that is beside it */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        page_request two[] = {i < 9 ? testing_write(9, data, 5, 100) : testing_read(0, data), wrong[i].request};
        CHECK_ERROR(page_file_submit(file, two, 2, &first, &testing_error), PERCH_E_INVALID, wrong[i].says);
        CU_ASSERT(strstr(testing_error.message, "request 1") != NULL);
    }
    for (size_t i = 0; i < 65; i++) {
        many[i] = (page_request){.op = PAGE_SYNC};
    }
    CHECK_ERROR(page_file_submit(file, many, 65, &first, &testing_error), PERCH_E_AGAIN, "64 of 64 may still be made");
    CU_ASSERT(page_file_poll(file, &result, 1) == 0 && !page_file_get(file, 9, &record));
    CU_ASSERT(testing_one(file, testing_read(0, data)) == PAGE_OK); /* none of that left a trace */
    CU_ASSERT(page_file_submit(file, many, 64, &first, &testing_error) == PERCH_OK);
    CHECK_ERROR(page_file_submit(file, many, 1, &first, &testing_error), PERCH_E_AGAIN, "0 of 64");
    page_file_close(file); /* with all that under way */
    free(data);
    page_file_config config = testing_config(0);
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_INVALID, "0 threads");
    config = testing_config(1);
    config.n_frames = 0;
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_INVALID, "of 0 frames");
    unlink(testing_path);
}

static void a_disk_that_lacks_room_is_told_with_figures(void) {
    page_file_config config = testing_config(1);
    struct rlimit before, small;
    struct stat has;
    page_file *file;
    config.page_bytes = (uint64_t)1 << 50;
    config.n_frames = 4;
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_NO_ROOM, "no room for 4 frames, 45035996");
    CU_ASSERT(strstr(testing_error.message, "are free") != NULL && stat(testing_path, &has) == 0 && has.st_size == 0);
    config.page_bytes = UINT64_MAX / 2 - 4096;
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_INVALID, "frames of");
    config = testing_config(1);
    CU_ASSERT(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small = (struct rlimit){100000, before.rlim_max};
    CU_ASSERT(setrlimit(RLIMIT_FSIZE, &small) == 0);
    CHECK_ERROR(page_file_open(&config, &file, &testing_error), PERCH_E_NO_ROOM, "RLIMIT_FSIZE");
    CU_ASSERT(setrlimit(RLIMIT_FSIZE, &before) == 0);
    page_file_close(testing_open(1));
    unlink(testing_path);
}

static _Atomic uint32_t n_notes;

static void note(void *user) {
    CU_ASSERT(user == &n_notes);
    atomic_fetch_add(&n_notes, 1);
}

static void the_caller_is_told_and_idle_threads_use_no_cpu(void) {
    page_file_config config = testing_config(3);
    page_file *file = NULL;
    config.notify = note;
    config.notify_user = &n_notes;
    CU_ASSERT_FATAL(page_file_open(&config, &file, &testing_error) == PERCH_OK);
    write_pages(file, TESTING_FRAMES, 1);
    for (int i = 0; i < 1000 && atomic_load(&n_notes) == 0; i++) {
        usleep(1000);
    }
    CU_ASSERT(atomic_load(&n_notes) >= 1);
    double share = test_idle_share();
    CHECK_MSG(share < 0.01, "%.2f %% of a CPU", 100 * share);
    page_file_close(file);
    unlink(testing_path);
}

/* Random requests of several threads' file against a model, with restarts. */
static void random_traffic_agrees_with_a_model(void) {
    const uint64_t seed = test_seed(21);
    test_rng rng = {seed};
    uint64_t number[TESTING_FRAMES] = {0}, writing[TESTING_FRAMES] = {0}, n_numbers = 0, first;
    bool busy[TESTING_FRAMES] = {false};
    uint8_t *data = testing_pages(TESTING_FRAMES);
    page_file *file = testing_open(3);
    uint32_t n_flying = 0;
    for (uint64_t i = 0; i < test_scaled(1500); i++) {
        page_request requests[6];
        size_t n = 0;
        uint32_t frame = (uint32_t)test_rng_below(&rng, TESTING_FRAMES);
        const size_t most = 1 + test_rng_below(&rng, 6);
        for (; n < most && frame < TESTING_FRAMES && !busy[frame]; frame++) {
            uint8_t *at = data + frame * TESTING_ROOM;
            if (test_rng_below(&rng, 2) == 0 && number[frame] != 0) {
                requests[n++] = testing_read(frame, at);
            } else {
                requests[n++] = testing_write(frame, at, writing[frame] = ++n_numbers, TESTING_PAGE);
            }
            busy[frame] = true;
        }
        if (n > 0) {
            CU_ASSERT(page_file_submit(file, requests, n, &first, &testing_error) == PERCH_OK);
            n_flying += (uint32_t)n;
        }
        page_result results[10];
        const size_t got = page_file_poll(file, results, 10);
        for (size_t k = 0; k < got; k++) {
            const uint32_t f = results[k].frame;
            number[f] = results[k].op == PAGE_WRITE ? writing[f] : number[f];
            CHECK_MSG(results[k].outcome == PAGE_OK && testing_has(data + f * TESTING_ROOM, TESTING_PAGE, number[f]),
                      "seed %" PRIu64 ", frame %u: %d", seed, f, (int)results[k].outcome);
            busy[f] = false;
        }
        n_flying -= (uint32_t)got;
        if (n_flying == 0 && test_rng_below(&rng, 20) == 0) {
            page_file_close(file);
            file = testing_open(3);
        }
    }
    page_file_close(file); /* with whatever is under way */
    free(data);
    unlink(testing_path);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_was_written_comes_back", what_was_written_comes_back},
        {"a_restart_finds_the_pages_again", a_restart_finds_the_pages_again},
        {"tokens_that_were_changed_are_not_given_out", tokens_that_were_changed_are_not_given_out},
        {"a_file_of_another_model_is_refused_or_emptied", a_file_of_another_model_is_refused_or_emptied},
        {"what_is_not_ours_is_never_touched", what_is_not_ours_is_never_touched},
        {"one_at_a_time_has_the_file", one_at_a_time_has_the_file},
        {"a_flipped_bit_of_a_page_is_noticed", a_flipped_bit_of_a_page_is_noticed},
        {"a_flipped_bit_of_a_record_or_header_is_noticed", a_flipped_bit_of_a_record_or_header_is_noticed},
        {"a_torn_or_short_page_is_noticed", a_torn_or_short_page_is_noticed},
        {"a_kill_loses_no_synced_page_and_brings_no_wrong_one", a_kill_loses_no_synced_page_and_brings_no_wrong_one},
        {"requests_that_cannot_be_are_refused", requests_that_cannot_be_are_refused},
        {"a_disk_that_lacks_room_is_told_with_figures", a_disk_that_lacks_room_is_told_with_figures},
        {"the_caller_is_told_and_idle_threads_use_no_cpu", the_caller_is_told_and_idle_threads_use_no_cpu},
        {"random_traffic_agrees_with_a_model", random_traffic_agrees_with_a_model},
    };
    if (!testing_begin()) {
        fprintf(stderr, "page_file_test: can't make a folder %s\n", testing_folder);
        return 1;
    }
    int code = test_main("page_file_test", tests, sizeof tests / sizeof tests[0], argc, argv);
    testing_end();
    return code;
}
