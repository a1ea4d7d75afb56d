// Rules of a policy with queues: when a queue wants a device, how urgent it is, and the next batch of a
// device.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "scheduler/parts.h"
#include "scheduler/queues.h"

namespace clockwork {

// A batch is sent this long before its device is predicted to be free (the paper's value).
inline constexpr Ns QUEUED_AHEAD_NS = 5 * MS;

// The original's allowance for network delays and prediction errors.
inline constexpr Ns PAPER_BUFFER_NS = 5 * MS;

// Bound on the devices holding a model that are compared for the time at which a refused request could have
// been answered; where none holds it, the bound on the workers whose devices are compared.
inline constexpr std::size_t OUTLOOK_MAX = 8;

// The value of an option by name, from SchedulerOptions::values.
double option(const SchedulerOptions& options, std::string_view name, double otherwise);
inline Ns option_ms(const SchedulerOptions& options, std::string_view name, Ns otherwise) {
    return static_cast<Ns>(option(options, name, static_cast<double>(otherwise) / MS) * MS);
}

// Requests [first, first + count) of a queue, in its order.
struct QueueRange {
    Queue* queue = nullptr;
    std::uint32_t first = 0;
    std::uint32_t count = 0;
};

// The batch that a device is to run: requests [first, first + count) of a queue, in its order. No queue:
// nothing now.
struct Choice {
    Queue* queue = nullptr;
    Residency* residency = nullptr;
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    Ns hoped_ns = 0;  // not 0: the batch is a trial, with this duration at best (Curve::hoped_ns())
    // Requests of lower levels, of the same model and shape; valid until the next choice.
    std::span<const QueueRange> filling = {};
};

// Differences between policies with queues, beside their rules.
struct Habits {
    std::string memory = "adaptive";  // memory rules, where the options name none
    // Time before a device is planned to be free at which its next batch is sent.
    Ns ahead_ns = QUEUED_AHEAD_NS;
    // A request that is sent after a part of its SLO calls for another device; false where the policy has
    // requests wait on purpose.
    bool presses_late = true;
    // Waiting requests were not admitted: before their deadlines they are refused, not missed.
    bool promises_nothing = false;
    bool spreads = true;      // a model in time may be copied onto idle devices
    bool counts_lane = true;  // a device is given no more than run_ahead actions (and a round trip's worth)
};

// Answers a waiting request as missed, or as refused (Habits::promises_nothing). Requests behind it may
// become hopeless: review the queue again.
class Dropper {
public:
    virtual void drop(Queue& queue, const Waiting& waiting) = 0;

protected:
    ~Dropper() = default;
};

class QueueMemory;

// The parts that rules may use.
struct RuleParts {
    State& state;
    Arenas& arenas;
    Requests& requests;
    Idle& idle;
    Queues& queues;
    Dropper& dropper;
    const std::unique_ptr<QueueMemory>& memory;  // set after the rules

    // The last time at which even the shortest batch, at once and on the fastest kind of device, would still
    // be in time.
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

    // Choose the next batch of a free device, which would start at `free_ns`. May drop() hopeless requests.
    virtual Choice choose(Executor& executor, Ns free_ns) = 0;
    // Choose a batch that a device tries when it executes nothing and choose() gave nothing: a request that
    // is late by the estimates, but in time by the batch times at best.
    virtual Choice attempt(Executor& /*executor*/, Ns /*free_ns*/) { return {}; }
    // The rank of a ready queue: within one level, the lowest goes first. Asked when the front changed.
    virtual Ns rank_ns(const Queue& queue) = 0;
    // The time from which a queue wants a device. Asked at each arrival while it is not ready, when its front
    // changed, and at the time that was returned last.
    virtual Ns ready_ns(Queue& /*queue*/) { return 0; }
    // The time at which the front of a queue is answered as missed, if no device took it: at the latest its
    // deadline. Must not decrease from one request of a queue to the next.
    virtual Ns hopeless_ns(const Queue& /*queue*/, const Waiting& waiting) { return waiting.deadline_ns; }
    // The time from which only a device of a faster kind, which does not have the model, could serve the
    // front of a queue: the memory manager is told then.
    virtual Ns outgrown_ns(const Queue& /*queue*/, const Waiting& /*waiting*/) { return NEVER_NS; }
    // Admit an arriving request. False: it was refused, by refuse().
    virtual bool admit(Pending& /*pending*/) { return true; }

    // The time that a batch's inputs take to a worker, beyond the delay of the link: the batch is sent this
    // much earlier.
    virtual Ns inputs_ns(const Worker& /*worker*/) const { return 0; }
    // The time before a device is planned to be free at which its next batch is sent, beyond the way there.
    virtual Ns ahead_ns(const Executor& /*executor*/) const { return habits.ahead_ns; }
    // The duration of a batch on a device's timeline.
    virtual Ns duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        return spec.alone_ns(shape, rows);
    }
    // A batch was just ordered; the order may still be changed.
    virtual void sent(Batch& /*batch*/, Flight& /*flight*/, Command& /*command*/) {}

    // See Policy::has_archive().
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
