// Accuracy of predictions: durations and ends of actions.
//
// A lane executes one action after the other, so an action is predicted to end its expected duration after
// the action before it, or after its own arrival. That prediction is fixed when the action is sent. Later
// knowledge of the actions before it corrects only the predictions of actions sent afterwards.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/histogram.h"
#include "scheduler/types.h"

namespace clockwork {

// Errors of predictions; over: the prediction was longer, or later, than the result.
struct Errors {
    Histogram over, under;
    void add(Ns error) { error >= 0 ? over.add(error) : under.add(-error); }
    void archive(Archive& archive) { archive(over, under); }
};

// Half of the counts is forgotten after this many executions, so that the noise is recent.
inline constexpr std::uint64_t NOISE_EXECUTIONS = 4096;

// Predictions of actions that succeeded. Constant memory: at most thirteen histograms of 40 kB.
struct Predictions {
    // Noise of executions against their expected times, in the terms of a simulation (clockwork/sim/world.py:
    // Cluster).
    struct Noise {
        std::uint64_t executions = 0;  // number of executions; the other fields are 0 without any
        double pace = 0;               // median of the taken time, as a multiple of the expected
        double sigma = 0;              // standard deviation of a lognormal factor
        double outliers = 0;           // part of the executions that took over NOISE_OUTLIER times the median
        double outlier_factor = 0;     // median of the outliers, as a multiple of the median
    };
    Noise noise() const;

    Errors infer_duration, infer_completion, load_duration, load_completion, fetch_duration, fetch_completion;
    Histogram infer_ratio;  // taken time as millionths of the expected, recent executions

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

// An execution that takes this many times the median is an outlier.
inline constexpr double NOISE_OUTLIER = 1.5;

inline Predictions::Noise Predictions::noise() const {
    Noise found;
    auto median = static_cast<double>(infer_ratio.percentile(0.5));
    if (infer_ratio.total() == 0 || median <= 0) {
        return found;
    }
    // Half of the distance between the quantiles at one sigma below and above; the lower side alone, where
    // outliers are many.
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

// The actions under way on one lane, as one number: the predicted end of the last.
class PredictedLane {
public:
    // Adds an action that can start at `soonest`; returns its predicted end.
    Ns sent(Ns soonest, Ns expected_ns) {
        end_ns_ = (under_way_++ ? std::max(soonest, end_ns_) : soonest) + expected_ns;
        return end_ns_;
    }
    // Shifts the lane after an action ended this much later than predicted, or was revoked.
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
