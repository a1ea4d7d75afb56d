#include "controller/held_requests.h"

#include <stdexcept>
#include <string>

namespace clockwork {

HeldRequest& HeldRequests::hold(ClientLink* client, std::int64_t request_id, ServedModel& model) {
    HeldRequest& held = *pool_.make();
    held.id = next_++;
    held.request_id = request_id;
    held.client = client;
    held.model = &model;
    ServedModels::hold(model, client == nullptr);
    if (client != nullptr) {
        held.before = client->last;
        held.after = nullptr;
        (client->last != nullptr ? client->last->after : client->first) = &held;
        client->last = &held;
        client->requests.insert(static_cast<std::uint64_t>(request_id), held.slot);
        ++client->connection->asked;
    }
    by_id_.insert(held.id, held.slot);
    return held;
}

void HeldRequests::arrive(HeldRequest& held, const ArrivalTerms& terms, Ns now) {
    Request request;
    request.id = held.id;
    request.model_id = held.model->model_id;
    request.rows = terms.rows;
    request.shape = terms.shape;
    request.bytes = terms.bytes;
    request.copied_bytes = terms.copied_bytes;
    request.arrived_ns = now;
    held.rows = terms.rows;
    held.arrived_ns = now;
    request.deadline_ns = terms.deadline_ns;
    request.is_spare = held.client == nullptr;  // only copies have no client
    request.priority = static_cast<std::uint8_t>(terms.priority != 0 ? terms.priority : priority_default_);
    scheduler_.arrived(now, request);
}

void HeldRequests::cancel_departed(Ns now) {
    for (std::uint32_t slot : clients_.departed()) {
        ClientLink& client = clients_.at(slot);
        client.has_departed = true;
        for (HeldRequest* held = client.first; held != nullptr; held = held->after)
            cancel(*held, now);
        if (client.first == nullptr)
            clients_.give_back(client);
    }
    clients_.departed().clear();
}

void HeldRequests::release(HeldRequest& held) {
    ServedModel& model = *held.model;
    bool is_copy = held.client == nullptr;
    by_id_.erase(held.id);
    if (!is_copy) {
        ClientLink& client = *held.client;
        client.requests.erase(static_cast<std::uint64_t>(held.request_id));
        --client.connection->asked;
        (held.before != nullptr ? held.before->after : client.first) = held.after;
        (held.after != nullptr ? held.after->before : client.last) = held.before;
        if (client.has_departed && client.first == nullptr)
            clients_.give_back(client);
    }
    pool_.give_back(&held);
    models_.release(model, is_copy);
}

HeldRequest& HeldRequests::at(RequestId request_id) {
    HeldRequest* held = find(request_id);
    if (held == nullptr)
        throw std::logic_error("an order for request " + std::to_string(request_id));
    return *held;
}

}  // namespace clockwork
