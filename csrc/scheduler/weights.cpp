#include "scheduler/weights.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "scheduler/decay.h"

namespace clockwork {

namespace {

// Number of doublings after which all weights restart at 1.
constexpr Ns DOUBLINGS_MAX = 64;

// The integral of all weights until the first was 1, in half-lives.
constexpr double INTEGRAL_FIRST = 1.5;

}  // namespace

int Weights::move_to(Ns now) {
    Ns doublings = 0;
    bool is_within = began_ns_ <= now && now - began_ns_ < half_life_ns_;
    if (!is_within) {
        if (kept_ns_ < 0) {
            origin_ns_ = now;
            before_ = INTEGRAL_FIRST;
        }
        Ns half_lives = (now - origin_ns_) / half_life_ns_;
        if (half_lives > DOUBLINGS_MAX) {
            doublings = std::exchange(half_lives, 0);
            before_ = std::ldexp(before_, -static_cast<int>(doublings));
            origin_ns_ += doublings * half_life_ns_;
        }
        began_ns_ = origin_ns_ + half_lives * half_life_ns_;
        scale_ = power_of_two(static_cast<int>(half_lives));
    }
    kept_ns_ = now;
    // Between half-lives weights grow in a straight line: exp() is not the same to the last bit everywhere.
    double rest = static_cast<double>(now - began_ns_) / static_cast<double>(half_life_ns_);
    weight_ = (1 + rest) * scale_;
    // The integral of all weights until now, in half-lives.
    double integral = (INTEGRAL_FIRST + rest + rest * rest / 2) * scale_;
    double memory = (integral - before_) / weight_;
    memory_ns_ = std::max(memory * static_cast<double>(half_life_ns_), static_cast<double>(memory_min_ns_));
    return static_cast<int>(doublings);
}

double LastArrivals::rate_at_most(Ns now, double sigmas) const {
    double least = std::numeric_limits<double>::infinity(), sum = 0;
    for (std::uint32_t back = 0; back <= MOST && back < count_; ++back) {
        const Arrival& arrival = ring_[(count_ - 1 - back) % ring_.size()];
        if (back == LEAST || back == MOST) {
            double span_ns = static_cast<double>(std::max<Ns>(now - arrival.at_ns, 1));
            least = std::min(least, sum * (1 + sigmas / std::sqrt(static_cast<double>(back))) / span_ns);
        }
        sum += arrival.cost;
    }
    return least;
}

}  // namespace clockwork
