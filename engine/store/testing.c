/* testing: see testing.h. */
#include "engine/store/testing.h"

#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

const char *testing_folder(void) {
    static char folder[64];
    snprintf(folder, sizeof folder, "/tmp/perch-store-XXXXXX");
    return mkdtemp(folder) ? folder : NULL;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

void testing_remove_folder(const char *folder) { nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

static bool accepts(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    bool is = fd >= 0 && !connect(fd, (const struct sockaddr *)&address, sizeof address);
    if (fd >= 0) {
        close(fd);
    }
    return is;
}

bool testing_redis_start(testing_redis *r, const char *folder) {
    char path[96];
    if (system("command -v redis-server >/dev/null") != 0) {
        test_skip("there is no redis-server");
        return false;
    }
    snprintf(r->folder, sizeof r->folder, "%s", folder);
    snprintf(path, sizeof path, "%s/redis.sock", folder);
    snprintf(r->address, sizeof r->address, "unix:%s", path);
    unlink(path);
    r->pid = fork();
    if (r->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char *nothing = strdup("");
        execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--save", nothing, "--appendonly",
               "no", "--logfile", "/dev/null", "--dir", folder, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; r->pid > 0 && i < 3000; i++) {
        if (accepts(path)) {
            return true;
        }
        usleep(10000);
    }
    CU_FAIL("redis-server does not start");
    return false;
}

void testing_redis_kill(testing_redis *r) {
    kill(r->pid, SIGKILL);
    waitpid(r->pid, NULL, 0);
}

store_config testing_config(perch_store kind, const char *folder, const testing_redis *r) {
    return (store_config){.kind = kind,
                          .path = folder,
                          .address = r ? r->address : "",
                          .prefix = "test",
                          .password_file = "",
                          .timeout_ms = 20000,
                          .lease_ms = 60000};
}

store *testing_open(const store_config *config) {
    store *s = NULL;
    perch_error err;
    return CHECK_MSG(store_open(config, &s, &err) == PERCH_OK, "%s", err.message) ? s : NULL;
}

perch_status testing_take(store *s, testing_sequence *q, const char *key, bool existing, perch_error *err) {
    char of[STORE_MODEL_CAP] = "?";
    snprintf(q->key, sizeof q->key, "%s", key);
    store_op op = {.kind = STORE_OPEN, .key = q->key, .existing = existing, .meta = &q->meta, .found_model = of};
    perch_status status = store_call(s, &op, err);
    if (!status) {
        q->fence = op.drawn;
        q->n_tokens = q->meta.n_tokens;
        CU_ASSERT_FATAL(q->n_tokens <= 1024);
        memcpy(q->tokens, op.found, q->n_tokens * sizeof *q->tokens);
        free(op.found);
        CU_ASSERT_STRING_EQUAL(of, q->meta.n_turns ? "a model" : "");
    } else {
        CU_ASSERT_PTR_NULL(op.found);
    }
    return status;
}

perch_status testing_put(store *s, testing_sequence *q, uint64_t keep, bool release, perch_error *err) {
    q->meta.n_tokens = q->n_tokens;
    q->meta.n_turns++;
    q->meta.touched_ms = store_now_ms();
    q->meta.model = "a model";
    store_op op = {.kind = STORE_PUT,
                   .key = q->key,
                   .fence = q->fence,
                   .keep = keep,
                   .release = release,
                   .tokens = q->tokens,
                   .meta = &q->meta};
    perch_status status = store_call(s, &op, err);
    if (!status && !q->fence) {
        q->fence = op.drawn;
    }
    return status;
}

perch_status testing_simple(store *s, store_kind kind, const char *key, uint64_t fence, perch_error *err) {
    store_op op = {.kind = kind, .key = key, .fence = fence};
    return store_call(s, &op, err);
}

void testing_grow(testing_sequence *q, uint64_t n, test_rng *rng) {
    for (uint64_t i = 0; i < n && q->n_tokens < 1024; i++) {
        q->tokens[q->n_tokens++] = (int32_t)(uint32_t)test_rng_next(rng);
    }
}
