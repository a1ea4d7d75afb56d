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
