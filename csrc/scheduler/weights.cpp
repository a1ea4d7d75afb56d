#include "scheduler/weights.h"

#include <algorithm>
#include <utility>

#include "scheduler/decay.h"

namespace clockwork {

namespace {

// Weights double with every half-life. After so many, all begin anew at 1.
constexpr Ns DOUBLINGS_MAX = 64;

struct Growth {
    double weight;
    double integral;  // of all weights until then, in half-lives
};

// Between half-lives weights grow in a straight line: exp() is not the same to the last bit everywhere.
Growth growth(Ns past, Ns half_lives, Ns half_life) {
    double rest = static_cast<double>(past - half_lives * half_life) / static_cast<double>(half_life);
    double scale = power_of_two(static_cast<int>(half_lives));
    return {(1 + rest) * scale, (1.5 + rest + rest * rest / 2) * scale};
}

}  // namespace

int Weights::advance(Ns now) {
    if (kept_ns_ == now) {
        return 0;
    }
    if (kept_ns_ < 0) {
        origin_ns_ = now;
        before_ = growth(0, 0, half_life_ns_).integral;
    }
    kept_ns_ = now;
    Ns half_lives = (now - origin_ns_) / half_life_ns_;
    Ns doublings = 0;
    if (half_lives > DOUBLINGS_MAX) {
        doublings = std::exchange(half_lives, 0);
        before_ = std::ldexp(before_, -static_cast<int>(doublings));
        origin_ns_ += doublings * half_life_ns_;
    }
    Growth grown = growth(now - origin_ns_, half_lives, half_life_ns_);
    weight_ = grown.weight;
    double memory = (grown.integral - before_) / grown.weight;
    memory_ns_ = std::max(memory * static_cast<double>(half_life_ns_), static_cast<double>(memory_min_ns_));
    return static_cast<int>(doublings);
}

}  // namespace clockwork
