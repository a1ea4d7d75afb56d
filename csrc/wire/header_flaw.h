// A flaw of a header as a value: clockwork/wire/codec.py makes the sentence of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace clockwork {

// The first place at which a header differs from the declaration in clockwork/wire/messages.py, in reading order.
struct HeaderFlaw {
    enum Kind : std::uint8_t {
        NONE,
        OTHER,      // no header of this kind of message
        TOO_LARGE,  // beyond the largest header of this kind
        FIELDS,     // another number of fields
        CUT_OFF,    // no msgpack, or cut off
        FORM,       // a value that its place may not hold
        NOT_UTF8,
        LONGER,  // bytes follow the last field
    };
    static constexpr int KINDS = LONGER + 1;
    static constexpr std::uint32_t DEPTH_MAX = 6;

    Kind kind = NONE;
    std::int64_t tag = 0;                       // of the message
    std::uint32_t count = 0;                    // FIELDS: how many there are
    std::uint32_t depth = 0;                    // of path
    std::array<std::uint32_t, DEPTH_MAX> path;  // which field, and in it which element or field, and so on
    std::size_t offset = 0;                     // FORM: where the value begins in the header
};

inline constexpr std::array<std::string_view, HeaderFlaw::KINDS> HEADER_FLAW_NAMES = {
    "none", "other", "too_large", "fields", "cut_off", "form", "not_utf8", "longer",
};

}  // namespace clockwork
