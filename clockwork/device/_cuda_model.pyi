"""Types of a CUDA device's native models, for checkers."""

from typing import Any

from clockwork.device._cuda_host import HostCopy
from clockwork.device._orders import Known

SOURCES: dict[str, int]

class Program:
    input_count: int
    output_count: int
    weight_count: int
    batches: bool
    slot_bytes: int
    workspace_bytes: int
    def __init__(
        self,
        inputs: list[tuple[int, list[int]]],
        outputs: list[tuple[int, list[int]]],
        weight_count: int,
        batches: bool,
        variants: list[Any],
    ) -> None: ...

class Model(Known):
    program: Program
    host: HostCopy
    def __init__(
        self,
        model_id: int,
        program: Program,
        host: HostCopy,
        runs: list[int],
        weights: list[tuple[int, int]],
    ) -> None: ...
