"""The CPU device's native half: two lanes over a page arena, and the actions that run on them."""

from libc.stdint cimport int64_t

from clockwork.device._orders cimport Kind, Order, Residency, cw_lane
from clockwork.device._ort cimport OrtRunOptions, OrtValue, Session, ws_account
from clockwork.device._pages cimport Arena, Model, ModelState, Slot

cdef struct Action:
    Order order  # first, so that a lane's pointer is one to this
    ModelState* model
    Slot* slot  # of its room

cdef class Core(Arena):
    cdef cw_lane load_lane
    cdef cw_lane execute_lane
    cdef OrtRunOptions* run_options
    cdef ws_account* account  # of the execution that is under way
    cdef size_t output_bytes_most
    cdef bint stopping  # this and the next under the hub's lock
    cdef bint overrun  # the execution that is under way is to end
    cdef bint cpu_time
    cdef bint opened

    cdef void run_load(self, Action* action) noexcept nogil
    cdef void run_unload(self, Action* action) noexcept nogil
    cdef void begin_run(self, ModelState* model) noexcept nogil
    cdef void end_run_failed(self, Action* action) noexcept nogil
    cdef void run_infer(self, Action* action) noexcept nogil
    cdef bint feed(self, Action* action) noexcept nogil
    cdef bint feed_strings(self, Action* action, size_t index, OrtValue* value) noexcept nogil
    cdef bint take_outputs(self, Action* action, Session* session) noexcept nogil
    cdef bint describe_output(self, Action* action, OrtValue* value, const char* name, size_t index) noexcept nogil
    cdef bint copy_output(self, Action* action, OrtValue* value, size_t index) noexcept nogil
    cdef bint copy_strings(self, Action* action, OrtValue* value, size_t index) noexcept nogil
    cdef Action* new_action(self, Kind kind, object order) except NULL
    cdef int start_run(self, Action* action, object views, bint without_data) except -1
    cdef object place_inputs(self, Action* action, bint in_place)
