// Fuzz target: every header that C++ reads, and the checks of requests: no byte outside is read, and accepted
// values are in range.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "controller/exchange.h"
#include "wire/fields.h"

namespace {

void demand(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
}

const char* const names[] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j",
                             "k", "l", "m", "n", "o", "p", "q", "r", "s", "x"};

clockwork::InputSpec input(const char* name, std::int64_t dtype, std::int64_t bits, std::vector<std::int64_t> dims) {
    clockwork::InputSpec spec;
    spec.name = name;
    spec.dtype = dtype;
    spec.bits = bits;
    spec.symbols.assign(dims.size(), -1);
    spec.dims = std::move(dims);
    return spec;
}

std::vector<clockwork::ModelInterface> interfaces() {
    using clockwork::DIMENSION_ANY;
    std::vector<clockwork::ModelInterface> all(5);
    all[0].inputs = {input("x", 1, 32, {DIMENSION_ANY, 3, DIMENSION_ANY, DIMENSION_ANY})};
    all[0].batches = true;
    all[1].inputs = {input("ids", 7, 64, {DIMENSION_ANY, DIMENSION_ANY}),
                     input("mask", 9, 8, {DIMENSION_ANY, DIMENSION_ANY})};
    all[1].inputs[0].symbols = all[1].inputs[1].symbols = {0, 1};
    all[1].symbols = {"N", "T"};
    all[1].batches = true;
    all[2].inputs = {input("x", 22, 4, {})};
    all[2].inputs[0].any_rank = true;
    all[3].inputs = {input("w", 8, clockwork::BITS_OF_STRING, {DIMENSION_ANY})};
    for (int place = 0; place < 20; ++place)
        all[4].inputs.push_back(input(names[place], 2, 8, {DIMENSION_ANY}));
    for (clockwork::ModelInterface& one : all) {
        one.outputs = {"y", "words"};
        one.given.resize(2);
        one.given[0].dtype = 1;
        one.given[0].bits = 32;
        one.given[0].dims = {DIMENSION_ANY, 2};
        one.given[1].dtype = 8;
        one.given[1].bits = clockwork::BITS_OF_STRING;
        one.given[1].any_rank = true;
        one.index_inputs();
    }
    return all;
}

// Checks that a header is accepted, or that its flaw has a place within it.
void check_flaw(bool is_read, const clockwork::HeaderFlaw& flaw, bool is_of_its_kind, std::string_view header) {
    using clockwork::HeaderFlaw;
    demand(is_read == (flaw.kind == HeaderFlaw::NONE), "a header that is malformed in nothing");
    demand(is_of_its_kind == (flaw.kind != HeaderFlaw::OTHER), "a header of another kind");
    demand(flaw.depth <= HeaderFlaw::DEPTH_MAX, "a place too deep");
    bool has_place =
        flaw.kind == HeaderFlaw::FORM || flaw.kind == HeaderFlaw::CUT_OFF || flaw.kind == HeaderFlaw::NOT_UTF8;
    demand(!has_place || flaw.depth > 0, "a value without a place");
    demand(flaw.kind != HeaderFlaw::FORM || flaw.offset < header.size(), "a value beyond the header");
}

// References of shared tensors, some of which have the right machine.
std::int64_t machine_of(const clockwork::FrameBytes& frames) {
    std::int64_t machine = 0;
    if (!frames.empty() && frames[0].size() >= sizeof machine)
        std::memcpy(&machine, frames[0].data(), sizeof machine);
    return machine;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace clockwork;
    static const std::vector<ModelInterface> models = interfaces();
    if (size < 2)
        return 0;
    // Frames of so many of the last bytes, which may be strings.
    std::size_t frame_size = std::min<std::size_t>(data[1], size - 2);
    std::vector<char> tail(data + size - frame_size, data + size);
    FrameBytes frames(data[0] & 3, std::string_view(tail.data(), tail.size()));
    // a buffer of exactly this size, so that a read beyond it is noticed
    std::vector<char> copy(data + 2, data + size);
    std::string_view header(copy.data(), copy.size());
    std::int64_t tag = wire::tag_of(header);
    HeaderFlaw flaw;
    wire::Cancel cancel;
    check_flaw(cancel.read(header, flaw), flaw, tag == TAG_CANCEL, header);
    wire::InferRequest request;
    bool is_read = request.read(header, flaw);
    check_flaw(is_read, flaw, tag == TAG_INFER_REQUEST, header);
    if (is_read) {
        demand(is_utf8(request.model), "a name that is not UTF-8");
        for (const ModelInterface& model : models) {
            AcceptedRequest accepted;
            Flaw wrong;
            if (!check_request(model, request, frames, machine_of(frames), accepted, wrong)) {
                demand(Flaw::IN_USE < wrong.code && wrong.code < Flaw::STATUS, "a request that is wrong in nothing");
                demand(wrong.tensor <= model.inputs.size() && wrong.ref <= request.tensors.size(), "no such tensor");
                continue;
            }
            demand(wrong.code == Flaw::NONE, "a request that is right and wrong");
            demand(accepted.bytes == frames.size() * frame_size, "bytes that do not add up");
            demand(accepted.rows >= 1 && accepted.rows <= ROWS_MAX, "rows out of range");
            demand(accepted.tensors.size() == model.inputs.size(), "inputs that are missing");
        }
    }
    wire::Result result;
    is_read = result.read(header, flaw);
    check_flaw(is_read, flaw, tag == TAG_RESULT, header);
    if (is_read) {
        demand(is_utf8(result.text), "a text that is not UTF-8");
        Ns duration_ns = course_of(result).duration_ns;
        demand(duration_ns >= 0 && duration_ns <= NEVER_NS, "a duration out of range");
        std::size_t tensors = 0;
        for (const wire::ListRange& part : result.parts)
            tensors += part.count;
        demand(tensors == result.tensors.size(), "parts that do not add up");
        for (const TensorRef& ref : result.tensors) {
            demand(ref.shape.first + std::size_t{ref.shape.count} <= result.dims.size(),
                   "dimensions that are not there");
        }
        ExpectedResult expected;
        expected.part_rows.assign(result.parts.size(), 1);
        expected.part_rooms.assign(result.parts.size(), (data[0] & 4) != 0);
        expected.interface = std::make_shared<const ModelInterface>(models[data[0] % models.size()]);
        Flaw wrong;
        bool is_right = check_result(expected, result, frames, wrong);
        demand(is_right == (wrong.code == Flaw::NONE), "a result that is wrong in nothing");
    }
    return 0;
}
