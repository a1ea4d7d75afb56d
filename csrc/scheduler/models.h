// Models that are registered and removed, and their preparations by workers.
#pragma once

#include <cstdint>

#include "scheduler/arenas.h"
#include "scheduler/learning.h"

namespace clockwork {

class Models {
public:
    Models(State& state, Arenas& arenas, Keepers& keepers, Learning& learning, const Deciders& deciders)
        : state_(state), arenas_(arenas), keepers_(keepers), learning_(learning), deciders_(deciders) {}

    // Notes that a worker has prepared a model, or (is_stored false) that its disk store could be brought it.
    // Returns null if the model is being removed.
    Model* prepared(Worker& worker, const ModelSpec& told, bool is_stored);
    // Drops the preparations of a worker that is gone, or of a kind of which it has lost its last device.
    void leave_worker(const Worker& worker);
    void leave_kind(const Worker& worker, std::uint32_t kind);
    // Continues the removal of a model that has no request left: unloads it, and deletes it once nothing
    // refers to it.
    void check_removed(Model& model);

private:
    void tell_anew(Model& model, Worker& worker, const ModelSpec& told, bool is_stored);
    static std::uint32_t variant_for(const Model& model, const Worker& worker, const ModelSpec& told);
    KindSpec& join_spec(Model& model, Arena& arena, std::uint32_t variant, const ModelSpec& told);
    void leave_spec(Model& model, const Worker& worker, std::uint32_t kind);

    State& state_;
    Arenas& arenas_;
    Keepers& keepers_;
    Learning& learning_;
    const Deciders& deciders_;
};

}  // namespace clockwork
