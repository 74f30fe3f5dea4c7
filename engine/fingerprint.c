/*
 * fingerprint: what model token IDs belong to, as a line of words: "llama vocab=96 … tokenizer=… weights=…". Two models with
 * the same line continue a sequence with the same tokens: the type they are computed in, the device, and how the checkpoint is
 * cut in files don't count. Of weights a sample is looked at, so that it costs milliseconds whatever the model's size. For KV they do
 * count, since it goes on to the bit only where it was computed in the same way.
 */
#include "engine/impl.h"
#include "engine/model/checkpoint.h"
#include "engine/text/text.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#define SAMPLE_BYTES ((size_t)512)

/* To be raised with every change of arithmetic that changes a bit of KV: what is kept on disks is not used again then. */
#define KV_EPOCH 1u

static uint64_t mix(uint64_t hash, const void *bytes, size_t n) { return XXH3_64bits_withSeed(bytes, n, hash); }

static uint64_t mix_number(uint64_t hash, double number) { return mix(hash, &number, sizeof number); }

/* What of the configuration decides about results and has no word of its own. */
static uint64_t hash_config(const model_config *m) {
    const rope_config *rope = &m->rope;
    const double numbers[] = {m->intermediate_size,
                              m->max_positions,
                              m->rms_eps,
                              rope->kind,
                              rope->theta,
                              rope->factor,
                              rope->low_freq_factor,
                              rope->high_freq_factor,
                              rope->beta_fast,
                              rope->beta_slow,
                              rope->attention_factor,
                              rope->truncate,
                              rope->original_max_positions,
                              m->attention_bias,
                              m->output_bias,
                              m->mlp_bias,
                              m->qk_norm,
                              m->tied_embeddings};
    uint64_t hash = mix(0, numbers, sizeof numbers);
    for (uint32_t layer = 0; layer < m->n_layers; layer++) {
        hash = mix_number(hash, model_layer_window(m, layer));
    }
    return hash;
}

/* The text that each ID stands for. */
static uint64_t hash_tokenizer(const perch_tokenizer *t) {
    uint64_t hash = 0;
    for (int32_t id = 0; id < perch_tokenizer_n_tokens(t); id++) {
        size_t n = 0;
        const char *piece = tokenizer_piece(t, id, &n);
        hash = mix(mix_number(hash, (double)n), piece, n);
    }
    return mix_number(hash, perch_tokenizer_bos(t));
}

static uint64_t hash_tensor(uint64_t hash, const safetensor *t) {
    size_t n = t->n_bytes < SAMPLE_BYTES ? t->n_bytes : SAMPLE_BYTES;
    hash = mix(hash, t->name, strlen(t->name));
    hash = mix_number(hash, (double)t->n_bytes);
    hash = mix(hash, t->data, n);
    hash = mix(hash, t->data + (t->n_bytes - n) / 2, n);
    return mix(hash, t->data + (t->n_bytes - n), n);
}

static perch_status hash_weights(const char *dir, uint64_t *hash, perch_error *err) {
    checkpoint c;
    perch_status status = checkpoint_open(dir, &c, err);
    *hash = 0;
    for (size_t i = 0; !status && i < c.n_tensors; i++) {
        *hash = hash_tensor(*hash, &c.tensors[i].tensor);
    }
    checkpoint_close(&c);
    return status;
}

perch_status fingerprint_make(const perch_engine *e, char out[STORE_MODEL_CAP], perch_error *err) {
    const model_config *m = &e->config;
    const perch_options *o = &e->options;
    char weights[40] = "", tokenizer[24] = "none";
    uint64_t hash;
    if (o->weights == PERCH_WEIGHTS_RANDOM) {
        snprintf(weights, sizeof weights, "random:%llu", (unsigned long long)o->random_seed);
    } else {
        perch_status status = hash_weights(o->path, &hash, err);
        if (status) {
            return status;
        }
        snprintf(weights, sizeof weights, "%016llx", (unsigned long long)hash);
    }
    if (e->tokenizer) {
        snprintf(tokenizer, sizeof tokenizer, "%016llx", (unsigned long long)hash_tokenizer(e->tokenizer));
    }
    snprintf(
        out, STORE_MODEL_CAP,
        "architecture=%s vocab_size=%u n_layers=%u hidden_size=%u n_heads=%u n_kv_heads=%u head_dim=%u config=%016llx "
        "tokenizer=%s weights=%s",
        model_arch_name(m->arch), m->vocab_size, m->n_layers, m->hidden_size, m->n_heads, m->n_kv_heads, m->head_dim,
        (unsigned long long)hash_config(m), tokenizer, weights);
    return PERCH_OK;
}

/* The first word that is not the same: its length in both. False where there is none. */
static bool differing_word(const char **a, size_t *a_bytes, const char **b, size_t *b_bytes) {
    for (;;) {
        *a_bytes = strcspn(*a, " ");
        *b_bytes = strcspn(*b, " ");
        if (*a_bytes != *b_bytes || memcmp(*a, *b, *a_bytes) != 0) {
            return true;
        }
        if (!(*a)[*a_bytes]) {
            return (*b)[*b_bytes] != 0;
        }
        *a += *a_bytes + 1;
        *b += *b_bytes + ((*b)[*b_bytes] != 0);
    }
}

perch_status fingerprint_check(const perch_engine *e, const char *of, perch_error *err) {
    const char *here = e->model_text;
    size_t n, n_here;
    if (!differing_word(&of, &n, &here, &n_here)) {
        return PERCH_OK;
    }
    return err_set(err, PERCH_E_MODEL, "the sequence is of another model: %.*s, not %.*s", (int)n, of, (int)n_here,
                   here);
}

/* When the weights' files were written, and how long they are: a few rows that were changed are not in the sample. */
static perch_status hash_file_times(const perch_options *o, uint64_t *hash, perch_error *err) {
    static const char ending[] = ".safetensors";
    *hash = 0;
    if (o->weights != PERCH_WEIGHTS_FILE) {
        return PERCH_OK;
    }
    DIR *dir = opendir(o->path);
    if (!dir) {
        return errno == ENOMEM ? err_nomem(err, "the list of a model's files")
                               : err_set(err, PERCH_E_IO, "[model] path: %s: %s", o->path, strerror(errno));
    }
    for (struct dirent *at; (at = readdir(dir));) {
        struct stat file;
        size_t n = strlen(at->d_name);
        if (n >= sizeof ending && strcmp(at->d_name + n + 1 - sizeof ending, ending) == 0 &&
            fstatat(dirfd(dir), at->d_name, &file, 0) == 0) {
            const int64_t numbers[] = {file.st_size, file.st_mtim.tv_sec, file.st_mtim.tv_nsec};
            *hash += mix(mix(0, at->d_name, n), numbers, sizeof numbers); /* in any order */
        }
    }
    closedir(dir);
    return PERCH_OK;
}

perch_status fingerprint_kv_key(const perch_engine *e, uint8_t key[PAGE_KEY_BYTES], perch_error *err) {
    char text[STORE_MODEL_CAP + 512];
    const perch_options *o = &e->options;
    const char *backend = e->backend->describe(e->device);
    uint64_t files;
    perch_status status = hash_file_times(o, &files, err);
    bool gpu =
        e->backend->async != NULL; /* there the driver counts, and for how many rows products were chosen (ADR 23) */
    snprintf(text, sizeof text,
             "%s dtype=%s weight_format=%s group_bytes=%llu files=%016llx deterministic=%d step=%u perch=%s.%u by=%.*s",
             e->model_text, e->plan.dtype, e->plan.weight_format, (unsigned long long)e->plan.group_bytes,
             (unsigned long long)files, o->deterministic == PERCH_ON, gpu ? o->max_step_tokens : 0, perch_version(),
             KV_EPOCH, gpu ? (int)strlen(backend) : (int)strcspn(backend, ","), backend);
    for (uint64_t half = 0; half < 2; half++) {
        XXH128_canonical_t bytes;
        XXH128_canonicalFromHash(&bytes, XXH3_128bits_withSeed(text, strlen(text), half));
        memcpy(key + half * sizeof bytes, &bytes, sizeof bytes);
    }
    return status;
}
