"""Measure prepared models: the time of a load, and of executions at rising batch sizes."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clockwork.config import PREPARATION_LIMIT_NS
from clockwork.config import models as bounds
from clockwork.device.base import Completion, TensorView
from clockwork.device.cpu import CpuArena
from clockwork.device.cpu import fingerprint as device_fingerprint
from clockwork.errors import ConfigError
from clockwork.formats.prepared import PROGRAM_FILE, PreparedModel, WeightSpec
from clockwork.models.answers import tile
from clockwork.models.inputs import timed_shape
from clockwork.models.runtime import Limit, RunError
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire.messages import NEVER_NS, Infer, Load, Status, Unload
from clockwork.wire.tensors import Array, decode_tensor, encode_array

Execution = tuple[int, Sequence[Array]]  # An execution on a bench: the index of a model, and its inputs


class Bench:
    """A CPU device with prepared models and pages for all. With one thread, times are processor time."""

    def __init__(
        self, fingerprint: str, page_bytes: int, directories: Sequence[Path], *, by_clock: bool = False
    ) -> None:
        """directories: of the prepared models, inside a store. by_clock: no times are processor time. Raises
        ConfigError."""
        models = [PreparedModel.read(directory) for directory in directories]
        self.rowless = models[0].rowless() if models else ()
        """For each input, whether it is optional. All models are holdings of the same model."""
        pages = sum(sum(prepared.runs) for prepared in models)
        threads = threads_of(fingerprint)
        (self._device,) = CpuArena(
            max(1, pages) * page_bytes, page_bytes, threads, cpu_time=threads == 1 and not by_clock
        ).devices
        self._ids = itertools.count(1)
        self.workspace_bytes = 1
        """Largest workspace of an execution so far, in bytes: at least 1, because 0 means "not measured"."""
        self._starts: list[list[int]] = []
        try:
            page = 0
            for index, (directory, prepared) in enumerate(zip(directories, models)):
                self._starts.append(list(itertools.accumulate(prepared.runs, initial=page))[:-1])
                page += sum(prepared.runs)
                self._device.open(index, str(directory))
        except BaseException:
            self.close()
            raise

    def load(self, index: int) -> int:
        """Load a model. Returns the duration in ns. Raises RunError."""
        action = Load(next(self._ids), 0, index, index + 1, self._starts[index], 0, NEVER_NS, 0)
        self._device.start(action)
        return self._finish(action.action_id).execute[2]

    def unload(self, index: int) -> None:
        action = Unload(next(self._ids), 0, index, index + 1, 0, NEVER_NS, 0)
        self._device.start(action)
        self._finish(action.action_id)

    def run(self, index: int, inputs: Sequence[Array]) -> tuple[list[Array], int]:
        """Execute a model. Returns the outputs, and the time of the execution in ns. Raises RunError."""
        action = Infer(next(self._ids), 0, index, index + 1, 0, NEVER_NS, 0, [])
        views = [TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, inputs)]
        self._device.start(action, [views])
        done = self._finish(action.action_id)
        self.workspace_bytes = max(self.workspace_bytes, self._device.workspace_peak_bytes)
        return [
            decode_tensor(tensor.dtype, tensor.shape, tensor.data) for tensor in done.parts[0]
        ], done.execute[2]

    def _finish(self, action_id: int) -> Completion:
        with Limit(lambda: self._device.end_run(action_id)):
            (done,) = self._device.wait([action_id], PREPARATION_LIMIT_NS / 1e9)
        if done.status != Status.OK:
            raise RunError(done.text or done.status.name)
        return done

    def close(self) -> None:
        self._device.close()


def threads_of(fingerprint: str) -> int:
    """The number of threads of CPU devices with this fingerprint. Raises ConfigError."""
    for threads in range(1, max(bounds.THREADS_MAX, os.cpu_count() or 1) + 1):
        if device_fingerprint(threads) == fingerprint:
            return threads
    raise ConfigError(f"no CPU device of this machine has the fingerprint {fingerprint!r}")


def load_time(bench: Bench, index: int) -> int:
    """Median duration of a load in ns; leaves the model loaded."""
    times: list[int] = []
    give_up = time.monotonic() + bounds.POINT_SECONDS
    while len(times) < bounds.LOADS_MIN or (len(times) < bounds.LOADS_MAX and time.monotonic() < give_up):
        if times:
            bench.unload(index)
        times.append(bench.load(index))
    return round(statistics.median(times))


def execution_time(
    bench: Bench, index: int, inputs: Sequence[Array], seconds: float = bounds.POINT_SECONDS
) -> int:
    """Return the median time of an execution in ns, after a warm-up. seconds: to measure. Raises RunError."""
    bench.run(index, inputs)
    times: list[int] = []
    give_up = time.monotonic() + seconds
    while len(times) < bounds.RUNS_MIN or (len(times) < bounds.RUNS_MAX and time.monotonic() < give_up):
        times.append(max(1, bench.run(index, inputs)[1]))
    return round(statistics.median(times))


def refusal_time(bench: Bench, index: int, inputs: Sequence[Array]) -> int:
    """Return the least wall time in ns until a model fails on inputs. Failures report no times."""
    times = []
    for _ in range(bounds.RUNS_MIN):
        begun_ns = time.perf_counter_ns()
        with contextlib.suppress(RunError):
            bench.run(index, inputs)
        times.append(time.perf_counter_ns() - begun_ns)
    return min(times)


class Compared(NamedTuple):
    """A comparison of two holdings of a model at a batch size."""

    batch: int
    # ratio of the first holding's execution time to the second's: median over pairs of executions
    ratio: float


def compare(bench: Bench, inputs: Sequence[Array], sizes: Sequence[int]) -> list[Compared]:
    """Compare the bench's first two models at rising batch sizes, while throughput of either model grows.

    Both are loaded and execute in turn, so that other load on the machine affects both. inputs: a single row
    where the model batches. Raises RunError.
    """
    found: list[Compared] = []
    best = [0.0, 0.0]
    bench.load(0)
    bench.load(1)
    give_up = time.monotonic() + bounds.COMPARE_SECONDS
    for size in sizes:
        batch = tile(inputs, size, bench.rowless)
        pairs = _in_turn(bench, (0, batch), (1, batch), bounds.PAIRS_MIN)
        medians = [statistics.median(times) for times in zip(*pairs)]
        gains = [size / taken_ns / bounds.BATCH_GAIN >= before for taken_ns, before in zip(medians, best)]
        if found and not any(gains):
            break
        found.append(Compared(size, statistics.median(first / second for first, second in pairs)))
        best = [max(before, size / taken_ns) for taken_ns, before in zip(medians, best)]
        if time.monotonic() > give_up or 2 * max(medians) > bounds.COMPARE_NS:
            break
    bench.unload(0)
    bench.unload(1)
    return found


def _in_turn(
    bench: Bench, first: Execution, second: Execution, pairs_min: int, seconds: float = bounds.POINT_SECONDS
) -> list[tuple[int, int]]:
    """Measure two executions alternately, after a warm-up, and return pairs of times in ns.

    Alternation exposes both to the same load of the machine. At least ``pairs_min`` pairs are measured, and
    pairs until the given time is over. Raises RunError.
    """
    pairs: list[tuple[int, int]] = []
    bench.run(*first)
    bench.run(*second)
    give_up = time.monotonic() + seconds
    while len(pairs) < pairs_min or (len(pairs) < bounds.RUNS_MAX and time.monotonic() < give_up):
        pairs.append((max(1, bench.run(*first)[1]), max(1, bench.run(*second)[1])))
    return pairs


def overall(compared: Sequence[Compared]) -> float:
    """The ratio of the first holding's time to the second's: the geometric mean over all batch sizes."""
    return math.exp(statistics.fmean(math.log(pair.ratio) for pair in compared))


def batch_sizes(batch_max: int) -> list[int]:
    """1, 2, 4, ... and the bound itself."""
    sizes = [1 << power for power in range(batch_max.bit_length()) if 1 << power <= batch_max]
    return sizes if sizes[-1] == batch_max else [*sizes, batch_max]


def profile(
    bench: Bench,
    index: int,
    inputs: Sequence[Array],
    batches: bool,
    batch_max: int = bounds.BATCH_MAX,
    seconds: float = bounds.POINT_SECONDS,
) -> tuple[list[ProfilePoint], int]:
    """Measure rising batch sizes while throughput grows. Return their points, and the last size that raised
    throughput.

    Each size is measured alternately with the last size that raised throughput, so that a slowdown of the
    machine does not look like a loss of throughput. The first point without growth is included. inputs: a
    single row if the model batches. seconds: to measure each size. Raises RunError.
    """
    shape = timed_shape(inputs, batches, bench.rowless)
    points = [ProfilePoint(shape, 1, execution_time(bench, index, inputs, seconds))]
    helps = 1
    give_up = time.monotonic() + bounds.PROFILE_SECONDS
    for size in batch_sizes(batch_max)[1:] if batches else ():
        if time.monotonic() > give_up:
            break
        smaller_batch, batch = (tile(inputs, rows, bench.rowless) for rows in (helps, size))
        pairs = _in_turn(bench, (index, smaller_batch), (index, batch), bounds.RUNS_MIN, seconds)
        points.append(ProfilePoint(shape, size, round(statistics.median(larger for _, larger in pairs))))
        if (
            statistics.median(size * smaller / (helps * larger) for smaller, larger in pairs)
            < bounds.BATCH_GAIN
        ):
            break
        helps = size
    return points, helps


def program_path(directory: Path, program: str) -> Path:
    """The path of a prepared model's program. directory: of the prepared model."""
    return directory.parent.parent / "programs" / program / PROGRAM_FILE


def weight_addresses(
    weights: Sequence[WeightSpec], runs: Sequence[int], page_bytes: int, memory: mmap.mmap | memoryview
) -> list[tuple[int, Sequence[int], int]]:
    """Return (dtype, shape, address) of each weight. memory: contains the runs, one after another."""
    base = np.frombuffer(memory, np.uint8).ctypes.data
    starts = [0]
    for pages in runs:
        starts.append(starts[-1] + pages * page_bytes)
    return [(weight.dtype, weight.shape, base + starts[weight.run] + weight.offset) for weight in weights]
