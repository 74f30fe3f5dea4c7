/*
 * demo_screen: a frame is made line by line in memory and written at once, from the top left corner, so that nothing flickers.
 *
 * Plain ANSI: the alternate screen, a hidden cursor, colours unless NO_COLOR is set. The size is asked for before each frame;
 * what does not fit is cut. A line never touches the last column: behind it terminals differ in what they wrap and wipe.
 */
#include "demo_screen.h"

#include <langinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FACT_US 1500000u
#define BAR_COLUMNS 10u
#define MAX_LABEL 16u
#define FIXED_ROWS 8u /* beside the conversations' */

enum style { PLAIN, BOLD, FAINT, GREEN, YELLOW, RED };

static const char *const style_codes[] = {"", "\033[1m", "\033[2m", "\033[32m", "\033[33m", "\033[31m"};

bool demo_screen_possible(void) {
    const char *term = getenv("TERM");
    return isatty(STDOUT_FILENO) && term != NULL && term[0] != '\0' && strcmp(term, "dumb") != 0;
}

static void write_out(const char *data, size_t n_bytes) {
    fwrite(data, 1, n_bytes, stdout);
    fflush(stdout);
}

void demo_screen_open(struct demo_screen *screen) {
    static const char open[] = "\033[?1049h\033[?25l\033[2J";
    const char *no_colour = getenv("NO_COLOR");
    *screen = (struct demo_screen){.is_open = true};
    screen->utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    screen->colour = no_colour == NULL || no_colour[0] == '\0';
    write_out(open, sizeof(open) - 1);
}

void demo_screen_close(struct demo_screen *screen) {
    static const char close[] = "\033[?25h\033[?1049l";
    if (screen->is_open) {
        write_out(close, sizeof(close) - 1);
        screen->is_open = false;
    }
    text_free(&screen->frame);
}

/* Bytes that all names begin with, up to a '-', '_' or space: what need not be repeated in every line. */
static size_t common_prefix(const struct demo_run *run) {
    const char *first = run->talks[0].conversation->name;
    size_t common = run->n > 1 ? strlen(first) : 0;
    for (size_t i = 1; i < run->n; i++) {
        const char *name = run->talks[i].conversation->name;
        size_t length = 0;
        while (length < common && name[length] == first[length]) {
            length++;
        }
        common = length;
    }
    while (common > 0 && strchr("-_ ", first[common - 1]) == NULL) {
        common--;
    }
    return common;
}

static bool is_continuation(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

/* A character is taken for one column. */
static size_t count_columns(const char *text) {
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += is_continuation(*text) ? 0 : 1;
    }
    return n;
}

void demo_screen_begin(struct demo_screen *screen, const struct demo_run *run) {
    memset(screen->slots, 0, sizeof(screen->slots));
    screen->n_samples = 0;
    screen->fact = NULL;
    screen->prefix = common_prefix(run);
    screen->label = 2;
    for (size_t i = 0; i < run->n; i++) {
        size_t width = count_columns(run->talks[i].conversation->name + screen->prefix);
        screen->label = width > screen->label ? width : screen->label;
    }
    screen->label = screen->label < MAX_LABEL ? screen->label : MAX_LABEL;
}

void demo_screen_answered(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn) {
    struct demo_screen *screen = user;
    bool is_fact = talk->conversation->turns[turn].was_told;
    if (is_fact && (screen->fact == NULL || run->elapsed_us - screen->fact_us >= FACT_US)) {
        screen->fact = talk;
        screen->fact_turn = turn;
        screen->fact_us = run->elapsed_us;
    }
}

/* ---------------------------------------------------- a line, piece by piece -- */

/* Adds to the frame what is above the terminal's lower edge. */
static void add(struct demo_screen *screen, const char *data, size_t n_bytes) {
    if (screen->row < screen->rows && text_add(&screen->frame, data, n_bytes, NULL) != PERCH_OK) {
        screen->failed = true;
    }
}

static void add_string(struct demo_screen *screen, const char *text) { add(screen, text, strlen(text)); }

/* Adds text, cut to at most `columns` and to what the line has left; an ellipsis says that it was cut. */
static void put_cut(struct demo_screen *screen, enum style style, size_t columns, const char *text) {
    size_t left = screen->columns - screen->column;
    size_t room = columns < left ? columns : left;
    size_t width = count_columns(text);
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
    add_string(screen, screen->colour && style != PLAIN ? "\033[0m" : "");
    screen->column += cut ? room : width;
}

static void put(struct demo_screen *screen, enum style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void put(struct demo_screen *screen, enum style style, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    put_cut(screen, style, screen->columns, text);
}

static void put_repeated(struct demo_screen *screen, enum style style, const char *utf8, const char *ascii, size_t n) {
    size_t left = screen->columns - screen->column;
    n = n < left ? n : left;
    add_string(screen, screen->colour ? style_codes[style] : "");
    for (size_t i = 0; i < n; i++) {
        add_string(screen, screen->utf8 ? utf8 : ascii);
    }
    add_string(screen, screen->colour && style != PLAIN ? "\033[0m" : "");
    screen->column += n;
}

static void put_solid(struct demo_screen *screen, enum style style, size_t n) {
    put_repeated(screen, style, "█", "#", n);
}

static void put_light(struct demo_screen *screen, enum style style, size_t n) {
    put_repeated(screen, style, "░", ".", n);
}

static void put_blank_to(struct demo_screen *screen, size_t column) {
    while (screen->column < column && screen->column < screen->columns) {
        add_string(screen, " ");
        screen->column++;
    }
}

/* Ends a line. Behind the last row nothing may follow, or the terminal would scroll. */
static void end_line(struct demo_screen *screen) {
    add_string(screen, screen->row + 1 < screen->rows ? "\033[K\r\n" : "\033[K");
    screen->row++;
    screen->column = 0;
}

/* An empty line, if there is one to spare. */
static void blank_line(struct demo_screen *screen) {
    if (screen->n_spare > 0) {
        screen->n_spare--;
        end_line(screen);
    }
}

/* ------------------------------------------------------------ the frame's parts -- */

static void draw_title(struct demo_screen *screen, const struct demo_run *run) {
    char right[64];
    snprintf(right, sizeof(right), "facts right %zu of %zu  %5.1f s", run->n_facts_right, run->n_facts_asked,
             (double)run->elapsed_us / 1e6);
    put(screen, BOLD, "perch demo");
    put(screen, PLAIN, "  %zu conversations in the memory of %u", run->n, run->plan.n_full_sequences);
    size_t width = strlen(right);
    put_blank_to(screen, screen->column + 2);
    put_blank_to(screen, screen->columns > width ? screen->columns - width : 0);
    put(screen, run->n_right == run->n_answers ? GREEN : RED, "%s", right);
    end_line(screen);
}

static size_t find_slot(const struct demo_screen *screen, size_t n_slots, const struct demo_talk *talk) {
    size_t s = 0;
    while (s < n_slots && screen->slots[s] != talk) {
        s++;
    }
    return s;
}

/* Who left the batch leaves the slot; who came into it takes a free one. */
static void seat(struct demo_screen *screen, const struct demo_run *run, size_t n_slots) {
    for (size_t s = 0; s < n_slots; s++) {
        const struct demo_talk *talk = screen->slots[s];
        screen->slots[s] = talk != NULL && talk->info.residency == PERCH_SEQ_ACTIVE ? talk : NULL;
    }
    for (size_t i = 0; i < run->n; i++) {
        const struct demo_talk *talk = &run->talks[i];
        size_t place = find_slot(screen, n_slots, NULL);
        if (talk->info.residency == PERCH_SEQ_ACTIVE && place < n_slots &&
            find_slot(screen, n_slots, talk) == n_slots) {
            screen->slots[place] = talk;
        }
    }
}

static void draw_slots(struct demo_screen *screen, const struct demo_run *run) {
    size_t n_slots = run->plan.n_slots < DEMO_SCREEN_SLOTS ? run->plan.n_slots : DEMO_SCREEN_SLOTS;
    seat(screen, run, n_slots);
    put(screen, PLAIN, "slots");
    for (size_t s = 0; s < n_slots; s++) {
        put(screen, FAINT, "  %zu ", s + 1);
        size_t from = screen->column;
        put_cut(screen, GREEN, 16, screen->slots[s] != NULL ? screen->slots[s]->conversation->name : "");
        put_blank_to(screen, from + 16);
    }
    end_line(screen);
}

static void draw_pages(struct demo_screen *screen, const struct demo_run *run) {
    const perch_stats *stats = &run->stats;
    char text[96];
    int length = snprintf(text, sizeof(text), "  %u live %u cached %u free", stats->pages_live, stats->pages_cached,
                          stats->pages_free);
    put(screen, PLAIN, "pages  ");
    size_t width =
        screen->columns > (size_t)length + screen->column ? screen->columns - (size_t)length - screen->column : 0;
    width = width < 64 ? width : 64;
    size_t total = stats->pages_total > 0 ? stats->pages_total : 1;
    size_t live = (stats->pages_live * width + total / 2) / total;
    size_t used = ((stats->pages_live + stats->pages_cached) * width + total / 2) / total;
    put_solid(screen, GREEN, live);
    put_solid(screen, YELLOW, used - live);
    put_light(screen, FAINT, width - used);
    put(screen, GREEN, "  %u live", stats->pages_live);
    put(screen, YELLOW, " %u cached", stats->pages_cached);
    put(screen, FAINT, " %u free", stats->pages_free);
    end_line(screen);
}

static size_t bar_cells(uint64_t n_tokens, uint32_t session_len) {
    return (size_t)((n_tokens * BAR_COLUMNS + session_len - 1) / session_len);
}

static void draw_state(struct demo_screen *screen, const struct demo_run *run, const perch_sequence_info *info) {
    static const char *const names[] = {"tokens", "resident", "active"};
    static const enum style styles[] = {FAINT, YELLOW, GREEN};
    enum style style = styles[info->residency];
    size_t from = screen->column;
    size_t kv = bar_cells(info->n_kv_tokens, run->plan.session_len);
    size_t all = bar_cells(info->n_tokens, run->plan.session_len);
    put(screen, style, "%s", names[info->residency]);
    put_blank_to(screen, from + 9);
    put_solid(screen, style, kv);
    put_light(screen, FAINT, all > kv ? all - kv : 0);
    put_blank_to(screen, from + 9 + BAR_COLUMNS);
    put(screen, PLAIN, " %4llu/%-4llu", (unsigned long long)info->n_kv_tokens, (unsigned long long)info->n_tokens);
}

/* The answer in full, if it fits beside a little of the question. */
static void put_exchange(struct demo_screen *screen, const struct demo_talk *talk, size_t number) {
    const struct demo_turn *turn = &talk->conversation->turns[number];
    const struct demo_answer *answer = &talk->answers[number];
    size_t room = screen->columns - screen->column;
    size_t question = count_columns(turn->user);
    size_t rest = count_columns(answer->text.data) + 1;
    size_t least = question < 12 ? question : 12;
    size_t most = room > rest + least ? room - rest : least;
    put_cut(screen, FAINT, most, turn->user);
    put(screen, PLAIN, " ");
    put_cut(screen, !answer->right ? RED : turn->check != NULL ? GREEN : PLAIN, screen->columns, answer->text.data);
}

static void put_label(struct demo_screen *screen, const struct demo_talk *talk) {
    put_cut(screen, PLAIN, screen->label, talk->conversation->name + screen->prefix);
    put_blank_to(screen, screen->label + 1);
}

static void draw_talk(struct demo_screen *screen, const struct demo_run *run, const struct demo_talk *talk) {
    size_t n_turns = talk->conversation->n_turns;
    put_label(screen, talk);
    put(screen, PLAIN, "%2zu/%-2zu ", talk->n_answers < n_turns ? talk->n_answers + 1 : n_turns, n_turns);
    draw_state(screen, run, &talk->info);
    put(screen, PLAIN, " %5llu  ", (unsigned long long)talk->info.n_evictions);
    if (talk->n_answers > 0) {
        put_exchange(screen, talk, talk->n_answers - 1);
    }
    end_line(screen);
}

/* As many conversations as fit. */
static void draw_talks(struct demo_screen *screen, const struct demo_run *run) {
    size_t n_fit = screen->rows > FIXED_ROWS ? screen->rows - FIXED_ROWS : 0;
    put_blank_to(screen, screen->label + 1);
    put(screen, FAINT, "turn  state    KV in memory/tokens evicted  question and answer");
    end_line(screen);
    for (size_t i = 0; i < run->n && i < n_fit; i++) {
        draw_talk(screen, run, &run->talks[i]);
    }
}

static void draw_totals(struct demo_screen *screen, const struct demo_run *run) {
    const perch_stats *stats = &run->stats;
    put(screen, PLAIN, "evictions %llu  hits %llu  partial hits %llu  misses %llu  preemptions %llu",
        (unsigned long long)stats->evictions, (unsigned long long)stats->hits, (unsigned long long)stats->partial_hits,
        (unsigned long long)stats->misses, (unsigned long long)stats->preemptions);
    end_line(screen);
    size_t last = screen->n_samples - 1;
    size_t first = last >= DEMO_SCREEN_SAMPLES ? last - DEMO_SCREEN_SAMPLES + 1 : 0;
    last %= DEMO_SCREEN_SAMPLES;
    first %= DEMO_SCREEN_SAMPLES;
    uint64_t us = screen->samples[last].us - screen->samples[first].us;
    double seconds = us > 0 ? (double)us / 1e6 : 1.0;
    put(screen, PLAIN, "prefill %6.0f tokens/s  decode %5.0f tokens/s  re-prefilled %llu tokens",
        (double)(screen->samples[last].prefill_tokens - screen->samples[first].prefill_tokens) / seconds,
        (double)(screen->samples[last].decode_tokens - screen->samples[first].decode_tokens) / seconds,
        (unsigned long long)stats->reprefill_tokens);
    end_line(screen);
}

static void draw_fact(struct demo_screen *screen) {
    const struct demo_talk *talk = screen->fact;
    if (talk == NULL) {
        return;
    }
    const struct demo_turn *asked = &talk->conversation->turns[screen->fact_turn];
    put_label(screen, talk);
    put(screen, FAINT, "turn %2zu  %s", asked->told + 1, talk->conversation->turns[asked->told].user);
    put(screen, PLAIN, "  evicted %llu times since",
        (unsigned long long)demo_evictions_since_told(talk, screen->fact_turn));
    end_line(screen);
    put_blank_to(screen, screen->label + 1);
    put(screen, FAINT, "turn %2zu  ", screen->fact_turn + 1);
    put_exchange(screen, talk, screen->fact_turn);
    end_line(screen);
}

/* ---------------------------------------------------------------- the frame -- */

static void start_frame(struct demo_screen *screen, size_t n_talks) {
    struct winsize size;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;
    size_t rows = known ? size.ws_row : 24;
    size_t columns = (known ? size.ws_col : 80) - 1u;
    bool resized = rows != screen->rows || columns != screen->columns;
    screen->rows = rows;
    screen->columns = columns;
    screen->row = 0;
    screen->column = 0;
    screen->n_spare = rows > FIXED_ROWS + n_talks ? rows - FIXED_ROWS - n_talks : 0;
    screen->failed = false;
    screen->frame.n_bytes = 0;
    add_string(screen, resized ? "\033[2J\033[H" : "\033[H");
}

static void sample(struct demo_screen *screen, const struct demo_run *run) {
    size_t i = screen->n_samples++ % DEMO_SCREEN_SAMPLES;
    screen->samples[i].us = run->elapsed_us;
    screen->samples[i].prefill_tokens = run->stats.prefill_tokens;
    screen->samples[i].decode_tokens = run->stats.decode_tokens;
}

void demo_screen_frame(void *user, const struct demo_run *run) {
    struct demo_screen *screen = user;
    sample(screen, run);
    start_frame(screen, run->n);
    draw_title(screen, run);
    draw_slots(screen, run);
    draw_pages(screen, run);
    blank_line(screen);
    draw_talks(screen, run);
    blank_line(screen);
    draw_totals(screen, run);
    blank_line(screen);
    draw_fact(screen);
    add_string(screen, "\033[J");
    if (!screen->failed) {
        write_out(screen->frame.data, screen->frame.n_bytes);
    }
}
