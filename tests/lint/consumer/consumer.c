/* consumer: what a host's first minutes look like, built against an installed perch alone. */
#include <perch/perch.h>

#include <stdio.h>
#include <string.h>

int main(void) {
    perch_options options;
    perch_error error = {0};
    perch_engine *engine = NULL;
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", PERCH_VERSION_MAJOR, PERCH_VERSION_MINOR, PERCH_VERSION_PATCH);
    if (strcmp(version, perch_version()) != 0) {
        fprintf(stderr, "header %s, library %s\n", version, perch_version());
        return 1;
    }
    if (perch_options_init(&options, sizeof options) != PERCH_OK ||
        perch_options_set(&options, "model.path", "/nonexistent", &error) != PERCH_OK) {
        fprintf(stderr, "options: %s\n", error.message);
        return 1;
    }
    /* A model that is not there is an error with a message, and nothing worse. */
    if (perch_engine_create(&options, &engine, &error) == PERCH_OK || engine ||
        !strstr(error.message, "/nonexistent")) {
        fprintf(stderr, "engine: %s\n", error.message);
        return 1;
    }
    perch_engine_destroy(engine);
    return 0;
}
