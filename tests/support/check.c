/* check: runs CUnit suites and sums them up. */
#include "tests/support/check.h"

#include <CUnit/Automated.h>
#include <CUnit/TestRun.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *skip_reason;
static char skip_text[256];

int test_main(const char *suite_name, const test_case *tests, size_t n, int argc, char **argv) {
    unsigned passed = 0, failed = 0, skipped = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (CU_initialize_registry() != CUE_SUCCESS) {
        fprintf(stderr, "%s: CUnit does not start\n", suite_name);
        return 1;
    }
    CU_pSuite suite = CU_add_suite(suite_name, NULL, NULL);
    for (size_t i = 0; suite && i < n; i++) {
        if (argc > 1 && !strstr(tests[i].name, argv[1])) {
            continue;
        }
        CU_pTest test = CU_add_test(suite, tests[i].name, tests[i].run);
        if (!test) {
            fprintf(stderr, "%s: cannot add %s\n", suite_name, tests[i].name);
            failed++;
            continue;
        }
        skip_reason = NULL;
        CU_run_test(suite, test);
        CU_pFailureRecord failure = CU_get_failure_list();
        bool bad = CU_get_number_of_failures() > 0;
        for (; failure; failure = failure->pNext) {
            printf("  %s:%u: %s\n", failure->strFileName, failure->uiLineNumber, failure->strCondition);
        }
        if (bad) {
            failed++;
        } else if (skip_reason) {
            skipped++;
        } else {
            passed++;
        }
        const char *verdict = bad ? "FAIL" : skip_reason ? "skip" : "ok  ";
        printf("%s %s/%s%s%s\n", verdict, suite_name, tests[i].name, skip_reason ? ": " : "",
               skip_reason ? skip_reason : "");
    }
    CU_cleanup_registry();
    printf("%s: %u passed, %u failed, %u skipped\n", suite_name, passed, failed, skipped);
    return failed ? 1 : passed == 0 ? 77 : 0;
}

void test_skip(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(skip_text, sizeof skip_text, format, args);
    va_end(args);
    skip_reason = skip_text;
}

const char *test_shared(const char *path) {
    static char paths[4][512];
    static unsigned turn;
    const char *root = getenv("PERCH_SHARED");
    char *out = paths[turn++ % 4];
    snprintf(out, sizeof paths[0], "%s/data/%s", root ? root : "../shared", path);
    if (access(out, R_OK) != 0) {
        test_skip("%s is not there", out);
        return NULL;
    }
    return out;
}

const char *test_fixture(const char *path) {
    static char paths[4][512];
    static unsigned turn;
    char *out = paths[turn++ % 4];
    snprintf(out, sizeof paths[0], "tests/fixtures/%s", path);
    return out;
}

bool test_check(bool condition, const char *file, unsigned line, const char *text, const char *format, ...) {
    char message[1024];
    if (!condition) {
        int at = snprintf(message, sizeof message, "%s: ", text);
        va_list args;
        va_start(args, format);
        vsnprintf(message + at, sizeof message - (size_t)at, format, args);
        va_end(args);
        CU_assertImplementation(CU_FALSE, line, message, file, "", CU_FALSE);
    } else {
        CU_assertImplementation(CU_TRUE, line, text, file, "", CU_FALSE);
    }
    return condition;
}

uint64_t test_rng_next(test_rng *rng) {
    uint64_t z = rng->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint64_t test_rng_below(test_rng *rng, uint64_t n) { return n ? test_rng_next(rng) % n : 0; }

double test_rng_unit(test_rng *rng) { return (double)(test_rng_next(rng) >> 11) * 0x1p-53; }

uint64_t test_seed(uint64_t default_seed) {
    const char *text = getenv("PERCH_TEST_SEED");
    return text && *text ? strtoull(text, NULL, 0) : default_seed;
}

uint64_t test_scaled(uint64_t iterations) {
    const char *text = getenv("PERCH_TEST_SCALE");
    double scale = text && *text ? strtod(text, NULL) : 1.0;
    double scaled = (double)iterations * scale;
    return scaled < 1 ? 1 : (uint64_t)scaled;
}

static uint64_t clock_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t test_cpu_us(void) { return clock_us(CLOCK_THREAD_CPUTIME_ID); }

double test_idle_share(void) {
    double least = 1;
    for (int i = 0; i < 10 && least > 0.001; i++) {
        uint64_t begin = clock_us(CLOCK_MONOTONIC), used = clock_us(CLOCK_PROCESS_CPUTIME_ID);
        usleep(200000);
        used = clock_us(CLOCK_PROCESS_CPUTIME_ID) - used;
        double share = (double)used / (double)(clock_us(CLOCK_MONOTONIC) - begin);
        least = share < least ? share : least;
    }
    return least;
}
