// The number of devices that the present load needs.
//
// The number of busy devices is no measure: a device with little to do runs small batches, and an overloaded
// device refuses. The answer is that of a fluid model (clockwork/sim/fluid.py) with room to spare, from the
// scheduler's estimates:
//
//     wanted = max(execution, chance, memory), at most DEMAND_GROWTH times the present devices (at least one)
//
//     execution = sum over models of (rows a second) * (seconds a row) / DEMAND_BUSY
//     chance    = the least N for which no more than DEMAND_LATE of all requests are of models that do not
//                 batch and would wait for longer than their SLO leaves room for: C(N, a) * exp(-2 (N - a) *
//                 room / run), with Erlang's C, a the devices that executions would fill, and run the mean of
//                 their durations. (The 2 is for executions that all take equally long; models that batch run
//                 larger batches in a rush.)
//     memory    = the least N for which both hold: the pages of the models that stay on devices are at most
//                 those of N devices, and loading the other models whenever they are asked for takes at most
//                 DEMAND_LOADING of the time of N devices' links
//
// The seconds of a row are its share of the cheapest batch that leaves a request DEMAND_BATCH of its SLO to
// run (it waits for the rest), and that this row and the arrivals of that time fill. Rows are those that were
// admitted, and those that another device might have served: refused because of the deadline, a full queue,
// or memory. Copies for a shadow are not counted. The models that stay are those whose SLO leaves no time for
// a load, then those that save the most loading for each page. A model that needs the time of several devices
// takes its pages on as many. Where devices share an arena, they come with all that share it, and take a
// model's pages once. Rates have the half-life DEMAND_HALF_LIFE_NS. The counted devices are like those that
// the models are on.
#pragma once

#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

struct Arena;
struct Model;
struct Pending;

inline constexpr Ns DEMAND_HALF_LIFE_NS = 10 * SECOND;

// The part of its time that a device should execute; the rest absorbs chance. Checked against
// clockwork/sim/planning.py.
inline constexpr double DEMAND_BUSY = 0.85;

// The part of the requests that may be late by chance.
inline constexpr double DEMAND_LATE = 0.01;

// A model counts as unbatched if a row alone costs at most this many times its cost in a batch.
inline constexpr double DEMAND_ALONE = 1.05;

// The part of its link's time that should go to loads.
inline constexpr double DEMAND_LOADING = 0.5;

// The part of an SLO that a batch may run.
inline constexpr double DEMAND_BATCH = 0.5;

// Bound on the growth in one answer: refused requests may be repeated again and again, so they are weak
// evidence.
inline constexpr double DEMAND_GROWTH = 2;

// The cost of a model's rows is looked up for one of this many requests, and averaged over about as many
// look-ups.
inline constexpr std::uint32_t DEMAND_EVERY = 16;

// Least time that a rate is averaged over, so that the first requests are no flood.
inline constexpr Ns DEMAND_PAST_MIN_NS = SECOND;

// A model with a count of at most this many requests needs nothing.
inline constexpr double DEMAND_FORGOTTEN = 0.05;

struct ModelDemand {
    double rows = 0, requests = 0;  // arrivals, decayed
    Ns counted_ns = 0;              // time of the counts
    double row_ns = 0;              // device time of one row
    double run_ns = 0;              // duration of the batch that a row is part of
    double alone = 0;               // the part of the rows that run alone
    double slack_ns = 0;            // SLO of its requests
    std::uint32_t arrivals = 0;

    void archive(Archive& archive) { archive(rows, requests, counted_ns, row_ns, run_ns, alone, slack_ns, arrivals); }
};

class Demand {
public:
    // Counts a request that was admitted, or is to be counted although it was refused.
    void add(Ns now, const Pending& pending);
    double devices_wanted(Ns now, const std::vector<Model*>& models, const std::vector<Arena*>& arenas) const;

    void archive(Archive& archive) { archive(since_ns_); }

private:
    double span_ns(Ns now) const;
    struct Cost {
        double row_ns = 0, run_ns = 0;
        bool is_alone = true;
    };

    static Cost cost(const Model& model, std::uint32_t shape, double slack_ns, double rows_rate);

    Ns since_ns_ = -1;  // time of the first request
};

}  // namespace clockwork
