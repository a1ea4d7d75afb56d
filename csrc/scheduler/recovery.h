// Failures: actions that are tried again, requests and models that are suspected, and those that are given
// up.
//
// An action that was executing when a worker ended may be the cause. Its requests are tried again by
// themselves: in batches of their own, on a device where nothing else is under way, after other waiting
// requests. Evidence stays with a request; at EVIDENCE_MAX the request is answered as failed and its model
// set aside. The evidence of an execution whose requests were all answered before it ended stays with the
// model. Actions that were only queued behind are planned anew.
#pragma once

#include <vector>

#include "scheduler/requests.h"

namespace clockwork {

class Recovery {
public:
    Recovery(State& state, Arenas& arenas, Models& models, Requests& requests, const Deciders& deciders)
        : state_(state), arenas_(arenas), models_(models), requests_(requests), deciders_(deciders) {}

    // Answer a request that no worker can serve any more.
    void abandon(Pending& pending);
    // A worker that had the model has left or leaves: answer the requests that no other worker can serve.
    void strand(Model& model);
    // If LOADs under way on an arena are stuck: count on none of them, and plan anew the requests that wait
    // for them.
    void watch_loads(Arena& arena);

    // Mark the actions that a lost worker, or a broken device, was executing: the oldest action of each lane.
    // If the oldest should have ended by now, its result may have been lost on the way; then the next action
    // is marked, too.
    void blame(const Arena& arena);
    // Note that a worker was lost: actions sent before are not suspected of ending other workers.
    void worker_lost() { lost_ns_ = state_.now; }
    // Count a fault against a model and the requests of a flight, which have been taken back already.
    void accuse(const Flight& flight, Fault fault);
    // Set a model aside, or continue its removal, after one of its actions has ended.
    void follow(Model& model);
    // Answer every request for a model that was set aside, except those under way, in the order of arrival.
    void set_aside(Model& model);

    void archive(Archive& archive) { archive(lost_ns_); }

private:
    State& state_;
    Arenas& arenas_;
    Models& models_;
    Requests& requests_;
    const Deciders& deciders_;
    Ns lost_ns_ = -1;  // time of the last loss of a worker
};

}  // namespace clockwork
