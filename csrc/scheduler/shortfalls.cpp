#include "scheduler/shortfalls.h"

#include <algorithm>
#include <functional>

namespace clockwork {

// How long requests of other models keep an arena's executors, beyond the actions that these were sent. A
// lower bound, if the executor that is free first would be free at enough_ns or later.
Ns Shortfalls::wait_ns(const Arena& arena, const Placement::Ahead& ahead, Ns enough_ns) const {
    return placement_.begin_ns(arena, ahead, enough_ns) -
           std::max(arena.free_ns(state_.now), state_.now + arena.worker->there_ns);
}

// Takes the executor off the heap that could begin first. The waits of most arenas are never computed: their
// executors are free later already without them.
Shortfalls::Server& Shortfalls::pop_soonest(const Placement::Ahead& ahead) const {
    while (true) {
        std::pop_heap(servers_.begin(), servers_.end(), std::greater<>());
        Server& server = servers_.back();
        if (server.is_counted) {
            return server;
        }
        const Residency& residency = *server.residency;
        Ns& wait = waits_[server.arena];
        if (wait == NEVER_NS) {
            wait = wait_ns(*residency.arena, ahead, NEVER_NS);
        }
        server.is_counted = true;
        server.free_ns += wait;
        if (residency.state != ResidencyState::RESIDENT) {
            server.free_ns = std::max(server.free_ns, residency.ready_ns);  // others are served meanwhile
        }
        std::push_heap(servers_.begin(), servers_.end(), std::greater<>());
    }
}

Shortfall Shortfalls::of(const Model& model) const {
    placement_.begin_backlogs();
    if (known_.size() <= model.slot) {
        known_.resize(model.slot + 1);
    }
    Known& known = known_[model.slot];
    if (known.series != placement_.series()) {
        known = {placement_.series(), compute(model, nullptr)};
    }
    return known.shortfall;
}

// Has the waiting requests of a model served in the order of their deadlines by the devices that have or load
// it, each by the first to be free. left_out: null: none.
Shortfall Shortfalls::compute(const Model& model, const Executor* left_out) const {
    Shortfall found;
    const Queue* first = queues_.first_due(model);
    if (first == nullptr) {
        return found;
    }
    servers_.clear();
    waits_.clear();
    for (const Residency* residency : model.residencies) {
        if (!is_promised(*residency) || queues_.is_too_slow(model, *residency->spec)) {
            continue;
        }
        const Arena& arena = *residency->arena;
        Ns soonest = state_.now + arena.worker->there_ns;
        waits_.push_back(NEVER_NS);
        for (const Executor* executor = arena.executors.front();
             executor != nullptr && servers_.size() < SHORT_DEVICES_MAX; executor = executor->after) {
            if (executor != left_out) {
                servers_.push_back({std::max(executor->free_ns(state_.now), soonest),
                                    static_cast<std::uint32_t>(servers_.size()),
                                    static_cast<std::uint32_t>(waits_.size() - 1), false, residency});
            }
        }
    }
    if (servers_.empty()) {
        return found;
    }
    auto later = std::greater<>();
    std::make_heap(servers_.begin(), servers_.end(), later);
    const Placement::Ahead ahead{first->front().deadline_ns, model};
    std::uint32_t seen = 0;
    for (const auto& queue : queues_.of(model)) {
        std::uint32_t rows = 0;  // of the batch that the last server is given
        Ns took = 0, batch_due = 0;
        auto give = [&] {
            servers_.back().free_ns += took;
            std::push_heap(servers_.begin(), servers_.end(), later);
            rows = 0;
            took = 0;
        };
        for (std::uint32_t place = 0; place < queue->size() && seen < SHORT_REQUESTS_MAX; ++place, ++seen) {
            const Waiting& waiting = (*queue)[place];
            if (rows > 0) {
                const Server& server = servers_.back();
                const KindSpec& spec = *server.residency->spec;
                Ns longer = longer_ns(spec, queue->shape, rows, took, waiting.size);
                Ns back = server.residency->arena->worker->back_ns;
                if (longer < NEVER_NS && server.free_ns + took + longer + back <= batch_due) {
                    rows += waiting.size;
                    took += longer;
                    continue;
                }
                give();
            }
            const Server& server = pop_soonest(ahead);
            Ns alone = server.residency->spec->alone_ns(queue->shape, waiting.size);
            if (server.free_ns + alone + server.residency->arena->worker->back_ns > waiting.deadline_ns) {
                ++found.late;
                found.due_ns = std::max(found.due_ns, waiting.deadline_ns);
                give();
            } else {
                rows = waiting.size;
                took = alone;
                batch_due = waiting.deadline_ns;
            }
        }
        if (rows > 0) {
            give();
        }
    }
    return found;
}

bool Shortfalls::has_time(const Model& model) const {
    return busy_.sum(state_.now, model.workers.size(), state_.executors.size()) <= BUSY_SUM;
}

bool Shortfalls::is_served_by_another(const Pending& pending, const Executor& executor) const {
    const Placement::Ahead ahead{pending.deadline_ns, *pending.model};
    placement_.begin_backlogs();
    for (const Residency* residency : pending.model->residencies) {
        if (!is_promised(*residency)) {
            continue;
        }
        const Arena& arena = *residency->arena;
        Ns latest = pending.deadline_ns - residency->spec->alone_ns(pending.request.shape, pending.size) -
                    arena.worker->back_ns;
        bool is_ready = residency->state == ResidencyState::RESIDENT || residency->ready_ns <= latest;
        Ns wait = NEVER_NS;  // computed where it decides
        for (const Executor* other = arena.executors.front(); other != nullptr && is_ready; other = other->after) {
            Ns free = std::max(other->free_ns(state_.now), state_.now + arena.worker->there_ns);
            if (other == &executor || free > latest) {
                continue;
            }
            wait = wait < NEVER_NS ? wait : wait_ns(arena, ahead, latest + 1);
            if (free + wait <= latest) {
                return true;
            }
        }
    }
    return false;
}

bool Shortfalls::could_copy(const Pending& pending) const {
    const Model& model = *pending.model;
    if (!has_time(model)) {
        return false;
    }
    std::uint32_t wanted = of(model).late + 1;
    Ns seen = 0;
    for (WorkerId worker_id : model.workers) {
        const Worker* worker = state_.find_worker(worker_id);
        if (worker == nullptr || worker->draining) {
            continue;
        }
        Ns fetch = arenas_.fetch_wait_ns(*worker, model);
        if (worker->tier == StoreTier::DISK && fetch > pending.deadline_ns - state_.now) {
            break;  // the disks of those behind it do not have the model either
        }
        Ns begin = std::max(worker->link_free_ns, state_.now + fetch + worker->there_ns);
        for (const Arena* arena : worker->arenas) {
            const KindSpec* spec = Placement::loadable(*arena, model);
            Ns alone = spec != nullptr ? spec->alone_ns(pending.request.shape, pending.size) : 0;
            if (spec == nullptr || alone > pending.deadline_ns - pending.request.arrived_ns) {
                continue;
            }
            Ns loaded = begin + spec->load_planned_ns();
            Ns latest = pending.deadline_ns - worker->back_ns - alone;
            Ns start = loaded + worker->back_ns + worker->there_ns;
            if (start > latest) {
                break;  // the link cannot load another in time
            }
            if (!arena->is_idle()) {
                Ns free = arena->free_ns(state_.now);
                if (free <= latest) {
                    free += placement_.backlog_ns(*arena, {pending.deadline_ns, model}, latest + 1 - free);
                }
                start = std::max(start, free);
            }
            if (start > latest) {
                continue;
            }
            begin = loaded;
            seen += (1 + (latest - start) / std::max<Ns>(alone, 1)) * static_cast<Ns>(arena->executors.size());
            if (seen >= wanted) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace clockwork
