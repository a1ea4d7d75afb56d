// What every policy is to those who drive it: the controller's binding and the simulator's world.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/predictions.h"
#include "scheduler/types.h"

namespace clockwork {

struct Hooks;

// Bounds and constants that the caller may set; what each means is said where it is used.
struct SchedulerOptions {
    std::string policy = "adaptive";        // paper, fifo, edf, deferred, adaptive
    std::string memory;                     // "": the policy's own; "paper" or "adaptive": whose loads and evictions
    std::uint64_t queued_requests_max = 0;  // 0: the default of config.QUEUED_REQUESTS_MAX
    std::uint64_t queued_bytes_max = 0;
    // Named numbers for one policy ("schedule_ahead_ms", "batch_cap", "queue_delay_ms", ...). An unknown name is
    // an error of make_scheduler(), with the names that there are.
    std::vector<std::pair<std::string, double>> values;
    const Hooks* hooks = nullptr;  // of a policy in another language (hooks.h), which `policy` is then the name of
};

// A model on a device: what was loaded under which id, and the first page of each run.
struct Held {
    ModelId model_id = 0;
    LoadId load_id = 0;
    bool loading = false;  // the LOAD is under way
    std::vector<std::uint32_t> starts;
};

// What a model asked of a device that is divided, and had, as parts of its time; see shares.h.
struct ShareStatus {
    ModelId model_id = 0;
    double asked = 0, had = 0;
    bool is_modest = false, is_beyond = false;
};

// Models of a device whose shares status shows: those that ask for the most.
inline constexpr std::size_t SHARES_SHOWN_MAX = 8;

// What a policy has learnt of executions and arrivals as a whole; see adaptive.h.
struct PolicyStatus {
    bool is_learning = false;  // else the rest says nothing
    double pace = 1;           // what executions take of what they are counted with
    double need = 0;           // the share of their ideal at which the devices have to run
    double hold = 0;           // the need that queues are held for: what arrived of late, at most
    double share = 0;          // devices that a model may have, when the last request came; 0: no limit
};

// What status shows of a device.
struct DeviceStatus {
    WorkerId worker = 0;
    std::uint32_t device = 0;  // index within the worker
    std::uint32_t kind = 0;
    std::uint64_t planned_requests = 0;
    std::uint64_t planned_batches = 0;
    Ns planned_ns = 0;
    std::uint64_t in_flight = 0;  // actions of the execute lane
    std::uint64_t loading = 0;
    std::uint64_t loads_waiting = 0;
    std::uint64_t pages = 0;
    std::uint64_t pages_free = 0;
    std::uint64_t resident = 0;
    std::uint64_t served = 0;
    std::uint64_t evicted_early = 0;  // models that made room soon after they had been loaded
    Ns idle_with_work_ns = 0;         // since it joined; see ExecutorTime
    Ns lead_ns = 0;                   // see lead.h; 0: nothing was executed
    Ns recent_ns = 0;                 // the last seconds: how long that is, and, of that,
    Ns recent_executing_ns = 0;
    Ns recent_idle_with_work_ns = 0;
    bool draining = false;
    std::uint64_t host_bytes = 0;  // of the host store that it shares with its worker's others; 0: there is none
    std::uint64_t host_used = 0;
    std::uint64_t hosted = 0;        // models in it
    std::uint64_t fetching = 0;      // models on their way into it
    std::uint32_t clock_mhz = 0;     // 0: it did not say
    Ns there_ns = 0, back_ns = 0;    // the delays that its worker's link is counted with
    std::uint64_t inputs_bytes = 0;  // on their way to its worker
    Ns inputs_mb_ns = 0;             // what a million bytes of them are thought to take; 0: not known
    Ns copies_mb_ns = 0;             // likewise, what copies from clients' memory take
    double margin = 0;               // part of its estimate by which an execution is planned longer; see margin.h
    Ns contested_ns = 0;             // for how long decisions heed shares, from now on
    double level = 0;                // see shares.h; 0: its time is not divided
    std::vector<ShareStatus> shares;
    std::uint64_t beyond = 0;  // models beyond their shares
};

// A model on a device, or on its way there. state: 0 is decided, 1 is being loaded, 2 is resident.
struct Whereabouts {
    ModelId model_id = 0;
    WorkerId worker = 0;
    std::uint32_t device = 0;
    int state = 0;
    LoadId load_id = 0;
    std::uint64_t pages = 0;
    std::vector<std::uint32_t> run_starts;
};

struct ModelStatus {
    ModelId model_id = 0;
    std::uint64_t queued = 0;
    std::uint64_t served = 0;
    bool draining = false;
    std::vector<WorkerId> workers;
    std::vector<Whereabouts> residencies;
};

struct PlannedBatch {
    ModelId model_id = 0;
    std::uint32_t shape = 0;
    std::uint32_t size = 0;
    Ns duration_ns = 0;
    std::vector<RequestId> requests;
};

struct FlightStatus {
    ActionId action_id = 0;
    WorkerId worker = 0;
    std::uint32_t device = 0;
    int kind = 0;  // LOAD, UNLOAD, INFER, PROFILE, FETCH, DROP
    ModelId model_id = 0;
    std::vector<RequestId> requests;
};

// Everything, for tests and dumps. Lists beside `devices` have one entry for each.
struct Snapshot {
    Ns now_ns = 0;
    std::uint64_t queued_requests = 0;
    std::uint64_t queued_bytes = 0;
    std::uint64_t admitted = 0, answered = 0, refused = 0, missed = 0, failed = 0, displaced = 0;
    std::vector<DeviceStatus> devices;
    std::vector<std::vector<Whereabouts>> resident;  // least recently used first
    std::vector<std::vector<PlannedBatch>> plans;
    std::vector<ModelStatus> models;
    std::vector<FlightStatus> flights;  // by worker, in the order of sending
};

// Events in, orders out. Deterministic: the same calls give the same orders. Not thread safe.
//
// Each event is noted by one call, then settle() decides, once for all that came together: timers that are due,
// then every device that something happened to. now_ns never goes back. Orders may also be given by the calls of
// events (an answer, for one); all go to `out`, in order. Nothing but settle() plans or sends work.
class Scheduler {
public:
    virtual ~Scheduler() = default;

    virtual void arrived(Ns now, const Request& request) = 0;
    virtual void cancelled(Ns now, RequestId request_id) = 0;
    virtual void action_done(Ns now, const ActionResult& result) = 0;
    // host_bytes: the budget of its host store, which all its devices load from; 0: it has none, and whatever is prepared
    // can be loaded. Only for who plans_fetches().
    virtual void worker_joined(Ns now, WorkerId worker, const std::vector<DeviceSpec>& devices,
                               std::uint64_t host_bytes = 0) = 0;
    virtual void worker_left(Ns now, WorkerId worker) = 0;
    virtual void worker_draining(Ns now, WorkerId worker) = 0;
    // One device of a worker is gone, with all that it held and did; the worker and its other devices go on.
    virtual void device_lost(Ns now, WorkerId worker, std::int32_t device) = 0;
    // The clock that a device executes at from now on, for those that say it: what they take changes with it.
    virtual void device_clock(Ns now, WorkerId worker, std::int32_t device, std::uint32_t mhz) = 0;
    // A worker wants a device's time for itself, and pages to go with it, for a model that it prepares; see reservations.h.
    // expected_ns: 0, it wants none any more.
    virtual void time_wanted(Ns now, WorkerId worker, std::int32_t device, ModelId model_id, Ns expected_ns,
                             const std::vector<std::uint32_t>& runs) = 0;
    // What a message took to a worker, and another back; link.h says what is made of that.
    virtual void link_measured(Ns now, WorkerId worker, Ns there_ns, Ns back_ns) = 0;
    virtual void model_ready(Ns now, WorkerId worker, const ModelSpec& spec) = 0;
    virtual void model_removed(Ns now, ModelId model_id) = 0;
    // A number for a shape that requests or profiles will name, and how many elements its inputs have.
    virtual void shape_known(std::uint32_t shape, std::uint64_t elements) = 0;
    // Nothing will name this number any more, until it is given out anew. Only for one that is not in use.
    virtual void shape_forgotten(std::uint32_t shape) = 0;
    // Appends every shape that something here still names; one may come twice.
    virtual void shapes_in_use(std::vector<std::uint32_t>& found) const = 0;
    virtual void settle(Ns now) = 0;

    // Have a model loaded without a request for it: for set-ups that begin warm. False if the device is not there,
    // has the model, or has no room without evicting anything.
    virtual bool preload(Ns now, WorkerId worker, std::int32_t device, ModelId model_id) = 0;

    // What it thinks a device holds, in any order; false if it is not there. For tests: the simulator compares.
    virtual bool picture(WorkerId worker, std::int32_t device, std::vector<Held>& held) const = 0;

    // What is on devices, of all of them: worker, device, model and load id of each.
    virtual void held(std::vector<std::int64_t>& numbers) const = 0;

    // The models that it thinks a worker's host store holds, in any order; false if it is not there or has no store.
    virtual bool host_picture(WorkerId worker, std::vector<ModelId>& held) const = 0;

    // Whether it can serve workers whose host store has a budget.
    virtual bool plans_fetches() const = 0;

    virtual std::vector<DeviceStatus> devices() const = 0;
    // Each device that holds the model, or is about to.
    virtual std::vector<Whereabouts> whereabouts(ModelId model_id) const = 0;
    // Each worker whose host store, which has a budget, holds the model.
    virtual std::vector<WorkerId> hosts(ModelId model_id) const = 0;
    virtual Snapshot snapshot() const = 0;
    virtual PolicyStatus policy_status(Ns now) const = 0;

    // How many devices today's load needs; see demand.h. Looks at every model.
    virtual double devices_wanted(Ns now) const = 0;

    // What batches of a model are expected to take by now, on the first kind of device that has it prepared; as the
    // profile says where nothing is known.
    virtual std::vector<Ns> expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const = 0;

    // How well the INFERs and LOADs were predicted that were sent from one time until another, all at first, and have
    // ended well. Null for one that does not say.
    virtual const Predictions* predictions() const = 0;
    virtual void judge_predictions(Ns from_ns, Ns until_ns) = 0;

    // Its whole state as bytes, between steps: another one, made with the same options, goes on from there just as it
    // does. False if that takes more bytes than bytes_max, or if the policy is in another language, and so has state of
    // its own.
    virtual bool save(std::string& state, std::size_t bytes_max) = 0;
    // What save() wrote, into a scheduler that was told nothing yet. Throws Damaged (archive.h), and may only be destroyed
    // then.
    virtual void restore(std::string_view state) = 0;

    // Throws std::logic_error where the books do not balance. For tests; may be slow.
    virtual void check_invariants() const = 0;

    Commands out;
};

// The policies that there are, the default first.
const std::vector<std::string>& policy_names();

// Names that SchedulerOptions::values may have for a policy. Throws as make_scheduler() does.
std::vector<std::string> known_options(const std::string& policy);

// The largest value of an option.
inline constexpr double OPTION_MAX = 1e6;

// Throws std::invalid_argument, naming the value and what there is.
std::unique_ptr<Scheduler> make_scheduler(const SchedulerOptions& options);

}  // namespace clockwork
