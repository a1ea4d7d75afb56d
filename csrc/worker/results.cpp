#include "worker/results.h"

#include <stdexcept>
#include <string>

namespace clockwork::worker {

namespace {

// A phase that did not happen stays zero.
wire::Phase phase_of(const device::TimedPhase& span, const Clock& clock) {
    if (!clock.is_shifted() || span.begin_ns == 0)
        return {span.begin_ns, span.end_ns, span.duration_ns};
    return {clock.to_worker(span.begin_ns), clock.to_worker(span.end_ns), span.duration_ns};
}

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
    result_.clear();
    result_.action_id = action_id;
    result_.status = static_cast<std::int64_t>(status);
    result_.text = text;
    if (!is_utf8(text)) {
        text_ = mended(text);
        result_.text = text_;
    }
    result_.received_ns = received_ns;
    return written();
}

std::string_view ResultWriter::result(const device::Order& order, const Clock& clock, bool with_outputs) {
    result_.clear();
    result_.action_id = order.action_id;
    result_.status = order.status;
    result_.text = order.text;
    if (!is_utf8(result_.text)) {
        text_ = mended(order.text);
        result_.text = text_;
    }
    result_.received_ns = order.received_ns;
    result_.copy_in = phase_of(order.copy_in, clock);
    result_.execute = phase_of(order.execute, clock);
    result_.copy_out = phase_of(order.copy_out, clock);
    const device::BatchParts& parts = order.parts;
    const std::uint32_t count = static_cast<std::uint32_t>(parts.outputs.size());
    for (std::size_t part = 0; with_outputs && part < parts.part_count; ++part) {
        result_.parts.push_back({static_cast<std::uint32_t>(result_.tensors.size()), count});
        for (std::size_t index = 0; index < count; ++index) {
            std::int64_t dims[device::RANK_MOST];
            const int rank = parts.output_shape(part, index, dims);
            wire::TensorRef& ref = result_.tensors.emplace_back();
            ref.dtype = parts.outputs[index].dtype;
            ref.shape = {static_cast<std::uint32_t>(result_.dims.size()), static_cast<std::uint32_t>(rank)};
            ref.frame = static_cast<std::int64_t>(result_.tensors.size() - 1);
            result_.dims.insert(result_.dims.end(), dims, dims + rank);
        }
    }
    return written();
}

std::string_view ResultWriter::pong(std::int64_t sent_ns, Ns received_ns, Ns returned_ns) {
    wire::Pong pong;
    pong.sent_ns = sent_ns;
    pong.received_ns = received_ns;
    pong.returned_ns = returned_ns;
    pong.write(writer_);
    return writer_.view();
}

std::string_view ResultWriter::written() {
    if (!result_.write(writer_))
        throw std::logic_error("a result is larger than a controller takes");
    return writer_.view();
}

}  // namespace clockwork::worker
