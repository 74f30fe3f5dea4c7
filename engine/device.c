/* device: the backend's device as the options want it. */
#include "engine/impl.h"

#include <stdio.h>
#include <stdlib.h>

kernels_dtype device_dtype(const perch_options *options, const model_config *config, const kernels_backend *backend) {
    switch (options->dtype) {
    case PERCH_DTYPE_F32:
        return KERNELS_F32;
    case PERCH_DTYPE_F16:
        return KERNELS_F16;
    case PERCH_DTYPE_BF16:
        return KERNELS_BF16;
    case PERCH_DTYPE_AUTO:
        break;
    }
    /* GPUs multiply 16-bit numbers alone. */
    return config->stored_f32 && !backend->async ? KERNELS_F32 : KERNELS_BF16;
}

kernels_weight_format device_weight_format(const perch_options *options) {
    static const kernels_weight_format formats[] = {[PERCH_WEIGHT_FORMAT_AUTO] = KERNELS_WEIGHT_DTYPE,
                                                    [PERCH_WEIGHT_FORMAT_BF16] = KERNELS_WEIGHT_BF16,
                                                    [PERCH_WEIGHT_FORMAT_INT8] = KERNELS_WEIGHT_INT8,
                                                    [PERCH_WEIGHT_FORMAT_INT4] = KERNELS_WEIGHT_INT4};
    return formats[options->weight_format];
}

/* Where things that are computed once are kept: the option, else the user's cache folder; false: there is none. */
static bool cache_dir(const perch_options *options, char *out, size_t cap) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = options->cache_dir[0]    ? snprintf(out, cap, "%s", options->cache_dir)
            : xdg && xdg[0] == '/'   ? snprintf(out, cap, "%s/perch", xdg)
            : home && home[0] == '/' ? snprintf(out, cap, "%s/.cache/perch", home)
                                     : -1;
    return n > 0 && (size_t)n < cap;
}

perch_status device_open(const perch_options *options, const model_config *config, const kernels_backend *backend,
                         kernels_device **out, perch_error *err) {
    char dir[PERCH_PATH_CAP];
    if (backend->async && options->weight_format != PERCH_WEIGHT_FORMAT_AUTO) {
        return err_set(err, PERCH_E_UNSUPPORTED,
                       "[model] weight_format: a GPU keeps weights in dtype; set auto, or [engine] device = cpu");
    }
    const kernels_config kernels = {.dtype = device_dtype(options, config, backend),
                                    .n_threads = options->threads,
                                    .isa = NULL,
                                    .device = options->gpu,
                                    .deterministic = options->deterministic == PERCH_ON,
                                    .graphs = options->graphs == PERCH_ON,
                                    .cache_dir = cache_dir(options, dir, sizeof dir) ? dir : NULL};
    return backend->open(&kernels, out, err);
}
