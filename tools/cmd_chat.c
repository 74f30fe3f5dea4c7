/*
 * perch chat: a conversation with the model, one line a turn. The whole of it stays in one sequence, so that a turn
 * computes nothing but what is new.
 */
#include "args.h"
#include "commands.h"
#include "completion.h"
#include "interrupt.h"
#include "json_out.h"
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct chat {
    struct tool tool;
    struct request_spec spec;
    const char *system;
    const char *format;
    uint32_t session_len;
    bool prompts; /* somebody is there to read a prompt */
    perch_sequence_id sequence;
    perch_event event;
    struct completion answer; /* collected for --json */
    bool any_failed;          /* a turn had no answer, or not all of it */
    struct tokens tokens;
    char *line;
    size_t line_cap;
};

static void note(const struct chat *chat, const char *text) {
    if (chat->prompts) {
        fprintf(stderr, "%s\n", text);
    }
}

static int reset(struct chat *chat) {
    perch_error err = {.status = PERCH_OK};
    if (chat->sequence != 0) {
        perch_sequence_close(chat->tool.engine, chat->sequence, NULL);
        chat->sequence = 0;
    }
    return perch_sequence_open(chat->tool.engine, &chat->sequence, &err) == PERCH_OK
               ? EXIT_DONE
               : tool_fail_status(&chat->tool, &err);
}

/* ---------------------------------------------------------------- a turn -- */

/* The turn's tokens: the user's words in the model's chat format, and before the first the system's. */
static perch_status encode_turn(struct chat *chat, const char *words, bool first, perch_error *err) {
    perch_chat_message messages[2];
    size_t n = 0;
    if (first && chat->system != NULL) {
        messages[n++] = (perch_chat_message){"system", chat->system};
    }
    messages[n++] = (perch_chat_message){"user", words};
    struct text text = {0};
    const perch_tokenizer *tokenizer = chat->tool.tokenizer;
    uint32_t flags = PERCH_ENCODE_SPECIAL | (first ? PERCH_ENCODE_BOS : 0u);
    chat->tokens.n = 0;
    perch_status status = text_chat(&text, tokenizer, chat->format, messages, n, first ? 1 : 0, err);
    if (status == PERCH_OK) {
        status = tokens_encode(&chat->tokens, tokenizer, text.data, text.n_bytes, flags, err);
    }
    text_free(&text);
    return status;
}

static perch_status submit(struct chat *chat, const char *words, perch_request_id *id, perch_error *err) {
    perch_sequence_info info = {.struct_size = sizeof(info)};
    perch_request request;
    perch_status status = perch_request_init(chat->tool.engine, &request, sizeof(request));
    if (status != PERCH_OK) {
        return tool_error(err, status, "perch.h and libperch do not match");
    }
    status = perch_sequence_state(chat->tool.engine, chat->sequence, &info, err);
    status = status != PERCH_OK ? status : encode_turn(chat, words, info.n_tokens == 0, err);
    if (status != PERCH_OK) {
        return status;
    }
    spec_apply(&chat->spec, &request);
    request.sequence = chat->sequence;
    request.tokens = chat->tokens.ids;
    request.n_tokens = chat->tokens.n;
    request.max_tokens = spec_max_tokens(&chat->spec, chat->session_len, info.n_tokens, chat->tokens.n);
    status = spec_check_length("line", chat->session_len, info.n_tokens, chat->tokens.n, request.max_tokens, err);
    return status != PERCH_OK ? status : perch_submit(chat->tool.engine, &request, id, err);
}

/* The next turn begins behind an end-of-sequence token, so an answer that was cut short gets one. */
static perch_status close_answer(struct chat *chat, perch_finish finish, perch_error *err) {
    int32_t eos = perch_tokenizer_eos(chat->tool.tokenizer);
    if (finish == PERCH_FINISH_EOS || eos < 0) {
        return PERCH_OK;
    }
    perch_status status = perch_sequence_append(chat->tool.engine, chat->sequence, &eos, 1, err);
    return status == PERCH_E_TOO_LONG ? PERCH_OK : status;
}

/* With --json an answer is a line, as in batch, when it is whole; else its text is streamed. */
static int take_event(struct chat *chat) {
    const perch_event *event = &chat->event;
    perch_error err = {.status = PERCH_OK};
    bool done = event->type == PERCH_EVENT_DONE;
    if (!chat->tool.json) {
        int code = tool_write(&chat->tool, event->text, event->text_bytes, true);
        return code == EXIT_DONE && done ? tool_write(&chat->tool, "\n", 1, true) : code;
    }
    if (completion_add(&chat->answer, event, &err) != PERCH_OK) {
        return tool_fail_status(&chat->tool, &err);
    }
    if (!done) {
        return EXIT_DONE;
    }
    json_t *line = completion_json(&chat->answer);
    if (line != NULL && json_object_set_new(line, "usage", completion_usage(&chat->answer, 1)) != 0) {
        json_decref(line);
        line = NULL;
    }
    completion_free(&chat->answer);
    return tool_write_json(&chat->tool, line, false);
}

/* Streams an answer; Ctrl-C ends it. */
static int stream_answer(struct chat *chat, perch_request_id id, perch_finish *finish) {
    perch_engine *engine = chat->tool.engine;
    perch_error err = {.status = PERCH_OK};
    for (;;) {
        interrupt_wait(engine, -1, -1);
        if (interrupt_came()) {
            interrupt_clear();
            perch_cancel(engine, id, NULL);
        }
        perch_status status = perch_next(engine, &chat->event, 0, &err);
        if (status == PERCH_E_TIMEOUT) {
            continue;
        }
        if (status != PERCH_OK) {
            return tool_fail_status(&chat->tool, &err);
        }
        int code = take_event(chat);
        if (code != EXIT_DONE || chat->event.type == PERCH_EVENT_DONE) {
            *finish = chat->event.finish;
            return code;
        }
    }
}

/* A turn that does not fit is no reason to end: after /reset others do. With --json its line says so too. */
static int refuse_turn(struct chat *chat, const perch_error *why) {
    chat->any_failed = true;
    tool_fail(&chat->tool, EXIT_RUN, "%s; /reset begins a new conversation", why->message);
    return !chat->tool.json
               ? EXIT_DONE
               : tool_write_json(&chat->tool,
                                 json_pack("{s:{s:s, s:o}}", "error", "status", perch_status_name(why->status),
                                           "message", json_text(why->message, strlen(why->message))),
                                 false);
}

static int turn(struct chat *chat, const char *words) {
    perch_error err = {.status = PERCH_OK};
    perch_request_id id = 0;
    perch_status status = submit(chat, words, &id, &err);
    if (status == PERCH_E_TOO_LONG) {
        return refuse_turn(chat, &err);
    }
    if (status != PERCH_OK) {
        return tool_fail_status(&chat->tool, &err);
    }
    perch_finish finish = PERCH_FINISH_NONE;
    int code = stream_answer(chat, id, &finish);
    if (code != EXIT_DONE) {
        return code;
    }
    if (finish == PERCH_FINISH_ERROR) {
        chat->any_failed = true;
        tool_fail(&chat->tool, EXIT_RUN, "%s", tool_event_error(&chat->event));
    }
    if (finish == PERCH_FINISH_LENGTH) {
        note(chat, "(cut off at max_tokens)");
    }
    return close_answer(chat, finish, &err) == PERCH_OK ? EXIT_DONE : tool_fail_status(&chat->tool, &err);
}

/* -------------------------------------------------------------- the loop -- */

/* False at the end of the input. Ctrl-C at the prompt drops what was typed. */
static bool read_line(struct chat *chat) {
    for (;;) {
        if (chat->prompts) {
            fputs("> ", stderr);
        }
        errno = 0;
        ssize_t n = getline(&chat->line, &chat->line_cap, stdin);
        if (n >= 0) {
            while (n > 0 && (chat->line[n - 1] == '\n' || chat->line[n - 1] == '\r')) {
                chat->line[--n] = '\0';
            }
            return true;
        }
        if (errno != EINTR) {
            return false;
        }
        clearerr(stdin);
        interrupt_clear();
        note(chat, "\n(/exit or Ctrl-D leaves)");
    }
}

static int show_stats(struct chat *chat) {
    perch_sequence_info info = {.struct_size = sizeof(info)};
    perch_error err = {.status = PERCH_OK};
    if (perch_sequence_state(chat->tool.engine, chat->sequence, &info, &err) != PERCH_OK) {
        return tool_fail_status(&chat->tool, &err);
    }
    fprintf(stderr, "conversation: %llu of %u tokens, %llu of them in the cache, evicted %llu times\n",
            (unsigned long long)info.n_tokens, chat->session_len, (unsigned long long)info.n_kv_tokens,
            (unsigned long long)info.n_evictions);
    bool shown = chat->tool.show_stats;
    chat->tool.show_stats = true;
    int code = tool_print_stats(&chat->tool);
    chat->tool.show_stats = shown;
    return code;
}

static int command(struct chat *chat, bool *leave) {
    if (strcmp(chat->line, "/exit") == 0) {
        *leave = true;
        return EXIT_DONE;
    }
    if (strcmp(chat->line, "/reset") == 0) {
        note(chat, "(a new conversation)");
        return reset(chat);
    }
    if (strcmp(chat->line, "/stats") == 0) {
        return show_stats(chat);
    }
    if (strcmp(chat->line, "/help") != 0) {
        fprintf(stderr, "unknown command %s\n", chat->line);
    }
    fputs("/help   this\n/reset  begin a new conversation\n/stats  what the engine did\n/exit   leave (or Ctrl-D)\n"
          "Ctrl-C  ends the answer\n",
          stderr);
    return EXIT_DONE;
}

static int talk(struct chat *chat) {
    struct tool *tool = &chat->tool;
    perch_plan plan = {.struct_size = sizeof(plan)};
    perch_error err = {.status = PERCH_OK};
    if (chat->spec.logprobs != SPEC_UNSET && !tool->json) {
        return tool_fail(tool, EXIT_USAGE, "--logprobs needs --json");
    }
    int code = tool_open_engine_with_text(tool);
    if (code != EXIT_DONE) {
        return code;
    }
    if (perch_engine_plan(tool->engine, &plan, &err) != PERCH_OK ||
        perch_event_init(&chat->event, sizeof(chat->event)) != PERCH_OK || interrupt_install(true, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    chat->session_len = plan.session_len;
    if (chat->spec.max_tokens >= (int64_t)plan.session_len) {
        return tool_fail(tool, EXIT_USAGE, "--max-tokens: %lld and a turn do not fit session_len = %u",
                         (long long)chat->spec.max_tokens, plan.session_len);
    }
    /* A format that isn't known is better found now than after the first words. */
    if (encode_turn(chat, "", true, &err) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    chat->prompts = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    note(chat, "/help lists the commands");
    code = reset(chat);
    bool leave = false;
    while (code == EXIT_DONE && !leave && read_line(chat)) {
        if (chat->line[0] == '/') {
            code = command(chat, &leave);
        } else if (chat->line[0] != '\0') {
            code = turn(chat, chat->line);
        }
    }
    code = code != EXIT_DONE ? code : tool_print_stats(tool);
    return code == EXIT_DONE && chat->any_failed ? EXIT_RUN : code;
}

int cmd_chat(int argc, char **argv) {
    struct chat chat = {0};
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    spec_init(&chat.spec);
    if (tool_init(&chat.tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&chat.tool, &err);
    }
    /* A turn has one answer, and the chat format is made of special tokens anyway. */
    static const char *const without[] = {"n", "special", NULL};
    const struct flag flags[] = {
        {"system", FLAG_TEXT, &chat.system, "TEXT", "the system message that the conversation begins with"},
        {"format", FLAG_TEXT, &chat.format, "NAME", "chatml, llama2, llama3, mistral, plain; default: the model's own"},
    };
    const struct command_args args = {
        .usage = "--model DIR [FLAGS] [section.key=value]...",
        .summary =
            "Talks to the model: a line is a turn, the answer is streamed to stdout. Works from a pipe as well; then\n"
            "nothing but the answers is printed. Ctrl-C ends an answer. Commands: /help /reset /stats /exit",
        .flags = flags,
        .n_flags = sizeof(flags) / sizeof(flags[0]),
        .spec = &chat.spec,
        .spec_without = without,
        .runs_engine = true,
    };
    if (args_parse(&chat.tool, argc, argv, &args, &code)) {
        code = talk(&chat);
    }
    if (chat.sequence != 0) {
        perch_sequence_close(chat.tool.engine, chat.sequence, NULL); /* else it would stay in a [store] */
    }
    free(chat.line);
    completion_free(&chat.answer);
    tokens_free(&chat.tokens);
    perch_event_clear(&chat.event);
    spec_free(&chat.spec);
    tool_end(&chat.tool);
    return code;
}
