// The exchange's part in requests: from a client's message to a held request that the scheduler knows, and to its
// end, by whatever way; and the clients that wait for them.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "controller/exchange.h"

namespace clockwork {

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

}  // namespace clockwork
