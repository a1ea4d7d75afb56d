"""The CPU device's native half: executors and a lane of loads over a page arena."""

from libcpp.vector cimport vector

from clockwork.device._orders cimport Order
from clockwork.device._ort cimport OrtValue, CpuSession
from clockwork.device._pages cimport CpuExecutor, CpuModel, PagedCore

cdef class CpuCore(PagedCore):
    cdef vector[CpuExecutor] executors
    cdef size_t output_bytes_most
    cdef bint stopping  # guarded by the hub's lock
    cdef bint cpu_time

    cdef void terminate(self, CpuExecutor* executor) noexcept nogil
    cdef void begin_run(self, CpuExecutor* executor, CpuModel* model) noexcept nogil
    cdef void end_run_failed(self, CpuExecutor* executor, Order* order) noexcept nogil
    cdef void run_infer(self, Order* order) noexcept nogil
    cdef bint feed(self, Order* order, OrtValue** arguments) noexcept nogil
    cdef char* find_slot(self, Order* order) noexcept nogil
    cdef bint note_sizes(self, Order* order) noexcept nogil
    cdef void join_padded(self, Order* order, size_t index, char* target) noexcept nogil
    cdef bint feed_sizes(self, Order* order, OrtValue** arguments) noexcept nogil
    cdef bint feed_strings(self, Order* order, size_t index, OrtValue* value) noexcept nogil
    cdef bint feed_text(self, Order* order, size_t index, OrtValue* value) noexcept nogil
    cdef bint take_outputs(self, Order* order, CpuSession* session, OrtValue** outputs) noexcept nogil
    cdef bint describe_output(self, Order* order, OrtValue* value, const char* name, size_t index) noexcept nogil
    cdef bint measure_cut(self, Order* order, const char* name, size_t index, int bits) noexcept nogil
    cdef void cut_output(self, Order* order, size_t index, char* data) noexcept nogil
    cdef bint copy_output(self, Order* order, OrtValue* value, size_t index) noexcept nogil
    cdef bint copy_strings(self, Order* order, OrtValue* value, size_t index) noexcept nogil
