// Interface of a policy: which requests are admitted, where they wait, and which batch a device is sent next.
//
// The dispatcher (dispatcher.h) tells the policy of events and asks it for decisions; the policy carries them
// out by its parts (parts.h). Each policy has a memory manager (memory.h).
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
    // Whether the policy can serve workers whose host store has a budget.
    virtual bool plans_fetches() const { return true; }

    // ----- requests ----------------------------------------------------------------------------

    // A request arrived for a model that is on some device, or can be loaded. open() it and have it wait, or
    // refuse() it.
    virtual void arrive(Pending& pending) = 0;
    // Have a request with a deadline wait again, after its action failed or its plan was dropped; it waits
    // nowhere now. False if it cannot be in time any more.
    virtual bool replace(Pending& pending) = 0;
    // The timer of a request is due (see State::set_timer()).
    virtual void expire(Pending& pending) = 0;
    // Remove a request that was not sent from wherever it waits; it will be answered, or planned anew.
    virtual void unplan(Pending& pending) = 0;
    // A worker that had the model has left or leaves: answer the requests that no other worker can serve.
    virtual void strand(Model& /*model*/) {}

    // ----- executors -----------------------------------------------------------------------------

    // An executor or its arena changed (see State::touch()): send its next batches.
    virtual void dispatch(Executor& executor) = 0;
    // Whether a request waits that the executor could be sent now, regardless of whether it should be.
    virtual bool has_work(const Executor& executor) const = 0;
    // Whether the executor is expected to execute when its lane has ended.
    virtual bool expects_work(const Executor& executor) const { return has_work(executor); }
    // The batches that wait for this executor alone, in the order of their sending.
    virtual const std::vector<Batch*>& planned(const Executor& executor) const;
    // Append the requests of those batches, in order, and remove the batches.
    virtual void clear_plan(Executor& /*executor*/, std::vector<Pending*>& /*waiting*/) {}
    // Whether the work that waits for an executor may wait until until_ns, and loads onto any device of its
    // worker may take link_ns longer, without breaking a promise.
    virtual bool can_wait(const Executor& /*executor*/, Ns /*until_ns*/, Ns /*link_ns*/) const { return true; }
    virtual void joined(Executor& /*executor*/) {}
    virtual void left(Executor& /*executor*/) {}

    // ----- actions -----------------------------------------------------------------------------

    // A batch is about to be sent: correct its arrival time, where its inputs take longer than an order.
    virtual void depart(Flight& /*flight*/) {}
    // A batch and its inputs were at its worker at ready_ns. is_ok: it was executed there.
    virtual void delivered(const Flight& /*flight*/, Ns /*ready_ns*/, bool /*is_ok*/) {}
    // A batch was executed in took_ns.
    virtual void executed(const Flight& /*flight*/, Ns /*took_ns*/) {}
    // A batch that was sent ended, successfully or not; its requests were answered, or wait again.
    virtual void ended(Flight& /*flight*/) {}

    // ----- models ------------------------------------------------------------------------------

    // A load has ended successfully: work may be sent to the model there.
    virtual void load_done(Residency& residency, Ns took_ns) = 0;
    // A load failed for the last time: answer the requests that wait for it.
    virtual void load_given_up(Residency& residency, const AnswerSentence& said) = 0;
    // Remove all work that is planned on a residency; append its requests, in order.
    virtual void evacuate(Residency& /*residency*/, std::vector<Pending*>& /*waiting*/) {}
    // Another worker can load the model.
    virtual void model_prepared(Model& /*model*/) {}
    virtual void model_gone(Model& /*model*/) {}

    // ----- estimates ---------------------------------------------------------------------------

    // New estimates were published for a shape of this program (on one kind of device).
    virtual void estimates_changed(ProgramEstimates& /*program*/, std::uint32_t /*shape*/) {}
    // A shape's estimates were dropped for want of room: keep no pointer to its curve.
    virtual void estimates_forgotten(ProgramEstimates& /*program*/, std::uint32_t /*shape*/) {}

    // ----- its state ---------------------------------------------------------------------------

    // False for a policy whose state lies elsewhere.
    virtual bool has_archive() const { return true; }
    // Archive the policy's own state. The records have been read, or written.
    virtual void archive(Archive& archive) = 0;

    // ----- what it says ------------------------------------------------------------------------

    // The margin of executions on a kind of device, as a share of their estimates.
    virtual double margin(std::uint32_t /*kind*/) const { return 0; }
    virtual PolicyStatus status(Ns /*now*/) const { return {}; }
    // Append every request that waits unsent and is in no plan nor background list, for check_invariants().
    virtual void collect_waiting(std::vector<const Pending*>& /*found*/) const {}
    virtual void check_invariants() const {}
};

inline const std::vector<Batch*>& Policy::planned(const Executor& /*executor*/) const {
    static const std::vector<Batch*> none;
    return none;
}

// The policy and its memory manager, for the parts below them. Set before the first event.
struct Deciders {
    Policy* policy = nullptr;
    Memory* memory = nullptr;
};

}  // namespace clockwork
