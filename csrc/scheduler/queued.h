// The base of policies that keep requests in queues and bind them to a device when it becomes free.
//
// Requests wait in one queue per (model, shape, level), by deadline. A queue that wants a device is *ready*; whether
// and when it is, and how urgent (its rank), is the policy's to say. A device that can take work looks at the ready
// queues of the models that it holds; if there is none it is *hungry*, and a queue that becomes ready calls a hungry
// device of its model. So work is per batch: an arrival at a ready queue costs an insertion, and whatever is looked
// for among devices or models is looked for in bit sets. Which models are on which device is Memory's (memory.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/idle.h"
#include "scheduler/memory.h"
#include "scheduler/queue.h"

namespace clockwork {

// A batch is sent when its device is predicted to be free within this (the paper's value).
inline constexpr Ns QUEUED_AHEAD_NS = 5 * MS;

// A model is pressed when the first request of a batch has waited for one part in PRESSED_PART of its SLO.
inline constexpr Ns PRESSED_PART = 4;

// Queues of one model (shapes times levels) that are kept although they are empty.
inline constexpr std::size_t QUEUES_KEPT = 16;

// Of the devices that have a model, so many are asked when they could have answered who is given up; where none has
// it, the devices of so many workers.
inline constexpr std::size_t OUTLOOK_MAX = 8;

// An option by name, of SchedulerOptions::values.
double option(const SchedulerOptions& options, std::string_view name, double otherwise);
inline Ns option_ms(const SchedulerOptions& options, std::string_view name, Ns otherwise) {
    return static_cast<Ns>(option(options, name, static_cast<double>(otherwise) / MS) * MS);
}

class Queued : public Idle {
public:
    // memory: "paper" or "adaptive"; the policy's own choice, where the options name none.
    Queued(const SchedulerOptions& options, const std::string& memory, Ns schedule_ahead_ns = QUEUED_AHEAD_NS);

    void check_invariants() const override;

protected:
    friend class Memory;

    // What a device is to run: requests [first, first + count) of a queue, in its order. No queue: nothing now.
    struct Choice {
        Queue* queue = nullptr;
        Residency* residency = nullptr;
        std::uint32_t first = 0;
        std::uint32_t count = 0;
    };

    // What is known of a model beside its record.
    struct ModelState {
        Queue* last = nullptr;         // the queue that was asked for last
        std::uint32_t last_shape = 0;  // it is of
        std::uint8_t last_level = 0;
        std::uint32_t generation = 0;  // of the model
        Queue* best = nullptr;         // of its ready queues, the first by (level, rank, order)
        std::vector<std::unique_ptr<Queue>> queues;
        Bits homes;  // slots of the devices on which it is resident
    };

    // ----- what a policy brings ----------------------------------------------------------------

    // What a free device runs next; it would start at `free_ns`. May answer requests that are hopeless (drop()).
    virtual Choice choose(Device& device, Ns free_ns) = 0;
    // The urgency of a ready queue: of those of one level, the lowest goes first. Asked when the front changed.
    virtual Ns rank_ns(const Queue& queue) = 0;
    // From when on a queue wants a device. Asked at each arrival while it is not ready, when its front changed, and
    // at that time.
    virtual Ns ready_ns(Queue& queue) {
        (void)queue;
        return 0;
    }
    // When the front of a queue is answered as missed, if nobody took it until then: at the latest at its deadline.
    // Must not decrease from one request of a queue to the next.
    virtual Ns hopeless_ns(const Queue& queue, const Waiting& one) {
        (void)queue;
        return one.deadline_ns;
    }
    // False: it was refused at arrival, by refuse().
    virtual bool admit(Pending& pending) {
        (void)pending;
        return true;
    }
    // How long a batch's inputs take to a device, beyond the delay of the link: it is sent so much earlier.
    virtual Ns inputs_ns(const Device& device) const {
        (void)device;
        return 0;
    }
    // How long before a device is planned to be free its next batch is sent, beyond its way there.
    virtual Ns ahead_ns(const Device& device) const {
        (void)device;
        return schedule_ahead_ns_;
    }
    // What a device's timeline is to count for a batch.
    virtual Ns duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) {
        return spec.alone_ns(shape, rows);
    }
    // A batch was just ordered; the order may still be changed.
    virtual void sent(Batch& batch, Flight& flight, Command& command) {
        (void)batch;
        (void)flight;
        (void)command;
    }

    // ----- for policies ------------------------------------------------------------------------

    // The ready queue of the lowest rank on a device, whose residency is set too; null: there is none.
    Queue* first_ready(Device& device, Residency*& residency);
    // Calls function(queue, residency) for every ready queue of those models on a device that is_wanted(model, rank),
    // which is asked with the packed rank of the model's best queue: what is of no use costs little then.
    template <typename Wanted, typename Function>
    void for_each_ready(Device& device, Wanted&& is_wanted, Function&& function) {
        Bits::for_each_in_both(at(device).models, work_, [&](std::uint32_t slot) {
            const Model* model = model_pool_.at(slot);
            if (!is_wanted(*model, ranks_[slot])) {
                return true;
            }
            Residency* residency = device.find(model);
            if (is_usable(residency)) {
                for (const auto& queue : states_[slot].queues) {
                    if (queue->ready) {
                        function(*queue, *residency);
                    }
                }
            }
            return true;
        });
    }
    // The ready queue of the least exact(queue, residency), of the highest level that has one, on a device.
    // rank_ns() must never be above it: it tells which need not be looked at. NEVER_NS: not this one. Null: none.
    template <typename Exact>
    Queue* least(Device& device, Residency*& residency, Exact&& exact) {
        Queue* best = nullptr;
        std::uint64_t bound = UINT64_MAX;
        Bits::for_each_in_both(at(device).models, work_, [&](std::uint32_t slot) {
            if (ranks_[slot] > bound) {
                return true;
            }
            Residency* here = device.find(model_pool_.at(slot));
            if (!is_usable(here)) {
                return true;
            }
            for (const auto& queue : states_[slot].queues) {
                if (!queue->ready || queue->rank > bound) {
                    continue;
                }
                Ns value = exact(*queue, *here);
                if (value >= NEVER_NS) {
                    continue;
                }
                std::uint64_t rank = packed_rank(queue->level, value);
                if (rank < bound || (rank == bound && queue->front().order < best->front().order)) {
                    bound = rank;
                    best = queue.get();
                    residency = here;
                }
            }
            return true;
        });
        return best;
    }
    // How long a batch would take on a residency, as planned for (the bound, for a shape never measured).
    static Ns planned_ns(const Residency& residency, std::uint32_t shape, std::uint32_t rows) {
        return residency.spec->alone_ns(shape, rows);
    }
    // How many requests, from `first` on, make a batch of at most `rows_max` rows: at least one, and one alone.
    static std::uint32_t count_up_to(const Queue& queue, std::uint32_t first, std::uint32_t rows_max);
    Ns last_start_ns(const Queue& queue, const Waiting& one) const;
    // Answers a waiting request as missed, or as refused (promises_nothing_). What is behind it may become hopeless
    // too: look at the queue anew.
    void drop(Queue& queue, const Waiting& one);
    // A queue's front, readiness or rank may have changed: answers who is hopeless, sets its timer, calls a device.
    void review(Queue& queue);

    // A rank as one number: the level first, then the time, which may lie somewhat before zero.
    static std::uint64_t packed_rank(std::uint8_t level, Ns rank_ns);

    ModelState& at(const Model& model) { return states_[model.slot]; }
    Queue& queue_of(ModelState& state, const Pending& pending);
    static bool is_usable(const Residency* residency) {
        return residency != nullptr && residency->state == ResidencyState::RESIDENT && !residency->doomed;
    }
    // Devices that could take work now and found none.
    const Bits& hungry() const { return hungry_; }
    // Requests in a model's queues.
    std::uint32_t waiting(const Model& model) const { return waiting_[model.slot]; }

    Ns schedule_ahead_ns_;
    bool reviews_growth_ = false;    // review() a ready queue at every arrival, too
    bool presses_late_ = true;       // a request sent after a part of its time calls for another device; not if that
                                     // is the policy's own doing
    bool promises_nothing_ = false;  // who waits was not admitted: it is refused, not missed, before its deadline
    bool spreads_ = true;            // a model may go to idle devices although those that have it are in time
    bool counts_lane_ = true;        // a device is given no more than run_ahead actions (and a round trip's worth)
    std::unique_ptr<Memory> memory_;

    // ----- of the classes below ----------------------------------------------------------------

    void arrive(Pending& pending) override;
    bool replace(Pending& pending) override;
    void expire(Pending& pending) override;
    void unplan(Pending& pending) override;
    bool has_work(const Device& device) const override;
    void dispatch(Device& device) override;
    void strand(Model& model) override;
    void collect_waiting(std::vector<const Pending*>& found) const override;
    bool may_evict(const Residency& residency) const override { return memory_->may_evict(residency); }
    std::size_t order_evictable(Device& device, std::vector<Residency*>& found, std::size_t ordered) override {
        return memory_->order_evictable(device, found, ordered);
    }
    bool may_drop(const Model& model) const override { return memory_->may_drop(model); }
    double host_worth(const Model& model) const override { return memory_->host_worth(model); }
    void host_changed(Worker& worker, Model& model) override { memory_->host_changed(worker, model); }
    bool is_load_wanted(const Residency& residency) const override;
    void load_done(Residency& residency, Ns took_ns) override;
    void load_given_up(Residency& residency, const Said& said) override;
    void residency_gone(Residency& residency) override;
    void model_gone(Model& model) override;
    void device_joined(Device& device) override;
    void device_left(Device& device) override;
    void model_prepared(Model& model, Worker& worker) override;
    void batch_ended(Flight& flight) override { memory_->ended(flight); }

private:
    struct DeviceState {
        Bits models;                 // slots of the models that are resident
        std::vector<Model*> called;  // for which it was called, or took a batch, in this step
    };

    DeviceState& at(const Device& device) { return devices_state_[device.slot]; }
    bool is_near(Pending& pending);
    void enqueue(Pending& pending, Queue& queue);
    void set_waiting(const Model& model, std::uint32_t count);
    void publish(ModelState& state, const Model& model);
    void call(Model& model);
    bool feed(Device& device);
    void send(Device& device, const Choice& choice);
    void turn_out(const Queue& queue, Pending& pending);
    void answer_overdue(Device& device);
    bool serve_background(Device& device, bool aged);
    void send_background(Residency& residency);

    std::vector<ModelState> states_;          // by the model's slot; grows with model_prepared() alone
    std::vector<std::uint32_t> waiting_;      // likewise, close together: it is asked of every model on a device
    std::vector<DeviceState> devices_state_;  // by the device's
    std::vector<std::uint64_t> ranks_;        // by the model's slot: of the best ready queue
    std::vector<Ns> first_due_ns_;            // likewise: the earliest deadline of those in front of its ready queues
    Bits work_;                               // models with a ready queue
    Bits asked_;                              // models for which a request waits, whether a queue is ready or not
    Bits hungry_;                             // devices that could take work
    std::int64_t order_ = 0;                  // of the last arrival
    bool reviewing_ = false;
};

}  // namespace clockwork
