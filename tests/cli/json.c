/*
 * json: what the scripts ask of JSON.  usage: cli_json PATH... < JSON LINES
 *
 * For each line (or one document over several) prints the values at the paths, separated by tabs: strings as they are, whole
 * numbers and true, false, null as in JSON, reals with 9 digits, arrays and objects as compact JSON. A path is names and
 * numbers between dots: usage.cached_tokens, tokens.0, runs.0.ttft_ms.p50; "." is the whole, "#" at its end the size, a path
 * that leads nowhere prints "-". Exit code 1: not JSON.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_value(const json_t *value) {
    if (value == NULL) {
        putchar('-');
    } else if (json_is_string(value)) {
        fwrite(json_string_value(value), 1, json_string_length(value), stdout);
    } else if (json_is_real(value)) {
        printf("%.9g", json_real_value(value));
    } else {
        json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    }
}

static void print_path(const json_t *value, const char *path) {
    char name[128];
    while (*path != '\0' && value != NULL) {
        size_t length = strcspn(path, ".");
        snprintf(name, sizeof(name), "%.*s", (int)length, path);
        path += path[length] == '.' ? length + 1 : length;
        if (strcmp(name, "#") == 0) {
            printf("%zu", json_is_array(value) ? json_array_size(value) : json_object_size(value));
            return;
        }
        if (length > 0) {
            value =
                json_is_array(value) ? json_array_get(value, strtoul(name, NULL, 10)) : json_object_get(value, name);
        }
    }
    print_value(value);
}

int main(int argc, char **argv) {
    json_error_t error;
    json_t *json;
    while ((json = json_loadf(stdin, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL | JSON_DECODE_ANY, &error)) != NULL) {
        for (int i = 1; i < argc; i++) {
            print_path(json, argv[i]);
            putchar(i + 1 < argc ? '\t' : '\n');
        }
        json_decref(json);
        int c = getchar();
        while (c == '\n' || c == ' ' || c == '\r' || c == '\t') {
            c = getchar();
        }
        if (c == EOF) {
            return 0;
        }
        ungetc(c, stdin);
    }
    if (json_error_code(&error) == json_error_premature_end_of_input && feof(stdin)) {
        fprintf(stderr, "cli_json: no JSON\n");
    } else {
        fprintf(stderr, "cli_json: line %d: %s\n", error.line, error.text);
    }
    return 1;
}
