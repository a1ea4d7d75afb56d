// Bounds of Clockwork's operators: of the attributes that a model gives them, and of the work that one string may cost.
//
// An operator runs as one node, whose memory is on the heap: the bounds below are what keeps a small string cheap.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "jpeg.h"

namespace clockwork::device {

// ----- images -----------------------------------------------------------------------------------------

inline constexpr std::int64_t SIDE_MAX = 16'384;         // config.models.SIDE_MAX; of an output
inline constexpr std::int64_t PIXELS_MAX = 1 << 25;      // config.models.JPEG_PIXELS_MAX; at every step of an image
inline constexpr std::size_t SIDES_RATIO_MAX = 64;       // of an image that is cropped
inline constexpr std::size_t BLOCKS_PER_SCAN_MIN = 384;  // smallest images have more blocks than pixels say

// Blocks of 64 samples that all scans of an image may have together, for an image of at most so many pixels: six times
// those of three components in full size. libjpeg's own script for progressive images takes 4.7 to 5.3 times.
inline constexpr std::size_t blocks_max(std::size_t pixels_max) {
    return 6 * 3 * (pixels_max / 64) + JPEG_SCANS_MAX * BLOCKS_PER_SCAN_MIN;
}

// ----- texts ------------------------------------------------------------------------------------------

inline constexpr std::int64_t TOKENS_MAX = 1 << 20;  // of a text, or of a row of the output
inline constexpr std::int64_t ID_MAX = INT32_MAX;    // of a token
inline constexpr std::size_t ENTRIES_MAX = 1 << 20;  // of a vocabulary, of merges, of a table of characters
inline constexpr std::size_t SPECIALS_MAX = 4096;    // special tokens
inline constexpr std::size_t TOKEN_BYTES_MAX = 256;  // of a special token, a prefix, a character's normalised form
inline constexpr std::int64_t WORD_CHARACTERS_MAX = 1'024;  // of a word that is looked up
inline constexpr std::size_t TEXT_BYTES_MIN = 64 << 10, TEXT_BYTES_MAX = 4 << 20, TEXT_BYTES_PER_TOKEN = 64;

// Bytes of a text that are read for so many tokens. English has some 4 bytes a token; a longer text is refused, or cut
// if it is to be cut anyway.
inline constexpr std::size_t text_bytes_max(std::size_t tokens_max) {
    const std::size_t bytes = TEXT_BYTES_MIN + TEXT_BYTES_PER_TOKEN * tokens_max;
    return bytes < TEXT_BYTES_MAX ? bytes : TEXT_BYTES_MAX;
}

// ----- the end of an execution ------------------------------------------------------------------------

// Set while the execution on this thread is to end: ONNX Runtime looks at its own flag between nodes alone. Null: never.
inline thread_local const std::atomic<bool>* ending = nullptr;

inline bool is_ending() { return ending != nullptr && ending->load(std::memory_order_relaxed); }

}  // namespace clockwork::device
