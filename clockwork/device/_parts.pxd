"""The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again."""

from libc.stdint cimport int64_t, uint32_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

cdef extern from "wire/bounds.h" namespace "clockwork" nogil:
    enum:
        RANK_MAX

cdef extern from "device/parts.h" namespace "clockwork::device" nogil:
    enum:
        PART_ALIGNMENT
    int dtype_bits(int dtype)
    cppclass RequestTensor:
        int dtype
        int rank
        size_t first
        const char* data
        int64_t bytes
    cppclass RequestTensors:
        vector[RequestTensor] tensors
        vector[int64_t] dims
        vector[uint32_t] counts
    cppclass Piece:
        const char* buf
        int64_t len
    cppclass Input:
        int dtype
        int rank
        int64_t[RANK_MAX] dims
        int64_t bytes
        int64_t place
        cbool rowless
    cppclass Rowless:
        cbool is_optional
        vector[int64_t] dims
    cppclass Lengths:
        size_t count
        vector[vector[int]] inputs
        vector[vector[int]] outputs
        int of_output(size_t output, int axis)
    cppclass Output:
        int dtype
        int rank
        int64_t[RANK_MAX] dims
        int64_t begin
        int64_t bytes
    cppclass BatchParts:
        size_t part_count
        size_t input_count
        vector[Piece] pieces
        vector[Input] inputs
        vector[int64_t] rows
        const Lengths* lengths
        vector[int64_t] sizes
        vector[int64_t] longest
        cbool uneven
        vector[int64_t] row_sizes
        vector[string] values
        int64_t row_count()
        cbool make_row_sizes()
        void shape_of(size_t part, const int64_t* joined, int rank, const vector[int]& symbols, int64_t* dims)
        cbool is_cut(size_t output)
        const char* zeros
        const char* output_bytes()
        int64_t output_begin(size_t output, size_t part)
        int64_t output_end(size_t output, size_t part)
        int output_shape(size_t part, size_t output, int64_t* dims)
        vector[Output] outputs
        vector[int64_t] part_ends
        char* block
        int64_t block_bytes
        const Piece& piece(size_t part, size_t input)
        cbool make_outputs(size_t count)
        cbool make_block()
        void divide(size_t output)

cdef class Block:
    cdef char* data
    cdef Py_ssize_t bytes
    cdef bint is_shared  # the block is shared and never freed

cdef list list_parts(BatchParts* parts)
cdef void copy_beginning(char* small, const int64_t* small_dims, char* large, const int64_t* large_dims, int rank,
                         int64_t element_bytes, bint enlarge) noexcept nogil
cdef void fill_seeded(char* target, int dtype, int64_t size) noexcept nogil
