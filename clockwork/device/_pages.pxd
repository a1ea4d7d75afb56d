"""The CPU device's memory: a page arena, input slots, and the models whose weights come from mapped files."""

from libc.stdint cimport int64_t

from clockwork.device._ort cimport OrtApi, OrtSessionOptions, OrtValue, Runtime, Session

cdef extern from "lane.h" nogil:
    ctypedef struct cw_hub:
        int event_fd
    int cw_hub_init(cw_hub*)
    void cw_hub_free(cw_hub*)
    void cw_hub_lock(cw_hub*)
    void cw_hub_unlock(cw_hub*)

cdef extern from "claims.h" nogil:
    ctypedef struct cw_claim:
        int run_count
        int64_t* run_pages
        int64_t* run_starts
    void cw_claim_free(cw_claim** owners, cw_claim* claim)
    int cw_claim_pages(cw_claim** owners, int64_t page_count, cw_claim* claim, const int64_t* run_starts, char* text,
                       size_t text_bytes)

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
    OrtValue** values  # what a run is fed: places for the inputs, then the weights
    # Guarded by the hub's lock:
    bint resident
    int64_t load_id
    cw_claim claim

cdef struct Slot:
    char* base
    size_t bytes
    bint busy  # guarded by the hub's lock

cdef class Program:
    cdef Session session
    cdef Runtime runtime
    cdef object __weakref__

cdef class Model:
    cdef ModelState state
    cdef Program program
    cdef Runtime runtime
    cdef int pending  # actions under way; guarded by the GIL
    cdef readonly int64_t model_id
    cdef readonly int64_t packed_bytes

cdef class Arena:
    cdef cw_hub hub
    cdef Runtime runtime
    cdef const OrtApi* api
    cdef OrtSessionOptions* options
    cdef char* arena
    cdef size_t arena_bytes
    cdef cw_claim** owners  # of each page, NULL if free; guarded by the hub's lock
    cdef unsigned char* hollow  # of each page: it has given up its memory. The load lane's, and reset()'s
    cdef int slot_count
    cdef Slot* slots
    cdef size_t slot_bytes_most
    cdef readonly size_t page_bytes
    cdef readonly int64_t page_count
    cdef dict models
    cdef bint has_hub

    cdef int free_memory(self) except -1
    cdef int claim_pages(self, ModelState* model, int64_t* run_starts, char* text) noexcept nogil
    cdef void give_up_memory(self, ModelState* model) noexcept nogil
    cdef bint take_memory(self, ModelState* model) noexcept nogil
    cdef bint fill(self, ModelState* model, char* text) noexcept nogil
    cdef void evict(self, ModelState* model) noexcept nogil
    cdef Slot* take_slot(self) noexcept nogil
    cdef bint grow_slot(self, Slot* slot, size_t bytes) noexcept nogil
