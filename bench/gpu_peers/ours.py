"""Clockwork's side: a model prepared for a card, executed alone, beside LOADs and beside registrations."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.gpu_peers.beside import registrations
from clockwork.config import CUDA_PAGE_BYTES
from clockwork.device.base import Completion, TensorView
from clockwork.device.cuda import CudaDevice
from clockwork.device.cuda_memory import cards, fingerprint_of, open_driver, target_of
from clockwork.formats.package import MODEL_FILE
from clockwork.formats.prepared import WEIGHTS_FILE, PreparedModel, prepared_directory
from clockwork.formats.program import Variant, program_hash, read_program
from clockwork.formats.targets import choose
from clockwork.models.prepare import prepare
from clockwork.models.prepare_program import install
from clockwork.wire.messages import NEVER_NS, Infer, Load, Status, Unload
from clockwork.wire.tensors import decode_tensor, encode_array, numpy_dtype

SEED = 3
REPEATED = 20
"""Launches of a kernel in a row, which hide the cost of a launch."""

WARM_UP = 20
LIMIT_S = 60.0
BESIDE = ("alone", "LOADs", "registrations")
"""What goes on beside the executions."""

SERVED, OTHER, REGISTERED = 1, 2, 3
"""Model ids."""


class Times(NamedTuple):
    """Of each execution, in ns."""

    event: list[int]  # by the card's events: the kernels, and what lies between them
    host: list[int]  # by this machine's clock: from the first launch until the end was noticed


class Site:
    """A model prepared for this machine's first card. dtype: of its products, if it is an ONNX file."""

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
    def only(self, variant: Variant, launch: int) -> Iterator[Path]:
        """The model, prepared as if its program were a repetition of a single launch."""
        again = (variant.launches[launch],) * REPEATED
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
        with Serving(self, directory) as serving:
            serving.run(inputs, WARM_UP)
            with serving.beside(beside):
                return serving.run(inputs, runs)


class Serving:
    """A device with a model that is resident, and room for another."""

    def __init__(self, site: Site, directory: Path) -> None:
        self._directory = directory
        self._runs = site.prepared.runs
        weights_bytes = max(1, sum(self._runs)) * CUDA_PAGE_BYTES  # pinned once: all are of one file
        self._device = CudaDevice(str(site.card.ordinal), 2 * weights_bytes, pinned_bytes=weights_bytes)
        self._ids = itertools.count(1)
        self._loading = False
        self._moving = 0  # the action of the load lane
        self._resident: int | None = None  # the version in which OTHER is resident
        try:
            for model_id in (SERVED, OTHER):
                self._device.prepare(model_id, str(directory))
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
        starts = list(itertools.accumulate(self._runs, initial=page))[:-1]
        self._moving = next(self._ids)
        self._device.start_load(Load(self._moving, 0, model_id, version, starts, 0, NEVER_NS, 0))

    def _end(self, action_id: int) -> Completion:
        (done,) = self._device.wait([action_id], LIMIT_S)
        if done.status != Status.OK:
            raise SystemExit(f"the card fails: {done.text or done.status.name}")
        return done

    @contextlib.contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """Have another model be loaded, or registered, again and again while run() runs."""
        if what == "alone":
            yield
            return
        if what == "LOADs":
            self._loading = True
            try:
                yield
            finally:
                self._loading = False
            return
        with registrations(self._register, "Clockwork"):
            yield

    def _register(self) -> None:
        self._device.prepare(REGISTERED, str(self._directory))
        self._device.forget(REGISTERED)

    def _keep_loading(self) -> None:
        """Have the load lane be at OTHER: it is loaded, and given up, in turn."""
        if any(done.action_id == self._moving for done in self._device.poll()):
            self._moving = 0
        if self._moving:
            return
        if self._resident is None:
            self._resident = next(self._ids)
            self._load(OTHER, self._resident, sum(self._runs))
        else:
            self._moving = next(self._ids)
            self._device.start_unload(Unload(self._moving, 0, OTHER, self._resident, 0, NEVER_NS, 0))
            self._resident = None

    def run(self, inputs: Sequence[np.ndarray], runs: int) -> tuple[list[Any], Times]:
        views = [TensorView(dtype, tuple(shape), data) for dtype, shape, data in map(encode_array, inputs)]
        times = Times([], [])
        self._moving = 0
        for _ in range(runs):
            if self._loading:
                self._keep_loading()
            action = Infer(next(self._ids), 0, SERVED, 1, 0, NEVER_NS, 0, [])
            self._device.start_infer(action, [views])
            done = self._end(action.action_id)
            begin_ns, end_ns, took_ns = done.execute
            times.event.append(took_ns)
            times.host.append(end_ns - begin_ns)
        if self._moving:
            self._end(self._moving)
        return [decode_tensor(one.dtype, one.shape, one.data) for one in done.parts[0]], times


def kernels(site: Site, batch: int, runs: int) -> list[dict[str, Any]]:
    """The time of each kernel of a variant, the longest first."""
    variant, inputs = site.variant(batch), site.inputs(batch)
    found = []
    for place, launch in enumerate(variant.launches):
        with site.only(variant, place) as directory:
            _, times = site.run(directory, inputs, runs)
        us = float(np.median(times.event)) / REPEATED / 1e3
        row = {"side": "clockwork", "batch": batch, "kernel": launch.kernel, "place": place, "us": us}
        found.append(row)
    return sorted(found, key=lambda row: -row["us"])
