/*
 * bench_bound: how fast a grid's run could be at most.
 */
#include "bench_bound.h"

#include <math.h>
#include <string.h>

static double rate(double limit, double work) { return limit > 0.0 && work > 0.0 ? limit / work : (double)NAN; }

/* Floating-point operations of one token's attention to n tokens: a product and a sum for each element of K and of V. */
static double attention_flops(const perch_plan *plan, double n) {
    return 4.0 * plan->n_layers * plan->n_heads * plan->head_dim * n;
}

/* Of a weight. Quantized ones, with their scales and with what keeps more bits, by what they take in all. */
static double element_bytes(const perch_plan *plan) {
    if (strcmp(plan->weight_format, plan->dtype) != 0) {
        return (double)plan->weights_bytes / (double)plan->n_parameters;
    }
    return strcmp(plan->dtype, "f32") == 0 ? 4.0 : 2.0;
}

void bench_bound_compute(struct bench_run *run, struct bench_bound *bound) {
    const struct bench_config *config = &run->tool->bench;
    const perch_plan *plan = run->plan;
    double copied = config->copy_gbps * 1e9;
    double multiplied = config->matrix_tflops * 1e12;
    double rows = run->concurrency;
    double parameters = (double)plan->n_step_parameters;
    double output = (double)plan->vocab_size * plan->hidden_size;
    double context = samples_percentile(&run->full.contexts, 50);

    double prompt = run->prompt_tokens;
    double prefill_flops =
        2.0 * (parameters - output) + 2.0 * output / prompt + attention_flops(plan, (prompt + 1) / 2);
    double step_bytes = parameters * element_bytes(plan) + rows * context * (double)plan->kv_bytes_per_token;
    double step_flops = rows * (2.0 * parameters + attention_flops(plan, context));

    bound->prefill_by_matrix = rate(multiplied, prefill_flops);
    bound->decode_by_copy = rate(copied, step_bytes) * rows;
    bound->decode_by_matrix = rate(multiplied, step_flops) * rows;
    double lower = bound->decode_by_matrix < bound->decode_by_copy ? bound->decode_by_matrix : bound->decode_by_copy;
    bound->prefill_share = samples_percentile(&run->prefill_rates, 50) / bound->prefill_by_matrix;
    bound->decode_share = samples_percentile(&run->full.decode_rates, 50) / lower;
}
