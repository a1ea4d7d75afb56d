// Interface of the scheduler for its drivers: the controller's binding and the simulator's world.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/predictions.h"
#include "scheduler/types.h"

namespace clockwork {

struct Hooks;

// Bounds and constants that the caller may set; each is explained where it is used.
struct SchedulerOptions {
    std::string policy = "adaptive";        // paper, fifo, edf, deferred, adaptive
    std::string memory;                     // memory rules, "paper" or "adaptive"; "": the policy's own
    std::uint64_t queued_requests_max = 0;  // 0: the default of config.QUEUED_REQUESTS_MAX
    std::uint64_t queued_bytes_max = 0;
    // Named numbers of one policy ("schedule_ahead_ms", "batch_cap", "queue_delay_ms", ...). An unknown name
    // is an error of make_scheduler(), which lists the known names.
    std::vector<std::pair<std::string, double>> values;
    // Functions of a policy in another language (hooks.h), whose name is then `policy`
    const Hooks* hooks = nullptr;
};

// A model on a device: the id of its load, and the first page of each run.
struct ResidentModel {
    ModelId model_id = 0;
    LoadId load_id = 0;
    bool loading = false;  // whether the LOAD is under way
    std::vector<std::uint32_t> starts;
};

// A model's share of a device that is divided: what it asked for and had, as parts of the device's time; see
// shares.h.
struct ShareStatus {
    ModelId model_id = 0;
    double asked = 0, had = 0;
    bool is_modest = false, is_beyond = false;
};

// Models whose shares the status of a device, or of the links, shows: those that ask for the most.
inline constexpr std::size_t SHARES_SHOWN_MAX = 8;

// How the time of the links that load models is divided; see link_shares.h. Times are parts of a single link.
struct LinkStatus {
    Ns contested_ns = 0;              // time for which the links may be divided, from now on
    double level = 0;                 // 0: the links are not divided
    std::vector<ShareStatus> shares;  // is_beyond: its loads come behind those of the others
    std::uint64_t beyond = 0;         // models whose loads come behind
};

// Learnt numbers of a policy about executions and arrivals as a whole; see adaptive.h.
struct PolicyStatus {
    bool is_learning = false;  // false: the other fields are meaningless
    double pace = 1;           // ratio of executed to planned time
    double need = 0;           // the share of their ideal throughput at which the devices have to run
    double hold = 0;           // upper bound of recent arrivals, by which queues are held
    double share = 0;          // devices that a model may have, as of the last arrival; 0: no limit
};

struct DeviceStatus {
    WorkerId worker = 0;
    std::uint32_t device = 0;  // number of the device within its worker
    // Number of the device whose arena it executes from. That device's row alone has the figures of the
    // arena: loads, pages, models and shares.
    std::uint32_t arena = 0;
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
    std::uint64_t evicted_early = 0;  // models evicted soon after their load
    Ns idle_with_work_ns = 0;         // since the device joined; see ExecutorTime
    Ns lead_ns = 0;                   // see lead.h; 0: nothing was executed yet
    Ns recent_ns = 0;                 // length of the recent interval to which the next fields refer
    Ns recent_executing_ns = 0;
    Ns recent_idle_with_work_ns = 0;
    bool draining = false;
    // Budget of the host store that its worker's devices share; 0: there is none.
    std::uint64_t host_bytes = 0;
    std::uint64_t host_used = 0;
    std::uint64_t hosted = 0;  // models in the host store
    // The same of its worker's disk store.
    std::uint64_t store_bytes = 0;
    std::uint64_t store_used = 0;
    std::uint64_t stored = 0;
    std::uint64_t fetching = 0;      // models on their way into either
    std::uint32_t clock_mhz = 0;     // clock of the device; 0: not reported
    Ns there_ns = 0, back_ns = 0;    // estimated delays of its worker's link
    std::uint64_t inputs_bytes = 0;  // bytes of inputs on their way to the worker
    Ns inputs_mb_ns = 0;             // estimated delay of a million bytes of inputs; 0: unknown
    Ns copies_mb_ns = 0;             // learnt time per megabyte of copies from clients' memory
    double margin = 0;               // share of its estimate that is added to an execution; see margin.h
    Ns contested_ns = 0;             // time for which decisions heed shares, from now on
    double level = 0;                // level of shares.h; 0: the device's time is not divided
    std::vector<ShareStatus> shares;
    std::uint64_t beyond = 0;  // models beyond their shares
};

// Models of which workers' disk stores have too few copies (see keepers.h), and the room of these stores.
// All 0 without disk stores.
struct StoreStatus {
    std::uint64_t scarce = 0;   // models with fewer copies than they should have
    std::uint64_t awaited = 0;  // those of them of which a worker that left may bring a copy back
    std::uint64_t lost = 0;     // models that no worker has any more: they have to be prepared again
    std::uint64_t cramped = 0;  // scarce models for which no store has room, counted up to CRAMPED_MAX
    std::uint64_t copying = 0;  // models on their way into stores
    std::uint64_t bytes = 0;    // the budgets of all stores, without workers that leave
    std::uint64_t used = 0;     // bytes of the models in these, or on their way there
    std::uint64_t room = 0;     // bytes that the store with the most room has left
};

// A model on a device, or on its way there. state: 0 is decided, 1 is being loaded, 2 is resident.
struct ResidencyStatus {
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
    std::vector<ResidencyStatus> residencies;
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
    int kind = 0;  // an ActionKind
    ModelId model_id = 0;
    std::vector<RequestId> requests;
};

// A copy of the whole state, for tests and dumps. Lists beside `devices` have one entry for each device.
struct Snapshot {
    Ns now_ns = 0;
    std::uint64_t queued_requests = 0;
    std::uint64_t queued_bytes = 0;
    std::uint64_t admitted = 0, answered = 0, refused = 0, missed = 0, failed = 0, displaced = 0;
    std::vector<DeviceStatus> devices;
    std::vector<std::vector<ResidencyStatus>> resident;  // models by device, least recently used first
    std::vector<std::vector<PlannedBatch>> plans;
    std::vector<ModelStatus> models;
    std::vector<FlightStatus> flights;  // actions under way by worker, in the order of sending
};

// Events in, orders out. Deterministic: the same calls give the same orders. Not thread safe.
//
// Each event is noted by one call; then settle() decides, once for all events that came together: due timers
// first, then every device that changed. now_ns never decreases. Calls for events may also give orders (an
// answer, for example); all orders go to `out`, in sequence. Only settle() plans or sends work.
class Scheduler {
public:
    virtual ~Scheduler() = default;

    virtual void arrived(Ns now, const Request& request) = 0;
    virtual void cancelled(Ns now, RequestId request_id) = 0;
    virtual void action_done(Ns now, const ActionResult& result) = 0;
    // Notes that a worker has joined. host_bytes: the budget of its host store, which all its devices load
    // from; store_bytes: that of a store on its disk. 0: it has none; if it has neither, every prepared model
    // can be loaded. A host store needs a policy with plans_fetches().
    virtual void worker_joined(Ns now, WorkerId worker, const std::vector<DeviceSpec>& devices,
                               std::uint64_t host_bytes = 0, std::uint64_t store_bytes = 0) = 0;
    virtual void worker_left(Ns now, WorkerId worker) = 0;
    virtual void worker_draining(Ns now, WorkerId worker) = 0;
    // Notes that a device of a worker is gone, with its models and actions; the worker and its other devices
    // continue.
    virtual void device_lost(Ns now, WorkerId worker, std::int32_t device) = 0;
    // Notes the clock at which a device executes from now on, where it is reported: the estimates scale with
    // it.
    virtual void device_clock(Ns now, WorkerId worker, std::int32_t device, std::uint32_t mhz) = 0;
    // Notes that a worker wants a device's time for itself, and pages with it, for a model that it prepares;
    // see reservations.h. expected_ns: 0, it wants none any more.
    virtual void time_wanted(Ns now, WorkerId worker, std::int32_t device, ModelId model_id, Ns expected_ns,
                             const std::vector<std::uint32_t>& runs) = 0;
    // Notes the measured delays of a message to a worker, and of one back; see link.h.
    virtual void link_measured(Ns now, WorkerId worker, Ns there_ns, Ns back_ns) = 0;
    // Notes that a worker has prepared a model. is_stored false: it has not, but its disk store could be
    // brought the model, which another of its kind has prepared.
    virtual void model_ready(Ns now, WorkerId worker, const ModelSpec& spec, bool is_stored = true) = 0;
    // Notes that a model is resident since an earlier controller loaded it; see ModelKept. starts: the first
    // page of each of its runs.
    virtual void model_kept(Ns now, WorkerId worker, std::int32_t device, ModelId model_id, LoadId load_id,
                            const std::vector<std::uint32_t>& starts) = 0;
    // Notes that a worker's disk store no longer has a model, though no DROP was ordered.
    virtual void copy_lost(Ns now, WorkerId worker, ModelId model_id) = 0;
    // Notes that a worker with a disk store prepares models that take so many bytes in all: copies of others
    // are dropped for them, also where fewer than the wanted number remain, but never the last.
    virtual void room_wanted(Ns now, WorkerId worker, std::uint64_t bytes) = 0;
    virtual void model_removed(Ns now, ModelId model_id) = 0;
    // Defines a number for a shape that requests or profiles will name; elements: of the inputs of one row.
    virtual void shape_known(std::uint32_t shape, std::uint64_t elements) = 0;
    // Ends the use of a number, until it is defined again. Only for shapes that are not in use.
    virtual void shape_forgotten(std::uint32_t shape) = 0;
    // Appends every shape that the scheduler still refers to; a shape may be appended twice.
    virtual void shapes_in_use(std::vector<std::uint32_t>& found) const = 0;
    virtual void settle(Ns now) = 0;

    // Loads a model without a request for it, for set-ups that begin warm. False if the device is not there,
    // has the model already, or has no room without an eviction.
    virtual bool preload(Ns now, WorkerId worker, std::int32_t device, ModelId model_id) = 0;

    // Appends the models that a device holds by the scheduler's records, in any order; false if the device is
    // not there. The simulator compares it with its own state.
    virtual bool picture(WorkerId worker, std::int32_t device, std::vector<ResidentModel>& held) const = 0;

    // Appends worker, device, model and load id of each model on all devices.
    virtual void held(std::vector<std::int64_t>& numbers) const = 0;

    // Appends the models that a worker's store holds by the scheduler's records, in any order; false if the
    // worker is not there or has no store.
    virtual bool store_picture(WorkerId worker, std::vector<ModelId>& held) const = 0;

    // Whether the scheduler can serve workers whose host store has a budget.
    virtual bool plans_fetches() const = 0;

    virtual std::vector<DeviceStatus> devices() const = 0;
    // Returns each device that holds the model, or is about to.
    virtual std::vector<ResidencyStatus> whereabouts(ModelId model_id) const = 0;
    // Returns each worker whose budgeted host store holds the model.
    virtual std::vector<WorkerId> hosts(ModelId model_id) const = 0;
    // Returns each worker whose disk keeps the model, workers that leave among them.
    virtual std::vector<WorkerId> keepers(ModelId model_id) const = 0;
    // Returns the number of models that the disks of other workers could keep, and only those of this one and
    // of others that leave do. Looks at every model.
    virtual std::uint64_t sole_copies(WorkerId worker) const = 0;
    // Returns the bytes that a worker's disk store has left for a new model, or room_wanted() could free.
    virtual std::uint64_t store_room(WorkerId worker) const = 0;
    // Looks at every model.
    virtual StoreStatus store_status() const = 0;
    virtual Snapshot snapshot() const = 0;
    virtual PolicyStatus policy_status(Ns now) const = 0;
    virtual LinkStatus link_status(Ns now) const = 0;

    // Returns the number of devices that the present load needs; see demand.h. Looks at every model.
    virtual double devices_wanted(Ns now) const = 0;

    // Returns the expected durations of a model's batches at present, on the first kind of device that has it
    // prepared; by the profile where nothing is known.
    virtual std::vector<Ns> expected_ns(ModelId model_id, const std::vector<ProfilePoint>& points) const = 0;

    // Returns the accuracy of predictions for successful INFERs and LOADs that were sent within the judged
    // interval, at first all. Null for a scheduler without such records.
    virtual const Predictions* predictions() const = 0;
    virtual void judge_predictions(Ns from_ns, Ns until_ns) = 0;

    // Writes the whole state as bytes, between steps: another scheduler, made with the same options, goes on
    // from there identically. False if that takes more than bytes_max bytes, or if the policy is in another
    // language, whose state is elsewhere.
    virtual bool save(std::string& state, std::size_t bytes_max) = 0;
    // Reads the bytes of save() into a scheduler without events so far. Throws DamagedState (archive.h); the
    // scheduler may then only be destroyed.
    virtual void restore(std::string_view state) = 0;

    // Throws std::logic_error where the records contradict each other. For tests; may be slow.
    virtual void check_invariants() const = 0;

    Commands out;
};

// Names of all policies, the default first.
const std::vector<std::string>& policy_names();

// Names that SchedulerOptions::values may have for every policy: stored_copies (keepers.h).
const std::vector<std::string>& common_options();

// Names that SchedulerOptions::values may have for a policy. Throws like make_scheduler().
std::vector<std::string> known_options(const std::string& policy);

// The largest value of an option.
inline constexpr double OPTION_MAX = 1e6;

// Throws std::invalid_argument, naming the value and the choices.
std::unique_ptr<Scheduler> make_scheduler(const SchedulerOptions& options);

}  // namespace clockwork
