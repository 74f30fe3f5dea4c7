/*
 * CUDA graphs: a pass of decode rows is hundreds of small kernels, which a graph launches in one call. Passes differ in their
 * batch alone, and that lies in the lane's block on the device, so a graph that was recorded once serves every batch of up to as
 * many rows. There is one for each lane, number of rows (powers of two) and graph_key.
 *
 * Memory. A graph takes device memory when it is instantiated; how much only the driver knows. What is free before and after says
 * it: once the sum passes CUDA_GRAPH_BYTES, which the plan counts, no more graphs are made.
 *
 * Graphs save time and nothing else. One that can't be made ends the making of more; one that can't be launched ends them all, and its
 * pass is queued kernel by kernel as if there had never been any. Either is counted.
 */
#include "kernels/cuda/device.h"

static bool same_key(const cuda_graph_key *a, const cuda_graph_key *b) {
    return a->key == b->key && a->lane == b->lane && a->n_tokens == b->n_tokens && a->n_logits == b->n_logits;
}

static cudaGraphExec_t find_graph(const cuda_recorder *recorder, const cuda_graph_key *key) {
    for (uint32_t i = 0; i < recorder->n_graphs; i++) {
        if (same_key(&recorder->graphs[i].key, key)) {
            return recorder->graphs[i].exec;
        }
    }
    return NULL;
}

/* Those that run still are freed by the driver when they are done. */
static void drop_graphs(cuda_recorder *r) {
    for (uint32_t i = 0; i < r->n_graphs; i++) {
        (void)cudaGraphExecDestroy(r->graphs[i].exec);
    }
    r->n_graphs = 0;
}

/* No more graphs are made. What the call left is not to be told by the next launch. */
static void failed_to_make(cuda_recorder *r) {
    r->enabled = false;
    r->n_failed++;
    (void)cudaGetLastError();
}

bool cuda_graph_replay(kernels_device *device, const cuda_graph_key *key) {
    cuda_recorder *r = &device->recorder;
    cudaGraphExec_t exec = find_graph(r, key);
    if (exec == NULL) {
        return false;
    }
    if (cudaGraphLaunch(exec, device->compute) == cudaSuccess) {
        return true;
    }
    failed_to_make(r);
    r->wanted = false;
    drop_graphs(r);
    (void)cudaGetLastError();
    return false;
}

uint64_t cuda_failed_graphs(const kernels_device *device) { return device->recorder.n_failed; }

void cuda_record_begin(kernels_device *device, const cuda_graph_key *key) {
    cuda_recorder *r = &device->recorder;
    if (!r->enabled || r->n_graphs == CUDA_MAX_GRAPHS) {
        return;
    }
    /* Relaxed: what this thread or the host's own do on other streams meanwhile is no part of it, and allowed. */
    r->on = cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
    r->failed = false;
    r->key = *key;
    if (!r->on) {
        failed_to_make(r);
    }
}

static uint64_t free_bytes(void) {
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) {
        (void)cudaGetLastError(); /* else the next launch would tell it */
    }
    return left;
}

/* The recorded graph made executable, and on the device before it is needed. */
static cudaGraphExec_t instantiate(kernels_device *device, cudaGraph_t graph) {
    cuda_recorder *r = &device->recorder;
    cudaGraphExec_t exec = NULL;
    uint64_t before = free_bytes();
    if (cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) {
        return NULL;
    }
    bool ready = cudaGraphUpload(exec, device->compute) == cudaSuccess;
    uint64_t after = free_bytes();
    uint64_t bytes = after < before ? before - after : 0;
    if (!ready || r->bytes + bytes > CUDA_GRAPH_BYTES) {
        (void)cudaGraphExecDestroy(exec);
        return NULL;
    }
    r->bytes += bytes;
    return exec;
}

void cuda_record_end(kernels_device *device) {
    cuda_recorder *r = &device->recorder;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!r->on) {
        return;
    }
    r->on = false;
    if (cudaStreamEndCapture(r->stream, &graph) == cudaSuccess && graph != NULL && !r->failed) {
        exec = instantiate(device, graph);
    }
    if (graph != NULL) {
        (void)cudaGraphDestroy(graph);
    }
    if (exec == NULL) {
        failed_to_make(r);
        return;
    }
    r->graphs[r->n_graphs++] = (cuda_graph){r->key, exec};
}

void cuda_graphs_close(kernels_device *device) {
    cuda_recorder *r = &device->recorder;
    r->failed = true;
    cuda_record_end(device);
    drop_graphs(r);
}
