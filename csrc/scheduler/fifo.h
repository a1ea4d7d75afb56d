// Policy `fifo`: work-conserving dynamic batching, as common servers do it at their best.
//
// A free device takes the queue whose oldest request came first, among the models that it holds, and runs as
// much of the queue as one batch may have. Options:
//   batch_cap       the largest batch (0: the model's own, the default)
//   queue_delay_ms  0: a queue is taken as soon as a device is free. Otherwise a queue is ready when it has
//                   batch_cap rows, or its oldest request has waited this long (Triton's max_queue_delay)
//   schedule_ahead_ms  time before a device is free at which its next batch is sent (0.1: common servers bind
//                   when a device is free; with the paper's 5 ms the policy would lose every SLO of 8 ms)
//   drop            1 (default): requests that could no longer be in time alone are answered when their batch
//                   is formed, and while they wait; 0: only expired requests are
//
// Settled in its favour: requests of one model go by deadline, not by arrival, where their SLOs differ; a
// batch is no larger than its tightest deadline allows (unless drop is 0); batches have any size.
#pragma once

#include <string>
#include <vector>

#include "scheduler/rules.h"

namespace clockwork {

inline constexpr Ns FIFO_AHEAD_NS = 100'000;

class Fifo final : public Rules {
public:
    static constexpr const char* OPTIONS[] = {"batch_cap", "queue_delay_ms", "schedule_ahead_ms", "drop"};

    Fifo(const RuleParts& parts, const SchedulerOptions& options);

    Choice choose(Executor& executor, Ns free_ns) override;
    Ns rank_ns(const Queue& queue) override;
    Ns ready_ns(Queue& queue) override;
    Ns hopeless_ns(const Queue& queue, const Waiting& waiting) override;

private:
    std::uint32_t cap(const KindSpec& spec) const {
        return batch_cap_ > 0 ? std::min(batch_cap_, spec.batch_max) : spec.batch_max;
    }

    const RuleParts parts_;
    std::uint32_t batch_cap_;
    Ns delay_ns_;
    bool drops_;
};

}  // namespace clockwork
