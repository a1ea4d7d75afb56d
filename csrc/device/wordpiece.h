// Texts as the tokens of a WordPiece vocabulary, as the library `tokenizers` finds them for models such as BERT.
//
// What depends on Unicode comes as tables, made from the tokenizer itself (clockwork/models/tokenizers.py).
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace clockwork::device {

class WordPiece {
public:
    struct Parts {
        std::string vocabulary;  // tokens in the order of their ids, one a line
        std::string specials;    // "token<tab>id" a line: taken from the text before it is normalised
        std::string normalised;  // "code point in hex<tab>what it becomes" a line
        std::string removed, spaces,
            alone;                  // "first-last" in hex, with commas: gone; between words; words of their own
        std::string prefix;         // of tokens that go on a word
        std::string before, after;  // ids around each text, separated by commas
        std::int64_t unknown = 0;
        std::size_t word_max = 0;    // characters of a word that is looked up; a longer one is unknown
        std::size_t tokens_max = 0;  // of a text, those around it included
        bool truncates = false;      // a text of more tokens is cut, and not an error
    };

    explicit WordPiece(const Parts& parts);

    // The ids of a text. False, and a clause that goes behind "text 3", if it is not UTF-8 or has too many tokens.
    bool encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const;

private:
    using Ranges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

    // Whether a text has more tokens already than it may have: the rest of it is not looked at.
    bool is_full(const std::vector<std::int64_t>& ids) const { return ids.size() + after_.size() > tokens_max_; }
    void add_plain(std::string_view text, std::vector<std::int64_t>& ids, std::string& word, std::size_t& length) const;
    void end_word(std::vector<std::int64_t>& ids, std::string& word, std::size_t& length) const;

    std::unordered_map<std::string, std::int64_t> vocabulary_;
    std::vector<std::pair<std::string, std::int64_t>> specials_;  // the longest first
    std::bitset<256> begins_special_;                             // by byte
    std::unordered_map<std::uint32_t, std::string> normalised_;
    Ranges removed_, spaces_, alone_;
    std::string prefix_;
    std::vector<std::int64_t> before_, after_;
    std::int64_t unknown_;
    std::size_t word_max_, tokens_max_;
    bool truncates_;
};

}  // namespace clockwork::device
