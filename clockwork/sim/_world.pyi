from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clockwork.scheduler._policy import Script

OUTCOME_NAMES: tuple[str, ...]
SLICE_NAMES: tuple[str, ...]

def bucket_bounds() -> npt.NDArray[np.int64]: ...

class World:
    def __init__(
        self,
        policy: str,
        memory: str,
        options: Mapping[str, float],
        models: Sequence[Mapping[str, Any]],
        cluster: Mapping[str, Any],
        opens: int,
        closed: Sequence[Mapping[str, Any]],
        run: Mapping[str, Any],
        script: Script | None = None,
    ) -> None: ...
    def record(
        self,
        bytes_max: int,
        names: Sequence[tuple[str, int, str]],
        templates: Sequence[str],
        status_names: Sequence[str],
        reasons: Sequence[str],
    ) -> None: ...
    def recorded(self, bytes_max: int) -> bytes: ...
    def set_up(self) -> None: ...
    def feed(self, number: int, arrivals: tuple[npt.NDArray[Any], ...] | None) -> None: ...
    def run(self, events_max: int) -> int: ...
    @property
    def now_ns(self) -> int: ...
    @property
    def scheduler_ns(self) -> int: ...
    @property
    def requests(self) -> int: ...
    def results(self) -> dict[str, Any]: ...
    def trace(self) -> list[tuple[int, int, int, int, int, int]]: ...
    def fates(self) -> npt.NDArray[np.int64]: ...
