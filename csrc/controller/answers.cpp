#include "controller/answers.h"

#include <algorithm>
#include <string>
#include <vector>

#include "controller/course.h"

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
    const wire::ListRange& part = result.header.parts.at(command.part);
    std::size_t count = std::min<std::size_t>(part.count, held.model->interface->outputs.size());
    const TensorRef* refs = result.header.tensors.data() + part.first;
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
    answer_.clear();
    answer_.request_id = held.request_id;
    answer_.model_version = held.model->version;
    for (std::size_t index = 0; index < count; ++index) {
        const wire::ListRange& shape = refs[index].shape;
        auto start = result.header.dims.begin() + shape.first;
        auto first = static_cast<std::uint32_t>(answer_.dims.size());
        answer_.dims.insert(answer_.dims.end(), start, start + shape.count);
        answer_.tensors.push_back(
            {names[index], refs[index].dtype, {first, shape.count}, static_cast<std::int64_t>(index)});
    }
    wire::AnswerTimes times;
    times.queue_ns = command.queue_ns;
    times.load_ns = command.load_ns;
    times.exec_ns = command.exec_ns;
    times.total_ns = now - held.arrived_ns;
    times.copy_in_ns = took_ns(result.header.copy_in);
    times.copy_out_ns = took_ns(result.header.copy_out);
    times.request = static_cast<std::int64_t>(held.id);
    times.fill(answer_.times);
    answer_.write(writer_);
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

// The refusal that replaces an answer of `bytes` bytes behind more unread bytes than may wait.
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
    failure_.clear();
    failure_.request_id = held.request_id;
    failure_.status = static_cast<std::int64_t>(status);
    failure_.text = text;
    if (refusal != nullptr)
        failure_.details.request = static_cast<std::int64_t>(held.id);
    if (status == Status::REFUSED && refusal != nullptr) {
        failure_.details.reason = sentences_.reason(refusal->reason);
        failure_.details.feasible_slo_ns = refusal->feasible_slo_ns;
        failure_.details.retry_after_ns = refusal->retry_after_ns;
    }
    failure_.write(writer_);
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
