// Fuzz target: the estimated work of a JPEG image from any bytes. No byte outside is read, and the counts
// stay within their bounds.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "wire/string_work.h"

namespace {

void demand(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
}

clockwork::JpegWork read(const std::string& data, std::size_t budget) {
    // a buffer of exactly this size, so that a read beyond it is noticed
    std::vector<char> copy(data.begin(), data.end());
    std::size_t left = budget;
    clockwork::JpegWork found = clockwork::jpeg_work({copy.data(), copy.size()}, left);
    demand(left <= budget, "a search that gives back more than it had");
    demand(found.work >= 0 && found.work <= clockwork::JPEG_WORK_UNKNOWN, "work out of range");
    demand(found.scans <= clockwork::JPEG_SCANS_MAX, "more scans than there may be");
    demand(found.scans == 0 || found.work > 0, "an image that takes no work");
    return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string begin = "\xff\xd8\xff", rest(reinterpret_cast<const char*>(data), size);
    std::string whole = begin + rest;
    clockwork::JpegWork found = read(whole, clockwork::JPEG_SEARCHED_MAX);
    demand(read(std::string("\xff\xd8\xff\xfe\x00\x05"
                            "xyz",
                            9) +
                    "\xff" + rest,
                clockwork::JPEG_SEARCHED_MAX)
                   .work == found.work,
           "a comment that changes the work");
    // The part of a file that is not searched counts as the most work it could be.
    demand(read(whole, size / 2).work >= (found.scans > 0 ? 1 : 0), "work that a smaller budget loses");
    std::string frame(8, '\0');
    std::uint32_t length = static_cast<std::uint32_t>(whole.size());
    std::memcpy(frame.data(), &length, sizeof length);
    frame.insert(4, whole);
    std::int64_t both = clockwork::strings_work(2, frame);
    demand(both == (found.work > 0 ? found.work : static_cast<std::int64_t>(whole.size())),
           "strings that do not add up");
    return 0;
}
