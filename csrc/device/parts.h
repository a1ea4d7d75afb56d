// The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace clockwork::device {

inline constexpr int RANK_MOST = 32;                // config.RANK_MAX
inline constexpr std::int64_t PART_ALIGNMENT = 64;  // of an input's place in a slot, and of an output's in the block

struct Input {
    int dtype = 0;
    int rank = 0;
    std::int64_t dims[RANK_MOST] = {};  // of all parts joined
    std::int64_t bytes = 0;
    std::int64_t place = 0;  // the CPU device's: where it lies in the slot; -1: it is read in place
};

struct Output {
    int dtype = 0;
    int rank = 0;
    std::int64_t dims[RANK_MOST] = {};
    std::int64_t begin = 0;  // in the block
    std::int64_t bytes = 0;
};

// Buffers are pinned and let go by those who hold the GIL (_parts.pyx).
struct Parts {
    std::size_t part_count = 0;
    std::size_t input_count = 0;
    std::size_t pinned_count = 0;
    std::vector<Py_buffer> pinned;  // part_count rows of input_count
    std::vector<Input> inputs;
    std::vector<std::int64_t> rows;  // of each part
    std::vector<Output> outputs;
    std::vector<std::int64_t> part_ends;  // a row of part_count for each output: where each part ends in the block
    char* block = nullptr;                // the outputs' bytes, of malloc()
    std::int64_t block_bytes = 0;

    Parts() = default;
    Parts(const Parts&) = delete;
    Parts& operator=(const Parts&) = delete;
    ~Parts() { std::free(block); }

    Py_buffer& buffer(std::size_t part, std::size_t input) { return pinned[part * input_count + input]; }

    std::int64_t& part_end(std::size_t output, std::size_t part) { return part_ends[output * part_count + part]; }

    // False if there is no memory.
    bool make_outputs(std::size_t count) noexcept {
        try {
            outputs.resize(count);
            part_ends.resize(count * part_count);
            return true;
        } catch (const std::bad_alloc&) {
            return false;
        }
    }

    // Gives each output its place in a block, which is made; the sizes are known. False if there is no memory.
    bool make_block() noexcept {
        block_bytes = 0;
        for (Output& output : outputs) {
            output.begin = block_bytes;
            block_bytes += (output.bytes + PART_ALIGNMENT - 1) / PART_ALIGNMENT * PART_ALIGNMENT;
        }
        block = static_cast<char*>(std::malloc(std::size_t(block_bytes) + 1));
        return block != nullptr;
    }

    // Notes where each part's share of an output ends, whose elements all take the same room.
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
