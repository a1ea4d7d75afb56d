"""The CPU device's memory: a page arena, and the models whose weights come from mapped files."""

from libc.stdint cimport int64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from clockwork.device._orders cimport Hub, KnownModel, DeviceCore, DeviceModel
from clockwork.device._ort cimport MemoryAccount, OrtApi, OrtRunOptions, OrtSessionOptions, OrtValue, Runtime, CpuSession
from clockwork.device._parts cimport Lengths, Rowless

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void*, size_t, unsigned char*)

cdef extern from "device/arena_memory.h" namespace "clockwork::device" nogil:
    cppclass ArenaMemory:
        cbool map(int64_t page_count, size_t page_bytes, int64_t spare_ns)
        void unmap()
        char* page(int64_t)
        size_t bytes()
        size_t held_bytes()
        int64_t late_count()
        cbool take(int64_t start, int64_t count)
        void spare(int64_t start, int64_t count)
        cbool touch_below(int64_t end)
        void keep()
        void want(int64_t end)
        void stop()

cdef extern from "device/cpu_model.h" namespace "clockwork::device" nogil:
    cppclass CpuWeight:
        int dtype
        vector[int64_t] dims
        size_t run
        int64_t offset
        int64_t bytes
    cppclass CpuModel(DeviceModel):
        const vector[int]* model_dtypes
        const Lengths* model_lengths
        const vector[Rowless]* model_rowless
        cbool packed
        CpuSession* session
        CpuSession own
        string path
        const OrtSessionOptions* options
        vector[int] input_dtypes
        char* source
        size_t source_bytes
        cbool copied
        vector[int64_t] run_bytes
        vector[CpuWeight] weights
        vector[OrtValue*] weight_values
        size_t output_count
        size_t workspace_bytes
        Lengths lengths
        vector[Rowless] rowless
        size_t fed_count()
        size_t argument_count()
    cppclass RunPlaces:
        vector[OrtValue*] arguments
        vector[OrtValue*] outputs
    cppclass CpuExecutor:
        OrtRunOptions* run_options
        MemoryAccount* account
        cbool overrun
        RunPlaces places
        void grow(Hub&, size_t argument_count, size_t output_count) except +
        void take_places()
        cbool grow_slot(Hub&, size_t least)
        char* take_slot(Hub&, size_t least)
        size_t slot_bytes()

cdef class SessionOptions:
    cdef OrtSessionOptions* handle
    cdef Runtime runtime

cdef class SessionProgram:
    cdef CpuSession session
    cdef Runtime runtime
    cdef object __weakref__

cdef class PagedModel(KnownModel):
    cdef CpuModel state
    cdef SessionProgram program
    cdef Runtime runtime
    cdef readonly int64_t packed_bytes

cdef class PagedCore(DeviceCore):
    cdef Runtime runtime
    cdef const OrtApi* api
    cdef dict options  # session options, by libraries of operators
    cdef int threads
    cdef ArenaMemory memory_of_pages
    cdef int64_t known_pages  # the pages of all models together; guarded by the hub's lock
    cdef int64_t bound_pages  # the pages of bound models; guarded by the hub's lock
    cdef size_t slot_bytes_most

    cdef SessionOptions options_for(self, tuple libraries)
    cdef int free_memory(self) except -1
    cdef int64_t count_pages(self, CpuModel* model, int64_t times) noexcept nogil
    cdef int64_t pages_ahead(self) noexcept nogil
    cdef void evict(self, DeviceModel* at) noexcept nogil
    cdef void spare_memory(self, CpuModel* model) noexcept nogil
    cdef bint take_memory(self, CpuModel* model) noexcept nogil
    cdef bint fill(self, CpuModel* model, char* text) noexcept nogil
