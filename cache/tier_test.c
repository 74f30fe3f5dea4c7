/*
 * tier_test: the tiers under random conversations, against a simulated device, host memory and disk.
 *
 * Each token's KV is a stamp of its namespace and of all token IDs up to it, written through the entry's pages as kernels would; each
 * copy is carried out at a random moment between the call that asked for it and the one that reports its end, and may have been
 * under way for long. What entries say is valid is compared stamp by stamp after every operation: a copy of other tokens than the
 * sequence has, of a page before it was written, or to a page that is somebody else's by then shows as a wrong one. The disk ends its
 * requests in any order, fails at some, and gives back other bytes than it got, which it says.
 */
#include "cache/state.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_ENTRIES = 8, MAX_TOKENS = 160, MAX_MOVING = 256, MAX_DISK_FRAMES = 100 };

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

/* What a frame of the disk has, as its record says: it outlives the cache. */
typedef struct left_page {
    cache_left_page page;
    int32_t tokens[MAX_TOKENS];
    uint32_t n_tokens; /* 0: none */
} left_page;

typedef struct world {
    cache_config k;
    cache *c;
    test_rng rng;
    uint32_t *units, *frames, *disk; /* [n_pages], [n_frames], [n_disk_frames] [page_bytes] */
    cache_disk_request io[CACHE_DISK_REQUESTS];
    uint32_t n_io;
    left_page left[MAX_DISK_FRAMES];
    uint64_t n_written, n_taken_over, n_claimed;
    uint32_t bad_percent; /* of the disk's requests */
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

/* What is on its way between host and disk: only the bytes that count, and until then anything. */
static void send_disk(world *w) {
    cache_disk_request list[16];
    size_t n = cache_disk_requests(w->c, list, 1 + below(w, 16));
    for (size_t i = 0; i < n; i++) {
        const cache_disk_request *r = &list[i];
        uint32_t *to = r->write ? w->disk + r->disk_frame * w->k.page_bytes : w->frames + r->frame * w->k.page_bytes;
        expect(w, w->n_io < CACHE_DISK_REQUESTS, "more requests than there may be", w->n_io, 0);
        expect(w, r->n_bytes > 0 && r->n_bytes <= w->k.page_bytes, "a page without content", (uint32_t)r->n_bytes, 0);
        memset(to, 0xee, w->k.page_bytes * sizeof *to);
        w->left[r->disk_frame].n_tokens = r->write ? 0 : w->left[r->disk_frame].n_tokens;
        w->io[w->n_io++] = *r;
    }
}

static void disk_ends(world *w, uint32_t index) {
    const cache_disk_request *r = &w->io[index];
    uint32_t *frame = w->frames + r->frame * w->k.page_bytes, *disk = w->disk + r->disk_frame * w->k.page_bytes;
    bool bad = below(w, 100) < w->bad_percent;
    if (!bad || below(w, 2)) {
        memcpy(r->write ? disk : frame, r->write ? frame : disk, r->n_bytes * sizeof *disk);
    }
    cache_disk_outcome how = !bad                           ? CACHE_DISK_OK
                             : r->write || below(w, 2) == 0 ? CACHE_DISK_FAILED
                                                            : CACHE_DISK_CORRUPT;
    uint32_t at = r->disk_frame;
    if (r->write && !bad) {
        w->left[at] =
            (left_page){.page = {at, r->index, {r->name[0], r->name[1]}, ++w->n_written}, .n_tokens = r->n_tokens};
        if (r->n_tokens) {
            memcpy(w->left[at].tokens, r->tokens, r->n_tokens * sizeof *r->tokens);
        }
    } else if (how == CACHE_DISK_CORRUPT) {
        w->left[at].n_tokens = 0;
    }
    w->io[index] = w->io[--w->n_io];
    cache_disk_done(w->c, at, how);
}

/* ----------------------------------------------------------- operations -- */

static void create(world *w, conversation *v, uint64_t tenant) {
    *v = (conversation){.tenant = tenant};
    uint32_t n_alike = below(w, MAX_TOKENS);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        v->ids[i] = (int32_t)(i < n_alike ? i % 7 : below(w, 3));
    }
    if (below(w, 3) == 0) { /* pages behind it are alike, and their KV is not */
        v->ids[below(w, 20)] = 8;
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
    if (!cache_can_hold(w->c, v->e, n_tokens, 0) || cache_pin(w->c, v->e) != PERCH_OK) {
        cache_entry_release(w->c, v->e);
        return;
    }
    if (cache_extend(w->c, v->e, n_tokens) != PERCH_OK) {
        leave(w, v);
        return;
    }
    if (below(w, 4)) {
        cache_saved before = cache_entry_saved(w->c, v->e), after;
        cache_claim_copies(w->c, v->e, v->ids, keep < v->n_tokens ? keep : v->n_tokens);
        after = cache_entry_saved(w->c, v->e);
        expect(w, after.n_host + after.n_disk >= before.n_host + before.n_disk, "fewer copies than before", 0, 0);
        w->n_claimed += after.n_host + after.n_disk - before.n_host - before.n_disk;
    }
    uint32_t n_valid = cache_entry_n_valid(v->e), n = cache_load(w->c, v->e, keep);
    expect(w, n == n_valid || (n > n_valid && n <= keep), "more than asked for", n, keep);
    v->target = n_tokens;
    cache_promise(w->c, v->e, v->ids, n_tokens);
}

/* A step: commands, copies, then everybody who has something to compute computes some of it. */
static void step(world *w) {
    execute(w);
    cache_restore_more(w->c);
    (void)cache_save(w->c, below(w, 2) == 0);
    send(w, CACHE_LOAD);
    send(w, CACHE_STORE);
    send_disk(w);
    for (uint32_t i = 0; i < N_ENTRIES && !w->failed; i++) {
        conversation *v = &w->all[i];
        if (!v->e || !cache_entry_pinned(v->e)) {
            continue;
        }
        uint32_t n_valid = cache_entry_n_valid(v->e), most = cache_entry_may_compute(w->c, v->e);
        if (n_valid == v->target && !cache_entry_loading(v->e) && v->n_guess == v->n_tokens &&
            v->target < w->k.session_len && cache_extend(w->c, v->e, v->target + 1) == PERCH_OK) {
            execute(w);
            v->target++;
            v->n_guess = v->n_guess > v->target ? v->n_guess : v->target;
        }
        most = most < v->target ? most : v->target;
        uint32_t end = n_valid + below(w, most - n_valid + 1);
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
    } else if (die == 3) {
        bool pinned = cache_entry_pinned(v->e); /* even in the middle of a load */
        settle(w, v);
        v->n_tokens = v->n_guess = below(w, v->n_tokens + 1);
        cache_truncate(w->c, v->e, v->n_tokens);
        for (uint32_t i = v->n_tokens; i < MAX_TOKENS; i++) {
            v->ids[i] = (int32_t)below(w, 3);
        }
        if (pinned) { /* what it loads is not touched, or it is given up */
            v->target = cache_entry_loading(v->e) ? v->n_tokens : cache_entry_n_valid(v->e);
        }
    }
}

static bool read_tokens(void *user, uint32_t disk_frame, int32_t *out, uint32_t *n) {
    world *w = user;
    *n = w->left[disk_frame].n_tokens;
    memcpy(out, w->left[disk_frame].tokens, *n * sizeof *out);
    return below(w, 20) > 0;
}

static void choose_costs(world *w);

/* The process was killed and is started again: what is left is what was written to the disk, and the conversations' tokens. */
static void restart(world *w) {
    cache_left_page list[MAX_DISK_FRAMES];
    size_t n = 0;
    for (uint32_t i = 0; i < N_ENTRIES; i++) {
        conversation *v = &w->all[i];
        if (v->e) {
            settle(w, v);
            cache_entry_destroy(w->c, v->e);
        }
    }
    cache_destroy(w->c);
    w->n_io = w->n_moving[0] = w->n_moving[1] = 0;
    w->tickets[0] = w->tickets[1] = 0;
    memset(w->units, 0x77, w->k.n_pages * w->k.page_bytes * sizeof *w->units);
    memset(w->frames, 0x77, w->k.n_frames * w->k.page_bytes * sizeof *w->frames);
    expect(w, cache_create(&w->k, &w->c, NULL) == PERCH_OK, "out of memory", 0, 0);
    for (uint32_t i = 0; i < w->k.n_disk_frames; i++) {
        if (w->left[i].n_tokens) {
            list[n++] = w->left[i].page;
        }
    }
    w->n_taken_over += cache_take_over(w->c, list, n, read_tokens, w);
    choose_costs(w);
    for (uint32_t i = 0; i < N_ENTRIES; i++) {
        conversation *v = &w->all[i];
        expect(w, !v->e || cache_entry_create(w->c, v->tenant, &v->e, NULL) == PERCH_OK, "out of memory", 0, 0);
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
        for (uint32_t n = below(w, 6); n > 0 && w->n_io > 0; n--) {
            disk_ends(w, below(w, w->n_io));
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

/* All that is under way ends, and what that leads to. */
static void finish_transfers(world *w) {
    for (bool more = true; more;) {
        for (int i = 0; i < 2; i++) {
            send(w, i ? CACHE_LOAD : CACHE_STORE);
            some_copies_end(w, i ? CACHE_LOAD : CACHE_STORE, w->tickets[i ? CACHE_LOAD : CACHE_STORE]);
        }
        send_disk(w);
        while (w->n_io > 0) {
            disk_ends(w, below(w, w->n_io));
        }
        more = cache_disk_pending(w->c) || cache_transfers(w->c, CACHE_STORE, &(cache_transfer){0}, 1) ||
               cache_transfers(w->c, CACHE_LOAD, &(cache_transfer){0}, 1);
    }
}

/* Whoever waits for something gets it, or computes it, when nobody else comes. */
static void come_to_an_end(world *w) {
    bool waits = true;
    for (int i = 0; i < 1000 && waits && !w->failed; i++) {
        step(w);
        finish_transfers(w);
        check(w);
        waits = false;
        for (uint32_t k = 0; k < N_ENTRIES; k++) {
            waits = waits || (w->all[k].e && cache_entry_loading(w->all[k].e));
        }
    }
    expect(w, !waits, "an entry waits for ever", 0, 0);
}

typedef struct totals {
    uint64_t saved, restored, adopted, spilled, fetched, corrupt, failed, raced, declined, off, taken_over, claimed;
} totals;

static void add_totals(totals *sum, const cache_stats *s) {
    sum->saved += s->tiers.saved_pages;
    sum->restored += s->tiers.restored_tokens;
    sum->adopted += s->adopted_tokens;
    sum->spilled += s->tiers.spilled_pages;
    sum->fetched += s->tiers.fetched_pages;
    sum->corrupt += s->tiers.corrupt_pages;
    sum->failed += s->tiers.failed_reads + s->tiers.failed_writes;
    sum->raced += s->tiers.raced_tokens;
    sum->declined += s->tiers.declined_tokens;
    sum->off += s->tiers.disk_off;
}

/* Nothing is known, or loading is much faster, as fast, or much slower. */
static void choose_costs(world *w) {
    static const double page_us[] = {0.1, 10, 100, 10000};
    cache_costs costs = {.compute_us = 1, .compute_us_per_position = 0.01, .latency_us = {1, 20}};
    costs.page_us[CACHE_HOST] = page_us[below(w, 4)];
    costs.page_us[CACHE_DISK] = page_us[below(w, 4)];
    if (below(w, 3)) {
        cache_set_costs(w->c, &costs);
    }
}

static bool run(uint64_t seed, uint32_t n_operations, totals *sum) {
    static world w;
    cache_stats s;
    w = (world){.seed = seed, .rng = {seed}};
    w.k = (cache_config){.group_bytes = 16 * (1 + below(&w, 3)),
                         .n_slots = 1 + below(&w, 4),
                         .session_len = MAX_TOKENS - below(&w, 40),
                         .chunk_pages = below(&w, 3),
                         .prefix_index = below(&w, 4) > 0,
                         .n_frames = 1 + (below(&w, 2) ? below(&w, 60) : below(&w, 6)),
                         .restore = (cache_restore)below(&w, 4),
                         .hash_seed = test_rng_next(&w.rng)};
    w.k.n_disk_frames = below(&w, 3) == 0 ? 0 : 1 + (below(&w, 3) ? below(&w, 90) : below(&w, 4));
    expect(&w, w.k.n_disk_frames <= MAX_DISK_FRAMES, "too many frames", w.k.n_disk_frames, 0);
    w.bad_percent = below(&w, 3) ? 0 : below(&w, 8) ? 1 + below(&w, 30) : 90;
    w.k.page_bytes = 12 + below(&w, 60);
    w.k.n_pages = cache_pages_per_slot(&w.k) * (uint32_t)(2 + below(&w, 3)) / 2;
    w.units = calloc(w.k.n_pages * w.k.page_bytes, sizeof *w.units);
    w.frames = calloc(w.k.n_frames * w.k.page_bytes, sizeof *w.frames);
    w.disk = calloc((w.k.n_disk_frames + 1) * w.k.page_bytes, sizeof *w.disk);
    expect(&w, w.units && w.frames && w.disk && cache_create(&w.k, &w.c, NULL) == PERCH_OK, "out of memory", 0, 0);
    choose_costs(&w);
    bool restarts = below(&w, 3) == 0;
    for (w.op = 0; w.op < n_operations && !w.failed; w.op++) {
        operation(&w);
        if (restarts && below(&w, 300) == 0) {
            cache_stats_get(w.c, &s);
            add_totals(sum, &s);
            restart(&w);
        }
        check(&w);
    }
    come_to_an_end(&w);
    if (!w.failed) { /* else entries are left: the process reports and ends */
        for (uint32_t i = 0; i < N_ENTRIES; i++) {
            cache_entry_destroy(w.c, w.all[i].e);
        }
        finish_transfers(&w);
        while (cache_evict_one(w.c, 0)) {}
        cache_stats_get(w.c, &s);
        expect(&w, s.n_free == s.n_pages, "pages are lost", s.n_free, s.n_pages);
        expect(&w, s.tiers.n_demoted == 0, "claims are lost", s.tiers.n_demoted, 0);
        add_totals(sum, &s);
        sum->taken_over += w.n_taken_over;
        sum->claimed += w.n_claimed;
        cache_destroy(w.c);
    }
    free(w.units);
    free(w.frames);
    free(w.disk);
    return !w.failed;
}

/* ---------------------------------------------------------------- tests -- */

static void what_comes_back_from_the_tiers_is_what_was_computed(void) {
    totals sum = {0};
    uint64_t seed = test_seed(20241122), n = test_scaled(300);
    for (uint64_t i = 0; i < n && run(seed + i, 1500, &sum); i++) {}
    printf(
        "  %llu pages saved, %llu tokens restored, %llu adopted; %llu pages spilled, %llu fetched, %llu corrupt, %llu "
        "failures; %llu tokens computed beside loads, %llu instead; %llu disks given up; %llu pages found after "
        "restarts, "
        "%llu tokens with others\n",
        (unsigned long long)sum.saved, (unsigned long long)sum.restored, (unsigned long long)sum.adopted,
        (unsigned long long)sum.spilled, (unsigned long long)sum.fetched, (unsigned long long)sum.corrupt,
        (unsigned long long)sum.failed, (unsigned long long)sum.raced, (unsigned long long)sum.declined,
        (unsigned long long)sum.off, (unsigned long long)sum.taken_over, (unsigned long long)sum.claimed);
    CU_ASSERT(n < 200 || (sum.saved > 10 * n && sum.restored > 10 * n && sum.adopted > 10 * n));
    CU_ASSERT(n < 200 || (sum.spilled > 5 * n && sum.fetched > n / 2 && sum.corrupt > 0 && sum.failed > n / 2));
    CU_ASSERT(n < 200 ||
              (sum.raced > n && sum.declined > n && sum.off > 0 && sum.taken_over > n / 4 && sum.claimed > n));
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_comes_back_from_the_tiers_is_what_was_computed", what_comes_back_from_the_tiers_is_what_was_computed},
    };
    return test_main("tier_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
