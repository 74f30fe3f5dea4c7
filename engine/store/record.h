/*
 * record: one sequence as bytes, for export and import. All numbers little-endian.
 *
 *   0   "PERCHSEQ"
 *   8   u32 version = 1, u32 n_sections
 *   16  u64 length of all
 *   24  n_sections times: u32 id, u32 flags, u64 offset, u64 length
 *   ... the sections
 *   end u64 XXH3 of all before
 *
 * A reader passes over a section that it does not know, unless RECORD_REQUIRED is among its flags. So what may be left
 * out, like keys and values, can come to it later.
 */
#ifndef PERCH_ENGINE_STORE_RECORD_H
#define PERCH_ENGINE_STORE_RECORD_H

#include "engine/store/store.h"

#define RECORD_REQUIRED 1u

typedef enum record_section {
    RECORD_MODEL = 1,  /* text: what the tokens are tokens of */
    RECORD_META = 2,   /* u64 n_turns, created_ms, touched_ms */
    RECORD_TOKENS = 3, /* i32 token IDs */
    RECORD_KEY = 4     /* text: the key that it was exported under; not required */
} record_section;

/* A sequence that is written, or was read; then everything points into the bytes, and is aligned to nothing. */
typedef struct record {
    const char *model;
    size_t model_bytes;
    uint64_t n_turns, created_ms, touched_ms;
    const void *tokens; /* [n_tokens] little-endian */
    size_t n_tokens;
    const char *key; /* or NULL */
    size_t key_bytes;
} record;

/* The bytes that r takes; and writes them. */
size_t record_bytes(const record *r);
void record_write(const record *r, void *out);

/* E_FORMAT: not such bytes, cut off, or changed. E_UNSUPPORTED: of a later version. */
perch_status record_read(const void *bytes, size_t n_bytes, record *out, perch_error *err);

#endif
