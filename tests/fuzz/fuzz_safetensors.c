/* Any bytes as a safetensors file: accepted or refused with a reason, and what is accepted lies within the file. */
#include "engine/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

/* Called by the fuzzing engine, which declares it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors file;
    perch_error err = {0};
    perch_status status = safetensors_parse(data, size, "input", &file, &err);
    if (status != PERCH_OK) {
        if (err.status != status || !err.message[0] || file.tensors || file.header.root) {
            abort();
        }
        return 0;
    }
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < file.n_tensors; i++) {
        const safetensor *t = &file.tensors[i];
        char shape[64];
        if (t->data < data || t->data > data + size || t->n_bytes > (uint64_t)(data + size - t->data) ||
            strlen(safetensors_shape_text(t, shape, sizeof shape)) >= sizeof shape) {
            abort();
        }
        n_bytes += t->n_bytes;
    }
    if (n_bytes > size) {
        abort();
    }
    safetensors_close(&file);
    return 0;
}
