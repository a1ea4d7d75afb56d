// The times of an action by the phases of its result.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scheduler/types.h"
#include "wire/messages.h"

namespace clockwork {

// The duration of a phase; 0 if it did not happen.
inline Ns took_ns(const wire::Phase& phase) { return phase.end_ns != 0 ? phase.duration_ns : 0; }

// The span of all phases, by the worker's clock.
struct Course {
    Ns begin_ns = 0;     // begin of the first phase that happened; 0: none did
    Ns end_ns = 0;       // end of the last phase
    Ns duration_ns = 0;  // NEVER_NS: the sum overflows
};

inline Course course_of(const wire::Result& result) {
    Course found;
    std::uint64_t total_ns = 0;
    for (const wire::Phase* phase : {&result.copy_in, &result.execute, &result.copy_out}) {
        if (phase->end_ns == 0)
            continue;
        found.begin_ns = found.begin_ns != 0 ? found.begin_ns : phase->begin_ns;
        found.end_ns = phase->end_ns;
        total_ns += static_cast<std::uint64_t>(phase->duration_ns);
    }
    found.duration_ns = static_cast<Ns>(std::min(total_ns, static_cast<std::uint64_t>(NEVER_NS)));
    return found;
}

}  // namespace clockwork
