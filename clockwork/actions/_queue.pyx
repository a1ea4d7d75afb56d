# distutils: language = c++
"""The native action queue in Python's terms: typed events in, typed commands out."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.vector cimport vector

from clockwork.wire._messages cimport CLane

from clockwork.config import ACTIONS_QUEUED_MAX
from clockwork.wire.messages import HostDrop, HostFetch, Load, Status, Unload
from clockwork.actions.events import Ended, Received, Reject, Revoked, RevokeStarted, Start

cdef extern from "actions/queue.h" namespace "clockwork" nogil:
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
        CLane lane
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


cdef inline uint64_t id_of(object action_id):
    """An id of the wire as 64 bits: ids below zero are as good as any."""
    return <uint64_t>(action_id & 0xFFFFFFFFFFFFFFFF)


cdef class ActionQueue:
    """One device's lanes."""

    cdef unique_ptr[CActionQueue] _queue
    cdef dict _actions  # by id: what waits or is with the device
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
            queued.action_id = id_of(action.action_id)
            queued.earliest_ns = action.earliest_ns
            queued.latest_ns = action.latest_ns
            queued.is_unload = kind is _Unload or kind is _Drop
            if kind is _Load or kind is _Unload:
                queued.lane = CLane.LOAD
            elif kind is _Fetch or kind is _Drop:
                queued.lane = CLane.FETCH
            else:
                queued.lane = CLane.EXECUTE
            self._actions.setdefault(queued.action_id, action)
            self._queue.get().received(now, queued, self._out)
        elif kind is _Ended:
            started = self._queue.get().is_started(id_of(event.action_id))
            self._queue.get().ended(now, id_of(event.action_id), self._out)
            if started:
                del self._actions[id_of(event.action_id)]
        elif kind is _Revoked:
            self._queue.get().revoked(now, id_of(event.action_id), self._out)
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
