# The exchange as Cython sees it; what each thing means is said in csrc/controller/.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from clockwork.scheduler._core cimport CActionResult, CCommand, CReason, CRequest, CScheduler, CStatus, CText


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char *data, size_t size)
        const char *data()
        size_t size()

cdef extern from "zmq_api.h" nogil:
    ctypedef struct clockwork_zmq_api:
        pass

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

cdef extern from "controller/sentences.h" namespace "clockwork" nogil:
    cdef cppclass CSentences "clockwork::Sentences":
        CSentences()
        CSentences(vector[string] templates, vector[string] status_names, vector[string] reasons)
        string_view text(const CCommand &command, string_view name, const string *said) except +

cdef extern from "controller/clock.h" namespace "clockwork" nogil:
    cdef cppclass CClockBounds "clockwork::ClockBounds":
        void set(int64_t upper, int64_t upper_at, int64_t lower, int64_t lower_at)
        int64_t to_worker_latest(int64_t at)
        int64_t to_worker_earliest(int64_t at, int64_t now)
        int64_t to_controller(int64_t worker_ns, int64_t now)

cdef extern from "controller/messages.h" namespace "clockwork" nogil:
    int64_t C_REQUEST_HEADER_BYTES_MAX "clockwork::REQUEST_HEADER_BYTES_MAX"
    int64_t C_RESULT_HEADER_BYTES_MAX "clockwork::RESULT_HEADER_BYTES_MAX"
    int64_t C_REFERENCE_BYTES_MAX "clockwork::REFERENCE_BYTES_MAX"
    int64_t C_NAME_BYTES_MAX "clockwork::NAME_BYTES_MAX"
    int64_t C_SENTENCE_BYTES_MAX "clockwork::SENTENCE_BYTES_MAX"
    int64_t C_TENSORS_MAX "clockwork::TENSORS_MAX"
    int64_t C_PARTS_MAX "clockwork::PARTS_MAX"
    int64_t C_RANK_MAX "clockwork::RANK_MAX"
    int64_t C_FRAME_MAX "clockwork::FRAME_MAX"
    int64_t C_DTYPE_MAX "clockwork::DTYPE_MAX"
    int64_t C_PRIORITY_MAX "clockwork::PRIORITY_MAX"

    cdef cppclass CTensorRef "clockwork::TensorRef":
        string_view name
        int64_t dtype
        uint32_t first
        uint32_t rank
        int64_t frame

    cdef cppclass CInferRequestHeader "clockwork::InferRequestHeader":
        int64_t request_id
        string_view model
        int64_t slo_ns
        int64_t priority
        vector[CTensorRef] tensors
        vector[int64_t] dims
        cbool read(string_view header) except +

    cdef cppclass CResultHeader "clockwork::ResultHeader":
        int64_t action_id
        CStatus status
        string_view text
        int64_t received_ns
        int64_t begin_ns
        int64_t end_ns
        int64_t duration_ns
        vector[uint32_t] parts
        vector[CTensorRef] tensors
        vector[int64_t] dims
        cbool read(string_view header) except +

cdef extern from "controller/counts.h" namespace "clockwork" nogil:
    cdef cppclass CDurations "clockwork::Durations":
        int64_t sum_ns
        const uint64_t *data "counts.data" ()
        size_t size "counts.size" ()

    cdef cppclass CBatchCounts "clockwork::BatchCounts":
        const uint64_t *data "counts.data" ()
        const int64_t *sums "sums_ns.data" ()
        size_t places "counts.size" ()
        @staticmethod
        uint32_t size(size_t place)
        @staticmethod
        size_t place(uint32_t rows)

    cdef cppclass CModelCounts "clockwork::ModelCounts":
        CDurations *time_data "times.data" ()
        CBatchCounts batches
        const uint64_t *refused_data "refused.data" ()
        uint64_t rows
        uint64_t executions
        uint64_t invalid
        uint64_t failed
        int64_t last_ns

    cdef cppclass CDeviceCounts "clockwork::DeviceCounts":
        uint64_t executions
        uint64_t loads
        uint64_t unloads
        int64_t busy_ns
        int64_t load_busy_ns

    const size_t C_REASONS "clockwork::REASONS"
    const int64_t *C_METRIC_BOUNDS "clockwork::METRIC_BOUNDS_NS.data" ()
    size_t C_METRIC_BOUND_COUNT "clockwork::METRIC_BOUNDS_NS.size" ()

cdef extern from "controller/models.h" namespace "clockwork" nogil:
    const int64_t C_DIMENSION_ANY "clockwork::DIMENSION_ANY"
    const int64_t C_ROWS_MAX "clockwork::ROWS_MAX"

    cdef cppclass CInputSpec "clockwork::InputSpec":
        CInputSpec()
        string name
        int64_t dtype
        int64_t bits
        cbool any_rank
        vector[int64_t] dims
        vector[int32_t] symbols

    cdef cppclass COutputSpec "clockwork::OutputSpec":
        COutputSpec()
        int64_t dtype
        int64_t bits
        cbool any_rank
        vector[int64_t] dims

    cdef cppclass CModelInterface "clockwork::ModelInterface":
        vector[CInputSpec] inputs
        vector[string] outputs
        vector[COutputSpec] given
        uint32_t symbol_count
        cbool batches

    cdef cppclass CAccepted "clockwork::Accepted":
        uint32_t rows
        uint64_t bytes
        vector[const CTensorRef *] tensors
        vector[int64_t] shape

    cbool accept(const CModelInterface &model, const CInferRequestHeader &request, const vector[size_t] &frame_bytes,
                 CAccepted &accepted) except +

    cbool gives(const CModelInterface &model, size_t output, uint32_t rows, const CTensorRef &ref, const int64_t *dims,
                string_view data)

    cdef cppclass COutcomes "clockwork::Outcomes":
        uint64_t answered
        uint64_t refused
        uint64_t missed
        uint64_t cancelled
        uint64_t failed

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
    cdef cppclass CConnectionBounds "clockwork::ConnectionBounds":
        size_t ungreeted
        uint64_t hello_bytes
        uint64_t hello_bytes_all
        uint64_t received_bytes
        uint64_t received_bytes_all
        uint64_t unread_bytes
        uint64_t unread_bytes_all
        uint64_t memory_bytes

    cdef enum CCutReason "clockwork::CutReason":
        C_ASKED "clockwork::CutReason::ASKED"

    cdef cppclass CConnection "clockwork::Connection":
        uint64_t taken
        uint64_t unmarked
        cbool is_cut

    cdef cppclass CConnections "clockwork::Connections":
        CConnections(CConnectionBounds bounds) except +
        void accepted(int fd, int64_t now) except +
        shared_ptr[CConnection] ended(int fd) except +
        shared_ptr[CConnection] find(int fd)
        void greet(CConnection &connection)
        cbool may_send(CConnection &connection, int64_t now) except +
        int64_t look(int64_t now) except +
        cbool cut(CConnection &connection, CCutReason reason) except +
        size_t size()
        size_t ungreeted()
        uint64_t unread_bytes()
        uint64_t behind_bytes()
        const uint64_t *cut_counts()

cdef extern from "controller/exchange.h" namespace "clockwork" nogil:
    const uint32_t C_NO_SLOT "clockwork::NO_SLOT"

    cdef enum CSide "clockwork::Exchange::Side":
        C_WORKERS "clockwork::Exchange::WORKERS"
        C_CLIENTS "clockwork::Exchange::CLIENTS"

    cdef enum CActionKind "clockwork::ActionKind":
        C_PROFILE "clockwork::ActionKind::PROFILE"

    cdef enum CNeed "clockwork::Exchange::Need":
        C_OTHER "clockwork::Exchange::OTHER"
        C_WORKERS_LEFT "clockwork::Exchange::WORKERS_LEFT"
        C_CLIENTS_LEFT "clockwork::Exchange::CLIENTS_LEFT"
        C_WORKER_MESSAGE "clockwork::Exchange::WORKER_MESSAGE"
        C_CLIENT_MESSAGE "clockwork::Exchange::CLIENT_MESSAGE"
        C_ORDER "clockwork::Exchange::ORDER"
        C_ORDERS_DONE "clockwork::Exchange::ORDERS_DONE"

    cdef cppclass CSentActions "clockwork::SentActions":
        size_t size()

    cdef cppclass CExpected "clockwork::Expected":
        int64_t model_id
        vector[uint32_t] part_rows
        size_t tensors()

    cdef cppclass CWorkerLink "clockwork::WorkerLink":
        CClockBounds clock
        CSentActions actions
        int64_t heard_ns
        uint64_t *sent_data "sent.data" ()
        uint64_t *results_data "results.data" ()
        vector[CDeviceCounts] devices
        uint64_t fetches
        uint64_t drops
        const CExpected *find_action "actions.find" (uint64_t action_id)

    cdef cppclass CCheckedTensor "clockwork::CheckedTensor":
        int64_t dtype
        vector[int64_t] dims
        uint32_t frame

    cdef enum CToldKind "clockwork::ToldEvent::Kind":
        C_ARRIVED "clockwork::ToldEvent::ARRIVED"
        C_CANCELLED "clockwork::ToldEvent::CANCELLED"
        C_ACTION_DONE "clockwork::ToldEvent::ACTION_DONE"

    cdef cppclass CToldEvent "clockwork::ToldEvent":
        CToldKind kind
        int64_t now
        CRequest request
        CActionResult result
        string text

    cdef cppclass CBounds "clockwork::ExchangeBounds":
        size_t drain_messages
        size_t message_frames
        size_t turn_bytes
        int64_t turn_python_ns
        int64_t priority_default
        size_t queued_requests
        CConnectionBounds *connections

    const int C_STATUS_COUNT "clockwork::STATUS_COUNT"

    cdef cppclass CExchange "clockwork::Exchange":
        CExchange(CScheduler &scheduler, CRouterSocket workers, CRouterSocket clients, CSentences sentences,
                  CBounds bounds) except +
        void wait_on(const vector[int] &descriptors, const vector[int] &others) except +
        CNeed run(int64_t until) except +
        int64_t now()
        const CArrival &current()
        CHaul &batch()
        void note()
        size_t order_place()
        vector[uint32_t] lost_clients
        vector[int32_t] lost_workers
        vector[int] ended(CSide side) except +
        cbool disconnect(CSide side, int fd) except +
        cbool begin(CSide side, string_view identity, int fd) except +
        void send(CSide side, string_view part, cbool more) except +
        const CConnections &connections(CSide side)
        uint32_t client_joined(string_view identity, int fd) except +
        void client_left(uint32_t client) except +
        cbool has_request(uint32_t client, int64_t request_id)
        cbool cancel(uint32_t client, int64_t request_id) except +
        void admit(uint32_t client, int64_t request_id, int64_t model, uint32_t rows, uint32_t shape, uint64_t bytes,
                   int64_t slo_ns, int64_t priority, const vector[CCheckedTensor] &tensors) except +
        pair[int64_t, int64_t] choose(string_view text) except +
        void copy(uint32_t rows, uint32_t shape, const vector[CCheckedTensor] &tensors, uint64_t bytes, int64_t slo_ns,
                  int64_t priority) except +
        void fail_all(CStatus status, string_view text) except +
        size_t held_count()
        size_t copy_count()
        uint32_t worker_joined(string_view identity, int fd, int32_t worker_id, size_t device_count) except +
        void worker_left(uint32_t worker) except +
        CWorkerLink &worker(uint32_t slot)
        cbool fail_action(uint32_t worker, uint64_t action_id, string_view text) except +
        void fail_actions(uint32_t worker, string_view text) except +
        void sent(uint32_t worker, uint64_t action_id, CActionKind kind, int32_t device) except +
        void serve(int64_t model_id, int64_t version, string_view label, int64_t slo_ns,
                   shared_ptr[const CModelInterface] interface) except +
        void forget(int64_t model_id) except +
        void route(string_view text, const vector[pair[int64_t, int64_t]] &shares, int64_t shadow, int64_t copies,
                   double tolerance) except +
        CShadowTally *shadow_tally(string_view text)
        void unroute(string_view text) except +
        void refer(string_view text, int64_t model_id) except +
        void forget_references()
        CServedModel *find_model(int64_t model_id)
        void shape_numbered(const vector[int64_t] &shape, uint32_t number) except +
        void forget_shapes()
        const COutcomes &outcomes()
        uint64_t refusals(CReason reason)
        void count_invalid(int64_t model_id) except +
        const CDurations &lag()
        vector[CToldEvent] told
        cbool is_recording
        int64_t *spent_data "spent_ns.data" ()
        cbool is_timed
        size_t shadow_width
        cbool is_short
