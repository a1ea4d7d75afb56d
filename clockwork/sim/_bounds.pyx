# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False
"""csrc/sim/bounds.h applied to the models of a cell."""

from libc.stdint cimport int64_t, uint8_t

from clockwork.sim._arrays cimport memory_of


cdef extern from "sim/bounds.h" namespace "clockwork" nogil:
    cdef cppclass BatchPrices:
        BatchPrices() except +
        double best(const int64_t*, const double*, int64_t, const double*, const int64_t*, int64_t, double,
                    uint8_t*, double*) except +


def best_batches(arrived_ns, worth, starts, exec_ns, span_ns, double price, served):
    cdef BatchPrices prices
    cdef const int64_t *arrivals = <const int64_t *>memory_of(arrived_ns, "int64", 1)
    cdef const double *worths = <const double *>memory_of(worth, "float64", 1)
    cdef const int64_t *firsts = <const int64_t *>memory_of(starts, "int64", 1)
    cdef const double *execs = <const double *>memory_of(exec_ns, "float64", 2)
    cdef const int64_t *spans = <const int64_t *>memory_of(span_ns, "int64", 2)
    cdef uint8_t *are_served = <uint8_t *>memory_of(served, "uint8", 1)
    cdef int64_t requests = arrived_ns.shape[0]
    cdef int64_t models = starts.shape[0] - 1
    cdef int64_t columns = exec_ns.shape[1]
    cdef int64_t model, begin, count
    cdef double value = 0.0
    cdef double exec_total_ns = 0.0
    if (
        not worth.shape[0] == served.shape[0] == requests
        or models < 0
        or not exec_ns.shape == span_ns.shape == (models, columns)
        or firsts[0] != 0
        or firsts[models] != requests
        or not served.flags.writeable
    ):
        raise ValueError("the arrays do not fit each other")
    for model in range(models):
        if firsts[model + 1] < firsts[model]:
            raise ValueError(f"starts falls at model {model}")
    if requests == 0:
        return 0.0, 0.0
    with nogil:
        for model in range(models):
            begin = firsts[model]
            count = firsts[model + 1] - begin
            if count > 0:
                value += prices.best(arrivals + begin, worths + begin, count, execs + model * columns,
                                     spans + model * columns, columns - 1, price, are_served + begin, &exec_total_ns)
    return value, exec_total_ns
