// A hash table from 64-bit ids to small numbers: open addressing, no allocation but to grow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace clockwork {

// The table cannot be iterated over: the order of its cells depends on the hash alone.
class IdTable {
public:
    static constexpr std::uint32_t NONE = UINT32_MAX;

    std::size_t size() const { return count_; }

    // Returns NONE if the id is not there.
    std::uint32_t find(std::uint64_t id) const {
        if (count_ == 0)
            return NONE;
        for (std::size_t place = home(id);; place = (place + 1) & mask_) {
            const Cell& cell = cells_[place];
            if (cell.value == NONE)
                return NONE;
            if (cell.id == id)
                return cell.value;
        }
    }

    // The id must not be there, and value must not be NONE.
    void insert(std::uint64_t id, std::uint32_t value) {
        if (cells_.empty() || count_ * 2 >= cells_.size())
            grow();
        std::size_t place = home(id);
        while (cells_[place].value != NONE)
            place = (place + 1) & mask_;
        cells_[place] = {id, value};
        ++count_;
    }

    // Returns whether the id was there. Entries behind it move up, so that no search meets a gap.
    bool erase(std::uint64_t id) {
        if (count_ == 0)
            return false;
        std::size_t place = home(id);
        while (cells_[place].id != id || cells_[place].value == NONE) {
            if (cells_[place].value == NONE)
                return false;
            place = (place + 1) & mask_;
        }
        std::size_t hole = place;
        for (std::size_t next = (place + 1) & mask_; cells_[next].value != NONE; next = (next + 1) & mask_) {
            std::size_t wanted = home(cells_[next].id);
            if (((next - wanted) & mask_) >= ((next - hole) & mask_)) {
                cells_[hole] = cells_[next];
                hole = next;
            }
        }
        cells_[hole].value = NONE;
        --count_;
        return true;
    }

    void clear() {
        for (Cell& cell : cells_)
            cell.value = NONE;
        count_ = 0;
    }

private:
    struct Cell {
        std::uint64_t id = 0;
        std::uint32_t value = NONE;
    };

    std::size_t home(std::uint64_t id) const {
        id *= 0x9E3779B97F4A7C15ull;
        return static_cast<std::size_t>(id >> 32) & mask_;
    }

    void grow() {
        std::vector<Cell> old(cells_.empty() ? 16 : cells_.size() * 2);
        old.swap(cells_);
        mask_ = cells_.size() - 1;
        count_ = 0;
        for (const Cell& cell : old) {
            if (cell.value != NONE)
                insert(cell.id, cell.value);
        }
    }

    std::vector<Cell> cells_;  // cells, a power of two of them, at most half of them taken
    std::size_t mask_ = 0;
    std::size_t count_ = 0;
};

}  // namespace clockwork
