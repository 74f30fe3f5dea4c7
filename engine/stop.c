/*
 * stop: finds stop strings in a text that comes in pieces. One Knuth-Morris-Pratt automaton a string; what an automaton
 * has matched so far is the end of the text that may still become that string, so the longest of these is what must be
 * held back. A matcher is one block of memory without pointers into itself, which makes a clone a memcpy.
 */
#include "engine/sampler.h"

#include <stdlib.h>
#include <string.h>

#define STOP_MAX_BYTES 256u

typedef struct stop_pattern {
    size_t first;   /* where its bytes and borders begin in the matcher's arrays */
    uint32_t n;     /* length in bytes */
    uint32_t state; /* bytes of it that the text ends in */
} stop_pattern;

struct stop_matcher {
    size_t n_bytes; /* of the whole block */
    size_t n_patterns;
    size_t total; /* length of all patterns together */
    uint64_t n_safe;
    uint64_t n_pushed;
    bool matched;
    stop_pattern patterns[]; /* [n_patterns], then uint16_t borders[total], then char text[total] */
};

/* borders[i]: length of the longest proper border (prefix that is also a suffix) of the pattern's first i + 1 bytes. */
static uint16_t *borders_of(stop_matcher *m) { return (uint16_t *)(void *)(m->patterns + m->n_patterns); }

static char *text_of(stop_matcher *m) { return (char *)(borders_of(m) + m->total); }

static void find_borders(const char *text, uint32_t n, uint16_t *borders) {
    uint32_t matched = 0;
    borders[0] = 0;
    for (uint32_t i = 1; i < n; i++) {
        while (matched > 0 && text[i] != text[matched]) {
            matched = borders[matched - 1];
        }
        matched += text[i] == text[matched];
        borders[i] = (uint16_t)matched;
    }
}

perch_status stop_matcher_create(const char *const *strings, size_t n, stop_matcher **out, perch_error *err) {
    *out = NULL;
    size_t total = 0, head, bytes;
    for (size_t i = 0; i < n; i++) {
        size_t length = strings[i] ? strnlen(strings[i], STOP_MAX_BYTES + 1) : 0;
        if (length == 0 || length > STOP_MAX_BYTES) {
            return err_set(err, PERCH_E_INVALID, "stop_strings[%zu]: %s; 1..%u bytes are allowed", i,
                           !strings[i]   ? "NULL"
                           : length == 0 ? "empty"
                                         : "too long",
                           STOP_MAX_BYTES);
        }
        total += length;
    }
    if (!mul_size(n, sizeof(stop_pattern), &head) || !add_size(head, sizeof(stop_matcher), &head) ||
        !add_size(head, total * (sizeof(uint16_t) + 1), &bytes)) {
        return err_nomem(err, "the stop strings");
    }
    stop_matcher *m = calloc(1, bytes);
    if (!m) {
        return err_nomem(err, "the stop strings");
    }
    m->n_bytes = bytes;
    m->n_patterns = n;
    m->total = total;
    uint16_t *borders = borders_of(m);
    char *text = text_of(m);
    size_t first = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t length = (uint32_t)strlen(strings[i]);
        m->patterns[i] = (stop_pattern){first, length, 0};
        memcpy(text + first, strings[i], length);
        find_borders(text + first, length, borders + first);
        first += length;
    }
    *out = m;
    return PERCH_OK;
}

void stop_matcher_destroy(stop_matcher *m) { free(m); }

perch_status stop_matcher_clone(const stop_matcher *m, stop_matcher **out, perch_error *err) {
    *out = malloc(m->n_bytes);
    if (!*out) {
        return err_nomem(err, "the stop strings");
    }
    memcpy(*out, m, m->n_bytes);
    return PERCH_OK;
}

bool stop_matcher_push(stop_matcher *m, const char *bytes, size_t n) {
    uint16_t *borders = borders_of(m);
    const char *text = text_of(m);
    for (size_t at = 0; at < n && !m->matched; at++) {
        uint32_t held = 0, longest_match = 0;
        for (size_t i = 0; i < m->n_patterns; i++) {
            stop_pattern *p = &m->patterns[i];
            while (p->state > 0 && bytes[at] != text[p->first + p->state]) {
                p->state = borders[p->first + p->state - 1];
            }
            p->state += bytes[at] == text[p->first + p->state];
            held = p->state > held ? p->state : held;
            longest_match = p->state == p->n && p->n > longest_match ? p->n : longest_match;
        }
        m->n_pushed++;
        m->matched = longest_match > 0;
        m->n_safe = m->n_pushed - (m->matched ? longest_match : held);
    }
    return m->matched;
}

uint64_t stop_matcher_safe(const stop_matcher *m) { return m->n_safe; }
