/*
 * demo_run: the host's side of the demo: submit, collect, compare, submit the next.
 */
#include "demo_run.h"

#include "interrupt.h"
#include "tool.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FRAME_US 100000u
#define MAX_ANSWER_TOKENS 64u

static uint64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* ---------------------------------------------------------- begin and end -- */

static perch_status begin_talk(struct demo_run *run, const struct demo_conversation *conversation, perch_error *err) {
    struct demo_talk *talk = &run->talks[run->n];
    talk->conversation = conversation;
    talk->info.struct_size = sizeof(talk->info);
    talk->answers = calloc(conversation->n_turns, sizeof(*talk->answers));
    if (talk->answers == NULL) {
        return tool_nomem(err);
    }
    run->n++;
    run->n_turns += conversation->n_turns;
    for (size_t i = 0; i < conversation->n_turns; i++) {
        run->n_facts += conversation->turns[i].check != NULL ? 1 : 0;
    }
    return perch_sequence_open(run->engine, &talk->sequence, err);
}

perch_status demo_run_begin(struct demo_run *run, const perch_options *options, const struct demo_data *data, size_t n,
                            perch_error *err) {
    *run = (struct demo_run){0};
    run->plan.struct_size = sizeof(run->plan);
    run->stats.struct_size = sizeof(run->stats);
    run->talks = calloc(n, sizeof(*run->talks));
    if (run->talks == NULL) {
        return tool_nomem(err);
    }
    if (perch_event_init(&run->event, sizeof(run->event)) != PERCH_OK) {
        return tool_error(err, PERCH_E_INVALID, "perch.h and libperch do not match");
    }
    perch_status status = perch_engine_create(options, &run->engine, err);
    if (status == PERCH_OK && perch_engine_tokenizer(run->engine) == NULL) {
        status = tool_error(err, PERCH_E_INVALID, "the model has no tokenizer: there is no tokenizer.json in %s",
                            options->path);
    }
    if (status == PERCH_OK) {
        status = perch_engine_plan(run->engine, &run->plan, err);
    }
    for (size_t i = 0; status == PERCH_OK && i < n; i++) {
        status = begin_talk(run, &data->conversations[i], err);
    }
    return status;
}

void demo_run_end(struct demo_run *run) {
    perch_engine_destroy(run->engine);
    run->engine = NULL;
}

void demo_run_free(struct demo_run *run) {
    demo_run_end(run);
    for (size_t i = 0; i < run->n; i++) {
        struct demo_talk *talk = &run->talks[i];
        for (size_t k = 0; k < talk->conversation->n_turns; k++) {
            text_free(&talk->answers[k].text);
        }
        free(talk->answers);
    }
    free(run->talks);
    perch_event_clear(&run->event);
    text_free(&run->transcript);
    text_free(&run->text);
    tokens_free(&run->tokens);
    *run = (struct demo_run){0};
}

/* ------------------------------------------------------------------ turns -- */

static perch_status encode_turn(struct demo_run *run, const struct demo_talk *talk, perch_error *err) {
    const perch_tokenizer *tokenizer = perch_engine_tokenizer(run->engine);
    const perch_chat_message message = {"user", talk->conversation->turns[talk->n_answers].user};
    bool first = talk->n_answers == 0;
    run->text.n_bytes = 0;
    run->tokens.n = 0;
    perch_status status = text_chat(&run->text, tokenizer, NULL, &message, 1, first, err);
    if (status != PERCH_OK) {
        return status;
    }
    return tokens_encode(&run->tokens, tokenizer, run->text.data, run->text.n_bytes,
                         PERCH_ENCODE_SPECIAL | (first ? PERCH_ENCODE_BOS : 0), err);
}

static perch_status submit_turn(struct demo_run *run, struct demo_talk *talk, perch_error *err) {
    perch_request request;
    perch_status status = encode_turn(run, talk, err);
    if (status != PERCH_OK) {
        return status;
    }
    if (perch_request_init(run->engine, &request, sizeof(request)) != PERCH_OK) {
        return tool_error(err, PERCH_E_INVALID, "perch.h and libperch do not match");
    }
    uint64_t n_prompt = talk->info.n_tokens + run->tokens.n;
    uint64_t room = n_prompt < run->plan.session_len ? run->plan.session_len - n_prompt : 1;
    request.sequence = talk->sequence;
    request.tokens = run->tokens.ids;
    request.n_tokens = run->tokens.n;
    request.max_tokens = room < MAX_ANSWER_TOKENS ? (uint32_t)room : MAX_ANSWER_TOKENS;
    request.user_data = (uint64_t)(talk - run->talks);
    request.sampling.temperature = 0.0;
    perch_error reason = {.status = PERCH_OK};
    status = perch_submit(run->engine, &request, NULL, &reason);
    if (status != PERCH_OK) {
        return tool_error(err, status, "%s, turn %zu: %s", talk->conversation->name, talk->n_answers + 1,
                          reason.message);
    }
    return PERCH_OK;
}

/* The answer is whole: is it right? Then the next turn, if there is one. */
static perch_status finish_turn(struct demo_run *run, struct demo_talk *talk, const struct demo_watch *watch,
                                perch_error *err) {
    const perch_event *event = &run->event;
    size_t number = talk->n_answers;
    const struct demo_turn *turn = &talk->conversation->turns[number];
    struct demo_answer *answer = &talk->answers[number];
    perch_status status = perch_sequence_state(run->engine, talk->sequence, &talk->info, err);
    if (status != PERCH_OK) {
        return status;
    }
    answer->prompt_tokens = event->prompt_tokens;
    answer->cached_tokens = event->cached_tokens;
    answer->n_evictions = talk->info.n_evictions;
    /* The check is in the expected answer (demo_data_load saw to it), so it is in an answer that equals it. */
    answer->right = event->finish == PERCH_FINISH_EOS && answer->text.n_bytes == strlen(turn->assistant) &&
                    memcmp(answer->text.data, turn->assistant, answer->text.n_bytes) == 0;
    talk->n_answers++;
    run->n_answers++;
    run->n_right += answer->right ? 1 : 0;
    run->n_facts_asked += turn->check != NULL ? 1 : 0;
    run->n_facts_right += turn->check != NULL && answer->right ? 1 : 0;
    if (talk->n_answers < talk->conversation->n_turns) {
        status = submit_turn(run, talk, err);
    } else {
        run->n_done++;
    }
    if (watch->answered != NULL) {
        watch->answered(watch->user, run, talk, number);
    }
    return status;
}

static perch_status take_event(struct demo_run *run, const struct demo_watch *watch, perch_error *err) {
    const perch_event *event = &run->event;
    struct demo_talk *talk = &run->talks[event->user_data];
    perch_status status = text_add(&talk->answers[talk->n_answers].text, event->text, event->text_bytes, err);
    if (status != PERCH_OK || event->type != PERCH_EVENT_DONE) {
        return status;
    }
    if (event->finish == PERCH_FINISH_ERROR) {
        return tool_error(err, event->status, "%s, turn %zu: %s", talk->conversation->name, talk->n_answers + 1,
                          tool_event_error(event));
    }
    return finish_turn(run, talk, watch, err);
}

/* The text of all turns, whatever the order that they were answered in. */
static perch_status write_transcript(struct demo_run *run, perch_error *err) {
    struct text *text = &run->transcript;
    perch_status status = PERCH_OK;
    for (size_t i = 0; status == PERCH_OK && i < run->n; i++) {
        const struct demo_talk *talk = &run->talks[i];
        const struct demo_conversation *conversation = talk->conversation;
        status = text_addf(text, err, "%s# %s\n", i > 0 ? "\n" : "", conversation->name);
        for (size_t k = 0; status == PERCH_OK && k < talk->n_answers; k++) {
            status = text_addf(text, err, "\nuser: %s\nassistant: ", conversation->turns[k].user);
            if (status == PERCH_OK) {
                status = text_add(text, talk->answers[k].text.data, talk->answers[k].text.n_bytes, err);
            }
            if (status == PERCH_OK) {
                status = text_add(text, "\n", 1, err);
            }
        }
    }
    return status;
}

/* --------------------------------------------------------------- the loop -- */

/* Asks the engine how everything stands. */
static perch_status look(struct demo_run *run, perch_error *err) {
    perch_status status = perch_engine_stats(run->engine, &run->stats, err);
    for (size_t i = 0; status == PERCH_OK && i < run->n; i++) {
        status = perch_sequence_state(run->engine, run->talks[i].sequence, &run->talks[i].info, err);
    }
    run->elapsed_us = clock_us() - run->begin_us;
    return status;
}

static perch_status draw(struct demo_run *run, const struct demo_watch *watch, perch_error *err) {
    perch_status status = look(run, err);
    if (status == PERCH_OK && watch->frame != NULL) {
        watch->frame(watch->user, run);
    }
    return status;
}

perch_status demo_run_go(struct demo_run *run, const struct demo_watch *watch, perch_error *err) {
    perch_status status = PERCH_OK;
    run->begin_us = clock_us();
    for (size_t i = 0; status == PERCH_OK && i < run->n; i++) {
        status = submit_turn(run, &run->talks[i], err);
    }
    uint64_t next_frame_us = run->begin_us;
    while (status == PERCH_OK && run->n_done < run->n) {
        uint64_t now_us = clock_us();
        if (interrupt_came()) {
            return tool_error(err, PERCH_E_SHUTDOWN, "interrupted");
        }
        if (watch->frame != NULL && now_us >= next_frame_us) {
            status = draw(run, watch, err);
            next_frame_us = now_us + FRAME_US;
            continue;
        }
        status = perch_next(run->engine, &run->event, 0, err);
        if (status == PERCH_OK) {
            status = take_event(run, watch, err);
        } else if (status == PERCH_E_TIMEOUT) {
            status = PERCH_OK;
            interrupt_wait(run->engine, -1, watch->frame != NULL ? (int)((next_frame_us - now_us) / 1000u) + 1 : -1);
        }
    }
    status = status == PERCH_OK ? draw(run, watch, err) : status;
    return status == PERCH_OK ? write_transcript(run, err) : status;
}

uint64_t demo_evictions_since_told(const struct demo_talk *talk, size_t turn) {
    const struct demo_turn *asked = &talk->conversation->turns[turn];
    return talk->answers[turn].n_evictions - talk->answers[asked->told].n_evictions;
}
