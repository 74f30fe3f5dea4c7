/*
 * What the files of page_file share: the layout on disk, and the state of an open file.
 *
 * On disk: one block with the header, the records side by side, from the next block on the tokens of each, and from the next
 * one on the frames. Numbers are this machine's own.
 */
#ifndef PERCH_ENGINE_TIERS_PAGE_IMPL_H
#define PERCH_ENGINE_TIERS_PAGE_IMPL_H

#include "engine/tiers/page_file.h"

#include <pthread.h>

#define PAGE_MAGIC 0x3145474150435250u /* "PRCPAGE1" */
#define PAGE_VERSION 2u
#define PAGE_NONE UINT32_MAX

typedef struct page_header {
    uint64_t magic;
    uint32_t version;
    uint32_t n_frames;
    uint64_t page_bytes;
    uint8_t key[PAGE_KEY_BYTES];
    uint64_t max_tokens;
    uint64_t seed;
    uint64_t checksum; /* of what is before it */
} page_header;

/* generation = 0: the frame is empty. */
typedef struct disk_record {
    uint64_t generation;
    uint64_t prefix[2];
    uint64_t tokens_checksum, page_checksum;
    uint64_t n_bytes;
    uint32_t frame, index, n_tokens, unused;
    uint64_t checksum; /* of what is before it */
} disk_record;

_Static_assert(sizeof(page_header) == 80 && sizeof(disk_record) == 72, "no padding");

/* Where everything lies. */
typedef struct page_layout {
    uint64_t frame_bytes; /* from one frame to the next: page_bytes up to PAGE_ALIGNMENT */
    uint64_t records_at, tokens_at, frames_at, file_bytes;
} page_layout;

/* A request on its way; then `result` says what became of it. */
typedef struct page_job {
    page_request request;
    uint64_t page_checksum; /* READ: that it must have. WRITE: that it has */
    page_result result;
    uint32_t next; /* in whichever list it is in, or PAGE_NONE */
} page_job;

typedef struct job_list {
    uint32_t first, last, n;
} job_list;

/* A frame as the caller's thread knows it. */
typedef struct page_frame {
    page_record record;
    uint64_t page_checksum;
    bool is_valid;
    bool is_busy; /* from submit to poll */
} page_frame;

struct page_file {
    page_file_config config;
    page_layout layout;
    page_file_info info;
    char *path;
    int fd;      /* through the page cache: the header and the records. It has the lock */
    int data_fd; /* past it, or fd */

    /* The caller's thread's. */
    page_frame *frames; /* [n_frames] */
    uint64_t generation;
    uint64_t n_tickets;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work;
    page_job *jobs; /* [max_requests]; each is in one list, or with a thread */
    job_list unused, reads, writes, done;
    uint32_t n_writing; /* with threads */
    bool stopping;
    pthread_t *threads; /* [n_threads], n_running of them run */
    uint32_t n_running;
};

/* page_format.c: opens the file, locks it, checks or creates it, reads its records into `frames`. */
perch_status page_format_open(page_file *file, perch_error *err);
void page_format_close(page_file *file);
disk_record page_format_record(uint32_t frame, const page_record *record, uint64_t checksum);

/* page_io.c. All of n bytes; where the file ends before, false with *error = 0, else the errno. */
bool page_read_all(int fd, void *data, size_t n, uint64_t offset, int *error);
bool page_write_all(int fd, const void *data, size_t n, uint64_t offset, int *error);

/* What was written, by either way into the file, is on the disk; else false, with the errno. */
bool page_sync_all(int fd, int *error);

/* Jobs of one kind that go at once: those of neighbouring frames, all but the last of whole pages; or one SYNC. */
#define PAGE_BATCH 32u
typedef struct page_batch {
    page_job *jobs[PAGE_BATCH];
    uint32_t n;
} page_batch;

/* Fills in the results. */
void page_batch_run(const page_file *file, const page_batch *batch);

/* Bytes of a page that are read and written: those that count, up to the next PAGE_ALIGNMENT. */
static inline uint64_t page_moved_bytes(uint64_t n_bytes) {
    return (n_bytes + PAGE_ALIGNMENT - 1) / PAGE_ALIGNMENT * PAGE_ALIGNMENT;
}

/* Where the tokens of a frame are kept. */
static inline uint64_t page_tokens_at(const page_file *file, uint32_t frame) {
    return file->layout.tokens_at + (uint64_t)frame * file->config.max_tokens * sizeof(int32_t);
}

#endif
