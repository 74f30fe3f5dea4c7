/*
 * chat: the formats in which models were taught to converse. perch does not run Jinja: it knows the usual formats and
 * tells by characteristic pieces of a model's template which of them it is.
 */
#ifndef PERCH_ENGINE_TEXT_CHAT_H
#define PERCH_ENGINE_TEXT_CHAT_H

#include "engine/text/jnode.h"

enum chat_kind {
    CHAT_NONE,    /* the model has no template */
    CHAT_UNKNOWN, /* it has one that is none of these */
    CHAT_CHATML,
    CHAT_LLAMA2,
    CHAT_LLAMA3,
    CHAT_MISTRAL,
    CHAT_PLAIN
};

struct chat_format {
    enum chat_kind kind;
    /* CHATML: the system message that the template puts where none is given. LLAMA3: what it puts before every one. */
    char *system; /* [system_bytes], or NULL */
    size_t system_bytes;
    /* MISTRAL; static */
    const char *open, *close, *answer; /* before and behind a question, before an answer */
    bool trim;                         /* white space around answers is taken off */
};

/* Recognizes a template; *out is to be freed with chat_free. E_NOMEM. */
perch_status chat_detect(struct jtext text, struct chat_format *out, perch_error *err);
void chat_free(struct chat_format *format);

#endif
