/*
 * safetensors: one file of tensors, as the format's specification has it:
 *
 *     8 bytes     N, the header's length, little-endian
 *     N bytes     JSON: {"name": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [begin, end]}, ...}
 *     the rest    the tensors' bytes, row-major and little-endian; offsets count from here
 *
 * Everything in it is checked before anything is believed: the tensors fill the rest of the file without overlap, hole or
 * surplus, and each has as many bytes as its shape and type say.
 */
#ifndef PERCH_ENGINE_MODEL_SAFETENSORS_H
#define PERCH_ENGINE_MODEL_SAFETENSORS_H

#include "base/jv.h"

#define SAFETENSORS_MAX_DIMS 8
#define SAFETENSORS_MAX_HEADER 100000000u /* the format's own limit */

/* X(NAME, bits of an element) */
#define SAFETENSORS_DTYPES(X)                                                                                          \
    X(F32, 32)                                                                                                         \
    X(F16, 16)                                                                                                         \
    X(BF16, 16)                                                                                                        \
    X(F64, 64)                                                                                                         \
    X(C64, 64)                                                                                                         \
    X(I64, 64)                                                                                                         \
    X(I32, 32)                                                                                                         \
    X(I16, 16)                                                                                                         \
    X(I8, 8)                                                                                                           \
    X(U64, 64)                                                                                                         \
    X(U32, 32)                                                                                                         \
    X(U16, 16)                                                                                                         \
    X(U8, 8)                                                                                                           \
    X(BOOL, 8)                                                                                                         \
    X(F8_E4M3, 8)                                                                                                      \
    X(F8_E5M2, 8)                                                                                                      \
    X(F8_E8M0, 8)                                                                                                      \
    X(F8_E4M3FNUZ, 8)                                                                                                  \
    X(F8_E5M2FNUZ, 8)                                                                                                  \
    X(F6_E2M3, 6)                                                                                                      \
    X(F6_E3M2, 6)                                                                                                      \
    X(F4, 4)

typedef enum safetensors_dtype {
#define SAFETENSORS_ENUM(name, bits) SAFETENSORS_##name,
    SAFETENSORS_DTYPES(SAFETENSORS_ENUM)
#undef SAFETENSORS_ENUM
} safetensors_dtype;

typedef struct safetensor {
    const char *name; /* owned by its safetensors */
    safetensors_dtype dtype;
    uint32_t n_dims;
    uint64_t dims[SAFETENSORS_MAX_DIMS];
    const uint8_t *data; /* [n_bytes] within the file; aligned to nothing */
    uint64_t n_bytes;
} safetensor;

typedef struct safetensors {
    safetensor *tensors; /* [n_tensors], in the order of their data */
    size_t n_tensors;
    jv_doc header; /* holds the names */
    uint8_t *map;  /* the mapped file, or NULL */
    size_t map_bytes;
} safetensors;

const char *safetensors_dtype_name(safetensors_dtype dtype);

/*
 * Reads the header of a file that lies in memory at bytes[n_bytes]; tensors then point into it. name: for messages.
 * E_FORMAT or E_UNSUPPORTED naming file and tensor, E_NOMEM. On failure *out is all zero.
 */
perch_status safetensors_parse(const uint8_t *bytes, size_t n_bytes, const char *name, safetensors *out,
                               perch_error *err);

/* The same for a file, mapped read-only. E_IO; E_NOT_FOUND where there is none. */
perch_status safetensors_open(const char *path, safetensors *out, perch_error *err);

/* Frees what either made; fine on all zero. */
void safetensors_close(safetensors *file);

/* "[4, 2]" into text, shortened to fit. Returns text. */
const char *safetensors_shape_text(const safetensor *tensor, char *text, size_t cap);

#endif
