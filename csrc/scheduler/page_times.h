// The times of actions by their pages: a fixed time and a time for each page.
//
// A FETCH costs a connection, and then a time for what it brings, so neither the time of the last nor a time
// for each page alone predicts that of a model of another size. Both parts are those of the last samples: the
// median of the slopes between any two of different sizes, and the median of what the slope leaves of each.
// Up to a quarter of the samples may be stalls, which move medians little.
#pragma once

#include <array>
#include <cstdint>

#include "scheduler/types.h"

namespace clockwork {

class Archive;

class PageTimes {
public:
    static constexpr std::uint32_t SAMPLES_MAX = 16;

    void add(std::uint32_t page_count, Ns ns, Ns now);
    bool empty() const { return count_ == 0; }
    // The expected time of an action of so many pages; 0: there are no samples.
    Ns expected_ns(std::uint32_t page_count) const;
    // Whether some action took far less than is expected of it now: a stall may be over.
    bool is_raised() const;
    // Forgets all samples but those that took far less, if no action was measured for STALE_NS.
    void forget_stale(Ns now);

    void archive(Archive& archive);

private:
    struct Sample {
        std::uint32_t page_count = 0;
        Ns ns = 0;
    };
    bool is_below(const Sample& sample) const;
    void fit();

    std::array<Sample, SAMPLES_MAX> samples_{};
    std::uint32_t count_ = 0;  // samples so far, at most SAMPLES_MAX
    std::uint32_t next_ = 0;   // place of the next sample
    Ns newest_ns_ = 0;         // time of the last sample
    double fixed_ns_ = 0, page_ns_ = 0;
};

}  // namespace clockwork
