// The exchange's part in answers: outputs and failures, as messages to clients.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "controller/exchange.h"

namespace clockwork {

// Sends the header that was written. False if the client is gone: then there is nobody to tell.
bool Exchange::to_client(ClientLink& client, bool more) {
    if (client.gone)
        return false;
    if (!ports_[CLIENTS].address(client.identity, client.connection, now_)) {
        lost_clients.push_back(client.slot);
        return false;
    }
    ports_[CLIENTS].send(writer_.view(), more);
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
    std::uint64_t bytes = 0;
    for (std::size_t index = 0; index < count; ++index)
        bytes += ports_[WORKERS].haul().frame(result.first_frame + static_cast<std::size_t>(refs[index].frame)).size();
    if (!one.client->gone && !ports_[CLIENTS].connections().has_room(*one.client->connection, bytes)) {
        refuse_unread(command, one, bytes);
        release(one);
        return;
    }
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
    writer_.array(7);
    writer_.integer(command.a);
    writer_.integer(command.b);
    writer_.integer(command.c);
    writer_.integer(total_ns);
    writer_.integer(result.header.copy_in_ns);
    writer_.integer(result.header.copy_out_ns);
    writer_.natural(one.id);
    if (to_client(*one.client, count > 0)) {
        for (std::size_t index = 0; index < count; ++index) {
            Frame& frame =
                ports_[WORKERS].haul().frame(result.first_frame + static_cast<std::size_t>(refs[index].frame));
            bool more = index + 1 < count;
            if (result.is_distinct) {
                ports_[CLIENTS].send(frame, more);
            } else {
                spare_.share(frame);
                ports_[CLIENTS].send(spare_, more);
            }
        }
    }
    count_answered(one, command, result.header);
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
    fail(one, command.status, failure_text(command, one), &command);
    count_failed(one, command);
    release(one);
}

// Instead of an answer of so many bytes, behind more unread ones than may wait.
void Exchange::refuse_unread(const Command& command, const HeldRequest& one, std::uint64_t bytes) {
    const Connections& clients = ports_[CLIENTS].connections();
    const Connection& connection = *one.client->connection;
    Command refusal = command;
    refusal.status = Status::REFUSED;
    refusal.reason = Reason::OVERLOADED;
    refusal.feasible_slo_ns = refusal.retry_after_ns = 0;
    std::string text = "an answer of " + std::to_string(bytes) + " bytes cannot wait: on this connection " +
                       std::to_string(connection.unread()) + " bytes are not read yet, of at most " +
                       std::to_string(clients.credit(connection)) + ", and on all " +
                       std::to_string(clients.unread_bytes()) + ", of at most " +
                       std::to_string(bounds_.connections[CLIENTS].unread_bytes_all) +
                       ": read answers sooner, or ask for fewer at once";
    fail(one, Status::REFUSED, text, &refusal);
    count_failed(one, refusal);
}

// Valid until the next one is asked for.
std::string_view Exchange::failure_text(const Command& command, const HeldRequest& one) {
    const std::string* said =
        command.said >= 0 ? &scheduler_.out.texts[static_cast<std::size_t>(command.said)] : nullptr;
    return sentences_.text(command, one.model->label, said);
}

void Exchange::fail(const HeldRequest& one, Status status, std::string_view text, const Command* answer) {
    writer_.clear();
    writer_.array(5);
    writer_.integer(TAG_FAILURE);
    writer_.integer(one.request_id);
    writer_.integer(static_cast<std::int64_t>(status));
    writer_.text(text);
    if (status == Status::REFUSED && answer != nullptr) {
        writer_.map(4);
        writer_.text("request");
        writer_.natural(one.id);
        writer_.text("reason");
        writer_.text(sentences_.reason(answer->reason));
        writer_.text("feasible_slo_ns");
        writer_.integer(answer->feasible_slo_ns);
        writer_.text("retry_after_ns");
        writer_.integer(answer->retry_after_ns);
    } else if (answer != nullptr) {
        writer_.map(1);
        writer_.text("request");
        writer_.natural(one.id);
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
