#include "device/wordpiece.h"

#include <algorithm>
#include <charconv>

namespace clockwork::device {

namespace {

// Calls function(piece) for each piece between separators, none for an empty text.
template <typename Function>
void split(std::string_view text, char separator, Function&& function) {
    while (!text.empty()) {
        std::size_t end = std::min(text.find(separator), text.size());
        function(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

// What a text begins with as a number; 0 if that is none. (strtol() would bind this to the newest glibc.)
template <typename Number>
Number number_of(std::string_view text, int base) {
    Number value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value, base);
    return value;
}

std::uint32_t hex(std::string_view text) { return number_of<std::uint32_t>(text, 16); }

std::int64_t decimal(std::string_view text) { return number_of<std::int64_t>(text, 10); }

template <typename Ranges>
Ranges ranges_of(std::string_view text) {
    Ranges found;
    split(text, ',', [&](std::string_view one) {
        std::size_t dash = one.find('-');
        found.emplace_back(hex(one.substr(0, dash)), hex(one.substr(dash + 1)));
    });
    return found;
}

template <typename Ranges>
bool holds(const Ranges& ranges, std::uint32_t point) {
    auto after = std::upper_bound(ranges.begin(), ranges.end(), point,
                                  [](std::uint32_t value, const auto& range) { return value < range.first; });
    return after != ranges.begin() && point <= std::prev(after)->second;
}

std::vector<std::int64_t> ids_of(std::string_view text) {
    std::vector<std::int64_t> found;
    split(text, ',', [&](std::string_view one) { found.push_back(decimal(one)); });
    return found;
}

// The bytes of the character at the beginning of a text, and its code point; 0 where it is not UTF-8.
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

}  // namespace

WordPiece::WordPiece(const Parts& parts)
    : removed_(ranges_of<Ranges>(parts.removed)),
      spaces_(ranges_of<Ranges>(parts.spaces)),
      alone_(ranges_of<Ranges>(parts.alone)),
      prefix_(parts.prefix),
      before_(ids_of(parts.before)),
      after_(ids_of(parts.after)),
      unknown_(parts.unknown),
      word_max_(parts.word_max),
      tokens_max_(parts.tokens_max),
      truncates_(parts.truncates) {
    split(parts.vocabulary, '\n', [&](std::string_view token) {
        std::int64_t id = static_cast<std::int64_t>(vocabulary_.size());
        vocabulary_.emplace(token, id);
    });
    split(parts.specials, '\n', [&](std::string_view line) {
        std::size_t tab = line.find('\t');
        specials_.emplace_back(line.substr(0, tab), decimal(line.substr(tab + 1)));
        begins_special_.set(static_cast<unsigned char>(line[0]));
    });
    std::sort(specials_.begin(), specials_.end(),
              [](const auto& one, const auto& other) { return one.first.size() > other.first.size(); });
    split(parts.normalised, '\n', [&](std::string_view line) {
        std::size_t tab = line.find('\t');
        normalised_.emplace(hex(line.substr(0, tab)), line.substr(tab + 1));
    });
}

void WordPiece::end_word(std::vector<std::int64_t>& ids, std::string& word, std::size_t& length) const {
    if (word.empty())
        return;
    std::size_t kept = ids.size(), begin = 0;
    std::string piece;
    while (begin < word.size() && length <= word_max_) {
        std::size_t end = word.size();
        for (; end > begin; --end) {
            if (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xc0) == 0x80)
                continue;  // within a character
            piece.assign(begin == 0 ? "" : prefix_).append(word, begin, end - begin);
            if (auto found = vocabulary_.find(piece); found != vocabulary_.end()) {
                ids.push_back(found->second);
                break;
            }
        }
        if (end == begin)
            break;
        begin = end;
    }
    if (begin < word.size()) {
        ids.resize(kept);
        ids.push_back(unknown_);
    }
    word.clear();
    length = 0;
}

void WordPiece::add_plain(std::string_view text, std::vector<std::int64_t>& ids, std::string& word,
                          std::size_t& length) const {
    auto add = [&](std::uint32_t point, std::string_view bytes) {
        bool is_alone = holds(alone_, point);
        if (is_alone || holds(spaces_, point))
            end_word(ids, word, length);
        if (holds(spaces_, point))
            return;
        word += bytes;
        ++length;
        if (is_alone)
            end_word(ids, word, length);
    };
    std::uint32_t point = 0;
    while (!text.empty() && !is_full(ids)) {
        std::size_t size = character(text, point);
        if (auto found = normalised_.find(point); found != normalised_.end()) {
            std::string_view left = found->second;
            while (!left.empty()) {
                std::size_t part = std::max<std::size_t>(character(left, point), 1);
                add(point, left.substr(0, part));
                left.remove_prefix(part);
            }
        } else if (!holds(removed_, point)) {
            add(point, text.substr(0, size));
        }
        text.remove_prefix(size);
    }
    end_word(ids, word, length);
}

bool WordPiece::encode(std::string_view text, std::vector<std::int64_t>& ids, std::string& problem) const {
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
    std::string word;
    std::size_t length = 0, plain = 0;
    for (std::size_t at = 0; at < text.size() && !is_full(ids);) {
        auto found = specials_.end();
        if (begins_special_[static_cast<unsigned char>(text[at])]) {
            found = std::find_if(specials_.begin(), specials_.end(),
                                 [&](const auto& one) { return text.substr(at).starts_with(one.first); });
        }
        if (found == specials_.end()) {
            ++at;
            continue;
        }
        add_plain(text.substr(plain, at - plain), ids, word, length);
        ids.push_back(found->second);
        at += found->first.size();
        plain = at;
    }
    add_plain(text.substr(plain), ids, word, length);
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
