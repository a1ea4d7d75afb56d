"""The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again."""

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t

cdef enum:
    RANK_MOST = 32  # config.RANK_MAX
    ALIGNMENT = 64  # of an output's place in the block

cdef struct Input:
    int dtype
    int rank
    int64_t dims[RANK_MOST]  # of all parts joined
    int64_t bytes
    int64_t place  # the CPU device's: where it lies in the slot; -1: it is read in place

cdef struct Output:
    int dtype
    int rank
    int64_t dims[RANK_MOST]
    int64_t begin  # in the block
    int64_t bytes

cdef struct Parts:
    size_t part_count
    size_t input_count
    size_t pinned_count
    Py_buffer* pinned  # part_count rows of input_count
    Input* inputs
    int64_t* rows  # of each part
    size_t output_count
    Output* outputs
    int64_t* part_ends  # output_count rows of part_count: where each part ends in the block
    char* block  # the outputs' bytes
    int64_t block_bytes

cdef class Block:
    cdef char* data
    cdef Py_ssize_t bytes

cdef int dtype_bits(int dtype) noexcept nogil
cdef object pin_parts(Parts* parts, size_t input_count, const int* dtypes, object views, bint without_data)
cdef int make_block(Parts* parts) except -1
cdef list list_parts(Parts* parts)
cdef int free_parts(Parts* parts) except -1
cdef void fill_seeded(char* target, int dtype, int64_t size) noexcept nogil
