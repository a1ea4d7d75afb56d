"""Probe of a ZeroMQ socket for messages, without Python in between.

A request's path probes some forty times, at 2 us each through pyzmq and 0.3 us here. The functions are those
of pyzmq's own libzmq: they are looked up in it, so there is nothing to link.
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
cdef clockwork_zmq_api _api


cdef void *_find(void *library, const char *name, list missing) except? NULL:
    cdef void *function = dlsym(library, name)
    if function == NULL:
        missing.append(name.decode())
    return function


cdef int _bind() except -1:
    """Look every function up. The missing functions are named in MISSING."""
    global _getsockopt
    path = _binding.__file__.encode()
    cdef void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD)
    cdef list missing = MISSING
    if library == NULL:
        missing.append("all")
        return 0
    _getsockopt = <getsockopt_t> dlsym(library, b"zmq_getsockopt")
    _api.msg_init = _find(library, b"zmq_msg_init", missing)
    _api.msg_init_size = _find(library, b"zmq_msg_init_size", missing)
    _api.msg_init_data = _find(library, b"zmq_msg_init_data", missing)
    _api.msg_recv = _find(library, b"zmq_msg_recv", missing)
    _api.msg_send = _find(library, b"zmq_msg_send", missing)
    _api.msg_copy = _find(library, b"zmq_msg_copy", missing)
    _api.msg_move = _find(library, b"zmq_msg_move", missing)
    _api.msg_close = _find(library, b"zmq_msg_close", missing)
    _api.msg_data = _find(library, b"zmq_msg_data", missing)
    _api.msg_size = _find(library, b"zmq_msg_size", missing)
    _api.msg_more = _find(library, b"zmq_msg_more", missing)
    _api.msg_get = _find(library, b"zmq_msg_get", missing)
    _api.msg_gets = _find(library, b"zmq_msg_gets", missing)
    _api.send = _find(library, b"zmq_send", missing)
    _api.getsockopt = _find(library, b"zmq_getsockopt", missing)
    _api.last_error = _find(library, b"zmq_errno", missing)
    return 0


MISSING = []
_bind()

DIRECT = _getsockopt != NULL
"""False where pyzmq was built with a libzmq that exports no functions: then pyzmq is asked."""


cdef class Functions:
    """libzmq's functions for code without Python. Raises OSError, naming those that are not exported."""

    def __cinit__(self):
        if MISSING:
            raise OSError(f"pyzmq's libzmq does not export {', '.join(MISSING)}")
        self.table = &_api

    @property
    def address(self):
        """The address of the table, for ctypes."""
        return <uintptr_t> self.table


cdef class Probe:
    """A probe of a socket, for the thread that uses it. Call forget() before the socket is closed."""

    cdef void *_address
    cdef object _socket  # keeps the socket of _address alive

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
