"""Compile an ONNX file to a program package (`clockwork compile`).

Each variant (target, batch size, set of shapes) is lowered in a child process of its own, several at a time.
The package is assembled here from the results, and tested: the program's host kernels must answer as ONNX
Runtime does.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from clockwork import config
from clockwork.config import models as bounds
from clockwork.errors import InvalidModel
from clockwork.formats.interface import is_named
from clockwork.formats.prepared import WEIGHTS_FILE, TensorSpec
from clockwork.formats.program import (
    CHECKS_FILE,
    HOST,
    Argument,
    Check,
    Program,
    ProgramWeight,
    TargetModules,
    Variant,
    offsets_of,
    write_checks,
    write_program,
)
from clockwork.formats.targets import most_lasting
from clockwork.models import batching
from clockwork.models import inputs as trial
from clockwork.models.answers import HALF_RELATIVE, QUANTISED_RELATIVE, RELATIVE, difference
from clockwork.models.compile import host, nvrtc
from clockwork.models.compile.freeze import Bucket, buckets, freeze
from clockwork.models.compile.padding import open_symbols, padded_inputs
from clockwork.models.compile.sizes import Dim, NotProven
from clockwork.models.compile.variant import MODULE_FILE, PTX_FILE, SOURCE_FILE, Built, Spec, Statistic
from clockwork.models.holdings import is_quantised
from clockwork.models.onnx_import import check_model, real_inputs
from clockwork.models.runtime import ModelSession, RunError, explain
from clockwork.models.split import operator
from clockwork.wire.messages import PRODUCT_DTYPES
from clockwork.wire.tensors import STRING, Array

BATCHES = (1, 2, 4, 8, 16)  # Default batch sizes

TOLERANCES: Mapping[str, float | None] = {"fp32": None, "tf32": 1e-2, "fp16": HALF_RELATIVE}
"""Largest permitted difference of an answer from ONNX Runtime's, by dtype of matrix products, relative to the
largest magnitude. None: the bound for rounding errors of fp32."""

ReportProgress = Callable[[str, int, int], None]
"""Called with (title of the step, done, total); from several threads."""

TUNING_DEVICE = "CUDA"  # tinygrad's name for the local GPU

CHILD_ENVIRONMENT = {
    "DEV": "NULL", "JIT": "2", "CCACHE": "0", "PARALLEL": "0", "NUM_CPU_THREADS": "1", "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "SPEC": "0", "CACHELEVEL": "0",
}  # fmt: skip
"""Environment of the child processes. Other variables that tinygrad reads are not passed on."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompileOptions:
    targets: tuple[str, ...]  # names such as "sm_80", or "host"
    batches: tuple[int, ...] = BATCHES
    shapes: Mapping[str, Sequence[Sequence[int]]] = dataclasses.field(default_factory=dict)
    batching: str = "auto"  # "auto", "on" or "off", as in a registration
    dtype: str = "fp32"  # dtype of matrix products, one of PRODUCT_DTYPES
    name: str = ""  # name of the model; "": the file's name
    examples: Sequence[Sequence[Array]] = ()  # real inputs, each in the order of the model's
    verify: bool = True  # run the program on this machine and compare
    jobs: int = 0  # child processes at a time; 0: one for each processor
    # time kernels on the local GPU to choose the fastest; results differ between compilations
    tune: bool = False
    pad: bool = True  # also accept inputs shorter than the compiled shapes, where a proof permits padding
    cache: Path | None = None  # directory of kernels, shared by models of equal architecture
    ptx: bool = True  # also store PTX of the newest target, for later GPUs
    sources: Path | None = None  # directory for the CUDA C of every module


@dataclasses.dataclass(frozen=True, slots=True)
class CompileSummary:
    """The result of a compilation, as a report to the user."""

    program: Program
    batching_note: str
    statistics: list[list[Statistic]]  # statistics of each launch of each variant of the program
    logs: list[str]  # the assembler's messages for each variant
    folded: int  # kernels that depend on weights alone and were run once, at compilation
    reused: int  # variants whose kernels came from the cache
    verified: str  # the comparison with ONNX Runtime; "" if that was not asked for
    padding_note: str  # whether shorter inputs are padded, or the reason why not; "": no open dimension


def is_installed() -> bool:
    """Whether tinygrad, from the extra [compile], is installed."""
    return importlib.util.find_spec("tinygrad") is not None


def require() -> None:
    """Raise InvalidModel, which names the package to install, unless tinygrad is installed."""
    if not is_installed():
        raise InvalidModel(
            "compiling needs tinygrad, which is not installed: pip install 'clockwork-serving[compile]'"
        )


def compile_model(
    model_path: Path, directory: Path, options: CompileOptions, progress: ReportProgress | None = None
) -> CompileSummary:
    """Make a program package of an ONNX file in ``directory``, which must not exist. Raises InvalidModel,
    OSError.

    The same file and options give the same bytes, on any machine with the same versions of the tools.
    """
    require()
    _check(options)
    directory = Path(directory)
    if directory.exists():
        raise InvalidModel(f"{directory} exists already")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".compiling-", dir=directory.parent))
    try:
        result = work / "package"
        summary = _Compilation(Path(model_path), result, work, options, progress).run()
        os.chmod(result, 0o755)
        os.rename(result, directory)
        return summary
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(options: CompileOptions) -> None:
    if not options.targets:
        raise InvalidModel("nothing to compile for: give an architecture")
    for target in options.targets:
        if target != HOST:
            nvrtc.check_target(target)
    if options.tune and set(options.targets) - {HOST} != {local_architecture()}:
        raise InvalidModel(
            f"tuning times kernels on a GPU of this machine: {local_architecture() or 'there is none'}, not "
            f"{', '.join(options.targets)}"
        )
    if options.dtype not in PRODUCT_DTYPES:
        raise InvalidModel(f"dtype {options.dtype!r} is none of {', '.join(PRODUCT_DTYPES)}")
    if not options.batches or not all(1 <= batch <= config.BATCH_SIZE_MAX for batch in options.batches):
        raise InvalidModel(f"batch sizes are 1 to {config.BATCH_SIZE_MAX}, not {list(options.batches)}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A variant to be lowered."""

    target: str
    batch: int
    shapes: list[tuple[int, ...]]
    frozen: Path
    work: Path
    sizes: tuple[int, ...]  # compiled size of each padded dimension

    @property
    def title(self) -> str:
        return f"{self.target} batch {self.batch}"


class _Compilation:
    """The compilation of an ONNX file to a program package."""

    def __init__(
        self,
        model_path: Path,
        result: Path,
        work: Path,
        options: CompileOptions,
        progress: ReportProgress | None,
    ) -> None:
        self._path = model_path
        self._result = result
        self._work = work
        self._weights = work / "weights"
        self._options = options
        self._tell = progress or (lambda title, done, total: None)

    def run(self) -> CompileSummary:
        self._tell("read", 0, 1)
        model = check_model(self._path)
        self._operators = list(dict.fromkeys(operator(node) for node in model.graph.node))
        self._describe(model)
        self._decide_batching(model)
        batches = sorted(set(self._options.batches)) if self._proof.batches else [1]
        self._buckets = buckets(self._inputs, self._options.shapes, self._proof.batches)
        targets = sorted(set(self._options.targets), key=lambda target: (target == HOST, len(target), target))
        self._lasting = most_lasting(targets) if self._options.ptx else ""
        self._decide_padding(batches)
        jobs = self._jobs(targets, batches)
        tried = [] if not self._options.verify or HOST in targets else self._jobs([HOST], batches[:1])
        self._tell("read", 1, 1)
        self._weights.mkdir()
        built = self._lower([*jobs, *tried])
        self._result.mkdir()
        program, kept = self._assemble(jobs, built[: len(jobs)], self._result)
        verified = ""
        if self._options.verify:
            directory = self._result
            if tried:
                directory = self._work / "tried"
                directory.mkdir()
                program_tried, _ = self._assemble(tried, built[len(jobs) :], directory)
            else:
                program_tried = program
            verified, checks = self._verify(program_tried, directory)
            if checks:
                write_checks(self._result, program, checks)
                program = write_program(
                    self._result, dataclasses.replace(program, files={**program.files, CHECKS_FILE: ""})
                )
        return CompileSummary(
            program,
            self._proof.note,
            [kept[index].statistics for index in range(len(jobs))],
            [kept[index].log for index in range(len(jobs))],
            max(variant.folded for variant in kept),
            sum(variant.reused for variant in kept),
            verified,
            self._padding_note,
        )

    # ----- the model --------------------------------------------------------------------------------

    def _describe(self, model: onnx.ModelProto) -> None:
        try:
            self._session = ModelSession(self._path, optimise=False)
        except RunError as error:
            raise InvalidModel(explain(str(error), self._path.name)) from None
        wanted = {value.name for value in real_inputs(model)}
        specs = [_spec(*tensor) for tensor in self._session.inputs]
        self._inputs = [spec for spec in specs if spec.name in wanted]
        self._outputs = [_spec(*output) for output in self._session.outputs]
        for spec in self._inputs:
            if spec.dtype == STRING:
                raise InvalidModel(
                    f"input {spec.name!r} is strings, which no kernel reads: it runs on CPU devices"
                )
            value = next(declared for declared in model.graph.input if declared.name == spec.name)
            if not value.type.tensor_type.HasField("shape"):
                raise InvalidModel(f"input {spec.name!r} has no declared shape, and cannot be compiled")

    def _sets(self) -> list[list[Array]]:
        """Inputs for trial runs: the examples, or generated ones in the first set of shapes."""
        if self._options.examples:
            return [list(example) for example in self._options.examples]
        (first, *_) = buckets(self._inputs, self._options.shapes, False)
        fixed = [
            TensorSpec(spec.name, spec.dtype, shape)
            for spec, shape in zip(self._inputs, first.shapes, strict=True)
        ]
        guess, _, error = trial.first_that_runs(fixed, self._session.run)
        if guess is None:
            raise InvalidModel(f"no made-up input could be run; give examples. The last: {error}")
        return [guess]

    def _decide_batching(self, model: onnx.ModelProto) -> None:
        self._examples = self._sets()
        reason = batching.declared_reason(self._inputs)
        if self._options.batching == "off":
            self._proof = batching.Proof(False, "switched off")
        elif reason:
            if self._options.batching == "on":
                raise InvalidModel(f"batching was asked for, but {reason}")
            self._proof = batching.Proof(False, reason)
        else:
            asked = self._options.batching == "on"
            meet = batching.why_rows_meet(model)
            self._proof = batching.prove_by_rows(self._session.run, self._examples, asked, meet)

    def _decide_padding(self, batches: Sequence[int]) -> None:
        """Decide whether variants accept shorter inputs, and write the frozen models for that if they do."""
        self._padded: tuple[str, ...] = ()
        self._output_dims: list[tuple[Dim, ...]] = []
        self._padding_note = ""
        symbols = [
            symbol for symbol in open_symbols(self._inputs, self._proof.batches)
            if max(self._open_sizes(bucket, [symbol])[0] for bucket in self._buckets) > 1
        ]  # fmt: skip
        if not symbols:
            self._padding_note = self._nameless()
            return
        names = " and ".join(map(repr, symbols))
        if not self._options.pad:
            self._padding_note = f"exact shapes only in {names}: padding is switched off"
            return
        try:
            for number, bucket in enumerate(self._buckets):
                for batch in batches:
                    frozen, shapes = self._frozen(number, batch), bucket.at(batch, self._proof.batches)
                    proven = freeze(self._path, shapes, frozen, symbols)
                    assert proven is not None
                    self._output_dims = proven.output_dims
                    if batch == batches[0]:
                        self._try_padding(bucket, frozen, symbols, shapes)
        except NotProven as error:
            for path in self._work.glob("frozen-*"):
                path.unlink()
            self._padding_note = f"exact shapes only in {names}: {error}"
            return
        self._padded = tuple(symbols)
        self._padding_note = f"padded in {names}: proven to be harmless, and tried"

    def _nameless(self) -> str:
        """Return a sentence about an open dimension without a name, which cannot be padded; "" if none."""
        for index, spec in enumerate(self._inputs):
            for axis, dim in enumerate(spec.shape):
                is_batch = self._proof.batches and not axis
                if (
                    dim == ""
                    and not is_batch
                    and max(bucket.shapes[index][axis] for bucket in self._buckets) > 1
                ):
                    return f"exact shapes only: dimension {axis} of input {spec.name!r} has no name"
        return ""

    def _open_sizes(self, bucket: Bucket, symbols: Sequence[str]) -> tuple[int, ...]:
        found: dict[str, int] = {}
        for spec, shape in zip(self._inputs, bucket.shapes, strict=True):
            found.update((str(dim), size) for dim, size in zip(spec.shape, shape, strict=True))
        return tuple(found[symbol] for symbol in symbols)

    def _try_padding(
        self, bucket: Bucket, frozen: Path, symbols: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        """Raise NotProven unless the padded model answers like the model, for several values of padding."""
        session = ModelSession(frozen, optimise=False)
        most = self._open_sizes(bucket, symbols)
        rng = np.random.default_rng(trial.SEED)
        tried = 0
        for share in PADDING_SHARES:
            sizes = dict(zip(symbols, (max(1, int(size * share)) for size in most), strict=True))
            inputs = [
                _resized(
                    array, [sizes.get(str(dim), size) for dim, size in zip(spec.shape, shape, strict=True)]
                )
                for spec, shape, array in zip(self._inputs, shapes, self._examples[0], strict=True)
            ]
            told = [np.array(size) for size in sizes.values()]
            zeros = [np.zeros(shape, array.dtype) for shape, array in zip(shapes, inputs, strict=True)]
            fillings = [
                zeros,
                [rng.choice(array.reshape(-1), zero.shape) if array.size else zero
                 for array, zero in zip(inputs, zeros, strict=True)],
                [np.full_like(zero, np.nan) if zero.dtype.kind == "f" else zero for zero in zeros],
            ]  # fmt: skip
            try:
                expected = self._session.run(inputs)
            except RunError:
                continue  # the model does not run inputs this short
            try:
                answers = [
                    session.run([*padded_inputs(inputs, shapes, filling), *told]) for filling in fillings
                ]
            except RunError as error:
                raise NotProven(f"the padded model fails: {error}") from None
            first, *others = (
                [_cut(array, dims, sizes) for array, dims in zip(answer, self._output_dims, strict=True)]
                for answer in answers
            )
            if text := difference(first, expected):
                raise NotProven(f"the padded model answers differently: {text}")
            if not all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
                       for other in others for left, right in zip(first, other, strict=True)):  # fmt: skip
                raise NotProven("values behind the end reach the answers")
            tried += 1
        if not tried:
            raise NotProven("the model runs no shorter input that could be tried")

    # ----- lowering ---------------------------------------------------------------------------------

    def _jobs(self, targets: Sequence[str], batches: Sequence[int]) -> list[_Job]:
        return [
            self._job(target, batch, number, bucket)
            for target in targets
            for number, bucket in enumerate(self._buckets)
            for batch in batches
        ]

    def _job(self, target: str, batch: int, number: int, bucket: Bucket) -> _Job:
        frozen = self._frozen(number, batch)
        shapes = bucket.at(batch, self._proof.batches)
        if not frozen.exists():
            freeze(self._path, shapes, frozen)
        work = self._work / f"{target}-{number}-{batch}"
        work.mkdir(exist_ok=True)
        return _Job(target, batch, shapes, frozen, work, self._open_sizes(bucket, self._padded))

    def _frozen(self, number: int, batch: int) -> Path:
        return self._work / f"frozen-{number}-{batch}.onnx"

    def _lower(self, jobs: Sequence[_Job]) -> list[Built]:
        """Run a child process for each job, several at a time. The first failure kills all of them."""
        # Tuning times kernels: a second child on the GPU would disturb the measurement.
        count = 1 if self._options.tune else self._options.jobs or len(os.sched_getaffinity(0))
        running: list[subprocess.Popen[str]] = []
        failed = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(self._lower_one, job, running, failed) for job in jobs]
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
            except BaseException:
                failed.set()  # before the kill: a child that starts later sees the flag
                for future in futures:
                    future.cancel()
                for child in running:
                    child.kill()
                raise
        return [future.result() for future in futures]

    def _lower_one(self, job: _Job, running: list[subprocess.Popen[str]], failed: threading.Event) -> Built:
        tune = TUNING_DEVICE if self._options.tune and job.target != HOST else ""
        # Cached modules have no source, so that a request for sources bypasses the cache.
        cache = "" if self._options.sources else str(self._options.cache or "")
        spec = Spec(
            str(job.frozen),
            job.target,
            str(self._weights),
            self._options.dtype,
            tune,
            cache,
            job.sizes,
            job.target == self._lasting,
        )
        path = spec.write(job.work)
        environment = bounds.bare_environment(
            PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
            **CHILD_ENVIRONMENT,
            # NVRTC initialises any CUDA driver on the machine. No GPU is shown to it, because a GPU may be
            # serving.
            **(nvrtc.places() if tune else {"CUDA_VISIBLE_DEVICES": ""}),
        )
        with (
            open(job.work / "errors", "w+", encoding="utf-8", errors="replace") as errors,
            subprocess.Popen(
                [sys.executable, "-m", "clockwork.models.compile.lower", str(path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            ) as child,
        ):  # fmt: skip
            running.append(child)
            if failed.is_set():
                child.kill()
            assert child.stdout is not None
            failure = ""
            error: OSError | None = None  # of the child's files
            for line in child.stdout:
                match json.loads(line):
                    case [int(done), int(total)]:
                        self._tell(job.title, done, total)
                    case {"errno": int(number), "error": str(text)}:
                        error = OSError(number, text)
                    case {"error": str(text)}:
                        failure = text
            status = child.wait()
            errors.seek(0)
            if error is not None:
                raise error
            if failure:
                raise InvalidModel(failure)
            if status:
                last = errors.read().strip().splitlines()[-1:] or [f"status {status}"]
                raise InvalidModel(f"compiling for {job.title} failed: {last[0][:500]}")
        built = Built.read(job.work)
        self._tell(job.title, 1, 1)
        return built

    # ----- assembling -------------------------------------------------------------------------------

    def _assemble(
        self, jobs: Sequence[_Job], built: Sequence[Built], directory: Path
    ) -> tuple[Program, list[Built]]:
        """Write the package of these variants into an empty directory."""
        known: dict[tuple[str, str], int] = {}  # weights by name and content
        weights: list[tuple[ProgramWeight, Path]] = []
        modules: dict[str, list[str]] = {}
        texts: list[str] = []  # PTX of each module that has it
        variants = []
        for job, variant in zip(jobs, built, strict=True):
            numbers = []
            for stored in variant.weights:
                key = (stored.name, stored.sha256)
                if key not in known:
                    known[key] = len(weights)
                    place = ProgramWeight(stored.dtype, tuple(stored.shape), 0, stored.bytes)
                    weights.append((place, self._weights / stored.sha256))
                numbers.append(known[key])
            number = self._module(job, modules.setdefault(job.target, []), texts, directory)
            variants.append(
                Variant(
                    job.target,
                    job.batch,
                    tuple(job.shapes),
                    tuple(tuple(shape) for shape in variant.output_shapes),
                    variant.workspace,
                    tuple(dataclasses.replace(launch, module=number) for launch in variant.launches),
                    tuple(_renumbered(entry, numbers) for entry in variant.table),
                )
            )
        offsets = offsets_of([place.bytes for place, _ in weights])
        with open(directory / WEIGHTS_FILE, "wb") as file:
            for offset, (_, source) in zip(offsets, weights, strict=True):
                file.seek(offset)
                file.write(source.read_bytes())
        program = Program(
            name=self._options.name or self._path.stem,
            inputs=tuple(self._inputs),
            outputs=self._declared_outputs(variants),
            batches=self._proof.batches,
            weights=tuple(
                dataclasses.replace(place, offset=offset)
                for offset, (place, _) in zip(offsets, weights, strict=True)
            ),
            targets={
                name: TargetModules(
                    0 if name == HOST else nvrtc.driver(),
                    tuple(paths),
                    tuple(texts) if name == self._lasting else (),
                    nvrtc.ptx_driver() if name == self._lasting else 0,
                )
                for name, paths in modules.items()
            },
            variants=tuple(variants),
            files={},
            tolerance=TOLERANCES[self._options.dtype],
            padded=self._padded,
        )
        if not weights:
            (directory / WEIGHTS_FILE).unlink()
        return write_program(directory, program), list(built)

    def _module(self, job: _Job, modules: list[str], texts: list[str], directory: Path) -> int:
        """Copy a job's module, and any PTX, into the package. Return the module's index in its target."""
        data = (job.work / MODULE_FILE).read_bytes()
        suffix = "so" if job.target == HOST else "cubin"
        path = f"modules/{job.target}-{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
        if path not in modules:
            modules.append(path)
            (directory / path).parent.mkdir(exist_ok=True)
            (directory / path).write_bytes(data)
            if job.target == self._lasting:
                texts.append(str(Path(path).with_suffix(".ptx")))
                shutil.copyfile(job.work / PTX_FILE, directory / texts[-1])
            if self._options.sources and job.target != HOST:
                self._options.sources.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(
                    job.work / SOURCE_FILE, self._options.sources / Path(path).with_suffix(".cu").name
                )
        return modules.index(path)

    def _declared_outputs(self, variants: Sequence[Variant]) -> tuple[TensorSpec, ...]:
        """Return the outputs. A dimension that is undeclared, or contradicts a variant, has no name."""
        specs = []
        for index, spec in enumerate(self._outputs):
            shapes = [variant.output_shapes[index] for variant in variants]
            rank = len(shapes[0])
            if any(len(shape) != rank for shape in shapes):
                raise InvalidModel(f"output {spec.name!r} has another rank in another shape")
            declared = spec.shape if len(spec.shape) == rank else ("",) * rank
            made: list[int | str] = []
            for axis in range(rank):
                sizes = {shape[axis] for shape in shapes}
                dim = self._output_dims[index][axis] if self._padded else 0
                if isinstance(dim, str):
                    made.append(dim)
                elif self._proof.batches and axis == 0:
                    made.append(declared[axis] if isinstance(declared[axis], str) else "")
                else:
                    made.append(sizes.pop() if len(sizes) == 1 else "")
            specs.append(TensorSpec(spec.name, spec.dtype, tuple(made)))
        return tuple(specs)

    # ----- testing ----------------------------------------------------------------------------------

    def _verify(self, program: Program, directory: Path) -> tuple[str, list[Check]]:
        """Compare the program with ONNX Runtime. Return a sentence for the report, and the inputs and outputs
        compared.

        Raises InvalidModel unless the answers are the same up to rounding.
        """
        executor = host.HostExecutor(program, directory)
        relative = QUANTISED_RELATIVE if is_quantised(self._operators) else RELATIVE
        relative = max(relative, TOLERANCES[self._options.dtype] or 0.0)
        worst = 0.0
        checks: list[Check] = []
        for inputs in [*self._examples, *self._shorter()]:
            rows = [array[:1] for array in inputs] if program.batches else list(inputs)
            if program.variant(HOST, [array.shape for array in rows]) is None:
                continue
            try:
                expected = self._session.run(rows)
            except RunError as error:
                raise InvalidModel(f"the model fails on its example: {error}") from None
            actual = executor.run(rows)
            text = difference(actual, expected, relative)
            if text:
                raise InvalidModel(f"the compiled program answers differently from the model: {text}")
            worst = max(
                worst,
                *(_relative_difference(left, right) for left, right in zip(actual, expected, strict=True)),
            )
            checks.append((rows, expected))
        if not checks:
            return "not compared: no example has a compiled shape", []
        return f"{len(checks)} compared, apart by {worst:.1e} of the largest value at most", checks

    def _shorter(self) -> list[list[Array]]:
        """Return the first example cut short, as a check of padding; no examples if nothing is padded."""
        if not self._padded:
            return []
        most = dict(zip(self._padded, self._open_sizes(self._buckets[0], self._padded), strict=True))
        made = []
        for spec, shape, array in zip(self._inputs, self._buckets[0].shapes, self._examples[0], strict=True):
            sizes = [max(1, most[str(dim)] * 3 // 4) if dim in most else size
                     for dim, size in zip(spec.shape, shape, strict=True)]  # fmt: skip
            made.append(_resized(array, sizes))
        try:
            self._session.run(made)
        except RunError:
            return []
        return [made]


PADDING_SHARES = (0.02, 0.45, 0.75, 0.99, 1.0)
"""Input sizes at which padding is tested, as fractions of the compiled size."""


def _spec(name: str, dtype: int, shape: Sequence[int | str]) -> TensorSpec:
    """Return a tensor's declaration, in which a generic dimension name (formats.interface.is_named) becomes
    ""."""
    return TensorSpec(
        name, dtype, tuple(dim if isinstance(dim, int) or is_named(dim) else "" for dim in shape)
    )


def _resized(array: Array, shape: Sequence[int]) -> Array:
    """Return an array of this shape: elements are cut off or repeated along each axis."""
    for axis, size in enumerate(shape):
        if not array.shape[axis] and size:
            return np.zeros(shape, array.dtype)
        array = np.take(array, np.arange(size) % max(1, array.shape[axis]), axis)
    return array


def _cut(array: Array, dims: Sequence[Dim], sizes: Mapping[str, int]) -> Array:
    """Return the part of a padded output that lies within the true sizes."""
    return array[tuple(slice(sizes.get(dim) if isinstance(dim, str) else None) for dim in dims)]


def _relative_difference(actual: Array, expected: Array) -> float:
    if actual.dtype.kind not in "f" or not actual.size:
        return 0.0
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    scale = float(np.abs(right[finite]).max(initial=0.0))
    return float(np.abs(left[finite] - right[finite]).max(initial=0.0)) / scale if scale else 0.0


def _renumbered(entry: Argument, weights: Sequence[int]) -> Argument:
    """Return a table entry with the weight's index in its variant replaced by the index in the program."""
    return dataclasses.replace(entry, index=weights[entry.index]) if entry.kind == "weight" else entry


@functools.cache
def local_architecture() -> str:
    """The architecture of this machine's first GPU ("sm_90"), or "" without a usable GPU."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    capability = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    for attribute, value in zip(capability, (major, minor), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return ""
    return f"sm_{major.value}{minor.value}"
