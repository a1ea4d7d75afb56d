// Copies of models on the workers' disks: who keeps a model, and which models have too few copies.
//
// A worker with a disk store (StoreTier::DISK) keeps some models; every other worker keeps all that it has
// prepared. A model should have `stored_copies` copies, or as many as there are workers that could keep it.
// Workers that leave do not count. A model with fewer is *scarce* as long as a worker has it from which
// others could be brought it, and *bare* if only workers that leave have it. A worker that leaves may be
// restarted, and bring its copies back: for RESTART_GRACE_NS scarce models of that worker are *awaited*, and
// not copied. These are lists, so that nobody has to search for them. spread.h has the models copied.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/state.h"

namespace clockwork {

// Copies of each model that disk stores keep, where the option stored_copies is not given, and its bound.
inline constexpr std::uint32_t STORED_COPIES = 2;
inline constexpr std::uint32_t STORED_COPIES_MAX = 1000;

// After a worker has left or begun to leave, no copies are made in place of its own for this long.
inline constexpr Ns RESTART_GRACE_NS = 10 * SECOND;

// A worker that joined no longer ago than this, and has not said whether it has a model, may still be looking
// for it on its disk: then the grace is given again.
inline constexpr Ns STORE_LOOK_MAX_NS = 60 * SECOND;

// Bounds on the models whose room status() looks for, and on the workers that are asked for each.
inline constexpr std::uint32_t CRAMPED_MAX = 1000;
inline constexpr std::size_t CRAMPED_WORKERS_MAX = 64;

class Keepers {
public:
    // Throws std::invalid_argument if the option stored_copies is not a whole number within its bounds.
    Keepers(State& state, const SchedulerOptions& options);

    // A worker has prepared a model, or could be brought it: enters the worker in Model::workers. leave():
    // the worker is gone.
    void enter(Model& model, const Worker& worker);
    void leave(Model& model, const Worker& worker);
    // The store of a worker holds the model from now on, or no longer. bytes: its size there.
    void gained(Worker& worker, Model& model, std::uint64_t bytes);
    void lost(Worker& worker, Model& model);
    // A worker that has the model begins to leave.
    void drains(Model& model, const Worker& worker);
    // A FETCH of the model into a disk store was ordered or has ended, or a worker's kind changed.
    void follow(Model& model);
    // Ends the grace of models whose copies have not come back in time. Returns when the next one ends.
    Ns end_graces();

    // Return a worker of the same kind whose disk keeps the model; null: there is none. It may be about to
    // leave.
    const Worker* source(const Worker& worker, const Model& model) const;
    // Return whether a LOAD of the model could be ordered on this worker, at once or after a FETCH.
    bool is_in_reach(const Worker& worker, const Model& model) const {
        return worker.tier != StoreTier::DISK || worker.is_stored(model) || source(worker, model) != nullptr;
    }
    // Return whether a disk store may drop the model without leaving too few copies.
    bool may_drop(const Model& model) const { return model.fetches == 0 && model.copies > wanted(model); }
    // Return whether a disk store may drop the model for a new one: another has it.
    bool may_give_up(const Model& model) const { return model.fetches == 0 && model.copies > 1; }
    // Return whether a copy that is not counted could be spared.
    bool may_spare(const Model& model) const { return model.copies >= wanted(model); }
    // Return the number of models that other workers could keep, and only workers that leave have, this one
    // among them.
    std::uint64_t sole_copies(const Worker& worker) const;

    StoreStatus status() const;

    void check_invariants() const;

private:
    std::uint32_t wanted(const Model& model) const { return std::min(least_, model.takers); }
    // Set the counts of a model.
    void count(const Model& model, std::uint32_t& copies, std::uint32_t& takers) const;
    std::uint8_t list_of(const Model& model) const;
    void grant_grace(Model& model);
    void note_looking() const;
    bool is_looked_for(const Model& model, bool by_its_kind) const;
    bool is_cramped(const Model& model) const;
    void keep(Model& model, const Worker& worker, bool keeps);

    State& state_;
    std::uint32_t least_;
    mutable std::vector<const Worker*> looking_;  // scratch: workers that may still look through their disks
};

}  // namespace clockwork
