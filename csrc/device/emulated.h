// An emulated device: every action takes its profiled time, and no tensor is touched. Lanes, windows, pages,
// residencies, the link and the host store behave as those of a real device.
//
// The device is pure: orders and times come in, ended actions come out. The caller asks step() whenever an
// action may begin in a lane, and calls finish() when an action's time is over. It keeps the next times in a
// heap of its own: the simulator in its heap of all events, a worker in the heap of a Machine
// (device/emulated_machine.h).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "id_table.h"
#include "random.h"
#include "scheduler/types.h"
#include "wire/kinds.h"

namespace clockwork::emulated {

inline constexpr double LONGEST_NS = 1e18;  // bound on an action's duration, whatever factor is drawn

// Settings of emulated devices. Probabilities are per action; sigmas belong to log-normal factors.
struct EmulatedSettings {
    std::uint32_t page_count = 0, run_ahead = 1;
    Ns unload_ns = 0;  // duration of an UNLOAD or a DROP; 0: it ends as it begins
    double exec_noise = 0, load_noise = 0;
    // probabilities that an action takes outlier_factor times as long
    double exec_outlier = 0, load_outlier = 0, outlier_factor = 2;
    // Time of an execution while all other devices that share its arena execute, as a multiple of its time by
    // itself; each of them takes the same part of its speed. At least 1.
    double slowdown = 1;
    double load_refusals = 0;                     // probability that a LOAD or FETCH fails as it begins
    double load_failures = 0, exec_failures = 0;  // probabilities that an action fails when its time is over
    Status exec_failure = Status::DEVICE_ERROR;
    // bytes/s at which the inputs of a batch reach the device, batch after batch; 0: at once
    std::uint64_t copy_bandwidth = 0;
    std::uint64_t disk_bandwidth = 0;  // bytes/s at which a FETCH reads its model; 0: at once
    // Executions that begin in a slow spell take slow_factor times as long. A spell begins at each multiple
    // of slow_every_ns and lasts slow_ns. `spells`: times, and the factor of executions from each on.
    double slow_factor = 1;
    Ns slow_ns = 0, slow_every_ns = 0;
    std::vector<std::pair<Ns, double>> spells;

    Ns copy_ns(std::uint64_t bytes) const;  // duration of the copy of a batch's inputs
    double slowness(Ns now) const;          // factor of executions that begin at `now`
};

struct PageRun {
    std::uint32_t first = 0, count = 0;
};

// An order to an emulated device. The caller owns it, and keeps it at its address until its action has ended
// or reset() has forgotten it.
struct EmulatedOrder {
    ActionId id = 0;
    ActionKind kind = ActionKind::INFER;
    std::uint32_t token = 0;  // the caller's name for the order; handed back in EmulatedEnd
    ModelId model_id = 0;
    LoadId load_id = 0;
    Ns earliest_ns = 0, latest_ns = NEVER_NS;
    Ns profiled_ns = 0;          // duration of an execution or a LOAD by the profile
    std::uint64_t bytes = 0;     // INFER: bytes of its inputs; FETCH: bytes of the model
    std::vector<PageRun> pages;  // LOAD: the pages that the model takes
    Ns ready_ns = 0;             // set by the device: when the inputs have been copied
};

// The reason for which an action was not done. The names in brackets are those of EmulatedEnd::a, b and c.
enum class FailureCause : std::uint8_t {
    NONE,
    LATE,          // the action's window closed (a) ns before it could begin
    REVOKED,       // the caller withdrew the action before it began
    LANE_FULL,     // a lane holds (a) actions already, its bound
    NOT_FETCHED,   // the model is not in the host store
    IS_RESIDENT,   // the model is resident already, as load (a)
    OUTSIDE,       // page run (a) at page (b) of (c) pages does not lie in the arena
    PAGE_HELD,     // page (a) is held by another model or run
    NOT_LOADED,    // load (a) is not resident
    IN_USE,        // an execution of the model is queued or under way
    IS_FETCHED,    // the model is in the host store already
    STORE_FULL,    // (a) bytes for a host store with (b) bytes left
    BEING_LOADED,  // a LOAD of the model from the host store is queued or under way
    CHANCE,        // a failure that the settings draw at random
    ENDED,         // the caller ended the action before its time
};

inline constexpr Status status_of(FailureCause cause) {
    switch (cause) {
        case FailureCause::NONE: return Status::OK;
        case FailureCause::LATE: return Status::TOO_LATE;
        case FailureCause::REVOKED: return Status::ACTION_CANCELLED;
        case FailureCause::NOT_FETCHED:
        case FailureCause::NOT_LOADED: return Status::NOT_RESIDENT;
        case FailureCause::OUTSIDE:
        case FailureCause::PAGE_HELD:
        case FailureCause::STORE_FULL: return Status::BAD_PAGES;
        case FailureCause::IN_USE:
        case FailureCause::BEING_LOADED: return Status::IN_USE;
        default: return Status::DEVICE_ERROR;
    }
}

struct EmulatedEnd {
    ActionId id = 0;
    std::uint32_t token = 0;
    ActionKind kind = ActionKind::INFER;
    Status status = Status::OK;
    FailureCause cause = FailureCause::NONE;
    Ns begin_ns = 0, end_ns = 0;  // begin_ns is 0 where the action did not begin
    Ns waited_ns = 0;             // time that the action waited for its inputs alone, before it began
    std::int64_t a = 0, b = 0, c = 0;

    // Fills in the end of an action that did not begin.
    void of(const EmulatedOrder& order, FailureCause reason) {
        id = order.id;
        token = order.token;
        kind = order.kind;
        status = status_of(reason);
        cause = reason;
        begin_ns = end_ns = waited_ns = 0;
    }
};

// The reason as a sentence; empty for a success.
std::string sentence(const EmulatedEnd& done);

// The link from a machine's memory to its devices: one LOAD has it at a time, in the order of their requests.
class EmulatedLink {
public:
    static constexpr std::uint32_t NONE = UINT32_MAX;

    bool is_free() const { return user_ == NONE; }
    void take(std::uint32_t device) { user_ = device; }
    void wait(std::uint32_t device) { queue_.push_back(device); }
    void leave() { user_ = NONE; }
    // grants the link to the device that has waited longest; NONE if the link is taken or no device waits
    std::uint32_t next();
    void forget(std::uint32_t device);  // ends the device's use of the link, or its wait

private:
    std::uint32_t user_ = NONE;
    std::deque<std::uint32_t> queue_;
};

// The models that a machine holds in its memory, within a budget.
class EmulatedHostStore {
public:
    explicit EmulatedHostStore(std::uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}

    bool holds(ModelId model_id) const;  // whether the model is fetched and not dropped
    std::size_t held_count() const;
    std::uint64_t used_bytes() const { return used_bytes_; }
    bool uses(ModelId model_id) const { return models_.contains(model_id); }
    void reset();  // forgets all models and fetches; LOADs are forgotten by their devices
    // The store has the model from the beginning. False: there is no room.
    bool keep(ModelId model_id, std::uint64_t bytes);

    FailureCause claim(const EmulatedOrder& fetch, EmulatedEnd& done);
    // A FETCH that reset() has forgotten meanwhile changes nothing.
    void fetched(ModelId model_id);
    void give_back(ModelId model_id);
    FailureCause drop(ModelId model_id);
    // adds `change` to the LOADs of the model that are queued or under way
    void count_load(ModelId model_id, int change);

private:
    enum class State : std::uint8_t { NO, FETCHING, HELD };
    struct Entry {
        State state = State::NO;
        std::uint32_t loads = 0;
        std::uint64_t bytes = 0;
    };

    std::uint64_t budget_bytes_, used_bytes_ = 0;
    std::unordered_map<ModelId, Entry> models_;
};

struct EmulatedResidency {
    ModelId model_id = 0;
    LoadId load_id = 0;
    bool loading = true;
    bool kept = false;  // since before keep(): a LOAD that takes its pages, or its model, ends it
    std::vector<PageRun> pages;
};

enum class LaneNext : std::uint8_t {
    NOTHING,  // nothing happens until an action comes or ends, or the link is free
    OPENS,    // the lane's next action can begin at that time: call opened() and step() then
    RUNS,     // an action has begun: call finish() when its time is over
    ENDED,    // an action ended at once, or was not done; call step() again
};

struct LaneStep {
    LaneNext next = LaneNext::NOTHING;
    Ns at_ns = 0;
};

class EmulatedDevice {
public:
    // link, store: null where the device has a link of its own and all models can be loaded. speed: divisor
    // of executions' durations. Settings, link and store are the caller's and outlive the device.
    EmulatedDevice(const EmulatedSettings& settings, EmulatedLink* link, EmulatedHostStore* store, std::uint32_t number,
                   double speed, Random random)
        : settings_(settings), link_(link), store_(store), number_(number), speed_(speed), random_(random) {}

    // Has the device execute the models of another device, whose pages and residencies it shares from then
    // on. Neither may be moved any more. Only the other device gets LOADs and UNLOADs.
    void execute_from(EmulatedDevice& owner) {
        owner_ = &owner;
        owner.executors_.push_back(this);
    }
    bool has_neighbours() const { return !executors_.empty(); }

    // Moves the ends of executions on devices that share an arena after some have begun or ended there at
    // `now`. moved(number, end_ns): for each that ends at another time than before. The caller calls it in
    // the same moment as step(), finish() and reset(); elsewhere it does nothing.
    template <class Moved>
    void retime(Ns now, Moved moved) {
        EmulatedDevice& owner = owner_ ? *owner_ : *this;
        if (settings_.slowdown == 1 || owner.executors_.empty())
            return;
        int busy = owner.is_executing() ? 1 : 0;
        for (const EmulatedDevice* executor : owner.executors_)
            busy += executor->is_executing() ? 1 : 0;
        const double lost = (1 - 1 / settings_.slowdown) / static_cast<double>(owner.executors_.size());
        const double speed = 1 - lost * (busy - 1);
        owner.move_end(now, speed, moved);
        for (EmulatedDevice* executor : owner.executors_)
            executor->move_end(now, speed, moved);
    }

    bool is_full(LaneKind lane) const {
        const LaneState& state = at(lane);
        return state.waiting.size() + (state.running != nullptr) >= settings_.run_ahead;
    }
    // The end of an order to a lane that is full.
    EmulatedEnd turned_away(const EmulatedOrder& order) const;
    // Appends an order to its lane, which must not be full. The caller calls step() next.
    void push(EmulatedOrder& order, Ns now);

    // Advances a lane. outside(order, ns): converts a duration on the device to a duration from now on.
    template <class Outside>
    LaneStep step(LaneKind which, Ns now, EmulatedEnd& done, Outside outside) {
        LaneState& lane = at(which);
        if (lane.running || lane.wants_link || lane.waiting.empty())
            return {};
        const EmulatedOrder& head = *lane.waiting.front();
        const Ns opens_ns = std::max(head.earliest_ns, head.ready_ns);
        if (opens_ns > now) {
            if (opens_ns >= lane.opens_ns)
                return {};  // the caller looks at the lane again before that time anyway
            lane.opens_ns = opens_ns;
            return {LaneNext::OPENS, opens_ns};
        }
        if (link_ && head.kind == ActionKind::LOAD && !link_->is_free()) {
            lane.wants_link = true;
            link_->wait(number_);
            return {};
        }
        if (!begin(lane, now, done))
            return {LaneNext::ENDED, now};
        const EmulatedOrder& order = *lane.running;
        Ns took_ns = settings_.unload_ns;
        if (order.kind == ActionKind::FETCH && settings_.disk_bandwidth == 0) {
            took_ns = 1;
        } else if (!frees(order.kind)) {
            took_ns = std::max<Ns>(outside(order, draw_ns(order, now)), 1);
        } else if (took_ns == 0) {
            done = finish(which, now);
            return {LaneNext::ENDED, now};
        }
        lane.end_ns = now + took_ns;
        lane.seen_ns = now;
        lane.left_ns = static_cast<double>(took_ns);
        lane.speed = 1;
        return {LaneNext::RUNS, lane.end_ns};
    }
    void opened(LaneKind lane) { at(lane).opens_ns = NEVER_NS; }
    // Called when EmulatedLink::next() has named this device.
    void granted() { at(LaneKind::LOAD).wants_link = false; }

    // Ends the action that a lane runs. status: other than OK where the caller ends it.
    EmulatedEnd finish(LaneKind lane, Ns now, Status status = Status::OK);
    // Marks the lane's running action as one that never ends: its order is not read any more.
    void hang(LaneKind lane);
    // Removes an action that has not begun from its lane; false if no action of that id waits.
    bool revoke(ActionId id, EmulatedEnd& done);
    // Forgets all actions and residencies.
    void reset();
    // Forgets all actions, and the models whose LOADs had not ended. Returns the others.
    std::vector<EmulatedResidency> keep();
    // Ends a residency that keep() has left, unless an action names the model.
    void release_kept(ModelId model_id);
    // Gives a model that no action names an id that no model has.
    void rename(ModelId model_id, ModelId other);

    const EmulatedOrder* running(LaneKind lane) const { return at(lane).running; }
    Ns ends_ns(LaneKind lane) const { return at(lane).end_ns; }
    Ns opens_ns(LaneKind lane) const { return at(lane).opens_ns; }
    const EmulatedResidency* resident(ModelId model_id) const;  // null: the model has no pages on this device
    std::size_t resident_count() const { return places_.size(); }
    std::uint64_t held_pages() const { return held_pages_; }
    bool has_orders_for(ModelId model_id) const;

private:
    struct LaneState {
        std::vector<const EmulatedOrder*> waiting;
        const EmulatedOrder* running = nullptr;
        bool wants_link = false;
        Ns begin_ns = 0, end_ns = 0;  // times of the action that runs, or ran last
        Ns waited_ns = 0;
        Ns opens_ns = NEVER_NS;  // the time at which the caller was told to look again
        // EXECUTE: at seen_ns the execution had so much left to do, and the speed at which it goes on
        Ns seen_ns = 0;
        double left_ns = 0, speed = 1;
    };

    bool is_executing() const { return at(LaneKind::EXECUTE).running != nullptr; }
    template <class Moved>
    void move_end(Ns now, double speed, Moved& moved) {
        LaneState& lane = at(LaneKind::EXECUTE);
        if (!lane.running || lane.speed == speed)
            return;
        lane.left_ns = std::max(lane.left_ns - static_cast<double>(now - lane.seen_ns) * lane.speed, 0.0);
        lane.seen_ns = now;
        lane.speed = speed;
        lane.end_ns = now + static_cast<Ns>(std::min(lane.left_ns / speed, LONGEST_NS)) + 1;
        moved(number_, lane.end_ns);
    }

    LaneState& at(LaneKind lane) { return lanes_[static_cast<std::size_t>(lane)]; }
    const LaneState& at(LaneKind lane) const { return lanes_[static_cast<std::size_t>(lane)]; }
    bool begin(LaneState& lane, Ns now, EmulatedEnd& done);
    FailureCause check(const EmulatedOrder& order, Ns now, EmulatedEnd& done);
    FailureCause check_store(const EmulatedOrder& order, EmulatedEnd& done);
    void finish_move(const EmulatedOrder& order, bool fails);
    FailureCause load(const EmulatedOrder& order, EmulatedEnd& done);
    FailureCause take(std::uint32_t first, std::uint32_t count, EmulatedEnd& done);
    void let_go(PageRun run);
    void forget_actions();
    void make_way(const EmulatedOrder& load);
    void release(ModelId model_id);
    bool executes_load(ModelId model_id, LoadId load_id) const;
    Ns draw_ns(const EmulatedOrder& order, Ns now);

    const EmulatedSettings& settings_;
    EmulatedDevice* owner_ = nullptr;         // the device whose models it executes; null: its own
    std::vector<EmulatedDevice*> executors_;  // devices that execute its models, too
    EmulatedLink* link_;
    EmulatedHostStore* store_;
    std::uint32_t number_;
    double speed_;
    Random random_;
    std::array<LaneState, LANES> lanes_;
    Ns copied_ns_ = 0;                   // end of the copies of inputs that are queued
    std::vector<std::uint8_t> is_held_;  // whether each page is held; made with the first load
    std::uint64_t held_pages_ = 0;
    IdTable places_;  // place in residents_ of each resident model
    std::vector<EmulatedResidency> residents_;
    std::vector<std::uint32_t> free_residents_;
    std::size_t kept_count_ = 0;
};

// ----- what happens for each execution ----------------------------------------------------------

inline void EmulatedDevice::push(EmulatedOrder& order, Ns now) {
    order.ready_ns = 0;
    if (order.kind == ActionKind::INFER && settings_.copy_bandwidth) {
        copied_ns_ = std::max(copied_ns_, now) + settings_.copy_ns(order.bytes);
        order.ready_ns = copied_ns_;
    }
    if (store_ && order.kind == ActionKind::LOAD)
        store_->count_load(order.model_id, 1);
    at(lane_of(order.kind)).waiting.push_back(&order);
}

// Begins or refuses the action at the head of a lane. Returns whether it runs now.
inline bool EmulatedDevice::begin(LaneState& lane, Ns now, EmulatedEnd& done) {
    const EmulatedOrder& order = *lane.waiting.front();
    lane.waiting.erase(lane.waiting.begin());
    if (const FailureCause cause = check(order, now, done); cause != FailureCause::NONE) {
        done.of(order, cause);
        if (store_ && order.kind == ActionKind::LOAD)
            store_->count_load(order.model_id, -1);
        return false;
    }
    lane.waited_ns = 0;
    if (order.ready_ns == now) {
        const Ns copied_from_ns = now - settings_.copy_ns(order.bytes);
        lane.waited_ns = std::max<Ns>(now - std::max({lane.end_ns, order.earliest_ns, copied_from_ns}), 0);
    }
    lane.begin_ns = now;
    lane.running = &order;
    if (link_ && order.kind == ActionKind::LOAD)
        link_->take(number_);
    return true;
}

inline FailureCause EmulatedDevice::check(const EmulatedOrder& order, Ns now, EmulatedEnd& done) {
    if (order.latest_ns < now) {
        done.a = now - order.latest_ns;
        return FailureCause::LATE;
    }
    if (order.kind == ActionKind::LOAD)
        return load(order, done);
    if (lane_of(order.kind) == LaneKind::FETCH)
        return check_store(order, done);
    const EmulatedResidency* held = resident(order.model_id);
    if (!held || held->load_id != order.load_id || held->loading) {
        done.a = static_cast<std::int64_t>(order.load_id);
        return FailureCause::NOT_LOADED;
    }
    const bool in_use = order.kind == ActionKind::UNLOAD && executes_load(order.model_id, order.load_id);
    return in_use ? FailureCause::IN_USE : FailureCause::NONE;
}

inline Ns EmulatedDevice::draw_ns(const EmulatedOrder& order, Ns now) {
    double exact, factor = 1;
    if (executes(order.kind)) {
        exact = static_cast<double>(order.profiled_ns) / speed_ * settings_.slowness(now);
        if (settings_.exec_noise > 0)
            factor = random_.lognormal(settings_.exec_noise);
        if (random_.chance(settings_.exec_outlier))
            factor *= settings_.outlier_factor;
    } else {
        exact = lane_of(order.kind) == LaneKind::LOAD
                    ? static_cast<double>(order.profiled_ns)
                    : static_cast<double>(order.bytes) * SECOND / static_cast<double>(settings_.disk_bandwidth);
        if (settings_.load_noise > 0)
            factor = random_.lognormal(settings_.load_noise);
        if (random_.chance(settings_.load_outlier))
            factor *= settings_.outlier_factor;
    }
    return static_cast<Ns>(std::min(exact * factor, LONGEST_NS));
}

inline EmulatedEnd EmulatedDevice::finish(LaneKind which, Ns now, Status status) {
    LaneState& lane = at(which);
    const EmulatedOrder& order = *lane.running;
    EmulatedEnd done;
    done.of(order, status == Status::OK ? FailureCause::NONE : FailureCause::ENDED);
    done.status = status;
    done.begin_ns = lane.begin_ns;
    done.end_ns = lane.end_ns = now;
    done.waited_ns = lane.waited_ns;
    lane.running = nullptr;
    const bool is_execution = executes(order.kind);
    const bool fails =
        !frees(order.kind) && random_.chance(is_execution ? settings_.exec_failures : settings_.load_failures);
    if (fails && status == Status::OK) {
        done.status = is_execution ? settings_.exec_failure : Status::DEVICE_ERROR;
        done.cause = FailureCause::CHANCE;
    }
    if (!is_execution)
        finish_move(order, fails || status != Status::OK);
    return done;
}

inline const EmulatedResidency* EmulatedDevice::resident(ModelId model_id) const {
    if (owner_)
        return owner_->resident(model_id);
    const std::uint32_t place = places_.find(static_cast<std::uint64_t>(model_id));
    return place == IdTable::NONE ? nullptr : &residents_[place];
}

}  // namespace clockwork::emulated
