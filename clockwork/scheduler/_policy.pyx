# distutils: language = c++
"""Calls from the C++ scheduler into a policy in Python (policy.py), and the views that its hooks get.

A hook runs with the interpreter's lock, whichever thread calls the scheduler. Its exception stays set while
C++ unwinds, and is raised again by the call of the scheduler that led to the hook.
"""

from cpython.number cimport PyNumber_Index
from libcpp.vector cimport vector

from clockwork.errors import PolicyFailed

cdef uint32_t ROWS_MAX = 1 << 30


cdef class Request:
    """A waiting request, at the time of the hook's query. The object may be kept."""

    cdef readonly uint64_t id
    cdef readonly int64_t arrived_ns
    cdef readonly int64_t deadline_ns
    cdef readonly uint32_t rows
    cdef readonly uint8_t priority
    cdef readonly bint alone
    cdef CWaiting _waiting

    def __repr__(self):
        return f"Request(id={self.id}, arrived_ns={self.arrived_ns}, deadline_ns={self.deadline_ns}, rows={self.rows})"


cdef Request request_of(const CWaiting *waiting):
    cdef Request made = Request.__new__(Request)
    made.id = waiting.pending.request.id
    made.arrived_ns = waiting.pending.request.arrived_ns
    made.deadline_ns = waiting.deadline_ns
    made.rows = waiting.size
    made.priority = waiting.pending.request.priority
    made.alone = waiting.alone
    made._waiting = waiting[0]
    return made


cdef class View:
    """An object that is valid only while its hook runs."""

    cdef Script _script
    cdef uint64_t _hook

    cdef CHookView *seen(self) except NULL:
        if self._script is None or self._script._hook != self._hook:
            raise RuntimeError(f"a {type(self).__name__} is kept for after the hook that saw it: it means nothing then")
        return self._script._view


cdef class Queue(View):
    """Waiting requests of the same model, input shape and priority, by deadline and then arrival."""

    cdef CQueue *_queue

    def __len__(self):
        self.seen()
        return self._queue.size()

    def __getitem__(self, Py_ssize_t place):
        self.seen()
        cdef Py_ssize_t size = self._queue.size()
        if place < 0:
            place += size
        if not 0 <= place < size:
            raise IndexError(f"a queue of {size} requests has none at {place}")
        return request_of(&self._queue[0][place])

    @property
    def model_id(self):
        self.seen()
        return self._queue.model.model_id

    @property
    def shape(self):
        self.seen()
        return self._queue.shape

    @property
    def priority(self):
        self.seen()
        return self._queue.level

    @property
    def rows(self):
        self.seen()
        return self._queue.rows()

    @property
    def is_plain(self):
        self.seen()
        return self._queue.is_plain()

    @property
    def batch_max(self):
        self.seen()
        return self._queue.model.specs.front().batch_max

    def devices(self):
        cdef vector[CDevice *] found
        self.seen().devices(self._queue[0], found)
        return [self._script.device(number) for number in found]

    def fit(self, rows_max, size_t first=0):
        cdef CHookView *view = self.seen()
        if first >= self._queue.size():
            raise IndexError(f"a queue of {self._queue.size()} requests has none at {first}")
        return view.count_up_to(self._queue[0], first, rows_of(rows_max))

    def least_ns(self, rows):
        return self.seen().least_ns(self._queue[0], rows_of(rows))

    def last_start_ns(self, Request request not None):
        return self.seen().last_start_ns(self._queue[0], request._waiting)

    def drop(self, Request request not None):
        cdef CHookView *view = self.seen()
        if not self._script._chooses:
            raise RuntimeError("drop() is for choose() alone; hopeless_ns() and admit() are the other ways to give one up")
        if not view.drop(self._queue[0], request._waiting):
            raise ValueError(f"{request!r} does not wait in this queue")


cdef class Device(View):
    """A device that executes batches in turn."""

    cdef CDevice *_device

    @property
    def worker(self):
        self.seen()
        return self._device.worker.worker_id

    @property
    def index(self):
        self.seen()
        return self._device.index

    @property
    def free_ns(self):
        return self.seen().free_ns(self._device[0])

    @property
    def there_ns(self):
        self.seen()
        return self._device.worker.there_ns

    @property
    def back_ns(self):
        self.seen()
        return self._device.worker.back_ns

    @property
    def in_flight(self):
        self.seen()
        return self._device.lane.size()

    def first_ready(self):
        cdef CQueue *found = self.seen().first_ready(self._device[0])
        return None if found is NULL else self._script.queue(found)

    def ready(self):
        cdef vector[CQueue *] found
        self.seen().ready(self._device[0], found)
        return [self._script.queue(number) for number in found]

    cdef const CKindSpec *spec(self, Queue queue) except NULL:
        queue.seen()
        cdef const CKindSpec *found = self.seen().spec(self._device[0], queue._queue[0])
        if found is NULL:
            raise ValueError(f"model {queue.model_id} is not on this device")
        return found

    def batch_max(self, Queue queue not None):
        return self.seen().batch_max(self.spec(queue)[0], queue._queue[0])

    def planned_ns(self, Queue queue not None, rows):
        return self.seen().planned_ns(self.spec(queue)[0], queue._queue[0], rows_of(rows))


cdef class Batch:
    """Requests [first, first + count) of a queue, to run together."""

    cdef readonly Queue queue
    cdef readonly int64_t count
    cdef readonly int64_t first

    def __init__(self, Queue queue not None, int64_t count, int64_t first=0):
        self.queue, self.count, self.first = queue, count, first

    def __repr__(self):
        return f"Batch(count={self.count}, first={self.first})"


cdef class Refusal:
    """The refusal of a request, with the SLO that would have been feasible (0: unknown)."""

    cdef readonly int64_t feasible_slo_ns

    def __init__(self, int64_t feasible_slo_ns=0):
        self.feasible_slo_ns = feasible_slo_ns

    def __repr__(self):
        return f"Refusal(feasible_slo_ns={self.feasible_slo_ns})"


cdef uint32_t rows_of(object rows) except? 0:
    if rows < 0:
        raise ValueError(f"a batch of {rows} rows")
    return min(rows, ROWS_MAX)


cdef class Script:
    """A policy object with the hooks that the C++ scheduler calls."""

    def __init__(self, policy, name, memory, options, presses_late, ahead_ns, overridden):
        self.hooks.policy = <void *>self
        self.hooks.memory = memory.encode()
        for option in options:
            self.hooks.options.push_back(option.encode())
        self.hooks.ahead_ns = ahead_ns
        self.hooks.presses_late = presses_late
        self.hooks.choose, self.hooks.rank_ns = call_choose, call_rank_ns
        if "ready_ns" in overridden:
            self.hooks.ready_ns = call_ready_ns
        if "hopeless_ns" in overridden:
            self.hooks.hopeless_ns = call_hopeless_ns
        if "admit" in overridden:
            self.hooks.admit = call_admit
        self._name = name
        self._choose, self._rank_ns, self._ready_ns = policy.choose, policy.rank_ns, policy.ready_ns
        self._hopeless_ns, self._admit = policy.hopeless_ns, policy.admit

    cdef object queue(self, CQueue *queue):
        cdef Queue made = Queue.__new__(Queue)
        made._script, made._hook, made._queue = self, self._hook, queue
        return made

    cdef object device(self, CDevice *device):
        cdef Device made = Device.__new__(Device)
        made._script, made._hook, made._device = self, self._hook, device
        return made

    cdef Outer enter(self, CHookView *view, bint chooses) noexcept:
        cdef Outer outer
        outer.view, outer.hook, outer.chooses = self._view, self._hook, self._chooses
        self._hooks += 1
        self._view, self._hook, self._chooses = view, self._hooks, chooses
        return outer

    cdef void restore(self, Outer outer) noexcept:
        self._view, self._hook, self._chooses = outer.view, outer.hook, outer.chooses

    cdef int leave(self, Outer outer) except 0:
        """End a hook. Raises the failure of an inner hook, even if this hook caught it."""
        self.restore(outer)
        if self._failure is not None:
            raise self._failure
        return 1

    cdef object failed(self, Outer outer, str hook, object error):
        """Return the exception for an error of a hook. The first error is kept, whatever the policy does."""
        self.restore(outer)
        if self._failure is None:
            self._failure = PolicyFailed(f"policy {self._name}: {hook}() failed: {type(error).__name__}: {error}")
        return self._failure


cdef int call_choose(void *address, CHookView *view, CDevice *device, CHookChoice *choice) except 0 with gil:
    cdef Script script = <Script>address
    cdef Outer outer = script.enter(view, True)
    try:
        chosen = script._choose(view.now(), script.device(device))
        if chosen is not None:
            enter_choice(view, device, chosen, choice)
    except Exception as error:
        raise_failed(script.failed(outer, "choose", error), error)
    return script.leave(outer)


cdef int enter_choice(CHookView *view, CDevice *device, object chosen, CHookChoice *choice) except 0:
    """Check the chosen batch against the device, and enter it."""
    if not isinstance(chosen, Batch):
        raise TypeError(f"it returned {chosen!r}, which is neither a Batch nor None")
    cdef Queue queue = (<Batch>chosen).queue
    cdef int64_t count = (<Batch>chosen).count, first = (<Batch>chosen).first
    queue.seen()
    cdef int64_t size = queue._queue.size()
    cdef const CKindSpec *spec = view.spec(device[0], queue._queue[0])
    if spec is NULL:
        raise ValueError(f"it chose model {queue.model_id}, which is not on the device")
    if not (1 <= count <= size and 0 <= first <= size - count):
        raise ValueError(f"it chose {count} requests from place {first} on, of a queue of {size}")
    cdef int64_t most = view.count_up_to(queue._queue[0], <uint32_t>first, view.batch_max(spec[0], queue._queue[0]))
    if count > most:
        raise ValueError(f"it chose {count} requests from place {first} on, of which {most} may share a batch")
    choice.queue, choice.first, choice.count = queue._queue, <uint32_t>first, <uint32_t>count
    return 1


cdef int call_rank_ns(void *address, CHookView *view, CQueue *queue, int64_t *rank_ns) except 0 with gil:
    cdef Script script = <Script>address
    return enter_time(script, view, queue, "rank_ns", script._rank_ns, rank_ns)


cdef int call_ready_ns(void *address, CHookView *view, CQueue *queue, int64_t *ready_ns) except 0 with gil:
    cdef Script script = <Script>address
    return enter_time(script, view, queue, "ready_ns", script._ready_ns, ready_ns)


cdef int enter_time(
    Script script, CHookView *view, CQueue *queue, str name, object hook, int64_t *time_ns
) except 0:
    """Call a hook that returns a time for a queue."""
    cdef Outer outer = script.enter(view, False)
    try:
        time_ns[0] = PyNumber_Index(hook(view.now(), script.queue(queue)))
    except Exception as error:
        raise_failed(script.failed(outer, name, error), error)
    return script.leave(outer)


cdef int call_hopeless_ns(
    void *address, CHookView *view, CQueue *queue, const CWaiting *waiting, int64_t *hopeless_ns
) except 0 with gil:
    cdef Script script = <Script>address
    cdef Outer outer = script.enter(view, False)
    try:
        hopeless_ns[0] = PyNumber_Index(script._hopeless_ns(view.now(), script.queue(queue), request_of(waiting)))
    except Exception as error:
        raise_failed(script.failed(outer, "hopeless_ns", error), error)
    return script.leave(outer)


cdef int call_admit(
    void *address, CHookView *view, CQueue *queue, const CWaiting *waiting, CHookRefusal *refusal
) except 0 with gil:
    cdef Script script = <Script>address
    cdef Outer outer = script.enter(view, False)
    try:
        refused = script._admit(view.now(), script.queue(queue), request_of(waiting))
        if refused is not None:
            if not isinstance(refused, Refusal):
                raise TypeError(f"it returned {refused!r}, which is neither a Refusal nor None")
            refusal.is_refused, refusal.feasible_slo_ns = True, (<Refusal>refused).feasible_slo_ns
    except Exception as error:
        raise_failed(script.failed(outer, "admit", error), error)
    return script.leave(outer)


cdef int raise_failed(object failure, object error) except 0:
    """Raise a failure with the error as its cause. The failure of an inner hook is raised as it is."""
    if failure is error:
        raise failure
    raise failure from error
