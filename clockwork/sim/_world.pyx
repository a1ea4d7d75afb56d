# distutils: language = c++
"""The native world for Python; callers use clockwork.sim.world."""

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.utility cimport move, pair
from libcpp.vector cimport vector

import numpy as np

from clockwork.sim._arrays cimport memory_of
from clockwork.scheduler._policy cimport CHooks, Script

cdef extern from *:
    """
    #include <new>
    #include <stdexcept>

    // Failed checks of the world become AssertionErrors, the caller's mistakes ValueErrors.
    static void raise_as_python() {
        if (PyErr_Occurred()) {
            return;  // a hook of a policy in Python has raised it
        }
        try {
            throw;
        } catch (const std::invalid_argument& error) {
            PyErr_SetString(PyExc_ValueError, error.what());
        } catch (const std::bad_alloc&) {
            PyErr_NoMemory();
        } catch (const std::logic_error& error) {
            PyErr_SetString(PyExc_AssertionError, error.what());
        } catch (const std::exception& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
    }
    """
    void raise_as_python()

cdef extern from "scheduler/scheduler.h" namespace "clockwork" nogil:
    cdef cppclass Scheduler:
        pass

    cdef cppclass SchedulerOptions:
        string policy
        string memory
        vector[pair[string, double]] values
        const CHooks *hooks

    unique_ptr[Scheduler] make_scheduler(const SchedulerOptions &options) except +raise_as_python

cdef extern from "scheduler/histogram.h" namespace "clockwork" nogil:
    cdef cppclass Histogram:
        @staticmethod
        int64_t upper(size_t bucket)
        uint64_t total()
        int64_t largest()
        const vector[uint64_t] &counts()

    size_t BUCKETS "clockwork::Histogram::BUCKETS"

cdef extern from "scheduler/predictions.h" namespace "clockwork" nogil:
    cdef cppclass Errors:
        Histogram over
        Histogram under

    cdef cppclass Predictions:
        Errors infer_duration, infer_completion, load_duration, load_completion, fetch_duration, fetch_completion

cdef extern from "recording/recorder.h" namespace "clockwork" nogil:
    cdef cppclass CRing "clockwork::Ring":
        CRing(size_t bytes_max, int64_t span_ns) except +
        uint64_t read(uint64_t since, size_t bytes_max, string &found) except +

cdef extern from "recording/sentences.h" namespace "clockwork" nogil:
    cdef cppclass Sentences:
        Sentences(vector[string] templates, vector[string] status_names, vector[string] reasons)

cdef extern from "sim/accounts.h" namespace "clockwork::sim" nogil:
    const size_t OUTCOMES

    cdef cppclass Counts:
        uint64_t offered
        uint64_t cold
        uint64_t outcome[7]

    cdef struct Slice:  # the columns of SLICE_NAMES
        uint64_t offered, good, bad, loads, infers, batched
        int64_t busy_ns, link_busy_ns, p50_ns, p99_ns, p999_ns, largest_ns

    cdef cppclass Accounts:
        vector[Counts] models
        vector[Counts] classes
        Histogram latency
        vector[Histogram] class_latency
        Histogram refusal
        vector[int64_t] batches
        vector[int64_t] busy_ns
        vector[int64_t] link_busy_ns
        uint64_t loads, unloads, fetches, drops, infers, revokes, too_late, failed_actions, crashes
        vector[Slice] slices

    cdef cppclass Digest:
        uint64_t low()
        uint64_t high()

cdef extern from "sim/world.h" namespace "clockwork::sim" nogil:
    # Structs, and not classes: a mapping of all fields becomes a struct by itself.
    cdef struct ModelSetup:
        vector[pair[uint32_t, int64_t]] exec_ns
        vector[int64_t] table
        vector[uint32_t] runs
        int64_t load_ns
        uint64_t input_bytes
        uint32_t program
        uint32_t batch_max
        int64_t slo_ns

    cdef enum class DisturbanceKind "clockwork::sim::DisturbanceSetup::Kind"(uint8_t):
        pass

    cdef struct DisturbanceSetup:
        DisturbanceKind kind
        int64_t from_ns, until_ns
        double factor
        int32_t worker
        int32_t model

    cdef struct RecordedModel:
        string name, program
        int64_t version

    cdef struct WorkerSetup:
        uint32_t devices, executors, kind
        vector[vector[pair[uint32_t, int64_t]]] exec_ns
        vector[vector[int64_t]] tables

    cdef struct ClusterSetup:
        uint32_t devices, devices_per_worker, executors
        vector[WorkerSetup] workers
        double slowdown, slowdown_told
        uint64_t page_bytes
        uint32_t page_count, run_ahead
        size_t actions_queued_max
        vector[double] speeds
        vector[uint32_t] batch_maxes, extra_pages
        vector[pair[int64_t, double]] spells
        double exec_noise, load_noise, outlier, outlier_factor
        int64_t link_there_ns, link_back_ns, link_jitter_ns
        double link_loss
        int64_t clock_offset_ns
        double clock_drift_ppm, crashes_per_hour
        int64_t down_ns, timeout_ns
        uint64_t io_bandwidth, input_bandwidth, copy_bandwidth, host_bytes, disk_bandwidth, store_bytes, store_bandwidth
        uint32_t stored_copies
        int64_t ping_ns
        double profiled, load_profiled
        vector[DisturbanceSetup] disturbances
        double load_failures, infer_failures, cancels

    cdef struct ClosedSetup:
        uint32_t model, concurrency
        int64_t think_ns, round_trip_ns, slo_ns
        uint8_t priority, class_index
        int64_t start_ns, until_ns

    cdef struct RunSetup:
        uint64_t seed
        int64_t warmup_ns, until_ns, drain_ns, slice_ns
        cbool resident, check, timed, fates
        vector[pair[uint32_t, uint32_t]] placed
        size_t trace_max
        uint8_t priority_default

    cdef cppclass ArrivalChunk:
        const int64_t *at_ns
        const int32_t *model
        const int64_t *slo_ns
        const uint8_t *priority
        const uint8_t *class_index
        size_t count

    cdef cppclass TraceRow:
        int64_t at_ns, what, a, b, c, d

    cdef enum class RequestOutcome(uint8_t):
        pass

    cdef enum class Reason "clockwork::Reason"(uint8_t):
        pass

    cdef cppclass RequestFate:
        RequestOutcome outcome
        Reason reason
        int32_t device
        int64_t latency_ns

    cdef enum class StopReason(uint8_t):
        WANTS_CHUNK
        PAUSED
        DONE

    cdef cppclass CWorld "clockwork::sim::World":
        CWorld(unique_ptr[Scheduler] scheduler, vector[ModelSetup] models, const ClusterSetup &cluster,
               size_t opens, vector[ClosedSetup] closed, const RunSetup &run) except +raise_as_python
        void record(shared_ptr[CRing] ring, Sentences sentences, vector[RecordedModel] names)
        void set_up() except +raise_as_python
        void feed(size_t open, const ArrivalChunk &chunk) except +raise_as_python
        StopReason run(uint64_t events_max) except +raise_as_python
        size_t wanting()
        int64_t now_ns()
        int64_t end_ns()
        uint64_t requests()
        uint64_t events()
        int64_t scheduler_ns()
        const Accounts &accounts()
        const Predictions *predictions()
        double devices_wanted() except +raise_as_python
        vector[int64_t] idle_with_work_ns() except +raise_as_python
        const Digest &digest()
        const vector[TraceRow] &trace()
        const vector[RequestFate] &fates()

OUTCOME_NAMES = ("good", "late", "refused", "missed", "failed", "cancelled", "unanswered")
SLICE_NAMES = (
    "offered", "good", "bad", "loads", "infers", "batched", "busy_ns", "link_busy_ns", "p50_ns", "p99_ns",
    "p999_ns", "max_ns",
)


def bucket_bounds():
    """Return the largest value of each bucket of a histogram, in ns."""
    cdef size_t place
    return np.array([Histogram.upper(place) for place in range(BUCKETS)], np.int64)


cdef object counts_of(const Histogram &histogram):
    cdef size_t place
    result = np.zeros(BUCKETS, np.uint64)
    cdef uint64_t *view = <uint64_t *>memory_of(result, "uint64", 1)
    for place in range(histogram.counts().size()):
        view[place] = histogram.counts()[place]
    return result, histogram.largest()


cdef object array_of(const vector[int64_t] &values):
    cdef size_t place
    result = np.zeros(values.size(), np.int64)
    cdef int64_t *view = <int64_t *>memory_of(result, "int64", 1)
    for place in range(values.size()):
        view[place] = values[place]
    return result


cdef object table_of(const vector[Counts] &rows):
    """Return an array (row, column) with the columns offered, cold, and the outcomes."""
    cdef size_t place, column
    result = np.zeros((<Py_ssize_t>rows.size(), <Py_ssize_t>(2 + OUTCOMES)), np.int64)
    cdef int64_t *row = <int64_t *>memory_of(result, "int64", 2)
    for place in range(rows.size()):
        row[0] = rows[place].offered
        row[1] = rows[place].cold
        for column in range(OUTCOMES):
            row[2 + column] = rows[place].outcome[column]
        row += 2 + OUTCOMES
    return result


cdef class World:
    """A simulated world. models, cluster, closed and run are mappings of the fields in csrc/sim/world.h."""

    cdef unique_ptr[CWorld] _world
    cdef list _chunks  # by open workload: arrays that the world still reads
    cdef Script _script  # hooks of a policy in Python
    cdef shared_ptr[CRing] _ring
    cdef uint64_t _read

    def __init__(self, policy, memory, options, models, cluster, opens, closed, run, Script script=None):
        cdef SchedulerOptions scheduler_options
        cdef vector[ModelSetup] model_setups = models
        cdef vector[ClosedSetup] closed_setups = closed
        cdef ClusterSetup place = cluster
        cdef RunSetup how = run
        cdef size_t open_count = opens
        scheduler_options.policy = policy.encode()
        scheduler_options.memory = memory.encode()
        scheduler_options.values = [(name.encode(), value) for name, value in options.items()]
        if script is not None:
            scheduler_options.hooks = &script.hooks
        self._script = script
        self._chunks = [None] * opens
        cdef unique_ptr[Scheduler] scheduler = make_scheduler(scheduler_options)
        self._world.reset(
            new CWorld(move(scheduler), move(model_setups), place, open_count, move(closed_setups), how)
        )

    def record(self, size_t bytes_max, names, templates, status_names, reasons):
        """Record from set_up() on, into a ring of bytes_max bytes.

        names: (name, version, program) of each model. The others: see csrc/recording/sentences.h.
        """
        cdef vector[RecordedModel] all_names = [
            {"name": name.encode(), "version": version, "program": program.encode()} for name, version, program in names
        ]
        cdef vector[string] told = [text.encode() for text in templates]
        cdef vector[string] statuses = [text.encode() for text in status_names]
        cdef vector[string] words = [text.encode() for text in reasons]
        self._ring = shared_ptr[CRing](new CRing(bytes_max, INT64_MAX))
        self._world.get().record(self._ring, Sentences(told, statuses, words), all_names)

    def recorded(self, size_t bytes_max):
        """Return the next part of the recording, at most bytes_max bytes; b"" at its end.

        Raises OverflowError if a part was overwritten before it was read.
        """
        cdef string found
        cdef uint64_t place
        with nogil:
            place = self._ring.get().read(self._read, bytes_max, found)
        if place != self._read:
            raise OverflowError(f"{place - self._read} bytes of a recording were overwritten before they were read")
        self._read += found.size()
        return found

    def set_up(self):
        """Let workers join and models become ready, and resident if requested."""
        with nogil:
            self._world.get().set_up()

    def feed(self, size_t number, arrivals):
        """Feed an open workload with arrivals: (t_ns, model, slo_ns, priority, cls). None: there are
        no more.
        """
        cdef ArrivalChunk chunk
        chunk.count = 0
        if arrivals is not None:
            at_ns, model, slo_ns, priority, class_index = arrivals
            chunk.at_ns = <const int64_t *>memory_of(at_ns, "int64", 1)
            chunk.model = <const int32_t *>memory_of(model, "int32", 1)
            chunk.slo_ns = <const int64_t *>memory_of(slo_ns, "int64", 1)
            chunk.priority = <const uint8_t *>memory_of(priority, "uint8", 1)
            chunk.class_index = <const uint8_t *>memory_of(class_index, "uint8", 1)
            if not len(model) == len(slo_ns) == len(priority) == len(class_index) == len(at_ns):
                raise ValueError("the arrays of some arrivals differ in length")
            chunk.count = len(at_ns)
        self._world.get().feed(number, chunk)
        self._chunks[number] = arrivals  # the world reads this memory until it requests more

    def run(self, uint64_t events_max):
        """Continue the simulation. Returns the number of the open workload to feed; -1: paused after
        events_max events; -2: over.
        """
        cdef StopReason stop
        with nogil:
            stop = self._world.get().run(events_max)
        if stop == StopReason.WANTS_CHUNK:
            return self._world.get().wanting()
        return -1 if stop == StopReason.PAUSED else -2

    @property
    def now_ns(self):
        return self._world.get().now_ns()

    @property
    def scheduler_ns(self):
        """Real time inside the scheduler after set_up(), if measured."""
        return self._world.get().scheduler_ns()

    @property
    def requests(self):
        return self._world.get().requests()

    def results(self):
        """Return all counts as arrays and numbers by name."""
        cdef const Accounts *accounts = &self._world.get().accounts()
        cdef const Predictions *predictions = self._world.get().predictions()
        assert predictions is not NULL, "every policy judges its predictions"
        cdef size_t place
        slices = [list(row.values()) for row in <list>accounts.slices]
        low, high = self._world.get().digest().low(), self._world.get().digest().high()
        return {
            "models": table_of(accounts.models),
            "classes": table_of(accounts.classes),
            "latency": counts_of(accounts.latency),
            "class_latency": [
                counts_of(accounts.class_latency[place]) for place in range(accounts.class_latency.size())
            ],
            "refusal": counts_of(accounts.refusal),
            "batches": array_of(accounts.batches),
            "busy_ns": array_of(accounts.busy_ns),
            "idle_with_work_ns": array_of(self._world.get().idle_with_work_ns()),
            "link_busy_ns": array_of(accounts.link_busy_ns),
            "loads": accounts.loads,
            "unloads": accounts.unloads,
            "fetches": accounts.fetches,
            "drops": accounts.drops,
            "infers": accounts.infers,
            "revokes": accounts.revokes,
            "too_late": accounts.too_late,
            "failed_actions": accounts.failed_actions,
            "crashes": accounts.crashes,
            "errors": {
                "infer_duration": errors_of(predictions.infer_duration),
                "infer_completion": errors_of(predictions.infer_completion),
                "load_duration": errors_of(predictions.load_duration),
                "load_completion": errors_of(predictions.load_completion),
                "fetch_duration": errors_of(predictions.fetch_duration),
                "fetch_completion": errors_of(predictions.fetch_completion),
            },
            "slices": np.array(slices, np.int64).reshape(-1, len(SLICE_NAMES)),
            "devices_wanted": self._world.get().devices_wanted(),
            "digest": f"{high:016x}{low:016x}",
            "requests": self._world.get().requests(),
            "events": self._world.get().events(),
            "end_ns": self._world.get().end_ns(),
        }

    def trace(self):
        """Return the rows of the trace: (at_ns, what, a, b, c, d); see csrc/sim/world.h."""
        cdef const vector[TraceRow] *rows = &self._world.get().trace()
        cdef const TraceRow *row
        cdef size_t place
        result = []
        for place in range(rows.size()):
            row = &rows.at(place)
            result.append((row.at_ns, row.what, row.a, row.b, row.c, row.d))
        return result


    def fates(self):
        """Return a row for each request in the order of arrival: outcome (index into OUTCOME_NAMES), reason
        (0: none), device (-1: none), latency.
        """
        cdef const vector[RequestFate] *fates = &self._world.get().fates()
        cdef size_t place
        result = np.zeros((<Py_ssize_t>fates.size(), 4), np.int64)
        cdef int64_t *row = <int64_t *>memory_of(result, "int64", 2)
        for place in range(fates.size()):
            row[0] = <int64_t><uint8_t>fates.at(place).outcome
            row[1] = <int64_t><uint8_t>fates.at(place).reason
            row[2] = fates.at(place).device
            row[3] = fates.at(place).latency_ns
            row += 4
        return result


cdef object errors_of(const Errors &errors):
    return counts_of(errors.over), counts_of(errors.under)
