// Counts of durations, of any size, in constant memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/types.h"

namespace clockwork {

// Counts of durations in buckets of at most 1/128 of their value (1/16 for BITS = 4).
template <int BITS>
class HistogramOf {
public:
    static constexpr int EXPONENT_MAX = 44;  // 2^44 ns, almost five hours; longer durations count as this
    static constexpr std::size_t BUCKETS = (EXPONENT_MAX - BITS + 1) << BITS;

    static std::size_t bucket(Ns value) {
        const std::uint64_t v = value < 0 ? 0 : static_cast<std::uint64_t>(value);
        if (v < (1u << BITS))
            return static_cast<std::size_t>(v);
        const int exponent = 63 - std::countl_zero(v);
        if (exponent >= EXPONENT_MAX)
            return BUCKETS - 1;
        const std::uint64_t mantissa = (v >> (exponent - BITS)) & ((1u << BITS) - 1);
        return (static_cast<std::size_t>(exponent - BITS + 1) << BITS) + static_cast<std::size_t>(mantissa);
    }

    static Ns upper(std::size_t bucket) {  // the largest value in the bucket
        if (bucket < (1u << BITS))
            return static_cast<Ns>(bucket);
        const int exponent = static_cast<int>(bucket >> BITS) + BITS - 1;
        const auto mantissa = static_cast<Ns>(bucket & ((1u << BITS) - 1));
        return (((Ns{1} << BITS) + mantissa + 1) << (exponent - BITS)) - 1;
    }

    void add(Ns value) {
        if (counts_.empty())
            counts_.resize(BUCKETS);
        ++counts_[bucket(value)];
        ++total_;
        sum_ += value;
        if (value > largest_)
            largest_ = value;
    }

    void clear() {
        if (total_)
            std::fill(counts_.begin(), counts_.end(), 0);
        total_ = 0;
        sum_ = 0;
        largest_ = 0;
    }

    // Forget half of what was counted.
    void halve() {
        total_ = 0;
        for (std::uint64_t& count : counts_)
            total_ += count /= 2;
        sum_ /= 2;
    }

    Ns percentile(double fraction) const {  // 0 if the histogram is empty
        const auto wanted = static_cast<std::uint64_t>(fraction * static_cast<double>(total_));
        std::uint64_t seen = 0;
        for (std::size_t index = 0; index < counts_.size(); ++index) {
            seen += counts_[index];
            if (seen > wanted || (seen == total_ && seen))
                return std::min(upper(index), largest_);
        }
        return 0;
    }

    // How many values are at most this large, give or take those in its own bucket.
    std::uint64_t up_to(Ns value) const {
        std::uint64_t seen = 0;
        for (std::size_t index = 0, end = std::min(counts_.size(), bucket(value) + 1); index < end; ++index) {
            seen += counts_[index];
        }
        return seen;
    }

    std::uint64_t total() const { return total_; }
    Ns sum() const { return sum_; }
    Ns largest() const { return largest_; }
    const std::vector<std::uint64_t>& counts() const { return counts_; }

    template <typename Archive>
    void archive(Archive& archive) {
        // the buckets with a count, because most are zero
        std::vector<std::pair<std::uint32_t, std::uint64_t>> there;
        for (std::size_t place = 0; place < counts_.size(); ++place) {
            if (counts_[place] != 0)
                there.emplace_back(static_cast<std::uint32_t>(place), counts_[place]);
        }
        archive(there, total_, sum_, largest_);
        for (auto [place, count] : there) {
            Archive::need(place < BUCKETS, "a count is of no bucket");
            counts_.resize(BUCKETS);
            counts_[place] = count;
        }
    }

private:
    std::vector<std::uint64_t> counts_;  // empty until something is counted
    std::uint64_t total_ = 0;
    Ns sum_ = 0;
    Ns largest_ = 0;
};

using Histogram = HistogramOf<7>;

}  // namespace clockwork
