/* base: error messages, growth of arrays, time. */
#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What base.h tells analysers stands in the way of the definitions. */
#undef err_set
#undef err_prefix
#undef err_nomem

perch_status err_set(perch_error *err, perch_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
    }
    return status;
}

perch_status err_prefix(perch_error *err, perch_status status, const char *format, ...) {
    if (err) {
        char prefixed[sizeof err->message];
        va_list args;
        va_start(args, format);
        int n = vsnprintf(prefixed, sizeof prefixed - 2, format, args);
        va_end(args);
        size_t at = n < 0 ? 0 : (size_t)n;
        at = at > sizeof prefixed - 3 ? sizeof prefixed - 3 : at;
        memcpy(prefixed + at, ": ", 2);
        at += 2;
        size_t room = sizeof prefixed - 1 - at, length = strlen(err->message);
        length = length > room ? room : length;
        memcpy(prefixed + at, err->message, length);
        prefixed[at + length] = 0;
        memcpy(err->message, prefixed, at + length + 1);
        err->status = status;
    }
    return status;
}

perch_status err_nomem(perch_error *err, const char *what) {
    return err_set(err, PERCH_E_NOMEM, "out of host memory for %s", what);
}

perch_status array_reserve(void **array, size_t *cap, size_t need, size_t element_bytes, perch_error *err) {
    if (need <= *cap) {
        return PERCH_OK;
    }
    size_t grown = *cap < 8 ? 8 : *cap;
    size_t bytes;
    while (grown < need) {
        if (!mul_size(grown, 2, &grown)) {
            return err_nomem(err, "an array");
        }
    }
    if (!mul_size(grown, element_bytes, &bytes)) {
        return err_nomem(err, "an array");
    }
    void *moved = realloc(*array, bytes);
    if (!moved) {
        return err_nomem(err, "an array");
    }
    *array = moved;
    *cap = grown;
    return PERCH_OK;
}

bool mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

bool add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

uint64_t time_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

const char *perch_status_name(perch_status status) {
    switch (status) {
#define STATUS_NAME(value, name, text)                                                                                 \
    case PERCH_##name:                                                                                                 \
        return #name;
        PERCH_STATUS_MAP(STATUS_NAME)
#undef STATUS_NAME
    }
    return "unknown";
}

const char *perch_status_text(perch_status status) {
    switch (status) {
#define STATUS_TEXT(value, name, text)                                                                                 \
    case PERCH_##name:                                                                                                 \
        return text;
        PERCH_STATUS_MAP(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "unknown status";
}

#define VERSION_TEXT(major, minor, patch) #major "." #minor "." #patch
#define VERSION(major, minor, patch) VERSION_TEXT(major, minor, patch)

const char *perch_version(void) { return VERSION(PERCH_VERSION_MAJOR, PERCH_VERSION_MINOR, PERCH_VERSION_PATCH); }
