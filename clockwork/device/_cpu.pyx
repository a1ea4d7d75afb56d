# cython: language_level=3, cdivision=True
"""The CPU device's native half: executors and a lane of loads over a page arena.

Its only caller is clockwork/device/cpu.py, which documents its guarantees. _orders.pyx has the base of all
devices, _pages.pyx has the arena and models.

A thread for each lane runs here (load, and execute for each executor); they enter without the GIL and never
take it. Executors share sessions and weights, which an execution only reads. Each has its own arguments,
outputs, options of runs, account of memory and slots (CpuExecutor).
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset, strlen, strstr

from clockwork.device._orders cimport PENDING, KnownModel, Lane, thread_time_ns
from clockwork.wire._messages cimport CActionKind
from clockwork.device._operators cimport end_operators_by
from clockwork.device._ort cimport (
    ORT_STRING, TEXT_BYTES, MemoryAccount, OrtStatus, OrtTensorInfo, onnx_dtype_of_ort, ort_create_run_options,
    ort_create_tensor, ort_dtype_of_onnx, ort_failed, ort_is_tensor, ort_release_run_options, ort_release_tensor_info,
    ort_release_value, ort_run, ort_string_buffer, ort_strings, ort_strings_bytes, ort_tensor_data, ort_tensor_dims,
    ort_tensor_dtype, ort_tensor_info, ort_tensor_rank, ort_terminate, ort_unterminate, ort_wrap_tensor, round_up)
from clockwork.device._pages cimport PagedModel
from clockwork.device._parts cimport PART_ALIGNMENT, RANK_MAX, Input, Output, BatchParts, Piece, copy_beginning, dtype_bits, fill_seeded

from clockwork.wire.messages import Status

cdef extern from "device/operators.h" nogil:
    const char* INPUT_MARK

cdef enum:
    IN_PLACE_ALIGNMENT = 16  # the alignment of a caller's buffer that a kernel reads directly
    INT64 = 7  # ONNX's code of int64
    EMPTY_ROWS_MOST = 65_536

cdef int OK = Status.OK
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int EXECUTION_FAILED = Status.EXECUTION_FAILED
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int OVERRUN = Status.OVERRUN

# An empty tensor still needs an address.
cdef char[PART_ALIGNMENT] NOTHING


cdef inline size_t packed_size(int64_t count, int bits) noexcept nogil:
    return <size_t>((count * bits + 7) // 8)


@cython.no_gc_clear  # __dealloc__ still needs the runtime
cdef class CpuCore(PagedCore):
    """An arena's lanes. The loop's thread calls the methods, unless a docstring says otherwise."""

    def __cinit__(self, size_t arena_bytes, size_t page_bytes, int threads, int run_ahead, size_t slot_bytes_most,
                  int64_t spin_ns, int64_t spare_ns, int executor_count, bint cpu_time, size_t output_bytes_most):
        cdef CpuExecutor* executor
        cdef size_t number
        self.no_host_tier = b"this device has no host tier: it loads from where its models were prepared"
        self.cpu_time = cpu_time
        self.output_bytes_most = output_bytes_most
        self.executors.resize(executor_count)
        for number in range(self.executors.size()):
            executor = &self.executors[number]
            executor.account = new MemoryAccount()  # never freed: see csrc/device/workspace.h
            self.runtime.check(ort_create_run_options(self.api, &executor.run_options))
            executor.account.api, executor.account.options = self.api, executor.run_options

    def __dealloc__(self):
        self.release()

    def release(self):
        """Free everything. The lanes' threads must have returned."""
        cdef size_t number
        self.drop_all()
        self.models.clear()
        for number in range(self.executors.size()):
            ort_release_run_options(self.api, self.executors[number].run_options)
            self.executors[number].run_options = NULL
        self.free_memory()

    def add_model(self, KnownModel model):
        """Make a model known, after making places for its runs. One thread at a time. Raises MemoryError."""
        cdef CpuModel* state = &(<PagedModel?>model).state
        cdef size_t number
        for number in range(self.executors.size()):
            self.executors[number].grow(self.lanes.hub, state.argument_count(), state.output_count)
        PagedCore.add_model(self, model)

    def grow_slots(self, size_t size):
        """Make every executor's slot of at least this many bytes, from its next run on. One thread at a time.
        Raises MemoryError."""
        cdef size_t number
        cdef bint grown
        for number in range(self.executors.size()):
            with nogil:
                grown = size <= self.slot_bytes_most and self.executors[number].grow_slot(self.lanes.hub, size)
            if not grown:
                raise MemoryError(f"no memory for inputs of {size} bytes (at most {self.slot_bytes_most})")

    def memory(self):
        """See PagedCore. io_bytes: of the slots."""
        cdef size_t number, slots = 0
        self.lanes.hub.lock()
        for number in range(self.executors.size()):
            slots += self.executors[number].slot_bytes()
        self.lanes.hub.unlock()
        return {**PagedCore.memory(self), "io_bytes": slots}

    cdef void enter(self, Lane* lane) noexcept nogil:
        cdef int number = self.lanes.executor_of(lane)
        if number >= 0:
            self.runtime.charge(self.executors[number].account)
            end_operators_by(&self.executors[number].account.is_ending)

    cdef Lane* run(self, Lane* lane, Order* order) noexcept nogil:
        self.run_infer(order)
        return NULL

    cdef void cut_short(self, bint wanted) noexcept nogil:
        cdef size_t number
        self.lanes.hub.lock()
        self.stopping = wanted
        if wanted:
            for number in range(self.executors.size()):
                self.terminate(&self.executors[number])
        self.lanes.hub.unlock()

    cdef void terminate(self, CpuExecutor* executor) noexcept nogil:
        """End an executor's execution.

        ONNX Runtime checks between nodes, Clockwork's operators within a node. The lock is held."""
        ort_terminate(self.api, executor.run_options)
        executor.account.is_ending.store(True)

    # ----- what runs too long ----------------------------------------------------------------

    cdef void end_execution(self, uint32_t executor, int64_t action_id) noexcept nogil:
        """End an execution at the end of its node, or when an operator of Clockwork checks."""
        cdef Lane* lane = self.lanes.execute(executor)
        self.lanes.hub.lock()
        if lane.running != NULL and lane.running.action_id == action_id:
            self.executors[executor].overrun = True
            self.terminate(&self.executors[executor])
        self.lanes.hub.unlock()

    def workspace_peak_bytes(self, uint32_t executor):
        """Return the peak of the workspace's bytes that the executor's last execution used."""
        return self.executors[executor].account.peak_bytes

    cdef void begin_run(self, CpuExecutor* executor, CpuModel* model) noexcept nogil:
        cdef MemoryAccount* account = executor.account
        self.lanes.hub.lock()
        executor.overrun = False
        if not self.stopping:
            ort_unterminate(self.api, executor.run_options)
            account.is_ending.store(False)
        self.lanes.hub.unlock()
        account.limit_bytes = model.workspace_bytes
        account.peak_bytes = account.used_bytes
        account.heap_bytes = 0
        account.refused_bytes = 0
        account.counts_heap = True

    cdef void end_run_failed(self, CpuExecutor* executor, Order* order) noexcept nogil:
        """Set the text of a failed execution, and release the memory that the attempt had taken."""
        cdef MemoryAccount* account = executor.account
        cdef bint overrun
        self.lanes.hub.lock()
        overrun = executor.overrun
        self.lanes.hub.unlock()
        cdef char* sentence = strstr(order.text, INPUT_MARK)
        order.status = EXECUTION_FAILED
        if overrun:
            order.status = OVERRUN
            snprintf(order.text, TEXT_BYTES, "the execution took longer than it may and was ended")
        elif account.refused_bytes:
            snprintf(order.text, TEXT_BYTES, "the execution needs more memory than it may take: %zu bytes beside %zu of at most %zu",
                     account.refused_bytes, account.beside_bytes, account.limit_bytes)
        elif sentence != NULL:
            order.status = INVALID_INPUT
            sentence += strlen(INPUT_MARK)
            memmove(order.text, sentence, strlen(sentence) + 1)
        self.runtime.trim()

    cdef int place_run(self, Order* order) noexcept nogil:
        """Give each input that is not read in place its place in the executor's slot."""
        cdef size_t index
        cdef int64_t size = 0
        cdef Input* joined
        for index in range(order.parts.input_count):
            joined = &order.parts.inputs[index]
            joined.place = -1
            if joined.dtype == ORT_STRING or joined.bytes == 0 or (
                    order.kind == CActionKind.INFER and (order.parts.part_count == 1 or joined.rowless)
                    and <size_t>order.parts.pieces[index].buf % IN_PLACE_ALIGNMENT == 0):
                continue
            joined.place = size
            size += round_up(joined.bytes, PART_ALIGNMENT)
        if order.parts.lengths != NULL:
            if not self.note_sizes(order):
                return INVALID_INPUT
        if <size_t>size > self.slot_bytes_most:
            snprintf(order.text, TEXT_BYTES, "inputs of %lld bytes; at most %zu are joined", <long long>size,
                     self.slot_bytes_most)
            return INVALID_INPUT
        return OK

    cdef char* find_slot(self, Order* order) noexcept nogil:
        """Return the slot of the order's executor, with room for its inputs. NULL: the order has failed."""
        cdef size_t index
        cdef int64_t size = 0
        cdef Input* joined
        cdef char* found = NOTHING
        for index in range(order.parts.input_count):
            joined = &order.parts.inputs[index]
            if joined.place >= 0:
                size = joined.place + round_up(joined.bytes, PART_ALIGNMENT)
        if size:
            found = self.executors[order.executor].take_slot(self.lanes.hub, size)
        if found == NULL:
            snprintf(order.text, TEXT_BYTES, "no memory for inputs of %lld bytes", <long long>size)
            order.status = INVALID_INPUT
        return found

    cdef bint note_sizes(self, Order* order) noexcept nogil:
        """Record the size of each row. Rows may be empty, so a small message may name very many of them."""
        cdef size_t index
        cdef int64_t total = 0, rows = order.parts.row_count()
        for index in range(order.parts.input_count):
            total += order.parts.inputs[index].bytes
        if rows > total + EMPTY_ROWS_MOST:
            snprintf(order.text, TEXT_BYTES, "inputs of %lld rows and %lld bytes; at most %d rows may be empty",
                     <long long>rows, <long long>total, <int>EMPTY_ROWS_MOST)
            return False
        if not order.parts.make_row_sizes():
            snprintf(order.text, TEXT_BYTES, "no memory for the sizes of %lld rows", <long long>rows)
            return False
        return True

    # ----- the execute lane --------------------------------------------------------------------

    cdef void run_infer(self, Order* order) noexcept nogil:
        cdef CpuModel* model = <CpuModel*>order.residency
        cdef CpuSession* session = model.session
        cdef CpuExecutor* executor = &self.executors[order.executor]
        cdef OrtValue** arguments
        cdef OrtValue** outputs
        cdef size_t index, fed_count = model.fed_count()
        cdef bint resident, failed, done
        cdef int64_t cpu_ns
        self.lanes.hub.lock()
        resident = self.is_here(order)
        executor.take_places()
        self.lanes.hub.unlock()
        if not resident:
            order.status = NOT_RESIDENT
            return
        arguments, outputs = executor.places.arguments.data(), executor.places.outputs.data()
        for index in range(fed_count):
            arguments[index] = NULL  # a weight of an earlier run's model may stand there
        order.copy_in.begin()
        done = not order.note_wrong_bool()
        if not done:
            order.status = INVALID_INPUT
        else:
            done = self.feed(order, arguments)
        order.copy_in.end()
        if done:
            for index in range(model.weight_values.size()):
                arguments[fed_count + index] = model.weight_values[index]
            order.execute.begin()
            cpu_ns = thread_time_ns() if self.cpu_time else 0
            self.begin_run(executor, model)
            failed = ort_failed(self.api, ort_run(
                self.api, session.handle, executor.run_options, <const char* const*>session.input_names,
                <const OrtValue* const*>arguments, session.input_count,
                <const char* const*>session.output_names, session.output_count, outputs),
                order.text, TEXT_BYTES)
            executor.account.counts_heap = False
            if self.cpu_time:  # read within the times of the execution, so that it does not exceed them
                cpu_ns = thread_time_ns() - cpu_ns
            order.execute.end()
            if self.cpu_time:
                order.execute.duration_ns = min(cpu_ns, order.execute.duration_ns)
            if failed:
                self.end_run_failed(executor, order)
                done = False
        for index in range(fed_count):
            ort_release_value(self.api, arguments[index])
        if done:
            order.copy_out.begin()
            if order.kind == CActionKind.PROFILE or self.take_outputs(order, session, outputs):
                order.status = OK
            elif order.status == PENDING:
                order.status = DEVICE_ERROR
            order.copy_out.end()
        for index in range(session.output_count):
            ort_release_value(self.api, outputs[index])
            outputs[index] = NULL

    cdef bint feed(self, Order* order, OrtValue** arguments) noexcept nogil:
        """Make the input tensors of a run: join the parts, or refer to them in place."""
        cdef size_t index, part
        cdef char* base
        cdef char* target
        cdef const Piece* piece
        cdef Input* joined
        cdef OrtStatus* status
        cdef OrtValue** value
        cdef bint done
        cdef char* slot = self.find_slot(order)
        if slot == NULL:
            return False
        for index in range(order.parts.input_count):
            joined = &order.parts.inputs[index]
            value = &arguments[index]
            if joined.dtype == ORT_STRING:
                status = ort_create_tensor(self.api, self.runtime.strings, joined.dims, joined.rank, ORT_STRING, value)
                if ort_failed(self.api, status, order.text, TEXT_BYTES):
                    order.status = DEVICE_ERROR
                    return False
                done = self.feed_strings(order, index, value[0]) if order.kind == CActionKind.INFER else self.feed_text(order, index, value[0])
                if not done:
                    return False
                continue
            if joined.place < 0:
                base = <char*>order.parts.pieces[index].buf if not order.parts.pieces.empty() and joined.bytes else NOTHING
            else:
                base = target = slot + joined.place
                if order.kind == CActionKind.PROFILE and joined.rowless:
                    memcpy(target, order.parts.values[index].data(), joined.bytes)
                elif order.kind == CActionKind.PROFILE:
                    fill_seeded(target, joined.dtype, joined.bytes)
                elif order.parts.uneven:
                    self.join_padded(order, index, target)
                else:
                    for part in range(1 if joined.rowless else order.parts.part_count):
                        piece = &order.parts.piece(part, index)
                        memcpy(target, piece.buf, piece.len)
                        target += piece.len
            status = ort_wrap_tensor(self.api, self.runtime.memory, base, joined.bytes, joined.dims, joined.rank,
                                     ort_dtype_of_onnx(joined.dtype), value)
            if ort_failed(self.api, status, order.text, TEXT_BYTES):
                order.status = DEVICE_ERROR
                return False
        return order.parts.lengths == NULL or self.feed_sizes(order, &arguments[order.parts.input_count])

    cdef void join_padded(self, Order* order, size_t index, char* target) noexcept nogil:
        """Join the parts of an input. A part shorter than the longest is padded with zeros."""
        cdef BatchParts* parts = &order.parts
        cdef Input* joined = &parts.inputs[index]
        cdef int64_t[RANK_MAX] dims
        cdef size_t part
        memset(target, 0, joined.bytes)
        for part in range(parts.part_count):
            parts.shape_of(part, joined.dims, joined.rank, parts.lengths.inputs[index], dims)
            copy_beginning(<char*>parts.piece(part, index).buf, dims, target, joined.dims, joined.rank,
                           dtype_bits(joined.dtype) // 8, True)
            if joined.dims[0]:
                target += joined.bytes // joined.dims[0] * parts.rows[part]

    cdef bint feed_sizes(self, Order* order, OrtValue** arguments) noexcept nogil:
        """Make the input tensors of the rows' sizes, one for each symbol."""
        cdef size_t symbol
        cdef int64_t rows = order.parts.row_count()
        cdef char* base = <char*>order.parts.row_sizes.data() if rows else NOTHING
        for symbol in range(order.parts.lengths.count):
            if ort_failed(self.api, ort_wrap_tensor(
                    self.api, self.runtime.memory, base, rows * sizeof(int64_t), &rows, 1, ort_dtype_of_onnx(INT64),
                    &arguments[symbol]), order.text, TEXT_BYTES):
                order.status = DEVICE_ERROR
                return False
            base += rows * sizeof(int64_t)
        return True

    cdef bint feed_strings(self, Order* order, size_t index, OrtValue* value) noexcept nogil:
        """Fill a tensor of strings from its parts, each element a 4-byte length and its bytes."""
        cdef Input* joined = &order.parts.inputs[index]
        cdef size_t part, element, done = 0
        cdef int64_t part_count, total = 1
        cdef int axis
        cdef const Piece* piece
        cdef const unsigned char* at
        cdef size_t left, size
        cdef char* text = NULL
        for axis in range(joined.rank):
            total *= joined.dims[axis]
        for part in range(order.parts.part_count):
            piece = &order.parts.piece(part, index)
            at, left = <const unsigned char*>piece.buf, piece.len
            part_count = total
            if order.parts.part_count > 1:
                part_count = total // joined.dims[0] * order.parts.rows[part] if joined.dims[0] else 0
            for element in range(<size_t>part_count):
                size = left
                if left >= 4:
                    size = at[0] | at[1] << 8 | at[2] << 16 | <size_t>at[3] << 24
                if left < 4 or size > left - 4:
                    snprintf(order.text, TEXT_BYTES, "input %zu ends within its string %zu of %lld", index, done,
                             <long long>total)
                    order.status = INVALID_INPUT
                    return False
                if ort_failed(self.api, ort_string_buffer(self.api, value, done, size, &text), order.text, TEXT_BYTES):
                    order.status = DEVICE_ERROR
                    return False
                if size:
                    memcpy(text, at + 4, size)
                at += 4 + size
                left -= 4 + size
                done += 1
            if left:
                snprintf(order.text, TEXT_BYTES, "input %zu has %zu bytes behind its last string", index, left)
                order.status = INVALID_INPUT
                return False
        return True

    cdef bint feed_text(self, Order* order, size_t index, OrtValue* value) noexcept nogil:
        """Fill a tensor of strings with words, with as many bytes a string as are to be timed."""
        cdef Input* joined = &order.parts.inputs[index]
        cdef size_t element, count = 1
        cdef int64_t place
        cdef int axis
        cdef char* text = NULL
        for axis in range(joined.rank):
            count *= joined.dims[axis]
        for element in range(count):
            if ort_failed(self.api, ort_string_buffer(self.api, value, element, joined.bytes, &text), order.text, TEXT_BYTES):
                order.status = DEVICE_ERROR
                return False
            for place in range(joined.bytes):
                # A space, or a to z
                text[place] = <char>(32 if place % 6 == 5 else 97 + (element + place * 7) % 26)
        return True

    cdef bint take_outputs(self, Order* order, CpuSession* session, OrtValue** outputs) noexcept nogil:
        """Copy the outputs of the run into one block, and record where each part's share ends."""
        cdef size_t index
        if not order.parts.make_outputs(session.output_count):
            snprintf(order.text, TEXT_BYTES, "no memory for outputs")
            return False
        for index in range(session.output_count):
            if not self.describe_output(order, outputs[index], session.output_names[index], index):
                return False
        if not order.parts.make_block():
            snprintf(order.text, TEXT_BYTES, "no memory for outputs of %lld bytes", <long long>order.parts.block_bytes)
            return False
        for index in range(session.output_count):
            if order.parts.outputs[index].dtype == ORT_STRING:
                if not self.copy_strings(order, outputs[index], index):
                    return False
            elif not self.copy_output(order, outputs[index], index):
                return False
        return True

    cdef bint describe_output(self, Order* order, OrtValue* value, const char* name, size_t index) noexcept nogil:
        """Read the shape, type and size of an output, and check that it can be split."""
        cdef Output* output = &order.parts.outputs[index]
        cdef OrtTensorInfo* info = NULL
        cdef size_t rank = 0, string_bytes = 0, part
        cdef int64_t count = 1, rows = 0
        cdef int axis, bits = 0, is_tensor = 0
        cdef bint failed
        if ort_failed(self.api, ort_is_tensor(self.api, value, &is_tensor), order.text, TEXT_BYTES):
            return False
        if not is_tensor:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' is not a tensor", name)
            return False
        failed = (
            ort_failed(self.api, ort_tensor_info(self.api, value, &info), order.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_dtype(self.api, info, &output.dtype), order.text, TEXT_BYTES)
            or ort_failed(self.api, ort_tensor_rank(self.api, info, &rank), order.text, TEXT_BYTES))
        if not failed and rank > RANK_MAX:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' has %zu dimensions", name, rank)
            failed = True
        if not failed:
            output.dtype = onnx_dtype_of_ort(output.dtype)
            output.rank = <int>rank
            failed = ort_failed(self.api, ort_tensor_dims(self.api, info, output.dims, rank), order.text, TEXT_BYTES)
        ort_release_tensor_info(self.api, info)
        if failed:
            return False
        for axis in range(output.rank):
            count *= output.dims[axis]
        if output.dtype == ORT_STRING:
            if ort_failed(self.api, ort_strings_bytes(self.api, value, &string_bytes), order.text, TEXT_BYTES):
                return False
            output.bytes = string_bytes + 4 * count
        else:
            bits = dtype_bits(output.dtype)
            if not bits:
                snprintf(order.text, TEXT_BYTES, "output '%.200s' is of unknown type %d", name, output.dtype)
                return False
            output.bytes = packed_size(count, bits)
        if <size_t>output.bytes > self.output_bytes_most:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' has %lld bytes; an answer carries at most %zu", name,
                     <long long>output.bytes, self.output_bytes_most)
            order.status = EXECUTION_FAILED
            return False
        if order.parts.part_count == 1:
            return True
        for part in range(order.parts.part_count):
            rows += order.parts.rows[part]
        if output.rank == 0 or output.dims[0] != rows:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' has %lld rows for a batch of %lld: it cannot be split",
                     name, <long long>(output.dims[0] if output.rank else 0), <long long>rows)
            return False
        if output.dtype != ORT_STRING and rows and count // rows * bits % 8:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' has rows that do not end on a byte", name)
            return False
        return not order.parts.is_cut(index) or self.measure_cut(order, name, index, bits)

    cdef bint measure_cut(self, Order* order, const char* name, size_t index, int bits) noexcept nogil:
        """Compute the bytes of an output whose parts are cut back to their sizes."""
        cdef BatchParts* parts = &order.parts
        cdef Output* output = &parts.outputs[index]
        cdef int64_t[RANK_MAX] dims
        cdef int64_t count
        cdef size_t part
        cdef int axis, symbol
        for axis in range(output.rank):
            symbol = parts.lengths.of_output(index, axis)
            if symbol >= 0 and output.dims[axis] != parts.longest[symbol]:
                snprintf(order.text, TEXT_BYTES, "output '%.200s' has the size %lld along axis %d for inputs of %lld: it "
                         "cannot be cut", name, <long long>output.dims[axis], axis, <long long>parts.longest[symbol])
                return False
        if bits == 0 or bits % 8:
            snprintf(order.text, TEXT_BYTES, "output '%.200s' is of a type that cannot be cut", name)
            return False
        output.bytes = 0
        for part in range(parts.part_count):
            parts.shape_of(part, output.dims, output.rank, parts.lengths.outputs[index], dims)
            count = 1
            for axis in range(output.rank):
                count *= dims[axis]
            output.bytes += count * bits // 8
        return True

    cdef bint copy_output(self, Order* order, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &order.parts.outputs[index]
        cdef void* data = NULL
        if ort_failed(self.api, ort_tensor_data(self.api, value, &data), order.text, TEXT_BYTES):
            return False
        if order.parts.is_cut(index):
            self.cut_output(order, index, <char*>data)
            return True
        if output.bytes:
            memcpy(order.parts.block + output.begin, data, output.bytes)
        order.parts.divide(index)
        return True

    cdef void cut_output(self, Order* order, size_t index, char* data) noexcept nogil:
        """Copy each part without its padding."""
        cdef BatchParts* parts = &order.parts
        cdef Output* output = &parts.outputs[index]
        cdef int64_t[RANK_MAX] dims
        cdef int64_t row_bytes = dtype_bits(output.dtype) // 8, count, end = output.begin
        cdef size_t part
        cdef int axis
        for axis in range(1, output.rank):
            row_bytes *= output.dims[axis]
        for part in range(parts.part_count):
            parts.shape_of(part, output.dims, output.rank, parts.lengths.outputs[index], dims)
            copy_beginning(parts.block + end, dims, data, output.dims, output.rank, dtype_bits(output.dtype) // 8, False)
            data += row_bytes * parts.rows[part]
            count = dtype_bits(output.dtype) // 8
            for axis in range(output.rank):
                count *= dims[axis]
            end += count
            parts.part_ends[index * parts.part_count + part] = end

    cdef bint copy_strings(self, Order* order, OrtValue* value, size_t index) noexcept nogil:
        cdef Output* output = &order.parts.outputs[index]
        cdef size_t part, element = 0, stop, size, total, count = 1
        cdef int axis
        cdef char* text
        cdef size_t* offsets
        cdef char* at = order.parts.block + output.begin
        cdef bint failed
        for axis in range(output.rank):
            count *= output.dims[axis]
        total = output.bytes - 4 * count
        text = <char*>malloc(total + 1)
        offsets = <size_t*>calloc(count + 1, sizeof(size_t))
        if text == NULL or offsets == NULL:
            snprintf(order.text, TEXT_BYTES, "no memory for strings of %zu bytes", total)
            failed = True
        else:
            failed = ort_failed(self.api, ort_strings(self.api, value, text, total, offsets, count), order.text, TEXT_BYTES)
        if not failed:
            offsets[count] = total
            for part in range(order.parts.part_count):
                stop = count
                if order.parts.part_count > 1:
                    stop = element + (count // output.dims[0] * order.parts.rows[part] if output.dims[0] else 0)
                while element < stop:
                    size = offsets[element + 1] - offsets[element]
                    at[0], at[1], at[2], at[3] = size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24 & 255
                    memcpy(at + 4, text + offsets[element], size)
                    at += 4 + size
                    element += 1
                order.parts.part_ends[index * order.parts.part_count + part] = at - order.parts.block
        free(text)
        free(offsets)
        return not failed
