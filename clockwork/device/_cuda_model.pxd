"""What a CUDA device knows of a model: its program's launch lists, and where its weights are."""

from libc.stdint cimport int64_t, uint64_t

from clockwork.device._cuda_host cimport HostCopy, cw_host, cw_host_copy
from clockwork.device._cudriver cimport CUfunction
from clockwork.device._orders cimport Known, Residency
from clockwork.device._parts cimport Parts

cdef enum:
    PADDED_MOST = 16  # clockwork.config.formats.PADDED_MAX

cdef enum Source:
    # What a kernel's argument is made of.
    FROM_WEIGHT
    FROM_INPUT
    FROM_OUTPUT
    FROM_WORKSPACE
    FROM_SIZE
    FROM_VALUE

cdef struct Argument:
    Source source
    int index
    uint64_t value  # an offset in bytes; or the value itself, in its lowest bytes

cdef struct Launch:
    CUfunction function
    unsigned[3] grid
    unsigned[3] block
    unsigned shared_bytes
    size_t argument_count
    Argument* arguments
    uint64_t* values  # filled before each launch: one execution at a time
    void** pointers  # to those, and NULL

cdef struct Tensor:
    # An input or output of a variant.
    int dtype
    int rank
    int64_t* dims
    int64_t bytes
    int64_t row_bytes  # where the program batches
    int64_t offset  # in a slot
    int* symbols  # of each axis: which padded symbol it is, -1 none
    bint open  # whether it is padded along an axis
    bint padded  # rows that no request has brought are copies of the last: a kernel may look things up by them

cdef struct Variant:
    int64_t batch
    Tensor* inputs
    Tensor* outputs
    int64_t slot_bytes
    int64_t workspace_bytes
    size_t launch_count
    Launch* launches

cdef struct Weight:
    int64_t run
    int64_t offset

cdef struct ModelState:
    cw_host_copy* weights_there  # in the host store
    cw_host* host  # of which it is fetched; NULL: it is there for good
    Weight* weights
    Residency* at

cdef class Program:
    cdef readonly size_t input_count
    cdef readonly size_t output_count
    cdef readonly size_t weight_count
    cdef readonly bint batches
    cdef int* input_dtypes
    cdef int* output_dtypes
    cdef size_t variant_count
    cdef Variant* variants  # in the order in which they are tried

    cdef Variant* choose(self, Parts* parts, int64_t* sizes) noexcept

cdef class Model(Known):
    cdef ModelState state
    cdef readonly Program program
    cdef readonly HostCopy host

cdef void* take(size_t count, size_t size) except NULL
cdef int64_t used_bytes(const Tensor* tensor, int64_t rows) noexcept nogil
cdef void copy_beginning(char* small, const int64_t* small_dims, char* large, const int64_t* large_dims, int rank,
                         int64_t element_bytes, bint enlarge) noexcept nogil
