// Batches that are sent to executors, and come back.
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
    // Whether nothing may be sent to an executor, because what it executes is overdue. Then whatever was sent there behind
    // that is taken back, to be planned anew.
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
    // Have a shape measured with this residency, which is expected to take as long as this.
    void measure(Executor& executor, Residency& residency, std::uint32_t shape, std::uint32_t rows, Ns bound_ns);

    // One of them came back: its executor's lane, and its time.
    void count(const Flight& flight, const ActionResult& result);
    // If it was overdue, its model is charged for that; if it was not, a single one before it is excused. True if it was.
    bool charge_overdue(const Flight& flight, const ActionResult& result);
    void leave_lane(Flight& flight, const ActionResult& result);
    // Its unanswered requests, free to be planned again, are appended.
    void take_back(Flight& flight, std::vector<Pending*>& waiting);
    void retire(Flight& flight);

private:
    // Has the worker give back what waits behind the first of its lane.
    void recall_waiting(const Executor& executor);
    // Enter an action of the execute lane in the books.
    Flight* fly(FlightKind kind, Batch& batch, Ns expected_ns, Ns duration_ns);

    State& state_;
    Flights& flights_;
    const Deciders& deciders_;
};

}  // namespace clockwork
