"""More models than each worker's disk holds: which are served, brought, copied and dropped."""

from __future__ import annotations

import dataclasses

import pytest

from bench import stores
from clockwork.formats.profiles import ModelProfile
from clockwork.scheduler import POLICIES
from clockwork.sim import Cluster, Report
from clockwork.sim.random_world import random_world, stored, varied
from clockwork.sim.world import Disturbance
from tests.sim.test_host_store import MS, PAGE_BYTES, SECOND, US, at, models, run, zipf

DISK = Cluster(
    devices=6,
    page_count=12,
    store_bytes=30 * PAGE_BYTES,
    store_bandwidth=1_000_000_000,
)
"""Six workers, each with room for about 15 of 40 models: 2.25 copies of each."""


def stormy(policy: str, **more: object) -> Report:
    cluster = dataclasses.replace(
        DISK, load_noise=0.2, outlier=0.02, link_jitter_ns=100 * US, load_failures=0.02, infer_failures=0.02,
        cancels=0.05, crashes_per_hour=600, link_loss=0.0002, down_ns=SECOND // 2,
    )  # fmt: skip
    return run(models(40, slo_ms=300), cluster, zipf(150, 15, 40, seed=3), policy=policy, **more)


def test_a_model_is_served_by_a_worker_that_has_it() -> None:
    report = run(models(1), dataclasses.replace(DISK, devices=3), at([10, 400]))
    assert (report.loads, report.good.tolist()) == (1, [2])
    assert report.fetches <= 1, "the third worker has room, and is brought what is asked for"


@pytest.mark.parametrize("policy", POLICIES)
def test_stores_for_a_third_of_the_models_serve_them_nearly_as_well_as_stores_for_all(policy: str) -> None:
    profiles, asked = models(40, slo_ms=400), zipf(200, 20, 40)
    everywhere = run(profiles, dataclasses.replace(DISK, store_bytes=0), asked, policy=policy)
    report = run(profiles, DISK, asked, policy=policy)
    assert report.good.sum() >= 0.97 * everywhere.good.sum()
    assert run(profiles, DISK, asked, policy=policy).digest == report.digest


@pytest.mark.parametrize("policy", POLICIES)
def test_no_copy_is_lost_whatever_goes_wrong(policy: str) -> None:
    report = stormy(policy)
    assert report.crashes > 0
    assert report.fetches > 0
    assert report.good.sum() > 0
    assert report.unanswered.sum() == 0


@pytest.mark.parametrize("copies", [1, 3])
def test_the_number_of_copies_may_be_set(copies: int) -> None:
    report = stormy("adaptive", options={"stored_copies": copies})
    assert report.fetches > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_store_smaller_than_a_model_refuses_it_and_serves_the_others(policy: str) -> None:
    cluster = dataclasses.replace(DISK, devices=2, store_bytes=2 * PAGE_BYTES)
    report = run(models(3), cluster, at([10, 50], model=2), at([20, 60]), policy=policy)
    assert report.refused.tolist() == [0, 0, 2]
    assert report.good.tolist() == [2, 0, 0]
    assert report.fetches == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_full_stores_keep_what_they_must(policy: str) -> None:
    """Each of four workers has room for exactly its part of two copies."""
    cluster = dataclasses.replace(
        DISK, devices=4, store_bytes=5 * PAGE_BYTES, crashes_per_hour=600, down_ns=SECOND
    )
    profiles = [dataclasses.replace(one, weights_bytes=PAGE_BYTES) for one in models(10, slo_ms=300)]
    report = run(profiles, cluster, zipf(60, 20, 10), policy=policy)
    assert report.unanswered.sum() == 0
    assert report.good.sum() > 0.5 * report.offered.sum()


def test_a_popular_model_is_brought_to_workers_that_lack_it() -> None:
    one = ModelProfile("hot", {1: 5 * MS}, weights_bytes=PAGE_BYTES, load_ns=4 * MS, slo_ns=100 * MS)
    cold = [dataclasses.replace(one, name=f"cold{number}", program="p") for number in range(20)]
    report = run([one, *cold], DISK, zipf(900, 10, 21))
    assert report.fetches > 10, "two workers serve 400 requests a second of it"
    assert report.bad_fraction < 0.05


@pytest.mark.parametrize("policy", POLICIES)
def test_random_worlds_with_disk_stores(policy: str) -> None:
    for seed in range(12):
        world = stored(random_world(seed))
        for one in (world, varied(world)):
            report = one.run(policy)
            assert report.unanswered.sum() == 0


def rolling(workers: int, down_ns: int, every_ns: int) -> list[Disturbance]:
    """Restarts of all workers, one after the other."""
    return [
        Disturbance(
            "restart", SECOND + every_ns * worker, SECOND + every_ns * worker + down_ns, worker=worker
        )
        for worker in range(workers)
    ]


def test_a_rolling_restart_copies_nothing_more_than_no_restart() -> None:
    """The disks have room for more, and are brought what is asked for in either case."""
    workers, seconds = 12, 50
    profiles, asked = models(60, slo_ms=400), zipf(150, seconds, 60)
    cluster = dataclasses.replace(DISK, devices=workers)
    calm = run(profiles, cluster, asked)
    restarts = rolling(workers, down_ns=3 * SECOND, every_ns=4 * SECOND)
    report = run(profiles, dataclasses.replace(cluster, disturbances=restarts), asked)
    assert report.crashes == workers
    assert report.fetches <= calm.fetches + workers
    assert report.good.sum() >= 0.99 * calm.good.sum()


def test_workers_that_do_not_come_back_in_time_have_their_copies_made_elsewhere() -> None:
    cluster = dataclasses.replace(DISK, disturbances=rolling(1, down_ns=60 * SECOND, every_ns=0))
    calm = run(models(40), DISK, zipf(20, 30, 40))
    report = run(models(40), cluster, zipf(20, 30, 40))
    assert report.fetches > calm.fetches


def test_the_benchmark_of_disk_stores_measures_both() -> None:
    found = [*stores.lines(6, 30, [1.0, 0.5], ["adaptive"], [0.5], 4.0, 2.0, 1)]
    assert [(line.part, len(line.good)) for line in found] == [(1.0, 2), (0.5, 2)]
    assert found[0].fetches == 0
    assert found[1].fetches > 0
    assert all(line.good[-1] > 0.97 for line in found), found
