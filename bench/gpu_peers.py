"""A compiled model on the CUDA device beside ONNX Runtime on the same card, and what each kernel takes.

    python -m bench.gpu_peers resnet50.onnx --batch 1 --batch 16 [--kernels 20] [--json]
    python -m bench.gpu_peers compiled/ --onnx bert.onnx --batch 8

MODEL is an ONNX file, which is compiled for the card first (minutes; the extra [compile]), or a package that `clockwork
compile` has made. Both sides get the same inputs, and their answers are compared. Clockwork's time is the
execution's, by the card's events: inputs are on the card. ONNX Runtime's (CUDAExecutionProvider, of the package
onnxruntime-gpu) is a run's with inputs and outputs bound on the card, by this machine's clock. Kernels are timed one
by one, each REPEATED times in a row on what lies in memory; ONNX Runtime's are those of its own profile.

It runs on the driver that CLOCKWORK_CUDA_DRIVER names: on the fake one, beside --provider CPUExecutionProvider, it
shows that the comparison works, and its times mean nothing for a GPU.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import report
from clockwork.config import CUDA_PAGE_BYTES
from clockwork.device.cuda_memory import cards, fingerprint_of, open_driver, target_of
from clockwork.formats.package import MODEL_FILE
from clockwork.formats.prepared import WEIGHTS_FILE, PreparedModel
from clockwork.formats.program import Program, Variant, program_hash, read_program
from clockwork.models.measure import Bench
from clockwork.models.prepare import prepare
from clockwork.models.prepare_program import install

SEED = 3
REPEATED = 20
"""Launches of a kernel in a row, which hide the cost of a launch."""

RUNS = 1000
WARM_UP = 20
PROVIDER = "CUDAExecutionProvider"


class Site:
    """A model prepared for this machine's first card."""

    def __init__(self, scratch: Path, model: Path, batch_max: int) -> None:
        self.table = open_driver()
        self.card = cards(self.table)[0]
        self.target = target_of(self.card)
        self.fingerprint = fingerprint_of(self.table, self.card)
        self._store = scratch / "store"
        package = model
        if model.is_file():
            package = scratch / "package"
            package.mkdir(parents=True)
            shutil.copy(model, package / MODEL_FILE)
            data = model.with_name(model.name + ".data")
            if data.is_file():
                shutil.copy(data, package / data.name)
        options = {"batch_max": batch_max}
        prepared = prepare(package, self._store, self.fingerprint, CUDA_PAGE_BYTES, options)
        (self.directory,) = (path.parent for path in (self._store / "prepared").glob("*/prepared.json"))
        self.prepared = prepared
        self.program = read_program(self._store / "programs" / prepared.program)

    def variant(self, batch: int) -> Variant:
        """The smallest variant that runs a batch of this many rows."""
        fitting = [variant for variant in self.program.of_target(self.target) if variant.batch >= batch]
        if not fitting:
            raise SystemExit(f"the program has no variant for a batch of {batch}")
        return min(fitting, key=lambda variant: variant.batch)

    def inputs(self, batch: int) -> list[np.ndarray]:
        """Seeded inputs: normal floats, and integers of 0 and 1, which are valid indices of any table."""
        from clockwork.wire.tensors import numpy_dtype

        rng = np.random.default_rng(SEED)
        found = []
        for spec, shape in zip(self.program.inputs, self.variant(batch).shapes, strict=True):
            dims = (batch, *shape[1:]) if self.program.batches else tuple(shape)
            dtype = numpy_dtype(spec.dtype)
            is_whole = np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_)
            found.append((rng.integers(0, 2, dims) if is_whole else rng.standard_normal(dims)).astype(dtype))
        return found

    def only(self, variant: Variant, launch: int) -> Path:
        """The model, prepared as if its program were a repetition of a single launch."""
        again = (variant.launches[launch],) * REPEATED
        program = dataclasses.replace(self.program, variants=(dataclasses.replace(variant, launches=again),))
        return self._prepare(program, f"{variant.batch}-{launch}")

    def _prepare(self, program: Program, name: str) -> Path:
        digest = program_hash(program)
        source = self._store / "programs" / self.prepared.program
        install(self._store, digest, program, source)
        place = self._store / "prepared" / name
        place.mkdir()
        if (self.directory / WEIGHTS_FILE).exists():
            os.link(self.directory / WEIGHTS_FILE, place / WEIGHTS_FILE)
        prepared = PreparedModel.read(self.directory)
        dataclasses.replace(prepared, program=digest).write(place)
        return place

    def run(self, directory: Path, inputs: Sequence[np.ndarray], runs: int) -> tuple[list[Any], list[int]]:
        """The answers, and the time of each execution."""
        bench = Bench(self.fingerprint, CUDA_PAGE_BYTES, [directory])
        try:
            bench.load(0)
            for _ in range(WARM_UP):
                bench.run(0, inputs)
            done = [bench.run(0, inputs) for _ in range(runs)]
            return done[-1][0], [took for _, took in done]
        finally:
            bench.close()


class Peer:
    """ONNX Runtime, with inputs and outputs bound on the card."""

    def __init__(self, model: Path, provider: str, profile: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
        self._device = "cuda" if provider == PROVIDER else "cpu"

    def run(self, inputs: Sequence[np.ndarray], runs: int) -> tuple[list[Any], list[int]]:
        binding = self.session.io_binding()
        for spec, array in zip(self.session.get_inputs(), inputs, strict=True):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.session.get_outputs():
            binding.bind_output(spec.name, self._device)
        times = []
        for number in range(WARM_UP + runs):
            begin = time.perf_counter_ns()
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            if number >= WARM_UP:
                times.append(time.perf_counter_ns() - begin)
        return binding.copy_outputs_to_cpu(), times


def kernels(site: Site, batch: int, runs: int) -> list[dict[str, Any]]:
    """The time of each kernel of a variant, the longest first."""
    variant, inputs = site.variant(batch), site.inputs(batch)
    found = []
    for place, launch in enumerate(variant.launches):
        directory = site.only(variant, place)
        _, times = site.run(directory, inputs, runs)
        shutil.rmtree(directory)
        found.append(
            {
                "side": "clockwork",
                "batch": batch,
                "kernel": launch.kernel,
                "place": place,
                "us": float(np.median(times)) / REPEATED / 1e3,
            }
        )
    return sorted(found, key=lambda row: -row["us"])


def peer_kernels(
    model: Path, provider: str, inputs: Sequence[np.ndarray], batch: int, runs: int, scratch: Path
) -> list[dict[str, Any]]:
    """The time of each node of ONNX Runtime, by its profile, the longest first."""
    peer = Peer(model, provider, scratch / f"profile-{batch}")
    peer.run(inputs, runs)
    total: dict[str, float] = collections.defaultdict(float)
    for event in json.loads(Path(peer.session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total[event["name"].removesuffix("_kernel_time")] += event["dur"]
    count = WARM_UP + runs
    rows = [
        {"side": "ONNX Runtime", "batch": batch, "kernel": name, "place": place, "us": us / count}
        for place, (name, us) in enumerate(total.items())
    ]
    return sorted(rows, key=lambda row: -row["us"])


def measure(
    model: Path, onnx: Path, batches: Sequence[int], provider: str, runs: int, listed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """A row for each batch; rows of kernels; facts."""
    if provider not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        raise SystemExit(f"ONNX Runtime has no {provider} here (it has {has}): pip install onnxruntime-gpu")
    rows, lists = [], []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        site = Site(scratch, model, max(batches))
        peer = Peer(onnx, provider)
        for batch in batches:
            inputs = site.inputs(batch)
            ours, times = site.run(site.directory, inputs, runs)
            theirs, peer_times = peer.run(inputs, runs)
            worst = max(
                float(np.max(np.abs(one - other)) / max(float(np.max(np.abs(other))), 1e-30))
                for one, other in zip(ours, theirs, strict=True)
            )
            us, peer_us = float(np.median(times)) / 1e3, float(np.median(peer_times)) / 1e3
            marks = np.percentile(times, (50, 99, 99.99)) / 1e3
            rows.append(
                {
                    "batch": batch,
                    "launches": len(site.variant(batch).launches),
                    "us": us,
                    "p99_us": float(marks[1]),
                    "p99.99_us": float(marks[2]),
                    "p99.99 over p50": float(marks[2] / marks[0]),
                    "ONNX Runtime, us": peer_us,
                    "times as long": us / peer_us,
                    "answers differ by": worst,
                }
            )
            if listed:
                lists += kernels(site, batch, max(runs // 20, 5))[:listed]
                lists += peer_kernels(onnx, provider, inputs, batch, max(runs // 20, 5), scratch)[:listed]
        facts = {
            "card": f"{site.card.name}, driver {site.table.version}",
            "model": model.name,
            "provider": f"onnxruntime {onnxruntime.__version__}, {provider}",
        }
    return rows, lists, facts


def main() -> None:
    parser = report.command_line(__doc__)
    parser.add_argument("model", type=Path, help="an ONNX file, or a package that is compiled")
    parser.add_argument("--onnx", type=Path, help="what ONNX Runtime runs, if MODEL is a package")
    parser.add_argument("--batch", type=int, action="append", help="may be given several times  [1]")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--kernels", type=int, default=20, help="how many of each side are listed")
    parser.add_argument("--provider", default=PROVIDER)
    asked = parser.parse_args()
    onnx = asked.onnx or (asked.model / MODEL_FILE if asked.model.is_dir() else asked.model)
    runs = 20 if asked.quick else asked.runs
    rows, lists, facts = measure(asked.model, onnx, asked.batch or [1], asked.provider, runs, asked.kernels)
    if asked.json:
        report.show("beside ONNX Runtime", SEED, [*rows, *lists], facts, True)
        return
    report.show("beside ONNX Runtime", SEED, rows, facts, False)
    if lists:
        report.show("kernels, the longest first", SEED, lists, {}, False)


if __name__ == "__main__":
    main()
