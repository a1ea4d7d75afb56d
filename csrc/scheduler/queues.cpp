#include "scheduler/queues.h"

#include <algorithm>
#include <tuple>

namespace clockwork {

namespace {

// Bits of a packed rank for the time; the level is above them.
constexpr std::uint32_t RANK_BITS = 56;
constexpr Ns RANK_BIAS = Ns{1} << 54;

}  // namespace

std::uint64_t packed_rank(std::uint8_t level, Ns rank_ns) {
    Ns most = (Ns{1} << RANK_BITS) - 1;
    Ns low = std::clamp<Ns>(std::clamp(rank_ns, -RANK_BIAS, most) + RANK_BIAS, 0, most);
    return std::uint64_t{level} << RANK_BITS | static_cast<std::uint64_t>(low);
}

// ----- what waits ---------------------------------------------------------------------------------

Queue& Queues::of(const Pending& pending) {
    ModelQueues& state = states_[pending.model->slot];
    std::uint32_t shape = pending.request.shape;
    std::uint8_t level = pending.request.priority;
    if (state.last != nullptr && state.last_shape == shape && state.last_level == level) {
        return *state.last;
    }
    state.last_shape = shape;
    state.last_level = level;
    for (const auto& queue : state.queues) {
        if (queue->shape == shape && queue->level == level) {
            state.last = queue.get();
            return *queue;
        }
    }
    if (state.queues.size() >= QUEUES_KEPT) {
        std::erase_if(state.queues, [](const auto& queue) { return queue->empty() && !queue->ready; });
    }
    state.last = state.queues.emplace_back(std::make_unique<Queue>(pending.model, shape, level)).get();
    return *state.last;
}

std::uint32_t Queues::rows(const Model& model, std::uint32_t shape) const {
    std::uint32_t rows = 0;
    for (const auto& queue : of(model)) {
        rows += queue->shape == shape ? queue->rows() : 0;
    }
    return rows;
}

Queue* Queues::below(const Model& model, std::uint32_t shape, std::uint8_t level) const {
    Queue* found = nullptr;
    for (const auto& queue : of(model)) {
        if (queue->shape == shape && queue->level > level && !queue->empty() &&
            (found == nullptr || queue->level < found->level)) {
            found = queue.get();
        }
    }
    return found;
}

void Queues::enter(Pending& pending, Queue& queue) {
    queue.insert({pending.deadline_ns, pending.key_ns, &pending, pending.size, pending.alone});
    set_waiting(*pending.model, waiting(*pending.model) + 1);
}

bool Queues::leave(Pending& pending, Queue& queue) {
    if (!queue.erase(pending)) {
        return false;
    }
    set_waiting(*pending.model, waiting(*pending.model) - 1);
    return true;
}

void Queues::take(Queue& queue, std::uint32_t first, std::uint32_t count, std::vector<Pending*>& taken) {
    queue.take(first, count, taken);
    queue.timer_order = -1;  // a request may return to another place, which makes this timer void
    set_waiting(*queue.model, waiting(*queue.model) - count);
}

void Queues::set_waiting(const Model& model, std::uint32_t count) {
    waiting_[model.slot] = count;
    if (count > 0) {
        asked_.set(model.slot);
    } else {
        asked_.clear(model.slot);
    }
}

// Enters the best ready queue of a model in the indexes.
void Queues::publish(const Model& model) {
    ModelQueues& state = states_[model.slot];
    state.best = nullptr;
    Ns first_due = NEVER_NS;
    for (const auto& queue : state.queues) {
        // a batch has just taken the whole queue, and it is reviewed next
        if (!queue->ready || queue->empty()) {
            continue;
        }
        first_due = std::min(first_due, queue->front().deadline_ns);
        if (state.best == nullptr || queue->rank < state.best->rank ||
            (queue->rank == state.best->rank && queue->front().order < state.best->front().order)) {
            state.best = queue.get();
        }
    }
    if (state.best == nullptr) {
        work_.clear(model.slot);
        return;
    }
    work_.set(model.slot);
    if (model.slot >= ranks_.size()) {
        ranks_.resize(model.slot + 1, 0);
        first_due_ns_.resize(model.slot + 1, 0);
    }
    ranks_[model.slot] = state.best->rank;
    first_due_ns_[model.slot] = first_due;
}

void Queues::add_model(const Model& model) {
    if (model.slot >= states_.size()) {
        states_.resize(state_.pool<Model>().slot_count());
        waiting_.resize(state_.pool<Model>().slot_count(), 0);
    }
    ModelQueues& state = states_[model.slot];
    if (state.generation != model.generation) {  // the slot had another model before
        state = ModelQueues();
        state.generation = model.generation;
        set_waiting(model, 0);
    }
    for (const auto& queue : state.queues) {
        // a worker of another kind may know other shapes: the shape is looked up again
        queue->is_profiled = false;
    }
}

// ----- what a device could do ---------------------------------------------------------------------

bool Queues::has_work(const Arena& arena) const {
    bool found = false;
    Bits::for_each_in_both(arena.models, asked_, [&found](std::uint32_t) {
        found = true;
        return false;
    });
    return found;
}

Queue* Queues::first_ready(const Arena& arena, Residency*& residency) {
    // Residencies lie far apart in memory: only the best one's is read, and it can nearly always be used.
    for (bool looks = false;; looks = true) {
        std::uint32_t best = UINT32_MAX;
        std::uint64_t least = 0;
        for_each_model(arena, [&](std::uint32_t slot) {
            std::uint64_t rank = ranks_[slot];
            bool is_better = best == UINT32_MAX || rank < least ||
                             (rank == least && states_[slot].best->front().order < states_[best].best->front().order);
            if (is_better && (!looks || is_usable(arena.find(&state_.at<Model>(slot))))) {
                best = slot;
                least = rank;
            }
            return true;
        });
        if (best == UINT32_MAX) {
            return nullptr;
        }
        residency = arena.find(&state_.at<Model>(best));
        if (is_usable(residency)) {
            return states_[best].best;
        }
    }
}

bool Queues::is_too_slow(const Model& model, const KindSpec& spec) const {
    const Queue* first = model.specs.size() > 1 ? first_due(model) : nullptr;
    if (first == nullptr) [[likely]] {
        return false;
    }
    const Request& request = first->front().pending->request;
    return spec.alone_ns(first->shape, first->front().size) > request.deadline_ns - request.arrived_ns;
}

Executor* Queues::find_hungry(const Model& model) const {
    Executor* found = nullptr;
    auto least = std::make_tuple(true, true, NEVER_NS);
    const Queue* first = model.specs.size() > 1 ? first_due(model) : nullptr;
    Bits::for_each_in_both(hungry_, model.homes, [&](std::uint32_t slot) {
        Executor& executor = state_.at<Executor>(slot);
        const Residency* residency = executor.arena->find(&model);
        if (executor.usable() && is_usable(residency)) {
            Ns alone = first != nullptr ? residency->spec->alone_ns(first->shape, first->front().size) : 0;
            auto here = std::make_tuple(is_too_slow(model, *residency->spec), executor.arena->loading > 0, alone);
            if (here < least) {
                found = &executor;
                least = here;
            }
        }
        return first != nullptr || std::get<1>(least);
    });
    return found;
}

// ----- what must hold -----------------------------------------------------------------------------

void Queues::collect(std::vector<const Pending*>& found) const {
    for (const Model* model : state_.models) {
        for (const auto& queue : states_[model->slot].queues) {
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                found.push_back((*queue)[place].pending);
            }
        }
    }
}

void Queues::check_invariants() const {
    for (const Model* model : state_.models) {
        const ModelQueues& state = states_[model->slot];
        std::uint32_t waiting = 0;
        bool ready = false;
        for (const auto& queue : state.queues) {
            waiting += queue->size();
            ready |= queue->ready;
            must(!queue->ready || !queue->empty(), "an empty queue wants a device");
            std::uint32_t rows = 0;
            for (std::uint32_t place = 0; place < queue->size(); ++place) {
                const Waiting& request = (*queue)[place];
                must(place == 0 || (*queue)[place - 1] < request, "a queue is out of order");
                must(request.pending->deadline_ns == request.deadline_ns && request.pending->size == request.size &&
                         request.pending->alone == request.alone && request.pending->model == model &&
                         request.pending->request.shape == queue->shape &&
                         request.pending->request.priority == queue->level,
                     "a queue holds a request of another queue");
                rows += request.size;
            }
            must(rows == queue->rows(), "a queue's rows were miscounted");
            if (!queue->empty()) {
                must(queue->front().order == queue->timer_order, "a queue's timer is not for its front");
            }
        }
        must(waiting == waiting_[model->slot], "a model's waiting requests were miscounted");
        must(ready == work_.test(model->slot), "the index of models with work is wrong");
        must((waiting > 0) == asked_.test(model->slot), "the index of models that are asked for is wrong");
        must(ready == (state.best != nullptr), "a model's best queue is wrong");
    }
}

const Queue* Queues::first_due(const Model& model) const {
    const Queue* first = nullptr;
    for (const auto& queue : of(model)) {
        if (!queue->empty() && (first == nullptr || queue->front().deadline_ns < first->front().deadline_ns)) {
            first = queue.get();
        }
    }
    return first;
}

}  // namespace clockwork
