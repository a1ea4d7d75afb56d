"""Waiting for descriptors with timeouts in nanoseconds, and a timer with a descriptor.

zmq_poll and select.poll round timeouts to milliseconds. The timer uses timerfd, which expires to the
microsecond, whereas the kernel may extend the timeout of a wait by the thread's timer slack (50 us).
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from libc.string cimport strerror
from posix.time cimport CLOCK_MONOTONIC, itimerspec
from posix.unistd cimport close, read

cdef extern from "<sys/timerfd.h>" nogil:
    int TFD_NONBLOCK
    int TFD_CLOEXEC
    int TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new_value, itimerspec *old_value)

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


cdef class Timer:
    """An alarm of the monotonic clock. Its descriptor is readable from the alarm until clear()."""

    cdef int _fd

    def __cinit__(self):
        self._fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(errno, strerror(errno).decode())

    def __dealloc__(self):
        self.close()

    def fileno(self):
        return self._fd

    def set(self, long long at_ns):
        """Set the alarm to a time, at once if it has passed; 0: no alarm. Replaces the previous alarm."""
        cdef itimerspec alarm
        alarm.it_interval.tv_sec = alarm.it_interval.tv_nsec = 0
        alarm.it_value.tv_sec = alarm.it_value.tv_nsec = 0
        if at_ns > 0:
            alarm.it_value.tv_sec = at_ns // 1_000_000_000
            alarm.it_value.tv_nsec = at_ns % 1_000_000_000
        if timerfd_settime(self._fd, TFD_TIMER_ABSTIME, &alarm, NULL) != 0:
            raise OSError(errno, strerror(errno).decode())

    def clear(self):
        """Clear the alarm. Returns whether it expired since the last set() or clear()."""
        cdef uint64_t count
        return read(self._fd, &count, sizeof(count)) > 0

    def close(self):
        """Close the descriptor. Idempotent."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
