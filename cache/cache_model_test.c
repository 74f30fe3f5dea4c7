/*
 * cache_model_test: the cache under random operations, against a naive model of its rules and a simulated device.
 *
 * The model keeps each entry's tokens and its pages as plain numbers, and answers every question by scanning all of
 * them. The device is an array of pages and a table of what is mapped where; it executes the emitted commands and
 * nothing else touches it but writes and reads through the slots, as kernels do. Each token's KV is a stamp of its namespace
 * and all token IDs up to it, spread over its group, so that aliasing, a missing copy, a stale mapping, a lost page or a
 * prefix taken for another shows as a wrong stamp. Conversations begin alike, so that prefixes are found.
 */
#include "cache/state.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ENTRIES = 24, MAX_TOKENS = 208, MAX_PAGES = 64, MAX_SLOTS = 8, MAX_POOL = 4 * MAX_PAGES };
enum { MAX_NAMES = 1 << 20 }; /* of pages, in the model, in one run */

typedef struct twin {
    cache_entry *e; /* NULL: does not exist */
    bool reserved, pinned, has_slot, writing;
    bool closed;                /* nobody's; gone with its last page */
    uint64_t tenant;            /* its namespace */
    uint32_t n_held;            /* groups that it has published */
    uint32_t n_claims;          /* groups that it holds or promises */
    uint32_t n_valid, n_target; /* target: the tokens that extend made room for, while writing */
    uint32_t n_pages;
    uint64_t n_evictions;
    uint32_t page[MAX_PAGES];   /* the model's own names of pages; a new one for each new page */
    uint32_t token[MAX_TOKENS]; /* stamps of what it has */
    int32_t ids[MAX_TOKENS];    /* all that it will ever have, until a truncation */
} twin;

typedef struct model {
    cache_config config;
    uint32_t pages_per_slot;
    twin entries[MAX_ENTRIES];
    uint32_t lru[MAX_ENTRIES], n_lru; /* closed entries, then idle ones with pages; the oldest first */
    uint32_t n_closed;
    uint64_t evictions, evicted_pages;
    uint32_t next_page;
} model;

/* A byte of the configuration is a unit here. A group is rows of 16 units; a token has one unit in each row. */
typedef struct device {
    uint32_t *units;                      /* [n_pages][page_bytes] */
    int64_t mapped[MAX_SLOTS][MAX_PAGES]; /* -1: nothing */
} device;

/* What was asked of a slot since the commands were last cleared. */
typedef struct usage {
    uint32_t n_pins, n_extends, n_truncates;
} usage;

typedef struct run {
    model m;
    cache *c;
    device d;
    test_rng rng;
    uint32_t n_entries;
    uint64_t seed, op;
    const char *op_name;
    usage used[MAX_SLOTS];
    uint64_t n_full_lists, n_copies, n_again, n_prepared, n_adopted, n_waits;
    bool failed;
} run;

/* The first failure of a run is reported, and ends it. */
#define EXPECT(r, condition, ...)                                                                                      \
    do {                                                                                                               \
        if (!(r)->failed && !(condition)) {                                                                            \
            char detail[256];                                                                                          \
            snprintf(detail, sizeof detail, __VA_ARGS__);                                                              \
            (r)->failed = true;                                                                                        \
            CHECK_MSG(false, "%s: %s (seed %llu, operation %llu: %s)", #condition, detail,                             \
                      (unsigned long long)(r)->seed, (unsigned long long)(r)->op, (r)->op_name);                       \
        }                                                                                                              \
    } while (0)

static uint32_t below(run *r, uint64_t n) { return (uint32_t)test_rng_below(&r->rng, n); }

/* ---------------------------------------------------------------- model -- */

static uint32_t model_pages_for(const model *m, uint32_t n_tokens) {
    uint64_t bytes = (n_tokens + 15) / 16 * m->config.group_bytes;
    return (uint32_t)((bytes + m->config.page_bytes - 1) / m->config.page_bytes);
}

/* Entries (only_pinned: pinned ones) that own the page: at the same index in all, since forks share from the front. */
static uint32_t owners_of(const model *m, const twin *of, uint32_t index, bool only_pinned) {
    uint32_t n = 0;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        const twin *t = &m->entries[i];
        n += index < t->n_pages && t->page[index] == of->page[index] && (t->pinned || !only_pinned);
    }
    return n;
}

/* Pages that someone (only_pinned: someone pinned) owns, each counted once. */
static uint32_t pages_in_use(const model *m, bool only_pinned) {
    static uint64_t seen_in[MAX_NAMES], now;
    uint32_t n = 0;
    now++;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        const twin *t = &m->entries[i];
        for (uint32_t p = 0; p < t->n_pages && (t->pinned || !only_pinned); p++) {
            n += seen_in[t->page[p]] != now;
            seen_in[t->page[p]] = now;
        }
    }
    return n;
}

static void lru_remove(model *m, uint32_t entry) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_lru; i++) {
        if (m->lru[i] != entry) {
            m->lru[n++] = m->lru[i];
        } else {
            m->n_closed -= i < m->n_closed;
        }
    }
    m->n_lru = n;
}

/* The last of the closed ones from now on. */
static void lru_close(model *m, uint32_t entry) {
    lru_remove(m, entry);
    memmove(m->lru + m->n_closed + 1, m->lru + m->n_closed, (m->n_lru - m->n_closed) * sizeof *m->lru);
    m->lru[m->n_closed++] = entry;
    m->n_lru++;
}

static void model_settle(model *m, uint32_t entry) {
    twin *t = &m->entries[entry];
    if (!t->pinned && t->n_pages == 0) {
        lru_remove(m, entry);
        t->has_slot = false;
        if (t->closed) {
            *t = (twin){0};
        }
    }
}

static void model_shrink(twin *t, uint32_t n_tokens) {
    t->n_held = t->n_held < n_tokens / 16 ? t->n_held : n_tokens / 16;
    t->n_claims = t->n_held;
}

/* Groups at the beginning of t's tokens that of has as well; as far as `of` claims (or holds) them. */
static uint32_t common_groups(const twin *t, const twin *of, bool held) {
    uint32_t n = 0, end = held ? of->n_held : of->n_claims;
    while (of->e && of->tenant == t->tenant && n < end && !memcmp(t->ids + n * 16, of->ids + n * 16, 64)) {
        n++;
    }
    return n;
}

static uint32_t model_find(const model *m, const twin *t, bool held) {
    uint32_t most = 0;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        uint32_t n = common_groups(t, &m->entries[i], held);
        most = n > most ? n : most;
    }
    return most;
}

static void model_truncate(model *m, uint32_t entry, uint32_t n_tokens) {
    twin *t = &m->entries[entry];
    uint32_t keep = model_pages_for(m, n_tokens);
    t->n_valid = t->n_valid < n_tokens ? t->n_valid : n_tokens;
    t->n_pages = t->n_pages < keep ? t->n_pages : keep;
    model_shrink(t, n_tokens);
    model_settle(m, entry);
}

/* Written pages that another entry owns too. */
static uint32_t copies_needed(const model *m, const twin *t, uint32_t n_tokens, bool only_pinned) {
    uint32_t n = 0, end = n_tokens > t->n_valid ? model_pages_for(m, n_tokens) : 0;
    uint32_t first = (uint32_t)(t->n_valid / 16 * m->config.group_bytes / m->config.page_bytes);
    for (uint32_t i = first; i < end && i < t->n_pages; i++) {
        n += owners_of(m, t, i, only_pinned) > 1;
    }
    return n;
}

static uint32_t goal_exact(const model *m, const twin *t, uint32_t n_tokens) {
    uint32_t need = n_tokens > t->n_valid ? model_pages_for(m, n_tokens) : 0;
    need = need > t->n_pages ? need : t->n_pages;
    return m->config.chunk_pages == 0 ? m->pages_per_slot : need;
}

/* With every idle entry evicted, would there be room for the pages that must be had? */
static bool model_fits(const model *m, const twin *t, uint32_t n_tokens, uint32_t reserved) {
    int64_t room = (int64_t)m->config.n_pages - pages_in_use(m, true) - (int64_t)reserved;
    int64_t need = (int64_t)goal_exact(m, t, n_tokens) - t->n_pages + copies_needed(m, t, n_tokens, true);
    return need <= (room > 0 ? room : 0);
}

static bool model_slot_left(const model *m) {
    uint32_t n_pinned = 0;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        n_pinned += m->entries[i].pinned;
    }
    return n_pinned < m->config.n_slots;
}

static bool model_can_hold(const model *m, uint32_t entry, uint32_t n_tokens, uint32_t reserved) {
    static model trial;
    trial = *m;
    twin *t = &trial.entries[entry];
    if (!t->pinned && !model_slot_left(m)) {
        return false;
    }
    t->pinned = true;
    return n_tokens <= m->config.session_len && model_fits(&trial, t, n_tokens, reserved);
}

static perch_status model_pin(model *m, uint32_t entry) {
    twin *t = &m->entries[entry];
    uint32_t n_holders = 0;
    if (t->pinned || (!t->reserved && t->n_pages == 0)) {
        return PERCH_E_INVALID;
    }
    if (!t->has_slot) {
        if (!model_slot_left(m)) {
            return PERCH_E_AGAIN;
        }
        for (int i = 0; i < MAX_ENTRIES; i++) {
            n_holders += m->entries[i].has_slot;
        }
        for (uint32_t i = 0; i < m->n_lru && n_holders == m->config.n_slots; i++) {
            if (m->entries[m->lru[i]].has_slot) {
                m->entries[m->lru[i]].has_slot = false;
                n_holders--;
            }
        }
        t->has_slot = true;
    }
    t->pinned = true;
    lru_remove(m, entry);
    return PERCH_OK;
}

static void model_unpin(model *m, uint32_t entry) {
    twin *t = &m->entries[entry];
    t->pinned = t->writing = false;
    t->n_claims = t->n_held;
    m->lru[m->n_lru++] = entry;
    model_settle(m, entry);
}

/* The entry has given up pages to others: what of it is left. */
static void model_evicted(model *m, uint32_t entry) {
    twin *t = &m->entries[entry];
    uint32_t carrying = model_pages_for(m, t->n_valid);
    uint32_t whole = (uint32_t)(t->n_pages * m->config.page_bytes / m->config.group_bytes);
    t->n_pages = whole ? t->n_pages : 0;
    if (whole * 16 < t->n_valid) {
        t->n_valid = whole * 16;
    }
    model_shrink(t, t->n_valid);
    if (t->n_pages < carrying) {
        t->n_evictions++;
        m->evictions += !t->closed;
        m->evicted_pages += carrying - t->n_pages;
    }
    model_settle(m, entry);
}

static perch_status model_extend(model *m, uint32_t entry, uint32_t n_tokens) {
    twin *t = &m->entries[entry];
    if (!t->pinned) {
        return PERCH_E_INVALID;
    }
    if (n_tokens > m->config.session_len) {
        return PERCH_E_TOO_LONG;
    }
    if (!model_fits(m, t, n_tokens, 0)) {
        return PERCH_E_AGAIN;
    }
    uint32_t goal = goal_exact(m, t, n_tokens), chunk = m->config.chunk_pages;
    if (goal > t->n_pages && chunk > 0) {
        uint32_t rounded = (goal + chunk - 1) / chunk * chunk;
        rounded = rounded < m->pages_per_slot ? rounded : m->pages_per_slot;
        if (rounded - t->n_pages + copies_needed(m, t, n_tokens, false) <= m->config.n_pages - pages_in_use(m, true)) {
            goal = rounded;
        }
    }
    while (m->config.n_pages - pages_in_use(m, false) < goal - t->n_pages + copies_needed(m, t, n_tokens, false)) {
        uint32_t oldest = m->lru[0];
        m->entries[oldest].n_pages--;
        if (m->entries[oldest].n_pages > 0 &&
            m->config.n_pages - pages_in_use(m, false) < goal - t->n_pages + copies_needed(m, t, n_tokens, false)) {
            continue; /* the same entry goes on losing pages: one eviction */
        }
        model_evicted(m, oldest);
    }
    uint32_t first = (uint32_t)(t->n_valid / 16 * m->config.group_bytes / m->config.page_bytes);
    uint32_t end = n_tokens > t->n_valid ? model_pages_for(m, n_tokens) : 0;
    for (uint32_t i = first; i < end && i < t->n_pages; i++) {
        if (owners_of(m, t, i, false) > 1) {
            t->page[i] = m->next_page++;
        }
    }
    while (t->n_pages < goal) {
        t->page[t->n_pages++] = m->next_page++;
    }
    t->n_target = n_tokens > t->n_valid ? n_tokens : t->n_valid;
    t->writing = true;
    return PERCH_OK;
}

/* Pages that it is to have for n_tokens, if so many are free; nothing gives way to them. 0: it gets none. */
static uint32_t model_prepares(const model *m, const twin *t, uint32_t n_tokens) {
    uint32_t goal = model_pages_for(m, n_tokens < m->config.session_len ? n_tokens : m->config.session_len);
    bool grows = t->pinned && goal > t->n_pages && goal - t->n_pages <= m->config.n_pages - pages_in_use(m, false);
    return grows ? goal : 0;
}

static void model_fork(model *m, uint32_t parent, uint32_t child, uint32_t n_tokens) {
    const twin *from = &m->entries[parent];
    twin *t = &m->entries[child];
    t->n_valid = n_tokens < from->n_valid ? n_tokens : from->n_valid;
    t->n_pages = model_pages_for(m, t->n_valid);
    memcpy(t->page, from->page, sizeof t->page);
    memcpy(t->token, from->token, sizeof t->token);
    memcpy(t->ids, from->ids, t->n_valid * sizeof *t->ids);
    t->n_held = t->n_claims = from->n_held < t->n_valid / 16 ? from->n_held : t->n_valid / 16;
    if (t->n_pages > 0) {
        m->lru[m->n_lru++] = child;
    }
}

static bool model_evict_one(model *m, uint32_t keep) {
    if (m->n_lru == 0 || m->entries[m->lru[0]].n_pages <= keep) {
        return false;
    }
    m->entries[m->lru[0]].n_pages = keep;
    model_evicted(m, m->lru[0]);
    return true;
}

/* --------------------------------------------------------------- device -- */

static void device_execute(run *r) {
    const cache_config *k = &r->m.config;
    size_t n;
    const kv_command *command = cache_commands(r->c, &n);
    for (size_t i = 0; i < n && !r->failed; i++, command++) {
        bool place_ok = command->slot < k->n_slots && command->index < r->m.pages_per_slot;
        if (command->op == KV_MAP) {
            EXPECT(r, place_ok && command->page < k->n_pages, "MAP out of range");
            EXPECT(r, r->d.mapped[command->slot][command->index] != command->page, "MAP of what is there");
            r->d.mapped[command->slot][command->index] = command->page;
        } else if (command->op == KV_UNMAP) {
            EXPECT(r, place_ok && r->d.mapped[command->slot][command->index] >= 0, "UNMAP of nothing");
            r->d.mapped[command->slot][command->index] = -1;
        } else {
            EXPECT(r,
                   command->op == KV_COPY && command->page < k->n_pages && command->source < k->n_pages &&
                       command->page != command->source,
                   "not a sound COPY");
            memcpy(r->d.units + command->page * k->page_bytes, r->d.units + command->source * k->page_bytes,
                   k->page_bytes * sizeof *r->d.units);
            r->n_copies++;
        }
    }
    cache_commands_clear(r->c);
    memset(r->used, 0, sizeof r->used);
}

/* Where row `row` of a token's KV lies, as a kernel would find it: through the slot. */
static uint32_t *device_unit(run *r, const twin *t, uint32_t position, uint32_t row) {
    static uint32_t nowhere;
    const cache_config *k = &r->m.config;
    uint64_t at = position / 16 * k->group_bytes + row * 16 + position % 16;
    int64_t page = r->d.mapped[cache_entry_slot(t->e)][at / k->page_bytes];
    EXPECT(r, page >= 0, "position %u lies where nothing is mapped", position);
    return page < 0 ? &nowhere : &r->d.units[(uint64_t)page * k->page_bytes + at % k->page_bytes];
}

/* One name, one page, and the other way round; a page with several places has only live ones. */
static void device_check_mapping(run *r) {
    static int64_t page_of_name[MAX_NAMES];
    static uint64_t checked_in[MAX_NAMES], now;
    int64_t name_of_page[MAX_POOL];
    uint32_t n_places[MAX_POOL] = {0}, n_live[MAX_POOL] = {0};
    const model *m = &r->m;
    memset(name_of_page, -1, sizeof name_of_page);
    now++;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        const twin *t = &m->entries[i];
        for (uint32_t p = 0; p < t->n_pages && t->has_slot && !r->failed; p++) {
            int64_t page = r->d.mapped[cache_entry_slot(t->e)][p];
            EXPECT(r, page >= 0, "page %u of entry %d is not mapped", p, i);
            if (page < 0) {
                return;
            }
            int64_t *known = &page_of_name[t->page[p]];
            *known = checked_in[t->page[p]] == now ? *known : page;
            checked_in[t->page[p]] = now;
            EXPECT(r, *known == page, "page %u of entry %d is shared, but two pages are mapped for it", p, i);
            EXPECT(r, name_of_page[page] < 0 || name_of_page[page] == t->page[p],
                   "page %u of entry %d is someone else's", p, i);
            name_of_page[page] = t->page[p];
            n_live[page]++;
        }
    }
    for (uint32_t slot = 0; slot < m->config.n_slots; slot++) {
        for (uint32_t p = 0; p < m->pages_per_slot; p++) {
            if (r->d.mapped[slot][p] >= 0) {
                n_places[r->d.mapped[slot][p]]++;
            }
        }
    }
    for (uint32_t page = 0; page < m->config.n_pages; page++) {
        EXPECT(r, n_places[page] <= 1 || n_places[page] == n_live[page], "page %u is mapped at %u places, %u live",
               page, n_places[page], n_live[page]);
    }
}

static void device_verify(run *r, uint32_t entry) {
    const twin *t = &r->m.entries[entry];
    for (uint32_t position = 0; position < t->n_valid && !r->failed; position++) {
        for (uint32_t row = 0; row < r->m.config.group_bytes / 16; row++) {
            uint32_t found = *device_unit(r, t, position, row);
            EXPECT(r, found == t->token[position] * 8 + row, "entry %u, position %u, row %u: %u instead of %u", entry,
                   position, row, found, t->token[position] * 8 + row);
        }
    }
}

/* A stamp of 29 bits for the token at `position` behind all those before it. */
static uint32_t stamp_of(const twin *t, uint32_t position) {
    uint64_t h = position ? t->token[position - 1] : t->tenant + 1000;
    h = (h * 0x9e3779b97f4a7c15ULL + (uint32_t)t->ids[position] + 1) * 0xff51afd7ed558ccdULL;
    return (uint32_t)(h >> 35);
}

static void do_publish(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    uint32_t n = n_tokens < t->n_valid ? n_tokens : t->n_valid;
    cache_publish(r->c, t->e, t->ids, n_tokens);
    if (r->m.config.prefix_index && n / 16 > t->n_held) {
        t->n_held = n / 16;
        t->n_claims = t->n_claims > t->n_held ? t->n_claims : t->n_held;
    }
}

/* What the engine does in a step: the commands, the forward pass over every entry that was extended, commit. */
static void step(run *r) {
    model *m = &r->m;
    device_execute(r);
    device_check_mapping(r);
    for (uint32_t i = 0; i < MAX_ENTRIES && !r->failed; i++) {
        twin *t = &m->entries[i];
        if (t->writing) {
            uint32_t n = t->n_target - below(r, 4) * (t->n_target - t->n_valid) / 4; /* not always all of them */
            for (uint32_t position = t->n_valid; position < n; position++) {
                t->token[position] = stamp_of(t, position);
                for (uint32_t row = 0; row < m->config.group_bytes / 16; row++) {
                    *device_unit(r, t, position, row) = t->token[position] * 8 + row;
                }
            }
            cache_commit(t->e, n);
            t->n_valid = n;
            t->writing = n < t->n_target; /* as a prompt that is computed over several steps */
            if (below(r, 4)) {
                do_publish(r, i, n);
            }
        }
    }
    for (uint32_t i = 0; i < MAX_ENTRIES && !r->failed; i++) {
        if (m->entries[i].has_slot) {
            device_verify(r, i);
        }
    }
}

/* ----------------------------------------------------------- comparison -- */

static void compare(run *r) {
    const model *m = &r->m;
    uint32_t holders = 0, n_pinned_slots = 0, n_closed = 0;
    cache_stats s;
    for (uint32_t i = 0; i < MAX_ENTRIES; i++) {
        const twin *t = &m->entries[i];
        if (!t->e) {
            continue;
        }
        uint32_t slot = cache_entry_slot(t->e);
        EXPECT(r, cache_entry_n_valid(t->e) == t->n_valid && cache_entry_n_pages(t->e) == t->n_pages,
               "entry %u: %u tokens on %u pages, not %u on %u", i, cache_entry_n_valid(t->e), cache_entry_n_pages(t->e),
               t->n_valid, t->n_pages);
        EXPECT(r, cache_entry_pinned(t->e) == t->pinned, "entry %u", i);
        EXPECT(r, cache_entry_n_evictions(t->e) == t->n_evictions, "entry %u: %llu evictions, not %llu", i,
               (unsigned long long)cache_entry_n_evictions(t->e), (unsigned long long)t->n_evictions);
        EXPECT(r, (slot != CACHE_NO_SLOT) == t->has_slot, "entry %u has slot %u", i, slot);
        EXPECT(r, !t->has_slot || (slot < m->config.n_slots && !(holders >> slot & 1)), "entry %u: slot %u", i, slot);
        holders |= t->has_slot ? 1u << slot : 0;
        n_pinned_slots += t->pinned;
        n_closed += t->closed;
    }
    const cache_entry *at = policy_end(r->c, false);
    for (uint32_t i = 0; i < m->n_lru; i++, at = at ? policy_next(r->c, at, false) : NULL) {
        EXPECT(r, at == m->entries[m->lru[i]].e, "the LRU order differs at %u", i);
    }
    EXPECT(r, at == NULL, "the LRU order is longer than %u", m->n_lru);
    cache_stats_get(r->c, &s);
    EXPECT(r, s.n_pages == m->config.n_pages && s.n_free + s.n_pinned + s.n_idle == s.n_pages, "pages are lost");
    EXPECT(r, s.n_free == s.n_pages - pages_in_use(m, false), "%u free", s.n_free);
    EXPECT(r, s.n_pinned == pages_in_use(m, true), "%u pinned", s.n_pinned);
    EXPECT(r, s.n_slots == m->config.n_slots && s.n_slots_pinned == n_pinned_slots, "%u slots pinned",
           s.n_slots_pinned);
    EXPECT(r, s.n_resident_entries == m->n_lru - n_closed && s.n_closed_entries == n_closed && n_closed == m->n_closed,
           "%llu resident, %llu closed", (unsigned long long)s.n_resident_entries,
           (unsigned long long)s.n_closed_entries);
    EXPECT(r, s.evictions == m->evictions && s.evicted_pages == m->evicted_pages, "%llu evictions of %llu pages",
           (unsigned long long)s.evictions, (unsigned long long)s.evicted_pages);
}

/* ----------------------------------------------------------- operations -- */

/*
 * May pin or extend of the entry find the command list full? Only if, since the last step, some slot was or will be
 * pinned or extended for the second time, or was truncated.
 */
static bool list_may_be_full(const run *r, const twin *asking) {
    bool pinned[MAX_SLOTS] = {false};
    for (int i = 0; i < MAX_ENTRIES; i++) {
        const twin *t = &r->m.entries[i];
        if (t->pinned) {
            pinned[cache_entry_slot(t->e)] = true;
        }
    }
    for (uint32_t slot = 0; slot < r->m.config.n_slots; slot++) {
        const usage *u = &r->used[slot];
        bool asked = asking->has_slot ? cache_entry_slot(asking->e) == slot : !pinned[slot];
        if (u->n_pins > 1 || u->n_extends > 1 || u->n_truncates > 0 ||
            (asked && (u->n_extends > 0 || (u->n_pins > 0 && !asking->has_slot)))) {
            return true;
        }
    }
    return false;
}

/* Asks the cache what it could hold; where the model says otherwise the list of commands must be the reason. */
static void check_can_hold(run *r, uint32_t entry, uint32_t n_tokens, uint32_t reserved) {
    bool expected = model_can_hold(&r->m, entry, n_tokens, reserved);
    bool found = cache_can_hold(r->c, r->m.entries[entry].e, n_tokens, reserved);
    if (expected && !found && list_may_be_full(r, &r->m.entries[entry])) {
        step(r);
        r->n_full_lists++;
        expected = model_can_hold(&r->m, entry, n_tokens, reserved); /* what was just written may have moved n_valid */
        found = cache_can_hold(r->c, r->m.entries[entry].e, n_tokens, reserved);
    }
    EXPECT(r, expected == found, "entry %u for %u tokens, %u reserved", entry, n_tokens, reserved);
}

static perch_status do_pin(run *r, uint32_t entry) {
    twin *t = &r->m.entries[entry];
    bool had_slot = t->has_slot;
    perch_status found = cache_pin(r->c, t->e);
    if (found == PERCH_E_AGAIN && model_slot_left(&r->m) && list_may_be_full(r, t)) {
        step(r);
        r->n_full_lists++;
        found = cache_pin(r->c, t->e);
    }
    perch_status expected = model_pin(&r->m, entry);
    EXPECT(r, found == expected, "%s, not %s", perch_status_name(found), perch_status_name(expected));
    if (found == PERCH_OK && !had_slot) {
        r->used[cache_entry_slot(t->e)].n_pins++;
    }
    return found;
}

static perch_status do_extend(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    perch_status found = cache_extend(r->c, t->e, n_tokens);
    if (found == PERCH_E_AGAIN && model_fits(&r->m, t, n_tokens, 0) && list_may_be_full(r, t)) {
        step(r);
        r->n_full_lists++;
        found = cache_extend(r->c, t->e, n_tokens);
    }
    perch_status expected = model_extend(&r->m, entry, n_tokens);
    EXPECT(r, found == expected, "%u tokens: %s, not %s", n_tokens, perch_status_name(found),
           perch_status_name(expected));
    if (found == PERCH_OK) {
        r->used[cache_entry_slot(t->e)].n_extends++;
    }
    r->n_again += found == PERCH_E_AGAIN;
    return found;
}

static void do_prepare(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    uint32_t goal = model_prepares(&r->m, t, n_tokens);
    bool found = cache_prepare(r->c, t->e, n_tokens);
    if (!found && goal && list_may_be_full(r, t)) {
        return;
    }
    EXPECT(r, found == (goal > 0), "%u tokens: %d, not %u pages", n_tokens, found, goal);
    if (found) {
        for (; t->n_pages < goal; t->n_pages++) {
            t->page[t->n_pages] = r->m.next_page++;
        }
        r->used[cache_entry_slot(t->e)].n_extends++;
        r->n_prepared++;
    }
}

static void do_unpin(run *r, uint32_t entry) {
    if (r->m.entries[entry].pinned) {
        cache_unpin(r->c, r->m.entries[entry].e);
        model_unpin(&r->m, entry);
    }
}

static void do_truncate(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    if (t->has_slot) {
        r->used[cache_entry_slot(t->e)].n_truncates++;
    }
    cache_truncate(r->c, t->e, n_tokens);
    model_truncate(&r->m, entry, n_tokens);
    t->n_target = t->n_target < n_tokens ? t->n_target : n_tokens;
    t->writing = t->writing && t->n_target > t->n_valid;
    for (uint32_t i = t->n_valid; i < MAX_TOKENS && below(r, 2); i++) { /* it goes on differently */
        t->ids[i] = (int32_t)below(r, 3);
    }
}

static void do_create(run *r, uint32_t entry) {
    twin *t = &r->m.entries[entry];
    *t = (twin){.reserved = below(r, 4) > 0, .tenant = below(r, 5) == 0};
    uint32_t script = below(r, 3), n_alike = below(r, 2) ? MAX_TOKENS : below(r, MAX_TOKENS);
    for (uint32_t i = 0; i < MAX_TOKENS; i++) {
        t->ids[i] = (int32_t)(i < n_alike ? (i * (script + 1)) % 7 : below(r, 3));
    }
    EXPECT(r, cache_entry_create(r->c, t->tenant, &t->e, NULL) == PERCH_OK, "out of memory");
    if (t->reserved) {
        EXPECT(r, cache_entry_reserve(r->c, t->e, NULL) == PERCH_OK, "out of memory");
    }
}

static void do_destroy(run *r, uint32_t entry) {
    twin *t = &r->m.entries[entry];
    do_unpin(r, entry);
    model_truncate(&r->m, entry, 0);
    cache_entry_destroy(r->c, t->e);
    *t = (twin){0};
}

static void do_close(run *r, uint32_t entry) {
    twin *t = &r->m.entries[entry];
    bool kept = t->n_held > 0;
    do_unpin(r, entry);
    for (uint32_t i = 0; i < MAX_ENTRIES; i++) {
        kept = kept && (i == entry || common_groups(t, &r->m.entries[i], true) < t->n_held);
    }
    cache_entry_close(r->c, t->e);
    if (!kept) {
        model_truncate(&r->m, entry, 0);
        *t = (twin){0};
        return;
    }
    model_truncate(&r->m, entry, t->n_held * 16);
    t->closed = true;
    t->has_slot = false;
    lru_close(&r->m, entry);
}

static void do_promise(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    uint32_t n_ready = t->writing && t->n_target > t->n_valid ? t->n_target : t->n_valid;
    uint32_t n = (n_tokens < n_ready ? n_tokens : n_ready) / 16;
    cache_promise(r->c, t->e, t->ids, n_tokens);
    if (t->pinned && r->m.config.prefix_index) {
        t->n_claims = n > t->n_held ? n : t->n_held;
    }
}

/* As the scheduler does before it admits: look, wait, or take what is there. */
static void do_adopt(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    cache_found found;
    if (t->pinned) {
        return;
    }
    uint32_t n_groups = n_tokens / 16, held = model_find(&r->m, t, true), promised = model_find(&r->m, t, false);
    held = held < n_groups ? held : n_groups;
    promised = promised < n_groups ? promised : n_groups;
    held = held > t->n_held ? held : t->n_held;
    promised = promised > held ? promised : held;
    cache_find(r->c, t->e, t->ids, n_tokens, &found);
    EXPECT(r, found.n_tokens == held * 16 && found.n_promised == promised * 16, "%u and %u, not %u and %u groups",
           found.n_tokens / 16, found.n_promised / 16, held, promised);
    if (promised > held) {
        EXPECT(r, cache_promise_open(r->c, &found), "a promise was never open");
        r->n_waits++;
    }
    uint32_t n = below(r, 3) ? n_tokens : n_tokens - below(r, n_tokens + 1);
    cache_adopt(r->c, t->e, &found, n);
    n = n < held * 16 ? n : held * 16;
    if (n <= t->n_valid || (!t->reserved && t->n_pages == 0)) {
        return;
    }
    /* Whichever of those that have it; a closed one went to the end of its list. */
    int holder = -1;
    for (int i = 0; i < MAX_ENTRIES; i++) {
        const twin *h = &r->m.entries[i];
        uint32_t n_pages = model_pages_for(&r->m, n);
        if (i != (int)entry && common_groups(t, h, true) >= held && t->e->n_pages == n_pages &&
            memcmp(h->e->pages, t->e->pages, n_pages * sizeof *h->e->pages) == 0 &&
            (holder < 0 || (h->closed && &h->e->link == r->c->levels[CACHE_LEVEL_CLOSED].prev))) {
            holder = i;
        }
    }
    EXPECT(r, holder >= 0, "%u tokens were taken from nobody who has them", n);
    if (holder >= 0) {
        model_truncate(&r->m, entry, 0);
        model_fork(&r->m, (uint32_t)holder, entry, n);
        if (r->m.entries[holder].closed && &r->m.entries[holder].e->link == r->c->levels[CACHE_LEVEL_CLOSED].prev) {
            lru_close(&r->m, (uint32_t)holder);
        }
        r->n_adopted++;
    }
}

static void do_fork(run *r, uint32_t parent, uint32_t child, uint32_t n_tokens) {
    const twin *from = &r->m.entries[parent], *to = &r->m.entries[child];
    if (!from->e || !to->e || parent == child || from->closed || to->closed || from->tenant != to->tenant) {
        return;
    }
    bool sound = !to->pinned && to->n_pages == 0;
    perch_status found = cache_fork(r->c, from->e, to->e, n_tokens, NULL);
    EXPECT(r, found == (sound ? PERCH_OK : PERCH_E_INVALID), "%s", perch_status_name(found));
    if (sound) {
        model_fork(&r->m, parent, child, n_tokens);
    }
}

/* A whole turn, as the engine would do it. */
static void do_turn(run *r, uint32_t entry, uint32_t n_tokens) {
    twin *t = &r->m.entries[entry];
    if (!t->pinned && do_pin(r, entry) != PERCH_OK) {
        return;
    }
    if (do_extend(r, entry, n_tokens) == PERCH_OK) {
        step(r);
    }
    do_unpin(r, entry);
}

/* An entry in the state that the operation is meant for, mostly. */
static uint32_t pick(run *r, bool pinned) {
    uint32_t entry = below(r, r->n_entries);
    for (int attempt = 0; attempt < 6 && (!r->m.entries[entry].e || r->m.entries[entry].pinned != pinned); attempt++) {
        entry = below(r, r->n_entries);
    }
    return entry;
}

/* Mostly a few tokens more than the entry has, at times up to the end or one too many. */
static uint32_t pick_length(run *r, uint32_t entry) {
    uint32_t session_len = r->m.config.session_len;
    uint32_t grown = r->m.entries[entry].n_valid + below(r, below(r, 3) ? 24 : 80);
    return below(r, 6) == 0 ? below(r, session_len + 2) : grown < session_len ? grown : session_len;
}

static void random_operation(run *r, uint32_t steps_in_1000) {
    /* In thousandths. A turn holds a step: there is none where steps are to be rare. */
    enum { PIN, EXTEND, PREPARE, UNPIN, FORK, TRUNCATE, DESTROY, EVICT, CLOSE, PUBLISH, PROMISE, ADOPT, TURN, N_OPS };
    static const uint32_t share[N_OPS] = {150, 150, 50, 120, 60, 40, 20, 20, 30, 50, 50, 80, 180};
    static const char *const names[N_OPS] = {"pin",      "extend",  "prepare",   "unpin", "fork",
                                             "truncate", "destroy", "evict_one", "close", "publish",
                                             "promise",  "adopt",   "turn"};
    uint32_t session_len = r->m.config.session_len, op = 0;
    uint32_t die = below(r, steps_in_1000 < 50 ? 1000 - share[TURN] : 1000);
    if (below(r, 1000) < steps_in_1000) {
        r->op_name = "step";
        step(r);
        return;
    }
    for (; die >= share[op]; op++) {
        die -= share[op];
    }
    uint32_t entry = pick(r, op == EXTEND || op == PREPARE || op == UNPIN || op == PROMISE),
             n_tokens = pick_length(r, entry), keep = below(r, 4);
    if (!r->m.entries[entry].e) {
        r->op_name = "create";
        do_create(r, entry);
        return;
    }
    r->op_name = names[op];
    if (r->m.entries[entry].closed) {
        return;
    }
    switch (op) {
    case PIN:
        check_can_hold(r, entry, n_tokens, below(r, 4) ? 0 : below(r, r->m.config.n_pages + 1));
        do_pin(r, entry);
        break;
    case EXTEND:
        check_can_hold(r, entry, n_tokens, 0);
        if (do_extend(r, entry, n_tokens) == PERCH_OK && below(r, 2)) {
            do_promise(r, entry, MAX_TOKENS);
        }
        break;
    case PREPARE:
        do_prepare(r, entry, n_tokens);
        break;
    case UNPIN:
        do_unpin(r, entry);
        break;
    case FORK:
        do_fork(r, below(r, r->n_entries), entry, below(r, session_len + 2));
        break;
    case TRUNCATE:
        do_truncate(r, entry, below(r, session_len + 2));
        break;
    case DESTROY:
        do_destroy(r, entry);
        break;
    case EVICT:
        EXPECT(r, cache_evict_one(r->c, keep) == model_evict_one(&r->m, keep), "keep %u", keep);
        break;
    case CLOSE:
        do_close(r, entry);
        break;
    case PUBLISH:
        do_publish(r, entry, n_tokens);
        break;
    case PROMISE:
        do_promise(r, entry, n_tokens < MAX_TOKENS ? n_tokens : MAX_TOKENS);
        break;
    case ADOPT:
        do_adopt(r, entry, n_tokens < session_len ? n_tokens : session_len);
        break;
    default:
        do_turn(r, entry, n_tokens);
    }
}

/* Every entry that is left is read through a slot once more; then all are destroyed and every page must be free. */
static void read_all_and_end(run *r) {
    cache_stats s;
    r->op_name = "end";
    step(r);
    for (uint32_t i = 0; i < MAX_ENTRIES && !r->failed; i++) {
        do_unpin(r, i);
    }
    for (uint32_t i = 0; i < MAX_ENTRIES && !r->failed; i++) {
        if (r->m.entries[i].n_pages > 0 && !r->m.entries[i].closed) {
            do_pin(r, i);
            step(r);
            do_unpin(r, i);
        }
    }
    for (uint32_t i = 0; i < MAX_ENTRIES; i++) {
        if (r->m.entries[i].e && !r->m.entries[i].closed) {
            do_destroy(r, i);
        }
    }
    while (!r->failed && model_evict_one(&r->m, 0)) {
        EXPECT(r, cache_evict_one(r->c, 0), "a closed entry can't be evicted");
    }
    compare(r);
    const char *broken = cache_check(r->c);
    EXPECT(r, !broken, "%s", broken);
    cache_stats_get(r->c, &s);
    EXPECT(r, s.n_free == s.n_pages && s.n_slots_pinned == 0, "%u pages are lost", s.n_pages - s.n_free);
    EXPECT(r, s.copied_pages == r->n_copies, "%llu copies counted", (unsigned long long)s.copied_pages);
}

static cache_config random_config(test_rng *rng) {
    cache_config k = {.group_bytes = 16 * (1 + test_rng_below(rng, 4)),
                      .n_slots = 1 + (uint32_t)test_rng_below(rng, MAX_SLOTS)};
    const uint32_t chunks[] = {0, 1, 1, 2, 3, 7}, largest[] = {12, 40, 200};
    do { /* pages much smaller than a group, and larger; rarely a divisor or a multiple of it */
        k.page_bytes = 1 + test_rng_below(rng, largest[test_rng_below(rng, 3)]);
        k.session_len = 1 + (uint32_t)test_rng_below(rng, MAX_TOKENS - 8);
    } while (cache_pages_per_slot(&k) > MAX_PAGES);
    k.prefix_index = test_rng_below(rng, 5) > 0;
    k.hash_seed = test_rng_next(rng);
    k.chunk_pages = chunks[test_rng_below(rng, sizeof chunks / sizeof *chunks)];
    uint32_t pages_per_slot = cache_pages_per_slot(&k);
    k.n_pages = pages_per_slot +
                (uint32_t)test_rng_below(rng, test_rng_below(rng, 3) ? 1 + pages_per_slot : 3 * pages_per_slot);
    return k;
}

typedef struct totals {
    uint64_t n_full_lists, evictions, n_copies, n_again, n_prepared, unmaps, n_adopted, n_waits;
} totals;

static bool run_schedule(uint64_t seed, uint64_t n_operations, uint32_t steps_in_1000, totals *sum) {
    static run r;
    r = (run){.seed = seed, .rng = {seed}, .op_name = "create"};
    r.m.config = random_config(&r.rng);
    r.m.pages_per_slot = cache_pages_per_slot(&r.m.config);
    memset(r.d.mapped, -1, sizeof r.d.mapped);
    r.d.units = calloc(r.m.config.n_pages * r.m.config.page_bytes, sizeof *r.d.units);
    r.n_entries = 2 + below(&r, MAX_ENTRIES - 1);
    bool small = r.m.config.n_pages < 24;
    EXPECT(&r, r.d.units && cache_create(&r.m.config, &r.c, NULL) == PERCH_OK, "out of memory");
    for (r.op = 0; r.op < n_operations && !r.failed && r.m.next_page < MAX_NAMES - 2 * MAX_POOL; r.op++) {
        random_operation(&r, steps_in_1000);
        compare(&r);
        if (small || r.op % 64 == 0) {
            const char *broken = cache_check(r.c);
            EXPECT(&r, !broken, "%s", broken);
        }
    }
    if (!r.failed) {
        cache_stats s;
        cache_stats_get(r.c, &s);
        read_all_and_end(&r);
        sum->n_full_lists += r.n_full_lists;
        sum->evictions += s.evictions;
        sum->unmaps += s.unmaps;
        sum->n_copies += r.n_copies;
        sum->n_again += r.n_again;
        sum->n_prepared += r.n_prepared;
        sum->n_adopted += r.n_adopted;
        sum->n_waits += r.n_waits;
    }
    if (!r.failed) { /* else entries are left: the process reports and ends */
        cache_destroy(r.c);
    }
    free(r.d.units);
    return !r.failed;
}

/* ---------------------------------------------------------------- tests -- */

static totals run_schedules(uint64_t seed, uint64_t n_schedules, uint64_t n_operations, uint32_t steps_in_1000) {
    totals sum = {0};
    bool ok = true;
    for (uint64_t i = 0; i < n_schedules && ok; i++) {
        ok = run_schedule(seed + i, n_operations, steps_in_1000, &sum);
    }
    CU_ASSERT_TRUE(ok);
    printf("  %llu evictions, %llu copies, %llu unmaps, %llu times no room, %llu times a full list, %llu prefixes "
           "taken, %llu "
           "promises found\n",
           (unsigned long long)sum.evictions, (unsigned long long)sum.n_copies, (unsigned long long)sum.unmaps,
           (unsigned long long)sum.n_again, (unsigned long long)sum.n_full_lists, (unsigned long long)sum.n_adopted,
           (unsigned long long)sum.n_waits);
    return sum;
}

/* The seed of schedule i is the base + i: PERCH_TEST_SEED=the seed that was reported runs the failing one first. */
static void a_million_random_operations_agree_with_the_model(void) {
    totals sum = run_schedules(test_seed(20240601), test_scaled(500), 2000, 150);
    CU_ASSERT(sum.evictions > 0 && sum.n_copies > 0 && sum.unmaps > 0 && sum.n_again > 0 && sum.n_prepared > 0 &&
              sum.n_adopted > 0 && sum.n_waits > 0);
}

static void rare_steps_fill_the_command_list_and_nothing_is_lost(void) {
    uint64_t n_schedules = test_scaled(60); /* a full list is rare: fewer schedules might not meet one */
    totals sum = run_schedules(test_seed(7), n_schedules < 60 ? 60 : n_schedules, 2000, 20);
    CU_ASSERT(sum.n_full_lists > 0);
}

int main(int argc, char **argv) {
    static const test_case tests[] = {
        {"a_million_random_operations_agree_with_the_model", a_million_random_operations_agree_with_the_model},
        {"rare_steps_fill_the_command_list_and_nothing_is_lost", rare_steps_fill_the_command_list_and_nothing_is_lost},
    };
    return test_main("cache_model_test", tests, sizeof tests / sizeof *tests, argc, argv);
}
