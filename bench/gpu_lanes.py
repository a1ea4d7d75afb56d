"""Overhead of a CUDA device's lanes: late notice of a kernel's end, idle time between batches, waits for a
link.

    python -m bench.gpu_lanes [--quick] [--json]

The benchmark runs on the fake driver, which records when each kernel, copy and write really began and ended;
no time here is a GPU's. INFERs of one kernel of a known length, one at a time: how long after the kernel's
end the lanes notice it, and the lanes' processor time for it. INFERs back to back: how long the device is
idle between two batches. LOADs: their rate as a share of a bare copy's, by page size. INFERs beside LOADs on
one copy engine: how long their inputs wait.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.gpu import LAUNCHES, Site, row
from clockwork.system.clock import MS
from tests.device.fake import DRIVER, FakeDriver, environment

KERNELS_MS = (1, 5, 20)
PAGES_MIB = (1, 4, 16)
LOAD_MIB = 64
CALL_NS = 1_000
"""Time of a call of the driver, during which every other call waits."""

LINK_RATE = 2_000_000_000
"""Bytes copied a second; slow enough for the memory of a small machine."""


def lanes_time_ns() -> int:
    """Processor time of all lanes of this process."""
    taken = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("cw-"):
            taken += int((task / "schedstat").read_text().split()[0])
    return taken


def notice(site: Site, fake: FakeDriver, kernel_ms: int, count: int) -> tuple[dict[str, Any], float]:
    """A row of delays until kernels' ends are noticed; and the lanes' microseconds of CPU for each INFER."""
    fake.speed(kernel_ns=kernel_ms * MS)
    expected_ns = sorted(site.infer(0).execute[2] for _ in range(10))[-2]  # estimated as the controller does
    fake.steps()
    before_ns = lanes_time_ns()
    ends_ns = [site.infer(0, expected_ns).execute[1] for _ in range(count)]
    spent_ns = lanes_time_ns() - before_ns
    kernels = [step.end_ns for step in fake.steps() if step.kind == "kernel"]
    late = [end_ns - kernel_ns for end_ns, kernel_ns in zip(ends_ns, kernels, strict=True)]
    return row(f"noticed after a kernel of {kernel_ms} ms", late), spent_ns / count / 1e3


def idle(site: Site, fake: FakeDriver, kernel_ms: int, count: int) -> dict[str, Any]:
    """A row: idle times of the device between two batches, while the next batch is always queued."""
    fake.speed(kernel_ns=kernel_ms * MS)
    expected_ns = sorted(site.infer(0).execute[2] for _ in range(10))[-2]  # estimated as the controller does
    fake.steps()
    waiting = [site.start_infer(0, expected_ns), site.start_infer(0, expected_ns)]
    for _ in range(count):
        site.end(waiting.pop(0))
        waiting.append(site.start_infer(0, expected_ns))
    for action in waiting:
        site.end(action)
    kernels = [step for step in fake.steps() if step.kind == "kernel"]
    gaps = [after.begin_ns - before.end_ns for before, after in itertools.pairwise(kernels)]
    return row(f"idle between batches of {kernel_ms} ms", gaps)


def load_share(load_mib: int, page_mib: int, fake: FakeDriver, count: int) -> float:
    """A bare copy's time as a share of a LOAD's of as many bytes; medians, taken in turn."""
    fake.speed(copy_rate=LINK_RATE)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Site(Path(scratch) / "site", load_mib // page_mib, page_mib << 20, LAUNCHES[:1]) as site,
    ):
        bare, loads = [], []
        expected_ns = 0
        for _ in range(count):
            bare += site.bare_copies(1)
            loads.append(site.load(0, expected_ns).execute[2])
            expected_ns = max(loads)
            site.unload(0)
    return float(np.median(bare) / np.median(loads))


def beside_loads(site: Site, fake: FakeDriver, count: int) -> list[dict[str, Any]]:
    """Rows: the times of inputs' copies alone and beside LOADs, and of these LOADs."""
    fake.speed(copy_rate=LINK_RATE, kernel_ns=MS)
    site.unload(1)
    alone = [site.infer(0).copy_in[2] for _ in range(count)]
    beside, loads, load_ns = [], [], 0
    for _ in range(-(-count // 5)):
        load = site.start_load(1, load_ns)
        beside += [site.infer(0).copy_in[2] for _ in range(5)]
        loads.append(site.end(load).execute[2])
        load_ns = max(loads)
        site.unload(1)
    site.load(1)
    return [row("inputs copied", alone), row("inputs copied beside a LOAD", beside), row("that LOAD", loads)]


def measure(
    count: int,
    loads: int,
    load_mib: int = LOAD_MIB,
    kernels_ms: Sequence[int] = KERNELS_MS,
    pages_mib: Sequence[int] = PAGES_MIB,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    with environment(**DRIVER), tempfile.TemporaryDirectory() as scratch:
        fake = FakeDriver()
        fake.setup(device_bytes=1 << 30)
        fake.engines(1, CALL_NS)
        with Site(Path(scratch) / "site", 4, load_mib << 18, LAUNCHES[:2]) as site:
            site.load(0)
            site.load(1)
            for kernel_ms in kernels_ms:
                found, spent_us = notice(site, fake, kernel_ms, count if kernel_ms < 20 else count // 2)
                rows.append(found)
                facts[f"processor time of an INFER of {kernel_ms} ms, us"] = round(spent_us, 1)
            rows.append(idle(site, fake, kernels_ms[-1] // 4 or 1, count))
            rows += beside_loads(site, fake, count)
        for page_mib in pages_mib:
            share = load_share(load_mib, page_mib, fake, loads)
            facts[f"LOAD, share of the bare copy's rate, pages of {page_mib} MiB"] = round(share, 3)
        fake.speed()
        fake.engines()
    return rows, facts


def main() -> None:
    asked = report.command_line(__doc__).parse_args()
    rows, facts = measure(*((10, 3) if asked.quick else (200, 20)))
    report.show(f"the fake driver; {os.cpu_count()} cores", 0, rows, facts, asked.json)


if __name__ == "__main__":
    main()
