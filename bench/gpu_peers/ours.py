"""Clockwork's side: a model prepared for a card, executed alone, beside LOADs and beside registrations."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.gpu_peers.beside import Registrations
from clockwork.config import CUDA_PAGE_BYTES
from clockwork.device.base import Completion, TensorView
from clockwork.device.cuda import CudaDevice
from clockwork.device.cuda_memory import cards, fingerprint_of, open_driver, target_of
from clockwork.formats.prepared import PREPARED_FILE, WEIGHTS_FILE, PreparedModel, prepared_directory
from clockwork.formats.program import Variant, program_hash, read_program
from clockwork.formats.targets import choose
from clockwork.models.prepare import prepare
from clockwork.models.prepare_program import install
from clockwork.models.trials import try_model
from clockwork.wire.messages import NEVER_NS, Infer, Load, Reserve, Status, Unload
from clockwork.wire.packages import MODEL_FILE
from clockwork.wire.tensors import decode_tensor, encode_array, numpy_dtype

SEED = 3
REPEATED = 20
"""Launches of a kernel in a row, which hide the cost of a launch."""

WARM_UP = 20
PREDICTED_BY = 10
"""Executions of which the second longest predicts the next, as in a controller."""

LIMIT_S = 60.0
BESIDE = ("alone", "LOADs", "registrations")
"""Concurrent work beside the executions."""

SERVED, OTHER, REGISTERED = 1, 2, 3
"""Model ids."""


class Times(NamedTuple):
    """Times of each execution, in ns."""

    event: list[int]  # durations by the card's events: the kernels, and the gaps between them
    host: list[int]  # durations by this machine's clock: from the first launch until the end was noticed
    registered_s: Sequence[float] = ()  # seconds of each registration beside the executions


class Site:
    """A model prepared for this machine's first card. dtype: that of its products, for an ONNX file."""

    def __init__(self, scratch: Path, model: Path, batch_max: int, dtype: str = "fp32") -> None:
        self.table = open_driver()
        self.card = cards(self.table)[0]
        self.fingerprint = fingerprint_of(self.table, self.card)
        self._store = scratch / "store"
        package, options = model, {"batch_max": batch_max, "dtype": dtype}
        if model.is_file():
            package = scratch / "package"
            package.mkdir(parents=True)
            shutil.copy(model, package / MODEL_FILE)
            data = model.with_name(model.name + ".data")
            if data.is_file():
                shutil.copy(data, package / data.name)
        self.prepared = prepare(package, self._store, self.fingerprint, CUDA_PAGE_BYTES, options)
        self.directory = prepared_directory(self._store, self.prepared.digest, self.fingerprint, options)
        self.program = read_program(self._store / "programs" / self.prepared.program)
        chosen = choose(self.program.targets, target_of(self.card))
        assert chosen is not None, "else it could not be prepared"
        self.target = chosen.name

    def variant(self, batch: int) -> Variant:
        """The smallest variant that runs a batch of this many rows."""
        fitting = [variant for variant in self.program.of_target(self.target) if variant.batch >= batch]
        if not fitting:
            raise SystemExit(f"the program has no variant for a batch of {batch}")
        return min(fitting, key=lambda variant: variant.batch)

    def inputs(self, batch: int) -> list[np.ndarray]:
        """Seeded inputs: normal floats, and integers of 0 and 1, which are valid indices of any table."""
        rng = np.random.default_rng(SEED)
        found = []
        for spec, shape in zip(self.program.inputs, self.variant(batch).shapes, strict=True):
            dims = (batch, *shape[1:]) if self.program.batches else tuple(shape)
            dtype = numpy_dtype(spec.dtype)
            is_whole = np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_)
            found.append((rng.integers(0, 2, dims) if is_whole else rng.standard_normal(dims)).astype(dtype))
        return found

    @contextlib.contextmanager
    def another(self) -> Iterator[Path]:
        """Another model that is prepared, but not yet checked or timed.

        The second model has a program of its own, with the same kernels in modules of its own, and the same
        weights in a file of its own.
        """
        targets = {
            name: dataclasses.replace(target, driver=max(target.driver - 1, 1))
            for name, target in self.program.targets.items()
        }
        program = dataclasses.replace(self.program, targets=targets)
        digest = program_hash(program)
        programs = self._store / "programs"
        install(self._store, digest, program, programs / self.prepared.program)
        place = self._store / "prepared" / "another"
        place.mkdir()
        try:
            for path in self.directory.iterdir():
                if path.name != PREPARED_FILE:
                    os.link(path, place / path.name)
            dataclasses.replace(PreparedModel.read(self.directory), program=digest).write(place)
            yield place
        finally:
            shutil.rmtree(place)
            shutil.rmtree(programs / digest)  # removes the program with its measurements

    @contextlib.contextmanager
    def only(self, variant: Variant, launch: int, times: int) -> Iterator[Path]:
        """The model, prepared as if its program repeated a single launch.

        The launches that write an output follow, because no program is accepted without them.
        """
        writers = (
            candidate
            for candidate in variant.launches
            if any(argument.kind == "output" for argument in candidate.args)
        )
        again = (*(variant.launches[launch],) * times, *writers)
        program = dataclasses.replace(self.program, variants=(dataclasses.replace(variant, launches=again),))
        digest = program_hash(program)
        install(self._store, digest, program, self._store / "programs" / self.prepared.program)
        place = self._store / "prepared" / f"{variant.batch}-{launch}"
        place.mkdir()
        try:
            if (self.directory / WEIGHTS_FILE).exists():
                os.link(self.directory / WEIGHTS_FILE, place / WEIGHTS_FILE)
            dataclasses.replace(PreparedModel.read(self.directory), program=digest).write(place)
            yield place
        finally:
            shutil.rmtree(place)

    def run(
        self, directory: Path, inputs: Sequence[np.ndarray], runs: int, beside: str = "alone"
    ) -> tuple[list[Any], Times]:
        """The answers, and the times of ``runs`` executions. beside: one of BESIDE."""
        with Serving(self, directory, beside == "registrations") as serving:
            serving.run(inputs, WARM_UP)
            return serving.run(inputs, runs, beside)


class Serving:
    """A device with a model that is resident, and room for another."""

    def __init__(self, site: Site, directory: Path, registers: bool) -> None:
        self._site = site
        self._directory = directory
        self._runs = site.prepared.runs
        weights_bytes = max(1, sum(self._runs)) * CUDA_PAGE_BYTES
        # pinned memory for the file that is served and loaded, and for the file that is registered
        pinned_bytes = (2 if registers else 1) * weights_bytes
        self._device = CudaDevice(str(site.card.ordinal), 2 * weights_bytes, pinned_bytes=pinned_bytes)
        self._ids = itertools.count(1)
        self._expected_ns = 0  # prediction of an execution, as a controller makes it; 0: unknown
        self._moving = 0  # id of the load lane's action
        self._resident: int | None = None  # the version of OTHER that is resident
        # wanted RESERVEs, by the first pages of the runs that go with each
        self._wanted: deque[list[int]] = deque()
        self._is_over = False  # whether registrations have ended
        try:
            for model_id in (SERVED, OTHER):
                self._device.open(model_id, str(directory))
            self._load(SERVED, 1, 0)
            self._end(self._moving)
        except BaseException:
            self._device.close()
            raise

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self._device.close()

    def _load(self, model_id: int, version: int, page: int) -> None:
        starts = _starts(self._runs, page)
        self._moving = next(self._ids)
        self._device.start(Load(self._moving, 0, model_id, version, starts, 0, NEVER_NS, 0))

    def _end(self, action_id: int) -> Completion:
        (done,) = self._device.wait([action_id], LIMIT_S)
        if done.status != Status.OK:
            raise SystemExit(f"the card fails: {done.text or done.status.name}")
        return done

    # ----- registrations, on a thread -------------------------------------------------------------

    def _register(self) -> None:
        """Register and drop a model: all of a worker's work for a model that has been compiled and
        laid out.
        """
        with self._site.another() as directory, contextlib.suppress(_Over):
            self._device.open(REGISTERED, str(directory), self)
            try:
                try_model(self._device.trial(REGISTERED), self, directory, {})
            finally:
                self._device.forget(REGISTERED)
            self._device.tidy(self)

    @contextlib.contextmanager
    def __call__(self, expected_ns: int, runs: Sequence[int]) -> Iterator[list[int]]:
        """A device.base.Reserve: run() orders it between executions, where a controller waits for a gap."""
        with self._device.reserved(REGISTERED, lambda: self._ask(runs)) as starts:
            if starts is None:
                raise _Over
            yield starts

    def _ask(self, runs: Sequence[int]) -> None:
        self._wanted.append(_starts(runs, sum(self._runs)))
        if self._is_over:
            self._device.end_reserve()

    def give_back(self) -> None:
        """Nothing: no other model gets the pages."""

    def _stop_registering(self) -> None:
        self._is_over = True
        self._device.end_reserve()

    def _give_time(self) -> None:
        """Order the RESERVEs that are waiting."""
        while self._wanted:
            action_id, starts = next(self._ids), self._wanted.popleft()
            self._device.start(Reserve(action_id, 0, REGISTERED, 0, starts, 0, NEVER_NS, 0))
            self._end(action_id)

    # ----- LOADs -----------------------------------------------------------------------------------

    def _keep_loading(self) -> None:
        """Keep the load lane busy with OTHER: it is loaded and evicted in turn."""
        if any(done.action_id == self._moving for done in self._device.poll()):
            self._moving = 0
        if self._moving:
            return
        if self._resident is None:
            self._resident = next(self._ids)
            self._load(OTHER, self._resident, sum(self._runs))
        else:
            self._moving = next(self._ids)
            self._device.start(Unload(self._moving, 0, OTHER, self._resident, 0, NEVER_NS, 0))
            self._resident = None

    # ----- executions ------------------------------------------------------------------------------

    def run(self, inputs: Sequence[np.ndarray], runs: int, beside: str = "alone") -> tuple[list[Any], Times]:
        """Execute `runs` times; beside registrations until one has run from beginning to end, too."""
        views = [TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, inputs)]
        times = Times([], [])
        self._moving, self._is_over = 0, False
        register = self._register if beside == "registrations" else None
        with Registrations(register, "Clockwork", self._stop_registering) as registering:
            while len(times.event) < runs or not registering.has_one:
                if beside == "LOADs":
                    self._keep_loading()
                self._give_time()
                action = Infer(next(self._ids), 0, SERVED, 1, 0, NEVER_NS, self._expected_ns, [])
                self._device.start(action, [views])
                done = self._end(action.action_id)
                begin_ns, end_ns, took_ns = done.execute
                times.event.append(took_ns)
                times.host.append(end_ns - begin_ns)
        if self._moving:
            self._end(self._moving)
        self._expected_ns = sorted(times.event[-PREDICTED_BY:])[-2:][0]
        answers = [decode_tensor(tensor.dtype, tensor.shape, tensor.data) for tensor in done.parts[0]]
        return answers, times._replace(registered_s=registering.took_s)


class _Over(Exception):
    """No RESERVE is ordered any more."""


def _starts(runs: Sequence[int], page: int) -> list[int]:
    """The first page of each run, where the runs lie one after the other from a page on."""
    return list(itertools.accumulate(runs, initial=page))[:-1]


def kernels(site: Site, batch: int, runs: int) -> list[dict[str, Any]]:
    """The time of each kernel of a variant, the longest first."""
    variant, inputs = site.variant(batch), site.inputs(batch)

    def took_us(place: int, times: int) -> float:
        with site.only(variant, place, times) as directory:
            return float(np.median(site.run(directory, inputs, runs)[1].event)) / 1e3

    found = []
    least_us = took_us(0, 0)
    for place, launch in enumerate(variant.launches):
        us = max(0.0, took_us(place, REPEATED) - least_us) / REPEATED
        row = {"side": "clockwork", "batch": batch, "kernel": launch.kernel, "place": place, "us": us}
        found.append(row)
    return sorted(found, key=lambda row: -row["us"])
