// An emulated device: every action takes its profiled time, and no tensor is touched. All else is that of a real
// device: lanes, windows, pages, residencies, a link and a host store that its machine's devices share.
//
// Pure: orders and times come in, what has ended comes out. The caller asks step() whenever something may begin in a
// lane and finish() when the action there is over, and keeps the next times in a heap of its own: the simulator in its
// heap of all events, a worker in that of a Machine (device/emulated_machine.h).
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

inline constexpr double LONGEST_NS = 1e18;  // of an action, whatever is drawn

// What devices are like. Probabilities are of single actions, sigmas of log-normal factors.
struct Settings {
    std::uint32_t page_count = 0, run_ahead = 1;
    Ns unload_ns = 0;  // of an UNLOAD or a DROP; 0: it ends as it begins
    double exec_noise = 0, load_noise = 0;
    double exec_outlier = 0, load_outlier = 0, outlier_factor = 2;  // an action takes so many times as long
    double load_refusals = 0;                                       // a LOAD or FETCH fails as it begins
    double load_failures = 0, exec_failures = 0;                    // it fails when its time is over
    Status exec_failure = Status::DEVICE_ERROR;
    std::uint64_t copy_bandwidth = 0;  // bytes/s at which inputs reach a device, a batch at a time; 0: at once
    std::uint64_t disk_bandwidth = 0;  // bytes/s at which a FETCH brings its model; 0: at once
    // Executions that begin in a slow spell take slow_factor times as long; a spell begins at each multiple of
    // slow_every_ns and lasts slow_ns. And by time: how many times as long those take that begin from then on.
    double slow_factor = 1;
    Ns slow_ns = 0, slow_every_ns = 0;
    std::vector<std::pair<Ns, double>> spells;

    Ns copy_ns(std::uint64_t bytes) const;  // of a batch's inputs
    double slowness(Ns now) const;          // of executions that begin now
};

struct PageRun {
    std::uint32_t first = 0, count = 0;
};

// The caller's, and where it is, until its action has ended or is forgotten by a reset().
struct Order {
    ActionId id = 0;
    ActionKind kind = ActionKind::INFER;
    std::uint32_t token = 0;  // the caller's; handed back in Done
    ModelId model_id = 0;
    LoadId load_id = 0;
    Ns earliest_ns = 0, latest_ns = NEVER_NS;
    Ns profiled_ns = 0;          // what an execution or a LOAD takes, by the profile
    std::uint64_t bytes = 0;     // INFER: of its inputs; FETCH: of the model
    std::vector<PageRun> pages;  // LOAD
    Ns ready_ns = 0;             // the device's own: when the inputs are there
};

// Why an action was not done. The names in brackets are those of Done::a, b and c.
enum class Why : std::uint8_t {
    NONE,
    LATE,          // its window closed (a) ns before it could begin
    REVOKED,       //
    LANE_FULL,     // a lane holds (a) actions
    NOT_FETCHED,   // the model is not in the host store
    IS_RESIDENT,   // the model is resident already, as load (a)
    OUTSIDE,       // page run (a) at page (b) of (c) pages does not lie in the arena
    PAGE_HELD,     // page (a) is held by another model or run
    NOT_LOADED,    // load (a) is not resident
    IN_USE,        // an execution of the model is queued or under way
    IS_FETCHED,    // the model is in the host store already
    STORE_FULL,    // (a) bytes for a host store with (b) bytes left
    BEING_LOADED,  // a LOAD from the host store is queued or under way
    CHANCE,        // as the settings ask for
    ENDED,         // the caller ended it before its time
};

inline constexpr Status status_of(Why why) {
    switch (why) {
        case Why::NONE: return Status::OK;
        case Why::LATE: return Status::TOO_LATE;
        case Why::REVOKED: return Status::ACTION_CANCELLED;
        case Why::NOT_FETCHED:
        case Why::NOT_LOADED: return Status::NOT_RESIDENT;
        case Why::OUTSIDE:
        case Why::PAGE_HELD:
        case Why::STORE_FULL: return Status::BAD_PAGES;
        case Why::IN_USE:
        case Why::BEING_LOADED: return Status::IN_USE;
        default: return Status::DEVICE_ERROR;
    }
}

// The end of one action.
struct Done {
    ActionId id = 0;
    std::uint32_t token = 0;
    ActionKind kind = ActionKind::INFER;
    Status status = Status::OK;
    Why why = Why::NONE;
    Ns begin_ns = 0, end_ns = 0;  // 0 where it did not begin
    Ns waited_ns = 0;             // for its inputs alone, before it began
    std::int64_t a = 0, b = 0, c = 0;

    void of(const Order& order, Why reason) {  // which did not begin
        id = order.id;
        token = order.token;
        kind = order.kind;
        status = status_of(reason);
        why = reason;
        begin_ns = end_ns = waited_ns = 0;
    }
};

// For people; empty where all went well.
std::string sentence(const Done& done);

// The way from a machine's memory to its devices: one LOAD has it at a time, in the order in which they asked for it.
class Link {
public:
    static constexpr std::uint32_t NONE = UINT32_MAX;

    bool is_free() const { return user_ == NONE; }
    void take(std::uint32_t device) { user_ = device; }
    void wait(std::uint32_t device) { queue_.push_back(device); }
    void leave() { user_ = NONE; }
    std::uint32_t next();               // whose turn it is, no longer waiting; NONE while it is taken or nobody waits
    void forget(std::uint32_t device);  // it neither has it nor waits for it

private:
    std::uint32_t user_ = NONE;
    std::deque<std::uint32_t> queue_;
};

// The models that a machine holds in its memory, within a budget.
class HostStore {
public:
    explicit HostStore(std::uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}

    bool holds(ModelId model_id) const;  // fetched, and not dropped
    std::size_t held_count() const;
    std::uint64_t used_bytes() const { return used_bytes_; }
    bool uses(ModelId model_id) const { return models_.contains(model_id); }
    void reset();  // nothing is held or fetched any more; LOADs are their devices' to forget

    Why claim(const Order& fetch, Done& done);
    // What reset() has forgotten meanwhile is not there afterwards.
    void fetched(ModelId model_id);
    void give_back(ModelId model_id);
    Why drop(ModelId model_id);
    void count_load(ModelId model_id, int change);  // LOADs that are queued or under way

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

struct Resident {
    ModelId model_id = 0;
    LoadId load_id = 0;
    bool loading = true;
    std::vector<PageRun> pages;
};

enum class Next : std::uint8_t {
    NOTHING,  // until an action comes or ends, or the link is free
    OPENS,    // at that time its next action can begin: call opened() and step() then
    RUNS,     // an action has begun; call finish() when it ends
    ENDED,    // an action ended without having run, or in no time; there may be more to do
};

struct Step {
    Next next = Next::NOTHING;
    Ns at_ns = 0;
};

class Device {
public:
    // link, store: null where a device has a link of its own, and all models can be loaded. speed: what executions
    // take is divided by it. Settings, link and store are the caller's and outlive the device.
    Device(const Settings& settings, Link* link, HostStore* store, std::uint32_t number, double speed, Random random)
        : settings_(settings), link_(link), store_(store), number_(number), speed_(speed), random_(random) {}

    bool is_full(Lane lane) const {
        const LaneState& one = at(lane);
        return one.waiting.size() + (one.running != nullptr) >= settings_.run_ahead;
    }
    // Of an order to a lane that is full.
    Done turned_away(const Order& order) const;
    // Behind all others of its lane, which must not be full. step() comes next.
    void push(Order& order, Ns now);

    // What a lane does now. outside(order, ns): how long an action takes from now on that would take so long.
    template <class Outside>
    Step step(Lane which, Ns now, Done& done, Outside outside) {
        LaneState& lane = at(which);
        if (lane.running || lane.wants_link || lane.waiting.empty())
            return {};
        const Order& head = *lane.waiting.front();
        const Ns opens_ns = std::max(head.earliest_ns, head.ready_ns);
        if (opens_ns > now) {
            if (opens_ns >= lane.opens_ns)
                return {};  // it is looked at earlier anyway
            lane.opens_ns = opens_ns;
            return {Next::OPENS, opens_ns};
        }
        if (link_ && head.kind == ActionKind::LOAD && !link_->is_free()) {
            lane.wants_link = true;
            link_->wait(number_);
            return {};
        }
        if (!begin(lane, now, done))
            return {Next::ENDED, now};
        const Order& order = *lane.running;
        Ns took_ns = settings_.unload_ns;
        if (order.kind == ActionKind::FETCH && settings_.disk_bandwidth == 0) {
            took_ns = 1;
        } else if (order.kind != ActionKind::UNLOAD && order.kind != ActionKind::DROP) {
            took_ns = std::max<Ns>(outside(order, draw_ns(order, now)), 1);
        } else if (took_ns == 0) {
            done = finish(which, now);
            return {Next::ENDED, now};
        }
        lane.end_ns = now + took_ns;
        return {Next::RUNS, lane.end_ns};
    }
    void opened(Lane lane) { at(lane).opens_ns = NEVER_NS; }
    void granted() { at(Lane::LOAD).wants_link = false; }  // Link::next() named this device

    // Ends what a lane runs. status: other than OK where the caller ends it.
    Done finish(Lane lane, Ns now, Status status = Status::OK);
    // What the lane runs never ends, and its order is not looked at any more.
    void hang(Lane lane);
    // Takes an action out of its lane that has not begun; false if none of that id waits.
    bool revoke(ActionId id, Done& done);
    // Forgets all actions and residencies.
    void reset();

    const Order* running(Lane lane) const { return at(lane).running; }
    Ns ends_ns(Lane lane) const { return at(lane).end_ns; }
    Ns opens_ns(Lane lane) const { return at(lane).opens_ns; }
    const Resident* resident(ModelId model_id) const;  // null: it has no pages here
    std::size_t resident_count() const { return places_.size(); }
    std::uint64_t held_pages() const { return held_pages_; }
    bool has_orders_for(ModelId model_id) const;

private:
    struct LaneState {
        std::vector<const Order*> waiting;
        const Order* running = nullptr;
        bool wants_link = false;
        Ns begin_ns = 0, end_ns = 0;  // of what runs, or ran last
        Ns waited_ns = 0;
        Ns opens_ns = NEVER_NS;  // the caller was told to look again then
    };

    LaneState& at(Lane lane) { return lanes_[static_cast<std::size_t>(lane)]; }
    const LaneState& at(Lane lane) const { return lanes_[static_cast<std::size_t>(lane)]; }
    bool begin(LaneState& lane, Ns now, Done& done);
    Why check(const Order& order, Ns now, Done& done);
    Why check_store(const Order& order, Done& done);
    void finish_move(const Order& order, bool fails);
    Why load(const Order& order, Done& done);
    Why take(std::uint32_t first, std::uint32_t count, Done& done);
    void let_go(PageRun run);
    void release(ModelId model_id);
    bool executes_load(ModelId model_id, LoadId load_id) const;
    Ns draw_ns(const Order& order, Ns now);

    const Settings& settings_;
    Link* link_;
    HostStore* store_;
    std::uint32_t number_;
    double speed_;
    Random random_;
    std::array<LaneState, LANES> lanes_;
    Ns copied_ns_ = 0;                   // inputs are copied until then
    std::vector<std::uint8_t> is_held_;  // by page; made with the first load
    std::uint64_t held_pages_ = 0;
    IdTable places_;  // of resident models in residents_
    std::vector<Resident> residents_;
    std::vector<std::uint32_t> free_residents_;
};

// ----- what happens for each execution ----------------------------------------------------------

inline void Device::push(Order& order, Ns now) {
    order.ready_ns = 0;
    if (order.kind == ActionKind::INFER && settings_.copy_bandwidth) {
        copied_ns_ = std::max(copied_ns_, now) + settings_.copy_ns(order.bytes);
        order.ready_ns = copied_ns_;
    }
    if (store_ && order.kind == ActionKind::LOAD)
        store_->count_load(order.model_id, 1);
    at(lane_of(order.kind)).waiting.push_back(&order);
}

// The head of a lane is at its turn. True if it runs from now on; else it has ended.
inline bool Device::begin(LaneState& lane, Ns now, Done& done) {
    const Order& order = *lane.waiting.front();
    lane.waiting.erase(lane.waiting.begin());
    if (const Why why = check(order, now, done); why != Why::NONE) {
        done.of(order, why);
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

inline Why Device::check(const Order& order, Ns now, Done& done) {
    if (order.latest_ns < now) {
        done.a = now - order.latest_ns;
        return Why::LATE;
    }
    if (order.kind == ActionKind::LOAD)
        return load(order, done);
    if (lane_of(order.kind) == Lane::FETCH)
        return check_store(order, done);
    const Resident* held = resident(order.model_id);
    if (!held || held->load_id != order.load_id || held->loading) {
        done.a = static_cast<std::int64_t>(order.load_id);
        return Why::NOT_LOADED;
    }
    const bool in_use = order.kind == ActionKind::UNLOAD && executes_load(order.model_id, order.load_id);
    return in_use ? Why::IN_USE : Why::NONE;
}

inline Ns Device::draw_ns(const Order& order, Ns now) {
    double exact, factor = 1;
    if (executes(order.kind)) {
        exact = static_cast<double>(order.profiled_ns) / speed_ * settings_.slowness(now);
        if (settings_.exec_noise > 0)
            factor = random_.lognormal(settings_.exec_noise);
        if (random_.chance(settings_.exec_outlier))
            factor *= settings_.outlier_factor;
    } else {
        exact = order.kind == ActionKind::LOAD
                    ? static_cast<double>(order.profiled_ns)
                    : static_cast<double>(order.bytes) * SECOND / static_cast<double>(settings_.disk_bandwidth);
        if (settings_.load_noise > 0)
            factor = random_.lognormal(settings_.load_noise);
        if (random_.chance(settings_.load_outlier))
            factor *= settings_.outlier_factor;
    }
    return static_cast<Ns>(std::min(exact * factor, LONGEST_NS));
}

inline Done Device::finish(Lane which, Ns now, Status status) {
    LaneState& lane = at(which);
    const Order& order = *lane.running;
    Done done;
    done.of(order, status == Status::OK ? Why::NONE : Why::ENDED);
    done.status = status;
    done.begin_ns = lane.begin_ns;
    done.end_ns = lane.end_ns = now;
    done.waited_ns = lane.waited_ns;
    lane.running = nullptr;
    const bool is_execution = executes(order.kind);
    const bool fails = order.kind != ActionKind::UNLOAD && order.kind != ActionKind::DROP &&
                       random_.chance(is_execution ? settings_.exec_failures : settings_.load_failures);
    if (fails && status == Status::OK) {
        done.status = is_execution ? settings_.exec_failure : Status::DEVICE_ERROR;
        done.why = Why::CHANCE;
    }
    if (!is_execution)
        finish_move(order, fails);
    return done;
}

inline const Resident* Device::resident(ModelId model_id) const {
    const std::uint32_t place = places_.find(static_cast<std::uint64_t>(model_id));
    return place == IdTable::NONE ? nullptr : &residents_[place];
}

}  // namespace clockwork::emulated
