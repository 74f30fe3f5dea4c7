/* tokenizer_threads_test: one tokenizer, used by several threads at once without a lock. */
#include "engine/text/text_testing.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define N_THREADS 4
#define N_TOKENS 256

static const char text[] =
    "The perch's reach is <mask> 12,345 \xE9\xB2\x88\xE9\xB1\xBC, and it'll wait <|eot_id|> here.\n\n  ";

struct worker {
    const perch_tokenizer *t;
    const int32_t *want;
    size_t n_want;
    size_t n_wrong;
    pthread_t thread;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    const perch_chat_message message = {"user", "x"};
    for (size_t round = 0; round < 100; round++) {
        int32_t tokens[N_TOKENS];
        char back[1024];
        size_t n = 0, bytes = 0;
        bool fine = perch_tokenizer_encode(worker->t, text, sizeof text - 1, PERCH_ENCODE_SPECIAL, tokens, N_TOKENS, &n,
                                           NULL) == PERCH_OK;
        fine = fine && n == worker->n_want && memcmp(tokens, worker->want, n * sizeof *tokens) == 0;
        fine = fine && perch_tokenizer_decode(worker->t, tokens, n, PERCH_DECODE_SPECIAL, back, sizeof back, &bytes,
                                              NULL) == PERCH_OK;
        fine =
            fine && bytes > 0 && tokenizer_piece(worker->t, tokens[0], &n) && perch_tokenizer_find(worker->t, "a") >= 0;
        fine =
            fine && perch_chat_render(worker->t, "chatml", &message, 1, 1, back, sizeof back, &bytes, NULL) == PERCH_OK;
        worker->n_wrong += !fine;
    }
    return NULL;
}

static void test_one_for_all(void) {
    static const char *const fixtures[] = {"llama3", "llama2", "metaspace", "gpt2", "splits"};
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        perch_tokenizer *t = testing_fixture(fixtures[i]);
        struct worker workers[N_THREADS];
        int32_t want[N_TOKENS];
        size_t n = 0, started = 0;
        if (!t) {
            continue;
        }
        CU_ASSERT(perch_tokenizer_encode(t, text, sizeof text - 1, PERCH_ENCODE_SPECIAL, want, N_TOKENS, &n, NULL) ==
                  PERCH_OK);
        for (; started < N_THREADS; started++) {
            workers[started] = (struct worker){.t = t, .want = want, .n_want = n};
            if (!CHECK_MSG(pthread_create(&workers[started].thread, NULL, work, &workers[started]) == 0, "no thread")) {
                break;
            }
        }
        for (size_t k = 0; k < started; k++) {
            pthread_join(workers[k].thread, NULL);
            CHECK_MSG(workers[k].n_wrong == 0, "%s: %zu rounds went wrong", fixtures[i], workers[k].n_wrong);
        }
        perch_tokenizer_destroy(t);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {{"threads share a tokenizer", test_one_for_all}};
    return test_main("tokenizer_threads", tests, sizeof tests / sizeof *tests, argc, argv);
}
