// Copies of requests for shadows, from a request's arrival until both answers are there to be compared.
//
// A copy has no deadline for the scheduler, which serves such requests in idle time. A copy is given up when
// its answer would have been due. The scheduler gets few copies at once: it makes batches of the waiting
// copies, and a request that arrives meanwhile waits for the end of a batch.
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
    HeldRequest* first = nullptr;  // null: the request has ended
    HeldRequest* copy = nullptr;
    std::shared_ptr<ShadowTally> tally;
    AnswerKept answer;      // the answer that came first
    std::size_t bytes = 0;  // the bytes of `answer`

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
    // queued_max: the most held requests, of which copies may be half.
    ShadowCopies(HeldRequests& requests, ShapeNumbers& shapes, std::size_t queued_max)
        : requests_(requests), shapes_(shapes), queued_max_(queued_max) {}

    // Sets the most copies that the scheduler has at once: the number of devices.
    std::size_t width = 1;

    // Whether a request can be copied: there is room, the shadow accepts the request, and no tensor lies in
    // the client's memory, which the client reuses after its answer. copy() may follow. came: the received
    // tensors and frames, without the defaults of the request's model, which the shadow does not share.
    bool can_copy(const ServedRoute& route, const wire::InferRequest& request, const AcceptedRequest& accepted,
                  const FrameBytes& frames, std::size_t came, std::int64_t machine);
    // Copies a request that has just arrived, after can_copy() returned true. slo_ns: 0: no SLO.
    void copy(HeldRequest& first, const ServedRoute& route, const AcceptedRequest& accepted, std::int64_t priority,
              Ns slo_ns, Ns now);
    // Keeps an answer until the other is there, then has both compared. An answer beyond the bounds is
    // dropped. Called only for requests with a pair.
    void keep_answer(HeldRequest& held, TurnResults& results, const KeptResult& result, std::size_t part);
    // Records that a request with a pair has ended without an answer.
    void unpair(HeldRequest& held);
    // Ends a copy, for which no client waits; replaces HeldRequests::release().
    void release(HeldRequest& copy);

    // The time at which the next copy is given up; NEVER_NS if there is none.
    Ns next_ns();
    // Gives up the copies that are due, or whose request was not answered. Only between the orders of two
    // decisions.
    void cancel_due(Ns now);
    // Gives up the copies that the scheduler does not know yet, because shape numbers are about to be
    // reassigned.
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
    HeldRequest& make(HeldRequest& first, const ServedRoute& route, std::uint64_t bytes);
    void send(HeldRequest& copy, const ArrivalTerms& terms, Ns slo_ns, Ns now);
    void feed(Ns now);
    void give_up(HeldRequest& copy, Ns now);
    void give_back(ShadowPair* pair);

    HeldRequests& requests_;
    ShapeNumbers& shapes_;
    std::size_t queued_max_;
    Pool<ShadowPair> pairs_;
    AcceptedRequest accepted_;  // the last checked request, as accepted for the shadow
    // for shadows with other optional inputs: the request with the shadow's defaults
    wire::InferRequest request_;
    FrameBytes frames_;
    std::size_t came_ = 0;  // number of frames received with the request
    std::size_t count_ = 0;
    std::size_t bytes_ = 0;        // bytes of copies and of kept answers
    std::deque<Waiting> waiting_;  // copies in the order of arrival, some of them given up
    std::size_t sent_ = 0;         // the number of copies that the scheduler has
    std::vector<Due> due_;         // a heap of the times at which copies are given up
    std::vector<RequestId> moot_;  // copies whose request was not answered
    Comparer comparer_;
};

}  // namespace clockwork
