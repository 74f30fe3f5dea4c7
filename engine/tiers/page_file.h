/*
 * page_file: the disk tier's file. n_frames frames, each with room for one KV page, and for each frame a record that
 * says what is in it. Pages are read and written by threads of its own, directly from and to the caller's memory where
 * the file system can do that; the caller submits requests and polls for what is done, and never waits.
 *
 * What comes back is what was written, or it is called corrupt: a record has the page's checksum, and its own. So
 * nothing needs to be written in an order that survives a crash; a page that was torn is noticed when it is read. What
 * was complete is there again when the file is opened with the same key.
 *
 * Threads. One thread at a time calls these functions. A page_file belongs to one process at a time.
 */
#ifndef PERCH_ENGINE_TIERS_PAGE_FILE_H
#define PERCH_ENGINE_TIERS_PAGE_FILE_H

#include "base/base.h"

#define PAGE_KEY_BYTES 32u
#define PAGE_ALIGNMENT 4096u
#define PAGE_NO_FRAME UINT32_MAX

typedef struct page_file page_file;

typedef struct page_file_config {
    const char *path; /* borrowed until open returns */
    uint64_t page_bytes;
    uint32_t n_frames;
    uint32_t max_tokens;         /* that a page stands for, kept with it; 0 = none are kept */
    uint32_t n_threads;          /* that read and write: 1..64 */
    uint32_t max_requests;       /* that were submitted and not polled yet */
    uint8_t key[PAGE_KEY_BYTES]; /* of the model and the layout whose pages these are */
    bool recreate;               /* a page file of another key or shape is emptied instead of refused */
    /* NULL, or called by a thread of the file's own when there is something to poll. */
    void (*notify)(void *user);
    void *notify_user;
} page_file_config;

/* What a frame holds. What it is of is kept for the caller, whose business it is. */
typedef struct page_record {
    uint64_t generation;      /* counts up over the life of the file, never used twice; given by submit */
    uint64_t n_bytes;         /* of the page that count: the rest is not kept */
    uint64_t prefix[2];       /* the caller's name for all that the page depends on, made with the file's seed */
    uint64_t tokens_checksum; /* of the token IDs that are kept with it; given by submit */
    uint32_t n_tokens;        /* kept with it, max_tokens at most */
    uint32_t index;           /* which page of the sequence it is */
} page_record;

typedef enum page_op { PAGE_READ = 0, PAGE_WRITE = 1, PAGE_SYNC = 2 } page_op;

typedef struct page_request {
    page_op op;
    uint32_t frame; /* READ, WRITE */
    uint8_t
        *data; /* likewise: page_bytes at a multiple of PAGE_ALIGNMENT; unchanged (WRITE), unseen (READ) until polled */
    page_record record;    /* WRITE */
    const int32_t *tokens; /* WRITE: [record.n_tokens]; the caller's, unchanged until polled */
} page_request;

typedef enum page_outcome {
    PAGE_OK = 0,
    PAGE_CORRUPT =
        1, /* READ: the bytes are not those that were written: torn, flipped, cut off. The frame counts as empty */
    PAGE_FAILED =
        2 /* the system failed, `error` says how. READ: the page may still be there. WRITE: the frame is empty */
} page_outcome;

typedef struct page_result {
    uint64_t ticket;
    page_op op;
    page_outcome outcome;
    uint32_t frame;
    int error; /* FAILED: an errno */
} page_result;

typedef struct page_file_info {
    bool direct;        /* past the page cache */
    bool created;       /* now, or emptied; else it was there */
    uint32_t n_pages;   /* that were found valid at opening */
    uint32_t n_damaged; /* records that were found damaged then */
    uint64_t file_bytes;
    uint64_t seed; /* drawn when the file was created: for names that nobody outside can make collide */
} page_file_info;

/* Host memory that an open file takes. */
uint64_t page_file_host_bytes(uint32_t n_frames, uint32_t max_requests);

/* The most frames with which the file has at most file_bytes; 0: not one. */
uint32_t page_file_capacity(uint64_t page_bytes, uint32_t max_tokens, uint64_t file_bytes);

/*
 * Opens or creates the file, with all of its room taken. Errors name the path. E_INVALID: a figure out of range.
 * E_AGAIN: another process has the file. E_FORMAT: it is no page file; or one with another key or shape, which
 * `recreate` empties. E_NO_ROOM: the disk lacks room, with the figures. E_IO (random numbers, too), E_NOMEM.
 */
perch_status page_file_open(const page_file_config *config, page_file **out, perch_error *err);

/* What is being read or written is finished, what only waits is dropped. The caller's memory is its own again. */
void page_file_close(page_file *file);

page_file_info page_file_info_get(const page_file *file);

/* What the frame holds; false: nothing, or it is being written. */
bool page_file_get(const page_file *file, uint32_t frame, page_record *out);

/*
 * Copies the record.n_tokens tokens that are kept with a page that was found at opening: out[max_tokens]. False: they are not what
 * was written, or can't be read. It reads the disk.
 */
bool page_file_tokens(const page_file *file, uint32_t frame, int32_t *out);

/*
 * Queues requests; their tickets are *first and those after it. Reads go before writes; what is in neighbouring frames,
 * in the order of the requests, goes at once. A SYNC is done when all that was submitted before it is on the disk. The
 * records of writes get their generations. E_AGAIN: max_requests; E_INVALID: a frame that is out of range, has a
 * request under way already or nothing to read, n_bytes or n_tokens out of range, data that is not aligned. Then none of them is
 * queued.
 */
perch_status page_file_submit(page_file *file, page_request *requests, size_t n, uint64_t *first, perch_error *err);

/* Takes out what is done, at most cap, in the order in which it was; returns how many. Never blocks. */
size_t page_file_poll(page_file *file, page_result *out, size_t cap);

/* Of n bytes: what pages are checked by, for other things that go with them. */
uint64_t page_checksum(const void *data, size_t n);

#endif
