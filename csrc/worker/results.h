// Results of orders as messages.
#pragma once

#include <string_view>

#include "device/order.h"
#include "msgpack.h"
#include "wire/messages.h"
#include "worker/clock.h"

namespace clockwork::worker {

// A text for people as UTF-8: bytes that are not, such as the beginning of a character that was cut, become question marks.
std::string mended(std::string_view text);

// Writes results into a writer of its own, which the next replaces.
class ResultWriter {
public:
    // Of an action that did not reach its device.
    std::string_view refusal(std::int64_t action_id, Status status, std::string_view text, Ns received_ns);
    // Of an order that has ended. with_outputs: its frames follow, each part's outputs in order.
    std::string_view result(const device::Order& order, const Clock& clock, bool with_outputs);
    std::string_view pong(std::int64_t sent_ns, Ns received_ns, Ns returned_ns);

private:
    std::string_view written();

    wire::Result result_;
    std::string text_;
    Writer writer_;
};

}  // namespace clockwork::worker
