#include "scheduler/admission.h"

#include <algorithm>
#include <tuple>

namespace clockwork {

namespace {

// Residencies that a search looks ahead to load into the cache.
constexpr std::size_t PREFETCH = 4;

// The time to a deadline that admits an execution of this length: the inverse of the reserve in find_slot().
Ns with_reserve(Ns ns) { return std::min(ns * RESERVE_SHARE / (RESERVE_SHARE - 1) + 1, ns + RESERVE_NS); }

// The same where `room` of the time beyond two executions is left as well: the inverse of leaves_room().
Ns with_room(Ns ns, double room, Ns duration, bool keeps_reserve) {
    double needed = static_cast<double>(ns) - 2 * room * static_cast<double>(duration);
    double least = needed / (1 - room);
    if (keeps_reserve) {
        least = std::min(needed / (1 - room - 1.0 / RESERVE_SHARE), (needed + RESERVE_NS) / (1 - room));
    }
    return static_cast<Ns>(least) + 1;
}

// Whether a second request of this size may join a batch.
bool may_grow(const Plans& plans, const KindSpec& spec, Curve* curve, std::uint32_t size, Ns duration) {
    return curve != nullptr && 2 * size <= spec.batch_max &&
           (plans.planned_ns(spec, *curve, 2 * size) - duration) * JOIN_GAIN <= duration * (JOIN_GAIN - 1);
}

// Whether a pending load waits for work from this place of the plan on.
bool delays_loads(const Plan& plan, std::size_t index) {
    for (std::size_t place = index; place < plan.size(); ++place) {
        if (plan[place]->residency->doomed) {
            return true;
        }
    }
    return false;
}

// Whether a device has the model, or will have it, and is not to lose it.
bool is_promised_somewhere(const Model& model) {
    return std::any_of(model.residencies.begin(), model.residencies.end(),
                       [](const Residency* residency) { return is_promised(*residency); });
}

// The time of all pending loads of a worker, whose devices share the link.
Ns loads_waiting_ns(const Worker& worker) {
    Ns sum = 0;
    for (const Arena* arena : worker.arenas) {
        for (const Residency* residency : arena->pending) {
            sum += residency->spec->load_planned_ns();
        }
    }
    return sum;
}

}  // namespace

// ----- admission ----------------------------------------------------------------------------------

bool Admission::place(Pending& pending, bool is_new) {
    Model& model = *pending.model;
    ask_for_load(state_, model, !is_promised_somewhere(model));
    std::size_t count = model.residencies.size(), looked = 0;
    bool is_wide = model.servers > PLACE_SCAN_MAX;
    std::size_t from = is_wide ? model.place_cursor % count : 0;
    for (std::size_t ahead = from; is_wide && ahead < std::min(from + PREFETCH, count); ++ahead) {
        __builtin_prefetch(model.residencies[ahead]);  // far too many to lie in the cache
    }
    // While devices are busy, a batch that can grow is better than a batch of its own elsewhere.
    bool joins_first = is_busy();
    Slot best{NEVER_NS, 0, nullptr, 0}, slot{};
    Residency* chosen = nullptr;
    Executor* runs = nullptr;
    for_some_executors(model, PLACE_SCAN_MAX, [&](Residency& residency, Executor& executor, std::uint32_t next) {
        if (looked++ >= PLACE_SCAN_MAX && chosen != nullptr) {
            return false;
        }
        if (residency.doomed || executor.worker->draining || executor.number() + 1 == pending.failed_on ||
            !find_slot(executor, residency, pending, is_new, slot)) {
            return true;
        }
        bool is_better = chosen == nullptr || slot.finish_ns < best.finish_ns;
        if (joins_first && chosen != nullptr && (slot.batch != nullptr) != (best.batch != nullptr)) {
            is_better = slot.batch != nullptr;
        }
        if (is_better) {
            best = slot;
            chosen = &residency;
            runs = &executor;
            model.place_cursor = next;
            return !is_wide || joins_first || !executor.lane.empty() || !plans_.of(executor).empty() ||
                   residency.ready_ns != 0;
        }
        return true;
    });
    if (chosen == nullptr) {
        return place_cold(pending, is_new) || place_doomed(pending) || try_load(pending);
    }
    commit(pending, *runs, *chosen, best);
    return true;
}

// Calls function for every residency, or for a part of them in turn, where there are too many.
template <typename Function>
void Admission::for_some_residencies(const Model& model, Function&& function) const {
    std::size_t count = model.residencies.size();
    std::size_t first = count > PLACE_TRY_MAX ? model.place_cursor % count : 0;
    for (std::size_t looked = 0; looked < std::min(count, PLACE_TRY_MAX); ++looked) {
        function(*model.residencies[(first + looked) % count]);
    }
}

// Calls function(residency, executor, next) for executors of the model's arenas, at most PLACE_TRY_MAX, until
// it returns false. Where there are more than `wide`, it begins with the place_cursor-th; `next` is the
// number of the following executor.
template <typename Function>
void Admission::for_some_executors(const Model& model, std::size_t wide, Function&& function) const {
    std::size_t residencies = model.residencies.size(), count = model.servers;
    std::size_t at = count > wide ? model.place_cursor % count : 0, index = at;
    Executor* executor = nullptr;  // null: the first of the residency's arena
    if (count != residencies) {
        std::size_t skip = at;
        for (index = 0; index < residencies && skip >= model.residencies[index]->arena->executors.size(); ++index) {
            skip -= model.residencies[index]->arena->executors.size();
        }
        for (; skip > 0; --skip) {
            executor =
                executor != nullptr ? executor->after : model.residencies[index]->arena->executors.front()->after;
        }
    }
    for (std::size_t looked = 0; looked < std::min(count, PLACE_TRY_MAX); ++looked) {
        Residency& residency = *model.residencies[index];
        Executor& here = executor != nullptr ? *executor : *residency.arena->executors.front();
        at = at + 1 < count ? at + 1 : 0;
        executor = here.after;
        if (executor == nullptr) {
            index = index + 1 < residencies ? index + 1 : 0;
        }
        if (!function(residency, here, static_cast<std::uint32_t>(at))) {
            return;
        }
    }
}

// Finds an executor of the residency's arena that has a place for the request. The executor that ends its
// work first goes before the others. Null: none of PLACE_SCAN_MAX has a place.
Executor* Admission::find_executor(Residency& residency, const Pending& pending, bool is_new, Slot& slot) {
    Executor& soonest = plans_.soonest(*residency.arena);
    if (find_slot(soonest, residency, pending, is_new, slot)) {
        return &soonest;
    }
    std::size_t looked = 1;
    for (Executor* executor = residency.arena->executors.front(); executor != nullptr && looked < PLACE_SCAN_MAX;
         executor = executor->after) {
        if (executor != &soonest && executor->number() + 1 != pending.failed_on) {
            ++looked;
            if (find_slot(*executor, residency, pending, is_new, slot)) {
                return executor;
            }
        }
    }
    return nullptr;
}

Ns Admission::attempted_ns(const Executor& executor, const KindSpec& spec, std::uint32_t shape,
                           std::uint32_t rows) const {
    Ns alone = plans_.hoped_ns(spec, shape, rows);
    return executions_.beside_ns(executor, alone, with_neighbours(alone, spec.program->drag()));
}

double Admission::room_part(Executor& executor) const {
    Arena& arena = *executor.arena;
    double grown = std::max(plans_.surplus(arena), plans_.growth(arena));
    bool is_crowded = grown > 0 || is_asked_for(arena, state_.now, ROOM_ASKED) ||
                      (state_.now < arena.shares.contested_until_ns && is_busy());
    return is_crowded ? ROOM_LEAST + ROOM_PART * grown : 0;
}

// Whether a model alone surely asks for FLOOD_ASKED of a device that is asked for more than its time, and
// that is not divided yet.
bool Admission::floods(const Executor& executor, const Model& model) const {
    if (is_divided(*executor.arena, state_.now)) {
        return false;
    }
    ArrivalRate asked = model.asked;
    asked.advance(state_.now);
    double copies = std::max(model.servers, 1u);
    return asked.rate(-CROWD_SIGMAS) > FLOOD_ASKED * copies && plans_.surplus(*executor.arena) > 0;
}

// Whether a new batch that ends at `finish`, or `passing` later, leaves room for others to join batches.
bool Admission::leaves_room(Executor& executor, const Search& search, Ns finish, Ns passing) const {
    Ns slack = search.pending.deadline_ns - state_.now - passing - 2 * std::max(search.duration, search.inputs);
    auto keeps = [&](double part) {
        return finish + passing + static_cast<Ns>(part * static_cast<double>(slack)) <= search.limit;
    };
    return slack <= 0 || keeps(ROOM_LEAST + ROOM_PART) ||
           !(may_grow(plans_, *search.residency.spec, search.curve, search.pending.size, search.duration) ||
             floods(executor, *search.pending.model)) ||
           keeps(room_part(executor));
}

// Finds a place for the request in the plan of an executor, with every promise kept. False: there is none.
bool Admission::find_slot(Executor& executor, Residency& residency, const Pending& pending, bool is_new, Slot& slot) {
    Arena& arena = *executor.arena;
    const Plan& plan = plans_.of(executor);
    const KindSpec& spec = *residency.spec;
    std::uint32_t shape = pending.request.shape, size = pending.size;
    Ns deadline = pending.deadline_ns;
    Curve* curve = spec.program->curve(shape);
    Ns duration =
        curve != nullptr ? plans_.planned_ns(spec, *curve, size) : spec.program->bound_ns(state_.shapes, shape, size);
    if (duration == 0) {
        return false;
    }
    Ns limit = limit_ns(executor, deadline);
    Ns free = inputs_.begin_ns(executor, plans_.free_ns(executor), plan.empty() ? nullptr : plan[0], &pending);
    if (free + duration > limit) {
        // An idle device tries it at once, and no other request loses anything: see Edf::trim().
        slot = {free + duration, 0, nullptr, deadline};
        return is_idle(executor) && residency.state == ResidencyState::RESIDENT && pending.evidence == 0 &&
               free + attempted_ns(executor, spec, shape, size) <= limit;
    }
    bool is_beyond = is_beyond_share(residency, state_.now);
    Ns inputs = inputs_ns(arena, state_.now, pending.request.bytes);
    bool may_join = curve != nullptr && spec.batch_max > 1 && !residency.batches.empty() && !pending.alone;
    const Search search{executor, residency, pending, curve, duration, inputs, limit, free, is_beyond};
    if (may_join) {
        std::size_t count = residency.batches.size(), looked = 0;
        for (std::size_t back = 1; back <= std::min(count, JOIN_SCAN_MAX * PLACE_SCAN_MAX); ++back) {
            Batch* batch = residency.batches[count - back];
            if (batch->executor != &executor) {
                continue;  // of another executor of the arena
            }
            if (looked++ == JOIN_SCAN_MAX) {
                break;
            }
            if (join(search, batch, slot)) {
                return true;
            }
        }
    }
    if (!may_join && !plan.empty() && requests_.lowest_level() > pending.request.priority && go_ahead(search, slot)) {
        return true;
    }
    Ns key = is_beyond ? deadline + BEYOND_NS : deadline;
    std::size_t index = place_of(plan, residency, key);
    if (pending.evidence > 0) {  // a suspect goes last, if it can
        Ns last = std::max(plan.finish_ns(free, plan.size()), residency.ready_ns) + duration;
        index = last <= limit ? plan.size() : index;
    }
    // A request of a model within its share goes between batches of models beyond theirs, as early as
    // promises allow.
    bool goes_between = is_divided(arena, state_.now) && !is_beyond;
    bool owes = is_new && owes_room(pending);
    for (std::size_t tries = goes_between ? BETWEEN_MAX : 1; tries > 0; --tries) {
        Ns begin = std::max(plan.finish_ns(free, index), residency.ready_ns);
        if (inputs > 0) {
            begin = std::max(begin, inputs_.there_ns(executor, index, pending.request.bytes));
        }
        Ns finish = begin + duration;
        Ns latest = finish + (is_beyond ? passing_ns(executor, residency, begin, index) : 0);
        if (latest > limit || (owes && !leaves_room(executor, search, finish, latest - finish)) ||
            (inputs > 0 && !inputs_.keeps(executor, index, inputs))) {
            return false;
        }
        std::size_t late = goes_between ? first_owed_late(plan, latest, index) : plan.first_late(latest, index);
        if (late < plan.size()) {
            index = late + 1;
            continue;
        }
        if (!arena.pending.empty() && !keeps_loads(executor, free, index, duration)) {
            return false;
        }
        slot = {finish, index, nullptr, key};
        return true;
    }
    return false;
}

// Whether the executor has no action, no plan and no load that waits for pages.
bool Admission::is_idle(const Executor& executor) const {
    return executor.lane.empty() && plans_.of(executor).empty() && executor.arena->pending.empty();
}

// Finds whether the request can join a batch of its model, with every promise kept.
bool Admission::join(const Search& search, Batch* batch, Slot& slot) {
    Executor& executor = search.executor;
    const Plan& plan = plans_.of(executor);
    std::uint32_t total = batch->size + search.pending.size;
    if (total > search.residency.spec->batch_max || batch->shape != search.pending.request.shape ||
        batch->pendings.front()->alone) {
        return false;
    }
    Ns growth = plans_.planned_ns(*search.residency.spec, *search.curve, total) - batch->duration_ns;
    if (growth * JOIN_GAIN > search.duration * (JOIN_GAIN - 1)) {
        return false;
    }
    std::size_t index = plan.batches.back() == batch ? plan.size() : plan.index(batch) + 1;
    Ns finish = plan.finish_ns(search.free, index) + growth, longest = batch->duration_ns + growth;
    if (Ns more = inputs_ns(*executor.arena, state_.now, search.pending.request.bytes); more > 0) {
        Ns there = inputs_.there_ns(executor, index, search.pending.request.bytes);
        finish = std::max(finish, there + batch->duration_ns + growth);
        longest = std::max(longest, inputs_.takes_ns(*batch) + more);
        if (!inputs_.keeps(executor, index, more)) {
            return false;
        }
    }
    if (search.is_beyond && longest > executor.arena->shares.batch_max_ns) {
        return false;
    }
    Ns latest = finish;
    if (search.is_beyond) {
        latest += passing_ns(executor, search.residency, plan.finish_ns(search.free, index - 1), index - 1);
    }
    if (latest > std::min(search.limit, batch->limit_ns) || !plan.holds(latest, index)) {
        return false;
    }
    if (!executor.arena->pending.empty() && !keeps_loads(executor, search.free, index, growth)) {
        return false;
    }
    slot = {finish, index - 1, batch, 0};
    return true;
}

// Finds a place for a batch of its own before the first batch of a lower level that is still in time behind
// it. False: the request goes by its deadline alone.
bool Admission::go_ahead(const Search& search, Slot& slot) {
    const auto& [executor, residency, pending, curve, duration, inputs, limit, free, is_beyond] = search;
    const Plan& plan = plans_.of(executor);
    if (residency.state != ResidencyState::RESIDENT || pending.evidence > 0) {
        return false;
    }
    std::size_t index = is_beyond ? plan.place_of(BEYOND_NS) : 0;
    std::size_t tries = 0;
    for (; index < plan.size() && plan.keys[index] <= pending.deadline_ns + (is_beyond ? BEYOND_NS : 0); ++index) {
        if (plan[index]->level() <= pending.request.priority) {
            continue;
        }
        if (tries++ == AHEAD_MAX) {
            return false;
        }
        Ns begin = plan.finish_ns(free, index), finish = begin + duration;
        Ns latest = finish + (is_beyond ? passing_ns(executor, residency, begin, index) : 0);
        if (latest > limit) {
            return false;
        }
        if (std::size_t late = plan.first_late(latest, index); late < plan.size()) {
            index = late;
            continue;
        }
        if (!executor.arena->pending.empty() && !keeps_loads(executor, free, index, duration)) {
            return false;
        }
        slot = {finish, index, nullptr, plan.keys[index]};
        return true;
    }
    return false;
}

// Moves a planned request ahead, from batch to batch of its model: in each, it is exchanged with a request of
// a lower level that is still in time a batch later. A full batch is no obstacle, since otherwise a tight
// deadline that kept it small would cost the request its place.
void Admission::change_places(Pending& pending) {
    const Batch* batch = pending.batch;
    const Executor& executor = *batch->executor;
    const Plan& plan = plans_.of(executor);
    if (pending.alone || pending.evidence > 0 || batch->curve == nullptr) {
        return;
    }
    std::size_t last = plan.index(batch);
    earlier_.clear();
    Ns finish = executor.free_ns(state_.now);
    for (std::size_t place = 0; place <= last; ++place) {
        Batch* planned_batch = plan[place];
        finish = std::max(finish, planned_batch->residency->ready_ns) + planned_batch->duration_ns;
        if (planned_batch->residency == batch->residency && planned_batch->shape == batch->shape) {
            earlier_.emplace_back(planned_batch, finish + executor.worker->back_ns);
        }
    }
    for (std::size_t place = earlier_.size() - 1; place-- > 0;) {
        const auto& [later, answered_ns] = earlier_[place + 1];
        Ns answer = answered_ns +
                    plans_.planned_ns(*later->residency->spec, *later->curve, later->residency->spec->batch_max) -
                    later->duration_ns;
        Pending* found = nullptr;
        for (Pending* member : earlier_[place].first->pendings) {
            bool may_wait = member->request.priority > pending.request.priority && member->size == pending.size &&
                            member->deadline_ns >= answer && !member->alone && member->evidence == 0;
            if (may_wait && (found == nullptr || std::make_pair(member->request.priority, member->deadline_ns) >
                                                     std::make_pair(found->request.priority, found->deadline_ns))) {
                found = member;
            }
        }
        if (found == nullptr) {
            return;
        }
        plans_.exchange(pending, *found);
    }
}

// Plan::first_late() over the batches whose promises must be kept.
std::size_t Admission::first_owed_late(const Plan& plan, Ns time, std::size_t start) const {
    std::size_t late = start;
    for (; late < plan.size(); ++late) {
        const Batch* batch = plan[late];
        time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
        if (time > batch->limit_ns && !is_owed_nothing(batch->residency->share, state_.now)) {
            break;
        }
    }
    return late;
}

// The time by which a batch at this place of the plan may be delayed by requests of models within their
// shares; 0 for a batch that is sent at once.
Ns Admission::passing_ns(const Executor& executor, const Residency& residency, Ns begin, std::size_t index) const {
    // Inputs that are sent at once are not waited for.
    const Worker& worker = *executor.worker;
    Ns device =
        worker.inputs.byte_ns(state_.now) == 0
            ? begin
            : std::max({executor.free_ns(state_.now), residency.ready_ns, worker.inputs.free_ns() + worker.there_ns});
    bool is_next = index == 0 && device - worker.there_ns - ahead_ns(executor) <= state_.now;
    return is_next ? 0 : clockwork::passing_ns(residency, begin - state_.now);
}

// The index in the plan for a new batch: by its key, but behind the work that its load waits for.
std::size_t Admission::place_of(const Plan& plan, const Residency& residency, Ns key_ns) {
    std::size_t index = plan.place_of(key_ns);
    if (!residency.victims.empty()) {
        for (std::size_t place = plan.size(); place-- > index;) {
            const auto& victims = residency.victims;
            if (std::find(victims.begin(), victims.end(), plan[place]->residency) != victims.end()) {
                return place + 1;
            }
        }
    }
    return index;
}

// Whether loads that wait for victims are still in time if work is added before the plan's index. Work before
// the last batch of a doomed model delays all loads that wait for its pages.
bool Admission::keeps_loads(Executor& executor, Ns free, std::size_t index, Ns added) {
    const Plan& plan = plans_.of(executor);
    if (!delays_loads(plan, index)) {
        return true;
    }
    Arena& arena = *executor.arena;
    std::size_t late = plans_.late_count(*executor.worker) - plan.late_count(executor.free_ns(state_.now));
    put_off_loads(arena, added);
    // Added in front of the plan: at least as strict as at its place.
    bool holds = plan.holds(free + added, 0);
    holds = holds && plans_.late_count(*executor.worker) - plan.late_count(executor.free_ns(state_.now)) <= late;
    put_off_loads(arena, -added);
    return holds;
}

void Admission::put_off_loads(Arena& arena, Ns longer) {
    for (Residency* waiting : arena.pending) {
        waiting->clear_ns += waiting->clear_ns != 0 ? longer : 0;
    }
    arenas_.retime_loads(arena);
}

void Admission::commit(Pending& pending, Executor& executor, Residency& residency, const Slot& slot) {
    Arena& arena = *executor.arena;
    Plan& plan = plans_.of(executor);
    Batch* batch = slot.batch;
    Ns limit = pending.deadline_ns - executor.worker->back_ns, planned = plan.planned_ns;
    if (batch == nullptr) {
        std::uint32_t shape = pending.request.shape;
        Ns key = slot.index > 0 ? std::max(slot.key_ns, plan.keys[slot.index - 1]) : slot.key_ns;
        batch = executions_.make_batch(executor, residency, shape, residency.spec->program->curve(shape), key);
        batch->size = pending.size;
        batch->duration_ns = plans_.alone_ns(*residency.spec, shape, pending.size);
        batch->limit_ns = limit;
        plan.insert(slot.index, batch);
    } else {
        plans_.resize(batch, batch->size + pending.size);
        batch->limit_ns = std::min(batch->limit_ns, limit);
    }
    batch->pendings.push_back(&pending);
    pending.batch = batch;
    if (residency.batches.size() > 1 && requests_.lowest_level() > pending.request.priority) {
        change_places(pending);
    }
    if (!arena.pending.empty() && delays_loads(plan, slot.index + 1)) {
        put_off_loads(arena, plan.planned_ns - planned);
    }
    if (residency.state == ResidencyState::RESIDENT) {
        arena.resident.move_to_end(&residency);
    }
    state_.touch(executor);
    state_.set_timer(std::max(limit - batch->duration_ns, state_.now + 1), pending);
}

// Whether nothing waits for the worker's link, and a load that takes `load` would wait for no more than one
// as long.
bool Admission::is_link_free(const Worker& worker, Ns load) const {
    return worker.link_free_ns - worker.there_ns <= state_.now + load && !has_pending_loads(worker);
}

// Whether a load that comes behind those of other models leaves them pages, and the link.
bool Admission::may_load_behind(const Arena& arena, const KindSpec& spec) const {
    if (is_link_free(*arena.worker, spec.load_planned_ns())) {
        return true;
    }
    std::size_t pages = spec.page_count;
    for (const Residency* residency : arena.pending) {
        pages += residency->spec->page_count;
    }
    return arena.worker->arenas.size() == 1 && BEHIND_PAGES * pages <= arena.pages.page_count();
}

void Admission::accept_load(Residency& residency) {
    arenas_.accept_load(residency);
    plans_.busy().add_load(state_.now, residency.spec->load_planned_ns());
}

// Promises a request on a device onto which the model has to be loaded first.
bool Admission::place_cold(Pending& pending, bool is_new) {
    Model& model = *pending.model;
    Ns deadline = pending.deadline_ns;
    cold_.clear();
    bool is_behind = is_behind_on_links(state_, model);
    bool goes_first = !is_behind && are_links_divided(state_);  // before the loads of greedy models
    arenas_.find_loadable(model, loadable_, true);
    for (const Place& place : loadable_) {
        const Executor& executor = plans_.soonest(*place.arena);
        if (executor.number() + 1 == pending.failed_on || (is_behind && !may_load_behind(*place.arena, *place.spec))) {
            continue;
        }
        Ns load = place.spec->load_planned_ns(),
           alone = plans_.alone_ns(*place.spec, pending.request.shape, pending.size);
        const Worker& worker = *executor.worker;
        Ns start = std::max(worker.link_free_ns, state_.now + worker.there_ns);
        Ns free = executor.free_ns(state_.now);
        if (alone != 0 && std::max(start + load, free) + alone + worker.back_ns <= deadline) {
            // An evicted model has to be loaded again some day: an eviction counts as another load.
            Ns once_more = executor.arena->has_room(*place.spec) ? 0 : load;
            Ns begin = std::max(start + loads_waiting_ns(worker) + load, free + plans_.of(executor).planned_ns);
            bool goes_before = begin + alone + worker.back_ns > deadline;
            Ns time = (begin + once_more) / LOAD_ALIKE_NS;
            cold_.push_back({goes_before, time, executor.arena->pages.free_count(), place.arena, place.spec});
        }
    }
    auto better = [](const Cold& a, const Cold& b) {
        return std::make_tuple(a.goes_before, a.time, -std::int64_t{a.free_pages}, a.arena->number) <
               std::make_tuple(b.goes_before, b.time, -std::int64_t{b.free_pages}, b.arena->number);
    };
    std::size_t count = std::min(cold_.size(), LOAD_SCAN_MAX);
    std::partial_sort(cold_.begin(), cold_.begin() + static_cast<std::ptrdiff_t>(count), cold_.end(), better);
    for (std::size_t place = 0; place < count; ++place) {
        Arena& arena = *cold_[place].arena;
        const Worker& worker = *arena.worker;
        bool is_first = !has_pending_loads(worker);
        std::size_t late = is_first ? 0 : plans_.late_count(worker, goes_first);
        Residency* residency =
            arenas_.propose_load(arena, model, *cold_[place].spec, is_behind ? deadline + BEYOND_NS : deadline, true);
        if (residency == nullptr) {
            continue;
        }
        Slot slot{};
        if (is_behind && arena.pending.size() > 1) {  // room for loads of others, and for their executions
            Ns wait = residency->ready_ns - state_.now;
            residency->ready_ns += BEHIND_LOADS * cold_[place].spec->load_planned_ns() + wait;
        }
        Executor* executor = find_executor(*residency, pending, is_new, slot);
        if (executor != nullptr && (is_first || plans_.late_count(worker, goes_first) <= late)) {
            accept_load(*residency);
            commit(pending, *executor, *residency, slot);
            return true;
        }
        arenas_.drop_load(*residency);
    }
    return false;
}

// Tries a request on an idle device behind an idle link, where it is in time only if its model loads as fast
// as it did at best. By an estimate that stalls taught every request for it would be refused, and no load
// would ever be measured again.
bool Admission::try_load(Pending& pending) {
    Model& model = *pending.model;
    for (const Place& place : loadable_) {  // as place_cold() has found them
        Executor& executor = plans_.soonest(*place.arena);
        const Worker& worker = *executor.worker;
        Ns saved = place.spec->load_planned_ns() - place.spec->load_hoped_ns(state_.now);
        if (saved <= 0 || !is_idle(executor) || has_pending_loads(worker) || worker.link_free_ns > state_.now ||
            executor.number() + 1 == pending.failed_on) {
            continue;
        }
        Residency* residency = arenas_.propose_load(*place.arena, model, *place.spec, pending.deadline_ns, true);
        if (residency == nullptr) {
            continue;
        }
        residency->ready_ns -= saved;
        if (Slot slot{}; find_slot(executor, *residency, pending, false, slot)) {
            accept_load(*residency);
            commit(pending, executor, *residency, slot);
            return true;
        }
        arenas_.drop_load(*residency);
    }
    return false;
}

// Promises a request on a device that still has the model, or is loading it, while another load waits for its
// pages.
bool Admission::place_doomed(Pending& pending) {
    Model& model = *pending.model;
    for (std::size_t place = 0; place < std::min(model.residencies.size(), PLACE_SCAN_MAX); ++place) {
        Residency& residency = *model.residencies[place];
        if (!residency.doomed || residency.arena->worker->draining) {
            continue;
        }
        std::size_t looked = 0;
        for (Executor* executor = residency.arena->executors.front(); executor != nullptr && looked < LOAD_SCAN_MAX;
             executor = executor->after, ++looked) {
            Slot slot{};
            if (executor->number() + 1 != pending.failed_on && delay_loads(*executor, residency, pending, slot)) {
                commit(pending, *executor, residency, slot);
                return true;
            }
        }
    }
    return false;
}

// Finds a place in the plan of a doomed model's executor before the loads that wait for its pages, with every
// promise kept. These loads all carry promises, which bounds their delay.
bool Admission::delay_loads(Executor& executor, Residency& residency, const Pending& pending, Slot& slot) {
    Arena& arena = *executor.arena;
    const Plan& plan = plans_.of(executor);
    std::uint32_t shape = pending.request.shape, size = pending.size;
    Curve* curve = residency.spec->program->curve(shape);
    if (curve == nullptr || residency.state == ResidencyState::PENDING || pending.alone || pending.evidence > 0 ||
        is_beyond_share(residency, state_.now)) {
        return false;
    }
    auto waits = [&residency](const Residency* load) {
        return std::find(load->victims.begin(), load->victims.end(), &residency) != load->victims.end();
    };
    bool is_waited_for = false;
    for (const Residency* load : arena.pending) {
        if (waits(load) && load->batches.empty()) {
            return false;
        }
        is_waited_for |= waits(load);
    }
    if (!is_waited_for) {
        return false;  // a reservation has its pages next
    }
    Ns limit = limit_ns(executor, pending.deadline_ns), free = executor.free_ns(state_.now);
    Batch* batch = residency.batches.empty() ? nullptr : residency.batches.back();
    if (batch != nullptr && (batch->shape != shape || batch->executor != &executor || batch->pendings.front()->alone ||
                             batch->size + size > residency.spec->batch_max)) {
        batch = nullptr;
    }
    Ns added =
        batch == nullptr
            ? plans_.planned_ns(*residency.spec, *curve, size)
            : std::max<Ns>(plans_.planned_ns(*residency.spec, *curve, batch->size + size) - batch->duration_ns, 0);
    std::size_t index = batch == nullptr ? plan.place_of(pending.deadline_ns) : plan.index(batch);
    if (batch == nullptr) {
        auto first = std::find_if(plan.batches.begin(), plan.batches.end(),
                                  [&](const Batch* planned_batch) { return waits(planned_batch->residency); });
        index = std::min(index, static_cast<std::size_t>(first - plan.batches.begin()));
    }
    Ns begin = std::max(plan.finish_ns(free, index), residency.ready_ns);
    Ns finish = begin + (batch == nullptr ? 0 : batch->duration_ns) + added;
    if (finish > (batch == nullptr ? limit : std::min(limit, batch->limit_ns))) {
        return false;
    }
    cleared_.clear();
    std::size_t late = plans_.late_count(*executor.worker) - plan.late_count(free);
    bool delays_others = delays_loads(plan, index + (batch != nullptr));
    for (Residency* load : arena.pending) {
        cleared_.push_back(load->clear_ns);
        load->clear_ns += load->clear_ns != 0 && delays_others ? added : 0;
        load->clear_ns = waits(load) ? std::max(load->clear_ns, finish + executor.worker->back_ns) : load->clear_ns;
    }
    arenas_.retime_loads(arena);
    bool holds = plan.first_late(free, 0) >= index && plan.holds(finish, index + (batch != nullptr));
    holds = holds && plans_.late_count(*executor.worker) - plan.late_count(free) <= late;
    for (std::size_t place = 0; place < arena.pending.size(); ++place) {
        Residency& load = *arena.pending[place];
        Ns clear = waits(&load) ? std::max(cleared_[place], finish + executor.worker->back_ns) : cleared_[place];
        load.clear_ns = holds ? clear : cleared_[place];  // commit() adds the work of the others behind it
    }
    arenas_.retime_loads(arena);
    Ns key = index < plan.size() ? std::min(pending.deadline_ns, plan.keys[index]) : pending.deadline_ns;
    slot = {finish, index, batch, key};
    return holds;
}

// ----- refusal ------------------------------------------------------------------------------------

void Admission::note_asked(Pending& pending) {
    Model& model = *pending.model;
    std::uint32_t shape = pending.request.shape, rows = pending.size;
    AskedFor asked = asked_for(pending, state_.now);
    if (pending.batch != nullptr) {
        Residency& planned = *pending.batch->residency;
        ask_for(planned, state_.now, asked);
        note_crowd(planned, pending);
        return;
    }
    if (!is_promised_somewhere(model)) {
        contest_links(state_);
    }
    Residency* turn = model.next_asked();
    Ns alone = turn != nullptr ? turn->spec->alone_ns(shape, rows) : 0;
    if (alone == 0 || alone > asked.slack_ns) {
        return;  // no device could serve the request, so it counts as no demand
    }
    ask_for(*turn, state_.now, asked);
    note_crowd(*turn, pending);
    contest_devices(model, state_.now);
}

// Counts a request that was planned on, or refused by, the residency's device.
void Admission::note_crowd(const Residency& residency, const Pending& pending) {
    const ModelShare& share = residency.share;
    double alone = static_cast<double>(share.alone_ns);
    plans_.crowd(*residency.arena).add(state_.now, share.batched_ns * pending.size, alone);
}

void Admission::refuse_in_detail(Pending& pending) {
    Model& model = *pending.model;
    const Request& request = pending.request;
    std::uint32_t shape = request.shape, size = pending.size;
    Ns deadline = pending.deadline_ns;
    Ns least = NEVER_NS;
    Ns alone_least = NEVER_NS;  // on an idle device that holds the model
    for_some_residencies(model, [&](Residency& residency) {
        Ns duration = plans_.alone_ns(*residency.spec, shape, size),
           hoped = plans_.hoped_ns(*residency.spec, shape, size);
        const Worker& worker = *residency.arena->worker;
        if (duration == 0 || worker.draining) {
            return;
        }
        alone_least = std::min(alone_least, worker.there_ns + hoped + worker.back_ns);
        Executor& executor = plans_.soonest(*residency.arena);
        Ns at_ns = least_finish_ns(executor, residency, duration);
        if (residency.doomed) {
            at_ns += residency.spec->load_planned_ns();
        }
        least = std::min(least, least_deadline_ns(executor, *residency.spec, pending, duration, at_ns));
    });
    arenas_.find_loadable(model, loadable_);
    for (const Place& place : loadable_) {
        Ns duration = plans_.alone_ns(*place.spec, shape, size);
        if (duration == 0) {
            continue;
        }
        Executor& executor = plans_.soonest(*place.arena);
        const Worker& worker = *executor.worker;
        Ns hoped = plans_.hoped_ns(*place.spec, shape, size);
        alone_least = std::min(alone_least, worker.there_ns + hoped + worker.back_ns);
        Ns stored = state_.now + arenas_.fetch_wait_ns(worker, model);  // nothing is promised before
        Ns loaded = std::max(worker.link_free_ns, stored + worker.there_ns) + place.spec->load_planned_ns() +
                    worker.back_ns + worker.there_ns;
        if (loaded + duration + worker.back_ns >= least) {
            continue;  // the loads that wait, the plan and the reserve only add to it
        }
        loaded += loads_waiting_ns(worker);
        const Plan& plan = plans_.of(executor);
        Ns tail = plan.finish_ns(executor.free_ns(state_.now), plan.size());
        Ns at_ns = std::max(loaded, tail) + duration + worker.back_ns;
        least = std::min(least, least_deadline_ns(executor, *place.spec, pending, duration, at_ns));
    }
    bool unseen = idle_.is_unseen(model, shape);
    if (unseen) {
        idle_.remember_unseen(model, request);
    }
    Ns slo = deadline - request.arrived_ns;
    if (least >= NEVER_NS) {
        if (unseen) {
            requests_.refuse(pending, Reason::UNPROFILED, idle_.why_unmeasured(model, shape));
        } else {
            requests_.refuse(pending, Reason::DEADLINE, AnswerText::NO_PLACE);
        }
        return;
    }
    Ns feasible = std::max(least - request.arrived_ns, slo + 1);
    if (unseen) {
        requests_.refuse(pending, Reason::UNPROFILED, {AnswerText::BOUND_ABOVE_SLO, feasible, slo}, feasible);
    } else if (alone_least > slo) {
        idle_.doubt(pending);
        requests_.refuse_below_idle(pending, alone_least, slo);
    } else {
        requests_.refuse(pending, Reason::DEADLINE, {AnswerText::COULD_BE_ANSWERED, feasible, slo}, feasible,
                         std::max<Ns>(least - deadline, 1));
        if (model.residencies.empty()) {
            warm(model);
        }
    }
}

// The earliest deadline of a request that is answered at this time: with the reserve and the room.
Ns Admission::least_deadline_ns(Executor& executor, const KindSpec& spec, const Pending& pending, Ns duration,
                                Ns answered_ns) const {
    bool has_reserve = keeps_reserve(*executor.worker);
    Ns takes = answered_ns - state_.now, least = has_reserve ? with_reserve(takes) : takes;
    Curve* curve = spec.program->curve(pending.request.shape);
    Ns longest = std::max(duration, inputs_ns(*executor.arena, state_.now, pending.request.bytes));
    if (least > 2 * longest && owes_room(pending) &&
        (may_grow(plans_, spec, curve, pending.size, duration) || floods(executor, *pending.model))) {
        least = std::max(least, with_room(takes, room_part(executor), longest, has_reserve));
    }
    return state_.now + least;
}

// The time of the answer of a request that would be admitted now on an executor of the residency's arena.
Ns Admission::least_finish_ns(const Executor& executor, Residency& residency, Ns duration) const {
    const Plan& plan = plans_.of(executor);
    Ns back = executor.worker->back_ns, ready = residency.ready_ns;
    Ns finish = plan.finish_ns(executor.free_ns(state_.now), plan.size());
    std::size_t index = plan.size();
    if (is_beyond_share(residency, state_.now)) {
        return std::max(finish, ready) + passing_ns(executor, residency, std::max(finish, ready), index) + duration +
               back;
    }
    if (!plan.empty() && plan[index - 1]->limit_ns - finish >= duration) {
        std::vector<Ns> finishes{executor.free_ns(state_.now)};
        finishes.reserve(plan.size() + 1);
        for (const Batch* batch : plan.batches) {
            finishes.push_back(std::max(finishes.back(), batch->residency->ready_ns) + batch->duration_ns);
        }
        while (index > 0 && plan[index - 1]->limit_ns - finishes[index] >= duration) {
            --index;
        }
        finish = finishes[index];
    }
    Ns key = index > 0 ? plan.keys[index - 1] : 0;
    return std::max(std::max(finish, ready) + duration + back, key < BEYOND_NS ? key : 0);
}

// Loads a model whose absence cost a request its promise, for the next request.
void Admission::warm(Model& model) {
    if (is_behind_on_links(state_, model)) {
        return;
    }
    arenas_.find_loadable(model, loadable_, true);
    for (const Place& place : loadable_) {
        Arena& arena = *place.arena;
        if (arena.loading == 0 && arena.pending.empty() && arenas_.load_idly(arena, model, *place.spec)) {
            return;
        }
    }
    if (state_.tiered > 0) {
        arenas_.warm(model);
    }
}

// ----- displacement -------------------------------------------------------------------------------

bool Admission::displace(Pending& pending) {
    if (requests_.lowest_level() <= pending.request.priority) {
        return false;
    }
    Slot slot{};
    std::vector<std::pair<Residency*, Executor*>> places;
    for_some_executors(*pending.model, PLACE_TRY_MAX, [&](Residency& residency, Executor& executor, std::uint32_t) {
        places.emplace_back(&residency, &executor);
        return true;
    });
    for (auto [residency, executor] : places) {
        if (residency->doomed || residency->arena->worker->draining) {
            continue;
        }
        if (is_beyond_share(*residency, state_.now) && take_place(*executor, *residency, pending)) {
            return true;
        }
        find_displaced(*executor, *residency, pending, displaced_);
        if (displaced_.empty()) {
            continue;
        }
        answer_displaced(displaced_);
        if (find_slot(*executor, *residency, pending, false, slot)) {
            commit(pending, *executor, *residency, slot);
            return true;
        }
    }
    arenas_.find_loadable(*pending.model, loadable_, true);
    for (std::size_t place = 0; place < std::min(loadable_.size(), LOAD_SCAN_MAX); ++place) {
        Arena& arena = *loadable_[place].arena;
        Executor& executor = plans_.soonest(arena);
        Residency* proposed =
            arenas_.propose_load(arena, *pending.model, *loadable_[place].spec, pending.deadline_ns, true);
        if (proposed == nullptr) {
            continue;
        }
        find_displaced(executor, *proposed, pending, displaced_);
        if (!displaced_.empty()) {
            accept_load(*proposed);
            answer_displaced(displaced_);
            if (find_slot(executor, *proposed, pending, false, slot)) {
                commit(pending, executor, *proposed, slot);
                return true;
            }
        }
        if (std::find(arena.pending.begin(), arena.pending.end(), proposed) != arena.pending.end()) {
            arenas_.drop_load(*proposed);
        }
    }
    return false;
}

// Gives a request of a model beyond its share the place of a lower level of its model: no other request waits
// longer for that, while a place of its own would need room for the expected arrivals of others.
bool Admission::take_place(Executor& executor, Residency& residency, Pending& pending) {
    Plan& plan = plans_.of(executor);
    if (pending.alone || pending.evidence > 0) {
        return false;
    }
    Ns limit = limit_ns(executor, pending.deadline_ns), finish = executor.free_ns(state_.now);
    Pending* found = nullptr;
    for (const Batch* batch : plan.batches) {
        finish = std::max(finish, batch->residency->ready_ns) + batch->duration_ns;
        if (finish > limit) {
            break;
        }
        if (batch->residency != &residency || batch->shape != pending.request.shape) {
            continue;
        }
        for (Pending* member : batch->pendings) {
            bool may_go = member->request.priority > pending.request.priority && member->size == pending.size &&
                          !member->alone && member->evidence == 0;
            if (may_go && (found == nullptr || std::make_pair(member->request.priority, member->deadline_ns) >
                                                   std::make_pair(found->request.priority, found->deadline_ns))) {
                found = member;
            }
        }
    }
    if (found == nullptr) {
        return false;
    }
    plans_.give_place(*found, pending);
    requests_.fail(*found, Status::REFUSED, AnswerText::TOOK_ITS_PLACE, Reason::DISPLACED);
    change_places(pending);
    state_.touch(executor);
    Ns last = pending.deadline_ns - executor.worker->back_ns - pending.batch->duration_ns;
    state_.set_timer(std::max(last, state_.now + 1), pending);
    return true;
}

void Admission::answer_displaced(const std::vector<Pending*>& victims) {
    for (Pending* victim : victims) {
        requests_.fail(*victim, Status::REFUSED, AnswerText::TOOK_ITS_PLACE, Reason::DISPLACED);
    }
}

// Finds the requests whose displacement makes room for this one; none if there is no such set.
void Admission::find_displaced(const Executor& executor, Residency& residency, const Pending& pending,
                               std::vector<Pending*>& gone) const {
    gone.clear();
    const Plan& plan = plans_.of(executor);
    std::uint32_t level = pending.request.priority;
    Ns duration = plans_.alone_ns(*residency.spec, pending.request.shape, pending.size);
    Ns limit = limit_ns(executor, pending.deadline_ns), free = executor.free_ns(state_.now);
    if (duration == 0 || std::max(free, residency.ready_ns) + duration > limit) {
        return;
    }
    bool is_beyond = is_beyond_share(residency, state_.now);
    // lower requests, each with the index of its batch in the plan
    std::vector<std::pair<std::size_t, Pending*>> candidates;
    for (std::size_t place = 0; place < plan.size(); ++place) {
        if (is_beyond && !plan[place]->residency->share.is_beyond) {
            continue;  // a higher priority gives no claim beyond the share
        }
        for (Pending* pending : plan[place]->pendings) {
            if (pending->request.priority > level) {
                candidates.emplace_back(place, pending);
            }
        }
    }
    std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
        return std::make_tuple(a.second->request.priority, a.second->deadline_ns, a.first) >
               std::make_tuple(b.second->request.priority, b.second->deadline_ns, b.first);
    });
    std::size_t index = place_of(plan, residency, is_beyond ? pending.deadline_ns + BEYOND_NS : pending.deadline_ns);
    auto is_gone = [&](const Pending* pending) { return std::find(gone.begin(), gone.end(), pending) != gone.end(); };
    auto fits = [&] {
        Ns time = free;
        for (std::size_t place = 0;; ++place) {
            if (place == index) {
                Ns begin = std::max(time, residency.ready_ns);
                time = begin + duration;
                if (time + (is_beyond ? passing_ns(executor, residency, begin, index) : 0) > limit) {
                    return false;
                }
            }
            if (place == plan.size()) {
                return true;
            }
            const Batch* batch = plan[place];
            std::uint32_t size = batch->size;
            for (const Pending* pending : batch->pendings) {
                if (pending->request.priority > level && is_gone(pending)) {
                    size -= pending->size;
                }
            }
            if (size > 0) {
                Ns length = size == batch->size ? batch->duration_ns
                                                : plans_.alone_ns(*batch->residency->spec, batch->shape, size);
                time = std::max(time, batch->residency->ready_ns) + length;
                if (time > batch->limit_ns && place >= index) {
                    return false;
                }
            }
        }
    };
    bool found = false;
    for (std::size_t place = 0; place < std::min(candidates.size(), DISPLACE_MAX) && !found; ++place) {
        gone.push_back(candidates[place].second);
        found = fits();
    }
    if (!found) {
        gone.clear();
        return;
    }
    std::vector<Pending*> all = gone;
    for (Pending* victim : all) {  // requests whose removal is not needed stay, the highest last
        gone.erase(std::find(gone.begin(), gone.end(), victim));
        if (!fits()) {
            gone.push_back(victim);
        }
    }
}

}  // namespace clockwork
