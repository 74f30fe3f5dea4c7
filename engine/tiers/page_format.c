/*
 * The page file on disk: opened, locked, found to be ours or made so, its records read.
 *
 * A new file gets its header last; until then it has one with the magic number alone, and is begun anew if it is found
 * so. Nothing but an empty file or one of ours is ever overwritten.
 */
#include "engine/tiers/page_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Records that are read at once. */
#define READ_RECORDS 1024u

static perch_status io_error(const page_file *file, const char *what, int error, perch_error *err) {
    return err_set(err, PERCH_E_IO, "'%s': %s: %s", file->path, what, error != 0 ? strerror(error) : "the file ends");
}

/* --- records and headers */

disk_record page_format_record(uint32_t frame, const page_record *record, uint64_t checksum) {
    disk_record out = {.generation = record->generation,
                       .prefix = {record->prefix[0], record->prefix[1]},
                       .tokens_checksum = record->tokens_checksum,
                       .page_checksum = checksum,
                       .n_bytes = record->n_bytes,
                       .frame = frame,
                       .index = record->index,
                       .n_tokens = record->n_tokens};
    out.checksum = page_checksum(&out, offsetof(disk_record, checksum));
    return out;
}

static page_header make_header(const page_file *file) {
    page_header header = {.magic = PAGE_MAGIC,
                          .version = PAGE_VERSION,
                          .n_frames = file->config.n_frames,
                          .page_bytes = file->config.page_bytes,
                          .max_tokens = file->config.max_tokens,
                          .seed = file->info.seed};
    memcpy(header.key, file->config.key, sizeof header.key);
    header.checksum = page_checksum(&header, offsetof(page_header, checksum));
    return header;
}

/* What the header says that it should not. */
static perch_status differs(const page_file *file, const page_header *got, perch_error *err) {
    char why[200];
    const page_file_config *want = &file->config;
    if (got->version != PAGE_VERSION) {
        snprintf(why, sizeof why, "version %u of the format, not %u", got->version, PAGE_VERSION);
    } else if (got->checksum != page_checksum(got, offsetof(page_header, checksum))) {
        snprintf(why, sizeof why, "a damaged header");
    } else if (got->page_bytes != want->page_bytes) {
        snprintf(why, sizeof why, "pages of %" PRIu64 " bytes, not %" PRIu64, got->page_bytes, want->page_bytes);
    } else if (got->n_frames != want->n_frames) {
        snprintf(why, sizeof why, "%u frames, not %u", got->n_frames, want->n_frames);
    } else if (got->max_tokens != want->max_tokens) {
        snprintf(why, sizeof why, "%" PRIu64 " tokens a page, not %u", got->max_tokens, want->max_tokens);
    } else {
        snprintf(why, sizeof why,
                 "pages of another model or layout: its key begins with %02x%02x%02x%02x, not %02x%02x%02x%02x",
                 got->key[0], got->key[1], got->key[2], got->key[3], want->key[0], want->key[1], want->key[2],
                 want->key[3]);
    }
    return err_set(err, PERCH_E_FORMAT, "the page file '%s' has %s", file->path, why);
}

/* What is in the file now. */
static perch_status look(page_file *file, uint64_t file_bytes, bool *fits, perch_error *err) {
    const page_header begun = {.magic = PAGE_MAGIC};
    page_header got = {.magic = 0}, want;
    int error;
    *fits = false;
    if (file_bytes == 0) {
        return PERCH_OK;
    }
    const size_t n = file_bytes < sizeof got ? (size_t)file_bytes : sizeof got;
    if (!page_read_all(file->fd, &got, n, 0, &error)) {
        return io_error(file, "reading the header", error, err);
    }
    if (got.magic != PAGE_MAGIC) {
        return err_set(err, PERCH_E_FORMAT, "'%s' is no page file of perch's", file->path);
    }
    file->info.seed = got.seed;
    want = make_header(file);
    if (memcmp(&got, &want, sizeof got) == 0) {
        *fits = true;
    } else if (memcmp(&got, &begun, sizeof got) != 0 && !file->config.recreate) {
        return differs(file, &got, err);
    }
    return PERCH_OK;
}

/* --- a new file */

static perch_status no_room(const page_file *file, perch_error *err) {
    struct statvfs disk;
    if (fstatvfs(file->fd, &disk) != 0) {
        return err_set(err, PERCH_E_NO_ROOM, "'%s': the disk has no room for %" PRIu64 " bytes", file->path,
                       file->layout.file_bytes);
    }
    return err_set(err, PERCH_E_NO_ROOM,
                   "'%s': the disk has no room for %u frames, %" PRIu64 " bytes; %" PRIu64 " are free", file->path,
                   file->config.n_frames, file->layout.file_bytes, (uint64_t)disk.f_bavail * disk.f_frsize);
}

/*
 * What is found out before room is taken: the kernel answers with a signal to what is beyond a limit, and fills the
 * disk before it says that it is full.
 */
static perch_status check_room(const page_file *file, perch_error *err) {
    struct rlimit limit;
    struct stat has;
    struct statvfs disk;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        file->layout.file_bytes > limit.rlim_cur) {
        return err_set(err, PERCH_E_NO_ROOM, "'%s': %" PRIu64 " bytes are more than a file may have (RLIMIT_FSIZE)",
                       file->path, file->layout.file_bytes);
    }
    if (fstat(file->fd, &has) != 0 || fstatvfs(file->fd, &disk) != 0) {
        return io_error(file, "asking for the disk's room", errno, err);
    }
    const uint64_t left = (uint64_t)disk.f_bavail * disk.f_frsize, taken = (uint64_t)has.st_blocks * 512;
    return file->layout.file_bytes > taken && file->layout.file_bytes - taken > left ? no_room(file, err) : PERCH_OK;
}

/* All of the room that the file lacks; what it has stays as it is. */
static perch_status take_room(const page_file *file, perch_error *err) {
    int code = EINTR;
    perch_status status = check_room(file, err);
    while (status == PERCH_OK && code == EINTR) {
        code = posix_fallocate(file->fd, 0, (off_t)file->layout.file_bytes);
    }
    return status != PERCH_OK                ? status
           : code == 0                       ? PERCH_OK
           : code == ENOSPC || code == EFBIG ? no_room(file, err)
                                             : io_error(file, "taking room for it", code, err);
}

static perch_status write_header(const page_file *file, const page_header *header, perch_error *err) {
    int error;
    if (!page_write_all(file->fd, header, sizeof *header, 0, &error)) {
        return io_error(file, "writing the header", error, err);
    }
    return page_sync_all(file->fd, &error) ? PERCH_OK : io_error(file, "syncing the header", error, err);
}

static perch_status create(page_file *file, perch_error *err) {
    const page_header begun = {.magic = PAGE_MAGIC};
    page_header header;
    if (getrandom(&file->info.seed, sizeof file->info.seed, 0) != (ssize_t)sizeof file->info.seed) {
        return io_error(file, "drawing its seed", errno, err);
    }
    header = make_header(file);
    perch_status status =
        ftruncate(file->fd, 0) == 0 ? write_header(file, &begun, err) : io_error(file, "emptying it", errno, err);
    if (status == PERCH_OK) {
        status = take_room(file, err);
    }
    if (status == PERCH_OK) {
        status = write_header(file, &header, err);
    }
    if (status != PERCH_OK) {
        (void)!ftruncate(file->fd, 0); /* gives back what room it has */
    }
    file->info.created = true;
    return status;
}

/* --- a file that was there */

static void take_record(page_file *file, uint32_t number, const disk_record *r) {
    static const disk_record empty;
    if (memcmp(r, &empty, sizeof empty) == 0) {
        return;
    }
    if (r->checksum != page_checksum(r, offsetof(disk_record, checksum)) || r->frame != number || r->generation == 0 ||
        r->n_bytes == 0 || r->n_bytes > file->config.page_bytes || r->n_tokens > file->config.max_tokens) {
        file->info.n_damaged++;
        return;
    }
    file->generation = r->generation > file->generation ? r->generation : file->generation;
    file->info.n_pages++;
    file->frames[number] = (page_frame){.record = {.generation = r->generation,
                                                   .n_bytes = r->n_bytes,
                                                   .prefix = {r->prefix[0], r->prefix[1]},
                                                   .tokens_checksum = r->tokens_checksum,
                                                   .n_tokens = r->n_tokens,
                                                   .index = r->index},
                                        .page_checksum = r->page_checksum,
                                        .is_valid = true};
}

static perch_status read_records(page_file *file, perch_error *err) {
    const uint32_t n_frames = file->config.n_frames;
    int error = 0;
    perch_status status = PERCH_OK;
    disk_record *records = malloc(READ_RECORDS * sizeof *records);
    if (records == NULL) {
        return err_nomem(err, "a page file's records");
    }
    for (uint32_t at = 0; at < n_frames && status == PERCH_OK; at += READ_RECORDS) {
        const uint32_t n = n_frames - at < READ_RECORDS ? n_frames - at : READ_RECORDS;
        if (!page_read_all(file->fd, records, n * sizeof *records, file->layout.records_at + at * sizeof *records,
                           &error)) {
            status = io_error(file, "reading the records", error, err);
        }
        for (uint32_t i = 0; i < n && status == PERCH_OK; i++) {
            take_record(file, at + i, &records[i]);
        }
    }
    free(records);
    return status;
}

/* --- open */

static bool plan_layout(page_file *file) {
    const page_file_config *c = &file->config;
    page_layout *at = &file->layout;
    size_t frames_bytes, tokens_bytes, bytes;
    at->frame_bytes = page_moved_bytes(c->page_bytes);
    at->records_at = PAGE_ALIGNMENT;
    at->tokens_at = at->records_at + page_moved_bytes((uint64_t)c->n_frames * sizeof(disk_record));
    if (!mul_size((size_t)c->max_tokens * sizeof(int32_t), c->n_frames, &tokens_bytes) ||
        tokens_bytes > INT64_MAX / 2) {
        return false;
    }
    at->frames_at = at->tokens_at + page_moved_bytes(tokens_bytes);
    if (!mul_size(at->frame_bytes, c->n_frames, &frames_bytes) || !add_size(at->frames_at, frames_bytes, &bytes) ||
        bytes > INT64_MAX) {
        return false;
    }
    at->file_bytes = file->info.file_bytes = bytes;
    return true;
}

uint32_t page_file_capacity(uint64_t page_bytes, uint32_t max_tokens, uint64_t file_bytes) {
    const uint64_t others = 3 * (uint64_t)PAGE_ALIGNMENT; /* the header, and what rounding costs */
    const uint64_t frame_bytes = page_moved_bytes(page_bytes) + sizeof(disk_record) + max_tokens * sizeof(int32_t);
    const uint64_t n = file_bytes > others ? (file_bytes - others) / frame_bytes : 0;
    return n < PAGE_NO_FRAME ? (uint32_t)n : PAGE_NO_FRAME - 1;
}

/* The second way into the file, past the page cache, where that works; else the first. */
static void open_direct(page_file *file) {
    _Alignas(PAGE_ALIGNMENT) uint8_t block[PAGE_ALIGNMENT];
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd); /* this file, whatever its name is by now */
    file->data_fd = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
    /* Some take the flag and then refuse what is aligned to less than their own blocks. */
    if (file->data_fd >= 0 && pread(file->data_fd, block, sizeof block, 0) != (ssize_t)sizeof block) {
        close(file->data_fd);
        file->data_fd = -1;
    }
    file->info.direct = file->data_fd >= 0;
    file->data_fd = file->info.direct ? file->data_fd : file->fd;
}

static perch_status open_locked(page_file *file, struct stat *found, perch_error *err) {
    file->fd = open(file->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file->fd < 0) {
        return io_error(file, "opening it", errno, err);
    }
    if (flock(file->fd, LOCK_EX | LOCK_NB) != 0) {
        return errno == EWOULDBLOCK
                   ? err_set(err, PERCH_E_AGAIN, "'%s' is in use by another process or engine", file->path)
                   : io_error(file, "locking it", errno, err);
    }
    if (fstat(file->fd, found) != 0) {
        return io_error(file, "looking at it", errno, err);
    }
    return S_ISREG(found->st_mode) ? PERCH_OK : err_set(err, PERCH_E_FORMAT, "'%s' is no regular file", file->path);
}

perch_status page_format_open(page_file *file, perch_error *err) {
    struct stat found;
    bool fits;
    if (!plan_layout(file)) {
        return err_set(err, PERCH_E_INVALID, "'%s': %u frames of %" PRIu64 " bytes are more than a file can have",
                       file->path, file->config.n_frames, file->config.page_bytes);
    }
    perch_status status = open_locked(file, &found, err);
    if (status != PERCH_OK || (status = look(file, (uint64_t)found.st_size, &fits, err)) != PERCH_OK) {
        return status;
    }
    if (!fits) {
        status = create(file, err);
    } else if ((status = take_room(file, err)) == PERCH_OK) {
        status = read_records(file, err);
    }
    if (status == PERCH_OK) {
        open_direct(file);
    }
    return status;
}

void page_format_close(page_file *file) {
    if (file->data_fd >= 0 && file->data_fd != file->fd) {
        close(file->data_fd);
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
}
