// What is not as it was, for a while.
#include <algorithm>

#include "sim/world.h"

namespace clockwork::sim {

void World::start_disturbances() {
    for (std::uint32_t number = 0; number < cluster_.disturbances.size(); ++number) {
        const DisturbanceInfo& one = cluster_.disturbances[number];
        if (one.kind != DisturbanceInfo::Kind::CLOCK && one.kind != DisturbanceInfo::Kind::STOP)
            continue;
        heap_.push(base_ns_ + one.from_ns, EventKind::DISTURB, number, 0, 1);
        heap_.push(base_ns_ + one.until_ns, EventKind::DISTURB, number, 0, 0);
    }
    if (cluster_.ping_ns == 0)
        return;
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
        heap_.push(base_ns_ + cluster_.ping_ns, EventKind::PING, index, 0, 0);
    }
}

// Those that are events: a clock jumps, a worker that stands still for too long is given up.
void World::disturb(std::uint32_t number, bool begins) {
    const DisturbanceInfo& one = cluster_.disturbances[number];
    note(203, number, begins);
    for (std::uint32_t index = 0; index < workers_.size(); ++index) {
        if (one.worker >= 0 && static_cast<std::uint32_t>(one.worker) != index)
            continue;
        WorkerState& worker = workers_[index];
        if (one.kind == DisturbanceInfo::Kind::CLOCK) {
            worker.offset_ns += static_cast<Ns>(begins ? one.factor : -one.factor);
        } else if (begins && one.until_ns - one.from_ns > cluster_.timeout_ns) {
            crash(index, true);  // it comes back as one that was let go: empty
        }
    }
}

bool World::holds(const DisturbanceInfo& one, DisturbanceInfo::Kind kind, std::uint32_t worker, Ns at_ns) const {
    const Ns at = at_ns - base_ns_;
    return one.kind == kind && one.from_ns <= at && at < one.until_ns &&
           (one.worker < 0 || static_cast<std::uint32_t>(one.worker) == worker);
}

// How long something takes that would take so long undisturbed, if it begins then: it goes on at its own pace when the
// disturbance is over.
Ns World::slowed_ns(DisturbanceInfo::Kind kind, std::uint32_t worker, Ns begin_ns, Ns took_ns, ModelId model) const {
    if (!begun_)
        return took_ns;
    double slower = 1;
    Ns until = NEVER_NS;
    for (const DisturbanceInfo& disturbance : cluster_.disturbances) {
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

// Until when a worker stands still; now, if it does not.
Ns World::stopped_until_ns(std::uint32_t worker) const {
    Ns until = now_;
    if (!begun_)
        return until;
    for (const DisturbanceInfo& disturbance : cluster_.disturbances) {
        if (holds(disturbance, DisturbanceInfo::Kind::STOP, worker, now_))
            until = std::max(until, base_ns_ + disturbance.until_ns);
    }
    return until;
}

// When the controller looks at what comes at a time.
Ns World::next_turn_ns(Ns at_ns) const {
    if (!begun_ || at_ns == NEVER_NS)
        return at_ns;
    for (const DisturbanceInfo& disturbance : cluster_.disturbances) {
        const Ns at = at_ns - base_ns_;
        if (disturbance.kind != DisturbanceInfo::Kind::CONTROLLER || at < disturbance.from_ns ||
            at >= disturbance.until_ns)
            continue;
        const Ns turn = std::max<Ns>(static_cast<Ns>(TURN_NS * disturbance.factor), 1);
        const Ns turns = (at - disturbance.from_ns + turn - 1) / turn;
        at_ns = base_ns_ + std::min(disturbance.from_ns + turns * turn, disturbance.until_ns);
    }
    return at_ns;
}

}  // namespace clockwork::sim
