#include "scheduler/memory_adaptive.h"

#include <algorithm>
#include <utility>

namespace clockwork {

// ----- order ------------------------------------------------------------------------------------

void SlotHeap::set(std::uint32_t slot, Urgency urgency) {
    if (slot >= places_.size()) {
        places_.resize(slot + 1, NOWHERE);
        urgencies_.resize(slot + 1, {false, false, 0});
    }
    if (places_[slot] != NOWHERE && urgencies_[slot] == urgency) {
        return;
    }
    urgencies_[slot] = urgency;
    if (places_[slot] == NOWHERE) {
        heap_.push_back(slot);
        places_[slot] = static_cast<std::uint32_t>(heap_.size() - 1);
    }
    rise(places_[slot]);
    sink(places_[slot]);
}

void SlotHeap::restore_order() {
    for (std::size_t place = heap_.size() / 2; place > 0; --place) {
        sink(place - 1);
    }
}

void SlotHeap::erase(std::uint32_t slot) {
    if (!holds(slot)) {
        return;
    }
    std::size_t place = places_[slot];
    std::uint32_t last = heap_.back();
    heap_.pop_back();
    places_[slot] = NOWHERE;
    if (last != slot) {
        put(place, last);
        rise(place);
        sink(places_[last]);
    }
}

void SlotHeap::rise(std::size_t place) {
    std::uint32_t slot = heap_[place];
    while (place > 0 && is_above(slot, heap_[(place - 1) / 2])) {
        put(place, heap_[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(place, slot);
}

void SlotHeap::sink(std::size_t place) {
    std::uint32_t slot = heap_[place];
    while (true) {
        std::size_t child = 2 * place + 1;
        if (child >= heap_.size()) {
            break;
        }
        if (child + 1 < heap_.size() && is_above(heap_[child + 1], heap_[child])) {
            ++child;
        }
        if (!is_above(heap_[child], slot)) {
            break;
        }
        put(place, heap_[child]);
        place = child;
    }
    put(place, slot);
}

void SlotHeap::check_invariants() const {
    for (std::size_t place = 0; place < heap_.size(); ++place) {
        must(places_[heap_[place]] == place, "a slot is not where its heap says");
        must(place == 0 || is_above(heap_[(place - 1) / 2], heap_[place]), "a slot is below a less urgent one");
    }
    must(static_cast<std::size_t>(std::count_if(places_.begin(), places_.end(),
                                                [](std::uint32_t place) { return place != NOWHERE; })) == heap_.size(),
         "a slot is in no heap that has a place there");
}

// ----- what a load is worth -----------------------------------------------------------------------

AdaptiveMemory::Demand& AdaptiveMemory::demand(const Model& model) {
    if (model.slot >= demands_.size()) {
        demands_.resize(model.slot + 1);
    }
    return demands_[model.slot];
}

double AdaptiveMemory::standing(const Model& model, Ns load) const {
    const Demand* demand = known(model);
    if (demand == nullptr) {
        return 0;
    }
    double per_ns = worths_.rate(model);
    auto links = static_cast<Ns>(std::max<std::size_t>(model.workers.size(), 1));
    Ns wait = load * static_cast<Ns>(asking_.size()) / links;
    double lost = per_ns * static_cast<double>(load + wait);
    if (demand->slo_ns < load + wait) {
        lost += std::min(1.0, per_ns * static_cast<double>(STANDING_NS));
    }
    return lost;
}

bool AdaptiveMemory::asks(const Model& model, bool is_cold) {
    if (waiting(model) == 0 || is_cold) {
        return is_cold && waiting(model) > 0;
    }
    Demand& record = demand(model);
    if (record.is_everywhere || now() - record.pressed_ns > PRESSED_NS) {
        return false;
    }
    if (is_coming(model) && late(model) == 0) {
        return false;
    }
    return is_wanting(model);
}

// Whether another device could load the model. That costs less than a shortfall.
bool AdaptiveMemory::is_wanting(const Model& model) {
    Demand& record = demand(model);
    record.is_everywhere = record.is_everywhere || !placement_.is_loadable_somewhere(model);
    return !record.is_everywhere;
}

double AdaptiveMemory::benefit(const Model& model, const KindSpec& spec, Ns begin_ns, Ns load, Ns delays_ns,
                               bool is_cold) const {
    Ns ready = begin_ns + load + delays_ns;
    std::uint32_t in_time = 0;
    for (const auto& queue : queues_.of(model)) {
        if (queue->empty()) {
            continue;
        }
        Ns least = ready + spec.alone_ns(queue->shape, queue->front().size);
        std::uint32_t low = 0, high = queue->size();
        while (low < high) {
            std::uint32_t middle = low + (high - low) / 2;
            if ((*queue)[middle].deadline_ns < least) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        in_time += queue->size() - low;
    }
    return in_time + (is_cold ? standing(model, load) : 0);
}

// The last moment at which the fetch and load of the model, which take `hops`, may begin for its first
// request.
Ns AdaptiveMemory::latest_ns(const Model& model, const KindSpec& spec, Ns hops) const {
    Ns latest = NEVER_NS;
    for (const auto& queue : queues_.of(model)) {
        if (!queue->empty()) {
            Ns needs = hops + spec.alone_ns(queue->shape, queue->front().size);
            latest = std::min(latest, queue->front().deadline_ns - needs);
        }
    }
    return latest;
}

// The load's share of all links, as if they were a single faster link.
double AdaptiveMemory::shared_ns(const Model& model, Ns load) {
    auto links = static_cast<double>(std::max<std::size_t>(model.workers.size(), 1));
    return static_cast<double>(std::max<Ns>(load, 1)) / links;
}

// is_put_back: whether the last put_in_order() put the model's load back. A load that is too late for its
// first request counts as put back in any case.
Urgency AdaptiveMemory::urgency(const Model& model, bool is_cold, bool is_put_back) const {
    const KindSpec& spec = *model.specs.front();
    bool is_behind = is_behind_on_links(state_, model);
    Ns fetch = arenas_.fetch_wait_ns(model), load = spec.load_planned_ns();
    if (!is_put_back) {
        Ns latest = latest_ns(model, spec, fetch + load);
        if (latest > now()) {
            return {is_behind, false, -(static_cast<double>(latest) + shared_ns(model, load))};
        }
    }
    return {is_behind, true,
            benefit(model, spec, now() + fetch, load, 0, is_cold) / static_cast<double>(std::max<Ns>(load, 1))};
}

// Finds the loads to put back, as if all links were a single faster link that is free when the device's is
// (Moore and Hodgson's rule).
void AdaptiveMemory::put_in_order(const Arena& arena) {
    if (asking_.size() < 2 || now() < ordered_ns_ + ORDER_EVERY_NS) {
        return;
    }
    ordered_ns_ = now();
    wishes_.clear();
    silent_.clear();
    for (std::uint32_t slot : asking_.slots()) {
        const Model& model = state_.at<Model>(slot);
        bool cold = is_cold(model);
        if (asks(model, cold)) {
            wishes_.push_back({.slot = slot, .is_cold = cold, .is_behind = is_behind_on_links(state_, model)});
        } else {
            silent_.push_back(slot);
        }
    }
    for (std::uint32_t slot : silent_) {
        asking_.erase(slot);
    }
    by_due_.clear();
    for (Wish& wish : wishes_) {
        const Model& model = state_.at<Model>(wish.slot);
        const KindSpec& spec = *model.specs.front();
        Ns fetch = arenas_.fetch_wait_ns(model), load = spec.load_planned_ns();
        double gain = benefit(model, spec, now() + fetch, load, 0, wish.is_cold);
        wish.density = gain / static_cast<double>(std::max<Ns>(load, 1));
        wish.load_ns = shared_ns(model, load);
        Ns latest = latest_ns(model, spec, fetch + load);
        wish.due_ns = static_cast<double>(latest) + wish.load_ns;
        wish.is_put_back = latest <= now();
        if (!wish.is_put_back) {
            by_due_.push_back(
                {wish.is_behind, wish.due_ns, wish.slot, static_cast<std::uint32_t>(&wish - wishes_.data())});
        }
    }
    std::sort(by_due_.begin(), by_due_.end(), [](const Due& due, const Due& other) {
        if (due.is_behind != other.is_behind) {
            return other.is_behind;
        }
        return due.due_ns != other.due_ns ? due.due_ns < other.due_ns : due.slot < other.slot;
    });
    planned_.clear();
    double begin = static_cast<double>(std::max(now(), arena.worker->link_free_ns));
    for (std::uint32_t place = 0; place < by_due_.size(); ++place) {
        const Wish& wish = wishes_[by_due_[place].wish];
        if (place > 0 && by_due_[place].is_behind != by_due_[place - 1].is_behind) {
            planned_.clear();  // a load that is behind puts none of the others back
        }
        planned_.emplace_back(-wish.density, place);
        std::push_heap(planned_.begin(), planned_.end());
        begin += wish.load_ns;  // behind all planned loads
        for (bool is_planned = true; is_planned && begin > wish.due_ns;) {
            std::pop_heap(planned_.begin(), planned_.end());
            Wish& least = wishes_[by_due_[planned_.back().second].wish];
            planned_.pop_back();
            begin -= least.load_ns;
            least.is_put_back = true;
            is_planned = &least != &wish;  // otherwise all loads planned before this one were in time
        }
    }
    for (const Wish& wish : wishes_) {
        asking_.change(wish.slot, {wish.is_behind, wish.is_put_back, wish.is_put_back ? wish.density : -wish.due_ns});
    }
    asking_.restore_order();
}

// ----- who asks -----------------------------------------------------------------------------------

void AdaptiveMemory::waits(Pending& pending) {
    Model& model = *pending.model;
    Demand& record = demand(model);
    if (pending.attempts == 0) {
        record.slo_ns = pending.deadline_ns - pending.request.arrived_ns;
        worths_.arrived(model, pending.size, record.slo_ns);
    }
    bool cold = is_cold(model);
    if (pending.attempts == 0) {
        ask_for_load(state_, model, cold);
    }
    if (cold || asking_.holds(model.slot)) {
        ask(model);
    } else if (waits_long(model)) {
        record.pressed_ns = now();
        ask(model);
    } else if (!press_short(model) && model.specs.size() > 1 && now() - record.pressed_ns <= PRESSED_NS) {
        ask(model);  // requests left in vain: the kind of device that has the model may be too slow for them
    }
}

void AdaptiveMemory::press_displaced() {
    Placement::Held held(placement_);
    for (std::uint32_t slot : displaced_) {
        if (!asking_.holds(slot)) {
            press_short(state_.at<Model>(slot));
        }
    }
}

// Whether the model's first request has waited for longer than a load, and for 1/LONG_PART of its SLO.
bool AdaptiveMemory::waits_long(const Model& model) const {
    Ns load = model.residencies.front()->spec->load_planned_ns();
    for (const auto& queue : queues_.of(model)) {
        if (!queue->empty()) {
            const Request& first = queue->front().pending->request;
            Ns waited = now() - first.arrived_ns;
            if (waited > load && waited > (first.deadline_ns - first.arrived_ns) / LONG_PART) {
                return true;
            }
        }
    }
    return false;
}

bool AdaptiveMemory::could_copy(const Pending& pending) const {
    const Demand* record = known(*pending.model);
    return (record == nullptr || !record->is_everywhere) && shortfalls_.could_copy(pending);
}

bool AdaptiveMemory::is_served_elsewhere(const Pending& pending, const Executor& executor) const {
    return shortfalls_.is_served_by_another(pending, executor) || could_copy(pending);
}

// Has a model ask whose requests would be late although another device could load it. False: they would not.
bool AdaptiveMemory::press_short(Model& model) {
    Placement::Held held(placement_);
    if (!is_wanting(model) || late(model) == 0) {
        return false;
    }
    demand(model).pressed_ns = now();
    ask(model);
    return true;
}

void AdaptiveMemory::leaves(Pending& pending) {
    if (waiting(*pending.model) == 0) {
        asking_.erase(pending.model->slot);
    }
}

void AdaptiveMemory::sent(Flight& flight) {
    const Model& model = *flight.residency->model;
    shortfalls_.note_execution(flight.duration_ns);
    if (!asking_.empty() && waiting(model) == 0) {
        asking_.erase(model.slot);
    }
    displaced_.clear();
    const Arena& arena = *flight.executor->arena;
    queues_.for_each_model(arena, [&](std::uint32_t slot) {
        if (slot != model.slot) {
            displaced_.push_back(slot);
        }
        return displaced_.size() < DISPLACED_MAX;
    });
    for_each_coming(arena, [&](const Residency& coming) {
        if (waiting(*coming.model) > 0) {
            displaced_.push_back(coming.model->slot);
        }
    });
    press_displaced();
}

void AdaptiveMemory::turned_away(const Model& model) {
    if (std::none_of(model.residencies.begin(), model.residencies.end(),
                     [](const Residency* residency) { return is_usable(residency); })) {
        contest_links(state_);
    }
}

void AdaptiveMemory::press(Queue& queue) {
    Demand& record = demand(*queue.model);
    record.pressed_ns = now();
    if (!asking_.holds(queue.model->slot)) {
        ask(*queue.model);
    }
}

// Offers the model to an idle device, which takes it when it looks, in this step.
void AdaptiveMemory::found_all_busy(Model& model) {
    if (!asking_.empty() || model.draining || model.residencies.empty() || is_coming(model)) {
        return;
    }
    if (Arena* arena = placement_.find_spare(model); arena != nullptr) {
        offered_[arena->slot] = model.slot;
        state_.touch_loads(*arena);
    }
}

// Enters a model, or updates its urgency. A new one wakes the best device, as does one of which more requests
// would be late: the devices that looked before saw less use of a copy.
void AdaptiveMemory::ask(Model& model) {
    Placement::Held held(placement_);
    bool cold = is_cold(model);
    if (!asks(model, cold)) {
        asking_.erase(model.slot);
        return;
    }
    bool is_new = !asking_.holds(model.slot);
    bool is_put_back = !is_new && asking_.urgency(model.slot).is_put_back;
    asking_.set(model.slot, urgency(model, cold, is_put_back));
    std::uint32_t before = std::exchange(demand(model).late, cold ? 0 : late(model));
    if (is_new || demand(model).late > before) {
        Arena* arena =
            placement_.find_target(model, [&](const Arena& other_arena, const KindSpec& spec, const Score& least) {
                return score(other_arena, spec, model, least);
            });
        if (arena != nullptr) {
            again_ns_[arena->slot] = 0;
            state_.touch_loads(*arena);
        }
    }
}

// The time at which a device that has the model from `ready_ns` on could have served its first request.
// Results of at least enough_ns are lower bounds.
Ns AdaptiveMemory::served_ns(const Arena& arena, const KindSpec& spec, const Queue& queue, Ns ready_ns,
                             Ns enough_ns) const {
    const Waiting& first = queue.front();
    Ns free = arena.free_ns(now()), alone = spec.alone_ns(queue.shape, first.size);
    Ns served = std::max(ready_ns, free) + alone;
    if (served >= enough_ns) {
        return served;
    }
    Ns begin = placement_.begin_ns(arena, {first.deadline_ns, *queue.model}, enough_ns - alone);
    return std::max(served, begin + alone);
}

// The time at which the model could be used on the device, if it were the next to be loaded there.
Ns AdaptiveMemory::loaded_ns(const Arena& arena, const KindSpec& spec, const Model& model) const {
    const Worker& worker = *arena.worker;
    Ns begin = std::max(worker.link_free_ns, now() + arenas_.fetch_wait_ns(worker, model) + worker.there_ns);
    return begin + spec.load_planned_ns() + worker.back_ns + worker.there_ns;
}

// Scores a device by the time at which it would serve the model's first request; an eviction counts as
// another load, and of equal devices the one with fewest models wins, because all of them will be asked for
// again.
Score AdaptiveMemory::score(const Arena& arena, const KindSpec& spec, const Model& model, const Score& least) const {
    const Queue* first = queues_.first_due(model);
    if (first == nullptr || Placement::loading(arena) >= OUTSTANDING_MAX || queues_.is_too_slow(model, spec)) {
        return {-1};
    }
    Ns fetch = arenas_.fetch_wait_ns(*arena.worker, model);
    if (arena.worker->tier == StoreTier::DISK && fetch > first->front().deadline_ns - now()) {
        return {-1};  // others have it, or nobody has it in time
    }
    Ns room = arena.has_room(spec) ? 0 : spec.load_planned_ns();
    Ns enough = least.time_ns + SCORE_STEP_NS - room + now();
    Ns served = served_ns(arena, spec, *first, loaded_ns(arena, spec, model), enough) - now();
    Ns time = std::max<Ns>(served, 0) + room;
    return {time - time % SCORE_STEP_NS, arena.resident.size()};
}

// Whether a copy on this device would serve the first request sooner than the devices that have the model, or
// hardly later.
bool AdaptiveMemory::earns_copy(const Arena& arena, const KindSpec& spec, const Model& model) const {
    const Queue* first = queues_.first_due(model);
    if (first == nullptr) {
        return false;
    }
    Ns loaded = loaded_ns(arena, spec, model), later = spec.load_planned_ns() / COPY_PART;
    Ns least = loaded + spec.alone_ns(first->shape, first->front().size);  // here, if nothing waits
    placement_.begin_backlogs();
    if (asking_.size() * ASKING_PART <= model.workers.size() && shortfalls_.has_time(model)) {
        Shortfall short_of = shortfalls_.of(model);
        Ns latest = short_of.due_ns - arena.worker->back_ns;
        if (short_of.late > 0 && least <= latest &&
            (arena.is_idle() || served_ns(arena, spec, *first, loaded, latest + 1) <= latest)) {
            return true;
        }
    }
    if (is_coming(model)) {
        return false;
    }
    Ns soonest = NEVER_NS;
    for (const Residency* residency : model.residencies) {
        if (residency->arena->usable() && !residency->doomed) {
            soonest = std::min(soonest, served_ns(*residency->arena, *residency->spec, *first, 0, soonest));
            if (soonest <= least - later) {
                return false;
            }
        }
    }
    return soonest > served_ns(arena, spec, *first, loaded, soonest + later) - later;
}

// Whether the device would serve none of the model's requests in time, behind those that are due earlier.
bool AdaptiveMemory::is_late_on(const Arena& arena, const KindSpec& spec, const Model& model) const {
    placement_.begin_backlogs();
    Ns loaded = loaded_ns(arena, spec, model);
    return std::none_of(queues_.of(model).begin(), queues_.of(model).end(), [&](const auto& queue) {
        if (queue->empty()) {
            return false;
        }
        Ns latest = (*queue)[queue->size() - 1].deadline_ns - arena.worker->back_ns;
        return served_ns(arena, spec, *queue, loaded, latest + 1) <= latest;
    });
}

// Finds another device, of the first TARGET_SCAN_MAX, that could load the model and would serve a request of
// it in time; null: none.
Arena* AdaptiveMemory::in_time(const Arena& arena, const Model& model) const {
    std::size_t seen = 0;
    for (WorkerId worker_id : model.workers) {
        const Worker* worker = state_.find_worker(worker_id);
        if (worker == nullptr) {
            continue;  // the worker is leaving
        }
        for (Arena* other : worker->arenas) {
            const KindSpec* spec = other != &arena ? Placement::loadable(*other, model) : nullptr;
            if (spec != nullptr && now() >= again_ns_[other->slot] && !is_late_on(*other, *spec, model)) {
                return other;
            }
            if (++seen == TARGET_SCAN_MAX) {
                return nullptr;
            }
        }
    }
    return nullptr;
}

// A FETCH has ended: its model may be loaded, and the disk is free for another.
void AdaptiveMemory::store_changed(Worker& worker, Model& model) {
    for (Arena* arena : worker.arenas) {
        again_ns_[arena->slot] = 0;
    }
    renew(model);
}

void AdaptiveMemory::arrived_on(Residency& residency) {
    demand(*residency.model).denied_ns = 0;
    asking_.erase(residency.model->slot);
    if (waiting(*residency.model) > 0) {
        ask(*residency.model);
    }
}

void AdaptiveMemory::gone_from(Residency& residency) {
    demand(*residency.model).is_everywhere = false;
    if (!residency.model->draining || waiting(*residency.model) > 0) {
        renew(*residency.model);
    }
}

void AdaptiveMemory::renew(Model& model) {
    demand(model).is_everywhere = false;
    if (waiting(model) > 0) {
        asking_.erase(model.slot);
        ask(model);
    }
}

void AdaptiveMemory::model_gone(Model& model) {
    asking_.erase(model.slot);
    demand(model) = Demand();
    worths_.model_gone(model);
}

void AdaptiveMemory::joined(Arena& arena) {
    if (arena.slot >= again_ns_.size()) {
        again_ns_.resize(arena.slot + 1, 0);
        offered_.resize(arena.slot + 1, OFFERED_NOTHING);
    }
    again_ns_[arena.slot] = 0;
    offered_[arena.slot] = OFFERED_NOTHING;
}

// ----- what a device loads ------------------------------------------------------------------------

bool AdaptiveMemory::may_evict(const Residency& residency) const { return waiting(*residency.model) == 0; }

// Finds a device on the same link that has free pages for the model and would serve it sooner; null: none.
Arena* AdaptiveMemory::roomier(const Arena& arena, const KindSpec& spec, const Model& model) const {
    Arena* best = nullptr;
    if (arena.worker->arenas.size() < 2) {
        return best;
    }
    placement_.begin_backlogs();
    Score least = arena.has_room(spec) ? score(arena, spec, model, WORST_SCORE) : WORST_SCORE;
    for (Arena* other : arena.worker->arenas) {
        const KindSpec* there = Placement::loadable(*other, model);
        if (other == &arena || there == nullptr || !other->pending.empty() || now() < again_ns_[other->slot] ||
            !other->has_room(*there)) {
            continue;
        }
        Score here = score(*other, *there, model, least);
        if (here.time_ns >= 0 && here < least) {
            best = other;
            least = here;
        }
    }
    return best;
}

// Whether this worker passes over a model that its disk store would have in `fetch`: one of the first few
// workers that have a cold model could begin with its load before, or a copy here would be too late for the
// first request.
bool AdaptiveMemory::is_left_to_others(const Worker& worker, const Model& model, Ns fetch, bool is_cold) const {
    if (worker.tier != StoreTier::DISK || fetch == 0) {
        return false;
    }
    if (!is_cold) {
        const Queue* first = queues_.first_due(model);
        return first != nullptr && now() + fetch > first->front().deadline_ns;
    }
    for (std::size_t step = 0; step < std::min<std::size_t>(model.keepers, HOLDERS_MAX); ++step) {
        const Worker* holder = state_.find_worker(model.nearest(model.load_cursor, step));
        if (holder == nullptr || holder->draining || holder->link_free_ns > now() + fetch) {
            continue;
        }
        for (const Arena* other : holder->arenas) {
            if (Placement::loadable(*other, model) != nullptr && other->free_ns(now()) <= now() + fetch) {
                return true;
            }
        }
    }
    return false;
}

// Copies the offered model into free pages over an idle link. The link's time has a price, too, because other
// models may become cold.
void AdaptiveMemory::copy_freely(Arena& arena) {
    Model& model = state_.at<Model>(offered_[arena.slot]);
    offered_[arena.slot] = OFFERED_NOTHING;
    KindSpec* spec = Placement::loadable(arena, model);
    if (asking_.empty() && arena.pending.empty() && Placement::loading(arena) == 0 && spec != nullptr &&
        waiting(model) > 0 && !queues_.is_too_slow(model, *spec) &&
        worths_.rate(model) * static_cast<double>(spec->load_planned_ns()) >= SPARE_ASKED) {
        arenas_.load_now(arena, model, *spec, 0);
    }
}

void AdaptiveMemory::look(Arena& arena) {
    if (offered_[arena.slot] != OFFERED_NOTHING) {
        copy_freely(arena);
    }
    if (asking_.empty() || !arena.pending.empty()) {
        return;
    }
    if (now() < again_ns_[arena.slot]) {
        if (arena.is_idle()) {
            arena.wake_at(again_ns_[arena.slot]);  // the event that it would be woken for may not come
        }
        return;
    }
    Placement::Held held(placement_);
    put_in_order(arena);
    const Worker& worker = *arena.worker;
    Ns delays = worker.there_ns + 2 * worker.back_ns;
    left_.clear();
    aside_.clear();
    loaded_.clear();
    int scanned = 0, passed = 0;
    bool is_denied = false;
    while (!asking_.empty() && scanned < CANDIDATE_SCAN_MAX && passed < PASSED_OVER_MAX &&
           placement_.takes_load(arena)) {
        std::uint32_t slot = asking_.top();
        Model& model = state_.at<Model>(slot);
        bool cold = is_cold(model);
        if (!asks(model, cold)) {
            asking_.erase(slot);
            continue;
        }
        Urgency asked = asking_.urgency(slot);
        bool is_put_back = asked.is_put_back;
        asking_.erase(slot);
        KindSpec* spec = Placement::loadable(arena, model);
        if (spec != nullptr && queues_.is_too_slow(model, *spec)) {
            spec = nullptr;
        }
        Ns fetch = spec != nullptr ? arenas_.fetch_wait_ns(worker, model) : 0;
        if (spec != nullptr && is_left_to_others(worker, model, fetch, cold)) {
            ++passed;
            is_denied = true;
            left_.emplace_back(slot, asked);
            continue;
        }
        ++(spec != nullptr ? scanned : passed);
        if (spec != nullptr && (cold || earns_copy(arena, *spec, model))) {
            if (Arena* other = roomier(arena, *spec, model); other != nullptr) {
                state_.touch_loads(*other);
                aside_.emplace_back(slot, is_put_back);
                continue;
            }
            if (Arena* other = cold && is_late_on(arena, *spec, model) ? in_time(arena, model) : nullptr;
                other != nullptr) {
                state_.touch_loads(*other);
                is_denied = true;
                aside_.emplace_back(slot, is_put_back);
                continue;
            }
            if (fetch > 0 && cold && worker.tier == StoreTier::HOST && placement_.offer_to_holder(model)) {
                // The devices of the worker that holds the weights take it.
                aside_.emplace_back(slot, is_put_back);
                continue;
            }
            Ns begin = std::max(worker.link_free_ns, now() + fetch + worker.there_ns);
            if (benefit(model, *spec, begin, spec->load_planned_ns(), delays, cold) > 0 &&
                arenas_.bring(*arena.worker, model) && try_load(arena, model, *spec)) {
                loaded_.push_back(slot);
                continue;
            }
        }
        is_denied |= spec != nullptr;
        aside_.emplace_back(slot, is_put_back);
    }
    for (const auto& [slot, asked] : left_) {
        asking_.set(slot, asked);
    }
    for (auto [slot, is_put_back] : aside_) {
        const Model& model = state_.at<Model>(slot);
        asking_.set(slot, urgency(model, is_cold(model), is_put_back));
    }
    for (std::uint32_t slot : loaded_) {
        Model& model = state_.at<Model>(slot);
        if (waiting(model) > 0) {
            press_short(model);  // a single copy may not be enough
        }
    }
    if (is_denied) {
        again_ns_[arena.slot] = now() + LOOK_AGAIN_NS;
        if (arena.is_idle()) {
            arena.wake_at(again_ns_[arena.slot]);
        }
    }
}

bool AdaptiveMemory::try_load(Arena& arena, Model& model, KindSpec& spec) {
    Demand& record = demand(model);
    if (arenas_.find_room(arena, model, spec, victims_)) {
        arenas_.load_over(arena, model, spec, victims_);
        placement_.renew_backlogs();
        shortfalls_.note_load(spec);
        record.denied_ns = 0;
        return true;
    }
    if (record.denied_ns == 0) {
        record.denied_ns = now();
    } else if (now() - record.denied_ns > record.slo_ns / DENIED_PART && is_cold(model)) {
        record.denied_ns = 0;
        bool is_loading = arenas_.load_by_force(arena, model, spec);
        placement_.renew_backlogs();
        if (is_loading) {
            shortfalls_.note_load(spec);
            for (const Residency* victim : model.residencies.back()->victims) {
                ask(*victim->model);  // the victim may be cold now
            }
            return true;
        }
    }
    return false;
}

}  // namespace clockwork
