// Policy `adaptive`: the most requests in time. docs/policies/adaptive.md derives each rule, with its formulas.
//
// - Late binding: requests wait in their model's queue, and a device that becomes free takes the best batch of all queues.
// - Need: the share of all device time that the arriving requests take at their ideal cost; the price of device time.
// - Hold: a queue whose batch is dearer than the need allows waits to grow, where a device will be free when it ends.
// - Sacrifice: the first requests of a queue are given up where they make its batch dearer than the need allows.
// - Refusal at arrival: where batches save little, by the work before a request; where they save much, only beyond the
//   model's fair share.
// - Priorities: a model's turn is by its tightest deadline and is served from its highest priority.
//
// Each rule was measured against the best other policy and the clairvoyant bound (bench/grid); the options off_* switch
// hold, sacrifice, refusal and the belief in surges off.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "scheduler/decay.h"
#include "scheduler/margin.h"
#include "scheduler/rules.h"
#include "scheduler/weights.h"

namespace clockwork {

// Of what arrived, half is forgotten in this.
inline constexpr Ns NEED_HALF_LIFE_NS = 1'400 * MS;

// What arrives may have grown since: what surely arrives now, by its mean over this half-life less so many standard
// deviations of it, is needed at least.
inline constexpr Ns RECENT_HALF_LIFE_NS = 20 * MS;
inline constexpr double RECENT_SIGMAS = 2;

// And it may have ended: queues are held for no more than surely arrives at most, by the mean over this half-life and so
// many standard deviations. A client in a closed loop would wait for a flood that has left, and send nothing else meanwhile.
inline constexpr Ns LULL_HALF_LIFE_NS = 200 * MS;
inline constexpr double LULL_SIGMAS = 3;

// A past shorter than this is taken for this long: the first requests are no flood.
inline constexpr Ns MEMORY_MIN_NS = 70 * MS;
inline constexpr Ns RECENT_MEMORY_MIN_NS = 20 * MS;

// An execution is planned with a share on top of its estimate (see margin.h), and with a fixed time.
inline constexpr Ns MARGIN_FIXED_NS = 20'000;

// A queue is held while its batch costs more than 1 / (HOLD_NEED * need) of its ideal.
inline constexpr double HOLD_NEED = 2;

// The longest hold, as a share of the time that the first request can wait ...
inline constexpr double HOLD_SHARE = 0.8;

// ... of which a model has as large a part as it has of the devices ...
// ... less this many times the share for each model that matters, per device.
inline constexpr double HOLD_CROWD = 1.5;

// Nor is it longer than this: who was expected may not come, and the need is known for a half-life.
inline constexpr Ns HOLD_MAX_NS = NEED_HALF_LIFE_NS;

// Requests that a hold must be expected to bring, to be worth it.
inline constexpr double HOLD_GAIN_MIN = 1.0;

// Whether they come is learnt: clients that wait for their answers send nothing meanwhile. Half is forgotten in this, and
// as many rows as COME_PRIOR are thought to have come as expected.
inline constexpr Ns COME_HALF_LIFE_NS = 2 * SECOND;
inline constexpr double COME_PRIOR = 2.0;

// A batch is too dear if it costs more than 1 / (SACRIFICE_NEED * need) of its ideal.
inline constexpr double SACRIFICE_NEED = 1.0;

// Models are held to their shares while what arrives needs more than this share of all device time.
inline constexpr double REFUSE_NEED = 1.05;

// And a request beyond the share is refused if the wait before it is longer than this part of what its SLO has room for:
// those that are let in are then nearly sure to be served, and sooner; it costs up to 2 % of goodput at twice the load
// that can be served.
inline constexpr double SHARE_WAIT = 0.6;

// The fair share of a model is computed anew after this.
inline constexpr Ns SHARE_EVERY_NS = 50 * MS;

// Where batches do not save much, on a device that turned a request away of late (CONTEST_NS), a request is refused if the
// wait before it is longer than this part of what it has room for, less so many times the margin of executions: who is let
// in is then nearly sure to be served, whatever they take.
inline constexpr double WAIT_PART = 0.8;
inline constexpr double WAIT_PART_NOISE = 4;
inline constexpr double WAIT_PART_MIN = 0.5;

// Who waits no longer than this is told soon enough.
inline constexpr Ns PROMPT_NS = 10 * MS;

// Batches save little where a row alone costs no more than this many times what it costs in the best that its SLO allows.
inline constexpr double SAVING_MIN = 1.15;

// And much where it costs more than this many times as much: how many go into a batch, and so when it begins, is then not
// known when a request arrives.
inline constexpr double TOLD_SAVING_MAX = 1.5;

// Where rows alone cost no more than this much of what they cost in a batch, they run alone: it is answered sooner.
inline constexpr double BATCH_WORTH = 1.05;

// Each execution counts for so much of the pace, which is thought to be no less than PACE_MIN.
inline constexpr double PACE_PART = 0.01;
inline constexpr double PACE_MIN = 0.5;

// Requests of one queue that may be given up for one batch.
inline constexpr std::uint32_t SACRIFICE_MAX = 128;

// Lower levels that one batch is filled up with.
inline constexpr std::size_t FILLING_MAX = 8;

// Rows that were to come while others waited, and those that did.
class Company {
public:
    void add(Ns now, double expected, double came) {
        expected_.add(now, expected, COME_HALF_LIFE_NS);
        came_.add(now, came, COME_HALF_LIFE_NS);
    }
    // Of those that are expected, the part that will come.
    double part(Ns now) const {
        double came = came_.at(now, COME_HALF_LIFE_NS) + COME_PRIOR,
               expected = expected_.at(now, COME_HALF_LIFE_NS) + COME_PRIOR;
        return std::min(came / expected, 1.0);
    }
    void archive(Archive& archive) { archive(expected_, came_); }

private:
    DecayedCount expected_;
    DecayedCount came_;
};

// It is learnt for 1, 2 to 3, 4 to 7 ... rows that wait.
inline constexpr std::size_t COMPANIES = 7;
inline std::size_t company(std::uint32_t rows) {
    return std::min<std::size_t>(std::bit_width(rows) - 1, COMPANIES - 1);
}

class Adaptive final : public Rules {
public:
    static constexpr const char* OPTIONS[] = {"schedule_ahead_ms", "save_devices", "hold_need",
                                              "sacrifice_need",    "refuse_wait",  "off_hold",
                                              "off_refuse",        "off_surge",    "off_sacrifice"};

    Adaptive(const RuleParts& parts, const SchedulerOptions& options);

    Choice choose(Executor& executor, Ns free_ns) override;
    Choice attempt(Executor& executor, Ns free_ns) override;
    Ns rank_ns(const Queue& queue) override;
    Ns ready_ns(Queue& queue) override;
    Ns hopeless_ns(const Queue& queue, const Waiting& waiting) override;
    bool admit(Pending& pending) override;
    Ns duration_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const override {
        return takes_ns(spec, shape, rows);
    }
    Ns inputs_ns(const Worker& worker) const override {
        return worker.inputs.batch_ns(parts_.state.now) + worker.copies.batch_ns(parts_.state.now);
    }
    Ns ahead_ns(const Executor& executor) const override {
        return habits.ahead_ns > 0 ? habits.ahead_ns : executor.lead.ns(parts_.state.now);
    }
    void depart(Flight& flight) override;
    void delivered(const Flight& flight, Ns ready_ns, bool is_ok) override;
    void executed(const Flight& flight, Ns took_ns) override;
    void model_gone(Model& model) override;
    double margin(std::uint32_t kind) const override {
        return kind < margins_.size() ? margins_[kind].share(parts_.state.now) : MARGIN_FIRST;
    }
    PolicyStatus status(Ns now) const override;
    void archive(Archive& archive) override;

private:
    // What came for a model, each thing by the weight of its time: the past fades without being touched.
    struct Traffic {
        double cost = 0;  // ideal device time, ns
        double rows = 0;
        double ideal_ns = 0;                     // of one row
        double slack_ns = 0;                     // that its requests come with
        bool saves = false;                      // its batches save more than little
        bool is_told = true;                     // its requests are refused at arrival, by what waits before them
        std::array<Company, COMPANIES> company;  // by how many wait: see company()
        std::uint32_t arrivals = 0;

        void archive(Archive& archive) { archive(cost, rows, ideal_ns, slack_ns, saves, is_told, company, arrivals); }
    };

    struct Candidate {
        Queue* queue;
        Residency* residency;
        std::uint32_t first;     // those before cannot be in time on this device
        std::uint32_t given_up;  // from there on
        std::uint32_t count;     // behind them
        std::uint32_t filled;    // requests of lower levels
        Ns start_ns;             // the last at which it is in time
        Ns own_start_ns;         // the same without what fills it up
        Ns duration_ns;
        Ns rank_ns;          // the lowest goes first
        std::uint8_t level;  // whose rank it is
    };

    static KindSpec* spec_of(const Model& model);
    // The way to the first device that has the model, and back; 0 while none has it.
    static Ns link_ns(const Model& model);
    Ns soonest_ns(const Model& model, std::uint32_t shape, std::uint32_t rows) const;
    // What batches of a shape are counted with, looked up once for all sizes; the bound for a shape never measured, 0 if
    // there is none. Valid until something is learnt.
    class Durations {
    public:
        Durations(const KindSpec& spec, std::uint32_t shape, double margin)
            : spec_(spec), curve_(spec.program->curve(shape)), shape_(shape), margin_(margin) {}

        Ns operator()(std::uint32_t rows) const {
            if (curve_ == nullptr) [[unlikely]] {
                return spec_.alone_ns(shape_, rows);
            }
            return counted_ns(curve_->exec_ns(rows));
        }
        // The time of a batch at best: Curve::hoped_ns().
        Ns hoped_ns(std::uint32_t rows) const {
            return curve_ == nullptr ? spec_.alone_ns(shape_, rows) : counted_ns(curve_->hoped_ns(rows));
        }
        const Curve* curve() const { return curve_; }
        // The most rows, up to rows_max, that take no longer than time_ns; 0 if not even one does.
        std::uint32_t rows_within(Ns time_ns, std::uint32_t rows_max) const;

    private:
        Ns counted_ns(Ns exec_ns) const {
            return exec_ns + static_cast<Ns>(static_cast<double>(exec_ns) * margin_) + MARGIN_FIXED_NS;
        }

        const KindSpec& spec_;
        Curve* curve_;
        std::uint32_t shape_;
        double margin_;
    };
    Durations durations(const KindSpec& spec, std::uint32_t shape) const { return {spec, shape, margin(spec.kind)}; }
    Ns takes_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        return durations(spec, shape)(rows);
    }
    Ns hoped_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        return durations(spec, shape).hoped_ns(rows);
    }
    void look_up(Traffic& known, const KindSpec& spec, std::uint32_t shape) const;
    // Models that matter, for each device.
    double crowd() const;
    void share_out();
    void see_who_came(const Batch& batch);
    void turn_away(Pending& pending, Ns after_ns);
    bool is_beyond_share(Pending& pending, const KindSpec& spec, const Traffic& known);
    Ns before_ns(const Arena& arena, const Pending& pending, Ns enough_ns);
    bool is_too_late(Pending& pending);
    // Of the time that a request has, the part that may be before it on such a device.
    double wait_part(std::uint32_t kind) const {
        return std::max(WAIT_PART - WAIT_PART_NOISE * margin(kind), WAIT_PART_MIN);
    }
    void keep_time();
    // Of a sum of weighted things: how much of it there was per nanosecond.
    double rate(double sum) const { return sum / weights_.span_ns(); }
    // The share of their ideal at which the devices have to run; above 1 they cannot.
    double need() const;
    double need_at_most() const;
    double need_of(double arrives, Ns now) const;  // where so much ideal device time arrives per nanosecond
    double hold_share(const Model& model) const;
    // Whether a device that could take work, and found none, has the model.
    bool has_other_device(const Model& model) const { return parts_.queues.find_hungry(model) != nullptr; }
    bool pick(Executor& executor, Ns free_ns, Candidate& chosen);
    void give_up_first(const Candidate& chosen);
    bool consider(Queue& queue, Residency& residency, Ns free_ns, Candidate& found);
    // A batch that lower levels fill up.
    struct Filled {
        std::uint32_t rows;
        Ns room_ns;  // that its tightest deadline leaves
    };
    template <typename Takes>
    Filled fill_up(const Queue& queue, Filled batch, const Takes& takes, Ns until_ns, std::uint32_t rows_max);
    bool find_lead(const Candidate& behind, Ns free_ns, Candidate& lead);

    const RuleParts parts_;
    bool holds_;
    bool sacrifices_;
    bool saves_devices_;
    double hold_need_;
    double refuse_wait_;
    bool refuses_;
    bool believes_surges_;
    double sacrifice_need_;

    Beside<Traffic> traffic_;  // of models
    double cost_sum_ = 0;      // of all models
    double square_sum_ = 0;    // of each model's, squared
    Weights weights_{NEED_HALF_LIFE_NS, MEMORY_MIN_NS};
    Inflow surge_{RECENT_HALF_LIFE_NS, RECENT_MEMORY_MIN_NS};  // of all models
    Inflow lull_{LULL_HALF_LIFE_NS, MEMORY_MIN_NS};
    std::vector<Margin> margins_;         // by the device's kind
    std::uint64_t batch_bytes_max_ = 0;   // that any batch could have
    std::uint64_t batch_copied_max_ = 0;  // likewise
    double share_ = 0;                    // devices that a model may have while too much arrives; 0: no limit
    Ns share_at_ns_ = 0;                  // when to compute it anew
    std::vector<double> wanted_;          // for that: what each model asks for, in devices
    Fading pace_{1};                      // what executions take of what they are counted with
    std::vector<Candidate> candidates_;
    std::vector<Span> filling_;  // of the candidate that was considered last
    std::vector<Waiting> victims_;
};

}  // namespace clockwork
