/* utf8: well-formedness by Unicode's table 3-7, white space, growing text. */
#include "engine/text/utf8.h"

#include <string.h>

int utf8_step(const char *text, size_t n, uint32_t *code) {
    const unsigned char *b = (const unsigned char *)text;
    if (n == 0) {
        return 0;
    }
    if (b[0] < 0x80) {
        *code = b[0];
        return 1;
    }
    if (b[0] < 0xC2 || b[0] > 0xF4) {
        return -1;
    }
    /* The second byte's range depends on the first: no overlong forms, no surrogates, nothing above U+10FFFF. */
    unsigned low = b[0] == 0xE0 ? 0xA0 : b[0] == 0xF0 ? 0x90 : 0x80;
    unsigned high = b[0] == 0xED ? 0x9F : b[0] == 0xF4 ? 0x8F : 0xBF;
    int length = b[0] < 0xE0 ? 2 : b[0] < 0xF0 ? 3 : 4;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n) {
            return 0;
        }
        if (b[i] < low || b[i] > high) {
            return -i;
        }
        low = 0x80;
        high = 0xBF;
    }
    *code = utf8_code(text);
    return length;
}

size_t utf8_encode(uint32_t code, char *out) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

bool utf8_is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

perch_status buf_reserve(struct text_buf *buf, size_t more, perch_error *err) {
    size_t need;
    if (!add_size(buf->n, more, &need)) {
        return err_nomem(err, "a text");
    }
    void *data = buf->data;
    perch_status status = array_reserve(&data, &buf->cap, need, 1, err);
    buf->data = data;
    return status;
}

perch_status buf_append(struct text_buf *buf, const char *text, size_t n, perch_error *err) {
    if (n > buf->cap - buf->n) {
        perch_status status = buf_reserve(buf, n, err);
        if (status != PERCH_OK) {
            return status;
        }
    }
    if (n) {
        memcpy(buf->data + buf->n, text, n);
        buf->n += n;
    }
    return PERCH_OK;
}
