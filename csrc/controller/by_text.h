// A hash table by texts, which are looked up without being copied.
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

// Never iterated over: the order of its entries says nothing.
template <typename Value>
using ByText = std::unordered_map<std::string, Value, HashText, std::equal_to<>>;

}  // namespace clockwork
