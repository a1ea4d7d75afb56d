#include "device/tokens.h"

#include <algorithm>
#include <charconv>

namespace clockwork::device {

namespace {

// What a text begins with as a number; 0 if that is none. (strtol() would bind this to the newest glibc.)
template <typename Number>
Number number_of(std::string_view text, int base) {
    Number value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value, base);
    return value;
}

std::vector<std::int64_t> ids_of(std::string_view text) {
    std::vector<std::int64_t> found;
    split(text, ',', [&](std::string_view one) { found.push_back(decimal(one)); });
    return found;
}

// What Rust's char::is_whitespace() holds of.
constexpr std::string_view WHITE_SPACE[] = {" ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\u0085",
                                            "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                            "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
                                            "\u2029", "\u202f", "\u205f", "\u3000"};

// The bytes of the white space that matches(it) is true of; 0: of none.
template <typename Matches>
std::size_t white_space(Matches&& matches) {
    auto found = std::find_if(std::begin(WHITE_SPACE), std::end(WHITE_SPACE), matches);
    return found != std::end(WHITE_SPACE) ? found->size() : 0;
}

}  // namespace

std::uint32_t hex(std::string_view text) { return number_of<std::uint32_t>(text, 16); }

std::int64_t decimal(std::string_view text) { return number_of<std::int64_t>(text, 10); }

CodePoints::CodePoints(std::string_view text) {
    split(text, ',', [&](std::string_view one) {
        std::size_t dash = one.find('-');
        ranges_.emplace_back(hex(one.substr(0, dash)), hex(one.substr(dash + 1)));
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
    : before_(ids_of(common.before)),
      after_(ids_of(common.after)),
      tokens_max_(common.tokens_max),
      truncates_(common.truncates) {
    split(common.specials, '\n', [&](std::string_view line) {
        std::vector<std::string_view> fields;
        split(line, '\t', [&](std::string_view field) { fields.push_back(field); });
        fields.resize(3);
        auto has = [&](char flag) { return fields[2].find(flag) != std::string_view::npos; };
        specials_.push_back({std::string(fields[0]), decimal(fields[1]), has('l'), has('r')});
        begins_special_.set(static_cast<unsigned char>(line[0]));
    });
    std::sort(specials_.begin(), specials_.end(),
              [](const Special& one, const Special& other) { return one.text.size() > other.text.size(); });
}

bool Tokenizer::encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const {
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
        auto found = specials_.end();
        if (begins_special_[static_cast<unsigned char>(text[at])]) {
            found = std::find_if(specials_.begin(), specials_.end(),
                                 [&](const Special& special) { return text.substr(at).starts_with(special.text); });
        }
        if (found == specials_.end()) {
            ++at;
            continue;
        }
        std::string_view before = text.substr(plain, at - plain);
        while (found->takes_before) {
            std::size_t size = white_space([&](std::string_view one) { return before.ends_with(one); });
            if (size == 0)
                break;
            before.remove_suffix(size);
        }
        add_plain(before, ids);
        ids.push_back(found->id);
        at += found->text.size();
        while (found->takes_behind) {
            std::string_view behind = text.substr(at);
            std::size_t size = white_space([&](std::string_view one) { return behind.starts_with(one); });
            if (size == 0)
                break;
            at += size;
        }
        plain = at;
    }
    add_plain(text.substr(plain), ids);
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
