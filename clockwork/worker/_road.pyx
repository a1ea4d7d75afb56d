# distutils: language = c++
"""Wraps the native road of actions (csrc/worker/road.h) for Python."""

from cpython.buffer cimport Py_buffer, PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.deque cimport deque
from libcpp.memory cimport make_shared, shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.string_view cimport string_view
from libcpp.vector cimport vector

from clockwork.device._orders cimport DeviceOutlet, DevicePort, Order
from clockwork.device._parts cimport RANK_MAX
from clockwork.wire._messages cimport CStatus
from clockwork.wire._zmq cimport Functions, clockwork_zmq_api

from clockwork.device.base import TensorView

cdef extern from "wire/dealer.h" namespace "clockwork" nogil:
    cppclass DealerSocket:
        DealerSocket(void* socket, void* monitor)

cdef extern from *:
    """
    #include <array>
    using ClockworkPair = std::array<int, 2>;
    static inline ClockworkPair clockwork_pair(int first, int second) { return {first, second}; }
    """
    cppclass array2 "ClockworkPair":
        pass
    array2 make_array2 "clockwork_pair" (int first, int second) nogil

cdef extern from "worker/road.h" namespace "clockwork::worker" nogil:
    cppclass Clock:
        int64_t epoch_ns
        int64_t offset_ns
        int64_t drift_ppb

    cppclass Limits:
        int64_t execution_ns, execution_factor, grace_ns, load_ns, load_factor, reservation_ns, check_ns, gap_ns
        int64_t interval_ns

    cppclass SnapshotBounds:
        int64_t bytes, owner_bytes, idle_ns

    cppclass CopyBounds:
        size_t threads, copies, owner_copies, piece_bytes
        int64_t close_ns

    cppclass LendingBounds:
        SnapshotBounds snapshots
        CopyBounds copies
        int64_t room_wait_ns, room_wait_byte_ns

    cppclass RoadBounds:
        Limits limits
        size_t messages_per_turn, frames_per_message, queued_actions, notice_bytes, copied_frame_bytes, jitter_window
        LendingBounds lending

    enum NoticeKind "clockwork::worker::Notice::Kind":
        pass

    cppclass Notice:
        NoticeKind kind
        int64_t number
        int64_t value
        int64_t now_ns
        vector[string] frames
        string text
        Order* order

    cppclass DeclaredOutput "clockwork::worker::Declared::Output":
        int dtype
        vector[int64_t] dims
        cbool is_any_shape

    cppclass Declared:
        vector[DeclaredOutput] outputs
        cbool verified
        cbool batches
        int64_t strings_max
        int64_t output_bytes_max

    cppclass Outcome "clockwork::worker::Road::Outcome":
        int64_t action_id
        CStatus status
        string text

    cppclass DeviceCounts "clockwork::worker::Road::DeviceCounts":
        size_t queued
        size_t started

    cppclass Received "clockwork::worker::Road::Received":
        uint64_t bytes
        uint64_t frames
        cbool is_drained

    cppclass CRoad "clockwork::worker::Road":
        CRoad(const DealerSocket& socket, const array2& socket_fds, const Clock& clock, const RoadBounds& bounds) except +OSError
        void add_device(const DevicePort& port, uint32_t run_ahead) except +
        void add_outlet(const DeviceOutlet& outlet) except +
        void keep_store()
        void start() except +
        void stop() except +
        void serve(cbool serves) except +
        void adopt(const DealerSocket& socket, const array2& socket_fds) except +
        cbool send(string_view header, const vector[string_view]& frames) except +
        void renumber(const vector[uint32_t]& kept) except +
        void reset() except +
        void cancel(const Outcome& outcome) except +
        void drain() except +
        void model_ready(int64_t model_id, shared_ptr[const Declared] declared) except +
        void model_gone(int64_t model_id, string_view absence) except +
        void model_whole(int64_t model_id) except +
        cbool deliver(const vector[string_view]& frames, int64_t now) except +
        void answer_ended(Order* order, string_view text) except +
        void release(Order* order) except +
        void store_ended(int64_t action_id, CStatus status, string_view text) except +
        cbool holds(int64_t action_id) except +
        void lost(uint32_t device) except +
        int notice_fd()
        deque[Notice] take_notices() except +
        size_t count() except +
        DeviceCounts counts(uint32_t device) except +
        int64_t jitter_p99_ns() except +
        Received take_received() except +
        int64_t copied_bytes() except +
        void tidy(int64_t now) except +

cdef extern from *:
    """
    namespace clockwork::worker {
    inline void set_zmq(const void* table) { clockwork::zmq = static_cast<const clockwork_zmq_api*>(table); }
    }
    """
    void set_zmq "clockwork::worker::set_zmq"(const void* table)

MESSAGE, NEWS, ENDED, CHECK, FAULT, STUCK, TWICE, UNSENT, DRAINED, FAILED, STORE_FETCH, STORE_DROP = range(12)


cdef inline string_view view_of(bytes data):
    return string_view(<const char*>data, len(data))


cdef class _Buffers:
    """Pinned frames; each is a bytes-like object."""

    cdef deque[Py_buffer] pinned
    cdef vector[string_view] views

    cdef int pin(self, frames) except -1:
        cdef Py_buffer* buffer
        for frame in frames:
            self.pinned.emplace_back()
            buffer = &self.pinned.back()
            try:
                PyObject_GetBuffer(frame, buffer, PyBUF_SIMPLE)
            except BaseException:
                self.pinned.pop_back()
                raise
            self.views.push_back(string_view(<const char*>buffer.buf, buffer.len))
        return 0

    def __dealloc__(self):
        cdef size_t place
        for place in range(self.pinned.size()):
            PyBuffer_Release(&self.pinned[place])


cdef class Ended:
    """An ended INFER whose outputs are not as its model declares. answer() answers and frees it."""

    cdef Order* order
    cdef Road road
    cdef readonly list inputs  # the inputs of each part, without their bytes
    cdef readonly list outputs  # the outputs of each part, valid until answer()
    cdef readonly int64_t model_id

    def answer(self, str text):
        """Answer the INFER. text: the sentence with which it fails; "": its outputs are sent."""
        cdef bytes content = text.encode()
        cdef string_view view = view_of(content)
        cdef Order* order = self.order
        self.order = NULL
        self.outputs = []
        if order != NULL:
            with nogil:
                self.road.road.get().answer_ended(order, view)

    def __dealloc__(self):
        if self.order != NULL:
            self.road.road.get().release(self.order)


cdef class Road:
    """Wraps worker::Road. Any thread may call methods; start() and stop() share one."""

    cdef unique_ptr[CRoad] road
    cdef object functions
    cdef list drivers  # keeps the owners of ports and outlets alive

    def __init__(self, Functions functions not None, uintptr_t socket, uintptr_t monitor, filenos, clock, *, limits, lending, **bounds):
        cdef Clock worker_clock
        cdef RoadBounds given
        cdef int own, monitors
        own, monitors = filenos
        set_zmq(functions.table)
        self.functions = functions
        self.drivers = []
        worker_clock.epoch_ns, worker_clock.offset_ns, worker_clock.drift_ppb = clock
        given.limits.execution_ns, given.limits.execution_factor = limits["execution_ns"], limits["execution_factor"]
        given.limits.grace_ns, given.limits.load_ns = limits["grace_ns"], limits["load_ns"]
        given.limits.load_factor, given.limits.reservation_ns = limits["load_factor"], limits["reservation_ns"]
        given.limits.check_ns, given.limits.gap_ns = limits["check_ns"], limits["gap_ns"]
        given.limits.interval_ns = limits["interval_ns"]
        given.messages_per_turn, given.frames_per_message = bounds["messages_per_turn"], bounds["frames_per_message"]
        given.queued_actions, given.notice_bytes = bounds["queued_actions"], bounds["notice_bytes"]
        given.copied_frame_bytes, given.jitter_window = bounds["copied_frame_bytes"], bounds["jitter_window"]
        given.lending.snapshots.bytes = lending["snapshot_bytes"]
        given.lending.snapshots.owner_bytes = lending["owner_snapshot_bytes"]
        given.lending.snapshots.idle_ns = lending["snapshot_idle_ns"]
        given.lending.copies.threads, given.lending.copies.copies = lending["copy_threads"], lending["copies"]
        given.lending.copies.owner_copies = lending["owner_copies"]
        given.lending.copies.piece_bytes = lending["copy_piece_bytes"]
        given.lending.copies.close_ns = lending["copies_close_ns"]
        given.lending.room_wait_ns = lending["room_wait_ns"]
        given.lending.room_wait_byte_ns = lending["room_wait_byte_ns"]
        self.road.reset(new CRoad(DealerSocket(<void*>socket, <void*>monitor), make_array2(own, monitors), worker_clock, given))

    def add_device(self, port, uint32_t run_ahead):
        """Add a device by the capsule of its port. Called before start()."""
        self.drivers.append(port)
        self.road.get().add_device((<DevicePort*>PyCapsule_GetPointer(port, b"clockwork.DevicePort"))[0], run_ahead)

    def add_outlet(self, outlet):
        """Add an outlet, given as a capsule. Called before start()."""
        self.drivers.append(outlet)
        self.road.get().add_outlet((<DeviceOutlet*>PyCapsule_GetPointer(outlet, b"clockwork.DeviceOutlet"))[0])

    def keep_store(self):
        """Have FETCH and DROP come as notices, which store_ended() answers. Called before start()."""
        self.road.get().keep_store()

    def start(self):
        self.road.get().start()

    def stop(self):
        """Stop receiving and answering. Devices may be closed from then on."""
        with nogil:
            self.road.get().stop()

    def fileno(self):
        """Return a descriptor that is readable while take() has notices."""
        return self.road.get().notice_fd()

    def take(self):
        """Return the notices since the last call: (kind, number, value, time in ns, frames, text or an
        Ended)."""
        cdef deque[Notice] notices
        cdef size_t place, index
        cdef Notice* notice
        cdef list found = []
        cdef object rest
        with nogil:
            notices = self.road.get().take_notices()
        for place in range(notices.size()):
            notice = &notices[place]
            if notice.order != NULL:
                rest = self.ended(notice.order)
            elif notice.frames.empty():
                rest = notice.text.decode(errors="replace")
            else:
                rest = [PyBytes_FromStringAndSize(notice.frames[index].data(), notice.frames[index].size())
                        for index in range(notice.frames.size())]
            found.append((<int>notice.kind, notice.number, notice.value, notice.now_ns, rest))
        return found

    cdef Ended ended(self, Order* order):
        cdef Ended ended = Ended.__new__(Ended)
        cdef size_t part, index, at = 0
        cdef int axis, rank
        cdef int64_t[RANK_MAX] dims
        cdef int64_t begin
        cdef const char* data = order.parts.output_bytes()
        ended.order, ended.road, ended.model_id = order, self, order.model_id
        ended.inputs, ended.outputs = [], []
        for part in range(order.views.counts.size()):
            row = []
            for index in range(order.views.counts[part]):
                shape = tuple([order.views.dims[order.views.tensors[at].first + axis]
                               for axis in range(order.views.tensors[at].rank)])
                row.append(TensorView(order.views.tensors[at].dtype, shape, b""))
                at += 1
            ended.inputs.append(row)
        for part in range(order.parts.part_count):
            row = []
            for index in range(order.parts.outputs.size()):
                rank = order.parts.output_shape(part, index, dims)
                shape = tuple([dims[axis] for axis in range(rank)])
                begin = order.parts.output_begin(index, part)
                view = PyMemoryView_FromMemory(<char*>data + begin, order.parts.output_end(index, part) - begin, PyBUF_READ)
                row.append(TensorView(order.parts.outputs[index].dtype, shape, view))
            ended.outputs.append(row)
        return ended

    # ----- the session

    def serve(self, bint serves):
        """Set whether actions are taken."""
        with nogil:
            self.road.get().serve(serves)

    def send(self, bytes header, frames=()):
        """Send a message. False: the connection's queue is full."""
        cdef _Buffers buffers = _Buffers()
        cdef string_view head = view_of(header)
        cdef bint sent
        buffers.pin(frames)
        with nogil:
            sent = self.road.get().send(head, buffers.views)
        return sent

    def adopt(self, uintptr_t socket, uintptr_t monitor, filenos):
        """Take another socket in place of the road's, which it does not use any more."""
        cdef int own, monitors
        own, monitors = filenos
        self.road.get().adopt(DealerSocket(<void*>socket, <void*>monitor), make_array2(own, monitors))

    def renumber(self, kept):
        """Give the remaining devices new indices. kept: their add_device() numbers. No action may be held."""
        cdef vector[uint32_t] numbers = kept
        with nogil:
            self.road.get().renumber(numbers)

    def reset(self):
        """Forget every action."""
        with nogil:
            self.road.get().reset()

    def cancel(self, int64_t action_id=0, status=0, str text=""):
        """Answer `action_id` with this outcome and all other actions as cancelled; refuse later actions."""
        cdef Outcome outcome
        outcome.action_id, outcome.status, outcome.text = action_id, <CStatus><uint8_t>status, text.encode()
        with nogil:
            self.road.get().cancel(outcome)

    def drain(self):
        """Request the notice DRAINED, which comes once no action is held."""
        with nogil:
            self.road.get().drain()

    # ----- models

    def model_ready(self, int64_t model_id, outputs, bint verified, bint batches, int64_t strings_max,
                    int64_t output_bytes_max):
        """Let actions name the model. outputs: (dtype, dimensions, -1 for any size, or None for any shape)
        each."""
        cdef shared_ptr[Declared] declared = make_shared[Declared]()
        cdef DeclaredOutput output
        for dtype, dims in outputs:
            output.dtype, output.is_any_shape = dtype, dims is None
            output.dims = dims or []
            declared.get().outputs.push_back(output)
        declared.get().verified, declared.get().batches = verified, batches
        declared.get().strings_max, declared.get().output_bytes_max = strings_max, output_bytes_max
        with nogil:
            self.road.get().model_ready(model_id, <shared_ptr[const Declared]>declared)

    def model_gone(self, int64_t model_id, str absence=""):
        """Have actions that name the model refused. absence: why, as a sentence; "": the model is unknown."""
        cdef bytes text = absence.encode()
        cdef string_view view = view_of(text)
        with nogil:
            self.road.get().model_gone(model_id, view)

    def model_whole(self, int64_t model_id):
        """Start the LOADs that waited for the model's files to be checked: the files are whole."""
        with nogil:
            self.road.get().model_whole(model_id)

    # ----- actions

    def deliver(self, frames, int64_t now):
        """Take an action that came before the session began. False: the message is no action."""
        cdef _Buffers buffers = _Buffers()
        cdef bint done
        buffers.pin(frames)
        with nogil:
            done = self.road.get().deliver(buffers.views, now)
        return done

    def store_ended(self, int64_t action_id, status, str text=""):
        """Answer the action of a notice STORE_FETCH or STORE_DROP; one that was forgotten has no answer."""
        cdef CStatus ended = <CStatus><uint8_t>status
        cdef bytes said = text.encode()
        cdef string_view view = view_of(said)
        with nogil:
            self.road.get().store_ended(action_id, ended, view)

    def holds(self, int64_t action_id):
        """Whether an action has been received and not answered."""
        cdef bint held
        with nogil:
            held = self.road.get().holds(action_id)
        return held

    def lost(self, uint32_t device):
        """Answer a broken device's orders again, after its fault was sent. device: the number of
        add_device()."""
        with nogil:
            self.road.get().lost(device)

    # ----- counts

    @property
    def count(self):
        """Return the number of actions that have not been answered."""
        cdef size_t count
        with nogil:
            count = self.road.get().count()
        return count

    def counts(self, uint32_t device):
        """Return the numbers of a device's actions that wait, and of those that it was given."""
        cdef DeviceCounts counts
        with nogil:
            counts = self.road.get().counts(device)
        return counts.queued, counts.started

    def jitter_p99_ns(self):
        """Return the 99th percentile of the lateness of timed waits, in ns."""
        cdef int64_t late
        with nogil:
            late = self.road.get().jitter_p99_ns()
        return late

    def take_received(self):
        """Return (bytes, frames, whether at some time none was left) of the reception since the last call."""
        cdef Received received
        with nogil:
            received = self.road.get().take_received()
        return received.bytes, received.frames, received.is_drained

    def copied_bytes(self):
        """Return the bytes held by copies of inputs from clients' memory."""
        return self.road.get().copied_bytes()

    def tidy(self, int64_t now):
        """Give memory that has been unused for a while back to the system."""
        with nogil:
            self.road.get().tidy(now)
