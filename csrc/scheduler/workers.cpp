// Workers and devices: joining, leaving, loss.
#include <algorithm>

#include "scheduler/dispatcher.h"

namespace clockwork {

std::uint32_t Dispatcher::kind_of(const Kind& kind) {
    auto found = std::find(kinds_.begin(), kinds_.end(), kind);
    if (found == kinds_.end()) {
        found = kinds_.insert(kinds_.end(), kind);
    }
    return static_cast<std::uint32_t>(found - kinds_.begin());
}

void Dispatcher::worker_joined(Ns now, WorkerId worker_id, const std::vector<DeviceSpec>& devices,
                               std::uint64_t host_bytes, std::uint64_t store_bytes) {
    must(host_bytes == 0 || policy_->plans_fetches(), "this policy cannot plan for a host store");
    must(host_bytes == 0 || store_bytes == 0, "a worker has a host store or a disk store, not both");
    state_.advance(now);
    if (state_.find_worker(worker_id) != nullptr) {
        worker_left(now, worker_id);
    }
    Worker* worker = state_.pool<Worker>().make();
    worker->worker_id = worker_id;
    worker->joined_ns = now;
    worker->tier = host_bytes > 0 ? StoreTier::HOST : store_bytes > 0 ? StoreTier::DISK : StoreTier::NONE;
    worker->store_bytes = host_bytes + store_bytes;
    state_.tiered += worker->tier != StoreTier::NONE;
    state_.disks += worker->tier == StoreTier::DISK;
    if (worker->tier == StoreTier::DISK && state_.disks == 1) {
        for (Model* model : state_.models) {
            parts_.keepers.follow(*model);  // nothing was counted so far
        }
    }
    state_.by_worker.set(static_cast<std::uint32_t>(worker_id), worker);
    std::uint64_t first = device_count_;
    while (device_count_ - first < devices.size()) {
        add_device(*worker, devices, static_cast<std::uint32_t>(device_count_++ - first));
    }
}

// Adds a device of a worker: an executor, of an arena of its own or of that of another device.
void Dispatcher::add_device(Worker& worker, const std::vector<DeviceSpec>& devices, std::uint32_t index) {
    const DeviceSpec& spec = devices[index];
    auto executes_here = [index](const DeviceSpec& other) { return other.arena == static_cast<std::int32_t>(index); };
    auto others = static_cast<std::uint32_t>(std::count_if(devices.begin(), devices.end(), executes_here));
    Arena* arena = spec.arena < 0 ? add_arena(worker, spec, index, 1 + others) : worker.arena(spec.arena);
    must(arena != nullptr && arena->page_bytes == spec.page_bytes && arena->pages.page_count() == spec.page_count,
         "a device executes from an arena that is not there");
    Executor* executor = state_.pool<Executor>().make();
    executor->arena = arena;
    executor->worker = &worker;
    executor->index = index;
    executor->run_ahead = arena->run_ahead;
    executor->idle_since_ns = state_.now;
    executor->time.last.at_ns = executor->time.before_last.at_ns = state_.now;
    arena->executors.push_back(executor);
    state_.executors.push_back(executor);
    policy_->joined(*executor);
}

Arena* Dispatcher::add_arena(Worker& worker, const DeviceSpec& spec, std::uint32_t index, std::uint32_t executors) {
    Arena* arena = state_.pool<Arena>().make();
    arena->worker = &worker;
    arena->index = index;
    arena->number = device_count_ - 1;
    arena->kind = kind_of({spec.kind, spec.page_bytes, executors});
    arena->kind_said = spec.kind;
    arena->page_bytes = spec.page_bytes;
    arena->pages = PageAllocator(spec.page_count);
    arena->run_ahead = std::max(spec.run_ahead, 1u);
    parts_.learning.set_kind_count(kinds_.size());
    parts_.learning.set_neighbours(arena->kind, executors, spec.slowdown_thousandths / 1000.0);
    worker.arenas.push_back(arena);
    state_.arenas.push_back(arena);
    return arena;
}

void Dispatcher::worker_left(Ns now, WorkerId worker_id) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    if (worker == nullptr) {
        return;
    }
    state_.by_worker.erase(static_cast<std::uint32_t>(worker_id));
    worker->draining = true;  // no request is planned on this worker again
    std::vector<Pending*> waiting;
    for (Arena* arena : worker->arenas) {
        take_unsent(*arena, waiting);
    }
    for (Arena* arena : worker->arenas) {
        recovery_.blame(*arena);
    }
    recovery_.worker_lost();
    while (Flight* flight = worker->flights.front()) {
        lose_flight(*flight, waiting);
    }
    ++touch_round_;
    std::vector<Model*> touched;
    for (Arena* arena : worker->arenas) {
        lose_device(*arena, touched);
    }
    state_.tiered -= worker->tier != StoreTier::NONE;
    state_.disks -= worker->tier == StoreTier::DISK;
    state_.retire(worker);
    parts_.models.leave_worker(*worker);
    for (const Arena* arena : worker->arenas) {
        parts_.learning.follow_clocks(arena->kind);
    }
    find_others(waiting, AnswerText::WORKER_LOST, touched);
}

void Dispatcher::device_lost(Ns now, WorkerId worker_id, std::int32_t index) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    const Executor* lost = worker != nullptr ? worker->executor(index) : nullptr;
    if (lost == nullptr) {
        return;
    }
    Arena* arena = lost->arena;  // lost with all its executors
    if (worker->arenas.size() == 1) {
        worker_left(now, worker_id);  // the worker has no device left
        return;
    }
    worker->arenas.erase(std::find(worker->arenas.begin(), worker->arenas.end(), arena));
    recovery_.blame(*arena);
    std::vector<Pending*> waiting;
    take_unsent(*arena, waiting);
    for (Flight *flight = worker->flights.front(), *next = nullptr; flight != nullptr; flight = next) {
        next = worker->flights.next(flight);
        if (flight->arena != arena) {
            continue;
        }
        if (lane_of(flight->kind) == LaneKind::FETCH) {
            // The store is the worker's: its actions continue in the name of another device.
            Residency& stand_in = *flight->residency;
            flight->arena = stand_in.arena = worker->arenas.front();
            KindSpec* spec = stand_in.model->spec(*flight->arena);
            stand_in.spec = spec != nullptr ? spec : stand_in.spec;
            continue;
        }
        if (transfers(flight->kind)) {
            worker->predicted_loads.ended(-flight->expected_ns);
        }
        lose_flight(*flight, waiting);
    }
    worker->loads_from_ns = state_.now + worker->there_ns;
    for (const Executor* executor = arena->executors.front(); executor != nullptr; executor = executor->after) {
        parts_.reservations.leave_link(*executor);
    }
    worker->retime_link();
    ++touch_round_;
    std::vector<Model*> touched;
    lose_device(*arena, touched);
    bool is_last = std::none_of(worker->arenas.begin(), worker->arenas.end(),
                                [&](const Arena* other_arena) { return other_arena->kind == arena->kind; });
    if (is_last) {
        parts_.models.leave_kind(*worker, arena->kind);
    }
    for (Arena* mate : worker->arenas) {
        arenas_.retime_loads(*mate);  // devices of a worker share the link
        state_.touch(*mate);
    }
    parts_.learning.follow_clocks(arena->kind);
    for (Model* model : state_.models) {
        parts_.keepers.follow(*model);  // the worker's first device may be of another kind now
    }
    find_others(waiting, AnswerText::DEVICE_LOST, touched);
}

// Removes all unsent work from an arena and its executors; appends the requests, in order.
void Dispatcher::take_unsent(Arena& arena, std::vector<Pending*>& waiting) {
    for (Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        policy_->clear_plan(*executor, waiting);
    }
    arenas_.drop_loads(arena);
}

// Ends an action without a result; appends its requests to `waiting`.
void Dispatcher::lose_flight(Flight& flight, std::vector<Pending*>& waiting) {
    parts_.flights.end(flight);
    if (flight.kind == ActionKind::UNLOAD) {
        --flight.residency->model->unloads;
        state_.retire(flight.residency);
    } else if (lane_of(flight.kind) == LaneKind::FETCH) {
        arenas_.end_store_action(flight);
    }
    if (flight.batch != nullptr) {
        executions_.take_back(flight, waiting);
    }
    if (flight.was_executing) {
        recovery_.accuse(flight, Fault::WORKER_LOST);
    }
    if (flight.batch != nullptr) {
        executions_.retire(flight);
    }
}

// Removes an arena without planned or sent work, with its models and executors.
void Dispatcher::lose_device(Arena& arena, std::vector<Model*>& touched) {
    while (Residency* residency = arena.resident.front()) {
        note_model(*residency->model, touched);
        arenas_.forget(*residency);
    }
    for (Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        executor->timer_ns = NEVER_NS;  // any timer of the executor is stale
        policy_->left(*executor);
        state_.untouch(*executor);
        state_.executors.erase(std::find(state_.executors.begin(), state_.executors.end(), executor));
        state_.retire(executor);
    }
    state_.arenas.erase(std::find(state_.arenas.begin(), state_.arenas.end(), &arena));
    state_.retire(&arena);
}

// Appends each model once in a round.
void Dispatcher::note_model(Model& model, std::vector<Model*>& touched) {
    if (model.touched != touch_round_) {
        model.touched = touch_round_;
        touched.push_back(&model);
    }
}

// Plans anew the requests of a device that is gone; answers those that no other device can serve. touched:
// the models that it held.
void Dispatcher::find_others(const std::vector<Pending*>& waiting, const AnswerSentence& said,
                             std::vector<Model*>& touched) {
    for (Model* model : state_.models) {
        note_model(*model, touched);
    }
    for (bool suspects : {false, true}) {  // suspects are planned after all others
        for (Pending* pending : waiting) {
            if ((pending->evidence > 0) == suspects) {
                requests_.again(*pending, Status::UNAVAILABLE, said);
            }
        }
    }
    for (Model* model : touched) {
        if (!model->gone) {
            recovery_.strand(*model);
            recovery_.follow(*model);
        }
    }
}

void Dispatcher::worker_draining(Ns now, WorkerId worker_id) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    if (worker == nullptr || worker->draining) {
        return;
    }
    worker->draining = true;
    std::vector<Pending*> waiting;
    for (Arena* arena : worker->arenas) {
        take_unsent(*arena, waiting);
    }
    for (Pending* pending : waiting) {
        requests_.again(*pending, Status::REFUSED, AnswerText::WORKER_LEAVES, false, Reason::NO_WORKER);
    }
    std::vector<Model*> all = state_.models;
    for (Model* model : all) {
        if (!model->gone && worker->has(model)) {
            parts_.keepers.drains(*model, *worker);
            recovery_.strand(*model);
        }
    }
}

void Dispatcher::device_clock(Ns now, WorkerId worker_id, std::int32_t index, std::uint32_t mhz) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    Executor* executor = worker != nullptr ? worker->executor(index) : nullptr;
    if (executor != nullptr && mhz != 0 && mhz != executor->clock_mhz) {
        parts_.learning.set_clock(*executor, mhz);
    }
}

void Dispatcher::time_wanted(Ns now, WorkerId worker_id, std::int32_t index, ModelId model_id, Ns expected_ns,
                             const std::vector<std::uint32_t>& runs) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    Executor* executor = worker != nullptr ? worker->executor(index) : nullptr;
    std::uint32_t pages = executor != nullptr ? executor->arena->pages.page_count() : 0;
    if (pages > 0 && PageAllocator(pages).fits(runs)) {
        parts_.reservations.want(*executor, model_id, expected_ns, runs);
    }
}

void Dispatcher::link_measured(Ns now, WorkerId worker_id, Ns there_ns, Ns back_ns) {
    state_.advance(now);
    if (Worker* worker = state_.find_worker(worker_id); worker != nullptr) {
        // The message may have waited behind inputs, which are counted separately.
        Ns wait = worker->inputs.wait_ns(now, now - there_ns - back_ns);
        worker->link.measured(std::max(there_ns - wait, std::min(there_ns, worker->there_ns)), back_ns);
        worker->there_ns = worker->link.there_ns();
        worker->back_ns = worker->link.back_ns();
    }
}

}  // namespace clockwork
