/*
 * The page file as its caller sees it, and the queue between the caller and the file's threads. A job goes from
 * `unused` to `reads` or `writes`, to a thread, to `done` and, when it is polled, back. Which frames hold what is known
 * to the caller's thread alone: it is told by what it polls.
 */
#include "engine/tiers/page_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#define MAX_THREADS 64u
/* Bytes that go at once, at most, unless one page has more. */
#define BATCH_BYTES ((uint64_t)32 << 20)

uint64_t page_checksum(const void *data, size_t n) { return XXH3_64bits(data, n); }

/* --- lists */

static void list_push(page_file *file, job_list *list, uint32_t job) {
    file->jobs[job].next = PAGE_NONE;
    if (list->n++ == 0) {
        list->first = job;
    } else {
        file->jobs[list->last].next = job;
    }
    list->last = job;
}

static page_job *list_pop(page_file *file, job_list *list) {
    page_job *job = &file->jobs[list->first];
    list->first = job->next;
    list->n--;
    return job;
}

static uint32_t number_of(const page_file *file, const page_job *job) { return (uint32_t)(job - file->jobs); }

/* --- the threads */

/* Whether a job goes with those that are in the batch. */
static bool continues(const page_file *file, const page_batch *batch, const page_request *next) {
    const page_request *last = &batch->jobs[batch->n - 1]->request;
    return batch->n < PAGE_BATCH && next->op == last->op && next->frame == last->frame + 1 &&
           page_moved_bytes(last->record.n_bytes) == file->layout.frame_bytes &&
           (batch->n + 1) * file->layout.frame_bytes <= BATCH_BYTES;
}

/* Takes what is to be done next; false: nothing, or a SYNC that waits for writes. */
static bool take(page_file *file, page_batch *batch) {
    job_list *list = file->reads.n > 0 ? &file->reads : &file->writes;
    batch->n = 0;
    if (list->n == 0 || (file->jobs[list->first].request.op == PAGE_SYNC && file->n_writing > 0)) {
        return false;
    }
    const bool is_sync = file->jobs[list->first].request.op == PAGE_SYNC;
    do {
        batch->jobs[batch->n++] = list_pop(file, list);
    } while (!is_sync && list->n > 0 && continues(file, batch, &file->jobs[list->first].request));
    file->n_writing += batch->jobs[0]->request.op == PAGE_WRITE ? batch->n : 0;
    return true;
}

static void *page_thread(void *context) {
    page_file *file = context;
    page_batch batch;
    pthread_mutex_lock(&file->lock);
    while (!file->stopping) {
        if (!take(file, &batch)) {
            pthread_cond_wait(&file->work, &file->lock);
            continue;
        }
        if (file->reads.n + file->writes.n > 0) { /* one wakes the next */
            pthread_cond_signal(&file->work);
        }
        pthread_mutex_unlock(&file->lock);
        page_batch_run(file, &batch);
        pthread_mutex_lock(&file->lock);
        file->n_writing -= batch.jobs[0]->request.op == PAGE_WRITE ? batch.n : 0;
        for (uint32_t i = 0; i < batch.n; i++) {
            list_push(file, &file->done, number_of(file, batch.jobs[i]));
        }
        if (file->config.notify != NULL) {
            pthread_mutex_unlock(&file->lock);
            file->config.notify(file->config.notify_user);
            pthread_mutex_lock(&file->lock);
        }
    }
    pthread_mutex_unlock(&file->lock);
    return NULL;
}

/* --- open and close */

static perch_status check_config(const page_file_config *c, perch_error *err) {
    if (c->path == NULL || c->page_bytes == 0 || c->page_bytes > INT64_MAX / 2 || c->n_frames == 0 ||
        c->n_frames == PAGE_NO_FRAME || c->n_threads == 0 || c->n_threads > MAX_THREADS || c->max_requests == 0 ||
        c->max_requests == PAGE_NONE) {
        return err_set(err, PERCH_E_INVALID,
                       "a page file '%s' of %u frames of %" PRIu64 " bytes, %u threads, %u requests",
                       c->path != NULL ? c->path : "", c->n_frames, c->page_bytes, c->n_threads, c->max_requests);
    }
    return PERCH_OK;
}

static perch_status start_threads(page_file *file, perch_error *err) {
    for (; file->n_running < file->config.n_threads; file->n_running++) {
        int code = pthread_create(&file->threads[file->n_running], NULL, page_thread, file);
        if (code != 0) {
            return err_set(err, PERCH_E_NOMEM, "can't start thread %u of %u for '%s': %s", file->n_running + 1,
                           file->config.n_threads, file->path, strerror(code));
        }
    }
    return PERCH_OK;
}

uint64_t page_file_host_bytes(uint32_t n_frames, uint32_t max_requests) {
    return sizeof(page_file) + (uint64_t)n_frames * sizeof(page_frame) + (uint64_t)max_requests * sizeof(page_job);
}

perch_status page_file_open(const page_file_config *config, page_file **out, perch_error *err) {
    *out = NULL;
    perch_status status = check_config(config, err);
    if (status != PERCH_OK) {
        return status;
    }
    page_file *file = calloc(1, sizeof *file);
    if (file == NULL) {
        return err_nomem(err, "a page file");
    }
    file->fd = file->data_fd = -1;
    file->config = *config;
    pthread_mutex_init(&file->lock, NULL);
    pthread_cond_init(&file->work, NULL);
    file->path = strdup(config->path);
    file->frames = calloc(config->n_frames, sizeof *file->frames);
    file->jobs = calloc(config->max_requests, sizeof *file->jobs);
    file->threads = calloc(config->n_threads, sizeof *file->threads);
    if (file->path == NULL || file->frames == NULL || file->jobs == NULL || file->threads == NULL) {
        status = err_nomem(err, "a page file's frames and requests");
        goto fail;
    }
    file->config.path = file->path;
    for (uint32_t i = 0; i < config->max_requests; i++) {
        list_push(file, &file->unused, i);
    }
    if ((status = page_format_open(file, err)) != PERCH_OK || (status = start_threads(file, err)) != PERCH_OK) {
        goto fail;
    }
    *out = file;
    return PERCH_OK;
fail:
    page_file_close(file);
    return status;
}

void page_file_close(page_file *file) {
    if (file == NULL) {
        return;
    }
    pthread_mutex_lock(&file->lock);
    file->stopping = true;
    pthread_cond_broadcast(&file->work);
    pthread_mutex_unlock(&file->lock);
    for (uint32_t i = 0; i < file->n_running; i++) {
        pthread_join(file->threads[i], NULL);
    }
    page_format_close(file);
    pthread_cond_destroy(&file->work);
    pthread_mutex_destroy(&file->lock);
    free(file->threads);
    free(file->jobs);
    free(file->frames);
    free(file->path);
    free(file);
}

page_file_info page_file_info_get(const page_file *file) { return file->info; }

bool page_file_get(const page_file *file, uint32_t frame, page_record *out) {
    if (frame >= file->config.n_frames || !file->frames[frame].is_valid) {
        return false;
    }
    *out = file->frames[frame].record;
    return true;
}

bool page_file_tokens(const page_file *file, uint32_t frame, int32_t *out) {
    page_record record;
    int error;
    if (!page_file_get(file, frame, &record)) {
        return false;
    }
    const size_t n_bytes = record.n_tokens * sizeof *out;
    return page_read_all(file->fd, out, n_bytes, page_tokens_at(file, frame), &error) &&
           page_checksum(out, n_bytes) == record.tokens_checksum;
}

/* --- submit and poll */

static perch_status check_request(const page_file *file, const page_request *r, size_t i, perch_error *err) {
    if (r->op == PAGE_SYNC) {
        return PERCH_OK;
    }
    if ((r->op != PAGE_READ && r->op != PAGE_WRITE) || r->frame >= file->config.n_frames) {
        return err_set(err, PERCH_E_INVALID, "page request %zu: op %d, frame %u of %u", i, (int)r->op, r->frame,
                       file->config.n_frames);
    }
    const page_frame *frame = &file->frames[r->frame];
    if (r->data == NULL || (uintptr_t)r->data % PAGE_ALIGNMENT != 0) {
        return err_set(err, PERCH_E_INVALID, "page request %zu: data at %p is not aligned to %u bytes", i,
                       (const void *)r->data, PAGE_ALIGNMENT);
    }
    if (frame->is_busy || (r->op == PAGE_READ && !frame->is_valid)) {
        return err_set(err, PERCH_E_INVALID, "page request %zu: frame %u %s", i, r->frame,
                       frame->is_busy ? "has a request under way" : "is empty");
    }
    if (r->op == PAGE_WRITE && (r->record.n_bytes == 0 || r->record.n_bytes > file->config.page_bytes)) {
        return err_set(err, PERCH_E_INVALID, "page request %zu: %" PRIu64 " bytes of a page of %" PRIu64, i,
                       r->record.n_bytes, file->config.page_bytes);
    }
    if (r->op == PAGE_WRITE && (r->record.n_tokens > file->config.max_tokens || (r->record.n_tokens && !r->tokens))) {
        return err_set(err, PERCH_E_INVALID, "page request %zu: %u tokens, a page has %u at most", i,
                       r->tokens ? r->record.n_tokens : 0, file->config.max_tokens);
    }
    return PERCH_OK;
}

/* Checks all requests, and marks their frames as busy; or marks none. */
static perch_status claim(page_file *file, const page_request *requests, size_t n, perch_error *err) {
    perch_status status = PERCH_OK;
    size_t i = 0;
    for (; i < n && status == PERCH_OK; i++) {
        status = check_request(file, &requests[i], i, err);
        if (status == PERCH_OK && requests[i].op != PAGE_SYNC) {
            file->frames[requests[i].frame].is_busy = true;
        }
    }
    if (status != PERCH_OK) {
        for (size_t k = 0; k + 1 < i; k++) {
            if (requests[k].op != PAGE_SYNC) {
                file->frames[requests[k].frame].is_busy = false;
            }
        }
    }
    return status;
}

/* The request as a thread gets it: with what the page must have, or with the generation that it gets. */
static page_job make_job(page_file *file, page_request *r) {
    page_job job = {.request = *r};
    if (r->op == PAGE_WRITE) {
        r->record.generation = ++file->generation;
        r->record.tokens_checksum = page_checksum(r->tokens, r->record.n_tokens * sizeof *r->tokens);
        job.request.record = r->record;
        file->frames[r->frame].is_valid = false;
    } else if (r->op == PAGE_READ) {
        job.request.record = file->frames[r->frame].record;
        job.page_checksum = file->frames[r->frame].page_checksum;
    }
    job.result = (page_result){.ticket = ++file->n_tickets, .op = r->op, .frame = r->frame};
    return job;
}

perch_status page_file_submit(page_file *file, page_request *requests, size_t n, uint64_t *first, perch_error *err) {
    pthread_mutex_lock(&file->lock);
    const uint32_t room = file->unused.n; /* it only grows while nobody submits */
    pthread_mutex_unlock(&file->lock);
    if (n > room) {
        return err_set(err, PERCH_E_AGAIN, "%zu page requests, and %u of %u may still be made", n, room,
                       file->config.max_requests);
    }
    perch_status status = claim(file, requests, n, err);
    if (status != PERCH_OK) {
        return status;
    }
    *first = file->n_tickets + 1;
    pthread_mutex_lock(&file->lock);
    for (size_t i = 0; i < n; i++) {
        page_job *job = list_pop(file, &file->unused);
        *job = make_job(file, &requests[i]);
        list_push(file, requests[i].op == PAGE_READ ? &file->reads : &file->writes, number_of(file, job));
    }
    pthread_cond_signal(&file->work);
    pthread_mutex_unlock(&file->lock);
    return PERCH_OK;
}

/* What a result says about its frame. */
static void note(page_file *file, const page_job *job) {
    if (job->request.op == PAGE_SYNC) {
        return;
    }
    page_frame *frame = &file->frames[job->request.frame];
    frame->is_busy = false;
    if (job->request.op == PAGE_WRITE && job->result.outcome == PAGE_OK) {
        *frame = (page_frame){.record = job->request.record, .page_checksum = job->page_checksum, .is_valid = true};
    } else if (job->result.outcome == PAGE_CORRUPT) {
        frame->is_valid = false;
    }
}

size_t page_file_poll(page_file *file, page_result *out, size_t cap) {
    size_t n = 0;
    pthread_mutex_lock(&file->lock);
    for (; n < cap && file->done.n > 0; n++) {
        page_job *job = list_pop(file, &file->done);
        note(file, job);
        out[n] = job->result;
        list_push(file, &file->unused, number_of(file, job));
    }
    pthread_mutex_unlock(&file->lock);
    return n;
}
