// Models that come and go, and how workers have prepared them.
#pragma once

#include <cstdint>

#include "scheduler/arenas.h"
#include "scheduler/learning.h"

namespace clockwork {

class Models {
public:
    Models(State& state, Arenas& arenas, Learning& learning, const Deciders& deciders)
        : state_(state), arenas_(arenas), learning_(learning), deciders_(deciders) {}

    // A worker has prepared a model. Null: it is being removed.
    Model* prepared(Worker& worker, const ModelSpec& told);
    // A worker is gone, or its last device of a kind.
    void leave_worker(const Worker& worker);
    void leave_kind(const Worker& worker, std::uint32_t kind);
    // One step further in unloading a model that is being removed and has no request left: lets go of it once nothing of
    // it is left.
    void check_removed(Model& model);

private:
    static std::uint32_t variant_for(const Model& model, const Worker& worker, const ModelSpec& told);
    KindSpec& join_spec(Model& model, Arena& arena, std::uint32_t variant, const ModelSpec& told);
    void leave_spec(Model& model, const Worker& worker, std::uint32_t kind);

    State& state_;
    Arenas& arenas_;
    Learning& learning_;
    const Deciders& deciders_;
};

}  // namespace clockwork
