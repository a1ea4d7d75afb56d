// The road of an action through a worker, without Python: from the controller's message to its device's lanes, and from
// there to the result.
//
//     DEALER -> ActionMessage -> Order -> ActionQueue -> Port -> lanes -> Outlet -> result -> DEALER
//
// One record, the Order, lives from a message to its result; its frames stay where libzmq received them. One thread runs
// the road. It owns the socket and takes every message, of which Python is given what is rare, as Notices: all other kinds
// of messages, malformed ones, changes of the connection, inputs in clients' memory, checks before loads, faults. So
// nothing that holds the interpreter's lock delays an action.
//
// Any thread may call what is public. Each call takes the road's lock, which the thread gives up while it waits.
#pragma once

#include <poll.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "device/port.h"
#include "id_table.h"
#include "wire/dealer.h"
#include "wire/messages.h"
#include "worker/clock.h"
#include "worker/queue.h"
#include "worker/results.h"
#include "worker/watch.h"

namespace clockwork::worker {

// What Python is to do, or to know.
struct Notice {
    enum Kind : std::uint8_t {
        MESSAGE,  // `frames`, of a message that is Python's
        NEWS,     // of the socket's monitor: `number` is the event, `value` its value
        SHARED,   // `frames`, of an INFER with inputs in a client's memory
        ENDED,    // `order`, which release() frees: its result is Python's to make
        CHECK,    // LOADs of model `number` wait for a check of its stored bytes
        FAULT,    // device `number` is broken: its orders wait for lost()
        STUCK,    // action `number` on device `value` does not end; `text`: the operation
        REVOKE,   // action `number`, which the road does not hold
        TWICE,    // action `number` came twice; the second is dropped
        UNSENT,   // the controller takes no more: the session is over
        DRAINED,  // nothing is held any more
        FAILED,   // the road has ended by a defect of its own: `text` says which
    };

    Kind kind = MESSAGE;
    std::int64_t number = 0;
    std::int64_t value = 0;
    Ns now_ns = 0;  // when it came
    std::vector<std::string> frames = {};
    std::string text = {};
    device::Order* order = nullptr;
};

// What results are compared with. Dimensions of -1 may be anything.
struct Declared {
    struct Output {
        int dtype = 0;
        std::vector<std::int64_t> dims;
        bool is_any_shape = false;
    };
    std::vector<Output> outputs;
    bool verified = false;  // the fixed dimensions were seen at registration; else only types are compared
    bool batches = false;
    std::int64_t strings_max = 0;
    std::int64_t output_bytes_max = 0;
};

struct RoadBounds {
    Limits limits;
    std::size_t messages_per_turn = 64;
    std::size_t frames_per_message = 0;
    std::size_t queued_actions = 0;      // of each device
    std::size_t notice_bytes = 0;        // of messages that Python has not taken: beyond it none is received
    std::size_t copied_frame_bytes = 0;  // outputs below this are copied into libzmq's own memory
    std::size_t jitter_window = 0;       // timed waits over which jitter_p99_ns() tells
};

// How long the thread waits between two turns when another thread wants the lock and there is more to do.
inline constexpr Ns HANDOVER_NS = 20'000;

class Road {
public:
    // socket_fds: of the socket and of its monitor. As long as the road runs, these stay open and are nobody else's, and
    // ports and outlets stay good. Throws std::system_error if there is no descriptor.
    Road(const DealerSocket& socket, const std::array<int, 2>& socket_fds, const Clock& clock,
         const RoadBounds& bounds);
    ~Road();
    Road(const Road&) = delete;
    Road& operator=(const Road&) = delete;

    // Before start().
    void add_device(const device::Port& port, std::uint32_t run_ahead);
    void add_outlet(const device::Outlet& outlet);
    void start();
    // The thread ends. Nothing is received or answered any more, and orders that no device has are freed.
    void stop();

    // ----- the session

    // Whether actions are taken. A WorkerWelcome takes that back, until Python has seen it.
    void serve(bool serves);
    // False if the connection's queue is full. `frames`: what follows the header.
    bool send(std::string_view header, const std::vector<std::string_view>& frames);
    // The devices that are left, in order, are numbered anew: `kept` are their numbers so far. Nothing may be held.
    void renumber(const std::vector<std::uint32_t>& kept);
    // Forgets every action. Devices end what they have.
    void reset();
    // Answers every action as ACTION_CANCELLED, but for one that has an outcome, and refuses all that come.
    struct Outcome {
        std::int64_t action_id = 0;  // 0: none
        Status status = Status::OK;
        std::string text;
    };
    void cancel(const Outcome& outcome);
    // Has DRAINED be told once nothing is held.
    void drain();

    // ----- models

    void model_ready(std::int64_t model_id, std::shared_ptr<const Declared> declared);
    // absence: why actions may not name the model; empty: it is not known.
    void model_gone(std::int64_t model_id, std::string_view absence);
    // Its stored bytes are whole: what waited for that starts.
    void model_whole(std::int64_t model_id);

    // ----- actions

    // Takes an action that Python was given because the session had not begun. False if it is none.
    bool deliver(const std::vector<std::string_view>& frames, Ns now);
    // Queues an INFER whose inputs have been copied from a client's memory, or refuses it. header, frames: of its message,
    // where views[i] replaces the bytes of tensor i. ENDED follows in place of its result. keeper: of the bytes.
    void receive_copied(std::string_view header, const std::vector<std::string_view>& bytes,
                        std::unique_ptr<device::Keeper> keeper, Ns now);
    void release(device::Order* order);
    bool holds(std::int64_t action_id);
    // A fault of the device was told: its orders are answered again.
    void lost(std::uint32_t device);

    // ----- what it tells

    int notice_fd() const { return notice_fd_; }
    std::deque<Notice> take_notices();
    std::size_t count();  // actions that are not answered
    struct DeviceCounts {
        std::size_t queued = 0;
        std::size_t started = 0;
    };
    DeviceCounts counts(std::uint32_t device);
    Ns jitter_p99_ns();
    // What was received since the last call, of all messages; is_drained: at some time none was left.
    struct Received {
        std::uint64_t bytes = 0;
        std::uint64_t frames = 0;
        bool is_drained = false;
    };
    Received take_received();

private:
    struct Device {
        device::Port port;
        std::unique_ptr<ActionQueue> queue;
        RunWatch executes, loads, fetches, checks;
        std::vector<device::Order*> stalled;  // that ended on a broken device, whose fault is not told yet
        bool is_lost = false;                 // and told
        bool is_faulty = false;               // and not told

        bool is_watched() const {
            return executes.is_busy() || loads.is_busy() || fetches.is_busy() || checks.is_busy();
        }
    };

    struct Model {
        std::shared_ptr<const Declared> declared;
        bool is_whole = false;
    };

    // The lock, for another thread than the road's.
    class Held {
    public:
        explicit Held(Road& road);
        ~Held();

    private:
        Road& road_;
    };
    friend class Held;

    void run();
    void turn();
    bool take_at_end();
    void fail(const std::exception& error);
    bool receive_message(Ns now);
    bool take_action(std::int64_t tag, Ns now);
    void note_forgotten(std::string_view header);
    void give_message(Notice::Kind kind, Ns now);
    void note_views();
    void queue_action(std::unique_ptr<device::Keeper> keeper, bool is_lent, Ns now);
    void revoke(std::int64_t action_id, Ns now);
    void run_due(Ns now);
    void obey(std::uint32_t number, Ns now);
    void start_order(device::Order* order);
    bool waits_for_check(device::Order* order);
    void reject(device::Order* order, Status status, std::string_view text);
    void end_started(device::Order* order, Status status, std::string_view text, Ns now);
    std::string absence_of(std::int64_t model_id) const;
    void start_checked(std::int64_t model_id, Ns now);
    void take_ended(Ns now);
    void on_ended(device::Order* order, Ns now);
    void answer(device::Order* order, Ns now);
    bool is_as_declared(const device::Order& order) const;
    void send_result(device::Order& order);
    void refuse(std::int64_t action_id, Status status, std::string_view text, Ns received_ns);
    bool send_header(std::string_view header, bool more);
    void forget(device::Order* order);
    void forget_all();
    void free_order(device::Order* order);
    void watch(Ns now);
    Ns expected_ns(std::int64_t action_id) const;
    void judge(std::uint32_t number, RunWatch& watch, std::int64_t action_id, const char* operation, Ns limit_ns,
               bool can_end, Ns now);
    Ns due_ns() const;
    void notify(Notice&& notice);
    void read_news();
    void wake();
    void note_late(Ns late_ns);
    device::Order* find(std::int64_t action_id) const;

    DealerSocket socket_;
    Clock clock_;
    RoadBounds bounds_;
    std::vector<Device> all_;             // every device, in the order of add_device()
    std::vector<std::uint32_t> numbers_;  // of `all_`: what the controller's numbers mean
    std::vector<device::Outlet> outlets_;
    std::vector<pollfd> descriptors_;
    std::size_t wake_place_ = 0;  // among the descriptors
    int wake_fd_ = -1;
    int notice_fd_ = -1;

    std::mutex mutex_;
    std::atomic<int> waiting_{0};  // threads that want the lock
    bool is_stopping_ = false;
    Ns sleeps_until_ns_ = 0;  // the thread waits, and begins a turn then; 0: it does not wait
    bool has_input_ = true;   // the socket may have a message
    bool has_news_ = true;    // the monitor may have an event
    std::thread thread_;

    bool serves_ = false;
    bool is_cancelled_ = false;
    bool is_draining_ = false;
    std::unordered_map<std::int64_t, Model> models_;
    std::unordered_map<std::int64_t, std::string> absences_;
    IdTable slots_;                       // of held actions, by id
    std::vector<device::Order*> orders_;  // by slot; null: it is free
    std::vector<std::uint32_t> free_slots_;
    std::vector<device::Order*> unchecked_;  // their queues count them as started; the devices have not seen them
    std::vector<QueueCommand> commands_;
    Ns watch_ns_ = NEVER_NS;

    std::vector<Frame> message_;  // its header first
    wire::ActionMessage action_;
    device::Views views_;  // of its inputs
    HeaderFlaw flaw_;
    ResultWriter results_;
    std::deque<Notice> notices_;
    std::size_t notice_bytes_ = 0;
    Received received_;
    std::vector<Ns> late_;
    std::size_t late_next_ = 0;
};

}  // namespace clockwork::worker
