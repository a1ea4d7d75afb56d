// State of a scheduler: unanswered requests, actions under way, workers and devices, and timers.
//
// This class decides nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "scheduler/policy.h"
#include "scheduler/pool.h"
#include "scheduler/scheduler.h"

namespace clockwork {

// Timers of answered requests that may exceed the live ones in the heap before it is rebuilt.
inline constexpr std::size_t TIMERS_SLACK = 64;

// Bound on the arenas of a model, and on the executors of each, that are checked for idle time while a
// request for it waited.
inline constexpr std::size_t IDLE_LOOK_MAX = 4;

class State {
public:
    explicit State(Commands& out) : out(out) {}
    State(const State&) = delete;
    State& operator=(const State&) = delete;

    // ----- records -----------------------------------------------------------------------------

    template <typename T>
    Pool<T>& pool() {
        return std::get<Pool<T>>(pools_);
    }
    template <typename T>
    const Pool<T>& pool() const {
        return std::get<Pool<T>>(pools_);
    }
    template <typename T>
    T& at(std::uint32_t slot) {
        return *pool<T>().at(slot);
    }
    // Give a record back to its pool at the end of the step.
    template <typename T>
    void retire(T* entry) {
        pool<T>().retire(entry);
        has_retired_ = true;
    }
    void recycle() {
        if (has_retired_)
            recycle_all();
    }

    Model* find_model(ModelId id) const { return by_model.find(static_cast<std::uint64_t>(id)); }
    Worker* find_worker(WorkerId id) const { return by_worker.find(static_cast<std::uint32_t>(id)); }

    // ----- time --------------------------------------------------------------------------------

    void advance(Ns to) { now = to > now ? to : now; }
    // Set a timer at which the policy is told of the request, unless it was answered.
    void set_timer(Ns at_ns, const Pending& pending) { push_timer(at_ns, pending.slot, pending.generation); }
    // Set the timer that an executor wants.
    void follow_wake(Executor& executor);
    // Return the request whose timer is due next; null: none. Executors whose timers are due before are
    // touched.
    Pending* next_due();
    // Drop timers that are no longer needed; return the time of the next.
    Ns next_wake_ns();

    // Note that an executor changed: it is looked at before the step is over.
    void touch(Executor& executor) {
        if (!executor.dirty) {
            executor.dirty = true;
            dirty_.push_back(&executor);
        }
    }
    // Note that an arena changed: all of its executors are looked at.
    void touch(Arena& arena) {
        for (Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
            touch(*executor);
        }
    }
    // Note that an arena's loads changed: its first executor is looked at, which looks after them, and those
    // that want pages for their worker.
    void touch_loads(Arena& arena) {
        for (Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
            if (executor == arena.executors.front() || executor->reservation.expected_ns != 0) {
                touch(*executor);
            }
        }
    }
    // Note that an arena has work for an idle executor.
    void touch_idle(Arena& arena) {
        Executor* executor = arena.executors.front();
        while (executor != nullptr && (executor->dirty || !executor->lane.empty())) {
            executor = executor->after;
        }
        touch(executor != nullptr ? *executor : *arena.executors.front());
    }
    void untouch(Executor& executor);
    // Take the touched executors, which are no longer touched afterwards. False: there are none.
    bool take_touched(std::vector<Executor*>& taken);

    // ----- orders ------------------------------------------------------------------------------

    Command& order(CommandKind kind) {
        Command& command = out.list.emplace_back();
        command.kind = kind;
        return command;
    }
    // Tell a worker not to begin an action.
    void revoke(Flight& flight) {
        flight.revoked = true;
        Command& command = order(CommandKind::SEND_REVOKE);
        command.worker = flight.arena->worker->worker_id;
        command.action_id = flight.action_id;
    }
    ActionId next_action() { return ++action_id_; }
    LoadId next_load() { return ++load_id_; }
    // Numbers later loads above one of an earlier scheduler.
    void note_load(LoadId load_id) { load_id_ = std::max(load_id_, load_id); }

    // ----- idle with work waiting --------------------------------------------------------------

    // Count idle time with work waiting for the idle executors that could have served a model while a request
    // for it waited.
    void note_waited(const Model& model, Ns since_ns, const Executor* except);
    void count_idle(Executor& executor, Ns since_ns, Ns until_ns) const {
        executor.time.waited(std::max(since_ns, judged_from_ns), std::min(until_ns, judged_until_ns));
    }

    // Called between steps only.
    void archive(Archive& archive);

    // Throws std::logic_error where the records contradict each other.
    void check_invariants(const Policy& policy) const;

    Commands& out;
    Ns now = 0;
    std::vector<Model*> models;  // models in the order of registration
    std::vector<Arena*> arenas;
    std::vector<Executor*> executors;
    IdMap<Model> by_model;
    IdMap<Worker> by_worker;
    IdMap<Flight> flights;
    IdMap<Pending> pendings;
    Chain<Model, &Model::before, &Model::after> background;  // models with requests without a deadline
    std::uint32_t tiered = 0;                                // number of workers with a store
    std::uint32_t disks = 0;                                 // those with a disk store
    std::uint32_t copying = 0;                               // FETCHes under way into disk stores
    // Models with too few copies on disks, see keepers.h: those that only workers that leave have; others;
    // those of which a worker may bring a copy back.
    std::array<Chain<Model, &Model::short_before, &Model::short_after>, 3> scarce;
    bool has_store_news = false;  // something that could let another model be copied has happened
    Estimates estimates;
    Shapes shapes;
    Predictions predictions;
    LinkShares links;
    Ns judged_from_ns = 0, judged_until_ns = NEVER_NS;  // interval of sending whose predictions are judged

private:
    static constexpr std::uint32_t EXECUTOR_TIMER = 1u << 31;

    struct Timer {
        Ns at_ns;
        std::uint64_t sequence;
        std::uint32_t slot;  // slot of a request or, with EXECUTOR_TIMER, of an executor
        std::uint32_t generation;

        void archive(Archive& archive) { archive(at_ns, sequence, slot, generation); }
    };
    struct IsLater {  // a type, so that the heap's functions inline the comparison
        bool operator()(const Timer& a, const Timer& b) const {
            return a.at_ns != b.at_ns ? a.at_ns > b.at_ns : a.sequence > b.sequence;
        }
    };

    void recycle_all();
    void check_read();
    void push_timer(Ns at_ns, std::uint32_t slot, std::uint32_t generation);
    void pop_timer();
    bool is_stale(const Timer& timer) const;
    static void check_arena(const Arena& arena, const Policy& policy);
    static void check_plan(const Executor& executor, const std::vector<Batch*>& plan);

    std::tuple<Pool<Pending>, Pool<Flight>, Pool<Batch>, Pool<Residency>, Pool<KindSpec>, Pool<Model>, Pool<Arena>,
               Pool<Executor>, Pool<Worker>>
        pools_;
    bool has_retired_ = false;   // some pool has retired records in this step
    std::vector<Timer> timers_;  // a heap, the earliest first
    std::uint64_t sequence_ = 0;
    std::vector<Executor*> dirty_;
    ActionId action_id_ = 0;
    LoadId load_id_ = 0;
};

template <typename T>
void Archive::maybe(T*& record) {
    std::uint32_t number = record != nullptr ? record->slot + 1 : 0;
    item(number);
    need(number == 0 || books->pool<T>().is_used(number - 1), "a record is named that is not there");
    if (is_reading()) {
        record = number != 0 ? &books->at<T>(number - 1) : nullptr;
    }
}

// ----- what happens in each step ----------------------------------------------------------------

inline Pending* State::next_due() {
    while (!timers_.empty() && timers_.front().at_ns <= now) {
        Timer timer = timers_.front();
        pop_timer();
        if (is_stale(timer)) {
            continue;
        }
        if ((timer.slot & EXECUTOR_TIMER) == 0) {
            return &at<Pending>(timer.slot);
        }
        Executor& executor = at<Executor>(timer.slot & ~EXECUTOR_TIMER);
        executor.timer_ns = NEVER_NS;
        touch(executor);
    }
    return nullptr;
}

inline Ns State::next_wake_ns() {
    while (!timers_.empty() && is_stale(timers_.front())) {
        pop_timer();
    }
    if (timers_.size() > 4 * (pendings.size() + executors.size()) + TIMERS_SLACK) {
        std::erase_if(timers_, [this](const Timer& timer) { return is_stale(timer); });
        std::make_heap(timers_.begin(), timers_.end(), IsLater());
    }
    return timers_.empty() ? NEVER_NS : timers_.front().at_ns;
}

inline bool State::is_stale(const Timer& timer) const {
    if (timer.slot & EXECUTOR_TIMER) {
        const Executor* executor = pool<Executor>().at(timer.slot & ~EXECUTOR_TIMER);
        return executor->generation != timer.generation || executor->timer_ns != timer.at_ns;
    }
    const Pending* pending = pool<Pending>().at(timer.slot);
    return pending->generation != timer.generation || pending->answered;
}

inline bool State::take_touched(std::vector<Executor*>& taken) {
    taken.clear();
    taken.swap(dirty_);
    for (Executor* executor : taken) {
        executor->dirty = false;
    }
    return !taken.empty();
}

}  // namespace clockwork
