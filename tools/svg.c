/*
 * svg: line charts, side by side, in one picture. Axes begin at 0 (or, logarithmic, at a power of ten) and end at a round
 * number; lines are told apart by colour and by dash.
 */
#include "svg.h"

#include "text.h"
#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHART_WIDTH 560.0
#define CHART_HEIGHT 420.0
#define LEFT 70.0
#define RIGHT 20.0
#define TOP 60.0
#define BOTTOM 60.0
#define LEGEND_LINE 18.0

/* Colours that the colour-blind can tell apart (Okabe and Ito). */
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};
static const char *const dashes[] = {"", "6 3", "2 3", "8 3 2 3"};
enum { N_COLOURS = sizeof(colours) / sizeof(colours[0]), N_DASHES = sizeof(dashes) / sizeof(dashes[0]) };

perch_status svg_add_series(struct svg_chart *chart, const char *name, unsigned colour, unsigned dash,
                            perch_error *err) {
    void *series = chart->series;
    perch_status status = grow(&series, &chart->cap, chart->n_series + 1, sizeof(*chart->series), err);
    chart->series = series;
    if (status == PERCH_OK) {
        struct svg_series *last = &chart->series[chart->n_series++];
        *last = (struct svg_series){.colour = colour % N_COLOURS, .dash = dash % N_DASHES};
        snprintf(last->name, sizeof(last->name), "%s", name);
    }
    return status;
}

perch_status svg_add_point(struct svg_chart *chart, double x, double y, perch_error *err) {
    struct svg_series *series = &chart->series[chart->n_series - 1];
    if (!isfinite(x) || !isfinite(y) || (chart->x_log && x <= 0.0)) {
        return PERCH_OK;
    }
    void *xs = series->x;
    perch_status status = grow(&xs, &series->x_cap, series->n + 1, sizeof(*series->x), err);
    series->x = xs;
    void *ys = series->y;
    status = status != PERCH_OK ? status : grow(&ys, &series->y_cap, series->n + 1, sizeof(*series->y), err);
    series->y = ys;
    if (status == PERCH_OK) {
        series->x[series->n] = x;
        series->y[series->n++] = y;
    }
    return status;
}

void svg_free(struct svg_chart *chart) {
    for (size_t i = 0; i < chart->n_series; i++) {
        free(chart->series[i].x);
        free(chart->series[i].y);
    }
    free(chart->series);
    chart->series = NULL;
    chart->n_series = 0;
    chart->cap = 0;
}

/* ------------------------------------------------------------------ axes -- */

struct axis {
    double from, to;
    double step; /* between ticks; logarithmic: ticks are the powers of ten */
    bool is_log;
    double start, end; /* on the page */
};

static double place(const struct axis *axis, double value) {
    double part = axis->is_log ? (log10(value) - log10(axis->from)) / (log10(axis->to) - log10(axis->from))
                               : (value - axis->from) / (axis->to - axis->from);
    return axis->start + part * (axis->end - axis->start);
}

/* 1, 2 or 5 times a power of ten, so that about n of it make up span. */
static double round_step(double span, double n) {
    double raw = span / n;
    double power = pow(10.0, floor(log10(raw)));
    double digit = raw / power;
    return power * (digit <= 1.0 ? 1.0 : digit <= 2.0 ? 2.0 : digit <= 5.0 ? 5.0 : 10.0);
}

static struct axis make_axis(double least, double most, bool is_log, double start, double end) {
    struct axis axis = {.is_log = is_log, .start = start, .end = end};
    if (is_log) {
        axis.from = pow(10.0, floor(log10(least)));
        axis.to = pow(10.0, ceil(log10(most)));
        if (axis.to <= axis.from) {
            axis.to = axis.from * 10.0;
        }
        return axis;
    }
    double highest = most > 0.0 ? most : 1.0;
    axis.from = least < 0.0 ? least : 0.0;
    axis.step = round_step(highest - axis.from, 6.0);
    axis.to = axis.step * ceil(highest / axis.step - 1e-9);
    return axis;
}

static void find_range(const struct svg_chart *chart, bool of_x, double *least, double *most) {
    *least = INFINITY;
    *most = -INFINITY;
    for (size_t s = 0; s < chart->n_series; s++) {
        const struct svg_series *series = &chart->series[s];
        for (size_t i = 0; i < series->n; i++) {
            double value = of_x ? series->x[i] : series->y[i];
            *least = value < *least ? value : *least;
            *most = value > *most ? value : *most;
        }
    }
    if (*least > *most) {
        *least = of_x && chart->x_log ? 1.0 : 0.0;
        *most = 1.0;
    }
}

/* --------------------------------------------------------------- drawing -- */

static void write_text(FILE *file, const char *text) {
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", file);
            break;
        case '<':
            fputs("&lt;", file);
            break;
        case '>':
            fputs("&gt;", file);
            break;
        default:
            fputc(*text, file);
            break;
        }
    }
}

static void label(FILE *file, double x, double y, const char *attributes, const char *text) {
    fprintf(file, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
    write_text(file, text);
    fputs("</text>\n", file);
}

static void draw_tick(FILE *file, const struct axis *x, const struct axis *y, bool on_x, double value) {
    char text[32];
    snprintf(text, sizeof(text), "%.6g", value);
    if (on_x) {
        double at = place(x, value);
        fprintf(file, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", at, y->start, at,
                y->end);
        label(file, at, y->start + 18.0, "text-anchor=\"middle\"", text);
    } else {
        double at = place(y, value);
        fprintf(file, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", x->start, at, x->end,
                at);
        label(file, x->start - 8.0, at + 4.0, "text-anchor=\"end\"", text);
    }
}

static void draw_ticks(FILE *file, const struct axis *x, const struct axis *y, bool on_x) {
    const struct axis *axis = on_x ? x : y;
    if (axis->is_log) {
        int n_decades = (int)lround(log10(axis->to / axis->from));
        for (int i = 0; i <= n_decades; i++) {
            draw_tick(file, x, y, on_x, axis->from * pow(10.0, i));
        }
        return;
    }
    int n = (int)lround((axis->to - axis->from) / axis->step);
    for (int i = 0; i <= n; i++) {
        draw_tick(file, x, y, on_x, axis->from + axis->step * i);
    }
}

static void draw_series(FILE *file, const struct svg_chart *chart, size_t s, const struct axis *x,
                        const struct axis *y) {
    const struct svg_series *series = &chart->series[s];
    const char *colour = colours[series->colour];
    const char *dash = dashes[series->dash];
    fprintf(file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-dasharray=\"%s\" points=\"", colour,
            dash);
    for (size_t i = 0; i < series->n; i++) {
        fprintf(file, "%.1f,%.1f ", place(x, series->x[i]), place(y, series->y[i]));
    }
    fputs("\"/>\n", file);
    for (size_t i = 0; chart->marks && i < series->n; i++) {
        fprintf(file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", place(x, series->x[i]),
                place(y, series->y[i]), colour);
    }
}

static void draw_legend(FILE *file, const struct svg_chart *chart, double left, double top) {
    for (size_t s = 0; s < chart->n_series; s++) {
        double y = top + LEGEND_LINE * (double)s;
        fprintf(file,
                "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\" "
                "stroke-dasharray=\"%s\"/>\n",
                left, y, left + 26.0, y, colours[chart->series[s].colour], dashes[chart->series[s].dash]);
        label(file, left + 32.0, y + 4.0, "", chart->series[s].name);
    }
}

static void draw_chart(FILE *file, const struct svg_chart *chart, double left) {
    double least;
    double most;
    find_range(chart, true, &least, &most);
    struct axis x = make_axis(least, most, chart->x_log, left + LEFT, left + CHART_WIDTH - RIGHT);
    find_range(chart, false, &least, &most);
    struct axis y = make_axis(least, most, false, CHART_HEIGHT - BOTTOM, TOP);
    char turned[64];
    label(file, (x.start + x.end) / 2.0, TOP - 14.0, "text-anchor=\"middle\" font-weight=\"bold\"", chart->title);
    draw_ticks(file, &x, &y, true);
    draw_ticks(file, &x, &y, false);
    fprintf(file, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#333\"/>\n", x.start, y.end, y.start, x.end);
    label(file, (x.start + x.end) / 2.0, y.start + 42.0, "text-anchor=\"middle\"", chart->x_label);
    double middle = (y.start + y.end) / 2.0;
    snprintf(turned, sizeof(turned), "text-anchor=\"middle\" transform=\"rotate(-90 %.1f %.1f)\"", left + 16.0, middle);
    label(file, left + 16.0, middle, turned, chart->y_label);
    for (size_t s = 0; s < chart->n_series; s++) {
        draw_series(file, chart, s, &x, &y);
    }
    draw_legend(file, chart, left + LEFT, CHART_HEIGHT + 10.0);
}

perch_status svg_write(const char *path, const char *heading, const struct svg_chart *charts, size_t n,
                       perch_error *err) {
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return tool_error(err, PERCH_E_IO, "cannot write %s: %s", path, strerror(errno));
    }
    size_t most_series = 0;
    for (size_t i = 0; i < n; i++) {
        most_series = charts[i].n_series > most_series ? charts[i].n_series : most_series;
    }
    double width = CHART_WIDTH * (double)n;
    double height = CHART_HEIGHT + LEGEND_LINE * (double)most_series + 20.0;
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<style>.grid { stroke: #ddd; }</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            width, height, width, height);
    label(file, width / 2.0, 20.0, "text-anchor=\"middle\" font-size=\"14\"", heading);
    for (size_t i = 0; i < n; i++) {
        draw_chart(file, &charts[i], CHART_WIDTH * (double)i);
    }
    fputs("</svg>\n", file);
    bool failed = ferror(file) != 0;
    failed = fclose(file) != 0 || failed;
    return failed ? tool_error(err, PERCH_E_IO, "cannot write %s: %s", path, strerror(errno)) : PERCH_OK;
}
