#include "scheduler/requests.h"

#include <algorithm>

namespace clockwork {

Requests::Requests(State& state, Arenas& arenas, Models& models, const Deciders& deciders,
                   const SchedulerOptions& options)
    : state_(state),
      arenas_(arenas),
      models_(models),
      deciders_(deciders),
      requests_max_(options.queued_requests_max > 0 ? options.queued_requests_max : QUEUED_REQUESTS_MAX),
      bytes_max_(options.queued_bytes_max > 0 ? options.queued_bytes_max : QUEUED_BYTES_MAX) {}

Pending* Requests::make(const Request& request, Model& model) {
    Pending* pending = state_.pool<Pending>().make();
    pending->request = request;
    pending->model = &model;
    pending->deadline_ns = request.deadline_ns;
    pending->size = model.batches ? request.rows : 1;
    return pending;
}

void Requests::open(Pending& pending) {
    const Request& request = pending.request;
    state_.pendings.set(request.id, &pending);
    bytes_ += request.bytes;
    if (levels_[request.priority]++ == 0) {
        levels_used_[request.priority / 64] |= std::uint64_t{1} << (request.priority % 64);
    }
    ++pending.model->live;
    ++counts_.admitted;
    demand_.add(state_.now, pending);
}

void Requests::close(Pending& pending) {
    const Request& request = pending.request;
    pending.answered = true;
    state_.pendings.erase(request.id);
    bytes_ -= request.bytes;
    if (--levels_[request.priority] == 0) {
        levels_used_[request.priority / 64] &= ~(std::uint64_t{1} << (request.priority % 64));
    }
    if (pending.flight == nullptr) {  // otherwise the flight refers to it until it ends
        state_.retire(&pending);
    }
    Model& model = *pending.model;
    if (--model.live == 0 && model.draining) {
        models_.check_removed(model);
    }
}

void Requests::say(Command& command, const AnswerSentence& said) {
    command.text = said.text;
    command.a = said.a;
    command.b = said.b;
    command.c = said.c;
    if (said.words != nullptr && !said.words->empty()) {
        command.said = static_cast<std::int32_t>(state_.out.texts.size());
        state_.out.texts.push_back(*said.words);
    }
}

void Requests::refuse(const Request& request, Reason reason, AnswerSentence said, Ns feasible_slo_ns,
                      Ns retry_after_ns) {
    ++counts_.refused;
    Command& command = state_.order(CommandKind::ANSWER_FAILED);
    command.request_id = request.id;
    command.model_id = request.model_id;
    command.status = Status::REFUSED;
    command.reason = reason;
    command.feasible_slo_ns = std::max<Ns>(feasible_slo_ns, 0);
    command.retry_after_ns = std::max<Ns>(retry_after_ns, 0);
    say(command, said);
}

void Requests::refuse(Pending& pending, Reason reason, AnswerSentence said, Ns feasible_slo_ns, Ns retry_after_ns) {
    if (reason == Reason::DEADLINE || reason == Reason::MEMORY || reason == Reason::OVERLOADED) {
        demand_.add(state_.now, pending);  // another device might have served it
    }
    refuse(pending.request, reason, said, feasible_slo_ns, retry_after_ns);
    state_.retire(&pending);
}

void Requests::refuse_below_idle(Pending& pending, Ns least_ns, Ns slo_ns) {
    Ns exec = pending.model->least_hoped_ns(pending.request.shape, pending.size);
    Reason reason = exec >= slo_ns ? Reason::INFEASIBLE : Reason::DEADLINE;
    refuse(pending.request, reason, AnswerSentence(AnswerText::SLO_BELOW_IDLE, least_ns, slo_ns, exec),
           std::max(least_ns, slo_ns + 1));
    state_.retire(&pending);
}

void Requests::fail(Pending& pending, Status status, AnswerSentence said, Reason reason, Ns feasible_slo_ns,
                    Ns retry_after_ns) {
    ++(status == Status::DEADLINE_MISSED ? counts_.missed
       : reason == Reason::DISPLACED     ? counts_.displaced
       : status == Status::REFUSED       ? counts_.refused
                                         : counts_.failed);
    Command& command = state_.order(CommandKind::ANSWER_FAILED);
    command.request_id = pending.request.id;
    command.model_id = pending.model->model_id;
    command.status = status;
    command.reason = reason;
    command.feasible_slo_ns = feasible_slo_ns;
    command.retry_after_ns = retry_after_ns;
    say(command, said);
    Flight* flight = pending.flight;
    if (flight == nullptr) {
        if (pending.request.arrived_ns < state_.now) {
            state_.note_waited(*pending.model, pending.request.arrived_ns, nullptr);
        }
        deciders_.policy->unplan(pending);
    }
    close(pending);
    if (flight != nullptr && !flight->revoked && flight->batch != nullptr) {
        for (const Pending* mate : flight->batch->pendings) {
            if (!mate->answered) {
                return;
            }
        }
        state_.revoke(*flight);
    }
}

void Requests::answer_ok(Pending& pending, const Flight& flight, const ActionResult& result) {
    const Request& request = pending.request;
    Command& command = state_.order(CommandKind::ANSWER_OK);
    command.request_id = request.id;
    command.model_id = request.model_id;
    command.action_id = result.action_id;
    command.part = pending.part;
    command.queue_ns = std::max<Ns>(result.begin_ns - request.arrived_ns - pending.load_ns, 0);
    command.load_ns = pending.load_ns;
    command.exec_ns = result.duration_ns;
    ++pending.model->served;
    ++flight.executor->served;
    ++counts_.answered;
    close(pending);
}

// ----- once more ----------------------------------------------------------------------------------

void Requests::again(Pending& pending, Status status, const AnswerSentence& said, bool count, Reason reason) {
    if (pending.answered) {
        return;
    }
    if (pending.evidence >= EVIDENCE_MAX) {
        fail(pending, Status::EXECUTION_FAILED, AnswerText::ENDED_WORKERS);
        return;
    }
    if (pending.model->aside) {
        fail(pending, Status::UNAVAILABLE, AnswerText::SET_ASIDE);
        return;
    }
    pending.attempts = static_cast<std::uint8_t>(pending.attempts + count);
    if (pending.attempts < ATTEMPTS_MAX && !pending.model->workers.empty()) {
        if (pending.deadline_ns >= NEVER_NS) {
            to_background(pending, pending.evidence == 0);
            return;
        }
        if (deciders_.policy->replace(pending)) {
            return;
        }
    }
    fail(pending, status, said, reason);
}

void Requests::to_background(Pending& pending, bool first) {
    Model& model = *pending.model;
    if (model.background.empty()) {
        state_.background.push_back(&model);
    }
    model.background.enter(&pending, first);
    wake_devices(model);
}

void Requests::leave_background(Pending& pending) {
    Model& model = *pending.model;
    model.background.leave(&pending);
    if (model.background.empty()) {
        state_.background.erase(&model);
    }
}

void Requests::wake_devices(Model& model) {
    if (model.residencies.size() <= WAKE_MAX) {
        for (Residency* residency : model.residencies) {
            state_.touch_idle(*residency->arena);
        }
    } else {  // a busy device is handled when its action is done
        std::size_t count = model.residencies.size(), at = model.place_cursor % count;
        for (std::size_t looked = 0; looked < WAKE_MAX; ++looked) {
            Arena& arena = *model.residencies[at]->arena;
            at = at + 1 < count ? at + 1 : 0;
            if (arena.is_idle()) {
                model.place_cursor = static_cast<std::uint32_t>(at);
                state_.touch_idle(arena);
                break;
            }
        }
    }
    if (!model.is_within_reach()) {
        arenas_.find_loadable(model, places_);
        for (const Place& place : places_) {
            state_.touch_idle(*place.arena);
        }
    }
}

void Requests::left_background(Model& model) {
    if (model.background.empty()) {
        state_.background.erase(&model);
    } else {
        state_.background.move_to_end(&model);
    }
}

void Requests::fail_background(Model& model, Status status, const AnswerSentence& said) {
    while (Pending* pending = model.background.front()) {
        fail(*pending, status, said);
    }
}

void Requests::check_invariants() const {
    std::uint64_t bytes = 0;
    std::array<std::uint64_t, 256> levels{};
    state_.pendings.for_each([&](const Pending& pending) {
        bytes += pending.request.bytes;
        ++levels[pending.request.priority];
    });
    must(bytes == bytes_, "queued bytes were miscounted");
    must(levels == levels_, "the counts by priority are wrong");
}

}  // namespace clockwork
