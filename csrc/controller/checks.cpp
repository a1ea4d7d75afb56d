#include "controller/checks.h"

#include <algorithm>
#include <cstring>

#include "controller/course.h"
#include "wire/string_work.h"

namespace clockwork {

namespace {

bool fail(Flaw& flaw, Flaw::Code code, std::int64_t expected = 0, std::int64_t got = 0) {
    flaw.code = code;
    flaw.expected = expected;
    flaw.got = got;
    return false;
}

template <typename Spec>
bool has_shape(const Spec& spec, const TensorRef& ref, const std::int64_t* dims) {
    if (spec.any_rank)
        return true;
    if (ref.shape.count != spec.dims.size())
        return false;
    for (std::uint32_t axis = 0; axis < ref.shape.count; ++axis) {
        if (dims[axis] < 0 || (spec.dims[axis] != DIMENSION_ANY && spec.dims[axis] != dims[axis]))
            return false;
    }
    return true;
}

// Checks that `count` strings, each a length in four bytes and its bytes, fill the frame, as
// clockwork.wire.tensors.check_strings.
bool check_strings(std::int64_t count, std::string_view data, Flaw& flaw) {
    if (count > STRINGS_MAX)
        return fail(flaw, Flaw::STRINGS, STRINGS_MAX, count);
    std::size_t at = 0;
    for (std::int64_t place = 0; place < count; ++place) {
        std::uint32_t size = 0;
        if (at > data.size() || data.size() - at < sizeof size)
            return fail(flaw, Flaw::STRING_OUTSIDE, count, place);
        std::memcpy(&size, data.data() + at, sizeof size);
        at += sizeof size + size;
    }
    if (at > data.size())
        return fail(flaw, Flaw::STRING_OUTSIDE, count, count - 1);
    return at == data.size() || fail(flaw, Flaw::STRINGS_END, count, static_cast<std::int64_t>(data.size() - at));
}

// Computes the elements and bytes of a tensor of these dimensions and bits an element, as
// clockwork.wire.tensors.tensor_bytes. A string counts with the bytes of its length.
bool count_bytes(std::int64_t bits, const TensorRef& ref, const std::int64_t* dims, std::int64_t& elements,
                 std::int64_t& bytes, Flaw& flaw) {
    __int128 product = 1;  // the product of the dimensions other than 0
    bool is_empty = false;
    for (std::uint32_t axis = 0; axis < ref.shape.count; ++axis) {
        if (dims[axis] < 0)
            return fail(flaw, Flaw::NEGATIVE, 0, dims[axis]);
        if (dims[axis] == 0)
            is_empty = true;
        else
            product *= dims[axis];
        if (product > DIMENSIONS_MAX)
            return fail(flaw, Flaw::OVERFLOW);
    }
    elements = is_empty ? 0 : static_cast<std::int64_t>(product);
    __int128 size = (__int128{elements} * (bits == BITS_OF_STRING ? 32 : bits) + 7) >> 3;
    if (size > MESSAGE_BYTES_MAX)
        return fail(flaw, Flaw::TOO_LARGE, MESSAGE_BYTES_MAX, elements);
    bytes = static_cast<std::int64_t>(size);
    return true;
}

// Checks that a frame holds a tensor of these dimensions, as clockwork.wire.tensors.check_tensor.
bool check_bytes(std::int64_t bits, const TensorRef& ref, const std::int64_t* dims, std::string_view data, Flaw& flaw) {
    std::int64_t elements = 0, bytes = 0, came = static_cast<std::int64_t>(data.size());
    if (!count_bytes(bits, ref, dims, elements, bytes, flaw))
        return false;
    bool is_strings = bits == BITS_OF_STRING;
    flaw.bytes = came;
    if (is_strings ? came < bytes : came != bytes)
        return fail(flaw, Flaw::BYTES, bytes, came);
    return !is_strings || check_strings(elements, data, flaw);
}

bool is_range(std::int64_t offset, std::int64_t bytes) {
    return offset >= 0 && bytes >= 0 && bytes <= INT64_MAX - offset;
}

// Checks that a frame is a reference to memory that every worker sees. The worker checks whether the memory
// exists and is large enough.
bool check_reference(std::int64_t bits, const TensorRef& ref, const std::int64_t* dims, std::string_view data,
                     std::int64_t machine, AcceptedRequest& accepted, Flaw& flaw) {
    std::int64_t elements = 0, bytes = 0, numbers[REFERENCE_BYTES / sizeof(std::int64_t)];
    if (data.size() != REFERENCE_BYTES || bits == BITS_OF_STRING)
        return fail(flaw, Flaw::NO_MEMORY);
    if (!count_bytes(bits, ref, dims, elements, bytes, flaw))
        return false;
    // Machine, process, descriptor, key (two), offset; the room's descriptor, key (two) and bytes.
    std::memcpy(numbers, data.data(), REFERENCE_BYTES);
    if (machine == 0 || numbers[0] != machine)
        return fail(flaw, Flaw::UNSEEN);
    if (!is_range(numbers[5], bytes) || numbers[9] < 0)
        return fail(flaw, Flaw::NO_MEMORY);
    accepted.is_shared = true;
    accepted.copied_bytes += static_cast<std::uint64_t>(bytes);
    accepted.has_room = accepted.has_room || numbers[9] > 0;
    return true;
}

bool check_input(const InputSpec& spec, const TensorRef& ref, const std::int64_t* dims, std::string_view data,
                 std::int64_t machine, AcceptedRequest& accepted, Flaw& flaw) {
    if ((ref.dtype & ~SHARED) != spec.dtype)
        return fail(flaw, Flaw::DTYPE, spec.dtype, ref.dtype);
    if (!has_shape(spec, ref, dims) || (spec.any_rank && ref.shape.count > 0 && dims[0] < 0))
        return fail(flaw, Flaw::SHAPE);
    if (spec.bits == BITS_UNKNOWN)
        return fail(flaw, Flaw::NO_DTYPE, 0, ref.dtype);
    if (is_shared(ref) && spec.optional)
        return fail(flaw, Flaw::NO_MEMORY);
    return is_shared(ref) ? check_reference(spec.bits, ref, dims, data, machine, accepted, flaw)
                          : check_bytes(spec.bits, ref, dims, data, flaw);
}

// A symbol has the same size in all inputs of a request.
bool check_symbols(const ModelInterface& model, const wire::InferRequest& request, AcceptedRequest& accepted,
                   Flaw& flaw) {
    accepted.holders.assign(model.symbols.size(), 0);
    accepted.sizes.resize(model.symbols.size());
    for (std::uint32_t input = 0; input < model.inputs.size(); ++input) {
        const InputSpec& spec = model.inputs[input];
        if (spec.any_rank)
            continue;
        for (std::size_t axis = 0; axis < spec.symbols.size(); ++axis) {
            std::int32_t symbol = spec.symbols[axis];
            if (symbol < 0)
                continue;
            std::uint32_t& holder = accepted.holders[static_cast<std::size_t>(symbol)];
            std::int64_t& size = accepted.sizes[static_cast<std::size_t>(symbol)];
            std::int64_t dimension = request.dims[accepted.tensors[input]->shape.first + axis];
            if (holder == 0) {
                holder = input + 1;
                size = dimension;
            } else if (size != dimension) {
                flaw.tensor = input;
                flaw.other = holder - 1;
                flaw.symbol = symbol;
                return fail(flaw, Flaw::SYMBOL, size, dimension);
            }
        }
    }
    return true;
}

bool check_rows(const ModelInterface& model, const wire::InferRequest& request, AcceptedRequest& accepted, Flaw& flaw) {
    std::uint32_t inputs = static_cast<std::uint32_t>(accepted.tensors.size()), first = inputs;
    for (flaw.tensor = 0; flaw.tensor < inputs; ++flaw.tensor) {
        if (model.inputs[flaw.tensor].optional)
            continue;
        if (accepted.tensors[flaw.tensor]->shape.count == 0)
            return fail(flaw, Flaw::NO_ROWS_AXIS);
        first = std::min(first, flaw.tensor);
    }
    std::int64_t rows = first == inputs ? 1 : request.dims[accepted.tensors[first]->shape.first];
    for (flaw.tensor = first; flaw.tensor < inputs; ++flaw.tensor) {
        if (model.inputs[flaw.tensor].optional)
            continue;
        std::int64_t found = request.dims[accepted.tensors[flaw.tensor]->shape.first];
        if (found != rows || rows == 0)
            return fail(flaw, Flaw::ROWS, rows, found);
    }
    accepted.rows = static_cast<std::uint32_t>(std::min(rows, ROWS_MAX));
    return true;
}

// Returns the number of elements, saturated at the type's maximum.
std::int64_t count_elements(const TensorRef& ref, const std::int64_t* dims) {
    __int128 count = 1;
    for (std::uint32_t axis = 0; axis < ref.shape.count; ++axis) {
        if (dims[axis] == 0)
            return 0;
        count = std::min<__int128>(count * dims[axis], INT64_MAX);
    }
    return static_cast<std::int64_t>(count);
}

// Returns the size class of a dimension. limit: InputSpec's limit.
std::int64_t length_class(std::int64_t size, std::int64_t limit) {
    if (limit == EXACT || size == 0)
        return size;
    std::int64_t found = LENGTH_CLASS_MIN;
    while (found < size)
        found += (found & (found - 1)) == 0 ? found / 2 : found / 3;
    return size <= limit ? std::min(found, limit) : found;
}

// Appends the entry of an optional input's value to a shape, as clockwork.wire.optional.value_entry.
void add_value(std::string_view data, std::vector<std::int64_t>& shape) {
    shape.push_back(1 + static_cast<std::int64_t>((data.size() + 3) / 4));
    shape.push_back(VALUE_MARK);
    for (std::size_t at = 0; at < data.size(); at += 4) {
        std::uint32_t word = 0;
        std::memcpy(&word, data.data() + at, std::min<std::size_t>(4, data.size() - at));
        shape.push_back(word);
    }
}

}  // namespace

void add_defaults(const ModelInterface& model, wire::InferRequest& request, FrameBytes& frames) {
    if (!model.has_optional() || request.tensors.size() != frames.size())
        return;
    const std::size_t came = request.tensors.size();
    for (const InputSpec& spec : model.inputs) {
        const auto end = request.tensors.begin() + static_cast<std::ptrdiff_t>(came);
        if (!spec.optional ||
            std::any_of(request.tensors.begin(), end, [&](const TensorRef& ref) { return ref.name == spec.name; })) {
            continue;
        }
        const wire::ListRange shape{static_cast<std::uint32_t>(request.dims.size()),
                                    static_cast<std::uint32_t>(spec.dims.size())};
        request.tensors.push_back({spec.name, spec.dtype, shape, static_cast<std::int64_t>(frames.size())});
        request.dims.insert(request.dims.end(), spec.dims.begin(), spec.dims.end());
        frames.push_back(spec.value);
    }
}

bool check_request(const ModelInterface& model, const wire::InferRequest& request, const FrameBytes& frames,
                   std::int64_t machine, AcceptedRequest& accepted, Flaw& flaw) {
    flaw = {};
    std::size_t inputs = model.inputs.size();
    if (request.tensors.size() != frames.size()) {
        return fail(flaw, Flaw::FRAMES, static_cast<std::int64_t>(request.tensors.size()),
                    static_cast<std::int64_t>(frames.size()));
    }
    accepted.bytes = accepted.copied_bytes = 0;
    accepted.is_shared = accepted.has_room = false;
    accepted.tensors.assign(inputs, nullptr);
    accepted.taken.assign(frames.size(), false);
    for (const TensorRef& ref : request.tensors) {
        if (static_cast<std::size_t>(ref.frame) >= frames.size())
            return fail(flaw, Flaw::REFERENCE);
        const InputSpec* spec = model.find_input(ref.name);
        if (spec == nullptr)
            return fail(flaw, Flaw::NO_INPUT);
        flaw.tensor = static_cast<std::uint32_t>(spec - model.inputs.data());
        const TensorRef*& place = accepted.tensors[flaw.tensor];
        if (place != nullptr)
            return fail(flaw, Flaw::TWICE);
        std::size_t frame = static_cast<std::size_t>(ref.frame);
        if (accepted.taken[frame])
            return fail(flaw, Flaw::FRAME_TAKEN);
        accepted.taken[frame] = true;
        const std::int64_t* dims = request.dims.data() + ref.shape.first;
        if (!check_input(*spec, ref, dims, frames[frame], machine, accepted, flaw))
            return false;
        accepted.bytes += frames[frame].size();
        place = &ref;
        ++flaw.ref;
    }
    for (flaw.tensor = 0; flaw.tensor < inputs; ++flaw.tensor) {
        if (accepted.tensors[flaw.tensor] == nullptr)
            return fail(flaw, Flaw::MISSING);
    }
    if (inputs > 1 && !model.symbols.empty() && !check_symbols(model, request, accepted, flaw))
        return false;
    accepted.rows = 1;
    if (model.batches && !check_rows(model, request, accepted, flaw))
        return false;
    accepted.shape.clear();
    std::uint32_t first = model.batches ? 1 : 0;
    for (std::size_t input = 0; input < inputs; ++input) {
        const TensorRef* ref = accepted.tensors[input];
        const std::int64_t* dims = request.dims.data() + ref->shape.first;
        if (model.inputs[input].optional) {
            add_value(frames[static_cast<std::size_t>(ref->frame)], accepted.shape);
            continue;
        }
        bool is_strings = model.inputs[input].bits == BITS_OF_STRING;
        accepted.shape.push_back(ref->shape.count - first + is_strings);
        const std::vector<std::int64_t>& limits = model.inputs[input].limits;
        for (std::uint32_t axis = first; axis < ref->shape.count; ++axis)
            accepted.shape.push_back(length_class(dims[axis], axis < limits.size() ? limits[axis] : EXACT));
        if (is_strings) {
            std::int64_t count = count_elements(*ref, dims);
            std::int64_t work = strings_work(count, frames[static_cast<std::size_t>(ref->frame)]);
            accepted.shape.push_back(string_size(count, work));
        }
    }
    return true;
}

// Checks that a frame gives the place of an output of this size in the client's memory.
bool check_place(std::int64_t bits, const TensorRef& ref, const std::int64_t* dims, std::string_view data, Flaw& flaw) {
    std::int64_t elements = 0, bytes = 0, numbers[PLACE_BYTES / sizeof(std::int64_t)];
    if (!count_bytes(bits, ref, dims, elements, bytes, flaw))
        return false;
    if (data.size() != PLACE_BYTES)
        return fail(flaw, Flaw::NO_PLACE);
    std::memcpy(numbers, data.data(), PLACE_BYTES);  // offset and bytes
    return (is_range(numbers[0], bytes) && numbers[1] == bytes) || fail(flaw, Flaw::NO_PLACE);
}

bool check_output(const ModelInterface& model, std::size_t output, std::uint32_t rows, bool has_room,
                  const TensorRef& ref, const std::int64_t* dims, std::string_view data, Flaw& flaw) {
    if (is_shared(ref) && (!has_room || output >= model.given.size() || model.given[output].bits <= 0))
        return fail(flaw, Flaw::NO_PLACE);
    if (output >= model.given.size())
        return true;
    const OutputSpec& spec = model.given[output];
    if ((ref.dtype & ~SHARED) != spec.dtype)
        return fail(flaw, Flaw::DTYPE, spec.dtype, ref.dtype);
    if (spec.bits == BITS_OF_STRING && count_elements(ref, dims) > STRINGS_MAX)
        return fail(flaw, Flaw::STRINGS, STRINGS_MAX);
    if (model.batches && (ref.shape.count == 0 || dims[0] != rows))
        return fail(flaw, Flaw::OUTPUT_ROWS, rows);
    if (!has_shape(spec, ref, dims))
        return fail(flaw, Flaw::SHAPE);
    if (is_shared(ref))
        return check_place(spec.bits, ref, dims, data, flaw);
    return spec.bits == BITS_UNKNOWN || check_bytes(spec.bits, ref, dims, data, flaw);
}

bool check_result(const ExpectedResult& expected, const wire::Result& result, const FrameBytes& frames, Flaw& flaw) {
    flaw = {};
    auto whole = [](std::size_t count) { return static_cast<std::int64_t>(count); };
    if (!is_status(result.status))
        return fail(flaw, Flaw::STATUS, 0, result.status);
    if (course_of(result).duration_ns >= NEVER_NS)
        return fail(flaw, Flaw::PHASES);
    if (frames.size() > result.tensors.size())
        return fail(flaw, Flaw::FRAMES_MORE, whole(result.tensors.size()), whole(frames.size()));
    if (static_cast<Status>(result.status) != Status::OK)
        return true;
    if (result.parts.size() != expected.part_rows.size())
        return fail(flaw, Flaw::PARTS, whole(expected.part_rows.size()), whole(result.parts.size()));
    std::size_t tensors = expected.tensors();
    for (const wire::ListRange& part : result.parts) {
        if (part.count != tensors)
            return fail(flaw, Flaw::PART_TENSORS, whole(tensors), part.count);
        for (std::size_t output = 0; output < tensors; ++output) {
            const TensorRef& ref = result.tensors[flaw.ref++];
            if (static_cast<std::size_t>(ref.frame) >= frames.size())
                return fail(flaw, Flaw::OUTPUT_FRAME, whole(frames.size()), ref.frame);
        }
    }
    flaw.ref = 0;
    for (std::size_t part = 0; part < expected.part_rows.size(); ++part) {
        std::uint32_t rows = expected.part_rows[part];
        bool has_room = part < expected.part_rooms.size() && expected.part_rooms[part];
        for (flaw.tensor = 0; flaw.tensor < tensors; ++flaw.tensor, ++flaw.ref) {
            const TensorRef& ref = result.tensors[flaw.ref];
            if (!check_output(*expected.interface, flaw.tensor, rows, has_room, ref,
                              result.dims.data() + ref.shape.first, frames[static_cast<std::size_t>(ref.frame)],
                              flaw)) {
                return false;
            }
        }
    }
    return true;
}

}  // namespace clockwork
