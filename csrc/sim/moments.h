// The largest value of a model's requests when device time has a price at every moment: see
// bench/grid/moments.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace clockwork::sim {

// The price of device time by moment: times are in slots, and the price is the same within a slot.
class MomentPrices {
public:
    // up_to: the price of all slots before slot i, for i from 0 to slots. Times outside of the slots cost
    // nothing.
    MomentPrices(const double* up_to, std::int64_t slots) : up_to_(up_to), slots_(slots) {}

    struct Start {
        double cost;
        double at;
    };

    // The cheapest start from `first` to `last` for an execution of this length. The cost is linear in the
    // start between those at which the start or the end is the edge of a slot.
    Start cheapest(double first, double last, double length) const {
        Start best{cost(first, length), first};
        if (best.cost <= 0)
            return best;
        consider(best, last, length);
        const double from = std::ceil(first);
        const double to = std::ceil(first + length);
        if (first < 1 || last + length + 1 >= static_cast<double>(slots_)) {
            for (double edge = from; edge < last && best.cost > 0; ++edge)
                consider(best, edge, length);
            for (double edge = to; edge < last + length && best.cost > 0; ++edge)
                consider(best, edge - length, length);
            return best;
        }
        // All within the slots: the other end is at the same part of its slot for every edge.
        const auto whole = static_cast<std::int64_t>(length);
        const double part = length - static_cast<double>(whole);
        const auto start_end = static_cast<std::int64_t>(std::ceil(last));
        for (auto edge = static_cast<std::int64_t>(from); edge < start_end && best.cost > 0; ++edge) {
            const double* end = up_to_ + edge + whole;
            if (const double found = end[0] + part * (end[1] - end[0]) - up_to_[edge]; found < best.cost)
                best = {found, static_cast<double>(edge)};
        }
        const auto end_end = static_cast<std::int64_t>(std::ceil(last + length));
        for (auto edge = static_cast<std::int64_t>(to); edge < end_end && best.cost > 0; ++edge) {
            const double* start = up_to_ + edge - whole;
            if (const double found = up_to_[edge] - start[0] + part * (start[0] - start[-1]); found < best.cost)
                best = {found, static_cast<double>(edge) - length};
        }
        return best;
    }

private:
    double before(double time) const {
        if (time <= 0)
            return 0.0;
        if (time >= static_cast<double>(slots_))
            return up_to_[slots_];
        const auto slot = static_cast<std::int64_t>(time);
        return up_to_[slot] + (time - static_cast<double>(slot)) * (up_to_[slot + 1] - up_to_[slot]);
    }

    double cost(double start, double length) const { return before(start + length) - before(start); }

    void consider(Start& best, double start, double length) const {
        if (const double found = cost(start, length); found < best.cost)
            best = {found, start};
    }

    const double* up_to_;
    std::int64_t slots_;
};

// Requests 0..count-1 of a group are in order of arrival, and each is worth `worth`. A batch is any run of b
// consecutive requests. It takes exec[b], which never falls with b. It starts when its last request has
// arrived, and at most slack[b], which never rises with b, after its first one's arrival. Returns the most
// that requests are worth less the price of their batches, and adds the time of the best choice's batches in
// each slot to used[]. Dynamic program over the prefixes, as BatchPrices in bounds.h.
inline double best_at_moments(const double* arrived, std::int64_t count, const double* exec, const double* slack,
                              std::int64_t batch_max, double worth, const double* up_to, std::int64_t slots,
                              double* used) {
    const MomentPrices prices(up_to, slots);
    struct Choice {
        double value = 0.0;  // of the requests before
        double start = 0.0;  // of the batch that ends with the last of them
        std::int64_t batch = 0;
    };
    std::vector<Choice> best(static_cast<std::size_t>(count) + 1);
    const auto at = [&](std::int64_t k) -> Choice& { return best[static_cast<std::size_t>(k)]; };
    for (std::int64_t k = 0; k < count; ++k) {
        Choice& chosen = at(k + 1);
        chosen.value = at(k).value;
        for (std::int64_t b = 1; b <= std::min(batch_max, k + 1); ++b) {
            const std::int64_t first = k + 1 - b;
            const double last = arrived[first] + slack[b];
            if (last < arrived[k])
                break;  // nor is there time for a larger batch
            const double served = at(first).value + worth * static_cast<double>(b);
            if (served <= chosen.value)
                continue;
            const MomentPrices::Start start = prices.cheapest(arrived[k], last, exec[b]);
            if (served - start.cost > chosen.value)
                chosen = {served - start.cost, start.at, b};
        }
    }
    for (std::int64_t k = count; k > 0; k -= std::max<std::int64_t>(at(k).batch, 1)) {
        if (at(k).batch == 0)
            continue;
        const double end = std::min(at(k).start + exec[at(k).batch], static_cast<double>(slots));
        for (double time = std::max(at(k).start, 0.0); time < end;) {
            const double next = std::min(std::floor(time) + 1, end);
            used[static_cast<std::int64_t>(time)] += next - time;
            time = next;
        }
    }
    return at(count).value;
}

}  // namespace clockwork::sim
