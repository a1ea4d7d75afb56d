# cython: language_level=3, cdivision=True
"""The CPU device's native half: lanes, and the actions that run on them. clockwork/device/cpu.py is its only caller
and says what it promises; what the actions use, and models, are in _pages.pyx.

Two threads run here, one for each lane; they enter without the GIL and never take it. What a lane
needs of Python (pinned buffers, the model kept alive) is gathered before an action is queued and
given back when it is polled. One lock, the hub's, guards lanes and residency; see csrc/device/lane.h.
"""

cimport cython
from cpython.buffer cimport Py_buffer
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from clockwork.device._crash cimport crash_at, crash_enter, crash_leave
from clockwork.device._orders cimport (
    CW_PENDING, KIND_INFER, KIND_LOAD, KIND_PROFILE, KIND_UNLOAD, cw_action, cw_hub_lock, cw_hub_take, cw_hub_unlock,
    cw_lane_clear, cw_lane_end, cw_lane_enter, cw_lane_free, cw_lane_full, cw_lane_init, cw_lane_revoke, cw_lane_stop,
    cw_lane_take, cw_now, cw_thread_time, holds, span_begin, span_end)
from clockwork.device._ort cimport (
    ORT_STRING, TEXT_BYTES, OrtStatus, OrtTensorInfo, cw_round_up, onnx_dtype_of_ort, ort_create_run_options,
    ort_create_tensor, ort_dtype_of_onnx, ort_failed, ort_is_tensor, ort_release_run_options, ort_release_tensor_info, ort_release_value,
    ort_run, ort_string_buffer, ort_strings, ort_strings_bytes, ort_tensor_data, ort_tensor_dims, ort_tensor_dtype,
    ort_tensor_info, ort_tensor_rank, ort_terminate, ort_unterminate, ort_wrap_tensor, ws_account, ws_trim)
from clockwork.device._parts cimport ALIGNMENT, RANK_MOST, Input, Output, dtype_bits, fill_seeded, pin_parts

from clockwork.device._pages import model_dtypes
from clockwork.wire.messages import Status

cdef enum:
    IN_PLACE_ALIGNMENT = 16  # of a caller's buffer that a kernel reads directly

cdef int OK = Status.OK
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int EXECUTION_FAILED = Status.EXECUTION_FAILED
cdef int TOO_LATE = Status.TOO_LATE
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED
cdef int OVERRUN = Status.OVERRUN

# An empty tensor still needs an address.
cdef char[ALIGNMENT] NOTHING


cdef inline size_t packed_size(int64_t count, int bits) noexcept nogil:
    return <size_t>((count * bits + 7) // 8)


@cython.no_gc_clear  # its end still needs the runtime
cdef class Core(Arena):
    """The lanes over an arena. Methods are for the loop's thread except where they say otherwise."""

    def __cinit__(self, size_t arena_bytes, size_t page_bytes, int threads, int run_ahead, size_t slot_bytes_most,
                  int64_t spin_ns, bint cpu_time, size_t output_bytes_most):
        self.spin_ns = spin_ns
        self.cpu_time = cpu_time
        self.output_bytes_most = output_bytes_most
        self.account = <ws_account*>calloc(1, sizeof(ws_account))  # never freed: see csrc/device/workspace.h
        if self.account == NULL:
            raise MemoryError
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
            crash_enter()
            while True:
                action = <Action*>cw_lane_take(&self.load_lane, self.spin_ns)
                if action == NULL:
                    break
                crash_at(action.order.base.action_id)
                if cw_now() > action.order.base.latest_ns:
                    action.order.base.status = TOO_LATE
                elif action.order.kind == KIND_LOAD:
                    self.run_load(action)
                else:
                    self.run_unload(action)
                crash_at(0)
                cw_lane_end(&self.load_lane, &action.order.base)
            crash_leave()

    def execute_loop(self):
        """Run the execute lane until stop(). The target of a thread."""
        cdef Action* action
        with nogil:
            cw_lane_enter(b"cw-execute")
            self.runtime.charge(self.account)
            crash_enter()
            while True:
                action = <Action*>cw_lane_take(&self.execute_lane, self.spin_ns)
                if action == NULL:
                    break
                if cw_now() > action.order.base.latest_ns:
                    action.order.base.status = TOO_LATE
                else:
                    crash_at(action.order.base.action_id)
                    self.run_infer(action)
                    crash_at(0)
                self.drop_room(&action.order)
                cw_lane_end(&self.execute_lane, &action.order.base)
            crash_leave()

    def stop(self):
        """Have both loops return; a run that is under way is cut short."""
        with nogil:
            cw_hub_lock(&self.hub)
            self.stopping = True
            ort_terminate(self.api, self.run_options)
            cw_hub_unlock(&self.hub)
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
            cw_hub_lock(&self.hub)
            self.stopping = True  # who sent what runs has given it up: it is not waited for longer than it must be
            ort_terminate(self.api, self.run_options)
            cw_hub_unlock(&self.hub)
            queued = cw_lane_clear(&self.execute_lane)
            cw_hub_lock(&self.hub)
            self.stopping = False
            cw_hub_unlock(&self.hub)
        self.free_list(queued)
        with nogil:
            queued = cw_lane_clear(&self.load_lane)
        self.free_list(queued)
        self.free_list(cw_hub_take(&self.hub))
        for model in list(self.models.values()):
            if model.at.resident:
                with nogil:
                    model.at.resident = False
                    self.evict(&model.state)

    # ----- what runs too long ----------------------------------------------------------------

    def end_run(self, int64_t action_id):
        """Have an execution end as OVERRUN as soon as its current node does, if it still runs. Any thread. To be said
        again while it does: the execution may not have begun yet."""
        cw_hub_lock(&self.hub)
        if self.execute_lane.running != NULL and self.execute_lane.running.action_id == action_id:
            self.overrun = True
            ort_terminate(self.api, self.run_options)
        cw_hub_unlock(&self.hub)

    @property
    def workspace_peak_bytes(self):
        """The most that the last execution took of the workspace."""
        return self.account.peak_bytes

    cdef void begin_run(self, ModelState* model) noexcept nogil:
        cw_hub_lock(&self.hub)
        self.overrun = False
        if not self.stopping:
            ort_unterminate(self.api, self.run_options)
        cw_hub_unlock(&self.hub)
        self.account.limit_bytes = model.workspace_bytes
        self.account.peak_bytes = self.account.used_bytes
        self.account.refused_bytes = 0

    cdef void end_run_failed(self, Action* action) noexcept nogil:
        """Say why, in words for people where they are not the runtime's own; give back what the attempt had taken."""
        cdef bint overrun
        cw_hub_lock(&self.hub)
        overrun = self.overrun
        cw_hub_unlock(&self.hub)
        action.order.base.status = EXECUTION_FAILED
        if overrun:
            action.order.base.status = OVERRUN
            snprintf(action.order.text, TEXT_BYTES, "the execution took longer than it may and was ended")
        elif self.account.refused_bytes:
            snprintf(action.order.text, TEXT_BYTES, "the execution needs more memory than it may take: %zu bytes beside %zu of at most %zu",
                     self.account.refused_bytes, self.account.used_bytes, self.account.limit_bytes)
        ws_trim(self.runtime.workspace)

    # ----- actions, from the loop's thread -----------------------------------------------------

    def start_load(self, order):
        cdef Action* action = self.new_action(KIND_LOAD, order)
        if action.order.base.status == CW_PENDING and self.take_runs(&action.order, order):
            self.queue(&action.order, &self.load_lane)

    def start_unload(self, order):
        cdef Action* action = self.new_action(KIND_UNLOAD, order)
        if action.order.base.status == CW_PENDING:
            self.queue(&action.order, &self.load_lane)

    def start_infer(self, order, parts):
        cdef Action* action = self.new_action(KIND_INFER, order)
        if action.order.base.status == CW_PENDING:
            self.start_run(action, parts, False)

    def start_profile(self, order):
        cdef Action* action = self.new_action(KIND_PROFILE, order)
        if action.order.base.status == CW_PENDING:
            dtypes = model_dtypes(<Model>action.order.owner)
            self.start_run(action, [[(dtype, shape, None) for dtype, shape in zip(dtypes, order.shapes)]], True)

    cdef int start_run(self, Action* action, object views, bint without_data) except -1:
        """Queue an INFER or PROFILE whose inputs are what the model takes, or end it with a sentence."""
        cdef ModelState* model = action.model
        try:
            problem = pin_parts(&action.order.parts, model.input_count, model.input_dtypes, views, without_data)
        except BaseException:
            self.free_order(&action.order)
            raise
        if problem is None:
            if cw_lane_full(&self.execute_lane, self.run_ahead):  # refused, even if there is room in a moment
                self.refuse_full(&action.order)
                return 0
            problem = self.place_inputs(action, not without_data)
        if problem is not None:
            self.refuse(&action.order, INVALID_INPUT, problem)
            return 0
        self.queue(&action.order, &self.execute_lane)
        return 0

    def revoke(self, action_id):
        cdef cw_action* found = cw_lane_revoke(&self.execute_lane, action_id, ACTION_CANCELLED)
        if found != NULL:
            self.drop_room(<Order*>found)
        else:
            cw_lane_revoke(&self.load_lane, action_id, ACTION_CANCELLED)

    cdef Action* new_action(self, Kind kind, object order) except NULL:
        """As make_order()."""
        cdef Action* action = <Action*>self.make_order(sizeof(Action), kind, order)
        if action.order.base.status == CW_PENDING:
            action.model = &(<Model>action.order.owner).state
        return action

    cdef object place_inputs(self, Action* action, bint in_place):
        """Give the action a slot with a place for every input that is not read where it lies."""
        cdef size_t index
        cdef int64_t size = 0
        cdef Input* joined
        cdef bint grown
        for index in range(action.order.parts.input_count):
            joined = &action.order.parts.inputs[index]
            joined.place = -1
            if joined.dtype == ORT_STRING or joined.bytes == 0 or (
                    in_place and action.order.parts.part_count == 1
                    and <size_t>action.order.parts.pinned[index].buf % IN_PLACE_ALIGNMENT == 0):
                continue
            joined.place = size
            size += cw_round_up(joined.bytes, ALIGNMENT)
        if size == 0:
            return None
        if <size_t>size > self.slot_bytes_most:
            return f"inputs of {size} bytes; at most {self.slot_bytes_most} are joined"
        grown = self.take_room(&action.order)
        assert grown, "more actions than the lane may hold"
        action.slot = <Slot*>action.order.room
        if action.order.room.bytes < <size_t>size:
            with nogil:
                grown = self.grow_slot(action.slot, size)
            if not grown:
                return f"no memory for inputs of {size} bytes"
        return None

    # ----- the load lane -----------------------------------------------------------------------

    cdef void run_load(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef int status
        span_begin(&action.order.execute)
        status = self.claim(&action.order)
        if status == OK and not self.fill(model, action.order.text):
            self.evict(model)
            status = DEVICE_ERROR
        if status == OK:
            cw_hub_lock(&self.hub)
            model.at.load_id = action.order.load_id
            model.at.resident = True
            cw_hub_unlock(&self.hub)
        span_end(&action.order.execute)
        action.order.base.status = status

    cdef void run_unload(self, Action* action) noexcept nogil:
        span_begin(&action.order.execute)
        action.order.base.status = self.begin_unload(&action.order)
        if action.order.base.status == OK:
            self.evict(action.model)
        span_end(&action.order.execute)

    cdef cw_lane* executing(self) noexcept nogil:
        return &self.execute_lane

    cdef cw_lane* loading(self) noexcept nogil:
        return &self.load_lane

    cdef bint is_used(self, Residency* residency, int64_t load_id) noexcept nogil:
        return holds(&self.execute_lane, residency, load_id)

    # ----- the execute lane --------------------------------------------------------------------

    cdef void run_infer(self, Action* action) noexcept nogil:
        cdef ModelState* model = action.model
        cdef Session* session = model.session
        cdef size_t index
        cdef bint resident, failed, done
        cdef int64_t cpu_ns
        cdef char message[TEXT_BYTES]
        cw_hub_lock(&self.hub)
        resident = self.is_here(&action.order)
        cw_hub_unlock(&self.hub)
        if not resident:
            action.order.base.status = NOT_RESIDENT
            return
        span_begin(&action.order.copy_in)
        done = self.feed(action)
        span_end(&action.order.copy_in)
        if done:
            span_begin(&action.order.execute)
            cpu_ns = cw_thread_time()
            self.begin_run(model)
            failed = ort_failed(self.api, ort_run(
                self.api, session.handle, self.run_options, <const char* const*>session.input_names,
                <const OrtValue* const*>model.values, session.input_count,
                <const char* const*>session.output_names, session.output_count, session.outputs),
                action.order.text, TEXT_BYTES)
            cpu_ns = cw_thread_time() - cpu_ns
            span_end(&action.order.execute)
            if self.cpu_time:
                action.order.execute.duration_ns = cpu_ns
            if failed:
                self.end_run_failed(action)
                done = False
        for index in range(model.input_count):
            ort_release_value(self.api, model.values[index])
            model.values[index] = NULL
        if done:
            span_begin(&action.order.copy_out)
            if action.order.kind == KIND_PROFILE or self.take_outputs(action, session):
                action.order.base.status = OK
            elif action.order.base.status == CW_PENDING:
                action.order.base.status = DEVICE_ERROR
            span_end(&action.order.copy_out)
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
        for index in range(action.order.parts.input_count):
            joined = &action.order.parts.inputs[index]
            value = &model.values[index]
            if joined.dtype == ORT_STRING:
                status = ort_create_tensor(self.api, self.runtime.strings, joined.dims, joined.rank, ORT_STRING, value)
                if ort_failed(self.api, status, action.order.text, TEXT_BYTES):
                    action.order.base.status = DEVICE_ERROR
                    return False
                if action.order.kind == KIND_INFER and not self.feed_strings(action, index, value[0]):
                    return False
                continue
            if joined.place < 0:
                base = <char*>action.order.parts.pinned[index].buf if action.order.parts.pinned_count and joined.bytes else NOTHING
            else:
                base = target = action.slot.base + joined.place
                if action.order.kind == KIND_PROFILE:
                    fill_seeded(target, joined.dtype, joined.bytes)
                else:
                    for part in range(action.order.parts.part_count):
                        piece = &action.order.parts.pinned[part * action.order.parts.input_count + index]
                        memcpy(target, piece.buf, piece.len)
                        target += piece.len
            status = ort_wrap_tensor(self.api, self.runtime.memory, base, joined.bytes, joined.dims, joined.rank,
                                     ort_dtype_of_onnx(joined.dtype), value)
            if ort_failed(self.api, status, action.order.text, TEXT_BYTES):
                action.order.base.status = DEVICE_ERROR
                return False
        return True

    cdef bint feed_strings(self, Action* action, size_t index, OrtValue* value) noexcept nogil:
        """Fill a tensor of strings from its parts, each element a 4-byte length and its bytes."""
        cdef Input* joined = &action.order.parts.inputs[index]
        cdef size_t part, element, done = 0
        cdef int64_t part_count, total = 1
        cdef int axis
        cdef Py_buffer* piece
        cdef const unsigned char* at
        cdef size_t left, size
        cdef char* text = NULL
        for axis in range(joined.rank):
            total *= joined.dims[axis]
        for part in range(action.order.parts.part_count):
            piece = &action.order.parts.pinned[part * action.order.parts.input_count + index]
            at, left = <const unsigned char*>piece.buf, piece.len
            part_count = total
            if action.order.parts.part_count > 1:
                part_count = total // joined.dims[0] * action.order.parts.rows[part] if joined.dims[0] else 0
            for element in range(<size_t>part_count):
                size = left
                if left >= 4:
                    size = at[0] | at[1] << 8 | at[2] << 16 | <size_t>at[3] << 24
                if left < 4 or size > left - 4:
                    snprintf(action.order.text, TEXT_BYTES, "input %zu ends within its string %zu of %lld", index, done,
                             <long long>total)
                    action.order.base.status = INVALID_INPUT
                    return False
                if ort_failed(self.api, ort_string_buffer(self.api, value, done, size, &text), action.order.text, TEXT_BYTES):
                    action.order.base.status = DEVICE_ERROR
                    return False
                if size:
                    memcpy(text, at + 4, size)
                at += 4 + size
                left -= 4 + size
                done += 1
            if left:
                snprintf(action.order.text, TEXT_BYTES, "input %zu has %zu bytes behind its last string", index, left)
                action.order.base.status = INVALID_INPUT
                return False
        return True

    cdef bint take_outputs(self, Action* action, Session* session) noexcept nogil:
        """Copy what the run returned into one block, and note where each part's share ends."""
        cdef size_t index
        action.order.parts.output_count = session.output_count
        action.order.parts.outputs = <Output*>calloc(session.output_count + 1, sizeof(Output))
        action.order.parts.part_ends = <int64_t*>calloc(session.output_count * action.order.parts.part_count + 1, sizeof(int64_t))
        if action.order.parts.outputs == NULL or action.order.parts.part_ends == NULL:
            snprintf(action.order.text, TEXT_BYTES, "no memory for outputs")
            return False
        for index in range(session.output_count):
            if not self.describe_output(action, session.outputs[index], session.output_names[index], index):
                return False
            action.order.parts.outputs[index].begin = action.order.parts.block_bytes
            action.order.parts.block_bytes += cw_round_up(action.order.parts.outputs[index].bytes, ALIGNMENT)
        action.order.parts.block = <char*>malloc(action.order.parts.block_bytes + 1)
        if action.order.parts.block == NULL:
            snprintf(action.order.text, TEXT_BYTES, "no memory for outputs of %lld bytes", <long long>action.order.parts.block_bytes)
            return False
        for index in range(session.output_count):
            if action.order.parts.outputs[index].dtype == ORT_STRING:
                if not self.copy_strings(action, session.outputs[index], index):
                    return False
            elif not self.copy_output(action, session.outputs[index], index):
                return False
        return True

    cdef bint describe_output(self, Action* action, OrtValue* value, const char* name, size_t index) noexcept nogil:
        """Shape, type and size of what was returned, and whether it can be split."""
        cdef Output* output = &action.order.parts.outputs[index]
        cdef OrtTensorInfo* info = NULL
        cdef size_t rank = 0, string_bytes = 0, part
        cdef int64_t count = 1, rows = 0
        cdef int axis, bits = 0, is_tensor = 0
        cdef bint failed
        if ort_failed(self.api, ort_is_tensor(self.api, value, &is_tensor), action.order.text, TEXT_BYTES):
            return False
        if not is_tensor:
            snprintf(action.order.text, TEXT_BYTES, "output '%.200s' is not a tensor", name)
            return False
        failed = (
            ort_failed(self.api, ort_tensor_info(self.api, value, &info), action.order.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_dtype(self.api, info, &output.dtype), action.order.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_rank(self.api, info, &rank), action.order.text, TEXT_BYTES))
        if not failed and rank > RANK_MOST:
            snprintf(action.order.text, TEXT_BYTES, "output '%.200s' has %zu dimensions", name, rank)
            failed = True
        if not failed:
            output.dtype = onnx_dtype_of_ort(output.dtype)
            output.rank = <int>rank
            failed = ort_failed(self.api, ort_tensor_dims(self.api, info, output.dims, rank), action.order.text, TEXT_BYTES)
        ort_release_tensor_info(self.api, info)
        if failed:
            return False
        for axis in range(output.rank):
            count *= output.dims[axis]
        if output.dtype == ORT_STRING:
            if ort_failed(self.api, ort_strings_bytes(self.api, value, &string_bytes), action.order.text, TEXT_BYTES):
                return False
            output.bytes = string_bytes + 4 * count
        else:
            bits = dtype_bits(output.dtype)
            if not bits:
                snprintf(action.order.text, TEXT_BYTES, "output '%.200s' is of unknown type %d", name, output.dtype)
                return False
            output.bytes = packed_size(count, bits)
        if <size_t>output.bytes > self.output_bytes_most:
            snprintf(action.order.text, TEXT_BYTES, "output '%.200s' has %lld bytes; an answer carries at most %zu", name,
                     <long long>output.bytes, self.output_bytes_most)
            action.order.base.status = EXECUTION_FAILED
            return False
        if action.order.parts.part_count == 1:
            return True
        for part in range(action.order.parts.part_count):
            rows += action.order.parts.rows[part]
        if output.rank == 0 or output.dims[0] != rows:
            snprintf(action.order.text, TEXT_BYTES, "output '%.200s' has %lld rows for a batch of %lld: it cannot be split",
                     name, <long long>(output.dims[0] if output.rank else 0), <long long>rows)
            return False
        if output.dtype != ORT_STRING and rows and count // rows * bits % 8:
            snprintf(action.order.text, TEXT_BYTES, "output '%.200s' has rows that do not end on a byte", name)
            return False
        return True

    cdef bint copy_output(self, Action* action, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &action.order.parts.outputs[index]
        cdef void* data = NULL
        cdef size_t part
        cdef int64_t end = output.begin, row_bytes
        cdef int64_t* ends = &action.order.parts.part_ends[index * action.order.parts.part_count]
        if ort_failed(self.api, ort_tensor_data(self.api, value, &data), action.order.text, TEXT_BYTES):
            return False
        if output.bytes:
            memcpy(action.order.parts.block + output.begin, data, output.bytes)
        if action.order.parts.part_count == 1:
            ends[0] = output.begin + output.bytes
            return True
        row_bytes = output.bytes // output.dims[0] if output.dims[0] else 0
        for part in range(action.order.parts.part_count):
            end += row_bytes * action.order.parts.rows[part]
            ends[part] = end
        return True

    cdef bint copy_strings(self, Action* action, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &action.order.parts.outputs[index]
        cdef size_t part, element = 0, stop, size, total, count = 1
        cdef int axis
        cdef int64_t* ends = &action.order.parts.part_ends[index * action.order.parts.part_count]
        cdef char* text
        cdef size_t* offsets
        cdef char* at = action.order.parts.block + output.begin
        cdef bint failed
        for axis in range(output.rank):
            count *= output.dims[axis]
        total = output.bytes - 4 * count
        text = <char*>malloc(total + 1)
        offsets = <size_t*>calloc(count + 1, sizeof(size_t))
        if text == NULL or offsets == NULL:
            snprintf(action.order.text, TEXT_BYTES, "no memory for strings of %zu bytes", total)
            failed = True
        else:
            failed = ort_failed(self.api, ort_strings(self.api, value, text, total, offsets, count), action.order.text, TEXT_BYTES)
        if not failed:
            offsets[count] = total
            for part in range(action.order.parts.part_count):
                stop = count
                if action.order.parts.part_count > 1:
                    stop = element + (count // output.dims[0] * action.order.parts.rows[part] if output.dims[0] else 0)
                while element < stop:
                    size = offsets[element + 1] - offsets[element]
                    at[0], at[1], at[2], at[3] = size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24 & 255
                    memcpy(at + 4, text + offsets[element], size)
                    at += 4 + size
                    element += 1
                ends[part] = at - action.order.parts.block
        free(text)
        free(offsets)
        return not failed
