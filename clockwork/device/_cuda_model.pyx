# cython: language_level=3, cdivision=True
"""A CUDA device's models: launch lists of programs, and places of weights.

The objects are made when a model is prepared. Running actions only read them, except for a launch's values,
which the single running execution fills in.
"""

from clockwork.device._parts cimport RANK_MAX, dtype_bits

cdef enum:
    SLOT_ALIGNMENT = 256  # alignment of inputs and outputs in a slot: enough for any vector load
    ENTRY_BYTES = 8  # the size of a table's entry

SOURCES = {"weight": <int>FROM_WEIGHT, "input": <int>FROM_INPUT, "output": <int>FROM_OUTPUT,
           "workspace": <int>FROM_WORKSPACE, "size": <int>FROM_SIZE, "table": <int>FROM_TABLE}

INDEX_DTYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # integers and bools, in ONNX's codes


cdef inline int64_t aligned(int64_t size) noexcept nogil:
    return (size + SLOT_ALIGNMENT - 1) // SLOT_ALIGNMENT * SLOT_ALIGNMENT


cdef int set_tensor(Tensor* tensor, int dtype, object shape, object symbols, bint batches, int64_t offset) except -1:
    cdef int64_t count = 1, size
    cdef int symbol
    tensor.dtype = dtype
    tensor.dims = shape
    tensor.symbols = symbols
    for size in tensor.dims:
        count *= size
    for symbol in tensor.symbols:
        tensor.open = tensor.open or symbol >= 0
    tensor.bytes = (count * dtype_bits(dtype) + 7) // 8
    if batches:
        tensor.row_bytes = tensor.bytes // tensor.dims[0]
        if tensor.row_bytes * tensor.dims[0] * 8 != count * dtype_bits(dtype):
            raise ValueError(f"rows of type {dtype} and shape {list(shape)} do not end on a byte")
    tensor.offset = offset
    tensor.padded = batches and dtype in INDEX_DTYPES
    return 0


cdef class CompiledProgram:
    """The launch lists of one architecture, shared by all its models on a device.

    inputs, outputs: (dtype, for each axis the number of its padded symbol or -1) each. variants: (batch,
    input shapes, output shapes, workspace bytes, launches, table) each, in the order in which they are tried.
    launches: (kernel, grid, block, shared bytes, arguments) each. arguments, and entries of the table:
    (source, index, value), with the source -1 for a literal value. The caller checks indexes and offsets.
    """

    def __cinit__(self, list inputs, list outputs, size_t weight_count, bint batches, list variants):
        cdef size_t index
        self.input_count = len(inputs)
        self.output_count = len(outputs)
        self.weight_count = weight_count
        self.batches = batches
        self.input_dtypes = [dtype for dtype, _ in inputs]
        self.output_dtypes = [dtype for dtype, _ in outputs]
        self.variants.resize(len(variants))
        for index in range(self.variants.size()):
            self.set_variant(&self.variants[index], variants[index], inputs, outputs)

    cdef int set_argument(self, Argument* argument, object described) except -1:
        source, argument.index, argument.value = described
        argument.source = FROM_VALUE if source < 0 else <ArgumentSource><int>source
        return 0

    cdef int set_variant(self, Variant* variant, object described, list inputs, list outputs) except -1:
        cdef size_t number, index
        cdef int64_t at
        cdef int axis
        cdef Launch* launch
        variant.batch, shapes, output_shapes, variant.workspace_bytes, launches, table = described
        variant.table.resize(len(table))
        for index in range(variant.table.size()):
            self.set_argument(&variant.table[index], table[index])
        at = variant.table_end = aligned(variant.table.size() * ENTRY_BYTES)
        variant.table_begin = at - <int64_t>variant.table.size() * ENTRY_BYTES
        variant.inputs.resize(self.input_count)
        for index in range(self.input_count):
            set_tensor(&variant.inputs[index], self.input_dtypes[index], shapes[index], inputs[index][1], self.batches,
                       at)
            at += aligned(variant.inputs[index].bytes)
        variant.outputs.resize(self.output_count)
        for index in range(self.output_count):
            set_tensor(&variant.outputs[index], self.output_dtypes[index], output_shapes[index], outputs[index][1],
                       self.batches, at)
            at += aligned(variant.outputs[index].bytes)
        variant.slot_bytes = at
        variant.launches.resize(len(launches))
        for number in range(variant.launches.size()):
            launch = &variant.launches[number]
            kernel, grid, block, launch.shared_bytes, arguments = launches[number]
            launch.function = (<CudaKernel?>kernel).handle
            for axis in range(3):
                launch.grid[axis] = grid[axis]
                launch.block[axis] = block[axis]
            launch.arguments.resize(len(arguments))
            for index in range(launch.arguments.size()):
                self.set_argument(&launch.arguments[index], arguments[index])
            launch.make_room()
        return 0

    @property
    def slot_bytes(self):
        """The workspace's bytes of the largest variant."""
        cdef int64_t most = 0
        for index in range(self.variants.size()):
            most = max(most, self.variants[index].slot_bytes)
        return most

    @property
    def workspace_bytes(self):
        cdef int64_t most = 0
        for index in range(self.variants.size()):
            most = max(most, self.variants[index].workspace_bytes)
        return most


cdef class CompiledModel(KnownModel):
    """A prepared model: its program, its weights in the host store, and its residency.

    runs: the number of pages of each run, in total the pages of the host copy. weights: (run, offset) each,
    in the program's order.
    """

    def __cinit__(self, int64_t model_id, CompiledProgram program not None, WeightsCopy host not None, list runs, list weights):
        cdef size_t index
        self.model_id = model_id
        self.at = &self.state
        self.state.model_dtypes = &program.input_dtypes
        self.state.variants = &program.variants
        self.state.batches, self.state.output_count = program.batches, program.output_count
        self.set_runs(runs)
        self.program = program
        self.host = host
        if sum(runs) != host.copy.pages.size():
            raise ValueError(f"runs of {sum(runs)} pages, of which the host store has {host.copy.pages.size()}")
        self.state.copy = &host.copy
        if not host.is_fixed:
            self.state.store = &host.store.pages
        self.state.loading_starts.resize(len(runs))
        self.state.weights.resize(len(weights))
        for index in range(self.state.weights.size()):
            self.state.weights[index].run, self.state.weights[index].offset = weights[index]
