# distutils: language = c++
"""The native scheduler for Python: it takes and gives the typed records of ``types``, and sentences for
people.

Names stay here: the core knows models by their ids, and shapes, programs and device kinds by numbers. The
numbers are assigned here, and released once nothing uses them.
"""

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from cython.operator cimport dereference as at
from libc.stdint cimport UINT32_MAX

import msgpack

from clockwork.errors import ConfigError
from clockwork.wire.messages import ActionKind, Reason, Status
from clockwork.wire.optional import is_value
from clockwork.scheduler._policy cimport Script
from clockwork.scheduler.types import (
    SENTENCES, ActionDone, Arrived, CopyLost, DeviceClock, DeviceLost, Fault, LinkMeasured, ModelKept, ModelReady,
    ModelRemoved, RequestCancelled, RoomWanted, Tick, TimeWanted, WorkerDraining, WorkerJoined, WorkerLeft,
)

BATCH_TABLE_MAX = C_BATCH_TABLE_MAX
BOUND_RATIO_MAX = C_BOUND_RATIO_MAX
SHAPES_MAX = C_SHAPES_MAX
ATTEMPTS_MAX = C_ATTEMPTS_MAX
SCHEDULE_AHEAD_NS = C_SCHEDULE_AHEAD_NS
PROFILE_ATTEMPTS_MAX = C_PROFILE_ATTEMPTS_MAX
PROFILE_IDLE_NS = C_PROFILE_IDLE_NS
POLICIES = tuple(name.decode() for name in policy_names())
COMMON_OPTIONS = tuple(name.decode() for name in c_common_options())


def known_options(str policy):
    return tuple(name.decode() for name in c_known_options(policy.encode()))

# Number of known shapes at which unused shapes are looked for. Afterwards it is twice the number in use.
SHAPES_KNOWN_MAX = 4096

# Larger numbers of rows or elements are cut to these, beyond the range of all estimates.
cdef uint64_t ROWS_MAX = 1 << 30
cdef object ELEMENTS_MAX = 1 << 62

cdef tuple STATES = ("pending", "loading", "resident")
cdef tuple FLIGHTS = tuple(kind.name.lower() for kind in ActionKind)
cdef tuple REASONS = ("", *Reason)
cdef list STATUSES = [None] * 256
for _status in Status:
    STATUSES[_status.value] = _status

TEXTS = tuple(SENTENCES.values())
cdef tuple _texts = TEXTS
cdef tuple _fixed = tuple("{" not in text for text in TEXTS)

cdef object _Arrived = Arrived, _ActionDone = ActionDone, _Tick = Tick, _RequestCancelled = RequestCancelled
cdef object _LinkMeasured = LinkMeasured, _ModelReady = ModelReady, _ModelRemoved = ModelRemoved
cdef object _DeviceLost = DeviceLost, _DeviceClock = DeviceClock, _TimeWanted = TimeWanted, _CopyLost = CopyLost
cdef object _RoomWanted = RoomWanted, _ModelKept = ModelKept
cdef object _WorkerJoined = WorkerJoined, _WorkerLeft = WorkerLeft, _WorkerDraining = WorkerDraining
cdef tuple FAULTS = tuple(Fault)

cdef extern from "duration.h" namespace "clockwork":
    string duration_text(int64_t ns)


cdef extern from *:
    """
    static inline PyObject *clockwork_new_record(PyObject *type, Py_ssize_t size) {
        return ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, size);
    }
    """
    object clockwork_new_record(object type, Py_ssize_t size)


cdef inline void put(object record, Py_ssize_t place, object value) noexcept:
    """Set a field of a new record. A NamedTuple is a tuple; this way takes a third of the time."""
    Py_INCREF(value)
    PyTuple_SET_ITEM(record, place, value)


cdef tuple ids_of(const uint64_t *first, uint32_t count):
    cdef tuple ids = clockwork_new_record(tuple, count)
    cdef uint32_t place
    for place in range(count):
        put(ids, place, first[place])
    return ids


cdef tuple starts_of(const uint32_t *first, uint32_t count):
    cdef tuple starts = clockwork_new_record(tuple, count)
    cdef uint32_t place
    for place in range(count):
        put(starts, place, first[place])
    return starts


cdef uint64_t elements_of(tuple shape) except? 0:
    """Return the elements of all inputs, for a row. Values of optional inputs count as none."""
    total = 0
    for dims in shape:
        if is_value(dims):
            continue
        count = 1
        for dim in dims:
            count *= dim
        total += count
    return min(max(total, 1), ELEMENTS_MAX)


cdef vector[uint32_t] runs_of(object runs) except *:
    cdef vector[uint32_t] found
    for size in runs:
        found.push_back(size)
    return found


cdef class Numbers:
    """Numbers for hashable things, from 1 on. A released number is assigned again."""

    cdef dict _numbers
    cdef list _things
    cdef list _free

    def __init__(self):
        self._numbers = {}
        self._things = [None]
        self._free = []

    cdef uint32_t number(self, object thing) except 0:
        found = self._numbers.get(thing)
        if found is None:
            if self._free:
                found = self._free.pop()
                self._things[found] = thing
            else:
                found = len(self._things)
                self._things.append(thing)
            self._numbers[thing] = found
        return found

    cdef object thing(self, uint32_t number):
        return self._things[number]

    cdef void take_back(self, uint32_t number) except *:
        del self._numbers[self._things[number]]
        self._things[number] = None
        self._free.append(number)

    cdef tuple save(self):
        """Return the arguments of restore(): things by number from 1 on, None for a free number, and the free
        numbers in order.
        """
        return self._things[1:], self._free

    cdef void restore(self, object things, object free) except *:
        """Restore from the result of save(). Raises TypeError or ValueError for other values."""
        self._things = [self._things[0], *things]
        self._numbers = {thing: number for number, thing in enumerate(self._things) if number and thing is not None}
        self._free = [*free]
        unused = [number for number, thing in enumerate(self._things) if number and thing is None]
        if sorted(self._free) != unused or len(self._numbers) + len(unused) + 1 != len(self._things):
            raise ValueError("numbers that are neither given out nor free")


cdef class ShapeNumbers(Numbers):
    """Numbers of shapes. Number 0 is the shape of a request without inputs."""

    cdef object _last
    cdef uint32_t _last_number
    cdef Py_ssize_t _known_max

    def __init__(self):
        Numbers.__init__(self)
        self._things[0] = ()
        self._known_max = SHAPES_KNOWN_MAX

    cdef uint32_t of(self, object shape, CScheduler *core) except? 4294967295:
        if shape is self._last:
            return self._last_number
        cdef uint32_t number = 0
        if shape:
            found = self._numbers.get(shape)
            if found is None:
                number = self.number(shape)
                core.shape_known(number, elements_of(shape))
            else:
                number = found
        self._last, self._last_number = shape, number
        return number

    cdef bint forget_unused(self, CScheduler *core) except -1:
        """Release the numbers of shapes that the core does not use. Only between steps. Returns whether it
        looked.
        """
        cdef vector[uint32_t] found
        cdef uint32_t in_use
        if len(self._numbers) <= self._known_max:
            return False
        core.shapes_in_use(found)
        used = {in_use for in_use in found}
        for number in [number for number in self._numbers.values() if number not in used]:
            self.take_back(number)
            core.shape_forgotten(number)
        self._last = None
        self._known_max = max(SHAPES_KNOWN_MAX, 2 * len(self._numbers))
        return True


cdef tuple PERCENTILES = (("50", 0.5), ("90", 0.9), ("99", 0.99), ("99.9", 0.999), ("99.99", 0.9999))


cdef dict histogram_of(const CHistogram &histogram):
    return {
        "total": histogram.total(),
        "max_ns": histogram.largest(),
        "percentiles_ns": {
            mark: histogram.percentile(part) for mark, part in PERCENTILES
        },
    }


cdef dict cumulative_of(const CHistogram &histogram, bounds_ns):
    buckets = [histogram.up_to(bound) for bound in bounds_ns]
    return {"count": histogram.total(), "sum_ns": histogram.sum(), "buckets": [*buckets, histogram.total()]}


cdef dict errors_of(const CErrors &errors, bounds_ns):
    """Percentiles of the errors, or their counts up to each of the bounds, where there are any."""
    if bounds_ns is None:
        return {"over": histogram_of(errors.over), "under": histogram_of(errors.under)}
    return {"over": cumulative_of(errors.over, bounds_ns), "under": cumulative_of(errors.under, bounds_ns)}


cdef class Driven:
    """A C++ scheduler for callers without Python. It lives as long as this object."""


cdef class Core(Driven):
    """A policy behind the interface of ``types.Scheduler``. Not thread-safe."""

    cdef unique_ptr[CScheduler] _owner
    cdef ShapeNumbers _shapes
    cdef Numbers _kinds
    cdef Numbers _programs
    cdef dict _program_users  # models of each program, by the program's number
    cdef dict _model_programs  # program numbers by model; a model may have several, by device kind
    cdef dict _names  # label name@version of each model
    cdef Script _script  # hooks of a policy in Python
    cdef str _policy
    cdef str _memory

    def __init__(self, policy, memory, values, queued_requests_max, queued_bytes_max, Script script=None):
        cdef COptions options
        options.policy = policy.encode()
        options.memory = memory.encode()
        options.queued_requests_max = queued_requests_max
        options.queued_bytes_max = queued_bytes_max
        for name, value in values.items():
            options.values.push_back(pair[string, double](<string>name.encode(), <double>value))
        if script is not None:
            options.hooks = &script.hooks
        self._script = script
        self._policy, self._memory = policy, memory
        self._owner = make_scheduler(options)
        self._core = self._owner.get()
        self._shapes, self._kinds, self._programs = ShapeNumbers(), Numbers(), Numbers()
        self._program_users, self._model_programs, self._names = {}, {}, {}

    # ----- events ------------------------------------------------------------------------------

    def step(self, event):
        self._shapes.forget_unused(self._core)
        cdef int64_t now = self._take(event)
        self._core.settle(now)
        return self._commands()

    def step_many(self, events):
        self._shapes.forget_unused(self._core)
        cdef int64_t now = 0
        for event in events:
            now = max(now, self._take(event))
        self._core.settle(now)
        return self._commands()

    # ----- its state ---------------------------------------------------------------------------

    def save(self, bytes_max):
        """Return the whole state between steps, for restore(). None: it is larger, or partly held by a policy
        in Python.
        """
        cdef string core
        if not self._core.save(core, bytes_max):
            return None
        cdef bytes state = msgpack.packb(
            (
                self._policy, self._memory, core, self._shapes.save(), self._shapes._known_max, self._kinds.save(),
                self._programs.save(), self._names, [(model, [*used]) for model, used in self._model_programs.items()],
            )
        )
        return state if len(state) <= bytes_max else None

    def restore(self, bytes state):
        """Continue from the result of save() of a scheduler with the same options. This scheduler must be
        new.

        Raises ConfigError for any other bytes; the scheduler is then unusable.
        """
        cdef bytes core
        try:
            policy, memory, core, shapes, known_max, kinds, programs, names, model_programs = msgpack.unpackb(
                state, use_list=False, strict_map_key=False
            )
            if (policy, memory) != (self._policy, self._memory):
                raise ValueError(f"it is of policy {policy!r} with memory rules {memory!r}")
            for numbers, (things, free) in ((self._shapes, shapes), (self._kinds, kinds), (self._programs, programs)):
                (<Numbers>numbers).restore(things, free)
            self._shapes._known_max = known_max
            self._names = {<int64_t>model: str(name) for model, name in names.items()}
            self._model_programs = {<int64_t>model: dict.fromkeys(used) for model, used in model_programs}
            for used in self._model_programs.values():
                for number in used:
                    self._programs.thing(number)
                    self._program_users[number] = self._program_users.get(number, 0) + 1
            self._core.restore(string_view(core, len(core)))
        except (
            TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError,
            msgpack.UnpackException,
        ) as error:
            raise ConfigError(f"the state of the scheduler cannot be restored: {error}") from None

    # ----- for who calls the C++ scheduler itself, but for what is rare ------------------------------

    def note(self, event):
        """Take an event. The resulting orders wait in ``out``; the caller must settle."""
        self._take(event)

    def order(self, place):
        """Return an order in ``out`` as a record."""
        cdef size_t index = place
        if index >= self._core.out.list.size():
            raise IndexError(place)
        return command_record(self, &self._core.out.list[index])

    def end_orders(self):
        """Remove all orders from ``out`` after they were carried out, and forget removed models' names."""
        cdef size_t place
        for place in range(self._core.out.list.size()):  # the commands may use names and numbers until here
            if self._core.out.list[place].kind == CommandKind.MODEL_GONE:
                self._model_gone(self._core.out.list[place].model_id)
        self._core.out.clear()

    def shape_number(self, shape):
        """Return the number of a shape in the core. It is valid until forget_shapes() returns True."""
        return self._shapes.of(shape, self._core)

    def shape_of(self, number):
        """Return the shape with a number of shape_number()."""
        return self._shapes.thing(number)

    def forget_shapes(self):
        """Release numbers of shapes that the core does not use. Only between steps. Returns whether it looked
        for any.
        """
        return self._shapes.forget_unused(self._core)

    cdef int64_t _take(self, object event) except? -1:
        cdef int64_t now
        cdef object kind = type(event)
        if kind is _Arrived:
            now = <object>(<tuple>event)[0]
            self._arrived(now, (<tuple>event)[1])
        elif kind is _ActionDone:
            now = <object>(<tuple>event)[0]
            self._action_done(now, <tuple>event)
        elif kind is _Tick:
            now = <object>(<tuple>event)[0]
        else:
            now = event.now_ns
            if kind is _RequestCancelled:
                self._core.cancelled(now, event.request_id)
            elif kind is _LinkMeasured:
                self._core.link_measured(now, event.worker, event.there_ns, event.back_ns)
            elif kind is _ModelReady:
                self._model_ready(now, event.worker, event.spec, event.is_stored)
            elif kind is _ModelKept:
                self._core.model_kept(now, event.worker, event.device, event.model_id, event.load_id, event.run_starts)
            elif kind is _CopyLost:
                self._core.copy_lost(now, event.worker, event.model_id)
            elif kind is _RoomWanted:
                self._core.room_wanted(now, event.worker, event.bytes)
            elif kind is _ModelRemoved:
                self._core.model_removed(now, event.model_id)
            elif kind is _WorkerJoined:
                self._worker_joined(now, event.worker, event.devices, event.host_bytes, event.store_bytes)
            elif kind is _WorkerLeft:
                self._core.worker_left(now, event.worker)
            elif kind is _WorkerDraining:
                self._core.worker_draining(now, event.worker)
            elif kind is _DeviceLost:
                self._core.device_lost(now, event.worker, event.device)
            elif kind is _DeviceClock:
                self._core.device_clock(now, event.worker, event.device, event.mhz)
            elif kind is _TimeWanted:
                self._core.time_wanted(now, event.worker, event.device, event.model_id, event.expected_ns, event.runs)
            else:
                raise TypeError(f"unknown event {event!r}")
        return now

    cdef void _arrived(self, int64_t now, object request) except *:
        cdef CRequest entered
        entered.id = request.id
        entered.model_id = request.model_id
        entered.rows = <uint32_t>min(<uint64_t>request.rows, ROWS_MAX)
        entered.shape = self._shapes.of(request.shape, self._core)
        entered.bytes = request.bytes
        entered.copied_bytes = request.copied_bytes
        entered.arrived_ns = request.arrived_ns
        entered.deadline_ns = request.deadline_ns
        entered.priority = request.priority
        self._core.arrived(now, entered)

    cdef void _action_done(self, int64_t now, tuple event) except *:
        cdef CActionResult result
        cdef string text
        result.worker = event[1]
        result.action_id = event[2]
        result.status = <CStatus><uint8_t>event[3]
        result.begin_ns = event[5]
        result.end_ns = event[6]
        result.duration_ns = event[7]
        result.ready_ns = event[8]
        result.text = NULL
        if event[4]:
            text = (<str>event[4]).encode()
            result.text = &text
        self._core.action_done(now, result)

    cdef void _worker_joined(
        self, int64_t now, int32_t worker, object devices, uint64_t host_bytes, uint64_t store_bytes
    ) except *:
        cdef vector[CDeviceSpec] specs
        cdef CDeviceSpec spec
        for kind, page_bytes, page_count, run_ahead, *more in devices:
            spec.kind = self._kinds.number(kind)
            spec.page_bytes = page_bytes
            spec.page_count = page_count
            spec.run_ahead = max(run_ahead, 1)
            spec.arena = more[0] if more else -1
            spec.slowdown_thousandths = more[1] if len(more) > 1 else 1000
            specs.push_back(spec)
        self._core.worker_joined(now, worker, specs, host_bytes, store_bytes)

    cdef void _model_ready(self, int64_t now, int32_t worker, object spec, bint is_stored) except *:
        cdef CModelSpec entered
        if spec.model_id not in self._names:
            self._names[spec.model_id] = f"{spec.name}@{spec.version}"
        entered.model_id = spec.model_id
        entered.program = self._programs.number(spec.program)
        mine = self._model_programs.setdefault(spec.model_id, {})
        if entered.program not in mine:
            mine[entered.program] = None
            self._program_users[entered.program] = self._program_users.get(entered.program, 0) + 1
        entered.batches = spec.batches
        entered.batch_max = spec.batch_max
        entered.slo_ns = spec.slo_ns
        entered.runs = runs_of(spec.runs)
        entered.load_ns = spec.load_ns
        self._enter_profile(spec.profile, entered.profile)
        self._core.model_ready(now, worker, entered, is_stored)

    cdef void _enter_profile(self, object profile, vector[CProfilePoint] &points) except *:
        cdef CProfilePoint point
        for measured in profile:
            point.shape = self._shapes.of(measured.shape, self._core)
            point.batch = measured.batch
            point.exec_ns = measured.exec_ns
            points.push_back(point)

    cdef void _model_gone(self, int64_t model_id) except *:
        """Release the names and numbers that only this model used."""
        self._names.pop(model_id, None)
        for program in self._model_programs.pop(model_id, ()):
            left = self._program_users[program] - 1
            if left:
                self._program_users[program] = left
            else:
                del self._program_users[program]
                self._programs.take_back(program)

    # ----- orders ------------------------------------------------------------------------------

    cdef list _commands(self):
        cdef size_t place
        cdef list commands = [
            command_record(self, &self._core.out.list[place]) for place in range(self._core.out.list.size())
        ]
        self.end_orders()
        return commands

    cdef str _text(self, CCommand *command):
        cdef uint8_t number = <uint8_t>command.text
        text = _texts[number]
        if _fixed[number]:
            return text
        said = ""
        if command.text == CText.LOAD_FAILED or command.text == CText.VERBATIM:
            if command.said >= 0:
                said = self._core.out.texts[command.said].decode()
            elif command.text == CText.LOAD_FAILED:
                said = STATUSES[command.a].name
            else:
                said = STATUSES[command.a].name.lower().replace("_", " ")
        name = self._names.get(command.model_id, "")
        return text.format(
            name=name, a=command.a, b=command.b, said=said,
            a_time=duration_text(command.a).decode(), b_time=duration_text(command.b).decode(), c_time=duration_text(command.c).decode(),
        )

    @property
    def plans_fetches(self):
        """Whether the policy can serve workers whose host store has a budget."""
        return self._core.plans_fetches()

    # ----- what it shows -----------------------------------------------------------------------

    def devices(self):
        return [self._device(row) for row in self._core.devices()]

    cdef dict _device(self, CDeviceStatus row):
        shares = [self._share(share) for share in row.shares]
        return {**row, "kind": self._kinds.thing(row.kind), "shares": shares}

    cdef dict _share(self, const CShareStatus &share):
        standing = "beyond" if share.is_beyond else "within" if share.is_modest else "near"
        return {"model": share.model_id, "asked": share.asked, "had": share.had, "standing": standing}

    def link_status(self, int64_t now_ns):
        cdef CLinkStatus found = self._core.link_status(now_ns)
        return {
            "contested_ns": found.contested_ns, "level": found.level, "beyond": found.beyond,
            "shares": [self._share(share) for share in found.shares],
        }

    def policy_status(self, int64_t now_ns):
        cdef CPolicyStatus found = self._core.policy_status(now_ns)
        if not found.is_learning:
            return {}
        return {"pace": found.pace, "need": found.need, "hold": found.hold, "share": found.share}

    def whereabouts(self, model_id):
        return [(place.worker, place.device, STATES[place.state]) for place in self._core.whereabouts(model_id)]

    def devices_wanted(self, int64_t now_ns):
        return self._core.devices_wanted(now_ns)

    def expected_ns(self, model_id, profile):
        cdef vector[CProfilePoint] points
        self._enter_profile(profile, points)
        return list(self._core.expected_ns(model_id, points))

    def noise(self):
        cdef const CPredictions *found = self._core.predictions()
        if found is NULL:
            return {}
        return found.noise()

    def predictions(self):
        return self.prediction_errors(None)

    def prediction_errors(self, bounds_ns):
        cdef const CPredictions *found = self._core.predictions()
        if found is NULL:
            return {}
        return {
            "infer_duration": errors_of(found.infer_duration, bounds_ns),
            "infer_completion": errors_of(found.infer_completion, bounds_ns),
            "load_duration": errors_of(found.load_duration, bounds_ns),
            "load_completion": errors_of(found.load_completion, bounds_ns),
            "fetch_duration": errors_of(found.fetch_duration, bounds_ns),
            "fetch_completion": errors_of(found.fetch_completion, bounds_ns),
        }

    def held(self):
        cdef vector[int64_t] numbers
        self._core.held(numbers)
        return (<const char *>numbers.data())[:numbers.size() * sizeof(int64_t)]

    def hosts(self, model_id):
        return list(self._core.hosts(model_id))

    def keepers(self, model_id):
        return list(self._core.keepers(model_id))

    def sole_copies(self, worker):
        return self._core.sole_copies(worker)

    def store_room(self, worker):
        return self._core.store_room(worker)

    def store_status(self):
        return self._core.store_status()

    def snapshot(self):
        cdef CSnapshot all_ = self._core.snapshot()
        cdef CWhereabouts residency
        cdef CPlannedBatch batch
        cdef CFlightStatus flight
        cdef CModelStatus model
        cdef size_t place
        devices = []
        for place in range(all_.devices.size()):
            row = self._device(all_.devices[place])
            row["resident"] = {
                residency.model_id: {
                    "name": self._names.get(residency.model_id, ""), "load_id": residency.load_id, "state": STATES[residency.state],
                    "run_starts": list(residency.run_starts), "pages": residency.pages,
                }
                for residency in all_.resident[place]
            }
            row["plan"] = [{**batch, "shape": self._shapes.thing(batch.shape)} for batch in all_.plans[place]]
            devices.append(row)
        models = {
            model.model_id: {
                "name": self._names.get(model.model_id, ""), "queued": model.queued, "served": model.served,
                "draining": bool(model.draining), "workers": list(model.workers),
                "resident": [[residency.worker, residency.device] for residency in model.residencies if residency.state == 2],
            }
            for model in all_.models
        }
        flights = [{**flight, "kind": FLIGHTS[flight.kind]} for flight in all_.flights]
        return {
            "now_ns": all_.now_ns,
            "queued_requests": all_.queued_requests,
            "queued_bytes": all_.queued_bytes,
            "counts": {
                "admitted": all_.admitted, "answered": all_.answered, "refused": all_.refused,
                "missed": all_.missed, "failed": all_.failed, "displaced": all_.displaced,
            },
            "devices": devices,
            "models": models,
            "flights": flights,
        }

    def check_invariants(self):
        self._core.check_invariants()

    @property
    def known_counts(self):
        """Counts of the shapes, programs and models that have a number or a name here."""
        return len(self._shapes._numbers), len(self._programs._numbers), len(self._names)


# ----- parts for use by themselves --------------------------------------------------------------------


def with_margin(ns):
    return c_with_margin(ns)


cdef class PageAllocator:
    """The free pages of an arena; see csrc/scheduler/pages.h."""

    cdef CPages _pages

    def __init__(self, page_count):
        if page_count < 0:
            raise ValueError(f"an arena of {page_count} pages")
        self._pages = CPages(<uint32_t>page_count)

    def copy(self):
        cdef PageAllocator other = PageAllocator(0)
        other._pages = self._pages
        return other

    @property
    def page_count(self):
        return self._pages.page_count()

    @property
    def free_count(self):
        return self._pages.free_count()

    def fits(self, runs):
        return bool(self._pages.fits(runs_of(runs)))

    def allocate(self, runs):
        cdef vector[uint32_t] starts
        if not self._pages.allocate(runs_of(runs), starts):
            return None
        return starts_of(starts.data(), <uint32_t>starts.size())

    def free(self, starts, runs):
        for start, size in zip(starts, runs, strict=True):
            self._pages.free_run(start, size)

    def take(self, starts, runs):
        for start, size in zip(starts, runs, strict=True):
            self._pages.take_run(start, size)

    def intervals(self):
        return [(interval.start, interval.size) for interval in self._pages.intervals()]

    def check_invariants(self):
        self._pages.check_invariants()


cdef class Curve:
    """Execution time by batch size; see csrc/scheduler/estimates.h."""

    cdef CCurve _own
    cdef CCurve *_curve
    cdef object _keeper
    cdef int64_t _now

    def __cinit__(self):
        self._curve = &self._own

    def seed(self, batch, ns):
        self._curve.seed(batch, ns)

    def exec_ns(self, batch):
        return self._curve.exec_ns(batch)

    def planned_ns(self, batch):
        return self._curve.planned_ns(batch)

    def measure(self, batch, ns, now=None):
        """now: time at which the execution ended; by default executions follow each other without gaps."""
        self._now = self._now + ns if now is None else now
        return bool(self._curve.measure(batch, ns, self._now))

    def forget_stale(self, now):
        return bool(self._curve.forget_stale(now))


cdef class ProgramEstimates:
    """The curves of a program on a device kind, by shape."""

    cdef CProgram _own
    cdef CProgram *_program
    cdef CShapes _known
    cdef Numbers _numbers
    cdef object _keeper
    cdef int64_t _now

    def __cinit__(self):
        self._program = &self._own
        self._numbers = Numbers()

    cdef uint32_t _shape(self, tuple shape) except 0:
        cdef uint32_t number = self._numbers.number(shape)
        self._known.set(number, elements_of(shape))
        return number

    def seed(self, points):
        cdef vector[CProfilePoint] found
        cdef CProfilePoint entered
        for point in points:
            entered.shape, entered.batch, entered.exec_ns = self._shape(point.shape), point.batch, point.exec_ns
            found.push_back(entered)
        self._program.seed(found)

    def is_profiled(self, shape):
        return self._program.curve(self._shape(shape)) != NULL

    def bound_ns(self, shape, batch):
        return self._program.bound_ns(self._known, self._shape(shape), batch)

    def measure(self, shape, batch, ns):
        """Return whether published estimates changed. Executions follow each other without gaps."""
        cdef uint32_t forgotten = UINT32_MAX
        self._now += ns
        return bool(self._program.measure(self._shape(shape), batch, ns, &forgotten, self._now))

    def curve(self, shape):
        """Return the curve of a profiled shape. It is valid until the shape is forgotten."""
        cdef Curve found = Curve()
        found._curve = self._program.curve(self._shape(shape))
        found._keeper = self
        if found._curve == NULL:
            raise KeyError(shape)
        return found


cdef class LoadEstimates:
    """Load times of a device kind."""

    cdef CLoads _loads
    cdef int64_t _now

    cdef CLoadTimes *_times(self, uint32_t program, uint32_t page_count) except NULL:
        cdef CLoadTimes *times = self._loads.find(program, page_count)
        return times if times != NULL else &self._loads.use(program, page_count)

    def load_ns(self, program, seed_ns, page_count):
        return self._loads.load_ns(self._times(program, page_count)[0], seed_ns, page_count)

    def measure(self, program, seed_ns, page_count, ns):
        self._now += ns  # loads follow each other without gaps
        self._loads.measure(self._times(program, page_count)[0], seed_ns, page_count, ns, self._now)

    def release(self, program, page_count):
        self._loads.release(program, page_count)


cdef class Estimates:
    """Estimates of every program, by device kind."""

    cdef CEstimates _estimates
    cdef Numbers _numbers

    def __cinit__(self):
        self._numbers = Numbers()

    def program(self, program, kind):
        cdef ProgramEstimates found = ProgramEstimates()
        found._program = &self._estimates.use_program(self._numbers.number(program), self._numbers.number(kind))
        found._keeper = self
        return found


include "_commands.pxi"
