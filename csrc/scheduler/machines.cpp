#include "scheduler/machines.h"

namespace clockwork {

bool Device::has_room(const KindSpec& spec) const {
    std::uint64_t waiting = 0;
    for (const Residency* one : pending) {
        waiting += one->spec->page_count;
    }
    return pages.free_count() >= waiting + spec.page_count;
}

void Device::retime_lane(Ns time) {
    head_end_ns = 0;
    for (Flight* flight = lane.front(); flight != nullptr; flight = lane.next(flight)) {
        time = std::max(time, flight->there_ns) + flight->duration_ns;
        if (head_end_ns == 0) {
            head_end_ns = time;
        }
    }
    lane_end_ns = time;
}

void Device::enter(Residency* residency) {
    resident.push_back(residency);
    by_model.set(static_cast<std::uint64_t>(residency->model->model_id), residency);
    residency->on_device = true;
    doomed += residency->doomed;
}

void Device::leave(Residency* residency) {
    resident.erase(residency);
    by_model.erase(static_cast<std::uint64_t>(residency->model->model_id));
    residency->on_device = false;
    doomed -= residency->doomed;
}

void Device::doom(Residency& residency, bool is_doomed) {
    if (residency.on_device) {
        residency.device->doomed += is_doomed;
        residency.device->doomed -= residency.doomed;
    }
    residency.doomed = is_doomed;
}

}  // namespace clockwork
