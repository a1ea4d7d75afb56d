// Time, the clients' side and the controller's side of a simulated world.
#include "sim/world.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace clockwork::sim {

namespace {

constexpr int SEQUENCE_SHIFT = 24;  // a request's id is its sequence, with its slot in the lower bits
constexpr std::uint64_t SLOT_MASK = (std::uint64_t{1} << SEQUENCE_SHIFT) - 1;

}  // namespace

// ----- time -------------------------------------------------------------------------------------

void World::feed(std::size_t open, const ArrivalChunk& chunk) {
    OpenState& state = opens_.at(open);
    if (chunk.count == 0) {
        state.over = true;
        state.fed = false;
        return;
    }
    Ns last = state.last_ns;
    for (std::size_t place = 0; place < chunk.count; ++place) {
        if (chunk.at_ns[place] < last) {
            throw std::invalid_argument("an arrival at " + std::to_string(chunk.at_ns[place]) +
                                        " ns comes after one at " + std::to_string(last) + " ns");
        }
        last = chunk.at_ns[place];
        const std::int32_t model = chunk.model[place];
        if (model < 0 || static_cast<std::size_t>(model) >= models_.size()) {
            throw std::invalid_argument("an arrival for model " + std::to_string(model) + " of " +
                                        std::to_string(models_.size()));
        }
        if (chunk.slo_ns[place] < 0)
            throw std::invalid_argument("an SLO below 0");
    }
    state.last_ns = last;
    state.chunk = chunk;
    state.next = 0;
    state.fed = true;
}

// Returns the time at which the controller takes the next arrival, that of workload nearest_, or NEVER_NS.
// Sets wanting_ to a workload that must be fed first.
Ns World::next_arrival() {
    Ns least = NEVER_NS;
    wanting_ = opens_.size();
    for (std::size_t number = 0; number < opens_.size(); ++number) {
        OpenState& state = opens_[number];
        if (state.over)
            continue;
        if (!state.fed) {
            wanting_ = number;
            return NEVER_NS;
        }
        const Ns at = state.chunk.at_ns[state.next];
        if (at >= run_.until_ns) {
            state.over = true;
        } else if (base_ns_ + at < least) {
            least = base_ns_ + at;
            nearest_ = number;
        }
    }
    return turn_ns(least);
}

StopReason World::run(std::uint64_t events_max) {
    if (over_)
        return StopReason::DONE;
    const std::uint64_t stop_at = events_ + events_max;
    for (;;) {
        Ns arrival = next_arrival();
        if (wanting_ < opens_.size())
            return StopReason::WANTS_CHUNK;
        if (events_ >= stop_at)
            return StopReason::PAUSED;
        const Ns wake = turn_ns(wake_ns_);
        Ns next = std::min(arrival, wake);
        if (!heap_.empty())
            next = std::min(next, heap_.top().at_ns);
        if (arrival == NEVER_NS && clients_left_ == 0 && outstanding_ == 0 && is_at_rest())
            break;
        const Ns ended = run_.until_ns == NEVER_NS ? base_ns_ + last_arrival_ns_ : base_ns_ + run_.until_ns;
        if (next == NEVER_NS || (arrival == NEVER_NS && next > ended + run_.drain_ns))
            break;
        demand(next >= now_, "time went back");
        now_ = next;
        while (arrival == now_) {
            arrive_open(nearest_);
            arrival = next_arrival();
            if (wanting_ < opens_.size())
                break;  // the next iteration returns WANTS_CHUNK
        }
        while (!heap_.empty() && heap_.top().at_ns == now_)
            handle(heap_.pop());
        if (turn_ns(wake_ns_) <= now_) {
            wake_ns_ = NEVER_NS;
            touched_ = true;
        }
        if (touched_)
            settle();
    }
    finish();
    return StopReason::DONE;
}

// Returns the time at which an event is handled: a worker may be stopped, or the controller slow.
Ns World::noticed_ns(const Event& event) const {
    switch (event.kind()) {
        case EventKind::DELIVER:
        case EventKind::REVOKE:
        case EventKind::PINGED:
        case EventKind::REJOIN: return stopped_until_ns(event.subject);
        case EventKind::QUEUE_DUE:
        case EventKind::LANE_OPEN:
        case EventKind::LANE_END: return stopped_until_ns(devices_[event.subject].worker);
        case EventKind::RESULT:
        case EventKind::CLIENT:
        case EventKind::CANCEL:
        case EventKind::NOTICED:
        case EventKind::PING:
        case EventKind::PONG: return turn_ns(now_);
        default: return now_;
    }
}

void World::handle(const Event& event) {
    ++events_;
    const std::uint32_t subject = event.subject;
    if (!cluster_.disturbances.empty()) {
        if (const Ns at = noticed_ns(event); at > now_) {
            heap_.push(at, event.kind(), subject, event.epoch, event.value);
            return;
        }
    }
    switch (event.kind()) {
        case EventKind::DELIVER:
            if (workers_[subject].epoch != event.epoch) {
                drop_action(static_cast<std::uint32_t>(event.value));
            } else {
                deliver(static_cast<std::uint32_t>(event.value));
            }
            break;
        case EventKind::REVOKE:
            if (workers_[subject].epoch == event.epoch)
                revoke(subject, event.value);
            break;
        case EventKind::QUEUE_DUE:
            if (workers_[devices_[subject].worker].epoch == event.epoch)
                queue_due(subject);
            break;
        case EventKind::LANE_OPEN:
            if (workers_[devices_[subject].worker].epoch == event.epoch) {
                devices_[subject].lanes.opened(static_cast<LaneKind>(event.value));
                advance(subject, static_cast<LaneKind>(event.value));
            }
            break;
        case EventKind::LANE_END:
            if (workers_[devices_[subject].worker].epoch == event.epoch)
                lane_end(subject, static_cast<LaneKind>(event.value));
            break;
        case EventKind::RESULT:
            if (workers_[subject].epoch != event.epoch) {
                drop_action(static_cast<std::uint32_t>(event.value));
            } else {
                reported(static_cast<std::uint32_t>(event.value), subject);
            }
            break;
        case EventKind::CLIENT: client_sends(subject); break;
        case EventKind::CANCEL: {
            Request* request = find(event.value);
            if (request) {
                note(2, static_cast<std::int64_t>(event.value));
                request->cancelled = true;
                record_cancelled(event.value);
                scheduler_->cancelled(now_, event.value);
                touched_ = true;
            }
            break;
        }
        case EventKind::CRASH:
            crash(subject, workers_[subject].random.chance(0.5));
            next_crash(subject);
            break;
        case EventKind::GIVE_UP:
            if (workers_[subject].epoch == event.epoch)
                crash(subject, false);
            break;
        case EventKind::NOTICED: noticed(subject); break;
        case EventKind::REJOIN: join(subject); break;
        case EventKind::PING: ping(subject); break;
        case EventKind::PINGED:
            if (workers_[subject].epoch == event.epoch)
                pinged(subject, static_cast<Ns>(event.value));
            break;
        case EventKind::PONG:
            if (workers_[subject].epoch == event.epoch)
                ponged(subject);
            break;
        case EventKind::DISTURB: disturb(subject, event.value != 0); break;
    }
}

// ----- clients ----------------------------------------------------------------------------------

void World::arrive_open(std::size_t number) {
    OpenState& state = opens_[number];
    const ArrivalChunk& chunk = state.chunk;
    const std::size_t place = state.next++;
    if (state.next == chunk.count)
        state.fed = false;
    arrive(static_cast<std::uint32_t>(chunk.model[place]), chunk.slo_ns[place], chunk.priority[place],
           chunk.class_index[place], NONE);
}

void World::client_sends(std::uint32_t number) {
    const ClosedSetup& group = closed_[number];
    if (now_ - base_ns_ >= std::min(group.until_ns, run_.until_ns)) {
        --clients_left_;
        return;
    }
    arrive(group.model, group.slo_ns, group.priority, group.class_index, number);
}

void World::arrive(std::uint32_t number, Ns slo_ns, std::uint8_t priority, std::uint8_t class_index,
                   std::uint32_t group) {
    ++events_;
    const ModelSetup& model = models_[number];
    if (slo_ns == 0)
        slo_ns = model.slo_ns;
    if (priority == 0)
        priority = run_.priority_default;
    std::uint32_t slot;
    if (free_requests_.empty()) {
        slot = static_cast<std::uint32_t>(requests_.size());
        demand(slot <= SLOT_MASK, "too many requests wait for their answers");
        requests_.emplace_back();
    } else {
        slot = free_requests_.back();
        free_requests_.pop_back();
    }
    Request& request = requests_[slot];
    request.sequence = ++next_request_;
    request.arrived_ns = now_;
    request.deadline_ns = slo_ns ? now_ + slo_ns : NEVER_NS;
    request.model = number;
    request.group = group;
    request.class_index = class_index;
    request.priority = priority;
    request.counted = counting();
    request.cancelled = false;
    request.flying = 0;
    if (run_.fates)
        fates_.emplace_back();
    ++outstanding_;
    last_arrival_ns_ = now_ - base_ns_;
    if (request.counted) {
        ++accounts_.models[number].offered;
        ++accounts_.classes[request.class_index].offered;
    }
    if (Slice* now = slice())
        ++now->offered;
    highest_arrived_ = std::min(highest_arrived_, priority);
    const RequestId id = request.sequence << SEQUENCE_SHIFT | slot;
    note(3, static_cast<std::int64_t>(id), number, slo_ns, priority);
    clockwork::Request told;
    told.id = id;
    told.model_id = number;
    told.bytes = model.input_bytes;
    told.arrived_ns = now_;
    told.deadline_ns = request.deadline_ns;
    told.priority = priority;
    record_arrived(told);
    timed([&] { scheduler_->arrived(now_, told); });
    touched_ = true;
    if (random_.chance(cluster_.cancels)) {
        const Ns patience = slo_ns ? slo_ns : 100 * MS;
        heap_.push(now_ + static_cast<Ns>(random_.below(static_cast<std::uint64_t>(patience))), EventKind::CANCEL, 0, 0,
                   id);
    }
}

World::Request* World::find(RequestId id) {
    const std::uint64_t slot = id & SLOT_MASK;
    if (slot >= requests_.size() || requests_[slot].sequence != id >> SEQUENCE_SHIFT)
        return nullptr;
    return &requests_[slot];
}

// Ends a request that is answered, or never will be.
void World::close(RequestId id, Request& request, RequestOutcome outcome) {
    const Ns latency = now_ - request.arrived_ns;
    if (request.counted) {
        ++accounts_.models[request.model].outcome[static_cast<std::size_t>(outcome)];
        ++accounts_.classes[request.class_index].outcome[static_cast<std::size_t>(outcome)];
        if (outcome == RequestOutcome::GOOD || outcome == RequestOutcome::LATE) {
            accounts_.latency.add(latency);
            accounts_.class_latency[request.class_index].add(latency);
        }
        if (outcome == RequestOutcome::REFUSED)
            accounts_.refusal.add(latency);
    }
    if (Slice* now = slice()) {
        if (outcome == RequestOutcome::GOOD) {
            ++now->good;
        } else if (outcome != RequestOutcome::CANCELLED) {
            ++now->bad;
        }
        if (outcome == RequestOutcome::GOOD || outcome == RequestOutcome::LATE)
            accounts_.slice_latency.add(latency);
    }
    if (request.group != NONE) {
        const ClosedSetup& group = closed_[request.group];
        heap_.push(now_ + group.think_ns + group.round_trip_ns, EventKind::CLIENT, request.group, 0, 0);
    }
    request.sequence = 0;
    free_requests_.push_back(static_cast<std::uint32_t>(id & SLOT_MASK));
    --outstanding_;
}

// ----- the controller ---------------------------------------------------------------------------

void World::settle() {
    touched_ = false;
    timed([&] { scheduler_->settle(now_); });
    record_step();
    obey();
    if (run_.check)
        scheduler_->check_invariants();
    highest_arrived_ = 255;
    if (run_.check)
        done_.clear();
}

void World::obey() {
    Commands& out = scheduler_->out;
    for (std::size_t place = 0; place < out.list.size(); ++place) {
        const Command& command = out.list[place];
        note(100 + static_cast<std::int64_t>(command.kind),
             static_cast<std::int64_t>(command.action_id | command.request_id),
             static_cast<std::int64_t>(command.worker) << 32 | command.device, command.model_id,
             static_cast<std::int64_t>(command.status) << 8 | static_cast<std::int64_t>(command.reason));
        digest_.add_all(command.earliest_ns, command.latest_ns, command.expected_ns, command.load_id, command.count);
        switch (command.kind) {
            case CommandKind::WAKE: wake_ns_ = command.earliest_ns; break;
            case CommandKind::ANSWER_OK:
            case CommandKind::ANSWER_FAILED: answer(command); break;
            case CommandKind::SEND_RESERVE: break;
            case CommandKind::MODEL_FAULT:
                if (command.set_aside)
                    is_aside_[static_cast<std::size_t>(command.model_id)] = true;
                break;
            case CommandKind::MODEL_GONE: model_gone(static_cast<std::uint32_t>(command.model_id)); break;
            default: order(command);
        }
    }
    out.clear();
}

// Removes a model that was set aside from the disks that hold some of the models, for good.
void World::model_gone(std::uint32_t model) {
    for (WorkerState& worker : workers_) {
        if (cluster_.store_bytes > 0)
            worker.store->give_back(static_cast<ModelId>(model));
    }
}

void World::answer(const Command& command) {
    Request* request = find(command.request_id);
    demand(request != nullptr, "a request is answered twice, or one that never was");
    RequestOutcome outcome;
    if (command.kind == CommandKind::ANSWER_OK) {
        outcome = now_ <= request->deadline_ns ? RequestOutcome::GOOD : RequestOutcome::LATE;
        if (command.load_ns > 0 && request->counted) {
            ++accounts_.models[request->model].cold;
            ++accounts_.classes[request->class_index].cold;
        }
        if (run_.check) {
            demand(outcome == RequestOutcome::GOOD, "a late success");
            const auto found = done_.find(command.action_id);
            demand(found != done_.end() && command.part < found->second.size() &&
                       found->second[command.part] == command.request_id,
                   "a request is answered with another's output");
        }
    } else if (command.status == Status::REFUSED) {
        outcome = RequestOutcome::REFUSED;
        demand(!run_.check || command.reason != Reason::DISPLACED || highest_arrived_ < request->priority,
               "a request is displaced, but not by a higher priority");
    } else if (command.status == Status::DEADLINE_MISSED) {
        outcome = RequestOutcome::MISSED;
    } else if (command.status == Status::CANCELLED) {
        demand(request->cancelled, "a request is cancelled, but not by its client");
        outcome = RequestOutcome::CANCELLED;
    } else {
        outcome = RequestOutcome::FAILED;
    }
    if (run_.check && outcome != RequestOutcome::GOOD) {
        demand(now_ <= std::max(request->deadline_ns, request->arrived_ns), "an answer after its deadline");
    }
    if (run_.fates) {
        RequestFate& fate = fates_[request->sequence - 1];
        fate.outcome = outcome;
        fate.reason = command.reason;
        fate.latency_ns = now_ - request->arrived_ns;
    }
    close(command.request_id, *request, outcome);
}

void World::order(const Command& command) {
    demand(command.worker > 0 && static_cast<std::size_t>(command.worker) < worker_of_.size(), "an order to nobody");
    const std::uint32_t index = worker_of_[static_cast<std::size_t>(command.worker)];
    WorkerState& worker = workers_[index];
    demand(worker.id == command.worker, "an order to a worker that has left");
    if (command.kind == CommandKind::SEND_REVOKE) {
        ++accounts_.revokes;
        if (lost(index))
            return;
        worker.there_free_ns = std::max(worker.there_free_ns, now_ + cluster_.link_there_ns);
        heap_.push(worker.there_free_ns, EventKind::REVOKE, index, worker.epoch, command.action_id);
        return;
    }
    demand(command.device >= 0 && static_cast<std::uint32_t>(command.device) < worker.device_count,
           "an order to a device that is none");
    demand(command.model_id >= 0 && static_cast<std::size_t>(command.model_id) < models_.size(),
           "an order for a model that is none");
    demand(command.latest_ns >= command.earliest_ns, "a window that never opens");
    const Commands& out = scheduler_->out;
    const auto number = static_cast<std::uint32_t>(command.model_id);
    const ModelSetup& model = models_[number];
    const std::uint32_t slot = take_action();
    Action& action = *actions_[slot];
    action.id = command.action_id;
    action.token = slot;
    action.device = worker.first_device + static_cast<std::uint32_t>(command.device);
    action.model_id = command.model_id;
    action.load_id = command.load_id;
    action.rows = 0;
    action.bytes = 0;
    std::uint64_t bytes = 0;
    action.kind = action_of(command.kind).value();
    if (lane_of(action.kind) == LaneKind::LOAD)
        action.profiled_ns = model.load_ns;
    switch (action.kind) {
        case ActionKind::LOAD: {
            const std::vector<std::uint32_t>& runs = runs_of(worker, number);
            demand(command.count == runs.size(), "a LOAD with the wrong number of runs");
            for (std::uint32_t run = 0; run < command.count; ++run)
                action.pages.push_back({out.runs[command.first + run], runs[run]});
            break;
        }
        case ActionKind::FETCH: action.bytes = bytes_of(worker, number); break;
        case ActionKind::DROP:
            if (run_.check && cluster_.store_bytes > 0) {
                const auto known = std::ranges::count_if(workers_, [](const auto& each) { return each.id != 0; });
                const auto least = std::min<std::size_t>(cluster_.stored_copies, static_cast<std::size_t>(known));
                demand(scheduler_->keepers(command.model_id).size() >= least, "a DROP leaves too few copies");
            }
            break;
        case ActionKind::INFER: {
            action.requests.assign(out.ids.begin() + command.first, out.ids.begin() + command.first + command.count);
            action.rows = command.count;
            action.bytes = bytes = model.input_bytes * command.count;
            demand(command.count > 0, "an INFER of nothing");
            if (run_.fates) {
                for (RequestId id : action.requests)
                    fates_[(id >> SEQUENCE_SHIFT) - 1].device = static_cast<std::int32_t>(action.device);
            }
            if (run_.check) {
                demand(command.count <= batch_max_of(worker, number), "a batch larger than the model's largest");
                for (RequestId id : action.requests) {
                    Request* request = find(id);
                    demand(request != nullptr, "an answered request is sent");
                    demand(request->model == number, "a request is sent with another model's");
                    demand(request->flying == 0, "a request is sent twice at once");
                    request->flying = action.id;
                    request->flying_worker = index;
                }
            }
            break;
        }
        case ActionKind::PROFILE: action.rows = std::max<std::uint32_t>(command.rows, 1); break;
        default: break;
    }
    demand(worker.store || lane_of(action.kind) != LaneKind::FETCH, "an order to a store that is none");
    demand(executes(action.kind) || has_arena(devices_[action.device]),
           "a load is ordered for a device without an arena");
    demand(serves(worker, number), "an order for a model that the worker does not serve");
    if (executes(action.kind)) {
        const std::vector<Ns>& table = table_of(worker, number);
        action.profiled_ns = table[std::min<std::size_t>(action.rows, table.size() - 1)];
    }
    set_window(action, command);
    send(slot, bytes);
}

void World::reported(std::uint32_t slot, std::uint32_t index) {
    Action& action = *actions_[slot];
    WorkerState& worker = workers_[index];
    static const std::string said = "as the simulated device said";
    ActionResult result;
    result.worker = worker.id;
    result.action_id = action.id;
    result.status = action.status;
    result.begin_ns = to_controller(worker, action.begin_ns);
    result.end_ns = to_controller(worker, action.end_ns);
    result.duration_ns = action.end_ns - action.begin_ns;
    const Ns copy_ns = action.kind == ActionKind::INFER ? settings_.copy_ns(action.bytes) : 0;
    result.ready_ns = to_controller(worker, action.received_ns + copy_ns);
    result.text = &said;
    note(4, static_cast<std::int64_t>(action.id), static_cast<std::int64_t>(action.status), result.begin_ns,
         result.end_ns);
    if (action.kind == ActionKind::INFER || transfers(action.kind)) {
        if (action.status == Status::TOO_LATE) {
            ++accounts_.too_late;
        } else if (action.status != Status::OK && action.status != Status::ACTION_CANCELLED) {
            ++accounts_.failed_actions;
        }
    }
    if (run_.check) {
        for (RequestId id : action.requests) {
            Request* request = find(id);
            if (request && request->flying == action.id)
                request->flying = 0;
        }
        if (action.status == Status::OK)
            done_[action.id] = action.requests;
    }
    drop_action(slot);
    record_done(result);
    timed([&] { scheduler_->action_done(now_, result); });
    touched_ = true;
}

// ----- the end ----------------------------------------------------------------------------------

void World::finish() {
    over_ = true;
    if (run_.check)
        at_rest();
    for (std::size_t slot = 0; slot < requests_.size(); ++slot) {
        Request& request = requests_[slot];
        if (request.sequence == 0)
            continue;
        if (request.counted) {
            ++accounts_.models[request.model].outcome[static_cast<std::size_t>(RequestOutcome::UNANSWERED)];
            ++accounts_.classes[request.class_index].outcome[static_cast<std::size_t>(RequestOutcome::UNANSWERED)];
        }
    }
    end_slice();
}

// Whether nothing happens any more; with `check`, after which both sides must agree.
bool World::is_at_rest() const {
    if (!run_.check)
        return true;
    return heap_.empty() && (wake_ns_ == NEVER_NS || scheduler_->store_status().scarce == 0);
}

// Checks that no model has too few copies while a worker lacks it and has room.
void World::check_copies() {
    const auto alive = std::ranges::count_if(workers_, [](const auto& each) { return each.alive; });
    const auto least = std::min<std::uint32_t>(cluster_.stored_copies, static_cast<std::uint32_t>(alive));
    for (std::uint32_t model = 0; model < models_.size(); ++model) {
        const std::uint32_t copies = stored_elsewhere(NONE, model);
        for (const WorkerState& worker : workers_) {
            const bool lacks = worker.alive && !worker.store->holds(static_cast<ModelId>(model)) &&
                               bytes_of(worker, model) + worker.store->used_bytes() <= cluster_.store_bytes;
            const bool is_in_reach = std::ranges::any_of(workers_, [&](const WorkerState& other) {
                return other.alive && other.kind == worker.kind && other.store->holds(static_cast<ModelId>(model));
            });
            demand(copies >= least || !lacks || !is_in_reach || is_aside_[model],
                   "a model was not copied to a worker with room");
        }
    }
}

// Checks that both sides agree when no event is left. Excepted are workers that crashed so shortly before the
// end that the controller has not noticed.
void World::at_rest() {
    demand(outstanding_ == 0, "a request was never answered");
    if (cluster_.store_bytes > 0 && !heap_.empty())
        return;  // the time was over while a model with too few copies was still tried
    std::vector<ModelId> hosted;
    for (const WorkerState& worker : workers_) {
        if (!worker.alive || !worker.store || !scheduler_->store_picture(worker.id, hosted))
            continue;
        demand(worker.store->held_count() == hosted.size(),
               "the scheduler's picture of a store has another number of models");
        for (ModelId model_id : hosted)
            demand(worker.store->holds(model_id), "the scheduler's picture of a store is wrong");
    }
    if (cluster_.store_bytes > 0 && cluster_.load_failures == 0)
        check_copies();
    std::vector<ResidentModel> held;
    for (std::uint32_t number = 0; number < devices_.size(); ++number) {
        const Device& device = devices_[number];
        const WorkerState& worker = workers_[device.worker];
        demand(device.queue.queued_count() + device.queue.started_count() == 0, "an action is left at a worker");
        held.clear();
        if (!has_arena(device))
            continue;
        if (!worker.alive || !scheduler_->picture(worker.id, static_cast<std::int32_t>(device.index), held))
            continue;
        demand(device.lanes.resident_count() == held.size(),
               "the scheduler's picture of a device has another number of models");
        for (const ResidentModel& expected : held) {
            const emulated::EmulatedResidency* there = device.lanes.resident(expected.model_id);
            demand(there != nullptr && there->load_id == expected.load_id && !there->loading && !expected.loading &&
                       std::ranges::equal(there->pages, expected.starts, {}, &emulated::PageRun::first),
                   "the scheduler's picture of a device is wrong");
        }
    }
}

// ----- small things -----------------------------------------------------------------------------

std::uint32_t World::take_action() {
    if (free_actions_.empty()) {
        actions_.push_back(std::make_unique<Action>());
        return static_cast<std::uint32_t>(actions_.size() - 1);
    }
    const std::uint32_t slot = free_actions_.back();
    free_actions_.pop_back();
    return slot;
}

void World::drop_action(std::uint32_t slot) {
    Action& action = *actions_[slot];
    action.id = 0;
    action.status = Status::OK;
    action.at_worker = action.overran = false;
    action.received_ns = action.begin_ns = action.end_ns = 0;
    action.requests.clear();
    action.pages.clear();
    free_actions_.push_back(slot);
}

Ns World::overlap(Ns begin_ns, Ns end_ns) const {
    return std::max<Ns>(std::min(end_ns, count_until_) - std::max(begin_ns, count_from_), 0);
}

// Returns the slice of the current time; null if there is no series.
Slice* World::slice() {
    if (run_.slice_ns == 0 || !begun_)
        return nullptr;
    const auto number = static_cast<std::size_t>((now_ - base_ns_) / run_.slice_ns);
    if (number >= SLICES_MAX)
        return nullptr;
    if (number >= accounts_.slices.size()) {
        end_slice();
        accounts_.slices.resize(number + 1);
    }
    return &accounts_.slices.back();
}

void World::end_slice() {
    if (accounts_.slices.empty())
        return;
    Slice& last = accounts_.slices.back();
    const auto& latency = accounts_.slice_latency;
    last.p50_ns = latency.percentile(0.5);
    last.p99_ns = latency.percentile(0.99);
    last.p999_ns = latency.percentile(0.999);
    last.largest_ns = latency.largest();
    accounts_.slice_latency.clear();
}

void World::note(std::int64_t what, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    digest_.add_all(now_, what, a, b, c, d);
    if (trace_.size() < run_.trace_max) [[unlikely]] {
        trace_.push_back({now_ - base_ns_, what, a, b, c, d});
    }
}

void World::fail(const std::string& what) const {
    throw std::logic_error(what + " (seed " + std::to_string(run_.seed) + ", at " + std::to_string(now_ - base_ns_) +
                           " ns, event " + std::to_string(events_) + ")");
}

}  // namespace clockwork::sim
