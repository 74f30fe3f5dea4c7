/*
 * progress: one line on stderr that is drawn over itself and wiped at the end, and only if somebody can see it.
 */
#include "progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_WIDTH 40

static void draw(void *user, const char *stage, double fraction) {
    struct progress *progress = user;
    double within = fraction < 0.0 ? 0.0 : fraction > 1.0 ? 1.0 : fraction;
    int permille = (int)(within * 1000.0);
    if (permille == progress->last_permille && strncmp(stage, progress->stage, sizeof(progress->stage) - 1) == 0) {
        return;
    }
    progress->last_permille = permille;
    snprintf(progress->stage, sizeof(progress->stage), "%s", stage);
    char bar[BAR_WIDTH + 1];
    int filled = permille * BAR_WIDTH / 1000;
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(BAR_WIDTH - filled));
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3d %% %s", bar, permille / 10, progress->stage);
    fflush(stderr);
    progress->drawn = true;
}

void progress_start(struct progress *progress, perch_options *options) {
    *progress = (struct progress){.last_permille = -1};
    if (isatty(STDERR_FILENO)) {
        options->progress = draw;
        options->progress_user = progress;
    }
}

void progress_end(struct progress *progress, perch_options *options) {
    options->progress = NULL;
    options->progress_user = NULL;
    if (progress->drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
}
