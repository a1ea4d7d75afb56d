// Msgpack: any value that a header may hold (Reader::head), and faster paths for the shapes of requests,
// results, orders and answers.
//
// The reader does not trust its input: it never reads beyond the end, no length sizes an allocation, and
// values of another type than was asked for are odd. It accepts every encoding of a value, like msgpack for
// Python. The writer uses the shortest, like that library, so that both write the same bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace clockwork {

// The next value. Of texts, bytes and containers it has the size only; their content follows.
struct Head {
    enum Kind : std::uint8_t { NIL, FLAG, INTEGER, NATURAL, REAL, TEXT, BYTES, ARRAY, MAP };

    Kind kind = NIL;
    // TEXT, BYTES: bytes; ARRAY: elements; MAP: pairs. The input holds at least this much.
    std::uint32_t size = 0;
    std::int64_t integer = 0;   // value of an INTEGER; also of a FLAG
    std::uint64_t natural = 0;  // value of a number beyond int64
    double real = 0;
};

class Reader {
public:
    Reader(const void* data, std::size_t size) : at_(static_cast<const std::uint8_t*>(data)), end_(at_ + size) {}

    // Each returns false where the next value is of another type; the value read is then meaningless.

    bool array(std::uint32_t& count) {
        if (at_ == end_)
            return false;
        std::uint8_t kind = *at_++;
        if ((kind & 0xf0) == 0x90) {
            count = kind & 0x0f;
        } else if (kind == 0xdc) {
            if (!big<std::uint16_t>(count))
                return false;
        } else if (kind == 0xdd) {
            if (!big<std::uint32_t>(count))
                return false;
        } else {
            return false;
        }
        return count <= static_cast<std::size_t>(end_ - at_);  // an element takes at least a byte
    }

    // Only numbers that int64 holds: no field needs more.
    bool integer(std::int64_t& value) {
        if (at_ == end_)
            return false;
        std::uint8_t kind = *at_++;
        if (kind < 0x80) {
            value = kind;
            return true;
        }
        if (kind >= 0xe0) {
            value = static_cast<std::int8_t>(kind);
            return true;
        }
        switch (kind) {
            case 0xcc: return big<std::uint8_t>(value);
            case 0xcd: return big<std::uint16_t>(value);
            case 0xce: return big<std::uint32_t>(value);
            case 0xcf: return big<std::uint64_t>(value) && value >= 0;
            case 0xd0: return big<std::int8_t>(value);
            case 0xd1: return big<std::int16_t>(value);
            case 0xd2: return big<std::int32_t>(value);
            case 0xd3: return big<std::int64_t>(value);
            default: return false;
        }
    }

    // The text refers to the input, and is not known to be UTF-8.
    bool text(std::string_view& value) {
        if (at_ == end_)
            return false;
        std::uint8_t kind = *at_++;
        std::uint32_t size = 0;
        if ((kind & 0xe0) == 0xa0) {
            size = kind & 0x1f;
        } else if (kind == 0xd9) {
            if (!big<std::uint8_t>(size))
                return false;
        } else if (kind == 0xda) {
            if (!big<std::uint16_t>(size))
                return false;
        } else if (kind == 0xdb) {
            if (!big<std::uint32_t>(size))
                return false;
        } else {
            return false;
        }
        if (size > static_cast<std::size_t>(end_ - at_))
            return false;
        value = {reinterpret_cast<const char*>(at_), size};
        at_ += size;
        return true;
    }

    // Reads the head of the next value. Returns false also for extensions and for the byte 0xc1, which
    // MessagePack does not use.
    bool head(Head& head) {
        if (at_ == end_)
            return false;
        std::uint8_t kind = *at_;
        if (kind == 0xcf) {
            ++at_;
            if (!big<std::uint64_t>(head.natural))
                return false;
            head.integer = static_cast<std::int64_t>(head.natural);
            head.kind = head.integer >= 0 ? Head::INTEGER : Head::NATURAL;
            return true;
        }
        if (kind < 0x80 || kind >= 0xe0 || (0xcc <= kind && kind <= 0xd3)) {
            head.kind = Head::INTEGER;
            return integer(head.integer);
        }
        if ((kind & 0xf0) == 0x90 || kind == 0xdc || kind == 0xdd) {
            head.kind = Head::ARRAY;
            return array(head.size);
        }
        ++at_;
        if ((kind & 0xe0) == 0xa0)
            return sized(head, Head::TEXT, kind & 0x1f, 1);
        if ((kind & 0xf0) == 0x80)
            return sized(head, Head::MAP, kind & 0x0f, 2);
        std::uint32_t size = 0;
        switch (kind) {
            case 0xc0: head.kind = Head::NIL; return true;
            case 0xc2:
            case 0xc3: head.kind = Head::FLAG, head.integer = kind & 1; return true;
            case 0xc4: return big<std::uint8_t>(size) && sized(head, Head::BYTES, size, 1);
            case 0xc5: return big<std::uint16_t>(size) && sized(head, Head::BYTES, size, 1);
            case 0xc6: return big<std::uint32_t>(size) && sized(head, Head::BYTES, size, 1);
            case 0xca: {
                std::uint32_t bits = 0;
                float value = 0;
                if (!big<std::uint32_t>(bits))
                    return false;
                std::memcpy(&value, &bits, sizeof(value));
                head.kind = Head::REAL, head.real = value;
                return true;
            }
            case 0xcb: {
                std::uint64_t bits = 0;
                if (!big<std::uint64_t>(bits))
                    return false;
                head.kind = Head::REAL;
                std::memcpy(&head.real, &bits, sizeof(head.real));
                return true;
            }
            case 0xd9: return big<std::uint8_t>(size) && sized(head, Head::TEXT, size, 1);
            case 0xda: return big<std::uint16_t>(size) && sized(head, Head::TEXT, size, 1);
            case 0xdb: return big<std::uint32_t>(size) && sized(head, Head::TEXT, size, 1);
            case 0xde: return big<std::uint16_t>(size) && sized(head, Head::MAP, size, 2);
            case 0xdf: return big<std::uint32_t>(size) && sized(head, Head::MAP, size, 2);
            default: return false;
        }
    }

    // The bytes of a TEXT or BYTES whose head was read.
    std::string_view take(std::uint32_t size) {
        std::string_view found(reinterpret_cast<const char*>(at_), size);
        at_ += size;
        return found;
    }

    bool done() const { return at_ == end_; }
    std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }

private:
    // unit: the least bytes that each element takes.
    bool sized(Head& head, Head::Kind kind, std::uint32_t size, std::uint64_t unit) {
        head.kind = kind;
        head.size = size;
        return size * unit <= static_cast<std::uint64_t>(end_ - at_);
    }

    template <typename Stored, typename Value>
    bool big(Value& value) {
        if (static_cast<std::size_t>(end_ - at_) < sizeof(Stored))
            return false;
        std::uint64_t bits = 0;
        for (std::size_t place = 0; place < sizeof(Stored); ++place)
            bits = bits << 8 | *at_++;
        value = static_cast<Value>(static_cast<Stored>(bits));
        return true;
    }

    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

// Writes without checks of room: the fastest way for records of many numbers. At most 9 bytes a number, 5 a
// head.
struct Packer {
    char* at;

    void array(std::size_t count) {
        if (count < 16) {
            *at++ = static_cast<char>(0x90 | count);
        } else if (count <= 0xffff) {
            put(0xdc, static_cast<std::uint16_t>(count));
        } else {
            put(0xdd, static_cast<std::uint32_t>(count));
        }
    }

    void integer(std::int64_t value) {
        if (value >= 0) {
            natural(static_cast<std::uint64_t>(value));
        } else if (value >= -32) {
            *at++ = static_cast<char>(value);
        } else if (value >= INT8_MIN) {
            put(0xd0, static_cast<std::uint8_t>(value));
        } else if (value >= INT16_MIN) {
            put(0xd1, static_cast<std::uint16_t>(value));
        } else if (value >= INT32_MIN) {
            put(0xd2, static_cast<std::uint32_t>(value));
        } else {
            put(0xd3, static_cast<std::uint64_t>(value));
        }
    }

    void natural(std::uint64_t value) {
        if (value < 0x80) {
            *at++ = static_cast<char>(value);
        } else if (value <= 0xff) {
            put(0xcc, static_cast<std::uint8_t>(value));
        } else if (value <= 0xffff) {
            put(0xcd, static_cast<std::uint16_t>(value));
        } else if (value <= 0xffffffff) {
            put(0xce, static_cast<std::uint32_t>(value));
        } else {
            put(0xcf, value);
        }
    }

    // Writes the head of a map with at most 15 keys.
    void map(std::size_t count) { *at++ = static_cast<char>(0x80 | count); }

    void flag(bool value) { *at++ = static_cast<char>(0xc2 | static_cast<unsigned>(value)); }

    // Writes the head of this many bytes, or of a text of this many bytes.
    void bytes(std::size_t count) { sized(0xc4, count); }
    void text(std::size_t count) {
        if (count < 32) {
            *at++ = static_cast<char>(0xa0 | count);
        } else {
            sized(0xd9, count);
        }
    }

    void raw(std::string_view encoded) {
        if (!encoded.empty())
            std::memcpy(at, encoded.data(), encoded.size());
        at += encoded.size();
    }

private:
    void sized(unsigned kind, std::size_t count) {
        if (count <= 0xff) {
            put(kind, static_cast<std::uint8_t>(count));
        } else if (count <= 0xffff) {
            put(kind + 1, static_cast<std::uint16_t>(count));
        } else {
            put(kind + 2, static_cast<std::uint32_t>(count));
        }
    }

    template <typename Stored>
    void put(unsigned kind, Stored value) {
        *at++ = static_cast<char>(kind);
        for (std::size_t place = sizeof(Stored); place-- > 0; value = static_cast<Stored>(value >> 8))
            at[place] = static_cast<char>(value & 0xff);
        at += sizeof(Stored);
    }
};

// A growing buffer that is reused.
class Writer {
public:
    void clear() { size_ = 0; }
    const char* data() const { return buffer_.data(); }
    std::size_t size() const { return size_; }
    std::string_view view() const { return {buffer_.data(), size_}; }

    // Begins writing at most this many bytes, until end().
    Packer begin(std::size_t bytes_max) {
        if (buffer_.size() - size_ < bytes_max)
            buffer_.resize(std::max(size_ + bytes_max, 2 * buffer_.size()));
        return {buffer_.data() + size_};
    }
    void end(const Packer& packer) { size_ = static_cast<std::size_t>(packer.at - buffer_.data()); }

    void array(std::size_t count) {
        Packer packer = begin(5);
        packer.array(count);
        end(packer);
    }

    // Begins a map of at most 15 keys.
    void map(std::size_t count) {
        Packer packer = begin(1);
        packer.map(count);
        end(packer);
    }

    void integer(std::int64_t value) {
        Packer packer = begin(9);
        packer.integer(value);
        end(packer);
    }

    void natural(std::uint64_t value) {
        Packer packer = begin(9);
        packer.natural(value);
        end(packer);
    }

    void text(std::string_view value) {
        Packer packer = begin(5 + value.size());
        packer.text(value.size());
        packer.raw(value);
        end(packer);
    }

    // Appends a value that is encoded already.
    void raw(std::string_view encoded) {
        Packer packer = begin(encoded.size());
        packer.raw(encoded);
        end(packer);
    }

private:
    std::string buffer_;  // only the first size_ bytes are used
    std::size_t size_ = 0;
};

// Whether a text is UTF-8, as strictly as Python: no surrogates, no overlong forms, nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) {
    const auto* at = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto* end = at + text.size();
    while (at != end) {
        std::uint8_t first = *at++;
        if (first < 0x80)
            continue;
        int more = first >= 0xc2 && first < 0xe0   ? 1
                   : (first & 0xf0) == 0xe0        ? 2
                   : first >= 0xf0 && first < 0xf5 ? 3
                                                   : 0;
        if (more == 0 || end - at < more)
            return false;
        std::uint8_t second = *at;
        if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
            (first == 0xf4 && second > 0x8f)) {
            return false;
        }
        for (; more > 0; --more) {
            if ((*at++ & 0xc0) != 0x80)
                return false;
        }
    }
    return true;
}

}  // namespace clockwork
