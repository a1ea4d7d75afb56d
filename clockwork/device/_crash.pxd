"""The current action of a lane's thread, which a crashing process reports last; see csrc/device/crash.h."""

from libc.stdint cimport int64_t

cdef void crash_enter() noexcept nogil
cdef void crash_leave() noexcept nogil
cdef void crash_at(int64_t action_id) noexcept nogil
