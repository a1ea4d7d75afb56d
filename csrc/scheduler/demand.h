// How many devices today's load needs.
//
// Not how many are busy: a device with little to do runs small batches, and one with too much refuses. The answer is
// that of a fluid (clockwork/sim/fluid.py) with room to spare, from what the scheduler estimates anyway:
//
//     wanted = max(execution, chance, memory),  at most DEMAND_GROWTH times the devices that there are (at least one)
//
//     execution = sum over models of (rows a second) * (seconds a row) / DEMAND_BUSY
//     chance    = the least N for which no more than DEMAND_LATE of all requests are of models that do not batch and
//                 would wait for longer than their SLO leaves room for: C(N, a) * exp(-2 (N - a) * room / run), with
//                 Erlang's C, a the devices that executions would fill, and run the mean of theirs. (The 2 is for
//                 executions that all take equally long; models that batch run larger batches in a rush.)
//     memory    = the least N for which both hold: the pages of the models that stay on devices are no more than N
//                 devices have, and to load the others whenever they are asked for takes no more than DEMAND_LOADING of
//                 the time of N devices' links
//
// The seconds of a row are those of its share of the cheapest batch that leaves a request DEMAND_BATCH of its SLO to
// run (the rest it waits), and that one row and those fill that arrive in that time. Rows are those that were let in, and
// those that a device more might have served: refused because of the deadline, a full queue, or memory; not copies for a
// shadow. Which models stay: those whose SLO leaves no time for a load, then those that save the most loading for each
// page. A model that needs several devices' time takes its pages on as many. Rates forget by half in DEMAND_HALF_LIFE_NS.
// Devices are counted as ones like those that the models are on.
#pragma once

#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

struct Arena;
struct Model;
struct Pending;

inline constexpr Ns DEMAND_HALF_LIFE_NS = 10 * SECOND;

// The part of its time that a device should execute; the rest is for chance. Held against clockwork/sim/planning.py.
inline constexpr double DEMAND_BUSY = 0.85;

// The part of the requests that may be late by chance.
inline constexpr double DEMAND_LATE = 0.01;

// Where rows alone cost no more than this much of what they cost in a batch, a model counts as one that does not batch.
inline constexpr double DEMAND_ALONE = 1.05;

// The part of its link's time that should go to loads.
inline constexpr double DEMAND_LOADING = 0.5;

// The part of an SLO that a batch may run.
inline constexpr double DEMAND_BATCH = 0.5;

// What comes beyond what there is is hearsay: who is refused may ask again and again.
inline constexpr double DEMAND_GROWTH = 2;

// The cost of a model's rows is looked up for one of so many requests, and averaged over about as many look-ups.
inline constexpr std::uint32_t DEMAND_EVERY = 16;

// A past shorter than this is taken for this long: the first requests are no flood.
inline constexpr Ns DEMAND_PAST_MIN_NS = SECOND;

// A model of which no more than so much of a request is remembered needs nothing.
inline constexpr double DEMAND_FORGOTTEN = 0.05;

// Of one model.
struct ModelDemand {
    double rows = 0, requests = 0;  // that came, forgotten by half in each half-life
    Ns counted_ns = 0;              // as of then
    double row_ns = 0;              // device time of one
    double run_ns = 0;              // how long the batch executes that it is a part of
    double alone = 0;               // the part of them that run alone
    double slack_ns = 0;            // that its requests come with
    std::uint32_t arrivals = 0;

    void archive(Archive& archive) { archive(rows, requests, counted_ns, row_ns, run_ns, alone, slack_ns, arrivals); }
};

class Demand {
public:
    // A request came, which was let in, or should be counted although it was not.
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

    Ns since_ns_ = -1;  // of the first request
};

}  // namespace clockwork
