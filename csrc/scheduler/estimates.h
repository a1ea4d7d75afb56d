// Durations of executions and loads, estimated from the last ones.
//
// Estimates belong to (program, input shape, batch, device kind): models of equal architecture share them.
// Each batch size that was executed has a sliding window, seeded by the profile. The obvious estimate, the
// largest sample, fails because one stall of the machine inflates every plan for ten actions (the original
// takes 0.91 of the largest and 0.09 of the second). The second largest fails where stalls are frequent: two
// of them within ten samples, of 302 and 141 ms, made a model of 6 ms one of 141 ms. So the estimate is the
// second largest sample that is no outlier:
//
//     outlier    a sample of more than OUTLIER_RATIO times the window's median
//     counted    outliers count if there are more than OUTLIERS_MAX in the window, or if the last two samples
//                are outliers and all executions of other batch sizes since were outliers, too
//
// One outlier moves nothing. Two in a row are followed at once, as the beginning of a real shift would be,
// and left out again at the next sample that is no outlier. Three of ten are no accident. Outliers of
// executions that went on at the same time count as one: the devices of a machine that stalls do stall
// together.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "scheduler/archive.h"
#include "scheduler/neighbours.h"
#include "scheduler/page_times.h"
#include "scheduler/types.h"

namespace clockwork {

struct Batch;

// Samples in a window.
inline constexpr std::uint32_t WINDOW = 10;

// A plan adds max(MARGIN_RATIO of the estimate, MARGIN_NS) to each action, for the gap between two actions
// and the error of the estimate. It costs no throughput: the device is fed as it becomes free.
inline constexpr double MARGIN_RATIO = 0.02;
inline constexpr Ns MARGIN_NS = 100'000;

// Bounds of outliers, as defined at the head of this file.
inline constexpr Ns OUTLIER_RATIO = 2;
inline constexpr std::uint32_t OUTLIERS_MAX = 2;

// An estimate is published, and the plans are timed anew, when it rises or falls by more than this.
inline constexpr double RAISE_RATIO = 0.01;
inline constexpr double LOWER_RATIO = 0.03;

// An estimate of more than STALE_RATIO times the profile holds for STALE_NS after its last sample, or for
// twice the estimate, if that is longer. A batch or a load that seems impossible is never tried, so its
// estimate would otherwise stay for ever.
inline constexpr double STALE_RATIO = 2;
inline constexpr Ns STALE_NS = SECOND;

// The same holds for the estimate of one batch size that is more than this many times the profile scaled by
// the curve's least drift; noise of a tenth makes about as much of ten samples. Without this rule, after
// executions that were slower by half for a second, batch sizes that seem too long for an SLO would stay
// unused for ever.
inline constexpr double STALE_BESIDE = 1.15;

// This many samples in a row of less than 1/FALL_RATIO of the estimate drop the samples before them. (A
// smaller fall is followed as those leave the window.)
inline constexpr std::uint32_t FALL_COUNT = 3;
inline constexpr Ns FALL_RATIO = 4;

// A shape with more than this many times the elements of the largest profiled shape has no bound.
inline constexpr double BOUND_RATIO_MAX = 8;

// Batches of more rows than this are taken to cost in proportion, and are not sampled.
inline constexpr std::uint32_t BATCH_TABLE_MAX = 1024;

// Bound on the shapes of one program with estimates; the oldest unprofiled shape is forgotten first.
inline constexpr std::size_t SHAPES_MAX = 1024;

// An execution is overdue once it takes this many times its expected time, and at least OVERDUE_NS: far more
// than noise, or another process on the same core, explains.
inline constexpr Ns OVERDUE_RATIO = 10;
inline constexpr Ns OVERDUE_NS = 50 * MS;

inline bool is_overdue(Ns took_ns, Ns expected_ns) {
    return took_ns >= OVERDUE_NS && took_ns / OVERDUE_RATIO >= expected_ns;
}

// A curve is erratic after this many overdue executions (a run of them counts as one) with at most ERRATIC_NS
// and at most ERRATIC_BEHAVED other executions between two of them. As many other executions in a row make it
// regular again.
inline constexpr std::uint32_t ERRATIC_COUNT = 3;
inline constexpr std::uint32_t ERRATIC_BEHAVED = 32;
inline constexpr Ns ERRATIC_NS = 10 * SECOND;

inline Ns with_margin(Ns ns) {
    Ns margin = static_cast<Ns>(static_cast<double>(ns) * MARGIN_RATIO);
    return ns + (margin > MARGIN_NS ? margin : MARGIN_NS);
}

// The estimate that is made of a window.
enum class EstimateRule : std::uint8_t {
    // The second largest sample that is no outlier; the profile counts as two samples; small changes are not
    // published.
    ROBUST,
    PERCENTILE,  // the original's: the 99th percentile, interpolated; the first sample replaces the profile
};

// The last samples of one quantity, oldest first.
class Window {
public:
    void push(Ns sample, BusyShare beside = 0);
    // Adds a sample that took `took_ns` until `now`, and had these neighbours. An outlier that went on at the
    // same time as the outlier before it is left out. True if it is an outlier.
    bool push(Ns sample, Ns took_ns, Ns now, BusyShare beside = 0);
    // The lesson of a sample that is about to be added for the drag of neighbours (neighbours.h): how much
    // longer it is than the median, times how much more neighbours it had than the samples' mean.
    double lesson(Ns sample, BusyShare beside) const;
    // Converts the samples after the drag has changed from `before` to `drag`.
    void convert(double before, double drag);
    // Whether the last FALL_COUNT samples are far below robust(); if so, the others are dropped.
    bool fall();
    // Returns the window to its state before the first sample, seeded with `told`.
    void reset(Ns told);
    bool empty() const { return count_ == 0; }
    bool is_stale(Ns now, Ns estimate) const { return now - newest_ns_ > std::max(STALE_NS, 2 * estimate); }
    Ns least() const;
    // The second largest sample that is no outlier (or the only sample). usual_ns: end of the last execution,
    // of any batch size, that was no outlier.
    Ns robust(Ns usual_ns = -NEVER_NS) const;
    Ns percentile() const;  // the 99th, interpolated: 0.91 of the largest of ten and 0.09 of the second

    void archive(Archive& archive);

private:
    std::pair<Ns, Ns> two_largest() const;
    std::array<Ns, WINDOW> sorted() const;  // the first count_ elements
    bool is_outlier(Ns sample) const;

    std::array<Ns, WINDOW> samples_{};         // samples are never below 0
    std::array<BusyShare, WINDOW> besides_{};  // their neighbours
    std::uint32_t count_ = 0;
    Ns newest_ns_ = 0;           // time of the last sample
    Ns outlier_ns_ = -NEVER_NS;  // time of the last outlier
};

// Recent overdue executions. A stall of the machine makes one, which moves no estimate. A model whose time
// depends on its data makes them again and again, and its window of samples leaves them out. Overdue
// executions in a row count as one: the window follows them, and a machine that is slow for a second makes
// many.
class Surprises {
public:
    // Notes an execution of took_ns for which expected_ns was expected. True if worst_ns() changed.
    bool took(Ns took_ns, Ns expected_ns, Ns now) {
        return (count_ > 0 || took_ns >= OVERDUE_NS) && look_at(took_ns, expected_ns, now);
    }
    // Forgets overdue executions that are no longer confirmed. True if worst_ns() changed.
    bool forget_stale(Ns now);
    // The longest recent overdue execution, which any execution may take; 0 while there are fewer than
    // ERRATIC_COUNT.
    Ns worst_ns() const { return count_ >= ERRATIC_COUNT ? worst_ns_ : 0; }

    void archive(Archive& archive);

private:
    bool look_at(Ns took_ns, Ns expected_ns, Ns now);
    bool forget();

    std::uint32_t count_ = 0;    // overdue executions, at most ERRATIC_COUNT; a run of them counts once
    std::uint32_t behaved_ = 0;  // other executions since the last overdue one
    Ns worst_ns_ = 0;
    Ns newest_ns_ = 0;
};

// Execution time over batch size, for one program, shape and device kind. Samples and profile are without
// neighbours; published times are with all of them (neighbours.h).
class Curve {
public:
    explicit Curve(EstimateRule rule = EstimateRule::ROBUST) : rule_(rule) {}

    // Adds a profile point. Measured windows are kept: they are fresher.
    void seed(std::uint32_t batch, Ns ns);

    // The expected duration of a batch; monotone in `batch`. Throws std::invalid_argument if the curve is
    // empty.
    Ns exec_ns(std::uint32_t batch) {
        if (batch < raw_.size()) {
            return raw_[batch];
        }
        return beyond(batch);
    }

    // The expected duration without neighbours.
    Ns alone_ns(std::uint32_t batch) { return without_neighbours(exec_ns(batch), drag_, ALL_BUSY); }

    // exec_ns() with the margin of plans.
    Ns planned_ns(std::uint32_t batch) {
        if (batch < planned_.size()) {
            return planned_[batch];
        }
        return with_margin(beyond(batch));
    }

    // The time of a batch at best: alone_ns(), unless that is more than STALE_BESIDE times both the profile
    // and the least sample of its window; then the least sample (the profile for a size that was never
    // measured). A stall does not move it. Only a request with less time is impossible. A device that has
    // nothing else to do tries one with more time, so that an estimate raised by a past stall refuses nobody.
    Ns hoped_ns(std::uint32_t batch);

    // Adds a sample that had these neighbours. True if the published estimates changed. lesson: set to the
    // sample's lesson for the drag (Window::lesson()).
    bool measure(std::uint32_t batch, Ns ns, Ns now, BusyShare beside, double* lesson);
    bool measure(std::uint32_t batch, Ns ns, Ns now) { return measure(batch, ns, now, 0, nullptr); }

    // Whether a batch of this size was measured recently.
    bool is_confirmed(std::uint32_t batch, Ns now) const;
    // Whether some estimate is far above the profile.
    bool is_raised() const;
    // Forgets raised estimates that are stale. True if the published estimates changed.
    bool forget_stale(Ns now);

    // Multiplies the samples and the profile by this scale from now on.
    void set_scale(double scale);
    // Converts the samples, and the profile, by this drag of neighbours from now on.
    void set_drag(double drag);

    // The cost of a row alone by the profile, as a multiple of its cost in the cheapest batch of at most
    // rows_max rows; 1 where that is unknown. Measured times are too noisy for this: a size that seems dear
    // is not tried again.
    double saving(std::uint32_t rows_max) const;

    bool is_measured() const { return !windows_.empty(); }
    bool is_profiled() const { return profiled_; }

    void archive(Archive& archive);

private:
    Ns beyond(std::uint32_t batch);
    void build(std::uint32_t batch_max);
    Ns seed_of(std::uint32_t batch) const;  // the profile's value; 0: none
    Ns seeded_ns(std::uint32_t batch) const;
    Ns told_ns(std::uint32_t batch, const Window& window) const;
    bool is_stale(const Window& window, Ns now) const { return window.is_stale(now, scaled(value_of(window))); }
    double least_drift() const;
    double drift(std::uint32_t batch, const Window& window) const;
    Ns scaled(Ns ns) const { return scale_ == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * scale_); }
    Ns published(Ns ns) const { return with_neighbours(scaled(ns), drag_); }
    Ns value_of(const Window& window) const {
        return rule_ == EstimateRule::ROBUST ? window.robust(usual_ns_) : window.percentile();
    }

    std::vector<std::pair<std::uint32_t, Ns>> seeds_;        // profile points, by batch size
    std::vector<std::pair<std::uint32_t, Window>> windows_;  // samples, by batch size
    Surprises surprises_;
    Ns usual_ns_ = -NEVER_NS;   // end of the last execution that was no outlier
    bool was_outlier_ = false;  // whether the last execution was an outlier
    std::vector<Ns> raw_;       // published values, by batch size; 0 is unused
    std::vector<Ns> planned_;
    bool profiled_ = false;
    EstimateRule rule_;
    double scale_ = 1;
    double drag_ = 0;
};

// Number of elements of the inputs of each shape, for one row. Shape 0 is that of a request without inputs.
class Shapes {
public:
    void set(std::uint32_t shape, std::uint64_t elements);
    void forget(std::uint32_t shape) { set(shape, 0); }
    std::uint64_t elements(std::uint32_t shape) const {
        std::uint64_t known = shape < elements_.size() ? elements_[shape] : 0;
        return known > 0 ? known : 1;
    }

    void archive(Archive& archive) { archive(elements_); }

private:
    std::vector<std::uint64_t> elements_;
};

// The curves of one program on one device kind, by shape.
//
// Where devices report their clock, samples and profile are stored as of the first clock that any device of
// the kind reported. The scale converts them to the present clock.
class ProgramEstimates {
public:
    void seed(const std::vector<ProfilePoint>& points);

    // Returns null for a shape that was neither profiled nor measured. Valid until measure() reports it as
    // forgotten.
    Curve* curve(std::uint32_t shape) const {
        bool is_first = !curves_.empty() && curves_.front().first == shape;
        return is_first ? curves_.front().second.get() : find(shape);
    }

    // Returns a conservative duration with margin for a shape that was never measured; 0 if there is no
    // basis.
    //
    // The basis is the smallest known shape with at least as many elements (where inputs are padded to
    // compiled shapes, the shape it runs as); otherwise the largest profiled shape, times the square of the
    // ratio of elements (attention is quadratic).
    Ns bound_ns(const Shapes& shapes, std::uint32_t shape, std::uint32_t batch) const;

    // Adds a sample that had these neighbours. True if published estimates of the shape changed; of all
    // shapes if drag() did. forgotten: set to a shape that was dropped to make room for this one, if any; no
    // pointer to its curve may be kept.
    bool measure(std::uint32_t shape, std::uint32_t batch, Ns ns, std::uint32_t* forgotten, Ns now,
                 BusyShare beside = 0);

    // Begins with a drag of neighbours, unless the program has estimates already; see Drag::begin().
    void begin_drag(double first, double most);
    // The drag of neighbours on the published estimates.
    double drag() const { return drag_.told(); }

    // Calls Curve::forget_stale() on all, and function(shape) for those that changed. True if some are still
    // raised.
    template <typename Function>
    bool forget_stale(Ns now, Function&& function) {
        bool is_raised = false;
        for (const auto& entry : curves_) {
            if (entry.second->is_raised()) {
                bool changed = entry.second->forget_stale(now);
                is_raised |= entry.second->is_raised();
                if (changed) {
                    function(entry.first);
                }
            }
        }
        return is_raised;
    }

    // Returns false if the scale is the same already.
    bool set_scale(double scale);

    template <typename Function>
    void for_each_shape(Function&& function) const {
        for (const auto& entry : curves_) {
            function(entry.first);
        }
    }

    // Archives all but the batches in plans.
    void archive(Archive& archive);

    Batch* planned = nullptr;  // planned batches that these curves time, as a list in any order
    std::uint32_t users = 0;   // number of models, by device kind, that run this program
    EstimateRule rule = EstimateRule::ROBUST;

private:
    Curve* find(std::uint32_t shape) const;
    Curve& add(std::uint32_t shape);
    void tell_drag();

    double scale_ = 1;
    Drag drag_;
    // curves in the order of their creation
    std::vector<std::pair<std::uint32_t, std::unique_ptr<Curve>>> curves_;
    // index of the curves by shape, used once there are many
    std::unordered_map<std::uint32_t, Curve*> index_;
};

// The last loads of all models of one program into as many pages, on one device kind: fine-tunes load alike.
struct LoadTimes {
    Window window;
    Ns ns = 0;                // estimate; 0: no load yet
    std::uint32_t users = 0;  // number of models, by preparation, that load so

    void archive(Archive& archive);
};

// Load times on one device kind: each program has its own window once a model of it was loaded, and its
// profile before. Workers may hold one model differently, bound or packed, in another number of pages.
//
// Actions that have no profile, FETCHes among them, are predicted from the last ones by their pages
// (page_times.h) until one of the same program and size has ended.
//
// The ratio of loads to their profiles is kept for the whole kind (in thousandths), so that the first load of
// the hundredth program already accounts for a machine that is slower than it was.
class LoadEstimates {
public:
    LoadEstimates();

    // Returns the times of a program's loads. Valid until each use was released.
    LoadTimes& use(std::uint32_t program, std::uint32_t page_count);
    void release(std::uint32_t program, std::uint32_t page_count);
    // Returns null if no model uses them.
    LoadTimes* find(std::uint32_t program, std::uint32_t page_count);

    // Returns the expected duration of a load.
    Ns load_ns(const LoadTimes& own, Ns seed_ns, std::uint32_t page_count) const {
        return own.ns > 0 ? own.ns : first_ns(seed_ns, page_count);
    }
    // The duration of a load at best: load_ns(), unless that was not confirmed for STALE_NS, and is more than
    // STALE_BESIDE times both the profile and the least sample.
    Ns hoped_ns(const LoadTimes& own, Ns seed_ns, std::uint32_t page_count, Ns now) const;
    // Adds a sample.
    void measure(LoadTimes& own, Ns seed_ns, std::uint32_t page_count, Ns ns, Ns now);

    // Whether loads take far longer than before, or than the program's profile.
    bool is_raised(const LoadTimes& own, Ns seed_ns) const;
    // Forgets raised estimates that are stale.
    void forget_stale(LoadTimes& own, Ns seed_ns, Ns now);

    void archive(Archive& archive);

private:
    // Returns the expected duration for a program of which no model was ever loaded.
    Ns first_ns(Ns seed_ns, std::uint32_t page_count) const {
        if (seed_ns > 0) {
            return seed_ns * ratio_ / 1000;
        }
        return !unseeded_.empty() ? unseeded_.expected_ns(page_count)
               : page_ns_.empty() ? 0
                                  : page_ns_.robust() * page_count;
    }

    std::unordered_map<std::uint64_t, LoadTimes> times_;
    Window ratios_;
    Ns ratio_ = 1000;     // estimate of the ratio, in thousandths
    Window page_ns_;      // of actions with a profile
    PageTimes unseeded_;  // of actions without
};

// All estimates, by device kind. Estimates that no model uses are dropped.
class Estimates {
public:
    // Sets the rule of programs that are added from now on.
    void set_rule(EstimateRule rule) { rule_ = rule; }
    ProgramEstimates& use_program(std::uint32_t program, std::uint32_t kind);
    void release_program(std::uint32_t program, std::uint32_t kind);
    LoadEstimates& loads(std::uint32_t kind);
    LoadEstimates& fetches(std::uint32_t kind) { return fetches_[kind]; }

    template <typename Function>
    void for_each_program(Function&& function) const {
        for (const auto& entry : programs_) {
            function(entry.second);
        }
    }

    // Returns null if no model uses the program.
    ProgramEstimates* find_program(std::uint32_t program, std::uint32_t kind) {
        auto found = programs_.find(std::uint64_t{program} << 32 | kind);
        return found != programs_.end() ? &found->second : nullptr;
    }
    void archive(Archive& archive);

private:
    std::unordered_map<std::uint64_t, ProgramEstimates> programs_;
    std::unordered_map<std::uint32_t, LoadEstimates> loads_;
    // by kind of device: fetches of workers with such devices
    std::unordered_map<std::uint32_t, LoadEstimates> fetches_;
    EstimateRule rule_ = EstimateRule::ROBUST;
};

}  // namespace clockwork
