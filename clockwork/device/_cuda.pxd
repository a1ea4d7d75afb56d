"""The CUDA device's native half: lanes over a page arena."""

from libc.stdint cimport int64_t
from libcpp.vector cimport vector

from clockwork.device._cuda_host cimport CHostLink, HostLink
from clockwork.device._cuda_model cimport LOAD_AHEAD, CudaModel, CudaOrder, CudaSlot, LoadPace, StreamMark
from clockwork.device._cudriver cimport (
    CudaContext, CudaApi, CUcontext, CUdeviceptr, CUevent, CUgraphExec, CUresult, CUstream, DeviceBytes, PinnedBytes,
    DriverTable)
from clockwork.device._orders cimport TEXT_BYTES, Lane, Order, DeviceCore, DeviceModel, TimedPhase

cdef class CudaCore(DeviceCore):
    cdef DriverTable table
    cdef const CudaApi* api
    cdef CUcontext context
    cdef HostLink link_owner  # keeps `link` alive
    cdef CHostLink* link
    cdef CUstream load_stream
    cdef CUstream input_stream
    cdef CUstream execute_stream
    cdef CUstream output_stream
    cdef CUstream setup_stream  # used by the preparation thread
    cdef CUevent load_begin
    cdef StreamMark load_end
    cdef StreamMark[LOAD_AHEAD] load_marks  # marks of the pieces that are being copied
    cdef int64_t load_piece_bytes
    cdef PinnedBytes words  # memory of the marks; None if the driver cannot write words
    cdef CUdeviceptr arena
    cdef vector[CudaSlot] slots
    cdef int64_t run_end_ns  # the end of the last execution; used by the execute lane
    cdef CUdeviceptr workspace  # pool used by one execution at a time
    # Replaces `workspace` at the next execution; 0: none. Guarded by the hub's lock
    cdef CUdeviceptr workspace_next
    # The sizes of slots and workspace, as given:
    cdef list slot_memory
    cdef readonly int graph_count
    cdef readonly int64_t launch_ns  # processor time of the execute lane so far
    cdef DeviceBytes workspace_memory
    cdef bint broken  # whether the context is broken, so that every call fails; guarded by the hub's lock
    cdef char[TEXT_BYTES] fault
    cdef bint opened

    cdef int make_all(self) except -1
    cdef int make_stream(self, CUstream* stream) except -1
    cdef int make_event(self, CUevent* event) except -1
    cdef int make_mark(self, StreamMark* mark, int index) except -1
    cdef int try_words(self) except -1
    cdef int free_all(self) except -1
    cdef void free_stream(self, CUstream stream) noexcept
    cdef void free_event(self, CUevent event) noexcept
    cdef bint failed(self, CUresult result, const char* call, char* text) noexcept nogil
    cdef bint look_at_context(self, const char* text) noexcept nogil
    cdef bint set_mark(self, StreamMark* mark, CUstream stream, char* text) noexcept nogil
    cdef bint wait(self, StreamMark* mark, int64_t begin_ns, int64_t expected_ns, int64_t spin_ns,
                   char* text) noexcept nogil
    cdef bint measure(self, TimedPhase* span, CUevent begin, CUevent end, char* text) noexcept nogil
    cdef void note_waiting(self, bint waits) noexcept nogil
    cdef bint copy_weights(self, Order* order) noexcept nogil
    cdef bint end_piece(self, LoadPace* pace, char* text) noexcept nogil
    cdef void run_fetch(self, Order* order) noexcept nogil
    cdef bint bring_inputs(self, CudaOrder* order) noexcept nogil
    cdef bint send(self, CudaSlot* slot, int64_t begin, int64_t end, CUstream stream, char* text) noexcept nogil
    cdef int64_t enlarge(self, CudaOrder* order, size_t index, char* base) noexcept nogil
    cdef Lane* run_input(self, CudaOrder* order) noexcept nogil
    cdef void run_reserve(self, CudaOrder* order) noexcept nogil
    cdef Lane* run_infer(self, CudaOrder* order) noexcept nogil
    cdef bint measure_run(self, CudaOrder* order) noexcept nogil
    cdef bint enter_run(self, CudaOrder* order) noexcept nogil
    cdef void begin_run(self, CudaOrder* order) noexcept nogil
    cdef bint begin_behind(self, CudaOrder* running, int64_t now, int64_t end_ns) noexcept nogil
    cdef bint wait_for_run(self, CudaOrder* order) noexcept nogil
    cdef bint mend_table(self, CudaOrder* order) noexcept nogil
    cdef CUgraphExec find_graph(self, CudaOrder* order) noexcept nogil
    cdef bint launch(self, CudaOrder* order) noexcept nogil
    cdef bint launch_all(self, CudaOrder* order) noexcept nogil
    cdef bint copy_outputs(self, CudaOrder* order) noexcept nogil
    cdef bint take_outputs(self, CudaOrder* order) noexcept nogil
    cdef void use_next_workspace(self) noexcept nogil
