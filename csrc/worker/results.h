// Writes the results of orders as messages.
#pragma once

#include <string_view>

#include "device/order.h"
#include "msgpack.h"
#include "wire/messages.h"
#include "worker/clock.h"

namespace clockwork::worker {

// Returns a text as valid UTF-8: each invalid byte, such as the start of a cut character, becomes a question
// mark.
std::string mended(std::string_view text);

// Writes results into its own writer. Each result replaces the one before.
class ResultWriter {
public:
    // Writes the result of an action that did not reach its device.
    std::string_view refusal(std::int64_t action_id, Status status, std::string_view text, Ns received_ns);
    // Writes the result of an ended order. with_outputs: frames follow, with each part's outputs in order.
    std::string_view result(const device::Order& order, const Clock& clock, bool with_outputs);
    std::string_view pong(std::int64_t sent_ns, Ns received_ns, Ns returned_ns);

private:
    std::string_view written();

    wire::Result result_;
    std::string text_;
    Writer writer_;
};

}  // namespace clockwork::worker
