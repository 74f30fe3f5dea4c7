/* measure: prefill and loads, timed. See measure.h. */
#include "engine/measure.h"

#include <stdlib.h>

/* Of the transfers: bytes that are copied at once at most, and the time from which on nothing more is begun. */
#define MOST_BYTES ((uint64_t)8 << 20)
#define MOST_US 20000u
#define LOAD_REPEATS 4u

static uint64_t now_us(const measured *at) { return at->now_us ? at->now_us(at->device) : time_us(); }

/* -------------------------------------------------------------- prefill -- */

/* One sequence's tokens, all of id 0. */
typedef struct pass {
    kernels_batch batch;
    kernels_row row;
    int32_t *tokens;
    uint32_t *positions, *token_row, *logit_tokens;
} pass;

static void pass_free(pass *p) {
    free(p->tokens);
    free(p->positions);
    free(p->token_row);
    free(p->logit_tokens);
}

static perch_status pass_make(const measured *at, uint32_t first_position, uint32_t n, pass *p, perch_error *err) {
    p->tokens = calloc(n, sizeof *p->tokens);
    p->positions = calloc(n, sizeof *p->positions);
    p->token_row = calloc(n, sizeof *p->token_row);
    p->logit_tokens = calloc(n, sizeof *p->logit_tokens);
    if (!p->tokens || !p->positions || !p->token_row || !p->logit_tokens) {
        return err_nomem(err, "a pass to be timed");
    }
    for (uint32_t i = 0; i < n; i++) {
        p->positions[i] = first_position + i;
        p->logit_tokens[i] = i;
    }
    p->row = (kernels_row){
        .kv = at->backend->kv_slot(at->device, 0), .n_tokens = n, .first_position = first_position, .slot = 0};
    p->batch = (kernels_batch){.n_tokens = n,
                               .n_rows = 1,
                               .n_logits = at->all_logits ? n : 0,
                               .tokens = p->tokens,
                               .positions = p->positions,
                               .token_row = p->token_row,
                               .rows = &p->row,
                               .logit_tokens = p->logit_tokens};
    return PERCH_OK;
}

static perch_status pass_run(measured *at, const pass *p, double *us, perch_error *err) {
    const kernels_async *async = at->backend->async;
    const kernels_chosen *chosen;
    uint64_t begin_us = now_us(at);
    perch_status status = model_forward(at->model, at->lane, &p->batch, err);
    if (!status && async) {
        status = async->choose(at->device, at->lane, model_logits(at->model), NULL, 0, err);
        status = status ? status : async->wait(at->device, at->lane, &chosen, err);
        at->lane = (at->lane + 1) % KERNELS_LANES;
    }
    *us = (double)(now_us(at) - begin_us);
    return status;
}

/* The first n pages at the places of slot 0, or none there any more. */
static perch_status map_pages(const measured *at, uint32_t n, kv_op op, perch_error *err) {
    kv_command *commands = calloc(n, sizeof *commands);
    if (!commands) {
        return err_nomem(err, "commands for pages to be timed with");
    }
    for (uint32_t i = 0; i < n; i++) {
        commands[i] = (kv_command){.op = op, .slot = 0, .index = i, .page = op == KV_MAP ? i : 0};
    }
    perch_status status = at->backend->kv_execute(at->device, commands, n, err);
    free(commands);
    return status;
}

perch_status measure_prefill(measured *at, uint32_t first_position, uint32_t n_tokens, uint32_t repeats, cost_model *m,
                             double *us, perch_error *err) {
    uint64_t n_groups = ((uint64_t)first_position + n_tokens + KV_GROUP_TOKENS - 1) / KV_GROUP_TOKENS;
    uint64_t n_pages = (n_groups * at->group_bytes + at->page_bytes - 1) / at->page_bytes;
    pass p = {0};
    double one, least = 0;
    if (n_pages > at->n_pages) {
        return err_set(err, PERCH_E_INVALID, "%llu pages to be timed with, of %u", (unsigned long long)n_pages,
                       at->n_pages);
    }
    perch_status status = map_pages(at, (uint32_t)n_pages, KV_MAP, err);
    if (status) {
        return status;
    }
    status = pass_make(at, first_position, n_tokens, &p, err);
    for (uint32_t i = 0; i <= repeats && !status; i++) {
        status = pass_run(at, &p, &one, err);
        least = i <= 1 || one < least ? one : least;
        if (!status && m && i > 0) {
            uint64_t n = n_tokens, positions = n * first_position + n * (n - 1) / 2;
            cost_add_step(
                m, &(cost_step){.n_prefill = n_tokens, .prefill_positions = positions, .us = one * at->layers_each});
        }
    }
    pass_free(&p);
    perch_status unmapped = map_pages(at, (uint32_t)n_pages, KV_UNMAP, status ? NULL : err);
    if (us) {
        *us = least;
    }
    return status ? status : unmapped;
}

/* ---------------------------------------------------------------- loads -- */

static perch_status transfer(const measured *at, kernels_direction direction, uint32_t n, double *us,
                             perch_error *err) {
    kernels_transfer *list = calloc(n, sizeof *list);
    uint64_t ticket = 0;
    if (!list) {
        return err_nomem(err, "copies to be timed");
    }
    for (uint32_t i = 0; i < n; i++) {
        list[i] = (kernels_transfer){.page = i, .frame = i};
    }
    uint64_t begin_us = now_us(at);
    perch_status status = at->backend->transfer(at->device, direction, list, n, &ticket, err);
    if (!status) {
        status = at->backend->transfer_wait(at->device, direction, ticket, err);
    }
    *us = (double)(now_us(at) - begin_us);
    free(list);
    return status;
}

perch_status measure_loads(measured *at, cost_model *m, perch_error *err) {
    uint64_t most = MOST_BYTES / at->page_bytes, begin_us = now_us(at);
    most = most < 1 ? 1 : most < at->n_pages ? most : at->n_pages;
    uint32_t n = (uint32_t)(most < at->n_frames ? most : at->n_frames);
    double us;
    if (n == 0) {
        return PERCH_OK;
    }
    perch_status status = transfer(at, KERNELS_STORE, n, &us, err); /* so that both ends have memory behind them */
    for (uint32_t i = 0; i < 2 * LOAD_REPEATS && !status; i++) {
        if (i > 2 && now_us(at) - begin_us > MOST_US) { /* one of each size was timed */
            break;
        }
        uint32_t count = i % 2 ? 1 : n;
        status = transfer(at, KERNELS_LOAD, count, &us, err);
        if (!status && i > 0) {
            cost_add_load(m, CACHE_HOST, count * at->page_bytes, us);
        }
    }
    return status;
}
