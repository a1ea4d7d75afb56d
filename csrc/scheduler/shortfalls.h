// Shortfalls: waiting requests of a model that would be late on the devices which have or load it, and copies
// of the model that would serve them. docs/policies/memory.md explains the rule.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/busy.h"
#include "scheduler/in_order.h"
#include "scheduler/placement.h"

namespace clockwork {

// Bounds on the requests and the devices that a shortfall is computed from.
inline constexpr std::uint32_t SHORT_REQUESTS_MAX = 64;
inline constexpr std::size_t SHORT_DEVICES_MAX = 64;

// Copies for single requests are loaded while the parts of their time for which the links load and the
// devices execute sum to at most BUSY_SUM.
inline constexpr double BUSY_SUM = 1.5;

struct Shortfall {
    std::uint32_t late = 0;  // requests that would be late
    Ns due_ns = 0;           // the latest deadline of them
};

class Shortfalls {
public:
    Shortfalls(State& state, const Arenas& arenas, const Queues& queues, const Placement& placement)
        : state_(state), arenas_(arenas), queues_(queues), placement_(placement) {}

    // The model's shortfall, if its devices serve its requests in the order of their deadlines. It is
    // computed once in a series of questions (Placement::Held).
    Shortfall of(const Model& model) const;
    // The same without one of the devices.
    Shortfall without(const Model& model, const Executor& left_out) const {
        placement_.begin_backlogs();
        return compute(model, &left_out);
    }
    // Whether copies, loaded now, would serve an arriving request in time, beside those of the shortfall.
    bool could_copy(const Pending& pending) const;
    // Counts the planned time of a load, or of an execution.
    void note_load(const KindSpec& spec) { busy_.add_load(state_.now, spec.load_planned_ns()); }
    void note_execution(Ns duration_ns) { busy_.add_execution(state_.now, duration_ns); }
    // Whether the links and the devices have time for copies that serve single requests.
    bool has_time(const Model& model) const;

    const BusyParts& busy() const { return busy_; }

    void archive(Archive& archive) { archive(busy_); }

    // Whether a device other than this executor, which has or loads the model, would serve a request in time.
    bool is_served_by_another(const Pending& pending, const Executor& executor) const;

private:
    // An executor that has or loads the model.
    struct Server {
        Ns free_ns;            // before the wait is counted: without it
        std::uint32_t number;  // breaks ties
        std::uint32_t arena;   // index in waits_
        bool is_counted;       // whether the wait behind requests of other models is
        const Residency* residency;
        bool operator>(const Server& other) const {
            return free_ns != other.free_ns ? free_ns > other.free_ns : number > other.number;
        }
    };

    // A shortfall that was computed in a series of questions.
    struct Known {
        std::uint64_t series = 0;
        Shortfall shortfall;
    };

    Shortfall compute(const Model& model, const Executor* left_out) const;
    Ns wait_ns(const Arena& arena, const Placement::Ahead& ahead, Ns enough_ns) const;
    Server& pop_soonest(const Placement::Ahead& ahead) const;

    State& state_;
    const Arenas& arenas_;
    const Queues& queues_;
    const Placement& placement_;
    BusyParts busy_;
    mutable std::vector<Known> known_;     // by the model's slot
    mutable std::vector<Server> servers_;  // heap, the first to be free first
    // The wait of each arena behind requests of other models; NEVER_NS: not computed yet.
    mutable std::vector<Ns> waits_;
};

}  // namespace clockwork
