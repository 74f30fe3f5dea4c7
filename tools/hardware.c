/*
 * hardware: what a benchmark ran on, as Linux tells it.
 */
#include "hardware.h"

#include "json_out.h"

#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* The value of the first line "name : value" of a file, or "". */
static void find_line(const char *path, const char *name, char *out, size_t cap) {
    char line[512];
    out[0] = '\0';
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return;
    }
    while (out[0] == '\0' && fgets(line, sizeof(line), file) != NULL) {
        const char *colon = strchr(line, ':');
        if (colon == NULL || strncmp(line, name, strlen(name)) != 0) {
            continue;
        }
        colon++;
        while (isspace((unsigned char)*colon)) {
            colon++;
        }
        snprintf(out, cap, "%.*s", (int)strcspn(colon, "\n"), colon);
    }
    fclose(file);
}

json_t *hardware_json(void) {
    char cpu[256];
    find_line("/proc/cpuinfo", "model name", cpu, sizeof(cpu));
    struct utsname system;
    if (uname(&system) != 0) {
        memset(&system, 0, sizeof(system));
    }
    cpu_set_t usable;
    int n_usable = sched_getaffinity(0, sizeof(usable), &usable) == 0 ? CPU_COUNT(&usable) : 0;
    long pages = sysconf(_SC_PHYS_PAGES);
    long page_bytes = sysconf(_SC_PAGESIZE);
    const char *name = cpu[0] != '\0' ? cpu : system.machine;
    return json_pack("{s:o, s:I, s:I, s:I, s:s++}", "cpu", json_text(name, strlen(name)), "cores",
                     (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "usable_cores", (json_int_t)n_usable, "memory_bytes",
                     (json_int_t)pages * (json_int_t)page_bytes, "system", system.sysname, " ", system.release);
}
