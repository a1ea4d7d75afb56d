// The workers' side of a simulated world: links, clocks, queues, devices.
#include <algorithm>
#include <string>

#include "sim/world.h"

namespace clockwork::sim {

namespace {

constexpr Ns RECONNECT_NS = 100 * MS;  // time from a broken connection to the next hello
constexpr double DRIFT_ALLOWED = static_cast<double>(DRIFT_PPM) / 1e6;

}  // namespace

// ----- coming and going -------------------------------------------------------------------------

// Has a worker measure the models, when it joins.
void World::measure(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    const auto measured = [place = index + worker.joins](const std::vector<std::uint32_t>& all) {
        return all.empty() ? 0 : all[place % all.size()];
    };
    worker.batch_max = measured(cluster_.batch_maxes);
    worker.extra_pages = measured(cluster_.extra_pages);
}

// Determines what a worker's disk has when it joins: what it had, as it measures that now, and models that no
// other worker has any more, which it has prepared.
void World::restock(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    std::vector<std::uint32_t> found;
    for (std::uint32_t model = 0; model < models_.size(); ++model) {
        if (!is_aside_[model] && (worker.store->holds(static_cast<ModelId>(model)) ||
                                  (worker.joins > 0 && stored_elsewhere(index, model) == 0)))
            found.push_back(model);
    }
    worker.store->reset();
    for (const std::uint32_t model : found)
        worker.store->keep(static_cast<ModelId>(model), bytes_of(worker, model));
}

void World::join(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    worker.alive = true;
    worker.id = static_cast<WorkerId>(worker_of_.size());
    measure(index);
    if (cluster_.store_bytes > 0)
        restock(index);
    ++worker.joins;
    worker_of_.push_back(index);
    worker.there_free_ns = worker.back_free_ns = worker.input_free_ns = now_;
    worker.pongs.clear();
    worker.synced_ns = NEVER_NS;
    sync_clock(worker);
    specs_.assign(worker.device_count,
                  DeviceSpec{worker.kind, cluster_.page_bytes, cluster_.page_count, cluster_.run_ahead});
    for (std::uint32_t number = 0; number < worker.device_count; ++number) {
        const Device& device = devices_[worker.first_device + number];
        specs_[number].arena = has_arena(device) ? -1 : static_cast<std::int32_t>(device.arena);
        const double more = (cluster_.slowdown - 1) * cluster_.slowdown_told;
        if (device.lanes.has_neighbours())
            specs_[number].slowdown_thousandths += static_cast<std::uint32_t>(1000 * more + 0.5);
    }
    note(0, worker.id, index);
    record_joined(worker);
    scheduler_->worker_joined(now_, worker.id, specs_, cluster_.host_bytes, cluster_.store_bytes);
    // The controller measures a high percentile of the delay, shifted by the error of its clock estimate.
    const bool shifted = cluster_.clock_offset_ns != 0 || cluster_.clock_drift_ppm != 0;
    const Ns error = shifted ? (worker.upper_ns + worker.lower_ns) / 2 - true_offset(worker, now_) : 0;
    worker.there_seen_ns = std::max<Ns>(cluster_.link_there_ns + cluster_.link_jitter_ns - error, 0);
    worker.back_seen_ns = std::max<Ns>(cluster_.link_back_ns + cluster_.link_jitter_ns + error, 0);
    record_link(worker.id, worker.there_seen_ns, worker.back_seen_ns);
    scheduler_->link_measured(now_, worker.id, worker.there_seen_ns, worker.back_seen_ns);
    ModelSpec spec;
    for (std::size_t number = 0; number < models_.size(); ++number) {
        const ModelSetup& model = models_[number];
        if (!serves(worker, static_cast<std::uint32_t>(number)))
            continue;
        spec.model_id = static_cast<ModelId>(number);
        spec.program = model.program;
        spec.batches = model.batch_max > 1;
        spec.batch_max = batch_max_of(worker, static_cast<std::uint32_t>(number));
        spec.slo_ns = model.slo_ns;
        spec.runs = runs_of(worker, static_cast<std::uint32_t>(number));
        spec.load_ns = static_cast<Ns>(static_cast<double>(model.load_ns) * cluster_.load_profiled);
        spec.profile.clear();
        for (const auto& [batch, ns] : profile_of(worker, static_cast<std::uint32_t>(number))) {
            if (batch > spec.batch_max)
                continue;
            const double slower = cluster_.profiled / worker.speed;
            const Ns scaled = slower == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * slower);
            spec.profile.push_back({0, batch, std::max<Ns>(scaled, 1)});
        }
        const bool is_stored = cluster_.store_bytes == 0 || worker.store->holds(spec.model_id);
        record_ready(worker.id, spec, is_stored);
        scheduler_->model_ready(now_, worker.id, spec, is_stored);
    }
    touched_ = true;
}

// Removes a worker with all its state. hangs: the controller notices only by timeout.
void World::crash(std::uint32_t index, bool hangs, Ns returns_ns) {
    WorkerState& worker = workers_[index];
    if (!worker.alive)
        return;
    worker.alive = false;
    worker.returns_ns = returns_ns;
    ++accounts_.crashes;
    note(200, index, hangs);
    for (std::uint32_t number = 0; number < worker.device_count; ++number) {
        Device& device = devices_[worker.first_device + number];
        device.queue.reset();
        device.lanes.reset();
        device.queue_due_ns = NEVER_NS;
    }
    if (worker.store) {
        // A disk survives a restart, a broken connection, and every other crash.
        const bool keeps = cluster_.store_bytes > 0 && (worker.broken || returns_ns > 0 || worker.random.chance(0.5));
        std::vector<std::pair<ModelId, std::uint64_t>> held;
        for (std::uint32_t model = 0; keeps && model < models_.size(); ++model) {
            if (worker.store->holds(static_cast<ModelId>(model)))
                held.emplace_back(model, bytes_of(worker, model));
        }
        worker.store->reset();
        for (const auto& [model_id, bytes] : held)
            worker.store->keep(model_id, bytes);
    }
    for (std::uint32_t slot = 0; slot < actions_.size(); ++slot) {
        const Action& action = *actions_[slot];
        if (action.id == 0 || devices_[action.device].worker != index)
            continue;
        if (action.at_worker)
            drop_action(slot);
    }
    heap_.push(now_ + (hangs ? cluster_.timeout_ns : cluster_.link_back_ns), EventKind::NOTICED, index, worker.epoch,
               0);
    ++worker.epoch;
}

void World::noticed(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    obey();  // orders sent at this moment get no answer
    note(1, worker.id);
    if (run_.check) {
        for (Request& request : requests_) {
            if (request.flying && request.flying_worker == index)
                request.flying = 0;
        }
    }
    record_left(worker.id);
    scheduler_->worker_left(now_, worker.id);
    worker.id = 0;
    touched_ = true;
    const Ns returns_ns = now_ + (worker.broken ? RECONNECT_NS : cluster_.down_ns);
    heap_.push(worker.returns_ns > 0 ? std::max(worker.returns_ns, now_) : returns_ns, EventKind::REJOIN, index,
               worker.epoch, 0);
    worker.broken = false;
}

// ----- links and clocks -------------------------------------------------------------------------

// Returns whether this message breaks its connection. A broken stream also loses all later messages.
bool World::lost(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    if (!worker.alive)
        return true;
    if (!begun_ || !worker.random.chance(cluster_.link_loss))
        return false;
    worker.broken = true;
    crash(index, false);
    return true;
}

void World::send(std::uint32_t slot, std::uint64_t bytes) {
    const std::uint32_t index = devices_[actions_[slot]->device].worker;
    if (lost(index)) {
        drop_action(slot);
        return;
    }
    WorkerState& worker = workers_[index];
    Ns leaves = now_;
    const auto pass = [&](std::uint64_t bandwidth, Ns& free_ns) {
        if (!bandwidth || !bytes)
            return;
        const auto takes = static_cast<Ns>(static_cast<unsigned __int128>(bytes) * SECOND / bandwidth);
        leaves = std::max(leaves, free_ns);
        leaves += slowed_ns(DisturbanceSetup::Kind::INPUTS, index, leaves, takes);
        free_ns = leaves;
    };
    pass(cluster_.io_bandwidth, io_free_ns_);
    pass(cluster_.input_bandwidth, worker.input_free_ns);
    Ns at = leaves + slowed_ns(DisturbanceSetup::Kind::LINK, index, leaves, cluster_.link_there_ns);
    if (cluster_.link_jitter_ns) {
        at += static_cast<Ns>(worker.random.below(static_cast<std::uint64_t>(cluster_.link_jitter_ns) + 1));
    }
    worker.there_free_ns = std::max(worker.there_free_ns, at);
    heap_.push(worker.there_free_ns, EventKind::DELIVER, index, worker.epoch, slot);
}

void World::send_back(std::uint32_t slot) {
    const std::uint32_t index = devices_[actions_[slot]->device].worker;
    actions_[slot]->at_worker = false;
    if (lost(index)) {
        drop_action(slot);
        return;
    }
    WorkerState& worker = workers_[index];
    Ns at = now_ + slowed_ns(DisturbanceSetup::Kind::LINK, index, now_, cluster_.link_back_ns);
    if (cluster_.link_jitter_ns) {
        at += static_cast<Ns>(worker.random.below(static_cast<std::uint64_t>(cluster_.link_jitter_ns) + 1));
    }
    worker.back_free_ns = std::max(worker.back_free_ns, at);
    heap_.push(worker.back_free_ns, EventKind::RESULT, index, worker.epoch, slot);
}

Ns World::true_offset(const WorkerState& worker, Ns at_ns) const {
    return worker.offset_ns + static_cast<Ns>(static_cast<double>(at_ns) * worker.drift);
}

Ns World::to_true(const WorkerState& worker, Ns worker_ns) const {
    const Ns near = worker_ns - worker.offset_ns;
    return near - static_cast<Ns>(static_cast<double>(near) * worker.drift / (1 + worker.drift));
}

// Bounds a worker's clock offset by pings, as controller/peers/clocksync.py does. The fastest way there in
// the window gives the upper bound, the fastest way back the lower bound. Between pings the bounds widen.
void World::sync_clock(WorkerState& worker) {
    if (worker.synced_ns != NEVER_NS && now_ - worker.synced_ns < HEARTBEAT_NS)
        return;
    Ns there = cluster_.link_jitter_ns, back = cluster_.link_jitter_ns;
    if (cluster_.link_jitter_ns) {
        for (Ns ping = 0; ping < CLOCK_WINDOW; ++ping) {
            const auto bound = static_cast<std::uint64_t>(cluster_.link_jitter_ns) + 1;
            there = std::min(there, static_cast<Ns>(worker.random.below(bound)));
            back = std::min(back, static_cast<Ns>(worker.random.below(bound)));
        }
    }
    const Ns offset = true_offset(worker, now_);
    worker.upper_ns = offset + cluster_.link_there_ns + there;
    worker.lower_ns = offset - cluster_.link_back_ns - back;
    worker.synced_ns = now_;
}

// Converts an order's window from the controller's time to worker time, widened by the bounds of the clock
// estimate, and from the worker's clock to true time.
void World::set_window(Action& action, const Command& command) {
    action.earliest_ns = command.earliest_ns;
    action.latest_ns = command.latest_ns;
    if (cluster_.clock_offset_ns == 0 && cluster_.clock_drift_ppm == 0)
        return;
    WorkerState& worker = workers_[devices_[action.device].worker];
    sync_clock(worker);
    const auto widened = [&](Ns at) {
        return static_cast<Ns>(static_cast<double>(std::max<Ns>(at - worker.synced_ns, 0)) * DRIFT_ALLOWED) + 1;
    };
    if (action.earliest_ns <= now_) {
        action.earliest_ns = -NEVER_NS;
    } else if (action.earliest_ns < NEVER_NS) {
        const Ns at = action.earliest_ns;
        action.earliest_ns = to_true(worker, at + worker.lower_ns - widened(at));
    }
    if (action.latest_ns < NEVER_NS) {
        const Ns at = action.latest_ns;
        action.latest_ns = to_true(worker, at + worker.upper_ns + widened(at));
    }
}

Ns World::to_controller(WorkerState& worker, Ns true_ns) {
    if (true_ns == 0 || (cluster_.clock_offset_ns == 0 && cluster_.clock_drift_ppm == 0))
        return true_ns;
    sync_clock(worker);
    const Ns middle = (worker.upper_ns + worker.lower_ns) / 2;
    return std::min(true_ns + true_offset(worker, true_ns) - middle, now_);
}

// Sends a ping, which takes the same way as all messages.
void World::ping(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    if (now_ < count_until_)
        heap_.push(now_ + cluster_.ping_ns, EventKind::PING, index, 0, 0);
    if (worker.id == 0 || !worker.alive)
        return;
    const Ns delay = slowed_ns(DisturbanceSetup::Kind::LINK, index, now_, cluster_.link_there_ns);
    worker.there_free_ns = std::max({worker.there_free_ns, now_ + delay, worker.input_free_ns + delay});
    heap_.push(worker.there_free_ns, EventKind::PINGED, index, worker.epoch, static_cast<std::uint64_t>(now_));
}

void World::pinged(std::uint32_t index, Ns sent_ns) {
    WorkerState& worker = workers_[index];
    worker.pongs.emplace_back(sent_ns, now_);
    const Ns delay = slowed_ns(DisturbanceSetup::Kind::LINK, index, now_, cluster_.link_back_ns);
    worker.back_free_ns = std::max(worker.back_free_ns, now_ + delay);
    heap_.push(worker.back_free_ns, EventKind::PONG, index, worker.epoch, 0);
}

void World::ponged(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    const auto [sent_ns, received_ns] = worker.pongs.front();
    worker.pongs.pop_front();
    note(5, index, sent_ns, received_ns);
    record_link(worker.id, received_ns - sent_ns, now_ - received_ns);
    scheduler_->link_measured(now_, worker.id, received_ns - sent_ns, now_ - received_ns);
    touched_ = true;
}

// ----- queues -----------------------------------------------------------------------------------

std::vector<QueueCommand> World::buffer() {
    if (buffers_.empty())
        return {};
    std::vector<QueueCommand> result = std::move(buffers_.back());
    buffers_.pop_back();
    return result;
}

void World::give_back(std::vector<QueueCommand>&& commands) {
    commands.clear();
    buffers_.push_back(std::move(commands));
}

void World::deliver(std::uint32_t slot) {
    Action& action = *actions_[slot];
    action.at_worker = true;
    action.received_ns = now_;
    Device& device = devices_[action.device];
    QueuedAction queued;
    queued.action_id = action.id;
    queued.earliest_ns = action.earliest_ns;
    queued.latest_ns = action.latest_ns;
    queued.is_unload = frees(action.kind);
    queued.lane = lane_of(action.kind);
    queued.token = slot;
    auto commands = buffer();
    device.queue.received(now_, queued, commands);
    obey_queue(action.device, commands);
    give_back(std::move(commands));
}

void World::revoke(std::uint32_t index, ActionId action_id) {
    const WorkerState& worker = workers_[index];
    for (std::uint32_t number = 0; number < worker.device_count; ++number) {
        auto commands = buffer();
        devices_[worker.first_device + number].queue.revoked(now_, action_id, commands);
        obey_queue(worker.first_device + number, commands);
        give_back(std::move(commands));
        if (!worker.alive)
            return;
    }
}

void World::queue_due(std::uint32_t number) {
    Device& device = devices_[number];
    if (device.queue_due_ns > now_)
        return;  // a later wake-up was requested since
    device.queue_due_ns = NEVER_NS;
    auto commands = buffer();
    if (device.queue.next_wake_ns() <= now_)
        device.queue.due(now_, commands);
    obey_queue(number, commands);
    give_back(std::move(commands));
}

void World::obey_queue(std::uint32_t number, std::vector<QueueCommand>& commands) {
    Device& device = devices_[number];
    WorkerState& worker = workers_[device.worker];
    const std::uint32_t epoch = worker.epoch;
    for (const QueueCommand& command : commands) {
        Action& action = *actions_[command.token];
        switch (command.order) {
            case QueueOrder::START: {
                const LaneKind lane = lane_of(action.kind);
                demand(!device.lanes.is_full(lane), "a device was given more than run_ahead actions");
                device.lanes.push(action, now_);
                advance(number, lane);
                break;
            }
            case QueueOrder::REVOKE_STARTED: {
                emulated::EmulatedEnd done;
                if (device.lanes.revoke(command.action_id, done))
                    conclude(number, command.token, done.status);
                break;
            }
            case QueueOrder::REJECT_LATE:
                action.status = Status::TOO_LATE;
                send_back(command.token);
                break;
            case QueueOrder::REJECT_REVOKED:
                action.status = Status::ACTION_CANCELLED;
                send_back(command.token);
                break;
            case QueueOrder::REJECT_TWICE: fail("an action was sent twice");
            case QueueOrder::REJECT_FULL:
                action.status = Status::DEVICE_ERROR;
                send_back(command.token);
                break;
        }
        if (worker.epoch != epoch)
            return;  // the connection broke: the other commands are void
    }
    if (run_.check)
        device.queue.check_invariants();
    const Ns wake = device.queue.next_wake_ns();
    if (wake < device.queue_due_ns) {
        device.queue_due_ns = wake;
        heap_.push(std::max(wake, now_), EventKind::QUEUE_DUE, number, epoch, 0);
    }
}

// ----- devices ----------------------------------------------------------------------------------

// Returns a model's layout on a worker. The reference is valid until the next call.
const std::vector<std::uint32_t>& World::runs_of(const WorkerState& worker, std::uint32_t model) {
    if (worker.extra_pages == 0)
        return models_[model].runs;
    runs_ = models_[model].runs;
    runs_.push_back(worker.extra_pages);
    return runs_;
}

// Returns a model's size in the store of a worker.
std::uint64_t World::bytes_of(const WorkerState& worker, std::uint32_t model) {
    std::uint64_t pages = 0;
    for (const std::uint32_t run : runs_of(worker, model))
        pages += run;
    return pages * cluster_.page_bytes;
}

// Returns the number of other workers whose disks have a model.
std::uint32_t World::stored_elsewhere(std::uint32_t index, std::uint32_t model) const {
    std::uint32_t found = 0;
    for (std::uint32_t other = 0; other < workers_.size(); ++other)
        found += other != index && workers_[other].alive && workers_[other].store->holds(static_cast<ModelId>(model));
    return found;
}

std::uint32_t World::batch_max_of(const WorkerState& worker, std::uint32_t model) const {
    const std::uint32_t most = models_[model].batch_max;
    return worker.batch_max == 0 ? most : std::min(most, worker.batch_max);
}

bool World::serves(const WorkerState& worker, std::uint32_t model) const {
    return worker.own == nullptr || !worker.own->exec_ns[model].empty();
}

const std::vector<std::pair<std::uint32_t, Ns>>& World::profile_of(const WorkerState& worker,
                                                                   std::uint32_t model) const {
    return worker.own == nullptr ? models_[model].exec_ns : worker.own->exec_ns[model];
}

const std::vector<Ns>& World::table_of(const WorkerState& worker, std::uint32_t model) const {
    return worker.own == nullptr ? models_[model].table : worker.own->tables[model];
}

// Begins the action at the head of a lane, if its time has come.
void World::advance(std::uint32_t number, LaneKind lane) {
    Device& device = devices_[number];
    const WorkerState& worker = workers_[device.worker];
    const std::uint32_t epoch = worker.epoch;
    const auto allowed = [this](const emulated::EmulatedOrder& order, Ns took_ns) {
        return allowed_ns(order, took_ns);
    };
    emulated::EmulatedEnd done;
    for (;;) {
        const auto [next, at_ns] = device.lanes.step(lane, now_, done, allowed);
        switch (next) {
            case emulated::LaneNext::NOTHING: return;
            case emulated::LaneNext::OPENS:
                heap_.push(at_ns, EventKind::LANE_OPEN, number, epoch, static_cast<std::uint64_t>(lane));
                return;
            case emulated::LaneNext::RUNS: {
                Action& action = *actions_[device.lanes.running(lane)->token];
                action.begin_ns = now_;
                note(201, static_cast<std::int64_t>(action.id), number);
                heap_.push(at_ns, EventKind::LANE_END, number, epoch, static_cast<std::uint64_t>(lane));
                follow_neighbours(number);
                return;
            }
            case emulated::LaneNext::ENDED:
                demand_possible(done);
                conclude(number, done.token, done.status);
                if (worker.epoch != epoch)
                    return;
        }
    }
}

// Returns the time of an action with disturbances, cut at the worker's time limit. took_ns: time without
// both.
Ns World::allowed_ns(const emulated::EmulatedOrder& order, Ns took_ns) {
    Action& action = *actions_[order.token];
    const bool is_execution = executes(order.kind);
    const auto kind = is_execution ? DisturbanceSetup::Kind::EXECUTION : DisturbanceSetup::Kind::LOAD;
    took_ns = slowed_ns(kind, devices_[action.device].worker, now_, took_ns, action.model_id);
    if (order.kind == ActionKind::FETCH)
        return took_ns;
    const Ns limit_ns = is_execution ? std::max(EXECUTION_LIMIT_NS, EXECUTION_LIMIT_FACTOR * order.profiled_ns)
                                     : std::max(LOAD_LIMIT_NS, LOAD_LIMIT_FACTOR * order.profiled_ns);
    action.overran = took_ns > limit_ns;
    return std::min(took_ns, limit_ns);
}

// Fails for an order that the device could not follow, which is a fault of the scheduler.
void World::demand_possible(const emulated::EmulatedEnd& done) const {
    switch (done.cause) {
        case emulated::FailureCause::LATE:
        case emulated::FailureCause::CHANCE: return;
        case emulated::FailureCause::NOT_LOADED:
            if (!run_.check || cluster_.load_failures > 0)
                return;
            break;
        case emulated::FailureCause::IN_USE:
            if (!run_.check)
                return;
            break;
        default: break;
    }
    fail("an order that cannot be followed: " + emulated::sentence(done));
}

// Moves the ends of executions in an arena where an execution began or ended.
void World::follow_neighbours(std::uint32_t number) {
    devices_[number].lanes.retime(now_, [this](std::uint32_t moved, Ns end_ns) {
        heap_.push(end_ns, EventKind::LANE_END, moved, workers_[devices_[moved].worker].epoch,
                   static_cast<std::uint64_t>(LaneKind::EXECUTE));
    });
}

void World::lane_end(std::uint32_t number, LaneKind lane) {
    Device& device = devices_[number];
    if (!device.lanes.running(lane) || device.lanes.ends_ns(lane) > now_)
        return;  // a neighbour has moved the end since
    const std::uint32_t slot = device.lanes.running(lane)->token;
    Action& action = *actions_[slot];
    const std::uint32_t index = device.worker, epoch = workers_[index].epoch;
    const ActionKind kind = action.kind;
    action.end_ns = now_;
    if (kind == ActionKind::LOAD && action.overran) {
        // The lane stays blocked: the worker reports the overrun, and leaves once the report has arrived.
        device.lanes.hang(lane);
        action.status = Status::OVERRUN;
        send_back(slot);
        if (workers_[index].epoch != epoch)
            return;  // the connection broke
        heap_.push(workers_[index].back_free_ns + 1, EventKind::GIVE_UP, index, epoch, 0);
        return;
    }
    Status ended = action.overran ? Status::OVERRUN : Status::OK;
    if (kind == ActionKind::FETCH && cluster_.store_bytes > 0 &&
        stored_elsewhere(index, static_cast<std::uint32_t>(action.model_id)) == 0)
        ended = Status::DEVICE_ERROR;  // nobody was left to bring the model
    const emulated::EmulatedEnd done = device.lanes.finish(lane, now_, ended);
    Slice* slice = this->slice();
    if (kind == ActionKind::LOAD) {
        accounts_.link_busy_ns[index] += overlap(action.begin_ns, now_);
        if (slice) {
            ++slice->loads;
            slice->link_busy_ns += now_ - action.begin_ns;
        }
    } else if (executes(kind)) {
        accounts_.busy_ns[number] += overlap(action.begin_ns, now_);
        if (slice) {
            ++slice->infers;
            slice->batched += action.rows;
            slice->busy_ns += now_ - action.begin_ns;
        }
    }
    if (counting())
        accounts_.count(kind, action.rows);
    conclude(number, slot, done.status);
    if (workers_[index].epoch != epoch)
        return;
    advance(number, lane);
    follow_neighbours(number);
    if (kind == ActionKind::LOAD)
        grant_link(index);
}

// Ends an action that the device has executed or rejected.
void World::conclude(std::uint32_t number, std::uint32_t slot, Status status) {
    Device& device = devices_[number];
    const std::uint32_t worker = device.worker, epoch = workers_[worker].epoch;
    const ActionId id = actions_[slot]->id;
    actions_[slot]->status = status;
    note(202, static_cast<std::int64_t>(id), static_cast<std::int64_t>(status));
    send_back(slot);
    if (workers_[worker].epoch != epoch)
        return;
    auto commands = buffer();
    device.queue.ended(now_, id, commands);
    obey_queue(number, commands);
    give_back(std::move(commands));
}

void World::grant_link(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    const std::uint32_t epoch = worker.epoch;
    while (worker.epoch == epoch) {
        const std::uint32_t number = worker.link.next();
        if (number == emulated::EmulatedLink::NONE)
            return;
        devices_[number].lanes.granted();
        advance(number, LaneKind::LOAD);
    }
}

}  // namespace clockwork::sim
