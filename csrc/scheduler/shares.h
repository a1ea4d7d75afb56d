// Shares of models in a device's time: which models are within theirs, and the room that the others leave for
// them.
//
// On a device that turned a request away, time is divided max-min fair. docs/policies/memory.md derives the
// rules, with formulas; docs/sharing.md is for users.
//
//     asked   = device time a second that the model's requests would take, refused ones too, in batches as
//               large as half of their SLO allows; at least what surely arrives now
//     had     = device time a second that its batches took
//     level   = the largest with  sum over the device's models of min(asked, level) <= 1
//     modest  : asked <= SHARE_MODEST * level
//     greedy  : asked > level
//     beyond  : greedy, and had at least the mean of what the greedy models had
//
// The counts lie in the records of residencies and devices (records.h, machines.h), so they are bounded by
// the models on devices. A device's models are looked through once in DIVIDE_EVERY_NS while it is contested.
#pragma once

#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

struct Arena;
struct Model;
struct Residency;

// Window of the counts of asked and had time; counts are forgotten after twice as long.
inline constexpr Ns SHARE_WINDOW_NS = 2 * SECOND;

// Interval at which a contested device is divided.
inline constexpr Ns DIVIDE_EVERY_NS = 50 * MS;

// A device stays contested for this long after it turned a request away.
inline constexpr Ns CONTEST_NS = 2 * SECOND;

// On a divided device, a model asks for at least what surely arrives now: the mean over this half-life less
// ASKED_SIGMAS standard deviations, divided evenly among its devices. The window alone follows a surge too
// late: models of which all ask for ten times their share at once would count as modest for half a second.
inline constexpr Ns ASKED_HALF_LIFE_NS = 50 * MS;
inline constexpr Ns ASKED_MEMORY_MIN_NS = 50 * MS;
inline constexpr double ASKED_SIGMAS = 1;

// Bound on the devices that a refusal contests.
inline constexpr std::size_t CONTEST_MAX = 16;

// No room is left for a model that asked for nothing for this long.
inline constexpr Ns ACTIVE_NS = 60 * SECOND;

// A device is divided if its models ask for more than this part of its time; the excess over 1 covers the
// error of estimates.
inline constexpr double SHARE_ASKED = 1.05;

// A model with OVERDUE_COUNT overdue executions, each within OVERDUE_AGE_NS of the one before it and the last
// of the present, counts as asking for SHARE_UNKNOWN if it has more than SHARE_OVERDUE of the device.
// SHARE_UNKNOWN also bounds the correction for a single overdue execution.
inline constexpr double SHARE_OVERDUE = 0.1;
inline constexpr std::uint32_t OVERDUE_COUNT = 2;
inline constexpr double SHARE_UNKNOWN = 2;
inline constexpr Ns OVERDUE_AGE_NS = 10 * SECOND;

// A model that asks for at most this part of the level is modest; the gap to 1 covers the noise of the count.
inline constexpr double SHARE_MODEST = 0.7;

// A batch leaves room for the arrivals of models within their shares while it waits: their mean plus a number
// of standard deviations. The number is the model's asked time over the level, within these bounds. A model
// that asks for far more than it can have loses nothing by a refusal, for its next request comes at once; a
// model that asks for little more does.
inline constexpr double SHARE_SIGMAS_MIN = 1;
inline constexpr double SHARE_SIGMAS_MAX = 4;

// Bound on the part of a device that is left to models within their shares, so that waiting comes to an end.
inline constexpr double SHARE_BUSY_MAX = 0.9;

// A batch of a model beyond its share may run for 1/SHARE_BATCH_PART of the least SLO of models within
// theirs.
inline constexpr Ns SHARE_BATCH_PART = 2;

// The cost of a model's requests is looked up once for this many of them.
inline constexpr std::uint32_t SHARE_COST_EVERY = 8;

// Weight of each look-up in the mean cost, because requests of one model may have several SLOs.
inline constexpr double SHARE_COST_PART = 0.125;

// A sum over about the last SHARE_WINDOW_NS: the present window, and the missing part of the window before in
// proportion.
class Windowed {
public:
    void add(Ns now, double what) {
        turn(now);
        current_ += what;
    }
    // The sum per nanosecond of the window.
    double rate(Ns now) {
        turn(now);
        if (current_ == 0 && before_ == 0) {
            return 0;
        }
        double rest = 1 - static_cast<double>(now - began_ns_) / static_cast<double>(SHARE_WINDOW_NS);
        return (current_ + before_ * rest) / static_cast<double>(SHARE_WINDOW_NS);
    }

    void archive(Archive& archive) { archive(began_ns_, current_, before_); }

private:
    void turn(Ns now) {
        if (Ns past = now - began_ns_; past >= SHARE_WINDOW_NS) {
            bool is_next = past < 2 * SHARE_WINDOW_NS;
            before_ = is_next ? current_ : 0;
            current_ = 0;
            began_ns_ = is_next ? began_ns_ + SHARE_WINDOW_NS : now;
        }
    }

    Ns began_ns_ = -NEVER_NS;
    double current_ = 0;
    double before_ = 0;
};

// Device time that a model asked for, and had.
struct ModelShare {
    Windowed asked;   // ns of device time, in batches
    Windowed had;     // device time of its sent batches, ns
    Windowed excess;  // device time of its overdue executions beyond their predictions, ns
    Windowed requests;
    Ns overdue_ns = -NEVER_NS;         // end of the last overdue execution
    Ns mistaken_until_ns = -NEVER_NS;  // end of the time in which the model is charged for overdue executions
    std::uint32_t overdue = 0;         // number of overdue executions in a row within OVERDUE_AGE_NS
    bool is_excused = false;           // the overdue execution was a single one, and others ended in time
    Ns asked_ns = 0;                   // time of its last request
    Ns alone_ns = 0;                   // duration of one of its requests by itself
    Ns slack_ns = 0;                   // SLO of its requests
    double batched_ns = 0;             // duration of one request in a batch
    std::uint32_t arrivals = 0;
    double sigmas = 0;       // standard deviations of the others' arrivals for which it leaves room
    bool is_modest = false;  // asks for at most SHARE_MODEST of the level
    bool is_greedy = false;  // asks for more than the level
    bool is_beyond = false;  // greedy, and had at least the mean of the greedy models

    void archive(Archive& archive) {
        archive(asked, had, excess, requests, overdue_ns, mistaken_until_ns, overdue, asked_ns, alone_ns, slack_ns,
                batched_ns, arrivals, sigmas);
        archive(is_excused, is_modest, is_greedy, is_beyond);
    }
    // Whether expectations of its executions failed recently.
    bool is_mistaken(Ns now) const { return !is_excused && now < mistaken_until_ns; }
};

// Division of a device's time.
struct DeviceShares {
    Ns contested_until_ns = -NEVER_NS;
    Ns divided_ns = -NEVER_NS;   // time of the division below
    bool is_divided = false;     // some model is beyond its share, some are within
    double busy = 0;             // part of each executor's time that models within their shares take
    double spread_ns = 0;        // variance of that time, per time
    Ns alone_max_ns = 0;         // the longest execution of a request of models within their shares
    Ns slack_min_ns = NEVER_NS;  // least SLO of models within their shares
    Ns batch_max_ns = NEVER_NS;  // longest batch of models beyond their shares, unless it is a single request
    double asked = 0;            // time that all models ask for, in the time of an executor
    double level = 0;            // level of the shares, likewise; 0: all that is asked for fits

    void archive(Archive& archive) {
        archive(contested_until_ns, divided_ns, is_divided, busy, spread_ns, alone_max_ns, slack_min_ns, batch_max_ns,
                asked, level);
    }
};

// The level of a max-min fair division of `there`: those that want less get all they want, the others the
// level. 0 if the wants are at most there * enough. Sorts `wanted`.
double level_of(std::vector<double>& wanted, double there, double enough);

// A request that asks for device time, or would have.
struct AskedFor {
    std::uint32_t shape = 0;
    std::uint32_t rows = 1;
    std::uint64_t bytes = 0;  // inputs that take the link to the worker
    Ns slack_ns = 0;          // time that it has left
};

// The earliest time for the next batch to a device that is divided: the link for inputs is kept busy for
// `ahead` more, so that inputs of models beyond their shares are not on it already when others come.
Ns inputs_due_ns(Arena& arena, Ns now, Ns ahead);

// Counts a request that was sent, or would have been, to this device.
void ask_for(Residency& residency, Ns now, const AskedFor& request);

// Counts device time of the model; negative: takes it back. Where its inputs take longer than the execution,
// a batch costs their time.
void charge(Residency& residency, Ns now, Ns charged_ns);

// The time that inputs take to a device: of a link that is asked for more than its time, the device has the
// part for which its requests ask.
Ns inputs_ns(Arena& arena, Ns now, std::uint64_t bytes);

// Counts an execution that exceeded its charged time by this much, which contests its device.
void charge_overdue(Residency& residency, Ns now, Ns excess_ns);

// Excuses a single overdue execution after another has ended in time.
void excuse_overdue(Residency& residency);

// Whether some execution on the device is overdue.
bool has_overdue(const Arena& arena, Ns now);

// Device time per nanosecond that a model asks for, and had.
struct ShareUse {
    double asked = 0, had = 0;
};
// has_overdue: whether an execution on its device is overdue now.
ShareUse use_of(const Residency& residency, ModelShare& share, Ns now, bool has_overdue);

// Marks the devices of a model as contested, after a request was turned away; CONTEST_MAX of them in turn, if
// there are more.
void contest_devices(Model& model, Ns now);

// Whether some of the device's models are beyond their shares, at the cost of others that are not.
bool is_divided(Arena& arena, Ns now);

// Whether the models of a contested device ask for this part of its time, or more.
bool is_asked_for(Arena& arena, Ns now, double part);

// Whether the residency's model is beyond its share of the device, at the cost of others.
bool is_beyond_share(Residency& residency, Ns now);

// Whether a model beyond its share was promised its time by expectations that failed: such promises need not
// be kept at the cost of models within their shares.
inline bool is_owed_nothing(const ModelShare& share, Ns now) { return share.is_beyond && share.is_mistaken(now); }

// The additional wait of a batch of a model beyond its share that would begin after wait_ns, because requests
// of models within their shares go before it.
Ns passing_ns(const Residency& residency, Ns wait_ns);

}  // namespace clockwork
