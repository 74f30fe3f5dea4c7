/*
 * args: the command line of one command: its own flags, the flags that all have, and section.key=value.
 *
 * The INI file is read first wherever --config stands; keys, --model among them, are set after it in their order.
 */
#include "args.h"

#include "config.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct override {
    const char *assignment; /* "section.key=value" in argv, or the key that a flag stands for */
    const char *value;
};

struct parser {
    struct tool *tool;
    const struct command_args *args;
    int argc;
    char **argv;
    int at;
    const char *config;
    struct override *overrides;
    size_t n_overrides;
    bool help;
    bool print_config;
    int code;
};

static const struct flag common_flags[] = {
    {"model", FLAG_TEXT, NULL, "DIR", "the model: a Hugging Face directory (the same as model.path=DIR)"},
    {"config", FLAG_TEXT, NULL, "FILE", "an INI file with keys that perch --keys lists"},
    {"print-config", FLAG_SWITCH, NULL, NULL, "print the configuration that would be used, as an INI file, and end"},
    {"help", FLAG_SWITCH, NULL, NULL, "print this and end"},
};
static const struct flag json_switch = {"json", FLAG_SWITCH, NULL, NULL, "print JSON instead of text"};
static const struct flag json_file = {"json", FLAG_TEXT, NULL, "OUT", "write the results as JSON to OUT (- = stdout)"};
static const struct flag stats_flag = {"stats", FLAG_SWITCH, NULL, NULL,
                                       "print the engine's statistics to stderr at the end"};

static const struct flag trace_flag = {"trace", FLAG_TEXT, NULL, "FILE",
                                       "write what the engine does to FILE, for ui.perfetto.dev"};

static bool fail(struct parser *parser, const char *format, const char *detail) __attribute__((format(printf, 2, 0)));

static bool fail(struct parser *parser, const char *format, const char *detail) {
    char message[768];
    snprintf(message, sizeof(message), format, detail);
    parser->code = tool_fail(parser->tool, EXIT_USAGE, "%s (see perch %s --help)", message, parser->tool->command);
    return false;
}

/* ------------------------------------------------------------------ help -- */

static void print_flag(const char *name, const char *arg, const char *help) {
    char left[64];
    snprintf(left, sizeof(left), "%s%s%s%s", strlen(name) == 1 ? "-" : "--", name, arg != NULL ? " " : "",
             arg != NULL ? arg : "");
    for (char *c = left; *c != '\0' && *c != ' '; c++) {
        *c = *c == '_' ? '-' : *c;
    }
    printf("  %-26s %s\n", left, help);
}

static bool has_field(const struct command_args *args, size_t field) {
    for (const char *const *name = args->spec_without; name != NULL && *name != NULL; name++) {
        if (strcmp(*name, spec_field(field)->name) == 0) {
            return false;
        }
    }
    return true;
}

static void print_help(const struct parser *parser) {
    const struct command_args *args = parser->args;
    printf("usage: perch %s %s\n\n%s\n\n", parser->tool->command, args->usage, args->summary);
    for (size_t i = 0; i < args->n_flags; i++) {
        print_flag(args->flags[i].name, args->flags[i].arg, args->flags[i].help);
    }
    const struct spec_field *field;
    for (size_t i = 0; args->spec != NULL && (field = spec_field(i)) != NULL; i++) {
        if (has_field(args, i)) {
            print_flag(field->name, field->arg, field->help);
        }
    }
    if (args->n_flags > 0 || args->spec != NULL) {
        printf("\n");
    }
    for (size_t i = 0; i < sizeof(common_flags) / sizeof(common_flags[0]); i++) {
        print_flag(common_flags[i].name, common_flags[i].arg, common_flags[i].help);
    }
    const struct flag *json = args->is_bench ? &json_file : &json_switch;
    print_flag(json->name, json->arg, json->help);
    if (args->runs_engine) {
        print_flag(stats_flag.name, stats_flag.arg, stats_flag.help);
        print_flag(trace_flag.name, trace_flag.arg, trace_flag.help);
    }
    printf("  %-26s %s\n", "section.key=value", "a key of the configuration; perch --keys lists them all");
}

/* ----------------------------------------------------------------- parse -- */

/* The name of the flag at argv[at] without its dashes, in name; what follows '=' in *value or NULL. */
static bool split_flag(struct parser *parser, char *name, size_t cap, const char **value) {
    const char *word = parser->argv[parser->at];
    const char *start = word + (word[1] == '-' ? 2 : 1);
    size_t length = strcspn(start, "=");
    bool one_dash = word[1] != '-';
    if (length == 0 || length >= cap || (one_dash && length != 1)) {
        return fail(parser, "unknown flag '%s'", word);
    }
    memcpy(name, start, length);
    name[length] = '\0';
    if (one_dash && name[0] == 'h') {
        snprintf(name, cap, "help");
    }
    *value = start[length] == '=' ? start + length + 1 : NULL;
    return true;
}

/* Gives the flag its value: what followed '=' or the next word. */
static bool take_value(struct parser *parser, const char *name, bool wanted, const char **value) {
    if (!wanted && *value != NULL) {
        return fail(parser, "--%s takes no value", name);
    }
    if (wanted && *value == NULL) {
        if (parser->at + 1 >= parser->argc) {
            return fail(parser, strlen(name) == 1 ? "-%s needs a value" : "--%s needs a value", name);
        }
        *value = parser->argv[++parser->at];
    }
    return true;
}

static bool set_config_file(struct parser *parser, const char *file) {
    if (parser->config != NULL) {
        return fail(parser, "a second configuration file: '%s'", file);
    }
    parser->config = file;
    return true;
}

static bool parse_spec_flag(struct parser *parser, const char *name, int field, const char *value) {
    const struct spec_field *info = spec_field((size_t)field);
    perch_error err = {.status = PERCH_OK};
    if (!take_value(parser, name, info->arg != NULL, &value)) {
        return false;
    }
    if (spec_set_text(parser->args->spec, field, value, &err) != PERCH_OK) {
        char message[640];
        snprintf(message, sizeof(message), "%s%s: %s", strlen(name) == 1 ? "-" : "--", name, err.message);
        return fail(parser, "%s", message);
    }
    return true;
}

static const struct flag *find_flag(const struct flag *flags, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(flags[i].name, name) == 0) {
            return &flags[i];
        }
    }
    return NULL;
}

static bool parse_common_flag(struct parser *parser, const char *name, const char *value) {
    struct tool *tool = parser->tool;
    const struct command_args *args = parser->args;
    const struct flag *flag = find_flag(common_flags, sizeof(common_flags) / sizeof(common_flags[0]), name);
    if (flag == NULL && strcmp(name, "json") == 0) {
        flag = args->is_bench ? &json_file : &json_switch;
    }
    if (flag == NULL && args->runs_engine && strcmp(name, "stats") == 0) {
        flag = &stats_flag;
    }
    if (flag == NULL && args->runs_engine && strcmp(name, "trace") == 0) {
        flag = &trace_flag;
    }
    if (flag == NULL) {
        return fail(parser, "unknown flag '%s'", parser->argv[parser->at]);
    }
    if (!take_value(parser, name, flag->kind == FLAG_TEXT, &value)) {
        return false;
    }
    if (flag == &json_file) {
        tool->json_file = value;
    } else if (flag == &json_switch) {
        tool->json = true;
    } else if (flag == &stats_flag) {
        tool->show_stats = true;
    } else if (strcmp(name, "model") == 0) {
        parser->overrides[parser->n_overrides++] = (struct override){"model.path", value};
    } else if (flag == &trace_flag) {
        parser->overrides[parser->n_overrides++] = (struct override){"engine.trace_file", value};
    } else if (strcmp(name, "config") == 0) {
        return set_config_file(parser, value);
    } else if (strcmp(name, "help") == 0) {
        parser->help = true;
    } else {
        parser->print_config = true;
    }
    return true;
}

static bool parse_flag(struct parser *parser) {
    const struct command_args *args = parser->args;
    char name[64];
    const char *value = NULL;
    if (!split_flag(parser, name, sizeof(name), &value)) {
        return false;
    }
    const struct flag *flag = find_flag(args->flags, args->n_flags, name);
    int field = args->spec != NULL && flag == NULL ? spec_find(name) : -1;
    if (field >= 0 && has_field(args, (size_t)field)) {
        return parse_spec_flag(parser, name, field, value);
    }
    if (flag == NULL) {
        return parse_common_flag(parser, name, value);
    }
    if (!take_value(parser, name, flag->kind == FLAG_TEXT, &value)) {
        return false;
    }
    if (flag->kind == FLAG_TEXT) {
        *(const char **)flag->to = value;
    } else {
        *(bool *)flag->to = true;
    }
    return true;
}

/* section.key=value */
static bool is_assignment(const char *word) {
    size_t section = strspn(word, "abcdefghijklmnopqrstuvwxyz_");
    if (section == 0 || word[section] != '.') {
        return false;
    }
    size_t key = strcspn(word + section + 1, "=./");
    return key > 0 && word[section + 1 + key] == '=';
}

static bool parse_words(struct parser *parser) {
    for (parser->at = 1; parser->at < parser->argc; parser->at++) {
        const char *word = parser->argv[parser->at];
        if (word[0] == '-' && word[1] != '\0') {
            if (!parse_flag(parser)) {
                return false;
            }
        } else if (is_assignment(word)) {
            parser->overrides[parser->n_overrides++] = (struct override){word, strchr(word, '=') + 1};
        } else if (parser->args->is_bench) {
            if (!set_config_file(parser, word)) {
                return false;
            }
        } else if (parser->args->word != NULL && *parser->args->word == NULL) {
            *parser->args->word = word;
        } else {
            return fail(parser, "unexpected argument '%s'", word);
        }
    }
    return true;
}

static bool apply(struct parser *parser) {
    struct tool *tool = parser->tool;
    tool->config_file = parser->config;
    perch_error err = {.status = PERCH_OK};
    perch_status status = parser->config != NULL ? config_load(tool, parser->config, &err) : PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < parser->n_overrides; i++) {
        const struct override *override = &parser->overrides[i];
        char key[128];
        snprintf(key, sizeof(key), "%.*s", (int)strcspn(override->assignment, "="), override->assignment);
        status = config_set(tool, key, override->value, parser->args->is_bench, &err);
    }
    if (status != PERCH_OK) {
        parser->code = tool_fail(tool, status == PERCH_E_NOMEM ? EXIT_RUN : EXIT_USAGE, "%s", err.message);
    }
    return status == PERCH_OK;
}

bool args_parse(struct tool *tool, int argc, char **argv, const struct command_args *args, int *code) {
    struct parser parser = {.tool = tool, .args = args, .argc = argc, .argv = argv};
    parser.overrides = calloc((size_t)argc + 1, sizeof(*parser.overrides));
    if (parser.overrides == NULL) {
        *code = tool_fail(tool, EXIT_RUN, "out of memory");
        return false;
    }
    bool go_on = parse_words(&parser);
    if (go_on && parser.help) {
        print_help(&parser);
        parser.code = tool_flush(tool);
        go_on = false;
    }
    go_on = go_on && apply(&parser);
    if (go_on && parser.print_config) {
        parser.code = config_print(tool, args->is_bench);
        go_on = false;
    }
    free(parser.overrides);
    *code = parser.code;
    return go_on;
}
