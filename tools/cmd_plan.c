/*
 * perch plan: what memory goes where and what fits, without loading any weights.
 */
#include "args.h"
#include "commands.h"
#include "json_out.h"
#include "table.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct row {
    const char *name;
    uint64_t n_bytes;
    const char *note;
};

static perch_status print_rows(const struct row *rows, size_t n) {
    struct table table;
    table_init(&table, 4);
    const char *const head[] = {"memory", "size", "bytes", ""};
    perch_status status = PERCH_OK;
    for (size_t i = 0; i < 4 && status == PERCH_OK; i++) {
        status = table_cell(&table, NULL, "%s", head[i]);
    }
    for (size_t i = 0; i < n && status == PERCH_OK; i++) {
        char size[32];
        format_bytes(size, sizeof(size), rows[i].n_bytes);
        status = table_cell(&table, NULL, "%s", rows[i].name);
        status = status != PERCH_OK ? status : table_cell(&table, NULL, "%s", size);
        status = status != PERCH_OK ? status : table_cell(&table, NULL, "%llu", (unsigned long long)rows[i].n_bytes);
        status = status != PERCH_OK ? status : table_cell(&table, NULL, "%s", rows[i].note);
    }
    if (status == PERCH_OK) {
        table_print(&table, stdout);
    }
    table_free(&table);
    return status;
}

static perch_status print_plan(const perch_plan *plan) {
    double tokens_per_page =
        plan->kv_bytes_per_token == 0 ? 0.0 : (double)plan->page_bytes / (double)plan->kv_bytes_per_token;
    char pool[32];
    char page[32];
    char sequence[64];
    bool on_gpu = strncmp(plan->backend, "cuda", 4) == 0;
    snprintf(pool, sizeof(pool), "%u pages", plan->n_pages);
    snprintf(page, sizeof(page), "%.1f tokens", tokens_per_page);
    snprintf(sequence, sizeof(sequence), "%u tokens, in whole pages", plan->session_len);
    const struct row rows[] = {
        {"free now", plan->free_bytes, ""},
        {"weights", plan->weights_bytes, ""},
        {"workspace", plan->workspace_bytes, "activations, logits, tables"},
        {"the GPU's own", plan->reserve_bytes, "batches, partial results, matrix products, graphs"},
        {"bookkeeping", plan->host_bytes, on_gpu ? "host memory, not counted below" : ""},
        {"host tier", plan->host_tier_bytes, on_gpu ? "host memory, not counted below" : ""},
        {"staging", plan->staging_bytes, "host memory on the way to the disk"},
        {"KV pool", plan->pool_bytes, pool},
        {"all of it", plan->total_bytes, ""},
        {"disk tier", plan->disk_tier_bytes, "on disk"},
        {"KV of a token", plan->kv_bytes_per_token, ""},
        {"KV of a group", plan->group_bytes, "16 tokens"},
        {"a page", plan->page_bytes, page},
        {"a full sequence", plan->sequence_bytes, sequence},
        {"the driver's own", plan->context_bytes, "taken already, not of what is free"}, /* last: where it is known */
    };
    const size_t n_rows = sizeof(rows) / sizeof(rows[0]) - (plan->context_bytes == 0);
    printf("%s, %u layers, hidden %u, %u heads, %u KV heads of %u, vocabulary %u, %llu parameters\n"
           "%s arithmetic, %s weights on %s, KV memory by %s\n",
           plan->architecture, plan->n_layers, plan->hidden_size, plan->n_heads, plan->n_kv_heads, plan->head_dim,
           plan->vocab_size, (unsigned long long)plan->n_parameters, plan->dtype, plan->weight_format, plan->backend,
           plan->mapping == PERCH_MAPPING_TABLE ? "table" : "vmm");
    printf(plan->note[0] ? "no GPU: %s\n\n" : "%s\n", plan->note);
    perch_status status = print_rows(rows, n_rows);
    if (status == PERCH_OK) {
        printf("\n%llu tokens fit, %u full sequences of %u tokens; %u slots\n", (unsigned long long)plan->n_pool_tokens,
               plan->n_full_sequences, plan->session_len, plan->n_slots);
    }
    return status;
}

static void print_tier(const char *name, bool disk, double mbps, double latency_us, uint32_t break_even,
                       uint32_t session_len) {
    if (mbps <= 0) {
        printf("  %s  not measured%s\n", name, disk ? ": an engine that has it does, see its statistics" : "");
        return;
    }
    printf("  %s  %.0f MB/s after %.3f ms (measured): ", name, mbps, latency_us / 1000);
    if (break_even > 0) {
        printf("loading is quicker from %u tokens of context on\n", break_even);
    } else {
        printf("computing is quicker up to %u tokens\n", session_len);
    }
}

/* Where loading what is not on the device begins to beat computing it. */
static void print_costs(const perch_costs *costs, const perch_plan *plan) {
    const double far_us = costs->prefill_us + (plan->session_len - 1) * costs->prefill_us_per_position;
    printf("\nto have KV again that is not on the device\n");
    if (costs->n_layers_measured > 0) {
        printf(
            "  computing  %.1f us for a token at position 0, %.1f at position %u\n"
            "             measured: passes of %u tokens at contexts up to %u through %u of %u layers, random weights\n"
            "             assumed: all layers alike; nothing else in the step; embedding and output for free\n",
            costs->prefill_us, far_us, plan->session_len - 1, costs->n_step_tokens, costs->n_positions,
            costs->n_layers_measured, plan->n_layers);
    } else {
        printf("  computing  not measured\n");
    }
    print_tier("host tier", false, costs->host_mbps, costs->host_latency_us, costs->host_break_even, plan->session_len);
    print_tier("disk tier", true, costs->disk_mbps, costs->disk_latency_us, costs->disk_break_even, plan->session_len);
    if (costs->note[0]) {
        printf("  %s\n", costs->note);
    }
}

static json_t *plan_and_costs(const perch_plan *plan, const perch_costs *costs) {
    json_t *out = json_plan(plan);
    if (out != NULL && costs != NULL && json_object_set_new(out, "costs", json_costs(costs)) != 0) {
        json_decref(out);
        return NULL;
    }
    return out;
}

static int show_plan(struct tool *tool) {
    perch_plan plan = {.struct_size = sizeof(plan)};
    perch_costs costs = {.struct_size = sizeof(costs)};
    perch_error err = {.status = PERCH_OK};
    perch_status status = perch_plan_compute(&tool->options, &plan, &err);
    if (status != PERCH_OK && status != PERCH_E_NO_ROOM) {
        return tool_fail_status(tool, &err);
    }
    /* What does not fit is shown as well: the figures say why. */
    bool measured = status == PERCH_OK;
    if (measured && (status = perch_costs_measure(&tool->options, &costs, &err)) != PERCH_OK) {
        return tool_fail_status(tool, &err);
    }
    int code;
    if (tool->json) {
        code = tool_write_json(tool, plan_and_costs(&plan, measured ? &costs : NULL), true);
    } else if (print_plan(&plan) != PERCH_OK) {
        code = tool_fail(tool, EXIT_RUN, "out of memory");
    } else {
        if (measured) {
            print_costs(&costs, &plan);
        }
        code = tool_flush(tool);
    }
    return code == EXIT_DONE && status != PERCH_OK ? tool_fail_status(tool, &err) : code;
}

int cmd_plan(int argc, char **argv) {
    struct tool tool;
    perch_error err = {.status = PERCH_OK};
    int code = EXIT_DONE;
    if (tool_init(&tool, argv[0], &err) != PERCH_OK) {
        return tool_fail_status(&tool, &err);
    }
    const struct command_args args = {
        .usage = "--model DIR [FLAGS] [section.key=value]...",
        .summary =
            "Prints the memory plan of a model and the arithmetic of its KV: bytes for a token, tokens and sequences "
            "that\n"
            "fit; and from which context on loading KV from a tier below the device beats computing it again, timed in "
            "a few\n"
            "seconds. Loads no weights; for a directory that holds nothing but a config.json add model.weights=random.",
    };
    if (args_parse(&tool, argc, argv, &args, &code)) {
        code = show_plan(&tool);
    }
    tool_end(&tool);
    return code;
}
