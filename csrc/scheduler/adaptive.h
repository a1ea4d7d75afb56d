// Policy `adaptive`: the most requests in time. docs/policies/adaptive.md derives its rules, with formulas.
//
// - Late binding: requests wait in their model's queue, and a device that becomes free takes the best batch
//   of all queues.
// - Need: the share of all device time that the arriving requests take at their ideal cost; the price of
//   device time.
// - Hold: a queue whose batch is dearer than the need allows waits to grow, where a device will be free at
//   the end of the wait.
// - Sacrifice: the first requests of a queue are given up where they make its batch dearer than the need
//   allows.
// - Refusal at arrival: where batches save little, by the work before a request; where they save much, only
//   beyond the model's fair share.
// - Priorities: a model's turn is by its tightest deadline and is served from its highest priority.
//
// Each rule was measured against the best other policy and the clairvoyant bound (bench/grid). The options
// off_* switch off hold, sacrifice, refusal, and the reaction to surges.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "scheduler/decay.h"
#include "scheduler/in_order.h"
#include "scheduler/margin.h"
#include "scheduler/rules.h"
#include "scheduler/weights.h"

namespace clockwork {

// Half-life of the count of arrivals.
inline constexpr Ns NEED_HALF_LIFE_NS = 1'400 * MS;

// The need is at least the rate that surely arrives now: the mean over this half-life less RECENT_SIGMAS
// standard deviations. The long mean alone follows a surge too late.
inline constexpr Ns RECENT_HALF_LIFE_NS = 20 * MS;
inline constexpr double RECENT_SIGMAS = 2;

// Queues are held for at most the rate that may still arrive: the mean over this half-life plus LULL_SIGMAS
// standard deviations. Without that bound, a client in a closed loop would wait for a flood that has ended,
// and send nothing meanwhile.
inline constexpr Ns LULL_HALF_LIFE_NS = 200 * MS;
inline constexpr double LULL_SIGMAS = 3;

// The present need is at most what the last requests make, plus this many standard deviations of their count.
inline constexpr double LAST_SIGMAS = 1;

// Lower bounds of the time that rates are averaged over, so that the first requests are no flood.
inline constexpr Ns MEMORY_MIN_NS = 70 * MS;
inline constexpr Ns RECENT_MEMORY_MIN_NS = 20 * MS;

// A queue is held while its batch costs more than 1 / (HOLD_NEED * need) of its ideal.
inline constexpr double HOLD_NEED = 2;

// Longest hold, as a share of the time that the first request can wait. It is multiplied by the part of all
// devices that hold the model, and by 1 less the number of models that matter per device.
inline constexpr double HOLD_SHARE = 0.8;

// Absolute bound of a hold: expected requests may not come, and the need is known for a half-life only.
inline constexpr Ns HOLD_MAX_NS = NEED_HALF_LIFE_NS;

// A hold must be expected to bring at least this many requests.
inline constexpr double HOLD_GAIN_MIN = 1.0;

// The part of the expected requests that do come is learnt, because clients that wait for their answers send
// nothing. The counts have this half-life, and start as if COME_PRIOR rows had been expected and had come.
inline constexpr Ns COME_HALF_LIFE_NS = 2 * SECOND;
inline constexpr double COME_PRIOR = 2.0;

// A batch is too dear if it costs more than 1 / (SACRIFICE_NEED * need) of its ideal.
inline constexpr double SACRIFICE_NEED = 1.0;

// Requests are given up only if the larger batch serves as many more in the same time, in this many batches.
inline constexpr double SACRIFICE_GAINS = 16;

// Models are held to their fair shares while the need is above this share of all device time.
inline constexpr double REFUSE_NEED = 1.05;

// A request beyond its model's share is refused if the wait before it is longer than this part of the time
// that its SLO leaves. Admitted requests are then nearly sure to be served, and sooner; it costs up to 2 % of
// goodput at twice the load that can be served.
inline constexpr double SHARE_WAIT = 0.6;

// Interval at which the fair share of a model is computed.
inline constexpr Ns SHARE_EVERY_NS = 50 * MS;

// Interval at which the waiting requests of all models are summed up.
inline constexpr Ns BACKLOG_EVERY_NS = MS;

// While requests are refused beyond their models' shares, and for this long after, the need is at least
// FULL_NEED. The requests that were admitted say nothing about the load then.
inline constexpr Ns FULL_NS = RECENT_HALF_LIFE_NS;
inline constexpr double FULL_NEED = 1;

// A contested device has an overload if its models ask for this part of its time. Requests are given up for
// full batches from FULL_ASKED on, so that a burst of a few requests is served whole.
inline constexpr double OVERLOAD_ASKED = 0.9;
inline constexpr double FULL_ASKED = 0.6;

// Where batches save little, on a device that turned a request away within CONTEST_NS, a request is refused
// if the wait before it is longer than this part of the time it has. The part shrinks by WAIT_PART_NOISE
// times the margin of executions, down to WAIT_PART_MIN, so that admitted requests stay in time although
// executions vary.
inline constexpr double WAIT_PART = 0.8;
inline constexpr double WAIT_PART_NOISE = 4;
inline constexpr double WAIT_PART_MIN = 0.5;

// A refusal within this delay counts as prompt.
inline constexpr Ns PROMPT_NS = 10 * MS;

// Batches save little where a row alone costs at most this many times the cost of a row in the best batch
// that its SLO allows.
inline constexpr double SAVING_MIN = 1.15;

// Batches save much where a row alone costs more than this many times the cost in the best batch. The size of
// a batch, and so its start, is then unknown when a request arrives.
inline constexpr double TOLD_SAVING_MAX = 1.5;

// Rows run alone, which answers sooner, where that costs at most this many times their cost in a batch.
inline constexpr double BATCH_WORTH = 1.05;

// Weight of each execution in the learnt pace, and the least pace.
inline constexpr double PACE_PART = 0.01;
inline constexpr double PACE_MIN = 0.5;

// Bound on the requests of one queue that are given up for one batch.
inline constexpr std::uint32_t SACRIFICE_MAX = 128;

// Bound on the queues of lower levels that fill one batch up.
inline constexpr std::size_t FILLING_MAX = 8;

// Rows expected to arrive while others waited, and rows that did arrive.
class Company {
public:
    void add(Ns now, double expected, double came) {
        expected_.add(now, expected, COME_HALF_LIFE_NS);
        came_.add(now, came, COME_HALF_LIFE_NS);
    }
    // The part of the expected rows that will come, at most 1.
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

// Companies are kept by the number of rows that wait: 1, 2 to 3, 4 to 7, ...
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
    Ns outgrown_ns(const Queue& queue, const Waiting& waiting) override;
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
    double margin(std::uint32_t kind) const override { return margins_.share(parts_.state.now, kind); }
    PolicyStatus status(Ns now) const override;
    void archive(Archive& archive) override;

private:
    // Arrivals of a model. Sums are weighted by time (weights.h), so the past fades without being touched.
    struct Traffic {
        double cost = 0;  // ideal device time, ns
        double rows = 0;
        double ideal_ns = 0;  // ideal device time of one row, on the kind of device that is best for it
        double part = 1;      // of all devices, those that can serve it, by their speed
        double slack_ns = 0;  // mean SLO of its requests
        bool saves = false;   // batches save more than SAVING_MIN
        // whether requests are refused at arrival because of the work before them
        bool is_told = true;
        std::array<Company, COMPANIES> company;  // by the number of waiting rows: see company()
        std::uint32_t arrivals = 0;

        void archive(Archive& archive) {
            archive(cost, rows, ideal_ns, part, slack_ns, saves, is_told, company, arrivals);
        }
    };

    struct Coming {  // requests whose model is about to be loaded
        Ns ready_ns = 0;
        Ns latest_ns = NEVER_NS;  // latest start of the first
        Ns takes_ns = 0;
        const Model* elsewhere = nullptr;  // their model, if other devices have or load it, too
    };

    struct Candidate {
        Queue* queue;
        Residency* residency;
        std::uint32_t first;     // requests before this place cannot be in time on this device
        std::uint32_t given_up;  // requests given up, from `first` on
        std::uint32_t count;     // requests of the batch, behind those given up
        std::uint32_t filled;    // requests of lower levels that fill the batch up
        Ns start_ns;             // last start at which all of the batch is in time
        Ns own_start_ns;         // latest own start, without the requests that fill the batch up
        Ns duration_ns;
        Ns rank_ns;          // rank of the batch among those of its kind: the lowest goes first
        Ns due_ns;           // rank among all batches
        std::uint8_t level;  // the level that the ranks belong to
    };

    static KindSpec* spec_of(const Model& model, std::uint32_t shape);
    // Delay of the way to the first device that has the model, and back; 0 while no device has it.
    static Ns link_ns(const Model& model);
    Ns soonest_ns(const Model& model, std::uint32_t shape, std::uint32_t rows) const;
    // Planned durations of batches of one shape: the curve is looked up once for all sizes. For a shape that
    // was never measured, the bound, or 0 if there is none. Valid until an estimate changes.
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
        // The time of a batch at best, with margin: see Curve::hoped_ns().
        Ns hoped_ns(std::uint32_t rows) const {
            return curve_ == nullptr ? spec_.alone_ns(shape_, rows) : counted_ns(curve_->hoped_ns(rows));
        }
        const Curve* curve() const { return curve_; }
        // The most rows, up to rows_max, that take no longer than time_ns; 0 if not even one does.
        std::uint32_t rows_within(Ns time_ns, std::uint32_t rows_max) const;

    private:
        Ns counted_ns(Ns exec_ns) const { return with_learnt_margin(exec_ns, margin_); }

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
    void look_up(Traffic& known, const Model& model, std::uint32_t shape) const;
    // The ideal cost of a row in the best batch within the time, on devices of this preparation; 0: none is.
    double ideal_ns(const KindSpec& spec, std::uint32_t shape, Ns time_ns) const;
    double part_of_devices(const Model& model, std::uint32_t shape, const Traffic& known) const;
    // Number of devices, those of slower kinds by their speed for what arrives.
    double devices() const;
    // How many times as long a row takes here as on the kind of device that is best for the model.
    static double slower(const Model& model, const KindSpec& spec, std::uint32_t shape);
    // Number of models that matter, per device.
    double crowd() const;
    void share_out();
    void see_who_came(const Batch& batch);
    void turn_away(Pending& pending, Ns after_ns);
    double backlog_ns();
    bool refuse_beyond_share(Pending& pending, const KindSpec& spec, const Traffic& known);
    Ns before_ns(const Arena& arena, const Pending& pending, Ns enough_ns);
    bool refuse_late(Pending& pending);
    // The part of a request's time that the work before it may take on a device of this kind.
    double wait_part(std::uint32_t kind) const {
        return std::max(WAIT_PART - WAIT_PART_NOISE * margin(kind), WAIT_PART_MIN);
    }
    void keep_time();
    // Rate per nanosecond of a time-weighted sum.
    double rate(double sum) const { return sum / weights_.span_ns(); }
    // The share of their ideal throughput at which the devices have to run. Above 1, they cannot serve all
    // that arrives.
    double need() const;
    double need_at_most() const;
    // Upper bound of the need that the last requests make, refused ones too.
    double last_need_at_most() const;
    // The need if so much ideal device time arrives per nanosecond.
    double need_of(double arrives, Ns now) const;
    double hold_share(const Model& model) const;
    // Whether another device that holds the model could take work and has found none, and is not too slow.
    bool has_other_device(const Model& model) const;
    Coming first_coming(const Executor& executor) const;
    bool make_way(const Executor& executor, const Candidate& candidate, const Coming& coming, Ns free_ns);
    void prefer_only_copy(const Executor& executor, Ns free_ns, Candidate& chosen);
    static const Pending& first_of(const Candidate& candidate) {
        return *(*candidate.queue)[candidate.first + candidate.given_up].pending;
    }
    bool pick(Executor& executor, Ns free_ns, Candidate& chosen);
    void give_up_first(const Candidate& chosen);
    bool consider(Queue& queue, Residency& residency, Ns free_ns, Candidate& found);
    // A batch with the requests of lower levels that fill it up.
    struct Filled {
        std::uint32_t rows;
        Ns room_ns;  // time that the batch's tightest deadline leaves
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

    Beside<Traffic> traffic_;  // traffic by model
    double cost_sum_ = 0;      // sum of the costs of all models
    double square_sum_ = 0;    // sum of the squares of the models' costs
    Weights weights_{NEED_HALF_LIFE_NS, MEMORY_MIN_NS};
    ArrivalRate surge_{RECENT_HALF_LIFE_NS, RECENT_MEMORY_MIN_NS};  // arrivals over all models
    ArrivalRate lull_{LULL_HALF_LIFE_NS, MEMORY_MIN_NS};
    LastArrivals last_;             // arrivals over all models, refused ones too
    Ns full_until_ns_ = -NEVER_NS;  // until then, the need is at least FULL_NEED
    double backlog_ns_ = 0;         // device time of all waiting requests, per device
    Ns backlog_at_ns_ = 0;          // time at which backlog_ns_ is computed next
    Margins margins_;
    std::uint64_t batch_bytes_max_ = 0;   // bound on the input bytes of any batch
    std::uint64_t batch_copied_max_ = 0;  // bound on the copied bytes of any batch
    double share_ = 0;                    // bound on the devices of a model; 0: no limit
    Ns share_at_ns_ = 0;                  // time at which share_ is computed next
    double part_ = 1;                     // of all devices, those that serve what arrives, by their speed
    std::vector<double> wanted_;          // devices that each model asks for; scratch of share_out()
    Fading pace_{1};                      // ratio of executed to planned time
    InOrder in_order_;
    bool yields_ = false;  // the last pick() left a batch for a coming load
    std::vector<Candidate> candidates_;
    std::vector<QueueRange> filling_;  // fillings of the candidate that was considered last
    std::vector<Waiting> victims_;
};

}  // namespace clockwork
