#include "scheduler/fifo.h"

#include <algorithm>

namespace clockwork {

Fifo::Fifo(const RuleParts& parts, const SchedulerOptions& options)
    : Rules({.ahead_ns = option_ms(options, "schedule_ahead_ms", FIFO_AHEAD_NS),
             .presses_late = option_ms(options, "queue_delay_ms", 0) == 0}),
      parts_(parts),
      batch_cap_(static_cast<std::uint32_t>(option(options, "batch_cap", 0))),
      delay_ns_(option_ms(options, "queue_delay_ms", 0)),
      drops_(option(options, "drop", 1) != 0) {}

Ns Fifo::rank_ns(const Queue& queue) { return queue.front().pending->request.arrived_ns; }

Ns Fifo::ready_ns(Queue& queue) {
    if (delay_ns_ == 0 || queue.rows() >= cap(*queue.model->specs.front())) {
        return 0;
    }
    return queue.front().pending->request.arrived_ns + delay_ns_;
}

// The duration of a batch is not considered here: with drop, choose() does so for the device that is free.
Ns Fifo::hopeless_ns(const Queue& queue, const Waiting& waiting) {
    if (!drops_) {
        return waiting.deadline_ns;
    }
    return parts_.last_start_ns(queue, waiting);
}

Choice Fifo::choose(Executor& executor, Ns free_ns) {
    Residency* residency = nullptr;
    while (Queue* queue = parts_.queues.first_ready(*executor.arena, residency)) {
        const KindSpec& spec = *residency->spec;
        Curve* curve = spec.program->curve(queue->shape);
        Ns end = free_ns + executor.worker->back_ns;
        if (drops_ && end + planned_ns(*residency, queue->shape, queue->front().size) > queue->front().deadline_ns) {
            parts_.dropper.drop(*queue, queue->front());
            continue;
        }
        std::uint32_t count = curve != nullptr ? queue->count_up_to(0, cap(spec)) : 1;
        Ns slack = queue->front().deadline_ns - end;
        if (drops_ && curve != nullptr && count > 1 &&
            curve->planned_ns(queue->is_plain() ? count : cap(spec)) > slack) {
            std::uint32_t rows = queue->front().size;
            std::uint32_t most = 1;
            while (most < count && curve->planned_ns(rows + (*queue)[most].size) <= slack) {
                rows += (*queue)[most].size;
                ++most;
            }
            count = most;
        }
        return {queue, residency, 0, count};
    }
    return {};
}

}  // namespace clockwork
