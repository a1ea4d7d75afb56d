// A policy whose hooks are written in another language: clockwork/scheduler/policy.py describes them.
//
// Everything else is as for every policy with queues. A hook that fails ends the call of the scheduler with
// HookFailed, in the middle of a step: the scheduler may then only be destroyed.
#pragma once

#include <stdexcept>
#include <vector>

#include "scheduler/hooks.h"
#include "scheduler/rules.h"

namespace clockwork {

struct HookFailed : std::runtime_error {
    HookFailed() : std::runtime_error("a hook of the policy failed") {}
};

class Scripted final : public Rules, private HookView {
public:
    // The options' hooks must outlive the object.
    Scripted(const RuleParts& parts, const SchedulerOptions& options);

    Choice choose(Executor& executor, Ns free_ns) override;
    Ns rank_ns(const Queue& queue) override;
    Ns ready_ns(Queue& queue) override;
    Ns hopeless_ns(const Queue& queue, const Waiting& waiting) override;
    bool admit(Pending& pending) override;
    bool has_archive() const override { return false; }

private:
    Ns now() const override { return parts_.state.now; }
    Queue* first_ready(Executor& executor) override;
    void ready(Executor& executor, std::vector<Queue*>& found) override;
    void devices(const Queue& queue, std::vector<Executor*>& found) const override;
    const KindSpec* spec(const Executor& executor, const Queue& queue) const override;
    Ns free_ns(const Executor& executor) const override { return executor.free_ns(parts_.state.now); }
    std::uint32_t batch_max(const KindSpec& spec, const Queue& queue) const override;
    Ns planned_ns(const KindSpec& spec, const Queue& queue, std::uint32_t rows) const override;
    Ns least_ns(const Queue& queue, std::uint32_t rows) const override;
    Ns last_start_ns(const Queue& queue, const Waiting& waiting) const override;
    std::uint32_t count_up_to(const Queue& queue, std::uint32_t first, std::uint32_t rows_max) const override;
    bool drop(Queue& queue, const Waiting& waiting) override;

    const RuleParts parts_;
    const Hooks& hooks_;
};

}  // namespace clockwork
