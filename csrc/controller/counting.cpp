// The exchange's part in counting: how requests ended and what devices did.
#include <memory>

#include "controller/exchange.h"

namespace clockwork {

void Exchange::count_answered(const HeldRequest& one, const Command& command, const ResultHeader& done) {
    outcomes_.count(Status::OK);
    one.model->outcomes.count(Status::OK);
    one.model->counts->succeeded(
        now_, one.rows,
        {now_ - one.arrived_ns, command.a, command.b, done.execute_ns, done.copy_in_ns, done.copy_out_ns});
}

void Exchange::count_failed(const HeldRequest& one, const Command& command) {
    if (command.status == Status::REFUSED)
        ++refusals_[static_cast<std::size_t>(command.reason)];
    one.model->counts->did_not(now_, command.status, command.reason);
    outcomes_.count(command.status);
    one.model->outcomes.count(command.status);
}

// A request for it was wrong, and is not held.
void Exchange::count_invalid(ServedModel& model) {
    if (model.counts == nullptr)
        model.counts = std::make_unique<ModelCounts>();
    outcomes_.count(Status::INVALID_INPUT);
    model.outcomes.count(Status::INVALID_INPUT);
}

void Exchange::count_done(WorkerLink& worker, const Expected& sent, const ResultHeader& result) {
    if (sent.kind == ActionKind::FETCH || sent.kind == ActionKind::DROP) {  // for whichever of its devices
        ++(sent.kind == ActionKind::FETCH ? worker.fetches : worker.drops);
        return;
    }
    if (static_cast<std::size_t>(sent.device) >= worker.devices.size())
        return;
    DeviceCounts& device = worker.devices[static_cast<std::size_t>(sent.device)];
    switch (sent.kind) {
        case ActionKind::LOAD:
            ++device.loads;
            device.load_busy_ns += result.duration_ns;
            break;
        case ActionKind::UNLOAD: ++device.unloads; break;
        case ActionKind::RESERVE: break;
        case ActionKind::INFER:
            if (ServedModel* model = find_model(sent.model_id); model != nullptr && model->counts != nullptr) {
                ModelCounts& counts = *model->counts;
                ++counts.executions;
                counts.batches.add(sent.rows, result.execute_ns);
            }
            [[fallthrough]];
        default: ++device.executions; device.busy_ns += result.execute_ns;
    }
}

}  // namespace clockwork
