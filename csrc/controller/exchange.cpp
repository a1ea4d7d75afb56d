// The exchange's loop: the stages of a turn, what the sockets hold, and peers' connections.
#include "controller/exchange.h"

#include <time.h>

#include <algorithm>
#include <utility>

namespace clockwork {

namespace {

// Frames of one batch beyond which it takes no further message; each costs 64 bytes.
constexpr std::size_t BATCH_FRAMES_MAX = 65'536;

// What a message costs that is Python's, in bytes of headers: at most 64 such messages are taken at once.
constexpr std::size_t PYTHON_BYTES = 4 << 10;

}  // namespace

Ns clock_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * SECOND + time.tv_nsec;
}

Exchange::Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
                   Lookups lookups, ExchangeBounds bounds, std::shared_ptr<Ring> ring)
    : scheduler_(scheduler),
      sockets_{workers, clients},
      connections_{Connections(bounds.connections[WORKERS]), Connections(bounds.connections[CLIENTS])},
      sentences_(std::move(sentences)),
      lookups_(lookups),
      bounds_(bounds),
      recorder_(std::move(ring)) {}

void Exchange::wait_on(const std::vector<int>& descriptors, const std::vector<int>& others) {
    descriptors_.clear();
    for (int descriptor : descriptors)
        descriptors_.push_back({descriptor, POLLIN, 0});
    own_count_ = descriptors_.size();
    for (int other : others)
        descriptors_.push_back({other, POLLIN, 0});
}

Exchange::Need Exchange::run(Ns until) {
    if (is_timed)
        lap(STAGES);
    if (python_since_ns_ != 0) {
        python_ns_ += clock_ns() - python_since_ns_;
        python_since_ns_ = 0;
    }
    for (;;) {
        Stage stage = stage_;
        Need need = step(until);
        if (is_timed)
            lap(stage);
        if (WORKER_MESSAGE <= need && need <= WRONG_REQUEST)
            python_since_ns_ = clock_ns();
        if (need != NOTHING)
            return need;
    }
}

void Exchange::lap(int stage) {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    Ns now = Ns{time.tv_sec} * SECOND + time.tv_nsec;
    spent_ns[static_cast<std::size_t>(stage)] += lap_ns_ != 0 ? now - lap_ns_ : 0;
    lap_ns_ = now;
}

Exchange::Need Exchange::step(Ns until) {
    switch (stage_) {
        case WAIT:
            due_ns_ = now_;  // what is there already has come since the turn before took what there was
            if (wait(until))
                due_ns_ = NEVER_NS;
            now_ = clock_ns();
            due_ns_ = std::min({due_ns_, wake_ns_, now_});
            is_idle_ = true;
            side_ = WORKERS;
            stage_ = TAKE;
            break;
        case TAKE:
            python_ns_ = 0;
            stage_ = HANDLE;
            if (has_rest(side_)) {
                is_idle_ = false;
                break;
            }
            take(side_);
            is_idle_ = is_idle_ && batches_[side_].size() == 0;
            // After the messages were taken, so that the connection of each has been accepted.
            read_news(side_);
            readings_[side_].pass = ended_[side_].empty() ? ALL : KNOWN;
            break;
        case HANDLE:
            cancel_departed();
            if (Need need = handle(); need != NOTHING)
                return need;
            if (Reading& reading = readings_[side_];
                reading.pass == KNOWN && reading.cursor == batches_[side_].size()) {
                reading.pass = REST;
                reading.cursor = 0;
                return side_ == WORKERS ? WORKERS_LEFT : CLIENTS_LEFT;
            }
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
            dirty_ = is_idle_ = false;
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
            look_ns_ = std::min(connections_[WORKERS].look(now_), connections_[CLIENTS].look(now_));
            if (!is_idle_)
                lag_.add(clock_ns() - due_ns_);
            stage_ = WAIT;
            if (pause_by_ns_ < NEVER_NS && (now_ >= pause_by_ns_ || !has_input())) {
                pause_by_ns_ = NEVER_NS;
                return PAUSED;
            }
            break;
    }
    return NOTHING;
}

// Until something may be readable, or it is time. A signal ends it too, and is Python's to look at. False if something
// was there already.
bool Exchange::wait(Ns until) {
    bool is_late = has_input();
    Ns due = std::min({until, wake_ns_, look_ns_, next_shadow_ns()});
    Ns timeout = is_late ? 0 : std::max<Ns>(due - clock_ns(), 0);
    timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
    int ready = ppoll(descriptors_.data(), descriptors_.size(), &limit, nullptr);
    others_ready_ = ready < 0;
    for (std::size_t place = own_count_; ready > 0 && place < descriptors_.size(); ++place) {
        others_ready_ = others_ready_ || descriptors_[place].revents != 0;
    }
    return !is_late;
}

bool Exchange::has_input() const {
    return std::any_of(std::begin(sockets_), std::end(sockets_),
                       [](const RouterSocket& one) { return one.has_input() || one.has_news(); }) ||
           has_rest(WORKERS) || has_rest(CLIENTS);
}

void Exchange::take(Side side) {
    readings_[side] = {};
    batches_[side].clear();
    auto cost = [side](std::string_view header) {
        std::int64_t tag = tag_of(header);
        bool is_ours = side == WORKERS ? tag == TAG_RESULT : tag == TAG_INFER_REQUEST || tag == TAG_CANCEL;
        return header.size() + (is_ours ? 0 : PYTHON_BYTES);
    };
    batches_[side].receive(sockets_[side], bounds_.drain_messages, BATCH_FRAMES_MAX, bounds_.message_frames,
                           bounds_.turn_bytes, cost);
}

void Exchange::read_news(Side side) {
    ConnectionNews news;
    while (sockets_[side].receive_news(news)) {
        if (news.event == CLOCKWORK_ZMQ_EVENT_ACCEPTED) {
            connections_[side].accepted(news.fd, now_);
        } else if (ConnectionPtr one = connections_[side].ended(news.fd); one != nullptr && one->is_greeted) {
            ended_[side].push_back(news.fd);
        }
    }
}

// Of a message of somebody who is not known.
void Exchange::count_taken(Side side, const Arrival& arrival) {
    if (arrival.count < 2)
        return;
    ConnectionPtr one = connections_[side].find(batches_[side].header(arrival).descriptor());
    if (one != nullptr)
        one->taken += arrival.bytes;
}

bool Exchange::disconnect(Side side, int fd) {
    ConnectionPtr one = connections_[side].find(fd);
    return one != nullptr && connections_[side].cut(*one, CutReason::ASKED);
}

int Exchange::seat_for(Side side, int fd, std::string_view key) const {
    ConnectionPtr one = connections_[side].find(fd);
    return one == nullptr ? SEAT_FREE : connections_[side].seat_for(*one, key, now_);
}

void Exchange::heard(Side side, int fd) {
    if (ConnectionPtr one = connections_[side].find(fd); one != nullptr)
        connections_[side].heard(*one, now_);
}

bool Exchange::begin(Side side, std::string_view identity, int fd) {
    ConnectionPtr one = connections_[side].find(fd);
    if (one == nullptr || !connections_[side].may_send(*one, now_) || !sockets_[side].address(identity, one))
        return false;
    connections_[side].heard(*one, now_);
    return true;
}

Exchange::Need Exchange::handle() {
    Reading& reading = readings_[side_];
    while (reading.cursor < (reading.pass == REST ? reading.strangers.size() : batches_[side_].size()) &&
           python_ns_ < bounds_.turn_python_ns) {
        reading.current = reading.pass == REST ? reading.strangers[reading.cursor] : reading.cursor;
        ++reading.cursor;
        const Arrival& arrival = current();
        if (reading.pass == KNOWN && !is_known(arrival)) {
            reading.strangers.push_back(reading.current);
            continue;
        }
        Need need = side_ == CLIENTS ? from_client(arrival) : from_worker(arrival);
        if (need != NOTHING)
            return need;
    }
    return NOTHING;
}

bool Exchange::has_rest(Side side) const {
    const Reading& reading = readings_[side];
    if (reading.pass == REST)
        return reading.cursor < reading.strangers.size();
    return reading.pass == KNOWN || reading.cursor < batches_[side].size();
}

bool Exchange::is_known(const Arrival& arrival) {
    std::string_view identity = batches_[side_].identity(arrival).view();
    return side_ == CLIENTS ? client_of_.find(identity) != client_of_.end()
                            : worker_of_identity_.find(identity) != worker_of_identity_.end();
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
    for (Side side : {WORKERS, CLIENTS}) {
        if (!has_rest(side)) {
            batches_[side].clear();
            readings_[side] = {};
        }
    }
}

}  // namespace clockwork
