/*
 * pattern: what a tokenizer.json searches for: {"String": text} or {"Regex": expression}. Expressions are in
 * Oniguruma's Ruby dialect, which the tokenizers library uses; they are rewritten for PCRE2 where the two differ, and
 * refused where that can't be done. Patterns are read-only once made; a matcher is one call's memory.
 */
#ifndef PERCH_ENGINE_TEXT_PATTERN_H
#define PERCH_ENGINE_TEXT_PATTERN_H

#include "engine/text/jnode.h"

struct pattern {
    char *literal; /* [literal_bytes] or NULL */
    size_t literal_bytes;
    void *code; /* pcre2_code, if not literal */
};

struct matcher {
    void *data;    /* pcre2_match_data, made when first needed */
    void *context; /* pcre2_match_context */
};

struct match {
    size_t start, end;
};

/* Matches of a pattern in text[n], one after the other. */
struct match_scan {
    const struct pattern *pattern;
    struct matcher *matcher;
    const char *text;
    size_t n;
    size_t from;     /* where the next search begins; beyond n at the end */
    size_t last_end; /* the end of the last match, or SIZE_MAX */
};

/* Reads a {"String": ..} or {"Regex": ..} node. E_FORMAT, E_UNSUPPORTED, E_NOMEM. */
perch_status pattern_parse(const struct jnode *node, struct pattern *out, perch_error *err);

/* The same for an expression; node is for messages. */
perch_status pattern_compile(const struct jnode *node, struct jtext expression, struct pattern *out, perch_error *err);
perch_status pattern_literal(struct jtext text, struct pattern *out, perch_error *err);

void pattern_free(struct pattern *pattern);
uint64_t pattern_bytes(const struct pattern *pattern);
void matcher_free(struct matcher *matcher);

/* text is well-formed UTF-8 and stays until the scan is over. */
struct match_scan match_begin(const struct pattern *pattern, struct matcher *matcher, const char *text, size_t n);

/*
 * Finds the next match; *found false: there is none. An empty match right behind another one is passed over.
 * E_UNSUPPORTED: the expression takes too many steps on this text (the bound grows with the text). E_NOMEM.
 */
perch_status match_next(struct match_scan *scan, bool *found, struct match *out, perch_error *err);

/* Rewrites an Oniguruma expression for PCRE2; *out is the caller's to free. In pattern_dialect.c. */
perch_status pattern_translate(const struct jnode *node, struct jtext expression, char **out, size_t *n,
                               perch_error *err);

#endif
