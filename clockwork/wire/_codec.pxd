# distutils: language = c++
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string_view cimport string_view


cdef extern from "msgpack.h" namespace "clockwork" nogil:
    enum Kind "clockwork::Head::Kind":
        NIL "clockwork::Head::NIL"
        FLAG "clockwork::Head::FLAG"
        INTEGER "clockwork::Head::INTEGER"
        NATURAL "clockwork::Head::NATURAL"
        REAL "clockwork::Head::REAL"
        TEXT "clockwork::Head::TEXT"
        BYTES "clockwork::Head::BYTES"
        ARRAY "clockwork::Head::ARRAY"
        MAP "clockwork::Head::MAP"

    cppclass Head:
        Kind kind
        uint32_t size
        int64_t integer
        uint64_t natural
        double real

    cppclass Reader:
        Reader(const void *data, size_t size)
        cbool head(Head &head)
        string_view take(uint32_t size)
        cbool done()


cdef struct Place:  # place of a value within the header; innermost first
    const Place *outer
    void *name  # a str, owned by the maker of the place; NULL: by number
    Py_ssize_t number
