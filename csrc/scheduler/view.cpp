// Status and snapshots of a scheduler.
#include <algorithm>

#include "scheduler/dispatcher.h"

namespace clockwork {

namespace {

ResidencyStatus whereabouts_of(const Residency& residency) {
    return {residency.model->model_id, residency.arena->worker->worker_id,
            residency.arena->index,    static_cast<int>(residency.state),
            residency.load_id,         residency.spec->page_count,
            residency.starts};
}

void keep_most_asked(std::vector<ShareStatus>& shares) {
    std::size_t shown = std::min(shares.size(), SHARES_SHOWN_MAX);
    std::partial_sort(shares.begin(), shares.begin() + static_cast<std::ptrdiff_t>(shown), shares.end(),
                      [](const ShareStatus& status, const ShareStatus& other) { return status.asked > other.asked; });
    shares.resize(shown);
}

void show_shares(const Arena& arena, Ns now, DeviceStatus& row) {
    row.contested_ns = std::max<Ns>(arena.shares.contested_until_ns - now, 0);
    if (row.contested_ns == 0 || !arena.shares.is_divided) {
        return;
    }
    row.level = arena.shares.level;
    bool is_late = has_overdue(arena, now);
    for (const Residency* residency = arena.resident.front(); residency != nullptr;
         residency = arena.resident.next(residency)) {
        ModelShare share = residency->share;  // a copy: a status query changes nothing
        if (ShareUse use = use_of(*residency, share, now, is_late); use.asked > 0) {
            row.shares.push_back({residency->model->model_id, use.asked, use.had, share.is_modest, share.is_beyond});
            row.beyond += share.is_beyond;
        }
    }
    keep_most_asked(row.shares);
}

DeviceStatus status_of(const Executor& executor, const std::vector<Batch*>& planned, Ns now) {
    const Arena& arena = *executor.arena;
    const Worker& worker = *executor.worker;
    DeviceStatus row;
    row.worker = worker.worker_id;
    row.device = executor.index;
    row.arena = arena.index;
    row.kind = arena.kind_said;
    for (const Batch* batch : planned) {
        row.planned_requests += batch->pendings.size();
        row.planned_ns += batch->duration_ns;
    }
    row.planned_batches = planned.size();
    row.in_flight = executor.lane.size();
    row.served = executor.served;
    row.idle_with_work_ns = executor.time.idle_with_work_ns;
    row.lead_ns = executor.lead.is_learnt() ? executor.lead.ns(now) : 0;
    ExecutorTime::Mark recent = executor.time.recent(now);
    row.recent_ns = recent.at_ns;
    row.recent_executing_ns = recent.executing_ns;
    row.recent_idle_with_work_ns = recent.idle_with_work_ns;
    row.draining = worker.draining;
    bool is_host = worker.tier == StoreTier::HOST;
    (is_host ? row.host_bytes : row.store_bytes) = worker.store_bytes;
    (is_host ? row.host_used : row.store_used) = worker.store_used;
    (is_host ? row.hosted : row.stored) = worker.held.size();
    row.fetching = worker.fetching;
    row.clock_mhz = executor.clock_mhz;
    row.there_ns = worker.there_ns;
    row.back_ns = worker.back_ns;
    row.inputs_bytes = worker.inputs.bytes_under_way();
    row.inputs_mb_ns = worker.inputs.takes_ns(now, 1'000'000);
    row.copies_mb_ns = worker.copies.takes_ns(now, 1'000'000);
    if (&executor == arena.executors.front()) {
        row.loading = arena.loading;
        row.loads_waiting = arena.pending.size();
        row.pages = arena.pages.page_count();
        row.pages_free = arena.pages.free_count();
        row.resident = arena.resident.size();
        row.evicted_early = arena.evicted_early;
        show_shares(arena, now, row);
    }
    return row;
}

}  // namespace

void Dispatcher::shapes_in_use(std::vector<std::uint32_t>& found) const {
    state_.estimates.for_each_program([&](const ProgramEstimates& program) {
        program.for_each_shape([&](std::uint32_t shape) { found.push_back(shape); });
    });
    state_.pendings.for_each([&](const Pending& pending) { found.push_back(pending.request.shape); });
    state_.flights.for_each([&](const Flight& flight) {  // a batch outlives its answered requests
        if (flight.batch != nullptr) {
            found.push_back(flight.batch->shape);
        }
    });
    parts_.idle.shapes_in_use(found);
}

LinkStatus Dispatcher::link_status(Ns now) const {
    const LinkShares& links = state_.links;
    LinkStatus found;
    found.contested_ns = std::max<Ns>(links.contested_until_ns - now, 0);
    if (found.contested_ns == 0 || !links.is_divided) {
        return found;
    }
    found.level = links.level;
    for (const Model* model : links.models) {
        LoadShare share = model->loads;  // a copy: a status query changes nothing
        double asked = share.asked.rate(now), had = share.had.rate(now);
        if (asked > 0 || had > 0) {
            found.shares.push_back({model->model_id, asked, had, share.is_within, share.is_greedy});
            found.beyond += share.is_greedy;
        }
    }
    keep_most_asked(found.shares);
    return found;
}

std::vector<DeviceStatus> Dispatcher::devices() const {
    std::vector<DeviceStatus> rows;
    rows.reserve(state_.executors.size());
    for (const Executor* executor : state_.executors) {
        rows.push_back(status_of(*executor, policy_->planned(*executor), state_.now));
        rows.back().margin = policy_->margin(executor->arena->kind);
    }
    return rows;
}

std::vector<ResidencyStatus> Dispatcher::whereabouts(ModelId model_id) const {
    std::vector<ResidencyStatus> found;
    if (const Model* model = state_.find_model(model_id); model != nullptr) {
        for (const Residency* residency : model->residencies) {
            found.push_back(whereabouts_of(*residency));
        }
    }
    return found;
}

std::vector<Ns> Dispatcher::expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const {
    const Model* model = state_.find_model(model_id);
    const KindSpec* spec = model != nullptr && !model->specs.empty() ? model->specs.front() : nullptr;
    std::vector<Ns> found;
    for (const ProfilePoint& point : points) {
        Curve* curve = spec != nullptr ? spec->program->curve(point.shape) : nullptr;
        found.push_back(curve != nullptr ? curve->alone_ns(point.batch) : point.exec_ns);
    }
    return found;
}

std::vector<WorkerId> Dispatcher::hosts(ModelId model_id) const {
    std::vector<WorkerId> found;
    if (const Model* model = state_.find_model(model_id); model != nullptr) {
        for (WorkerId worker_id : model->workers) {
            const Worker* worker = state_.find_worker(worker_id);
            if (worker != nullptr && worker->tier == StoreTier::HOST && worker->is_stored(*model)) {
                found.push_back(worker_id);
            }
        }
    }
    return found;
}

std::vector<WorkerId> Dispatcher::keepers(ModelId model_id) const {
    const Model* model = state_.find_model(model_id);
    return model == nullptr ? std::vector<WorkerId>()
                            : std::vector<WorkerId>(model->workers.begin(), model->workers.begin() + model->keepers);
}

std::uint64_t Dispatcher::sole_copies(WorkerId worker_id) const {
    const Worker* worker = state_.find_worker(worker_id);
    return worker != nullptr && state_.disks > 0 ? parts_.keepers.sole_copies(*worker) : 0;
}

std::uint64_t Dispatcher::store_room(WorkerId worker_id) const {
    const Worker* worker = state_.find_worker(worker_id);
    return worker != nullptr && worker->tier == StoreTier::DISK ? arenas_.room_for_new(*worker) : 0;
}

StoreStatus Dispatcher::store_status() const { return parts_.keepers.status(); }

void Dispatcher::held(std::vector<std::int64_t>& numbers) const {
    for (const Arena* arena : state_.arenas) {
        for (const Residency* residency = arena->resident.front(); residency != nullptr;
             residency = arena->resident.next(residency)) {
            if (residency->state == ResidencyState::RESIDENT) {
                numbers.insert(numbers.end(), {arena->worker->worker_id, arena->index, residency->model->model_id,
                                               static_cast<std::int64_t>(residency->load_id)});
            }
        }
    }
}

bool Dispatcher::store_picture(WorkerId worker_id, std::vector<ModelId>& held) const {
    held.clear();
    const Worker* worker = state_.find_worker(worker_id);
    if (worker == nullptr || worker->tier == StoreTier::NONE) {
        return false;
    }
    for (const Model* model : state_.models) {
        if (worker->store_state(*model) == StoreState::HELD) {
            held.push_back(model->model_id);
        }
    }
    return true;
}

bool Dispatcher::picture(WorkerId worker_id, std::int32_t device_index, std::vector<ResidentModel>& held) const {
    held.clear();
    const Worker* worker = state_.find_worker(worker_id);
    const Arena* arena = worker != nullptr ? worker->arena(device_index) : nullptr;
    if (arena == nullptr) {
        return false;
    }
    for (const Residency* residency = arena->resident.front(); residency != nullptr;
         residency = arena->resident.next(residency)) {
        held.push_back({residency->model->model_id, residency->load_id, residency->state == ResidencyState::LOADING,
                        residency->starts});
    }
    return true;
}

Snapshot Dispatcher::snapshot() const {
    Snapshot all;
    all.now_ns = state_.now;
    all.queued_requests = state_.pendings.size();
    all.queued_bytes = requests_.queued_bytes();
    const RequestCounts& counts = requests_.counts();
    all.admitted = counts.admitted;
    all.answered = counts.answered;
    all.refused = counts.refused;
    all.missed = counts.missed;
    all.failed = counts.failed;
    all.displaced = counts.displaced;
    all.devices = devices();
    const Worker* last = nullptr;
    for (const Executor* executor : state_.executors) {
        std::vector<ResidencyStatus>& resident = all.resident.emplace_back();
        const auto& here = executor->arena->resident;
        const Residency* first = executor->index == executor->arena->index ? here.front() : nullptr;
        for (const Residency* residency = first; residency != nullptr; residency = here.next(residency)) {
            resident.push_back(whereabouts_of(*residency));
        }
        std::vector<PlannedBatch>& plan = all.plans.emplace_back();
        for (const Batch* batch : policy_->planned(*executor)) {
            PlannedBatch& row = plan.emplace_back();
            row = {batch->residency->model->model_id, batch->shape, batch->size, batch->duration_ns, {}};
            for (const Pending* pending : batch->pendings) {
                row.requests.push_back(pending->request.id);
            }
        }
        if (executor->worker == last) {
            continue;  // the devices of a worker lie together
        }
        last = executor->worker;
        for (const Flight* flight = last->flights.front(); flight != nullptr; flight = last->flights.next(flight)) {
            FlightStatus& row = all.flights.emplace_back();
            row = {flight->action_id,
                   last->worker_id,
                   flight->executor != nullptr ? flight->executor->index : flight->arena->index,
                   static_cast<int>(flight->kind),
                   flight->residency->model->model_id,
                   {}};
            for (const Pending* pending :
                 flight->batch != nullptr ? flight->batch->pendings : std::vector<Pending*>{}) {
                row.requests.push_back(pending->request.id);
            }
        }
    }
    for (const Model* model : state_.models) {
        ModelStatus& row = all.models.emplace_back();
        row = {model->model_id, model->live, model->served, model->draining, model->workers, {}};
        for (const Residency* residency : model->residencies) {
            row.residencies.push_back(whereabouts_of(*residency));
        }
    }
    return all;
}

void Dispatcher::judge_predictions(Ns from_ns, Ns until_ns) {
    state_.judged_from_ns = from_ns;
    state_.judged_until_ns = until_ns;
}

}  // namespace clockwork
