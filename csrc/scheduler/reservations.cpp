#include "scheduler/reservations.h"

#include <algorithm>

namespace clockwork {

void Reservations::want(Executor& executor, ModelId model_id, Ns expected_ns, const std::vector<std::uint32_t>& runs) {
    Reservation& reservation = executor.reservation;
    expected_ns = std::clamp<Ns>(expected_ns, 0, RESERVE_NS_MAX);
    // A want soon after the last one continues its wait, as does a replacement.
    if (reservation.expected_ns == 0 && state_.now - reservation.ended_ns > RESERVE_AGE_NS) {
        reservation.since_ns = state_.now;
    }
    reservation.wanted_ns = state_.now;
    reservation.model_id = model_id;
    reservation.expected_ns = expected_ns;
    reservation.runs = runs;
    if (reservation.action_id == 0 && (expected_ns == 0 || reservation.runs != reservation.lent_runs)) {
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
    const Reservation& reservation = executor.reservation;
    const Worker& worker = *executor.worker;
    Ns duration = with_margin(reservation.expected_ns), waited = state_.now - reservation.since_ns;
    if (reservation.again_ns > state_.now) {
        executor.wake_at(reservation.again_ns);
        return false;
    }
    bool has_link = reservation.runs.empty() || worker.link_free_ns <= state_.now + worker.there_ns;
    if (!has_link) {
        executor.wake_at(worker.link_free_ns - worker.there_ns);
    }
    bool is_free = has_link && executor.lane.empty() && !deciders_.policy->has_work(executor) &&
                   deciders_.policy->planned(executor).empty();
    if (is_free && executor.arena->loading == 0) {
        Ns idle = state_.now - executor.idle_since_ns, quiet = executor.gaps.quiet_ns(RESERVE_QUIET_NS);
        Ns until = idle + duration + reservation.over_ns;
        if (until <= executor.gaps.likely_ns() || idle >= quiet ||
            (idle >= RESERVE_AGE_NS && !executor.gaps.ended_between(idle, until))) {
            return true;
        }
        executor.wake_at(executor.idle_since_ns + quiet);
        if (idle > RESERVE_EARLY_NS &&
            state_.now - std::max(reservation.since_ns, reservation.ended_ns) < RESERVE_BUSY_NS) {
            executor.wake_at(std::max(executor.idle_since_ns + RESERVE_AGE_NS, state_.now + RESERVE_RETRY_NS));
            return false;
        }
    }
    Ns due = reservation.since_ns + (is_free ? RESERVE_AGE_NS : RESERVE_BUSY_NS);
    if (std::max(due, reservation.next_ns) > state_.now) {
        executor.wake_at(std::max(due, reservation.next_ns));
        return false;
    }
    return waited >= RESERVE_BUSY_NS || is_free;
}

void Reservations::look(Executor& executor) {
    Reservation& reservation = executor.reservation;
    if (reservation.expected_ns == 0 || reservation.action_id != 0 || !executor.usable() || executor.is_closed()) {
        return;
    }
    if (!reservation.victims.empty()) {
        // doomed models get no work: the sooner they are evicted, the sooner they can return
        take_pages(executor);
    }
    if (!is_time(executor)) {
        return;
    }
    Ns duration = with_margin(reservation.expected_ns), link_ns = reservation.runs.empty() ? 0 : duration;
    if (!deciders_.policy->can_wait(executor, begin_ns(executor) + duration, link_ns) || !take_pages(executor)) {
        executor.wake_at(state_.now + RESERVE_RETRY_NS);
        return;
    }
    Worker& worker = *executor.worker;
    reservation.next_ns = state_.now + duration * RESERVE_PARTS;
    reservation.sent_ns = state_.now;
    Ns free = executor.free_ns(state_.now);
    reservation.until_ns = begin_ns(executor) + duration;
    reservation.action_id = state_.next_action();
    // The RESERVE may need the link, and loads to a device that it stalls are stalled as well.
    worker.reserved_ns = std::max(worker.reserved_ns, reservation.until_ns);
    worker.link_free_ns = std::max(worker.link_free_ns, reservation.until_ns);
    Command& command = state_.order(CommandKind::SEND_RESERVE);
    command.worker = worker.worker_id;
    command.device = static_cast<std::int32_t>(executor.index);
    command.action_id = reservation.action_id;
    command.model_id = reservation.model_id;
    command.first = static_cast<std::uint32_t>(state_.out.runs.size());
    command.count = static_cast<std::uint32_t>(reservation.starts.size());
    state_.out.runs.insert(state_.out.runs.end(), reservation.starts.begin(), reservation.starts.end());
    command.earliest_ns = state_.now;
    command.latest_ns = free + RESERVE_LATE_NS;
    command.expected_ns = reservation.expected_ns;
}

bool Reservations::ended(const ActionResult& result) {
    for (Executor* executor : state_.executors) {  // rare, so a search suffices
        Reservation& reservation = executor->reservation;
        if (reservation.action_id == 0 || reservation.action_id != result.action_id ||
            executor->worker->worker_id != result.worker) {
            continue;
        }
        bool is_done = result.status == Status::OK;
        bool is_sane = is_done && 0 < result.end_ns && result.end_ns <= state_.now;
        if (is_sane) {  // the reservation may have taken far longer than expected
            Ns took = std::clamp<Ns>(result.end_ns - result.begin_ns, 0, state_.now - reservation.sent_ns);
            reservation.next_ns = std::max(reservation.next_ns, reservation.sent_ns + took * RESERVE_PARTS);
        }
        if (result.status == Status::OVERRUN) {
            Command& command = state_.order(CommandKind::MODEL_FAULT);
            command.model_id = reservation.model_id;
            command.worker = result.worker;
            command.fault = Fault::TRIAL_STUCK;
            command.set_aside = false;
        }
        Ns over = std::clamp<Ns>(state_.now - reservation.until_ns, 0, RESERVE_OVER_NS_MAX);
        reservation.over_ns = std::max(over, reservation.over_ns - reservation.over_ns / 8);
        reservation.action_id = 0;
        leave_link(*executor);
        reservation.until_ns = 0;
        reservation.ended_ns = state_.now;
        if (!is_done) {
            reservation.again_ns = state_.now + RESERVE_RETRY_NS;
        } else if (reservation.sent_ns >= reservation.wanted_ns) {
            reservation.expected_ns = 0;  // the reservation is no longer wanted
        }
        if (reservation.expected_ns == 0 && reservation.runs != reservation.lent_runs) {
            give_back(*executor);
        }
        if (Flight* head = executor->lane.front(); head != nullptr && head->sent_ns >= reservation.sent_ns) {
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
    Reservation& reservation = executor.reservation;
    const auto& flights = executor.worker->flights;
    if (reservation.runs != reservation.lent_runs) {
        executor.arena->pages.free(reservation.starts, reservation.lent_runs);
        reservation.starts.clear();
        reservation.lent_runs.clear();
        if (!arenas_.make_way(*executor.arena, reservation, state_.now - reservation.since_ns >= RESERVE_BUSY_NS)) {
            return false;
        }
        reservation.lent_runs = reservation.runs;
    }
    for (const Flight* flight = flights.front(); !reservation.runs.empty() && flight != nullptr;
         flight = flights.next(flight)) {
        if (flight->kind == ActionKind::UNLOAD && flight->arena == executor.arena) {
            return false;  // the pages of a model that was evicted for it may still be in use
        }
    }
    return true;
}

void Reservations::give_back(Executor& executor) {
    Reservation& reservation = executor.reservation;
    executor.arena->pages.free(reservation.starts, reservation.lent_runs);
    reservation.starts.clear();
    reservation.lent_runs.clear();
    arenas_.absolve(*executor.arena, reservation.victims);
}

}  // namespace clockwork
