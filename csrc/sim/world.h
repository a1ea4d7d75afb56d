// A simulated world: the very scheduler of the controller, the very action queues of the workers, and between
// them emulated devices, links, clocks and clients, all on a virtual clock. The same seed is the same world.
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

#include "actions/queue.h"
#include "controller/recorder.h"
#include "controller/sentences.h"
#include "device/emulated.h"
#include "random.h"
#include "scheduler/scheduler.h"
#include "scheduler/types.h"
#include "sim/accounts.h"
#include "sim/events.h"

namespace clockwork::sim {

struct ModelInfo {
    std::vector<std::pair<std::uint32_t, Ns>> exec_ns;  // batch size, time of the whole batch; ascending
    std::vector<Ns> table;                              // by batch size, from 1 to batch_max; [0] is not used
    std::vector<std::uint32_t> runs;                    // page counts
    Ns load_ns = 0;
    std::uint64_t input_bytes = 0;
    std::uint32_t program = 0;
    std::uint32_t batch_max = 1;
    Ns slo_ns = 0;  // 0: none
};

// For a while something is not as it was. Times count from the beginning of the workloads.
struct DisturbanceInfo {
    enum class Kind : std::uint8_t {
        EXECUTION,   // executions go on `factor` times slower
        LOAD,        // loads and fetches likewise
        INPUTS,      // bytes of inputs, in the controller's I/O thread and on the links
        LINK,        // the delay of messages, each way
        STOP,        // workers stand still
        CONTROLLER,  // a turn of the controller's takes TURN_NS times the factor; nothing is decided between two turns
        CLOCK,       // the clocks of workers jump ahead by `factor` ns at its beginning, and back at its end
    };
    Kind kind = Kind::EXECUTION;
    Ns from_ns = 0, until_ns = 0;
    double factor = 1;
    std::int32_t worker = -1;  // -1: all
    std::int32_t model = -1;   // EXECUTION: whose executions; -1: all
};

// What a model is called in a recording.
struct Named {
    std::string name;
    std::int64_t version = 1;
    std::string program;

    std::string label() const { return name + "@" + std::to_string(version); }
};

struct ClusterInfo {
    std::uint32_t devices = 1, devices_per_worker = 1;
    std::uint64_t page_bytes = 16 << 20;
    std::uint32_t page_count = 1376;
    std::uint32_t run_ahead = 2;
    std::size_t actions_queued_max = 4096;
    std::vector<double> speeds;  // by worker, over and over: what an execution takes is divided by it; empty: 1
    // What a worker measured when it prepared the models, by worker, and by the next number after each time that it was
    // gone: the largest batch (0: the model's), and pages that its layouts have on top, as one run. Empty: 0.
    std::vector<std::uint32_t> batch_maxes, extra_pages;
    // By time, from when arrivals begin: how many times as long executions take that begin from then on. Empty: 1.
    std::vector<std::pair<Ns, double>> spells;
    double exec_noise = 0;  // sigma of a lognormal factor
    double load_noise = 0;
    double outlier = 0, outlier_factor = 2;  // probability that an action takes so many times as long
    Ns link_there_ns = 50'000, link_back_ns = 50'000;
    Ns link_jitter_ns = 0;   // uniform, on top, each way
    double link_loss = 0;    // probability that a message breaks the connection
    Ns clock_offset_ns = 0;  // each worker's clock is off by up to this
    double clock_drift_ppm = 0;
    double crashes_per_hour = 0;    // of each worker
    Ns down_ns = 1'000'000'000;     // how long a crashed worker stays away
    Ns timeout_ns = 2'000'000'000;  // how long the controller waits for one that hangs (half of the crashes)
    std::uint64_t io_bandwidth =
        0;  // bytes/s of the controller's one I/O thread, for the inputs of all workers; 0: unlimited
    std::uint64_t input_bandwidth = 0;  // bytes/s of a worker's link; 0: unlimited
    Ns ping_ns = 0;                     // how often the controller measures each link; 0: once, when a worker joins
    double profiled = 1;                // workers say that an execution takes so many times as long as it does
    double load_profiled = 1;           // and a load
    std::vector<DisturbanceInfo> disturbances;
    std::uint64_t copy_bandwidth = 0;  // bytes/s of a device's input copies; 0: they take no time
    std::uint64_t host_bytes = 0;      // of each worker's host store; 0: none, and whatever there is can be loaded
    std::uint64_t disk_bandwidth = 0;  // bytes/s at which a worker fetches into it; 0: a FETCH takes no time
    double load_failures = 0, infer_failures = 0;  // probability that an action fails
    double cancels = 0;                            // probability that a client gives a request up
};

struct ClosedInfo {
    std::uint32_t model = 0, concurrency = 1;
    Ns think_ns = 0;       // from an answer to the next request
    Ns round_trip_ns = 0;  // on top of that: an answer takes its way, and so does a request
    Ns slo_ns = 0;         // 0: the model's
    std::uint8_t priority = 0, class_index = 0;
    Ns start_ns = 0, until_ns = NEVER_NS;
};

struct RunInfo {
    std::uint64_t seed = 0;
    Ns warmup_ns = 0;           // what arrives before is not counted
    Ns until_ns = NEVER_NS;     // nothing arrives from then on; NEVER_NS: when the arrivals end
    Ns drain_ns = 10 * SECOND;  // how long answers are waited for after that
    Ns slice_ns = 0;            // 0: no series
    bool resident = false;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> placed;  // device, model: what is resident instead
    bool check = false;
    bool timed = false;         // measure the time spent in the scheduler
    std::size_t trace_max = 0;  // rows of the trace that are kept
    bool fates = false;         // keep what became of each request
    std::uint8_t priority_default = 4;
};

// Arrivals in order of time, the caller's memory until they have been consumed.
struct Chunk {
    const std::int64_t* at_ns = nullptr;
    const std::int32_t* model = nullptr;
    const std::int64_t* slo_ns = nullptr;
    const std::uint8_t* priority = nullptr;
    const std::uint8_t* class_index = nullptr;
    std::size_t count = 0;
};

struct TraceRow {
    Ns at_ns;
    std::int64_t what;  // 0 to 99: an event of the controller's; 100 on: 100 + CommandKind; 200 on: devices
    std::int64_t a, b, c, d;
};

// What became of a request.
struct Fate {
    Outcome outcome = Outcome::UNANSWERED;
    Reason reason = Reason::NONE;
    std::int32_t device = -1;  // that it was sent to last; -1: none
    Ns latency_ns = 0;         // until its answer
};

enum class Stop : std::uint8_t { WANTS_CHUNK, PAUSED, DONE };

// What an execution and a load may take, as workers have it; a test holds these to clockwork.config.
inline constexpr Ns EXECUTION_LIMIT_NS = 2 * SECOND;
inline constexpr Ns EXECUTION_LIMIT_FACTOR = 10;
inline constexpr Ns LOAD_LIMIT_NS = 30 * SECOND;
inline constexpr Ns LOAD_LIMIT_FACTOR = 10;

// What a turn of the controller takes, where it is slow: a DisturbanceInfo says how much.
inline constexpr double TURN_NS = 10'000;

class World {
public:
    World(std::unique_ptr<Scheduler> scheduler, std::vector<ModelInfo> models, const ClusterInfo& cluster,
          std::size_t opens, std::vector<ClosedInfo> closed, const RunInfo& run);

    // Write what the scheduler is told and decides into a ring, in the format of clockwork/scheduler/recording.py. Before
    // set_up(). names: by model.
    void record(std::shared_ptr<Ring> ring, Sentences sentences, std::vector<Named> names);

    // Workers join, models are ready and, if asked for, resident. Time begins afterwards.
    void set_up();

    // Arrivals for an open workload; an empty chunk says that there are no more.
    // Throws std::invalid_argument for times out of order and models that are none.
    void feed(std::size_t open, const Chunk& chunk);

    // Goes on until arrivals are missing, about events_max things have happened, or all is over.
    // Throws std::logic_error where something is wrong with the scheduler or the world.
    Stop run(std::uint64_t events_max);

    std::size_t wanting() const { return wanting_; }  // which open workload, after WANTS_CHUNK
    Ns now_ns() const { return now_ - base_ns_; }
    Ns end_ns() const { return last_arrival_ns_; }  // when the counted time ended
    std::uint64_t requests() const { return next_request_; }
    std::uint64_t events() const { return events_; }
    Ns scheduler_ns() const { return scheduler_ns_; }  // if timed: real time inside the scheduler, set_up() excepted
    const Accounts& accounts() const { return accounts_; }
    const Predictions* predictions() const { return scheduler_->predictions(); }
    // By device, in the order of joining: how long each was idle with work waiting, of the time that is counted.
    std::vector<Ns> idle_with_work_ns() const {
        std::vector<Ns> found;
        for (const DeviceStatus& device : scheduler_->devices())
            found.push_back(device.idle_with_work_ns);
        return found;
    }
    double devices_wanted() const {
        return scheduler_->devices_wanted(base_ns_ + last_arrival_ns_);
    }  // at the end of that
    const Digest& digest() const { return digest_; }
    const std::vector<TraceRow>& trace() const { return trace_; }
    const std::vector<Fate>& fates() const { return fates_; }  // in the order of arrival, if kept

private:
    static constexpr std::uint32_t NONE = UINT32_MAX;

    // An order, and what has become of it. Its token is its slot, its window true time, as the worker's clock tells it.
    struct Action : emulated::Order {
        Status status = Status::OK;
        bool at_worker = false;  // else on its way
        bool overran = false;    // it takes longer than it may: an execution is ended then, a load's worker begins anew
        std::uint32_t device = 0;  // of all
        std::uint32_t rows = 0;
        Ns received_ns = 0;
        Ns begin_ns = 0, end_ns = 0;
        std::vector<RequestId> requests;
    };

    struct Request {
        std::uint64_t sequence = 0;  // 0: free
        Ns arrived_ns = 0, deadline_ns = 0;
        std::uint32_t model = 0;
        std::uint32_t group = NONE;  // of closed-loop clients
        std::uint8_t class_index = 0;
        std::uint8_t priority = 0;
        bool counted = false;
        bool cancelled = false;
        std::uint32_t flying_worker = 0;
        ActionId flying = 0;  // check: the action that it was sent with
    };

    struct Device {
        std::uint32_t worker = 0, index = 0;
        ActionQueue queue;
        emulated::Device lanes;
        Ns queue_due_ns = NEVER_NS;  // when a QUEUE_DUE is due
    };

    struct WorkerState {
        WorkerId id = 0;  // 0: the controller does not know it
        std::uint32_t epoch = 0;
        bool alive = false;
        bool broken = false;  // its connection, rather than itself
        std::uint32_t first_device = 0, device_count = 0;
        std::uint32_t joins = 0;
        std::uint32_t batch_max = 0, extra_pages = 0;  // of ClusterInfo's, since it joined
        double speed = 1;
        std::uint32_t kind = 0;
        Ns there_free_ns = 0, back_free_ns = 0;  // a link keeps order
        Ns input_free_ns = 0;
        Ns there_seen_ns = 0, back_seen_ns = 0;  // what the controller has measured
        std::deque<std::pair<Ns, Ns>> pongs;     // on their way back: when the ping was sent and received
        Ns offset_ns = 0;
        double drift = 0;               // per nanosecond
        Ns synced_ns = NEVER_NS;        // true time of the newest estimate of the clock
        Ns upper_ns = 0, lower_ns = 0;  // bounds of the offset at that time
        emulated::Link link;
        std::optional<emulated::HostStore> store;
        Random random;
    };

    struct OpenState {
        Chunk chunk;
        std::size_t next = 0;
        Ns last_ns = 0;
        bool fed = false, over = false;
    };

    // setup.cpp
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
    void answer(const Command& command);
    void close(RequestId id, Request& request, Outcome outcome);
    void reported(std::uint32_t slot, std::uint32_t worker);
    void client_sends(std::uint32_t group);
    void end_slice();
    void at_rest();
    void finish();
    Slice* slice();

    // devices.cpp: the workers' side
    void join(std::uint32_t worker);
    void crash(std::uint32_t worker, bool hangs);
    void noticed(std::uint32_t worker);
    void send(std::uint32_t slot, std::uint64_t bytes);
    void send_back(std::uint32_t slot);
    bool lost(std::uint32_t worker);
    void obey_queue(std::uint32_t device, std::vector<QueueCommand>& commands);
    void deliver(std::uint32_t slot);
    void revoke(std::uint32_t worker, ActionId action_id);
    void queue_due(std::uint32_t device);
    void advance(std::uint32_t device, Lane lane);
    Ns allowed_ns(const emulated::Order& order, Ns took_ns);
    void demand_possible(const emulated::Done& done) const;
    const std::vector<std::uint32_t>& runs_of(const WorkerState& worker, std::uint32_t model);
    std::uint32_t batch_max_of(const WorkerState& worker, std::uint32_t model) const;
    void lane_end(std::uint32_t device, Lane lane);
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

    // recording.cpp: nothing is done where nothing is recorded
    void record_arrived(const clockwork::Request& request);
    void record_cancelled(RequestId id);
    void record_done(const ActionResult& result);
    void record_joined(const WorkerState& worker);
    void record_link(WorkerId worker, Ns there_ns, Ns back_ns);
    void record_ready(WorkerId worker, const ModelSpec& spec);
    void record_left(WorkerId worker);
    void record_step();
    Writer& begin_event(std::int64_t number, std::size_t fields);

    // disturbances.cpp
    void start_disturbances();
    void disturb(std::uint32_t number, bool begins);
    bool holds(const DisturbanceInfo& one, DisturbanceInfo::Kind kind, std::uint32_t worker, Ns at_ns) const;
    Ns slowed_ns(DisturbanceInfo::Kind kind, std::uint32_t worker, Ns begin_ns, Ns took_ns, ModelId model = -1) const;
    Ns stopped_until_ns(std::uint32_t worker) const;
    Ns turn_ns(Ns at_ns) const { return cluster_.disturbances.empty() ? at_ns : next_turn_ns(at_ns); }
    Ns next_turn_ns(Ns at_ns) const;
    Ns noticed_ns(const Event& event) const;

    // both
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
    Ns overlap(Ns begin_ns, Ns end_ns) const;  // of the counted time

    std::unique_ptr<Scheduler> scheduler_;
    std::vector<ModelInfo> models_;
    ClusterInfo cluster_;
    emulated::Settings settings_;  // of all devices
    std::vector<ClosedInfo> closed_;
    RunInfo run_;

    Ns now_ = 0;
    Ns base_ns_ = 0;  // when the workloads began
    Ns count_from_ = NEVER_NS, count_until_ = NEVER_NS;
    Ns last_arrival_ns_ = 0;
    Ns wake_ns_ = NEVER_NS;
    Ns io_free_ns_ = 0;  // the controller's I/O thread sends inputs until then
    Ns scheduler_ns_ = 0;
    bool touched_ = false;  // the scheduler was told something since it settled
    bool begun_ = false, over_ = false;
    std::uint64_t events_ = 0;
    EventHeap heap_;
    std::vector<OpenState> opens_;
    std::size_t nearest_ = 0, wanting_ = 0;
    std::vector<Device> devices_;
    std::vector<WorkerState> workers_;
    std::vector<std::uint32_t> worker_of_;  // by WorkerId
    std::vector<DeviceSpec> specs_;
    std::vector<std::uint32_t> runs_;               // of runs_of()         // scratch
    std::vector<std::unique_ptr<Action>> actions_;  // they stay where they are: devices refer to them
    std::vector<std::uint32_t> free_actions_;
    std::vector<Request> requests_;
    std::vector<std::uint32_t> free_requests_;
    std::uint64_t next_request_ = 0;
    std::size_t outstanding_ = 0;
    std::vector<std::vector<QueueCommand>> buffers_;
    std::uint8_t highest_arrived_ = 255;                         // priority, of this step
    std::unordered_map<ActionId, std::vector<RequestId>> done_;  // check: reported OK in this step
    std::uint64_t clients_left_ = 0;                             // of closed loops
    Random random_;
    Accounts accounts_;
    Digest digest_;
    std::vector<TraceRow> trace_;
    std::vector<Fate> fates_;
    std::unique_ptr<Recorder> recorder_;  // null: nothing is recorded
    Sentences sentences_;
    std::vector<Named> names_;
    Writer event_;  // scratch
};

}  // namespace clockwork::sim
