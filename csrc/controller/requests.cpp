// The exchange's part in requests: from a client's message to a held request that the scheduler knows, and to its
// end, by whatever way; and the clients that wait for them.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

Exchange::Need Exchange::from_client(const Arrival& arrival) {
    Haul& batch = ports_[CLIENTS].haul();
    auto found = client_of_.find(batch.identity(arrival).view());
    if (found == client_of_.end()) {
        ports_[CLIENTS].count_taken(arrival);
        return CLIENT_MESSAGE;
    }
    ClientLink& client = *clients_.at(found->second);
    client.connection->taken += arrival.bytes;
    ports_[CLIENTS].connections().heard(*client.connection, now_);
    if (arrival.count < 2)
        return CLIENT_MESSAGE;
    switch (tag_of(batch.header(arrival).view())) {
        case TAG_INFER_REQUEST: return infer(client, arrival);
        case TAG_CANCEL: return cancel(client, arrival);
        default: return CLIENT_MESSAGE;
    }
}

Exchange::Need Exchange::note_wrong(Need need, std::int64_t id) {
    wrong_.is_request = need == WRONG_REQUEST;
    wrong_.id = id;
    wrong_.model_id = 0;
    wrong_.interface.reset();
    wrong_.tensors = nullptr;
    wrong_.dims = nullptr;
    return need;
}

// Of the request that was read last.
Exchange::Need Exchange::note_wrong(const Flaw& flaw, const Target& target) {
    note_wrong(WRONG_REQUEST, request_.request_id);
    wrong_.flaw = flaw;
    wrong_.tensors = &request_.tensors;
    wrong_.dims = &request_.dims;
    if (target.model != nullptr) {
        wrong_.model_id = target.model->model_id;
        wrong_.interface = target.model->interface;
    }
    return WRONG_REQUEST;
}

void Exchange::read_frames(Haul& batch, const Arrival& arrival) {
    frames_.clear();
    for (std::uint32_t place = arrival.first + 2; place < arrival.first + arrival.count; ++place)
        frames_.push_back(batch.frame(place).view());
}

Exchange::Need Exchange::infer(ClientLink& client, const Arrival& arrival) {
    Haul& batch = ports_[CLIENTS].haul();
    if (!request_.read(batch.header(arrival).view(), wrong_.header))
        return note_wrong(WRONG_REQUEST, request_.request_id);
    Target target = target_of(request_.model);
    if (target.model == nullptr)
        return note_wrong({.code = Flaw::UNSERVED}, target);
    if (client.requests.find(static_cast<std::uint64_t>(request_.request_id)) != IdTable::NONE)
        return note_wrong({.code = Flaw::IN_USE}, target);
    ServedModel& model = *target.model;
    read_frames(batch, arrival);
    Flaw flaw;
    if (!check_request(*model.interface, request_, frames_, shared_machine, accepted_, flaw)) {
        count_invalid(model);
        return note_wrong(flaw, target);
    }
    Ns slo_ns = request_.slo_ns != 0 ? request_.slo_ns : model.slo_ns;
    Route* copier = target.copied_by;
    // Not of tensors in the client's memory, which is the client's again when it has its answer.
    bool can_copy = copier != nullptr && !accepted_.is_shared && has_room(accepted_.bytes) &&
                    check_request(*copier->shadow->interface, request_, frames_, shared_machine, copy_accepted_, flaw);
    HeldRequest& held = hold(&client, request_.request_id, model);
    held.has_room = accepted_.has_room;
    for (const TensorRef* ref : accepted_.tensors) {
        auto start = request_.dims.begin() + ref->first;
        held.tensors.push_back({ref->dtype, static_cast<std::uint32_t>(held.dims.size()), ref->rank});
        held.dims.insert(held.dims.end(), start, start + ref->rank);
        held.frames.push_back(std::move(batch.frame(arrival.first + 2 + static_cast<std::size_t>(ref->frame))));
    }
    arrive(held, accepted_.rows, shape_number(accepted_.shape), accepted_.bytes, accepted_.copied_bytes,
           deadline_ns(slo_ns), request_.priority);
    if (can_copy)
        copy(held, *copier, slo_ns);
    else if (copier != nullptr)
        copier->tally->change([](ShadowResults& all) { ++all.dropped; });
    return NOTHING;
}

// Of an inference; what else there is to cancel, Python knows.
Exchange::Need Exchange::cancel(ClientLink& client, const Arrival& arrival) {
    if (!cancel_.read(ports_[CLIENTS].haul().header(arrival).view(), wrong_.header))
        return note_wrong(WRONG_REQUEST, cancel_.request_id);
    std::uint32_t slot = client.requests.find(static_cast<std::uint64_t>(cancel_.request_id));
    if (slot == IdTable::NONE)
        return CLIENT_MESSAGE;
    cancel(*held_pool_.at(slot));
    return NOTHING;
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
        ++client->connection->asked;
    } else {
        ++model.copies;
    }
    held_.insert(held.id, held.slot);
    return held;
}

// So that a deadline never comes before an arrival: an SLO may be as long as NEVER_NS.
Ns Exchange::deadline_ns(Ns slo_ns) const { return slo_ns != 0 ? std::min(now_ + slo_ns, NEVER_NS) : NEVER_NS; }

void Exchange::arrive(HeldRequest& held, std::uint32_t rows, std::uint32_t shape, std::uint64_t bytes,
                      std::uint64_t copied_bytes, Ns deadline, std::int64_t priority) {
    Request request;
    request.id = held.id;
    request.model_id = held.model->model_id;
    request.rows = rows;
    request.shape = shape;
    request.bytes = bytes;
    request.copied_bytes = copied_bytes;
    request.arrived_ns = now_;
    held.rows = rows;
    held.arrived_ns = now_;
    request.deadline_ns = deadline;
    request.is_spare = held.client == nullptr;  // a copy
    request.priority = static_cast<std::uint8_t>(priority != 0 ? priority : bounds_.priority_default);
    dirty_ = true;
    if (recorder_.is_on())
        recorder_.arrived(now_, request, recorded_shape(shape));
    scheduler_.arrived(now_, request);
}

void Exchange::cancel(const HeldRequest& held) {
    dirty_ = true;
    if (recorder_.is_on())
        recorder_.cancelled(now_, held.id);
    scheduler_.cancelled(now_, held.id);
}

// Takes a request out of every table, and gives its memory back. Its client and model may go with it.
void Exchange::release(HeldRequest& held) {
    ServedModel& model = *held.model;
    held_.erase(held.id);
    if (held.client != nullptr) {
        ClientLink& client = *held.client;
        client.requests.erase(static_cast<std::uint64_t>(held.request_id));
        --client.connection->asked;
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

std::uint32_t Exchange::client_joined(std::string_view identity, int fd, std::string_view key) {
    ConnectionPtr connection = ports_[CLIENTS].connections().find(fd);
    if (connection == nullptr || connection->is_cut)
        return NO_SLOT;
    ports_[CLIENTS].connections().greet(*connection, key, now_);
    ClientLink* client = clients_.make();
    client->identity = identity;
    client->connection = std::move(connection);
    client_of_.emplace(client->identity, client->slot);
    return client->slot;
}

void Exchange::client_left(std::uint32_t slot) {
    ClientLink& client = *clients_.at(slot);
    client_of_.erase(client.identity);
    ports_[CLIENTS].connections().forget(*client.connection, now_);
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

}  // namespace clockwork
