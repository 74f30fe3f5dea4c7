/*
 * top_screen: engines' statistics as lines: one in full, several as a table.
 */
#ifndef PERCH_TOOLS_TOP_SCREEN_H
#define PERCH_TOOLS_TOP_SCREEN_H

#include "screen.h"
#include "top_data.h"

/* Draws a frame. False where stdout does not take it; errno says why. */
bool top_screen_draw(struct screen *screen, const struct top_engines *top);

#endif
