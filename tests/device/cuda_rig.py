"""The CUDA device on the fake driver, and hand-written programs for it: kernels.cu, and launch lists made
here.

The launch lists are made from the suite's small ONNX graphs, for the few operators that kernels.cu has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clockwork.config.device import cuda_driver
from clockwork.device.cuda import CudaDevice
from clockwork.device.cuda_host import BudgetedHost
from clockwork.device.cuda_memory import find_card, open_driver, open_memory, target_of, why_unusable
from clockwork.formats.package import hash_file
from clockwork.formats.prepared import FORMAT_VERSION, WEIGHTS_FILE, PreparedModel, TensorSpec, WeightSpec
from clockwork.formats.program import (
    CHECKS_FILE,
    HOST,
    PROGRAM_JSON,
    Argument,
    Check,
    Launch,
    Program,
    ProgramWeight,
    TargetModules,
    Variant,
    offsets_of,
    program_hash,
    write_checks,
    write_program,
)
from clockwork.models.compile import nvrtc
from clockwork.models.layout import lay_out, write_weights
from clockwork.wire.tensors import tensor_bytes
from tests.device.fake import DRIVER, LIBRARY, FakeDriver, environment

PAGE_BYTES = 65_536
BATCHES = (1, 2, 4, 8)
KERNELS = Path(__file__).with_name("kernels.cu")
HOST_KERNELS = Path(__file__).parents[2] / "tests/native/host_kernels.h"
MODULE = "modules/kernels.so"
PTX = "modules/kernels.ptx"
THREADS = 64
TABLE_KERNELS = frozenset(re.findall(r"\w+_table_\d", KERNELS.read_text()))


def compiled_kernels(source: str = "", target: str = "") -> bytes:
    """Compile CUDA C (by default kernels.cu) into a module for the fake driver, for the host or for an
    architecture."""
    if not target:
        return _compiled(source, "")
    anywhere = "?" * len("compute_999a")
    return _compiled(source, anywhere).replace(anywhere.encode(), target.encode().ljust(len(anywhere), b"\0"))


@functools.cache
def _compiled(source: str, target: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernels.so"
        command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", "-x", "c++", "-include", str(HOST_KERNELS)]
        if target:
            command.append(f'-DCW_HOST_TARGET="{target}"')
        text = source or KERNELS.read_text()
        subprocess.run([*command, "-", "-o", str(path)], input=text.encode(), check=True)
        return path.read_bytes()


class CudaRig:
    """A CUDA device of the fake driver."""

    kind = "cuda"
    computes = True
    strings = False
    brings_inputs_early = True
    target = HOST
    driver = 0
    ptx = b""
    """Architectures of the module; empty for a module of the host."""
    ptx_driver = 0
    tables = True
    """Whether kernels get the addresses of their weights through a table."""
    graphs = True

    def __init__(self, store: Path) -> None:
        self.store = store
        self.count = 0
        self.module = compiled_kernels()
        self.fake = FakeDriver()
        self.fake.mend()
        self.fake.speed()
        self.fake.engines()
        self.fake.keep_kernels(False)
        self.fake.stall()
        self.fake.card()
        self.fake.setup()

    def make(
        self, pages: int = 32, which: str = "0", host_pages: int = 0, capability: int = 0, **options: Any
    ) -> CudaDevice:
        """capability: compute capability of the card that the driver shows (86: 8.6); 0: no card, only
        modules for the host run."""
        self.fake.card(capability)
        self.target = f"sm_{capability}" if capability else HOST
        with environment(**DRIVER):
            return self.open(pages, which, host_pages, options)

    def open(self, pages: int, which: str, host_pages: int, options: dict[str, Any]) -> CudaDevice:
        """Limit the memory of the cards, and take it anew for each test."""
        options = {
            "workspace_bytes": 1 << 12,
            "io_slot_bytes": 1 << 12,
            "pinned_bytes": max(64, pages) * PAGE_BYTES,
            "graphs": self.graphs,
            **options,
        }
        if host_pages:
            options |= self.host_store(which, host_pages)
        device = CudaDevice(which, pages * PAGE_BYTES, PAGE_BYTES, **options)
        self.fingerprint = device.info.fingerprint
        return device

    def host_store(self, which: str, pages: int) -> dict[str, Any]:
        """Return options of make() for so many pages; for more than one device."""
        table = open_driver()
        memory = open_memory(table, find_card(table, which))
        return {"store": BudgetedHost([memory], PAGE_BYTES, pages * PAGE_BYTES), "table": table}

    def check_released(self) -> None:
        """Check that no object of the driver is left, and that no copy had to wait for unpinned memory."""
        assert set(self.fake.live().values()) == {0}

    def build(self, one: Any, holding: str = "program") -> str:
        """Write the directories that the device's open() reads; return the model's."""
        graph = one.model.graph
        arrays = [numpy_helper.to_array(weight) for weight in graph.initializer]
        inputs, outputs = specs_of(graph.input), specs_of(graph.output)
        program = self._program(one, inputs, outputs, arrays)
        digest = program_hash(program)
        place = self.store / "programs" / digest
        self._write_modules(place)
        (place / PROGRAM_JSON).write_text(program.stripped().to_json())
        layout = lay_out([array.nbytes for array in arrays], PAGE_BYTES)
        self.count += 1
        place = self.store / "prepared" / f"{self.count:04d}-{self.fingerprint}"
        place.mkdir(parents=True)
        if arrays:
            write_weights(
                place / WEIGHTS_FILE, layout, [np.ascontiguousarray(one) for one in arrays], PAGE_BYTES
            )
        PreparedModel(
            format_version=FORMAT_VERSION,
            digest=place.name,
            fingerprint=self.fingerprint,
            program=digest,
            holding=holding if holding != "bound" else "program",
            inputs=inputs,
            outputs=outputs,
            batches=one.batches,
            batching_note="",
            batch_max=8,
            page_bytes=PAGE_BYTES,
            runs=layout.runs,
            weights=[
                WeightSpec(proto.data_type, array.shape, run, offset, array.nbytes)
                for array, proto, (run, offset) in zip(arrays, graph.initializer, layout.places, strict=True)
            ],
            weights_bytes=sum(array.nbytes for array in arrays),
            resident_bytes=sum(layout.runs) * PAGE_BYTES,
            load_ns=0,
            profile=[],
            constants_note="",
            metadata={},
            example=[],
        ).write(place)
        return str(place)

    def package(self, one: Any, checks: Sequence[Check] = ()) -> Path:
        """Write a package of the model, as a user would by hand."""
        graph = one.model.graph
        arrays = [numpy_helper.to_array(weight) for weight in graph.initializer]
        program = self._program(one, specs_of(graph.input), specs_of(graph.output), arrays)
        self.count += 1
        place = self.store / "by hand" / str(self.count)
        self._write_modules(place)
        if arrays:
            weights = bytearray(program.weights[-1].offset + program.weights[-1].bytes)
            for array, weight in zip(arrays, program.weights, strict=True):
                weights[weight.offset : weight.offset + weight.bytes] = array.tobytes()
            (place / WEIGHTS_FILE).write_bytes(weights)
        if checks:
            write_checks(place, program, checks)
            program = dataclasses.replace(program, files={**program.files, CHECKS_FILE: ""})
        write_program(place, program)
        return place

    def _write_modules(self, place: Path) -> None:
        for path, data in ((MODULE, self.module), (PTX, self.ptx)):
            if data:
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(data)

    def _program(
        self, one: Any, inputs: list[TensorSpec], outputs: list[TensorSpec], arrays: list[Any]
    ) -> Program:
        graph = one.model.graph
        places = offsets_of([array.nbytes for array in arrays])
        target = TargetModules(self.driver, (MODULE,), (PTX,) if self.ptx else (), self.ptx_driver)
        self._write_modules(self.store)
        return Program(
            name="by hand",
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            batches=one.batches,
            weights=tuple(
                ProgramWeight(proto.data_type, array.shape, place, array.nbytes)
                for proto, array, place in zip(graph.initializer, arrays, places, strict=True)
            ),
            targets={self.target: target},
            variants=tuple(
                Lowering(one.model, batch, inputs, outputs, self.tables).variant(self.target)
                for batch in (BATCHES if one.batches else (1,))
            ),
            files={path: hash_file(self.store / path)[1] for path in target.files},
        )


class PlainCudaRig(CudaRig):
    """Like CudaRig, with programs whose kernels get their weights' addresses as parameters, launched one by
    one."""

    kind = "cuda-plain"
    tables = False
    graphs = False


class CardRig(CudaRig):
    """The first GPU of this machine, through CuPy; the kernels are compiled by NVRTC."""

    kind = "card"

    def __init__(self, store: Path) -> None:
        self.store = store
        self.count = 0
        self.card = find_card(open_driver(), "0")
        self.target = target_of(self.card)
        self.module = cubin(self.target)

    def make(self, pages: int = 32, which: str = "0", host_pages: int = 0, **options: Any) -> CudaDevice:  # type: ignore[override]
        return self.open(pages, which, host_pages, options)

    def check_released(self) -> None:
        """Check nothing: a real driver does not report its objects."""


class PlainCardRig(CardRig):
    """Like PlainCudaRig, on a GPU."""

    kind = "card-plain"
    tables = False
    graphs = False


@functools.cache
def why_no_card() -> str:
    """Return why CardRig cannot run here; "" if it can."""
    if cuda_driver() == str(LIBRARY):
        return "no GPU: the fake driver is asked for"
    if reason := why_unusable():
        return f"no GPU: {reason}"
    return (
        ""
        if nvrtc.is_installed()
        else "a GPU, but no NVRTC to compile the kernels: pip install 'clockwork-serving[compile]'"
    )


@functools.cache
def cubin(target: str) -> bytes:
    """Compile kernels.cu for an architecture."""
    return nvrtc.build([KERNELS.read_text()], target)[0]


class Lowering:
    """The launches for a graph of the suite, for a single batch size."""

    def __init__(
        self, model: onnx.ModelProto, batch: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
        tables: bool,
    ) -> None:  # fmt: skip
        self.tables = tables
        self.table: list[Argument] = []
        self.graph = model.graph
        self.batch = batch
        self.places: dict[str, tuple[str, int, int]] = {}  # for each name: kind, index, offset
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.workspace = 0
        self.launches: list[Launch] = []
        self.inputs, self.outputs = inputs, outputs
        for index, spec in enumerate(inputs):
            self._place(spec.name, "input", index, self._concrete(spec))
        for index, weight in enumerate(self.graph.initializer):
            self._place(weight.name, "weight", index, tuple(weight.dims))

    def _place(self, name: str, kind: str, index: int, shape: tuple[int, ...]) -> None:
        self.places[name], self.shapes[name] = (kind, index, 0), shape

    def _concrete(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else self.batch for dim in spec.shape)

    def variant(self, target: str) -> Variant:
        outputs = {spec.name: index for index, spec in enumerate(self.outputs)}
        for node in self.graph.node:
            name = node.output[0]
            if name in outputs:
                self._place(name, "output", outputs[name], self._concrete(self.outputs[outputs[name]]))
            else:
                shape = self.shapes[node.input[0]]
                self.places[name], self.shapes[name] = ("workspace", 0, self._scratch(shape)), shape
            if (lower := getattr(self, f"_{node.op_type.lower()}", None)) is None:
                pytest.skip(f"kernels.cu has no {node.op_type}")
            lower(node)
        return Variant(
            target,
            self.batch,
            tuple(self._concrete(spec) for spec in self.inputs),
            tuple(self._concrete(spec) for spec in self.outputs),
            self.workspace,
            tuple(self.launches),
            tuple(self.table),
        )

    def _scratch(self, shape: Sequence[int], size: int = 4) -> int:
        offset = self.workspace
        self.workspace += -(-math.prod(shape) * size // 64) * 64
        return offset

    def _launch(self, kernel: str, threads: int, *arguments: str | int) -> None:
        """Make arguments of names and counts; a count beyond 31 bits, or of "copy", is 64 bits wide."""
        args = []
        for one in arguments:
            if isinstance(one, int):
                args.append(Argument("i64" if kernel == "copy" else "i32", 0, one))
            else:
                args.append(Argument(*self.places[one]))
        blocks = max(1, -(-threads // THREADS))
        self._add_launch(kernel, blocks, THREADS, args)

    def _add_launch(self, kernel: str, blocks: int, threads: int, args: list[Argument]) -> None:
        """Replace weights by entries of the table, for kernels that exist in that form."""
        weights = [place for place, one in enumerate(args) if one.kind == "weight"]
        if self.tables and len(weights) == 1 and f"{kernel}_table_{weights[0]}" in TABLE_KERNELS:
            (place,) = weights
            kernel = f"{kernel}_table_{place}"
            self.table.append(args[place])
            args[place] = Argument("table", 0, len(self.table) - 1)
        self.launches.append(Launch(0, kernel, (blocks, 1, 1), (threads, 1, 1), 0, tuple(args)))

    def _matmul(self, node: onnx.NodeProto) -> None:
        x, w = node.input
        *rows, inner = self.shapes[x]
        columns = self.shapes[w][1]
        self._launch(
            "matmul", math.prod(rows) * columns, x, w, node.output[0], math.prod(rows), inner, columns
        )

    def _add(self, node: onnx.NodeProto) -> None:
        self._add_two(*node.input, node.output[0])

    def _add_two(self, a: str, b: str, y: str) -> None:
        count, width = math.prod(self.shapes[a]), math.prod(self.shapes[b])
        self._launch("add", count, a, b, y, count, width)

    def _sum(self, node: onnx.NodeProto) -> None:
        first, second, *others = node.input
        self._add_two(first, second, node.output[0])
        for other in others:
            self._add_two(node.output[0], other, node.output[0])

    def _identity(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        (dtype,) = {spec.dtype for spec in self.inputs if spec.name == name}
        if dtype == onnx.TensorProto.STRING:
            pytest.skip("no kernel takes strings")
        size = tensor_bytes(dtype, list(self.shapes[name]))
        self._launch("copy", size, name, node.output[0], size)

    _reshape = _identity

    def _cast(self, node: onnx.NodeProto) -> None:
        name = node.input[0]
        kinds = [spec.dtype for spec in self.inputs if spec.name == name]
        if kinds != [onnx.TensorProto.INT64] or node.attribute[0].i != onnx.TensorProto.DOUBLE:
            pytest.skip("kernels.cu casts int64 to double only")
        count = math.prod(self.shapes[name])
        self._launch("to_double", count, name, node.output[0], count)

    def _loop(self, node: onnx.NodeProto) -> None:
        """Return the kernel of the matrix product in the suite."""
        count, _, weight = node.input
        width = self.shapes[weight][0]
        self.places["scratch"] = ("workspace", 0, self._scratch([width]))
        arguments = [Argument(*self.places[one]) for one in (count, weight, node.output[0], "scratch")]
        self._add_launch("power", 1, 1, [*arguments, Argument("i32", 0, width)])


def specs_of(values: Any) -> list[TensorSpec]:
    if any(not value.type.tensor_type.HasField("shape") for value in values):
        pytest.skip("a launch list gives every shape")
    return [
        TensorSpec(
            value.name,
            value.type.tensor_type.elem_type,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]
