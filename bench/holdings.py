"""Costs of the two ways to hold weights, at a LOAD and at executions, beside memcpy, the disk and ONNX
Runtime.

    python -m bench.holdings [--quick] [--json] [--rounds 20] [models ...]

Rows are by model and holding; the holdings take turns in every round, so that noise affects all alike.
Measured are a LOAD with the file in the OS's cache beside a memcpy of the same bytes; a LOAD without it
beside a sequential read from the disk; ONNX Runtime's own load (from the original file, and from an optimised
file with mapped weights); executions beside plain ONNX Runtime; and the first inferences after a LOAD. A row
also says whether registration chooses its holding.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxruntime

from bench import report
from bench.reference import Plain, relative_error
from clockwork.config import PAGE_BYTES
from clockwork.device.base import Completion, TensorView
from clockwork.device.cpu import CpuArena, fingerprint
from clockwork.formats.prepared import PACKED_DATA_FILE, WEIGHTS_FILE, PreparedModel
from clockwork.models import zoo
from clockwork.models.inputs import seeded
from clockwork.models.prepare import prepare
from clockwork.system.clock import now_ns
from clockwork.wire.messages import NEVER_NS, Infer, Load, Status, Unload
from clockwork.wire.tensors import decode_tensor, encode_array

SEED = 1
MODELS = ("resnet50", "transformer", "wide_mlp")
HOLDINGS = ("bound", "packed")
BATCHES = (1, 4, 8)
ACTION_S = 120.0
READ_BYTES = 8 << 20
TOLERANCE = 1e-3


class Site:
    """A model, prepared in both holdings, on a device with room for both; and its files for ONNX Runtime."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self.model = zoo.build(name, seed=SEED)
        package = store / "package"
        package.mkdir(parents=True)
        self.original = package / "model.onnx"
        onnx.save(self.model, self.original)
        self.optimised = store / "optimised.onnx"
        self.prepared: dict[str, PreparedModel] = {}
        self.directory: dict[str, Path] = {}
        for holding in HOLDINGS:
            place = store / holding
            self.prepared[holding] = prepare(
                package, place, fingerprint(1), PAGE_BYTES, {"holding": holding, "batch_max": max(BATCHES)}
            )
            self.directory[holding] = next((place / "prepared").iterdir())
        self.chosen = prepare(package, store / "auto", fingerprint(1), PAGE_BYTES, {}).holding
        options = _options()
        options.optimized_model_filepath = str(self.optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimised.data"
        )
        onnxruntime.InferenceSession(str(self.original), options, providers=["CPUExecutionProvider"])
        self.starts: dict[str, list[int]] = {}
        page = 0
        for holding, prepared in self.prepared.items():
            self.starts[holding] = list(itertools.accumulate(prepared.runs, initial=page))[:-1]
            page += sum(prepared.runs)
        (self.device,) = CpuArena(max(1, page) * PAGE_BYTES, PAGE_BYTES).devices
        self._ids = itertools.count(1)
        for holding in HOLDINGS:
            self.device.open(HOLDINGS.index(holding), str(self.directory[holding]))
        size = self.prepared["bound"].weights_bytes
        self._source, self._target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.device.close()

    def load(self, holding: str) -> int:
        """Nanoseconds of a LOAD."""
        model = HOLDINGS.index(holding)
        action = Load(next(self._ids), 0, model, 1, self.starts[holding], 0, NEVER_NS, 0)
        self.device.start(action)
        return self._end(action.action_id).execute[2]

    def unload(self, holding: str) -> None:
        action = Unload(next(self._ids), 0, HOLDINGS.index(holding), 1, 0, NEVER_NS, 0)
        self.device.start(action)
        self._end(action.action_id)

    def infer(self, holding: str, feeds: dict[str, Any]) -> tuple[int, list[Any]]:
        """Nanoseconds of the execution, and the outputs."""
        action = Infer(next(self._ids), 0, HOLDINGS.index(holding), 1, 0, NEVER_NS, 0, [])
        views = [
            TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, feeds.values())
        ]
        self.device.start(action, [views])
        done = self._end(action.action_id)
        return done.execute[2], [
            decode_tensor(tensor.dtype, tensor.shape, tensor.data) for tensor in done.parts[0]
        ]

    def _end(self, action_id: int) -> Completion:
        (done,) = self.device.wait([action_id], ACTION_S)
        if done.status != Status.OK:
            raise RuntimeError(f"{self.name}: {done.status.name}: {done.text}")
        return done

    def copy(self) -> None:
        """Copy the model's weights with memcpy."""
        ctypes.memmove(self._target.ctypes.data, self._source.ctypes.data, self._source.nbytes)

    def open_session(self, path: Path, optimise: bool) -> None:
        """Load the model with plain ONNX Runtime, as other servers do."""
        options = _options()
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def weights_file(self, holding: str) -> Path:
        name = WEIGHTS_FILE if holding == "bound" else PACKED_DATA_FILE
        return self.directory[holding] / name

    def evict(self, holding: str) -> None:
        """Make the OS drop the weights' file from its cache. The model must not be loaded."""
        self.device.forget(HOLDINGS.index(holding))  # a mapped file stays cached
        _evict(self.weights_file(holding))
        self.device.open(HOLDINGS.index(holding), str(self.directory[holding]))

    def feeds(self, batch: int) -> dict[str, Any]:
        rng = np.random.default_rng(SEED)
        prepared = self.prepared["bound"]
        shapes = [[batch, *shape[1:]] for shape in prepared.example]
        return {spec.name: seeded(spec.dtype, shape, rng) for spec, shape in zip(prepared.inputs, shapes)}


def measure(site: Site, rounds: int, batches: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    """A row for each holding. Raises AssertionError where an answer differs from plain ONNX Runtime's."""
    times: dict[Any, list[int]] = {}

    def note(key: Any, taken_ns: int) -> None:
        times.setdefault(key, []).append(taken_ns)

    for _ in range(rounds):
        note("memcpy", _timed(site.copy))
        for holding in HOLDINGS:
            note(("load", holding), site.load(holding))
            site.unload(holding)
    for _ in range(max(1, rounds // 4)):
        note("original", _timed(lambda: site.open_session(site.original, True)))
        note("optimised", _timed(lambda: site.open_session(site.optimised, False)))
        for holding in HOLDINGS:
            site.evict(holding)
            note(("disk", holding), _timed(functools.partial(read, site.weights_file(holding))))
            site.evict(holding)
            note(("cold", holding), site.load(holding))
            site.unload(holding)
    plain = Plain(site.model)
    worst = _measure_runs(site, plain, rounds, batches, note)
    for holding in HOLDINGS:
        _measure_first(site, holding, rounds, note)
    return [_row(site, holding, times, batches, worst) for holding in HOLDINGS]


def _measure_runs(
    site: Site, plain: Plain, rounds: int, batches: Sequence[int], note: Callable[[Any, int], None]
) -> float:
    worst = 0.0
    for holding in HOLDINGS:
        site.load(holding)
    for batch in batches:
        feeds = site.feeds(batch)
        for round_index in range(-2, rounds):
            begin_ns = now_ns()
            expected = plain.run(feeds)
            taken_ns = now_ns() - begin_ns
            if round_index >= 0:
                note(("plain", batch), taken_ns)
            for holding in HOLDINGS:
                taken_ns, found = site.infer(holding, feeds)
                if round_index >= 0:
                    note(("run", holding, batch), taken_ns)
                worst = max([worst, *(relative_error(ours, theirs) for ours, theirs in zip(found, expected))])
    for holding in HOLDINGS:
        site.unload(holding)
    if worst > TOLERANCE:
        raise AssertionError(f"{site.name}: an answer is off by {worst:.2e}")
    return worst


def _measure_first(site: Site, holding: str, rounds: int, note: Callable[[Any, int], None]) -> None:
    feeds = site.feeds(1)
    for _ in range(rounds):
        site.load(holding)
        taken = [site.infer(holding, feeds)[0] for _ in range(10)]
        site.unload(holding)
        note(("first", holding), taken[0])
        note(("tenth", holding), taken[9])


def _row(
    site: Site, holding: str, times: dict[Any, list[int]], batches: Sequence[int], worst: float
) -> dict[str, Any]:
    middle = {key: float(np.median(values)) for key, values in times.items()}
    prepared = site.prepared[holding]
    load = middle["load", holding]
    return {
        "model": site.name,
        "holding": prepared.holding,
        "chosen": prepared.holding == site.chosen,
        "MB": prepared.weights_bytes / 1e6,
        "resident_MB": prepared.resident_bytes / 1e6,
        "load_ms": load / 1e6,
        "/memcpy": load / middle["memcpy"],
        "cold_ms": middle["cold", holding] / 1e6,
        "of_disk_%": 100 * middle["disk", holding] / middle["cold", holding],
        "ort_x": middle["original"] / load,
        "ort_optimised_x": middle["optimised"] / load,
        **{f"run_{batch}": middle["run", holding, batch] / middle["plain", batch] for batch in batches},
        "first/tenth": middle["first", holding] / middle["tenth", holding],
        "error": worst,
    }


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _timed(work: Callable[[], object]) -> int:
    begin_ns = now_ns()
    work()
    return now_ns() - begin_ns


def _evict(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read(path: Path) -> None:
    """Read a file from the disk in large pieces, bypassing the OS's cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, READ_BYTES) as buffer:
            at = 0
            while count := os.preadv(descriptor, [buffer], at):
                at += count
                if count % 4096:  # the end of a file that is not aligned
                    break
    finally:
        os.close(descriptor)


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument(
        "models", nargs="*", default=MODELS, help=f"models of the zoo; default: {' '.join(MODELS)}"
    )
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    models, rounds = (("digits",), 2) if arguments.quick else (arguments.models, arguments.rounds)
    rows: list[dict[str, Any]] = []
    for name in models:
        with (
            tempfile.TemporaryDirectory(prefix="clockwork-bench-") as folder,
            Site(name, Path(folder)) as site,
        ):
            rows += measure(site, rounds)
    report.show("weights: loading and running", SEED, rows, {"rounds": rounds}, arguments.json)


if __name__ == "__main__":
    main()
