# cython: language_level=3, cdivision=True
"""The CUDA device's native half: lanes, and the actions that run on them. clockwork/device/cuda.py is its only caller
and says what it promises.

Four threads run here, one for each lane: load, input, execute, output. They enter without the GIL and never take it.
An INFER passes through three of them: its inputs are copied while the one before it still executes, and its outputs
while the next one does. What the lanes need of Python (pinned buffers, the model kept alive, memory for the outputs)
is gathered before an action is queued and given back when it is polled. One lock, the hub's, guards lanes and
residency; see csrc/lane.h. The lanes allocate nothing, of the driver or of the process.

A lane that waits for the device asks the driver whether an event has happened, at first without a pause and then at
intervals of a 64th of the time waited (50 us at most). cuEventSynchronize would either spin all the time, which
costs a core for each lane, or sleep until an interrupt, which comes tens of microseconds late.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libc.stdio cimport snprintf

from clockwork.device._cudriver cimport CU_EVENT_DEFAULT, CU_STREAM_NON_BLOCKING, CUDA_ERROR_NOT_READY, cw_cuda_failed
from clockwork.device._parts cimport Input, Output, dtype_bits, fill_seeded, free_parts, list_parts, make_block, pin_parts

from clockwork.device.base import Completion
from clockwork.messages import NEVER_NS, Status

cdef enum:
    SLOT_ALIGNMENT = 256  # of each input and output in a slot: what every vector load is content with
    POLL_SPIN_NS = 20_000  # a wait this young is not worth a sleep
    POLL_SHARE = 64
    POLL_LEAST_NS = 2_000
    POLL_MOST_NS = 50_000

cdef int OK = Status.OK
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int TOO_LATE = Status.TOO_LATE
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED
cdef int64_t ALWAYS = NEVER_NS

SOURCES = {"weight": FROM_WEIGHT, "input": FROM_INPUT, "output": FROM_OUTPUT, "workspace": FROM_WORKSPACE}

INDEX_DTYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # integers and bools, in ONNX's codes


cdef inline int64_t aligned(int64_t size) noexcept nogil:
    return (size + SLOT_ALIGNMENT - 1) // SLOT_ALIGNMENT * SLOT_ALIGNMENT


cdef void* take(size_t count, size_t size) except NULL:
    """Zeroed memory of this process, at least one element of it."""
    cdef void* memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef int set_tensor(Tensor* tensor, int dtype, object shape, bint batches, int64_t offset) except -1:
    cdef int axis
    cdef int64_t count = 1
    tensor.dtype = dtype
    tensor.rank = len(shape)
    tensor.dims = <int64_t*>take(tensor.rank, sizeof(int64_t))
    for axis in range(tensor.rank):
        tensor.dims[axis] = shape[axis]
        count *= tensor.dims[axis]
    tensor.bytes = (count * dtype_bits(dtype) + 7) // 8
    if batches:
        tensor.row_bytes = tensor.bytes // tensor.dims[0]
        if tensor.row_bytes * tensor.dims[0] * 8 != count * dtype_bits(dtype):
            raise ValueError(f"rows of type {dtype} and shape {list(shape)} do not end on a byte")
    tensor.offset = offset
    tensor.padded = batches and dtype in INDEX_DTYPES
    return 0


cdef class Program:
    """The launch lists of one architecture, shared by every model of it on one device.

    variants: (batch, input shapes, output shapes, workspace bytes, launches) each, smaller batches first; launches:
    (function, grid, block, shared bytes, arguments) each; arguments: (source, index, value), the source -1 for a
    value as it is. Indexes and offsets are the caller's to check.
    """

    def __cinit__(self, list input_dtypes, list output_dtypes, size_t weight_count, bint batches, list variants):
        cdef size_t index
        cdef Variant* variant
        cdef int64_t at
        self.input_count = len(input_dtypes)
        self.output_count = len(output_dtypes)
        self.weight_count = weight_count
        self.batches = batches
        self.input_dtypes = <int*>take(self.input_count, sizeof(int))
        self.output_dtypes = <int*>take(self.output_count, sizeof(int))
        for index in range(self.input_count):
            self.input_dtypes[index] = input_dtypes[index]
        for index in range(self.output_count):
            self.output_dtypes[index] = output_dtypes[index]
        self.variants = <Variant*>take(len(variants), sizeof(Variant))
        for batch, shapes, output_shapes, workspace, launches in variants:
            variant = &self.variants[self.variant_count]
            self.variant_count += 1
            variant.batch = batch
            variant.workspace_bytes = workspace
            variant.inputs = <Tensor*>take(self.input_count, sizeof(Tensor))
            variant.outputs = <Tensor*>take(self.output_count, sizeof(Tensor))
            at = 0
            for index in range(self.input_count):
                set_tensor(&variant.inputs[index], self.input_dtypes[index], shapes[index], batches, at)
                at += aligned(variant.inputs[index].bytes)
            for index in range(self.output_count):
                set_tensor(&variant.outputs[index], self.output_dtypes[index], output_shapes[index], batches, at)
                at += aligned(variant.outputs[index].bytes)
            variant.slot_bytes = at
            self.set_launches(variant.batch, launches)

    def set_launches(self, batch, list launches):
        """Of the variant that was made last."""
        cdef Variant* variant = &self.variants[self.variant_count - 1]
        cdef Launch* launch
        cdef Argument* argument
        cdef int axis
        cdef size_t index
        variant.launches = <Launch*>take(len(launches), sizeof(Launch))
        for function, grid, block, shared, arguments in launches:
            launch = &variant.launches[variant.launch_count]
            variant.launch_count += 1
            launch.function = <CUfunction><size_t>function
            for axis in range(3):
                launch.grid[axis] = grid[axis]
                launch.block[axis] = block[axis]
            launch.shared_bytes = shared
            launch.argument_count = len(arguments)
            launch.arguments = <Argument*>take(launch.argument_count, sizeof(Argument))
            launch.values = <uint64_t*>take(launch.argument_count, sizeof(uint64_t))
            launch.pointers = <void**>take(launch.argument_count, sizeof(void*))
            for index in range(launch.argument_count):
                source, place, value = arguments[index]
                argument = &launch.arguments[index]
                argument.source = FROM_VALUE if source < 0 else <Source><int>source
                argument.index = place
                argument.value = value
                launch.pointers[index] = &launch.values[index]

    @property
    def slot_bytes(self):
        """Of the largest variant."""
        return max((self.variants[index].slot_bytes for index in range(self.variant_count)), default=0)

    @property
    def workspace_bytes(self):
        return max((self.variants[index].workspace_bytes for index in range(self.variant_count)), default=0)

    cdef Variant* choose(self, Parts* parts) noexcept:
        """The smallest variant that runs these inputs; NULL if there is none."""
        cdef size_t index, tensor
        cdef int axis
        cdef bint fits
        cdef Variant* variant
        cdef Input* joined
        for index in range(self.variant_count):
            variant = &self.variants[index]
            fits = True
            for tensor in range(self.input_count):
                joined = &parts.inputs[tensor]
                if joined.rank != variant.inputs[tensor].rank:
                    fits = False
                    break
                for axis in range(joined.rank):
                    if self.batches and axis == 0:
                        fits = fits and joined.dims[0] <= variant.batch and joined.dims[0] == parts.inputs[0].dims[0]
                    else:
                        fits = fits and joined.dims[axis] == variant.inputs[tensor].dims[axis]
            if fits:
                return variant
        return NULL

    def __dealloc__(self):
        cdef size_t index, tensor, launch
        cdef Variant* variant
        for index in range(self.variant_count):
            variant = &self.variants[index]
            if variant.inputs != NULL:
                for tensor in range(self.input_count):
                    free(variant.inputs[tensor].dims)
            if variant.outputs != NULL:
                for tensor in range(self.output_count):
                    free(variant.outputs[tensor].dims)
            for launch in range(variant.launch_count):
                free(variant.launches[launch].arguments)
                free(variant.launches[launch].values)
                free(variant.launches[launch].pointers)
            free(variant.inputs)
            free(variant.outputs)
            free(variant.launches)
        free(self.variants)
        free(self.input_dtypes)
        free(self.output_dtypes)


cdef class Model:
    """One prepared model: its program, its weights in the host store, and whether it is resident.

    source: address of the laid-out weights in pinned memory, which the caller keeps. runs: (pages, bytes to copy)
    each. weights: (run, offset) each, in the program's order.
    """

    def __cinit__(self, int64_t model_id, Program program, size_t source, list runs, list weights):
        cdef int run
        cdef size_t index
        cdef ModelState* state = &self.state
        self.model_id = model_id
        self.program = program
        state.source = <char*>source
        state.claim.run_count = len(runs)
        state.claim.run_pages = <int64_t*>take(len(runs), sizeof(int64_t))
        state.claim.run_starts = <int64_t*>take(len(runs), sizeof(int64_t))
        state.run_bytes = <int64_t*>take(len(runs), sizeof(int64_t))
        state.weights = <Weight*>take(len(weights), sizeof(Weight))
        for run in range(state.claim.run_count):
            state.claim.run_pages[run], state.run_bytes[run] = runs[run]
            state.claim.run_starts[run] = -1
        for index, (place, offset) in enumerate(weights):
            state.weights[index].run, state.weights[index].offset = place, offset

    def __dealloc__(self):
        free(self.state.claim.run_pages)
        free(self.state.claim.run_starts)
        free(self.state.run_bytes)
        free(self.state.weights)


@cython.no_gc_clear  # its end still needs the table
cdef class Core:
    """The lanes over an arena of device memory, which the caller owns, as it does the memory of slots and workspace.

    Methods are for the loop's thread except where they say otherwise; __init__ and release() need the context to be
    current. slot_count slots are made without memory; see exchange_slot().
    """

    def __cinit__(self, Table table, size_t context, CUdeviceptr arena, size_t page_bytes, int64_t page_count,
                  int run_ahead, int64_t spin_ns):
        self.table = table
        self.api = &table.api
        self.context = <CUcontext>context
        self.arena = arena
        self.page_bytes = page_bytes
        self.page_count = page_count
        self.run_ahead = run_ahead
        self.spin_ns = spin_ns
        self.models = {}
        self.statuses = {int(status): status for status in Status}
        self.owners = <cw_claim**>take(page_count, sizeof(cw_claim*))
        # One for each action that the lanes may hold, and one that prepare() may be enlarging.
        self.slot_count = run_ahead + 1
        self.slots = <Slot*>take(self.slot_count, sizeof(Slot))
        if cw_hub_init(&self.hub):
            raise OSError("cannot make an eventfd")
        cw_lane_init(&self.load_lane, &self.hub)
        cw_lane_init(&self.input_lane, &self.hub)
        cw_lane_init(&self.execute_lane, &self.hub)
        cw_lane_init(&self.output_lane, &self.hub)
        self.opened = True

    def __init__(self, *arguments):
        """Raises CudaError."""
        try:
            self.make_all()
        except BaseException:
            self.release()
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

    # ----- threads and life ------------------------------------------------------------------

    def load_loop(self):
        """Run the load lane until stop(). The target of a thread, as are the three below."""
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-load")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.load_lane, self.spin_ns)
                if action == NULL:
                    break
                if cw_now() > action.latest_ns:
                    action.base.status = TOO_LATE
                elif action.kind == KIND_LOAD:
                    self.run_load(action)
                else:
                    self.run_unload(action)
                cw_lane_end(&self.load_lane, &action.base)

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
                    action.base.status = TOO_LATE
                elif self.bring_inputs(action):
                    cw_hub_lock(&self.hub)
                    ready = not action.revoked
                    cw_hub_unlock(&self.hub)
                    # A revocation from here on finds it running in this lane, and leaves its mark too late to be
                    # seen here; the execute lane looks for it again.
                    action.base.status = CW_PENDING if ready else ACTION_CANCELLED
                else:
                    action.base.status = DEVICE_ERROR
                if ready:
                    action.base.earliest_ns = action.earliest_ns
                    cw_lane_pass(&self.input_lane, &self.execute_lane, &action.base)
                else:
                    self.drop_slot(action)
                    cw_lane_end(&self.input_lane, &action.base)

    def execute_loop(self):
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-execute")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.execute_lane, self.spin_ns)
                if action == NULL:
                    break
                if action.revoked:
                    action.base.status = ACTION_CANCELLED
                elif cw_now() > action.latest_ns:
                    action.base.status = TOO_LATE
                else:
                    self.run_infer(action)
                if action.base.status == CW_PENDING:
                    action.base.earliest_ns = 0
                    cw_lane_pass(&self.execute_lane, &self.output_lane, &action.base)
                else:
                    self.drop_slot(action)
                    cw_lane_end(&self.execute_lane, &action.base)

    def output_loop(self):
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-output")
            self.api.set_context(self.context)
            while True:
                action = <Action*>cw_lane_take(&self.output_lane, self.spin_ns)
                if action == NULL:
                    break
                action.base.status = OK if self.take_outputs(action) else DEVICE_ERROR
                self.drop_slot(action)
                cw_lane_end(&self.output_lane, &action.base)

    def stop(self):
        """Have the loops return, each after what it is doing."""
        with nogil:
            cw_lane_stop(&self.load_lane)
            cw_lane_stop(&self.input_lane)
            cw_lane_stop(&self.execute_lane)
            cw_lane_stop(&self.output_lane)

    def release(self):
        """Free everything. The loops must have returned, and the context be current."""
        cdef int index
        cdef Slot* slot
        if not self.opened:
            return
        self.opened = False
        self.drop_queued()
        self.models.clear()
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
        cw_lane_free(&self.input_lane)
        cw_lane_free(&self.execute_lane)
        cw_lane_free(&self.output_lane)
        cw_hub_free(&self.hub)
        free(self.slots)
        free(self.owners)

    def __dealloc__(self):
        assert not self.opened, "release() comes first: it needs the context"

    def reset(self):
        """Wait for what runs; drop what is queued, what has not been polled, and every residency."""
        cdef Model model
        self.drop_queued()
        for model in list(self.models.values()):
            cw_hub_lock(&self.hub)
            model.state.resident = False
            cw_claim_free(self.owners, &model.state.claim)
            cw_hub_unlock(&self.hub)

    cdef int drop_queued(self) except -1:
        """In the order in which actions pass, so that none is left behind."""
        cdef cw_lane** lanes = [&self.input_lane, &self.execute_lane, &self.output_lane, &self.load_lane]
        cdef cw_action* queued
        cdef int index
        for index in range(4):
            with nogil:
                queued = cw_lane_clear(lanes[index])
            self.free_list(queued)
        self.free_list(cw_hub_take(&self.hub))
        return 0

    # ----- models, from the preparation thread ---------------------------------------------------

    def add_model(self, Model model):
        self.models[model.model_id] = model

    def has_model(self, model_id):
        return model_id in self.models

    def remove_model(self, model_id):
        """The model, if it was known. Raises ValueError if it is resident or has actions under way."""
        cdef Model model = self.models.get(model_id)
        if model is None:
            return None
        if model.state.resident or model.pending:
            raise ValueError(f"model {model_id} is {'resident' if model.state.resident else 'in use'}")
        return self.models.pop(model_id)

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
                    if self.slots[index].bytes >= size:
                        continue
                    small = True
                    if not self.slots[index].busy:
                        old_host, old_device = <size_t>self.slots[index].host, self.slots[index].device
                        self.slots[index].host, self.slots[index].device = <char*>host, device
                        self.slots[index].bytes = size
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

    def memory(self):
        """Bytes by purpose, and counts."""
        cdef int64_t page, held = 0
        cdef int index
        cdef size_t slots = 0
        with nogil:
            cw_hub_lock(&self.hub)
            for page in range(self.page_count):
                held += self.owners[page] != NULL
            for index in range(self.slot_count):
                slots += self.slots[index].bytes
            cw_hub_unlock(&self.hub)
        return {
            "arena_bytes": self.page_count * self.page_bytes,
            "resident_bytes": held * self.page_bytes,
            "io_bytes": slots,
            "models": len(self.models),
        }

    @property
    def fault_text(self):
        """What broke the context, after which every call fails; "" while it is whole."""
        cw_hub_lock(&self.hub)
        text = <bytes>self.fault if self.broken else b""
        cw_hub_unlock(&self.hub)
        return text.decode(errors="replace")

    # ----- actions, from the loop's thread -----------------------------------------------------

    def fileno(self):
        return self.hub.event_fd

    def start_load(self, order):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_LOAD, order)
        cdef int index
        if model is None:
            return
        if len(order.run_starts) != model.state.claim.run_count:
            self.refuse(action, BAD_PAGES, f"{len(order.run_starts)} runs of pages for {model.state.claim.run_count}")
            return
        action.run_starts = <int64_t*>calloc(model.state.claim.run_count + 1, sizeof(int64_t))
        if action.run_starts == NULL:
            self.free_action(action)
            raise MemoryError
        for index in range(model.state.claim.run_count):
            action.run_starts[index] = order.run_starts[index]
        self.queue_load(action)

    def start_unload(self, order):
        cdef Action* action = self.new_action(KIND_UNLOAD, order)
        if action.base.status == CW_PENDING:
            self.queue_load(action)

    cdef int queue_load(self, Action* action) except -1:
        if cw_lane_push(&self.load_lane, &action.base, self.run_ahead):
            self.refuse(action, DEVICE_ERROR, f"the lane holds {self.run_ahead} actions, which is its bound")
        return 0

    def start_infer(self, order, parts):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_INFER, order)
        if model is not None:
            self.start_run(action, model, parts, False)

    def start_profile(self, order):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_PROFILE, order)
        cdef size_t index
        if model is not None:
            dtypes = [model.program.input_dtypes[index] for index in range(model.program.input_count)]
            views = [[(dtype, shape, None) for dtype, shape in zip(dtypes, order.shapes)]]
            self.start_run(action, model, views, True)

    cdef int start_run(self, Action* action, Model model, object views, bint without_data) except -1:
        """Queue an INFER or PROFILE whose inputs are what the model takes, or end it with a sentence."""
        cdef int held
        try:
            problem = pin_parts(&action.parts, model.program.input_count, model.program.input_dtypes, views, without_data)
            if problem is None:
                problem = self.describe_run(action, model.program)
        except BaseException:
            self.free_action(action)
            raise
        if problem is not None:
            self.refuse(action, INVALID_INPUT, problem)
            return 0
        cw_hub_lock(&self.hub)
        held = self.input_lane.length + self.execute_lane.length + self.output_lane.length
        cw_hub_unlock(&self.hub)
        if held < self.run_ahead:  # only this thread adds to them
            action.slot = self.take_slot()
            assert action.slot != NULL, "more actions than the lanes may hold"
            assert <int64_t>action.slot.bytes >= action.variant.slot_bytes, "prepare() has not grown the slots"
        if held >= self.run_ahead or cw_lane_push(&self.input_lane, &action.base, self.run_ahead):
            self.refuse(action, DEVICE_ERROR, f"the lane holds {self.run_ahead} actions, which is its bound")
        return 0

    cdef object describe_run(self, Action* action, Program program):
        """Choose the variant, and make the outputs' block. A sentence if nothing runs these inputs, else None."""
        cdef size_t index
        cdef Parts* parts = &action.parts
        cdef Tensor* tensor
        cdef Output* output
        if parts.part_count > 1 and not program.batches:
            return f"a batch of {parts.part_count} parts; this program takes one"
        action.variant = program.choose(parts)
        if action.variant == NULL:
            shapes = [[parts.inputs[index].dims[axis] for axis in range(parts.inputs[index].rank)]
                      for index in range(parts.input_count)]
            return f"the program was not compiled for inputs of the shapes {shapes}; see its variants"
        if action.kind == KIND_PROFILE:
            return None
        parts.outputs = <Output*>take(program.output_count, sizeof(Output))
        parts.part_ends = <int64_t*>take(program.output_count * parts.part_count, sizeof(int64_t))
        parts.output_count = program.output_count
        for index in range(program.output_count):
            tensor, output = &action.variant.outputs[index], &parts.outputs[index]
            output.dtype, output.rank = tensor.dtype, tensor.rank
            memcpy(output.dims, tensor.dims, tensor.rank * sizeof(int64_t))
            output.bytes = tensor.bytes
            if program.batches:
                output.dims[0] = parts.inputs[0].dims[0]
                output.bytes = tensor.row_bytes * output.dims[0]
        make_block(parts)
        return None

    def revoke(self, action_id):
        cdef cw_action* found = cw_lane_revoke(&self.input_lane, action_id, ACTION_CANCELLED)
        cdef bint running = False
        if found == NULL:
            cw_hub_lock(&self.hub)
            found = self.input_lane.running
            if found != NULL and found.action_id == action_id:
                (<Action*>found).revoked = running = True
            found = NULL
            cw_hub_unlock(&self.hub)
            if not running:
                found = cw_lane_revoke(&self.execute_lane, action_id, ACTION_CANCELLED)
        if found != NULL:
            self.drop_slot(<Action*>found)
        elif not running:
            cw_lane_revoke(&self.load_lane, action_id, ACTION_CANCELLED)

    def poll(self):
        cdef cw_action* action = cw_hub_take(&self.hub)
        cdef cw_action* after
        cdef list ended = []
        while action != NULL:
            after = action.next
            ended.append(self.finish(<Action*>action))
            action = after
        return ended

    cdef Action* new_action(self, Kind kind, object order) except NULL:
        """An action with what all orders share; it holds its model, or has been refused if that is not known."""
        cdef int64_t action_id = order.action_id, load_id = order.load_id
        cdef int64_t earliest_ns = order.earliest_ns, latest_ns = order.latest_ns
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = <Action*>calloc(1, sizeof(Action))
        if action == NULL:
            raise MemoryError
        action.base.action_id = action_id
        action.base.latest_ns = ALWAYS
        if kind == KIND_LOAD or kind == KIND_UNLOAD:
            action.base.earliest_ns = earliest_ns
        action.base.status = CW_PENDING
        action.earliest_ns = earliest_ns
        action.latest_ns = latest_ns
        action.kind = kind
        action.load_id = load_id
        if model is None:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return action
        model.pending += 1
        Py_INCREF(model)
        action.owner = <PyObject*>model
        action.model = &model.state
        return action

    cdef int refuse(self, Action* action, int status, str text) except -1:
        """End an action that was never queued."""
        cdef bytes message = text.encode()[:TEXT_BYTES - 1]
        memcpy(action.text, <const char*>message, len(message))
        self.drop_slot(action)
        action.base.status = status
        cw_hub_lock(&self.hub)
        cw_hub_end(&self.hub, &action.base)
        cw_hub_unlock(&self.hub)
        return 0

    cdef object finish(self, Action* action):
        """The Completion of an ended action, which is freed."""
        cdef list parts = []
        if action.base.status == OK and action.parts.block != NULL:
            parts = list_parts(&action.parts)
        result = Completion(
            action.base.action_id,
            self.statuses[action.base.status],
            (<bytes>action.text).decode(errors="replace"),
            [action.copy_in.begin_ns, action.copy_in.end_ns, action.copy_in.duration_ns],
            [action.execute.begin_ns, action.execute.end_ns, action.execute.duration_ns],
            [action.copy_out.begin_ns, action.copy_out.end_ns, action.copy_out.duration_ns],
            parts,
        )
        self.free_action(action)
        return result

    cdef int free_action(self, Action* action) except -1:
        cdef Model model
        self.drop_slot(action)
        free_parts(&action.parts)
        if action.owner != NULL:
            model = <Model>action.owner
            model.pending -= 1
            Py_DECREF(model)
        free(action.run_starts)
        free(action)
        return 0

    cdef int free_list(self, cw_action* head) except -1:
        cdef cw_action* after
        while head != NULL:
            after = head.next
            self.free_action(<Action*>head)
            head = after
        return 0

    cdef Slot* take_slot(self) noexcept nogil:
        """A slot that nobody uses, the largest of them; NULL if there is none."""
        cdef int index
        cdef Slot* best = NULL
        cw_hub_lock(&self.hub)
        for index in range(self.slot_count):
            if not self.slots[index].busy and (best == NULL or self.slots[index].bytes > best.bytes):
                best = &self.slots[index]
        if best != NULL:
            best.busy = True
        cw_hub_unlock(&self.hub)
        return best

    cdef void drop_slot(self, Action* action) noexcept nogil:
        if action.slot != NULL:
            cw_hub_lock(&self.hub)
            action.slot.busy = False
            action.slot = NULL
            cw_hub_unlock(&self.hub)

    # ----- the driver, from the lanes ------------------------------------------------------------

    cdef bint failed(self, CUresult result, const char* call, char* text) noexcept nogil:
        """Whether a call failed; then a sentence, and whether the context broke is looked at."""
        cdef CUresult state
        if not cw_cuda_failed(self.api, result, call, text, TEXT_BYTES):
            return False
        state = self.api.query_event(self.load_end)
        if state != 0 and state != CUDA_ERROR_NOT_READY:
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
        cdef ModelState* model = action.model
        cdef int status = OK
        action.execute.begin_ns = action.execute.end_ns = cw_now()
        cw_hub_lock(&self.hub)
        if model.resident:
            snprintf(action.text, TEXT_BYTES, "the model is resident already, as load %lld", <long long>model.load_id)
            status = DEVICE_ERROR
        elif cw_claim_pages(self.owners, self.page_count, &model.claim, action.run_starts, action.text, TEXT_BYTES):
            status = BAD_PAGES
        cw_hub_unlock(&self.hub)
        if status == OK and not self.copy_weights(action):
            status = DEVICE_ERROR
            # Copies that are under way still write to the pages.
            self.api.finish_stream(self.load_stream)
            cw_hub_lock(&self.hub)
            cw_claim_free(self.owners, &model.claim)
            cw_hub_unlock(&self.hub)
        if status == OK:
            cw_hub_lock(&self.hub)
            model.load_id = action.load_id
            model.resident = True
            cw_hub_unlock(&self.hub)
        action.base.status = status

    cdef bint copy_weights(self, Action* action) noexcept nogil:
        """Copy the runs, a page at a time, and wait until they have arrived."""
        cdef ModelState* model = action.model
        cdef char* source = model.source
        cdef int64_t done, piece
        cdef CUdeviceptr target
        cdef int run
        cdef char* text = action.text
        if self.failed(self.api.record_event(self.load_begin, self.load_stream), b"cuEventRecord", text):
            return False
        for run in range(model.claim.run_count):
            target = self.arena + model.claim.run_starts[run] * self.page_bytes
            done = 0
            while done < model.run_bytes[run]:
                piece = min(model.run_bytes[run] - done, <int64_t>self.page_bytes)
                if self.failed(self.api.copy_in(target + done, source + done, piece, self.load_stream),
                               b"cuMemcpyHtoDAsync", text):
                    return False
                done += piece
            source += model.claim.run_pages[run] * self.page_bytes
        if self.failed(self.api.record_event(self.load_end, self.load_stream), b"cuEventRecord", text):
            return False
        return (self.wait(self.load_end, b"cuEventQuery", text)
                and self.measure(&action.execute, self.load_begin, self.load_end, text))

    cdef void run_unload(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        action.execute.begin_ns = cw_now()
        cw_hub_lock(&self.hub)
        if not model.resident or model.load_id != action.load_id:
            action.base.status = NOT_RESIDENT
        elif self.is_used(model, action.load_id):
            action.base.status = IN_USE
        else:
            # No INFER is under way, and none can start.
            model.resident = False
            cw_claim_free(self.owners, &model.claim)
            action.base.status = OK
        cw_hub_unlock(&self.hub)
        action.execute.end_ns = cw_now()
        action.execute.duration_ns = action.execute.end_ns - action.execute.begin_ns

    cdef bint is_used(self, ModelState* model, int64_t load_id) noexcept nogil:
        """Whether work on this residency waits or runs. The lock is held."""
        cdef cw_lane** lanes = [&self.input_lane, &self.execute_lane]
        cdef Action* action
        cdef int index
        for index in range(2):
            action = <Action*>lanes[index].running
            if action != NULL and action.model == model and action.load_id == load_id:
                return True
            action = <Action*>lanes[index].head
            while action != NULL:
                if action.model == model and action.load_id == load_id:
                    return True
                action = <Action*>action.base.next
        return False

    # ----- the input lane ------------------------------------------------------------------------

    cdef bint bring_inputs(self, Action* action) noexcept nogil:
        """Join the parts in pinned memory, copy them to the device, and wait until they have arrived."""
        cdef Slot* slot = action.slot
        cdef Parts* parts = &action.parts
        cdef Tensor* tensor
        cdef size_t index, part
        cdef char* base
        cdef int64_t size, row
        cdef char* text = action.text
        action.copy_in.begin_ns = action.copy_in.end_ns = cw_now()
        if self.failed(self.api.record_event(slot.input_begin, self.input_stream), b"cuEventRecord", text):
            return False
        for index in range(parts.input_count):
            tensor = &action.variant.inputs[index]
            base = slot.host + tensor.offset
            if action.kind == KIND_PROFILE:
                size = parts.inputs[index].bytes
                fill_seeded(base, tensor.dtype, size)
            else:
                size = 0
                for part in range(parts.part_count):
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
                and self.measure(&action.copy_in, slot.input_begin, slot.input_end, text))

    # ----- the execute lane --------------------------------------------------------------------

    cdef void run_infer(self, Action* action) noexcept nogil:
        """Leaves the status pending if the outputs are on their way."""
        cdef ModelState* model = action.model
        cdef CUdeviceptr workspace
        cdef Slot* slot = action.slot
        cdef char* text = action.text
        cdef bint resident
        cw_hub_lock(&self.hub)
        # It stays resident while this action runs: UNLOAD looks at the lane under the same lock.
        resident = model.resident and model.load_id == action.load_id
        if self.workspace_next != 0:
            self.workspace_old, self.workspace, self.workspace_next = self.workspace, self.workspace_next, 0
        workspace = self.workspace
        cw_hub_unlock(&self.hub)
        if not resident:
            action.base.status = NOT_RESIDENT
            return
        action.execute.begin_ns = action.execute.end_ns = cw_now()
        if not (self.launch_all(action, workspace)
                and self.wait(slot.run_end, b"cuEventQuery", text)
                and self.measure(&action.execute, slot.run_begin, slot.run_end, text)):
            action.base.status = DEVICE_ERROR
            # What was launched still uses the slot and the pages.
            self.api.finish_stream(self.execute_stream)
            self.api.finish_stream(self.output_stream)
            return
        action.copy_out.begin_ns = action.copy_out.end_ns = action.execute.end_ns
        if action.kind == KIND_PROFILE:
            action.base.status = OK

    cdef bint launch_all(self, Action* action, CUdeviceptr workspace) noexcept nogil:
        """Queue the launches, and behind them the copies of the outputs, on a stream of their own."""
        cdef Variant* variant = action.variant
        cdef Parts* parts = &action.parts
        cdef Slot* slot = action.slot
        cdef ModelState* model = action.model
        cdef Launch* launch
        cdef Argument* argument
        cdef Weight* weight
        cdef Tensor* tensor
        cdef size_t number, index
        cdef uint64_t value
        cdef char* text = action.text
        if self.failed(self.api.record_event(slot.run_begin, self.execute_stream), b"cuEventRecord", text):
            return False
        for number in range(variant.launch_count):
            launch = &variant.launches[number]
            for index in range(launch.argument_count):
                argument = &launch.arguments[index]
                value = argument.value
                if argument.source == FROM_WEIGHT:
                    weight = &model.weights[argument.index]
                    value += self.arena + model.claim.run_starts[weight.run] * self.page_bytes + weight.offset
                elif argument.source == FROM_INPUT:
                    value += slot.device + variant.inputs[argument.index].offset
                elif argument.source == FROM_OUTPUT:
                    value += slot.device + variant.outputs[argument.index].offset
                elif argument.source == FROM_WORKSPACE:
                    value += workspace
                launch.values[index] = value
            if self.failed(self.api.launch(
                    launch.function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0], launch.block[1],
                    launch.block[2], launch.shared_bytes, self.execute_stream, launch.pointers, NULL),
                    b"cuLaunchKernel", text):
                return False
        if self.failed(self.api.record_event(slot.run_end, self.execute_stream), b"cuEventRecord", text):
            return False
        if action.kind == KIND_PROFILE:
            return True
        if self.failed(self.api.wait_event(self.output_stream, slot.run_end, 0), b"cuStreamWaitEvent", text):
            return False
        for index in range(parts.output_count):
            tensor = &variant.outputs[index]
            if parts.outputs[index].bytes and self.failed(
                    self.api.copy_out(slot.host + tensor.offset, slot.device + tensor.offset,
                                      parts.outputs[index].bytes, self.output_stream), b"cuMemcpyDtoHAsync", text):
                return False
        return not self.failed(self.api.record_event(slot.output_end, self.output_stream), b"cuEventRecord", text)

    # ----- the output lane -----------------------------------------------------------------------

    cdef bint take_outputs(self, Action* action) noexcept nogil:
        cdef Slot* slot = action.slot
        cdef size_t index
        cdef Output* output
        cdef char* text = action.text
        if not (self.wait(slot.output_end, b"cuEventQuery", text)
                and self.measure(&action.copy_out, slot.run_end, slot.output_end, text)):
            return False
        for index in range(action.parts.output_count):
            output = &action.parts.outputs[index]
            memcpy(action.parts.block + output.begin, slot.host + action.variant.outputs[index].offset, output.bytes)
        action.copy_out.end_ns = cw_now()
        return True
