"""CUDA's driver as a table of functions; see csrc/device/cuda_api.h."""

from libc.stdint cimport uint32_t, uint64_t
from libcpp cimport bool as cbool

cdef extern from "device/cuda_api.h" nogil:
    ctypedef int CUresult
    ctypedef int CUdevice
    ctypedef uint64_t CUdeviceptr
    ctypedef void* CUcontext
    ctypedef void* CUmodule
    ctypedef void* CUfunction
    ctypedef void* CUstream
    ctypedef void* CUevent
    ctypedef void* CUlinkState
    ctypedef void* CUgraphExec
    ctypedef struct CUuuid:
        unsigned char[16] bytes
    enum:
        CUDA_SUCCESS
        CUDA_ERROR_INVALID_VALUE
        CUDA_ERROR_NOT_READY
        CUDA_ERROR_NOT_SUPPORTED
        CUDA_ERROR_OUT_OF_MEMORY
        CU_STREAM_NON_BLOCKING
        CU_EVENT_DEFAULT
        CU_MEMHOSTALLOC_PORTABLE
        CU_JIT_ERROR_LOG_BUFFER
        CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
        CU_JIT_INPUT_PTX
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        CU_FUNC_ATTRIBUTE_NUM_REGS
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        CU_LIMIT_STACK_SIZE
    cppclass CudaApi "clockwork::device::CudaApi":
        cbool open(const char* path, char* text, size_t text_bytes)
        cbool has_graphs()
        cbool failed(CUresult result, const char* call, char* text, size_t text_bytes)
        CUresult (*init)(unsigned flags) noexcept nogil
        CUresult (*driver_version)(int* version) noexcept nogil
        CUresult (*device_count)(int* count) noexcept nogil
        CUresult (*device)(CUdevice* device, int ordinal) noexcept nogil
        CUresult (*device_name)(char* name, int length, CUdevice device) noexcept nogil
        CUresult (*device_uuid)(CUuuid* uuid, CUdevice device) noexcept nogil
        CUresult (*device_bus)(char* id, int length, CUdevice device) noexcept nogil
        CUresult (*device_attribute)(int* value, int attribute, CUdevice device) noexcept nogil
        CUresult (*device_memory)(size_t* bytes, CUdevice device) noexcept nogil
        CUresult (*retain_context)(CUcontext* context, CUdevice device) noexcept nogil
        CUresult (*release_context)(CUdevice device) noexcept nogil
        CUresult (*set_context)(CUcontext context) noexcept nogil
        CUresult (*limit)(size_t* value, int limit) noexcept nogil
        CUresult (*set_limit)(int limit, size_t value) noexcept nogil
        CUresult (*memory_info)(size_t* free, size_t* total) noexcept nogil
        CUresult (*allocate)(CUdeviceptr* pointer, size_t bytes) noexcept nogil
        CUresult (*release)(CUdeviceptr pointer) noexcept nogil
        CUresult (*allocate_host)(void** pointer, size_t bytes, unsigned flags) noexcept nogil
        CUresult (*release_host)(void* pointer) noexcept nogil
        CUresult (*copy_in)(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) noexcept nogil
        CUresult (*copy_out)(void* target, CUdeviceptr source, size_t bytes, CUstream stream) noexcept nogil
        CUresult (*load_module)(CUmodule* module, const void* image) noexcept nogil
        CUresult (*unload_module)(CUmodule module) noexcept nogil
        CUresult (*make_link)(unsigned count, int* options, void** values, CUlinkState* state) noexcept nogil
        CUresult (*add_to_link)(CUlinkState state, int type, void* data, size_t size, const char* name, unsigned count,
                                int* options, void** values) noexcept nogil
        CUresult (*finish_link)(CUlinkState state, void** cubin, size_t* size) noexcept nogil
        CUresult (*free_link)(CUlinkState state) noexcept nogil
        CUresult (*function)(CUfunction* function, CUmodule module, const char* name) noexcept nogil
        CUresult (*function_attribute)(int* value, int attribute, CUfunction function) noexcept nogil
        CUresult (*parameter)(CUfunction function, size_t index, size_t* offset, size_t* size) noexcept nogil
        CUresult (*set_function)(CUfunction function, int attribute, int value) noexcept nogil
        CUresult (*launch)(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                           unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                           void** arguments, void** extra) noexcept nogil
        CUresult (*make_stream)(CUstream* stream, unsigned flags) noexcept nogil
        CUresult (*free_stream)(CUstream stream) noexcept nogil
        CUresult (*wait_event)(CUstream stream, CUevent event, unsigned flags) noexcept nogil
        CUresult (*finish_stream)(CUstream stream) noexcept nogil
        CUresult (*make_event)(CUevent* event, unsigned flags) noexcept nogil
        CUresult (*free_event)(CUevent event) noexcept nogil
        CUresult (*record_event)(CUevent event, CUstream stream) noexcept nogil
        CUresult (*query_event)(CUevent event) noexcept nogil
        CUresult (*elapsed)(float* milliseconds, CUevent begin, CUevent end) noexcept nogil
        # NULL if the driver lacks the function:
        CUresult (*write_word)(CUstream stream, CUdeviceptr target, uint32_t value, unsigned flags) noexcept nogil
        CUresult (*launch_graph)(CUgraphExec graph, CUstream stream) noexcept nogil
        CUresult (*free_graph_exec)(CUgraphExec graph) noexcept nogil

cdef enum:
    TEXT_BYTES = 512
    LOG_BYTES = 4096
    PARAMETERS_MAX = 512  # the most parameters of a kernel: ARGUMENTS_MAX of the config

cdef class CudaContext:
    cdef CUcontext handle

cdef class CudaModule:
    cdef CUmodule handle

cdef class CudaKernel:
    cdef CUfunction handle

cdef class DeviceBytes:
    cdef readonly CUdeviceptr address

cdef class PinnedBytes:
    cdef char* data
    cdef readonly size_t size

cdef class DriverTable:
    cdef CudaApi api
    cdef readonly str path
    cdef readonly int version  # 12040 means 12.4

    cdef int attribute_of(self, CUdevice device, int attribute) except? -1
    cdef int check_link(self, CUresult result, const char* call, const char* log) except -1
    cdef int check(self, CUresult result, const char* call) except -1
