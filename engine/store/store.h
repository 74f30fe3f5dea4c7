/*
 * store: where sequences outlive what the engine keeps of them: their token IDs and a few words about them, by name. In memory,
 * in LMDB, or in a Redis that several engines share.
 *
 * Theory of operation. Everything that is to be done to the store is an *op*. Ops stand in one queue, in order, and one thread,
 * the store's own, carries them out: so a step never waits for a disk or a network, backends need no locks, and whoever
 * opens a name that was let go of a moment ago finds what was written then. Ops that write and stand next to one another are
 * carried out as one group (a transaction of LMDB, a round trip to Redis). An op tells how it ended by its `done` function, or
 * by waking the thread that waits in store_call.
 *
 * What a store holds of a sequence is a prefix of it and grows by *puts*: "keep the first `keep` tokens, then come these". That
 * is an append after a turn, a rewind, or a whole new sequence; and since it says what there is behind it and not what
 * changes, a put that failed is made good by the next one.
 *
 * Leases. A sequence belongs to the engine that opened it. Each opening draws a *fence*, a number larger than all before; a
 * write carries its fence and is refused, atomically, if a later one was drawn. An engine that stopped and wakes again can
 * therefore destroy nothing, however late it is. Who may open is decided by whether the owner is alive: in LMDB the folder
 * belongs to one engine at a time (a lock that ends with its process), in Redis each engine keeps one key that expires.
 *
 * Retiring. Sequences that nobody has open are forgotten when they were not used for `ttl`, or, the least recently used
 * first, while all together are more than `max_bytes`. A retired name leaves a mark for STORE_MARK_MS, by which an opening
 * is told E_RETIRED.
 */
#ifndef PERCH_ENGINE_STORE_STORE_H
#define PERCH_ENGINE_STORE_STORE_H

#include "base/base.h"

#define STORE_MARK_MS (UINT64_C(30) * 24 * 3600 * 1000)
/* What a sequence counts for against max_bytes beside 4 bytes a token. */
#define STORE_SEQUENCE_BYTES 512u
#define STORE_MODEL_CAP 320u
#define STORE_MAX_BATCH 256u

typedef struct store store;

typedef struct store_config {
    perch_store kind;
    const char *path;          /* LMDB: folder, made if it is not there */
    const char *address;       /* Redis: HOST, HOST:PORT or unix:PATH */
    const char *prefix;        /* Redis: of all keys */
    const char *password_file; /* Redis: "" = none */
    uint32_t timeout_ms;       /* Redis: for a connection, and for the replies to a group */
    uint32_t lease_ms;         /* Redis */
    uint64_t max_bytes;        /* 0 = no limit */
    uint64_t ttl_ms;           /* 0 = no limit */
} store_config;

/* All that is known of a sequence beside its tokens. */
typedef struct store_meta {
    uint64_t n_tokens, n_turns;
    uint64_t created_ms, touched_ms; /* since 1970 */
    uint64_t hash;                   /* of all tokens: store_hash */
    const char *model;               /* what they are tokens of; the caller's, to be read by PUT only */
} store_meta;

/* A page of names. */
typedef struct store_list {
    perch_sequence_entry *entries; /* [cap], the caller's */
    size_t cap, n;
} store_list;

typedef enum store_kind {
    STORE_OPEN,    /* takes the name, which is made if it is not there; drawn, meta, found come back */
    STORE_PUT,     /* the sequence is now tokens[meta.n_tokens], of which the store has the first `keep` */
    STORE_RELEASE, /* lets go of it as it is in the store */
    STORE_REMOVE,  /* forgets it, or the mark of its retirement. fence 0: only if nobody has it open */
    STORE_LIST     /* the names behind `key`, in the order of their bytes */
} store_kind;

typedef struct store_op {
    store_kind kind;
    const char *key; /* 1..PERCH_KEY_CAP-1 bytes, or for LIST "" */
    uint64_t fence;  /* the sequence's. PUT with 0: a name that the caller has just made up */
    uint64_t drawn;  /* out: the fence that OPEN, or PUT with 0, drew */
    bool existing;   /* OPEN: E_NOT_FOUND rather than a new sequence */
    bool release;    /* PUT: and let go of it */
    uint64_t keep;
    const int32_t *tokens; /* PUT: the caller's until the op is done */
    store_meta *meta;      /* PUT: in, but for the hash. OPEN: out; all 0 for a new sequence */
    int32_t *found;        /* OPEN: out, [meta->n_tokens], to be freed by the caller */
    char *found_model;     /* OPEN: out, [STORE_MODEL_CAP]; "" for a new sequence */
    store_list *list;

    perch_status status;
    void (*done)(struct store_op *op, const perch_error *why); /* on the store's thread, without any of its locks */
    void *user;
    struct store_op *next;
} store_op;

/* A kind of store. Only the store's thread calls these. */
typedef struct store_backend {
    /* Whether turns are written as they end; otherwise a sequence is put when it is let go of. */
    bool durable;
    bool leased; /* something has to be renewed */
    perch_status (*open)(const store_config *config, void **out, perch_error *err);
    void (*close)(void *state);
    /* OPEN. op->drawn is 0 and stays so until the name is this engine's; that it is then, also if there is a failure. */
    perch_status (*acquire)(void *state, store_op *op, perch_error *err);
    /* PUT, RELEASE and REMOVE, n <= STORE_MAX_BATCH, in order, all or nothing but for those that are refused. Sets each status. */
    void (*write)(void *state, store_op *const *ops, size_t n, perch_error *err);
    perch_status (*list)(void *state, store_op *op, perch_error *err);
    /* Retires what is due, and renews what expires; *n_retired is added to. Called again and again. */
    perch_status (*tend)(void *state, uint64_t now_ms, uint64_t *n_retired, perch_error *err);
} store_backend;

extern const store_backend store_memory, store_lmdb, store_redis;

/* Opens the store; its thread is started if it is durable, and by the first store_start otherwise. E_STORE, E_CONFIG. */
perch_status store_open(const store_config *config, store **out, perch_error *err);
/* Carries out what is in the queue, then ends the thread. */
void store_close(store *s);

bool store_is_durable(const store *s);
perch_status store_start(store *s, perch_error *err);

/* Puts an op into the queue; it is the store's until done is called. Never waits, never fails, allocates nothing. */
void store_send(store *s, store_op *op);

/* Waits until the op is carried out, on any thread but the store's. op->done is the store's to use. */
perch_status store_call(store *s, store_op *op, perch_error *err);

/* Waits until everything that was sent before is done. */
void store_drain(store *s);

typedef struct store_counts {
    uint64_t n_commits, n_failures, n_retired;
} store_counts;
void store_counts_get(store *s, store_counts *out);

/* The hash that tokens are checked by, also where they were exported: of their little-endian bytes. */
uint64_t store_hash(const int32_t *tokens, size_t n);

/* What a sequence counts against max_bytes. */
uint64_t store_bytes(uint64_t n_tokens);

/* E_INVALID: NULL, empty, or PERCH_KEY_CAP bytes and more. */
perch_status store_check_key(const char *key, perch_error *err);
/* 32 hexadecimal digits that nobody else has. E_IO: the system has no random numbers. */
perch_status store_make_key(char out[PERCH_KEY_CAP], perch_error *err);

uint64_t store_now_ms(void);

#endif
