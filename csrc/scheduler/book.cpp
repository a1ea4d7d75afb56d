#include "scheduler/book.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

namespace clockwork {

namespace {

Whereabouts whereabouts_of(const Residency& one) {
    return {one.model->model_id, one.device->worker->worker_id, one.device->index, static_cast<int>(one.state),
            one.load_id,         one.spec->page_count,          one.starts};
}

void show_shares(const Device& device, Ns now, DeviceStatus& row) {
    row.contested_ns = std::max<Ns>(device.shares.contested_until_ns - now, 0);
    if (row.contested_ns == 0 || !device.shares.is_divided) {
        return;
    }
    row.level = device.shares.level;
    for (const Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        ModelShare share = one->share;  // to look changes nothing
        if (double asked = share.asked.rate(now); asked > 0) {
            row.shares.push_back({one->model->model_id, asked, share.had.rate(now), share.is_modest, share.is_beyond});
            row.beyond += share.is_beyond;
        }
    }
    std::size_t shown = std::min(row.shares.size(), SHARES_SHOWN_MAX);
    std::partial_sort(row.shares.begin(), row.shares.begin() + static_cast<std::ptrdiff_t>(shown), row.shares.end(),
                      [](const ShareStatus& one, const ShareStatus& other) { return one.asked > other.asked; });
    row.shares.resize(shown);
}

DeviceStatus status_of(const Device& device, const std::vector<Batch*>& planned, Ns now) {
    DeviceStatus row;
    row.worker = device.worker->worker_id;
    row.device = device.index;
    row.kind = device.kind_said;
    for (const Batch* batch : planned) {
        row.planned_requests += batch->pendings.size();
        row.planned_ns += batch->duration_ns;
    }
    row.planned_batches = planned.size();
    row.in_flight = device.lane.size();
    row.loading = device.loading;
    row.loads_waiting = device.pending.size();
    row.pages = device.pages.page_count();
    row.pages_free = device.pages.free_count();
    row.resident = device.resident.size();
    row.served = device.served;
    row.evicted_early = device.evicted_early;
    row.idle_with_work_ns = device.time.idle_with_work_ns;
    row.lead_ns = device.lead.is_learnt() ? device.lead.ns(now) : 0;
    DeviceTime::Mark recent = device.time.recent(now);
    row.recent_ns = recent.at_ns;
    row.recent_executing_ns = recent.executing_ns;
    row.recent_idle_with_work_ns = recent.idle_with_work_ns;
    row.draining = device.worker->draining;
    row.host_bytes = device.worker->host_bytes;
    row.host_used = device.worker->host_used;
    row.fetching = device.worker->fetching;
    for (const HostCopy& copy : device.worker->host) {
        row.hosted += copy.state == HostState::HELD;
    }
    row.clock_mhz = device.clock_mhz;
    row.there_ns = device.worker->there_ns;
    row.back_ns = device.worker->back_ns;
    row.inputs_bytes = device.worker->inputs.bytes_under_way();
    row.inputs_mb_ns = device.worker->inputs.takes_ns(now, 1'000'000);
    show_shares(device, now, row);
    return row;
}

}  // namespace

const std::vector<Batch*>& Book::planned(const Device&) const {
    static const std::vector<Batch*> none;
    return none;
}

Book::Book(const SchedulerOptions& options)
    : queued_requests_max_(options.queued_requests_max > 0 ? options.queued_requests_max : QUEUED_REQUESTS_MAX),
      queued_bytes_max_(options.queued_bytes_max > 0 ? options.queued_bytes_max : QUEUED_BYTES_MAX) {}

// ----- settling ---------------------------------------------------------------------------------

// Timers that are due, then every device that something happened to, then the next wake.
void Book::settle(Ns now) {
    advance(now);
    begin_settle();
    while (true) {
        while (!timers_.empty() && timers_.front().at_ns <= now_) {
            Timer timer = timers_.front();
            pop_timer();
            ring(timer);
        }
        if (dirty_.empty()) {
            break;
        }
        looking_.swap(dirty_);
        for (Device* device : looking_) {
            device->dirty = false;
        }
        for (Device* device : looking_) {
            dispatch(*device);
            if (device->wake_ns != device->timer_ns) {
                device->timer_ns = device->wake_ns;
                if (device->wake_ns < NEVER_NS) {
                    push_timer(device->wake_ns, device->slot | DEVICE_TIMER, device->generation);
                }
            }
        }
        looking_.clear();
    }
    while (!timers_.empty() && is_stale(timers_.front())) {
        pop_timer();
    }
    if (timers_.size() > 4 * (pendings_.size() + devices_.size()) + TIMERS_SLACK) {
        std::erase_if(timers_, [this](const Timer& one) { return is_stale(one); });
        std::make_heap(timers_.begin(), timers_.end(), is_later);
    }
    Ns wake = timers_.empty() ? NEVER_NS : timers_.front().at_ns;
    if (wake != wake_ns_) {
        wake_ns_ = wake;
        if (wake < NEVER_NS) {
            order(CommandKind::WAKE).earliest_ns = wake;
        }
    }
    recycle();
}

void Book::ring(const Timer& timer) {
    if (is_stale(timer)) {
        return;
    }
    if (timer.slot & DEVICE_TIMER) {
        Device* device = device_pool_.at(timer.slot & ~DEVICE_TIMER);
        device->timer_ns = NEVER_NS;
        touch(*device);
    } else {
        expire(*pending_pool_.at(timer.slot));
    }
}

bool Book::is_stale(const Timer& timer) {
    if (timer.slot & DEVICE_TIMER) {
        const Device* device = device_pool_.at(timer.slot & ~DEVICE_TIMER);
        return device->generation != timer.generation || device->timer_ns != timer.at_ns;
    }
    const Pending* pending = pending_pool_.at(timer.slot);
    return pending->generation != timer.generation || pending->answered;
}

void Book::push_timer(Ns at_ns, std::uint32_t slot, std::uint32_t generation) {
    timers_.push_back({at_ns, ++sequence_, slot, generation});
    std::push_heap(timers_.begin(), timers_.end(), is_later);
}

void Book::pop_timer() {
    std::pop_heap(timers_.begin(), timers_.end(), is_later);
    timers_.pop_back();
}

void Book::set_timer(Ns at_ns, const Pending& pending) { push_timer(at_ns, pending.slot, pending.generation); }

void Book::untouch(Device& device) {
    if (device.dirty) {
        device.dirty = false;
        dirty_.erase(std::find(dirty_.begin(), dirty_.end(), &device));
    }
}

void Book::recycle() {
    auto give_back = [](auto& pool, auto& gone) {
        for (auto* one : gone) {
            pool.give_back(one);
        }
        gone.clear();
    };
    give_back(pending_pool_, gone_pendings_);
    give_back(flight_pool_, gone_flights_);
    give_back(batch_pool_, gone_batches_);
    give_back(residency_pool_, gone_residencies_);
    for (KindSpec* spec : gone_specs_) {
        estimates_.release_program(spec->program_number, spec->kind);
    }
    give_back(spec_pool_, gone_specs_);
    give_back(model_pool_, gone_models_);
    give_back(device_pool_, gone_devices_);
    give_back(worker_pool_, gone_workers_);
}

// ----- requests ---------------------------------------------------------------------------------

Pending* Book::make_pending(const Request& request, Model& model) {
    Pending* pending = pending_pool_.make();
    pending->request = request;
    pending->model = &model;
    pending->deadline_ns = request.deadline_ns;
    pending->size = model.batches ? request.rows : 1;
    return pending;
}

void Book::open(Pending& pending) {
    const Request& request = pending.request;
    pendings_.set(request.id, &pending);
    queued_bytes_ += request.bytes;
    if (levels_[request.priority]++ == 0) {
        levels_used_[request.priority / 64] |= std::uint64_t{1} << (request.priority % 64);
    }
    ++pending.model->live;
    ++counts_.admitted;
    demand_.add(now_, pending);
}

void Book::close(Pending& pending) {
    const Request& request = pending.request;
    pending.answered = true;
    pendings_.erase(request.id);
    queued_bytes_ -= request.bytes;
    if (--levels_[request.priority] == 0) {
        levels_used_[request.priority / 64] &= ~(std::uint64_t{1} << (request.priority % 64));
    }
    if (pending.flight == nullptr) {  // else the flight still names it: it goes when that ends
        retire(&pending);
    }
    Model& model = *pending.model;
    if (--model.live == 0 && model.draining) {
        check_removed(model);
    }
}

std::uint32_t Book::lowest_level() const {
    for (std::uint32_t word = 4; word-- > 0;) {
        if (levels_used_[word] != 0) {
            return word * 64 + 63 - static_cast<std::uint32_t>(std::countl_zero(levels_used_[word]));
        }
    }
    return 0;
}

void Book::say(Command& command, const Said& said) {
    command.text = said.text;
    command.a = said.a;
    command.b = said.b;
    if (said.words != nullptr && !said.words->empty()) {
        command.said = static_cast<std::int32_t>(out.texts.size());
        out.texts.push_back(*said.words);
    }
}

void Book::refuse(const Request& request, Reason reason, Said said, Ns feasible_slo_ns, Ns retry_after_ns) {
    ++counts_.refused;
    Command& command = order(CommandKind::ANSWER_FAILED);
    command.request_id = request.id;
    command.model_id = request.model_id;
    command.status = Status::REFUSED;
    command.reason = reason;
    command.feasible_slo_ns = std::max<Ns>(feasible_slo_ns, 0);
    command.retry_after_ns = std::max<Ns>(retry_after_ns, 0);
    say(command, said);
}

void Book::refuse(Pending& pending, Reason reason, Said said, Ns feasible_slo_ns, Ns retry_after_ns) {
    if (reason == Reason::DEADLINE || reason == Reason::MEMORY || reason == Reason::OVERLOADED) {
        demand_.add(now_, pending);  // another device might have served it
    }
    refuse(pending.request, reason, said, feasible_slo_ns, retry_after_ns);
    retire(&pending);
}

void Book::fail(Pending& pending, Status status, Said said, Reason reason, Ns feasible_slo_ns, Ns retry_after_ns) {
    ++(status == Status::DEADLINE_MISSED ? counts_.missed
       : reason == Reason::DISPLACED     ? counts_.displaced
       : status == Status::REFUSED       ? counts_.refused
                                         : counts_.failed);
    Command& command = order(CommandKind::ANSWER_FAILED);
    command.request_id = pending.request.id;
    command.model_id = pending.model->model_id;
    command.status = status;
    command.reason = reason;
    command.feasible_slo_ns = feasible_slo_ns;
    command.retry_after_ns = retry_after_ns;
    say(command, said);
    Flight* flight = pending.flight;
    if (flight == nullptr) {
        left_unsent(pending);
        unplan(pending);
    }
    close(pending);
    if (flight != nullptr && !flight->revoked && flight->batch != nullptr) {
        for (const Pending* mate : flight->batch->pendings) {
            if (!mate->answered) {
                return;
            }
        }
        flight->revoked = true;
        Command& revoke = order(CommandKind::SEND_REVOKE);
        revoke.worker = flight->device->worker->worker_id;
        revoke.action_id = flight->action_id;
    }
}

void Book::answer_ok(Pending& pending, const Flight& flight, const ActionResult& result) {
    const Request& request = pending.request;
    Command& command = order(CommandKind::ANSWER_OK);
    command.request_id = request.id;
    command.model_id = request.model_id;
    command.action_id = result.action_id;
    command.part = pending.part;
    command.a = std::max<Ns>(result.begin_ns - request.arrived_ns - pending.load_ns, 0);
    command.b = pending.load_ns;
    command.c = result.duration_ns;
    ++pending.model->served;
    ++flight.device->served;
    ++counts_.answered;
    close(pending);
}

// ----- what status shows, and what must hold ------------------------------------------------------

void Book::shapes_in_use(std::vector<std::uint32_t>& found) const {
    estimates_.for_each_program([&](const ProgramEstimates& program) {
        program.for_each_shape([&](std::uint32_t shape) { found.push_back(shape); });
    });
    pendings_.for_each([&](const Pending& pending) { found.push_back(pending.request.shape); });
    flights_.for_each([&](const Flight& flight) {  // a batch outlives its answered requests
        if (flight.batch != nullptr) {
            found.push_back(flight.batch->shape);
        }
    });
}

std::vector<DeviceStatus> Book::devices() const {
    std::vector<DeviceStatus> rows;
    rows.reserve(devices_.size());
    for (const Device* device : devices_) {
        rows.push_back(status_of(*device, planned(*device), now_));
        rows.back().margin = margin(device->kind);
    }
    return rows;
}

std::vector<Whereabouts> Book::whereabouts(ModelId model_id) const {
    std::vector<Whereabouts> found;
    if (const Model* model = find_model(model_id); model != nullptr) {
        for (const Residency* one : model->residencies) {
            found.push_back(whereabouts_of(*one));
        }
    }
    return found;
}

std::vector<Ns> Book::expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const {
    const Model* model = find_model(model_id);
    const KindSpec* spec = model != nullptr && !model->specs.empty() ? model->specs.front() : nullptr;
    std::vector<Ns> found;
    for (const ProfilePoint& point : points) {
        Curve* curve = spec != nullptr ? spec->program->curve(point.shape) : nullptr;
        found.push_back(curve != nullptr ? curve->exec_ns(point.batch) : point.exec_ns);
    }
    return found;
}

std::vector<WorkerId> Book::hosts(ModelId model_id) const {
    std::vector<WorkerId> found;
    if (const Model* model = find_model(model_id); model != nullptr) {
        for (WorkerId worker_id : model->workers) {
            const Worker* worker = find_worker(worker_id);
            if (worker != nullptr && worker->host_bytes > 0 && worker->host_state(*model) == HostState::HELD) {
                found.push_back(worker_id);
            }
        }
    }
    return found;
}

bool Book::host_picture(WorkerId worker_id, std::vector<ModelId>& held) const {
    held.clear();
    const Worker* worker = find_worker(worker_id);
    if (worker == nullptr || worker->host_bytes == 0) {
        return false;
    }
    for (const Model* model : models_) {
        if (worker->host_state(*model) == HostState::HELD) {
            held.push_back(model->model_id);
        }
    }
    return true;
}

bool Book::picture(WorkerId worker_id, std::int32_t device_index, std::vector<Held>& held) const {
    held.clear();
    const Worker* worker = find_worker(worker_id);
    const Device* there = worker != nullptr ? worker->device(device_index) : nullptr;
    if (there == nullptr) {
        return false;
    }
    const Device& device = *there;
    for (const Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        held.push_back({one->model->model_id, one->load_id, one->state == ResidencyState::LOADING, one->starts});
    }
    return true;
}

Snapshot Book::snapshot() const {
    Snapshot all;
    all.now_ns = now_;
    all.queued_requests = pendings_.size();
    all.queued_bytes = queued_bytes_;
    all.admitted = counts_.admitted;
    all.answered = counts_.answered;
    all.refused = counts_.refused;
    all.missed = counts_.missed;
    all.failed = counts_.failed;
    all.displaced = counts_.displaced;
    all.devices = devices();
    const Worker* last = nullptr;
    for (const Device* device : devices_) {
        std::vector<Whereabouts>& resident = all.resident.emplace_back();
        for (const Residency* one = device->resident.front(); one != nullptr; one = device->resident.next(one)) {
            resident.push_back(whereabouts_of(*one));
        }
        std::vector<PlannedBatch>& plan = all.plans.emplace_back();
        for (const Batch* batch : planned(*device)) {
            PlannedBatch& row = plan.emplace_back();
            row = {batch->residency->model->model_id, batch->shape, batch->size, batch->duration_ns, {}};
            for (const Pending* pending : batch->pendings) {
                row.requests.push_back(pending->request.id);
            }
        }
        if (device->worker == last) {
            continue;  // the devices of a worker lie together
        }
        last = device->worker;
        for (const Flight* one = last->flights.front(); one != nullptr; one = last->flights.next(one)) {
            FlightStatus& row = all.flights.emplace_back();
            row = {one->action_id,
                   last->worker_id,
                   one->device->index,
                   static_cast<int>(one->kind),
                   one->residency->model->model_id,
                   {}};
            for (const Pending* pending : one->batch != nullptr ? one->batch->pendings : std::vector<Pending*>{}) {
                row.requests.push_back(pending->request.id);
            }
        }
    }
    for (const Model* model : models_) {
        ModelStatus& row = all.models.emplace_back();
        row = {model->model_id, model->live, model->served, model->draining, model->workers, {}};
        for (const Residency* one : model->residencies) {
            row.residencies.push_back(whereabouts_of(*one));
        }
    }
    return all;
}

void Book::judge_predictions(Ns from_ns, Ns until_ns) {
    judged_from_ns_ = from_ns;
    judged_until_ns_ = until_ns;
}

void Book::check_invariants() const {
    std::unordered_map<const Pending*, const char*> placed;
    auto place = [&](const Pending* pending, const char* where) {
        auto [found, is_new] = placed.emplace(pending, where);
        if (!is_new) {
            throw std::logic_error("request " + std::to_string(pending->request.id) + " is both " + found->second +
                                   " and " + where);
        }
    };
    for (const Device* device : devices_) {
        check_device(*device);
        for (const Batch* batch : planned(*device)) {
            for (const Pending* pending : batch->pendings) {
                must(pending->batch == batch, "a planned request that names another batch");
                must(pending->flight == nullptr, "a planned request that is in flight");
                must(!pending->answered, "an answered request is planned");
                place(pending, "planned");
            }
        }
    }
    std::size_t background = 0;
    for (const Model* model : models_) {
        for (const Pending* one = model->background.front(); one != nullptr; one = model->background.next(one)) {
            must(one->deadline_ns >= NEVER_NS, "a request with a deadline waits in the background");
            must(one->queue == &model->background, "a waiting request that names another queue");
            place(one, "background");
        }
        background += !model->background.empty();
        for (const Residency* residency : model->residencies) {
            must(std::find(devices_.begin(), devices_.end(), residency->device) != devices_.end(),
                 "a residency on a device that left");
        }
    }
    must(background == background_.size(), "background index is wrong");
    std::vector<const Pending*> waiting;
    collect_waiting(waiting);
    for (const Pending* pending : waiting) {
        must(!pending->answered && pending->flight == nullptr, "a waiting request that is answered or in flight");
        place(pending, "waiting");
    }
    flights_.for_each([&](const Flight& flight) {
        for (const Pending* pending : flight.batch != nullptr ? flight.batch->pendings : std::vector<Pending*>{}) {
            if (!pending->answered) {
                must(pending->flight == &flight, "a request in a flight that it does not name");
                place(pending, "in flight");
            }
        }
    });
    must(placed.size() == pendings_.size(), "a request is nowhere");
    std::uint64_t bytes = 0;
    std::unordered_map<const Model*, std::uint64_t> live;
    std::array<std::uint64_t, 256> levels{};
    for (const auto& [pending, where] : placed) {
        must(pendings_.find(pending->request.id) == pending, "a placed request is not open");
        bytes += pending->request.bytes;
        ++live[pending->model];
        ++levels[pending->request.priority];
    }
    must(bytes == queued_bytes_, "queued bytes were miscounted");
    for (const Model* model : models_) {
        must(model->live == live[model], "a model's count of live requests is wrong");
    }
    must(levels == levels_, "the counts by priority are wrong");
}

void Book::check_device(const Device& device) const {
    device.pages.check_invariants();
    std::unordered_map<std::uint32_t, ModelId> used;
    std::uint32_t doomed = 0;
    for (const Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        doomed += one->doomed;
        must(one->state != ResidencyState::PENDING, "a load that was not sent holds pages");
        must(one->on_device && device.find(one->model) == one, "the device's index of models is wrong");
        must(one->starts.size() == one->spec->runs.size(), "a model without its pages");
        for (std::size_t run = 0; run < one->starts.size(); ++run) {
            for (std::uint32_t page = one->starts[run]; page < one->starts[run] + one->spec->runs[run]; ++page) {
                must(used.emplace(page, one->model->model_id).second, "a page belongs to two models");
            }
        }
    }
    must(doomed == device.doomed, "a device's doomed models were miscounted");
    must(used.size() + device.pages.free_count() == device.pages.page_count(), "pages were lost");
    const std::vector<Batch*>& plan = planned(device);
    for (const Batch* batch : plan) {
        const Residency* residency = batch->residency;
        std::uint32_t size = 0;
        for (const Pending* pending : batch->pendings) {
            size += pending->size;
        }
        must(!batch->pendings.empty(), "an empty batch is planned");
        must(batch->size == size, "a batch of another size than its requests");
        must(residency->device == &device, "a batch on another device");
        const auto& all = residency->model->residencies;
        must(std::find(all.begin(), all.end(), residency) != all.end(), "a batch without its model");
        must(std::find(residency->batches.begin(), residency->batches.end(), batch) != residency->batches.end(),
             "a batch that its residency does not know");
    }
    auto check = [&](const Residency* residency) {
        const auto& all = residency->model->residencies;
        must(std::find(all.begin(), all.end(), residency) != all.end(), "a residency without its model");
        auto planned_on =
            std::count_if(plan.begin(), plan.end(), [&](const Batch* batch) { return batch->residency == residency; });
        must(residency->batches.size() == static_cast<std::size_t>(planned_on), "a residency's batches are wrong");
        std::uint32_t flying = 0;
        for (const Flight* one = device.lane.front(); one != nullptr; one = device.lane.next(one)) {
            flying += one->residency == residency;
        }
        must(residency->flying == flying, "a residency's count of flights is wrong");
        must((residency->ready_ns == 0) == (residency->state == ResidencyState::RESIDENT),
             "a residency is ready or not, but not as it says");
    };
    for (const Residency* residency : device.pending) {
        must(residency->state == ResidencyState::PENDING, "a load that waits was sent");
        check(residency);
    }
    for (const Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        check(one);
    }
}

}  // namespace clockwork
