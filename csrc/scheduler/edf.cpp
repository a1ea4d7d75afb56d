#include "scheduler/edf.h"

#include <algorithm>

namespace clockwork {

void Edf::arrive(Pending& pending) {
    Model& model = *pending.model;
    plans_.worths().arrived(model, pending.size, pending.deadline_ns - state_.now);
    if (pending.deadline_ns >= NEVER_NS) {
        requests_.open(pending);
        requests_.to_background(pending);
    } else if (admission_.place(pending, true) || admission_.displace(pending)) {
        requests_.open(pending);
        admission_.note_asked(pending);
    } else {
        admission_.note_asked(pending);
        admission_.refuse_in_detail(pending);
        return;
    }
    if (pending.request.shape != 0 && idle_.is_unseen(model, pending.request.shape)) {
        idle_.remember_unseen(model, pending.request);
    }
}

// Plans a request again on another device than the one that failed it, while there is any. A device that
// fails its actions is soon free again, and would otherwise be the first choice for the same requests.
bool Edf::replace(Pending& pending) {
    if (admission_.place(pending, false)) {
        return true;
    }
    if (pending.failed_on == 0) {
        return false;
    }
    pending.failed_on = 0;
    return admission_.place(pending, false);
}

void Edf::unplan(Pending& pending) {
    if (pending.batch != nullptr) {
        plans_.remove(pending);
    } else if (pending.queue != nullptr) {
        requests_.leave_background(pending);
    }
}

void Edf::expire(Pending& pending) {
    if (state_.now >= pending.deadline_ns) {
        requests_.fail(pending, Status::DEADLINE_MISSED, AnswerText::DEADLINE_PASSED);
        return;
    }
    Ns at_ns = pending.deadline_ns;
    if (const Batch* batch = pending.batch; batch != nullptr) {
        const Worker& worker = *batch->residency->arena->worker;
        Ns last = pending.deadline_ns - worker.there_ns - worker.back_ns - batch->expected_ns(pending.size);
        if (state_.now > last) {
            requests_.fail(pending, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME);
            return;
        }
        at_ns = last + 1;
    }
    state_.set_timer(at_ns, pending);
}

void Edf::load_given_up(Residency& residency, const AnswerSentence& said) {
    std::vector<Pending*> waiting;
    for (const Batch* batch : residency.batches) {
        waiting.insert(waiting.end(), batch->pendings.begin(), batch->pendings.end());
    }
    for (Pending* pending : waiting) {
        requests_.fail(*pending, Status::UNAVAILABLE, said);
    }
}

// Sends a device its next batches, as far ahead as it needs.
void Edf::dispatch(Executor& executor) {
    const Worker& worker = *executor.worker;
    Plan& plan = plans_.of(executor);
    executor.wake_ns = NEVER_NS;
    recovery_.watch_loads(*executor.arena);
    if (worker.draining || executor.is_closed()) {
        return;
    }
    if (has_pending_loads(worker)) {
        arenas_.start_loads(*executor.arena);
    }
    if (!state_.background.empty() && !plan.empty()) {
        spare_.promote(executor);
    }
    while (true) {
        if (executor.is_closed() || executions_.is_held_up(executor)) {
            return;
        }
        std::uint32_t lane = executor.lane.size();
        Ns free = plans_.free_ns(executor);
        bool has_work = !plan.empty() || !state_.background.empty();
        if (lane >= executor.run_ahead) {
            // One more action must be under way before the results are back, or the device waits a round
            // trip.
            Ns due = free - worker.there_ns - worker.back_ns - FEED_NS - admission_.inputs().next_ns(executor);
            if (lane >= OUTSTANDING_MAX || due > state_.now) {
                if (lane < OUTSTANDING_MAX && has_work) {
                    executor.wake_at(due);
                }
                return;
            }
        }
        Ns due = free - worker.there_ns - admission_.ahead_ns(executor) - admission_.inputs().next_ns(executor);
        if (free > executor.free_ns(state_.now)) {
            due = free - worker.there_ns;  // the executor would begin at once, beside the attempt
        }
        if (!plan.empty() && is_beyond_share(*plan[0]->residency, state_.now)) {
            due = std::max(due, inputs_due_ns(*executor.arena, state_.now,
                                              admission_.ahead_ns(executor) + admission_.inputs().next_ns(executor)));
        }
        if (due > state_.now) {
            if (has_work) {
                executor.wake_at(due);
            }
            return;
        }
        Batch* batch = plan.empty() ? nullptr : pick(executor, free);
        if (batch == nullptr) {
            batch = spare_.fill(executor, free);
            if (batch == nullptr) {
                return;
            }
        }
        if (executor.must_wait(*batch->pendings.front())) {
            return;  // the end of the actions under way wakes the device
        }
        if (trim(executor, *batch, free)) {
            top_up(executor, *batch, free);
            plan.remove(batch, plan[0] == batch ? 0 : plan.index(batch));
            executions_.send(*batch);
        }
    }
}

// Chooses the batch to send: the first, unless its model is still being loaded and another can go before it.
Batch* Edf::pick(Executor& executor, Ns free) {
    const Plan& plan = plans_.of(executor);
    auto is_ready = [](const Batch* batch) { return batch->residency->state == ResidencyState::RESIDENT; };
    if (plan.unready == 0 || is_ready(plan[0])) {
        return plan[0];
    }
    for (std::size_t place = 1; place < std::min(plan.size(), SKIP_SCAN_MAX); ++place) {
        if (is_ready(plan[place]) && may_skip(executor, free, place)) {
            return plan[place];
        }
    }
    if (!executor.arena->pending.empty()) {
        for (Batch* batch : plan.batches) {  // work on doomed models goes first, whatever it costs
            if (batch->residency->doomed && is_ready(batch)) {
                return batch;
            }
        }
    }
    return nullptr;
}

// Whether the batches before this one still make their limits if this one goes first.
bool Edf::may_skip(const Executor& executor, Ns free, std::size_t place) const {
    const Plan& plan = plans_.of(executor);
    Ns time = free + plan[place]->duration_ns;
    for (std::size_t before = 0; before < place; ++before) {
        const Batch* batch = plan[before];
        time = std::max(time, batch->residency->ready_ns) + batch->duration_ns;
        if (time > batch->limit_ns) {
            return false;
        }
    }
    return true;
}

// Shrinks a batch to fit its tightest deadline. False if no request of it is left to send.
bool Edf::trim(Executor& executor, Batch& batch, Ns free) {
    const Worker& worker = *executor.worker;
    auto by_deadline = [](const Pending* a, const Pending* b) { return a->deadline_ns < b->deadline_ns; };
    left_.clear();
    while (!batch.pendings.empty()) {
        Pending& tightest = **std::min_element(batch.pendings.begin(), batch.pendings.end(), by_deadline);
        Ns slack = tightest.deadline_ns - worker.back_ns;
        if (admission_.inputs().begin_ns(executor, free, &batch) + batch.expected_ns(batch.size) <= slack) {
            break;
        }
        Ns alone = batch.expected_ns(tightest.size);
        if (state_.now + worker.there_ns + alone > slack) {
            if (attempts(executor, batch, slack)) {
                break;
            }
            requests_.fail(tightest, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME);
        } else if (batch.pendings.size() == 1) {
            break;
            // in time only by the best estimate: it must not make other requests late
        } else if (admission_.inputs().begin_ns(executor, free, nullptr, &tightest) + alone > slack) {
            requests_.fail(tightest, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME);
        } else {
            Pending* latest = *std::max_element(batch.pendings.begin(), batch.pendings.end(), by_deadline);
            unplan(*latest);
            left_.push_back(latest);
        }
    }
    for (Pending* pending : left_) {
        requests_.again(*pending, Status::DEADLINE_MISSED, AnswerText::CANNOT_BE_IN_TIME, false);
    }
    return !batch.pendings.empty();
}

// Whether a batch that would be too late by the estimates is sent with its time at best (Curve::hoped_ns()):
// where the device executes nothing, and no other program waits, that costs no other request anything.
bool Edf::attempts(Executor& executor, Batch& batch, Ns end_ns) {
    Plan& plan = plans_.of(executor);
    const KindSpec& spec = *batch.residency->spec;
    Ns hoped = admission_.attempted_ns(executor, spec, batch.shape, batch.size), free = plans_.free_ns(executor);
    bool is_in_time = executor.lane.empty() && free + hoped <= end_ns;
    auto is_other = [&spec](const Batch* planned_batch) {
        return planned_batch->residency->spec->program != spec.program;
    };
    if (!is_in_time || std::any_of(plan.batches.begin(), plan.batches.end(), is_other)) {
        return false;
    }
    if (free + with_neighbours(hoped, spec.program->drag()) > end_ns) {
        plans_.note_attempt(*executor.arena, free + hoped);
    }
    plan.planned_ns += hoped - batch.duration_ns;
    batch.duration_ns = hoped;
    batch.curve = nullptr;  // its duration is no error of the estimates, which it was sent against
    return true;
}

// Fills a batch that is about to be sent with waiting requests of the same model and shape.
void Edf::top_up(Executor& executor, Batch& batch, Ns free) {
    const Residency& residency = *batch.residency;
    Model& model = *residency.model;
    std::uint32_t batch_max = residency.spec->batch_max;
    if (batch.curve == nullptr || batch.size >= batch_max || batch.pendings.front()->alone) {
        return;
    }
    if (residency.batches.size() > 1) {
        others_.clear();
        for (Batch* other : residency.batches) {
            if (other != &batch && other->shape == batch.shape) {
                others_.push_back(other);
            }
        }
        for (Batch* other : others_) {
            candidates_ = other->pendings;
            for (Pending* pending : candidates_) {
                if (batch.size >= batch_max) {
                    return;
                }
                if (gains(executor, batch, *pending, free)) {
                    unplan(*pending);
                    append(executor, batch, *pending);
                }
            }
        }
    }
    while (!model.background.empty() && batch.size < batch_max) {
        Pending& pending = *model.background.front();
        if (pending.request.shape != batch.shape || pending.alone || !gains(executor, batch, pending, free)) {
            return;
        }
        unplan(pending);
        append(executor, batch, pending);
    }
}

// Whether adding this request costs less than running it alone, and breaks no promise.
bool Edf::gains(const Executor& executor, const Batch& batch, const Pending& pending, Ns free) const {
    std::uint32_t total = batch.size + pending.size;
    if (pending.alone || total > batch.residency->spec->batch_max) {
        return false;
    }
    Ns begin = admission_.inputs().begin_ns(executor, free, &batch, &pending);
    Ns duration = plans_.planned_ns(*batch.residency->spec, *batch.curve, total), longer = duration - batch.duration_ns;
    if (is_beyond_share(*batch.residency, state_.now) && duration > executor.arena->shares.batch_max_ns) {
        return false;
    }
    if (longer * JOIN_GAIN > plans_.planned_ns(*batch.residency->spec, *batch.curve, pending.size) * (JOIN_GAIN - 1)) {
        return false;
    }
    Ns time = begin + duration;
    if (time > std::min(batch.limit_ns, pending.deadline_ns - executor.worker->back_ns)) {
        return false;
    }
    bool puts_off = puts_off_loads(executor);
    for (const Batch* other : plans_.of(executor).batches) {
        if (other != &batch) {
            // The batch that it leaves becomes shorter: without counting that, a full plan of small batches
            // would never become one of large batches.
            bool leaves = other == pending.batch;
            Ns takes = !leaves ? other->duration_ns
                       : other->size > pending.size
                           ? plans_.planned_ns(*batch.residency->spec, *batch.curve, other->size - pending.size)
                           : 0;
            if (takes == 0) {
                continue;
            }
            const Residency& residency = *other->residency;
            time = std::max(time, residency.ready_ns + (puts_off && residency.clear_ns != 0 ? longer : 0)) + takes;
            if (time > other->limit_ns) {
                return false;
            }
        }
    }
    return true;
}

// Whether loads wait for pages of models that have work here: any extension of that work delays them.
bool Edf::puts_off_loads(const Executor& executor) const {
    const std::vector<Residency*>& loads = executor.arena->pending;
    return std::any_of(loads.begin(), loads.end(), [](const Residency* load) { return load->clear_ns != 0; });
}

void Edf::append(Executor& executor, Batch& batch, Pending& pending) {
    Ns before = batch.duration_ns;
    plans_.resize(&batch, batch.size + pending.size);
    if (puts_off_loads(executor)) {
        admission_.put_off_loads(*executor.arena, batch.duration_ns - before);
    }
    batch.limit_ns = std::min(batch.limit_ns, pending.deadline_ns - executor.worker->back_ns);
    batch.pendings.push_back(&pending);
    pending.batch = &batch;
}

}  // namespace clockwork
