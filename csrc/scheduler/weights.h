// Sums of recent events, weighted by time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

// Weights of events by their time: weights double with every half-life, so the past fades without being
// touched.
class Weights {
public:
    Weights(Ns half_life_ns, Ns memory_min_ns) : half_life_ns_(half_life_ns), memory_min_ns_(memory_min_ns) {}

    // Advances to the present. Once in a while all weights restart; sums of weighted values must then be
    // halved the returned number of times.
    int advance(Ns now) { return now == kept_ns_ ? 0 : move_to(now); }
    bool is_at(Ns now) const { return now == kept_ns_; }
    double weight() const { return weight_; }
    // Divisor that makes a rate per nanosecond of a weighted sum.
    double span_ns() const { return weight_ * memory_ns_; }

    void archive(Archive& archive) {
        archive(origin_ns_, kept_ns_, weight_, memory_ns_, before_);
        began_ns_ = -NEVER_NS;
    }

private:
    int move_to(Ns now);

    Ns half_life_ns_;
    Ns memory_min_ns_;
    Ns origin_ns_ = 0;         // time at which the weight was 1
    Ns kept_ns_ = -1;          // time of the fields below
    double weight_ = 1;        // weight of present events
    double memory_ns_ = 1;     // time that the sums stand for
    double before_ = 0;        // what the sums would hold from before the beginning, of a steady stream
    Ns began_ns_ = -NEVER_NS;  // start of the half-life that contains kept_ns_; unknown at first
    double scale_ = 1;         // weight at began_ns_
};

// Recent arrivals: their mean over a half-life, and its uncertainty.
class ArrivalRate {
public:
    ArrivalRate(Ns half_life_ns, Ns memory_min_ns) : weights_(half_life_ns, memory_min_ns) {}

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
    // Cost per nanosecond plus `sigmas` standard deviations (may be negative). Each request counts with the
    // present weight, an upper bound of the deviation.
    double rate(double sigmas) const {
        return (sum_ + sigmas * std::sqrt(square_sum_ * weights_.weight())) / weights_.span_ns();
    }

    void archive(Archive& archive) { archive(sum_, square_sum_, weights_); }

private:
    double sum_ = 0;
    double square_sum_ = 0;  // sum of each request's squared cost
    Weights weights_;
};

// The last arrivals by their times. Their rate falls within a few requests of the end of a surge, where a
// mean over time still contains the surge.
class LastArrivals {
public:
    void add(Ns now, double cost) { ring_[count_++ % ring_.size()] = {now, cost}; }
    // An upper bound of the present cost per nanosecond: the lesser of two means, over the last LEAST and
    // over the last MOST requests, each since the request before them, plus `sigmas` standard deviations of
    // such a count. Infinite until there are as many.
    double rate_at_most(Ns now, double sigmas) const;

    void archive(Archive& archive) { archive(ring_, count_); }

private:
    static constexpr std::uint32_t LEAST = 16;
    static constexpr std::uint32_t MOST = 32;

    struct Arrival {
        Ns at_ns = 0;
        double cost = 0;

        void archive(Archive& archive) { archive(at_ns, cost); }
    };

    std::array<Arrival, MOST + 1> ring_{};
    std::uint64_t count_ = 0;
};

}  // namespace clockwork
