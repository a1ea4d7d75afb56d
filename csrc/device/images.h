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
    std::size_t width = 0, height = 0;  // size of the result
    // length of the shorter side after resizing, before the crop; 0: the image is stretched
    std::size_t shortest = 0;
    std::size_t channels = 3;  // 3: RGB; 1: grey, by Pillow's weights
    Filter filter = Filter::BILINEAR;
    std::size_t pixels_max = 0;  // bound on the pixels of the encoded image
};

// Sets the library to use (Pillow's own, or a system's) from now on. Returns a sentence if it cannot be used,
// else "".
std::string load_jpeg(const std::string& path);

// The resize of Pillow's Image.resize().
Pixels resized(const Pixels& image, std::size_t width, std::size_t height, Filter filter);

// Decodes the JPEG image in `data`, converts it to the channels of the form, resizes it, and cuts out the
// middle: form.width * form.height * form.channels bytes. Returns false, with a clause that continues "image
// 3", if the data is no image or damaged, or takes more work than operator_bounds.h allows; the target is
// then partly written.
bool read_image(std::string_view data, const ImageForm& form, std::uint8_t* target, std::string& problem);

}  // namespace clockwork::device
