// The outcome of serving requests strictly in the order of their deadlines.
//
// The fluid estimate of a wait counts requests that will be given up, and batches that will not form. This
// part forms the batches, and is asked where the fluid estimate would refuse a request.
// docs/policies/adaptive.md explains the rule.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/queues.h"

namespace clockwork {

// Bounds on the devices and the requests that an answer is computed from. Beyond them the answer is "no".
inline constexpr std::size_t ORDERED_DEVICES_MAX = 8;
inline constexpr std::uint32_t ORDERED_REQUESTS_MAX = 64;

// A request joins a batch that then takes at most this percentage of the request's own time longer.
inline constexpr Ns BATCH_SAVES = 90;

// The time by which a request of `size` rows prolongs a batch of `rows` rows that takes took_ns; NEVER_NS:
// the batch has no room for it, or hardly saves anything.
Ns longer_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows, Ns took_ns, std::uint32_t size);

class InOrder {
public:
    InOrder(State& state, const Queues& queues) : state_(state), queues_(queues) {}

    // Whether a request would be in time if the devices of its model served all that waits for them by level
    // and deadline, and gave up what would be late.
    bool serves(const Pending& pending);

private:
    // A queue of which the first requests were served.
    struct Cursor {
        const Queue* queue;
        std::uint32_t place = 0;
        const Waiting& first() const { return (*queue)[place]; }
    };
    // A device, and the batch that it was given last.
    struct Device {
        const Arena* arena;
        Ns free_ns;
        const Model* model = nullptr;
        std::uint32_t shape = 0;
        std::uint32_t rows = 0;
        Ns took_ns = 0;
        Ns due_ns = 0;
    };

    bool collect(const Pending& pending);
    bool serve(const Model& model, std::uint32_t shape, const Waiting& waiting);

    State& state_;
    const Queues& queues_;
    std::vector<Device> devices_;
    std::vector<Cursor> cursors_;  // heap, the first to be served first
};

}  // namespace clockwork
