"""Lower a variant of a program: make kernels and a launch list from an ONNX file with fixed shapes.

This module is the main program of a child process for a target, batch size and set of shapes. Only that
process imports tinygrad, which keeps its state in globals, takes its settings from the environment, and
numbers objects as it creates them. A fresh process with a fixed environment gives the same bytes for the same
input.

tinygrad makes the schedule (which operations share a kernel, and what each reads and writes) and the source
of each kernel. No device is opened; kernels are compiled by clockwork.models.compile's own nvrtc and host
modules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from tinygrad import Tensor, dtypes
from tinygrad.codegen import to_program
from tinygrad.codegen.opt import tc
from tinygrad.device import Compiler, Device
from tinygrad.dtype import DType, float_to_bf16
from tinygrad.engine.realize import capturing, get_call_arg_uops
from tinygrad.helpers import ALLOW_TF32, Context, Target
from tinygrad.renderer.cstyle import ClangRenderer, CUDARenderer, base_rewrite
from tinygrad.schedule.memory import memory_plan_rewrite
from tinygrad.uop.ops import AddrSpace, Ops, PatternMatcher, ProgramInfo, UOp, UPat

from clockwork.errors import ClockworkError, InvalidModel
from clockwork.formats.program import HOST, Argument, Launch
from clockwork.models.compile import host, nvrtc
from clockwork.models.compile.interpret import (
    CODES,
    DEVICE,
    DTYPES_BY_CODE,
    Runner,
    check_operators,
    use_half,
)
from clockwork.models.compile.table import through_table
from clockwork.models.compile.variant import (
    BUILT_FILE,
    MODULE_FILE,
    PTX_FILE,
    SIZE_PREFIX,
    SOURCE_FILE,
    Built,
    KernelSource,
    Spec,
    Statistic,
    StoredWeight,
)
from clockwork.models.compile.widths import widths_of
from clockwork.models.onnx_import import read_model
from clockwork.wire.tensors import Array

SIZE_VARIABLE = "size"
"""Prefix of tinygrad's variable for the true size of an open dimension; the number of its symbol follows."""

KERNELS = 4  # Version of the code generation. A new version invalidates cached kernels.
_PRODUCT = re.compile(r"mma\.sync\.[a-z0-9.]+\.f32\.(f16|tf32)\.")
TUNE_WIDTH = 4  # Beam width of the search for a fast kernel


# Rewrites a float16 product that is then cast to float32 into a float32 product. Like a product on tensor
# cores, the result is exact.
_EXACT_PRODUCTS = PatternMatcher(
    [
        (
            (UPat.var("x", dtypes.half) * UPat.var("y", dtypes.half)).cast(dtypes.float),
            lambda x, y: x.cast(dtypes.float) * y.cast(dtypes.float),
        )
    ]
)


class _CudaRenderer(CUDARenderer):
    """Renders CUDA C for an architecture, without compiling it."""

    extra_matcher = _EXACT_PRODUCTS + CUDARenderer.extra_matcher

    def __init__(self, target: Target) -> None:
        super(CUDARenderer, self).__init__(target)
        # Tensor cores for float32 truncate operands to 10 bits of mantissa (TF32).
        cores = tc.get_cuda(target.arch)
        self.tensor_cores = [core for core in cores if core.dtype_in != dtypes.float or ALLOW_TF32]
        self.compiler = Compiler()


class _ScalarCudaRenderer(_CudaRenderer):
    """Renders CUDA C without vector accesses: a class, because tinygrad caches kernels by class."""

    supports_float4 = False


class _HostRenderer(ClangRenderer):
    """Renders C without vector accesses, for any C compiler."""

    has_threads = False
    supports_float4 = False
    extra_matcher = _EXACT_PRODUCTS + ClangRenderer.extra_matcher
    type_map: ClassVar[dict[DType, str]] = {
        **ClangRenderer.type_map,
        dtypes.half: "_Float16",
        dtypes.bfloat16: "unsigned short",
    }
    string_rewrite = (
        PatternMatcher(
            [
                (
                    UPat(Ops.BITCAST, name="x"),
                    lambda ctx, x: (
                        f"((union {{ {ctx.render_type(x.src[0])} from; {ctx.render_type(x)} to; }})"
                        f"{{ .from = {ctx[x.src[0]]} }}).to"
                        if x.addrspace not in (AddrSpace.GLOBAL, AddrSpace.LOCAL)
                        else None
                    ),
                ),
                (
                    UPat.cvar("c").cast(dtypes.bfloat16),  # a bfloat16 is held as its 16 bits
                    lambda ctx, c: f"{struct.unpack('I', struct.pack('f', float_to_bf16(c.val)))[0] >> 16}u",
                ),
            ]
        )
        + base_rewrite
    )

    def __init__(self, target: Target) -> None:
        super(ClangRenderer, self).__init__(target)
        self.compiler = Compiler()


def _renderer(target: str, scalar: bool = False) -> Any:
    """Return the renderer of a target. scalar: without vector accesses; always so for the host."""
    if target == HOST:
        return _HostRenderer(Target(DEVICE, "CLANG", "x86_64"))
    # Tinygrad expects a number, without the suffix for features of a single architecture
    architecture = target.rstrip("af")
    return (_ScalarCudaRenderer if scalar else _CudaRenderer)(Target(DEVICE, "CUDA", architecture))


# ----- from the graph to calls ---------------------------------------------------------------------


class _Recorder:
    """Records the schedule that tinygrad would execute."""

    def __init__(self) -> None:
        self.calls: list[UOp] = []

    def add_linear(self, linear: UOp, variables: dict[str, int]) -> None:
        unknown = [name for name in variables if not name.startswith(SIZE_VARIABLE)]
        if unknown:
            raise InvalidModel(f"the shape depends on {', '.join(unknown)}, which only running it tells")
        self.calls.extend(linear.src)


@dataclasses.dataclass(slots=True)
class _Place:
    """An argument of a call: a buffer, and the offset in bytes into it."""

    buffer: UOp
    offset: int


def _place(uop: UOp) -> _Place:
    offset = 0
    while uop.op is not Ops.BUFFER:
        if uop.op is Ops.SHRINK:
            start = uop.src[1]
            assert start.op is Ops.CONST, start
            offset += int(start.arg if not hasattr(start, "val") else start.val) * uop.dtype.itemsize
        elif uop.op not in (Ops.BITCAST, Ops.RESHAPE):
            raise AssertionError(f"an argument is a {uop.op}")
        uop = uop.src[0]
    return _Place(uop, offset)


def _written(call: UOp) -> list[UOp]:
    """The buffers that a call writes."""
    body, arguments = call.src[0], get_call_arg_uops(call)
    if body.op is Ops.COPY:
        return [_place(arguments[0]).buffer]
    outputs = ProgramInfo.from_sink(body).outs
    assert outputs, "a kernel without a store"
    return [_place(arguments[index]).buffer for index in dict.fromkeys(outputs)]


class _Lowering:
    """The lowering of a file to a variant."""

    def __init__(self, spec: Spec, tell: Callable[[int, int], None]) -> None:
        self._spec = spec
        self._tell = tell
        path = Path(spec.model)
        model = read_model(path)
        check_operators(model)
        self._runner = Runner(model, path.parent, spec.dtype == "fp16")
        self._renderer = _renderer(spec.target)
        self._tuned: dict[UOp, UOp] = {}
        self._capture(model)

    def _capture(self, model: onnx.ModelProto) -> None:
        runner = self._runner
        self._inputs: dict[UOp, int] = {}
        feed = {}
        for index, (name, declared) in enumerate(runner.graph_inputs.items()):
            if name.startswith(SIZE_PREFIX):
                feed[name] = self._true_size(int(name.removeprefix(SIZE_PREFIX)))
                continue
            feed[name] = Tensor.empty(*declared.shape, dtype=declared.dtype, device=DEVICE).realize()
            self._inputs[feed[name].uop.base] = index
        recorder = _Recorder()
        capturing.append(recorder)
        try:
            answers = runner.run(feed)
            outputs = []
            for value in model.graph.output:
                kind = DTYPES_BY_CODE.get(value.type.tensor_type.elem_type)
                if kind is None:
                    raise InvalidModel(f"output {value.name!r} has a type that cannot be compiled")
                outputs.append(answers[value.name].cast(kind).contiguous())
            Tensor.realize(*outputs)
            taken = {*self._inputs, *runner.weights}
            # Each output gets a whole buffer, shared with no other tensor.
            for index, output in enumerate(outputs):
                if output.uop.base.op is not Ops.BUFFER or output.uop.base in taken:
                    outputs[index] = output.clone().realize()
                taken.add(outputs[index].uop.base)
        finally:
            capturing.clear()
        self._outputs = {output.uop.base: index for index, output in enumerate(outputs)}
        assert len(self._outputs) == len(outputs), "two outputs share a buffer"
        self._output_shapes = [list(map(int, output.shape)) for output in outputs]
        self._split(recorder.calls)

    def _true_size(self, number: int) -> Tensor:
        """Return the tensor of an open dimension's true size, which is a parameter of each launch."""
        most = self._spec.sizes[number]
        return Tensor(UOp.variable(f"{SIZE_VARIABLE}{number}", 1, most).bind(most)).cast(dtypes.int64)

    def _split(self, calls: Sequence[UOp]) -> None:
        """Divide the calls into launches, which depend on inputs, and calls on weights alone (see _fold)."""
        moving = {*self._inputs}
        self._launched: list[UOp] = []
        self._once: list[UOp] = []
        for call in calls:
            written = _written(call)
            touched = {_place(uop).buffer for uop in get_call_arg_uops(call)}
            told = call.src[0].op is Ops.SINK and bool(ProgramInfo.from_sink(call.src[0]).vars)
            if not told and moving.isdisjoint(touched) and self._outputs.keys().isdisjoint(written):
                self._once.append(call)
            else:
                self._launched.append(call)
                moving.update(written)

    # ----- folding ----------------------------------------------------------------------------------

    def _fold(self) -> None:
        """Run the kernels that depend on weights alone, on this machine. Their results become weights."""
        self._derived: dict[UOp, tuple[str, Array]] = {}
        if not self._once:
            return
        renderer = _renderer(HOST)
        kernels: dict[UOp, KernelSource] = {}
        for call in self._once:
            body = call.src[0]
            if body.op is Ops.SINK and body not in kernels:
                kernels[body] = _kernel(to_program(body, renderer), len(kernels))
        code = host.HostModule(
            host.build([kernel.source for kernel in kernels.values()], [*kernels.values()])
        )
        for call in self._once:
            body, places = call.src[0], [_place(uop) for uop in get_call_arg_uops(call)]
            target, written = places[0], _written(call)
            key = hashlib.sha256(body.key)
            arrays = []
            for place in places:
                if place.buffer in written:
                    size = int(place.buffer.max_numel())
                    kept = self._derived.get(place.buffer)
                    array = kept[1] if kept else np.zeros(size * place.buffer.dtype.itemsize, np.uint8)
                    arrays.append(array)
                else:
                    name, array = self._constant(place.buffer)
                    key.update(name.encode() + b"\0")
                    arrays.append(array.reshape(-1).view(np.uint8))
            if body.op is Ops.COPY:
                arrays[0][target.offset :][: arrays[1].nbytes] = arrays[1]
            else:
                kernel = kernels[body]
                program = to_program(body, renderer)
                code.run(
                    kernel.name,
                    kernel.grid,
                    kernel.block,
                    [
                        host.pointer(arrays[index].ctypes.data + places[index].offset)
                        for index in program.arg.globals
                    ],
                )
            for place, array in zip(places, arrays):
                if place.buffer in written:
                    self._derived[place.buffer] = (f"made of {key.hexdigest()[:32]}", array)

    def _constant(self, buffer: UOp) -> tuple[str, Array]:
        """Return a weight's name and data. The name is the same in every variant with that weight."""
        if buffer in self._derived:
            return self._derived[buffer]
        if buffer in self._runner.weights:
            return self._runner.weights[buffer], np.ascontiguousarray(self._runner.data(buffer))
        held = buffer.buffer  # constants that tinygrad's implementation of an operator made
        data = np.frombuffer(bytes(held.as_memoryview()), np.uint8)
        return f"numbers {hashlib.sha256(data.tobytes()).hexdigest()[:32]}", data

    # ----- launches -----------------------------------------------------------------------------------

    def run(self, directory: Path) -> Built:
        """Write the module into ``directory``, and the weights into the directory of the Spec."""
        with Context(NOOPT=1):  # the same numbers for every target
            self._fold()
        held = {*self._inputs, *self._outputs, *self._runner.weights, *self._derived}
        linear = memory_plan_rewrite(UOp(Ops.LINEAR, src=tuple(self._launched)), held)
        known = Path(self._spec.cache) / self._key(linear) if self._spec.cache else None
        if known is not None and (known / BUILT_FILE).exists():
            return self._reuse(known, linear, directory)
        built = self._build(linear, directory)
        if known is not None:
            _publish(directory, self._files(), built, known)
        return built

    def _lower(self, body: UOp, scalar: bool = False) -> UOp:
        """Make a kernel by tinygrad's heuristics, or tune it by timing. scalar: without vector accesses."""
        if scalar:
            return to_program(body, _renderer(self._spec.target, scalar=True))
        if not self._spec.tune or self._spec.target == HOST:
            return to_program(body, self._renderer)
        if body not in self._tuned:
            # The search returns a list of transformations, by which the kernel is then made for the target.
            search = dataclasses.replace(body.arg, beam=TUNE_WIDTH)
            found = to_program(body.replace(arg=search), Device[self._spec.tune].renderer)
            chosen = dataclasses.replace(body.arg, opts_to_apply=found.src[0].arg.applied_opts)
            self._tuned[body] = to_program(body.replace(arg=chosen), self._renderer)
        return self._tuned[body]

    def _key(self, linear: UOp) -> str:
        """Return a hash that is equal for models with equal kernels and launches, whatever their weights."""
        constants: dict[UOp, int] = {}
        spec = self._spec
        text = [
            str(KERNELS),
            spec.target,
            spec.dtype,
            spec.tune,
            str(spec.sizes),
            str(spec.ptx),
            *_versions(),
            str(self._output_shapes),
        ]
        for call in linear.src:
            text.append(call.src[0].key.hex())
            for uop in get_call_arg_uops(call):
                place = _place(uop)
                if place.buffer in self._inputs:
                    role = ("input", self._inputs[place.buffer])
                elif place.buffer in self._outputs:
                    role = ("output", self._outputs[place.buffer])
                else:
                    is_weight = place.buffer in self._derived or place.buffer in self._runner.weights
                    role = (
                        "weight" if is_weight else "workspace",
                        constants.setdefault(place.buffer, len(constants)),
                    )
                text.append(f"{role} {place.offset} {int(place.buffer.max_numel())} {place.buffer.dtype}")
        return hashlib.sha256("\n".join(text).encode()).hexdigest()

    def _files(self) -> list[str]:
        return [MODULE_FILE, PTX_FILE] if self._spec.ptx else [MODULE_FILE]

    def _reuse(self, known: Path, linear: UOp, directory: Path) -> Built:
        """Take the module and launches of a model of equal architecture from the cache, and write this
        model's weights."""
        built = Built.read(known)
        for name in self._files():
            shutil.copyfile(known / name, directory / name)
        weights = []
        for weight in built.weights:
            buffer = _place(get_call_arg_uops(linear.src[weight.call])[weight.place]).buffer
            weights.append(self._store(buffer, weight.call, weight.place))
        return dataclasses.replace(built, weights=weights, folded=len(self._once), reused=True)

    def _build(self, linear: UOp, directory: Path) -> Built:
        arenas: dict[UOp, int] = {}
        weights: dict[UOp, int] = {}
        stored: list[StoredWeight] = []
        kernels: dict[tuple[UOp, bool, tuple[int, ...]], KernelSource] = {}
        table: dict[Argument, int] = {}
        launches: list[Launch] = []
        statistics: list[Statistic] = []

        def argument(call: int, at: int, uop: UOp) -> Argument:
            place = _place(uop)
            buffer, offset = place.buffer, place.offset
            if buffer in self._inputs:
                return Argument("input", self._inputs[buffer], offset)
            if buffer in self._outputs:
                return Argument("output", self._outputs[buffer], offset)
            if buffer in self._derived or buffer in self._runner.weights:
                if buffer not in weights:
                    weights[buffer] = len(stored)
                    stored.append(self._store(buffer, call, at))
                return Argument("weight", weights[buffer], offset)
            if buffer not in arenas:
                arenas[buffer] = sum(
                    -(-int(arena.max_numel()) * arena.dtype.itemsize // 256) * 256 for arena in arenas
                )
            return Argument("workspace", 0, arenas[buffer] + offset)

        def entry(argument: Argument) -> Argument:
            return Argument("table", 0, table.setdefault(argument, len(table)))

        for done, call in enumerate(linear.src):
            self._tell(done, len(linear.src) + 1)
            body = call.src[0]
            if body.op is not Ops.SINK:
                raise InvalidModel(f"a {body.op.name.lower()} between kernels cannot be compiled")
            places = get_call_arg_uops(call)
            # The offset of a view may be unaligned for vector accesses: then the scalar kernel is used.
            for scalar in (False, True):
                program = self._lower(body, scalar)
                pointers = [argument(done, index, places[index]) for index in program.arg.globals]
                constant = tuple(place for place, pointer in enumerate(pointers) if pointer.kind == "weight")
                key = body, scalar, constant
                kernel = kernels.get(key) or through_table(_kernel(program, len(kernels)), constant)
                if all(
                    int(pointer.value) % width == 0
                    for pointer, width in zip(pointers, kernel.widths, strict=True)
                ):
                    break
            else:
                raise InvalidModel(
                    f"kernel {kernel.name} would read {pointers} at addresses that are not aligned"
                )
            kernels[key] = kernel
            arguments = [
                *(entry(pointer) if pointer.kind == "weight" else pointer for pointer in pointers),
                *(entry(Argument("size", 0, _number(variable))) for variable in program.arg.vars),
            ]
            launches.append(
                Launch(0, kernel.name, kernel.grid, kernel.block, 0, tuple(arguments), kernel.widths)
            )
            estimates = program.src[0].arg.estimates
            product = _PRODUCT.search(kernel.source)
            statistics.append(
                Statistic(kernel.name, int(estimates.ops), int(estimates.mem), product[1] if product else "")
            )
        self._tell(len(linear.src), len(linear.src) + 1)
        sources = [kernel.source for kernel in kernels.values()]
        if self._spec.target == HOST:
            module, log = host.build(sources, [*kernels.values()]), ""
        else:
            (directory / SOURCE_FILE).write_text(nvrtc.joined(sources))
            module, ptx, log = nvrtc.build(sources, self._spec.target)
            if self._spec.ptx:
                (directory / PTX_FILE).write_bytes(ptx)
        (directory / MODULE_FILE).write_bytes(module)
        workspace = sum(-(-int(arena.max_numel()) * arena.dtype.itemsize // 256) * 256 for arena in arenas)
        return Built(
            self._output_shapes,
            workspace,
            launches,
            [*table],
            stored,
            statistics,
            log,
            len(self._once),
            False,
        )

    def _store(self, buffer: UOp, call: int, place: int) -> StoredWeight:
        name, array = self._constant(buffer)
        code = CODES[buffer.dtype.scalar() if hasattr(buffer.dtype, "scalar") else buffer.dtype]
        shape = list(array.shape) if buffer in self._runner.weights else [int(buffer.max_numel())]
        data = array.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        path = Path(self._spec.weights) / digest
        if not path.exists():  # another variant may have stored the same weight
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
        return StoredWeight(name, code, shape, array.nbytes, digest, call, place)


def _versions() -> list[str]:
    """Return the versions of the packages that determine the kernels, besides the model."""
    packages = ("tinygrad", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc", "clockwork-serving")
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _publish(directory: Path, files: Sequence[str], built: Built, known: Path) -> None:
    """Put a module and its launches, without weights, into the cache for models of equal architecture."""
    known.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=known.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        for name in files:
            shutil.copyfile(directory / name, made / name)
        built.write(made)
        with contextlib.suppress(OSError):  # another process has stored the same files
            os.rename(made, known)


def _kernel(program: UOp, number: int) -> KernelSource:
    """Make a kernel with a unique name, because tinygrad may give several kernels the same name."""
    info = program.arg
    (source,) = [source.arg for source in program.src if source.op is Ops.SOURCE]
    name = f"k{number}_{info.function_name}"[:200]
    source, count = re.subn(rf"\b{re.escape(info.function_name)}\(", f"{name}(", source)
    assert count == 1, "a kernel names itself once"

    def three(sizes: Sequence[Any] | None) -> tuple[int, int, int]:
        sides = [int(size) for size in sizes or ()]
        x, y, z = (*sides, 1, 1, 1)[:3]
        return x, y, z

    sizes = three(info.global_size), three(info.local_size)
    return KernelSource(name, source, *sizes, len(info.globals), len(info.vars), widths_of(source))


def _number(variable: UOp) -> int:
    """Return the number of the open dimension whose true size this variable is."""
    return int(variable.arg.name.removeprefix(SIZE_VARIABLE))


def _settings(spec: Spec) -> dict[str, int]:
    """Return tinygrad's settings. Without TC_OPT=2, tinygrad uses no tensor cores for convolutions."""
    return {
        "TC_OPT": 0 if spec.dtype == "fp32" else 2,
        "ALLOW_TF32": int(spec.dtype == "tf32"),
        "NOOPT": int(spec.target == HOST),
    }


def main(path: str) -> int:
    """Run the child process: read a Spec, write a Built, and report progress on stdout."""
    spec = Spec.read(Path(path))

    def tell(done: int, total: int) -> None:
        print(json.dumps([done, total]), flush=True)

    directory = Path(path).parent
    if spec.dtype == "fp16":
        use_half()
    try:
        # Host kernels are not optimised. Their lowering takes a third of the time then, and host kernels only
        # run a few times, as a test.
        with Context(**_settings(spec)):
            _Lowering(spec, tell).run(directory).write(directory)
    except ClockworkError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    except OSError as error:
        if error.errno is None:  # a library's, which says nothing of files
            raise
        place = f": {error.filename}" if error.filename else ""
        print(json.dumps({"errno": error.errno, "error": f"{error.strerror}{place}"}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
