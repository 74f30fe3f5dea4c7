/* checkpoint: all tensors of a model directory by name, whether they stand in one file or in many. */
#ifndef PERCH_ENGINE_MODEL_CHECKPOINT_H
#define PERCH_ENGINE_MODEL_CHECKPOINT_H

#include "engine/model/safetensors.h"

typedef struct checkpoint_tensor {
    safetensor tensor;
    uint32_t file; /* index into names and files */
    bool is_used;  /* for the caller */
} checkpoint_tensor;

typedef struct checkpoint {
    checkpoint_tensor *tensors; /* [n_tensors] by name */
    size_t n_tensors;
    safetensors *files;      /* [n_files] */
    const char **file_names; /* [n_files] within the directory */
    size_t n_files;
    jv_doc index; /* of a sharded one: holds the names */
} checkpoint;

/*
 * Opens DIR/model.safetensors, or else the files that DIR/model.safetensors.index.json names, which must be in DIR itself
 * and hold exactly the tensors that the index says. Nothing is read but headers. E_NOT_FOUND: neither is there; E_IO, E_FORMAT,
 * E_UNSUPPORTED, E_NOMEM. On failure *out is all zero.
 */
perch_status checkpoint_open(const char *dir, checkpoint *out, perch_error *err);
void checkpoint_close(checkpoint *c);

/* The tensor of that name, or NULL. */
checkpoint_tensor *checkpoint_find(const checkpoint *c, const char *name);

/* Gives back the memory by which n_bytes of a mapped tensor's file became resident. */
void checkpoint_drop(const checkpoint *c, const checkpoint_tensor *t, const uint8_t *from, size_t n_bytes);

/* Whether the checkpoint stores F32: by its embedding, else its first tensor. false where the directory has no checkpoint. */
perch_status checkpoint_probe_f32(const char *dir, bool *out, perch_error *err);

#endif
