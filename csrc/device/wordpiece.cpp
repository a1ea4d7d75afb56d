#include "device/wordpiece.h"

#include <algorithm>
#include <stdexcept>

namespace clockwork::device {

WordPiece::WordPiece(const Common& common, const Parts& parts)
    : Tokenizer(common),
      removed_("removed", parts.removed),
      spaces_("spaces", parts.spaces),
      alone_("alone", parts.alone),
      prefix_(parts.prefix),
      unknown_(parts.unknown),
      word_max_(parts.word_max) {
    if (prefix_.size() > TOKEN_BYTES_MAX)
        throw std::invalid_argument("attribute prefix has " + std::to_string(prefix_.size()) + " bytes; at most " +
                                    std::to_string(TOKEN_BYTES_MAX) + " are served");
    AttributeTable tokens("vocabulary", parts.vocabulary, '\n');
    tokens.each([&](std::string_view token) {
        std::int64_t id = static_cast<std::int64_t>(vocabulary_.size());
        if (!vocabulary_.emplace(token, id).second)
            tokens.refuse("is a token that was there before");
        token_bytes_max_ = std::max(token_bytes_max_, token.size());
    });
    AttributeTable forms("normalised", parts.normalised, '\n');
    forms.each([&](std::string_view line) {
        std::size_t tab = line.find('\t');
        if (tab == std::string_view::npos || line.size() - tab - 1 > TOKEN_BYTES_MAX)
            forms.refuse("is not a code point, a tab, and at most " + std::to_string(TOKEN_BYTES_MAX) +
                         " bytes that it becomes");
        std::int64_t point = forms.number(line.substr(0, tab), UINT32_MAX, 16);
        normalised_.emplace(static_cast<std::uint32_t>(point), line.substr(tab + 1));
    });
}

void WordPiece::end_word(std::vector<std::int64_t>& ids, std::string& word, std::size_t& length) const {
    if (word.empty())
        return;
    std::size_t kept = ids.size(), begin = 0;
    std::string piece;
    while (begin < word.size() && length <= word_max_) {
        // The vocabulary has no longer piece.
        std::size_t end = std::min(word.size(), begin + token_bytes_max_);
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

bool WordPiece::add_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
    std::string word;
    std::size_t length = 0;
    auto add = [&](std::uint32_t point, std::string_view bytes) {
        bool is_alone = alone_.hold(point);
        if (is_alone || spaces_.hold(point))
            end_word(ids, word, length);
        if (spaces_.hold(point))
            return;
        if (++length <= word_max_)
            word += bytes;  // a word beyond word_max is known to be unknown
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
        } else if (!removed_.hold(point)) {
            add(point, text.substr(0, size));
        }
        text.remove_prefix(size);
    }
    end_word(ids, word, length);
    return text.empty();
}

}  // namespace clockwork::device
