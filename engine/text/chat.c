/* chat: which format a template is, and messages written in it. */
#include "engine/text/chat.h"
#include "engine/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#define FORMATS "chatml, llama2, llama3, mistral, plain"

/* As the first models of the family were taught. */
static const struct chat_format mistral = {.kind = CHAT_MISTRAL, .open = "[INST] ", .close = " [/INST]", .answer = " "};

void chat_free(struct chat_format *format) {
    free(format->system);
    *format = (struct chat_format){0};
}

/* ---------------------------------------------------- recognition -- */

static const char *find(struct jtext text, const char *piece) {
    return text.n ? memmem(text.data, text.n, piece, strlen(piece)) : NULL;
}

static bool has(struct jtext text, const char *piece) { return find(text, piece) != NULL; }

static struct jtext behind(struct jtext text, const char *at) {
    return (struct jtext){at, text.n - (size_t)(at - text.data)};
}

/* Copies text, a part of a string in a template, with its escapes resolved. */
static perch_status set_system(struct chat_format *out, const char *prefix, struct jtext text, perch_error *err) {
    size_t n = strlen(prefix);
    out->system = malloc(n + text.n + 1);
    if (!out->system) {
        return err_nomem(err, "a chat format");
    }
    memcpy(out->system, prefix, n);
    for (size_t i = 0; i < text.n; i++) {
        char c = text.data[i];
        if (c == '\\' && i + 1 < text.n) {
            c = text.data[++i];
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        out->system[n++] = c;
    }
    out->system_bytes = n;
    return PERCH_OK;
}

/*
 * The end of the fixed text that begins at `from` and goes to `stop`, or NULL if something else comes in between: the
 * end of the string that it is in (quote is what opened it), or an expression where it is in none.
 */
static const char *fixed_text(struct jtext from, char quote, const char *stop) {
    size_t n = strlen(stop);
    for (size_t i = 0; i < from.n; i++) {
        if (from.n - i >= n && memcmp(from.data + i, stop, n) == 0) {
            return from.data + i;
        }
        if (from.data[i] == '\\') {
            i++;
        } else if (quote ? from.data[i] == quote : from.data[i] == '{') {
            return NULL;
        }
    }
    return NULL;
}

/* ChatML templates may hold a system message for conversations that have none: a fixed text between the marks. */
static perch_status detect_default_system(struct jtext text, struct chat_format *out, perch_error *err) {
    static const char mark[] = "<|im_start|>system";
    for (const char *at; (at = find(text, mark)) != NULL;) {
        char quote = at > text.data && (at[-1] == '\'' || at[-1] == '"') ? at[-1] : '\0';
        text = behind(text, at + sizeof mark - 1);
        size_t newline = text.n && *text.data == '\n' ? 1 : text.n > 1 && memcmp(text.data, "\\n", 2) == 0 ? 2 : 0;
        struct jtext body = behind(text, text.data + newline);
        const char *end = newline ? fixed_text(body, quote, "<|im_end|>") : NULL;
        if (end && end > body.data) {
            return set_system(out, "", (struct jtext){body.data, (size_t)(end - body.data)}, err);
        }
    }
    return PERCH_OK;
}

/*
 * Llama 3.1 and later open every conversation with two dates: the one up to which the model knows the world, and
 * today's, which perch takes from the template's own default, so that a prompt does not change overnight.
 */
static perch_status detect_dates(struct jtext text, struct chat_format *out, perch_error *err) {
    static const char mark[] = "Cutting Knowledge Date: ", today[] = "date_string = \"";
    const char *known = find(text, mark), *date = find(text, today);
    if (!known) {
        return PERCH_OK;
    }
    const char *known_end = fixed_text(behind(text, known), '"', "\\n");
    const char *date_end = date ? fixed_text(behind(text, date + sizeof today - 1), '\0', "\"") : NULL;
    if (!known_end || !date_end) {
        out->kind = CHAT_UNKNOWN;
        return PERCH_OK;
    }
    struct text_buf all = {0};
    perch_status status = buf_append(&all, known, (size_t)(known_end - known), err);
    if (status == PERCH_OK) {
        status = buf_append(&all, "\nToday Date: ", 13, err);
    }
    if (status == PERCH_OK) {
        date += sizeof today - 1;
        status = buf_append(&all, date, (size_t)(date_end - date), err);
    }
    if (status == PERCH_OK) {
        status = buf_append(&all, "\n\n", 2, err);
    }
    if (status != PERCH_OK) {
        free(all.data);
        return status;
    }
    out->system = all.data;
    out->system_bytes = all.n;
    return PERCH_OK;
}

/* The family's templates differ in where they put spaces. */
static void detect_mistral(struct jtext text, struct chat_format *out) {
    *out = mistral;
    out->open = has(text, "' [INST] '") || has(text, "\" [INST] \"") ? " [INST] "
                : has(text, "[INST] ")                               ? "[INST] "
                                                                     : "[INST]";
    out->close = has(text, " [/INST]") ? " [/INST]" : "[/INST]";
    out->answer = has(text, "' ' + message") || has(text, "\" \" + message") ? " " : "";
    out->trim = has(text, "|trim") || has(text, "| trim") || has(text, ".strip()");
}

perch_status chat_detect(struct jtext text, struct chat_format *out, perch_error *err) {
    *out = (struct chat_format){.kind = CHAT_UNKNOWN};
    if (has(text, "<|im_start|>") && has(text, "<|im_end|>") && !has(text, "<|im_sep|>")) {
        out->kind = CHAT_CHATML;
        return detect_default_system(text, out, err);
    }
    if (has(text, "<|start_header_id|>") && has(text, "<|eot_id|>")) {
        out->kind = CHAT_LLAMA3;
        return detect_dates(text, out, err);
    }
    if (has(text, "[INST]") && has(text, "<<SYS>>")) {
        out->kind = CHAT_LLAMA2;
    } else if (has(text, "[INST]") && has(text, "[/INST]")) {
        detect_mistral(text, out);
    }
    return PERCH_OK;
}

/* ------------------------------------------------------ rendering -- */

struct rendering {
    const perch_tokenizer *t;
    const struct chat_format *format;
    const perch_chat_message *messages; /* [n] */
    size_t n;
    bool first;
    struct text_sink sink;
    perch_error *err;
};

static void put_bytes(struct rendering *r, const char *text, size_t n) {
    struct text_sink *sink = &r->sink;
    if (sink->n < sink->cap) {
        memcpy(sink->text + sink->n, text, n < sink->cap - sink->n ? n : sink->cap - sink->n);
    }
    sink->n += n;
}

static void put(struct rendering *r, const char *text) { put_bytes(r, text, strlen(text)); }

/* Without the white space at its end, and at its start. */
static struct jtext trim(const char *content) {
    size_t start = 0, end = strlen(content);
    uint32_t code;
    for (int step; (step = utf8_step(content + start, end - start, &code)) > 0 && utf8_is_space(code);) {
        start += (size_t)step;
    }
    while (end > start) {
        size_t before = utf8_before(content, end);
        if (before < start || utf8_step(content + before, end - before, &code) <= 0 || !utf8_is_space(code)) {
            break;
        }
        end = before;
    }
    return (struct jtext){content + start, end - start};
}

static void put_trimmed(struct rendering *r, const char *content) {
    struct jtext text = trim(content);
    put_bytes(r, text.data, text.n);
}

/* A token as the tokenizer writes it, or as it is usually written. */
static void put_token(struct rendering *r, int32_t id, const char *usual) {
    struct jtext text = id == VOCAB_NONE ? (struct jtext){usual, strlen(usual)} : vocab_text(&r->t->vocab, id);
    put_bytes(r, text.data, text.n);
}

static bool is_role(const struct rendering *r, size_t i, const char *role) {
    return i < r->n && strcmp(r->messages[i].role, role) == 0;
}

static perch_status refuse_role(const struct rendering *r, size_t i, const char *why) {
    return err_set(r->err, PERCH_E_INVALID, "messages[%zu].role: \"%.40s\": %s", i, r->messages[i].role, why);
}

/* An answer that was generated before ends with its end-of-turn token, behind which the template has a newline. */
static perch_status render_chatml(struct rendering *r) {
    if (!r->first) {
        put(r, "\n");
    } else if (r->format->system && !is_role(r, 0, "system")) {
        put(r, "<|im_start|>system\n");
        put_bytes(r, r->format->system, r->format->system_bytes);
        put(r, "<|im_end|>\n");
    }
    for (size_t i = 0; i < r->n; i++) {
        put(r, "<|im_start|>");
        put(r, r->messages[i].role);
        put(r, "\n");
        put(r, r->messages[i].content);
        put(r, "<|im_end|>\n");
    }
    put(r, "<|im_start|>assistant\n");
    return PERCH_OK;
}

static void put_header(struct rendering *r, const char *role) {
    put(r, "<|start_header_id|>");
    put(r, role);
    put(r, "<|end_header_id|>\n\n");
}

static perch_status render_llama3(struct rendering *r) {
    size_t from = 0;
    if (r->first && r->format->system) {
        put_header(r, "system");
        put_bytes(r, r->format->system, r->format->system_bytes);
        if (is_role(r, 0, "system")) {
            put_trimmed(r, r->messages[from++].content);
        }
        put(r, "<|eot_id|>");
    }
    for (size_t i = from; i < r->n; i++) {
        put_header(r, r->messages[i].role);
        put_trimmed(r, r->messages[i].content);
        put(r, "<|eot_id|>");
    }
    put_header(r, "assistant");
    return PERCH_OK;
}

/* In these formats a conversation is questions and answers by turns, and ends with a question. */
static perch_status check_turns(const struct rendering *r, size_t from) {
    for (size_t i = from; i < r->n; i++) {
        if (!is_role(r, i, (i - from) % 2 ? "assistant" : "user")) {
            return refuse_role(r, i,
                               from == 0 && is_role(r, i, "system")
                                   ? "the chat format has no place for it here"
                                   : "in this chat format user and assistant take turns");
        }
    }
    return (r->n - from) % 2 ? PERCH_OK
                             : err_set(r->err, PERCH_E_INVALID, "messages: in this chat format the last is the user's");
}

/* BOS stands before every question; before the very first one PERCH_ENCODE_BOS puts it. */
static perch_status render_llama2(struct rendering *r) {
    size_t from = r->first && is_role(r, 0, "system") ? 1 : 0;
    perch_status status = check_turns(r, from);
    for (size_t i = from; i < r->n && status == PERCH_OK; i++) {
        if (is_role(r, i, "assistant")) {
            put(r, " ");
            put_trimmed(r, r->messages[i].content);
            put(r, " ");
            put_token(r, r->t->eos, "</s>");
            continue;
        }
        if (i > from || !r->first) {
            put_token(r, r->t->bos, "<s>");
        }
        put(r, "[INST] ");
        if (i == from && from) {
            put(r, "<<SYS>>\n");
            put(r, r->messages[0].content);
            put(r, "\n<</SYS>>\n\n");
            /* The template strips the whole, which begins with the mark. */
            struct jtext text = trim(r->messages[i].content);
            put_bytes(r, r->messages[i].content, (size_t)(text.data + text.n - r->messages[i].content));
        } else {
            put_trimmed(r, r->messages[i].content);
        }
        put(r, " [/INST]");
    }
    return status;
}

static perch_status render_mistral(struct rendering *r) {
    perch_status status = check_turns(r, 0);
    for (size_t i = 0; i < r->n && status == PERCH_OK; i++) {
        bool question = is_role(r, i, "user");
        put(r, question ? r->format->open : r->format->answer);
        if (!question && r->format->trim) {
            put_trimmed(r, r->messages[i].content);
        } else {
            put(r, r->messages[i].content);
        }
        if (question) {
            put(r, r->format->close);
        } else {
            put_token(r, r->t->eos, "</s>");
        }
    }
    return status;
}

/* For models that never saw a chat: each message is a line, and the answer the next one. */
static perch_status render_plain(struct rendering *r) {
    put(r, r->first ? "" : "\n");
    for (size_t i = 0; i < r->n; i++) {
        put(r, r->messages[i].content);
        put(r, "\n");
    }
    return PERCH_OK;
}

static perch_status choose(const perch_tokenizer *t, const char *name, struct chat_format *out, perch_error *err) {
    static const struct {
        const char *name;
        enum chat_kind kind;
    } names[] = {{"chatml", CHAT_CHATML}, {"llama2", CHAT_LLAMA2}, {"llama3", CHAT_LLAMA3}, {"plain", CHAT_PLAIN}};
    *out = t->chat;
    if (!name) {
        switch (t->chat.kind) {
        case CHAT_NONE:
            return err_set(err, PERCH_E_UNSUPPORTED, "the model has no chat template; name a format: " FORMATS);
        case CHAT_UNKNOWN:
            return err_set(err, PERCH_E_UNSUPPORTED,
                           "the model's chat template is none that perch knows; name a format: " FORMATS);
        default:
            return PERCH_OK;
        }
    }
    *out = mistral;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i].name) == 0) {
            *out = (struct chat_format){.kind = names[i].kind};
            return PERCH_OK;
        }
    }
    return strcmp(name, "mistral") == 0 ? PERCH_OK
                                        : err_set(err, PERCH_E_INVALID, "format: \"%.40s\" is none of " FORMATS, name);
}

static perch_status check_messages(const struct rendering *r) {
    if (r->n == 0) {
        return err_set(r->err, PERCH_E_INVALID, "n: there are no messages");
    }
    for (size_t i = 0; i < r->n; i++) {
        if (!r->messages[i].role || !r->messages[i].content) {
            return err_set(r->err, PERCH_E_INVALID, "messages[%zu].%s is NULL", i,
                           r->messages[i].role ? "content" : "role");
        }
        if (!is_role(r, i, "system") && !is_role(r, i, "user") && !is_role(r, i, "assistant")) {
            return refuse_role(r, i, "is none of system, user, assistant");
        }
    }
    return PERCH_OK;
}

static perch_status render(struct rendering *r) {
    switch (r->format->kind) {
    case CHAT_CHATML:
        return render_chatml(r);
    case CHAT_LLAMA2:
        return render_llama2(r);
    case CHAT_LLAMA3:
        return render_llama3(r);
    case CHAT_MISTRAL:
        return render_mistral(r);
    default:
        return render_plain(r);
    }
}

perch_status perch_chat_render(const perch_tokenizer *tokenizer, const char *format, const perch_chat_message *messages,
                               size_t n, int first, char *text, size_t cap, size_t *n_bytes, perch_error *err) {
    if (!tokenizer || !n_bytes || (!messages && n) || (!text && cap)) {
        return err_set(err, PERCH_E_INVALID, "%s is NULL",
                       !tokenizer       ? "tokenizer"
                       : !n_bytes       ? "n_bytes"
                       : !messages && n ? "messages"
                                        : "text");
    }
    struct chat_format chosen;
    struct rendering r = {.t = tokenizer,
                          .format = &chosen,
                          .messages = messages,
                          .n = n,
                          .first = first != 0,
                          .sink = {.text = text, .cap = cap},
                          .err = err};
    *n_bytes = 0;
    perch_status status = choose(tokenizer, format, &chosen, err);
    if (status == PERCH_OK) {
        status = check_messages(&r);
    }
    if (status == PERCH_OK) {
        status = render(&r);
    }
    if (cap) {
        text[status == PERCH_OK ? (r.sink.n < cap ? r.sink.n : cap - 1) : 0] = 0;
    }
    if (status != PERCH_OK) {
        return status;
    }
    *n_bytes = r.sink.n;
    return r.sink.n < cap
               ? PERCH_OK
               : err_set(err, PERCH_E_BUFFER, "the text has %zu bytes and a 0, more than the %zu there is room for",
                         r.sink.n, cap);
}
