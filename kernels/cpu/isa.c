/* Which instruction set's math this process runs: the best that the processor has, or the one asked for. */
#include "kernels/cpu/isa.h"

#include <string.h>

#if defined(PERCH_CPU_X86)
static bool have_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool have_avx512bf16(void) { return have_avx512() && __builtin_cpu_supports("avx512bf16"); }

static bool have_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

perch_status cpu_isa_find(const char *name, bool bf16, const cpu_isa **out, perch_error *err) {
    const struct {
        const cpu_isa *isa;
        const char *name;
        bool usable;
        bool best_for_f32; /* as good as any that follows the others */
    } known[] = {
#if defined(PERCH_CPU_X86)
        {&cpu_isa_avx512bf16, "avx512bf16", have_avx512bf16(), false},
        {&cpu_isa_avx512, "avx512", have_avx512(), true},
        {&cpu_isa_avx2, "avx2", have_avx2(), true},
#else
        {NULL, "avx512bf16", false, false},
        {NULL, "avx512", false, true},
        {NULL, "avx2", false, true},
#endif
        {&cpu_isa_scalar, "scalar", true, true},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        bool wanted =
            name != NULL ? strcmp(name, known[i].name) == 0 : known[i].usable && (bf16 || known[i].best_for_f32);
        if (wanted && known[i].usable) {
            *out = known[i].isa;
            return PERCH_OK;
        }
        if (wanted) {
            return err_set(err, PERCH_E_UNSUPPORTED, "this processor does not have the instruction set '%s'", name);
        }
    }
    return err_set(err, PERCH_E_UNSUPPORTED, "unknown instruction set '%s' (avx512bf16, avx512, avx2, scalar)", name);
}
