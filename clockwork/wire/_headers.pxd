# Cython's declarations of the readers and writers of headers; csrc/msgpack.h and csrc/wire/ document them.
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp.string_view cimport string_view


cdef extern from "msgpack.h" namespace "clockwork" nogil:
    cdef cppclass CWriter "clockwork::Writer":
        string_view view()

cdef extern from "wire/header_flaw.h" namespace "clockwork" nogil:
    cdef enum CHeaderFlawKind "clockwork::HeaderFlaw::Kind":
        C_HEADER_FINE "clockwork::HeaderFlaw::NONE"

    cdef cppclass CHeaderFlaw "clockwork::HeaderFlaw":
        CHeaderFlawKind kind
        int64_t tag
        uint32_t count
        uint32_t depth
        const uint32_t *path "path.data" ()
        size_t offset

    const string_view *C_HEADER_FLAW_NAMES "clockwork::HEADER_FLAW_NAMES.data" ()
    size_t C_HEADER_FLAW_COUNT "clockwork::HEADER_FLAW_NAMES.size" ()
