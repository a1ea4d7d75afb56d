// The check of a batch's inputs against the inputs of its model, and their joining. A device checks inputs
// nowhere else.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "device/order.h"

namespace clockwork::device {

inline constexpr int STRING = 8;                          // ONNX's code of strings
inline constexpr std::int64_t ELEMENTS_MOST = 1ll << 40;  // bound on the elements of a tensor

// Writes a sentence about what is wrong. Returns false.
[[gnu::format(printf, 3, 4)]] inline bool say(char* text, std::size_t text_bytes, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, text_bytes, format, arguments);
    va_end(arguments);
    return false;
}

// Dimensions as "[1, 4]".
inline std::string shape_text(const std::int64_t* dims, int rank) {
    std::string found = "[";
    for (int axis = 0; axis < rank; axis++)
        found += (axis != 0 ? ", " : "") + std::to_string(dims[axis]);
    return found + "]";
}

// Computes the bytes of inputs whose parts are padded. Returns false, with a sentence, if there are too many.
inline bool measure_padded(BatchParts& parts, char* text, std::size_t text_bytes) {
    for (std::size_t index = 0; index < parts.input_count; index++) {
        Input& joined = parts.inputs[index];
        std::int64_t count = 1;
        for (int axis = 0; axis < joined.rank; axis++) {
            const std::int64_t extent = joined.dims[axis];
            if (extent > 0 && count > ELEMENTS_MOST / extent)
                return say(text, text_bytes, "input %zu is too large once its parts are padded to the longest", index);
            count *= extent;
        }
        if (joined.dtype != STRING)
            joined.bytes = count * dtype_bits(joined.dtype) / 8;
    }
    return true;
}

// Describes the joined inputs of all parts. Returns false, with a sentence, if they do not fit a model whose
// inputs have these types. lengths: the symbols in which parts may differ; null: none. rowless: for each
// input, whether it is optional; null: none is. without_data: the views come from a PROFILE and have types
// and shapes only. Throws std::bad_alloc.
inline bool join(BatchParts& parts, const RequestTensors& views, const std::vector<int>& dtypes, const Lengths* lengths,
                 const std::vector<Rowless>* rowless, bool without_data, char* text, std::size_t text_bytes) {
    const std::size_t input_count = dtypes.size();
    std::size_t counted = 0;  // index of the input whose first axis counts the rows
    while (rowless != nullptr && counted + 1 < input_count && (*rowless)[counted].is_optional)
        counted++;
    const std::size_t symbol_count = lengths != nullptr ? lengths->count : 0;
    parts.part_count = views.counts.size();
    parts.input_count = input_count;
    if (parts.part_count == 0)
        return say(text, text_bytes, "a batch of no parts");
    if (!without_data)
        parts.pieces.resize(parts.part_count * input_count);
    parts.inputs.assign(input_count, Input());
    parts.rows.resize(parts.part_count);
    parts.lengths = lengths;
    parts.uneven = false;
    parts.sizes.assign(parts.part_count * symbol_count, -1);
    parts.longest.assign(symbol_count, 0);
    const RequestTensor* view = views.tensors.data();
    for (std::size_t part = 0; part < parts.part_count; part++) {
        if (views.counts[part] != input_count)
            return say(text, text_bytes, "%u inputs for a model of %zu", views.counts[part], input_count);
        for (std::size_t index = 0; index < input_count; index++, view++) {
            const std::int64_t* shape = views.dims.data() + view->first;
            const int dtype = view->dtype, rank = view->rank;
            Input& joined = parts.inputs[index];
            if (rank > RANK_MAX)
                return say(text, text_bytes, "input %zu has %d dimensions, at most %d are served", index, rank,
                           RANK_MAX);
            if (dtype != dtypes[index])
                return say(text, text_bytes, "input %zu is of type %d, the model takes %d", index, dtype,
                           dtypes[index]);
            if (part == 0) {
                joined.dtype = dtype;
                joined.rank = rank;
            } else if (rank != joined.rank) {
                return say(text, text_bytes, "input %zu has %d dimensions in one part and %d in another", index, rank,
                           joined.rank);
            }
            joined.rowless = rowless != nullptr && (*rowless)[index].is_optional;
            if (parts.part_count > 1 && rank == 0 && !joined.rowless)
                return say(text, text_bytes, "input %zu is a scalar, which cannot be joined", index);
            std::int64_t count = 1;
            for (int axis = 0; axis < rank; axis++) {
                const std::int64_t extent = shape[axis];
                if (extent < 0 || (extent > 0 && count > ELEMENTS_MOST / extent))
                    return say(text, text_bytes, "input %zu cannot have the shape %s", index,
                               shape_text(shape, rank).c_str());
                count *= extent;
                const int symbol = symbol_count != 0 ? lengths->of_input(index, axis) : -1;
                if (symbol >= 0) {
                    std::int64_t& size = parts.sizes[part * symbol_count + std::size_t(symbol)];
                    if (size >= 0 && size != extent)
                        return say(text, text_bytes, "input %zu has the size %lld along axis %d and another input %lld",
                                   index, (long long)extent, axis, (long long)size);
                    size = extent;
                    std::int64_t& longest = parts.longest[std::size_t(symbol)];
                    longest = std::max(longest, extent);
                }
                std::int64_t& whole = joined.dims[axis];
                if (part == 0) {
                    whole = extent;
                } else if (axis == 0 && !joined.rowless) {
                    whole += extent;
                } else if (symbol >= 0) {
                    if (whole != extent) {
                        whole = std::max(whole, extent);
                        parts.uneven = true;
                    }
                } else if (whole != extent) {
                    return say(text, text_bytes, "input %zu has the shape %s in one part and another elsewhere", index,
                               shape_text(shape, rank).c_str());
                }
            }
            if (index == counted) {
                parts.rows[part] = rank != 0 ? shape[0] : 0;
            } else if (parts.part_count > 1 && !joined.rowless && shape[0] != parts.rows[part]) {
                return say(text, text_bytes, "input %zu has %lld rows and input %zu has %lld", index,
                           (long long)shape[0], counted, (long long)parts.rows[part]);
            }
            const std::int64_t bits = count * dtype_bits(dtype);
            if (parts.part_count > 1 && bits % 8 != 0 && !joined.rowless)
                return say(text, text_bytes, "input %zu does not end on a byte, and cannot be joined", index);
            const std::int64_t bytes = (bits + 7) / 8;
            if (part == 0 || !joined.rowless)
                joined.bytes += bytes;
            if (without_data) {
                if (dtype == STRING)
                    joined.bytes = view->bytes;
                continue;
            }
            // checked before memory is taken for that many strings
            if (dtype == STRING && count > view->bytes / 4)
                return say(text, text_bytes, "input %zu has %lld strings, which take %lld bytes at least, got %lld",
                           index, (long long)count, (long long)(4 * count), (long long)view->bytes);
            if (dtype != STRING && view->bytes != bytes)
                return say(text, text_bytes, "input %zu of shape %s takes %lld bytes, got %lld", index,
                           shape_text(shape, rank).c_str(), (long long)bytes, (long long)view->bytes);
            parts.pieces[part * input_count + index] = {view->data, view->bytes};
            // Only requests with equal values of an optional input are batched. Otherwise a request would be
            // answered with the value of another.
            if (part > 0 && joined.rowless && std::memcmp(view->data, parts.pieces[index].buf, std::size_t(bytes)) != 0)
                return say(text, text_bytes, "input %zu is optional and has another value in each part of a batch",
                           index);
        }
    }
    return !parts.uneven || measure_padded(parts, text, text_bytes);
}

// Reads the shape in a PROFILE that stands for the value of an optional input: its bytes, and the input's
// dimensions in its view. Returns false if it is no such shape. Throws std::bad_alloc.
inline bool read_value(RequestTensors& views, RequestTensor& view, const std::vector<std::int64_t>& dims,
                       std::string& value) {
    std::int64_t count = 1;
    for (std::int64_t extent : dims)
        count *= extent;
    const std::size_t bytes = std::size_t((count * dtype_bits(view.dtype) + 7) / 8);
    if (std::size_t(view.rank) != 1 + (bytes + 3) / 4 || views.dims[view.first] != VALUE_MARK)
        return false;
    value.resize(4 * std::size_t(view.rank - 1));
    for (std::size_t at = 0; at + 1 < std::size_t(view.rank); at++) {
        const std::uint32_t word = std::uint32_t(views.dims[view.first + 1 + at]);
        std::memcpy(value.data() + 4 * at, &word, sizeof word);
    }
    value.resize(bytes);
    view.first = views.dims.size();
    view.rank = int(dims.size());
    views.dims.insert(views.dims.end(), dims.begin(), dims.end());
    return true;
}

// Gives the shapes of a PROFILE the types of the model's inputs. The last dimension of a string input is the
// bytes of each string. Optional inputs get their values. Returns false, with a sentence, if a shape is not
// that of its input. Throws std::bad_alloc.
inline bool type_shapes(BatchParts& parts, RequestTensors& views, const std::vector<int>& dtypes,
                        const std::vector<Rowless>* rowless, char* text, std::size_t text_bytes) {
    parts.values.assign(rowless != nullptr ? dtypes.size() : 0, std::string());
    views.tensors.resize(std::min(views.tensors.size(), dtypes.size()));
    for (std::size_t index = 0; index < views.tensors.size(); index++) {
        RequestTensor& view = views.tensors[index];
        view.dtype = dtypes[index];
        if (rowless != nullptr && (*rowless)[index].is_optional) {
            if (!read_value(views, view, (*rowless)[index].dims, parts.values[index]))
                return say(text, text_bytes, "input %zu is optional, and its value for timing is invalid", index);
            continue;
        }
        if (view.dtype == STRING && view.rank > 0)
            view.bytes = views.dims[view.first + std::size_t(--view.rank)];
    }
    views.counts.assign(1, std::uint32_t(views.tensors.size()));
    return true;
}

inline constexpr char NO_MEMORY[] = "there is not enough memory for the action";

enum class Joined { DONE, WRONG, NO_MEMORY };

// Joins the inputs of an INFER or PROFILE whose model is known. Returns false on failure; the order's text
// then says why.
inline Joined join(Order& order) noexcept {
    const DeviceModel& model = *order.residency;
    try {
        const bool profiles = order.kind == ActionKind::PROFILE;
        const bool done = (!profiles || type_shapes(order.parts, order.views, *model.model_dtypes, model.model_rowless,
                                                    order.text, TEXT_BYTES)) &&
                          join(order.parts, order.views, *model.model_dtypes, model.model_lengths, model.model_rowless,
                               profiles, order.text, TEXT_BYTES);
        return done ? Joined::DONE : Joined::WRONG;
    } catch (const std::bad_alloc&) {
        say(order.text, TEXT_BYTES, "%s", NO_MEMORY);
        return Joined::NO_MEMORY;
    }
}

}  // namespace clockwork::device
