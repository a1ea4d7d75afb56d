// INFERs whose inputs lie in clients' memory, or whose outputs may be written there:
// clockwork/wire/shared.py.
//
// The inputs are copied before the INFER is queued, and the outputs after it has ended. Copies are done by
// other threads; this class keeps the books, and the road calls it with the time as an argument.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/order.h"
#include "wire/frame.h"
#include "wire/messages.h"
#include "worker/client_memory.h"
#include "worker/copies.h"
#include "worker/lent_copies.h"
#include "worker/results.h"
#include "worker/snapshots.h"

namespace clockwork::worker {

struct LendingBounds {
    SnapshotBounds snapshots;
    CopyBounds copies;
    // The time for writing outputs to a client's memory, and what is added for each byte. After that they are
    // sent, so that no client's memory delays the answers of a batch for long.
    Ns room_wait_ns = 0;
    Ns room_wait_byte_ns = 0;
};

// The part of a client's memory in which the outputs of a request may be written.
struct OutputRoom {
    LentMemory memory;
    std::int64_t bytes = 0;  // 0: there is no room
};

// The inputs of an order, wherever their bytes lie, and the rooms for its outputs.
struct HeldInputs : device::BufferOwner {
    std::vector<Frame> frames;             // of the INFER's message, its header first
    std::vector<SnapshotPlace> snapshots;  // of the inputs in clients' memory
    std::vector<OutputRoom> rooms;         // of each part; empty: no part has a room
    device::RequestTensors tensors;        // empty vectors with the memory of an earlier order's

    // Lets go of the inputs of an answered order, whose vectors it takes, so that this can be used again.
    void recycle(device::RequestTensors& used) {
        frames.clear();
        snapshots.clear();
        rooms.clear();
        std::swap(tensors, used);
        tensors.clear();
    }
};

// An INFER whose inputs are being copied.
struct Arriving {
    wire::ActionMessage action;
    std::unique_ptr<HeldInputs> inputs;
    std::vector<std::string_view> bytes;  // of each tensor, once it has been copied
    std::vector<std::shared_ptr<Copy>> copies;
    Ns due_ns = 0;  // the end of its window: it is answered although copies are under way
};

// The result of an INFER whose outputs are being copied.
struct Leaving {
    Outgoing outgoing;
    std::vector<std::shared_ptr<Copy>> copies;
    Ns due_ns = 0;
};

// The consequences of an event, for the road.
struct LendingNews {
    struct Refusal {
        std::int64_t action_id;
        Status status;
        std::string text;
    };
    std::vector<std::unique_ptr<Arriving>> arrived;  // all inputs have been copied
    std::vector<std::unique_ptr<Leaving>> left;      // to be sent
    std::vector<Refusal> refused;
};

class Lending {
public:
    // copies: of the road. piece_bytes: bytes of a copy after which the next owner has its turn.
    Lending(const LendingBounds& bounds, std::unique_ptr<CopyQueue> copies);

    std::size_t count() const { return arriving_.size() + leaving_.size(); }
    bool holds(std::int64_t action_id) const { return arriving_.contains(action_id) || leaving_.contains(action_id); }
    // The time at which run_due() has an action to answer; NEVER_NS: none.
    Ns due_ns() const;

    // Starts copying the inputs of an INFER, whose message it takes. frames: all frames of the message.
    // due_ns: the end of the window. Returns a sentence if the INFER is invalid, else "".
    std::string begin(wire::ActionMessage& action, std::vector<Frame>& frames, Ns due_ns);
    // Starts copying the outputs of an ended order to its rooms. False: none fits there, and the result is
    // to be sent at once.
    bool leave(const HeldInputs& inputs, std::unique_ptr<Leaving>& leaving, Ns now);
    // Goes on with the INFERs whose copies have ended.
    void take_copies(LendingNews& news);
    void run_due(Ns now, LendingNews& news);
    // Forgets an action whose inputs are being copied. False: there is none of this id.
    bool revoke(std::int64_t action_id);
    // Ends all: actions that arrive are refused as ACTION_CANCELLED, without a text; results are to be sent.
    void cancel(LendingNews& news);
    // Forgets all.
    void reset();
    // Ends the threads that copy. Nothing may be begun afterwards.
    void close() { copies_->close(); }

    void tidy(Ns now) { snapshots_->tidy(now); }
    std::int64_t copied_bytes() const { return snapshots_->used_bytes(); }

private:
    template <typename Held>
    void drop(Held& held);

    const LendingBounds bounds_;
    std::shared_ptr<Snapshots> snapshots_;
    std::unique_ptr<CopyQueue> copies_;
    std::map<std::int64_t, std::unique_ptr<Arriving>> arriving_;  // by the action's id
    std::map<std::int64_t, std::unique_ptr<Leaving>> leaving_;
};

}  // namespace clockwork::worker
