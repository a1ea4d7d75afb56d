"""Ask a ZeroMQ socket whether it has something, without Python in between.

A request's road asks some forty times, at 2 us each through pyzmq and 0.3 us here. The functions are
those of the very libzmq that pyzmq brings: looked up in it, so there is nothing to link.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport uintptr_t

import zmq
from zmq.backend.cython import _zmq as _binding

cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *library, const char *name)
    int RTLD_NOW
    int RTLD_NOLOAD

cdef enum:
    POLLIN = 1
    EVENTS = 15
    RCVMORE = 13

ctypedef int (*getsockopt_t)(void *socket, int option, void *value, size_t *size) noexcept nogil

cdef getsockopt_t _getsockopt = NULL


cdef int _bind() except -1:
    global _getsockopt
    path = _binding.__file__.encode()
    cdef void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD)
    if library != NULL:
        _getsockopt = <getsockopt_t> dlsym(library, b"zmq_getsockopt")
    return 0


_bind()

DIRECT = _getsockopt != NULL
"""False where pyzmq was built with a libzmq that shows nobody its functions: then pyzmq is asked."""


cdef class Probe:
    """Looks at one socket, for the thread that uses it. forget() it before the socket is closed."""

    cdef void *_address
    cdef object _socket  # keeps what _address belongs to

    def __init__(self, socket):
        """socket: a zmq.Socket."""
        cdef uintptr_t address = socket.underlying
        self._socket = socket
        self._address = <void *> address

    cdef int _get(self, int option) except -1:
        cdef int value = 0
        cdef size_t size = sizeof(value)
        if self._address == NULL:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if _getsockopt == NULL:
            return self._socket.get(option)
        while _getsockopt(self._address, option, &value, &size) != 0:
            if errno != EINTR:
                raise zmq.ZMQError(errno)
            PyErr_CheckSignals()
        return value

    def readable(self):
        """Whether a message can be received."""
        return (self._get(EVENTS) & POLLIN) != 0

    def more(self):
        """Whether the part just received was not its message's last."""
        return self._get(RCVMORE) != 0

    def forget(self):
        """Use the socket no more."""
        self._address = NULL
        self._socket = None
