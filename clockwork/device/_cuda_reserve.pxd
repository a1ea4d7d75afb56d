"""A CUDA device that a thread may hold exclusively."""

from libc.stdint cimport int64_t

from clockwork.device._cuda cimport CudaCore
from clockwork.device._cuda_model cimport CudaModel, CudaOrder
from clockwork.device._orders cimport DeviceModel

cdef class ReservingCore(CudaCore):
    # The state of the running RESERVE; guarded by the hub's lock:
    cdef CudaOrder* reserved  # the order that holds the device; NULL: none
    cdef bint reserve_used  # a thread holds the device
    cdef bint reserve_wanted  # a thread waits for the device, or holds it
    cdef int64_t reserve_model_id  # the model for which the device is wanted
    cdef bint reserve_ended  # waits are to end: the lanes stop, or start anew

    cdef void release_pages(self, DeviceModel* at) noexcept nogil
    cdef bint copy_page(self, CudaModel* model, size_t index, const char* source, int64_t* taken_ns, char* text) noexcept nogil
    cdef void run_alone(self, CudaOrder* order) noexcept nogil
    cdef void execute_order(self, CudaOrder* order) noexcept nogil
