#include "device/images.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include "device/jpeg_api.h"

namespace clockwork::device {

namespace {

// Scans of a progressive image: an encoder makes about ten, and each costs a pass over the whole image.
constexpr int SCANS_MAX = 64;

std::mutex loading;
jpeg::Library library;

// One decoding. Errors of the library end in jump_out(), so nothing with a destructor lives between it and decode().
struct Decoding {
    jpeg::Decompress state;
    jpeg::Errors errors;
    jpeg::Source source;
    jpeg::Progress progress;
    std::jmp_buf out;
    char text[jpeg::MESSAGE_BYTES];
};

Decoding& of(jpeg::Decompress* state) { return *static_cast<Decoding*>(state->client_data); }

[[noreturn]] void jump_out(jpeg::Decompress* state, const char* text) {
    Decoding& decoding = of(state);
    std::snprintf(decoding.text, sizeof decoding.text, "%s", text);
    std::longjmp(decoding.out, 1);
}

[[noreturn]] void on_error(jpeg::Decompress* state) {
    char text[jpeg::MESSAGE_BYTES];
    state->errors->format_message(state, text);
    char whole[jpeg::MESSAGE_BYTES + 20];
    std::snprintf(whole, sizeof whole, "is damaged: %s", text);
    jump_out(state, whole);
}

void on_message(jpeg::Decompress*, int) {}
void on_output(jpeg::Decompress*) {}
void on_init(jpeg::Decompress*) {}

int on_fill(jpeg::Decompress* state) { jump_out(state, "is damaged: it ends too early"); }

void on_skip(jpeg::Decompress* state, long bytes) {
    if (bytes <= 0)
        return;
    std::size_t count = static_cast<std::size_t>(bytes);
    if (count > state->source->left)
        jump_out(state, "is damaged: it ends too early");
    state->source->next += count;
    state->source->left -= count;
}

void on_progress(jpeg::Decompress* state) {
    if (state->input_scan_number > SCANS_MAX)
        jump_out(state, "has more scans than a progressive JPEG image needs");
}

jpeg::Decompress* begin(Decoding& decoding, const jpeg::Library& with) {
    jpeg::Decompress* state = &decoding.state;
    std::memset(&decoding, 0, sizeof decoding);
    state->errors = with.std_error(&decoding.errors);
    state->client_data = &decoding;
    decoding.errors.error_exit = on_error;
    decoding.errors.emit_message = on_message;
    decoding.errors.output_message = on_output;
    return state;
}

// Whether the library has the version and the structures that jpeg_api.h declares.
bool is_usable(const jpeg::Library& with, Decoding& decoding) {
    jpeg::Decompress* state = begin(decoding, with);
    if (setjmp(decoding.out))
        return false;
    with.create(state, jpeg::VERSION, sizeof *state);
    with.destroy(state);
    return true;
}

// Reads the image into `rows`, which `start` makes once its size is known. False: decoding.text says why.
template <typename Start>
bool decode(Decoding& decoding, std::string_view data, Start&& start) {
    jpeg::Decompress* state = begin(decoding, library);
    if (setjmp(decoding.out)) {
        library.destroy(state);
        return false;
    }
    library.create(state, jpeg::VERSION, sizeof *state);  // keeps errors and client_data
    decoding.source = {reinterpret_cast<const unsigned char*>(data.data()),
                       data.size(),
                       on_init,
                       on_fill,
                       on_skip,
                       library.resync,
                       on_init};
    decoding.progress.monitor = on_progress;
    state->source = &decoding.source;
    state->progress = &decoding.progress;
    library.read_header(state, 1);
    if (state->component_count == 1)
        state->out_color_space = jpeg::GREY;
    else if (state->component_count == 3)
        state->out_color_space = jpeg::RGB;
    else
        jump_out(state, "is a CMYK image; RGB and grey ones are taken");
    if (unsigned char* row = start(state->width, state->height, state->component_count); row == nullptr) {
        library.destroy(state);
        return false;
    } else {
        library.start(state);
        std::size_t stride = static_cast<std::size_t>(state->output_width) * state->output_components;
        while (state->output_scanline < state->output_height) {
            unsigned char* rows[1] = {row + state->output_scanline * stride};
            library.read_scanlines(state, rows, 1);
        }
    }
    library.destroy(state);
    return true;
}

template <typename Function>
bool find(void* handle, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    return function != nullptr;
}

// ----- resizing: Pillow's Resample.c, for 8 bits a channel ------------------------------------------

constexpr int PRECISION_BITS = 32 - 8 - 2;

double weight(Filter filter, double x) {
    x = std::abs(x);
    if (filter == Filter::BILINEAR)
        return x < 1.0 ? 1.0 - x : 0.0;
    constexpr double A = -0.5;
    if (x < 1.0)
        return ((A + 2.0) * x - (A + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * A;
    return 0.0;
}

// For each place of the result, the first place of the source that counts and the weights from there on.
struct Weights {
    std::vector<std::size_t> first, count;
    std::vector<int> values;
    std::size_t stride = 0;

    Weights(std::size_t from, std::size_t to, Filter filter) {
        double scale = static_cast<double>(from) / static_cast<double>(to), filter_scale = std::max(scale, 1.0);
        double support = (filter == Filter::BILINEAR ? 1.0 : 2.0) * filter_scale;
        stride = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
        values.assign(to * stride, 0);
        std::vector<double> exact(stride);
        for (std::size_t place = 0; place < to; ++place) {
            double center = (static_cast<double>(place) + 0.5) * scale, sum = 0, per = 1.0 / filter_scale;
            long low = std::max(static_cast<long>(center - support + 0.5), 0L);
            long high = std::min(static_cast<long>(center + support + 0.5), static_cast<long>(from));
            first.push_back(static_cast<std::size_t>(low));
            count.push_back(static_cast<std::size_t>(high - low));
            for (long x = 0; x < high - low; ++x) {
                exact[static_cast<std::size_t>(x)] =
                    weight(filter, (static_cast<double>(x + low) - center + 0.5) * per);
                sum += exact[static_cast<std::size_t>(x)];
            }
            for (std::size_t x = 0; x < count.back(); ++x) {
                double one = (sum != 0.0 ? exact[x] / sum : exact[x]) * (1 << PRECISION_BITS);
                values[place * stride + x] = static_cast<int>(one < 0 ? one - 0.5 : one + 0.5);
            }
        }
    }
};

std::uint8_t clip(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> PRECISION_BITS, 0, 255)); }

Pixels resized_across(const Pixels& image, std::size_t width, Filter filter) {
    Weights weights(image.width, width, filter);
    std::size_t channels = image.channels;
    Pixels result{width, image.height, channels, std::vector<std::uint8_t>(width * image.height * channels)};
    for (std::size_t row = 0; row < image.height; ++row) {
        const std::uint8_t* from = image.values.data() + row * image.width * channels;
        std::uint8_t* to = result.values.data() + row * width * channels;
        for (std::size_t place = 0; place < width; ++place) {
            const int* factors = weights.values.data() + place * weights.stride;
            const std::uint8_t* source = from + weights.first[place] * channels;
            int sums[3] = {1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1)};
            for (std::size_t x = 0; x < weights.count[place]; ++x) {
                for (std::size_t channel = 0; channel < channels; ++channel)
                    sums[channel] += source[x * channels + channel] * factors[x];
            }
            for (std::size_t channel = 0; channel < channels; ++channel)
                to[place * channels + channel] = clip(sums[channel]);
        }
    }
    return result;
}

Pixels resized_down(const Pixels& image, std::size_t height, Filter filter) {
    Weights weights(image.height, height, filter);
    std::size_t stride = image.width * image.channels;
    Pixels result{image.width, height, image.channels, std::vector<std::uint8_t>(height * stride)};
    std::vector<int> sums(stride);
    for (std::size_t place = 0; place < height; ++place) {
        const int* factors = weights.values.data() + place * weights.stride;
        std::fill(sums.begin(), sums.end(), 1 << (PRECISION_BITS - 1));
        for (std::size_t y = 0; y < weights.count[place]; ++y) {
            const std::uint8_t* source = image.values.data() + (weights.first[place] + y) * stride;
            for (std::size_t x = 0; x < stride; ++x)
                sums[x] += source[x] * factors[y];
        }
        std::transform(sums.begin(), sums.end(), result.values.data() + place * stride, clip);
    }
    return result;
}

// Pillow's convert("RGB") and convert("L").
Pixels converted(Pixels&& image, std::size_t channels) {
    if (image.channels == channels)
        return std::move(image);
    std::size_t count = image.width * image.height;
    Pixels result{image.width, image.height, channels, std::vector<std::uint8_t>(count * channels)};
    for (std::size_t place = 0; place < count; ++place) {
        if (channels == 3) {
            std::fill_n(result.values.data() + place * 3, 3, image.values[place]);
        } else {
            const std::uint8_t* from = image.values.data() + place * 3;
            result.values[place] =
                static_cast<std::uint8_t>((from[0] * 19595 + from[1] * 38470 + from[2] * 7471 + 0x8000) >> 16);
        }
    }
    return result;
}

// Where a piece in the middle begins: Python's round(), which takes the even one of two that are as near.
std::size_t middle(std::size_t whole, std::size_t part) {
    return static_cast<std::size_t>(std::nearbyint(static_cast<double>(whole - part) / 2.0));
}

}  // namespace

std::string load_jpeg(const std::string& path) {
    std::lock_guard<std::mutex> guard(loading);
    if (library.destroy != nullptr)
        return "";
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr)
        return std::string("cannot load ") + path + ": " + dlerror();
    jpeg::Library found;
    if (!find(handle, "jpeg_std_error", found.std_error) || !find(handle, "jpeg_CreateDecompress", found.create) ||
        !find(handle, "jpeg_read_header", found.read_header) || !find(handle, "jpeg_start_decompress", found.start) ||
        !find(handle, "jpeg_read_scanlines", found.read_scanlines) ||
        !find(handle, "jpeg_resync_to_restart", found.resync) ||
        !find(handle, "jpeg_destroy_decompress", found.destroy))
        return path + " is not libjpeg: it lacks a function";
    Decoding decoding;
    if (!is_usable(found, decoding))
        return path + " is a libjpeg that is not known here: " + decoding.text;
    library = found;
    return "";
}

bool decode_jpeg(std::string_view data, std::size_t pixels_max, Pixels& image, std::string& problem) {
    if (library.destroy == nullptr) {
        problem = "cannot be decoded: no libjpeg was loaded";
        return false;
    }
    if (data.size() < 3 || std::memcmp(data.data(), "\xff\xd8\xff", 3) != 0) {
        problem = data.empty() ? "is empty, not a JPEG image" : "is not a JPEG image: it begins with";
        char digits[8];
        for (std::size_t place = 0; place < std::min<std::size_t>(data.size(), 8); ++place) {
            std::snprintf(digits, sizeof digits, " %02x", static_cast<unsigned char>(data[place]));
            problem += digits;
        }
        return false;
    }
    auto start = [&](unsigned width, unsigned height, int channels) -> unsigned char* {
        if (static_cast<std::size_t>(width) * height > pixels_max) {
            problem = "has " + std::to_string(width) + " x " + std::to_string(height) + " pixels; at most " +
                      std::to_string(pixels_max) + " are taken";
            return nullptr;
        }
        image.width = width;
        image.height = height;
        image.channels = static_cast<std::size_t>(channels);
        try {
            image.values.resize(image.width * image.height * image.channels);
        } catch (const std::bad_alloc&) {
            problem = "has " + std::to_string(width) + " x " + std::to_string(height) + " pixels: no memory for them";
            return nullptr;
        }
        return image.values.data();
    };
    Decoding decoding;
    if (decode(decoding, data, start))
        return true;
    if (problem.empty())
        problem = decoding.text;
    return false;
}

Pixels resized(const Pixels& image, std::size_t width, std::size_t height, Filter filter) {
    if (width == image.width && height == image.height)
        return image;
    if (width == image.width)
        return resized_down(image, height, filter);
    if (height == image.height)
        return resized_across(image, width, filter);
    // Values are rounded between the two, so the order counts. This is Pillow's from version 13 on, found by comparing.
    auto signed_of = [](std::size_t size) { return static_cast<std::ptrdiff_t>(size); };
    if (height < image.height && signed_of(image.height - height) > 2 * (signed_of(image.width) - signed_of(width)))
        return resized_across(resized_down(image, height, filter), width, filter);
    return resized_down(resized_across(image, width, filter), height, filter);
}

bool read_image(std::string_view data, const ImageForm& form, std::uint8_t* target, std::string& problem) {
    Pixels image;
    if (!decode_jpeg(data, form.pixels_max, image, problem))
        return false;
    image = converted(std::move(image), form.channels);
    std::size_t width = form.width, height = form.height;
    if (form.shortest != 0) {
        std::size_t least = std::min(image.width, image.height);
        width = form.shortest * image.width / least;
        height = form.shortest * image.height / least;
        if (width / 64 > form.shortest || height / 64 > form.shortest) {
            problem = "has " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                      " pixels: one side is more than 64 times the other";
            return false;
        }
    }
    image = resized(image, width, height, form.filter);
    std::size_t top = middle(height, form.height), left = middle(width, form.width);
    std::size_t row_bytes = form.width * form.channels;
    for (std::size_t row = 0; row < form.height; ++row) {
        std::memcpy(target + row * row_bytes, image.values.data() + ((top + row) * image.width + left) * form.channels,
                    row_bytes);
    }
    return true;
}

}  // namespace clockwork::device
