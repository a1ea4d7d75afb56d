"""A CUDA device that a thread may have for itself."""

from libc.stdint cimport int64_t

from clockwork.device._cuda cimport Core
from clockwork.device._cuda_model cimport CudaModel, CudaOrder
from clockwork.device._orders cimport Residency

cdef class ReservingCore(Core):
    # Of the RESERVE that the execute lane is at; guarded by the hub's lock:
    cdef CudaOrder* reserved  # NULL: none
    cdef bint reserve_used  # a thread has it
    cdef bint reserve_wanted  # a thread waits for it, or has it
    cdef int64_t reserve_model_id  # for which model
    cdef bint reserve_ended  # it is to be no more: the lanes stop, or begin anew

    cdef void release_pages(self, Residency* at) noexcept nogil
    cdef bint copy_page(self, CudaModel* model, size_t index, const char* source, int64_t* taken_ns, char* text) noexcept nogil
    cdef void run_alone(self, CudaOrder* order) noexcept nogil
    cdef void execute_order(self, CudaOrder* order) noexcept nogil
