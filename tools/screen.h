/*
 * screen: a terminal that is drawn over itself. A frame is made line by line in memory and written at once, from the top left
 * corner, so that nothing flickers. Plain ANSI: the alternate screen, a hidden cursor, colours unless NO_COLOR is set. The size is
 * asked for before each frame; what does not fit is cut. A line never touches the last column: behind it terminals differ in
 * what they wrap and wipe. A screen that is not open makes plain lines instead, for files, pipes and terminals that can't.
 */
#ifndef PERCH_TOOLS_SCREEN_H
#define PERCH_TOOLS_SCREEN_H

#include "text.h"

#include <stdbool.h>
#include <stdint.h>

enum screen_style { SCREEN_PLAIN, SCREEN_BOLD, SCREEN_FAINT, SCREEN_GREEN, SCREEN_YELLOW, SCREEN_RED };

struct screen {
    bool is_open;
    bool utf8;
    bool colour;
    /* the frame that is being made */
    struct text frame;
    bool failed; /* memory ran out: it is not shown */
    size_t rows, columns, row, column;
    size_t n_spare; /* rows for empty lines */
};

/* Whether stdout is a terminal that can be drawn on. */
bool screen_possible(void);

/* Makes a screen that is not open. */
void screen_init(struct screen *screen);

/* Takes the terminal over; screen_close gives it back as it was, and frees the frame. */
void screen_open(struct screen *screen);
void screen_close(struct screen *screen);

/* Begins a frame of n_lines lines beside empty ones, as far as is known. */
void screen_begin(struct screen *screen, size_t n_lines);

/* Writes the frame. False where stdout takes it not; errno says why. */
bool screen_end(struct screen *screen);

/* Adds text, cut to at most `columns` and to what the line has left; an ellipsis says that it was cut. */
void screen_put_cut(struct screen *screen, enum screen_style style, size_t columns, const char *text);
void screen_put(struct screen *screen, enum screen_style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void screen_put_blank_to(struct screen *screen, size_t column);

/* n cells of a bar, full or empty ones. */
void screen_put_solid(struct screen *screen, enum screen_style style, size_t n);
void screen_put_light(struct screen *screen, enum screen_style style, size_t n);

void screen_end_line(struct screen *screen);
/* An empty line, if there is one to spare. */
void screen_blank_line(struct screen *screen);

/* Columns of UTF-8 text: a character is taken for one. */
size_t screen_columns(const char *text);

#endif
