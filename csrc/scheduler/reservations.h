// Time of a device that its worker needs for itself: RESERVE.
//
// Preparing a model takes driver calls that stall executions on a GPU, and executions that check and time the
// model. The worker says how much time it wants (Scheduler::time_wanted()), and is given it in the execute
// lane like any other action, so that INFERs are planned around it. A reservation may include pages of the
// arena, which the worker keeps until it wants others.
//
// Time: a reservation is placed in a gap between two batches that is likely to hold it, by the recent gaps;
// or once a gap has lasted for RESERVE_AGE_NS, unless recent gaps ended about then. If there is no such gap
// for RESERVE_AGE_NS, it is placed at the beginning of any gap, where most of the gap is left. After
// RESERVE_BUSY_NS it is placed amid the work, or within a gap, but then takes at most one part in
// RESERVE_PARTS of the device's time. `edf` places none that would break a promise.
//
// Link: a reservation with pages may copy into them. While a LOAD onto any device of the worker has the link,
// it would hold its own device and wait. So it is then placed as it would be amid work.
//
// Pages: idle models are evicted for its pages. If these do not suffice after RESERVE_BUSY_NS, busy models
// are doomed (see arenas.h), and leave when their planned work has ended.
#pragma once

#include "scheduler/arenas.h"

namespace clockwork {

inline constexpr Ns RESERVE_AGE_NS = 200 * MS;
inline constexpr Ns RESERVE_BUSY_NS = SECOND;
inline constexpr Ns RESERVE_PARTS = 50;

// A gap that began within this time is still at its beginning.
inline constexpr Ns RESERVE_EARLY_NS = MS;

// Bound on the recent lateness of results that a gap must have room for; more was an exception.
inline constexpr Ns RESERVE_OVER_NS_MAX = 5 * MS;

// A device without known gaps counts as quiet when it has been idle for this long; otherwise, for twice its
// longest recent gap.
inline constexpr Ns RESERVE_QUIET_NS = 20 * MS;

// Interval of attempts where pages cannot be freed, or the policy has promised the time.
inline constexpr Ns RESERVE_RETRY_NS = 20 * MS;

// Window of a RESERVE: the latest start after its sending.
inline constexpr Ns RESERVE_LATE_NS = 50 * MS;

class Reservations {
public:
    Reservations(State& state, Arenas& arenas, const Deciders& deciders)
        : state_(state), arenas_(arenas), deciders_(deciders) {}

    // Note that a worker wants time, instead of what it wanted before. expected_ns: 0, none.
    void want(Executor& executor, ModelId model_id, Ns expected_ns, const std::vector<std::uint32_t>& runs);
    // Give the worker its time, if now is a suitable moment. Called when the executor has its next batches.
    void look(Executor& executor);
    // Note a result. False if the result is not a reservation's.
    bool ended(const ActionResult& result);
    // Let loads wait no longer for a reservation that has ended, or whose executor is lost.
    static void leave_link(const Executor& executor);

private:
    // The time at which a reservation that is sent now has everything it needs.
    Ns begin_ns(const Executor& executor) const;
    bool is_time(Executor& executor) const;
    // Take the pages that are wanted. False: they cannot be freed now.
    bool take_pages(Executor& executor);
    void give_back(Executor& executor);

    State& state_;
    Arenas& arenas_;
    const Deciders& deciders_;
};

}  // namespace clockwork
