// The launches of a variant as a CUDA graph, so that one call launches them all. Made when a model is
// prepared.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda_api.h"
#include "device/cuda_model.h"

namespace clockwork::device {

// Appends the nodes of a graph, each after the last. A launch's arguments are copied when its node is added.
inline CUresult add_nodes(const CudaApi& api, CUgraph graph, const Variant& variant, const CudaSlot& slot,
                          CUdeviceptr workspace, const char** call) {
    CUgraphNode last = nullptr;
    *call = "cuGraphAddEventRecordNode";
    CUresult result = api.add_record(&last, graph, nullptr, 0, slot.run_begin);
    std::vector<std::uint64_t> values;
    std::vector<void*> pointers;
    for (const Launch& launch : variant.launches) {
        if (result != CUDA_SUCCESS)
            return result;
        values.clear();
        for (const Argument& argument : launch.arguments)
            values.push_back(fixed_value(argument, variant, slot, workspace));
        pointers.clear();
        for (std::uint64_t& value : values)
            pointers.push_back(&value);
        pointers.push_back(nullptr);
        const CUDA_KERNEL_NODE_PARAMS_v1 node = {launch.function, launch.grid[0],  launch.grid[1],  launch.grid[2],
                                                 launch.block[0], launch.block[1], launch.block[2], launch.shared_bytes,
                                                 pointers.data(), nullptr};
        const CUgraphNode before = last;
        *call = "cuGraphAddKernelNode";
        result = api.add_kernel(&last, graph, &before, 1, &node);
    }
    if (result != CUDA_SUCCESS)
        return result;
    const CUgraphNode before = last;
    *call = "cuGraphAddEventRecordNode";
    return api.add_record(&last, graph, &before, 1, slot.graph_end);
}

// Makes the graph of a variant that is_recordable(), for this memory, ready to launch. On failure no graph
// remains, and ``call`` names the function that failed. ``stream`` is the caller's, which waits for it.
inline CUresult record_graph(const CudaApi& api, const Variant& variant, const CudaSlot& slot, CUdeviceptr workspace,
                             CUstream stream, CUgraphExec* exec, const char** call) {
    CUgraph graph = nullptr;
    *exec = nullptr;
    *call = "cuGraphCreate";
    CUresult result = api.make_graph(&graph, 0);
    if (result != CUDA_SUCCESS)
        return result;
    result = add_nodes(api, graph, variant, slot, workspace, call);
    if (result == CUDA_SUCCESS) {
        *call = "cuGraphInstantiate";
        result = api.instantiate_graph(exec, graph, 0);
    }
    if (result == CUDA_SUCCESS) {
        *call = "cuGraphUpload";
        result = api.upload_graph(*exec, stream);
        if (result == CUDA_SUCCESS) {
            *call = "cuStreamSynchronize";
            result = api.finish_stream(stream);
        }
        if (result != CUDA_SUCCESS) {
            api.free_graph_exec(*exec);
            *exec = nullptr;
        }
    }
    api.free_graph(graph);
    return result;
}

}  // namespace clockwork::device
