// The exchange's part in results: what workers send of their actions is held against what was asked, and told to the
// scheduler; and the workers that come and go.
#include <string>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

Exchange::Need Exchange::from_worker(const Arrival& arrival) {
    Haul& batch = ports_[WORKERS].haul();
    auto found = worker_of_identity_.find(batch.identity(arrival).view());
    if (found == worker_of_identity_.end()) {
        ports_[WORKERS].count_taken(arrival);
        return WORKER_MESSAGE;
    }
    WorkerLink& worker = *workers_.at(found->second);
    worker.connection->taken += arrival.bytes;
    ports_[WORKERS].connections().heard(*worker.connection, now_);
    if (arrival.count < 2)
        return WORKER_MESSAGE;
    worker.heard_ns = now_;
    return tag_of(batch.header(arrival).view()) == TAG_RESULT ? result(worker, arrival) : WORKER_MESSAGE;
}

Exchange::Need Exchange::result(WorkerLink& worker, const Arrival& arrival) {
    Haul& batch = ports_[WORKERS].haul();
    if (results_.size() == result_count_)
        results_.emplace_back();
    Outputs& outputs = results_[result_count_];
    ResultHeader& result = outputs.header;
    if (!result.read(batch.header(arrival).view(), wrong_.header))
        return note_wrong(WRONG_RESULT, result.action_id);
    ActionId action_id = static_cast<ActionId>(result.action_id);
    const Expected* expected = worker.actions.find(action_id);
    if (expected == nullptr)
        return NOTHING;  // of an action that was given up
    read_frames(batch, arrival);
    if (!check_result(*expected, result, frames_, wrong_.flaw)) {
        note_wrong(WRONG_RESULT, result.action_id);
        wrong_.model_id = expected->model_id;
        wrong_.interface = expected->interface;
        wrong_.tensors = &result.tensors;
        wrong_.dims = &result.dims;
        return WRONG_RESULT;
    }
    if (result.status == Status::OK && expected->interface != nullptr) {
        std::int64_t last = -1;
        outputs.is_distinct = true;
        for (const TensorRef& ref : result.tensors) {
            outputs.is_distinct = outputs.is_distinct && ref.frame > last;
            last = ref.frame;
        }
        outputs.first_frame = arrival.first + 2;
        result_of_.insert(action_id, static_cast<std::uint32_t>(result_count_));
        ++result_count_;
    }
    if (result.status == Status::OK)
        count_done(worker, *expected, result);
    ActionResult done;
    done.action_id = action_id;
    done.status = result.status;
    done.begin_ns = result.begin_ns != 0 ? worker.clock.to_controller(result.begin_ns, now_) : now_;
    done.end_ns = result.end_ns != 0 ? worker.clock.to_controller(result.end_ns, now_) : now_;
    done.duration_ns = result.duration_ns;
    done.ready_ns = result.received_ns != 0 ? worker.clock.to_controller(result.received_ns, now_) : 0;
    end_action(worker, done, result.text);
    return NOTHING;
}

// Takes an action out of the books, and tells the scheduler how it ended.
void Exchange::end_action(WorkerLink& worker, const ActionResult& ended, std::string_view text) {
    ActionResult done = ended;
    std::string said(text);
    done.worker = worker.worker_id;
    done.text = said.empty() ? nullptr : &said;
    worker.actions.erase(done.action_id);
    ++worker.results[static_cast<std::size_t>(done.status)];
    dirty_ = true;
    if (recorder_.is_on())
        recorder_.action_done(now_, done, said);
    scheduler_.action_done(now_, done);
}

bool Exchange::fail_action(std::uint32_t slot, ActionId action_id, std::string_view text) {
    WorkerLink& worker = *workers_.at(slot);
    if (worker.actions.find(action_id) == nullptr)
        return false;
    ActionResult done;
    done.action_id = action_id;
    done.status = Status::DEVICE_ERROR;
    done.begin_ns = done.end_ns = now_;
    end_action(worker, done, text);
    return true;
}

void Exchange::fail_actions(std::uint32_t slot, std::string_view text) {
    for (ActionId action_id : workers_.at(slot)->actions.ids())
        fail_action(slot, action_id, text);
}

std::uint32_t Exchange::worker_joined(std::string_view identity, int fd, std::string_view key, WorkerId worker_id,
                                      std::size_t device_count) {
    ConnectionPtr connection = ports_[WORKERS].connections().find(fd);
    if (connection == nullptr || connection->is_cut)
        return NO_SLOT;
    ports_[WORKERS].connections().greet(*connection, key, now_);
    WorkerLink* worker = workers_.make();
    worker->identity = identity;
    worker->connection = std::move(connection);
    worker->worker_id = worker_id;
    worker->heard_ns = now_;
    worker->devices.resize(device_count);
    worker_of_identity_.emplace(worker->identity, worker->slot);
    worker_of_id_.insert(static_cast<std::uint32_t>(worker_id), worker->slot);
    return worker->slot;
}

void Exchange::worker_left(std::uint32_t slot) {
    WorkerLink* worker = workers_.at(slot);
    worker_of_identity_.erase(worker->identity);
    ports_[WORKERS].connections().forget(*worker->connection, now_);
    worker_of_id_.erase(static_cast<std::uint32_t>(worker->worker_id));
    workers_.give_back(worker);
}

WorkerLink* Exchange::worker_of(WorkerId worker_id) {
    std::uint32_t slot = worker_of_id_.find(static_cast<std::uint32_t>(worker_id));
    return slot == IdTable::NONE ? nullptr : workers_.at(slot);
}

}  // namespace clockwork
