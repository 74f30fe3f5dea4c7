/*
 * perch tokenize: text on stdin to one JSON array on stdout, and the way back.
 */
#include "args.h"
#include "commands.h"
#include "json_out.h"

#include <unistd.h>

struct tokenize {
    struct tool tool;
    bool bos, special, decode;
    perch_tokenizer *tokenizer;
    struct text input;
    struct text output;
    struct tokens tokens;
};

static int encode(struct tokenize *run) {
    perch_error err = {.status = PERCH_OK};
    uint32_t flags = (run->bos ? PERCH_ENCODE_BOS : 0u) | (run->special ? PERCH_ENCODE_SPECIAL : 0u);
    if (tokens_encode(&run->tokens, run->tokenizer, run->input.data, run->input.n_bytes, flags, &err) != PERCH_OK) {
        return tool_fail_status(&run->tool, &err);
    }
    return tool_write_json(&run->tool, json_tokens(run->tokens.ids, run->tokens.n), false);
}

static perch_status read_ids(struct tokenize *run, perch_error *err) {
    json_error_t where;
    json_t *array = json_loadb(run->input.data, run->input.n_bytes, 0, &where);
    if (array == NULL) {
        return tool_error(err, PERCH_E_FORMAT, "stdin is not JSON: %s (line %d)", where.text, where.line);
    }
    int32_t n_ids = perch_tokenizer_n_tokens(run->tokenizer);
    perch_status status = PERCH_OK;
    if (!json_is_array(array)) {
        status = tool_error(err, PERCH_E_FORMAT, "stdin is not a JSON array");
    }
    for (size_t i = 0; status == PERCH_OK && i < json_array_size(array); i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id >= n_ids) {
            status = tool_error(err, PERCH_E_FORMAT, "element %zu is not a token id (0..%d)", i, n_ids - 1);
        } else {
            int32_t token = (int32_t)id;
            status = tokens_add(&run->tokens, &token, 1, err);
        }
    }
    json_decref(array);
    return status;
}

static int decode(struct tokenize *run) {
    perch_error err = {.status = PERCH_OK};
    uint32_t flags = run->special ? PERCH_DECODE_SPECIAL : 0u;
    perch_status status = read_ids(run, &err);
    if (status == PERCH_OK) {
        status = text_decode(&run->output, run->tokenizer, run->tokens.ids, run->tokens.n, flags, &err);
    }
    if (status == PERCH_OK && isatty(STDOUT_FILENO)) {
        status = text_add(&run->output, "\n", 1, &err);
    }
    if (status != PERCH_OK) {
        return tool_fail_status(&run->tool, &err);
    }
    return tool_write(&run->tool, run->output.data, run->output.n_bytes, true);
}

static int tokenize(struct tokenize *run) {
    struct tool *tool = &run->tool;
    perch_error err = {.status = PERCH_OK};
    const perch_options *options = &tool->options;
    const char *path = options->tokenizer_path[0] != '\0' ? options->tokenizer_path : options->path;
    if (path[0] == '\0') {
        return tool_fail(tool, EXIT_USAGE, "no model given (--model DIR)");
    }
    perch_status status = perch_tokenizer_create(path, &run->tokenizer, &err);
    status = status != PERCH_OK ? status : text_read(&run->input, stdin, "stdin", &err);
    if (status != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    return run->decode ? decode(run) : encode(run);
}

int cmd_tokenize(int argc, char **argv) {
    struct tokenize run = {0};
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    if (tool_init(&run.tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&run.tool, &err);
    }
    const struct flag flags[] = {
        {"bos", FLAG_SWITCH, &run.bos, NULL, "as a prompt begins: BOS (and EOS, if the model says so) is added"},
        {"special", FLAG_SWITCH, &run.special, NULL, "special tokens written out in the text are tokens, both ways"},
        {"decode", FLAG_SWITCH, &run.decode, NULL, "the way back: a JSON array on stdin, text on stdout"},
    };
    const struct command_args args = {
        .usage = "--model DIR [FLAGS] < TEXT",
        .summary = "Prints the token ids of the text on stdin as one JSON array.",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
    };
    if (args_parse(&run.tool, argc, argv, &args, &code)) {
        code = tokenize(&run);
    }
    text_free(&run.input);
    text_free(&run.output);
    tokens_free(&run.tokens);
    perch_tokenizer_destroy(run.tokenizer);
    tool_end(&run.tool);
    return code;
}
