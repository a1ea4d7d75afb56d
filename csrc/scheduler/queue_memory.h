// A memory manager of a policy with queues: what to LOAD, where and when, and what to UNLOAD.
//
// It is told what waits, is sent and ends, and is asked at every look at a device whether it wants to load something
// there now. It decides; arenas do it (pages, orders, books). A load is ordered only when it can be sent at once, so none
// is ever planned for requests that have gone by then.
#pragma once

#include "scheduler/placement.h"

namespace clockwork {

class QueueMemory : public Memory {
public:
    // A request waits in a queue now (anew, if it was sent before).
    virtual void waits(Pending& pending) = 0;
    // It was answered unsent, and waits no more.
    virtual void leaves(Pending& pending) = 0;
    // A batch was sent, whose requests wait no more; it ended, well or not.
    virtual void sent(Flight& flight) = 0;
    virtual void ended(Flight& /*flight*/) {}
    // Order what this device should load now.
    virtual void look(Arena& arena) = 0;
    // The requests that wait for a model cannot all be in time on the devices that have it, the policy finds.
    virtual void press(Queue& /*queue*/) {}
    // A model that devices have wants one now, and none of them could take work.
    virtual void found_all_busy(Model& /*model*/) {}

    virtual void arrived_on(Residency& residency) = 0;
    // A model can be loaded in other places than before.
    virtual void renew(Model& model) = 0;
    virtual void model_gone(Model& model) = 0;
    virtual void joined(Arena& arena) = 0;
    virtual void archive(Archive& archive) = 0;
    virtual void check_invariants() const {}
};

}  // namespace clockwork
