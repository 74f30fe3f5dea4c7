/* host: what the end-to-end tests have in common: options for a small model, and a turn from submit to its last event. */
#ifndef PERCH_TESTS_E2E_HOST_H
#define PERCH_TESTS_E2E_HOST_H

#include "perch/perch.h"
#include "tests/support/check.h"

/* perch_next's time limit where an event has to come: whoever has waited so long waits for ever, on any machine. */
#define HOST_HANGS_MS 600000

/* Options with random weights of tests/fixtures/engine/NAME; small, quick to start. Fatal assertion if that fails. */
perch_options host_options(const char *model_name);

/* Opens an engine; fails the test with the message and returns NULL if that does not work. */
perch_engine *host_engine(const perch_options *options);

/* What a completion came to. Free with host_result_free. */
typedef struct host_result {
    int32_t *tokens;
    size_t n_tokens, cap_tokens;
    char *text;
    size_t text_bytes, cap_text;
    float *logprobs; /* [n_tokens] if asked for */
    size_t cap_logprobs;
    float *prompt_logprobs; /* [n_prompt_logprobs] if asked for */
    size_t n_prompt_logprobs;
    perch_finish finish;
    perch_status status;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint32_t n_events;
} host_result;

void host_result_add(host_result *r, const perch_event *ev);
void host_result_free(host_result *r);

/* A request with defaults for tokens[n] on a sequence. */
perch_request host_request(perch_engine *e, perch_sequence_id sequence, const int32_t *tokens, size_t n,
                           uint32_t max_tokens);

/* Submits and collects events until this request's only completion is done; the first failure is the return value. */
perch_status host_turn(perch_engine *e, const perch_request *q, host_result *r);

/* n pseudo-random token ids in 3..vocab-1, of a seed. */
void host_tokens(uint64_t seed, uint32_t vocab_size, int32_t *tokens, size_t n);

#endif
