// Writes the results of orders as messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "device/order.h"
#include "msgpack.h"
#include "wire/dealer.h"
#include "wire/messages.h"
#include "worker/clock.h"
#include "worker/output_block.h"

namespace clockwork::worker {

// Returns a text as valid UTF-8: each invalid byte, such as the start of a cut character, becomes a question
// mark.
std::string mended(std::string_view text);

// A result with its outputs' bytes. It may be used again.
struct Outgoing {
    wire::Result result;
    std::string text;                       // the result's, if it is not the order's
    std::vector<std::string_view> outputs;  // the bytes of each of the result's tensors
    std::vector<std::int64_t> places;       // their offsets in their client's memory; 0: the bytes are sent
    OutputBlock block;                      // owns the bytes; empty: the order or its device does
};

// Writes messages with a writer of its own. Each message replaces the one before.
class ResultWriter {
public:
    // copied_frame_bytes: smaller outputs are copied into libzmq's memory.
    explicit ResultWriter(std::size_t copied_frame_bytes) : copied_frame_bytes_(copied_frame_bytes) {}

    // Writes the result of an action that did not reach its device.
    std::string_view refusal(std::int64_t action_id, Status status, std::string_view text, Ns received_ns);
    std::string_view pong(std::int64_t sent_ns, Ns received_ns, Ns returned_ns);

    // Describes the result of an ended order. The order must live until the result is sent. is_kept: it need
    // not, as the result takes over the order's bytes.
    void describe(device::Order& order, const Clock& clock, bool is_kept, Outgoing& outgoing) const;
    // Writes the header of a result. Its frames are the outputs.
    std::string_view header(Outgoing& outgoing);
    // Sends the frames of a result whose header was sent.
    void send_outputs(DealerSocket& socket, const Outgoing& outgoing) const;

private:
    std::string_view written(const wire::Result& result);

    std::size_t copied_frame_bytes_;
    wire::Result refusal_;
    std::string text_;
    Writer writer_;
};

}  // namespace clockwork::worker
