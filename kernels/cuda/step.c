/*
 * A step on the device, as kernels_async has it: the batch goes over in one copy, the pass is queued or replayed, tokens are
 * chosen and come back, all without waiting; `wait` sleeps until the lane's results are there.
 *
 *   upload     batch ────┐          choices ─┐
 *   compute              └ feed, pass ───────└ choose ┐
 *   download                                          └ chosen ── done
 */
#include "kernels/cuda/choice.h"
#include "kernels/cuda/device.h"

#include <inttypes.h>
#include <string.h>

static perch_status check_lane(const kernels_device *device, uint32_t lane, lane_state state, const char *function,
                               perch_error *err) {
    static const char *const states[] = {[LANE_FREE] = "free", [LANE_BEGUN] = "begun", [LANE_QUEUED] = "queued"};
    if (!device->reserved || lane >= KERNELS_LANES) {
        return err_set(err, PERCH_E_INVALID, "%s: lane %u of GPU %d, which is%s reserved", function, lane,
                       device->ordinal, device->reserved ? "" : " not");
    }
    if (device->lanes[lane].state != state) {
        return err_set(err, PERCH_E_INVALID, "%s: the step of lane %u is %s, not %s", function, lane,
                       states[device->lanes[lane].state], states[state]);
    }
    return PERCH_OK;
}

/* --- begin */

/* A batch that could reach outside of buffers is a bug of the caller's, but not one to overwrite memory for. */
static perch_status check_batch(const kernels_device *device, const kernels_batch *batch, uint32_t n_choices,
                                perch_error *err) {
    const kernels_limits *limits = &device->limits;
    if (batch->n_tokens == 0 || batch->n_tokens > limits->max_step_tokens || batch->n_rows == 0 ||
        batch->n_rows > limits->max_batch_size || batch->n_logits > limits->max_logit_rows) {
        return err_set(err, PERCH_E_INVALID, "a batch of %u tokens, %u rows and %u logits; reserved are %u, %u and %u",
                       batch->n_tokens, batch->n_rows, batch->n_logits, limits->max_step_tokens, limits->max_batch_size,
                       limits->max_logit_rows);
    }
    for (uint32_t r = 0; r < batch->n_rows; r++) {
        const kernels_row *row = &batch->rows[r];
        if (row->n_tokens == 0 || row->slot >= limits->max_batch_size ||
            (device->kv.is_open && row->slot >= device->kv.shape.n_slots) ||
            (uint64_t)row->first_token + row->n_tokens > batch->n_tokens ||
            (uint64_t)row->first_position + row->n_tokens > limits->session_len) {
            return err_set(err, PERCH_E_INVALID, "row %u: tokens %u + %u at position %u in slot %u do not fit", r,
                           row->first_token, row->n_tokens, row->first_position, row->slot);
        }
    }
    bool fits = true;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        fits &=
            batch->positions[t] < limits->session_len && batch->token_row[t] < batch->n_rows &&
            (batch->token_from == NULL || batch->token_from[t] == KERNELS_GIVEN || batch->token_from[t] < n_choices);
    }
    for (uint32_t i = 0; i < batch->n_logits; i++) {
        fits &= batch->logit_tokens[i] < batch->n_tokens;
    }
    return fits ? PERCH_OK : err_set(err, PERCH_E_INVALID, "a batch's position, row, choice or logits do not fit");
}

/* Copies the batch into the lane's host block, after the counts. */
static void fill_arrays(const kernels_batch *batch, const lane_layout *at, uint8_t *block) {
    const size_t n = batch->n_tokens;
    uint32_t *token_from = (uint32_t *)(void *)(block + at->token_from);
    uint32_t *row_slot = (uint32_t *)(void *)(block + at->row_slot);
    memcpy(block + at->tokens, batch->tokens, n * sizeof *batch->tokens);
    memcpy(block + at->positions, batch->positions, n * sizeof *batch->positions);
    memcpy(block + at->token_row, batch->token_row, n * sizeof *batch->token_row);
    memcpy(block + at->rows, batch->rows, batch->n_rows * sizeof *batch->rows);
    if (batch->n_logits > 0) {
        memcpy(block + at->logit_tokens, batch->logit_tokens, batch->n_logits * sizeof *batch->logit_tokens);
    }
    if (batch->token_from != NULL) {
        memcpy(token_from, batch->token_from, n * sizeof *token_from);
    } else {
        memset(token_from, 0xff, n * sizeof *token_from); /* KERNELS_GIVEN */
    }
    for (uint32_t r = 0; r < batch->n_rows; r++) {
        row_slot[r] = batch->rows[r].slot;
    }
}

static uint32_t max_row_tokens(const kernels_batch *batch) {
    uint32_t most = 1;
    for (uint32_t r = 0; r < batch->n_rows; r++) {
        most = batch->rows[r].n_tokens > most ? batch->rows[r].n_tokens : most;
    }
    return most;
}

/*
 * Makes plan i of the batch's attention in the lane's host block, and lays out what comes behind it. For a graph everything lies
 * where the largest plan leaves room for it. Returns the plan's end.
 */
static size_t fill_plan(kernels_device *device, cuda_lane *lane, const kernels_batch *batch, bool is_graph,
                        const kernels_limits *limits, uint32_t i, lane_room *room, lane_layout *at) {
    const kernels_limits plan = cuda_plan_limits(limits, i);
    cuda_counts counts = {.n_tokens = batch->n_tokens, .n_rows = batch->n_rows, .n_logits = batch->n_logits};
    uint8_t *host = lane->host_block, *block = lane->block;
    cuda_attention_plan(&plan, device->n_processors, batch, (cuda_attend_work *)(void *)(host + at->attend[i]),
                        &counts.n_attend, device->merge, &counts.n_merge);
    room->attend[i] = counts.n_attend;
    room->merge[i] = counts.n_merge;
    if (is_graph) {
        cuda_attention_sizes most;
        cuda_attention_sizes_get(&plan, device->n_processors, &most);
        room->attend[i] = most.max_attend;
        room->merge[i] = most.max_merge;
    }
    cuda_lane_layout(room, at); /* what lies before this plan's merges has not moved */
    memcpy(host + at->merge[i], device->merge, counts.n_merge * sizeof *device->merge);
    memcpy(host + at->counts[i], &counts, sizeof counts);
    device->pass.plans[i] = (cuda_pass_plan){.window = plan.window,
                                             .counts = (cuda_counts *)(void *)(block + at->counts[i]),
                                             .attend = (const cuda_attend_work *)(void *)(block + at->attend[i]),
                                             .merge = (const cuda_merge_work *)(void *)(block + at->merge[i]),
                                             .max_attend = room->attend[i],
                                             .max_merge = room->merge[i]};
    return at->merge[i] + counts.n_merge * sizeof *device->merge;
}

/*
 * The batch and the plans of its attention in the lane's host block. size: what the pass is queued with; that of a graph fixes where
 * everything lies, else it lies as close as it can. Returns the bytes that matter.
 */
static size_t fill_block(kernels_device *device, cuda_lane *lane, const kernels_batch *batch, bool is_graph,
                         const kernels_pass *size) {
    const kernels_limits limits = is_graph ? cuda_graph_limits(&device->limits, size->n_tokens) : device->limits;
    const uint32_t n_plans = cuda_plans(&limits);
    lane_room room = {
        .tokens = size->n_tokens, .rows = is_graph ? size->n_tokens : batch->n_rows, .logits = size->n_logits};
    lane_layout at;
    uint8_t *block = lane->block;
    cuda_lane_layout(&room, &at);
    fill_arrays(batch, &at, lane->host_block);
    device->pass = (cuda_pass){.n_tokens = size->n_tokens,
                               .n_logits = size->n_logits,
                               .max_row_tokens = max_row_tokens(batch),
                               .batch = {.counts = (cuda_counts *)(void *)(block + at.counts[0]),
                                         .tokens = (int32_t *)(void *)(block + at.tokens),
                                         .token_from = (const uint32_t *)(void *)(block + at.token_from),
                                         .positions = (const uint32_t *)(void *)(block + at.positions),
                                         .token_row = (const uint32_t *)(void *)(block + at.token_row),
                                         .rows = (const kernels_row *)(void *)(block + at.rows),
                                         .row_slot = (const uint32_t *)(void *)(block + at.row_slot),
                                         .logit_tokens = (const uint32_t *)(void *)(block + at.logit_tokens)},
                               .n_plans = n_plans};
    size_t end = 0;
    for (uint32_t i = 0; i < n_plans; i++) {
        end = fill_plan(device, lane, batch, is_graph, &limits, i, &room, &at);
    }
    return end;
}

/* Queues a copy to the device beside what computes, and has what is computed next wait for it. */
static perch_status send_beside(kernels_device *device, cuda_lane *lane, void *to, const void *from, size_t bytes,
                                perch_error *err) {
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, device->upload);
    if (e == cudaSuccess) {
        e = cudaEventRecord(lane->uploaded, device->upload);
    }
    if (e == cudaSuccess) {
        e = cudaStreamWaitEvent(device->compute, lane->uploaded, 0);
    }
    return cuda_check(device, e, "sending a step's batch", err);
}

/* The size of the pass: what the graph for it has, or the batch's own. */
static bool choose_size(const kernels_device *device, const kernels_batch *batch, uint64_t graph_key,
                        kernels_pass *pass) {
    *pass = (kernels_pass){.n_tokens = batch->n_tokens, .n_logits = batch->n_logits};
    if (!device->recorder.wanted || graph_key == 0 || batch->n_tokens != batch->n_rows || max_row_tokens(batch) > 1) {
        return false;
    }
    pass->n_tokens = cuda_graph_rows(batch->n_tokens, cuda_graph_most(&device->limits));
    if (batch->n_logits > 0) {
        uint32_t most = device->limits.max_logit_rows;
        pass->n_logits = cuda_graph_rows(batch->n_logits, most < pass->n_tokens ? most : pass->n_tokens);
    }
    return true;
}

/* All that reaches KV is queued. */
static perch_status end_pass(kernels_device *device, const cuda_lane *lane, perch_error *err) {
    return device->kv.mapper != NULL ? cuda_mapper_end_step(device->kv.mapper, lane->step, err) : PERCH_OK;
}

perch_status cuda_begin(kernels_device *device, uint32_t lane_index, const kernels_batch *batch, uint64_t graph_key,
                        kernels_pass *pass, perch_error *err) {
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK || (status = check_lane(device, lane_index, LANE_FREE, "begin", err)) != PERCH_OK) {
        return status;
    }
    cuda_lane *lane = &device->lanes[lane_index];
    const cuda_lane *other = &device->lanes[(lane_index + 1) % KERNELS_LANES];
    if (device->pass.open) {
        return err_set(err, PERCH_E_INVALID, "begin: the pass before has not ended");
    }
    if ((status = check_batch(device, batch, other->n_chosen, err)) != PERCH_OK) {
        return status;
    }
    bool is_graph = choose_size(device, batch, graph_key, pass);
    size_t bytes = fill_block(device, lane, batch, is_graph, pass);
    status = send_beside(device, lane, lane->block, lane->host_block, bytes, err);
    if (status == PERCH_OK) {
        status = cuda_kv_settle(device, err);
    }
    if (status != PERCH_OK) {
        return status;
    }
    lane->state = LANE_BEGUN;
    lane->step = ++device->n_steps;
    if (device->kv.mapper != NULL) {
        cuda_mapper_begin_step(device->kv.mapper, lane->step, batch->rows, batch->n_rows);
    }
    const cuda_graph_key key = {graph_key, lane_index, pass->n_tokens, pass->n_logits};
    if (is_graph && cuda_graph_replay(device, &key)) {
        pass->replayed = true;
        return end_pass(device, lane, err);
    }
    if (is_graph) {
        cuda_record_begin(device, &key);
    }
    device->pass.open = true;
    cudaError_t e;
    CUDA_QUEUE(device, e,
               cuda_feed(stream, &device->pass.batch, pass->n_tokens, other->chosen, device->history,
                         device->limits.session_len));
    return cuda_check(device, e, "feeding tokens", err);
}

perch_status cuda_end(kernels_device *device, uint32_t lane, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    if (status == PERCH_OK) {
        status = check_lane(device, lane, LANE_BEGUN, "end", err);
    }
    cuda_record_end(device);
    device->pass.open = false;
    return status == PERCH_OK ? end_pass(device, &device->lanes[lane], err) : status;
}

/* --- choices */

perch_status cuda_history(kernels_device *device, uint32_t slot, uint32_t first, uint32_t n, const int32_t *tokens,
                          perch_error *err) {
    const kernels_limits *limits = &device->limits;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (!device->reserved || slot >= limits->max_batch_size || first > limits->session_len ||
        n > limits->session_len - first) {
        return err_set(err, PERCH_E_INVALID, "history: tokens %u + %u of slot %u do not fit", first, n, slot);
    }
    return cuda_send(device, device->history + (size_t)slot * limits->session_len + first, tokens, n * sizeof *tokens,
                     err);
}

bool cuda_device_can_choose(const kernels_device *device, const kernels_choice *choice) {
    return device->reserved && cuda_chooses(&device->limits) && cuda_can_choose(choice);
}

/* The choices and then their bans, in pinned memory. Returns the bytes, and where the bans begin. */
static size_t fill_choices(const kernels_device *device, cuda_lane *lane, const kernels_choice *choices, uint32_t n,
                           size_t *bans_at, uint32_t *needs) {
    cuda_choice *out = (cuda_choice *)(void *)lane->host_choices;
    uint32_t n_bans = 0;
    *bans_at = cuda_align(n * sizeof *out);
    int32_t *bans = (int32_t *)(void *)(lane->host_choices + *bans_at);
    *needs = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_bans = cuda_choice_fill(&choices[i], device->limits.vocab_size, n_bans, &out[i], bans);
        *needs |= out[i].needs;
    }
    return *bans_at + n_bans * sizeof *bans;
}

static perch_status check_choices(const kernels_device *device, const kernels_choice *choices, uint32_t n,
                                  perch_error *err) {
    const kernels_limits *limits = &device->limits;
    bool fits = n <= limits->max_batch_size;
    for (uint32_t i = 0; i < n && fits; i++) {
        fits = choices[i].logit_row < limits->max_logit_rows && choices[i].slot < limits->max_batch_size &&
               choices[i].n_tokens <= limits->session_len && cuda_device_can_choose(device, &choices[i]);
    }
    return fits ? PERCH_OK : err_set(err, PERCH_E_INVALID, "choose: %u choices, of which one does not fit", n);
}

/* Queues the results' way back, beside what computes next. */
static perch_status fetch_beside(kernels_device *device, cuda_lane *lane, uint32_t n, perch_error *err) {
    cudaError_t e = cudaEventRecord(lane->computed, device->compute);
    if (e == cudaSuccess) {
        e = cudaStreamWaitEvent(device->download, lane->computed, 0);
    }
    if (e == cudaSuccess && n > 0) {
        e = cudaMemcpyAsync(lane->host_chosen, lane->chosen, n * sizeof *lane->chosen, cudaMemcpyDeviceToHost,
                            device->download);
    }
    if (e == cudaSuccess) {
        e = cudaEventRecord(lane->done, device->download);
    }
    return cuda_check(device, e, "fetching a step's choices", err);
}

perch_status cuda_queue_choices(kernels_device *device, uint32_t lane_index, const float *logits,
                                const kernels_choice *choices, uint32_t n, perch_error *err) {
    perch_status status = cuda_ready(device, err);
    if (status != PERCH_OK || (status = check_lane(device, lane_index, LANE_BEGUN, "choose", err)) != PERCH_OK ||
        (status = check_choices(device, choices, n, err)) != PERCH_OK) {
        return status;
    }
    cuda_lane *lane = &device->lanes[lane_index];
    if (n > 0) {
        const kernels_limits *limits = &device->limits;
        size_t bans_at;
        uint32_t needs;
        size_t bytes = fill_choices(device, lane, choices, n, &bans_at, &needs);
        status = send_beside(device, lane, lane->choices, lane->host_choices, bytes, err);
        if (status == PERCH_OK) {
            cudaError_t e = cuda_choose(device->compute, logits, limits->vocab_size,
                                        (const cuda_choice *)(const void *)lane->choices,
                                        (const int32_t *)(const void *)(lane->choices + bans_at), n, needs,
                                        device->history, limits->session_len, device->choose_scratch, lane->chosen);
            status = cuda_check(device, e, "choosing tokens", err);
        }
    }
    if (status == PERCH_OK) {
        status = fetch_beside(device, lane, n, err);
    }
    if (status == PERCH_OK) {
        lane->n_chosen = n;
        lane->state = LANE_QUEUED;
    }
    return status;
}

perch_status cuda_wait(kernels_device *device, uint32_t lane_index, const kernels_chosen **out, perch_error *err) {
    *out = NULL;
    perch_status status = cuda_enter(device, err);
    if (status != PERCH_OK || (status = check_lane(device, lane_index, LANE_QUEUED, "wait", err)) != PERCH_OK) {
        return status;
    }
    cuda_lane *lane = &device->lanes[lane_index];
    status = cuda_check(device, cudaEventSynchronize(lane->done), "a step", err);
    if (status == PERCH_OK) {
        lane->state = LANE_FREE;
        if (device->kv.mapper != NULL) {
            cuda_mapper_step_done(device->kv.mapper, lane->step);
        }
        *out = lane->host_chosen;
    }
    return status;
}
