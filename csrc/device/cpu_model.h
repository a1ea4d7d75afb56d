// The record of a model on a CPU device: its session, and where its weights are mapped and where they lie in
// the arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "device/order.h"
#include "device/ort_api.h"

namespace clockwork::device {

// An open ONNX Runtime session, with the names and types that each run passes. All fields zero: not open.
struct CpuSession {
    OrtSession* handle;
    std::size_t input_count;
    std::size_t output_count;
    char** input_names;
    char** output_names;
    int* input_dtypes;   // ONNX's codes of data types
    OrtValue** outputs;  // output_count places, for the run that is under way
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
    std::size_t workspace_bytes = 0;  // bytes of workspace that an execution may take
    Lengths lengths;
    std::vector<Rowless> rowless;
    // arguments of a run: places for the inputs, the rows' sizes, then the weights
    std::vector<OrtValue*> values;

    std::size_t fed_count() const { return input_dtypes.size() + lengths.count; }
};

struct CpuSlot : Slot {
    char* base = nullptr;
};

}  // namespace clockwork::device
