/* The least that a host has to do: perch in, a prompt in, the text out as it comes. Usage: minimal MODEL_DIR PROMPT */
#include "perch/perch.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    perch_options options;
    perch_engine *engine = NULL;
    perch_request request;
    perch_event event;
    perch_error err = {PERCH_OK, ""};
    perch_request_id id;
    int32_t tokens[1024];
    if (argc != 3) {
        return fprintf(stderr, "usage: minimal MODEL_DIR PROMPT\n"), 2;
    }
    perch_options_init(&options, sizeof(options));
    perch_event_init(&event, sizeof(event));
    if (perch_options_set(&options, "model.path", argv[1], &err) || perch_engine_create(&options, &engine, &err) ||
        perch_request_init(engine, &request, sizeof(request)) ||
        perch_tokenizer_encode(perch_engine_tokenizer(engine), argv[2], strlen(argv[2]), PERCH_ENCODE_BOS, tokens, 1024,
                               &request.n_tokens, &err) ||
        perch_sequence_open(engine, &request.sequence, &err)) {
        return fprintf(stderr, "minimal: %s\n", err.message), 1;
    }
    request.tokens = tokens;
    request.max_tokens = 60;
    perch_status status = perch_submit(engine, &request, &id, &err);
    while (status == PERCH_OK && event.type != PERCH_EVENT_DONE) {
        status = perch_next(engine, &event, -1, &err);
        printf("%s", status == PERCH_OK ? event.text : "");
        fflush(stdout);
    }
    perch_event_clear(&event);
    perch_engine_destroy(engine);
    return status == PERCH_OK ? 0 : (fprintf(stderr, "minimal: %s\n", err.message), 1);
}
