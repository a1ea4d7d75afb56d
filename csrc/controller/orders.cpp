#include "controller/orders.h"

namespace clockwork {

void Orders::send(const Command& command, const Commands& all, Ns now) {
    WorkerLink* worker = workers_.find(command.worker);
    if (worker == nullptr)
        return;
    switch (command.kind) {
        case CommandKind::SEND_INFER: infer(command, all, *worker, now); break;
        case CommandKind::SEND_PROFILE: profile(command, *worker, now); break;
        case CommandKind::SEND_REVOKE: revoke(command, *worker, now); break;
        default:  // no other order goes to workers
            if (std::optional<ActionKind> kind = action_of(command.kind))
                action(command, all, *worker, *kind, now);
    }
}

void Orders::infer(const Command& command, const Commands& all, WorkerLink& worker, Ns now) {
    const RequestId* ids = all.ids.data() + command.first;
    begin(command, worker, ActionKind::INFER, now);
    sending_.clear();
    std::size_t frames = 0;
    std::uint32_t rows = 0;
    for (std::uint32_t part = 0; part < command.count; ++part) {
        HeldRequest& held = requests_.at(ids[part]);
        sending_.push_back(&held);
        rows += held.rows;
        message_.parts.push_back(
            {static_cast<std::uint32_t>(message_.tensors.size()), static_cast<std::uint32_t>(held.tensors.size())});
        auto first = static_cast<std::uint32_t>(message_.dims.size());
        message_.dims.insert(message_.dims.end(), held.dims.begin(), held.dims.end());
        for (const HeldTensor& tensor : held.tensors) {
            message_.tensors.push_back(
                {{}, tensor.dtype, {first + tensor.first, tensor.rank}, static_cast<std::int64_t>(frames++)});
        }
    }
    ExpectedResult& expected = note(worker, command, ActionKind::INFER, command.model_id);
    expected.rows = rows;
    expected.interface = sending_.front()->model->interface;
    for (const HeldRequest* held : sending_) {
        expected.part_rows.push_back(held->rows);
        expected.part_rooms.push_back(held->has_room);
    }
    if (!send(worker, frames > 0, now))
        return;
    for (HeldRequest* held : sending_) {
        for (Frame& frame : held->frames) {
            spare_.share(frame);  // shared, because the action may fail
            workers_.send(spare_, --frames > 0);
        }
    }
}

void Orders::profile(const Command& command, WorkerLink& worker, Ns now) {
    const ServedModel* model = models_.find(command.model_id);
    if (model == nullptr)
        return;
    const std::vector<std::int64_t>& shape = lookups_.shape(command.shape);
    begin(command, worker, ActionKind::PROFILE, now);
    bool batches = model->interface->batches;
    for (std::size_t place = 0; place < shape.size();) {
        std::size_t rank = static_cast<std::size_t>(shape[place++]);
        auto first = static_cast<std::uint32_t>(message_.dims.size());
        // the value of an optional input, which has no rows
        const bool is_value = rank > 1 && shape[place] == VALUE_MARK;
        if (batches && !is_value)
            message_.dims.push_back(command.rows);
        for (; rank > 0; --rank)
            message_.dims.push_back(shape[place++]);
        message_.shapes.push_back({first, static_cast<std::uint32_t>(message_.dims.size()) - first});
    }
    note(worker, command, ActionKind::PROFILE, 0);
    send(worker, false, now);
}

void Orders::action(const Command& command, const Commands& all, WorkerLink& worker, ActionKind kind, Ns now) {
    begin(command, worker, kind, now);
    auto runs = all.runs.begin() + command.first;
    message_.run_starts.assign(runs, runs + command.count);
    note(worker, command, kind, command.model_id);
    send(worker, false, now);
}

void Orders::revoke(const Command& command, WorkerLink& worker, Ns now) {
    revoke_.action_id = static_cast<std::int64_t>(command.action_id);
    revoke_.write(writer_);
    workers_.send(worker, writer_.view(), false, now);
}

// Sets the fields that the messages of all orders have.
void Orders::begin(const Command& command, const WorkerLink& worker, ActionKind kind, Ns now) {
    message_.clear();
    message_.kind = kind;
    message_.action_id = static_cast<std::int64_t>(command.action_id);
    message_.device = command.device;
    message_.model_id = command.model_id;
    message_.load_id = static_cast<std::int64_t>(command.load_id);
    message_.earliest_ns = worker.clock.to_worker_earliest(command.earliest_ns, now);
    message_.latest_ns = worker.clock.to_worker_latest(command.latest_ns);
    message_.expected_ns = command.expected_ns;
}

// Sends the message. False if the worker cannot be reached.
bool Orders::send(WorkerLink& worker, bool more, Ns now) {
    message_.write(writer_);
    return workers_.send(worker, writer_.view(), more, now);
}

ExpectedResult& Orders::note(WorkerLink& worker, const Command& command, ActionKind kind, ModelId model_id) {
    ExpectedResult& expected = worker.actions.add(command.action_id);
    expected.kind = kind;
    expected.device = command.device;
    expected.model_id = model_id;
    ++worker.sent[static_cast<std::size_t>(kind)];
    return expected;
}

}  // namespace clockwork
