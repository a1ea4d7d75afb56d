"""Workloads: their statistics, order, independence, and reproducibility."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork.errors import ConfigError
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import (
    CHUNK_ARRIVALS,
    Arrivals,
    Class,
    Gamma,
    Gaps,
    OnOff,
    Recorded,
    Workload,
    bursty,
    chosen,
    constant,
    delayed,
    gamma,
    merge,
    mixed,
    on_off,
    poisson,
    pulses,
    ramp,
    renewal,
    scale,
    slo_ramp,
    slo_steps,
    window,
    zipf,
)
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
MINUTE = 60 * SECOND


def times_of(workload: Workload, model: int) -> np.ndarray:
    arrivals = workload.collect()
    return arrivals.t_ns[arrivals.model == model]


def digest(workload: Workload) -> str:
    found = hashlib.sha256()
    for chunk in workload:
        for array in (chunk.t_ns, chunk.model, chunk.slo_ns, chunk.priority, chunk.cls):
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


KINDS: dict[str, Callable[[int], Workload]] = {
    "poisson": lambda seed: poisson([300.0, 200.0, 0.0, 100.0], MINUTE, seed=seed),
    "gamma": lambda seed: gamma([500.0, 100.0], 4.0, MINUTE, seed=seed),
    "constant": lambda seed: constant([500.0, 100.0], MINUTE, seed=seed),
    "on_off": lambda seed: on_off([500.0, 100.0], 10 * MS, 40 * MS, MINUTE, seed=seed),
    "bursty": lambda seed: bursty([2500.0, 500.0], 100 * MS, 400 * MS, MINUTE, seed=seed),
    "ramp": lambda seed: poisson([600.0], MINUTE, steps=ramp(2.0, 10 * SECOND, 6, 1 / 10.5), seed=seed),
    "mixed": lambda seed: mixed(
        poisson([600.0], MINUTE, seed=seed), [Class(1, MS, 1), Class(3, 9 * MS)], seed
    ),
    "chosen": lambda seed: chosen(constant([600.0], MINUTE), zipf(5, 0.9), seed),
    "merged": lambda seed: merge(
        poisson([300.0], MINUTE, seed=seed), gamma([300.0], 2.0, MINUTE, seed=seed + 1)
    ),
    "scaled": lambda seed: scale(poisson([300.0], 2 * MINUTE, seed=seed), 2.0),
    "window": lambda seed: window(poisson([600.0], 3 * MINUTE, seed=seed), MINUTE, 2 * MINUTE),
    "delayed": lambda seed: delayed(poisson([1200.0], MINUTE // 2, seed=seed), MINUTE // 2),
}
"""Ways to have 600 requests a second, on average, for a minute."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_rate_its_order_and_its_bounds_and_repeats_itself(kind: str) -> None:
    workload = KINDS[kind](1)
    assert workload.duration_ns == MINUTE
    count, last_ns = 0, 0
    for chunk in workload:
        assert 1 <= len(chunk) <= CHUNK_ARRIVALS
        assert {len(array) for array in (chunk.model, chunk.slo_ns, chunk.priority, chunk.cls)} == {
            len(chunk)
        }
        assert chunk.t_ns[0] >= last_ns
        assert np.all(np.diff(chunk.t_ns) >= 0)
        last_ns = int(chunk.t_ns[-1])
        count += len(chunk)
    assert last_ns < MINUTE
    assert count == pytest.approx(36_000, rel=0.1 if kind in ("gamma", "on_off") else 0.06)
    assert digest(workload) == digest(workload) == digest(KINDS[kind](1))
    assert digest(KINDS[kind](2)) != digest(workload)


def test_the_same_seed_gives_the_same_arrivals_in_a_fresh_interpreter() -> None:
    program = (
        "from tests.unit.test_workloads import KINDS, digest\n"
        "print(*(digest(make(7)) for make in KINDS.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.split() == [digest(make(7)) for make in KINDS.values()], done.stderr


@pytest.mark.parametrize(
    ("make", "cv"),
    [
        (lambda: poisson([500.0], 4 * MINUTE), 1.0),
        (lambda: gamma([500.0], 0.5, 4 * MINUTE), 0.5),
        (lambda: gamma([500.0], 4.0, 4 * MINUTE), 4.0),
        (lambda: constant([500.0], 4 * MINUTE), 0.0),
    ],
)
def test_gaps_have_their_mean_and_their_variation(make: Callable[[], Workload], cv: float) -> None:
    gaps = np.diff(times_of(make(), 0))
    assert gaps.mean() == pytest.approx(2 * MS, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-4)


def test_gamma_sources_do_not_all_begin_with_a_burst() -> None:
    """In the stationary process, the first tenth of the time has a tenth of the arrivals."""
    arrivals = gamma([1.0] * 5000, 4.0, 10 * SECOND, seed=3).collect()
    by_second = np.bincount(arrivals.t_ns // SECOND, minlength=10)
    assert by_second == pytest.approx(np.full(10, 5000), rel=0.15)


def test_bursts_of_random_length_have_the_rate_and_the_spread_of_an_interrupted_poisson_process() -> None:
    """Its counts vary more than Poisson's, by a factor that is known for long intervals."""
    on_s, off_s, rate = 0.1, 0.4, 200.0
    arrivals = on_off([rate] * 50, 100 * MS, 400 * MS, 4 * MINUTE).collect()
    assert len(arrivals) == pytest.approx(50 * rate * 240, rel=0.02)
    counts = np.zeros((50, 24))
    np.add.at(counts, (arrivals.model, arrivals.t_ns // (10 * SECOND)), 1)
    burst, end, begin = rate * (on_s + off_s) / on_s, 1 / on_s, 1 / off_s
    expected = 1 + 2 * burst * end / (end + begin) ** 2
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.15)
    gaps = np.diff(times_of(on_off([rate], 100 * MS, 400 * MS, 4 * MINUTE), 0))
    # most gaps lie within bursts
    assert np.median(gaps) == pytest.approx(np.log(2) * SECOND / burst, rel=0.1)


def test_bursty_clients_ask_only_in_their_bursts_each_with_its_own_phase() -> None:
    arrivals = bursty([1000.0, 1000.0, 1000.0], 100 * MS, 900 * MS, MINUTE).collect()
    phases = []
    for model in range(3):
        inside = arrivals.t_ns[arrivals.model == model] % SECOND
        begins = np.sort(inside)
        gaps = np.diff(np.append(begins, begins[0] + SECOND))
        assert gaps.max() == pytest.approx(900 * MS, rel=0.01)  # idle once in each period
        phases.append(int(begins[(int(gaps.argmax()) + 1) % len(begins)]))
        assert len(inside) == pytest.approx(6000, rel=0.06)
    assert len({phase // (10 * MS) for phase in phases}) == 3


def test_rates_follow_their_steps_and_a_gap_is_carried_over_the_edge() -> None:
    arrivals = poisson(
        [1000.0], MINUTE, steps=[(20 * SECOND, 1.0), (20 * SECOND, 0.0), (SECOND, 3.0)]
    ).collect()
    by_step = np.bincount(arrivals.t_ns // (20 * SECOND), minlength=3)
    assert by_step[0] == pytest.approx(20_000, rel=0.03)
    assert by_step[1] == 0
    assert by_step[2] == pytest.approx(60_000, rel=0.03)  # the last step has no end
    even = constant([1.0], 4 * SECOND, steps=[(1500 * MS, 1.0), (SECOND, 2.0)]).collect().t_ns
    assert np.diff(even)[-1] == 500 * MS
    phase = int(even[0])
    assert phase < SECOND
    first_after = even[even >= 1500 * MS][0]
    passed = (1500 * MS - phase) % SECOND  # part of the gap, when the rate doubles
    assert first_after == pytest.approx(1500 * MS + (SECOND - passed) / 2, abs=2)
    assert pulses(1, 2, 2, 5.0) == [(1, 5.0), (2, 0.0), (1, 5.0), (2, 0.0)]


@pytest.mark.parametrize("gaps", [Gamma(3.0), OnOff(MS, 9 * MS)])
def test_another_model_shifts_nobody_elses_arrivals(gaps: Gaps) -> None:
    def make(rates: list[float], **more: Any) -> Workload:
        return renewal(rates, gaps, MINUTE, **more)

    few, many = make([50.0, 80.0]), make([50.0, 80.0, 4000.0, 7.0])
    for model in (0, 1):
        assert np.array_equal(times_of(few, model), times_of(many, model))
    assert np.array_equal(times_of(few, 1), times_of(make([80.0], models=[1]), 1))
    assert not np.array_equal(times_of(few, 1), times_of(make([80.0], models=[0]), 0))
    assert not np.array_equal(times_of(few, 1), times_of(make([50.0, 80.0], stream=1), 1))
    # And a higher rate is the same arrivals, denser: policies compared at several rates see the same luck.
    slow, fast = times_of(poisson([10.0], MINUTE), 0), times_of(poisson([20.0], MINUTE), 0)
    assert slow[:500] / 2 == pytest.approx(fast[:500], abs=2)


def test_mixing_in_classes_depends_on_nothing_else_that_arrives() -> None:
    classes = [Class(1, 10 * MS, 1), Class(3, 100 * MS, 0)]
    alone = mixed(poisson([200.0], MINUTE), classes, seed=5).collect()
    among = mixed(poisson([200.0, 300.0], MINUTE), classes, seed=5).collect()
    assert np.array_equal(alone.cls, among.cls[among.model == 0])
    assert np.mean(alone.cls == 0) == pytest.approx(0.25, abs=0.02)
    assert set(zip(alone.cls, alone.slo_ns, alone.priority)) == {(0, 10 * MS, 1), (1, 100 * MS, 0)}
    other = mixed(poisson([200.0], MINUTE), classes, seed=6).collect()
    assert np.mean(other.cls == alone.cls) == pytest.approx(0.25**2 + 0.75**2, abs=0.03)


@pytest.mark.parametrize("exponent", [0.0, 0.9, 2.0])
def test_popularity_follows_zipf(exponent: float) -> None:
    shares = zipf(20, exponent)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] / shares[9] == pytest.approx(10**exponent)
    counts = np.bincount(chosen(constant([5000.0], MINUTE), shares).collect().model, minlength=20)
    assert counts / counts.sum() == pytest.approx(np.array(shares), rel=0.1, abs=5e-4)


def test_merging_keeps_everything_in_order_with_ties_by_workload() -> None:
    first = Recorded(Arrivals.of([1, 5, 5, 9], [0, 0, 1, 0], cls=0), 20)
    second = Recorded(Arrivals.of([0, 5, 9, 9, 12], [2, 2, 2, 3, 2], cls=1), 30)
    both = merge(first, second)
    arrivals = both.collect()
    assert both.duration_ns == 30
    assert arrivals.t_ns.tolist() == [0, 1, 5, 5, 5, 9, 9, 9, 12]
    assert arrivals.model.tolist() == [2, 0, 0, 1, 2, 0, 2, 3, 2]
    assert arrivals.cls.tolist() == [1, 0, 0, 0, 1, 0, 1, 1, 1]


def test_merging_many_chunks_is_the_sorted_whole() -> None:
    class InPieces(Workload):
        def __init__(self, times: list[int], model: int, size: int) -> None:
            self.duration_ns, self._times, self._model, self._size = 10**6, times, model, size

        def __iter__(self):  # type: ignore[no-untyped-def]
            for begin in range(0, len(self._times), self._size):
                yield Arrivals.of(self._times[begin : begin + self._size], self._model)

    rng = np.random.default_rng(4)
    for _ in range(50):
        pieces = [
            InPieces(
                sorted(rng.integers(0, 40, rng.integers(0, 60)).tolist()), model, int(rng.integers(1, 9))
            )
            for model in range(4)
        ]
        merged = merge(*pieces).collect()
        expected = sorted((t, one._model) for one in pieces for t in one._times)
        assert list(zip(merged.t_ns.tolist(), merged.model.tolist())) == expected


def test_scaled_shifted_and_cut_workloads_are_the_same_arrivals_elsewhere() -> None:
    base = poisson([100.0], MINUTE)
    times = base.collect().t_ns
    assert np.array_equal(scale(base, 4.0).collect().t_ns, times // 4)
    assert np.array_equal(delayed(base, 7).collect().t_ns, times + 7)
    cut = window(base, 10 * SECOND, 20 * SECOND).collect().t_ns
    inside = times[(times >= 10 * SECOND) & (times < 20 * SECOND)]
    assert np.array_equal(cut, inside - 10 * SECOND)


def test_slos_change_at_their_steps_and_every_step_is_a_class() -> None:
    steps = slo_ramp(2_900_000, 1.5, 10 * SECOND, 6)
    assert steps[:3] == [(0, 2_900_000), (10 * SECOND, 4_350_000), (20 * SECOND, 6_525_000)]
    arrivals = slo_steps(poisson([100.0], MINUTE), steps).collect()
    step = arrivals.t_ns // (10 * SECOND)
    assert np.array_equal(arrivals.cls, step)
    assert np.array_equal(arrivals.slo_ns, np.array([slo_ns for _, slo_ns in steps])[step])


def test_a_long_workload_is_made_as_it_is_read() -> None:
    """A year of a million requests a second: the first chunks come at once."""
    year = poisson([1_000.0] * 1000, 365 * 86_400 * SECOND)
    for chunk in itertools.islice(year, 3):
        assert len(chunk) == CHUNK_ARRIVALS
    with pytest.raises(ConfigError, match="more than 1000 arrivals"):
        year.collect(1000)
    sparse = poisson([1e-9, 1.0], 3600 * SECOND, models=[7, 3]).collect()
    assert set(sparse.model.tolist()) == {3}
    assert poisson([0.0], SECOND).collect().t_ns.size == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: poisson([], SECOND), "0 clients"),
        (lambda: poisson([-1.0], SECOND), "rates"),
        (lambda: poisson([float("nan")], SECOND), "rates"),
        (lambda: poisson([1.0], 0), "duration 0"),
        (lambda: poisson([1.0], SECOND, seed=-1), "seed -1"),
        (lambda: poisson([1.0], SECOND, models=[1, 2]), "2 models for 1 rates"),
        (lambda: poisson([1.0], SECOND, models=[-1]), "index"),
        (lambda: poisson([1.0], SECOND, priority=256), "priority 256"),
        (lambda: poisson([1.0], SECOND, steps=[(0, 1.0)]), "step of 0 ns"),
        (lambda: gamma([1.0], 0.0, SECOND), "CV 0"),
        (lambda: on_off([1.0], 0, 1, SECOND), "bursts of 0 ns"),
        (lambda: bursty([1.0], 0, 1, SECOND), "bursts of 0 ns"),
        (lambda: scale(poisson([1.0], SECOND), 0.0), "factor 0"),
        (lambda: window(poisson([1.0], SECOND), 5, 5), "window from 5"),
        (lambda: delayed(poisson([1.0], SECOND), -1), "delay -1"),
        (lambda: merge(), "at least one"),
        (lambda: mixed(poisson([1.0], SECOND), []), "0 classes"),
        (lambda: mixed(poisson([1.0], SECOND), [Class(0.0)]), "share 0"),
        (lambda: mixed(poisson([1.0], SECOND), [Class(1.0, -1)]), "SLO -1"),
        (lambda: mixed(poisson([1.0], SECOND), [Class(1.0, 0, 256)]), "priority 256"),
        (lambda: chosen(poisson([1.0], SECOND), [0.0, 0.0]), "shares"),
        (lambda: slo_steps(poisson([1.0], SECOND), [(1, 1)]), "the first must at 0"),
        (lambda: zipf(0, 1.0), "zipf of 0"),
        (lambda: Recorded(Arrivals.of([5], 0), 5), "not before the end"),
        (lambda: Arrivals.of([5, 4], 0), "fall"),
        (lambda: Arrivals.of([-1], 0), "negative"),
        (lambda: Arrivals.of([1, 2], [0]), "shape"),
        (lambda: Arrivals.of([1], -1), "model -1"),
        (lambda: Arrivals.of([[1]], 0), "dimension"),
    ],
)
def test_what_makes_no_sense_is_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert said in str(raised.value)
