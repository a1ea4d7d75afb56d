// Bit sets of small numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "scheduler/archive.h"

namespace clockwork {

// A set of small numbers. Its members come in ascending order. A search passes over 4,096 absent numbers at a
// time: most sets have few members among many models.
class Bits {
public:
    void set(std::uint32_t index) {
        std::size_t word = index / WIDTH;
        if (word >= words_.size()) {
            words_.resize(word + 1, 0);
            tops_.resize(word / WIDTH + 1, 0);
        }
        words_[word] |= bit(index);
        tops_[word / WIDTH] |= bit(word);
    }

    void clear(std::uint32_t index) {
        std::size_t word = index / WIDTH;
        if (word < words_.size()) {
            words_[word] &= ~bit(index);
            if (words_[word] == 0) {
                tops_[word / WIDTH] &= ~bit(word);
            }
        }
    }

    bool test(std::uint32_t index) const {
        return index / WIDTH < words_.size() && (words_[index / WIDTH] & bit(index)) != 0;
    }

    bool any() const {
        return std::any_of(tops_.begin(), tops_.end(), [](std::uint64_t top) { return top != 0; });
    }

    // Calls function(index) for each member, ascending, until it returns false.
    template <typename Function>
    void for_each(Function&& function) const {
        for_each_in_both(*this, *this, function);
    }

    // Calls function(index) for each number in both sets, ascending, until it returns false.
    template <typename Function>
    static void for_each_in_both(const Bits& bits, const Bits& other, Function&& function) {
        std::size_t count = std::min(bits.tops_.size(), other.tops_.size());
        for (std::size_t top = 0; top < count; ++top) {
            std::uint64_t rest = ~std::uint64_t{0};  // words of this top that are still to be looked at
            while (std::uint64_t both = bits.tops_[top] & other.tops_[top] & rest) {
                std::uint64_t lowest = both & (~both + 1);
                rest = ~(lowest | (lowest - 1));
                std::size_t place = top * WIDTH + static_cast<std::size_t>(std::countr_zero(both));
                std::uint64_t word = bits.words_[place] & other.words_[place];
                while (word != 0) {
                    std::size_t index = place * WIDTH + static_cast<std::size_t>(std::countr_zero(word));
                    word &= word - 1;
                    if (!function(static_cast<std::uint32_t>(index))) {
                        return;
                    }
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
        if (archive.is_reading()) {
            tops_.assign((words_.size() + WIDTH - 1) / WIDTH, 0);
            for (std::size_t word = 0; word < words_.size(); ++word) {
                tops_[word / WIDTH] |= words_[word] != 0 ? bit(word) : 0;
            }
        }
    }

private:
    static constexpr std::size_t WIDTH = 64;

    static std::uint64_t bit(std::size_t index) { return std::uint64_t{1} << (index % WIDTH); }

    std::vector<std::uint64_t> words_;
    std::vector<std::uint64_t> tops_;  // a bit for each word that is not 0
};

}  // namespace clockwork
