// Policies that keep requests in queues and bind them to a device when it becomes free.
//
// Requests wait in one queue per (model, shape, level), by deadline (queues.h). The rules (rules.h) say when
// a queue wants a device, and how urgent it is (its rank). A queue that becomes ready calls a hungry device
// of its model. So work is per batch: an arrival at a ready queue costs an insertion. The memory manager
// (queue_memory.h) decides which models are on which device.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/queue_memory.h"

namespace clockwork {

// A model is pressed when the first request of a batch has waited for one part in PRESSED_PART of its SLO.
inline constexpr Ns PRESSED_PART = 4;

class Queued final : public Policy, private Dropper {
public:
    using MakeRules = std::function<std::unique_ptr<Rules>(const RuleParts& parts, const SchedulerOptions& options)>;

    using MakeMemory =
        std::function<std::unique_ptr<QueueMemory>(const std::string& name, SchedulerParts& parts, const Queues& queues,
                                                   const Rules& rules, const SchedulerOptions& options)>;

    // make_memory is given the name of the memory rules from the options, or from the policy's rules.
    Queued(SchedulerParts& parts, const SchedulerOptions& options, const MakeRules& make_rules,
           const MakeMemory& make_memory);

    Memory& memory() override { return *memory_; }

    void arrive(Pending& pending) override;
    bool replace(Pending& pending) override;
    void expire(Pending& pending) override;
    void unplan(Pending& pending) override;
    void strand(Model& model) override;

    void dispatch(Executor& executor) override;
    bool has_work(const Executor& executor) const override { return queues_.has_work(*executor.arena); }
    void joined(Executor& executor) override;
    void left(Executor& executor) override;

    void depart(Flight& flight) override { rules_->depart(flight); }
    void delivered(const Flight& flight, Ns ready_ns, bool is_ok) override {
        rules_->delivered(flight, ready_ns, is_ok);
    }
    void executed(const Flight& flight, Ns took_ns) override { rules_->executed(flight, took_ns); }
    void ended(Flight& flight) override { memory_->ended(flight); }

    void load_done(Residency& residency, Ns took_ns) override;
    void load_given_up(Residency& residency, const AnswerSentence& said) override;
    void model_prepared(Model& model) override;
    void model_gone(Model& model) override;

    double margin(std::uint32_t kind) const override { return rules_->margin(kind); }
    PolicyStatus status(Ns now) const override { return rules_->status(now); }
    void collect_waiting(std::vector<const Pending*>& found) const override { queues_.collect(found); }
    bool has_archive() const override { return rules_->has_archive(); }
    void archive(Archive& archive) override;
    void check_invariants() const override;

private:
    void drop(Queue& queue, const Waiting& waiting) override;
    // Handles a possible change of a queue's front, readiness or rank: answers hopeless requests, sets the
    // timer, calls a device.
    void review(Queue& queue);
    bool check_near(Pending& pending);
    bool refuse_unknown(Pending& pending, Queue& queue);
    void enqueue(Pending& pending, Queue& queue);
    void call(Model& model);
    bool wake(Model& model);
    void forget_calls(const Executor& executor);
    bool feed(Executor& executor);
    void send(Executor& executor, const Choice& choice);
    void turn_out(const Queue& queue, Pending& pending);
    void answer_overdue(Executor& executor);
    bool serve_background(Executor& executor, bool aged);
    void send_background(Executor& executor, Residency& residency);

    State& state_;
    Arenas& arenas_;
    Requests& requests_;
    Executions& executions_;
    Recovery& recovery_;
    Idle& idle_;
    Queues queues_;
    std::unique_ptr<Rules> rules_;
    const Habits& habits_;
    std::unique_ptr<QueueMemory> memory_;
    std::vector<std::vector<Model*>>
        called_;              // by the executor's slot: models for which it was called, or took a batch
    Bits summoned_;           // models for which a device was called in this step that has not looked yet
    std::int64_t order_ = 0;  // number of the last arrival
    bool reviewing_ = false;
};

}  // namespace clockwork
