// The work of decoding a JPEG file, found from its markers, before anything is decoded.
//
// A file's size says little about the time that decoding takes: a few hundred bytes may declare 33 million
// pixels, and each of a progressive image's scans passes over all of its blocks. Width, height, components
// and scans are in the headers; the bytes between them are entropy-coded, and take time in proportion. Parts
// that a decoder skips (comments, application segments, bytes behind the end) add nothing.
//
// Nothing is allocated, no byte beyond the file is read, and the time is bounded by JPEG_SEARCHED_MAX. Bytes
// that this bound leaves unread count as the most work that they could hold.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace clockwork {

// Bound on the scans up to which an image is decoded: an encoder makes about ten.
inline constexpr std::uint32_t JPEG_SCANS_MAX = 64;

// Bytes of a tensor's images, about, that are searched for markers: at some 10 GB/s, 0.4 ms. Large
// photographs have no more. A segment counts as JPEG_SEGMENT of them, and each image may have JPEG_HEADER in
// any case.
inline constexpr std::size_t JPEG_SEARCHED_MAX = 4 << 20;
inline constexpr std::size_t JPEG_SEGMENT = 64;
inline constexpr std::size_t JPEG_HEADER = 32 * JPEG_SEGMENT;

// Decoding time of each part of an image, in nanoseconds of a processor of 2023, with libjpeg-turbo and the
// resizing of Pillow. Only the proportions count.
inline constexpr std::int64_t JPEG_PIXEL = 4;   // a pixel: colours, and resizing
inline constexpr std::int64_t JPEG_BLOCK = 16;  // a block of 8 x 8 samples: the inverse transform
// A block of an image that lacks scans, whose content libjpeg estimates
inline constexpr std::int64_t JPEG_SMOOTH = 120;
inline constexpr std::int64_t JPEG_TOUCH = 4;  // a block in a scan, without its bytes
// A block in a scan that refines 64 coefficients, each of which is looked at
inline constexpr std::int64_t JPEG_REFINE = 32;
inline constexpr std::int64_t JPEG_CODED = 10;  // a byte of Huffman codes
inline constexpr std::int64_t JPEG_CODED_PROGRESSIVE = 48;
// A block of arithmetic or lossless codes, for any number of bytes
inline constexpr std::int64_t JPEG_SLOW = 1'000;

// A unit of work: about the time of a byte of a photograph, of quality 85 in one scan.
inline constexpr std::int64_t JPEG_UNIT = 40;

// The longest codes of a block: 64 coefficients of 27 bits.
inline constexpr std::int64_t JPEG_BLOCK_BYTES_MAX = 216;

// Work of an image whose headers are longer than the search: more than any model was timed with.
inline constexpr std::int64_t JPEG_WORK_UNKNOWN = std::int64_t{1} << 40;

struct JpegWork {
    std::uint32_t width = 0, height = 0;
    std::uint32_t components = 0;
    bool is_progressive = false;
    std::uint32_t scans = 0;  // scans found, at most JPEG_SCANS_MAX
    std::int64_t work = 0;    // work of decoding; 0: there is no image to decode
};

inline bool begins_as_jpeg(std::string_view data) { return data.substr(0, 3) == "\xff\xd8\xff"; }

class JpegScanner {
public:
    // budget: bound on the bytes searched.
    JpegScanner(std::string_view data, std::size_t budget)
        : data_(reinterpret_cast<const std::uint8_t*>(data.data())), size_(data.size()), budget_(budget) {}

    std::size_t left() const { return budget_; }

    JpegWork read() {
        at_ = 2;
        while (next_segment()) {
            if (marker_ == END)
                break;
            if (marker_ == SCAN) {
                if (!read_scan())
                    break;
            } else if (is_frame(marker_) && !read_frame()) {
                break;
            }
        }
        if (found_.scans > 0) {
            if (is_cut_off_)
                count_unseen();
            std::int64_t blocks = 0;
            for (std::uint32_t component = 0; component < found_.components; ++component)
                blocks += blocks_of(parts_[component]);
            std::int64_t pixels = std::int64_t{found_.width} * found_.height;
            std::int64_t each = JPEG_BLOCK + (is_incomplete() ? JPEG_SMOOTH : 0);
            found_.work = (cost_ + pixels * JPEG_PIXEL + blocks * each) / JPEG_UNIT + 1;
        } else if (is_cut_off_) {
            found_.work = JPEG_WORK_UNKNOWN;
        }
        return found_;
    }

private:
    static constexpr std::uint8_t END = 0xd9, SCAN = 0xda, RESTART = 0xd0;
    static constexpr std::uint32_t COMPONENTS_MAX = 4;
    static constexpr std::uint64_t SMOOTHED = 0x3fe;  // coefficients 1 to 9, which smoothing guesses

    struct Part {
        std::uint8_t id = 0, across = 1, down = 1;  // samples of a component in a unit of the image
        std::uint64_t exact = 0;                    // coefficients of which some scan had the last bit
    };

    // Start of a frame of any kind; not the tables (C4, CC) and JPG (C8) whose numbers lie between.
    static bool is_frame(std::uint8_t marker) {
        return (marker & 0xf0) == 0xc0 && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    }
    static std::int64_t parts_of(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }
    std::int64_t number(std::size_t at) const { return data_[at] << 8 | data_[at + 1]; }

    // Moves at_ to the 0xff of the next marker, past stuffed bytes, fill bytes and restart markers. Returns
    // false if the data or the budget ends first.
    bool find_marker() {
        // No branches, so that the time does not depend on the bytes, and compilers vectorize the loop.
        auto is_marker = [](std::uint8_t first, std::uint8_t second) {
            return static_cast<std::uint8_t>((first == 0xff) & (second != 0) & (second != 0xff) &
                                             ((second & 0xf8) != RESTART));
        };
        std::size_t from = at_, end = size_ - std::min(size_, std::size_t{1});
        is_cut_off_ = end > at_ && end - at_ > budget_;
        end = is_cut_off_ ? at_ + budget_ : std::max(end, at_);
        constexpr std::size_t STEP = 64;
        for (; end - at_ >= STEP; at_ += STEP) {
            std::uint8_t some = 0;
            for (std::size_t place = at_; place < at_ + STEP; ++place)
                some = static_cast<std::uint8_t>(some | is_marker(data_[place], data_[place + 1]));
            if (some)
                break;
        }
        while (at_ < end && !is_marker(data_[at_], data_[at_ + 1]))
            ++at_;
        budget_ -= std::min(at_ - from + JPEG_SEGMENT, budget_);
        return at_ < end;
    }

    // Finds the next segment, or the end; its bytes are those from body_ to at_.
    bool next_segment() {
        if (!find_marker())
            return false;
        marker_ = data_[at_ + 1];
        at_ += 2;
        body_ = at_;
        if (marker_ == END || marker_ == 0x01 || marker_ == 0xd8)
            return marker_ != 0xd8;
        if (size_ - at_ < 2 || number(at_) < 2 || static_cast<std::size_t>(number(at_)) > size_ - at_)
            return false;  // the file is damaged
        at_ += static_cast<std::size_t>(number(at_));
        body_ += 2;
        return true;
    }

    bool read_frame() {
        if (found_.components > 0 || at_ - body_ < 6)
            return false;
        std::uint32_t components = data_[body_ + 5];
        if (components == 0 || components > COMPONENTS_MAX || at_ - body_ < 6 + 3 * components)
            return false;
        for (std::uint32_t component = 0; component < components; ++component) {
            const std::uint8_t* fields = data_ + body_ + 6 + std::size_t{3} * component;
            Part part{fields[0], static_cast<std::uint8_t>(fields[1] >> 4), static_cast<std::uint8_t>(fields[1] & 15)};
            if (part.across < 1 || part.across > 4 || part.down < 1 || part.down > 4)
                return false;
            across_ = std::max(across_, part.across);
            down_ = std::max(down_, part.down);
            parts_[component] = part;
        }
        found_.height = static_cast<std::uint32_t>(number(body_ + 1));
        found_.width = static_cast<std::uint32_t>(number(body_ + 3));
        found_.components = components;
        found_.is_progressive = (marker_ & 3) == 2;
        is_slow_ = marker_ > 0xc8 || (marker_ & 3) == 3;
        return true;
    }

    bool is_incomplete() const {
        return found_.is_progressive && std::any_of(parts_, parts_ + found_.components, [](const Part& part) {
                   return (part.exact & SMOOTHED) != SMOOTHED;
               });
    }

    // The number of blocks of a component in a scan of its own.
    std::int64_t blocks_of(const Part& part) const {
        std::int64_t across = parts_of(std::int64_t{found_.width} * part.across, across_);
        std::int64_t down = parts_of(std::int64_t{found_.height} * part.down, down_);
        return parts_of(across, 8) * parts_of(down, 8);
    }

    // Reads a scan, and the bytes behind its header. False: nothing more is decoded.
    bool read_scan() {
        std::uint32_t count = at_ > body_ ? data_[body_] : 0;
        if (count == 0 || count > found_.components || at_ - body_ < 4 + 2 * count)
            return false;
        const std::uint8_t* fields = data_ + body_ + 1 + std::size_t{2} * count;
        unsigned first = fields[0] & 63, last = fields[1] & 63;
        std::uint64_t until = ~std::uint64_t{0} >> (63 - last),
                      exact = (fields[2] & 15) == 0 ? until >> first << first : 0;
        std::int64_t units = parts_of(found_.width, 8 * across_) * parts_of(found_.height, 8 * down_), blocks = 0;
        for (std::uint32_t place = 0; place < count; ++place) {
            std::uint8_t id = data_[body_ + 1 + std::size_t{2} * place];
            Part* end = parts_ + found_.components;
            Part* part = std::find_if(parts_, end, [id](const Part& component) { return component.id == id; });
            if (part == end)
                return false;
            part->exact |= exact;
            blocks += count == 1 ? blocks_of(*part) : units * part->across * part->down;
        }
        bool refines = found_.is_progressive && fields[2] >= 16 && first > 0;
        std::int64_t each = JPEG_TOUCH + (refines && last >= first ? JPEG_REFINE * (last - first + 1) / 64 : 0);
        cost_ += blocks * (is_slow_ ? JPEG_SLOW : each);
        std::size_t from = at_;
        find_marker();
        std::int64_t bytes = static_cast<std::int64_t>((is_cut_off_ ? size_ : at_) - from);
        if (!is_slow_) {
            cost_ += std::min(bytes, blocks * JPEG_BLOCK_BYTES_MAX) *
                     (found_.is_progressive ? JPEG_CODED_PROGRESSIVE : JPEG_CODED);
        }
        ++found_.scans;
        // A decoder stops behind the only scan of an image that is not progressive.
        has_more_ = found_.is_progressive || count < found_.components;
        return has_more_ && !is_cut_off_ && found_.scans < JPEG_SCANS_MAX;
    }

    // Counts the rest of an image where the budget ended: as many scans as fit there.
    void count_unseen() {
        if (!has_more_)
            return;
        std::int64_t blocks = 0;
        for (std::uint32_t component = 0; component < found_.components; ++component)
            blocks += blocks_of(parts_[component]);
        auto scans = std::min<std::int64_t>(JPEG_SCANS_MAX - found_.scans, static_cast<std::int64_t>(size_ - at_) / 8);
        cost_ += scans * blocks * (is_slow_ ? JPEG_SLOW : JPEG_TOUCH + JPEG_REFINE);
    }

    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t budget_;
    std::size_t at_ = 0, body_ = 0;
    std::uint8_t marker_ = 0;
    bool is_cut_off_ = false, is_slow_ = false, has_more_ = true;
    Part parts_[COMPONENTS_MAX];
    std::uint8_t across_ = 1, down_ = 1;
    std::int64_t cost_ = 0;
    JpegWork found_;
};

// The work of a file that begins_as_jpeg(). budget: JPEG_SEARCHED_MAX for the first image of a tensor; the
// searched bytes are taken off.
inline JpegWork jpeg_work(std::string_view data, std::size_t& budget) {
    JpegScanner scanner(data, budget + JPEG_HEADER);
    JpegWork found = scanner.read();
    budget = std::min(budget, scanner.left());
    return found;
}

}  // namespace clockwork
