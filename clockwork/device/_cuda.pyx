# cython: language_level=3, cdivision=True
"""The CUDA device's native half: the actions, as the loop's thread sees them. clockwork/device/cuda.py is its only
caller and says what it promises; what runs without the GIL is in _cuda_lanes.pyx.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from clockwork.device._cuda_host cimport cw_host_pin
from clockwork.device._cuda_lanes cimport Slot
from clockwork.device._cuda_model cimport Tensor, take, used_bytes
from clockwork.device._cudriver cimport CUdeviceptr, Table
from clockwork.device._orders cimport (
    CW_PENDING, KIND_DROP, KIND_FETCH, KIND_INFER, KIND_LOAD, KIND_PROFILE, KIND_UNLOAD, Order, Orders, cw_action,
    cw_claim_free, cw_hub_lock, cw_hub_take, cw_hub_unlock, cw_lane, cw_lane_clear, cw_lane_revoke)
from clockwork.device._parts cimport Output, Parts, make_block, pin_parts

from clockwork.wire.messages import NEVER_NS, Status

cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED
cdef int64_t ALWAYS = NEVER_NS


@cython.no_gc_clear  # its end still needs the table
cdef class Core(Lanes):
    """Models and actions. Methods are for the loop's thread except where they say otherwise.

    __init__ and release() need the context to be current.
    """

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
            model.at.resident = False
            cw_claim_free(self.owners, &model.at.claim)
            cw_hub_unlock(&self.hub)

    cdef int drop_queued(self) except -1:
        """In the order in which actions pass, so that none is left behind."""
        cdef cw_lane** lanes = [&self.input_lane, &self.execute_lane, &self.output_lane, &self.load_lane,
                                &self.fetch_lane]
        cdef cw_action* queued
        cdef int index
        for index in range(5):
            with nogil:
                queued = cw_lane_clear(lanes[index])
            self.free_list(queued)
        self.free_list(cw_hub_take(&self.hub))
        return 0

    def memory(self):
        """Bytes by purpose, and counts."""
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
        }

    # ----- actions, from the loop's thread -----------------------------------------------------

    def start_load(self, order):
        cdef Action* action = self.new_action(KIND_LOAD, order)
        if action.order.base.status == CW_PENDING and self.take_runs(&action.order, order):
            if action.model.host != NULL:
                action.pins = True
                cw_host_pin(action.model.host, action.model.weights_there, 1)
            self.queue(&action.order, &self.load_lane)

    def start_unload(self, order):
        cdef Action* action = self.new_action(KIND_UNLOAD, order)
        if action.order.base.status == CW_PENDING:
            self.queue(&action.order, &self.load_lane)

    def start_fetch(self, order):
        """fetch_loop() must run, and the models be made for a host store with a budget: so for a DROP."""
        cdef Action* action = self.new_action(KIND_FETCH, order)
        if action.order.base.status == CW_PENDING:
            self.queue(&action.order, &self.fetch_lane)

    def start_drop(self, order):
        cdef Action* action = self.new_action(KIND_DROP, order)
        if action.order.base.status == CW_PENDING:
            self.queue(&action.order, &self.fetch_lane)

    def start_infer(self, order, parts):
        cdef Action* action = self.new_action(KIND_INFER, order)
        if action.order.base.status == CW_PENDING:
            self.start_run(action, parts, False)

    def start_profile(self, order):
        cdef Action* action = self.new_action(KIND_PROFILE, order)
        cdef Program program
        cdef size_t index
        if action.order.base.status == CW_PENDING:
            program = (<Model>action.order.owner).program
            dtypes = [program.input_dtypes[index] for index in range(program.input_count)]
            self.start_run(action, [[(dtype, shape, None) for dtype, shape in zip(dtypes, order.shapes)]], True)

    cdef int start_run(self, Action* action, object views, bint without_data) except -1:
        """Queue an INFER or PROFILE whose inputs are what the model takes, or end it with a sentence."""
        cdef Program program = (<Model>action.order.owner).program
        cdef int held
        cdef bint found
        try:
            problem = pin_parts(&action.order.parts, program.input_count, program.input_dtypes, views, without_data)
            if problem is None:
                problem = self.describe_run(action, program)
        except BaseException:
            self.free_order(&action.order)
            raise
        if problem is not None:
            self.refuse(&action.order, INVALID_INPUT, problem)
            return 0
        cw_hub_lock(&self.hub)
        held = self.input_lane.length + self.execute_lane.length + self.output_lane.length
        cw_hub_unlock(&self.hub)
        if held >= self.run_ahead:
            self.refuse_full(&action.order)
            return 0
        # Only this thread adds to them.
        found = self.take_room(&action.order)
        assert found, "more actions than the lanes may hold"
        action.slot = <Slot*>action.order.room
        assert <int64_t>action.order.room.bytes >= action.variant.slot_bytes, "prepare() has not grown the slots"
        self.queue(&action.order, &self.input_lane)
        return 0

    cdef object describe_run(self, Action* action, Program program):
        """Choose the variant, and make the outputs' block. A sentence if nothing runs these inputs, else None."""
        cdef size_t index
        cdef Parts* parts = &action.order.parts
        cdef Tensor* tensor
        cdef Output* output
        cdef int axis
        if parts.part_count > 1 and not program.batches:
            return f"a batch of {parts.part_count} parts; this program takes one"
        action.variant = program.choose(parts, action.sizes)
        if action.variant == NULL:
            shapes = [[parts.inputs[index].dims[axis] for axis in range(parts.inputs[index].rank)]
                      for index in range(parts.input_count)]
            return f"the program was not compiled for inputs of the shapes {shapes}; see its variants"
        if action.order.kind == KIND_PROFILE:
            return None
        parts.outputs = <Output*>take(program.output_count, sizeof(Output))
        parts.part_ends = <int64_t*>take(program.output_count * parts.part_count, sizeof(int64_t))
        parts.output_count = program.output_count
        for index in range(program.output_count):
            tensor, output = &action.variant.outputs[index], &parts.outputs[index]
            output.dtype, output.rank = tensor.dtype, tensor.rank
            memcpy(output.dims, tensor.dims, tensor.rank * sizeof(int64_t))
            if program.batches:
                output.dims[0] = parts.inputs[0].dims[0]
            output.bytes = used_bytes(tensor, output.dims[0])
            for axis in range(tensor.rank):
                if tensor.symbols[axis] >= 0 and output.dims[axis]:
                    output.bytes = output.bytes // output.dims[axis] * action.sizes[tensor.symbols[axis]]
                    output.dims[axis] = action.sizes[tensor.symbols[axis]]
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
            self.drop_room(<Order*>found)
        elif not running and cw_lane_revoke(&self.load_lane, action_id, ACTION_CANCELLED) == NULL:
            cw_lane_revoke(&self.fetch_lane, action_id, ACTION_CANCELLED)

    cdef int free_order(self, Order* order) except -1:
        cdef Action* action = <Action*>order
        if action.pins:
            cw_host_pin(action.model.host, action.model.weights_there, -1)
        return Orders.free_order(self, order)

    cdef Action* new_action(self, Kind kind, object order) except NULL:
        """As make_order(). The window of an INFER is its execution's: the input lane does not wait for it."""
        cdef Action* action = <Action*>self.make_order(sizeof(Action), kind, order)
        if action.order.base.status == CW_PENDING:
            action.model = &(<Model>action.order.owner).state
            action.earliest_ns = action.order.base.earliest_ns
            action.latest_ns = action.order.base.latest_ns
            action.order.base.latest_ns = ALWAYS
            if kind == KIND_INFER or kind == KIND_PROFILE:
                action.order.base.earliest_ns = 0
        return action
