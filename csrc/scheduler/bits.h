// Bit sets of small numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/archive.h"

namespace clockwork {

// A set of small numbers. Its members come in ascending order.
class Bits {
public:
    void set(std::uint32_t index) {
        if (index / 64 >= words_.size()) {
            words_.resize(index / 64 + 1, 0);
        }
        words_[index / 64] |= std::uint64_t{1} << (index % 64);
    }

    void clear(std::uint32_t index) {
        if (index / 64 < words_.size()) {
            words_[index / 64] &= ~(std::uint64_t{1} << (index % 64));
        }
    }

    bool test(std::uint32_t index) const {
        return index / 64 < words_.size() && (words_[index / 64] >> (index % 64) & 1) != 0;
    }

    bool any() const {
        return std::any_of(words_.begin(), words_.end(), [](std::uint64_t word) { return word != 0; });
    }

    // Calls function(index) for each member, ascending, until it returns false.
    template <typename Function>
    void for_each(Function&& function) const {
        for_each_in_both(*this, *this, function);
    }

    // Calls function(index) for each number in both sets, ascending, until it returns false.
    template <typename Function>
    static void for_each_in_both(const Bits& bits, const Bits& other, Function&& function) {
        std::size_t count = std::min(bits.words_.size(), other.words_.size());
        for (std::size_t place = 0; place < count; ++place) {
            std::uint64_t word = bits.words_[place] & other.words_[place];
            while (word != 0) {
                auto index =
                    static_cast<std::uint32_t>(place * 64) + static_cast<std::uint32_t>(std::countr_zero(word));
                word &= word - 1;
                if (!function(index)) {
                    return;
                }
            }
        }
    }

    // limit: every member is below.
    void archive(Archive& archive, std::uint32_t limit) {
        archive(words_);
        std::size_t words = (std::size_t{limit} + 63) / 64;
        bool fits =
            words_.size() <= words && (words_.size() < words || limit % 64 == 0 || words_.back() >> (limit % 64) == 0);
        Archive::need(!archive.is_reading() || fits, "a set names a missing member");
    }

private:
    std::vector<std::uint64_t> words_;
};

}  // namespace clockwork
