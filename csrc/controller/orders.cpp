#include "controller/orders.h"

#include "controller/messages.h"

namespace clockwork {

void Orders::send(const Command& command, const Commands& all, Ns now) {
    WorkerLink* worker = workers_.find(command.worker);
    if (worker == nullptr)
        return;
    switch (command.kind) {
        case CommandKind::SEND_INFER: infer(command, all, *worker, now); break;
        case CommandKind::SEND_LOAD: action(command, all, *worker, TAG_LOAD, ActionKind::LOAD, now); break;
        case CommandKind::SEND_UNLOAD: action(command, all, *worker, TAG_UNLOAD, ActionKind::UNLOAD, now); break;
        case CommandKind::SEND_FETCH: action(command, all, *worker, TAG_HOST_FETCH, ActionKind::FETCH, now); break;
        case CommandKind::SEND_DROP: action(command, all, *worker, TAG_HOST_DROP, ActionKind::DROP, now); break;
        case CommandKind::SEND_RESERVE: action(command, all, *worker, TAG_RESERVE, ActionKind::RESERVE, now); break;
        case CommandKind::SEND_PROFILE: profile(command, *worker, now); break;
        case CommandKind::SEND_REVOKE: revoke(command, *worker, now); break;
        default: break;  // no order to a worker
    }
}

void Orders::infer(const Command& command, const Commands& all, WorkerLink& worker, Ns now) {
    const RequestId* ids = all.ids.data() + command.first;
    head(command, TAG_INFER, 8);
    window(command, worker, now);
    writer_.array(command.count);
    sending_.clear();
    std::size_t frames = 0;
    std::uint32_t rows = 0;
    for (std::uint32_t part = 0; part < command.count; ++part) {
        HeldRequest& held = requests_.at(ids[part]);
        sending_.push_back(&held);
        rows += held.rows;
        writer_.array(held.tensors.size());
        for (const HeldTensor& tensor : held.tensors) {
            writer_.array(3);
            writer_.integer(tensor.dtype);
            write_dims(writer_, held.dims.data() + tensor.first, tensor.rank);
            writer_.natural(frames++);
        }
    }
    Expected& expected = note(worker, command, ActionKind::INFER, command.model_id);
    expected.rows = rows;
    expected.interface = sending_.front()->model->interface;
    for (const HeldRequest* held : sending_) {
        expected.part_rows.push_back(held->rows);
        expected.part_rooms.push_back(held->has_room);
    }
    if (!workers_.send(worker, writer_.view(), frames > 0, now))
        return;
    for (HeldRequest* held : sending_) {
        for (Frame& frame : held->frames) {
            spare_.share(frame);  // kept, for the action may come to nothing
            workers_.send(spare_, --frames > 0);
        }
    }
}

void Orders::profile(const Command& command, WorkerLink& worker, Ns now) {
    const ServedModel* model = models_.find(command.model_id);
    if (model == nullptr)
        return;
    const std::vector<std::int64_t>& shape = lookups_.shape(command.shape);
    head(command, TAG_PROFILE, 8);
    window(command, worker, now);
    bool batches = model->interface->batches;
    std::size_t inputs = 0;
    for (std::size_t place = 0; place < shape.size(); place += 1 + static_cast<std::size_t>(shape[place]))
        ++inputs;
    writer_.array(inputs);
    for (std::size_t place = 0; place < shape.size();) {
        std::size_t rank = static_cast<std::size_t>(shape[place++]);
        writer_.array(rank + batches);
        if (batches)
            writer_.natural(command.rows);
        for (; rank > 0; --rank)
            writer_.integer(shape[place++]);
    }
    note(worker, command, ActionKind::PROFILE, 0);
    workers_.send(worker, writer_.view(), false, now);
}

void Orders::action(const Command& command, const Commands& all, WorkerLink& worker, std::int64_t tag, ActionKind kind,
                    Ns now) {
    bool has_pages = kind == ActionKind::LOAD || kind == ActionKind::RESERVE;
    head(command, tag, has_pages ? 8 : 7);
    if (has_pages) {
        const std::uint32_t* runs = all.runs.data() + command.first;
        writer_.array(command.count);
        for (std::uint32_t place = 0; place < command.count; ++place)
            writer_.natural(runs[place]);
    }
    window(command, worker, now);
    note(worker, command, kind, command.model_id);
    workers_.send(worker, writer_.view(), false, now);
}

void Orders::revoke(const Command& command, WorkerLink& worker, Ns now) {
    writer_.clear();
    writer_.array(2);
    writer_.integer(TAG_REVOKE);
    writer_.natural(command.action_id);
    workers_.send(worker, writer_.view(), false, now);
}

void Orders::head(const Command& command, std::int64_t tag, std::size_t fields) {
    writer_.clear();
    writer_.array(fields + 1);
    writer_.integer(tag);
    writer_.natural(command.action_id);
    writer_.integer(command.device);
    writer_.integer(command.model_id);
    writer_.natural(command.load_id);
}

void Orders::window(const Command& command, const WorkerLink& worker, Ns now) {
    writer_.integer(worker.clock.to_worker_earliest(command.earliest_ns, now));
    writer_.integer(worker.clock.to_worker_latest(command.latest_ns));
    writer_.integer(command.expected_ns);
}

Expected& Orders::note(WorkerLink& worker, const Command& command, ActionKind kind, ModelId model_id) {
    Expected& expected = worker.actions.add(command.action_id);
    expected.kind = kind;
    expected.device = command.device;
    expected.model_id = model_id;
    ++worker.sent[static_cast<std::size_t>(kind)];
    return expected;
}

}  // namespace clockwork
