/*
 * Steps: a small model serves sequences that come and go, with rows of prompts and of decoding side by side, in two lanes as the
 * engine does it. Whatever the order in which the GPU gets to its work, with graphs and without, with either mapping, steps
 * queued ahead or one by one, each sequence gets the same tokens, and the same bits of their logits.
 */
#include "kernels/cuda/step_testing_body.h"

static void every_way_gives_the_same_tokens(void) {
    static world want, have;
    const uint64_t first = test_seed(1);
    const variant plain = {.mapping = KERNELS_TABLE, .deterministic = true, .seed = 0};
    world_open(&want, &plain);
    if (want.device == NULL) {
        return;
    }
    serve(&want);
    testing_close(want.device);
    for (uint64_t seed = first; seed < first + test_scaled(3); seed++) {
        for (int way = 1; way < 8; way++) {
            const variant v = {.mapping = way & 1 ? KERNELS_VMM : KERNELS_TABLE,
                               .graphs = way & 2,
                               .ahead = way & 4,
                               .deterministic = true,
                               .seed = seed};
            world_open(&have, &v);
            serve(&have);
            check_same(&have, &want);
            CHECK_MSG((have.n_replayed > 0) == v.graphs, "%u passes were replayed", have.n_replayed);
            testing_close(have.device);
        }
    }
}

/* What a window leaves out of a plan of attention no token of its layers sees; layers without a window have a plan of their own. */
static void plans_for_windows_change_no_bit(void) {
    static world want, have;
    variant v = {.mapping = KERNELS_TABLE, .deterministic = true, .one_plan = true, .seed = 4};
    world_open(&want, &v);
    if (want.device == NULL) {
        return;
    }
    serve(&want);
    testing_close(want.device);
    v.one_plan = false;
    world_open(&have, &v);
    serve(&have);
    check_same(&have, &want);
    testing_close(have.device);
}

/* Waits of any thread for the GPU. */
#ifdef PERCH_EMULATED
static uint64_t n_waits(void) {
    return emulation_calls("cudaEventSynchronize") + emulation_calls("cudaStreamSynchronize");
}

/* Queues a pass of the first slot's row, which is decoding, and leaves it under way. */
static void launch_slot(world *w, uint32_t slot, uint32_t lane) {
    sequence *s = w->in_slot[slot];
    step st = {.n = 1, .n_rows = 1, .n_logits = 1};
    map_up_to(w, slot, s->n_computed + 1);
    st.tokens[0] = s->tokens[s->n_computed];
    st.token_from[0] = KERNELS_GIVEN;
    st.positions[0] = s->n_computed;
    st.rows[0] = (kernels_row){
        .kv = cuda()->kv_slot(w->device, slot), .n_tokens = 1, .first_position = s->n_computed++, .slot = slot};
    st.choices[0] = (kernels_choice){.slot = slot, .n_prompt = 1, .n_tokens = s->n_computed, .sampling = &s->sampling};
    st.chosen_for[0] = s;
    launch(w, lane, &st);
}
#endif

/*
 * Other pages come to a slot that the running step does not have, though it had been in use the step before: that waits for
 * nothing. For a slot that it does have it waits, and not before somebody needs the pages.
 */
static void places_that_the_running_step_does_not_have_are_mapped_beside_it(void) {
#ifdef PERCH_EMULATED
    static world w;
    const variant v = {.mapping = KERNELS_VMM, .seed = 0}; /* work is done as late as it may be */
    const kernels_chosen *chosen;
    world_open(&w, &v);
    for (uint32_t slot = 0; slot < 2; slot++) {
        w.in_slot[slot] = &w.sequences[slot];
        w.sequences[slot].slot = slot;
    }
    for (uint32_t slot = 0; slot < 2; slot++) { /* what the next step reads of them */
        launch_slot(&w, slot, 0);
        CHECK_OK(cuda()->async->wait(w.device, 0, &chosen, ERR));
    }
    for (uint32_t slot = 2; slot-- > 0;) { /* first the one that the step before had, then the step's own */
        if (slot == 1) {
            launch_slot(&w, 0, 1);
        }
        const uint64_t waits = n_waits(), unmaps = emulation_calls("cuMemUnmap");
        const kv_command commands[] = {{.op = KV_UNMAP, .slot = slot},
                                       {.op = KV_MAP, .slot = slot, .page = w.free_pages[w.n_free - 1 - slot]}};
        CHECK_OK(cuda()->kv_execute(w.device, commands, 2, ERR));
        CU_ASSERT(slot == 0 || cudaStreamQuery(w.device->compute) == cudaErrorNotReady);
        CHECK_OK(cuda_kv_settle(w.device, ERR));
        CHECK_MSG(emulation_calls("cuMemUnmap") == unmaps + 1 && n_waits() == waits + (slot == 0),
                  "slot %u: %" PRIu64 " waits, %" PRIu64 " unmapped", slot, n_waits() - waits,
                  emulation_calls("cuMemUnmap") - unmaps);
        CU_ASSERT(cudaStreamQuery(w.device->compute) == (slot == 1 ? cudaErrorNotReady : cudaSuccess) || slot == 0);
    }
    CHECK_OK(cuda()->async->wait(w.device, 1, &chosen, ERR));
    CHECK_MSG(chosen != NULL && isfinite(chosen->logit), "the step has read the pages that came behind it");
    testing_close(w.device);
#else
    test_skip("counts calls of the emulation");
#endif
}

/* After reserve no step takes device memory. */
static void steps_take_no_memory(void) {
#ifdef PERCH_EMULATED
    static world w;
    const variant v = {.mapping = KERNELS_VMM, .ahead = true, .graphs = true, .deterministic = true, .seed = 5};
    world_open(&w, &v);
    uint64_t bytes = emulation_bytes(), calls = emulation_calls("cudaMalloc") + emulation_calls("cudaHostAlloc");
    serve(&w);
    CU_ASSERT(emulation_bytes() == bytes && emulation_peak_bytes() >= bytes);
    CU_ASSERT(emulation_calls("cudaMalloc") + emulation_calls("cudaHostAlloc") == calls);
    testing_close(w.device);
#else
    test_skip("counts calls of the emulation");
#endif
}

/* A penalty on tokens that no batch had: they come by history. */
static void history_reaches_the_choice(void) {
    static world w;
    const variant v = {.mapping = KERNELS_TABLE, .deterministic = true, .seed = 9};
    int32_t tokens[20], plain = -1, penalized[2] = {-1, -1};
    for (int with_history = 0; with_history < 2; with_history++) {
        for (int penalty = 0; penalty < 2; penalty++) {
            world_open(&w, &v);
            if (w.device == NULL) {
                return;
            }
            step st = {.n = 1, .n_rows = 1, .n_logits = 1};
            const kernels_chosen *chosen = NULL;
            perch_sampling *sampling = &w.sequences[0].sampling;
            sampling->repetition_penalty = penalty ? 1000 : 1;
            sampling->n_logprobs = 0;
            map_up_to(&w, 1, 21);
            uint8_t *zeros = calloc(w.device->kv.pool_bytes, 1); /* the KV of those tokens, whatever it is */
            CHECK_OK(
                cuda()->upload(w.device, (void *)(uintptr_t)w.device->kv.pool, zeros, w.device->kv.pool_bytes, ERR));
            free(zeros);
            st.tokens[0] = 5;
            st.positions[0] = 20;
            st.token_from[0] = KERNELS_GIVEN;
            st.rows[0] =
                (kernels_row){.kv = cuda()->kv_slot(w.device, 1), .n_tokens = 1, .first_position = 20, .slot = 1};
            st.choices[0] = (kernels_choice){.slot = 1, .n_prompt = 21, .n_tokens = 21, .sampling = sampling};
            st.chosen_for[0] = &w.sequences[0];
            for (int i = 0; i < 20; i++) { /* what was not penalized is chosen, unless it is everywhere before */
                tokens[i] = with_history ? plain : 5;
            }
            CHECK_OK(cuda()->async->history(w.device, 1, 0, 20, tokens, ERR));
            launch(&w, 0, &st);
            CHECK_OK(cuda()->async->wait(w.device, 0, &chosen, ERR));
            if (penalty) {
                penalized[with_history] = chosen->token;
            } else {
                plain = chosen->token;
            }
            testing_close(w.device);
        }
    }
    CHECK_MSG(penalized[0] == plain && penalized[1] != plain, "%d; with penalties %d, %d", plain, penalized[0],
              penalized[1]);
}

/* Calls out of turn and numbers out of range are refused, and the device goes on. */
static void what_does_not_fit_is_refused(void) {
    static world w;
    const variant v = {.mapping = KERNELS_TABLE, .seed = 2};
    const kernels_async *async = cuda()->async;
    const kernels_chosen *chosen;
    kernels_pass pass;
    step st;
    world_open(&w, &v);
    if (w.device == NULL) {
        return;
    }
    admit(&w);
    CU_ASSERT_FATAL(build(&w, &st));
    const kernels_batch good = {.n_tokens = st.n,
                                .n_rows = st.n_rows,
                                .n_logits = st.n_logits,
                                .tokens = st.tokens,
                                .positions = st.positions,
                                .token_row = st.token_row,
                                .rows = st.rows,
                                .logit_tokens = st.logit_tokens};
    const struct {
        uint32_t *value, wrong;
    } changes[] = {{&st.positions[1], SESSION}, {&st.token_row[1], SLOTS}, {&st.rows[0].slot, SLOTS},
                   {&st.rows[0].n_tokens, 99},  {&st.rows[0].n_tokens, 0}, {&st.rows[0].first_position, SESSION}};
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        uint32_t right = *changes[i].value;
        *changes[i].value = changes[i].wrong;
        CHECK_STATUS(async->begin(w.device, 0, &good, 0, &pass, ERR), PERCH_E_INVALID);
        *changes[i].value = right;
    }
    kernels_batch bad = good;
    bad.n_tokens = MAX_STEP + 1;
    CHECK_ERROR(async->begin(w.device, 0, &bad, 0, &pass, ERR), PERCH_E_INVALID, "25 tokens");
    bad = good;
    bad.token_from = st.token_from;
    st.token_from[0] = 0; /* nobody has chosen anything */
    CHECK_STATUS(async->begin(w.device, 0, &bad, 0, &pass, ERR), PERCH_E_INVALID);
    CHECK_ERROR(async->begin(w.device, KERNELS_LANES, &good, 0, &pass, ERR), PERCH_E_INVALID, "lane 2");
    CHECK_ERROR(async->wait(w.device, 0, &chosen, ERR), PERCH_E_INVALID, "is free, not queued");
    CHECK_ERROR(async->choose(w.device, 0, w.model.logits, NULL, 0, ERR), PERCH_E_INVALID, "is free, not begun");
    CHECK_ERROR(cuda()->embed(w.device, w.model.embedding, &good, 1, w.model.x, ERR), PERCH_E_INVALID,
                "no pass has begun");
    CHECK_STATUS(async->history(w.device, SLOTS, 0, 1, st.tokens, ERR), PERCH_E_INVALID);
    CHECK_STATUS(async->history(w.device, 0, SESSION, 1, st.tokens, ERR), PERCH_E_INVALID);

    CHECK_OK(async->begin(w.device, 0, &good, 0, &pass, ERR));
    CHECK_ERROR(async->begin(w.device, 0, &good, 0, &pass, ERR), PERCH_E_INVALID, "is begun, not free");
    CHECK_ERROR(async->begin(w.device, 1, &good, 0, &pass, ERR), PERCH_E_INVALID, "has not ended");
    CHECK_ERROR(cuda()->kv_execute(w.device, &(kv_command){.op = KV_UNMAP}, 1, ERR), PERCH_E_INVALID,
                "in the middle of a pass");
    queue_pass(&w.model, &good, &pass);
    CHECK_OK(async->end(w.device, 0, ERR));
    const perch_sampling typical = {.top_p = 1, .typical_p = 0.5, .repetition_penalty = 1};
    kernels_choice choice = {.n_tokens = 1, .sampling = &typical};
    CU_ASSERT(!async->can_choose(w.device, &choice));
    CHECK_STATUS(async->choose(w.device, 0, w.model.logits, &choice, 1, ERR), PERCH_E_INVALID);
    choice.sampling = &w.sequences[0].sampling;
    CU_ASSERT(async->can_choose(w.device, &choice));
    choice.slot = SLOTS;
    CHECK_STATUS(async->choose(w.device, 0, w.model.logits, &choice, 1, ERR), PERCH_E_INVALID);
    CHECK_OK(async->choose(w.device, 0, w.model.logits, NULL, 0, ERR));
    CHECK_OK(async->wait(w.device, 0, &chosen, ERR));
    testing_close(w.device);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"every_way_gives_the_same_tokens", every_way_gives_the_same_tokens},
        {"plans_for_windows_change_no_bit", plans_for_windows_change_no_bit},
        {"places_that_the_running_step_does_not_have_are_mapped_beside_it",
         places_that_the_running_step_does_not_have_are_mapped_beside_it},
        {"steps_take_no_memory", steps_take_no_memory},
        {"history_reaches_the_choice", history_reaches_the_choice},
        {"what_does_not_fit_is_refused", what_does_not_fit_is_refused},
    };
    return test_main("cuda_step_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
