#include "controller/models.h"

#include <cstring>

namespace clockwork {

namespace {

// Elements of a tensor that has the dtype, rank and dimensions of a spec; -1 where it has not.
template <typename Spec>
std::int64_t count_elements(const Spec& spec, const TensorRef& ref, const std::int64_t* dims) {
    if (ref.dtype != spec.dtype || ref.rank > RANK_MAX)
        return -1;
    if (!spec.any_rank && ref.rank != spec.dims.size())
        return -1;
    __int128 count = 1;
    __int128 product = 1;  // without zeros
    for (std::uint32_t place = 0; place < ref.rank; ++place) {
        std::int64_t dimension = dims[place];
        if (dimension < 0)
            return -1;
        if (!spec.any_rank && spec.dims[place] != DIMENSION_ANY && spec.dims[place] != dimension)
            return -1;
        count *= dimension;
        product *= dimension != 0 ? dimension : 1;
        if (product > DIMENSIONS_MAX)
            return -1;
    }
    return static_cast<std::int64_t>(count);
}

bool has_bytes(std::int64_t elements, std::int64_t bits, std::size_t frame_bytes) {
    __int128 bytes = (__int128{elements} * bits + 7) >> 3;
    return bytes <= MESSAGE_BYTES_MAX && static_cast<std::size_t>(bytes) == frame_bytes;
}

bool fits(const InputSpec& spec, const TensorRef& ref, const std::int64_t* dims, std::size_t frame_bytes) {
    std::int64_t elements = spec.bits != 0 ? count_elements(spec, ref, dims) : -1;
    return elements >= 0 && has_bytes(elements, spec.bits, frame_bytes);
}

// Whether so many strings, of a length in four bytes and its bytes each, fill the frame.
bool has_strings(std::int64_t elements, std::string_view data) {
    std::size_t at = 0;
    for (; elements > 0; --elements) {
        std::uint32_t size = 0;
        if (data.size() - at < sizeof size)
            return false;
        std::memcpy(&size, data.data() + at, sizeof size);
        at += sizeof size;
        if (data.size() - at < size)
            return false;
        at += size;
    }
    return at == data.size();
}

const InputSpec* find_input(const ModelInterface& model, std::string_view name) {
    for (const InputSpec& spec : model.inputs) {
        if (spec.name == name)
            return &spec;
    }
    return name.empty() && model.inputs.size() == 1 ? &model.inputs[0] : nullptr;
}

}  // namespace

bool gives(const ModelInterface& model, std::size_t output, std::uint32_t rows, const TensorRef& ref,
           const std::int64_t* dims, std::string_view data) {
    if (output >= model.given.size())
        return true;
    const OutputSpec& spec = model.given[output];
    std::int64_t elements = count_elements(spec, ref, dims);
    if (elements < 0 || (model.batches && (ref.rank == 0 || dims[0] != rows)))
        return false;
    if (spec.bits == 0)
        return elements <= STRINGS_MAX && has_strings(elements, data);
    return spec.bits < 0 || has_bytes(elements, spec.bits, data.size());
}

bool accept(const ModelInterface& model, const InferRequestHeader& request, const std::vector<std::size_t>& frame_bytes,
            Accepted& accepted) {
    std::size_t inputs = model.inputs.size();
    if (inputs > INPUTS_MAX || request.tensors.size() != inputs || frame_bytes.size() != inputs)
        return false;
    accepted.bytes = 0;
    accepted.tensors.assign(inputs, nullptr);
    std::uint32_t seen_frames = 0;
    for (const TensorRef& ref : request.tensors) {
        if (ref.frame < 0 || static_cast<std::size_t>(ref.frame) >= inputs)
            return false;
        const InputSpec* spec = find_input(model, ref.name);
        if (spec == nullptr)
            return false;
        const TensorRef*& place = accepted.tensors[static_cast<std::size_t>(spec - model.inputs.data())];
        if (place != nullptr || (seen_frames >> ref.frame & 1) != 0)
            return false;
        seen_frames |= 1u << ref.frame;
        std::size_t size = frame_bytes[static_cast<std::size_t>(ref.frame)];
        if (!fits(*spec, ref, request.dims.data() + ref.first, size))
            return false;
        accepted.bytes += size;
        place = &ref;
    }
    if (inputs > 1 && model.symbol_count > 0) {
        accepted.sizes.assign(model.symbol_count, DIMENSION_ANY);
        for (std::size_t input = 0; input < inputs; ++input) {
            const InputSpec& spec = model.inputs[input];
            if (spec.any_rank)
                continue;
            for (std::size_t place = 0; place < spec.symbols.size(); ++place) {
                if (spec.symbols[place] < 0)
                    continue;
                std::int64_t& size = accepted.sizes[static_cast<std::size_t>(spec.symbols[place])];
                std::int64_t dimension = request.dims[accepted.tensors[input]->first + place];
                if (size != DIMENSION_ANY && size != dimension)
                    return false;
                size = dimension;
            }
        }
    }
    accepted.rows = 1;
    accepted.shape.clear();
    std::int64_t rows = 0;
    for (const TensorRef* ref : accepted.tensors) {
        const std::int64_t* dims = request.dims.data() + ref->first;
        std::uint32_t first = 0;
        if (model.batches) {
            if (ref->rank == 0 || dims[0] == 0 || (rows != 0 && dims[0] != rows))
                return false;
            rows = dims[0];
            first = 1;
        }
        accepted.shape.push_back(ref->rank - first);
        accepted.shape.insert(accepted.shape.end(), dims + first, dims + ref->rank);
    }
    if (model.batches) {
        if (rows == 0 || rows > ROWS_MAX)
            return false;
        accepted.rows = static_cast<std::uint32_t>(rows);
    }
    return true;
}

}  // namespace clockwork
