#include "scheduler/deferred.h"

#include <algorithm>

namespace clockwork {

// Requests wait by design, so a late sending does not call for another device.
Deferred::Deferred(const RuleParts& parts, const SchedulerOptions& options)
    : Rules({.ahead_ns = option_ms(options, "schedule_ahead_ms", 0), .presses_late = false}),
      parts_(parts),
      jitter_ns_(option_ms(options, "jitter_ms", DEFERRED_JITTER_NS)) {}

Deferred::Meter& Deferred::meter(const Model& model, std::uint32_t shape) {
    auto& all = meters_.of(model);
    for (auto& [known, meter] : all) {
        if (known == shape) {
            return meter;
        }
    }
    if (all.size() >= QUEUES_KEPT) {
        all.erase(all.begin());
    }
    return all.emplace_back(shape, Meter()).second;
}

bool Deferred::admit(Pending& pending) {
    Meter& gauge = meter(*pending.model, pending.request.shape);
    if (gauge.since_ns == 0) {
        gauge.since_ns = parts_.state.now;
    }
    gauge.count.add(parts_.state.now, pending.size, DEFERRED_HALF_LIFE_NS);
    return true;
}

void Deferred::find_link(const Model& model, Ns& there_ns, Ns& back_ns) const {
    const Worker* worker = nullptr;
    if (!model.residencies.empty()) {
        worker = model.residencies.front()->arena->worker;
    } else if (!model.workers.empty()) {
        worker = parts_.state.find_worker(model.workers.front());  // null while the worker leaves
    }
    there_ns = worker != nullptr ? worker->there_ns : LINK_DEFAULT_NS;
    back_ns = worker != nullptr ? worker->back_ns : LINK_DEFAULT_NS;
}

std::uint32_t Deferred::target(const Queue& queue, const KindSpec& spec, Ns there_ns, Ns back_ns) {
    Meter& gauge = meter(*queue.model, queue.shape);
    if (parts_.state.now - gauge.target_at_ns < DEFERRED_TARGET_NS) {
        return gauge.target;
    }
    gauge.target_at_ns = parts_.state.now;
    gauge.target = 1;
    Curve* curve = spec.program->curve(queue.shape);
    if (curve == nullptr) {
        return 1;
    }
    const Waiting& front = queue.front();
    Ns slo = front.deadline_ns - front.pending->request.arrived_ns;
    auto budget = static_cast<double>(slo - there_ns - back_ns);
    Ns known = parts_.state.now - gauge.since_ns;
    double rate = 0;  // per nanosecond; the count has been filling for `known`, which the rate corrects
    if (known >= DEFERRED_TARGET_NS) {
        rate = gauge.count.rate(parts_.state.now, DEFERRED_HALF_LIFE_NS) / (1 - decay(known, DEFERRED_HALF_LIFE_NS));
    }
    for (std::uint32_t size = spec.batch_max; size > 1; --size) {
        auto exec = static_cast<double>(curve->planned_ns(size));
        bool fits = false;
        if (rate <= 0) {
            fits = exec <= static_cast<double>(slo) / 2;
        } else {
            double devices = rate * exec / size;
            fits = devices < 1 ? exec + size / rate <= budget : exec * (1 + 1 / devices) <= budget;
        }
        if (fits) {
            gauge.target = size;
            break;
        }
    }
    return gauge.target;
}

Deferred::Candidate Deferred::gather(const Queue& queue, const KindSpec& spec, Ns start_ns, Ns back_ns) {
    Candidate found;
    std::uint32_t there = queue.size();
    Curve* curve = spec.program->curve(queue.shape);
    if (curve == nullptr || !queue.is_plain() || spec.batch_max == 1) {
        // Requests that cannot be batched freely run at once.
        for (std::uint32_t place = 0; place < there; ++place) {
            Ns alone = spec.alone_ns(queue.shape, queue[place].size);
            Ns deadline = queue[place].deadline_ns - back_ns;
            if (alone > 0 && start_ns + alone <= deadline) {
                std::uint32_t count = 1;
                if (curve != nullptr && spec.batch_max > 1) {
                    count = queue.count_up_to(place, spec.batch_max);
                    while (count > 1) {
                        std::uint32_t rows = 0;
                        for (std::uint32_t next = place; next < place + count; ++next) {
                            rows += queue[next].size;
                        }
                        if (start_ns + curve->planned_ns(rows) <= deadline) {
                            break;
                        }
                        --count;
                    }
                }
                return {place, count, start_ns, deadline - alone};
            }
        }
        return found;
    }
    Ns there_ns = 0, unused = 0;
    find_link(*queue.model, there_ns, unused);
    // The target may stem from a worker with larger batches.
    std::uint32_t most = std::min(target(queue, spec, there_ns, back_ns), spec.batch_max);
    std::uint32_t suffix = 0;
    while (suffix < there &&
           queue[suffix].deadline_ns - back_ns < start_ns + curve->planned_ns(std::min(most, there - suffix))) {
        ++suffix;
    }
    std::uint32_t size = std::min(most, there - suffix);
    if (size == 0) {
        return found;
    }
    std::uint32_t first = suffix;
    while (first > 0 && queue[first - 1].deadline_ns - back_ns >= start_ns + curve->planned_ns(size)) {
        --first;
    }
    Ns deadline = queue[first].deadline_ns - back_ns;
    std::uint32_t limit = std::min(there - first, spec.batch_max);
    while (size < limit && start_ns + curve->planned_ns(size + 1) <= deadline) {
        ++size;
    }
    found.first = first;
    found.count = size;
    found.invalid_ns = deadline - curve->planned_ns(size);
    found.exec_at_ns = start_ns;
    if (size < spec.batch_max) {
        found.exec_at_ns = std::max(start_ns, deadline - jitter_ns_ - curve->planned_ns(size + 1));
    }
    return found;
}

Ns Deferred::ready_ns(Queue& queue) {
    if (queue.front().pending->evidence > 0) {
        // A suspect waits for a device of its own, and gains nothing by waiting for others.
        return parts_.state.now;
    }
    Ns there = 0, back = 0;
    find_link(*queue.model, there, back);
    Ns ready = NEVER_NS;
    for (const KindSpec* spec : queue.model->specs) {  // the longest duration over the kinds of device
        Candidate found = gather(queue, *spec, parts_.state.now + there, back);
        ready = std::min(ready, found.count > 0 ? found.exec_at_ns - there : NEVER_NS);
    }
    return ready;
}

// The time at which the queue's candidate becomes invalid, or a little before: the batch may be smaller on
// another device.
Ns Deferred::rank_ns(const Queue& queue) {
    Ns there = 0, back = 0, longest = 0;
    find_link(*queue.model, there, back);
    for (const KindSpec* spec : queue.model->specs) {
        Curve* curve = spec->program->curve(queue.shape);
        std::uint32_t rows = std::max(queue.is_plain() ? spec->batch_max : 1, queue.front().size);
        longest = std::max(longest, curve != nullptr ? curve->planned_ns(rows) : spec->alone_ns(queue.shape, rows));
    }
    return queue.front().deadline_ns - back - longest;
}

Ns Deferred::hopeless_ns(const Queue& queue, const Waiting& waiting) { return parts_.last_start_ns(queue, waiting); }

Choice Deferred::choose(Executor& executor, Ns free_ns) {
    Ns back = executor.worker->back_ns;
    Residency* residency = nullptr;
    Queue* queue = parts_.queues.least(*executor.arena, residency, [&](const Queue& candidate, const Residency& here) {
        return gather(candidate, *here.spec, free_ns, back).invalid_ns;
    });
    if (queue == nullptr) {
        return {};
    }
    Candidate found = gather(*queue, *residency->spec, free_ns, back);
    std::int64_t first = (*queue)[found.first].order;
    std::uint32_t count = found.count;
    while (queue->front().order != first) {
        parts_.dropper.drop(*queue, queue->front());
    }
    return {queue, residency, 0, count};
}

}  // namespace clockwork
