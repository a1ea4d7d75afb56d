// A hash table keyed by texts. A look-up copies no text.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace clockwork {

struct HashText {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

// Never iterated over, because the order of its entries is arbitrary.
template <typename Value>
using ByText = std::unordered_map<std::string, Value, HashText, std::equal_to<>>;

}  // namespace clockwork
