/* store: the queue, its thread, and what all backends have in common. See store.h. */
#include "engine/store/store.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tokens are kept as they lie in memory, which is little-endian"
#endif

struct store {
    const store_backend *backend;
    void *state;
    uint64_t tend_every_ms; /* 0 = nothing to tend */
    bool thread_made;
    pthread_t thread;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t work;  /* the thread waits for it */
    pthread_cond_t idle;  /* store_drain and store_call wait for it */
    store_op *head, *tail;
    uint64_t n_sent, n_done;
    bool stopping;
    store_counts counts;
};

/* ----------------------------------------------------------------- the ops -- */

static bool writes(const store_op *op) {
    return op->kind == STORE_PUT || op->kind == STORE_RELEASE || op->kind == STORE_REMOVE;
}

static void refusal(const store_op *op, perch_error *err) {
    switch (op->status) {
    case PERCH_E_LEASED:
        err_set(err, op->status,
                "another engine has the sequence '%s': it is free when that one closes it, or was silent for lease_ms",
                op->key);
        break;
    case PERCH_E_BUSY:
        err_set(err, op->status, "the sequence '%s' is open", op->key);
        break;
    case PERCH_E_NOT_FOUND:
        err_set(err, op->status, "no sequence is named '%s'", op->key);
        break;
    case PERCH_E_RETIRED:
        err_set(err, op->status, "the sequence '%s' was retired: it is no longer in the store", op->key);
        break;
    case PERCH_E_INVALID:
        err_set(err, op->status, "the store has fewer tokens of '%s' than were put into it", op->key);
        break;
    default:
        break;
    }
}

static perch_status check_found(store_op *op, perch_error *err) {
    if (store_hash(op->found, op->meta->n_tokens) == op->meta->hash) {
        return PERCH_OK;
    }
    free(op->found);
    op->found = NULL;
    return err_set(err, PERCH_E_FORMAT, "the stored tokens of '%s' are damaged", op->key);
}

/* What cannot be used is not kept from others, nor from being removed. */
static void acquire(store *s, store_op *op, perch_error *err) {
    op->drawn = 0;
    op->status = s->backend->acquire(s->state, op, err);
    if (!op->status) {
        op->status = check_found(op, err);
    }
    if (op->status && op->drawn) {
        store_op letting_go = {.kind = STORE_RELEASE, .key = op->key, .fence = op->drawn}, *only = &letting_go;
        s->backend->write(s->state, &only, 1, NULL);
    }
}

/* Carries out n ops, all writes or a single other one. */
static void carry_out(store *s, store_op **ops, size_t n) {
    perch_error err = {PERCH_OK, ""};
    for (size_t i = 0; i < n; i++) {
        if (ops[i]->kind == STORE_PUT) {
            ops[i]->meta->hash = store_hash(ops[i]->tokens, ops[i]->meta->n_tokens);
        }
    }
    if (writes(ops[0])) {
        s->backend->write(s->state, ops, n, &err);
    } else if (ops[0]->kind == STORE_LIST) {
        ops[0]->status = s->backend->list(s->state, ops[0], &err);
    } else {
        acquire(s, ops[0], &err);
    }
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        s->counts.n_commits += ops[i]->kind == STORE_PUT && !ops[i]->status;
        s->counts.n_failures += ops[i]->status == PERCH_E_STORE || ops[i]->status == PERCH_E_NOMEM;
    }
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        perch_error why = err;
        refusal(ops[i], &why);
        ops[i]->done(ops[i], &why);
    }
    pthread_mutex_lock(&s->lock);
    s->n_done += n;
    pthread_cond_broadcast(&s->idle);
    pthread_mutex_unlock(&s->lock);
}

/* The next group: writes that stand next to one another, or one op of another kind. Under the lock. */
static size_t take(store *s, store_op **ops) {
    size_t n = 0;
    while (s->head && n < STORE_MAX_BATCH && (n == 0 || (writes(s->head) && writes(ops[0])))) {
        ops[n++] = s->head;
        s->head = s->head->next;
    }
    if (!s->head) {
        s->tail = NULL;
    }
    return n;
}

/* -------------------------------------------------------------- the thread -- */

static struct timespec at_us(uint64_t us) {
    return (struct timespec){.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
}

/* What could not be tended now is tended the next time: nobody waits for it. */
static void tend(store *s) {
    uint64_t n_retired = 0;
    s->backend->tend(s->state, store_now_ms(), &n_retired, NULL);
    pthread_mutex_lock(&s->lock);
    s->counts.n_retired += n_retired;
    pthread_mutex_unlock(&s->lock);
}

static void *store_main(void *user) {
    store *s = user;
    store_op *ops[STORE_MAX_BATCH];
    uint64_t tend_at_us = s->tend_every_ms ? time_us() : UINT64_MAX;
    sigset_t all;
    sigfillset(&all); /* signals are the host's; SIGPIPE of a connection that broke is an error like others */
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    pthread_mutex_lock(&s->lock);
    while (s->head || !s->stopping) {
        bool due = time_us() >= tend_at_us;
        if (s->head || due) {
            size_t n = take(s, ops);
            pthread_mutex_unlock(&s->lock);
            if (n) {
                carry_out(s, ops, n);
            }
            if (due) {
                tend(s);
                tend_at_us = time_us() + s->tend_every_ms * 1000;
            }
            pthread_mutex_lock(&s->lock);
        } else if (tend_at_us == UINT64_MAX) {
            pthread_cond_wait(&s->work, &s->lock);
        } else {
            const struct timespec until = at_us(tend_at_us);
            pthread_cond_timedwait(&s->work, &s->lock, &until);
        }
    }
    pthread_mutex_unlock(&s->lock);
    s->backend->close(s->state);
    s->state = NULL;
    return NULL;
}

/* --------------------------------------------------------------- life, use -- */

static uint64_t tend_interval(const store_config *config, const store_backend *backend) {
    uint64_t every = config->max_bytes || config->ttl_ms ? 1000 : 0;
    if (config->ttl_ms && config->ttl_ms / 4 < every) {
        every = config->ttl_ms / 4 + 1;
    }
    if (backend->leased && (!every || config->lease_ms / 4 < every)) {
        every = config->lease_ms / 4 + 1;
    }
    return every;
}

static perch_status make_sync(store *s, perch_error *err) {
    pthread_condattr_t monotonic;
    if (pthread_condattr_init(&monotonic)) {
        return err_nomem(err, "the store's conditions");
    }
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    /* With these attributes glibc has nothing to fail at. */
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, &monotonic);
    pthread_cond_init(&s->idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return PERCH_OK;
}

perch_status store_start(store *s, perch_error *err) {
    pthread_mutex_lock(&s->lock);
    if (!s->thread_made) {
        s->thread_made = !pthread_create(&s->thread, NULL, store_main, s);
    }
    perch_status status =
        s->thread_made ? PERCH_OK : err_set(err, PERCH_E_NOMEM, "the store's thread cannot be started");
    pthread_mutex_unlock(&s->lock);
    return status;
}

perch_status store_open(const store_config *config, store **out, perch_error *err) {
    static const store_backend *const backends[] = {
        [PERCH_STORE_MEMORY] = &store_memory, [PERCH_STORE_LMDB] = &store_lmdb, [PERCH_STORE_REDIS] = &store_redis};
    *out = NULL;
    store *s = calloc(1, sizeof *s);
    perch_status status = s ? make_sync(s, err) : err_nomem(err, "the sequence store");
    if (status) {
        free(s);
        return status;
    }
    s->backend = backends[config->kind];
    s->tend_every_ms = tend_interval(config, s->backend);
    status = s->backend->open(config, &s->state, err);
    if (!status && s->backend->durable) {
        status = store_start(s, err);
    }
    if (status) {
        store_close(s);
        return status;
    }
    *out = s;
    return PERCH_OK;
}

void store_close(store *s) {
    if (!s) {
        return;
    }
    if (s->thread_made) {
        pthread_mutex_lock(&s->lock);
        s->stopping = true;
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    if (s->state) {
        s->backend->close(s->state);
    }
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

bool store_is_durable(const store *s) { return s->backend->durable; }

void store_send(store *s, store_op *op) {
    op->next = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->tail) {
        s->tail->next = op;
    } else {
        s->head = op;
        pthread_cond_signal(&s->work);
    }
    s->tail = op;
    s->n_sent++;
    pthread_mutex_unlock(&s->lock);
}

/* What store_call waits for. */
typedef struct call {
    store *s;
    perch_error why;
    bool over;
} call;

static void call_over(store_op *op, const perch_error *why) {
    call *c = op->user;
    c->why = *why;
    pthread_mutex_lock(&c->s->lock);
    c->over = true;
    pthread_mutex_unlock(&c->s->lock); /* carry_out wakes the waiting */
}

perch_status store_call(store *s, store_op *op, perch_error *err) {
    call c = {.s = s};
    perch_status status = store_start(s, err);
    if (status) {
        return status;
    }
    op->done = call_over;
    op->user = &c; /* cppcheck-suppress autoVariables ; until it is over */
    store_send(s, op);
    pthread_mutex_lock(&s->lock);
    while (!c.over) {
        pthread_cond_wait(&s->idle, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    if (op->status && err) {
        *err = c.why;
    }
    return op->status;
}

void store_drain(store *s) {
    pthread_mutex_lock(&s->lock);
    uint64_t n = s->n_sent;
    while (s->n_done < n) {
        pthread_cond_wait(&s->idle, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

void store_counts_get(store *s, store_counts *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->counts;
    pthread_mutex_unlock(&s->lock);
}

/* ------------------------------------------------------- what all agree on -- */

uint64_t store_hash(const int32_t *tokens, size_t n) { return XXH3_64bits(n ? tokens : NULL, n * sizeof *tokens); }

uint64_t store_bytes(uint64_t n_tokens) { return n_tokens * sizeof(int32_t) + STORE_SEQUENCE_BYTES; }

perch_status store_check_key(const char *key, perch_error *err) {
    if (!key || !*key) {
        return err_set(err, PERCH_E_INVALID, "key: %s", key ? "empty" : "NULL");
    }
    return strnlen(key, PERCH_KEY_CAP) < PERCH_KEY_CAP
               ? PERCH_OK
               : err_set(err, PERCH_E_INVALID, "key: longer than %d bytes", PERCH_KEY_CAP - 1);
}

perch_status store_make_key(char out[PERCH_KEY_CAP], perch_error *err) {
    uint64_t bits[2];
    if (getrandom(bits, sizeof bits, 0) != (ssize_t)sizeof bits) {
        return err_set(err, PERCH_E_IO, "getrandom: %s", strerror(errno));
    }
    snprintf(out, PERCH_KEY_CAP, "%016llx%016llx", (unsigned long long)bits[0], (unsigned long long)bits[1]);
    return PERCH_OK;
}

uint64_t store_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}
