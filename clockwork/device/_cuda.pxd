"""The CUDA device's native half: the actions, as the loop's thread sees them."""

from clockwork.device._cuda_lanes cimport Action, Lanes
from clockwork.device._cuda_model cimport Model, Program
from clockwork.device._orders cimport Kind

cdef class Core(Lanes):
    cdef int drop_queued(self) except -1
    cdef Action* new_action(self, Kind kind, object order) except NULL
    cdef int start_run(self, Action* action, object views, bint without_data) except -1
    cdef object describe_run(self, Action* action, Program program)
