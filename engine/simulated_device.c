/* simulated_device: see simulated_device.h. Times are nanoseconds; in a step they are added up as double, then rounded. */
#include "engine/simulated_device.h"

#include "kernels/abi.h"
#include "kernels/frames.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_GRANULARITY ((uint64_t)2 << 20) /* of NVIDIA's virtual memory management */
#define ACT_BYTES 2u                         /* bf16 */
#define RESIDUAL_BYTES 4u

struct kernels_weight {
    uint32_t n_out, n_in;
};

/* Copies of one direction, one after the other. */
typedef struct stream {
    uint64_t *ends_ns; /* [cap] when a ticket's copies are done, at its number modulo cap; owned */
    uint64_t cap, newest, done;
} stream;

typedef struct lane {
    uint64_t end_ns;
    uint32_t n_chosen;
    kernels_chosen *chosen; /* [max_batch_size], owned */
} lane;

struct kernels_device {
    perch_hardware hardware;
    char text[128];
    uint64_t page_bytes;
    frames_shape frames;
    uint32_t vocab_size, max_batch_size;
    uint64_t now_ns;
    uint64_t origin_ns; /* from where on it is told */
    uint64_t free_ns;   /* when all steps that are queued are computed */
    double step_ns;     /* of the step that is being queued */
    double attention_ns;
    uint32_t attention_window; /* the window that attention_ns is of, if the step has one yet */
    bool attention_known;
    lane lanes[KERNELS_LANES];
    stream streams[KERNELS_DIRECTIONS];
};

static uint64_t later(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* The time of 10^9 bytes or operations is a second at a rate of 1 G: so rates in 10^9 are bytes a nanosecond. */
static double roofline(const kernels_device *device, double flops, double tflops, double n_bytes) {
    return fmax(flops / (tflops * 1e3), n_bytes / device->hardware.memory_gbps);
}

static void add_traffic(kernels_device *device, double n_bytes) {
    device->step_ns += roofline(device, 0, device->hardware.matrix_tflops, n_bytes);
}

/* ------------------------------------------------------------------ device -- */

perch_status simulated_open(const perch_hardware *hardware, kernels_device **out, perch_error *err) {
    kernels_device *device = calloc(1, sizeof *device);
    *out = device;
    if (!device) {
        return err_nomem(err, "the simulated device");
    }
    device->hardware = *hardware;
    snprintf(device->text, sizeof device->text, "simulated: %g TFLOP/s, %g GB/s, host %g GB/s", hardware->matrix_tflops,
             hardware->memory_gbps, hardware->host_gbps);
    return PERCH_OK;
}

uint64_t simulated_now_us(const kernels_device *device) { return (device->now_ns - device->origin_ns) / 1000; }

double simulated_disk_gbps(const kernels_device *device) { return device->hardware.disk_gbps; }

void simulated_begin(kernels_device *device) { device->origin_ns = device->now_ns; }

void simulated_pass_time(kernels_device *device, uint64_t until_us) {
    uint64_t until_ns;
    if (!__builtin_mul_overflow(until_us, (uint64_t)1000, &until_ns) &&
        !__builtin_add_overflow(until_ns, device->origin_ns, &until_ns)) {
        device->now_ns = later(device->now_ns, until_ns);
    }
}

static void sim_host_close(kernels_device *device) {
    for (size_t d = 0; d < KERNELS_DIRECTIONS; d++) {
        free(device->streams[d].ends_ns);
        device->streams[d] = (stream){.ends_ns = NULL};
    }
}

static void sim_close(kernels_device *device) {
    if (device) {
        sim_host_close(device);
        for (uint32_t i = 0; i < KERNELS_LANES; i++) {
            free(device->lanes[i].chosen);
        }
        free(device);
    }
}

static const char *sim_describe(const kernels_device *device) { return device->text; }

static size_t sim_act_bytes(const kernels_device *device) {
    (void)device;
    return ACT_BYTES;
}

static perch_status sim_free_bytes(kernels_device *device, uint64_t *out, perch_error *err) {
    (void)err;
    *out = device->hardware.memory_bytes ? device->hardware.memory_bytes : UINT64_MAX / 2;
    return PERCH_OK;
}

/* Addresses for the forward pass to reckon with; the pages behind them are never touched. */
static perch_status sim_alloc(kernels_device *device, size_t bytes, void **out, perch_error *err) {
    (void)device;
    *out = calloc(1, bytes);
    return *out ? PERCH_OK : err_nomem(err, "a device buffer");
}

static void sim_free(kernels_device *device, void *buffer) {
    (void)device;
    free(buffer);
}

static perch_status sim_upload(kernels_device *device, void *to, const void *from, size_t bytes, perch_error *err) {
    (void)device, (void)to, (void)from, (void)bytes, (void)err;
    return PERCH_OK;
}

static perch_status sim_download(kernels_device *device, void *to, const void *from, size_t bytes, perch_error *err) {
    (void)from, (void)err;
    memset(to, 0, bytes);
    device->now_ns = later(device->now_ns, device->free_ns);
    return PERCH_OK;
}

static uint64_t sim_weight_bytes(const kernels_device *device, uint32_t n_out, uint32_t n_in,
                                 kernels_weight_format format) {
    (void)device;
    (void)format; /* weight_create takes one alone */
    return (uint64_t)n_out * n_in * ACT_BYTES;
}

static perch_status sim_weight_create(kernels_device *device, uint32_t n_out, uint32_t n_in,
                                      kernels_weight_format format, kernels_weight **out, perch_error *err) {
    (void)device;
    *out = NULL;
    if (format != KERNELS_WEIGHT_DTYPE) {
        return err_set(err, PERCH_E_UNSUPPORTED, "[model] weight_format: the simulated device knows only auto");
    }
    *out = malloc(sizeof **out);
    if (!*out) {
        return err_nomem(err, "a weight");
    }
    **out = (kernels_weight){n_out, n_in};
    return PERCH_OK;
}

static void sim_weight_destroy(kernels_device *device, kernels_weight *weight) {
    (void)device;
    free(weight);
}

/* --------------------------------------------------------------- KV memory -- */

static uint64_t sim_kv_page_granularity(const kernels_device *device) {
    (void)device;
    return PAGE_GRANULARITY;
}

static perch_status sim_kv_open(kernels_device *device, const kernels_kv *kv, perch_error *err) {
    (void)err;
    device->page_bytes = kv->page_bytes;
    device->frames.n_pages = kv->n_pages;
    return PERCH_OK;
}

static kv_view sim_kv_slot(const kernels_device *device, uint32_t slot) {
    (void)device, (void)slot;
    return (kv_view){.base = NULL, .blocks = NULL};
}

static perch_status sim_kv_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err) {
    (void)err;
    for (size_t i = 0; i < n; i++) {
        if (commands[i].op == KV_COPY) { /* read and written, in front of the next step */
            double ns = roofline(device, 0, device->hardware.matrix_tflops, 2.0 * (double)device->page_bytes);
            device->free_ns = later(device->now_ns, device->free_ns) + (uint64_t)ns;
        }
    }
    return PERCH_OK;
}

static perch_status sim_host_open(kernels_device *device, uint32_t n_frames, perch_error *err) {
    device->frames.n_frames = n_frames;
    for (size_t d = 0; d < KERNELS_DIRECTIONS; d++) {
        stream *s = &device->streams[d];
        s->cap = (uint64_t)n_frames + 1; /* a frame is in one copy at a time */
        s->ends_ns = calloc(s->cap, sizeof *s->ends_ns);
        if (!s->ends_ns) {
            return err_nomem(err, "the copies that are under way");
        }
    }
    return PERCH_OK;
}

static perch_status sim_transfer(kernels_device *device, kernels_direction direction, const kernels_transfer *list,
                                 size_t n, uint64_t *ticket, perch_error *err) {
    stream *s = &device->streams[direction];
    perch_status status = frames_check(&device->frames, list, n, err);
    if (!status && n) {
        uint64_t begin_ns = later(later(device->now_ns, device->free_ns), s->ends_ns[s->newest % s->cap]);
        double ns = (double)n * (double)device->page_bytes / device->hardware.host_gbps;
        s->newest++;
        s->ends_ns[s->newest % s->cap] = begin_ns + (uint64_t)ns;
    }
    *ticket = s->newest;
    return status;
}

static perch_status sim_transferred(kernels_device *device, kernels_direction direction, uint64_t *ticket,
                                    perch_error *err) {
    stream *s = &device->streams[direction];
    (void)err;
    while (s->done < s->newest && s->ends_ns[(s->done + 1) % s->cap] <= device->now_ns) {
        s->done++;
    }
    *ticket = s->done;
    return PERCH_OK;
}

static perch_status sim_transfer_wait(kernels_device *device, kernels_direction direction, uint64_t ticket,
                                      perch_error *err) {
    const stream *s = &device->streams[direction];
    (void)err;
    if (ticket > s->done) {
        device->now_ns = later(device->now_ns, s->ends_ns[ticket % s->cap]);
    }
    return PERCH_OK;
}

/* -------------------------------------------------------------------- math -- */

static perch_status sim_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                              uint32_t n_tokens, float *y, perch_error *err) {
    (void)batch, (void)y, (void)err;
    add_traffic(device, (double)n_tokens * weight->n_in * (ACT_BYTES + RESIDUAL_BYTES));
    return PERCH_OK;
}

static perch_status sim_rmsnorm(kernels_device *device, const float *x, const float *gain, float eps, uint32_t n_tokens,
                                uint32_t width, void *y, perch_error *err) {
    (void)x, (void)gain, (void)eps, (void)y, (void)err;
    add_traffic(device, (double)n_tokens * width * (RESIDUAL_BYTES + ACT_BYTES));
    return PERCH_OK;
}

static void add_product(kernels_device *device, const kernels_weight *weight, uint32_t n_tokens, uint32_t out_bytes) {
    double n = n_tokens, n_out = weight->n_out, n_in = weight->n_in;
    double n_bytes = n_out * n_in * ACT_BYTES + n * (n_in * ACT_BYTES + n_out * out_bytes);
    device->step_ns += roofline(device, 2 * n * n_out * n_in, device->hardware.matrix_tflops, n_bytes);
}

static perch_status sim_linear(kernels_device *device, const kernels_weight *weight, const float *bias, const void *x,
                               uint32_t n_tokens, void *y, bool accumulate, perch_error *err) {
    (void)bias, (void)x, (void)y, (void)err;
    add_product(device, weight, n_tokens, accumulate ? 2 * RESIDUAL_BYTES : ACT_BYTES);
    return PERCH_OK;
}

static perch_status sim_linear_f32(kernels_device *device, const kernels_weight *weight, const void *x,
                                   uint32_t n_tokens, float *y, perch_error *err) {
    (void)x, (void)y, (void)err;
    add_product(device, weight, n_tokens, sizeof(float));
    return PERCH_OK;
}

static perch_status sim_head_norm(kernels_device *device, void *x, uint32_t n_tokens, uint32_t stride, uint32_t offset,
                                  uint32_t n_heads, uint32_t head_dim, const float *gain, float eps, perch_error *err) {
    (void)x, (void)stride, (void)offset, (void)gain, (void)eps, (void)err;
    add_traffic(device, 2.0 * n_tokens * n_heads * head_dim * ACT_BYTES);
    return PERCH_OK;
}

static perch_status sim_rope_write(kernels_device *device, const kernels_batch *batch,
                                   const kernels_attention *attention, const float *table, void *qkv,
                                   perch_error *err) {
    (void)batch, (void)table, (void)qkv, (void)err;
    double width = (attention->n_heads + 2.0 * attention->layout.n_kv_heads) * attention->layout.head_dim;
    add_traffic(device, 2 * (double)batch->n_tokens * width * ACT_BYTES);
    return PERCH_OK;
}

/* A row reads the keys and values that any of its tokens sees, and multiplies each token with those that it sees itself. */
static double row_ns(const kernels_device *device, const kernels_row *row, const kernels_attention *a) {
    double first = row->first_position, n = row->n_tokens, window = a->window;
    double n_growing = a->window ? fmin(fmax(window - first, 0), n) : n; /* tokens that see all before them */
    double n_seen = n_growing * first + n_growing * (n_growing + 1) / 2 + (n - n_growing) * window;
    double n_read = a->window ? fmin(first + n, window + n - 1) : first + n;
    double flops = 4 * n_seen * a->n_heads * a->layout.head_dim;
    double n_bytes = n_read * 2 * a->layout.n_kv_heads * a->layout.head_dim * a->layout.element_bytes;
    return roofline(device, flops, device->hardware.attention_tflops, n_bytes);
}

/* Layers with the same window take the same time. */
static perch_status sim_attention(kernels_device *device, const kernels_batch *batch,
                                  const kernels_attention *attention, const void *qkv, void *out, perch_error *err) {
    (void)qkv, (void)out, (void)err;
    if (!device->attention_known || device->attention_window != attention->window) {
        device->attention_known = true;
        device->attention_window = attention->window;
        device->attention_ns = 0;
        for (uint32_t r = 0; r < batch->n_rows; r++) {
            device->attention_ns += row_ns(device, &batch->rows[r], attention);
        }
    }
    device->step_ns += device->attention_ns;
    return PERCH_OK;
}

static perch_status sim_silu_mul(kernels_device *device, const void *gate_up, uint32_t n_tokens, uint32_t width,
                                 void *y, perch_error *err) {
    (void)gate_up, (void)y, (void)err;
    add_traffic(device, 3.0 * n_tokens * width * ACT_BYTES);
    return PERCH_OK;
}

static perch_status sim_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                               size_t row_bytes, void *y, perch_error *err) {
    (void)batch, (void)x, (void)y, (void)err;
    add_traffic(device, 2.0 * n_logits * (double)row_bytes);
    return PERCH_OK;
}

/* ------------------------------------------------------------------- steps -- */

static uint64_t sim_reserve_bytes(const kernels_device *device, const kernels_limits *limits) {
    (void)device, (void)limits;
    return 0;
}

static perch_status sim_reserve(kernels_device *device, const kernels_limits *limits, perch_error *err) {
    device->vocab_size = limits->vocab_size;
    device->max_batch_size = limits->max_batch_size;
    for (uint32_t i = 0; i < KERNELS_LANES; i++) {
        device->lanes[i].chosen = calloc(limits->max_batch_size, sizeof *device->lanes[i].chosen);
        if (!device->lanes[i].chosen) {
            return err_nomem(err, "the simulated device's choices");
        }
    }
    return PERCH_OK;
}

static perch_status sim_begin(kernels_device *device, uint32_t lane_index, const kernels_batch *batch,
                              uint64_t graph_key, kernels_pass *pass, perch_error *err) {
    (void)lane_index, (void)graph_key, (void)err;
    device->step_ns = device->hardware.launch_us * 1e3;
    device->attention_known = false;
    *pass = (kernels_pass){.n_tokens = batch->n_tokens, .n_logits = batch->n_logits, .replayed = false};
    return PERCH_OK;
}

static perch_status sim_end(kernels_device *device, uint32_t lane_index, perch_error *err) {
    lane *l = &device->lanes[lane_index];
    (void)err;
    device->free_ns = later(device->now_ns, device->free_ns) + (uint64_t)device->step_ns;
    l->end_ns = device->free_ns;
    l->n_chosen = 0;
    return PERCH_OK;
}

static perch_status sim_history(kernels_device *device, uint32_t slot, uint32_t first, uint32_t n,
                                const int32_t *tokens, perch_error *err) {
    (void)device, (void)slot, (void)first, (void)n, (void)tokens, (void)err;
    return PERCH_OK;
}

/* Probabilities are read off logits, which the host has. */
static bool sim_can_choose(const kernels_device *device, const kernels_choice *choice) {
    (void)device;
    return !choice->want_logprob && choice->sampling->n_logprobs == 0;
}

static bool is_suppressed(const kernels_choice *choice, int32_t token) {
    for (uint32_t i = 0; i < choice->n_suppressed; i++) {
        if (choice->suppressed[i] == token) {
            return true;
        }
    }
    return false;
}

static int32_t choose_token(const kernels_device *device, const kernels_choice *choice) {
    uint64_t z = choice->sampling->seed + choice->completion + choice->n_tokens * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9); /* SplitMix64's finalizer (Steele et al. 2014) */
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    z ^= z >> 31;
    for (uint32_t i = 0; i < device->vocab_size; i++) {
        int32_t token = (int32_t)((z + i) % device->vocab_size);
        if (!is_suppressed(choice, token)) {
            return token;
        }
    }
    return -1;
}

static perch_status sim_choose(kernels_device *device, uint32_t lane_index, const float *logits,
                               const kernels_choice *choices, uint32_t n, perch_error *err) {
    lane *l = &device->lanes[lane_index];
    (void)logits, (void)err;
    double ns = (double)n * device->vocab_size * sizeof(float) / device->hardware.memory_gbps;
    for (uint32_t i = 0; i < n; i++) {
        l->chosen[i] = (kernels_chosen){.token = choose_token(device, &choices[i])};
    }
    l->n_chosen = n;
    device->free_ns += (uint64_t)ns;
    l->end_ns = device->free_ns;
    return PERCH_OK;
}

static perch_status sim_wait(kernels_device *device, uint32_t lane_index, const kernels_chosen **out,
                             perch_error *err) {
    const lane *l = &device->lanes[lane_index];
    (void)err;
    device->now_ns = later(device->now_ns, l->end_ns);
    *out = l->chosen;
    return PERCH_OK;
}

static const kernels_async simulated_async = {
    .reserve_bytes = sim_reserve_bytes,
    .reserve = sim_reserve,
    .begin = sim_begin,
    .end = sim_end,
    .history = sim_history,
    .can_choose = sim_can_choose,
    .choose = sim_choose,
    .wait = sim_wait,
};

/* weight_set_rows is NULL: weights have no values. Nor has it host_frame: frames have no bytes. */
const kernels_backend simulated_backend = {
    .abi = KERNELS_ABI,
    .name = "simulated",
    .async = &simulated_async,
    .close = sim_close,
    .describe = sim_describe,
    .act_bytes = sim_act_bytes,
    .free_bytes = sim_free_bytes,
    .alloc = sim_alloc,
    .free = sim_free,
    .upload = sim_upload,
    .download = sim_download,
    .weight_bytes = sim_weight_bytes,
    .weight_create = sim_weight_create,
    .weight_destroy = sim_weight_destroy,
    .kv_page_granularity = sim_kv_page_granularity,
    .kv_open = sim_kv_open,
    .kv_close = sim_host_close,
    .kv_slot = sim_kv_slot,
    .kv_execute = sim_kv_execute,
    .host_open = sim_host_open,
    .host_close = sim_host_close,
    .transfer = sim_transfer,
    .transferred = sim_transferred,
    .transfer_wait = sim_transfer_wait,
    .embed = sim_embed,
    .rmsnorm = sim_rmsnorm,
    .linear = sim_linear,
    .linear_f32 = sim_linear_f32,
    .head_norm = sim_head_norm,
    .rope_write = sim_rope_write,
    .attention = sim_attention,
    .silu_mul = sim_silu_mul,
    .gather = sim_gather,
};
