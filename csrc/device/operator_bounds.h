// Bounds of Clockwork's operators: on the attributes that a model gives them, and on the work that a string
// may cost.
//
// An operator runs as a single node, whose memory is on the heap: these bounds keep a small string from
// taking much.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "jpeg.h"
#include "wire/bounds.h"

namespace clockwork::device {

// ----- images -----------------------------------------------------------------------------------------

// bound on the ratio of the sides of an image that is cropped
inline constexpr std::size_t SIDES_RATIO_MAX = 64;
// blocks allowed at least: the smallest images have more blocks than their pixels say
inline constexpr std::size_t BLOCKS_PER_SCAN_MIN = 384;

// Bound on the blocks of 64 samples in all scans of an image, for an image of at most so many pixels: six
// times the blocks of three components in full size. libjpeg's own script for progressive images takes 4.7 to
// 5.3 times.
inline constexpr std::size_t blocks_max(std::size_t pixels_max) {
    return 6 * 3 * (pixels_max / 64) + JPEG_SCANS_MAX * BLOCKS_PER_SCAN_MIN;
}

// ----- texts ------------------------------------------------------------------------------------------

// bound on the tokens of a text, and of a row of the output
inline constexpr std::int64_t TOKENS_MAX = 1 << 20;
inline constexpr std::int64_t ID_MAX = INT32_MAX;  // bound on the id of a token
// bound on the entries of a vocabulary, of merges, or of a table of characters
inline constexpr std::size_t ENTRIES_MAX = 1 << 20;
inline constexpr std::size_t SPECIALS_MAX = 4096;  // bound on the number of special tokens
// bound on the bytes of a special token, a prefix, or a character's normalised form
inline constexpr std::size_t TOKEN_BYTES_MAX = 256;
// bound on the characters of a word that is looked up
inline constexpr std::int64_t WORD_CHARACTERS_MAX = 1'024;
inline constexpr std::size_t TEXT_BYTES_MIN = 64 << 10, TEXT_BYTES_MAX = 4 << 20, TEXT_BYTES_PER_TOKEN = 64;

// Bytes of a text that are read for so many tokens. English has some 4 bytes a token. A longer text is
// refused, or cut if the model truncates.
inline constexpr std::size_t text_bytes_max(std::size_t tokens_max) {
    const std::size_t bytes = TEXT_BYTES_MIN + TEXT_BYTES_PER_TOKEN * tokens_max;
    return bytes < TEXT_BYTES_MAX ? bytes : TEXT_BYTES_MAX;
}

// ----- the end of an execution ------------------------------------------------------------------------

// Set once the execution on this thread is to end: ONNX Runtime looks at its own flag between nodes only.
// Null: the execution never ends early.
inline thread_local const std::atomic<bool>* ending = nullptr;

inline bool is_ending() { return ending != nullptr && ending->load(std::memory_order_relaxed); }

}  // namespace clockwork::device
