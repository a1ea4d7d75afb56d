// Copies that workers' disk stores are brought while nobody waits for them: of models that have too few
// (keepers.h), then of those that are asked for most, into free room. Only a worker that is brought nothing
// else gets one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/arenas.h"

namespace clockwork {

// Bound on the FETCHes under way into all disk stores beyond which no copy is made: the bytes of all pass the
// controller.
inline constexpr std::uint32_t COPYING_MAX = 16;

// Bound on the models with too few copies that are tried in a step, and on the workers that are compared for
// each.
inline constexpr std::uint32_t RESTORE_TRIES = 8;
inline constexpr std::size_t SPREAD_SCAN_MAX = 64;

// Where none of them can be copied, they are tried again after this time, twice as long each time up to the
// bound, or when something changes.
inline constexpr Ns RESTORE_PAUSE_NS = 10 * MS;
inline constexpr Ns RESTORE_PAUSE_MAX_NS = SECOND;

// So often, so many workers with room are brought one of the models of so many last requests.
inline constexpr Ns FILL_EVERY_NS = 10 * MS;
inline constexpr std::size_t FILL_WORKERS = 16;
inline constexpr std::size_t FILL_REQUESTS = 64;

class Spread {
public:
    Spread(State& state, Keepers& keepers, Arenas& arenas, const Deciders& deciders)
        : state_(state), keepers_(keepers), arenas_(arenas), deciders_(deciders) {}

    // A request for the model arrived.
    void asked(const Model& model) { asked_[asked_count_++ % FILL_REQUESTS] = model.model_id; }
    // Order the copies to be made now; the end of a step.
    void look();
    // The time at which look() must be called at the latest.
    Ns next_ns() const { return next_ns_; }

    void archive(Archive& archive) {
        archive(restore_ns_, pause_ns_, next_ns_, fill_ns_, worker_cursor_, arena_cursor_, asked_, asked_count_);
    }

private:
    void restore();
    bool copy(Model& model, bool& may_drop);
    void fill();
    void fill(Worker& worker);
    struct Candidate {
        Model* model;
        double worth;  // of all its copies
    };

    State& state_;
    Keepers& keepers_;
    Arenas& arenas_;
    const Deciders& deciders_;
    Ns restore_ns_ = 0;  // no model with too few copies is tried before
    Ns pause_ns_ = RESTORE_PAUSE_NS;
    Ns next_ns_ = NEVER_NS;
    Ns fill_ns_ = 0;
    // Where the next searches begin.
    std::uint32_t worker_cursor_ = 0, arena_cursor_ = 0;
    std::array<ModelId, FILL_REQUESTS> asked_{};  // models of the last requests, in turn
    std::uint64_t asked_count_ = 0;
    std::vector<Candidate> candidates_;
};

}  // namespace clockwork
