"""What a device with native lanes does with an order before its lane takes it and after it has ended."""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t

from clockwork.device._parts cimport Parts

cdef extern from "device/lane.h" nogil:
    enum:
        CW_PENDING
    ctypedef struct cw_action:
        cw_action* next
        int64_t action_id
        int64_t earliest_ns
        int64_t latest_ns
        int32_t status
    ctypedef struct cw_hub:
        int event_fd
    ctypedef struct cw_lane:
        cw_action* head
        cw_action* running
        int32_t length
    int64_t cw_now()
    int64_t cw_thread_time()
    int cw_hub_init(cw_hub*)
    void cw_hub_free(cw_hub*)
    void cw_hub_lock(cw_hub*)
    void cw_hub_unlock(cw_hub*)
    void cw_hub_end(cw_hub*, cw_action*)
    void cw_hub_wait(cw_hub*)
    cw_action* cw_hub_take(cw_hub*)
    void cw_lane_init(cw_lane*, cw_hub*)
    void cw_lane_free(cw_lane*)
    void cw_lane_enter(const char* name)
    int cw_lane_push(cw_lane*, cw_action*, int32_t most)
    int cw_lane_full(cw_lane*, int32_t most)
    cw_action* cw_lane_take(cw_lane*, int64_t spin_ns)
    void cw_lane_end(cw_lane*, cw_action*)
    void cw_lane_pass(cw_lane*, cw_lane* after, cw_action*)
    cw_action* cw_lane_revoke(cw_lane*, int64_t action_id, int32_t status)
    cw_action* cw_lane_clear(cw_lane*)
    void cw_lane_stop(cw_lane*)
    void cw_nap(int64_t ns)

cdef extern from "device/claims.h" nogil:
    ctypedef struct cw_claim:
        int run_count
        int64_t* run_pages
        int64_t* run_starts
    void cw_claim_free(cw_claim** owners, cw_claim* claim)
    int cw_claim_pages(cw_claim** owners, int64_t page_count, cw_claim* claim, const int64_t* run_starts, char* text,
                       size_t text_bytes)

cdef enum:
    TEXT_BYTES = 512  # of an error's message, its end included

cdef enum Kind:
    KIND_LOAD
    KIND_UNLOAD
    KIND_INFER
    KIND_PROFILE
    KIND_FETCH
    KIND_DROP

cdef struct Span:
    int64_t begin_ns
    int64_t end_ns
    int64_t duration_ns

cdef struct Residency:
    # Of a model on the device; guarded by the hub's lock.
    bint resident
    int64_t load_id
    cw_claim claim

cdef struct Room:
    # What a slot begins with.
    size_t bytes
    bint busy  # guarded by the hub's lock

cdef struct Order:
    # What a device's actions begin with, so that a lane's pointer is one to them.
    cw_action base
    Kind kind
    PyObject* owner  # the Model, kept alive; NULL: it is not known
    Residency* residency
    int64_t load_id
    int64_t* run_starts  # LOAD: as many as its model has runs
    Parts parts
    Room* room  # of the slot that it holds
    Span copy_in
    Span execute
    Span copy_out
    char[TEXT_BYTES] text

cdef class Known:
    cdef Residency at
    cdef int pending  # actions under way; guarded by the GIL
    cdef readonly int64_t model_id

    cdef int set_runs(self, object pages) except -1

cdef class Orders:
    cdef cw_hub hub
    cdef bint has_hub
    cdef cw_claim** owners  # of each page, NULL if free; guarded by the hub's lock
    cdef readonly size_t page_bytes
    cdef readonly int64_t page_count
    cdef readonly int slot_count
    cdef int32_t run_ahead
    cdef bint waits_for_link  # the load lane, behind another device's; guarded by the hub's lock
    cdef int64_t spin_ns
    cdef dict models
    cdef dict statuses

    cdef int set_bounds(self, int64_t page_count, size_t page_bytes, int run_ahead) except -1
    cdef int close_hub(self) except -1
    cdef Room* room(self, int index) noexcept nogil
    cdef cw_lane* executing(self) noexcept nogil
    cdef cw_lane* loading(self) noexcept nogil
    cdef cw_lane* fetching(self) noexcept nogil
    cdef int64_t action_of(self, cw_lane* lane) noexcept nogil
    cdef bint is_used(self, Residency* residency, int64_t load_id) noexcept nogil
    cdef bint take_room(self, Order* order) noexcept nogil
    cdef void drop_room(self, Order* order) noexcept nogil
    cdef int claim(self, Order* order) noexcept nogil
    cdef int begin_unload(self, Order* order) noexcept nogil
    cdef bint is_here(self, Order* order) noexcept nogil
    cdef int64_t held_pages(self) noexcept nogil
    cdef size_t slot_bytes(self) noexcept nogil
    cdef Order* make_order(self, size_t size, Kind kind, object order) except NULL
    cdef bint take_runs(self, Order* action, object order) except -1
    cdef int queue(self, Order* action, cw_lane* lane) except -1
    cdef int refuse(self, Order* action, int status, str text) except -1
    cdef int refuse_full(self, Order* action) except -1
    cdef object finish(self, Order* action)
    cdef int free_order(self, Order* action) except -1
    cdef int free_list(self, cw_action* head) except -1

cdef bint holds(cw_lane* lane, Residency* residency, int64_t load_id) noexcept nogil
cdef void span_begin(Span* span) noexcept nogil
cdef void span_end(Span* span) noexcept nogil
