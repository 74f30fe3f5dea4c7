/* The public interface on a small random model: what is refused, what comes back, and when. */
#include "engine/impl.h"
#include "tests/e2e/host.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VOCAB 96u

static perch_sequence_id open_sequence(perch_engine *e) {
    perch_sequence_id id = 0;
    CU_ASSERT_EQUAL(perch_sequence_open(e, &id, NULL), PERCH_OK);
    return id;
}

static void check_status(perch_status got, perch_status want, const perch_error *err, const char *piece) {
    CHECK_MSG(got == want, "%s instead of %s", perch_status_name(got), perch_status_name(want));
    CHECK_MSG(got == PERCH_OK || (err->status == got && strstr(err->message, piece)), "message is \"%s\", not about %s",
              err->message, piece);
}

/* ----------------------------------------------------------------------- ids -- */

static void stale_closed_and_made_up_ids_fail(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e), other;
    perch_sequence_info info = {.struct_size = sizeof info};
    perch_error err;
    int32_t token = 5;
    size_t n;
    CU_ASSERT_EQUAL(perch_sequence_close(e, id, NULL), PERCH_OK);
    const perch_sequence_id bad[] = {id, 0, 1, UINT64_MAX, id + 1, id ^ (1ull << 40)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check_status(perch_sequence_close(e, bad[i], &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_sequence_append(e, bad[i], &token, 1, &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_sequence_fork(e, bad[i], 0, &other, &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_sequence_rewind(e, bad[i], 0, &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_sequence_tokens(e, bad[i], &token, 1, &n, &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_sequence_state(e, bad[i], &info, &err), PERCH_E_NOT_FOUND, &err, "id");
        perch_request q = host_request(e, bad[i], &token, 1, 1);
        check_status(perch_submit(e, &q, NULL, &err), PERCH_E_NOT_FOUND, &err, "id");
        check_status(perch_cancel(e, bad[i], &err), PERCH_E_NOT_FOUND, &err, "id");
    }
    perch_sequence_id reused = open_sequence(e); /* stands where the closed one stood */
    CU_ASSERT_NOT_EQUAL(reused, id);
    CU_ASSERT_EQUAL(perch_sequence_state(e, id, &info, NULL), PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(perch_sequence_state(e, reused, &info, NULL), PERCH_OK);
    perch_engine_destroy(e);
}

/* ------------------------------------------------------------------- refusals -- */

typedef void (*spoil_fn)(perch_request *q);

static const int32_t out_of_vocab[] = {3, 96};
static const perch_logit_bias bad_bias[] = {{200, 1.0f}};
static const char *const empty_stop[] = {""};

static void spoil_tokens(perch_request *q) { q->tokens = out_of_vocab, q->n_tokens = 2; }
static void spoil_tokens_null(perch_request *q) { q->tokens = NULL; }
static void spoil_completions(perch_request *q) { q->n_completions = 0; }
static void spoil_priority(perch_request *q) { q->priority = 8; }
static void spoil_min_tokens(perch_request *q) { q->min_tokens = q->max_tokens + 1; }
static void spoil_flags(perch_request *q) { q->flags = 1u << 31; }
static void spoil_stop_tokens(perch_request *q) { q->stop_tokens = out_of_vocab, q->n_stop_tokens = 2; }
static void spoil_stop_strings(perch_request *q) { q->stop_strings = empty_stop, q->n_stop_strings = 1; }
static void spoil_temperature(perch_request *q) { q->sampling.temperature = -0.1; }
static void spoil_top_p(perch_request *q) { q->sampling.top_p = 0; }
static void spoil_min_p(perch_request *q) { q->sampling.min_p = 1; }
static void spoil_typical_p(perch_request *q) { q->sampling.typical_p = 1.5; }
static void spoil_top_k(perch_request *q) { q->sampling.top_k = -1; }
static void spoil_repetition(perch_request *q) { q->sampling.repetition_penalty = 0; }
static void spoil_frequency(perch_request *q) { q->sampling.frequency_penalty = 3; }
static void spoil_presence(perch_request *q) { q->sampling.presence_penalty = NAN; }
static void spoil_logprobs(perch_request *q) { q->sampling.n_logprobs = 21; }
static void spoil_bias(perch_request *q) { q->sampling.logit_bias = bad_bias, q->sampling.n_logit_bias = 1; }
static void spoil_bias_count(perch_request *q) { q->sampling.logit_bias = bad_bias, q->sampling.n_logit_bias = 97; }
static void spoil_banned(perch_request *q) {
    q->sampling.banned_tokens = out_of_vocab, q->sampling.n_banned_tokens = 2;
}

static void parameters_out_of_range_are_refused_by_name(void) {
    static const struct {
        spoil_fn spoil;
        const char *name;
    } cases[] = {
        {spoil_tokens, "tokens[1]"},
        {spoil_tokens_null, "tokens"},
        {spoil_completions, "n_completions"},
        {spoil_priority, "priority"},
        {spoil_min_tokens, "min_tokens"},
        {spoil_flags, "flags"},
        {spoil_stop_tokens, "stop_tokens"},
        {spoil_stop_strings, "stop_strings"},
        {spoil_temperature, "temperature"},
        {spoil_top_p, "top_p"},
        {spoil_min_p, "min_p"},
        {spoil_typical_p, "typical_p"},
        {spoil_top_k, "top_k"},
        {spoil_repetition, "repetition_penalty"},
        {spoil_frequency, "frequency_penalty"},
        {spoil_presence, "presence_penalty"},
        {spoil_logprobs, "n_logprobs"},
        {spoil_bias_count, "n_logit_bias"},
        {spoil_bias, "logit_bias"},
        {spoil_banned, "banned_tokens"},
    };
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e);
    perch_error err;
    int32_t token = 5;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        perch_request q = host_request(e, id, &token, 1, 4);
        cases[i].spoil(&q);
        check_status(perch_submit(e, &q, NULL, &err), PERCH_E_INVALID, &err, cases[i].name);
    }
    perch_request q = host_request(e, id, NULL, 0, 4);
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_INVALID, &err, "empty");
    q = host_request(e, id, &token, 1, e->session_len);
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_TOO_LONG, &err, "session_len");
    host_result r;
    q.max_tokens = e->session_len - 1; /* and to the brim is fine */
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.n_tokens, e->session_len - 1);
    host_result_free(&r);
    check_status(perch_sequence_append(e, id, &token, 1, &err), PERCH_E_TOO_LONG, &err, "session_len");
    perch_engine_destroy(e);
}

static void a_pool_that_holds_no_sequence_is_refused_with_figures(void) {
    perch_options o = host_options("llama");
    perch_engine *e = NULL;
    perch_error err;
    o.device = PERCH_DEVICE_CPU; /* a GPU's pages are larger */
    o.cache_bytes = 4096;
    o.page_bytes = 4096;
    check_status(perch_engine_create(&o, &e, &err), PERCH_E_NO_ROOM, &err, "session_len");
    CU_ASSERT_PTR_NULL(e);
    perch_plan plan = {.struct_size = sizeof plan};
    check_status(perch_plan_compute(&o, &plan, &err), PERCH_E_NO_ROOM, &err, "session_len");
    CU_ASSERT_TRUE(plan.sequence_bytes > 4096 && plan.kv_bytes_per_token > 0 && plan.weights_bytes > 0);
    o = host_options("llama");
    o.cache_bytes = 1ull << 60;
    check_status(perch_engine_create(&o, &e, &err), PERCH_E_NO_ROOM, &err, "free");
    o = host_options("llama");
    o.session_len = 100000;
    check_status(perch_engine_create(&o, &e, &err), PERCH_E_CONFIG, &err, "session_len");
}

/* Hints: what can't be is refused by name, a stale id as well; too much of the pool is E_NO_ROOM, at the call or when opening. */
static void hints_are_checked(void) {
    perch_options o = host_options("llama");
    perch_hints hints;
    perch_error err;
    o.cache_max_entry_count = 2;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e), other = 0;
    CU_ASSERT_EQUAL(perch_hints_init(&hints, 1), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_hints_init(&hints, sizeof hints), PERCH_OK);
    CU_ASSERT_EQUAL(perch_sequence_hint(e, id, NULL, &err), PERCH_E_INVALID);
    CU_ASSERT_EQUAL(perch_sequence_hint(e, id + 1, &hints, &err), PERCH_E_NOT_FOUND);
    hints.priority = -9;
    check_status(perch_sequence_hint(e, id, &hints, &err), PERCH_E_INVALID, &err, "priority");
    hints.priority = 7;
    hints.pin = 2;
    check_status(perch_sequence_hint(e, id, &hints, &err), PERCH_E_INVALID, &err, "pin");
    hints.pin = 1;
    hints.ttl_ms = UINT64_MAX;
    check_status(perch_sequence_hint(e, id, &hints, &err), PERCH_E_INVALID, &err, "ttl_ms");
    hints.ttl_ms = 5;
    CU_ASSERT_EQUAL(perch_sequence_hint(e, id, &hints, &err), PERCH_OK);
    perch_plan plan = {.struct_size = sizeof plan};
    CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
    int32_t *tokens = calloc(plan.session_len, sizeof *tokens);
    CU_ASSERT_PTR_NOT_NULL_FATAL(tokens);
    CU_ASSERT_EQUAL(perch_sequence_append(e, id, tokens, plan.session_len, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_sequence_hint(e, id, &hints, &err), PERCH_OK);
    CU_ASSERT_EQUAL(perch_sequence_fork(e, id, plan.session_len, &other, NULL), PERCH_OK);
    check_status(perch_sequence_hint(e, other, &hints, &err), PERCH_E_NO_ROOM, &err, "pin");
    perch_sequence_options with;
    CU_ASSERT_EQUAL(perch_sequence_options_init(&with, sizeof with), PERCH_OK);
    with.hints = &hints;
    CU_ASSERT_EQUAL(perch_sequence_open_with(e, &with, &other, &err), PERCH_OK); /* it has no tokens yet */
    hints.pin = 3;
    check_status(perch_sequence_open_with(e, &with, &other, &err), PERCH_E_INVALID, &err, "pin");
    free(tokens);
    perch_engine_destroy(e);
}

/* --------------------------------------------------------------------- results -- */

static void a_second_turn_finds_the_first_in_the_cache(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e);
    int32_t tokens[30], all[64];
    size_t n_all;
    host_result r;
    host_tokens(1, VOCAB, tokens, 30);
    perch_request q = host_request(e, id, tokens, 20, 6);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.prompt_tokens, 20);
    CU_ASSERT_EQUAL(r.cached_tokens, 0);
    CU_ASSERT_EQUAL(r.completion_tokens, 6);
    CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_LENGTH);
    CU_ASSERT_EQUAL(perch_sequence_tokens(e, id, all, 64, &n_all, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(n_all, 26);
    CU_ASSERT_EQUAL(memcmp(all, tokens, 20 * sizeof *all), 0);
    CU_ASSERT_EQUAL(memcmp(all + 20, r.tokens, 6 * sizeof *all), 0);
    host_result_free(&r);
    q.tokens = tokens + 20;
    q.n_tokens = 10;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.prompt_tokens, 36);
    CU_ASSERT_EQUAL(r.cached_tokens, 25); /* the last generated token has no KV yet */
    host_result_free(&r);
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.first_turns, 1);
    CU_ASSERT_EQUAL(stats.hits, 1);
    CU_ASSERT_EQUAL(stats.misses + stats.partial_hits, 0);
    CU_ASSERT_EQUAL(stats.decode_tokens, 12);
    CU_ASSERT_EQUAL(stats.reprefill_tokens, 0);
    CU_ASSERT_EQUAL(stats.sequences_open, 1);
    perch_engine_destroy(e);
}

static void hits_partial_hits_and_misses_are_told_apart(void) {
    perch_options o = host_options("llama");
    o.device = PERCH_DEVICE_CPU;
    o.page_bytes = 4096; /* a group of f32 */
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t tokens[64];
    host_result r;
    perch_sequence_id id = open_sequence(e);
    perch_stats stats = {.struct_size = sizeof stats};
    host_tokens(11, VOCAB, tokens, 64);
    const struct {
        uint32_t n, keep_pages;
        uint64_t cached;
    } turns[] = {{50, 9, 0}, {5, 9, 50}, {5, 2, 32}, {2, 0, 0}};
    for (size_t i = 0; i < 4; i++) {
        pthread_mutex_lock(&e->lock);
        while (i > 0 && cache_evict_one(e->kv, turns[i].keep_pages)) {}
        pthread_mutex_unlock(&e->lock);
        perch_request q = host_request(e, id, tokens, turns[i].n, 1);
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
        CHECK_MSG(r.cached_tokens == turns[i].cached, "turn %zu: %llu tokens", i, (unsigned long long)r.cached_tokens);
        host_result_free(&r);
    }
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.first_turns, 1);
    CU_ASSERT_EQUAL(stats.hits, 1);
    CU_ASSERT_EQUAL(stats.partial_hits, 1);
    CU_ASSERT_EQUAL(stats.misses, 1);
    CU_ASSERT_EQUAL(stats.cached_tokens, 82);
    CU_ASSERT_EQUAL(stats.evictions, 2);
    /* 56 tokens had KV before the third turn, which kept 32; 62 before the fourth, which kept none */
    CHECK_MSG(stats.reprefill_tokens == 24 + 62, "%llu tokens", (unsigned long long)stats.reprefill_tokens);
    CU_ASSERT_EQUAL(perch_sequence_rewind(e, id, 8, NULL), PERCH_OK);
    perch_request q = host_request(e, id, NULL, 0, 1);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    host_result_free(&r);
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.reprefill_tokens, 24 + 62); /* a last token that is computed again was not evicted */
    perch_engine_destroy(e);
}

static void penalties_count_what_this_request_generated(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t tokens[20];
    host_result whole, split, free_run;
    host_tokens(12, 12, tokens, 20); /* few different ones, so that penalties would meet them */
    perch_request q = host_request(e, open_sequence(e), tokens, 20, 30);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &free_run), PERCH_OK);
    q.sequence = open_sequence(e);
    q.sampling.presence_penalty = 2;
    q.sampling.frequency_penalty = 2;
    CU_ASSERT_EQUAL(host_turn(e, &q, &whole), PERCH_OK);
    q.sequence = open_sequence(e);
    CU_ASSERT_EQUAL(perch_sequence_append(e, q.sequence, tokens, 10, NULL), PERCH_OK);
    q.tokens = tokens + 10;
    q.n_tokens = 10;
    CU_ASSERT_EQUAL(host_turn(e, &q, &split), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(whole.n_tokens, 30);
    CU_ASSERT_EQUAL(memcmp(whole.tokens, split.tokens, 30 * sizeof *tokens), 0);
    CU_ASSERT_NOT_EQUAL(memcmp(whole.tokens, free_run.tokens, 30 * sizeof *tokens), 0);
    host_result_free(&whole);
    host_result_free(&split);
    host_result_free(&free_run);
    perch_engine_destroy(e);
}

static void what_cannot_be_sampled_ends_with_a_message(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t all[VOCAB];
    perch_event ev;
    for (int32_t i = 0; i < (int32_t)VOCAB; i++) {
        all[i] = i;
    }
    perch_request q = host_request(e, open_sequence(e), all, 3, 4);
    q.sampling.banned_tokens = all;
    q.sampling.n_banned_tokens = VOCAB;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    CU_ASSERT_EQUAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
    CU_ASSERT_TRUE(ev.type == PERCH_EVENT_DONE && ev.finish == PERCH_FINISH_ERROR && ev.status == PERCH_E_INVALID);
    CHECK_MSG(strlen(ev.message) > 10, "\"%s\"", ev.message);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

/* ------------------------------------------------------------------------- text -- */

static perch_engine *text_engine(void) {
    perch_options o = host_options("text");
    snprintf(o.path, sizeof o.path, "tests/fixtures/model/mistral-24-f16");
    snprintf(o.tokenizer_path, sizeof o.tokenizer_path, "tests/fixtures/engine/text/tokenizer.json");
    o.weights = PERCH_WEIGHTS_FILE;
    return host_engine(&o);
}

/* A stop string inside the text: it ends there, whichever tokens it is made of, and nothing of it is ever shown. */
static void stop_strings_end_the_text_before_them_across_tokens(void) {
    perch_engine *e = text_engine();
    if (!e) {
        return;
    }
    int32_t prompt[] = {10, 20, 30};
    host_result whole, r;
    perch_request q = host_request(e, open_sequence(e), prompt, 3, 60);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.sampling.temperature = 1.2;
    q.sampling.seed = 4;
    CU_ASSERT_EQUAL(host_turn(e, &q, &whole), PERCH_OK);
    if (!CHECK_MSG(whole.text_bytes > 20, "\"%s\"", whole.text)) {
        return;
    }
    for (size_t at = 3; at + 5 < whole.text_bytes; at += 3) {
        char stop[6] = {0};
        memcpy(stop, whole.text + at, 5);
        const char *stops[] = {"never in it", stop};
        const char *first = strstr(whole.text, stop);
        q.sequence = open_sequence(e);
        q.stop_strings = stops;
        q.n_stop_strings = 2;
        CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
        CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_STOP_STRING);
        CHECK_MSG(r.text_bytes == (size_t)(first - whole.text) && !memcmp(r.text, whole.text, r.text_bytes),
                  "stop at \"%s\": \"%s\" of \"%s\"", stop, r.text, whole.text);
        CU_ASSERT_TRUE(r.n_tokens <= whole.n_tokens && !memcmp(r.tokens, whole.tokens, 4 * r.n_tokens));
        host_result_free(&r);
    }
    /* what only began like a stop string is shown in the end */
    char begun[16];
    const char *one = begun;
    snprintf(begun, sizeof begun, "%s~", whole.text + whole.text_bytes - 4);
    q.sequence = open_sequence(e);
    q.stop_strings = &one;
    q.n_stop_strings = 1;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_LENGTH);
    CU_ASSERT_STRING_EQUAL(r.text, whole.text);
    host_result_free(&r);
    host_result_free(&whole);
    perch_engine_destroy(e);
}

/* The demo's tokenizer is byte level: a lone lead byte is no text until nothing follows it. */
static void half_a_character_at_the_end_is_told_as_one(void) {
    perch_options o = host_options("text");
    snprintf(o.path, sizeof o.path, "tools/train/model");
    o.weights = PERCH_WEIGHTS_FILE;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_logit_bias bias = {perch_tokenizer_find(perch_engine_tokenizer(e), "\xC3\x83"), 100}; /* stands for byte C3 */
    int32_t prompt[] = {5, 6};
    host_result r;
    CU_ASSERT_TRUE_FATAL(bias.token >= 0);
    perch_request q = host_request(e, open_sequence(e), prompt, 2, 1);
    q.sampling.logit_bias = &bias;
    q.sampling.n_logit_bias = 1;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_TRUE(r.n_tokens == 1 && r.tokens[0] == bias.token);
    CU_ASSERT_STRING_EQUAL(r.text, "\xEF\xBF\xBD");
    host_result_free(&r);
    perch_engine_destroy(e);
}

static void no_tokens_asked_for_means_only_the_prompt_is_computed(void) {
    perch_options o = host_options("qwen2");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e);
    perch_sequence_info info = {.struct_size = sizeof info};
    int32_t tokens[40];
    host_result r;
    host_tokens(2, VOCAB, tokens, 40);
    perch_request q = host_request(e, id, tokens, 40, 0);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.n_tokens, 0);
    CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_LENGTH);
    host_result_free(&r);
    CU_ASSERT_EQUAL(perch_sequence_state(e, id, &info, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(info.n_tokens, 40);
    CU_ASSERT_EQUAL(info.n_kv_tokens, 40);
    CU_ASSERT_EQUAL(info.residency, PERCH_SEQ_RESIDENT);
    q = host_request(e, id, NULL, 0, 3); /* an empty turn goes on from there */
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.n_tokens, 3);
    CU_ASSERT_EQUAL(r.cached_tokens, 39);
    host_result_free(&r);
    perch_engine_destroy(e);
}

static void completions_of_one_prompt_are_what_single_requests_give(void) {
    perch_options o = host_options("qwen3");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    enum { N = 5, LENGTH = 12 };
    int32_t prompt[21], many[N][LENGTH];
    uint32_t at[N] = {0}, n_done = 0;
    perch_event ev;
    host_tokens(3, VOCAB, prompt, 21);
    perch_request q = host_request(e, open_sequence(e), prompt, 21, LENGTH);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.n_completions = N;
    q.sampling.temperature = 1.5;
    q.sampling.seed = 99;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    while (n_done < N && perch_next(e, &ev, HOST_HANGS_MS, NULL) == PERCH_OK) {
        for (size_t i = 0; i < ev.n_tokens; i++) {
            many[ev.completion][at[ev.completion] + i] = ev.tokens[i];
        }
        at[ev.completion] += (uint32_t)ev.n_tokens;
        n_done += ev.type == PERCH_EVENT_DONE;
    }
    perch_event_clear(&ev);
    CU_ASSERT_EQUAL(n_done, N);
    host_result r;
    perch_request single = host_request(e, open_sequence(e), prompt, 21, LENGTH);
    single.flags = PERCH_REQUEST_IGNORE_EOS;
    single.sampling = q.sampling;
    CU_ASSERT_EQUAL(host_turn(e, &single, &r), PERCH_OK);
    CU_ASSERT_EQUAL(memcmp(r.tokens, many[0], sizeof many[0]), 0);
    host_result_free(&r);
    uint32_t n_different = 0;
    for (uint32_t i = 1; i < N; i++) {
        CU_ASSERT_EQUAL(at[i], LENGTH);
        n_different += memcmp(many[0], many[i], sizeof many[0]) != 0;
    }
    CU_ASSERT_EQUAL(n_different, N - 1); /* 12 draws at temperature 1.5 from 96 tokens */
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.sequences_open, 2); /* the forks are gone */
    CU_ASSERT_TRUE(stats.copied_pages > 0);
    perch_engine_destroy(e);
}

static void prompt_logprobs_are_the_chain_of_single_logprobs(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    enum { N = 70 }; /* more than one chunk of logits */
    int32_t tokens[N];
    host_result all, one;
    host_tokens(4, VOCAB, tokens, N);
    perch_request q = host_request(e, open_sequence(e), tokens, N, 0);
    q.flags = PERCH_REQUEST_PROMPT_LOGPROBS;
    CU_ASSERT_EQUAL(host_turn(e, &q, &all), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(all.n_prompt_logprobs, N);
    CU_ASSERT_TRUE(isnan(all.prompt_logprobs[0]));
    perch_sequence_id id = open_sequence(e);
    for (uint32_t i = 0; i < N; i++) {
        perch_request turn = host_request(e, id, tokens + i, 1, 0);
        turn.flags = PERCH_REQUEST_PROMPT_LOGPROBS;
        CU_ASSERT_EQUAL(host_turn(e, &turn, &one), PERCH_OK);
        CU_ASSERT_EQUAL_FATAL(one.n_prompt_logprobs, 1);
        CU_ASSERT_TRUE(i == 0 ? isnan(one.prompt_logprobs[0]) != 0 : one.prompt_logprobs[0] == all.prompt_logprobs[i]);
        host_result_free(&one);
    }
    host_result_free(&all);
    perch_engine_destroy(e);
}

static void logprobs_come_with_the_tokens_best_first(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t tokens[5];
    perch_event ev;
    uint32_t n = 0;
    host_tokens(5, VOCAB, tokens, 5);
    perch_request q = host_request(e, open_sequence(e), tokens, 5, 8);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.sampling.n_logprobs = 4;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_event_init(&ev, sizeof ev);
    do {
        CU_ASSERT_EQUAL_FATAL(perch_next(e, &ev, HOST_HANGS_MS, NULL), PERCH_OK);
        CU_ASSERT_EQUAL(ev.n_top, 4);
        for (size_t i = 0; i < ev.n_tokens; i++, n++) {
            const perch_logprob *top = ev.top_logprobs + i * ev.n_top;
            CU_ASSERT_EQUAL(top[0].token, ev.tokens[i]); /* greedy */
            CU_ASSERT_EQUAL(top[0].logprob, ev.logprobs[i]);
            CU_ASSERT_TRUE(top[0].logprob >= top[1].logprob && top[1].logprob >= top[2].logprob &&
                           top[2].logprob >= top[3].logprob && top[0].logprob < 0);
        }
    } while (ev.type != PERCH_EVENT_DONE);
    CU_ASSERT_EQUAL(n, 8);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

static void stop_tokens_end_a_request_but_not_before_min_tokens(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t tokens[9];
    host_result free_run, r;
    host_tokens(6, VOCAB, tokens, 9);
    perch_request q = host_request(e, open_sequence(e), tokens, 9, 40);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.sampling.temperature = 1.3;
    q.sampling.seed = 3;
    CU_ASSERT_EQUAL(host_turn(e, &q, &free_run), PERCH_OK);
    CU_ASSERT_EQUAL_FATAL(free_run.n_tokens, 40);
    int32_t stop = free_run.tokens[10];
    size_t first = 0;
    while (free_run.tokens[first] != stop) {
        first++;
    }
    q.sequence = open_sequence(e);
    q.stop_tokens = &stop;
    q.n_stop_tokens = 1;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_EQUAL(r.finish, PERCH_FINISH_STOP_TOKEN);
    CU_ASSERT_EQUAL(r.n_tokens, first + 1);
    host_result_free(&r);
    q.sequence = open_sequence(e);
    q.min_tokens = 30;
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    CU_ASSERT_TRUE(r.n_tokens >= 30);
    for (size_t i = 0; i < 30; i++) {
        CU_ASSERT_NOT_EQUAL(r.tokens[i], stop);
    }
    host_result_free(&r);
    host_result_free(&free_run);
    perch_engine_destroy(e);
}

/* ----------------------------------------------------------- ends before the end -- */

static void cancel_works_at_any_moment(void) {
    perch_options o = host_options("llama");
    o.max_batch_size = 1;
    o.max_step_tokens = 17;
    perch_engine *e = NULL;
    perch_error err;
    if (!CHECK_MSG(engine_open(&o, false, &e, &err) == PERCH_OK, "%s", err.message)) {
        return;
    }
    int32_t tokens[100];
    perch_request_id running, waiting;
    perch_sequence_id a = open_sequence(e), b = open_sequence(e);
    size_t n;
    host_tokens(7, VOCAB, tokens, 100);
    perch_request q = host_request(e, a, tokens, 100, 50);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(perch_submit(e, &q, &running, NULL), PERCH_OK);
    q.sequence = b;
    q.n_completions = 3;
    CU_ASSERT_EQUAL(perch_submit(e, &q, &waiting, NULL), PERCH_OK);
    pthread_mutex_lock(&e->lock);
    engine_step(e);
    pthread_mutex_unlock(&e->lock);
    CU_ASSERT_EQUAL(perch_cancel(e, waiting, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_cancel(e, running, NULL), PERCH_OK); /* in the middle of its prompt */
    CU_ASSERT_EQUAL(perch_cancel(e, running, NULL), PERCH_OK);
    pthread_mutex_lock(&e->lock);
    engine_step(e);
    CU_ASSERT_FALSE(engine_step(e));
    pthread_mutex_unlock(&e->lock);
    perch_event ev;
    uint32_t n_done = 0;
    perch_event_init(&ev, sizeof ev);
    while (perch_next(e, &ev, 0, NULL) == PERCH_OK) {
        n_done += ev.type == PERCH_EVENT_DONE && ev.finish == PERCH_FINISH_CANCELLED;
    }
    perch_event_clear(&ev);
    CU_ASSERT_EQUAL(n_done, 4);
    CU_ASSERT_EQUAL(perch_cancel(e, running, NULL), PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(perch_sequence_tokens(e, a, NULL, 0, &n, NULL), PERCH_E_BUFFER);
    CU_ASSERT_EQUAL(n, 100);
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.requests_cancelled, 2);
    CU_ASSERT_EQUAL(stats.sequences_open, 2);
    CU_ASSERT_EQUAL(stats.pages_live, 0);
    perch_engine_destroy(e);
}

static perch_engine *stepped_engine(const perch_options *o) {
    perch_engine *e = NULL;
    perch_error err;
    return CHECK_MSG(engine_open(o, false, &e, &err) == PERCH_OK, "%s", err.message) ? e : NULL;
}

static bool step(perch_engine *e) {
    pthread_mutex_lock(&e->lock);
    bool worked = engine_step(e);
    pthread_mutex_unlock(&e->lock);
    return worked;
}

/* Takes what there is; how many completions ended, all of them with `finish`. */
static uint32_t take_done(perch_engine *e, perch_finish finish) {
    perch_event ev;
    uint32_t n_done = 0;
    perch_event_init(&ev, sizeof ev);
    while (perch_next(e, &ev, 0, NULL) == PERCH_OK) {
        if (ev.type == PERCH_EVENT_DONE) {
            CHECK_MSG(ev.finish == finish, "%s instead of %s", perch_finish_name(ev.finish), perch_finish_name(finish));
            n_done++;
        }
    }
    perch_event_clear(&ev);
    return n_done;
}

static void a_sequence_has_one_request_at_a_time(void) {
    perch_options o = host_options("llama");
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    perch_sequence_id id = open_sequence(e), other;
    perch_error err;
    int32_t tokens[8] = {5, 6, 7};
    perch_request q = host_request(e, id, tokens, 3, 10);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    do { /* from before its first step to its last */
        check_status(perch_submit(e, &q, NULL, &err), PERCH_E_BUSY, &err, "in flight");
        check_status(perch_sequence_append(e, id, tokens, 1, &err), PERCH_E_BUSY, &err, "in flight");
        check_status(perch_sequence_rewind(e, id, 1, &err), PERCH_E_BUSY, &err, "in flight");
        check_status(perch_sequence_fork(e, id, 1, &other, &err), PERCH_E_BUSY, &err, "in flight");
        CU_ASSERT_TRUE_FATAL(step(e));
    } while (take_done(e, PERCH_FINISH_LENGTH) == 0);
    CU_ASSERT_EQUAL(perch_sequence_rewind(e, id, 1, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_engine_destroy(e);
}

static void closing_a_busy_sequence_cancels_its_request_and_its_forks(void) {
    perch_options o = host_options("llama");
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    perch_error err;
    perch_sequence_id s = open_sequence(e);
    perch_request q = host_request(e, s, &token, 1, 200);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.n_completions = 3;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    for (int i = 0; i < 4; i++) {
        CU_ASSERT_TRUE(step(e));
    }
    CU_ASSERT_EQUAL(e->sched.n_running, 3);
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_BUSY, &err, "in flight");
    CU_ASSERT_EQUAL(perch_sequence_close(e, s, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(perch_sequence_close(e, s, NULL), PERCH_E_NOT_FOUND);
    step(e);
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_CANCELLED), 3);
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.sequences_open, 0);
    CU_ASSERT_EQUAL(stats.pages_free, stats.pages_total);
    perch_engine_destroy(e);
}

static void a_sequence_is_in_flight_until_its_last_fork_ended(void) {
    perch_options o = host_options("llama");
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    perch_error err;
    perch_request_id id;
    perch_sequence_id s = open_sequence(e);
    perch_request q = host_request(e, s, &token, 1, 20);
    q.flags = PERCH_REQUEST_IGNORE_EOS;
    q.n_completions = 2;
    CU_ASSERT_EQUAL(perch_submit(e, &q, &id, NULL), PERCH_OK);
    request *r = idtable_get(&e->requests, id);
    while (!r->completions[0].forks_started && step(e)) {}
    pthread_mutex_lock(&e->lock);
    completion_cancel(e, &r->completions[0]);
    pthread_mutex_unlock(&e->lock);
    step(e);
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_CANCELLED), 1);
    check_status(perch_sequence_rewind(e, s, 0, &err), PERCH_E_BUSY, &err, "in flight");
    while (step(e)) {}
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_LENGTH), 1);
    CU_ASSERT_EQUAL(perch_sequence_rewind(e, s, 0, NULL), PERCH_OK);
    perch_engine_destroy(e);
}

/* Lets `us` pass as far as the deadlines can see, which keep their order. */
static void pass_time(perch_engine *e, uint64_t us) {
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < e->deadlines.n; i++) {
        e->deadlines.heap[i]->at_us -= us;
    }
    pthread_mutex_unlock(&e->lock);
}

static void a_deadline_ends_what_waits_and_what_runs(void) {
    enum { LIMIT_MS = 1000000 }; /* no step takes as long */
    const uint64_t limit_us = LIMIT_MS * UINT64_C(1000);
    perch_options o = host_options("llama");
    o.max_batch_size = 1;
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    perch_request_id ids[3];
    uint64_t begin_us = time_us();
    for (int i = 0; i < 3; i++) {
        perch_request q = host_request(e, open_sequence(e), &token, 1, 200);
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        q.timeout_ms = i == 1 ? 0 : LIMIT_MS;
        CU_ASSERT_EQUAL(perch_submit(e, &q, &ids[i], NULL), PERCH_OK);
    }
    CU_ASSERT_EQUAL_FATAL(e->deadlines.n, 2);
    for (size_t i = 0; i < 2; i++) {
        uint64_t at_us = e->deadlines.heap[i]->at_us;
        CU_ASSERT_TRUE(at_us >= begin_us + limit_us && at_us <= time_us() + limit_us);
    }
    step(e);
    step(e);
    CU_ASSERT_EQUAL(e->deadlines.n, 2);
    pass_time(e, limit_us);
    step(e);
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    uint32_t n_timeout = 0;
    while (perch_next(e, &ev, 0, NULL) == PERCH_OK) {
        if (ev.type == PERCH_EVENT_DONE) {
            CU_ASSERT_EQUAL(ev.finish, PERCH_FINISH_TIMEOUT);
            uint64_t n_landed = e->backend->async ? 1 : 2; /* of two steps */
            CU_ASSERT_TRUE(ev.request == ids[0] ? ev.completion_tokens == n_landed : ev.request == ids[2]);
            n_timeout++;
        }
    }
    CU_ASSERT_EQUAL(n_timeout, 2);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

static void many_deadlines_end_in_their_order(void) {
    perch_options o = host_options("llama");
    o.max_batch_size = 1;
    o.max_step_tokens = 17;
    o.queue_size = 4000;
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    enum { N = 3000, LATE_MS = 1000000 };
    int32_t token = 9;
    uint32_t n_early = 0;
    for (uint32_t i = 0; i < N; i++) {
        perch_request q = host_request(e, open_sequence(e), &token, 1, 200);
        bool early = i * 7919 % 3 == 0;
        n_early += early;
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        q.timeout_ms = early ? 1 : LATE_MS + i * 7919 % 1000;
        CU_ASSERT_EQUAL_FATAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    }
    usleep(5000);
    step(e);
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_TIMEOUT), n_early);
    CU_ASSERT_EQUAL(e->deadlines.n, N - n_early);
    pass_time(e, (LATE_MS + 1000) * UINT64_C(1000));
    step(e);
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_TIMEOUT), N - n_early);
    perch_engine_destroy(e);
}

static void priority_decides_who_is_admitted_first(void) {
    perch_options o = host_options("llama");
    o.max_batch_size = 1;
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    perch_event ev;
    uint64_t order[3];
    uint32_t n = 0;
    for (int32_t i = 0; i < 3; i++) {
        perch_request q = host_request(e, open_sequence(e), &token, 1, 2);
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        q.priority = i - 1;
        q.user_data = (uint64_t)i;
        CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    }
    while (step(e)) {}
    perch_event_init(&ev, sizeof ev);
    while (n < 3 && perch_next(e, &ev, 0, NULL) == PERCH_OK) {
        order[n++] = ev.user_data; /* each has piled up into its DONE */
    }
    perch_event_clear(&ev);
    CU_ASSERT_TRUE(n == 3 && order[0] == 2 && order[1] == 1 && order[2] == 0);
    perch_engine_destroy(e);
}

/* ----------------------------------------------------------------------- queue -- */

static void a_full_queue_refuses_where_so_configured(void) {
    perch_options o = host_options("llama");
    o.queue_full = PERCH_QUEUE_REFUSE;
    o.queue_size = 2;
    perch_engine *e = NULL;
    perch_error err;
    if (!CHECK_MSG(engine_open(&o, false, &e, &err) == PERCH_OK, "%s", err.message)) {
        return;
    }
    int32_t token = 9;
    perch_sequence_id s = 0;
    for (int i = 0; i < 3; i++) {
        s = open_sequence(e);
        perch_request q = host_request(e, s, &token, 1, 4);
        check_status(perch_submit(e, &q, NULL, &err), i < 2 ? PERCH_OK : PERCH_E_QUEUE_FULL, &err, "queue_size");
    }
    pthread_mutex_lock(&e->lock);
    engine_step(e); /* both are admitted */
    pthread_mutex_unlock(&e->lock);
    perch_request q = host_request(e, s, &token, 1, 4);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    perch_engine_destroy(e);
}

static void *submit_twenty(void *engine) {
    perch_engine *e = engine;
    int32_t token = 11;
    for (int i = 0; i < 20; i++) {
        perch_request q = host_request(e, open_sequence(e), &token, 1, 3);
        q.flags = PERCH_REQUEST_IGNORE_EOS;
        if (perch_submit(e, &q, NULL, NULL)) {
            return (void *)1;
        }
    }
    return NULL;
}

static void a_full_queue_makes_submit_wait_where_so_configured(void) {
    perch_options o = host_options("llama");
    o.queue_size = 1;
    o.max_batch_size = 1;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    pthread_t thread;
    perch_event ev;
    void *failed = (void *)1;
    uint32_t n_done = 0;
    CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, submit_twenty, e), 0);
    perch_event_init(&ev, sizeof ev);
    while (n_done < 20 && perch_next(e, &ev, HOST_HANGS_MS, NULL) == PERCH_OK) {
        n_done += ev.type == PERCH_EVENT_DONE;
        CU_ASSERT_TRUE(ev.type != PERCH_EVENT_DONE || ev.completion_tokens == 3);
    }
    pthread_join(thread, &failed);
    CU_ASSERT_PTR_NULL(failed);
    CU_ASSERT_EQUAL(n_done, 20);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

typedef struct submitter {
    perch_engine *e;
    perch_sequence_id sequence;
    perch_status status;
} submitter;

static void *submit_one(void *arg) {
    submitter *s = arg;
    int32_t token = 11;
    perch_request q = host_request(s->e, s->sequence, &token, 1, 3);
    s->status = perch_submit(s->e, &q, NULL, NULL);
    return NULL;
}

static void wait_until_inside(perch_engine *e, uint32_t n) {
    for (uint32_t inside = 0; inside < n; usleep(1000)) {
        pthread_mutex_lock(&e->lock);
        inside = e->n_inside;
        pthread_mutex_unlock(&e->lock);
    }
}

/* Two wait for the one place; the first finds its sequence closed, and hands the place on. */
static void a_place_in_the_queue_that_is_not_taken_goes_to_the_next(void) {
    perch_options o = host_options("llama");
    o.queue_size = 1;
    o.max_batch_size = 1;
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    pthread_t threads[2];
    submitter s[2];
    perch_error err;
    perch_request q = host_request(e, open_sequence(e), &token, 1, 3);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    q.max_tokens = 100000; /* what can never run is refused although the queue is full */
    q.sequence = open_sequence(e);
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_TOO_LONG, &err, "session_len");
    q.max_tokens = 1;
    q.timeout_ms = 5;
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_TIMEOUT, &err, "queue_size");
    for (uint32_t i = 0; i < 2; i++) {
        s[i] = (submitter){e, open_sequence(e), PERCH_E_AGAIN};
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, submit_one, &s[i]), 0);
        wait_until_inside(e, i + 1);
    }
    CU_ASSERT_EQUAL(perch_sequence_close(e, s[0].sequence, NULL), PERCH_OK);
    step(e); /* the place is free */
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CU_ASSERT_EQUAL(s[0].status, PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(s[1].status, PERCH_OK);
    perch_engine_destroy(e);
}

static void *next_one(void *arg) {
    submitter *s = arg;
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    do {
        s->status = perch_next(s->e, &ev, -1, NULL);
    } while (!s->status);
    perch_event_clear(&ev);
    return NULL;
}

static void destroy_sends_waiting_threads_home(void) {
    perch_options o = host_options("llama");
    o.queue_size = 1;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    pthread_t threads[4];
    submitter s[4];
    for (uint32_t i = 0; i < 4; i++) {
        s[i] = (submitter){e, 0, PERCH_OK};
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, next_one, &s[i]), 0);
    }
    wait_until_inside(e, 4);
    perch_engine_destroy(e);
    for (uint32_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CU_ASSERT_EQUAL(s[i].status, PERCH_E_SHUTDOWN);
    }
}

static void *next_once(void *arg) {
    submitter *s = arg;
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    s->status = perch_next(s->e, &ev, -1, NULL);
    perch_event_clear(&ev);
    return NULL;
}

/* Whether it still waits or has an event in its hands already, destroy lets a thread in perch_next come out first. */
static void destroy_waits_for_an_event_that_is_being_handed_out(void) {
    for (uint32_t i = 0; i < 40; i++) {
        perch_options o = host_options("llama");
        perch_engine *e = host_engine(&o);
        if (!e) {
            return;
        }
        int32_t token = 9;
        pthread_t thread;
        submitter s = {e, 0, PERCH_E_AGAIN};
        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, next_once, &s), 0);
        wait_until_inside(e, 1);
        perch_request q = host_request(e, open_sequence(e), &token, 1, 100);
        q.sampling.n_logprobs = 20;
        CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
        usleep(i * 10);
        perch_engine_destroy(e);
        pthread_join(thread, NULL);
        CU_ASSERT_TRUE(s.status == PERCH_OK || s.status == PERCH_E_SHUTDOWN);
    }
}

/* ---------------------------------------------------------------------- events -- */

static void the_event_fd_is_readable_while_there_are_events(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    struct pollfd p = {.fd = perch_event_fd(e), .events = POLLIN};
    int32_t token = 9;
    perch_event ev;
    perch_error err;
    CU_ASSERT_TRUE(p.fd >= 0);
    CU_ASSERT_EQUAL(poll(&p, 1, 0), 0);
    perch_event_init(&ev, sizeof ev);
    check_status(perch_next(e, &ev, 5, &err), PERCH_E_TIMEOUT, &err, "5 ms");
    perch_request q = host_request(e, open_sequence(e), &token, 1, 30);
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    do {
        CU_ASSERT_EQUAL(poll(&p, 1, HOST_HANGS_MS), 1);
        CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_OK);
    } while (ev.type != PERCH_EVENT_DONE);
    CU_ASSERT_EQUAL(poll(&p, 1, 0), 0);
    CU_ASSERT_EQUAL(perch_next(e, &ev, 0, NULL), PERCH_E_TIMEOUT);
    CU_ASSERT_TRUE(ev.type == PERCH_EVENT_NONE && ev.n_tokens == 0); /* nothing is left of the one before */
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

static void an_idle_engine_uses_no_cpu(void) {
    perch_options o = host_options("llama");
    o.threads = 2;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    int32_t token = 9;
    host_result r;
    perch_request q = host_request(e, open_sequence(e), &token, 1, 20);
    CU_ASSERT_EQUAL(host_turn(e, &q, &r), PERCH_OK);
    host_result_free(&r);
    double share = test_idle_share();
    CHECK_MSG(share < 0.01, "%.2f %% of a CPU", 100 * share);
    perch_engine_destroy(e);
}

/* --------------------------------------------------------------------- threads -- */

typedef struct crowd {
    perch_engine *e;
    uint64_t seed;
    uint32_t n_submitted;
} crowd;

/* A host thread: opens, submits, cancels, closes, asks; events are taken by others. */
static void *crowd_member(void *arg) {
    crowd *c = arg;
    test_rng rng = {c->seed};
    perch_sequence_id mine[4] = {0};
    for (uint32_t i = 0; i < 120; i++) {
        uint32_t k = (uint32_t)test_rng_below(&rng, 4);
        perch_request_id id = 0;
        int32_t tokens[16];
        if (!mine[k]) {
            perch_sequence_open(c->e, &mine[k], NULL);
        }
        host_tokens(test_rng_next(&rng), VOCAB, tokens, 16);
        perch_request q =
            host_request(c->e, mine[k], tokens, 1 + test_rng_below(&rng, 16), 1 + (uint32_t)test_rng_below(&rng, 6));
        q.n_completions = 1;
        perch_status status;
        while ((status = perch_submit(c->e, &q, &id, NULL)) == PERCH_E_BUSY) {
            usleep(100);
        }
        c->n_submitted += status == PERCH_OK;
        perch_sequence_info info = {.struct_size = sizeof info};
        perch_stats stats = {.struct_size = sizeof stats};
        perch_sequence_state(c->e, mine[k], &info, NULL);
        switch (test_rng_below(&rng, 8)) {
        case 0:
            perch_cancel(c->e, id, NULL);
            break;
        case 1:
            perch_sequence_close(c->e, mine[k], NULL);
            mine[k] = 0;
            break;
        case 2:
            perch_engine_stats(c->e, &stats, NULL);
            break;
        case 3:
            perch_sequence_rewind(c->e, mine[k], 1, NULL);
            break;
        default:
            break;
        }
    }
    return NULL;
}

typedef struct taker {
    perch_engine *e;
    _Atomic uint32_t *n_done;
    _Atomic bool *stop;
} taker;

static void *take_all(void *arg) {
    taker *t = arg;
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    while (!*t->stop) {
        if (perch_next(t->e, &ev, 20, NULL) == PERCH_OK && ev.type == PERCH_EVENT_DONE) {
            ++*t->n_done;
        }
    }
    perch_event_clear(&ev);
    return NULL;
}

static void many_threads_submit_and_take_and_every_request_ends_once(void) {
    perch_options o = host_options("llama");
    o.cache_max_entry_count = 2;
    o.threads = 2;
    perch_engine *e = host_engine(&o);
    if (!e) {
        return;
    }
    crowd members[4];
    pthread_t threads[4], takers[2];
    _Atomic uint32_t n_done = 0;
    _Atomic bool stop = false;
    taker t = {e, &n_done, &stop};
    uint32_t n_submitted = 0;
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL_FATAL(pthread_create(&takers[i], NULL, take_all, &t), 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        members[i] = (crowd){e, test_seed(40) + i, 0};
        CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, crowd_member, &members[i]), 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        n_submitted += members[i].n_submitted;
    }
    for (int i = 0; i < HOST_HANGS_MS / 10 && n_done < n_submitted; i++) {
        usleep(10000);
    }
    stop = true;
    for (int i = 0; i < 2; i++) {
        pthread_join(takers[i], NULL);
    }
    CHECK_MSG(n_done == n_submitted && n_submitted > 100, "%u submitted, %u done", n_submitted, n_done);
    perch_engine_destroy(e);
}

static void an_engine_can_be_destroyed_in_the_middle_of_work(void) {
    for (uint32_t i = 0; i < 10; i++) {
        perch_options o = host_options("llama");
        perch_engine *e = host_engine(&o);
        if (!e) {
            return;
        }
        int32_t tokens[40];
        host_tokens(i, VOCAB, tokens, 40);
        for (uint32_t k = 0; k < 8; k++) {
            perch_request q = host_request(e, open_sequence(e), tokens, 40, 100);
            q.n_completions = 1 + k % 3;
            CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
        }
        usleep(i * 500);
        perch_engine_destroy(e);
    }
}

/* ----------------------------------------------------------------- large, broken -- */

/* The mean CPU time of a step in microseconds over a turn of n_tokens. All of it is the caller's: there is one thread. */
static double step_cpu_us(perch_engine *e, uint32_t n_tokens) {
    int32_t token = 9;
    uint32_t n_steps = 0;
    perch_request q = host_request(e, open_sequence(e), &token, 1, n_tokens);
    q.flags = PERCH_REQUEST_IGNORE_EOS | PERCH_REQUEST_NO_TEXT;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    uint64_t begin_us = test_cpu_us();
    while (step(e)) {
        n_steps++;
    }
    uint64_t used_us = test_cpu_us() - begin_us;
    CU_ASSERT_TRUE_FATAL(n_steps >= n_tokens);
    CU_ASSERT_EQUAL(take_done(e, PERCH_FINISH_LENGTH), 1);
    return (double)used_us / n_steps;
}

static void a_million_idle_sequences_do_not_slow_a_step(void) {
    perch_options o = host_options("llama");
    perch_engine *full = stepped_engine(&o), *empty = stepped_engine(&o);
    if (!full || !empty) {
        return;
    }
    uint64_t n = test_scaled(1000000);
    int32_t tokens[4];
    host_tokens(8, VOCAB, tokens, 4);
    for (uint64_t i = 0; i < n; i++) {
        perch_sequence_id id;
        if (!CHECK_MSG(perch_sequence_open(full, &id, NULL) == PERCH_OK, "sequence %llu", (unsigned long long)i)) {
            break;
        }
        if (i % 64 == 0) {
            CU_ASSERT_EQUAL(perch_sequence_append(full, id, tokens, 4, NULL), PERCH_OK);
        }
    }
    /* in turns, the best of each: others on the machine empty the caches now and then */
    double with = 1e9, without = 1e9;
    for (int i = 0; i < 15; i++) {
        double a = step_cpu_us(full, 240), b = step_cpu_us(empty, 240);
        with = a < with ? a : with;
        without = b < without ? b : without;
    }
    printf("  a step takes %.2f us of CPU time without, %.2f us with %llu idle sequences\n", without, with,
           (unsigned long long)n);
    CHECK_MSG(with < without * 2 + 1, "%.2f us without, %.2f us with", without, with);
    perch_engine_destroy(full);
    perch_engine_destroy(empty);
}

static perch_status failing_execute(kernels_device *device, const kv_command *commands, size_t n, perch_error *err) {
    (void)device, (void)commands, (void)n;
    return err_set(err, PERCH_E_DEVICE, "planted fault");
}

static void a_device_fault_kills_the_engine_and_says_so_to_everybody(void) {
    perch_options o = host_options("llama");
    o.queue_size = 1;
    perch_engine *e = stepped_engine(&o);
    if (!e) {
        return;
    }
    kernels_backend broken = *e->backend;
    broken.kv_execute = failing_execute;
    e->backend = &broken;
    int32_t token = 9;
    perch_error err;
    perch_sequence_id s = open_sequence(e);
    perch_request q = host_request(e, s, &token, 1, 5);
    q.n_completions = 2;
    CU_ASSERT_EQUAL(perch_submit(e, &q, NULL, NULL), PERCH_OK);
    pthread_t submits, waits;
    submitter blocked = {e, open_sequence(e), PERCH_OK}, waiting = {e, 0, PERCH_OK};
    CU_ASSERT_EQUAL_FATAL(pthread_create(&submits, NULL, submit_one, &blocked), 0);
    CU_ASSERT_EQUAL_FATAL(pthread_create(&waits, NULL, next_one, &waiting), 0);
    wait_until_inside(e, 2);
    CU_ASSERT_TRUE(step(e));
    CU_ASSERT_FALSE(step(e));
    pthread_join(submits, NULL);
    pthread_join(waits, NULL); /* took both DONE events, then the status */
    CU_ASSERT_EQUAL(blocked.status, PERCH_E_DEVICE);
    CU_ASSERT_EQUAL(waiting.status, PERCH_E_DEVICE);
    perch_event ev;
    perch_event_init(&ev, sizeof ev);
    check_status(perch_next(e, &ev, 0, &err), PERCH_E_DEVICE, &err, "planted fault");
    check_status(perch_submit(e, &q, NULL, &err), PERCH_E_DEVICE, &err, "planted fault");
    struct pollfd p = {.fd = perch_event_fd(e), .events = POLLIN};
    CU_ASSERT_EQUAL(poll(&p, 1, 0), 1); /* so that an event loop comes and sees */
    perch_stats stats = {.struct_size = sizeof stats};
    CU_ASSERT_EQUAL(perch_engine_stats(e, &stats, NULL), PERCH_OK);
    CU_ASSERT_EQUAL(stats.status, PERCH_E_DEVICE);
    CU_ASSERT_EQUAL(stats.requests_failed, 1);
    perch_event_clear(&ev);
    perch_engine_destroy(e);
}

/* Where there is one to be used, the GPU is as fit after all of that as it was before. */
static void the_device_lives_to_the_end(void) {
    perch_options o = host_options("llama");
    perch_engine *e = host_engine(&o);
    if (e) {
        perch_plan plan = {.struct_size = sizeof plan};
        CU_ASSERT_EQUAL(perch_engine_plan(e, &plan, NULL), PERCH_OK);
        CU_ASSERT_TRUE(plan.gpu_status == PERCH_OK || plan.gpu_status == PERCH_E_UNSUPPORTED);
        printf("  on %s\n", plan.backend);
        perch_engine_destroy(e);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(stale_closed_and_made_up_ids_fail),
        TEST(hints_are_checked),
        TEST(parameters_out_of_range_are_refused_by_name),
        TEST(a_pool_that_holds_no_sequence_is_refused_with_figures),
        TEST(a_second_turn_finds_the_first_in_the_cache),
        TEST(no_tokens_asked_for_means_only_the_prompt_is_computed),
        TEST(completions_of_one_prompt_are_what_single_requests_give),
        TEST(prompt_logprobs_are_the_chain_of_single_logprobs),
        TEST(logprobs_come_with_the_tokens_best_first),
        TEST(stop_tokens_end_a_request_but_not_before_min_tokens),
        TEST(cancel_works_at_any_moment),
        TEST(a_sequence_has_one_request_at_a_time),
        TEST(closing_a_busy_sequence_cancels_its_request_and_its_forks),
        TEST(a_sequence_is_in_flight_until_its_last_fork_ended),
        TEST(many_deadlines_end_in_their_order),
        TEST(priority_decides_who_is_admitted_first),
        TEST(hits_partial_hits_and_misses_are_told_apart),
        TEST(penalties_count_what_this_request_generated),
        TEST(what_cannot_be_sampled_ends_with_a_message),
        TEST(stop_strings_end_the_text_before_them_across_tokens),
        TEST(half_a_character_at_the_end_is_told_as_one),
        TEST(a_place_in_the_queue_that_is_not_taken_goes_to_the_next),
        TEST(destroy_sends_waiting_threads_home),
        TEST(destroy_waits_for_an_event_that_is_being_handed_out),
        TEST(a_deadline_ends_what_waits_and_what_runs),
        TEST(a_full_queue_refuses_where_so_configured),
        TEST(a_full_queue_makes_submit_wait_where_so_configured),
        TEST(the_event_fd_is_readable_while_there_are_events),
        TEST(an_idle_engine_uses_no_cpu),
        TEST(many_threads_submit_and_take_and_every_request_ends_once),
        TEST(an_engine_can_be_destroyed_in_the_middle_of_work),
        TEST(a_million_idle_sequences_do_not_slow_a_step),
        TEST(a_device_fault_kills_the_engine_and_says_so_to_everybody),
        TEST(the_device_lives_to_the_end),
    };
    return test_main("api_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
