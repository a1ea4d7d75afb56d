// The largest value of a model's requests when device time, link time and memory have prices, and the model
// is held in whole stints: see bench/grid/stints.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace clockwork::sim {

// Sums over a choice of batches and stints. `value` is the number served less the prices of the other three.
struct Charged {
    double value = 0.0;
    double device_ns = 0.0;
    double link_ns = 0.0;
    double page_ns = 0.0;
};

struct StintPrices {
    double device = 0.0;  // of a nanosecond of a device
    double link = 0.0;    // of a nanosecond of a link
    double page = 0.0;    // of a page for a nanosecond
};

// A model. exec_ns never falls with the batch size; entry 0 is unused. A batch starts when its last request
// has arrived and ends within room_ns of its first one's arrival.
struct StintModel {
    const double* exec_ns;
    std::int64_t batch_max;
    double room_ns;
    double load_ns;
    double pages;
    bool held;  // copies may be in memory at time 0
};

// The best choice of batches of consecutive requests, in stints of consecutive batches. arrived_ns are times
// after the beginning of the window. The cost of a batch of b: exec_ns[b] of a device. The cost of a stint
// from a batch whose first request arrived at a to a batch of b whose last request arrived at z: load_ns of a
// link, and the model's pages for load_ns + exec_ns[b] + max(0, z - (a + room_ns - exec_ns[1])). A first
// stint without a load, where the model is held, costs its pages for z + exec_ns[b].
//
// Dynamic program over the prefixes. `closed` is the best choice whose last stint is paid. `open` is the best
// choice within a stint that has lasted beyond the latest start of its first batch, with what the pages would
// have cost from time 0 to that start paid back, so that the whole time up to z is charged when the stint
// ends. Within the room of its first batch a stint is followed on its own, until another load would cost no
// more. It takes O(count * w * b), where w is the number of requests in the room of one, and b the largest
// batch.
class Stints {
public:
    Charged best(const double* arrived_ns, std::int64_t count, const StintModel& model, const StintPrices& prices) {
        const auto places = static_cast<std::size_t>(count) + 1;
        closed_.assign(places, NONE);
        open_.assign(places, NONE);
        closed_[0] = Charged();
        if (model.held)
            open_[0] = Charged();
        for (std::int64_t k = 0; k < count; ++k) {
            improve(closed_[at(k + 1)], closed_[at(k)]);
            improve(open_[at(k + 1)], open_[at(k)]);
            if (open_[at(k)].value > NONE.value)
                for (std::int64_t b = 1; fits(arrived_ns, count, model, k, b); ++b) {
                    const Charged after = executed(open_[at(k)], model, prices, b);
                    improve(open_[at(k + b)], after);
                    const double until_ns = arrived_ns[k + b - 1] + model.exec_ns[b];
                    improve(closed_[at(k + b)], kept(after, model, prices, until_ns));
                }
            follow(arrived_ns, count, model, prices, k);
        }
        return closed_[at(count)];
    }

private:
    static constexpr Charged NONE{-std::numeric_limits<double>::infinity(), 0.0, 0.0, 0.0};

    static std::size_t at(std::int64_t place) { return static_cast<std::size_t>(place); }

    static void improve(Charged& best, const Charged& other) {
        if (other.value > best.value)
            best = other;
    }

    static bool fits(const double* arrived_ns, std::int64_t count, const StintModel& model, std::int64_t first,
                     std::int64_t b) {
        return b <= model.batch_max && first + b <= count &&
               arrived_ns[first + b - 1] + model.exec_ns[b] <= arrived_ns[first] + model.room_ns;
    }

    static Charged executed(Charged charged, const StintModel& model, const StintPrices& prices, std::int64_t b) {
        charged.value += static_cast<double>(b) - prices.device * model.exec_ns[b];
        charged.device_ns += model.exec_ns[b];
        return charged;
    }

    static Charged kept(Charged charged, const StintModel& model, const StintPrices& prices, double ns) {
        charged.value -= prices.page * model.pages * ns;
        charged.page_ns += model.pages * ns;
        return charged;
    }

    // Adds the choices whose last stint begins with a batch from request k.
    void follow(const double* arrived_ns, std::int64_t count, const StintModel& model, const StintPrices& prices,
                std::int64_t k) {
        if (!fits(arrived_ns, count, model, k, 1))
            return;
        const double begun_ns = arrived_ns[k] + model.room_ns - model.exec_ns[1];
        Charged loaded = kept(closed_[at(k)], model, prices, model.load_ns);
        loaded.value -= prices.link * model.load_ns;
        loaded.link_ns += model.load_ns;
        const double anew = loaded.value - closed_[at(k)].value;  // the value of another load
        own_.assign(1, loaded);
        const auto own = [this](std::int64_t place) -> Charged& {
            if (at(place) >= own_.size())
                own_.resize(at(place) + 1, NONE);
            return own_[at(place)];
        };
        std::int64_t done = 0;
        for (; k + done < count && arrived_ns[k + done] <= begun_ns; ++done) {
            const Charged before = own(done);
            if (done > 0 && before.value <= closed_[at(k + done)].value + anew) {
                own(done + 1);
                continue;  // a stint from here on costs no more
            }
            improve(own(done + 1), before);
            for (std::int64_t b = 1; fits(arrived_ns, count, model, k + done, b); ++b) {
                const std::int64_t after = k + done + b;
                const Charged stint = executed(before, model, prices, b);
                const double beyond_ns = arrived_ns[after - 1] - begun_ns;
                if (beyond_ns <= 0)
                    improve(own(done + b), stint);
                else
                    improve(open_[at(after)], kept(stint, model, prices, -begun_ns));
                improve(closed_[at(after)], kept(stint, model, prices, model.exec_ns[b] + std::max(beyond_ns, 0.0)));
            }
        }
        improve(open_[at(k + done)], kept(own(done), model, prices, -begun_ns));
    }

    std::vector<Charged> closed_;
    std::vector<Charged> open_;
    std::vector<Charged> own_;
};

}  // namespace clockwork::sim
