/*
 * demo_report: the demo in plain lines.
 */
#include "demo_report.h"

#include "table.h"

#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

void demo_log_begin(const struct demo_run *run, const char *name) {
    char pool[32];
    char page[32];
    format_bytes(pool, sizeof(pool), run->plan.pool_bytes);
    format_bytes(page, sizeof(page), run->plan.page_bytes);
    printf("%s: %zu conversations, %u slots, KV memory for %u of them at full length: %s in %u pages of %s\n", name,
           run->n, run->plan.n_slots, run->plan.n_full_sequences, pool, run->plan.n_pages, page);
}

void demo_log_answered(void *user, const struct demo_run *run, const struct demo_talk *talk, size_t turn) {
    const struct demo_turn *asked = &talk->conversation->turns[turn];
    const struct demo_answer *answer = &talk->answers[turn];
    (void)user;
    (void)run;
    if (asked->check != NULL) {
        printf("%s turn %2zu  %-42s  %-34s  %s  cached %4llu of %4llu tokens, evicted %3llu times\n",
               talk->conversation->name, turn + 1, asked->user, answer->text.data, answer->right ? "right" : "WRONG",
               (ull)answer->cached_tokens, (ull)answer->prompt_tokens, (ull)answer->n_evictions);
    }
}

/* ---------------------------------------------------------------- figures -- */

static size_t count_evicted(const struct demo_run *run) {
    size_t n = 0;
    for (size_t i = 0; i < run->n; i++) {
        n += run->talks[i].info.n_evictions > 0 ? 1 : 0;
    }
    return n;
}

static perch_status add_count(struct table *table, const char *name, uint64_t left, uint64_t right, perch_error *err) {
    perch_status status = table_cell(table, err, "%s", name);
    status = status == PERCH_OK ? table_cell(table, err, "%llu", (ull)left) : status;
    return status == PERCH_OK ? table_cell(table, err, "%llu", (ull)right) : status;
}

static perch_status add_text(struct table *table, const char *name, const char *left, const char *right,
                             perch_error *err) {
    perch_status status = table_cell(table, err, "%s", name);
    status = status == PERCH_OK ? table_cell(table, err, "%s", left) : status;
    return status == PERCH_OK ? table_cell(table, err, "%s", right) : status;
}

static perch_status add_outcome(struct table *table, const struct demo_run *const runs[2], perch_error *err) {
    char text[2][3][48];
    for (size_t i = 0; i < 2; i++) {
        const struct demo_run *run = runs[i];
        format_bytes(text[i][0], sizeof(text[i][0]), run->plan.pool_bytes);
        snprintf(text[i][1], sizeof(text[i][1]), "%zu of %zu", run->n_right, run->n_turns);
        snprintf(text[i][2], sizeof(text[i][2]), "%zu of %zu", run->n_facts_right, run->n_facts);
    }
    perch_status status = add_text(table, "", "evicting", "all in memory", err);
    status = status == PERCH_OK ? add_text(table, "KV memory", text[0][0], text[1][0], err) : status;
    status = status == PERCH_OK ? add_text(table, "answers right", text[0][1], text[1][1], err) : status;
    return status == PERCH_OK ? add_text(table, "facts remembered", text[0][2], text[1][2], err) : status;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_text(const struct text *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < text->n_bytes; i++) {
        hash = (hash ^ (unsigned char)text->data[i]) * 0x100000001b3u;
    }
    return hash;
}

static perch_status add_speed(struct table *table, const struct demo_run *const runs[2], perch_error *err) {
    char text[2][3][48];
    for (size_t i = 0; i < 2; i++) {
        double seconds = runs[i]->elapsed_us > 0 ? (double)runs[i]->elapsed_us / 1e6 : 1e-6;
        snprintf(text[i][0], sizeof(text[i][0]), "%.2f", seconds);
        /* Prefill and decode share the steps, so that neither has seconds of its own. */
        uint64_t n_computed = runs[i]->stats.prefill_tokens + runs[i]->stats.decode_tokens;
        snprintf(text[i][1], sizeof(text[i][1]), "%.0f", (double)n_computed / seconds);
        snprintf(text[i][2], sizeof(text[i][2]), "%016llx", (ull)hash_text(&runs[i]->transcript));
    }
    perch_status status = add_text(table, "seconds", text[0][0], text[1][0], err);
    status = status == PERCH_OK ? add_text(table, "tokens computed/s, in all", text[0][1], text[1][1], err) : status;
    if (status == PERCH_OK) {
        status = add_count(table, "transcript bytes", runs[0]->transcript.n_bytes, runs[1]->transcript.n_bytes, err);
    }
    return status == PERCH_OK ? add_text(table, "transcript FNV-1a", text[0][2], text[1][2], err) : status;
}

perch_status demo_report_figures(const struct demo_run *evicting, const struct demo_run *full, perch_error *err) {
    const struct demo_run *const runs[2] = {evicting, full};
    const perch_stats *a = &evicting->stats;
    const perch_stats *b = &full->stats;
    const struct {
        const char *name;
        uint64_t left, right;
    } counts[] = {
        {"conversations evicted", count_evicted(evicting), count_evicted(full)},
        {"evictions", a->evictions, b->evictions},
        {"hits", a->hits, b->hits},
        {"partial hits", a->partial_hits, b->partial_hits},
        {"misses", a->misses, b->misses},
        {"preemptions", a->preemptions, b->preemptions},
        {"tokens prefilled", a->prefill_tokens, b->prefill_tokens},
        {"  of them again", a->reprefill_tokens, b->reprefill_tokens},
        {"tokens generated", a->decode_tokens, b->decode_tokens},
    };
    struct table table;
    table_init(&table, 3);
    perch_status status = add_outcome(&table, runs, err);
    for (size_t i = 0; status == PERCH_OK && i < sizeof(counts) / sizeof(counts[0]); i++) {
        status = add_count(&table, counts[i].name, counts[i].left, counts[i].right, err);
    }
    status = status == PERCH_OK ? add_speed(&table, runs, err) : status;
    if (status == PERCH_OK) {
        putchar('\n');
        table_print(&table, stdout);
    }
    table_free(&table);
    return status;
}

/* ---------------------------------------------------------------- example -- */

/* Words behind `head`, broken at blanks so that no line is wider than a small terminal; each line begins at its width. */
static void print_wrapped(const char *head, const char *words) {
    const int width = 79;
    int indent = (int)strlen(head);
    int column = indent;
    fputs(head, stdout);
    while (*words != '\0') {
        int length = (int)strcspn(words, " ");
        if (column > indent && column + 1 + length > width) {
            printf("\n%*s", indent, "");
            column = indent;
        }
        column += printf("%s%.*s", column > indent ? " " : "", length, words);
        words += length;
        words += strspn(words, " ");
    }
    putchar('\n');
}

void demo_report_example(const struct demo_run *run) {
    const struct demo_talk *best = NULL;
    size_t best_turn = 0;
    uint64_t most = 0;
    for (size_t i = 0; i < run->n; i++) {
        const struct demo_talk *talk = &run->talks[i];
        for (size_t k = 0; k < talk->n_answers; k++) {
            bool counts = talk->conversation->turns[k].was_told && talk->answers[k].right;
            uint64_t n = counts ? demo_evictions_since_told(talk, k) : 0;
            if (counts && (best == NULL || n > most)) {
                best = talk;
                best_turn = k;
                most = n;
            }
        }
    }
    if (best == NULL) {
        return;
    }
    const struct demo_turn *asked = &best->conversation->turns[best_turn];
    int width = (int)strlen(best->conversation->name);
    char head[96];
    char quote[512];
    putchar('\n');
    snprintf(head, sizeof(head), "%s turn %2zu  ", best->conversation->name, asked->told + 1);
    print_wrapped(head, best->conversation->turns[asked->told].user);
    snprintf(head, sizeof(head), "%*s turn %2zu  ", width, "", best_turn + 1);
    snprintf(quote, sizeof(quote), "%s %s", asked->user, best->answers[best_turn].text.data);
    print_wrapped(head, quote);
    printf("%*s evicted %llu times between them\n", width, "", (ull)most);
}

/* ---------------------------------------------------------------- verdict -- */

static void print_wrong(const struct demo_run *run, const char *name) {
    for (size_t i = 0; i < run->n; i++) {
        const struct demo_talk *talk = &run->talks[i];
        for (size_t k = 0; k < talk->n_answers; k++) {
            if (!talk->answers[k].right) {
                printf("wrong, %s: %s turn %zu: \"%s\" got \"%s\", not \"%s\"\n", name, talk->conversation->name, k + 1,
                       talk->conversation->turns[k].user, talk->answers[k].text.data,
                       talk->conversation->turns[k].assistant);
            }
        }
    }
}

bool demo_report_verdict(const struct demo_run *evicting, const struct demo_run *full, bool colour) {
    const struct text *transcripts[] = {&evicting->transcript, &full->transcript};
    size_t n_wrong = evicting->n_turns - evicting->n_right + full->n_turns - full->n_right;
    bool same = transcripts[0]->n_bytes == transcripts[1]->n_bytes &&
                memcmp(transcripts[0]->data, transcripts[1]->data, transcripts[0]->n_bytes) == 0;
    bool right = n_wrong == 0 && same && full->stats.evictions == 0;
    print_wrong(evicting, "evicting");
    print_wrong(full, "all in memory");
    printf("\n%s%s", colour ? (right ? "\033[32m" : "\033[31m") : "", right ? "all right: " : "FAILED: ");
    if (n_wrong > 0) {
        printf("%zu wrong answers, ", n_wrong);
    } else if (right) {
        printf("every answer, ");
    }
    printf("transcripts %s", same ? "identical" : "differ");
    if (full->stats.evictions > 0) {
        printf("; the second run was to evict nothing");
    } else if (evicting->stats.evictions == 0) {
        printf("; but nothing was evicted: all of them fit the memory");
    } else if (right) {
        printf("; %llu evictions changed nothing", (ull)evicting->stats.evictions);
    }
    printf("%s\n", colour ? "\033[0m" : "");
    return right;
}
