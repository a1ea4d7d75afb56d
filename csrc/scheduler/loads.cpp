#include "scheduler/loads.h"

#include <algorithm>

namespace clockwork {

namespace {

template <typename T>
void remove_from(std::vector<T*>& list, const T* one) {
    list.erase(std::find(list.begin(), list.end(), one));
}

template <typename T>
bool contains(const std::vector<T*>& list, const T* one) {
    return std::find(list.begin(), list.end(), one) != list.end();
}

}  // namespace

// ----- deciding -----------------------------------------------------------------------------------

Residency* Loads::propose_load(Device& device, Model& model, KindSpec& spec, Ns key_ns, bool doom) {
    Residency* residency = make_residency(device, model, spec, key_ns);
    if (!find_victims(*residency, doom)) {
        residency_pool_.give_back(residency);
        return nullptr;
    }
    enter_pending(*residency);
    model.residencies.push_back(residency);
    retime_loads(device);
    return residency;
}

Residency* Loads::make_residency(Device& device, Model& model, KindSpec& spec, Ns key_ns) {
    Residency* residency = residency_pool_.make();
    residency->model = &model;
    residency->device = &device;
    residency->spec = &spec;
    residency->key_ns = key_ns;
    return residency;
}

// It has its pages, and goes before what is pending.
void Loads::send_at_once(Residency& residency, bool hurries) {
    residency.model->residencies.push_back(&residency);
    residency.device->pending.push_back(&residency);
    send_load(residency, hurries);
}

void Loads::enter_pending(Residency& residency) {
    std::vector<Residency*>& pending = residency.device->pending;
    auto place = std::upper_bound(pending.begin(), pending.end(), residency.key_ns,
                                  [](Ns key_ns, const Residency* one) { return key_ns < one->key_ns; });
    pending.insert(place, &residency);
}

bool Loads::try_idle(Device& device, const std::vector<std::uint32_t>& runs, std::vector<Residency*>& victims) {
    if (trial_.allocate(runs, trial_starts_)) {
        return true;
    }
    evictable_.clear();
    for (Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        if (!one->doomed && one->is_idle() && may_evict(*one) && !contains(victims, one)) {
            evictable_.push_back(one);
        }
    }
    std::size_t ordered = 0;
    for (std::size_t place = 0; place < evictable_.size(); ++place) {
        if (place == ordered) {
            ordered = order_evictable(device, evictable_, ordered);
        }
        Residency* victim = evictable_[place];
        victims.push_back(victim);
        trial_.free(victim->starts, victim->spec->runs);
        if (trial_.allocate(runs, trial_starts_)) {
            return true;
        }
    }
    return false;
}

bool Loads::find_room(Device& device, const KindSpec& spec, std::vector<Residency*>& victims) {
    victims.clear();
    trial_ = device.pages;
    return try_idle(device, spec.runs, victims);
}

// Tries out, on a copy of the arena, who has to go for this load. False if it cannot be.
bool Loads::find_victims(Residency& residency, bool doom) {
    Device& device = *residency.device;
    const PageAllocator::Pages& runs = residency.spec->runs;
    trial_ = device.pages;
    for (const Residency* other : device.pending) {
        for (const Residency* victim : other->victims) {
            if (!victim->starts.empty() && victim->on_device) {
                trial_.free(victim->starts, victim->spec->runs);
            }
        }
        residency.clear_ns = std::max(residency.clear_ns, other->clear_ns);
    }
    for (const Residency* other : device.pending) {
        // Loads sent since it was tried out may have left its victims' pages in pieces: it will take more.
        if (!try_idle(device, other->spec->runs, residency.victims)) {
            return false;
        }
    }
    if (try_idle(device, runs, residency.victims)) {
        return true;
    }
    if (doom) {
        find_busy(device, endings_);
        for (const Ending& ending : endings_) {
            residency.victims.push_back(ending.residency);
            residency.clear_ns = std::max(residency.clear_ns, ending.finish_ns);
            trial_.free(ending.residency->starts, ending.residency->spec->runs);
            if (trial_.allocate(runs, trial_starts_)) {
                return true;
            }
        }
    }
    return false;
}

void Loads::accept_load(Residency& residency) {
    for (Residency* victim : residency.victims) {
        Device::doom(*victim, true);
    }
    touch(*residency.device);
}

void Loads::drop_load(Residency& residency) {
    remove_from(residency.device->pending, &residency);
    remove_from(residency.model->residencies, &residency);
    absolve(residency);
    retime_loads(*residency.device);
    residency_gone(residency);
    retire(&residency);
}

// Its victims are doomed no more, unless another pending load counts on them.
void Loads::absolve(Residency& residency) {
    for (Residency* victim : residency.victims) {
        Device::doom(*victim, std::any_of(residency.device->pending.begin(), residency.device->pending.end(),
                                          [&](const Residency* other) {
                                              return other != &residency && contains(other->victims, victim);
                                          }));
    }
    residency.victims.clear();
}

// One that is gone is nobody's victim any more.
void Loads::forget_victim(Device& device, Residency& residency) {
    for (Residency* other : device.pending) {
        std::erase(other->victims, &residency);
    }
}

void Loads::find_busy(Device& device, std::vector<Ending>& found) {
    found.clear();
    Ns finish = device.free_ns(now_);
    for (Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        if (!one->doomed && !one->is_idle()) {
            found.push_back({std::max(finish, one->ready_ns) + device.worker->back_ns, one});
        }
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Ending& a, const Ending& b) { return a.finish_ns < b.finish_ns; });
}

void Loads::retime_loads(Device& device) {
    if (device.pending.empty()) {
        return;
    }
    const Worker& worker = *device.worker;
    Ns time = std::max(worker.link_free_ns, now_ + worker.there_ns);
    for (Residency* residency : device.pending) {
        Ns start = std::max(time, residency->clear_ns + worker.there_ns);
        time = start + residency->spec->load_planned_ns();
        residency->ready_ns = time + worker.back_ns + worker.there_ns;
    }
}

// Until function returns false. Begins with the worker at this place among the model's, and returns the place of the
// worker behind the last that was looked at.
template <typename Function>
std::size_t Loads::for_each_loadable(const Model& model, std::size_t first, Function&& function) {
    ++mark_;
    for (const Residency* residency : model.residencies) {
        residency->device->mark = mark_;
    }
    std::size_t count = model.workers.size(), at = first < count ? first : 0;
    for (std::size_t looked = 0; looked < count; ++looked) {
        Worker& worker = *find_worker(model.workers[at]);
        at = at + 1 < count ? at + 1 : 0;
        if (worker.draining) {
            continue;
        }
        for (Device* device : worker.devices) {
            if (device->mark == mark_) {
                continue;
            }
            KindSpec* spec = model.spec(*device);
            if (spec != nullptr && spec->page_count <= device->pages.page_count() && worker.could_host(*spec) &&
                !function(*device, *spec)) {
                return at;
            }
        }
    }
    return first;
}

void Loads::find_loadable(Model& model, std::vector<Place>& found) {
    found.clear();
    std::size_t next = for_each_loadable(model, model.load_cursor, [&](Device& device, KindSpec& spec) {
        found.push_back({&device, &spec});
        return found.size() < LOADABLE_MAX;
    });
    model.load_cursor = static_cast<std::uint32_t>(next);
}

bool Loads::fits_somewhere(Model& model) {
    bool any = false;
    for_each_loadable(model, 0, [&](Device&, KindSpec&) {
        any = true;
        return false;
    });
    return any;
}

// ----- acting -------------------------------------------------------------------------------------

bool Loads::takes_load(Device& device, std::uint32_t under_way) const {
    const Worker& worker = *device.worker;
    Ns due = worker.link_free_ns - worker.there_ns - worker.back_ns - FEED_NS;
    if (under_way < device.run_ahead || (under_way < OUTSTANDING_MAX && due <= now_)) {
        return true;
    }
    if (under_way < OUTSTANDING_MAX) {
        device.wake_at(due);
    }
    return false;
}

void Loads::start_loads(Device& device) {
    while (!device.pending.empty()) {
        if (!takes_load(device, device.loading)) {
            return;
        }
        Residency& residency = *device.pending.front();
        if (!is_load_wanted(residency)) {
            drop_load(residency);  // whoever wanted it has gone
            continue;
        }
        if (!make_room(device, residency, NEVER_NS)) {
            doom_more(device, residency);
            return;
        }
        send_load(residency);
    }
}

// Its pages are in residency.starts. hurries: a load that cannot start soon is of no use.
void Loads::send_load(Residency& residency, bool hurries) {
    Device& device = *residency.device;
    Worker& worker = *device.worker;
    must(worker.is_hosted(*residency.model), "loading a model that is not in the host store");
    if (worker.host_bytes > 0) {
        worker.host[residency.model->slot].used_ns = now_;
    }
    remove_from(device.pending, &residency);
    absolve(residency);
    device.enter(&residency);
    ++device.loading;
    Ns expected = residency.spec->load_expected_ns(), planned = with_margin(expected);
    Ns begins = std::max(worker.link_free_ns, now_ + worker.there_ns);
    if (worker.loads_ns == 0) {
        worker.loads_from_ns = begins;
    }
    worker.link_free_ns = begins + planned;
    worker.loads_ns += planned;
    device.wake_at(worker.loads_due_ns() + STUCK_NS);  // see Service::watch_loads()
    residency.state = ResidencyState::LOADING;
    residency.load_id = ++load_id_;
    residency.ready_ns = worker.link_free_ns + worker.back_ns + worker.there_ns;
    Flight* flight = make_flight(device, FlightKind::LOAD, residency, nullptr, expected, planned);
    residency.action_id = flight->action_id;
    Command& command = order_action(CommandKind::SEND_LOAD, *flight);
    command.first = static_cast<std::uint32_t>(out.runs.size());
    command.count = static_cast<std::uint32_t>(residency.starts.size());
    out.runs.insert(out.runs.end(), residency.starts.begin(), residency.starts.end());
    command.earliest_ns = now_;
    command.latest_ns = hurries ? now_ + std::max(LOAD_WINDOW_NS, 10 * planned) : NEVER_NS;
    command.expected_ns = expected;
    retime_loads(device);
}

void Loads::load_over(Device& device, Model& model, KindSpec& spec, const std::vector<Residency*>& victims) {
    Residency* residency = make_residency(device, model, spec, NEVER_NS);
    victims_ = victims;
    for (const Residency* one : victims_) {
        device.pages.free(one->starts, one->spec->runs);
    }
    must(device.pages.allocate(spec.runs, residency->starts), "room that was found is not there");
    if (!victims_.empty()) {
        unload_victims(*residency);
    }
    send_at_once(*residency);
}

bool Loads::load_now(Device& device, Model& model, KindSpec& spec, Ns before_ns) {
    if (!bring(*device.worker, model)) {
        return false;
    }
    Residency* residency = make_residency(device, model, spec, NEVER_NS);
    if (!make_room(device, *residency, before_ns)) {
        residency_pool_.give_back(residency);
        return false;
    }
    send_at_once(*residency);
    return true;
}

bool Loads::preload(Ns now, WorkerId worker_id, std::int32_t device_index, ModelId model_id) {
    advance(now);
    Worker* worker = find_worker(worker_id);
    Model* model = find_model(model_id);
    Device* there = worker != nullptr ? worker->device(device_index) : nullptr;
    if (there == nullptr || model == nullptr || !worker->has(model) || worker->draining || model->draining) {
        return false;
    }
    Device& device = *there;
    for (const Residency* one : model->residencies) {
        if (one->device == &device) {
            return false;
        }
    }
    if (!bring(*worker, *model)) {
        return false;
    }
    Residency* residency = make_residency(device, *model, *model->spec(device), NEVER_NS);
    if (!device.pages.allocate(residency->spec->runs, residency->starts)) {
        residency_pool_.give_back(residency);
        return false;
    }
    send_at_once(*residency, false);
    return true;
}

// Pages for a residency, unloading as few idle models as it takes; false, and nothing done, if those do not suffice.
// Its victims go first; before_ns: of others, only those last used before then.
bool Loads::make_room(Device& device, Residency& residency, Ns before_ns) {
    PageAllocator& pages = device.pages;
    const PageAllocator::Pages& runs = residency.spec->runs;
    if (pages.allocate(runs, residency.starts)) {
        return true;
    }
    victims_.clear();
    bool fits = false;
    for_each_evictable(device, residency.victims, before_ns, [&](Residency* one) {
        pages.free(one->starts, one->spec->runs);
        victims_.push_back(one);
        fits = pages.allocate(runs, residency.starts);
        return !fits;
    });
    if (!fits) {
        for (Residency* one : victims_) {
            pages.take(one->starts, one->spec->runs);
        }
        residency.starts.clear();
        return false;
    }
    unload_victims(residency);
    return true;
}

// Of the victims, whose pages it has, those that turned out not to be needed stay, the most recently used first.
void Loads::unload_victims(Residency& residency) {
    PageAllocator& pages = residency.device->pages;
    const PageAllocator::Pages& runs = residency.spec->runs;
    for (std::size_t place = victims_.size() - 1; place-- > 0;) {
        Residency* one = victims_[place];
        pages.free(residency.starts, runs);
        pages.take(one->starts, one->spec->runs);
        if (pages.allocate(runs, residency.starts)) {
            victims_.erase(victims_.begin() + static_cast<std::ptrdiff_t>(place));
        } else {
            pages.free(one->starts, one->spec->runs);
            must(pages.allocate(runs, residency.starts), "pages that fitted a moment ago do not fit");
        }
    }
    for (std::size_t place = 0; place < victims_.size(); ++place) {
        residency.device->evicted_early += now_ - victims_[place]->loaded_ns < EVICTED_EARLY_NS;
        send_unload(*victims_[place]);
    }
}

// Idle models in the order in which they go: the chosen, then the least recently used. Until function returns false.
template <typename Function>
void Loads::for_each_evictable(Device& device, const std::vector<Residency*>& chosen, Ns before_ns,
                               Function&& function) {
    for (Residency* one : chosen) {
        if (one->is_idle() && one->on_device && !function(one)) {
            return;
        }
    }
    evictable_.clear();
    for (Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
        if (one->used_ns < before_ns && !one->doomed && one->is_idle() && may_evict(*one) && !contains(chosen, one)) {
            evictable_.push_back(one);
        }
    }
    std::size_t ordered = 0;
    for (std::size_t place = 0; place < evictable_.size(); ++place) {
        if (place == ordered) {
            ordered = order_evictable(device, evictable_, ordered);
        }
        if (!function(evictable_[place])) {
            return;
        }
    }
    if (before_ns >= NEVER_NS) {  // the first load in line takes, in need, what a later one counted on
        for (Residency* one = device.resident.front(); one != nullptr; one = device.resident.next(one)) {
            if (one->doomed && !contains(chosen, one) && one->is_idle() && !function(one)) {
                return;
            }
        }
    }
}

// Its room is not there yet: see to it that somebody is on the way out.
void Loads::doom_more(Device& device, Residency& residency) {
    if (std::any_of(residency.victims.begin(), residency.victims.end(),
                    [](const Residency* victim) { return !victim->is_idle(); })) {
        return;  // they will be idle in a while
    }
    if (residency.batches.empty() && now_ < residency.key_ns) {
        device.wake_at(residency.key_ns);
        return;  // a background load dooms nobody before it has waited
    }
    // The pages fell otherwise than they were tried out.
    find_busy(device, endings_);
    if (!endings_.empty()) {
        Residency* victim = endings_.front().residency;
        Device::doom(*victim, true);
        residency.victims.push_back(victim);
        residency.clear_ns = std::max(residency.clear_ns, endings_.front().finish_ns);
        retime_loads(device);
    }
}

void Loads::evict(Residency& residency) {
    residency.device->pages.free(residency.starts, residency.spec->runs);
    touch(*residency.device);
    send_unload(residency);
}

void Loads::send_unload(Residency& residency) {
    Device& device = *residency.device;
    must(residency.batches.empty(), "unloading a model that work is planned on");
    must(residency.flying == 0, "unloading a model that is running");
    if (residency.on_device) {
        device.leave(&residency);
        remove_from(residency.model->residencies, &residency);
        forget_victim(device, residency);
        residency_gone(residency);
    }
    ++residency.model->unloads;
    ++residency.attempts;
    Flight* flight =
        make_flight(device, FlightKind::UNLOAD, residency, nullptr, UNLOAD_EXPECTED_NS, UNLOAD_EXPECTED_NS);
    Command& command = order_action(CommandKind::SEND_UNLOAD, *flight);
    command.earliest_ns = now_;
    command.latest_ns = NEVER_NS;
    command.expected_ns = UNLOAD_EXPECTED_NS;
}

Command& Loads::order_action(CommandKind kind, const Flight& flight) {
    const Device& device = *flight.device;
    Command& command = order(kind);
    command.worker = device.worker->worker_id;
    command.device = static_cast<std::int32_t>(device.index);
    command.action_id = flight.action_id;
    command.model_id = flight.residency->model->model_id;
    command.load_id = flight.residency->load_id;
    return command;
}

PredictedLane& Loads::predicted_lane(Device& device, FlightKind kind) {
    return kind == FlightKind::LOAD    ? device.worker->predicted_loads
           : kind == FlightKind::FETCH ? device.worker->predicted_fetches
                                       : device.predicted;
}

Flight* Loads::make_flight(Device& device, FlightKind kind, Residency& residency, Batch* batch, Ns expected_ns,
                           Ns duration_ns) {
    Flight* flight = flight_pool_.make();
    flight->action_id = next_action();
    flight->kind = kind;
    flight->device = &device;
    flight->residency = &residency;
    flight->batch = batch;
    flight->expected_ns = expected_ns;
    flight->duration_ns = duration_ns;
    flight->sent_ns = now_;
    flight->there_ns = now_ + device.worker->there_ns;
    if (kind == FlightKind::INFER) {
        depart(*flight);
    }
    if (kind != FlightKind::UNLOAD && kind != FlightKind::DROP) {
        PredictedLane& lane = predicted_lane(device, kind);
        flight->predicted_end_ns = lane.sent(flight->there_ns, expected_ns);
    }
    flights_.set(flight->action_id, flight);
    device.worker->flights.push_back(flight);
    return flight;
}

void Loads::end_flight(Flight& flight) {
    flights_.erase(flight.action_id);
    flight.device->worker->flights.erase(&flight);
    if (flight.kind == FlightKind::LOAD) {
        flight.device->worker->loads_ns -= flight.duration_ns;
    } else if (flight.kind == FlightKind::FETCH) {
        flight.device->worker->fetches_ns -= flight.duration_ns;
    }
    retire(&flight);
}

void Loads::judge(const Flight& flight, const ActionResult& result) {
    if (flight.kind == FlightKind::UNLOAD || flight.kind == FlightKind::DROP) {
        return;
    }
    bool is_done = result.status == Status::OK;
    PredictedLane& lane = predicted_lane(*flight.device, flight.kind);
    bool is_sane = 0 < result.end_ns && result.end_ns <= now_;  // the clocks of two machines were compared
    Ns end = is_sane ? result.end_ns : now_ - flight.device->worker->back_ns;
    lane.ended(is_done ? end - flight.predicted_end_ns : -flight.expected_ns);
    if (!is_done || flight.kind == FlightKind::PROFILE || flight.sent_ns < judged_from_ns_ ||
        flight.sent_ns >= judged_until_ns_) {
        return;
    }
    Ns took = result.duration_ns != 0 ? result.duration_ns : result.end_ns - result.begin_ns;
    bool is_load = flight.kind == FlightKind::LOAD, is_fetch = flight.kind == FlightKind::FETCH;
    Errors& durations = is_load    ? predictions_.load_duration
                        : is_fetch ? predictions_.fetch_duration
                                   : predictions_.infer_duration;
    Errors& completions = is_load    ? predictions_.load_completion
                          : is_fetch ? predictions_.fetch_completion
                                     : predictions_.infer_completion;
    durations.add(flight.expected_ns - took);
    if (flight.kind == FlightKind::INFER && flight.expected_ns > 0) {
        predictions_.took(took, flight.expected_ns);
    }
    completions.add(flight.predicted_end_ns - end);
}

Flight* Loads::fly(Device& device, FlightKind kind, Residency& residency, Batch* batch, Ns expected_ns,
                   Ns duration_ns) {
    Flight* flight = make_flight(device, kind, residency, batch, expected_ns, duration_ns);
    device.lane_end_ns = std::max(device.free_ns(now_), flight->there_ns) + duration_ns;
    if (device.lane.empty()) {
        device.head_end_ns = device.lane_end_ns;
    }
    device.lane.push_back(flight);
    ++residency.flying;
    residency.used_ns = now_;
    device.resident.move_to_end(&residency);
    return flight;
}

// ----- results ------------------------------------------------------------------------------------

void Loads::load_answered(Flight& flight, const ActionResult& result) {
    Residency& residency = *flight.residency;
    Device& device = *flight.device;
    Model& model = *residency.model;
    Worker& worker = *device.worker;
    --device.loading;
    worker.loads_from_ns = now_ - worker.back_ns;
    worker.link_free_ns = worker.loads_from_ns + worker.loads_ns;
    residency.is_stuck = false;
    if (result.status == Status::OK) {
        Ns took = result.duration_ns != 0 ? result.duration_ns : std::max<Ns>(result.end_ns - result.begin_ns, 0);
        KindSpec& spec = *residency.spec;
        Ns own = spec.loads->measure(model.model_id, spec.load_ns, spec.page_count, took, now_);
        model.for_each_alike(spec, [own](KindSpec& one) { one.load_own_ns = own; });
        residency.state = ResidencyState::RESIDENT;
        residency.ready_ns = 0;
        residency.used_ns = residency.loaded_ns = now_;
        residency.attempts = 0;
        load_done(residency, took);
    } else {
        load_failed(residency, result);
    }
    retime_loads(device);
    if (model.draining) {
        check_removed(model);
    }
}

void Loads::load_failed(Residency& residency, const ActionResult& result) {
    Device& device = *residency.device;
    Model& model = *residency.model;
    device.pages.free(residency.starts, residency.spec->runs);
    residency.starts.clear();
    device.leave(&residency);
    forget_victim(device, residency);
    ++residency.attempts;
    residency.state = ResidencyState::PENDING;
    if (residency.attempts < LOAD_ATTEMPTS_MAX && !device.worker->draining && !model.draining) {
        Device::doom(residency, false);
        enter_pending(residency);
        return;
    }
    // Its batches are still counted as unready; the residency leaves with the last of them.
    Said said(Text::LOAD_FAILED, static_cast<Ns>(result.status), 0, result.text);
    device.pending.push_back(&residency);
    load_given_up(residency, said);
    if (contains(device.pending, &residency)) {
        drop_load(residency);
    }
    if (model.residencies.empty()) {
        while (Pending* pending = model.background.front()) {
            fail(*pending, Status::UNAVAILABLE, said);
        }
    }
}

void Loads::unload_answered(Flight& flight, const ActionResult& result) {
    Residency& residency = *flight.residency;
    --residency.model->unloads;
    bool refused = result.status == Status::IN_USE || result.status == Status::DEVICE_ERROR ||
                   result.status == Status::ACTION_CANCELLED || result.status == Status::TOO_LATE;
    if (refused && residency.attempts < UNLOAD_ATTEMPTS_MAX && !flight.device->worker->draining) {
        send_unload(residency);
        return;
    }
    retire(&residency);
    if (residency.model->draining) {
        check_removed(*residency.model);
    }
}

// The UNLOAD makes sure that both sides agree about its pages; it does no harm.
void Loads::lose_residency(Residency& residency, std::vector<Pending*>& waiting) {
    evacuate(residency, waiting);
    Device::doom(residency, true);
    if (residency.flying == 0) {
        residency.device->pages.free(residency.starts, residency.spec->runs);
        send_unload(residency);
    }
}

// ----- removal ------------------------------------------------------------------------------------

void Loads::check_removed(Model& model) {
    if (model.live > 0 || model.gone) {
        return;
    }
    std::vector<Residency*> all = model.residencies;
    for (Residency* residency : all) {
        if (residency->state == ResidencyState::PENDING) {
            drop_load(*residency);
        } else if (residency->is_idle()) {
            evict(*residency);
        }
    }
    if (!model.residencies.empty() || model.unloads > 0 || !leave_hosts(model)) {
        return;
    }
    model.gone = true;
    by_model_.erase(static_cast<std::uint64_t>(model.model_id));
    remove_from(models_, &model);
    for (WorkerId id : model.workers) {
        Worker& worker = *find_worker(id);
        worker.variants[model.slot] = 0;
        if (model.slot < worker.host.size()) {
            worker.host[model.slot] = HostCopy();
        }
    }
    for (KindSpec* spec : model.specs) {
        spec->loads->forget(model.model_id);
        spec->fetches->forget(model.model_id);
        retire(spec);
    }
    model_gone(model);
    retire(&model);
    order(CommandKind::MODEL_GONE).model_id = model.model_id;
}

}  // namespace clockwork
