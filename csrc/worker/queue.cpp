#include "worker/queue.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace clockwork {

ActionQueue::ActionQueue(std::uint32_t run_ahead, std::size_t queued_max)
    : run_ahead_(run_ahead), queued_max_(queued_max) {
    if (run_ahead < 1)
        throw std::invalid_argument("run_ahead of " + std::to_string(run_ahead));
}

void ActionQueue::received(Ns now, const QueuedAction& action, std::vector<QueueCommand>& out) {
    if (slots_.find(action.action_id) != IdTable::NONE) {
        out.push_back({QueueOrder::REJECT_TWICE, action.token, action.action_id, 0});
    } else if (queued_count() >= queued_max_) {
        out.push_back({QueueOrder::REJECT_FULL, action.token, action.action_id, 0});
    } else {
        std::uint32_t slot;
        if (free_.empty()) {
            slot = static_cast<std::uint32_t>(records_.size());
            records_.emplace_back();
        } else {
            slot = free_.back();
            free_.pop_back();
        }
        const auto which = static_cast<std::uint8_t>(action.lane);
        LaneState& lane = lanes_[which];
        records_[slot] = {
            action.action_id, ++sequence_, place(lane, action), action.latest_ns, action.token, which, false, {}};
        slots_.insert(action.action_id, slot);
        push(ORDER, lane, slot);
        push(LATEST, lane, slot);
    }
    advance(now, out);
}

void ActionQueue::ended(Ns now, ActionId action_id, std::vector<QueueCommand>& out) {
    const std::uint32_t slot = slots_.find(action_id);
    if (slot != IdTable::NONE && records_[slot].started) {
        --lanes_[records_[slot].lane].started;
        forget(slot);
    }
    advance(now, out);
}

void ActionQueue::revoked(Ns now, ActionId action_id, std::vector<QueueCommand>& out) {
    const std::uint32_t slot = slots_.find(action_id);
    if (slot != IdTable::NONE) {
        const std::uint32_t token = records_[slot].token;
        if (records_[slot].started) {
            out.push_back({QueueOrder::REVOKE_STARTED, token, action_id, 0});
        } else {
            unqueue(slot);
            forget(slot);
            out.push_back({QueueOrder::REJECT_REVOKED, token, action_id, 0});
        }
    }
    advance(now, out);
}

void ActionQueue::due(Ns now, std::vector<QueueCommand>& out) { advance(now, out); }

std::vector<ActionId> ActionQueue::reset() {
    std::vector<ActionId> queued;
    for (LaneState& lane : lanes_) {
        std::vector<std::uint32_t> slots = lane.order;
        std::sort(slots.begin(), slots.end(), [this](std::uint32_t a, std::uint32_t b) { return before(ORDER, a, b); });
        for (std::uint32_t slot : slots)
            queued.push_back(records_[slot].action_id);
        lane = LaneState{};
    }
    records_.clear();
    free_.clear();
    slots_.clear();
    next_wake_ns_ = NEVER_NS;
    return queued;
}

// Returns an action's place in its lane. An UNLOAD overtakes no action, and no action overtakes an UNLOAD.
Ns ActionQueue::place(LaneState& lane, const QueuedAction& action) {
    Ns earliest = std::max(action.earliest_ns, lane.floor_ns);
    if (action.is_unload) {
        if (!lane.order.empty())
            earliest = std::max(earliest, lane.newest_ns);
        lane.floor_ns = earliest;
    }
    lane.newest_ns = lane.order.empty() ? earliest : std::max(lane.newest_ns, earliest);
    return earliest;
}

void ActionQueue::advance(Ns now, std::vector<QueueCommand>& out) {
    next_wake_ns_ = NEVER_NS;
    for (LaneState& lane : lanes_) {
        while (!lane.latest.empty()) {
            const std::uint32_t slot = lane.latest.front();
            const Record& record = records_[slot];
            if (record.latest_ns >= now)
                break;
            out.push_back({QueueOrder::REJECT_LATE, record.token, record.action_id, now - record.latest_ns});
            unqueue(slot);
            forget(slot);
        }
        // A full lane continues when an action ends
        while (!lane.order.empty() && lane.started < run_ahead_) {
            const std::uint32_t slot = lane.order.front();
            Record& record = records_[slot];
            if (record.place_ns - START_LEAD_NS > now) {
                next_wake_ns_ = std::min(next_wake_ns_, record.place_ns - START_LEAD_NS);
                break;
            }
            unqueue(slot);
            record.started = true;
            ++lane.started;
            out.push_back({QueueOrder::START, record.token, record.action_id, 0});
        }
        if (!lane.latest.empty()) {
            const Ns latest = records_[lane.latest.front()].latest_ns;
            if (latest < NEVER_NS)
                next_wake_ns_ = std::min(next_wake_ns_, latest + 1);
        }
    }
}

// ----- the heaps --------------------------------------------------------------------------------

bool ActionQueue::before(Heap which, std::uint32_t a, std::uint32_t b) const {
    const Record &first = records_[a], &other = records_[b];
    const Ns left = which == ORDER ? first.place_ns : first.latest_ns;
    const Ns right = which == ORDER ? other.place_ns : other.latest_ns;
    return left != right ? left < right : first.sequence < other.sequence;
}

void ActionQueue::push(Heap which, LaneState& lane, std::uint32_t slot) {
    auto& entries = heap(which, lane);
    entries.push_back(slot);
    rise(which, entries, entries.size() - 1);
}

void ActionQueue::remove(Heap which, LaneState& lane, std::uint32_t slot) {
    auto& entries = heap(which, lane);
    const std::size_t at = records_[slot].at[which];
    const std::uint32_t last = entries.back();
    entries.pop_back();
    if (last == slot)
        return;
    entries[at] = last;
    records_[last].at[which] = static_cast<std::uint32_t>(at);
    rise(which, entries, at);
    sink(which, entries, records_[last].at[which]);
}

void ActionQueue::rise(Heap which, std::vector<std::uint32_t>& entries, std::size_t at) {
    const std::uint32_t slot = entries[at];
    while (at > 0 && before(which, slot, entries[(at - 1) / 2])) {
        entries[at] = entries[(at - 1) / 2];
        records_[entries[at]].at[which] = static_cast<std::uint32_t>(at);
        at = (at - 1) / 2;
    }
    entries[at] = slot;
    records_[slot].at[which] = static_cast<std::uint32_t>(at);
}

void ActionQueue::sink(Heap which, std::vector<std::uint32_t>& entries, std::size_t at) {
    const std::uint32_t slot = entries[at];
    for (;;) {
        std::size_t child = 2 * at + 1;
        if (child >= entries.size())
            break;
        if (child + 1 < entries.size() && before(which, entries[child + 1], entries[child]))
            ++child;
        if (!before(which, entries[child], slot))
            break;
        entries[at] = entries[child];
        records_[entries[at]].at[which] = static_cast<std::uint32_t>(at);
        at = child;
    }
    entries[at] = slot;
    records_[slot].at[which] = static_cast<std::uint32_t>(at);
}

void ActionQueue::unqueue(std::uint32_t slot) {
    LaneState& lane = lanes_[records_[slot].lane];
    remove(ORDER, lane, slot);
    remove(LATEST, lane, slot);
}

void ActionQueue::forget(std::uint32_t slot) {
    slots_.erase(records_[slot].action_id);
    free_.push_back(slot);
}

void ActionQueue::check_invariants() const {
    const auto demand = [](bool holds, const char* what) {
        if (!holds)
            throw std::logic_error(what);
    };
    std::size_t held = 0;
    std::array<std::uint32_t, LANES> started{};
    for (std::uint32_t slot = 0; slot < records_.size(); ++slot) {
        const Record& record = records_[slot];
        if (slots_.find(record.action_id) != slot)
            continue;  // the slot is free
        ++held;
        if (record.started) {
            ++started[record.lane];
            continue;
        }
        const LaneState& lane = lanes_[record.lane];
        for (Heap which : {ORDER, LATEST}) {
            const auto& entries = which == ORDER ? lane.order : lane.latest;
            const std::uint32_t at = record.at[which];
            demand(at < entries.size() && entries[at] == slot, "a queued action is not where it says");
            demand(at == 0 || !before(which, slot, entries[(at - 1) / 2]), "a heap is out of order");
        }
    }
    demand(held == slots_.size(), "an action is held twice or not at all");
    demand(held == queued_count() + started_count(), "an action is lost");
    for (std::size_t index = 0; index < lanes_.size(); ++index) {
        const LaneState& lane = lanes_[index];
        demand(lane.order.size() == lane.latest.size(), "the heaps hold different actions");
        demand(lane.started == started[index], "the count of started actions is wrong");
        demand(lane.started <= run_ahead_, "a lane holds more than run_ahead");
    }
}

}  // namespace clockwork
