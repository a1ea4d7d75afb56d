"""Devices that share an arena: a model is loaded once, and each of them, its executors, runs it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.observe.history import History
from clockwork.observe.recorded import opened
from clockwork.scheduler import POLICIES
from clockwork.scheduler.types import (
    AnswerFailed,
    AnswerOk,
    DeviceLost,
    SendInfer,
    SendLoad,
    SendReserve,
    SendUnload,
    TimeWanted,
    WorkerDraining,
    WorkerJoined,
)
from clockwork.sim.recorded import read_recorded
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals
from tests.sim.test_state import check_recording
from tests.unit.stories import MS, PAGE_BYTES, Story, spec

SECOND = 1000 * MS
OWN = ("cpu", PAGE_BYTES, 4, 2)


def shared(policy: str, *specs: Any, executors: int = 3, **options: Any) -> Story:
    """A worker of so many devices, all of the arena of the first."""
    return Story(policy, *specs, devices=executors, executors=executors, **options)


def later(story: Story, ms: float) -> list[Any]:
    """The orders of this time from now on."""
    return [order for _, order in story.until((story.now - SECOND) / MS + ms)]


def kept(commands: list[Any], kind: type) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


# ----- one arena ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_every_executor_runs_a_model_that_was_loaded_once(policy: str) -> None:
    story = shared(policy, spec(1, exec_ms=20))
    sent = [command for _ in range(3) for command in story.request(1, 35)[1]]
    sent += later(story, 10)
    assert kept(sent, SendLoad) == []
    assert sorted(infer.device for infer in kept(sent, SendInfer)) == [0, 1, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_that_wait_for_a_load_go_to_all_executors(policy: str) -> None:
    story = shared(policy, spec(1, exec_ms=20), resident=False)
    sent = [command for _ in range(3) for command in story.request(1, 45)[1]]
    (load,) = kept(sent, SendLoad)
    assert load.device == 0, "the owner of the arena"
    story.now += 4 * MS
    sent = story.done(load, 4) + later(story, 10)
    assert sorted(infer.device for infer in kept(sent, SendInfer)) == [0, 1, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_loads_and_unloads_are_the_owners(policy: str) -> None:
    models = [spec(number, runs=(4,)) for number in (1, 2)]
    story = Story(policy, *models, devices=4, executors=2, resident=False)
    for model in (1, 2, 1, 2):
        _, sent = story.request(model, 500)
        while orders := kept(sent, SendLoad) + kept(sent, SendUnload) + kept(sent, SendInfer):
            for order in orders:
                assert isinstance(order, SendInfer) or order.device in (0, 2)
            story.now += 5 * MS
            sent = [command for order in orders for command in story.done(order, 4)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_rows_of_an_arena_count_its_figures_once(policy: str) -> None:
    story = shared(policy, spec(1), spec(2))
    rows = story.scheduler.devices()
    assert [(row["device"], row["arena"]) for row in rows] == [(0, 0), (1, 0), (2, 0)]
    assert [row["pages"] for row in rows] == [4, 0, 0]
    assert [row["resident"] for row in rows] == [2, 0, 0]
    assert story.scheduler.whereabouts(1) == [(1, 0, "resident")]
    found = story.scheduler.snapshot()
    assert [len(row["resident"]) for row in found["devices"]] == [2, 0, 0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_arena_is_lost_with_all_its_executors(policy: str, lost: int) -> None:
    story = Story(policy, spec(1, exec_ms=20), devices=4, executors=3)
    asked = [story.request(1, 500)[0] for _ in range(3)]
    commands = story(DeviceLost(story.now, 1, lost))
    assert [row["device"] for row in story.scheduler.devices()] == [3]
    (load,) = kept(commands, SendLoad)
    assert load.device == 3
    assert story(DeviceLost(story.now, 1, 0)) == story(DeviceLost(story.now, 1, 2)) == []
    story.now += 5 * MS
    sent, answered = story.done(load, 4), []
    while orders := kept(sent, SendInfer):
        story.now += 20 * MS
        sent = [command for order in orders for command in story.done(order, 20)]
        sent += later(story, 1)
        answered += [answer.request_id for answer in kept(sent, AnswerOk)]
    assert sorted(answered) == asked


@pytest.mark.parametrize("policy", POLICIES)
def test_with_its_only_arena_a_worker_has_nothing_left(policy: str) -> None:
    story = shared(policy, spec(1, exec_ms=20))
    asked = [story.request(1, 500)[0] for _ in range(4)]
    failed = kept(story(DeviceLost(story.now, 1, 1)), AnswerFailed)
    assert sorted(answer.request_id for answer in failed) == asked
    assert story.scheduler.devices() == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_draining_worker_gets_no_more_for_any_executor(policy: str) -> None:
    story = shared(policy, spec(1, exec_ms=20))
    _, sent = story.request(1, 500)
    assert len(kept(sent, SendInfer)) == 1
    story(WorkerDraining(story.now, 1))
    _, sent = story.request(1, 500)
    assert kept(sent, SendInfer) == []


@pytest.mark.parametrize("policy", ["adaptive", "edf", "fifo"])
def test_an_executor_gives_its_time_and_pages_of_the_arena_while_others_execute(policy: str) -> None:
    story = shared(policy, spec(1, exec_ms=20), spec(2))
    story.at(100)
    orders = story(TimeWanted(story.now, 1, 1, 9, 30 * MS, (2,)))
    (unload,) = kept(orders, SendUnload)
    assert unload.device == 0, "the owner of the arena"
    kept_model = 3 - unload.model_id
    orders = story.done(unload, 0) + later(story, 1)
    (reserve,) = kept(orders, SendReserve)
    assert (reserve.device, len(reserve.run_starts)) == (1, 1)
    sent = [command for _ in range(2) for command in story.request(kept_model, 40)[1]] + later(story, 5)
    assert sorted(infer.device for infer in kept(sent, SendInfer)) == [0, 2]
    story.now += 30 * MS
    story.done(reserve, 30)
    story(TimeWanted(story.now, 1, 1, 9, 0, ()))
    assert story.scheduler.devices()[0]["pages_free"] == 2


@pytest.mark.parametrize(
    "devices",
    [(OWN, (*OWN, 1)), (OWN, (*OWN, 0), (*OWN, 1)), (OWN, ("cpu", PAGE_BYTES, 5, 2, 0)), ((*OWN, 0),)],
)
def test_a_device_of_an_arena_that_is_not_there_is_refused(devices: Any) -> None:
    story = Story("edf", spec(1))
    with pytest.raises((ValueError, RuntimeError), match="arena"):
        story.scheduler.step(WorkerJoined(story.now, 2, devices))


# ----- against as many devices ----------------------------------------------------------------------


def models(count: int, pages: int = 4, batch: int = 8) -> list[ModelProfile]:
    return [
        ModelProfile(
            f"m{number}", {1: 5 * MS, batch: 5 * MS + (batch - 1) * MS}, pages << 24, 8 * MS,
            program=f"p{number}", slo_ns=60 * MS,
        )
        for number in range(count)
    ]  # fmt: skip


def busy(cluster: Cluster, policy: str, rate: float, count: int, seed: int = 1, **options: Any) -> Report:
    rng = random.Random(seed)
    at, rows = 0.0, []
    while at < 3 * SECOND:
        at += rng.expovariate(rate) * SECOND
        rows.append((int(at), min(int(rng.paretovariate(0.8)) - 1, count - 1)))
    arrivals = Open([Arrivals.of([row[0] for row in rows], [row[1] for row in rows])])
    return simulate(
        models(count), cluster, [arrivals], policy=policy, seed=seed, check=True, resident=True, **options
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [400, 1400])
def test_an_arena_serves_what_as_many_devices_with_a_copy_each_serve(policy: str, rate: float) -> None:
    count, executors = 12, 4
    apart = Cluster(devices=executors, devices_per_worker=executors, page_count=4 * count, exec_noise=0.01)
    one = Cluster(
        devices=executors,
        devices_per_worker=executors,
        executors=executors,
        page_count=4 * count,
        exec_noise=0.01,
    )
    devices, arena = busy(apart, policy, rate, count), busy(one, policy, rate, count)
    assert arena.good.sum() >= 0.97 * devices.good.sum()
    assert arena.loads == 0


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
def test_an_arena_loads_less_than_devices_of_as_much_memory_in_all(policy: str) -> None:
    count, executors = 24, 4
    pages = 4 * count // 2
    apart = Cluster(devices=executors, devices_per_worker=executors, page_count=pages // executors)
    one = Cluster(devices=executors, devices_per_worker=executors, executors=executors, page_count=pages)
    devices, arena = busy(apart, policy, 300, count), busy(one, policy, 300, count)
    assert arena.good.sum() >= devices.good.sum()
    assert arena.loads < devices.loads


# ----- recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recording_of_shared_arenas_is_followed_and_simulated_again(policy: str, tmp_path: Path) -> None:
    cluster = Cluster(devices=8, devices_per_worker=4, executors=2, page_count=16, exec_noise=0.02)
    path = tmp_path / "shared.rec"
    rows = [(number * 4 * MS, number % 9) for number in range(400)]
    arrivals = Open([Arrivals.of([row[0] for row in rows], [row[1] for row in rows])])
    report = simulate(models(9), cluster, [arrivals], policy=policy, recording=path, fates=True)
    assert check_recording(path, policy, "", 0.05, 1) > 3
    history = History(keep_ns=100 * SECOND)
    with opened(path) as (_, steps):
        for step in steps:
            history.apply(step)
    owners = {(device.worker, device.index): device.home.index for device in history.lanes()}
    assert owners == {(worker, index): index - index % 2 for worker in (1, 2) for index in range(4)}
    used = [device for device in history.lanes() if device.executed]
    assert len(used) > 2
    assert all(not device.resident for device in history.lanes() if device.owner is not None)
    assert read_recorded(path).cluster.executors == 2
    assert report.good.sum() > 0
