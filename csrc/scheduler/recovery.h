// What failed, or may never end: what is tried again, what is suspected, what is given up.
//
// What was executing when a worker ended may be why. It is tried again, but by itself: in a batch of its own, on a
// device where nothing else is under way, after what else waits. Evidence stays with a request, and at EVIDENCE_MAX it
// is answered as failed and its model set aside; an execution whose requests were all answered before it ended leaves
// its evidence with the model. What was only queued behind is planned anew like anything else.
#pragma once

#include <vector>

#include "scheduler/requests.h"

namespace clockwork {

class Recovery {
public:
    Recovery(State& state, Arenas& arenas, Models& models, Requests& requests, const Deciders& deciders)
        : state_(state), arenas_(arenas), models_(models), requests_(requests), deciders_(deciders) {}

    // Answer a request that nobody can serve any more.
    void abandon(Pending& pending);
    // A model can no longer be served by a worker that left or leaves: answer whoever waits for it in vain.
    void strand(Model& model);
    // If LOADs under way there are stuck: count on none of them, and plan anew what waits for them.
    void watch_loads(Arena& arena);

    // Notes what a device was at when its worker was lost, or it broke: the oldest action of each lane. Had the oldest
    // ended by now, as was thought, its result may have been lost on its way: then the next had begun, too.
    void blame(const Arena& arena);
    // A worker is lost: what was sent before is not suspected of what ends others.
    void worker_lost() { lost_ns_ = state_.now; }
    // Holds against a model, and its requests in the flight, what became of it. They have been taken back already.
    void accuse(const Flight& flight, Fault fault);
    // Goes on with a model that is set aside, or removed, for which something has ended.
    void follow(Model& model);
    // Answers every request for a model that is set aside and not under way, in the order of their coming.
    void set_aside(Model& model);

    void archive(Archive& archive) { archive(lost_ns_); }

private:
    State& state_;
    Arenas& arenas_;
    Models& models_;
    Requests& requests_;
    const Deciders& deciders_;
    Ns lost_ns_ = -1;  // when the last worker was lost
};

}  // namespace clockwork
