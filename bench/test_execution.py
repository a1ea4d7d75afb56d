"""Executions in both holdings beside plain ONNX Runtime on one thread, and an action without work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench import report
from bench.holdings import BATCHES, HOLDINGS, MODELS, SEED, TOLERANCE, Site
from bench.reference import Plain, relative_error

ROUNDS = 30


@pytest.fixture(scope="module", params=["null", *MODELS])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(request.param, tmp_path_factory.mktemp(request.param)) as site:
        for holding in HOLDINGS:
            site.load(holding)
        yield site


@pytest.fixture(scope="module")
def plain(site: Site) -> Plain:
    return Plain(site.model)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("how", ["plain", *HOLDINGS])
def test_execution(benchmark: Any, site: Site, plain: Plain, how: str, batch: int) -> None:
    """Time from start() to the polled outputs; the null model shows the overhead over an execution."""
    benchmark.group = f"run {site.name}, batch {batch}"
    benchmark.extra_info.update(report.conditions(SEED))
    feeds = site.feeds(batch)
    expected = plain.run(feeds)
    rounds = ROUNDS * (100 if site.name == "null" else 1)
    if how == "plain":
        benchmark.pedantic(plain.run, (feeds,), rounds=rounds, warmup_rounds=2)
        return
    _, found = benchmark.pedantic(site.infer, (how, feeds), rounds=rounds, warmup_rounds=2)
    assert max(relative_error(ours, theirs) for ours, theirs in zip(found, expected)) < TOLERANCE
