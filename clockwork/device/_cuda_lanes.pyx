# cython: language_level=3, cdivision=True
"""The CUDA device's lanes over a page arena, and what runs on them.

Four threads run here, one for each lane: load, input, execute, output; and where the host store has a budget a
fifth, fetch, which reads files and has nothing to do with the card. They enter without the GIL and never take it.
An INFER passes through three of them: its inputs are copied while the one before it still executes, and its outputs
while the next one does. What the lanes need of Python (pinned buffers, the model kept alive, memory for the outputs)
is gathered before an action is queued and given back when it is polled. One lock, the hub's, guards lanes and
residency; see csrc/device/lane.h. The lanes allocate nothing, of the driver or of the process.

A lane that waits for the device asks the driver whether an event has happened, at first without a pause and then at
intervals of a 64th of the time waited (50 us at most). cuEventSynchronize would either spin all the time, which
costs a core for each lane, or sleep until an interrupt, which comes tens of microseconds late.
"""

cimport cython
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from clockwork.device._cuda_host cimport (
    Link, cw_link_leave, cw_link_take,
    CW_HOST_FULL, CW_HOST_HELD, CW_HOST_IN_USE, CW_HOST_NOT_HELD, CW_HOST_OK, cw_host_copy, cw_host_drop,
    cw_host_fetch, cw_host_look, cw_host_result)
from clockwork.device._crash cimport crash_at, crash_enter, crash_leave
from clockwork.device._cuda_model cimport (
    FROM_INPUT, FROM_OUTPUT, FROM_SIZE, FROM_WEIGHT, FROM_WORKSPACE, Argument, Launch, Tensor, Weight, copy_beginning,
    take, used_bytes)
from clockwork.device._cudriver cimport CU_EVENT_DEFAULT, CU_STREAM_NON_BLOCKING, CUDA_ERROR_NOT_READY, cw_cuda_failed
from clockwork.device._orders cimport (
    CW_PENDING, KIND_FETCH, KIND_LOAD, KIND_PROFILE, cw_claim_free, cw_hub_lock, cw_hub_unlock, cw_hub_wait, cw_lane_end,
    cw_lane_enter, cw_lane_free, cw_lane_init, cw_lane_pass, cw_lane_stop, cw_lane_take, cw_nap, cw_now, holds,
    span_begin, span_end)
from clockwork.device._parts cimport RANK_MOST, Input, Output, Parts, dtype_bits, fill_seeded

from clockwork.wire.messages import Status

cdef enum:
    POLL_SPIN_NS = 20_000  # a wait this young is not worth a sleep
    POLL_SHARE = 64
    POLL_LEAST_NS = 2_000
    POLL_MOST_NS = 50_000

cdef int OK = Status.OK
cdef int TOO_LATE = Status.TOO_LATE
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED


@cython.no_gc_clear  # its end still needs the table
cdef class Lanes:
    """Streams and slots, and the loops of the four threads.

    arena: device memory, which is the caller's, as is that of slots and workspace. __init__ and free_all() need the
    context to be current. link: shared by the devices that are loaded over it. run_ahead + 1 slots are made without memory; see exchange_slot().
    """

    def __cinit__(self, Table table, size_t context, CUdeviceptr arena, size_t page_bytes, int64_t page_count,
                  int run_ahead, int64_t spin_ns, Link link not None):
        self.table = table
        self.link_owner = link
        self.link = &link.link
        self.api = &table.api
        self.context = <CUcontext>context
        self.arena = arena
        self.set_bounds(page_count, page_bytes, run_ahead)
        self.spin_ns = spin_ns
        self.slots = <Slot*>take(self.slot_count, sizeof(Slot))
        cw_lane_init(&self.load_lane, &self.hub)
        cw_lane_init(&self.fetch_lane, &self.hub)
        cw_lane_init(&self.input_lane, &self.hub)
        cw_lane_init(&self.execute_lane, &self.hub)
        cw_lane_init(&self.output_lane, &self.hub)
        self.opened = True

    def __init__(self, *arguments):
        """Raises CudaError."""
        try:
            self.make_all()
        except BaseException:
            self.free_all()
            raise

    cdef int make_all(self) except -1:
        cdef int index
        cdef Slot* slot
        self.make_stream(&self.load_stream)
        self.make_stream(&self.input_stream)
        self.make_stream(&self.execute_stream)
        self.make_stream(&self.output_stream)
        self.make_event(&self.load_begin)
        self.make_event(&self.load_end)
        for index in range(self.slot_count):
            slot = &self.slots[index]
            self.make_event(&slot.input_begin)
            self.make_event(&slot.input_end)
            self.make_event(&slot.run_begin)
            self.make_event(&slot.run_end)
            self.make_event(&slot.output_end)
        return 0

    cdef int make_stream(self, CUstream* stream) except -1:
        return self.table.check(self.api.make_stream(stream, CU_STREAM_NON_BLOCKING), b"cuStreamCreate")

    cdef int make_event(self, CUevent* event) except -1:
        return self.table.check(self.api.make_event(event, CU_EVENT_DEFAULT), b"cuEventCreate")

    cdef void free_stream(self, CUstream stream) noexcept:
        if stream != NULL:
            with nogil:
                self.api.free_stream(stream)

    cdef void free_event(self, CUevent event) noexcept:
        if event != NULL:
            self.api.free_event(event)

    cdef int free_all(self) except -1:
        """Destroy streams, events and lanes, once. Nothing runs any more."""
        cdef int index
        cdef Slot* slot
        if not self.opened:
            return 0
        self.opened = False
        # Each destroys what was made; an error of a broken context changes nothing about that.
        for index in range(self.slot_count):
            slot = &self.slots[index]
            self.free_event(slot.input_begin)
            self.free_event(slot.input_end)
            self.free_event(slot.run_begin)
            self.free_event(slot.run_end)
            self.free_event(slot.output_end)
        self.free_event(self.load_begin)
        self.free_event(self.load_end)
        self.free_stream(self.load_stream)
        self.free_stream(self.input_stream)
        self.free_stream(self.execute_stream)
        self.free_stream(self.output_stream)
        cw_lane_free(&self.load_lane)
        cw_lane_free(&self.fetch_lane)
        cw_lane_free(&self.input_lane)
        cw_lane_free(&self.execute_lane)
        cw_lane_free(&self.output_lane)
        self.close_hub()
        free(self.slots)
        return 0

    def __dealloc__(self):
        assert not self.opened, "release() comes first: it needs the context"

    # ----- the threads ------------------------------------------------------------------

    def load_loop(self):
        """Run the load lane until stop(). The target of a thread, as are the four below."""
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-load")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.load_lane, self.spin_ns)
                if action == NULL:
                    break
                if cw_now() > action.latest_ns:
                    action.order.base.status = TOO_LATE
                elif action.order.kind == KIND_LOAD:
                    self.run_load(action)
                else:
                    self.run_unload(action)
                cw_lane_end(&self.load_lane, &action.order.base)

    def fetch_loop(self):
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-fetch")
            while True:
                action = <Action*>cw_lane_take(&self.fetch_lane, 0)
                if action == NULL:
                    break
                if cw_now() > action.latest_ns:
                    action.order.base.status = TOO_LATE
                else:
                    self.run_fetch(action)
                cw_lane_end(&self.fetch_lane, &action.order.base)

    def input_loop(self):
        cdef Action* action
        cdef bint ready
        with nogil:
            cw_lane_enter(b"cw-input")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.input_lane, self.spin_ns)
                if action == NULL:
                    break
                ready = False
                if cw_now() > action.latest_ns:
                    action.order.base.status = TOO_LATE
                elif self.bring_inputs(action):
                    cw_hub_lock(&self.hub)
                    ready = not action.revoked
                    cw_hub_unlock(&self.hub)
                    # A revocation from here on finds it running in this lane, and leaves its mark too late to be
                    # seen here; the execute lane looks for it again.
                    action.order.base.status = CW_PENDING if ready else ACTION_CANCELLED
                else:
                    action.order.base.status = DEVICE_ERROR
                if ready:
                    action.order.base.earliest_ns = action.earliest_ns
                    cw_lane_pass(&self.input_lane, &self.execute_lane, &action.order.base)
                else:
                    self.drop_room(&action.order)
                    cw_lane_end(&self.input_lane, &action.order.base)

    def execute_loop(self):
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-execute")
            crash_enter()
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.execute_lane, self.spin_ns)
                if action == NULL:
                    break
                if action.revoked:
                    action.order.base.status = ACTION_CANCELLED
                elif cw_now() > action.latest_ns:
                    action.order.base.status = TOO_LATE
                else:
                    crash_at(action.order.base.action_id)
                    self.run_infer(action)
                    crash_at(0)
                if action.order.base.status == CW_PENDING:
                    action.order.base.earliest_ns = 0
                    cw_lane_pass(&self.execute_lane, &self.output_lane, &action.order.base)
                else:
                    self.drop_room(&action.order)
                    cw_lane_end(&self.execute_lane, &action.order.base)
            crash_leave()

    def output_loop(self):
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-output")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.output_lane, self.spin_ns)
                if action == NULL:
                    break
                action.order.base.status = OK if self.take_outputs(action) else DEVICE_ERROR
                self.drop_room(&action.order)
                cw_lane_end(&self.output_lane, &action.order.base)

    def stop(self):
        """Have the loops return, each after what it is doing."""
        with nogil:
            cw_lane_stop(&self.load_lane)
            cw_lane_stop(&self.fetch_lane)
            cw_lane_stop(&self.input_lane)
            cw_lane_stop(&self.execute_lane)
            cw_lane_stop(&self.output_lane)

    # ----- pools ------------------------------------------------------------------------------

    def exchange_slot(self, size_t size, size_t host, CUdeviceptr device):
        """Give a slot that is smaller than ``size`` this memory; returns the (host, device) that it had (0, 0: none).

        None if every slot is as large, and the memory stays the caller's. Waits while all smaller ones are in use.
        """
        cdef int index
        cdef bint small = True, found = False
        cdef size_t old_host = 0
        cdef CUdeviceptr old_device = 0
        with nogil:
            cw_hub_lock(&self.hub)
            while small and not found:
                small = False
                for index in range(self.slot_count):
                    if self.slots[index].room.bytes >= size:
                        continue
                    small = True
                    if not self.slots[index].room.busy:
                        old_host, old_device = <size_t>self.slots[index].host, self.slots[index].device
                        self.slots[index].host, self.slots[index].device = <char*>host, device
                        self.slots[index].room.bytes = size
                        found = True
                        break
                if small and not found:
                    cw_hub_wait(&self.hub)
            cw_hub_unlock(&self.hub)
        return (old_host, old_device) if found else None

    def exchange_workspace(self, CUdeviceptr workspace):
        """Have every further execution use this memory; returns what was used before (0: none), once it is not."""
        cdef CUdeviceptr old
        with nogil:
            cw_hub_lock(&self.hub)
            self.workspace_next = workspace
            while self.workspace_next != 0 and self.execute_lane.running != NULL:
                cw_hub_wait(&self.hub)  # the execute lane takes it over when it begins its next
            if self.workspace_next != 0:
                self.workspace_old, self.workspace, self.workspace_next = self.workspace, self.workspace_next, 0
            old, self.workspace_old = self.workspace_old, 0
            cw_hub_unlock(&self.hub)
        return old

    cdef Room* room(self, int index) noexcept nogil:
        return &self.slots[index].room

    @property
    def fault_text(self):
        """What broke the context, after which every call fails; "" while it is whole."""
        cw_hub_lock(&self.hub)
        text = <bytes>self.fault if self.broken else b""
        cw_hub_unlock(&self.hub)
        return text.decode(errors="replace")

    def look(self, text):
        """A call outside of the lanes failed: whether that broke the context. Makes it current. ``text``: what is said."""
        cdef char buffer[TEXT_BYTES]
        cdef bytes said = text.encode()[:TEXT_BYTES - 1]
        memset(buffer, 0, TEXT_BYTES)
        memcpy(buffer, <const char*>said, len(said))
        self.api.set_context(self.context)
        return self.look_at_context(buffer)

    # ----- the driver, from the lanes ------------------------------------------------------------

    cdef bint failed(self, CUresult result, const char* call, char* text) noexcept nogil:
        """Whether a call failed; then a sentence, and whether the context broke is looked at."""
        if not cw_cuda_failed(self.api, result, call, text, TEXT_BYTES):
            return False
        self.look_at_context(text)
        return True

    cdef bint look_at_context(self, const char* text) noexcept nogil:
        """Whether the context is broken. The first who finds it so leaves what it was doing."""
        cdef CUresult state = self.api.query_event(self.load_end)
        if state == 0 or state == CUDA_ERROR_NOT_READY:
            return False
        cw_hub_lock(&self.hub)
        if not self.broken:
            memcpy(self.fault, text, TEXT_BYTES)
        self.broken = True
        cw_hub_unlock(&self.hub)
        return True

    cdef bint wait(self, CUevent event, const char* what, char* text) noexcept nogil:
        """Until an event has happened. False, with a sentence, if it never will."""
        cdef int64_t begin_ns = cw_now(), waited_ns
        cdef CUresult state
        while True:
            state = self.api.query_event(event)
            if state != CUDA_ERROR_NOT_READY:
                return not self.failed(state, what, text)
            waited_ns = cw_now() - begin_ns
            if waited_ns > POLL_SPIN_NS:
                cw_nap(min(max(waited_ns // POLL_SHARE, <int64_t>POLL_LEAST_NS), <int64_t>POLL_MOST_NS))

    cdef bint measure(self, Span* span, CUevent begin, CUevent end, char* text) noexcept nogil:
        """A phase has ended: by this machine's clock now, its duration by the device's events."""
        cdef float elapsed_ms = 0
        span.end_ns = cw_now()
        if self.failed(self.api.elapsed(&elapsed_ms, begin, end), b"cuEventElapsedTime", text):
            return False
        span.duration_ns = <int64_t>(<double>elapsed_ms * 1e6)
        return True

    # ----- the load lane -----------------------------------------------------------------------

    cdef void run_load(self, Action* action) noexcept nogil:
        self.note_waiting(True)
        cw_link_take(self.link)
        self.note_waiting(False)
        if cw_now() > action.latest_ns:
            action.order.base.status = TOO_LATE
        else:
            self.load_over_link(action)
        cw_link_leave(self.link)

    cdef void note_waiting(self, bint waits) noexcept nogil:
        cw_hub_lock(&self.hub)
        self.waits_for_link = waits
        cw_hub_unlock(&self.hub)

    cdef void load_over_link(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef int status
        span_begin(&action.order.execute)
        action.order.execute.end_ns = action.order.execute.begin_ns
        if model.host != NULL and cw_host_look(model.host, model.weights_there) != CW_HOST_HELD:
            snprintf(action.order.text, TEXT_BYTES, "the model is not in the host store")
            action.order.base.status = NOT_RESIDENT
            return
        status = self.claim(&action.order)
        if status == OK and not self.copy_weights(action):
            status = DEVICE_ERROR
            # Copies that are under way still write to the pages.
            self.api.finish_stream(self.load_stream)
            cw_hub_lock(&self.hub)
            cw_claim_free(self.owners, &model.at.claim)
            cw_hub_unlock(&self.hub)
        if status == OK:
            cw_hub_lock(&self.hub)
            model.at.load_id = action.order.load_id
            model.at.resident = True
            cw_hub_unlock(&self.hub)
        action.order.base.status = status

    cdef bint copy_weights(self, Action* action) noexcept nogil:
        """Copy the runs, a page at a time, and wait until they have arrived."""
        cdef ModelState* model = action.model
        cdef cw_host_copy* source = model.weights_there
        cdef int64_t page, index = 0
        cdef CUdeviceptr target
        cdef int run
        cdef char* text = action.order.text
        if self.failed(self.api.record_event(self.load_begin, self.load_stream), b"cuEventRecord", text):
            return False
        for run in range(model.at.claim.run_count):
            target = self.arena + model.at.claim.run_starts[run] * self.page_bytes
            for page in range(model.at.claim.run_pages[run]):
                if source.page_bytes[index] and self.failed(
                        self.api.copy_in(target + page * self.page_bytes, source.pages[index],
                                         source.page_bytes[index], self.load_stream),
                        b"cuMemcpyHtoDAsync", text):
                    return False
                index += 1
        if self.failed(self.api.record_event(self.load_end, self.load_stream), b"cuEventRecord", text):
            return False
        return (self.wait(self.load_end, b"cuEventQuery", text)
                and self.measure(&action.order.execute, self.load_begin, self.load_end, text))

    cdef void run_unload(self, Action* action) noexcept nogil:
        span_begin(&action.order.execute)
        action.order.base.status = self.begin_unload(&action.order)
        if action.order.base.status == OK:
            cw_hub_lock(&self.hub)
            cw_claim_free(self.owners, &action.order.residency.claim)
            cw_hub_unlock(&self.hub)
        span_end(&action.order.execute)

    cdef cw_lane* executing(self) noexcept nogil:
        return &self.execute_lane

    cdef cw_lane* loading(self) noexcept nogil:
        return &self.load_lane

    cdef cw_lane* fetching(self) noexcept nogil:
        return &self.fetch_lane

    cdef bint is_used(self, Residency* residency, int64_t load_id) noexcept nogil:
        return holds(&self.input_lane, residency, load_id) or holds(&self.execute_lane, residency, load_id)

    # ----- the fetch lane ------------------------------------------------------------------------

    cdef void run_fetch(self, Action* action) noexcept nogil:
        """FETCH and DROP, of the host store that all devices of the process share."""
        cdef ModelState* model = action.model
        cdef cw_host_result result
        span_begin(&action.order.execute)
        if action.order.kind == KIND_FETCH:
            result = cw_host_fetch(model.host, model.weights_there, action.order.text, TEXT_BYTES)
        else:
            result = cw_host_drop(model.host, model.weights_there)
        span_end(&action.order.execute)
        if result == CW_HOST_OK:
            action.order.base.status = OK
        elif result == CW_HOST_FULL:
            action.order.base.status = BAD_PAGES
        elif result == CW_HOST_IN_USE:
            action.order.base.status = IN_USE
        elif result == CW_HOST_NOT_HELD:
            action.order.base.status = NOT_RESIDENT
        else:
            action.order.base.status = DEVICE_ERROR

    # ----- the input lane ------------------------------------------------------------------------

    cdef bint bring_inputs(self, Action* action) noexcept nogil:
        """Join the parts in pinned memory, copy them to the device, and wait until they have arrived."""
        cdef Slot* slot = action.slot
        cdef Parts* parts = &action.order.parts
        cdef Tensor* tensor
        cdef size_t index, part
        cdef char* base
        cdef int64_t size, row
        cdef char* text = action.order.text
        action.order.copy_in.begin_ns = action.order.copy_in.end_ns = cw_now()
        if self.failed(self.api.record_event(slot.input_begin, self.input_stream), b"cuEventRecord", text):
            return False
        for index in range(parts.input_count):
            tensor = &action.variant.inputs[index]
            base = slot.host + tensor.offset
            if action.order.kind == KIND_PROFILE:
                size = tensor.bytes if tensor.open else parts.inputs[index].bytes
                fill_seeded(base, tensor.dtype, size)
            else:
                size = 0
                if tensor.open:
                    size = self.enlarge(action, index, base)
                for part in range(0 if tensor.open else parts.part_count):
                    memcpy(base + size, parts.pinned[part * parts.input_count + index].buf,
                           parts.pinned[part * parts.input_count + index].len)
                    size += parts.pinned[part * parts.input_count + index].len
            if tensor.padded and size < tensor.bytes:
                if size == 0:
                    memset(base, 0, tensor.bytes)
                    size = tensor.bytes
                while size < tensor.bytes:
                    memcpy(base + size, base + size - tensor.row_bytes, tensor.row_bytes)
                    size += tensor.row_bytes
            if size and self.failed(self.api.copy_in(slot.device + tensor.offset, base, size, self.input_stream),
                                    b"cuMemcpyHtoDAsync", text):
                self.api.finish_stream(self.input_stream)
                return False
        if self.failed(self.api.record_event(slot.input_end, self.input_stream), b"cuEventRecord", text):
            self.api.finish_stream(self.input_stream)
            return False
        return (self.wait(slot.input_end, b"cuEventQuery", text)
                and self.measure(&action.order.copy_in, slot.input_begin, slot.input_end, text))

    cdef int64_t enlarge(self, Action* action, size_t index, char* base) noexcept nogil:
        """Join the parts of an input that ends before the variant's does, zeros behind each end; the bytes filled."""
        cdef Parts* parts = &action.order.parts
        cdef Tensor* tensor = &action.variant.inputs[index]
        cdef Input* joined = &parts.inputs[index]
        cdef int64_t size = used_bytes(tensor, joined.dims[0]), at = 0
        cdef int64_t[RANK_MOST] dims
        cdef size_t part
        memset(base, 0, size)
        memcpy(dims, joined.dims, joined.rank * sizeof(int64_t))
        for part in range(parts.part_count):
            if parts.part_count > 1:
                dims[0] = parts.rows[part]
            copy_beginning(<char*>parts.pinned[part * parts.input_count + index].buf, dims, base + at, tensor.dims,
                           tensor.rank, dtype_bits(tensor.dtype) // 8, True)
            at += dims[0] * tensor.row_bytes
        return size

    # ----- the execute lane --------------------------------------------------------------------

    cdef void run_infer(self, Action* action) noexcept nogil:
        """Leaves the status pending if the outputs are on their way."""
        cdef CUdeviceptr workspace
        cdef Slot* slot = action.slot
        cdef char* text = action.order.text
        cdef bint resident
        cw_hub_lock(&self.hub)
        resident = self.is_here(&action.order)
        if self.workspace_next != 0:
            self.workspace_old, self.workspace, self.workspace_next = self.workspace, self.workspace_next, 0
        workspace = self.workspace
        cw_hub_unlock(&self.hub)
        if not resident:
            action.order.base.status = NOT_RESIDENT
            return
        action.order.execute.begin_ns = action.order.execute.end_ns = cw_now()
        if not (self.launch_all(action, workspace)
                and self.wait(slot.run_end, b"cuEventQuery", text)
                and self.measure(&action.order.execute, slot.run_begin, slot.run_end, text)):
            action.order.base.status = DEVICE_ERROR
            # What was launched still uses the slot and the pages.
            self.api.finish_stream(self.execute_stream)
            self.api.finish_stream(self.output_stream)
            return
        action.order.copy_out.begin_ns = action.order.copy_out.end_ns = action.order.execute.end_ns
        if action.order.kind == KIND_PROFILE:
            action.order.base.status = OK

    cdef bint launch_all(self, Action* action, CUdeviceptr workspace) noexcept nogil:
        """Queue the launches, and behind them the copies of the outputs, on a stream of their own."""
        cdef Variant* variant = action.variant
        cdef Parts* parts = &action.order.parts
        cdef Slot* slot = action.slot
        cdef ModelState* model = action.model
        cdef Launch* launch
        cdef Argument* argument
        cdef Weight* weight
        cdef Tensor* tensor
        cdef size_t number, index
        cdef uint64_t value
        cdef int64_t size
        cdef char* text = action.order.text
        if self.failed(self.api.record_event(slot.run_begin, self.execute_stream), b"cuEventRecord", text):
            return False
        for number in range(variant.launch_count):
            launch = &variant.launches[number]
            for index in range(launch.argument_count):
                argument = &launch.arguments[index]
                value = argument.value
                if argument.source == FROM_WEIGHT:
                    weight = &model.weights[argument.index]
                    value += self.arena + model.at.claim.run_starts[weight.run] * self.page_bytes + weight.offset
                elif argument.source == FROM_INPUT:
                    value += slot.device + variant.inputs[argument.index].offset
                elif argument.source == FROM_OUTPUT:
                    value += slot.device + variant.outputs[argument.index].offset
                elif argument.source == FROM_WORKSPACE:
                    value += workspace
                elif argument.source == FROM_SIZE:
                    value = action.sizes[argument.index]
                launch.values[index] = value
            if self.failed(self.api.launch(
                    launch.function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0], launch.block[1],
                    launch.block[2], launch.shared_bytes, self.execute_stream, launch.pointers, NULL),
                    b"cuLaunchKernel", text):
                return False
        if self.failed(self.api.record_event(slot.run_end, self.execute_stream), b"cuEventRecord", text):
            return False
        if action.order.kind == KIND_PROFILE:
            return True
        if self.failed(self.api.wait_event(self.output_stream, slot.run_end, 0), b"cuStreamWaitEvent", text):
            return False
        for index in range(parts.output_count):
            tensor = &variant.outputs[index]
            size = used_bytes(tensor, parts.outputs[index].dims[0])
            if size and self.failed(
                    self.api.copy_out(slot.host + tensor.offset, slot.device + tensor.offset, size,
                                      self.output_stream), b"cuMemcpyDtoHAsync", text):
                return False
        return not self.failed(self.api.record_event(slot.output_end, self.output_stream), b"cuEventRecord", text)

    # ----- the output lane -----------------------------------------------------------------------

    cdef bint take_outputs(self, Action* action) noexcept nogil:
        cdef Slot* slot = action.slot
        cdef size_t index
        cdef Output* output
        cdef Tensor* tensor
        cdef char* text = action.order.text
        if not (self.wait(slot.output_end, b"cuEventQuery", text)
                and self.measure(&action.order.copy_out, slot.run_end, slot.output_end, text)):
            return False
        for index in range(action.order.parts.output_count):
            output = &action.order.parts.outputs[index]
            tensor = &action.variant.outputs[index]
            if tensor.open:
                copy_beginning(action.order.parts.block + output.begin, output.dims, slot.host + tensor.offset,
                               tensor.dims, tensor.rank, dtype_bits(tensor.dtype) // 8, False)
            else:
                memcpy(action.order.parts.block + output.begin, slot.host + tensor.offset, output.bytes)
        action.order.copy_out.end_ns = cw_now()
        return True
