// Checks requests against their models' inputs, and results against their actions and their models' outputs.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "controller/flaws.h"
#include "controller/models.h"
#include "controller/sent_actions.h"
#include "wire/bounds.h"
#include "wire/messages.h"
#include "wire/shared.h"

namespace clockwork {

using wire::TensorRef;

// The most rows that an estimate distinguishes.
inline constexpr std::int64_t ROWS_MAX = 1 << 30;

// The bytes of a message's frames.
using FrameBytes = std::vector<std::string_view>;

// An accepted request.
struct AcceptedRequest {
    std::uint32_t rows = 1;
    std::uint64_t bytes = 0;                // the bytes of all frames
    std::uint64_t copied_bytes = 0;         // the bytes of tensors in the client's memory
    bool is_shared = false;                 // whether a tensor is in the client's memory
    bool has_room = false;                  // whether that memory has room for outputs as well
    std::vector<const TensorRef*> tensors;  // tensors in the order of the model's inputs
    // The rank and dimensions of each input without the axis of rows. Dimensions are size classes where
    // requests of different size share batches. The size of a string follows. An optional input has
    // VALUE_MARK and its value.
    std::vector<std::int64_t> shape;

    // Scratch of the check:
    std::vector<bool> taken;
    std::vector<std::uint32_t> holders;  // by symbol: the first input that has it, counted from 1
    std::vector<std::int64_t> sizes;     // by symbol: its size in that input
};

// Adds the defaults of omitted optional inputs to a request, with the model's frames behind the received
// ones.
void add_defaults(const ModelInterface& model, wire::InferRequest& request, FrameBytes& frames);

// Checks the name, type, shape and size of each tensor; `flaw` gets the first flaw. machine: the machine_id()
// of clockwork.wire.shared whose memory every worker sees (0: none).
bool check_request(const ModelInterface& model, const wire::InferRequest& request, const FrameBytes& frames,
                   std::int64_t machine, AcceptedRequest& accepted, Flaw& flaw);

// Checks that a result fits its action: parts, tensors, frames, and each output as the model declares.
bool check_result(const ExpectedResult& expected, const wire::Result& result, const FrameBytes& frames, Flaw& flaw);

// Checks an output for a number of rows; the caller sets flaw.tensor and flaw.ref. has_room: the output may
// be in the client's memory.
bool check_output(const ModelInterface& model, std::size_t output, std::uint32_t rows, bool has_room,
                  const TensorRef& ref, const std::int64_t* dims, std::string_view data, Flaw& flaw);

}  // namespace clockwork
