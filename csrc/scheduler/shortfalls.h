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
inline constexpr double BUSY_SUM = 1.1;

struct Shortfall {
    std::uint32_t late = 0;  // requests that would be late
    Ns due_ns = 0;           // the latest deadline of them
};

class Shortfalls {
public:
    Shortfalls(State& state, const Arenas& arenas, const Queues& queues, const Placement& placement)
        : state_(state), arenas_(arenas), queues_(queues), placement_(placement) {}

    // The model's shortfall, if its devices serve its requests in the order of their deadlines.
    // without: a device that is left out; null: none.
    Shortfall of(const Model& model, const Executor* without = nullptr) const;
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
    // A device that has or loads the model.
    struct Server {
        Ns free_ns;
        const KindSpec* spec;
        Ns back_ns;
        bool operator>(const Server& other) const { return free_ns > other.free_ns; }
    };

    template <typename Function>
    void for_each_server(const Residency& residency, const Executor* without, Ns due_ns, Function&& function) const;

    State& state_;
    const Arenas& arenas_;
    const Queues& queues_;
    const Placement& placement_;
    BusyParts busy_;
    mutable std::vector<Server> servers_;  // heap, the first to be free first
};

}  // namespace clockwork
