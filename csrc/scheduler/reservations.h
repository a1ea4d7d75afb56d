// Time of a device that its worker needs for itself: RESERVE.
//
// To make a model ready takes calls of a driver that stall whatever a GPU executes, and executions that check and time
// it. The worker says what it wants (Scheduler::time_wanted()), and is given it in the execute lane like any other action,
// so that INFERs are planned around it. With it may come pages of the arena, which are the worker's until it wants others.
//
// When: in a gap between two batches that is likely to hold it, by the gaps of late; or once a gap has lasted for
// RESERVE_AGE_NS, unless gaps of late ended about then. Where there is none such for RESERVE_AGE_NS, at the beginning of
// any gap, of which most is left then; after RESERVE_BUSY_NS, in the middle of the work, or of a gap; but then no more
// than one part in RESERVE_PARTS of the device's time. `edf` gives none that would break a promise.
//
// What comes with pages may copy into them. While a LOAD onto any device of the worker has the link, it would hold its
// own device and wait: that is no moment without work, so it comes then as it does in the middle of the work.
//
// Idle models make way for its pages; where these do not suffice when it has waited for RESERVE_BUSY_NS, so do models that
// have work: they are doomed (see arenas.h), and go when what was planned on them has ended.
#pragma once

#include "scheduler/arenas.h"

namespace clockwork {

inline constexpr Ns RESERVE_AGE_NS = 200 * MS;
inline constexpr Ns RESERVE_BUSY_NS = SECOND;
inline constexpr Ns RESERVE_PARTS = 50;

// A gap has begun so recently that it is its beginning.
inline constexpr Ns RESERVE_EARLY_NS = MS;

// A gap has to hold what results of late came too late by, but not more than this: that was no habit.
inline constexpr Ns RESERVE_OVER_NS_MAX = 5 * MS;

// More than this is not expected, whatever a worker says.
inline constexpr Ns RESERVE_NS_MAX = 60 * SECOND;

// A device without gaps that are known is quiet when it has been idle for so long; else for twice the longest of them.
inline constexpr Ns RESERVE_QUIET_NS = 20 * MS;

// Where nothing makes room for its pages, or the policy has promised the time, it is tried again after this.
inline constexpr Ns RESERVE_RETRY_NS = 20 * MS;

// A reservation may begin this much later than it was sent; then its moment is over.
inline constexpr Ns RESERVE_LATE_NS = 50 * MS;

class Reservations {
public:
    Reservations(State& state, Arenas& arenas, const Deciders& deciders)
        : state_(state), arenas_(arenas), deciders_(deciders) {}

    // A worker wants time; it replaces what it wanted before. expected_ns: 0, it wants none any more.
    void want(Executor& executor, ModelId model_id, Ns expected_ns, const std::vector<std::uint32_t>& runs);
    // The executor has been sent what it should have: give it what its worker wants, if now is the time.
    void look(Executor& executor);
    // Whether this was the result of one.
    bool ended(const ActionResult& result);
    // The one that the executor was sent has ended, or the executor is lost: loads do not wait for it any more.
    static void leave_link(const Executor& executor);

private:
    // When one that is sent now has all that it needs.
    Ns begin_ns(const Executor& executor) const;
    bool is_time(Executor& executor) const;
    // Have it come with the pages that are wanted. False: they cannot come free now.
    bool take_pages(Executor& executor);
    void give_back(Executor& executor);

    State& state_;
    Arenas& arenas_;
    const Deciders& deciders_;
};

}  // namespace clockwork
