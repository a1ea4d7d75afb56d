"""devices_wanted, the scheduler's own estimate, compared with the planner's, which simulates every number of
devices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from clockwork.formats.profiles import ModelProfile, linear
from clockwork.sim import Cluster, Open, Report, simulate
from clockwork.sim.planning import Planner, Scenario
from clockwork.workloads import Workload, poisson, zipf

MS = 1_000_000
SECOND = 1000 * MS
PAGE = 16 << 20

CNN = linear("cnn", 0, 10 * MS, 1, weights_bytes=100_000_000, load_ns=8 * MS, slo_ns=100 * MS)
"""A model that executes requests one at a time."""
MLP = linear("mlp", 2 * MS, 1 * MS, 16, weights_bytes=100_000_000, load_ns=8 * MS, slo_ns=50 * MS)
"""A model with batches: 3 ms for one row, 18 ms for 16."""
HEAVY = dataclasses.replace(CNN, exec_ns={1: 2 * MS}, load_ns=40 * MS)
"""A model whose load takes as long as twenty executions."""

HALF = 8 * CNN.pages(PAGE)
"""Pages for eight models."""


def many(model: ModelProfile, count: int) -> list[ModelProfile]:
    return [dataclasses.replace(model, name=f"{model.name}-{number}") for number in range(count)]


def arrivals(models: list[ModelProfile], skew: float = 0.0) -> Any:
    def make(rate: float, duration_ns: int, seed: int) -> Workload:
        return poisson([rate * share for share in zipf(len(models), skew)], duration_ns, seed=seed)

    return make


def wanted(
    models: list[ModelProfile],
    rate: float,
    devices: int,
    skew: float = 0.0,
    policy: str = "adaptive",
    **cluster: Any,
) -> Report:
    """Return the estimate after twenty seconds of the load."""
    workload = arrivals(models, skew)(rate, 20 * SECOND, 3)
    return simulate(
        models, Cluster(devices=devices, **cluster), [Open(workload)], policy, seed=3, warmup_ns=10 * SECOND, resident=True
    )  # fmt: skip


@pytest.mark.parametrize(
    ("models", "rate", "skew", "pages"),
    [
        ([CNN], 250, 0.0, 0),
        # randomness of arrivals, at an SLO of two executions
        ([dataclasses.replace(CNN, slo_ns=22 * MS)], 150, 0.0, 0),
        ([MLP], 1500, 0.0, 0),
        (many(MLP, 20), 2000, 0.9, 0),  # most models get too few requests for large batches
        (many(HEAVY, 16), 300, 0.0, HALF),  # memory: eight models fit on a device
        (many(HEAVY, 40), 150, 1.2, HALF),
    ],
    ids=["unbatched", "tight", "batched", "many", "memory", "skewed"],
)
def test_it_is_near_the_planners_answer_and_the_same_with_few_devices_and_many(
    models: list[ModelProfile], rate: float, skew: float, pages: int
) -> None:
    cluster = {"page_count": pages} if pages else {}
    # adaptive uses devices best; edf needs a third device where the models' rates are skewed
    scenario = Scenario(
        models, arrivals(models, skew), Cluster(**cluster), rate,
        policy="adaptive", requests=4000, seeds=(1,), bad_max=0.01,
    )  # fmt: skip
    planned = Planner(scenario, limits=False).devices().answer
    assert planned is not None
    answers = [
        wanted(models, rate, devices, skew, **cluster).devices_wanted
        for devices in (max(int(planned) - 1, 1), int(planned), int(planned) + 2)
    ]
    assert all(planned <= math.ceil(one) <= planned + 2 for one in answers), (planned, answers)
    assert max(answers) - min(answers) < 0.5, answers


def test_a_cluster_that_is_far_too_small_is_to_double_and_so_on() -> None:
    """A refused client may ask again and again, so refused requests beyond a bound do not count as demand."""
    assert wanted([CNN], 1000, 1).devices_wanted == 2
    assert wanted([CNN], 1000, 2).devices_wanted == 4
    assert wanted([CNN], 1000, 4).devices_wanted == 8
    assert wanted([CNN], 1000, 8).devices_wanted == pytest.approx(1000 * 0.01 / 0.85, rel=0.05)


def test_requests_that_no_device_could_serve_ask_for_none() -> None:
    report = wanted([dataclasses.replace(CNN, slo_ns=5 * MS)], 500, 2)
    assert report.good.sum() == 0
    assert report.devices_wanted == 0


def test_a_load_that_has_ended_is_forgotten() -> None:
    hour = poisson([200.0], 10 * SECOND, seed=1)
    rest = poisson([0.2], 100 * SECOND, seed=2)
    late = [dataclasses.replace(one, t_ns=one.t_ns + 10 * SECOND) for one in rest]
    report = simulate([CNN], Cluster(devices=4), [Open([*hour, *late])], seed=1, resident=True)
    assert report.devices_wanted < 0.05


@pytest.mark.parametrize("policy", ["edf", "fifo", "paper", "deferred"])
def test_every_policy_says_about_the_same(policy: str) -> None:
    ours = wanted([CNN], 250, 4).devices_wanted
    assert wanted([CNN], 250, 4, policy=policy).devices_wanted == pytest.approx(ours, rel=0.02)
