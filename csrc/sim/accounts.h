// Counts of a simulated world, by clients and by devices.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/histogram.h"
#include "scheduler/types.h"
#include "wire/kinds.h"

namespace clockwork::sim {

// Outcomes of requests for their clients.
enum class RequestOutcome : std::uint8_t { GOOD, LATE, REFUSED, MISSED, FAILED, CANCELLED, UNANSWERED };
inline constexpr std::size_t OUTCOMES = 7;

struct Counts {
    std::uint64_t offered = 0;
    std::uint64_t cold = 0;  // good or late answers that waited for a LOAD
    std::uint64_t outcome[OUTCOMES]{};
};

// A slice of time: the requests offered in it, and the answers, loads and executions that ended in it.
struct Slice {
    std::uint64_t offered = 0, good = 0, bad = 0, loads = 0, infers = 0, batched = 0;
    Ns busy_ns = 0, link_busy_ns = 0;
    Ns p50_ns = 0, p99_ns = 0, p999_ns = 0, largest_ns = 0;
};

inline constexpr std::size_t CLASSES = 256;  // bound of the arrivals' class numbers
inline constexpr std::size_t SLICES_MAX = 100'000;

struct Accounts {
    std::vector<Counts> models;
    std::vector<Counts> classes;
    Histogram latency;                                   // latency of good and late answers
    std::vector<HistogramOf<7>> class_latency{CLASSES};  // latency by class; empty histograms take no memory
    Histogram refusal;                                   // time from arrival to refusal
    std::vector<std::int64_t> batches;                   // count of executions by size
    std::vector<Ns> busy_ns;                             // execution time by device
    std::vector<Ns> link_busy_ns;                        // load time by worker
    std::uint64_t loads = 0, unloads = 0, fetches = 0, drops = 0, infers = 0, revokes = 0, too_late = 0,
                  failed_actions = 0;
    std::uint64_t crashes = 0;
    std::vector<Slice> slices;
    HistogramOf<4> slice_latency;  // latency in the newest slice

    void count(ActionKind kind, std::uint32_t rows) {  // counts an action that was executed
        switch (kind) {
            case ActionKind::LOAD: ++loads; return;
            case ActionKind::UNLOAD: ++unloads; return;
            case ActionKind::FETCH: ++fetches; return;
            case ActionKind::DROP: ++drops; return;
            default: break;
        }
        if (!executes(kind))
            return;
        ++infers;
        if (rows >= batches.size())
            batches.resize(rows + 1);
        ++batches[rows];
    }
};

// A running 128-bit hash of everything that happens. It does not resist adversaries.
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
