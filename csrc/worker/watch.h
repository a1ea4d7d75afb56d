// Decides whether an execution or a load has taken too long. Pure; counts only time in which the worker was
// running.
//
// The limit follows from the controller's prediction of the action. Time in which the process or the machine
// was stopped does not count against the action.
#pragma once

#include <algorithm>
#include <cstdint>

#include "scheduler/types.h"

namespace clockwork::worker {

enum class Verdict : std::uint8_t {
    FINE,
    END,    // the action is to be ended, if its device can
    STUCK,  // the action goes on although it was to be ended
};

// The bounds of clockwork/config.
struct Limits {
    Ns execution_ns = 0;
    std::int64_t execution_factor = 0;
    Ns grace_ns = 0;  // the time that an execution has to end after end_run()
    Ns load_ns = 0;
    std::int64_t load_factor = 0;
    Ns reservation_ns = 0;
    Ns check_ns = 0;  // time allowed for the check of a model's files before a load
    Ns gap_ns = 0;    // longest time between two judgements that counts
    Ns interval_ns = 0;

    // The limits of an action with this expected duration.
    Ns execution_limit_ns(Ns expected_ns) const { return limit_ns(execution_ns, execution_factor, expected_ns); }
    Ns load_limit_ns(Ns expected_ns) const { return limit_ns(load_ns, load_factor, expected_ns); }

private:
    static Ns limit_ns(Ns least_ns, std::int64_t factor, Ns expected_ns) {
        return expected_ns > NEVER_NS / factor ? NEVER_NS : std::max(least_ns, factor * expected_ns);
    }
};

// Watches a lane.
class RunWatch {
public:
    // Whether an action was running at the last judgement.
    bool is_busy() const { return action_id_ != 0; }

    // Judges the running action; action_id 0: the lane is idle. grace_ns: the time that the action has to end
    // after end_run(); 0: it cannot be ended.
    Verdict look(Ns now, std::int64_t action_id, Ns limit_ns, Ns grace_ns, Ns gap_ns) {
        const Ns passed_ns = std::min(now - seen_ns_, gap_ns);
        seen_ns_ = now;
        if (action_id != action_id_) {
            action_id_ = action_id;
            ran_ns_ = 0;
            return Verdict::FINE;
        }
        if (action_id == 0)
            return Verdict::FINE;
        ran_ns_ += passed_ns;
        if (ran_ns_ <= limit_ns)
            return Verdict::FINE;
        return ran_ns_ - limit_ns <= grace_ns ? Verdict::END : Verdict::STUCK;
    }

private:
    std::int64_t action_id_ = 0;
    Ns ran_ns_ = 0;
    Ns seen_ns_ = 0;
};

}  // namespace clockwork::worker
