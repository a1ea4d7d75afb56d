// A scheduler's state as bytes. One function of each class, archive(), both writes and reads, so that the two
// cannot diverge.
//
// Numbers take as many bytes as they need, pooled records are named by their slots, and hash tables are
// written in the order of their keys, so that equal states are equal bytes. Bytes to be read are not trusted:
// every record that they name must exist, and the memory taken is bounded by their length. Any change of the
// written form needs another STATE_FORMAT.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace clockwork {

inline constexpr std::uint32_t STATE_FORMAT = 31;

class State;

// Thrown where the bytes are no state of a scheduler.
struct DamagedState : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Thrown where a state would take more bytes than its bound.
struct StateTooLarge : std::length_error {
    StateTooLarge() : std::length_error("a state of more bytes than it may have") {}
};

class Archive {
public:
    // Writes. `out` holds the bytes after finish(). Throws StateTooLarge beyond bytes_max.
    Archive(std::string& out, std::size_t bytes_max) : out_(&out), bytes_max_(bytes_max) { out.resize(ROOM); }
    // Reads. Throws DamagedState where the bytes are no state.
    explicit Archive(std::string_view in) : in_(in) {}
    Archive(const Archive&) = delete;
    Archive& operator=(const Archive&) = delete;

    bool is_reading() const { return out_ == nullptr; }
    // Ends writing, or checks that all bytes were read.
    void finish() {
        if (is_reading()) {
            need(at_ == in_.size(), "there are more bytes than it takes");
        } else {
            out_->resize(at_);
        }
    }
    // Throws DamagedState(what) unless a condition holds of the bytes that were read.
    static void need(bool holds, const char* what) {
        if (!holds) {
            throw DamagedState(what);
        }
    }

    // Archives numbers, flags, arrays, pairs, vectors, pointers to records (never null), and objects with
    // archive().
    template <typename... T>
    void operator()(T&... each) {
        (item(each), ...);
    }
    // Archives a pointer that may be null.
    template <typename T>
    void maybe(T*& record);
    // Archives a number in [least, most].
    template <typename T>
    void within(T& value, T least, T most) {
        item(value);
        need(!is_reading() || (least <= value && value <= most), "a number is out of its range");
    }
    // Archives a value of an enumeration from 0 to `last`.
    template <typename T>
    void choice(T& value, T last) {
        auto number = static_cast<std::underlying_type_t<T>>(value);
        within<std::underlying_type_t<T>>(number, 0, static_cast<std::underlying_type_t<T>>(last));
        value = static_cast<T>(number);
    }
    // Archives the number of elements, of at least bytes_min bytes each.
    std::size_t count(std::size_t there, std::size_t bytes_min = 1) {
        auto number = static_cast<std::uint64_t>(there);
        item(number);
        need(!is_reading() || number <= (in_.size() - at_) / bytes_min, "it is cut off");
        return static_cast<std::size_t>(number);
    }
    // Archives a hash table by key; calls function(value) for each.
    template <typename Map, typename Function>
    void table(Map& map, Function&& function) {
        using Key = typename Map::key_type;
        std::vector<Key> keys;
        if (!is_reading()) {
            for (const auto& entry : map) {
                keys.push_back(entry.first);
            }
            std::sort(keys.begin(), keys.end());
        }
        item(keys);
        for (Key key : keys) {
            need(!is_reading() || map.find(key) == map.end(), "something is there twice");
            function(map[key]);
        }
    }
    // Checks that a record is in at most one list of each kind.
    void enter_list(const void* kind, std::uint32_t slot) {
        need(lists_.emplace(kind, slot).second, "a record is in two lists");
    }

    State* books = nullptr;  // the state whose records pointers lead to

private:
    static constexpr std::size_t ROOM = 64 << 10;  // least growth of the output, in bytes
    static constexpr std::size_t NUMBER_BYTES_MAX = 10;

    template <typename T>
    struct IsVector : std::false_type {};
    template <typename T>
    struct IsVector<std::vector<T>> : std::true_type {};
    template <typename T>
    struct IsArray : std::false_type {};
    template <typename T, std::size_t Count>
    struct IsArray<std::array<T, Count>> : std::true_type {};
    template <typename T>
    struct IsPair : std::false_type {};
    template <typename A, typename B>
    struct IsPair<std::pair<A, B>> : std::true_type {};

    template <typename T>
    void item(T& value) {
        if constexpr (std::is_same_v<T, bool>) {
            auto flag = static_cast<std::uint8_t>(value);
            within<std::uint8_t>(flag, 0, 1);
            value = flag != 0;
        } else if constexpr (std::is_same_v<T, double>) {
            real(value);
        } else if constexpr (std::is_integral_v<T>) {
            number(value);
        } else if constexpr (std::is_pointer_v<T>) {
            maybe(value);
            need(value != nullptr, "a record is missing");
        } else if constexpr (IsVector<T>::value) {
            std::size_t size = count(value.size());
            if (is_reading()) {
                value.clear();
            }
            for (std::size_t place = 0; place < size; ++place) {
                if (is_reading()) {
                    value.emplace_back();
                }
                item(value[place]);
            }
        } else if constexpr (IsArray<T>::value) {
            for (auto& each : value) {
                item(each);
            }
        } else if constexpr (IsPair<T>::value) {
            item(value.first);
            item(value.second);
        } else {
            value.archive(*this);
        }
    }

    // Archives a number as seven bits a byte, the lowest first. For signed types the lowest bit is the sign.
    template <typename T>
    void number(T& value) {
        if (!is_reading()) {
            std::uint64_t left;
            if constexpr (std::is_signed_v<T>) {
                auto wide = static_cast<std::int64_t>(value);
                left = static_cast<std::uint64_t>(wide) << 1 ^ static_cast<std::uint64_t>(wide >> 63);
            } else {
                left = value;
            }
            char* place = room(NUMBER_BYTES_MAX);
            while (left >= 0x80) {
                *place++ = static_cast<char>(left | 0x80);
                left >>= 7;
            }
            *place++ = static_cast<char>(left);
            at_ = static_cast<std::size_t>(place - out_->data());
            return;
        }
        std::uint64_t found = 0;
        std::uint8_t byte = 0x80;
        for (unsigned shift = 0; byte >= 0x80; shift += 7) {
            need(at_ < in_.size(), "it is cut off");
            byte = static_cast<std::uint8_t>(in_[at_++]);
            need(shift < 63 || (shift == 63 && byte < 2), "a number is too long");
            found |= std::uint64_t{byte & 0x7Fu} << shift;
        }
        if constexpr (std::is_signed_v<T>) {
            auto wide = static_cast<std::int64_t>(found >> 1 ^ (~(found & 1) + 1));
            need(std::numeric_limits<T>::min() <= wide && wide <= std::numeric_limits<T>::max(),
                 "a number is too large");
            value = static_cast<T>(wide);
        } else {
            need(found <= std::numeric_limits<T>::max(), "a number is too large");
            value = static_cast<T>(found);
        }
    }

    void real(double& value) {
        if (!is_reading()) {
            std::memcpy(room(sizeof value), &value, sizeof value);
            at_ += sizeof value;
            return;
        }
        need(in_.size() - at_ >= sizeof value, "it is cut off");
        std::memcpy(&value, in_.data() + at_, sizeof value);
        at_ += sizeof value;
        need(!std::isnan(value), "a number is none");
    }

    char* room(std::size_t bytes) {
        if (at_ > bytes_max_) {
            throw StateTooLarge();
        }
        if (out_->size() - at_ < bytes) {
            out_->resize(out_->size() * 2);
        }
        return out_->data() + at_;
    }

    std::string* out_ = nullptr;
    std::size_t bytes_max_ = 0;
    std::string_view in_;
    std::size_t at_ = 0;
    std::set<std::pair<const void*, std::uint32_t>> lists_;
};

}  // namespace clockwork
