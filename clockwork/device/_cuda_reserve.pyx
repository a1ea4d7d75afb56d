# cython: language_level=3, cdivision=True
"""A CUDA device that a thread may have for itself: while the execute lane is at a RESERVE, that thread prepares a model,
loads it, and executes it, beside the other lanes. clockwork/device/cuda.py and cuda_trial.py are the callers.

Nothing here is on the way of a request but run_reserve(), in which the execute lane waits.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdio cimport snprintf
from libcpp.vector cimport vector

from clockwork.device._cuda_model cimport CudaSlot, Model
from clockwork.device._cudriver cimport CUdeviceptr, PinnedBytes
from clockwork.device._orders cimport INFER, PENDING, PROFILE, TEXT_BYTES, Order, Residency, Span, now_ns

from clockwork.device._cudriver import CudaError
from clockwork.wire.messages import Status

cdef int OK = Status.OK
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED


@cython.no_gc_clear  # as that of which it is one
cdef class ReservingCore(Core):
    """Methods are for the loop's thread except where they say otherwise."""

    cdef void begin_reserve(self, Order* given) noexcept nogil:
        """Through input and execute lane, behind what was sent before."""
        cdef CudaOrder* order = <CudaOrder*>given
        order.run_earliest_ns, order.earliest_ns = order.earliest_ns, 0
        if self.lanes.run_count() >= self.run_ahead:
            self.refuse_full(order)
        else:
            self.queue(order, self.first)

    cdef void run_reserve(self, CudaOrder* order) noexcept nogil:
        """Execute nothing while a thread has the device for itself; if none wants it, end at once.

        One for a model that was forgotten meanwhile is not given to the next: other pages come with it."""
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
        """A reservation that a thread has ends when it leaves; who waits for one waits in vain."""
        self.lanes.hub.lock()
        self.reserve_ended = wanted
        self.lanes.hub.tell()
        self.lanes.hub.unlock()

    def want_reserve(self, model_id):
        """A thread will enter_reserve(): a RESERVE for this model waits for it."""
        cdef int64_t wanted = model_id
        self.lanes.hub.lock()
        self.reserve_wanted, self.reserve_model_id = True, wanted
        self.lanes.hub.unlock()

    def enter_reserve(self):
        """Wait until a RESERVE has its turn; the first page of each run that goes with it. Nothing executes until
        leave_reserve(). None: end_reserve() was called. Any thread, one at a time."""
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
        """Who waits in enter_reserve() waits no more. Any thread."""
        self.lanes.hub.lock()
        if not self.reserve_used:
            self.reserve_wanted = False
            self.reserved = NULL
        self.lanes.hub.tell()
        self.lanes.hub.unlock()

    # ----- trials --------------------------------------------------------------------------------

    # Of who has a reservation, in its thread, with the context current. The model was added, and no action names it.

    def claim(self, Model model not None, list run_starts):
        """Have these pages be the model's. A sentence if they are not free."""
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

    def copy(self, Model model not None, size_t page, PinnedBytes source=None):
        """Copy one of the model's pages to where it was claimed, from ``source``, or from the host store. Its time in ns.
        Raises CudaError."""
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
        cdef Span span
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

    def settle(self, Model model not None, int64_t load_id):
        """Its pages are filled."""
        self.lanes.hub.lock()
        model.at.load_id = load_id
        model.at.resident = True
        self.lanes.hub.unlock()

    def abandon(self, Model model not None):
        """It has no pages any more. Needs no reservation."""
        with nogil:
            self.lanes.hub.lock()
            self.release_pages(model.at)
            self.lanes.hub.unlock()

    cdef void release_pages(self, Residency* at) noexcept nogil:
        at.resident = False
        self.pages.release(at.claim)

    def execute(self, action, views):
        """Do an INFER in this thread, or a PROFILE, where ``views`` is None. Its Completion."""
        cdef CudaOrder* order
        if views is None:
            order = <CudaOrder*>self.make_order(PROFILE, action, ())
            order.expected_ns = 0
        else:
            order = <CudaOrder*>self.make_order(INFER, action, views)
        with nogil:
            self.execute_order(order)
        return self.finish(order)

    cdef void execute_order(self, CudaOrder* order) noexcept nogil:
        """Execute it, and leave its status and text in it."""
        cdef Residency* at
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
        """Execute what has its inputs, with nothing behind it, and take its outputs."""
        cdef CudaSlot* slot = <CudaSlot*>order.room
        if not self.may_run(order):
            order.status = NOT_RESIDENT
            return
        self.begin_run(order)
        if (order.status == PENDING and self.wait(&slot.run_end, order.execute.begin_ns, order.expected_ns, self.spin_ns,
                                                 order.text)
                and self.measure_run(order)
                and (order.kind == PROFILE or self.take_outputs(order))):
            order.status = OK
            return
        order.status = DEVICE_ERROR
        self.api.finish_stream(self.execute_stream)
        self.api.finish_stream(self.output_stream)
