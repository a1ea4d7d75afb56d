// The lead: how long before a device is planned to be free its next batch is sent, learnt from the errors of
// plans.
//
// An execution that ends earlier than planned, or an order that takes longer on its way than predicted,
// leaves the device idle for as long, unless the next batch is there already. A batch that is sent earlier
// has less time to grow, and later arrivals cannot go before it. So the lead is long enough for the share
// LEAD_KEPT of the executions.
#pragma once

#include <algorithm>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

// Bounds of the lead: the lower is for plans without errors; the upper is for a machine whose other work
// interrupts for that long. (The paper has 5 ms for everything.)
inline constexpr Ns LEAD_MIN_NS = 100'000;
inline constexpr Ns LEAD_MAX_NS = 20 * MS;

inline constexpr double LEAD_KEPT = 0.98;

// An execution for which the lead was too short raises it by this share of itself.
inline constexpr double LEAD_STEP = 0.1;

// Half-life of the learnt lead without executions.
inline constexpr Ns LEAD_HALF_LIFE_NS = 10 * SECOND;

class Lead {
public:
    Ns ns(Ns now) const {
        return LEAD_MIN_NS + static_cast<Ns>(more_ns_ * decay(std::max<Ns>(now - seen_ns_, 0), LEAD_HALF_LIFE_NS));
    }

    // Notes that an execution would have needed this lead.
    void needed(Ns now, Ns early_ns) {
        double kept = static_cast<double>(ns(now));
        double step = early_ns > static_cast<Ns>(kept) ? LEAD_STEP * LEAD_KEPT : -LEAD_STEP * (1 - LEAD_KEPT);
        more_ns_ = std::clamp(kept * (1 + step), static_cast<double>(LEAD_MIN_NS), static_cast<double>(LEAD_MAX_NS)) -
                   LEAD_MIN_NS;
        seen_ns_ = now;
    }

    bool is_learnt() const { return seen_ns_ > 0; }

    void archive(Archive& archive) { archive(more_ns_, seen_ns_); }

private:
    double more_ns_ = 0;  // learnt part of the lead, above LEAD_MIN_NS
    Ns seen_ns_ = 0;
};

}  // namespace clockwork
