// The emulated devices of a machine, in emulated time: an action begins and ends at its exact time, however
// late the caller looks. A heap holds the next event of every device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/emulated.h"

namespace clockwork::emulated {

class Machine {
public:
    struct Ended {
        std::uint32_t device;
        EmulatedEnd done;
    };

    // executors: number of devices that share an arena, that of the first of them; it divides device_count.
    // host_bytes: budget of the host store; 0: no store, and all models can be loaded. shares_link: the LOADs
    // of all devices share a link, which one of them has at a time. Each device draws from a random stream of
    // its own, derived from `seed`. stale_max: bound on obsolete events in the heap, beyond two for each
    // lane, before they are dropped.
    Machine(const EmulatedSettings& settings, std::uint32_t device_count, std::uint32_t executors,
            std::uint64_t host_bytes, bool shares_link, double speed, std::uint64_t seed, std::size_t stale_max);
    Machine(const Machine&) = delete;

    // Each function advances all devices to `now`, which never goes back, and then does its own work. `ended`
    // then has the actions that have ended, in order; the caller takes them from there.
    void advance(Ns now);
    // the order's token must differ from those of all orders under way
    void start(std::uint32_t device, EmulatedOrder order, Ns now);
    void revoke(std::uint32_t device, ActionId id, Ns now);
    // ends an execution that is under way; otherwise does nothing
    void end_run(std::uint32_t device, ActionId id, Ns now);
    void reset(std::uint32_t device, Ns now);  // forgets all actions and residencies of the device
    std::vector<EmulatedResidency> keep(std::uint32_t device, Ns now);  // see EmulatedDevice
    void release_kept(ModelId model_id);
    void rename(ModelId model_id, ModelId other);
    void clear_store();

    std::vector<Ended> ended;

    Ns next_ns();  // time of the next call to advance(); NEVER_NS: none is needed
    std::size_t event_count() const { return events_.size(); }
    const EmulatedDevice& device(std::uint32_t number) const { return devices_[number]; }
    std::uint64_t host_bytes() const { return store_ ? store_->used_bytes() : 0; }
    bool is_resident(ModelId model_id) const;
    // whether the model is resident, in the host store, or named by an action that has not ended
    bool is_used(ModelId model_id) const;

private:
    struct Event {
        Ns at_ns;
        std::uint64_t sequence;
        std::uint32_t device;
        LaneKind lane;
        LaneNext next;  // OPENS or RUNS; an action that RUNS ends at this event
    };
    struct Held {
        std::uint32_t device;
        EmulatedOrder order;
    };
    static bool is_later(const Event& event, const Event& other) {
        return event.at_ns != other.at_ns ? event.at_ns > other.at_ns : event.sequence > other.sequence;
    }

    bool counts(const Event& event) const;
    void drop_first();
    void report(std::uint32_t device, const EmulatedEnd& done);
    void go_on(std::uint32_t device, LaneKind lane, Ns now);
    void finish(std::uint32_t device, LaneKind lane, Ns now, Status status);
    void grant_link(Ns now);
    void expect(const Event& event);
    void follow_neighbours(std::uint32_t device, Ns now);
    void forget_orders(std::uint32_t device, Ns now);

    EmulatedSettings settings_;
    std::size_t stale_max_;
    EmulatedLink link_;
    std::optional<EmulatedHostStore> store_;
    std::deque<EmulatedDevice> devices_;
    std::unordered_map<std::uint32_t, Held> orders_;  // the orders that have not ended, by token
    std::vector<Event> events_;                       // a heap, the earliest event at the top
    std::uint64_t sequence_ = 0;
};

}  // namespace clockwork::emulated
