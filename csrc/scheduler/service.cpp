#include "scheduler/service.h"

#include <algorithm>

namespace clockwork {

// ----- requests -----------------------------------------------------------------------------------

void Service::arrived(Ns now, const Request& request) {
    advance(now);
    if (now_ >= stale_at_ns_) {
        forget_stale();
    }
    Model* model = find_model(request.model_id);
    if (model == nullptr || (model->workers.empty() && !model->draining)) {
        refuse(request, Reason::NO_WORKER, Text::NO_WORKER);
        return;
    }
    if (model->aside) {
        Pending* pending = make_pending(request, *model);
        open(*pending);
        fail(*pending, Status::UNAVAILABLE, Text::SET_ASIDE);
        return;
    }
    if (model->draining) {
        refuse(request, Reason::DRAINING, Text::DRAINING);
        return;
    }
    if (pendings_.size() >= queued_requests_max_ || queued_bytes_ + request.bytes > queued_bytes_max_) {
        Said said(Text::QUEUE_FULL, static_cast<Ns>(pendings_.size()), static_cast<Ns>(queued_bytes_));
        refuse(*make_pending(request, *model), Reason::OVERLOADED, said);
        return;
    }
    if (!model->is_somewhere() && !fits_somewhere(*model)) {
        bool usable = std::any_of(model->workers.begin(), model->workers.end(),
                                  [this](WorkerId id) { return !find_worker(id)->draining; });
        if (usable) {
            refuse(request, Reason::MEMORY, Text::TOO_LARGE);
        } else {
            refuse(request, Reason::NO_WORKER, Text::WORKERS_LEAVING);
        }
        return;
    }
    arrive(*make_pending(request, *model));
}

void Service::cancelled(Ns now, RequestId request_id) {
    advance(now);
    if (Pending* pending = pendings_.find(request_id); pending != nullptr) {
        fail(*pending, Status::CANCELLED, Text::WAS_CANCELLED);
    }
}

void Service::again(Pending& pending, Status status, const Said& said, bool count, Reason reason) {
    if (pending.answered) {
        return;
    }
    if (pending.evidence >= EVIDENCE_MAX) {
        fail(pending, Status::EXECUTION_FAILED, Text::ENDED_WORKERS);
        return;
    }
    if (pending.model->aside) {
        fail(pending, Status::UNAVAILABLE, Text::SET_ASIDE);
        return;
    }
    pending.attempts = static_cast<std::uint8_t>(pending.attempts + count);
    if (pending.attempts < ATTEMPTS_MAX && !pending.model->workers.empty()) {
        if (pending.deadline_ns >= NEVER_NS) {
            to_background(pending, pending.evidence == 0);
            return;
        }
        if (replace(pending)) {
            return;
        }
    }
    fail(pending, status, said, reason);
}

void Service::to_background(Pending& pending, bool first) {
    Model& model = *pending.model;
    if (model.background.empty()) {
        background_.push_back(&model);
    }
    if (first) {
        model.background.push_front(&pending);
    } else {
        model.background.push_back(&pending);
    }
    wake_devices(model);
}

void Service::leave_background(Pending& pending) {
    Model& model = *pending.model;
    model.background.erase(&pending);
    if (model.background.empty()) {
        background_.erase(&model);
    }
}

void Service::wake_devices(Model& model) {
    if (model.residencies.size() <= WAKE_MAX) {
        for (Residency* residency : model.residencies) {
            touch(*residency->device);
        }
    } else {  // a busy one looks by itself when it is done
        std::size_t count = model.residencies.size(), at = model.place_cursor % count;
        for (std::size_t looked = 0; looked < WAKE_MAX; ++looked) {
            Device& device = *model.residencies[at]->device;
            at = at + 1 < count ? at + 1 : 0;
            if (device.lane.empty()) {
                model.place_cursor = static_cast<std::uint32_t>(at);
                touch(device);
                break;
            }
        }
    }
    if (!model.is_within_reach()) {
        find_loadable(model, places_);
        for (const Place& place : places_) {
            touch(*place.device);
        }
    }
}

// ----- models -------------------------------------------------------------------------------------

// The first device of each kind that a worker has.
template <typename Function>
void Service::for_each_kind(const Worker& worker, Function&& function) {
    for (std::size_t place = 0; place < worker.devices.size(); ++place) {
        Device& device = *worker.devices[place];
        auto mates = worker.devices.begin() + static_cast<std::ptrdiff_t>(place);
        if (std::none_of(worker.devices.begin(), mates, [&](const Device* one) { return one->kind == device.kind; })) {
            function(device);
        }
    }
}

void Service::model_ready(Ns now, WorkerId worker_id, const ModelSpec& spec) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    if (worker == nullptr) {
        return;
    }
    Model* model = find_model(spec.model_id);
    if (model == nullptr) {
        model = model_pool_.make();
        model->model_id = spec.model_id;
        model->batches = spec.batches;
        by_model_.set(static_cast<std::uint64_t>(spec.model_id), model);
        models_.push_back(model);
    } else if (model->draining) {
        return;
    }
    for (Device* device : worker->devices) {
        touch(*device);
    }
    if (!worker->has(model)) {
        std::uint32_t variant = variant_for(*model, *worker, spec);
        for_each_kind(*worker, [&](Device& device) { ++join_spec(*model, device, variant, spec).worker_count; });
        model->note_variants();
        model->workers.push_back(worker_id);
        if (worker->variants.size() <= model->slot) {
            worker->variants.resize(model_pool_.slot_count());
        }
        worker->variants[model->slot] = variant;
    }
    model_prepared(*model, *worker);
}

// How a worker's preparation of a model is called: as that of others, where theirs is the same, else by the least
// number that means another on none of its kinds of device.
std::uint32_t Service::variant_for(const Model& model, const Worker& worker, const ModelSpec& told) {
    auto said_on_all = [&](std::uint32_t variant, auto&& suits) {
        bool all = true;
        for_each_kind(worker, [&](Device& device) {
            const KindSpec* known = model.spec(device.kind, variant);
            all = all && suits(known != nullptr && known->worker_count > 0 ? known : nullptr);
        });
        return all;
    };
    auto is_same = [&](const KindSpec* known) {
        return known != nullptr && known->program_number == told.program && known->runs == told.runs &&
               known->batch_max == (told.batches ? told.batch_max : 1);
    };
    for (const KindSpec* one : model.specs) {
        if (said_on_all(one->variant, is_same)) {
            return one->variant;
        }
    }
    std::uint32_t variant = 1;
    while (!said_on_all(variant, [](const KindSpec* known) { return known == nullptr; })) {
        ++variant;
    }
    return variant;
}

// What an earlier worker of a kind said went with it; what another that is still there says of it now stays.
KindSpec& Service::join_spec(Model& model, Device& device, std::uint32_t variant, const ModelSpec& told) {
    KindSpec* known = model.spec(device.kind, variant);
    if (known != nullptr && known->worker_count > 0) {
        return *known;
    }
    KindSpec& fresh = *spec_pool_.make();
    fresh.kind = device.kind;
    fresh.variant = variant;
    fresh.program_number = told.program;
    fresh.program = &estimates_.use_program(told.program, device.kind);
    fresh.loads = &estimates_.loads(device.kind);
    fresh.shapes = &shapes_;
    fresh.model_id = told.model_id;
    fresh.batch_max = told.batches ? told.batch_max : 1;
    fresh.runs = told.runs;
    fresh.page_count = 0;
    for (std::uint32_t size : told.runs) {
        fresh.page_count += size;
    }
    fresh.load_ns = told.load_ns;
    fresh.load_own_ns = fresh.loads->own_ns(told.model_id, fresh.page_count);
    fresh.fetches = &estimates_.fetches(device.kind);
    fresh.fetch_own_ns = fresh.fetches->own_ns(told.model_id, fresh.page_count);
    fresh.host_bytes = device.page_bytes * fresh.page_count;
    fresh.program->seed(told.profile);
    fresh.program->set_scale(clocks_[device.kind].scale);
    if (known != nullptr) {
        *std::find(model.specs.begin(), model.specs.end(), known) = &fresh;
        retire(known);
    } else {
        model.specs.push_back(&fresh);
    }
    return fresh;
}

// A worker, or its last device of a kind, is gone, and what it held of the model.
void Service::leave_kind(Model& model, const Worker& worker, std::uint32_t kind) {
    KindSpec* spec = model.spec(kind, worker.variant_of(model));
    if (spec != nullptr && --spec->worker_count == 0 && model.leave_spec(*spec)) {
        retire(spec);
    }
}

void Service::model_removed(Ns now, ModelId model_id) {
    advance(now);
    Model* model = find_model(model_id);
    if (model == nullptr) {
        order(CommandKind::MODEL_GONE).model_id = model_id;
    } else if (!model->draining) {
        model->draining = true;
        check_removed(*model);
    }
}

// ----- workers ------------------------------------------------------------------------------------

std::uint32_t Service::kind_of(const DeviceSpec& spec) {
    std::pair<std::uint32_t, std::uint64_t> key{spec.kind, spec.page_bytes};
    auto found = std::find(kinds_.begin(), kinds_.end(), key);
    if (found == kinds_.end()) {
        found = kinds_.insert(kinds_.end(), key);
    }
    return static_cast<std::uint32_t>(found - kinds_.begin());
}

void Service::worker_joined(Ns now, WorkerId worker_id, const std::vector<DeviceSpec>& devices,
                            std::uint64_t host_bytes) {
    must(host_bytes == 0 || plans_fetches(), "this policy cannot plan for a host store");
    advance(now);
    if (find_worker(worker_id) != nullptr) {
        worker_left(now, worker_id);
    }
    Worker* worker = worker_pool_.make();
    worker->worker_id = worker_id;
    worker->host_bytes = host_bytes;
    tiered_ += host_bytes > 0;
    by_worker_.set(static_cast<std::uint32_t>(worker_id), worker);
    for (const DeviceSpec& spec : devices) {
        Device* device = device_pool_.make();
        device->worker = worker;
        device->index = static_cast<std::uint32_t>(worker->devices.size());
        device->number = device_count_++;
        device->kind = kind_of(spec);
        device->kind_said = spec.kind;
        device->page_bytes = spec.page_bytes;
        clocks_.resize(kinds_.size());
        device->pages = PageAllocator(spec.page_count);
        device->run_ahead = std::max(spec.run_ahead, 1u);
        device->idle_since_ns = now_;
        device->time.last.at_ns = device->time.before_last.at_ns = now_;
        worker->devices.push_back(device);
        devices_.push_back(device);
        device_joined(*device);
    }
}

void Service::worker_left(Ns now, WorkerId worker_id) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    if (worker == nullptr) {
        return;
    }
    by_worker_.erase(static_cast<std::uint32_t>(worker_id));
    worker->draining = true;  // nothing that is planned again may land here
    std::vector<Pending*> waiting;
    clear_plans(*worker, waiting);
    for (Device* device : worker->devices) {
        blame(*device);
    }
    lost_ns_ = now_;
    while (Flight* flight = worker->flights.front()) {
        lose_flight(*flight, waiting);
    }
    ++touch_round_;
    std::vector<Model*> touched;
    for (Device* device : worker->devices) {
        lose_device(*device, touched);
    }
    tiered_ -= worker->host_bytes > 0;
    retire(worker);
    for (Model* model : models_) {
        if (worker->has(model)) {
            model->workers.erase(std::find(model->workers.begin(), model->workers.end(), worker_id));
            for_each_kind(*worker, [&](const Device& device) { leave_kind(*model, *worker, device.kind); });
        }
    }
    for (const Device* device : worker->devices) {
        follow_clocks(device->kind);
    }
    find_others(waiting, Text::WORKER_LOST, touched);
}

void Service::device_lost(Ns now, WorkerId worker_id, std::int32_t index) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    Device* device = worker != nullptr ? worker->device(index) : nullptr;
    if (device == nullptr) {
        return;
    }
    if (worker->devices.size() == 1) {
        worker_left(now, worker_id);  // there is nothing that it could do
        return;
    }
    worker->devices.erase(std::find(worker->devices.begin(), worker->devices.end(), device));
    blame(*device);
    std::vector<Pending*> waiting;
    take_unsent(*device, waiting);
    for (Flight *flight = worker->flights.front(), *next = nullptr; flight != nullptr; flight = next) {
        next = worker->flights.next(flight);
        if (flight->device != device) {
            continue;
        }
        if (flight->kind == FlightKind::FETCH || flight->kind == FlightKind::DROP) {
            // The host store is the worker's: its actions go on, in the name of another device.
            Residency& stand_in = *flight->residency;
            flight->device = stand_in.device = worker->devices.front();
            KindSpec* spec = stand_in.model->spec(*flight->device);
            stand_in.spec = spec != nullptr ? spec : stand_in.spec;
            continue;
        }
        if (flight->kind == FlightKind::LOAD) {
            worker->predicted_loads.ended(-flight->expected_ns);
        }
        lose_flight(*flight, waiting);
    }
    worker->loads_from_ns = now_ + worker->there_ns;
    worker->link_free_ns = worker->loads_from_ns + worker->loads_ns;
    ++touch_round_;
    std::vector<Model*> touched;
    lose_device(*device, touched);
    bool is_last = std::none_of(worker->devices.begin(), worker->devices.end(),
                                [&](const Device* one) { return one->kind == device->kind; });
    for (Model* model : models_) {
        if (is_last && worker->has(model)) {
            leave_kind(*model, *worker, device->kind);
        }
    }
    for (Device* mate : worker->devices) {
        retime_loads(*mate);  // the link is theirs
        touch(*mate);
    }
    follow_clocks(device->kind);
    find_others(waiting, Text::DEVICE_LOST, touched);
}

// An action of which nothing will be heard any more: its requests are appended to `waiting`.
void Service::lose_flight(Flight& flight, std::vector<Pending*>& waiting) {
    end_flight(flight);
    if (flight.kind == FlightKind::UNLOAD) {
        --flight.residency->model->unloads;
        retire(flight.residency);
    } else if (flight.kind == FlightKind::FETCH || flight.kind == FlightKind::DROP) {
        end_host_action(flight);
    }
    if (flight.batch != nullptr) {
        take_back(flight, waiting);
    }
    if (flight.was_executing) {
        accuse(flight, Fault::WORKER_LOST);
    }
    if (flight.batch != nullptr) {
        retire_batch(flight);
    }
}

// Forgets a device, of which nothing is planned or in flight any more, with what it held.
void Service::lose_device(Device& device, std::vector<Model*>& touched) {
    while (Residency* residency = device.resident.front()) {
        auto& all = residency->model->residencies;
        all.erase(std::find(all.begin(), all.end(), residency));
        note_model(*residency->model, touched);
        device.leave(residency);
        residency_gone(*residency);
        retire(residency);
    }
    device.timer_ns = NEVER_NS;  // whatever timer it has set is stale
    device_left(device);
    untouch(device);
    devices_.erase(std::find(devices_.begin(), devices_.end(), &device));
    retire(&device);
}

// Each model once in a round.
void Service::note_model(Model& model, std::vector<Model*>& touched) {
    if (model.touched != touch_round_) {
        model.touched = touch_round_;
        touched.push_back(&model);
    }
}

// Plans anew what was on a device that is gone; answers who can be served by nobody any more.
// touched: the models that it held.
void Service::find_others(const std::vector<Pending*>& waiting, const Said& said, std::vector<Model*>& touched) {
    for (Model* model : models_) {
        note_model(*model, touched);
    }
    for (bool suspects : {false, true}) {  // suspects after all others
        for (Pending* pending : waiting) {
            if ((pending->evidence > 0) == suspects) {
                again(*pending, Status::UNAVAILABLE, said);
            }
        }
    }
    for (Model* model : touched) {
        if (model->gone) {
            continue;
        }
        strand(*model);
        if (model->aside) {
            set_aside(*model);
        } else if (model->draining) {
            check_removed(*model);
        }
    }
}

// ----- clocks -------------------------------------------------------------------------------------
// A processor that is hot, or draws too much, is slowed down, and all that it does takes longer in proportion, as soon
// as it is. So samples are kept as of one clock, and an estimate is what they make at the clock of now. Devices of one
// kind share it: it is of the slowest of them, and what is sent to another is expected to take less (Device::pace).

void Service::device_clock(Ns now, WorkerId worker_id, std::int32_t index, std::uint32_t mhz) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    Device* device = worker != nullptr ? worker->device(index) : nullptr;
    if (device == nullptr || mhz == 0 || mhz == device->clock_mhz) {
        return;
    }
    device->clock_mhz = mhz;
    KindClock& clock = clocks_[device->kind];
    if (clock.first_mhz == 0) {
        clock.first_mhz = mhz;
    }
    follow_clocks(device->kind);
}

// A device's clock has changed, or it came or went.
void Service::follow_clocks(std::uint32_t kind) {
    KindClock& clock = clocks_[kind];
    if (clock.first_mhz == 0) {
        return;
    }
    std::uint32_t slowest = 0;
    for (const Device* device : devices_) {
        if (device->kind == kind && device->clock_mhz > 0 && (slowest == 0 || device->clock_mhz < slowest)) {
            slowest = device->clock_mhz;
        }
    }
    if (slowest == 0) {
        return;
    }
    for (Device* device : devices_) {
        if (device->kind == kind) {
            bool is_known = device->clock_mhz > 0;
            device->pace = is_known ? static_cast<double>(slowest) / device->clock_mhz : 1;
            touch(*device);
        }
    }
    clock.scale = static_cast<double>(clock.first_mhz) / slowest;
    for (const Model* model : models_) {
        for (const KindSpec* spec : model->specs) {
            if (spec->kind != kind || !spec->program->set_scale(clock.scale)) {
                continue;
            }
            changed_shapes_.clear();
            spec->program->for_each_shape([&](std::uint32_t shape) { changed_shapes_.push_back(shape); });
            for (std::uint32_t shape : changed_shapes_) {
                estimates_changed(*spec->program, shape);
            }
        }
    }
}

// What an execution would have taken at the clock that estimates are of.
Ns Service::at_first_clock(const Device& device, Ns took_ns) const {
    const KindClock& clock = clocks_[device.kind];
    if (clock.first_mhz == 0 || device.clock_mhz == 0 || device.clock_mhz == clock.first_mhz) {
        return took_ns;
    }
    return static_cast<Ns>(static_cast<double>(took_ns) * device.clock_mhz / clock.first_mhz);
}

void Service::worker_draining(Ns now, WorkerId worker_id) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    if (worker == nullptr || worker->draining) {
        return;
    }
    worker->draining = true;
    std::vector<Pending*> waiting;
    clear_plans(*worker, waiting);
    for (Pending* pending : waiting) {
        again(*pending, Status::REFUSED, Text::WORKER_LEAVES, false, Reason::NO_WORKER);
    }
    std::vector<Model*> all = models_;
    for (Model* model : all) {
        if (!model->gone && worker->has(model)) {
            strand(*model);
        }
    }
}

void Service::link_measured(Ns now, WorkerId worker_id, Ns there_ns, Ns back_ns) {
    advance(now);
    if (Worker* worker = find_worker(worker_id); worker != nullptr) {
        worker->link.measured(there_ns, back_ns);
        worker->there_ns = worker->link.there_ns();
        worker->back_ns = worker->link.back_ns();
    }
}

// Takes everything that was not sent off a worker's devices; appends the requests, in order.
void Service::clear_plans(Worker& worker, std::vector<Pending*>& waiting) {
    for (Device* device : worker.devices) {
        take_unsent(*device, waiting);
    }
}

void Service::take_unsent(Device& device, std::vector<Pending*>& waiting) {
    clear_plan(device, waiting);
    std::vector<Residency*> loads = device.pending;
    for (Residency* residency : loads) {
        drop_load(*residency);
    }
}

// Answer the background requests of a model that nobody can serve any more; find others a device.
void Service::strand(Model& model) {
    if (model.background.empty()) {
        return;
    }
    if (model.is_somewhere() || fits_somewhere(model)) {
        wake_devices(model);
        return;
    }
    while (Pending* pending = model.background.front()) {
        abandon(*pending);
    }
}

// Nobody can serve it any more. Who leaves in order makes no request fail: it is refused.
void Service::abandon(Pending& pending) {
    bool leaves = std::any_of(pending.model->workers.begin(), pending.model->workers.end(),
                              [this](WorkerId id) { return find_worker(id)->draining; });
    if (leaves) {
        fail(pending, Status::REFUSED, Text::WORKERS_LEAVING, Reason::NO_WORKER);
    } else {
        fail(pending, Status::UNAVAILABLE, Text::NO_WORKER_LEFT);
    }
}

// ----- sending ------------------------------------------------------------------------------------

Batch* Service::make_batch(Residency& residency, std::uint32_t shape, Curve* curve, Ns key_ns) {
    Batch* batch = batch_pool_.make();
    batch->residency = &residency;
    batch->shape = shape;
    batch->curve = curve;
    batch->key_ns = key_ns;
    return batch;
}

Flight* Service::send_batch(Batch& batch) {
    Residency& residency = *batch.residency;
    Device& device = *residency.device;
    const Worker& worker = *device.worker;
    Ns expected = device.paced(batch.expected_ns(batch.size));
    Flight* flight = fly(device, FlightKind::INFER, residency, &batch, expected, device.paced(batch.duration_ns));
    charge(residency, now_, expected);
    Command& command = order_action(CommandKind::SEND_INFER, *flight);
    command.first = static_cast<std::uint32_t>(out.ids.size());
    command.count = static_cast<std::uint32_t>(batch.pendings.size());
    Ns deadline = NEVER_NS, since = now_;
    std::uint32_t part = 0;
    for (Pending* pending : batch.pendings) {
        since = std::min(since, pending->request.arrived_ns);
        deadline = std::min(deadline, pending->deadline_ns);
        pending->batch = nullptr;
        pending->flight = flight;
        pending->part = part++;
        flight->is_apart |= pending->evidence > 0;
        out.ids.push_back(pending->request.id);
    }
    must(!flight->is_apart || (device.lane.size() == 1 && part == 1), "a suspect was not sent by itself");
    flight->waits_since_ns = std::max(since, residency.loaded_ns);
    flight->leaves_work = has_work(device);
    note_waited(*residency.model, since, &device);
    command.earliest_ns = now_;
    // The controller may have stood still since it was planned: it is the worker then who says that it is late.
    command.latest_ns = deadline < NEVER_NS ? std::max(deadline - expected - worker.back_ns, now_) : NEVER_NS;
    command.expected_ns = expected;
    return flight;
}

// ----- results ------------------------------------------------------------------------------------

void Service::action_done(Ns now, const ActionResult& result) {
    advance(now);
    Flight* flight = flights_.find(result.action_id);
    if (flight == nullptr || flight->device->worker->worker_id != result.worker) {
        return;  // an answer to an action that was given up
    }
    bool is_stuck =
        result.status == Status::OVERRUN && (flight->kind == FlightKind::LOAD || flight->kind == FlightKind::FETCH);
    if (result.status == Status::CRASHED || is_stuck) {
        worker_draining(now, result.worker);  // it is about to end: nothing more goes there
    }
    end_flight(*flight);
    judge(*flight, result);
    touch(*flight->device);
    if (flight->kind == FlightKind::LOAD) {
        Model& loaded = *flight->residency->model;
        if (result.status == Status::OK) {
            loaded.load_evidence = 0;
        } else if (result.status == Status::CRASHED || result.status == Status::OVERRUN) {
            accuse(*flight, result.status == Status::CRASHED ? Fault::CRASHED : Fault::STUCK);
        }
        KindSpec& spec = *flight->residency->spec;
        load_answered(*flight, result);
        if (spec.loads->is_raised(spec.model_id, spec.load_ns, spec.page_count)) {
            note_raised();
        }
        if (loaded.aside) {
            set_aside(loaded);
        }
        return;
    }
    if (flight->kind == FlightKind::UNLOAD) {
        unload_answered(*flight, result);
        return;
    }
    if (flight->kind == FlightKind::FETCH) {
        KindSpec& spec = *flight->residency->spec;
        Model& fetched = *flight->residency->model;
        if (result.status == Status::OVERRUN) {
            accuse(*flight, Fault::STUCK);
        }
        fetch_answered(*flight, result);
        if (spec.fetches->is_raised(spec.model_id, 0, spec.page_count)) {
            note_raised();
        }
        if (fetched.aside) {
            set_aside(fetched);
        }
        return;
    }
    if (flight->kind == FlightKind::DROP) {
        drop_answered(*flight, result);
        return;
    }
    if (result.ready_ns > 0) {
        delivered(*flight, result.ready_ns);
    }
    flight->revoked = true;  // it has ended
    count_execution(*flight, result);
    leave_lane(*flight, result);
    Residency& residency = *flight->residency;
    Batch& batch = *flight->batch;
    Model& model = *residency.model;
    if (result.status == Status::OK) {
        Ns took = result.duration_ns != 0 ? result.duration_ns : result.end_ns - result.begin_ns;
        executed(*flight, took);
        ProgramEstimates& program = *residency.spec->program;
        std::uint32_t forgotten = UINT32_MAX;
        bool changed =
            program.measure(batch.shape, batch.size, at_first_clock(*flight->device, took), &forgotten, now_);
        if (forgotten != UINT32_MAX) {
            estimates_forgotten(program, forgotten);
        }
        if (changed) {
            if (Curve* curve = program.curve(batch.shape); curve != nullptr && curve->is_raised()) {
                note_raised();
            }
            estimates_changed(program, batch.shape);
        }
        if (flight->kind == FlightKind::INFER) {
            answer(*flight, result);
        }
    } else if (flight->kind == FlightKind::INFER) {
        infer_failed(*flight, result);
    } else if (result.status == Status::CRASHED || result.status == Status::OVERRUN) {
        accuse(*flight, result.status == Status::CRASHED ? Fault::CRASHED : Fault::OVERRUN);
    }
    retire_batch(*flight);
    if (model.aside) {
        set_aside(model);
    } else if (model.draining) {
        check_removed(model);
    }
}

void Service::leave_lane(Flight& flight, const ActionResult& result) {
    Device& device = *flight.device;
    const Worker& worker = *device.worker;
    bool is_first = device.lane.front() == &flight;
    bool is_sane = 0 < result.end_ns && result.end_ns <= now_;
    if (is_first && is_sane && result.status == Status::OK) {
        // What should follow it at once had to be sent so early, beyond the delay of its way as predicted, had that been
        // as much longer as it was for this one.
        Ns late = result.ready_ns > 0 ? result.ready_ns - flight.there_ns : 0;
        device.lead.needed(now_, device.head_end_ns - result.end_ns + late);
    }
    device.lane.erase(&flight);
    --flight.residency->flying;
    if (device.lane.empty()) {
        device.idle_since_ns = now_;
    } else if (is_first) {
        device.retime_lane(is_sane ? result.end_ns : now_ - worker.back_ns);
    } else {
        device.lane_end_ns -= flight.duration_ns;
    }
}

void Service::answer(Flight& flight, const ActionResult& result) {
    for (Pending* pending : flight.batch->pendings) {
        if (pending->answered) {
            continue;
        }
        if (now_ > pending->deadline_ns) {
            fail(*pending, Status::DEADLINE_MISSED, Text::RESULT_LATE);
        } else {
            answer_ok(*pending, flight, result);
        }
    }
}

// ----- idle with work waiting ---------------------------------------------------------------------

// A request that waited was answered without having been sent.
void Service::left_unsent(const Pending& pending) {
    if (pending.request.arrived_ns < now_) {
        note_waited(*pending.model, pending.request.arrived_ns, nullptr);
    }
}

// Devices that could have served a model while a request for it waited, and have nothing to do.
void Service::note_waited(const Model& model, Ns since_ns, const Device* except) {
    std::size_t count = model.residencies.size();
    for (std::size_t looked = 0; looked < std::min(count, IDLE_LOOK_MAX); ++looked) {
        const Residency& one = *model.residencies[(model.place_cursor + looked) % count];
        Device& device = *one.device;
        if (&device != except && device.lane.empty() && one.state == ResidencyState::RESIDENT && device.usable()) {
            count_idle(device, std::max(since_ns, one.loaded_ns), now_);
        }
    }
}

void Service::count_idle(Device& device, Ns since_ns, Ns until_ns) {
    device.time.waited(std::max(since_ns, judged_from_ns_), std::min(until_ns, judged_until_ns_));
}

// An execution began, and ended: what lies before it was idle time.
void Service::count_execution(const Flight& flight, const ActionResult& result) {
    bool has_run = result.status == Status::OK || result.status == Status::EXECUTION_FAILED;
    if (!has_run || result.begin_ns <= 0 || result.end_ns < result.begin_ns || result.end_ns > now_) {
        return;
    }
    if (flight.kind == FlightKind::INFER) {
        Ns until = flight.leaves_work ? result.begin_ns : std::min(result.begin_ns, flight.sent_ns);
        count_idle(*flight.device, flight.waits_since_ns, until);
    }
    flight.device->time.executed(result.begin_ns, result.end_ns, now_);
}

// ----- suspects -----------------------------------------------------------------------------------
// What was executing when a worker ended may be why. It is tried again, but by itself: in a batch of its own, on a
// device where nothing else is under way, after what else waits. Evidence stays with a request, and at EVIDENCE_MAX it
// is answered as failed and its model set aside; an execution whose requests were all answered before it ended leaves
// its evidence with the model. What was only queued behind is planned anew like anything else.

// Notes what a device was at when its worker was lost, or it broke: the oldest action of each lane. Had the oldest
// ended by now, as was thought, its result may have been lost on its way: then the next had begun, too.
//
// What was sent before another worker was lost is not suspected: the two have a cause in common, a network or a
// controller that stood still, for a request that ends workers is tried again only when it has ended one.
void Service::blame(Device& device) {
    auto suspect = [this](Flight& flight) { flight.was_executing = flight.sent_ns >= lost_ns_; };
    Flight* head = device.lane.front();
    if (head != nullptr && head->there_ns <= now_) {
        suspect(*head);
        Flight* next = device.lane.next(head);
        if (next != nullptr && now_ - device.worker->back_ns > device.head_end_ns) {
            suspect(*next);
        }
    }
    for (Flight* one = device.worker->flights.front(); one != nullptr; one = device.worker->flights.next(one)) {
        if (one->device == &device && one->kind == FlightKind::LOAD) {
            suspect(*one);
            break;
        }
    }
}

// Holds against a model, and its requests in the flight, what became of it. They have been taken back already.
void Service::accuse(const Flight& flight, Fault fault) {
    Model& model = *flight.residency->model;
    std::uint8_t evidence = fault == Fault::CRASHED ? EVIDENCE_CRASHED : EVIDENCE_LOST;
    bool is_enough = false;
    if (fault == Fault::OVERRUN) {
        // A shape that was tried in idle time, on values that mean nothing, is only noted.
        // Nor are those counted that went on at the same time: devices that all are slow are nobody's doing.
        if (flight.kind == FlightKind::INFER && flight.sent_ns >= model.overrun_ns) {
            model.overrun_ns = now_;
            is_enough = model.overruns.add(now_);
        }
    } else if (flight.kind == FlightKind::LOAD || flight.kind == FlightKind::FETCH) {
        model.load_evidence = static_cast<std::uint8_t>(model.load_evidence + evidence);
        is_enough = model.load_evidence >= EVIDENCE_MAX;
    } else {
        bool has_open = false;
        if (flight.kind == FlightKind::INFER) {
            for (Pending* pending : flight.batch->pendings) {
                if (!pending->answered) {
                    has_open = true;
                    pending->alone = true;
                    pending->evidence = static_cast<std::uint8_t>(pending->evidence + evidence);
                    is_enough |= pending->evidence >= EVIDENCE_MAX;
                }
            }
        }
        // That its requests' time was over says that it took long, which makes an accident less likely.
        bool counts = fault == Fault::CRASHED || (!has_open && flight.kind == FlightKind::INFER);
        for (std::uint8_t count = 0; counts && count < evidence; ++count) {
            is_enough |= model.unanswerable.add(now_);
        }
    }
    bool sets_aside = is_enough && !model.draining;
    if (fault == Fault::WORKER_LOST && !sets_aside) {
        return;  // it may have been anything
    }
    Command& command = order(CommandKind::MODEL_FAULT);
    command.model_id = model.model_id;
    command.worker = flight.device->worker->worker_id;
    command.a = static_cast<Ns>(fault);
    command.b = sets_aside;
    if (!sets_aside) {
        return;
    }
    model.aside = model.draining = true;  // set_aside() follows, once the books are in order
}

// Answers every request for a model that is set aside and not under way, in the order of their coming.
void Service::set_aside(Model& model) {
    std::vector<RequestId> all;
    pendings_.for_each([&](const Pending& pending) {
        if (pending.model == &model && pending.flight == nullptr) {
            all.push_back(pending.request.id);
        }
    });
    std::sort(all.begin(), all.end());
    for (RequestId id : all) {
        if (Pending* pending = pendings_.find(id); pending != nullptr) {  // else it was answered with one before
            fail(*pending, Status::UNAVAILABLE, Text::SET_ASIDE);
        }
    }
    check_removed(model);
}

// Like an execution, a LOAD that is overdue by STUCK_NS is likely to take as long again, and it is the worker's to end.
// Those behind it on its link come no sooner. Until that time has passed, nothing is promised on any of them; what was
// promised is planned anew, here only if there is no other place and time enough.
void Service::watch_loads(Device& device) {
    if (device.loading == 0) {
        return;
    }
    Worker& worker = *device.worker;
    Ns due = worker.loads_due_ns();
    Ns look = std::max(due + STUCK_NS, worker.link_free_ns);
    if (now_ < look) {
        device.wake_at(look);
        return;
    }
    worker.link_free_ns = now_ + (now_ - due);
    device.wake_at(worker.link_free_ns);
    std::vector<Pending*> waiting;
    std::vector<Model*> stuck;
    for (Device* one : worker.devices) {
        for (Residency* load = one->resident.front(); load != nullptr; load = one->resident.next(load)) {
            if (load->state == ResidencyState::LOADING) {
                load->is_stuck = true;
                load->ready_ns = worker.link_free_ns + worker.back_ns + worker.there_ns;
                stuck.push_back(load->model);
                evacuate(*load, waiting);
            }
        }
        for (Residency* load : one->pending) {
            evacuate(*load, waiting);
        }
        retime_loads(*one);
        touch(*one);
    }
    for (Pending* pending : waiting) {
        again(*pending, Status::DEADLINE_MISSED, Text::CANNOT_BE_IN_TIME, false);
    }
    for (Model* model : stuck) {
        strand(*model);
    }
}

// The unanswered requests of a flight that ended, free to be planned again.
void Service::take_back(Flight& flight, std::vector<Pending*>& waiting) {
    for (Pending* pending : flight.batch->pendings) {
        if (!pending->answered) {
            pending->flight = nullptr;
            waiting.push_back(pending);
        } else if (pending->flight == &flight) {
            pending->flight = nullptr;
            retire(pending);
        }
    }
}

void Service::retire_batch(Flight& flight) {
    if (flight.kind == FlightKind::INFER) {
        batch_ended(flight);
    }
    for (Pending* pending : flight.batch->pendings) {
        if (pending->answered && pending->flight == &flight) {
            pending->flight = nullptr;
            retire(pending);
        }
    }
    retire(flight.batch);
}

void Service::infer_failed(Flight& flight, const ActionResult& result) {
    Status status = result.status;
    waiting_.clear();
    take_back(flight, waiting_);
    if (status == Status::CRASHED || status == Status::OVERRUN) {
        accuse(flight, status == Status::CRASHED ? Fault::CRASHED : Fault::OVERRUN);
    }
    bool has_words = result.text != nullptr && !result.text->empty();
    if (status == Status::EXECUTION_FAILED || status == Status::INVALID_INPUT || status == Status::OVERRUN) {
        for (Pending* pending : waiting_) {
            if (flight.batch->pendings.size() == 1) {
                Said said(has_words ? Text::VERBATIM : Text::FAILED_ON_INPUT, 0, 0, result.text);
                fail(*pending, status == Status::OVERRUN ? Status::EXECUTION_FAILED : status, said);
            } else {
                pending->alone = true;
                again(*pending, Status::DEADLINE_MISSED, Text::BATCH_FAILED, false);
            }
        }
        return;
    }
    if (status == Status::CRASHED) {
        for (Pending* pending : waiting_) {
            again(*pending, Status::UNAVAILABLE, Text::WORKER_LOST);
        }
        return;
    }
    Said said(Text::VERBATIM, static_cast<Ns>(status), 0, result.text);
    Status final_status = Status::UNAVAILABLE;
    if (status == Status::TOO_LATE || status == Status::ACTION_CANCELLED) {
        final_status = Status::DEADLINE_MISSED;
        said = Text::CANNOT_BE_IN_TIME;
    }
    if (status == Status::NOT_RESIDENT || status == Status::UNKNOWN_MODEL) {
        Residency& residency = *flight.residency;
        if (residency.on_device) {
            planned_.clear();
            lose_residency(residency, planned_);
            for (Pending* pending : planned_) {
                again(*pending, final_status, said, false);
            }
        }
    }
    // Too late for a window of the policy's own making is no failure of the request: the next is wider.
    bool is_counted = status != Status::TOO_LATE || !flight.is_narrow;
    for (Pending* pending : waiting_) {
        pending->widenings = static_cast<std::uint8_t>(pending->widenings + !is_counted);
        if (status == Status::DEVICE_ERROR) {
            pending->failed_on = flight.device->number + 1;
        }
        again(*pending, final_status, said, is_counted);
    }
}

}  // namespace clockwork
