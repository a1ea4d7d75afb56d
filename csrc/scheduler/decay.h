// A count that decays: half of it is left after each half-life.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

// 2 to this power, which is within (-1023, 1024). Faster than ldexp(), with the same result.
inline double power_of_two(int exponent) {
    return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52);
}

// The factor by which a count shrinks in the time `past`. Between half-lives it falls in a straight line:
// exp() is not the same to the last bit everywhere, and decisions depend on it.
inline double decay(Ns past, Ns half_life) {
    if (0 <= past && past < half_life) {  // the common case: no half-lives to count
        return 1 - static_cast<double>(past) / static_cast<double>(half_life) / 2;
    }
    Ns halves = past / half_life;
    if (halves > 60) {
        return 0;
    }
    double rest = static_cast<double>(past % half_life) / static_cast<double>(half_life);
    return (1 - rest / 2) * power_of_two(-static_cast<int>(halves));
}

class DecayedCount {
public:
    void add(Ns now, double count, Ns half_life) {
        count_ = at(now, half_life) + count;
        time_ns_ = now;
    }
    double at(Ns now, Ns half_life) const { return count_ > 0 ? count_ * decay(now - time_ns_, half_life) : 0; }
    // Counted units per nanosecond, as an average over the last half-lives: a steady stream fills the count
    // to its rate times 1.5 half-lives.
    double rate(Ns now, Ns half_life) const {
        return at(now, half_life) / (1.5 * static_cast<double>(std::max<Ns>(half_life, 1)));
    }

    void archive(Archive& archive) { archive(count_, time_ns_); }

private:
    double count_ = 0;
    Ns time_ns_ = 0;
};

}  // namespace clockwork
