"""The input and output of the child process that lowers a variant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from clockwork.formats.program import Argument, Launch

SPEC_FILE = "spec.json"
BUILT_FILE = "built.json"
MODULE_FILE = "module"
PTX_FILE = "ptx"
SOURCE_FILE = "source.cu"
"""The CUDA C from which the module was compiled; absent for the host, and for a module from the cache."""

SIZE_PREFIX = "clockwork.size."
"""Prefix of the names of inputs for true sizes, each an int64 scalar; the number of the symbol follows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """The input of the child process: a variant to be lowered."""

    model: str  # path of an ONNX file whose inputs all have fixed shapes
    target: str  # name such as "sm_80", or "host"
    weights: str  # directory of the weights' data, each in a file named by its sha256
    dtype: str  # dtype of matrix products, one of PRODUCT_DTYPES
    tune: str = ""  # tinygrad's device on which kernels are timed to find the fastest, "CUDA"; "" none
    cache: str = ""  # directory of earlier variants, which models of equal architecture reuse; "" none
    sizes: tuple[int, ...] = ()  # compiled size of each open dimension; inputs may be shorter
    ptx: bool = False  # whether PTX is written, too

    def write(self, directory: Path) -> Path:
        path = directory / SPEC_FILE
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path

    @staticmethod
    def read(path: Path) -> Spec:
        body = json.loads(path.read_text())
        return Spec(**{**body, "sizes": tuple(body["sizes"])})


@dataclasses.dataclass(frozen=True, slots=True)
class KernelSource:
    """The source of a kernel, and its launch configuration."""

    name: str
    source: str  # source code in C, or CUDA C
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: int  # number of pointer parameters
    sizes: int  # number of int parameters for true sizes, which follow the pointers
    widths: tuple[int, ...]  # bytes of the widest access through each pointer to data


@dataclasses.dataclass(frozen=True, slots=True)
class Statistic:
    """The memory accesses and operations of a launch, as tinygrad estimates them."""

    kernel: str
    operations: int
    bytes: int  # read and written, each buffer once
    tensor_cores: str  # type of the operands on tensor cores, "f16" or "tf32"; "": none are used


@dataclasses.dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight that the launches read. Its data is the file <sha256> of Spec.weights."""

    name: str  # name of the weight, the same in every variant of the model
    dtype: int
    shape: list[int]
    bytes: int
    sha256: str
    call: int  # launch that reads the weight first; ``place``: the position among its arguments
    place: int


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """The output of the child process: a lowered variant. Its module is the file ``module`` of the directory,
    and its PTX, if requested, the file ``ptx``."""

    output_shapes: list[list[int]]
    workspace: int
    launches: list[Launch]  # launches of kernels in module 0
    table: list[Argument]  # weights by their index in ``weights``
    weights: list[StoredWeight]
    statistics: list[Statistic]  # statistics of each launch
    log: str  # the assembler's messages about registers and spills
    folded: int  # kernels that depend on weights alone and were run once, at compilation
    reused: bool  # whether the kernels came from the cache

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
                    launch["module"],
                    launch["kernel"],
                    tuple(launch["grid"]),
                    tuple(launch["block"]),
                    launch["shared"],
                    tuple(Argument(**argument) for argument in launch["args"]),
                    tuple(launch["widths"]),
                )
                for launch in body["launches"]
            ],
            [Argument(**entry) for entry in body["table"]],
            [StoredWeight(**weight) for weight in body["weights"]],
            [Statistic(**statistic) for statistic in body["statistics"]],
            body["log"],
            body["folded"],
            body["reused"],
        )
