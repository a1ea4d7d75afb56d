"""A simulation writes the same recordings as a controller: they can be replayed, traced, explained and
compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clockwork.errors import ConfigError
from clockwork.formats.profiles import ModelProfile, copies
from clockwork.observe.compare import compare
from clockwork.observe.explain import explain, find_request
from clockwork.observe.recorded import read_history
from clockwork.scheduler.types import Status
from clockwork.sim.replay import replay
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.workloads import poisson
from tests.sim.test_trace import traced

MS, SECOND = 1_000_000, 1_000_000_000
MODEL = ModelProfile("m", {1: 4 * MS, 8: 12 * MS}, 40 << 20, 6 * MS, slo_ns=30 * MS, input_bytes=1000)
WILD = Cluster(
    devices=4, devices_per_worker=2, page_count=12, exec_noise=0.05, outlier=0.01, link_jitter_ns=200_000, crashes_per_hour=7200,
    infer_failures=0.01, load_failures=0.01, cancels=0.02, ping_ns=100 * MS, down_ns=50 * MS, timeout_ns=100 * MS,
)  # fmt: skip


def run(path: Path | None, cluster: Cluster = WILD, **more: Any) -> Report:
    models = copies([MODEL], 8)
    load = Open(poisson([250.0] * len(models), SECOND, seed=5))
    return simulate(models, cluster, [load], recording=path, seed=3, **more)


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_it_records_what_it_does(tmp_path: Path, policy: str) -> None:
    report = run(tmp_path / "it", policy=policy)
    assert report.crashes > 0
    header, history = read_history(tmp_path / "it")
    assert header.policy == policy
    counts = history.counts
    assert (counts.arrived, counts.answered, counts.refused, counts.missed, counts.cancelled, counts.failed) == (
        report.requests, *(int(getattr(report, name).sum()) for name in ("good", "refused", "missed", "cancelled", "failed")),
    )  # fmt: skip
    assert counts.arrived > 1000
    done = [one.kind for one in history.actions.values() if one.status is Status.OK]
    assert 0 < done.count("infer") <= report.infers, "some are lost with their workers"
    assert 0 < done.count("load") <= report.loads
    assert 2 < len(history.workers) <= 2 + report.crashes, "some come back after their crashes"
    assert history.models[3].label == "m-3@1"
    assert replay(tmp_path / "it").identical, "a fresh scheduler decides the same"
    traced(history)
    refused = explain(history, find_request(history, "refused"))
    assert "an SLO of 30.0 ms" in "\n".join(refused.sentences)


def test_recording_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "it").digest == run(None).digest


def test_two_simulations_can_be_held_side_by_side(tmp_path: Path) -> None:
    calm = Cluster(devices=2, page_count=12)
    reports = [run(tmp_path / policy, calm, policy=policy) for policy in ("edf", "adaptive")]
    found = compare(*(read_history(tmp_path / policy)[1] for policy in ("edf", "adaptive")))
    assert found.workload_parts_at == 0
    assert found.part is not None
    for report, summary in zip(reports, found.total, strict=True):
        assert summary.answered == report.good.sum()
        assert summary.executions == report.infers


def test_what_is_resident_at_first_is_seen_to_be_loaded(tmp_path: Path) -> None:
    run(tmp_path / "it", Cluster(devices=2, page_count=64), resident=True)
    _, history = read_history(tmp_path / "it")
    for device in history.lanes():
        assert len(device.resident) == 8
        assert device.pages_used == 8 * 3


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        run(tmp_path / "no" / "it")
