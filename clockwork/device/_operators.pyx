# cython: language_level=3
"""The operators of csrc/device/operators.h. ONNX Runtime loads this module's file as their library."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libcpp.string cimport string

from clockwork.device._ort cimport AtomicFlag

cdef extern from "device/images.h" namespace "clockwork::device" nogil:
    string c_load_jpeg "clockwork::device::load_jpeg"(const string& path)

cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view(const char* data, size_t size)

cdef extern from "wire/string_work.h" namespace "clockwork" nogil:
    int64_t c_strings_work "clockwork::strings_work"(int64_t count, string_view frame)

cdef extern from "device/operators.h" namespace "clockwork::device" nogil:
    void end_operators_with(const AtomicFlag*)


cdef void end_operators_by(const AtomicFlag* ending) noexcept nogil:
    """End this thread's operators with an error once the flag is set. The flag must outlive the thread."""
    end_operators_with(ending)


def strings_work(int64_t count, object frame not None):
    """Return the work of reading ``count`` strings, which fill the frame exactly.

    The work is a string's bytes; for a JPEG image, that of its decoding."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(frame, &buffer, PyBUF_SIMPLE)
    try:
        return c_strings_work(count, string_view(<const char*> buffer.buf, buffer.len)) if buffer.len else 0
    finally:
        PyBuffer_Release(&buffer)


def load_jpeg(bytes path):
    """Use this libjpeg. Returns the reason why it is unusable, or ""."""
    return c_load_jpeg(path).decode(errors="replace")
