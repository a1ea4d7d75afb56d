# distutils: language = c++
"""Parts of the exchange and of a worker, separately, for tests: not in the wheel."""

from libc.string cimport memset
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from libcpp.string_view cimport string_view

from clockwork.controller._values cimport (
    CConnectionBounds,
    CConnections,
    CFlaw,
    CModelInterface,
    CSentences,
    CWrong,
    ModelInterface,
    connection_bounds,
    describe_connections,
    flaw_of,
    sentences_of,
    shapes_of,
    view_of,
    word_of,
)
from clockwork.scheduler._core cimport (
    CActionResult,
    CCommand,
    CCommands,
    CommandKind,
    CFault,
    CReason,
    CRequest,
    CStatus,
    CText,
)

from clockwork.wire._headers cimport CHeaderFlaw, CWriter
from clockwork.wire._messages cimport (
    CActionMessage, CCancel, CInferRequest, CLaneKind, CPing, CPong, CResult, CRevoke, CTensorRef,
)

from clockwork.scheduler.recording import REASONS, encode_event
from clockwork.config import ACTIONS_QUEUED_MAX
from clockwork.errors import InvalidInput
from clockwork.wire.messages import HostDrop, HostFetch, Load, Ping, Pong, Result, Revoke, Status, Unload
from tests.native.queue_events import Ended, Received, Reject, Revoked, RevokeStarted, Start
from clockwork.scheduler.types import (
    COMMANDS, ActionDone, Arrived, RequestCancelled, Tick,
)


cdef extern from "wire/fields.h" namespace "clockwork::wire" nogil:
    string_view c_cut "clockwork::wire::cut" (string_view text, size_t bytes_max)

cdef extern from *:
    """
    template <typename Message>
    bool clockwork_rewrite(std::string_view header, clockwork::HeaderFlaw &flaw, clockwork::Writer &writer) {
        Message message;
        return message.read(header, flaw) && message.write(writer);
    }"""
    cbool rewrite "clockwork_rewrite" [Message](string_view header, CHeaderFlaw &flaw, CWriter &writer) except +

cdef extern from "controller/course.h" namespace "clockwork" nogil:
    cdef cppclass CCourse "clockwork::Course":
        int64_t begin_ns
        int64_t end_ns
        int64_t duration_ns

    CCourse course_of(const CResult &result)

cdef extern from "controller/checks.h" namespace "clockwork" nogil:
    cdef cppclass CAccepted "clockwork::AcceptedRequest":
        uint32_t rows
        uint64_t bytes
        uint64_t copied_bytes
        vector[const CTensorRef *] tensors
        vector[int64_t] shape

    cdef cppclass CExpected "clockwork::ExpectedResult":
        shared_ptr[const CModelInterface] interface
        vector[uint32_t] part_rows
        vector[cbool] part_rooms

    void c_add_defaults "clockwork::add_defaults" (
        const CModelInterface &model, CInferRequest &request, vector[string_view] &frames) except +
    cbool c_check_request "clockwork::check_request" (
        const CModelInterface &model, const CInferRequest &request, const vector[string_view] &frames,
        int64_t machine, CAccepted &accepted, CFlaw &flaw) except +
    cbool c_check_result "clockwork::check_result" (
        const CExpected &expected, const CResult &result, const vector[string_view] &frames,
        CFlaw &flaw) except +

cdef extern from "controller/shadows.h" namespace "clockwork" nogil:
    cdef cppclass CDifference "clockwork::Difference":
        cbool differs
        double absolute
        double relative

    CDifference compare(int64_t dtype, string_view first, string_view other) except +

cdef extern from "controller/routes.h" namespace "clockwork" nogil:
    const int64_t C_SHARE_WHOLE "clockwork::SHARE_WHOLE"

    cdef cppclass CTurns "clockwork::Turns":
        CTurns()
        void add(int64_t parts) except +
        size_t next()

cdef extern from "controller/connections.h" namespace "clockwork" nogil:
    cdef enum CCutReason "clockwork::CutReason":
        C_ASKED "clockwork::CutReason::ASKED"

    cdef cppclass CConnection "clockwork::Connection":
        uint64_t taken
        uint64_t unmarked
        cbool is_cut

    cdef cppclass CConnectionTable "clockwork::Connections":
        CConnectionTable(CConnectionBounds bounds) except +
        void accepted(int fd, int64_t now) except +
        shared_ptr[CConnection] ended(int fd) except +
        shared_ptr[CConnection] find(int fd)
        int seat_for(const CConnection &connection, string_view key, int64_t now)
        void greet(CConnection &connection, string_view key, int64_t now) except +
        void forget(CConnection &connection, int64_t now) except +
        void heard(CConnection &connection, int64_t now)
        cbool may_send(CConnection &connection, int64_t now) except +
        cbool has_room(const CConnection &connection, uint64_t bytes)
        int64_t look(int64_t now) except +
        cbool cut(CConnection &connection, CCutReason reason) except +

cdef extern from "recording/sentences.h" namespace "clockwork" nogil:
    cdef cppclass CSentenceMaker "clockwork::Sentences":
        string_view text(const CCommand &command, string_view name, const string *said) except +

cdef extern from "controller/clock.h" namespace "clockwork" nogil:
    cdef cppclass CClockBounds "clockwork::ClockBounds":
        void set(int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at)
        int64_t to_worker_latest(int64_t at)
        int64_t to_worker_earliest(int64_t at, int64_t now)
        int64_t to_controller(int64_t worker_ns, int64_t now)

cdef extern from "controller/counts.h" namespace "clockwork" nogil:
    cdef cppclass CBatchCounts "clockwork::BatchCounts":
        @staticmethod
        uint32_t size(size_t place)
        @staticmethod
        size_t place(uint32_t rows)

cdef extern from "recording/recorder.h" namespace "clockwork" nogil:
    cdef cppclass CRing "clockwork::Ring":
        CRing(size_t bytes_max, int64_t span_ns) except +
        uint64_t read(uint64_t since, size_t bytes_max, string &found) except +

    cdef cppclass CRecorder "clockwork::Recorder":
        CRecorder(shared_ptr[CRing] ring) except +
        int64_t time_ns(int64_t now)
        void arrived(int64_t now, const CRequest &request, string_view shape) except +
        void cancelled(int64_t now, uint64_t request_id) except +
        void action_done(int64_t now, const CActionResult &result, string_view text) except +
        void noted(string_view event) except +
        void settle(int64_t now) except +
        void ordered(const CCommand &command, const CCommands &all, string_view text, string_view shape) except +
        void end() except +
        const string &know_shape(uint32_t number, const vector[int64_t] &dims) except +


SHARE_WHOLE = C_SHARE_WHOLE


# ----- messages ----------------------------------------------------------------------------------


cdef list refs_of(const vector[CTensorRef] &refs, const vector[int64_t] &dims, bint named):
    cdef size_t place
    cdef uint32_t axis
    found = []
    for place in range(refs.size()):
        shape = [dims.at(refs.at(place).shape.first + axis) for axis in range(refs.at(place).shape.count)]
        name = [word_of(refs.at(place).name)] if named else []
        found.append([*name, refs.at(place).dtype, shape, refs.at(place).frame])
    return found


cdef vector[string_view] views_of(list frames) except *:
    """Views of frames, which are bytes; valid as long as the frames exist."""
    cdef vector[string_view] found
    for frame in frames:
        found.push_back(view_of(frame))
    return found


def read_request(bytes header):
    """Return (request, model, SLO, priority, tensors), or a Flaw."""
    cdef CInferRequest found
    cdef CWrong wrong
    if not found.read(view_of(header), wrong.header):
        wrong.id = found.request_id
        return flaw_of(wrong)
    return (
        found.request_id, word_of(found.model), found.slo_ns, found.priority,
        refs_of(found.tensors, found.dims, True),
    )


def read_cancel(bytes header):
    """Return (request,), or a Flaw."""
    cdef CCancel found
    cdef CWrong wrong
    if not found.read(view_of(header), wrong.header):
        wrong.id = found.request_id
        return flaw_of(wrong)
    return (found.request_id,)


def read_result(bytes header):
    """Return (action, status, text, received, begin, end, duration, parts), or a Flaw."""
    cdef CResult found
    cdef CWrong wrong
    if not found.read(view_of(header), wrong.header):
        wrong.id = found.action_id
        return flaw_of(wrong)
    cdef CCourse course = course_of(found)
    refs = refs_of(found.tensors, found.dims, False)
    parts = [refs[found.parts[place].first:found.parts[place].first + found.parts[place].count]
             for place in range(<int>found.parts.size())]
    return (
        found.action_id, found.status, word_of(found.text),
        found.received_ns, course.begin_ns, course.end_ns, course.duration_ns, parts,
    )


def rewritten(kind, bytes header):
    """Return a header that C++ has read and written again, or a HeaderFlaw. kind: a kind of message that C++
    reads and writes."""
    cdef CWrong wrong
    cdef CWriter writer
    cdef string_view data = view_of(header)
    if kind is Result:
        is_good = rewrite[CResult](data, wrong.header, writer)
    elif kind is Revoke:
        is_good = rewrite[CRevoke](data, wrong.header, writer)
    elif kind is Ping:
        is_good = rewrite[CPing](data, wrong.header, writer)
    elif kind is Pong:
        is_good = rewrite[CPong](data, wrong.header, writer)
    else:
        is_good = rewrite[CActionMessage](data, wrong.header, writer)
    return writer.view().data()[:writer.view().size()] if is_good else flaw_of(wrong).header


def cut(bytes text, size_t bytes_max):
    """Return the text as a writer of headers cuts it for a field of so many bytes."""
    cdef string_view found = c_cut(view_of(text), bytes_max)
    return found.data()[:found.size()]


def check_request(ModelInterface interface, bytes header, list frames, int64_t machine=0):
    """Return (rows, bytes, bytes in the client's memory, frame of each input in the model's order, shape
    key), or a Flaw. The header is well formed. Defaults of optional inputs are frames behind those of the
    request.

    machine: the machine whose memory the workers can map; 0: none.
    """
    cdef CInferRequest request
    cdef CAccepted accepted
    cdef CWrong wrong
    cdef size_t place
    cdef vector[string_view] views = views_of(frames)
    assert request.read(view_of(header), wrong.header)
    c_add_defaults(interface._model.get()[0], request, views)
    if not c_check_request(interface._model.get()[0], request, views, machine, accepted, wrong.flaw):
        wrong.is_request, wrong.id = True, request.request_id
        wrong.interface = <shared_ptr[const CModelInterface]>interface._model
        wrong.tensors, wrong.dims = &request.tensors, &request.dims
        return flaw_of(wrong)
    order = [accepted.tensors[place].frame for place in range(accepted.tensors.size())]
    return accepted.rows, accepted.bytes, accepted.copied_bytes, order, shapes_of(accepted.shape)


def check_result(ModelInterface interface, part_rows, bytes header, list frames, part_rooms=()):
    """Return None for a valid result of a batch with parts of so many rows, or a Flaw. The header is well
    formed.

    interface: None for an action other than INFER. part_rooms: whether the outputs of a part may be in its
    client's memory; empty: none may.
    """
    cdef CResult result
    cdef CExpected expected
    cdef CWrong wrong
    assert result.read(view_of(header), wrong.header)
    expected.part_rows = part_rows
    expected.part_rooms = part_rooms
    if interface is not None:
        expected.interface = <shared_ptr[const CModelInterface]>interface._model
    if c_check_result(expected, result, views_of(frames), wrong.flaw):
        return None
    wrong.id, wrong.interface = result.action_id, expected.interface
    wrong.tensors, wrong.dims = &result.tensors, &result.dims
    return flaw_of(wrong)


# ----- the rest ----------------------------------------------------------------------------------


def turns(shares, int count):
    """Return the model whose turn each of so many requests is, by these parts of SHARE_WHOLE."""
    cdef CTurns found
    for parts in shares:
        found.add(parts)
    return [found.next() for _ in range(count)]


def difference(int64_t dtype, bytes first, bytes other):
    """Return (differs, absolute, relative) of two tensors of one dtype and shape."""
    cdef CDifference found = compare(dtype, view_of(first), view_of(other))
    return found.differs, found.absolute, found.relative


def batch_place(uint32_t rows):
    """Return (number of rows under which batches of so many rows are counted, the largest such number)."""
    cdef size_t place = CBatchCounts.place(rows)
    return place, CBatchCounts.size(place)


def sentence(templates, uint8_t number, int64_t a, int64_t b, int64_t c, str name, said):
    """Return the sentence from one of the templates. said: a worker's text, or None."""
    cdef CSentences sentences = sentences_of(templates, ())
    cdef CCommand command
    cdef bytes encoded = name.encode()
    cdef bytes spoken = (said or "").encode()
    cdef string words = spoken
    cdef string_view found
    cdef const string *heard = &words
    if said is None:
        heard = NULL
    command.text, command.a, command.b, command.c = <CText>number, a, b, c
    found = (<CSentenceMaker *>&sentences).text(command, view_of(encoded), heard)
    return found.data()[:found.size()].decode()


include "_command_fields.pxi"


cdef class Recorder:
    """The flight recorder without its exchange."""

    cdef shared_ptr[CRing] _ring
    cdef unique_ptr[CRecorder] _recorder

    def __init__(self, size_t bytes_max):
        self._ring.reset(new CRing(bytes_max, 1 << 62))
        self._recorder.reset(new CRecorder(self._ring))

    def record(self, events, commands):
        """Record a step; only its last event is a Tick."""
        cdef int64_t now = 0
        for event in events:
            now = max(now, event.now_ns)
            if type(event) is not Tick:
                self._tell(event)
        self._recorder.get().settle(now)
        for command in commands:
            self._order(command)
        self._recorder.get().end()

    def read(self):
        """Return all bytes that are kept."""
        cdef string found
        self._ring.get().read(0, 1 << 40, found)
        return found

    cdef int _tell(self, event) except -1:
        cdef CRequest request
        cdef CActionResult result
        cdef CRecorder *recorder = self._recorder.get()
        cdef bytes text
        if type(event) is Arrived:
            request.id, request.model_id, request.rows = event.request.id, event.request.model_id, event.request.rows
            request.bytes, request.priority = event.request.bytes, event.request.priority
            request.arrived_ns, request.deadline_ns = event.request.arrived_ns, event.request.deadline_ns
            recorder.arrived(event.now_ns, request, self._shape(event.request.shape))
        elif type(event) is RequestCancelled:
            recorder.cancelled(event.now_ns, event.request_id)
        elif type(event) is ActionDone:
            result.worker, result.action_id = event.worker, event.action_id
            result.status = <CStatus><uint8_t>event.status
            result.begin_ns, result.end_ns = event.begin_ns, event.end_ns
            result.duration_ns, result.ready_ns = event.duration_ns, event.ready_ns
            text = event.text.encode()
            recorder.action_done(event.now_ns, result, view_of(text))
        else:
            text = encode_event(event, recorder.time_ns(event.now_ns))
            recorder.noted(view_of(text))
        return 0

    cdef string_view _shape(self, shape) except *:
        cdef vector[int64_t] dims
        for axes in shape:
            dims.push_back(len(axes))
            for axis in axes:
                dims.push_back(axis)
        cdef const string *found = &self._recorder.get().know_shape(1, dims)
        return string_view(found.data(), found.size())

    cdef int _order(self, command) except -1:
        cdef CCommand one
        cdef CCommands all_
        cdef bytes text = b""
        cdef string_view shape
        one.kind = <CommandKind><uint8_t><int>COMMANDS.index(type(command))
        for name in command._fields:
            value = getattr(command, name)
            if name == "shape":
                shape = self._shape(value)
            elif name == "run_starts":
                all_.runs, one.count = value, len(value)
            elif name == "requests":
                all_.ids, one.count = value, len(value)
            elif name == "text":
                text = value.encode()
            elif not set_command_field(&one, name, REASONS.index(value) if name == "reason" else value):
                raise TypeError(name)
        self._recorder.get().ordered(one, all_, view_of(text), shape)
        return 0


cdef class Connections:
    """The connections of a port without the port: of any sockets of this process, by descriptor."""

    cdef unique_ptr[CConnectionTable] _connections

    def __init__(self, bounds):
        self._connections.reset(new CConnectionTable(connection_bounds(bounds)))

    def accepted(self, int fd, int64_t now):
        self._connections.get().accepted(fd, now)

    def ended(self, int fd):
        """Close a connection; return whether it existed."""
        return self._connections.get().ended(fd).get() != NULL

    def seat_for(self, int fd, bytes key, int64_t now):
        return self._connections.get().seat_for(self._find(fd)[0], view_of(key), now)

    def greet(self, int fd, int64_t now=0, bytes key=b""):
        self._connections.get().greet(self._find(fd)[0], view_of(key), now)

    def forget(self, int fd, int64_t now):
        self._connections.get().forget(self._find(fd)[0], now)

    def heard(self, int fd, int64_t now):
        self._connections.get().heard(self._find(fd)[0], now)

    def taken(self, int fd, uint64_t count):
        """Note that a message of so many bytes was taken."""
        self._find(fd).taken += count

    def queued(self, int fd, uint64_t count):
        """Note that a message of so many bytes was queued."""
        self._find(fd).unmarked += count

    def may_send(self, int fd, int64_t now):
        return self._connections.get().may_send(self._find(fd)[0], now)

    def has_room(self, int fd, uint64_t size):
        """Note an answer of so many bytes."""
        return bool(self._connections.get().has_room(self._find(fd)[0], size))

    def look(self, int64_t now):
        return self._connections.get().look(now)

    def cut(self, int fd):
        return self._connections.get().cut(self._find(fd)[0], C_ASKED)

    def is_cut(self, int fd):
        return bool(self._find(fd).is_cut)

    def describe(self):
        return describe_connections((<const CConnections *>self._connections.get())[0])

    cdef CConnection *_find(self, int fd) except NULL:
        cdef CConnection *found = self._connections.get().find(fd).get()  # the table keeps the connection
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


# ----- of a worker -------------------------------------------------------------------------------

cdef extern from "worker/queue.h" namespace "clockwork" nogil:
    const int64_t C_START_LEAD_NS "clockwork::START_LEAD_NS"

    cdef enum class QueueOrder(uint8_t):
        START
        REJECT_LATE
        REJECT_REVOKED
        REJECT_TWICE
        REJECT_FULL
        REVOKE_STARTED

    cdef cppclass QueuedAction:
        uint64_t action_id
        int64_t earliest_ns
        int64_t latest_ns
        CLaneKind lane
        cbool is_unload

    cdef cppclass QueueCommand:
        QueueOrder order
        uint64_t action_id
        int64_t late_ns

    cdef cppclass CActionQueue "clockwork::ActionQueue":
        CActionQueue(uint32_t run_ahead, size_t queued_max) except +
        void received(int64_t now, const QueuedAction &action, vector[QueueCommand] &out) except +
        void ended(int64_t now, uint64_t action_id, vector[QueueCommand] &out) except +
        void revoked(int64_t now, uint64_t action_id, vector[QueueCommand] &out) except +
        void due(int64_t now, vector[QueueCommand] &out) except +
        vector[uint64_t] reset() except +
        cbool is_started(uint64_t action_id)
        int64_t next_wake_ns()
        size_t queued_count()
        size_t started_count()
        void check_invariants() except +AssertionError

START_LEAD_NS = C_START_LEAD_NS

_LATE, _REVOKED, _BROKEN = Status.TOO_LATE, Status.ACTION_CANCELLED, Status.DEVICE_ERROR
_Load, _Unload, _Received, _Ended, _Revoked = Load, Unload, Received, Ended, Revoked
_Fetch, _Drop = HostFetch, HostDrop


cdef inline uint64_t action_id_of(object action_id):
    """Return an id of the wire as 64 bits: negative ids are valid."""
    return <uint64_t>(action_id & 0xFFFFFFFFFFFFFFFF)


cdef class ActionQueue:
    """The lanes of a device."""

    cdef unique_ptr[CActionQueue] _queue
    cdef dict _actions  # by id, the actions that wait or are with the device
    cdef vector[QueueCommand] _out

    def __init__(self, run_ahead):
        if run_ahead < 1:
            raise ValueError(f"run_ahead of {run_ahead}")
        self._queue.reset(new CActionQueue(run_ahead, ACTIONS_QUEUED_MAX))
        self._actions = {}

    def step(self, event):
        cdef QueuedAction queued
        cdef int64_t now = event.now_ns
        cdef object action = None
        kind = type(event)
        self._out.clear()
        if kind is _Received:
            action = event.action
            kind = type(action)
            queued.action_id = action_id_of(action.action_id)
            queued.earliest_ns = action.earliest_ns
            queued.latest_ns = action.latest_ns
            queued.is_unload = kind is _Unload or kind is _Drop
            if kind is _Load or kind is _Unload:
                queued.lane = CLaneKind.LOAD
            elif kind is _Fetch or kind is _Drop:
                queued.lane = CLaneKind.FETCH
            else:
                queued.lane = CLaneKind.EXECUTE
            self._actions.setdefault(queued.action_id, action)
            self._queue.get().received(now, queued, self._out)
        elif kind is _Ended:
            started = self._queue.get().is_started(action_id_of(event.action_id))
            self._queue.get().ended(now, action_id_of(event.action_id), self._out)
            if started:
                del self._actions[action_id_of(event.action_id)]
        elif kind is _Revoked:
            self._queue.get().revoked(now, action_id_of(event.action_id), self._out)
        else:
            self._queue.get().due(now, self._out)
        return self._commands(action)

    cdef list _commands(self, object received):
        cdef list commands = []
        cdef QueueCommand one
        for one in self._out:
            if one.order == QueueOrder.START:
                commands.append(Start(self._actions[one.action_id]))
            elif one.order == QueueOrder.REVOKE_STARTED:
                commands.append(RevokeStarted(self._actions[one.action_id].action_id))
            elif one.order == QueueOrder.REJECT_LATE:
                text = f"its window closed {one.late_ns / 1e6:.3f} ms ago"
                commands.append(Reject(self._actions.pop(one.action_id), _LATE, text))
            elif one.order == QueueOrder.REJECT_REVOKED:
                commands.append(Reject(self._actions.pop(one.action_id), _REVOKED, "the action was revoked"))
            elif one.order == QueueOrder.REJECT_TWICE:
                text = f"action {received.action_id} was sent twice"
                commands.append(Reject(received, _BROKEN, text))
            else:
                text = f"{ACTIONS_QUEUED_MAX} actions are queued already"
                commands.append(Reject(self._actions.pop(one.action_id), _BROKEN, text))
        return commands

    def reset(self):
        cdef vector[uint64_t] queued = self._queue.get().reset()
        cdef dict actions = self._actions
        self._actions = {}
        return [actions[action_id] for action_id in queued]

    @property
    def next_wake_ns(self):
        return self._queue.get().next_wake_ns()

    @property
    def queued_count(self):
        return self._queue.get().queued_count()

    @property
    def started_count(self):
        return self._queue.get().started_count()

    def check_invariants(self):
        self._queue.get().check_invariants()
        assert len(self._actions) == self.queued_count + self.started_count


cdef extern from "worker/watch.h" namespace "clockwork::worker" nogil:
    cdef enum class CVerdict "clockwork::worker::Verdict"(uint8_t):
        FINE
        END
        STUCK

    cdef cppclass CLimits "clockwork::worker::Limits":
        int64_t execution_ns, execution_factor, load_ns, load_factor
        int64_t execution_limit_ns(int64_t expected_ns)
        int64_t load_limit_ns(int64_t expected_ns)

    cdef cppclass CRunWatch "clockwork::worker::RunWatch":
        cbool is_busy()
        CVerdict look(int64_t now, int64_t action_id, int64_t limit_ns, int64_t grace_ns, int64_t gap_ns)


def run_limits(int64_t execution_ns, int64_t execution_factor, int64_t load_ns, int64_t load_factor, int64_t expected_ns):
    """Return the limits of an execution and of a load with these expected durations."""
    cdef CLimits limits
    limits.execution_ns, limits.execution_factor = execution_ns, execution_factor
    limits.load_ns, limits.load_factor = load_ns, load_factor
    return limits.execution_limit_ns(expected_ns), limits.load_limit_ns(expected_ns)


cdef class RunWatch:
    """Watches a lane; see csrc/worker/watch.h."""

    cdef CRunWatch watch
    cdef int64_t grace_ns
    cdef int64_t gap_ns

    def __init__(self, gap_ns, grace_ns=0):
        self.gap_ns, self.grace_ns = gap_ns, grace_ns

    @property
    def is_busy(self):
        return self.watch.is_busy()

    def look(self, int64_t now, int64_t action_id, int64_t limit_ns):
        """Return "fine", "end" or "stuck"."""
        return ("fine", "end", "stuck")[<int>self.watch.look(now, action_id, limit_ns, self.grace_ns, self.gap_ns)]


# ----- a worker's copies from and to clients' memory -------------------------------------------------


cdef extern from "worker/output_block.h" namespace "clockwork::worker" nogil:
    cdef cppclass COutputBlock "clockwork::worker::OutputBlock":
        COutputBlock()

cdef extern from "worker/client_memory.h" namespace "clockwork::worker" nogil:
    cdef cppclass CLentMemory "clockwork::worker::LentMemory":
        pass

    cdef cppclass CMemoryReference "clockwork::worker::MemoryReference":
        CLentMemory memory
        CLentMemory room
        int64_t room_bytes
        cbool read(string_view frame)

cdef extern from "worker/snapshots.h" namespace "clockwork::worker" nogil:
    cdef cppclass CSnapshotBounds "clockwork::worker::SnapshotBounds":
        int64_t bytes, owner_bytes, idle_ns

    cdef cppclass CSnapshotPlace "clockwork::worker::SnapshotPlace":
        CSnapshotPlace()
        char *data()
        int64_t size()

    cdef cppclass CSnapshots "clockwork::worker::Snapshots":
        CSnapshots(const CSnapshotBounds &bounds) except +
        CSnapshotPlace take(int64_t owner, int64_t size, string &flaw) except +
        void tidy(int64_t now)
        int64_t used_bytes()

cdef extern from "worker/lent_copies.h" namespace "clockwork::worker" nogil:
    cdef cppclass CInput "clockwork::worker::InputCopy::Input":
        size_t tensor
        int64_t bytes
        CMemoryReference reference
        CSnapshotPlace target

    cdef cppclass COutput "clockwork::worker::OutputCopy::Output":
        size_t tensor
        string_view bytes
        int64_t place

    cdef cppclass CCopy "clockwork::worker::Copy":
        cbool step() except +
        void close()
        string flaw

    cdef cppclass CInputCopy "clockwork::worker::InputCopy"(CCopy):
        CInputCopy(int64_t action_id, int64_t process, size_t piece_bytes, shared_ptr[CSnapshots] snapshots) except +
        vector[CInput] inputs

    cdef cppclass COutputCopy "clockwork::worker::OutputCopy"(CCopy):
        COutputCopy(int64_t action_id, const CLentMemory &room, size_t piece_bytes, COutputBlock block) except +
        vector[COutput] outputs

    cdef cppclass CRoomPlaces "clockwork::worker::RoomPlaces":
        CRoomPlaces(int64_t room_bytes)
        int64_t take(int64_t dtype, int64_t size)

    int64_t c_shared_bytes "clockwork::worker::shared_bytes" (
        int64_t dtype, const int64_t *dims, size_t rank, string &flaw) except +


def shared_bytes(int64_t dtype, shape):
    """The bytes of a tensor in a client's memory. Raises InvalidInput."""
    cdef vector[int64_t] dims = shape
    cdef string flaw
    cdef int64_t found = c_shared_bytes(dtype, dims.data(), dims.size(), flaw)
    if found < 0:
        raise InvalidInput(flaw.decode())
    return found


def room_places(int64_t room_bytes, outputs):
    """The offset of each output, (dtype, bytes), in a room; 0: it is not written there."""
    cdef unique_ptr[CRoomPlaces] places = unique_ptr[CRoomPlaces](new CRoomPlaces(room_bytes))
    return [places.get().take(dtype, size) for dtype, size in outputs]


cdef class Snapshots:
    """A worker's memory for copies."""

    cdef shared_ptr[CSnapshots] snapshots

    def __init__(self, int64_t bytes_max, int64_t owner_bytes_max, int64_t idle_ns):
        cdef CSnapshotBounds bounds
        bounds.bytes, bounds.owner_bytes, bounds.idle_ns = bytes_max, owner_bytes_max, idle_ns
        self.snapshots = shared_ptr[CSnapshots](new CSnapshots(bounds))

    def take(self, int64_t owner, int64_t size):
        """A SnapshotPlace. Raises InvalidInput."""
        cdef SnapshotPlace found = SnapshotPlace.__new__(SnapshotPlace)
        cdef string flaw
        found.place = self.snapshots.get().take(owner, size, flaw)
        if found.place.data() == NULL:
            raise InvalidInput(flaw.decode())
        return found

    def tidy(self, int64_t now):
        self.snapshots.get().tidy(now)

    @property
    def used_bytes(self):
        return self.snapshots.get().used_bytes()


cdef class SnapshotPlace:
    """A place of Snapshots, until give_back() or its end."""

    cdef CSnapshotPlace place

    @property
    def address(self):
        return <size_t>self.place.data()

    def fill(self, int value):
        memset(self.place.data(), value, self.place.size())

    def content(self):
        return self.place.data()[:self.place.size()]

    def give_back(self):
        self.place = CSnapshotPlace()


cdef cbool step_of(CCopy* copy) except *:
    cdef cbool more = copy.step()
    if not more:
        copy.close()
    if not copy.flaw.empty():
        raise InvalidInput(copy.flaw.decode())
    return more


cdef class InputCopy:
    """The copy of a request's inputs. inputs: (bytes, reference's frame) of each."""

    cdef shared_ptr[CInputCopy] copy

    def __init__(self, process, inputs, Snapshots snapshots not None, size_t piece_bytes):
        self.copy = shared_ptr[CInputCopy](new CInputCopy(1, process, piece_bytes, snapshots.snapshots))
        for size, frame in inputs:
            self.copy.get().inputs.resize(self.copy.get().inputs.size() + 1)
            self.copy.get().inputs.back().bytes = size
            if not self.copy.get().inputs.back().reference.read(view_of(frame)):
                raise InvalidInput("a reference to memory has 80 bytes")

    def step(self):
        """Whether there is more. Raises InvalidInput."""
        return step_of(self.copy.get())

    def contents(self):
        """The bytes of each input."""
        return [
            self.copy.get().inputs[place].target.data()[:self.copy.get().inputs[place].bytes]
            for place in range(self.copy.get().inputs.size())
        ]


cdef class OutputCopy:
    """The copy of a request's outputs into the room of a reference's frame. outputs: (bytes, offset) of
    each."""

    cdef shared_ptr[COutputCopy] copy
    cdef list kept

    def __init__(self, bytes frame, outputs, size_t piece_bytes):
        cdef CMemoryReference reference
        cdef COutput added
        if not reference.read(view_of(frame)):
            raise InvalidInput("a reference to memory has 80 bytes")
        self.copy = shared_ptr[COutputCopy](new COutputCopy(1, reference.room, piece_bytes, COutputBlock()))
        self.kept = [content for content, _ in outputs]
        for content, place in outputs:
            added.bytes, added.place = view_of(content), place
            self.copy.get().outputs.push_back(added)

    def step(self):
        """Whether there is more. Raises InvalidInput."""
        return step_of(self.copy.get())
