// Margins: the share by which planned durations exceed estimates, learnt from executions.
//
// An execution is planned with the margin that the share MARGIN_KEPT of the executions on such a device do
// not exceed. Without executions the learnt margin fades.
#pragma once

#include <algorithm>
#include <vector>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

// The margin is learnt from the first execution on, by steps, within [0, MARGIN_MAX].
inline constexpr double MARGIN_KEPT = 0.99;
inline constexpr double MARGIN_FIRST = 0.01;
inline constexpr double MARGIN_STEP = 0.002;
inline constexpr double MARGIN_MAX = 0.25;

// Fixed time that each planned execution adds to its estimate and its margin.
inline constexpr Ns MARGIN_FIXED_NS = 20'000;

// Half-life of a learnt number's difference from its first value, without samples, unless it has its own.
inline constexpr Ns FADE_NS = 2 * SECOND;

// A number that is learnt from samples, and returns to its first value without them, by whole half-lives, so
// that it is constant between executions.
class Fading {
public:
    explicit Fading(double first, Ns half_life = FADE_NS) : first_(first), value_(first), half_life_(half_life) {}

    double at(Ns now) const {
        Ns past = now - seen_ns_;
        return past < half_life_ ? value_ : first_ + (value_ - first_) * decay(past - past % half_life_, half_life_);
    }
    void set(Ns now, double value) {
        value_ = value;
        seen_ns_ = now;
    }

    void archive(Archive& archive) { archive(value_, seen_ns_); }

private:
    double first_;
    double value_;
    Ns half_life_;
    Ns seen_ns_ = 0;
};

class Margin {
public:
    double share(Ns now) const { return kept_.at(now); }

    // Notes an execution that exceeded its estimate by the share `over`.
    void took(Ns now, double over) {
        double kept = share(now);
        kept += over > kept ? MARGIN_STEP * MARGIN_KEPT : -MARGIN_STEP * (1 - MARGIN_KEPT);
        kept_.set(now, std::clamp(kept, 0.0, MARGIN_MAX));
    }

    void archive(Archive& archive) { archive(kept_); }

private:
    Fading kept_{MARGIN_FIRST};
};

// The margins by the kind of device.
class Margins {
public:
    double share(Ns now, std::uint32_t kind) const {
        return kind < margins_.size() ? margins_[kind].share(now) : MARGIN_FIRST;
    }

    // Notes an execution that was expected to take expected_ns, and took took_ns.
    void executed(Ns now, std::uint32_t kind, Ns expected_ns, Ns took_ns) {
        if (kind >= margins_.size()) {
            margins_.resize(kind + 1);
        }
        margins_[kind].took(now, static_cast<double>(took_ns - expected_ns) / static_cast<double>(expected_ns));
    }

    void archive(Archive& archive) { archive(margins_); }

private:
    std::vector<Margin> margins_;
};

// An execution of exec_ns by its estimate, with the margin `share` and the fixed time.
inline Ns with_learnt_margin(Ns exec_ns, double share) {
    return exec_ns + static_cast<Ns>(static_cast<double>(exec_ns) * share) + MARGIN_FIXED_NS;
}

}  // namespace clockwork
