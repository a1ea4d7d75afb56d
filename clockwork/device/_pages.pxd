"""The CPU device's memory: a page arena, input slots, and the models whose weights come from mapped files."""

from libc.stdint cimport int64_t

from clockwork.device._orders cimport Known, Orders, Residency, Room
from clockwork.device._ort cimport OrtApi, OrtSessionOptions, OrtValue, Runtime, Session

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void*, size_t, unsigned char*)

cdef struct Weight:
    # Where one of the program's inputs lies in the pages.
    int dtype
    int rank
    int64_t run
    int64_t offset
    int64_t bytes
    int64_t* dims

cdef struct ModelState:
    bint packed
    bint has_session  # of its own: packed, and resident
    Session* session  # the shared program's, or &own
    Session own
    char* path  # packed: what LOAD opens
    size_t input_count
    int* input_dtypes
    char* source  # the weights, mapped
    size_t source_bytes
    bint copied  # they are in memory of this process, and not a file's mapping
    int64_t* run_bytes  # of each run, what weights take: the rest of its last page is not copied
    size_t weight_count
    Weight* weights
    int64_t* dims
    size_t workspace_bytes  # what one execution may take
    OrtValue** values  # what a run is fed: places for the inputs, then the weights
    Residency* at

cdef struct Slot:
    Room room
    char* base

cdef class Program:
    cdef Session session
    cdef Runtime runtime
    cdef object __weakref__

cdef class Model(Known):
    cdef ModelState state
    cdef Program program
    cdef Runtime runtime
    cdef readonly int64_t packed_bytes

cdef class Arena(Orders):
    cdef Runtime runtime
    cdef const OrtApi* api
    cdef OrtSessionOptions* options
    cdef char* arena
    cdef size_t arena_bytes
    cdef unsigned char* hollow  # of each page: it has given up its memory. The load lane's, and reset()'s
    cdef Slot* slots
    cdef size_t slot_bytes_most

    cdef int free_memory(self) except -1
    cdef void give_up_memory(self, ModelState* model) noexcept nogil
    cdef bint take_memory(self, ModelState* model) noexcept nogil
    cdef bint fill(self, ModelState* model, char* text) noexcept nogil
    cdef void evict(self, ModelState* model) noexcept nogil
    cdef bint grow_slot(self, Slot* slot, size_t bytes) noexcept nogil
