/* redis_link: see redis_link.h. */
#include "engine/store/redis_link.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* On Linux the limit for sending holds for connecting as well. */
static perch_status dial_address(int family, const struct sockaddr *address, socklen_t n_bytes, uint32_t timeout_ms,
                                 int *out, perch_error *err) {
    const struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = (suseconds_t)(timeout_ms % 1000) * 1000};
    const int on = 1;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return err_set(err, PERCH_E_STORE, "socket: %s", strerror(errno));
    }
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) || connect(fd, address, n_bytes)) {
        bool late = errno == EINPROGRESS || errno == EAGAIN;
        err_set(err, PERCH_E_STORE, "%s", late ? "no connection in time" : strerror(errno));
        close(fd);
        return PERCH_E_STORE;
    }
    if (family != AF_UNIX) { /* without it a small command waits for the answer to the one before */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    *out = fd;
    return PERCH_OK;
}

static perch_status dial_socket(const char *path, uint32_t timeout_ms, int *out, perch_error *err) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t n = strlen(path);
    if (n >= sizeof address.sun_path) {
        return err_set(err, PERCH_E_STORE, "the path of a socket has at most %zu bytes", sizeof address.sun_path - 1);
    }
    memcpy(address.sun_path, path, n + 1);
    return dial_address(AF_UNIX, (const struct sockaddr *)&address, sizeof address, timeout_ms, out, err);
}

static perch_status dial(const char *host, int port, uint32_t timeout_ms, int *out, perch_error *err) {
    const struct addrinfo wanted = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char service[16];
    if (!port) {
        return dial_socket(host, timeout_ms, out, err);
    }
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &wanted, &found);
    if (rc) {
        return err_set(err, PERCH_E_STORE, "%s", gai_strerror(rc));
    }
    perch_status status = PERCH_E_STORE;
    for (const struct addrinfo *at = found; at && status; at = at->ai_next) {
        status = dial_address(at->ai_family, at->ai_addr, at->ai_addrlen, timeout_ms, out, err);
    }
    freeaddrinfo(found);
    return status;
}

/* ------------------------------------------------------------------ open, close -- */

perch_status redis_link_open(redis_link *l, const char *host, int port, uint32_t timeout_ms, perch_error *err) {
    perch_status status = dial(host, port, timeout_ms, &l->fd, err);
    if (status) {
        return status;
    }
    l->reader = redisReaderCreate();
    if (!l->reader) {
        close(l->fd);
        return err_set(err, PERCH_E_STORE, "out of host memory");
    }
    l->reader->maxbuf = 0; /* its buffer is kept: where it is made anew, that must not fail */
    l->n_out = 0;
    l->timeout_ms = timeout_ms;
    return PERCH_OK;
}

void redis_link_close(redis_link *l) {
    if (l->reader) {
        redisReaderFree(l->reader);
        l->reader = NULL;
        close(l->fd);
    }
    free(l->out);
    l->out = NULL;
    l->out_cap = l->n_out = 0;
}

/* --------------------------------------------------------------- commands, replies -- */

perch_status redis_link_append(redis_link *l, int n_args, const char **args, const size_t *lengths, perch_error *err) {
    char *text = NULL;
    int n_bytes = redisFormatCommandArgv(&text, n_args, args, lengths);
    if (n_bytes < 0 || array_reserve((void **)&l->out, &l->out_cap, l->n_out + (size_t)n_bytes, 1, NULL)) {
        redisFreeCommand(text);
        return err_set(err, PERCH_E_STORE, "out of host memory");
    }
    memcpy(l->out + l->n_out, text, (size_t)n_bytes);
    l->n_out += (size_t)n_bytes;
    redisFreeCommand(text);
    return PERCH_OK;
}

static perch_status socket_failure(perch_error *err) {
    return err_set(err, PERCH_E_STORE, "%s", errno == EAGAIN ? "no reply in time" : strerror(errno));
}

static perch_status send_all(redis_link *l, perch_error *err) {
    for (size_t done = 0; done < l->n_out;) {
        ssize_t n = send(l->fd, l->out + done, l->n_out - done, MSG_NOSIGNAL);
        if (n > 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            return socket_failure(err);
        }
    }
    l->n_out = 0;
    return PERCH_OK;
}

static perch_status receive(redis_link *l, perch_error *err) {
    char bytes[1 << 14];
    ssize_t n = recv(l->fd, bytes, sizeof bytes, 0);
    if (n == 0) {
        return err_set(err, PERCH_E_STORE, "it has closed the connection");
    }
    if (n < 0) {
        return errno == EINTR ? PERCH_OK : socket_failure(err);
    }
    return redisReaderFeed(l->reader, bytes, (size_t)n) == REDIS_OK
               ? PERCH_OK
               : err_set(err, PERCH_E_STORE, "%s", l->reader->errstr);
}

perch_status redis_link_reply(redis_link *l, redisReply **out, perch_error *err) {
    uint64_t until_us = time_us() + (uint64_t)l->timeout_ms * 1000;
    void *reply = NULL;
    perch_status status = send_all(l, err);
    while (!status && !reply) {
        if (redisReaderGetReply(l->reader, &reply) != REDIS_OK) {
            status = err_set(err, PERCH_E_STORE, "%s", l->reader->errstr);
        } else if (!reply && time_us() > until_us) { /* it comes, but byte by byte */
            status = err_set(err, PERCH_E_STORE, "no reply in time");
        } else if (!reply) {
            status = receive(l, err);
        }
    }
    *out = reply;
    return status;
}
