// The controller's counts, in constant memory: per model (and so per version), per device, and of its own
// loop.
//
// Counts never decrease as long as their model or device exists: readers take differences.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "scheduler/types.h"
#include "wire/bounds.h"

namespace clockwork {

// A histogram of few buckets, summable over controllers and time.
class Durations {
public:
    static constexpr std::size_t BUCKETS = METRIC_BOUNDS_NS.size() + 1;  // the last counts longer durations

    void add(Ns ns) {
        auto bound = std::lower_bound(METRIC_BOUNDS_NS.begin(), METRIC_BOUNDS_NS.end(), ns);
        ++counts[static_cast<std::size_t>(bound - METRIC_BOUNDS_NS.begin())];
        sum_ns += ns;
    }

    std::array<std::uint64_t, BUCKETS> counts{};
    Ns sum_ns = 0;
};

// Batches of up to this many rows are counted by size, larger ones by the next power of two, up to
// ROWS_COUNTED_MAX.
inline constexpr std::uint32_t BATCHES_EXACT = 64;
inline constexpr std::uint32_t ROWS_COUNTED_MAX = 1024;

struct BatchCounts {
    static constexpr std::size_t PLACES =
        BATCHES_EXACT + std::countr_zero(ROWS_COUNTED_MAX) - std::countr_zero(BATCHES_EXACT) + 1;

    static std::size_t place(std::uint32_t rows) {
        if (rows <= BATCHES_EXACT)
            return rows;
        std::uint32_t counted = std::min(rows, ROWS_COUNTED_MAX);
        return BATCHES_EXACT + static_cast<std::size_t>(std::bit_width(counted - 1)) -
               static_cast<std::size_t>(std::countr_zero(BATCHES_EXACT));
    }
    // The most rows of the batches counted at a place.
    static std::uint32_t size(std::size_t place) {
        if (place <= BATCHES_EXACT)
            return static_cast<std::uint32_t>(place);
        return BATCHES_EXACT << (place - BATCHES_EXACT);
    }

    void add(std::uint32_t rows, Ns exec_ns) {
        std::size_t at = place(rows);
        ++counts[at];
        sums_ns[at] += exec_ns;
    }

    std::array<std::uint64_t, PLACES> counts{};  // counts by place; place 0 is not used
    std::array<Ns, PLACES> sums_ns{};
};

// The durations of a success. LOAD: 0 if it waited for no load.
struct SuccessTimes {
    Ns total_ns = 0, queue_ns = 0, load_ns = 0, execute_ns = 0, copy_in_ns = 0, copy_out_ns = 0;
};

// The counts of a model, made at its first request: of a million models few get requests.
struct ModelCounts {
    enum Time { TOTAL, QUEUE, LOAD, EXECUTE, COPY_IN, COPY_OUT };
    static constexpr std::size_t TIMES = COPY_OUT + 1;

    // durations of successes; LOAD: only of successes that waited for a load
    std::array<Durations, TIMES> times;
    BatchCounts batches;  // successful batches
    std::array<std::uint64_t, REASONS> refused{};
    std::uint64_t rows = 0;  // rows in successful answers
    std::uint64_t executions = 0;
    Ns last_ns = 0;  // the time of the last answer

    void succeeded(Ns now, std::uint32_t of_rows, const SuccessTimes& spent) {
        times[TOTAL].add(spent.total_ns);
        times[QUEUE].add(spent.queue_ns);
        if (spent.load_ns > 0)
            times[LOAD].add(spent.load_ns);
        times[EXECUTE].add(spent.execute_ns);
        times[COPY_IN].add(spent.copy_in_ns);
        times[COPY_OUT].add(spent.copy_out_ns);
        rows += of_rows;
        last_ns = now;
    }

    void did_not(Ns now, Status status, Reason reason) {
        if (status == Status::REFUSED)
            ++refused[static_cast<std::size_t>(reason)];
        last_ns = now;
    }
};

// The counts of a device's successful actions.
struct DeviceCounts {
    std::uint64_t executions = 0, loads = 0, unloads = 0;
    Ns busy_ns = 0;       // time spent executing
    Ns load_busy_ns = 0;  // time spent loading
};

}  // namespace clockwork
