/*
 * One instruction set's math: a table of functions that compute a *part* of an operation on the calling thread. ops.c cuts
 * operations into parts; how it cuts them never shows in a result. Each isa_NAME.c builds the same bodies
 * (gemm_body.h, attention_body.h, rows_body.h) with its own compiler flags.
 *
 * Words. Matrix products read their inputs as 32-bit words along K: one f32, or a pair of bf16 (the even element in the low
 * half; where K is odd the last pair's high half is 0). One code serves both types.
 */
#ifndef PERCH_KERNELS_CPU_ISA_H
#define PERCH_KERNELS_CPU_ISA_H

#include "kernels/cpu/format.h"
#include "kernels/kernels.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a word's low half is its first bf16 in memory");

/* Tokens of one gemm part, at most. */
#define CPU_GEMM_TOKENS 96u
/* Blocks of a weight that are unpacked at a time, at most. */
#define CPU_BLOCKS 8u
/* Positions in a block of attention's running softmax. */
#define CPU_KV_BLOCK 64u
/* Queries (token, head) that go through attention together, at most. */
#define CPU_QUERIES 24u
#define CPU_MAX_HEAD_DIM 256u

/* What each thread owns for its parts; nothing is kept in it from one part to the next. */
typedef struct cpu_scratch {
    _Alignas(64) float gemm[CPU_GEMM_TOKENS * CPU_PANEL];               /* sums of a part's tokens × one panel */
    _Alignas(64) uint32_t unpacked[CPU_BLOCKS * CPU_GROUP * CPU_PANEL]; /* blocks: [word of K][output] */
    _Alignas(64) float scales[CPU_BLOCKS * CPU_PANEL];                  /* and their scales */
    _Alignas(64) uint32_t queries[CPU_QUERIES * CPU_MAX_HEAD_DIM];      /* [query][words of D] */
    _Alignas(64) float scores[CPU_QUERIES * CPU_KV_BLOCK];              /* [query][position in the block] */
    _Alignas(64) float outputs[CPU_QUERIES * CPU_MAX_HEAD_DIM];         /* [query][D], not yet divided by the sum */
} cpu_scratch;

typedef struct cpu_gemm {
    const uint8_t *panels; /* [n_panels], in this format */
    size_t panel_bytes;
    cpu_format format;
    size_t n_words;    /* along K */
    const uint32_t *x; /* [n_tokens], rows x_stride words apart */
    size_t x_stride;
    float *y; /* [n_tokens][n_out] */
    size_t n_out;
    const float *bias; /* [n_out] or NULL */
    bool accumulate;   /* y += */
    bool bf16;
} cpu_gemm;

typedef struct cpu_attention {
    const kernels_batch *batch;
    const kernels_attention *shape;
    const float *qkv; /* [n_tokens][qkv_stride], q first */
    size_t qkv_stride;
    float *out; /* [n_tokens][n_heads * D] */
    bool bf16;
} cpu_attention;

typedef struct cpu_isa {
    const char *name;
    /* y of tokens [t0, t1), at most CPU_GEMM_TOKENS, and of one panel's outputs. */
    void (*gemm)(const cpu_gemm *gemm, size_t panel, size_t t0, size_t t1, cpu_scratch *scratch);
    /* Outputs of tokens [t0, t1) and the query heads of one KV head. */
    void (*attention)(const cpu_attention *attention, uint32_t kv_head, size_t t0, size_t t1, cpu_scratch *scratch);
    /* One row. y may be x. */
    void (*rmsnorm)(const float *x, const float *gain, float eps, size_t width, float *y);
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *y);
    /* n values to ceil(n / 2) words of bf16. */
    void (*round_bf16)(const float *x, size_t n, uint32_t *words);
} cpu_isa;

/*
 * K in a KV group's run of 16×D elements: words [word of D][16 tokens], the same as a panel; V: rows [16 tokens][D]. Where
 * the element (token, d) of K lies, counted in elements.
 */
static inline size_t cpu_k_element(size_t token, size_t d, bool bf16) {
    return bf16 ? (d / 2 * KV_GROUP_TOKENS + token) * 2 + d % 2 : d * KV_GROUP_TOKENS + token;
}

/* Where K of (layer, kv head) of group g begins. V is 16 * head_dim elements behind. */
static inline uint8_t *cpu_kv_tile(const kv_view *view, const kv_layout *layout, uint32_t layer, uint32_t kv_head,
                                   size_t g) {
    size_t tile_bytes = (size_t)2 * KV_GROUP_TOKENS * layout->head_dim * layout->element_bytes;
    uint8_t *group = view->blocks != NULL ? view->blocks[g] : view->base + g * layout->group_bytes;
    return group + ((size_t)layer * layout->n_kv_heads + kv_head) * tile_bytes;
}

extern const cpu_isa cpu_isa_scalar;
extern const cpu_isa cpu_isa_avx2; /* x86-64 only, as those that follow */
extern const cpu_isa cpu_isa_avx512;
extern const cpu_isa cpu_isa_avx512bf16;

/* The named one, or with NULL the best for the type; E_UNSUPPORTED where this processor lacks it or there is no such name. */
perch_status cpu_isa_find(const char *name, bool bf16, const cpu_isa **out, perch_error *err);

#endif
