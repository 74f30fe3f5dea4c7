/*
 * top_screen: engines' statistics as lines. See top_screen.h.
 */
#include "top_screen.h"

#include "table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LABEL_COLUMNS 11u
#define BAR_COLUMNS 40u
#define ONE_LINES 15u    /* of the view of one engine, blank ones apart */
#define OLD_US 3000000u  /* of numbers: it computes one long step, or hangs */
#define NAME_COLUMNS 10u /* in the table */
#define MODEL_COLUMNS 16u

/* ----------------------------------------------------------------- pieces -- */

static void begin_line(struct screen *screen, const char *label) {
    screen_put(screen, SCREEN_FAINT, "%s", label);
    screen_put_blank_to(screen, LABEL_COLUMNS);
}

/* part and more of whole, next to one another. */
static void put_bar(struct screen *screen, uint64_t part, uint64_t more, uint64_t whole) {
    uint64_t total = whole > 0 ? whole : 1;
    size_t n_part = (size_t)((part * BAR_COLUMNS + total / 2) / total);
    size_t n_both = (size_t)(((part + more) * BAR_COLUMNS + total / 2) / total);
    n_both = n_both < BAR_COLUMNS ? n_both : BAR_COLUMNS;
    n_part = n_part < n_both ? n_part : n_both;
    screen_put_solid(screen, SCREEN_GREEN, n_part);
    screen_put_solid(screen, SCREEN_YELLOW, n_both - n_part);
    screen_put_light(screen, SCREEN_FAINT, BAR_COLUMNS - n_both);
    screen_put(screen, SCREEN_PLAIN, "  ");
}

static void put_bytes(struct screen *screen, enum screen_style style, const char *format, double n_bytes)
    __attribute__((format(printf, 3, 0)));

/* format has one %s, for the size. */
static void put_bytes(struct screen *screen, enum screen_style style, const char *format, double n_bytes) {
    char size[32];
    char text[128];
    format_bytes(size, sizeof(size), (uint64_t)n_bytes);
    snprintf(text, sizeof(text), format, size);
    screen_put(screen, style, "%s", text);
}

static const char *time_text(char out[32], uint64_t us) {
    double seconds = (double)us / 1e6;
    if (us < 10000000) {
        snprintf(out, 32, us < 1000000 ? "%.1f ms" : "%.2f s", us < 1000000 ? (double)us / 1e3 : seconds);
    } else if (seconds < 3600) {
        snprintf(out, 32, seconds < 120 ? "%.0f s" : "%.0f min", seconds < 120 ? seconds : seconds / 60);
    } else {
        snprintf(out, 32, seconds < 172800 ? "%.1f h" : "%.1f days", seconds / (seconds < 172800 ? 3600 : 86400));
    }
    return out;
}

static void put_share(struct screen *screen, const char *what, double share) {
    if (isfinite(share)) {
        screen_put(screen, SCREEN_PLAIN, "%s %.1f %%", what, 100.0 * share);
    } else {
        screen_put(screen, SCREEN_PLAIN, "%s -", what);
    }
}

static double share_of(uint64_t part, uint64_t whole) { return whole > 0 ? (double)part / (double)whole : NAN; }

/* -------------------------------------------------------------- one engine -- */

/* Whether it lives, and how old what is shown is, where that matters. */
static void put_state(struct screen *screen, const perch_snapshot *now) {
    char age[32];
    if (!now->running) {
        screen_put(screen, SCREEN_RED, "  its process is gone; this is what it left");
    } else if (now->stats.status != PERCH_OK) {
        screen_put(screen, SCREEN_RED, "  dead: %s", perch_status_text(now->stats.status));
    } else if (now->age_us > OLD_US) {
        screen_put(screen, SCREEN_YELLOW, "  nothing new for %s", time_text(age, now->age_us));
    }
}

static void draw_title(struct screen *screen, const perch_snapshot *now) {
    char up[32];
    screen_put(screen, SCREEN_BOLD, "%s", now->model);
    screen_put(screen, SCREEN_PLAIN, "  process %u  up %s", now->pid, time_text(up, now->uptime_us));
    put_state(screen, now);
    screen_end_line(screen);
    screen_put(screen, SCREEN_FAINT, "%s, session_len %u, perch %s", now->backend, now->session_len, now->version);
    screen_end_line(screen);
}

static void draw_rows(struct screen *screen, const perch_stats *stats) {
    begin_line(screen, "rows");
    put_bar(screen, stats->rows_running, 0, stats->slots_total);
    screen_put(screen, SCREEN_GREEN, "%u of %u running", stats->rows_running, stats->slots_total);
    screen_put(screen, stats->requests_waiting > 0 ? SCREEN_YELLOW : SCREEN_FAINT, "  %u requests waiting",
               stats->requests_waiting);
    screen_end_line(screen);
}

static void draw_pages(struct screen *screen, const perch_stats *stats) {
    begin_line(screen, "pages");
    put_bar(screen, stats->pages_live, stats->pages_cached, stats->pages_total);
    screen_put(screen, SCREEN_GREEN, "%u live", stats->pages_live);
    screen_put(screen, SCREEN_YELLOW, "  %u cached", stats->pages_cached);
    screen_put(screen, SCREEN_FAINT, "  %u free", stats->pages_free);
    put_bytes(screen, SCREEN_FAINT, "  of %s", (double)stats->pages_total * (double)stats->page_bytes);
    screen_end_line(screen);
}

/* Of a tier below the device, where there is one. */
static void draw_tier(struct screen *screen, const char *name, uint32_t used, uint32_t total, uint64_t page_bytes) {
    if (total == 0) {
        return;
    }
    begin_line(screen, name);
    put_bar(screen, 0, used, total);
    screen_put(screen, SCREEN_YELLOW, "%u copies", used);
    screen_put(screen, SCREEN_FAINT, "  %u free", total - used);
    put_bytes(screen, SCREEN_FAINT, "  of %s", (double)total * (double)page_bytes);
    screen_end_line(screen);
}

static void draw_tiers(struct screen *screen, const perch_stats *stats) {
    draw_tier(screen, "host", stats->host_pages_used, stats->host_pages_total, stats->page_bytes);
    draw_tier(screen, "disk", stats->disk_pages_used, stats->disk_pages_total, stats->page_bytes);
    if (stats->disk_status != PERCH_OK) {
        begin_line(screen, "");
        screen_put(screen, SCREEN_RED, "the disk is not used any more: %s", perch_status_text(stats->disk_status));
        screen_end_line(screen);
    }
}

static void draw_sequences(struct screen *screen, const perch_stats *stats) {
    uint64_t resident = stats->sequences_resident, active = stats->rows_running;
    uint64_t there = resident + active;
    uint64_t demoted = stats->sequences_open > there ? stats->sequences_open - there : 0;
    begin_line(screen, "sequences");
    put_bar(screen, active, resident, stats->sequences_open > there ? stats->sequences_open : there);
    screen_put(screen, SCREEN_GREEN, "%llu active", (unsigned long long)active);
    screen_put(screen, SCREEN_YELLOW, "  %llu resident", (unsigned long long)resident);
    screen_put(screen, SCREEN_FAINT, "  %llu demoted", (unsigned long long)demoted);
    screen_end_line(screen);
}

static void draw_speed(struct screen *screen, const struct top_rates *rates) {
    begin_line(screen, "speed");
    screen_put(screen, SCREEN_BOLD, "prefill %.0f tokens/s  decode %.0f tokens/s", rates->prefill_tokens,
               rates->decode_tokens);
    screen_put(screen, SCREEN_PLAIN, "  requests %.1f/s", rates->requests);
    screen_end_line(screen);
    begin_line(screen, "steps");
    screen_put(screen, SCREEN_PLAIN, "%.2f ms, of which the host %.1f %%", rates->step_ms, 100.0 * rates->host_share);
    screen_end_line(screen);
}

static void draw_hits(struct screen *screen, const perch_stats *stats, const struct top_rates *rates) {
    char saved[32];
    uint64_t found = stats->hits + stats->partial_hits;
    begin_line(screen, "cache");
    put_share(screen, "hits now", rates->hit_ratio);
    put_share(screen, "  in all", share_of(found, found + stats->misses));
    put_share(screen, "  tokens spared", rates->cached_share);
    screen_put(screen, SCREEN_PLAIN, "  prefill saved %s", time_text(saved, stats->saved_us));
    screen_end_line(screen);
    begin_line(screen, "");
    screen_put(screen, SCREEN_FAINT, "%llu hits  %llu partial hits  %llu restored  %llu misses  %llu first turns",
               (unsigned long long)stats->hits, (unsigned long long)stats->partial_hits,
               (unsigned long long)stats->restored_hits, (unsigned long long)stats->misses,
               (unsigned long long)stats->first_turns);
    screen_end_line(screen);
}

static void draw_evictions(struct screen *screen, const perch_stats *stats, const struct top_rates *rates) {
    char idle[32];
    begin_line(screen, "evictions");
    screen_put(screen, SCREEN_PLAIN, "%.1f/s  %.1f pages/s", rates->evictions, rates->evicted_pages);
    screen_put(screen, SCREEN_FAINT, "  idle before, median %s  preemptions %llu",
               time_text(idle, stats->evicted_idle_p50_us), (unsigned long long)stats->preemptions);
    screen_end_line(screen);
}

static void draw_copies(struct screen *screen, const perch_stats *stats, const struct top_rates *rates) {
    double page_bytes = (double)stats->page_bytes;
    if (stats->host_pages_total == 0) {
        return;
    }
    begin_line(screen, "copies");
    put_bytes(screen, SCREEN_PLAIN, "to the host %s/s", rates->to_host_bytes);
    put_bytes(screen, SCREEN_PLAIN, "  back %s/s", rates->to_device_bytes);
    put_bytes(screen, SCREEN_FAINT, "  in all %s", (double)stats->saved_pages * page_bytes);
    put_bytes(screen, SCREEN_FAINT, " and %s", (double)stats->restored_pages * page_bytes);
    screen_end_line(screen);
    if (stats->disk_pages_total > 0) {
        begin_line(screen, "");
        put_bytes(screen, SCREEN_PLAIN, "to the disk %s/s", rates->to_disk_bytes);
        put_bytes(screen, SCREEN_PLAIN, "  back %s/s", rates->from_disk_bytes);
        put_bytes(screen, SCREEN_FAINT, "  in all %s", (double)stats->spilled_pages * page_bytes);
        put_bytes(screen, SCREEN_FAINT, " and %s", (double)stats->fetched_pages * page_bytes);
        screen_end_line(screen);
    }
}

static void draw_ttft(struct screen *screen, const perch_stats *stats) {
    char p50[32], p90[32], p99[32];
    begin_line(screen, "TTFT");
    screen_put(screen, SCREEN_PLAIN, "p50 %s  p90 %s  p99 %s", time_text(p50, stats->ttft_p50_us),
               time_text(p90, stats->ttft_p90_us), time_text(p99, stats->ttft_p99_us));
    screen_end_line(screen);
}

static void draw_totals(struct screen *screen, const perch_stats *stats) {
    uint64_t n_done = stats->requests_finished + stats->requests_cancelled;
    begin_line(screen, "since start");
    screen_put(screen, SCREEN_FAINT, "  %llu requests done  %llu failed  %llu prefill tokens  %llu decode tokens",
               (unsigned long long)n_done, (unsigned long long)stats->requests_failed,
               (unsigned long long)stats->prefill_tokens, (unsigned long long)stats->decode_tokens);
    screen_end_line(screen);
}

static void draw_one(struct screen *screen, const struct top_engine *engine) {
    const perch_stats *stats = &engine->now.stats;
    struct top_rates rates = top_engine_rates(engine);
    draw_title(screen, &engine->now);
    screen_blank_line(screen);
    draw_rows(screen, stats);
    draw_sequences(screen, stats);
    draw_pages(screen, stats);
    draw_tiers(screen, stats);
    screen_blank_line(screen);
    draw_speed(screen, &rates);
    draw_ttft(screen, stats);
    screen_blank_line(screen);
    draw_hits(screen, stats, &rates);
    draw_evictions(screen, stats, &rates);
    draw_copies(screen, stats, &rates);
    screen_blank_line(screen);
    draw_totals(screen, stats);
}

/* ---------------------------------------------------------------- several -- */

/* What perch top takes to show one of them alone: its file's name, which begins with the process. */
static const char *name_of(const struct top_engine *engine) {
    const char *slash = strrchr(engine->file, '/');
    return slash != NULL ? slash + 1 : engine->file;
}

static void draw_engine(struct screen *screen, const struct top_engine *engine) {
    const perch_stats *stats = &engine->now.stats;
    struct top_rates rates = top_engine_rates(engine);
    uint32_t total = stats->pages_total > 0 ? stats->pages_total : 1;
    screen_put(screen, SCREEN_BOLD, "%-*s", (int)NAME_COLUMNS, name_of(engine));
    screen_put_cut(screen, SCREEN_PLAIN, MODEL_COLUMNS - 1, engine->now.model);
    screen_put_blank_to(screen, NAME_COLUMNS + MODEL_COLUMNS);
    screen_put(screen, SCREEN_PLAIN, "%5u%8u%10.0f%9.0f", stats->rows_running, stats->requests_waiting,
               rates.prefill_tokens, rates.decode_tokens);
    screen_put(screen, SCREEN_PLAIN, "%7.0f%9.0f", 100.0 * stats->pages_live / total,
               100.0 * stats->pages_cached / total);
    put_state(screen, &engine->now);
    screen_end_line(screen);
}

static void draw_table(struct screen *screen, const struct top_engines *top) {
    screen_put(screen, SCREEN_FAINT, "%-*s%-*s%5s%8s%10s%9s%7s%9s", (int)NAME_COLUMNS, "process", (int)MODEL_COLUMNS,
               "model", "rows", "waiting", "prefill/s", "decode/s", "live %", "cached %");
    screen_end_line(screen);
    for (size_t i = 0; i < top->n; i++) {
        draw_engine(screen, &top->engines[i]);
    }
    screen_blank_line(screen);
    screen_put(screen, SCREEN_FAINT, "perch top PROCESS shows one of them");
    screen_end_line(screen);
}

bool top_screen_draw(struct screen *screen, const struct top_engines *top) {
    screen_begin(screen, top->n == 1 ? ONE_LINES : top->n + 2);
    if (top->n == 1) {
        draw_one(screen, &top->engines[0]);
    } else {
        draw_table(screen, top);
    }
    return screen_end(screen);
}
