"""The base of devices with native lanes: orders from start to completion, and the lanes' loop."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.deque cimport deque
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from clockwork.device._parts cimport Lengths, BatchParts, RequestTensors
from clockwork.wire._messages cimport CActionKind

cdef extern from "device/lane.h" namespace "clockwork::device" nogil:
    enum:
        PENDING
    cppclass Action:
        int64_t action_id
        int64_t earliest_ns
        int64_t latest_ns
        int32_t status
        Action* next
    cppclass EndListener:
        pass
    cppclass Hub:
        int event_fd
        void listen(const EndListener&)
        void close()
        void lock()
        void unlock()
        void wait()
        void tell()
        void end(Action&)
        Action* take_ended()
    cppclass Lane:
        const string name
        Action* running
        Action* next_behind(int64_t now_ns, int64_t end_ns)
        void take_behind()
        void sleep(int64_t until_ns)
        void enter()
        cbool push(Action&, int32_t most)
        Action* take(int64_t spin_ns)
        void end(Action&)
        # "pass" is a keyword of Python
        void pass_on "pass"(Action&, Lane& next)
    int64_t now_ns()
    int64_t thread_time_ns()
    void nap(int64_t ns)
    void breathe()

cdef extern from "device/claims.h" namespace "clockwork::device" nogil:
    cppclass Claim:
        vector[int64_t] run_pages
        vector[int64_t] run_starts
        void add_run(int64_t pages) except +
    cppclass PageTable:
        void resize(int64_t page_count) except +
        int64_t page_count()
        int64_t held_count()
        cbool take(Claim&, const vector[int64_t]& run_starts, char* text, size_t text_bytes)
        int64_t end_of_held()
        void release(Claim&)

cdef extern from "device/order.h" namespace "clockwork::device" nogil:
    enum:
        TEXT_BYTES
    cppclass TimedPhase:
        int64_t begin_ns
        int64_t end_ns
        int64_t duration_ns
        void begin()
        void end()
    cppclass DeviceModel:
        cbool resident
        cbool kept
        int64_t load_id
        Claim claim
        int32_t pending
        const vector[int]* model_dtypes
        const Lengths* model_lengths
    cppclass BufferOwner:
        pass
    cppclass Slot:
        size_t bytes
        cbool busy
    cppclass Order(Action):
        Order() except +
        CActionKind kind
        int64_t model_id
        uint32_t executor
        DeviceModel* residency
        int64_t load_id
        int64_t expected_ns
        vector[int64_t] run_starts
        RequestTensors views
        unique_ptr[BufferOwner] buffer_owner
        int64_t received_ns
        cbool revoked
        cbool begun
        BatchParts parts
        Slot* held_slot
        TimedPhase copy_in
        TimedPhase execute
        TimedPhase copy_out
        char[TEXT_BYTES] text
        cbool note_wrong_bool()
    cppclass Roster:
        void add(int64_t model_id, DeviceModel* residency) except +
        void remove(int64_t model_id)
        DeviceModel* find(int64_t model_id)
        void keep(DeviceModel&) except +
        void leave(DeviceModel&)
        DeviceModel* in_the_way(const Order& load)
    T* make_order[T]()
    cppclass Lanes:
        Hub hub
        Lane input
        Lane output
        Lane load
        Lane fetch
        void add_executor() except +
        Lane* execute(size_t executor)
        int executor_of(const Lane*)
        Lane* find(const char* name)
        int32_t run_count(size_t executor)
        int64_t running(const Lane&)
        cbool needs(const DeviceModel*, int64_t load_id)
        Order* revoke(size_t executor, int64_t action_id, int32_t status)
        vector[Order*] clear() except +
        void stop()

cdef extern from "device/pinned.h" namespace "clockwork::device" nogil:
    cppclass Pinned(BufferOwner):
        Pinned() except +
        deque[Py_buffer] buffers

cdef extern from "device/join.h" namespace "clockwork::device" nogil:
    enum Joined "clockwork::device::Joined":
        JOINED_WRONG "clockwork::device::Joined::WRONG"
        JOINED_NO_MEMORY "clockwork::device::Joined::NO_MEMORY"
    const char* NO_MEMORY
    Joined join(Order&)

cdef extern from "device/port.h" namespace "clockwork::device" nogil:
    cppclass RunningActions:
        int64_t execution
        int64_t load
        int64_t fetch
    cppclass DevicePort:
        void* self
        Order* (*make)(void*) noexcept nogil
        void (*begin)(void*, Order*) noexcept nogil
        void (*free)(void*, Order*) noexcept nogil
        void (*revoke)(void*, int64_t) noexcept nogil
        void (*end_run)(void*, int64_t) noexcept nogil
        void (*look)(void*, RunningActions*) noexcept nogil
        cbool (*is_broken)(void*) noexcept nogil
    cppclass DeviceOutlet:
        void* self
        int fd
        Action* (*take)(void*) noexcept nogil
        void (*listen)(void*, const EndListener*) noexcept nogil

# The `self` of an executor's DevicePort.
cdef struct ExecutorPlace:
    void* core  # its DeviceCore, not referenced
    uint32_t executor

cdef int note_order(Order* order, object action, object parts) except -1
cdef object completion_of(Order* order)

cdef class KnownModel:
    cdef DeviceModel* at  # a member of the subclass
    cdef readonly int64_t model_id

    cdef int set_runs(self, object pages) except -1

cdef class DeviceCore:
    cdef Lanes lanes
    cdef Lane* first  # the first lane of an execution; NULL: its executor's lane
    cdef PageTable pages  # guarded by the hub's lock
    cdef Roster roster  # the models; guarded by the hub's lock
    cdef const char* no_host_tier  # the reason for which FETCH and DROP are refused; NULL: they are taken
    cdef vector[vector[Slot*]] all_slots  # the slots of each executor, members of the subclass
    cdef readonly size_t page_bytes
    cdef readonly int64_t page_count
    cdef readonly int slot_count  # of each executor
    cdef readonly int executor_count
    cdef int32_t run_ahead
    # Whether the load lane waits for another device's LOAD; guarded by the hub's lock
    cdef bint waits_for_link
    cdef int64_t spin_ns
    cdef dict models
    cdef list completions  # of each executor, those that poll() has not returned
    cdef vector[ExecutorPlace] places  # of each executor, the `self` of its port
    cdef vector[DevicePort] road_ports
    cdef DeviceOutlet road_outlet

    cdef int set_bounds(self, int64_t page_count, size_t page_bytes, int run_ahead, int64_t spin_ns,
                        int executor_count=*) except -1

    # Methods of each kind of device; see _orders.pyx:
    cdef void enter(self, Lane* lane) noexcept nogil
    cdef Lane* run(self, Lane* lane, Order* order) noexcept nogil
    cdef bint bring_weights(self, Order* order) noexcept nogil
    cdef void drop_weights(self, DeviceModel* at) noexcept nogil
    cdef void cut_short(self, bint wanted) noexcept nogil
    cdef Order* new_order(self) noexcept nogil
    cdef void end_execution(self, uint32_t executor, int64_t action_id) noexcept nogil
    cdef bint is_broken(self) noexcept nogil
    cdef void look_at_lanes(self, uint32_t executor, RunningActions* found) noexcept nogil
    cdef int describe_run(self, Order* order) noexcept nogil
    cdef int place_run(self, Order* order) noexcept nogil
    cdef void begin_reserve(self, Order* order) noexcept nogil
    cdef bint take_runs(self, Order* order) noexcept nogil
    cdef void free_order(self, Order* order) noexcept nogil

    cdef void run_load(self, Order* order) noexcept nogil
    cdef void run_unload(self, Order* order) noexcept nogil
    cdef void make_way(self, Order* order) noexcept nogil
    cdef void evict(self, DeviceModel* at) noexcept nogil
    cdef bint is_here(self, Order* order) noexcept nogil
    cdef size_t slot_bytes(self) noexcept nogil
    cdef int64_t held_pages(self) noexcept nogil
    cdef bint take_slot(self, Order* order) noexcept nogil
    cdef void drop_slot(self, Order* order) noexcept nogil
    cdef void begin(self, Order* order) noexcept nogil
    cdef void begin_execution(self, Order* order) noexcept nogil
    cdef int join_inputs(self, Order* order) noexcept nogil
    cdef void queue(self, Order* order, Lane* lane) noexcept nogil
    cdef void refuse_full(self, Order* order) noexcept nogil
    cdef void refuse(self, Order* order, int status) noexcept nogil
    cdef void revoke_order(self, uint32_t executor, int64_t action_id) noexcept nogil
    cdef Order* make_order(self, object action, object parts, uint32_t executor=*) except NULL
    cdef object finish(self, Order* order)
    cdef int take_completions(self) except -1
    cdef int end_all(self) except -1
    cdef int drop_all(self) except -1
