#include "scheduler/reservations.h"

#include <algorithm>

namespace clockwork {

void Reservations::want(Executor& executor, ModelId model_id, Ns expected_ns, const std::vector<std::uint32_t>& runs) {
    Reservation& one = executor.reservation;
    expected_ns = std::clamp<Ns>(expected_ns, 0, RESERVE_NS_MAX);
    // What is wanted soon after the last goes on with it, and so does what replaces another: it has waited already.
    if (one.expected_ns == 0 && state_.now - one.ended_ns > RESERVE_AGE_NS) {
        one.since_ns = state_.now;
    }
    one.wanted_ns = state_.now;
    one.model_id = model_id;
    one.expected_ns = expected_ns;
    one.runs = runs;
    if (one.action_id == 0 && (expected_ns == 0 || one.runs != one.lent_runs)) {
        give_back(executor);
        state_.touch(*executor.arena);
    }
    state_.touch(executor);
}

Ns Reservations::begin_ns(const Executor& executor) const {
    Ns free = executor.free_ns(state_.now);
    return executor.reservation.runs.empty() ? free : std::max(free, executor.worker->link_free_ns);
}

bool Reservations::is_time(Executor& executor) const {
    const Reservation& one = executor.reservation;
    const Worker& worker = *executor.worker;
    Ns duration = with_margin(one.expected_ns), waited = state_.now - one.since_ns;
    if (one.again_ns > state_.now) {
        executor.wake_at(one.again_ns);
        return false;
    }
    bool has_link = one.runs.empty() || worker.link_free_ns <= state_.now + worker.there_ns;
    if (!has_link) {
        executor.wake_at(worker.link_free_ns - worker.there_ns);
    }
    bool is_free = has_link && executor.lane.empty() && !deciders_.policy->has_work(executor) &&
                   deciders_.policy->planned(executor).empty();
    if (is_free && executor.arena->loading == 0) {
        Ns idle = state_.now - executor.idle_since_ns, quiet = executor.gaps.quiet_ns(RESERVE_QUIET_NS);
        Ns until = idle + duration + one.over_ns;
        if (until <= executor.gaps.likely_ns() || idle >= quiet ||
            (idle >= RESERVE_AGE_NS && !executor.gaps.ended_between(idle, until))) {
            return true;
        }
        executor.wake_at(executor.idle_since_ns + quiet);
        if (idle > RESERVE_EARLY_NS && state_.now - std::max(one.since_ns, one.ended_ns) < RESERVE_BUSY_NS) {
            executor.wake_at(std::max(executor.idle_since_ns + RESERVE_AGE_NS, state_.now + RESERVE_RETRY_NS));
            return false;
        }
    }
    Ns due = one.since_ns + (is_free ? RESERVE_AGE_NS : RESERVE_BUSY_NS);
    if (std::max(due, one.next_ns) > state_.now) {
        executor.wake_at(std::max(due, one.next_ns));
        return false;
    }
    return waited >= RESERVE_BUSY_NS || is_free;
}

void Reservations::look(Executor& executor) {
    Reservation& one = executor.reservation;
    if (one.expected_ns == 0 || one.action_id != 0 || !executor.usable() || executor.is_closed()) {
        return;
    }
    if (!one.victims.empty()) {
        take_pages(executor);  // they serve nobody: the sooner they have gone, the sooner they come back
    }
    if (!is_time(executor)) {
        return;
    }
    Ns duration = with_margin(one.expected_ns), link_ns = one.runs.empty() ? 0 : duration;
    if (!deciders_.policy->can_wait(executor, begin_ns(executor) + duration, link_ns) || !take_pages(executor)) {
        executor.wake_at(state_.now + RESERVE_RETRY_NS);
        return;
    }
    Worker& worker = *executor.worker;
    one.next_ns = state_.now + duration * RESERVE_PARTS;
    one.sent_ns = state_.now;
    Ns free = executor.free_ns(state_.now);
    one.until_ns = begin_ns(executor) + duration;
    one.action_id = state_.next_action();
    // It may need the link, and what stalls the device stalls its loads.
    worker.reserved_ns = std::max(worker.reserved_ns, one.until_ns);
    worker.link_free_ns = std::max(worker.link_free_ns, one.until_ns);
    Command& command = state_.order(CommandKind::SEND_RESERVE);
    command.worker = worker.worker_id;
    command.device = static_cast<std::int32_t>(executor.index);
    command.action_id = one.action_id;
    command.model_id = one.model_id;
    command.first = static_cast<std::uint32_t>(state_.out.runs.size());
    command.count = static_cast<std::uint32_t>(one.starts.size());
    state_.out.runs.insert(state_.out.runs.end(), one.starts.begin(), one.starts.end());
    command.earliest_ns = state_.now;
    command.latest_ns = free + RESERVE_LATE_NS;
    command.expected_ns = one.expected_ns;
}

bool Reservations::ended(const ActionResult& result) {
    for (Executor* executor : state_.executors) {  // it is rare
        Reservation& one = executor->reservation;
        if (one.action_id == 0 || one.action_id != result.action_id || executor->worker->worker_id != result.worker) {
            continue;
        }
        bool is_done = result.status == Status::OK;
        bool is_sane = is_done && 0 < result.end_ns && result.end_ns <= state_.now;
        if (is_sane) {  // it may have taken far longer than expected
            Ns took = std::clamp<Ns>(result.end_ns - result.begin_ns, 0, state_.now - one.sent_ns);
            one.next_ns = std::max(one.next_ns, one.sent_ns + took * RESERVE_PARTS);
        }
        if (result.status == Status::OVERRUN) {
            Command& command = state_.order(CommandKind::MODEL_FAULT);
            command.model_id = one.model_id;
            command.worker = result.worker;
            command.a = static_cast<Ns>(Fault::TRIAL_STUCK);
            command.b = false;
        }
        Ns over = std::clamp<Ns>(state_.now - one.until_ns, 0, RESERVE_OVER_NS_MAX);
        one.over_ns = std::max(over, one.over_ns - one.over_ns / 8);
        one.action_id = 0;
        leave_link(*executor);
        one.until_ns = 0;
        one.ended_ns = state_.now;
        if (!is_done) {
            one.again_ns = state_.now + RESERVE_RETRY_NS;
        } else if (one.sent_ns >= one.wanted_ns) {
            one.expected_ns = 0;  // what was wanted has been had
        }
        if (one.expected_ns == 0 && one.runs != one.lent_runs) {
            give_back(*executor);
        }
        if (Flight* head = executor->lane.front(); head != nullptr && head->sent_ns >= one.sent_ns) {
            executor->retime_lane(is_sane ? result.end_ns : state_.now - executor->worker->back_ns);
        }
        state_.touch(*executor->arena);
        return true;
    }
    return false;
}

void Reservations::leave_link(const Executor& executor) {
    Worker& worker = *executor.worker;
    Ns until = executor.reservation.until_ns;
    if (worker.reserved_ns == until) {
        worker.reserved_ns = 0;
    }
    if (worker.link_free_ns == until) {  // no LOAD was sent behind it
        worker.retime_link();
    }
}

bool Reservations::take_pages(Executor& executor) {
    Reservation& one = executor.reservation;
    const auto& flights = executor.worker->flights;
    if (one.runs != one.lent_runs) {
        executor.arena->pages.free(one.starts, one.lent_runs);
        one.starts.clear();
        one.lent_runs.clear();
        if (!arenas_.make_way(*executor.arena, one, state_.now - one.since_ns >= RESERVE_BUSY_NS)) {
            return false;
        }
        one.lent_runs = one.runs;
    }
    for (const Flight* flight = flights.front(); !one.runs.empty() && flight != nullptr;
         flight = flights.next(flight)) {
        if (flight->kind == FlightKind::UNLOAD && flight->arena == executor.arena) {
            return false;  // of one that made way, perhaps
        }
    }
    return true;
}

void Reservations::give_back(Executor& executor) {
    Reservation& one = executor.reservation;
    executor.arena->pages.free(one.starts, one.lent_runs);
    one.starts.clear();
    one.lent_runs.clear();
    arenas_.absolve(*executor.arena, one.victims);
}

}  // namespace clockwork
