"""Join the pieces of a large message without the interpreter's lock.

bytes.join() holds the lock where a piece is no bytes object: for 20 ms at 32 MiB. The kernel spends most of
that time on fresh pages.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy


def join(list pieces not None):
    """Return the pieces, each a contiguous buffer, joined as one bytes object.

    The pieces must not change meanwhile. Raises BufferError.
    """
    cdef Py_ssize_t total = sum([memoryview(piece).nbytes for piece in pieces])
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, total)
    cdef char *target = PyBytes_AS_STRING(joined)
    cdef Py_buffer piece_buffer
    for piece in pieces:
        PyObject_GetBuffer(piece, &piece_buffer, PyBUF_SIMPLE)
        try:
            assert piece_buffer.len <= total, "a piece has grown"
            with nogil:
                memcpy(target, piece_buffer.buf, piece_buffer.len)
            target += piece_buffer.len
            total -= piece_buffer.len
        finally:
            PyBuffer_Release(&piece_buffer)
    return joined
