// Records of requests, batches, residencies, actions and models; machines.h has those of workers, arenas and
// executors.
//
// The records hold state; the policy decides about it. State of a single policy is kept beside the records,
// by their slots. All records live in pools and are given back at the end of a step, so that no pointer
// dangles within a step.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "scheduler/bits.h"
#include "scheduler/chain.h"
#include "scheduler/demand.h"
#include "scheduler/estimates.h"
#include "scheduler/link_shares.h"
#include "scheduler/shares.h"
#include "scheduler/types.h"
#include "scheduler/weights.h"

namespace clockwork {

// Fields that are read together lie within one cache line: a search through all models of a device waits for
// memory only.
inline constexpr std::size_t CACHE_LINE = 64;

struct Batch;
struct Arena;
struct Executor;
struct Flight;
struct Model;
struct Pending;
class PendingList;
struct Residency;
struct Worker;

// Throws std::logic_error(what) if a condition does not hold.
inline void must(bool holds, const char* what) {
    if (!holds) {
        throw std::logic_error(what);
    }
}

// The times of the last Count events. add() returns whether all of them are within FAULT_WINDOW_NS.
template <std::size_t Count>
struct RecentTimes {
    std::array<Ns, Count> times{};
    std::uint64_t count = 0;

    bool add(Ns now) {
        Ns& oldest = times[count++ % Count];
        oldest = now;
        return count >= Count && now - times[count % Count] <= FAULT_WINDOW_NS;
    }
    void archive(Archive& archive) { archive(times, count); }
};

// A request that has been admitted and not been answered.
struct Pending {
    Request request;
    Model* model = nullptr;
    Ns deadline_ns = NEVER_NS;
    std::uint32_t size = 1;        // rows that it adds to a batch
    std::uint32_t part = 0;        // index of the request in its flight
    Batch* batch = nullptr;        // the planned batch
    Flight* flight = nullptr;      // the action that it was sent in
    PendingList* queue = nullptr;  // the list in which it waits
    Pending* before = nullptr;     // neighbour in that list
    Pending* after = nullptr;
    Ns load_ns = 0;  // duration of the load that it waited for
    Ns key_ns = 0;   // sort key for the policy's use
    std::uint8_t attempts = 0;
    // Evidence that the request ends workers; with any, it runs alone: see Recovery::blame().
    std::uint8_t evidence = 0;
    std::uint8_t widenings = 0;  // its actions that came too late for a window narrower than its deadline
    // Number, plus 1, of the device that last failed it by the device's own fault; 0: none.
    std::uint64_t failed_on = 0;
    bool answered = false;
    bool alone = false;  // shares no batch, since a batch with the request failed

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        batch = nullptr;
        flight = nullptr;
        queue = nullptr;
        before = after = nullptr;
        load_ns = key_ns = 0;
        part = 0;
        attempts = evidence = widenings = 0;
        failed_on = 0;
        answered = alone = false;
    }
    void archive(Archive& archive);
};

// The device time for which a request asks.
inline AskedFor asked_for(const Pending& pending, Ns now) {
    return {pending.request.shape, pending.size, pending.request.bytes, pending.deadline_ns - now};
}

// Waiting requests, each in at most one list, which it knows: the highest level first, and in the order of
// arrival within a level. Entering and leaving take time in proportion to the number of levels, not of
// requests.
class PendingList : Chain<Pending, &Pending::before, &Pending::after> {
public:
    using Chain::empty, Chain::front, Chain::next, Chain::size;

    // first: before the others of its level.
    void enter(Pending* pending, bool first = false) {
        pending->queue = this;
        auto place = find(pending->request.priority);
        bool is_new = place == ends_.end() || place->level != pending->request.priority;
        Pending* behind = nullptr;
        if (!is_new && !first) {
            behind = place->last;
        } else if (place != ends_.begin()) {
            behind = std::prev(place)->last;
        }
        insert(pending, behind != nullptr ? next(behind) : front());
        if (is_new) {
            ends_.insert(place, {pending->request.priority, pending});
        } else if (!first) {
            place->last = pending;
        }
    }
    void leave(Pending* pending) {
        pending->queue = nullptr;
        if (auto place = find(pending->request.priority); place->last == pending) {
            if (pending->before != nullptr && pending->before->request.priority == place->level) {
                place->last = pending->before;
            } else {
                ends_.erase(place);
            }
        }
        erase(pending);
    }
    Pending* pop_front() {
        Pending* pending = front();
        leave(pending);
        return pending;
    }
    // Archives the list. A list that was read must be sorted by sort(), after its requests have been read.
    void archive(Archive& archive) {
        archive_by(archive, [this](Pending* pending) {
            pending->queue = this;
            push_back(pending);
        });
    }
    void sort() {
        std::vector<Pending*> all;
        while (Pending* pending = front()) {
            all.push_back(pending);
            erase(pending);
        }
        ends_.clear();
        for (Pending* member : all) {
            enter(member);
        }
    }

private:
    struct End {
        std::uint8_t level;
        Pending* last;  // the last request of that level
    };

    // Returns the first end whose level is not above this one.
    std::vector<End>::iterator find(std::uint8_t level) {
        return std::lower_bound(ends_.begin(), ends_.end(), level,
                                [](const End& end, std::uint8_t wanted) { return end.level < wanted; });
    }

    std::vector<End> ends_;  // ends of the levels
};

// Requests of one model and shape that run together on one executor, planned or sent.
struct Batch {
    Residency* residency = nullptr;
    Executor* executor = nullptr;  // executor of the batch
    std::uint32_t shape = 0;
    std::uint32_t size = 0;  // number of rows
    Curve* curve = nullptr;  // null: the shape was never measured, duration_ns is a bound
    Ns key_ns = 0;           // place of the batch in the plan
    Ns limit_ns = NEVER_NS;  // latest end on the device
    Ns duration_ns = 0;      // planned duration, with margin
    std::vector<Pending*> pendings;
    Batch* before = nullptr;  // neighbour among its program's planned batches
    Batch* after = nullptr;
    bool planned = false;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        residency = nullptr;
        curve = nullptr;
        size = 0;
        key_ns = duration_ns = 0;
        limit_ns = NEVER_NS;
        pendings.clear();
    }
    void archive(Archive& archive);

    // The highest level (the lowest number) of its requests.
    std::uint8_t level() const {
        std::uint8_t highest = UINT8_MAX;
        for (const Pending* pending : pendings) {
            highest = std::min(highest, pending->request.priority);
        }
        return highest;
    }
    // The expected duration, without margin, at this size; alone_ns(): without neighbours.
    Ns expected_ns(std::uint32_t rows) const { return curve != nullptr ? curve->exec_ns(rows) : duration_ns; }
    Ns alone_ns(std::uint32_t rows) const { return curve != nullptr ? curve->alone_ns(rows) : duration_ns; }
};

enum class ResidencyState : std::uint8_t {
    PENDING,  // decided, not sent: the lane is full, or pages have to become free
    LOADING,
    RESIDENT,
};

// A model on one kind of device, as prepared by one or more workers: their measurements may differ. Execution
// estimates belong to the kind as a whole; layout and largest batch belong to the preparation.
struct alignas(CACHE_LINE) KindSpec {
    std::uint32_t kind = 0;
    std::uint32_t variant = 0;  // number of the preparation, see Worker::variant_of()
    std::uint32_t page_count = 0;
    LoadEstimates* loads = nullptr;
    LoadTimes* load_times = nullptr;
    Ns load_ns = 0;                    // duration measured at preparation
    LoadEstimates* fetches = nullptr;  // into a store
    LoadTimes* fetch_times = nullptr;
    std::uint64_t stored_bytes = 0;  // size of the model in a store
    ProgramEstimates* program = nullptr;
    const Shapes* shapes = nullptr;
    std::uint32_t batch_max = 1;
    std::uint32_t program_number = 0;
    ModelId model_id = 0;
    std::uint32_t worker_count = 0;  // workers with such a device and this preparation
    std::vector<std::uint32_t> runs;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() { worker_count = 0; }
    void archive(Archive& archive);

    Ns load_expected_ns() const { return loads->load_ns(*load_times, load_ns, page_count); }
    Ns load_planned_ns() const { return with_margin(load_expected_ns()); }
    // The same for the duration at best (LoadEstimates::hoped_ns()).
    Ns load_hoped_ns(Ns now) const { return with_margin(loads->hoped_ns(*load_times, load_ns, page_count, now)); }
    // ns_per_byte: assumed where nothing is known.
    Ns fetch_expected_ns(double ns_per_byte) const {
        Ns known = fetches->load_ns(*fetch_times, 0, page_count);
        return known > 0 ? known : static_cast<Ns>(static_cast<double>(stored_bytes) * ns_per_byte);
    }
    Ns fetch_planned_ns(double ns_per_byte) const { return with_margin(fetch_expected_ns(ns_per_byte)); }

    // The planned duration of a batch of this size, or the bound for a shape that was never measured; 0 if
    // there is none.
    Ns alone_ns(std::uint32_t shape, std::uint32_t size) const {
        Curve* curve = program->curve(shape);
        return curve != nullptr ? curve->planned_ns(size) : program->bound_ns(*shapes, shape, size);
    }

    // The duration at best, see Curve::hoped_ns().
    Ns hoped_ns(std::uint32_t shape, std::uint32_t size) const {
        Curve* curve = program->curve(shape);
        return curve != nullptr ? with_margin(curve->hoped_ns(size)) : program->bound_ns(*shapes, shape, size);
    }
};

// One model in one arena, from the decision to load it until its UNLOAD is done.
struct alignas(CACHE_LINE) Residency {
    Residency* after = nullptr;  // neighbour in the arena's list, least recently used first
    Model* model = nullptr;
    KindSpec* spec = nullptr;
    Arena* arena = nullptr;
    ResidencyState state = ResidencyState::PENDING;
    // A pending load waits for its pages: only work that leaves the load in time is planned on it.
    bool doomed = false;
    bool on_device = false;  // entered in arena->resident
    bool is_stuck = false;   // the LOAD is so late that it may never end
    std::uint8_t attempts = 0;
    std::uint32_t flying = 0;     // actions of the execute lane that use the residency
    std::vector<Batch*> batches;  // planned batches, in the order of planning
    Ns key_ns = 0;                // sort key of pending loads
    Ns ready_ns = 0;              // predicted time from which an INFER may start; 0 once it is resident
    Ns clear_ns = 0;              // predicted time from which the victims are idle
    Ns used_ns = 0;               // time at which work was last sent to it, or it became resident
    Ns loaded_ns = 0;             // time at which it became resident
    LoadId load_id = 0;
    ActionId action_id = 0;  // id of the LOAD under way
    std::vector<std::uint32_t> starts;
    std::vector<Residency*> victims;  // models doomed so that the load gets their pages
    Residency* before = nullptr;
    ModelShare share;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        state = ResidencyState::PENDING;
        doomed = on_device = is_stuck = false;
        attempts = 0;
        flying = 0;
        key_ns = ready_ns = clear_ns = used_ns = loaded_ns = 0;
        load_id = action_id = 0;
        starts.clear();
        batches.clear();
        victims.clear();
        before = after = nullptr;
        share = {};
    }
    void archive(Archive& archive);

    // Whether the model is resident, with no planned or sent work.
    bool is_idle() const { return batches.empty() && flying == 0 && state == ResidencyState::RESIDENT; }
};

// Whether work may be sent to a residency.
inline bool is_usable(const Residency* residency) {
    return residency != nullptr && residency->state == ResidencyState::RESIDENT && !residency->doomed;
}

// An action that was sent and has not been answered.
struct Flight {
    ActionId action_id = 0;
    ActionKind kind = ActionKind::INFER;
    bool revoked = false;  // the worker was told not to begin the action, or the action has ended
    // revoked because the action before it is overdue; its requests are planned anew
    bool is_recalled = false;
    bool is_apart = false;       // nothing else is sent to the device meanwhile
    bool was_executing = false;  // the action was executing when its worker was lost
    bool is_narrow = false;      // the window ends before the requests' deadlines require it
    Arena* arena = nullptr;
    Executor* executor = nullptr;  // only for INFER and PROFILE
    Residency* residency = nullptr;
    Batch* batch = nullptr;
    Ns expected_ns = 0;    // with the neighbours that it was predicted to have
    Ns alone_ns = 0;       // without neighbours
    BusyShare beside = 0;  // INFER, PROFILE: the share of its neighbours that were busy; set as it ends
    Ns duration_ns = 0;    // planned duration with margin
    Ns charged_ns = 0;     // device time for which its model was charged
    Ns sent_ns = 0;
    Ns there_ns = 0;          // predicted arrival, including its inputs
    Ns begin_ns = 0;          // planned begin of an execution, or the end of the one before it
    Ns predicted_end_ns = 0;  // predicted end without margins; see predictions.h
    // time from which one of its requests could have been sent to this executor
    Ns waits_since_ns = 0;
    // whether requests that the device could serve still waited when the action was sent
    bool leaves_work = false;
    std::uint64_t inputs = 0;        // number of its inputs on the way to the worker; see inputs.h
    std::uint64_t copied_bytes = 0;  // bytes of inputs that the worker copies from clients' memory
    Flight* before = nullptr;        // neighbour in the worker's list
    Flight* after = nullptr;
    Flight* lane_before = nullptr;
    Flight* lane_after = nullptr;

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        revoked = is_recalled = is_narrow = is_apart = was_executing = leaves_work = false;
        batch = nullptr;
        beside = 0;
        charged_ns = begin_ns = predicted_end_ns = waits_since_ns = 0;
        inputs = copied_bytes = 0;
    }
    void archive(Archive& archive);
};

// Whether an action is an execution whose duration was expected by measured estimates.
inline bool is_timed(const Flight& flight) {
    return flight.kind == ActionKind::INFER && flight.batch->curve != nullptr && flight.expected_ns > 0;
}

// The time of an execution that took took_ns, had it had the neighbours that it was predicted to have.
inline Ns as_predicted_ns(const Flight& flight, Ns took_ns) {
    if (flight.beside == 0 && flight.alone_ns == flight.expected_ns) {
        return took_ns;
    }
    Ns alone_ns = without_neighbours(took_ns, flight.residency->spec->program->drag(), flight.beside);
    double slower = static_cast<double>(flight.expected_ns) / static_cast<double>(std::max<Ns>(flight.alone_ns, 1));
    return static_cast<Ns>(static_cast<double>(alone_ns) * slower);
}

struct alignas(CACHE_LINE) Model {
    ModelId model_id = 0;
    std::uint32_t slot = 0;
    bool batches = false;
    bool draining = false;
    bool gone = false;
    bool is_varied = false;          // workers of one kind have prepared the model differently
    bool aside = false;              // being removed because of faults of its executions
    std::uint8_t load_evidence = 0;  // evidence that loading it ends workers, since its last successful load
    std::vector<Residency*> residencies;
    std::uint32_t servers = 0;     // executors of the arenas that its residencies are in
    std::vector<KindSpec*> specs;  // a preparation for each kind of device and each way to prepare there
    // Workers that have prepared it, or could be brought it. Those whose disks keep it (Worker::keeps()) come
    // first; keepers.h keeps this order.
    std::vector<WorkerId> workers;
    std::uint32_t keepers = 0;  // number of those whose disks keep it
    // The same without workers that leave, and the number of all others that could keep it.
    std::uint32_t copies = 0, takers = 0;
    // While it waits for a worker to bring a copy back: time until which none is made; 0: it does not.
    Ns grace_ns = 0;
    std::uint8_t short_in = 0;      // which list of models with too few copies it is in; see keepers.h
    Model* short_before = nullptr;  // neighbour in that list
    Model* short_after = nullptr;
    PendingList background;   // requests without a deadline, not planned yet
    Model* before = nullptr;  // neighbour in the list of models with background requests
    Model* after = nullptr;
    std::uint64_t live = 0;  // unanswered requests
    std::uint64_t served = 0;
    std::uint32_t unloads = 0;       // UNLOADs under way
    std::uint32_t fetches = 0;       // FETCHes under way
    std::uint32_t drops = 0;         // DROPs under way
    std::uint32_t place_cursor = 0;  // residency at which a search among many begins
    std::uint32_t asked_cursor = 0;  // position of next_asked()
    std::uint32_t load_cursor = 0;   // worker at which a search for a device to load it onto begins
    std::uint32_t touched = 0;       // round of Dispatcher::note_model() that has seen it
    std::uint32_t generation = 0;
    Bits homes;  // slots of the executors of arenas where it is resident
    ModelDemand demand;
    ArrivalRate asked{ASKED_HALF_LIFE_NS, ASKED_MEMORY_MIN_NS};  // device time of its last requests
    LoadShare loads;
    RecentTimes<EVIDENCE_MAX> unanswerable;  // evidence of executions whose requests had all been answered
    RecentTimes<OVERRUNS_MAX> overruns;
    Ns overrun_ns = 0;  // end of the last overrun

    // Returns the residency that the next request is charged to where none can be named: in turn, as often as
    // its arena has executors. Null: there is none.
    Residency* next_asked();

    // Returns the workers in an order for a search, step by step: those whose disks keep the model first, and
    // either in turn, from another one on for each `from`.
    WorkerId nearest(std::size_t from, std::size_t step) const {
        std::size_t others = workers.size() - keepers;
        return step < keepers ? workers[(from + step) % keepers] : workers[keepers + (from + step - keepers) % others];
    }

    // Enters a residency in the list, or removes it.
    void enter(Residency& residency);
    void leave(Residency& residency);

    // Whether the model is on a device, or will be, whose worker is not leaving.
    bool is_somewhere() const;
    // Whether a device can serve the model, without residencies whose LOADs may never end.
    bool is_within_reach() const;

    void reset() {
        batches = draining = gone = is_varied = aside = false;
        load_evidence = 0;
        unanswerable = {};
        overruns = {};
        overrun_ns = 0;
        specs.clear();
        workers.clear();
        residencies.clear();
        servers = 0;
        homes = {};
        live = served = 0;
        keepers = copies = takers = 0;
        short_in = 0;
        grace_ns = 0;
        unloads = fetches = drops = touched = place_cursor = asked_cursor = load_cursor = 0;
        demand = ModelDemand();
        asked = ArrivalRate(ASKED_HALF_LIFE_NS, ASKED_MEMORY_MIN_NS);
        loads = {};
    }
    void archive(Archive& archive);

    // The least planned duration of a batch of this size on any kind of device; NEVER_NS if none has a bound
    // for it.
    Ns least_alone_ns(std::uint32_t shape, std::uint32_t size) const {
        Ns least = NEVER_NS;
        for (const KindSpec* spec : specs) {
            if (Ns alone = spec->alone_ns(shape, size); alone > 0) {
                least = std::min(least, alone);
            }
        }
        return least;
    }

    // The least duration of a batch at best, without margin (Curve::hoped_ns()); the bound where its shape
    // was never measured.
    Ns least_hoped_ns(std::uint32_t shape, std::uint32_t size) const {
        Ns least = NEVER_NS;
        for (const KindSpec* spec : specs) {
            Curve* curve = spec->program->curve(shape);
            if (Ns exec = curve != nullptr ? curve->hoped_ns(size) : spec->alone_ns(shape, size); exec > 0) {
                least = std::min(least, exec);
            }
        }
        return least;
    }

    KindSpec* spec(std::uint32_t kind, std::uint32_t variant) const {
        for (KindSpec* spec : specs) {
            if (spec->kind == kind && spec->variant == variant) {
                return spec;
            }
        }
        return nullptr;
    }
    // Returns the preparation by the arena's worker; null if there is none.
    KindSpec* spec(const Arena& arena) const;

    // Notes that no worker of the kind has this preparation any more. True if it leaves the list, because
    // others of the kind have prepared the model otherwise: decisions must not count with a preparation that
    // no device has.
    bool leave_spec(KindSpec& spec);
    // Updates is_varied after a change of `specs`.
    void note_variants();
};

}  // namespace clockwork
