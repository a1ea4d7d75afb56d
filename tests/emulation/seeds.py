"""Compares random networks through the compiler with ONNX Runtime.

    python -m tests.emulation.seeds 100                      # seeds 0 to 99, kernels for sm_80, emulated
    python -m tests.emulation.seeds 1000 --from 500 --host   # kernels for the host, ten times as fast
    python -m tests.emulation.seeds 1 --from 17 --cut        # print the shortest wrong part of a network

An answer may differ from ONNX Runtime's by rounding: by a part of its largest value, or by a multiple of the
change in ONNX Runtime's own answer when the last bits of inputs and weights change.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from clockwork import config
from clockwork.errors import InvalidModel
from clockwork.formats.program import HOST
from clockwork.models.answers import difference
from clockwork.models.compile import host
from clockwork.models.compile.compiler import TOLERANCES, CompileOptions, compile_model
from clockwork.models.runtime import ModelSession, RunError
from clockwork.wire.tensors import Array
from tests.emulation import forks, modules, process
from tests.emulation.random_networks import LENGTH, Network, concrete, cut, random_network

SEED_S = 900
"""Time limit for a network, on a busy machine."""

ARCHITECTURE = "sm_80"
PASS, REFUSED, WRONG, UNKNOWN = "pass", "refused", "wrong", "unknown"
"""Beginnings of outcomes. "unknown": ONNX Runtime cannot execute the network, or the network amplifies
rounding too much."""

DTYPES = ("fp32", "fp32", "fp32", "tf32", "fp16")
BATCHES = ((1, 2, 4), (1, 4), (3,))
TRIALS = 3

NUDGES = {"float32": 1e-6, "float64": 1e-6, "float16": 1e-3}
"""Relative change by rounding to an answer's type, or to the type in which it is multiplied."""
AMPLIFIED = 20
"""Allowed difference of the kernels' answer, as a multiple of the change by nudges."""
AMPLIFIED_MAX = 0.1
"""Relative change by nudges from which on an answer is not compared."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    inputs: list[Array]
    expected: list[Array]
    nudged: list[list[Array]]


def nudged_weights(model: onnx.ModelProto, size: float) -> onnx.ModelProto:
    """Return the model with the last bits of its matrices changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for weight in made.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.ndim > 1 and array.dtype.kind == "f":
            weight.CopyFrom(numpy_helper.from_array(nudge(array, size, 1), weight.name))
    return made


def nudge(array: Array, size: float, seed: int) -> Array:
    if array.dtype.kind != "f":
        return array
    noise = np.random.default_rng(seed).uniform(-1, 1, array.shape)
    return (array * (1 + max(size, NUDGES[array.dtype.name]) * noise)).astype(array.dtype)


def trials(network: Network, seed: int, rows_max: int, size: float) -> Iterator[Trial]:
    """Return inputs with ONNX Runtime's answers. Raises RunError."""
    rng = random.Random(seed)
    model = network.model.SerializeToString()
    exact = ModelSession(model, optimise=False)
    others = [exact, ModelSession(nudged_weights(network.model, size).SerializeToString(), optimise=False)]
    for number in range(TRIALS):
        rows = rng.randint(1, rows_max) if network.has_rows else 1
        length = LENGTH if not number else rng.randint(1, LENGTH)
        inputs = network.arrays(1000 * seed + number, rows, length)
        changed = [nudge(array, size, number) for array in inputs]
        yield Trial(inputs, exact.run(inputs), [session.run(changed) for session in others])


def apart(actual: Sequence[Array], trial: Trial, relative: float) -> tuple[str, int]:
    """Return how answers differ from those of ONNX Runtime, as a sentence or "", and how many answers could
    be compared."""
    compared = 0
    for number, (one, expected) in enumerate(zip(actual, trial.expected, strict=True)):
        others = [nudged[number] for nudged in trial.nudged]
        if expected.dtype.kind != "f":
            if not all(np.array_equal(expected, other) for other in others):
                continue
            text = difference([one], [expected])
        else:
            wide = expected.astype(np.float64)
            if any((np.isfinite(wide) != np.isfinite(other)).any() for other in others):
                continue
            finite = np.isfinite(wide)
            scale = float(np.abs(wide[finite]).max(initial=0))
            change = max(
                float(np.abs(other.astype(np.float64) - wide)[finite].max(initial=0)) for other in others
            )
            if change > AMPLIFIED_MAX * scale:
                continue
            bound = max(relative, AMPLIFIED * change / scale if scale else 0)
            text = difference([one], [expected], bound)
        if text:
            return (
                f"{text.replace('output 0', f'output {number}')}, of {[array.shape for array in trial.inputs]}",
                0,
            )
        compared += 1
    return "", compared


def outcome(seed: int, card: bool, network: Network | None = None) -> str:
    """Return the outcome of a seed's network. card: use the kernels for a card. network: a part of it."""
    network = network or random_network(seed)
    rng = random.Random(seed)
    dtype, batches = rng.choice(DTYPES), rng.choice(BATCHES)
    size = 1e-3 if dtype != "fp32" else 0.0
    try:
        tried = list(trials(network, seed, max(batches) if network.has_rows else 1, size))
    except RunError as error:
        return f"{UNKNOWN}: ONNX Runtime: {str(error)[:100]}"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        work = Path(name)
        path = work / "model.onnx"
        path.write_bytes(network.model.SerializeToString())
        options = CompileOptions(
            (ARCHITECTURE if card else HOST,), batches,
            {one.name: [concrete(one.dims, 1, LENGTH)] for one in network.inputs if "S" in one.dims},
            dtype=dtype, examples=[network.arrays(seed, 3, LENGTH)], verify=False, jobs=1, pad=rng.random() < 0.8,
            ptx=False, sources=work / "sources" if card else None,
        )  # fmt: skip
        try:
            program = compile_model(path, work / "package", options).program
        except InvalidModel as error:
            text = str(error)
            unforeseen = text.startswith(("compiling for", "NVRTC rejects", "the C compiler"))
            return f"{WRONG if unforeseen else REFUSED}: {text[:300]}"
        made = work / "package"
        if card:
            made = work / "emulated"
            flags = modules.SANITISED if process.sanitizer() else modules.QUICK
            program = modules.emulated(work / "package", work / "sources", ARCHITECTURE, made, flags, 1)
        relative = max(TOLERANCES[dtype] or 0, 1e-4)
        ran, compared = 0, 0
        for trial in tried:
            if program.variant(HOST, [array.shape for array in trial.inputs]) is None:
                continue
            if card:
                try:
                    actual, _ = process.run(made, trial.inputs, bool(process.sanitizer()))
                except process.Finding as error:
                    return f"{WRONG}: {error}"
            else:
                actual = host.HostExecutor(program, made).run(trial.inputs)
            text, count = apart(actual, trial, relative)
            if text:
                return f"{WRONG}: {dtype}: {text}"
            ran, compared = ran + 1, compared + count
    if not compared:
        return f"{UNKNOWN}: {'rounding decides its answers' if ran else 'no input has a compiled shape'}"
    return PASS


def smallest(seed: int, card: bool) -> str:
    """Return the first value of a network that is wrong as its only output, and the part that computes it."""
    network = random_network(seed)
    for node in network.model.graph.node:
        for name in node.output:
            model = cut(network.model, name)
            found = outcome(seed, card, dataclasses.replace(network, model=model))
            if found.startswith(WRONG):
                return f"{found}\n{onnx.printer.to_text(model)}"
    return "no part of it is wrong alone"


def ask(seeds: Sequence[int], card: bool) -> Iterator[tuple[int, str]]:
    """Yield seeds and outcomes as they come from a process of its own."""
    return forks.ask("tests.emulation.seeds", [*([] if card else ["--host"]), *map(str, seeds)])


def run(seeds: Sequence[int], card: bool) -> None:
    """Print a line of JSON for each seed."""
    for seed, found in forks.each(
        seeds, lambda seed: outcome(seed, card), SEED_S, lambda why: f"{WRONG}: {why}"
    ):
        print(json.dumps([seed, found]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulation.seeds", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--host", action="store_true", help="by the kernels for the host, not those for sm_80"
    )
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--cut", action="store_true", help="print the shortest part of the first network that is wrong"
    )
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("numbers", nargs="+", type=int, help="how many seeds")
    given = parser.parse_args()
    config.silence_onnxruntime()
    if given.run:
        run(given.numbers, not given.host)
        return
    if given.cut:
        print(smallest(given.first, not given.host))
        return
    counts: collections.Counter[str] = collections.Counter()
    for seed, text in ask(range(given.first, given.first + given.numbers[0]), not given.host):
        counts[text.split(":")[0]] += 1
        if text != PASS:
            print(f"seed {seed}: {text}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    sys.exit(counts[WRONG] > 0)


if __name__ == "__main__":
    main()
