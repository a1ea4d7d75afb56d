"""The worker's clock: the machine's, unless a test gives it an offset and a drift."""

from __future__ import annotations

from clockwork.system.clock import now_ns
from clockwork.wire.messages import NEVER_NS, Phase

_BILLION = 1_000_000_000


class WorkerClock:
    """Converts between the machine's monotonic clock, which devices read, and the controller's view of it.

    Everything inside the worker is machine time; messages carry worker time.
    """

    __slots__ = ("_drift_ppb", "_epoch_ns", "_offset_ns", "shifted")

    def __init__(self, offset_ns: int = 0, drift_ppm: float = 0.0) -> None:
        self._offset_ns = offset_ns
        self._drift_ppb = round(drift_ppm * 1000)
        self._epoch_ns = now_ns()
        self.shifted = offset_ns != 0 or self._drift_ppb != 0

    @property
    def settings(self) -> tuple[int, int, int]:
        """The epoch in ns, the offset in ns and the drift in parts per billion, by which native code
        converts."""
        return self._epoch_ns, self._offset_ns, self._drift_ppb

    def to_worker(self, machine_ns: int) -> int:
        """Convert a time in ns of the machine's clock to this worker's clock."""
        drift_ns = (machine_ns - self._epoch_ns) * self._drift_ppb // _BILLION
        return machine_ns + self._offset_ns + drift_ns

    def to_machine(self, worker_ns: int) -> int:
        """Convert a time of this worker's clock to the machine's, to within 2 ns. NEVER_NS is returned
        unchanged."""
        if worker_ns >= NEVER_NS:
            return worker_ns
        elapsed_ns = worker_ns - self._offset_ns - self._epoch_ns
        return self._epoch_ns + elapsed_ns * _BILLION // (_BILLION + self._drift_ppb)

    def phase(self, phase: Phase) -> Phase:
        """Convert a phase to worker time. A phase that did not happen stays zero."""
        if not self.shifted or phase[0] == 0:
            return phase
        return [self.to_worker(phase[0]), self.to_worker(phase[1]), phase[2]]
