"""Which of two holdings is faster, and which batches pay, whatever else the machine does meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from clockwork.models import measure
from clockwork.models.measure import Compared, batch_sizes, compare, overall, profile
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire.tensors import Array

ROW = [np.zeros((1, 2), np.float32)]


class Bench(measure.Bench):
    """Two models whose executions take the time that ``taken_ns`` gives for the model, the batch size, and
    the number of executions before."""

    def __init__(self, taken_ns: Callable[[int, int, int], int]) -> None:
        self._taken_ns = taken_ns
        self._count = 0
        self.rowless = ()
        self.loaded: set[int] = set()
        self.sizes: list[int] = []

    def load(self, index: int) -> int:
        self.loaded.add(index)
        return 1

    def unload(self, index: int) -> None:
        self.loaded.remove(index)

    def run(self, index: int, inputs: Sequence[Array]) -> tuple[list[Array], int]:
        assert index in self.loaded
        size = len(inputs[0])
        if size not in self.sizes:
            self.sizes.append(size)
        self._count += 1
        return [], self._taken_ns(index, size, self._count)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.bounds, "RUNS_MAX", 5)


def test_every_batch_size_that_helps_counts_alike() -> None:
    # The first is faster alone, and packs its weights anew for every batch.
    bench = Bench(
        lambda index, size, _: 1000 + 100 * size if index else 900 + (300 * size if size > 1 else 0)
    )
    found = compare(bench, ROW, batch_sizes(8))
    assert [one.batch for one in found] == [1, 2, 4, 8]
    assert not bench.loaded
    assert found[0].ratio == pytest.approx(900 / 1100)
    assert found[3].ratio == pytest.approx(3300 / 1800)
    assert overall(found) == pytest.approx((900 / 1100 * 1500 / 1200 * 2100 / 1400 * 3300 / 1800) ** 0.25)


def test_a_machine_that_slows_down_meanwhile_changes_nothing() -> None:
    # Each execution takes a fiftieth longer than the one before.
    bench = Bench(lambda index, size, count: round((1_000_000 + 100_000 * size) * 1.02**count))
    assert overall(compare(bench, ROW, batch_sizes(16))) == pytest.approx(1, abs=0.03)


def test_batches_that_help_neither_are_not_compared() -> None:
    # Beyond four rows the second gains nothing; the first never does.
    bench = Bench(lambda index, size, _: 1000 * max(1, size // 4) if index else 1000 * size)
    assert [one.batch for one in compare(bench, ROW, batch_sizes(16))] == [1, 2, 4]
    assert bench.sizes == [1, 2, 4, 8]


def test_a_slow_model_is_compared_at_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(lambda index, size, _: measure.bounds.COMPARE_NS // 10 * (size + 1) - index)
    assert compare(bench, ROW, batch_sizes(16))[-1].batch == 8
    monkeypatch.setattr(measure.bounds, "COMPARE_SECONDS", 0.0)
    assert [one.batch for one in compare(bench, ROW, batch_sizes(16))] == [1]


def test_overall_is_the_geometric_mean() -> None:
    assert overall([Compared(1, 0.5), Compared(2, 2.0)]) == pytest.approx(1)


def test_a_batch_that_pays_is_found_on_a_machine_that_slows_down_meanwhile() -> None:
    # By a factor of about three from one size to the next, for which no batch compensates.
    bench = Bench(lambda index, size, count: round((1_000_000 + 20_000 * size) * 1.2**count))
    bench.load(0)
    points, helps = profile(bench, 0, ROW, batches=True, batch_max=16)
    assert [point.batch for point in points] == [1, 2, 4, 8, 16]
    assert helps == 16


def test_a_profile_ends_at_the_first_batch_that_does_not_pay() -> None:
    bench = Bench(lambda index, size, _: 1000 * max(4, size))
    bench.load(0)
    points, helps = profile(bench, 0, ROW, batches=True, batch_max=32)
    assert [(point.batch, point.exec_ns) for point in points] == [(1, 4000), (2, 4000), (4, 4000), (8, 8000)]
    assert helps == 4


def test_a_model_that_does_not_batch_has_a_single_point() -> None:
    bench = Bench(lambda index, size, _: 1000)
    bench.load(0)
    assert profile(bench, 0, ROW, batches=False) == ([ProfilePoint(((1, 2),), 1, 1000)], 1)
