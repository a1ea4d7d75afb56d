// Whether a request is what its model takes, and a result what was asked for and what its model gives.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "controller/flaws.h"
#include "controller/models.h"
#include "controller/sent_actions.h"
#include "wire/bounds.h"
#include "wire/messages.h"

namespace clockwork {

using wire::TensorRef;

// Whether a tensor's frame says where its bytes are in the client's memory, instead of holding them.
inline bool is_shared(const TensorRef& ref) { return (ref.dtype & SHARED) != 0; }

inline constexpr std::int64_t DIMENSIONS_MAX = std::int64_t{1} << 62;  // clockwork.wire.tensors._DIMENSIONS_MAX

// Sizes up to this one count as it where requests of different size share batches: clockwork.wire.tensors.length_class.
inline constexpr std::int64_t LENGTH_CLASS_MIN = 4;

// More rows than these are as good as these to any estimate.
inline constexpr std::int64_t ROWS_MAX = 1 << 30;

// The bytes of a message's frames.
using FrameBytes = std::vector<std::string_view>;

// How a request is taken.
struct Accepted {
    std::uint32_t rows = 1;
    std::uint64_t bytes = 0;                // of all frames
    std::uint64_t copied_bytes = 0;         // of tensors in the client's memory
    bool is_shared = false;                 // some tensor is in the client's memory
    bool has_room = false;                  // where there is room for outputs as well
    std::vector<const TensorRef*> tensors;  // in the model's order
    // The rank and dimensions of each input, without the axis of rows, as their classes where requests of different size
    // share batches; of strings with the size of one behind them. Of an optional input the value, behind VALUE_MARK.
    std::vector<std::int64_t> shape;

    // While checking.
    std::vector<bool> taken;
    std::vector<std::uint32_t> holders;  // of symbols: the first input that has one, counted from 1
    std::vector<std::int64_t> sizes;     // and its size there
};

// The first number of a shape's entry that holds the value of an optional input: clockwork.wire.optional.VALUE_MARK.
inline constexpr std::int64_t VALUE_MARK = NEVER_NS - 1;

// Adds the defaults of the optional inputs that a request leaves out, with frames of the model's own behind those that came.
void add_defaults(const ModelInterface& model, wire::InferRequest& request, FrameBytes& frames);

// Whether every tensor is named, typed, shaped and sized right; if not, `flaw` says what is wrong first. machine: whose
// memory every worker sees (0: none), as clockwork.wire.shared.machine_id() numbers it.
bool check_request(const ModelInterface& model, const wire::InferRequest& request, const FrameBytes& frames,
                   std::int64_t machine, Accepted& accepted, Flaw& flaw);

// Whether a result is one of this action: its parts, tensors, frames, and each output what the model gives.
bool check_result(const Expected& expected, const wire::Result& result, const FrameBytes& frames, Flaw& flaw);

// Whether an output is what the model gives for so many rows; flaw.tensor and flaw.ref are the caller's. has_room: it
// may be in the client's memory.
bool check_output(const ModelInterface& model, std::size_t output, std::uint32_t rows, bool has_room,
                  const TensorRef& ref, const std::int64_t* dims, std::string_view data, Flaw& flaw);

}  // namespace clockwork
