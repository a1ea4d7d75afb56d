// A flaw of a header as a value, which clockwork/wire/codec.py turns into a sentence.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace clockwork {

// The first place, in reading order, at which a header differs from its declaration
// (clockwork/wire/messages.py).
struct HeaderFlaw {
    enum Kind : std::uint8_t {
        NONE,
        OTHER,      // the header of another kind of message
        TOO_LARGE,  // larger than the largest header of this kind
        FIELDS,     // a wrong number of fields
        CUT_OFF,    // not valid msgpack, or cut off
        FORM,       // a value that its place may not hold
        NOT_UTF8,
        LONGER,  // bytes follow the last field
    };
    static constexpr int KINDS = LONGER + 1;
    static constexpr std::uint32_t DEPTH_MAX = 6;

    Kind kind = NONE;
    std::int64_t tag = 0;     // tag of the message
    std::uint32_t count = 0;  // FIELDS: the number of fields found
    std::uint32_t depth = 0;  // number of elements in path
    // place of the flaw: the field, the element or field in it, and so on
    std::array<std::uint32_t, DEPTH_MAX> path;
    std::size_t offset = 0;  // FORM: where the value begins in the header
};

inline constexpr std::array<std::string_view, HeaderFlaw::KINDS> HEADER_FLAW_NAMES = {
    "none", "other", "too_large", "fields", "cut_off", "form", "not_utf8", "longer",
};

}  // namespace clockwork
