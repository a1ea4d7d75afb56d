// The clock that the whole controller goes by.
#pragma once

#include <time.h>

#include "scheduler/types.h"

namespace clockwork {

// The clock of clockwork.system.clock.now_ns().
inline Ns clock_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * SECOND + time.tv_nsec;
}

}  // namespace clockwork
