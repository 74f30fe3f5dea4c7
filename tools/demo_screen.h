/*
 * demo_screen: a run of the demo as a picture on the terminal that is drawn over itself.
 */
#ifndef PERCH_TOOLS_DEMO_SCREEN_H
#define PERCH_TOOLS_DEMO_SCREEN_H

#include "demo_run.h"
#include "screen.h"

#define DEMO_SCREEN_SLOTS 16
#define DEMO_SCREEN_SAMPLES 10

struct demo_screen {
    struct screen out;
    size_t prefix; /* bytes of a conversation's name that its label leaves out: all have them */
    size_t label;  /* columns of a label */
    /* who is in which slot, as far as it can be seen from outside: one who stays active keeps the place */
    const struct demo_talk *slots[DEMO_SCREEN_SLOTS];
    /* the latest frames, for rates: sample i at i % DEMO_SCREEN_SAMPLES */
    struct {
        uint64_t us, prefill_tokens, decode_tokens;
    } samples[DEMO_SCREEN_SAMPLES];
    size_t n_samples;
    /* the fact question at the bottom, which stays long enough to be read */
    const struct demo_talk *fact;
    size_t fact_turn;
    uint64_t fact_us;
};

/* Before each run that is to be shown. */
void demo_screen_begin(struct demo_screen *screen, const struct demo_run *run);

/* For struct demo_watch; user is the screen. */
void demo_screen_answered(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn);
void demo_screen_frame(void *user, const struct demo_run *run);

#endif
