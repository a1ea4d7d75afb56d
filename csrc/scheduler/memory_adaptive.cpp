#include "scheduler/memory_adaptive.h"

#include <algorithm>

#include "scheduler/queued.h"

namespace clockwork {

// ----- order ------------------------------------------------------------------------------------

void SlotHeap::set(std::uint32_t slot, double value) {
    if (slot >= places_.size()) {
        places_.resize(slot + 1, NOWHERE);
        values_.resize(slot + 1, 0);
    }
    values_[slot] = value;
    if (places_[slot] == NOWHERE) {
        heap_.push_back(slot);
        places_[slot] = static_cast<std::uint32_t>(heap_.size() - 1);
    }
    rise(places_[slot]);
    sink(places_[slot]);
}

void SlotHeap::erase(std::uint32_t slot) {
    if (!holds(slot)) {
        return;
    }
    std::size_t place = places_[slot];
    std::uint32_t last = heap_.back();
    heap_.pop_back();
    places_[slot] = NOWHERE;
    if (last != slot) {
        put(place, last);
        rise(place);
        sink(places_[last]);
    }
}

void SlotHeap::rise(std::size_t place) {
    std::uint32_t slot = heap_[place];
    while (place > 0 && is_above(slot, heap_[(place - 1) / 2])) {
        put(place, heap_[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    put(place, slot);
}

void SlotHeap::sink(std::size_t place) {
    std::uint32_t slot = heap_[place];
    while (true) {
        std::size_t child = 2 * place + 1;
        if (child >= heap_.size()) {
            break;
        }
        if (child + 1 < heap_.size() && is_above(heap_[child + 1], heap_[child])) {
            ++child;
        }
        if (!is_above(heap_[child], slot)) {
            break;
        }
        put(place, heap_[child]);
        place = child;
    }
    put(place, slot);
}

// ----- what a load is worth -----------------------------------------------------------------------

AdaptiveMemory::Demand& AdaptiveMemory::demand(const Model& model) {
    if (model.slot >= demands_.size()) {
        demands_.resize(model.slot + 1);
    }
    return demands_[model.slot];
}

// Arrivals per nanosecond.
double AdaptiveMemory::rate(const Model& model) const {
    const Demand* one = known(model);
    return one != nullptr ? one->count.rate(now(), RATE_HALF_LIFE_NS) : 0;
}

double AdaptiveMemory::standing(const Model& model, const KindSpec& spec) const {
    const Demand* one = known(model);
    if (one == nullptr) {
        return 0;
    }
    double per_ns = rate(model);
    Ns load = spec.load_planned_ns();
    auto links = static_cast<Ns>(std::max<std::size_t>(model.workers.size(), 1));
    Ns wait = load * static_cast<Ns>(asking_.size()) / links;
    double lost = per_ns * static_cast<double>(load + wait);
    if (one->slo_ns < load + wait) {
        lost += std::min(1.0, per_ns * static_cast<double>(STANDING_NS));
    }
    return lost;
}

bool AdaptiveMemory::asks(const Model& model, bool& is_cold) const {
    is_cold = model.residencies.empty();
    if (waiting(model) == 0) {
        return false;
    }
    if (is_cold) {
        return true;
    }
    const Demand* one = known(model);
    if (one == nullptr || now() - one->pressed_ns > PRESSED_NS) {
        return false;
    }
    return std::none_of(model.residencies.begin(), model.residencies.end(),
                        [](const Residency* here) { return here->state != ResidencyState::RESIDENT; });
}

double AdaptiveMemory::benefit(const Model& model, const KindSpec& spec, Ns begin_ns, Ns delays_ns,
                               bool is_cold) const {
    Ns ready = begin_ns + spec.load_planned_ns() + delays_ns;
    std::uint32_t in_time = 0;
    for (std::size_t index = 0; const Queue* one = queue(model, index); ++index) {
        if (one->empty()) {
            continue;
        }
        Ns least = ready + spec.alone_ns(one->shape, one->front().size);
        std::uint32_t low = 0, high = one->size();
        while (low < high) {
            std::uint32_t middle = low + (high - low) / 2;
            if ((*one)[middle].deadline_ns < least) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        in_time += one->size() - low;
    }
    return in_time + (is_cold ? standing(model, spec) : 0);
}

// ----- who asks -----------------------------------------------------------------------------------

void AdaptiveMemory::waits(Pending& pending) {
    Model& model = *pending.model;
    Demand& one = demand(model);
    if (pending.attempts == 0) {
        one.count.add(now(), pending.size, RATE_HALF_LIFE_NS);
        one.slo_ns = pending.deadline_ns - pending.request.arrived_ns;
    }
    if (model.residencies.empty() || asking_.holds(model.slot)) {
        ask(model);
    } else if (waits_long(model)) {
        one.pressed_ns = now();
        ask(model);
    } else if (model.specs.size() > 1 && now() - one.pressed_ns <= PRESSED_NS) {
        ask(model);  // those before it left in vain: the kind of device that has it may be too slow for them
    }
}

// Whether the first of its requests has waited for longer than a load takes, and for a good part of its SLO.
bool AdaptiveMemory::waits_long(const Model& model) const {
    Ns load = model.residencies.front()->spec->load_planned_ns();
    for (std::size_t index = 0; const Queue* one = queue(model, index); ++index) {
        if (!one->empty()) {
            const Request& first = one->front().pending->request;
            Ns waited = now() - first.arrived_ns;
            if (waited > load && waited > (first.deadline_ns - first.arrived_ns) / LONG_PART) {
                return true;
            }
        }
    }
    return false;
}

void AdaptiveMemory::leaves(Pending& pending) {
    if (waiting(*pending.model) == 0) {
        asking_.erase(pending.model->slot);
    }
}

void AdaptiveMemory::sent(Flight& flight) {
    const Model& model = *flight.residency->model;
    busy_[flight.device->slot].add(now(), static_cast<double>(flight.duration_ns), BUSY_HALF_LIFE_NS);
    const Pending& oldest = *flight.batch->pendings.front();
    if (oldest.deadline_ns < NEVER_NS) {
        double part = static_cast<double>(now() - oldest.request.arrived_ns) /
                      static_cast<double>(std::max<Ns>(oldest.deadline_ns - oldest.request.arrived_ns, 1));
        double& late = lateness_[flight.device->slot];
        late += (part - late) * LATENESS_WEIGHT;
    }
    if (!asking_.empty() && waiting(model) == 0) {
        asking_.erase(model.slot);
    }
}

void AdaptiveMemory::press(Queue& queue) {
    Demand& one = demand(*queue.model);
    one.pressed_ns = now();
    if (!asking_.holds(queue.model->slot)) {
        ask(*queue.model);
    }
}

// Enters a model with what its load is worth now; has a device look, if it is new.
void AdaptiveMemory::ask(Model& model) {
    bool is_cold = false;
    if (!asks(model, is_cold)) {
        asking_.erase(model.slot);
        return;
    }
    const KindSpec& spec = *model.specs.front();
    bool is_new = !asking_.holds(model.slot);
    double gain = benefit(model, spec, now(), 0, is_cold);
    asking_.set(model.slot, gain / static_cast<double>(std::max<Ns>(spec.load_planned_ns(), 1)));
    if (is_new) {
        Device* device = find_target(model, score);
        if (device != nullptr && (is_cold || has_spare_time(*device, model))) {
            again_ns_[device->slot] = 0;
            touch(*device);
        }
    }
}

// Of devices that could load at once: with room before without, then the least busy link and lane, then more room.
double AdaptiveMemory::score(const Memory& memory, const Device& device, const KindSpec& spec) {
    const auto& self = static_cast<const AdaptiveMemory&>(memory);
    if (loading(device) >= device.run_ahead) {
        return -1;
    }
    Ns now = self.now();
    double busy = static_cast<double>(std::max<Ns>(device.worker->link_free_ns - now, 0)) +
                  static_cast<double>(std::max<Ns>(device.free_ns(now) - now, 0));
    double full = 1 - static_cast<double>(device.pages.free_count()) /
                          static_cast<double>(std::max<std::uint32_t>(device.pages.page_count(), 1));
    return (device.has_room(spec) ? 0 : 1e12) + busy + full * static_cast<double>(MS);
}

bool AdaptiveMemory::has_spare_time(const Device& device, const Model& model) const {
    if (device.lane.empty() || busy_[device.slot].rate(now(), BUSY_HALF_LIFE_NS) < SPARE_BUSY) {
        return true;
    }
    return std::all_of(model.residencies.begin(), model.residencies.end(), [&](const Residency* there) {
        return lateness_[device.slot] < SPARE_LATENESS * lateness_[there->device->slot];
    });
}

void AdaptiveMemory::arrived_on(Residency& residency) {
    demand(*residency.model).denied_ns = 0;
    asking_.erase(residency.model->slot);
    if (waiting(*residency.model) > 0) {
        ask(*residency.model);
    }
}

void AdaptiveMemory::gone_from(Residency& residency) {
    if (!residency.model->draining || waiting(*residency.model) > 0) {
        renew(*residency.model);
    }
}

void AdaptiveMemory::renew(Model& model) {
    if (waiting(model) > 0) {
        asking_.erase(model.slot);
        ask(model);
    }
}

void AdaptiveMemory::model_gone(Model& model) {
    asking_.erase(model.slot);
    demand(model) = Demand();
}

void AdaptiveMemory::device_joined(Device& device) {
    if (device.slot >= again_ns_.size()) {
        again_ns_.resize(device.slot + 1, 0);
        busy_.resize(device.slot + 1);
        lateness_.resize(device.slot + 1, 0);
    }
    busy_[device.slot] = DecayedCount();
    lateness_[device.slot] = 0;
    again_ns_[device.slot] = 0;
}

// ----- what a device loads ------------------------------------------------------------------------

bool AdaptiveMemory::may_evict(const Residency& residency) const { return waiting(*residency.model) == 0; }

std::size_t AdaptiveMemory::order_evictable(Device& device, std::vector<Residency*>& found, std::size_t ordered) {
    (void)device;
    if (ordered == 0) {
        densities_.clear();
        for (Residency* one : found) {
            double worth = rate(*one->model) * static_cast<double>(one->spec->load_planned_ns());
            worth /= std::max<std::uint32_t>(one->spec->page_count, 1);
            densities_.push_back({worth, static_cast<std::uint32_t>(densities_.size()), one});
        }
    }
    std::size_t until = std::min(found.size(), std::max(2 * ordered, EVICTABLE_ORDERED));
    auto at = [&](std::size_t place) { return densities_.begin() + static_cast<std::ptrdiff_t>(place); };
    std::partial_sort(at(ordered), at(until), densities_.end());
    for (std::size_t place = ordered; place < until; ++place) {
        found[place] = densities_[place].residency;
    }
    return until;
}

void AdaptiveMemory::look(Device& device) {
    if (asking_.empty() || now() < again_ns_[device.slot] || !device.pending.empty()) {
        return;
    }
    const Worker& worker = *device.worker;
    Ns delays = worker.there_ns + 2 * worker.back_ns;
    aside_.clear();
    int scanned = 0;
    bool is_denied = false;
    while (!asking_.empty() && loading(device) < device.run_ahead && scanned < CANDIDATE_SCAN_MAX) {
        std::uint32_t slot = asking_.top();
        Model& model = model_at(slot);
        bool is_cold = false;
        if (!asks(model, is_cold)) {
            asking_.erase(slot);
            continue;
        }
        ++scanned;
        KindSpec* spec = loadable(device, model);
        bool is_welcome = spec != nullptr && (is_cold || has_spare_time(device, model));
        if (is_welcome) {
            Ns begin = std::max(worker.link_free_ns, now() + worker.there_ns);
            double gain = benefit(model, *spec, begin, delays, is_cold);
            double value = gain / static_cast<double>(std::max<Ns>(spec->load_planned_ns(), 1));
            if (value < asking_.value(slot) * 0.99) {
                asking_.set(slot, value);  // it was worth more when it asked; others may be worth more than it now
                if (asking_.top() != slot) {
                    continue;
                }
            }
            if (gain > 0 && try_load(device, model, *spec, gain)) {
                asking_.erase(slot);
                continue;
            }
            is_denied = true;
        }
        aside_.push_back(slot);
        asking_.erase(slot);
    }
    for (std::uint32_t slot : aside_) {
        Model& model = model_at(slot);
        const KindSpec& spec = *model.specs.front();
        bool is_cold = model.residencies.empty();
        asking_.set(slot, benefit(model, spec, now(), 0, is_cold) /
                              static_cast<double>(std::max<Ns>(spec.load_planned_ns(), 1)));
    }
    if (is_denied) {
        again_ns_[device.slot] = now() + LOOK_AGAIN_NS;
        if (device.lane.empty()) {
            device.wake_at(again_ns_[device.slot]);
        }
    }
}

bool AdaptiveMemory::try_load(Device& device, Model& model, KindSpec& spec, double gain) {
    Demand& one = demand(model);
    Ns patience = DENIED_NS;  // for what is not worth its victims
    if (!find_room(device, spec, victims_)) {
        patience = std::min(DENIED_NS, one.slo_ns / DENIED_PART);
    } else {
        double cost = 0;
        for (const Residency* victim : victims_) {
            cost += standing(*victim->model, *victim->spec);
        }
        if (cost <= gain) {
            load_over(device, model, spec, victims_);
            one.denied_ns = 0;
            return true;
        }
    }
    if (one.denied_ns == 0) {
        one.denied_ns = now();
    } else if (now() - one.denied_ns > patience && model.residencies.empty()) {
        one.denied_ns = 0;
        return load_by_force(device, model, spec);
    }
    return false;
}

}  // namespace clockwork
