/*
 * forward on an asynchronous backend: what it is told about a pass, passes larger than their batch, passes that are
 * replayed, and failures. The backend is the reference behind a queue that is always empty.
 */
#include "engine/model/testing.h"
#include "tests/support/reference_backend.h"

#include <stdlib.h>
#include <string.h>

#define N_TOKENS 12u
#define SESSION 32u

static struct {
    /* what it does */
    uint32_t padding; /* tokens and logits more than the batch's */
    bool replay;
    bool fail_begin, fail_embed, fail_end;
    int32_t chosen[2]; /* what token_from refers to */
    /* what it saw */
    uint32_t n_begun, n_embedded, n_ended, lane;
    uint64_t graph_key;
    const kernels_batch *batch;
} queue;

static perch_status queue_begin(kernels_device *device, uint32_t lane, const kernels_batch *batch, uint64_t graph_key,
                                kernels_pass *pass, perch_error *err) {
    (void)device;
    queue.n_begun++;
    queue.lane = lane;
    queue.graph_key = graph_key;
    queue.batch = batch;
    *pass = (kernels_pass){.n_tokens = batch->n_tokens + queue.padding,
                           .n_logits = batch->n_logits + (batch->n_logits > 0 ? queue.padding : 0),
                           .replayed = queue.replay};
    return queue.fail_begin ? err_set(err, PERCH_E_DEVICE, "begin") : PERCH_OK;
}

static perch_status queue_end(kernels_device *device, uint32_t lane, perch_error *err) {
    (void)device;
    CU_ASSERT_EQUAL(lane, queue.lane);
    queue.n_ended++;
    return queue.fail_end ? err_set(err, PERCH_E_DEVICE, "end") : PERCH_OK;
}

/* The reference looks at the batch's own arrays, which are shorter than a padded pass. */
static perch_status queue_embed(kernels_device *device, const kernels_weight *weight, const kernels_batch *batch,
                                uint32_t n_tokens, float *y, perch_error *err) {
    int32_t tokens[N_TOKENS];
    kernels_batch given = *batch;
    queue.n_embedded++;
    CU_ASSERT_PTR_EQUAL(batch, queue.batch);
    CU_ASSERT_EQUAL(n_tokens, batch->n_tokens + queue.padding);
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        bool is_given = !batch->token_from || batch->token_from[t] == KERNELS_GIVEN;
        tokens[t] = is_given ? batch->tokens[t] : queue.chosen[batch->token_from[t]];
    }
    given.tokens = tokens;
    return queue.fail_embed ? err_set(err, PERCH_E_DEVICE, "embed")
                            : kernels_reference()->embed(device, weight, &given, batch->n_tokens, y, err);
}

static perch_status queue_gather(kernels_device *device, const kernels_batch *batch, uint32_t n_logits, const void *x,
                                 size_t row_bytes, void *y, perch_error *err) {
    CU_ASSERT_EQUAL(n_logits, batch->n_logits + queue.padding);
    return kernels_reference()->gather(device, batch, batch->n_logits, x, row_bytes, y, err);
}

static const kernels_backend *queue_backend(void) {
    static const kernels_async async = {.begin = queue_begin, .end = queue_end};
    static kernels_backend backend;
    backend = *kernels_reference();
    backend.async = &async;
    backend.embed = queue_embed;
    backend.gather = queue_gather;
    memset(&queue, 0, sizeof queue);
    return &backend;
}

static bool open_model(testing_model *t, const kernels_backend *backend) {
    const char *dir = test_fixture("model/qwen3-bias-f32");
    perch_error err = {0};
    model_config config;
    perch_status status = model_config_load(dir, &config, &err);
    return CHECK_MSG(status == PERCH_OK, "%s", err.message) &&
           testing_model_open(t, backend, KERNELS_F32, &config, dir, SESSION, N_TOKENS);
}

static const int32_t some_tokens[N_TOKENS] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
static const uint32_t all[N_TOKENS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

static void passes_are_told_apart(void) {
    testing_model t;
    if (open_model(&t, queue_backend())) {
        (void)testing_model_step(&t, some_tokens, 0, 5, &all[4], 1);
        CU_ASSERT_TRUE(queue.n_begun == 1 && queue.n_ended == 1 && queue.graph_key == 0);
        (void)testing_model_step(&t, some_tokens, 5, 1, all, 1); /* a decode row */
        CU_ASSERT_TRUE(queue.n_begun == 2 && queue.n_ended == 2 && queue.graph_key == 1);
        (void)testing_model_step(&t, some_tokens, 6, 1, NULL, 0); /* one token, but no logits */
        CU_ASSERT_TRUE(queue.n_begun == 3 && queue.n_ended == 3 && queue.graph_key == 0);
        (void)testing_model_step(&t, some_tokens, 7, 2, all, 2); /* all logits, but a row of two */
        CU_ASSERT_TRUE(queue.n_begun == 4 && queue.n_ended == 4 && queue.graph_key == 0);
        (void)testing_model_step(&t, some_tokens, 9, 1, all, 1);
        CU_ASSERT_EQUAL(queue.graph_key, 1);
        CU_ASSERT_EQUAL(queue.n_embedded, 5);
    }
    testing_model_close(&t);
}

/* Padded passes of every kind, and a token that is known to the device alone, give the bits of plain ones. */
static void padding_changes_nothing(void) {
    static const uint32_t position = N_TOKENS - 1, row_of = 0, from = 1;
    static const int32_t unknown = -1;
    testing_model plain, padded;
    bool opened = open_model(&plain, kernels_reference());
    opened = open_model(&padded, queue_backend()) && opened;
    if (opened) {
        size_t vocab = plain.config.vocab_size, row_bytes = vocab * sizeof(float);
        float *want = testing_model_run(&plain, some_tokens, N_TOKENS, 4);
        queue.padding = 3;
        const float *some = testing_model_step(&padded, some_tokens, 0, 7, &all[5], 2);
        CU_ASSERT_EQUAL(memcmp(some, want + 5 * vocab, 2 * row_bytes), 0);
        const float *each = testing_model_step(&padded, some_tokens, 7, 3, all, 3);
        CU_ASSERT_EQUAL(memcmp(each, want + 7 * vocab, 3 * row_bytes), 0);
        (void)testing_model_step(&padded, some_tokens, 10, 1, NULL, 0);
        const kernels_row row = {.kv = {.base = padded.kv}, .n_tokens = 1, .first_position = position};
        const kernels_batch batch = {.n_tokens = 1,
                                     .n_rows = 1,
                                     .n_logits = 1,
                                     .tokens = &unknown,
                                     .positions = &position,
                                     .token_row = &row_of,
                                     .rows = &row,
                                     .logit_tokens = all,
                                     .token_from = &from};
        const float *last = NULL;
        queue.chosen[1] = some_tokens[position];
        CU_ASSERT_EQUAL(model_forward(padded.model, 1, &batch, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(queue.lane, 1);
        CU_ASSERT_EQUAL(model_fetch_logits(padded.model, 1, &last, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(memcmp(last, want + position * vocab, row_bytes), 0);
        CU_ASSERT_EQUAL(memcmp(model_logits(padded.model), last, row_bytes),
                        0); /* the reference's memory is the host's */
        free(want);
    }
    testing_model_close(&plain);
    testing_model_close(&padded);
}

static void replayed_passes_queue_nothing(void) {
    testing_model t;
    if (open_model(&t, queue_backend())) {
        queue.replay = true;
        (void)testing_model_step(&t, some_tokens, 0, 1, all, 1);
        CU_ASSERT_TRUE(queue.n_begun == 1 && queue.n_embedded == 0 && queue.n_ended == 0);
    }
    testing_model_close(&t);
}

static void failures_end_the_pass(void) {
    static const uint32_t position = 0, row_of = 0;
    testing_model t;
    if (open_model(&t, queue_backend())) {
        const kernels_row row = {.kv = {.base = t.kv}, .n_tokens = 1};
        const kernels_batch batch = {.n_tokens = 1,
                                     .n_rows = 1,
                                     .tokens = some_tokens,
                                     .positions = &position,
                                     .token_row = &row_of,
                                     .rows = &row};
        perch_error err = {0};
        queue.fail_begin = true;
        CU_ASSERT_EQUAL(model_forward(t.model, 0, &batch, &err), PERCH_E_DEVICE);
        CU_ASSERT_STRING_EQUAL(err.message, "begin");
        CU_ASSERT_TRUE(queue.n_embedded == 0 && queue.n_ended == 0);
        queue.fail_begin = false;
        queue.fail_embed = true;
        CU_ASSERT_EQUAL(model_forward(t.model, 0, &batch, &err), PERCH_E_DEVICE);
        CU_ASSERT_STRING_EQUAL(err.message, "embed");
        CU_ASSERT_TRUE(queue.n_embedded == 1 && queue.n_ended == 0);
        queue.fail_embed = false;
        queue.fail_end = true;
        CU_ASSERT_EQUAL(model_forward(t.model, 0, &batch, &err), PERCH_E_DEVICE);
        CU_ASSERT_STRING_EQUAL(err.message, "end");
        queue.fail_end = false;
        CU_ASSERT_EQUAL(model_forward(t.model, 0, &batch, &err), PERCH_OK);
    }
    testing_model_close(&t);
}

static void limits_are_the_models(void) {
    const model_limits limits = {100, 24, 7, KERNELS_F16, KERNELS_WEIGHT_DTYPE};
    model_config config;
    kernels_limits out;
    CU_ASSERT_EQUAL_FATAL(model_config_load(test_fixture("model/qwen3-bf16"), &config, NULL), PERCH_OK);
    model_kernels_limits(&config, &limits, 5, &out);
    CU_ASSERT_TRUE(out.session_len == 100 && out.max_step_tokens == 24 && out.max_logit_rows == 7 &&
                   out.max_batch_size == 5);
    CU_ASSERT_TRUE(out.vocab_size == config.vocab_size && out.n_heads == config.n_heads);
    CU_ASSERT_TRUE(out.layout.element_bytes == 2 && out.layout.head_dim == config.head_dim &&
                   out.layout.group_bytes == 2 * 2 * 2 * 16 * 16 * 2);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"passes are told apart", passes_are_told_apart},
        {"padding changes nothing", padding_changes_nothing},
        {"replayed passes queue nothing", replayed_passes_queue_nothing},
        {"failures end the pass", failures_end_the_pass},
        {"limits are the model's", limits_are_the_models},
    };
    return test_main("forward_async", tests, sizeof tests / sizeof tests[0], argc, argv);
}
