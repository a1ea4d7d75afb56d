# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False
"""csrc/sim/bounds.h, schedules.h, stints.h and moments.h applied to the models of a cell."""

from libc.stdint cimport int64_t, uint8_t

from clockwork.sim._arrays cimport memory_of


cdef extern from "sim/bounds.h" namespace "clockwork" nogil:
    cdef cppclass BatchPrices:
        BatchPrices() except +
        double best(const int64_t*, const double*, int64_t, const double*, const int64_t*, int64_t, double,
                    uint8_t*, double*) except +

cdef extern from "sim/schedules.h" namespace "clockwork::sim" nogil:
    int64_t most_of_one_model(const int64_t*, int64_t, const int64_t*, int64_t, int64_t) except +
    cdef cppclass Found "clockwork::sim::Schedules::Found":
        int64_t served, joined
    Found most_of_models(const int64_t*, const int64_t*, int64_t, const int64_t*, int64_t, const int64_t*, int64_t,
                         int64_t) except +

cdef extern from "sim/moments.h" namespace "clockwork::sim" nogil:
    double best_at_moments(const double*, int64_t, const double*, const double*, int64_t, double, const double*,
                           int64_t, double*) except +

cdef extern from "sim/stints.h" namespace "clockwork::sim" nogil:
    cdef cppclass Charged:
        double value, device_ns, link_ns, page_ns
    cdef cppclass StintPrices:
        double device, link, page
    cdef cppclass StintModel:
        const double *exec_ns
        int64_t batch_max
        double room_ns, load_ns, pages
        bint held
    cdef cppclass Stints:
        Stints() except +
        Charged best(const double*, int64_t, const StintModel&, const StintPrices&) except +


cdef int check_starts(starts, int64_t requests) except -1:
    """Check that starts divides the requests among models."""
    cdef const int64_t *firsts = <const int64_t *>memory_of(starts, "int64", 1)
    cdef int64_t models = starts.shape[0] - 1
    cdef int64_t model
    if models < 0 or firsts[0] != 0 or firsts[models] != requests:
        raise ValueError("the arrays do not fit each other")
    for model in range(models):
        if firsts[model + 1] < firsts[model]:
            raise ValueError(f"starts falls at model {model}")
    return 0


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
        or not exec_ns.shape == span_ns.shape == (models, columns)
        or not served.flags.writeable
    ):
        raise ValueError("the arrays do not fit each other")
    check_starts(starts, requests)
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


def most_served_by_one(arrived_ns, exec_ns, int64_t room_ns):
    cdef const int64_t *arrivals = <const int64_t *>memory_of(arrived_ns, "int64", 1)
    cdef const int64_t *execs = <const int64_t *>memory_of(exec_ns, "int64", 1)
    cdef int64_t count = arrived_ns.shape[0]
    cdef int64_t batch_max = exec_ns.shape[0] - 1
    cdef int64_t found
    if batch_max < 0:
        raise ValueError("the array of execution times is empty")
    with nogil:
        found = most_of_one_model(arrivals, count, execs, batch_max, room_ns)
    return found


def most_served(arrived_ns, starts, exec_ns, room_ns, int64_t devices, int64_t width):
    cdef const int64_t *arrivals = <const int64_t *>memory_of(arrived_ns, "int64", 1)
    cdef const int64_t *firsts = <const int64_t *>memory_of(starts, "int64", 1)
    cdef const int64_t *execs = <const int64_t *>memory_of(exec_ns, "int64", 2)
    cdef const int64_t *rooms = <const int64_t *>memory_of(room_ns, "int64", 1)
    cdef int64_t models = starts.shape[0] - 1
    cdef int64_t columns = exec_ns.shape[1]
    cdef Found found
    if not exec_ns.shape[0] == room_ns.shape[0] == models or columns < 2:
        raise ValueError("the arrays do not fit each other")
    if devices < 1 or width < 1:
        raise ValueError(f"{devices} devices, {width} states: there is at least one of each")
    check_starts(starts, arrived_ns.shape[0])
    if arrived_ns.shape[0] == 0:
        return 0, 0
    with nogil:
        found = most_of_models(arrivals, firsts, models, execs, columns, rooms, devices, width)
    return found.served, found.joined


def best_stints(arrived_ns, starts, exec_ns, room_ns, load_ns, pages, bint held, double device, double link,
                double page):
    cdef Stints stints
    cdef StintModel model
    cdef StintPrices prices
    cdef Charged found, total
    cdef const double *arrivals = <const double *>memory_of(arrived_ns, "float64", 1)
    cdef const int64_t *firsts = <const int64_t *>memory_of(starts, "int64", 1)
    cdef const double *execs = <const double *>memory_of(exec_ns, "float64", 2)
    cdef const double *rooms = <const double *>memory_of(room_ns, "float64", 1)
    cdef const double *loads = <const double *>memory_of(load_ns, "float64", 1)
    cdef const double *sizes = <const double *>memory_of(pages, "float64", 1)
    cdef int64_t models = starts.shape[0] - 1
    cdef int64_t columns = exec_ns.shape[1]
    cdef int64_t index
    if not exec_ns.shape[0] == room_ns.shape[0] == load_ns.shape[0] == pages.shape[0] == models or columns < 2:
        raise ValueError("the arrays do not fit each other")
    check_starts(starts, arrived_ns.shape[0])
    prices.device, prices.link, prices.page = device, link, page
    with nogil:
        for index in range(models):
            model.exec_ns = execs + index * columns
            model.batch_max = columns - 1
            model.room_ns, model.load_ns, model.pages = rooms[index], loads[index], sizes[index]
            model.held = held
            found = stints.best(arrivals + firsts[index], firsts[index + 1] - firsts[index], model, prices)
            total.value += found.value
            total.device_ns += found.device_ns
            total.link_ns += found.link_ns
            total.page_ns += found.page_ns
    return total.value, (total.device_ns, total.link_ns, total.page_ns)


def best_by_moment(arrived, starts, exec, slack, worth, up_to, values, used):
    cdef const double *arrivals = <const double *>memory_of(arrived, "float64", 1)
    cdef const int64_t *firsts = <const int64_t *>memory_of(starts, "int64", 1)
    cdef const double *execs = <const double *>memory_of(exec, "float64", 2)
    cdef const double *slacks = <const double *>memory_of(slack, "float64", 2)
    cdef const double *worths = <const double *>memory_of(worth, "float64", 1)
    cdef const double *costs = <const double *>memory_of(up_to, "float64", 1)
    cdef double *found = <double *>memory_of(values, "float64", 1)
    cdef double *uses = <double *>memory_of(used, "float64", 1)
    cdef int64_t groups = starts.shape[0] - 1
    cdef int64_t columns = exec.shape[1]
    cdef int64_t slots = used.shape[0]
    cdef int64_t group
    if (
        not exec.shape == slack.shape == (groups, columns)
        or not worth.shape[0] == values.shape[0] == groups
        or columns < 2
        or up_to.shape[0] != slots + 1
        or not values.flags.writeable
        or not used.flags.writeable
    ):
        raise ValueError("the arrays do not fit each other")
    check_starts(starts, arrived.shape[0])
    with nogil:
        for group in range(groups):
            found[group] = best_at_moments(arrivals + firsts[group], firsts[group + 1] - firsts[group],
                                           execs + group * columns, slacks + group * columns, columns - 1,
                                           worths[group], costs, slots, uses)
