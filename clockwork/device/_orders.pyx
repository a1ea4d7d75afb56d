# cython: language_level=3, cdivision=True
"""What a device with native lanes does with an order before its lane takes it and after it has ended.

The loop's thread makes an action of an order, with what it needs of Python (pinned buffers, the model kept alive),
and queues it; a lane's thread runs it without the GIL; and the loop's thread makes a Completion of it. One lock, the
hub's, guards lanes, who owns which page, residency, and which slots are taken; see csrc/device/lane.h. The lanes themselves,
and what they run, are the device's own.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from clockwork.device._parts cimport free_parts, list_parts

from clockwork.device.base import Completion
from clockwork.wire.messages import Status

cdef int OK = Status.OK
cdef int NOT_RESIDENT = Status.NOT_RESIDENT
cdef int IN_USE = Status.IN_USE
cdef int BAD_PAGES = Status.BAD_PAGES
cdef int UNKNOWN_MODEL = Status.UNKNOWN_MODEL
cdef int DEVICE_ERROR = Status.DEVICE_ERROR


cdef void span_begin(Span* span) noexcept nogil:
    span.begin_ns = cw_now()


cdef void span_end(Span* span) noexcept nogil:
    span.end_ns = cw_now()
    span.duration_ns = span.end_ns - span.begin_ns


cdef bint holds(cw_lane* lane, Residency* residency, int64_t load_id) noexcept nogil:
    """Whether a lane's queue or what it runs is work on this residency. The lock is held."""
    cdef Order* order = <Order*>lane.running
    if order != NULL and order.residency == residency and order.load_id == load_id:
        return True
    order = <Order*>lane.head
    while order != NULL:
        if order.residency == residency and order.load_id == load_id:
            return True
        order = <Order*>order.base.next
    return False


cdef class Known:
    """A model that is prepared, and whether it is resident."""

    cdef int set_runs(self, object pages) except -1:
        """How many pages each run takes; none is claimed."""
        cdef int run
        self.at.claim.run_pages = <int64_t*>calloc(len(pages) + 1, sizeof(int64_t))
        self.at.claim.run_starts = <int64_t*>calloc(len(pages) + 1, sizeof(int64_t))
        if self.at.claim.run_pages == NULL or self.at.claim.run_starts == NULL:
            raise MemoryError
        for run, count in enumerate(pages):
            self.at.claim.run_pages[run] = count
            self.at.claim.run_starts[run] = -1
        self.at.claim.run_count = len(pages)
        return 0

    def __dealloc__(self):
        free(self.at.claim.run_pages)
        free(self.at.claim.run_starts)


cdef class Orders:
    """Models, pages, slots and actions. Methods are for the loop's thread except where they say otherwise."""

    def __cinit__(self, *arguments):
        """arguments: what subclasses take. They call set_bounds()."""
        self.models = {}
        self.statuses = {int(status): status for status in Status}
        if cw_hub_init(&self.hub):
            raise OSError("cannot make an eventfd")
        self.has_hub = True

    cdef int set_bounds(self, int64_t page_count, size_t page_bytes, int run_ahead) except -1:
        self.page_count = page_count
        self.page_bytes = page_bytes
        self.run_ahead = run_ahead
        # One for each action that the lanes may hold, and one that prepare() may be enlarging.
        self.slot_count = run_ahead + 1
        self.owners = <cw_claim**>calloc(page_count, sizeof(cw_claim*))
        if self.owners == NULL:
            raise MemoryError
        return 0

    cdef int close_hub(self) except -1:
        """Once; nobody uses the lock any more."""
        if self.has_hub:
            self.has_hub = False
            cw_hub_free(&self.hub)
        return 0

    def __dealloc__(self):
        self.close_hub()
        free(self.owners)

    # ----- of each device --------------------------------------------------------------------

    cdef Room* room(self, int index) noexcept nogil:
        """Of a slot, below slot_count."""
        return NULL

    cdef cw_lane* executing(self) noexcept nogil:
        """The lane that executes."""
        return NULL

    cdef cw_lane* loading(self) noexcept nogil:
        """The lane that loads."""
        return NULL

    cdef cw_lane* fetching(self) noexcept nogil:
        """The lane that fetches into a host store; NULL: there is none."""
        return NULL

    cdef bint is_used(self, Residency* residency, int64_t load_id) noexcept nogil:
        """Whether work on this residency waits or runs. The lock is held."""
        return False

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

    # ----- pages and slots, any thread ---------------------------------------------------------

    cdef int64_t held_pages(self) noexcept nogil:
        cdef int64_t page, held = 0
        cw_hub_lock(&self.hub)
        for page in range(self.page_count):
            held += self.owners[page] != NULL
        cw_hub_unlock(&self.hub)
        return held

    cdef size_t slot_bytes(self) noexcept nogil:
        """Of all slots."""
        cdef int index
        cdef size_t found = 0
        cw_hub_lock(&self.hub)
        for index in range(self.slot_count):
            found += self.room(index).bytes
        cw_hub_unlock(&self.hub)
        return found

    cdef bint take_room(self, Order* order) noexcept nogil:
        """Give an action a slot that nobody uses, the largest of them. False if there is none."""
        cdef int index
        cdef Room* one
        cdef Room* best = NULL
        cw_hub_lock(&self.hub)
        for index in range(self.slot_count):
            one = self.room(index)
            if not one.busy and (best == NULL or one.bytes > best.bytes):
                best = one
        if best != NULL:
            best.busy = True
        cw_hub_unlock(&self.hub)
        order.room = best
        return best != NULL

    cdef void drop_room(self, Order* order) noexcept nogil:
        if order.room != NULL:
            cw_hub_lock(&self.hub)
            order.room.busy = False
            order.room = NULL
            cw_hub_unlock(&self.hub)

    cdef int claim(self, Order* order) noexcept nogil:
        """Check the pages of a LOAD and make them its model's. A status, and a sentence if it is not OK."""
        cdef Residency* at = order.residency
        cdef int status = OK
        cw_hub_lock(&self.hub)
        if at.resident:
            snprintf(order.text, TEXT_BYTES, "the model is resident already, as load %lld", <long long>at.load_id)
            status = DEVICE_ERROR
        elif cw_claim_pages(self.owners, self.page_count, &at.claim, order.run_starts, order.text, TEXT_BYTES):
            status = BAD_PAGES
        cw_hub_unlock(&self.hub)
        return status

    cdef int begin_unload(self, Order* order) noexcept nogil:
        """A status; if it is OK no INFER of the model is under way or can start, and it still has its pages."""
        cdef Residency* at = order.residency
        cdef int status = OK
        cw_hub_lock(&self.hub)
        if not at.resident or at.load_id != order.load_id:
            status = NOT_RESIDENT
        elif self.is_used(at, order.load_id):
            status = IN_USE
        else:
            at.resident = False
        cw_hub_unlock(&self.hub)
        return status

    cdef bint is_here(self, Order* order) noexcept nogil:
        """Whether the residency that an action asks for is there. The lock is held. It stays while the action runs:
        UNLOAD looks at the lanes under the same lock."""
        return order.residency.resident and order.residency.load_id == order.load_id

    # ----- what runs ---------------------------------------------------------------------------

    def running(self):
        """The id of the action that the execute lane is at; 0 if it is at none. Any thread."""
        return self.action_of(self.executing())

    def moving(self):
        """The ids of the actions that the load lane and the fetch lane are at; 0: none, or it waits for the link."""
        cdef bint waits
        cw_hub_lock(&self.hub)
        waits = self.waits_for_link
        cw_hub_unlock(&self.hub)
        return 0 if waits else self.action_of(self.loading()), self.action_of(self.fetching())

    cdef int64_t action_of(self, cw_lane* lane) noexcept nogil:
        """What a lane is at; 0: nothing."""
        cdef int64_t action_id = 0
        if lane == NULL:
            return 0
        cw_hub_lock(&self.hub)
        if lane.running != NULL:
            action_id = lane.running.action_id
        cw_hub_unlock(&self.hub)
        return action_id

    def end_run(self, int64_t action_id):
        """Nothing, unless a device can do better: what a GPU was given ends when it does, or with its process."""

    # ----- actions -----------------------------------------------------------------------------

    def fileno(self):
        return self.hub.event_fd

    def poll(self):
        cdef cw_action* action = cw_hub_take(&self.hub)
        cdef cw_action* after
        cdef list ended = []
        while action != NULL:
            after = action.next
            ended.append(self.finish(<Order*>action))
            action = after
        return ended

    cdef Order* make_order(self, size_t size, Kind kind, object order) except NULL:
        """An action of so many bytes with what all have; it holds its model, or has been refused if that is not known
        (then it is no longer the caller's, and its status is not CW_PENDING)."""
        cdef int64_t action_id = order.action_id, load_id = order.load_id
        cdef int64_t earliest_ns = order.earliest_ns, latest_ns = order.latest_ns
        cdef Known model = self.models.get(order.model_id)
        cdef Order* action = <Order*>calloc(1, size)
        if action == NULL:
            raise MemoryError
        action.base.action_id = action_id
        action.base.earliest_ns = earliest_ns
        action.base.latest_ns = latest_ns
        action.base.status = CW_PENDING
        action.kind = kind
        action.load_id = load_id
        if model is None:
            self.refuse(action, UNKNOWN_MODEL, f"model {order.model_id} is not prepared here")
            return action
        model.pending += 1
        Py_INCREF(model)
        action.owner = <PyObject*>model
        action.residency = &model.at
        return action

    cdef bint take_runs(self, Order* action, object order) except -1:
        """Note where a LOAD is to put its model's runs; False: it was refused."""
        cdef int run, count = action.residency.claim.run_count
        if len(order.run_starts) != count:
            self.refuse(action, BAD_PAGES, f"{len(order.run_starts)} runs of pages for {count}")
            return False
        action.run_starts = <int64_t*>calloc(count + 1, sizeof(int64_t))
        if action.run_starts == NULL:
            self.free_order(action)
            raise MemoryError
        for run in range(count):
            action.run_starts[run] = order.run_starts[run]
        return True

    cdef int queue(self, Order* action, cw_lane* lane) except -1:
        if cw_lane_push(lane, &action.base, self.run_ahead):
            self.refuse_full(action)
        return 0

    cdef int refuse_full(self, Order* action) except -1:
        self.refuse(action, DEVICE_ERROR, f"the lane holds {self.run_ahead} actions, which is its bound")
        return 0

    cdef int refuse(self, Order* action, int status, str text) except -1:
        """End an action that was never queued."""
        cdef bytes message = text.encode()[:TEXT_BYTES - 1]
        memcpy(action.text, <const char*>message, len(message))
        self.drop_room(action)
        action.base.status = status
        cw_hub_lock(&self.hub)
        cw_hub_end(&self.hub, &action.base)
        cw_hub_unlock(&self.hub)
        return 0

    cdef object finish(self, Order* action):
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
        self.free_order(action)
        return result

    cdef int free_order(self, Order* action) except -1:
        cdef Known model
        self.drop_room(action)
        free_parts(&action.parts)
        if action.owner != NULL:
            model = <Known>action.owner
            model.pending -= 1
            Py_DECREF(model)
        free(action.run_starts)
        free(action)
        return 0

    cdef int free_list(self, cw_action* head) except -1:
        cdef cw_action* after
        while head != NULL:
            after = head.next
            self.free_order(<Order*>head)
            head = after
        return 0
