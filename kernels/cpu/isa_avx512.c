/* The math on AVX-512 (F, BW, DQ, VL): Skylake-X, Zen 4 and later. bf16 is widened to f32 and multiplied there. */
#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/rows_body.h"

#include "kernels/cpu/attention_body.h"

const cpu_isa cpu_isa_avx512 = {"avx512", isa_gemm, isa_attention, isa_rmsnorm, isa_silu_mul, isa_round_bf16};
