"""The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

cdef extern from "device/parts.h" namespace "clockwork::device" nogil:
    enum:
        RANK_MOST
        PART_ALIGNMENT
    cppclass Input:
        int dtype
        int rank
        int64_t[RANK_MOST] dims
        int64_t bytes
        int64_t place
    cppclass Output:
        int dtype
        int rank
        int64_t[RANK_MOST] dims
        int64_t begin
        int64_t bytes
    cppclass Parts:
        size_t part_count
        size_t input_count
        size_t pinned_count
        vector[Py_buffer] pinned
        vector[Input] inputs
        vector[int64_t] rows
        vector[Output] outputs
        vector[int64_t] part_ends
        char* block
        int64_t block_bytes
        Py_buffer& buffer(size_t part, size_t input)
        int64_t& part_end(size_t output, size_t part)
        cbool make_outputs(size_t count)
        cbool make_block()
        void divide(size_t output)

cdef class Block:
    cdef char* data
    cdef Py_ssize_t bytes

cdef int dtype_bits(int dtype) noexcept nogil
cdef tuple timed_view(int dtype, shape)
cdef object pin_parts(Parts* parts, const vector[int]* dtypes, object views, bint without_data)
cdef list list_parts(Parts* parts)
cdef int release_parts(Parts* parts) except -1
cdef void fill_seeded(char* target, int dtype, int64_t size) noexcept nogil
