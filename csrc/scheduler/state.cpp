#include "scheduler/state.h"

namespace clockwork {

Ns Plan::finish_ns(Ns free, std::size_t count) const {
    if (count == batches.size() && unready == 0) {
        return free + planned_ns;
    }
    Ns time = free;
    for (std::size_t place = 0; place < count; ++place) {
        const Batch* batch = batches[place];
        time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
    }
    return time;
}

std::size_t Plan::first_late(Ns time, std::size_t start) const {
    for (std::size_t place = start; place < batches.size(); ++place) {
        const Batch* batch = batches[place];
        time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
        if (time > batch->limit_ns) {
            return place;
        }
    }
    return batches.size();
}

void Plan::insert(std::size_t index, Batch* batch) {
    batches.insert(batches.begin() + static_cast<std::ptrdiff_t>(index), batch);
    keys.insert(keys.begin() + static_cast<std::ptrdiff_t>(index), batch->key_ns);
    planned_ns += batch->duration_ns;
    batch->residency->batches.push_back(batch);
    unready += batch->residency->state != ResidencyState::RESIDENT;
    batch->planned = true;
    ProgramEstimates* program = batch->residency->spec->program;
    batch->before = nullptr;
    batch->after = program->planned;
    if (batch->after != nullptr) {
        batch->after->before = batch;
    }
    program->planned = batch;
}

void Plan::remove(Batch* batch, std::size_t index) {
    batches.erase(batches.begin() + static_cast<std::ptrdiff_t>(index));
    keys.erase(keys.begin() + static_cast<std::ptrdiff_t>(index));
    planned_ns -= batch->duration_ns;
    std::vector<Batch*>& beside = batch->residency->batches;
    beside.erase(std::find(beside.begin(), beside.end(), batch));
    unready -= batch->residency->state != ResidencyState::RESIDENT;
    batch->planned = false;
    (batch->before != nullptr ? batch->before->after : batch->residency->spec->program->planned) = batch->after;
    if (batch->after != nullptr) {
        batch->after->before = batch->before;
    }
    batch->before = batch->after = nullptr;
}

void Plan::resize(Batch* batch, std::uint32_t size) {
    batch->size = size;
    Ns duration =
        batch->curve == nullptr ? batch->residency->spec->alone_ns(batch->shape, size) : batch->curve->planned_ns(size);
    planned_ns += duration - batch->duration_ns;
    batch->duration_ns = duration;
}

bool Model::leave_spec(KindSpec& spec) {
    bool has_others = std::any_of(specs.begin(), specs.end(),
                                  [&](const KindSpec* one) { return one->kind == spec.kind && one->worker_count > 0; });
    if (spec.worker_count > 0 || !has_others) {
        return false;
    }
    specs.erase(std::find(specs.begin(), specs.end(), &spec));
    note_variants();
    return true;
}

void Model::note_variants() {
    is_varied = false;
    for (std::size_t place = 0; place < specs.size(); ++place) {
        is_varied = is_varied || std::any_of(specs.begin(), specs.begin() + static_cast<std::ptrdiff_t>(place),
                                             [&](const KindSpec* one) { return one->kind == specs[place]->kind; });
    }
}

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
