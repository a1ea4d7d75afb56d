// Tokenization by byte-level byte-pair encoding. The tokens equal those of the library `tokenizers` for
// models such as GPT-2 and RoBERTa.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "device/tokens.h"

namespace clockwork::device {

class BytePairs final : public Tokenizer {
public:
    struct Parts {
        std::string bytes;  // the id of each of the 256 bytes, separated by commas
        // a merge per line, as the ids "left,right,made"; the order is the order of priority
        std::string merges;
        std::string letters, numbers, spaces;  // Unicode ranges of each class, as CodePoints reads them
        bool begins_with_space = false;        // a space is added before a text that begins with none
    };

    BytePairs(const Common& common, const Parts& parts);

protected:
    bool add_plain(std::string_view text, std::vector<std::int64_t>& ids) const override;

private:
    struct Merge {
        std::uint32_t rank, made;
    };
    enum class Kind : std::uint8_t { LETTER, NUMBER, SPACE, OTHER };

    Kind kind_of(std::uint32_t point) const;
    const Merge* merge_of(std::uint32_t left, std::uint32_t right) const;
    void add_piece(std::string_view piece, std::vector<std::int64_t>& ids) const;

    std::array<std::uint32_t, 256> bytes_ = {};
    std::unordered_map<std::uint64_t, Merge> merges_;  // by the pair of ids: left << 32 | right
    CodePoints letters_, numbers_, spaces_;
    bool begins_with_space_;
};

}  // namespace clockwork::device
