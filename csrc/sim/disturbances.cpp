// Temporary disturbances of a simulated world.
#include <algorithm>

#include "sim/world.h"

namespace clockwork::sim {

void World::start_disturbances() {
    for (std::uint32_t number = 0; number < cluster_.disturbances.size(); ++number) {
        const DisturbanceSetup& disturbance = cluster_.disturbances[number];
        using enum DisturbanceSetup::Kind;
        if (disturbance.kind != CLOCK && disturbance.kind != STOP && disturbance.kind != RESTART)
            continue;
        heap_.push(base_ns_ + disturbance.from_ns, EventKind::DISTURB, number, 0, 1);
        heap_.push(base_ns_ + disturbance.until_ns, EventKind::DISTURB, number, 0, 0);
    }
    if (cluster_.ping_ns == 0)
        return;
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
        heap_.push(base_ns_ + cluster_.ping_ns, EventKind::PING, index, 0, 0);
    }
}

// Begins or ends a disturbance that is an event: a clock jumps, a worker is restarted, or one that stops for
// too long is considered lost.
void World::disturb(std::uint32_t number, bool begins) {
    const DisturbanceSetup& disturbance = cluster_.disturbances[number];
    note(203, number, begins);
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
        if (disturbance.worker >= 0 && static_cast<std::uint32_t>(disturbance.worker) != index)
            continue;
        WorkerState& worker = workers_[index];
        if (disturbance.kind == DisturbanceSetup::Kind::CLOCK) {
            worker.offset_ns += static_cast<Ns>(begins ? disturbance.factor : -disturbance.factor);
        } else if (disturbance.kind == DisturbanceSetup::Kind::RESTART) {
            if (begins)
                crash(index, false, base_ns_ + disturbance.until_ns);
        } else if (begins && disturbance.until_ns - disturbance.from_ns > cluster_.timeout_ns) {
            crash(index, true);  // it returns empty, as after a loss
        }
    }
}

bool World::holds(const DisturbanceSetup& disturbance, DisturbanceSetup::Kind kind, std::uint32_t worker,
                  Ns at_ns) const {
    const Ns at = at_ns - base_ns_;
    return disturbance.kind == kind && disturbance.from_ns <= at && at < disturbance.until_ns &&
           (disturbance.worker < 0 || static_cast<std::uint32_t>(disturbance.worker) == worker);
}

// Returns the time of work that begins at begin_ns and takes took_ns undisturbed. Work that outlasts the
// disturbance continues at its normal pace.
Ns World::slowed_ns(DisturbanceSetup::Kind kind, std::uint32_t worker, Ns begin_ns, Ns took_ns, ModelId model) const {
    if (!begun_)
        return took_ns;
    double slower = 1;
    Ns until = NEVER_NS;
    for (const DisturbanceSetup& disturbance : cluster_.disturbances) {
        bool is_other = disturbance.model >= 0 && disturbance.model != model;
        if (is_other || !holds(disturbance, kind, worker, begin_ns))
            continue;
        slower *= disturbance.factor;
        until = std::min(until, base_ns_ + disturbance.until_ns);
    }
    if (slower == 1)
        return took_ns;
    const auto left = static_cast<double>(until - begin_ns), took = static_cast<double>(took_ns);
    return static_cast<Ns>(took * slower <= left ? took * slower : left + took - left / slower);
}

Ns World::stopped_until_ns(std::uint32_t worker) const {
    Ns until = now_;
    if (!begun_)
        return until;
    for (const DisturbanceSetup& disturbance : cluster_.disturbances) {
        if (holds(disturbance, DisturbanceSetup::Kind::STOP, worker, now_))
            until = std::max(until, base_ns_ + disturbance.until_ns);
    }
    return until;
}

// Returns the time of the controller's turn that handles an event at at_ns.
Ns World::next_turn_ns(Ns at_ns) const {
    if (!begun_ || at_ns == NEVER_NS)
        return at_ns;
    for (const DisturbanceSetup& disturbance : cluster_.disturbances) {
        const Ns at = at_ns - base_ns_;
        if (disturbance.kind != DisturbanceSetup::Kind::CONTROLLER || at < disturbance.from_ns ||
            at >= disturbance.until_ns)
            continue;
        const Ns turn = std::max<Ns>(static_cast<Ns>(TURN_NS * disturbance.factor), 1);
        const Ns turns = (at - disturbance.from_ns + turn - 1) / turn;
        at_ns = base_ns_ + std::min(disturbance.from_ns + turns * turn, disturbance.until_ns);
    }
    return at_ns;
}

}  // namespace clockwork::sim
