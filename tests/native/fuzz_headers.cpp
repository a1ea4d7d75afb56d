// Every header that C++ reads, and what it accepts of a request: no byte is read that is not there, and what is
// taken is in range.
#include <cstdio>
#include <cstdlib>

#include "controller/exchange.h"

namespace {

void demand(bool holds, const char* what) {
    if (holds)
        return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
}

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
    std::vector<clockwork::ModelInterface> all(3);
    all[0].inputs = {input("x", 1, 32, {DIMENSION_ANY, 3, DIMENSION_ANY, DIMENSION_ANY})};
    all[0].batches = true;
    all[1].inputs = {input("ids", 7, 64, {DIMENSION_ANY, DIMENSION_ANY}),
                     input("mask", 9, 8, {DIMENSION_ANY, DIMENSION_ANY})};
    all[1].inputs[0].symbols = all[1].inputs[1].symbols = {0, 1};
    all[1].symbol_count = 2;
    all[1].batches = true;
    all[2].inputs = {input("x", 22, 4, {})};
    all[2].inputs[0].any_rank = true;
    for (clockwork::ModelInterface& one : all)
        one.outputs = {"y"};
    return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace clockwork;
    static const std::vector<ModelInterface> models = interfaces();
    if (size < 2)
        return 0;
    std::vector<std::size_t> frame_bytes(data[0] & 3, data[1]);
    std::vector<char> copy(data + 2, data + size);  // of exactly this size, so that a byte too many is noticed
    std::string_view header(copy.data(), copy.size());
    tag_of(header);
    CancelHeader cancel;
    cancel.read(header);
    InferRequestHeader request;
    if (request.read(header)) {
        demand(is_utf8(request.model), "a name that is not UTF-8");
        for (const ModelInterface& model : models) {
            Accepted accepted;
            if (!accept(model, request, frame_bytes, accepted))
                continue;
            std::size_t bytes = 0;
            for (std::size_t one : frame_bytes)
                bytes += one;
            demand(accepted.bytes == bytes, "bytes that do not add up");
            demand(accepted.rows >= 1 && accepted.rows <= ROWS_MAX, "rows out of range");
            demand(accepted.tensors.size() == model.inputs.size(), "inputs that are missing");
        }
    }
    ResultHeader result;
    if (result.read(header)) {
        demand(is_utf8(result.text), "a text that is not UTF-8");
        demand(result.duration_ns >= 0 && result.duration_ns < NEVER_NS, "a duration out of range");
        std::size_t tensors = 0;
        for (std::uint32_t part : result.parts)
            tensors += part;
        demand(tensors == result.tensors.size(), "parts that do not add up");
        for (const TensorRef& ref : result.tensors) {
            demand(ref.first + std::size_t{ref.rank} <= result.dims.size(), "dimensions that are not there");
        }
    }
    return 0;
}
