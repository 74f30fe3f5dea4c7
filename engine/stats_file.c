/* stats_file: the writer's side, see stats_file.h. */
#include "engine/stats_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <pthread.h>

#define MOST_OF_A_PROCESS 1000 /* engines of one process in the folder */

struct stats_file {
    char path[2 * PERCH_PATH_CAP];
    int fd;
    stats_image *image;
};

/* ----------------------------------------------------------------- turns -- */

/*
 * Each word is stored with release order, so it is not seen before the odd turn; each is loaded with acquire order, so the turn that
 * is loaded behind them is no older than any of them.
 */
void stats_turn_put(stats_turn *t, const stats_sample *sample) {
    uint64_t words[STATS_WORDS], turn = atomic_load_explicit(&t->turn, memory_order_relaxed);
    memcpy(words, sample, sizeof words);
    atomic_store_explicit(&t->turn, turn + 1, memory_order_relaxed);
    for (size_t i = 0; i < STATS_WORDS; i++) {
        atomic_store_explicit(&t->words[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&t->turn, turn + 2, memory_order_release);
}

/* ------------------------------------------------------------------ lock -- */

static struct flock whole(short type) { return (struct flock){.l_type = type, .l_whence = SEEK_SET}; }

bool stats_file_locked(int fd) {
    struct flock lock = whole(F_RDLCK);
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static bool is_taken(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    bool taken = fd >= 0 && stats_file_locked(fd);
    if (fd >= 0) {
        close(fd);
    }
    return taken;
}

/* Takes away what engines left that ended without destroying themselves. */
static void sweep(const char *folder) {
    DIR *dir = opendir(folder);
    for (struct dirent *at; dir && (at = readdir(dir));) {
        char path[PERCH_PATH_CAP + 300];
        snprintf(path, sizeof path, "%s/%s", folder, at->d_name);
        if (at->d_name[0] >= '0' && at->d_name[0] <= '9' && !is_taken(path)) {
            unlink(path);
        }
    }
    if (dir) {
        closedir(dir);
    }
}

/* ---------------------------------------------------------- open, close -- */

static perch_status choose_path(stats_file *f, const char *file, perch_error *err) {
    char folder[PERCH_PATH_CAP];
    if (strcasecmp(file, "auto") != 0) {
        /* Whole, so that it is still the name when the process has gone to another folder. */
        bool relative = file[0] != '/' && getcwd(folder, sizeof folder);
        int n = snprintf(f->path, sizeof f->path, "%s%s%s", relative ? folder : "", relative ? "/" : "", file);
        if (n < 0 || (size_t)n >= sizeof f->path) {
            return err_set(err, PERCH_E_CONFIG, "[engine] stats_file: the name of %s is too long", file);
        }
        return is_taken(f->path) ? err_set(err, PERCH_E_BUSY, "[engine] stats_file: %s is another engine's", file)
                                 : PERCH_OK;
    }
    perch_status status = stats_folder_make(folder, sizeof folder, err);
    if (status) {
        return err_prefix(err, status, "[engine] stats_file");
    }
    sweep(folder);
    snprintf(f->path, sizeof f->path, "%s/%ld", folder, (long)getpid());
    for (int i = 2; i < MOST_OF_A_PROCESS && is_taken(f->path); i++) {
        snprintf(f->path, sizeof f->path, "%s/%ld.%d", folder, (long)getpid(), i);
    }
    return PERCH_OK;
}

/* With all its blocks, so that a store never finds the disk full. */
static bool fill(stats_file *f, const char *path) {
    struct flock lock = whole(F_WRLCK);
    f->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (f->fd < 0 || fcntl(f->fd, F_OFD_SETLK, &lock) != 0) {
        return false;
    }
    int failed = posix_fallocate(f->fd, 0, sizeof *f->image);
    if (failed) {
        errno = failed;
        return false;
    }
    void *at = mmap(NULL, sizeof *f->image, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    f->image = at == MAP_FAILED ? NULL : at;
    return f->image != NULL;
}

static void describe(stats_image *image, const stats_image *about) {
    memcpy(image->magic, STATS_FILE_MAGIC, sizeof image->magic);
    image->version = STATS_FILE_VERSION;
    image->image_bytes = sizeof *image;
    image->stats_bytes = sizeof(perch_stats);
    image->pid = (uint32_t)getpid();
    image->begun_us = about->begun_us;
    image->session_len = about->session_len;
    snprintf(image->model, sizeof image->model, "%s", about->model);
    snprintf(image->backend, sizeof image->backend, "%s", about->backend);
    snprintf(image->perch_version, sizeof image->perch_version, "%s", perch_version());
}

static perch_status make(const char *file, const stats_image *about, stats_file **out, perch_error *err) {
    char made[sizeof((stats_file *)0)->path + 32];
    stats_file *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f) {
        return err_nomem(err, "the statistics file");
    }
    f->fd = -1;
    perch_status status = choose_path(f, file, err);
    if (status) {
        f->path[0] = 0; /* it is not ours to take away */
        stats_file_close(f);
        return status;
    }
    const char *slash = strrchr(f->path, '/'); /* a name that begins with a dot: sweep is not to take it */
    int folder_bytes = slash ? (int)(slash + 1 - f->path) : 0;
    snprintf(made, sizeof made, "%.*s.%s.new-%ld", folder_bytes, f->path, f->path + folder_bytes, (long)getpid());
    bool done = fill(f, made);
    if (done) {
        const stats_sample none = {.at_us = about->begun_us, .stats.struct_size = sizeof(perch_stats)};
        describe(f->image, about);
        stats_turn_put(&f->image->live, &none);
        done = rename(made, f->path) == 0;
    }
    if (!done) {
        status = err_set(err, PERCH_E_IO, "[engine] stats_file: cannot make %s: %s", f->path, strerror(errno));
        unlink(made);
        f->path[0] = 0;
        stats_file_close(f);
        return status;
    }
    *out = f;
    return PERCH_OK;
}

perch_status stats_file_open(const char *file, const stats_image *about, stats_file **out, perch_error *err) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; /* of a process: or two would take one name */
    pthread_mutex_lock(&one_at_a_time);
    perch_status status = make(file, about, out, err);
    pthread_mutex_unlock(&one_at_a_time);
    return status;
}

void stats_file_write(stats_file *f, const stats_sample *sample) { stats_turn_put(&f->image->live, sample); }

/* Whether the name still stands for this file. */
static bool is_ours(const stats_file *f) {
    struct stat named, held;
    return f->path[0] && stat(f->path, &named) == 0 && fstat(f->fd, &held) == 0 && named.st_ino == held.st_ino &&
           named.st_dev == held.st_dev;
}

void stats_file_close(stats_file *f) {
    if (!f) {
        return;
    }
    if (f->fd >= 0 && is_ours(f)) {
        unlink(f->path);
    }
    if (f->image) {
        munmap(f->image, sizeof *f->image);
    }
    if (f->fd >= 0) {
        close(f->fd);
    }
    free(f);
}
