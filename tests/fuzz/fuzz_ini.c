/*
 * fuzz_ini: any bytes as an INI file. A load either fails with a message and leaves the options alone, or leaves
 * options whose values are all in range and survive being written and set again.
 */
#include "engine/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A violation ends the fuzzing run; the input that led here is the finding. */
static void expect(bool condition) {
    if (!condition) {
        abort();
    }
}

/* A host that knows [bench] alone. */
static perch_status on_key(void *user, const char *section, const char *key, const char *value, perch_error *err) {
    size_t *bytes = user;
    *bytes += strlen(key) + strlen(value);
    (void)err;
    return strcmp(section, "bench") == 0 ? PERCH_OK : PERCH_E_NOT_FOUND;
}

static void check_round_trip(const perch_options *options) {
    const perch_option_info *info;
    perch_options copy = *options;
    for (size_t i = 0; (info = perch_options_key(i)); i++) {
        char name[128], before[PERCH_PATH_CAP], after[PERCH_PATH_CAP];
        snprintf(name, sizeof name, "%s.%s", info->section, info->key);
        expect(perch_options_get(options, name, before, sizeof before, NULL) == PERCH_OK);
        expect(perch_options_set(&copy, name, before, NULL) == PERCH_OK);
        expect(perch_options_get(&copy, name, after, sizeof after, NULL) == PERCH_OK);
        expect(strcmp(before, after) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char file[32];
    size_t host_bytes = 0;
    perch_options options, before;
    perch_error err = {PERCH_OK, ""};
    const perch_ini_host host = {on_key, &host_bytes};
    int fd = memfd_create("input.ini", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) != 0) {
        close(fd);
        return 0;
    }
    snprintf(file, sizeof file, "/proc/self/fd/%d", fd);
    expect(perch_options_init(&options, sizeof options) == PERCH_OK);
    before = options;
    perch_status status = perch_options_load_ini(&options, file, &host, &err);
    expect(status == err.status && (status == PERCH_OK) == (err.message[0] == 0));
    if (status) {
        expect(memcmp(&options, &before, sizeof options) == 0);
    } else {
        check_round_trip(&options);
        /* All values are in range: what is left to object to are the rules across keys. */
        status = options_check(&options, &err);
        expect(status == PERCH_OK || strstr(err.message, "[model] path: not set") ||
               strstr(err.message, "is less than"));
    }
    close(fd);
    return 0;
}
