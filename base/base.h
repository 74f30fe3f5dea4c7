/*
 * base: the few things that every module needs: error messages, dynamic arrays' growth, time, memory's limits. May include: include/perch.
 */
#ifndef PERCH_BASE_BASE_H
#define PERCH_BASE_BASE_H

#include "perch/perch.h"

#include <stdbool.h>

#if defined(__GNUC__)
#define BASE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define BASE_PRINTF(fmt, args)
#endif

/* Tokens in a group: the unit of KV layout (design, section 5). */
#define KV_GROUP_TOKENS 16u

/* Fills err (may be NULL) and returns status, so that a failure is one statement: return err_set(err, PERCH_E_IO, "…"). */
perch_status err_set(perch_error *err, perch_status status, const char *format, ...) BASE_PRINTF(3, 4);

/* Puts "prefix: " before the message that is there, and returns its status. */
perch_status err_prefix(perch_error *err, perch_status status, const char *format, ...) BASE_PRINTF(3, 4);

/* The common out-of-memory error; what: "the page table". */
perch_status err_nomem(perch_error *err, const char *what);

#if defined(__clang_analyzer__) || defined(__cppcheck__)
/* An analyser looks at one file at a time: it has to be told that these return what they are given, and never success. */
#define err_set(err, status, ...) (err_set(err, status, __VA_ARGS__), (status))
#define err_prefix(err, status, ...) (err_prefix(err, status, __VA_ARGS__), (status))
#define err_nomem(err, what) (err_nomem(err, what), PERCH_E_NOMEM)
#endif

/*
 * Makes *array (elements of element_bytes) hold at least need elements, doubling. On failure nothing changed.
 * *array may be NULL with *cap 0. The caller frees *array.
 */
perch_status array_reserve(void **array, size_t *cap, size_t need, size_t element_bytes, perch_error *err);

/* a * b and a + b, or false where they overflow. */
bool mul_size(size_t a, size_t b, size_t *out);
bool add_size(size_t a, size_t b, size_t *out);

/*
 * limits.c: bytes that this process may still take, by the kernel, the control groups and its limits. root: "" for the system's
 * own /proc and /sys; tests put a folder before them.
 */
perch_status host_free_bytes(const char *root, uint64_t *out, perch_error *err);

/* CLOCK_MONOTONIC in microseconds. */
uint64_t time_us(void);

#endif
