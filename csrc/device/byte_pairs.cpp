#include "device/byte_pairs.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace clockwork::device {

namespace {

constexpr std::uint32_t NOTHING = UINT32_MAX;

constexpr std::string_view CONTRACTIONS[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

struct Character {
    std::size_t begin;
    std::uint8_t kind;
    bool is_blank;  // a space, and no other white space
};

}  // namespace

BytePairs::BytePairs(const Common& common, const Parts& parts)
    : Tokenizer(common),
      letters_(parts.letters),
      numbers_(parts.numbers),
      spaces_(parts.spaces),
      begins_with_space_(parts.begins_with_space) {
    std::size_t place = 0;
    split(parts.bytes, ',', [&](std::string_view id) {
        if (place < bytes_.size())
            bytes_[place++] = static_cast<std::uint32_t>(decimal(id));
    });
    split(parts.merges, '\n', [&](std::string_view line) {
        std::uint32_t ids[3] = {0, 0, 0};
        std::size_t at = 0;
        split(line, ',', [&](std::string_view id) {
            if (at < 3)
                ids[at++] = static_cast<std::uint32_t>(decimal(id));
        });
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

// The merge of the least rank first, of several the leftmost.
void BytePairs::add_piece(std::string_view piece, std::vector<std::int64_t>& ids) const {
    struct Symbol {
        std::uint32_t id, before, after;
    };
    using Step = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;  // rank, place, made
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
    while (!steps.empty()) {
        auto [rank, place, made] = steps.top();
        steps.pop();
        Symbol& left = symbols[place];
        if (left.id == NOTHING || left.after == NOTHING)
            continue;
        const Merge* merge = merge_of(left.id, symbols[left.after].id);
        if (merge == nullptr || merge->rank != rank)
            continue;  // one of the two has become another
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

// Pieces by GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
void BytePairs::add_plain(std::string_view text, std::vector<std::int64_t>& ids) const {
    if (text.empty())
        return;
    std::string with_space;
    if (begins_with_space_ && text[0] != ' ')
        text = with_space.append(" ").append(text);
    std::vector<Character> characters;
    std::uint32_t point = 0;
    for (std::size_t at = 0; at < text.size();) {
        std::size_t size = std::max<std::size_t>(character(text.substr(at), point), 1);
        characters.push_back({at, static_cast<std::uint8_t>(kind_of(point)), point == ' '});
        at += size;
    }
    std::size_t count = characters.size(), next = 0;
    auto kind = [&](std::size_t index) { return static_cast<Kind>(characters[index].kind); };
    auto begin = [&](std::size_t index) { return index < count ? characters[index].begin : text.size(); };
    auto run = [&](std::size_t from) {  // where characters of one kind end
        std::size_t end = from;
        while (end < count && kind(end) == kind(from))
            ++end;
        return end;
    };
    for (std::size_t at = 0; at < count && !is_full(ids); at = next) {
        std::string_view rest = text.substr(begin(at));
        auto contraction = std::find_if(std::begin(CONTRACTIONS), std::end(CONTRACTIONS),
                                        [&](std::string_view one) { return rest.starts_with(one); });
        std::size_t word = characters[at].is_blank ? at + 1 : at;
        if (contraction != std::end(CONTRACTIONS)) {
            next = at + contraction->size();
        } else if (word < count && kind(word) != Kind::SPACE) {
            next = run(word);
        } else {
            next = run(at);
            if (next < count && next - at > 1)
                --next;  // the last one goes with what follows
        }
        add_piece(text.substr(begin(at), begin(next) - begin(at)), ids);
    }
}

}  // namespace clockwork::device
