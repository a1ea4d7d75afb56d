# cython: language_level=3, cdivision=True
"""What a CUDA device knows of a model: its program's launch lists, and where its weights are.

Made when a model is prepared, and only read while actions run; but for a launch's values, which the one execution
at a time fills in.
"""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from clockwork.device._parts cimport RANK_MOST, Input, dtype_bits

cdef enum:
    SLOT_ALIGNMENT = 256  # of each input and output in a slot: what every vector load is content with

SOURCES = {"weight": FROM_WEIGHT, "input": FROM_INPUT, "output": FROM_OUTPUT, "workspace": FROM_WORKSPACE,
           "size": FROM_SIZE}

INDEX_DTYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # integers and bools, in ONNX's codes


cdef inline int64_t aligned(int64_t size) noexcept nogil:
    return (size + SLOT_ALIGNMENT - 1) // SLOT_ALIGNMENT * SLOT_ALIGNMENT


cdef void* take(size_t count, size_t size) except NULL:
    """Zeroed memory of this process, at least one element of it."""
    cdef void* memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef int64_t used_bytes(const Tensor* tensor, int64_t rows) noexcept nogil:
    """Of so many rows, their padding included; of all of it where the program does not batch."""
    return rows * tensor.row_bytes if tensor.row_bytes else tensor.bytes


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


cdef int set_tensor(Tensor* tensor, int dtype, object shape, object symbols, bint batches, int64_t offset) except -1:
    cdef int axis
    cdef int64_t count = 1
    tensor.dtype = dtype
    tensor.rank = len(shape)
    tensor.dims = <int64_t*>take(tensor.rank, sizeof(int64_t))
    for axis in range(tensor.rank):
        tensor.dims[axis] = shape[axis]
        count *= tensor.dims[axis]
    tensor.symbols = <int*>take(tensor.rank, sizeof(int))
    for axis in range(tensor.rank):
        tensor.symbols[axis] = symbols[axis]
        tensor.open = tensor.open or symbols[axis] >= 0
    tensor.bytes = (count * dtype_bits(dtype) + 7) // 8
    if batches:
        tensor.row_bytes = tensor.bytes // tensor.dims[0]
        if tensor.row_bytes * tensor.dims[0] * 8 != count * dtype_bits(dtype):
            raise ValueError(f"rows of type {dtype} and shape {list(shape)} do not end on a byte")
    tensor.offset = offset
    tensor.padded = batches and dtype in INDEX_DTYPES
    return 0


cdef class Program:
    """The launch lists of one architecture, shared by every model of it on one device.

    inputs, outputs: (dtype, for each axis the number of the padded symbol that it is or -1) each. variants: (batch,
    input shapes, output shapes, workspace bytes, launches) each, in the order in which they are tried; launches:
    (function, grid, block, shared bytes, arguments) each; arguments: (source, index, value), the source -1 for a
    value as it is. Indexes and offsets are the caller's to check.
    """

    def __cinit__(self, list inputs, list outputs, size_t weight_count, bint batches, list variants):
        cdef size_t index
        cdef Variant* variant
        cdef int64_t at
        self.input_count = len(inputs)
        self.output_count = len(outputs)
        self.weight_count = weight_count
        self.batches = batches
        self.input_dtypes = <int*>take(self.input_count, sizeof(int))
        self.output_dtypes = <int*>take(self.output_count, sizeof(int))
        for index in range(self.input_count):
            self.input_dtypes[index] = inputs[index][0]
        for index in range(self.output_count):
            self.output_dtypes[index] = outputs[index][0]
        self.variants = <Variant*>take(len(variants), sizeof(Variant))
        for batch, shapes, output_shapes, workspace, launches in variants:
            variant = &self.variants[self.variant_count]
            self.variant_count += 1
            variant.batch = batch
            variant.workspace_bytes = workspace
            variant.inputs = <Tensor*>take(self.input_count, sizeof(Tensor))
            variant.outputs = <Tensor*>take(self.output_count, sizeof(Tensor))
            at = 0
            for index in range(self.input_count):
                set_tensor(&variant.inputs[index], self.input_dtypes[index], shapes[index], inputs[index][1], batches,
                           at)
                at += aligned(variant.inputs[index].bytes)
            for index in range(self.output_count):
                set_tensor(&variant.outputs[index], self.output_dtypes[index], output_shapes[index],
                           outputs[index][1], batches, at)
                at += aligned(variant.outputs[index].bytes)
            variant.slot_bytes = at
            self.set_launches(variant.batch, launches)

    def set_launches(self, batch, list launches):
        """Of the variant that was made last."""
        cdef Variant* variant = &self.variants[self.variant_count - 1]
        cdef Launch* launch
        cdef Argument* argument
        cdef int axis
        cdef size_t index
        variant.launches = <Launch*>take(len(launches), sizeof(Launch))
        for function, grid, block, shared, arguments in launches:
            launch = &variant.launches[variant.launch_count]
            variant.launch_count += 1
            launch.function = <CUfunction><size_t>function
            for axis in range(3):
                launch.grid[axis] = grid[axis]
                launch.block[axis] = block[axis]
            launch.shared_bytes = shared
            launch.argument_count = len(arguments)
            launch.arguments = <Argument*>take(launch.argument_count, sizeof(Argument))
            launch.values = <uint64_t*>take(launch.argument_count, sizeof(uint64_t))
            launch.pointers = <void**>take(launch.argument_count, sizeof(void*))
            for index in range(launch.argument_count):
                source, place, value = arguments[index]
                argument = &launch.arguments[index]
                argument.source = FROM_VALUE if source < 0 else <Source><int>source
                argument.index = place
                argument.value = value
                launch.pointers[index] = &launch.values[index]

    @property
    def slot_bytes(self):
        """Of the largest variant."""
        return max((self.variants[index].slot_bytes for index in range(self.variant_count)), default=0)

    @property
    def workspace_bytes(self):
        return max((self.variants[index].workspace_bytes for index in range(self.variant_count)), default=0)

    cdef Variant* choose(self, Parts* parts, int64_t* sizes) noexcept:
        """The first variant that runs these inputs; NULL if there is none. sizes: PADDED_MOST of them, filled in."""
        cdef size_t index, tensor
        cdef int axis, symbol
        cdef bint fits
        cdef int64_t size
        cdef Variant* variant
        cdef Input* joined
        for index in range(self.variant_count):
            variant = &self.variants[index]
            fits = True
            memset(sizes, 0, PADDED_MOST * sizeof(int64_t))
            for tensor in range(self.input_count):
                joined = &parts.inputs[tensor]
                if joined.rank != variant.inputs[tensor].rank:
                    fits = False
                    break
                for axis in range(joined.rank):
                    size, symbol = joined.dims[axis], variant.inputs[tensor].symbols[axis]
                    if self.batches and axis == 0:
                        fits = fits and size <= variant.batch and size == parts.inputs[0].dims[0]
                    elif symbol >= 0:
                        fits = fits and 1 <= size <= variant.inputs[tensor].dims[axis] and sizes[symbol] in (0, size)
                        sizes[symbol] = size
                    else:
                        fits = fits and size == variant.inputs[tensor].dims[axis]
            if fits:
                return variant
        return NULL

    def __dealloc__(self):
        cdef size_t index, tensor, launch
        cdef Variant* variant
        for index in range(self.variant_count):
            variant = &self.variants[index]
            if variant.inputs != NULL:
                for tensor in range(self.input_count):
                    free(variant.inputs[tensor].dims)
                    free(variant.inputs[tensor].symbols)
            if variant.outputs != NULL:
                for tensor in range(self.output_count):
                    free(variant.outputs[tensor].dims)
                    free(variant.outputs[tensor].symbols)
            for launch in range(variant.launch_count):
                free(variant.launches[launch].arguments)
                free(variant.launches[launch].values)
                free(variant.launches[launch].pointers)
            free(variant.inputs)
            free(variant.outputs)
            free(variant.launches)
        free(self.variants)
        free(self.input_dtypes)
        free(self.output_dtypes)


cdef class Model(Known):
    """One prepared model: its program, its weights in the host store, and whether it is resident.

    runs: pages of each; together those of the host copy. weights: (run, offset) each, in the program's order.
    """

    def __cinit__(self, int64_t model_id, Program program, HostCopy host not None, list runs, list weights):
        cdef size_t index
        cdef ModelState* state = &self.state
        self.model_id = model_id
        self.set_runs(runs)
        if sum(runs) != host.copy.page_count:
            raise ValueError(f"runs of {sum(runs)} pages, of which the host store has {host.copy.page_count}")
        self.program = program
        self.host = host
        state.weights_there = &host.copy
        state.host = &host.store.host if host.store is not None else NULL
        state.at = &self.at
        state.weights = <Weight*>take(len(weights), sizeof(Weight))
        for index, (place, offset) in enumerate(weights):
            state.weights[index].run, state.weights[index].offset = place, offset

    def __dealloc__(self):
        free(self.state.weights)
