// Policy `deferred`: Symphony's deferred batching (arXiv 2308.07470; its public source, nexuslb at dbb9043).
//
// A queue does not take the first device that is free: it waits until waiting longer would not let its batch
// grow, and only then asks for a device, so that batches are large and few devices busy. With l(b) the
// duration of a batch, d_ctrl the way to the worker, d_resp the way back, and deadlines less d_resp:
//   target batch: the largest b with l(b) (1 + 1/n) <= budget, n = max(1, rate l(b) / b), budget = slo -
//     d_ctrl - d_resp; if the rate needs less than one device, the largest b with l(b) + b / rate <= budget;
//     while the rate is unknown, the largest b with l(b) <= slo / 2.
//   gathering, with s = max(now + d_ctrl, when the device is free): the suffix of the queue, by deadline,
//     whose head is in time if all of it (at most the target) runs together; b = min(target, its length);
//     requests before the suffix that are not in time in a batch of b are dropped; b grows while the earliest
//     deadline allows it.
//   candidate: exec_at = max(s, deadline - jitter - l(b + 1)), the time at which another request could no
//     longer join (frontrun); it is invalid after deadline - l(b).
//   matchmaking: at exec_at - d_ctrl the queue takes the free device of the lowest number; if there is none
//     it is parked, and a device that becomes free takes the parked queue that becomes invalid first,
//     gathering anew.
// Options: schedule_ahead_ms (0: a device is given its next batch when it is free), jitter_ms (0.1, as
// Symphony).
//
// Departures from the original:
// - d_ctrl and d_resp are the link's measured delays (its constants: 0.1 ms and 2 ms); inputs need no
//   fetching, so d_data is 0.
// - Requests are dropped when a batch is formed for a device, or when even alone and at once they would be
//   late; the original gathers, and drops, at each arrival. Both are in its favour.
// - A batch that is as large as the model allows is sent without waiting.
// - The rate is a decayed count (half-life DEFERRED_HALF_LIFE_NS); the original averages 100 samples of 50
//   ms.
// - There are no threads for models and for ranking, and so none of their delays.
// - Loads are decided by a memory manager (memory.h); the original has all models everywhere.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/decay.h"
#include "scheduler/rules.h"

namespace clockwork {

inline constexpr Ns DEFERRED_JITTER_NS = 100'000;

// Interval at which the target batch of a queue is computed (the original's interval of samples).
inline constexpr Ns DEFERRED_TARGET_NS = 50 * MS;

// Half-life of the count of arrivals.
inline constexpr Ns DEFERRED_HALF_LIFE_NS = 2'500 * MS;

class Deferred final : public Rules {
public:
    static constexpr const char* OPTIONS[] = {"schedule_ahead_ms", "jitter_ms"};

    Deferred(const RuleParts& parts, const SchedulerOptions& options);

    bool admit(Pending& pending) override;
    Choice choose(Executor& executor, Ns free_ns) override;
    Ns rank_ns(const Queue& queue) override;
    Ns ready_ns(Queue& queue) override;
    Ns hopeless_ns(const Queue& queue, const Waiting& waiting) override;
    void archive(Archive& archive) override { meters_.archive(archive, parts_.state.pool<Model>().slot_count()); }

private:
    struct Candidate {
        std::uint32_t first = 0;
        std::uint32_t count = 0;  // 0: no request of the queue can be in time
        Ns exec_at_ns = NEVER_NS;
        Ns invalid_ns = NEVER_NS;
    };
    struct Meter {  // arrivals of a queue
        DecayedCount count;
        Ns since_ns = 0;  // time of the first arrival
        Ns target_at_ns = -NEVER_NS;
        std::uint32_t target = 1;

        void archive(Archive& archive) { archive(count, since_ns, target_at_ns, target); }
    };

    Candidate gather(const Queue& queue, const KindSpec& spec, Ns start_ns, Ns back_ns);
    std::uint32_t target(const Queue& queue, const KindSpec& spec, Ns there_ns, Ns back_ns);
    Meter& meter(const Model& model, std::uint32_t shape);
    void find_link(const Model& model, Ns& there_ns, Ns& back_ns) const;

    const RuleParts parts_;
    Ns jitter_ns_;
    Beside<std::vector<std::pair<std::uint32_t, Meter>>> meters_;  // meters of each model, by shape
};

}  // namespace clockwork
