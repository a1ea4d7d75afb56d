#include "controller/result_intake.h"

#include <string>

#include "controller/course.h"
#include "wire/fields.h"

namespace clockwork {

IntakeResult ResultIntake::take(const Arrival& arrival, Ns now) {
    Haul& haul = port_.haul();
    WorkerLink* worker = workers_.find(haul.identity(arrival).view());
    if (worker == nullptr) {
        port_.count_taken(arrival);
        return IntakeResult::PYTHON;
    }
    worker->connection->taken += arrival.bytes;
    port_.connections().heard(*worker->connection, now);
    if (arrival.count < 2)
        return IntakeResult::PYTHON;
    worker->heard_ns = now;
    return wire::tag_of(haul.header(arrival).view()) == TAG_RESULT ? result(*worker, arrival, now)
                                                                   : IntakeResult::PYTHON;
}

IntakeResult ResultIntake::result(WorkerLink& worker, const Arrival& arrival, Ns now) {
    wire::Result& result = results_.next().header;
    if (!result.read(port_.haul().header(arrival).view(), wrong_.header)) {
        wrong_.begin(result.action_id);
        return IntakeResult::WRONG;
    }
    ActionId action_id = static_cast<ActionId>(result.action_id);
    const ExpectedResult* expected = worker.actions.find(action_id);
    if (expected == nullptr)
        return IntakeResult::DONE;  // a result of an action that was given up
    read_frames(port_.haul(), arrival, frames_);
    if (!check_result(*expected, result, frames_, wrong_.flaw)) {
        wrong_.begin(result.action_id);
        wrong_.model_id = expected->model_id;
        wrong_.interface = expected->interface;
        wrong_.tensors = &result.tensors;
        wrong_.dims = &result.dims;
        return IntakeResult::WRONG;
    }
    Status status = static_cast<Status>(result.status);
    if (status == Status::OK) {
        if (expected->interface != nullptr)
            results_.keep(action_id, arrival.first + 2);
        count(worker, *expected, result);
    }
    Course course = course_of(result);
    ActionResult done;
    done.action_id = action_id;
    done.status = status;
    done.begin_ns = course.begin_ns != 0 ? worker.clock.to_controller(course.begin_ns, now) : now;
    done.end_ns = course.end_ns != 0 ? worker.clock.to_controller(course.end_ns, now) : now;
    done.duration_ns = course.duration_ns;
    done.ready_ns = result.received_ns != 0 ? worker.clock.to_controller(result.received_ns, now) : 0;
    end_action(worker, done, result.text, now);
    return IntakeResult::DONE;
}

// Counts a successful action.
void ResultIntake::count(WorkerLink& worker, const ExpectedResult& sent, const wire::Result& result) {
    if (lane_of(sent.kind) == LaneKind::FETCH) {  // counted for the worker, not for a device
        ++(sent.kind == ActionKind::FETCH ? worker.fetches : worker.drops);
        return;
    }
    if (static_cast<std::size_t>(sent.device) >= worker.devices.size())
        return;
    DeviceCounts& device = worker.devices[static_cast<std::size_t>(sent.device)];
    switch (sent.kind) {
        case ActionKind::LOAD:
            ++device.loads;
            device.load_busy_ns += course_of(result).duration_ns;
            break;
        case ActionKind::UNLOAD: ++device.unloads; break;
        case ActionKind::INFER:
            if (ServedModel* model = models_.find(sent.model_id); model != nullptr && model->counts != nullptr) {
                ModelCounts& counts = *model->counts;
                ++counts.executions;
                counts.batches.add(sent.rows, took_ns(result.execute));
            }
            [[fallthrough]];
        case ActionKind::PROFILE:
            ++device.executions;
            device.busy_ns += took_ns(result.execute);
            break;
        default: break;
    }
}

// Removes an action from the sent actions, and tells the scheduler its outcome.
void ResultIntake::end_action(WorkerLink& worker, const ActionResult& ended, std::string_view text, Ns now) {
    ActionResult done = ended;
    std::string said(text);
    done.worker = worker.worker_id;
    done.text = said.empty() ? nullptr : &said;
    worker.actions.erase(done.action_id);
    ++worker.results[static_cast<std::size_t>(done.status)];
    scheduler_.action_done(now, done);
}

bool ResultIntake::fail_action(std::uint32_t slot, ActionId action_id, std::string_view text, Ns now) {
    WorkerLink& worker = workers_.at(slot);
    if (worker.actions.find(action_id) == nullptr)
        return false;
    ActionResult done;
    done.action_id = action_id;
    done.status = Status::DEVICE_ERROR;
    done.begin_ns = done.end_ns = now;
    end_action(worker, done, text, now);
    return true;
}

void ResultIntake::fail_actions(std::uint32_t slot, std::string_view text, Ns now) {
    for (ActionId action_id : workers_.at(slot).actions.ids())
        fail_action(slot, action_id, text, now);
}

}  // namespace clockwork
