/*
 * simulated_disk: the page file's place in a simulation. Nothing is kept, and nothing fails: a read and a write take the time of
 * their bytes that count, behind those of their kind that were asked for before.
 */
#ifndef PERCH_ENGINE_SIMULATED_DISK_H
#define PERCH_ENGINE_SIMULATED_DISK_H

#include "engine/tiers/page_file.h"
#include "kernels/kernels.h"

typedef struct simulated_disk simulated_disk;

/* On a simulated device, whose clock and hardware it has. At most max_requests are under way. E_NOMEM. */
perch_status simulated_disk_open(kernels_device *device, uint64_t page_bytes, uint32_t max_requests,
                                 simulated_disk **out, perch_error *err);
void simulated_disk_close(simulated_disk *disk); /* NULL is fine */

/* As page_file_submit and page_file_poll, for reads and writes alone. */
void simulated_disk_submit(simulated_disk *disk, const page_request *requests, size_t n, uint64_t *first);
size_t simulated_disk_poll(simulated_disk *disk, page_result *out, size_t cap);

/* Time passes until there is something to poll. */
void simulated_disk_wait(simulated_disk *disk);

#endif
