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

#include "device/operator_bounds.h"

namespace clockwork::device {

// Calls function(piece) for each piece between separators, none for an empty text.
template <typename Function>
void split(std::string_view text, char separator, Function&& function) {
    while (!text.empty()) {
        std::size_t end = std::min(text.find(separator), text.size());
        function(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

// An attribute of an operator that is text: entries between separators, at most `most`. What is wrong with one is thrown as
// std::invalid_argument, with the attribute and the entry's number.
class Table {
public:
    Table(const char* name, std::string_view text, char separator, std::size_t most = ENTRIES_MAX)
        : name_(name), text_(text), separator_(separator), most_(most) {}

    template <typename Function>
    void each(Function&& function) {
        split(text_, separator_, [&](std::string_view entry) {
            if (++count_ > most_)
                refuse("is one too many: at most " + std::to_string(most_) + " are served");
            function(entry);
        });
    }

    // A whole number that an entry, or a field of it, is: 0 to `most`.
    std::int64_t number(std::string_view text, std::int64_t most = ID_MAX, int base = 10) const;
    [[noreturn]] void refuse(const std::string& problem) const;

private:
    const char* name_;
    std::string_view text_;
    char separator_;
    std::size_t most_;
    std::size_t count_ = 0;
};

// Code points, as sorted ranges.
class CodePoints {
public:
    // text: "first-last" in hex, separated by commas. Throws std::invalid_argument.
    CodePoints(const char* name, std::string_view text);
    bool hold(std::uint32_t point) const;

private:
    std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges_;
};

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

    // The ids of a text. False, and a clause that goes behind "text 3", if it is not UTF-8, has too many tokens, or more
    // bytes than are read for them.
    bool encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const;

protected:
    // Throws std::invalid_argument, as all constructors of tokenizers do.
    explicit Tokenizer(const Common& common);
    ~Tokenizer() = default;

    // Add the ids of valid UTF-8 without special tokens. It ends early once the ids are full: false then, if any of the text
    // was left.
    virtual bool add_plain(std::string_view text, std::vector<std::int64_t>& ids) const = 0;

    // Whether a text has more tokens already than it may have, or the execution is to end: the rest of it is not looked at.
    bool is_full(const std::vector<std::int64_t>& ids) const {
        return ids.size() + after_.size() > tokens_max_ || is_ending();
    }

private:
    struct Special {
        std::string text;
        std::int64_t id;
        bool takes_before, takes_behind;
    };

    // The longest special token that a text begins with; null: none.
    const Special* special_at(std::string_view text) const;

    std::vector<Special> specials_;    // in the order of their bytes
    std::bitset<256> begins_special_;  // by byte
    std::vector<std::int64_t> before_, after_;
    std::size_t tokens_max_;
    bool truncates_;
};

}  // namespace clockwork::device
