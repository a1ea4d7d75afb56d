# distutils: language = c++
"""Wraps the native emulated devices of a machine for Python; clockwork.device.emulated adds a clock."""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move, pair
from libcpp.vector cimport vector

from clockwork.device._orders cimport Action, Order as LaneOrder, DeviceOutlet, DevicePort, RunningActions
from clockwork.device._orders cimport completion_of, note_order
from clockwork.wire._messages cimport CActionKind, CLaneKind, CStatus

from clockwork.wire.messages import KIND_OF, Status

cdef extern from "device/emulated.h" namespace "clockwork::emulated" nogil:
    cdef cppclass EmulatedSettings:
        uint32_t page_count, run_ahead
        int64_t unload_ns
        double slowdown, exec_noise, load_noise, exec_outlier, load_outlier, outlier_factor
        double load_refusals, load_failures, exec_failures
        CStatus exec_failure
        uint64_t copy_bandwidth, disk_bandwidth
        double slow_factor
        int64_t slow_ns, slow_every_ns

    cdef cppclass PageRun:
        PageRun()
        PageRun(uint32_t first, uint32_t count)
        uint32_t first, count

    cdef cppclass EmulatedOrder:
        uint64_t id
        CActionKind kind
        uint32_t token
        int64_t model_id
        uint64_t load_id
        int64_t earliest_ns, latest_ns, profiled_ns
        uint64_t bytes
        vector[PageRun] pages

    cdef cppclass EmulatedEnd:
        uint32_t token
        CStatus status
        int64_t begin_ns, end_ns, waited_ns

    string sentence(const EmulatedEnd &done) except +

    cdef cppclass EmulatedResidency:
        int64_t model_id
        uint64_t load_id
        vector[PageRun] pages

    cdef cppclass EmulatedDevice:
        const EmulatedOrder *running(CLaneKind lane)
        const EmulatedResidency *resident(int64_t model_id)
        uint64_t held_pages()

cdef extern from "device/emulated_machine.h" namespace "clockwork::emulated" nogil:
    cdef cppclass EndedAction "clockwork::emulated::Machine::Ended":
        uint32_t device
        EmulatedEnd done

    cdef cppclass CMachine "clockwork::emulated::Machine":
        CMachine(const EmulatedSettings &settings, uint32_t device_count, uint32_t executors, uint64_t host_bytes,
                 cbool shares_link, double speed, uint64_t seed, size_t stale_max) except +
        vector[EndedAction] ended
        void advance(int64_t now) except +
        void start(uint32_t device, EmulatedOrder order, int64_t now) except +
        void revoke(uint32_t device, uint64_t action_id, int64_t now) except +
        void end_run(uint32_t device, uint64_t action_id, int64_t now) except +
        void reset(uint32_t device, int64_t now) except +
        void clear_store() except +
        int64_t next_ns()
        size_t event_count()
        const EmulatedDevice &device(uint32_t number)
        uint64_t host_bytes()
        cbool is_resident(int64_t model_id)
        cbool is_used(int64_t model_id)

cdef extern from "device/fleet.h" namespace "clockwork::emulated" nogil:
    cdef cppclass FleetOutput:
        int dtype
        int bits
        vector[int64_t] dims

    cdef cppclass FleetModel:
        vector[int] dtypes
        const vector[int]* model_dtypes
        cbool batches
        vector[int64_t] runs
        vector[pair[int64_t, int64_t]] points
        int64_t load_ns
        vector[FleetOutput] outputs

    cdef cppclass FleetOrder(LaneOrder):
        pass

    cdef cppclass FleetSettings:
        uint32_t device_count
        uint32_t executors
        uint64_t host_bytes
        cbool shares_link
        uint64_t seed
        size_t stale_max
        size_t slot_bytes_max
        size_t page_bytes
        int64_t spin_ns
        cbool is_unending

    cdef enum class Forgotten "clockwork::emulated::Fleet::Forgotten"(uint8_t):
        DONE
        RESIDENT
        IN_USE

    cdef cppclass CFleet "clockwork::emulated::Fleet":
        CFleet(const EmulatedSettings& settings, const FleetSettings& fleet) except +OSError
        int fd()
        void close_timer()
        void add_model(int64_t model_id, shared_ptr[const FleetModel] model) except +
        Forgotten forget(int64_t model_id, int64_t now) except +
        void rename(int64_t model_id, int64_t other) except +
        void begin(uint32_t device, FleetOrder* order, int64_t now)
        void revoke(uint32_t device, int64_t action_id, int64_t now)
        void end_run(uint32_t device, int64_t action_id, int64_t now)
        RunningActions look(uint32_t device, int64_t now)
        int64_t near_ns(int64_t now)
        vector[uint32_t] ended(int64_t now) except +
        Action* take(uint32_t device, int64_t now)
        Action* take_all()
        void reset(uint32_t device, int64_t now) except +
        vector[EmulatedResidency] keep(uint32_t device, int64_t now) except +
        uint64_t held_pages(uint32_t device)
        int64_t input_bytes(uint32_t device)
        uint64_t host_bytes()
        cbool is_resident(int64_t model_id)
        size_t event_count()
        vector[int64_t] lateness() except +

cdef extern from *:
    """
    #include "device/fleet.h"
    namespace clockwork::emulated {
    // A device of a fleet, by the machine's clock.
    struct FleetPlace {
        Fleet* fleet;
        std::uint32_t number;

        static FleetPlace& of(void* self) { return *static_cast<FleetPlace*>(self); }
        device::DevicePort port() {
            using device::now_ns;
            device::DevicePort made;
            made.self = this;
            made.make = [](void*) -> device::Order* { return new (std::nothrow) FleetOrder(); };
            made.begin = [](void* self, device::Order* order) {
                of(self).fleet->begin(of(self).number, static_cast<FleetOrder*>(order), now_ns());
            };
            made.free = [](void*, device::Order* order) { delete static_cast<FleetOrder*>(order); };
            made.revoke = [](void* self, std::int64_t id) {
                of(self).fleet->revoke(of(self).number, id, now_ns());
            };
            made.end_run = [](void* self, std::int64_t id) {
                of(self).fleet->end_run(of(self).number, id, now_ns());
            };
            made.look = [](void* self, device::RunningActions* found) {
                *found = of(self).fleet->look(of(self).number, now_ns());
            };
            made.is_broken = [](void*) { return false; };
            return made;
        }
    };
    inline device::DeviceOutlet outlet_of(Fleet& fleet) {
        return {&fleet, fleet.fd(), [](void* self) { return static_cast<Fleet*>(self)->take_all(); }};
    }
    inline void free_order(device::Order* order) { delete static_cast<FleetOrder*>(order); }
    }
    """
    cdef cppclass FleetPlace "clockwork::emulated::FleetPlace":
        CFleet* fleet
        uint32_t number
        DevicePort port()
    DeviceOutlet outlet_of "clockwork::emulated::outlet_of"(CFleet& fleet)
    void free_fleet_order "clockwork::emulated::free_order"(LaneOrder* order)

cdef uint32_t NO_PAGE = 0xFFFFFFFF  # a page number beyond every arena

cdef list STATUSES = [Status(number) if number in set(Status) else None for number in range(max(Status) + 1)]


cdef inline uint64_t id_of(object number):
    """Convert an id of the wire to 64 bits. Negative ids are valid."""
    return <uint64_t>(number & 0xFFFFFFFFFFFFFFFF)


cdef int set_settings(EmulatedSettings* settings, dict given) except -1:
    """Set the bounds that are given by name; see csrc/device/emulated.h."""
    settings.page_count, settings.run_ahead = given["page_count"], given["run_ahead"]
    settings.unload_ns = given.get("unload_ns", 0)
    settings.slowdown = given.get("slowdown", 1.0)
    settings.exec_noise, settings.load_noise = given.get("exec_noise", 0.0), given.get("load_noise", 0.0)
    settings.exec_outlier, settings.load_outlier = given.get("exec_outlier", 0.0), given.get("load_outlier", 0.0)
    settings.outlier_factor = given.get("outlier_factor", 2.0)
    settings.load_refusals, settings.load_failures = given.get("load_refusals", 0.0), given.get("load_failures", 0.0)
    settings.exec_failures = given.get("exec_failures", 0.0)
    settings.exec_failure = <CStatus><uint8_t>given.get("exec_failure", Status.DEVICE_ERROR)
    settings.copy_bandwidth, settings.disk_bandwidth = given.get("copy_bandwidth", 0), given.get("disk_bandwidth", 0)
    settings.slow_factor = given.get("slow_factor", 1.0)
    settings.slow_ns, settings.slow_every_ns = given.get("slow_ns", 0), given.get("slow_every_ns", 0)
    return 0


cdef class Fleet:
    """The emulated devices of a process.

    clock: returns the time, for callers in Python; the timer follows the machine's clock."""

    cdef unique_ptr[CFleet] fleet
    cdef vector[FleetPlace] places
    cdef vector[DevicePort] ports
    cdef DeviceOutlet all_ended
    cdef object clock

    def __init__(self, clock, uint32_t count, *, executors, host_bytes, shares_link, seed, stale_max, slot_bytes_max, page_bytes, spin_ns,
                 is_unending, **settings):
        cdef EmulatedSettings machine
        cdef FleetSettings given
        cdef uint32_t number
        set_settings(&machine, settings)
        given.device_count, given.executors = count, executors
        given.host_bytes, given.shares_link = host_bytes, shares_link
        given.seed, given.stale_max, given.slot_bytes_max = id_of(seed), stale_max, slot_bytes_max
        given.page_bytes, given.spin_ns, given.is_unending = page_bytes, spin_ns, is_unending
        self.fleet.reset(new CFleet(machine, given))
        self.clock = clock
        self.places.resize(count)
        for number in range(count):
            self.places[number].fleet = self.fleet.get()
            self.places[number].number = number
            self.ports.push_back(self.places[number].port())
        self.all_ended = outlet_of(self.fleet.get()[0])

    def port(self, uint32_t device):
        """Return the capsule by which a road drives this device. It is valid as long as the fleet."""
        return PyCapsule_New(&self.ports[device], b"clockwork.DevicePort", NULL)

    def outlet(self):
        """Return the capsule by which a road takes all devices' ended orders. It is valid as long as the
        fleet."""
        return PyCapsule_New(&self.all_ended, b"clockwork.DeviceOutlet", NULL)

    def fileno(self):
        return self.fleet.get().fd()

    def close_timer(self):
        self.fleet.get().close_timer()

    def add_model(self, int64_t model_id, dtypes, batches, runs, points, int64_t load_ns, outputs):
        """Add a model. points: (rows, ns), ascending. outputs: (dtype, bits of an element, dimensions)."""
        cdef shared_ptr[FleetModel] model = make_shared[FleetModel]()
        cdef FleetOutput output
        model.get().dtypes, model.get().batches, model.get().runs = dtypes, batches, runs
        model.get().model_dtypes = &model.get().dtypes
        model.get().load_ns = load_ns
        for rows, exec_ns in points:
            model.get().points.push_back(pair[int64_t, int64_t](rows, exec_ns))
        for output.dtype, output.bits, output.dims in outputs:
            model.get().outputs.push_back(output)
        self.fleet.get().add_model(model_id, <shared_ptr[const FleetModel]>model)

    def forget(self, int64_t model_id):
        """Drop a model. Raises ValueError if the model is resident or in use."""
        cdef Forgotten found = self.fleet.get().forget(model_id, self.clock())
        if found != Forgotten.DONE:
            raise ValueError(f"model {model_id} is {'resident' if found == Forgotten.RESIDENT else 'in use'}")

    def start(self, uint32_t device, action, parts=()):
        """Begin an action. parts: the inputs of each part of an INFER."""
        cdef FleetOrder* order = new FleetOrder()
        try:
            note_order(order, action, parts)
        except BaseException:
            free_fleet_order(order)
            raise
        self.fleet.get().begin(device, order, self.clock())

    def revoke(self, uint32_t device, int64_t action_id):
        self.fleet.get().revoke(device, action_id, self.clock())

    def end_run(self, uint32_t device, int64_t action_id):
        self.fleet.get().end_run(device, action_id, self.clock())

    def look(self, uint32_t device):
        """Return the ids of the actions that the execute, load and fetch lanes run; 0 for none."""
        cdef RunningActions found = self.fleet.get().look(device, self.clock())
        return found.execution, found.load, found.fetch

    def ended(self):
        """Return the devices of which an action has ended."""
        now = self.clock()
        due_ns = self.fleet.get().near_ns(now)
        while now < due_ns:
            now = self.clock()
        return self.fleet.get().ended(now)

    def poll(self, uint32_t device):
        """Return the completions of a device since the last call."""
        cdef Action* action = self.fleet.get().take(device, self.clock())
        cdef Action* after
        cdef list found = []
        while action != NULL:
            after = action.next
            found.append(completion_of(<LaneOrder*>action))
            free_fleet_order(<LaneOrder*>action)
            action = after
        return found

    def reset(self, uint32_t device):
        self.fleet.get().reset(device, self.clock())

    def keep(self, uint32_t device):
        """Forget a device's actions. Returns its residencies: model id, load id, first page of each run."""
        return [
            (found.model_id, <int64_t>found.load_id, [run.first for run in found.pages])
            for found in self.fleet.get().keep(device, self.clock())
        ]

    def rename(self, int64_t model_id, int64_t other):
        """Give a model that no action names an id that no model has."""
        self.fleet.get().rename(model_id, other)

    def held_pages(self, uint32_t device):
        return self.fleet.get().held_pages(device)

    def input_bytes(self, uint32_t device):
        return self.fleet.get().input_bytes(device)

    def is_resident(self, int64_t model_id):
        """Whether the model is resident on any device."""
        return self.fleet.get().is_resident(model_id)

    def lateness(self):
        """Return how late the last completions were noticed, in ns."""
        return self.fleet.get().lateness()

    @property
    def host_bytes(self):
        """Return the bytes of models in the host store."""
        return self.fleet.get().host_bytes()

    @property
    def event_count(self):
        return self.fleet.get().event_count()


cdef class Machine:
    """Devices that share a host store and, if so configured, a link.

    The caller gives all times, which never decrease."""

    cdef unique_ptr[CMachine] _machine
    cdef EmulatedSettings _settings
    cdef dict _owners  # by token: the device, and the caller's owner of the action
    cdef uint32_t _token

    def __init__(self, count, page_count, run_ahead, stale_max, *, executors=1, host_bytes=0, shares_link=False, speed=1.0, seed=0,
                 **settings):
        settings.update(page_count=page_count, run_ahead=run_ahead)
        set_settings(&self._settings, settings)
        self._machine.reset(new CMachine(self._settings, count, executors, host_bytes, shares_link, speed, id_of(seed), stale_max))
        self._owners = {}

    def start(self, uint32_t device, int64_t now, action, owner, int64_t profiled_ns=0, uint64_t size=0, runs=()):
        """Queue an action on its lane; take() returns `owner`. size: bytes of its inputs, or of the fetched
        model."""
        cdef EmulatedOrder order
        order.id = id_of(action.action_id)
        order.kind = <CActionKind><uint8_t><int>KIND_OF[type(action)]
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
        """Forget a device's actions and residencies. Call take() before."""
        self._machine.get().reset(device, now)
        self._owners = {token: owner for token, owner in self._owners.items() if owner[0] != device}

    def clear_store(self):
        self._machine.get().clear_store()

    def take(self):
        """Return ended actions in order: (device, owner, status, text, begin, end, wait for inputs), times in
        ns."""
        cdef list found = []
        cdef EndedAction end
        for end in self._machine.get().ended:
            _, owner = self._owners.pop(end.done.token)
            found.append((
                end.device, owner, STATUSES[<uint8_t>end.done.status], sentence(end.done).decode(), end.done.begin_ns,
                end.done.end_ns, end.done.waited_ns,
            ))  # fmt: skip
        self._machine.get().ended.clear()
        return found

    @property
    def next_ns(self):
        """Return the time of the next advance(); NEVER_NS if nothing is to happen."""
        return self._machine.get().next_ns()

    @property
    def event_count(self):
        return self._machine.get().event_count()

    @property
    def host_bytes(self):
        """Return the bytes of models in the host store."""
        return self._machine.get().host_bytes()

    cdef object _running(self, uint32_t device, CLaneKind lane):
        cdef const EmulatedOrder *order = self._machine.get().device(device).running(lane)
        return None if order is NULL else self._owners[order.token][1]

    def running(self, uint32_t device):
        """Return the owners of the actions that the execute, load and fetch lanes run, or None."""
        return self._running(device, CLaneKind.EXECUTE), self._running(device, CLaneKind.LOAD), self._running(device, CLaneKind.FETCH)

    def held_pages(self, uint32_t device):
        return self._machine.get().device(device).held_pages()

    def residency(self, uint32_t device, int64_t model_id):
        """Return (load id, first page of each run) of a loading or loaded model; None for any other."""
        cdef const EmulatedResidency *found = self._machine.get().device(device).resident(model_id)
        if found is NULL:
            return None
        return found.load_id, tuple([found.pages[run].first for run in range(found.pages.size())])

    def is_resident(self, int64_t model_id):
        """Whether the model is resident on any device."""
        return self._machine.get().is_resident(model_id)

    def is_used(self, int64_t model_id):
        """Whether a model is resident, in the host store, or in an action that has not ended."""
        return self._machine.get().is_used(model_id)
