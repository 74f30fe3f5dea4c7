/* host: see host.h. */
#include "tests/e2e/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(bool condition, const char *what) {
    if (!condition) {
        CHECK_MSG(false, "%s", what);
        fprintf(stderr, "host: %s\n", what);
        exit(1);
    }
}

perch_options host_options(const char *model_name) {
    perch_options o;
    must(perch_options_init(&o, sizeof o) == PERCH_OK, "perch_options_init");
    snprintf(o.path, sizeof o.path, "tests/fixtures/engine/%s", model_name);
    o.weights = PERCH_WEIGHTS_RANDOM;
    o.random_seed = 7;
    o.max_batch_size = 4;
    o.max_step_tokens = 64;
    o.prefill_reserve = 16;
    o.cache_max_entry_count = 8;
    o.threads = 1;
    return o;
}

perch_engine *host_engine(const perch_options *options) {
    perch_error err;
    perch_engine *e = NULL;
    return CHECK_MSG(perch_engine_create(options, &e, &err) == PERCH_OK, "%s", err.message) ? e : NULL;
}

static void *grown(void *array, size_t *cap, size_t need, size_t element_bytes) {
    if (need <= *cap) {
        return array;
    }
    *cap = need * 2;
    array = realloc(array, *cap * element_bytes);
    must(array != NULL, "out of memory");
    return array;
}

void host_result_add(host_result *r, const perch_event *ev) {
    if (ev->logprobs && ev->n_tokens) {
        r->logprobs = grown(r->logprobs, &r->cap_logprobs, r->n_tokens + ev->n_tokens + 1, sizeof *r->logprobs);
        memcpy(r->logprobs + r->n_tokens, ev->logprobs, ev->n_tokens * sizeof *r->logprobs);
    }
    r->tokens = grown(r->tokens, &r->cap_tokens, r->n_tokens + ev->n_tokens + 1, sizeof *r->tokens);
    if (ev->n_tokens) {
        memcpy(r->tokens + r->n_tokens, ev->tokens, ev->n_tokens * sizeof *r->tokens);
    }
    r->n_tokens += ev->n_tokens;
    r->text = grown(r->text, &r->cap_text, r->text_bytes + ev->text_bytes + 1, 1);
    memcpy(r->text + r->text_bytes, ev->text, ev->text_bytes + 1);
    r->text_bytes += ev->text_bytes;
    r->n_events++;
    if (ev->type == PERCH_EVENT_DONE) {
        r->finish = ev->finish;
        r->status = ev->status;
        r->prompt_tokens = ev->prompt_tokens;
        r->cached_tokens = ev->cached_tokens;
        r->completion_tokens = ev->completion_tokens;
        if (ev->n_prompt_logprobs) {
            r->n_prompt_logprobs = ev->n_prompt_logprobs;
            r->prompt_logprobs = malloc(ev->n_prompt_logprobs * sizeof *r->prompt_logprobs);
            must(r->prompt_logprobs != NULL, "out of memory");
            memcpy(r->prompt_logprobs, ev->prompt_logprobs, ev->n_prompt_logprobs * sizeof *r->prompt_logprobs);
        }
    }
}

void host_result_free(host_result *r) {
    free(r->tokens);
    free(r->text);
    free(r->logprobs);
    free(r->prompt_logprobs);
    memset(r, 0, sizeof *r);
}

perch_request host_request(perch_engine *e, perch_sequence_id sequence, const int32_t *tokens, size_t n,
                           uint32_t max_tokens) {
    perch_request q;
    must(perch_request_init(e, &q, sizeof q) == PERCH_OK, "perch_request_init");
    q.sequence = sequence;
    q.tokens = tokens;
    q.n_tokens = n;
    q.max_tokens = max_tokens;
    return q;
}

perch_status host_turn(perch_engine *e, const perch_request *q, host_result *r) {
    perch_request_id id;
    perch_event ev;
    memset(r, 0, sizeof *r);
    perch_status status = perch_submit(e, q, &id, NULL);
    if (status) {
        return status;
    }
    perch_event_init(&ev, sizeof ev);
    do {
        status = perch_next(e, &ev, HOST_HANGS_MS, NULL);
        if (!status && ev.request == id) {
            host_result_add(r, &ev);
        }
    } while (!status && !(ev.request == id && ev.type == PERCH_EVENT_DONE));
    perch_event_clear(&ev);
    return status;
}

void host_tokens(uint64_t seed, uint32_t vocab_size, int32_t *tokens, size_t n) {
    test_rng rng = {seed};
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)(3 + test_rng_below(&rng, vocab_size - 3));
    }
}
