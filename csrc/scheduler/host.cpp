// The host store of a worker: what is fetched into it from disk, and what is dropped from it. See loads.h.
#include <algorithm>

#include "scheduler/loads.h"

namespace clockwork {

namespace {

// A moment that has passed, whatever time it is.
constexpr Ns PAST_NS = -NEVER_NS;

}  // namespace

// ----- how long it takes ----------------------------------------------------------------------------

Ns Loads::fetch_wait_ns(const Worker& worker, const Model& model) const {
    if (worker.is_hosted(model)) {
        return 0;
    }
    if (worker.host_state(model) == HostState::FETCHING) {
        return std::max<Ns>(worker.host[model.slot].ready_ns - now_, 0);
    }
    const KindSpec& spec = *model.spec(*worker.devices.front());
    Ns begin = std::max(worker.disk_free_ns, now_ + worker.there_ns);
    return begin + spec.fetch_planned_ns() + worker.back_ns - now_;
}

// function(worker, spec) for each worker that could load the model, until it returns false.
template <typename Function>
void Loads::for_each_store(const Model& model, Function&& function) const {
    for (WorkerId id : model.workers) {
        const Worker* worker = find_worker(id);
        if (worker == nullptr || worker->draining) {
            continue;  // null while it leaves
        }
        const KindSpec* spec = model.spec(*worker->devices.front());
        if (spec != nullptr && worker->could_host(*spec) && !function(*worker, *spec)) {
            return;
        }
    }
}

Ns Loads::fetch_wait_ns(const Model& model) const {
    if (tiered_ == 0 || !model.residencies.empty()) {
        return 0;
    }
    Ns least = NEVER_NS;
    for_each_store(model, [&](const Worker& worker, const KindSpec&) {
        least = std::min(least, fetch_wait_ns(worker, model));
        return least > 0;
    });
    return least < NEVER_NS ? least : 0;
}

Ns Loads::hops_ns(const Model& model) const {
    if (tiered_ == 0 || !model.residencies.empty()) {
        return 0;
    }
    Ns least = NEVER_NS;
    for_each_store(model, [&](const Worker& worker, const KindSpec& spec) {
        // What has no host store is planned for as it always was: its loads are not counted.
        Ns hops = worker.host_bytes == 0 ? 0 : fetch_wait_ns(worker, model) + spec.load_planned_ns();
        least = std::min(least, hops);
        return least > 0;
    });
    return least < NEVER_NS ? least : 0;
}

Ns Loads::last_begin_ns(const Model& model, Ns latest_ns) const {
    if (tiered_ == 0 || !model.residencies.empty()) {
        return latest_ns;
    }
    Ns last = PAST_NS;
    bool is_any = false;
    for_each_store(model, [&](const Worker& worker, const KindSpec& spec) {
        is_any = true;
        Ns load = worker.host_bytes == 0 ? 0 : spec.load_planned_ns();
        Ns here = latest_ns - load;
        if (worker.host_state(model) == HostState::FETCHING) {
            here = worker.host[model.slot].ready_ns > here ? PAST_NS : here;
        } else if (!worker.is_hosted(model)) {
            Ns wait = spec.fetch_planned_ns() + worker.there_ns + worker.back_ns;
            // The disk is promised to others until then, come what may.
            here = worker.disk_free_ns + wait > here ? PAST_NS : here - wait;
        }
        last = std::max(last, here);
        return true;
    });
    return is_any ? last : latest_ns;
}

const Worker* Loads::find_host(const Model& model) const {
    const Worker* found = nullptr;
    for_each_store(model, [&](const Worker& worker, const KindSpec&) {
        found = worker.is_hosted(model) ? &worker : nullptr;
        return found == nullptr;
    });
    return found;
}

// ----- deciding -------------------------------------------------------------------------------------

// Whether something on the worker is being loaded from it, or is about to be.
bool Loads::is_pinned(const Worker& worker, const Model& model) {
    return std::any_of(model.residencies.begin(), model.residencies.end(), [&](const Residency* one) {
        return one->device->worker == &worker && one->state != ResidencyState::RESIDENT;
    });
}

bool Loads::bring(Worker& worker, Model& model, Ns before_ns) {
    if (worker.is_hosted(model)) {
        return true;
    }
    const KindSpec* spec = model.spec(*worker.devices.front());
    if (model.fetches > 0 || worker.fetching >= FETCHES_MAX || worker.draining || model.draining || spec == nullptr ||
        !worker.could_host(*spec)) {
        return false;
    }
    std::uint64_t free = worker.host_bytes - worker.host_used;
    dropped_.clear();
    if (free < spec->host_bytes) {
        for (Model* one : models_) {
            if (worker.host_state(*one) == HostState::HELD && worker.host[one->slot].used_ns < before_ns &&
                may_drop(*one) && !is_pinned(worker, *one)) {
                dropped_.push_back({host_worth(*one), worker.host[one->slot].used_ns, one});
            }
        }
        std::stable_sort(dropped_.begin(), dropped_.end(), [](const Dropped& one, const Dropped& other) {
            return one.worth != other.worth ? one.worth < other.worth : one.used_ns < other.used_ns;
        });
        std::size_t count = 0;
        while (free < spec->host_bytes && count < dropped_.size()) {
            free += worker.host[dropped_[count++].model->slot].bytes;
        }
        if (free < spec->host_bytes) {
            return false;
        }
        dropped_.resize(count);
    }
    for (const Dropped& one : dropped_) {
        send_drop(worker, *one.model, 0);
    }
    send_fetch(worker, model, *spec);
    return false;
}

// A request was refused that would have been served had its weights been nearer: the next one shall find them so, if
// that costs nothing that is of use.
void Loads::warm(Model& model) {
    if (model.fetches > 0 || model.draining || !model.residencies.empty()) {
        return;
    }
    find_loadable(model, warm_places_);
    for (const Place& place : warm_places_) {
        Device& device = *place.device;
        Worker& worker = *device.worker;
        if (worker.host_bytes == 0) {
            continue;
        }
        if (worker.is_hosted(model)) {
            if (device.loading == 0 && device.pending.empty() && load_idly(device, model, *place.spec)) {
                return;
            }
        } else if (worker.fetching == 0 && find_host(model) == nullptr) {
            bring(worker, model, now_ - WARM_IDLE_NS);
            if (model.fetches > 0) {
                return;
            }
        }
    }
}

// ----- acting ---------------------------------------------------------------------------------------

// A residency that stands for the model in an action of the host store: it is on no device.
Residency& Loads::stand_in(Worker& worker, Model& model) {
    Device& device = *worker.devices.front();
    Residency* one = make_residency(device, model, *model.spec(device), 0);
    one->load_id = ++load_id_;
    return *one;
}

void Loads::send_fetch(Worker& worker, Model& model, const KindSpec& spec) {
    if (worker.host.size() <= model.slot) {
        worker.host.resize(model_pool_.slot_count());
    }
    HostCopy& copy = worker.host[model.slot];
    Residency& residency = stand_in(worker, model);
    Ns expected = spec.fetch_expected_ns(), planned = with_margin(expected);
    worker.disk_free_ns = std::max(worker.disk_free_ns, now_ + worker.there_ns) + planned;
    worker.fetches_ns += planned;
    worker.host_used += spec.host_bytes;
    ++worker.fetching;
    ++model.fetches;
    copy.state = HostState::FETCHING;
    copy.bytes = spec.host_bytes;
    copy.used_ns = now_;
    copy.ready_ns = worker.disk_free_ns + worker.back_ns;
    Flight* flight = make_flight(*residency.device, FlightKind::FETCH, residency, nullptr, expected, planned);
    Command& command = order_action(CommandKind::SEND_FETCH, *flight);
    command.earliest_ns = now_;
    command.latest_ns = now_ + std::max(LOAD_WINDOW_NS, 10 * planned);
    command.expected_ns = expected;
}

void Loads::send_drop(Worker& worker, Model& model, std::uint8_t attempts) {
    HostCopy& copy = worker.host[model.slot];
    if (copy.state == HostState::HELD) {
        worker.host_used -= copy.bytes;
        copy = HostCopy();
    }
    Residency& residency = stand_in(worker, model);
    residency.attempts = static_cast<std::uint8_t>(attempts + 1);
    ++model.drops;
    Flight* flight =
        make_flight(*residency.device, FlightKind::DROP, residency, nullptr, UNLOAD_EXPECTED_NS, UNLOAD_EXPECTED_NS);
    Command& command = order_action(CommandKind::SEND_DROP, *flight);
    command.earliest_ns = now_;
    command.latest_ns = NEVER_NS;
    command.expected_ns = UNLOAD_EXPECTED_NS;
}

// ----- results --------------------------------------------------------------------------------------

void Loads::end_host_action(Flight& flight) {
    Model& model = *flight.residency->model;
    --(flight.kind == FlightKind::FETCH ? model.fetches : model.drops);
    retire(flight.residency);
}

void Loads::fetch_answered(Flight& flight, const ActionResult& result) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.device->worker;
    KindSpec& spec = *flight.residency->spec;
    HostCopy& copy = worker.host[model.slot];
    --worker.fetching;
    worker.disk_free_ns = now_ - worker.back_ns + worker.fetches_ns;
    if (result.status == Status::OK) {
        Ns took = result.duration_ns != 0 ? result.duration_ns : std::max<Ns>(result.end_ns - result.begin_ns, 0);
        Ns own = spec.fetches->measure(model.model_id, 0, spec.page_count, took, now_);
        model.for_each_alike(spec, [own](KindSpec& one) { one.fetch_own_ns = own; });
        copy.state = HostState::HELD;
        copy.used_ns = now_;
        copy.attempts = 0;
    } else {
        worker.host_used -= copy.bytes;
        copy.state = HostState::NONE;
        if (++copy.attempts >= LOAD_ATTEMPTS_MAX) {
            copy.attempts = 0;
            if (model.residencies.empty()) {
                Said said(Text::LOAD_FAILED, static_cast<Ns>(result.status), 0, result.text);
                load_given_up(*flight.residency, said);
                while (Pending* pending = model.background.front()) {
                    fail(*pending, Status::UNAVAILABLE, said);
                }
            }
        }
    }
    end_host_action(flight);
    for (Device* device : worker.devices) {
        touch(*device);
    }
    host_changed(worker, model);
    if (model.draining) {
        check_removed(model);
    }
}

void Loads::drop_answered(Flight& flight, const ActionResult& result) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.device->worker;
    bool refused = result.status == Status::IN_USE || result.status == Status::DEVICE_ERROR ||
                   result.status == Status::ACTION_CANCELLED || result.status == Status::TOO_LATE;
    std::uint8_t attempts = flight.residency->attempts;
    end_host_action(flight);
    if (refused && attempts < UNLOAD_ATTEMPTS_MAX && !worker.draining && worker.host_state(model) == HostState::NONE) {
        send_drop(worker, model, attempts);
    } else if (model.draining) {
        check_removed(model);
    }
}

// True when no worker holds a copy of a model that is being removed, nor moves one.
bool Loads::leave_hosts(Model& model) {
    for (WorkerId id : model.workers) {
        Worker* worker = find_worker(id);
        if (worker != nullptr && worker->host_state(model) == HostState::HELD) {
            send_drop(*worker, model, 0);
        }
    }
    return model.fetches == 0 && model.drops == 0;
}

void Loads::check_invariants() const {
    Book::check_invariants();
    const Worker* last = nullptr;
    for (const Device* device : devices_) {
        const Worker& worker = *device->worker;
        for (const Residency* one = device->resident.front(); one != nullptr; one = device->resident.next(one)) {
            must(one->state == ResidencyState::RESIDENT || worker.is_hosted(*one->model),
                 "a LOAD of a model that is not in the host store");
        }
        if (&worker == last || worker.host_bytes == 0) {
            continue;
        }
        last = &worker;
        std::uint64_t used = 0;
        std::uint32_t fetching = 0;
        for (const Model* model : models_) {
            HostState state = worker.host_state(*model);
            used += state != HostState::NONE ? worker.host[model->slot].bytes : 0;
            fetching += state == HostState::FETCHING;
        }
        must(used == worker.host_used && used <= worker.host_bytes, "a host store is over-committed or miscounted");
        must(fetching == worker.fetching && fetching <= FETCHES_MAX, "a worker's FETCHes were miscounted");
    }
}

}  // namespace clockwork
