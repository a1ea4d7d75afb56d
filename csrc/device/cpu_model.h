// The records of a CPU's arena: of a model, its session, where its weights are mapped and where they lie in
// the arena; of an executor, the resources of the execution that it runs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "device/memory.h"
#include "device/order.h"
#include "device/ort_api.h"
#include "device/workspace.h"

namespace clockwork::device {

// An open ONNX Runtime session, with the names and types that each run passes. All fields zero: not open.
// Several threads may run it at once.
struct CpuSession {
    OrtSession* handle;
    std::size_t input_count;
    std::size_t output_count;
    char** input_names;
    char** output_names;
    int* input_dtypes;  // ONNX's codes of data types
};

// The place of a program's input in the pages.
struct CpuWeight {
    int dtype = 0;
    std::vector<std::int64_t> dims;
    std::size_t run = 0;
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
};

struct CpuModel : DeviceModel {
    bool packed = false;
    CpuSession* session = nullptr;               // the shared program's session, or &own
    CpuSession own = {};                         // the session of a packed model while it is resident
    std::string path;                            // packed model: the file that LOAD opens
    const OrtSessionOptions* options = nullptr;  // packed model: the options with which LOAD opens the file
    std::vector<int> input_dtypes;
    char* source = nullptr;  // the mapped weights
    std::size_t source_bytes = 0;
    bool copied = false;  // the weights are in memory of this process, not in a mapping of a file
    // bytes of weights in each run of pages; the rest of the last page is not copied
    std::vector<std::int64_t> run_bytes;
    std::vector<CpuWeight> weights;
    // tensors over the weights in the arena while the model is resident; executions only read them
    std::vector<OrtValue*> weight_values;
    std::size_t output_count = 0;
    std::size_t workspace_bytes = 0;  // bytes of workspace that an execution may take
    Lengths lengths;
    std::vector<Rowless> rowless;

    // The arguments of a run before its weights: the inputs, then the rows' sizes.
    std::size_t fed_count() const { return input_dtypes.size() + lengths.count; }
    std::size_t argument_count() const { return fed_count() + weights.size(); }
};

// Places for the arguments and the outputs of a run.
struct RunPlaces {
    std::vector<OrtValue*> arguments;
    std::vector<OrtValue*> outputs;

    bool has_room(const RunPlaces& other) const {
        return arguments.size() >= other.arguments.size() && outputs.size() >= other.outputs.size();
    }
};

// Memory in which the inputs of a run are joined.
struct CpuSlot {
    CpuSlot() = default;
    // With no memory if there is none left.
    explicit CpuSlot(std::size_t least) {
        // Huge pages from their size on; models with small inputs take little memory for many executors.
        const std::size_t wanted = round_up(least, least < HUGE_PAGE_BYTES ? SMALL_PAGE_BYTES : HUGE_PAGE_BYTES);
        base = map_touched(wanted);
        bytes = base != nullptr ? wanted : 0;
    }
    CpuSlot(CpuSlot&& other) noexcept { swap(other); }
    CpuSlot& operator=(CpuSlot&& other) noexcept {
        swap(other);
        return *this;
    }
    ~CpuSlot() {
        if (base != nullptr)
            munmap(base, bytes);
    }

    void swap(CpuSlot& other) noexcept {
        std::swap(base, other.base);
        std::swap(bytes, other.bytes);
    }

    char* base = nullptr;
    std::size_t bytes = 0;
};

// The resources of an executor, for the one execution that it runs. Its lane's thread uses them, unless a
// field says otherwise.
struct CpuExecutor {
    OrtRunOptions* run_options = nullptr;  // any thread may set its flag of termination, with the hub's lock
    MemoryAccount* account = nullptr;      // never freed: see workspace.h
    bool overrun = false;                  // whether the execution is to end; guarded by the hub's lock
    RunPlaces places;
    RunPlaces next_places;  // larger places for the next run, or the replaced ones; guarded by the hub's lock
    CpuSlot slot;           // exchanged with the hub's lock
    CpuSlot next_slot;      // a larger slot for the next run, or the replaced one; guarded by the hub's lock

    // Makes places for runs of so many arguments and outputs, never less than before. One thread at a time.
    // Throws std::bad_alloc.
    void grow(Hub& hub, std::size_t argument_count, std::size_t output_count) {
        if (argument_count <= most_arguments_ && output_count <= most_outputs_)
            return;
        most_arguments_ = std::max(most_arguments_, argument_count);
        most_outputs_ = std::max(most_outputs_, output_count);
        RunPlaces made{std::vector<OrtValue*>(most_arguments_), std::vector<OrtValue*>(most_outputs_)};
        std::lock_guard<Hub> held(hub);
        std::swap(made, next_places);
    }

    // Begins a run with the places that grow() has made. The lock must be held.
    void take_places() {
        if (!places.has_room(next_places))
            std::swap(places, next_places);
    }

    // Makes a slot of at least so many bytes for the next run. One thread at a time. False: no memory.
    bool grow_slot(Hub& hub, std::size_t least) {
        {
            std::lock_guard<Hub> held(hub);
            if (std::max(slot.bytes, next_slot.bytes) >= least)
                return true;
        }
        CpuSlot made(least);
        std::lock_guard<Hub> held(hub);
        next_slot.swap(made);
        return next_slot.bytes >= least;
    }

    // The slot for a run that needs so many bytes; null: no memory is left. It is allocated here only for
    // inputs of a shape that was not profiled.
    char* take_slot(Hub& hub, std::size_t least) {
        {
            std::lock_guard<Hub> held(hub);
            if (slot.bytes < next_slot.bytes)
                slot.swap(next_slot);
            if (slot.bytes >= least)
                return slot.base;
        }
        CpuSlot made(least);
        std::lock_guard<Hub> held(hub);
        if (made.bytes >= least)
            slot.swap(made);
        return slot.bytes >= least ? slot.base : nullptr;
    }

    std::size_t slot_bytes() const { return slot.bytes + next_slot.bytes; }

private:
    // by the thread that calls grow()
    std::size_t most_arguments_ = 0;
    std::size_t most_outputs_ = 0;
};

}  // namespace clockwork::device
