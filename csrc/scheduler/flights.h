// Actions that were sent and have not been answered, and how well they were predicted.
#pragma once

#include "scheduler/state.h"

namespace clockwork {

class Flights {
public:
    explicit Flights(State& state) : state_(state) {}

    // An action that is about to be sent. It is in the books from enter() on; until then, when it will be there may be
    // corrected.
    Flight* make(Arena& arena, FlightKind kind, Residency& residency, Batch* batch, Ns expected_ns, Ns duration_ns);
    void enter(Flight& flight);
    // The order that sends it; what is particular to its kind is the caller's.
    Command& order(CommandKind kind, const Flight& flight);
    // Takes it out of the books; it is given back when the step is over.
    void end(Flight& flight);
    // What was predicted of it, held against what came of it.
    void judge(const Flight& flight, const ActionResult& result);

private:
    static PredictedLane& predicted_lane(const Flight& flight);

    State& state_;
};

}  // namespace clockwork
