#include "worker/results.h"

#include <stdexcept>
#include <string>

#include "wire/bounds.h"

namespace clockwork::worker {

namespace {

// A phase that did not happen stays zero.
wire::Phase phase_of(const device::TimedPhase& span, const Clock& clock) {
    if (!clock.is_shifted() || span.begin_ns == 0)
        return {span.begin_ns, span.end_ns, span.duration_ns};
    return {clock.to_worker(span.begin_ns), clock.to_worker(span.end_ns), span.duration_ns};
}

// Sets a result's text, which must be valid UTF-8. mend: holds the text if it was not.
void set_text(wire::Result& result, std::string_view text, std::string& mend) {
    result.text = text;
    if (!is_utf8(text)) {
        mend = mended(text);
        result.text = mend;
    }
}

void nothing_to_free(void*, void*) {}

}  // namespace

std::string mended(std::string_view text) {
    std::string found(text);
    std::size_t at = 0;
    while (at < found.size()) {
        std::size_t size = 1;
        while (size <= 4 && at + size <= found.size() && !is_utf8(std::string_view(found).substr(at, size)))
            ++size;
        if (size > 4 || at + size > found.size()) {
            found[at] = '?';
            size = 1;
        }
        at += size;
    }
    return found;
}

std::string_view ResultWriter::refusal(std::int64_t action_id, Status status, std::string_view text, Ns received_ns) {
    refusal_.clear();
    refusal_.action_id = action_id;
    refusal_.status = static_cast<std::int64_t>(status);
    set_text(refusal_, text, text_);
    refusal_.received_ns = received_ns;
    return written(refusal_);
}

void ResultWriter::describe(device::Order& order, const Clock& clock, bool is_kept, Outgoing& outgoing) const {
    wire::Result& result = outgoing.result;
    result.clear();
    outgoing.outputs.clear();
    outgoing.places.clear();
    outgoing.block = {};
    result.action_id = order.action_id;
    result.status = order.status;
    if (is_kept)
        outgoing.text = order.text;
    set_text(result, is_kept ? std::string_view(outgoing.text) : order.text, outgoing.text);
    result.received_ns = order.received_ns;
    result.copy_in = phase_of(order.copy_in, clock);
    result.execute = phase_of(order.execute, clock);
    result.copy_out = phase_of(order.copy_out, clock);
    device::BatchParts& parts = order.parts;
    const char* const bytes = parts.output_bytes();
    if (order.status != static_cast<std::int32_t>(Status::OK) || order.kind != ActionKind::INFER || bytes == nullptr)
        return;
    const std::uint32_t count = static_cast<std::uint32_t>(parts.outputs.size());
    for (std::size_t part = 0; part < parts.part_count; ++part) {
        result.parts.push_back({static_cast<std::uint32_t>(result.tensors.size()), count});
        for (std::size_t index = 0; index < count; ++index) {
            std::int64_t dims[RANK_MAX];
            const int rank = parts.output_shape(part, index, dims);
            wire::TensorRef& ref = result.tensors.emplace_back();
            ref.dtype = parts.outputs[index].dtype;
            ref.shape = {static_cast<std::uint32_t>(result.dims.size()), static_cast<std::uint32_t>(rank)};
            ref.frame = static_cast<std::int64_t>(result.tensors.size() - 1);
            result.dims.insert(result.dims.end(), dims, dims + rank);
            const std::int64_t begin = parts.output_begin(index, part), end = parts.output_end(index, part);
            outgoing.outputs.emplace_back(bytes + begin, static_cast<std::size_t>(end - begin));
        }
    }
    outgoing.places.resize(outgoing.outputs.size());
    if (parts.block != nullptr && (is_kept || parts.block_bytes >= std::int64_t(copied_frame_bytes_)))
        outgoing.block = OutputBlock(std::exchange(parts.block, nullptr));
}

std::string_view ResultWriter::header(Outgoing& outgoing) {
    for (std::size_t index = 0; index < outgoing.places.size(); ++index) {
        if (outgoing.places[index] != 0)
            outgoing.result.tensors[index].dtype |= SHARED;
    }
    return written(outgoing.result);
}

void ResultWriter::send_outputs(DealerSocket& socket, const Outgoing& outgoing) const {
    std::size_t left = outgoing.outputs.size();
    for (std::size_t index = 0; index < outgoing.outputs.size(); ++index) {
        const std::string_view bytes = outgoing.outputs[index];
        const bool more = --left > 0;
        if (outgoing.places[index] != 0) {
            const std::int64_t place[] = {outgoing.places[index], static_cast<std::int64_t>(bytes.size())};
            static_assert(sizeof place == PLACE_BYTES);
            socket.send(std::string_view(reinterpret_cast<const char*>(place), sizeof place), more);
        } else if (bytes.size() < copied_frame_bytes_) {
            socket.send(bytes, more);
        } else {
            Frame frame;
            void* const owner = outgoing.block.hold();
            frame.lend(const_cast<char*>(bytes.data()), bytes.size(),
                       owner != nullptr ? OutputBlock::let_go : nothing_to_free, owner);
            socket.send(frame, more);
        }
    }
}

std::string_view ResultWriter::pong(std::int64_t sent_ns, Ns received_ns, Ns returned_ns) {
    wire::Pong pong;
    pong.sent_ns = sent_ns;
    pong.received_ns = received_ns;
    pong.returned_ns = returned_ns;
    pong.write(writer_);
    return writer_.view();
}

std::string_view ResultWriter::written(const wire::Result& result) {
    if (!result.write(writer_))
        throw std::logic_error("a result is larger than a controller takes");
    return writer_.view();
}

}  // namespace clockwork::worker
