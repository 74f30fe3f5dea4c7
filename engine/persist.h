/*
 * persist: the sequences' way into the store and back.
 *
 * A sequence that the store is to have is given a `persist`: its key, and how much of it the store has. When completion 0 of a
 * turn ends, the step thread sends the store what the sequence holds (persist_commit) and goes on; the request stays in
 * flight, and the DONE event is held back, until the store's thread comes back with the outcome (turn_done). So nobody
 * changes the tokens while the store reads them. When the sequence is freed the persist lives on until the store has let go
 * of it, and then frees itself.
 */
#ifndef PERCH_ENGINE_PERSIST_H
#define PERCH_ENGINE_PERSIST_H

#include "engine/store/store.h"

struct sequence;
struct completion;
struct perch_engine;

typedef struct persist {
    store_op op; /* one at a time; its fence is the sequence's */
    store_meta meta;
    struct perch_engine *engine;
    struct completion *turn; /* whose DONE waits for the op, or NULL */
    bool syncing;            /* a host thread waits for the op; the sequence is busy */
    bool retain;
    perch_status lost;   /* another engine has it, or it was removed: it can only be closed */
    uint32_t n_kept;     /* the first tokens, that the store has as well */
    uint64_t n_in_store; /* tokens that the store has; UINT64_MAX where an op failed */
    int32_t *tokens;     /* the sequence's, which is gone */
    char key[];
} persist;

/* All under the engine's lock, but for the calls named below. */

/* E_BUSY: a sequence of this engine has the key. key NULL = one is made up. */
perch_status persist_create(struct perch_engine *e, const char *key, uint32_t flags, persist **out, perch_error *err);
void persist_destroy(persist *p);

/* A persist for a sequence without a key of the host's, where the store wants one; else NULL. */
perch_status persist_create_unnamed(struct perch_engine *e, uint32_t flags, persist **out, perch_error *err);

/* The turn of completion 0 has ended. True: it is on its way to the store, and completion_end comes when it is there. */
bool persist_commit(struct perch_engine *e, struct completion *c);

/* E_BUSY, or why nothing can be done with it any more; for calls that need an idle sequence. */
perch_status persist_check(const persist *p, perch_error *err);

/* It was cut to n_tokens. */
void persist_rewound(persist *p, uint32_t n_tokens);

/* The sequence is being freed: what the store is to do about it is sent. */
void persist_let_go(struct perch_engine *e, struct sequence *s);

/* At the engine's end, when nothing runs and the store is drained: lets go of all, and keeps what was committed. */
void persist_let_go_all(struct perch_engine *e);

/* Waits for the store; gives the lock up meanwhile. The sequence is idle, and is freed if it was closed meanwhile. */
perch_status persist_sync(struct perch_engine *e, struct sequence *s, perch_error *err);

#endif
