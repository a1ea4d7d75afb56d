// Actions under way, and the accuracy of their predictions.
#pragma once

#include "scheduler/state.h"

namespace clockwork {

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
