"""How soon `adaptive` refuses requests that it will not serve: models whose batches save little, with spells
of slow executions."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile, linear
from clockwork.sim import Cluster, Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads import gamma, poisson

SECONDS = 30
SLO_MS = 100
EXEC_MS = 4.0
ROW_MS = 0.95 * EXEC_MS
"""Time of each row after the first of a batch."""
SPELL_MS = 50
PROMPT_MS = 10


def slowness(seed: int) -> list[tuple[int, float]]:
    """Factors of executions' durations, by the spell: about a tenth more, and now and then twice as long."""
    random = np.random.default_rng(seed)
    factors = np.exp(0.1 * np.abs(random.standard_normal(SECONDS * 1000 // SPELL_MS)))
    factors[random.random(len(factors)) < 0.03] *= 1.8
    return [(place * SPELL_MS * MS, float(factor)) for place, factor in enumerate(factors)]


@functools.cache
def served(load: float, models: int, row_ms: float = ROW_MS) -> tuple[Report, float]:
    """A device at a load, and how many requests a second it can do one by one."""
    spells = slowness(1)
    rate = 1000 / EXEC_MS / float(np.mean([factor for _, factor in spells]))
    profile = {batch: round((EXEC_MS + (batch - 1) * row_ms) * MS) for batch in (1, 2, 4, 8, 16)}
    kinds = [
        ModelProfile(
            f"cnn{index}",
            profile,
            weights_bytes=10 << 20,
            load_ns=5 * MS,
            slo_ns=SLO_MS * MS,
            program="cnn",
        )
        for index in range(models)
    ]
    arrivals = poisson([load * rate / models] * models, SECONDS * SECOND, seed=2, slo_ns=SLO_MS * MS)
    cluster = Cluster(exec_noise=0.03, outlier=0.01, spells=spells, link_jitter_ns=280_000)
    return simulate(kinds, cluster, [Open(arrivals)], policy="adaptive", seed=1, resident=True), rate


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("load", [1.2, 1.5])
def test_in_overload_nearly_all_refusals_are_prompt_and_the_device_is_busy(load: float, models: int) -> None:
    report, rate = served(load, models)
    assert report.refused.sum() > 0.1 * report.offered.sum()
    assert report.refusal.fraction_within(PROMPT_MS * MS) >= 0.98
    assert report.goodput_rate >= 0.98 * rate


@pytest.mark.parametrize("models", [1, 4])
@pytest.mark.parametrize("load", [1.2, 1.5])
def test_where_batches_save_a_fifth_most_refusals_are_prompt_too(load: float, models: int) -> None:
    """Late refusals made up half of the refusals for one model, and nearly all for four."""
    report, rate = served(load, models, 0.8 * EXEC_MS)
    assert report.refused.sum() > 0.03 * report.offered.sum()
    assert report.refusal.fraction_within(PROMPT_MS * MS) >= 0.9
    assert report.goodput_rate >= 1.08 * rate


@pytest.mark.parametrize("models", [1, 4])
def test_next_to_nothing_is_refused_while_there_is_time_for_all(models: int) -> None:
    assert served(0.6, models)[0].bad_fraction == 0
    assert served(0.75, models)[0].bad_fraction <= 0.005


def test_no_request_is_given_up_for_a_batch_that_saves_next_to_nothing() -> None:
    """A batch of 34 costs 1.5 % more a request than the largest; a burst is no reason to give up a tenth of
    its requests for that."""
    model = linear("m", 20 * MS // 3, 10 * MS // 3, 64, slo_ns=250 * MS)
    arrivals = gamma([1300.0], 4.0, 20 * SECOND, seed=2).collect()
    report = simulate(
        [model], Cluster(devices=12), [Open([arrivals])], policy="adaptive", seed=2, resident=True
    )
    assert report.bad.sum() == 0 < report.offered.sum()
