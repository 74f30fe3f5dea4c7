/*
 * transfers: copies between KV pages and the host tier, which run beside the steps. The cache asks for them; here they are sent,
 * in front of the step that is launched next, and their ends reported, those of the disk tier (disk.c) with them. All under the
 * lock but for the wait.
 */
#include "engine/impl.h"

#include <stdlib.h>
#include <time.h>

/* Of a ticket. Whoever waits for one may keep a new request waiting as long: 64 MiB to copy, with pages of 2 MiB. */
#define SENT_AT_ONCE 32u

static kernels_direction direction_of(cache_direction direction) {
    return direction == CACHE_STORE ? KERNELS_STORE : KERNELS_LOAD;
}

static trace_route route_of(cache_direction direction) {
    return direction == CACHE_STORE ? TRACE_DEVICE_TO_HOST : TRACE_HOST_TO_DEVICE;
}

static int by_page(const void *a, const void *b) {
    const kernels_transfer *x = a, *y = b;
    return (x->page > y->page) - (x->page < y->page);
}

/* In the order of the pages: those that continue one another are one copy. */
static perch_status send_direction(perch_engine *e, cache_direction direction, perch_error *err) {
    cache_transfer asked[SENT_AT_ONCE];
    kernels_transfer list[SENT_AT_ONCE];
    perch_status status = PERCH_OK;
    for (size_t n; !status && (n = cache_transfers(e->kv, direction, asked, SENT_AT_ONCE)) > 0;) {
        uint64_t ticket = 0;
        for (size_t i = 0; i < n; i++) {
            list[i] = (kernels_transfer){.page = asked[i].page, .frame = asked[i].frame};
        }
        qsort(list, n, sizeof *list, by_page);
        status = e->backend->transfer(e->device, direction_of(direction), list, n, &ticket, err);
        if (!status) {
            cache_transfers_sent(e->kv, direction, n, ticket);
            observe_sent(e, route_of(direction), ticket, n);
            if (direction == CACHE_LOAD) {
                cost_load_sent(&e->costs, CACHE_HOST, ticket, n * e->plan.page_bytes, engine_now(e));
            }
        }
    }
    return status;
}

perch_status transfers_send(perch_engine *e, bool idle, perch_error *err) {
    bool asked = cache_save(e->kv, idle);
    e->unsaved = e->plan.host_tier_bytes + e->plan.staging_bytes > 0 && (!idle || asked);
    perch_status status = send_direction(e, CACHE_LOAD, err);
    disk_submit(e);
    return status ? status : send_direction(e, CACHE_STORE, err);
}

perch_status transfers_poll(perch_engine *e, perch_error *err) {
    perch_status status = PERCH_OK;
    for (int d = 0; d < 2 && !status; d++) {
        cache_direction direction = d ? CACHE_LOAD : CACHE_STORE;
        uint64_t ticket = 0;
        if (cache_transfers_pending(e->kv, direction)) {
            status = e->backend->transferred(e->device, direction_of(direction), &ticket, err);
        }
        if (!status && ticket) {
            cache_transfers_done(e->kv, direction, ticket);
            observe_arrived(e, route_of(direction), ticket);
            if (direction == CACHE_LOAD) {
                cost_loads_done(&e->costs, CACHE_HOST, ticket, engine_now(e));
            }
        }
    }
    disk_poll(e);
    cache_restore_more(e->kv);
    return status;
}

void transfers_keep(perch_engine *e) {
    perch_error err;
    perch_status status = e->dead;
    uint64_t end_us = time_us() + (uint64_t)e->options.disk_keep_ms * 1000;
    pthread_mutex_lock(&e->lock);
    cache_save_all(e->kv);
    for (bool more = true; !status && more && time_us() < end_us;) {
        status = transfers_poll(e, &err);
        status = status ? status : transfers_send(e, true, &err);
        more = e->unsaved || cache_disk_pending(e->kv) || cache_transfers_pending(e->kv, CACHE_STORE) ||
               cache_transfers_pending(e->kv, CACHE_LOAD);
        pthread_mutex_unlock(&e->lock);
        nanosleep(&(struct timespec){0, 100000}, NULL); /* nothing hangs here that hangs there */
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
}

perch_status transfers_wait(perch_engine *e, perch_error *err) {
    cache_direction direction = cache_transfers_pending(e->kv, CACHE_LOAD) ? CACHE_LOAD : CACHE_STORE;
    uint64_t oldest = cache_transfers_pending(e->kv, direction);
    perch_status status = PERCH_OK;
    if (oldest) {
        pthread_mutex_unlock(&e->lock);
        status = e->backend->transfer_wait(e->device, direction_of(direction), oldest, err);
        pthread_mutex_lock(&e->lock);
    } else {
        disk_wait(e);
    }
    return status;
}
