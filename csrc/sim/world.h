// A simulated world: the controller's scheduler, the workers' action queues, and between them emulated
// devices, links, clocks and clients, all on a virtual clock. Equal seeds give equal worlds.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/emulated.h"
#include "random.h"
#include "recording/recorder.h"
#include "recording/sentences.h"
#include "scheduler/scheduler.h"
#include "scheduler/types.h"
#include "sim/accounts.h"
#include "sim/events.h"
#include "worker/queue.h"

namespace clockwork::sim {

struct ModelSetup {
    std::vector<std::pair<std::uint32_t, Ns>> exec_ns;  // (batch size, time of the whole batch), ascending
    std::vector<Ns> table;                              // time by batch size up to batch_max; [0] is unused
    std::vector<std::uint32_t> runs;                    // page counts of the runs
    Ns load_ns = 0;
    std::uint64_t input_bytes = 0;
    std::uint32_t program = 0;
    std::uint32_t batch_max = 1;
    Ns slo_ns = 0;  // SLO of the model; 0: none
};

// A temporary disturbance. Times count from the beginning of the workloads.
struct DisturbanceSetup {
    enum class Kind : std::uint8_t {
        EXECUTION,   // executions take `factor` times as long
        LOAD,        // loads and fetches take `factor` times as long
        INPUTS,      // inputs take `factor` times as long in the controller's I/O thread and on the links
        LINK,        // messages take `factor` times as long in each direction
        STOP,        // workers are stopped
        CONTROLLER,  // the controller handles events only every `factor` times TURN_NS
        CLOCK,       // the clocks of workers jump ahead by `factor` ns at its beginning, and back at its end
        RESTART,     // workers are gone and come back with what their disks have
    };
    Kind kind = Kind::EXECUTION;
    Ns from_ns = 0, until_ns = 0;
    double factor = 1;
    std::int32_t worker = -1;  // index of the worker; -1: all workers
    std::int32_t model = -1;   // EXECUTION: the model whose executions are slower; -1: all
};

// The name of a model in a recording.
struct RecordedModel {
    std::string name;
    std::int64_t version = 1;
    std::string program;

    std::string label() const { return name + "@" + std::to_string(version); }
};

// A worker of another shape than the others, as one whose executions have several cores each.
struct WorkerSetup {
    std::uint32_t devices = 1, executors = 1;  // as in ClusterSetup, of this worker
    std::uint32_t kind = 0;                    // workers of one kind have the same times
    // Times of executions on this worker by model, as in ModelSetup; an empty entry: it does not serve the
    // model. Empty: the models' own.
    std::vector<std::vector<std::pair<std::uint32_t, Ns>>> exec_ns;
    std::vector<std::vector<Ns>> tables;
};

struct ClusterSetup {
    std::uint32_t devices = 1, devices_per_worker = 1;
    // Devices of a worker that share an arena, that of the first of them: they are its executors. A worker's
    // last arena may have fewer.
    std::uint32_t executors = 1;
    // Workers of shapes of their own, in order, instead of `devices` alike. Empty: all are alike.
    std::vector<WorkerSetup> workers;
    double slowdown = 1;       // EmulatedSettings::slowdown
    double slowdown_told = 1;  // part of what it exceeds 1 by that workers tell the controller
    std::uint64_t page_bytes = 16 << 20;
    std::uint32_t page_count = 1376;
    std::uint32_t run_ahead = 2;
    std::size_t actions_queued_max = 4096;
    // speed of worker i: entry i modulo the length, which divides execution times; empty: 1
    std::vector<double> speeds;
    // A worker's measurements when it prepared the models: the largest batch (0: the model's), and pages that
    // its layouts take in addition, as a run. Worker i has entry i, and after each absence the next entry.
    // Empty: 0.
    std::vector<std::uint32_t> batch_maxes, extra_pages;
    // (time since arrivals began, factor): executions that begin from then on take that many times as long.
    // Empty: 1.
    std::vector<std::pair<Ns, double>> spells;
    double exec_noise = 0;  // sigma of a lognormal factor
    double load_noise = 0;
    double outlier = 0, outlier_factor = 2;  // probability that an action takes outlier_factor times as long
    Ns link_there_ns = 50'000, link_back_ns = 50'000;
    Ns link_jitter_ns = 0;   // uniform, in addition, in each direction
    double link_loss = 0;    // probability that a message breaks the connection
    Ns clock_offset_ns = 0;  // largest offset of a worker's clock, in either direction
    double clock_drift_ppm = 0;
    double crashes_per_hour = 0;  // crashes of each worker
    Ns down_ns = 1'000'000'000;   // time that a crashed worker stays away
    // time after which the controller considers a hanging worker lost (half of the crashes hang)
    Ns timeout_ns = 2'000'000'000;
    // bytes/s of the controller's I/O thread, for the inputs of all workers; 0: unlimited
    std::uint64_t io_bandwidth = 0;
    std::uint64_t input_bandwidth = 0;  // bytes/s of a worker's link; 0: unlimited
    Ns ping_ns = 0;                     // interval of link measurements; 0: once per join
    double profiled = 1;                // factor by which workers overstate the time of an execution
    double load_profiled = 1;           // factor by which workers overstate the time of a load
    std::vector<DisturbanceSetup> disturbances;
    std::uint64_t copy_bandwidth = 0;  // bytes/s of a device's input copies; 0: they take no time
    std::uint64_t host_bytes = 0;      // size of a worker's host store; 0: every model can be loaded
    // bytes/s at which a worker fetches into its host store; 0: a FETCH takes no time
    std::uint64_t disk_bandwidth = 0;
    // size of a worker's disk store, instead; bytes/s at which it is brought a model, 0: that takes no time;
    // and the scheduler's option of that name, by which models are spread at the beginning
    std::uint64_t store_bytes = 0, store_bandwidth = 0;
    std::uint32_t stored_copies = 2;
    double load_failures = 0, infer_failures = 0;  // probability that an action fails
    double cancels = 0;                            // probability that a client cancels a request
};

struct ClosedSetup {
    std::uint32_t model = 0, concurrency = 1;
    Ns think_ns = 0;       // time from an answer to the next request
    Ns round_trip_ns = 0;  // added to think_ns: the way of an answer, and of the next request
    Ns slo_ns = 0;         // SLO of the requests; 0: the model's
    std::uint8_t priority = 0, class_index = 0;
    Ns start_ns = 0, until_ns = NEVER_NS;
};

struct RunSetup {
    std::uint64_t seed = 0;
    Ns warmup_ns = 0;           // arrivals before this time are not counted
    Ns until_ns = NEVER_NS;     // end of the arrivals; NEVER_NS: the end of the workloads
    Ns drain_ns = 10 * SECOND;  // time for which answers are awaited after until_ns
    Ns slice_ns = 0;            // length of a slice; 0: no series
    bool resident = false;
    // pairs (device, model) that are loaded before the start, instead of those that preload() would choose;
    // empty: none are given
    std::vector<std::pair<std::uint32_t, std::uint32_t>> placed;
    bool check = false;
    bool timed = false;         // measure the time spent in the scheduler
    std::size_t trace_max = 0;  // rows of the trace to keep
    bool fates = false;         // keep the fate of each request
    std::uint8_t priority_default = 4;
};

// Arrivals in order of time. The memory is the caller's, and must stay until the arrivals have been consumed.
struct ArrivalChunk {
    const std::int64_t* at_ns = nullptr;
    const std::int32_t* model = nullptr;
    const std::int64_t* slo_ns = nullptr;
    const std::uint8_t* priority = nullptr;
    const std::uint8_t* class_index = nullptr;
    std::size_t count = 0;
};

struct TraceRow {
    Ns at_ns;
    // 0 to 99: an event of the controller; from 100 on: 100 + CommandKind; from 200 on: devices
    std::int64_t what;
    std::int64_t a, b, c, d;
};

// The fate of a request.
struct RequestFate {
    RequestOutcome outcome = RequestOutcome::UNANSWERED;
    Reason reason = Reason::NONE;
    std::int32_t device = -1;  // device to which it was sent last; -1: none
    Ns latency_ns = 0;         // time until its answer
};

enum class StopReason : std::uint8_t { WANTS_CHUNK, PAUSED, DONE };

// Time of a controller's turn, which a disturbance multiplies.
inline constexpr double TURN_NS = 10'000;

class World {
public:
    World(std::unique_ptr<Scheduler> scheduler, std::vector<ModelSetup> models, const ClusterSetup& cluster,
          std::size_t opens, std::vector<ClosedSetup> closed, const RunSetup& run);

    // Writes the scheduler's events and decisions into a ring, in the format of
    // clockwork/scheduler/recording.py. Must be called before set_up(). names: by model.
    void record(std::shared_ptr<Ring> ring, Sentences sentences, std::vector<RecordedModel> names);

    // Lets workers join, and models become ready and, if requested, resident. Simulated time begins
    // afterwards.
    void set_up();

    // Feeds an open workload with arrivals; an empty chunk ends it. Throws std::invalid_argument for times
    // out of order and unknown models.
    void feed(std::size_t open, const ArrivalChunk& chunk);

    // Continues until arrivals are missing, about events_max events have happened, or all is over. Throws
    // std::logic_error for a fault of the scheduler or the world.
    StopReason run(std::uint64_t events_max);

    std::size_t wanting() const { return wanting_; }  // the open workload to feed, after WANTS_CHUNK
    Ns now_ns() const { return now_ - base_ns_; }
    Ns end_ns() const { return last_arrival_ns_; }  // end of the counted time
    std::uint64_t requests() const { return next_request_; }
    std::uint64_t events() const { return events_; }
    // if timed: real time inside the scheduler after set_up()
    Ns scheduler_ns() const { return scheduler_ns_; }
    const Accounts& accounts() const { return accounts_; }
    const Predictions* predictions() const { return scheduler_->predictions(); }
    // Returns the counted time in which each device was idle with work waiting, in the order of joining.
    std::vector<Ns> idle_with_work_ns() const {
        std::vector<Ns> found;
        for (const DeviceStatus& device : scheduler_->devices())
            found.push_back(device.idle_with_work_ns);
        return found;
    }
    double devices_wanted() const {
        return scheduler_->devices_wanted(base_ns_ + last_arrival_ns_);
    }  // value at the end of the counted time
    const Digest& digest() const { return digest_; }
    const std::vector<TraceRow>& trace() const { return trace_; }
    const std::vector<RequestFate>& fates() const { return fates_; }  // in the order of arrival, if kept

private:
    static constexpr std::uint32_t NONE = UINT32_MAX;

    // An order with its state. Its token is its slot. Its window is in true time, converted by the worker's
    // clock.
    struct Action : emulated::EmulatedOrder {
        Status status = Status::OK;
        bool at_worker = false;  // false: the action is still on its way
        // exceeds its time limit: an execution is ended then; after a load, the worker restarts
        bool overran = false;
        std::uint32_t device = 0;  // index over all workers
        std::uint32_t rows = 0;
        Ns received_ns = 0;
        Ns begin_ns = 0, end_ns = 0;
        std::vector<RequestId> requests;
    };

    struct Request {
        std::uint64_t sequence = 0;  // 0: the record is free
        Ns arrived_ns = 0, deadline_ns = 0;
        std::uint32_t model = 0;
        std::uint32_t group = NONE;  // group of closed-loop clients
        std::uint8_t class_index = 0;
        std::uint8_t priority = 0;
        bool counted = false;
        bool cancelled = false;
        std::uint32_t flying_worker = 0;
        ActionId flying = 0;  // with `check`: action with which it was sent
    };

    struct Device {
        std::uint32_t worker = 0, index = 0;  // index within the worker
        std::uint32_t arena = 0;              // index within the worker of the device whose arena it has
        ActionQueue queue;
        emulated::EmulatedDevice lanes;
        Ns queue_due_ns = NEVER_NS;  // time of the pending QUEUE_DUE
    };

    struct WorkerState {
        WorkerId id = 0;  // 0: the controller does not know the worker
        std::uint32_t epoch = 0;
        bool alive = false;
        bool broken = false;  // whether the connection broke rather than the worker
        Ns returns_ns = 0;    // as in crash()
        std::uint32_t first_device = 0, device_count = 0;
        std::uint32_t joins = 0;
        std::uint32_t batch_max = 0, extra_pages = 0;  // measurements from ClusterSetup, since it joined
        double speed = 1;
        std::uint32_t kind = 0;
        const WorkerSetup* own = nullptr;        // its setup, if it has other times than the others
        Ns there_free_ns = 0, back_free_ns = 0;  // messages on a link stay in order
        Ns input_free_ns = 0;
        Ns there_seen_ns = 0, back_seen_ns = 0;  // delays that the controller has measured
        // pongs on their way back: times at which the ping was sent and received
        std::deque<std::pair<Ns, Ns>> pongs;
        Ns offset_ns = 0;
        double drift = 0;               // drift per nanosecond
        Ns synced_ns = NEVER_NS;        // true time of the newest estimate of the clock
        Ns upper_ns = 0, lower_ns = 0;  // bounds of the clock's offset at synced_ns
        emulated::EmulatedLink link;
        std::optional<emulated::EmulatedHostStore> store;
        Random random;
    };

    struct OpenState {
        ArrivalChunk chunk;
        std::size_t next = 0;
        Ns last_ns = 0;
        bool fed = false, over = false;
    };

    bool has_arena(const Device& device) const { return device.arena == device.index; }

    // Functions of setup.cpp
    void place_copies();
    void preload();
    void drain_set_up();
    void next_crash(std::uint32_t worker);

    // world.cpp: time, the clients' and the controller's side
    Ns next_arrival();
    void arrive_open(std::size_t open);
    void arrive(std::uint32_t model, Ns slo_ns, std::uint8_t priority, std::uint8_t class_index, std::uint32_t group);
    void handle(const Event& event);
    void settle();
    void obey();
    void order(const Command& command);
    void model_gone(std::uint32_t model);
    void answer(const Command& command);
    void close(RequestId id, Request& request, RequestOutcome outcome);
    void reported(std::uint32_t slot, std::uint32_t worker);
    void client_sends(std::uint32_t group);
    void end_slice();
    void at_rest();
    bool is_at_rest() const;
    void check_copies();
    void finish();
    Slice* slice();

    // devices.cpp: the workers' side
    void measure(std::uint32_t worker);
    void restock(std::uint32_t worker);
    void join(std::uint32_t worker);
    // returns_ns: time of its return with its disk, where that is known; 0: it is gone for down_ns
    void crash(std::uint32_t worker, bool hangs, Ns returns_ns = 0);
    void noticed(std::uint32_t worker);
    void send(std::uint32_t slot, std::uint64_t bytes);
    void send_back(std::uint32_t slot);
    bool lost(std::uint32_t worker);
    void obey_queue(std::uint32_t device, std::vector<QueueCommand>& commands);
    void deliver(std::uint32_t slot);
    void revoke(std::uint32_t worker, ActionId action_id);
    void queue_due(std::uint32_t device);
    void advance(std::uint32_t device, LaneKind lane);
    Ns allowed_ns(const emulated::EmulatedOrder& order, Ns took_ns);
    void demand_possible(const emulated::EmulatedEnd& done) const;
    const std::vector<std::uint32_t>& runs_of(const WorkerState& worker, std::uint32_t model);
    std::uint64_t bytes_of(const WorkerState& worker, std::uint32_t model);
    std::uint32_t stored_elsewhere(std::uint32_t worker, std::uint32_t model) const;
    std::uint32_t batch_max_of(const WorkerState& worker, std::uint32_t model) const;
    bool serves(const WorkerState& worker, std::uint32_t model) const;
    const std::vector<std::pair<std::uint32_t, Ns>>& profile_of(const WorkerState& worker, std::uint32_t model) const;
    const std::vector<Ns>& table_of(const WorkerState& worker, std::uint32_t model) const;
    void lane_end(std::uint32_t device, LaneKind lane);
    void follow_neighbours(std::uint32_t device);
    void conclude(std::uint32_t device, std::uint32_t slot, Status status);
    void grant_link(std::uint32_t worker);
    void sync_clock(WorkerState& worker);
    void ping(std::uint32_t worker);
    void pinged(std::uint32_t worker, Ns sent_ns);
    void ponged(std::uint32_t worker);
    Ns true_offset(const WorkerState& worker, Ns at_ns) const;
    Ns to_true(const WorkerState& worker, Ns worker_ns) const;
    Ns to_controller(WorkerState& worker, Ns true_ns);
    void set_window(Action& action, const Command& command);
    std::vector<QueueCommand> buffer();
    void give_back(std::vector<QueueCommand>&& commands);

    // Functions of recording.cpp, which do nothing without a recorder
    void record_arrived(const clockwork::Request& request);
    void record_cancelled(RequestId id);
    void record_done(const ActionResult& result);
    void record_joined(const WorkerState& worker);
    void record_link(WorkerId worker, Ns there_ns, Ns back_ns);
    void record_ready(WorkerId worker, const ModelSpec& spec, bool is_stored);
    void record_left(WorkerId worker);
    void record_step();
    template <typename Event>
    void record_event(const Event& event);

    // Functions of disturbances.cpp
    void start_disturbances();
    void disturb(std::uint32_t number, bool begins);
    bool holds(const DisturbanceSetup& disturbance, DisturbanceSetup::Kind kind, std::uint32_t worker, Ns at_ns) const;
    Ns slowed_ns(DisturbanceSetup::Kind kind, std::uint32_t worker, Ns begin_ns, Ns took_ns, ModelId model = -1) const;
    Ns stopped_until_ns(std::uint32_t worker) const;
    Ns turn_ns(Ns at_ns) const { return cluster_.disturbances.empty() ? at_ns : next_turn_ns(at_ns); }
    Ns next_turn_ns(Ns at_ns) const;
    Ns noticed_ns(const Event& event) const;

    // Functions of world.cpp, for both sides
    std::uint32_t take_action();
    void drop_action(std::uint32_t slot);
    Request* find(RequestId id);
    template <class Call>
    void timed(Call call) {
        if (!run_.timed) [[likely]]
            return call();
        const auto begin = std::chrono::steady_clock::now();
        call();
        scheduler_ns_ += (std::chrono::steady_clock::now() - begin) / std::chrono::nanoseconds(1);
    }
    void note(std::int64_t what, std::int64_t a, std::int64_t b = 0, std::int64_t c = 0, std::int64_t d = 0);
    [[noreturn]] void fail(const std::string& what) const;
    void demand(bool holds, const char* what) const {
        if (!holds) [[unlikely]]
            fail(what);
    }
    bool counting() const { return now_ >= count_from_ && now_ < count_until_; }
    Ns overlap(Ns begin_ns, Ns end_ns) const;  // part of a span within the counted time

    std::unique_ptr<Scheduler> scheduler_;
    std::vector<ModelSetup> models_;
    ClusterSetup cluster_;
    emulated::EmulatedSettings settings_;  // settings of all devices
    std::vector<ClosedSetup> closed_;
    RunSetup run_;

    Ns now_ = 0;
    Ns base_ns_ = 0;  // begin of the workloads
    Ns count_from_ = NEVER_NS, count_until_ = NEVER_NS;
    Ns last_arrival_ns_ = 0;
    Ns wake_ns_ = NEVER_NS;
    Ns io_free_ns_ = 0;  // time until which the controller's I/O thread sends inputs
    Ns scheduler_ns_ = 0;
    bool touched_ = false;  // whether the scheduler got events since it settled
    bool begun_ = false, over_ = false;
    std::uint64_t events_ = 0;
    EventHeap heap_;
    std::vector<OpenState> opens_;
    std::size_t nearest_ = 0, wanting_ = 0;
    std::vector<Device> devices_;
    std::vector<WorkerState> workers_;
    std::vector<std::uint32_t> worker_of_;  // worker by WorkerId
    std::vector<DeviceSpec> specs_;
    std::vector<std::uint32_t> runs_;  // scratch of runs_of()
    std::vector<bool> is_aside_;       // by model: it was set aside
    // devices refer to the actions, so their addresses are stable
    std::vector<std::unique_ptr<Action>> actions_;
    std::vector<std::uint32_t> free_actions_;
    std::vector<Request> requests_;
    std::vector<std::uint32_t> free_requests_;
    std::uint64_t next_request_ = 0;
    std::size_t outstanding_ = 0;
    std::vector<std::vector<QueueCommand>> buffers_;
    std::uint8_t highest_arrived_ = 255;  // highest priority (lowest number) that arrived in this step
    // with `check`: requests of actions reported OK in this step
    std::unordered_map<ActionId, std::vector<RequestId>> done_;
    std::uint64_t clients_left_ = 0;  // clients of closed loops that still send
    Random random_;
    Accounts accounts_;
    Digest digest_;
    std::vector<TraceRow> trace_;
    std::vector<RequestFate> fates_;
    std::unique_ptr<Recorder> recorder_;  // null: the world is not recorded
    Sentences sentences_;
    std::vector<RecordedModel> names_;
    Writer event_;  // scratch of record_*()
};

}  // namespace clockwork::sim
