// Lateness: how much later than predicted something happens, at most, learnt from what happened.
//
// The lateness that all but LATE_PART of the samples do not exceed is learnt by steps, each LATE_STEP of the
// time that the batch was predicted to take, within [0, LATE_MAX] of that. Half of it is left after
// LATE_HALF_NS: after a stall it makes batches seem impossible only for a moment.
#pragma once

#include <algorithm>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

inline constexpr double LATE_PART = 0.01;
inline constexpr double LATE_STEP = 0.25;
inline constexpr double LATE_MAX = 1;
inline constexpr Ns LATE_HALF_NS = SECOND;

class Lateness {
public:
    // Returns 0 while nothing is known.
    Ns ns(Ns now) const { return static_cast<Ns>(late_.at(now, LATE_HALF_NS)); }

    // Notes that something that was predicted to take takes_ns was late by late_ns.
    void saw(Ns now, Ns takes_ns, Ns late_ns) {
        double known = late_.at(now, LATE_HALF_NS), takes = static_cast<double>(takes_ns);
        double late = std::min(static_cast<double>(late_ns), LATE_MAX * takes), step = LATE_STEP * takes;
        // a step upwards ends at no more than twice what was seen: a tiny lateness teaches a tiny one
        step = late > known ? std::min(step * (1 - LATE_PART), 2 * late - known) : std::max(-step * LATE_PART, -known);
        late_.add(now, step, LATE_HALF_NS);
    }

    void archive(Archive& archive) { archive(late_); }

private:
    DecayedCount late_;
};

}  // namespace clockwork
