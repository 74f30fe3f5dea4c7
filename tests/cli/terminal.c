/*
 * terminal: a command on a terminal of its own.  usage: cli_terminal OUT END COMMAND...
 *
 * Gives it 24 rows of 80 columns, waits for a frame, makes that 10 rows of 60, waits for a frame drawn from scratch, and ends it:
 * END is a key to press, or INT or TERM, signals to send. What it drew goes to OUT. Prints its exit code, whether line editing and
 * echo are as they were, and how many frames there were.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define FRAME_END "\033[J"
#define FROM_SCRATCH "\033[2J\033[H"

static char drawn[1 << 20];
static size_t n_drawn;

/* Until what was drawn from `from` on has the text; false: it is over. */
static int read_until(int terminal, size_t from, const char *text) {
    while (strstr(drawn + from, text) == NULL) {
        ssize_t n = read(terminal, drawn + n_drawn, sizeof(drawn) - n_drawn - 1);
        if (n <= 0) { /* EIO: nobody has the terminal open any more */
            return 0;
        }
        n_drawn += (size_t)n;
    }
    return 1;
}

static pid_t start(int terminal, char **command) {
    pid_t child = fork();
    if (child != 0) {
        return child;
    }
    setsid();
    int own = open(ptsname(terminal), O_RDWR);
    ioctl(own, TIOCSCTTY, 0);
    dup2(own, 0);
    dup2(own, 1);
    dup2(own, 2);
    close(own);
    close(terminal);
    setenv("TERM", "xterm", 1);
    execvp(command[0], command);
    _exit(127);
}

static void set_size(int terminal, unsigned short rows, unsigned short columns) {
    const struct winsize size = {.ws_row = rows, .ws_col = columns};
    ioctl(terminal, TIOCSWINSZ, &size);
}

static void end(int terminal, pid_t child, const char *how) {
    if (strcmp(how, "INT") == 0 || strcmp(how, "TERM") == 0) {
        kill(child, how[0] == 'I' ? SIGINT : SIGTERM);
    } else if (write(terminal, how, 1) != 1) {
        perror("cli_terminal: write");
    }
}

static size_t count(const char *text) {
    size_t n = 0;
    for (const char *at = drawn; (at = strstr(at, text)) != NULL; at++) {
        n++;
    }
    return n;
}

int main(int argc, char **argv) {
    struct termios before;
    struct termios after;
    int status = 0;
    int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    if (argc < 4 || terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) {
        fprintf(stderr, "usage: cli_terminal OUT END COMMAND...\n");
        return 2;
    }
    int held = open(ptsname(terminal), O_RDWR | O_NOCTTY); /* so that its settings outlive the command */
    set_size(terminal, 24, 80);
    tcgetattr(held, &before);
    pid_t child = start(terminal, argv + 3);
    if (read_until(terminal, 0, FRAME_END)) {
        size_t from = n_drawn;
        set_size(terminal, 10, 60);
        read_until(terminal, from, FROM_SCRATCH);
        from = (size_t)(strstr(drawn + from, FROM_SCRATCH) - drawn);
        read_until(terminal, from, FRAME_END);
        end(terminal, child, argv[2]);
    }
    waitpid(child, &status, 0);
    tcgetattr(held, &after);
    close(held);
    read_until(terminal, n_drawn, "\001"); /* the rest */
    FILE *out = fopen(argv[1], "wb");
    if (out == NULL || fwrite(drawn, 1, n_drawn, out) != n_drawn || fclose(out) != 0) {
        perror(argv[1]);
        return 2;
    }
    printf("%d\t%s\t%zu\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
           before.c_lflag == after.c_lflag && before.c_cc[VSUSP] == after.c_cc[VSUSP] ? "as before" : "changed",
           count(FRAME_END));
    return 0;
}
