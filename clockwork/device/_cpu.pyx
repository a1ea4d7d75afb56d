# cython: language_level=3, cdivision=True
"""The CPU device's native half: lanes, and the actions that run on them. clockwork/device/cpu.py is its only caller
and says what it promises; what the actions use, and models, are in _pages.pyx.

Two threads run here, one for each lane; they enter without the GIL and never take it. What a lane
needs of Python (pinned buffers, the model kept alive) is gathered before an action is queued and
given back when it is polled. One lock, the hub's, guards lanes and residency; see csrc/lane.h.
"""

cimport cython
from cpython.buffer cimport Py_buffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from clockwork.device._ort cimport (
    ORT_STRING, OrtStatus, OrtTensorInfo, cw_round_up, onnx_dtype_of_ort, ort_create_run_options, ort_create_tensor,
    ort_dtype_of_onnx, ort_failed, ort_is_tensor, ort_release_run_options, ort_release_tensor_info, ort_release_value,
    ort_run, ort_string_buffer, ort_strings, ort_strings_bytes, ort_tensor_data, ort_tensor_dims, ort_tensor_dtype,
    ort_tensor_info, ort_tensor_rank, ort_terminate, ort_wrap_tensor)
from clockwork.device._pages cimport cw_hub_lock, cw_hub_unlock
from clockwork.device._parts cimport (
    ALIGNMENT, RANK_MOST, Input, Output, dtype_bits, fill_seeded, free_parts, list_parts, pin_parts)

from clockwork.device._pages import model_dtypes
from clockwork.device.base import Completion
from clockwork.messages import Status

cdef enum:
    IN_PLACE_ALIGNMENT = 16  # of a caller's buffer that a kernel reads directly

cdef int OK = Status.OK
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int EXECUTION_FAILED = Status.EXECUTION_FAILED
cdef int TOO_LATE = Status.TOO_LATE
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED

# An empty tensor still needs an address.
cdef char[ALIGNMENT] NOTHING


cdef inline size_t packed_size(int64_t count, int bits) noexcept nogil:
    return <size_t>((count * bits + 7) // 8)


cdef inline void span_begin(Span* span) noexcept nogil:
    span.begin_ns = cw_now()


cdef inline void span_end(Span* span) noexcept nogil:
    span.end_ns = cw_now()
    span.duration_ns = span.end_ns - span.begin_ns


@cython.no_gc_clear  # its end still needs the runtime
cdef class Core(Arena):
    """The lanes over an arena. Methods are for the loop's thread except where they say otherwise."""

    def __cinit__(self, size_t arena_bytes, size_t page_bytes, int threads, int run_ahead, size_t slot_bytes_most,
                  int64_t spin_ns, bint cpu_time):
        self.statuses = {int(status): status for status in Status}
        self.run_ahead = run_ahead
        self.spin_ns = spin_ns
        self.cpu_time = cpu_time
        self.runtime.check(ort_create_run_options(self.api, &self.run_options))
        cw_lane_init(&self.load_lane, &self.hub)
        cw_lane_init(&self.execute_lane, &self.hub)
        self.opened = True

    def __dealloc__(self):
        self.release()

    # ----- threads and life ------------------------------------------------------------------

    def load_loop(self):
        """Run the load lane until stop(). The target of a thread."""
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-load")
            while True:
                action = <Action*>cw_lane_take(&self.load_lane, self.spin_ns)
                if action == NULL:
                    break
                if cw_now() > action.base.latest_ns:
                    action.base.status = TOO_LATE
                elif action.kind == KIND_LOAD:
                    self.run_load(action)
                else:
                    self.run_unload(action)
                cw_lane_end(&self.load_lane, &action.base)

    def execute_loop(self):
        """Run the execute lane until stop(). The target of a thread."""
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-execute")
            while True:
                action = <Action*>cw_lane_take(&self.execute_lane, self.spin_ns)
                if action == NULL:
                    break
                if cw_now() > action.base.latest_ns:
                    action.base.status = TOO_LATE
                else:
                    self.run_infer(action)
                self.drop_slot(action)
                cw_lane_end(&self.execute_lane, &action.base)

    def stop(self):
        """Have both loops return; a run that is under way is cut short."""
        with nogil:
            ort_terminate(self.api, self.run_options)
            cw_lane_stop(&self.load_lane)
            cw_lane_stop(&self.execute_lane)

    def release(self):
        """Free everything. Both loops must have returned."""
        if self.opened:
            self.opened = False
            self.free_list(cw_lane_clear(&self.load_lane))
            self.free_list(cw_lane_clear(&self.execute_lane))
            self.free_list(cw_hub_take(&self.hub))
            self.models.clear()
            cw_lane_free(&self.load_lane)
            cw_lane_free(&self.execute_lane)
        if self.runtime is not None:
            ort_release_run_options(self.api, self.run_options)
        self.run_options = NULL
        self.free_memory()

    def reset(self):
        """Wait for what runs; drop what is queued, what has not been polled, and every residency."""
        cdef cw_action* queued
        cdef Model model
        with nogil:
            queued = cw_lane_clear(&self.execute_lane)
        self.free_list(queued)
        with nogil:
            queued = cw_lane_clear(&self.load_lane)
        self.free_list(queued)
        self.free_list(cw_hub_take(&self.hub))
        for model in list(self.models.values()):
            if model.state.resident:
                with nogil:
                    model.state.resident = False
                    self.evict(&model.state)

    # ----- actions, from the loop's thread -----------------------------------------------------

    def fileno(self):
        return self.hub.event_fd

    def start_load(self, order):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_LOAD, order)
        cdef int index
        if model is None:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return
        if len(order.run_starts) != model.state.claim.run_count:
            self.refuse(action, BAD_PAGES, f"{len(order.run_starts)} runs of pages for {model.state.claim.run_count}")
            return
        action.run_count = model.state.claim.run_count
        action.run_starts = <int64_t*>calloc(action.run_count + 1, sizeof(int64_t))
        if action.run_starts == NULL:
            self.free_action(action)
            raise MemoryError
        for index in range(action.run_count):
            action.run_starts[index] = order.run_starts[index]
        self.queue(action, &self.load_lane)

    def start_unload(self, order):
        cdef Action* action = self.new_action(KIND_UNLOAD, order)
        if action.model == NULL:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return
        self.queue(action, &self.load_lane)

    def start_infer(self, order, parts):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_INFER, order)
        if model is None:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return
        try:
            problem = pin_parts(&action.parts, model.state.input_count, model.state.input_dtypes, parts, False)
        except BaseException:
            self.free_action(action)
            raise
        if problem is None:
            if cw_lane_full(&self.execute_lane, self.run_ahead):  # refused, even if there is room in a moment
                self.refuse_full(action)
                return
            problem = self.place_inputs(action, True)
        if problem is not None:
            self.refuse(action, INVALID_INPUT, problem)
            return
        self.queue(action, &self.execute_lane)

    def start_profile(self, order):
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = self.new_action(KIND_PROFILE, order)
        if model is None:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return
        views = [[(dtype, shape, None) for dtype, shape in zip(model_dtypes(model), order.shapes)]]
        try:
            problem = pin_parts(&action.parts, model.state.input_count, model.state.input_dtypes, views, True)
        except BaseException:
            self.free_action(action)
            raise
        if problem is None:
            if cw_lane_full(&self.execute_lane, self.run_ahead):  # refused, even if there is room in a moment
                self.refuse_full(action)
                return
            problem = self.place_inputs(action, False)
        if problem is not None:
            self.refuse(action, INVALID_INPUT, problem)
            return
        self.queue(action, &self.execute_lane)

    def revoke(self, action_id):
        cdef cw_action* found = cw_lane_revoke(&self.execute_lane, action_id, ACTION_CANCELLED)
        if found != NULL:
            self.drop_slot(<Action*>found)
        else:
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
        """An action with what all orders share; it holds its model, if that is known."""
        cdef int64_t action_id = order.action_id, load_id = order.load_id
        cdef int64_t earliest_ns = order.earliest_ns, latest_ns = order.latest_ns
        cdef Model model = self.models.get(order.model_id)
        cdef Action* action = <Action*>calloc(1, sizeof(Action))
        if action == NULL:
            raise MemoryError
        action.base.action_id = action_id
        action.base.earliest_ns = earliest_ns
        action.base.latest_ns = latest_ns
        action.base.status = CW_PENDING
        action.kind = kind
        action.load_id = load_id
        if model is not None:
            model.pending += 1
            Py_INCREF(model)
            action.owner = <PyObject*>model
            action.model = &model.state
        return action

    cdef object place_inputs(self, Action* action, bint in_place):
        """Give the action a slot with a place for every input that is not read where it lies."""
        cdef size_t index
        cdef int64_t size = 0
        cdef Input* joined
        cdef bint grown
        for index in range(action.parts.input_count):
            joined = &action.parts.inputs[index]
            joined.place = -1
            if joined.dtype == ORT_STRING or joined.bytes == 0 or (
                    in_place and action.parts.part_count == 1
                    and <size_t>action.parts.pinned[index].buf % IN_PLACE_ALIGNMENT == 0):
                continue
            joined.place = size
            size += cw_round_up(joined.bytes, ALIGNMENT)
        if size == 0:
            return None
        if <size_t>size > self.slot_bytes_most:
            return f"inputs of {size} bytes; at most {self.slot_bytes_most} are joined"
        action.slot = self.take_slot()
        assert action.slot != NULL, "more actions than the lane may hold"
        if action.slot.bytes < <size_t>size:
            with nogil:
                grown = self.grow_slot(action.slot, size)
            if not grown:
                return f"no memory for inputs of {size} bytes"
        return None

    cdef int queue(self, Action* action, cw_lane* lane) except -1:
        if cw_lane_push(lane, &action.base, self.run_ahead):
            self.refuse_full(action)
        return 0

    cdef int refuse_full(self, Action* action) except -1:
        self.refuse(action, DEVICE_ERROR, f"the lane holds {self.run_ahead} actions, which is its bound")
        return 0

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
        if action.parts.block != NULL and action.base.status == OK:
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

    # ----- slots -------------------------------------------------------------------------------

    cdef void drop_slot(self, Action* action) noexcept nogil:
        if action.slot != NULL:
            cw_hub_lock(&self.hub)
            action.slot.busy = False
            action.slot = NULL
            cw_hub_unlock(&self.hub)

    # ----- the load lane -----------------------------------------------------------------------

    cdef void run_load(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef int status
        span_begin(&action.execute)
        cw_hub_lock(&self.hub)
        status = self.claim_pages(model, action.run_starts, action.text)
        cw_hub_unlock(&self.hub)
        if status == OK and not self.fill(model, action.text):
            self.evict(model)
            status = DEVICE_ERROR
        if status == OK:
            cw_hub_lock(&self.hub)
            model.load_id = action.load_id
            model.resident = True
            cw_hub_unlock(&self.hub)
        span_end(&action.execute)
        action.base.status = status

    cdef void run_unload(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef int status = OK
        span_begin(&action.execute)
        cw_hub_lock(&self.hub)
        if not model.resident or model.load_id != action.load_id:
            status = NOT_RESIDENT
        elif self.is_used(model, action.load_id):
            status = IN_USE
        else:
            # From here on no INFER can start, and none is under way.
            model.resident = False
        cw_hub_unlock(&self.hub)
        if status == OK:
            self.evict(model)
        span_end(&action.execute)
        action.base.status = status

    cdef bint is_used(self, ModelState* model, int64_t load_id) noexcept nogil:
        """Whether the execute lane holds work on this residency. The lock is held."""
        cdef Action* action = <Action*>self.execute_lane.running
        if action != NULL and action.model == model and action.load_id == load_id:
            return True
        action = <Action*>self.execute_lane.head
        while action != NULL:
            if action.model == model and action.load_id == load_id:
                return True
            action = <Action*>action.base.next
        return False

    # ----- the execute lane --------------------------------------------------------------------

    cdef void run_infer(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef Session* session = model.session
        cdef size_t index
        cdef bint resident, failed, done
        cdef int64_t cpu_ns
        cdef char message[TEXT_BYTES]
        cw_hub_lock(&self.hub)
        # It stays resident while this action runs: UNLOAD looks at the lane under the same lock.
        resident = model.resident and model.load_id == action.load_id
        cw_hub_unlock(&self.hub)
        if not resident:
            action.base.status = NOT_RESIDENT
            return
        span_begin(&action.copy_in)
        done = self.feed(action)
        span_end(&action.copy_in)
        if done:
            span_begin(&action.execute)
            cpu_ns = cw_thread_time()
            failed = ort_failed(self.api, ort_run(
                self.api, session.handle, self.run_options, <const char* const*>session.input_names,
                <const OrtValue* const*>model.values, session.input_count,
                <const char* const*>session.output_names, session.output_count, session.outputs),
                action.text, TEXT_BYTES)
            cpu_ns = cw_thread_time() - cpu_ns
            span_end(&action.execute)
            if self.cpu_time:
                action.execute.duration_ns = cpu_ns
            if failed:
                action.base.status = EXECUTION_FAILED
                done = False
        for index in range(model.input_count):
            ort_release_value(self.api, model.values[index])
            model.values[index] = NULL
        if done:
            span_begin(&action.copy_out)
            if action.kind == KIND_PROFILE or self.take_outputs(action, session):
                action.base.status = OK
            elif action.base.status == CW_PENDING:
                action.base.status = DEVICE_ERROR
            span_end(&action.copy_out)
        for index in range(session.output_count):
            ort_release_value(self.api, session.outputs[index])
            session.outputs[index] = NULL

    cdef bint feed(self, Action* action) noexcept nogil:
        """Make the tensors that a run is fed: join the parts, or look at them where they are."""
        cdef ModelState* model = action.model
        cdef size_t index, part
        cdef char* base
        cdef char* target
        cdef Py_buffer* piece
        cdef Input* joined
        cdef OrtStatus* status
        cdef OrtValue** value
        for index in range(action.parts.input_count):
            joined = &action.parts.inputs[index]
            value = &model.values[index]
            if joined.dtype == ORT_STRING:
                status = ort_create_tensor(self.api, self.runtime.strings, joined.dims, joined.rank, ORT_STRING, value)
                if ort_failed(self.api, status, action.text, TEXT_BYTES):
                    action.base.status = DEVICE_ERROR
                    return False
                if action.kind == KIND_INFER and not self.feed_strings(action, index, value[0]):
                    return False
                continue
            if joined.place < 0:
                base = <char*>action.parts.pinned[index].buf if action.parts.pinned_count and joined.bytes else NOTHING
            else:
                base = target = action.slot.base + joined.place
                if action.kind == KIND_PROFILE:
                    fill_seeded(target, joined.dtype, joined.bytes)
                else:
                    for part in range(action.parts.part_count):
                        piece = &action.parts.pinned[part * action.parts.input_count + index]
                        memcpy(target, piece.buf, piece.len)
                        target += piece.len
            status = ort_wrap_tensor(self.api, self.runtime.memory, base, joined.bytes, joined.dims, joined.rank,
                                     ort_dtype_of_onnx(joined.dtype), value)
            if ort_failed(self.api, status, action.text, TEXT_BYTES):
                action.base.status = DEVICE_ERROR
                return False
        return True

    cdef bint feed_strings(self, Action* action, size_t index, OrtValue* value) noexcept nogil:
        """Fill a tensor of strings from its parts, each element a 4-byte length and its bytes."""
        cdef Input* joined = &action.parts.inputs[index]
        cdef size_t part, element, done = 0
        cdef int64_t part_count, total = 1
        cdef int axis
        cdef Py_buffer* piece
        cdef const unsigned char* at
        cdef size_t left, size
        cdef char* text = NULL
        for axis in range(joined.rank):
            total *= joined.dims[axis]
        for part in range(action.parts.part_count):
            piece = &action.parts.pinned[part * action.parts.input_count + index]
            at, left = <const unsigned char*>piece.buf, piece.len
            part_count = total
            if action.parts.part_count > 1:
                part_count = total // joined.dims[0] * action.parts.rows[part] if joined.dims[0] else 0
            for element in range(<size_t>part_count):
                size = left
                if left >= 4:
                    size = at[0] | at[1] << 8 | at[2] << 16 | <size_t>at[3] << 24
                if left < 4 or size > left - 4:
                    snprintf(action.text, TEXT_BYTES, "input %zu ends within its string %zu of %lld", index, done,
                             <long long>total)
                    action.base.status = INVALID_INPUT
                    return False
                if ort_failed(self.api, ort_string_buffer(self.api, value, done, size, &text), action.text, TEXT_BYTES):
                    action.base.status = DEVICE_ERROR
                    return False
                if size:
                    memcpy(text, at + 4, size)
                at += 4 + size
                left -= 4 + size
                done += 1
            if left:
                snprintf(action.text, TEXT_BYTES, "input %zu has %zu bytes behind its last string", index, left)
                action.base.status = INVALID_INPUT
                return False
        return True

    cdef bint take_outputs(self, Action* action, Session* session) noexcept nogil:
        """Copy what the run returned into one block, and note where each part's share ends."""
        cdef size_t index
        action.parts.output_count = session.output_count
        action.parts.outputs = <Output*>calloc(session.output_count + 1, sizeof(Output))
        action.parts.part_ends = <int64_t*>calloc(session.output_count * action.parts.part_count + 1, sizeof(int64_t))
        if action.parts.outputs == NULL or action.parts.part_ends == NULL:
            snprintf(action.text, TEXT_BYTES, "no memory for outputs")
            return False
        for index in range(session.output_count):
            if not self.describe_output(action, session.outputs[index], session.output_names[index], index):
                return False
            action.parts.outputs[index].begin = action.parts.block_bytes
            action.parts.block_bytes += cw_round_up(action.parts.outputs[index].bytes, ALIGNMENT)
        action.parts.block = <char*>malloc(action.parts.block_bytes + 1)
        if action.parts.block == NULL:
            snprintf(action.text, TEXT_BYTES, "no memory for outputs of %lld bytes", <long long>action.parts.block_bytes)
            return False
        for index in range(session.output_count):
            if action.parts.outputs[index].dtype == ORT_STRING:
                if not self.copy_strings(action, session.outputs[index], index):
                    return False
            elif not self.copy_output(action, session.outputs[index], index):
                return False
        return True

    cdef bint describe_output(self, Action* action, OrtValue* value, const char* name, size_t index) noexcept nogil:
        """Shape, type and size of what was returned, and whether it can be split."""
        cdef Output* output = &action.parts.outputs[index]
        cdef OrtTensorInfo* info = NULL
        cdef size_t rank = 0, string_bytes = 0, part
        cdef int64_t count = 1, rows = 0
        cdef int axis, bits = 0, is_tensor = 0
        cdef bint failed
        if ort_failed(self.api, ort_is_tensor(self.api, value, &is_tensor), action.text, TEXT_BYTES):
            return False
        if not is_tensor:
            snprintf(action.text, TEXT_BYTES, "output '%.200s' is not a tensor", name)
            return False
        failed = (
            ort_failed(self.api, ort_tensor_info(self.api, value, &info), action.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_dtype(self.api, info, &output.dtype), action.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_rank(self.api, info, &rank), action.text, TEXT_BYTES))
        if not failed and rank > RANK_MOST:
            snprintf(action.text, TEXT_BYTES, "output '%.200s' has %zu dimensions", name, rank)
            failed = True
        if not failed:
            output.dtype = onnx_dtype_of_ort(output.dtype)
            output.rank = <int>rank
            failed = ort_failed(self.api, ort_tensor_dims(self.api, info, output.dims, rank), action.text, TEXT_BYTES)
        ort_release_tensor_info(self.api, info)
        if failed:
            return False
        for axis in range(output.rank):
            count *= output.dims[axis]
        if output.dtype == ORT_STRING:
            if ort_failed(self.api, ort_strings_bytes(self.api, value, &string_bytes), action.text, TEXT_BYTES):
                return False
            output.bytes = string_bytes + 4 * count
        else:
            bits = dtype_bits(output.dtype)
            if not bits:
                snprintf(action.text, TEXT_BYTES, "output '%.200s' is of unknown type %d", name, output.dtype)
                return False
            output.bytes = packed_size(count, bits)
        if action.parts.part_count == 1:
            return True
        for part in range(action.parts.part_count):
            rows += action.parts.rows[part]
        if output.rank == 0 or output.dims[0] != rows:
            snprintf(action.text, TEXT_BYTES, "output '%.200s' has %lld rows for a batch of %lld: it cannot be split",
                     name, <long long>(output.dims[0] if output.rank else 0), <long long>rows)
            return False
        if output.dtype != ORT_STRING and rows and count // rows * bits % 8:
            snprintf(action.text, TEXT_BYTES, "output '%.200s' has rows that do not end on a byte", name)
            return False
        return True

    cdef bint copy_output(self, Action* action, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &action.parts.outputs[index]
        cdef void* data = NULL
        cdef size_t part
        cdef int64_t end = output.begin, row_bytes
        cdef int64_t* ends = &action.parts.part_ends[index * action.parts.part_count]
        if ort_failed(self.api, ort_tensor_data(self.api, value, &data), action.text, TEXT_BYTES):
            return False
        if output.bytes:
            memcpy(action.parts.block + output.begin, data, output.bytes)
        if action.parts.part_count == 1:
            ends[0] = output.begin + output.bytes
            return True
        row_bytes = output.bytes // output.dims[0] if output.dims[0] else 0
        for part in range(action.parts.part_count):
            end += row_bytes * action.parts.rows[part]
            ends[part] = end
        return True

    cdef bint copy_strings(self, Action* action, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &action.parts.outputs[index]
        cdef size_t part, element = 0, stop, size, total, count = 1
        cdef int axis
        cdef int64_t* ends = &action.parts.part_ends[index * action.parts.part_count]
        cdef char* text
        cdef size_t* offsets
        cdef char* at = action.parts.block + output.begin
        cdef bint failed
        for axis in range(output.rank):
            count *= output.dims[axis]
        total = output.bytes - 4 * count
        text = <char*>malloc(total + 1)
        offsets = <size_t*>calloc(count + 1, sizeof(size_t))
        if text == NULL or offsets == NULL:
            snprintf(action.text, TEXT_BYTES, "no memory for strings of %zu bytes", total)
            failed = True
        else:
            failed = ort_failed(self.api, ort_strings(self.api, value, text, total, offsets, count), action.text, TEXT_BYTES)
        if not failed:
            offsets[count] = total
            for part in range(action.parts.part_count):
                stop = count
                if action.parts.part_count > 1:
                    stop = element + (count // output.dims[0] * action.parts.rows[part] if output.dims[0] else 0)
                while element < stop:
                    size = offsets[element + 1] - offsets[element]
                    at[0], at[1], at[2], at[3] = size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24 & 255
                    memcpy(at + 4, text + offsets[element], size)
                    at += 4 + size
                    element += 1
                ends[part] = at - action.parts.block
        free(text)
        free(offsets)
        return not failed
