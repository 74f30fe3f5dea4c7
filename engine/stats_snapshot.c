/* stats_snapshot: where engines leave their statistics, and how another process reads them. See stats_file.h. */
#include "engine/stats_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A write takes a microsecond: whoever has looked so often, a tenth of a millisecond apart, looks at one that never ends. */
#define MOST_LOOKS 50

bool stats_turn_get(const stats_turn *t, stats_sample *out) {
    const struct timespec pause = {.tv_nsec = 100000};
    uint64_t words[STATS_WORDS];
    for (int look = 0; look < MOST_LOOKS; look++) {
        uint64_t turn = atomic_load_explicit(&t->turn, memory_order_acquire);
        for (size_t i = 0; i < STATS_WORDS; i++) {
            words[i] = atomic_load_explicit(&t->words[i], memory_order_acquire);
        }
        if (turn % 2 == 0 && atomic_load_explicit(&t->turn, memory_order_relaxed) == turn) {
            memcpy(out, words, sizeof *out);
            return true;
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

/* ---------------------------------------------------------------- folder -- */

perch_status perch_stats_folder(char *out, size_t cap, perch_error *err) {
    const char *run = getenv("XDG_RUNTIME_DIR");
    if (!out) {
        return err_set(err, PERCH_E_INVALID, "perch_stats_folder: out is NULL");
    }
    int n = run && run[0] == '/' ? snprintf(out, cap, "%s/perch", run)
                                 : snprintf(out, cap, "/tmp/perch-%ld", (long)geteuid());
    return n > 0 && (size_t)n < cap
               ? PERCH_OK
               : err_set(err, PERCH_E_BUFFER, "the folder's name is %d bytes long, the buffer %zu", n, cap);
}

/* Below /tmp anybody may have made it: it has to be ours, and nobody else's to write in. */
perch_status stats_folder_make(char *out, size_t cap, perch_error *err) {
    struct stat st;
    perch_status status = perch_stats_folder(out, cap, err);
    if (status) {
        return status;
    }
    if (mkdir(out, 0700) != 0 && errno != EEXIST) {
        return err_set(err, PERCH_E_IO, "cannot make the folder %s: %s", out, strerror(errno));
    }
    if (lstat(out, &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH))) {
        return err_set(err, PERCH_E_IO, "%s is no folder that only this user can write to", out);
    }
    return PERCH_OK;
}

/* ---------------------------------------------------------------- reading -- */

static perch_status check_image(const char *file, const stats_image *image, size_t n_bytes, perch_error *err) {
    if (n_bytes < offsetof(stats_image, begun_us) || memcmp(image->magic, STATS_FILE_MAGIC, sizeof image->magic) != 0) {
        return err_set(err, PERCH_E_FORMAT, "%s is no statistics file of an engine", file);
    }
    if (image->version != STATS_FILE_VERSION || image->stats_bytes != sizeof(perch_stats) ||
        image->image_bytes != sizeof *image || n_bytes < sizeof *image) {
        return err_set(err, PERCH_E_UNSUPPORTED, "%s is of another version of perch (layout %u, %u bytes)", file,
                       image->version, image->stats_bytes);
    }
    return PERCH_OK;
}

static void copy_text(char *out, size_t cap, const char *text, size_t text_cap) {
    snprintf(out, cap, "%.*s", (int)strnlen(text, text_cap), text);
}

static perch_status take(const char *file, const stats_image *image, bool running, perch_snapshot *out,
                         perch_error *err) {
    stats_sample sample;
    uint64_t now_us = time_us();
    if (!stats_turn_get(&image->live, &sample)) {
        return err_set(err, PERCH_E_AGAIN, "%s: its engine ended while it wrote", file);
    }
    out->pid = image->pid;
    out->running = running;
    out->session_len = image->session_len;
    out->age_us = now_us > sample.at_us ? now_us - sample.at_us : 0;
    out->uptime_us = sample.at_us > image->begun_us ? sample.at_us - image->begun_us : 0;
    out->at_us = sample.at_us;
    out->stats = sample.stats;
    copy_text(out->model, sizeof out->model, image->model, sizeof image->model);
    copy_text(out->backend, sizeof out->backend, image->backend, sizeof image->backend);
    copy_text(out->version, sizeof out->version, image->perch_version, sizeof image->perch_version);
    return PERCH_OK;
}

perch_status perch_snapshot_read(const char *file, perch_snapshot *out, perch_error *err) {
    struct stat st;
    if (!file || !out || out->struct_size != sizeof *out) {
        return err_set(err, PERCH_E_INVALID, "perch_snapshot_read: file and out (with struct_size) must be given");
    }
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return err_set(err, errno == ENOENT ? PERCH_E_NOT_FOUND : PERCH_E_IO, "cannot open %s: %s", file,
                       strerror(errno));
    }
    perch_status status = PERCH_OK;
    stats_image *image = MAP_FAILED;
    size_t n_bytes = 0;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
        status = err_set(err, PERCH_E_FORMAT, "%s is no statistics file of an engine", file);
    } else {
        n_bytes = (uint64_t)st.st_size < sizeof *image ? (size_t)st.st_size : sizeof *image;
        image = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, fd, 0);
        status = image == MAP_FAILED ? err_set(err, PERCH_E_IO, "cannot map %s: %s", file, strerror(errno)) : PERCH_OK;
    }
    if (!status) {
        status = check_image(file, image, n_bytes, err);
    }
    if (!status) {
        status = take(file, image, stats_file_locked(fd), out, err);
    }
    if (image != MAP_FAILED) {
        munmap(image, n_bytes);
    }
    close(fd);
    return status;
}
