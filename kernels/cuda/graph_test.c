/*
 * Graphs: a pass that is replayed has the bits of one that is queued, whatever its batch; and what can't be recorded, kept or
 * launched is queued.
 */
#define STEP_SLOTS 32 /* so that the arrays of fewer rows lie elsewhere */
#include "kernels/cuda/step_testing_body.h"

/* The fast algorithms too: a pass that is replayed has the bits of one that is queued. */
static void graphs_change_no_bit(void) {
    static world want, have;
    const variant plain = {.mapping = KERNELS_VMM, .ahead = true, .seed = 5},
                  graphs = {.mapping = KERNELS_VMM, .ahead = true, .graphs = true, .seed = 6};
    world_open(&want, &plain);
    if (want.device == NULL) {
        return;
    }
    serve(&want);
    testing_close(want.device);
    world_open(&have, &graphs);
    serve(&have);
    check_same(&have, &want);
    CHECK_MSG(have.n_replayed > 4, "%u passes were replayed", have.n_replayed);
    testing_close(have.device);
}

/* Decode rows, the last n_long of them behind a long context, and whether graphs of the passes before serve them. */
typedef struct decoding {
    uint32_t lane, n_rows, n_long, n_logits;
    uint64_t kind;
    bool has_graph;
    const char *gap; /* the call whose second time, in the recording, fails */
} decoding;

static void decode(world *w, const decoding *d, size_t number, kernels_chosen *out) {
    step st = {.n = d->n_rows};
    const kernels_chosen *chosen = NULL;
    kernels_pass pass;
    for (uint32_t r = 0; r < d->n_rows; r++) {
        st.tokens[r] = (int32_t)((5 + number + r) % VOCAB);
        st.positions[r] = r + d->n_long >= d->n_rows ? LONG : 0;
        st.token_row[r] = st.logit_tokens[r] = r;
        st.rows[r] = (kernels_row){.kv = cuda()->kv_slot(w->device, r),
                                   .first_token = r,
                                   .n_tokens = 1,
                                   .first_position = st.positions[r],
                                   .slot = r};
        st.choices[r] = (kernels_choice){
            .logit_row = r, .slot = r, .n_prompt = 1, .n_tokens = 1, .sampling = &w->sequences[0].sampling};
    }
    const kernels_batch batch = {.n_tokens = d->n_rows,
                                 .n_rows = d->n_rows,
                                 .n_logits = d->n_logits,
                                 .tokens = st.tokens,
                                 .positions = st.positions,
                                 .token_row = st.token_row,
                                 .rows = st.rows,
                                 .logit_tokens = st.logit_tokens};
    CHECK_OK(cuda()->async->begin(w->device, d->lane, &batch, d->kind, &pass, ERR));
    CHECK_MSG(pass.replayed == (d->has_graph && w->variant.graphs), "pass %zu was %s", number,
              pass.replayed ? "replayed" : "queued");
    if (!pass.replayed) {
#ifdef PERCH_EMULATED
        if (d->gap != NULL) {
            emulation_fail(d->gap, 2, 0);
        }
#endif
        queue_pass(&w->model, &batch, &pass);
        CHECK_OK(cuda()->async->end(w->device, d->lane, ERR));
    }
    CHECK_OK(cuda()->async->choose(w->device, d->lane, w->model.logits, st.choices, d->n_logits, ERR));
    CHECK_OK(cuda()->async->wait(w->device, d->lane, &chosen, ERR));
    if (chosen != NULL) {
        memcpy(out, chosen, d->n_logits * sizeof *out);
    }
}

/*
 * A graph serves passes of its own lane, size, number of logits and kind alone; those may have fewer rows than it was recorded
 * with, and other contexts.
 */
static void a_graph_serves_passes_of_its_kind_alone(void) {
    static const decoding passes[] = {
        {0, 32, 32, 32, 1, false, NULL}, {0, 2, 0, 2, 1, false, NULL},  {0, 2, 0, 1, 1, false, NULL},
        {0, 1, 0, 1, 1, false, NULL},    {0, 2, 1, 2, 2, false, NULL},  {1, 2, 0, 2, 1, false, NULL},
        {0, 17, 1, 17, 1, true, NULL},   {0, 25, 3, 25, 1, true, NULL}, {0, 2, 2, 2, 1, true, NULL},
        {0, 2, 0, 1, 1, true, NULL},     {0, 2, 0, 2, 2, true, NULL},   {1, 2, 1, 2, 1, true, NULL}};
    enum { N = sizeof passes / sizeof passes[0] };
    static world w;
    static kernels_chosen chosen[2][N][SLOTS];
    for (int graphs = 0; graphs < 2; graphs++) {
        const variant v = {.mapping = KERNELS_TABLE, .graphs = graphs, .deterministic = true, .seed = 3};
        world_open(&w, &v);
        if (w.device == NULL) {
            return;
        }
        uint8_t *zeros = calloc(w.device->kv.pool_bytes, 1); /* the KV before */
        CHECK_OK(cuda()->upload(w.device, (void *)(uintptr_t)w.device->kv.pool, zeros, w.device->kv.pool_bytes, ERR));
        free(zeros);
        w.sequences[0].sampling.temperature = 0;
        for (uint32_t slot = 0; slot < SLOTS; slot++) {
            map_up_to(&w, slot, LONG + 1);
        }
        for (size_t i = 0; i < N; i++) {
            decode(&w, &passes[i], i, chosen[graphs][i]);
        }
        testing_close(w.device);
    }
    for (size_t i = 0; i < N; i++) {
        for (uint32_t r = 0; r < passes[i].n_logits; r++) {
            const kernels_chosen *a = &chosen[0][i][r], *b = &chosen[1][i][r];
            CHECK_MSG(a->token == b->token && memcmp(&a->logit, &b->logit, sizeof a->logit) == 0,
                      "pass %zu, row %u: token %d, not %d", i, r, b->token, a->token);
        }
    }
}

/* What can't be recorded is queued each time, and nobody notices. */
static void passes_that_cannot_be_recorded_are_queued(void) {
#ifdef PERCH_EMULATED
    static const char *const calls[] = {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate",
                                        "cudaGraphUpload", "cudaMemGetInfo"};
    static world want, have;
    variant v = {.mapping = KERNELS_VMM, .ahead = true, .seed = 5};
    world_open(&want, &v);
    serve(&want);
    testing_close(want.device);
    v.graphs = true;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i += test_scaled(10) < 5 ? 2 : 1) {
        world_open(&have, &v);
        emulation_fail(calls[i], 1, 0);
        serve(&have);
        check_same(&have, &want);
        CHECK_MSG(emulation_failed() == 1 && (have.n_replayed == 0 || i == 4), "%s: %u passes were replayed", calls[i],
                  have.n_replayed);
        CU_ASSERT(cuda()->async->failed_graphs(have.device) == (i < 4));
        testing_close(have.device);
    }
#else
    test_skip("has calls fail");
#endif
}

/* A graph that can't be launched, for want of memory, say: its pass and all after it are queued, and nobody notices. */
static void graphs_that_cannot_be_launched_are_queued(void) {
#ifdef PERCH_EMULATED
    static world want, have;
    variant v = {.mapping = KERNELS_VMM, .ahead = true, .seed = 5};
    world_open(&want, &v);
    serve(&want);
    testing_close(want.device);
    v.graphs = true;
    for (uint64_t nth = 1; nth <= 3; nth++) {
        world_open(&have, &v);
        CU_ASSERT(cuda()->async->failed_graphs(have.device) == 0);
        emulation_fail("cudaGraphLaunch", nth, cudaErrorMemoryAllocation);
        serve(&have);
        check_same(&have, &want);
        CHECK_MSG(emulation_failed() == 1 && have.n_replayed == nth - 1 && emulation_calls("cudaGraphLaunch") == nth,
                  "launch %" PRIu64 " fails: %u passes were replayed", nth, have.n_replayed);
        CU_ASSERT(cuda()->async->failed_graphs(have.device) == 1);
        testing_close(have.device);
    }
#else
    test_skip("has calls fail");
#endif
}

/* As many are kept as there is room for; what comes behind them is queued each time. */
static void there_is_room_for_so_many_graphs(void) {
    static world w;
    kernels_chosen chosen;
    const variant v = {.mapping = KERNELS_TABLE, .graphs = true, .deterministic = true, .seed = 4};
    world_open(&w, &v);
    if (w.device == NULL) {
        return;
    }
    map_up_to(&w, 0, 1);
    for (uint32_t again = 0; again < 2; again++) {
        for (uint32_t i = 0; i < CUDA_MAX_GRAPHS + 2; i += again && i == 0 ? CUDA_MAX_GRAPHS - 1 : 1) {
            const decoding d = {.n_rows = 1, .n_logits = 1, .kind = i + 1, .has_graph = again && i < CUDA_MAX_GRAPHS};
            decode(&w, &d, i, &chosen);
        }
    }
    testing_close(w.device);
}

/* What was recorded with something missing is no graph. */
static void a_recording_with_a_gap_is_not_replayed(void) {
#ifdef PERCH_EMULATED
    static const char *const calls[] = {"cudaLaunchKernel", "cublasLtMatmul"};
    static world w;
    kernels_chosen chosen[2][2];
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        const variant v = {.mapping = KERNELS_TABLE, .graphs = true, .deterministic = true, .seed = 4};
        decoding d = {.n_rows = 2, .n_logits = 2, .kind = 1, .gap = calls[i]};
        world_open(&w, &v);
        map_up_to(&w, 0, 1);
        map_up_to(&w, 1, 1);
        decode(&w, &d, 0, chosen[0]);
        CU_ASSERT(emulation_failed() == 1);
        d.gap = NULL;
        decode(&w, &d, 0, chosen[1]);
        CHECK_MSG(chosen[0][0].token == chosen[1][0].token && chosen[0][1].token == chosen[1][1].token,
                  "%s: other tokens", calls[i]);
        testing_close(w.device);
    }
#else
    test_skip("has calls fail");
#endif
}

/* Graphs take device memory: when the share that the plan has for them is used up there are no more, and nothing else is taken. */
static void graphs_take_no_more_than_their_share(void) {
#ifdef PERCH_EMULATED
    static world w;
    const variant v = {.mapping = KERNELS_VMM, .ahead = true, .graphs = true, .seed = 5};
    setenv("PERCH_EMU_GRAPH_BYTES", "40000000", 1);
    world_open(&w, &v);
    unsetenv("PERCH_EMU_GRAPH_BYTES");
    uint64_t before = emulation_bytes();
    serve(&w);
    CHECK_MSG(emulation_bytes() > before && emulation_bytes() - before <= CUDA_GRAPH_BYTES,
              "%" PRIu64 " bytes of graphs", emulation_bytes() - before);
    testing_close(w.device);
#else
    test_skip("asks the emulation");
#endif
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"graphs_change_no_bit", graphs_change_no_bit},
        {"a_graph_serves_passes_of_its_kind_alone", a_graph_serves_passes_of_its_kind_alone},
        {"passes_that_cannot_be_recorded_are_queued", passes_that_cannot_be_recorded_are_queued},
        {"graphs_that_cannot_be_launched_are_queued", graphs_that_cannot_be_launched_are_queued},
        {"there_is_room_for_so_many_graphs", there_is_room_for_so_many_graphs},
        {"a_recording_with_a_gap_is_not_replayed", a_recording_with_a_gap_is_not_replayed},
        {"graphs_take_no_more_than_their_share", graphs_take_no_more_than_their_share},
    };
    return test_main("cuda_graph_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
