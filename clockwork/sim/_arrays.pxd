"""The memory of NumPy arrays, for what runs without the interpreter.

Cython's own typed memoryviews would add as much code to an extension as all else in _bounds has.
"""

from libc.stdint cimport uintptr_t


cdef inline void *memory_of(object array, str dtype, int dimensions) except? NULL:
    """Where the elements lie, row by row; valid while the array is referenced. Raises ValueError for another kind of array."""
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise ValueError(
            f"an array of {array.dtype} in {array.ndim} dimensions, where {dtype} in {dimensions} is read row by row"
        )
    return <void *><uintptr_t>array.ctypes.data
