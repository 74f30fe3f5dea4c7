/*
 * simulation: an engine on a device that is only simulated, in a time that passes by steps. What decides is what serves: the
 * scheduler, the cache and its tiers, and the step itself; there is no step thread, and the host's calls move it on.
 */
#include "engine/impl.h"
#include "engine/simulated_device.h"

#include <math.h>
#include <string.h>

/* What the field is called, what it may be, and where it stands. */
static perch_status check_rate(const char *name, double value, double least, perch_error *err) {
    return isfinite(value) && value >= least && value <= 1e6
               ? PERCH_OK
               : err_set(err, PERCH_E_INVALID, "perch_hardware.%s: %g is out of range (%g..1000000)", name, value,
                         least);
}

static perch_status check_hardware(const perch_hardware *h, perch_error *err) {
    perch_status status;
    if ((status = check_rate("matrix_tflops", h->matrix_tflops, 1e-6, err)) ||
        (status = check_rate("attention_tflops", h->attention_tflops, 1e-6, err)) ||
        (status = check_rate("memory_gbps", h->memory_gbps, 1e-6, err)) ||
        (status = check_rate("host_gbps", h->host_gbps, 1e-6, err)) ||
        (status = check_rate("disk_gbps", h->disk_gbps, 1e-6, err))) {
        return status;
    }
    return check_rate("launch_us", h->launch_us, 0, err);
}

perch_status perch_hardware_init(perch_hardware *hardware, size_t struct_size) {
    if (!hardware || struct_size != sizeof *hardware) {
        return PERCH_E_INVALID;
    }
    *hardware = (perch_hardware){.struct_size = sizeof *hardware,
                                 .memory_bytes = (uint64_t)143771 << 20,
                                 .matrix_tflops = 780,
                                 .attention_tflops = 400,
                                 .memory_gbps = 4300,
                                 .host_gbps = 50,
                                 .disk_gbps = 6,
                                 .launch_us = 100};
    return PERCH_OK;
}

perch_status perch_simulation_create(const perch_options *options, const perch_hardware *hardware, perch_engine **out,
                                     perch_error *err) {
    if (!options || !hardware || hardware->struct_size != sizeof *hardware || !out) {
        return err_set(err, PERCH_E_INVALID,
                       "perch_simulation_create: options, hardware (from perch_hardware_init) and out must be given");
    }
    *out = NULL;
    perch_status status = check_hardware(hardware, err);
    if (status) {
        return status;
    }
    if (options->store_backend != PERCH_STORE_MEMORY) {
        return err_set(err, PERCH_E_CONFIG, "[store] backend: a simulation's sequences are in memory alone");
    }
    perch_options simulated = *options;
    simulated.queue_full = PERCH_QUEUE_REFUSE; /* nobody would make room while a submit waits */
    engine_place place = {.backend = &simulated_backend, .now_us = simulated_now_us};
    status = simulated_open(hardware, &place.device, err);
    status = status ? status : engine_open_on(&simulated, &place, out, err);
    if (!status) {
        simulated_begin((*out)->device); /* what was timed to know its rates is none of the simulation's */
    }
    return status;
}

perch_status perch_simulation_advance(perch_engine *e, uint64_t until_us, uint64_t *now_us, perch_error *err) {
    if (!e || !now_us || e->now_us != simulated_now_us) {
        return err_set(err, PERCH_E_INVALID,
                       "perch_simulation_advance: an engine of perch_simulation_create and now_us must be given");
    }
    perch_status status = PERCH_OK;
    pthread_mutex_lock(&e->lock);
    while (!e->ready_head && engine_now(e) < until_us) {
        if (engine_step(e)) {
            continue;
        }
        if (e->dead) {
            status = err_set(err, e->dead, "the engine is dead: %s", e->dead_reason.message);
            break;
        }
        if (until_us == UINT64_MAX) {
            status = err_set(err, PERCH_E_TIMEOUT, "nothing is under way");
            break;
        }
        simulated_pass_time(e->device, until_us);
    }
    *now_us = engine_now(e);
    pthread_mutex_unlock(&e->lock);
    return status;
}
