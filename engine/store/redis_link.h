/*
 * redis_link: a connection to Redis. hiredis writes commands and reads replies; what goes over the socket in between is done here,
 * since hiredis' own connections end the process, or follow a null pointer, where memory runs out.
 */
#ifndef PERCH_ENGINE_STORE_REDIS_LINK_H
#define PERCH_ENGINE_STORE_REDIS_LINK_H

#include "base/base.h"

#include <hiredis/hiredis.h>

typedef struct redis_link {
    redisReader *reader; /* NULL = closed */
    int fd;
    char *out; /* [n_out] commands that were not sent yet */
    size_t n_out, out_cap;
    uint32_t timeout_ms;
} redis_link;

/*
 * Connects; port 0: host is the path of a socket. From then on neither sending nor waiting for bytes takes longer than timeout_ms.
 * Looking up a host's name is not under that limit. All failures here are E_STORE, the message the reason alone.
 */
perch_status redis_link_open(redis_link *l, const char *host, int port, uint32_t timeout_ms, perch_error *err);
/* Fine on a closed one. */
void redis_link_close(redis_link *l);

/* A command for the next redis_link_reply to send. */
perch_status redis_link_append(redis_link *l, int n_args, const char **args, const size_t *lengths, perch_error *err);

/* The next reply, freed by freeReplyObject. After a failure the connection is good for nothing but being closed. */
perch_status redis_link_reply(redis_link *l, redisReply **out, perch_error *err);

#endif
