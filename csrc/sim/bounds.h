// The largest value of a model's requests when device time has a price: see bench/grid/bounds.py.
#pragma once

#include <cstdint>
#include <vector>

namespace clockwork {

// Requests 0..count-1 are in order of arrival. A batch is any run of consecutive requests. A batch of b
// requests costs price * exec_ns[b], and may span at most span_ns[b] from its first arrival to its last.
// Request i, if served, is worth worth[i]. span_ns and exec_ns have batch_max + 1 entries, entry 0 unused;
// span_ns never rises, and is negative where a batch of that size is impossible. best() sets
// served[0..count-1] for the best choice, adds the time of its batches to *exec_total_ns, and returns its
// worth less its cost.
//
// Dynamic program over the prefixes: the best choice for the first k + 1 requests either leaves out request
// k, or ends a batch of b requests with it. It takes O(count * b), where b is the number of requests that a
// span can hold.
class BatchPrices {
public:
    double best(const std::int64_t* arrived_ns, const double* worth, std::int64_t count, const double* exec_ns,
                const std::int64_t* span_ns, std::int64_t batch_max, double price, std::uint8_t* served,
                double* exec_total_ns) {
        value_.resize(static_cast<std::size_t>(count) + 1);
        choice_.resize(static_cast<std::size_t>(count));
        value_[0] = 0.0;
        for (std::int64_t k = 0; k < count; ++k) {
            double best = value_[k];
            std::int32_t chosen = 0;
            double sum = 0.0;
            const std::int64_t most = batch_max < k + 1 ? batch_max : k + 1;
            for (std::int64_t b = 1; b <= most; ++b) {
                const std::int64_t first = k + 1 - b;
                if (arrived_ns[k] - arrived_ns[first] > span_ns[b])
                    break;  // the span is too short for every larger b, too
                sum += worth[first];
                const double value = value_[first] + sum - price * exec_ns[b];
                if (value > best) {
                    best = value;
                    chosen = static_cast<std::int32_t>(b);
                }
            }
            value_[k + 1] = best;
            choice_[k] = chosen;
        }
        for (std::int64_t k = count - 1; k >= 0;) {
            const std::int32_t b = choice_[k];
            if (b == 0) {
                served[k--] = 0;
                continue;
            }
            *exec_total_ns += exec_ns[b];
            for (std::int32_t taken = 0; taken < b; ++taken)
                served[k--] = 1;
        }
        return value_[count];
    }

private:
    std::vector<double> value_;
    std::vector<std::int32_t> choice_;
};

}  // namespace clockwork
