// The work of reading a tensor's strings, by which executions are timed.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

#include "jpeg.h"
#include "wire/bounds.h"

namespace clockwork {

// The sum of `count` strings, each of which follows its length in four bytes and was checked by
// clockwork.wire.tensors.check_strings. A string counts its bytes; a JPEG image its work, in bytes of a
// photograph.
inline std::int64_t strings_work(std::int64_t count, std::string_view frame) {
    std::size_t budget = JPEG_SEARCHED_MAX, at = 0;
    std::int64_t total = 0;
    for (std::int64_t place = 0; place < count; ++place) {
        std::uint32_t size = 0;
        std::memcpy(&size, frame.data() + at, sizeof size);
        std::string_view string = frame.substr(at + sizeof size, size);
        std::int64_t work = begins_as_jpeg(string) ? jpeg_work(string, budget).work : 0;
        total += work > 0 ? work : size;
        at += sizeof size + size;
    }
    return total;
}

// The size that each of `count` strings counts as: the mean of their work, rounded up.
inline std::int64_t string_size(std::int64_t count, std::int64_t work) {
    std::int64_t size = STRING_SIZE_MIN;
    while (size * count < work)
        size *= 2;
    return size;
}

}  // namespace clockwork
