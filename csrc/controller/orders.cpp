// The exchange's part in orders: the scheduler's, as messages to workers.
#include "controller/exchange.h"

namespace clockwork {

Expected& Exchange::note_sent(WorkerLink& worker, ActionId action_id, ActionKind kind, std::int32_t device,
                              ModelId model_id) {
    Expected& expected = worker.actions.add(action_id);
    expected.kind = kind;
    expected.device = device;
    expected.model_id = model_id;
    ++worker.sent[static_cast<std::size_t>(kind)];
    return expected;
}

// Sends the header that was written. False if the worker cannot be reached: it is as good as gone.
bool Exchange::to_worker(WorkerLink& worker, bool more) {
    if (!ports_[WORKERS].address(worker.identity, worker.connection, now_)) {
        lost_workers.push_back(worker.worker_id);
        return false;
    }
    ports_[WORKERS].send(writer_.view(), more);
    return true;
}

void Exchange::window(const Command& command, const WorkerLink& worker) {
    writer_.integer(worker.clock.to_worker_earliest(command.earliest_ns, now_));
    writer_.integer(worker.clock.to_worker_latest(command.latest_ns));
    writer_.integer(command.expected_ns);
}

void Exchange::head(const Command& command, std::int64_t tag, std::size_t fields) {
    writer_.clear();
    writer_.array(fields + 1);
    writer_.integer(tag);
    writer_.natural(command.action_id);
    writer_.integer(command.device);
    writer_.integer(command.model_id);
    writer_.natural(command.load_id);
}

void Exchange::send_infer(const Command& command) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;  // it left in this very turn, as the scheduler will have heard
    const RequestId* ids = scheduler_.out.ids.data() + command.first;
    head(command, TAG_INFER, 8);
    window(command, *worker);
    writer_.array(command.count);
    sending_.clear();
    std::size_t frames = 0;
    std::uint32_t rows = 0;
    for (std::uint32_t part = 0; part < command.count; ++part) {
        HeldRequest& one = held(ids[part]);
        sending_.push_back(&one);
        rows += one.rows;
        writer_.array(one.tensors.size());
        for (const HeldTensor& tensor : one.tensors) {
            writer_.array(3);
            writer_.integer(tensor.dtype);
            write_dims(writer_, one.dims.data() + tensor.first, tensor.rank);
            writer_.natural(frames++);
        }
    }
    Expected& expected = note_sent(*worker, command.action_id, ActionKind::INFER, command.device, command.model_id);
    expected.rows = rows;
    expected.interface = sending_.front()->model->interface;
    for (const HeldRequest* held : sending_) {
        expected.part_rows.push_back(held->rows);
        expected.part_rooms.push_back(held->has_room);
    }
    if (!to_worker(*worker, frames > 0))
        return;
    for (HeldRequest* held : sending_) {
        for (Frame& frame : held->frames) {
            spare_.share(frame);  // kept, for the action may come to nothing
            ports_[WORKERS].send(spare_, --frames > 0);
        }
    }
}

void Exchange::send_profile(const Command& command) {
    WorkerLink* worker = worker_of(command.worker);
    const ServedModel* model = find_model(command.model_id);
    if (worker == nullptr || model == nullptr)
        return;
    profiled_.clear();
    ask([&] { return lookups_.shape(lookups_.owner, command.shape, &profiled_); });
    head(command, TAG_PROFILE, 8);
    window(command, *worker);
    bool batches = model->interface->batches;
    std::size_t inputs = 0;
    for (std::size_t place = 0; place < profiled_.size(); place += 1 + static_cast<std::size_t>(profiled_[place]))
        ++inputs;
    writer_.array(inputs);
    for (std::size_t place = 0; place < profiled_.size();) {
        std::size_t rank = static_cast<std::size_t>(profiled_[place++]);
        writer_.array(rank + batches);
        if (batches)
            writer_.natural(command.rows);
        for (; rank > 0; --rank)
            writer_.integer(profiled_[place++]);
    }
    note_sent(*worker, command.action_id, ActionKind::PROFILE, command.device, 0);
    to_worker(*worker, false);
}

void Exchange::send_order(const Command& command, std::int64_t tag, ActionKind kind) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;
    bool has_pages = kind == ActionKind::LOAD || kind == ActionKind::RESERVE;
    head(command, tag, has_pages ? 8 : 7);
    if (has_pages) {
        const std::uint32_t* runs = scheduler_.out.runs.data() + command.first;
        writer_.array(command.count);
        for (std::uint32_t place = 0; place < command.count; ++place)
            writer_.natural(runs[place]);
    }
    window(command, *worker);
    note_sent(*worker, command.action_id, kind, command.device, command.model_id);
    to_worker(*worker, false);
}

void Exchange::send_revoke(const Command& command) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;
    writer_.clear();
    writer_.array(2);
    writer_.integer(TAG_REVOKE);
    writer_.natural(command.action_id);
    to_worker(*worker, false);
}

}  // namespace clockwork
