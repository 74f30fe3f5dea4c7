/*
 * progress: a bar on the terminal while a model loads.
 */
#ifndef PERCH_TOOLS_PROGRESS_H
#define PERCH_TOOLS_PROGRESS_H

#include "perch/perch.h"

#include <stdbool.h>

struct progress {
    bool drawn; /* there is a line to wipe */
    int last_permille;
    char stage[64];
};

/* Makes options report to the bar; does nothing unless stderr is a terminal. The bar must live until progress_end. */
void progress_start(struct progress *progress, perch_options *options);

/* Wipes the bar and takes it out of options. */
void progress_end(struct progress *progress, perch_options *options);

#endif
