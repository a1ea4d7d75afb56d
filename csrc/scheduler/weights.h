// What happened of late, by weights of its time.
#pragma once

#include <cmath>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

// Weights of what happened, by its time: they double with every half-life, so the past fades without being touched.
class Weights {
public:
    Weights(Ns half_life_ns, Ns memory_min_ns) : half_life_ns_(half_life_ns), memory_min_ns_(memory_min_ns) {}

    // To now. Once in a while all weights begin anew: sums of weighted things have to be halved so many times then.
    int advance(Ns now) { return now == kept_ns_ ? 0 : move_to(now); }
    bool is_at(Ns now) const { return now == kept_ns_; }
    double weight() const { return weight_; }
    // What a sum of weighted things is divided by to be a rate per nanosecond.
    double span_ns() const { return weight_ * memory_ns_; }

    void archive(Archive& archive) {
        archive(origin_ns_, kept_ns_, weight_, memory_ns_, before_);
        began_ns_ = -NEVER_NS;
    }

private:
    int move_to(Ns now);

    Ns half_life_ns_;
    Ns memory_min_ns_;
    Ns origin_ns_ = 0;         // when the weight was 1
    Ns kept_ns_ = -1;          // of when these are:
    double weight_ = 1;        // of what happens
    double memory_ns_ = 1;     // how long a past the sums stand for
    double before_ = 0;        // what they would hold from before the beginning, of a steady stream
    Ns began_ns_ = -NEVER_NS;  // when the half-life began that kept_ns_ is in; not known to begin with
    double scale_ = 1;         // the weight then
};

// What arrived of late, by its mean over a half-life, and how sure that is.
class Inflow {
public:
    Inflow(Ns half_life_ns, Ns memory_min_ns) : weights_(half_life_ns, memory_min_ns) {}

    void advance(Ns now) {
        if (int doublings = weights_.advance(now); doublings > 0) {
            sum_ = std::ldexp(sum_, -doublings);
            square_sum_ = std::ldexp(square_sum_, -doublings);
        }
    }
    void add(double cost) {
        sum_ += cost * weights_.weight();
        square_sum_ += cost * cost * weights_.weight();
    }
    // Cost per nanosecond, and so many standard deviations of it, counted generously: as if all of it were new.
    double rate(double sigmas) const {
        return (sum_ + sigmas * std::sqrt(square_sum_ * weights_.weight())) / weights_.span_ns();
    }

    void archive(Archive& archive) { archive(sum_, square_sum_, weights_); }

private:
    double sum_ = 0;
    double square_sum_ = 0;  // each request's cost squared
    Weights weights_;
};

}  // namespace clockwork
