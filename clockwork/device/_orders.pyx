# cython: language_level=3, cdivision=True
"""What devices with native lanes have in common: an order from its start to its completion, and the lanes' loop.

The loop's thread makes an Order of an action, with what it needs of Python (pinned buffers, the model kept alive), and
queues it; a lane's thread runs it without the GIL; and the loop's thread makes a Completion of it. One lock, the hub's,
guards lanes, who owns which page, residency, and which slots are taken; see csrc/device/lane.h and order.h. How weights
are brought and what an execution is, is the device's own.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from clockwork.device._crash cimport crash_at, crash_enter, crash_leave
from clockwork.device._parts cimport list_parts, pin_parts, release_parts, timed_view

from clockwork.device.base import Completion
from clockwork.wire.messages import Status

cdef int OK = Status.OK
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR
cdef int INVALID_INPUT = Status.INVALID_INPUT
cdef int TOO_LATE = Status.TOO_LATE
cdef int ACTION_CANCELLED = Status.ACTION_CANCELLED


cdef class Known:
    """A model that is prepared, and whether it is resident. A subclass sets where both are noted."""

    cdef int set_runs(self, object pages) except -1:
        """How many pages each run takes; none is claimed."""
        for count in pages:
            self.at.claim.add_run(count)
        return 0


cdef class Orders:
    """Models, pages, slots and actions. Methods are for the loop's thread except where they say otherwise."""

    def __cinit__(self, *arguments):
        """arguments: what subclasses take. They call set_bounds(), and fill in ``first`` and ``rooms``."""
        self.models = {}
        self.statuses = {int(status): status for status in Status}
        if self.lanes.hub.event_fd < 0:
            raise OSError("cannot make an eventfd")

    cdef int set_bounds(self, int64_t page_count, size_t page_bytes, int run_ahead, int64_t spin_ns) except -1:
        self.page_count = page_count
        self.page_bytes = page_bytes
        self.run_ahead = run_ahead
        self.spin_ns = spin_ns
        # One for each action that the lanes may hold, and one that prepare() may be enlarging.
        self.slot_count = run_ahead + 1
        self.pages.resize(page_count)
        return 0

    # ----- of each device --------------------------------------------------------------------

    cdef void enter(self, Lane* lane) noexcept nogil:
        """This thread is going to run a lane."""

    cdef Lane* run(self, Lane* lane, Order* order) noexcept nogil:
        """Do what a lane has to do for an order, but for LOAD and UNLOAD. The lane where it goes on; NULL: it ended."""
        return NULL

    cdef bint bring_weights(self, Order* order) noexcept nogil:
        """Fill the pages that a LOAD's model has, and end its span. False, with a sentence, once nothing fills them any
        more."""
        return False

    cdef void drop_weights(self, Residency* at) noexcept nogil:
        """Let go of what bring_weights() has made, whatever of it was done; the pages are given back next."""

    cdef void cut_short(self, bint wanted) noexcept nogil:
        """Whether executions are to end as soon as they can: nobody waits for their outputs."""

    cdef Order* new_order(self) except NULL:
        """One of the device's own kind."""
        return new Order()

    cdef object describe_run(self, Order* order):
        """Look at the inputs that are pinned. A sentence if nothing runs them, else None."""

    cdef object place_run(self, Order* order):
        """Give an execution the slot that it needs; there is one. A sentence if that cannot be, else None."""

    # ----- models ----------------------------------------------------------------------------

    def add_model(self, Known model):
        """Make a model known. Any thread."""
        self.models[model.model_id] = model

    def has_model(self, model_id):
        return model_id in self.models

    def remove_model(self, model_id):
        """The model, if it was known. Any thread. Raises ValueError if it is resident or has actions under way."""
        cdef Known model = self.models.get(model_id)
        if model is None:
            return None
        if model.at.resident or model.pending:
            raise ValueError(f"model {model_id} is {'resident' if model.at.resident else 'in use'}")
        return self.models.pop(model_id)

    # ----- the lanes' threads ------------------------------------------------------------------

    def run_lane(self, name):
        """Run the lane of this name until stop(). The target of a thread."""
        cdef bytes text = name.encode()
        cdef const char* wanted = text
        cdef Lane* lane = self.lanes.find(wanted)
        cdef Lane* onward
        cdef Order* order
        cdef bint tells  # whether its crashes name what it was at
        cdef int64_t spin_ns
        if lane == NULL:
            raise ValueError(f"there is no lane {name!r}")
        with nogil:
            tells = lane == &self.lanes.load or lane == &self.lanes.execute
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
                    if order.kind == LOAD:
                        self.run_load(order)
                    elif order.kind == UNLOAD:
                        self.run_unload(order)
                    else:
                        onward = self.run(lane, order)
                    crash_at(0)
                if onward != NULL:
                    lane.pass_on(order[0], onward[0])
                else:
                    self.drop_room(order)
                    lane.end(order[0])
            crash_leave()

    def stop(self):
        """Have the loops return, each after what it is doing; executions are cut short where they can be."""
        with nogil:
            self.cut_short(True)
            self.lanes.stop()

    cdef void run_load(self, Order* order) noexcept nogil:
        """Check the pages of a LOAD, make them its model's, and fill them."""
        cdef Residency* at = order.residency
        cdef int status = OK
        order.execute.begin()
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
        """Give back the pages, unless an INFER that needs them waits or runs; after it none can start."""
        cdef Residency* at = order.residency
        cdef int status = OK
        order.execute.begin()
        self.lanes.hub.lock()
        if not at.resident or at.load_id != order.load_id:
            status = NOT_RESIDENT
        elif self.lanes.needs(at, order.load_id):
            status = IN_USE
        else:
            at.resident = False
        self.lanes.hub.unlock()
        if status == OK:
            self.evict(at)
        order.execute.end()
        order.status = status

    cdef void evict(self, Residency* at) noexcept nogil:
        self.drop_weights(at)
        self.lanes.hub.lock()
        self.pages.release(at.claim)
        self.lanes.hub.unlock()

    cdef bint is_here(self, Order* order) noexcept nogil:
        """Whether the residency that an action asks for is there. The lock is held. It stays while the action runs:
        UNLOAD looks at the lanes under the same lock."""
        return order.residency.resident and order.residency.load_id == order.load_id

    # ----- pages and slots, any thread ---------------------------------------------------------

    cdef int64_t held_pages(self) noexcept nogil:
        cdef int64_t held
        self.lanes.hub.lock()
        held = self.pages.held_count()
        self.lanes.hub.unlock()
        return held

    cdef size_t slot_bytes(self) noexcept nogil:
        """Of all slots."""
        cdef Room* room
        cdef size_t found = 0
        self.lanes.hub.lock()
        for room in self.rooms:
            found += room.bytes
        self.lanes.hub.unlock()
        return found

    cdef bint take_room(self, Order* order) noexcept nogil:
        """Give an action a slot that nobody uses, the largest of them. False if there is none."""
        cdef Room* room
        cdef Room* best = NULL
        self.lanes.hub.lock()
        for room in self.rooms:
            if not room.busy and (best == NULL or room.bytes > best.bytes):
                best = room
        if best != NULL:
            best.busy = True
        self.lanes.hub.unlock()
        order.room = best
        return best != NULL

    cdef void drop_room(self, Order* order) noexcept nogil:
        if order.room != NULL:
            self.lanes.hub.lock()
            order.room.busy = False
            order.room = NULL
            self.lanes.hub.unlock()

    # ----- what runs ---------------------------------------------------------------------------

    def running(self):
        """The id of the action that the execute lane is at; 0 if it is at none. Any thread."""
        return self.lanes.running(self.lanes.execute)

    def moving(self):
        """The ids of the actions that the load lane and the fetch lane are at; 0: none, or it waits for the link."""
        cdef bint waits
        self.lanes.hub.lock()
        waits = self.waits_for_link
        self.lanes.hub.unlock()
        return 0 if waits else self.lanes.running(self.lanes.load), self.lanes.running(self.lanes.fetch)

    def end_run(self, int64_t action_id):
        """Nothing, unless a device can do better: what a GPU was given ends when it does, or with its process."""

    # ----- actions -----------------------------------------------------------------------------

    def start_load(self, action):
        cdef Order* order = self.make_order(LOAD, action)
        if order.status == PENDING and self.take_runs(order, action):
            self.queue(order, &self.lanes.load)

    def start_unload(self, action):
        self.start(UNLOAD, action, &self.lanes.load)

    def start_fetch(self, action):
        """The fetch lane must run, and the models be made for a host store with a budget: so for a DROP."""
        self.start(FETCH, action, &self.lanes.fetch)

    def start_drop(self, action):
        self.start(DROP, action, &self.lanes.fetch)

    cdef int start(self, Kind kind, object action, Lane* lane) except -1:
        cdef Order* order = self.make_order(kind, action)
        if order.status == PENDING:
            self.queue(order, lane)
        return 0

    def start_infer(self, action, parts):
        cdef Order* order = self.make_order(INFER, action)
        if order.status == PENDING:
            self.start_run(order, parts, False)

    def start_profile(self, action):
        cdef Order* order = self.make_order(PROFILE, action)
        if order.status == PENDING:
            dtypes = (<Known>order.owner).input_dtypes[0]
            self.start_run(order, [[timed_view(dtype, shape) for dtype, shape in zip(dtypes, action.shapes)]], True)

    cdef int start_run(self, Order* order, object views, bint without_data) except -1:
        """Queue an INFER or PROFILE whose inputs are what the model takes, or end it with a sentence."""
        cdef Known known
        try:
            known = <Known>order.owner
            problem = pin_parts(&order.parts, known.input_dtypes, known.lengths, views, without_data)
            if problem is None:
                problem = self.describe_run(order)
        except BaseException:
            self.free_order(order)
            raise
        if problem is None:
            if self.lanes.run_count() >= self.run_ahead:  # refused, even if there is room in a moment
                return self.refuse_full(order)
            problem = self.place_run(order)
        if problem is not None:
            return self.refuse(order, INVALID_INPUT, problem)
        return self.queue(order, self.first)

    def revoke(self, action_id):
        cdef Order* found = self.lanes.revoke(action_id, ACTION_CANCELLED)
        if found != NULL:
            self.drop_room(found)

    def fileno(self):
        return self.lanes.hub.event_fd

    def poll(self):
        cdef Action* action = self.lanes.hub.take_ended()
        cdef Action* after
        cdef list ended = []
        while action != NULL:
            after = action.next
            ended.append(self.finish(<Order*>action))
            action = after
        return ended

    cdef Order* make_order(self, Kind kind, object action) except NULL:
        """An order with what all have; it holds its model, or has been refused if that is not known (then it is no
        longer the caller's, and its status is not PENDING)."""
        cdef int64_t action_id = action.action_id, load_id = action.load_id
        cdef int64_t earliest_ns = action.earliest_ns, latest_ns = action.latest_ns
        cdef Known model = self.models.get(action.model_id)
        cdef Order* order = self.new_order()
        order.action_id = action_id
        order.earliest_ns = earliest_ns
        order.latest_ns = latest_ns
        order.kind = kind
        order.load_id = load_id
        if kind != PROFILE:  # whose expected_ns is a bound, because nobody knows
            order.expected_ns = action.expected_ns
        if model is None:
            self.refuse(order, UNKNOWN_MODEL, f"model {action.model_id} is not prepared here")
            return order
        model.pending += 1
        Py_INCREF(model)
        order.owner = <PyObject*>model
        order.residency = model.at
        return order

    cdef bint take_runs(self, Order* order, object load) except -1:
        """Note where a LOAD is to put its model's runs; False: it was refused."""
        cdef size_t count = order.residency.claim.run_pages.size()
        try:
            order.run_starts = load.run_starts
        except BaseException:
            self.free_order(order)
            raise
        if order.run_starts.size() != count:
            self.refuse(order, BAD_PAGES, f"{order.run_starts.size()} runs of pages for {count}")
            return False
        return True

    cdef int queue(self, Order* order, Lane* lane) except -1:
        if not lane.push(order[0], self.run_ahead):
            self.refuse_full(order)
        return 0

    cdef int refuse_full(self, Order* order) except -1:
        return self.refuse(order, DEVICE_ERROR, f"the lane holds {self.run_ahead} actions, which is its bound")

    cdef int refuse(self, Order* order, int status, str text) except -1:
        """End an action that was never queued."""
        cdef bytes message = text.encode()[:TEXT_BYTES - 1]
        memcpy(order.text, <const char*>message, len(message) + 1)
        self.drop_room(order)
        order.status = status
        self.lanes.hub.lock()
        self.lanes.hub.end(order[0])
        self.lanes.hub.unlock()
        return 0

    cdef object finish(self, Order* order):
        """The Completion of an ended action, which is freed."""
        cdef list parts = []
        if order.status == OK and order.parts.block != NULL:
            parts = list_parts(&order.parts)
        result = Completion(
            order.action_id,
            self.statuses[order.status],
            (<bytes>order.text).decode(errors="replace"),
            [order.copy_in.begin_ns, order.copy_in.end_ns, order.copy_in.duration_ns],
            [order.execute.begin_ns, order.execute.end_ns, order.execute.duration_ns],
            [order.copy_out.begin_ns, order.copy_out.end_ns, order.copy_out.duration_ns],
            parts,
        )
        self.free_order(order)
        return result

    cdef int free_order(self, Order* order) except -1:
        cdef Known model
        self.drop_room(order)
        release_parts(&order.parts)
        if order.owner != NULL:
            model = <Known>order.owner
            model.pending -= 1
            Py_DECREF(model)
        del order
        return 0

    def reset(self):
        """Wait for what runs; drop what is queued, what has not been polled, and every residency."""
        cdef Known model
        with nogil:
            self.cut_short(True)  # who sent what runs has given it up: it is not waited for longer than it must be
        self.drop_all()
        with nogil:
            self.cut_short(False)
        for model in list(self.models.values()):
            if model.at.resident:
                with nogil:
                    model.at.resident = False
                    self.evict(model.at)

    cdef int drop_all(self) except -1:
        """Free every order, once nothing runs."""
        cdef vector[Order*] dropped
        cdef Order* order
        with nogil:
            dropped = self.lanes.clear()
        for order in dropped:
            self.free_order(order)
        return 0
