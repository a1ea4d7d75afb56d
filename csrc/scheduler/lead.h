// How long before a device is planned to be free its next batch is sent, as learnt from how wrong plans were.
//
// An execution that ends before it was planned to, or an order that takes longer on its way than was thought, leaves the
// device without work for as long, unless the next batch is there already. Sent earlier, a batch can grow for less
// long, and what comes meanwhile cannot go before it. So the lead is what LEAD_KEPT of the executions needed.
#pragma once

#include <algorithm>

#include "scheduler/decay.h"
#include "scheduler/types.h"

namespace clockwork {

// Between these it is learnt: the first where nothing errs; the second on a machine whose other work takes it away for
// so long. (The paper's is 5 ms, for everything.)
inline constexpr Ns LEAD_MIN_NS = 100'000;
inline constexpr Ns LEAD_MAX_NS = 20 * MS;

inline constexpr double LEAD_KEPT = 0.98;

// An execution for which it was too short makes it so much longer, as a share of itself.
inline constexpr double LEAD_STEP = 0.1;

// Of what was learnt, half is forgotten in this without executions.
inline constexpr Ns LEAD_HALF_LIFE_NS = 10 * SECOND;

class Lead {
public:
    Ns ns(Ns now) const {
        return LEAD_MIN_NS + static_cast<Ns>(more_ns_ * decay(std::max<Ns>(now - seen_ns_, 0), LEAD_HALF_LIFE_NS));
    }

    // An execution would have needed so much.
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
    double more_ns_ = 0;  // than LEAD_MIN_NS
    Ns seen_ns_ = 0;
};

}  // namespace clockwork
