"""Requests that could have been served are not turned away, in clusters that are less than half busy.

``python -m clockwork.sim.servable`` judges a thousand such clusters; the ones here are a sample.
"""

from __future__ import annotations

import subprocess
import sys
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


def world(
    times: list[int], exec_ms: float, slo_ms: float | list[float], devices: int, copies: int = 0
) -> ServableWorld:
    """A model of a page that takes 1 ms to load; with copies=1 its page is all that a device has."""
    model = ModelProfile("m", {1: int(exec_ms * MS)}, PAGE_BYTES, MS, slo_ns=1000 * MS)
    others = [
        ModelProfile(f"other{number}", {1: MS}, PAGE_BYTES, MS, slo_ns=1000 * MS) for number in range(copies)
    ]
    count = len(times)
    slos = np.broadcast_to(np.asarray(slo_ms, np.float64) * MS, count).astype(np.int64)
    arrivals = Arrivals.of(np.asarray(times) + 1, np.zeros(count), slos, np.zeros(count))
    cluster = Cluster(
        devices=devices, page_bytes=PAGE_BYTES, page_count=1 if copies else 2, link_there_ns=LINK_NS,
        link_back_ns=LINK_NS,
    )  # fmt: skip
    return ServableWorld(0, [model, *others], cluster, arrivals, "")
