"""Operators of Clockwork's own end early where the execution that runs them is to end."""

from clockwork.device._ort cimport AtomicFlag

cdef void end_operators_by(const AtomicFlag* ending) noexcept nogil
