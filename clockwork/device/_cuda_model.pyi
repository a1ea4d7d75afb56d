"""Types of a CUDA device's native models, for checkers."""

from typing import Any

from clockwork.device._cuda_host import WeightsCopy
from clockwork.device._orders import KnownModel

SOURCES: dict[str, int]

class CompiledProgram:
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

class CompiledModel(KnownModel):
    program: CompiledProgram
    host: WeightsCopy
    def __init__(
        self,
        model_id: int,
        program: CompiledProgram,
        host: WeightsCopy,
        runs: list[int],
        weights: list[tuple[int, int]],
    ) -> None: ...
