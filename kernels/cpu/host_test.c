/*
 * The host tier of the CPU, with either mapping: what was in a page when it was stored comes back to the page it is
 * loaded to, beside work on other pages; tickets count what is done; what can't be is refused; nothing runs when there
 * is nothing to do.
 */
#include "kernels/cpu/device.h"
#include "kernels/cpu/pair_testing.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_PAGES 24u
#define N_FRAMES 32u
#define GROUPS_PER_PAGE 5u

typedef struct tier {
    side s;
    size_t page_bytes;
    uint8_t *page[N_PAGES]; /* each is mapped, page p at place p of slot 0 */
} tier;

static bool open_tier(kernels_mapping mapping, size_t page_bytes, tier *t) {
    *t = (tier){.s = side_open_cpu(NULL, false, 1), .page_bytes = page_bytes};
    const kernels_kv kv = {.mapping = mapping,
                           .page_bytes = page_bytes,
                           .group_bytes = page_bytes / GROUPS_PER_PAGE,
                           .n_pages = N_PAGES,
                           .n_slots = 1,
                           .pages_per_slot = N_PAGES};
    perch_error err = {0};
    perch_status status = t->s.b->kv_open(t->s.d, &kv, &err);
    if (status == PERCH_OK) {
        status = t->s.b->host_open(t->s.d, N_FRAMES, &err);
    }
    for (uint32_t i = 0; i < N_PAGES && status == PERCH_OK; i++) {
        const kv_command c = {.op = KV_MAP, .index = i, .page = i};
        status = t->s.b->kv_execute(t->s.d, &c, 1, &err);
        const kv_view view = t->s.b->kv_slot(t->s.d, 0);
        t->page[i] = view.blocks != NULL ? view.blocks[(size_t)i * GROUPS_PER_PAGE] : view.base + i * page_bytes;
    }
    return CHECK_MSG(status == PERCH_OK, "%s", err.message);
}

/* Both mappings; and pages that are no multiple of what frames are aligned to. */
static void in_each_way(void (*test)(tier *t)) {
    static const struct {
        kernels_mapping mapping;
        size_t page_bytes;
    } ways[] = {{KERNELS_VMM, 5 * 4096}, {KERNELS_TABLE, 5 * 8192}, {KERNELS_TABLE, 5 * 1040}};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        tier t;
        if (open_tier(ways[i].mapping, ways[i].page_bytes, &t)) {
            test(&t);
        }
        t.s.b->close(t.s.d);
    }
}

static uint64_t transfer(const tier *t, kernels_direction direction, const kernels_transfer *list, size_t n) {
    uint64_t ticket = 0;
    CHECK_OK(t->s.b->transfer(t->s.d, direction, list, n, &ticket, ERR));
    return ticket;
}

static void wait_for(const tier *t, kernels_direction direction, uint64_t ticket) {
    CHECK_OK(t->s.b->transfer_wait(t->s.d, direction, ticket, ERR));
}

/* Bytes that only this number has. */
static void fill(uint8_t *at, size_t bytes, uint64_t number) {
    test_rng rng = {number};
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(test_rng_next(&rng) >> 32);
    }
}

static bool has(const uint8_t *at, size_t bytes, uint64_t number) {
    test_rng rng = {number};
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i++) {
        wrong += at[i] != (uint8_t)(test_rng_next(&rng) >> 32);
    }
    return wrong == 0;
}

static void round_trip_on(tier *t) {
    /* Three runs out, two pages alone among them; back to where others were. */
    static const kernels_transfer out[] = {{3, 7}, {4, 8}, {5, 9}, {9, 10}, {11, 0}, {12, 1}, {0, 31}};
    static const kernels_transfer back[] = {{23, 31}, {16, 7}, {17, 8}, {18, 9}, {1, 1}, {2, 10}, {10, 0}};
    enum { N = sizeof out / sizeof out[0] };
    for (uint32_t i = 0; i < N_PAGES; i++) {
        fill(t->page[i], t->page_bytes, i);
    }
    wait_for(t, KERNELS_STORE, transfer(t, KERNELS_STORE, out, N));
    for (size_t i = 0; i < N; i++) {
        const uint8_t *frame = t->s.b->host_frame(t->s.d, out[i].frame);
        CHECK_MSG(has(frame, t->page_bytes, out[i].page), "frame %u", out[i].frame);
        CU_ASSERT((uintptr_t)frame % 4096 == 0);
    }
    for (size_t i = 0; i < N; i++) {
        memset(t->page[out[i].page], 0, t->page_bytes);
    }
    wait_for(t, KERNELS_LOAD, transfer(t, KERNELS_LOAD, back, N));
    for (size_t i = 0; i < N; i++) {
        uint32_t from = 0;
        while (out[from].frame != back[i].frame) {
            from++;
        }
        CHECK_MSG(has(t->page[back[i].page], t->page_bytes, out[from].page), "page %u", back[i].page);
    }
    CU_ASSERT(has(t->page[6], t->page_bytes, 6) && has(t->page[15], t->page_bytes, 15)); /* those beside it */
    CU_ASSERT(t->s.b->host_frame(t->s.d, 1) - t->s.b->host_frame(t->s.d, 0) >= (ptrdiff_t)t->page_bytes);
    CU_ASSERT(t->page_bytes % 4096 != 0 ||
              t->s.b->host_frame(t->s.d, 1) - t->s.b->host_frame(t->s.d, 0) == (ptrdiff_t)t->page_bytes);
}

static void what_was_stored_comes_back(void) { in_each_way(round_trip_on); }

/* What is known about the pages and frames, and which copies are under way. */
typedef struct model {
    uint64_t page[N_PAGES], frame[N_FRAMES];
    uint64_t n_numbers;
    struct {
        kernels_direction direction;
        kernels_transfer list[4];
        size_t n;
        uint64_t ticket;
    } flights[16];
    size_t n_flights;
} model;

static bool is_used(const model *m, bool page, uint32_t number) {
    for (size_t f = 0; f < m->n_flights; f++) {
        for (size_t i = 0; i < m->flights[f].n; i++) {
            if ((page ? m->flights[f].list[i].page : m->flights[f].list[i].frame) == number) {
                return true;
            }
        }
    }
    return false;
}

/* What the ticket says is done is there. */
static void land(tier *t, model *m, kernels_direction direction, uint64_t done) {
    for (size_t f = 0; f < m->n_flights;) {
        if (m->flights[f].direction != direction || m->flights[f].ticket > done) {
            f++;
            continue;
        }
        for (size_t i = 0; i < m->flights[f].n; i++) {
            const kernels_transfer *c = &m->flights[f].list[i];
            if (direction == KERNELS_STORE) {
                m->frame[c->frame] = m->page[c->page];
                CHECK_MSG(has(t->s.b->host_frame(t->s.d, c->frame), t->page_bytes, m->frame[c->frame]),
                          "frame %u is not page %u", c->frame, c->page);
            } else {
                m->page[c->page] = m->frame[c->frame];
                CHECK_MSG(has(t->page[c->page], t->page_bytes, m->page[c->page]), "page %u is not frame %u", c->page,
                          c->frame);
            }
        }
        m->flights[f] = m->flights[--m->n_flights];
    }
}

static void start_one(tier *t, model *m, test_rng *rng) {
    const size_t at = m->n_flights;
    m->flights[at].direction = (kernels_direction)test_rng_below(rng, KERNELS_DIRECTIONS);
    m->flights[at].n = 0;
    m->n_flights++;
    for (int tries = 0; tries < 4; tries++) {
        uint32_t page = (uint32_t)test_rng_below(rng, N_PAGES), frame = (uint32_t)test_rng_below(rng, N_FRAMES);
        for (int run = 0; run < 2 && m->flights[at].n < 4 && page < N_PAGES && frame < N_FRAMES &&
                          !is_used(m, true, page) && !is_used(m, false, frame);
             run++) {
            m->flights[at].list[m->flights[at].n++] = (kernels_transfer){page++, frame++};
        }
    }
    m->flights[at].ticket = transfer(t, m->flights[at].direction, m->flights[at].list, m->flights[at].n);
}

/* As the engine does: transfers both ways, while other pages are written and frames read. */
static void traffic_on(tier *t) {
    const uint64_t seed = test_seed(7);
    test_rng rng = {seed};
    model *m = calloc(1, sizeof *m);
    uint64_t last[KERNELS_DIRECTIONS] = {0};
    for (uint32_t i = 0; i < N_PAGES; i++) {
        fill(t->page[i], t->page_bytes, m->page[i] = ++m->n_numbers);
    }
    for (uint32_t i = 0; i < N_FRAMES; i++) {
        fill(t->s.b->host_frame(t->s.d, i), t->page_bytes, m->frame[i] = ++m->n_numbers);
    }
    for (uint64_t round = 0; round < test_scaled(300); round++) {
        if (m->n_flights < 16) {
            start_one(t, m, &rng);
        }
        uint32_t page = (uint32_t)test_rng_below(&rng, N_PAGES);
        if (!is_used(m, true, page)) {
            fill(t->page[page], t->page_bytes, m->page[page] = ++m->n_numbers);
        }
        for (uint32_t d = 0; d < KERNELS_DIRECTIONS; d++) {
            uint64_t done = 0;
            CHECK_OK(t->s.b->transferred(t->s.d, (kernels_direction)d, &done, ERR));
            CHECK_MSG(done >= last[d], "seed %" PRIu64 ": %" PRIu64 " after %" PRIu64, seed, done, last[d]);
            last[d] = done;
            land(t, m, (kernels_direction)d, done);
        }
        if (m->n_flights == 16) {
            wait_for(t, m->flights[3].direction, m->flights[3].ticket);
            land(t, m, m->flights[3].direction, m->flights[3].ticket);
        }
    }
    free(m);
}

static void transfers_run_beside_work_on_other_pages(void) { in_each_way(traffic_on); }

static void refusals_on(tier *t) {
    const kernels_transfer wrong[] = {{0, 0}, {N_PAGES, 0}}, wrong_frame[] = {{0, N_FRAMES}};
    kernels_transfer all[N_PAGES + 1];
    perch_error err = {0};
    uint64_t ticket = 9;
    const kernels_backend *b = t->s.b;
    fill(t->page[0], t->page_bytes, 5);
    memset(b->host_frame(t->s.d, 0), 1, t->page_bytes);
    CU_ASSERT(b->transfer(t->s.d, KERNELS_STORE, wrong, 2, &ticket, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "transfer 1, page 24 and frame 0") != NULL, "%s", err.message);
    CU_ASSERT(b->transfer(t->s.d, KERNELS_LOAD, wrong_frame, 1, &ticket, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "24 pages and 32 frames") != NULL, "%s", err.message);
    CU_ASSERT(b->transfer_wait(t->s.d, KERNELS_STORE, 1, &err) == PERCH_E_INVALID); /* nothing was queued */
    CHECK_OK(b->transfer(t->s.d, KERNELS_STORE, NULL, 0, &ticket, ERR));
    CU_ASSERT(ticket == 0);
    wait_for(t, KERNELS_STORE, ticket);
    CU_ASSERT(b->host_frame(t->s.d, 0)[0] == 1);
    /* As many loads at once as there are pages, and no more: two to one page would be one of them twice. */
    for (uint32_t i = 0; i <= N_PAGES; i++) {
        all[i] = (kernels_transfer){i < N_PAGES ? N_PAGES - 1 - i : 0, i};
    }
    CU_ASSERT(b->transfer(t->s.d, KERNELS_LOAD, all, N_PAGES + 1, &ticket, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "more than there are destinations, 24") != NULL, "%s", err.message);
    CU_ASSERT(has(t->page[0], t->page_bytes, 5));
    wait_for(t, KERNELS_LOAD, transfer(t, KERNELS_LOAD, all, N_PAGES));
    CU_ASSERT(b->host_open(t->s.d, 1, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "open already") != NULL, "%s", err.message);
    b->host_close(t->s.d);
    b->host_close(t->s.d);
    CU_ASSERT(b->transfer(t->s.d, KERNELS_LOAD, all, 1, &ticket, &err) == PERCH_E_INVALID);
    CU_ASSERT(b->transferred(t->s.d, KERNELS_LOAD, &ticket, &err) == PERCH_E_INVALID);
    CU_ASSERT(b->transfer_wait(t->s.d, KERNELS_LOAD, 0, &err) == PERCH_E_INVALID);
    CU_ASSERT(b->host_open(t->s.d, 0, &err) == PERCH_E_INVALID);
    CHECK_OK(b->host_open(t->s.d, 2, ERR));
    b->kv_close(t->s.d); /* that too */
    CU_ASSERT(b->host_open(t->s.d, 2, &err) == PERCH_E_INVALID);
    CHECK_MSG(strstr(err.message, "not open") != NULL, "%s", err.message);
}

static void what_cannot_be_is_refused(void) { in_each_way(refusals_on); }

static void no_room_on(tier *t) {
    perch_error err = {0};
    t->s.b->host_close(t->s.d);
    CU_ASSERT(t->s.b->host_open(t->s.d, UINT32_MAX, &err) == PERCH_E_NO_ROOM);
    CHECK_MSG(strstr(err.message, "4294967295 frames") != NULL && strstr(err.message, "free") != NULL, "%s",
              err.message);
    CHECK_OK(t->s.b->host_open(t->s.d, 3, ERR));
}

static void a_tier_that_does_not_fit_is_refused_with_figures(void) { in_each_way(no_room_on); }

/* Whatever is under way: closing does not wait for all of it, and leaves nothing behind. */
static void closing_gives_up_what_is_under_way(void) {
    for (uint64_t i = 0; i < 20; i++) {
        tier t;
        kernels_transfer all[N_PAGES];
        for (uint32_t p = 0; p < N_PAGES; p++) {
            all[p] = (kernels_transfer){p, i % 2 ? p : N_PAGES - 1 - p};
        }
        if (open_tier(i % 4 < 2 ? KERNELS_VMM : KERNELS_TABLE, (size_t)5 << 18, &t)) {
            transfer(&t, KERNELS_STORE, all, N_PAGES / 2);
            transfer(&t, KERNELS_LOAD, all + N_PAGES / 2, N_PAGES / 2);
            usleep((useconds_t)(i * 300));
        }
        t.s.b->close(t.s.d);
    }
}

static void idle_on(tier *t) {
    const kernels_transfer one = {1, 1};
    wait_for(t, KERNELS_STORE, transfer(t, KERNELS_STORE, &one, 1));
    double share = test_idle_share();
    CHECK_MSG(share < 0.01, "%.2f %% of a CPU", 100 * share);
}

static void an_idle_tier_uses_no_cpu(void) { in_each_way(idle_on); }

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"what_was_stored_comes_back", what_was_stored_comes_back},
        {"transfers_run_beside_work_on_other_pages", transfers_run_beside_work_on_other_pages},
        {"what_cannot_be_is_refused", what_cannot_be_is_refused},
        {"a_tier_that_does_not_fit_is_refused_with_figures", a_tier_that_does_not_fit_is_refused_with_figures},
        {"closing_gives_up_what_is_under_way", closing_gives_up_what_is_under_way},
        {"an_idle_tier_uses_no_cpu", an_idle_tier_uses_no_cpu},
    };
    return test_main("cpu_host_test", tests, sizeof tests / sizeof tests[0], argc, argv);
}
