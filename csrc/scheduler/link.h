// Delays of a link, estimated from measured round trips.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

// The delay of a link each way, from its last round trips: a high percentile, so that a single long trip does
// not move the estimate and occasional delays are covered. The estimate is at most the longest of the last
// RECENT trips, so that a passing obstruction is forgotten with them: after 1.5 s where a trip is measured
// every 250 ms.
class LinkDelays {
public:
    static constexpr std::size_t WINDOW = 64;
    static constexpr std::size_t RECENT = 6;
    static constexpr double PERCENTILE = 0.95;

    void measured(Ns there_ns, Ns back_ns) {
        there_.add(std::max<Ns>(there_ns, 0), count_);
        back_.add(std::max<Ns>(back_ns, 0), count_);
        ++count_;
    }
    Ns there_ns() const { return there_.value(count_); }
    Ns back_ns() const { return back_.value(count_); }

    void archive(Archive& archive) { archive(there_.last, back_.last, count_); }

private:
    struct Way {
        std::array<Ns, WINDOW> last{};

        void add(Ns delay, std::uint64_t count) { last[count % WINDOW] = delay; }
        Ns value(std::uint64_t count) const {
            auto there = static_cast<std::size_t>(std::min<std::uint64_t>(count, WINDOW));
            Ns recent = 0;
            for (std::size_t back = 1; back <= std::min(there, RECENT); ++back) {
                recent = std::max(recent, last[(count - back) % WINDOW]);
            }
            if (there <= RECENT) {
                return recent;
            }
            std::array<Ns, WINDOW> sorted = last;
            auto place = static_cast<std::ptrdiff_t>(PERCENTILE * static_cast<double>(there - 1) + 0.5);
            std::nth_element(sorted.begin(), sorted.begin() + place,
                             sorted.begin() + static_cast<std::ptrdiff_t>(there));
            return std::min(recent, sorted[static_cast<std::size_t>(place)]);
        }
    };

    Way there_, back_;
    std::uint64_t count_ = 0;
};

}  // namespace clockwork
