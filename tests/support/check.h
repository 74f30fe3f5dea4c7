/*
 * check: the frame of every test program. A test is a function without arguments that uses CUnit's CU_ASSERT_* (or CHECK_MSG,
 * which says more); test_main runs the list and its last line is "NAME: N passed, N failed, N skipped".
 */
#ifndef PERCH_TESTS_SUPPORT_CHECK_H
#define PERCH_TESTS_SUPPORT_CHECK_H

#include <CUnit/CUnit.h>

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct test_case {
    const char *name; /* what it proves */
    void (*run)(void);
} test_case;

/* Returns main's exit code: 0, 1 = failures, 77 = every test was skipped. argv[1], if given, runs only names that contain it. */
int test_main(const char *suite, const test_case *tests, size_t n, int argc, char **argv);

/* Leaves a line "skipped: reason" and counts the running test as skipped unless an assertion fails; then return. */
void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The path of a file of the shared data, or NULL after test_skip where it is absent. Static buffer, four in turn. */
const char *test_shared(const char *path_in_data);

/* A fixture of ours: tests/fixtures/PATH, by the working directory (ctest runs tests in the source folder). */
const char *test_fixture(const char *path_in_fixtures);

/* An assertion that says what was found: CHECK_MSG(a == b, "a is %d, b is %d", a, b). Returns the condition. */
#define CHECK_MSG(condition, ...) test_check((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)
bool test_check(bool condition, const char *file, unsigned line, const char *text, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Random numbers for tests: splitmix64, reproducible from the seed. */
typedef struct test_rng {
    uint64_t state;
} test_rng;
uint64_t test_rng_next(test_rng *rng);
uint64_t test_rng_below(test_rng *rng, uint64_t n); /* 0..n-1 */
double test_rng_unit(test_rng *rng);                /* [0, 1) */

/* The seed to run with: PERCH_TEST_SEED, or the default. Print it on failure. PERCH_TEST_SCALE multiplies iteration counts. */
uint64_t test_seed(uint64_t default_seed);
uint64_t test_scaled(uint64_t iterations);

/* CPU time of the calling thread in microseconds. Unlike the clock it stands still while others have the CPU. */
uint64_t test_cpu_us(void);

/*
 * The share of one CPU that all threads of the process take while the caller sleeps: the least of several intervals, since a
 * thread that has yet to fall asleep does so in the first, and one that watches or polls takes its share in every one.
 */
double test_idle_share(void);

#ifdef __cplusplus
}
#endif
#endif
