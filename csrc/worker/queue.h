// The worker's queue of actions. Pure: it decides which actions to hand to the device, and which to refuse as
// late.
//
// Three lanes, each ordered by the start of the window and then by arrival. A lane hands the device at most
// run_ahead actions, each when its window is about to open. The device itself waits for earliest_ns and
// checks latest_ns again. The queue has no policy: it does not retry, evict, or move an action beyond its
// window. Times are of the worker's clock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "id_table.h"
#include "scheduler/types.h"
#include "wire/kinds.h"

namespace clockwork {

// An action is handed to the device this long before its window opens, because the device waits more exactly.
inline constexpr Ns START_LEAD_NS = 200'000;

struct QueuedAction {
    ActionId action_id = 0;
    Ns earliest_ns = 0;
    Ns latest_ns = NEVER_NS;
    LaneKind lane = LaneKind::EXECUTE;
    bool is_unload = false;   // UNLOAD or DROP: overtakes no action, and is not overtaken
    std::uint32_t token = 0;  // chosen by the caller; returned in QueueCommand
};

enum class QueueOrder : std::uint8_t {
    START,           // hand the action to the device
    REJECT_LATE,     // answer the action: its window closed late_ns ago
    REJECT_REVOKED,  // answer the action: it was revoked before it started
    REJECT_TWICE,    // answer the action: its id is another action's
    REJECT_FULL,     // answer the action: the queue is full
    REVOKE_STARTED,  // ask the device to drop the action, which it has
};

struct QueueCommand {
    QueueOrder order;
    std::uint32_t token;
    ActionId action_id;
    Ns late_ns;
};

// The lanes of a device. Not thread safe; no allocation in steady state.
class ActionQueue {
public:
    // run_ahead: at least 1; queued_max: the most waiting actions of all lanes. Throws std::invalid_argument.
    ActionQueue(std::uint32_t run_ahead, std::size_t queued_max);

    // Each appends commands to `out`, in order. Afterwards next_wake_ns() is the time of the next due().
    void received(Ns now, const QueuedAction& action, std::vector<QueueCommand>& out);
    void ended(Ns now, ActionId action_id, std::vector<QueueCommand>& out);
    void revoked(Ns now, ActionId action_id, std::vector<QueueCommand>& out);
    void due(Ns now, std::vector<QueueCommand>& out);

    // Forgets all actions, as a new controller epoch begins. Returns the queued actions, lane by lane in
    // order.
    std::vector<ActionId> reset();

    bool is_started(ActionId action_id) const {  // whether the device has the action
        const std::uint32_t slot = slots_.find(action_id);
        return slot != IdTable::NONE && records_[slot].started;
    }
    Ns next_wake_ns() const { return next_wake_ns_; }  // time of the next wake-up; NEVER_NS: none
    std::size_t queued_count() const {
        return lanes_[0].order.size() + lanes_[1].order.size() + lanes_[2].order.size();
    }
    std::size_t started_count() const { return lanes_[0].started + lanes_[1].started + lanes_[2].started; }

    // Checks the invariants. Throws std::logic_error.
    void check_invariants() const;

private:
    enum Heap : std::uint8_t { ORDER, LATEST };

    struct Record {
        ActionId action_id = 0;
        std::uint64_t sequence = 0;
        Ns place_ns = 0;  // place in the lane: the start of the action's window, or later
        Ns latest_ns = 0;
        std::uint32_t token = 0;
        std::uint8_t lane = 0;
        bool started = false;
        std::array<std::uint32_t, 2> at{};  // indices of the action in the heaps
    };

    struct LaneState {
        std::vector<std::uint32_t> order;   // heap by (place_ns, sequence)
        std::vector<std::uint32_t> latest;  // heap by (latest_ns, sequence)
        std::uint32_t started = 0;          // actions that the device has
        Ns newest_ns = 0;                   // the largest place_ns given in this lane
        Ns floor_ns = 0;                    // least place_ns of later actions, set by an UNLOAD
    };

    void advance(Ns now, std::vector<QueueCommand>& out);
    static Ns place(LaneState& lane, const QueuedAction& action);
    bool before(Heap which, std::uint32_t a, std::uint32_t b) const;
    std::vector<std::uint32_t>& heap(Heap which, LaneState& lane) { return which == ORDER ? lane.order : lane.latest; }
    void push(Heap which, LaneState& lane, std::uint32_t slot);
    void remove(Heap which, LaneState& lane, std::uint32_t slot);
    void rise(Heap which, std::vector<std::uint32_t>& heap, std::size_t at);
    void sink(Heap which, std::vector<std::uint32_t>& heap, std::size_t at);
    void unqueue(std::uint32_t slot);
    void forget(std::uint32_t slot);

    std::uint32_t run_ahead_;
    std::size_t queued_max_;
    std::array<LaneState, LANES> lanes_;
    std::vector<Record> records_;
    std::vector<std::uint32_t> free_;
    IdTable slots_;  // slots by action id
    std::uint64_t sequence_ = 0;
    Ns next_wake_ns_ = NEVER_NS;
};

}  // namespace clockwork
