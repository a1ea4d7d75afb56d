#include "device/wordpiece.h"

#include <algorithm>

namespace clockwork::device {

WordPiece::WordPiece(const Common& common, const Parts& parts)
    : Tokenizer(common),
      removed_(parts.removed),
      spaces_(parts.spaces),
      alone_(parts.alone),
      prefix_(parts.prefix),
      unknown_(parts.unknown),
      word_max_(parts.word_max) {
    split(parts.vocabulary, '\n', [&](std::string_view token) {
        std::int64_t id = static_cast<std::int64_t>(vocabulary_.size());
        vocabulary_.emplace(token, id);
    });
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

void WordPiece::add_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
    std::string word;
    std::size_t length = 0;
    auto add = [&](std::uint32_t point, std::string_view bytes) {
        bool is_alone = alone_.hold(point);
        if (is_alone || spaces_.hold(point))
            end_word(ids, word, length);
        if (spaces_.hold(point))
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
        } else if (!removed_.hold(point)) {
            add(point, text.substr(0, size));
        }
        text.remove_prefix(size);
    }
    end_word(ids, word, length);
}

}  // namespace clockwork::device
