#include "controller/answers.h"

#include <algorithm>
#include <string>
#include <vector>

namespace clockwork {

void Answers::succeed(const Command& command, Ns now) {
    HeldRequest& held = requests_.at(command.request_id);
    const KeptResult& result = results_.of(command.action_id);
    if (held.pair != nullptr)
        shadows_.keep_answer(held, results_, result, command.part);
    if (held.client == nullptr) {
        release(held);
        return;
    }
    std::size_t tensors = result.header.parts.at(command.part);
    std::size_t count = std::min(tensors, held.model->interface->outputs.size());
    const TensorRef* refs = result.header.tensors.data() + command.part * tensors;
    std::uint64_t bytes = 0;
    for (std::size_t index = 0; index < count; ++index)
        bytes += results_.frame(result, refs[index]).size();
    if (!held.client->gone && !clients_.connections().has_room(*held.client->connection, bytes)) {
        refuse_unread(command, held, bytes, now);
        release(held);
        return;
    }
    write_success(command, held, result, refs, count, now);
    if (clients_.send(*held.client, writer_.view(), count > 0, now)) {
        for (std::size_t index = 0; index < count; ++index) {
            Frame& frame = results_.frame(result, refs[index]);
            bool more = index + 1 < count;
            if (result.is_distinct) {
                clients_.send(frame, more);
            } else {
                spare_.share(frame);
                clients_.send(spare_, more);
            }
        }
    }
    counts_.answered(held, command, result.header, now);
    release(held);
}

void Answers::write_success(const Command& command, const HeldRequest& held, const KeptResult& result,
                            const TensorRef* refs, std::size_t count, Ns now) {
    const std::vector<std::string>& names = held.model->interface->outputs;
    writer_.clear();
    writer_.array(5);
    writer_.integer(TAG_ANSWER);
    writer_.integer(held.request_id);
    writer_.integer(held.model->version);
    writer_.array(count);
    for (std::size_t index = 0; index < count; ++index) {
        writer_.array(4);
        writer_.text(names[index]);
        writer_.integer(refs[index].dtype);
        write_dims(writer_, result.header.dims.data() + refs[index].first, refs[index].rank);
        writer_.natural(index);
    }
    Ns total_ns = now - held.arrived_ns;
    writer_.array(7);
    writer_.integer(command.a);
    writer_.integer(command.b);
    writer_.integer(command.c);
    writer_.integer(total_ns);
    writer_.integer(result.header.copy_in_ns);
    writer_.integer(result.header.copy_out_ns);
    writer_.natural(held.id);
}

void Answers::fail(const Command& command, const Commands& all, Ns now) {
    HeldRequest& held = requests_.at(command.request_id);
    if (held.pair != nullptr)
        shadows_.unpair(held);
    if (held.client != nullptr) {
        send_failure(held, command.status, failure_text(command, all, held), &command, now);
        counts_.failed(held, command, now);
    }
    release(held);
}

// Instead of an answer of so many bytes, behind more unread ones than may wait.
void Answers::refuse_unread(const Command& command, const HeldRequest& held, std::uint64_t bytes, Ns now) {
    const Connections& clients = clients_.connections();
    const Connection& connection = *held.client->connection;
    Command refusal = command;
    refusal.status = Status::REFUSED;
    refusal.reason = Reason::OVERLOADED;
    refusal.feasible_slo_ns = refusal.retry_after_ns = 0;
    std::string text = "an answer of " + std::to_string(bytes) + " bytes cannot wait: on this connection " +
                       std::to_string(connection.unread()) + " bytes are not read yet, of at most " +
                       std::to_string(clients.credit(connection)) + ", and on all " +
                       std::to_string(clients.unread_bytes()) + ", of at most " + std::to_string(unread_bytes_max_) +
                       ": read answers sooner, or ask for fewer at once";
    send_failure(held, Status::REFUSED, text, &refusal, now);
    counts_.failed(held, refusal, now);
}

std::string_view Answers::failure_text(const Command& command, const Commands& all) {
    return failure_text(command, all, requests_.at(command.request_id));
}

std::string_view Answers::failure_text(const Command& command, const Commands& all, const HeldRequest& held) {
    const std::string* said = command.said >= 0 ? &all.texts[static_cast<std::size_t>(command.said)] : nullptr;
    return sentences_.text(command, held.model->label, said);
}

void Answers::send_failure(const HeldRequest& held, Status status, std::string_view text, const Command* refusal,
                           Ns now) {
    writer_.clear();
    writer_.array(5);
    writer_.integer(TAG_FAILURE);
    writer_.integer(held.request_id);
    writer_.integer(static_cast<std::int64_t>(status));
    writer_.text(text);
    if (status == Status::REFUSED && refusal != nullptr) {
        writer_.map(4);
        writer_.text("request");
        writer_.natural(held.id);
        writer_.text("reason");
        writer_.text(sentences_.reason(refusal->reason));
        writer_.text("feasible_slo_ns");
        writer_.integer(refusal->feasible_slo_ns);
        writer_.text("retry_after_ns");
        writer_.integer(refusal->retry_after_ns);
    } else if (refusal != nullptr) {
        writer_.map(1);
        writer_.text("request");
        writer_.natural(held.id);
    } else {
        writer_.map(0);
    }
    clients_.send(*held.client, writer_.view(), false, now);
}

void Answers::fail_all(Status status, std::string_view text, Ns now) {
    requests_.for_each([&](HeldRequest& held) {
        if (held.client != nullptr)
            send_failure(held, status, text, nullptr, now);
        release(held);
    });
}

void Answers::release(HeldRequest& held) {
    if (held.client == nullptr)
        shadows_.release(held);
    else
        requests_.release(held);
}

}  // namespace clockwork
