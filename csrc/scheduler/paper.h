// Policy `paper`: the original's scheduler INFER5 (Clockwork, OSDI '20, its source of 2020-10-28).
//
// Batches have exactly 1, 2, 4, 8 or 16 requests (as far as the model allows). With slo the time from arrival
// to deadline, a request's internal deadline is arrival + exec_slo,
//   exec_slo = max(slo - BUFFER, schedule_ahead + BUFFER),
// so that a request with a tighter SLO is tried late rather than refused. A strategy (model, b) has the
// priority
//   front_b.deadline - exec(b)   (the latest start; the lowest goes first, of equal ones the smaller batch)
// where front_b is the first request that could still be in time in a batch of b that begins when the device
// is free. The device's next batch is that of the first strategy with enough requests for its size: from 1
// upwards, the next size is taken if as many requests could be in time in it. Requests before the first one
// taken, which were feasible only in a smaller batch, are sacrificed: answered as missed. A device is given
// work for up to schedule_ahead; an action may start from now until max(now + 1 ms, its predicted start) +
// schedule_ahead. Estimates are the 99th percentile, interpolated, of the last 10 executions (0.91 of the
// largest and 0.09 of the second); the first execution replaces a profile. Nothing is refused at arrival. The
// requests of a failed action go back to their queue, as under every policy. An action that came too late for
// its window, though not for the deadlines of its requests, does not count as an attempt: their next window
// is twice as wide, up to WIDENINGS_MAX times, and then as wide as the deadlines allow. (The inputs of 16
// requests can take longer on the way than the window of an idle device.)
//
// Options: schedule_ahead_ms (5, as in the paper; its code has 10), batch_cap (16; its code has 8),
// early_cancel (1: requests that cannot be in time any more, even alone and at once, are answered then; 0: at
// their internal deadline).
// Memory: `paper` unless told otherwise.
//
// Departures from the original, all in its favour:
// - The original pushes every request to sets of strategies on every device, and pops stale ones. Here each
//   strategy has the value that it would have if it were computed anew, which is never worse.
// - Requests that cannot be in time on a device that is busy for a while stay available to other devices.
// - Requests of one model go by deadline where their SLOs differ; the original's queues are by arrival.
// - Priorities: within one level it is as published; a higher level goes first.
// - Estimates are shared by models of one program. They are per kind of device.
// - An overdue action delays the predictions behind it by as much as it is overdue, not only beyond 10 ms.
// - A request is answered at its deadline at the latest, also where the internal deadline is later (SLOs
//   below 15 ms).
// - Requests of several rows count as so many; a batch then has at most, not exactly, a size's rows.
#pragma once

#include <string>
#include <vector>

#include "scheduler/rules.h"

namespace clockwork {

inline constexpr std::uint32_t PAPER_BATCH_CAP = 16;
inline constexpr Ns PAPER_FUTURE_NS = MS;  // least time from now until an action begins
// Doublings of a request's windows; the last is 128 schedule_ahead_ms wide.
inline constexpr std::uint8_t WIDENINGS_MAX = 8;

class Paper final : public Rules {
public:
    static constexpr const char* OPTIONS[] = {"schedule_ahead_ms", "batch_cap", "early_cancel"};

    Paper(const RuleParts& parts, const SchedulerOptions& options);

    bool admit(Pending& pending) override;
    Choice choose(Executor& executor, Ns free_ns) override;
    Ns rank_ns(const Queue& queue) override;
    Ns hopeless_ns(const Queue& queue, const Waiting& waiting) override;
    Ns duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const override;
    void sent(Batch& batch, Flight& flight, Command& command) override;
    void archive(Archive& archive) override { archive(has_tight_); }

private:
    struct Strategy {
        Ns priority_ns = NEVER_NS;
        std::uint32_t first = 0;
        std::uint32_t rows = 0;
    };

    Ns internal_ns(const Waiting& waiting) const;
    static Ns exec_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows);
    std::uint32_t largest(const KindSpec& spec) const;
    std::uint32_t first_feasible(const Queue& queue, Ns end_ns) const;
    Strategy strategy(const Queue& queue, const Residency& residency, Ns free_ns) const;

    const RuleParts parts_;
    std::uint32_t batch_cap_;
    bool cancels_early_;
    bool has_tight_ = false;  // a request had an SLO below the floor
};

}  // namespace clockwork
