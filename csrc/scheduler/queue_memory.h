// A memory manager of a policy with queues: decides which models to LOAD, where and when, and which to
// UNLOAD.
//
// It is told of requests that wait, are sent and end, and each look at a device asks it for a load. It
// decides; arenas act (pages, orders, books). A load is ordered only when it can be sent at once, so no load
// is planned for requests that are gone by then.
#pragma once

#include "scheduler/placement.h"

namespace clockwork {

class QueueMemory : public Memory {
public:
    // A request waits in a queue now (again, if it was sent before).
    virtual void waits(Pending& pending) = 0;
    // A request was answered unsent, and no longer waits.
    virtual void leaves(Pending& pending) = 0;
    // A batch was sent, and its requests no longer wait; or it ended, successfully or not.
    virtual void sent(Flight& flight) = 0;
    virtual void ended(Flight& /*flight*/) {}
    // Order the loads that this device should begin now.
    virtual void look(Arena& arena) = 0;
    // The policy finds that the requests waiting for a model cannot all be in time on the devices that have
    // it.
    virtual void press(Queue& /*queue*/) {}
    // A waiting request of the model was turned away.
    virtual void turned_away(const Model& /*model*/) {}
    // Whether a copy of the model, loaded now onto an idle device over an idle link, would serve an arriving
    // request in time that those devices cannot which have the model.
    virtual bool could_copy(const Pending& /*pending*/) const { return false; }
    // Whether a device other than this executor, which has, loads or could load the model, would serve a
    // request in time.
    virtual bool is_served_elsewhere(const Pending& /*pending*/, const Executor& /*executor*/) const { return false; }
    // Whether requests of a model that this device loads would be late on the others that have or load it.
    virtual bool is_needed(const Model& /*model*/, const Executor& /*executor*/) const { return false; }
    // A model that is on devices wants another device now, and none of its devices could take work.
    virtual void found_all_busy(Model& /*model*/) {}

    virtual void arrived_on(Residency& residency) = 0;
    // The set of places where a model can be loaded has changed.
    virtual void renew(Model& model) = 0;
    virtual void model_gone(Model& model) = 0;
    virtual void joined(Arena& arena) = 0;
    virtual void archive(Archive& archive) = 0;
    virtual void check_invariants() const {}
};

}  // namespace clockwork
