# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False
"""csrc/sim/bounds.h over the models of a cell."""

from libc.stdint cimport int64_t, uint8_t


cdef extern from "sim/bounds.h" namespace "clockwork" nogil:
    cdef cppclass BatchPrices:
        BatchPrices() except +
        double best(const int64_t*, const double*, int64_t, const double*, const int64_t*, int64_t, double,
                    uint8_t*, double*) except +


def best_batches(
    const int64_t[::1] arrived_ns,
    const double[::1] worth,
    const int64_t[::1] starts,
    const double[:, ::1] exec_ns,
    const int64_t[:, ::1] span_ns,
    double price,
    uint8_t[::1] served,
):
    cdef BatchPrices prices
    cdef int64_t models = starts.shape[0] - 1
    cdef int64_t batch_max = exec_ns.shape[1] - 1
    cdef int64_t model, begin, count
    cdef double value = 0.0
    cdef double exec_total_ns = 0.0
    if (
        worth.shape[0] != arrived_ns.shape[0]
        or served.shape[0] != arrived_ns.shape[0]
        or models < 0
        or exec_ns.shape[0] != models
        or span_ns.shape[0] != models
        or span_ns.shape[1] != batch_max + 1
        or starts[0] != 0
        or starts[models] != arrived_ns.shape[0]
    ):
        raise ValueError("the arrays do not fit each other")
    for model in range(models):
        if starts[model + 1] < starts[model]:
            raise ValueError(f"starts falls at model {model}")
    if arrived_ns.shape[0] == 0:
        return 0.0, 0.0
    with nogil:
        for model in range(models):
            begin = starts[model]
            count = starts[model + 1] - begin
            if count > 0:
                value += prices.best(&arrived_ns[begin], &worth[begin], count, &exec_ns[model, 0],
                                     &span_ns[model, 0], batch_max, price, &served[begin], &exec_total_ns)
    return value, exec_total_ns
