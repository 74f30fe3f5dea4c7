/*
 * Stand-ins for libperch_cuda: right, of another build that knows it (OTHER_ABI) or doesn't (OTHER_TABLE), built from another kernels.h
 * (LARGER: a struct has a field more; MOVED: one in what was padding, so that another field has moved), or NOT_OURS at all.
 */
#ifdef LARGER
#define first_position first_position, between
#elif defined(MOVED)
#define n_slots n_slots, n_more
#endif
#include "kernels/kernels.h"
#undef first_position
#undef n_slots

#include "kernels/abi.h"

__attribute__((visibility("default"))) const kernels_backend *perch_cuda_backend(uint32_t abi);
__attribute__((visibility("default"))) int not_a_backend(void);

#if defined(NOT_OURS)
int not_a_backend(void) { return 0; }
#elif defined(OTHER_ABI)
const kernels_backend *perch_cuda_backend(uint32_t abi) {
    (void)abi;
    return NULL;
}
#else
#if defined(LARGER)
_Static_assert(sizeof(kernels_row) > sizeof(kv_view) + 4 * sizeof(uint32_t), "it has no field more");
#elif defined(MOVED)
_Static_assert(offsetof(kernels_kv, pages_per_slot) - offsetof(kernels_kv, n_slots) == 2 * sizeof(uint32_t),
               "none moved");
#endif

const kernels_backend *perch_cuda_backend(uint32_t abi) {
    static const kernels_backend backend = {
#if defined(OTHER_TABLE)
        .abi = KERNELS_ABI + 1,
#else
        .abi = KERNELS_ABI,
#endif
        .name = "a stand-in"
    };
    return abi == KERNELS_ABI ? &backend : NULL;
}
#endif
