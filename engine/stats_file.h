/*
 * stats_file: an engine's statistics in a small file that other processes map and read at any moment, for perch top.
 *
 * The file is made whole and then moved to its name, so nobody sees half of one. Its beginning never changes; the statistics behind it
 * are written under a *turn*, a counter that is odd while they are: a reader takes the turn, the words, and the turn again, and
 * starts over where they differ. All of it are atomic words, so a torn read is noticed and no data race. Writing
 * is some hundred stores to mapped memory, no call of the system.
 *
 * As long as the engine lives it holds a lock on the file, which the kernel takes away with the process however that ends: that
 * is how a reader tells a living engine from what one has left behind. The name goes when the engine is destroyed.
 */
#ifndef PERCH_ENGINE_STATS_FILE_H
#define PERCH_ENGINE_STATS_FILE_H

#include "base/base.h"

#include <stdatomic.h>

#define STATS_FILE_MAGIC "perchst"
#define STATS_FILE_VERSION 1u /* of the layout, beside which sizeof(perch_stats) must be the reader's */

/* What is written again and again. */
typedef struct stats_sample {
    uint64_t at_us; /* by time_us() */
    perch_stats stats;
} stats_sample;

#define STATS_WORDS (sizeof(stats_sample) / sizeof(uint64_t))
_Static_assert(sizeof(stats_sample) % sizeof(uint64_t) == 0, "a sample is whole words");

typedef struct stats_turn {
    _Atomic uint64_t turn;
    _Atomic uint64_t words[STATS_WORDS];
} stats_turn;

typedef struct stats_image {
    char magic[8];
    uint32_t version, image_bytes, stats_bytes;
    uint32_t pid;
    uint64_t begun_us; /* by time_us() */
    uint32_t session_len;
    uint32_t reserved;
    char model[256], backend[128], perch_version[16]; /* 0-terminated */
    stats_turn live;
} stats_image;

/* One writer at a time; any number of readers. get: false where the writer was in the way each time, as one that died would be. */
void stats_turn_put(stats_turn *t, const stats_sample *sample);
bool stats_turn_get(const stats_turn *t, stats_sample *out);

typedef struct stats_file stats_file;

/*
 * file: its name, or "auto": one in perch_stats_folder. about: what does not change; magic to pid are filled in here. E_IO with
 * the reason, E_BUSY: it is another engine's, that lives.
 */
perch_status stats_file_open(const char *file, const stats_image *about, stats_file **out, perch_error *err);
void stats_file_write(stats_file *f, const stats_sample *sample);
void stats_file_close(stats_file *f); /* NULL is fine */

/* Whether somebody holds the lock of this open file. */
bool stats_file_locked(int fd);

/* perch_stats_folder, made where it is not there. */
perch_status stats_folder_make(char *out, size_t cap, perch_error *err);

#endif
