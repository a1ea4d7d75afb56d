"""The CUDA device's lanes over a page arena, and what runs on them."""

from libc.stdint cimport int64_t

from clockwork.device._cuda_host cimport Link, cw_link
from clockwork.device._cuda_model cimport PADDED_MOST, ModelState, Variant
from clockwork.device._cudriver cimport CUcontext, CUdeviceptr, CUevent, CUresult, CUstream, Table, cw_cuda
from clockwork.device._orders cimport TEXT_BYTES, Order, Orders, Residency, Room, Span, cw_lane

cdef struct Slot:
    # Where a batch's inputs and outputs lie: pinned memory, and as much on the device.
    Room room
    char* host
    CUdeviceptr device
    CUevent input_begin
    CUevent input_end
    CUevent run_begin
    CUevent run_end
    CUevent output_end

cdef struct Action:
    Order order  # first, so that a lane's pointer is one to this
    int64_t earliest_ns  # of the execution; the lanes before and after it do not wait
    int64_t latest_ns
    bint pins  # LOAD: its model stays in the host store until it has been polled
    bint revoked  # while its inputs were on their way; guarded by the hub's lock
    ModelState* model
    Variant* variant
    int64_t[PADDED_MOST] sizes  # the true ones of padded symbols
    Slot* slot  # of its room

cdef class Lanes(Orders):
    cdef Table table
    cdef const cw_cuda* api
    cdef CUcontext context
    cdef Link link_owner  # keeps `link`
    cdef cw_link* link
    cdef cw_lane load_lane
    cdef cw_lane input_lane
    cdef cw_lane fetch_lane
    cdef cw_lane execute_lane
    cdef cw_lane output_lane
    cdef CUstream load_stream
    cdef CUstream input_stream
    cdef CUstream execute_stream
    cdef CUstream output_stream
    cdef CUevent load_begin
    cdef CUevent load_end
    cdef CUdeviceptr arena
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
    cdef bint look_at_context(self, const char* text) noexcept nogil
    cdef bint wait(self, CUevent event, const char* what, char* text) noexcept nogil
    cdef bint measure(self, Span* span, CUevent begin, CUevent end, char* text) noexcept nogil
    cdef void run_load(self, Action* action) noexcept nogil
    cdef void note_waiting(self, bint waits) noexcept nogil
    cdef void load_over_link(self, Action* action) noexcept nogil
    cdef bint copy_weights(self, Action* action) noexcept nogil
    cdef void run_fetch(self, Action* action) noexcept nogil
    cdef void run_unload(self, Action* action) noexcept nogil
    cdef bint bring_inputs(self, Action* action) noexcept nogil
    cdef int64_t enlarge(self, Action* action, size_t index, char* base) noexcept nogil
    cdef void run_infer(self, Action* action) noexcept nogil
    cdef bint launch_all(self, Action* action, CUdeviceptr workspace) noexcept nogil
    cdef bint take_outputs(self, Action* action) noexcept nogil
