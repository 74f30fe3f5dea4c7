/*
 * How much memory this process may still take: the least of what the kernel calls available, what each memory control group
 * above the process has left (version 1 and 2), and RLIMIT_AS and RLIMIT_DATA. File pages that a group is charged for count
 * as free, as in MemAvailable: the kernel drops them before it runs out.
 */
#include "base/base.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LINE_CAP 4096

/* A control group hierarchy of the memory controller. */
typedef struct hierarchy {
    bool v2;
    char path[LINE_CAP];  /* of this process's group, "/a/b" */
    char mount[LINE_CAP]; /* where the hierarchy is mounted; "" if nowhere */
    char root[LINE_CAP];  /* which group the mount shows as its top */
} hierarchy;

static bool copy_text(char *to, const char *from, size_t length) {
    if (length >= LINE_CAP) {
        return false;
    }
    memcpy(to, from, length);
    to[length] = '\0';
    return true;
}

static FILE *open_under(const char *root, const char *path, const char *name) {
    char full[3 * LINE_CAP];
    int length = snprintf(full, sizeof full, "%s%s%s", root, path, name);
    return length > 0 && (size_t)length < sizeof full ? fopen(full, "re") : NULL;
}

/* The number behind `key ` or `key: ` at the beginning of a line of a file; adds it to *sum. */
static bool add_field(const char *root, const char *path, const char *name, const char *key, uint64_t *sum) {
    FILE *file = open_under(root, path, name);
    if (file == NULL) {
        return false;
    }
    char line[LINE_CAP];
    size_t length = strlen(key);
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, length) == 0 && (line[length] == ' ' || line[length] == ':')) {
            char *end;
            uint64_t value = strtoull(line + length + 1, &end, 10);
            found = end != line + length + 1;
            *sum += found ? value : 0;
        }
    }
    fclose(file);
    return found;
}

/* A file that is one number. "max" and anything else that is none: false. */
static bool read_number(const char *root, const char *path, const char *name, uint64_t *out) {
    FILE *file = open_under(root, path, name);
    bool found = file != NULL && fscanf(file, "%" SCNu64, out) == 1;
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static void lower(uint64_t *least, uint64_t limit, uint64_t used) {
    uint64_t left = limit > used ? limit - used : 0;
    *least = left < *least ? left : *least;
}

/* One group: what its limits leave. */
static void group_left(const char *root, const char *path, bool v2, uint64_t *least) {
    uint64_t used;
    if (!read_number(root, path, v2 ? "/memory.current" : "/memory.usage_in_bytes", &used)) {
        return;
    }
    uint64_t files = 0;
    (void)add_field(root, path, "/memory.stat", v2 ? "inactive_file" : "total_inactive_file", &files);
    (void)add_field(root, path, "/memory.stat", v2 ? "active_file" : "total_active_file", &files);
    used = used > files ? used - files : 0;
    uint64_t limit;
    if (read_number(root, path, v2 ? "/memory.max" : "/memory.limit_in_bytes", &limit)) {
        lower(least, limit, used);
    }
    if (v2 && read_number(root, path, "/memory.high", &limit)) { /* past it the group is throttled to a crawl */
        lower(least, limit, used);
    }
}

/* Every group from the process's up to the top that the mount shows. A path outside of what is mounted: the top alone. */
static void hierarchy_left(const char *root, const hierarchy *h, uint64_t *least) {
    if (h->mount[0] == '\0') {
        return;
    }
    const char *below = h->path;
    size_t root_length = strcmp(h->root, "/") == 0 ? 0 : strlen(h->root);
    if (strncmp(below, h->root, root_length) == 0 && (below[root_length] == '/' || below[root_length] == '\0')) {
        below += root_length;
    }
    char path[2 * LINE_CAP];
    snprintf(path, sizeof path, "%s%s", h->mount, strcmp(below, "/") == 0 ? "" : below);
    for (;;) {
        group_left(root, path, h->v2, least);
        char *slash = strrchr(path, '/');
        if (strlen(path) <= strlen(h->mount) || slash == NULL) {
            return;
        }
        *slash = '\0';
    }
}

/* Whether a word is in a comma-separated list that ends at `end`. */
static bool list_has(const char *list, const char *end, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list; at < end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *stop = comma != NULL ? comma : end;
        if ((size_t)(stop - at) == length && memcmp(at, word, length) == 0) {
            return true;
        }
        at = stop + 1;
    }
    return false;
}

/* /proc/self/cgroup: lines "number:controllers:path"; version 2 has no controllers. */
static bool find_path(const char *root, hierarchy *h) {
    FILE *file = open_under(root, "/proc/self/cgroup", "");
    if (file == NULL) {
        return false;
    }
    char line[LINE_CAP];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path != NULL) {
            bool wanted = h->v2 ? path == controllers + 1 : list_has(controllers + 1, path, "memory");
            found = wanted && copy_text(h->path, path + 1, strlen(path + 1));
        }
    }
    fclose(file);
    return found;
}

/*
 * /proc/self/mountinfo: "id parent device root mount options [tags] - type source superoptions". Paths with spaces are
 * escaped there and not looked for.
 */
static bool find_mount(const char *root, hierarchy *h) {
    FILE *file = open_under(root, "/proc/self/mountinfo", "");
    if (file == NULL) {
        return false;
    }
    char line[LINE_CAP];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        char *tail = strstr(line, " - ");
        char mount_root[LINE_CAP], mount[LINE_CAP], type[LINE_CAP], options[LINE_CAP];
        if (tail == NULL || sscanf(line, "%*s %*s %*s %4095s %4095s", mount_root, mount) != 2 ||
            sscanf(tail + 3, "%4095s %*s %4095s", type, options) != 2) {
            continue;
        }
        bool wanted = h->v2 ? strcmp(type, "cgroup2") == 0
                            : strcmp(type, "cgroup") == 0 && list_has(options, options + strlen(options), "memory");
        if (wanted) {
            found = copy_text(h->root, mount_root, strlen(mount_root)) && copy_text(h->mount, mount, strlen(mount));
        }
    }
    fclose(file);
    return found;
}

/* RLIMIT_AS bounds all of the address space, RLIMIT_DATA private writable memory. */
static void rlimits_left(const char *root, uint64_t *least) {
    FILE *file = open_under(root, "/proc/self/statm", "");
    uint64_t size = 0, data = 0;
    bool found = file != NULL && fscanf(file, "%" SCNu64 " %*s %*s %*s %*s %" SCNu64, &size, &data) == 2;
    if (file != NULL) {
        fclose(file);
    }
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct rlimit limit;
    if (found && getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        lower(least, limit.rlim_cur, size * page);
    }
    if (found && getrlimit(RLIMIT_DATA, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        lower(least, limit.rlim_cur, data * page);
    }
}

perch_status host_free_bytes(const char *root, uint64_t *out, perch_error *err) {
    *out = 0;
    uint64_t kilobytes = 0;
    if (!add_field(root, "/proc/meminfo", "", "MemAvailable", &kilobytes)) {
        return err_set(err, PERCH_E_DEVICE, "%s/proc/meminfo does not say how much memory is available", root);
    }
    uint64_t least = kilobytes * 1024;
    hierarchy *h = malloc(sizeof *h);
    if (h == NULL) {
        return err_nomem(err, "the look for memory limits");
    }
    for (int v2 = 0; v2 < 2; v2++) {
        *h = (hierarchy){.v2 = v2 != 0};
        if (find_path(root, h) && find_mount(root, h)) {
            hierarchy_left(root, h, &least);
        }
    }
    free(h);
    rlimits_left(root, &least);
    *out = least;
    return PERCH_OK;
}
