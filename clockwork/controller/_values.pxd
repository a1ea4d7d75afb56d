# What goes between Python and the exchange.
from libc.stdint cimport int64_t
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

from clockwork.controller._exchange cimport (
    CConnectionBounds,
    CConnections,
    CDurations,
    CModelInterface,
    CSentences,
    CWrong,
    string_view,
)


cdef class Interface:
    cdef object __weakref__
    cdef shared_ptr[CModelInterface] _model


cdef string_view view_of(bytes text)
cdef str word_of(string_view text)
cdef object flaw_of(const CWrong &wrong)
cdef tuple shapes_of(const vector[int64_t] &shape)
cdef CSentences sentences_of(templates, reasons) except *
cdef CConnectionBounds connection_bounds(bounds) except *
cdef dict describe_connections(const CConnections &connections)
cdef dict durations_of(const CDurations &one)
