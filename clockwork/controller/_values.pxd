# Declarations of the values between Python and the exchange; csrc/ documents them.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.string_view cimport string_view
from libcpp.vector cimport vector

from clockwork.wire._headers cimport CHeaderFlaw
from clockwork.wire._messages cimport CTensorRef


cdef extern from "recording/sentences.h" namespace "clockwork" nogil:
    cdef cppclass CSentences "clockwork::Sentences":
        CSentences()
        CSentences(vector[string] templates, vector[string] status_names, vector[string] reasons)

cdef extern from "controller/counts.h" namespace "clockwork" nogil:
    cdef cppclass CDurations "clockwork::Durations":
        int64_t sum_ns
        const uint64_t *data "counts.data" ()
        size_t size "counts.size" ()

cdef extern from "controller/models.h" namespace "clockwork" nogil:
    const int64_t C_DIMENSION_ANY "clockwork::DIMENSION_ANY"
    const int64_t C_DIMENSION_NONE "clockwork::DIMENSION_NONE"
    const int64_t C_BITS_OF_STRING "clockwork::BITS_OF_STRING"
    const int64_t C_BITS_UNKNOWN "clockwork::BITS_UNKNOWN"
    const int64_t C_EXACT "clockwork::EXACT"

    cdef cppclass CInputSpec "clockwork::InputSpec":
        CInputSpec()
        string name
        string declared
        int64_t dtype
        int64_t bits
        cbool any_rank
        vector[int64_t] dims
        vector[int32_t] symbols
        vector[int64_t] limits
        cbool optional
        string value

    cdef cppclass COutputSpec "clockwork::OutputSpec":
        COutputSpec()
        string declared
        int64_t dtype
        int64_t bits
        cbool any_rank
        vector[int64_t] dims

    cdef cppclass CModelInterface "clockwork::ModelInterface":
        vector[CInputSpec] inputs
        vector[string] outputs
        vector[COutputSpec] given
        vector[string] symbols
        cbool batches
        void index_inputs() except +

cdef extern from "controller/connections.h" namespace "clockwork" nogil:
    cdef cppclass CConnectionBounds "clockwork::ConnectionBounds":
        size_t ungreeted
        size_t greeted
        int64_t hello_ns
        int64_t idle_ns
        uint64_t hello_bytes
        uint64_t hello_bytes_all
        uint64_t received_bytes
        uint64_t received_bytes_all
        uint64_t unread_bytes
        uint64_t unread_bytes_all
        int64_t unread_ns
        uint64_t memory_bytes

    cdef cppclass CConnections "clockwork::Connections":
        size_t size()
        size_t ungreeted()
        size_t greeted()
        uint64_t unread_bytes()
        uint64_t behind_bytes()
        const uint64_t *cut_counts()

cdef extern from "controller/flaws.h" namespace "clockwork" nogil:
    cdef enum CFlawCode "clockwork::Flaw::Code":
        C_FLAW_SYMBOL "clockwork::Flaw::SYMBOL"

    cdef cppclass CFlaw "clockwork::Flaw":
        CFlawCode code
        uint32_t tensor
        uint32_t ref
        uint32_t other
        int32_t symbol
        int64_t expected
        int64_t got
        int64_t bytes

    const string_view *C_FLAW_NAMES "clockwork::FLAW_NAMES.data" ()
    size_t C_FLAW_COUNT "clockwork::FLAW_NAMES.size" ()

cdef extern from "controller/intake.h" namespace "clockwork" nogil:
    cdef cppclass CWrong "clockwork::WrongMessage":
        cbool is_request
        int64_t id
        CHeaderFlaw header
        CFlaw flaw
        int64_t model_id
        shared_ptr[const CModelInterface] interface
        const vector[CTensorRef] *tensors
        const vector[int64_t] *dims


cdef class ModelInterface:
    cdef object __weakref__
    cdef shared_ptr[CModelInterface] _model


cdef string_view view_of(bytes text)
cdef str word_of(string_view text)
cdef object flaw_of(const CWrong &wrong)
cdef tuple shapes_of(const vector[int64_t] &shape)
cdef CSentences sentences_of(templates, reasons) except *
cdef CConnectionBounds connection_bounds(bounds) except *
cdef dict describe_connections(const CConnections &connections)
cdef dict durations_of(const CDurations &durations)
