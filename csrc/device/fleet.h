// The emulated devices of one process as a worker drives them: a Machine, the timer that says when something happens
// next on any of its devices, the models that orders may name, and the orders that have ended.
//
// The outputs of an execution are zeros of the declared shape. Any thread may call what follows; every time is the
// caller's, and never goes back by more than threads differ.
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
    int bits = 0;  // of an element; of a string 32: its length is zero
    std::vector<std::int64_t> dims;
};

// What every device of the fleet knows of a model.
struct FleetModel : device::Residency {
    std::vector<int> dtypes;
    bool batches = false;
    std::vector<std::int64_t> runs;                   // pages of each
    std::vector<std::pair<std::int64_t, Ns>> points;  // rows, and how long they take; ascending
    Ns load_ns = 0;
    std::vector<FleetOutput> outputs;

    // Of an execution of so many rows: measured, or interpolated linearly.
    Ns execution_ns(std::int64_t rows) const;
    std::int64_t page_count() const;
};

struct FleetOrder : device::Order {
    std::shared_ptr<const FleetModel> model;  // null: it is not known
    std::uint32_t device = 0;
};

struct FleetSettings {
    std::uint32_t device_count = 1;
    std::uint64_t host_bytes = 0;  // budget of the host store; 0: there is none
    bool shares_link = false;
    std::uint64_t seed = 0;
    std::size_t stale_max = 0;       // see Machine
    std::size_t slot_bytes_max = 0;  // of a batch's inputs
    std::size_t page_bytes = 0;
    Ns spin_ns = 0;            // an end that is as near as this is waited for
    bool is_unending = false;  // executions cannot be ended
};

class Fleet {
public:
    static constexpr std::size_t LATENESS_WINDOW = 1024;  // ends over which lateness() tells

    // Throws std::system_error if there is no timer.
    Fleet(const Settings& settings, const FleetSettings& fleet);
    ~Fleet();
    Fleet(const Fleet&) = delete;
    Fleet& operator=(const Fleet&) = delete;

    int fd() const { return timer_; }
    void close_timer();

    // ----- models
    void add_model(std::int64_t model_id, std::shared_ptr<const FleetModel> model);
    enum class Forgotten : std::uint8_t { DONE, RESIDENT, IN_USE };
    Forgotten forget(std::int64_t model_id, Ns now);

    // ----- orders
    void begin(std::uint32_t device, FleetOrder* order, Ns now) noexcept;
    void revoke(std::uint32_t device, std::int64_t action_id, Ns now);
    void end_run(std::uint32_t device, std::int64_t action_id, Ns now);
    device::Whereabouts look(std::uint32_t device, Ns now);
    // Until when to wait before ended(), because something ends very soon; 0: not at all.
    Ns near_ns(Ns now);
    // The devices of which something has ended, each once.
    std::vector<std::uint32_t> ended(Ns now);
    // The list of ended orders of one device, oldest first, now the caller's.
    device::Action* take(std::uint32_t device, Ns now);
    // Of all devices, by the machine's clock; waits for what is very near.
    device::Action* take_all();
    // Forgets actions and residencies of a device; with the first one the host store's content, too.
    void reset(std::uint32_t device, Ns now);

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
    void collect(Ns now);
    void arm();
    void refuse(FleetOrder* order, Status status);
    void end(FleetOrder* order);
    void fill_outputs(FleetOrder& order);
    const char* zeros(std::size_t bytes);
    Order order_of(const FleetOrder& order, std::uint32_t token, std::uint64_t bytes) const;

    std::mutex mutex_;
    Settings settings_;
    FleetSettings fleet_;
    Machine machine_;
    int timer_ = -1;
    Ns armed_ns_ = NEVER_NS;
    std::unordered_map<std::int64_t, std::shared_ptr<const FleetModel>> models_;
    std::vector<FleetOrder*> orders_;        // by token: those that the machine has; null: the token is free
    std::vector<std::uint32_t> tokens_;      // that are free
    std::vector<List> done_;                 // by device
    std::vector<std::uint32_t> ready_;       // devices with something in `done_`
    std::vector<std::int64_t> input_bytes_;  // received so far, by device
    std::array<Ns, LATENESS_WINDOW> late_{};
    std::size_t late_count_ = 0;
    const char* zeros_ = nullptr;
    std::size_t zeros_bytes_ = 0;
};

}  // namespace clockwork::emulated
