// How long an execution or a load will take, from what the last ones took.
//
// Estimates belong to (program, input shape, batch, device kind): models of equal architecture teach each other.
// Each batch size that was seen has a sliding window, seeded by the profile. The obvious estimate, the largest sample,
// fails because one stall of the machine inflates every plan for ten actions (the original takes 0.91 of the largest and
// 0.09 of the second). The second largest fails where stalls are frequent: two of them within ten samples, of 302 and
// 141 ms, made a model of 6 ms one of 141 ms. So the estimate is the second largest sample that is no outlier:
//
//     outlier    a sample of more than OUTLIER_RATIO times the window's median
//     counted    outliers count if there are more than OUTLIERS_MAX in the window, or if the last two samples are outliers
//                and no execution of another batch size was none since
//
// One outlier moves nothing. Two in a row are followed at once, as the beginning of a real shift would be, and left out
// again at the next sample that is none. Three of ten are no accident. Samples that several devices took at the same time
// count as one outlier: the devices of a machine that stalls do stall together.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

struct Batch;

// Samples that an estimate looks back on.
inline constexpr std::uint32_t WINDOW = 10;

// A plan counts max(MARGIN_RATIO of the estimate, MARGIN_NS) on top of each action: the gap between two actions and
// what the estimate misses. It costs no throughput: the device is fed as it becomes free.
inline constexpr double MARGIN_RATIO = 0.02;
inline constexpr Ns MARGIN_NS = 100'000;

// See above.
inline constexpr Ns OUTLIER_RATIO = 2;
inline constexpr std::uint32_t OUTLIERS_MAX = 2;

// An estimate is published, and the plans timed anew, when it rose or fell by more than this.
inline constexpr double RAISE_RATIO = 0.01;
inline constexpr double LOWER_RATIO = 0.03;

// An estimate of more than STALE_RATIO times the profile holds while it is fresh: for STALE_NS after its last sample, or for
// twice the estimate, if that is longer. A batch or a load that seems impossible is never tried, and its estimate would stay
// for ever.
inline constexpr double STALE_RATIO = 2;
inline constexpr Ns STALE_NS = SECOND;

// So does the estimate of one batch size that is more than so many times what the best of the curve makes of the profile:
// by about as much as noise of a tenth makes of ten samples. Where executions have been slower by half for a second, sizes
// that are believed to be too long for an SLO would stay unused for ever.
inline constexpr double STALE_BESIDE = 1.15;

// So many samples in a row of less than one part in FALL_RATIO of an estimate say that it was of another time: the ones
// before count no longer. (A smaller fall is followed when they have left the window.)
inline constexpr std::uint32_t FALL_COUNT = 3;
inline constexpr Ns FALL_RATIO = 4;

// A shape with more than this many times the elements of the largest profiled one has no bound.
inline constexpr double BOUND_RATIO_MAX = 8;

// Batches of more rows than this are taken to cost in proportion, and teach nothing.
inline constexpr std::uint32_t BATCH_TABLE_MAX = 1024;

// Shapes of one program with estimates of their own; the oldest unprofiled one is forgotten first.
inline constexpr std::size_t SHAPES_MAX = 1024;

// An execution is overdue once it has gone on for so many times what was expected of it, and for this long: by far more
// than noise, or another process on the same core, makes of it.
inline constexpr Ns OVERDUE_RATIO = 10;
inline constexpr Ns OVERDUE_NS = 50 * MS;

inline bool is_overdue(Ns took_ns, Ns expected_ns) {
    return took_ns >= OVERDUE_NS && took_ns / OVERDUE_RATIO >= expected_ns;
}

// Overdue executions, each after others that were not, by which a curve is erratic, if no two of them are further apart than ERRATIC_NS, or than
// ERRATIC_BEHAVED executions that were not overdue. As many of those make it regular again.
inline constexpr std::uint32_t ERRATIC_COUNT = 3;
inline constexpr std::uint32_t ERRATIC_BEHAVED = 32;
inline constexpr Ns ERRATIC_NS = 10 * SECOND;

inline Ns with_margin(Ns ns) {
    Ns margin = static_cast<Ns>(static_cast<double>(ns) * MARGIN_RATIO);
    return ns + (margin > MARGIN_NS ? margin : MARGIN_NS);
}

// What an estimate makes of its window.
enum class EstimateRule : std::uint8_t {
    ROBUST,  // the second largest that is no outlier; the profile counts as two samples; small changes are not published
    PERCENTILE,  // the original's: the 99th percentile, interpolated; the first sample replaces the profile
};

// The last samples of one thing, oldest first.
class Window {
public:
    void push(Ns sample);
    // A sample of what took so long until now. An outlier that went on at the same time as the outlier before it is left out.
    // True if it is an outlier.
    bool push(Ns sample, Ns took_ns, Ns now);
    // Whether the last FALL_COUNT samples are far below robust(); then only they are kept.
    bool fall();
    // As before the first sample, if it was told this.
    void reset(Ns told);
    bool empty() const { return count_ == 0; }
    bool is_stale(Ns now, Ns estimate) const { return now - newest_ns_ > std::max(STALE_NS, 2 * estimate); }
    Ns least() const;
    // The second largest sample that is no outlier (the only one, if there is one). usual_ns: when an execution, of
    // whatever batch size, last was none.
    Ns robust(Ns usual_ns = -NEVER_NS) const;
    Ns percentile() const;  // the 99th, interpolated: 0.91 of the largest of ten and 0.09 of the second

    void archive(Archive& archive);

private:
    std::pair<Ns, Ns> two_largest() const;
    std::array<Ns, WINDOW> sorted() const;  // the first count_ of it
    bool is_outlier(Ns sample) const;

    std::array<Ns, WINDOW> samples_{};  // none is below 0
    std::uint32_t count_ = 0;
    Ns newest_ns_ = 0;           // when the last was taken
    Ns outlier_ns_ = -NEVER_NS;  // when the last outlier was
};

// Overdue executions of late. A stall of the machine makes one of them, and that moves no estimate; a model whose time
// depends on its data makes them again and again, and its window of samples leaves them out. Those in a row count as one:
// they are followed by the window, and a machine that is slow for a second makes many.
class Surprises {
public:
    // An execution took so long for which this was expected. True if that changed worst_ns().
    bool took(Ns took_ns, Ns expected_ns, Ns now) {
        return (count_ > 0 || took_ns >= OVERDUE_NS) && look_at(took_ns, expected_ns, now);
    }
    // Lets go of them where no execution was as long of late. True if that changed worst_ns().
    bool forget_stale(Ns now);
    // The longest of them, which every execution may take; 0: there were too few.
    Ns worst_ns() const { return count_ >= ERRATIC_COUNT ? worst_ns_ : 0; }

    void archive(Archive& archive);

private:
    bool look_at(Ns took_ns, Ns expected_ns, Ns now);
    bool forget();

    std::uint32_t count_ = 0;    // at most ERRATIC_COUNT, without those that followed another at once
    std::uint32_t behaved_ = 0;  // executions since the last
    Ns worst_ns_ = 0;
    Ns newest_ns_ = 0;
};

// Execution time over batch size, for one program, shape and device kind.
class Curve {
public:
    explicit Curve(EstimateRule rule = EstimateRule::ROBUST) : rule_(rule) {}

    // A profile point. Measured windows are kept: they are fresher.
    void seed(std::uint32_t batch, Ns ns);

    // The expected duration of a batch; monotone in `batch`. Throws std::invalid_argument if nothing is known.
    Ns exec_ns(std::uint32_t batch) {
        if (batch < raw_.size()) {
            return raw_[batch];
        }
        return beyond(batch);
    }

    // exec_ns with the margin that a plan counts.
    Ns planned_ns(std::uint32_t batch) {
        if (batch < planned_.size()) {
            return planned_[batch];
        }
        return with_margin(beyond(batch));
    }

    // The time of a batch at best: exec_ns(), unless that is more than STALE_BESIDE times the profile's time and the least
    // sample of its window; then that sample. No stall moves it. Only a request with less time is impossible, and a
    // device that has nothing else to do tries one with more, so that an estimate raised by a past stall refuses nobody.
    Ns hoped_ns(std::uint32_t batch);

    // One execution took this long. True if the published estimates changed.
    bool measure(std::uint32_t batch, Ns ns, Ns now);

    // Whether a batch of this size was measured of late.
    bool is_confirmed(std::uint32_t batch, Ns now) const;
    // Whether something is far above what was told.
    bool is_raised() const;
    // Lets go of what is, and is not fresh. True if the published estimates changed.
    bool forget_stale(Ns now);

    // What is expected from now on is this many times what the samples and the profile say.
    void set_scale(double scale);

    // By the profile: what a row costs alone, as a multiple of what it costs in the cheapest batch of at most so many rows.
    // 1 where that is not known. Measured times are too noisy for this: a size that seems dear is not tried again.
    double saving(std::uint32_t rows_max) const;

    bool is_measured() const { return !windows_.empty(); }
    bool is_profiled() const { return profiled_; }

    void archive(Archive& archive);

private:
    Ns beyond(std::uint32_t batch);
    void build(std::uint32_t batch_max);
    Ns seed_of(std::uint32_t batch) const;  // 0: none
    Ns seeded_ns(std::uint32_t batch) const;
    Ns told_ns(std::uint32_t batch, const Window& window) const;
    bool is_stale(const Window& window, Ns now) const { return window.is_stale(now, scaled(value_of(window))); }
    double least_drift() const;
    double drift(std::uint32_t batch, const Window& window) const;
    Ns scaled(Ns ns) const { return scale_ == 1 ? ns : static_cast<Ns>(static_cast<double>(ns) * scale_); }
    Ns value_of(const Window& window) const {
        return rule_ == EstimateRule::ROBUST ? window.robust(usual_ns_) : window.percentile();
    }

    std::vector<std::pair<std::uint32_t, Ns>> seeds_;        // by batch
    std::vector<std::pair<std::uint32_t, Window>> windows_;  // by batch
    Surprises surprises_;
    Ns usual_ns_ = -NEVER_NS;   // when an execution last was no outlier
    bool was_outlier_ = false;  // the last one
    std::vector<Ns> raw_;       // by batch size, 0 unused; published values
    std::vector<Ns> planned_;
    bool profiled_ = false;
    EstimateRule rule_;
    double scale_ = 1;
};

// How many elements the inputs of each shape have, for one row. Shape 0 is that of a request without inputs.
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
// Where devices say their clock, samples and profile are of one clock, the first that any device of the kind said, and
// the scale makes of them what it takes at the clock that the devices have now.
class ProgramEstimates {
public:
    void seed(const std::vector<ProfilePoint>& points);

    // Null for a shape that was neither profiled nor measured. Valid until measure() reports it as forgotten.
    Curve* curve(std::uint32_t shape) const {
        bool is_first = !curves_.empty() && curves_.front().first == shape;
        return is_first ? curves_.front().second.get() : find(shape);
    }

    // A conservative duration for a shape never seen, with margin; 0 if there is no ground for one.
    //
    // That of the smallest known shape with as many elements (where inputs are padded to what was compiled, the one
    // that it runs as); else of the largest profiled one, times the square of how many more this one has (attention is
    // quadratic).
    Ns bound_ns(const Shapes& shapes, std::uint32_t shape, std::uint32_t batch) const;

    // One execution took this long. True if published estimates changed. forgotten: set to a shape that had to make
    // room for this one, if any; no pointer to its curve may be kept.
    bool measure(std::uint32_t shape, std::uint32_t batch, Ns ns, std::uint32_t* forgotten, Ns now);

    // Curve::forget_stale() of all; calls function(shape) for those that changed. True if some are still raised.
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

    // False: it has this scale.
    bool set_scale(double scale);

    template <typename Function>
    void for_each_shape(Function&& function) const {
        for (const auto& entry : curves_) {
            function(entry.first);
        }
    }

    // All but the batches in plans.
    void archive(Archive& archive);

    Batch* planned = nullptr;  // the batches in plans that these curves time, as a list in no order that matters
    std::uint32_t users = 0;   // models, by device kind, that run this program
    EstimateRule rule = EstimateRule::ROBUST;

private:
    Curve* find(std::uint32_t shape) const;
    Curve& add(std::uint32_t shape);

    double scale_ = 1;
    std::vector<std::pair<std::uint32_t, std::unique_ptr<Curve>>> curves_;  // in the order in which they came
    std::unordered_map<std::uint32_t, Curve*> index_;                       // once there are many
};

// Load times of one device kind: each model's own window once it was loaded, its profile before.
//
// What loads take against their profiles is kept for the kind as a whole (a ratio in thousandths), so that the first
// load of the hundredth model already knows that this machine is slower than it was.
class LoadEstimates {
public:
    LoadEstimates();

    // The expected duration of a load.
    Ns load_ns(ModelId model_id, Ns seed_ns, std::uint32_t page_count) const {
        Ns own = own_ns(model_id, page_count);
        return own > 0 ? own : first_ns(seed_ns, page_count);
    }
    // By the model's own loads into as many pages: workers may hold one model differently, bound or packed. 0 if there
    // were none.
    Ns own_ns(ModelId model_id, std::uint32_t page_count) const;
    // Of a model that was never loaded.
    Ns first_ns(Ns seed_ns, std::uint32_t page_count) const {
        return seed_ns > 0 ? seed_ns * ratio_ / 1000 : page_ns_.empty() ? 0 : page_ns_.robust() * page_count;
    }
    // What own_ns() is then.
    Ns measure(ModelId model_id, Ns seed_ns, std::uint32_t page_count, Ns ns, Ns now);

    // Whether loads take far longer than they did, or than was told of a model.
    bool is_raised(ModelId model_id, Ns seed_ns, std::uint32_t page_count) const;
    // Lets go of that, if it is not fresh. True if something changed.
    bool forget_stale(ModelId model_id, Ns seed_ns, std::uint32_t page_count, Ns now);
    void forget(ModelId model_id) { windows_.erase(model_id); }

    void archive(Archive& archive);

private:
    Window* own(ModelId model_id, std::uint32_t page_count);
    const Window* own(ModelId model_id, std::uint32_t page_count) const {
        return const_cast<LoadEstimates*>(this)->own(model_id, page_count);
    }

    std::unordered_map<ModelId, std::vector<std::pair<std::uint32_t, Window>>> windows_;  // by page count, oldest first
    Window ratios_;
    Ns ratio_ = 1000;  // what is made of them
    Window page_ns_;
};

// Layouts of one model whose loads are remembered on a device kind; the oldest is forgotten first.
inline constexpr std::size_t LAYOUTS_MAX = 8;

// Every estimate, by device kind. What no model uses any more is forgotten.
class Estimates {
public:
    // For programs that come from now on.
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

    // Null if no model uses it.
    ProgramEstimates* find_program(std::uint32_t program, std::uint32_t kind) {
        auto found = programs_.find(std::uint64_t{program} << 32 | kind);
        return found != programs_.end() ? &found->second : nullptr;
    }
    void archive(Archive& archive);

private:
    std::unordered_map<std::uint64_t, ProgramEstimates> programs_;
    std::unordered_map<std::uint32_t, LoadEstimates> loads_;
    std::unordered_map<std::uint32_t, LoadEstimates> fetches_;  // of workers with such devices
    EstimateRule rule_ = EstimateRule::ROBUST;
};

}  // namespace clockwork
