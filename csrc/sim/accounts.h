// What is counted in a simulated world: by the clients, of the devices, of predictions.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/types.h"

namespace clockwork::sim {

// Counts of durations in buckets of at most 1/128 of their value (1/16 for BITS = 4).
template <int BITS>
class HistogramOf {
public:
    static constexpr int EXPONENT_MAX = 44;  // 2^44 ns, almost five hours; longer ones count as that
    static constexpr std::size_t BUCKETS = (EXPONENT_MAX - BITS + 1) << BITS;

    static std::size_t bucket(Ns value) {
        const std::uint64_t v = value < 0 ? 0 : static_cast<std::uint64_t>(value);
        if (v < (1u << BITS)) return static_cast<std::size_t>(v);
        const int exponent = 63 - std::countl_zero(v);
        if (exponent >= EXPONENT_MAX) return BUCKETS - 1;
        const std::uint64_t mantissa = (v >> (exponent - BITS)) & ((1u << BITS) - 1);
        return (static_cast<std::size_t>(exponent - BITS + 1) << BITS) + static_cast<std::size_t>(mantissa);
    }

    static Ns upper(std::size_t bucket) {  // the largest value in it
        if (bucket < (1u << BITS)) return static_cast<Ns>(bucket);
        const int exponent = static_cast<int>(bucket >> BITS) + BITS - 1;
        const auto mantissa = static_cast<Ns>(bucket & ((1u << BITS) - 1));
        return (((Ns{1} << BITS) + mantissa + 1) << (exponent - BITS)) - 1;
    }

    void add(Ns value) {
        if (counts_.empty()) counts_.resize(BUCKETS);
        ++counts_[bucket(value)];
        ++total_;
        if (value > largest_) largest_ = value;
    }

    void clear() {
        if (total_) std::fill(counts_.begin(), counts_.end(), 0);
        total_ = 0;
        largest_ = 0;
    }

    Ns percentile(double fraction) const {  // 0 if there is nothing
        const auto wanted = static_cast<std::uint64_t>(fraction * static_cast<double>(total_));
        std::uint64_t seen = 0;
        for (std::size_t index = 0; index < counts_.size(); ++index) {
            seen += counts_[index];
            if (seen > wanted || (seen == total_ && seen)) return std::min(upper(index), largest_);
        }
        return 0;
    }

    std::uint64_t total() const { return total_; }
    Ns largest() const { return largest_; }
    const std::vector<std::uint64_t>& counts() const { return counts_; }

private:
    std::vector<std::uint64_t> counts_;  // empty until something is counted
    std::uint64_t total_ = 0;
    Ns largest_ = 0;
};

using Histogram = HistogramOf<7>;

// How requests ended, as their clients saw it.
enum class Outcome : std::uint8_t { GOOD, LATE, REFUSED, MISSED, FAILED, CANCELLED, UNANSWERED };
inline constexpr std::size_t OUTCOMES = 7;

struct Counts {
    std::uint64_t offered = 0;
    std::uint64_t cold = 0;  // good or late, and a LOAD was waited for
    std::uint64_t outcome[OUTCOMES]{};
};

// One slice of time: requests offered in it, and answers given, loads and work ended in it.
struct Slice {
    std::uint64_t offered = 0, good = 0, bad = 0, loads = 0, infers = 0, batched = 0;
    Ns busy_ns = 0, link_busy_ns = 0;
    Ns p50_ns = 0, p99_ns = 0, p999_ns = 0, largest_ns = 0;
};

struct Errors {  // of predictions; over: what was predicted is longer, or later, than what was
    Histogram over, under;
    void add(Ns error) { error >= 0 ? over.add(error) : under.add(-error); }
};

inline constexpr std::size_t CLASSES = 256;  // as the arrivals number them
inline constexpr std::size_t SLICES_MAX = 100'000;

struct Accounts {
    std::vector<Counts> models;
    std::vector<Counts> classes;
    Histogram latency;       // of good and late answers
    Histogram refusal;       // from arrival to the refusal
    std::vector<std::int64_t> batches;   // executions by size
    std::vector<Ns> busy_ns;             // by device: executing
    std::vector<Ns> link_busy_ns;        // by worker: loading
    std::uint64_t loads = 0, unloads = 0, infers = 0, revokes = 0, too_late = 0, failed_actions = 0;
    std::uint64_t crashes = 0;
    Errors infer_duration, infer_completion, load_duration, load_completion;
    std::vector<Slice> slices;
    HistogramOf<4> slice_latency;  // of the newest slice
};

// A running hash, 128 bits wide, of everything that happens. Not for adversaries.
class Digest {
public:
    void add(std::uint64_t word) {
        low_ = std::rotl(low_ ^ word, 23) * 0x9E3779B97F4A7C15ull + 1;
        high_ = (std::rotl(high_, 41) + word) * 0xD6E8FEB86659FD93ull ^ low_;
    }
    template <class... Words>
    void add_all(Words... words) {
        (add(static_cast<std::uint64_t>(words)), ...);
    }
    std::uint64_t low() const { return low_; }
    std::uint64_t high() const { return high_; }

private:
    std::uint64_t low_ = 0x243F6A8885A308D3ull, high_ = 0x13198A2E03707344ull;
};

}  // namespace clockwork::sim
