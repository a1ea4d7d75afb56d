// The format on which every reader of the flight recorder relies: its stream consists of whole steps, each a
// byte string that holds an array of four.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "msgpack.h"

// Reads over a value of any type; false if there is none.
inline bool passes_over(clockwork::Reader& reader, int depth = 0) {
    clockwork::Head head;
    if (depth > 8 || !reader.head(head))
        return false;
    if (head.kind == clockwork::Head::TEXT || head.kind == clockwork::Head::BYTES) {
        reader.take(head.size);
    } else if (head.kind == clockwork::Head::ARRAY) {
        for (std::uint32_t place = 0; place < head.size; ++place) {
            if (!passes_over(reader, depth + 1))
                return false;
        }
    }
    return true;
}

// Removes the whole steps at the front of a piece of the stream. Returns their number; -1 for an invalid
// step.
inline std::int64_t take_steps(std::string& piece) {
    std::int64_t count = 0;
    std::size_t taken = 0;
    for (;;) {
        clockwork::Reader reader(piece.data() + taken, piece.size() - taken);
        clockwork::Head head;
        if (!reader.head(head))
            break;  // the step is not complete yet
        if (head.kind != clockwork::Head::BYTES)
            return -1;
        std::string_view step = reader.take(head.size);
        clockwork::Reader inside(step.data(), step.size());
        std::uint32_t fields = 0;
        if (!inside.array(fields) || fields != 4)
            return -1;
        while (fields-- > 0) {
            if (!passes_over(inside))
                return -1;
        }
        if (!inside.done())
            return -1;
        taken = piece.size() - reader.left();
        ++count;
    }
    piece.erase(0, taken);
    return count;
}
