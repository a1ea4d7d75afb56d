"""The CUDA device's four lanes over a page arena, and what runs on them."""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t

from clockwork.device._cuda_model cimport ModelState, Variant, cw_claim
from clockwork.device._cudriver cimport (
    TEXT_BYTES, CUcontext, CUdeviceptr, CUevent, CUresult, CUstream, Table, cw_cuda)
from clockwork.device._parts cimport Parts

cdef extern from "lane.h" nogil:
    enum:
        CW_PENDING
    ctypedef struct cw_action:
        cw_action* next
        int64_t action_id
        int64_t earliest_ns
        int64_t latest_ns
        int32_t status
    ctypedef struct cw_hub:
        int event_fd
    ctypedef struct cw_lane:
        cw_action* head
        cw_action* running
        int32_t length
    int64_t cw_now()
    int cw_hub_init(cw_hub*)
    void cw_hub_free(cw_hub*)
    void cw_hub_lock(cw_hub*)
    void cw_hub_unlock(cw_hub*)
    void cw_hub_end(cw_hub*, cw_action*)
    void cw_hub_wait(cw_hub*)
    cw_action* cw_hub_take(cw_hub*)
    void cw_lane_init(cw_lane*, cw_hub*)
    void cw_lane_free(cw_lane*)
    void cw_lane_enter(const char* name)
    int cw_lane_push(cw_lane*, cw_action*, int32_t most)
    cw_action* cw_lane_take(cw_lane*, int64_t spin_ns)
    void cw_lane_end(cw_lane*, cw_action*)
    void cw_lane_pass(cw_lane*, cw_lane* after, cw_action*)
    cw_action* cw_lane_revoke(cw_lane*, int64_t action_id, int32_t status)
    cw_action* cw_lane_clear(cw_lane*)
    void cw_lane_stop(cw_lane*)
    void cw_nap(int64_t ns)

cdef enum Kind:
    KIND_LOAD
    KIND_UNLOAD
    KIND_INFER
    KIND_PROFILE

cdef struct Slot:
    # Where a batch's inputs and outputs lie: pinned memory, and as much on the device.
    char* host
    CUdeviceptr device
    size_t bytes
    bint busy  # guarded by the hub's lock
    CUevent input_begin
    CUevent input_end
    CUevent run_begin
    CUevent run_end
    CUevent output_end

cdef struct Span:
    int64_t begin_ns
    int64_t end_ns
    int64_t duration_ns

cdef struct Action:
    cw_action base  # first, so that a lane's pointer is one to this
    Kind kind
    int64_t earliest_ns  # of the execution; the lanes before and after it do not wait
    int64_t latest_ns
    bint revoked  # while its inputs were on their way; guarded by the hub's lock
    PyObject* owner  # the Model, kept alive
    ModelState* model
    int64_t load_id
    int64_t* run_starts
    Parts parts
    Variant* variant
    Slot* slot
    Span copy_in
    Span execute
    Span copy_out
    char[TEXT_BYTES] text

cdef class Lanes:
    cdef Table table
    cdef const cw_cuda* api
    cdef CUcontext context
    cdef cw_hub hub
    cdef cw_lane load_lane
    cdef cw_lane input_lane
    cdef cw_lane execute_lane
    cdef cw_lane output_lane
    cdef CUstream load_stream
    cdef CUstream input_stream
    cdef CUstream execute_stream
    cdef CUstream output_stream
    cdef CUevent load_begin
    cdef CUevent load_end
    cdef CUdeviceptr arena
    cdef readonly size_t page_bytes
    cdef readonly int64_t page_count
    cdef cw_claim** owners  # of each page, NULL if free; guarded by the hub's lock
    cdef int32_t run_ahead
    cdef int64_t spin_ns
    cdef readonly int slot_count
    cdef Slot* slots
    cdef CUdeviceptr workspace  # used by one execution at a time
    cdef CUdeviceptr workspace_next  # what the next one is to use instead; 0: none. Guarded by the hub's lock
    cdef CUdeviceptr workspace_old  # what nobody uses any more
    cdef bint broken  # a call has failed, and so does every other; guarded by the hub's lock
    cdef char[TEXT_BYTES] fault
    cdef bint opened

    cdef int make_all(self) except -1
    cdef int make_stream(self, CUstream* stream) except -1
    cdef int make_event(self, CUevent* event) except -1
    cdef int free_all(self) except -1
    cdef void free_stream(self, CUstream stream) noexcept
    cdef void free_event(self, CUevent event) noexcept
    cdef bint failed(self, CUresult result, const char* call, char* text) noexcept nogil
    cdef bint wait(self, CUevent event, const char* what, char* text) noexcept nogil
    cdef bint measure(self, Span* span, CUevent begin, CUevent end, char* text) noexcept nogil
    cdef void run_load(self, Action* action) noexcept nogil
    cdef bint copy_weights(self, Action* action) noexcept nogil
    cdef void run_unload(self, Action* action) noexcept nogil
    cdef bint is_used(self, ModelState* model, int64_t load_id) noexcept nogil
    cdef bint bring_inputs(self, Action* action) noexcept nogil
    cdef void run_infer(self, Action* action) noexcept nogil
    cdef bint launch_all(self, Action* action, CUdeviceptr workspace) noexcept nogil
    cdef bint take_outputs(self, Action* action) noexcept nogil
    cdef void drop_slot(self, Action* action) noexcept nogil
    cdef Slot* take_slot(self) noexcept nogil
