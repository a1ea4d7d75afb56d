// Records of workers, their arenas and executors, and the arithmetic of their timelines.
//
// A worker's device is an executor. It runs the models of an arena: its own, or that of another device, whose
// number is smaller.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "scheduler/inputs.h"
#include "scheduler/lateness.h"
#include "scheduler/lead.h"
#include "scheduler/link.h"
#include "scheduler/pages.h"
#include "scheduler/pool.h"
#include "scheduler/predictions.h"
#include "scheduler/records.h"

namespace clockwork {

// Assumed delay each way of a link that was not measured.
inline constexpr Ns LINK_DEFAULT_NS = 200'000;

// Assumed speeds until something was read: of a disk 2 GB/s, of the way from another worker 100 MB/s.
inline constexpr double DISK_DEFAULT_NS_PER_BYTE = 0.5;
inline constexpr double PEER_DEFAULT_NS_PER_BYTE = 10;

// An execution or a LOAD that is overdue by this much counts as stuck: see Executor::free_ns() and
// Recovery::watch_loads().
inline constexpr Ns STUCK_NS = 500 * MS;

// Status shows an executor's time over the last one to two of these intervals.
inline constexpr Ns RECENT_NS = 10 * SECOND;

// Executor time: how long it executed, and how long it was idle with work waiting. The latter means that
// nothing executed while a request for a model resident there waited in the controller. (While only requests
// on their way there wait, it is idle.) It is a lower bound: of the time before a request was sent elsewhere,
// or answered without being sent, only the stretch that then ended counts, on a few of the devices that have
// its model.
struct ExecutorTime {
    // Totals of an executor's times at some moment.
    struct Mark {
        Ns at_ns = 0, executing_ns = 0, idle_with_work_ns = 0;

        void archive(Archive& archive) { archive(at_ns, executing_ns, idle_with_work_ns); }
    };

    Ns executing_ns = 0;
    Ns idle_with_work_ns = 0;
    Ns executed_until_ns = 0;  // end of the last execution
    Ns counted_until_ns = 0;   // idle time before this is counted already

    Mark last, before_last;  // marks of totals, at least RECENT_NS apart

    // The totals since a moment at least RECENT_NS ago, and not much longer ago if the device executes.
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
    // Counts idle time with work waiting: the device had nothing to do until `until_ns`, and a request that
    // it could have served waited since `since_ns`.
    void waited(Ns since_ns, Ns until_ns) {
        Ns from_ns = std::max({since_ns, executed_until_ns, counted_until_ns});
        if (until_ns > from_ns) {
            idle_with_work_ns += until_ns - from_ns;
            counted_until_ns = until_ns;
        }
    }
};

// The last idle times of an executor, each from the end of a batch until the next work.
class IdleGaps {
public:
    void add(Ns ns) { last_[count_++ % MANY] = ns; }
    // The likely least length of the next gap: the shortest, or the second shortest of many. 0 where none is
    // known.
    Ns likely_ns() const {
        Ns least = NEVER_NS, second = NEVER_NS;
        for (std::size_t place = 0; place < std::min(count_, MANY); ++place) {
            second = std::min(second, std::max(least, last_[place]));
            least = std::min(least, last_[place]);
        }
        return count_ == 0 ? 0 : count_ >= FEW ? second : least;
    }
    // An idle time of this length is a sign that no work comes: twice the longest of the last FEW, and at
    // least `least_ns`.
    Ns quiet_ns(Ns least_ns) const {
        for (std::uint64_t age = 1; age <= std::min(count_, FEW); ++age) {
            least_ns = std::max(least_ns, 2 * last_[(count_ - age) % MANY]);
        }
        return least_ns;
    }
    // Whether any of the last idle times was longer than from_ns and at most until_ns long.
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

// Time of an executor that its worker wants for itself, and was given; see reservations.h.
struct Reservation {
    ModelId model_id = 0;
    Ns expected_ns = 0;  // 0: no reservation is wanted
    Ns wanted_ns = 0;    // time of the worker's request
    Ns since_ns = 0;     // start of the wait; requests that follow each other at once count as one
    Ns next_ns = 0;      // no earlier start while the device has work
    Ns again_ns = 0;     // no earlier start, because the last attempt failed
    std::vector<std::uint32_t> runs;
    ActionId action_id = 0;  // the RESERVE under way; 0: none
    Ns sent_ns = 0;
    Ns until_ns = 0;                       // predicted end of the reservation
    Ns ended_ns = 0;                       // end of the last reservation
    Ns over_ns = 0;                        // recent lateness of results against their predicted end
    std::vector<std::uint32_t> lent_runs;  // pages that the worker has
    std::vector<std::uint32_t> starts;
    std::vector<Residency*> victims;  // models doomed for its pages

    void archive(Archive& archive) {
        archive(model_id, expected_ns, wanted_ns, since_ns, next_ns, again_ns, runs, action_id, sent_ns, until_ns);
        archive(ended_ns, over_ns, lent_runs, starts, victims);
    }
};

// Runs batches of the models in an arena, one after the other.
struct Executor {
    Arena* arena = nullptr;
    Worker* worker = nullptr;
    Executor* before = nullptr;  // neighbour in the arena's list
    Executor* after = nullptr;
    std::uint32_t slot = 0;
    std::uint32_t generation = 0;
    std::uint32_t index = 0;  // the worker's number for the executor
    std::uint32_t run_ahead = 1;
    // actions sent to the executor, oldest first
    Chain<Flight, &Flight::lane_before, &Flight::lane_after> lane;
    // predicted end of its last action under way
    Ns lane_end_ns = 0;
    // predicted end of its oldest action under way
    Ns head_end_ns = 0;
    PredictedLane predicted;  // the lane without margins
    // time at which the executor must be handled again
    Ns wake_ns = NEVER_NS;
    Ns timer_ns = NEVER_NS;  // time of the timer set for wake_ns
    Ns aged_ns = 0;          // next promotion of a background batch
    Ns idle_since_ns = 0;
    IdleGaps gaps;
    Reservation reservation;
    std::uint64_t served = 0;
    std::uint32_t clock_mhz = 0;  // clock of the device; 0: not reported
    double pace = 1;  // duration as a multiple of its kind's estimate: below 1 where other devices are slower
    ExecutorTime time;
    Stretches stretches;
    Lead lead;
    Lateness late;       // of messages to the executor and back, beyond the margin
    bool dirty = false;  // the executor or its arena changed since it was handled last

    void archive(Archive& archive);

    bool usable() const;
    // Order of joining, over all workers.
    std::uint64_t number() const;
    // Whether nothing may be sent to the executor, because a suspect request runs there alone.
    bool is_closed() const { return !lane.empty() && lane.front()->is_apart; }
    // Whether a request has to wait until nothing else is under way on this executor.
    bool must_wait(const Pending& pending) const { return pending.evidence > 0 && !lane.empty(); }
    // When the oldest action of its lane becomes overdue.
    Ns overdue_at_ns() const;
    bool is_overdue(Ns now) const { return !lane.empty() && now >= overdue_at_ns(); }
    Ns paced(Ns ns) const { return pace == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * pace); }
    void wake_at(Ns at_ns) { wake_ns = std::min(wake_ns, at_ns); }
    // The predicted start of an action that is sent to the executor now.
    Ns free_ns(Ns now) const;
    // Predicts the lane anew: its oldest action begins at `time`, or when it has arrived.
    void retime_lane(Ns time);
    // How long it executed between two past times; an action under way counts from its predicted begin.
    Ns executed_ns(Ns from_ns, Ns until_ns) const;
};

// Memory for models, in pages, with a lane of loads. One or more executors run the models in it. The first is
// its owner: the device that loads are ordered for.
struct Arena {
    Worker* worker = nullptr;
    std::uint32_t slot = 0;
    std::uint32_t generation = 0;
    std::uint32_t index = 0;   // the worker's number for its owner
    std::uint64_t number = 0;  // order of joining, breaks ties
    // Kind of device and page size together: layouts, and so loads, differ with the page.
    std::uint32_t kind = 0;
    std::uint32_t kind_said = 0;  // the caller's number for the kind
    Chain<Executor, &Executor::before, &Executor::after> executors;
    std::uint64_t page_bytes = 0;
    PageAllocator pages;
    std::uint32_t run_ahead = 1;  // bound on the LOADs under way
    Bits models;                  // slots of the resident models
    // resident models, least recently used first
    Chain<Residency, &Residency::before, &Residency::after> resident;
    std::uint32_t doomed = 0;         // number of doomed residencies
    IdMap<Residency> by_model;        // resident models by id
    std::vector<Residency*> pending;  // loads that were not sent, by key
    std::uint32_t loading = 0;        // LOADs under way
    DeviceShares shares;
    LastArrivals asked;               // device time of the last requests that were charged to it
    Windowed inputs_asked;            // time of the link that inputs of its requests would take, ns
    std::uint64_t evicted_early = 0;  // models evicted soon after a load, see EVICTED_EARLY_NS
    std::uint32_t mark = 0;           // number of the last search that visited the arena

    void archive(Archive& archive);

    bool usable() const;
    Residency* find(const Model* model) const { return by_model.find(static_cast<std::uint64_t>(model->model_id)); }
    // Whether its free pages, less those of pending loads, are enough for the model.
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
    // The time at which all executors of the arena are free.
    Ns drained_ns(Ns now) const {
        Ns last = 0;
        for (const Executor* executor = executors.front(); executor != nullptr; executor = executor->after) {
            last = std::max(last, executor->free_ns(now));
        }
        return last;
    }
    // Number of its executors, as a factor of device time.
    double width() const { return executors.size(); }
    // Whether its executors have no actions under way.
    bool is_idle() const;
    // Wakes the first executor, which looks after the arena's loads.
    void wake_at(Ns at_ns) { executors.front()->wake_at(at_ns); }

    void enter(Residency* residency);
    void leave(Residency* residency);
    // Notes that a model becomes executable here, or no longer is.
    void settle(Residency& residency, bool is_resident);
    // Notes that a pending load wants the model's pages, or no longer does.
    static void doom(Residency& residency, bool is_doomed);
};

// Where a worker's store lies, from which its devices load. A *host* store is pinned memory before the disk,
// which holds every model: FETCH reads from there. A *disk* store is the disk itself, which holds some
// models: FETCH brings a model from another worker.
enum class StoreTier : std::uint8_t { NONE, HOST, DISK };

// State of a model in the store of a worker.
enum class StoreState : std::uint8_t { NONE, FETCHING, HELD };

struct StoredCopy {
    StoreState state = StoreState::NONE;
    std::uint8_t attempts = 0;  // failed fetches in a row
    std::uint32_t place = 0;    // HELD: index in Worker::held
    std::uint64_t bytes = 0;
    Ns used_ns = 0;   // time of the last load from the copy, or of its arrival
    Ns ready_ns = 0;  // FETCHING: predicted time at which its arrival is known
    Ns again_ns = 0;  // no FETCH before this time, because the last one into a disk store failed

    void archive(Archive& archive) {
        archive.choice(state, StoreState::HELD);
        archive(attempts, place, bytes, used_ns, ready_ns, again_ns);
    }
};

struct Worker {
    WorkerId worker_id = 0;
    std::vector<Arena*> arenas;  // arenas of devices that were not lost
    LinkDelays link;
    Ns there_ns = LINK_DEFAULT_NS;  // estimates from the measured delays
    Ns back_ns = LINK_DEFAULT_NS;
    Ns link_free_ns = 0;            // predicted end of the loads under way; devices share the link
    Ns reserved_ns = 0;             // predicted end of the last RESERVE, which may need the link; 0: none
    Ns loads_ns = 0;                // planned durations of the LOADs under way
    Ns loads_from_ns = 0;           // predicted start of the oldest LOAD under way
    PredictedLane predicted_loads;  // the same lane, predicted without margins
    InputsWay inputs;
    Windowed inputs_asked;  // time of the link that inputs of all requests would take, ns
    CopyTime copies;
    Chain<Flight, &Flight::before, &Flight::after> flights;  // actions in the order of their sending
    // number of the worker's preparation, by the model's slot; see variant_of()
    std::vector<std::uint32_t> variants;
    // Its store; NONE: every model that it has prepared can be loaded.
    StoreTier tier = StoreTier::NONE;
    // Budget of the store. Models on the disk when the worker joins, or that it prepares, may exceed it.
    std::uint64_t store_bytes = 0;
    std::uint64_t store_used = 0;
    std::uint64_t promised = 0;       // bytes of its disk for models that it prepares
    std::vector<StoredCopy> store;    // copies in the store, by the model's slot
    std::vector<std::uint32_t> held;  // slots of the models that the store holds, in any order
    std::uint32_t held_cursor = 0;    // index at which a search among many of them begins
    std::uint32_t fetching = 0;       // FETCHes under way
    Ns fetch_free_ns = 0;             // predicted end of the FETCHes under way
    Ns fetches_ns = 0;                // sum of the planned durations of the FETCHes
    PredictedLane predicted_fetches;
    Ns joined_ns = 0;
    bool draining = false;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void archive(Archive& archive);

    StoreState store_state(const Model& model) const {
        return model.slot < store.size() ? store[model.slot].state : StoreState::NONE;
    }
    // Whether a LOAD of the model could be ordered here.
    bool is_stored(const Model& model) const {
        return tier == StoreTier::NONE || store_state(model) == StoreState::HELD;
    }
    // Whether the model fits the store at all.
    bool could_store(const KindSpec& spec) const { return tier == StoreTier::NONE || spec.stored_bytes <= store_bytes; }
    // Whether the worker's disk has a model that it has prepared, or could be brought.
    bool keeps(const Model& model) const { return tier != StoreTier::DISK || is_stored(model); }
    std::uint64_t store_free() const { return store_bytes - std::min(store_used + promised, store_bytes); }
    // Assumed duration of a FETCH by its bytes, until one has ended.
    double fetch_ns_per_byte() const {
        return tier == StoreTier::DISK ? PEER_DEFAULT_NS_PER_BYTE : DISK_DEFAULT_NS_PER_BYTE;
    }
    // This worker's way of preparing the model: KindSpec::variant; 0: it has not prepared it.
    std::uint32_t variant_of(const Model& model) const {
        return model.slot < variants.size() ? variants[model.slot] : 0;
    }
    bool has(const Model* model) const { return variant_of(*model) != 0; }
    // Predicts the end of the loads under way anew, after a LOAD or a RESERVE has ended.
    void retime_link() { link_free_ns = std::max(loads_from_ns + loads_ns, reserved_ns); }
    // When the results of all LOADs under way should have come.
    Ns loads_due_ns() const { return loads_from_ns + loads_ns + back_ns; }
    // The arena whose owner has this number; null if there is none, or it was lost.
    Arena* arena(std::int32_t index) const {
        for (Arena* arena : arenas) {
            if (arena->index == static_cast<std::uint32_t>(index)) {
                return arena;
            }
        }
        return nullptr;
    }
    // The executor of this number; null if there is none, or its arena was lost.
    Executor* executor(std::int32_t index) const {
        for (const Arena* arena : arenas) {
            for (Executor* executor = arena->executors.front(); executor != nullptr; executor = executor->after) {
                if (executor->index == static_cast<std::uint32_t>(index)) {
                    return executor;
                }
            }
        }
        return nullptr;
    }
};

// Whether some device of the worker, whose link they share, has a load that was not sent.
inline bool has_pending_loads(const Worker& worker) {
    return std::any_of(worker.arenas.begin(), worker.arenas.end(),
                       [](const Arena* arena) { return !arena->pending.empty(); });
}

inline bool Executor::usable() const { return !worker->draining; }

inline std::uint64_t Executor::number() const { return arena->number + (index - arena->index); }

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

// Whether requests can count on a residency: the model is there or is being loaded, and is not about to go.
inline bool is_promised(const Residency& residency) {
    return !residency.doomed && !residency.is_stuck && residency.arena->usable();
}

// Calls function(residency) for each model whose LOAD to the arena is under way, in the order of sending.
template <typename Function>
void for_each_coming(const Arena& arena, Function&& function) {
    if (arena.loading == 0) {
        return;
    }
    const auto& flights = arena.worker->flights;
    for (const Flight* flight = flights.front(); flight != nullptr;
         flight = std::remove_cvref_t<decltype(flights)>::next(flight)) {
        if (flight->kind == ActionKind::LOAD && flight->residency->arena == &arena) {
            function(*flight->residency);
        }
    }
}

inline Residency* Model::next_asked() {
    if (residencies.empty()) {
        return nullptr;
    }
    std::uint32_t turn = asked_cursor++ % servers;
    if (servers == residencies.size()) {
        return residencies[turn];
    }
    for (Residency* residency : residencies) {
        std::uint32_t width = residency->arena->executors.size();
        if (turn < width) {
            return residency;
        }
        turn -= width;
    }
    return residencies.back();
}

inline void Model::enter(Residency& residency) {
    residencies.push_back(&residency);
    servers += residency.arena->executors.size();
}

inline void Model::leave(Residency& residency) {
    residencies.erase(std::find(residencies.begin(), residencies.end(), &residency));
    servers -= residency.arena->executors.size();
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
    // an earlier end of the head would have been reported by now
    Ns overdue = now - worker->back_ns - head_end_ns;
    if (overdue > 0) {
        end += overdue;
    }
    if (overdue > STUCK_NS) {
        end += overdue;  // an execution that is overdue by this much is likely to take as long again
    }
    return std::max(end, soonest);
}

}  // namespace clockwork
