"""Whole experiments, once each; extra_info has their results, which are also printed."""

from __future__ import annotations

from typing import Any

import pytest

from bench import overload, paging, report

OVERLOAD_SECONDS = 10.0
ZIPF_SECONDS = 20.0


def _publish(
    benchmark: Any, title: str, seed: int, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    benchmark.extra_info.update(report.conditions(seed) | {"rows": rows} | facts)
    print()
    report.show(title, seed, rows, facts, as_json=False)


@pytest.mark.benchmark(group="experiments")
def test_overload(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows, facts = benchmark.pedantic(overload.measure, (overload.LOADS, OVERLOAD_SECONDS), rounds=1)
    with capsys.disabled():
        _publish(benchmark, "overload of one worker", overload.SEED, rows, facts)
    assert not any(row["errors"] for row in rows)


@pytest.mark.benchmark(group="experiments")
def test_more_models_than_memory(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    facts = benchmark.pedantic(paging.large, (40, 8, 200, 64), rounds=1)
    with capsys.disabled():
        _publish(benchmark, "models of 100 MB on an arena for a fifth of them", paging.SEED, [], facts)
    done = facts["LOAD ordered"] + facts["UNLOAD ordered"] + facts["requests"]
    assert facts["results"] == {"ok": done}


@pytest.mark.benchmark(group="experiments")
def test_thousands_of_models(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    facts = benchmark.pedantic(paging.thousands, (3000, paging.ARCHITECTURES, ZIPF_SECONDS), rounds=1)
    with capsys.disabled():
        _publish(benchmark, "thousands of small models on an arena for 5 % of them", paging.SEED, [], facts)
    assert facts["programs"] <= paging.ARCHITECTURES
