/*
 * byte_level: the alphabet of byte-level tokenizers. A byte that is a printable Latin-1 character stands for itself;
 * the others (33 controls and the space, DEL to NBSP, the soft hyphen) are the code points from U+0100 on, in their
 * order.
 */
#ifndef PERCH_ENGINE_TEXT_BYTE_LEVEL_H
#define PERCH_ENGINE_TEXT_BYTE_LEVEL_H

#include <stdint.h>

static inline uint32_t byte_level_code(unsigned char byte) {
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121u + (byte - 0x7Fu);
    }
    return byte == 0xAD ? 0x143u : byte;
}

/* The byte that a code point stands for, or -1. */
static inline int byte_level_byte(uint32_t code) {
    if (code >= 0x100) {
        return code <= 0x120   ? (int)(code - 0x100)
               : code <= 0x142 ? (int)(code - 0x121 + 0x7F)
               : code == 0x143 ? 0xAD
                               : -1;
    }
    return code <= 0x20 || (code >= 0x7F && code <= 0xA0) || code == 0xAD ? -1 : (int)code;
}

#endif
