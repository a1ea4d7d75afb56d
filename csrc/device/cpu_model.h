// What a CPU device knows of a model: its session, and where its weights are mapped and lie in the arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "device/order.h"
#include "device/ort_api.h"

namespace clockwork::device {

// An open session and what a run needs to be told each time. All zero: it is not open.
struct Session {
    OrtSession* handle;
    std::size_t input_count;
    std::size_t output_count;
    char** input_names;
    char** output_names;
    int* input_dtypes;   // ONNX's
    OrtValue** outputs;  // output_count places for the one run that is under way
};

// Where one of the program's inputs lies in the pages.
struct CpuWeight {
    int dtype = 0;
    std::vector<std::int64_t> dims;
    std::size_t run = 0;
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
};

struct CpuModel : Residency {
    bool packed = false;
    Session* session = nullptr;                  // the shared program's, or &own
    Session own = {};                            // packed, and resident
    std::string path;                            // packed: what LOAD opens ...
    const OrtSessionOptions* options = nullptr;  // ... and how
    std::vector<int> input_dtypes;
    char* source = nullptr;  // the weights, mapped
    std::size_t source_bytes = 0;
    bool copied = false;                  // they are in memory of this process, and not a file's mapping
    std::vector<std::int64_t> run_bytes;  // of each run, what weights take: the rest of its last page is not copied
    std::vector<CpuWeight> weights;
    std::size_t workspace_bytes = 0;  // what one execution may take
    Lengths lengths;
    std::vector<Rowless> rowless;
    std::vector<OrtValue*> values;  // what a run is fed: places for the inputs, the rows' sizes, then the weights

    std::size_t fed_count() const { return input_dtypes.size() + lengths.count; }
};

struct CpuSlot : Room {
    char* base = nullptr;
};

}  // namespace clockwork::device
