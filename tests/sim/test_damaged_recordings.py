"""Recordings with well-formed bytes and wrong values: every reader reports the place in one sentence."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from clockwork import __version__
from clockwork.errors import ConfigError
from clockwork.observe.recorded import read_history
from clockwork.scheduler.recording import Header, encode_header, encode_step
from clockwork.sim.recorded import read_recorded
from clockwork.sim.replay import replay
from tests.sim.test_scheduler_random import random_world

Rows = list[Any]
"""Return the steps of a recording, as lists."""

WRONG = (
    None, True, -1, 0, 1, 5, 255, 256, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63), 1.5, float("nan"),
    "", "x", b"", b"x", [], [1], {}, [[]], ["x"],
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> Rows:
    world = random_world(8, calm=False, policy="adaptive")
    world.settle()
    steps = [encode_step([event], orders) for event, orders in world.trace]
    return [msgpack.unpackb(msgpack.unpackb(step)) for step in steps]


def write(path: Path, rows: Rows) -> Path:
    head = encode_header(Header("adaptive", "", {}, __version__))
    path.write_bytes(head + b"".join(msgpack.packb(msgpack.packb(row)) for row in rows))
    return path


def damage(rows: Rows, rng: random.Random) -> Rows:
    """Change a value somewhere in a few of the steps, or add or remove a field."""
    damaged = list(rows)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(rows))
        damaged[place] = _other(damaged[place], rng, 6)
    return damaged


def _other(value: Any, rng: random.Random, depth: int) -> Any:
    if isinstance(value, list) and value and depth and rng.random() < 0.95:
        found = list(value)
        place = rng.randrange(len(found))
        if rng.random() < 0.1:
            del found[place]
        elif rng.random() < 0.1:
            found.insert(place, rng.choice(WRONG))
        else:
            found[place] = _other(found[place], rng, depth - 1)
        return found
    return rng.choice(WRONG)


def write_telemetry(path: Path) -> None:
    telemetry = pytest.importorskip("clockwork.observe.telemetry")
    folder = path.with_suffix(f".{random.random()}")
    telemetry.write_recording(folder, path, 1 << 30)


READERS: dict[str, Callable[[Path], object]] = {
    "replay": replay,
    "simulation": read_recorded,
    "history": read_history,
    "telemetry": write_telemetry,
}


def check_damaged(path: Path, rows: Rows, seed: int, readers: list[Callable[[Path], object]]) -> int:
    """Have readers read a damaged recording; return how many of them refused it."""
    write(path, damage(rows, random.Random(seed)))
    refusals = []
    for reader in readers:
        try:
            reader(path)
        except ConfigError as error:
            refusals.append(str(error))
    assert all(str(path) in text and len(text) < 400 for text in refusals), refusals
    return len(refusals)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ([0, 0, 1, 2, "x", [], 0, 0, 0, 4], "record 0 is Arrived: rows is 'x', not a number from 0 to 18446744073709551615"),
        ([0, 0, 1, 2, 1, [[1.5]], 0, 0, 0, 4], r"record 0 is Arrived: shape is \(1.5,\): "),
        ([0, 0, 1, 2, 1, [], 0, 0, 0, 256], "record 0 is Arrived: priority is 256, not a number from 0 to 255"),
        ([2, 0, 1, 1, 77, "", 0, 0, 0, 0], "record 0 is ActionDone: status is 77, which is none"),
        ([3, 0, 1, [["cpu", 1, 1 << 40, 1]], 0], "record 0 is WorkerJoined: page_count is 1099511627776, not a number"),
        ([4, 0, 1 << 31], "record 0 is WorkerLeft: worker is 2147483648, not a number from -2147483648 to 2147483647"),
        ([4, 0], "record 0 is WorkerLeft: it has 1 fields, not 2"),
        ([4, 1 << 63, 1], "record 0 is WorkerLeft: now_ns is 9223372036854775813, not a number"),
        ([7, 0, 1, 1, 5, 1, "p", False, 1, 0, [1], 5, []], "record 0 is ModelReady: name is 5, not a text"),
        ([7, 0, 1, 1, "m", 1, "p", 0, 1, 0, [1], 5, []], "record 0 is ModelReady: batches is 0, not true or false"),
        ([99, 0], "record 0 is nothing that is known"),
        ("x", "record 0 is nothing that is known"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, event: Any, sentence: str) -> None:
    path = write(tmp_path / "it.rec", [[5, 0, [], []], [5, 0, [event], []]])
    for reader in READERS.values():
        with pytest.raises(ConfigError, match=rf"^{path}: step 1 of the recording is damaged: {sentence}"):
            reader(path)


def test_damaged_recordings_are_refused_in_a_sentence(tmp_path: Path, rows: Rows) -> None:
    readers = [READERS["replay"], READERS["history"]]
    refused = sum(check_damaged(tmp_path / "it.rec", rows[:150], seed, readers) for seed in range(40))
    assert refused > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_recordings_are_refused_in_a_sentence(tmp_path: Path, rows: Rows, name: str) -> None:
    refused = sum(
        check_damaged(tmp_path / "it.rec", rows[:400], seed, [READERS[name]]) for seed in range(300)
    )
    assert refused > 150
