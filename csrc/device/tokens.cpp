#include "device/tokens.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <system_error>

namespace clockwork::device {

namespace {

constexpr std::int64_t CODE_POINT_MAX = 0x10ffff;

std::vector<std::int64_t> ids_of(const char* name, std::string_view text) {
    std::vector<std::int64_t> found;
    AttributeTable table(name, text, ',', TOKENS_MAX);
    table.each([&](std::string_view entry) { found.push_back(table.number(entry)); });
    return found;
}

// The white space of Rust's char::is_whitespace().
constexpr std::string_view WHITE_SPACE[] = {" ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\u0085",
                                            "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                            "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
                                            "\u2029", "\u202f", "\u205f", "\u3000"};

// Number of bytes of the white space for which matches(bytes) holds; 0 if for none.
template <typename Matches>
std::size_t white_space(Matches&& matches) {
    auto found = std::find_if(std::begin(WHITE_SPACE), std::end(WHITE_SPACE), matches);
    return found != std::end(WHITE_SPACE) ? found->size() : 0;
}

}  // namespace

std::int64_t AttributeTable::number(std::string_view text, std::int64_t most, int base) const {
    std::int64_t value = -1;  // not strtol(), which would bind the library to the newest glibc
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > most)
        refuse("has no whole number from 0 to " + std::to_string(most) + " where one belongs");
    return value;
}

void AttributeTable::refuse(const std::string& problem) const {
    throw std::invalid_argument(std::string("attribute ") + name_ + ": entry " + std::to_string(count_) + " " +
                                problem);
}

CodePoints::CodePoints(const char* name, std::string_view text) {
    AttributeTable table(name, text, ',');
    table.each([&](std::string_view range) {
        std::size_t dash = std::min(range.find('-'), range.size());
        auto point = [&](std::string_view digits) {
            return static_cast<std::uint32_t>(table.number(digits, CODE_POINT_MAX, 16));
        };
        std::uint32_t first = point(range.substr(0, dash));
        std::uint32_t last = dash < range.size() ? point(range.substr(dash + 1)) : first;
        if (last < first || (!ranges_.empty() && first <= ranges_.back().second))
            table.refuse("does not lie behind the range before it");
        ranges_.emplace_back(first, last);
    });
}

bool CodePoints::hold(std::uint32_t point) const {
    auto after = std::upper_bound(ranges_.begin(), ranges_.end(), point,
                                  [](std::uint32_t value, const auto& range) { return value < range.first; });
    return after != ranges_.begin() && point <= std::prev(after)->second;
}

std::size_t character(std::string_view text, std::uint32_t& point) {
    auto at = [&](std::size_t place) { return static_cast<unsigned char>(text[place]); };
    std::uint32_t lead = at(0);
    if (lead < 0x80) {
        point = lead;
        return 1;
    }
    std::size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < size)
        return 0;
    point = lead & (0xffu >> (size + 1));
    for (std::size_t place = 1; place < size; ++place) {
        if ((at(place) & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (at(place) & 0x3fu);
    }
    bool is_valid = point <= 0x10ffff && (point < 0xd800 || point > 0xdfff) && (size < 3 || point >= 0x800) &&
                    (size < 4 || point >= 0x10000);
    return is_valid ? size : 0;
}

Tokenizer::Tokenizer(const Common& common)
    : before_(ids_of("before", common.before)),
      after_(ids_of("after", common.after)),
      tokens_max_(common.tokens_max),
      truncates_(common.truncates) {
    if (before_.size() + after_.size() > tokens_max_)
        throw std::invalid_argument("attributes before and after: " + std::to_string(before_.size() + after_.size()) +
                                    " tokens around each text; at most tokens_max = " + std::to_string(tokens_max_) +
                                    " are served");
    AttributeTable table("specials", common.specials, '\n', SPECIALS_MAX);
    table.each([&](std::string_view line) {
        std::vector<std::string_view> fields;
        split(line, '\t', [&](std::string_view field) { fields.push_back(field); });
        if (fields.size() != 2 && fields.size() != 3)
            table.refuse("is not a token, its id and its flags");
        if (fields[0].empty() || fields[0].size() > TOKEN_BYTES_MAX)
            table.refuse("has a token of " + std::to_string(fields[0].size()) + " bytes; 1 to " +
                         std::to_string(TOKEN_BYTES_MAX) + " are served");
        auto has = [&](char flag) { return fields.size() == 3 && fields[2].find(flag) != std::string_view::npos; };
        specials_.push_back({std::string(fields[0]), table.number(fields[1]), has('l'), has('r')});
        begins_special_.set(static_cast<unsigned char>(line[0]));
    });
    std::sort(specials_.begin(), specials_.end(),
              [](const Special& token, const Special& other) { return token.text < other.text; });
}

// Narrows the range of special tokens byte by byte to those that begin the text, so that many special tokens
// cost no more than few.
const Tokenizer::Special* Tokenizer::special_at(std::string_view text) const {
    if (!begins_special_[static_cast<unsigned char>(text[0])])
        return nullptr;
    const Special* found = nullptr;
    auto low = specials_.begin(), high = specials_.end();
    for (std::size_t at = 0; at < text.size() && low != high; ++at) {
        // All tokens left share the bytes before `at`; a token that ends there sorts first.
        unsigned char byte = static_cast<unsigned char>(text[at]);
        auto comes_before = [&](const Special& token, int value) {
            return (at < token.text.size() ? static_cast<unsigned char>(token.text[at]) : -1) < value;
        };
        low = std::lower_bound(low, high, static_cast<int>(byte), comes_before);
        high = std::lower_bound(low, high, static_cast<int>(byte) + 1, comes_before);
        if (low != high && low->text.size() == at + 1)
            found = &*low;
    }
    return found;
}

bool Tokenizer::encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const {
    const std::size_t bytes = text.size(), bytes_max = text_bytes_max(tokens_max_);
    auto too_long = [&] {
        problem = "has " + std::to_string(bytes) + " bytes; at most " + std::to_string(bytes_max) +
                  " are read for the " + std::to_string(tokens_max_) + " tokens that the model takes";
        return false;
    };
    const bool is_cut = bytes > bytes_max;
    if (is_cut) {
        if (!truncates_)
            return too_long();
        std::size_t end = bytes_max;
        while (end > bytes_max - 3 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80)
            --end;  // within a character
        text = text.substr(0, end);
    }
    std::uint32_t point = 0;
    for (std::size_t at = 0; at < text.size();) {
        std::size_t size = character(text.substr(at), point);
        if (size == 0) {
            problem = "is not UTF-8 at byte " + std::to_string(at);
            return false;
        }
        at += size;
    }
    ids = before_;
    std::size_t plain = 0;
    for (std::size_t at = 0; at < text.size() && !is_full(ids);) {
        const Special* found = special_at(text.substr(at));
        if (found == nullptr) {
            ++at;
            continue;
        }
        std::string_view before = text.substr(plain, at - plain);
        while (found->takes_before) {
            std::size_t size = white_space([&](std::string_view space) { return before.ends_with(space); });
            if (size == 0)
                break;
            before.remove_suffix(size);
        }
        add_plain(before, ids);
        ids.push_back(found->id);
        at += found->text.size();
        while (found->takes_behind) {
            std::string_view behind = text.substr(at);
            std::size_t size = white_space([&](std::string_view space) { return behind.starts_with(space); });
            if (size == 0)
                break;
            at += size;
        }
        plain = at;
    }
    // The last piece of a truncated text may differ from the whole text's piece, so its tokens do not count.
    if (!is_full(ids) && add_plain(text.substr(plain), ids) && is_cut)
        return too_long();
    if (is_ending()) {
        problem = "was not read to its end: the execution was ended";
        return false;
    }
    if (is_full(ids)) {
        if (!truncates_) {
            problem = "has more than the " + std::to_string(tokens_max_) + " tokens that the model takes";
            return false;
        }
        ids.resize(tokens_max_ - after_.size());
    }
    ids.insert(ids.end(), after_.begin(), after_.end());
    return true;
}

}  // namespace clockwork::device
