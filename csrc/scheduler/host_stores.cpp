// Host stores of workers: copies fetched from disk, and copies dropped. See arenas.h.
#include <algorithm>

#include "scheduler/arenas.h"

namespace clockwork {

namespace {

// A time that is always in the past.
constexpr Ns PAST_NS = -NEVER_NS;

}  // namespace

// ----- how long it takes ----------------------------------------------------------------------------

Ns Arenas::fetch_wait_ns(const Worker& worker, const Model& model) const {
    if (worker.is_hosted(model)) {
        return 0;
    }
    if (worker.host_state(model) == HostState::FETCHING) {
        return std::max<Ns>(worker.host[model.slot].ready_ns - state_.now, 0);
    }
    const KindSpec& spec = *model.spec(*worker.arenas.front());
    Ns begin = std::max(worker.disk_free_ns, state_.now + worker.there_ns);
    return begin + spec.fetch_planned_ns() + worker.back_ns - state_.now;
}

// Calls function(worker, spec) for each worker that could load the model, until it returns false.
template <typename Function>
void Arenas::for_each_store(const Model& model, Function&& function) const {
    for (WorkerId id : model.workers) {
        const Worker* worker = state_.find_worker(id);
        if (worker == nullptr || worker->draining) {
            continue;  // null while the worker leaves
        }
        const KindSpec* spec = model.spec(*worker->arenas.front());
        if (spec != nullptr && worker->could_host(*spec) && !function(*worker, *spec)) {
            return;
        }
    }
}

Ns Arenas::fetch_wait_ns(const Model& model) const {
    if (state_.tiered == 0 || !model.residencies.empty()) {
        return 0;
    }
    Ns least = NEVER_NS;
    for_each_store(model, [&](const Worker& worker, const KindSpec&) {
        least = std::min(least, fetch_wait_ns(worker, model));
        return least > 0;
    });
    return least < NEVER_NS ? least : 0;
}

Ns Arenas::hops_ns(const Model& model) const {
    if (state_.tiered == 0 || !model.residencies.empty()) {
        return 0;
    }
    Ns least = NEVER_NS;
    for_each_store(model, [&](const Worker& worker, const KindSpec& spec) {
        // Without a host store the load is not counted, because plans already include it.
        Ns hops = worker.host_bytes == 0 ? 0 : fetch_wait_ns(worker, model) + spec.load_planned_ns();
        least = std::min(least, hops);
        return least > 0;
    });
    return least < NEVER_NS ? least : 0;
}

Ns Arenas::last_begin_ns(const Model& model, Ns latest_ns) const {
    if (state_.tiered == 0 || !model.residencies.empty()) {
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
            // The disk is taken by other fetches until then.
            here = worker.disk_free_ns + wait > here ? PAST_NS : here - wait;
        }
        last = std::max(last, here);
        return true;
    });
    return is_any ? last : latest_ns;
}

const Worker* Arenas::find_host(const Model& model) const {
    const Worker* found = nullptr;
    for_each_store(model, [&](const Worker& worker, const KindSpec&) {
        found = worker.is_hosted(model) ? &worker : nullptr;
        return found == nullptr;
    });
    return found;
}

// ----- deciding -------------------------------------------------------------------------------------

// Whether the model is being loaded from the worker's store, or is about to be.
bool Arenas::is_pinned(const Worker& worker, const Model& model) {
    return std::any_of(model.residencies.begin(), model.residencies.end(), [&](const Residency* residency) {
        return residency->arena->worker == &worker && residency->state != ResidencyState::RESIDENT;
    });
}

bool Arenas::bring(Worker& worker, Model& model, Ns before_ns) {
    if (worker.is_hosted(model)) {
        return true;
    }
    const KindSpec* spec = model.spec(*worker.arenas.front());
    if (model.fetches > 0 || worker.fetching >= FETCHES_MAX || worker.draining || model.draining || spec == nullptr ||
        !worker.could_host(*spec)) {
        return false;
    }
    std::uint64_t free = worker.host_bytes - worker.host_used;
    dropped_.clear();
    if (free < spec->host_bytes) {
        for (Model* model : state_.models) {
            if (worker.host_state(*model) == HostState::HELD && worker.host[model->slot].used_ns < before_ns &&
                deciders_.memory->may_drop(*model) && !is_pinned(worker, *model)) {
                dropped_.push_back({deciders_.memory->host_worth(*model), worker.host[model->slot].used_ns, model});
            }
        }
        std::stable_sort(dropped_.begin(), dropped_.end(), [](const Dropped& dropped, const Dropped& other) {
            return dropped.worth != other.worth ? dropped.worth < other.worth : dropped.used_ns < other.used_ns;
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
    for (const Dropped& dropped : dropped_) {
        send_drop(worker, *dropped.model, 0);
    }
    send_fetch(worker, model, *spec);
    return false;
}

// Fetches a model after a refusal that nearer weights would have avoided, if that drops no useful copy.
void Arenas::warm(Model& model) {
    if (model.fetches > 0 || model.draining || !model.residencies.empty()) {
        return;
    }
    find_loadable(model, warm_places_);
    for (const Place& place : warm_places_) {
        Arena& arena = *place.arena;
        Worker& worker = *arena.worker;
        if (worker.host_bytes == 0) {
            continue;
        }
        if (worker.is_hosted(model)) {
            if (arena.loading == 0 && arena.pending.empty() && load_idly(arena, model, *place.spec)) {
                return;
            }
        } else if (worker.fetching == 0 && find_host(model) == nullptr) {
            bring(worker, model, state_.now - WARM_IDLE_NS);
            if (model.fetches > 0) {
                return;
            }
        }
    }
}

// ----- acting ---------------------------------------------------------------------------------------

// A residency that represents the model in an action of the host store: it is on no device.
Residency& Arenas::stand_in(Worker& worker, Model& model) {
    Arena& arena = *worker.arenas.front();
    Residency* residency = make_residency(arena, model, *model.spec(arena), 0);
    residency->load_id = state_.next_load();
    return *residency;
}

void Arenas::send_fetch(Worker& worker, Model& model, const KindSpec& spec) {
    if (worker.host.size() <= model.slot) {
        worker.host.resize(state_.pool<Model>().slot_count());
    }
    HostCopy& copy = worker.host[model.slot];
    Residency& residency = stand_in(worker, model);
    Ns expected = spec.fetch_expected_ns(), planned = with_margin(expected);
    worker.disk_free_ns = std::max(worker.disk_free_ns, state_.now + worker.there_ns) + planned;
    worker.fetches_ns += planned;
    worker.host_used += spec.host_bytes;
    ++worker.fetching;
    ++model.fetches;
    copy.state = HostState::FETCHING;
    copy.bytes = spec.host_bytes;
    copy.used_ns = state_.now;
    copy.ready_ns = worker.disk_free_ns + worker.back_ns;
    Flight* flight = flights_.make(*residency.arena, ActionKind::FETCH, residency, nullptr, expected, planned);
    flights_.enter(*flight);
    Command& command = flights_.order(CommandKind::SEND_FETCH, *flight);
    command.earliest_ns = state_.now;
    command.latest_ns = state_.now + std::max(LOAD_WINDOW_NS, 10 * planned);
    command.expected_ns = expected;
}

void Arenas::send_drop(Worker& worker, Model& model, std::uint8_t attempts) {
    HostCopy& copy = worker.host[model.slot];
    if (copy.state == HostState::HELD) {
        worker.host_used -= copy.bytes;
        copy = HostCopy();
    }
    Residency& residency = stand_in(worker, model);
    residency.attempts = static_cast<std::uint8_t>(attempts + 1);
    ++model.drops;
    order_release(ActionKind::DROP, CommandKind::SEND_DROP, residency);
}

// ----- results --------------------------------------------------------------------------------------

void Arenas::end_host_action(Flight& flight) {
    Model& model = *flight.residency->model;
    --(flight.kind == ActionKind::FETCH ? model.fetches : model.drops);
    state_.retire(flight.residency);
}

bool Arenas::fetch_ended(Flight& flight, Status status) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.arena->worker;
    HostCopy& copy = worker.host[model.slot];
    --worker.fetching;
    worker.disk_free_ns = state_.now - worker.back_ns + worker.fetches_ns;
    if (status == Status::OK) {
        copy.state = HostState::HELD;
        copy.used_ns = state_.now;
        copy.attempts = 0;
        return true;
    }
    worker.host_used -= copy.bytes;
    copy.state = HostState::NONE;
    if (++copy.attempts < LOAD_ATTEMPTS_MAX) {
        return true;
    }
    copy.attempts = 0;
    return false;
}

bool Arenas::drop_ended(Flight& flight, Status status) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.arena->worker;
    std::uint8_t attempts = flight.residency->attempts;
    end_host_action(flight);
    if (is_refused(status) && attempts < UNLOAD_ATTEMPTS_MAX && !worker.draining &&
        worker.host_state(model) == HostState::NONE) {
        send_drop(worker, model, attempts);
        return false;
    }
    return true;
}

bool Arenas::leave_hosts(Model& model) {
    for (WorkerId id : model.workers) {
        Worker* worker = state_.find_worker(id);
        if (worker != nullptr && worker->host_state(model) == HostState::HELD) {
            send_drop(*worker, model, 0);
        }
    }
    return model.fetches == 0 && model.drops == 0;
}

void Arenas::check_invariants() const {
    const Worker* last = nullptr;
    for (const Arena* arena : state_.arenas) {
        const Worker& worker = *arena->worker;
        for (const Residency* residency = arena->resident.front(); residency != nullptr;
             residency = arena->resident.next(residency)) {
            must(residency->state == ResidencyState::RESIDENT || worker.is_hosted(*residency->model),
                 "a LOAD of a model that is not in the host store");
        }
        if (&worker == last || worker.host_bytes == 0) {
            continue;
        }
        last = &worker;
        std::uint64_t used = 0;
        std::uint32_t fetching = 0;
        for (const Model* model : state_.models) {
            HostState state = worker.host_state(*model);
            used += state != HostState::NONE ? worker.host[model->slot].bytes : 0;
            fetching += state == HostState::FETCHING;
        }
        must(used == worker.host_used && used <= worker.host_bytes, "a host store is over-committed or miscounted");
        must(fetching == worker.fetching && fetching <= FETCHES_MAX, "a worker's FETCHes were miscounted");
    }
}

}  // namespace clockwork
