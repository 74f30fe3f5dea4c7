/* simulated_disk: see simulated_disk.h. */
#include "engine/simulated_disk.h"
#include "engine/simulated_device.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

typedef struct waiting {
    uint64_t ticket;
    uint32_t frame;
    double end_us;
} waiting;

/* Requests of one kind, in order: [begin, end), numbers modulo max_requests. */
typedef struct queue {
    waiting *items;
    uint64_t begin, end;
    double free_us; /* when the last of them is done */
} queue;

struct simulated_disk {
    kernels_device *device;
    uint64_t page_bytes, tickets;
    uint32_t max_requests;
    queue queues[2]; /* by page_op */
};

perch_status simulated_disk_open(kernels_device *device, uint64_t page_bytes, uint32_t max_requests,
                                 simulated_disk **out, perch_error *err) {
    simulated_disk *disk = calloc(1, sizeof *disk);
    *out = disk;
    if (!disk) {
        return err_nomem(err, "the simulated disk");
    }
    *disk = (simulated_disk){.device = device, .page_bytes = page_bytes, .max_requests = max_requests};
    for (int op = 0; op < 2; op++) {
        disk->queues[op].items = calloc(max_requests, sizeof *disk->queues[op].items);
        if (!disk->queues[op].items) {
            simulated_disk_close(disk);
            *out = NULL;
            return err_nomem(err, "the simulated disk's requests");
        }
    }
    return PERCH_OK;
}

void simulated_disk_close(simulated_disk *disk) {
    if (disk) {
        free(disk->queues[PAGE_READ].items);
        free(disk->queues[PAGE_WRITE].items);
        free(disk);
    }
}

void simulated_disk_submit(simulated_disk *disk, const page_request *requests, size_t n, uint64_t *first) {
    double now_us = (double)simulated_now_us(disk->device);
    *first = disk->tickets + 1;
    for (size_t i = 0; i < n; i++) {
        queue *q = &disk->queues[requests[i].op];
        uint64_t n_bytes = requests[i].op == PAGE_WRITE ? requests[i].record.n_bytes : disk->page_bytes;
        assert(q->end - q->begin < disk->max_requests);
        q->free_us = fmax(q->free_us, now_us) + (double)n_bytes / (simulated_disk_gbps(disk->device) * 1e3);
        q->items[q->end++ % disk->max_requests] = (waiting){++disk->tickets, requests[i].frame, q->free_us};
    }
}

size_t simulated_disk_poll(simulated_disk *disk, page_result *out, size_t cap) {
    double now_us = (double)simulated_now_us(disk->device);
    size_t n = 0;
    for (int op = 0; op < 2; op++) {
        queue *q = &disk->queues[op];
        for (; n < cap && q->begin < q->end; q->begin++) {
            const waiting *w = &q->items[q->begin % disk->max_requests];
            if (w->end_us > now_us) {
                break;
            }
            out[n++] = (page_result){.ticket = w->ticket, .op = (page_op)op, .outcome = PAGE_OK, .frame = w->frame};
        }
    }
    return n;
}

void simulated_disk_wait(simulated_disk *disk) {
    double first_us = INFINITY;
    for (int op = 0; op < 2; op++) {
        const queue *q = &disk->queues[op];
        if (q->begin < q->end) {
            first_us = fmin(first_us, q->items[q->begin % disk->max_requests].end_us);
        }
    }
    if (first_us < INFINITY) {
        simulated_pass_time(disk->device, (uint64_t)ceil(first_us));
    }
}
