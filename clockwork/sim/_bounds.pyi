import numpy as np
import numpy.typing as npt

def best_batches(
    arrived_ns: npt.NDArray[np.int64],
    worth: npt.NDArray[np.float64],
    starts: npt.NDArray[np.int64],
    exec_ns: npt.NDArray[np.float64],
    span_ns: npt.NDArray[np.int64],
    price: float,
    served: npt.NDArray[np.uint8],
) -> tuple[float, float]:
    """Return (worth minus cost of the best batches, their execution time in ns). Sets served[i] to 1 for
    served requests.

    Requests are sorted by model, then by arrival: model m's are starts[m] to starts[m + 1]. exec_ns and
    span_ns: a row for each model, a column for each batch size (0 unused); see csrc/sim/bounds.h.
    """

def most_served_by_one(
    arrived_ns: npt.NDArray[np.int64], exec_ns: npt.NDArray[np.int64], room_ns: int
) -> int:
    """Return the most requests of one model that one device can serve in time, exactly.

    arrived_ns rises; exec_ns never falls with the batch size, and entry 0 is unused; a batch ends within
    room_ns of its first request's arrival. See csrc/sim/schedules.h.
    """

def most_served(
    arrived_ns: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    exec_ns: npt.NDArray[np.int64],
    room_ns: npt.NDArray[np.int64],
    devices: int,
    width: int,
) -> tuple[int, int]:
    """Return (the most requests that the devices can serve in time, how often the search had to be cut).

    0 cuts: the number is exact for schedules that take each model's requests in order of arrival, else an
    upper bound. Requests and execution times are those of best_batches(); room_ns is by model. width: the
    number of states from which the search is cut. See csrc/sim/schedules.h.
    """

def best_stints(
    arrived_ns: npt.NDArray[np.float64],
    starts: npt.NDArray[np.int64],
    exec_ns: npt.NDArray[np.float64],
    room_ns: npt.NDArray[np.float64],
    load_ns: npt.NDArray[np.float64],
    pages: npt.NDArray[np.float64],
    held: bool,
    device: float,
    link: float,
    page: float,
) -> tuple[float, tuple[float, float, float]]:
    """Return the value of the best batches and stints, and the device-ns, link-ns and page-ns that they use.

    Requests are sorted by model, then by arrival, in ns after the beginning of the window. The other arrays
    are by model. held: models may be in memory when the window begins. device, link, page: the price of a ns
    of a device, of a ns of a link, and of a page for a ns. See csrc/sim/stints.h.
    """

def best_by_moment(
    arrived: npt.NDArray[np.float64],
    starts: npt.NDArray[np.int64],
    exec: npt.NDArray[np.float64],
    slack: npt.NDArray[np.float64],
    worth: npt.NDArray[np.float64],
    up_to: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    used: npt.NDArray[np.float64],
) -> None:
    """Set values[g] to the value of group g's best batches, and add their time in each slot to used.

    Requests are sorted by group, then by arrival: group g's are starts[g] to starts[g + 1]. Times are in
    slots. exec (time of a batch) and slack (how long after its first request's arrival it may start) have a
    row for each group and a column for each batch size (0 unused); worth is that of a request, by group.
    up_to[i] is the price of all slots before slot i. See csrc/sim/moments.h.
    """
