/*
 * What comes of loading the CUDA backend, with the library that the environment puts in its place (load_testing.c): run once
 * for each, since a process tries only once. PERCH_LOAD_EXPECTED: what the error says, or "" for success.
 */
#include "kernels/kernels.h"
#include "tests/support/check.h"

#include <stdlib.h>
#include <string.h>

static void what_is_wrong_is_named(void) {
    const char *expected = getenv("PERCH_LOAD_EXPECTED");
    if (expected == NULL) {
        test_skip("PERCH_LOAD_EXPECTED is not set");
        return;
    }
    perch_error err = {.status = PERCH_OK};
    const kernels_backend *backend = NULL, *again = NULL;
    perch_status status = kernels_cuda(&backend, &err);
    perch_status status_again = kernels_cuda(&again, NULL);
    CU_ASSERT(status_again == status && again == backend);
    if (expected[0] == '\0') {
        CHECK_MSG(status == PERCH_OK && backend != NULL && strcmp(backend->name, "a stand-in") == 0, "%s: %s",
                  perch_status_name(status), err.message);
    } else {
        CHECK_MSG(status == PERCH_E_UNSUPPORTED && backend == NULL && strstr(err.message, expected) != NULL,
                  "'%s', not '%s'", err.message, expected);
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_is_wrong_is_named", what_is_wrong_is_named},
    };
    return test_main("kernels_load_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
