/*
 * events: the outbox. A completion with output that the host has not seen stands in it once; what the host gets is whatever has
 * piled up when it asks. Text is decoded here, on the host's thread.
 */
#include "engine/impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Buffers of a perch_event. */
typedef struct event_storage {
    int32_t *tokens;
    float *logprobs;
    perch_logprob *top;
    float *prompt_logprobs;
    char *text;
    char message[200]; /* of completion.message */
    size_t tokens_cap, logprobs_cap, top_cap, prompt_cap, text_cap;
} event_storage;

/* ------------------------------------------------------------------- outbox -- */

void outbox_signal(perch_engine *e) {
    uint64_t one = 1;
    ssize_t n = write(e->event_fd, &one, sizeof one);
    (void)n; /* EAGAIN: it is readable already */
}

static void outbox_drain(perch_engine *e) {
    uint64_t count;
    ssize_t n = read(e->event_fd, &count, sizeof count);
    (void)n; /* EAGAIN: it was not readable */
}

void outbox_push(perch_engine *e, completion *c) {
    if (c->delivering) {
        c->dirty = true;
        return;
    }
    if (c->ready) {
        return;
    }
    c->ready = true;
    c->next_ready = NULL;
    *(e->ready_tail ? &e->ready_tail->next_ready : &e->ready_head) = c;
    if (!e->ready_tail) {
        outbox_signal(e);
    }
    e->ready_tail = c;
    pthread_cond_signal(&e->event);
}

static completion *outbox_pop(perch_engine *e) {
    completion *c = e->ready_head;
    e->ready_head = c->next_ready;
    if (!e->ready_head) {
        e->ready_tail = NULL;
        if (!e->dead) {
            outbox_drain(e);
        }
    }
    c->ready = false;
    c->delivering = true;
    c->dirty = false;
    return c;
}

/* After a failed delivery: first in line again. */
static void outbox_unpop(perch_engine *e, completion *c) {
    c->delivering = false;
    c->ready = true;
    c->next_ready = e->ready_head;
    e->ready_head = c;
    if (!e->ready_tail) {
        e->ready_tail = c;
        outbox_signal(e);
    }
    pthread_cond_signal(&e->event);
}

/* ------------------------------------------------------------------ delivery -- */

/* What the completion had when it was popped; the step thread may append meanwhile. */
typedef struct snapshot {
    uint32_t n_generated;
    uint64_t safe_bytes;
    bool finished;
} snapshot;

perch_status stream_token(perch_tokenizer_stream *stream, int32_t token, const char **text, size_t *n_bytes,
                          perch_error *err) {
    perch_status status = perch_tokenizer_stream_push(stream, token, text, n_bytes, err);
    if (status == PERCH_E_INVALID) {
        *text = "";
        *n_bytes = 0;
        status = PERCH_OK;
    }
    return status;
}

static perch_status append_text(completion *c, const char *text, size_t n_bytes, perch_error *err) {
    perch_status status = array_reserve((void **)&c->text, &c->text_cap, c->text_bytes + n_bytes + 1, 1, err);
    if (!status) {
        memcpy(c->text + c->text_bytes, text, n_bytes);
        c->text_bytes += n_bytes;
    }
    return status;
}

/* A stream in the state of the one that broke: it is a function of the tokens that went through it. */
static perch_status remake_stream(const perch_engine *e, completion *c, perch_error *err) {
    perch_tokenizer_stream *stream;
    const char *text;
    size_t n_bytes;
    perch_status status = perch_tokenizer_stream_create(e->tokenizer, PERCH_DECODE_CONTINUE, &stream, err);
    for (uint32_t i = 0; !status && i < c->n_decoded; i++) {
        status = stream_token(stream, c->tokens[i], &text, &n_bytes, err);
    }
    if (status) {
        perch_tokenizer_stream_destroy(stream);
        return status;
    }
    perch_tokenizer_stream_destroy(c->stream);
    c->stream = stream;
    c->stream_broken = false;
    return PERCH_OK;
}

/* Decodes what is new into c->text. Can be called again after a failure: a piece that is decoded is not decoded twice. */
static perch_status decode_text(const perch_engine *e, completion *c, const snapshot *now, perch_error *err) {
    if (c->stream_broken) {
        perch_status status = remake_stream(e, c, err);
        if (status) {
            return status;
        }
    }
    while (c->piece || c->n_decoded < now->n_generated || (now->finished && !c->flushed)) {
        perch_status status = PERCH_OK;
        if (!c->piece && c->n_decoded < now->n_generated) {
            status = stream_token(c->stream, c->tokens[c->n_decoded], &c->piece, &c->piece_bytes, err);
            c->n_decoded += status == PERCH_OK;
            c->stream_broken = status != PERCH_OK;
        } else if (!c->piece) {
            status = perch_tokenizer_stream_flush(c->stream, &c->piece, &c->piece_bytes, err);
            c->flushed = status == PERCH_OK;
            c->stream_broken = status != PERCH_OK;
        }
        if (!status) {
            status = append_text(c, c->piece, c->piece_bytes, err);
        }
        if (status) {
            return status;
        }
        c->piece = NULL;
    }
    return PERCH_OK;
}

/* How much of c->text may go out now: not what may yet turn out to be a stop string, and nothing from one on. */
static size_t deliverable_bytes(const completion *c, const snapshot *now) {
    if (!c->stops || (now->finished && c->finish != PERCH_FINISH_STOP_STRING)) {
        return c->text_bytes;
    }
    uint64_t safe = now->safe_bytes > c->text_delivered ? now->safe_bytes - c->text_delivered : 0;
    return safe < c->text_bytes ? (size_t)safe : c->text_bytes;
}

static perch_status reserve_storage(event_storage *s, const completion *c, size_t n, size_t n_top, size_t n_prompt,
                                    size_t n_text, perch_error *err) {
    perch_status status;
    if ((status = array_reserve((void **)&s->tokens, &s->tokens_cap, n, sizeof *s->tokens, err)) ||
        (status = array_reserve((void **)&s->text, &s->text_cap, n_text + 1, 1, err))) {
        return status;
    }
    if (c->logprobs && (status = array_reserve((void **)&s->logprobs, &s->logprobs_cap, n, sizeof *s->logprobs, err))) {
        return status;
    }
    if (c->top && (status = array_reserve((void **)&s->top, &s->top_cap, n * n_top, sizeof *s->top, err))) {
        return status;
    }
    return array_reserve((void **)&s->prompt_logprobs, &s->prompt_cap, n_prompt, sizeof *s->prompt_logprobs, err);
}

static void fill_usage(const completion *c, perch_event *ev) {
    const request *r = c->req;
    uint64_t admitted = c->admitted_us ? c->admitted_us : c->finished_us;
    uint64_t first = c->first_token_us ? c->first_token_us : c->finished_us;
    ev->finish = c->finish;
    ev->status = c->status;
    memcpy(((event_storage *)ev->storage)->message, c->message, sizeof c->message);
    ev->prompt_tokens = c->n_prompt;
    ev->cached_tokens = c->n_cached;
    ev->completion_tokens = c->n_generated;
    ev->queue_us = admitted - r->submitted_us;
    ev->prefill_us = first - admitted;
    ev->decode_us = c->finished_us - first;
}

/* Copies everything that is new into the event's own buffers, or fails and changes nothing that the host could miss. */
static perch_status fill_event(const perch_engine *e, completion *c, const snapshot *now, perch_event *ev,
                               perch_error *err) {
    event_storage *s = ev->storage;
    size_t from = c->n_delivered, n = now->n_generated - from, n_top = c->req->sampling->n_logprobs;
    size_t n_prompt = now->finished && c->prompt_logprobs ? c->n_prompt - c->n_turn_start : 0;
    perch_status status = c->stream ? decode_text(e, c, now, err) : PERCH_OK;
    size_t n_text = c->stream && !status ? deliverable_bytes(c, now) : 0;
    if (status || (status = reserve_storage(s, c, n, n_top, n_prompt, n_text, err))) {
        return status;
    }
    ev->type = now->finished ? PERCH_EVENT_DONE : PERCH_EVENT_TOKENS;
    ev->completion = c->index;
    ev->request = c->req->id;
    ev->sequence = c->seq_id;
    ev->user_data = c->req->user_data;
    ev->tokens = s->tokens;
    ev->n_tokens = n;
    if (n) {
        memcpy(s->tokens, c->tokens + from, n * sizeof *s->tokens);
    }
    if (c->logprobs && n) {
        memcpy(s->logprobs, c->logprobs + from, n * sizeof *s->logprobs);
    }
    ev->logprobs = c->logprobs ? s->logprobs : NULL;
    if (c->top && n) {
        memcpy(s->top, c->top + from * n_top, n * n_top * sizeof *s->top);
    }
    ev->top_logprobs = c->top ? s->top : NULL;
    ev->n_top = (uint32_t)n_top;
    if (n_prompt) {
        memcpy(s->prompt_logprobs, c->prompt_logprobs, n_prompt * sizeof *s->prompt_logprobs);
        ev->prompt_logprobs = s->prompt_logprobs;
        ev->n_prompt_logprobs = n_prompt;
    }
    if (n_text) {
        memcpy(s->text, c->text, n_text);
        memmove(c->text, c->text + n_text, c->text_bytes - n_text);
        c->text_bytes -= n_text;
        c->text_delivered += n_text;
    }
    s->text[n_text] = 0;
    ev->text = s->text;
    s->message[0] = 0;
    ev->message = s->message;
    ev->text_bytes = n_text;
    c->n_delivered = now->n_generated;
    if (now->finished) {
        fill_usage(c, ev);
    }
    return PERCH_OK;
}

/* ---------------------------------------------------------------- perch_next -- */

static struct timespec deadline_after(int timeout_ms) {
    uint64_t at = time_us() + (uint64_t)timeout_ms * 1000;
    return (struct timespec){.tv_sec = (time_t)(at / 1000000), .tv_nsec = (long)(at % 1000000) * 1000};
}

/* Until there is output, the time is up, or nothing will ever come again. Under the lock. */
static perch_status wait_ready(perch_engine *e, int timeout_ms, perch_error *err) {
    struct timespec until = deadline_after(timeout_ms > 0 ? timeout_ms : 0);
    while (!e->ready_head) {
        if (e->dead && !e->n_committing) {
            return err_set(err, e->dead, "the engine is dead: %s", e->dead_reason.message);
        }
        if (e->stopping) {
            return err_set(err, PERCH_E_SHUTDOWN, "the engine is shutting down");
        }
        if (timeout_ms == 0 || e->now_us) { /* simulated time does not pass while a thread waits */
            return err_set(err, PERCH_E_TIMEOUT, "no event");
        }
        if (timeout_ms < 0) {
            pthread_cond_wait(&e->event, &e->lock);
        } else if (pthread_cond_timedwait(&e->event, &e->lock, &until) == ETIMEDOUT && !e->ready_head) {
            return err_set(err, PERCH_E_TIMEOUT, "no event within %d ms", timeout_ms);
        }
    }
    return PERCH_OK;
}

/* Under the lock, after a delivery that succeeded. */
static void delivered(perch_engine *e, completion *c, const snapshot *now) {
    c->delivering = false;
    if (!now->finished) {
        if (c->dirty) {
            outbox_push(e, c);
        }
    } else if (--c->req->n_left == 0) {
        request_free(e, c->req);
    }
}

/* Nothing, but its buffers are kept. */
static void event_reset(perch_event *ev) {
    void *storage = ev->storage;
    memset(ev, 0, sizeof *ev);
    ev->struct_size = sizeof *ev;
    ev->storage = storage;
}

perch_status perch_next(perch_engine *e, perch_event *ev, int timeout_ms, perch_error *err) {
    if (!e || !ev || ev->struct_size != sizeof *ev) {
        return err_set(err, PERCH_E_INVALID, "perch_next: engine and an event from perch_event_init must be given");
    }
    event_reset(ev);
    if (!ev->storage) {
        ev->storage = calloc(1, sizeof(event_storage));
        if (!ev->storage) {
            return err_nomem(err, "an event");
        }
    }
    pthread_mutex_lock(&e->lock);
    e->n_inside++;
    perch_status status = wait_ready(e, timeout_ms, err);
    if (status) {
        engine_leave(e);
        pthread_mutex_unlock(&e->lock);
        return status;
    }
    completion *c = outbox_pop(e);
    snapshot now = {
        .n_generated = c->n_generated, .safe_bytes = c->safe_bytes, .finished = c->finished && !c->committing};
    pthread_mutex_unlock(&e->lock);

    status = fill_event(e, c, &now, ev, err);

    pthread_mutex_lock(&e->lock);
    if (status) {
        outbox_unpop(e, c);
    } else {
        delivered(e, c, &now);
    }
    engine_leave(e);
    pthread_mutex_unlock(&e->lock);
    return status;
}

int perch_event_fd(const perch_engine *e) { return e ? e->event_fd : -1; }

perch_status perch_event_init(perch_event *ev, size_t struct_size) {
    if (!ev || struct_size != sizeof *ev) {
        return PERCH_E_INVALID;
    }
    memset(ev, 0, sizeof *ev);
    ev->struct_size = sizeof *ev;
    return PERCH_OK;
}

void perch_event_clear(perch_event *ev) {
    if (!ev) {
        return;
    }
    event_storage *s = ev->storage;
    if (s) {
        free(s->tokens);
        free(s->logprobs);
        free(s->top);
        free(s->prompt_logprobs);
        free(s->text);
        free(s);
    }
    memset(ev, 0, sizeof *ev);
    ev->struct_size = sizeof *ev;
}

const char *perch_finish_name(perch_finish finish) {
    switch (finish) {
    case PERCH_FINISH_NONE:
        return "none";
    case PERCH_FINISH_EOS:
        return "eos";
    case PERCH_FINISH_STOP_TOKEN:
        return "stop_token";
    case PERCH_FINISH_STOP_STRING:
        return "stop_string";
    case PERCH_FINISH_LENGTH:
        return "length";
    case PERCH_FINISH_CANCELLED:
        return "cancelled";
    case PERCH_FINISH_TIMEOUT:
        return "timeout";
    case PERCH_FINISH_ERROR:
        return "error";
    }
    return "unknown";
}
