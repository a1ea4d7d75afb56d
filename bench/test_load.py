"""LOAD in both holdings, beside a memcpy of the same bytes and ONNX Runtime's own ways to load a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench import holdings, report
from bench.holdings import HOLDINGS, MODELS, SEED, Site

ROUNDS = 30
SESSION_ROUNDS = 5


@pytest.fixture(scope="module", params=MODELS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(request.param, tmp_path_factory.mktemp(request.param)) as site:
        yield site


@pytest.fixture(autouse=True)
def group(benchmark: Any, site: Site) -> None:
    benchmark.group = f"load {site.name}"
    benchmark.extra_info.update(report.conditions(SEED))
    benchmark.extra_info["weights_bytes"] = site.prepared["bound"].weights_bytes


@pytest.mark.parametrize("holding", HOLDINGS)
def test_load(benchmark: Any, site: Site, holding: str) -> None:
    """A LOAD with the file in the OS's cache, including the way to the lane and back, a few microseconds."""
    benchmark.extra_info["resident_bytes"] = site.prepared[holding].resident_bytes
    benchmark.pedantic(
        site.load,
        (holding,),
        teardown=lambda _: site.unload(holding),
        rounds=ROUNDS,
        warmup_rounds=2,
    )


@pytest.mark.parametrize("holding", HOLDINGS)
def test_load_from_disk(benchmark: Any, site: Site, holding: str) -> None:
    """A LOAD with the file not in the OS's cache."""
    benchmark.pedantic(
        site.load,
        (holding,),
        setup=lambda: site.evict(holding),
        teardown=lambda _: site.unload(holding),
        rounds=SESSION_ROUNDS,
    )


def test_read_from_disk(benchmark: Any, site: Site) -> None:
    """The bound file's bytes, read in large pieces past the OS's cache."""
    benchmark.pedantic(
        holdings.read, (site.weights_file("bound"),), setup=lambda: site.evict("bound"), rounds=SESSION_ROUNDS
    )


def test_memcpy(benchmark: Any, site: Site) -> None:
    """A memcpy of as many bytes as the model's weights."""
    benchmark.pedantic(site.copy, rounds=ROUNDS, warmup_rounds=2)


def test_onnxruntime_original(benchmark: Any, site: Site) -> None:
    """A session from the original file."""
    benchmark.pedantic(site.open_session, (site.original, True), rounds=SESSION_ROUNDS)


def test_onnxruntime_optimised(benchmark: Any, site: Site) -> None:
    """A session from an optimised file with its weights beside it, mapped."""
    benchmark.pedantic(site.open_session, (site.optimised, False), rounds=SESSION_ROUNDS)
