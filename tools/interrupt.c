/*
 * interrupt: the signal handler writes to an eventfd, so that no signal is lost between looking and waiting.
 */
#include "interrupt.h"

#include "tool.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A signal handler has nowhere else to look. */
static int wake_fd = -1;
static atomic_bool came;

static void on_signal(int number) {
    (void)number;
    int saved = errno;
    uint64_t one = 1;
    atomic_store(&came, true);
    ssize_t n = write(wake_fd, &one, sizeof(one));
    (void)n;
    errno = saved;
}

perch_status interrupt_install(bool forgiving, perch_error *err) {
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) {
        return tool_error(err, PERCH_E_IO, "cannot make an eventfd: %s", strerror(errno));
    }
    /* Without SA_RESTART: a read from the terminal must return. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = forgiving ? 0 : (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    if (!forgiving) {
        sigaction(SIGTERM, &action, NULL);
    }
    return PERCH_OK;
}

bool interrupt_came(void) { return atomic_load(&came); }

void interrupt_clear(void) {
    uint64_t count;
    atomic_store(&came, false);
    ssize_t n = read(wake_fd, &count, sizeof(count));
    (void)n;
}

bool interrupt_wait(const perch_engine *engine, int fd, int timeout_ms) {
    struct pollfd fds[3] = {
        {.fd = wake_fd, .events = POLLIN},
        {.fd = engine != NULL ? perch_event_fd(engine) : -1, .events = POLLIN},
        {.fd = fd, .events = POLLIN},
    };
    if (poll(fds, 3, timeout_ms) <= 0) {
        return false;
    }
    return fds[2].revents != 0;
}
