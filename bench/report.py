"""The conditions of a measurement, and its result as a table or as JSON."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from clockwork.errors import ClockworkError

BEGUN_S = time.monotonic()
"""Start of this process, from which the duration of a measurement counts."""

PACKAGES = ("numpy", "onnx", "onnxruntime", "pyzmq", "msgpack")


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark, --quick and --json, and its docstring as help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small and short run, to try the benchmark")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """End the program with the sentence of a ClockworkError alone, without a traceback."""
    try:
        yield
    except ClockworkError as error:
        raise SystemExit(str(error)) from None


def publishing(parser: argparse.ArgumentParser) -> None:
    """Add --publish, for a benchmark whose result the documents show."""
    parser.add_argument(
        "--publish", action="store_true", help="write docs/results/ and the tables of the documents"
    )


def conditions(seed: int) -> dict[str, Any]:
    return {
        "machine": machine(),
        "commit": commit(),
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def version_of(package: str) -> str:
    """The version of a package that is imported by this name.

    Several distributions may install it: onnxruntime-gpu installs onnxruntime.
    """
    for name in (package, f"{package}-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def machine() -> str:
    """Processor, cores that may be used, architecture."""
    model = platform.processor() or "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}, Linux {platform.release()}"


@functools.cache  # read once: the commit that this process runs, whatever is written into the checkout later
def commit() -> str:
    """The commit of the checkout, with a plus if it was changed since."""
    here = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip()


def percentile_ms(values_ns: np.ndarray, mark: float) -> float | None:
    """Return a percentile in milliseconds; None of no values."""
    return float(np.percentile(values_ns, mark)) / 1e6 if len(values_ns) else None


def percentiles(values_ns: Sequence[int], marks: Sequence[float] = (50, 99)) -> dict[str, float]:
    """Percentiles in microseconds, by name."""
    found = np.percentile(np.asarray(values_ns), marks) / 1e3
    return {f"p{mark:g}_us": round(float(value), 1) for mark, value in zip(marks, found)}


def show(title: str, seed: int, rows: Sequence[dict[str, Any]], facts: dict[str, Any], as_json: bool) -> None:
    """Print one benchmark's result: conditions, one row per case, and facts of the whole run."""
    if as_json:
        body = {"title": title, "conditions": conditions(seed), "rows": rows, "facts": facts}
        print(json.dumps(body, indent=2, default=str))
        return
    under = conditions(seed)
    packages = " ".join(f"{name} {installed}" for name, installed in under["versions"].items())
    print(f"{title}\n  {under['machine']}, load average {under['load_average']}")
    print(f"  commit {under['commit']}, seed {seed}, python {under['python']} {packages}")
    if rows:
        names = list(rows[0])
        cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(names))]
        for row in cells:
            print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    for name, value in facts.items():
        print(f"  {name}: {_cell(value)}")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
