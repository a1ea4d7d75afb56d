# cython: language_level=3, cdivision=True
"""The CUDA device's native half: the actions, as the loop's thread sees them. clockwork/device/cuda.py is its only
caller and says what it promises; what runs without the GIL is in _cuda_lanes.pyx.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from cpython.ref cimport PyObject

from clockwork.device._cuda_lanes cimport (
    CW_PENDING, KIND_INFER, KIND_LOAD, KIND_PROFILE, KIND_UNLOAD, cw_hub_end, cw_hub_lock, cw_hub_take, cw_hub_unlock,
    cw_lane, cw_lane_clear, cw_lane_push, cw_lane_revoke)
from clockwork.device._cuda_model cimport Tensor, cw_claim_free, take
from clockwork.device._cudriver cimport TEXT_BYTES, CUdeviceptr, Table
from clockwork.device._parts cimport Output, Parts, free_parts, list_parts, make_block, pin_parts

from clockwork.device.base import Completion
from clockwork.messages import NEVER_NS, Status

cdef int OK = Status.OK
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED
cdef int64_t ALWAYS = NEVER_NS


@cython.no_gc_clear  # its end still needs the table
cdef class Core(Lanes):
    """Models and actions. Methods are for the loop's thread except where they say otherwise.

    __init__ and release() need the context to be current.
    """

    def __cinit__(self, Table table, size_t context, CUdeviceptr arena, size_t page_bytes, int64_t page_count,
                  int run_ahead, int64_t spin_ns):
        self.models = {}
        self.statuses = {int(status): status for status in Status}

    def release(self):
        """Free everything. The loops must have returned, and the context be current."""
        if self.opened:
            self.drop_queued()
            self.models.clear()
            self.free_all()

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
