// The exchange's loop: the stages of a turn, what the sockets hold, and peers' connections.
#include "controller/exchange.h"

#include <algorithm>
#include <utility>

namespace clockwork {

namespace {

// See HaulBounds.
constexpr std::size_t HAUL_FRAMES_MAX = 65'536;

bool is_results(std::int64_t tag) { return tag == TAG_RESULT; }
bool is_requests(std::int64_t tag) { return tag == TAG_INFER_REQUEST || tag == TAG_CANCEL; }

}  // namespace

Exchange::Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
                   Lookups lookups, ExchangeBounds bounds, std::shared_ptr<Ring> ring)
    : scheduler_(scheduler),
      ports_{Port(workers, bounds.connections[WORKERS], is_results),
             Port(clients, bounds.connections[CLIENTS], is_requests)},
      sentences_(std::move(sentences)),
      lookups_(lookups),
      bounds_(bounds),
      recorder_(std::move(ring)) {}

Exchange::Need Exchange::run(Ns until) {
    times_.lap(STAGES);
    python_.settle();
    for (;;) {
        Stage stage = stage_;
        Need need = step(until);
        times_.lap(stage);
        if (WORKER_MESSAGE <= need && need <= WRONG_REQUEST)
            python_.begin();
        if (need != NOTHING)
            return need;
    }
}

Exchange::Need Exchange::step(Ns until) {
    switch (stage_) {
        case WAIT: {
            bool is_late = has_input();
            // What is there already has come since the turn before took what there was.
            Ns late_ns = is_late ? now_ : NEVER_NS;
            others_ready_ = waiting_.wait(is_late ? 0 : std::min({until, wake_ns_, look_ns_, next_shadow_ns()}));
            now_ = clock_ns();
            times_.begin_turn(std::min({late_ns, wake_ns_, now_}));
            side_ = WORKERS;
            stage_ = TAKE;
            break;
        }
        case TAKE:
            python_.reset();
            stage_ = HANDLE;
            if (Port& port = ports_[side_];
                port.has_rest() ||
                port.take({bounds_.drain_messages, HAUL_FRAMES_MAX, bounds_.message_frames, bounds_.turn_bytes}, now_))
                times_.note_work();
            break;
        case HANDLE:
            cancel_departed();
            if (Need need = handle(); need != NOTHING)
                return need;
            if (ports_[side_].has_ends_due())
                return side_ == WORKERS ? WORKERS_LEFT : CLIENTS_LEFT;
            stage_ = side_ == WORKERS ? TAKE : LOOK;
            side_ = CLIENTS;
            break;
        case LOOK:
            stage_ = SETTLE;
            if (others_ready_ || now_ >= until)
                return OTHER;
            break;
        case SETTLE:
            cancel_departed();
            if (!dirty_ && now_ < wake_ns_) {
                stage_ = END;
                break;
            }
            dirty_ = false;
            times_.note_work();
            if (now_ >= wake_ns_)
                wake_ns_ = NEVER_NS;
            order_ = 0;
            if (recorder_.is_on())
                recorder_.settle(now_);
            scheduler_.settle(now_);
            stage_ = EXECUTE;
            break;
        case EXECUTE:
            if (execute()) {
                stopped_at_order_ = true;
                return ORDER;
            }
            stage_ = DONE;
            if (recorder_.is_on())
                recorder_.end();
            if (stopped_at_order_ || !lost_clients.empty() || !lost_workers.empty())
                return ORDERS_DONE;
            scheduler_.out.clear();
            break;
        case DONE:
            stopped_at_order_ = false;
            cancel_departed();
            // Again, where somebody could not be reached or a model went; for the time alone, not again.
            stage_ = dirty_ ? SETTLE : END;
            break;
        case END:
            end_turn();
            look_ns_ = std::min(ports_[WORKERS].connections().look(now_), ports_[CLIENTS].connections().look(now_));
            times_.end_turn();
            stage_ = WAIT;
            if (pause_by_ns_ < NEVER_NS && (now_ >= pause_by_ns_ || !has_input())) {
                pause_by_ns_ = NEVER_NS;
                return PAUSED;
            }
            break;
    }
    return NOTHING;
}

Exchange::Need Exchange::handle() {
    Port& port = ports_[side_];
    auto is_known = [this](std::string_view identity) {
        return side_ == CLIENTS ? client_of_.contains(identity) : worker_of_identity_.contains(identity);
    };
    while (python_.spent_ns() < bounds_.turn_python_ns && port.next(is_known)) {
        Need need = side_ == CLIENTS ? from_client(port.current()) : from_worker(port.current());
        if (need != NOTHING)
            return need;
    }
    return NOTHING;
}

bool Exchange::execute() {
    while (order_ < scheduler_.out.list.size()) {
        const Command& command = scheduler_.out.list[order_++];
        if (recorder_.is_on())
            record_order(command);
        switch (command.kind) {
            case CommandKind::SEND_INFER: send_infer(command); break;
            case CommandKind::SEND_LOAD: send_order(command, TAG_LOAD, ActionKind::LOAD); break;
            case CommandKind::SEND_UNLOAD: send_order(command, TAG_UNLOAD, ActionKind::UNLOAD); break;
            case CommandKind::SEND_FETCH: send_order(command, TAG_HOST_FETCH, ActionKind::FETCH); break;
            case CommandKind::SEND_DROP: send_order(command, TAG_HOST_DROP, ActionKind::DROP); break;
            case CommandKind::SEND_RESERVE: send_order(command, TAG_RESERVE, ActionKind::RESERVE); break;
            case CommandKind::SEND_PROFILE: send_profile(command); break;
            case CommandKind::SEND_REVOKE: send_revoke(command); break;
            case CommandKind::ANSWER_OK: answer_ok(command); break;
            case CommandKind::ANSWER_FAILED: answer_failed(command); break;
            case CommandKind::WAKE: wake_ns_ = command.earliest_ns; break;
            case CommandKind::MODEL_FAULT:
            case CommandKind::MODEL_GONE: return true;
        }
    }
    return false;
}

// Before it is carried out, as long as the request of an answer is held.
void Exchange::record_order(const Command& command) {
    std::string_view text;
    std::string_view shape;
    if (command.kind == CommandKind::ANSWER_FAILED)
        text = failure_text(command, held(command.request_id));
    else if (command.kind == CommandKind::SEND_PROFILE)
        shape = recorded_shape(command.shape);
    recorder_.ordered(command, scheduler_.out, text, shape);
}

std::string_view Exchange::recorded_shape(std::uint32_t number) {
    if (const std::string* known = recorder_.shape(number); known != nullptr)
        return *known;
    profiled_.clear();
    ask([&] { return lookups_.shape(lookups_.owner, number, &profiled_); });
    return recorder_.know_shape(number, profiled_);
}

void Exchange::end_turn() {
    for (std::size_t place = 0; place < result_count_; ++place) {
        result_of_.erase(static_cast<std::uint64_t>(results_[place].header.action_id));
    }
    result_count_ = 0;
    for (Port& port : ports_)
        port.end_turn();
}

}  // namespace clockwork
