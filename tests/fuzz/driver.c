/*
 * driver: runs a fuzz target where there is no libFuzzer. Takes the same flags for the little that it does: every file of
 * the given corpus folders once, then -runs mutations of them, the same ones for the same -seed.
 *
 *   fuzz_NAME [-runs=N] [-seed=S] [-max_len=BYTES] [-artifact_prefix=PATH] FILE_OR_FOLDER...
 *
 * It has no feedback: what it finds is what byte flips, arithmetic, deletions, repetitions and splices of good seeds can
 * reach. The input under test is kept in the file PATHinput, which is there after a crash and can be given to the program
 * again; it is removed when all runs ended well.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

typedef struct seed {
    uint8_t *data;
    size_t n_bytes;
} seed;

typedef struct corpus {
    seed *seeds;
    size_t n, cap;
} corpus;

typedef struct options {
    uint64_t runs;
    uint64_t seed;
    size_t max_len;
    const char *artifact_prefix;
} options;

/* splitmix64 */
static uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t random_below(uint64_t *state, size_t n) { return n ? (size_t)(random_next(state) % n) : 0; }

static void die(const char *what, const char *path) {
    fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
    exit(2);
}

static void corpus_add_file(corpus *c, const char *path, size_t max_len) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        die("cannot read", path);
    }
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 64;
        c->seeds = realloc(c->seeds, c->cap * sizeof *c->seeds);
    }
    uint8_t *data = malloc(max_len);
    if (!c->seeds || !data) {
        die("no memory for", path);
    }
    size_t n_bytes = fread(data, 1, max_len, file);
    if (ferror(file)) {
        die("cannot read", path);
    }
    fclose(file);
    c->seeds[c->n++] = (seed){.data = data, .n_bytes = n_bytes};
}

static int visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

/* A folder's files are taken in the order of their names, so that runs are the same on every machine. */
static void corpus_add(corpus *c, const char *path, size_t max_len) {
    struct stat info;
    if (stat(path, &info) != 0) {
        die("cannot read", path);
    }
    if (!S_ISDIR(info.st_mode)) {
        corpus_add_file(c, path, max_len);
        return;
    }
    struct dirent **entries;
    int n = scandir(path, &entries, visible, alphasort);
    if (n < 0) {
        die("cannot list", path);
    }
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        corpus_add_file(c, file, max_len);
        free(entries[i]);
    }
    free(entries);
}

/* Makes room for n bytes at `at`, moving the rest towards the end, cut at max_len. Returns how many there are room for. */
static size_t open_gap(uint8_t *data, size_t *n_bytes, size_t at, size_t n, size_t max_len) {
    n = n < max_len - *n_bytes ? n : max_len - *n_bytes;
    memmove(data + at + n, data + at, *n_bytes - at);
    *n_bytes += n;
    return n;
}

static void mutate_once(uint8_t *data, size_t *n_bytes, size_t max_len, const corpus *c, uint64_t *rng) {
    static const char bytes_of_interest[] = "\0\xff\x7f\x80 \n\"\\{}[]:,.-+019eEux=;#";
    size_t at = random_below(rng, *n_bytes + 1);
    size_t n = 1 + random_below(rng, random_below(rng, 4) ? 8 : 256);
    size_t rest = *n_bytes - at;
    switch (random_below(rng, 7)) {
    case 0: /* flip a bit */
        if (rest) {
            data[at] ^= (uint8_t)(1u << random_below(rng, 8));
        }
        break;
    case 1: /* a byte that parsers look at */
        if (rest) {
            data[at] = (uint8_t)bytes_of_interest[random_below(rng, sizeof bytes_of_interest - 1)];
        }
        break;
    case 2: /* a little more or less */
        if (rest) {
            data[at] = (uint8_t)(data[at] + random_below(rng, 33) - 16);
        }
        break;
    case 3: /* delete */
        n = n < rest ? n : rest;
        memmove(data + at, data + at + n, rest - n);
        *n_bytes -= n;
        break;
    case 4: { /* repeat what stands there */
        size_t source = random_below(rng, *n_bytes);
        n = n < *n_bytes - source ? n : *n_bytes - source;
        uint8_t copy[256];
        memcpy(copy, data + source, n);
        n = open_gap(data, n_bytes, at, n, max_len);
        memcpy(data + at, copy, n);
        break;
    }
    case 5: { /* insert or overwrite with a part of another seed */
        const seed *other = &c->seeds[random_below(rng, c->n)];
        size_t source = random_below(rng, other->n_bytes);
        n = n < other->n_bytes - source ? n : other->n_bytes - source;
        n = random_below(rng, 2) ? open_gap(data, n_bytes, at, n, max_len) : n < rest ? n : rest;
        if (n) {
            memcpy(data + at, other->data + source, n);
        }
        break;
    }
    default: /* cut off */
        if (random_below(rng, 8) == 0) {
            *n_bytes = at;
        }
    }
}

static uint64_t flag_number(const char *text) {
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end) {
        errno = EINVAL;
        die("not a number:", text);
    }
    return value;
}

static bool flag(options *o, const char *text) {
    if (strncmp(text, "-runs=", 6) == 0) {
        o->runs = flag_number(text + 6);
    } else if (strncmp(text, "-seed=", 6) == 0) {
        o->seed = flag_number(text + 6);
    } else if (strncmp(text, "-max_len=", 9) == 0) {
        o->max_len = (size_t)flag_number(text + 9);
    } else if (strncmp(text, "-artifact_prefix=", 17) == 0) {
        o->artifact_prefix = text + 17;
    } else {
        return false;
    }
    return true;
}

/* Gives the target an allocation of exactly the input's size, so that sanitizers see a read past its end. */
static void run_one(int fd, const char *path, const uint8_t *data, size_t n_bytes) {
    if (pwrite(fd, data, n_bytes, 0) != (ssize_t)n_bytes || ftruncate(fd, (off_t)n_bytes) != 0) {
        die("cannot write", path);
    }
    uint8_t *input = malloc(n_bytes ? n_bytes : 1);
    if (!input) {
        die("no memory for", path);
    }
    memcpy(input, data, n_bytes);
    LLVMFuzzerTestOneInput(input, n_bytes);
    free(input);
}

int main(int argc, char **argv) {
    options o = {.runs = 0, .seed = 1, .max_len = 1u << 16, .artifact_prefix = "./"};
    corpus c = {0};
    /* Flags first: they say how much of a file is read. */
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] == '-' && (!flag(&o, argv[i]) || o.max_len == 0)) {
            fprintf(stderr, "%s: bad flag %s\n", argv[0], argv[i]);
            return 2;
        }
    }
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            corpus_add(&c, argv[i], o.max_len);
        }
    }
    if (c.n == 0) {
        fprintf(stderr, "%s: no seeds were given\n", argv[0]);
        return 2;
    }
    char path[4096];
    snprintf(path, sizeof path, "%sinput", o.artifact_prefix);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    uint8_t *data = malloc(o.max_len);
    if (fd < 0 || !data) {
        die("cannot write", path);
    }
    for (size_t i = 0; i < c.n; i++) {
        run_one(fd, path, c.seeds[i].data, c.seeds[i].n_bytes);
    }
    uint64_t rng = o.seed;
    for (uint64_t run = 0; run < o.runs; run++) {
        const seed *from = &c.seeds[random_below(&rng, c.n)];
        size_t n_bytes = from->n_bytes;
        memcpy(data, from->data, n_bytes);
        for (size_t n = 1 + random_below(&rng, 6); n > 0; n--) {
            mutate_once(data, &n_bytes, o.max_len, &c, &rng);
        }
        run_one(fd, path, data, n_bytes);
    }
    printf("%zu seeds and %llu mutations\n", c.n, (unsigned long long)o.runs);
    close(fd);
    unlink(path);
    free(data);
    for (size_t i = 0; i < c.n; i++) {
        free(c.seeds[i].data);
    }
    free(c.seeds);
    return 0;
}
