// How well actions are predicted: their durations, and when they end.
//
// A lane does one action after the other, so an action is predicted to end its expected duration after the one before
// it, or after it can have arrived. That prediction stands from the moment of sending; what is learnt later of the
// ones before it corrects the predictions of those sent afterwards only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "histogram.h"
#include "scheduler/types.h"

namespace clockwork {

// Of predictions; over: what was predicted is longer, or later, than what was.
struct Errors {
    Histogram over, under;
    void add(Ns error) { error >= 0 ? over.add(error) : under.add(-error); }
};

// Of actions that succeeded. Constant memory: at most twelve histograms of 40 kB.
struct Predictions {
    Errors infer_duration, infer_completion, load_duration, load_completion, fetch_duration, fetch_completion;
};

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

private:
    Ns end_ns_ = 0;
    std::uint32_t under_way_ = 0;
};

}  // namespace clockwork
