// Flaws of messages as values, of which clockwork/controller/ports/flaws.py and clockwork/wire/codec.py make
// sentences.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "wire/header_flaw.h"

namespace clockwork {

// The flaw of a well-formed request or result. The used fields depend on `code`.
struct Flaw {
    enum Code : std::uint8_t {
        NONE,
        // Flaws of a request:
        UNSERVED,      // no such model is served: the look-up has the reason
        IN_USE,        // the client already waits for a request of this number
        FRAMES,        // `expected` described tensors, but `got` frames
        REFERENCE,     // `ref` names a missing frame
        NO_INPUT,      // `ref` names no input
        TWICE,         // the input is described twice
        FRAME_TAKEN,   // the input names another input's frame
        MISSING,       // the input is not described
        SYMBOL,        // `symbol` is `expected` in the input `other`, and `got` in this one
        NO_ROWS_AXIS,  // a scalar for a model that batches
        ROWS,          // `got` rows instead of `expected`; `expected` 0: at least one row is required
        UNSEEN,        // in memory that some worker cannot map
        NO_MEMORY,     // an impossible reference to memory
        // Flaws of a tensor of a request or a result:
        DTYPE,           // `got` instead of `expected`
        SHAPE,           // other dimensions than declared
        NO_DTYPE,        // `got` is no dtype of ONNX
        NEGATIVE,        // `got` is a negative dimension
        OVERFLOW,        // the dimensions' product is beyond all bounds
        TOO_LARGE,       // `got` elements are more than a message may hold
        BYTES,           // `got` bytes instead of `expected`
        STRINGS,         // more than STRINGS_MAX strings
        STRING_OUTSIDE,  // string `got` of `expected` lies outside its frame, of `bytes` bytes
        STRINGS_END,     // `got` bytes follow the last of `expected` strings
        // Flaws of a result:
        STATUS,        // `got` is no status
        PHASES,        // the phases take longer than the action's time
        FRAMES_MORE,   // `got` frames, of which the message names `expected`
        PARTS,         // `got` parts of a batch of `expected`
        PART_TENSORS,  // `got` tensors in a part, of a model with `expected` outputs
        OUTPUT_FRAME,  // an output in frame `got`, of `expected`
        OUTPUT_ROWS,   // an output without the batch's `expected` rows
        NO_PLACE,      // the output is not at its declared place in memory
        CODES,
    };

    Code code = NONE;
    std::uint32_t tensor = 0;  // the index among the model's inputs or outputs
    std::uint32_t ref = 0;     // the index among the tensors that the message describes
    std::uint32_t other = 0;
    std::int32_t symbol = 0;
    std::int64_t expected = 0;
    std::int64_t got = 0;
    std::int64_t bytes = 0;
};

inline constexpr std::array<std::string_view, Flaw::CODES> FLAW_NAMES = {
    "none",         "unserved",       "in_use",      "frames",       "reference", "no_input",    "twice",
    "frame_taken",  "missing",        "symbol",      "no_rows_axis", "rows",      "unseen",      "no_memory",
    "dtype",        "shape",          "no_dtype",    "negative",     "overflow",  "too_large",   "bytes",
    "strings",      "string_outside", "strings_end", "status",       "phases",    "frames_more", "parts",
    "part_tensors", "output_frame",   "output_rows", "no_place",
};

}  // namespace clockwork
