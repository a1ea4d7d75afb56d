// The native road of an action through a worker: from the controller's message to the device's lanes, and
// from there to the result.
//
//   DEALER -> ActionMessage -> Order -> ActionQueue -> DevicePort -> lanes -> DeviceOutlet -> DEALER
//
// A single record, the Order, lives from a message to its result; its frames stay where libzmq received them.
// A thread runs the road. It owns the socket and receives every message. Rare events go to Python as Notices:
// other kinds of messages, malformed messages, changes of the connection, checks before loads, faults.
// Therefore no holder of the interpreter's lock delays an action.
//
// Any thread may call the public methods. Each call takes the road's lock, which the road's thread releases
// while it waits.
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
#include "worker/lending.h"
#include "worker/queue.h"
#include "worker/results.h"
#include "worker/watch.h"

namespace clockwork::worker {

// An event that Python handles.
struct Notice {
    enum Kind : std::uint8_t {
        MESSAGE,  // `frames` of a message that Python handles
        NEWS,     // an event of the socket's monitor: `number`, with its `value`
        ENDED,    // `order`, whose outputs differ from the model: answer_ended() answers and frees it
        CHECK,    // LOADs of model `number` wait for a check of its stored bytes
        FAULT,    // device `number` is broken: its orders wait for lost()
        STUCK,    // action `number` on device `value` does not end; `text`: the operation
        TWICE,    // action `number` came twice; the second is dropped
        UNSENT,   // the controller takes no more messages: the session has ended
        DRAINED,  // the road holds no action any more
        FAILED,   // the road has ended by a defect of its own, described in `text`
        // action `number` fetches or drops model `value` in the worker's store: store_ended() answers it
        STORE_FETCH,
        STORE_DROP,
    };

    Kind kind = MESSAGE;
    std::int64_t number = 0;
    std::int64_t value = 0;
    Ns now_ns = 0;  // the time of the event; STORE_FETCH: the time by which it is to have ended
    std::vector<std::string> frames = {};
    std::string text = {};
    device::Order* order = nullptr;
};

// The declared outputs, with which results are compared. A dimension of -1 has any size.
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
    std::size_t queued_actions = 0;  // bound on the queued actions of each device
    // Bytes of messages that Python has not taken; above it the road receives none
    std::size_t notice_bytes = 0;
    std::size_t copied_frame_bytes = 0;  // smaller outputs are copied into libzmq's memory
    std::size_t jitter_window = 0;       // the number of timed waits that jitter_p99_ns() covers
    LendingBounds lending;
};

// The thread's pause between two turns if another thread wants the lock and more work is left.
inline constexpr Ns HANDOVER_NS = 20'000;

// Inputs of answered orders that are kept, so that the next orders allocate nothing.
inline constexpr std::size_t SPARE_INPUTS_MAX = 256;

class Road {
public:
    // socket_fds: descriptors of the socket and of its monitor. As long as the road runs, it owns both, and
    // ports and outlets stay valid. Throws std::system_error if no descriptor is left.
    Road(const DealerSocket& socket, const std::array<int, 2>& socket_fds, const Clock& clock,
         const RoadBounds& bounds);
    ~Road();
    Road(const Road&) = delete;
    Road& operator=(const Road&) = delete;

    // Called before start().
    void add_device(const device::DevicePort& port, std::uint32_t run_ahead);
    void add_outlet(const device::DeviceOutlet& outlet);
    // Has Python carry out FETCH and DROP, also of models that no device knows: the worker's store of
    // prepared models has a bound.
    void keep_store();
    void start();
    // Ends the thread, receptions and answers, and frees the orders that no device holds.
    void stop();

    // ----- the session

    // Sets whether actions are taken. A WorkerWelcome clears this until Python has seen the message.
    void serve(bool serves);
    // Takes another socket, which dials another controller, in place of its own, which it does not use any
    // more. Notices of the other connection are dropped.
    void adopt(const DealerSocket& socket, const std::array<int, 2>& socket_fds);
    // Sends a message. False if the connection's queue is full. frames: the frames behind the header.
    bool send(std::string_view header, const std::vector<std::string_view>& frames);
    // Renumbers the remaining devices in order. kept: their old numbers. No action may be held.
    void renumber(const std::vector<std::uint32_t>& kept);
    // Forgets every action. Devices end the orders that they hold.
    void reset();
    // Answers the action of `outcome` with it and all others as ACTION_CANCELLED; refuses later actions.
    struct Outcome {
        std::int64_t action_id = 0;  // 0: no action
        Status status = Status::OK;
        std::string text;
    };
    void cancel(const Outcome& outcome);
    // Requests the notice DRAINED, which comes once no action is held.
    void drain();

    // ----- models

    void model_ready(std::int64_t model_id, std::shared_ptr<const Declared> declared);
    // absence: the reason for which actions may not name the model; empty: the model is unknown.
    void model_gone(std::int64_t model_id, std::string_view absence);
    // Starts the orders that waited for the check of the model's files: the files are whole.
    void model_whole(std::int64_t model_id);

    // ----- actions

    // Takes an action that Python received because the session had not begun. False if it is no action.
    bool deliver(const std::vector<std::string_view>& frames, Ns now);
    // Answers the order of a notice ENDED, and frees it. text: the sentence with which it fails; "": its
    // outputs are sent.
    void answer_ended(device::Order* order, std::string_view text);
    void release(device::Order* order);
    // Answers the action of a notice STORE_FETCH or STORE_DROP. Does nothing if it was forgotten with its
    // session.
    void store_ended(std::int64_t action_id, Status status, std::string_view text);
    bool holds(std::int64_t action_id);
    // Called after the fault of a broken device was sent. Answers the device's ended orders, which were held
    // back until then; later ones are answered as they end.
    void lost(std::uint32_t device);

    // ----- counts

    int notice_fd() const { return notice_fd_; }
    std::deque<Notice> take_notices();
    std::size_t count();  // the number of unanswered actions
    struct DeviceCounts {
        std::size_t queued = 0;
        std::size_t started = 0;
    };
    DeviceCounts counts(std::uint32_t device);
    Ns jitter_p99_ns();
    // The reception since the last call, of all messages. is_drained: at some time no message was left.
    struct Received {
        std::uint64_t bytes = 0;
        std::uint64_t frames = 0;
        bool is_drained = false;
    };
    Received take_received();
    std::int64_t copied_bytes();  // held by copies of inputs from clients' memory
    // Gives memory that has been unused for a while back to the system.
    void tidy(Ns now);

private:
    struct Device {
        device::DevicePort port;
        std::unique_ptr<ActionQueue> queue;
        RunWatch executes, loads, fetches, checks;
        // orders that ended on the broken device before its fault was sent
        std::vector<device::Order*> stalled;
        bool is_lost = false;    // the device is broken, and the fault was sent
        bool is_faulty = false;  // the device is broken, and the fault was not sent yet

        bool is_watched() const {
            return executes.is_busy() || loads.is_busy() || fetches.is_busy() || checks.is_busy();
        }
    };

    struct Model {
        std::shared_ptr<const Declared> declared;
        bool is_whole = false;
    };

    // The road's lock, held by a thread other than the road's.
    class Held {
    public:
        explicit Held(Road& road);
        ~Held();

    private:
        Road& road_;
    };
    friend class Held;

    void run();
    void wait(std::unique_lock<std::mutex>& lock);
    void turn();
    bool take_at_end();
    void fail(const std::exception& error);
    bool receive_message(Ns now);
    bool take_action(std::int64_t tag, Ns now);
    void note_forgotten(std::string_view header);
    void give_message(Notice::Kind kind, Ns now);
    void note_views();
    void queue_action(std::unique_ptr<HeldInputs> inputs, Ns now);
    std::unique_ptr<HeldInputs> take_inputs();
    void recycle(device::Order& order);
    void begin_copies(Ns now);
    void take_copies(Ns now);
    void use_news(Ns now);
    void queue_copied(Arriving& arriving, Ns now);
    void revoke(std::int64_t action_id, Ns now);
    void run_due(Ns now);
    void obey(std::uint32_t number, Ns now);
    void start_order(device::Order* order, Ns now);
    bool is_stores(ActionKind kind) const { return keeps_store_ && lane_of(kind) == LaneKind::FETCH; }
    bool waits_for_check(device::Order* order);
    void reject(device::Order* order, Status status, std::string_view text);
    void end_started(device::Order* order, Status status, std::string_view text, Ns now);
    std::string absence_of(std::int64_t model_id) const;
    void start_checked(std::int64_t model_id, Ns now);
    void take_ended(Ns now);
    void on_ended(device::Order* order, Ns now);
    void answer(device::Order* order, Ns now);
    bool is_as_declared(const device::Order& order) const;
    void send_result(device::Order& order, Ns now);
    void send_outgoing(Outgoing& outgoing);
    void refuse(std::int64_t action_id, Status status, std::string_view text, Ns received_ns);
    bool send_header(std::string_view header, bool more);
    void forget(device::Order* order);
    void note_drained();
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
    bool is_held(std::int64_t action_id) const;

    DealerSocket socket_;
    Clock clock_;
    RoadBounds bounds_;
    std::vector<Device> all_;             // every device, in the order of add_device()
    std::vector<std::uint32_t> numbers_;  // indices in `all_`, by the controller's number
    std::vector<device::DeviceOutlet> outlets_;
    std::vector<pollfd> descriptors_;
    std::size_t wake_place_ = 0;  // the index of the wake-up descriptor
    int wake_fd_ = -1;
    int notice_fd_ = -1;

    std::mutex mutex_;
    std::atomic<int> waiting_{0};  // the number of threads that want the lock
    bool is_stopping_ = false;
    Ns sleeps_until_ns_ = 0;  // the end of the thread's wait; 0: it does not wait
    bool has_input_ = true;   // the socket may have a message
    bool has_news_ = true;    // the monitor may have an event
    std::thread thread_;

    bool serves_ = false;
    bool is_cancelled_ = false;
    bool is_draining_ = false;
    std::unordered_map<std::int64_t, Model> models_;
    std::unordered_map<std::int64_t, std::string> absences_;
    IdTable slots_;                       // slots of held actions, by id
    std::vector<device::Order*> orders_;  // orders by slot; null: a free slot
    std::vector<std::uint32_t> free_slots_;
    // orders started for their queues, but held back from their devices
    std::vector<device::Order*> unchecked_;
    std::vector<device::Order*> storing_;  // orders that Python carries out in the worker's store
    bool keeps_store_ = false;
    std::vector<QueueCommand> commands_;
    Ns watch_ns_ = NEVER_NS;

    std::vector<Frame> message_;  // frames of the message, its header first
    wire::ActionMessage action_;
    device::RequestTensors views_;  // views of the action's inputs
    HeaderFlaw flaw_;
    ResultWriter results_;
    Outgoing outgoing_;
    std::atomic<bool> has_ended_copies_{false};  // Lending has copies to take
    std::vector<std::unique_ptr<HeldInputs>> spare_inputs_;
    Lending lending_;
    LendingNews lending_news_;
    std::deque<Notice> notices_;
    std::size_t notice_bytes_ = 0;
    Received received_;
    std::vector<Ns> late_;
    std::size_t late_next_ = 0;
};

}  // namespace clockwork::worker
