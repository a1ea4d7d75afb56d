"""What a lane's thread is at, for the last words of a process that crashes; see csrc/device/crash.h."""

from libc.stdint cimport int64_t

cdef void crash_enter() noexcept nogil
cdef void crash_leave() noexcept nogil
cdef void crash_at(int64_t action_id) noexcept nogil
