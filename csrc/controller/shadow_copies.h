// The copies of requests that shadows answer: from a request's arrival until both answers are there to be compared.
//
// A copy has no deadline for the scheduler, which serves such requests in time that no other has use for; it is given up
// when its answer would have been due. The scheduler gets few at once: it makes batches of the copies that wait, and a
// request that comes meanwhile waits for the end of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "controller/checks.h"
#include "controller/held_requests.h"
#include "controller/routes.h"
#include "controller/shadows.h"
#include "controller/shape_numbers.h"
#include "controller/turn_results.h"

namespace clockwork {

// A request and its copy, until both have ended.
struct ShadowPair {
    HeldRequest* first = nullptr;  // null: it has ended
    HeldRequest* copy = nullptr;
    std::shared_ptr<ShadowTally> tally;
    AnswerKept answer;      // whichever came first
    std::size_t bytes = 0;  // of it

    std::uint32_t slot = 0;
    std::uint32_t generation = 0;

    void reset() {
        first = copy = nullptr;
        tally.reset();
        answer = AnswerKept();
        bytes = 0;
    }
};

class ShadowCopies {
public:
    // queued_max: requests that are held at most; of this, copies leave half free.
    ShadowCopies(HeldRequests& requests, ShapeNumbers& shapes, std::size_t queued_max)
        : requests_(requests), shapes_(shapes), queued_max_(queued_max) {}

    // Copies that the scheduler has at once: as many as there are devices.
    std::size_t width = 1;

    // Whether a request can be copied: there is room, and the shadow takes it too. Not if its tensors lie in the
    // client's memory, which is the client's again when it has its answer. copy() may follow. came: tensors and frames
    // that came; behind them the request has defaults of its model, which are not the shadow's.
    bool can_copy(const Route& route, const wire::InferRequest& request, const Accepted& accepted,
                  const FrameBytes& frames, std::size_t came, std::int64_t machine);
    // Copies a request that has just arrived, for which can_copy() said yes. slo_ns: 0: it has none.
    void copy(HeldRequest& first, const Route& route, const Accepted& accepted, std::int64_t priority, Ns slo_ns,
              Ns now);
    // Keeps an answer until the other's is there, or has both compared. An answer beyond the bounds is dropped. Only of
    // requests that have a pair.
    void keep_answer(HeldRequest& held, TurnResults& results, const KeptResult& result, std::size_t part);
    // A request that has a pair has ended without an answer.
    void unpair(HeldRequest& held);
    // Ends a copy, which nobody waits for: instead of HeldRequests::release().
    void release(HeldRequest& copy);

    // When the next copy is given up; NEVER_NS where there is none.
    Ns next_ns();
    // Gives up the copies whose time has come, or whose request was not answered. Only between the orders of two
    // decisions.
    void cancel_due(Ns now);
    // The numbers of shapes are others' soon: gives up the copies that the scheduler does not know yet.
    void forget_shapes();

    std::size_t size() const { return count_; }

private:
    struct Due {
        Ns at_ns;
        RequestId id;
        bool operator>(const Due& other) const { return std::pair(at_ns, id) > std::pair(other.at_ns, other.id); }
    };
    struct Waiting {
        RequestId id;
        ArrivalTerms terms;
    };

    bool has_room(std::uint64_t bytes) const;
    HeldRequest& make(HeldRequest& first, const Route& route, std::uint64_t bytes);
    void send(HeldRequest& copy, const ArrivalTerms& terms, Ns slo_ns, Ns now);
    void feed(Ns now);
    void give_up(HeldRequest& copy, Ns now);
    void give_back(ShadowPair* pair);

    HeldRequests& requests_;
    ShapeNumbers& shapes_;
    std::size_t queued_max_;
    Pool<ShadowPair> pairs_;
    Accepted accepted_;           // the request that was checked last, as its shadow takes it
    wire::InferRequest request_;  // of models with optional inputs: that request, with defaults of the shadow
    FrameBytes frames_;
    std::size_t came_ = 0;  // its frames that came
    std::size_t count_ = 0;
    std::size_t bytes_ = 0;        // of copies, and of answers that wait for the other
    std::deque<Waiting> waiting_;  // in the order of arrival; some have been given up
    std::size_t sent_ = 0;         // that the scheduler has
    std::vector<Due> due_;         // a heap: when the copies have waited long enough
    std::vector<RequestId> moot_;  // whose request was not answered
    Comparer comparer_;
};

}  // namespace clockwork
