// JPEG images as arrays of pixels, resized and cropped as Pillow does it: the same values, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace clockwork::device {

// Rows of pixels, channels last.
struct Pixels {
    std::size_t width = 0, height = 0, channels = 0;
    std::vector<std::uint8_t> values;
};

enum class Filter { BILINEAR, BICUBIC };

// How an image becomes the input of a model.
struct ImageForm {
    std::size_t width = 0, height = 0;  // of the result
    std::size_t shortest = 0;           // side that the shorter side gets, before the middle is cut out; 0: stretched
    std::size_t channels = 3;           // 3: RGB; 1: grey, by Pillow's weights
    Filter filter = Filter::BILINEAR;
    std::size_t pixels_max = 0;  // of an image that is decoded
};

// Use this library (Pillow's own, or a system's) from now on. A sentence if it cannot be used, else "".
std::string load_jpeg(const std::string& path);

// Pillow's Image.resize().
Pixels resized(const Pixels& image, std::size_t width, std::size_t height, Filter filter);

// Decode the JPEG image in `data`, convert to the channels of the form, resize, and cut the middle out, into form.width *
// form.height * form.channels bytes. False, and a clause that goes behind "image 3", if it is none, is damaged, or takes
// more work than operator_bounds.h allows; of the target some is written then.
bool read_image(std::string_view data, const ImageForm& form, std::uint8_t* target, std::string& problem);

}  // namespace clockwork::device
