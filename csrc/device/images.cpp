#include "device/images.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

#include "device/jpeg_api.h"
#include "device/operator_bounds.h"

namespace clockwork::device {

namespace {

constexpr const char* ENDED = "was not read to its end: the execution was ended";

// libjpeg's text for data that ends within a scan; libjpeg itself would go on with zeros.
constexpr const char* ENDS_EARLY = "Corrupt JPEG data: premature end of data segment";

std::mutex loading;
jpeg::JpegLibrary library;

// The state of a decoding. The library's errors end in jump_out(), so no object with a destructor lives
// between that function and decode().
struct Decoding {
    jpeg::JpegDecompress state;
    jpeg::JpegErrors errors;
    jpeg::JpegSource source;
    jpeg::JpegProgress progress;
    std::size_t blocks, blocks_max;  // blocks of the scans that have begun
    int scans;
    std::jmp_buf out;
    char text[jpeg::MESSAGE_BYTES];
};

Decoding& of(jpeg::JpegDecompress* state) { return *static_cast<Decoding*>(state->client_data); }

[[noreturn]] void jump_out(jpeg::JpegDecompress* state, const char* text) {
    Decoding& decoding = of(state);
    std::snprintf(decoding.text, sizeof decoding.text, "%s", text);
    std::longjmp(decoding.out, 1);
}

[[noreturn]] void on_error(jpeg::JpegDecompress* state) {
    char text[jpeg::MESSAGE_BYTES];
    state->errors->format_message(state, text);
    char whole[jpeg::MESSAGE_BYTES + 20];
    std::snprintf(whole, sizeof whole, "is damaged: %s", text);
    jump_out(state, whole);
}

void on_output(jpeg::JpegDecompress*) {}
void on_init(jpeg::JpegDecompress*) {}

int on_fill(jpeg::JpegDecompress* state) { jump_out(state, "is damaged: it ends too early"); }

void on_skip(jpeg::JpegDecompress* state, long bytes) {
    if (bytes <= 0)
        return;
    std::size_t count = static_cast<std::size_t>(bytes);
    if (count > state->source->left)
        jump_out(state, "is damaged: it ends too early");
    state->source->next += count;
    state->source->left -= count;
}

// level: -1 for a warning. Warnings are errors here: otherwise a header of 154 bytes would pass as a damaged
// image with as many pixels as it claims.
void on_message(jpeg::JpegDecompress* state, int level) {
    const jpeg::JpegErrors& errors = *state->errors;
    if (level < 0 && errors.code > 0 && errors.code <= errors.last_message &&
        std::strcmp(errors.messages[errors.code], ENDS_EARLY) == 0)
        jump_out(state, "is damaged: it ends too early");
}

// Called before each row of blocks of a scan is read, and before each row of pixels is made.
void on_progress(jpeg::JpegDecompress* state) {
    Decoding& decoding = of(state);
    if (is_ending())
        jump_out(state, ENDED);
    if (state->input_scan_number == decoding.scans)
        return;
    decoding.scans = state->input_scan_number;
    decoding.blocks += static_cast<std::size_t>(state->mcus_per_row) * state->mcu_rows * state->mcu_blocks;
    if (decoding.scans > static_cast<int>(JPEG_SCANS_MAX) || decoding.blocks > decoding.blocks_max)
        jump_out(state, "has more scans than a progressive JPEG image needs");
}

// Whether so many bytes can hold the image: each block of each component takes at least a bit, in its first
// scan.
bool can_hold(const jpeg::JpegDecompress& state, std::size_t bytes) {
    std::size_t blocks = 0;
    for (int index = 0; index < state.component_count; ++index)
        blocks += static_cast<std::size_t>(state.components[index].width_in_blocks) *
                  state.components[index].height_in_blocks;
    return blocks / 8 <= bytes;
}

jpeg::JpegDecompress* begin(Decoding& decoding, const jpeg::JpegLibrary& with) {
    jpeg::JpegDecompress* state = &decoding.state;
    std::memset(&decoding, 0, sizeof decoding);
    state->errors = with.std_error(&decoding.errors);
    state->client_data = &decoding;
    decoding.errors.error_exit = on_error;
    decoding.errors.emit_message = on_message;
    decoding.errors.output_message = on_output;
    return state;
}

// Whether the library has the version and the structures that jpeg_api.h declares.
bool is_usable(const jpeg::JpegLibrary& with, Decoding& decoding) {
    jpeg::JpegDecompress* state = begin(decoding, with);
    if (setjmp(decoding.out))
        return false;
    with.create(state, jpeg::VERSION, sizeof *state);
    with.destroy(state);
    return true;
}

// Reads the image. start(width, height, channels) is called once the size is known, and row() returns the
// place of each row. Returns false on failure: the reason is in decoding.text or known to start(). Nothing
// that either function makes is freed here.
template <typename Start, typename Row>
bool decode(Decoding& decoding, std::string_view data, std::size_t blocks_max, Start&& start, Row&& row) {
    jpeg::JpegDecompress* state = begin(decoding, library);
    if (setjmp(decoding.out)) {
        library.destroy(state);
        return false;
    }
    library.create(state, jpeg::VERSION, sizeof *state);  // the call keeps the fields errors and client_data
    decoding.source = {reinterpret_cast<const unsigned char*>(data.data()),
                       data.size(),
                       on_init,
                       on_fill,
                       on_skip,
                       library.resync,
                       on_init};
    decoding.progress.monitor = on_progress;
    decoding.blocks_max = blocks_max;
    state->source = &decoding.source;
    state->progress = &decoding.progress;
    library.read_header(state, 1);
    if (state->component_count == 1)
        state->out_color_space = jpeg::GREY;
    else if (state->component_count == 3)
        state->out_color_space = jpeg::RGB;
    else
        jump_out(state, "is a CMYK image; RGB and grey ones are taken");
    if (state->arithmetic != 0)
        jump_out(state, "is coded arithmetically; Huffman's code is taken");
    if (!start(state->width, state->height, state->component_count)) {
        library.destroy(state);
        return false;
    }
    if (!can_hold(*state, data.size()))
        jump_out(state, "is damaged: it has fewer bytes than its pixels need");
    library.start(state);
    if (state->output_width != state->width || state->output_height != state->height ||
        state->output_components != state->component_count)
        jump_out(state, "has rows of another size than its header says");
    while (state->output_scanline < state->output_height) {
        unsigned char* rows[1] = {row()};
        if (library.read_scanlines(state, rows, 1) != 1)
            jump_out(state, "is damaged: it ends too early");
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

// For each place of the result, the first place of the source that counts, and the weights from there on.
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
                double scaled = (sum != 0.0 ? exact[x] / sum : exact[x]) * (1 << PRECISION_BITS);
                values[place * stride + x] = static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
            }
        }
    }
};

std::uint8_t clip(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> PRECISION_BITS, 0, 255)); }

Pixels resized_across(const Pixels& image, std::size_t width, Filter filter) {
    Weights weights(image.width, width, filter);
    std::size_t channels = image.channels;
    Pixels result{width, image.height, channels, std::vector<std::uint8_t>(width * image.height * channels)};
    for (std::size_t row = 0; row < image.height && !is_ending(); ++row) {
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
    for (std::size_t place = 0; place < height && !is_ending(); ++place) {
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

// The conversions convert("RGB") and convert("L") of Pillow.
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

// Computes the sides to which an image is resized for a form. Returns false if the image has too many pixels,
// before or after. Not inlined: its strings would become locals of the function that calls setjmp().
[[gnu::noinline]] bool plan(std::size_t width, std::size_t height, const ImageForm& form, std::size_t& to_width,
                            std::size_t& to_height, std::string& problem) {
    const std::string has = "has " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
    if (width * height > form.pixels_max) {
        problem = has + "; at most " + std::to_string(form.pixels_max) + " are taken";
        return false;
    }
    to_width = form.width;
    to_height = form.height;
    if (form.shortest != 0) {
        const std::size_t least = std::min(width, height);
        to_width = form.shortest * width / least;
        to_height = form.shortest * height / least;
        if (to_width / SIDES_RATIO_MAX > form.shortest || to_height / SIDES_RATIO_MAX > form.shortest) {
            problem = has + ": one side is more than " + std::to_string(SIDES_RATIO_MAX) + " times the other";
            return false;
        }
    }
    // An intermediate image never has more pixels than source and target together; see resized().
    if (const std::size_t pixels = to_width * to_height; pixels > static_cast<std::size_t>(JPEG_PIXELS_MAX)) {
        problem = has + ", and " + std::to_string(pixels) + " once it is resized; at most " +
                  std::to_string(JPEG_PIXELS_MAX) + " are made";
        return false;
    }
    return true;
}

// The image in `data`, and the sides to which it is to be resized. Returns false, and why, if it cannot be
// decoded.
bool decode_jpeg(std::string_view data, const ImageForm& form, Pixels& image, std::size_t& to_width,
                 std::size_t& to_height, std::string& problem) {
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
    Decoding decoding;
    std::size_t stride = 0;
    bool is_done = false;
    try {
        // Neither function throws through a frame of the library: neither calls it.
        auto start = [&](unsigned width, unsigned height, int channels) {
            if (!plan(width, height, form, to_width, to_height, problem))
                return false;
            image.width = width;
            image.height = height;
            image.channels = static_cast<std::size_t>(channels);
            stride = image.width * image.channels;
            image.values.reserve(image.height * stride);
            return true;
        };
        // Written row by row, so that an image which ends early has not touched memory for all of its rows.
        auto row = [&] {
            image.values.resize(image.values.size() + stride);
            return image.values.data() + image.values.size() - stride;
        };
        is_done = decode(decoding, data, blocks_max(form.pixels_max), start, row);
    } catch (const std::bad_alloc&) {
        library.destroy(&decoding.state);
        throw;
    }
    if (!is_done && problem.empty())
        problem = decoding.text;
    return is_done;
}

// Where the cut from the middle begins, rounded as Python's round() does: halves go to the even number.
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
    jpeg::JpegLibrary found;
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

Pixels resized(const Pixels& image, std::size_t width, std::size_t height, Filter filter) {
    if (width == image.width && height == image.height)
        return image;
    if (width == image.width)
        return resized_down(image, height, filter);
    if (height == image.height)
        return resized_across(image, width, filter);
    // Values are rounded after the first direction, so the order matters. This is the order of Pillow from
    // version 13 on, found by comparing results.
    auto signed_of = [](std::size_t size) { return static_cast<std::ptrdiff_t>(size); };
    if (height < image.height && signed_of(image.height - height) > 2 * (signed_of(image.width) - signed_of(width)))
        return resized_across(resized_down(image, height, filter), width, filter);
    return resized_down(resized_across(image, width, filter), height, filter);
}

bool read_image(std::string_view data, const ImageForm& form, std::uint8_t* target, std::string& problem) {
    Pixels image;
    std::size_t width = 0, height = 0;
    if (!decode_jpeg(data, form, image, width, height, problem))
        return false;
    image = resized(converted(std::move(image), form.channels), width, height, form.filter);
    if (is_ending()) {
        problem = ENDED;
        return false;
    }
    if (image.width < form.width || image.height < form.height || image.channels != form.channels)
        throw std::logic_error("an image is smaller than the piece cut out of it");
    std::size_t top = middle(height, form.height), left = middle(width, form.width);
    std::size_t row_bytes = form.width * form.channels;
    for (std::size_t row = 0; row < form.height; ++row) {
        std::memcpy(target + row * row_bytes, image.values.data() + ((top + row) * image.width + left) * form.channels,
                    row_bytes);
    }
    return true;
}

}  // namespace clockwork::device
