"""Devices that differ, in speed or in the models that they hold."""

from __future__ import annotations

import numpy as np
import pytest

from clockwork.formats.profiles import linear
from clockwork.sim.world import Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals, gamma, poisson, zipf

MS, SECOND = 1_000_000, 1_000_000_000
DURATION_NS = 40 * SECOND


def good_part(report: Report) -> float:
    return float(report.good.sum() / report.offered.sum())


@pytest.mark.parametrize("policy", ["deferred", "adaptive", "edf"])
@pytest.mark.parametrize("speeds", [(1.0, 0.5), (0.5, 1.0), (0.5, 0.7, 1.0)])
def test_a_slow_device_that_would_be_late_hides_no_fast_one(policy: str, speeds: tuple[float, ...]) -> None:
    """Requests take 10 ms on the fast devices, which are a quarter busy, and are late on the slow ones."""
    model = linear("m", 0, 10 * MS, 1, slo_ns=14 * MS)
    fast = 12 * speeds.count(1.0) // len(speeds)
    arrivals = poisson([25.0 * fast], DURATION_NS, seed=3)
    report = simulate(
        [model], Cluster(devices=12, speeds=speeds), [Open([arrivals.collect()])], policy=policy, seed=3, resident=True
    )  # fmt: skip
    assert good_part(report) > 0.99


def test_devices_too_slow_for_an_slo_do_not_count() -> None:
    """Half of the devices are too slow for any request: that they are idle is no reason to hold a batch."""
    models = [
        linear(f"m{i}", 10 * MS // 21, 20 * 10 * MS // 21, 64, slo_ns=20 * MS, program="p") for i in range(4)
    ]
    arrivals = poisson([2500 * share for share in zipf(4, 0.9)], 10 * SECOND, seed=4).collect()
    served = [
        good_part(simulate(models, cluster, [Open([arrivals])], policy="adaptive", seed=4, resident=True))
        for cluster in (Cluster(devices=8), Cluster(devices=16, speeds=(1.0, 0.5)))
    ]
    assert served[1] > served[0] - 0.002 > 0.99, served


def test_a_model_on_devices_too_slow_for_it_is_cold() -> None:
    """Two fast devices hold 8 of 12 models; beside them, two hold models that they cannot serve in time."""
    models = [linear(f"m{i}", MS // 2, 19 * MS // 2, 8, weights_bytes=7 << 20, load_ns=8 * MS, slo_ns=20 * MS, program="p")
              for i in range(12)]  # fmt: skip
    cluster = Cluster(devices=4, speeds=(1.0, 0.5), page_bytes=1 << 20, page_count=28)
    arrivals = poisson([20 * share for share in zipf(12, 0.6)], 200 * SECOND, seed=6).collect()
    bad = {
        policy: 1
        - good_part(simulate(models, cluster, [Open([arrivals])], policy=policy, seed=6, resident=True))
        for policy in ("adaptive", "edf")
    }
    assert bad["adaptive"] < 3 * bad["edf"] < 0.02, bad


def test_a_model_on_every_device_goes_before_no_earlier_deadline_of_another() -> None:
    """Two devices hold eight of twelve models, of which the popular ones are on both: those could be served
    elsewhere, but that is no reason to serve them first."""
    models = [linear(f"m{i}", 7 * MS, 13 * MS, 8, weights_bytes=7 << 20, load_ns=8 * MS, slo_ns=60 * MS, program="p")
              for i in range(12)]  # fmt: skip
    cluster = Cluster(devices=2, page_bytes=1 << 20, page_count=28)
    rates = np.array(zipf(12, 0.6)) * 50.0
    bad = {}
    for policy in ("adaptive", "edf"):
        arrivals = poisson(list(rates), 100 * SECOND, seed=5)
        report = simulate(models, cluster, [Open([arrivals.collect()])], policy=policy, seed=5, resident=True)
        bad[policy] = 1 - good_part(report)
    assert bad["adaptive"] < max(0.004, 1.5 * bad["edf"]), bad


def test_a_device_that_loads_a_copy_for_a_burst_is_free_when_it_is_there() -> None:
    """Bursts with SLOs of two requests' time need several copies at once; work with a longer SLO that comes
    meanwhile can wait, or go elsewhere."""
    models = [linear(f"m{i}", 10 * MS // 3, 20 * MS // 3, 8, weights_bytes=7 << 20, load_ns=8 * MS, program="p")
              for i in range(40)]  # fmt: skip
    cluster = Cluster(devices=16, page_bytes=1 << 20, page_count=28)
    arrivals = gamma([400 * share for share in zipf(40, 0.6)], 4.0, 20 * SECOND, seed=7).collect()
    slos = np.random.default_rng(7).choice([20 * MS, 50 * MS, 250 * MS], len(arrivals.t_ns))
    offered = Arrivals.of(arrivals.t_ns, arrivals.model, slos, np.zeros(len(slos)))
    bad = {
        policy: 1
        - good_part(simulate(models, cluster, [Open([offered])], policy=policy, seed=7, resident=True))
        for policy in ("adaptive", "edf")
    }
    assert bad["adaptive"] < max(0.004, bad["edf"]), bad


def test_a_load_behind_another_is_no_shortfall() -> None:
    """While a model is loaded, its device serves the one that was loaded before: no second copy is needed."""
    models = [linear(f"m{i}", 10 * MS // 9, 80 * MS // 9, 8, weights_bytes=7 << 20, load_ns=8 * MS, slo_ns=30 * MS, program="p")
              for i in range(40)]  # fmt: skip
    cluster = Cluster(devices=2, speeds=(1.0, 0.5), page_bytes=1 << 20, page_count=56)
    arrivals = poisson([26 / 40] * 40, 100 * SECOND, seed=8).collect()
    runs = {
        policy: simulate(models, cluster, [Open([arrivals])], policy=policy, seed=8, resident=True)
        for policy in ("adaptive", "edf")
    }
    assert runs["adaptive"].loads < 1.08 * runs["edf"].loads


def test_a_request_that_its_slow_device_cannot_serve_any_more_gets_a_faster_one() -> None:
    """Rare models are on one device each. A slow one that is busy when their request comes may have to leave
    it to a copy on a fast one."""
    models = [linear(f"m{i}", 20 * MS // 21, 400 * MS // 21, 32, weights_bytes=7 << 20, load_ns=8 * MS, slo_ns=100 * MS, program="p")
              for i in range(120)]  # fmt: skip
    cluster = Cluster(devices=12, speeds=(1.0, 0.7, 0.4), page_bytes=1 << 20, page_count=49)
    arrivals = poisson([400 * share for share in zipf(120, 1.1)], 30 * SECOND, seed=9).collect()
    report = simulate(models, cluster, [Open([arrivals])], policy="adaptive", seed=9, resident=True)
    assert report.bad.sum() <= 0.0005 * report.offered.sum()
