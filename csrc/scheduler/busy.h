// How busy links and devices are: the parts of their time for which the links load and the devices execute.
#pragma once

#include <algorithm>
#include <cstddef>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

inline constexpr Ns LOADING_HALF_LIFE_NS = 200 * MS;
inline constexpr Ns EXECUTING_HALF_LIFE_NS = SECOND;

class BusyParts {
public:
    // Note the planned time of a load that was decided, or of an execution that was sent.
    void add_load(Ns now, Ns planned_ns) { loading_.add(now, static_cast<double>(planned_ns), LOADING_HALF_LIFE_NS); }
    void add_execution(Ns now, Ns planned_ns) {
        executing_.add(now, static_cast<double>(planned_ns), EXECUTING_HALF_LIFE_NS);
    }
    // The sum of both parts, where there are this many links and devices.
    double sum(Ns now, std::size_t links, std::size_t devices) const {
        return loading_.rate(now, LOADING_HALF_LIFE_NS) / static_cast<double>(links) +
               executing_.rate(now, EXECUTING_HALF_LIFE_NS) / static_cast<double>(devices);
    }

    // The part of their time for which this many devices execute.
    double executing(Ns now, std::size_t devices) const {
        return std::min(1.0, executing_.rate(now, EXECUTING_HALF_LIFE_NS) / static_cast<double>(devices));
    }

    void archive(Archive& archive) { archive(loading_, executing_); }

private:
    DecayedCount loading_;    // planned times of loads, ns
    DecayedCount executing_;  // planned times of executions, ns
};

}  // namespace clockwork
