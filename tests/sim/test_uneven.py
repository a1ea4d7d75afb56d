"""Devices that differ, in speed or in the models that they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from clockwork.formats.profiles import ModelProfile, linear
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals, gamma, poisson, zipf

MS, SECOND = 1_000_000, 1_000_000_000
DURATION_NS = 40 * SECOND


def served(
    models: Sequence[ModelProfile], cluster: Cluster, offered: Arrivals, seed: int, policy: str = "adaptive"
) -> Report:
    return simulate(models, cluster, [Open([offered])], policy=policy, seed=seed, resident=True)


def both(
    models: Sequence[ModelProfile], cluster: Cluster, offered: Arrivals, seed: int
) -> tuple[Report, Report]:
    """Reports on `adaptive` and on `edf`."""
    return served(models, cluster, offered, seed), served(models, cluster, offered, seed, "edf")


def fine_tunes(count: int, row_ns: int, base_ns: int, batch_max: int, slo_ns: int = 0) -> list[ModelProfile]:
    """Models of seven pages, which a link loads in 8 ms."""
    return [
        linear(f"m{i}", row_ns, base_ns, batch_max, weights_bytes=7 << 20, load_ns=8 * MS, slo_ns=slo_ns, program="p")
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["deferred", "adaptive", "edf"])
@pytest.mark.parametrize("speeds", [(1.0, 0.5), (0.5, 1.0), (0.5, 0.7, 1.0)])
def test_a_slow_device_that_would_be_late_hides_no_fast_one(policy: str, speeds: tuple[float, ...]) -> None:
    """Requests take 10 ms on the fast devices, which are a quarter busy, and are late on the slow ones."""
    model = linear("m", 0, 10 * MS, 1, slo_ns=14 * MS)
    fast = 12 * speeds.count(1.0) // len(speeds)
    arrivals = poisson([25.0 * fast], DURATION_NS, seed=3).collect()
    report = served([model], Cluster(devices=12, speeds=speeds), arrivals, 3, policy)
    assert report.bad_fraction < 0.01


def test_devices_too_slow_for_an_slo_do_not_count() -> None:
    """Half of the devices are too slow for any request: that they are idle is no reason to hold a batch."""
    models = fine_tunes(4, 10 * MS // 21, 20 * 10 * MS // 21, 64, 20 * MS)
    arrivals = poisson([2500 * share for share in zipf(4, 0.9)], 10 * SECOND, seed=4).collect()
    fast = served(models, Cluster(devices=8), arrivals, 4).bad_fraction
    beside = served(models, Cluster(devices=16, speeds=(1.0, 0.5)), arrivals, 4).bad_fraction
    assert fast < 0.008
    assert beside < fast + 0.002


def test_a_model_on_devices_too_slow_for_it_is_cold() -> None:
    """Two fast devices hold 8 of 12 models; beside them, two hold models that they cannot serve in time."""
    models = fine_tunes(12, MS // 2, 19 * MS // 2, 8, 20 * MS)
    cluster = Cluster(devices=4, speeds=(1.0, 0.5), page_bytes=1 << 20, page_count=28)
    arrivals = poisson([20 * share for share in zipf(12, 0.6)], 200 * SECOND, seed=6).collect()
    adaptive, edf = both(models, cluster, arrivals, 6)
    assert adaptive.bad_fraction < 3 * edf.bad_fraction < 0.02


@pytest.mark.parametrize("policy", ["adaptive", "edf"])
@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 0.5)])
def test_second_copies_are_evicted_before_only_ones(policy: str, speeds: tuple[float, ...]) -> None:
    """Two fast devices hold 8 of 12 models and execute for a tenth of their time, so few requests find the
    first copy of their model busy. Models that slow devices hold are of no use to any request."""
    models = fine_tunes(12, MS // 2, 19 * MS // 2, 8, 19 * MS)
    cluster = Cluster(devices=2 * len(speeds), speeds=speeds, page_bytes=1 << 20, page_count=28)
    arrivals = poisson([20 * share for share in zipf(12, 0.6)], 200 * SECOND, seed=12).collect()
    assert served(models, cluster, arrivals, 12, policy).loads < 0.27 * len(arrivals.t_ns)


def test_a_model_on_every_device_goes_before_no_earlier_deadline_of_another() -> None:
    """Two devices hold eight of twelve models, of which the popular ones are on both: those could be served
    elsewhere, but that is no reason to serve them first."""
    models = fine_tunes(12, 7 * MS, 13 * MS, 8, 60 * MS)
    cluster = Cluster(devices=2, page_bytes=1 << 20, page_count=28)
    arrivals = poisson([50 * share for share in zipf(12, 0.6)], 100 * SECOND, seed=5).collect()
    adaptive, edf = both(models, cluster, arrivals, 5)
    assert adaptive.bad_fraction < max(0.004, 1.5 * edf.bad_fraction)


def test_a_device_that_loads_a_copy_for_a_burst_is_free_when_it_is_there() -> None:
    """Bursts with SLOs of two requests' time need several copies at once; work with a longer SLO that comes
    meanwhile can wait, or go elsewhere."""
    models = fine_tunes(40, 10 * MS // 3, 20 * MS // 3, 8)
    cluster = Cluster(devices=16, page_bytes=1 << 20, page_count=28)
    arrivals = gamma([400 * share for share in zipf(40, 0.6)], 4.0, 20 * SECOND, seed=7).collect()
    slos = np.random.default_rng(7).choice([20 * MS, 50 * MS, 250 * MS], len(arrivals.t_ns))
    offered = Arrivals.of(arrivals.t_ns, arrivals.model, slos, np.zeros(len(slos)))
    adaptive, edf = both(models, cluster, offered, 7)
    assert adaptive.bad_fraction < max(0.004, edf.bad_fraction)


def test_a_device_that_loads_serves_what_it_loads() -> None:
    """A load takes 8 ms, and leaves 11 ms of slack. Requests for popular models that come meanwhile have
    other devices, in time or by a copy."""
    models = fine_tunes(120, 20 * MS // 3, 40 * MS // 3, 8, 40 * MS)
    cluster = Cluster(devices=8, page_bytes=1 << 20, page_count=28)
    arrivals = poisson([300 * share for share in zipf(120, 0.9)], 20 * SECOND, seed=15).collect()
    assert served(models, cluster, arrivals, 15).bad_fraction < 0.04


def test_a_load_behind_another_is_no_shortfall() -> None:
    """While a model is loaded, its device serves the model loaded before: no second copy is needed."""
    models = fine_tunes(40, 10 * MS // 9, 80 * MS // 9, 8, 30 * MS)
    cluster = Cluster(devices=2, speeds=(1.0, 0.5), page_bytes=1 << 20, page_count=56)
    arrivals = poisson([26 / 40] * 40, 100 * SECOND, seed=8).collect()
    adaptive, edf = both(models, cluster, arrivals, 8)
    assert adaptive.loads < 1.08 * edf.loads


def test_a_request_that_its_slow_device_cannot_serve_any_more_gets_a_faster_one() -> None:
    """A rare model is on a single device. If that is slow, and busy when a request comes, a copy on a fast
    device may be the only way to be in time."""
    models = fine_tunes(120, 20 * MS // 21, 400 * MS // 21, 32, 100 * MS)
    cluster = Cluster(devices=12, speeds=(1.0, 0.7, 0.4), page_bytes=1 << 20, page_count=49)
    arrivals = poisson([400 * share for share in zipf(120, 1.1)], 30 * SECOND, seed=9).collect()
    assert served(models, cluster, arrivals, 9).bad_fraction <= 0.0005
