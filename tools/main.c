/*
 * main: finds the command.
 */
#include "commands.h"
#include "config.h"
#include "tool.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"generate", cmd_generate, "continue a prompt"},
    {"chat", cmd_chat, "talk to the model"},
    {"batch", cmd_batch, "run many requests: JSON lines in, JSON lines out"},
    {"score", cmd_score, "log-likelihood of texts"},
    {"tokenize", cmd_tokenize, "text to token ids, and back"},
    {"plan", cmd_plan, "what memory a model needs, and what fits"},
    {"bench", cmd_bench, "measure, as an INI file says"},
    {"top", cmd_top, "watch what engines on this machine do"},
};
enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static int print_help(const struct tool *tool) {
    printf("usage: perch COMMAND [FLAGS] [section.key=value]...\n\n"
           "Serves LLaMA-family language models to many conversations at once.\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++) {
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    }
    printf("\n  perch COMMAND --help   the command's flags\n"
           "  perch --keys           all configuration keys\n"
           "  perch --version\n\n"
           "Exit code: 0 = done, 1 = failed, 2 = a wrong flag, file, key or value, 130 = interrupted.\n");
    return tool_flush(tool);
}

static int run(const struct tool *tool, int argc, char **argv) {
    if (argc < 2) {
        return tool_fail(tool, EXIT_USAGE, "no command given (see perch --help)");
    }
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        return print_help(tool);
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("perch %s\n", perch_version());
        return tool_flush(tool);
    }
    if (strcmp(argv[1], "--keys") == 0) {
        return config_print_keys(tool);
    }
    return tool_fail(tool, EXIT_USAGE, "unknown %s '%s' (see perch --help)", argv[1][0] == '-' ? "flag" : "command",
                     argv[1]);
}

int main(int argc, char **argv) {
    /* A reader that goes away is an error of the write, not the end of the process. */
    signal(SIGPIPE, SIG_IGN);
    struct tool tool;
    perch_error err = {.status = PERCH_OK};
    if (tool_init(&tool, "", &err) != PERCH_OK) {
        return tool_fail(&tool, EXIT_RUN, "%s", err.message);
    }
    return run(&tool, argc, argv);
}
