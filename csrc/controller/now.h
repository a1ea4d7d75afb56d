// The clock of the whole controller.
#pragma once

#include <time.h>

#include "scheduler/types.h"

namespace clockwork {

// Reads the same clock as clockwork.system.clock.now_ns().
inline Ns clock_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * SECOND + time.tv_nsec;
}

}  // namespace clockwork
