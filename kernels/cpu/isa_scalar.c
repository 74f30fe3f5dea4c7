/* The math for any processor: what the compiler makes of plain C and its generic vectors. */
#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/rows_body.h"

#include "kernels/cpu/attention_body.h"

const cpu_isa cpu_isa_scalar = {"scalar", isa_gemm, isa_attention, isa_rmsnorm, isa_silu_mul, isa_round_bf16};
