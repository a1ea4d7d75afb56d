// Pending events of a simulated world, in the order of time, and of insertion at equal times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/types.h"

namespace clockwork::sim {

enum class EventKind : std::uint8_t {
    DELIVER,    // subject: worker; value: an action's slot. The action reaches the worker
    REVOKE,     // subject: worker; value: an action's id. The revocation reaches the worker
    QUEUE_DUE,  // subject: device. The wake-up time of its action queue has come
    // subject: device; value: lane. The window of the lane's head opens, or its inputs have arrived
    LANE_OPEN,
    LANE_END,  // subject: device; value: lane. The running action of the lane ends
    RESULT,    // subject: worker; value: an action's slot. The result reaches the controller
    CLIENT,    // subject: a group of closed-loop clients. A client of the group sends
    CANCEL,    // value: a request's id. Its client cancels it
    CRASH,     // subject: the worker that crashes
    GIVE_UP,   // subject: worker. The worker ends itself after an overrun, and restarts
    NOTICED,   // subject: worker. The controller considers the worker lost
    REJOIN,    // subject: the worker that rejoins
    PING,      // subject: worker. The controller measures its link
    PINGED,    // subject: worker; value: time at which the ping was sent. The ping reaches the worker
    PONG,      // subject: worker. The answer to the oldest pending ping reaches the controller
    DISTURB,   // subject: a disturbance; value: 1 if it begins, 0 if it ends
};

struct Event {
    Ns at_ns;
    std::uint64_t order;  // the event's sequence << 8 | kind
    std::uint32_t subject;
    std::uint32_t epoch;  // the worker's epoch; an event of an earlier epoch is void
    std::uint64_t value;

    EventKind kind() const { return static_cast<EventKind>(order & 0xFF); }
    bool before(const Event& other) const { return at_ns != other.at_ns ? at_ns < other.at_ns : order < other.order; }
};

// A heap with four children a node: half as deep as a binary heap, and siblings share cache lines.
class EventHeap {
public:
    bool empty() const { return events_.empty(); }
    std::size_t size() const { return events_.size(); }
    const Event& top() const { return events_.front(); }

    void push(Ns at_ns, EventKind kind, std::uint32_t subject, std::uint32_t epoch, std::uint64_t value) {
        const Event event{at_ns, ++sequence_ << 8 | static_cast<std::uint64_t>(kind), subject, epoch, value};
        std::size_t place = events_.size();
        events_.push_back(event);
        while (place > 0) {
            const std::size_t parent = (place - 1) / 4;
            if (!event.before(events_[parent]))
                break;
            events_[place] = events_[parent];
            place = parent;
        }
        events_[place] = event;
    }

    Event pop() {
        const Event result = events_.front(), last = events_.back();
        events_.pop_back();
        const std::size_t count = events_.size();
        if (count == 0)
            return result;
        std::size_t place = 0;
        for (;;) {
            const std::size_t first = 4 * place + 1;
            if (first >= count)
                break;
            std::size_t least = first;
            const std::size_t end = first + 4 < count ? first + 4 : count;
            for (std::size_t child = first + 1; child < end; ++child) {
                if (events_[child].before(events_[least]))
                    least = child;
            }
            if (!events_[least].before(last))
                break;
            events_[place] = events_[least];
            place = least;
        }
        events_[place] = last;
        return result;
    }

private:
    std::vector<Event> events_;
    std::uint64_t sequence_ = 0;
};

}  // namespace clockwork::sim
