"""A CUDA device's models: launch lists of programs, and places of weights."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from clockwork.device._cuda_host cimport CHostPages, WeightsCopy, CWeightsCopy
from clockwork.device._cudriver cimport (
    CudaApi, CUdeviceptr, CUevent, CUfunction, CUgraphExec, CUresult, CUstream, CudaKernel)
from clockwork.device._orders cimport KnownModel, Order, DeviceModel, Slot
from clockwork.device._parts cimport BatchParts

cdef extern from "device/notice.h" namespace "clockwork::device" nogil:
    cppclass StreamMark:
        CUevent event
        uint32_t* word
        CUresult set(const CudaApi& api, CUstream stream)
    cppclass Watch:
        Watch()
        Watch(int64_t begin_ns, int64_t expected_ns, int64_t spin_ns)
        CUresult look(const CudaApi& api, const StreamMark& mark, int64_t now_ns)
        int64_t pause_ns(const StreamMark& mark, int64_t now_ns)
        int64_t expected_end_ns()

cdef extern from "wire/bounds.h" namespace "clockwork" nogil:
    enum:
        PADDED_MAX

cdef extern from "device/cuda_model.h" namespace "clockwork::device" nogil:
    enum:
        LOAD_AHEAD
    cppclass LoadPace:
        LoadPace()
        LoadPace(int64_t begin_ns, int64_t expected_ns, int64_t bytes)
        int64_t piece_bytes
        int64_t queued
        int64_t noticed_ns
        void queue()
        void notice(int64_t now_ns)
        int64_t next_ns()
        int64_t left_ns()
    enum ArgumentSource "clockwork::device::ArgumentSource":
        FROM_WEIGHT "clockwork::device::ArgumentSource::WEIGHT"
        FROM_INPUT "clockwork::device::ArgumentSource::INPUT"
        FROM_OUTPUT "clockwork::device::ArgumentSource::OUTPUT"
        FROM_WORKSPACE "clockwork::device::ArgumentSource::WORKSPACE"
        FROM_SIZE "clockwork::device::ArgumentSource::SIZE"
        FROM_TABLE "clockwork::device::ArgumentSource::TABLE"
        FROM_VALUE "clockwork::device::ArgumentSource::VALUE"
    cppclass Argument:
        ArgumentSource source
        int index
        uint64_t value
    cppclass Launch:
        CUfunction function
        unsigned[3] grid
        unsigned[3] block
        unsigned shared_bytes
        vector[Argument] arguments
        vector[uint64_t] values
        vector[void*] pointers
        void make_room() except +
    cppclass RecordedGraph:
        CUgraphExec launches "exec"
        CUdeviceptr slot
        CUdeviceptr workspace
    cppclass Tensor:
        int dtype
        vector[int64_t] dims
        vector[int] symbols
        int64_t bytes
        int64_t row_bytes
        int64_t offset
        cbool open
        cbool padded
        int rank()
        int64_t used_bytes(int64_t rows)
    cppclass Variant:
        int64_t batch
        vector[Tensor] inputs
        vector[Tensor] outputs
        int64_t slot_bytes
        int64_t workspace_bytes
        vector[Launch] launches
        vector[Argument] table
        int64_t table_begin
        int64_t table_end
        vector[RecordedGraph] graphs
        cbool is_recordable()
    cppclass CudaWeight:
        size_t run
        int64_t offset
    cppclass CudaModel(DeviceModel):
        const vector[int]* model_dtypes
        vector[Variant]* variants
        cbool batches
        size_t output_count
        CWeightsCopy* copy
        CHostPages* store
        vector[CudaWeight] weights
        vector[int64_t] loading_starts
        Variant* choose(const BatchParts& parts, int64_t* sizes)
        CUdeviceptr address(int index, const vector[int64_t]& run_starts, CUdeviceptr arena, size_t page_bytes)
        cbool write_table(const Variant& variant, const vector[int64_t]& run_starts, CUdeviceptr arena,
                          size_t page_bytes, const int64_t* sizes, char* table)
    cppclass CudaSlot(Slot):
        size_t number
        char* host
        CUdeviceptr device
        CUevent input_begin
        StreamMark input_end
        CUevent run_begin
        StreamMark run_end
        CUevent graph_end
        StreamMark output_end
    cppclass CudaOrder(Order):
        CudaOrder() except +
        int64_t run_earliest_ns
        cbool pins
        Variant* variant
        int64_t[PADDED_MAX] sizes
        CUgraphExec graph
    void copy_starts(vector[int64_t]& target, const vector[int64_t]& source)
    void say_unserved(const BatchParts& parts, char* text, size_t text_bytes)
    uint64_t fixed_value(const Argument& argument, const Variant& variant, const CudaSlot& slot, CUdeviceptr workspace)

cdef extern from "device/cuda_graphs.h" namespace "clockwork::device" nogil:
    CUresult record_graph(const CudaApi& api, const Variant& variant, const CudaSlot& slot, CUdeviceptr workspace,
                          CUstream stream, CUgraphExec* graph, const char** call)

cdef class CompiledProgram:
    cdef readonly size_t input_count
    cdef readonly size_t output_count
    cdef readonly size_t weight_count
    cdef readonly bint batches
    cdef vector[int] input_dtypes
    cdef vector[int] output_dtypes
    cdef vector[Variant] variants  # variants in the order in which they are tried

    cdef int set_argument(self, Argument* argument, object described) except -1
    cdef int set_variant(self, Variant* variant, object described, list inputs, list outputs) except -1

cdef class CompiledModel(KnownModel):
    cdef CudaModel state
    cdef readonly CompiledProgram program
    cdef readonly WeightsCopy host
