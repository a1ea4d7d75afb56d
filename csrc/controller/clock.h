// Bounds of a worker's clock, measured by clockwork/controller/peers/clocksync.py, and conversions of times.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scheduler/types.h"
#include "wire/bounds.h"

namespace clockwork {

class ClockBounds {
public:
    void set(Ns upper, Ns upper_at, Ns lower, Ns lower_at) {
        known_ = true;
        upper_ = upper;
        upper_at_ = upper_at;
        lower_ = lower;
        lower_at_ = lower_at;
    }

    Ns to_worker_latest(Ns at) const { return at >= NEVER_NS ? at : at + upper_ns(at); }
    // An action that may begin at once gets no start time, because the worker's clock may have been set back.
    Ns to_worker_earliest(Ns at, Ns now) const {
        return at <= now ? -NEVER_NS : at >= NEVER_NS ? at : at + lower_ns(at);
    }
    Ns to_controller(Ns worker_ns, Ns now) const {
        Ns sum = upper_ns(now) + lower_ns(now);
        Ns middle = sum >= 0 ? sum / 2 : -((1 - sum) / 2);  // rounded down
        return std::min(worker_ns - middle, now);
    }

private:
    static Ns drift_ns(Ns age) {
        return static_cast<Ns>(static_cast<__int128>(age < 0 ? -age : age) * DRIFT_PPM / 1'000'000) + 1;
    }
    Ns upper_ns(Ns at) const { return known_ ? upper_ + drift_ns(at - upper_at_) : 0; }
    Ns lower_ns(Ns at) const { return known_ ? lower_ - drift_ns(at - lower_at_) : 0; }

    bool known_ = false;
    Ns upper_ = 0, upper_at_ = 0, lower_ = 0, lower_at_ = 0;
};

}  // namespace clockwork
