// The inputs of planned batches on their workers' links: they take the link in the order of the plans, and
// a batch begins when its own are there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scheduler/plan.h"

namespace clockwork {

class PlannedInputs {
public:
    PlannedInputs(const State& state, const Plans& plans) : state_(state), plans_(plans) {}

    // The time of the next batch's inputs to its worker, beyond the delay of the link.
    Ns next_ns(const Executor& executor) const;
    // The earliest begin of a batch that is sent now to an executor that is free from `free` on: the inputs
    // of its requests, and of another, must be there. null: no batch, no other.
    Ns begin_ns(const Executor& executor, Ns free, const Batch* batch, const Pending* more = nullptr) const;
    // The time that the inputs of a planned batch take to its worker.
    Ns takes_ns(const Batch& batch) const;
    // When inputs of this many bytes are at the worker, behind those of the batches before this place of the
    // plan. Arenas that share a link plan with their parts of it, unless no inputs are planned for that link:
    // requests that were refused delay nothing.
    Ns there_ns(const Executor& executor, std::size_t index, std::uint64_t bytes) const;
    // Whether the batches from this place of the plan on still get their inputs in time behind inputs that
    // take `more`.
    bool keeps(const Executor& executor, std::size_t index, Ns more) const;

private:
    bool are_planned(const Worker& worker) const;

    const State& state_;
    const Plans& plans_;
};

}  // namespace clockwork
