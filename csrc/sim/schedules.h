// The most requests that whole devices can serve when every arrival is known: see bench/grid/whole.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace clockwork::sim {

inline constexpr std::int64_t NEVER = std::numeric_limits<std::int64_t>::max();

// The state of most_of_one_model() after the requests before one of them.
struct Prefix {
    std::int64_t least = -1;            // least number served that is kept; -1: none
    std::vector<std::int64_t> free_ns;  // entry i: when the device is free with least + i served, or NEVER

    void add(std::int64_t served, std::int64_t at_ns) {
        if (least < 0)
            least = served;
        if (served < least) {
            free_ns.insert(free_ns.begin(), static_cast<std::size_t>(least - served), NEVER);
            least = served;
        }
        const auto place = static_cast<std::size_t>(served - least);
        if (place >= free_ns.size())
            free_ns.resize(place + 1, NEVER);
        free_ns[place] = std::min(free_ns[place], at_ns);
    }
};

// Requests of one model, in order of arrival, on one device. A batch of b takes exec_ns[b], which never falls
// with b; entry 0 is unused. It starts when its last request has arrived, and ends within room_ns of its
// first one's arrival. Returns the most requests that batches can serve.
//
// An optimal schedule has batches of consecutive requests in order (bench/grid/bounds.py), so a dynamic
// program over the prefixes is exact. For each prefix it keeps, by the number served, the earliest time at
// which the device is free. A number that is served no later than a larger one is dropped, and so is every
// number but the largest whose device is free by the next arrival, so the numbers kept are at most those that
// the device can serve within room_ns. It takes O(count * kept * b), where b is the largest batch that
// room_ns allows.
inline std::int64_t most_of_one_model(const std::int64_t* arrived_ns, std::int64_t count, const std::int64_t* exec_ns,
                                      std::int64_t batch_max, std::int64_t room_ns) {
    if (count == 0)
        return 0;
    while (batch_max > 0 && exec_ns[batch_max] > room_ns)
        --batch_max;
    const auto depth = static_cast<std::size_t>(batch_max) + 1;
    std::vector<Prefix> prefixes(depth);  // those that a batch can reach, in turns
    const auto prefix = [&](std::int64_t k) -> Prefix& { return prefixes[static_cast<std::size_t>(k) % depth]; };
    std::int64_t most = 0;
    Prefix now;
    now.add(0, arrived_ns[0]);
    for (std::int64_t k = 0;; ++k) {
        if (k > 0) {
            // Batches over k were added to it; skipping request k - 1 keeps what the prefix before had.
            for (std::size_t i = 0; i < now.free_ns.size(); ++i)
                if (now.free_ns[i] != NEVER)
                    prefix(k).add(now.least + static_cast<std::int64_t>(i), now.free_ns[i]);
            now = std::move(prefix(k));
            prefix(k) = Prefix();
        }
        most = std::max(most, now.least + static_cast<std::int64_t>(now.free_ns.size()) - 1);
        if (k == count)
            return most;
        std::int64_t earliest = NEVER;
        for (std::size_t i = now.free_ns.size(); i-- > 0;) {
            std::int64_t& at_ns = now.free_ns[i];
            at_ns = std::max(at_ns, arrived_ns[k]);
            if (at_ns >= earliest)
                at_ns = NEVER;
            else
                earliest = at_ns;
        }
        std::size_t first = 0;
        while (now.free_ns[first] == NEVER)
            ++first;
        now.free_ns.erase(now.free_ns.begin(), now.free_ns.begin() + static_cast<std::ptrdiff_t>(first));
        now.least += static_cast<std::int64_t>(first);
        for (std::size_t i = 0; i < now.free_ns.size(); ++i) {
            if (now.free_ns[i] == NEVER)
                continue;
            for (std::int64_t b = 1; b <= batch_max && k + b <= count; ++b) {
                const std::int64_t end_ns = std::max(now.free_ns[i], arrived_ns[k + b - 1]) + exec_ns[b];
                if (end_ns > arrived_ns[k] + room_ns)
                    break;  // nor does a larger batch end in time
                prefix(k + b).add(now.least + static_cast<std::int64_t>(i) + b, end_ns);
            }
        }
    }
}

// Requests of several models on equal devices that hold every model: the most that schedules can serve whose
// batches are of consecutive requests, and are taken in the order of their arrival within each model.
//
// Search over states in the order of the time at which a device is free. A state holds the times at which the
// devices are free, the first undecided request of each model, and the number served. By two rules few
// states are needed:
//   - No batch starts at or after the time at which a batch of one undecided request could have ended. To
//     insert that batch takes no device time from later ones, and its request from at most one of them.
//   - State A dominates state B if A's devices are free no later, and A has served as many as B and, beside
//     them, as many as the requests that are undecided in B and not in A.
// Where more than `width` states wait, all of them become one that dominates each: the earliest times, the
// furthest requests, and the requests between counted as served. The result is then an upper bound.
class Schedules {
public:
    // starts: model m's requests are starts[m] to starts[m + 1]. exec_ns: a row for each model, a column for
    // each batch size. room_ns: time from the arrival of a batch's first request to its latest end, by model.
    Schedules(const std::int64_t* arrived_ns, const std::int64_t* starts, std::int64_t models,
              const std::int64_t* exec_ns, std::int64_t columns, const std::int64_t* room_ns, std::int64_t devices,
              std::int64_t width)
        : arrived_ns_(arrived_ns),
          starts_(starts),
          exec_ns_(exec_ns),
          room_ns_(room_ns),
          models_(static_cast<std::size_t>(models)),
          columns_(columns),
          devices_(static_cast<std::size_t>(devices)),
          width_(static_cast<std::size_t>(width)) {}

    struct Found {
        std::int64_t served = 0;
        std::int64_t joined = 0;  // how often all states became one; 0: the number served is exact
    };

    Found most() {
        Found found;
        std::int64_t longest_ns = 0;
        for (std::size_t m = 0; m < models_; ++m)
            longest_ns = std::max(longest_ns, room_ns_[m]);
        waiting_.push_back({0, 0, place()});
        std::fill_n(free_ns(waiting_[0]), devices_, arrived_min_ns());
        waiting_[0].now_ns = arrived_min_ns();
        std::copy_n(starts_, models_, next(waiting_[0]));
        while (!waiting_.empty()) {
            if (waiting_.size() > width_) {
                join();
                ++found.joined;
            }
            std::pop_heap(waiting_.begin(), waiting_.end(), later);
            const State state = waiting_.back();
            waiting_.pop_back();
            expire(state);
            if (dominated(state)) {
                places_.push_back(state.place);
                continue;
            }
            while (!past_.empty() && (past_.front().now_ns < state.now_ns - longest_ns || past_.size() >= PAST_MAX)) {
                places_.push_back(past_.front().place);
                past_.pop_front();
            }
            past_.push_back(state);
            found.served = std::max(found.served, state.served);
            follow(state);
        }
        return found;
    }

private:
    // States kept to dominate later ones. More would only make the search faster or slower.
    static constexpr std::size_t PAST_MAX = 512;

    struct State {
        std::int64_t now_ns;  // no batch starts before
        std::int64_t served;
        std::size_t place;  // of its devices and models in the arrays below
    };

    static bool later(const State& a, const State& b) {
        return a.now_ns != b.now_ns ? a.now_ns > b.now_ns : a.served < b.served;
    }

    std::size_t place() {
        if (places_.empty()) {
            places_.push_back(free_ns_.size() / devices_);
            free_ns_.resize(free_ns_.size() + devices_);
            next_.resize(next_.size() + models_);
        }
        const std::size_t found = places_.back();
        places_.pop_back();
        return found;
    }

    std::int64_t* free_ns(const State& state) {  // the devices' times, rising
        return free_ns_.data() + state.place * devices_;
    }

    std::int64_t* next(const State& state) {  // each model's first undecided request
        return next_.data() + state.place * models_;
    }

    std::int64_t exec_ns(std::size_t model, std::int64_t batch) const {
        return exec_ns_[static_cast<std::int64_t>(model) * columns_ + batch];
    }

    std::int64_t arrived_min_ns() const {
        std::int64_t found = NEVER;
        for (std::size_t m = 0; m < models_; ++m)
            if (starts_[m] < starts_[m + 1])
                found = std::min(found, arrived_ns_[starts_[m]]);
        return found;
    }

    void expire(const State& state) {  // decides requests that can no longer be served
        for (std::size_t m = 0; m < models_; ++m) {
            const std::int64_t room_ns = room_ns_[m] - exec_ns(m, 1);
            std::int64_t& first = next(state)[m];
            while (first < starts_[m + 1] && (room_ns < 0 || arrived_ns_[first] + room_ns < state.now_ns))
                ++first;
        }
    }

    bool dominated(const State& state) {
        const std::int64_t* free = free_ns(state);
        const std::int64_t* undecided = next(state);
        for (auto past = past_.rbegin(); past != past_.rend(); ++past) {
            std::int64_t more = past->served - state.served;
            if (more < 0 || !std::equal(free, free + devices_, free_ns(*past), std::greater_equal<>()))
                continue;
            const std::int64_t* theirs = next(*past);
            for (std::size_t m = 0; m < models_ && more >= 0; ++m)
                more -= std::max<std::int64_t>(theirs[m] - undecided[m], 0);
            if (more >= 0)
                return true;
        }
        return false;
    }

    void follow(const State& state) {  // adds the states after each batch that may be next
        const std::int64_t ready_ns = free_ns(state)[0];
        std::int64_t until_ns = NEVER;
        for (std::size_t m = 0; m < models_; ++m)
            if (const std::int64_t first = next(state)[m]; first < starts_[m + 1])
                until_ns = std::min(until_ns, std::max(ready_ns, arrived_ns_[first]) + exec_ns(m, 1));
        for (std::size_t m = 0; m < models_; ++m) {
            const std::int64_t end = starts_[m + 1];
            for (std::int64_t first = next(state)[m]; first < end && arrived_ns_[first] < until_ns; ++first) {
                for (std::int64_t last = first; last < end && last - first + 1 < columns_; ++last) {
                    const std::int64_t start_ns = std::max(ready_ns, arrived_ns_[last]);
                    const std::int64_t end_ns = start_ns + exec_ns(m, last - first + 1);
                    if (start_ns >= until_ns || end_ns > arrived_ns_[first] + room_ns_[m])
                        break;
                    add(state, m, last, start_ns, end_ns, state.served + last - first + 1);
                }
            }
        }
    }

    void add(const State& before, std::size_t model, std::int64_t last, std::int64_t start_ns, std::int64_t end_ns,
             std::int64_t served) {
        State after{0, served, place()};
        std::copy_n(next(before), models_, next(after));
        next(after)[model] = last + 1;
        std::int64_t* free = free_ns(after);
        std::copy_n(free_ns(before) + 1, devices_ - 1, free);
        std::size_t device = 0;
        for (; device + 1 < devices_ && free[device] < end_ns; ++device)
            free[device] = std::max(free[device], start_ns);  // batches start in order
        std::copy_backward(free + device, free + devices_ - 1, free + devices_);
        free[device] = end_ns;
        after.now_ns = free[0];
        waiting_.push_back(after);
        std::push_heap(waiting_.begin(), waiting_.end(), later);
    }

    void join() {
        State all{NEVER, 0, place()};
        std::fill_n(free_ns(all), devices_, NEVER);
        std::fill_n(next(all), models_, 0);
        for (const State& state : waiting_) {
            all.now_ns = std::min(all.now_ns, state.now_ns);
            for (std::size_t device = 0; device < devices_; ++device)
                free_ns(all)[device] = std::min(free_ns(all)[device], free_ns(state)[device]);
            for (std::size_t m = 0; m < models_; ++m)
                next(all)[m] = std::max(next(all)[m], next(state)[m]);
        }
        for (const State& state : waiting_) {
            const std::int64_t decided = std::accumulate(next(state), next(state) + models_, std::int64_t{0});
            const std::int64_t furthest = std::accumulate(next(all), next(all) + models_, std::int64_t{0});
            all.served = std::max(all.served, state.served + furthest - decided);
            places_.push_back(state.place);
        }
        waiting_.assign(1, all);
    }

    const std::int64_t* arrived_ns_;
    const std::int64_t* starts_;
    const std::int64_t* exec_ns_;
    const std::int64_t* room_ns_;
    std::size_t models_;
    std::int64_t columns_;
    std::size_t devices_;
    std::size_t width_;
    std::vector<State> waiting_;  // a heap, the earliest first
    std::deque<State> past_;      // states that were followed, in order of time
    std::vector<std::size_t> places_;
    std::vector<std::int64_t> free_ns_;
    std::vector<std::int64_t> next_;
};

// Searches for schedules; see Schedules.
inline Schedules::Found most_of_models(const std::int64_t* arrived_ns, const std::int64_t* starts, std::int64_t models,
                                       const std::int64_t* exec_ns, std::int64_t columns, const std::int64_t* room_ns,
                                       std::int64_t devices, std::int64_t width) {
    return Schedules(arrived_ns, starts, models, exec_ns, columns, room_ns, devices, width).most();
}

}  // namespace clockwork::sim
