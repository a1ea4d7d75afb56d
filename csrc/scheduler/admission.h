// Admission: a request is promised its deadline, or refused at once.
//
// It is admitted only if it fits into some device's plan, into a batch of its model or as a batch of its own, so that
// it and everything promised before still finishes in time as predicted. A higher priority goes before lower ones that
// are still in time behind it, whatever its deadline, and may displace lower ones that were not sent.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "scheduler/parts.h"
#include "scheduler/plan.h"

namespace clockwork {

// A batch is sent when its device is predicted to be free within this (the paper's value), or earlier where that has
// been too late: see lead.h.
inline constexpr Ns SCHEDULE_AHEAD_NS = 5'000'000;

// What models beyond their shares are promised stands in the plan behind all else: their keys are later by this.
inline constexpr Ns BEYOND_NS = 1'000'000 * SECOND;

// Places behind what it may not delay that a request within its share tries, where models are beyond theirs.
inline constexpr std::size_t BETWEEN_MAX = 4;

// Joining a batch must cost at least 1/50 less than running alone.
inline constexpr Ns JOIN_GAIN = 50;

// Batches of lower levels that a request tries to go before.
inline constexpr std::size_t AHEAD_MAX = 4;

// Batches of its model that an arriving request tries to join.
inline constexpr std::size_t JOIN_SCAN_MAX = 4;

// Residencies of its model that a request compares before it takes the best. Of a model that is on more devices than
// this, the search begins behind the one that was chosen last and ends at the first that is idle: at a thousand
// devices a look at all of them costs more than everything else, and the best of a few is nearly the best of all.
inline constexpr std::size_t PLACE_SCAN_MAX = 16;

// Residencies that are looked at, while none could take the request, before it is displaced, loaded or refused.
inline constexpr std::size_t PLACE_TRY_MAX = 64;

// Requests of lower priority that one arrival may displace.
inline constexpr std::size_t DISPLACE_MAX = 64;

// Devices for which a load is planned through, best first.
inline constexpr std::size_t LOAD_SCAN_MAX = 4;

// Devices on which a load would be done about as soon are alike: the one with more free pages gets it.
inline constexpr Ns LOAD_ALIKE_NS = 1'000'000;

// A promise keeps this share of the time left (at most RESERVE_NS) back for what no estimate foresees: a device or a
// link that falters. Without it a queue filled to the last microsecond breaks several promises at one falter: at 1.5
// times capacity on two cores, 0.8 % of what was admitted missed; the goodput is the same.
inline constexpr Ns RESERVE_SHARE = 50;
inline constexpr Ns RESERVE_NS = 2'000'000;

// What may enter a plan.
class Admission {
public:
    Admission(Parts& parts, Plans& plans)
        : state_(parts.state),
          arenas_(parts.arenas),
          requests_(parts.requests),
          executions_(parts.executions),
          idle_(parts.idle),
          plans_(plans) {}

    // How long before a device is planned to be free its next batch is sent.
    Ns ahead_ns(const Executor& executor) const { return std::max(SCHEDULE_AHEAD_NS, executor.lead.ns(state_.now)); }
    // Promise a request its deadline on the device that finishes it first. False if none can.
    bool place(Pending& pending);
    // Make room by displacing requests of lower priority: the lowest first, then the latest deadline.
    bool displace(Pending& pending);
    // Notes which device's time it asked for: of that where it is planned, or of one that could not take it.
    void note_asked(Pending& pending);
    // Say why, which SLO would have been admitted, and when this one might be.
    void refuse_in_detail(Pending& pending);

private:
    // Where a request could go.
    struct Slot {
        Ns finish_ns;       // predicted
        std::size_t index;  // in the plan
        Batch* batch;       // to join; null: a new one
        Ns key_ns;          // of a new one
    };

    struct Cold {
        Ns time;  // in units of LOAD_ALIKE_NS
        std::uint32_t free_pages;
        Arena* arena;
        KindSpec* spec;
    };

    template <typename Function>
    void for_some_residencies(const Model& model, Function&& function) const;
    // A request that looks for a place in an executor's plan.
    struct Search {
        Executor& executor;
        Residency& residency;
        const Pending& pending;
        Curve* curve;
        Ns duration;  // of a batch of its own
        Ns limit;     // by when it must have finished
        Ns free;      // when the executor has done all that it was sent
        bool is_beyond;
    };
    // By when a batch that is promised now must be planned to end: the reserve before its deadline.
    Ns limit_ns(const Executor& executor, Ns deadline_ns) const {
        return deadline_ns - executor.worker->back_ns -
               std::min((deadline_ns - state_.now) / RESERVE_SHARE, RESERVE_NS);
    }
    bool find_slot(Executor& executor, Residency& residency, const Pending& pending, Slot& slot);
    bool is_idle(const Executor& executor) const;
    bool join(const Search& search, Batch* batch, Slot& slot);
    bool go_ahead(const Search& search, Slot& slot);
    void change_places(Pending& pending);
    std::size_t first_owed_late(const Plan& plan, Ns time, std::size_t start) const;
    Ns passing_ns(const Executor& executor, const Residency& residency, Ns begin, std::size_t index) const;
    static std::size_t place_of(const Plan& plan, const Residency& residency, Ns key_ns);
    bool keeps_loads(Executor& executor, Ns free, std::size_t index, Ns added);
    void commit(Pending& pending, Executor& executor, Residency& residency, const Slot& slot);
    bool place_cold(Pending& pending);
    bool place_doomed(Pending& pending);
    bool delay_loads(Executor& executor, Residency& residency, const Pending& pending, Slot& slot);
    Ns least_finish_ns(const Executor& executor, Residency& residency, Ns duration) const;
    void warm(Model& model);
    bool take_place(Executor& executor, Residency& residency, Pending& pending);
    void answer_displaced(const std::vector<Pending*>& victims);
    void find_displaced(const Executor& executor, Residency& residency, const Pending& pending,
                        std::vector<Pending*>& gone) const;

    State& state_;
    Arenas& arenas_;
    Requests& requests_;
    Executions& executions_;
    Idle& idle_;
    Plans& plans_;
    std::vector<Place> loadable_;
    std::vector<Cold> cold_;
    std::vector<Pending*> displaced_;
    std::vector<Ns> cleared_;                     // of the pending loads of an arena, in their order
    std::vector<std::pair<Batch*, Ns>> earlier_;  // batches of a model, and when they are answered
};

}  // namespace clockwork
