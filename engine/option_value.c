/*
 * option_value: between the text of a value and the field it sets. Whole strings only, no locale, no silent overflow; a
 * value that is refused is quoted together with what would have been right.
 */
#include "engine/option.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

_Static_assert(sizeof(perch_device) == sizeof(uint32_t) && sizeof(perch_dtype) == sizeof(uint32_t) &&
                   sizeof(perch_weights) == sizeof(uint32_t) && sizeof(perch_mapping) == sizeof(uint32_t) &&
                   sizeof(perch_queue_full) == sizeof(uint32_t) && sizeof(perch_schedule) == sizeof(uint32_t) &&
                   sizeof(perch_switch) == sizeof(uint32_t) && sizeof(perch_restore) == sizeof(uint32_t),
               "words are stored as 32 bits");

#define QUOTED "%.64s%s" /* a value in a message: its beginning */
#define QUOTE(text) text, strlen(text) > 64 ? "..." : ""

/* ------------------------------------------------------------------ words -- */

/* The index-th of "a | b | c"; its length in *n. NULL behind the last. */
static const char *word_at(const char *words, uint64_t index, size_t *n) {
    for (;; index--) {
        *n = strcspn(words, " ");
        if (index == 0) {
            return words;
        }
        if (!words[*n]) {
            return NULL;
        }
        words += *n + strlen(" | ");
    }
}

unsigned word_distance(const char *a, const char *b) {
    enum { CAP = 64 };
    unsigned rows[3][CAP + 1];
    size_t n_a = strnlen(a, CAP), n_b = strnlen(b, CAP);
    unsigned *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t j = 0; j <= n_b; j++) {
        last[j] = (unsigned)j;
    }
    for (size_t i = 1; i <= n_a; i++) {
        now[0] = (unsigned)i;
        for (size_t j = 1; j <= n_b; j++) {
            unsigned best = last[j - 1] + (strncasecmp(a + i - 1, b + j - 1, 1) != 0);
            best = last[j] + 1 < best ? last[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && strncasecmp(a + i - 1, b + j - 2, 1) == 0 &&
                strncasecmp(a + i - 2, b + j - 1, 1) == 0 && before[j - 2] + 1 < best) {
                best = before[j - 2] + 1;
            }
            now[j] = best;
        }
        unsigned *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[n_b];
}

bool word_resembles(const char *word, const char *known, unsigned *distance) {
    *distance = word_distance(word, known);
    return *distance * 3 <= strlen(known);
}

/* ---------------------------------------------------------------- numbers -- */

static bool parse_integer(const char *text, bool sized, option_value *value, bool *overflow) {
    *value = (option_value){.negative = *text == '-'};
    *overflow = false;
    text += value->negative;
    size_t digits = strspn(text, "0123456789");
    if (digits == 0) {
        return false;
    }
    for (size_t i = 0; i < digits; i++) {
        *overflow |= __builtin_mul_overflow(value->magnitude, 10u, &value->magnitude) ||
                     __builtin_add_overflow(value->magnitude, (uint64_t)(text[i] - '0'), &value->magnitude);
    }
    text += digits;
    if (sized && *text && !text[1]) {
        const char *suffix = strchr("kKmMgGtT", *text);
        if (suffix) {
            unsigned shift = 10 * (unsigned)((suffix - "kKmMgGtT") / 2 + 1);
            *overflow |= __builtin_mul_overflow(value->magnitude, UINT64_C(1) << shift, &value->magnitude);
            text++;
        }
    }
    value->negative = value->negative && value->magnitude > 0;
    return *text == 0;
}

/* The C locale for this thread, so that a host's decimal comma doesn't matter. */
static locale_t enter_c_locale(locale_t *c) {
    *c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return *c ? uselocale(*c) : (locale_t)0;
}

static void leave_c_locale(locale_t c, locale_t former) {
    if (c) {
        uselocale(former);
        freelocale(c);
    }
}

static bool parse_real(const char *text, option_value *value) {
    /* Neither inf nor nan nor hexadecimal: those are slips in a configuration. */
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) {
        return false;
    }
    char *end;
    locale_t c, former = enter_c_locale(&c);
    value->real = strtod(text, &end);
    leave_c_locale(c, former);
    return *end == 0 && isfinite(value->real);
}

static size_t format_real(double real, char *out, size_t cap) {
    char text[32];
    locale_t c, former = enter_c_locale(&c);
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, real);
        if (strtod(text, NULL) == real) {
            break;
        }
    }
    leave_c_locale(c, former);
    return (size_t)snprintf(out, cap, "%s", text);
}

static size_t format_sized(uint64_t bytes, char *out, size_t cap) {
    static const char *const suffixes[] = {"", "K", "M", "G", "T"};
    int unit = 0;
    while (unit < 4 && bytes > 0 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    return (size_t)snprintf(out, cap, "%llu%s", (unsigned long long)bytes, suffixes[unit]);
}

/* ----------------------------------------------------------------- fields -- */

static option_value load(const option *o, const perch_options *options) {
    const char *field = (const char *)options + o->offset;
    option_value value = {0};
    uint32_t u32;
    int32_t i32;
    switch (o->kind) {
    case OPTION_WORD:
    case OPTION_U32:
        memcpy(&u32, field, sizeof u32);
        value.magnitude = u32;
        break;
    case OPTION_I32:
        memcpy(&i32, field, sizeof i32);
        value.negative = i32 < 0;
        value.magnitude = (uint64_t)(i32 < 0 ? -(int64_t)i32 : (int64_t)i32);
        break;
    case OPTION_U64:
        memcpy(&value.magnitude, field, sizeof value.magnitude);
        break;
    case OPTION_REAL:
        memcpy(&value.real, field, sizeof value.real);
        break;
    case OPTION_PATH:
    case OPTION_TEXT:
        break;
    }
    return value;
}

static void store(const option *o, option_value value, perch_options *options) {
    char *field = (char *)options + o->offset;
    uint32_t u32 = (uint32_t)value.magnitude;
    int32_t i32 = (int32_t)(value.negative ? -(int64_t)value.magnitude : (int64_t)value.magnitude);
    switch (o->kind) {
    case OPTION_WORD:
    case OPTION_U32:
        memcpy(field, &u32, sizeof u32);
        break;
    case OPTION_I32:
        memcpy(field, &i32, sizeof i32);
        break;
    case OPTION_U64:
        memcpy(field, &value.magnitude, sizeof value.magnitude);
        break;
    case OPTION_REAL:
        memcpy(field, &value.real, sizeof value.real);
        break;
    case OPTION_PATH:
    case OPTION_TEXT:
        break;
    }
}

static option_value automatic_value(const option *o) {
    return (option_value){.negative = o->kind == OPTION_I32, .magnitude = o->kind == OPTION_I32, .real = NAN};
}

static bool is_automatic(const option *o, const option_value *value) {
    option_value automatic = automatic_value(o);
    return o->automatic &&
           (o->kind == OPTION_REAL ? isnan(value->real)
                                   : value->negative == automatic.negative && value->magnitude == automatic.magnitude);
}

static bool in_range(const option *o, const option_value *value) {
    size_t n;
    if (is_automatic(o, value)) {
        return true;
    }
    if (o->kind == OPTION_WORD) {
        return word_at(o->info.type, value->magnitude, &n) != NULL;
    }
    if (o->kind == OPTION_REAL) {
        return o->fits(value);
    }
    return o->fits ? o->fits(value) : !value->negative && value->magnitude >= o->least && value->magnitude <= o->most;
}

static perch_status out_of_range(const option *o, const char *text, perch_error *err) {
    return err_set(err, PERCH_E_CONFIG, QUOTED " is out of range %s%s", QUOTE(text), o->info.range,
                   o->automatic ? " (or auto)" : "");
}

static perch_status parse_word(const option *o, const char *text, perch_options *options, perch_error *err) {
    size_t n;
    const char *word;
    for (option_value value = {0}; (word = word_at(o->info.type, value.magnitude, &n)); value.magnitude++) {
        if (strlen(text) == n && strncasecmp(text, word, n) == 0) {
            store(o, value, options);
            return PERCH_OK;
        }
    }
    return err_set(err, PERCH_E_CONFIG, "'" QUOTED "' is not one of %s", QUOTE(text), o->info.type);
}

static bool is_text(const option *o) { return o->kind == OPTION_PATH || o->kind == OPTION_TEXT; }

static perch_status parse_text(const option *o, const char *text, perch_options *options, perch_error *err) {
    size_t n = strlen(text);
    if (n >= PERCH_PATH_CAP) {
        return err_set(err, PERCH_E_CONFIG, "the %s is %zu bytes long, %d are allowed", o->info.type, n,
                       PERCH_PATH_CAP - 1);
    }
    memmove((char *)options + o->offset, text, n + 1);
    return PERCH_OK;
}

perch_status option_parse(const option *o, const char *text, perch_options *options, perch_error *err) {
    option_value value = {0};
    bool overflow = false;
    if (o->kind == OPTION_WORD) {
        return parse_word(o, text, options, err);
    }
    if (is_text(o)) {
        return parse_text(o, text, options, err);
    }
    if (o->automatic && strcasecmp(text, "auto") == 0) {
        store(o, automatic_value(o), options);
        return PERCH_OK;
    }
    if (o->kind == OPTION_REAL ? !parse_real(text, &value) : !parse_integer(text, o->sized, &value, &overflow)) {
        return err_set(err, PERCH_E_CONFIG, "'" QUOTED "' is not %s", QUOTE(text),
                       o->kind == OPTION_REAL ? "a finite number"
                       : o->sized             ? "a number of bytes, like 65536 or 512M"
                                              : "an integer");
    }
    if (overflow || !in_range(o, &value)) {
        return out_of_range(o, text, err);
    }
    store(o, value, options);
    return PERCH_OK;
}

perch_status option_check(const option *o, const perch_options *options, perch_error *err) {
    if (is_text(o)) {
        return memchr((const char *)options + o->offset, 0, PERCH_PATH_CAP)
                   ? PERCH_OK
                   : err_set(err, PERCH_E_CONFIG, "the %s has no end within %d bytes", o->info.type, PERCH_PATH_CAP);
    }
    option_value value = load(o, options);
    if (in_range(o, &value)) {
        return PERCH_OK;
    }
    char text[32];
    if (o->kind == OPTION_WORD) {
        return err_set(err, PERCH_E_CONFIG, "the value %llu stands for none of %s", (unsigned long long)value.magnitude,
                       o->info.type);
    }
    option_format(o, options, text, sizeof text);
    return out_of_range(o, text, err);
}

size_t option_format(const option *o, const perch_options *options, char *out, size_t cap) {
    if (is_text(o)) {
        return (size_t)snprintf(out, cap, "%.*s", PERCH_PATH_CAP - 1, (const char *)options + o->offset);
    }
    option_value value = load(o, options);
    if (is_automatic(o, &value)) {
        return (size_t)snprintf(out, cap, "auto");
    }
    if (o->kind == OPTION_WORD) {
        size_t n = 0;
        const char *word = word_at(o->info.type, value.magnitude, &n);
        return (size_t)snprintf(out, cap, "%.*s", (int)n, word ? word : "");
    }
    if (o->kind == OPTION_REAL) {
        return format_real(value.real, out, cap);
    }
    if (o->sized) {
        return format_sized(value.magnitude, out, cap);
    }
    return (size_t)snprintf(out, cap, "%s%llu", value.negative ? "-" : "", (unsigned long long)value.magnitude);
}
