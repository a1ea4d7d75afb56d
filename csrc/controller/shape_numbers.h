// A cache of the scheduler's numbers of shapes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "controller/lookups.h"

namespace clockwork {

class ShapeNumbers {
public:
    explicit ShapeNumbers(Lookups& lookups) : lookups_(lookups) {}

    // Returns the scheduler's number of a shape in AcceptedRequest::shape's form.
    std::uint32_t of(const std::vector<std::int64_t>& shape) {
        if (has_last_ && shape == last_shape_)
            return last_number_;
        auto found = numbers_.find(shape);
        if (found == numbers_.end()) {
            std::uint32_t number = lookups_.shape_number(shape);
            found = numbers_.emplace(shape, number).first;
        }
        last_shape_ = shape;
        last_number_ = found->second;
        has_last_ = true;
        return last_number_;
    }

    // Forgets the numbers of shapes that the scheduler has dropped and may assign again.
    void forget() {
        numbers_.clear();
        has_last_ = false;
    }

private:
    struct HashShape {
        std::size_t operator()(const std::vector<std::int64_t>& shape) const {
            std::uint64_t hash = 0x9E3779B97F4A7C15ull;
            for (std::int64_t dimension : shape)
                hash = (hash ^ static_cast<std::uint64_t>(dimension)) * 0xBF58476D1CE4E5B9ull;
            return static_cast<std::size_t>(hash ^ hash >> 31);
        }
    };

    Lookups& lookups_;
    // Never iterated over: its order is arbitrary
    std::unordered_map<std::vector<std::int64_t>, std::uint32_t, HashShape> numbers_;
    std::vector<std::int64_t> last_shape_;
    std::uint32_t last_number_ = 0;
    bool has_last_ = false;
};

}  // namespace clockwork
