// Requests that wait for a device, in one queue per (model, shape, level), and the indexes to find them by.
//
// A queue that wants a device is *ready*. An executor that can take work looks at the ready queues of the models in its
// arena; if there is none it is *hungry*. Whatever is looked for among executors or models is looked for in bit sets.
#pragma once

#include <memory>
#include <vector>

#include "scheduler/queue.h"
#include "scheduler/state.h"

namespace clockwork {

// Queues of one model (shapes times levels) that are kept although they are empty.
inline constexpr std::size_t QUEUES_KEPT = 16;

// Whether work may be sent to it.
inline bool is_usable(const Residency* residency) {
    return residency != nullptr && residency->state == ResidencyState::RESIDENT && !residency->doomed;
}

// How long a batch would take on a residency, as planned for (the bound, for a shape never measured).
inline Ns planned_ns(const Residency& residency, std::uint32_t shape, std::uint32_t rows) {
    return residency.spec->alone_ns(shape, rows);
}

// A rank as one number: the level first, then the time, which may lie somewhat before zero.
std::uint64_t packed_rank(std::uint8_t level, Ns rank_ns);

class Queues {
public:
    using List = std::vector<std::unique_ptr<Queue>>;

    explicit Queues(State& state) : state_(state) {}

    // ----- what waits ----------------------------------------------------------------------------

    // A model's, the empty ones too.
    const List& of(const Model& model) const { return states_[model.slot].queues; }
    // Where a request waits, or would.
    Queue& of(const Pending& pending);
    // Rows that wait for a model in one shape, of all levels.
    std::uint32_t rows(const Model& model, std::uint32_t shape) const;
    // Of a model's queues of a shape that are not empty, the highest level below this one; null: there is none.
    Queue* below(const Model& model, std::uint32_t shape, std::uint8_t level) const;
    // Requests in a model's queues.
    std::uint32_t waiting(const Model& model) const { return waiting_[model.slot]; }

    // Whether anybody waits for a model's load.
    bool is_load_wanted(const Residency& residency) const {
        return waiting(*residency.model) > 0 || !residency.model->background.empty();
    }
    // Whether a host store may drop it: what waits is about to be loaded from there.
    bool may_drop(const Model& model) const { return waiting(model) == 0 || !model.residencies.empty(); }

    void enter(Pending& pending, Queue& queue);
    // False: it does not wait.
    bool leave(Pending& pending, Queue& queue);
    void take(Queue& queue, std::uint32_t first, std::uint32_t count, std::vector<Pending*>& taken);
    // A queue of this model became ready, or is no more, or another is its best.
    void publish(const Model& model);

    void add_model(const Model& model);
    void remove_model(const Model& model) { work_.clear(model.slot); }
    // Slots of models.
    std::size_t model_count() const { return states_.size(); }

    // ----- what an executor could do ----------------------------------------------------------------

    bool has_ready(const Model& model) const { return work_.test(model.slot); }
    // Whether a request waits that an executor of the arena could be sent now.
    bool has_work(const Arena& arena) const;
    // The ready queue of the lowest rank in an arena, whose residency is set too; null: there is none.
    Queue* first_ready(const Arena& arena, Residency*& residency);
    // The earliest deadline of those in front of a model's ready queues; by the model's slot, if it has any.
    Ns first_due_ns(std::uint32_t slot) const { return first_due_ns_[slot]; }
    // Calls function(slot) for the models in an arena that have a ready queue, until it returns false.
    template <typename Function>
    void for_each_model(const Arena& arena, Function&& function) const {
        Bits::for_each_in_both(arena.models, work_, function);
    }
    // Calls function(queue, residency) for every ready queue of those models in an arena that is_wanted(model, rank),
    // which is asked with the packed rank of the model's best queue: what is of no use costs little then.
    template <typename Wanted, typename Function>
    void for_each_ready(const Arena& arena, Wanted&& is_wanted, Function&& function) {
        for_each_model(arena, [&](std::uint32_t slot) {
            const Model& model = state_.at<Model>(slot);
            if (!is_wanted(model, ranks_[slot])) {
                return true;
            }
            Residency* residency = arena.find(&model);
            if (is_usable(residency)) {
                for (const auto& queue : states_[slot].queues) {
                    if (queue->ready) {
                        function(*queue, *residency);
                    }
                }
            }
            return true;
        });
    }
    // The ready queue of the least exact(queue, residency), of the highest level that has one, in an arena.
    // Rules::rank_ns() must never be above it: it tells which need not be looked at. NEVER_NS: not this one. Null: none.
    template <typename Exact>
    Queue* least(const Arena& arena, Residency*& residency, Exact&& exact) {
        Queue* best = nullptr;
        std::uint64_t bound = UINT64_MAX;
        for_each_model(arena, [&](std::uint32_t slot) {
            if (ranks_[slot] > bound) {
                return true;
            }
            Residency* here = arena.find(&state_.at<Model>(slot));
            if (!is_usable(here)) {
                return true;
            }
            for (const auto& queue : states_[slot].queues) {
                if (!queue->ready || queue->rank > bound) {
                    continue;
                }
                Ns value = exact(*queue, *here);
                if (value >= NEVER_NS) {
                    continue;
                }
                std::uint64_t rank = packed_rank(queue->level, value);
                if (rank < bound || (rank == bound && queue->front().order < best->front().order)) {
                    bound = rank;
                    best = queue.get();
                    residency = here;
                }
            }
            return true;
        });
        return best;
    }

    // ----- executors that could take work and found none -----------------------------------------

    void mark_hungry(const Executor& executor) { hungry_.set(executor.slot); }
    void mark_fed(const Executor& executor) { hungry_.clear(executor.slot); }
    const Bits& hungry() const { return hungry_; }
    // The first of them to which the model's work could be sent; null: none.
    Executor* find_hungry(const Model& model) const;

    void archive(Archive& archive);
    void collect(std::vector<const Pending*>& found) const;
    void check_invariants() const;

private:
    // What is known of a model beside its record.
    struct ModelQueues {
        Queue* last = nullptr;         // the queue that was asked for last
        std::uint32_t last_shape = 0;  // it is of
        std::uint8_t last_level = 0;
        std::uint32_t generation = 0;  // of the model
        Queue* best = nullptr;         // of its ready queues, the first by (level, rank, order)
        List queues;
    };

    void set_waiting(const Model& model, std::uint32_t count);

    State& state_;
    std::vector<ModelQueues> states_;     // by the model's slot; grows with add_model() alone
    std::vector<std::uint32_t> waiting_;  // likewise, close together: it is asked of every model on a device
    std::vector<std::uint64_t> ranks_;    // by the model's slot: of the best ready queue
    std::vector<Ns> first_due_ns_;        // likewise
    Bits work_;                           // models with a ready queue
    Bits asked_;                          // models for which a request waits, whether a queue is ready or not
    Bits hungry_;                         // executors that could take work
};

}  // namespace clockwork
