// The parts that tokenizers share: special tokens, UTF-8, the bound on the tokens of a text, and the tables
// of attributes.
//
// Tables that depend on Unicode are made from the tokenizer itself (clockwork/models/tokenizers.py).
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/operator_bounds.h"

namespace clockwork::device {

// Calls function(piece) for each piece between separators, never for an empty text.
template <typename Function>
void split(std::string_view text, char separator, Function&& function) {
    while (!text.empty()) {
        std::size_t end = std::min(text.find(separator), text.size());
        function(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

// An operator's attribute that is text: at most `most` entries between separators. A wrong entry throws
// std::invalid_argument with the attribute and the entry's number.
class AttributeTable {
public:
    AttributeTable(const char* name, std::string_view text, char separator, std::size_t most = ENTRIES_MAX)
        : name_(name), text_(text), separator_(separator), most_(most) {}

    template <typename Function>
    void each(Function&& function) {
        split(text_, separator_, [&](std::string_view entry) {
            if (++count_ > most_)
                refuse("is one too many: at most " + std::to_string(most_) + " are served");
            function(entry);
        });
    }

    // The whole number, 0 to `most`, that an entry or a field of it holds.
    std::int64_t number(std::string_view text, std::int64_t most = ID_MAX, int base = 10) const;
    [[noreturn]] void refuse(const std::string& problem) const;

private:
    const char* name_;
    std::string_view text_;
    char separator_;
    std::size_t most_;
    std::size_t count_ = 0;
};

// A set of code points, as sorted ranges.
class CodePoints {
public:
    // text: "first-last" in hex, separated by commas. Throws std::invalid_argument.
    CodePoints(const char* name, std::string_view text);
    bool hold(std::uint32_t point) const;

private:
    std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges_;
};

// The code point of the character at the beginning of a text, and its number of bytes; 0 bytes where it is
// not UTF-8.
std::size_t character(std::string_view text, std::uint32_t& point);

class Tokenizer {
public:
    struct Common {
        // A special token per line, as "token<tab>id<tab>flags": it is found before the rest of the text is
        // split. The flags l and r include the white space to the left and right.
        std::string specials;
        std::string before, after;   // ids added before and after each text, separated by commas
        std::size_t tokens_max = 0;  // bound on the tokens of a text, including those of `before` and `after`
        bool truncates = false;      // whether a text with more tokens is cut instead of refused
    };

    // The ids of a text. Returns false, with a clause that continues "text 3", if the text is not UTF-8, has
    // too many tokens, or has more bytes than are read for them.
    bool encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const;

protected:
    // Throws std::invalid_argument, as all constructors of tokenizers do.
    explicit Tokenizer(const Common& common);
    ~Tokenizer() = default;

    // Adds the ids of valid UTF-8 without special tokens. It stops once the ids are full, and returns false
    // if any of the text was left.
    virtual bool add_plain(std::string_view text, std::vector<std::int64_t>& ids) const = 0;

    // Whether a text has more tokens already than it may have, or the execution is to end: the rest of the
    // text is skipped.
    bool is_full(const std::vector<std::int64_t>& ids) const {
        return ids.size() + after_.size() > tokens_max_ || is_ending();
    }

private:
    struct Special {
        std::string text;
        std::int64_t id;
        bool takes_before, takes_behind;
    };

    // The longest special token with which a text begins; null: none.
    const Special* special_at(std::string_view text) const;

    std::vector<Special> specials_;    // sorted by their bytes
    std::bitset<256> begins_special_;  // first bytes of all special tokens
    std::vector<std::int64_t> before_, after_;
    std::size_t tokens_max_;
    bool truncates_;
};

}  // namespace clockwork::device
