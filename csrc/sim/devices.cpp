// The workers' side of a simulated world: links, clocks, queues, devices.
#include <algorithm>
#include <string>

#include "sim/world.h"

namespace clockwork::sim {

namespace {

constexpr Ns UNLOAD_NS = 20'000;
constexpr Ns RECONNECT_NS = 100 * MS;     // from a broken connection to the next hello
constexpr Ns SYNC_NS = 250 * MS;          // clockwork.config.HEARTBEAT_NS: the controller pings as often
constexpr Ns SYNC_WINDOW = 64;            // clockwork.config.CLOCK_WINDOW
constexpr double DRIFT_ALLOWED = 200e-6;  // clockwork.controller.clocksync.DRIFT_PPM

}  // namespace

// ----- coming and going -------------------------------------------------------------------------

void World::join(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    worker.alive = true;
    worker.id = static_cast<WorkerId>(worker_of_.size());
    const auto measured = [place = index + worker.joins](const std::vector<std::uint32_t>& all) {
        return all.empty() ? 0 : all[place % all.size()];
    };
    worker.batch_max = measured(cluster_.batch_maxes);
    worker.extra_pages = measured(cluster_.extra_pages);
    ++worker.joins;
    worker_of_.push_back(index);
    worker.there_free_ns = worker.back_free_ns = worker.input_free_ns = now_;
    worker.pongs.clear();
    worker.synced_ns = NEVER_NS;
    sync_clock(worker);
    specs_.assign(worker.device_count,
                  DeviceSpec{worker.kind, cluster_.page_bytes, cluster_.page_count, cluster_.run_ahead});
    note(0, worker.id, index);
    scheduler_->worker_joined(now_, worker.id, specs_, cluster_.host_bytes);
    // What the controller measures: a high percentile, and the error of the middle of its bounds with it.
    const bool shifted = cluster_.clock_offset_ns != 0 || cluster_.clock_drift_ppm != 0;
    const Ns error = shifted ? (worker.upper_ns + worker.lower_ns) / 2 - true_offset(worker, now_) : 0;
    worker.there_seen_ns = std::max<Ns>(cluster_.link_there_ns + cluster_.link_jitter_ns - error, 0);
    worker.back_seen_ns = std::max<Ns>(cluster_.link_back_ns + cluster_.link_jitter_ns + error, 0);
    scheduler_->link_measured(now_, worker.id, worker.there_seen_ns, worker.back_seen_ns);
    ModelSpec spec;
    for (std::size_t number = 0; number < models_.size(); ++number) {
        const ModelInfo& model = models_[number];
        spec.model_id = static_cast<ModelId>(number);
        spec.program = model.program;
        spec.batches = model.batch_max > 1;
        spec.batch_max = batch_max_of(worker, static_cast<std::uint32_t>(number));
        spec.slo_ns = model.slo_ns;
        spec.runs = runs_of(worker, static_cast<std::uint32_t>(number));
        spec.load_ns = static_cast<Ns>(static_cast<double>(model.load_ns) * cluster_.load_profiled);
        spec.profile.clear();
        for (const auto& [batch, ns] : model.exec_ns) {
            if (batch > spec.batch_max)
                continue;
            const double slower = cluster_.profiled / worker.speed;
            const Ns scaled = slower == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * slower);
            spec.profile.push_back({0, batch, std::max<Ns>(scaled, 1)});
        }
        scheduler_->model_ready(now_, worker.id, spec);
    }
    touched_ = true;
}

// The worker is gone, and all that it held. hangs: the controller finds out only by its silence.
void World::crash(std::uint32_t index, bool hangs) {
    WorkerState& worker = workers_[index];
    if (!worker.alive)
        return;
    worker.alive = false;
    ++accounts_.crashes;
    note(200, index, hangs);
    for (std::uint32_t number = 0; number < worker.device_count; ++number) {
        Device& device = devices_[worker.first_device + number];
        device.queue.reset();
        for (LaneState& lane : device.lanes)
            lane = LaneState{};
        device.queue_due_ns = NEVER_NS;
        device.copied_ns = 0;
        std::fill(device.owner.begin(), device.owner.end(), NONE);
        for (std::uint32_t& held : device.held) {
            if (held == NONE)
                continue;
            free_residents_.push_back(held);
            held = NONE;
        }
    }
    for (std::uint32_t slot = 0; slot < actions_.size(); ++slot) {
        const Action& action = actions_[slot];
        if (action.id == 0 || devices_[action.device].worker != index)
            continue;
        if (action.at_worker)
            drop_action(slot);
    }
    worker.link_user = NONE;
    worker.link_queue.clear();
    std::fill(worker.host.begin(), worker.host.end(), Hosting::NO);
    worker.host_used = 0;
    heap_.push(now_ + (hangs ? cluster_.timeout_ns : cluster_.link_back_ns), EventKind::NOTICED, index, worker.epoch,
               0);
    ++worker.epoch;
}

void World::noticed(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    obey();  // what was ordered at this very moment was sent, to nobody
    note(1, worker.id);
    if (run_.check) {
        for (Request& request : requests_) {
            if (request.flying && request.flying_worker == index)
                request.flying = 0;
        }
    }
    scheduler_->worker_left(now_, worker.id);
    worker.id = 0;
    touched_ = true;
    heap_.push(now_ + (worker.broken ? RECONNECT_NS : cluster_.down_ns), EventKind::REJOIN, index, worker.epoch, 0);
    worker.broken = false;
}

// ----- links and clocks -------------------------------------------------------------------------

// Whether this message breaks its connection: a stream loses nothing but all that follows.
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
    const std::uint32_t index = devices_[actions_[slot].device].worker;
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
        leaves += slowed_ns(DisturbanceInfo::Kind::INPUTS, index, leaves, takes);
        free_ns = leaves;
    };
    pass(cluster_.io_bandwidth, io_free_ns_);
    pass(cluster_.input_bandwidth, worker.input_free_ns);
    Ns at = leaves + slowed_ns(DisturbanceInfo::Kind::LINK, index, leaves, cluster_.link_there_ns);
    if (cluster_.link_jitter_ns) {
        at += static_cast<Ns>(worker.random.below(static_cast<std::uint64_t>(cluster_.link_jitter_ns) + 1));
    }
    worker.there_free_ns = std::max(worker.there_free_ns, at);
    heap_.push(worker.there_free_ns, EventKind::DELIVER, index, worker.epoch, slot);
}

void World::send_back(std::uint32_t slot) {
    const std::uint32_t index = devices_[actions_[slot].device].worker;
    actions_[slot].at_worker = false;
    if (lost(index)) {
        drop_action(slot);
        return;
    }
    WorkerState& worker = workers_[index];
    Ns at = now_ + slowed_ns(DisturbanceInfo::Kind::LINK, index, now_, cluster_.link_back_ns);
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

// The controller bounds the offset by its pings, as clockwork.controller.clocksync does: from above by the
// quickest way there in its window, from below by the quickest way back. Between pings the bounds part.
void World::sync_clock(WorkerState& worker) {
    if (worker.synced_ns != NEVER_NS && now_ - worker.synced_ns < SYNC_NS)
        return;
    Ns there = cluster_.link_jitter_ns, back = cluster_.link_jitter_ns;
    if (cluster_.link_jitter_ns) {
        for (Ns ping = 0; ping < SYNC_WINDOW; ++ping) {
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

// The window of an order: in the controller's time, as worker time with the bounds of its estimate, and what the
// worker's clock makes of that.
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

// A ping takes the way of every message, and so does its answer.
void World::ping(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    if (now_ < count_until_)
        heap_.push(now_ + cluster_.ping_ns, EventKind::PING, index, 0, 0);
    if (worker.id == 0 || !worker.alive)
        return;
    const Ns delay = slowed_ns(DisturbanceInfo::Kind::LINK, index, now_, cluster_.link_there_ns);
    worker.there_free_ns = std::max({worker.there_free_ns, now_ + delay, worker.input_free_ns + delay});
    heap_.push(worker.there_free_ns, EventKind::PINGED, index, worker.epoch, static_cast<std::uint64_t>(now_));
}

void World::pinged(std::uint32_t index, Ns sent_ns) {
    WorkerState& worker = workers_[index];
    worker.pongs.emplace_back(sent_ns, now_);
    const Ns delay = slowed_ns(DisturbanceInfo::Kind::LINK, index, now_, cluster_.link_back_ns);
    worker.back_free_ns = std::max(worker.back_free_ns, now_ + delay);
    heap_.push(worker.back_free_ns, EventKind::PONG, index, worker.epoch, 0);
}

void World::ponged(std::uint32_t index) {
    WorkerState& worker = workers_[index];
    const auto [sent_ns, received_ns] = worker.pongs.front();
    worker.pongs.pop_front();
    note(5, index, sent_ns, received_ns);
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
    Action& action = actions_[slot];
    action.at_worker = true;
    action.received_ns = now_;
    Device& device = devices_[action.device];
    QueuedAction queued;
    queued.action_id = action.id;
    queued.earliest_ns = action.earliest_ns;
    queued.latest_ns = action.latest_ns;
    queued.is_unload = action.kind == ActionKind::UNLOAD || action.kind == ActionKind::DROP;
    queued.lane = static_cast<Lane>(lane_of(action.kind));
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
        return;  // asked for again since
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
        Action& action = actions_[command.token];
        switch (command.order) {
            case QueueOrder::START: {
                const std::size_t which = lane_of(action.kind);
                LaneState& lane = device.lanes[which];
                if (cluster_.copy_bandwidth && action.kind == ActionKind::INFER) {
                    device.copied_ns = std::max(device.copied_ns, now_) + copy_ns(action);
                    action.ready_ns = device.copied_ns;
                }
                lane.waiting.push_back(command.token);
                demand(lane.waiting.size() + (lane.running != NONE) <= cluster_.run_ahead,
                       "a device was given more than run_ahead actions");
                advance(number, static_cast<std::uint32_t>(which));
                break;
            }
            case QueueOrder::REVOKE_STARTED:
                for (LaneState& lane : device.lanes) {
                    const auto place = std::find(lane.waiting.begin(), lane.waiting.end(), command.token);
                    if (place == lane.waiting.end())
                        continue;
                    lane.waiting.erase(place);
                    conclude(number, command.token, Status::ACTION_CANCELLED);
                    break;
                }
                break;
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
            return;  // the connection broke, and with it all of this
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

// Begin what is at the head of a lane, if its time has come.
void World::advance(std::uint32_t number, std::uint32_t which) {
    Device& device = devices_[number];
    WorkerState& worker = workers_[device.worker];
    LaneState& lane = device.lanes[which];
    const std::uint32_t epoch = worker.epoch;
    while (lane.running == NONE && !lane.wants_link && !lane.waiting.empty()) {
        const std::uint32_t slot = lane.waiting.front();
        const Action& action = actions_[slot];
        const Ns opens = std::max(action.earliest_ns, action.ready_ns);
        if (opens > now_) {
            if (lane.opens_ns > opens) {
                lane.opens_ns = opens;
                heap_.push(opens, EventKind::LANE_OPEN, number, worker.epoch, which);
            }
            return;
        }
        if (action.kind == ActionKind::LOAD && worker.link_user != NONE) {
            lane.wants_link = true;  // the devices of a worker load one after the other
            worker.link_queue.push_back(number);
            return;
        }
        lane.waiting.erase(lane.waiting.begin());
        if (begin(number, which, slot))
            return;
        if (worker.epoch != epoch)
            return;
    }
}

// True if it runs now; else it has been answered.
bool World::begin(std::uint32_t number, std::uint32_t which, std::uint32_t slot) {
    Device& device = devices_[number];
    Action& action = actions_[slot];
    Status status = Status::OK;
    if (action.latest_ns < now_) {
        status = Status::TOO_LATE;
    } else if (action.kind == ActionKind::LOAD) {
        status = begin_load(device, action);
    } else if (action.kind == ActionKind::FETCH || action.kind == ActionKind::DROP) {
        status = begin_host(device, action);
    } else {
        const std::uint32_t held = device.held[action.model];
        if (held == NONE || residents_[held].load_id != action.load_id || residents_[held].loading) {
            demand(!run_.check || cluster_.load_failures > 0, "an action on a model that is not resident");
            status = Status::NOT_RESIDENT;
        } else if (action.kind == ActionKind::UNLOAD) {
            const LaneState& lane = device.lanes[1];
            bool used = lane.running != NONE && actions_[lane.running].model == action.model;
            for (std::uint32_t other : lane.waiting)
                used |= actions_[other].model == action.model;
            demand(!run_.check || !used, "an UNLOAD of a model in use");
            if (used)
                status = Status::IN_USE;
        }
    }
    if (status != Status::OK) {
        conclude(number, slot, status);
        return false;
    }
    action.begin_ns = now_;
    device.lanes[which].running = slot;
    if (action.kind == ActionKind::LOAD)
        workers_[device.worker].link_user = number;
    note(201, static_cast<std::int64_t>(action.id), number);
    Ns took_ns = duration_ns(device, action);
    action.overran = false;
    if (action.kind == ActionKind::INFER || action.kind == ActionKind::PROFILE) {
        const std::vector<Ns>& table = models_[action.model].table;
        const Ns limit_ns = EXECUTION_LIMIT_FACTOR * table[std::min<std::size_t>(action.rows, table.size() - 1)];
        action.overran = took_ns > std::max(EXECUTION_LIMIT_NS, limit_ns);
        if (action.overran)
            took_ns = std::max(EXECUTION_LIMIT_NS, limit_ns);
    } else if (action.kind == ActionKind::LOAD) {
        const Ns limit_ns = std::max(LOAD_LIMIT_NS, LOAD_LIMIT_FACTOR * models_[action.model].load_ns);
        action.overran = took_ns > limit_ns;
        took_ns = std::min(took_ns, limit_ns);
    }
    heap_.push(now_ + took_ns, EventKind::LANE_END, number, workers_[device.worker].epoch, which);
    return true;
}

std::size_t World::lane_of(ActionKind kind) {
    if (kind == ActionKind::LOAD || kind == ActionKind::UNLOAD)
        return static_cast<std::size_t>(Lane::LOAD);
    const bool is_host = kind == ActionKind::FETCH || kind == ActionKind::DROP;
    return static_cast<std::size_t>(is_host ? Lane::FETCH : Lane::EXECUTE);
}

// A model's layout on a worker; valid until this is asked again.
const std::vector<std::uint32_t>& World::runs_of(const WorkerState& worker, std::uint32_t model) {
    if (worker.extra_pages == 0)
        return models_[model].runs;
    runs_ = models_[model].runs;
    runs_.push_back(worker.extra_pages);
    return runs_;
}

std::uint32_t World::batch_max_of(const WorkerState& worker, std::uint32_t model) const {
    const std::uint32_t most = models_[model].batch_max;
    return worker.batch_max == 0 ? most : std::min(most, worker.batch_max);
}

std::uint64_t World::host_bytes(const WorkerState& worker, std::uint32_t model) {
    std::uint64_t pages = 0;
    for (std::uint32_t run : runs_of(worker, model))
        pages += run;
    return pages * cluster_.page_bytes;
}

// Nor does the host store.
Status World::begin_host(Device& device, const Action& action) {
    WorkerState& worker = workers_[device.worker];
    demand(!worker.host.empty(), "an order to a host store that is none");
    Hosting& here = worker.host[action.model];
    if (action.kind == ActionKind::FETCH) {
        demand(here == Hosting::NO, "a FETCH of a model that is in the host store");
        demand(worker.host_used + host_bytes(worker, action.model) <= cluster_.host_bytes,
               "a host store is over-committed");
        if (device.random.chance(cluster_.load_failures))
            return Status::DEVICE_ERROR;
        here = Hosting::FETCHING;
        worker.host_used += host_bytes(worker, action.model);
        return Status::OK;
    }
    demand(here == Hosting::HELD, "a DROP of a model that is not in the host store");
    for (std::uint32_t number = 0; number < worker.device_count; ++number) {
        const LaneState& lane = devices_[worker.first_device + number].lanes[0];
        const auto loads = [&](std::uint32_t slot) {
            return actions_[slot].kind == ActionKind::LOAD && actions_[slot].model == action.model;
        };
        bool used = lane.running != NONE && loads(lane.running);
        for (std::uint32_t other : lane.waiting)
            used |= loads(other);
        demand(!used, "a DROP of a model that is being loaded");
    }
    here = Hosting::NO;
    worker.host_used -= host_bytes(worker, action.model);
    return Status::OK;
}

// The page table believes nothing: a LOAD that cannot be is a fault of the scheduler's.
Status World::begin_load(Device& device, Action& action) {
    const std::vector<std::uint32_t>& runs = runs_of(workers_[device.worker], action.model);
    demand(action.starts.size() == runs.size(), "a LOAD with the wrong number of runs");
    demand(device.held[action.model] == NONE, "a LOAD of a model that is there");
    const WorkerState& worker = workers_[device.worker];
    demand(worker.host.empty() || worker.host[action.model] == Hosting::HELD,
           "a LOAD of a model that is not in the host store");
    for (std::size_t run = 0; run < runs.size(); ++run) {
        for (std::uint32_t page = action.starts[run]; page < action.starts[run] + runs[run]; ++page) {
            demand(page < device.owner.size(), "a LOAD outside the arena");
            demand(device.owner[page] == NONE, "a LOAD onto pages in use");
            device.owner[page] = action.model;
        }
    }
    std::uint32_t held;
    if (free_residents_.empty()) {
        held = static_cast<std::uint32_t>(residents_.size());
        residents_.emplace_back();
    } else {
        held = free_residents_.back();
        free_residents_.pop_back();
    }
    Resident& resident = residents_[held];
    resident.model = action.model;
    resident.load_id = action.load_id;
    resident.loading = true;
    resident.starts = action.starts;
    device.held[action.model] = held;
    if (device.random.chance(cluster_.load_failures)) {
        release(device, action.model);
        return Status::DEVICE_ERROR;
    }
    return Status::OK;
}

void World::release(Device& device, std::uint32_t model) {
    const std::uint32_t held = device.held[model];
    const std::vector<std::uint32_t>& runs = runs_of(workers_[device.worker], model);
    for (std::size_t run = 0; run < runs.size(); ++run) {
        const std::uint32_t first = residents_[held].starts[run];
        for (std::uint32_t page = first; page < first + runs[run]; ++page)
            device.owner[page] = NONE;
    }
    device.held[model] = NONE;
    free_residents_.push_back(held);
}

void World::lane_end(std::uint32_t number, std::uint32_t which) {
    Device& device = devices_[number];
    const std::uint32_t slot = device.lanes[which].running;
    Action& action = actions_[slot];
    device.lanes[which].running = NONE;
    action.end_ns = now_;
    Status status = Status::OK;
    Slice* slice = this->slice();
    if (action.kind == ActionKind::LOAD && action.overran) {
        // The lane stays where it is: the worker says why it leaves, and leaves when that has arrived.
        device.lanes[which].running = slot;
        action.status = Status::OVERRUN;
        const std::uint32_t index = device.worker, epoch = workers_[index].epoch;
        send_back(slot);
        if (workers_[index].epoch != epoch)
            return;  // the connection broke
        heap_.push(workers_[index].back_free_ns + 1, EventKind::GIVE_UP, index, epoch, 0);
        return;
    }
    if (action.kind == ActionKind::LOAD) {
        residents_[device.held[action.model]].loading = false;
        accounts_.link_busy_ns[device.worker] += overlap(action.begin_ns, now_);
        if (counting())
            ++accounts_.loads;
        if (slice) {
            ++slice->loads;
            slice->link_busy_ns += now_ - action.begin_ns;
        }
        workers_[device.worker].link_user = NONE;
    } else if (action.kind == ActionKind::FETCH) {
        workers_[device.worker].host[action.model] = Hosting::HELD;
        if (counting())
            ++accounts_.fetches;
    } else if (action.kind == ActionKind::DROP) {
        if (counting())
            ++accounts_.drops;
    } else if (action.kind == ActionKind::UNLOAD) {
        release(device, action.model);
        if (counting())
            ++accounts_.unloads;
    } else {
        accounts_.busy_ns[number] += overlap(action.begin_ns, now_);
        if (counting()) {
            ++accounts_.infers;
            if (action.rows >= accounts_.batches.size())
                accounts_.batches.resize(action.rows + 1);
            ++accounts_.batches[action.rows];
        }
        if (slice) {
            ++slice->infers;
            slice->batched += action.rows;
            slice->busy_ns += now_ - action.begin_ns;
        }
        if (device.random.chance(cluster_.infer_failures))
            status = Status::DEVICE_ERROR;
        if (action.overran)
            status = Status::OVERRUN;
    }
    const std::uint32_t worker = device.worker, epoch = workers_[worker].epoch;
    const bool loaded = action.kind == ActionKind::LOAD;
    conclude(number, slot, status);
    if (workers_[worker].epoch != epoch)
        return;
    advance(number, which);
    if (loaded)
        grant_link(worker);
}

// The device is done with an action, or will not do it.
void World::conclude(std::uint32_t number, std::uint32_t slot, Status status) {
    Device& device = devices_[number];
    const std::uint32_t worker = device.worker, epoch = workers_[worker].epoch;
    const ActionId id = actions_[slot].id;
    actions_[slot].status = status;
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
    while (worker.link_user == NONE && !worker.link_queue.empty()) {
        const std::uint32_t number = worker.link_queue.front();
        worker.link_queue.erase(worker.link_queue.begin());
        devices_[number].lanes[0].wants_link = false;
        advance(number, 0);
        if (worker.epoch != epoch)
            return;
    }
}

// How long the inputs of an action take to the device.
Ns World::copy_ns(const Action& action) const {
    if (cluster_.copy_bandwidth == 0 || action.kind != ActionKind::INFER)
        return 0;
    const auto bytes = static_cast<unsigned __int128>(models_[action.model].input_bytes) * action.rows;
    return static_cast<Ns>(bytes * SECOND / cluster_.copy_bandwidth);
}

// How many times as long an execution takes that begins now.
double World::spell() const {
    if (!begun_)
        return 1;
    auto after = std::upper_bound(cluster_.spells.begin(), cluster_.spells.end(), now_ - base_ns_,
                                  [](Ns at_ns, const auto& one) { return at_ns < one.first; });
    return after == cluster_.spells.begin() ? 1 : std::prev(after)->second;
}

Ns World::duration_ns(Device& device, const Action& action) {
    if (action.kind == ActionKind::UNLOAD || action.kind == ActionKind::DROP)
        return UNLOAD_NS;
    double exact, factor = 1;
    if (action.kind == ActionKind::FETCH) {
        if (cluster_.disk_bandwidth == 0)
            return 1;
        const std::uint64_t bytes = host_bytes(workers_[device.worker], action.model);
        exact = static_cast<double>(bytes) * SECOND / static_cast<double>(cluster_.disk_bandwidth);
        if (cluster_.load_noise > 0)
            factor = device.random.lognormal(cluster_.load_noise);
    } else if (action.kind == ActionKind::LOAD) {
        exact = static_cast<double>(models_[action.model].load_ns);
        if (cluster_.load_noise > 0)
            factor = device.random.lognormal(cluster_.load_noise);
    } else {
        const std::vector<Ns>& table = models_[action.model].table;
        exact = static_cast<double>(table[std::min<std::size_t>(action.rows, table.size() - 1)]);
        exact = exact / workers_[device.worker].speed * spell();
        if (cluster_.exec_noise > 0)
            factor = device.random.lognormal(cluster_.exec_noise);
    }
    if (device.random.chance(cluster_.outlier))
        factor *= cluster_.outlier_factor;
    const bool executes = action.kind == ActionKind::INFER || action.kind == ActionKind::PROFILE;
    const auto kind = executes ? DisturbanceInfo::Kind::EXECUTION : DisturbanceInfo::Kind::LOAD;
    return std::max<Ns>(slowed_ns(kind, device.worker, now_, static_cast<Ns>(exact * factor)), 1);
}

}  // namespace clockwork::sim
