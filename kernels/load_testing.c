/* Stand-ins for libperch_cuda: right, of another build that knows it (OTHER_ABI) or doesn't (OTHER_TABLE), or NOT_OURS at all. */
#include "kernels/kernels.h"

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
