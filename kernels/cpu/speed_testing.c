/*
 * speed: measures the CPU backend's matrix products against this machine's own limits, all in one run, everything in turn in
 * every round, so that what else the machine does falls on all alike. One thread, whose CPU time counts: on a machine that others
 * use too the clock says little. Not a test: run it by hand.
 *
 *     cpu_speed [rounds] [instruction set ...]
 *
 * Limits: the best of three patterns of reading memory, and the multiply-add units' rate on registers alone. Products: one row
 * and 512 rows times the matrices of two Llama-3.2-1B layers, which no cache holds, in every format; one row's rate is in bytes of the
 * format.
 */
#include "kernels/cpu/pair_testing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
#define MAX_ITEMS 48u
#define MAX_ROUNDS 99u
#define READ_BYTES ((size_t)256 << 20) /* a task takes one MiB */
#define N_LAYERS 2u
#define MAX_ROWS 512u

static const uint32_t shapes[][2] = {{3072, 2048}, {2048, 2048}, {16384, 2048}, {2048, 8192}};

typedef struct item {
    char name[48];
    const char *unit;
    void (*run)(const struct item *item);
    double work; /* of one run, in 10^9 units */
    double results[MAX_ROUNDS];
    /* a limit */
    void (*limit)(size_t task);
    size_t n_tasks;
    /* products */
    side s;
    kernels_weight *weights[N_LAYERS * COUNT(shapes)];
    float *x, *y;
    uint32_t n_rows, n_weights;
} item;

static item items[MAX_ITEMS];
static size_t n_items;
static size_t n_rounds = 5;
static uint8_t *memory; /* [READ_BYTES] */
static volatile float sink;

/* ----------------------------------------------------------------- limits -- */

typedef float lanes __attribute__((vector_size(16)));

/* n_streams runs of a 1 MiB task side by side, each asked for `ahead` bytes before its turn (0: not). */
static inline __attribute__((always_inline)) void read_task(size_t task, size_t n_streams, size_t ahead) {
    const uint8_t *from = memory + (task << 20);
    size_t stream = ((size_t)1 << 20) / n_streams;
    lanes sum[8] = {{0}};
    for (size_t i = 0; i < stream; i += 128) {
        for (size_t s = 0; s < n_streams; s++) {
            const uint8_t *line = from + s * stream + i;
            if (ahead > 0) {
                __builtin_prefetch(line + ahead);
                __builtin_prefetch(line + ahead + 64);
            }
            for (size_t v = 0; v < 8; v++) {
                lanes x;
                memcpy(&x, line + v * sizeof x, sizeof x);
                sum[v] += x;
            }
        }
    }
    lanes all = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    sink = all[0];
}

static void read_one_stream(size_t task) { read_task(task, 1, 0); }

static void read_ahead(size_t task) { read_task(task, 1, 2048); }

static void read_four_streams(size_t task) { read_task(task, 4, 1024); }

#if defined(__x86_64__)
#define PEAK_STEPS 2000000u
#define PEAK_CHAINS 12u

/* Twelve independent chains of one instruction on registers alone: more than it takes to fill both units. */
#define PEAK_CHAIN(op, type, n) op " %%" type "14, %%" type "14, %%" type #n "\n\t"
#define PEAK_CLEAR(n) "vxorps %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n\t"
#define PEAK_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define PEAK(function, op, type)                                                                                       \
    static void function(size_t task) {                                                                                \
        (void)task;                                                                                                    \
        size_t n = PEAK_STEPS;                                                                                         \
        __asm__ volatile(PEAK_EACH(PEAK_CLEAR)                                                                         \
                             PEAK_CLEAR(14) "1:\n\t" PEAK_EACH(PEAK_##type##_##op) "dec %0\n\t"                        \
                                                                                   "jnz 1b\n\tvzeroupper"              \
                         : "+r"(n)                                                                                     \
                         :                                                                                             \
                         : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",       \
                           "xmm10", "xmm11", "xmm14");                                                                 \
    }
#define PEAK_ymm_fma(n) PEAK_CHAIN("vfmadd231ps", "ymm", n)
#define PEAK_zmm_fma(n) PEAK_CHAIN("vfmadd231ps", "zmm", n)
#define PEAK_zmm_dpbf16(n) PEAK_CHAIN("vdpbf16ps", "zmm", n)

PEAK(peak_fma256, fma, ymm)
PEAK(peak_fma512, fma, zmm)
PEAK(peak_dpbf16, dpbf16, zmm)
#endif

static void limit_run(const item *it) {
    for (size_t task = 0; task < it->n_tasks; task++) {
        it->limit(task);
    }
}

static item *item_add(const char *name, const char *unit, double work, void (*run)(const item *it)) {
    item *it = &items[n_items++];
    snprintf(it->name, sizeof it->name, "%s", name);
    it->unit = unit;
    it->work = work;
    it->run = run;
    return it;
}

static void limit_add(const char *name, const char *unit, double work, size_t n_tasks, void (*limit)(size_t task)) {
    item *it = item_add(name, unit, work, limit_run);
    it->n_tasks = n_tasks;
    it->limit = limit;
}

static void limits_add(side limit_side) {
    void *buffer = NULL;
    CHECK_OK(limit_side.b->alloc(limit_side.d, READ_BYTES + 4096, &buffer, ERR)); /* ahead of the last line, too */
    memory = buffer;
    memset(memory, 1, READ_BYTES + 4096);
    size_t n_reads = READ_BYTES >> 20;
    limit_add("limit: read, one stream", "GB/s", (double)READ_BYTES * 1e-9, n_reads, read_one_stream);
    limit_add("limit: read, asked for ahead", "GB/s", (double)READ_BYTES * 1e-9, n_reads, read_ahead);
    limit_add("limit: read, four streams", "GB/s", (double)READ_BYTES * 1e-9, n_reads, read_four_streams);
#if defined(__x86_64__)
    double flops = (double)PEAK_STEPS * PEAK_CHAINS * 2e-9;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        limit_add("limit: multiply-add, 256 bits", "GFLOP/s", flops * 8, 1, peak_fma256);
    }
    if (__builtin_cpu_supports("avx512f")) {
        limit_add("limit: multiply-add, 512 bits", "GFLOP/s", flops * 16, 1, peak_fma512);
    }
    if (__builtin_cpu_supports("avx512bf16")) {
        limit_add("limit: vdpbf16ps, 512 bits", "GFLOP/s", flops * 32, 1, peak_dpbf16);
    }
#endif
}

/* --------------------------------------------------------------- products -- */

static void product_run(const item *it) {
    for (uint32_t i = 0; i < it->n_weights; i++) {
        CHECK_OK(it->s.b->linear(it->s.d, it->weights[i], NULL, it->x, it->n_rows, it->y, false, ERR));
    }
}

static void products_add(const char *isa, kernels_weight_format format) {
    static const char *const names[] = {"bf16", "bf16", "int8", "int4"};
    side s = side_open_cpu(isa, true, 1);
    uint32_t widest = 0, n_in = 0;
    kernels_weight *weights[N_LAYERS * COUNT(shapes)];
    double weight_bytes = 0, flops = 0;
    test_rng rng = {1};
    for (size_t i = 0; i < COUNT(weights); i++) {
        uint32_t out = shapes[i % COUNT(shapes)][0], in = shapes[i % COUNT(shapes)][1];
        float *values = test_alloc((size_t)out * in * sizeof *values);
        for (size_t v = 0; v < (size_t)out * in; v++) {
            values[v] = (float)(int32_t)(uint32_t)test_rng_next(&rng) * 0x1p-36F;
        }
        weights[i] = side_weight_in(s, out, in, format, values);
        free(values);
        widest = out > widest ? out : widest;
        n_in = in > n_in ? in : n_in;
        weight_bytes += (double)s.b->weight_bytes(s.d, out, in, format);
        flops += 2.0 * out * in;
    }
    float *x = test_alloc((size_t)MAX_ROWS * n_in * sizeof *x);
    random_floats(&rng, x, (size_t)MAX_ROWS * n_in);
    for (uint32_t rows = 1; rows <= MAX_ROWS; rows = rows == 1 ? 8 : rows == 8 ? MAX_ROWS : MAX_ROWS + 1) {
        char name[48];
        /* Of many rows one layer will do: weights are read once a panel, whatever holds them. */
        uint32_t share = rows == MAX_ROWS ? N_LAYERS : 1;
        snprintf(name, sizeof name, "%s %s, %u row%s", isa, names[format], rows, rows > 1 ? "s" : "");
        item *it = item_add(name, rows == 1 ? "GB/s" : "GFLOP/s",
                            (rows == 1 ? weight_bytes : flops * rows) / share * 1e-9, product_run);
        it->s = s;
        it->n_rows = rows;
        it->n_weights = (uint32_t)COUNT(weights) / share;
        memcpy(it->weights, weights, sizeof weights);
        it->x = side_floats(s, x, (size_t)rows * n_in);
        it->y = side_floats(s, NULL, (size_t)rows * widest);
    }
    free(x);
}

/* ------------------------------------------------------------------- main -- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void report(void) {
    for (size_t i = 0; i < n_items; i++) {
        double *results = items[i].results;
        qsort(results, n_rounds, sizeof *results, ascending);
        printf("%-32s median %8.2f %-8s [%.2f .. %.2f]\n", items[i].name, results[n_rounds / 2], items[i].unit,
               results[0], results[n_rounds - 1]);
    }
}

static char **wanted; /* NULL behind the last; none: all */

static bool is_wanted(const char *isa) {
    char **name = wanted;
    while (*name != NULL && strcmp(*name, isa) != 0) {
        name++;
    }
    return *wanted == NULL || *name != NULL;
}

static void measure(void) {
    limits_add(side_open_cpu(NULL, true, 1)); /* whose memory has pages as large as weights have */
    for (const char *const *isa = pair_isas(); *isa != NULL; isa++) {
        if (is_wanted(*isa)) {
            products_add(*isa, KERNELS_WEIGHT_DTYPE);
            products_add(*isa, KERNELS_WEIGHT_INT8);
            products_add(*isa, KERNELS_WEIGHT_INT4);
        }
    }
    for (size_t round = 0; round < n_rounds; round++) {
        for (size_t i = 0; i < n_items; i++) {
            uint64_t start = test_cpu_us();
            items[i].run(&items[i]);
            double seconds = (double)(test_cpu_us() - start) * 1e-6;
            items[i].results[round] = items[i].work / seconds;
            printf("round %zu: %-32s %8.2f %-8s (%.1f ms)\n", round + 1, items[i].name, items[i].results[round],
                   items[i].unit, seconds * 1e3);
            fflush(stdout);
        }
    }
    report();
}

int main(int argc, char **argv) {
    static const test_case all[] = {{"measure", measure}};
    n_rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : n_rounds;
    n_rounds = n_rounds < 1 ? 1 : n_rounds > MAX_ROUNDS ? MAX_ROUNDS : n_rounds;
    wanted = argv + (argc > 2 ? 2 : argc);
    return test_main("cpu_speed", all, 1, 1, argv);
}
