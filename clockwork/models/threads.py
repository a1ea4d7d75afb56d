"""Executions with several numbers of threads, timed in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clockwork.config import models as bounds
from clockwork.device.cpu import fingerprint
from clockwork.device.machine import this_machine
from clockwork.formats.prepared import PREPARED_FILE, PreparedModel, program_name
from clockwork.models.answers import tile
from clockwork.models.holdings import write_program
from clockwork.models.measure import Bench
from clockwork.wire.tensors import Array


def thread_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, ... threads, as far as this machine and ``cores`` have a core for each."""
    most = max(1, min(cores, this_machine().core_count))
    return [1 << power for power in range(most.bit_length())]


@contextlib.contextmanager
def benches_by_threads(
    directory: Path, program: bytes, counts: Sequence[int], page_bytes: int, folder: Path
) -> Iterator[dict[int, Bench]]:
    """Benches by number of threads, on which a model prepared for one thread is loaded.

    program: of the model. folder: an empty one, for stores in which it is prepared for more threads: the same
    files, which are linked. Times are of the clock. Raises InvalidModel and OSError.
    """
    prepared = PreparedModel.read(directory)
    with contextlib.ExitStack() as stack:
        benches = {}
        for count in counts:
            kind = fingerprint(count)
            place = folder / str(count) / "prepared" / "model"
            place.mkdir(parents=True)
            for file in directory.iterdir():
                if file.name != PREPARED_FILE:
                    os.link(file, place / file.name)
            name = program_name(program, kind)
            write_program(folder / str(count), name, program, kind)
            dataclasses.replace(prepared, fingerprint=kind, program=name).write(place)
            bench = Bench(kind, page_bytes, [place], by_clock=True)
            stack.callback(bench.close)
            bench.load(0)
            benches[count] = bench
        yield benches


def speedups_in_turn(
    benches: Mapping[int, Bench], inputs: Sequence[Array], sizes: Sequence[int]
) -> dict[int, dict[int, float]]:
    """Return how many times as fast as with one thread a model executes batches of these sizes.

    benches: by number of threads, with the model loaded as their first. inputs: of a single row. Benches
    execute in turn, so that other load on the machine affects all, and the median over the rounds of the
    ratio of two times counts. Raises RunError.
    """
    least, most = bounds.THREADS_ROUNDS
    found: dict[int, dict[int, float]] = {count: {} for count in benches}
    for size in sizes:
        batch = tile(inputs, size, benches[1].rowless)
        for bench in benches.values():
            bench.run(0, batch)
        rounds: list[dict[int, int]] = []
        give_up = time.monotonic() + len(benches) * bounds.POINT_SECONDS
        while len(rounds) < least or (len(rounds) < most and time.monotonic() < give_up):
            rounds.append({count: max(1, bench.run(0, batch)[1]) for count, bench in benches.items()})
        for count in benches:
            found[count][size] = statistics.median(times[1] / times[count] for times in rounds)
    return found
