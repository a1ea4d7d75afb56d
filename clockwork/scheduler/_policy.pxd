# Declarations of a Python policy's hooks, which the C++ scheduler calls; csrc/scheduler/hooks.h describes
# them.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "scheduler/hooks.h" namespace "clockwork" nogil:
    cdef cppclass CRequest "clockwork::Request":
        uint64_t id
        int64_t arrived_ns
        uint8_t priority

    cdef cppclass CPending "clockwork::Pending":
        CRequest request

    cdef cppclass CKindSpec "clockwork::KindSpec":
        uint32_t batch_max

    cdef cppclass CModel "clockwork::Model":
        int64_t model_id
        vector[CKindSpec *] specs

    cdef cppclass CWaiting "clockwork::Waiting":
        int64_t deadline_ns
        int64_t order
        CPending *pending
        uint32_t size
        cbool alone

    cdef cppclass CQueue "clockwork::Queue":
        CModel *model
        uint32_t shape
        uint8_t level
        uint32_t size()
        uint32_t rows()
        cbool is_plain()
        const CWaiting &operator[](size_t place)

    cdef cppclass CLane "clockwork::Chain<clockwork::Flight, &clockwork::Flight::lane_before, &clockwork::Flight::lane_after>":
        uint32_t size()

    cdef cppclass CWorker "clockwork::Worker":
        int32_t worker_id
        int64_t there_ns
        int64_t back_ns

    cdef cppclass CDevice "clockwork::Executor":
        CWorker *worker
        uint32_t index
        CLane lane

    cdef cppclass CHookView "clockwork::HookView":
        int64_t now()
        CQueue *first_ready(CDevice &device) except +
        void ready(CDevice &device, vector[CQueue *] &found) except +
        void devices(const CQueue &queue, vector[CDevice *] &found) except +
        const CKindSpec *spec(const CDevice &device, const CQueue &queue)
        int64_t free_ns(const CDevice &device)
        uint32_t batch_max(const CKindSpec &spec, const CQueue &queue)
        int64_t planned_ns(const CKindSpec &spec, const CQueue &queue, uint32_t rows) except +
        int64_t least_ns(const CQueue &queue, uint32_t rows) except +
        int64_t last_start_ns(const CQueue &queue, const CWaiting &request) except +
        uint32_t count_up_to(const CQueue &queue, uint32_t first, uint32_t rows_max)
        cbool drop(CQueue &queue, const CWaiting &request) except +

    cdef cppclass CHookChoice "clockwork::HookChoice":
        CQueue *queue
        uint32_t first
        uint32_t count

    cdef cppclass CHookRefusal "clockwork::HookRefusal":
        cbool is_refused
        int64_t feasible_slo_ns

    cdef cppclass CHooks "clockwork::Hooks":
        void *policy
        string memory
        vector[string] options
        int64_t ahead_ns
        cbool presses_late
        int (*choose)(void *, CHookView *, CDevice *, CHookChoice *) except 0
        int (*rank_ns)(void *, CHookView *, CQueue *, int64_t *) except 0
        int (*ready_ns)(void *, CHookView *, CQueue *, int64_t *) except 0
        int (*hopeless_ns)(void *, CHookView *, CQueue *, const CWaiting *, int64_t *) except 0
        int (*admit)(void *, CHookView *, CQueue *, const CWaiting *, CHookRefusal *) except 0


cdef struct Outer:  # the outer hook, while another runs within it because a request was dropped
    CHookView *view
    uint64_t hook
    bint chooses


cdef class Script:
    cdef CHooks hooks
    cdef object _choose, _rank_ns, _ready_ns, _hopeless_ns, _admit
    cdef object _failure
    cdef str _name
    # State of the running hook: its view, its number (0: none runs), and whether it is choose().
    cdef CHookView *_view
    cdef uint64_t _hook
    cdef bint _chooses
    cdef uint64_t _hooks  # count of hooks that have run

    cdef object queue(self, CQueue *queue)
    cdef object device(self, CDevice *device)
    cdef Outer enter(self, CHookView *view, bint chooses) noexcept
    cdef void restore(self, Outer outer) noexcept
    cdef int leave(self, Outer outer) except 0
    cdef object failed(self, Outer outer, str hook, object error)
