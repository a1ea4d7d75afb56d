// What a policy decides: which requests are let in, where they wait, and what a device is sent next.
//
// The dispatcher (dispatcher.h) tells it what happened and asks it; what it has decided it carries out by the parts that
// it was given (parts.h). A policy has a memory manager of its own (memory.h).
#pragma once

#include <vector>

#include "scheduler/machines.h"
#include "scheduler/memory.h"
#include "scheduler/scheduler.h"

namespace clockwork {

class Policy {
public:
    Policy() = default;
    Policy(const Policy&) = delete;
    Policy& operator=(const Policy&) = delete;
    virtual ~Policy() = default;

    virtual Memory& memory() = 0;
    // Whether it can serve workers whose host store has a budget.
    virtual bool plans_fetches() const { return true; }

    // ----- requests ----------------------------------------------------------------------------

    // A request for a model that is, or can be loaded, somewhere. open() it and have it wait, or refuse() it.
    virtual void arrive(Pending& pending) = 0;
    // Have a request wait anew whose action came to nothing, or whose plan was taken away; it has a deadline, and
    // waits nowhere now. False if it cannot be in time any more.
    virtual bool replace(Pending& pending) = 0;
    // A request reached the time at which something must be done about it (see State::set_timer()).
    virtual void expire(Pending& pending) = 0;
    // Take a request that was not sent out of wherever it waits; it will be answered, or planned anew.
    virtual void unplan(Pending& pending) = 0;
    // A model can no longer be served by a worker that left or leaves: answer whoever waits for it in vain.
    virtual void strand(Model& /*model*/) {}

    // ----- executors -----------------------------------------------------------------------------

    // Something happened to an executor or its arena (see State::touch()): send it what it should have now.
    virtual void dispatch(Executor& executor) = 0;
    // Whether a request waits here that the executor could be sent now; whether it should be is not asked.
    virtual bool has_work(const Executor& executor) const = 0;
    // The batches that wait for an executor alone, in the order in which it will be sent them.
    virtual const std::vector<Batch*>& planned(const Executor& executor) const;
    // Append the requests of those, in order, and let the executor have none.
    virtual void clear_plan(Executor& /*executor*/, std::vector<Pending*>& /*waiting*/) {}
    // Whether what waits for an executor may wait until then, and loads onto any device of its worker may take link_ns
    // longer: no promise would be broken.
    virtual bool can_wait(const Executor& /*executor*/, Ns /*until_ns*/, Ns /*link_ns*/) const { return true; }
    virtual void joined(Executor& /*executor*/) {}
    virtual void left(Executor& /*executor*/) {}

    // ----- actions -----------------------------------------------------------------------------

    // A batch leaves for its device: says when it will be there, where its inputs take longer than an order.
    virtual void depart(Flight& /*flight*/) {}
    // A batch was at its worker with its inputs, from then on; is_ok: and was executed there.
    virtual void delivered(const Flight& /*flight*/, Ns /*ready_ns*/, bool /*is_ok*/) {}
    // A batch was executed in took_ns.
    virtual void executed(const Flight& /*flight*/, Ns /*took_ns*/) {}
    // A batch that was sent came to its end, well or not; its requests were answered, or wait anew.
    virtual void ended(Flight& /*flight*/) {}

    // ----- models ------------------------------------------------------------------------------

    // A load was done: work may be sent to it.
    virtual void load_done(Residency& residency, Ns took_ns) = 0;
    // A load failed for the last time: answer whoever waits for it.
    virtual void load_given_up(Residency& residency, const Said& said) = 0;
    // Take all work that is planned on a residency off it; append its requests, in order.
    virtual void evacuate(Residency& /*residency*/, std::vector<Pending*>& /*waiting*/) {}
    // A model can be loaded on one worker more.
    virtual void model_prepared(Model& /*model*/) {}
    virtual void model_gone(Model& /*model*/) {}

    // ----- estimates ---------------------------------------------------------------------------

    // New estimates were published for a shape of this program (on one kind of device).
    virtual void estimates_changed(ProgramEstimates& /*program*/, std::uint32_t /*shape*/) {}
    // A shape's estimates were dropped for want of room: keep no pointer to its curve.
    virtual void estimates_forgotten(ProgramEstimates& /*program*/, std::uint32_t /*shape*/) {}

    // ----- its state ---------------------------------------------------------------------------

    // False for one whose state lies elsewhere.
    virtual bool has_archive() const { return true; }
    // What it keeps beside the books. Those have been read, or written.
    virtual void archive(Archive& archive) = 0;

    // ----- what it says ------------------------------------------------------------------------

    // The part of its estimate by which an execution on a kind of device is planned longer.
    virtual double margin(std::uint32_t /*kind*/) const { return 0; }
    virtual PolicyStatus status(Ns /*now*/) const { return {}; }
    // Appends every request that waits unsent and in no plan nor background list: check_invariants() looks for all.
    virtual void collect_waiting(std::vector<const Pending*>& /*found*/) const {}
    virtual void check_invariants() const {}
};

inline const std::vector<Batch*>& Policy::planned(const Executor& /*executor*/) const {
    static const std::vector<Batch*> none;
    return none;
}

// Who decides, as the parts below the policy know it. Set before the first event.
struct Deciders {
    Policy* policy = nullptr;
    Memory* memory = nullptr;
};

}  // namespace clockwork
