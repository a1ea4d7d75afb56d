#include "scheduler/machines.h"

namespace clockwork {

bool Arena::has_room(const KindSpec& spec) const {
    std::uint64_t waiting = 0;
    for (const Residency* residency : pending) {
        waiting += residency->spec->page_count;
    }
    return pages.free_count() >= waiting + spec.page_count;
}

void Executor::retime_lane(Ns time) {
    head_end_ns = 0;
    for (Flight* flight = lane.front(); flight != nullptr; flight = lane.next(flight)) {
        time = std::max(time, flight->there_ns) + flight->duration_ns;
        if (head_end_ns == 0) {
            head_end_ns = time;
        }
    }
    lane_end_ns = time;
}

Ns Executor::executed_ns(Ns from_ns, Ns until_ns) const {
    Ns sum = stretches.during(from_ns, until_ns);
    if (!lane.empty()) {
        Ns begin = std::max({from_ns, stretches.until_ns(), head_end_ns - lane.front()->duration_ns});
        sum += std::max<Ns>(until_ns - begin, 0);
    }
    return std::min(sum, until_ns - from_ns);
}

void Arena::enter(Residency* residency) {
    resident.push_back(residency);
    by_model.set(static_cast<std::uint64_t>(residency->model->model_id), residency);
    residency->on_device = true;
    doomed += residency->doomed;
}

void Arena::leave(Residency* residency) {
    resident.erase(residency);
    by_model.erase(static_cast<std::uint64_t>(residency->model->model_id));
    residency->on_device = false;
    doomed -= residency->doomed;
}

void Arena::settle(Residency& residency, bool is_resident) {
    Model& model = *residency.model;
    for (const Executor* executor = executors.front(); executor != nullptr; executor = executor->after) {
        is_resident ? model.homes.set(executor->slot) : model.homes.clear(executor->slot);
    }
    is_resident ? models.set(model.slot) : models.clear(model.slot);
}

void Arena::doom(Residency& residency, bool is_doomed) {
    if (residency.on_device) {
        residency.arena->doomed += is_doomed;
        residency.arena->doomed -= residency.doomed;
    }
    residency.doomed = is_doomed;
}

}  // namespace clockwork
