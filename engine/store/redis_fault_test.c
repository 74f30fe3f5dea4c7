/*
 * Redis and hiredis at fault: every call of hiredis and of the socket fails in turn, replies are garbage, the server is killed, hangs, loses its
 * scripts or its data. Each time a status comes back, in time, and the store goes on when Redis does.
 */
#include "engine/store/testing.h"

#include <hiredis/hiredis.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* ------------------------------------------------------------- the interposition -- */

static _Atomic long countdown; /* the call that makes it 0 fails */
static _Atomic long n_failed, n_links, n_replies;

static bool fails(void) {
    if (countdown > 0 && --countdown == 0) {
        n_failed++;
        return true;
    }
    return false;
}

redisReader *__real_redisReaderCreate(void);
redisReader *__wrap_redisReaderCreate(void);
redisReader *__wrap_redisReaderCreate(void) {
    redisReader *r = fails() ? NULL : __real_redisReaderCreate();
    n_links += r != NULL;
    return r;
}

void __real_redisReaderFree(redisReader *r);
void __wrap_redisReaderFree(redisReader *r);
void __wrap_redisReaderFree(redisReader *r) {
    n_links--;
    __real_redisReaderFree(r);
}

int __real_redisFormatCommandArgv(char **target, int argc, const char **argv, const size_t *lengths);
int __wrap_redisFormatCommandArgv(char **target, int argc, const char **argv, const size_t *lengths);
int __wrap_redisFormatCommandArgv(char **target, int argc, const char **argv, const size_t *lengths) {
    return fails() ? -1 : __real_redisFormatCommandArgv(target, argc, argv, lengths);
}

static int broken(redisReader *r) {
    r->err = REDIS_ERR_OOM;
    snprintf(r->errstr, sizeof r->errstr, "Out of memory");
    return REDIS_ERR;
}

int __real_redisReaderFeed(redisReader *r, const char *bytes, size_t n);
int __wrap_redisReaderFeed(redisReader *r, const char *bytes, size_t n);
int __wrap_redisReaderFeed(redisReader *r, const char *bytes, size_t n) {
    return fails() ? broken(r) : __real_redisReaderFeed(r, bytes, n);
}

void __real_freeReplyObject(void *reply);
void __wrap_freeReplyObject(void *reply);
void __wrap_freeReplyObject(void *reply) {
    n_replies -= reply != NULL;
    __real_freeReplyObject(reply);
}

/* The failing reply has arrived, so what it answers was carried out. */
int __real_redisReaderGetReply(redisReader *r, void **reply);
int __wrap_redisReaderGetReply(redisReader *r, void **reply);
int __wrap_redisReaderGetReply(redisReader *r, void **reply) {
    int rc = __real_redisReaderGetReply(r, reply);
    if (rc == REDIS_OK && *reply && fails()) {
        __real_freeReplyObject(*reply);
        *reply = NULL;
        return broken(r);
    }
    n_replies += rc == REDIS_OK && *reply;
    return rc;
}

int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol) {
    return fails() ? (errno = EMFILE, -1) : __real_socket(family, type, protocol);
}

int __real_connect(int fd, const struct sockaddr *address, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t n) {
    return fails() ? (errno = ECONNREFUSED, -1) : __real_connect(fd, address, n);
}

ssize_t __real_send(int fd, const void *bytes, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *bytes, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *bytes, size_t n, int flags) {
    return fails() ? (errno = EPIPE, -1) : __real_send(fd, bytes, n > 5000 ? 5000 : n, flags); /* also in pieces */
}

ssize_t __real_recv(int fd, void *bytes, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t n, int flags) {
    return fails() ? (errno = ECONNRESET, -1) : __real_recv(fd, bytes, n > 50 ? 50 : n, flags);
}

/* ------------------------------------------------------------ every call -- */

/* Tries again while the store is down, as a host does. */
static perch_status put(store *s, testing_sequence *q, uint64_t keep, bool release, perch_error *err) {
    perch_status status = testing_put(s, q, keep, release, err);
    for (int i = 0; i < 100 && status == PERCH_E_STORE; i++) {
        usleep(50000);
        q->meta.n_turns--;
        status = testing_put(s, q, keep, release, err);
    }
    return status;
}

static perch_status take(store *s, testing_sequence *q, const char *key, perch_error *err) {
    perch_status status = testing_take(s, q, key, false, err);
    for (int i = 0; i < 100 && status == PERCH_E_STORE; i++) {
        CU_ASSERT_PTR_NOT_NULL(strstr(err->message, "Redis at unix:"));
        usleep(50000);
        status = testing_take(s, q, key, false, err);
    }
    return status;
}

static void what_a_host_does(const store_config *config, testing_sequence *q) {
    perch_error err = {PERCH_OK, ""};
    store *s = testing_open(config);
    CU_ASSERT_PTR_NOT_NULL_FATAL(s);
    perch_status status = take(s, q, "kept", &err);
    CHECK_MSG(status == PERCH_OK, "taking: %s, %s", perch_status_name(status), err.message);
    uint64_t keep = q->n_tokens / 2;
    q->n_tokens = keep;
    testing_grow(q, 10, &(test_rng){q->n_tokens});
    status = put(s, q, keep, false, &err);
    CHECK_MSG(status == PERCH_OK, "a put: %s, %s", perch_status_name(status), err.message);
    testing_sequence made_up = {.n_tokens = 0};
    CU_ASSERT_EQUAL(store_make_key(made_up.key, NULL), PERCH_OK);
    testing_grow(&made_up, 5, &(test_rng){1});
    status = put(s, &made_up, 0, false, &err); /* a new name, also when it is sent twice */
    CHECK_MSG(status == PERCH_OK, "a first put: %s, %s", perch_status_name(status), err.message);
    testing_grow(q, 10, &(test_rng){2});
    status = put(s, q, keep, true, &err);
    /* let go of, and sent again because the reply was lost: then it is refused, and has been carried out */
    CHECK_MSG(status == PERCH_OK || status == PERCH_E_LEASED, "a last put: %s", perch_status_name(status));
    perch_sequence_entry page[2];
    store_list list = {page, 2, 0};
    store_op op = {.kind = STORE_LIST, .key = "", .list = &list};
    status = store_call(s, &op, &err);
    CHECK_MSG(status == PERCH_OK || status == PERCH_E_STORE, "listing: %s", perch_status_name(status));
    store_close(s);
}

static void every_call_fails_and_nothing_is_lost(void) {
    testing_redis r;
    char folder[64];
    static testing_sequence q, found;
    perch_error err;
    snprintf(folder, sizeof folder, "%s", testing_folder());
    if (!testing_redis_start(&r, folder)) {
        testing_remove_folder(folder);
        return;
    }
    const store_config config = testing_config(PERCH_STORE_REDIS, folder, &r);
    long n = 0, stride = test_scaled(10) >= 10 ? 1 : 3;
    do {
        n += stride;
        n_failed = 0;
        countdown = n;
        what_a_host_does(&config, &q);
        countdown = 0;
        store *s = testing_open(&config);
        CU_ASSERT_PTR_NOT_NULL_FATAL(s);
        CU_ASSERT_EQUAL(testing_take(s, &found, "kept", true, &err), PERCH_OK);
        CHECK_MSG(found.n_tokens == q.n_tokens && !memcmp(found.tokens, q.tokens, 4 * q.n_tokens),
                  "call %ld: what was committed is not there", n);
        CU_ASSERT_EQUAL(testing_simple(s, STORE_RELEASE, "kept", found.fence, &err), PERCH_OK);
        store_close(s);
        CHECK_MSG(n_links == 0 && n_replies == 0, "call %ld: %ld links, %ld replies are left", n, n_links, n_replies);
    } while (n_failed && CU_get_number_of_failures() == 0);
    printf("  %ld calls failed in turn\n", n / stride);
    CU_ASSERT(n > 20);
    testing_redis_kill(&r);
    testing_remove_folder(folder);
}

/* ----------------------------------------------------------------- bad replies -- */

/* A server that answers SCRIPT LOAD as it should, and all else with `answer`; then it hangs up. */
typedef struct liar {
    int fd;
    const char *answer;
    size_t n;
    pthread_t thread;
    char address[96];
} liar;

static const char loaded[] = "$40\r\n0123456789012345678901234567890123456789\r\n";

static bool say(int fd, const char *text, size_t n) { return send(fd, text, n, MSG_NOSIGNAL) == (ssize_t)n; }

static void *lie(void *user) {
    const liar *l = user;
    for (int fd; (fd = accept(l->fd, NULL, NULL)) >= 0; close(fd)) {
        char heard[1 << 14];
        size_t n_loads = 0;
        ssize_t n;
        while ((n = read(fd, heard, sizeof heard)) > 0) {
            bool is_load = false;
            for (const char *at = heard; (at = memmem(at, (size_t)(heard + n - at), "SCRIPT\r\n", 8)); at++) {
                is_load = true;
                n_loads++;
                say(fd, loaded, sizeof loaded - 1);
            }
            if (!is_load && n_loads >= 5 && memmem(heard, (size_t)n, "EVALSHA", 7)) {
                say(fd, l->answer, l->n);
                break;
            }
        }
    }
    return NULL;
}

static void replies_that_are_garbage_are_a_status(void) {
#define REPLY(text)                                                                                                    \
    { text, sizeof text - 1 }
    static const struct {
        const char *text;
        size_t n;
    } replies[] = {
        REPLY("+OK\r\n"),
        REPLY(":5\r\n"),
        REPLY("$-1\r\n"),
        REPLY("*-1\r\n"),
        REPLY("*0\r\n"),
        REPLY("*1\r\n$2\r\nok\r\n"),
        REPLY("*1\r\n$3\r\nwho\r\n"),
        REPLY("*1\r\n:7\r\n"),
        REPLY("*2\r\n$2\r\nok\r\n$3\r\nabc\r\n"),
        REPLY("*2\r\n$2\r\nok\r\n$-1\r\n"),
        REPLY("*2\r\n$2\r\nok\r\n*1\r\n$1\r\n1\r\n"),
        REPLY("*9\r\n$2\r\nok\r\n$1\r\n1\r\n$2\r\n-1\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$0\r\n\r\n$"
              "0\r\n\r\n"),
        REPLY(
            "*9\r\n$2\r\nok\r\n$1\r\n1\r\n$1\r\n9\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$0\r\n\r\n$0\r\n\r\n"),
        REPLY("*9\r\n$2\r\nok\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$1\r\n0\r\n$0\r\n\r\n$"
              "4\r\nabcd\r\n"),
        REPLY("-ERR boom\r\n"),
        REPLY("-NOSCRIPT No matching script\r\n"),
        REPLY("-OOM command not allowed\r\n"),
        REPLY("*3\r\n$2\r\nok"),
        REPLY("*99999999\r\n"),
        REPLY("$5000000000\r\n"),
        REPLY("\0\1\2\3\r\n"),
        REPLY("GET / HTTP/1.1\r\n\r\n"),
        REPLY(""),
    };
    char folder[64];
    snprintf(folder, sizeof folder, "%s", testing_folder());
    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        liar l = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), .answer = replies[i].text, .n = replies[i].n};
        snprintf(address.sun_path, sizeof address.sun_path, "%s/%zu", folder, i);
        snprintf(l.address, sizeof l.address, "unix:%s/%zu", folder, i);
        CU_ASSERT_FATAL(l.fd >= 0 && !bind(l.fd, (const struct sockaddr *)&address, sizeof address) &&
                        !listen(l.fd, 8) && !pthread_create(&l.thread, NULL, lie, &l));
        store_config config = testing_config(PERCH_STORE_REDIS, folder, NULL);
        config.address = l.address;
        store *s = testing_open(&config);
        testing_sequence q = {.n_tokens = 1, .key = "k"};
        perch_error err = {PERCH_OK, ""};
        perch_sequence_entry page[2];
        store_list list = {page, 2, 0};
        store_op op = {.kind = STORE_LIST, .key = "", .list = &list};
        perch_status status = testing_take(s, &q, "k", false, &err);
        CHECK_MSG((status == PERCH_E_STORE || status == PERCH_E_FORMAT) && err.message[0], "reply %zu: opening: %s, %s",
                  i, perch_status_name(status), err.message);
        usleep(600000);
        status = testing_put(s, &q, 0, false, &err);
        CHECK_MSG(status == PERCH_E_STORE || replies[i].text[0] == '*', "reply %zu: a put: %s", i,
                  perch_status_name(status));
        status = store_call(s, &op, &err);
        CHECK_MSG(status == PERCH_E_STORE || (status == PERCH_OK && list.n == 0), "reply %zu: listing: %s", i,
                  perch_status_name(status));
        store_close(s);
        shutdown(l.fd, SHUT_RDWR);
        pthread_join(l.thread, NULL);
        close(l.fd);
    }
    CU_ASSERT_EQUAL(n_links, 0);
    CU_ASSERT_EQUAL(n_replies, 0);
    testing_remove_folder(folder);
}

/* ------------------------------------------------------------------- the server -- */

static void a_killed_server_is_a_status_at_once_and_its_return_is_noticed(void) {
    testing_redis r;
    char folder[64];
    static testing_sequence q;
    perch_error err;
    snprintf(folder, sizeof folder, "%s", testing_folder());
    if (!testing_redis_start(&r, folder)) {
        testing_remove_folder(folder);
        return;
    }
    const store_config config = testing_config(PERCH_STORE_REDIS, folder, &r);
    store *s = testing_open(&config);
    CU_ASSERT_PTR_NOT_NULL_FATAL(s);
    CU_ASSERT_EQUAL(testing_take(s, &q, "k", false, &err), PERCH_OK);
    testing_grow(&q, 10, &(test_rng){1});
    CU_ASSERT_EQUAL(testing_put(s, &q, 0, false, &err), PERCH_OK);
    testing_redis_kill(&r);
    uint64_t began_us = time_us();
    for (int i = 0; i < 100; i++) {
        CU_ASSERT_EQUAL(testing_put(s, &q, 10, false, &err), PERCH_E_STORE);
    }
    CU_ASSERT(time_us() - began_us < 15000000); /* not a hundred timeouts of 20 s */
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "Redis at unix:"));
    CU_ASSERT(testing_redis_start(&r, folder)); /* and has lost everything */
    CU_ASSERT_EQUAL(put(s, &q, 10, false, &err), PERCH_E_NOT_FOUND);
    CU_ASSERT_EQUAL(take(s, &q, "k", &err), PERCH_OK);
    CU_ASSERT_EQUAL(q.n_tokens, 0);
    store_close(s);
    CU_ASSERT_EQUAL(n_links, 0);
    testing_redis_kill(&r);
    testing_remove_folder(folder);
}

static void command(const testing_redis *r, const char *text, ...) {
    va_list args;
    redisContext *c = redisConnectUnix(r->address + 5);
    CU_ASSERT_FATAL(c && !c->err);
    va_start(args, text);
    redisReply *reply = redisvCommand(c, text, args);
    va_end(args);
    CU_ASSERT_FATAL(reply && reply->type != REDIS_REPLY_ERROR);
    __real_freeReplyObject(reply);
    redisFree(c);
}

static void lost_scripts_and_closed_connections_are_made_good(void) {
    testing_redis r;
    char folder[64];
    static testing_sequence q;
    perch_error err;
    snprintf(folder, sizeof folder, "%s", testing_folder());
    if (!testing_redis_start(&r, folder)) {
        testing_remove_folder(folder);
        return;
    }
    const store_config config = testing_config(PERCH_STORE_REDIS, folder, &r);
    store *s = testing_open(&config);
    CU_ASSERT_PTR_NOT_NULL_FATAL(s);
    CU_ASSERT_EQUAL(testing_take(s, &q, "k", false, &err), PERCH_OK);
    command(&r, "SCRIPT FLUSH");
    testing_grow(&q, 10, &(test_rng){1});
    CU_ASSERT_EQUAL(testing_put(s, &q, 0, false, &err), PERCH_OK);
    command(&r, "CLIENT KILL TYPE normal");
    testing_grow(&q, 10, &(test_rng){1});
    CU_ASSERT_EQUAL(testing_put(s, &q, 10, true, &err), PERCH_OK);
    command(&r, "SETRANGE test:t:k 9 X"); /* damage */
    CU_ASSERT_EQUAL(testing_take(s, &q, "k", true, &err), PERCH_E_FORMAT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.message, "'k' are damaged"));
    command(&r, "APPEND test:t:k X");
    CU_ASSERT_EQUAL(testing_take(s, &q, "k", true, &err), PERCH_E_FORMAT);
    CU_ASSERT_EQUAL(testing_simple(s, STORE_REMOVE, "k", 0, &err), PERCH_OK);
    store_close(s);
    testing_redis_kill(&r);
    testing_remove_folder(folder);
}

static void a_password_is_needed_and_given(void) {
    testing_redis r;
    char folder[64], file[96];
    static testing_sequence q;
    perch_error err;
    store *s;
    snprintf(folder, sizeof folder, "%s", testing_folder());
    snprintf(file, sizeof file, "%s/password", folder);
    if (!testing_redis_start(&r, folder)) {
        testing_remove_folder(folder);
        return;
    }
    static const struct {
        const char *line;
        perch_status open, take;
        const char *piece;
    } cases[] = {{"open sesame\nnot this\n", PERCH_OK, PERCH_OK, ""},
                 {"open sesame", PERCH_OK, PERCH_OK, ""},
                 {"sesame\n", PERCH_OK, PERCH_E_STORE, "WRONGPASS"},
                 {"\n", PERCH_E_CONFIG, PERCH_OK, "empty"},
                 {NULL, PERCH_E_CONFIG, PERCH_OK, "No such file"}};
    command(&r, "CONFIG SET requirepass %s", "open sesame");
    store_config config = testing_config(PERCH_STORE_REDIS, folder, &r);
    s = testing_open(&config);
    CU_ASSERT(testing_take(s, &q, "k", false, &err) == PERCH_E_STORE && strstr(err.message, "NOAUTH"));
    store_close(s);
    config.password_file = file;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FILE *out = cases[i].line ? fopen(file, "w") : NULL;
        if (out) {
            fputs(cases[i].line, out);
            fclose(out);
        } else {
            unlink(file);
        }
        perch_status status = store_open(&config, &s, &err);
        CHECK_MSG(status == cases[i].open && (!status || strstr(err.message, cases[i].piece)), "case %zu: %s", i,
                  perch_status_name(status));
        if (!status) {
            status = testing_take(s, &q, "k", false, &err);
            CHECK_MSG(status == cases[i].take && (!status || strstr(err.message, cases[i].piece)), "case %zu: %s", i,
                      perch_status_name(status));
            store_close(s);
        }
    }
    testing_redis_kill(&r);
    testing_remove_folder(folder);
}

static void addresses_are_checked(void) {
    static const char *const bad[] = {"",       ":6379",    "host:", "host:0", "host:65536",
                                      "host:x", "host:12x", "::1",   "unix:"};
    static const char *const good[] = {"host", "host:1", "127.0.0.1:65535", "[::1]:6379", "[::1]", "unix:/x"};
    perch_error err;
    store *s;
    store_config config = testing_config(PERCH_STORE_REDIS, "", NULL);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config.address = bad[i];
        CHECK_MSG(store_open(&config, &s, &err) == PERCH_E_CONFIG && strstr(err.message, "[store] address"), "'%s'",
                  bad[i]);
    }
    void *state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        config.address = good[i];
        if (CHECK_MSG(store_redis.open(&config, &state, &err) == PERCH_OK, "'%s'", good[i])) {
            store_redis.close(state);
        }
    }
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
#define TEST(name) {#name, name}
        TEST(every_call_fails_and_nothing_is_lost),
        TEST(replies_that_are_garbage_are_a_status),
        TEST(a_killed_server_is_a_status_at_once_and_its_return_is_noticed),
        TEST(lost_scripts_and_closed_connections_are_made_good),
        TEST(a_password_is_needed_and_given),
        TEST(addresses_are_checked),
    };
    return test_main("redis_fault_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
