/*
 * pattern_dialect: rewrites a regular expression of Oniguruma's Ruby dialect for PCRE2.
 *
 * Most of it is the same text with the same meaning and goes through. What is spelt otherwise or means something else
 * is replaced: \s and \S (PCRE2's white space has U+180E), \w and \b (Oniguruma's words are made of alphabetic
 * characters, marks, decimal digits and connectors, and outside a class of Latin-1's raised digits and fractions), \h
 * (a hexadecimal digit), \v (a vertical tab), \p of scripts, \uHHHH, {,n}, and the option m (the dot matches a
 * newline). What can't be said in PCRE2, or hardly occurs, is E_UNSUPPORTED: nested and intersected classes, {n,m}+
 * (in Ruby a repeat of a repeat, in PCRE2 possessive), options set in the middle, absence operators, calls.
 */
#include "engine/text/pattern.h"
#include "engine/text/utf8.h"

#include <stdlib.h>
#include <string.h>

#define SPACES "\\x09-\\x0d\\x{85}\\p{Z}"
#define CLASS_WORDS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORDS CLASS_WORDS "\\xb2\\xb3\\xb9\\xbc-\\xbe"
#define HEX "0-9A-Fa-f"

struct translation {
    const struct jnode *node;
    const char *text; /* [n] */
    size_t n, at;
    bool in_class;
    struct text_buf out;
    perch_error *err;
};

static perch_status refuse(const struct translation *t, const char *what) {
    return jnode_fail(t->node, PERCH_E_UNSUPPORTED, t->err, "regular expression: %s is not supported, at \"%.40s\"",
                      what, t->text + (t->at < t->n ? t->at : t->n));
}

static perch_status put(struct translation *t, const char *text) {
    return buf_append(&t->out, text, strlen(text), t->err);
}

/* Copies n bytes of the expression as they are. */
static perch_status copy(struct translation *t, size_t n) {
    perch_status status = buf_append(&t->out, t->text + t->at, n, t->err);
    t->at += n;
    return status;
}

static char look(const struct translation *t, size_t ahead) {
    return ahead < t->n - t->at ? t->text[t->at + ahead] : '\0';
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* An escape that stands for a set of characters. */
static perch_status put_set(struct translation *t, const char *set, bool negated) {
    perch_status status = PERCH_OK;
    t->at += 2;
    if (t->in_class) {
        return put(t, set);
    }
    status = put(t, negated ? "[^" : "[");
    if (status == PERCH_OK) {
        status = put(t, set);
    }
    return status == PERCH_OK ? put(t, "]") : status;
}

/* \uHHHH, and \xHH or \x{H...}; \x80 and above would be a byte, not a character. */
static perch_status translate_code(struct translation *t) {
    if (look(t, 1) == 'x' && look(t, 2) == '{') {
        return copy(t, 3);
    }
    size_t digits = 0, most = look(t, 1) == 'u' ? 4 : 2;
    while (digits < most && is_hex(look(t, 2 + digits))) {
        digits++;
    }
    if (look(t, 1) == 'x' && digits > 0 && (digits == 1 || look(t, 2) < '8')) {
        return copy(t, 2 + digits);
    }
    if (look(t, 1) != 'u' || digits != 4) {
        return refuse(t, "this character code");
    }
    t->at += 2;
    perch_status status = put(t, "\\x{");
    if (status == PERCH_OK) {
        status = copy(t, 4);
    }
    return status == PERCH_OK ? put(t, "}") : status;
}

/*
 * \p{Name} and \P{Name}, {^Name} being the other of the two. The name of a script is the script itself in Oniguruma,
 * and all that the script uses in PCRE2.
 */
static perch_status translate_property(struct translation *t) {
    static const char *const not_scripts[] = {"Any", "Alphabetic", "Lowercase", "Uppercase", "White_Space", "Emoji"};
    const char *name = t->text + t->at + 3;
    const char *end = look(t, 2) == '{' ? memchr(name, '}', t->n - t->at - 3) : NULL;
    bool negated = look(t, 1) == 'P';
    if (!end) {
        return refuse(t, "this property");
    }
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    size_t n = (size_t)(end - name);
    bool script = n > 2; /* the general categories have one letter or two */
    for (size_t i = 0; i < sizeof not_scripts / sizeof *not_scripts; i++) {
        script = script && !(n == strlen(not_scripts[i]) && memcmp(name, not_scripts[i], n) == 0);
    }
    perch_status status = put(t, negated ? "\\P{" : "\\p{");
    if (status == PERCH_OK && script) {
        status = put(t, "sc:");
    }
    if (status == PERCH_OK) {
        status = buf_append(&t->out, name, n + 1, t->err);
    }
    t->at = (size_t)(end - t->text) + 1;
    return status;
}

static perch_status translate_escape(struct translation *t) {
    char c = look(t, 1);
    if (t->at + 1 >= t->n) {
        return refuse(t, "a backslash at the end");
    }
    switch (c) {
    case 's':
        return put_set(t, SPACES, false);
    case 'S':
        if (!t->in_class) {
            return put_set(t, SPACES, true);
        }
        t->at += 2;
        return put(t, "\\S\\x{180e}");
    case 'w':
        return put_set(t, t->in_class ? CLASS_WORDS : WORDS, false);
    case 'h':
        return put_set(t, HEX, false);
    case 'W':
    case 'H':
        return t->in_class ? refuse(t, "this escape in a class") : put_set(t, c == 'W' ? WORDS : HEX, true);
    case 'v':
        t->at += 2;
        return put(t, "\\x0b");
    case 'b':
    case 'B':
        if (t->in_class) {
            return c == 'b' ? copy(t, 2) : refuse(t, "this escape in a class");
        }
        t->at += 2;
        return put(t, c == 'b' ? "(?:(?<=[" WORDS "])(?![" WORDS "])|(?<![" WORDS "])(?=[" WORDS "]))"
                               : "(?:(?<=[" WORDS "])(?=[" WORDS "])|(?<![" WORDS "])(?![" WORDS "]))");
    case 'u':
    case 'x':
        return translate_code(t);
    default:
        break;
    }
    if (is_digit(c) || (is_letter(c) && !strchr(t->in_class ? "dDpPntrfae" : "dDpPntrfaeAzZGkKRX", c))) {
        return refuse(t, "this escape");
    }
    if (c == 'p' || c == 'P') {
        return translate_property(t);
    }
    return copy(t, 1 + utf8_length(c));
}

/* What may stand within [ ], from behind the bracket to behind its end. */
static perch_status translate_class(struct translation *t) {
    perch_status status = copy(t, look(t, 1) == '^' ? 2 : 1);
    t->in_class = true;
    if (look(t, 0) == ']') {
        return refuse(t, "an empty class"); /* Oniguruma warns and takes it as a bracket, or as an error */
    }
    while (status == PERCH_OK && t->at < t->n && look(t, 0) != ']') {
        if (look(t, 0) == '\\') {
            status = translate_escape(t);
        } else if (look(t, 0) == '[' || (look(t, 0) == '&' && look(t, 1) == '&')) {
            status = refuse(t, "a class within a class");
        } else {
            status = copy(t, utf8_length(look(t, 0)));
        }
    }
    t->in_class = false;
    if (status == PERCH_OK && t->at == t->n) {
        return refuse(t, "a class without an end");
    }
    return status == PERCH_OK ? copy(t, 1) : status;
}

/* "(?imx-imx)" and "(?imx-imx:": i is the same, m is PCRE2's s. */
static perch_status translate_options(struct translation *t) {
    size_t end = 2;
    while (look(t, end) == 'i' || look(t, end) == 'm' || look(t, end) == '-') {
        end++;
    }
    if (look(t, end) == ')' && t->at > 0) {
        return refuse(t, "setting options in the middle");
    }
    if (look(t, end) != ')' && look(t, end) != ':') {
        return refuse(t, "this group");
    }
    perch_status status = copy(t, 2);
    for (size_t i = 2; i < end && status == PERCH_OK; i++) {
        if (look(t, 0) == 'm') {
            t->at++;
            status = put(t, "s");
        } else {
            status = copy(t, 1);
        }
    }
    return status == PERCH_OK ? copy(t, 1) : status;
}

static perch_status translate_group(struct translation *t) {
    if (look(t, 1) == '*') {
        return refuse(t, "a verb");
    }
    if (look(t, 1) != '?') {
        return copy(t, 1);
    }
    switch (look(t, 2)) {
    case ':':
    case '=':
    case '!':
    case '>':
        return copy(t, 3);
    case '<':
        return copy(t, look(t, 3) == '=' || look(t, 3) == '!' ? 4 : 3);
    default:
        return translate_options(t);
    }
}

/* {n}, {n,}, {,m} and {n,m} are quantifiers; any other brace is itself. */
static perch_status translate_brace(struct translation *t) {
    size_t low = 0, high = 0, end = 1;
    while (is_digit(look(t, end))) {
        end++;
        low++;
    }
    bool comma = look(t, end) == ',';
    for (end += comma; comma && is_digit(look(t, end)); end++) {
        high++;
    }
    if (look(t, end) != '}' || low + high == 0) {
        t->at++;
        return put(t, "\\{");
    }
    if (look(t, end + 1) == '+' || (look(t, end + 1) == '?' && !comma)) {
        return refuse(t, "a repeated interval");
    }
    perch_status status = copy(t, 1);
    if (status == PERCH_OK && low == 0) {
        status = put(t, "0");
    }
    return status == PERCH_OK ? copy(t, end) : status;
}

perch_status pattern_translate(const struct jnode *node, struct jtext expression, char **out, size_t *n,
                               perch_error *err) {
    struct translation t = {.node = node, .text = expression.data, .n = expression.n, .err = err};
    perch_status status = buf_reserve(&t.out, expression.n + 1, err);
    while (status == PERCH_OK && t.at < t.n) {
        switch (t.text[t.at]) {
        case '\\':
            status = translate_escape(&t);
            break;
        case '[':
            status = translate_class(&t);
            break;
        case '(':
            status = translate_group(&t);
            break;
        case '{':
            status = translate_brace(&t);
            break;
        default:
            status = copy(&t, utf8_length(t.text[t.at]));
        }
    }
    if (status == PERCH_OK) {
        status = buf_append(&t.out, "", 1, err); /* closed by a 0, for messages */
    }
    if (status != PERCH_OK) {
        free(t.out.data);
        return status;
    }
    *out = t.out.data;
    *n = t.out.n - 1;
    return PERCH_OK;
}
