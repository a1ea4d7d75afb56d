"""Waiting for descriptors with timeouts in nanoseconds.

zmq_poll and select.poll round timeouts to milliseconds.
"""

from libc.errno cimport EINTR, errno
from libc.string cimport strerror

cdef extern from "<poll.h>" nogil:
    ctypedef unsigned long nfds_t
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    """
    int ppoll(pollfd *fds, nfds_t count, const timespec *timeout, const sigset_t *mask) nogil

cdef enum:
    MAX = 16

WAIT_FDS_MAX = MAX


cdef class DescriptorPoller:
    """A fixed, small set of descriptors to wait on. One thread may wait at a time."""

    cdef pollfd _fds[MAX]
    cdef int _count

    def __init__(self, fds):
        if len(fds) > MAX:
            raise ValueError(f"{len(fds)} descriptors are more than {MAX}")
        self._count = len(fds)
        for index, fd in enumerate(fds):
            self._fds[index].fd = fd
            self._fds[index].events = POLLIN
            self._fds[index].revents = 0

    def wait(self, long long timeout_ns):
        """Block until a descriptor is readable or the time is over (negative: forever). Returns whether a
        descriptor is readable.

        A signal ends the wait early, after its Python handler has run.
        """
        cdef timespec timeout
        cdef timespec *limit = NULL
        cdef int ready
        if timeout_ns >= 0:
            timeout.tv_sec = timeout_ns // 1_000_000_000
            timeout.tv_nsec = timeout_ns % 1_000_000_000
            limit = &timeout
        with nogil:
            ready = ppoll(self._fds, self._count, limit, NULL)
        if ready < 0:
            if errno == EINTR:
                return False
            raise OSError(errno, strerror(errno).decode())
        return ready > 0
