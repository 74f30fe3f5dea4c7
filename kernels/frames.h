/*
 * What the backends' host tiers have in common: how large it is, which lists of transfers are refused, and which of
 * their entries are one copy.
 */
#ifndef PERCH_KERNELS_FRAMES_H
#define PERCH_KERNELS_FRAMES_H

#include "kernels/kernels.h"

#include <inttypes.h>

/* Frames begin at multiples of this: what a disk reads and writes directly. */
#define FRAME_ALIGNMENT ((size_t)4096)

typedef struct frames_shape {
    uint32_t n_pages;
    uint32_t n_frames;
    size_t page_bytes;
    size_t frame_bytes; /* from one frame to the next: page_bytes, or what that is up to FRAME_ALIGNMENT */
    size_t bytes;       /* of all frames */
} frames_shape;

/* The shape for n_frames frames; E_NO_ROOM where this process can't take that much memory. */
static inline perch_status frames_plan(uint32_t n_pages, size_t page_bytes, uint32_t n_frames, frames_shape *out,
                                       perch_error *err) {
    uint64_t left = 0;
    out->n_pages = n_pages;
    out->n_frames = n_frames;
    out->page_bytes = page_bytes;
    out->frame_bytes = out->bytes = 0;
    if (n_frames == 0) {
        return err_set(err, PERCH_E_INVALID, "a host tier of 0 frames");
    }
    if (!add_size(page_bytes, FRAME_ALIGNMENT - 1, &out->frame_bytes)) {
        return err_set(err, PERCH_E_NO_ROOM, "frames of %zu bytes", page_bytes);
    }
    out->frame_bytes = out->frame_bytes / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
    if (!mul_size(out->frame_bytes, n_frames, &out->bytes)) {
        return err_set(err, PERCH_E_NO_ROOM, "a host tier of %u frames of %zu bytes exceeds the address space",
                       n_frames, out->frame_bytes);
    }
    perch_status status = host_free_bytes("", &left, err);
    if (status == PERCH_OK && out->bytes > left) {
        status =
            err_set(err, PERCH_E_NO_ROOM,
                    "a host tier of %u frames, %zu bytes, does not fit into the %" PRIu64 " bytes of memory that are"
                    " free",
                    n_frames, out->bytes, left);
    }
    return status;
}

/* A number out of range is a bug of the caller's, but not one to overwrite memory for. */
static inline perch_status frames_check(const frames_shape *shape, const kernels_transfer *list, size_t n,
                                        perch_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (list[i].page >= shape->n_pages || list[i].frame >= shape->n_frames) {
            return err_set(err, PERCH_E_INVALID, "transfer %zu, page %u and frame %u: there are %u pages and %u frames",
                           i, list[i].page, list[i].frame, shape->n_pages, shape->n_frames);
        }
    }
    return PERCH_OK;
}

/* How many of the entries from the first on make one run of pages and of frames. */
static inline uint32_t frames_run(const frames_shape *shape, const kernels_transfer *first, size_t n) {
    uint32_t length = 1;
    while (shape->frame_bytes == shape->page_bytes && length < n && first[length].page == first->page + length &&
           first[length].frame == first->frame + length) {
        length++;
    }
    return length;
}

#endif
