"""The CPU device's native half: two lanes over a page arena, and the actions that run on them."""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t

from clockwork.device._ort cimport TEXT_BYTES, OrtRunOptions, OrtValue, Session
from clockwork.device._pages cimport Arena, Model, ModelState, Slot, cw_hub
from clockwork.device._parts cimport Parts

cdef extern from "lane.h" nogil:
    enum:
        CW_PENDING
    ctypedef struct cw_action:
        cw_action* next
        int64_t action_id
        int64_t earliest_ns
        int64_t latest_ns
        int32_t status
    ctypedef struct cw_lane:
        cw_action* head
        cw_action* running
        int32_t length
    int64_t cw_now()
    int64_t cw_thread_time()
    void cw_hub_end(cw_hub*, cw_action*)
    cw_action* cw_hub_take(cw_hub*)
    void cw_lane_init(cw_lane*, cw_hub*)
    void cw_lane_free(cw_lane*)
    void cw_lane_enter(const char* name)
    int cw_lane_push(cw_lane*, cw_action*, int32_t most)
    int cw_lane_full(cw_lane*, int32_t most)
    cw_action* cw_lane_take(cw_lane*, int64_t spin_ns)
    void cw_lane_end(cw_lane*, cw_action*)
    cw_action* cw_lane_revoke(cw_lane*, int64_t action_id, int32_t status)
    cw_action* cw_lane_clear(cw_lane*)
    void cw_lane_stop(cw_lane*)

cdef enum Kind:
    KIND_LOAD
    KIND_UNLOAD
    KIND_INFER
    KIND_PROFILE

cdef struct Span:
    int64_t begin_ns
    int64_t end_ns
    int64_t duration_ns

cdef struct Action:
    cw_action base  # first, so that a lane's pointer is one to this
    Kind kind
    PyObject* owner  # the Model, kept alive
    ModelState* model
    int64_t load_id
    int64_t* run_starts
    int run_count
    Parts parts
    Slot* slot
    Span copy_in
    Span execute
    Span copy_out
    char text[TEXT_BYTES]

cdef class Core(Arena):
    cdef cw_lane load_lane
    cdef cw_lane execute_lane
    cdef OrtRunOptions* run_options
    cdef int32_t run_ahead
    cdef int64_t spin_ns
    cdef bint cpu_time
    cdef bint opened
    cdef dict statuses

    cdef void run_load(self, Action* action) noexcept nogil
    cdef void run_unload(self, Action* action) noexcept nogil
    cdef void run_infer(self, Action* action) noexcept nogil
    cdef bint is_used(self, ModelState* model, int64_t load_id) noexcept nogil
    cdef bint feed(self, Action* action) noexcept nogil
    cdef bint feed_strings(self, Action* action, size_t index, OrtValue* value) noexcept nogil
    cdef bint take_outputs(self, Action* action, Session* session) noexcept nogil
    cdef bint describe_output(self, Action* action, OrtValue* value, const char* name, size_t index) noexcept nogil
    cdef bint copy_output(self, Action* action, OrtValue* value, size_t index) noexcept nogil
    cdef bint copy_strings(self, Action* action, OrtValue* value, size_t index) noexcept nogil
    cdef void drop_slot(self, Action* action) noexcept nogil
    cdef Action* new_action(self, Kind kind, object order) except NULL
    cdef object place_inputs(self, Action* action, bint in_place)
    cdef int queue(self, Action* action, cw_lane* lane) except -1
    cdef int refuse(self, Action* action, int status, str text) except -1
    cdef int refuse_full(self, Action* action) except -1
    cdef object finish(self, Action* action)
    cdef int free_action(self, Action* action) except -1
    cdef int free_list(self, cw_action* head) except -1
