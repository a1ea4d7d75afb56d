"""Check and time a model on the GPU that will serve it: the last step of a registration.

The device executes requests meanwhile. Every use of the device is part of a RESERVE, which the controller
schedules between batches. A RESERVE covers a few executions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clockwork.config import TRIAL_RESERVE_NS
from clockwork.config import models as bounds
from clockwork.device.base import TensorView, Trial
from clockwork.errors import InvalidModel
from clockwork.formats.checksums import read_plain, seal, unseal
from clockwork.formats.durable import write_durably
from clockwork.formats.prepared import FORMAT_VERSION, WEIGHTS_FILE, PreparedModel
from clockwork.formats.program import CHECKS_FILE, Check, Program, Variant, read_checks, read_program
from clockwork.formats.targets import architecture_of, choose
from clockwork.models.answers import difference, tile
from clockwork.scheduler.types import ProfilePoint
from clockwork.system.clock import now_ns
from clockwork.wire.tensors import Array, decode_tensor, encode_array


class Interrupted(Exception):
    """A trial cannot go on, for a reason that is no fault of the model. The text gives the reason."""


class Reserving(Protocol):
    """A device.base.Reserve whose pages can be given back."""

    def __call__(
        self, expected_ns: int, runs: Sequence[int]
    ) -> contextlib.AbstractContextManager[list[int]]: ...

    def give_back(self) -> None:
        """Give back the pages of the last reservation."""
        ...


@dataclasses.dataclass(slots=True)
class Measurement:
    """The measurement of a program, which is valid for every model with that program."""

    batch_max: int
    load_ns: int
    profile: list[ProfilePoint]


def try_model(trial: Trial, reserve: Reserving, directory: Path, options: Mapping[str, Any]) -> None:
    """Check a prepared model, time it unless its program has been timed, and record the trial in its
    directory.

    trial: of the device that has the model. Raises InvalidModel, Interrupted, OSError, and what ``reserve``
    raises.
    """
    prepared = PreparedModel.read(directory)
    place = directory.parent.parent / "programs" / prepared.program
    program = read_program(place)
    chosen = choose(program.targets, architecture_of(prepared.fingerprint))
    assert chosen is not None, "the device that prepared it runs it"
    variants = program.of_target(chosen.name)
    named = dataclasses.replace(program, inputs=tuple(prepared.inputs), outputs=tuple(prepared.outputs))
    checks = read_checks(directory, named)[: bounds.CHECKS_RUN_MAX]
    bench = _Bench(trial, reserve, prepared, directory)
    try:
        load_ns = bench.load()
        _verify(bench, program, variants, checks, prepared.check_relative)
        found = _recall(place, prepared.fingerprint, options)
        if found is None:
            found = _measure(bench, prepared.batches, variants, int(options.get("batch_max", 0)))
            found.load_ns = load_ns
            path = _finding_path(place, prepared.fingerprint, options)
            write_durably(path, seal(dataclasses.asdict(found)))
    finally:
        bench.close()
    prepared.batch_max, prepared.load_ns, prepared.profile = found.batch_max, found.load_ns, found.profile
    prepared.untried = False
    prepared.checksums.pop(CHECKS_FILE, None)
    prepared.rewrite(directory)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(directory / CHECKS_FILE)


class _Bench:
    """A model on its device. Uses of the device share a reservation, or take a new reservation."""

    def __init__(self, trial: Trial, reserve: Reserving, prepared: PreparedModel, directory: Path) -> None:
        self._trial = trial
        self._reserve = reserve
        self._prepared = prepared
        self._weights = directory / WEIGHTS_FILE
        self._reservation = contextlib.ExitStack()
        self._until_ns = 0  # end of the current reservation; 0: there is none
        self._claimed = False
        self._taken_ns: dict[int, int] = {}  # time of an execution, by number of rows
        self._checked_ns: dict[tuple[tuple[int, ...], ...], int] = {}  # time of the last run(), by shapes

    def _enter(self, expected_ns: int) -> None:
        """Ensure a reservation with at least this much time left."""
        if self._until_ns and now_ns() + expected_ns <= self._until_ns:
            return
        wanted_ns = max(expected_ns, TRIAL_RESERVE_NS)
        text = ""
        for _ in range(bounds.TRIAL_CLAIMS_MAX):
            self.pause()
            starts = self._reservation.enter_context(self._reserve(wanted_ns, self._prepared.runs))
            self._until_ns = now_ns() + TRIAL_RESERVE_NS  # a longer reservation is for the first use alone
            if self._claimed or not (text := self._trial.claim(starts)):
                self._claimed = True
                return
        raise Interrupted(f"the pages to try it in are not free: {text}")

    def pause(self) -> None:
        """End the reservation, so that the device serves requests."""
        self._until_ns = 0
        self._reservation.close()

    def load(self) -> int:
        """Load the model by pages. Return the time in ns. Pages of a small model are copied repeatedly."""
        page_bytes, pages = self._prepared.page_bytes, sum(self._prepared.runs)
        taken_ns = most_ns = 0
        for page in range(pages):
            if self._trial.is_staged:
                self.pause()
                self._trial.stage(self._weights, page, page_bytes)
            times: list[int] = []
            while len(times) < (bounds.TRIAL_COPIES if pages < bounds.TRIAL_COPIES else 1):
                self._enter(most_ns or bounds.TRIAL_FIRST_NS)
                times.append(self._trial.copy(page))
                most_ns = max(most_ns, times[-1])
            taken_ns += round(statistics.median(times))
        self._enter(0)
        self._trial.settle()
        return taken_ns

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Execute the model, and return its outputs."""
        views = [TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, inputs)]
        rows = len(inputs[0]) if inputs and inputs[0].ndim else 1
        expected_ns = self._expected_ns(rows)
        self._enter(expected_ns or bounds.TRIAL_FIRST_NS)
        done = self._trial.run(views, expected_ns)
        self.pause()
        self._taken_ns[rows] = self._checked_ns[tuple(view.shape for view in views)] = done.execute[2]
        return [decode_tensor(tensor.dtype, tensor.shape, tensor.data) for tensor in done.parts[0]]

    def time(self, variant: Variant) -> int:
        """Return the median time of an execution in ns, after warm-up executions in which an idle GPU raises
        its clock.

        The GPU may also have idled since the check: an execution that takes longer than in the check counts
        as a warm-up.
        """

        def once(known_ns: int) -> int:
            self._enter(known_ns or bounds.TRIAL_FIRST_NS)
            return max(1, self._trial.time(variant.shapes, known_ns))

        checked_ns = self._checked_ns.get(variant.shapes)  # time in the check, if these shapes were checked
        times = [checked_ns or once(self._expected_ns(variant.batch))]
        while len(times) < bounds.TRIAL_WARM_RUNS and (
            len(times) < 2
            or times[-1] < bounds.TRIAL_WARM * times[-2]
            or (len(times) == 2 and checked_ns and checked_ns < bounds.TRIAL_WARM * times[1])
        ):
            times.append(once(times[-1]))
        count = bounds.TRIAL_RUNS if times[-1] <= TRIAL_RESERVE_NS else bounds.TRIAL_LONG_RUNS
        del times[:-1]
        while len(times) < count:
            times.append(once(times[0]))
        found = round(statistics.median(times))
        self._taken_ns[variant.batch] = found
        return found

    def _expected_ns(self, rows: int) -> int:
        """Return the measured time in ns of a batch of ``rows``; 0 if no batch up to it is measured.

        If only smaller batches are measured, twice the time of the largest of them is returned.
        """
        known = [size for size in self._taken_ns if size <= rows]
        return self._taken_ns[max(known)] * (1 if rows in known else 2) if known else 0

    def close(self) -> None:
        self.pause()
        self._trial.close()
        self._reserve.give_back()


def _verify(
    bench: _Bench, program: Program, variants: Sequence[Variant], checks: Sequence[Check], relative: float
) -> None:
    """Raise InvalidModel unless the device reproduces the package's checks, alone and in every row of a
    batch."""
    for inputs, outputs in checks:
        sizes = {1}
        if program.batches:
            tails = [array.shape[1:] for array in inputs]
            target = variants[0].target
            sizes |= {
                variant.batch
                for variant in variants
                if program.variant(target, [(variant.batch, *tail) for tail in tails])
            }
        for size in sorted(sizes):
            actual = bench.run(tile(inputs, size))
            if text := difference(actual, tile(outputs, size), relative):
                raise InvalidModel(f"the program answers wrongly in a batch of {size}: {text}")


def _measure(bench: _Bench, batches: bool, variants: Sequence[Variant], batch_max: int) -> Measurement:
    """Return execution times of each set of shapes, at rising compiled batch sizes while throughput grows."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Variant]] = {}
    for variant in variants:
        if batches:
            by_shape.setdefault(tuple(shape[1:] for shape in variant.shapes), []).append(variant)
        elif variant.batch == 1:
            by_shape[variant.shapes] = [variant]
    points: list[ProfilePoint] = []
    helps_most = 1
    for shape, group in by_shape.items():
        best, before = 0.0, 0
        for variant in group:
            if batch_max and variant.batch > batch_max and before:
                break
            exec_ns = bench.time(variant)
            # Smaller batches, beyond those of the previous variant, run on this variant too.
            points += [ProfilePoint(shape, size, exec_ns) for size in sorted({before + 1, variant.batch})]
            throughput = variant.batch / exec_ns
            if before and throughput < best * bounds.BATCH_GAIN:
                break
            best, before = throughput, variant.batch
        helps_most = max(helps_most, before)
    if batch_max:
        helps_most = min(helps_most, batch_max)
    return Measurement(helps_most if batches else 1, 0, points)


# ----- kept measurements -------------------------------------------------------------------------


def _finding_path(program: Path, fingerprint: str, options: Mapping[str, Any]) -> Path:
    about = [fingerprint, str(options.get("batching", "auto")), str(int(options.get("batch_max", 0)))]
    return program / f"finding-{'-'.join(about)}-{FORMAT_VERSION}.json"


def _recall(program: Path, fingerprint: str, options: Mapping[str, Any]) -> Measurement | None:
    try:
        body, _ = unseal(read_plain(_finding_path(program, fingerprint, options)))
        points = [
            ProfilePoint(tuple(map(tuple, point["shape"])), point["batch"], point["exec_ns"])
            for point in body["profile"]
        ]
        return Measurement(body["batch_max"], body["load_ns"], points)
    except (OSError, ValueError, KeyError, TypeError):
        return None
