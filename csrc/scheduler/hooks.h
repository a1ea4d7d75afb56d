// Interface of a policy in another language: the functions that Scripted (scripted.h) calls, and the queries
// they may make.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "scheduler/machines.h"
#include "scheduler/queue.h"

namespace clockwork {

// Queries and commands that a hook may use. Pointers that it is given here are invalid once the hook has
// returned.
class HookView {
public:
    virtual Ns now() const = 0;
    // The ready queue of the highest level, and of the lowest rank in it, among the models on a device; null:
    // none.
    virtual Queue* first_ready(Executor& executor) = 0;
    // Appends all ready queues of the models on a device.
    virtual void ready(Executor& executor, std::vector<Queue*>& found) = 0;
    // Appends the usable devices that hold the queue's model.
    virtual void devices(const Queue& queue, std::vector<Executor*>& found) const = 0;
    // The preparation of the queue's model by the device's worker; null unless the model is there and may be
    // sent work.
    virtual const KindSpec* spec(const Executor& executor, const Queue& queue) const = 0;
    virtual Ns free_ns(const Executor& executor) const = 0;
    // The largest batch of the queue's shape, in rows; 1 for a shape that was never measured.
    virtual std::uint32_t batch_max(const KindSpec& spec, const Queue& queue) const = 0;
    // The planned duration of a batch of this size; 0: unknown.
    virtual Ns planned_ns(const KindSpec& spec, const Queue& queue, std::uint32_t rows) const = 0;
    // The same on the fastest kind of device that has the model prepared; NEVER_NS: unknown.
    virtual Ns least_ns(const Queue& queue, std::uint32_t rows) const = 0;
    // The latest start of a batch from this request on; see RuleParts and Queue.
    virtual Ns last_start_ns(const Queue& queue, const Waiting& waiting) const = 0;
    virtual std::uint32_t count_up_to(const Queue& queue, std::uint32_t first, std::uint32_t rows_max) const = 0;
    // Drops a request; allowed only while a batch is chosen. False: it does not wait in this queue.
    virtual bool drop(Queue& queue, const Waiting& waiting) = 0;

protected:
    ~HookView() = default;
};

// Requests [first, first + count) of a queue whose model is on the device that asked; no queue: nothing now.
struct HookChoice {
    Queue* queue = nullptr;
    std::uint32_t first = 0;
    std::uint32_t count = 0;
};

// A refusal with the SLO that could have been kept, 0 if that is unknown.
struct HookRefusal {
    bool is_refused = false;
    Ns feasible_slo_ns = 0;
};

// The functions of a policy. Each is given `policy`, and returns 0 if it failed.
struct Hooks {
    void* policy = nullptr;
    std::string memory;                // memory rules, unless the options name others
    std::vector<std::string> options;  // names that SchedulerOptions::values may have
    Ns ahead_ns = 0;                   // lead before a device is planned to be free; see Habits::ahead_ns
    bool presses_late = true;          // see Habits

    int (*choose)(void* policy, HookView* view, Executor* executor, HookChoice* choice) = nullptr;
    int (*rank_ns)(void* policy, HookView* view, Queue* queue, Ns* rank_ns) = nullptr;
    // Null for hooks that the policy leaves at their defaults.
    int (*ready_ns)(void* policy, HookView* view, Queue* queue, Ns* ready_ns) = nullptr;
    int (*hopeless_ns)(void* policy, HookView* view, Queue* queue, const Waiting* waiting, Ns* hopeless_ns) = nullptr;
    int (*admit)(void* policy, HookView* view, Queue* queue, const Waiting* waiting, HookRefusal* refusal) = nullptr;
};

}  // namespace clockwork
