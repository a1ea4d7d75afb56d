// How well actions are predicted: their durations, and when they end.
//
// A lane does one action after the other, so an action is predicted to end its expected duration after the one before
// it, or after it can have arrived. That prediction stands from the moment of sending; what is learnt later of the
// ones before it corrects the predictions of those sent afterwards only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/histogram.h"
#include "scheduler/types.h"

namespace clockwork {

// Of predictions; over: what was predicted is longer, or later, than what was.
struct Errors {
    Histogram over, under;
    void add(Ns error) { error >= 0 ? over.add(error) : under.add(-error); }
    void archive(Archive& archive) { archive(over, under); }
};

// Of so many executions, half are forgotten: the noise that they say is that of late.
inline constexpr std::uint64_t NOISE_EXECUTIONS = 4096;

// Of actions that succeeded. Constant memory: at most thirteen histograms of 40 kB.
struct Predictions {
    // How executions differ from what was expected of them, as a simulation puts it (clockwork/sim/world.py: Cluster).
    struct Noise {
        std::uint64_t executions = 0;  // of which this is said; the rest is 0 if there were none
        double pace = 0;               // the median of the time taken, as a multiple of what was expected
        double sigma = 0;              // of a lognormal factor
        double outliers = 0;           // the part that took more than NOISE_OUTLIER times the median,
        double outlier_factor = 0;     // and the median of those, as a multiple of it
    };
    Noise noise() const;

    Errors infer_duration, infer_completion, load_duration, load_completion, fetch_duration, fetch_completion;
    Histogram infer_ratio;  // of the time taken to that expected, in millionths; of late

    void archive(Archive& archive) {
        archive(infer_duration, infer_completion, load_duration, load_completion, fetch_duration, fetch_completion);
        archive(infer_ratio);
    }
    void took(Ns took_ns, Ns expected_ns) {
        infer_ratio.add(static_cast<Ns>(1e6 * static_cast<double>(took_ns) / static_cast<double>(expected_ns)));
        if (infer_ratio.total() >= NOISE_EXECUTIONS) {
            infer_ratio.halve();
        }
    }
};

// An execution that takes so many times the usual is an outlier.
inline constexpr double NOISE_OUTLIER = 1.5;

inline Predictions::Noise Predictions::noise() const {
    Noise found;
    auto median = static_cast<double>(infer_ratio.percentile(0.5));
    if (infer_ratio.total() == 0 || median <= 0) {
        return found;
    }
    // Half of what lies between the quantiles at one sigma below and above; the lower one alone, where outliers are many.
    auto low = static_cast<double>(std::max<Ns>(infer_ratio.percentile(0.1587), 1));
    double usual = static_cast<double>(infer_ratio.up_to(static_cast<Ns>(NOISE_OUTLIER * median)));
    found.executions = infer_ratio.total();
    found.pace = median / 1e6;
    found.outliers = 1 - usual / static_cast<double>(infer_ratio.total());
    auto high = std::max(static_cast<double>(infer_ratio.percentile(0.8413)), median);
    bool is_plain = found.outliers < 0.1;
    found.sigma = is_plain ? std::log(high / low) / 2 : std::log(median / low);
    found.outlier_factor =
        found.outliers > 0 ? static_cast<double>(infer_ratio.percentile(1 - found.outliers / 2)) / median : 0;
    return found;
}

// The actions under way on one lane, as one number: when the last of them is predicted to end.
class PredictedLane {
public:
    // An action is sent that can start at `soonest`; when it is predicted to end.
    Ns sent(Ns soonest, Ns expected_ns) {
        end_ns_ = (under_way_++ ? std::max(soonest, end_ns_) : soonest) + expected_ns;
        return end_ns_;
    }
    // One of them ended so much later than predicted, or will not be done.
    void ended(Ns shift_ns) {
        if (under_way_ && --under_way_) {
            end_ns_ += shift_ns;
        }
    }

    void archive(Archive& archive) { archive(end_ns_, under_way_); }

private:
    Ns end_ns_ = 0;
    std::uint32_t under_way_ = 0;
};

}  // namespace clockwork
