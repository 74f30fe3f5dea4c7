/*
 * screen: a terminal that is drawn over itself. See screen.h.
 */
#include "screen.h"

#include <langinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define NOT_A_TERMINAL_ROWS 100000u
#define NOT_A_TERMINAL_COLUMNS 100u

static const char *const style_codes[] = {"", "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m"};

bool screen_possible(void) {
    const char *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && term != NULL && term[0] != '\0' && strcmp(term, "dumb") != 0;
}

static bool write_out(const char *data, size_t n_bytes) {
    return fwrite(data, 1, n_bytes, stdout) == n_bytes && fflush(stdout) == 0;
}

void screen_init(struct screen *screen) {
    *screen = (struct screen){.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
}

void screen_open(struct screen *screen) {
    static const char open[] = "\033[?1049h\033[?25l\033[2J";
    const char *no_colour = getenv("NO_COLOR");
    screen_init(screen);
    screen->is_open = true;
    screen->colour = no_colour == NULL || no_colour[0] == '\0';
    write_out(open, sizeof(open) - 1);
}

void screen_close(struct screen *screen) {
    static const char close[] = "\033[?25h\033[?1049l";
    if (screen->is_open) {
        write_out(close, sizeof(close) - 1);
        screen->is_open = false;
    }
    text_free(&screen->frame);
}

/* ---------------------------------------------------- a line, piece by piece -- */

static bool is_continuation(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

size_t screen_columns(const char *text) {
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += is_continuation(*text) ? 0 : 1;
    }
    return n;
}

/* Adds to the frame what is above the terminal's lower edge. */
static void add(struct screen *screen, const char *data, size_t n_bytes) {
    if (screen->row < screen->rows && text_add(&screen->frame, data, n_bytes, NULL) != PERCH_OK) {
        screen->failed = true;
    }
}

static void add_string(struct screen *screen, const char *text) { add(screen, text, strlen(text)); }

void screen_put_cut(struct screen *screen, enum screen_style style, size_t columns, const char *text) {
    size_t left = screen->columns - screen->column;
    size_t room = columns < left ? columns : left;
    size_t width = screen_columns(text);
    bool cut = width > room;
    size_t n = cut ? (room > 0 ? room - 1 : 0) : width;
    if (room == 0) {
        return;
    }
    add_string(screen, screen->colour ? style_codes[style] : "");
    const char *at = text;
    for (size_t i = 0; i < n; i++) {
        size_t length = 1;
        while (is_continuation(at[length])) {
            length++;
        }
        bool is_control = (unsigned char)at[0] < 0x20 || at[0] == 0x7f;
        add(screen, is_control ? " " : at, length);
        at += length;
    }
    if (cut) {
        add_string(screen, screen->utf8 ? "…" : "~");
    }
    add_string(screen, screen->colour && style != SCREEN_PLAIN ? "\033[0m" : "");
    screen->column += cut ? room : width;
}

void screen_put(struct screen *screen, enum screen_style style, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    screen_put_cut(screen, style, screen->columns, text);
}

static void put_repeated(struct screen *screen, enum screen_style style, const char *utf8, const char *ascii,
                         size_t n) {
    size_t left = screen->columns - screen->column;
    n = n < left ? n : left;
    add_string(screen, screen->colour ? style_codes[style] : "");
    for (size_t i = 0; i < n; i++) {
        add_string(screen, screen->utf8 ? utf8 : ascii);
    }
    add_string(screen, screen->colour && style != SCREEN_PLAIN ? "\033[0m" : "");
    screen->column += n;
}

void screen_put_solid(struct screen *screen, enum screen_style style, size_t n) {
    put_repeated(screen, style, "█", "#", n);
}

void screen_put_light(struct screen *screen, enum screen_style style, size_t n) {
    put_repeated(screen, style, "░", ".", n);
}

void screen_put_blank_to(struct screen *screen, size_t column) {
    while (screen->column < column && screen->column < screen->columns) {
        add_string(screen, " ");
        screen->column++;
    }
}

/* Behind the last row nothing may follow, or the terminal would scroll. */
void screen_end_line(struct screen *screen) {
    if (!screen->is_open) {
        add_string(screen, "\n");
    } else {
        add_string(screen, screen->row + 1 < screen->rows ? "\033[K\r\n" : "\033[K");
    }
    screen->row++;
    screen->column = 0;
}

void screen_blank_line(struct screen *screen) {
    if (screen->n_spare > 0) {
        screen->n_spare--;
        screen_end_line(screen);
    }
}

/* -------------------------------------------------------------- the frame -- */

void screen_begin(struct screen *screen, size_t n_lines) {
    struct winsize size;
    size_t rows = NOT_A_TERMINAL_ROWS;
    size_t columns = NOT_A_TERMINAL_COLUMNS;
    if (screen->is_open) {
        bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;
        rows = known ? size.ws_row : 24;
        columns = (known ? size.ws_col : 80) - 1u;
    }
    bool resized = rows != screen->rows || columns != screen->columns;
    screen->rows = rows;
    screen->columns = columns;
    screen->row = 0;
    screen->column = 0;
    screen->n_spare = rows > n_lines ? rows - n_lines : 0;
    screen->failed = false;
    screen->frame.n_bytes = 0;
    if (screen->is_open) {
        add_string(screen, resized ? "\033[2J\033[H" : "\033[H");
    }
}

bool screen_end(struct screen *screen) {
    if (screen->is_open) {
        add_string(screen, "\033[J");
    }
    return screen->failed || write_out(screen->frame.data, screen->frame.n_bytes);
}
