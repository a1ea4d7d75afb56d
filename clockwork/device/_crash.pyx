# cython: language_level=3
"""The report of a worker that crashes in a lane; see csrc/device/crash.h. The module holds the process's
state."""

from libc.stdint cimport int64_t
from libcpp cimport bool as cbool
from libcpp.atomic cimport atomic

cdef extern from "device/crash.h" namespace "clockwork::device" nogil:
    cppclass Crash:
        atomic[int] signal
        atomic[int64_t] action_id
        atomic[cbool] told
    Crash crash
    cbool install_crash_handler(int wake_fd)
    void enter_crash_guard()
    void leave_crash_guard()
    void name_crash_action(int64_t action_id)


cdef void crash_enter() noexcept nogil:
    """Register the calling thread as one that executes actions."""
    enter_crash_guard()


cdef void crash_leave() noexcept nogil:
    """Unregister the calling thread, which ends."""
    leave_crash_guard()


cdef void crash_at(int64_t action_id) noexcept nogil:
    """Set the action that the calling thread runs from now on; 0 for none."""
    name_crash_action(action_id)


def install(int wake_fd):
    """Have crashes in lanes wake a loop before they end the process."""
    if not install_crash_handler(wake_fd):
        raise OSError("cannot install signal handlers")


def crashed():
    """Return (signal, action id) if a lane has crashed, else None.

    The process ends when told() is called, or after a second."""
    cdef int number = crash.signal.load()
    return (number, crash.action_id.load()) if number > 0 else None


def told():
    """Let the signal end the process: the report has been sent."""
    crash.told.store(True)
