// An order from its beginning to its end on a device's lanes, and the models that orders name.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "device/claims.h"
#include "device/lane.h"
#include "device/parts.h"
#include "wire/kinds.h"

namespace clockwork::device {

// bound on the bytes of an error's message, its terminating zero included
inline constexpr std::size_t TEXT_BYTES = 512;

// A phase of an action: begin and end by this machine's clock, and the duration by the device's clock where
// it has one.
struct TimedPhase {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
    std::int64_t duration_ns = 0;

    void begin() { begin_ns = end_ns = now_ns(); }
    void end() {
        end_ns = now_ns();
        duration_ns = end_ns - begin_ns;
    }
};

// A model on a device. Each kind of device derives its own record from this.
struct DeviceModel {
    // Guarded by the hub's lock:
    bool resident = false;
    bool kept = false;  // resident since an earlier session; see Roster::keep()
    std::int64_t load_id = 0;
    Claim claim;
    std::int32_t pending = 0;  // number of orders that name the model and are not freed
    // Properties of the model, valid for as long as it is known:
    const std::vector<int>* model_dtypes = nullptr;  // data types of the inputs
    const Lengths* model_lengths = nullptr;          // null: all requests of a batch have one shape
    // for each input, its optional value; null: no input is optional
    const std::vector<Rowless>* model_rowless = nullptr;
};

// Keeps the bytes of an order's views in place until the order is freed.
struct BufferOwner {
    virtual ~BufferOwner() = default;
};

// A slot's state, wherever its memory lies.
struct Slot {
    std::size_t bytes = 0;
    bool busy = false;  // guarded by the hub's lock
};

struct Order : Action {
    Order() { text[0] = '\0'; }
    virtual ~Order() = default;

    ActionKind kind = ActionKind::LOAD;
    std::int64_t model_id = 0;   // RESERVE without a model: 0
    std::uint32_t executor = 0;  // number of the executor to which the order was given
    // record of the model; null: the model is not known, or the order is a RESERVE
    DeviceModel* residency = nullptr;
    std::int64_t load_id = 0;
    std::int64_t expected_ns = 0;  // predicted duration; 0: not known
    // LOAD: a run for each of the model's; RESERVE: the runs that go with it
    std::vector<std::int64_t> run_starts;
    // INFER: the inputs of each part; PROFILE: the shapes of a part
    RequestTensors views;
    std::unique_ptr<BufferOwner> buffer_owner;  // owner of the bytes of `views`
    bool revoked = false;                       // in the input lane; guarded by the hub's lock
    bool begun = false;                         // on the device, perhaps while another order still runs there
    // Fields of the caller, which the device does not read:
    std::uint32_t place = 0;        // index of the device
    std::uint32_t slot = 0;         // slot of the unanswered order in the caller's table
    std::int64_t received_ns = 0;   // time of receipt, in worker time
    std::int64_t predicted_ns = 0;  // value of expected_ns in the message
    bool is_lent = false;           // the inputs came from a client's memory, and the outputs may go there
    BatchParts parts;
    Slot* held_slot = nullptr;  // the slot that the order holds
    TimedPhase copy_in;
    TimedPhase execute;
    TimedPhase copy_out;
    char text[TEXT_BYTES];  // "" for a success

    // Notes a bool input with a byte other than 0 and 1 in `text`, and returns whether there is any.
    // Operators would add such bytes up, and take memory by the sum.
    bool note_wrong_bool() noexcept {
        std::size_t input = 0;
        int byte = 0;
        if (kind != ActionKind::INFER || !parts.find_wrong_bool(input, byte))
            return false;
        std::snprintf(text, TEXT_BYTES, "input %zu is of bools and has a byte %d; a bool is 0 or 1", input, byte);
        return true;
    }
};

// Makes an order of a device's own kind; null: there is no memory.
template <class T>
T* make_order() noexcept {
    return new (std::nothrow) T();
}

// The models that orders may name, by id. Guarded by the hub's lock; each DeviceModel stays its owner's.
class Roster {
public:
    void add(std::int64_t model_id, DeviceModel* residency) { all_[model_id] = residency; }
    void remove(std::int64_t model_id) { all_.erase(model_id); }
    // Null: the model is not known.
    DeviceModel* find(std::int64_t model_id) const {
        const auto found = all_.find(model_id);
        return found != all_.end() ? found->second : nullptr;
    }

    // Marks a resident model as one that an earlier session has left. The new session's controller may not
    // count on it, and then orders LOADs to its pages.
    void keep(DeviceModel& model) {
        if (!model.kept)
            kept_.push_back(&model);
        model.kept = true;
    }
    // Marks a model as not resident any more.
    void leave(DeviceModel& model) {
        model.resident = false;
        if (model.kept)
            std::erase(kept_, &model);
        model.kept = false;
    }
    // A kept model in the way of a LOAD: its own, or one whose pages it takes. Null: there is none.
    DeviceModel* in_the_way(const Order& load) const {
        for (DeviceModel* model : kept_) {
            if (model == load.residency || load.residency->claim.would_meet(load.run_starts, model->claim))
                return model;
        }
        return nullptr;
    }

private:
    std::unordered_map<std::int64_t, DeviceModel*> all_;
    std::vector<DeviceModel*> kept_;
};

// The lanes of an arena, in the order in which an action may pass from one to the next: *input*, a lane of
// executions for each executor, *output*, *load* and *fetch*. A CPU has one or more executors, and uses their
// lanes and *load*. A GPU has one executor, whose lane *input* and *output* belong to.
class Lanes {
public:
    Lanes() { add_executor(); }

    Hub hub;
    Lane input{hub, "cw-input"};
    Lane output{hub, "cw-output"};
    Lane load{hub, "cw-load"};
    Lane fetch{hub, "cw-fetch"};

    // Adds an executor. Called before any lane runs.
    void add_executor() {
        const std::string number = std::to_string(execute_.size());
        execute_.emplace_back(hub, execute_.empty() ? "cw-execute" : "cw-execute-" + number);
    }

    // The lane of an executor's executions.
    Lane* execute(std::size_t executor) { return &execute_[executor]; }

    // The number of the executor whose executions a lane runs; -1: it is another lane.
    int executor_of(const Lane* lane) const {
        for (std::size_t number = 0; number < execute_.size(); number++) {
            if (&execute_[number] == lane)
                return int(number);
        }
        return -1;
    }

    // The lane of this name; null: there is none.
    Lane* find(std::string_view name) {
        for (Lane* lane : all()) {
            if (name == lane->name)
                return lane;
        }
        return nullptr;
    }

    // Number of an executor's executions that are queued or run. Only one thread adds to them; for that
    // thread the number can only fall meanwhile.
    std::int32_t run_count(std::size_t executor) {
        std::lock_guard<Hub> held(hub);
        return input.length + execute_[executor].length + output.length;
    }

    // Id of the action that a lane runs; 0: none.
    std::int64_t running(const Lane& lane) {
        std::lock_guard<Hub> held(hub);
        return lane.running != nullptr ? lane.running->action_id : 0;
    }

    // Whether an execution that needs this residency waits or runs. The lock must be held.
    bool needs(const DeviceModel* residency, std::int64_t load_id) const {
        return needs(input, residency, load_id) || std::any_of(execute_.begin(), execute_.end(), [&](const Lane& lane) {
                   return needs(lane, residency, load_id);
               });
    }

    // Ends an action that is queued with this status and returns it, so that its slot can be taken from it.
    // An action that the input lane runs is only marked. Returns null if there was none to end, or it has no
    // slot. executor: the number of the executor to which the action was given.
    Order* revoke(std::size_t executor, std::int64_t action_id, std::int32_t status) {
        if (Action* found = input.revoke(action_id, status))
            return static_cast<Order*>(found);
        {
            std::lock_guard<Hub> held(hub);
            if (input.running != nullptr && input.running->action_id == action_id) {
                static_cast<Order*>(input.running)->revoked = true;
                return nullptr;
            }
        }
        if (Action* found = execute_[executor].revoke(action_id, status))
            return static_cast<Order*>(found);
        if (load.revoke(action_id, status) == nullptr)
            fetch.revoke(action_id, status);
        return nullptr;
    }

    // Removes all actions that are queued or have ended, and waits until nothing runs. Lanes are cleared in
    // the order in which actions pass, so that none is left behind.
    std::vector<Order*> clear() {
        std::vector<Order*> found;
        auto add = [&](Action* list) {
            for (; list != nullptr; list = list->next)
                found.push_back(static_cast<Order*>(list));
        };
        for (Lane* lane : all())
            add(lane->clear());
        add(hub.take_ended());
        return found;
    }

    void stop() {
        for (Lane* lane : all())
            lane->stop();
    }

private:
    std::vector<Lane*> all() {
        std::vector<Lane*> found{&input};
        for (Lane& lane : execute_)
            found.push_back(&lane);
        found.insert(found.end(), {&output, &load, &fetch});
        return found;
    }

    static bool needs(const Lane& lane, const DeviceModel* residency, std::int64_t load_id) {
        auto is_for = [&](const Action* action) {
            const Order* order = static_cast<const Order*>(action);
            return order->residency == residency && order->load_id == load_id;
        };
        if ((lane.running != nullptr && is_for(lane.running)) || (lane.behind != nullptr && is_for(lane.behind)))
            return true;
        for (const Action* action = lane.head; action != nullptr; action = action->next) {
            if (is_for(action))
                return true;
        }
        return false;
    }

    std::deque<Lane> execute_;  // by executor
};

}  // namespace clockwork::device
