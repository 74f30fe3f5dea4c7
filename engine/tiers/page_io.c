/*
 * What the page file's threads do: neighbouring frames go in one transfer, a page is checked when it was read, and a
 * record is written after its page and tokens. Where a transfer of several pages fails, each is tried alone, so that one bad block
 * costs one page.
 */
#include "engine/tiers/page_impl.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

/* --- all of it, however it comes */

bool page_read_all(int fd, void *data, size_t n, uint64_t offset, int *error) {
    for (size_t at = 0; at < n;) {
        ssize_t done = pread(fd, (uint8_t *)data + at, n - at, (off_t)(offset + at));
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            *error = done < 0 ? errno : 0;
            return false;
        }
        at += (size_t)done;
    }
    return true;
}

bool page_write_all(int fd, const void *data, size_t n, uint64_t offset, int *error) {
    for (size_t at = 0; at < n;) {
        ssize_t done = pwrite(fd, (const uint8_t *)data + at, n - at, (off_t)(offset + at));
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            *error = done < 0 ? errno : EIO;
            return false;
        }
        at += (size_t)done;
    }
    return true;
}

bool page_sync_all(int fd, int *error) {
    int code;
    do {
        code = fdatasync(fd);
    } while (code != 0 && errno == EINTR);
    *error = code == 0 ? 0 : errno;
    return code == 0;
}

/* Takes n bytes off the front of a list of pieces. */
static void advance(struct iovec **pieces, int *n_pieces, size_t n) {
    while (n > 0 && *n_pieces > 0) {
        struct iovec *first = *pieces;
        const size_t some = n < first->iov_len ? n : first->iov_len;
        first->iov_base = (uint8_t *)first->iov_base + some;
        first->iov_len -= some;
        n -= some;
        if (first->iov_len == 0) {
            (*pieces)++;
            (*n_pieces)--;
        }
    }
}

/* Pages of a batch, to or from frames side by side. As page_read_all and page_write_all. */
static bool move_pages(const page_file *file, page_op op, struct iovec *pieces, int n_pieces, uint64_t offset,
                       int *error) {
    /* What is past the page cache goes by whole blocks: of one that came in part, all is asked for again. */
    const size_t unit = file->data_fd != file->fd ? PAGE_ALIGNMENT : 1;
    while (n_pieces > 0) {
        ssize_t done = op == PAGE_READ ? preadv(file->data_fd, pieces, n_pieces, (off_t)offset)
                                       : pwritev(file->data_fd, pieces, n_pieces, (off_t)offset);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        const size_t whole = done > 0 ? (size_t)done / unit * unit : 0;
        if (whole == 0) {
            *error = done < 0 ? errno : op == PAGE_READ ? 0 : EIO;
            return false;
        }
        advance(&pieces, &n_pieces, whole);
        offset += whole;
    }
    return true;
}

/* --- batches */

static int gather(const page_batch *batch, struct iovec *pieces) {
    int n = 0;
    for (uint32_t i = 0; i < batch->n; i++) {
        const page_request *r = &batch->jobs[i]->request;
        const size_t bytes = (size_t)page_moved_bytes(r->record.n_bytes);
        if (n > 0 && (uint8_t *)pieces[n - 1].iov_base + pieces[n - 1].iov_len == r->data) {
            pieces[n - 1].iov_len += bytes;
        } else {
            pieces[n++] = (struct iovec){r->data, bytes};
        }
    }
    return n;
}

static bool move_batch(const page_file *file, const page_batch *batch, int *error) {
    struct iovec pieces[PAGE_BATCH];
    const page_request *first = &batch->jobs[0]->request;
    const int n = gather(batch, pieces);
    return move_pages(file, first->op, pieces, n, file->layout.frames_at + first->frame * file->layout.frame_bytes,
                      error);
}

static void set_outcome(const page_batch *batch, page_outcome outcome, int error) {
    for (uint32_t i = 0; i < batch->n; i++) {
        batch->jobs[i]->result.outcome = outcome;
        batch->jobs[i]->result.error = error;
    }
}

static bool read_batch(const page_file *file, const page_batch *batch, int *error) {
    if (!move_batch(file, batch, error)) {
        set_outcome(batch, *error == 0 ? PAGE_CORRUPT : PAGE_FAILED, *error);
        return false;
    }
    for (uint32_t i = 0; i < batch->n; i++) {
        page_job *job = batch->jobs[i];
        const uint64_t checksum = page_checksum(job->request.data, (size_t)job->request.record.n_bytes);
        job->result.outcome = checksum == job->page_checksum ? PAGE_OK : PAGE_CORRUPT;
        job->result.error = 0;
    }
    return true;
}

static bool write_tokens(const page_file *file, const page_batch *batch, int *error) {
    for (uint32_t i = 0; i < batch->n; i++) {
        const page_request *r = &batch->jobs[i]->request;
        if (!page_write_all(file->fd, r->tokens, r->record.n_tokens * sizeof *r->tokens, page_tokens_at(file, r->frame),
                            error)) {
            return false;
        }
    }
    return true;
}

static bool write_batch(const page_file *file, const page_batch *batch, int *error) {
    disk_record records[PAGE_BATCH];
    for (uint32_t i = 0; i < batch->n; i++) {
        page_job *job = batch->jobs[i];
        job->page_checksum = page_checksum(job->request.data, (size_t)job->request.record.n_bytes);
        records[i] = page_format_record(job->request.frame, &job->request.record, job->page_checksum);
    }
    const uint64_t at = file->layout.records_at + batch->jobs[0]->request.frame * sizeof records[0];
    const bool done = move_batch(file, batch, error) && write_tokens(file, batch, error) &&
                      page_write_all(file->fd, records, batch->n * sizeof records[0], at, error);
    set_outcome(batch, done ? PAGE_OK : PAGE_FAILED, done ? 0 : *error);
    return done;
}

static bool sync_batch(const page_file *file, const page_batch *batch, int *error) {
    const bool done = page_sync_all(file->fd, error);
    set_outcome(batch, done ? PAGE_OK : PAGE_FAILED, done ? 0 : *error);
    return done;
}

static bool run_once(const page_file *file, const page_batch *batch) {
    int error = 0;
    switch (batch->jobs[0]->request.op) {
    case PAGE_READ:
        return read_batch(file, batch, &error);
    case PAGE_WRITE:
        return write_batch(file, batch, &error);
    default:
        return sync_batch(file, batch, &error);
    }
}

void page_batch_run(const page_file *file, const page_batch *batch) {
    if (run_once(file, batch) || batch->n == 1) {
        return;
    }
    for (uint32_t i = 0; i < batch->n; i++) {
        const page_batch alone = {.jobs = {batch->jobs[i]}, .n = 1};
        (void)run_once(file, &alone);
    }
}
