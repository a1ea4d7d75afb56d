// The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "wire/bounds.h"

namespace clockwork::device {

inline constexpr int BOOL = 9;  // ONNX's code of bools
// alignment in bytes of an input's place in a slot, and of an output's place in the block
inline constexpr std::int64_t PART_ALIGNMENT = 64;

// Bits of an element of an ONNX type; 0 if the type has no fixed size or is unknown.
constexpr int dtype_bits(int dtype) {
    switch (dtype) {
        case 1:
        case 6:
        case 12: return 32;  // float32, int32, uint32
        case 7:
        case 11:
        case 13:
        case 14: return 64;  // int64, float64, uint64, complex64
        case 4:
        case 5:
        case 10:
        case 16: return 16;  // uint16, int16, float16, bfloat16
        case 2:
        case 3:
        case 9:
        case 17:
        case 18:
        case 19:
        case 20:
        case 24: return 8;  // uint8, int8, bool, the float8 family
        case 21:
        case 22:
        case 23: return 4;  // uint4, int4, float4
        case 25:
        case 26: return 2;    // uint2, int2
        case 15: return 128;  // complex128
        default: return 0;
    }
}

// A tensor of a request as received. Its dimensions are `rank` numbers of RequestTensors::dims, from `first`
// on.
struct RequestTensor {
    int dtype = 0;
    int rank = 0;
    std::size_t first = 0;
    const char* data = nullptr;  // null in a PROFILE
    std::int64_t bytes = 0;      // size of the tensor; for strings in a PROFILE, bytes of each string
};

// The tensors of all parts of a batch, one part after the other.
struct RequestTensors {
    std::vector<RequestTensor> tensors;
    std::vector<std::int64_t> dims;
    std::vector<std::uint32_t> counts;  // number of tensors in each part

    void clear() {
        tensors.clear();
        dims.clear();
        counts.clear();
    }
};

// Bytes of an input of a part.
struct Piece {
    const char* buf = nullptr;
    std::int64_t len = 0;
};

// Whether an input is optional. An optional input has a fixed shape and no axis of rows: one value serves the
// whole batch.
struct Rowless {
    bool is_optional = false;
    std::vector<std::int64_t> dims;
};

struct Input {
    int dtype = 0;
    int rank = 0;
    std::int64_t dims[RANK_MAX] = {};  // dimensions of all parts joined
    std::int64_t bytes = 0;
    std::int64_t place = 0;  // CPU device: offset of the input in the slot; -1: it is read in place
    bool rowless = false;    // an optional input: one value for the whole batch, the same in every part
};

// The symbols in which requests of different sizes share a batch: each part is padded to the longest, and its
// outputs are cut back. A device that needs equal shapes has none.
struct Lengths {
    std::size_t count = 0;
    std::vector<std::vector<int>> inputs;   // of each input, for each axis: its symbol, or -1
    std::vector<std::vector<int>> outputs;  // of each output, for each axis: its symbol, or -1

    int of_input(std::size_t input, int axis) const { return find(inputs, input, axis); }
    int of_output(std::size_t output, int axis) const { return find(outputs, output, axis); }

private:
    static int find(const std::vector<std::vector<int>>& symbols, std::size_t tensor, int axis) {
        const bool known = tensor < symbols.size() && std::size_t(axis) < symbols[tensor].size();
        return known ? symbols[tensor][std::size_t(axis)] : -1;
    }
};

struct Output {
    int dtype = 0;
    int rank = 0;
    std::int64_t dims[RANK_MAX] = {};
    std::int64_t begin = 0;  // offset in the block
    std::int64_t bytes = 0;
};

struct BatchParts {
    std::size_t part_count = 0;
    std::size_t input_count = 0;
    std::vector<Piece> pieces;  // part_count rows of input_count pieces; empty in a PROFILE
    std::vector<Input> inputs;
    std::vector<std::int64_t> rows;     // number of rows of each part
    const Lengths* lengths = nullptr;   // the symbols of the model
    std::vector<std::int64_t> sizes;    // for each part, its size in each symbol of `lengths`
    std::vector<std::int64_t> longest;  // for each symbol, the largest size among the parts
    // parts differ in a symbol: they are padded, and their outputs cut back
    bool uneven = false;
    std::vector<std::int64_t> row_sizes;  // inputs of the program: for each symbol, the size of each row
    // values of optional inputs in an execution that is only timed; "" for other inputs
    std::vector<std::string> values;
    std::vector<Output> outputs;
    // for each output, part_count offsets in the block: where each part ends
    std::vector<std::int64_t> part_ends;
    char* block = nullptr;  // bytes of the outputs, from malloc()
    // in place of a block: zero bytes that all executions share and nobody frees
    const char* zeros = nullptr;
    std::int64_t block_bytes = 0;

    BatchParts() = default;
    BatchParts(const BatchParts&) = delete;
    BatchParts& operator=(const BatchParts&) = delete;
    ~BatchParts() { std::free(block); }

    const Piece& piece(std::size_t part, std::size_t input) const { return pieces[part * input_count + input]; }

    std::int64_t& part_end(std::size_t output, std::size_t part) { return part_ends[output * part_count + part]; }

    // Finds the first bool input with a byte that is neither 0 nor 1, and that byte. Returns false if there
    // is none.
    bool find_wrong_bool(std::size_t& input, int& byte) const noexcept {
        for (input = 0; input < input_count; input++) {
            for (std::size_t part = 0; inputs[input].dtype == BOOL && part < part_count; part++) {
                const std::int64_t size = piece(part, input).len;
                const unsigned char* data = reinterpret_cast<const unsigned char*>(piece(part, input).buf);
                unsigned char all = 0;  // no branch, so that the compiler compares many bytes at once
                for (std::int64_t at = 0; at < size; at++)
                    all |= data[at];
                if (all > 1) {
                    byte = *std::find_if(data, data + size, [](unsigned char value) { return value > 1; });
                    return true;
                }
            }
        }
        return false;
    }

    std::int64_t row_count() const {
        std::int64_t count = 0;
        for (std::int64_t own : rows)
            count += own;
        return count;
    }

    // Writes the size of every row, symbol by symbol. Returns false if there is no memory.
    bool make_row_sizes() noexcept {
        row_sizes.clear();
        try {
            row_sizes.reserve(std::size_t(row_count()) * lengths->count);
        } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector
            return false;
        }
        for (std::size_t symbol = 0; symbol < lengths->count; symbol++)
            for (std::size_t part = 0; part < part_count; part++)
                row_sizes.insert(row_sizes.end(), std::size_t(rows[part]), sizes[part * lengths->count + symbol]);
        return true;
    }

    // The dimensions of a part's share of an input or output. symbols: the symbol of each axis.
    void shape_of(std::size_t part, const std::int64_t* joined, int rank, const std::vector<int>& symbols,
                  std::int64_t* dims) const {
        for (int axis = 0; axis < rank; axis++) {
            const int symbol = std::size_t(axis) < symbols.size() ? symbols[std::size_t(axis)] : -1;
            dims[axis] = axis == 0     ? rows[part]
                         : symbol >= 0 ? sizes[part * lengths->count + std::size_t(symbol)]
                                       : joined[axis];
        }
    }

    const char* output_bytes() const { return block != nullptr ? block : zeros; }
    std::int64_t output_begin(std::size_t output, std::size_t part) const {
        return part != 0 ? part_ends[output * part_count + part - 1] : outputs[output].begin;
    }
    std::int64_t output_end(std::size_t output, std::size_t part) const {
        return part_ends[output * part_count + part];
    }

    // Writes the dimensions of a part's share of an output, at most RANK_MAX; returns their number.
    int output_shape(std::size_t part, std::size_t index, std::int64_t* dims) const {
        const Output& output = outputs[index];
        if (is_cut(index)) {
            shape_of(part, output.dims, output.rank, lengths->outputs[index], dims);
        } else {
            std::copy(output.dims, output.dims + output.rank, dims);
            if (part_count > 1)
                dims[0] = rows[part];
        }
        return output.rank;
    }

    // Whether an output has to be cut back to the parts' sizes.
    bool is_cut(std::size_t output) const {
        if (!uneven || output >= lengths->outputs.size())
            return false;
        for (int symbol : lengths->outputs[output])
            if (symbol >= 0)
                return true;
        return false;
    }

    // Returns false if there is no memory.
    bool make_outputs(std::size_t count) noexcept {
        try {
            outputs.resize(count);
            part_ends.resize(count * part_count);
            return true;
        } catch (const std::bad_alloc&) {
            return false;
        }
    }

    // Makes the block and gives each output its place in it; sizes must be known. Returns false if there is
    // no memory.
    bool make_block() noexcept {
        block_bytes = 0;
        for (Output& output : outputs) {
            output.begin = block_bytes;
            block_bytes += (output.bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
        }
        block = static_cast<char*>(std::malloc(std::size_t(block_bytes) + 1));
        return block != nullptr;
    }

    // Notes where each part's share of an output ends, when all elements of the output have one size.
    void divide(std::size_t index) noexcept {
        const Output& output = outputs[index];
        if (part_count == 1) {
            part_end(index, 0) = output.begin + output.bytes;
            return;
        }
        const std::int64_t row_bytes = output.rank != 0 && output.dims[0] != 0 ? output.bytes / output.dims[0] : 0;
        std::int64_t end = output.begin;
        for (std::size_t part = 0; part < part_count; part++)
            part_end(index, part) = end += row_bytes * rows[part];
    }
};

}  // namespace clockwork::device
