#include "scheduler/shortfalls.h"

#include <algorithm>
#include <functional>

namespace clockwork {

// Calls function(free_ns) for each executor of a residency's arena but `without`, with the time at which it
// could begin with the model's request that is due at due_ns, until it returns false.
template <typename Function>
void Shortfalls::for_each_server(const Residency& residency, const Executor* without, Ns due_ns,
                                 Function&& function) const {
    const Arena& arena = *residency.arena;
    Ns soonest = state_.now + arena.worker->there_ns;
    Ns behind = NEVER_NS;  // the wait behind other models, where the arena is free first
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        if (executor == without) {
            continue;
        }
        if (behind == NEVER_NS) {
            behind = placement_.begin_ns(arena, {due_ns, *residency.model}, NEVER_NS) -
                     std::max(arena.free_ns(state_.now), soonest);
        }
        Ns begin = std::max(executor->free_ns(state_.now), soonest) + behind;
        // The others are served while the model is loaded.
        if (!function(residency.state != ResidencyState::RESIDENT ? std::max(begin, residency.ready_ns) : begin)) {
            return;
        }
    }
}

// Has the waiting requests of a model served in the order of their deadlines by the devices that have or load
// it, each by the first to be free.
Shortfall Shortfalls::of(const Model& model, const Executor* without) const {
    Shortfall found;
    const Queue* first = queues_.first_due(model);
    if (first == nullptr) {
        return found;
    }
    servers_.clear();
    placement_.begin_backlogs();
    for (const Residency* residency : model.residencies) {
        if (is_promised(*residency) && servers_.size() < SHORT_DEVICES_MAX &&
            !queues_.is_too_slow(model, *residency->spec)) {
            for_each_server(*residency, without, first->front().deadline_ns, [&](Ns free) {
                servers_.push_back({free, residency->spec, residency->arena->worker->back_ns});
                return servers_.size() < SHORT_DEVICES_MAX;
            });
        }
    }
    if (servers_.empty()) {
        return found;
    }
    auto later = std::greater<>();
    std::make_heap(servers_.begin(), servers_.end(), later);
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
                const KindSpec& spec = *server.spec;
                Ns longer = longer_ns(spec, queue->shape, rows, took, waiting.size);
                if (longer < NEVER_NS && server.free_ns + took + longer + server.back_ns <= batch_due) {
                    rows += waiting.size;
                    took += longer;
                    continue;
                }
                give();
            }
            std::pop_heap(servers_.begin(), servers_.end(), later);
            const Server& server = servers_.back();
            Ns alone = server.spec->alone_ns(queue->shape, waiting.size);
            if (server.free_ns + alone + server.back_ns > waiting.deadline_ns) {
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
    for (const Residency* residency : pending.model->residencies) {
        if (!is_promised(*residency)) {
            continue;
        }
        placement_.begin_backlogs();
        Ns latest = pending.deadline_ns - residency->spec->alone_ns(pending.request.shape, pending.size) -
                    residency->arena->worker->back_ns;
        bool is_served = false;
        for_each_server(*residency, &executor, pending.deadline_ns, [&](Ns free) {
            is_served = free <= latest;
            return !is_served;
        });
        if (is_served) {
            return true;
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
        Ns begin =
            std::max(worker->link_free_ns, state_.now + arenas_.fetch_wait_ns(*worker, model) + worker->there_ns);
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
