/*
 * option: one key of the configuration as a row of a table: where it is stored, how it is written as text, what values
 * it may have. options.c has the table, option_value.c the conversions.
 */
#ifndef PERCH_ENGINE_OPTION_H
#define PERCH_ENGINE_OPTION_H

#include "base/base.h"

/* How the field is stored in perch_options. Words are enums counted from 0 in the order of info.type. */
typedef enum option_kind {
    OPTION_WORD,
    OPTION_U32,
    OPTION_I32,
    OPTION_U64,
    OPTION_REAL,
    OPTION_PATH,
    OPTION_TEXT /* as a path, but taken as it is wherever it stands */
} option_kind;

/* A value on its way between text and field. Integers carry their sign apart, so that all 64 bits of a seed fit. */
typedef struct option_value {
    bool negative;
    uint64_t magnitude; /* WORD: which */
    double real;        /* REAL; NaN = auto */
} option_value;

typedef struct option {
    perch_option_info info;
    option_kind kind;
    size_t offset;
    bool automatic;       /* the word auto stands for 0 (U32, U64), -1 (I32) or NaN (REAL), PATH: itself */
    bool sized;           /* U64 that takes a suffix K, M, G, T (powers of 1024) */
    uint64_t least, most; /* U32, U64: the range, beside auto's 0; I32: likewise, beside -1 */
    bool (*fits)(const option_value *value); /* REAL: the range; integers: NULL or a rule on top of it */
} option;

/* Sets the option's field from text. On failure (E_CONFIG, the reason alone) options are unchanged. */
perch_status option_parse(const option *o, const char *text, perch_options *options, perch_error *err);

/* Checks a field that was set directly. E_CONFIG, the reason alone. */
perch_status option_check(const option *o, const perch_options *options, perch_error *err);

/* Writes the field as option_parse would take it. Returns the length without the 0, as snprintf does. */
size_t option_format(const option *o, const perch_options *options, char *out, size_t cap);

/* Edits (insert, delete, replace, swap neighbours) between two words, cut off at 64 bytes each; case doesn't count. */
unsigned word_distance(const char *a, const char *b);

/* Whether word looks like a misspelt known: at most a third of it would have to be edited. */
bool word_resembles(const char *word, const char *known, unsigned *distance);

#endif
