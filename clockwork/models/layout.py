"""The layout of a model's weights in pages.

A *run* is a number of contiguous pages. A model has several runs, which may lie anywhere in the arena. A
tensor crosses a page boundary only if the tensor is larger than a page; it then begins a new run. The last
page of such a run takes small tensors as well: with 1 MiB pages, unused tails would otherwise be 15 % of a
resnet50.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config.models import OPEN_RUNS_MAX

ALIGNMENT_BYTES = 64  # Alignment of ONNX Runtime's allocator: a cache line, and the widest vector


class WeightLayout(NamedTuple):
    runs: list[int]  # page count of each run
    places: list[tuple[int, int]]  # place of each tensor: (run, offset in bytes into it)


def lay_out(sizes: Sequence[int], page_bytes: int) -> WeightLayout:
    """Place tensors of these sizes (bytes) by first-fit decreasing. The result is deterministic."""
    if page_bytes < ALIGNMENT_BYTES or page_bytes % ALIGNMENT_BYTES:
        raise ValueError(f"page_bytes must be a multiple of {ALIGNMENT_BYTES}, not {page_bytes}")
    runs: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(sizes)
    open_runs: list[list[int]] = []  # [run, first free offset, end]; free space lies in the last page
    for tensor in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[tensor]
        if size <= page_bytes:
            room = next((run for run in open_runs if run[1] + size <= run[2]), None)
            if room is not None:
                places[tensor] = (room[0], room[1])
                room[1] = _aligned(room[1] + size)
                continue
        run = len(runs)
        runs.append(max(1, -(-size // page_bytes)))
        places[tensor] = (run, 0)
        open_runs.append([run, _aligned(size), runs[run] * page_bytes])
        if len(open_runs) > OPEN_RUNS_MAX:
            del open_runs[0]
    return WeightLayout(runs, places)


def write_weights(path: Path, layout: WeightLayout, tensors: Sequence[Any], page_bytes: int) -> None:
    """Write the runs one after another. tensors: bytes-like, in the order of lay_out()'s sizes."""
    starts = [0]
    for pages in layout.runs:
        starts.append(starts[-1] + pages * page_bytes)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, starts[-1])
        for data, (run, offset) in zip(tensors, layout.places, strict=True):
            view, position = memoryview(data).cast("B"), starts[run] + offset
            while view:
                written = os.pwrite(descriptor, view, position)
                view, position = view[written:], position + written
    finally:
        os.close(descriptor)


def _aligned(offset: int) -> int:
    return (offset + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES
