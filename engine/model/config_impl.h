/* config_impl: what the files of model_config share. */
#ifndef PERCH_ENGINE_MODEL_CONFIG_IMPL_H
#define PERCH_ENGINE_MODEL_CONFIG_IMPL_H

#include "engine/model/config.h"
#include "engine/model/fields.h"

/* Bounds of a model. Any product that the model computes from them, times any token count, fits 64 bits. */
#define CONFIG_MAX_HIDDEN (1u << 20)
#define CONFIG_MAX_INTERMEDIATE (1u << 22)
#define CONFIG_MAX_HEADS 4096u
#define CONFIG_MAX_HEAD_DIM 1024u
#define CONFIG_MAX_VOCAB (1u << 24)
#define CONFIG_MAX_POSITIONS (1u << 30)

/* Everything about RoPE, from the root object; max_positions and head_dim are read already. */
perch_status config_rope_read(const fields *root, model_config *out);

/* Sampling defaults, from generation_config.json or, for old models, from config.json itself. */
perch_status config_generation_read(const fields *f, model_config *out);

/* Adds eos_token_id (an integer or a list) to out->eos, and sets out->bos where it is still -1. vocab_size is read already. */
perch_status config_token_ids_read(const fields *f, model_config *out);

/* The keys that the two functions above read or that cannot matter to them; NULL-terminated. */
extern const char *const config_generation_keys[];

#endif
