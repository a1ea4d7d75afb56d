# Declarations of the C++ scheduler for Cython; csrc/scheduler/ describes them.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.string_view cimport string_view
from libcpp.vector cimport vector

from clockwork.scheduler._policy cimport CHooks
from clockwork.scheduler._commands cimport CCommand, CFault, CommandKind, CText
from clockwork.wire._messages cimport CReason, CStatus


cdef extern from "scheduler/types.h" namespace "clockwork" nogil:
    cdef cppclass CRequest "clockwork::Request":
        uint64_t id
        int64_t model_id
        uint32_t rows
        uint32_t shape
        uint64_t bytes
        uint64_t copied_bytes
        int64_t arrived_ns
        int64_t deadline_ns
        uint8_t priority

    cdef cppclass CProfilePoint "clockwork::ProfilePoint":
        uint32_t shape
        uint32_t batch
        int64_t exec_ns

    cdef cppclass CModelSpec "clockwork::ModelSpec":
        int64_t model_id
        uint32_t program
        cbool batches
        uint32_t batch_max
        int64_t slo_ns
        vector[uint32_t] runs
        int64_t load_ns
        vector[CProfilePoint] profile

    cdef cppclass CDeviceSpec "clockwork::DeviceSpec":
        uint32_t kind
        uint64_t page_bytes
        uint32_t page_count
        uint32_t run_ahead
        int32_t arena
        uint32_t slowdown_thousandths

    cdef cppclass CActionResult "clockwork::ActionResult":
        int32_t worker
        uint64_t action_id
        CStatus status
        int64_t begin_ns
        int64_t end_ns
        int64_t duration_ns
        int64_t ready_ns
        const string *text

    cdef cppclass CCommands "clockwork::Commands":
        vector[CCommand] list
        vector[uint64_t] ids
        vector[uint32_t] runs
        vector[string] texts
        void clear()


cdef extern from "scheduler/histogram.h" namespace "clockwork" nogil:
    cdef cppclass CHistogram "clockwork::Histogram":
        int64_t percentile(double fraction)
        uint64_t total()
        int64_t sum()
        uint64_t up_to(int64_t value)
        int64_t largest()


cdef extern from "scheduler/predictions.h" namespace "clockwork" nogil:
    cdef cppclass CErrors "clockwork::Errors":
        CHistogram over
        CHistogram under

    cdef struct CNoise "clockwork::Predictions::Noise":
        uint64_t executions
        double pace
        double sigma
        double outliers
        double outlier_factor

    cdef cppclass CPredictions "clockwork::Predictions":
        CNoise noise()
        CErrors infer_duration
        CErrors infer_completion
        CErrors load_duration
        CErrors load_completion
        CErrors fetch_duration
        CErrors fetch_completion


cdef extern from "scheduler/scheduler.h" namespace "clockwork" nogil:
    cdef cppclass COptions "clockwork::SchedulerOptions":
        string policy
        string memory
        uint64_t queued_requests_max
        uint64_t queued_bytes_max
        vector[pair[string, double]] values
        const CHooks *hooks

    cdef struct CShareStatus "clockwork::ShareStatus":
        int64_t model_id
        double asked
        double had
        cbool is_modest
        cbool is_beyond

    cdef struct CLinkStatus "clockwork::LinkStatus":
        int64_t contested_ns
        double level
        vector[CShareStatus] shares
        uint64_t beyond

    cdef struct CStoreStatus "clockwork::StoreStatus":
        uint64_t scarce
        uint64_t awaited
        uint64_t lost
        uint64_t cramped
        uint64_t copying
        uint64_t bytes
        uint64_t used
        uint64_t room

    cdef struct CPolicyStatus "clockwork::PolicyStatus":
        cbool is_learning
        double pace
        double need
        double hold
        double share

    cdef struct CDeviceStatus "clockwork::DeviceStatus":
        int32_t worker
        uint32_t device
        uint32_t arena
        uint32_t kind
        uint64_t planned_requests
        uint64_t planned_batches
        int64_t planned_ns
        uint64_t in_flight
        uint64_t loading
        uint64_t loads_waiting
        uint64_t pages
        uint64_t pages_free
        uint64_t resident
        uint64_t served
        uint64_t evicted_early
        int64_t idle_with_work_ns
        int64_t lead_ns
        int64_t recent_ns
        int64_t recent_executing_ns
        int64_t recent_idle_with_work_ns
        cbool draining
        uint64_t host_bytes
        uint64_t host_used
        uint64_t hosted
        uint64_t store_bytes
        uint64_t store_used
        uint64_t stored
        uint64_t fetching
        uint32_t clock_mhz
        int64_t there_ns
        int64_t back_ns
        uint64_t inputs_bytes
        int64_t inputs_mb_ns
        int64_t copies_mb_ns
        double margin
        int64_t contested_ns
        double level
        vector[CShareStatus] shares
        uint64_t beyond

    cdef cppclass CWhereabouts "clockwork::ResidencyStatus":
        int64_t model_id
        int32_t worker
        uint32_t device
        int state
        uint64_t load_id
        uint64_t pages
        vector[uint32_t] run_starts

    cdef cppclass CModelStatus "clockwork::ModelStatus":
        int64_t model_id
        uint64_t queued
        uint64_t served
        cbool draining
        vector[int32_t] workers
        vector[CWhereabouts] residencies

    cdef struct CPlannedBatch "clockwork::PlannedBatch":
        int64_t model_id
        uint32_t shape
        uint32_t size
        int64_t duration_ns
        vector[uint64_t] requests

    cdef struct CFlightStatus "clockwork::FlightStatus":
        uint64_t action_id
        int32_t worker
        uint32_t device
        int kind
        int64_t model_id
        vector[uint64_t] requests

    cdef cppclass CSnapshot "clockwork::Snapshot":
        int64_t now_ns
        uint64_t queued_requests
        uint64_t queued_bytes
        uint64_t admitted
        uint64_t answered
        uint64_t refused
        uint64_t missed
        uint64_t failed
        uint64_t displaced
        vector[CDeviceStatus] devices
        vector[vector[CWhereabouts]] resident
        vector[vector[CPlannedBatch]] plans
        vector[CModelStatus] models
        vector[CFlightStatus] flights

    cdef cppclass CScheduler "clockwork::Scheduler":
        void held(vector[int64_t] &numbers) except +
        void arrived(int64_t now, const CRequest &request) except +
        void cancelled(int64_t now, uint64_t request_id) except +
        void action_done(int64_t now, const CActionResult &result) except +
        void worker_joined(int64_t now, int32_t worker, const vector[CDeviceSpec] &devices,
                           uint64_t host_bytes, uint64_t store_bytes) except +
        cbool plans_fetches()
        void worker_left(int64_t now, int32_t worker) except +
        void worker_draining(int64_t now, int32_t worker) except +
        void device_lost(int64_t now, int32_t worker, int32_t device) except +
        void device_clock(int64_t now, int32_t worker, int32_t device, uint32_t mhz) except +
        void time_wanted(int64_t now, int32_t worker, int32_t device, int64_t model_id, int64_t expected_ns, const vector[uint32_t] &runs) except +
        void link_measured(int64_t now, int32_t worker, int64_t there_ns, int64_t back_ns) except +
        void model_ready(int64_t now, int32_t worker, const CModelSpec &spec, cbool is_stored) except +
        void model_kept(int64_t now, int32_t worker, int32_t device, int64_t model_id, uint64_t load_id, const vector[uint32_t] &starts) except +
        void copy_lost(int64_t now, int32_t worker, int64_t model_id) except +
        void room_wanted(int64_t now, int32_t worker, uint64_t bytes) except +
        void model_removed(int64_t now, int64_t model_id) except +
        void shape_known(uint32_t shape, uint64_t elements) except +
        void shape_forgotten(uint32_t shape) except +
        void shapes_in_use(vector[uint32_t] &found) except +
        void settle(int64_t now) except +
        vector[CDeviceStatus] devices() except +
        vector[CWhereabouts] whereabouts(int64_t model_id) except +
        vector[int32_t] hosts(int64_t model_id) except +
        vector[int32_t] keepers(int64_t model_id) except +
        uint64_t sole_copies(int32_t worker) except +
        uint64_t store_room(int32_t worker) except +
        CStoreStatus store_status() except +
        CSnapshot snapshot() except +
        CPolicyStatus policy_status(int64_t now) except +
        CLinkStatus link_status(int64_t now) except +
        double devices_wanted(int64_t now) except +
        vector[int64_t] expected_ns(int64_t model_id, const vector[CProfilePoint] &points) except +
        const CPredictions *predictions()
        cbool save(string &state, size_t bytes_max) except +
        void restore(string_view state) except +
        void check_invariants() except +AssertionError
        CCommands out

    vector[string] policy_names() except +
    vector[string] c_common_options "clockwork::common_options"() except +
    vector[string] c_known_options "clockwork::known_options"(const string& policy) except +
    unique_ptr[CScheduler] make_scheduler(const COptions &options) except +


cdef extern from "scheduler/pages.h" namespace "clockwork" nogil:
    cdef cppclass CInterval "clockwork::PageAllocator::Interval":
        uint32_t start
        uint32_t size

    cdef cppclass CPages "clockwork::PageAllocator":
        CPages()
        CPages(uint32_t page_count)
        uint32_t page_count()
        uint32_t free_count()
        vector[CInterval] intervals()
        cbool fits(const vector[uint32_t] &runs)
        cbool allocate(const vector[uint32_t] &runs, vector[uint32_t] &starts) except +
        void free_run(int64_t start, int64_t size) except +
        void take_run(int64_t start, int64_t size) except +
        void check_invariants() except +AssertionError


cdef extern from "scheduler/estimates.h" namespace "clockwork" nogil:
    const uint32_t C_BATCH_TABLE_MAX "clockwork::BATCH_TABLE_MAX"
    const double C_BOUND_RATIO_MAX "clockwork::BOUND_RATIO_MAX"
    const size_t C_SHAPES_MAX "clockwork::SHAPES_MAX"
    int64_t c_with_margin "clockwork::with_margin"(int64_t ns)

    cdef cppclass CCurve "clockwork::Curve":
        void seed(uint32_t batch, int64_t ns)
        int64_t exec_ns(uint32_t batch) except +
        int64_t planned_ns(uint32_t batch) except +
        cbool measure(uint32_t batch, int64_t ns, int64_t now) except +
        cbool forget_stale(int64_t now) except +

    cdef cppclass CShapes "clockwork::Shapes":
        void set(uint32_t shape, uint64_t elements) except +

    cdef cppclass CProgram "clockwork::ProgramEstimates":
        void seed(const vector[CProfilePoint] &points) except +
        CCurve *curve(uint32_t shape)
        int64_t bound_ns(const CShapes &shapes, uint32_t shape, uint32_t batch) except +
        cbool measure(uint32_t shape, uint32_t batch, int64_t ns, uint32_t *forgotten, int64_t now) except +

    cdef cppclass CLoadTimes "clockwork::LoadTimes":
        pass

    cdef cppclass CLoads "clockwork::LoadEstimates":
        CLoadTimes &use(uint32_t program, uint32_t page_count) except +
        void release(uint32_t program, uint32_t page_count)
        CLoadTimes *find(uint32_t program, uint32_t page_count)
        int64_t load_ns(const CLoadTimes &own, int64_t seed_ns, uint32_t page_count)
        void measure(CLoadTimes &own, int64_t seed_ns, uint32_t page_count, int64_t ns, int64_t now) except +

    cdef cppclass CEstimates "clockwork::Estimates":
        CProgram &use_program(uint32_t program, uint32_t kind) except +


cdef extern from "scheduler/edf.h" namespace "clockwork" nogil:
    const int C_ATTEMPTS_MAX "clockwork::ATTEMPTS_MAX"
    const int64_t C_SCHEDULE_AHEAD_NS "clockwork::SCHEDULE_AHEAD_NS"
    const int C_PROFILE_ATTEMPTS_MAX "clockwork::PROFILE_ATTEMPTS_MAX"
    const int64_t C_PROFILE_IDLE_NS "clockwork::PROFILE_IDLE_NS"


cdef class Driven:
    cdef CScheduler *_core
