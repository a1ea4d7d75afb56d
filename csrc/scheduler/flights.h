// Actions under way, and the accuracy of their predictions.
#pragma once

#include "scheduler/state.h"

namespace clockwork {

// Notes that a batch leaves with its inputs: its arrival time is that of its inputs.
void send_inputs(Flight& flight, Ns now);
// Learns from the arrival of a batch with its inputs at ready_ns. is_ok: it was executed.
void learn_inputs(const Flight& flight, Ns now, Ns ready_ns, bool is_ok);

class Flights {
public:
    explicit Flights(State& state) : state_(state) {}

    // Make an action that is about to be sent. It enters the books with enter(); until then its arrival time
    // may be corrected.
    Flight* make(Arena& arena, ActionKind kind, Residency& residency, Batch* batch, Ns expected_ns, Ns duration_ns);
    void enter(Flight& flight);
    // Return the order that sends the action; the caller fills in the fields of its kind.
    Command& order(CommandKind kind, const Flight& flight);
    // Take an action out of the books; its record is given back at the end of the step.
    void end(Flight& flight);
    // Compare the prediction of an action with its result.
    void judge(const Flight& flight, const ActionResult& result);

private:
    static PredictedLane& predicted_lane(const Flight& flight);

    State& state_;
};

}  // namespace clockwork
