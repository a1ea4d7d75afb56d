# cython: language_level=3, cdivision=True
"""The base of devices with native lanes: orders from start to completion, and the lanes' loop.

A core is an arena with one or more executors. Each executor is a device to its callers: an order is given to
one of them. LOADs and UNLOADs are given to executor 0, which stands for the arena.

An order is made from an action and begins on the caller's thread. A lane's thread runs it. The thread that
takes the ended orders frees it. None of these steps needs the GIL. A worker's road (csrc/worker/road.h) uses
a DevicePort for them; start() and poll() are for callers in Python, whose orders have pinned buffers. The
hub's lock guards lanes, models, owners of pages, residency and slots; see csrc/device/lane.h and order.h.
Subclasses implement copies of weights and executions.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf

from clockwork.device._crash cimport crash_at, crash_enter, crash_leave
from clockwork.device._parts cimport RequestTensor, RequestTensors, list_parts
from clockwork.wire._messages cimport CLaneKind, lane_of

from clockwork.device.base import Completion
from clockwork.wire.messages import KIND_OF, Status

cdef dict STATUSES = {int(status): status for status in Status}

cdef int OK = Status.OK
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int TOO_LATE = Status.TOO_LATE
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED


cdef int note_view(RequestTensors* views, object dtype, object shape) except -1:
    """Add a tensor without bytes."""
    cdef RequestTensor view
    cdef int64_t extent
    view.dtype, view.rank, view.first = dtype, len(shape), views.dims.size()
    for extent in shape:
        views.dims.push_back(extent)
    views.tensors.push_back(view)
    return 0


cdef int pin_views(Order* order, object parts) except -1:
    """Set an order's inputs to these parts of views, whose buffers are pinned until the order is freed."""
    cdef Pinned* pinned = new Pinned()
    cdef Py_buffer* buffer
    order.buffer_owner.reset(pinned)
    for part in parts:
        for dtype, shape, data in part:
            note_view(&order.views, dtype, shape)
            pinned.buffers.emplace_back()
            buffer = &pinned.buffers.back()
            try:
                PyObject_GetBuffer(data, buffer, PyBUF_SIMPLE)
            except BaseException:
                pinned.buffers.pop_back()
                raise
            order.views.tensors.back().data = <const char*>buffer.buf
            order.views.tensors.back().bytes = buffer.len
        order.views.counts.push_back(len(part))
    return 0


cdef int note_order(Order* order, object action, object parts) except -1:
    """Fill an order from an action. parts: the inputs of each part of an INFER."""
    order.kind = <CActionKind><uint8_t><int>KIND_OF[type(action)]
    order.action_id, order.model_id, order.load_id = action.action_id, action.model_id, action.load_id
    order.earliest_ns, order.latest_ns = action.earliest_ns, action.latest_ns
    order.expected_ns = action.expected_ns
    order.run_starts = getattr(action, "run_starts", ())
    for shape in getattr(action, "shapes", ()):
        note_view(&order.views, 0, shape)
    if hasattr(action, "parts"):
        pin_views(order, parts)
    return 0


cdef object completion_of(Order* order):
    """Build the Completion of an ended order, and move the order's outputs into it."""
    cdef list parts = []
    if order.status == OK and order.parts.output_bytes() != NULL:
        parts = list_parts(&order.parts)
    return Completion(
        order.action_id,
        STATUSES[order.status],
        (<bytes>order.text).decode(errors="replace"),
        [order.copy_in.begin_ns, order.copy_in.end_ns, order.copy_in.duration_ns],
        [order.execute.begin_ns, order.execute.end_ns, order.execute.duration_ns],
        [order.copy_out.begin_ns, order.copy_out.end_ns, order.copy_out.duration_ns],
        parts,
    )


cdef class KnownModel:
    """A prepared model and its residency. A subclass holds the records of both."""

    cdef int set_runs(self, object pages) except -1:
        """Set the number of pages of each run. No page is claimed."""
        for count in pages:
            self.at.claim.add_run(count)
        return 0


# The functions of a DevicePort; see csrc/device/port.h. Each calls a method of the core at its place: without
# the GIL, a pointer becomes an object only as an argument.

ctypedef Order* (*Make)(void*, uint32_t) noexcept nogil
ctypedef void (*Handle)(void*, Order*) noexcept nogil
ctypedef void (*Refer)(void*, uint32_t, int64_t) noexcept nogil
ctypedef void (*Look)(void*, uint32_t, RunningActions*) noexcept nogil
ctypedef cbool (*Ask)(void*) noexcept nogil


cdef Order* core_make(DeviceCore self, uint32_t executor) noexcept nogil:
    cdef Order* order = self.new_order()
    if order != NULL:
        order.executor = executor
    return order


cdef void core_begin(DeviceCore self, Order* order) noexcept nogil:
    self.begin(order)


cdef void core_free(DeviceCore self, Order* order) noexcept nogil:
    self.free_order(order)


cdef void core_revoke(DeviceCore self, uint32_t executor, int64_t action_id) noexcept nogil:
    self.revoke_order(executor, action_id)


cdef void core_end_run(DeviceCore self, uint32_t executor, int64_t action_id) noexcept nogil:
    self.end_execution(executor, action_id)


cdef void core_look(DeviceCore self, uint32_t executor, RunningActions* found) noexcept nogil:
    self.look_at_lanes(executor, found)


cdef cbool core_is_broken(DeviceCore self) noexcept nogil:
    return self.is_broken()


cdef Order* road_make(void* place) noexcept nogil:
    cdef ExecutorPlace* at = <ExecutorPlace*>place
    return (<Make>core_make)(at.core, at.executor)


cdef void road_begin(void* place, Order* order) noexcept nogil:
    (<Handle>core_begin)((<ExecutorPlace*>place).core, order)


cdef void road_free(void* place, Order* order) noexcept nogil:
    (<Handle>core_free)((<ExecutorPlace*>place).core, order)


cdef void road_revoke(void* place, int64_t action_id) noexcept nogil:
    cdef ExecutorPlace* at = <ExecutorPlace*>place
    (<Refer>core_revoke)(at.core, at.executor, action_id)


cdef void road_end_run(void* place, int64_t action_id) noexcept nogil:
    cdef ExecutorPlace* at = <ExecutorPlace*>place
    (<Refer>core_end_run)(at.core, at.executor, action_id)


cdef void road_look(void* place, RunningActions* found) noexcept nogil:
    cdef ExecutorPlace* at = <ExecutorPlace*>place
    (<Look>core_look)(at.core, at.executor, found)


cdef cbool road_is_broken(void* place) noexcept nogil:
    return (<Ask>core_is_broken)((<ExecutorPlace*>place).core)


cdef Action* road_take(DeviceCore self) noexcept nogil:
    return self.lanes.hub.take_ended()


cdef void road_listen(DeviceCore self, const EndListener* listener) noexcept nogil:
    cdef EndListener nobody
    self.lanes.hub.listen(nobody if listener == NULL else listener[0])


cdef class DeviceCore:
    """Models, pages, slots and actions. The loop's thread calls methods, unless one says otherwise."""

    def __cinit__(self, *arguments):
        """arguments: for subclasses, which call set_bounds(), and set ``first`` and ``all_slots``."""
        self.models, self.completions = {}, []
        if self.lanes.hub.event_fd < 0:
            raise OSError("cannot make an eventfd")
        self.road_outlet.self = <void*>self
        self.road_outlet.fd = self.lanes.hub.event_fd
        self.road_outlet.take = <Action* (*)(void*) noexcept nogil>road_take
        self.road_outlet.listen = <void (*)(void*, const EndListener*) noexcept nogil>road_listen

    cdef int set_bounds(self, int64_t page_count, size_t page_bytes, int run_ahead, int64_t spin_ns,
                        int executor_count=1) except -1:
        """Set the sizes of a new core. Called once, before any lane runs and before port()."""
        cdef int number
        self.page_count = page_count
        self.page_bytes = page_bytes
        self.run_ahead = run_ahead
        self.spin_ns = spin_ns
        # A slot for each action that an executor's lanes may hold, and a slot that open() may be enlarging.
        self.slot_count = run_ahead + 1
        self.pages.resize(page_count)
        self.executor_count = executor_count
        self.all_slots.resize(executor_count)
        self.places.resize(executor_count)
        self.road_ports.resize(executor_count)
        for number in range(executor_count):
            if number > 0:
                self.lanes.add_executor()
            self.completions.append([])
            self.places[number].core, self.places[number].executor = <void*>self, number
            self.road_ports[number].self = &self.places[number]
            self.road_ports[number].make = road_make
            self.road_ports[number].begin = road_begin
            self.road_ports[number].free = road_free
            self.road_ports[number].revoke = road_revoke
            self.road_ports[number].end_run = road_end_run
            self.road_ports[number].look = road_look
            self.road_ports[number].is_broken = road_is_broken
        return 0

    # ----- implemented by each kind of device -----------------------------------------------

    cdef void enter(self, Lane* lane) noexcept nogil:
        """Prepare the calling thread for running a lane."""

    cdef Lane* run(self, Lane* lane, Order* order) noexcept nogil:
        """Run an order's step in a lane, except LOAD and UNLOAD. Returns the order's next lane; NULL: it
        ended."""
        return NULL

    cdef bint bring_weights(self, Order* order) noexcept nogil:
        """Fill the pages of a LOAD's model, and end its span.

        Returns False, with a text, on failure, once no copy writes to the pages any more."""
        return False

    cdef void drop_weights(self, DeviceModel* at) noexcept nogil:
        """Release the resources of bring_weights(), complete or not. The pages are freed afterwards."""

    cdef void cut_short(self, bint wanted) noexcept nogil:
        """Set whether executions end as soon as possible, because their outputs are not wanted."""

    cdef Order* new_order(self) noexcept nogil:
        """Allocate an order of the device's kind; NULL if there is no memory."""
        return make_order[Order]()

    cdef void end_execution(self, uint32_t executor, int64_t action_id) noexcept nogil:
        """End the execution that an executor runs, if the device can. By default nothing: no GPU kernel can
        be."""

    cdef bint is_broken(self) noexcept nogil:
        """Whether the device is broken for good."""
        return False

    cdef int describe_run(self, Order* order) noexcept nogil:
        """Check the joined inputs. Returns OK, or the status with which the order ends, and sets its text."""
        return OK

    cdef int place_run(self, Order* order) noexcept nogil:
        """Give an execution the slot that it needs; a slot is free. Returns the same as describe_run()."""
        return OK

    cdef void begin_reserve(self, Order* order) noexcept nogil:
        """Queue a RESERVE, or end it."""
        snprintf(order.text, TEXT_BYTES, "this device makes models ready beside its executions")
        self.refuse(order, DEVICE_ERROR)

    # ----- models ----------------------------------------------------------------------------

    def add_model(self, KnownModel model):
        """Make a model known. Any thread."""
        self.models[model.model_id] = model
        self.lanes.hub.lock()
        self.roster.add(model.model_id, model.at)
        self.lanes.hub.unlock()

    def has_model(self, model_id):
        return model_id in self.models

    def remove_model(self, model_id):
        """Drop and return a model, if known. Any thread. Raises ValueError if it is resident or in use.

        A residency that keep() has left, and no action has, goes with it."""
        cdef KnownModel model = self.models.get(model_id)
        cdef bint resident, pending, kept = False
        if model is None:
            return None
        self.lanes.hub.lock()
        resident, pending = model.at.resident, model.at.pending != 0
        if resident and model.at.kept and not pending:
            resident, kept = False, True
            self.roster.leave(model.at[0])
        if not resident and not pending:
            self.roster.remove(model.model_id)
        self.lanes.hub.unlock()
        if kept:
            with nogil:
                self.evict(model.at)
        if resident or pending:
            raise ValueError(f"model {model_id} is {'resident' if resident else 'in use'}")
        return self.models.pop(model_id)

    def rename(self, model_id, other):
        """Have a model that no action names be known by another id. Raises KeyError, ValueError."""
        cdef KnownModel model = self.models[model_id]
        if other in self.models:
            raise ValueError(f"model {other} is prepared already")
        self.lanes.hub.lock()
        self.roster.remove(model_id)
        self.roster.add(other, model.at)
        self.lanes.hub.unlock()
        model.model_id = other
        self.models[other] = self.models.pop(model_id)

    # ----- the lanes' threads ------------------------------------------------------------------

    def run_lane(self, name):
        """Run the lane of this name until stop(). The target of a thread."""
        cdef bytes text = name.encode()
        cdef const char* wanted = text
        cdef Lane* lane = self.lanes.find(wanted)
        cdef Lane* onward
        cdef Order* order
        cdef bint tells  # whether a crash names the lane's action
        cdef int64_t spin_ns
        if lane == NULL:
            raise ValueError(f"there is no lane {name!r}")
        with nogil:
            tells = lane == &self.lanes.load or self.lanes.executor_of(lane) >= 0
            spin_ns = 0 if lane == &self.lanes.fetch else self.spin_ns
            lane.enter()
            crash_enter()
            self.enter(lane)
            while True:
                order = <Order*>lane.take(spin_ns)
                if order == NULL:
                    break
                onward = NULL
                if order.revoked and not order.begun:
                    order.status = ACTION_CANCELLED
                elif now_ns() > order.latest_ns and not order.begun:
                    order.status = TOO_LATE
                else:
                    crash_at(order.action_id if tells else 0)
                    if order.kind == CActionKind.LOAD:
                        self.run_load(order)
                    elif order.kind == CActionKind.UNLOAD:
                        self.run_unload(order)
                    else:
                        onward = self.run(lane, order)
                    crash_at(0)
                if onward != NULL:
                    lane.pass_on(order[0], onward[0])
                else:
                    self.drop_slot(order)
                    lane.end(order[0])
            crash_leave()

    def stop(self):
        """Have the lanes' loops return after their running orders; executions end early if possible."""
        with nogil:
            self.cut_short(True)
            self.lanes.stop()

    cdef void run_load(self, Order* order) noexcept nogil:
        """Check the pages of a LOAD, claim them for its model, and fill them."""
        cdef DeviceModel* at = order.residency
        cdef int status = OK
        order.execute.begin()
        self.make_way(order)
        self.lanes.hub.lock()
        if at.resident:
            snprintf(order.text, TEXT_BYTES, "the model is resident already, as load %lld", <long long>at.load_id)
            status = DEVICE_ERROR
        elif not self.pages.take(at.claim, order.run_starts, order.text, TEXT_BYTES):
            status = BAD_PAGES
        self.lanes.hub.unlock()
        if status == OK and not self.bring_weights(order):
            self.evict(at)
            status = DEVICE_ERROR
        if status == OK:
            self.lanes.hub.lock()
            at.load_id = order.load_id
            at.resident = True
            self.lanes.hub.unlock()
        order.status = status

    cdef void run_unload(self, Order* order) noexcept nogil:
        """Free the pages, unless an INFER that needs them waits or runs. No INFER can start afterwards."""
        cdef DeviceModel* at = order.residency
        cdef int status = OK
        order.execute.begin()
        self.lanes.hub.lock()
        if not at.resident or at.load_id != order.load_id:
            status = NOT_RESIDENT
        elif self.lanes.needs(at, order.load_id):
            status = IN_USE
        else:
            self.roster.leave(at[0])
        self.lanes.hub.unlock()
        if status == OK:
            self.evict(at)
        order.execute.end()
        order.status = status

    cdef void make_way(self, Order* order) noexcept nogil:
        """Evict the models that an earlier session has left where a LOAD goes: its controller does not count
        on them."""
        cdef DeviceModel* at
        while True:
            self.lanes.hub.lock()
            at = self.roster.in_the_way(order[0])
            if at != NULL and self.lanes.needs(at, at.load_id):
                at = NULL
            if at != NULL:
                self.roster.leave(at[0])
            self.lanes.hub.unlock()
            if at == NULL:
                return
            self.evict(at)

    cdef void evict(self, DeviceModel* at) noexcept nogil:
        self.drop_weights(at)
        self.lanes.hub.lock()
        self.pages.release(at.claim)
        self.lanes.hub.unlock()

    cdef bint is_here(self, Order* order) noexcept nogil:
        """Whether the residency that an action names exists. The lock is held.

        The residency stays while the action runs: UNLOAD checks the lanes under the same lock."""
        return order.residency.resident and order.residency.load_id == order.load_id

    # ----- pages and slots, any thread ---------------------------------------------------------

    cdef int64_t held_pages(self) noexcept nogil:
        cdef int64_t held
        self.lanes.hub.lock()
        held = self.pages.held_count()
        self.lanes.hub.unlock()
        return held

    cdef size_t slot_bytes(self) noexcept nogil:
        cdef size_t executor, index, found = 0
        self.lanes.hub.lock()
        for executor in range(self.all_slots.size()):
            for index in range(self.all_slots[executor].size()):
                found += self.all_slots[executor][index].bytes
        self.lanes.hub.unlock()
        return found

    cdef bint take_slot(self, Order* order) noexcept nogil:
        """Give an action the largest free slot of its executor. False if no slot is free."""
        cdef Slot* slot
        cdef Slot* best = NULL
        cdef size_t index
        self.lanes.hub.lock()
        for index in range(self.all_slots[order.executor].size()):
            slot = self.all_slots[order.executor][index]
            if not slot.busy and (best == NULL or slot.bytes > best.bytes):
                best = slot
        if best != NULL:
            best.busy = True
        self.lanes.hub.unlock()
        order.held_slot = best
        return best != NULL

    cdef void drop_slot(self, Order* order) noexcept nogil:
        if order.held_slot != NULL:
            self.lanes.hub.lock()
            order.held_slot.busy = False
            order.held_slot = NULL
            self.lanes.hub.unlock()

    # ----- what runs ---------------------------------------------------------------------------

    cdef void look_at_lanes(self, uint32_t executor, RunningActions* found) noexcept nogil:
        cdef bint waits
        found.execution = self.lanes.running(self.lanes.execute(executor)[0])
        found.load = found.fetch = 0
        if executor == 0:
            self.lanes.hub.lock()
            waits = self.waits_for_link
            self.lanes.hub.unlock()
            found.load = 0 if waits else self.lanes.running(self.lanes.load)
            found.fetch = self.lanes.running(self.lanes.fetch)

    def execute_lane(self, int executor):
        """Return the name of the lane, and of its thread, in which an executor's executions run."""
        return (<bytes>self.lanes.execute(executor).name).decode()

    def running(self, uint32_t executor=0):
        """Return the id of the action that an executor runs; 0 for none. Any thread."""
        cdef RunningActions found
        self.look_at_lanes(executor, &found)
        return found.execution

    def moving(self, uint32_t executor=0):
        """Return the actions' ids in the load and fetch lanes; 0: none, or one that waits for the link.

        Only executor 0 has actions there."""
        cdef RunningActions found
        self.look_at_lanes(executor, &found)
        return found.load, found.fetch

    def end_run(self, int64_t action_id, uint32_t executor=0):
        """End an execution as OVERRUN as soon as possible, if the device can. Any thread. Call again while it
        runs."""
        with nogil:
            self.end_execution(executor, action_id)

    def port(self, uint32_t executor=0):
        """Return the capsule by which a road drives an executor. It is valid as long as the core."""
        return PyCapsule_New(&self.road_ports[executor], b"clockwork.DevicePort", NULL)

    def outlet(self):
        """Return the capsule by which a road takes ended orders. It is valid as long as the device."""
        return PyCapsule_New(&self.road_outlet, b"clockwork.DeviceOutlet", NULL)

    # ----- orders ------------------------------------------------------------------------------

    cdef void begin(self, Order* order) noexcept nogil:
        """Queue an order, or end it with a status and a text. One thread at a time."""
        cdef DeviceModel* at
        if order.kind == CActionKind.RESERVE:
            self.begin_reserve(order)
            return
        if order.executor != 0 and lane_of(order.kind) != CLaneKind.EXECUTE:
            snprintf(order.text, TEXT_BYTES, "this device executes from another device's arena: a LOAD or UNLOAD names that device")
            self.refuse(order, DEVICE_ERROR)
            return
        if lane_of(order.kind) == CLaneKind.FETCH and self.no_host_tier != NULL:
            snprintf(order.text, TEXT_BYTES, "%s", self.no_host_tier)
            self.refuse(order, DEVICE_ERROR)
            return
        self.lanes.hub.lock()
        at = order.residency = self.roster.find(order.model_id)
        if at != NULL:
            at.pending += 1
        self.lanes.hub.unlock()
        if at == NULL:
            snprintf(order.text, TEXT_BYTES, "model %lld is not prepared here", <long long>order.model_id)
            self.refuse(order, UNKNOWN_MODEL)
        elif lane_of(order.kind) == CLaneKind.EXECUTE:
            self.begin_execution(order)
        elif lane_of(order.kind) == CLaneKind.FETCH:
            self.queue(order, &self.lanes.fetch)
        elif order.kind != CActionKind.LOAD or self.take_runs(order):
            self.queue(order, &self.lanes.load)

    cdef void begin_execution(self, Order* order) noexcept nogil:
        """Queue an INFER or PROFILE whose inputs fit the model, or end it with a text."""
        cdef int status
        if order.kind == CActionKind.PROFILE:
            order.expected_ns = 0  # unknown: the given time is only a bound
        status = self.join_inputs(order)
        if status == OK:
            # refused, even if there may soon be room
            if self.lanes.run_count(order.executor) >= self.run_ahead:
                self.refuse_full(order)
                return
            status = self.place_run(order)
        if status == OK:
            self.queue(order, self.first if self.first != NULL else self.lanes.execute(order.executor))
        else:
            self.refuse(order, status)

    cdef int join_inputs(self, Order* order) noexcept nogil:
        """Check and join the inputs. Returns OK, or the order's final status, and then sets its text."""
        cdef Joined joined = join(order[0])
        if joined == JOINED_WRONG:
            return INVALID_INPUT
        return DEVICE_ERROR if joined == JOINED_NO_MEMORY else self.describe_run(order)

    cdef bint take_runs(self, Order* order) noexcept nogil:
        """Check the pages that a LOAD names for its model's runs. False: the LOAD was refused."""
        cdef size_t count = order.residency.claim.run_pages.size()
        if order.run_starts.size() != count:
            snprintf(order.text, TEXT_BYTES, "%zu runs of pages for %zu", order.run_starts.size(), count)
            self.refuse(order, BAD_PAGES)
            return False
        return True

    cdef void queue(self, Order* order, Lane* lane) noexcept nogil:
        if not lane.push(order[0], self.run_ahead):
            self.refuse_full(order)

    cdef void refuse_full(self, Order* order) noexcept nogil:
        snprintf(order.text, TEXT_BYTES, "the lane holds %d actions, which is its bound", self.run_ahead)
        self.refuse(order, DEVICE_ERROR)

    cdef void refuse(self, Order* order, int status) noexcept nogil:
        """End an order that was never queued. Its text has been set."""
        self.drop_slot(order)
        order.status = status
        self.lanes.hub.lock()
        self.lanes.hub.end(order[0])
        self.lanes.hub.unlock()

    cdef void free_order(self, Order* order) noexcept nogil:
        """Free an order. Any thread, which holds the GIL if the order came by start()."""
        self.drop_slot(order)
        if order.residency != NULL:
            self.lanes.hub.lock()
            order.residency.pending -= 1
            self.lanes.hub.unlock()
        del order

    cdef void revoke_order(self, uint32_t executor, int64_t action_id) noexcept nogil:
        cdef Order* found = self.lanes.revoke(executor, action_id, ACTION_CANCELLED)
        if found != NULL:
            self.drop_slot(found)

    # ----- for callers in Python -----------------------------------------------------------------

    def start(self, action, parts=(), uint32_t executor=0):
        """Begin an action. parts: the inputs of each part of an INFER."""
        cdef Order* order = self.make_order(action, parts, executor)
        with nogil:
            self.begin(order)

    cdef Order* make_order(self, object action, object parts, uint32_t executor=0) except NULL:
        """Make an order that has not begun. parts: the inputs of each part of an INFER."""
        cdef Order* order = core_make(self, executor)
        if order == NULL:
            raise MemoryError
        try:
            note_order(order, action, parts)
        except BaseException:
            self.free_order(order)
            raise
        return order

    def revoke(self, action_id, uint32_t executor=0):
        self.revoke_order(executor, action_id)

    def fileno(self):
        return self.lanes.hub.event_fd

    def poll(self, int executor=0):
        """Return an executor's completions since the last call."""
        self.take_completions()
        ended, self.completions[executor] = self.completions[executor], []
        return ended

    def ended(self):
        """Return the numbers of the executors for which poll() has completions."""
        self.take_completions()
        return [number for number, ended in enumerate(self.completions) if ended]

    cdef int take_completions(self) except -1:
        """Give each executor the completions of its orders that have ended."""
        cdef Action* action = self.lanes.hub.take_ended()
        cdef Action* after
        cdef uint32_t executor
        while action != NULL:
            after = action.next
            executor = (<Order*>action).executor
            (<list>self.completions[executor]).append(self.finish(<Order*>action))
            action = after
        return 0

    cdef object finish(self, Order* order):
        """Return the Completion of an ended order, and free the order."""
        result = completion_of(order)
        self.free_order(order)
        return result

    def reset(self):
        """Wait for running orders; drop queued orders, unpolled completions, and every residency."""
        cdef KnownModel model
        self.end_all()
        for model in list(self.models.values()):
            if model.at.resident:
                with nogil:
                    self.roster.leave(model.at[0])
                    self.evict(model.at)

    def keep(self):
        """Do the same, but leave every residency, and return them: (model id, load id, first page of each
        run). A LOAD that takes their pages evicts them."""
        cdef KnownModel model
        cdef list found = []
        self.end_all()
        for model in self.models.values():
            if model.at.resident:
                self.roster.keep(model.at[0])
                found.append((model.model_id, model.at.load_id, list(model.at.claim.run_starts)))
        return found

    cdef int end_all(self) except -1:
        """Wait for running orders, and drop all others."""
        with nogil:
            self.cut_short(True)  # the controller has given up the running orders: end them early
        self.drop_all()
        with nogil:
            self.cut_short(False)
        return 0

    cdef int drop_all(self) except -1:
        """Free every order and drop every completion. No order may run."""
        cdef vector[Order*] dropped
        cdef Order* order
        for ended in self.completions:
            ended.clear()
        with nogil:
            dropped = self.lanes.clear()
        for order in dropped:
            self.free_order(order)
        return 0
