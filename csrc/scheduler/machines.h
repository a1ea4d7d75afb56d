// The records that a scheduler keeps of workers, their arenas and executors, and the arithmetic of their timelines.
//
// What a worker calls a device is an arena and the executors that run what lies in it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/inputs.h"
#include "scheduler/lead.h"
#include "scheduler/link.h"
#include "scheduler/pages.h"
#include "scheduler/pool.h"
#include "scheduler/predictions.h"
#include "scheduler/records.h"

namespace clockwork {

// The delay each way that is assumed of a link until it has been measured.
inline constexpr Ns LINK_DEFAULT_NS = 200'000;

// An execution or a LOAD that is overdue by this much is no longer late but stuck: see Executor::free_ns() and
// Recovery::watch_loads().
inline constexpr Ns STUCK_NS = 500 * MS;

// What status shows of an executor's time is of the last one or two of these.
inline constexpr Ns RECENT_NS = 10 * SECOND;

// Of an executor's time: how long it was idle with work waiting. That is, it executed nothing while a request waited in the
// controller, whose model was resident there. (While no more waits than what is on its way there, it is idle.) A lower
// bound: of the time before a request was sent elsewhere, or answered without being sent, only what then ended counts,
// on a few of the devices that have its model.
struct ExecutorTime {
    // What it was at some time.
    struct Mark {
        Ns at_ns = 0, executing_ns = 0, idle_with_work_ns = 0;

        void archive(Archive& archive) { archive(at_ns, executing_ns, idle_with_work_ns); }
    };

    Ns executing_ns = 0;
    Ns idle_with_work_ns = 0;
    Ns executed_until_ns = 0;  // the end of the last execution
    Ns counted_until_ns = 0;   // idle time before is counted already

    Mark last, before_last;  // RECENT_NS or more apart

    // What happened since a moment that is at least RECENT_NS ago, and not much more if the device executes.
    Mark recent(Ns now) const {
        const Mark& since = now - last.at_ns >= RECENT_NS ? last : before_last;
        return {now - since.at_ns, executing_ns - since.executing_ns, idle_with_work_ns - since.idle_with_work_ns};
    }
    void executed(Ns began_ns, Ns ended_ns, Ns now) {
        executing_ns += std::max<Ns>(ended_ns - std::max(began_ns, executed_until_ns), 0);
        executed_until_ns = std::max(executed_until_ns, ended_ns);
        if (now - last.at_ns >= RECENT_NS) {
            before_last = last;
            last = {now, executing_ns, idle_with_work_ns};
        }
    }
    void archive(Archive& archive) {
        archive(executing_ns, idle_with_work_ns, executed_until_ns, counted_until_ns, last, before_last);
    }
    // The device has had nothing to do until `until_ns`, and a request that it could have served waited since then.
    void waited(Ns since_ns, Ns until_ns) {
        Ns from_ns = std::max({since_ns, executed_until_ns, counted_until_ns});
        if (until_ns > from_ns) {
            idle_with_work_ns += until_ns - from_ns;
            counted_until_ns = until_ns;
        }
    }
};

// How long the last idle times of an executor were, each from the end of a batch until work came.
class Gaps {
public:
    void add(Ns ns) { last_[count_++ % MANY] = ns; }
    // What the next is likely to be at least: all of them were, or all but one of many. 0 where none is known.
    Ns likely_ns() const {
        Ns least = NEVER_NS, second = NEVER_NS;
        for (std::size_t place = 0; place < std::min(count_, MANY); ++place) {
            second = std::min(second, std::max(least, last_[place]));
            least = std::min(least, last_[place]);
        }
        return count_ == 0 ? 0 : count_ >= FEW ? second : least;
    }
    // An idle time of this length says that no work comes: twice the longest of a few, and at least this.
    Ns quiet_ns(Ns least_ns) const {
        for (std::uint64_t age = 1; age <= std::min(count_, FEW); ++age) {
            least_ns = std::max(least_ns, 2 * last_[(count_ - age) % MANY]);
        }
        return least_ns;
    }
    // Whether any was longer than the one and not than the other: work has come then.
    bool ended_between(Ns from_ns, Ns until_ns) const {
        return std::any_of(last_.begin(), last_.begin() + static_cast<std::ptrdiff_t>(std::min(count_, MANY)),
                           [&](Ns gap) { return from_ns < gap && gap <= until_ns; });
    }
    void archive(Archive& archive) { archive(last_, count_); }

private:
    static constexpr std::uint64_t MANY = 64, FEW = 16;
    std::array<Ns, MANY> last_{};
    std::uint64_t count_ = 0;
};

// What a worker wants of an executor's time for itself, and what it was given; see reservations.h.
struct Reservation {
    ModelId model_id = 0;
    Ns expected_ns = 0;  // 0: nothing is wanted
    Ns wanted_ns = 0;    // when it was said
    Ns since_ns = 0;     // since when it waits, with what was wanted just before
    Ns next_ns = 0;      // not before then, where the device has work
    Ns again_ns = 0;     // not before then, for the last attempt came to nothing
    std::vector<std::uint32_t> runs;
    ActionId action_id = 0;  // under way; 0: none is
    Ns sent_ns = 0;
    Ns until_ns = 0;                       // when it is thought to end
    Ns ended_ns = 0;                       // when the last one did
    Ns over_ns = 0;                        // of late its result came so much later than was expected
    std::vector<std::uint32_t> lent_runs;  // pages that are the worker's
    std::vector<std::uint32_t> starts;
    std::vector<Residency*> victims;  // doomed for its pages

    void archive(Archive& archive) {
        archive(model_id, expected_ns, wanted_ns, since_ns, next_ns, again_ns, runs, action_id, sent_ns, until_ns);
        archive(ended_ns, over_ns, lent_runs, starts, victims);
    }
};

// What runs one batch after the other, of the models in an arena.
struct Executor {
    Arena* arena = nullptr;
    Worker* worker = nullptr;
    Executor* before = nullptr;  // among the arena's
    Executor* after = nullptr;
    std::uint32_t slot = 0;
    std::uint32_t generation = 0;
    std::uint32_t index = 0;  // the number by which the worker knows it
    std::uint32_t run_ahead = 1;
    Chain<Flight, &Flight::lane_before, &Flight::lane_after> lane;  // what was sent to it, oldest first
    Ns lane_end_ns = 0;                                             // when the last of it is thought to end
    Ns head_end_ns = 0;                                             // when the oldest is
    PredictedLane predicted;                                        // the same lane without margins
    Ns wake_ns = NEVER_NS;                                          // when it wants to be looked at again
    Ns timer_ns = NEVER_NS;                                         // the timer that is set for that
    Ns aged_ns = 0;  // a waiting background batch is not promoted before this
    Ns idle_since_ns = 0;
    Gaps gaps;
    Reservation reservation;
    std::uint64_t served = 0;
    std::uint32_t clock_mhz = 0;  // 0: it did not say
    double pace = 1;              // what it takes against what is expected of its kind: less where others are slower
    ExecutorTime time;
    Lead lead;
    bool dirty = false;  // something happened to it, or its arena, since it was last looked at

    void reset() {
        std::uint32_t place = slot, age = generation;
        *this = Executor();
        slot = place;
        generation = age;
    }
    void archive(Archive& archive);

    bool usable() const;
    // Whether nothing may be sent to it: a suspect is under way there, apart from everything else.
    bool is_closed() const { return !lane.empty() && lane.front()->is_apart; }
    // Whether a request has to wait until nothing else is under way on it.
    bool must_wait(const Pending& pending) const { return pending.evidence > 0 && !lane.empty(); }
    // When the oldest action of its lane is known to be overdue.
    Ns overdue_at_ns() const;
    bool is_overdue(Ns now) const { return !lane.empty() && now >= overdue_at_ns(); }
    Ns paced(Ns ns) const { return pace == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * pace); }
    void wake_at(Ns at_ns) { wake_ns = std::min(wake_ns, at_ns); }
    // When a newly sent action would start, by what is thought of those before it.
    Ns free_ns(Ns now) const;
    // Predicts the lane anew: its oldest action begins at `time`, or when it has arrived.
    void retime_lane(Ns time);
};

// Memory for models, in pages, with a lane of loads into it. One or more executors run what lies in it; today always one.
struct Arena {
    Worker* worker = nullptr;
    std::uint32_t slot = 0;
    std::uint32_t generation = 0;
    std::uint32_t index = 0;      // the number by which the worker knows it
    std::uint64_t number = 0;     // order of joining, breaks ties
    std::uint32_t kind = 0;       // layouts, and so loads, differ with the page: kind and page size together
    std::uint32_t kind_said = 0;  // the caller's number for the kind
    Chain<Executor, &Executor::before, &Executor::after> executors;
    std::uint64_t page_bytes = 0;
    PageAllocator pages;
    std::uint32_t run_ahead = 1;                                       // of LOADs
    Bits models;                                                       // slots of the models that are resident
    Chain<Residency, &Residency::before, &Residency::after> resident;  // least recently used first
    std::uint32_t doomed = 0;                                          // of these
    IdMap<Residency> by_model;                                         // the same
    std::vector<Residency*> pending;                                   // loads not sent, by key
    std::uint32_t loading = 0;                                         // LOADs under way
    DeviceShares shares;
    std::uint64_t evicted_early = 0;  // see EVICTED_EARLY_NS
    std::uint32_t mark = 0;           // of the search that has seen it

    void reset() {
        std::uint32_t place = slot, age = generation;
        *this = Arena();
        slot = place;
        generation = age;
    }
    void archive(Archive& archive);

    bool usable() const;
    Residency* find(const Model* model) const { return by_model.find(static_cast<std::uint64_t>(model->model_id)); }
    // Whether its free pages, less what waits to be loaded, are as many as the model takes.
    bool has_room(const KindSpec& spec) const;

    // The executor that is free first.
    Executor& soonest(Ns now) const {
        Executor* best = executors.front();
        for (Executor* executor = best->after; executor != nullptr; executor = executor->after) {
            best = executor->free_ns(now) < best->free_ns(now) ? executor : best;
        }
        return *best;
    }
    Ns free_ns(Ns now) const { return soonest(now).free_ns(now); }
    // When all of them are.
    Ns drained_ns(Ns now) const {
        Ns last = 0;
        for (const Executor* executor = executors.front(); executor != nullptr; executor = executor->after) {
            last = std::max(last, executor->free_ns(now));
        }
        return last;
    }
    // Whether nothing was sent to its executors.
    bool is_idle() const;
    // Its first executor looks after its loads.
    void wake_at(Ns at_ns) { executors.front()->wake_at(at_ns); }

    void enter(Residency* residency);
    void leave(Residency* residency);
    // It can be run there, or can no more.
    void settle(Residency& residency, bool is_resident);
    // Its pages are wanted by a pending load, or no more.
    static void doom(Residency& residency, bool is_doomed);
};

// A model's weights in the host store of a worker, or on their way there.
enum class HostState : std::uint8_t { NONE, FETCHING, HELD };

struct HostCopy {
    HostState state = HostState::NONE;
    std::uint8_t attempts = 0;  // that failed, one after the other
    std::uint64_t bytes = 0;
    Ns used_ns = 0;   // when it was last loaded from, or came
    Ns ready_ns = 0;  // FETCHING: when it is thought to be known to be there

    void archive(Archive& archive) {
        archive.choice(state, HostState::HELD);
        archive(attempts, bytes, used_ns, ready_ns);
    }
};

struct Worker {
    WorkerId worker_id = 0;
    std::vector<Arena*> arenas;  // that were not lost
    LinkDelays link;
    Ns there_ns = LINK_DEFAULT_NS;  // what is made of them
    Ns back_ns = LINK_DEFAULT_NS;
    Ns link_free_ns = 0;   // when the loads that were sent are thought to be done; devices share the link
    Ns reserved_ns = 0;    // when the last RESERVE that was sent is: it may need the link; 0: none is under way
    Ns loads_ns = 0;       // planned durations of the LOADs under way
    Ns loads_from_ns = 0;  // since when the oldest of them has the link, as is thought
    PredictedLane predicted_loads;  // the same without margins
    InputsWay inputs;
    CopyTime copies;
    Chain<Flight, &Flight::before, &Flight::after> flights;  // in the order in which they were sent
    std::vector<std::uint32_t> variants;                     // by the model's slot; see variant_of()
    std::uint64_t host_bytes = 0;  // the budget of its host store; 0: whatever is prepared can be loaded
    std::uint64_t host_used = 0;
    std::vector<HostCopy> host;  // by the model's slot
    std::uint32_t fetching = 0;  // FETCHes under way
    Ns disk_free_ns = 0;         // when they are thought to be done
    Ns fetches_ns = 0;           // their planned durations
    PredictedLane predicted_fetches;
    bool draining = false;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        std::uint32_t place = slot, age = generation;
        *this = Worker();
        slot = place;
        generation = age;
    }
    void archive(Archive& archive);

    HostState host_state(const Model& model) const {
        return model.slot < host.size() ? host[model.slot].state : HostState::NONE;
    }
    // Whether a LOAD of it could be ordered here.
    bool is_hosted(const Model& model) const { return host_bytes == 0 || host_state(model) == HostState::HELD; }
    // Whether it could ever be.
    bool could_host(const KindSpec& spec) const { return host_bytes == 0 || spec.host_bytes <= host_bytes; }
    // Which of the ways in which workers prepared a model is this one's: KindSpec::variant; 0: it has not prepared it.
    std::uint32_t variant_of(const Model& model) const {
        return model.slot < variants.size() ? variants[model.slot] : 0;
    }
    bool has(const Model* model) const { return variant_of(*model) != 0; }
    // A LOAD, or a RESERVE, has ended: when the others are thought to be done.
    void retime_link() { link_free_ns = std::max(loads_from_ns + loads_ns, reserved_ns); }
    // When the controller should have heard of all LOADs under way.
    Ns loads_due_ns() const { return loads_from_ns + loads_ns + back_ns; }
    // By its number; null if there is none, or it was lost.
    Arena* arena(std::int32_t index) const {
        for (Arena* arena : arenas) {
            if (arena->index == static_cast<std::uint32_t>(index)) {
                return arena;
            }
        }
        return nullptr;
    }
};

inline bool Executor::usable() const { return !worker->draining; }

inline bool Arena::usable() const { return !worker->draining; }

inline bool Arena::is_idle() const {
    const Executor* executor = executors.front();
    while (executor != nullptr && executor->lane.empty()) {
        executor = executor->after;
    }
    return executor == nullptr;
}

inline KindSpec* Model::spec(const Arena& arena) const {
    std::uint32_t variant = arena.worker->variant_of(*this);
    return variant != 0 ? spec(arena.kind, variant) : nullptr;
}

inline bool Model::is_somewhere() const {
    return std::any_of(residencies.begin(), residencies.end(),
                       [](const Residency* residency) { return residency->arena->usable(); });
}

inline bool Model::is_within_reach() const {
    return std::any_of(residencies.begin(), residencies.end(),
                       [](const Residency* residency) { return residency->arena->usable() && !residency->is_stuck; });
}

inline Ns Executor::overdue_at_ns() const {
    Ns takes = lane.front()->duration_ns;
    return head_end_ns - takes + std::max(OVERDUE_NS, OVERDUE_RATIO * takes) + worker->back_ns;
}

inline Ns Executor::free_ns(Ns now) const {
    Ns soonest = now + worker->there_ns;
    if (reservation.until_ns != 0) {
        Ns late = std::max<Ns>(now - worker->back_ns - reservation.until_ns, 0);
        soonest = std::max(soonest, reservation.until_ns + 2 * late);
    }
    if (lane.empty()) {
        return soonest;
    }
    Ns end = lane_end_ns;
    Ns overdue = now - worker->back_ns - head_end_ns;  // had the head ended before, its result would be here
    if (overdue > 0) {
        end += overdue;
    }
    if (overdue > STUCK_NS) {
        end += overdue;  // what has gone on for so long is likely to go on for as long again
    }
    return std::max(end, soonest);
}

}  // namespace clockwork
