# distutils: language = c++
"""The exchange of requests and results (csrc/controller/exchange.h) for the controller's loop in Python.

Every rarer message or order is handed to Python, which decides about it; flaw() tells the flaw of a wrong
message. The exchange calls Python to look up names and shapes, which are numbers in C++.
"""

import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.utility cimport pair

from clockwork.controller._values cimport (
    ModelInterface,
    connection_bounds,
    describe_connections,
    durations_of,
    flaw_of,
    sentences_of,
    shapes_of,
    view_of,
    word_of,
)
from clockwork.scheduler._core cimport Driven
from clockwork.wire._zmq cimport Functions

from clockwork.wire.messages import ActionKind, Reason, Status
from clockwork.scheduler.recording import encode_event

FLOAT_MAX = sys.float_info.max

OTHER, WORKERS_LEFT, CLIENTS_LEFT = C_OTHER, C_WORKERS_LEFT, C_CLIENTS_LEFT
WORKER_MESSAGE, CLIENT_MESSAGE, ORDER, ORDERS_DONE = C_WORKER_MESSAGE, C_CLIENT_MESSAGE, C_ORDER, C_ORDERS_DONE
WRONG_RESULT, WRONG_REQUEST, PAUSED = C_WRONG_RESULT, C_WRONG_REQUEST, C_PAUSED
WORKERS, CLIENTS = C_WORKERS, C_CLIENTS
SEAT_FREE, SEAT_NONE = C_SEAT_FREE, C_SEAT_NONE


STAGES = ("wait", "receive", "check requests, note results", "look", "schedule", "order and answer", "after orders",
          "free messages", "Python")
TIMES = ("total", "queue", "load", "execute", "copy_in", "copy_out")
ACTION_KINDS = tuple([kind.name.lower() for kind in ActionKind])


cdef class FrameView:
    """A received frame: bytes without a copy, valid as long as this object. Any thread may hold it."""

    cdef CFrame _frame

    def __len__(self):
        return self._frame.size()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._frame.data(), self._frame.size(), 1, flags)


cdef int look_up_model(void *owner, string_view text, int64_t *model_id) except 0 with gil:
    model_id[0] = (<Exchange>owner)._find_model(word_of(text))
    return 1


cdef int look_up_number(void *owner, const vector[int64_t] *shape, uint32_t *number) except 0 with gil:
    cdef Exchange exchange = <Exchange>owner
    exchange.forget_shapes()
    number[0] = exchange._core.shape_number(shapes_of(shape[0]))
    return 1


cdef int look_up_shape(void *owner, uint32_t number, vector[int64_t] *shape) except 0 with gil:
    for dims in (<Exchange>owner)._core.shape_of(number):
        shape.push_back(len(dims))
        for dimension in dims:
            shape.push_back(dimension)
    return 1


cdef class Ring:
    """The flight recorder's steps: a stream of bytes, with places since the start. Any thread may read."""

    cdef shared_ptr[CRing] _ring

    def __init__(self, size_t bytes_max, int64_t span_ns):
        """bytes_max 0: nothing is recorded."""
        self._ring.reset(new CRing(bytes_max, span_ns))

    @property
    def is_on(self):
        return bool(self._ring.get().is_on())

    def append(self, int64_t at, bytes step):
        """Append a step of a time, encoded by scheduler.recording. For tests only."""
        self._ring.get().append(at, view_of(step))

    def read(self, uint64_t since, size_t bytes_max):
        """(place, bytes): at most ``bytes_max`` bytes from a place on, or from the oldest kept if later."""
        cdef CRingState state = self._ring.get().state()
        cdef uint64_t place = min(max(since, state.begin), state.end)
        cdef size_t asked = min(<uint64_t>bytes_max, state.end - place), size = asked
        cdef bytes found = PyBytes_FromStringAndSize(NULL, asked)
        cdef char *target = PyBytes_AS_STRING(found)
        with nogil:
            place = self._ring.get().read(since, target, size)
        return place, found if size == asked else found[:size]

    def seek(self, int64_t at):
        """The place of a step that was told at a time or at most 64 KiB of steps before."""
        return self._ring.get().seek(at)

    def step_from(self, uint64_t place):
        """The beginning of a step, at a place or shortly behind."""
        return self._ring.get().step_from(place)

    def step_ns(self, uint64_t place):
        """The time of the step that begins at a place; 0 if it is not kept."""
        return self._ring.get().step_ns(place)

    def state(self):
        """begin and end (places), oldest_ns (0: nothing is kept), steps since the start, bytes_max."""
        cdef CRingState found = self._ring.get().state()
        return {
            "begin": found.begin, "end": found.end, "oldest_ns": found.oldest_ns, "steps": found.steps,
            "bytes_max": found.bytes_max,
        }


cdef class Exchange:
    """Requests and results in, orders and answers out. Only for the thread of the sockets.

    core: a Core, whose C++ scheduler the exchange drives. find_model: returns the id of the model that a text
    without a route addresses, 0 where its requests are refused. functions: libzmq's. workers, clients:
    results of Router.addresses(). templates, reasons: see csrc/recording/sentences.h. connections: bounds of
    each side, by side. ring: of the flight recorder.
    """

    cdef unique_ptr[CExchange] _exchange
    cdef CExchangeParts *_parts  # parts of _exchange
    cdef object _core  # the binding that owns the scheduler of _exchange
    cdef object _find_model

    def __init__(self, Driven core not None, find_model, Functions functions not None, workers, clients, templates, reasons, *,
                 drain_messages, message_frames, turn_bytes, turn_python_ns, priority_default, queued_requests,
                 connections, Ring ring not None):
        set_zmq(functions.table)
        cdef uintptr_t socket = workers[0], monitor = workers[1]
        cdef CRouterSocket *worker_socket = new CRouterSocket(<void *>socket, <void *>monitor)
        socket, monitor = clients[0], clients[1]
        cdef CRouterSocket *client_socket = new CRouterSocket(<void *>socket, <void *>monitor)
        cdef CLookupFunctions lookups
        lookups.owner = <void *>self
        lookups.model, lookups.shape_number, lookups.shape = look_up_model, look_up_number, look_up_shape
        cdef CBounds bounds
        bounds.drain_messages = drain_messages
        bounds.message_frames = message_frames
        bounds.turn_bytes = turn_bytes
        bounds.turn_python_ns = turn_python_ns
        bounds.priority_default = priority_default
        bounds.queued_requests = queued_requests
        for side in (WORKERS, CLIENTS):
            bounds.connections[<int>side] = connection_bounds(connections[side])
        try:
            self._exchange.reset(
                new CExchange(
                    core._core[0], worker_socket[0], client_socket[0], sentences_of(templates, reasons), lookups, bounds,
                    ring._ring
                )
            )
        finally:
            del worker_socket, client_socket
        self._parts = &self._exchange.get().parts()
        self._core, self._find_model = core, find_model

    # ----- the loop ----------------------------------------------------------------------------

    def wait_on(self, descriptors, others):
        """descriptors: of both routers. others: run() returns OTHER when one of them is readable."""
        self._exchange.get().wait_on(descriptors, others)

    def run(self, int64_t until):
        """Serve until Python is needed; return the reason. OTHER: at this time at the latest, or a signal."""
        cdef CNeed need
        with nogil:
            need = self._exchange.get().run(until)
        if need == C_CLIENT_MESSAGE:
            self.forget_shapes()
        return <int>need

    cdef int forget_shapes(self) except 0:
        """Release the numbers of unused shapes, if there are many. Called between decisions."""
        if self._core.forget_shapes():
            self._parts.forget_shapes()
        return 1

    def pause(self, int64_t by):
        """Have run() return PAUSED once, between two decisions: when no message waits, or at this time."""
        self._exchange.get().pause(by)

    @property
    def now_ns(self):
        """The time at which run()'s present turn began."""
        return self._exchange.get().now()

    def flaw(self):
        """The flaw of message(), a flaws.Flaw, after WRONG_REQUEST and WRONG_RESULT."""
        return flaw_of(self._exchange.get().wrong())

    def message(self):
        """(identity, descriptor or -1, frames): header (bytes) first; no frames if they make no message."""
        cdef CExchange *exchange = self._exchange.get()
        cdef const CArrival *arrival = &exchange.current()
        cdef CFrame *frame = &exchange.haul().frame(arrival.first)
        cdef bytes identity = (<const char *>frame.data())[:frame.size()]
        cdef FrameView view
        cdef uint32_t place
        if arrival.count < 2:
            return identity, -1, []
        frame = &exchange.haul().frame(arrival.first + 1)
        cdef int descriptor = frame.descriptor()
        if descriptor < 0:
            return identity, -1, []
        frames = [(<const char *>frame.data())[:frame.size()]]
        for place in range(arrival.first + 2, arrival.first + arrival.count):
            view = FrameView()
            view._frame.share(exchange.haul().frame(place))
            frames.append(view)
        return identity, descriptor, frames

    def key(self):
        """The public key that the connection of message() was made with; "" where there are no keys."""
        cdef CExchange *exchange = self._exchange.get()
        cdef const CArrival *arrival = &exchange.current()
        cdef string_view found
        if arrival.count < 2:
            return ""
        found = exchange.haul().frame(arrival.first + 1).key()
        return found.data()[:found.size()].decode()

    # ----- connections -------------------------------------------------------------------------

    def ended(self, int side):
        """Descriptors of the connections of clients or workers that have ended since the last call."""
        return self._exchange.get().port(<CSide>side).ended()

    def disconnect(self, int side, int fd):
        """End the connection with this descriptor; ended() then reports it. False if there is none."""
        return self._exchange.get().port(<CSide>side).disconnect(fd)

    def seat_for(self, int side, int fd, str key):
        """The descriptor whose peer has to leave before a peer with this key ("": none) joins at this
        descriptor; SEAT_FREE; or SEAT_NONE where no peer has to leave for it."""
        cdef bytes encoded = key.encode()
        cdef CExchange *exchange = self._exchange.get()
        return exchange.port(<CSide>side).seat_for(fd, view_of(encoded), exchange.now())

    def heard(self, int side, int fd):
        """Count the peer at this descriptor as heard of just now."""
        self._exchange.get().port(<CSide>side).heard(fd, self._exchange.get().now())

    def send(self, int side, bytes identity, int fd, bytes header, frames=(), bytes rest=b""):
        """Queue a message for the peer at this descriptor. False if it is gone, or takes nothing any more.

        A connection with too many unread bytes of earlier messages is ended. frames: bytes-like, copied.
        rest: the end of the header's frame, joined here, where the header is copied anyway.
        """
        cdef CPort *port = &self._exchange.get().port(<CSide>side)
        cdef Py_ssize_t left = len(frames)
        cdef Py_buffer part
        # made before anything is sent, because it may raise
        views = [memoryview(frame).cast("B") for frame in frames]
        if not port.begin(view_of(identity), fd, self._exchange.get().now()):
            return False
        if rest:
            port.send_joined(view_of(header), view_of(rest), left > 0)
        else:
            port.send(view_of(header), left > 0)
        for view in views:
            left -= 1
            if len(view) == 0:
                port.send(string_view(), left > 0)
                continue
            PyObject_GetBuffer(view, &part, PyBUF_SIMPLE)
            try:
                port.send(string_view(<const char *>part.buf, part.len), left > 0)
            finally:
                PyBuffer_Release(&part)
        return True

    def connections(self, int side):
        """Counts of a side's connections: all, those without a hello, their bytes, and those cut by bound."""
        return describe_connections(self._exchange.get().port(<CSide>side).connections())

    def note(self, event):
        """Tell the scheduler an event that only Python knows."""
        cdef CRecorder *recorder = &self._parts.scheduler.recorder()
        cdef bytes encoded = b""
        if recorder.is_on():
            encoded = encode_event(event, recorder.time_ns(event.now_ns))
        self._core.note(event)
        self._parts.scheduler.noted(view_of(encoded))

    def order(self):
        """The order that Python has to carry out."""
        return self._core.order(self._parts.router.place())

    def end_orders(self):
        """Forget the orders of a decision, all carried out, and the events that led to them."""
        self._core.end_orders()

    def lost(self):
        """(slots of clients, ids of workers) that could not be reached since the last call."""
        cdef vector[uint32_t] *clients = &self._parts.clients.lost()
        cdef vector[int32_t] *workers = &self._parts.workers.lost()
        if clients.empty() and workers.empty():
            return (), ()
        found = list(clients[0]), list(workers[0])
        clients.clear()
        workers.clear()
        return found

    # ----- clients -----------------------------------------------------------------------------

    def client_joined(self, bytes identity, int fd, str key):
        """The client's slot, until client_left(). None if the connection of its hello has ended."""
        cdef bytes encoded = key.encode()
        cdef uint32_t slot = self._parts.clients.joined(view_of(identity), fd, view_of(encoded), self._exchange.get().now())
        return None if slot == C_NO_SLOT else slot

    def client_left(self, uint32_t client):
        """Send a client nothing more, and cancel its requests."""
        self._parts.clients.left(client, self._exchange.get().now())

    def fail_all(self, status, str text):
        """Answer every held request with a failure."""
        cdef bytes encoded = text.encode()
        self._parts.answers.fail_all(<CStatus><uint8_t>status, view_of(encoded), self._exchange.get().now())

    @property
    def held_count(self):
        """The number of held requests, copies for shadows included."""
        return self._parts.requests.size()

    @property
    def copy_count(self):
        """The number of held copies for shadows."""
        return self._parts.shadows.size()

    # ----- workers -----------------------------------------------------------------------------

    def worker_joined(self, bytes identity, int fd, str key, int32_t worker_id, size_t device_count):
        """The worker's slot, until worker_left(). None if the connection of its hello has ended."""
        cdef bytes encoded = key.encode()
        cdef uint32_t slot = self._parts.workers.joined(
            view_of(identity), fd, view_of(encoded), worker_id, device_count, self._exchange.get().now()
        )
        return None if slot == C_NO_SLOT else slot

    def worker_left(self, uint32_t worker):
        self._parts.workers.left(worker, self._exchange.get().now())

    def heard_ns(self, uint32_t worker):
        """The time at which a worker was last heard of."""
        return self._parts.workers.at(worker).heard_ns

    def set_clock(self, uint32_t worker, int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at):
        """Set the bounds of a worker's clock, as ClockSync.bounds() gives them."""
        self._parts.workers.at(worker).clock.set(upper, upper_at, lower, lower_at)

    def fail_action(self, uint32_t worker, uint64_t action_id, str text):
        """End an action whose result is invalid. False if it is not under way."""
        cdef bytes encoded = text.encode()
        return bool(self._parts.result_intake.fail_action(worker, action_id, view_of(encoded), self._exchange.get().now()))

    def fail_actions(self, uint32_t worker, str text):
        """End all actions that a worker has under way."""
        cdef bytes encoded = text.encode()
        self._parts.result_intake.fail_actions(worker, view_of(encoded), self._exchange.get().now())

    def action_count(self, uint32_t worker):
        """The number of a worker's unanswered actions."""
        return self._parts.workers.at(worker).actions.size()

    def actions_sent(self, uint32_t worker):
        """The numbers of actions that a worker was sent, by kind."""
        cdef uint64_t *counts = self._parts.workers.at(worker).sent_data()
        return {ACTION_KINDS[kind]: counts[kind] for kind in range(len(ACTION_KINDS)) if counts[kind]}

    def action_results(self, uint32_t worker):
        """The numbers of a worker's results, by status."""
        cdef uint64_t *counts = self._parts.workers.at(worker).results_data()
        return {status.name.lower(): counts[<int>status] for status in Status if counts[<int>status]}

    # ----- models ------------------------------------------------------------------------------

    def serve(self, int64_t model_id, int64_t version, str label, int64_t slo_ns, ModelInterface interface):
        """Serve a model from now on, or change its interface or SLO."""
        cdef bytes encoded = label.encode()
        self._parts.models.serve(
            model_id, version, view_of(encoded), slo_ns, <shared_ptr[const CModelInterface]>interface._model
        )

    def forget(self, int64_t model_id):
        """Forget a model that is gone."""
        self._parts.models.forget(model_id)

    def route(self, str text, shares, int64_t shadow=0, int64_t copies=0, double tolerance=0):
        """Route requests for this text to these models, which are served.

        shares: (model, parts of SHARE_WHOLE) each. shadow: the model that gets copies of the others'
        requests, 0 for none. copies: the copied parts. tolerance: of the relative difference of answers.
        """
        cdef bytes encoded = text.encode()
        cdef vector[pair[int64_t, int64_t]] parts
        for model_id, share in shares:
            parts.push_back(pair[int64_t, int64_t](model_id, share))
        self._parts.routes.route(view_of(encoded), parts, shadow, copies, tolerance)

    def shadow_results(self, str text):
        """Results of the copies of this text's requests, by name; None where nothing is copied."""
        cdef bytes encoded = text.encode()
        cdef CShadowTally *tally = self._parts.routes.shadow_tally(view_of(encoded))
        if tally == NULL:
            return None
        cdef CShadowResults found = tally.read()
        return {
            "copied": found.copied, "dropped": found.dropped, "unanswered": found.unanswered, "moot": found.moot,
            "compared": found.compared, "differing": found.differing, "beyond": found.beyond,
            # Finite, so that JSON can hold it.
            "absolute_max": min(found.absolute_max, FLOAT_MAX), "relative_max": min(found.relative_max, FLOAT_MAX),
        }

    def unroute(self, str text):
        cdef bytes encoded = text.encode()
        self._parts.routes.unroute(view_of(encoded))

    def forget_references(self):
        """Drop the cached results of find_model(), which may have changed."""
        self._parts.routes.forget_references()

    # ----- counts ------------------------------------------------------------------------------

    def outcomes(self, model_id=None):
        """Counts (answered, refused, missed, cancelled, failed, invalid), of a model or of all."""
        cdef COutcomes found
        cdef CServedModel *model
        if model_id is None:
            found = self._parts.counts.all()
        else:
            model = self._parts.models.find(model_id)
            if model == NULL:
                return 0, 0, 0, 0, 0, 0
            found = model.outcomes
        return found.answered, found.refused, found.missed, found.cancelled, found.failed, found.invalid

    def refusals(self, int reason):
        """The number of refusals with a reason, by its number: 1 is the first of messages.Reason."""
        return self._parts.counts.refusals(<CReason><uint8_t>reason)

    def model_counts(self, int64_t model_id):
        """A model's counts of the query "metrics", as far as the exchange counts; None before its first
        request."""
        cdef CServedModel *model = self._parts.models.find(model_id)
        if model == NULL or model.counts() == NULL:
            return None
        cdef CModelCounts *counts = model.counts()
        cdef size_t place
        return {
            "pending": model.held - model.copies,
            "outcomes": {
                "success": model.outcomes.answered,
                "refused": {
                    REASONS[place]: counts.refused_data()[place] for place in range(1, C_REASONS)
                    if counts.refused_data()[place]
                },
                "deadline_missed": model.outcomes.missed,
                "cancelled": model.outcomes.cancelled,
                "failed": model.outcomes.failed,
                "invalid_input": model.outcomes.invalid,
            },
            "inferences": counts.rows,
            "executions": counts.executions,
            "last_ns": counts.last_ns,
            "times": {name: durations_of(counts.time_data()[place]) for place, name in enumerate(TIMES)},
            "batches": {
                str(CBatchCounts.size(place)): [counts.batches.data()[place], counts.batches.sums()[place]]
                for place in range(1, counts.batches.places()) if counts.batches.data()[place]
            },
        }

    def device_counts(self, uint32_t worker):
        """Successful actions, and the time that they took, for each device of a worker."""
        cdef CDeviceCounts device
        return [
            {
                "executions": device.executions, "busy_ns": device.busy_ns, "loads": device.loads,
                "load_busy_ns": device.load_busy_ns, "unloads": device.unloads,
            }
            for device in self._parts.workers.at(worker).devices
        ]

    def host_counts(self, uint32_t worker):
        """(models fetched into, dropped from) a worker's host store."""
        cdef CWorkerLink *link = &self._parts.workers.at(worker)
        return link.fetches, link.drops

    def lag(self):
        """The lateness of the loop, as a histogram of turns; see csrc/controller/loop_times.h."""
        return durations_of(self._exchange.get().times().lag())

    def spent_ns(self):
        """Return this thread's processor time by stage of the loop, since is_timed was set."""
        cdef int64_t *spent = self._exchange.get().times().spent_data()
        return {name: spent[place] for place, name in enumerate(STAGES)}

    @property
    def is_timed(self):
        """Whether spent_ns() is counted, which costs some microseconds a turn."""
        return bool(self._exchange.get().times().is_timed)

    @is_timed.setter
    def is_timed(self, cbool value):
        self._exchange.get().times().is_timed = value

    @property
    def shadow_width(self):
        """The number of copies for shadows that the scheduler has at once."""
        return self._parts.shadows.width

    @shadow_width.setter
    def shadow_width(self, size_t value):
        self._parts.shadows.width = value

    @property
    def shared_machine(self):
        """The machine whose memory every worker sees, by wire.shared.machine_id(); 0: there is none."""
        return self._parts.request_intake.shared_machine

    @shared_machine.setter
    def shared_machine(self, int64_t value):
        self._parts.request_intake.shared_machine = value


REASONS = ("", *[str(reason) for reason in Reason])
