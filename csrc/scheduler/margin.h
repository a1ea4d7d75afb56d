// How much longer than expected executions are planned to take, as learnt from how long they took.
//
// An execution is planned with the share on top of its estimate that MARGIN_KEPT of the executions on such a device do
// not need. What was learnt fades while nothing is executed.
#pragma once

#include <algorithm>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

// It is learnt from the first on, by steps, within [0, MARGIN_MAX].
inline constexpr double MARGIN_KEPT = 0.99;
inline constexpr double MARGIN_FIRST = 0.01;
inline constexpr double MARGIN_STEP = 0.002;
inline constexpr double MARGIN_MAX = 0.25;

// Of a number learnt by samples, half of the difference from its first value is forgotten in each of these without one.
inline constexpr Ns FADE_NS = 2 * SECOND;

// A number that is learnt by samples, and goes back to its first value without them. It goes by whole half-lives, so that
// it stays put between executions.
class Fading {
public:
    explicit Fading(double first) : first_(first), value_(first) {}

    double at(Ns now) const {
        Ns past = now - seen_ns_;
        return past < FADE_NS ? value_ : first_ + (value_ - first_) * decay(past - past % FADE_NS, FADE_NS);
    }
    void set(Ns now, double value) {
        value_ = value;
        seen_ns_ = now;
    }

    void archive(Archive& archive) { archive(value_, seen_ns_); }

private:
    double first_;
    double value_;
    Ns seen_ns_ = 0;
};

class Margin {
public:
    double share(Ns now) const { return kept_.at(now); }

    // An execution took so much longer than expected, as a share of that.
    void took(Ns now, double over) {
        double kept = share(now);
        kept += over > kept ? MARGIN_STEP * MARGIN_KEPT : -MARGIN_STEP * (1 - MARGIN_KEPT);
        kept_.set(now, std::clamp(kept, 0.0, MARGIN_MAX));
    }

    void archive(Archive& archive) { archive(kept_); }

private:
    Fading kept_{MARGIN_FIRST};
};

}  // namespace clockwork
