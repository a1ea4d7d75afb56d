// Stores of workers: copies fetched, and copies dropped. See arenas.h.
#include <algorithm>
#include <tuple>

#include "scheduler/arenas.h"

namespace clockwork {

namespace {

// A time that is always in the past.
constexpr Ns PAST_NS = -NEVER_NS;

}  // namespace

// ----- how long it takes ----------------------------------------------------------------------------

Ns Arenas::fetch_wait_ns(const Worker& worker, const Model& model) const {
    if (worker.is_stored(model)) {
        return 0;
    }
    if (worker.store_state(model) == StoreState::FETCHING) {
        return std::max<Ns>(worker.store[model.slot].ready_ns - state_.now, 0);
    }
    const KindSpec& spec = *model.spec(*worker.arenas.front());
    Ns begin = std::max(worker.fetch_free_ns, state_.now + worker.there_ns);
    if (worker.tier == StoreTier::DISK) {
        begin = std::max(
            begin, keepers_.source(worker, model) == nullptr ? state_.now + OUT_OF_REACH_NS : again_ns(worker, model));
    }
    return begin + spec.fetch_planned_ns(worker.fetch_ns_per_byte()) + worker.back_ns - state_.now;
}

Ns Arenas::again_ns(const Worker& worker, const Model& model) {
    return model.slot < worker.store.size() ? worker.store[model.slot].again_ns : 0;
}

// Calls function(worker, spec) for each worker that could load the model, until it returns false. Where disks
// keep the model, only for their workers: others would have to be brought it.
template <typename Function>
void Arenas::for_each_store(const Model& model, Function&& function) const {
    bool is_any = false;
    for (std::size_t place = 0; place < model.workers.size(); ++place) {
        if (place == model.keepers && is_any) {
            return;
        }
        const Worker* worker = state_.find_worker(model.workers[place]);
        if (worker == nullptr || worker->draining) {
            continue;  // null while the worker leaves
        }
        const KindSpec* spec = model.spec(*worker->arenas.front());
        if (spec == nullptr || !worker->could_store(*spec) || !keepers_.is_in_reach(*worker, model)) {
            continue;
        }
        is_any = true;
        if (!function(*worker, *spec)) {
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
        // Without a store the load is not counted, because plans already include it.
        Ns hops = worker.tier == StoreTier::NONE ? 0 : fetch_wait_ns(worker, model) + spec.load_planned_ns();
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
        Ns load = worker.tier == StoreTier::NONE ? 0 : spec.load_planned_ns();
        Ns here = latest_ns - load;
        if (worker.store_state(model) == StoreState::FETCHING) {
            here = worker.store[model.slot].ready_ns > here ? PAST_NS : here;
        } else if (!worker.is_stored(model)) {
            Ns wait = spec.fetch_planned_ns(worker.fetch_ns_per_byte()) + worker.there_ns + worker.back_ns;
            // The way into the store is taken by other fetches until then.
            here = worker.fetch_free_ns + wait > here ? PAST_NS : here - wait;
        }
        last = std::max(last, here);
        return true;
    });
    return is_any ? last : latest_ns;
}

const Worker* Arenas::find_holder(const Model& model) const {
    const Worker* found = nullptr;
    for_each_store(model, [&](const Worker& worker, const KindSpec&) {
        found = worker.is_stored(model) ? &worker : nullptr;
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

// Whether a store may drop a copy: a disk store not of a model that is short of copies, or for which a FETCH
// may be reading the copy. gives_up: it may be any but the last.
bool Arenas::may_drop(const Worker& worker, const Model& model, Ns before_ns, bool gives_up) const {
    const StoredCopy& copy = worker.store[model.slot];
    return copy.used_ns < before_ns && copy.again_ns <= state_.now && deciders_.memory->may_drop(model) &&
           !is_pinned(worker, model) &&
           (worker.tier != StoreTier::DISK || (gives_up ? keepers_.may_give_up(model) : keepers_.may_drop(model)));
}

// Finds copies whose bytes together are at least so many, those of the least worth first, in dropped_. False:
// there are none. Of a store of many models only DROP_SCAN_MAX are compared, other ones at each call; all of
// them with gives_up, as in may_drop().
bool Arenas::find_dropped(Worker& worker, std::uint64_t bytes, Ns before_ns, bool gives_up) {
    dropped_.clear();
    std::size_t count = worker.held.size(), scanned = gives_up ? count : std::min(count, DROP_SCAN_MAX);
    std::size_t first = scanned < count ? worker.held_cursor % count : 0;
    for (std::size_t step = 0; step < scanned; ++step) {
        Model& model = state_.at<Model>(worker.held[(first + step) % count]);
        if (may_drop(worker, model, before_ns, gives_up)) {
            const bool is_wanted = gives_up && !keepers_.may_drop(model);
            double worth = deciders_.memory->copy_worth(model);
            bool is_of_use = false;
            if (worker.tier == StoreTier::DISK) {
                worth /= std::max(model.copies, 1u);
                is_of_use = std::any_of(model.residencies.begin(), model.residencies.end(),
                                        [&](const Residency* other) { return other->arena->worker == &worker; });
            }
            dropped_.push_back({is_wanted, is_of_use, worth, worker.store[model.slot].used_ns, &model});
        }
    }
    worker.held_cursor = static_cast<std::uint32_t>(first + scanned);
    auto rank = [](const Dropped& dropped) {
        return std::make_tuple(dropped.is_wanted, dropped.is_of_use, dropped.worth, dropped.used_ns,
                               dropped.model->model_id);
    };
    std::sort(dropped_.begin(), dropped_.end(),
              [&](const Dropped& dropped, const Dropped& other) { return rank(dropped) < rank(other); });
    std::size_t enough = 0;
    std::uint64_t found = 0;
    while (found < bytes && enough < dropped_.size()) {
        found += worker.store[dropped_[enough++].model->slot].bytes;
    }
    dropped_.resize(enough);
    return found >= bytes;
}

bool Arenas::could_bring(const Worker& worker, const Model& model) const {
    const KindSpec* spec = model.spec(*worker.arenas.front());
    // A model that no device has is brought to one worker at a time; one that is on devices, to as many as
    // have it.
    std::uint32_t most = worker.tier == StoreTier::DISK && !model.residencies.empty() ? model.copies : 1;
    return worker.store_state(model) == StoreState::NONE && model.fetches < std::max(most, 1u) &&
           worker.fetching < FETCHES_MAX && !worker.draining && !model.draining && spec != nullptr &&
           worker.could_store(*spec) &&
           (worker.tier != StoreTier::DISK ||
            (keepers_.source(worker, model) != nullptr && again_ns(worker, model) <= state_.now));
}

bool Arenas::bring(Worker& worker, Model& model, Ns before_ns) {
    if (worker.is_stored(model)) {
        return true;
    }
    if (!could_bring(worker, model)) {
        return false;
    }
    const KindSpec& spec = *model.spec(*worker.arenas.front());
    std::uint64_t taken = worker.store_used + worker.promised + spec.stored_bytes;
    dropped_.clear();
    if (taken > worker.store_bytes && !find_dropped(worker, taken - worker.store_bytes, before_ns)) {
        return false;
    }
    drop_found(worker);
    send_fetch(worker, model, spec);
    return false;
}

void Arenas::prepared_otherwise(Worker& worker, Model& model) {
    KindSpec& spec = *model.spec(*worker.arenas.front());
    for (Flight* flight = worker.flights.front(); flight != nullptr; flight = worker.flights.next(flight)) {
        if (lane_of(flight->kind) == LaneKind::FETCH && flight->residency->model == &model) {
            flight->residency->spec = &spec;
        }
    }
    if (worker.store_state(model) != StoreState::NONE) {
        std::uint64_t& bytes = worker.store[model.slot].bytes;
        worker.store_used += spec.stored_bytes - bytes;
        bytes = spec.stored_bytes;
    }
}

void Arenas::trim(Worker& worker) {
    if (worker.store_used > worker.store_bytes) {
        // A model that was prepared here may take more than it was promised.
        find_dropped(worker, worker.store_used - worker.store_bytes, NEVER_NS, worker.promised > 0);
        drop_found(worker);
    }
}

void Arenas::make_room_for_new(Worker& worker) {
    std::uint64_t taken = worker.store_used + worker.promised;
    if (taken > worker.store_bytes && find_dropped(worker, taken - worker.store_bytes, NEVER_NS, true)) {
        drop_found(worker);
    }
}

std::uint64_t Arenas::room_for_new(const Worker& worker) const {
    std::uint64_t room = worker.store_free();
    for (std::uint32_t slot : worker.held) {
        room += may_drop(worker, state_.at<Model>(slot), NEVER_NS, true) ? worker.store[slot].bytes : 0;
    }
    return room;
}

void Arenas::drop_found(Worker& worker) {
    for (const Dropped& dropped : dropped_) {
        keepers_.lost(worker, *dropped.model);
        send_drop(worker, *dropped.model, 0);
    }
}

// Loads or fetches a model after a refusal that nearer weights would have avoided, if that drops no useful
// copy.
void Arenas::warm(Model& model) {
    if (model.fetches > 0 || model.draining || !model.residencies.empty()) {
        return;
    }
    find_loadable(model, warm_places_);
    for (const Place& place : warm_places_) {
        Arena& arena = *place.arena;
        Worker& worker = *arena.worker;
        if (worker.tier == StoreTier::NONE) {
            continue;
        }
        if (worker.is_stored(model)) {
            if (arena.loading == 0 && arena.pending.empty() && load_idly(arena, model, *place.spec)) {
                return;
            }
        } else if (worker.fetching == 0 && (worker.tier == StoreTier::DISK || find_holder(model) == nullptr)) {
            bring(worker, model, state_.now - WARM_IDLE_NS);
            if (model.fetches > 0) {
                return;
            }
        }
    }
}

// ----- acting ---------------------------------------------------------------------------------------

// A residency that represents the model in an action of the store: it is on no device.
Residency& Arenas::stand_in(Worker& worker, Model& model) {
    Arena& arena = *worker.arenas.front();
    Residency* residency = make_residency(arena, model, *model.spec(arena), 0);
    residency->load_id = state_.next_load();
    return *residency;
}

void Arenas::send_fetch(Worker& worker, Model& model, const KindSpec& spec) {
    must(worker.store_used + spec.stored_bytes <= worker.store_bytes, "a FETCH into a store without room");
    if (worker.store.size() <= model.slot) {
        worker.store.resize(state_.pool<Model>().slot_count());
    }
    StoredCopy& copy = worker.store[model.slot];
    Residency& residency = stand_in(worker, model);
    Ns expected = spec.fetch_expected_ns(worker.fetch_ns_per_byte()), planned = with_margin(expected);
    worker.fetch_free_ns = std::max(worker.fetch_free_ns, state_.now + worker.there_ns) + planned;
    worker.fetches_ns += planned;
    worker.store_used += spec.stored_bytes;
    ++worker.fetching;
    ++model.fetches;
    copy.state = StoreState::FETCHING;
    copy.bytes = spec.stored_bytes;
    copy.used_ns = state_.now;
    copy.ready_ns = worker.fetch_free_ns + worker.back_ns;
    Flight* flight = flights_.make(*residency.arena, ActionKind::FETCH, residency, nullptr, expected, planned);
    flights_.enter(*flight);
    Command& command = flights_.order(CommandKind::SEND_FETCH, *flight);
    command.earliest_ns = state_.now;
    command.latest_ns = state_.now + std::max(LOAD_WINDOW_NS, 10 * planned);
    command.expected_ns = expected;
    if (worker.tier == StoreTier::DISK) {
        ++state_.copying;
        keepers_.follow(model);
    }
}

void Arenas::send_drop(Worker& worker, Model& model, std::uint8_t attempts) {
    Residency& residency = stand_in(worker, model);
    residency.attempts = static_cast<std::uint8_t>(attempts + 1);
    ++model.drops;
    order_release(ActionKind::DROP, CommandKind::SEND_DROP, residency);
}

// ----- results --------------------------------------------------------------------------------------

void Arenas::end_store_action(Flight& flight) {
    Model& model = *flight.residency->model;
    --(flight.kind == ActionKind::FETCH ? model.fetches : model.drops);
    if (flight.kind == ActionKind::FETCH && flight.arena->worker->tier == StoreTier::DISK) {
        --state_.copying;
        state_.has_store_news = true;
        keepers_.follow(model);
    }
    state_.retire(flight.residency);
}

bool Arenas::fetch_ended(Flight& flight, Status status) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.arena->worker;
    StoredCopy& copy = worker.store[model.slot];
    --worker.fetching;
    worker.fetch_free_ns = state_.now - worker.back_ns + worker.fetches_ns;
    if (copy.state == StoreState::HELD) {
        return true;  // the worker has prepared the model meanwhile
    }
    if (status == Status::OK) {
        keepers_.gained(worker, model, copy.bytes);
        return true;
    }
    worker.store_used -= copy.bytes;
    copy.state = StoreState::NONE;
    if (worker.tier == StoreTier::DISK) {  // requests may still be served by the worker that has the model
        copy.again_ns = state_.now + std::min(FETCH_AGAIN_NS << copy.attempts, FETCH_AGAIN_MAX_NS);
        copy.attempts = std::min<std::uint8_t>(copy.attempts + 1, FETCH_DOUBLINGS_MAX);
        return true;
    }
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
    std::uint64_t bytes = flight.residency->spec->stored_bytes;
    end_store_action(flight);
    if (!is_refused(status) || worker.draining || worker.store_state(model) != StoreState::NONE) {
        return true;
    }
    bool is_of_use = worker.tier == StoreTier::DISK && !keepers_.may_spare(model);
    if (attempts < UNLOAD_ATTEMPTS_MAX && !is_of_use) {
        send_drop(worker, model, attempts);
        return false;
    }
    if (worker.tier == StoreTier::DISK && !model.draining) {
        keepers_.gained(worker, model, bytes);  // its disk has it still
        worker.store[model.slot].again_ns = state_.now + FETCH_AGAIN_MAX_NS;
    }
    return true;
}

bool Arenas::leave_stores(Model& model) {
    for (WorkerId id : model.workers) {
        Worker* worker = state_.find_worker(id);
        if (worker != nullptr && worker->tier == StoreTier::HOST && worker->store_state(model) == StoreState::HELD) {
            keepers_.lost(*worker, model);
            send_drop(*worker, model, 0);
        }
    }
    return model.fetches == 0 && model.drops == 0;
}

void Arenas::check_invariants() const {
    keepers_.check_invariants();
    const Worker* last = nullptr;
    for (const Arena* arena : state_.arenas) {
        const Worker& worker = *arena->worker;
        for (const Residency* residency = arena->resident.front(); residency != nullptr;
             residency = arena->resident.next(residency)) {
            // A disk may lose a model while it is being loaded.
            must(residency->state == ResidencyState::RESIDENT || worker.is_stored(*residency->model) ||
                     worker.tier == StoreTier::DISK,
                 "a LOAD of a model that is not in the store");
        }
        if (&worker == last || worker.tier == StoreTier::NONE) {
            continue;
        }
        last = &worker;
        std::uint64_t used = 0;
        std::size_t held = 0;
        for (const Model* model : state_.models) {
            StoreState state = worker.store_state(*model);
            used += state != StoreState::NONE ? worker.store[model->slot].bytes : 0;
            held += state == StoreState::HELD;
        }
        std::uint32_t fetching = 0;
        for (const Flight* flight = worker.flights.front(); flight != nullptr; flight = worker.flights.next(flight)) {
            fetching += flight->kind == ActionKind::FETCH;
        }
        must(used == worker.store_used && held == worker.held.size(), "a store is miscounted");
        must(used <= worker.store_bytes || worker.tier == StoreTier::DISK, "a store is over-committed");
        must(fetching == worker.fetching && fetching <= FETCHES_MAX, "a worker's FETCHes were miscounted");
    }
}

}  // namespace clockwork
