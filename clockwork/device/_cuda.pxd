"""The CUDA device's native half: the actions, as the loop's thread sees them."""

from clockwork.device._cuda_lanes cimport Action, Kind, Lanes, cw_action
from clockwork.device._cuda_model cimport Model, Program

cdef class Core(Lanes):
    cdef dict models
    cdef dict statuses

    cdef int drop_queued(self) except -1
    cdef int queue_load(self, Action* action) except -1
    cdef Action* new_action(self, Kind kind, object order) except NULL
    cdef int start_run(self, Action* action, Model model, object views, bint without_data) except -1
    cdef object describe_run(self, Action* action, Program program)
    cdef int refuse(self, Action* action, int status, str text) except -1
    cdef object finish(self, Action* action)
    cdef int free_action(self, Action* action) except -1
    cdef int free_list(self, cw_action* head) except -1
