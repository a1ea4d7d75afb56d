// Requests that wait for a device, in one queue per (model, shape, level), and the indexes to find them by.
//
// A queue that wants a device is *ready*. An executor that can take work looks at the ready queues of the
// models in its arena; if there is none it is *hungry*. All searches among executors or models use bit sets.
#pragma once

#include <memory>
#include <vector>

#include "scheduler/queue.h"
#include "scheduler/state.h"

namespace clockwork {

// Bound on the empty queues of one model (shapes times levels) that are kept.
inline constexpr std::size_t QUEUES_KEPT = 16;

// Planned duration of a batch on a residency; the bound, for a shape that was never measured.
inline Ns planned_ns(const Residency& residency, std::uint32_t shape, std::uint32_t rows) {
    return residency.spec->alone_ns(shape, rows);
}

// A rank as one number: the level first, then the time, which may be slightly negative.
std::uint64_t packed_rank(std::uint8_t level, Ns rank_ns);

class Queues {
public:
    using List = std::vector<std::unique_ptr<Queue>>;

    explicit Queues(State& state) : state_(state) {}

    // ----- what waits ----------------------------------------------------------------------------

    // All queues of a model, including empty ones.
    const List& of(const Model& model) const { return states_[model.slot].queues; }
    // The queue of a request.
    Queue& of(const Pending& pending);
    // Rows that wait for a model in one shape, over all levels.
    std::uint32_t rows(const Model& model, std::uint32_t shape) const;
    // The non-empty queue of a model and shape with the highest level below this one; null: there is none.
    Queue* below(const Model& model, std::uint32_t shape, std::uint8_t level) const;
    // Calls function(slot, rows) for every model with waiting requests.
    template <typename Function>
    void for_each_waiting(Function&& function) const {
        asked_.for_each([&](std::uint32_t slot) {
            std::uint32_t rows = 0;
            for (const auto& queue : states_[slot].queues) {
                rows += queue->rows();
            }
            function(slot, rows);
            return true;
        });
    }
    // Requests in a model's queues.
    // The queue whose first request is due first; null if none waits.
    const Queue* first_due(const Model& model) const;
    // Whether the first due request takes longer than its SLO on devices of this preparation: devices of
    // other kinds may be fast enough.
    bool is_too_slow(const Model& model, const KindSpec& spec) const;
    std::uint32_t waiting(const Model& model) const { return waiting_[model.slot]; }

    // Whether any request waits for a model's load.
    bool is_load_wanted(const Residency& residency) const {
        return waiting(*residency.model) > 0 || !residency.model->background.empty();
    }
    // Whether a store may drop the model: a model with waiting requests and no residency is about to be
    // loaded from there.
    bool may_drop(const Model& model) const { return waiting(model) == 0 || !model.residencies.empty(); }

    void enter(Pending& pending, Queue& queue);
    // Removes a request. False: it does not wait.
    bool leave(Pending& pending, Queue& queue);
    void take(Queue& queue, std::uint32_t first, std::uint32_t count, std::vector<Pending*>& taken);
    // Updates the indexes after a change of a model's ready queues, or of their order.
    void publish(const Model& model);

    void add_model(const Model& model);
    void remove_model(const Model& model) { work_.clear(model.slot); }
    // Number of model slots.
    std::size_t model_count() const { return states_.size(); }

    // ----- what an executor could do ----------------------------------------------------------------

    bool has_ready(const Model& model) const { return work_.test(model.slot); }
    // Whether a request waits that an executor of the arena could be sent now.
    bool has_work(const Arena& arena) const;
    // Finds the ready queue of the lowest rank in an arena, and sets its residency; null: there is none.
    Queue* first_ready(const Arena& arena, Residency*& residency);
    // The earliest deadline at the front of a model's ready queues, for a model (by slot) that has any.
    Ns first_due_ns(std::uint32_t slot) const { return first_due_ns_[slot]; }
    // Calls function(slot) for the models in an arena that have a ready queue, until it returns false.
    template <typename Function>
    void for_each_model(const Arena& arena, Function&& function) const {
        Bits::for_each_in_both(arena.models, work_, function);
    }
    // Calls function(queue, residency) for every ready queue of the models in an arena for which
    // is_wanted(model, rank) holds. The latter gets the packed rank of the model's best queue, so that
    // unsuitable models are skipped cheaply.
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
    // Finds the ready queue of the least exact(queue, residency), of the highest level that has one, in an
    // arena. Rules::rank_ns() must be a lower bound of exact(), and prunes the search. exact() returns
    // NEVER_NS for unsuitable queues. Null: there is none.
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
    // The hungry executor to which the model's work could be sent: rather of a kind fast enough for its first
    // due request, rather of a device that loads nothing (for that it may make way), of the fastest kind, the
    // first. Null: none. If that device cannot serve the request in time, no other hungry one can.
    Executor* find_hungry(const Model& model) const;

    void archive(Archive& archive);
    void collect(std::vector<const Pending*>& found) const;
    void check_invariants() const;

private:
    // State of a model beside its record.
    struct ModelQueues {
        Queue* last = nullptr;         // the queue of the last look-up
        std::uint32_t last_shape = 0;  // the shape of `last`
        std::uint8_t last_level = 0;
        std::uint32_t generation = 0;  // generation of the model's slot
        Queue* best = nullptr;         // first of its ready queues by (level, rank, order)
        List queues;
    };

    void set_waiting(const Model& model, std::uint32_t count);

    State& state_;
    std::vector<ModelQueues> states_;  // queues by the model's slot; grows in add_model() only
    // Number of waiting requests by the model's slot. A dense array, because it is read for every model on a
    // device.
    std::vector<std::uint32_t> waiting_;
    std::vector<std::uint64_t> ranks_;  // by the model's slot: rank of the best ready queue
    // by the model's slot: earliest deadline at the front of a ready queue
    std::vector<Ns> first_due_ns_;
    Bits work_;    // models with a ready queue
    Bits asked_;   // models with waiting requests, in ready queues or not
    Bits hungry_;  // executors that could take work
};

}  // namespace clockwork
