/*
 * The math on AVX-512 with BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later. Products of bf16 by VDPBF16PS, which takes
 * denormal inputs and results for 0 and rounds to nearest even whatever the floating-point environment says.
 */
#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/rows_body.h"

#include "kernels/cpu/attention_body.h"

const cpu_isa cpu_isa_avx512bf16 = {"avx512bf16", isa_gemm, isa_attention, isa_rmsnorm, isa_silu_mul, isa_round_bf16};
