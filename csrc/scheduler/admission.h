// Admission: a request is promised its deadline, or refused at once.
//
// A request is admitted only if it fits into some device's plan, into a batch of its model or as a batch of
// its own, so that it and everything promised before are predicted to finish in time. A higher priority goes
// before lower ones that are still in time behind it, whatever its deadline, and may displace lower ones that
// were not sent. docs/policies/edf.md has the rules with formulas.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "scheduler/parts.h"
#include "scheduler/plan.h"
#include "scheduler/planned_inputs.h"

namespace clockwork {

// A batch is sent this long before a device is planned to be free, or earlier where that has been too late:
// see lead.h. With the paper's 5 ms, batches left before requests came that they had room for; below 2 ms,
// less of an overloaded device is used.
inline constexpr Ns SCHEDULE_AHEAD_NS = 2'000'000;

// The same where inputs take time on their link, which is to be kept busy.
inline constexpr Ns INPUTS_AHEAD_NS = 5'000'000;

// Added to the keys of batches of models beyond their shares: they stand behind everything else in the plan.
inline constexpr Ns BEYOND_NS = 1'000'000 * SECOND;

// Loads that come behind those of other models may wait for at most 1/BEHIND_PAGES of a device's pages, and
// must be early enough to wait for twice as long, and BEHIND_LOADS of their own time.
inline constexpr std::size_t BEHIND_PAGES = 2;
inline constexpr Ns BEHIND_LOADS = 2;

// Bound on the places that a request within its share tries among batches of models beyond theirs.
inline constexpr std::size_t BETWEEN_MAX = 4;

// Joining a batch must cost at least one part in JOIN_GAIN less than running alone.
inline constexpr Ns JOIN_GAIN = 50;

// Bound on the batches of lower levels that a request tries to go before.
inline constexpr std::size_t AHEAD_MAX = 4;

// Bound on the batches of its model that an arriving request tries to join.
inline constexpr std::size_t JOIN_SCAN_MAX = 4;

// Bound on the residencies that a request compares before it takes the best. For a model on more devices, the
// search begins behind the device that was chosen last and ends at the first idle one: at a thousand devices
// a look at all of them costs more than everything else, and the best of a few is nearly the best of all.
inline constexpr std::size_t PLACE_SCAN_MAX = 16;

// Bound on the residencies that are looked at without success before the request is displaced, loaded or
// refused.
inline constexpr std::size_t PLACE_TRY_MAX = 64;

// Bound on the requests of lower priority that one arrival may displace.
inline constexpr std::size_t DISPLACE_MAX = 64;

// Bound on the devices for which a load is planned in full, best first.
inline constexpr std::size_t LOAD_SCAN_MAX = 4;

// Devices whose loads would end within the same such step are equal: the device with more free pages is
// taken.
inline constexpr Ns LOAD_ALIKE_NS = 1'000'000;

// A promise keeps this part (1/RESERVE_SHARE) of the time left, at most RESERVE_NS, for what no estimate
// foresees: a device or a link that stalls. Without it a queue filled to the last microsecond breaks several
// promises at one stall: at 1.5 times capacity on two cores, 0.8 % of the admitted requests missed; the
// goodput is the same.
inline constexpr Ns RESERVE_SHARE = 50;
inline constexpr Ns RESERVE_NS = 2'000'000;

// The reserve is kept while links load and devices execute for parts of their time that sum to more than this
// (busy.h). While they do less, a request that is refused for it would most likely have been in time, and no
// other is served in its place.
inline constexpr double RESERVE_BUSY = 0.7;

// On a crowded device a new batch leaves room behind it for requests that join batches: ROOM_LEAST of the
// time left beyond two executions, and ROOM_PART of it times the larger of two parts: that of the device time
// asked for that the device does not have, and that of its time in which batches must grow (Crowd). A plan
// that was filled with batches of single requests has no time to let any of them grow. The part of the
// requests that were refused is no measure: each refusal would cause more.
inline constexpr double ROOM_LEAST = 0.1;
inline constexpr double ROOM_PART = 0.5;

// A device that lately turned requests away is crowded if its models ask for this part of its time in
// batches, or if links and devices are busy (RESERVE_BUSY).
inline constexpr double ROOM_ASKED = 0.5;

// A model that surely asks for this part of a device that is asked for more than its time leaves room even if
// its batches save nothing: the plan is not filled with a flood before its shares are known (shares.h).
inline constexpr double FLOOD_ASKED = 0.5;

// Places requests in plans, or refuses them.
class Admission {
public:
    Admission(SchedulerParts& parts, Plans& plans)
        : state_(parts.state),
          arenas_(parts.arenas),
          requests_(parts.requests),
          executions_(parts.executions),
          idle_(parts.idle),
          plans_(plans),
          inputs_(parts.state, plans) {}

    // Time before a device is planned to be free at which its next batch is sent.
    Ns ahead_ns(const Executor& executor) const {
        bool waits = executor.worker->inputs.byte_ns(state_.now) > 0;
        return std::max(waits ? INPUTS_AHEAD_NS : SCHEDULE_AHEAD_NS, executor.lead.ns(state_.now));
    }
    const PlannedInputs& inputs() const { return inputs_; }
    // The planned time of a batch that an idle executor is sent now, if it takes its time at best
    // (Curve::hoped_ns()), beside the neighbours that it has.
    Ns attempted_ns(const Executor& executor, const KindSpec& spec, std::uint32_t shape, std::uint32_t rows) const;
    // Promise a request its deadline on the device that finishes it first. False if none can. is_new: no
    // promise was made for it, so a batch of its own leaves room for others.
    bool place(Pending& pending, bool is_new);
    // Make room by displacing requests of lower priority: the lowest first, then the latest deadline.
    bool displace(Pending& pending);
    // Charges the request's device time to the device that it is planned on, or to a device that could not
    // take it.
    void note_asked(Pending& pending);
    // Plan the loads that wait for work of the arena's models for this much later.
    void put_off_loads(Arena& arena, Ns longer);
    // Refuse a request with the reason, the least SLO that would have been admitted, and a time to retry.
    void refuse_in_detail(Pending& pending);

private:
    // A place in a plan for a request.
    struct Slot {
        Ns finish_ns;       // predicted end
        std::size_t index;  // index of the batch in the plan
        Batch* batch;       // batch to join; null: a new one
        Ns key_ns;          // key of a new batch
    };

    // A device onto which the model could be loaded.
    struct Cold {
        bool goes_before;  // behind all planned work the request would be late
        Ns time;           // end of load and planned work, in units of LOAD_ALIKE_NS
        std::uint32_t free_pages;
        Arena* arena;
        KindSpec* spec;
    };

    template <typename Function>
    void for_some_residencies(const Model& model, Function&& function) const;
    template <typename Function>
    void for_some_executors(const Model& model, std::size_t wide, Function&& function) const;
    Executor* find_executor(Residency& residency, const Pending& pending, bool is_new, Slot& slot);
    // A request that looks for a place in an executor's plan.
    struct Search {
        Executor& executor;
        Residency& residency;
        const Pending& pending;
        Curve* curve;
        Ns duration;  // duration of a batch of its own
        Ns inputs;    // time of its inputs to the device
        Ns limit;     // latest end on the device
        Ns free;      // end of everything that the executor was sent
        bool is_beyond;
    };
    // Return the latest planned end of a batch that is promised now: its deadline less the way back and the
    // reserve.
    Ns limit_ns(const Executor& executor, Ns deadline_ns) const {
        Ns reserve =
            keeps_reserve(*executor.worker) ? std::min((deadline_ns - state_.now) / RESERVE_SHARE, RESERVE_NS) : 0;
        return deadline_ns - executor.worker->back_ns - reserve;
    }
    // Inputs that take time on their link are no part of the sum.
    bool keeps_reserve(const Worker& worker) const { return worker.inputs.byte_ns(state_.now) > 0 || is_busy(); }
    bool is_busy() const {
        return plans_.busy().sum(state_.now, state_.by_worker.size(), state_.executors.size()) > RESERVE_BUSY;
    }
    // Return whether a new batch for this request leaves room: a request of a higher level may go before, and
    // displace, others.
    bool owes_room(const Pending& pending) const { return requests_.lowest_level() <= pending.request.priority; }
    // Return the part of the time left that a new batch leaves to others.
    double room_part(Executor& executor) const;
    bool floods(const Executor& executor, const Model& model) const;
    bool leaves_room(Executor& executor, const Search& search, Ns finish, Ns passing) const;
    bool find_slot(Executor& executor, Residency& residency, const Pending& pending, bool is_new, Slot& slot);
    bool is_idle(const Executor& executor) const;
    bool join(const Search& search, Batch* batch, Slot& slot);
    bool go_ahead(const Search& search, Slot& slot);
    void change_places(Pending& pending);
    std::size_t first_owed_late(const Plan& plan, Ns time, std::size_t start) const;
    Ns passing_ns(const Executor& executor, const Residency& residency, Ns begin, std::size_t index) const;
    static std::size_t place_of(const Plan& plan, const Residency& residency, Ns key_ns);
    bool keeps_loads(Executor& executor, Ns free, std::size_t index, Ns added);
    void commit(Pending& pending, Executor& executor, Residency& residency, const Slot& slot);
    bool is_link_free(const Worker& worker, Ns load) const;
    bool may_load_behind(const Arena& arena, const KindSpec& spec) const;
    void accept_load(Residency& residency);
    bool place_cold(Pending& pending, bool is_new);
    bool place_doomed(Pending& pending);
    bool try_load(Pending& pending);
    bool delay_loads(Executor& executor, Residency& residency, const Pending& pending, Slot& slot);
    Ns least_deadline_ns(Executor& executor, const KindSpec& spec, const Pending& pending, Ns duration,
                         Ns answered_ns) const;
    Ns least_finish_ns(const Executor& executor, Residency& residency, Ns duration) const;
    void note_crowd(const Residency& residency, const Pending& pending);
    void warm(Model& model);
    bool take_place(Executor& executor, Residency& residency, Pending& pending);
    void answer_displaced(const std::vector<Pending*>& victims);
    void find_displaced(const Executor& executor, Residency& residency, const Pending& pending,
                        std::vector<Pending*>& gone) const;

    State& state_;
    Arenas& arenas_;
    Requests& requests_;
    Executions& executions_;
    Idle& idle_;
    Plans& plans_;
    PlannedInputs inputs_;
    std::vector<Place> loadable_;
    std::vector<Cold> cold_;
    std::vector<Pending*> displaced_;
    std::vector<Ns> cleared_;  // clear_ns of an arena's pending loads, in their order
    // planned batches of a model, with the times of their answers
    std::vector<std::pair<Batch*, Ns>> earlier_;
};

}  // namespace clockwork
