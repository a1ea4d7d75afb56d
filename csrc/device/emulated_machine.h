// The emulated devices of one machine, in emulated time: an action begins and ends exactly when it would have, however
// late somebody looks. One heap holds what happens next on any of them.
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
        Done done;
    };

    // host_bytes: budget of the host store; 0: none, and all models can be loaded. shares_link: the loads of all devices
    // go one after another. Each device draws from a stream of its own of `seed`.
    // stale_max: events that no longer count, beyond two for each lane, before they are dropped.
    Machine(const Settings& settings, std::uint32_t device_count, std::uint64_t host_bytes, bool shares_link,
            double speed, std::uint64_t seed, std::size_t stale_max);
    Machine(const Machine&) = delete;

    // Each brings all devices to `now` first, which never goes back, and then does what is asked of it. What has ended is
    // in `ended` afterwards, in the order in which it did; the caller takes it from there.
    void advance(Ns now);
    void start(std::uint32_t device, Order order, Ns now);  // of a token that no other has which has not ended
    void revoke(std::uint32_t device, ActionId id, Ns now);
    void end_run(std::uint32_t device, ActionId id, Ns now);  // an execution, if it is under way
    void reset(std::uint32_t device, Ns now);                 // forgets all of its actions and residencies
    void clear_store();

    std::vector<Ended> ended;

    Ns next_ns();  // when advance() is wanted; NEVER_NS: not at all
    std::size_t event_count() const { return events_.size(); }
    const Device& device(std::uint32_t number) const { return devices_[number]; }
    std::uint64_t host_bytes() const { return store_ ? store_->used_bytes() : 0; }
    bool is_resident(ModelId model_id) const;
    bool is_used(ModelId model_id) const;  // resident, held by the host store, or an action is queued or under way

private:
    struct Event {
        Ns at_ns;
        std::uint64_t sequence;
        std::uint32_t device;
        Lane lane;
        Next next;  // OPENS or RUNS: then it ends
    };
    struct Held {
        std::uint32_t device;
        Order order;
    };
    static bool is_later(const Event& one, const Event& other) {
        return one.at_ns != other.at_ns ? one.at_ns > other.at_ns : one.sequence > other.sequence;
    }

    bool counts(const Event& event) const;
    void drop_first();
    void report(std::uint32_t device, const Done& done);
    void go_on(std::uint32_t device, Lane lane, Ns now);
    void finish(std::uint32_t device, Lane lane, Ns now, Status status);
    void grant_link(Ns now);

    Settings settings_;
    std::size_t stale_max_;
    Link link_;
    std::optional<HostStore> store_;
    std::deque<Device> devices_;
    std::unordered_map<std::uint32_t, Held> orders_;  // by token: of actions that have not ended
    std::vector<Event> events_;                       // a heap
    std::uint64_t sequence_ = 0;
};

}  // namespace clockwork::emulated
