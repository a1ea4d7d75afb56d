"""Requests that could have been served are not turned away, in clusters that are less than half busy.

``python -m clockwork.sim.servable`` judges a thousand such clusters; the ones here are a sample.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.sim.servable import (
    LINK_NS,
    PAGE_BYTES,
    ExecutedSchedule,
    Occupied,
    ServableWorld,
    TurnedAway,
    judge,
    servable_world,
)
from clockwork.sim.world import Cluster
from clockwork.workloads import Arrivals

MS = 1_000_000

CLUSTERS = (0, 1, 2, 3, 4, 5, 7, 8)
"""Seeds of clusters in which every request that `adaptive` turns away is proven impossible or undecided."""


@pytest.mark.parametrize("seed", CLUSTERS)
def test_adaptive_serves_all_requests_that_fit_into_its_own_schedule(seed: int) -> None:
    verdict = judge(servable_world(seed), "adaptive")
    assert verdict.offered > 1000
    assert [str(turned) for turned in verdict.turned if turned.verdict == "servable"] == []


@pytest.mark.parametrize("seed", [1, 3])
def test_adaptive_serves_all_requests_that_fit_where_devices_share_arenas(seed: int) -> None:
    verdict = judge(servable_world(seed, executors=3), "adaptive")
    assert verdict.offered > 1000
    assert [str(turned) for turned in verdict.turned if turned.verdict == "servable"] == []


def test_executors_of_an_arena_are_judged_by_its_one_memory() -> None:
    """Five requests in one moment for the only model that an arena of four executors has room for."""
    model = ModelProfile("m", {1: 10 * MS}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    asked = [(0.0, "m", 18.0)] * 5
    shared = world_of([model], asked, devices=4, per_link=4, page_count=1, executors=4)
    [turned] = judge(shared, "adaptive").turned
    assert turned.verdict == "impossible"
    assert turned.because.endswith("of which at most 4 could be executed")


def test_a_request_that_an_executor_of_the_arena_could_have_served_is_judged_servable(tmp_path: Path) -> None:
    """A schedule in which the second executor, which has the model by the load of the first, did nothing."""
    model = ModelProfile("m", {1: 10 * MS}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    shared = world_of([model], [(0.0, "m", 15.0)], devices=2, per_link=2, page_count=1, executors=2)
    recording = tmp_path / "shared.rec"
    shared.run("adaptive", recording)
    schedule = ExecutedSchedule(shared, recording)
    (request,) = schedule._requests.values()
    schedule.turned = [TurnedAway(dataclasses.replace(request, id=99), 0, "deadline") for _ in range(2)]
    schedule.judge()
    assert [turned.verdict for turned in schedule.turned] == ["servable", "undecided"]
    assert schedule.turned[0].because.startswith("device (1, 1) had the model and was idle")


def test_a_burst_for_a_single_model_is_spread_over_idle_devices() -> None:
    """Eight requests in the same moment, each of which takes most of its SLO: eight devices serve them."""
    verdict = judge(world(times=[0] * 8, exec_ms=10, slo_ms=18, devices=8), "adaptive")
    assert verdict.offered == 8
    assert not verdict.turned


def test_a_request_that_no_schedule_could_have_served_is_judged_impossible(tmp_path: Path) -> None:
    """Three requests for a single device, whose SLO leaves time for two."""
    [turned] = judge(world(times=[0] * 3, exec_ms=10, slo_ms=25, devices=1), "adaptive").turned
    assert turned.verdict == "impossible"
    assert turned.because == "3 requests of its model were due, of which at most 2 could be executed"


def test_a_request_that_a_policy_leaves_out_is_judged_servable(tmp_path: Path) -> None:
    """`fifo` sends a request with a long SLO first, and the tight one behind it is late."""
    tight = world(times=[0, MS], exec_ms=10, slo_ms=[100, 15], devices=2, copies=1)
    recording = tmp_path / "fifo.rec"
    tight.run("fifo", recording, "paper")
    schedule = ExecutedSchedule(tight, recording)
    schedule.judge()
    [turned] = schedule.turned
    assert turned.verdict == "servable"
    assert turned.because == "device (2, 0) and its link were idle"


def test_idle_intervals_lie_between_the_busy_ones() -> None:
    busy = Occupied()
    for begin, end in ((30, 40), (10, 20)):
        busy.add(begin, end)
    assert list(busy.gaps(0, 50, 10)) == [0, 20, 40]
    assert list(busy.gaps(12, 45, 5)) == [20, 40]
    assert list(busy.gaps(12, 45, 11)) == []
    assert list(busy.gaps(41, 45, 4)) == [41]
    assert (busy.until(9), busy.until(10), busy.until(20), busy.until(35)) == (9, 20, 20, 40)


def test_the_command_prints_the_verdicts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clockwork.sim.servable", "--worlds", "1", "--first", "11"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "policy adaptive, worlds 1, offered 2056" in done.stdout
    assert "policy edf, worlds 1" in done.stdout


def test_loads_over_one_link_are_promised_one_after_the_other() -> None:
    """Four devices share a link, which loads the model once in time. A promise of `edf` counted the loads of
    its own device alone, so of eight requests in one moment three were promised loads that came too late."""
    models = [
        ModelProfile(f"m{number}", {1: 10 * MS}, PAGE_BYTES, 4 * MS, slo_ns=1000 * MS) for number in range(4)
    ]
    verdict = judge(world_of(models, [(0, "m0", 18)] * 8, devices=4, per_link=4, page_count=1), "edf")
    assert [turned.reason for turned in verdict.turned] == ["deadline"] * 6


def test_a_load_goes_to_a_device_that_executes_nothing() -> None:
    """`edf` ranked devices without their executions under way, and tried a load only on the first four, which
    were busy for too long."""
    models = [
        ModelProfile(f"m{number}", {1: 10 * MS}, PAGE_BYTES, MS, slo_ns=1000 * MS) for number in range(8)
    ]
    busy = [(0.0, f"m{number}", 20.0) for number in range(7)]
    assert not judge(world_of(models, [*busy, (1, "m0", 18)], devices=8), "edf").turned


def test_a_load_is_tried_first_where_the_request_has_to_pass_no_other() -> None:
    """Four devices whose work ends half a millisecond after the load were tried before one without work."""
    models = [
        ModelProfile("m", {1: 5 * MS}, PAGE_BYTES, 2 * MS, slo_ns=1000 * MS),
        *[
            ModelProfile(f"b{number}", {1: 3_600_000}, PAGE_BYTES, 2 * MS, slo_ns=1000 * MS)
            for number in range(7)
        ],
    ]
    busy = [(0.0, name, 100.0) for name in ("m", "m", "b1", "b2", "b3", "b4")]
    assert not judge(world_of(models, [*busy, (1, "m", 7.75)], devices=7), "edf").turned


def test_requests_join_a_batch_until_its_device_is_about_to_be_free() -> None:
    """The second batch was sent 5 ms before its device was free, and so with the second request alone; those
    that came a moment later found no time behind it, though they take hardly longer together."""
    cheap = ModelProfile("m", {1: 3_400_000, 16: 6 * MS}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    arrivals = [(at, "m", 9.0) for at in (0.0, 0.001, *[0.002] * 6)]
    verdict = judge(world_of([cheap], arrivals, devices=1), "edf")
    assert not verdict.turned


def test_no_time_is_reserved_where_devices_are_hardly_asked_for() -> None:
    """Two executions of 10 ms fit in 20.4 ms. The reserve and the margins took 0.8 ms of that."""
    model = ModelProfile("m", {1: 10 * MS, 2: 20 * MS}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    verdict = judge(world_of([model], [(0.0, "m", 20.4), (0.01, "m", 20.4)], devices=1), "edf")
    assert not verdict.turned


def world(
    times: list[int], exec_ms: float, slo_ms: float | list[float], devices: int, copies: int = 0
) -> ServableWorld:
    """A model of a page that takes 1 ms to load; with copies=1 its page is all that a device has."""
    model = ModelProfile("m", {1: int(exec_ms * MS)}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    others = [
        ModelProfile(f"other{number}", {1: MS}, PAGE_BYTES, MS, slo_ns=1000 * MS) for number in range(copies)
    ]
    slos = np.broadcast_to(np.asarray(slo_ms, np.float64), len(times))
    asked = [(at / MS, "m", slo) for at, slo in zip(times, slos, strict=True)]
    return world_of([model, *others], asked, devices, page_count=1 if copies else 2)


def world_of(
    models: Sequence[ModelProfile], asked: Sequence[tuple[float, str, float]], devices: int, per_link: int = 1,
    page_count: int = 2, executors: int = 1,
) -> ServableWorld:  # fmt: skip
    """Requests, each with its time in ms, its model and its SLO in ms. Models are loaded in order, as long as
    there is memory."""
    names = [model.name for model in models]
    times = np.array([round(at * MS) + 1 for at, _, _ in asked])
    numbers = np.array([names.index(name) for _, name, _ in asked])
    slos = np.array([round(slo * MS) for _, _, slo in asked], np.int64)
    cluster = Cluster(
        devices=devices, devices_per_worker=per_link, executors=executors, page_bytes=PAGE_BYTES, page_count=page_count,
        link_there_ns=LINK_NS, link_back_ns=LINK_NS,
    )  # fmt: skip
    return ServableWorld(0, models, cluster, Arrivals.of(times, numbers, slos, np.zeros(len(asked))), "")
