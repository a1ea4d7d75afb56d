#include "scheduler/paper.h"

#include <algorithm>

namespace clockwork {

Paper::Paper(const RuleParts& parts, const SchedulerOptions& options)
    : Rules({.memory = "paper",
             .ahead_ns = option_ms(options, "schedule_ahead_ms", QUEUED_AHEAD_NS),
             .counts_lane = false}),
      parts_(parts),
      batch_cap_(static_cast<std::uint32_t>(option(options, "batch_cap", PAPER_BATCH_CAP))),
      cancels_early_(option(options, "early_cancel", 1) != 0) {
    parts_.state.estimates.set_rule(EstimateRule::PERCENTILE);
}

bool Paper::admit(Pending& pending) {
    Ns slo = pending.deadline_ns - pending.request.arrived_ns;
    has_tight_ |= slo < habits.ahead_ns + 2 * PAPER_BUFFER_NS;
    return true;
}

Ns Paper::internal_ns(const Waiting& waiting) const {
    Ns deadline = waiting.deadline_ns - PAPER_BUFFER_NS;
    if (has_tight_) {
        deadline = std::max(deadline, waiting.pending->request.arrived_ns + habits.ahead_ns + PAPER_BUFFER_NS);
    }
    return deadline;
}

Ns Paper::exec_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) {
    Curve* curve = spec.program->curve(shape);
    return curve != nullptr ? curve->exec_ns(rows) : spec.alone_ns(shape, rows);
}

std::uint32_t Paper::largest(const KindSpec& spec) const {
    std::uint32_t size = 1;
    while (size * 2 <= std::min(spec.batch_max, batch_cap_)) {
        size *= 2;
    }
    return size;
}

Ns Paper::rank_ns(const Queue& queue) {
    Ns longest = 0;
    for (const KindSpec* spec : queue.model->specs) {
        std::uint32_t rows = std::max(largest(*spec), queue.front().size);
        longest = std::max(longest, exec_ns(*spec, queue.shape, rows));
    }
    return internal_ns(queue.front()) - longest;
}

Ns Paper::hopeless_ns(const Queue& queue, const Waiting& waiting) {
    Ns deadline = internal_ns(waiting);
    if (cancels_early_) {
        Ns least = NEVER_NS;
        for (const KindSpec* spec : queue.model->specs) {
            if (Ns alone = exec_ns(*spec, queue.shape, 1); alone > 0) {
                least = std::min(least, alone);
            }
        }
        deadline -= least < NEVER_NS ? least : 0;
    }
    return parts_.arenas.last_begin_ns(*queue.model, std::min(deadline, waiting.deadline_ns));
}

// The index of the first request whose internal deadline is at or after this end.
std::uint32_t Paper::first_feasible(const Queue& queue, Ns end_ns) const {
    if (internal_ns(queue.front()) >= end_ns) {
        return 0;
    }
    std::uint32_t low = 1, high = queue.size();
    while (low < high) {
        std::uint32_t middle = low + (high - low) / 2;
        if (internal_ns(queue[middle]) < end_ns) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

Paper::Strategy Paper::strategy(const Queue& queue, const Residency& residency, Ns free_ns) const {
    const KindSpec& spec = *residency.spec;
    Strategy best;
    std::uint32_t most = spec.program->curve(queue.shape) != nullptr ? largest(spec) : 1;
    for (std::uint32_t size = 1; size <= most; size *= 2) {
        Ns exec = exec_ns(spec, queue.shape, size);
        std::uint32_t first = first_feasible(queue, free_ns + exec);
        std::uint32_t there = queue.size() - first;
        if (there == 0) {
            break;
        }
        if (!queue.is_plain()) {
            std::uint32_t rows = 0, count = queue.count_up_to(first, size);
            for (std::uint32_t place = first; place < first + count; ++place) {
                rows += queue[place].size;
            }
            if (size > 1 && (rows <= best.rows || queue[first].alone)) {
                break;
            }
            if (rows > size) {  // a single request of many rows
                exec = exec_ns(spec, queue.shape, rows);
            }
            there = std::max(rows, size);
        }
        if (there < size) {
            break;
        }
        best.priority_ns = std::min(best.priority_ns, internal_ns(queue[first]) - exec);
        best.first = first;
        best.rows = size;
    }
    return best;
}

Choice Paper::choose(Executor& executor, Ns free_ns) {
    Ns start = std::max(free_ns, parts_.state.now + PAPER_FUTURE_NS);
    Residency* residency = nullptr;
    Queue* queue = parts_.queues.least(*executor.arena, residency, [&](const Queue& candidate, const Residency& here) {
        return strategy(candidate, here, start).priority_ns;
    });
    if (queue == nullptr) {
        return {};
    }
    Strategy found = strategy(*queue, *residency, start);
    std::int64_t first = (*queue)[found.first].order;
    while (queue->front().order != first) {
        parts_.dropper.drop(*queue, queue->front());
    }
    return {queue, residency, 0, queue->count_up_to(0, found.rows)};
}

Ns Paper::duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
    return exec_ns(spec, shape, rows);
}

void Paper::sent(Batch& batch, Flight& flight, Command& command) {
    Executor& executor = *flight.executor;
    Ns start = std::max(parts_.state.now + PAPER_FUTURE_NS, executor.lane_end_ns - batch.duration_ns);
    std::uint8_t widenings = 0;
    for (const Pending* pending : batch.pendings) {
        widenings = std::max(widenings, pending->widenings);
    }
    Ns last = command.latest_ns;  // the last start by which the batch meets its deadlines
    Ns wide = widenings < WIDENINGS_MAX ? start + (habits.ahead_ns << widenings) : last;
    command.latest_ns = std::max(start + habits.ahead_ns, std::min(wide, last));
    flight.is_narrow = command.latest_ns < last;
}

}  // namespace clockwork
