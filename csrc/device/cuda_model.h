// The record of a model on a CUDA device: the launch lists of its program, and where its weights lie. Made
// when a model is prepared and only read while actions run, except for the values of launches: the execution,
// of which one runs at a time, fills those in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "device/cuda_api.h"
#include "device/host_pages.h"
#include "device/join.h"
#include "device/notice.h"
#include "device/order.h"
#include "wire/bounds.h"

namespace clockwork::device {

inline constexpr int LOAD_AHEAD = 3;  // pieces of a LOAD that are under way at a time

// The origin of a kernel's argument.
enum class ArgumentSource { WEIGHT, INPUT, OUTPUT, WORKSPACE, SIZE, TABLE, VALUE };

struct Argument {
    ArgumentSource source = ArgumentSource::VALUE;
    int index = 0;
    std::uint64_t value = 0;  // an offset in bytes, or the value itself in the lowest bytes
};

struct Launch {
    CUfunction function = nullptr;
    unsigned grid[3] = {};
    unsigned block[3] = {};
    unsigned shared_bytes = 0;
    std::vector<Argument> arguments;
    // arguments, filled in before each launch: one execution runs at a time
    std::vector<std::uint64_t> values;
    std::vector<void*> pointers;  // addresses of `values`, ended by null

    // Sets `pointers`; to be called once all values are there.
    void make_room() {
        values.resize(arguments.size());
        pointers.clear();
        for (std::uint64_t& value : values)
            pointers.push_back(&value);
        pointers.push_back(nullptr);
    }
};

// An input or output of a variant.
struct Tensor {
    int dtype = 0;
    std::vector<std::int64_t> dims;
    std::vector<int> symbols;  // for each axis, the padded symbol it has; -1: none
    std::int64_t bytes = 0;
    std::int64_t row_bytes = 0;  // bytes of a row, where the program batches
    std::int64_t offset = 0;     // offset in the slot
    bool open = false;           // whether the tensor is padded along an axis
    // rows of padding repeat the last row: a kernel may use the values as indexes
    bool padded = false;

    int rank() const { return int(dims.size()); }

    // Bytes of so many rows, padding included; of the whole tensor where the program does not batch.
    std::int64_t used_bytes(std::int64_t rows) const { return row_bytes != 0 ? rows * row_bytes : bytes; }
};

// The recorded launches of a variant in a slot; invalid once the slot or the workspace is replaced.
struct RecordedGraph {
    CUgraphExec exec = nullptr;  // null: no graph was recorded
    CUdeviceptr slot = 0;
    CUdeviceptr workspace = 0;
};

struct Variant {
    std::int64_t batch = 0;
    std::vector<Tensor> inputs;
    std::vector<Tensor> outputs;
    std::int64_t slot_bytes = 0;
    std::int64_t workspace_bytes = 0;
    std::vector<Launch> launches;
    // addresses of weights and sizes that kernels read in the slot, 8 bytes each
    std::vector<Argument> table;
    std::int64_t table_begin = 0;       // offset of the table in the slot
    std::int64_t table_end = 0;         // offset in the slot of the first input
    std::vector<RecordedGraph> graphs;  // one for each slot; guarded by the hub's lock

    // Whether the launches are the same for every model and request.
    bool is_recordable() const {
        for (const Launch& launch : launches) {
            for (const Argument& argument : launch.arguments) {
                if (argument.source == ArgumentSource::WEIGHT || argument.source == ArgumentSource::SIZE)
                    return false;
            }
        }
        return !launches.empty();
    }

    // Whether these inputs can be run by this variant. sizes: PADDED_MAX values, set to the sizes of the
    // padded symbols.
    bool fits(const BatchParts& parts, bool batches, std::int64_t* sizes) const {
        for (int symbol = 0; symbol < PADDED_MAX; symbol++)
            sizes[symbol] = 0;
        for (std::size_t index = 0; index < inputs.size(); index++) {
            const Input& joined = parts.inputs[index];
            const Tensor& tensor = inputs[index];
            if (joined.rank != tensor.rank())
                return false;
            for (int axis = 0; axis < joined.rank; axis++) {
                const std::int64_t size = joined.dims[axis], bound = tensor.dims[std::size_t(axis)];
                const int symbol = tensor.symbols[std::size_t(axis)];
                bool is_good;
                if (batches && axis == 0) {
                    is_good = size <= batch && size == parts.inputs[0].dims[0];
                } else if (symbol >= 0) {
                    is_good = 1 <= size && size <= bound && (sizes[symbol] == 0 || sizes[symbol] == size);
                    sizes[symbol] = size;
                } else {
                    is_good = size == bound;
                }
                if (!is_good)
                    return false;
            }
        }
        return true;
    }
};

struct CudaWeight {
    std::size_t run = 0;
    std::int64_t offset = 0;
};

struct CudaModel : DeviceModel {
    // variants of the program, in the order in which they are tried
    std::vector<Variant>* variants = nullptr;
    bool batches = false;
    std::size_t output_count = 0;
    WeightsCopy* copy = nullptr;  // weights in the host's memory
    // store into which the weights are fetched; null: they stay in memory for good
    HostPages* store = nullptr;
    std::vector<CudaWeight> weights;
    // runs of the LOAD that was started last; guarded by the hub's lock
    std::vector<std::int64_t> loading_starts;

    // The first variant that runs these inputs; null if none does. sizes: PADDED_MAX values, filled in.
    Variant* choose(const BatchParts& parts, std::int64_t* sizes) const {
        for (Variant& variant : *variants) {
            if (variant.fits(parts, batches, sizes))
                return &variant;
        }
        return nullptr;
    }

    // run_starts: first page of each run of a LOAD.
    CUdeviceptr address(int index, const std::vector<std::int64_t>& run_starts, CUdeviceptr arena,
                        std::size_t page_bytes) const {
        const CudaWeight& weight = weights[std::size_t(index)];
        return arena + CUdeviceptr(run_starts[weight.run]) * page_bytes + CUdeviceptr(weight.offset);
    }

    // Writes a variant's table of addresses for weights at these pages. Returns whether the table changed.
    bool write_table(const Variant& variant, const std::vector<std::int64_t>& run_starts, CUdeviceptr arena,
                     std::size_t page_bytes, const std::int64_t* sizes, char* table) const {
        bool changed = false;
        for (const Argument& entry : variant.table) {
            const std::uint64_t value = entry.source == ArgumentSource::SIZE
                                            ? std::uint64_t(sizes[entry.index])
                                            : address(entry.index, run_starts, arena, page_bytes) + entry.value;
            changed |= std::memcmp(table, &value, sizeof value) != 0;
            std::memcpy(table, &value, sizeof value);
            table += sizeof value;
        }
        return changed;
    }
};

// Progress of a LOAD in pieces, each of which is queued and later noticed to have arrived, and its speed.
class LoadPace {
public:
    LoadPace() = default;

    // expected_ns: predicted duration of the whole LOAD; 0: not known.
    LoadPace(std::int64_t begin_ns, std::int64_t expected_ns, std::int64_t bytes)
        : noticed_ns(begin_ns), ns_per_byte_(bytes > 0 ? double(expected_ns) / double(bytes) : 0) {}

    // Notes that a piece is queued, and begins the next.
    void queue() {
        sizes_[queued++ % LOAD_AHEAD] = piece_bytes;
        under_way_bytes_ += piece_bytes;
        piece_bytes = 0;
    }

    // Notes that the oldest piece has arrived.
    void notice(std::int64_t now_ns) {
        const std::int64_t bytes = sizes_[arrived_++ % LOAD_AHEAD];
        ns_per_byte_ = double(now_ns - noticed_ns) / double(bytes);
        under_way_bytes_ -= bytes;
        noticed_ns = now_ns;
    }

    // Predicted durations from noticed_ns on, until the oldest piece arrives and until all have; 0: not
    // known.
    std::int64_t next_ns() const { return std::int64_t(double(sizes_[arrived_ % LOAD_AHEAD]) * ns_per_byte_); }
    std::int64_t left_ns() const { return std::int64_t(double(under_way_bytes_ + piece_bytes) * ns_per_byte_); }

    std::int64_t piece_bytes = 0;  // bytes of the piece that is being queued
    std::int64_t queued = 0;       // number of pieces queued so far
    // time at which the last arrival was noticed; at first, the time of the beginning
    std::int64_t noticed_ns = 0;

private:
    std::int64_t sizes_[LOAD_AHEAD] = {};  // bytes of the pieces under way
    std::int64_t arrived_ = 0;             // number of pieces that have arrived
    std::int64_t under_way_bytes_ = 0;
    double ns_per_byte_ = 0;
};

// Memory for a batch's table, inputs and outputs: pinned, and as much on the device.
struct CudaSlot : Slot {
    std::size_t number = 0;
    char* host = nullptr;
    CUdeviceptr device = 0;
    CUevent input_begin = nullptr;
    StreamMark input_end;
    CUevent run_begin = nullptr;
    StreamMark run_end;
    CUevent graph_end = nullptr;  // recorded in the graph behind the launches, as run_begin is before them
    StreamMark output_end;
};

// The value of an argument that depends on neither model nor request.
inline std::uint64_t fixed_value(const Argument& argument, const Variant& variant, const CudaSlot& slot,
                                 CUdeviceptr workspace) {
    const std::size_t index = std::size_t(argument.index);
    switch (argument.source) {
        case ArgumentSource::INPUT: return slot.device + CUdeviceptr(variant.inputs[index].offset) + argument.value;
        case ArgumentSource::OUTPUT: return slot.device + CUdeviceptr(variant.outputs[index].offset) + argument.value;
        case ArgumentSource::WORKSPACE: return workspace + argument.value;
        case ArgumentSource::TABLE:
            return slot.device + CUdeviceptr(variant.table_begin) + argument.value * sizeof(std::uint64_t);
        default: return argument.value;
    }
}

// The target has as many places as the source.
inline void copy_starts(std::vector<std::int64_t>& target, const std::vector<std::int64_t>& source) noexcept {
    std::copy(source.begin(), source.end(), target.begin());
}

// Writes the sentence that no variant runs these inputs.
inline void say_unserved(const BatchParts& parts, char* text, std::size_t text_bytes) noexcept {
    std::string shapes;
    for (const Input& input : parts.inputs)
        shapes += (shapes.empty() ? "" : ", ") + shape_text(input.dims, input.rank);
    say(text, text_bytes, "the program was not compiled for inputs of the shapes [%s]; see its variants",
        shapes.c_str());
}

struct CudaOrder : Order {
    // The execution does not start before this time. Only the execute lane waits for it.
    std::int64_t run_earliest_ns = 0;
    bool pins = false;  // LOAD: the model's copy stays in the host store until the order has been polled
    Variant* variant = nullptr;
    std::int64_t sizes[PADDED_MAX] = {};  // sizes of the padded symbols before padding
    // the graph that was launched; null: the kernels were launched singly
    CUgraphExec graph = nullptr;
};

}  // namespace clockwork::device
