// The road of requests and results through the controller: from the sockets to the scheduler, and its orders and answers
// back.
//
// run() is the controller's loop: wait; take what the sockets hold and handle it message by message; when all has been
// noted, have the scheduler decide; carry out its orders. Requests, cancellations and results are read, checked and
// admitted here, whatever they are; of a wrong one wrong() says what is wrong, and Python makes a sentence of that. run()
// returns where it needs Python: for that, and for every kind of message and order that is rare. Called again, it goes on
// from there. Not thread safe; needs no GIL.
//
// Its parts: the loop (exchange.cpp), requests (requests.cpp), their copies for shadows (copies.cpp), what models and
// routes they are for (routes.cpp), orders (orders.cpp), results (results.cpp), answers (answers.cpp) and counts
// (counting.cpp). What a message must be is in messages.cpp and checks.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "controller/checks.h"
#include "controller/descriptor_wait.h"
#include "controller/lookups.h"
#include "controller/loop_times.h"
#include "controller/messages.h"
#include "controller/models.h"
#include "controller/now.h"
#include "controller/orders.h"
#include "controller/port.h"
#include "controller/python_time.h"
#include "controller/recorder.h"
#include "controller/requests.h"
#include "controller/routes.h"
#include "controller/sentences.h"
#include "controller/shadows.h"
#include "id_table.h"
#include "scheduler/pool.h"
#include "scheduler/scheduler.h"

namespace clockwork {

// Of texts that refer() remembers.
inline constexpr std::size_t REFERENCES_MAX = 65'536;

// What is wrong with the current message, and with what it was held against.
struct Wrong {
    bool is_request = false;
    std::int64_t id = 0;  // of the request or action; 0 where it cannot be read
    HeaderFlaw header;    // it is malformed, if this is not NONE; else:
    Flaw flaw;
    ModelId model_id = 0;                             // 0: none was found
    std::shared_ptr<const ModelInterface> interface;  // null: it was not held against one
    const std::vector<TensorRef>* tensors = nullptr;  // that the message describes
    const std::vector<std::int64_t>* dims = nullptr;
};

struct ExchangeBounds {
    std::size_t drain_messages = 256;      // config.DRAIN_BATCH_EVENTS
    std::size_t message_frames = 65'536;   // config.FRAMES_MAX
    std::size_t turn_bytes = 256 << 10;    // config.TURN_HEADER_BYTES
    Ns turn_python_ns = SECOND / 200;      // config.TURN_PYTHON_NS
    std::int64_t priority_default = 4;     // config.PRIORITY_DEFAULT
    std::size_t queued_requests = 65'536;  // config.QUEUED_REQUESTS_MAX
    ConnectionBounds connections[2];       // of the workers' socket, and of the clients'
};

// What there is no slot for.
inline constexpr std::uint32_t NO_SLOT = ~std::uint32_t{0};

class Exchange {
public:
    enum Side { WORKERS, CLIENTS };

    // Where in a turn run() is.
    enum Stage { WAIT, TAKE, HANDLE, LOOK, SETTLE, EXECUTE, DONE, END };
    static constexpr int STAGES = END + 1;

    // What run() needs of Python.
    enum Need {
        NOTHING,       // run() never says so
        OTHER,         // look at signals, other descriptors and timers
        WORKERS_LEFT,  // connections of peers have ended: see ended()
        CLIENTS_LEFT,
        WORKER_MESSAGE,  // current() is Python's
        CLIENT_MESSAGE,
        WRONG_RESULT,  // current() is wrong: wrong() says in what
        WRONG_REQUEST,
        ORDER,        // order_place() is Python's
        ORDERS_DONE,  // of a decision of which Python wants to know: it clears the scheduler's `out`
        PAUSED,       // between two decisions, as pause() asked for
    };

    // descriptors: of the sockets and their monitors; others: for which run() returns, as they become readable.
    Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences, Lookups lookups,
             ExchangeBounds bounds, std::shared_ptr<Ring> ring);
    void wait_on(const std::vector<int>& descriptors, const std::vector<int>& others) {
        waiting_.wait_on(descriptors, others);
    }

    // ----- the loop ----------------------------------------------------------------------------

    // Serves until Python is needed, or the time is `until` (then it needs OTHER).
    Need run(Ns until);
    // Have run() need PAUSED once: as soon as nothing more has come, or at the end of the turn of this time.
    void pause(Ns by) { pause_by_ns_ = by; }
    // When the turn began that run() is in: what all events of it say.
    Ns now() const { return now_; }
    const Arrival& current() const { return ports_[side_].current(); }
    Haul& batch() { return ports_[side_].haul(); }
    const Wrong& wrong() const { return wrong_; }
    std::size_t order_place() const { return order_ - 1; }
    // Python noted something with the scheduler: an event that it has encoded for recorder().
    void note(std::string_view event) {
        dirty_ = true;
        if (recorder_.is_on())
            recorder_.noted(event);
    }
    Recorder& recorder() { return recorder_; }
    // Peers that could not be reached while sending: slots of clients, ids of workers. Cleared by the caller.
    std::vector<std::uint32_t> lost_clients;
    std::vector<WorkerId> lost_workers;

    // A port's connections, and messages that are Python's to send.
    Port& port(Side side) { return ports_[side]; }

    // ----- clients -----------------------------------------------------------------------------

    // Its slot, or NO_SLOT if the connection that its hello came on has ended: whoever says hello and closes at once
    // may be read after the end of his connection. key: of the connection, "" if it has none.
    std::uint32_t client_joined(std::string_view identity, int fd, std::string_view key);
    // Nothing is sent to it any more; what it waits for is cancelled before the next decision.
    void client_left(std::uint32_t client);
    // Answers everything that is held, and forgets it: the end.
    void fail_all(Status status, std::string_view text);
    std::size_t held_count() const { return held_.size(); }
    std::size_t copy_count() const { return shadow_count_; }  // of these, that are for shadows

    // ----- workers -----------------------------------------------------------------------------

    // Like client_joined().
    std::uint32_t worker_joined(std::string_view identity, int fd, std::string_view key, WorkerId worker_id,
                                std::size_t device_count);
    void worker_left(std::uint32_t worker);
    WorkerLink& worker(std::uint32_t slot) { return *workers_.at(slot); }
    // Ends an action, or all that it has under way, as a failure of the device: what it said of it makes no sense, or it
    // is let go. False if there is no such action.
    bool fail_action(std::uint32_t worker, ActionId action_id, std::string_view text);
    void fail_actions(std::uint32_t worker, std::string_view text);

    // ----- models ------------------------------------------------------------------------------

    void serve(ModelId model_id, std::int64_t version, std::string_view label, Ns slo_ns,
               std::shared_ptr<const ModelInterface> interface);
    void forget(ModelId model_id);
    // The models that requests for this text are for, with their shares of SHARE_WHOLE, and to which (0: none) so many
    // are copied. A shadow that it has already goes on with its results. What is not routed is asked of Python.
    void route(std::string_view text, const std::vector<std::pair<ModelId, std::int64_t>>& shares, ModelId shadow = 0,
               std::int64_t copies = 0, double tolerance = 0);
    // Null where nothing is copied.
    ShadowTally* shadow_tally(std::string_view text) const;
    void unroute(std::string_view text);
    // What was looked up may be something else now.
    void forget_references() { references_.clear(); }
    ServedModel* find_model(ModelId model_id);
    // The numbers of shapes that the scheduler does not know any more are others' soon.
    void forget_shapes();

    const Outcomes& outcomes() const { return outcomes_; }
    // How late the loop is, and what its time goes to.
    LoopTimes<STAGES>& times() { return times_; }
    std::uint64_t refusals(Reason reason) const { return refusals_[static_cast<std::size_t>(reason)]; }

    // Copies that the scheduler has at once: as many as there are devices.
    std::size_t shadow_width = 1;

    // Whose memory every worker sees; see check_request().
    std::int64_t shared_machine = 0;

private:
    struct Hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
    };
    // Never iterated over.
    template <typename Value>
    using ByText = std::unordered_map<std::string, Value, Hash, std::equal_to<>>;
    struct HashShape {
        std::size_t operator()(const std::vector<std::int64_t>& shape) const {
            std::uint64_t hash = 0x9E3779B97F4A7C15ull;
            for (std::int64_t one : shape)
                hash = (hash ^ static_cast<std::uint64_t>(one)) * 0xBF58476D1CE4E5B9ull;
            return static_cast<std::size_t>(hash ^ hash >> 31);
        }
    };

    struct Outputs {
        ResultHeader header;
        std::uint32_t first_frame = 0;
        bool is_distinct = false;  // no frame is named twice: they can be given away
    };
    // Whom a request is for.
    struct Target {
        ServedModel* model = nullptr;  // null: nobody
        Route* copied_by = nullptr;    // whose shadow gets a copy
    };

    Need step(Ns until);
    // Has Python look something up; what that takes counts towards the side's budget.
    template <typename LookUp>
    void ask(LookUp look_up) {
        Ns began_ns = clock_ns();
        if (look_up() == 0)
            throw LookupFailed();
        python_.add(clock_ns() - began_ns);
    }
    // Whether something has come that was not taken yet.
    bool has_input() const { return ports_[WORKERS].has_input() || ports_[CLIENTS].has_input(); }
    Need handle();
    bool execute();
    void end_turn();
    void cancel_departed();
    Need from_client(const Arrival& arrival);
    Need from_worker(const Arrival& arrival);
    Need infer(ClientLink& client, const Arrival& arrival);
    Need cancel(ClientLink& client, const Arrival& arrival);
    Need result(WorkerLink& worker, const Arrival& arrival);
    Need note_wrong(Need need, std::int64_t id);
    Need note_wrong(const Flaw& flaw, const Target& target);
    void read_frames(Haul& batch, const Arrival& arrival);
    Target target_of(std::string_view text);
    std::uint32_t shape_number(const std::vector<std::int64_t>& shape);
    HeldRequest& hold(ClientLink* client, std::int64_t request_id, ServedModel& model);
    bool has_room(std::uint64_t bytes) const;
    void copy(HeldRequest& first, Route& copier, Ns slo_ns);
    HeldRequest& make_copy(HeldRequest& first, Route& copier);
    void send_copy(HeldRequest& copy, std::uint32_t rows, std::uint32_t shape, std::uint64_t bytes, Ns slo_ns,
                   std::int64_t priority);
    void keep_answer(HeldRequest& one, Outputs& result, std::size_t part);
    void unpair(HeldRequest& one);
    void give_back(ShadowPair* pair);
    Ns next_shadow_ns();
    void cancel_shadows();
    void feed_shadows();
    void give_up(HeldRequest& copy);
    Ns deadline_ns(Ns slo_ns) const;
    void arrive(HeldRequest& held, std::uint32_t rows, std::uint32_t shape, std::uint64_t bytes,
                std::uint64_t copied_bytes, Ns deadline, std::int64_t priority);
    void cancel(const HeldRequest& held);
    void release(HeldRequest& held);
    HeldRequest& held(RequestId request_id);
    WorkerLink* worker_of(WorkerId worker_id);

    void send_infer(const Command& command);
    void send_profile(const Command& command);
    void send_order(const Command& command, std::int64_t tag, ActionKind kind);
    void send_revoke(const Command& command);
    void answer_ok(const Command& command);
    void answer_failed(const Command& command);
    std::string_view failure_text(const Command& command, const HeldRequest& one);
    void record_order(const Command& command);
    std::string_view recorded_shape(std::uint32_t number);
    void refuse_unread(const Command& command, const HeldRequest& one, std::uint64_t bytes);
    void fail(const HeldRequest& one, Status status, std::string_view text, const Command* refusal);
    void head(const Command& command, std::int64_t tag, std::size_t fields);
    void window(const Command& command, const WorkerLink& worker);
    bool to_worker(WorkerLink& worker, bool more);
    Expected& note_sent(WorkerLink& worker, ActionId action_id, ActionKind kind, std::int32_t device, ModelId model_id);
    void end_action(WorkerLink& worker, const ActionResult& done, std::string_view text);
    bool to_client(ClientLink& client, bool more);

    void count_answered(const HeldRequest& one, const Command& command, const ResultHeader& done);
    void count_failed(const HeldRequest& one, const Command& command);
    void count_invalid(ServedModel& model);
    void count_done(WorkerLink& worker, const Expected& sent, const ResultHeader& result);

    Scheduler& scheduler_;
    Port ports_[2];
    Ns look_ns_ = 0;  // when connections are next looked at
    Sentences sentences_;
    Lookups lookups_;
    ExchangeBounds bounds_;
    Ns now_ = 0;
    Ns wake_ns_ = NEVER_NS;
    Ns pause_by_ns_ = NEVER_NS;  // see pause()
    bool dirty_ = false;

    Stage stage_ = WAIT;
    DescriptorWait waiting_;
    LoopTimes<STAGES> times_;
    bool others_ready_ = false;
    bool stopped_at_order_ = false;
    Side side_ = WORKERS;
    PythonTime python_;
    std::size_t order_ = 0;         // behind the order that is being carried out
    std::vector<Outputs> results_;  // the first result_count_ of them are this turn's
    std::size_t result_count_ = 0;
    IdTable result_of_;  // action id: place in results_

    Pool<HeldRequest> held_pool_;
    IdTable held_;  // by our id: slot
    std::vector<std::uint32_t> departed_;
    RequestId next_request_ = 1;
    Pool<ClientLink> clients_;
    ByText<std::uint32_t> client_of_;
    Pool<WorkerLink> workers_;
    ByText<std::uint32_t> worker_of_identity_;
    IdTable worker_of_id_;
    std::unordered_map<ModelId, std::unique_ptr<ServedModel>> models_;  // never iterated over
    std::vector<std::unique_ptr<ServedModel>> forgotten_;               // with requests that are still held
    ByText<Route> routes_;
    ByText<ServedModel*> references_;
    std::unordered_map<std::vector<std::int64_t>, std::uint32_t, HashShape> shapes_;  // never iterated over
    std::vector<std::int64_t> last_shape_;
    std::uint32_t last_number_ = 0;
    bool has_last_ = false;

    Pool<ShadowPair> pairs_;
    std::size_t shadow_count_ = 0;
    std::size_t shadow_bytes_ = 0;
    struct Due {
        Ns at_ns;
        RequestId id;
        bool operator>(const Due& other) const { return std::pair(at_ns, id) > std::pair(other.at_ns, other.id); }
    };
    struct WaitingCopy {
        RequestId id;
        std::uint32_t rows;
        std::uint32_t shape;
        std::uint64_t bytes;
        std::int64_t priority;
    };
    std::deque<WaitingCopy> copies_waiting_;  // in the order of arrival; some have been given up
    std::size_t copies_sent_ = 0;             // that the scheduler has
    std::vector<Due> shadows_due_;            // a heap: when the copies have waited long enough
    std::vector<RequestId> shadows_moot_;     // whose request was not answered
    Accepted copy_accepted_;
    Comparer comparer_;

    InferRequestHeader request_;
    CancelHeader cancel_;
    Accepted accepted_;
    FrameBytes frames_;
    Wrong wrong_;
    std::vector<std::int64_t> profiled_;
    Writer writer_;
    Frame spare_;
    std::vector<HeldRequest*> sending_;
    Recorder recorder_;
    Outcomes outcomes_;
    std::uint64_t refusals_[REASONS] = {};
};

}  // namespace clockwork
