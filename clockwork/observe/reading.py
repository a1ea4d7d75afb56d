"""Reads a cluster's numbers at an interval that bounds the cost for the controller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from clockwork.config import METRICS_MODELS_PAGE
from clockwork.config.observe import TOP_COST_PART, TOP_PAGE_S
from clockwork.errors import ClockworkError
from clockwork.observe.overview import Overview, Reading, compare, is_same_run

Read = Callable[[], Reading]  # Asks the controller. Raises ClockworkError if it does not answer.


class PeriodicReader:
    """Reads at an interval in its own thread, and calls a function with the changes between readings.

    A page of models costs the controller up to a millisecond. So with many models the interval is longer:
    readings take at most the part TOP_COST_PART of the controller's time.
    """

    def __init__(self, read: Read, interval_s: float) -> None:
        self._read = read
        self.interval_s = interval_s
        self._ended = threading.Event()
        self._before: Reading | None = None
        self._thread: threading.Thread | None = None

    def start(self, tell: Callable[[Overview | None, str], None]) -> None:
        """Start the thread. tell(overview, note): called for each reading. After an error overview is None,
        and note says why."""
        self._thread = threading.Thread(target=self._run, args=(tell,), name="top-reader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no further reading. A pending reading ends by the client's own timeout."""
        self._ended.set()

    def next(self) -> tuple[Overview | None, str]:
        """Ask the controller once. Returns an overview, made by comparison with the reading
        before, and a note.

        The first reading, and the first after a restart of the controller, have no overview.
        """
        after = self._read()
        before, self._before = self._before, after
        pages = -(-after["model_count"] // METRICS_MODELS_PAGE)
        self.interval_s = max(self.interval_s, pages * TOP_PAGE_S / TOP_COST_PART)
        if before is None:
            return None, f"the first rates come in {self.interval_s:g} s"
        if not is_same_run(before, after):
            return None, "the controller was started anew"
        return compare(before, after), ""

    def _run(self, tell: Callable[[Overview | None, str], None]) -> None:
        wait = 0.0
        while not self._ended.wait(wait):
            began = time.monotonic()
            try:
                overview, note = self.next()
            except ClockworkError as error:
                overview, note = None, f"no answer from the controller: {error}"
            took = time.monotonic() - began
            wait = max(0.0, self.interval_s - took)
            if not self._ended.is_set():
                tell(overview, note)
