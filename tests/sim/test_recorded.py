"""A recording is simulated again: the cluster it describes, and how near the simulation comes to it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clockwork import __version__
from clockwork.cli.root import cli
from clockwork.errors import ConfigError
from clockwork.scheduler import make_scheduler
from clockwork.scheduler.recording import Header, ResidentModel, encode_header, encode_step
from clockwork.scheduler.types import (
    Arrived,
    LinkMeasured,
    ModelReady,
    RequestCancelled,
    Tick,
    WorkerJoined,
)
from clockwork.sim import Cluster, simulate
from clockwork.sim.recorded import GOOD, REFUSED, RecordedRun, read_recorded
from tests.sim.harness import MS, SHAPE, US, World, spec
from tests.sim.test_host_store import PAGE_BYTES, models, zipf

Trace = Sequence[tuple[Any, Sequence[Any]]]

HEADER = Header("adaptive", "", {}, __version__)


def run(rate: float = 900, seconds: float = 3, cancels: bool = False) -> World:
    """Two workers of two devices, with room for half of six models, and requests that they can just serve."""
    rng = random.Random(5)
    world = World(5, policy="adaptive")
    for worker in (1, 2):
        world.join(worker, [("cpu", 7, 1.0)] * 2, 300 * US, 300 * US)
    models = [spec(number, 6.0, 4, 1.0, (1, 1), 4.0) for number in range(1, 7)]
    world.ready(*models)

    def arrive() -> None:
        model = models[min(int(rng.expovariate(0.6)), 5)]
        request = world.request(model.model_id, rng.choice([15, 30, 100]), 4, 1, SHAPE)
        if cancels and rng.random() < 0.2:
            world.at(world.now + 1 * MS, world.cancel, request)

    world.poisson(rate, world.now + int(seconds * 1_000) * MS, arrive)
    world.settle()
    return world


@pytest.fixture(scope="module")
def trace() -> Trace:
    return run().trace


def write(path: Path, trace: Trace, header: Header = HEADER, before: Sequence[Any] = ()) -> Path:
    steps = [encode_step(before, [])] if before else []
    steps += [encode_step([event], orders) for event, orders in trace]
    path.write_bytes(encode_header(header) + b"".join(steps))
    return path


def cut(path: Path, trace: Trace, place: int) -> tuple[Path, list[tuple[int, int, int, int]]]:
    """Return a dump that begins in the middle, as a controller writes it, and the models resident there."""
    scheduler = make_scheduler("adaptive")
    for event, _ in trace[:place]:
        scheduler.step(event)
    there = ResidentModel.of(scheduler.held())
    for event, _ in trace[place:]:
        scheduler.step(event)
    at_ns = trace[place][0].now_ns
    kinds = (WorkerJoined, LinkMeasured, ModelReady)
    before = [event._replace(now_ns=at_ns) for event, _ in trace[:place] if isinstance(event, kinds)]
    held = ResidentModel.of(scheduler.held())
    header = HEADER._replace(start=1_000, cluster_steps=1, held=held, inexact="it was too large")
    return write(path, trace[place:], header, before), there


def test_what_a_recording_says_of_requests(tmp_path: Path, trace: Trace) -> None:
    found = read_recorded(write(tmp_path / "it", trace))
    arrivals = [event.request for event, _ in trace if isinstance(event, Arrived)]
    assert len(found.arrivals) == len(arrivals) > 2_000
    assert found.arrivals.t_ns.tolist() == [one.arrived_ns - arrivals[0].arrived_ns for one in arrivals]
    assert found.arrivals.slo_ns.tolist() == [one.deadline_ns - one.arrived_ns for one in arrivals]
    good = found.outcomes.outcome == GOOD
    assert 0.8 < good.mean() < 1
    assert (found.outcomes.outcome == REFUSED).any()
    assert (found.outcomes.latency_ns[good] > 2 * MS).all()
    assert (found.outcomes.latency_ns[good] <= found.arrivals.slo_ns[good]).all()
    assert set(found.outcomes.device[good].tolist()) == {0, 1, 2, 3}
    assert (found.cluster.devices, found.cluster.devices_per_worker, found.cluster.page_count) == (4, 2, 7)
    assert [model.pages(found.cluster.page_bytes) for model in found.models] == [2] * 6
    assert found.placed == []
    assert found.counted().all()


def test_a_simulation_of_a_recording_comes_near_to_it(tmp_path: Path, trace: Trace) -> None:
    found = read_recorded(write(tmp_path / "it", trace))
    again = found.simulate()
    assert again.likeness(found.outcomes)["same_answer"] > 0.95
    truth, simulated = found.outcomes.summary(found.span_ns), again.summary(found.span_ns)
    assert simulated["goodput_rate"] == pytest.approx(truth["goodput_rate"], rel=0.03)
    assert simulated["p50_ns"] == pytest.approx(truth["p50_ns"], rel=0.2)
    assert simulated["p99_ns"] == pytest.approx(truth["p99_ns"], rel=0.3)
    assert found.simulate().summary(1) == found.simulate().summary(1)


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_store_is_filled_as_fast_as_it_was(tmp_path: Path, tier: str) -> None:
    bytes_per_s = 400_000_000
    store = (
        Cluster(devices=3, host_bytes=8 * PAGE_BYTES, disk_bandwidth=bytes_per_s)
        if tier == "host"
        else Cluster(devices=3, store_bytes=30 * PAGE_BYTES, store_bandwidth=bytes_per_s)
    )
    report = simulate(models(20), store, [zipf(50, 5, 20)], "adaptive", recording=tmp_path / "it")
    assert report.fetches > 2
    found = read_recorded(tmp_path / "it").cluster
    assert (found.host_bytes, found.store_bytes) == (store.host_bytes, store.store_bytes)
    assert found.disk_bandwidth == pytest.approx(store.disk_bandwidth, rel=0.01)
    assert found.store_bandwidth == pytest.approx(store.store_bandwidth, rel=0.01)


def test_other_settings_give_other_outcomes(tmp_path: Path, trace: Trace) -> None:
    found = read_recorded(write(tmp_path / "it", trace))
    own, fewer = found.simulate(), found.simulate(devices=1)
    assert (fewer.outcome == GOOD).sum() < 0.7 * (own.outcome == GOOD).sum()
    assert set(fewer.device.tolist()) <= {-1, 0}
    strict = found.simulate(slo_ns=8 * MS)
    assert (strict.outcome == GOOD).sum() < (own.outcome == GOOD).sum()
    assert strict.latency_ns[strict.outcome == GOOD].max() <= 8 * MS
    assert not np.array_equal(found.simulate(policy="fifo").latency_ns, own.latency_ns)
    with pytest.raises(ConfigError, match="nonsense"):
        found.simulate(policy="nonsense")


def resident(found: RecordedRun) -> set[tuple[int, int]]:
    return set(found.placed)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_what_was_resident_where_a_dump_begins_follows_from_its_end(
    tmp_path: Path, trace: Trace, part: float
) -> None:
    place = next(place for place in range(int(part * len(trace)), len(trace)) if not loading_at(trace, place))
    path, there = cut(tmp_path / "it", trace, place)
    found = read_recorded(path)
    expected = {((worker - 1) * 2 + device, model_id - 1) for worker, device, model_id, _ in there}
    assert len(expected) > 4
    assert set(found.placed) == expected
    likeness = found.simulate().at(found.counted()).likeness(found.outcomes.at(found.counted()))
    assert likeness["same_answer"] > 0.9


def loading_at(trace: Trace, place: int) -> bool:
    """Whether a load or an unload is under way."""
    under_way = set()
    for event, orders in trace[:place]:
        under_way.discard(getattr(event, "action_id", None))
        under_way |= {
            order.action_id for order in orders if type(order).__name__ in ("SendLoad", "SendUnload")
        }
    return bool(under_way)


def test_cancelled_requests_are_not_compared(tmp_path: Path) -> None:
    world = run(seconds=0.5, cancels=True)
    cancelled = sum(isinstance(event, RequestCancelled) for event, _ in world.trace)
    assert cancelled > 20
    found = read_recorded(write(tmp_path / "it", world.trace))
    assert 10 < (~found.counted()).sum() <= cancelled


def test_a_lost_worker_is_away_in_the_simulation(tmp_path: Path) -> None:
    world = World(5, policy="adaptive")
    for worker in (1, 2):
        world.join(worker, [("cpu", 7, 1.0)], 300 * US, 300 * US)
    model = spec(1, 2.0, 8, 0.3, (1, 1), 4.0)
    world.ready(model)
    world.poisson(800, world.now + 3_000 * MS, lambda: world.request(1, 20, 4, 1, SHAPE) and None)
    world.at(world.now + 1_000 * MS, world.leave, 2)
    world.settle()
    found = read_recorded(write(tmp_path / "it", world.trace))
    (away,) = found.cluster.disturbances
    assert (away.what, away.worker) == ("stop", 1)
    assert away.from_ns == pytest.approx(1_000 * MS, abs=20 * MS)
    again = found.simulate()
    late = found.outcomes.arrived_ns > 1_500 * MS
    assert set(again.device[late & (again.outcome == GOOD)].tolist()) == {0}


def test_replay_shows_them_side_by_side(tmp_path: Path, trace: Trace) -> None:
    path, _ = cut(tmp_path / "it", trace, len(trace) // 2)
    shown = CliRunner().invoke(
        cli, ["replay", str(path), "--policy", "edf", "--devices", "8", "--slo", "50ms"]
    )
    assert shown.exit_code == 0, shown.output
    assert "It begins after its controller did" in shown.output
    assert "edf, 8 devices, SLO 50 ms" in shown.output
    assert "same answer as recorded" in shown.output
    assert "without the scheduler's state (it was too large). So" in shown.output
    told = CliRunner().invoke(cli, ["replay", str(path), "--devices", "8", "--json"])
    assert told.exit_code == 0, told.output
    body = json.loads(told.output)
    assert list(body["columns"]) == ["recorded", "simulated", "8 devices"]
    assert {column["requests"] for column in body["columns"].values()} == {
        body["columns"]["recorded"]["requests"]
    }
    whole = CliRunner().invoke(cli, ["replay", str(write(tmp_path / "whole", trace)), "--policy", "edf"])
    assert whole.exit_code == 0, whole.output
    assert "The decisions are identical." in whole.output
    wrong = CliRunner().invoke(cli, ["replay", str(path), "--policy", "nonsense"])
    assert wrong.exit_code == 2
    assert "nonsense" in wrong.output


def test_what_cannot_be_simulated_is_refused(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(ConfigError, match="has no request"):
        read_recorded(write(tmp_path / "it", [(Tick(5), [])]))
    with pytest.raises(ConfigError, match="no worker was there"):
        read_recorded(write(tmp_path / "it", [one for one in trace if not isinstance(one[0], WorkerJoined)]))


def test_code_that_a_recording_names_is_not_run_unless_it_is_trusted(
    tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "came_with_it.py").write_text("open('ran', 'w').close()")
    path = write(tmp_path / "it", trace, HEADER._replace(policy="came_with_it:Policy"))
    told = CliRunner().invoke(cli, ["replay", str(path), "--policy", "edf"])
    assert told.exit_code == 1
    assert "give --trust if you trust it" in told.output
    assert not (tmp_path / "ran").exists()
    trusted = CliRunner().invoke(cli, ["replay", str(path), "--trust"])
    assert "has no 'Policy'" in trusted.output
    assert (tmp_path / "ran").exists()
