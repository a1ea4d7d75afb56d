# Cython's declarations of the exchange; csrc/controller/ documents them.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string_view cimport string_view
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from clockwork.controller._values cimport (
    CConnectionBounds,
    CConnections,
    CDurations,
    CModelInterface,
    CSentences,
    CWrong,
)
from clockwork.scheduler._core cimport CReason, CScheduler, CStatus
from clockwork.wire._messages cimport C_REASONS
from clockwork.wire._zmq cimport clockwork_zmq_api


cdef extern from "controller/sockets.h" namespace "clockwork" nogil:

    cdef cppclass CFrame "clockwork::Frame":
        void share(CFrame &other)
        void *data()
        size_t size()
        int descriptor()
        string_view key()

    cdef cppclass CArrival "clockwork::Arrival":
        uint32_t first
        uint32_t count

    cdef cppclass CRouterSocket "clockwork::RouterSocket":
        CRouterSocket(void *socket, void *monitor)

    cdef cppclass CHaul "clockwork::Haul":
        CFrame &frame(size_t place)

cdef extern from *:
    """
    static inline void clockwork_set_zmq(const clockwork_zmq_api *functions) { clockwork::zmq = functions; }
    """
    void set_zmq "clockwork_set_zmq" (const clockwork_zmq_api *functions) nogil

cdef extern from "controller/clock.h" namespace "clockwork" nogil:
    cdef cppclass CClockBounds "clockwork::ClockBounds":
        void set(int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at)

cdef extern from "controller/lookups.h" namespace "clockwork" nogil:
    cdef cppclass CLookupFunctions "clockwork::LookupFunctions":
        void *owner
        int (*model)(void *, string_view, int64_t *) except 0
        int (*shape_number)(void *, const vector[int64_t] *, uint32_t *) except 0
        int (*shape)(void *, uint32_t, vector[int64_t] *) except 0

cdef extern from "controller/counts.h" namespace "clockwork" nogil:
    cdef cppclass CBatchCounts "clockwork::BatchCounts":
        const uint64_t *data "counts.data" ()
        const int64_t *sums "sums_ns.data" ()
        size_t places "counts.size" ()
        @staticmethod
        uint32_t size(size_t place)

    cdef cppclass CModelCounts "clockwork::ModelCounts":
        CDurations *time_data "times.data" ()
        CBatchCounts batches
        const uint64_t *refused_data "refused.data" ()
        uint64_t rows
        uint64_t executions
        int64_t last_ns

    cdef cppclass CDeviceCounts "clockwork::DeviceCounts":
        uint64_t executions
        uint64_t loads
        uint64_t unloads
        int64_t busy_ns
        int64_t load_busy_ns

cdef extern from "controller/models.h" namespace "clockwork" nogil:
    cdef cppclass COutcomes "clockwork::Outcomes":
        uint64_t answered
        uint64_t refused
        uint64_t missed
        uint64_t cancelled
        uint64_t failed
        uint64_t invalid

    cdef cppclass CServedModel "clockwork::ServedModel":
        COutcomes outcomes
        uint64_t held
        uint64_t copies
        CModelCounts *counts "counts.get" ()

cdef extern from "controller/shadows.h" namespace "clockwork" nogil:
    cdef cppclass CShadowResults "clockwork::ShadowResults":
        uint64_t copied
        uint64_t dropped
        uint64_t unanswered
        uint64_t moot
        uint64_t compared
        uint64_t differing
        uint64_t beyond
        double absolute_max
        double relative_max

    cdef cppclass CShadowTally "clockwork::ShadowTally":
        double tolerance
        CShadowResults read()

cdef extern from "controller/connections.h" namespace "clockwork" nogil:
    const int C_SEAT_FREE "clockwork::SEAT_FREE"
    const int C_SEAT_NONE "clockwork::SEAT_NONE"

cdef extern from "controller/port.h" namespace "clockwork" nogil:
    cdef cppclass CPort "clockwork::Port":
        vector[int] ended() except +
        cbool disconnect(int fd) except +
        int seat_for(int fd, string_view key, int64_t now)
        void heard(int fd, int64_t now)
        const CConnections &connections()
        cbool begin(string_view identity, int fd, int64_t now) except +
        void send(string_view part, cbool more) except +
        void send_joined(string_view first, string_view rest, cbool more) except +

cdef extern from "recording/recorder.h" namespace "clockwork" nogil:
    cdef cppclass CRingState "clockwork::RingState":
        uint64_t begin
        uint64_t end
        int64_t oldest_ns
        uint64_t steps
        size_t bytes_max

    cdef cppclass CRing "clockwork::Ring":
        CRing(size_t bytes_max, int64_t span_ns) except +
        cbool is_on()
        void append(int64_t at, string_view step) except +
        uint64_t read(uint64_t since, char *target, size_t &bytes)
        uint64_t seek(int64_t at)
        uint64_t step_from(uint64_t place)
        int64_t step_ns(uint64_t place)
        CRingState state()

    cdef cppclass CRecorder "clockwork::Recorder":
        cbool is_on()
        int64_t time_ns(int64_t now)

cdef extern from "controller/sent_actions.h" namespace "clockwork" nogil:
    cdef cppclass CSentActions "clockwork::SentActions":
        size_t size()

cdef extern from "controller/workers.h" namespace "clockwork" nogil:
    cdef cppclass CWorkerLink "clockwork::WorkerLink":
        CClockBounds clock
        CSentActions actions
        int64_t heard_ns
        uint64_t *sent_data "sent.data" ()
        uint64_t *results_data "results.data" ()
        vector[CDeviceCounts] devices
        uint64_t fetches
        uint64_t drops

    cdef cppclass CWorkers "clockwork::Workers":
        uint32_t joined(string_view identity, int fd, string_view key, int32_t worker_id, size_t device_count,
                        int64_t now) except +
        void left(uint32_t worker, int64_t now) except +
        CWorkerLink &at(uint32_t slot)
        vector[int32_t] &lost()

cdef extern from "controller/clients.h" namespace "clockwork" nogil:
    cdef cppclass CClients "clockwork::Clients":
        uint32_t joined(string_view identity, int fd, string_view key, int64_t now) except +
        void left(uint32_t client, int64_t now) except +
        vector[uint32_t] &lost()

cdef extern from "controller/served_models.h" namespace "clockwork" nogil:
    cdef cppclass CServedModels "clockwork::ServedModels":
        void serve(int64_t model_id, int64_t version, string_view label, int64_t slo_ns,
                   shared_ptr[const CModelInterface] interface) except +
        void forget(int64_t model_id) except +
        CServedModel *find(int64_t model_id)

cdef extern from "controller/routes.h" namespace "clockwork" nogil:
    cdef cppclass CRoutes "clockwork::Routes":
        void route(string_view text, const vector[pair[int64_t, int64_t]] &shares, int64_t shadow, int64_t copies,
                   double tolerance) except +
        CShadowTally *shadow_tally(string_view text)
        void unroute(string_view text) except +
        void forget_references()

cdef extern from "controller/exchange_parts.h" namespace "clockwork" nogil:
    cdef cppclass CBounds "clockwork::ExchangeBounds":
        size_t drain_messages
        size_t message_frames
        size_t turn_bytes
        int64_t turn_python_ns
        int64_t priority_default
        size_t queued_requests
        CConnectionBounds *connections

    cdef cppclass CRecordedScheduler "clockwork::RecordedScheduler":
        void noted(string_view event) except +
        CRecorder &recorder()

    cdef cppclass CHeldRequests "clockwork::HeldRequests":
        size_t size()

    cdef cppclass CShadowCopies "clockwork::ShadowCopies":
        size_t width
        size_t size()

    cdef cppclass COutcomeCounts "clockwork::OutcomeCounts":
        const COutcomes &all()
        uint64_t refusals(CReason reason)

    cdef cppclass CRequestIntake "clockwork::RequestIntake":
        int64_t shared_machine

    cdef cppclass CResultIntake "clockwork::ResultIntake":
        cbool fail_action(uint32_t worker, uint64_t action_id, string_view text, int64_t now) except +
        void fail_actions(uint32_t worker, string_view text, int64_t now) except +

    cdef cppclass CAnswers "clockwork::Answers":
        void fail_all(CStatus status, string_view text, int64_t now) except +

    cdef cppclass COrderRouter "clockwork::OrderRouter":
        size_t place()

    cdef cppclass CExchangeParts "clockwork::ExchangeParts":
        CRecordedScheduler scheduler
        CServedModels models
        CRoutes routes
        CWorkers workers
        CClients clients
        CHeldRequests requests
        CShadowCopies shadows
        COutcomeCounts counts
        CRequestIntake request_intake
        CResultIntake result_intake
        CAnswers answers
        COrderRouter router
        void forget_shapes()

cdef extern from "controller/exchange.h" namespace "clockwork" nogil:
    const uint32_t C_NO_SLOT "clockwork::NO_SLOT"

    cdef enum CSide "clockwork::Exchange::Side":
        C_WORKERS "clockwork::Exchange::WORKERS"
        C_CLIENTS "clockwork::Exchange::CLIENTS"

    cdef enum CNeed "clockwork::Exchange::Need":
        C_OTHER "clockwork::Exchange::OTHER"
        C_WORKERS_LEFT "clockwork::Exchange::WORKERS_LEFT"
        C_CLIENTS_LEFT "clockwork::Exchange::CLIENTS_LEFT"
        C_WORKER_MESSAGE "clockwork::Exchange::WORKER_MESSAGE"
        C_CLIENT_MESSAGE "clockwork::Exchange::CLIENT_MESSAGE"
        C_WRONG_RESULT "clockwork::Exchange::WRONG_RESULT"
        C_WRONG_REQUEST "clockwork::Exchange::WRONG_REQUEST"
        C_ORDER "clockwork::Exchange::ORDER"
        C_ORDERS_DONE "clockwork::Exchange::ORDERS_DONE"
        C_PAUSED "clockwork::Exchange::PAUSED"

    cdef cppclass CLoopTimes "clockwork::LoopTimes<clockwork::Exchange::STAGES>":
        const CDurations &lag()
        int64_t *spent_data "spent_ns.data" ()
        cbool is_timed

    cdef cppclass CExchange "clockwork::Exchange":
        CExchange(CScheduler &scheduler, CRouterSocket workers, CRouterSocket clients, CSentences sentences,
                  CLookupFunctions lookups, CBounds bounds, shared_ptr[CRing] ring) except +
        void wait_on(const vector[int] &descriptors, const vector[int] &others) except +
        CNeed run(int64_t until) except +
        void pause(int64_t by)
        int64_t now()
        const CArrival &current()
        CHaul &haul()
        const CWrong &wrong()
        CPort &port(CSide side)
        CExchangeParts &parts()
        CLoopTimes &times()
