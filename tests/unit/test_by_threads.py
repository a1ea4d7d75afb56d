"""Models measured with several numbers of threads: in turn, so that the machine's other work affects all."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clockwork.config import models as bounds
from clockwork.device.cpu import fingerprint
from clockwork.device.machine import UNKNOWN, Node, UsableMachine
from clockwork.errors import InvalidModel
from clockwork.formats.profiles import ModelProfile
from clockwork.models import by_threads, threads, zoo
from clockwork.models.prepare import prepare
from clockwork.scheduler.types import ProfilePoint
from tests.process.peers import prepared_model


class Bench:
    """A model that takes given times, over and over, whatever the batch."""

    def __init__(self, count: int, times: Sequence[int], calls: list[int]) -> None:
        self.rowless = ()
        self._count = count
        self._times = times
        self._calls = calls
        self._next = 0

    def run(self, index: int, inputs: Sequence[Any]) -> tuple[list[Any], int]:
        self._calls.append(self._count)
        self._next += 1
        return [], self._times[self._next % len(self._times)]


def test_executions_alternate_and_a_stall_of_the_machine_counts_for_nobody() -> None:
    calls: list[int] = []
    # The machine stalls in every third round, for all or for one alone.
    benches: dict[int, Any] = {
        1: Bench(1, [100, 100, 900], calls),
        2: Bench(2, [50, 50, 450], calls),
        4: Bench(4, [40, 40, 4_000], calls),
    }
    found = threads.speedups_in_turn(benches, [np.zeros((1, 2), np.float32)], [1, 8])
    assert set(found) == {1, 2, 4}
    for size in (1, 8):
        assert [found[count][size] for count in (1, 2, 4)] == [1.0, 2.0, 2.5]
    rounds = calls[-9:]
    assert rounds == [1, 2, 4] * 3


def machine_of(cores: int) -> UsableMachine:
    return UsableMachine((Node(UNKNOWN, tuple((core,) for core in range(cores))),))


@pytest.mark.parametrize(
    ("machine", "cores", "counts"), [(1, 64, [1]), (2, 2, [1, 2]), (6, 64, [1, 2, 4]), (64, 3, [1, 2]), (64, 64, [1, 2, 4, 8, 16, 32, 64])]
)  # fmt: skip
def test_threads_are_tried_as_far_as_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, machine: int, cores: int, counts: list[int]
) -> None:
    monkeypatch.setattr(threads, "this_machine", lambda: machine_of(machine))
    assert threads.thread_counts(cores) == counts


def test_a_file_is_measured_with_each_number_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(by_threads, "measure_slowdown", lambda place: {1: 1.0, 2: 1.5}[place.executors])
    monkeypatch.setattr(by_threads, "this_machine", lambda: machine_of(2))
    monkeypatch.setattr(
        by_threads, "speedups_in_turn", lambda benches, inputs, sizes: {1: dict.fromkeys(sizes, 1.0), 2: dict.fromkeys(sizes, 2.0)}
    )  # fmt: skip
    path = tmp_path / "small.onnx"
    onnx.save(zoo.build("null"), path)
    told: list[str] = []
    found = by_threads.measure_by_threads([path], [1, 2], 2, told.append)
    (one,), (two,) = found[1], found[2]
    assert isinstance(one, ModelProfile)
    assert one.name == two.name == "small"
    assert one.exec_ns.keys() == two.exec_ns.keys()
    # An execution of one thread is slowed by the other core, one of two threads has both.
    for size, ns in one.exec_ns.items():
        assert ns == pytest.approx(3 * two.exec_ns[size], rel=0.01, abs=3)
    assert one.input_bytes == 16
    one.check()
    assert [line.split(":")[0] for line in told] == ["small, threads 1", "small, threads 2"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_preparation_times_a_slow_model_with_more_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "this_machine", lambda: machine_of(4))
    monkeypatch.setattr(
        threads, "speedups_in_turn", lambda benches, inputs, sizes: {count: {1: float(count)} for count in benches}
    )  # fmt: skip
    monkeypatch.setattr(bounds, "THREADS_FROM_NS", 1)
    found = {}
    for name, model in (("first", zoo.build("mlp")), ("second", zoo.fine_tune(zoo.build("mlp"), 1))):
        package = tmp_path / name
        package.mkdir()
        onnx.save(model, package / "model.onnx")
        found[name] = prepare(package, tmp_path / "store", fingerprint(1), mmap.PAGESIZE, {})
    alone = found["first"].profile[0].exec_ns
    assert found["first"].by_threads == [[2, round(alone / 2)], [4, round(alone / 4)]]
    assert found["second"].by_threads == found["first"].by_threads
    store = tmp_path / "store"
    assert len(list((store / "prepared").iterdir())) == 2
    assert len(list((store / "programs").iterdir())) == 1


def test_a_fast_model_and_one_of_several_threads_are_timed_as_they_are(tmp_path: Path) -> None:
    onnx.save(zoo.build("null"), tmp_path / "model.onnx")
    assert prepare(tmp_path, tmp_path / "store", fingerprint(1), mmap.PAGESIZE, {}).by_threads == []


@pytest.mark.parametrize(
    ("slo_ms", "timed", "said"),
    [
        (40, [[2, 20]], ""),
        (39, [], "below its execution time of 40 ms"),
        (25, [[4, 12], [2, 21]], "below its execution time of 40 ms; with 2 threads it takes 21 ms: serve it by workers with --threads 2"),
        (20, [[2, 21], [4, 12]], "below its execution time of 40 ms; with 4 threads it takes 12 ms: serve it by workers with --threads 4"),
        (5, [[2, 21], [4, 12], [8, 14]], "below its execution time of 40 ms; with 4 threads it takes 12 ms: no number that was tried meets it"),
    ],
)  # fmt: skip
def test_an_slo_that_one_thread_cannot_meet_is_refused_with_the_threads_that_could(
    slo_ms: int, timed: list[list[int]], said: str
) -> None:
    prepared = prepared_model(
        profile=[ProfilePoint(((2,),), 1, 40_000_000), ProfilePoint(((2,),), 2, 70_000_000)],
        by_threads=[[count, ms * 1_000_000] for count, ms in timed],
    )
    assert prepared.slo_below_execution(slo_ms * 1_000_000) == said


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InvalidModel, match=r"broken\.onnx"):
        by_threads.measure_by_threads([path], [1], 1, lambda line: None)
