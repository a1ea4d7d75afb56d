// Reads the values of a header within the bounds of their declarations. The generated readers of messages.cpp
// consist of these calls.
#pragma once

#include <cstdint>
#include <string_view>

#include "msgpack.h"
#include "wire/header_flaw.h"

namespace clockwork::wire {

// The tag of a header; -1 where it has none.
inline std::int64_t tag_of(std::string_view header) {
    Reader reader(header.data(), header.size());
    std::uint32_t count = 0;
    std::int64_t tag = 0;
    return reader.array(count) && count > 0 && reader.integer(tag) ? tag : -1;
}

// Reads a header value by value. place() gives the place of the next value in the header. A value that
// differs from its declaration is recorded in the flaw, with its place. A function that records a flaw
// returns false and leaves its target unchanged.
class FieldReader {
public:
    FieldReader(std::string_view header, HeaderFlaw& flaw)
        : header_(header), reader_(header.data(), header.size()), flaw_(flaw) {
        flaw_.kind = HeaderFlaw::NONE;
        flaw_.depth = 0;
    }

    // Reads the array's head and the tag, and records the tag in the flaw.
    bool tag(std::int64_t& found) {
        flaw_.tag = 0;
        if (!reader_.array(count_) || count_ == 0 || !reader_.integer(found))
            return fail(HeaderFlaw::OTHER);
        flaw_.tag = found;
        return true;
    }

    // Records that the tag is that of another message.
    bool other() { return fail(HeaderFlaw::OTHER); }

    // After tag(): checks the header's size and the number of fields.
    bool begin(std::uint32_t fields, std::size_t bytes_max) {
        if (header_.size() > bytes_max)
            return fail(HeaderFlaw::TOO_LARGE);
        flaw_.count = count_ - 1;
        return count_ == fields + 1 || fail(HeaderFlaw::FIELDS);
    }

    // After tag(): peeks at the first field. Returns it if it is a natural number (an id), else 0.
    std::int64_t peek_id() const {
        Reader ahead = reader_;
        std::int64_t id = 0;
        return count_ >= 2 && ahead.integer(id) && id >= 0 ? id : 0;
    }

    // level: 0 for a field of the message, 1 for an element or field of such a field, and so on.
    void place(std::uint32_t level, std::uint32_t number) {
        flaw_.path[level] = number;
        flaw_.depth = level + 1;
    }

    bool integer(std::int64_t& value, std::int64_t least, std::int64_t most) {
        std::size_t left = reader_.left();
        std::int64_t found = 0;
        if (!reader_.integer(found) || found < least || most < found)
            return miss(left);
        value = found;
        return true;
    }

    // Reads bytes, as a view into the header.
    bool text(std::string_view& value, std::size_t bytes_max) {
        std::size_t left = reader_.left();
        std::string_view found;
        if (!reader_.text(found) || found.size() > bytes_max)
            return miss(left);
        if (!is_utf8(found))
            return fail(HeaderFlaw::NOT_UTF8);
        value = found;
        return true;
    }

    // Reads the head of a list with a most number of elements.
    bool list(std::uint32_t& count, std::uint32_t count_max) {
        std::size_t left = reader_.left();
        return (reader_.array(count) && count <= count_max) || miss(left);
    }

    // Reads the head of a list with an exact number of fields.
    bool row(std::uint32_t fields) {
        std::size_t left = reader_.left();
        std::uint32_t count = 0;
        return (reader_.array(count) && count == fields) || miss(left);
    }

    bool end() { return reader_.done() || fail(HeaderFlaw::LONGER); }

private:
    bool fail(HeaderFlaw::Kind kind) {
        flaw_.kind = kind;
        return false;
    }

    // left: the number of bytes from the value on.
    bool miss(std::size_t left) {
        flaw_.offset = header_.size() - left;
        Reader again(header_.data() + flaw_.offset, left);
        Head head;
        return fail(again.head(head) ? HeaderFlaw::FORM : HeaderFlaw::CUT_OFF);
    }

    std::string_view header_;
    Reader reader_;
    HeaderFlaw& flaw_;
    std::uint32_t count_ = 0;  // the number of elements of the header's array
};

// Returns the longest prefix of a text within a number of bytes that ends with a whole character.
inline std::string_view cut(std::string_view text, std::size_t bytes_max) {
    if (text.size() <= bytes_max)
        return text;
    std::size_t size = bytes_max;
    while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80)
        --size;
    return text.substr(0, size);
}

}  // namespace clockwork::wire
