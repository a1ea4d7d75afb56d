#include "scheduler/executions.h"

#include <algorithm>

namespace clockwork {

Batch* Executions::make_batch(Executor& executor, Residency& residency, std::uint32_t shape, Curve* curve, Ns key_ns) {
    Batch* batch = state_.pool<Batch>().make();
    batch->residency = &residency;
    batch->executor = &executor;
    batch->shape = shape;
    batch->curve = curve;
    batch->key_ns = key_ns;
    return batch;
}

Flight* Executions::fly(ActionKind kind, Batch& batch, Ns expected_ns, Ns duration_ns) {
    Residency& residency = *batch.residency;
    Executor& executor = *batch.executor;
    Flight* flight = flights_.make(*executor.arena, kind, residency, &batch, expected_ns, duration_ns);
    if (kind == ActionKind::INFER) {
        deciders_.policy->depart(*flight);
    }
    flights_.enter(*flight);
    if (executor.lane.empty() && kind == ActionKind::INFER) {
        Ns came = state_.now;  // a request may have waited for a reservation, or for a load
        for (const Pending* pending : batch.pendings) {
            came = std::min(came, pending->request.arrived_ns);
        }
        if (came > executor.idle_since_ns) {
            executor.gaps.add(came - executor.idle_since_ns);
        }
    }
    flight->begin_ns = std::max(executor.free_ns(state_.now), flight->there_ns);
    executor.lane_end_ns = flight->begin_ns + duration_ns;
    if (executor.lane.empty()) {
        executor.head_end_ns = executor.lane_end_ns;
    }
    executor.lane.push_back(flight);
    ++residency.flying;
    residency.used_ns = state_.now;
    executor.arena->resident.move_to_end(&residency);
    return flight;
}

// A neighbour is busy until the end of its lane, and beyond it if it is expected to have work then. Each
// nanosecond beside a busy neighbour costs the same part of the drag.
Ns Executions::beside_ns(const Executor& executor, Ns alone_ns, Ns most_ns) const {
    if (alone_ns == most_ns) {
        return most_ns;
    }
    const Arena& arena = *executor.arena;
    Ns begin = executor.free_ns(state_.now), shared = 0;
    for (const Executor* other = arena.executors.front(); other != nullptr; other = other->after) {
        if (other == &executor) {
            continue;
        }
        Ns busy = other->lane.empty() ? 0 : std::clamp<Ns>(other->free_ns(state_.now) - begin, 0, most_ns);
        shared += busy < most_ns && deciders_.policy->expects_work(*other) ? most_ns : busy;
    }
    double part = static_cast<double>(shared) / static_cast<double>(most_ns) / (arena.width() - 1);
    return alone_ns + static_cast<Ns>(static_cast<double>(most_ns - alone_ns) * part);
}

Flight* Executions::send(Batch& batch) {
    Residency& residency = *batch.residency;
    Executor& executor = *batch.executor;
    const Worker& worker = *executor.worker;
    Ns alone = executor.paced(batch.alone_ns(batch.size));
    Ns expected = beside_ns(executor, alone, executor.paced(batch.expected_ns(batch.size)));
    Flight* flight = fly(ActionKind::INFER, batch, expected, executor.paced(batch.duration_ns));
    flight->alone_ns = alone;
    Command& command = flights_.order(CommandKind::SEND_INFER, *flight);
    command.first = static_cast<std::uint32_t>(state_.out.ids.size());
    command.count = static_cast<std::uint32_t>(batch.pendings.size());
    Ns deadline = NEVER_NS, since = state_.now;
    std::uint64_t bytes = 0;
    std::uint32_t part = 0;
    for (Pending* pending : batch.pendings) {
        since = std::min(since, pending->request.arrived_ns);
        deadline = std::min(deadline, pending->deadline_ns);
        pending->batch = nullptr;
        pending->flight = flight;
        pending->part = part++;
        flight->is_apart |= pending->evidence > 0;
        bytes += pending->request.bytes;
        state_.out.ids.push_back(pending->request.id);
    }
    flight->charged_ns = std::max(expected, inputs_ns(*executor.arena, state_.now, bytes));
    charge(residency, state_.now, flight->charged_ns);
    must(!flight->is_apart || (executor.lane.size() == 1 && part == 1), "a suspect was not sent by itself");
    flight->waits_since_ns = std::max(since, residency.loaded_ns);
    flight->leaves_work = deciders_.policy->has_work(executor);
    state_.note_waited(*residency.model, since, &executor);
    command.earliest_ns = state_.now;
    // The controller may have stalled since the batch was planned: then the worker rejects it as late.
    command.latest_ns = deadline < NEVER_NS ? std::max(deadline - expected - worker.back_ns, state_.now) : NEVER_NS;
    command.expected_ns = expected;
    return flight;
}

// While an execution is far longer than expected, nobody knows its end, or the duration of similar batches
// behind it. So nothing waits there, and the next batches are chosen after its end.
void Executions::recall_waiting(const Executor& executor) {
    for (Flight* flight = executor.lane.next(executor.lane.front()); flight != nullptr;
         flight = executor.lane.next(flight)) {
        if (flight->kind == ActionKind::INFER && !flight->revoked) {
            flight->is_recalled = true;
            state_.revoke(*flight);
        }
    }
}

bool Executions::charge_overdue(const Flight& flight, const ActionResult& result) {
    Ns took = result.duration_ns != 0 ? result.duration_ns : result.end_ns - result.begin_ns;
    if (!is_overdue(took, flight.expected_ns) || took > state_.now - flight.sent_ns) {
        if (result.status == Status::OK) {
            excuse_overdue(*flight.residency);
        }
        return false;
    }
    clockwork::charge_overdue(*flight.residency, state_.now, took - flight.expected_ns);
    return true;
}

void Executions::measure(Executor& executor, Residency& residency, std::uint32_t shape, std::uint32_t rows,
                         Ns bound_ns) {
    Batch* batch = make_batch(executor, residency, shape, nullptr, NEVER_NS);
    batch->size = rows;
    Flight* flight = fly(ActionKind::PROFILE, *batch, bound_ns, bound_ns);
    Command& command = flights_.order(CommandKind::SEND_PROFILE, *flight);
    command.rows = rows;
    command.shape = shape;
    command.earliest_ns = state_.now;
    command.latest_ns = NEVER_NS;
    command.expected_ns = bound_ns;
}

// ----- results ------------------------------------------------------------------------------------

// A batch that is too late is refused at once, when its worker could have begun the batch. Of one that was
// executed the way back counts as well; the margin is there for executions, and covers the same time.
void Executions::learn_late(const Flight& flight, const ActionResult& result, bool is_sane) const {
    Executor& executor = *flight.executor;
    Ns back = executor.worker->back_ns;
    if (result.status == Status::TOO_LATE) {
        executor.late.saw(state_.now, flight.expected_ns, state_.now - back - flight.begin_ns);
    } else if (is_sane && result.status == Status::OK) {
        Ns late = result.begin_ns - flight.begin_ns + state_.now - result.end_ns - back;
        Ns margin = flight.duration_ns - flight.expected_ns;
        executor.late.saw(state_.now, flight.expected_ns, late - margin);
    }
}

void Executions::leave_lane(Flight& flight, const ActionResult& result) {
    Executor& executor = *flight.executor;
    const Worker& worker = *executor.worker;
    bool is_first = executor.lane.front() == &flight;
    bool is_sane = 0 < result.end_ns && result.end_ns <= state_.now;
    if (is_first && is_sane && result.status == Status::OK) {
        // The lead that the next action would have needed: beyond the predicted delay of its way, had it been
        // as late as this one.
        Ns late = result.ready_ns > 0 ? result.ready_ns - flight.there_ns : 0;
        executor.lead.needed(state_.now, executor.head_end_ns - result.end_ns + late);
    }
    if (flight.kind == ActionKind::INFER && flight.expected_ns > 0) {
        learn_late(flight, result, is_sane);
    }
    executor.lane.erase(&flight);
    --flight.residency->flying;
    if (executor.lane.empty()) {
        executor.idle_since_ns = state_.now;
    } else if (is_first) {
        Ns end = is_sane ? result.end_ns : state_.now - worker.back_ns;
        executor.lane.front()->begin_ns = std::max(executor.lane.front()->begin_ns, end);
        executor.retime_lane(end);
    } else {
        executor.lane_end_ns -= flight.duration_ns;
    }
}

void Executions::look_beside(Flight& flight, const ActionResult& result) const {
    const Arena& arena = *flight.arena;
    if (arena.executors.size() == 1 || result.status != Status::OK) {
        return;
    }
    Ns from = result.begin_ns, until = result.end_ns;
    if (from <= 0 || until <= from || until > state_.now) {
        // Two clocks were compared: the neighbours that are busy now must do.
        from = state_.now - 1;
        until = state_.now;
    }
    Ns sum = 0;
    for (const Executor* other = arena.executors.front(); other != nullptr; other = other->after) {
        sum += other != flight.executor ? other->executed_ns(from, until) : 0;
    }
    double share = static_cast<double>(sum) / static_cast<double>(until - from) / (arena.width() - 1);
    flight.beside = static_cast<BusyShare>(share * ALL_BUSY + 0.5);
}

// Counts an execution's time; the time before it was idle.
void Executions::count(const Flight& flight, const ActionResult& result) {
    bool has_run = result.status == Status::OK || result.status == Status::EXECUTION_FAILED;
    if (!has_run || result.begin_ns <= 0 || result.end_ns < result.begin_ns || result.end_ns > state_.now) {
        return;
    }
    if (flight.kind == ActionKind::INFER) {
        Ns until = flight.leaves_work ? result.begin_ns : std::min(result.begin_ns, flight.sent_ns);
        state_.count_idle(*flight.executor, flight.waits_since_ns, until);
    }
    flight.executor->time.executed(result.begin_ns, result.end_ns, state_.now);
    if (flight.arena->executors.size() > 1) {
        flight.executor->stretches.add(result.begin_ns, result.end_ns);
    }
}

// Appends the unanswered requests of a flight that ended, free to be planned again.
void Executions::take_back(Flight& flight, std::vector<Pending*>& waiting) {
    for (Pending* pending : flight.batch->pendings) {
        if (!pending->answered) {
            pending->flight = nullptr;
            waiting.push_back(pending);
        } else if (pending->flight == &flight) {
            pending->flight = nullptr;
            state_.retire(pending);
        }
    }
}

void Executions::retire(Flight& flight) {
    if (flight.kind == ActionKind::INFER) {
        deciders_.policy->ended(flight);
    }
    for (Pending* pending : flight.batch->pendings) {
        if (pending->answered && pending->flight == &flight) {
            pending->flight = nullptr;
            state_.retire(pending);
        }
    }
    state_.retire(flight.batch);
}

}  // namespace clockwork
