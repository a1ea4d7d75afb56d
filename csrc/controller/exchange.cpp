#include "controller/exchange.h"

#include <time.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace clockwork {

namespace {

// Frames of one batch beyond which it takes no further message; each costs 64 bytes.
constexpr std::size_t BATCH_FRAMES_MAX = 65'536;

// What a message costs that takes the long road, in bytes of headers: at most 64 such messages are taken at once.
constexpr std::size_t LONG_ROAD_BYTES = 4 << 10;

// The clock of clockwork.clock.now_ns().
Ns clock_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return Ns{time.tv_sec} * SECOND + time.tv_nsec;
}

void write_dims(Writer& writer, const std::int64_t* dims, std::uint32_t rank) {
    writer.array(rank);
    for (std::uint32_t place = 0; place < rank; ++place)
        writer.integer(dims[place]);
}

}  // namespace

Exchange::Exchange(Scheduler& scheduler, RouterSocket workers, RouterSocket clients, Sentences sentences,
                   ExchangeBounds bounds)
    : scheduler_(scheduler),
      sockets_{workers, clients},
      connections_{Connections(bounds.connections[WORKERS]), Connections(bounds.connections[CLIENTS])},
      sentences_(std::move(sentences)),
      bounds_(bounds) {}

// ----- the loop -----------------------------------------------------------------------------------

void Exchange::wait_on(const std::vector<int>& descriptors, const std::vector<int>& others) {
    descriptors_.clear();
    for (int one : descriptors)
        descriptors_.push_back({one, POLLIN, 0});
    own_count_ = descriptors_.size();
    for (int one : others)
        descriptors_.push_back({one, POLLIN, 0});
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
        if (need == WORKER_MESSAGE || need == CLIENT_MESSAGE)
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
            if (handle())
                return side_ == WORKERS ? WORKER_MESSAGE : CLIENT_MESSAGE;
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
            scheduler_.settle(now_);
            stage_ = EXECUTE;
            break;
        case EXECUTE:
            if (execute()) {
                stopped_at_order_ = true;
                return ORDER;
            }
            stage_ = DONE;
            if (stopped_at_order_ || is_recording || !lost_clients.empty() || !lost_workers.empty()) {
                return ORDERS_DONE;
            }
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
            break;
    }
    return NOTHING;
}

// Until something may be readable, or it is time. A signal ends it too, and is Python's to look at. False if something
// was there already.
bool Exchange::wait(Ns until) {
    bool has_input = false;
    for (Side side : {WORKERS, CLIENTS}) {
        has_input = has_input || has_rest(side) || sockets_[side].has_input() || sockets_[side].has_news();
    }
    Ns due = std::min({until, wake_ns_, look_ns_, next_shadow_ns()});
    Ns timeout = has_input ? 0 : std::max<Ns>(due - clock_ns(), 0);
    timespec limit{static_cast<time_t>(timeout / SECOND), static_cast<long>(timeout % SECOND)};
    int ready = ppoll(descriptors_.data(), descriptors_.size(), &limit, nullptr);
    others_ready_ = ready < 0;
    for (std::size_t place = own_count_; ready > 0 && place < descriptors_.size(); ++place) {
        others_ready_ = others_ready_ || descriptors_[place].revents != 0;
    }
    return !has_input;
}

void Exchange::take(Side side) {
    readings_[side] = {};
    batches_[side].clear();
    auto cost = [side](std::string_view header) {
        std::int64_t tag = tag_of(header);
        bool is_short = side == WORKERS ? tag == TAG_RESULT : tag == TAG_INFER_REQUEST || tag == TAG_CANCEL;
        return header.size() + (is_short ? 0 : LONG_ROAD_BYTES);
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

bool Exchange::begin(Side side, std::string_view identity, int fd) {
    ConnectionPtr one = connections_[side].find(fd);
    return one != nullptr && connections_[side].may_send(*one, now_) && sockets_[side].address(identity, one);
}

bool Exchange::handle() {
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
        if (!(side_ == CLIENTS ? from_client(arrival) : from_worker(arrival)))
            return true;
    }
    return false;
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
        switch (command.kind) {
            case CommandKind::SEND_INFER: send_infer(command); break;
            case CommandKind::SEND_LOAD: send_order(command, TAG_LOAD, ActionKind::LOAD); break;
            case CommandKind::SEND_UNLOAD: send_order(command, TAG_UNLOAD, ActionKind::UNLOAD); break;
            case CommandKind::SEND_FETCH: send_order(command, TAG_HOST_FETCH, ActionKind::FETCH); break;
            case CommandKind::SEND_DROP: send_order(command, TAG_HOST_DROP, ActionKind::DROP); break;
            case CommandKind::SEND_REVOKE: send_revoke(command); break;
            case CommandKind::ANSWER_OK: answer_ok(command); break;
            case CommandKind::ANSWER_FAILED: answer_failed(command); break;
            case CommandKind::WAKE: wake_ns_ = command.earliest_ns; break;
            case CommandKind::SEND_PROFILE:
            case CommandKind::MODEL_FAULT:
            case CommandKind::MODEL_GONE: return true;
        }
    }
    return false;
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

// ----- from clients -------------------------------------------------------------------------------

bool Exchange::from_client(const Arrival& arrival) {
    Haul& batch = batches_[CLIENTS];
    chosen_ = {};
    auto found = client_of_.find(batch.identity(arrival).view());
    if (found == client_of_.end()) {
        count_taken(CLIENTS, arrival);
        return false;
    }
    ClientLink& client = *clients_.at(found->second);
    client.connection->taken += arrival.bytes;
    if (arrival.count < 2 || !is_short)
        return false;
    std::string_view header = batch.header(arrival).view();
    std::int64_t tag = tag_of(header);
    if (tag == TAG_INFER_REQUEST)
        return infer(client, arrival);
    if (tag == TAG_CANCEL && cancel_.read(header))
        return cancel(client.slot, cancel_.request_id);
    return false;
}

bool Exchange::infer(ClientLink& client, const Arrival& arrival) {
    Haul& batch = batches_[CLIENTS];
    if (!request_.read(batch.header(arrival).view()))
        return false;
    if (!find_chosen(request_.model) || chosen_.model->interface == nullptr)
        return false;
    ServedModel* model = chosen_.model;
    if (client.requests.find(static_cast<std::uint64_t>(request_.request_id)) != IdTable::NONE)
        return false;
    frame_bytes_.clear();
    std::size_t first = arrival.first + 2;
    for (std::size_t place = first; place < arrival.first + arrival.count; ++place) {
        frame_bytes_.push_back(batch.frame(place).size());
    }
    std::uint32_t shape = 0;
    if (!accept(*model->interface, request_, frame_bytes_, accepted_) || !shape_number(accepted_.shape, shape)) {
        return false;
    }
    Route* copier = chosen_.copied_by;
    std::uint32_t copy_shape = 0;
    bool can_copy = copier != nullptr && has_room(accepted_.bytes) &&
                    accept(*copier->shadow->interface, request_, frame_bytes_, copy_accepted_);
    if (can_copy && !shape_number(copy_accepted_.shape, copy_shape))
        return false;
    HeldRequest& held = hold(&client, request_.request_id, *model);
    for (const TensorRef* ref : accepted_.tensors) {
        auto start = request_.dims.begin() + ref->first;
        held.tensors.push_back({ref->dtype, static_cast<std::uint32_t>(held.dims.size()), ref->rank});
        held.dims.insert(held.dims.end(), start, start + ref->rank);
        held.frames.push_back(std::move(batch.frame(first + static_cast<std::size_t>(ref->frame))));
    }
    Ns slo_ns = request_.slo_ns != 0 ? request_.slo_ns : model->slo_ns;
    arrive(held, accepted_.rows, shape, accepted_.bytes, deadline_ns(slo_ns), request_.priority);
    if (can_copy) {
        HeldRequest& copy = make_copy(held, *copier);
        for (const TensorRef* ref : copy_accepted_.tensors) {
            auto place = std::find(accepted_.tensors.begin(), accepted_.tensors.end(), ref) - accepted_.tensors.begin();
            const HeldTensor& tensor = held.tensors[static_cast<std::size_t>(place)];
            auto start = held.dims.begin() + tensor.first;
            copy.tensors.push_back({tensor.dtype, static_cast<std::uint32_t>(copy.dims.size()), tensor.rank});
            copy.dims.insert(copy.dims.end(), start, start + tensor.rank);
            copy.frames.emplace_back().share(held.frames[static_cast<std::size_t>(place)]);
        }
        send_copy(copy, copy_accepted_.rows, copy_shape, accepted_.bytes, slo_ns, request_.priority);
    } else if (copier != nullptr) {
        copier->tally->change([](ShadowResults& all) { ++all.dropped; });
    }
    return true;
}

void Exchange::admit(std::uint32_t client, std::int64_t request_id, ModelId model, std::uint32_t rows,
                     std::uint32_t shape, std::uint64_t bytes, Ns slo_ns, std::int64_t priority,
                     const std::vector<CheckedTensor>& tensors) {
    HeldRequest& held = hold(clients_.at(client), request_id, *models_.at(model));
    take_tensors(held, tensors);
    chosen_.held = &held;
    arrive(held, rows, shape, bytes, deadline_ns(slo_ns != 0 ? slo_ns : held.model->slo_ns), priority);
}

void Exchange::copy(std::uint32_t rows, std::uint32_t shape, const std::vector<CheckedTensor>& tensors,
                    std::uint64_t bytes, Ns slo_ns, std::int64_t priority) {
    Route& copier = *chosen_.copied_by;
    if (tensors.empty() || !has_room(bytes)) {
        copier.tally->change([](ShadowResults& all) { ++all.dropped; });
        return;
    }
    HeldRequest& copy = make_copy(*chosen_.held, copier);
    take_tensors(copy, tensors);
    send_copy(copy, rows, shape, bytes, slo_ns != 0 ? slo_ns : chosen_.model->slo_ns, priority);
}

// Shares those of the current message.
void Exchange::take_tensors(HeldRequest& held, const std::vector<CheckedTensor>& tensors) {
    Haul& batch = batches_[CLIENTS];
    const Arrival& arrival = current();
    for (const CheckedTensor& tensor : tensors) {
        held.tensors.push_back({tensor.dtype, static_cast<std::uint32_t>(held.dims.size()),
                                static_cast<std::uint32_t>(tensor.dims.size())});
        held.dims.insert(held.dims.end(), tensor.dims.begin(), tensor.dims.end());
        held.frames.emplace_back().share(batch.frame(arrival.first + 2 + tensor.frame));
    }
}

// client: null for a copy, which nobody waits for.
HeldRequest& Exchange::hold(ClientLink* client, std::int64_t request_id, ServedModel& model) {
    HeldRequest& held = *held_pool_.make();
    held.id = next_request_++;
    held.request_id = request_id;
    held.client = client;
    held.model = &model;
    if (model.counts == nullptr)
        model.counts = std::make_unique<ModelCounts>();
    ++model.held;
    if (client != nullptr) {
        held.before = client->last;
        held.after = nullptr;
        (client->last != nullptr ? client->last->after : client->first) = &held;
        client->last = &held;
        client->requests.insert(static_cast<std::uint64_t>(request_id), held.slot);
    } else {
        ++model.copies;
    }
    held_.insert(held.id, held.slot);
    return held;
}

// So that a deadline never comes before an arrival: an SLO may be as long as NEVER_NS.
Ns Exchange::deadline_ns(Ns slo_ns) const { return slo_ns != 0 ? std::min(now_ + slo_ns, NEVER_NS) : NEVER_NS; }

void Exchange::arrive(HeldRequest& held, std::uint32_t rows, std::uint32_t shape, std::uint64_t bytes, Ns deadline,
                      std::int64_t priority) {
    Request request;
    request.id = held.id;
    request.model_id = held.model->model_id;
    request.rows = rows;
    request.shape = shape;
    request.bytes = bytes;
    request.arrived_ns = now_;
    held.rows = rows;
    held.arrived_ns = now_;
    request.deadline_ns = deadline;
    request.is_spare = held.client == nullptr;  // a copy
    request.priority = static_cast<std::uint8_t>(priority != 0 ? priority : bounds_.priority_default);
    dirty_ = true;
    if (is_recording) {
        told.push_back({ToldEvent::ARRIVED, now_, request, {}, {}});
    }
    scheduler_.arrived(now_, request);
}

void Exchange::cancel(const HeldRequest& held) {
    dirty_ = true;
    if (is_recording) {
        told.push_back({ToldEvent::CANCELLED, now_, {}, {}, {}});
        told.back().request.id = held.id;
    }
    scheduler_.cancelled(now_, held.id);
}

// Takes a request out of every table, and gives its memory back. Its client and model may go with it.
void Exchange::release(HeldRequest& held) {
    ServedModel& model = *held.model;
    held_.erase(held.id);
    if (held.client != nullptr) {
        ClientLink& client = *held.client;
        client.requests.erase(static_cast<std::uint64_t>(held.request_id));
        (held.before != nullptr ? held.before->after : client.first) = held.after;
        (held.after != nullptr ? held.after->before : client.last) = held.before;
        if (client.has_departed && client.first == nullptr)
            clients_.give_back(&client);
    } else {
        --shadow_count_;
        --model.copies;
        copies_sent_ -= held.has_arrived;
        shadow_bytes_ -= held.copied_bytes;
    }
    held_pool_.give_back(&held);
    if (--model.held == 0 && !forgotten_.empty()) {
        std::erase_if(forgotten_, [&](const auto& one) { return one.get() == &model; });
    }
}

HeldRequest& Exchange::held(RequestId request_id) {
    std::uint32_t slot = held_.find(request_id);
    if (slot == IdTable::NONE)
        throw std::logic_error("an order for request " + std::to_string(request_id));
    return *held_pool_.at(slot);
}

std::uint32_t Exchange::client_joined(std::string_view identity, int fd) {
    ConnectionPtr connection = connections_[CLIENTS].find(fd);
    if (connection == nullptr || connection->is_cut)
        return NO_SLOT;
    connections_[CLIENTS].greet(*connection);
    ClientLink* client = clients_.make();
    client->identity = identity;
    client->connection = std::move(connection);
    client_of_.emplace(client->identity, client->slot);
    return client->slot;
}

void Exchange::client_left(std::uint32_t slot) {
    ClientLink& client = *clients_.at(slot);
    client_of_.erase(client.identity);
    connections_[CLIENTS].forget(*client.connection);
    client.gone = true;
    departed_.push_back(slot);
}

// Only between the orders of two decisions: a recording has them apart.
void Exchange::cancel_departed() {
    for (std::uint32_t slot : departed_) {
        ClientLink& client = *clients_.at(slot);
        client.has_departed = true;
        for (HeldRequest* held = client.first; held != nullptr; held = held->after)
            cancel(*held);
        if (client.first == nullptr)
            clients_.give_back(&client);
    }
    departed_.clear();
    cancel_shadows();
}

bool Exchange::has_request(std::uint32_t client, std::int64_t request_id) {
    return clients_.at(client)->requests.find(static_cast<std::uint64_t>(request_id)) != IdTable::NONE;
}

bool Exchange::cancel(std::uint32_t client, std::int64_t request_id) {
    std::uint32_t slot = clients_.at(client)->requests.find(static_cast<std::uint64_t>(request_id));
    if (request_id < 0 || slot == IdTable::NONE)
        return false;
    cancel(*held_pool_.at(slot));
    return true;
}

// ----- from workers -------------------------------------------------------------------------------

bool Exchange::from_worker(const Arrival& arrival) {
    Haul& batch = batches_[WORKERS];
    auto found = worker_of_identity_.find(batch.identity(arrival).view());
    if (found == worker_of_identity_.end()) {
        count_taken(WORKERS, arrival);
        return false;
    }
    WorkerLink& worker = *workers_.at(found->second);
    worker.connection->taken += arrival.bytes;
    if (arrival.count < 2)
        return false;
    worker.heard_ns = now_;
    return tag_of(batch.header(arrival).view()) == TAG_RESULT && result(worker, arrival);
}

bool Exchange::result(WorkerLink& worker, const Arrival& arrival) {
    Haul& batch = batches_[WORKERS];
    if (results_.size() == result_count_)
        results_.emplace_back();
    Outputs& outputs = results_[result_count_];
    ResultHeader& result = outputs.header;
    if (!result.read(batch.header(arrival).view()))
        return false;
    ActionId action_id = static_cast<ActionId>(result.action_id);
    const Expected* expected = worker.actions.find(action_id);
    if (expected == nullptr)
        return true;  // of an action that was given up
    if (!is_expected(*expected, result, batch, arrival))
        return false;
    if (result.status == Status::OK && expected->interface != nullptr) {
        std::int64_t last = -1;
        outputs.is_distinct = true;
        for (const TensorRef& ref : result.tensors) {
            outputs.is_distinct = outputs.is_distinct && ref.frame > last;
            last = ref.frame;
        }
        outputs.first_frame = arrival.first + 2;
        result_of_.insert(action_id, static_cast<std::uint32_t>(result_count_));
        ++result_count_;
    }
    if (result.status == Status::OK)
        count_done(worker, *expected, result);
    ActionResult done;
    done.action_id = action_id;
    done.status = result.status;
    done.begin_ns = result.begin_ns != 0 ? worker.clock.to_controller(result.begin_ns, now_) : now_;
    done.end_ns = result.end_ns != 0 ? worker.clock.to_controller(result.end_ns, now_) : now_;
    done.duration_ns = result.duration_ns;
    done.ready_ns = result.received_ns != 0 ? worker.clock.to_controller(result.received_ns, now_) : 0;
    end_action(worker, done, result.text);
    return true;
}

// Whether a result is what was asked for: parts, tensors, frames, and each output what its model gives.
bool Exchange::is_expected(const Expected& expected, const ResultHeader& result, Haul& batch, const Arrival& arrival) {
    std::size_t frames = arrival.count - 2;
    if (frames > result.tensors.size())
        return false;
    if (result.status != Status::OK)
        return true;
    if (result.parts.size() != expected.part_rows.size())
        return false;
    std::size_t tensors = expected.tensors(), next = 0;
    for (std::size_t part = 0; part < result.parts.size(); ++part) {
        if (result.parts[part] != tensors)
            return false;
        for (std::size_t output = 0; output < tensors; ++output) {
            const TensorRef& ref = result.tensors[next++];
            if (static_cast<std::size_t>(ref.frame) >= frames)
                return false;
            std::string_view data = batch.frame(arrival.first + 2 + static_cast<std::size_t>(ref.frame)).view();
            if (!gives(*expected.interface, output, expected.part_rows[part], ref, result.dims.data() + ref.first,
                       data)) {
                return false;
            }
        }
    }
    return true;
}

// Takes an action out of the books, and tells the scheduler how it ended.
void Exchange::end_action(WorkerLink& worker, const ActionResult& ended, std::string_view text) {
    ActionResult done = ended;
    std::string said(text);
    done.worker = worker.worker_id;
    done.text = said.empty() ? nullptr : &said;
    worker.actions.erase(done.action_id);
    ++worker.results[static_cast<std::size_t>(done.status)];
    dirty_ = true;
    if (is_recording)
        told.push_back({ToldEvent::ACTION_DONE, now_, {}, done, said});
    scheduler_.action_done(now_, done);
}

bool Exchange::fail_action(std::uint32_t slot, ActionId action_id, std::string_view text) {
    WorkerLink& worker = *workers_.at(slot);
    if (worker.actions.find(action_id) == nullptr)
        return false;
    ActionResult done;
    done.action_id = action_id;
    done.status = Status::DEVICE_ERROR;
    done.begin_ns = done.end_ns = now_;
    end_action(worker, done, text);
    return true;
}

void Exchange::fail_actions(std::uint32_t slot, std::string_view text) {
    for (ActionId action_id : workers_.at(slot)->actions.ids())
        fail_action(slot, action_id, text);
}

void Exchange::count_done(WorkerLink& worker, const Expected& sent, const ResultHeader& result) {
    if (sent.kind == ActionKind::FETCH || sent.kind == ActionKind::DROP) {  // for whichever of its devices
        ++(sent.kind == ActionKind::FETCH ? worker.fetches : worker.drops);
        return;
    }
    if (static_cast<std::size_t>(sent.device) >= worker.devices.size())
        return;
    DeviceCounts& device = worker.devices[static_cast<std::size_t>(sent.device)];
    switch (sent.kind) {
        case ActionKind::LOAD:
            ++device.loads;
            device.load_busy_ns += result.duration_ns;
            break;
        case ActionKind::UNLOAD: ++device.unloads; break;
        case ActionKind::INFER:
            if (ServedModel* model = find_model(sent.model_id); model != nullptr && model->counts != nullptr) {
                ModelCounts& counts = *model->counts;
                ++counts.executions;
                counts.batches.add(sent.rows, result.execute_ns);
            }
            [[fallthrough]];
        default: ++device.executions; device.busy_ns += result.execute_ns;
    }
}

std::uint32_t Exchange::worker_joined(std::string_view identity, int fd, WorkerId worker_id, std::size_t device_count) {
    ConnectionPtr connection = connections_[WORKERS].find(fd);
    if (connection == nullptr || connection->is_cut)
        return NO_SLOT;
    connections_[WORKERS].greet(*connection);
    WorkerLink* worker = workers_.make();
    worker->identity = identity;
    worker->connection = std::move(connection);
    worker->worker_id = worker_id;
    worker->heard_ns = now_;
    worker->devices.resize(device_count);
    worker_of_identity_.emplace(worker->identity, worker->slot);
    worker_of_id_.insert(static_cast<std::uint32_t>(worker_id), worker->slot);
    return worker->slot;
}

void Exchange::worker_left(std::uint32_t slot) {
    WorkerLink* worker = workers_.at(slot);
    worker_of_identity_.erase(worker->identity);
    connections_[WORKERS].forget(*worker->connection);
    worker_of_id_.erase(static_cast<std::uint32_t>(worker->worker_id));
    workers_.give_back(worker);
}

WorkerLink* Exchange::worker_of(WorkerId worker_id) {
    std::uint32_t slot = worker_of_id_.find(static_cast<std::uint32_t>(worker_id));
    return slot == IdTable::NONE ? nullptr : workers_.at(slot);
}

// ----- orders -------------------------------------------------------------------------------------

void Exchange::sent(std::uint32_t worker, ActionId action_id, ActionKind kind, std::int32_t device) {
    note_sent(*workers_.at(worker), action_id, kind, device, 0);
}

Expected& Exchange::note_sent(WorkerLink& worker, ActionId action_id, ActionKind kind, std::int32_t device,
                              ModelId model_id) {
    Expected& expected = worker.actions.add(action_id);
    expected.kind = kind;
    expected.device = device;
    expected.model_id = model_id;
    ++worker.sent[static_cast<std::size_t>(kind)];
    return expected;
}

// Sends the header that was written. False if the worker cannot be reached: it is as good as gone.
bool Exchange::to_worker(WorkerLink& worker, bool more) {
    if (!connections_[WORKERS].may_send(*worker.connection, now_) ||
        !sockets_[WORKERS].address(worker.identity, worker.connection)) {
        lost_workers.push_back(worker.worker_id);
        return false;
    }
    sockets_[WORKERS].send(writer_.view(), more);
    return true;
}

void Exchange::window(const Command& command, const WorkerLink& worker) {
    writer_.integer(worker.clock.to_worker_earliest(command.earliest_ns, now_));
    writer_.integer(worker.clock.to_worker_latest(command.latest_ns));
    writer_.integer(command.expected_ns);
}

void Exchange::head(const Command& command, std::int64_t tag, std::size_t fields) {
    writer_.clear();
    writer_.array(fields + 1);
    writer_.integer(tag);
    writer_.natural(command.action_id);
    writer_.integer(command.device);
    writer_.integer(command.model_id);
    writer_.natural(command.load_id);
}

void Exchange::send_infer(const Command& command) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;  // it left in this very turn, as the scheduler will have heard
    const RequestId* ids = scheduler_.out.ids.data() + command.first;
    head(command, TAG_INFER, 8);
    window(command, *worker);
    writer_.array(command.count);
    sending_.clear();
    std::size_t frames = 0;
    std::uint32_t rows = 0;
    for (std::uint32_t part = 0; part < command.count; ++part) {
        HeldRequest& one = held(ids[part]);
        sending_.push_back(&one);
        rows += one.rows;
        writer_.array(one.tensors.size());
        for (const HeldTensor& tensor : one.tensors) {
            writer_.array(3);
            writer_.integer(tensor.dtype);
            write_dims(writer_, one.dims.data() + tensor.first, tensor.rank);
            writer_.natural(frames++);
        }
    }
    Expected& expected = note_sent(*worker, command.action_id, ActionKind::INFER, command.device, command.model_id);
    expected.rows = rows;
    expected.interface = sending_.front()->model->interface;
    for (const HeldRequest* one : sending_)
        expected.part_rows.push_back(one->rows);
    if (!to_worker(*worker, frames > 0))
        return;
    for (HeldRequest* one : sending_) {
        for (Frame& frame : one->frames) {
            spare_.share(frame);  // kept, for the action may come to nothing
            sockets_[WORKERS].send(spare_, --frames > 0);
        }
    }
}

void Exchange::send_order(const Command& command, std::int64_t tag, ActionKind kind) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;
    head(command, tag, kind == ActionKind::LOAD ? 8 : 7);
    if (kind == ActionKind::LOAD) {
        const std::uint32_t* runs = scheduler_.out.runs.data() + command.first;
        writer_.array(command.count);
        for (std::uint32_t place = 0; place < command.count; ++place)
            writer_.natural(runs[place]);
    }
    window(command, *worker);
    note_sent(*worker, command.action_id, kind, command.device, command.model_id);
    to_worker(*worker, false);
}

void Exchange::send_revoke(const Command& command) {
    WorkerLink* worker = worker_of(command.worker);
    if (worker == nullptr)
        return;
    writer_.clear();
    writer_.array(2);
    writer_.integer(TAG_REVOKE);
    writer_.natural(command.action_id);
    to_worker(*worker, false);
}

// ----- answers ------------------------------------------------------------------------------------

// Sends the header that was written. False if the client is gone: then there is nobody to tell.
bool Exchange::to_client(ClientLink& client, bool more) {
    if (client.gone)
        return false;
    if (!connections_[CLIENTS].may_send(*client.connection, now_) ||
        !sockets_[CLIENTS].address(client.identity, client.connection)) {
        lost_clients.push_back(client.slot);
        return false;
    }
    sockets_[CLIENTS].send(writer_.view(), more);
    return true;
}

void Exchange::answer_ok(const Command& command) {
    HeldRequest& one = held(command.request_id);
    std::uint32_t place = result_of_.find(command.action_id);
    if (place == IdTable::NONE)
        throw std::logic_error("an answer without its result");
    Outputs& result = results_[place];
    if (one.pair != nullptr)
        keep_answer(one, result, command.part);
    if (one.client == nullptr) {
        release(one);
        return;
    }
    const std::vector<std::string>& names = one.model->interface->outputs;
    std::size_t tensors = result.header.parts.at(command.part);
    std::size_t count = std::min(tensors, names.size());
    const TensorRef* refs = result.header.tensors.data() + command.part * tensors;
    writer_.clear();
    writer_.array(5);
    writer_.integer(TAG_ANSWER);
    writer_.integer(one.request_id);
    writer_.integer(one.model->version);
    writer_.array(count);
    for (std::size_t index = 0; index < count; ++index) {
        writer_.array(4);
        writer_.text(names[index]);
        writer_.integer(refs[index].dtype);
        write_dims(writer_, result.header.dims.data() + refs[index].first, refs[index].rank);
        writer_.natural(index);
    }
    Ns total_ns = now_ - one.arrived_ns;
    writer_.array(6);
    writer_.integer(command.a);
    writer_.integer(command.b);
    writer_.integer(command.c);
    writer_.integer(total_ns);
    writer_.integer(result.header.copy_in_ns);
    writer_.integer(result.header.copy_out_ns);
    if (to_client(*one.client, count > 0)) {
        for (std::size_t index = 0; index < count; ++index) {
            Frame& frame = batches_[WORKERS].frame(result.first_frame + static_cast<std::size_t>(refs[index].frame));
            bool more = index + 1 < count;
            if (result.is_distinct) {
                sockets_[CLIENTS].send(frame, more);
            } else {
                spare_.share(frame);
                sockets_[CLIENTS].send(spare_, more);
            }
        }
    }
    outcomes_.count(Status::OK);
    one.model->outcomes.count(Status::OK);
    const ResultHeader& done = result.header;
    one.model->counts->succeeded(now_, one.rows,
                                 {total_ns, command.a, command.b, done.execute_ns, done.copy_in_ns, done.copy_out_ns});
    release(one);
}

void Exchange::answer_failed(const Command& command) {
    HeldRequest& one = held(command.request_id);
    if (one.pair != nullptr)
        unpair(one);
    if (one.client == nullptr) {
        release(one);
        return;
    }
    const std::string* said =
        command.said >= 0 ? &scheduler_.out.texts[static_cast<std::size_t>(command.said)] : nullptr;
    fail(one, command.status, sentences_.text(command, one.model->label, said), &command);
    if (command.status == Status::REFUSED)
        ++refusals_[static_cast<std::size_t>(command.reason)];
    one.model->counts->did_not(now_, command.status, command.reason);
    outcomes_.count(command.status);
    one.model->outcomes.count(command.status);
    release(one);
}

void Exchange::fail(HeldRequest& one, Status status, std::string_view text, const Command* refusal) {
    writer_.clear();
    writer_.array(5);
    writer_.integer(TAG_FAILURE);
    writer_.integer(one.request_id);
    writer_.integer(static_cast<std::int64_t>(status));
    writer_.text(text);
    if (status == Status::REFUSED && refusal != nullptr) {
        writer_.map(3);
        writer_.text("reason");
        writer_.text(sentences_.reason(refusal->reason));
        writer_.text("feasible_slo_ns");
        writer_.integer(refusal->feasible_slo_ns);
        writer_.text("retry_after_ns");
        writer_.integer(refusal->retry_after_ns);
    } else {
        writer_.map(0);
    }
    to_client(*one.client, false);
}

void Exchange::fail_all(Status status, std::string_view text) {
    for (std::uint32_t slot = 0; slot < held_pool_.slot_count(); ++slot) {
        HeldRequest& one = *held_pool_.at(slot);
        if (one.id == 0)
            continue;
        if (one.client != nullptr)
            fail(one, status, text, nullptr);
        release(one);
    }
}

}  // namespace clockwork
