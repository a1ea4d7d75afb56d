#include "device/emulated_machine.h"

namespace clockwork::emulated {

Machine::Machine(const EmulatedSettings& settings, std::uint32_t device_count, std::uint32_t executors,
                 std::uint64_t host_bytes, bool shares_link, double speed, std::uint64_t seed, std::size_t stale_max)
    : settings_(settings), stale_max_(stale_max) {
    if (host_bytes > 0)
        store_.emplace(host_bytes);
    for (std::uint32_t number = 0; number < device_count; ++number) {
        devices_.emplace_back(settings_, shares_link ? &link_ : nullptr, store_ ? &*store_ : nullptr, number, speed,
                              Random(seed, number));
        if (number % executors != 0)
            devices_.back().execute_from(devices_[number - number % executors]);
    }
}

void Machine::advance(Ns now) {
    while (!events_.empty() && events_.front().at_ns <= now) {
        const Event event = events_.front();
        const bool is_due = counts(event);
        drop_first();
        if (!is_due)
            continue;
        if (event.next == LaneNext::RUNS) {
            finish(event.device, event.lane, event.at_ns, Status::OK);
        } else {
            devices_[event.device].opened(event.lane);
            go_on(event.device, event.lane, event.at_ns);
        }
    }
}

void Machine::start(std::uint32_t number, EmulatedOrder order, Ns now) {
    advance(now);
    const LaneKind lane = lane_of(order.kind);
    EmulatedDevice& device = devices_[number];
    if (device.is_full(lane)) {
        report(number, device.turned_away(order));
        return;
    }
    device.push(orders_.insert_or_assign(order.token, Held{number, std::move(order)}).first->second.order, now);
    go_on(number, lane, now);
}

void Machine::revoke(std::uint32_t number, ActionId id, Ns now) {
    advance(now);
    EmulatedEnd done;
    if (!devices_[number].revoke(id, done))
        return;
    report(number, done);
    go_on(number, lane_of(done.kind), now);
}

void Machine::end_run(std::uint32_t number, ActionId id, Ns now) {
    advance(now);
    const EmulatedOrder* running = devices_[number].running(LaneKind::EXECUTE);
    if (running && running->id == id)
        finish(number, LaneKind::EXECUTE, now, Status::OVERRUN);
}

void Machine::reset(std::uint32_t number, Ns now) {
    advance(now);
    devices_[number].reset();
    forget_orders(number, now);
}

std::vector<EmulatedResidency> Machine::keep(std::uint32_t number, Ns now) {
    advance(now);
    std::vector<EmulatedResidency> found = devices_[number].keep();
    forget_orders(number, now);
    return found;
}

void Machine::release_kept(ModelId model_id) {
    for (EmulatedDevice& device : devices_)
        device.release_kept(model_id);
}

void Machine::rename(ModelId model_id, ModelId other) {
    for (EmulatedDevice& device : devices_)
        device.rename(model_id, other);
}

// Drops the orders that a device has forgotten.
void Machine::forget_orders(std::uint32_t number, Ns now) {
    follow_neighbours(number, now);
    std::erase_if(orders_, [&](const auto& entry) { return entry.second.device == number; });
    grant_link(now);
}

void Machine::clear_store() {
    if (store_)
        store_->reset();
}

Ns Machine::next_ns() {
    while (!events_.empty() && !counts(events_.front()))
        drop_first();
    return events_.empty() ? NEVER_NS : events_.front().at_ns;
}

bool Machine::is_resident(ModelId model_id) const {
    return std::ranges::any_of(devices_,
                               [&](const EmulatedDevice& device) { return device.resident(model_id) != nullptr; });
}

bool Machine::is_used(ModelId model_id) const {
    return (store_ && store_->uses(model_id)) || is_resident(model_id) ||
           std::ranges::any_of(devices_, [&](const EmulatedDevice& device) { return device.has_orders_for(model_id); });
}

// Whether an event still announces something that is to come.
bool Machine::counts(const Event& event) const {
    const EmulatedDevice& device = devices_[event.device];
    if (event.next == LaneNext::OPENS)
        return device.opens_ns(event.lane) == event.at_ns;
    return device.running(event.lane) && device.ends_ns(event.lane) == event.at_ns;
}

void Machine::drop_first() {
    std::ranges::pop_heap(events_, is_later);
    events_.pop_back();
}

void Machine::report(std::uint32_t number, const EmulatedEnd& done) {
    ended.push_back({number, done});
    orders_.erase(done.token);
}

// Begins the next action of an idle lane.
void Machine::go_on(std::uint32_t number, LaneKind lane, Ns now) {
    EmulatedEnd done;
    const auto undisturbed = [](const EmulatedOrder&, Ns took_ns) { return took_ns; };
    for (;;) {
        const auto [next, at_ns] = devices_[number].step(lane, now, done, undisturbed);
        if (next == LaneNext::NOTHING)
            return;
        if (next == LaneNext::ENDED) {
            report(number, done);
            continue;
        }
        expect({at_ns, ++sequence_, number, lane, next});
        if (lane == LaneKind::EXECUTE && next == LaneNext::RUNS)
            follow_neighbours(number, now);
        return;
    }
}

void Machine::expect(const Event& event) {
    if (events_.size() >= 2 * LANES * devices_.size() + stale_max_) {
        std::erase_if(events_, [this](const Event& known) { return !counts(known); });
        std::ranges::make_heap(events_, is_later);
    }
    events_.push_back(event);
    std::ranges::push_heap(events_, is_later);
}

// Moves the ends of executions in an arena where an execution began or ended.
void Machine::follow_neighbours(std::uint32_t number, Ns now) {
    devices_[number].retime(now, [this](std::uint32_t moved, Ns end_ns) {
        expect({end_ns, ++sequence_, moved, LaneKind::EXECUTE, LaneNext::RUNS});
    });
}

void Machine::finish(std::uint32_t number, LaneKind lane, Ns now, Status status) {
    report(number, devices_[number].finish(lane, now, status));
    go_on(number, lane, now);
    if (lane == LaneKind::EXECUTE)
        follow_neighbours(number, now);
    if (lane == LaneKind::LOAD)
        grant_link(now);
}

void Machine::grant_link(Ns now) {
    for (std::uint32_t number; (number = link_.next()) != EmulatedLink::NONE;) {
        devices_[number].granted();
        go_on(number, LaneKind::LOAD, now);
    }
}

}  // namespace clockwork::emulated
