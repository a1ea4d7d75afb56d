#include "scheduler/recovery.h"

#include <algorithm>

namespace clockwork {

// Answers a request that no worker can serve any more. If a worker leaves in order, the request is refused,
// not failed.
void Recovery::abandon(Pending& pending) {
    bool leaves = std::any_of(pending.model->workers.begin(), pending.model->workers.end(),
                              [this](WorkerId id) { return state_.find_worker(id)->draining; });
    if (leaves) {
        requests_.fail(pending, Status::REFUSED, AnswerText::WORKERS_LEAVING, Reason::NO_WORKER);
    } else {
        requests_.fail(pending, Status::UNAVAILABLE, AnswerText::NO_WORKER_LEFT);
    }
}

void Recovery::strand(Model& model) {
    if (!model.background.empty()) {
        if (model.is_somewhere() || arenas_.fits_somewhere(model)) {
            requests_.wake_devices(model);
        } else {
            while (Pending* pending = model.background.front()) {
                abandon(*pending);
            }
        }
    }
    deciders_.policy->strand(model);
}

// A LOAD that is overdue by STUCK_NS is likely to take as long again, and only the worker can end it. Loads
// behind it on its link are delayed as well. Until that time has passed, nothing is promised on any of them.
// Existing promises are planned anew, on this device only if there is no other place and time enough.
void Recovery::watch_loads(Arena& arena) {
    if (arena.loading == 0) {
        return;
    }
    Worker& worker = *arena.worker;
    Ns due = worker.loads_due_ns();
    Ns look = std::max(due + STUCK_NS, worker.link_free_ns);
    if (state_.now < look) {
        arena.wake_at(look);
        return;
    }
    worker.link_free_ns = state_.now + (state_.now - due);
    arena.wake_at(worker.link_free_ns);
    std::vector<Pending*> waiting;
    std::vector<Model*> stuck;
    for (Arena* arena : worker.arenas) {
        for (Residency* load = arena->resident.front(); load != nullptr; load = arena->resident.next(load)) {
            if (load->state == ResidencyState::LOADING) {
                load->is_stuck = true;
                load->ready_ns = worker.link_free_ns + worker.back_ns + worker.there_ns;
                stuck.push_back(load->model);
                deciders_.policy->evacuate(*load, waiting);
            }
        }
        for (Residency* load : arena->pending) {
            deciders_.policy->evacuate(*load, waiting);
        }
        arenas_.retime_loads(*arena);
        state_.touch(*arena);
    }
    for (Pending* pending : waiting) {
        requests_.again(*pending, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME, false);
    }
    for (Model* model : stuck) {
        strand(*model);
    }
}

// Marks the actions that a lost worker, or a broken device, was executing: the oldest action of each lane. If
// the oldest should have ended by now, its result may have been lost on the way; then the next is marked,
// too.
//
// Actions sent before another worker was lost are not suspected: the two losses have a common cause, a
// network or a controller that stalled, because a request that ends workers is tried again only after it has
// ended one.
void Recovery::blame(const Arena& arena) {
    auto suspect = [this](Flight& flight) { flight.was_executing = flight.sent_ns >= lost_ns_; };
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        Flight* head = executor->lane.front();
        if (head != nullptr && head->there_ns <= state_.now) {
            suspect(*head);
            Flight* next = executor->lane.next(head);
            if (next != nullptr && state_.now - arena.worker->back_ns > executor->head_end_ns) {
                suspect(*next);
            }
        }
    }
    for (Flight* other_flight = arena.worker->flights.front(); other_flight != nullptr;
         other_flight = arena.worker->flights.next(other_flight)) {
        if (other_flight->arena == &arena && other_flight->kind == ActionKind::LOAD) {
            suspect(*other_flight);
            break;
        }
    }
}

// Counts a fault against a model and the requests of a flight, which have been taken back already.
void Recovery::accuse(const Flight& flight, Fault fault) {
    Model& model = *flight.residency->model;
    std::uint8_t evidence = fault == Fault::CRASHED ? EVIDENCE_CRASHED : EVIDENCE_LOST;
    bool is_enough = false;
    if (fault == Fault::OVERRUN) {
        // An overrun of an idle-time measurement, whose values mean nothing, is only noted. Overruns at the
        // same time count as one: several devices that are slow together are not the model's doing.
        if (flight.kind == ActionKind::INFER && flight.sent_ns >= model.overrun_ns) {
            model.overrun_ns = state_.now;
            is_enough = model.overruns.add(state_.now);
        }
    } else if (transfers(flight.kind)) {
        model.load_evidence = static_cast<std::uint8_t>(model.load_evidence + evidence);
        is_enough = model.load_evidence >= EVIDENCE_MAX;
    } else {
        bool has_open = false;
        if (flight.kind == ActionKind::INFER) {
            for (Pending* pending : flight.batch->pendings) {
                if (!pending->answered) {
                    has_open = true;
                    pending->alone = true;
                    pending->evidence = static_cast<std::uint8_t>(pending->evidence + evidence);
                    is_enough |= pending->evidence >= EVIDENCE_MAX;
                }
            }
        }
        // An execution whose requests had all expired took long, which makes an accident less likely.
        bool counts = fault == Fault::CRASHED || (!has_open && flight.kind == ActionKind::INFER);
        for (std::uint8_t count = 0; counts && count < evidence; ++count) {
            is_enough |= model.unanswerable.add(state_.now);
        }
    }
    bool sets_aside = is_enough && !model.draining;
    if (fault == Fault::WORKER_LOST && !sets_aside) {
        return;  // the cause of the loss is uncertain
    }
    Command& command = state_.order(CommandKind::MODEL_FAULT);
    command.model_id = model.model_id;
    command.worker = flight.arena->worker->worker_id;
    command.fault = fault;
    command.set_aside = sets_aside;
    if (!sets_aside) {
        return;
    }
    model.aside = model.draining = true;  // set_aside() follows, once the books are consistent
}

// Answers every request for a model that was set aside, except those under way, in the order of arrival.
void Recovery::set_aside(Model& model) {
    std::vector<RequestId> all;
    state_.pendings.for_each([&](const Pending& pending) {
        if (pending.model == &model && pending.flight == nullptr) {
            all.push_back(pending.request.id);
        }
    });
    std::sort(all.begin(), all.end());
    for (RequestId id : all) {
        // A request not found was answered with an earlier one.
        if (Pending* pending = state_.pendings.find(id); pending != nullptr) {
            requests_.fail(*pending, Status::UNAVAILABLE, AnswerText::SET_ASIDE);
        }
    }
    models_.check_removed(model);
}

void Recovery::follow(Model& model) {
    if (model.aside) {
        set_aside(model);
    } else if (model.draining) {
        models_.check_removed(model);
    }
}

}  // namespace clockwork
