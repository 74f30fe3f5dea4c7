/*
 * svg: line charts, side by side, in one picture.
 */
#ifndef PERCH_TOOLS_SVG_H
#define PERCH_TOOLS_SVG_H

#include "perch/perch.h"

#include <stdbool.h>
#include <stddef.h>

struct svg_series {
    char name[48];
    unsigned colour, dash; /* any number; 0, 1, 2, ... are told apart */
    double *x, *y;         /* [n], owned */
    size_t n, x_cap, y_cap;
};

struct svg_chart {
    char title[80];
    char x_label[48];
    char y_label[48];
    bool x_log;
    bool marks;                /* a dot at every point */
    struct svg_series *series; /* [n_series], owned */
    size_t n_series, cap;
};

/* Adds a series to a chart and a point to its last series. E_NOMEM. Points that are not finite are left out. */
perch_status svg_add_series(struct svg_chart *chart, const char *name, unsigned colour, unsigned dash,
                            perch_error *err);
perch_status svg_add_point(struct svg_chart *chart, double x, double y, perch_error *err);
void svg_free(struct svg_chart *chart);

/* Writes charts[n] to path. E_IO. */
perch_status svg_write(const char *path, const char *heading, const struct svg_chart *charts, size_t n,
                       perch_error *err);

#endif
