/*
 * tier_test: the host tier under random conversations, against a simulated device and host memory.
 *
 * Each token's KV is a stamp of its namespace and of all token IDs up to it, written through the entry's pages as kernels would; each
 * copy is carried out at a random moment between the call that asked for it and the one that reports its end, and may have been
 * under way for long. What entries say is valid is compared stamp by stamp after every operation: a copy of other tokens than the
 * sequence has, of a page before it was written, or to a page that is somebody else's by then shows as a wrong one.
 */
#include "cache/state.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_ENTRIES = 8, MAX_TOKENS = 160, MAX_MOVING = 256 };

typedef struct conversation {
    cache_entry *e;
    uint64_t tenant;
    int32_t ids[MAX_TOKENS];
    uint32_t n_tokens; /* that it has: what lies behind may become others */
    uint32_t n_guess; /* with those whose KV was computed before it was known whether it would have them; >= n_tokens */
    uint32_t target;  /* pinned: what extend made room for */
} conversation;

typedef struct moving {
    cache_transfer what;
    bool is_done; /* carried out, not reported yet */
    uint64_t ticket;
} moving;

typedef struct world {
    cache_config k;
    cache *c;
    test_rng rng;
    uint32_t *units, *frames; /* [n_pages], [n_frames] [page_bytes] */
    conversation all[N_ENTRIES];
    moving ways[2][MAX_MOVING];
    uint32_t n_moving[2];
    uint64_t tickets[2];
    uint64_t seed, op;
    bool failed;
} world;

static uint32_t below(world *w, uint64_t n) { return (uint32_t)test_rng_below(&w->rng, n); }

static void expect(world *w, bool condition, const char *what, uint32_t a, uint32_t b) {
    if (!w->failed && !condition) {
        w->failed = true;
        CHECK_MSG(false, "%s (%u, %u; seed %llu, operation %llu)", what, a, b, (unsigned long long)w->seed,
                  (unsigned long long)w->op);
    }
}

/* --------------------------------------------------------------- device -- */

static uint32_t *unit(world *w, const conversation *v, uint32_t position, uint32_t row) {
    uint64_t at = position / 16 * w->k.group_bytes + row * 16 + position % 16;
    return &w->units[v->e->pages[at / w->k.page_bytes] * w->k.page_bytes + at % w->k.page_bytes];
}

/* Calls for each token that is valid, or is to be written: with its stamp in each row. */
static void touch(world *w, const conversation *v, uint32_t from, uint32_t end, bool write) {
    uint64_t h = v->tenant + 1000;
    for (uint32_t position = 0; position < end; position++) {
        h = (h * 0x9e3779b97f4a7c15ULL + (uint32_t)v->ids[position] + 1) * 0xff51afd7ed558ccdULL;
        for (uint32_t row = 0; row < w->k.group_bytes / 16 && position >= from && !w->failed; row++) {
            uint32_t stamp = (uint32_t)(h >> 35) * 8 + row, *at = unit(w, v, position, row);
            expect(w, write || *at == stamp, "the wrong KV", (uint32_t)(v - w->all), position);
            *at = stamp;
        }
    }
}

static void execute(world *w) {
    size_t n;
    const kv_command *command = cache_commands(w->c, &n);
    for (; n > 0; n--, command++) {
        if (command->op == KV_COPY) {
            memcpy(w->units + command->page * w->k.page_bytes, w->units + command->source * w->k.page_bytes,
                   w->k.page_bytes * sizeof *w->units);
        }
    }
    cache_commands_clear(w->c);
}

static void check(world *w) {
    execute(w);
    const char *broken = cache_check(w->c);
    expect(w, !broken, broken ? broken : "", 0, 0);
    for (uint32_t i = 0; i < N_ENTRIES && !w->failed; i++) {
        touch(w, &w->all[i], 0, w->all[i].e ? cache_entry_n_valid(w->all[i].e) : 0, false);
    }
}

/* Copies that were asked for are under way. Until they are done what they write to is anything but what both have anyhow. */
static void send(world *w, cache_direction d) {
    cache_transfer list[MAX_MOVING];
    size_t n = cache_transfers(w->c, d, list, 1 + below(w, 8));
    if (n == 0) {
        return;
    }
    cache_transfers_sent(w->c, d, n, ++w->tickets[d]);
    for (size_t i = 0; i < n; i++) {
        expect(w, w->n_moving[d] < MAX_MOVING, "more copies than there is room for", w->n_moving[d], 0);
        w->ways[d][w->n_moving[d]++] = (moving){.what = list[i], .ticket = w->tickets[d]};
    }
}

static void carry_out(world *w, cache_direction d, moving *m) {
    size_t bytes = w->k.page_bytes * sizeof *w->units;
    uint32_t *page = w->units + m->what.page * w->k.page_bytes, *frame = w->frames + m->what.frame * w->k.page_bytes;
    if (!m->is_done) {
        m->is_done = true;
        memcpy(d == CACHE_STORE ? frame : page, d == CACHE_STORE ? page : frame, bytes);
    }
}

static void some_copies_end(world *w, cache_direction d, uint64_t ticket) {
    uint32_t n = 0, left = 0;
    while (n < w->n_moving[d] && w->ways[d][n].ticket <= ticket) {
        carry_out(w, d, &w->ways[d][n++]);
    }
    for (uint32_t i = n; i < w->n_moving[d]; i++) {
        if (below(w, 3) == 0) {
            carry_out(w, d, &w->ways[d][i]);
        }
        w->ways[d][left++] = w->ways[d][i];
    }
    w->n_moving[d] = left;
    cache_transfers_done(w->c, d, ticket);
    uint64_t oldest = left ? w->ways[d][0].ticket : 0;
    expect(w, cache_transfers_pending(w->c, d) == oldest, "another ticket is to be waited for", (uint32_t)oldest, 0);
}

/* ----------------------------------------------------------- operations -- */

static void create(world *w, conversation *v, uint64_t tenant) {
    *v = (conversation){.tenant = tenant};
    uint32_t n_alike = below(w, MAX_TOKENS);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        v->ids[i] = (int32_t)(i < n_alike ? i % 7 : below(w, 3));
    }
    expect(w, cache_entry_create(w->c, v->tenant, &v->e, NULL) == PERCH_OK, "out of memory", 0, 0);
}

/* The end of a turn, or a preemption: then what was guessed may be found out later, when the entry has lost it. */
static void leave(world *w, conversation *v) {
    cache_unpin(w->c, v->e);
    cache_entry_release(w->c, v->e);
}

/* Whatever was guessed turned out differently. */
static void settle(world *w, conversation *v) {
    if (v->n_guess > v->n_tokens) {
        if (cache_entry_n_valid(v->e) > v->n_tokens) {
            cache_truncate(w->c, v->e, v->n_tokens);
        }
        cache_truncate_copies(w->c, v->e, v->n_tokens);
        for (uint32_t i = v->n_tokens; i < MAX_TOKENS; i++) {
            v->ids[i] = (int32_t)below(w, 3);
        }
        v->n_guess = v->n_tokens;
    }
}

static void admit(world *w, conversation *v) {
    uint32_t most = w->k.session_len, n_tokens = v->n_tokens + below(w, 40);
    cache_found found;
    settle(w, v);
    n_tokens = n_tokens < 1 ? 1 : n_tokens < most ? n_tokens : most;
    uint32_t keep = n_tokens - 1 - below(w, below(w, 4) ? 1 : n_tokens);
    if (cache_entry_reserve(w->c, v->e, NULL) != PERCH_OK) {
        return;
    }
    v->n_tokens = v->n_guess = v->n_tokens > n_tokens ? v->n_tokens : n_tokens;
    if (cache_entry_n_valid(v->e) > keep) {
        cache_truncate(w->c, v->e, keep);
    }
    cache_find(w->c, v->e, v->ids, n_tokens, &found);
    if (below(w, 4)) {
        cache_adopt(w->c, v->e, &found, keep);
    }
    uint32_t could = cache_restorable(w->c, v->e, keep);
    expect(w, could <= keep || could == cache_entry_n_valid(v->e), "more than asked for", could, keep);
    if (!cache_can_hold(w->c, v->e, n_tokens, 0) || cache_pin(w->c, v->e) != PERCH_OK) {
        cache_entry_release(w->c, v->e);
        return;
    }
    if (cache_extend(w->c, v->e, n_tokens) != PERCH_OK) {
        leave(w, v);
        return;
    }
    uint32_t n = cache_load(w->c, v->e);
    expect(w, n == could, "another number than was restorable", n, could);
    v->target = n_tokens;
    cache_promise(w->c, v->e, v->ids, n_tokens);
}

/* A step: commands, copies, then everybody who has something to compute computes some of it. */
static void step(world *w) {
    execute(w);
    (void)cache_save(w->c, below(w, 2) == 0);
    send(w, CACHE_LOAD);
    send(w, CACHE_STORE);
    for (uint32_t i = 0; i < N_ENTRIES && !w->failed; i++) {
        conversation *v = &w->all[i];
        if (!v->e || !cache_entry_pinned(v->e) || cache_entry_loading(v->e)) {
            continue;
        }
        uint32_t n_valid = cache_entry_n_valid(v->e);
        if (n_valid == v->target && v->n_guess == v->n_tokens && v->target < w->k.session_len &&
            cache_extend(w->c, v->e, v->target + 1) == PERCH_OK) {
            execute(w);
            v->target++;
            v->n_guess = v->n_guess > v->target ? v->n_guess : v->target;
        }
        uint32_t end = n_valid + below(w, v->target - n_valid + 1);
        touch(w, v, n_valid, end, true);
        cache_commit(v->e, end);
        cache_publish(w->c, v->e, v->ids, end < v->n_tokens ? end : v->n_tokens);
        if (v->n_guess > v->n_tokens && end == v->target && below(w, 2)) {
            v->n_tokens = v->n_guess; /* it was right */
        }
    }
}

static void fork_or_close(world *w, conversation *v, uint32_t die) {
    conversation *child = &w->all[below(w, N_ENTRIES)];
    bool empty = !child->e || (!cache_entry_pinned(child->e) && cache_entry_n_pages(child->e) == 0);
    if (die < 2 && child != v && empty) { /* one that has lost all that it had will do, too */
        if (!child->e) {
            create(w, child, v->tenant);
        }
        if (child->tenant != v->tenant) {
            return;
        }
        settle(w, child);
        uint32_t n = below(w, v->n_tokens + 1);
        memcpy(child->ids, v->ids, n * sizeof *v->ids);
        for (uint32_t i = n; i < MAX_TOKENS; i++) {
            child->ids[i] = (int32_t)below(w, 3);
        }
        child->n_tokens = child->n_guess = n;
        expect(w, cache_fork(w->c, v->e, child->e, n, NULL) == PERCH_OK, "no fork", 0, 0);
    } else if (die == 2) {
        if (cache_entry_pinned(v->e)) {
            leave(w, v);
        }
        settle(w, v);
        below(w, 2) ? cache_entry_close(w->c, v->e) : cache_entry_destroy(w->c, v->e);
        v->e = NULL;
    } else if (die == 3 && !cache_entry_pinned(v->e)) {
        settle(w, v);
        v->n_tokens = v->n_guess = below(w, v->n_tokens + 1);
        cache_truncate(w->c, v->e, v->n_tokens);
        for (uint32_t i = v->n_tokens; i < MAX_TOKENS; i++) {
            v->ids[i] = (int32_t)below(w, 3);
        }
    }
}

static void operation(world *w) {
    conversation *v = &w->all[below(w, N_ENTRIES)];
    uint32_t die = below(w, 100);
    if (die < 30) {
        step(w);
    } else if (die < 50) {
        cache_direction d = below(w, 2) ? CACHE_LOAD : CACHE_STORE;
        if (w->n_moving[d]) {
            some_copies_end(w, d, w->ways[d][below(w, w->n_moving[d])].ticket);
        }
    } else if (die < 55) {
        (void)cache_evict_one(w->c, below(w, 4));
    } else if (!v->e) {
        create(w, v, below(w, 5) == 0);
    } else if (die < 75) {
        cache_entry_pinned(v->e) ? (void)0 : admit(w, v);
    } else if (die < 90) {
        if (cache_entry_pinned(v->e)) {
            leave(w, v);
        }
    } else {
        fork_or_close(w, v, (die - 90) / 2);
    }
}

typedef struct totals {
    uint64_t saved, restored, adopted;
} totals;

static bool run(uint64_t seed, uint32_t n_operations, totals *sum) {
    static world w;
    cache_stats s;
    w = (world){.seed = seed, .rng = {seed}};
    w.k = (cache_config){.group_bytes = 16 * (1 + below(&w, 3)),
                         .n_slots = 1 + below(&w, 4),
                         .session_len = MAX_TOKENS - below(&w, 40),
                         .chunk_pages = below(&w, 3),
                         .prefix_index = below(&w, 4) > 0,
                         .n_frames = 1 + below(&w, 60)};
    w.k.page_bytes = 12 + below(&w, 60);
    w.k.n_pages = cache_pages_per_slot(&w.k) * (uint32_t)(2 + below(&w, 3)) / 2;
    w.units = calloc(w.k.n_pages * w.k.page_bytes, sizeof *w.units);
    w.frames = calloc(w.k.n_frames * w.k.page_bytes, sizeof *w.frames);
    expect(&w, w.units && w.frames && cache_create(&w.k, &w.c, NULL) == PERCH_OK, "out of memory", 0, 0);
    for (w.op = 0; w.op < n_operations && !w.failed; w.op++) {
        operation(&w);
        check(&w);
    }
    if (!w.failed) { /* else entries are left: the process reports and ends */
        for (uint32_t i = 0; i < N_ENTRIES; i++) {
            cache_entry_destroy(w.c, w.all[i].e);
        }
        for (int i = 0; i < 2; i++) {
            cache_direction d = i ? CACHE_LOAD : CACHE_STORE;
            while (w.n_moving[d] > 0 || cache_transfers(w.c, d, &(cache_transfer){0}, 1)) {
                send(&w, d);
                some_copies_end(&w, d, w.tickets[d]);
            }
        }
        while (cache_evict_one(w.c, 0)) {}
        cache_stats_get(w.c, &s);
        expect(&w, s.n_free == s.n_pages, "pages are lost", s.n_free, s.n_pages);
        sum->saved += s.saved_pages;
        sum->restored += s.restored_tokens;
        sum->adopted += s.adopted_tokens;
        cache_destroy(w.c);
    }
    free(w.units);
    free(w.frames);
    return !w.failed;
}

/* ---------------------------------------------------------------- tests -- */

static void what_comes_back_from_the_host_is_what_was_computed(void) {
    totals sum = {0};
    uint64_t seed = test_seed(20241122), n = test_scaled(300);
    for (uint64_t i = 0; i < n && run(seed + i, 1500, &sum); i++) {}
    printf("  %llu pages saved, %llu tokens restored, %llu adopted\n", (unsigned long long)sum.saved,
           (unsigned long long)sum.restored, (unsigned long long)sum.adopted);
    CU_ASSERT(n < 30 || (sum.saved > 10 * n && sum.restored > 10 * n && sum.adopted > 10 * n));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_comes_back_from_the_host_is_what_was_computed", what_comes_back_from_the_host_is_what_was_computed},
    };
    return test_main("tier_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
