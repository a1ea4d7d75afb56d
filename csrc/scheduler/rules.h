// The rules of a policy with queues: when a queue wants a device, how urgent it is, and what a device runs next.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "scheduler/parts.h"
#include "scheduler/queues.h"

namespace clockwork {

// A batch is sent when its device is predicted to be free within this (the paper's value).
inline constexpr Ns QUEUED_AHEAD_NS = 5 * MS;

// The time that the original keeps for what is not execution: network, and prediction errors.
inline constexpr Ns PAPER_BUFFER_NS = 5 * MS;

// Of the devices that have a model, so many are asked when they could have answered who is given up; where none has
// it, the devices of so many workers.
inline constexpr std::size_t OUTLOOK_MAX = 8;

// An option by name, of SchedulerOptions::values.
double option(const SchedulerOptions& options, std::string_view name, double otherwise);
inline Ns option_ms(const SchedulerOptions& options, std::string_view name, Ns otherwise) {
    return static_cast<Ns>(option(options, name, static_cast<double>(otherwise) / MS) * MS);
}

// Requests [first, first + count) of a queue, in its order.
struct Span {
    Queue* queue = nullptr;
    std::uint32_t first = 0;
    std::uint32_t count = 0;
};

// What a device is to run: requests [first, first + count) of a queue, in its order. No queue: nothing now.
struct Choice {
    Queue* queue = nullptr;
    Residency* residency = nullptr;
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    Ns hoped_ns = 0;                     // other than 0: it is a trial, and takes so long at best (Curve::hoped_ns())
    std::span<const Span> filling = {};  // of lower levels, of the same model and shape; valid until the next choice
};

// What differs between policies with queues beside their rules.
struct Habits {
    std::string memory = "adaptive";  // whose loads and evictions, where the options name none
    Ns ahead_ns = QUEUED_AHEAD_NS;    // a device is given its next batch so long before it is planned to be free
    bool presses_late = true;         // a request sent after a part of its time calls for another device; not if that
                                      // is the policy's own doing
    bool promises_nothing = false;    // who waits was not admitted: it is refused, not missed, before its deadline
    bool spreads = true;              // a model may go to idle devices although those that have it are in time
    bool counts_lane = true;          // a device is given no more than run_ahead actions (and a round trip's worth)
};

// Answers a waiting request as missed, or as refused (Habits::promises_nothing). What is behind it may become hopeless
// too: look at the queue anew.
class Dropper {
public:
    virtual void drop(Queue& queue, const Waiting& waiting) = 0;

protected:
    ~Dropper() = default;
};

// What rules are given.
struct RuleParts {
    State& state;
    Arenas& arenas;
    Requests& requests;
    Idle& idle;
    Queues& queues;
    Dropper& dropper;

    // The last time at which even the shortest batch, at once and on the fastest kind of device, would still be in time.
    Ns last_start_ns(const Queue& queue, const Waiting& waiting) const {
        Ns least = queue.model->least_alone_ns(queue.shape, 1);
        return arenas.last_begin_ns(*queue.model, least < NEVER_NS ? waiting.deadline_ns - least : waiting.deadline_ns);
    }
};

class Rules {
public:
    explicit Rules(Habits habits) : habits(std::move(habits)) {}
    Rules(const Rules&) = delete;
    Rules& operator=(const Rules&) = delete;
    virtual ~Rules() = default;

    // What a free device runs next; it would start at `free_ns`. May drop() requests that are hopeless.
    virtual Choice choose(Executor& executor, Ns free_ns) = 0;
    // The batch that a device tries which executes nothing and has nothing to choose: a request that would be too late by the
    // estimates, but not by the times that batches take at best.
    virtual Choice attempt(Executor& /*executor*/, Ns /*free_ns*/) { return {}; }
    // The urgency of a ready queue: of those of one level, the lowest goes first. Asked when the front changed.
    virtual Ns rank_ns(const Queue& queue) = 0;
    // From when on a queue wants a device. Asked at each arrival while it is not ready, when its front changed, and
    // at that time.
    virtual Ns ready_ns(Queue& /*queue*/) { return 0; }
    // When the front of a queue is answered as missed, if nobody took it until then: at the latest at its deadline.
    // Must not decrease from one request of a queue to the next.
    virtual Ns hopeless_ns(const Queue& /*queue*/, const Waiting& waiting) { return waiting.deadline_ns; }
    // False: it was refused at arrival, by refuse().
    virtual bool admit(Pending& /*pending*/) { return true; }

    // How long a batch's inputs take to a worker, beyond the delay of the link: it is sent so much earlier.
    virtual Ns inputs_ns(const Worker& /*worker*/) const { return 0; }
    // How long before a device is planned to be free its next batch is sent, beyond its way there.
    virtual Ns ahead_ns(const Executor& /*executor*/) const { return habits.ahead_ns; }
    // What a device's timeline is to count for a batch.
    virtual Ns duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        return spec.alone_ns(shape, rows);
    }
    // A batch was just ordered; the order may still be changed.
    virtual void sent(Batch& /*batch*/, Flight& /*flight*/, Command& /*command*/) {}

    // See Policy.
    virtual bool has_archive() const { return true; }
    virtual void archive(Archive& /*archive*/) {}
    virtual void depart(Flight& /*flight*/) {}
    virtual void delivered(const Flight& /*flight*/, Ns /*ready_ns*/, bool /*is_ok*/) {}
    virtual void executed(const Flight& /*flight*/, Ns /*took_ns*/) {}
    virtual void model_gone(Model& /*model*/) {}
    virtual double margin(std::uint32_t /*kind*/) const { return 0; }
    virtual PolicyStatus status(Ns /*now*/) const { return {}; }

    const Habits habits;
};

}  // namespace clockwork
