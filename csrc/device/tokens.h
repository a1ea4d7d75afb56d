// What tokenizers share: special tokens, UTF-8, how many tokens a text may have, and the tables that they are made of.
//
// What depends on Unicode comes as tables, made from the tokenizer itself (clockwork/models/tokenizers.py).
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace clockwork::device {

// Code points, as sorted ranges.
class CodePoints {
public:
    // text: "first-last" in hex, separated by commas.
    explicit CodePoints(std::string_view text);
    bool hold(std::uint32_t point) const;

private:
    std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges_;
};

std::uint32_t hex(std::string_view text);
std::int64_t decimal(std::string_view text);

// Calls function(piece) for each piece between separators, none for an empty text.
template <typename Function>
void split(std::string_view text, char separator, Function&& function) {
    while (!text.empty()) {
        std::size_t end = std::min(text.find(separator), text.size());
        function(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

// The bytes of the character at the beginning of a text, and its code point; 0 where it is not UTF-8.
std::size_t character(std::string_view text, std::uint32_t& point);

class Tokenizer {
public:
    struct Common {
        // "token<tab>id<tab>flags" a line: taken from the text before all else. With flags l and r it takes the white space
        // before and behind it along.
        std::string specials;
        std::string before, after;   // ids around each text, separated by commas
        std::size_t tokens_max = 0;  // of a text, those around it included
        bool truncates = false;      // a text of more tokens is cut, and not an error
    };

    // The ids of a text. False, and a clause that goes behind "text 3", if it is not UTF-8 or has too many tokens.
    bool encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const;

protected:
    explicit Tokenizer(const Common& common);
    ~Tokenizer() = default;

    // Add the ids of valid UTF-8 without special tokens. It may end early once the ids are full.
    virtual void add_plain(std::string_view text, std::vector<std::int64_t>& ids) const = 0;

    // Whether a text has more tokens already than it may have: the rest of it is not looked at.
    bool is_full(const std::vector<std::int64_t>& ids) const { return ids.size() + after_.size() > tokens_max_; }

private:
    struct Special {
        std::string text;
        std::int64_t id;
        bool takes_before, takes_behind;
    };

    std::vector<Special> specials_;    // the longest first
    std::bitset<256> begins_special_;  // by byte
    std::vector<std::int64_t> before_, after_;
    std::size_t tokens_max_;
    bool truncates_;
};

}  // namespace clockwork::device
