#include "scheduler/placement.h"

#include <algorithm>

namespace clockwork {

KindSpec* Placement::loadable(const Arena& arena, const Model& model) {
    if (!arena.usable()) {
        return nullptr;
    }
    KindSpec* spec = model.spec(arena);
    if (spec == nullptr || spec->page_count > arena.pages.page_count() || !arena.worker->could_store(*spec)) {
        return nullptr;
    }
    bool is_there = !model.residencies.empty() &&
                    (arena.find(&model) != nullptr ||
                     std::any_of(arena.pending.begin(), arena.pending.end(),
                                 [&](const Residency* residency) { return residency->model == &model; }));
    return is_there ? nullptr : spec;
}

bool Placement::is_loadable_somewhere(const Model& model) const {
    return std::any_of(model.workers.begin(), model.workers.end(), [&](WorkerId worker_id) {
        const Worker* worker = state_.find_worker(worker_id);  // null: the worker is leaving
        return worker != nullptr && std::any_of(worker->arenas.begin(), worker->arenas.end(),
                                                [&](const Arena* arena) { return loadable(*arena, model) != nullptr; });
    });
}

std::uint32_t Placement::loading(const Arena& arena) {
    std::uint32_t count = 0;
    for (const Arena* other_arena : arena.worker->arenas) {
        count += other_arena->loading + static_cast<std::uint32_t>(other_arena->pending.size());
    }
    return count;
}

// When an executor is free, found once in a round.
Ns Placement::free_ns(const Executor& executor) const {
    if (frees_.size() <= executor.slot) {
        frees_.resize(executor.slot + 1);
    }
    Free& free = frees_[executor.slot];
    if (free.round != round_of_shares_) {
        free = {round_of_shares_, executor.free_ns(state_.now)};
    }
    return free.at_ns;
}

// The last turn among those executors that take the model's next batches: as many as there are batches, those
// that are free first and have or load the model, and are fast enough for it. takers: how many they are.
Placement::Turn Placement::last_turn(const Model& model, std::size_t batches, std::size_t& takers) const {
    takers = 1;
    if (model.residencies.size() == 1 && model.servers == 1) {
        return LAST_TURN;  // the common case
    }
    turns_.clear();
    Turn first = LAST_TURN;
    for (const Residency* residency : model.residencies) {
        if (!is_promised(*residency) || (model.specs.size() > 1 && queues_.is_too_slow(model, *residency->spec))) {
            continue;
        }
        const Arena& arena = *residency->arena;
        Ns ready = residency->state == ResidencyState::RESIDENT ? 0 : residency->ready_ns;
        for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
            Turn turn{std::max(free_ns(*executor), ready), executor->slot};
            first = std::min(first, turn);
            if (batches > 1) {
                turns_.push_back(turn);
            }
        }
    }
    if (batches == 1) {
        return first;
    }
    takers = std::max<std::size_t>(std::min(turns_.size(), batches), 1);
    if (turns_.size() <= batches) {
        return LAST_TURN;
    }
    auto last = turns_.begin() + static_cast<std::ptrdiff_t>(batches - 1);
    std::nth_element(turns_.begin(), last, turns_.end());
    return *last;
}

// The part of the arena's executors whose turn comes by the last one.
double Placement::part_by(const Arena& arena, const Turn& last) const {
    std::size_t count = 0;
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        count += !(last < Turn{free_ns(*executor), executor->slot});
    }
    return static_cast<double>(count) / static_cast<double>(arena.executors.size());
}

Ns Placement::backlog_ns(const Arena& arena, const Ahead& ahead, Ns enough_ns) const {
    double sum = 0, enough = static_cast<double>(enough_ns);
    if (shares_.size() < queues_.model_count()) {
        shares_.resize(queues_.model_count());
    }
    bool is_any_doomed = arena.doomed > 0;
    queues_.for_each_model(arena, [&](std::uint32_t slot) {
        if (queues_.first_due_ns(slot) > ahead.due_ns) {
            return true;  // the common case; the deadlines lie in a dense array
        }
        Share& share = shares_[slot];
        if (slot == ahead.but.slot) {
            return true;
        }
        if (!is_any_doomed && share.round == round_of_shares_ && share.kind == arena.kind) {
            sum += share.due_ns <= ahead.due_ns ? share.time_ns * part_by(arena, share.last) : 0;
            return sum < enough;
        }
        const Model& model = state_.at<Model>(slot);
        if (is_any_doomed && arena.find(&model)->doomed) {
            return true;
        }
        const KindSpec& spec = *model.spec(arena);
        std::uint32_t count = 0, due = 0;
        for (const auto& queue : queues_.of(model)) {
            // A queue whose last requests have just been sent is ready and empty.
            if (!queue->ready || queue->empty()) {
                continue;
            }
            ++count;
            if (queue->front().deadline_ns <= ahead.due_ns) {
                ++due;
                std::uint32_t most = std::max(spec.batch_max, 1u), rows = queue->rows();
                Ns takes = rules_.duration_ns(spec, queue->shape, std::min(rows, most));
                double all = static_cast<double>(takes) * std::max(1.0, static_cast<double>(rows) / most);
                std::size_t takers = 1;
                Turn last = last_turn(model, (rows + most - 1) / most, takers);
                share = {0, arena.kind, queue->front().deadline_ns, all / static_cast<double>(takers), last};
                sum += share.time_ns * part_by(arena, last);
            }
        }
        share.round = count == 1 && due == 1 && !model.is_varied ? round_of_shares_ : 0;
        return sum < enough;
    });
    return static_cast<Ns>(sum);
}

Ns Placement::begin_ns(const Arena& arena, const Ahead& ahead, Ns enough_ns) const {
    Ns begin = std::max(arena.free_ns(state_.now), state_.now + arena.worker->there_ns);
    begin += backlog_ns(arena, ahead, enough_ns < NEVER_NS ? enough_ns - begin : NEVER_NS);
    for_each_coming(arena, [&](const Residency& coming) {
        const Queue* queue = coming.model == &ahead.but ? nullptr : queues_.first_due(*coming.model);
        if (queue != nullptr && queue->front().deadline_ns <= ahead.due_ns) {
            std::uint32_t rows = std::max(std::min(queue->rows(), coming.spec->batch_max), queue->front().size);
            Ns alone = coming.spec->alone_ns(queue->shape, rows);
            begin = std::max(begin, coming.ready_ns) + alone / static_cast<Ns>(arena.executors.size());
        }
    });
    return begin;
}

Arena* Placement::find_spare(const Model& model) {
    Arena* found = nullptr;
    std::size_t seen = 0;
    std::uint32_t from = spare_from_;
    bool is_behind = true;  // devices from that slot on come first, then the others
    auto look = [&](std::uint32_t slot) {
        if ((slot >= from) != is_behind) {
            return true;
        }
        const Executor& executor = state_.at<Executor>(slot);
        Arena* arena = executor.arena;
        const KindSpec* spec = model.spec(*arena);
        bool is_near = arena->worker->tier != StoreTier::DISK || arena->worker->is_stored(model);
        bool is_spare = spec != nullptr && is_near && executor.lane.empty() && arena->has_room(*spec) &&
                        loading(*arena) == 0 && loadable(*arena, model) != nullptr;
        if (is_spare) {
            found = arena;
        } else if (++seen == TARGET_SCAN_MAX) {
            spare_from_ = slot + 1;
        }
        return !is_spare && seen < TARGET_SCAN_MAX;
    };
    queues_.hungry().for_each(look);
    is_behind = false;
    if (found == nullptr && seen < TARGET_SCAN_MAX) {
        queues_.hungry().for_each(look);
    }
    return found;
}

bool Placement::offer_to_holder(const Model& model) {
    const Worker* holder = arenas_.find_holder(model);
    if (holder == nullptr) {
        return false;
    }
    for (Arena* arena : holder->arenas) {
        state_.touch_loads(*arena);
    }
    return true;
}

}  // namespace clockwork
