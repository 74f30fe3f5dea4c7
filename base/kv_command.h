/*
 * The records by which the cache tells the engine what to do with KV memory, and the engine the backend. Plain data, the
 * same on every rank. Executed in order, before the forward pass of the step that they belong to.
 */
#ifndef PERCH_BASE_KV_COMMAND_H
#define PERCH_BASE_KV_COMMAND_H

#include <stdint.h>

typedef enum kv_op {
    KV_MAP = 1,   /* page becomes visible at place `index` of slot; whatever was mapped there is replaced */
    KV_UNMAP = 2, /* nothing is mapped at place `index` of slot any more */
    KV_COPY = 3   /* the bytes of page `source` are copied to `page` */
} kv_op;

typedef struct kv_command {
    uint32_t op;     /* kv_op */
    uint32_t slot;   /* MAP, UNMAP */
    uint32_t index;  /* MAP, UNMAP: which page of the slot: it covers bytes [index, index + 1) * page_bytes */
    uint32_t page;   /* MAP, COPY: number of the physical page */
    uint32_t source; /* COPY */
} kv_command;

#endif
