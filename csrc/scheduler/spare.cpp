#include "scheduler/spare.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace clockwork {

namespace {

constexpr std::size_t AT_THE_END = std::numeric_limits<std::size_t>::max();

}  // namespace

Batch* Spare::fill(Executor& executor, Ns free) {
    if (state_.executors.size() > 1 && executor.lane.empty()) {
        if (Batch* batch = steal(executor, free); batch != nullptr) {
            return batch;
        }
    }
    if (!state_.background.empty()) {
        if (Batch* batch = from_background(executor, free); batch != nullptr) {
            return batch;
        }
        if (!state_.background.empty()) {  // memory may be short, or another device has the model
            executor.wake_at(state_.now + BACKGROUND_RETRY_NS);
        }
    }
    if (idle_.has_unmeasured() && executor.lane.empty() && plans_.of(executor).empty()) {
        idle_.measure(executor);
    }
    return nullptr;
}

// Takes over a batch that is planned on another device and can run here at once.
Batch* Spare::steal(Executor& executor, Ns free) {
    std::size_t count = state_.executors.size();
    ++round_;
    for (std::size_t offset = 0; offset < std::min(count, STEAL_SCAN_MAX); ++offset) {
        Executor& other = *state_.executors[(round_ + offset) % count];
        if (&other == &executor || plans_.of(other).empty()) {
            continue;
        }
        Plan& plan = plans_.of(other);
        bool is_ready = plan[0]->residency->state == ResidencyState::RESIDENT;
        if (other.lane.empty() && is_ready && plan.size() == 1) {
            continue;  // the batch is about to be sent
        }
        for (std::size_t place = 0; place < std::min(plan.size(), STEAL_SCAN_MAX); ++place) {
            Batch* batch = plan[place];
            const Model& model = *batch->residency->model;
            Residency* here = executor.arena->models.test(model.slot) ? executor.arena->find(&model) : nullptr;
            // Batches of a doomed model may change their executor, but not their arena.
            bool stays = here == batch->residency && here->state == ResidencyState::RESIDENT;
            if (!is_usable(here) && !stays) {
                continue;
            }
            Curve* curve = here->spec->program->curve(batch->shape);
            if (curve == nullptr || (batch->size > here->spec->batch_max && batch->pendings.size() > 1)) {
                continue;
            }
            Ns deadline = NEVER_NS;
            bool has_failed_here = false;
            for (const Pending* pending : batch->pendings) {
                deadline = std::min(deadline, pending->deadline_ns);
                has_failed_here |= pending->failed_on == executor.number() + 1;
            }
            if (has_failed_here) {
                continue;
            }
            Ns duration = plans_.planned_ns(*here->spec, *curve, batch->size);
            Ns limit = deadline < NEVER_NS ? deadline - executor.worker->back_ns : NEVER_NS;
            if (free + duration > limit || !plans_.of(executor).holds(free + duration, 0)) {
                continue;
            }
            plan.remove(batch, place);
            state_.touch(other);
            Batch* taken = executions_.make_batch(executor, *here, batch->shape, curve, 0);
            taken->pendings.swap(batch->pendings);
            taken->duration_ns = duration;
            taken->limit_ns = limit;
            state_.retire(batch);
            return enter(executor, taken, AT_THE_END);
        }
    }
    return nullptr;
}

// Enters a batch in a device's plan, and sets the fields that depend on its requests and its place.
Batch* Spare::enter(Executor& executor, Batch* batch, std::size_t index) {
    Plan& plan = plans_.of(executor);
    index = std::min(index, plan.size());
    batch->key_ns = index > 0 ? plan.keys[index - 1] : 0;
    Ns deadline = NEVER_NS;
    for (Pending* pending : batch->pendings) {
        pending->batch = batch;
        batch->size += pending->size;
        deadline = std::min(deadline, pending->deadline_ns);
    }
    if (batch->limit_ns < NEVER_NS) {
        batch->key_ns = std::max(batch->key_ns, deadline);
    }
    plan.insert(index, batch);
    return batch;
}

// Forms a batch of the oldest background requests whose model is here.
Batch* Spare::from_background(Executor& executor, Ns free) {
    for (Model* model : idle_.background()) {
        Residency* residency = executor.arena->find(model);
        if (is_usable(residency)) {
            if (Batch* batch = background_batch(executor, *residency, free, AT_THE_END); batch != nullptr) {
                return batch;
            }
        } else if (residency == nullptr && executor.arena->pending.empty() && executor.arena->loading == 0) {
            idle_.load_background(*executor.arena, *model);
        }
    }
    return nullptr;
}

// Plans a batch of the model's oldest background requests, at `index` if that delays no promise behind it,
// otherwise at the end, where it would begin at `free`. Null if it would delay planned work.
Batch* Spare::background_batch(Executor& executor, Residency& residency, Ns free, std::size_t index) {
    Model& model = *residency.model;
    const KindSpec& spec = *residency.spec;
    PendingList& queue = model.background;
    const Pending* first = queue.front();
    std::uint32_t shape = first->request.shape, size = first->size;
    Curve* curve = spec.program->curve(shape);
    std::size_t count = 1;
    if (curve != nullptr && !first->alone) {
        Ns duration = plans_.planned_ns(spec, *curve, size);
        for (const Pending* pending = queue.next(first); pending != nullptr; pending = queue.next(pending)) {
            std::uint32_t total = size + pending->size;
            if (total > spec.batch_max || pending->request.shape != shape || pending->alone) {
                break;
            }
            Ns growth = plans_.planned_ns(spec, *curve, total) - duration;
            if (growth * JOIN_GAIN > plans_.planned_ns(spec, *curve, pending->size) * (JOIN_GAIN - 1)) {
                break;
            }
            size = total;
            duration += growth;
            ++count;
        }
    }
    // Without a profile or a bound the duration is a guess; the request has time.
    Ns duration = plans_.alone_ns(spec, shape, size);
    if (duration == 0) {
        duration = PROFILE_NS_MAX;
    }
    const Plan& plan = plans_.of(executor);
    if (index != AT_THE_END) {
        if (!plan.holds(plan.finish_ns(free, index) + duration, index)) {
            index = AT_THE_END;
        }
    } else if (!plan.empty() && !plan.holds(free + duration, 0)) {
        return nullptr;
    }
    Batch* batch = executions_.make_batch(executor, residency, shape, curve, 0);
    while (count-- > 0) {
        batch->pendings.push_back(queue.pop_front());
    }
    requests_.left_background(model);
    batch->duration_ns = duration;
    return enter(executor, batch, index);
}

void Spare::promote(Executor& executor) {
    if (state_.now < executor.aged_ns) {
        return;
    }
    for (Model* model : idle_.background()) {
        if (state_.now - model->background.front()->request.arrived_ns < BACKGROUND_AGE_NS) {
            continue;
        }
        Residency* residency = executor.arena->find(model);
        if (residency == nullptr) {
            if (executor.arena->pending.empty() && executor.arena->loading == 0) {
                idle_.load_background(*executor.arena, *model);
            }
            continue;
        }
        if (!is_usable(residency)) {
            continue;
        }
        std::size_t place = plans_.of(executor).place_of(state_.now + BACKGROUND_AGE_NS);
        Batch* batch = background_batch(executor, *residency, executor.free_ns(state_.now), place);
        executor.aged_ns = std::max(executor.aged_ns, state_.now) + batch->duration_ns * BACKGROUND_SHARE;
        return;
    }
}

}  // namespace clockwork
