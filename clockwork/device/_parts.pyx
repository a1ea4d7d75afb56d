# cython: language_level=3, cdivision=True
"""The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again.

The devices that compute share this. csrc/device/join.h checks and joins the inputs.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from clockwork.device.base import TensorView

cdef class Block:
    """The outputs of an action: bytes that are freed with the last view of them."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.bytes, True, flags)

    def __dealloc__(self):
        if not self.is_shared:
            free(self.data)


cdef list list_parts(BatchParts* parts):
    """Return the outputs of each part, as views of a shared block of memory."""
    cdef Block block = Block.__new__(Block)
    cdef size_t part, index
    cdef int64_t begin, end
    cdef int64_t[RANK_MAX] dims
    cdef int axis, rank
    block.data, block.bytes = <char*>parts.output_bytes(), parts.block_bytes
    block.is_shared = parts.block == NULL
    parts.block = NULL
    whole = memoryview(block)
    cdef list result = []
    cdef list views
    for part in range(parts.part_count):
        views = []
        for index in range(parts.outputs.size()):
            rank = parts.output_shape(part, index, dims)
            shape = [dims[axis] for axis in range(rank)]
            begin, end = parts.output_begin(index, part), parts.output_end(index, part)
            views.append(TensorView(parts.outputs[index].dtype, tuple(shape), whole[begin:end]))
        result.append(views)
    return result


cdef void copy_beginning(char* small, const int64_t* small_dims, char* large, const int64_t* large_dims, int rank,
                         int64_t element_bytes, bint enlarge) noexcept nogil:
    """Copy an array to the beginning of each axis of a larger one, or (not enlarge) from there."""
    cdef int64_t[RANK_MAX] at
    cdef int64_t run = element_bytes, count = 1, number, place
    cdef int last = rank - 1, axis
    while last >= 0 and small_dims[last] == large_dims[last]:
        run *= small_dims[last]
        last -= 1
    # A contiguous piece of the larger array: the present part of axis ``last`` with all axes behind it.
    cdef int64_t inner = run
    if last >= 0:
        run *= small_dims[last]
    for axis in range(last):
        at[axis] = 0
        count *= small_dims[axis]
    if run == 0:
        return
    for number in range(count):
        place = 0
        for axis in range(last):
            place = place * large_dims[axis] + at[axis]
        if last >= 0:
            place *= large_dims[last]
        if enlarge:
            memcpy(large + place * inner, small + number * run, run)
        else:
            memcpy(small + number * run, large + place * inner, run)
        for axis in range(last - 1, -1, -1):
            at[axis] += 1
            if at[axis] < small_dims[axis]:
                break
            at[axis] = 0


cdef void fill_seeded(char* target, int dtype, int64_t size) noexcept nogil:
    """Fill inputs for a profile: equal for equal shapes. Floats about N(0, 1), integers and bools 0 or 1."""
    cdef uint64_t state = 0x9E3779B97F4A7C15
    cdef int bits = dtype_bits(dtype)
    cdef int64_t index, count = size * 8 // bits
    cdef double value
    memset(target, 0, size)
    for index in range(count):
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        # The sum of four uniform numbers, scaled to variance 1.
        value = (<double>((state & 0xFFFF) + (state >> 16 & 0xFFFF) + (state >> 32 & 0xFFFF) + (state >> 48))
                 / 65536.0 - 2.0) * 1.7320508
        if dtype == 1:
            (<float*>target)[index] = <float>value
        elif dtype == 11:
            (<double*>target)[index] = value
        elif dtype == 14:
            (<float*>target)[2 * index] = <float>value
        elif dtype == 15:
            (<double*>target)[2 * index] = value
        elif dtype == 10:  # 1.0, -1.0, 0.5 or -0.5
            target[2 * index + 1] = <char>((0x3C if state & 1 else 0x38) | (0x80 if state & 2 else 0))
        elif dtype == 16:
            target[2 * index] = <char>(0x80 if state & 1 else 0)
            target[2 * index + 1] = <char>(0x3F | (0x80 if state & 2 else 0))
        elif bits == 32:
            (<int32_t*>target)[index] = state & 1
        elif bits == 64:
            (<int64_t*>target)[index] = state & 1
        elif bits == 16:
            target[2 * index] = state & 1
        elif dtype in (2, 3, 9):
            target[index] = state & 1
