# distutils: language = c++
"""The road of requests and results (csrc/controller/exchange.h) for the controller's loop in Python.

What is rare comes up from here as a message or an order, and is decided in Python; of what is wrong, flaw() says in what.
Names and shapes, which are numbers down there, are looked up in the middle of its work.
"""

import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.utility cimport pair

from clockwork.controller._values cimport (
    Interface,
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
    """A frame as it came, for as long as this object: bytes without a copy. Any thread may hold it."""

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
    """The steps that the flight recorder keeps: a stream of bytes, with places since the start. Any thread may read."""

    cdef shared_ptr[CRing] _ring

    def __init__(self, size_t bytes_max, int64_t span_ns):
        """bytes_max 0: nothing is recorded."""
        self._ring.reset(new CRing(bytes_max, span_ns))

    @property
    def is_on(self):
        return bool(self._ring.get().is_on())

    def append(self, int64_t at, bytes step):
        """A step that was told at a time, as scheduler.recording encodes it. For tests: a recorder does so itself."""
        self._ring.get().append(at, view_of(step))

    def read(self, uint64_t since, size_t bytes_max):
        """(place, bytes): at most so many from a place on, or from the oldest kept where that is later."""
        cdef CRingState state = self._ring.get().state()
        cdef uint64_t place = min(max(since, state.begin), state.end)
        cdef size_t asked = min(<uint64_t>bytes_max, state.end - place), size = asked
        cdef bytes found = PyBytes_FromStringAndSize(NULL, asked)
        cdef char *target = PyBytes_AS_STRING(found)
        with nogil:
            place = self._ring.get().read(since, target, size)
        return place, found if size == asked else found[:size]

    def seek(self, int64_t at):
        """Where a step begins that was told at a time or shortly before: at most 64 KiB of steps."""
        return self._ring.get().seek(at)

    def step_from(self, uint64_t place):
        """Where a step begins, at a place or shortly behind."""
        return self._ring.get().step_from(place)

    def step_ns(self, uint64_t place):
        """When the step was told that begins at a place; 0 if that is not kept."""
        return self._ring.get().step_ns(place)

    def state(self):
        """begin and end (places), oldest_ns (0: nothing is kept), steps since the start, bytes_max."""
        cdef CRingState found = self._ring.get().state()
        return {
            "begin": found.begin, "end": found.end, "oldest_ns": found.oldest_ns, "steps": found.steps,
            "bytes_max": found.bytes_max,
        }


cdef class Exchange:
    """Requests and results in, orders and answers out. The thread of the sockets only.

    core: a Core, whose C++ scheduler is driven from here. find_model: the id of the model that a text addresses which is
    no route's, 0 where its requests are turned away. functions: libzmq's. workers, clients: what
    Router.addresses() says. templates, status_names, reasons: see csrc/recording/sentences.h. connections: bounds of
    each side, by side. ring: where the flight recorder writes.
    """

    cdef unique_ptr[CExchange] _exchange
    cdef CExchangeParts *_parts  # of _exchange
    cdef object _core  # owns the scheduler that _exchange calls
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
        """Serve until Python is needed, and for what; OTHER at this time at the latest, and after a signal."""
        cdef CNeed need
        with nogil:
            need = self._exchange.get().run(until)
        if need == C_CLIENT_MESSAGE:
            self.forget_shapes()
        return <int>need

    cdef int forget_shapes(self) except 0:
        """Between decisions: take back the numbers of shapes that nothing needs any more, if there are many."""
        if self._core.forget_shapes():
            self._parts.forget_shapes()
        return 1

    def pause(self, int64_t by):
        """Have run() need PAUSED once, between two decisions: as soon as nothing more has come, or at this time."""
        self._exchange.get().pause(by)

    @property
    def now_ns(self):
        """When the turn began that run() is in."""
        return self._exchange.get().now()

    def flaw(self):
        """What is wrong with message(), after WRONG_REQUEST and WRONG_RESULT: a flaws.Flaw."""
        return flaw_of(self._exchange.get().wrong())

    def message(self):
        """(identity, descriptor or -1, frames): header (bytes) first, or none at all where they make no message."""
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
        """End the connection with this descriptor: its end then comes like any other. False if there is none."""
        return self._exchange.get().port(<CSide>side).disconnect(fd)

    def seat_for(self, int side, int fd, str key):
        """The descriptor whose peer has to leave before one with this key ("": none) joins at this descriptor; SEAT_FREE,
        or SEAT_NONE where nobody has to leave for it."""
        cdef bytes encoded = key.encode()
        cdef CExchange *exchange = self._exchange.get()
        return exchange.port(<CSide>side).seat_for(fd, view_of(encoded), exchange.now())

    def heard(self, int side, int fd):
        """Count the peer at this descriptor as heard of just now."""
        self._exchange.get().port(<CSide>side).heard(fd, self._exchange.get().now())

    def send(self, int side, bytes identity, int fd, bytes header, frames=(), bytes rest=b""):
        """Queue one message for the peer at this descriptor. False if it is gone, or takes nothing any more.

        A connection that has not read too much of what was sent before is ended. frames: anything with bytes, copied. rest:
        more of the header's frame, which is joined here, where it is copied anyway.
        """
        cdef CPort *port = &self._exchange.get().port(<CSide>side)
        cdef Py_ssize_t left = len(frames)
        cdef Py_buffer part
        views = [memoryview(frame).cast("B") for frame in frames]  # before anything is sent: it may raise
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
        """What there is of one side's connections: their number, those without a hello, bytes, and who was cut."""
        return describe_connections(self._exchange.get().port(<CSide>side).connections())

    def note(self, event):
        """Have the scheduler hear of something that only Python knows."""
        cdef CRecorder *recorder = &self._parts.scheduler.recorder()
        cdef bytes encoded = b""
        if recorder.is_on():
            encoded = encode_event(event, recorder.time_ns(event.now_ns))
        self._core.note(event)
        self._parts.scheduler.noted(view_of(encoded))

    def order(self):
        """The order that is Python's."""
        return self._core.order(self._parts.router.place())

    def end_orders(self):
        """All orders have been carried out: forget them, and what they followed from."""
        self._core.end_orders()

    def lost(self):
        """(slots of clients, ids of workers) that could not be reached since this was asked last."""
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
        """Its slot here, until client_left(). None if the connection of its hello has ended."""
        cdef bytes encoded = key.encode()
        cdef uint32_t slot = self._parts.clients.joined(view_of(identity), fd, view_of(encoded), self._exchange.get().now())
        return None if slot == C_NO_SLOT else slot

    def client_left(self, uint32_t client):
        """Send it nothing more, and cancel what it waits for."""
        self._parts.clients.left(client, self._exchange.get().now())

    def fail_all(self, status, str text):
        """Answer every request that is held."""
        cdef bytes encoded = text.encode()
        self._parts.answers.fail_all(<CStatus><uint8_t>status, view_of(encoded), self._exchange.get().now())

    @property
    def held_count(self):
        """Requests that are held, copies for shadows too."""
        return self._parts.requests.size()

    @property
    def copy_count(self):
        """Of them, those copies."""
        return self._parts.shadows.size()

    # ----- workers -----------------------------------------------------------------------------

    def worker_joined(self, bytes identity, int fd, str key, int32_t worker_id, size_t device_count):
        """Its slot here, until worker_left(). None if the connection of its hello has ended."""
        cdef bytes encoded = key.encode()
        cdef uint32_t slot = self._parts.workers.joined(
            view_of(identity), fd, view_of(encoded), worker_id, device_count, self._exchange.get().now()
        )
        return None if slot == C_NO_SLOT else slot

    def worker_left(self, uint32_t worker):
        self._parts.workers.left(worker, self._exchange.get().now())

    def heard_ns(self, uint32_t worker):
        """When it was last heard of."""
        return self._parts.workers.at(worker).heard_ns

    def set_clock(self, uint32_t worker, int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at):
        """The bounds of a worker's clock, of ClockSync.bounds()."""
        self._parts.workers.at(worker).clock.set(upper, upper_at, lower, lower_at)

    def fail_action(self, uint32_t worker, uint64_t action_id, str text):
        """End an action whose result makes no sense. False if it is not under way."""
        cdef bytes encoded = text.encode()
        return bool(self._parts.result_intake.fail_action(worker, action_id, view_of(encoded), self._exchange.get().now()))

    def fail_actions(self, uint32_t worker, str text):
        """End whatever a worker has under way."""
        cdef bytes encoded = text.encode()
        self._parts.result_intake.fail_actions(worker, view_of(encoded), self._exchange.get().now())

    def action_count(self, uint32_t worker):
        """Actions that it has not answered."""
        return self._parts.workers.at(worker).actions.size()

    def actions_sent(self, uint32_t worker):
        """By kind, of those that it was sent."""
        cdef uint64_t *counts = self._parts.workers.at(worker).sent_data()
        return {ACTION_KINDS[kind]: counts[kind] for kind in range(len(ACTION_KINDS)) if counts[kind]}

    def action_results(self, uint32_t worker):
        """By status."""
        cdef uint64_t *counts = self._parts.workers.at(worker).results_data()
        return {status.name.lower(): counts[<int>status] for status in Status if counts[<int>status]}

    # ----- models ------------------------------------------------------------------------------

    def serve(self, int64_t model_id, int64_t version, str label, int64_t slo_ns, Interface interface):
        """A model that requests may be for, or what is new about it."""
        cdef bytes encoded = label.encode()
        self._parts.models.serve(
            model_id, version, view_of(encoded), slo_ns, <shared_ptr[const CModelInterface]>interface._model
        )

    def forget(self, int64_t model_id):
        """It is gone."""
        self._parts.models.forget(model_id)

    def route(self, str text, shares, int64_t shadow=0, int64_t copies=0, double tolerance=0):
        """Requests for this text are for these models, which are served.

        shares: (model, parts of SHARE_WHOLE) each. shadow: to which model so many parts of the others' are copied,
        0 for none; tolerance: of the relative difference of answers.
        """
        cdef bytes encoded = text.encode()
        cdef vector[pair[int64_t, int64_t]] parts
        for model_id, one in shares:
            parts.push_back(pair[int64_t, int64_t](model_id, one))
        self._parts.routes.route(view_of(encoded), parts, shadow, copies, tolerance)

    def shadow_results(self, str text):
        """What became of the copies of this text's requests, by name; None where nothing is copied."""
        cdef bytes encoded = text.encode()
        cdef CShadowTally *tally = self._parts.routes.shadow_tally(view_of(encoded))
        if tally == NULL:
            return None
        cdef CShadowResults found = tally.read()
        return {
            "copied": found.copied, "dropped": found.dropped, "unanswered": found.unanswered, "moot": found.moot,
            "compared": found.compared, "differing": found.differing, "beyond": found.beyond,
            # Finite, for whoever makes JSON of it.
            "absolute_max": min(found.absolute_max, FLOAT_MAX), "relative_max": min(found.relative_max, FLOAT_MAX),
        }

    def unroute(self, str text):
        cdef bytes encoded = text.encode()
        self._parts.routes.unroute(view_of(encoded))

    def forget_references(self):
        """What find_model() said may be something else now."""
        self._parts.routes.forget_references()

    # ----- counts ------------------------------------------------------------------------------

    def outcomes(self, model_id=None):
        """(answered, refused, missed, cancelled, failed, invalid), of one model or of all."""
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
        """By the number of a reason: 1 is the first of messages.Reason."""
        return self._parts.counts.refusals(<CReason><uint8_t>reason)

    def model_counts(self, int64_t model_id):
        """What the query "metrics" says of it, as far as it is counted here; None while nothing was asked of it."""
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
        """Of each device of a worker: actions that ended well, and the time that they took."""
        cdef CDeviceCounts one
        return [
            {
                "executions": one.executions, "busy_ns": one.busy_ns, "loads": one.loads,
                "load_busy_ns": one.load_busy_ns, "unloads": one.unloads,
            }
            for one in self._parts.workers.at(worker).devices
        ]

    def host_counts(self, uint32_t worker):
        """(models fetched into, dropped from) a worker's host store."""
        cdef CWorkerLink *link = &self._parts.workers.at(worker)
        return link.fetches, link.drops

    def lag(self):
        """How late the loop is, as a histogram of turns; see csrc/controller/loop_times.h."""
        return durations_of(self._exchange.get().times().lag())

    def spent_ns(self):
        """Processor time of this thread by what it was for, since is_timed was set."""
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
        """Copies for shadows that the scheduler has at once."""
        return self._parts.shadows.width

    @shadow_width.setter
    def shadow_width(self, size_t value):
        self._parts.shadows.width = value

    @property
    def shared_machine(self):
        """The machine whose memory every worker sees, as wire.shared.machine_id() numbers it; 0: there is none."""
        return self._parts.request_intake.shared_machine

    @shared_machine.setter
    def shared_machine(self, int64_t value):
        self._parts.request_intake.shared_machine = value


REASONS = ("", *[str(reason) for reason in Reason])
