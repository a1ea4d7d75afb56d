"""Access to the memory of NumPy arrays for code that runs without the interpreter.

Cython's typed memoryviews would double the code of the extension _bounds.
"""

from libc.stdint cimport uintptr_t


cdef inline void *memory_of(object array, str dtype, int dimensions) except? NULL:
    """Return the address of the elements in row-major order, valid while the array is referenced. Raises
    ValueError for another kind of array.
    """
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise ValueError(
            f"an array of {array.dtype} in {array.ndim} dimensions, where {dtype} in {dimensions} is read row by row"
        )
    return <void *><uintptr_t>array.ctypes.data
