// Idle time under `edf`: batches of other devices, background requests, and measurements of shapes.
#pragma once

#include <vector>

#include "scheduler/admission.h"

namespace clockwork {

// Bound on the other devices, and on the batches of each, that an idle device looks at for work.
inline constexpr std::size_t STEAL_SCAN_MAX = 16;

// Fills the idle time of devices.
class Spare {
public:
    Spare(SchedulerParts& parts, Plans& plans)
        : state_(parts.state),
          requests_(parts.requests),
          executions_(parts.executions),
          idle_(parts.idle),
          plans_(plans) {}

    // Find work for a device that would be idle: another device's batch, then background requests, then
    // measurements. A returned batch is in the device's plan; null if there is none.
    Batch* fill(Executor& executor, Ns free);
    // Plan a background batch that waited long on a device that is never idle, where it breaks no promise.
    void promote(Executor& executor);

    void archive(Archive& archive) { archive(round_); }

private:
    Batch* steal(Executor& executor, Ns free);
    Batch* from_background(Executor& executor, Ns free);
    Batch* background_batch(Executor& executor, Residency& residency, Ns free, std::size_t index);
    Batch* enter(Executor& executor, Batch* batch, std::size_t index);

    State& state_;
    Requests& requests_;
    Executions& executions_;
    Idle& idle_;
    Plans& plans_;
    std::size_t round_ = 0;  // device at which the next search for work to take over begins
};

}  // namespace clockwork
