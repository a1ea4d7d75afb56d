#include "device/byte_pairs.h"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace clockwork::device {

namespace {

constexpr std::uint32_t NOTHING = UINT32_MAX;

constexpr std::string_view CONTRACTIONS[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

}  // namespace

BytePairs::BytePairs(const Common& common, const Parts& parts)
    : Tokenizer(common),
      letters_("letters", parts.letters),
      numbers_("numbers", parts.numbers),
      spaces_("spaces", parts.spaces),
      begins_with_space_(parts.begins_with_space) {
    std::size_t place = 0;
    AttributeTable bytes("bytes", parts.bytes, ',', bytes_.size());
    bytes.each([&](std::string_view id) { bytes_[place++] = static_cast<std::uint32_t>(bytes.number(id)); });
    if (place != bytes_.size())
        throw std::invalid_argument("attribute bytes has " + std::to_string(place) + " ids; one for each of the " +
                                    std::to_string(bytes_.size()) + " bytes is needed");
    AttributeTable merges("merges", parts.merges, '\n');
    merges.each([&](std::string_view line) {
        std::uint32_t ids[3] = {0, 0, 0};
        std::size_t count = 0;
        split(line, ',', [&](std::string_view id) {
            if (count == 3)
                merges.refuse("has more than 3 ids");
            ids[count++] = static_cast<std::uint32_t>(merges.number(id));
        });
        if (count != 3)
            merges.refuse("has " + std::to_string(count) + " ids, not 3");
        std::uint32_t rank = static_cast<std::uint32_t>(merges_.size());
        merges_.try_emplace(std::uint64_t{ids[0]} << 32 | ids[1], Merge{rank, ids[2]});
    });
}

BytePairs::Kind BytePairs::kind_of(std::uint32_t point) const {
    if (letters_.hold(point))
        return Kind::LETTER;
    if (numbers_.hold(point))
        return Kind::NUMBER;
    return spaces_.hold(point) ? Kind::SPACE : Kind::OTHER;
}

const BytePairs::Merge* BytePairs::merge_of(std::uint32_t left, std::uint32_t right) const {
    auto found = merges_.find(std::uint64_t{left} << 32 | right);
    return found != merges_.end() ? &found->second : nullptr;
}

// The pending merge of the lowest rank; among equal ranks, the leftmost merge.
void BytePairs::add_piece(std::string_view piece, std::vector<std::int64_t>& ids) const {
    struct Symbol {
        std::uint32_t id, before, after;
    };
    // rank, place, id that the merge makes
    using Step = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;
    std::vector<Symbol> symbols;
    std::uint32_t count = static_cast<std::uint32_t>(piece.size());
    for (std::uint32_t place = 0; place < count; ++place) {
        symbols.push_back({bytes_[static_cast<unsigned char>(piece[place])], place == 0 ? NOTHING : place - 1,
                           place + 1 < count ? place + 1 : NOTHING});
    }
    std::priority_queue<Step, std::vector<Step>, std::greater<>> steps;
    auto consider = [&](std::uint32_t place) {
        if (place == NOTHING || symbols[place].after == NOTHING)
            return;
        if (const Merge* merge = merge_of(symbols[place].id, symbols[symbols[place].after].id); merge != nullptr)
            steps.emplace(merge->rank, place, merge->made);
    };
    for (std::uint32_t place = 0; place < count; ++place)
        consider(place);
    while (!steps.empty() && !is_ending()) {
        auto [rank, place, made] = steps.top();
        steps.pop();
        Symbol& left = symbols[place];
        if (left.id == NOTHING || left.after == NOTHING)
            continue;
        const Merge* merge = merge_of(left.id, symbols[left.after].id);
        if (merge == nullptr || merge->rank != rank)
            continue;  // stale: an earlier merge has replaced the left or the right token
        Symbol& right = symbols[left.after];
        left.id = made;
        left.after = right.after;
        right.id = NOTHING;
        if (left.after != NOTHING)
            symbols[left.after].before = place;
        consider(left.before);
        consider(place);
    }
    for (const Symbol& symbol : symbols) {
        if (symbol.id != NOTHING)
            ids.push_back(symbol.id);
    }
}

// Splits text by GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
bool BytePairs::add_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
    if (text.empty())
        return true;
    std::string with_space;
    if (begins_with_space_ && text[0] != ' ')
        text = with_space.append(" ").append(text);
    const std::size_t size = text.size();
    // the kind of the character at `at`; `next` is set to its end
    auto kind = [&](std::size_t at, std::size_t& next) {
        std::uint32_t point = 0;
        next = at + std::max<std::size_t>(character(text.substr(at), point), 1);
        return kind_of(point);
    };
    std::size_t last = 0, next = 0;
    // the end of the run of characters of one kind; `last` is set to its last character
    auto run = [&](std::size_t from) {
        std::size_t end = from, behind = 0;
        const Kind first = kind(from, behind);
        do {
            last = end;
            end = behind;
        } while (end < size && kind(end, behind) == first);
        return end;
    };
    for (std::size_t at = 0; at < size; at = next) {
        if (is_full(ids))
            return false;
        std::string_view rest = text.substr(at);
        auto contraction = std::find_if(std::begin(CONTRACTIONS), std::end(CONTRACTIONS),
                                        [&](std::string_view ending) { return rest.starts_with(ending); });
        std::size_t word = text[at] == ' ' ? at + 1 : at, behind = 0;
        if (contraction != std::end(CONTRACTIONS)) {
            next = at + contraction->size();
        } else if (word < size && kind(word, behind) != Kind::SPACE) {
            next = run(word);
        } else {
            next = run(at);
            if (next < size && last > at)
                next = last;  // the last space belongs to the piece that follows
        }
        add_piece(text.substr(at, next - at), ids);
    }
    return true;
}

}  // namespace clockwork::device
