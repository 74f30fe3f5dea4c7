/*
 * args: the command line of one command: its own flags, the flags that all have, and section.key=value.
 */
#ifndef PERCH_TOOLS_ARGS_H
#define PERCH_TOOLS_ARGS_H

#include "request_spec.h"
#include "tool.h"

enum flag_kind { FLAG_SWITCH, FLAG_TEXT };

struct flag {
    const char *name; /* without the dashes */
    enum flag_kind kind;
    void *to;        /* bool *, const char ** (into argv) */
    const char *arg; /* "TEXT"; NULL for a switch */
    const char *help;
};

struct command_args {
    const char *usage;   /* what follows "perch COMMAND" */
    const char *summary; /* what it does, in a few lines */
    const struct flag *flags;
    size_t n_flags;
    struct request_spec *spec;       /* has the flags of a request too, or NULL */
    const char *const *spec_without; /* fields of a request that the command has no flag for, closed by NULL; or NULL */
    const char **word;               /* gets the one word that is no flag and no key; or NULL: there is none */
    bool runs_engine;                /* has --stats and --trace */
    bool is_bench;                   /* FILE.ini stands alone, [bench] keys count, --json takes a file */
};

/*
 * Parses argv[1..argc) into tool and the flags' targets, and reads the INI file. False: there is nothing more to do (help
 * or the configuration was printed, or an error); then *code is the exit code.
 */
bool args_parse(struct tool *tool, int argc, char **argv, const struct command_args *args, int *code);

#endif
