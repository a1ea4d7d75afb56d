// Which models are within their share of a device's time, and what the others have to leave free for them.
//
// A model that asks a device for less than its share is served as if alone: its requests go before those of models
// beyond their shares, whose promises and batches leave room for them. The share of a device is max-min fair: models
// that ask for less than the level have all they ask for, and the level divides what is left evenly among the others.
//
//     asked   = device time a second that the model's requests would take, refused ones too, in batches as large as
//               half of their SLO allows
//     had     = device time a second that its batches took
//     level   = the largest with  sum over the device's models of min(asked, level) <= 1
//     modest  : asked <= SHARE_MODEST * level
//     greedy  : asked > level
//     beyond  : greedy, and had at least the mean of what the greedy models had
//
// Both are counted by what executions are expected to take. Where some are overdue (estimates.h), what they take beyond
// that is had, too, while they go on; and what their model asked for is as many times more as what it had, up to
// SHARE_UNKNOWN. Until OVERDUE_AGE_NS after the last of several, what waits may have been let in by such expectations,
// however long ago. So the device is contested for so long, and a model with OVERDUE_COUNT of them that has more than
// SHARE_OVERDUE of the device counts as asking for more than there is. A single one may be the machine's doing: it is
// charged for no longer than it was overdue, since others have had the device for as long by then; and not once another
// execution of the model has ended in time. Without the first, a model that others leave no time would be held for
// guilty, and refused, for as long as no execution of it could show otherwise. Nothing is lost by either: what waited
// behind it was put behind others as it ended, and the next overdue one counts as the second.
//
// edf (admission.cpp): in a plan, models that are beyond stand behind the others; they are admitted as far as what may
// come from the others while they wait (passing_ns()) would delay no promise; and a higher priority displaces nobody
// who is within. adaptive: models that are not modest come as if they were due later, and no level passes one that is;
// among models that ask for about the same it keeps to deadlines, because batches of those due first are larger. Both:
// batches of greedy models are no longer than others can wait.
//
// It is work-conserving: a model beyond its share has all the time that others leave, and no model saves up time that it
// does not use. Nothing is divided while all that is asked fits, and on a device that has not turned a request away for
// CONTEST_NS: there decisions are by deadline alone.
//
// What is counted lies in the records of residencies and devices (state.h), so it is bounded by what devices hold, and a
// device's models are looked through once in DIVIDE_EVERY_NS while it is contested.
#pragma once

#include <vector>

#include "scheduler/archive.h"
#include "scheduler/types.h"

namespace clockwork {

struct Arena;
struct Model;
struct Residency;

// What a model asked for and had is counted over this time, and forgotten after twice as long.
inline constexpr Ns SHARE_WINDOW_NS = 2 * SECOND;

// A device is divided anew after this.
inline constexpr Ns DIVIDE_EVERY_NS = 50 * MS;

// A device is contested for this long after it turned a request away.
inline constexpr Ns CONTEST_NS = 2 * SECOND;

// Devices that one refusal contests.
inline constexpr std::size_t CONTEST_MAX = 16;

// A model that asked for nothing for this long is no longer left room for.
inline constexpr Ns ACTIVE_NS = 60 * SECOND;

// A device is divided if it is asked for more than this part of its time: by more than estimates are wrong.
inline constexpr double SHARE_ASKED = 1.05;

// A model counts as asking for this much if OVERDUE_COUNT of its executions were overdue, each within OVERDUE_AGE_NS of the
// one before it and the last of now, and it has more than SHARE_OVERDUE of the device; for no more if one was.
inline constexpr double SHARE_OVERDUE = 0.1;
inline constexpr std::uint32_t OVERDUE_COUNT = 2;
inline constexpr double SHARE_UNKNOWN = 2;
inline constexpr Ns OVERDUE_AGE_NS = 10 * SECOND;

// A model that asks for no more than this part of the level asks for little, whatever chance does to the count.
inline constexpr double SHARE_MODEST = 0.7;

// Of what may come from models within their shares while a batch waits, its mean and so many standard deviations are
// left room for: as many as the model asks for times its level, within these bounds. A model that asks for far more
// than it can have loses nothing by a refusal, for its next request comes at once; one that asks for little more does.
inline constexpr double SHARE_SIGMAS_MIN = 1;
inline constexpr double SHARE_SIGMAS_MAX = 4;

// Models within their shares are counted to take no more than this part of a device: there must be an end to waiting.
inline constexpr double SHARE_BUSY_MAX = 0.9;

// The part of the least SLO of models within their shares that a batch of a model beyond its share may run.
inline constexpr Ns SHARE_BATCH_PART = 2;

// The costs of a model's requests are looked up anew after so many of them.
inline constexpr std::uint32_t SHARE_COST_EVERY = 8;

// ... and each look counts for so much of what they are thought to be: requests of one model may have several SLOs.
inline constexpr double SHARE_COST_PART = 0.125;

// What happened in the last SHARE_WINDOW_NS, about: all of this window, and of the one before as much as is missing.
class Windowed {
public:
    void add(Ns now, double what) {
        turn(now);
        current_ += what;
    }
    // Per nanosecond.
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

// What a model asked of a device, and had.
struct ModelShare {
    Windowed asked;   // ns of device time, in batches
    Windowed had;     // ns of device time, as its batches were sent
    Windowed excess;  // ns of device time that its overdue executions took beyond that
    Windowed requests;
    Ns overdue_ns = -NEVER_NS;         // when the last overdue execution ended
    Ns mistaken_until_ns = -NEVER_NS;  // until when it is charged for that
    std::uint32_t overdue = 0;         // of those, until then
    bool is_excused = false;           // it was a single one, and others ended in time since
    Ns asked_ns = 0;                   // when it last asked
    Ns alone_ns = 0;                   // what one of its requests takes by itself
    Ns slack_ns = 0;                   // the SLO that its requests come with
    double batched_ns = 0;             // what one takes in a batch
    std::uint32_t arrivals = 0;
    double sigmas = 0;       // of what others may ask for, that it leaves room for
    bool is_modest = false;  // asks for at most SHARE_MODEST of the level
    bool is_greedy = false;  // asks for more than the level
    bool is_beyond = false;  // and had at least as much as those that do have on average

    void archive(Archive& archive) {
        archive(asked, had, excess, requests, overdue_ns, mistaken_until_ns, overdue, asked_ns, alone_ns, slack_ns,
                batched_ns, arrivals, sigmas);
        archive(is_excused, is_modest, is_greedy, is_beyond);
    }
    // Whether expectations of its executions did not hold of late.
    bool is_mistaken(Ns now) const { return !is_excused && now < mistaken_until_ns; }
};

// How a device's time is divided.
struct DeviceShares {
    Ns contested_until_ns = -NEVER_NS;
    Ns divided_ns = -NEVER_NS;   // when this was computed:
    bool is_divided = false;     // some model is beyond its share, some are within
    double busy = 0;             // the part of the time that models within their shares take
    double spread_ns = 0;        // the variance of what they take in a time, by that time
    Ns alone_max_ns = 0;         // the longest execution of one of their requests
    Ns slack_min_ns = NEVER_NS;  // the least SLO that their requests come with
    Ns batch_max_ns =
        NEVER_NS;      // how long a batch of models beyond their shares may run, unless it is a single request
    double level = 0;  // 0: all that is asked for fits

    void archive(Archive& archive) {
        archive(contested_until_ns, divided_ns, is_divided, busy, spread_ns, alone_max_ns, slack_min_ns, batch_max_ns,
                level);
    }
};

// What each may have at most so that all together have what is there (max-min fair): those that want less have that, the
// others the level. 0: what they want is no more than `enough` of it. Sorts `wanted`.
double level_of(std::vector<double>& wanted, double there, double enough);

// Notes that a request of so many rows was sent, or would have been, to this device.
void ask_for(Residency& residency, Ns now, std::uint32_t shape, std::uint32_t rows, Ns slack_ns);

// Notes that a batch of the model was sent that takes so long.
void charge(Residency& residency, Ns now, Ns duration_ns);

// Notes that an execution of the model took so much longer than it was charged for, which contests its device.
void charge_overdue(Residency& residency, Ns now, Ns excess_ns);

// Notes that an execution of the model ended in time, which excuses a single one that did not.
void excuse_overdue(Residency& residency);

// Whether some execution on the device is overdue.
bool has_overdue(const Arena& arena, Ns now);

// What a model asks of a device, and had of it, per nanosecond.
struct Use {
    double asked = 0, had = 0;
};
// has_overdue: of its device, then.
Use use_of(const Residency& residency, ModelShare& share, Ns now, bool has_overdue);

// Notes that the model's devices turned a request of it away: of a model on more than CONTEST_MAX, as many of them, by turns.
void contest_devices(Model& model, Ns now);

// Whether some of the device's models are beyond their shares, to the cost of others that are not.
bool is_divided(Arena& arena, Ns now);

// Whether the residency's model is beyond its share of the device, to the cost of others.
bool is_beyond_share(Residency& residency, Ns now);

// Whether the residency's model, where it is beyond its share, was promised its time on expectations that did not hold: such
// promises need not be kept to the cost of models within their shares.
inline bool is_owed_nothing(const ModelShare& share, Ns now) { return share.is_beyond && share.is_mistaken(now); }

// By how much longer a batch of a model beyond its share may have to wait that would begin after wait_ns, because models
// within their shares go before it.
Ns passing_ns(const Residency& residency, Ns wait_ns);

}  // namespace clockwork
