/*
 * interrupt: Ctrl-C as something to wait for beside the engine's events.
 */
#ifndef PERCH_TOOLS_INTERRUPT_H
#define PERCH_TOOLS_INTERRUPT_H

#include "perch/perch.h"

#include <stdbool.h>

/*
 * From here on Ctrl-C sets a flag. Unless forgiving, so does SIGTERM, and the second signal ends the process at once.
 * E_IO. Call it when the engine is there, so that loading is interrupted as any program is.
 */
perch_status interrupt_install(bool forgiving, perch_error *err);

bool interrupt_came(void);
void interrupt_clear(void);

/*
 * Waits until an event can be taken, fd can be read (-1 = none), Ctrl-C came, or timeout_ms passed (negative = never).
 * engine may be NULL. Says whether fd can be read.
 */
bool interrupt_wait(const perch_engine *engine, int fd, int timeout_ms);

#endif
