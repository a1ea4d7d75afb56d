// Tokenization by a WordPiece vocabulary. The tokens equal those of the library `tokenizers` for models such
// as BERT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "device/tokens.h"

namespace clockwork::device {

class WordPiece final : public Tokenizer {
public:
    struct Parts {
        std::string vocabulary;  // a token per line, in the order of their ids
        std::string normalised;  // a line per character: "code point in hex<tab>normalised form"
        // CodePoints of characters that are removed, that separate words, and that are words by themselves
        std::string removed, spaces, alone;
        std::string prefix;  // prefix of tokens that continue a word
        std::int64_t unknown = 0;
        // bound on the characters of a word that is looked up; a longer word is unknown
        std::size_t word_max = 0;
    };

    WordPiece(const Common& common, const Parts& parts);

protected:
    bool add_plain(std::string_view text, std::vector<std::int64_t>& ids) const override;

private:
    void end_word(std::vector<std::int64_t>& ids, std::string& word, std::size_t& length) const;

    std::unordered_map<std::string, std::int64_t> vocabulary_;
    std::unordered_map<std::uint32_t, std::string> normalised_;
    std::size_t token_bytes_max_ = 0;
    CodePoints removed_, spaces_, alone_;
    std::string prefix_;
    std::int64_t unknown_;
    std::size_t word_max_;
};

}  // namespace clockwork::device
