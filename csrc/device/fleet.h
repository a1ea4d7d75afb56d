// The emulated devices of a worker process: a Machine, the timer for its next event, the models that orders
// may name, and the orders that have ended.
//
// The outputs of an execution are zeros of the declared shape. Any thread may call the functions of a Fleet.
// Every time is the caller's, and goes back by no more than threads' clocks differ.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/emulated_machine.h"
#include "device/order.h"
#include "device/port.h"

namespace clockwork::emulated {

struct FleetOutput {
    int dtype = 0;
    int bits = 0;  // bits of an element; of a string, the 32 of its length, which is zero
    std::vector<std::int64_t> dims;
};

// The record of a model that is the same on every device of the fleet.
struct FleetModel : device::DeviceModel {
    std::vector<int> dtypes;
    bool batches = false;
    std::vector<std::int64_t> runs;                   // number of pages of each run
    std::vector<std::pair<std::int64_t, Ns>> points;  // numbers of rows and measured durations, ascending
    Ns load_ns = 0;
    std::vector<FleetOutput> outputs;

    // Duration of an execution of so many rows: measured, or interpolated linearly.
    Ns execution_ns(std::int64_t rows) const;
    std::int64_t page_count() const;
};

struct FleetOrder : device::Order {
    std::shared_ptr<const FleetModel> model;  // null: the model is not known
    std::uint32_t device = 0;
};

struct FleetSettings {
    std::uint32_t device_count = 1;
    std::uint32_t executors = 1;   // devices that share an arena, see Machine
    std::uint64_t host_bytes = 0;  // budget of the host store; 0: there is no store
    bool shares_link = false;
    std::uint64_t seed = 0;
    std::size_t stale_max = 0;       // bound on obsolete events, see Machine
    std::size_t slot_bytes_max = 0;  // bound on the bytes of a batch's inputs
    std::size_t page_bytes = 0;
    Ns spin_ns = 0;            // ended() waits for an event that is at most this far away
    bool is_unending = false;  // executions cannot be ended early
};

class Fleet {
public:
    static constexpr std::size_t LATENESS_WINDOW = 1024;  // number of recent ends that lateness() summarises

    // Throws std::system_error if no timer can be made.
    Fleet(const EmulatedSettings& settings, const FleetSettings& fleet);
    ~Fleet();
    Fleet(const Fleet&) = delete;
    Fleet& operator=(const Fleet&) = delete;

    int fd() const { return timer_; }
    void close_timer();

    // ----- models
    void add_model(std::int64_t model_id, std::shared_ptr<const FleetModel> model);
    enum class Forgotten : std::uint8_t { DONE, RESIDENT, IN_USE };
    // A residency that keep() has left, and no order names, goes with its model.
    Forgotten forget(std::int64_t model_id, Ns now);
    // Gives a model that no order names an id that no model has.
    void rename(std::int64_t model_id, std::int64_t other);

    // ----- orders
    void begin(std::uint32_t device, FleetOrder* order, Ns now) noexcept;
    void revoke(std::uint32_t device, std::int64_t action_id, Ns now);
    void end_run(std::uint32_t device, std::int64_t action_id, Ns now);
    device::RunningActions look(std::uint32_t device, Ns now);
    // The time until which to wait before ended(), if an event is within spin_ns; 0: no wait.
    Ns near_ns(Ns now);
    // The devices on which an order has ended since the last call, each named once.
    std::vector<std::uint32_t> ended(Ns now);
    // The list of ended orders of a device, oldest first, now the caller's.
    device::Action* take(std::uint32_t device, Ns now);
    // The actions of all devices at `now`, by the machine's clock; waits for an event that is within spin_ns.
    device::Action* take_all();
    // Forgets actions and residencies of a device; the first device takes the host store's content with it.
    void reset(std::uint32_t device, Ns now);
    // Does the same, but leaves residencies, and returns them; see EmulatedDevice::keep().
    std::vector<EmulatedResidency> keep(std::uint32_t device, Ns now);

    // ----- what it tells
    std::uint64_t held_pages(std::uint32_t device);
    std::int64_t input_bytes(std::uint32_t device);
    std::uint64_t host_bytes();
    bool is_resident(std::int64_t model_id);
    std::size_t event_count();
    std::vector<Ns> lateness();

private:
    struct List {
        device::Action* first = nullptr;
        device::Action* last = nullptr;
    };

    void advance(Ns now);
    void forget_orders(std::uint32_t device, Ns now);
    void collect(Ns now);
    void arm();
    void refuse(FleetOrder* order, Status status);
    void end(FleetOrder* order);
    void fill_outputs(FleetOrder& order);
    const char* zeros(std::size_t bytes);
    EmulatedOrder order_of(const FleetOrder& order, std::uint32_t token, std::uint64_t bytes) const;

    std::mutex mutex_;
    EmulatedSettings settings_;
    FleetSettings fleet_;
    Machine machine_;
    int timer_ = -1;
    Ns armed_ns_ = NEVER_NS;
    std::unordered_map<std::int64_t, std::shared_ptr<const FleetModel>> models_;
    // by token, the orders that the machine has; null: the token is free
    std::vector<FleetOrder*> orders_;
    std::vector<std::uint32_t> tokens_;      // the free tokens
    std::vector<List> done_;                 // ended orders of each device
    std::vector<std::uint32_t> ready_;       // devices with an order in `done_`
    std::vector<std::int64_t> input_bytes_;  // bytes of inputs received so far, by device
    std::array<Ns, LATENESS_WINDOW> late_{};
    std::size_t late_count_ = 0;
    const char* zeros_ = nullptr;
    std::size_t zeros_bytes_ = 0;
};

}  // namespace clockwork::emulated
