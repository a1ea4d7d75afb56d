# cython: language_level=3, cdivision=True
"""The CUDA device's native half: lanes over a page arena.

Its only caller is clockwork/device/cuda.py, which documents its guarantees. _orders.pyx has the base of all
devices, _cuda_reserve.pyx has the methods of a thread that holds the device in a RESERVE.

Four threads run here, one for each lane: load, input, execute, output. Where the host store has a budget, a
fifth lane, fetch, reads files and does not use the card. The threads enter without the GIL and never take it.
An INFER passes through three lanes: its inputs are copied while the INFER before it executes, and its outputs
while the next INFER does. The lanes allocate no memory of the driver or of the process.

A lane that waits for the device sleeps until shortly before the predicted end, and then polls a word that the
stream writes; see csrc/device/notice.h.
"""

cimport cython
from libc.stdint cimport INT64_MAX, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from clockwork.device._crash cimport crash_at
from clockwork.device._cuda_host cimport (
    COPY_HELD, HOST_FULL, HOST_IN_USE, HOST_NOT_HELD, HOST_OK, HostResult, CWeightsCopy)
from clockwork.device._cuda_model cimport (
    FROM_SIZE, FROM_WEIGHT, LOAD_AHEAD, Argument, CudaModel, RecordedGraph, Launch, LoadPace, StreamMark, CompiledModel, CompiledProgram, Tensor,
    Variant, Watch, copy_starts, fixed_value, record_graph, say_unserved)
from clockwork.device._cudriver cimport CU_EVENT_DEFAULT, CU_STREAM_NON_BLOCKING, CUDA_ERROR_NOT_READY, CUDA_ERROR_NOT_SUPPORTED
from clockwork.device._orders cimport (
    NO_MEMORY, PENDING, Lane, DeviceModel, breathe, make_order, nap, now_ns, thread_time_ns)
from clockwork.device._parts cimport (
    RANK_MAX, Input, Output, BatchParts, copy_beginning, dtype_bits, fill_seeded)
from clockwork.wire._messages cimport CActionKind

from clockwork.wire.messages import Status

cdef enum:
    WORD_BYTES = 64  # the distance of words: each has a cache line of its own

cdef int OK = Status.OK
cdef int TOO_LATE = Status.TOO_LATE
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED
cdef int INVALID_INPUT = Status.INVALID_INPUT


@cython.no_gc_clear  # __dealloc__ still needs the table
cdef class CudaCore(DeviceCore):
    """Streams, slots and lanes. The loop's thread calls the methods, unless a docstring says otherwise.

    __init__ and release() need the context to be current. The caller owns the memory of arena, slots,
    workspace and words. arena: device memory. link: shared by the devices that are loaded over it. run_ahead
    + 1 slots are made without memory; see exchange_slot(). words: pinned memory of words_bytes(run_ahead);
    None: lanes query events. load_piece_bytes: the size of the pieces of a LOAD on the link, of which
    LOAD_AHEAD are queued.
    """

    def __cinit__(self, DriverTable table not None, CudaContext context not None, DeviceBytes arena not None, size_t page_bytes,
                  int64_t page_count, int run_ahead, int64_t spin_ns, HostLink link not None,
                  PinnedBytes words, int64_t load_piece_bytes):
        cdef int index
        self.table = table
        self.link_owner = link
        self.link = &link.link
        self.words = words
        self.load_piece_bytes = load_piece_bytes
        self.api = &table.api
        self.context = context.handle
        self.arena = arena.address
        self.set_bounds(page_count, page_bytes, run_ahead, spin_ns)
        self.first = &self.lanes.input
        self.slots.resize(self.slot_count)
        self.slot_memory = [(None, None)] * self.slot_count
        for index in range(self.slot_count):
            self.slots[index].number = index
            self.all_slots[0].push_back(&self.slots[index])
        self.opened = True

    @property
    def writes_words(self):
        """Whether the device's streams write words; see try_words()."""
        return self.words is not None

    @staticmethod
    def words_bytes(int run_ahead):
        """Return the bytes of pinned memory that the words of a device need."""
        return WORD_BYTES * (1 + LOAD_AHEAD + 3 * (run_ahead + 1))

    def __init__(self, *arguments):
        """Create the streams and marks. Raises CudaError."""
        try:
            self.make_all()
        except BaseException:
            self.free_all()
            raise

    cdef int make_all(self) except -1:
        cdef int index
        cdef CudaSlot* slot
        self.make_stream(&self.load_stream)
        self.make_stream(&self.input_stream)
        self.make_stream(&self.execute_stream)
        self.make_stream(&self.output_stream)
        self.make_stream(&self.setup_stream)
        self.make_event(&self.load_begin)
        self.make_mark(&self.load_end, 0)
        self.try_words()
        for index in range(LOAD_AHEAD):
            self.make_mark(&self.load_marks[index], 1 + index)
        for index in range(self.slot_count):
            slot = &self.slots[index]
            self.make_event(&slot.input_begin)
            self.make_mark(&slot.input_end, 1 + LOAD_AHEAD + 3 * index)
            self.make_event(&slot.run_begin)
            self.make_mark(&slot.run_end, 2 + LOAD_AHEAD + 3 * index)
            self.make_event(&slot.graph_end)
            self.make_mark(&slot.output_end, 3 + LOAD_AHEAD + 3 * index)
        return 0

    cdef int make_stream(self, CUstream* stream) except -1:
        return self.table.check(self.api.make_stream(stream, CU_STREAM_NON_BLOCKING), b"cuStreamCreate")

    cdef int make_event(self, CUevent* event) except -1:
        return self.table.check(self.api.make_event(event, CU_EVENT_DEFAULT), b"cuEventCreate")

    cdef int make_mark(self, StreamMark* mark, int index) except -1:
        """Create a mark. index: the index of its word."""
        self.make_event(&mark.event)
        if self.words is not None:
            mark.word = <uint32_t*>(self.words.data + index * WORD_BYTES)
            mark.word[0] = 0
        return 0

    cdef int try_words(self) except -1:
        """Take the words from the marks if the streams fail to write them, as in some virtual machines."""
        cdef CUresult result = self.load_end.set(self.api[0], self.load_stream)
        if result == CUDA_ERROR_NOT_SUPPORTED:
            self.words = None
            self.load_end.word = NULL
            return 0
        return self.table.check(result, b"cuStreamWriteValue32")

    cdef void free_stream(self, CUstream stream) noexcept:
        if stream != NULL:
            with nogil:
                self.api.free_stream(stream)

    cdef void free_event(self, CUevent event) noexcept:
        if event != NULL:
            self.api.free_event(event)

    cdef int free_all(self) except -1:
        """Destroy streams, events and lanes, once. No action may run."""
        cdef int index
        cdef CudaSlot* slot
        if not self.opened:
            return 0
        self.opened = False
        # Each call destroys its resource, also where a broken context returns an error.
        for index in range(self.slot_count):
            slot = &self.slots[index]
            self.free_event(slot.input_begin)
            self.free_event(slot.input_end.event)
            self.free_event(slot.run_begin)
            self.free_event(slot.run_end.event)
            self.free_event(slot.graph_end)
            self.free_event(slot.output_end.event)
        self.free_event(self.load_begin)
        self.free_event(self.load_end.event)
        for index in range(LOAD_AHEAD):
            self.free_event(self.load_marks[index].event)
        self.free_stream(self.load_stream)
        self.free_stream(self.input_stream)
        self.free_stream(self.execute_stream)
        self.free_stream(self.output_stream)
        self.free_stream(self.setup_stream)
        self.lanes.hub.close()
        return 0

    def release(self):
        """Free everything. The lanes' threads must have returned, and the context be current."""
        if self.opened:
            self.drop_all()
            self.models.clear()
            self.free_all()

    def __dealloc__(self):
        assert not self.opened, "release() comes first: it needs the context"

    def memory(self):
        """Return bytes by purpose, and counts."""
        cdef int64_t held
        cdef size_t slots
        with nogil:
            held = self.held_pages()
            slots = self.slot_bytes()
        return {
            "arena_bytes": self.page_count * self.page_bytes,
            "resident_bytes": held * self.page_bytes,
            "io_bytes": slots,
            "models": len(self.models),
            "graphs": self.graph_count,
        }

    # ----- steps of the lanes, called by the loop of _orders.pyx ---------------------------------------

    cdef void enter(self, Lane* lane) noexcept nogil:
        if lane != &self.lanes.fetch:
            self.api.set_context(self.context)

    cdef void run_reserve(self, CudaOrder* order) noexcept nogil:
        """Run a RESERVE. The subclass implements it."""

    cdef Lane* run(self, Lane* lane, Order* order) noexcept nogil:
        if lane == &self.lanes.input:
            return self.run_input(<CudaOrder*>order)
        if lane == self.lanes.execute(0):
            if order.kind == CActionKind.RESERVE:
                self.run_reserve(<CudaOrder*>order)
                return NULL
            return self.run_infer(<CudaOrder*>order)
        if lane == &self.lanes.output:
            order.status = OK if self.take_outputs(<CudaOrder*>order) else DEVICE_ERROR
        else:
            self.run_fetch(order)
        return NULL

    # ----- pools ------------------------------------------------------------------------------

    def exchange_slot(self, size_t size, PinnedBytes host not None, DeviceBytes device not None):
        """Replace the memory of a slot that is smaller than ``size``. Returns its old (host, device) memory.

        A slot without memory had (None, None). Returns None if no slot is smaller; the memory then stays the
        caller's. Waits while all smaller slots are in use.
        """
        cdef int index, found = -1
        cdef bint small = True
        with nogil:
            self.lanes.hub.lock()
            while small and found < 0:
                small = False
                for index in range(self.slot_count):
                    if self.slots[index].bytes >= size:
                        continue
                    small = True
                    if not self.slots[index].busy:
                        self.slots[index].host, self.slots[index].device = host.data, device.address
                        self.slots[index].bytes = size
                        found = index
                        break
                if small and found < 0:
                    self.lanes.hub.wait()
            self.lanes.hub.unlock()
        if found < 0:
            return None
        old, self.slot_memory[found] = self.slot_memory[found], (host, device)
        return old

    def exchange_workspace(self, DeviceBytes workspace not None):
        """Replace the workspace. Waits until the old memory is unused, and returns it (None: none)."""
        with nogil:
            self.lanes.hub.lock()
            self.workspace_next = workspace.address
            while self.workspace_next != 0 and self.lanes.execute(0).running != NULL:
                self.lanes.hub.wait()  # the execute lane switches when it begins its next execution
            self.use_next_workspace()
            self.lanes.hub.unlock()
        old, self.workspace_memory = self.workspace_memory, workspace
        return old

    cdef void use_next_workspace(self) noexcept nogil:
        """Switch to the next workspace, if there is one. No execution runs, and the lock is held."""
        if self.workspace_next != 0:
            self.workspace, self.workspace_next = self.workspace_next, 0

    # ----- graphs, from the preparation thread, with the context current -------------------------

    def record_graph(self, CompiledProgram program not None, bint has_room):
        """Record a missing or outdated graph. Each variant has a graph for each slot, with the memory of slot
        and workspace.

        has_room: whether a graph may be added; a graph may always replace an outdated one. Returns whether a
        graph was recorded, and if not, the number of graphs without room. Raises CudaError. A replaced graph
        does not run: its slot or workspace was exchanged, which waited for the end of every use.
        """
        cdef size_t index
        cdef int number, missing = 0
        cdef Variant* variant
        cdef RecordedGraph* graph
        cdef RecordedGraph made
        cdef CUgraphExec old
        cdef const char* call = NULL
        cdef CUresult result
        for index in range(program.variants.size()):
            variant = &program.variants[index]
            if not variant.is_recordable():
                continue
            if variant.graphs.empty():  # no model of the program is known yet, so no lane reads it
                variant.graphs.resize(self.slot_count)
            for number in range(self.slot_count):
                graph = &variant.graphs[number]
                made.slot, made.workspace = self.slots[number].device, self.workspace
                if graph.launches != NULL and graph.slot == made.slot and graph.workspace == made.workspace:
                    continue
                if graph.launches == NULL and not has_room:
                    missing += 1
                    continue
                with nogil:
                    result = record_graph(self.api[0], variant[0], self.slots[number], made.workspace,
                                          self.setup_stream, &made.launches, &call)
                self.table.check(result, call)
                old = graph.launches
                self.lanes.hub.lock()
                graph[0] = made
                self.lanes.hub.unlock()
                if old == NULL:
                    self.graph_count += 1
                else:
                    self.table.check(self.api.free_graph_exec(old), b"cuGraphExecDestroy")
                return True, 0
        return False, missing

    def drop_graphs(self, CompiledProgram program not None):
        """Free the graphs of an unused program. Its modules may be unloaded afterwards."""
        cdef size_t index, number
        cdef RecordedGraph* graph
        for index in range(program.variants.size()):
            for number in range(program.variants[index].graphs.size()):
                graph = &program.variants[index].graphs[number]
                if graph.launches != NULL:
                    self.api.free_graph_exec(graph.launches)
                    self.graph_count -= 1
            program.variants[index].graphs.clear()

    @property
    def fault_text(self):
        """The error that broke the context, after which every call fails; "" while the context works."""
        self.lanes.hub.lock()
        text = <bytes>self.fault if self.broken else b""
        self.lanes.hub.unlock()
        return text.decode(errors="replace")

    def refuse_host_tier(self):
        """Have FETCH and DROP refused: the host store has no budget."""
        self.no_host_tier = b"the host store has no budget: whatever is prepared is in it"

    def look(self, text):
        """Return whether a failed call outside the lanes broke the context, which becomes current.

        text: the message of the error."""
        cdef char buffer[TEXT_BYTES]
        cdef bytes said = text.encode()[:TEXT_BYTES - 1]
        memset(buffer, 0, TEXT_BYTES)
        memcpy(buffer, <const char*>said, len(said))
        self.api.set_context(self.context)
        return self.look_at_context(buffer)

    # ----- orders -----------------------------------------------------

    cdef Order* new_order(self) noexcept nogil:
        return make_order[CudaOrder]()

    cdef bint is_broken(self) noexcept nogil:
        cdef bint broken
        self.lanes.hub.lock()
        broken = self.broken
        self.lanes.hub.unlock()
        return broken

    cdef bint take_runs(self, Order* order) noexcept nogil:
        """Keep the LOAD's model in the host store until the order is freed."""
        cdef CudaModel* model = <CudaModel*>order.residency
        if not DeviceCore.take_runs(self, order):
            return False
        self.lanes.hub.lock()
        copy_starts(model.loading_starts, order.run_starts)
        self.lanes.hub.unlock()
        if model.store != NULL:
            (<CudaOrder*>order).pins = True
            model.store.pin(model.copy[0], 1)
        return True

    cdef void free_order(self, Order* order) noexcept nogil:
        cdef CudaModel* model = <CudaModel*>order.residency
        if (<CudaOrder*>order).pins:
            model.store.pin(model.copy[0], -1)
        DeviceCore.free_order(self, order)

    cdef int describe_run(self, Order* given) noexcept nogil:
        """Choose the variant, and allocate the outputs' block."""
        cdef CudaOrder* order = <CudaOrder*>given
        cdef CudaModel* model = <CudaModel*>order.residency
        cdef size_t index
        cdef BatchParts* parts = &order.parts
        cdef Tensor* tensor
        cdef Output* output
        cdef int axis
        # The window is that of the execution: the input lane does not wait for it.
        order.run_earliest_ns, order.earliest_ns = order.earliest_ns, 0
        if parts.part_count > 1 and not model.batches:
            snprintf(order.text, TEXT_BYTES, "a batch of %zu parts; this program takes one", parts.part_count)
            return INVALID_INPUT
        order.variant = model.choose(parts[0], order.sizes)
        if order.variant == NULL:
            say_unserved(parts[0], order.text, TEXT_BYTES)
            return INVALID_INPUT
        if order.kind == CActionKind.PROFILE:
            return OK
        if not parts.make_outputs(model.output_count):
            snprintf(order.text, TEXT_BYTES, "%s", NO_MEMORY)
            return DEVICE_ERROR
        for index in range(model.output_count):
            tensor, output = &order.variant.outputs[index], &parts.outputs[index]
            output.dtype, output.rank = tensor.dtype, tensor.rank()
            memcpy(output.dims, tensor.dims.data(), output.rank * sizeof(int64_t))
            if model.batches:
                output.dims[0] = parts.inputs[0].dims[0]
            output.bytes = tensor.used_bytes(output.dims[0])
            for axis in range(output.rank):
                if tensor.symbols[axis] >= 0 and output.dims[axis]:
                    output.bytes = output.bytes // output.dims[axis] * order.sizes[tensor.symbols[axis]]
                    output.dims[axis] = order.sizes[tensor.symbols[axis]]
        if not parts.make_block():
            snprintf(order.text, TEXT_BYTES, "%s", NO_MEMORY)
            return DEVICE_ERROR
        for index in range(model.output_count):
            parts.divide(index)
        return OK

    cdef int place_run(self, Order* order) noexcept nogil:
        """Take a slot for inputs and outputs. Each action that the lanes may hold has a slot, and open()
        has grown all."""
        if not self.take_slot(order) or <int64_t>order.held_slot.bytes < (<CudaOrder*>order).variant.slot_bytes:
            snprintf(order.text, TEXT_BYTES, "no slot for inputs and outputs of %lld bytes",
                     <long long>(<CudaOrder*>order).variant.slot_bytes)
            return DEVICE_ERROR
        return OK

    # ----- the driver, from the lanes ------------------------------------------------------------

    cdef bint failed(self, CUresult result, const char* call, char* text) noexcept nogil:
        """Return whether a call failed; then set the text and check whether the context broke."""
        if not self.api.failed(result, call, text, TEXT_BYTES):
            return False
        self.look_at_context(text)
        return True

    cdef bint look_at_context(self, const char* text) noexcept nogil:
        """Return whether the context is broken. The first text is recorded as the fault."""
        cdef CUresult state = self.api.query_event(self.load_end.event)
        if state == 0 or state == CUDA_ERROR_NOT_READY:
            return False
        self.lanes.hub.lock()
        if not self.broken:
            memcpy(self.fault, text, TEXT_BYTES)
        self.broken = True
        self.lanes.hub.unlock()
        return True

    cdef bint set_mark(self, StreamMark* mark, CUstream stream, char* text) noexcept nogil:
        """Queue a mark behind a stream's work. False, with a text, if that fails."""
        return not (self.failed(self.api.record_event(mark.event, stream), b"cuEventRecord", text)
                    or self.failed(mark.set(self.api[0], stream), b"cuStreamWriteValue32", text))

    cdef bint wait(self, StreamMark* mark, int64_t begin_ns, int64_t expected_ns, int64_t spin_ns,
                   char* text) noexcept nogil:
        """Wait until a mark is reached. False, with a text, if that fails.

        expected_ns: the predicted time from begin_ns on; 0: unknown. spin_ns: see Watch."""
        cdef int64_t now = now_ns(), pause_ns
        cdef Watch watch = Watch(begin_ns, expected_ns, spin_ns)
        cdef CUresult state
        while True:
            state = watch.look(self.api[0], mark[0], now)
            if state != CUDA_ERROR_NOT_READY:
                return not self.failed(state, b"cuEventQuery", text)
            pause_ns = watch.pause_ns(mark[0], now)
            if pause_ns:
                nap(pause_ns)
            else:
                breathe()
            now = now_ns()

    cdef bint measure(self, TimedPhase* span, CUevent begin, CUevent end, char* text) noexcept nogil:
        """Record the end of a phase: now, by this machine's clock. Its duration comes from the device's
        events."""
        cdef float elapsed_ms = 0
        cdef CUresult state
        span.end_ns = now_ns()
        state = self.api.elapsed(&elapsed_ms, begin, end)
        while state == CUDA_ERROR_NOT_READY:  # the word was written before the event's time was available
            breathe()
            state = self.api.elapsed(&elapsed_ms, begin, end)
        if self.failed(state, b"cuEventElapsedTime", text):
            return False
        span.duration_ns = <int64_t>(<double>elapsed_ms * 1e6)
        return True

    # ----- the load lane -----------------------------------------------------------------------

    cdef void run_load(self, Order* order) noexcept nogil:
        """Copy a model over the link, when the link gives this device its turn."""
        cdef CudaModel* model = <CudaModel*>order.residency
        self.note_waiting(True)
        self.link.take()
        self.note_waiting(False)
        if now_ns() > order.latest_ns:
            order.status = TOO_LATE
        elif model.store != NULL and model.store.state(model.copy[0]) != COPY_HELD:
            order.execute.begin()
            snprintf(order.text, TEXT_BYTES, "the model is not in the host store")
            order.status = NOT_RESIDENT
        else:
            DeviceCore.run_load(self, order)
        self.link.leave()

    cdef void note_waiting(self, bint waits) noexcept nogil:
        self.lanes.hub.lock()
        self.waits_for_link = waits
        self.lanes.hub.unlock()

    cdef bint bring_weights(self, Order* order) noexcept nogil:
        if self.copy_weights(order):
            return True
        # Running copies still write to the pages.
        self.api.finish_stream(self.load_stream)
        return False

    cdef bint copy_weights(self, Order* order) noexcept nogil:
        """Copy the runs and wait for them. They are copied in pieces, of which few are queued at a time.

        Inputs that are copied meanwhile wait for the queued pieces alone, even where one engine does all
        copies."""
        cdef CudaModel* model = <CudaModel*>order.residency
        cdef CWeightsCopy* source = model.copy
        cdef LoadPace pace = LoadPace(now_ns(), order.expected_ns, source.bytes())
        cdef int64_t page, index = 0, at, size
        cdef CUdeviceptr target
        cdef size_t run
        cdef char* text = order.text
        if self.failed(self.api.record_event(self.load_begin, self.load_stream), b"cuEventRecord", text):
            return False
        for run in range(model.claim.run_pages.size()):
            target = self.arena + model.claim.run_starts[run] * self.page_bytes
            for page in range(model.claim.run_pages[run]):
                at = 0
                while at < source.page_bytes[index]:
                    size = min(source.page_bytes[index] - at, self.load_piece_bytes - pace.piece_bytes)
                    if self.failed(self.api.copy_in(target + page * self.page_bytes + at, source.pages[index] + at, size,
                                                    self.load_stream), b"cuMemcpyHtoDAsync", text):
                        return False
                    at += size
                    pace.piece_bytes += size
                    if pace.piece_bytes == self.load_piece_bytes and not self.end_piece(&pace, text):
                        return False
                index += 1
        return (self.set_mark(&self.load_end, self.load_stream, text)
                and self.wait(&self.load_end, pace.noticed_ns, pace.left_ns(), self.spin_ns, text)
                and self.measure(&order.execute, self.load_begin, self.load_end.event, text))

    cdef bint end_piece(self, LoadPace* pace, char* text) noexcept nogil:
        """Wait until another piece of a LOAD may be queued. False, with a text, if that fails."""
        if not self.set_mark(&self.load_marks[pace.queued % LOAD_AHEAD], self.load_stream, text):
            return False
        pace.queue()
        if pace.queued < LOAD_AHEAD:
            return True
        # Without spinning: other pieces are queued.
        if not self.wait(&self.load_marks[pace.queued % LOAD_AHEAD], pace.noticed_ns, pace.next_ns(), 0, text):
            return False
        pace.notice(now_ns())
        return True

    # ----- the fetch lane ------------------------------------------------------------------------

    cdef void run_fetch(self, Order* order) noexcept nogil:
        """Run a FETCH or DROP on the host store that all devices of the process share."""
        cdef CudaModel* model = <CudaModel*>order.residency
        cdef HostResult result
        order.execute.begin()
        if order.kind == CActionKind.FETCH:
            result = model.store.fetch(model.copy[0], order.text, TEXT_BYTES)
        else:
            result = model.store.drop(model.copy[0])
        order.execute.end()
        if result == HOST_OK:
            order.status = OK
        elif result == HOST_FULL:
            order.status = BAD_PAGES
        elif result == HOST_IN_USE:
            order.status = IN_USE
        elif result == HOST_NOT_HELD:
            order.status = NOT_RESIDENT
        else:
            order.status = DEVICE_ERROR

    # ----- the input lane ------------------------------------------------------------------------

    cdef Lane* run_input(self, CudaOrder* order) noexcept nogil:
        cdef bint revoked
        if order.note_wrong_bool():
            order.status = INVALID_INPUT
            return NULL
        if order.kind != CActionKind.RESERVE and not self.bring_inputs(order):
            order.status = DEVICE_ERROR
            return NULL
        self.lanes.hub.lock()
        revoked = order.revoked
        self.lanes.hub.unlock()
        # A revocation from here on finds the order running in this lane, too late to be seen here. The loop
        # checks for it again when the execute lane takes the order.
        if revoked:
            order.status = ACTION_CANCELLED
            return NULL
        order.earliest_ns = order.run_earliest_ns
        return self.lanes.execute(0)

    cdef bint bring_inputs(self, CudaOrder* order) noexcept nogil:
        """Join the parts in pinned memory, copy them to the device, and wait for the copy.

        The table lies before the first input and is copied with it. The model may still be loading: the last
        started LOAD tells the places of its weights, which are checked again at the execution.
        """
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef CudaModel* model = <CudaModel*>order.residency
        cdef BatchParts* parts = &order.parts
        cdef Tensor* tensor
        cdef size_t index, part
        cdef char* base
        cdef int64_t size, begin
        cdef char* text = order.text
        order.copy_in.begin()
        self.lanes.hub.lock()
        model.write_table(order.variant[0], model.loading_starts, self.arena, self.page_bytes, order.sizes,
                          slot.host + order.variant.table_begin)
        self.lanes.hub.unlock()
        if self.failed(self.api.record_event(slot.input_begin, self.input_stream), b"cuEventRecord", text):
            return False
        for index in range(parts.input_count):
            tensor = &order.variant.inputs[index]
            base = slot.host + tensor.offset
            if order.kind == CActionKind.PROFILE:
                size = tensor.bytes if tensor.open else parts.inputs[index].bytes
                fill_seeded(base, tensor.dtype, size)
            else:
                size = 0
                if tensor.open:
                    size = self.enlarge(order, index, base)
                for part in range(0 if tensor.open else parts.part_count):
                    memcpy(base + size, parts.piece(part, index).buf,
                           parts.piece(part, index).len)
                    size += parts.piece(part, index).len
            if tensor.padded and size < tensor.bytes:
                if size == 0:
                    memset(base, 0, tensor.bytes)
                    size = tensor.bytes
                while size < tensor.bytes:
                    memcpy(base + size, base + size - tensor.row_bytes, tensor.row_bytes)
                    size += tensor.row_bytes
            begin = tensor.offset if index else order.variant.table_begin
            if not self.send(slot, begin, tensor.offset + size, self.input_stream, text):
                self.api.finish_stream(self.input_stream)
                return False
        if not parts.input_count and not self.send(
                slot, order.variant.table_begin, order.variant.table_end, self.input_stream, text):
            return False
        if not self.set_mark(&slot.input_end, self.input_stream, text):
            self.api.finish_stream(self.input_stream)
            return False
        return (self.wait(&slot.input_end, now_ns(), 0, self.spin_ns, text)
                and self.measure(&order.copy_in, slot.input_begin, slot.input_end.event, text))

    cdef bint send(self, CudaSlot* slot, int64_t begin, int64_t end, CUstream stream, char* text) noexcept nogil:
        """Queue the copy of a range of a slot to the device."""
        return begin == end or not self.failed(
            self.api.copy_in(slot.device + begin, slot.host + begin, end - begin, stream), b"cuMemcpyHtoDAsync", text)

    cdef int64_t enlarge(self, CudaOrder* order, size_t index, char* base) noexcept nogil:
        """Join the parts of an input smaller than the variant's, zero-padded. Returns the filled bytes."""
        cdef BatchParts* parts = &order.parts
        cdef Tensor* tensor = &order.variant.inputs[index]
        cdef Input* joined = &parts.inputs[index]
        cdef int64_t size = tensor.used_bytes(joined.dims[0]), at = 0
        cdef int64_t[RANK_MAX] dims
        cdef size_t part
        memset(base, 0, size)
        memcpy(dims, joined.dims, joined.rank * sizeof(int64_t))
        for part in range(parts.part_count):
            if parts.part_count > 1:
                dims[0] = parts.rows[part]
            copy_beginning(<char*>parts.piece(part, index).buf, dims, base + at, tensor.dims.data(),
                           tensor.rank(), dtype_bits(tensor.dtype) // 8, True)
            at += dims[0] * tensor.row_bytes
        return size

    # ----- the execute lane --------------------------------------------------------------------

    cdef Lane* run_infer(self, CudaOrder* order) noexcept nogil:
        """Launch an execution unless it was queued behind its predecessor, and wait for its end."""
        cdef bint followed = order.begun
        if not followed:
            if not self.enter_run(order):
                order.status = NOT_RESIDENT
                return NULL
            self.begin_run(order)
        else:
            order.execute.begin_ns = order.execute.end_ns = self.run_end_ns
        if not (order.status == PENDING and self.wait_for_run(order) and self.measure_run(order)):
            order.status = DEVICE_ERROR
            # The launched kernels still use the slot and the pages.
            self.api.finish_stream(self.execute_stream)
            self.api.finish_stream(self.output_stream)
            self.run_end_ns = now_ns()
            return NULL
        if followed:  # the predecessor's end may have been noticed late, and the device may have idled
            order.execute.begin_ns = max(order.execute.begin_ns, order.execute.end_ns - order.execute.duration_ns)
        self.run_end_ns = order.execute.end_ns
        order.copy_out.begin_ns = order.copy_out.end_ns = order.execute.end_ns
        if order.kind == CActionKind.PROFILE:
            order.status = OK
            return NULL
        order.earliest_ns, order.latest_ns = 0, INT64_MAX
        return &self.lanes.output

    cdef bint measure_run(self, CudaOrder* order) noexcept nogil:
        """Record the duration of an ended execution; for a graph, without the host's time to launch it."""
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        return self.measure(&order.execute, slot.run_begin,
                            slot.run_end.event if order.graph == NULL else slot.graph_end, order.text)

    cdef bint enter_run(self, CudaOrder* order) noexcept nogil:
        """Use the next workspace, if there is one; return whether an execution's model is resident.

        No other execution runs."""
        cdef bint resident
        self.lanes.hub.lock()
        resident = self.is_here(order)
        self.use_next_workspace()
        self.lanes.hub.unlock()
        return resident

    cdef void begin_run(self, CudaOrder* order) noexcept nogil:
        """Queue an execution on the device. A failure sets its status."""
        order.begun = True
        order.execute.begin()
        self.lanes.hub.lock()
        order.graph = self.find_graph(order)
        self.lanes.hub.unlock()
        if not self.launch(order):
            order.status = DEVICE_ERROR

    cdef bint wait_for_run(self, CudaOrder* order) noexcept nogil:
        """Wait for the end of an execution, and meanwhile queue the next behind it. False, with a text, on
        failure."""
        cdef StreamMark* mark = &(<CudaSlot*>order.held_slot).run_end
        cdef int64_t now = now_ns(), pause_ns
        cdef Watch watch = Watch(order.execute.begin_ns, order.expected_ns, self.spin_ns)
        cdef CUresult state
        while True:
            state = watch.look(self.api[0], mark[0], now)
            if state != CUDA_ERROR_NOT_READY:
                return not self.failed(state, b"cuEventQuery", order.text)
            pause_ns = watch.pause_ns(mark[0], now)
            if pause_ns == 0:
                breathe()
            elif not self.begin_behind(order, now, watch.expected_end_ns()):
                self.lanes.execute(0).sleep(now + pause_ns)
            now = now_ns()

    cdef bint begin_behind(self, CudaOrder* running, int64_t now, int64_t end_ns) noexcept nogil:
        """Queue the next execution behind ``running``, so that the device does not idle. Returns whether one
        was queued.

        end_ns: the predicted end of ``running``, which must lie in the window of the next: a queued execution
        cannot be revoked. It pins its model as a running one does. An execution that needs another workspace,
        or whose model is not resident, is not queued early.
        """
        cdef Order* order
        self.lanes.hub.lock()
        order = <Order*>self.lanes.execute(0).next_behind(now, end_ns)
        if order != NULL and (order.kind == CActionKind.RESERVE or order.revoked or not self.is_here(order)
                              or self.workspace_next != 0):
            order = NULL
        if order != NULL:
            self.lanes.execute(0).take_behind()
        self.lanes.hub.unlock()
        if order == NULL:
            return False
        crash_at(order.action_id)
        self.begin_run(<CudaOrder*>order)
        crash_at(running.action_id)
        return True

    cdef bint mend_table(self, CudaOrder* order) noexcept nogil:
        """Copy the table again if the places of the weights have changed since the inputs were copied.

        The model is resident, and keeps its places during the execution: see is_here().
        """
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef CudaModel* model = <CudaModel*>order.residency
        if not model.write_table(order.variant[0], model.claim.run_starts, self.arena, self.page_bytes, order.sizes,
                                 slot.host + order.variant.table_begin):
            return True
        return self.send(slot, order.variant.table_begin, order.variant.table_end, self.execute_stream, order.text)

    cdef CUgraphExec find_graph(self, CudaOrder* order) noexcept nogil:
        """Return the graph of an execution; NULL if its launches are queued singly. The lock is held.

        A graph for another slot or workspace does not fit: open() has exchanged them, and records another.
        """
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef RecordedGraph* graph
        if slot.number >= order.variant.graphs.size():
            return NULL
        graph = &order.variant.graphs[slot.number]
        return graph.launches if graph.slot == slot.device and graph.workspace == self.workspace else NULL

    cdef bint launch(self, CudaOrder* order) noexcept nogil:
        """Queue an execution, and the copies of its outputs behind it."""
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef int64_t begin_ns = thread_time_ns()
        cdef bint done
        if not self.mend_table(order):
            return False
        if order.graph == NULL:
            done = self.launch_all(order)
        else:
            # Events in the graph measure its duration. A mark behind it tells its end: the result of querying
            # an event of a launched graph that has not begun is not documented.
            done = (not self.failed(self.api.launch_graph(order.graph, self.execute_stream), b"cuGraphLaunch", order.text)
                    and self.set_mark(&slot.run_end, self.execute_stream, order.text))
        done = done and self.copy_outputs(order)
        self.launch_ns += thread_time_ns() - begin_ns
        return done

    cdef bint launch_all(self, CudaOrder* order) noexcept nogil:
        """Queue the launches singly."""
        cdef Variant* variant = order.variant
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef CudaModel* model = <CudaModel*>order.residency
        cdef Launch* launch
        cdef Argument* argument
        cdef size_t number, index
        cdef uint64_t value
        cdef char* text = order.text
        if self.failed(self.api.record_event(slot.run_begin, self.execute_stream), b"cuEventRecord", text):
            return False
        for number in range(variant.launches.size()):
            launch = &variant.launches[number]
            for index in range(launch.arguments.size()):
                argument = &launch.arguments[index]
                if argument.source == FROM_WEIGHT:
                    value = argument.value + model.address(
                        argument.index, model.claim.run_starts, self.arena, self.page_bytes)
                elif argument.source == FROM_SIZE:
                    value = order.sizes[argument.index]
                else:
                    value = fixed_value(argument[0], variant[0], slot[0], self.workspace)
                launch.values[index] = value
            if self.failed(self.api.launch(
                    launch.function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0], launch.block[1],
                    launch.block[2], launch.shared_bytes, self.execute_stream, launch.pointers.data(), NULL),
                    b"cuLaunchKernel", text):
                return False
        return self.set_mark(&slot.run_end, self.execute_stream, text)

    cdef bint copy_outputs(self, CudaOrder* order) noexcept nogil:
        """Queue the copies of the outputs behind the execution, on a stream of their own."""
        cdef BatchParts* parts = &order.parts
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef Tensor* tensor
        cdef size_t index
        cdef int64_t size
        cdef char* text = order.text
        if order.kind == CActionKind.PROFILE:
            return True
        if self.failed(self.api.wait_event(self.output_stream, slot.run_end.event, 0), b"cuStreamWaitEvent", text):
            return False
        for index in range(parts.outputs.size()):
            tensor = &order.variant.outputs[index]
            size = tensor.used_bytes(parts.outputs[index].dims[0])
            if size and self.failed(
                    self.api.copy_out(slot.host + tensor.offset, slot.device + tensor.offset, size,
                                      self.output_stream), b"cuMemcpyDtoHAsync", text):
                return False
        return self.set_mark(&slot.output_end, self.output_stream, text)

    # ----- the output lane -----------------------------------------------------------------------

    cdef bint take_outputs(self, CudaOrder* order) noexcept nogil:
        cdef CudaSlot* slot = <CudaSlot*>order.held_slot
        cdef size_t index
        cdef Output* output
        cdef Tensor* tensor
        cdef char* text = order.text
        if not (self.wait(&slot.output_end, now_ns(), 0, self.spin_ns, text)
                and self.measure(&order.copy_out, slot.run_end.event, slot.output_end.event, text)):
            return False
        for index in range(order.parts.outputs.size()):
            output = &order.parts.outputs[index]
            tensor = &order.variant.outputs[index]
            if tensor.open:
                copy_beginning(order.parts.block + output.begin, output.dims, slot.host + tensor.offset,
                               tensor.dims.data(), tensor.rank(), dtype_bits(tensor.dtype) // 8, False)
            else:
                memcpy(order.parts.block + output.begin, slot.host + tensor.offset, output.bytes)
        order.copy_out.end_ns = now_ns()
        return True
