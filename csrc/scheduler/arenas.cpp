#include "scheduler/arenas.h"

#include <algorithm>
#include <utility>

namespace clockwork {

namespace {

template <typename T>
void remove_from(std::vector<T*>& list, const T* entry) {
    list.erase(std::find(list.begin(), list.end(), entry));
}

template <typename T>
bool contains(const std::vector<T*>& list, const T* entry) {
    return std::find(list.begin(), list.end(), entry) != list.end();
}

}  // namespace

// ----- deciding -----------------------------------------------------------------------------------

Residency* Arenas::propose_load(Arena& arena, Model& model, KindSpec& spec, Ns key_ns, bool doom) {
    Residency* residency = make_residency(arena, model, spec, key_ns);
    if (!find_victims(*residency, doom)) {
        state_.pool<Residency>().give_back(residency);
        return nullptr;
    }
    enter_pending(*residency);
    model.enter(*residency);
    retime_loads(arena);
    return residency;
}

Residency* Arenas::make_residency(Arena& arena, Model& model, KindSpec& spec, Ns key_ns) {
    Residency* residency = state_.pool<Residency>().make();
    residency->model = &model;
    residency->arena = &arena;
    residency->spec = &spec;
    residency->key_ns = key_ns;
    return residency;
}

// Sends a load that has its pages, before the pending ones.
void Arenas::send_at_once(Residency& residency, bool hurries) {
    residency.model->enter(residency);
    residency.arena->pending.push_back(&residency);
    send_load(residency, hurries);
}

void Arenas::enter_pending(Residency& residency) {
    std::vector<Residency*>& pending = residency.arena->pending;
    auto place = std::upper_bound(pending.begin(), pending.end(), residency.key_ns,
                                  [](Ns key_ns, const Residency* resident) { return key_ns < resident->key_ns; });
    pending.insert(place, &residency);
}

bool Arenas::try_idle(Arena& arena, Taker taker, const std::vector<std::uint32_t>& runs,
                      std::vector<Residency*>& victims) {
    if (trial_.allocate(runs, trial_starts_)) {
        return true;
    }
    evictable_.clear();
    for (Residency* residency = arena.resident.front(); residency != nullptr;
         residency = arena.resident.next(residency)) {
        if (!residency->doomed && residency->is_idle() && deciders_.memory->may_evict(*residency) &&
            !contains(victims, residency) && may_take(taker, *residency)) {
            evictable_.push_back(residency);
        }
    }
    std::size_t ordered = 0;
    for (std::size_t place = 0; place < evictable_.size(); ++place) {
        if (place == ordered) {
            ordered = deciders_.memory->order_evictable(evictable_, ordered);
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

bool Arenas::find_room(Arena& arena, const Model& model, const KindSpec& spec, std::vector<Residency*>& victims) {
    victims.clear();
    trial_ = arena.pages;
    return try_idle(arena, {&model}, spec.runs, victims);
}

// Determines on a copy of the arena which models have to go for this load. False if the load is impossible.
bool Arenas::find_victims(Residency& residency, bool doom) {
    const Model& model = *residency.model;
    if (doom && are_links_divided(state_) && !is_kept(state_, model)) {
        // To wait for the pages of a busy model is better than to take those of an idle model that is kept.
        if (find_victims_for(residency, doom, {&model, true})) {
            return true;
        }
        residency.victims.clear();
        residency.clear_ns = 0;
    }
    return find_victims_for(residency, doom, {&model});
}

bool Arenas::find_victims_for(Residency& residency, bool doom, Taker taker) {
    Arena& arena = *residency.arena;
    const PageAllocator::Pages& runs = residency.spec->runs;
    trial_ = arena.pages;
    for (const Residency* other : arena.pending) {
        for (const Residency* victim : other->victims) {
            if (!victim->starts.empty() && victim->on_device) {
                trial_.free(victim->starts, victim->spec->runs);
            }
        }
        residency.clear_ns = std::max(residency.clear_ns, other->clear_ns);
    }
    for (const Residency* other : arena.pending) {
        // Loads sent since its planning may have fragmented its victims' pages: it will take more.
        if (!try_idle(arena, taker, other->spec->runs, residency.victims)) {
            return false;
        }
    }
    if (try_idle(arena, taker, runs, residency.victims)) {
        return true;
    }
    if (doom) {
        find_busy(arena, taker);
        for (const PredictedEnd& ending : endings_) {
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

void Arenas::accept_load(Residency& residency) {
    for (Residency* victim : residency.victims) {
        Arena::doom(*victim, true);
    }
    state_.touch_loads(*residency.arena);
}

void Arenas::drop_load(Residency& residency) {
    remove_from(residency.arena->pending, &residency);
    residency.model->leave(residency);
    absolve(*residency.arena, residency.victims);
    retime_loads(*residency.arena);
    gone(residency);
    state_.retire(&residency);
}

void Arenas::drop_loads(Arena& arena) {
    while (!arena.pending.empty()) {
        drop_load(*arena.pending.front());
    }
}

void Arenas::absolve(const Arena& arena, std::vector<Residency*>& victims) {
    absolved_ = victims;
    victims.clear();
    for (Residency* victim : absolved_) {
        bool is_doomed = std::any_of(arena.pending.begin(), arena.pending.end(),
                                     [&](const Residency* other) { return contains(other->victims, victim); });
        for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
            is_doomed = is_doomed || contains(executor->reservation.victims, victim);
        }
        if (victim->doomed && !is_doomed && arena.executors.size() > 1) {
            state_.touch(*victim->arena);  // any executor may serve the model again
        }
        Arena::doom(*victim, is_doomed);
    }
}

// Removes a residency that is gone from all lists of victims.
void Arenas::forget_victim(Arena& arena, Residency& residency) {
    for (Residency* other : arena.pending) {
        std::erase(other->victims, &residency);
    }
    for (Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        std::erase(executor->reservation.victims, &residency);
    }
}

// Lists the models that could be doomed, with the predicted end of their work, earliest first.
void Arenas::find_busy(Arena& arena, Taker taker) {
    endings_.clear();
    Ns free = arena.drained_ns(state_.now);
    for (Residency* residency = arena.resident.front(); residency != nullptr;
         residency = arena.resident.next(residency)) {
        if (!residency->doomed && !residency->is_idle() && may_take(taker, *residency)) {
            endings_.push_back({free, residency});
        }
    }
    deciders_.memory->count_planned(arena, endings_);
    for (PredictedEnd& ending : endings_) {
        ending.finish_ns = std::max(ending.finish_ns, ending.residency->ready_ns) + arena.worker->back_ns;
    }
    std::stable_sort(endings_.begin(), endings_.end(),
                     [](const PredictedEnd& a, const PredictedEnd& b) { return a.finish_ns < b.finish_ns; });
}

void Arenas::retime_loads(Arena& arena) {
    Worker& worker = *arena.worker;
    heads_.assign(worker.arenas.size(), 0);
    Ns time = std::max(worker.link_free_ns, state_.now + worker.there_ns);
    while (Residency* residency = next_load(worker, time - worker.there_ns)) {
        Ns start = std::max(time, residency->clear_ns + worker.there_ns);
        time = start + residency->spec->load_planned_ns();
        residency->ready_ns = time + worker.back_ns + worker.there_ns;
    }
}

// Takes the load that the link would begin next from the first ones left of each arena (heads_): the first by
// key of those whose pages are clear at this time, otherwise the one that is clear the soonest. Null: none.
Residency* Arenas::next_load(const Worker& worker, Ns time) {
    Residency* next = nullptr;
    std::size_t* taken = nullptr;
    for (std::size_t place = 0; place < worker.arenas.size(); ++place) {
        const std::vector<Residency*>& pending = worker.arenas[place]->pending;
        if (heads_[place] == pending.size()) {
            continue;
        }
        Residency* head = pending[heads_[place]];
        auto rank = [time](const Residency& load) {
            return std::make_pair(std::max(load.clear_ns, time), load.key_ns);
        };
        if (next == nullptr || rank(*head) < rank(*next)) {
            next = head;
            taken = &heads_[place];
        }
    }
    if (taken != nullptr) {
        ++*taken;
    }
    return next;
}

// Calls function for each place, until it returns false, in the order of Model::nearest(first). Returns the
// number from which the next call goes on.
template <typename Function>
std::size_t Arenas::for_each_loadable(const Model& model, std::size_t first, Function&& function) {
    ++mark_;
    for (const Residency* residency : model.residencies) {
        residency->arena->mark = mark_;
    }
    std::size_t count = model.workers.size();
    first = first < count ? first : 0;
    for (std::size_t looked = 0; looked < count; ++looked) {
        Worker& worker = *state_.find_worker(model.nearest(first, looked));
        if (worker.draining || !keepers_.is_in_reach(worker, model)) {
            continue;
        }
        for (Arena* arena : worker.arenas) {
            if (arena->mark == mark_) {
                continue;
            }
            KindSpec* spec = model.spec(*arena);
            if (spec != nullptr && spec->page_count <= arena->pages.page_count() && worker.could_store(*spec) &&
                !function(*arena, *spec)) {
                return (first + looked + 1) % count;
            }
        }
    }
    return first;
}

void Arenas::find_loadable(Model& model, std::vector<Place>& found, bool at_once) {
    found.clear();
    std::size_t next = for_each_loadable(model, model.load_cursor, [&](Arena& arena, KindSpec& spec) {
        if (at_once && !arena.worker->is_stored(model)) {
            return false;
        }
        found.push_back({&arena, &spec});
        return found.size() < LOADABLE_MAX;
    });
    model.load_cursor = static_cast<std::uint32_t>(next);
}

bool Arenas::fits_somewhere(Model& model) {
    bool any = false;
    for_each_loadable(model, 0, [&](Arena&, KindSpec&) {
        any = true;
        return false;
    });
    return any;
}

// ----- acting -------------------------------------------------------------------------------------

bool Arenas::takes_load(Arena& arena, std::uint32_t under_way) const {
    const Worker& worker = *arena.worker;
    if (under_way < arena.run_ahead) {
        return true;
    }
    if (under_way >= OUTSTANDING_MAX || is_load_overdue(worker)) {
        return false;  // the result of a load wakes the device
    }
    Ns due = worker.link_free_ns - worker.there_ns - worker.back_ns - FEED_NS;
    if (due <= state_.now) {
        return true;
    }
    arena.wake_at(due);
    return false;
}

// Whether the oldest load under way on the link should have ended. The predicted end of those behind it is
// worth nothing then, and loads sent now would wait in the worker for as long as it takes.
bool Arenas::is_load_overdue(const Worker& worker) const {
    for (const Flight* flight = worker.flights.front(); flight != nullptr;
         flight = decltype(worker.flights)::next(flight)) {
        if (flight->kind == ActionKind::LOAD) {
            return state_.now > worker.loads_from_ns + flight->duration_ns + worker.back_ns + FEED_NS;
        }
    }
    return false;
}

void Arenas::start_loads(Arena& arena) {
    Worker& worker = *arena.worker;
    while (true) {
        std::uint32_t under_way = 0;
        by_key_.clear();
        for (Arena* other_arena : worker.arenas) {
            under_way += other_arena->loading;
            if (!other_arena->pending.empty()) {
                by_key_.push_back(other_arena->pending.front());
            }
        }
        if (by_key_.empty() || !takes_load(arena, under_way)) {
            return;
        }
        std::stable_sort(by_key_.begin(), by_key_.end(),
                         [](const Residency* a, const Residency* b) { return a->key_ns < b->key_ns; });
        auto sent = std::find_if(by_key_.begin(), by_key_.end(), [&](Residency* first) { return start_load(*first); });
        if (sent == by_key_.end()) {
            return;
        }
    }
}

// Sends the first pending load of an arena, or drops it if no request waits for it any more. False: its pages
// are not free yet.
bool Arenas::start_load(Residency& residency) {
    Arena& arena = *residency.arena;
    if (!deciders_.memory->is_load_wanted(residency)) {
        drop_load(residency);
    } else if (make_room(arena, residency, NEVER_NS)) {
        send_load(residency);
    } else {
        doom_more(arena, residency);
        return false;
    }
    state_.touch_loads(arena);
    return true;
}

// Sends a load with its pages in residency.starts. hurries: the load is useless if it cannot start soon.
void Arenas::send_load(Residency& residency, bool hurries) {
    Arena& arena = *residency.arena;
    Worker& worker = *arena.worker;
    must(worker.is_stored(*residency.model), "loading a model that is not in the store");
    if (worker.tier != StoreTier::NONE) {
        worker.store[residency.model->slot].used_ns = state_.now;
    }
    remove_from(arena.pending, &residency);
    absolve(arena, residency.victims);
    arena.enter(&residency);
    ++arena.loading;
    Ns expected = residency.spec->load_expected_ns(), planned = with_margin(expected);
    Ns begins = std::max(worker.link_free_ns, state_.now + worker.there_ns);
    if (worker.loads_ns == 0) {
        worker.loads_from_ns = begins;
    }
    worker.link_free_ns = begins + planned;
    worker.loads_ns += planned;
    // when to check whether the load is stuck: see Recovery::watch_loads()
    arena.wake_at(worker.loads_due_ns() + STUCK_NS);
    residency.state = ResidencyState::LOADING;
    residency.load_id = state_.next_load();
    charge_load(state_, *residency.model, expected);
    residency.ready_ns = worker.link_free_ns + worker.back_ns + worker.there_ns;
    Flight* flight = flights_.make(arena, ActionKind::LOAD, residency, nullptr, expected, planned);
    flights_.enter(*flight);
    residency.action_id = flight->action_id;
    Command& command = flights_.order(CommandKind::SEND_LOAD, *flight);
    command.first = static_cast<std::uint32_t>(state_.out.runs.size());
    command.count = static_cast<std::uint32_t>(residency.starts.size());
    state_.out.runs.insert(state_.out.runs.end(), residency.starts.begin(), residency.starts.end());
    command.earliest_ns = state_.now;
    command.latest_ns = hurries ? state_.now + std::max(LOAD_WINDOW_NS, 10 * planned) : NEVER_NS;
    command.expected_ns = expected;
    retime_loads(arena);
}

void Arenas::load_over(Arena& arena, Model& model, KindSpec& spec, const std::vector<Residency*>& victims) {
    Residency* residency = make_residency(arena, model, spec, NEVER_NS);
    victims_ = victims;
    for (const Residency* residency : victims_) {
        arena.pages.free(residency->starts, residency->spec->runs);
    }
    must(arena.pages.allocate(spec.runs, residency->starts), "room that was found is not there");
    if (!victims_.empty()) {
        unload_victims(*residency);
    }
    send_at_once(*residency);
}

bool Arenas::load_now(Arena& arena, Model& model, KindSpec& spec, Ns before_ns) {
    if (!bring(*arena.worker, model)) {
        return false;
    }
    Residency* residency = make_residency(arena, model, spec, NEVER_NS);
    if (!make_room(arena, *residency, before_ns)) {
        state_.pool<Residency>().give_back(residency);
        return false;
    }
    send_at_once(*residency);
    return true;
}

bool Arenas::preload(Arena& arena, Model& model) {
    if (!bring(*arena.worker, model)) {
        return false;
    }
    Residency* residency = make_residency(arena, model, *model.spec(arena), NEVER_NS);
    if (!arena.pages.allocate(residency->spec->runs, residency->starts)) {
        state_.pool<Residency>().give_back(residency);
        return false;
    }
    send_at_once(*residency, false);
    return true;
}

bool Arenas::load_by_force(Arena& arena, Model& model, KindSpec& spec) {
    if (!bring(*arena.worker, model)) {
        return false;
    }
    Residency* residency = propose_load(arena, model, spec, state_.now, true);
    if (residency == nullptr) {
        return false;
    }
    accept_load(*residency);
    return true;
}

// Allocates pages for a residency, evicting as few idle models as suffice; false, and nothing done, if they
// do not. The residency's victims go first; before_ns: of other models, only those last used before then.
bool Arenas::make_room(Arena& arena, Residency& residency, Ns before_ns) {
    PageAllocator& pages = arena.pages;
    const PageAllocator::Pages& runs = residency.spec->runs;
    if (pages.allocate(runs, residency.starts)) {
        return true;
    }
    victims_.clear();
    bool fits = false;
    for_each_evictable(arena, residency, before_ns, [&](Residency* resident) {
        pages.free(resident->starts, resident->spec->runs);
        victims_.push_back(resident);
        fits = pages.allocate(runs, residency.starts);
        return !fits;
    });
    if (!fits) {
        for (Residency* residency : victims_) {
            pages.take(residency->starts, residency->spec->runs);
        }
        residency.starts.clear();
        return false;
    }
    unload_victims(residency);
    return true;
}

bool Arenas::make_way(Arena& arena, Reservation& reservation, bool dooms) {
    victims_.clear();
    trial_ = arena.pages;
    for (Residency* victim : reservation.victims) {
        if (victim->is_idle()) {
            victims_.push_back(victim);
            trial_.free(victim->starts, victim->spec->runs);
        }
    }
    if (!try_idle(arena, {}, reservation.runs, victims_)) {
        if (dooms) {
            doom_for(arena, reservation);
        }
        return false;
    }
    for (Residency* victim : victims_) {
        evict(*victim);
    }
    absolve(arena, reservation.victims);
    must(arena.pages.allocate(reservation.runs, reservation.starts), "room that was found is not there");
    return true;
}

// Dooms busy models for a reservation, the earliest ends first, after evicting idle models on trial_ did not
// suffice.
void Arenas::doom_for(Arena& arena, Reservation& reservation) {
    for (const Residency* victim : reservation.victims) {
        if (!victim->is_idle()) {
            trial_.free(victim->starts, victim->spec->runs);
        }
    }
    if (trial_.allocate(reservation.runs, trial_starts_)) {
        return;  // earlier victims will be idle after a while
    }
    find_busy(arena, {});
    for (Residency* residency = arena.resident.front(); residency != nullptr;
         residency = arena.resident.next(residency)) {
        if (!residency->doomed && residency->is_idle() && !deciders_.memory->may_evict(*residency)) {
            endings_.push_back({NEVER_NS, residency});  // its work waits for the work of other models
        }
    }
    bool fits = false;
    auto last = endings_.begin();
    while (!fits && last != endings_.end()) {
        trial_.free(last->residency->starts, last->residency->spec->runs);
        fits = trial_.allocate(reservation.runs, trial_starts_);
        ++last;
    }
    for (auto ending = endings_.begin(); fits && ending != last; ++ending) {
        Arena::doom(*ending->residency, true);
        reservation.victims.push_back(ending->residency);
    }
}

// Unloads the victims, whose pages are allocated already. Victims that turned out not to be needed stay, the
// most recently used first.
void Arenas::unload_victims(Residency& residency) {
    PageAllocator& pages = residency.arena->pages;
    const PageAllocator::Pages& runs = residency.spec->runs;
    for (std::size_t place = victims_.size() - 1; place-- > 0;) {
        Residency* resident = victims_[place];
        pages.free(residency.starts, runs);
        pages.take(resident->starts, resident->spec->runs);
        if (pages.allocate(runs, residency.starts)) {
            victims_.erase(victims_.begin() + static_cast<std::ptrdiff_t>(place));
        } else {
            pages.free(resident->starts, resident->spec->runs);
            must(pages.allocate(runs, residency.starts), "pages that fitted a moment ago do not fit");
        }
    }
    for (std::size_t place = 0; place < victims_.size(); ++place) {
        residency.arena->evicted_early += state_.now - victims_[place]->loaded_ns < EVICTED_EARLY_NS;
        send_unload(*victims_[place]);
    }
}

// Calls function for idle models in the order of eviction for a load, until it returns false: its chosen
// victims, then the least recently used.
template <typename Function>
void Arenas::for_each_evictable(Arena& arena, const Residency& load, Ns before_ns, Function&& function) {
    const std::vector<Residency*>& chosen = load.victims;
    for (Residency* residency : chosen) {
        if (residency->is_idle() && residency->on_device && !function(residency)) {
            return;
        }
    }
    evictable_.clear();
    for (Residency* resident = arena.resident.front(); resident != nullptr; resident = arena.resident.next(resident)) {
        if (resident->used_ns < before_ns && !resident->doomed && resident->is_idle() &&
            deciders_.memory->may_evict(*resident) && !contains(chosen, resident) &&
            may_take({load.model}, *resident)) {
            evictable_.push_back(resident);
        }
    }
    std::size_t ordered = 0;
    for (std::size_t place = 0; place < evictable_.size(); ++place) {
        if (place == ordered) {
            ordered = deciders_.memory->order_evictable(evictable_, ordered);
        }
        if (!function(evictable_[place])) {
            return;
        }
    }
    if (before_ns >= NEVER_NS) {  // the first load in line may take the victims of a later one
        for (Residency* other_residency = arena.resident.front(); other_residency != nullptr;
             other_residency = arena.resident.next(other_residency)) {
            if (other_residency->doomed && !contains(chosen, other_residency) && other_residency->is_idle() &&
                !function(other_residency)) {
                return;
            }
        }
    }
}

// Dooms further models for a load whose pages cannot be freed yet.
void Arenas::doom_more(Arena& arena, Residency& residency) {
    if (std::any_of(residency.victims.begin(), residency.victims.end(),
                    [](const Residency* victim) { return !victim->is_idle(); })) {
        return;  // the load's victims will be idle after a while
    }
    if (residency.batches.empty() && state_.now < residency.key_ns) {
        arena.wake_at(residency.key_ns);
        return;  // a background load dooms nothing before it has waited
    }
    // The pages are laid out otherwise than in the trial.
    find_busy(arena, {residency.model});
    if (!endings_.empty()) {
        Residency* victim = endings_.front().residency;
        Arena::doom(*victim, true);
        residency.victims.push_back(victim);
        residency.clear_ns = std::max(residency.clear_ns, endings_.front().finish_ns);
        retime_loads(arena);
    }
}

void Arenas::evict(Residency& residency) {
    residency.arena->pages.free(residency.starts, residency.spec->runs);
    state_.touch_loads(*residency.arena);
    send_unload(residency);
}

void Arenas::send_unload(Residency& residency) {
    Arena& arena = *residency.arena;
    must(residency.batches.empty(), "unloading a model that work is planned on");
    must(residency.flying == 0, "unloading a model that is running");
    if (residency.on_device) {
        arena.leave(&residency);
        residency.model->leave(residency);
        forget_victim(arena, residency);
        gone(residency);
    }
    ++residency.model->unloads;
    ++residency.attempts;
    order_release(ActionKind::UNLOAD, CommandKind::SEND_UNLOAD, residency);
}

void Arenas::order_release(ActionKind kind, CommandKind order, Residency& residency) {
    Flight* flight = flights_.make(*residency.arena, kind, residency, nullptr, UNLOAD_EXPECTED_NS, UNLOAD_EXPECTED_NS);
    flights_.enter(*flight);
    Command& command = flights_.order(order, *flight);
    command.earliest_ns = state_.now;
    command.latest_ns = NEVER_NS;
    command.expected_ns = UNLOAD_EXPECTED_NS;
}

void Arenas::forget(Residency& residency) {
    residency.model->leave(residency);
    residency.arena->leave(&residency);
    gone(residency);
    state_.retire(&residency);
}

void Arenas::gone(Residency& residency) {
    if (residency.state != ResidencyState::PENDING) {
        residency.arena->settle(residency, false);
    }
    deciders_.memory->gone_from(residency);
}

// ----- results ------------------------------------------------------------------------------------

void Arenas::load_ended(Flight& flight) {
    Worker& worker = *flight.arena->worker;
    --flight.arena->loading;
    worker.loads_from_ns = state_.now - worker.back_ns;
    worker.retime_link();
    flight.residency->is_stuck = false;
}

void Arenas::loaded(Residency& residency) {
    residency.state = ResidencyState::RESIDENT;
    residency.ready_ns = 0;
    residency.used_ns = residency.loaded_ns = state_.now;
    residency.attempts = 0;
    residency.arena->settle(residency, true);
}

Residency* Arenas::adopt(Arena& arena, Model& model, LoadId load_id, const std::vector<std::uint32_t>& starts) {
    KindSpec& spec = *model.spec(arena);
    bool is_there = std::any_of(model.residencies.begin(), model.residencies.end(),
                                [&](const Residency* residency) { return residency->arena == &arena; });
    if (is_there || !arena.pages.take_if_free(starts, spec.runs)) {
        return nullptr;
    }
    Residency* residency = make_residency(arena, model, spec, NEVER_NS);
    residency->starts = starts;
    residency->load_id = load_id;
    state_.note_load(load_id);
    model.enter(*residency);
    arena.enter(residency);
    loaded(*residency);
    state_.touch_loads(arena);
    retime_loads(arena);
    return residency;
}

bool Arenas::failed(Residency& residency) {
    Arena& arena = *residency.arena;
    arena.pages.free(residency.starts, residency.spec->runs);
    residency.starts.clear();
    arena.leave(&residency);
    forget_victim(arena, residency);
    ++residency.attempts;
    residency.state = ResidencyState::PENDING;
    if (residency.attempts < LOAD_ATTEMPTS_MAX && !arena.worker->draining && !residency.model->draining &&
        arena.worker->is_stored(*residency.model)) {
        Arena::doom(residency, false);
        enter_pending(residency);
        return true;
    }
    // Its batches still count as unready; the residency is removed with the last of them.
    arena.pending.push_back(&residency);
    return false;
}

bool Arenas::unload_ended(Flight& flight, Status status) {
    Residency& residency = *flight.residency;
    --residency.model->unloads;
    if (is_refused(status) && residency.attempts < UNLOAD_ATTEMPTS_MAX && !flight.arena->worker->draining) {
        send_unload(residency);
        return false;
    }
    state_.retire(&residency);
    return true;
}

// Unloads the model, so that both sides agree about its pages; an UNLOAD of an absent model is harmless.
void Arenas::lose(Residency& residency) {
    Arena::doom(residency, true);
    if (residency.flying == 0) {
        residency.arena->pages.free(residency.starts, residency.spec->runs);
        send_unload(residency);
    }
}

}  // namespace clockwork
