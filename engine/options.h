/*
 * options: what of the configuration is checked where. A key's own range is checked when it is set; a host may also
 * write the fields of perch_options directly, and some rules join several keys, so the engine checks them all once
 * more.
 */
#ifndef PERCH_ENGINE_OPTIONS_H
#define PERCH_ENGINE_OPTIONS_H

#include "base/base.h"

/*
 * Every key's range and the rules across keys: [model] path must be set, a step must hold all rows and the
 * prefill's share, and a store on disk must have a path. E_INVALID: NULL or an unknown struct_size; E_CONFIG: "[section] key: reason".
 */
perch_status options_check(const perch_options *options, perch_error *err);

#endif
