/* A conversation that outlives the process: each run is one turn of it. Usage: remember MODEL_DIR STORE_DIR NAME TEXT */
#include "perch/perch.h"

#include <stdio.h>
#include <string.h>

/* The conversation of that name, from the store or new; *n_before gets its length. */
static perch_status open_named(perch_engine *engine, const char *name, perch_sequence_id *out, uint64_t *n_before,
                               perch_error *err) {
    perch_sequence_options named;
    perch_sequence_info info = {.struct_size = sizeof(info)};
    perch_sequence_options_init(&named, sizeof(named));
    named.key = name;
    named.flags = PERCH_SEQUENCE_RETAIN;
    perch_status status = perch_sequence_open_with(engine, &named, out, err);
    status = status ? status : perch_sequence_state(engine, *out, &info, err);
    *n_before = info.n_tokens;
    return status;
}

/* What the user says, in the model's chat format, as tokens. */
static perch_status encode(perch_engine *engine, const char *words, int first, int32_t *tokens, size_t cap, size_t *n,
                           perch_error *err) {
    const perch_tokenizer *tokenizer = perch_engine_tokenizer(engine);
    perch_chat_message message = {"user", words};
    char text[4096];
    size_t n_bytes;
    perch_status status = perch_chat_render(tokenizer, NULL, &message, 1, first, text, sizeof(text), &n_bytes, err);
    uint32_t flags = PERCH_ENCODE_SPECIAL | (first ? PERCH_ENCODE_BOS : 0u);
    return status ? status : perch_tokenizer_encode(tokenizer, text, n_bytes, flags, tokens, cap, n, err);
}

int main(int argc, char **argv) {
    perch_options options;
    perch_engine *engine = NULL;
    perch_request request;
    perch_event event;
    perch_error err = {PERCH_OK, ""};
    perch_request_id id;
    uint64_t n_before;
    int32_t tokens[1024];
    if (argc != 5) {
        return fprintf(stderr, "usage: remember MODEL_DIR STORE_DIR NAME TEXT\n"), 2;
    }
    perch_options_init(&options, sizeof(options));
    perch_event_init(&event, sizeof(event));
    if (perch_options_set(&options, "model.path", argv[1], &err) ||
        perch_options_set(&options, "store.backend", "lmdb", &err) ||
        perch_options_set(&options, "store.path", argv[2], &err) || perch_engine_create(&options, &engine, &err) ||
        perch_request_init(engine, &request, sizeof(request)) ||
        open_named(engine, argv[3], &request.sequence, &n_before, &err) ||
        encode(engine, argv[4], n_before == 0, tokens, 1024, &request.n_tokens, &err)) {
        perch_engine_destroy(engine);
        return fprintf(stderr, "remember: %s\n", err.message), 1;
    }
    request.tokens = tokens;
    request.max_tokens = 200;
    perch_status status = perch_submit(engine, &request, &id, &err);
    while (status == PERCH_OK && event.type != PERCH_EVENT_DONE) {
        status = perch_next(engine, &event, -1, &err);
        printf("%s", status == PERCH_OK ? event.text : "");
        fflush(stdout);
    }
    /* With its DONE the turn is in the store, unless the event says otherwise. */
    if (status == PERCH_OK && event.status != PERCH_OK) {
        status = event.status;
        snprintf(err.message, sizeof(err.message), "%s", event.message);
    }
    printf("\n");
    perch_event_clear(&event);
    perch_engine_destroy(engine);
    return status == PERCH_OK ? 0 : (fprintf(stderr, "remember: %s\n", err.message), 1);
}
