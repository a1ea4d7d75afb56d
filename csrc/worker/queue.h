// The worker's queue of actions, pure: what to hand to the device now, and what to refuse as too late.
//
// Three lanes, each ordered by the start of its window and then by arrival. A lane gives the device at most
// run_ahead actions, each when its window is about to open; the device itself waits for earliest_ns and looks at
// latest_ns once more. There is no policy here: nothing is retried, evicted or moved beyond its window. Times are
// of the worker's clock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "id_table.h"
#include "scheduler/types.h"
#include "wire/kinds.h"

namespace clockwork {

// An action is handed to the device this long before its window opens: the device waits more exactly.
inline constexpr Ns START_LEAD_NS = 200'000;

struct QueuedAction {
    ActionId action_id = 0;
    Ns earliest_ns = 0;
    Ns latest_ns = NEVER_NS;
    Lane lane = Lane::EXECUTE;
    bool is_unload = false;   // or DROP: it passes nothing before it, and nothing passes it
    std::uint32_t token = 0;  // the caller's; handed back in QueueCommand
};

enum class QueueOrder : std::uint8_t {
    START,           // give it to the device
    REJECT_LATE,     // answer it: its window closed late_ns ago
    REJECT_REVOKED,  // answer it: it was revoked before it started
    REJECT_TWICE,    // answer it: an action of this id is here already
    REJECT_FULL,     // answer it: as many actions as may be are queued
    REVOKE_STARTED,  // the device has it: ask the device to drop it
};

struct QueueCommand {
    QueueOrder order;
    std::uint32_t token;
    ActionId action_id;
    Ns late_ns;
};

// One device's lanes. Not thread safe; no allocation in steady state.
class ActionQueue {
public:
    // run_ahead: at least 1; queued_max: actions that wait, of all lanes. Throws std::invalid_argument.
    ActionQueue(std::uint32_t run_ahead, std::size_t queued_max);

    // Each appends to `out` what to do now, in order. Afterwards next_wake_ns() says when due() is wanted.
    void received(Ns now, const QueuedAction& action, std::vector<QueueCommand>& out);
    void ended(Ns now, ActionId action_id, std::vector<QueueCommand>& out);
    void revoked(Ns now, ActionId action_id, std::vector<QueueCommand>& out);
    void due(Ns now, std::vector<QueueCommand>& out);

    // Forgets everything, as a new controller epoch begins; what was queued, lane by lane in order.
    std::vector<ActionId> reset();

    bool is_started(ActionId action_id) const {  // with the device
        const std::uint32_t slot = slots_.find(action_id);
        return slot != IdTable::NONE && records_[slot].started;
    }
    Ns next_wake_ns() const { return next_wake_ns_; }  // NEVER_NS: not at all
    std::size_t queued_count() const {
        return lanes_[0].order.size() + lanes_[1].order.size() + lanes_[2].order.size();
    }
    std::size_t started_count() const { return lanes_[0].started + lanes_[1].started + lanes_[2].started; }

    // Throws std::logic_error where the books do not balance.
    void check_invariants() const;

private:
    enum Heap : std::uint8_t { ORDER, LATEST };

    struct Record {
        ActionId action_id = 0;
        std::uint64_t sequence = 0;
        Ns place_ns = 0;  // where it stands in its lane: the start of its window, or later
        Ns latest_ns = 0;
        std::uint32_t token = 0;
        std::uint8_t lane = 0;
        bool started = false;
        std::array<std::uint32_t, 2> at{};  // its places in the heaps
    };

    struct LaneState {
        std::vector<std::uint32_t> order;   // heap by (place_ns, sequence)
        std::vector<std::uint32_t> latest;  // heap by (latest_ns, sequence)
        std::uint32_t started = 0;          // with the device
        Ns newest_ns = 0;                   // the latest place that was given in this lane
        Ns floor_ns = 0;                    // nothing queued from now on goes before this: an UNLOAD is there
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
    IdTable slots_;  // by action id
    std::uint64_t sequence_ = 0;
    Ns next_wake_ns_ = NEVER_NS;
};

}  // namespace clockwork
