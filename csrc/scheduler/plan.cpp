#include "scheduler/plan.h"

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

}  // namespace clockwork
