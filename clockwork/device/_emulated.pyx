# distutils: language = c++
"""The native emulated devices of one machine in Python's terms; clockwork.device.emulated puts a clock to them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector

from clockwork.wire._messages cimport CActionKind, CLane, CStatus

from clockwork.wire.messages import HostDrop, HostFetch, Infer, Load, Profile, Status, Unload

cdef extern from "device/emulated.h" namespace "clockwork::emulated" nogil:
    cdef cppclass Settings:
        uint32_t page_count, run_ahead
        int64_t unload_ns
        double exec_noise, load_noise, exec_outlier, load_outlier, outlier_factor
        double load_refusals, load_failures, exec_failures
        CStatus exec_failure
        uint64_t copy_bandwidth, disk_bandwidth
        double slow_factor
        int64_t slow_ns, slow_every_ns

    cdef cppclass PageRun:
        PageRun()
        PageRun(uint32_t first, uint32_t count)
        uint32_t first, count

    cdef cppclass Order:
        uint64_t id
        CActionKind kind
        uint32_t token
        int64_t model_id
        uint64_t load_id
        int64_t earliest_ns, latest_ns, profiled_ns
        uint64_t bytes
        vector[PageRun] pages

    cdef cppclass Done:
        uint32_t token
        CStatus status
        int64_t begin_ns, end_ns, waited_ns

    string sentence(const Done &done) except +

    cdef cppclass Resident:
        int64_t model_id
        uint64_t load_id
        vector[PageRun] pages

    cdef cppclass Device:
        const Order *running(CLane lane)
        const Resident *resident(int64_t model_id)
        uint64_t held_pages()

cdef extern from "device/emulated_machine.h" namespace "clockwork::emulated" nogil:
    cdef cppclass EndedAction "clockwork::emulated::Machine::Ended":
        uint32_t device
        Done done

    cdef cppclass CMachine "clockwork::emulated::Machine":
        CMachine(const Settings &settings, uint32_t device_count, uint64_t host_bytes, cbool shares_link, double speed,
                 uint64_t seed, size_t stale_max) except +
        vector[EndedAction] ended
        void advance(int64_t now) except +
        void start(uint32_t device, Order order, int64_t now) except +
        void revoke(uint32_t device, uint64_t action_id, int64_t now) except +
        void end_run(uint32_t device, uint64_t action_id, int64_t now) except +
        void reset(uint32_t device, int64_t now) except +
        void clear_store() except +
        int64_t next_ns()
        size_t event_count()
        const Device &device(uint32_t number)
        uint64_t host_bytes()
        cbool is_resident(int64_t model_id)
        cbool is_used(int64_t model_id)

cdef uint32_t NO_PAGE = 0xFFFFFFFF  # beyond every arena

cdef dict KINDS = {
    Load: <int>CActionKind.LOAD,
    Unload: <int>CActionKind.UNLOAD,
    Infer: <int>CActionKind.INFER,
    Profile: <int>CActionKind.PROFILE,
    HostFetch: <int>CActionKind.FETCH,
    HostDrop: <int>CActionKind.DROP,
}
cdef list STATUSES = [Status(number) if number in set(Status) else None for number in range(max(Status) + 1)]


cdef inline uint64_t id_of(object number):
    """An id of the wire as 64 bits: ids below zero are as good as any."""
    return <uint64_t>(number & 0xFFFFFFFFFFFFFFFF)


cdef class Machine:
    """Devices that share a link, perhaps, and a host store. Every time is the caller's, and never goes back."""

    cdef unique_ptr[CMachine] _machine
    cdef Settings _settings
    cdef dict _owners  # by token: device, and what the caller gave with an action
    cdef uint32_t _token

    def __init__(
        self, count, page_count, run_ahead, stale_max, *, host_bytes=0, shares_link=False, speed=1.0, seed=0, unload_ns=0,
        exec_noise=0.0, load_noise=0.0, exec_outlier=0.0, load_outlier=0.0, outlier_factor=2.0, load_refusals=0.0,
        load_failures=0.0, exec_failures=0.0, exec_failure=Status.DEVICE_ERROR, copy_bandwidth=0, disk_bandwidth=0,
        slow_factor=1.0, slow_ns=0, slow_every_ns=0,
    ):  # fmt: skip
        cdef Settings *settings = &self._settings
        settings.page_count, settings.run_ahead, settings.unload_ns = page_count, run_ahead, unload_ns
        settings.exec_noise, settings.load_noise = exec_noise, load_noise
        settings.exec_outlier, settings.load_outlier = exec_outlier, load_outlier
        settings.outlier_factor = outlier_factor
        settings.load_refusals, settings.load_failures = load_refusals, load_failures
        settings.exec_failures, settings.exec_failure = exec_failures, <CStatus><uint8_t>exec_failure
        settings.copy_bandwidth, settings.disk_bandwidth = copy_bandwidth, disk_bandwidth
        settings.slow_factor, settings.slow_ns, settings.slow_every_ns = slow_factor, slow_ns, slow_every_ns
        self._machine.reset(new CMachine(settings[0], count, host_bytes, shares_link, speed, id_of(seed), stale_max))
        self._owners = {}

    def start(self, uint32_t device, int64_t now, action, owner, int64_t profiled_ns=0, uint64_t size=0, runs=()):
        """Hand an action to its lane; owner comes back in take(). size: bytes of its inputs, or of what is fetched."""
        cdef Order order
        order.id = id_of(action.action_id)
        order.kind = <CActionKind><uint8_t><int>KINDS[type(action)]
        order.model_id = action.model_id
        order.load_id = id_of(action.load_id)
        order.earliest_ns, order.latest_ns = action.earliest_ns, action.latest_ns
        order.profiled_ns, order.bytes = profiled_ns, size
        if order.kind == CActionKind.LOAD:
            for start, count in zip(action.run_starts, runs, strict=True):
                order.pages.push_back(PageRun(start if 0 <= start < NO_PAGE else NO_PAGE, count))
        while self._token in self._owners:
            self._token += 1
        order.token = self._token
        self._token += 1
        self._owners[order.token] = (device, owner)
        self._machine.get().start(device, move(order), now)

    def revoke(self, uint32_t device, int64_t now, action_id):
        self._machine.get().revoke(device, id_of(action_id), now)

    def end_run(self, uint32_t device, int64_t now, action_id):
        self._machine.get().end_run(device, id_of(action_id), now)

    def advance(self, int64_t now):
        self._machine.get().advance(now)

    def reset(self, uint32_t device, int64_t now):
        """Forget a device's actions and residencies. What ended before must have been taken."""
        self._machine.get().reset(device, now)
        self._owners = {token: owner for token, owner in self._owners.items() if owner[0] != device}

    def clear_store(self):
        self._machine.get().clear_store()

    def take(self):
        """What has ended since the last call, in order: (device, owner, status, text, begin, end, wait for inputs)."""
        cdef list found = []
        cdef EndedAction one
        for one in self._machine.get().ended:
            _, owner = self._owners.pop(one.done.token)
            found.append((
                one.device, owner, STATUSES[<uint8_t>one.done.status], sentence(one.done).decode(), one.done.begin_ns,
                one.done.end_ns, one.done.waited_ns,
            ))  # fmt: skip
        self._machine.get().ended.clear()
        return found

    @property
    def next_ns(self):
        """When advance() is wanted; NEVER_NS: not at all."""
        return self._machine.get().next_ns()

    @property
    def event_count(self):
        return self._machine.get().event_count()

    @property
    def host_bytes(self):
        """Bytes in the host store."""
        return self._machine.get().host_bytes()

    cdef object _running(self, uint32_t device, CLane lane):
        cdef const Order *order = self._machine.get().device(device).running(lane)
        return None if order is NULL else self._owners[order.token][1]

    def running(self, uint32_t device):
        """The owners of what the lanes are at, or None: executes, loads, fetches."""
        return self._running(device, CLane.EXECUTE), self._running(device, CLane.LOAD), self._running(device, CLane.FETCH)

    def held_pages(self, uint32_t device):
        return self._machine.get().device(device).held_pages()

    def residency(self, uint32_t device, int64_t model_id):
        """(load id, first page of each run) of a model that is loading or loaded; None: it is neither."""
        cdef const Resident *found = self._machine.get().device(device).resident(model_id)
        if found is NULL:
            return None
        return found.load_id, tuple([found.pages[run].first for run in range(found.pages.size())])

    def is_resident(self, int64_t model_id):
        """On any device."""
        return self._machine.get().is_resident(model_id)

    def is_used(self, int64_t model_id):
        """Resident, in the host store, or in an action that has not ended."""
        return self._machine.get().is_used(model_id)
