/*
 * demo_data: the conversations of the demo, with the answers that are right.
 *
 * A line of the file is a JSON object {"name", "turns": [{"user", "assistant", "check"}, …]}: `assistant` is the whole right
 * answer, `check` a word that must be in it because the user told it before, or null.
 */
#ifndef PERCH_TOOLS_DEMO_DATA_H
#define PERCH_TOOLS_DEMO_DATA_H

#include "perch/perch.h"

#include <jansson.h>
#include <stdbool.h>

/* Strings are borrowed from the data. */
struct demo_turn {
    const char *user;
    const char *assistant;
    const char *check; /* NULL: no told fact is asked for */
    bool was_told;     /* check was in what the user said before, */
    size_t told;       /* the last time in this turn, counted from 0 */
};

struct demo_conversation {
    const char *name;
    struct demo_turn *turns; /* [n_turns], owned */
    size_t n_turns;
};

struct demo_data {
    struct demo_conversation *conversations; /* [n], owned */
    size_t n, cap;
    json_t *lines; /* owns the strings */
};

/* Reads a file. E_IO; E_FORMAT with "FILE:LINE: reason". What was read is freed by demo_data_free in any case. */
perch_status demo_data_load(struct demo_data *data, const char *file, perch_error *err);
void demo_data_free(struct demo_data *data);

#endif
