"""A model within its share of a device is served as if alone, however another model floods the device; the
flood gets the rest."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from bench.isolation import EXEC_MS, FLOOD, FLOODS, QUIET, Flood, profiles, simulated
from clockwork.sim.world import Cluster, Disturbance, Open, Report, simulate
from clockwork.system.clock import MS, SECOND
from clockwork.workloads.generators import poisson
from tests.sim.harness import World, spec

SECONDS = 120
POLICIES = ("edf", "adaptive")
AHEAD_MS = 5
"""How early a batch may be sent: requests that come after that wait for its end, too."""

cached = functools.lru_cache(maxsize=None)(simulated)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "name", [name for name, flood in FLOODS.items() if not flood.pages and not flood.wire]
)
def test_the_quiet_model_is_served_as_if_alone_and_the_flood_has_the_rest(policy: str, name: str) -> None:
    flood = FLOODS[name]
    alone, beside, without = cached(policy, None), cached(policy, flood), cached(policy, flood, 0)
    assert alone.classes.good[QUIET] == alone.classes.offered[QUIET] > 500
    # Promises made before the flood was noticed are kept: as many as the flooding model's SLO has room for.
    until_known = flood.slo_ms / 1000 * 5
    assert beside.classes.good[QUIET] >= 0.99 * alone.classes.good[QUIET] - until_known
    p99_ms = [one.class_latency[QUIET].percentile(99) / MS for one in (alone, beside)]
    assert p99_ms[1] <= p99_ms[0] + flood.longest_ms + AHEAD_MS
    rest = 1 - float(beside.classes.good[QUIET]) * EXEC_MS / 1000 / SECONDS
    # edf fills batches less beside the quiet model: it leaves time for the arrivals of that model, too.
    least = 0.6 if policy == "edf" and flood.batch_max > 1 else 0.95
    assert beside.classes.good[FLOOD] >= least * rest * without.classes.good[FLOOD]


def test_edf_promises_a_flood_not_all_of_its_long_slo_before_it_is_known() -> None:
    flood = FLOODS["looser SLO"]
    alone, beside = cached("edf", None, kind=flood), cached("edf", flood)
    assert beside.classes.good[QUIET] >= 0.99 * alone.classes.good[QUIET]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [name for name, flood in FLOODS.items() if flood.wire])
def test_the_quiet_model_is_served_as_if_alone_on_a_flooded_link_for_inputs(policy: str, name: str) -> None:
    flood = FLOODS[name]
    alone, beside = cached(policy, None, kind=flood), cached(policy, flood)
    without = cached(policy, flood, 0)
    assert alone.classes.good[QUIET] == alone.classes.offered[QUIET] > 500
    # Promises made before the flood was noticed are kept; the time per byte is learnt with the first inputs.
    until_known = (flood.slo_ms / 1000 + 0.5) * flood.quiet_rate
    assert beside.classes.good[QUIET] >= 0.99 * alone.classes.good[QUIET] - until_known
    rest = flood.rest(float(beside.classes.good[QUIET] / beside.classes.offered[QUIET]))
    # edf leaves room for executions of the quiet model, which the link for inputs does not need.
    least = 0.8 if policy == "edf" else 0.93
    assert beside.classes.good[FLOOD] >= least * rest * without.classes.good[FLOOD]
    # Without the quiet model the link is full.
    assert without.classes.good[FLOOD] / SECONDS > 0.9 * flood.wire / flood.input_bytes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("jitter_ms", [2, 5])
def test_inputs_that_come_later_than_predicted_take_the_link_for_nothing_only_at_first(
    policy: str, jitter_ms: int
) -> None:
    flood = FLOODS["wire: SLO of 100 ms"]
    served = cached(policy, flood, 0, seconds=30, jitter_ns=jitter_ms * MS).classes
    assert served.good[FLOOD] / 30 > 0.9 * flood.wire / flood.input_bytes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("factor", [4, 20])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_flooded_link_for_inputs_is_full_again_soon_after_it_was_slow(
    policy: str, factor: int, devices: int
) -> None:
    flood = dataclasses.replace(FLOODS["wire: SLO of 40 ms"], devices=devices)
    arrivals = poisson([flood.rate], 12 * SECOND, models=[FLOOD], seed=3, slo_ns=flood.slo_ms * MS, cls=FLOOD)
    cluster = Cluster(
        devices=devices,
        devices_per_worker=devices,
        link_jitter_ns=10_000,
        ping_ns=250 * MS,
        input_bandwidth=flood.wire,
        disturbances=(Disturbance("inputs", 3 * SECOND, 4 * SECOND, factor=factor),),
    )
    report = simulate(
        profiles(flood), cluster, [Open(arrivals)], policy=policy, resident=True, series_ns=SECOND, seed=3
    )
    assert min(report.series["good"][7:12]) > 0.9 * flood.wire / flood.input_bytes


def test_edf_serves_inputs_whose_slo_has_no_room_for_those_of_every_other_device() -> None:
    """Each device has a fourth of the link, with which none of these inputs would be in time."""
    flood = dataclasses.replace(FLOODS["wire on 4 devices: SLO of 40 ms"], slo_ms=30)
    served = cached("edf", flood, 0, seconds=30).classes
    assert served.good[FLOOD] / 30 > 0.9 * flood.wire / flood.input_bytes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", [name for name, flood in FLOODS.items() if flood.pages])
def test_the_quiet_model_is_served_as_if_alone_beside_a_flood_of_loads(policy: str, name: str) -> None:
    flood = FLOODS[name]
    alone, beside = cached(policy, None, kind=flood), cached(policy, flood)
    without = cached(policy, flood, 0, kind=flood.without_room())
    assert alone.classes.good[QUIET] == alone.classes.offered[QUIET] > 500
    # Promises made before the flood was noticed are kept.
    until_known = (flood.slo_ms / 1000 + 0.5) * flood.quiet_rate
    assert beside.classes.good[QUIET] >= 0.99 * alone.classes.good[QUIET] - until_known
    rest = flood.rest(float(beside.classes.good[QUIET] / beside.classes.offered[QUIET]))
    # edf leaves room for loads of others and, where devices share a link, promises few loads ahead.
    least = 0.65 if policy == "edf" and flood.devices > 1 else 0.8
    assert beside.classes.good[FLOOD] >= least * rest * without.classes.good[FLOOD]


@pytest.mark.parametrize("policy", POLICIES)
def test_models_that_all_flood_the_links_are_loaded_in_the_order_of_their_need(policy: str) -> None:
    """Where no model is within its share, the links are not divided: what is loaded is what is worth most."""
    flood = FLOODS["loads: SLO of 100 ms"]
    report = cached(policy, flood, 0)
    assert report.classes.good[FLOOD] >= 0.8 * flood.rate * SECONDS


@pytest.mark.parametrize("policy", POLICIES)
def test_models_that_flood_the_links_are_shown(policy: str) -> None:
    world = World(seed=4, policy=policy)
    quiet = world.scheduler.link_status(0)
    assert quiet == {"contested_ns": 0, "level": 0, "beyond": 0, "shares": []}
    world.join(devices=[("cpu", 3, 1.0)])
    world.ready(*(spec(model, exec_ms=1, load_ms=30) for model in range(1, 8)))
    for model in range(1, 8):
        world.poisson(2 if model == 1 else 60, 4 * SECOND, functools.partial(world.request, model))
    world.run(4 * SECOND)
    shown = world.scheduler.link_status(world.now)
    assert 0 < shown["contested_ns"] <= 2 * SECOND
    assert 0 < shown["level"] < 0.5
    standings = {share["model"]: share["standing"] for share in shown["shares"]}
    assert standings.pop(1) == "within"
    assert shown["beyond"] == list(standings.values()).count("beyond") >= 3
    assert 0 < sum(share["had"] for share in shown["shares"]) < 1.2
    assert world.scheduler.link_status(world.now) == shown  # reading changes nothing


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_that_asks_for_all_alone_is_given_all(policy: str) -> None:
    report = cached(policy, FLOODS["rate"], 0)
    assert report.device_busy[0] > 0.99
    assert report.classes.good[FLOOD] / SECONDS > 0.98 * 1000 / EXEC_MS


def greedy(policy: str, rates: tuple[float, float]) -> Report:
    models = profiles(Flood())
    loads = [
        Open(poisson([rate], 60 * SECOND, models=[index], seed=3, stream=index, slo_ns=100 * MS, cls=index))
        for index, rate in enumerate(rates)
    ]
    return simulate(models, Cluster(exec_noise=0.003), loads, policy=policy, resident=True, check=True)


def test_of_two_that_ask_for_more_than_half_each_has_half() -> None:
    report = greedy("edf", (60.0, 500.0))
    one, other = (int(good) for good in report.classes.good)
    assert abs(one - other) <= 0.05 * (one + other)
    assert one + other >= 0.98 * 60 * 1000 / EXEC_MS


@pytest.mark.parametrize("policy", POLICIES)
def test_who_was_idle_has_saved_nothing_up(policy: str) -> None:
    """After half a minute of silence a second model floods, too: it gets its half, but no credit for unused
    time."""
    models = profiles(Flood())
    steady = poisson([550.0], 60 * SECOND, models=[FLOOD], seed=3, slo_ns=100 * MS, cls=FLOOD)
    late = poisson([550.0], 30 * SECOND, models=[QUIET], seed=4, slo_ns=100 * MS, cls=QUIET)
    shifted = Open(
        type(one)(one.t_ns + 30 * SECOND, one.model, one.slo_ns, one.priority, one.cls) for one in late
    )
    report = simulate(models, Cluster(), [Open(steady), shifted], policy=policy, resident=True)
    half = 30 * 1000 / EXEC_MS / 2
    assert report.classes.good[QUIET] == pytest.approx(half, rel=0.12)
    assert report.classes.good[FLOOD] >= 0.95 * 3 * half
