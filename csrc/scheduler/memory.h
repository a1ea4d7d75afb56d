// What a policy's memory manager decides: which models make room on devices and in host stores, and when.
#pragma once

#include <cstddef>
#include <vector>

#include "scheduler/machines.h"

namespace clockwork {

// When a model will be idle that has work now.
struct Ending {
    Ns finish_ns;
    Residency* residency;
};

// Arenas (arenas.h) carry it out. No manager asks for loads by this interface: each orders its own, when it is told of
// what happened.
class Memory {
public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    virtual ~Memory() = default;

    // Whether an idle model may make room.
    virtual bool may_evict(const Residency& /*residency*/) const { return true; }
    // Idle models in the order in which they are to make room, a part at a time: the first `ordered` are in order, and
    // as many are when it returns as it says, at least one more. They come least recently used first.
    virtual std::size_t order_evictable(std::vector<Residency*>& found, std::size_t /*ordered*/) {
        return found.size();
    }
    // Busy models of a device, with the time at which what was sent of them ends: later for those with work planned.
    virtual void count_planned(const Arena& /*arena*/, std::vector<Ending>& /*busy*/) const {}
    // Whether anybody still waits for a load that was not sent. If not, it is dropped.
    virtual bool is_load_wanted(const Residency& residency) const = 0;

    // Whether a host store may drop a model (from which nothing is being loaded), and what its copy there is worth: of
    // those that are equal, the least recently used goes first.
    virtual bool may_drop(const Model& /*model*/) const { return true; }
    virtual double host_worth(const Model& /*model*/) const { return 0; }

    // A residency leaves its device, or its load is dropped.
    virtual void gone_from(Residency& /*residency*/) {}
    // A FETCH came to its end, well or not.
    virtual void host_changed(Worker& /*worker*/, Model& /*model*/) {}
};

}  // namespace clockwork
