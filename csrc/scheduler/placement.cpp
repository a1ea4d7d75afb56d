#include "scheduler/placement.h"

#include <algorithm>

namespace clockwork {

KindSpec* Placement::loadable(const Arena& arena, const Model& model) {
    if (!arena.usable()) {
        return nullptr;
    }
    KindSpec* spec = model.spec(arena);
    if (spec == nullptr || spec->page_count > arena.pages.page_count() || !arena.worker->could_host(*spec)) {
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

// Number of the devices that have or load the model and are fast enough for its first request.
std::size_t Placement::servers(const Model& model) const {
    if (model.specs.size() < 2) {
        return model.servers;
    }
    std::size_t count = 0;
    for (const Residency* residency : model.residencies) {
        count += queues_.is_too_slow(model, *residency->spec) ? 0 : residency->arena->executors.size();
    }
    return std::max<std::size_t>(count, 1);
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
        if (!is_any_doomed && share.round == round_of_shares_ && share.kind == arena.kind && share.is_one) {
            sum += share.time_ns;
            return sum < enough;
        }
        const Model& model = state_.at<Model>(slot);
        share = {round_of_shares_, arena.kind, true, 0};
        if (&model == &ahead.but) {
            return true;
        }
        if (is_any_doomed && arena.find(&model)->doomed) {
            share.is_one = false;  // another device may have several
            return true;
        }
        const KindSpec& spec = *model.spec(arena);
        std::uint32_t count = 0;
        for (const auto& queue : queues_.of(model)) {
            // A queue whose last requests have just been sent is ready and empty.
            if (queue->ready && !queue->empty() && queue->front().deadline_ns <= ahead.due_ns) {
                std::uint32_t most = std::max(spec.batch_max, 1u), rows = queue->rows();
                Ns takes = rules_.duration_ns(spec, queue->shape, std::min(rows, most));
                double all = static_cast<double>(takes) * std::max(1.0, static_cast<double>(rows) / most);
                share.time_ns = all / static_cast<double>(servers(model));
                sum += share.time_ns;
                ++count;
            }
        }
        share.is_one = count <= 1 && !model.is_varied;
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
        bool is_spare = spec != nullptr && executor.lane.empty() && arena->has_room(*spec) && loading(*arena) == 0 &&
                        loadable(*arena, model) != nullptr;
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

bool Placement::offer_to_host(const Model& model) {
    const Worker* host = arenas_.find_host(model);
    if (host == nullptr) {
        return false;
    }
    for (Arena* arena : host->arenas) {
        state_.touch_loads(*arena);
    }
    return true;
}

}  // namespace clockwork
