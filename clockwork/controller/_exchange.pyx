# distutils: language = c++
"""The controller's short road (csrc/controller/exchange.h) for its loop in Python.

What is rare comes up from here as a message or an order, is decided in Python, and goes back down: an admitted
request, a peer that came or went, a model's routes.
"""

import sys

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp.memory cimport make_shared, shared_ptr, unique_ptr
from libcpp.utility cimport pair

from clockwork.system.limits import memory_bytes
from clockwork.wire.messages import Reason, Status
from clockwork.scheduler.types import ActionDone, Arrived, Request, RequestCancelled
from clockwork.wire.tensors import DTYPES, STRING

FLOAT_MAX = sys.float_info.max

OTHER, WORKERS_LEFT, CLIENTS_LEFT = C_OTHER, C_WORKERS_LEFT, C_CLIENTS_LEFT
WORKER_MESSAGE, CLIENT_MESSAGE, ORDER, ORDERS_DONE = C_WORKER_MESSAGE, C_CLIENT_MESSAGE, C_ORDER, C_ORDERS_DONE
WORKERS, CLIENTS = C_WORKERS, C_CLIENTS

STAGES = ("wait", "receive", "check requests, note results", "look", "schedule", "order and answer", "after orders",
          "free messages", "Python")
METRIC_BOUNDS_NS = tuple([C_METRIC_BOUNDS()[place] for place in range(C_METRIC_BOUND_COUNT())])
TIMES = ("total", "queue", "load", "execute", "copy_in", "copy_out")
BOUNDS = {
    "request_header_bytes": C_REQUEST_HEADER_BYTES_MAX, "result_header_bytes": C_RESULT_HEADER_BYTES_MAX,
    "reference_bytes": C_REFERENCE_BYTES_MAX, "name_bytes": C_NAME_BYTES_MAX, "sentence_bytes": C_SENTENCE_BYTES_MAX,
    "tensors": C_TENSORS_MAX, "parts": C_PARTS_MAX, "rank": C_RANK_MAX, "frame": C_FRAME_MAX, "dtype": C_DTYPE_MAX,
    "priority": C_PRIORITY_MAX,
}
CUT_REASONS = ("asked", "crowd", "received", "received_all", "unread", "unread_all", "memory")
ACTION_KINDS = ("load", "unload", "infer", "profile", "fetch", "drop")


cdef string_view view_of(bytes text):
    return string_view(<const char *>text, len(text))


cdef class FrameView:
    """A frame as it came, for as long as this object: bytes without a copy. Any thread may hold it."""

    cdef CFrame _frame

    def __len__(self):
        return self._frame.size()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._frame.data(), self._frame.size(), 1, flags)


cdef class Interface:
    """What a model takes and gives, as PreparedModel declares it; models of one program may share one."""

    cdef object __weakref__
    cdef shared_ptr[CModelInterface] _model

    def __init__(self, inputs, outputs, batches, verified):
        """inputs, outputs: of TensorSpec. batches: as PreparedModel's. verified: the outputs' shapes are what the model
        returned, and every answer is held against them; else against their dtypes alone."""
        self._model = make_shared[CModelInterface]()
        cdef CModelInterface *model = self._model.get()
        cdef CInputSpec one
        cdef COutputSpec given
        symbols = {}
        for spec in inputs:
            one = CInputSpec()
            one.name = spec.name.encode()
            one.dtype = spec.dtype
            kind = DTYPES.get(spec.dtype)
            one.bits = kind.bits if kind is not None and spec.dtype != STRING else 0
            one.any_rank = spec.shape == ("...",)
            for dimension in spec.shape if not one.any_rank else ():
                one.symbols.push_back(-1)
                if type(dimension) is int:
                    if not 0 <= dimension < 1 << 62:
                        one.bits = 0  # Python will say that no dimension is this one
                        dimension = C_DIMENSION_ANY
                    one.dims.push_back(dimension)
                    continue
                one.dims.push_back(C_DIMENSION_ANY)
                if type(dimension) is str and dimension:
                    one.symbols[one.symbols.size() - 1] = symbols.setdefault(dimension, len(symbols))
            model.inputs.push_back(one)
        for spec in outputs:
            model.outputs.push_back(spec.name.encode())
            given = COutputSpec()
            given.dtype = spec.dtype
            kind = DTYPES.get(spec.dtype)
            given.bits = -1 if kind is None else 0 if spec.dtype == STRING else kind.bits
            given.any_rank = not verified or spec.shape == ("...",)
            for dimension in spec.shape if not given.any_rank else ():
                given.dims.push_back(dimension if type(dimension) is int else C_DIMENSION_ANY)
            model.given.push_back(given)
        model.symbol_count = len(symbols)
        model.batches = batches


cdef vector[int64_t] shape_of(shapes) except *:
    """A shape key as Accepted::shape has it: each input's rank and dimensions."""
    cdef vector[int64_t] found
    for shape in shapes:
        found.push_back(len(shape))
        for dimension in shape:
            found.push_back(dimension)
    return found


cdef CSentences sentences_of(templates, reasons) except *:
    cdef vector[string] texts, names, words
    by_number = {status.value: status.name for status in Status}
    for text in templates:
        texts.push_back(text.encode())
    for number in range(C_STATUS_COUNT):
        names.push_back(by_number.get(number, "").encode())
    for text in reasons:
        words.push_back(text.encode())
    return CSentences(texts, names, words)


cdef CConnectionBounds connection_bounds(bounds) except *:
    cdef CConnectionBounds found
    found.ungreeted = bounds.ungreeted
    found.hello_bytes = bounds.hello_bytes
    found.hello_bytes_all = bounds.hello_bytes_all
    found.received_bytes = bounds.received_bytes
    found.received_bytes_all = bounds.received_bytes_all
    found.unread_bytes = bounds.unread_bytes
    found.unread_bytes_all = bounds.unread_bytes_all
    found.memory_bytes = int(bounds.memory_share * memory_bytes())
    return found


cdef dict describe_connections(const CConnections &connections):
    cdef size_t place
    return {
        "open": connections.size(),
        "ungreeted": connections.ungreeted(),
        "unread_bytes": connections.unread_bytes(),
        "received_bytes": connections.behind_bytes(),
        "cut": {
            reason: connections.cut_counts()[place] for place, reason in enumerate(CUT_REASONS)
            if connections.cut_counts()[place]
        },
    }


cdef dict durations_of(const CDurations &one):
    """As the query "metrics" has it: the counts add up from bucket to bucket."""
    cdef uint64_t seen = 0
    cdef size_t place
    cdef list buckets = []
    for place in range(one.size()):
        seen += one.data()[place]
        buckets.append(seen)
    return {"count": seen, "sum_ns": one.sum_ns, "buckets": buckets}


cdef class Exchange:
    """Requests and results in, orders and answers out. The thread of the sockets only.

    core: a Core, whose C++ scheduler is driven from here. functions: of _zmq.functions(). workers, clients: what
    Router.addresses() says. templates, status_names, reasons: see csrc/controller/sentences.h. connections: bounds of
    each side, by side.
    """

    cdef unique_ptr[CExchange] _exchange
    cdef object _core  # owns the scheduler that _exchange calls
    cdef list _noted  # for a recording: events of Python's

    def __init__(self, core, functions, workers, clients, templates, reasons, *,
                 drain_messages, message_frames, turn_bytes, turn_python_ns, priority_default, queued_requests,
                 connections):
        cdef uintptr_t address = functions
        set_zmq(<const clockwork_zmq_api *>address)
        address = core.address
        cdef CScheduler *scheduler = <CScheduler *>address
        cdef uintptr_t socket = workers[0], monitor = workers[1]
        cdef CRouterSocket *worker_socket = new CRouterSocket(<void *>socket, <void *>monitor)
        socket, monitor = clients[0], clients[1]
        cdef CRouterSocket *client_socket = new CRouterSocket(<void *>socket, <void *>monitor)
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
                new CExchange(scheduler[0], worker_socket[0], client_socket[0], sentences_of(templates, reasons), bounds)
            )
        finally:
            del worker_socket, client_socket
        self._core = core
        self._noted = []

    # ----- the loop ----------------------------------------------------------------------------

    def wait_on(self, descriptors, others):
        """descriptors: of both routers. others: run() returns OTHER when one of them is readable."""
        self._exchange.get().wait_on(descriptors, others)

    def run(self, int64_t until):
        """Serve until Python is needed, and for what; OTHER at this time at the latest, and after a signal."""
        cdef CNeed need
        with nogil:
            need = self._exchange.get().run(until)
        if need == C_CLIENT_MESSAGE and self._core.forget_shapes():
            self._exchange.get().forget_shapes()
        return <int>need

    @property
    def now_ns(self):
        """When the turn began that run() is in."""
        return self._exchange.get().now()

    def message(self):
        """(identity, descriptor or -1, frames): header (bytes) first, or none at all where they make no message."""
        cdef CExchange *exchange = self._exchange.get()
        cdef const CArrival *arrival = &exchange.current()
        cdef CFrame *frame = &exchange.batch().frame(arrival.first)
        cdef bytes identity = (<const char *>frame.data())[:frame.size()]
        cdef FrameView view
        cdef uint32_t place
        if arrival.count < 2:
            return identity, -1, []
        frame = &exchange.batch().frame(arrival.first + 1)
        cdef int descriptor = frame.descriptor()
        if descriptor < 0:
            return identity, -1, []
        frames = [(<const char *>frame.data())[:frame.size()]]
        for place in range(arrival.first + 2, arrival.first + arrival.count):
            view = FrameView()
            view._frame.share(exchange.batch().frame(place))
            frames.append(view)
        return identity, descriptor, frames

    def key(self):
        """The public key that the connection of message() was made with; "" where there are no keys."""
        cdef CExchange *exchange = self._exchange.get()
        cdef const CArrival *arrival = &exchange.current()
        cdef string_view found
        if arrival.count < 2:
            return ""
        found = exchange.batch().frame(arrival.first + 1).key()
        return found.data()[:found.size()].decode()

    # ----- connections -------------------------------------------------------------------------

    def ended(self, int side):
        """Descriptors of the connections of clients or workers that have ended since the last call."""
        return self._exchange.get().ended(<CSide>side)

    def disconnect(self, int side, int fd):
        """End the connection with this descriptor: its end then comes like any other. False if there is none."""
        return self._exchange.get().disconnect(<CSide>side, fd)

    def send(self, int side, bytes identity, int fd, bytes header, frames=()):
        """Queue one message for the peer at this descriptor. False if it is gone, or takes nothing any more.

        A connection that has not read too much of what was sent before is ended. frames: anything with bytes, copied.
        """
        cdef CExchange *exchange = self._exchange.get()
        cdef Py_ssize_t left = len(frames)
        cdef const unsigned char[::1] part
        views = [memoryview(frame).cast("B") for frame in frames]  # before anything is sent: it may raise
        if not exchange.begin(<CSide>side, view_of(identity), fd):
            return False
        exchange.send(<CSide>side, view_of(header), left > 0)
        for view in views:
            left -= 1
            if len(view) == 0:
                exchange.send(<CSide>side, string_view(), left > 0)
                continue
            part = view
            exchange.send(<CSide>side, string_view(<const char *>&part[0], part.shape[0]), left > 0)
        return True

    def connections(self, int side):
        """What there is of one side's connections: their number, those without a hello, bytes, and who was cut."""
        return describe_connections(self._exchange.get().connections(<CSide>side))

    def note(self, event):
        """Have the scheduler hear of something that only Python knows."""
        self._core.note(event)
        self._exchange.get().note()
        if self._exchange.get().is_recording:
            self._noted.append(event)

    def order(self):
        """The order that is Python's."""
        return self._core.order(self._exchange.get().order_place())

    def end_orders(self):
        """All orders have been carried out: forget them, and what they followed from."""
        self._core.end_orders()
        self._noted.clear()
        self._exchange.get().told.clear()

    def orders(self):
        """All orders of the decision, until end_orders()."""
        return self._core.orders()

    def events(self):
        """What the scheduler was told since end_orders(), in order, if is_recording."""
        cdef CToldEvent *told
        cdef size_t place
        noted = iter(self._noted)
        found = []
        for place in range(self._exchange.get().told.size()):
            told = &self._exchange.get().told[place]
            if told.kind == C_ARRIVED:
                request = Request(
                    told.request.id, told.request.model_id, told.request.rows,
                    self._core.shape_of(told.request.shape), told.request.bytes, told.request.arrived_ns,
                    told.request.deadline_ns, told.request.priority,
                )
                found.append(Arrived(told.now, request))
            elif told.kind == C_CANCELLED:
                found.append(RequestCancelled(told.now, told.request.id))
            elif told.kind == C_ACTION_DONE:
                found.append(ActionDone(
                    told.now, told.result.worker, told.result.action_id, Status(<uint8_t>told.result.status),
                    told.text.decode(), told.result.begin_ns, told.result.end_ns, told.result.duration_ns,
                    told.result.ready_ns,
                ))
            else:
                found.append(next(noted))
        return found

    @property
    def is_recording(self):
        """Whether events() are kept."""
        return bool(self._exchange.get().is_recording)

    @is_recording.setter
    def is_recording(self, cbool value):
        self._exchange.get().is_recording = value

    def lost(self):
        """(slots of clients, ids of workers) that could not be reached since this was asked last."""
        cdef CExchange *exchange = self._exchange.get()
        if exchange.lost_clients.empty() and exchange.lost_workers.empty():
            return (), ()
        found = list(exchange.lost_clients), list(exchange.lost_workers)
        exchange.lost_clients.clear()
        exchange.lost_workers.clear()
        return found

    # ----- clients -----------------------------------------------------------------------------

    def client_joined(self, bytes identity, int fd):
        """Its slot here, until client_left(). None if the connection of its hello has ended."""
        cdef uint32_t slot = self._exchange.get().client_joined(view_of(identity), fd)
        return None if slot == C_NO_SLOT else slot

    def client_left(self, uint32_t client):
        """Send it nothing more, and cancel what it waits for."""
        self._exchange.get().client_left(client)

    def has_request(self, uint32_t client, int64_t request_id):
        return bool(self._exchange.get().has_request(client, request_id))

    def cancel(self, uint32_t client, int64_t request_id):
        """False if it waits for no such request."""
        return bool(self._exchange.get().cancel(client, request_id))

    def choose(self, str text):
        """(model, model that gets a copy) for the current message, which is for this text; 0: none.

        A turn is taken once for a message, however often this is asked.
        """
        cdef bytes encoded = text.encode()
        cdef pair[int64_t, int64_t] found = self._exchange.get().choose(view_of(encoded))
        return found.first, found.second

    cdef vector[CCheckedTensor] _tensors_of(self, checked) except *:
        cdef vector[CCheckedTensor] tensors
        cdef CCheckedTensor one
        for dtype, shape, frame in checked.tensors:
            one.dtype, one.frame = dtype, frame
            one.dims.clear()
            for dimension in shape:
                one.dims.push_back(dimension)
            tensors.push_back(one)
        return tensors

    cdef uint32_t _number_of(self, checked) except *:
        cdef uint32_t number = self._core.shape_number(checked.shape)
        self._exchange.get().shape_numbered(shape_of(checked.shape), number)
        return number

    def admit(self, uint32_t client, int64_t request_id, int64_t model_id, checked, int64_t slo_ns, int64_t priority):
        """Have a request of the current message arrive. checked: of check_request()."""
        cdef uint32_t rows = min(checked.rows, C_ROWS_MAX)
        self._exchange.get().admit(
            client, request_id, model_id, rows, self._number_of(checked), checked.bytes, slo_ns, priority,
            self._tensors_of(checked),
        )

    def copy(self, checked, int64_t slo_ns, int64_t priority):
        """Have a copy of what was admitted last arrive, for the model that choose() named with it.

        checked: of check_request() for that model; None: it cannot take the request.
        """
        cdef vector[CCheckedTensor] nothing
        if checked is None:
            self._exchange.get().copy(0, 0, nothing, 0, slo_ns, priority)
            return
        cdef uint32_t rows = min(checked.rows, C_ROWS_MAX)
        self._exchange.get().copy(
            rows, self._number_of(checked), self._tensors_of(checked), checked.bytes, slo_ns, priority
        )

    def fail_all(self, status, str text):
        """Answer every request that is held."""
        cdef bytes encoded = text.encode()
        self._exchange.get().fail_all(<CStatus><uint8_t>status, view_of(encoded))

    @property
    def held_count(self):
        """Requests that are held, copies for shadows too."""
        return self._exchange.get().held_count()

    @property
    def copy_count(self):
        """Of them, those copies."""
        return self._exchange.get().copy_count()

    # ----- workers -----------------------------------------------------------------------------

    def worker_joined(self, bytes identity, int fd, int32_t worker_id, size_t device_count):
        """Its slot here, until worker_left(). None if the connection of its hello has ended."""
        cdef uint32_t slot = self._exchange.get().worker_joined(view_of(identity), fd, worker_id, device_count)
        return None if slot == C_NO_SLOT else slot

    def worker_left(self, uint32_t worker):
        self._exchange.get().worker_left(worker)

    def heard_ns(self, uint32_t worker):
        """When it was last heard of."""
        return self._exchange.get().worker(worker).heard_ns

    def set_clock(self, uint32_t worker, int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at):
        """The bounds of a worker's clock, of ClockSync.bounds()."""
        self._exchange.get().worker(worker).clock.set(upper, upper_at, lower, lower_at)

    def sent(self, uint32_t worker, uint64_t action_id, int32_t device):
        """Python sends a PROFILE."""
        self._exchange.get().sent(worker, action_id, C_PROFILE, device)

    def expected(self, uint32_t worker, action_id):
        """(rows of each part, tensors of each, model) of an action's result that is OK; None if it is not under way."""
        cdef const CExpected *found = NULL
        if 0 <= action_id < 1 << 63:
            found = self._exchange.get().worker(worker).find_action(action_id)
        return None if found == NULL else (list(found.part_rows), found.tensors(), found.model_id)

    def fail_action(self, uint32_t worker, uint64_t action_id, str text):
        """End an action whose result makes no sense. False if it is not under way."""
        cdef bytes encoded = text.encode()
        return bool(self._exchange.get().fail_action(worker, action_id, view_of(encoded)))

    def fail_actions(self, uint32_t worker, str text):
        """End whatever a worker has under way."""
        cdef bytes encoded = text.encode()
        self._exchange.get().fail_actions(worker, view_of(encoded))

    def action_count(self, uint32_t worker):
        """Actions that it has not answered."""
        return self._exchange.get().worker(worker).actions.size()

    def actions_sent(self, uint32_t worker):
        """By kind, of those that it was sent."""
        cdef uint64_t *counts = self._exchange.get().worker(worker).sent_data()
        return {ACTION_KINDS[kind]: counts[kind] for kind in range(6) if counts[kind]}

    def action_results(self, uint32_t worker):
        """By status."""
        cdef uint64_t *counts = self._exchange.get().worker(worker).results_data()
        return {status.name.lower(): counts[<int>status] for status in Status if counts[<int>status]}

    # ----- models ------------------------------------------------------------------------------

    def serve(self, int64_t model_id, int64_t version, str label, int64_t slo_ns, Interface interface):
        """A model that requests may be for, or what is new about it."""
        cdef bytes encoded = label.encode()
        self._exchange.get().serve(
            model_id, version, view_of(encoded), slo_ns, <shared_ptr[const CModelInterface]>interface._model
        )

    def forget(self, int64_t model_id):
        """It is gone."""
        self._exchange.get().forget(model_id)

    def route(self, str text, shares, int64_t shadow=0, int64_t copies=0, double tolerance=0):
        """Requests for this text are for these models, which are served.

        shares: (model, parts of SHARE_WHOLE) each. shadow: to which model so many parts of the others' are copied,
        0 for none; tolerance: of the relative difference of answers.
        """
        cdef bytes encoded = text.encode()
        cdef vector[pair[int64_t, int64_t]] parts
        for model_id, one in shares:
            parts.push_back(pair[int64_t, int64_t](model_id, one))
        self._exchange.get().route(view_of(encoded), parts, shadow, copies, tolerance)

    def shadow_results(self, str text):
        """What became of the copies of this text's requests, by name; None where nothing is copied."""
        cdef bytes encoded = text.encode()
        cdef CShadowTally *tally = self._exchange.get().shadow_tally(view_of(encoded))
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
        self._exchange.get().unroute(view_of(encoded))

    def refer(self, str text, int64_t model_id):
        """The same until forget_references(), or until something changes about any model."""
        cdef bytes encoded = text.encode()
        self._exchange.get().refer(view_of(encoded), model_id)

    def forget_references(self):
        self._exchange.get().forget_references()

    # ----- counts ------------------------------------------------------------------------------

    def outcomes(self, model_id=None):
        """(answered, refused, missed, cancelled, failed), of one model or of all."""
        cdef COutcomes found
        cdef CServedModel *model
        if model_id is None:
            found = self._exchange.get().outcomes()
        else:
            model = self._exchange.get().find_model(model_id)
            if model == NULL:
                return 0, 0, 0, 0, 0
            found = model.outcomes
        return found.answered, found.refused, found.missed, found.cancelled, found.failed

    def refusals(self, int reason):
        """By the number of a reason: 1 is the first of messages.Reason."""
        return self._exchange.get().refusals(<CReason><uint8_t>reason)

    def count_invalid(self, int64_t model_id):
        """A request for it was wrong, and is not held."""
        self._exchange.get().count_invalid(model_id)

    def model_counts(self, int64_t model_id):
        """What the query "metrics" says of it, as far as it is counted here; None while nothing was asked of it."""
        cdef CServedModel *model = self._exchange.get().find_model(model_id)
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
                "failed": counts.failed,
                "invalid_input": counts.invalid,
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
            for one in self._exchange.get().worker(worker).devices
        ]

    def host_counts(self, uint32_t worker):
        """(models fetched into, dropped from) a worker's host store."""
        cdef CWorkerLink *link = &self._exchange.get().worker(worker)
        return link.fetches, link.drops

    def lag(self):
        """How late the loop is, as a histogram of turns; see csrc/controller/exchange.h."""
        return durations_of(self._exchange.get().lag())

    def spent_ns(self):
        """Processor time of this thread by what it was for, since is_timed was set."""
        cdef int64_t *spent = self._exchange.get().spent_data()
        return {name: spent[place] for place, name in enumerate(STAGES)}

    @property
    def is_timed(self):
        """Whether spent_ns() is counted, which costs some microseconds a turn."""
        return bool(self._exchange.get().is_timed)

    @is_timed.setter
    def is_timed(self, cbool value):
        self._exchange.get().is_timed = value

    @property
    def shadow_width(self):
        """Copies for shadows that the scheduler has at once."""
        return self._exchange.get().shadow_width

    @shadow_width.setter
    def shadow_width(self, size_t value):
        self._exchange.get().shadow_width = value

    @property
    def is_short(self):
        """False: every message of a client goes to Python. For tests, which compare the two roads."""
        return bool(self._exchange.get().is_short)

    @is_short.setter
    def is_short(self, cbool value):
        self._exchange.get().is_short = value


REASONS = ("", *[str(reason) for reason in Reason])


# ----- parts, for tests --------------------------------------------------------------------------


SHARE_WHOLE = C_SHARE_WHOLE


def turns(shares, int count):
    """Whose turn each of so many requests is, by these parts of SHARE_WHOLE."""
    cdef CTurns found
    for parts in shares:
        found.add(parts)
    return [found.next() for _ in range(count)]


def difference(int64_t dtype, bytes first, bytes other):
    """(differs, absolute, relative) of two tensors of one dtype and shape."""
    cdef CDifference found = compare(dtype, view_of(first), view_of(other))
    return found.differs, found.absolute, found.relative


cdef list refs_of(vector[CTensorRef] &refs, vector[int64_t] &dims, bint named):
    cdef size_t place
    cdef uint32_t axis
    found = []
    for place in range(refs.size()):
        shape = [dims[refs[place].first + axis] for axis in range(refs[place].rank)]
        name = [refs[place].name.data()[:refs[place].name.size()].decode(errors="replace")] if named else []
        found.append([*name, refs[place].dtype, shape, refs[place].frame])
    return found


def read_request(bytes header):
    """An InferRequest's fields, or None where the header is odd."""
    cdef CInferRequestHeader found
    if not found.read(view_of(header)):
        return None
    model = found.model.data()[:found.model.size()].decode(errors="replace")
    return found.request_id, model, found.slo_ns, found.priority, refs_of(found.tensors, found.dims, True)


def read_result(bytes header):
    """(action, status, text, received, begin, end, duration, parts), or None where the header is odd."""
    cdef CResultHeader found
    if not found.read(view_of(header)):
        return None
    refs = iter(refs_of(found.tensors, found.dims, False))
    cdef uint32_t size
    parts = [[next(refs) for _ in range(size)] for size in found.parts]
    text = found.text.data()[:found.text.size()].decode()
    return (
        found.action_id, <int><uint8_t>found.status, text,
        found.received_ns, found.begin_ns, found.end_ns, found.duration_ns, parts,
    )


def gives_output(Interface interface, size_t output, uint32_t rows, int64_t dtype, shape, bytes data):
    """Whether a tensor is what a model gives for so many rows."""
    cdef CTensorRef ref
    cdef vector[int64_t] dims = shape
    ref.dtype, ref.first, ref.rank, ref.frame = dtype, 0, dims.size(), 0
    return bool(gives(interface._model.get()[0], output, rows, ref, dims.data(), view_of(data)))


def batch_place(uint32_t rows):
    """(where batches of so many rows are counted, the most rows that are counted there)."""
    cdef size_t place = CBatchCounts.place(rows)
    return place, CBatchCounts.size(place)


def accepts(Interface interface, bytes header, sizes):
    """(rows, bytes, frame of each input in the model's order, shape key), or None where Python must look.

    sizes: of the message's frames, in bytes.
    """
    cdef CInferRequestHeader request
    cdef CAccepted accepted
    cdef vector[size_t] frame_bytes = sizes
    cdef size_t place = 0
    if not request.read(view_of(header)):
        return None
    if not accept(interface._model.get()[0], request, frame_bytes, accepted):
        return None
    frames = [accepted.tensors[place].frame for place in range(accepted.tensors.size())]
    key = []
    place = 0
    while place < accepted.shape.size():
        rank = accepted.shape[place]
        key.append(tuple([accepted.shape[place + 1 + axis] for axis in range(rank)]))
        place += 1 + rank
    return accepted.rows, accepted.bytes, frames, tuple(key)


def sentence(templates, uint8_t number, int64_t a, int64_t b, str name, said):
    """What is made of one of the templates; said: what a worker said, or None."""
    cdef CSentences sentences = sentences_of(templates, ())
    cdef CCommand command
    cdef bytes encoded = name.encode()
    cdef bytes spoken = (said or "").encode()
    cdef string words = spoken
    cdef string_view found
    cdef const string *heard = &words
    if said is None:
        heard = NULL
    command.text, command.a, command.b = <CText>number, a, b
    found = sentences.text(command, view_of(encoded), heard)
    return found.data()[:found.size()].decode()


cdef class Connections:
    """The connections of one port without the port: of any sockets of this process, by descriptor."""

    cdef unique_ptr[CConnections] _connections

    def __init__(self, bounds):
        self._connections.reset(new CConnections(connection_bounds(bounds)))

    def accepted(self, int fd, int64_t now):
        self._connections.get().accepted(fd, now)

    def ended(self, int fd):
        """Whether there was one."""
        return self._connections.get().ended(fd).get() != NULL

    def greet(self, int fd):
        self._connections.get().greet(self._find(fd)[0])

    def taken(self, int fd, uint64_t count):
        """A message of so many bytes was taken."""
        self._find(fd).taken += count

    def queued(self, int fd, uint64_t count):
        """A message of so many bytes was queued."""
        self._find(fd).unmarked += count

    def may_send(self, int fd, int64_t now):
        return self._connections.get().may_send(self._find(fd)[0], now)

    def look(self, int64_t now):
        return self._connections.get().look(now)

    def cut(self, int fd):
        return self._connections.get().cut(self._find(fd)[0], C_ASKED)

    def is_cut(self, int fd):
        return bool(self._find(fd).is_cut)

    def describe(self):
        return describe_connections(self._connections.get()[0])

    cdef CConnection *_find(self, int fd) except NULL:
        cdef CConnection *found = self._connections.get().find(fd).get()  # which the table keeps
        if found == NULL:
            raise KeyError(fd)
        return found


cdef class ClockBounds:
    """The bounds of a worker's clock as the exchange uses them."""

    cdef CClockBounds _bounds

    def set(self, int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at):
        self._bounds.set(upper, upper_at, lower, lower_at)

    def to_worker_latest(self, int64_t at_ns):
        return self._bounds.to_worker_latest(at_ns)

    def to_worker_earliest(self, int64_t at_ns, int64_t now_ns):
        return self._bounds.to_worker_earliest(at_ns, now_ns)

    def to_controller(self, int64_t worker_ns, int64_t now_ns):
        return self._bounds.to_controller(worker_ns, now_ns)
