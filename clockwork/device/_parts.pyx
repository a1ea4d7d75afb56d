# cython: language_level=3, cdivision=True
"""The parts of a batch: requests' tensors joined on their way to a device, and its outputs split again.

The devices that compute share this. What is here runs in the loop's thread, except copy_beginning() and fill_seeded().
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from clockwork.device.base import TensorView

cdef enum:
    STRING = 8  # ONNX's code


cdef int dtype_bits(int dtype) noexcept nogil:
    """Bits of one element of an ONNX type; 0 if it has no fixed size or is unknown."""
    if dtype in (1, 6, 12):  # float32, int32, uint32
        return 32
    if dtype in (7, 11, 13, 14):  # int64, float64, uint64, complex64
        return 64
    if dtype in (4, 5, 10, 16):  # uint16, int16, float16, bfloat16
        return 16
    if dtype in (2, 3, 9, 17, 18, 19, 20, 24):  # uint8, int8, bool, the float8 family
        return 8
    if dtype in (21, 22, 23):  # uint4, int4, float4
        return 4
    if dtype in (25, 26):  # uint2, int2
        return 2
    if dtype == 15:  # complex128
        return 128
    return 0


cdef class Block:
    """The outputs of one action: bytes that are freed with the last view of them."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.bytes, True, flags)

    def __dealloc__(self):
        free(self.data)


cdef tuple timed_view(int dtype, shape):
    """What pin_parts() takes for an input that is only timed. shape: as the scheduler knows it, of strings with the bytes
    of each behind it."""
    if dtype != STRING:
        return dtype, shape, None
    return dtype, shape[:-1], shape[-1] if shape else 0


cdef object pin_parts(Parts* parts, const vector[int]* dtypes, const Lengths* lengths, object views, bint without_data):
    """Pin the parts' buffers and describe the inputs joined. A sentence if they are not valid, else None.

    dtypes: of the model's inputs. lengths: the symbols in which parts may differ; NULL: none. without_data: only types and shapes are given, and looked at; of strings the bytes of
    each, instead of a buffer.
    """
    cdef size_t part, index
    cdef int64_t extent, count, part_bits
    cdef int dtype, rank, axis, symbol
    cdef int64_t* size
    cdef Input* joined
    cdef Py_buffer* buffer
    cdef size_t input_count = dtypes.size()
    cdef size_t symbol_count = lengths.count if lengths != NULL else 0
    parts.part_count = len(views)
    parts.input_count = input_count
    if not parts.part_count:
        return "a batch of no parts"
    if not without_data:
        parts.pinned.resize(parts.part_count * input_count)
    parts.inputs.resize(input_count)
    parts.rows.resize(parts.part_count)
    parts.lengths = lengths
    parts.uneven = False
    parts.sizes.assign(parts.part_count * symbol_count, -1)
    parts.longest.assign(symbol_count, 0)
    for part, tensors in enumerate(views):
        if <size_t>len(tensors) != input_count:
            return f"{len(tensors)} inputs for a model of {input_count}"
        for index in range(input_count):
            view = tensors[index]
            dtype = view[0]
            shape = view[1]
            joined = &parts.inputs[index]
            rank = len(shape)
            if rank > RANK_MOST:
                return f"input {index} has {rank} dimensions, at most {RANK_MOST} are served"
            if dtype != dtypes[0][index]:
                return f"input {index} is of type {dtype}, the model takes {dtypes[0][index]}"
            if part == 0:
                joined.dtype, joined.rank = dtype, rank
            elif rank != joined.rank:
                return f"input {index} has {rank} dimensions in one part and {joined.rank} in another"
            if parts.part_count > 1 and rank == 0:
                return f"input {index} is a scalar, which cannot be joined"
            count = 1
            for axis in range(rank):
                extent = shape[axis]
                if extent < 0 or (extent > 0 and count > (<int64_t>1 << 40) // extent):
                    return f"input {index} cannot have the shape {list(shape)}"
                count *= extent
                symbol = lengths.of_input(index, axis) if symbol_count else -1
                if symbol >= 0:
                    size = &parts.sizes[part * symbol_count + symbol]
                    if size[0] >= 0 and size[0] != extent:
                        return f"input {index} has the size {extent} along axis {axis} and another input {size[0]}"
                    size[0] = extent
                    parts.longest[symbol] = max(parts.longest[symbol], extent)
                if part == 0:
                    joined.dims[axis] = extent
                elif axis == 0:
                    joined.dims[0] += extent
                elif symbol >= 0:
                    if joined.dims[axis] != extent:
                        joined.dims[axis] = max(joined.dims[axis], extent)
                        parts.uneven = True
                elif joined.dims[axis] != extent:
                    return f"input {index} has the shape {list(shape)} in one part and another elsewhere"
            if index == 0:
                parts.rows[part] = shape[0] if rank else 0
            elif parts.part_count > 1 and shape[0] != parts.rows[part]:
                return f"input {index} has {shape[0]} rows and input 0 has {parts.rows[part]}"
            part_bits = count * dtype_bits(dtype)
            if parts.part_count > 1 and part_bits % 8:
                return f"input {index} does not end on a byte, and cannot be joined"
            joined.bytes += (part_bits + 7) // 8
            if without_data:
                if dtype == STRING:
                    joined.bytes = view[2]
                continue
            buffer = &parts.buffer(part, index)
            PyObject_GetBuffer(view[2], buffer, PyBUF_SIMPLE)
            parts.pinned_count = part * input_count + index + 1
            if dtype == STRING and count > buffer.len // 4:  # before memory is taken for so many
                return f"input {index} has {count} strings, which take {4 * count} bytes at least, got {buffer.len}"
            if dtype != STRING and buffer.len != (part_bits + 7) // 8:
                return f"input {index} of shape {list(shape)} takes {(part_bits + 7) // 8} bytes, got {buffer.len}"
    return measure_padded(parts) if parts.uneven else None


cdef object measure_padded(Parts* parts):
    """Find the bytes of inputs whose parts are padded. A sentence if there are too many, else None."""
    cdef size_t index
    cdef Input* joined
    cdef int64_t count
    cdef int axis, bits
    for index in range(parts.input_count):
        joined = &parts.inputs[index]
        bits = dtype_bits(joined.dtype)
        count = 1
        for axis in range(joined.rank):
            if joined.dims[axis] > 0 and count > (<int64_t>1 << 40) // joined.dims[axis]:
                return f"input {index} is too large once its parts are padded to the longest"
            count *= joined.dims[axis]
        if joined.dtype != STRING:
            joined.bytes = count * bits // 8
    return None


cdef list list_parts(Parts* parts):
    """The outputs of each part, as views of one block of memory."""
    cdef Block block = Block.__new__(Block)
    cdef size_t part, index
    cdef int64_t begin, end
    cdef int64_t[RANK_MOST] dims
    cdef int axis
    cdef Output* output
    block.data, block.bytes = parts.block, parts.block_bytes
    parts.block = NULL
    whole = memoryview(block)
    cdef list result = []
    cdef list views
    for part in range(parts.part_count):
        views = []
        for index in range(parts.outputs.size()):
            output = &parts.outputs[index]
            if parts.is_cut(index):
                parts.shape_of(part, output.dims, output.rank, parts.lengths.outputs[index], dims)
            else:
                memcpy(dims, output.dims, output.rank * sizeof(int64_t))
                if parts.part_count > 1:
                    dims[0] = parts.rows[part]
            shape = [dims[axis] for axis in range(output.rank)]
            begin = parts.part_end(index, part - 1) if part else output.begin
            end = parts.part_end(index, part)
            views.append(TensorView(output.dtype, tuple(shape), whole[begin:end]))
        result.append(views)
    return result


cdef int release_parts(Parts* parts) except -1:
    """Let go of the buffers."""
    cdef size_t index
    for index in range(parts.pinned_count):
        PyBuffer_Release(&parts.pinned[index])
    parts.pinned_count = 0
    return 0


cdef void copy_beginning(char* small, const int64_t* small_dims, char* large, const int64_t* large_dims, int rank,
                         int64_t element_bytes, bint enlarge) noexcept nogil:
    """Copy an array to the beginning of each axis of a larger one, or (not enlarge) from there."""
    cdef int64_t[RANK_MOST] at
    cdef int64_t run = element_bytes, count = 1, number, place
    cdef int last = rank - 1, axis
    while last >= 0 and small_dims[last] == large_dims[last]:
        run *= small_dims[last]
        last -= 1
    # What is one piece in the larger one: the part of axis ``last`` that is there, with all behind it.
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
    """Inputs for a profile: the same for the same shape. Floats about N(0, 1), integers and bools 0 or 1."""
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
