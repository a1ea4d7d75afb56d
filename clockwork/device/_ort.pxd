"""ONNX Runtime through its C API: the library, the shared workspace, sessions."""

from libc.stdint cimport int64_t, uint32_t
from libcpp cimport bool as cbool

cdef extern from "device/ort_api.h" nogil:
    enum:
        ORT_API_VERSION
        ORT_LOG_FATAL
        ORT_OPTIMIZE_NOTHING
        ORT_TYPE_TENSOR
        ORT_STRING
        ORT_DEVICE_ALLOCATOR
        ORT_MEMORY_DEFAULT
    ctypedef struct OrtStatus
    ctypedef struct OrtEnv
    ctypedef struct OrtSession
    ctypedef struct OrtSessionOptions
    ctypedef struct OrtRunOptions
    ctypedef struct OrtValue
    ctypedef struct OrtTypeInfo
    ctypedef struct OrtTensorInfo
    ctypedef struct OrtMemoryInfo
    ctypedef struct OrtApi
    ctypedef struct OrtApiBase:
        const OrtApi* (*GetApi)(uint32_t) noexcept nogil
        const char* (*GetVersionString)() noexcept nogil
    cppclass OrtAllocator:
        pass

    int ort_dtype_of_onnx(int)
    int onnx_dtype_of_ort(int)
    void ort_release_session(const OrtApi*, OrtSession*)
    void ort_release_value(const OrtApi*, OrtValue*)
    void ort_release_run_options(const OrtApi*, OrtRunOptions*)
    void ort_release_type_info(const OrtApi*, OrtTypeInfo*)
    void ort_release_tensor_info(const OrtApi*, OrtTensorInfo*)
    void ort_release_session_options(const OrtApi*, OrtSessionOptions*)
    void ort_say(const char* message, char* text, size_t bytes)
    bint ort_failed(const OrtApi*, OrtStatus*, char* text, size_t bytes)
    OrtStatus* ort_create_env(const OrtApi*, int, const char*, OrtEnv**)
    OrtStatus* ort_create_session(
        const OrtApi*, const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)
    OrtStatus* ort_create_session_from_array(
        const OrtApi*, const OrtEnv*, const void*, size_t, const OrtSessionOptions*, OrtSession**)
    OrtStatus* ort_run(
        const OrtApi*, OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, size_t,
        const char* const*, size_t, OrtValue**)
    OrtStatus* ort_create_session_options(const OrtApi*, OrtSessionOptions**)
    OrtStatus* ort_disable_memory_pattern(const OrtApi*, OrtSessionOptions*)
    OrtStatus* ort_set_optimization(const OrtApi*, OrtSessionOptions*, int)
    OrtStatus* ort_set_intra_threads(const OrtApi*, OrtSessionOptions*, int)
    OrtStatus* ort_set_inter_threads(const OrtApi*, OrtSessionOptions*, int)
    OrtStatus* ort_input_count(const OrtApi*, const OrtSession*, size_t*)
    OrtStatus* ort_output_count(const OrtApi*, const OrtSession*, size_t*)
    OrtStatus* ort_input_type(const OrtApi*, const OrtSession*, size_t, OrtTypeInfo**)
    OrtStatus* ort_output_type(const OrtApi*, const OrtSession*, size_t, OrtTypeInfo**)
    OrtStatus* ort_input_name(const OrtApi*, const OrtSession*, size_t, OrtAllocator*, char**)
    OrtStatus* ort_output_name(const OrtApi*, const OrtSession*, size_t, OrtAllocator*, char**)
    OrtStatus* ort_create_run_options(const OrtApi*, OrtRunOptions**)
    OrtStatus* ort_terminate(const OrtApi*, OrtRunOptions*)
    OrtStatus* ort_unterminate(const OrtApi*, OrtRunOptions*)
    OrtStatus* ort_create_tensor(
        const OrtApi*, OrtAllocator*, const int64_t*, size_t, int, OrtValue**)
    OrtStatus* ort_wrap_tensor(
        const OrtApi*, const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**)
    OrtStatus* ort_is_tensor(const OrtApi*, const OrtValue*, int*)
    OrtStatus* ort_tensor_data(const OrtApi*, OrtValue*, void**)
    OrtStatus* ort_strings_bytes(const OrtApi*, const OrtValue*, size_t*)
    OrtStatus* ort_strings(const OrtApi*, const OrtValue*, void*, size_t, size_t*, size_t)
    OrtStatus* ort_type_kind(const OrtApi*, const OrtTypeInfo*, int*)
    OrtStatus* ort_type_tensor(const OrtApi*, const OrtTypeInfo*, const OrtTensorInfo**)
    OrtStatus* ort_tensor_dtype(const OrtApi*, const OrtTensorInfo*, int*)
    OrtStatus* ort_tensor_rank(const OrtApi*, const OrtTensorInfo*, size_t*)
    OrtStatus* ort_tensor_dims(const OrtApi*, const OrtTensorInfo*, int64_t*, size_t)
    OrtStatus* ort_tensor_info(const OrtApi*, const OrtValue*, OrtTensorInfo**)
    OrtStatus* ort_create_cpu_memory_info(const OrtApi*, int, int, OrtMemoryInfo**)
    OrtStatus* ort_allocator_free(const OrtApi*, OrtAllocator*, void*)
    OrtStatus* ort_default_allocator(const OrtApi*, OrtAllocator**)
    OrtStatus* ort_add_config(const OrtApi*, OrtSessionOptions*, const char*, const char*)
    OrtStatus* ort_register_allocator(const OrtApi*, OrtEnv*, OrtAllocator*)
    OrtStatus* ort_string_buffer(const OrtApi*, OrtValue*, size_t, size_t, char**)

cdef extern from "device/memory.h" namespace "clockwork::device" nogil:
    enum:
        MADV_POPULATE_READ "MADV_POPULATE_READ"
    size_t HUGE_PAGE_BYTES
    char* map_touched(size_t size)
    size_t round_up(size_t size, size_t unit)

cdef extern from "<atomic>" nogil:
    cppclass AtomicFlag "std::atomic<bool>":
        void store(cbool)

cdef extern from "device/workspace.h" namespace "clockwork::device" nogil:
    cppclass MemoryAccount:
        size_t limit_bytes
        size_t used_bytes
        size_t peak_bytes
        int64_t heap_bytes
        bint counts_heap
        size_t refused_bytes
        size_t beside_bytes
        const OrtApi* api
        OrtRunOptions* options
        AtomicFlag is_ending
    cppclass Workspace(OrtAllocator):
        Workspace(const OrtMemoryInfo*, size_t limit_bytes) except +
        size_t reserved_bytes()
        void trim()
    void charge(MemoryAccount*)

cdef extern from "device/heap.h" namespace "clockwork::device" nogil:
    cbool c_count_heap "clockwork::device::count_heap"(const char* library)
    cbool counts_operator_new()

cdef extern from "<dlfcn.h>" nogil:
    int RTLD_NOW
    int RTLD_LOCAL
    void* dlopen(const char*, int)
    void* dlsym(void*, const char*)
    char* dlerror()

cdef enum:
    TEXT_BYTES = 500  # the size of an error's message, with its final zero

cdef extern from "device/cpu_model.h" namespace "clockwork::device" nogil:
    ctypedef struct CpuSession:
        OrtSession* handle
        size_t input_count
        size_t output_count
        char** input_names
        char** output_names
        int* input_dtypes

ctypedef OrtStatus* (*RegisterOperators)(OrtSessionOptions*, const OrtApiBase*) noexcept nogil

cdef class Runtime:
    cdef const OrtApiBase* base
    cdef const OrtApi* api
    cdef OrtEnv* env
    cdef OrtMemoryInfo* memory
    cdef OrtAllocator* strings  # the runtime's own heap, for names and string tensors
    cdef Workspace* workspace
    cdef readonly str version
    cdef readonly str path

    cdef int check(self, OrtStatus* status) except -1
    cdef OrtSessionOptions* make_options(self, int threads, tuple libraries) except NULL
    cdef int add_operators(self, OrtSessionOptions* options, str path) except -1
    cdef bint open(self, const OrtSessionOptions* options, const char* path, const void* model, size_t bytes,
                   CpuSession* session, char* text) noexcept nogil
    cdef bint _describe(self, CpuSession* session, char* text) noexcept nogil
    cdef bint _tensor_type(self, CpuSession* session, size_t index, bint is_input, int* dtype,
                           char* text) noexcept nogil
    cdef void close(self, CpuSession* session) noexcept nogil
    cdef size_t workspace_bytes(self) noexcept nogil
    cdef void charge(self, MemoryAccount* account) noexcept nogil
    cdef void trim(self) noexcept nogil

cpdef Runtime runtime()
