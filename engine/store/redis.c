/*
 * redis: the store in a Redis that several engines share, by hiredis. One connection (redis_link), made when it is needed; what is done
 * there is in redis_scripts.h. A group of writes is one pipeline. All scripts can be run twice, so what broke in the middle
 * is sent again over a new connection, once. After that the store is down for DOWN_MS, during which ops fail at once: nobody
 * waits for the same timeout one behind the other.
 */
#include "engine/store/redis_link.h"
#include "engine/store/redis_scripts.h"
#include "engine/store/store.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DOWN_MS 500u
#define MAX_ARGS 16
#define NUMBER_CAP 24

enum { ACQUIRE, WRITE, LIST, TEND, LEAVE, N_SCRIPTS };

static const char *const scripts[N_SCRIPTS] = {script_acquire, script_write, script_list, script_tend, script_leave};

_Static_assert(STORE_SEQUENCE_BYTES == 512, "the scripts count a sequence as 512 bytes");

typedef struct redis {
    redis_link link;
    char sha[N_SCRIPTS][48];
    bool resending;   /* what is sent may have been carried out before */
    perch_error down; /* why, while it is down */
    uint64_t down_until_us;
    char engine[PERCH_KEY_CAP];
    char host[PERCH_PATH_CAP]; /* or the path of the socket */
    int port;                  /* 0 = a socket */
    char prefix[PERCH_PATH_CAP];
    char password[512]; /* "" = none */
    char lease_ms[NUMBER_CAP], max_bytes[NUMBER_CAP], ttl_ms[NUMBER_CAP], empty_hash[NUMBER_CAP];
    uint32_t timeout_ms;
} redis;

/* ------------------------------------------------------------------- commands -- */

/* A script's call as it is sent. Its arguments begin with those that all have. */
typedef struct command {
    int script;
    int n_args;
    const char *args[MAX_ARGS];
    size_t lengths[MAX_ARGS];
    char numbers[8][NUMBER_CAP];
    int n_numbers;
} command;

static void add_bytes(command *c, const void *bytes, size_t n) {
    c->args[c->n_args] = bytes;
    c->lengths[c->n_args++] = n;
}

static void add(command *c, const char *text) { add_bytes(c, text, strlen(text)); }

static void add_number(command *c, uint64_t number) {
    char *text = c->numbers[c->n_numbers++];
    snprintf(text, NUMBER_CAP, "%llu", (unsigned long long)number);
    add(c, text);
}

static void begin(const redis *r, command *c, int script) {
    c->script = script;
    c->n_args = c->n_numbers = 0;
    add(c, r->prefix);
    add(c, r->engine);
    add(c, r->lease_ms);
}

/* ----------------------------------------------------------------- connection -- */

static perch_status failure(const redis *r, const char *what, perch_error *err) {
    return r->port ? err_set(err, PERCH_E_STORE, "Redis at %s:%d: %s", r->host, r->port, what)
                   : err_set(err, PERCH_E_STORE, "Redis at unix:%s: %s", r->host, what);
}

/* *reply is a list that begins with a word, or else it is freed and why it isn't is told. */
static perch_status check_reply(redis *r, redisReply **reply, perch_error *err) {
    perch_status status = PERCH_OK;
    redisReply *got = *reply;
    if (got->type == REDIS_REPLY_ERROR) {
        status = failure(r, got->str, err);
    } else if (got->type != REDIS_REPLY_ARRAY || got->elements < 1) {
        status = failure(r, "an unexpected reply", err);
    }
    for (size_t i = 0; !status && i < got->elements; i++) {
        if (got->element[i]->type != REDIS_REPLY_STRING) {
            status = failure(r, "an unexpected reply", err);
        }
    }
    if (status) {
        freeReplyObject(got);
        *reply = NULL;
    }
    return status;
}

static perch_status load_scripts(redis *r, perch_error *err) {
    perch_status status = PERCH_OK;
    for (int i = 0; i < N_SCRIPTS && !status; i++) {
        const char *args[] = {"SCRIPT", "LOAD", scripts[i]};
        const size_t lengths[] = {6, 4, strlen(scripts[i])};
        status = redis_link_append(&r->link, 3, args, lengths, err);
    }
    for (int i = 0; i < N_SCRIPTS && !status; i++) {
        redisReply *reply = NULL;
        status = redis_link_reply(&r->link, &reply, err);
        if (!status && reply->type == REDIS_REPLY_STRING && reply->len < (int)sizeof r->sha[i]) {
            memcpy(r->sha[i], reply->str, (size_t)reply->len + 1);
        } else if (!status) {
            status = err_set(err, PERCH_E_STORE, "%s",
                             reply->type == REDIS_REPLY_ERROR ? reply->str : "an unexpected reply");
        }
        freeReplyObject(reply);
    }
    return status;
}

static perch_status authenticate(redis *r, perch_error *err) {
    const char *args[] = {"AUTH", r->password};
    const size_t lengths[] = {4, strlen(r->password)};
    redisReply *reply = NULL;
    perch_status status = redis_link_append(&r->link, 2, args, lengths, err);
    if (!status) {
        status = redis_link_reply(&r->link, &reply, err);
    }
    if (!status && reply->type != REDIS_REPLY_STATUS) {
        status =
            err_set(err, PERCH_E_STORE, "%s", reply->type == REDIS_REPLY_ERROR ? reply->str : "an unexpected reply");
    }
    freeReplyObject(reply);
    return status;
}

static perch_status connect_now(redis *r, perch_error *err) {
    perch_error why;
    perch_status status = redis_link_open(&r->link, r->host, r->port, r->timeout_ms, &why);
    if (!status && r->password[0]) {
        status = authenticate(r, &why);
    }
    if (!status) {
        status = load_scripts(r, &why);
    }
    return status ? failure(r, why.message, err) : PERCH_OK;
}

static void went_down(redis *r, const perch_error *why) {
    redis_link_close(&r->link);
    r->down = *why;
    r->down_until_us = time_us() + DOWN_MS * 1000;
}

static perch_status connected(redis *r, perch_error *err) {
    perch_error why = {PERCH_OK, ""};
    if (r->link.reader) {
        return PERCH_OK;
    }
    if (time_us() < r->down_until_us) {
        if (err) {
            *err = r->down;
        }
        return PERCH_E_STORE;
    }
    perch_status status = connect_now(r, &why);
    if (status) {
        went_down(r, &why);
        if (err) {
            *err = why;
        }
    }
    return status;
}

/* -------------------------------------------------------------------- pipeline -- */

/* What is sent, and what becomes of the replies. */
typedef struct pipeline {
    void (*make)(redis *r, void *user, size_t i, command *out);
    /* reply: a list that begins with a word; NULL = it was refused or is nonsense, see why */
    void (*take)(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why);
    void *user;
    size_t n, n_taken;
} pipeline;

static bool is_forgotten(const redisReply *reply) {
    return reply->type == REDIS_REPLY_ERROR && strncmp(reply->str, "NOSCRIPT", 8) == 0;
}

static perch_status send_from(redis *r, const pipeline *p, perch_error *err) {
    perch_status status = PERCH_OK;
    for (size_t i = p->n_taken; i < p->n && !status; i++) {
        const char *args[MAX_ARGS + 3] = {"EVALSHA", NULL, "0"};
        size_t lengths[MAX_ARGS + 3] = {7, 0, 1};
        command c;
        p->make(r, p->user, i, &c);
        args[1] = r->sha[c.script];
        lengths[1] = strlen(args[1]);
        memcpy(args + 3, c.args, (size_t)c.n_args * sizeof *args);
        memcpy(lengths + 3, c.lengths, (size_t)c.n_args * sizeof *lengths);
        status = redis_link_append(&r->link, c.n_args + 3, args, lengths, err);
    }
    return status;
}

/* Sends what has no reply yet and takes the replies, up to the first failure of the connection. */
static perch_status exchange(redis *r, pipeline *p, perch_error *err) {
    uint64_t until_us = time_us() + (uint64_t)r->timeout_ms * 1000;
    perch_status status = send_from(r, p, err);
    while (!status && p->n_taken < p->n) {
        redisReply *reply = NULL;
        perch_error why = {PERCH_OK, ""};
        if (p->n_taken && time_us() > until_us) {
            return err_set(err, PERCH_E_STORE, "no reply in time");
        }
        if ((status = redis_link_reply(&r->link, &reply, err))) {
            break;
        }
        if (is_forgotten(reply)) {
            freeReplyObject(reply);
            return err_set(err, PERCH_E_STORE, "it has lost the scripts");
        }
        check_reply(r, &reply, &why);
        p->take(r, p->user, p->n_taken++, reply, &why);
        if (reply) {
            freeReplyObject(reply);
        }
    }
    return status;
}

/* Runs it; on failure those from n_taken on have not been answered, and may have been carried out. */
static perch_status run(redis *r, pipeline *p, perch_error *err) {
    perch_error why = {PERCH_OK, ""};
    bool is_fresh = !r->link.reader;
    perch_status status = connected(r, err);
    if (status) {
        return status;
    }
    status = exchange(r, p, &why);
    if (status && !is_fresh) { /* an old connection: Redis may have closed it long ago */
        redis_link_close(&r->link);
        if (connected(r, err)) {
            return PERCH_E_STORE;
        }
        r->resending = true;
        status = exchange(r, p, &why);
        r->resending = false;
    }
    if (status) {
        perch_error text;
        failure(r, why.message, &text);
        went_down(r, &text);
        if (err) {
            *err = text;
        }
    }
    return status;
}

/* --------------------------------------------------------------------- replies -- */

static perch_status status_of(const redisReply *reply) {
    static const struct {
        const char *word;
        perch_status status;
    } words[] = {{"ok", PERCH_OK},           {"retired", PERCH_E_RETIRED}, {"absent", PERCH_E_NOT_FOUND},
                 {"leased", PERCH_E_LEASED}, {"busy", PERCH_E_BUSY},       {"gap", PERCH_E_INVALID}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(reply->element[0]->str, words[i].word) == 0) {
            return words[i].status;
        }
    }
    return PERCH_E_STORE;
}

/* The i-th element as a number; *sound becomes false where there is none. */
static uint64_t number_at(const redisReply *reply, size_t i, bool *sound) {
    char *end = NULL;
    errno = 0;
    unsigned long long number = i < reply->elements ? strtoull(reply->element[i]->str, &end, 10) : 0;
    *sound = *sound && end && end != reply->element[i]->str && *end == 0 && errno == 0;
    return number;
}

static perch_status unexpected(const redis *r, perch_error *err) { return failure(r, "an unexpected reply", err); }

/* An op that is being answered, and where its failure is told. */
typedef struct asking {
    store_op *op;
    perch_error *err;
} asking;

static perch_status refused(const redis *r, const redisReply *reply, const perch_error *why, perch_error *err) {
    if (!reply) {
        if (err) {
            *err = *why;
        }
        return PERCH_E_STORE;
    }
    perch_status status = status_of(reply);
    return status == PERCH_E_STORE ? unexpected(r, err) : status;
}

/* --------------------------------------------------------------------- acquire -- */

static void make_acquire(redis *r, void *user, size_t i, command *out) {
    const asking *a = user;
    (void)i;
    begin(r, out, ACQUIRE);
    add(out, a->op->key);
    add(out, r->empty_hash);
    add(out, a->op->existing ? "1" : "0");
}

static void take_acquire(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why) {
    const asking *a = user;
    store_op *op = a->op;
    bool sound = true;
    (void)i;
    if ((op->status = refused(r, reply, why, a->err))) {
        return;
    }
    op->drawn = number_at(reply, 1, &sound);
    *op->meta = (store_meta){.n_tokens = number_at(reply, 2, &sound),
                             .n_turns = number_at(reply, 3, &sound),
                             .created_ms = number_at(reply, 4, &sound),
                             .touched_ms = number_at(reply, 5, &sound),
                             .hash = number_at(reply, 6, &sound)};
    if (!sound || reply->elements != 9 || reply->element[7]->len >= STORE_MODEL_CAP) {
        op->status = unexpected(r, a->err);
        return;
    }
    size_t n_bytes = (size_t)reply->element[8]->len;
    if (op->meta->n_tokens != n_bytes / sizeof *op->found || n_bytes % sizeof *op->found) {
        op->status = err_set(a->err, PERCH_E_FORMAT, "the stored tokens of '%s' are damaged", op->key);
        return;
    }
    op->found = malloc(n_bytes + 1);
    if (!op->found) {
        op->status = err_nomem(a->err, "a sequence's tokens");
        return;
    }
    memcpy(op->found, reply->element[8]->str, n_bytes);
    memcpy(op->found_model, reply->element[7]->str, (size_t)reply->element[7]->len + 1);
}

static perch_status redis_acquire(void *state, store_op *op, perch_error *err) {
    asking a = {op, err};
    pipeline p = {.make = make_acquire, .take = take_acquire, .user = &a, .n = 1};
    perch_status status = run(state, &p, err);
    return status ? status : op->status;
}

/* ----------------------------------------------------------------------- write -- */

typedef struct group {
    store_op *const *ops;
    perch_error *err;
} group;

static void make_write(redis *r, void *user, size_t i, command *out) {
    const store_op *op = ((const group *)user)->ops[i];
    begin(r, out, WRITE);
    add(out, op->key);
    if (op->kind != STORE_PUT) {
        add(out, "");
        add(out, op->kind == STORE_REMOVE ? "remove" : "release");
        add_number(out, op->fence);
        return;
    }
    const store_meta *meta = op->meta;
    add_number(out, meta->hash);
    add(out, "put");
    add_number(out, op->fence);
    add(out, op->release ? "1" : "0");
    add_number(out, op->keep);
    add_number(out, meta->n_tokens);
    add_number(out, meta->n_turns);
    add_number(out, meta->created_ms);
    add_number(out, meta->touched_ms);
    add(out, meta->model);
    size_t n = (size_t)(meta->n_tokens - op->keep);
    add_bytes(out, n ? (const char *)(op->tokens + op->keep) : "", n * sizeof *op->tokens);
}

static void take_write(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why) {
    const group *g = user;
    store_op *op = g->ops[i];
    bool sound = true;
    op->status = refused(r, reply, why, g->err);
    if (op->kind == STORE_REMOVE && op->status == PERCH_E_NOT_FOUND && r->resending) {
        op->status = PERCH_OK;
    } else if (!op->status) {
        op->drawn = number_at(reply, 1, &sound);
        op->status = sound ? PERCH_OK : unexpected(r, g->err);
    }
}

static void redis_write(void *state, store_op *const *ops, size_t n, perch_error *err) {
    group g = {ops, err};
    pipeline p = {.make = make_write, .take = take_write, .user = &g, .n = n};
    perch_status status = run(state, &p, err);
    for (size_t i = p.n_taken; status && i < n; i++) {
        ops[i]->status = status;
    }
}

/* ------------------------------------------------------------------ list, tend -- */

static void make_list(redis *r, void *user, size_t i, command *out) {
    const asking *a = user;
    (void)i;
    begin(r, out, LIST);
    add(out, a->op->key);
    add_number(out, a->op->list->cap);
}

static void take_list(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why) {
    const asking *a = user;
    store_list *page = a->op->list;
    bool sound = true;
    (void)i;
    if ((a->op->status = refused(r, reply, why, a->err))) {
        return;
    }
    size_t n = (reply->elements - 1) / 6;
    for (size_t k = 0; sound && k < n && k < page->cap; k++) {
        const redisReply *name = reply->element[1 + 6 * k];
        perch_sequence_entry *out = &page->entries[k];
        sound = name->len < PERCH_KEY_CAP;
        if (sound) {
            memcpy(out->key, name->str, (size_t)name->len + 1);
        }
        out->n_tokens = number_at(reply, 2 + 6 * k, &sound);
        out->n_turns = number_at(reply, 3 + 6 * k, &sound);
        out->created_ms = number_at(reply, 4 + 6 * k, &sound);
        out->touched_ms = number_at(reply, 5 + 6 * k, &sound);
        out->is_open = number_at(reply, 6 + 6 * k, &sound) != 0;
    }
    sound = sound && reply->elements == 1 + 6 * n && n <= page->cap;
    page->n = sound ? n : 0;
    a->op->status = sound ? PERCH_OK : unexpected(r, a->err);
}

static perch_status redis_list(void *state, store_op *op, perch_error *err) {
    asking a = {op, err};
    pipeline p = {.make = make_list, .take = take_list, .user = &a, .n = 1};
    op->list->n = 0;
    perch_status status = run(state, &p, err);
    return status ? status : op->status;
}

typedef struct tending {
    uint64_t n_retired;
    perch_error *err;
    perch_status status;
} tending;

static void make_tend(redis *r, void *user, size_t i, command *out) {
    (void)user;
    (void)i;
    begin(r, out, TEND);
    add(out, r->max_bytes);
    add(out, r->ttl_ms);
    add_number(out, STORE_MARK_MS);
}

static void take_tend(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why) {
    tending *t = user;
    bool sound = true;
    (void)i;
    t->status = refused(r, reply, why, t->err);
    t->n_retired = t->status ? 0 : number_at(reply, 1, &sound);
}

static perch_status redis_tend(void *state, uint64_t now_ms, uint64_t *n_retired, perch_error *err) {
    (void)now_ms; /* Redis has the clock */
    tending t = {0, err, PERCH_OK};
    pipeline p = {.make = make_tend, .take = take_tend, .user = &t, .n = 1};
    perch_status status = run(state, &p, err);
    *n_retired += t.n_retired;
    return status ? status : t.status;
}

/* ----------------------------------------------------------------- open, close -- */

/* HOST, HOST:PORT, [HOST]:PORT or unix:PATH. */
static perch_status parse_address(redis *r, const char *address, perch_error *err) {
    if (strncmp(address, "unix:", 5) == 0 && address[5]) {
        snprintf(r->host, sizeof r->host, "%s", address + 5);
        return PERCH_OK;
    }
    const char *bracket = address[0] == '[' ? strchr(address, ']') : NULL;
    const char *host = bracket ? address + 1 : address, *host_end = bracket ? bracket : host + strcspn(host, ":");
    const char *colon = bracket ? bracket + 1 : host_end;
    size_t n = (size_t)(host_end - host);
    const char *digits = *colon == ':' ? colon + 1 : "6379";
    char *end;
    long port = strtol(digits, &end, 10);
    bool is_port = end != digits && !*end && (*colon == ':' || !*colon);
    if (n == 0 || n >= sizeof r->host || !is_port || port < 1 || port > 65535) {
        return err_set(err, PERCH_E_CONFIG, "[store] address: '%.200s' is not HOST, HOST:PORT or unix:PATH", address);
    }
    snprintf(r->host, sizeof r->host, "%.*s", (int)n, host);
    r->port = (int)port;
    return PERCH_OK;
}

/* The file's first line. */
static perch_status read_password(redis *r, const char *path, perch_error *err) {
    if (!*path) {
        return PERCH_OK;
    }
    FILE *file = fopen(path, "re");
    if (!file) {
        return err_set(err, PERCH_E_CONFIG, "[store] password_file: %.300s: %s", path, strerror(errno));
    }
    setvbuf(file, NULL, _IONBF, 0); /* no copy of it is left behind */
    bool is_read = fgets(r->password, sizeof r->password, file) != NULL;
    size_t n = is_read ? strcspn(r->password, "\r\n") : 0;
    bool is_whole = n + 1 < sizeof r->password;
    fclose(file);
    r->password[n] = 0;
    return n && is_whole ? PERCH_OK
                         : err_set(err, PERCH_E_CONFIG, "[store] password_file: %.300s: its first line is %s", path,
                                   n ? "too long" : "empty");
}

static void put_number(char out[NUMBER_CAP], uint64_t number) {
    snprintf(out, NUMBER_CAP, "%llu", (unsigned long long)number);
}

static perch_status redis_open(const store_config *config, void **out, perch_error *err) {
    redis *r = calloc(1, sizeof *r);
    if (!r) {
        return err_nomem(err, "the sequence store");
    }
    r->timeout_ms = config->timeout_ms;
    put_number(r->lease_ms, config->lease_ms);
    put_number(r->max_bytes, config->max_bytes);
    put_number(r->ttl_ms, config->ttl_ms);
    put_number(r->empty_hash, store_hash(NULL, 0));
    snprintf(r->prefix, sizeof r->prefix, "%s", config->prefix);
    perch_status status = parse_address(r, config->address, err);
    if (!status) {
        status = read_password(r, config->password_file, err);
    }
    if (!status) {
        status = store_make_key(r->engine, err);
    }
    if (status) {
        explicit_bzero(r->password, sizeof r->password);
        free(r);
        return status;
    }
    *out = r;
    return PERCH_OK;
}

static void make_leave(redis *r, void *user, size_t i, command *out) {
    (void)user;
    (void)i;
    begin(r, out, LEAVE);
}

static void take_leave(redis *r, void *user, size_t i, const redisReply *reply, const perch_error *why) {
    (void)r;
    (void)user;
    (void)i;
    (void)reply;
    (void)why;
}

static void redis_close(void *state) {
    redis *r = state;
    pipeline p = {.make = make_leave, .take = take_leave, .n = 1};
    if (r->link.reader) {
        run(r, &p, NULL);
    }
    redis_link_close(&r->link);
    explicit_bzero(r->password, sizeof r->password);
    free(r);
}

const store_backend store_redis = {
    .durable = true,
    .leased = true,
    .open = redis_open,
    .close = redis_close,
    .acquire = redis_acquire,
    .write = redis_write,
    .list = redis_list,
    .tend = redis_tend,
};
