// Texts as the tokens of a WordPiece vocabulary, as the library `tokenizers` finds them for models such as BERT.
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
        std::string vocabulary;              // tokens in the order of their ids, one a line
        std::string normalised;              // "code point in hex<tab>what it becomes" a line
        std::string removed, spaces, alone;  // CodePoints: gone; between words; words of their own
        std::string prefix;                  // of tokens that go on a word
        std::int64_t unknown = 0;
        std::size_t word_max = 0;  // characters of a word that is looked up; a longer one is unknown
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
