// Policy `edf`: earliest deadline first over explicit plans; admission is a promise.
//
// Each device has a plan: the batches promised on it, in the order of their deadlines. Batches are bound
// late: the next is sent when the device is about to be free, and until then requests may join it.
// docs/policies/edf.md explains plans, loads, refusals, and requests without a deadline.
#pragma once

#include <vector>

#include "scheduler/admission.h"
#include "scheduler/spare.h"

namespace clockwork {

// Bound on the batches that are looked at behind a batch whose model is still being loaded.
inline constexpr std::size_t SKIP_SCAN_MAX = 16;

// While devices execute for more than this part of their time, one whose plan is empty will execute, too.
inline constexpr double EXPECTED_BUSY = 0.7;

class Edf final : public Policy {
public:
    explicit Edf(SchedulerParts& parts)
        : state_(parts.state),
          arenas_(parts.arenas),
          requests_(parts.requests),
          executions_(parts.executions),
          recovery_(parts.recovery),
          idle_(parts.idle),
          plans_(parts.state),
          admission_(parts, plans_),
          spare_(parts, plans_) {}

    Memory& memory() override { return plans_; }
    // A promise counts the way from a store to the device alone. The models of a disk store are there before
    // they are asked for, but a host store begins empty: workers with one are not served.
    bool plans_fetches() const override { return false; }

    void arrive(Pending& pending) override;
    bool replace(Pending& pending) override;
    void expire(Pending& pending) override;
    void unplan(Pending& pending) override;

    void dispatch(Executor& executor) override;
    bool has_work(const Executor& executor) const override {
        const Plan& plan = plans_.of(executor);
        return plan.size() > plan.unready;
    }
    // A plan may be empty for a moment on a device that is asked for all its time.
    bool expects_work(const Executor& executor) const override {
        return has_work(executor) || plans_.busy().executing(state_.now, state_.executors.size()) > EXPECTED_BUSY;
    }
    const std::vector<Batch*>& planned(const Executor& executor) const override { return plans_.of(executor).batches; }
    void clear_plan(Executor& executor, std::vector<Pending*>& waiting) override { plans_.clear(executor, waiting); }
    bool can_wait(const Executor& executor, Ns until_ns, Ns link_ns) const override {
        return plans_.of(executor).holds(until_ns, 0) && plans_.holds_loads(*executor.worker, link_ns);
    }
    void joined(Executor& executor) override { plans_.add(executor); }

    void depart(Flight& flight) override {
        plans_.busy().add_execution(state_.now, flight.duration_ns);
        send_inputs(flight, state_.now);
    }
    void delivered(const Flight& flight, Ns ready_ns, bool is_ok) override {
        learn_inputs(flight, state_.now, ready_ns, is_ok);
    }

    void executed(const Flight& flight, Ns took_ns) override { plans_.executed(flight, took_ns); }
    double margin(std::uint32_t kind) const override { return plans_.margin(kind); }

    void load_done(Residency& residency, Ns took_ns) override { plans_.load_done(residency, took_ns); }
    void load_given_up(Residency& residency, const AnswerSentence& said) override;
    void evacuate(Residency& residency, std::vector<Pending*>& waiting) override { plans_.clear(residency, waiting); }

    void model_gone(Model& model) override { plans_.worths().model_gone(model); }

    void estimates_changed(ProgramEstimates& program, std::uint32_t shape) override { plans_.retime(program, shape); }
    void estimates_forgotten(ProgramEstimates& program, std::uint32_t shape) override {
        plans_.forget_curve(program, shape);
    }

    void archive(Archive& archive) override { archive(plans_, spare_); }
    void check_invariants() const override { plans_.check_invariants(); }

private:
    Batch* pick(Executor& executor, Ns free);
    bool may_skip(const Executor& executor, Ns free, std::size_t place) const;
    bool trim(Executor& executor, Batch& batch, Ns free);
    bool attempts(Executor& executor, Batch& batch, Ns end_ns);
    void top_up(Executor& executor, Batch& batch, Ns free);
    bool gains(const Executor& executor, const Batch& batch, const Pending& pending, Ns free) const;
    bool puts_off_loads(const Executor& executor) const;
    void append(Executor& executor, Batch& batch, Pending& pending);

    State& state_;
    Arenas& arenas_;
    Requests& requests_;
    Executions& executions_;
    Recovery& recovery_;
    Idle& idle_;
    Plans plans_;
    Admission admission_;
    Spare spare_;
    std::vector<Pending*> left_;
    std::vector<Batch*> others_;
    std::vector<Pending*> candidates_;
};

}  // namespace clockwork
