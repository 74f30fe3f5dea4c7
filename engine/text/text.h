/*
 * text: tokenizers and chat formats. The interface is the public one (perch_tokenizer_*, perch_chat_*); here is what
 * the engine needs beside it.
 */
#ifndef PERCH_ENGINE_TEXT_TEXT_H
#define PERCH_ENGINE_TEXT_TEXT_H

#include "base/base.h"

/*
 * The raw bytes one token adds to a text in mid-sequence (after byte-level or byte-fallback decoding; special tokens
 * give none): borrowed for the tokenizer's life. Not a whole number of UTF-8 characters in general.
 */
const char *tokenizer_piece(const perch_tokenizer *tokenizer, int32_t token, size_t *n_bytes);

/* Parses a tokenizer from memory; config_json (tokenizer_config.json) may be NULL. For tests and fuzzing. */
perch_status tokenizer_parse(const char *json, size_t n_bytes, const char *config_json, size_t n_config_bytes,
                             const char *name, perch_tokenizer **out, perch_error *err);

/* Host bytes a tokenizer holds, for the memory plan. */
uint64_t tokenizer_bytes(const perch_tokenizer *tokenizer);

#endif
