// Batches: sent to executors, and their results.
#pragma once

#include "scheduler/flights.h"

namespace clockwork {

class Executions {
public:
    Executions(State& state, Flights& flights, const Deciders& deciders)
        : state_(state), flights_(flights), deciders_(deciders) {}

    Batch* make_batch(Executor& executor, Residency& residency, std::uint32_t shape, Curve* curve, Ns key_ns);
    // Send a batch, which must be in no plan, to its executor.
    Flight* send(Batch& batch);
    // Whether nothing may be sent to an executor because its execution is overdue. If so, the actions behind
    // that execution are revoked, and their requests planned anew.
    bool is_held_up(Executor& executor) {
        if (executor.lane.empty()) {
            return false;
        }
        Ns overdue = executor.overdue_at_ns();
        if (state_.now >= overdue) [[unlikely]] {
            recall_waiting(executor);
            return true;
        }
        if (executor.lane.size() > 1) {
            executor.wake_at(overdue);
        }
        return false;
    }
    // Predict an execution that is sent now by its neighbours: alone_ns without any, most_ns with all.
    Ns beside_ns(const Executor& executor, Ns alone_ns, Ns most_ns) const;
    // Measure a shape with this residency; bound_ns: the expected duration.
    void measure(Executor& executor, Residency& residency, std::uint32_t shape, std::uint32_t rows, Ns bound_ns);

    // Note which neighbours an execution had; before count().
    void look_beside(Flight& flight, const ActionResult& result) const;
    // Note a result in its executor's lane and time.
    void count(const Flight& flight, const ActionResult& result);
    // Charge the model of an overdue execution; an execution that ended in time excuses a single overdue one
    // before it. True if this one was overdue.
    bool charge_overdue(const Flight& flight, const ActionResult& result);
    void leave_lane(Flight& flight, const ActionResult& result);
    // Append the unanswered requests of a flight, free to be planned again.
    void take_back(Flight& flight, std::vector<Pending*>& waiting);
    void retire(Flight& flight);

private:
    // Learn how late the messages of an INFER were. is_sane: the result's times can be compared.
    void learn_late(const Flight& flight, const ActionResult& result, bool is_sane) const;
    // Revoke the actions behind the first of an executor's lane.
    void recall_waiting(const Executor& executor);
    // Enter an action of the execute lane in the books.
    Flight* fly(ActionKind kind, Batch& batch, Ns expected_ns, Ns duration_ns);
    State& state_;
    Flights& flights_;
    const Deciders& deciders_;
};

}  // namespace clockwork
