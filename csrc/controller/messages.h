// The headers that a controller reads and writes most, as clockwork/wire/messages.py declares them.
//
// A header is one of these, well formed in every field, or read() says where it is not, as clockwork/wire/_codec.pyx does of
// every other kind. What was read points into the header's bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "controller/flaws.h"
#include "msgpack.h"
#include "scheduler/types.h"

namespace clockwork {

// As clockwork/wire/messages.py declares them; a test compares.
inline constexpr std::size_t REQUEST_HEADER_BYTES_MAX = 128 << 10;
inline constexpr std::size_t RESULT_HEADER_BYTES_MAX = 2 << 20;
inline constexpr std::size_t CANCEL_HEADER_BYTES_MAX = 32 << 10;
inline constexpr std::size_t REFERENCE_BYTES_MAX = 1'024;
inline constexpr std::size_t NAME_BYTES_MAX = 1'024;
inline constexpr std::size_t SENTENCE_BYTES_MAX = 16 << 10;
inline constexpr std::uint32_t TENSORS_MAX = 1'024;
inline constexpr std::uint32_t PARTS_MAX = 65'536;
inline constexpr std::uint32_t RANK_MAX = 32;
inline constexpr std::int64_t PRIORITY_MAX = 255;
inline constexpr std::int64_t FRAME_MAX = 65'535;  // the last one's number
inline constexpr std::int64_t DTYPE_MAX = INT32_MAX;
inline constexpr std::int64_t STATUS_NUMBER_MAX = 31;

// Added to the dtype of a tensor whose frame does not hold its bytes, but says where they are in the client's memory:
// clockwork/wire/shared.py has both forms, of an input (REFERENCE_BYTES) and of an output (PLACE_BYTES).
inline constexpr std::int64_t SHARED = 1 << 28;
inline constexpr std::size_t REFERENCE_BYTES = 80;
inline constexpr std::size_t PLACE_BYTES = 16;

// A tensor that a header describes. Its dimensions are `rank` numbers of the header's dims, from `first` on.
struct TensorRef {
    std::string_view name;  // a result's has none
    std::int64_t dtype = 0;
    std::uint32_t first = 0;
    std::uint32_t rank = 0;
    std::int64_t frame = 0;

    bool is_shared() const { return (dtype & SHARED) != 0; }
};

struct InferRequestHeader {
    std::int64_t request_id = 0;  // also of one that is malformed, if that much can be read; else 0
    std::string_view model;
    std::int64_t slo_ns = 0;
    std::int64_t priority = 0;
    std::vector<TensorRef> tensors;
    std::vector<std::int64_t> dims;

    // False if it is malformed; else everything is within the bounds of its declaration. A dimension may be any number
    // here: what the model takes is said with a better sentence.
    bool read(std::string_view header, HeaderFlaw& flaw);
};

struct CancelHeader {
    std::int64_t request_id = 0;  // see InferRequestHeader

    bool read(std::string_view header, HeaderFlaw& flaw);
};

// `parts`: how many tensors each part has; they follow one another in `tensors`.
struct ResultHeader {
    std::int64_t action_id = 0;
    std::int64_t status_number = 0;
    Status status = Status::OK;  // the same, if it is one
    std::string_view text;
    Ns received_ns = 0;  // worker time, as those below
    Ns begin_ns = 0;     // of the first phase that happened
    Ns end_ns = 0;       // of the last
    Ns duration_ns = 0;  // NEVER_NS: there is not so much time
    Ns copy_in_ns = 0;   // parts of that
    Ns execute_ns = 0;
    Ns copy_out_ns = 0;
    std::vector<std::uint32_t> parts;
    std::vector<TensorRef> tensors;
    std::vector<std::int64_t> dims;

    // False if it is malformed; else times are in range, the text is UTF-8, and dimensions are natural numbers.
    bool read(std::string_view header, HeaderFlaw& flaw);
};

// The tag of a header, or -1.
std::int64_t tag_of(std::string_view header);

// The dimensions of a tensor, as an array.
void write_dims(Writer& writer, const std::int64_t* dims, std::uint32_t rank);

}  // namespace clockwork
