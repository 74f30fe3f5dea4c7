/*
 * demo_run: conversations through one engine, all at once; each turn is submitted as soon as the answer before it is there.
 */
#ifndef PERCH_TOOLS_DEMO_RUN_H
#define PERCH_TOOLS_DEMO_RUN_H

#include "demo_data.h"
#include "text.h"

/* A turn that was answered. */
struct demo_answer {
    struct text text;
    bool right;             /* the expected text to the byte, ended by the model itself */
    uint64_t prompt_tokens; /* the conversation's length when it was asked */
    uint64_t cached_tokens; /* of which KV was still there */
    uint64_t n_evictions;   /* of the conversation until then */
};

struct demo_talk {
    const struct demo_conversation *conversation;
    perch_sequence_id sequence;
    perch_sequence_info info;    /* as of the last look */
    struct demo_answer *answers; /* [conversation->n_turns], owned */
    size_t n_answers;            /* while the run is on, turn n_answers is under way */
};

struct demo_run {
    perch_engine *engine;
    perch_plan plan;
    perch_stats stats;       /* as of the last look */
    struct demo_talk *talks; /* [n], owned */
    size_t n;
    size_t n_done; /* conversations at their end */
    size_t n_turns, n_answers, n_right;
    size_t n_facts, n_facts_asked, n_facts_right; /* turns with a check */
    uint64_t begin_us, elapsed_us;                /* the clock; since then, as of the last look */
    struct text transcript; /* of all turns, conversation by conversation; once the run ended well */
    perch_event event;
    struct text text;     /* scratch */
    struct tokens tokens; /* scratch */
};

/* Who looks on. Both are called on the thread that is in demo_run_go; either may be NULL. */
struct demo_watch {
    void (*answered)(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn);
    void (*frame)(void *user, const struct demo_run *run);
    void *user;
};

/* Opens the engine and the first n conversations of data (which must live as long as the run). */
perch_status demo_run_begin(struct demo_run *run, const perch_options *options, const struct demo_data *data, size_t n,
                            perch_error *err);

/* Runs them to their end and writes the transcript. A wrong answer is no failure; E_SHUTDOWN: Ctrl-C. */
perch_status demo_run_go(struct demo_run *run, const struct demo_watch *watch, perch_error *err);

/* Destroys the engine; what came of the run stays. */
void demo_run_end(struct demo_run *run);
void demo_run_free(struct demo_run *run);

/* Times that the conversation was evicted between being told what turn asks for (was_told) and answering it. */
uint64_t demo_evictions_since_told(const struct demo_talk *talk, size_t turn);

#endif
