# cython: language_level=3, cdivision=True
"""A CUDA device that a thread may hold exclusively: during a RESERVE it prepares, loads and executes a model.

The other lanes continue meanwhile. clockwork/device/cuda.py and cuda_trial.py are the callers. Of these
methods only run_reserve(), in which the execute lane waits, can delay a request.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libcpp.vector cimport vector

from clockwork.device._cuda_model cimport CudaSlot, CompiledModel
from clockwork.device._cudriver cimport CUdeviceptr, PinnedBytes
from clockwork.device._orders cimport PENDING, TEXT_BYTES, Order, DeviceModel, TimedPhase, now_ns
from clockwork.wire._messages cimport CActionKind

from clockwork.device._cudriver import CudaError
from clockwork.wire.messages import Status

cdef int OK = Status.OK
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED


@cython.no_gc_clear  # the base class has the same decorator
cdef class ReservingCore(CudaCore):
    """A device with RESERVEs. The loop's thread calls the methods, unless a docstring says otherwise."""

    cdef void begin_reserve(self, Order* given) noexcept nogil:
        """Queue a RESERVE through input and execute lane, behind all earlier actions."""
        cdef CudaOrder* order = <CudaOrder*>given
        order.run_earliest_ns, order.earliest_ns = order.earliest_ns, 0
        if self.lanes.run_count(0) >= self.run_ahead:
            self.refuse_full(order)
        else:
            self.queue(order, self.first)

    cdef void run_reserve(self, CudaOrder* order) noexcept nogil:
        """Execute nothing while a thread holds the device; end at once if no thread wants it.

        A RESERVE for another model than the waiting thread's is cancelled: it brings other pages."""
        cdef int status = OK
        order.execute.begin()
        self.lanes.hub.lock()
        if self.reserve_wanted and self.reserve_model_id != order.model_id:
            status = ACTION_CANCELLED
            snprintf(order.text, TEXT_BYTES, "the device is wanted for model %lld, not for %lld",
                     <long long>self.reserve_model_id, <long long>order.model_id)
        elif self.reserve_wanted and not self.reserve_ended:
            self.reserved = order
            self.lanes.hub.tell()
            while self.reserved != NULL and (self.reserve_used or not self.reserve_ended):
                self.lanes.hub.wait()
            self.reserved = NULL
        self.lanes.hub.unlock()
        order.execute.end()
        order.status = status

    cdef void cut_short(self, bint wanted) noexcept nogil:
        """End the waits of threads for the device. A thread that holds it keeps it until leave_reserve()."""
        self.lanes.hub.lock()
        self.reserve_ended = wanted
        self.lanes.hub.tell()
        self.lanes.hub.unlock()

    def want_reserve(self, model_id):
        """Announce enter_reserve() for this model: its RESERVE waits for the thread."""
        cdef int64_t wanted = model_id
        self.lanes.hub.lock()
        self.reserve_wanted, self.reserve_model_id = True, wanted
        self.lanes.hub.unlock()

    def enter_reserve(self):
        """Wait for the RESERVE; return the first page of each of its runs. Nothing executes until
        leave_reserve().

        Returns None after end_reserve(). Any thread, one at a time."""
        cdef bint got
        with nogil:
            self.lanes.hub.lock()
            while self.reserved == NULL and self.reserve_wanted:
                self.lanes.hub.wait()
            got = self.reserved != NULL
            self.reserve_used = got
            self.lanes.hub.unlock()
        return self.reserved.run_starts if got else None

    def leave_reserve(self):
        self.lanes.hub.lock()
        self.reserve_used = self.reserve_wanted = False
        self.reserved = NULL
        self.lanes.hub.tell()
        self.lanes.hub.unlock()

    def end_reserve(self):
        """End the wait of a thread in enter_reserve(). Any thread may call it."""
        self.lanes.hub.lock()
        if not self.reserve_used:
            self.reserve_wanted = False
            self.reserved = NULL
        self.lanes.hub.tell()
        self.lanes.hub.unlock()

    # ----- trials --------------------------------------------------------------------------------

    # Called by the thread that holds the device, with the context current. No action names the added model
    # yet.

    def claim(self, CompiledModel model not None, list run_starts):
        """Claim pages for the model. Returns a sentence if they are not free."""
        cdef char[TEXT_BYTES] text
        cdef vector[int64_t] starts = run_starts
        cdef bint taken
        if starts.size() != model.at.claim.run_pages.size():
            return f"{starts.size()} runs of pages for {model.at.claim.run_pages.size()}"
        with nogil:
            self.lanes.hub.lock()
            taken = self.pages.take(model.at.claim, starts, text, TEXT_BYTES)
            if taken:
                model.state.loading_starts = starts
            self.lanes.hub.unlock()
        return None if taken else (<bytes>text).decode(errors="replace")

    def copy(self, CompiledModel model not None, size_t page, PinnedBytes source=None):
        """Copy a page of the model from ``source``, or from the host store, to its claimed page.

        Returns the time in ns. Raises CudaError."""
        cdef char[TEXT_BYTES] text
        cdef int64_t taken_ns = 0
        cdef const char* start = source.data if source is not None else NULL
        cdef bint copied
        if page >= model.state.copy.page_bytes.size():
            raise IndexError(page)
        with nogil:
            self.link.take()
            copied = self.copy_page(&model.state, page, start, &taken_ns, text)
            self.link.leave()
        if not copied:
            raise CudaError((<bytes>text).decode(errors="replace"), 0)
        return taken_ns

    cdef bint copy_page(self, CudaModel* model, size_t index, const char* source, int64_t* taken_ns,
                        char* text) noexcept nogil:
        cdef size_t run = 0, page = index
        cdef CUdeviceptr target
        cdef TimedPhase span
        while page >= <size_t>model.claim.run_pages[run]:
            page -= model.claim.run_pages[run]
            run += 1
        target = self.arena + (model.claim.run_starts[run] + page) * self.page_bytes
        if self.failed(self.api.record_event(self.load_begin, self.load_stream), b"cuEventRecord", text):
            return False
        if model.copy.page_bytes[index] and self.failed(
                self.api.copy_in(target, source if source != NULL else model.copy.pages[index],
                                 model.copy.page_bytes[index], self.load_stream), b"cuMemcpyHtoDAsync", text):
            return False
        if not (self.set_mark(&self.load_end, self.load_stream, text) and self.wait(&self.load_end, now_ns(), 0, self.spin_ns, text)
                and self.measure(&span, self.load_begin, self.load_end.event, text)):
            self.api.finish_stream(self.load_stream)
            return False
        taken_ns[0] = span.duration_ns
        return True

    def settle(self, CompiledModel model not None, int64_t load_id):
        """Mark the model as loaded: its pages are filled."""
        self.lanes.hub.lock()
        model.at.load_id = load_id
        model.at.resident = True
        self.lanes.hub.unlock()

    def abandon(self, CompiledModel model not None):
        """Release the model's pages. Needs no reservation."""
        with nogil:
            self.lanes.hub.lock()
            self.release_pages(model.at)
            self.lanes.hub.unlock()

    cdef void release_pages(self, DeviceModel* at) noexcept nogil:
        at.resident = False
        self.pages.release(at.claim)

    def execute(self, action, views):
        """Run an INFER, or a PROFILE if ``views`` is None, in this thread. Returns the Completion."""
        cdef CudaOrder* order
        if views is None:
            order = <CudaOrder*>self.make_order(action, ())
            order.expected_ns = 0
        else:
            order = <CudaOrder*>self.make_order(action, views)
        with nogil:
            self.execute_order(order)
        return self.finish(order)

    cdef void execute_order(self, CudaOrder* order) noexcept nogil:
        """Execute an order, and set its status and text."""
        cdef DeviceModel* at
        cdef int status
        self.lanes.hub.lock()
        at = order.residency = self.roster.find(order.model_id)
        if at != NULL:
            at.pending += 1
        self.lanes.hub.unlock()
        if at == NULL:
            snprintf(order.text, TEXT_BYTES, "model %lld is not prepared here", <long long>order.model_id)
            order.status = UNKNOWN_MODEL
            return
        status = self.join_inputs(order)
        if status == OK:
            status = self.place_run(order)
        if status != OK:
            order.status = status
        elif self.run_input(order) != NULL:
            self.run_alone(order)

    cdef void run_alone(self, CudaOrder* order) noexcept nogil:
        """Execute an order whose inputs are copied, alone, and fetch its outputs."""
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        if not self.enter_run(order):
            order.status = NOT_RESIDENT
            return
        self.begin_run(order)
        if (order.status == PENDING and self.wait(&slot.run_end, order.execute.begin_ns, order.expected_ns, self.spin_ns,
                                                 order.text)
                and self.measure_run(order)
                and (order.kind == CActionKind.PROFILE or self.take_outputs(order))):
            order.status = OK
            return
        order.status = DEVICE_ERROR
        self.api.finish_stream(self.execute_stream)
        self.api.finish_stream(self.output_stream)
