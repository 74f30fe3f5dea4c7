/*
 * ini: an INI file as a list of entries in the order of the file. iniparser reads the values; everything that it would
 * let pass in silence (a key twice, a key outside of any section, a value cut off) is refused here.
 */
#ifndef PERCH_ENGINE_INI_H
#define PERCH_ENGINE_INI_H

#include "base/base.h"

/* Names in lower case. All strings are the ini's. */
typedef struct ini_entry {
    const char *section;
    const char *key;   /* NULL: the line that begins the section */
    const char *value; /* NULL where key is */
} ini_entry;

typedef struct ini {
    ini_entry *entries; /* [n_entries] */
    size_t n_entries, cap;
    char *text; /* the file; names point into it */
    size_t n_bytes;
    void *values; /* iniparser's dictionary */
} ini;

/* Reads file, maybe a pipe. E_IO, E_NOMEM; E_CONFIG: "file: line 7: reason" or "file: [section] key: repeated". */
perch_status ini_load(const char *file, ini **out, perch_error *err);
void ini_destroy(ini *parsed);

#endif
