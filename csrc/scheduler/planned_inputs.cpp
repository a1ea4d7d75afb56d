#include "scheduler/planned_inputs.h"

#include <algorithm>

namespace clockwork {

namespace {

// Bytes of inputs that are sent to a worker, and that it copies.
struct InputBytes {
    std::uint64_t sent = 0, copied = 0;

    void add(const Pending& pending) {
        sent += pending.request.bytes;
        copied += pending.request.copied_bytes;
    }
    void add(const Batch& batch) {
        for (const Pending* pending : batch.pendings) {
            add(*pending);
        }
    }
    Ns takes_ns(const Worker& worker, Ns now) const {
        return worker.inputs.takes_ns(now, sent) + worker.copies.takes_ns(now, copied);
    }
};

// Bytes of a planned batch's inputs: its requests have about equally many.
std::uint64_t inputs_bytes(const Batch& batch) { return batch.pendings.front()->request.bytes * batch.pendings.size(); }

bool counts_inputs(const Worker& worker, Ns now) {
    return worker.inputs.byte_ns(now) > 0 || worker.copies.byte_ns(now) > 0;
}

}  // namespace

Ns PlannedInputs::next_ns(const Executor& executor) const {
    const Plan& plan = plans_.of(executor);
    const Worker& worker = *executor.worker;
    if (plan.empty() || !counts_inputs(worker, state_.now)) {
        return 0;
    }
    InputBytes bytes;
    bytes.add(*plan[0]);
    return bytes.takes_ns(worker, state_.now);
}

Ns PlannedInputs::begin_ns(const Executor& executor, Ns free, const Batch* batch, const Pending* more) const {
    const Worker& worker = *executor.worker;
    if (!counts_inputs(worker, state_.now)) {
        return free;
    }
    InputBytes bytes;
    if (batch != nullptr) {
        bytes.add(*batch);
    }
    if (more != nullptr) {
        bytes.add(*more);
    }
    Ns takes = bytes.takes_ns(worker, state_.now);
    if (takes > 0) {
        takes += worker.inputs.late_ns(state_.now);
    }
    return std::max(free, worker.inputs.message_ns(state_.now, worker.there_ns) + takes);
}

Ns PlannedInputs::takes_ns(const Batch& batch) const {
    return inputs_ns(*batch.executor->arena, state_.now, inputs_bytes(batch));
}

// Whether inputs are planned for the worker's link: inputs of batches that were sent have their place there.
bool PlannedInputs::are_planned(const Worker& worker) const {
    auto has_inputs = [](const Batch* batch) { return inputs_bytes(*batch) > 0; };
    for (const Arena* arena : worker.arenas) {
        for (const Executor* executor = arena->executors.front(); executor != nullptr; executor = executor->after) {
            const std::vector<Batch*>& batches = plans_.of(*executor).batches;
            if (std::any_of(batches.begin(), batches.end(), has_inputs)) {
                return true;
            }
        }
    }
    return false;
}

Ns PlannedInputs::there_ns(const Executor& executor, std::size_t index, std::uint64_t bytes) const {
    const Plan& plan = plans_.of(executor);
    const InputsWay& way = executor.worker->inputs;
    Ns alone = way.takes_ns(state_.now, bytes), takes = inputs_ns(*executor.arena, state_.now, bytes);
    Ns late = alone > 0 ? way.late_ns(state_.now) : 0;
    if (takes > alone && !are_planned(*executor.worker)) {
        takes = alone;
    }
    Ns time = way.message_ns(state_.now, executor.worker->there_ns) + std::max(takes, alone + late);
    for (std::size_t place = 0; place < index; ++place) {
        time += takes_ns(*plan[place]);
    }
    return time;
}

bool PlannedInputs::keeps(const Executor& executor, std::size_t index, Ns more) const {
    const Plan& plan = plans_.of(executor);
    Ns time = there_ns(executor, index, 0);
    for (std::size_t place = index; place < plan.size(); ++place) {
        const Batch& batch = *plan[place];
        time += takes_ns(batch);
        Ns latest = batch.limit_ns - batch.duration_ns;
        if (time <= latest && time + more > latest) {
            return false;
        }
    }
    return true;
}

}  // namespace clockwork
