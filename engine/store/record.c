/* record: see record.h. */
#include "engine/store/record.h"

#include <string.h>
#include <xxhash.h>

#define VERSION 1u
#define MAX_SECTIONS 64u

enum { HEADER_BYTES = 24, SECTION_BYTES = 24, META_BYTES = 24, HASH_BYTES = 8 };

static const char magic[8] = {'P', 'E', 'R', 'C', 'H', 'S', 'E', 'Q'};

/* store.c refuses to be built where memory isn't little-endian, so numbers are written as they lie. */
static void put_u32(unsigned char *at, uint32_t number) { memcpy(at, &number, sizeof number); }
static void put_u64(unsigned char *at, uint64_t number) { memcpy(at, &number, sizeof number); }

static uint32_t u32_at(const unsigned char *at) {
    uint32_t number;
    memcpy(&number, at, sizeof number);
    return number;
}

static uint64_t u64_at(const unsigned char *at) {
    uint64_t number;
    memcpy(&number, at, sizeof number);
    return number;
}

static size_t n_sections(const record *r) { return r->key ? 4 : 3; }

size_t record_bytes(const record *r) {
    return HEADER_BYTES + n_sections(r) * SECTION_BYTES + r->model_bytes + META_BYTES + r->n_tokens * sizeof(int32_t) +
           (r->key ? r->key_bytes : 0) + HASH_BYTES;
}

void record_write(const record *r, void *out) {
    unsigned char meta[META_BYTES], *bytes = out;
    put_u64(meta, r->n_turns);
    put_u64(meta + 8, r->created_ms);
    put_u64(meta + 16, r->touched_ms);
    const struct {
        record_section id;
        uint32_t flags;
        const void *bytes;
        size_t n_bytes;
    } sections[] = {{RECORD_MODEL, RECORD_REQUIRED, r->model, r->model_bytes},
                    {RECORD_META, RECORD_REQUIRED, meta, sizeof meta},
                    {RECORD_TOKENS, RECORD_REQUIRED, r->tokens, r->n_tokens * sizeof(int32_t)},
                    {RECORD_KEY, 0, r->key, r->key_bytes}};
    size_t n = n_sections(r), n_bytes = record_bytes(r), at = HEADER_BYTES + n * SECTION_BYTES;
    memcpy(bytes, magic, sizeof magic);
    put_u32(bytes + 8, VERSION);
    put_u32(bytes + 12, (uint32_t)n);
    put_u64(bytes + 16, n_bytes);
    for (size_t i = 0; i < n; i++) {
        unsigned char *row = bytes + HEADER_BYTES + i * SECTION_BYTES;
        put_u32(row, sections[i].id);
        put_u32(row + 4, sections[i].flags);
        put_u64(row + 8, at);
        put_u64(row + 16, sections[i].n_bytes);
        if (sections[i].n_bytes) {
            memcpy(bytes + at, sections[i].bytes, sections[i].n_bytes);
        }
        at += sections[i].n_bytes;
    }
    put_u64(bytes + at, XXH3_64bits(bytes, at));
}

static perch_status malformed(perch_error *err, const char *what) {
    return err_set(err, PERCH_E_FORMAT, "the exported sequence: %s", what);
}

/* Takes a section in. `seen` has a bit for each id that was there before. */
static perch_status take_section(const unsigned char *bytes, const unsigned char *row, size_t end, record *out,
                                 uint32_t *seen, perch_error *err) {
    uint32_t id = u32_at(row), flags = u32_at(row + 4);
    uint64_t at = u64_at(row + 8), n = u64_at(row + 16);
    if (at > end || n > end - at) {
        return malformed(err, "a section lies outside of it");
    }
    if (id >= RECORD_MODEL && id <= RECORD_KEY) {
        if (*seen >> id & 1) {
            return malformed(err, "a section stands in it twice");
        }
        *seen |= 1u << id;
    }
    switch (id) {
    case RECORD_MODEL:
        out->model = (const char *)bytes + at;
        out->model_bytes = (size_t)n;
        return PERCH_OK;
    case RECORD_META:
        if (n < META_BYTES) {
            return malformed(err, "its META section is too short");
        }
        out->n_turns = u64_at(bytes + at);
        out->created_ms = u64_at(bytes + at + 8);
        out->touched_ms = u64_at(bytes + at + 16);
        return PERCH_OK;
    case RECORD_TOKENS:
        if (n % sizeof(int32_t)) {
            return malformed(err, "its TOKENS section ends within a token");
        }
        out->tokens = bytes + at;
        out->n_tokens = (size_t)n / sizeof(int32_t);
        return PERCH_OK;
    case RECORD_KEY:
        out->key = (const char *)bytes + at;
        out->key_bytes = (size_t)n;
        return PERCH_OK;
    default:
        return flags & RECORD_REQUIRED
                   ? err_set(err, PERCH_E_UNSUPPORTED,
                             "the exported sequence: section %u is needed and not known to perch %s", id,
                             perch_version())
                   : PERCH_OK;
    }
}

perch_status record_read(const void *from, size_t n_bytes, record *out, perch_error *err) {
    const unsigned char *bytes = from;
    memset(out, 0, sizeof *out);
    if (n_bytes < HEADER_BYTES + HASH_BYTES || memcmp(bytes, magic, sizeof magic) != 0) {
        return malformed(err, "it does not begin as one");
    }
    uint32_t version = u32_at(bytes + 8), n = u32_at(bytes + 12), seen = 0;
    if (u64_at(bytes + 16) != n_bytes) {
        return err_set(err, PERCH_E_FORMAT, "the exported sequence: %zu bytes, it says %llu", n_bytes,
                       (unsigned long long)u64_at(bytes + 16));
    }
    size_t end = n_bytes - HASH_BYTES;
    if (u64_at(bytes + end) != XXH3_64bits(bytes, end)) {
        return malformed(err, "its checksum is wrong");
    }
    if (version != VERSION) {
        return err_set(err, PERCH_E_UNSUPPORTED, "the exported sequence: version %u, this is perch %s with version %u",
                       version, perch_version(), VERSION);
    }
    if (n > MAX_SECTIONS || HEADER_BYTES + n * SECTION_BYTES > end) {
        return malformed(err, "it has too many sections");
    }
    perch_status status = PERCH_OK;
    for (uint32_t i = 0; i < n && !status; i++) {
        status = take_section(bytes, bytes + HEADER_BYTES + i * SECTION_BYTES, end, out, &seen, err);
    }
    const uint32_t needed = 1u << RECORD_MODEL | 1u << RECORD_META | 1u << RECORD_TOKENS;
    return status ? status : (seen & needed) != needed ? malformed(err, "a section is missing") : PERCH_OK;
}
