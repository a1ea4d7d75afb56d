// NVIDIA's driver API, as a table of the functions used, filled by dlopen.
//
// The wheels bring no header and no library to link with, and a machine without a GPU has no driver. So the
// library is opened, by the name or path given, when a device is asked for. The declarations follow the ABI
// that the driver has kept since CUDA 11.4: an enum is an int, a device pointer a 64-bit integer, every
// handle an opaque pointer. Names with _v2 are the symbols to which the vendor's header maps the plain names.
//
// The fake driver (tests/native/fake_driver/fake_driver.cpp) exports the same names.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

typedef int CUresult;
typedef int CUdevice;
typedef std::uint64_t CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUlinkState_st* CUlinkState;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphNode_st* CUgraphNode;
typedef struct CUgraphExec_st* CUgraphExec;
typedef struct CUuuid_st {
    unsigned char bytes[16];
} CUuuid;

// The parameters of cuGraphAddKernelNode. Since CUDA 12 the vendor's header maps that name to
// cuGraphAddKernelNode_v2, which has a larger struct; the driver keeps the first version.
typedef struct CUDA_KERNEL_NODE_PARAMS_v1_st {
    CUfunction func;
    unsigned gridDimX;
    unsigned gridDimY;
    unsigned gridDimZ;
    unsigned blockDimX;
    unsigned blockDimY;
    unsigned blockDimZ;
    unsigned sharedMemBytes;
    void** kernelParams;
    void** extra;
} CUDA_KERNEL_NODE_PARAMS_v1;
static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, gridDimX) == 8);
static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, sharedMemBytes) == 32);
static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, kernelParams) == 40);
static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v1, extra) == 48);
static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS_v1) == 56);

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_INVALID_PTX = 218,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_MISALIGNED_ADDRESS = 716,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_UNKNOWN = 999,
};

enum {
    CU_STREAM_NON_BLOCKING = 1,  // the stream does not wait for the legacy default stream
    CU_EVENT_DEFAULT = 0,
    CU_MEMHOSTALLOC_PORTABLE = 1,
    CU_JIT_ERROR_LOG_BUFFER = 5,
    CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
    CU_JIT_INPUT_PTX = 1,
    CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK = 8,
    CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK = 12,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
    CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
    CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
    CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_LIMIT_STACK_SIZE = 0,
};

// X(name in the table, the driver's symbol, parameters): each function returns a CUresult.
#define CW_CUDA_FUNCTIONS(X)                                                                                       \
    X(init, cuInit, (unsigned flags))                                                                              \
    X(driver_version, cuDriverGetVersion, (int* version))                                                          \
    X(error_name, cuGetErrorName, (CUresult error, const char** name))                                             \
    X(device_count, cuDeviceGetCount, (int* count))                                                                \
    X(device, cuDeviceGet, (CUdevice * device, int ordinal))                                                       \
    X(device_name, cuDeviceGetName, (char* name, int length, CUdevice device))                                     \
    X(device_uuid, cuDeviceGetUuid_v2, (CUuuid * uuid, CUdevice device))                                           \
    X(device_bus, cuDeviceGetPCIBusId, (char* id, int length, CUdevice device))                                    \
    X(device_attribute, cuDeviceGetAttribute, (int* value, int attribute, CUdevice device))                        \
    X(device_memory, cuDeviceTotalMem_v2, (size_t* bytes, CUdevice device))                                        \
    X(retain_context, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                            \
    X(release_context, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                            \
    X(set_context, cuCtxSetCurrent, (CUcontext context))                                                           \
    X(limit, cuCtxGetLimit, (size_t* value, int limit))                                                            \
    X(set_limit, cuCtxSetLimit, (int limit, size_t value))                                                         \
    X(memory_info, cuMemGetInfo_v2, (size_t* free, size_t* total))                                                 \
    X(allocate, cuMemAlloc_v2, (CUdeviceptr * pointer, size_t bytes))                                              \
    X(release, cuMemFree_v2, (CUdeviceptr pointer))                                                                \
    X(allocate_host, cuMemHostAlloc, (void** pointer, size_t bytes, unsigned flags))                               \
    X(release_host, cuMemFreeHost, (void* pointer))                                                                \
    X(copy_in, cuMemcpyHtoDAsync_v2, (CUdeviceptr target, const void* source, size_t bytes, CUstream stream))      \
    X(copy_out, cuMemcpyDtoHAsync_v2, (void* target, CUdeviceptr source, size_t bytes, CUstream stream))           \
    X(load_module, cuModuleLoadData, (CUmodule * module, const void* image))                                       \
    X(unload_module, cuModuleUnload, (CUmodule module))                                                            \
    X(make_link, cuLinkCreate_v2, (unsigned count, int* options, void** values, CUlinkState* state))               \
    X(add_to_link, cuLinkAddData_v2,                                                                               \
      (CUlinkState state, int type, void* data, size_t size, const char* name, unsigned count, int* options,       \
       void** values))                                                                                             \
    X(finish_link, cuLinkComplete, (CUlinkState state, void** cubin, size_t* size))                                \
    X(free_link, cuLinkDestroy, (CUlinkState state))                                                               \
    X(function, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char* name))                   \
    X(function_attribute, cuFuncGetAttribute, (int* value, int attribute, CUfunction function))                    \
    X(set_function, cuFuncSetAttribute, (CUfunction function, int attribute, int value))                           \
    X(launch, cuLaunchKernel,                                                                                      \
      (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared_bytes, CUstream stream, void** arguments, void** extra))                  \
    X(make_stream, cuStreamCreate, (CUstream * stream, unsigned flags))                                            \
    X(free_stream, cuStreamDestroy_v2, (CUstream stream))                                                          \
    X(wait_event, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                             \
    X(finish_stream, cuStreamSynchronize, (CUstream stream))                                                       \
    X(make_event, cuEventCreate, (CUevent * event, unsigned flags))                                                \
    X(free_event, cuEventDestroy_v2, (CUevent event))                                                              \
    X(record_event, cuEventRecord, (CUevent event, CUstream stream))                                               \
    X(query_event, cuEventQuery, (CUevent event))                                                                  \
    X(elapsed, cuEventElapsedTime, (float* milliseconds, CUevent begin, CUevent end))

// Functions of newer drivers; null in the table where the driver has none.
#define CW_CUDA_OPTIONAL_FUNCTIONS(X)                                                                                  \
    X(write_word, cuStreamWriteValue32_v2, (CUstream stream, CUdeviceptr target, std::uint32_t value, unsigned flags)) \
    X(parameter, cuFuncGetParamInfo, (CUfunction function, size_t index, size_t* offset, size_t* size))                \
    CW_CUDA_GRAPH_FUNCTIONS(X)

// Functions of graphs; all of them are used or none.
#define CW_CUDA_GRAPH_FUNCTIONS(X)                                                                                   \
    X(make_graph, cuGraphCreate, (CUgraph * graph, unsigned flags))                                                  \
    X(free_graph, cuGraphDestroy, (CUgraph graph))                                                                   \
    X(add_kernel, cuGraphAddKernelNode,                                                                              \
      (CUgraphNode * node, CUgraph graph, const CUgraphNode* before, size_t before_count,                            \
       const CUDA_KERNEL_NODE_PARAMS_v1* launch))                                                                    \
    X(add_record, cuGraphAddEventRecordNode,                                                                         \
      (CUgraphNode * node, CUgraph graph, const CUgraphNode* before, size_t before_count, CUevent event))            \
    X(instantiate_graph, cuGraphInstantiateWithFlags, (CUgraphExec * exec, CUgraph graph, unsigned long long flags)) \
    X(upload_graph, cuGraphUpload, (CUgraphExec exec, CUstream stream))                                              \
    X(launch_graph, cuGraphLaunch, (CUgraphExec exec, CUstream stream))                                              \
    X(free_graph_exec, cuGraphExecDestroy, (CUgraphExec exec))

namespace clockwork::device {

struct CudaApi {
    void* library = nullptr;
#define CW_CUDA_MEMBER(member, symbol, parameters) CUresult(*member) parameters = nullptr;
    CW_CUDA_FUNCTIONS(CW_CUDA_MEMBER)
    CW_CUDA_OPTIONAL_FUNCTIONS(CW_CUDA_MEMBER)
#undef CW_CUDA_MEMBER

    // Fills the table from the library of this name or path. Returns false, with a sentence that names the
    // missing symbol or library. The library is never closed, because a driver cannot be unloaded.
    bool open(const char* path, char* text, std::size_t text_bytes) {
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            std::snprintf(text, text_bytes, "no CUDA driver: %s", dlerror());
            return false;
        }
#define CW_CUDA_FIND(member, symbol, parameters)                                                       \
    member = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #symbol));                        \
    if (member == nullptr) {                                                                           \
        std::snprintf(text, text_bytes, "the CUDA driver %s is too old: it has no %s", path, #symbol); \
        return false;                                                                                  \
    }
        CW_CUDA_FUNCTIONS(CW_CUDA_FIND)
#undef CW_CUDA_FIND
#define CW_CUDA_FIND(member, symbol, parameters) \
    member = reinterpret_cast<CUresult(*) parameters>(dlsym(library, #symbol));
        CW_CUDA_OPTIONAL_FUNCTIONS(CW_CUDA_FIND)
#undef CW_CUDA_FIND
        return true;
    }

    bool has_graphs() const {
        bool has = true;
#define CW_CUDA_HAS(member, symbol, parameters) has = has && member != nullptr;
        CW_CUDA_GRAPH_FUNCTIONS(CW_CUDA_HAS)
#undef CW_CUDA_HAS
        return has;
    }

    // Whether a call failed. If it did, `text` gets a sentence with the call and the driver's name for the
    // error.
    bool failed(CUresult result, const char* call, char* text, std::size_t text_bytes) const {
        const char* name = nullptr;
        if (result == CUDA_SUCCESS)
            return false;
        if (error_name(result, &name) != CUDA_SUCCESS || name == nullptr)
            std::snprintf(text, text_bytes, "%s: CUDA error %d", call, result);
        else
            std::snprintf(text, text_bytes, "%s: %s", call, name);
        return true;
    }
};

}  // namespace clockwork::device
