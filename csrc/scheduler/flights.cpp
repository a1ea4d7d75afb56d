#include "scheduler/flights.h"

#include <algorithm>

namespace clockwork {

Command& Flights::order(CommandKind kind, const Flight& flight) {
    const Arena& arena = *flight.arena;
    Command& command = state_.order(kind);
    command.worker = arena.worker->worker_id;
    command.device = static_cast<std::int32_t>(flight.executor != nullptr ? flight.executor->index : arena.index);
    command.action_id = flight.action_id;
    command.model_id = flight.residency->model->model_id;
    command.load_id = flight.residency->load_id;
    return command;
}

PredictedLane& Flights::predicted_lane(const Flight& flight) {
    switch (lane_of(flight.kind)) {
        case LaneKind::LOAD: return flight.arena->worker->predicted_loads;
        case LaneKind::FETCH: return flight.arena->worker->predicted_fetches;
        case LaneKind::EXECUTE: break;
    }
    return flight.executor->predicted;
}

void send_inputs(Flight& flight, Ns now) {
    Worker& worker = *flight.executor->worker;
    std::uint64_t bytes = 0;
    for (const Pending* pending : flight.batch->pendings) {
        bytes += pending->request.bytes;
        flight.copied_bytes += pending->request.copied_bytes;
    }
    // References are tiny messages, and their arrival is not reported.
    bool is_sent = flight.copied_bytes == 0 || bytes >= INPUTS_SAMPLE_BYTES;
    flight.inputs = worker.inputs.depart(now, is_sent ? bytes : 0, worker.there_ns);
    worker.copies.depart(flight.copied_bytes);
    flight.there_ns = worker.inputs.free_ns() + worker.there_ns + worker.copies.takes_ns(now, flight.copied_bytes);
}

void learn_inputs(const Flight& flight, Ns now, Ns ready_ns, bool is_ok) {
    Worker& worker = *flight.executor->worker;
    if (flight.copied_bytes == 0 && flight.inputs > 0) {
        worker.inputs.arrived(now, flight.inputs, ready_ns, worker.there_ns);
        // a batch whose inputs came both by message and from memory is no clear sample
    } else if (is_ok && flight.copied_bytes > 0 && flight.inputs == 0) {
        worker.copies.arrived(now, flight.copied_bytes, flight.sent_ns + worker.there_ns, ready_ns);
    }
}

Flight* Flights::make(Arena& arena, ActionKind kind, Residency& residency, Batch* batch, Ns expected_ns,
                      Ns duration_ns) {
    Flight* flight = state_.pool<Flight>().make();
    flight->action_id = state_.next_action();
    flight->kind = kind;
    flight->arena = &arena;
    flight->executor = batch != nullptr ? batch->executor : nullptr;
    flight->residency = &residency;
    flight->batch = batch;
    flight->expected_ns = flight->alone_ns = expected_ns;
    flight->duration_ns = duration_ns;
    flight->sent_ns = state_.now;
    flight->there_ns = state_.now + arena.worker->there_ns;
    return flight;
}

void Flights::enter(Flight& flight) {
    if (!frees(flight.kind)) {
        PredictedLane& lane = predicted_lane(flight);
        flight.predicted_end_ns = lane.sent(flight.there_ns, flight.expected_ns);
    }
    state_.flights.set(flight.action_id, &flight);
    flight.arena->worker->flights.push_back(&flight);
}

void Flights::end(Flight& flight) {
    state_.flights.erase(flight.action_id);
    flight.arena->worker->flights.erase(&flight);
    if (transfers(flight.kind)) {
        Worker& worker = *flight.arena->worker;
        (lane_of(flight.kind) == LaneKind::LOAD ? worker.loads_ns : worker.fetches_ns) -= flight.duration_ns;
    }
    state_.retire(&flight);
}

void Flights::judge(const Flight& flight, const ActionResult& result) {
    if (frees(flight.kind)) {
        return;
    }
    bool is_done = result.status == Status::OK;
    PredictedLane& lane = predicted_lane(flight);
    // The clocks of two machines were compared.
    bool is_sane = 0 < result.end_ns && result.end_ns <= state_.now;
    Ns end = is_sane ? result.end_ns : state_.now - flight.arena->worker->back_ns;
    lane.ended(is_done ? end - flight.predicted_end_ns : -flight.expected_ns);
    if (!is_done || flight.kind == ActionKind::PROFILE || flight.sent_ns < state_.judged_from_ns ||
        flight.sent_ns >= state_.judged_until_ns) {
        return;
    }
    Ns took = result.duration_ns != 0 ? result.duration_ns : result.end_ns - result.begin_ns;
    bool is_load = lane_of(flight.kind) == LaneKind::LOAD, is_fetch = lane_of(flight.kind) == LaneKind::FETCH;
    Errors& durations = is_load    ? state_.predictions.load_duration
                        : is_fetch ? state_.predictions.fetch_duration
                                   : state_.predictions.infer_duration;
    Errors& completions = is_load    ? state_.predictions.load_completion
                          : is_fetch ? state_.predictions.fetch_completion
                                     : state_.predictions.infer_completion;
    durations.add(flight.expected_ns - took);
    if (flight.kind == ActionKind::INFER && flight.expected_ns > 0) {
        state_.predictions.took(took, flight.expected_ns);
    }
    completions.add(flight.predicted_end_ns - end);
}

}  // namespace clockwork
