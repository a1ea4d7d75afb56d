// Memory managers: which models are evicted from devices and stores, and when.
#pragma once

#include <cstddef>
#include <vector>

#include "scheduler/machines.h"

namespace clockwork {

// Predicted end of a busy model's work.
struct PredictedEnd {
    Ns finish_ns;
    Residency* residency;
};

// Decides evictions; arenas (arenas.h) carry them out. Loads are not asked for by this interface: each
// manager orders its own when it is told of an event.
class Memory {
public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    virtual ~Memory() = default;

    // Whether an idle model may be evicted.
    virtual bool may_evict(const Residency& /*residency*/) const { return true; }
    // Sorts idle models into the order of eviction, a part at a time. The first `ordered` are sorted already;
    // the returned number, at least one more, are sorted afterwards. They are passed in least recently used
    // first.
    virtual std::size_t order_evictable(std::vector<Residency*>& found, std::size_t /*ordered*/) {
        return found.size();
    }
    // Adjusts the predicted ends of a device's busy models for the work that is planned on them.
    virtual void count_planned(const Arena& /*arena*/, std::vector<PredictedEnd>& /*busy*/) const {}
    // Whether a request still waits for a pending load. If not, the load is dropped.
    virtual bool is_load_wanted(const Residency& residency) const = 0;

    // Whether a store may drop a model (from which nothing is being loaded), and the worth of all its copies:
    // of equal copies, the least recently used is dropped first.
    virtual bool may_drop(const Model& /*model*/) const { return true; }
    virtual double copy_worth(const Model& /*model*/) const { return 0; }

    // Notes that a residency leaves its device, or its load is dropped.
    virtual void gone_from(Residency& /*residency*/) {}
    // Notes that a FETCH ended, successfully or not.
    virtual void store_changed(Worker& /*worker*/, Model& /*model*/) {}
};

}  // namespace clockwork
