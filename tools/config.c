/*
 * config: a command's configuration from an INI file and from section.key=value, and back.
 */
#include "config.h"

#include "json_out.h"
#include "table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct ini_reader {
    struct bench_config *bench;
    const char *file;
};

/* A relative trace is taken from the INI file's folder, as the library does with the model's path. */
static perch_status set_trace(const struct ini_reader *reader, const char *value, perch_error *err) {
    const char *slash = strrchr(reader->file, '/');
    if (value[0] == '/' || value[0] == '\0' || slash == NULL) {
        return bench_config_set(reader->bench, "trace", value, err);
    }
    char path[PERCH_PATH_CAP + 1];
    snprintf(path, sizeof(path), "%.*s/%s", (int)(slash - reader->file), reader->file, value);
    return bench_config_set(reader->bench, "trace", path, err);
}

static perch_status bench_key(void *user, const char *section, const char *key, const char *value, perch_error *err) {
    struct ini_reader *reader = user;
    if (strcmp(section, "bench") != 0) {
        return PERCH_E_NOT_FOUND;
    }
    if (strcmp(key, "trace") == 0) {
        return set_trace(reader, value, err);
    }
    return bench_config_set(reader->bench, key, value, err);
}

perch_status config_load(struct tool *tool, const char *file, perch_error *err) {
    struct ini_reader reader = {&tool->bench, file};
    perch_ini_host host = {.key = bench_key, .user = &reader};
    return perch_options_load_ini(&tool->options, file, &host, err);
}

perch_status config_set(struct tool *tool, const char *section_key, const char *value, bool with_bench,
                        perch_error *err) {
    if (strncmp(section_key, "bench.", 6) != 0) {
        return perch_options_set(&tool->options, section_key, value, err);
    }
    if (!with_bench) {
        return tool_error(err, PERCH_E_CONFIG, "[bench] %s: does nothing here", section_key + 6);
    }
    perch_error reason = {.status = PERCH_OK};
    perch_status status = bench_config_set(&tool->bench, section_key + 6, value, &reason);
    return status == PERCH_OK ? PERCH_OK
                              : tool_error(err, PERCH_E_CONFIG, "[bench] %s: %s", section_key + 6, reason.message);
}

/* So that what is printed means the same wherever it is saved. */
static void make_absolute(char *path, size_t cap) {
    char folder[PERCH_PATH_CAP];
    char whole[2 * PERCH_PATH_CAP];
    if (path[0] == '/' || path[0] == '\0' || getcwd(folder, sizeof(folder)) == NULL) {
        return;
    }
    if (snprintf(whole, sizeof(whole), "%s/%s", folder, path) < (int)cap) {
        memcpy(path, whole, strlen(whole) + 1);
    }
}

json_t *config_json(const struct tool *tool, bool with_bench) {
    perch_options options = tool->options;
    make_absolute(options.path, sizeof(options.path));
    make_absolute(options.tokenizer_path, sizeof(options.tokenizer_path));
    if (strcmp(options.stats_file, "auto") != 0) {
        make_absolute(options.stats_file, sizeof(options.stats_file));
    }
    make_absolute(options.trace_file, sizeof(options.trace_file));
    make_absolute(options.store_path, sizeof(options.store_path));
    make_absolute(options.store_password_file, sizeof(options.store_password_file));
    json_t *sections = json_options(&options);
    if (sections == NULL || !with_bench) {
        return sections;
    }
    struct bench_config bench = tool->bench;
    make_absolute(bench.trace, sizeof(bench.trace));
    json_t *section = json_object();
    bool failed = json_object_set_new(sections, "bench", section) != 0;
    const struct bench_key *key;
    for (size_t i = 0; !failed && (key = bench_config_key(i)) != NULL; i++) {
        if (bench_config_reads(&bench, key)) {
            char value[PERCH_PATH_CAP];
            bench_config_get(&bench, i, value, sizeof(value));
            failed = json_object_set_new(section, key->key, json_value(value)) != 0;
        }
    }
    if (failed) {
        json_decref(sections);
        return NULL;
    }
    return sections;
}

static void print_value(const json_t *value) {
    const char *text = json_string_value(value);
    if (json_is_string(value)) {
        /* Quotes keep what would begin a comment. */
        fputs(strpbrk(text, ";# ") != NULL ? "\"" : "", stdout);
        fputs(text, stdout);
        fputs(strpbrk(text, ";# ") != NULL ? "\"" : "", stdout);
    } else if (json_is_integer(value)) {
        printf("%lld", (long long)json_integer_value(value));
    } else {
        printf("%.15g", json_real_value(value));
    }
}

int config_print(struct tool *tool, bool with_bench) {
    json_t *sections = config_json(tool, with_bench);
    if (sections == NULL || tool->json) {
        return tool_write_json(tool, sections, true);
    }
    const char *section;
    const char *key;
    json_t *keys;
    json_t *value;
    bool first = true;
    json_object_foreach(sections, section, keys) {
        printf("%s[%s]\n", first ? "" : "\n", section);
        first = false;
        json_object_foreach(keys, key, value) {
            printf("%s = ", key);
            print_value(value);
            putchar('\n');
        }
    }
    json_decref(sections);
    return tool_flush(tool);
}

static perch_status add_key(struct table *table, const char *name, const char *type, const char *range,
                            const char *value, const char *help) {
    const char *const cells[] = {name, type, range, value, help};
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < sizeof(cells) / sizeof(cells[0]); i++) {
        status = table_cell(table, NULL, "%s", cells[i]);
    }
    return status;
}

int config_print_keys(const struct tool *tool) {
    struct table table;
    table_init(&table, 5);
    perch_status status = add_key(&table, "key", "type", "range", "default", "meaning");
    char name[128];
    const perch_option_info *info;
    for (size_t i = 0; status == PERCH_OK && (info = perch_options_key(i)) != NULL; i++) {
        snprintf(name, sizeof(name), "%s.%s", info->section, info->key);
        status = add_key(&table, name, info->type, info->range, info->default_value, info->help);
    }
    struct bench_config bench;
    bench_config_init(&bench);
    const struct bench_key *key;
    for (size_t i = 0; status == PERCH_OK && (key = bench_config_key(i)) != NULL; i++) {
        char value[PERCH_PATH_CAP];
        bench_config_get(&bench, i, value, sizeof(value));
        snprintf(name, sizeof(name), "bench.%s", key->key);
        status = add_key(&table, name, key->type, key->range, value, key->help);
    }
    if (status == PERCH_OK) {
        table_print(&table, stdout);
    }
    table_free(&table);
    return status == PERCH_OK ? tool_flush(tool) : tool_fail(tool, EXIT_RUN, "out of memory");
}
