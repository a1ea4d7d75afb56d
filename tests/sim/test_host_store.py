"""More models than the workers' host stores hold: which are fetched and dropped, and which requests are in
time."""

from __future__ import annotations

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile
from clockwork.sim import Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
PAGE_BYTES = 16 << 20

POLICIES = ("adaptive", "fifo", "deferred", "paper")


def models(count: int, slo_ms: int = 200) -> list[ModelProfile]:
    return [
        ModelProfile(
            f"m{number}", {1: 3 * MS, 8: 8 * MS}, weights_bytes=PAGE_BYTES * (1 + number % 3),
            load_ns=(4 + number % 3) * MS, slo_ns=slo_ms * MS, program="one",
        )
        for number in range(count)
    ]  # fmt: skip


def zipf(rate: float, seconds: float, count: int, seed: int = 0) -> Open:
    generator = np.random.default_rng(seed)
    number = generator.poisson(rate * seconds)
    times = np.sort(generator.integers(0, int(seconds * SECOND), number))
    weights = 1 / np.arange(1, count + 1)
    return Open([Arrivals.of(times, generator.choice(count, number, p=weights / weights.sum()))])


def at(times_ms: list[float], model: int = 0) -> Open:
    return Open([Arrivals.of([int(one * MS) for one in times_ms], model)])


def run(
    profiles: list[ModelProfile], cluster: Cluster, *workloads: Open, policy: str = "adaptive", **more: object
) -> Report:
    return simulate(profiles, cluster, workloads, policy=policy, check=True, **more)  # type: ignore[arg-type]


def test_a_request_for_a_model_on_disk_waits_for_both_hops_and_no_longer() -> None:
    cluster = Cluster(
        link_there_ns=0, link_back_ns=0, host_bytes=4 * PAGE_BYTES, disk_bandwidth=2_000_000_000
    )
    report = run(models(1), cluster, at([10, 400]))
    assert (report.fetches, report.loads, report.drops) == (1, 1, 0)
    fetch_ns = PAGE_BYTES // 2  # duration at two bytes a nanosecond
    assert report.good.tolist() == [2]
    assert fetch_ns + 4 * MS + 3 * MS <= report.latency.largest_ns <= fetch_ns + 8 * MS


def test_what_cannot_be_in_time_is_refused_at_once_and_yet_brought_nearer_for_the_next() -> None:
    cluster = Cluster(host_bytes=4 * PAGE_BYTES, disk_bandwidth=2_000_000_000)
    report = run(models(1, slo_ms=14), cluster, at([10, 30, 50]))
    assert report.refused.tolist() == [1], "8.4 + 4 + 3 ms are more than 14"
    assert report.good.tolist() == [2], "from host memory it is in time"
    assert report.refusal.largest_ns == 0


def test_a_model_that_is_larger_than_the_host_store_is_refused() -> None:
    report = run(models(3), Cluster(host_bytes=2 * PAGE_BYTES), at([10], model=2))
    assert report.refused.tolist() == [0, 0, 1]
    assert report.fetches == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_many_models_are_served_through_a_store_for_few(policy: str) -> None:
    cluster = Cluster(
        devices=2,
        devices_per_worker=2,
        page_count=10,
        host_bytes=40 * PAGE_BYTES,
        disk_bandwidth=4_000_000_000,
    )
    profiles = models(40, slo_ms=400)
    report = run(profiles, cluster, zipf(60, 20, 40), policy=policy)
    assert report.fetches > 40, "each once, and some again"
    assert report.drops > 0
    assert report.bad_fraction < 0.1
    again = run(profiles, cluster, zipf(60, 20, 40), policy=policy)
    assert again.digest == report.digest


@pytest.mark.parametrize("policy", POLICIES)
def test_the_pictures_agree_whatever_goes_wrong(policy: str) -> None:
    cluster = Cluster(
        devices=4, devices_per_worker=2, page_count=8, host_bytes=20 * PAGE_BYTES, disk_bandwidth=1_000_000_000,
        load_noise=0.2, outlier=0.02, link_jitter_ns=100 * US, load_failures=0.05, infer_failures=0.02, cancels=0.05,
        crashes_per_hour=400, link_loss=0.0002, down_ns=SECOND // 2,
    )  # fmt: skip
    report = run(models(30, slo_ms=300), cluster, zipf(80, 15, 30, seed=3), policy=policy)
    assert report.crashes > 0
    assert report.fetches > 0
    assert report.good.sum() > 0
    assert report.unanswered.sum() == 0


def test_a_store_for_all_of_them_costs_one_fetch_each() -> None:
    cluster = Cluster(devices=1, page_count=100, host_bytes=100 * PAGE_BYTES, disk_bandwidth=4_000_000_000)
    report = run(models(10), cluster, zipf(50, 10, 10))
    assert (report.fetches, report.loads, report.drops) == (10, 10, 0)
    assert report.bad_fraction == 0


def test_models_may_be_resident_from_the_beginning_through_a_small_store() -> None:
    cluster = Cluster(devices=1, page_count=100, host_bytes=6 * PAGE_BYTES, disk_bandwidth=4_000_000_000)
    report = run(models(10, slo_ms=20), cluster, zipf(50, 5, 10), resident=True)
    assert (report.fetches, report.loads) == (0, 0), "that was before time began"
    assert report.bad_fraction == 0


def test_fetches_are_predicted() -> None:
    cluster = Cluster(devices=1, page_count=100, host_bytes=100 * PAGE_BYTES, disk_bandwidth=1_000_000_000)
    errors = run(models(30), cluster, zipf(50, 20, 30)).errors["fetch_duration"]
    assert errors.over.total + errors.under.total == 30
    assert errors.over.percentile(50) <= MS, "by page, as the others took"


def test_edf_says_that_it_cannot() -> None:
    with pytest.raises(ValueError, match="host_bytes"):
        run(models(1), Cluster(host_bytes=PAGE_BYTES), at([10]), policy="edf")
