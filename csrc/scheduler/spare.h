// Work for a device whose plan has none: another's, what has no deadline, and shapes to be measured.
#pragma once

#include <vector>

#include "scheduler/admission.h"

namespace clockwork {

// Other devices, and batches of each, that an idle device looks at for work.
inline constexpr std::size_t STEAL_SCAN_MAX = 16;

// How idle time is used.
class Spare {
public:
    Spare(Parts& parts, Plans& plans)
        : state_(parts.state),
          requests_(parts.requests),
          executions_(parts.executions),
          idle_(parts.idle),
          plans_(plans) {}

    // Something to do for a device that would be idle: another's work, then background, then measuring. The batch is
    // in its plan; null if there is none.
    Batch* fill(Executor& executor, Ns free);
    // Give a background batch that waited long a place in a plan that never ends, where it breaks no promise.
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
    std::size_t round_ = 0;  // where the next search for work to take over begins
};

}  // namespace clockwork
