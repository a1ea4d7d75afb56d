#include "scheduler/dispatcher.h"

#include <algorithm>

namespace clockwork {

namespace {

Ns took_ns(const ActionResult& result) {
    return result.duration_ns != 0 ? result.duration_ns : std::max<Ns>(result.end_ns - result.begin_ns, 0);
}

}  // namespace

Dispatcher::Dispatcher(const SchedulerOptions& options, const MakePolicy& make_policy)
    : parts_(out, options), policy_(make_policy(parts_, options)) {
    parts_.deciders = {policy_.get(), &policy_->memory()};
}

// Handles due timers, then every device that changed, then sets the next wake-up.
void Dispatcher::settle(Ns now) {
    state_.advance(now);
    do {
        while (Pending* due = state_.next_due()) {
            policy_->expire(*due);
        }
        state_.take_touched(looking_);
        for (Executor* executor : looking_) {
            policy_->dispatch(*executor);
            parts_.reservations.look(*executor);
            state_.follow_wake(*executor);
            state_.follow_wake(*executor->arena->executors.front());  // the arena's loads may have changed
        }
    } while (!looking_.empty());
    parts_.spread.look();
    Ns wake = std::min(state_.next_wake_ns(), parts_.spread.next_ns());
    if (wake != wake_ns_) {
        wake_ns_ = wake;
        if (wake < NEVER_NS) {
            state_.order(CommandKind::WAKE).earliest_ns = wake;
        }
    }
    state_.recycle();
}

// ----- requests -----------------------------------------------------------------------------------

void Dispatcher::arrived(Ns now, const Request& request) {
    state_.advance(now);
    parts_.learning.forget_stale();
    Model* model = state_.find_model(request.model_id);
    if (model == nullptr || (model->workers.empty() && !model->draining)) {
        requests_.refuse(request, Reason::NO_WORKER, AnswerText::NO_WORKER);
        return;
    }
    if (model->aside) {
        Pending* pending = requests_.make(request, *model);
        requests_.open(*pending);
        requests_.fail(*pending, Status::UNAVAILABLE, AnswerText::SET_ASIDE);
        return;
    }
    if (model->draining) {
        requests_.refuse(request, Reason::DRAINING, AnswerText::DRAINING);
        return;
    }
    if (requests_.is_full(request.bytes)) {
        AnswerSentence said(AnswerText::QUEUE_FULL, static_cast<Ns>(state_.pendings.size()),
                            static_cast<Ns>(requests_.queued_bytes()));
        requests_.refuse(*requests_.make(request, *model), Reason::OVERLOADED, said);
        return;
    }
    if (!model->is_somewhere() && !arenas_.fits_somewhere(*model)) {
        bool usable = std::any_of(model->workers.begin(), model->workers.end(),
                                  [this](WorkerId id) { return !state_.find_worker(id)->draining; });
        if (usable && state_.disks > 0 && model->keepers == 0) {
            requests_.refuse(request, Reason::NO_WORKER, AnswerText::NOT_STORED);
        } else if (usable) {
            requests_.refuse(request, Reason::MEMORY, AnswerText::TOO_LARGE);
        } else {
            requests_.refuse(request, Reason::NO_WORKER, AnswerText::WORKERS_LEAVING);
        }
        return;
    }
    if (state_.disks > 0) {
        parts_.spread.asked(*model);
    }
    policy_->arrive(*requests_.make(request, *model));
}

void Dispatcher::cancelled(Ns now, RequestId request_id) {
    state_.advance(now);
    if (Pending* pending = state_.pendings.find(request_id); pending != nullptr) {
        requests_.fail(*pending, Status::CANCELLED, AnswerText::WAS_CANCELLED);
    }
}

// ----- models -------------------------------------------------------------------------------------

void Dispatcher::model_ready(Ns now, WorkerId worker_id, const ModelSpec& spec, bool is_stored) {
    state_.advance(now);
    if (Worker* worker = state_.find_worker(worker_id); worker != nullptr) {
        if (Model* model = parts_.models.prepared(*worker, spec, is_stored); model != nullptr) {
            policy_->model_prepared(*model);
            arenas_.trim(*worker);  // what it prepares may exceed its store's budget
        }
    }
}

void Dispatcher::model_kept(Ns now, WorkerId worker_id, std::int32_t device_index, ModelId model_id, LoadId load_id,
                            const std::vector<std::uint32_t>& starts) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    Model* model = state_.find_model(model_id);
    Arena* arena = worker != nullptr ? worker->arena(device_index) : nullptr;
    if (arena == nullptr || model == nullptr || !worker->has(model) || worker->draining || model->draining ||
        !worker->is_stored(*model) || load_id == 0 || load_id > KEPT_LOAD_ID_MAX) {
        return;
    }
    if (Residency* residency = arenas_.adopt(*arena, *model, load_id, starts); residency != nullptr) {
        policy_->load_done(*residency, 0);
        if (model->aside) {
            recovery_.set_aside(*model);
        }
    }
}

void Dispatcher::copy_lost(Ns now, WorkerId worker_id, ModelId model_id) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    Model* model = state_.find_model(model_id);
    if (worker == nullptr || model == nullptr || worker->tier != StoreTier::DISK || model->draining ||
        worker->store_state(*model) != StoreState::HELD) {
        return;
    }
    parts_.keepers.lost(*worker, *model);
    std::vector<Pending*> waiting;
    std::vector<Residency*> all = model->residencies;
    for (Residency* load : all) {
        if (load->arena->worker == worker && load->state == ResidencyState::PENDING) {
            policy_->evacuate(*load, waiting);
            arenas_.drop_load(*load);
        }
    }
    for (Pending* pending : waiting) {
        requests_.again(*pending, Status::UNAVAILABLE, AnswerText::NOT_STORED, false);
    }
    recovery_.strand(*model);
}

void Dispatcher::room_wanted(Ns now, WorkerId worker_id, std::uint64_t bytes) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    if (worker != nullptr && worker->tier == StoreTier::DISK) {
        worker->promised = std::min(bytes, worker->store_bytes);
        arenas_.make_room_for_new(*worker);
        state_.has_store_news = true;
    }
}

void Dispatcher::model_removed(Ns now, ModelId model_id) {
    state_.advance(now);
    Model* model = state_.find_model(model_id);
    if (model == nullptr) {
        state_.order(CommandKind::MODEL_GONE).model_id = model_id;
    } else if (!model->draining) {
        model->draining = true;
        parts_.models.check_removed(*model);
    }
}

bool Dispatcher::preload(Ns now, WorkerId worker_id, std::int32_t device_index, ModelId model_id) {
    state_.advance(now);
    Worker* worker = state_.find_worker(worker_id);
    Model* model = state_.find_model(model_id);
    Arena* arena = worker != nullptr ? worker->arena(device_index) : nullptr;
    if (arena == nullptr || model == nullptr || !worker->has(model) || worker->draining || model->draining) {
        return false;
    }
    bool is_there = std::any_of(model->residencies.begin(), model->residencies.end(),
                                [arena](const Residency* residency) { return residency->arena == arena; });
    return !is_there && arenas_.preload(*arena, *model);
}

// ----- results ------------------------------------------------------------------------------------

void Dispatcher::action_done(Ns now, const ActionResult& result) {
    state_.advance(now);
    Flight* found = state_.flights.find(result.action_id);
    if (found == nullptr || found->arena->worker->worker_id != result.worker) {
        // Otherwise an answer to an action that was given up.
        bool was_reserved = parts_.reservations.ended(result);
        if (was_reserved && result.status == Status::OVERRUN) {
            worker_draining(now, result.worker);  // handled as a worker that drains, like below
        }
        return;
    }
    Flight& flight = *found;
    bool is_stuck = result.status == Status::OVERRUN && transfers(flight.kind);
    if (result.status == Status::CRASHED || is_stuck) {
        worker_draining(now, result.worker);  // the worker is about to end: nothing more is sent to it
    }
    parts_.flights.end(flight);
    parts_.flights.judge(flight, result);
    if (flight.executor != nullptr) {
        state_.touch(*flight.executor);
    }
    if (flight.executor == nullptr || flight.arena->doomed > 0) {
        state_.touch_loads(*flight.arena);
    }
    Model& model = *flight.residency->model;
    switch (flight.kind) {
        case ActionKind::LOAD: load_done(flight, result); break;
        case ActionKind::UNLOAD:
            if (arenas_.unload_ended(flight, result.status) && model.draining) {
                parts_.models.check_removed(model);
            }
            break;
        case ActionKind::FETCH: fetch_done(flight, result); break;
        case ActionKind::DROP:
            if (result.status == Status::OK && flight.arena->worker->store_state(model) == StoreState::HELD) {
                // Prepared before the DROP, and told meanwhile.
                copy_lost(now, result.worker, model.model_id);
            }
            if (arenas_.drop_ended(flight, result.status) && model.draining) {
                parts_.models.check_removed(model);
            }
            break;
        case ActionKind::INFER:
        case ActionKind::PROFILE: execution_done(flight, result); break;
        case ActionKind::RESERVE: break;  // Reservations keeps its own records
    }
}

void Dispatcher::load_done(Flight& flight, const ActionResult& result) {
    Residency& residency = *flight.residency;
    Model& model = *residency.model;
    KindSpec& spec = *residency.spec;
    if (result.status == Status::OK) {
        model.load_evidence = 0;
    } else if (result.status == Status::CRASHED || result.status == Status::OVERRUN) {
        recovery_.accuse(flight, result.status == Status::CRASHED ? Fault::CRASHED : Fault::STUCK);
    }
    arenas_.load_ended(flight);
    if (result.status == Status::OK) {
        Ns took = took_ns(result);
        parts_.learning.loaded(spec, took);
        arenas_.loaded(residency);
        policy_->load_done(residency, took);
    } else if (!arenas_.failed(residency)) {
        give_up_load(residency, result);
    }
    arenas_.retime_loads(*flight.arena);
    if (model.draining) {
        parts_.models.check_removed(model);
    }
    parts_.learning.load_ended(spec);
    if (model.aside) {
        recovery_.set_aside(model);
    }
}

// Answers the requests that wait for a LOAD or a FETCH which failed for the last time.
void Dispatcher::give_up_load(Residency& residency, const ActionResult& result) {
    Model& model = *residency.model;
    AnswerSentence said(AnswerText::LOAD_FAILED, static_cast<Ns>(result.status), 0, result.text);
    policy_->load_given_up(residency, said);
    const std::vector<Residency*>& loads = residency.arena->pending;
    if (std::find(loads.begin(), loads.end(), &residency) != loads.end()) {
        arenas_.drop_load(residency);
    }
    if (model.residencies.empty()) {
        requests_.fail_background(model, Status::UNAVAILABLE, said);
    }
}

void Dispatcher::fetch_done(Flight& flight, const ActionResult& result) {
    Model& model = *flight.residency->model;
    Worker& worker = *flight.arena->worker;
    KindSpec& spec = *flight.residency->spec;
    if (result.status == Status::OVERRUN) {
        recovery_.accuse(flight, Fault::STUCK);
    }
    if (result.status == Status::OK) {
        parts_.learning.fetched(spec, took_ns(result));
    }
    if (!arenas_.fetch_ended(flight, result.status) && model.residencies.empty()) {
        give_up_load(*flight.residency, result);
    }
    arenas_.end_store_action(flight);
    for (Arena* arena : worker.arenas) {
        state_.touch_loads(*arena);
    }
    policy_->memory().store_changed(worker, model);
    if (model.draining) {
        parts_.models.check_removed(model);
    }
    parts_.learning.fetch_ended(spec);
    if (model.aside) {
        recovery_.set_aside(model);
    }
}

void Dispatcher::execution_done(Flight& flight, const ActionResult& result) {
    if (result.ready_ns > 0) {
        policy_->delivered(flight, result.ready_ns, result.status == Status::OK);
    }
    flight.revoked = true;  // the action has ended
    executions_.look_beside(flight, result);
    executions_.count(flight, result);
    executions_.leave_lane(flight, result);
    Model& model = *flight.residency->model;
    bool was_overdue = flight.kind == ActionKind::INFER && executions_.charge_overdue(flight, result);
    if (result.status == Status::OK) {
        Ns took = result.duration_ns != 0 ? result.duration_ns : result.end_ns - result.begin_ns;
        policy_->executed(flight, took);
        parts_.learning.executed(flight, took);
        if (flight.kind == ActionKind::INFER) {
            answer(flight, result);
        }
    } else if (flight.kind == ActionKind::INFER) {
        infer_failed(flight, result);
    } else if (result.status == Status::CRASHED || result.status == Status::OVERRUN) {
        recovery_.accuse(flight, result.status == Status::CRASHED ? Fault::CRASHED : Fault::OVERRUN);
    }
    if (was_overdue) {
        put_behind(*flight.residency);
    }
    executions_.retire(flight);
    recovery_.follow(model);
}

// Plans anew the promises of a model that turns out to be beyond its share of a device: behind the others.
void Dispatcher::put_behind(Residency& residency) {
    if (!is_beyond_share(residency, state_.now)) {
        return;
    }
    planned_.clear();
    policy_->evacuate(residency, planned_);
    for (Pending* pending : planned_) {
        requests_.again(*pending, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME, false);
    }
}

void Dispatcher::answer(Flight& flight, const ActionResult& result) {
    for (Pending* pending : flight.batch->pendings) {
        if (pending->answered) {
            continue;
        }
        if (state_.now > pending->deadline_ns) {
            requests_.fail(*pending, Status::DEADLINE_MISSED, AnswerText::RESULT_LATE);
        } else {
            requests_.answer_ok(*pending, flight, result);
        }
    }
}

void Dispatcher::infer_failed(Flight& flight, const ActionResult& result) {
    Status status = result.status;
    waiting_.clear();
    executions_.take_back(flight, waiting_);
    if (status == Status::CRASHED || status == Status::OVERRUN) {
        recovery_.accuse(flight, status == Status::CRASHED ? Fault::CRASHED : Fault::OVERRUN);
    }
    bool has_words = result.text != nullptr && !result.text->empty();
    if (status == Status::EXECUTION_FAILED || status == Status::INVALID_INPUT || status == Status::OVERRUN) {
        for (Pending* pending : waiting_) {
            if (flight.batch->pendings.size() == 1) {
                AnswerSentence said(has_words ? AnswerText::VERBATIM : AnswerText::FAILED_ON_INPUT, 0, 0, result.text);
                requests_.fail(*pending, status == Status::OVERRUN ? Status::EXECUTION_FAILED : status, said);
            } else {
                pending->alone = true;
                requests_.again(*pending, Status::DEADLINE_MISSED, AnswerText::BATCH_FAILED, false);
            }
        }
        return;
    }
    if (status == Status::CRASHED) {
        for (Pending* pending : waiting_) {
            requests_.again(*pending, Status::UNAVAILABLE, AnswerText::WORKER_LOST);
        }
        return;
    }
    AnswerSentence said(AnswerText::VERBATIM, static_cast<Ns>(status), 0, result.text);
    Status final_status = Status::UNAVAILABLE;
    if (status == Status::TOO_LATE || status == Status::ACTION_CANCELLED) {
        final_status = Status::DEADLINE_MISSED;
        said = AnswerText::CANNOT_BE_IN_TIME;
    }
    if (status == Status::NOT_RESIDENT || status == Status::UNKNOWN_MODEL) {
        Residency& residency = *flight.residency;
        if (residency.on_device) {
            planned_.clear();
            policy_->evacuate(residency, planned_);
            arenas_.lose(residency);
            for (Pending* pending : planned_) {
                requests_.again(*pending, final_status, said, false);
            }
        }
    }
    // An action that was too late for a window of the policy's own making does not count as an attempt: the
    // next window is wider. Nor does an action that was recalled behind an overdue one.
    bool is_late = status == Status::TOO_LATE && flight.is_narrow;
    bool is_back = status == Status::ACTION_CANCELLED && flight.is_recalled;
    bool is_counted = !is_late && !is_back;
    if (is_back) {
        charge(*flight.residency, state_.now, -flight.charged_ns);
    }
    for (Pending* pending : waiting_) {
        pending->widenings = static_cast<std::uint8_t>(pending->widenings + is_late);
        if (status == Status::DEVICE_ERROR) {
            pending->failed_on = flight.executor->number() + 1;
        }
        requests_.again(*pending, final_status, said, is_counted);
    }
}

void Dispatcher::check_invariants() const {
    state_.check_invariants(*policy_);
    requests_.check_invariants();
    arenas_.check_invariants();
    policy_->check_invariants();
}

}  // namespace clockwork
