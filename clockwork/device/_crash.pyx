# cython: language_level=3
"""The last words of a worker that crashes in a lane; see csrc/device/crash.h. One module, so that there is one state."""

from libc.stdint cimport int64_t

cdef extern from "device/crash.h" nogil:
    ctypedef struct cw_crash_state "__typeof__(cw_crash)":
        int signal
        int64_t action_id
        int told
    cw_crash_state cw_crash
    int64_t cw_crash_action
    int cw_crash_install(int wake_fd)
    void cw_crash_enter()
    void cw_crash_leave()


cdef void crash_enter() noexcept nogil:
    """This thread will execute actions."""
    cw_crash_enter()


cdef void crash_leave() noexcept nogil:
    """It ends."""
    cw_crash_leave()


cdef void crash_at(int64_t action_id) noexcept nogil:
    """What this thread is at from now on; 0: nothing."""
    global cw_crash_action
    cw_crash_action = action_id


def install(int wake_fd):
    """Have crashes in lanes wake a loop before they end the process."""
    if cw_crash_install(wake_fd):
        raise OSError("cannot install signal handlers")


def crashed():
    """(signal, action id) if a lane has crashed, else None. The process ends when tell() is called, or in a second."""
    if cw_crash.signal <= 0:
        return None
    return cw_crash.signal, cw_crash.action_id


def told():
    """All has been said: let the signal take its course."""
    cw_crash.told = 1
