"""What goes into the child process that lowers one variant, and what comes out of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from clockwork.formats.program import Argument, Launch

SPEC_FILE = "spec.json"
BUILT_FILE = "built.json"
MODULE_FILE = "module"

SIZE_PREFIX = "clockwork.size."
"""Of the inputs that bring the true sizes, each an int64 scalar; the number of the symbol follows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """One variant to make."""

    model: str  # path of an ONNX file whose inputs all have fixed shapes
    target: str  # "sm_80" ..., or "host"
    weights: str  # directory of the weights' data, each in a file named by its sha256
    dtype: str  # "fp32", or "fp16" for matrix products on tensor cores
    tune: str = ""  # tinygrad's device on which kernels are timed to find the fastest, "CUDA"; "" none
    cache: str = ""  # directory of variants made earlier, which models of equal architecture take; "" none
    sizes: tuple[int, ...] = ()  # of each open dimension: inputs may be that long, or shorter

    def write(self, directory: Path) -> Path:
        path = directory / SPEC_FILE
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path

    @staticmethod
    def read(path: Path) -> Spec:
        body = json.loads(path.read_text())
        return Spec(**{**body, "sizes": tuple(body["sizes"])})


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """The source of one kernel, and how it is launched."""

    name: str
    source: str  # C, or CUDA C
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: int  # pointers that it takes
    sizes: int  # true sizes that it takes behind them, each an int
    widths: tuple[int, ...]  # bytes of the widest access through each pointer


@dataclasses.dataclass(frozen=True, slots=True)
class Statistic:
    """What one launch does, as its source says."""

    kernel: str
    operations: int
    bytes: int  # read and written, each once
    tensor_cores: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight that the launches read. Its data are the file <sha256> of Spec.weights."""

    name: str  # the same in every variant of the model that has this weight
    dtype: int
    shape: list[int]
    bytes: int
    sha256: str
    call: int  # where it is first read: the launch, and the place among what that is given
    place: int


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """A variant as the child made it; its module is the file ``module`` of the directory."""

    output_shapes: list[list[int]]
    workspace: int
    launches: list[Launch]  # of module 0; weights by their index in ``weights``
    weights: list[StoredWeight]
    statistics: list[Statistic]  # one of each launch
    log: str  # what the assembler says of registers and spills
    folded: int  # kernels that were run at packaging
    reused: bool  # the kernels were there already

    def write(self, directory: Path) -> None:
        (directory / BUILT_FILE).write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(directory: Path) -> Built:
        body: dict[str, Any] = json.loads((directory / BUILT_FILE).read_text())
        return Built(
            body["output_shapes"],
            body["workspace"],
            [
                Launch(
                    one["module"],
                    one["kernel"],
                    tuple(one["grid"]),
                    tuple(one["block"]),
                    one["shared"],
                    tuple(Argument(**argument) for argument in one["args"]),
                    tuple(one["widths"]),
                )
                for one in body["launches"]
            ],
            [StoredWeight(**one) for one in body["weights"]],
            [Statistic(**one) for one in body["statistics"]],
            body["log"],
            body["folded"],
            body["reused"],
        )
