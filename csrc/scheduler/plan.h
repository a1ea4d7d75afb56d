// Plans of policy `edf`: the promised batches of each executor, in the order of their sending.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "scheduler/margin.h"
#include "scheduler/state.h"
#include "scheduler/worth.h"

namespace clockwork {

// Half-life of the count of device time asked for, by which a flood is found out.
inline constexpr Ns CROWD_HALF_LIFE_NS = 50 * MS;

// Half-life of the counts by which batches are to grow: over 50 ms, a single device is surely asked for half
// of what it is asked for.
inline constexpr Ns GROWTH_HALF_LIFE_NS = 200 * MS;

// Device time surely asked for is the mean less this many standard deviations.
inline constexpr double CROWD_SIGMAS = 3;

// Requests that lately asked for the executors of an arena, those that were refused among them.
class Crowd {
public:
    // Notes a request that takes batched_ns of device time in a batch, alone_ns by itself.
    void add(Ns now, double batched_ns, double alone_ns) {
        for (ArrivalRate* rate : {&asked_, &batched_, &alone_}) {
            rate->advance(now);
            rate->add(rate == &alone_ ? alone_ns : batched_ns);
        }
    }
    // The part of the device time surely asked for that `width` executors do not have; 0 if they suffice.
    double surplus(Ns now, double width) const {
        double rate = surely(asked_, now, width);
        return rate > 1 ? 1 - 1 / rate : 0;
    }
    // The part of the device time for which batches must grow, so that all are served: 0 if each request
    // could run by itself, 1 if not even the best batches suffice. Batches of k requests on average do where
    // batched + (alone - batched) / k = 1, and all but the first of each k make a batch longer.
    double growth(Ns now, double width) const {
        double alone = surely(alone_, now, width), batched = surely(batched_, now, width);
        if (alone <= 1) {
            return 0;
        }
        return batched < 1 ? batched * std::max(1 - (1 - batched) / (alone - batched), 0.0) : 1;
    }

    void archive(Archive& archive) { archive(asked_, batched_, alone_); }

private:
    // Device time asked for, of each of `width` executors.
    static double surely(ArrivalRate rate, Ns now, double width) {
        rate.advance(now);
        return rate.rate(-CROWD_SIGMAS) / width;
    }

    ArrivalRate asked_{CROWD_HALF_LIFE_NS, CROWD_HALF_LIFE_NS};  // device time in batches, ns
    ArrivalRate batched_{GROWTH_HALF_LIFE_NS, CROWD_HALF_LIFE_NS};
    ArrivalRate alone_{GROWTH_HALF_LIFE_NS, CROWD_HALF_LIFE_NS};  // device time one by one, ns
};

// The batches promised on an executor, by key.
struct Plan {
    std::vector<Batch*> batches;
    std::vector<Ns> keys;     // keys of the batches, ascending
    Ns planned_ns = 0;        // durations of all batches
    std::size_t unready = 0;  // batches whose model is not resident yet
    // The rest is an arena's, and lies in the plan of its first executor.
    Crowd crowd;
    Ns attempted_until_ns = 0;  // end of the last attempt that is late with more neighbours (Edf::attempts())

    bool empty() const { return batches.empty(); }
    std::size_t size() const { return batches.size(); }
    Batch* operator[](std::size_t place) const { return batches[place]; }

    // The place behind all batches of the same key.
    std::size_t place_of(Ns key_ns) const {
        return static_cast<std::size_t>(std::upper_bound(keys.begin(), keys.end(), key_ns) - keys.begin());
    }

    std::size_t index(const Batch* batch) const {
        auto place = std::lower_bound(keys.begin(), keys.end(), batch->key_ns) - keys.begin();
        while (batches[static_cast<std::size_t>(place)] != batch) {
            ++place;
        }
        return static_cast<std::size_t>(place);
    }

    // The end of the first `count` batches, if the device is free from `free` on.
    Ns finish_ns(Ns free, std::size_t count) const;
    // The first batch from `start` on that misses its limit, if it may begin at `time`; size() if none does.
    std::size_t first_late(Ns time, std::size_t start) const;
    bool holds(Ns time, std::size_t start) const { return first_late(time, start) == size(); }
    // Whether no batch misses its limit that keeps it now, if the loads under way take `longer` more.
    bool holds_loads(Ns time, Ns longer) const;
    // Number of batches that miss their limits; within_only: only those of models within their shares of the
    // links (link_shares.h).
    std::size_t late_count(Ns time, bool within_only = false) const;

    void insert(std::size_t index, Batch* batch);
    void remove(Batch* batch) { remove(batch, index(batch)); }
    void remove(Batch* batch, std::size_t index);
    // Sets a planned batch's size and duration.
    void resize(Batch* batch, std::uint32_t size, Ns duration);
    void archive(Archive& archive) { archive(batches, keys, planned_ns, unready, crowd, attempted_until_ns); }
};

// The plans of all executors. As the policy's memory manager it keeps planned models on their devices.
class Plans final : public Memory {
public:
    explicit Plans(State& state) : state_(state), worths_(state, busy_) {}

    // The planned duration of this many rows in a batch: the estimate with the learnt margin (margin.h), at
    // most with that of other plans (estimates.h). alone_ns(): of a batch of its own; the bound for a shape
    // that was never measured, 0 if there is none.
    Ns planned_ns(const KindSpec& spec, Curve& curve, std::uint32_t rows) const {
        return with_least_margin(spec, curve.exec_ns(rows));
    }
    Ns alone_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        Curve* curve = spec.program->curve(shape);
        return curve != nullptr ? planned_ns(spec, *curve, rows) : spec.alone_ns(shape, rows);
    }
    // The same for the duration at best (Curve::hoped_ns()).
    Ns hoped_ns(const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const {
        Curve* curve = spec.program->curve(shape);
        return curve != nullptr ? with_least_margin(spec, curve->hoped_ns(rows)) : spec.hoped_ns(shape, rows);
    }
    void executed(const Flight& flight, Ns took_ns) {
        if (is_timed(flight)) {
            margins_.executed(state_.now, flight.residency->spec->kind, flight.expected_ns,
                              as_predicted_ns(flight, took_ns));
        }
    }
    double margin(std::uint32_t kind) const { return margins_.share(state_.now, kind); }
    BusyParts& busy() { return busy_; }
    const BusyParts& busy() const { return busy_; }
    Worths& worths() { return worths_; }
    // Sets a planned batch's size, and its duration accordingly.
    void resize(Batch* batch, std::uint32_t size);

    Plan& of(const Executor& executor) { return plans_[executor.slot]; }
    const Plan& of(const Executor& executor) const { return plans_[executor.slot]; }
    void add(const Executor& executor);
    // When an executor is free, and no attempt on its arena needs its neighbours to stay as they are.
    Ns free_ns(const Executor& executor) const {
        Ns free = executor.free_ns(state_.now);
        const Arena& arena = *executor.arena;
        return arena.executors.size() == 1 ? free : std::max(free, of(*arena.executors.front()).attempted_until_ns);
    }
    void note_attempt(const Arena& arena, Ns until_ns) {
        Ns& end = of(*arena.executors.front()).attempted_until_ns;
        end = std::max(end, until_ns);
    }
    Crowd& crowd(const Arena& arena) { return of(*arena.executors.front()).crowd; }
    double surplus(const Arena& arena) const {
        return of(*arena.executors.front()).crowd.surplus(state_.now, arena.width());
    }
    double growth(const Arena& arena) const {
        return of(*arena.executors.front()).crowd.growth(state_.now, arena.width());
    }
    // The arena's executor that finishes its sent and planned work first.
    Executor& soonest(const Arena& arena) const {
        Executor* best = arena.executors.front();
        for (Executor* executor = best->after; executor != nullptr; executor = executor->after) {
            best = end_ns(*executor) < end_ns(*best) ? executor : best;
        }
        return *best;
    }

    // Whether no batch on any device of a worker misses its limit because loads under way take `longer` more.
    bool holds_loads(const Worker& worker, Ns longer) const;

    // Number of planned batches on a worker that miss their limits; see Plan::late_count().
    std::size_t late_count(const Worker& worker, bool within_only = false) const;

    // Removes a request from its batch, and the batch with its last request.
    void remove(Pending& pending);
    // Exchanges two requests of one executor, model, shape and size.
    void exchange(Pending& pending, Pending& other);
    // Gives a planned request's place to an unplanned request of the same model, shape and size.
    void give_place(Pending& leaves, Pending& comes);
    // Removes all batches of a residency, or of an executor; appends their requests, in order.
    void clear(Residency& residency, std::vector<Pending*>& waiting);
    void clear(Executor& executor, std::vector<Pending*>& waiting);
    void load_done(Residency& residency, Ns took_ns);
    // Times the plans that use new estimates anew; drops pointers to a curve that is gone.
    void retime(ProgramEstimates& program, std::uint32_t shape);
    void forget_curve(ProgramEstimates& program, std::uint32_t shape);

    void count_planned(const Arena& arena, std::vector<PredictedEnd>& busy) const override;
    std::size_t order_evictable(std::vector<Residency*>& found, std::size_t ordered) override {
        return worths_.order(found, ordered);
    }
    bool is_load_wanted(const Residency& residency) const override {
        return !residency.batches.empty() || !residency.model->background.empty();
    }
    double copy_worth(const Model& model) const override { return worths_.rate(model); }

    void archive(Archive& archive);
    void check_invariants() const;

private:
    Ns end_ns(const Executor& executor) const { return executor.free_ns(state_.now) + of(executor).planned_ns; }
    Ns with_least_margin(const KindSpec& spec, Ns exec_ns) const {
        return std::min(with_margin(exec_ns), with_learnt_margin(exec_ns, margins_.share(state_.now, spec.kind)));
    }
    static void set_limit(Batch& batch);
    void dissolve(Batch& batch, std::vector<Pending*>& waiting);

    State& state_;
    std::vector<Plan> plans_;  // plans by the executor's slot
    Margins margins_;
    BusyParts busy_;
    Worths worths_;
};

}  // namespace clockwork
