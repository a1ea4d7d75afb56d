"""A model whose executions take ten or ten thousand times the prediction delays other models by one of them
only."""

from __future__ import annotations

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile, linear
from clockwork.sim.world import Closed, Cluster, Disturbance, Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import Arrivals

POLICIES = ("edf", "adaptive")
pytestmark = pytest.mark.parametrize("policy", POLICIES)
HONEST, WILD = 0, 1
"""Indices of the models, and of the classes of their requests."""

HONEST_US, WILD_US, FACTOR = 200, 20, 60_000
EXECUTION_MS = WILD_US * FACTOR / 1000
QUIET_MS = 0.4
"""Longest answer of the honest model by itself: four clients of 200 us each, at once, take turns."""

CLIENTS, SECONDS, BURST = 4, 30, 400


def profiles() -> list[ModelProfile]:
    def profile(name: str, exec_us: int) -> ModelProfile:
        return linear(name, 1000 * exec_us - 1, 1, 1, weights_bytes=1 << 20, load_ns=8 * MS, input_bytes=0,
                      output_bytes=4, program=name)  # fmt: skip

    return [profile("honest", HONEST_US), profile("wild", WILD_US)]


def burst(at_ns: int, slo_ns: int, count: int = BURST) -> Arrivals:
    return Arrivals(
        np.full(count, at_ns, np.int64), np.full(count, WILD, np.int32), np.full(count, slo_ns, np.int64),
        np.zeros(count, np.uint8), np.full(count, WILD, np.uint8),
    )  # fmt: skip


def run(
    policy: str, arrivals: list[Arrivals], spells: list[tuple[float, float]], seconds: int = SECONDS
) -> Report:
    """Load: four honest clients with a loose SLO, beside these requests of the wild model, which is slow in
    these spells (s)."""
    slow = [
        Disturbance("execution", round(begin * SECOND), round(end * SECOND), FACTOR, model=WILD)
        for begin, end in spells
    ]
    honest = Closed(HONEST, CLIENTS, 10 * MS, slo_ns=20 * SECOND, cls=HONEST, until_ns=(seconds - 1) * SECOND)
    return simulate(
        profiles(), Cluster(exec_noise=0.003, disturbances=slow), [honest, Open(arrivals)], policy=policy,
        resident=True, seed=1, check=True, until_ns=seconds * SECOND, drain_ns=60 * SECOND,
    )  # fmt: skip


def longest_ms(report: Report) -> float:
    return report.class_latency[HONEST].percentile(100) / MS


def test_alone_the_honest_wait_for_each_other_only(policy: str) -> None:
    report = run(policy, [burst(SECOND, 60 * SECOND)], [])
    assert report.classes.good[WILD] == BURST, "as predicted, they take 8 ms in all"
    assert longest_ms(report) < QUIET_MS + BURST * WILD_US / 1000


@pytest.mark.parametrize("slo_s", [3, 10, 60])
@pytest.mark.slow
def test_a_burst_of_executions_that_take_long_holds_others_up_for_one(policy: str, slo_s: int) -> None:
    """The wild model had 400 requests admitted at 20 us each.

    By deadlines alone, others would wait for all executions that these allow: 9.6 s of 10.
    """
    report = run(policy, [burst(SECOND, slo_s * SECOND)], [(0, 1000)])
    assert longest_ms(report) < 2 * QUIET_MS + 1.05 * EXECUTION_MS
    assert report.classes.good[HONEST] == report.classes.offered[HONEST]
    # The wild model gets the time that the others leave.
    possible = min(slo_s, SECONDS - 2) / (EXECUTION_MS / 1000)
    assert report.classes.good[WILD] >= 0.6 * (possible - 1)


def test_requests_that_keep_coming_hold_others_up_for_one_execution_each(policy: str) -> None:
    arrivals = [burst(second * SECOND, 8 * SECOND, 20) for second in range(1, SECONDS)]
    report = run(policy, arrivals, [(0, 1000)])
    assert longest_ms(report) < 2 * QUIET_MS + 1.05 * EXECUTION_MS
    assert report.classes.good[HONEST] == report.classes.offered[HONEST]


@pytest.mark.slow
def test_quick_executions_between_those_that_take_long_hold_nobody_up(policy: str) -> None:
    """A short execution excuses a single overdue execution before it; the next overdue execution counts
    against the model all the same."""
    gap_s, period_s = 0.003, EXECUTION_MS / 1000
    spells = [(1 + number * period_s + gap_s, 1 + (number + 1) * period_s) for number in range(20)]
    arrivals = [burst(round(second * SECOND / 4), 8 * SECOND, 20) for second in range(4, 4 * (SECONDS - 5))]
    report = run(policy, arrivals, spells)
    assert longest_ms(report) < 2 * QUIET_MS + 1.05 * EXECUTION_MS
    assert report.classes.good[HONEST] == report.classes.offered[HONEST]


def test_a_model_that_takes_long_now_and_then_is_predicted_by_its_worst_until_it_behaves(policy: str) -> None:
    """Every other second an execution takes 1.2 s; from 12 s on none does."""
    arrivals = [burst(round(second * SECOND / 8), 900 * MS, 3) for second in range(8, 8 * 25)]
    spells = [(second, second + 0.05) for second in range(2, 12, 2)]
    report = run(policy, arrivals, spells)
    assert longest_ms(report) < 2 * QUIET_MS + 1.05 * EXECUTION_MS
    after = run(policy, [one for one in arrivals if one.t_ns[0] >= 14 * SECOND], [])
    calm = int(after.classes.good[WILD])
    assert calm == after.classes.offered[WILD] == 3 * 8 * 11
    # Two seconds after the last slow execution, all models are served again.
    assert report.classes.good[WILD] >= calm
