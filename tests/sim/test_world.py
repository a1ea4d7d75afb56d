"""The simulated world, as stories: the clients' answers, the devices' actions, and the failures with their
times."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from bench import simulator
from clockwork.formats.profiles import ModelProfile, linear
from clockwork.sim import Closed, Cluster, Open, Report, simulate
from clockwork.workloads import Arrivals

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
PAGE_BYTES = 16 << 20

CNN = ModelProfile("cnn", {1: 5 * MS}, weights_bytes=3 * PAGE_BYTES, load_ns=8 * MS, slo_ns=100 * MS)
BATCHES = ModelProfile(
    "batches", {1: 10 * MS, 16: 25 * MS}, weights_bytes=PAGE_BYTES, load_ns=4 * MS, slo_ns=100 * MS
)

RESNET = ModelProfile(
    "resnet", {1: 3 * MS, 16: 17 * MS}, weights_bytes=PAGE_BYTES, load_ns=4 * MS, input_bytes=600_000
)


def at(times_ms: list[float], model: int = 0, slo_ms: int = 0, priority: int = 0, cls: int = 0) -> Open:
    return Open([Arrivals.of([int(one * MS) for one in times_ms], model, slo_ms * MS, priority, cls)])


def poisson(rate: float, seconds: float, models: int = 1, seed: int = 0) -> Open:
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * seconds)
    times = np.sort(generator.integers(0, int(seconds * SECOND), count))
    return Open([Arrivals.of(times, generator.integers(0, models, count))])


def run(models: list[ModelProfile], cluster: Cluster, *workloads: Open | Closed, **more: object) -> Report:
    arguments = {"policy": "edf", "resident": True, "check": True, **more}
    return simulate(models, cluster, workloads, **arguments)  # type: ignore[arg-type]


# ----- time -----------------------------------------------------------------------------------------


def test_a_lone_request_takes_its_execution_and_the_way_there_and_back() -> None:
    report = run([CNN], Cluster(link_there_ns=300 * US, link_back_ns=200 * US), at([10]))
    assert report.good.tolist() == [1]
    assert report.latency.largest_ns == 5 * MS + 500 * US
    assert report.percentile(50) == 5 * MS + 500 * US
    assert report.batches.tolist() == [0, 1]
    assert report.loads == 0, "it was resident before time began"


def test_a_cold_request_waits_for_its_load_and_is_counted_as_cold() -> None:
    report = run([CNN], Cluster(link_there_ns=0, link_back_ns=0), at([10]), resident=False)
    assert report.cold.tolist() == [1]
    assert report.loads == 1
    assert 13 * MS <= report.latency.largest_ns <= 14 * MS


def test_batches_take_what_lies_between_the_profiles_points() -> None:
    report = run([BATCHES], Cluster(link_there_ns=0, link_back_ns=0), at([10] + [11] * 6))
    assert report.batches.tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert report.latency.largest_ns == 9 * MS + 15 * MS, "six take 10 ms and five times one more"


def test_the_devices_of_a_worker_load_one_after_the_other_and_those_of_two_at_once() -> None:
    models = [ModelProfile(f"m{i}", {1: MS}, 5 * PAGE_BYTES, 50 * MS, slo_ns=SECOND) for i in range(2)]
    apart = Cluster(devices=2, page_count=5)
    together = Cluster(devices=2, page_count=5, devices_per_worker=2)
    both = Open([Arrivals.of([MS, MS], [0, 1])])
    assert run(models, apart, both, resident=False).latency.largest_ns < 60 * MS
    slower = run(models, together, both, resident=False)
    assert 101 * MS < slower.latency.largest_ns < 110 * MS
    assert slower.good.tolist() == [1, 1]


def test_inputs_take_their_time_on_the_link_and_to_the_device() -> None:
    model = ModelProfile("big", {1: 5 * MS}, PAGE_BYTES, MS, input_bytes=1_000_000, slo_ns=100 * MS)
    wire = run([model], Cluster(input_bandwidth=1_000_000_000), at([10]))
    both = run([model], Cluster(input_bandwidth=1_000_000_000, copy_bandwidth=500_000_000), at([10]))
    assert wire.latency.largest_ns == 100 * US + 1 * MS + 5 * MS
    assert both.latency.largest_ns == 100 * US + 1 * MS + 2 * MS + 5 * MS


def test_a_worker_twice_as_fast_takes_half_the_time() -> None:
    report = run([CNN], Cluster(speeds=(2.0,), link_there_ns=0, link_back_ns=0), at([10]))
    assert report.latency.largest_ns == 2_500 * US


def test_a_clock_that_is_off_and_drifts_costs_little_and_hurts_nobody() -> None:
    cluster = Cluster(clock_offset_ns=3600 * SECOND, clock_drift_ppm=50, link_jitter_ns=100 * US)
    report = run([CNN], cluster, poisson(100, 20))
    assert report.bad_fraction < 0.001
    assert report.too_late == 0
    assert report.errors["infer_completion"].under.percentile(99) < 500 * US


# ----- who is counted, and how ----------------------------------------------------------------------


def test_outcomes_are_told_apart_and_by_model_and_class() -> None:
    impossible = Open([Arrivals.of([20 * MS], 0, 2 * MS, 0, 3)])
    report = run([CNN, BATCHES], Cluster(devices=2), at([10, 30]), at([10], model=1, cls=1), impossible)
    assert report.offered.tolist() == [3, 1]
    assert report.good.tolist() == [2, 1]
    assert report.refused.tolist() == [1, 0]
    assert report.classes.offered.tolist() == [2, 1, 0, 1]
    assert report.classes.bad.tolist() == [0, 0, 0, 1]
    assert report.bad_fraction == 0.25
    assert report.refusal.largest_ns == 0, "a refusal comes at once"


def test_nothing_of_the_warm_up_is_counted() -> None:
    report = run([CNN], Cluster(), at([10, 20, 1000, 1100]), warmup_ns=500 * MS, until_ns=2 * SECOND)
    assert report.offered.tolist() == report.good.tolist() == [2]
    assert report.requests == 4
    assert report.goodput_rate == 2 / 1.5
    assert report.device_busy.tolist() == [10 / 1500]


def test_nothing_arrives_after_the_end() -> None:
    assert run([CNN], Cluster(), at([10, 20, 1000]), until_ns=500 * MS).requests == 2


def test_overload_is_refused_and_the_rest_is_answered_at_capacity() -> None:
    report = run([CNN], Cluster(), poisson(400, 20), warmup_ns=SECOND)
    assert report.refused.sum() > 0.4 * report.offered.sum()
    assert 190 < report.goodput_rate <= 201
    assert report.device_busy[0] > 0.95
    assert report.late.sum() == report.unanswered.sum() == 0


def test_the_series_tells_what_happened_when() -> None:
    report = run([CNN], Cluster(), at([100, 200, 1100, 3500]), series_ns=SECOND)
    assert report.series["offered"].tolist() == [2, 1, 0, 1]
    assert report.series["good"].tolist() == [2, 1, 0, 1]
    assert report.series["busy_ns"].tolist() == [10 * MS, 5 * MS, 0, 5 * MS]
    assert report.series["max_ns"].tolist() == [5100 * US, 5100 * US, 0, 5100 * US]


def test_closed_loop_clients_wait_for_their_answers() -> None:
    report = run([CNN], Cluster(), Closed(0, concurrency=2, round_trip_ns=100 * US), until_ns=10 * SECOND)
    assert 195 < report.goodput_rate <= 200.2, "two of them keep one device of 200/s busy"
    lone = run([CNN], Cluster(), Closed(0, think_ns=95 * MS - 200 * US), until_ns=10 * SECOND)
    assert lone.good.tolist() == [100]


@pytest.mark.parametrize("slo_ms", [25, 100, 500])
def test_inputs_are_sent_while_the_device_executes_and_it_is_not_idle_for_them(slo_ms: int) -> None:
    """A batch is planned behind another whose inputs are still on their way; the time of inputs is learnt."""
    model = dataclasses.replace(RESNET, slo_ns=slo_ms * MS)
    wire = Cluster(input_bandwidth=1_250_000_000, copy_bandwidth=12_300_000_000)
    clients = [Closed(number, concurrency=16, round_trip_ns=MS) for number in range(8)]
    report = run([model] * 8, wire, *clients, policy="adaptive", warmup_ns=SECOND, until_ns=3 * SECOND)
    assert report.device_busy[0] > 0.96
    assert report.too_late < 0.02 * report.infers


def test_large_batches_whose_inputs_take_longer_than_their_window_are_answered_all_the_same() -> None:
    """Inputs of 16 take 7.7 ms, and a free device's window is 6 ms wide: too late for the window, but not for
    the deadline."""
    model = dataclasses.replace(RESNET, slo_ns=50 * MS)
    patient = Closed(1, concurrency=16, slo_ns=86_400 * SECOND)
    wire = Cluster(input_bandwidth=1_250_000_000)
    report = run([model] * 2, wire, poisson(100, 6), patient, policy="paper", until_ns=6 * SECOND)
    assert report.too_late > 0, "else this tells nothing"
    assert report.bad[1] == 0, "nobody with a day's time misses it"
    assert report.good[1] > 3000


def test_a_client_that_gives_up_is_neither_good_nor_bad() -> None:
    report = run([CNN], Cluster(cancels=1.0), poisson(390, 5))
    assert report.cancelled.sum() > 100
    assert report.good.sum() + report.bad.sum() + report.cancelled.sum() == report.offered.sum()


def test_predictions_of_a_noisy_device_miss_by_its_noise() -> None:
    report = run([CNN], Cluster(exec_noise=0.02), poisson(100, 60))
    duration = report.errors["infer_duration"]
    assert duration.over.total + duration.under.total == report.infers
    assert 20 * US < duration.over.percentile(50) < 500 * US
    calm = run([CNN], Cluster(), poisson(100, 60)).errors["infer_duration"]
    assert calm.over.largest_ns == calm.under.largest_ns == 0


def test_a_report_is_plain_data() -> None:
    report = run([CNN], Cluster(), at([10, 20]), series_ns=SECOND)
    again = json.loads(json.dumps(report.to_json()))
    assert again["models"]["good"] == [2]
    assert again["latency"]["percentiles_ns"]["99"] == 5_100_000
    assert again["digest"] == report.digest


# ----- what goes wrong ------------------------------------------------------------------------------


def test_a_crashed_worker_comes_back_empty_and_its_requests_are_answered_for() -> None:
    cluster = Cluster(devices=2, crashes_per_hour=1200, down_ns=200 * MS, timeout_ns=300 * MS)
    report = run([CNN, BATCHES], cluster, poisson(150, 30, models=2), drain_ns=60 * SECOND)
    assert report.crashes > 5
    assert report.loads > 5, "what was resident is loaded anew"
    assert report.good.sum() > 0.9 * report.offered.sum()
    assert report.unanswered.sum() == 0


def test_a_lost_message_breaks_the_connection() -> None:
    report = run([CNN], Cluster(devices=2, link_loss=0.002), poisson(200, 20), drain_ns=60 * SECOND)
    assert report.crashes > 5
    assert report.unanswered.sum() == 0
    assert report.good.sum() > 0.9 * report.offered.sum()


def test_actions_that_fail_are_done_again_while_there_is_time() -> None:
    report = run([CNN], Cluster(infer_failures=0.1), poisson(100, 20))
    assert report.failed_actions > 100
    assert report.good.sum() > 0.97 * report.offered.sum()


def test_models_that_do_not_all_fit_take_turns() -> None:
    models = [ModelProfile(f"m{i}", {1: 5 * MS}, 10 * PAGE_BYTES, 8 * MS, slo_ns=250 * MS) for i in range(40)]
    report = run(models, Cluster(page_count=80), poisson(40, 20, models=40), resident=False)
    assert report.unloads > 100
    assert report.good.sum() >= 0.99 * report.offered.sum()
    assert 0.1 < report.link_busy[0] < 1


# ----- determinism ----------------------------------------------------------------------------------

NOISY = """
from tests.sim.test_world import *
cluster = Cluster(
    devices=3, devices_per_worker=2, page_count=6, exec_noise=0.05, load_noise=0.05, outlier=0.01,
    link_jitter_ns=200_000, link_loss=0.001, clock_offset_ns=10**9, clock_drift_ppm=50, crashes_per_hour=1200,
    load_failures=0.05, infer_failures=0.02, cancels=0.05,
)
def noisy(seed):
    models = [CNN, BATCHES, CNN]
    return run(models, cluster, poisson(300, 5, 3), Closed(1), seed=seed, until_ns=5 * SECOND, resident=False)
print(noisy(1).digest, noisy(2).digest)
"""


def test_a_seed_is_a_world_in_any_process() -> None:
    found = [
        subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1]
    first, second = found[0].split()
    assert len(first) == 32
    assert first != second


def test_where_the_chunks_of_arrivals_end_makes_no_difference() -> None:
    [whole] = poisson(150, 5).chunks
    parts = [whole.part(begin, begin + 7) for begin in range(0, len(whole), 7)]
    digests = [run([CNN], Cluster(), one).digest for one in (Open([whole]), Open(parts), Open(iter(parts)))]
    assert digests[0] == digests[1] == digests[2]


def test_looking_does_not_disturb() -> None:
    looked = run(
        [CNN], Cluster(exec_noise=0.1), poisson(150, 5), check=True, series_ns=SECOND, trace_max=1000
    )
    left_alone = run([CNN], Cluster(exec_noise=0.1), poisson(150, 5), check=False)
    assert looked.digest == left_alone.digest
    assert len(looked.trace) == 1000


# ----- the caller's mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("warm-up", {"warmup_ns": SECOND, "until_ns": SECOND}),
        ("below 0", {"warmup_ns": -1}),
        ("no-such", {"policy": "no-such"}),
    ],
)
def test_arguments_that_make_no_sense_are_named(what: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=what):
        run([CNN], Cluster(), at([1]), **arguments)


def test_workloads_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="model 1 of 1"):
        run([CNN], Cluster(), at([1], model=1))
    with pytest.raises(ValueError, match="comes after"):
        run([CNN], Cluster(), Open([Arrivals.of([5], 0), Arrivals.of([4], 0)]))
    with pytest.raises(ValueError, match="never stop"):
        run([CNN], Cluster(), Closed(0))
    with pytest.raises(ValueError, match="link_loss"):
        run([CNN], Cluster(link_loss=-1), at([1]))
    with pytest.raises(ValueError, match="without models"):
        run([], Cluster(), at([1]))


def test_the_benchmark_runs_and_its_cluster_carries_its_load() -> None:
    row = simulator.measure("24 devices, 20 models, batches, noise", "edf", quick=True)
    assert row["bad_%"] < 1
    assert row["requests_per_cpu_s"] > 20_000, "fifty times slower than it was"


def test_the_schedulers_own_time_is_told_apart_where_it_is_wanted() -> None:
    models, cluster = [linear("m", 1_000_000, 1_000_000, 8, load_ns=1_000_000)], Cluster()
    timed = run(models, cluster, poisson(2000, 2.0), timed=True)
    untimed = run(models, cluster, poisson(2000, 2.0))
    assert 0 < timed.scheduler_s < timed.cpu_s
    assert untimed.scheduler_s == 0
    assert timed.digest == untimed.digest


# ----- idle with work waiting -----------------------------------------------------------------------


def idle_ms(report: Report) -> list[float]:
    return [round(one * report.span_ns / MS, 3) for one in report.device_idle_with_work]


def test_a_device_that_waits_for_a_batch_to_grow_is_idle_with_work_for_as_long() -> None:
    waits = {"policy": "fifo", "options": {"queue_delay_ms": 20}}
    assert idle_ms(run([BATCHES], Cluster(), at([10]), **waits)) == [20]
    given_up = run([BATCHES], Cluster(), at([10], slo_ms=16), **waits)
    assert given_up.good.sum() == 0
    assert idle_ms(given_up) == pytest.approx([6], abs=0.5), "it waited until it could no longer be in time"
    both_idle = run([BATCHES], Cluster(devices=2, devices_per_worker=1), at([10]), **waits)
    assert idle_ms(both_idle) == [20, 20], "either could have served it"


def test_what_comes_to_an_idle_device_or_waits_for_a_load_leaves_none_idle_with_work() -> None:
    for policy in ("edf", "adaptive", "paper"):
        assert idle_ms(run([CNN], Cluster(), at([10, 40, 70]), policy=policy)) == [0], policy
        cold = run([CNN], Cluster(), at([10]), policy=policy, resident=False)
        assert (idle_ms(cold), cold.loads) == ([0], 1), policy


@pytest.mark.parametrize("policy", ["edf", "adaptive", "paper", "fifo"])
def test_a_device_with_too_much_to_do_executes_or_is_idle_with_work(policy: str) -> None:
    """The device loses no time between the two actions, and none is counted twice: noise makes devices wait
    for orders."""
    cluster = Cluster(exec_noise=0.2, link_there_ns=300 * US, link_back_ns=300 * US, link_jitter_ns=200 * US)
    report = run([CNN], cluster, poisson(400, 5), policy=policy, warmup_ns=SECOND, until_ns=5 * SECOND)
    executing, idle = report.device_busy[0], report.device_idle_with_work[0]
    assert executing + idle == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_adaptive_sends_early_enough_for_executions_that_end_before_they_were_planned_to(
    noise: float,
) -> None:
    """With a fixed lead of 0.1 ms, 8 % of the device's time was lost, and with it the goodput."""
    cluster = Cluster(
        exec_noise=noise, link_there_ns=300 * US, link_back_ns=300 * US, link_jitter_ns=200 * US
    )
    span = {"warmup_ns": SECOND, "until_ns": 5 * SECOND}
    learnt = run([CNN], cluster, poisson(300, 5), policy="adaptive", **span)
    fixed = run(
        [CNN], cluster, poisson(300, 5), policy="adaptive", options={"schedule_ahead_ms": 0.1}, **span
    )
    assert learnt.device_idle_with_work[0] < 0.01
    assert fixed.device_idle_with_work[0] > 0.05
    assert learnt.goodput_rate > 1.05 * fixed.goodput_rate


def test_executions_take_longer_in_a_spell_by_when_they_begin() -> None:
    spells = [(20 * MS, 3.0), (60 * MS, 1.0)]
    report = run([CNN], Cluster(link_there_ns=0, link_back_ns=0, spells=spells), at([10, 30, 58, 100]))
    assert report.good.tolist() == [4]
    assert report.latency.largest_ns == 15 * MS
    assert report.device_busy[0] * report.span_ns == pytest.approx((5 + 15 + 15 + 5) * MS)
    for wrong in ([(5, 1.0), (2, 1.0)], [(0, 0.0)]):
        with pytest.raises(ValueError, match="spells"):
            run([CNN], Cluster(spells=wrong), at([10]))
