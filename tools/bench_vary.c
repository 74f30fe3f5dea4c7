/*
 * bench_vary: engine options that a benchmark sets differently from variant to variant.
 */
#include "bench_vary.h"

#include "tool.h"

#include <stdio.h>
#include <string.h>

/* Copies text[n] without the blanks at its ends. False: nothing is left, or too much. */
static bool copy_word(char out[BENCH_VARY_CAP], const char *text, size_t n) {
    while (n > 0 && (text[0] == ' ' || text[0] == '\t')) {
        text++;
        n--;
    }
    while (n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t')) {
        n--;
    }
    if (n == 0 || n >= BENCH_VARY_CAP) {
        return false;
    }
    memcpy(out, text, n);
    out[n] = '\0';
    return true;
}

static bool has_value(const struct bench_vary_key *key, const char *value) {
    for (size_t i = 0; i < key->n_values; i++) {
        if (strcmp(key->values[i], value) == 0) {
            return true;
        }
    }
    return false;
}

/* text[n] is "vmm, table". */
static perch_status parse_values(struct bench_vary_key *key, const char *text, size_t n, perch_error *err) {
    for (const char *at = text, *end = text + n; at <= end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        size_t length = (size_t)((comma != NULL ? comma : end) - at);
        char value[BENCH_VARY_CAP];
        if (!copy_word(value, at, length)) {
            return tool_error(err, PERCH_E_CONFIG, "%s: a value is empty or longer than %d bytes", key->name,
                              BENCH_VARY_CAP - 1);
        }
        if (has_value(key, value)) {
            return tool_error(err, PERCH_E_CONFIG, "%s: %s stands there twice", key->name, value);
        }
        if (key->n_values == BENCH_MAX_VARY_VALUES) {
            return tool_error(err, PERCH_E_CONFIG, "%s: more than %d values", key->name, BENCH_MAX_VARY_VALUES);
        }
        memcpy(key->values[key->n_values++], value, sizeof(value));
        at += length + 1;
    }
    return key->n_values > 1 ? PERCH_OK
                             : tool_error(err, PERCH_E_CONFIG, "%s: one value is nothing to vary", key->name);
}

/* text[n] is "cache.mapping: vmm, table". */
static perch_status parse_key(struct bench_vary *vary, const char *text, size_t n, perch_error *err) {
    const char *colon = memchr(text, ':', n);
    struct bench_vary_key key = {.n_values = 0};
    if (colon == NULL || !copy_word(key.name, text, (size_t)(colon - text))) {
        return tool_error(err, PERCH_E_CONFIG, "'%.*s' is not section.key: value, value", (int)n, text);
    }
    for (size_t i = 0; i < vary->n_keys; i++) {
        if (strcmp(vary->keys[i].name, key.name) == 0) {
            return tool_error(err, PERCH_E_CONFIG, "%s stands there twice", key.name);
        }
    }
    if (vary->n_keys == BENCH_MAX_VARY_KEYS) {
        return tool_error(err, PERCH_E_CONFIG, "more than %d keys", BENCH_MAX_VARY_KEYS);
    }
    perch_status status = parse_values(&key, colon + 1, n - (size_t)(colon + 1 - text), err);
    if (status == PERCH_OK) {
        vary->keys[vary->n_keys++] = key;
    }
    return status;
}

perch_status bench_vary_parse(const char *text, struct bench_vary *out, perch_error *err) {
    perch_status status = PERCH_OK;
    const char *at = text + strspn(text, " \t");
    *out = (struct bench_vary){.n_keys = 0};
    while (status == PERCH_OK && *at != '\0') {
        size_t length = strcspn(at, ";");
        status = parse_key(out, at, length, err);
        at += length;
        at += *at == ';' ? 1 + strspn(at + 1, " \t") : 0;
    }
    return status;
}

size_t bench_vary_n_variants(const struct bench_vary *vary) {
    size_t n = 1;
    for (size_t i = 0; i < vary->n_keys; i++) {
        n = vary->all ? n * vary->keys[i].n_values : n + vary->keys[i].n_values - 1;
    }
    return n;
}

/* Without `all`: which key has another value than the base's in a variant, and which one; the base: the number of keys, 0. */
static size_t changed_key(const struct bench_vary *vary, size_t index, size_t *value) {
    size_t key = 0;
    *value = index;
    while (index > 0 && *value >= vary->keys[key].n_values) {
        *value -= vary->keys[key].n_values - 1;
        key++;
    }
    return index > 0 ? key : vary->n_keys;
}

/* Which of a key's values a variant has. */
static size_t value_of(const struct bench_vary *vary, size_t index, size_t key) {
    if (vary->all) {
        for (size_t i = vary->n_keys - 1; i > key; i--) {
            index /= vary->keys[i].n_values;
        }
        return index % vary->keys[key].n_values;
    }
    size_t value;
    return changed_key(vary, index, &value) == key ? value : 0;
}

perch_status bench_vary_apply(const struct bench_vary *vary, size_t index, perch_options *options, perch_error *err) {
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < vary->n_keys; i++) {
        const struct bench_vary_key *key = &vary->keys[i];
        status = perch_options_set(options, key->name, key->values[value_of(vary, index, i)], err);
    }
    return status;
}

void bench_vary_name(const struct bench_vary *vary, size_t index, char *out, size_t cap) {
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < vary->n_keys && at < cap; i++) {
        const struct bench_vary_key *key = &vary->keys[i];
        size_t value = value_of(vary, index, i);
        if (index == 0 || vary->all || value > 0) {
            at += (size_t)snprintf(out + at, cap - at, "%s%s=%s", at > 0 ? " " : "", key->name, key->values[value]);
        }
    }
}
