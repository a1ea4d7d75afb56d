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

bool Plan::holds_loads(Ns time, Ns longer) const {
    if (unready == 0) {
        return true;
    }
    Ns delayed = time;
    for (const Batch* batch : batches) {
        Ns ready = batch->residency->ready_ns;
        time = std::max(time, ready) + batch->duration_ns;
        delayed = std::max(delayed, ready > 0 ? ready + longer : 0) + batch->duration_ns;
        if (time <= batch->limit_ns && delayed > batch->limit_ns) {
            return false;
        }
    }
    return true;
}

std::size_t Plan::late_count(Ns time, bool within_only) const {
    std::size_t count = 0;
    for (const Batch* batch : batches) {
        time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
        count += time > batch->limit_ns && !(within_only && !batch->residency->model->loads.is_within);
    }
    return count;
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

void Plan::resize(Batch* batch, std::uint32_t size, Ns duration) {
    batch->size = size;
    planned_ns += duration - batch->duration_ns;
    batch->duration_ns = duration;
}

// ----- all of them ---------------------------------------------------------------------------------

void Plans::add(const Executor& executor) {
    if (executor.slot >= plans_.size()) {
        plans_.resize(state_.pool<Executor>().slot_count());
    }
}

bool Plans::holds_loads(const Worker& worker, Ns longer) const {
    if (longer == 0) {
        return true;
    }
    for (const Arena* arena : worker.arenas) {
        for (const Executor* executor = arena->executors.front(); executor != nullptr; executor = executor->after) {
            if (!of(*executor).holds_loads(executor->free_ns(state_.now), longer)) {
                return false;
            }
        }
    }
    return true;
}

std::size_t Plans::late_count(const Worker& worker, bool within_only) const {
    std::size_t count = 0;
    for (const Arena* arena : worker.arenas) {
        for (const Executor* executor = arena->executors.front(); executor != nullptr; executor = executor->after) {
            count += of(*executor).late_count(executor->free_ns(state_.now), within_only);
        }
    }
    return count;
}

void Plans::resize(Batch* batch, std::uint32_t size) {
    const KindSpec& spec = *batch->residency->spec;
    Ns duration = batch->curve == nullptr ? spec.alone_ns(batch->shape, size) : planned_ns(spec, *batch->curve, size);
    of(*batch->executor).resize(batch, size, duration);
}

void Plans::remove(Pending& pending) {
    Batch* batch = pending.batch;
    pending.batch = nullptr;
    batch->pendings.erase(std::find(batch->pendings.begin(), batch->pendings.end(), &pending));
    Executor& executor = *batch->executor;
    Plan& plan = of(executor);
    state_.touch(executor);
    if (batch->pendings.empty()) {
        plan.remove(batch);
        state_.retire(batch);
        return;
    }
    resize(batch, batch->size - pending.size);
    set_limit(*batch);
}

void Plans::set_limit(Batch& batch) {
    Ns tightest = NEVER_NS;
    for (const Pending* pending : batch.pendings) {
        tightest = std::min(tightest, pending->deadline_ns);
    }
    batch.limit_ns = tightest - batch.executor->worker->back_ns;
}

void Plans::exchange(Pending& pending, Pending& other) {
    std::vector<Pending*>& here = pending.batch->pendings;
    std::vector<Pending*>& there = other.batch->pendings;
    std::swap(*std::find(here.begin(), here.end(), &pending), *std::find(there.begin(), there.end(), &other));
    std::swap(pending.batch, other.batch);
    set_limit(*pending.batch);
    set_limit(*other.batch);
}

void Plans::give_place(Pending& leaves, Pending& comes) {
    Batch& batch = *leaves.batch;
    *std::find(batch.pendings.begin(), batch.pendings.end(), &leaves) = &comes;
    comes.batch = &batch;
    leaves.batch = nullptr;
    set_limit(batch);
}

// Removes a batch, whose requests then wait nowhere.
void Plans::dissolve(Batch& batch, std::vector<Pending*>& waiting) {
    for (Pending* pending : batch.pendings) {
        pending->batch = nullptr;
        waiting.push_back(pending);
    }
    state_.retire(&batch);
}

void Plans::clear(Residency& residency, std::vector<Pending*>& waiting) {
    while (!residency.batches.empty()) {
        Batch& batch = *residency.batches.front();
        of(*batch.executor).remove(&batch);
        dissolve(batch, waiting);
    }
}

void Plans::clear(Executor& executor, std::vector<Pending*>& waiting) {
    Plan& plan = of(executor);
    while (!plan.empty()) {
        Batch& batch = *plan[0];
        plan.remove(&batch, 0);
        dissolve(batch, waiting);
    }
}

void Plans::load_done(Residency& residency, Ns took_ns) {
    for (Batch* batch : residency.batches) {
        --of(*batch->executor).unready;
        state_.touch(*batch->executor);
        for (Pending* pending : batch->pendings) {
            pending->load_ns = took_ns;
        }
    }
}

void Plans::retime(ProgramEstimates& program, std::uint32_t shape) {
    Curve* curve = program.curve(shape);
    for (Batch* batch = program.planned; batch != nullptr; batch = batch->after) {
        if (batch->shape == shape) {
            batch->curve = curve;
            resize(batch, batch->size);
        }
    }
}

void Plans::forget_curve(ProgramEstimates& program, std::uint32_t shape) {
    for (Batch* batch = program.planned; batch != nullptr; batch = batch->after) {
        if (batch->shape == shape) {
            batch->curve = nullptr;  // the batch's last duration stays as the best guess
        }
    }
}

void Plans::count_planned(const Arena& arena, std::vector<PredictedEnd>& busy) const {
    for (const Executor* executor = arena.executors.front(); executor != nullptr; executor = executor->after) {
        Ns time = executor->free_ns(state_.now);
        for (const Batch* batch : of(*executor).batches) {
            time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
            for (PredictedEnd& ending : busy) {
                if (ending.residency == batch->residency) {
                    ending.finish_ns = std::max(ending.finish_ns, time);
                }
            }
        }
    }
}

void Plans::check_invariants() const {
    for (const Executor* executor : state_.executors) {
        const Plan& plan = of(*executor);
        must(plan.keys.size() == plan.size() && std::is_sorted(plan.keys.begin(), plan.keys.end()),
             "the plan is out of order");
        Ns planned = 0;
        std::size_t unready = 0;
        for (std::size_t index = 0; index < plan.size(); ++index) {
            must(plan.keys[index] == plan[index]->key_ns, "a batch with another key than its place");
            planned += plan[index]->duration_ns;
            unready += plan[index]->residency->state != ResidencyState::RESIDENT;
        }
        must(planned == plan.planned_ns && unready == plan.unready, "the plan's sums are wrong");
    }
}

}  // namespace clockwork
