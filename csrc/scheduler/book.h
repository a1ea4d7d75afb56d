// The books of a scheduler: who waits for an answer, what was sent, who is there, when to wake.
//
// Whatever a policy decides, these rules hold: each request gets exactly one answer, at the latest at its deadline;
// nothing late is a success; a result of an action that is not in the books is ignored.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/scheduler.h"
#include "scheduler/state.h"

namespace clockwork {

// Timers of answered requests that may lie in the heap beyond the live ones before it is rebuilt.
inline constexpr std::size_t TIMERS_SLACK = 1024;

// Defaults of SchedulerOptions; a test holds them to clockwork.config.
inline constexpr std::uint64_t QUEUED_REQUESTS_MAX = 65'536;
inline constexpr std::uint64_t QUEUED_BYTES_MAX = std::uint64_t{4} << 30;

// What an answer says: a sentence, and what fills it in.
struct Said {
    Text text = Text::NONE;
    Ns a = 0;
    Ns b = 0;
    const std::string* words = nullptr;  // the worker's own; null or empty: it said none

    Said(Text text) : text(text) {}  // NOLINT: most sentences need nothing else
    Said(Text text, Ns a, Ns b = 0, const std::string* words = nullptr) : text(text), a(a), b(b), words(words) {}
};

// Throws std::logic_error(what) if it does not hold.
inline void must(bool holds, const char* what) {
    if (!holds) {
        throw std::logic_error(what);
    }
}

// State shared by every policy, and the answers.
class Book : public Scheduler {
public:
    explicit Book(const SchedulerOptions& options);

    void settle(Ns now) final;
    void shape_known(std::uint32_t shape, std::uint64_t elements) final { shapes_.set(shape, elements); }
    void shape_forgotten(std::uint32_t shape) final { shapes_.forget(shape); }
    void shapes_in_use(std::vector<std::uint32_t>& found) const override;
    std::vector<DeviceStatus> devices() const final;
    std::vector<Whereabouts> whereabouts(ModelId model_id) const final;
    std::vector<WorkerId> hosts(ModelId model_id) const final;
    Snapshot snapshot() const override;
    double devices_wanted(Ns now) const final { return demand_.devices_wanted(now, models_, devices_); }
    std::vector<Ns> expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const final;
    const Predictions* predictions() const final { return &predictions_; }
    void judge_predictions(Ns from_ns, Ns until_ns) final;
    bool host_picture(WorkerId worker, std::vector<ModelId>& held) const final;
    bool picture(WorkerId worker, std::int32_t device, std::vector<Held>& held) const final;
    void check_invariants() const override;

protected:
    // ----- what a policy brings ----------------------------------------------------------------

    // A request reached the time at which something must be done about it (see set_timer()).
    virtual void expire(Pending& pending) = 0;
    // The part of its estimate by which an execution on a kind of device is planned longer.
    virtual double margin(std::uint32_t kind) const {
        (void)kind;
        return 0;
    }
    // Something happened to a device (see touch()): send it what it should have now. Called by settle() alone.
    virtual void dispatch(Device& device) = 0;
    // Take a request that was not sent out of wherever it waits; it will be answered, or planned anew.
    virtual void unplan(Pending& pending) = 0;
    // A request is answered, with a failure, that is not on a device. It waits where it was until unplan().
    virtual void left_unsent(const Pending& pending) = 0;
    // The batches that wait for a device alone, in the order in which it will be sent them.
    virtual const std::vector<Batch*>& planned(const Device& device) const;
    // Let go of a draining model once nothing of it is left.
    virtual void check_removed(Model& model) = 0;
    // Before the timers and devices, in every settle().
    virtual void begin_settle() {}
    // Every request that waits unsent and in no plan nor background list: check_invariants() looks for all.
    virtual void collect_waiting(std::vector<const Pending*>& found) const { (void)found; }

    // ----- requests ----------------------------------------------------------------------------

    Pending* make_pending(const Request& request, Model& model);
    // From now on this request has to be answered.
    void open(Pending& pending);
    // It has been answered.
    void close(Pending& pending);
    // A request that was never opened.
    void refuse(Pending& pending, Reason reason, Said said, Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    void refuse(const Request& request, Reason reason, Said said, Ns feasible_slo_ns = 0, Ns retry_after_ns = 0);
    // Answers an admitted request that did not succeed, and takes it out of wherever it is.
    void fail(Pending& pending, Status status, Said said, Reason reason = Reason::NONE, Ns feasible_slo_ns = 0,
              Ns retry_after_ns = 0);
    void answer_ok(Pending& pending, const Flight& flight, const ActionResult& result);
    // The lowest priority (the highest number) of any unanswered request; 0 if there is none.
    std::uint32_t lowest_level() const;
    // Whether all unanswered requests are of that level.
    bool is_one_level() const { return levels_[lowest_level()] == pendings_.size(); }

    // ----- time and order ----------------------------------------------------------------------

    void advance(Ns now) { now_ = now > now_ ? now : now_; }
    void set_timer(Ns at_ns, const Pending& pending);
    void touch(Device& device) {
        if (!device.dirty) {
            device.dirty = true;
            dirty_.push_back(&device);
        }
    }
    void untouch(Device& device);
    ActionId next_action() { return ++action_id_; }
    Command& order(CommandKind kind) {
        Command& command = out.list.emplace_back();
        command.kind = kind;
        return command;
    }

    // ----- letting go --------------------------------------------------------------------------
    // Objects go back to their pools when the step is over.

    void retire(Pending* one) { gone_pendings_.push_back(one); }
    void retire(Batch* one) { gone_batches_.push_back(one); }
    void retire(Residency* one) { gone_residencies_.push_back(one); }
    void retire(Flight* one) { gone_flights_.push_back(one); }
    void retire(Model* one) { gone_models_.push_back(one); }
    void retire(Device* one) { gone_devices_.push_back(one); }
    void retire(Worker* one) { gone_workers_.push_back(one); }
    void retire(KindSpec* one) { gone_specs_.push_back(one); }

    Model* find_model(ModelId id) const { return by_model_.find(static_cast<std::uint64_t>(id)); }
    Worker* find_worker(WorkerId id) const { return by_worker_.find(static_cast<std::uint32_t>(id)); }

    virtual void check_device(const Device& device) const;

    struct Counts {
        std::uint64_t admitted = 0, answered = 0, refused = 0, missed = 0, failed = 0, displaced = 0;
    };

    Ns now_ = 0;
    std::uint64_t queued_requests_max_;
    std::uint64_t queued_bytes_max_;
    std::uint64_t queued_bytes_ = 0;
    std::vector<Model*> models_;  // in the order of their coming
    std::vector<Device*> devices_;
    IdMap<Model> by_model_;
    IdMap<Worker> by_worker_;
    IdMap<Flight> flights_;
    IdMap<Pending> pendings_;
    Chain<Model, &Model::before, &Model::after> background_;  // models with requests without a deadline
    Estimates estimates_;
    Shapes shapes_;
    Counts counts_;
    LoadId load_id_ = 0;
    std::uint64_t device_count_ = 0;
    Predictions predictions_;
    Demand demand_;
    Ns judged_from_ns_ = 0, judged_until_ns_ = NEVER_NS;

    Pool<Pending> pending_pool_;
    Pool<Batch> batch_pool_;
    Pool<Residency> residency_pool_;
    Pool<Flight> flight_pool_;
    Pool<Model> model_pool_;
    Pool<KindSpec> spec_pool_;
    Pool<Device> device_pool_;
    Pool<Worker> worker_pool_;

private:
    static constexpr std::uint32_t DEVICE_TIMER = 1u << 31;

    struct Timer {
        Ns at_ns;
        std::uint64_t sequence;
        std::uint32_t slot;  // of a request or, with DEVICE_TIMER, of a device
        std::uint32_t generation;
    };
    static bool is_later(const Timer& a, const Timer& b) {
        return a.at_ns != b.at_ns ? a.at_ns > b.at_ns : a.sequence > b.sequence;
    }

    void push_timer(Ns at_ns, std::uint32_t slot, std::uint32_t generation);
    void pop_timer();
    bool is_stale(const Timer& timer);
    void ring(const Timer& timer);
    void recycle();
    void say(Command& command, const Said& said);

    std::vector<Timer> timers_;  // a heap, the earliest first
    std::uint64_t sequence_ = 0;
    ActionId action_id_ = 0;
    Ns wake_ns_ = NEVER_NS;
    std::vector<Device*> dirty_;
    std::vector<Device*> looking_;                // the devices that settle() is at
    std::array<std::uint64_t, 256> levels_{};     // unanswered requests by priority
    std::array<std::uint64_t, 4> levels_used_{};  // which of them are not zero

    std::vector<Pending*> gone_pendings_;
    std::vector<Batch*> gone_batches_;
    std::vector<Residency*> gone_residencies_;
    std::vector<Flight*> gone_flights_;
    std::vector<Model*> gone_models_;
    std::vector<Device*> gone_devices_;
    std::vector<Worker*> gone_workers_;
    std::vector<KindSpec*> gone_specs_;
};

}  // namespace clockwork
