"""The benchmarks run: quick forms, checked for results that must be true on any machine, however busy."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

from bench import (
    batching,
    cores,
    dashboard_cost,
    disturbance,
    emulated,
    fidelity,
    gateway,
    gpu,
    gpu_lanes,
    gpu_registration,
    gpu_serving,
    history,
    joining,
    lengths,
    live_stores,
    neighbours,
    overload,
    paging,
    prediction,
    promise,
    pump,
    recovery,
    registration,
    report,
    rot,
    roundtrip,
    shared_arena,
    shared_memory,
    spike,
    takeover,
    threads,
    worker,
)
from bench.attacks import gateway_bytes, gateway_seats, seats
from bench.attacks import measure as attacks
from bench.attacks import memory as lent
from bench.attacks import messages as thrown
from bench.attacks.site import MIB
from bench.cluster import Cluster
from bench.gpu_peers import measure as gpu_peers
from bench.gpu_peers import ours, theirs
from bench.gpu_peers.measure import _row as gpu_peers_row
from bench.gpu_peers.theirs import ON_A_CPU
from bench.million import live as million
from bench.million import tables as million_tables
from bench.networks import NoNetworks
from bench.paper import fig11, live
from bench.paper.common import Setting
from bench.relay import Relay
from clockwork.config import POLICY
from clockwork.config.device import EXECUTION_WORKSPACE_BYTES
from clockwork.config.gateway import CONNECTIONS_MAX
from clockwork.models import zoo
from clockwork.models.compile import compiler
from tests.device.fake import LIBRARY, FakeDriver
from tests.patience import eventually


def test_models_are_listed_with_the_verdict_of_before(capsys: pytest.CaptureFixture[str]) -> None:
    batching.main(["--quick", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 23
    assert {row["now"] for row in rows} == {"proven", "alone"}
    assert all(row["reason"] for row in rows if row["now"] == "alone")


def test_executors_of_an_arena_beside_devices_with_arenas_of_their_own() -> None:
    rows, facts = shared_arena.measure(
        shared_arena.Plan(models=2, seconds=1.0, loads=(0.3,), shares=(1.2,), kinds=("executors", "devices"))
    )
    assert [row["kind"] for row in rows] == ["executors", "devices"]
    assert all(row["goodput/s"] > 0 and row["pss_MB"] > 0 for row in rows)
    assert facts["models"] == 2


def test_the_chosen_threads_beside_every_number() -> None:
    rows, facts = threads.measure(threads.Plan(cores=1, slos=(8.0,), rounds=1, seconds=1.0))
    (row,) = rows
    assert (row["threads"], row["offered/s"] > 0) == (1, True)
    assert facts["cores"] == 1
    assert row["chosen"]
    assert row["chosen/this"] in (0, 1)
    assert threads.flags_of(1, 4) == ("--executors", "4")
    assert threads.flags_of(2, 4) == ("--threads", "2", "--devices", "2")


def test_the_division_of_cores_beside_every_division() -> None:
    plan = cores.Plan(
        cores=(16,), loads=(0.6,), seconds=2.0, seeds=1, cases=("one needs threads", "long SLOs")
    )
    rows = cores.measure(plan)
    assert [row["case"] for row in rows] == list(plan.cases)
    assert [row["divisions"] for row in rows] == [14, 15], (
        "without threads a model of the first is not served"
    )
    assert all(row["chosen/best"] >= 0.98 and row["planned/best"] >= 0.98 for row in rows)
    assert rows[1]["chosen"] == "16 of one core"


def test_round_trip_beside_a_relay() -> None:
    with Cluster() as cluster, cluster.client() as client, Relay() as relay:
        client.register("null", zoo.build("null"))
        ours, bare = roundtrip.measure(client, relay, 2)
        assert len(ours) == len(bare) == 2 * roundtrip.BLOCK
        assert roundtrip.compare(ours, bare)["p50 ratio"] > 0

        def takes_longer() -> bool:
            for times, more in zip((ours, bare), roundtrip.measure(client, relay, 2)):
                times += more
            return min(ours) > min(bare)

        # A request takes the relay's path and more. Other processes' time is in most samples, but not in all.
        assert min(ours) > min(bare) or eventually(takes_longer, "a request takes longer than the relay")


@pytest.mark.slow
def test_what_large_tensors_cost_sent_and_shared() -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memory to share")
    rows = shared_memory.measure(1, block_bytes=20_000_000)
    found = {(row["tensor"], row["model"], row["way"]): row for row in rows}
    for size in shared_memory.SIZES:
        sent, shared = found[size, "max", "sent"], found[size, "max", "shared"]
        assert shared["requests"] == sent["requests"] > 0
    # The controller does not see the tensors, however busy the machine is.
    assert (
        found["10 MB", "same", "shared"]["controller_cpu_ms"]
        < found["10 MB", "same", "sent"]["controller_cpu_ms"]
    )


@pytest.mark.slow
def test_workers_that_store_a_part_of_the_models_behind_links_that_fail() -> None:
    try:
        rows, facts = live_stores.measure(live_stores.QUICK, 1)
    except NoNetworks as why:
        pytest.skip(f"no network namespaces with links: {why}")
    assert [row["phase"] for row in rows] == ["steady", "cut", "kill", "join"]
    assert all(row["requests"] > 0 and row["wrong"] == row["not ended once"] == 0 for row in rows)
    assert facts["answers"]["requests"] >= sum(row["requests"] for row in rows)
    assert facts["answers"]["without an answer"] == facts["leave"]["wrong"] == 0
    assert facts["simulated steady"]["in time"] > 0


def test_what_a_request_costs_a_gateway() -> None:
    pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")
    with gateway.Gateway(400) as one:
        http, grpc = (
            gateway.HttpCaller(one.http_port, 2, 4096), gateway.GrpcCaller(one.grpc_port, 2, 4096)
        )  # fmt: skip
        rows = gateway.measure(one, {"http": (http.round, 2), "grpc": (grpc.round, 2)}, 40, 1)
        http.close()
        grpc.close()
    assert [row["case"] for row in rows] == ["http", "grpc"]
    assert all(row["cpu_us/request"] > 0 for row in rows)


@pytest.mark.slow
def test_a_workers_infers_are_counted_and_paced_beside_its_python() -> None:
    [row] = worker.throughput({"this": Path.cwd()}, 1, 200)
    assert row["INFERs/s"] > 0
    assert row["processor us each"] > 0
    rows = worker.lateness(1, 20)
    assert [row["meanwhile"] for row in rows] == list(worker.MODES)
    assert [row["INFERs"] for row in rows] == [20] * len(worker.MODES)


@pytest.mark.slow
def test_overload_is_answered_with_refusals() -> None:
    [row], facts = overload.measure((1.8,), 1.0)
    assert row["refused_%"] > 0
    assert row["errors"] == 0
    assert row["p50_ms"] > 0.0, "nothing was answered"
    assert facts["largest relative error of the checked answer"] < paging.TOLERANCE
    for how in ("closed", "was killed"):
        assert facts[f"{POLICY}: idle after a client {how}, ms"] > 0


@pytest.mark.slow
def test_others_are_loaded_and_registered_beside_a_model_that_is_measured() -> None:
    rows, facts = disturbance.measure(1, 0.7, 4, 2048, 3)
    assert [row["meanwhile"] for row in rows] == list(disturbance.MODES)
    assert all(row["requests"] > 0 for row in rows)
    assert rows[1]["LOADs"] > 0
    assert facts["asked of others"] > facts["of these not in time"]
    assert facts["registered"] > 0


@pytest.mark.slow
def test_large_models_keep_their_weights_apart() -> None:
    facts = paging.large(models=3, room=1, requests=6, image=64, architecture="residual_cnn")
    assert facts["programs"] == 1
    assert facts["largest share of the arena in use"] <= 1.0
    assert facts["LOAD ordered"] - facts["UNLOAD ordered"] == facts["resident at the end"] == 1
    assert facts["results"] == {"ok": facts["LOAD ordered"] + facts["UNLOAD ordered"] + facts["requests"]}, (
        "an action was refused, or done without an order"
    )
    assert facts["closest two models differ by"] > 100 * paging.TOLERANCE


@pytest.mark.slow
def test_many_small_models_share_programs() -> None:
    facts = paging.thousands(models=12, families=2, seconds=1.0, share=0.4)
    assert facts["programs"] == 2
    assert facts["answers checked"] == 12
    assert facts["largest relative error"] < paging.TOLERANCE
    assert facts["latency, ms"], "nothing was answered"


@pytest.mark.slow
@pytest.mark.parametrize("through", ["client", "command"])
def test_fine_tunes_are_registered_at_a_rate(through: str) -> None:
    facts = registration.measure(models=6, families=1, megabytes=0.1, at_once=3, through=through)
    assert facts["models/s"] > 0
    assert set(facts["processor time of a model, ms"]) == {"client", "controller", "worker", "preparation"}
    assert facts["restart until all are ready, s"] > 0


@pytest.mark.slow
def test_a_worker_that_joins_takes_models_or_prepares_them() -> None:
    rows, facts = joining.measure(3, 1, 0.1, 10.0, 1.0)
    assert facts["p99 of requests before, ms"] > 0
    assert {row["models are"]: row["taken"] for row in rows} == dict(zip(joining.WAYS, (3, 0)))
    for row in rows:
        assert row["failed"] == 0
        assert row["models/s"] > 0
        assert row["processor time of a model, ms"]["joining worker"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("catalog", ["directory", "postgres"])
def test_a_standby_answers_when_the_active_is_killed_or_stopped(catalog: str) -> None:
    rows, facts = takeover.measure(takeover.Plan(rounds=1, models=2, rate=50.0, workers=1, catalog=catalog))
    assert [row["how"] for row in rows] == ["kill", "stop"]
    for row in rows:
        assert (row["rounds"], row["failed"], row["unanswered"], row["loads"]) == (1, 0, 0, 0), facts
        assert row["answered"] == row["requests"] > 0


def test_what_a_request_costs_the_controller() -> None:
    settings = emulated.Settings(
        seconds=0.6, warm_up_s=0.2, sizes=(0, 48_000), devices=4, models=3, in_flight=64, rate=300.0
    )
    rows, facts = emulated.measure(settings)
    assert [row["input_bytes"] for row in rows] == [0, 48_000]
    for row in rows:
        assert row["requests"] > 0
        assert row["us/request"] > 0
        assert row["good_%"] > 0
    assert rows[1]["Mbyte/s"] > 0
    assert facts[emulated.STAGES]["schedule"] > 0
    assert all(facts[f"an end is noticed late by, {how}"]["p50_us"] > 0 for how in ("sleeping", "spinning"))
    found = facts["one way, client to worker"]
    assert min(found["messages"]) > 50
    assert found["ratio"]["p50_us"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("over", ["client", "http"])
def test_a_live_run_stands_beside_its_simulation(tmp_path: Path, over: str) -> None:
    """The difference depends on the machine's other load; here, both must cover the same requests."""
    found = fidelity.measure((0.3,), 1.0, quick=True, over=over)
    lines = fidelity.table(found)
    assert [line["simulated with"] for line in lines] == list(fidelity.HOWS)
    for line in lines:
        assert line["requests"] > 0
        assert line["live good_%"] > 0
        assert line["sim good_%"] > 0
    [row] = found["rows"]
    assert set(row["machine"]["ratio"]) == set(fidelity.SHARES), "every model was executed and recognised"
    assert all(ratio > 0 for ratio in row["machine"]["ratio"].values())
    fidelity.draw(found, tmp_path / "fidelity.png")
    assert (tmp_path / "fidelity.png").stat().st_size > 0
    assert fidelity.reasons(found)


@pytest.mark.slow
def test_errors_of_predictions_with_neighbours() -> None:
    given = SimpleNamespace(slowdown=1.4, noise=0.02, load=1.5, seconds=1.0, policy="adaptive", quick=True)
    found = {
        where: {executors: measure(executors, given) for executors in (1, 2)}
        for where, measure in (("simulated", neighbours.simulated), ("emulated", neighbours.emulated))
    }
    rows = neighbours.table(found)
    assert [(row["where"], row["executors"]) for row in rows] == [
        (where, executors) for where in found for executors in (1, 2)
    ]
    assert all(row["executions"] > 0 for row in rows)


@pytest.mark.slow
def test_errors_of_predictions_live_and_simulated(tmp_path: Path) -> None:
    found = {
        "live": prediction.live(0.5, 1.0, POLICY, quick=True),
        "simulated": prediction.simulated(3.0, POLICY),
    }
    lines = prediction.table(found)
    assert len(lines) == 2 * len(prediction.KINDS) * 2
    for where in found:
        for kind in ("infer duration", "infer completion", "load duration", "load completion"):
            mine = [line for line in lines if (line["where"], line["predicted"]) == (where, kind)]
            assert sum(line["actions"] for line in mine) > 0
    exact = found["simulated"]["infer_duration"]
    assert all(exact[way]["percentiles_ns"]["99"] < 0.1e6 for way in ("over", "under")), "noise of 0.03 %"
    prediction.draw(found, tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 0


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), 48_000])
def test_what_a_request_costs_the_controller_between_native_ends(size: int) -> None:
    row = pump.measure(pump.Settings(seconds=0.5, warm_up_s=0.2, devices=4, models=3), size, 64)
    assert row["good_%"] > 0
    assert row["us/request"] > 0


@pytest.mark.parametrize("burst", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_what_a_reader_costs_a_controller_at_a_steady_rate(burst: int) -> None:
    settings = dashboard_cost.Settings(
        rate=400.0,
        devices=4,
        models=3,
        burst=burst,
        seconds=0.5,
        settle_s=0.1,
        triples=1,
        readers=2,
        has_browser=False,
    )
    [row], facts = dashboard_cost.measure("steady", settings)
    assert row["requests/s"] > 0
    assert row["us/request"] > 0
    assert row["from_%"] == row["cost_%"] == row["to_%"], "of one comparison"
    assert facts["steady: readers at once"] > 0


@pytest.mark.long
def test_what_a_dashboard_costs_a_controller_is_measured_with_a_browser() -> None:
    pytest.importorskip("bokeh", reason="the extra [dashboard] is not installed")
    if importlib.import_module("tools.browser").program() is None:
        pytest.skip("no Chromium is on the path")
    settings = dashboard_cost.Settings(rate=400.0, devices=4, models=3, triples=2, readers=2)
    [dashboard, reader], facts = dashboard_cost.measure("steady", settings)
    assert dashboard["who"] != reader["who"]
    assert facts["steady: page's states"] == ["live"]
    assert facts["steady: of the time shown"] > 0.9


def test_a_cost_has_the_interval_of_its_median() -> None:
    def segment(us: float) -> dashboard_cost.Segment:
        return dashboard_cost.Segment(1_000, 1.0, us / 1e3)

    triples = [
        {"shown": segment(cost), "hidden": segment(10.0), "hidden again": segment(10.0)}
        for cost in (10.0, 10.5, 11.0, 11.5, 12.0)
    ]
    row = dashboard_cost.summary("it", triples, 2, seed=1)
    assert (row["us/request"], row["requests/s"], row["threes"]) == (10.0, 1_000, 5)
    assert row["cost_%"] == pytest.approx(5.0), "ten per cent, for two"
    assert 0.0 <= row["from_%"] < row["cost_%"] < row["to_%"] <= 10.0
    assert row["control_%"] == row["control from_%"] == row["control to_%"] == 0.0


def test_the_worst_run_of_the_pump_stands_beside_the_median() -> None:
    runs = [{"requests/s": rate, "good_%": good} for rate, good in ((9.0, 100.0), (1.0, 99.0), (8.0, 50.0))]
    assert pump.summary(runs) == {
        "requests/s": 8.0, "good_%": 99.0, "worst requests/s": 1.0, "worst good_%": 50.0,
    }  # fmt: skip


@pytest.mark.parametrize("gone", [0, 1])
def test_a_cluster_that_loses_a_process_says_so(gone: int) -> None:
    with Cluster() as cluster:
        [cluster.controller, *cluster.workers][gone].kill()
        [cluster.controller, *cluster.workers][gone].wait()
        with pytest.raises(RuntimeError, match="ended with status -9"):
            cluster._check()


@pytest.mark.slow
def test_the_papers_figures_have_their_live_forms() -> None:
    setting = Setting("tiny", (POLICY,))
    times = live.execution_times(setting, lambda part: None)["digits"]
    assert 0 < times["executions"]["p50_ms"] < times["client"]["p50_ms"], (
        "a client waits for more than the device"
    )
    [row] = live.slo_sweep(setting)
    assert row["goodput/s"] + row["late"] + row["refused"] + row["missed"] > 0
    assert row["failed"] == 0
    [row] = fig11.live_rows(setting)
    assert row["requests/s"] > 0
    assert row["good_%"] > 0
    alone, together = live.isolation(setting)
    assert (alone["batch/s"], alone["batch_clients"]) == (0, 0)
    assert together["batch/s"] > 0, "batch clients got nothing"


@pytest.mark.slow
def test_a_gpu_is_timed_even_if_it_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    FakeDriver().setup(device_bytes=1 << 30)  # this process's driver, which other tests may have left small
    with (
        gpu.Site(tmp_path / "site", pages=2, page_bytes=1 << 20) as site,
        gpu.Site(tmp_path / "plain", pages=2, page_bytes=1 << 20, graphs=False) as plain,
    ):
        memory = site.device.memory()
        assert memory["pinned_bytes"] == memory["store_bytes"], "no more is pinned than its models take"
        rows, facts = gpu.measure(site, plain, loads=3, inferences=5)
    counts = len(gpu.LAUNCHES)
    assert [one["count"] for one in rows] == [3, 3, *[5] * 2 * counts]
    recorded, one_by_one = rows[2 : 2 + counts], rows[2 + counts :]
    assert len({one["calls"] for one in recorded}) == 1
    first = one_by_one[0]["calls"]
    assert [one["calls"] - first for one in one_by_one] == [more - gpu.LAUNCHES[0] for more in gpu.LAUNCHES]
    assert all(value > 0 for value in facts.values())


@pytest.mark.slow
def test_what_a_gpus_lanes_add_to_its_work() -> None:
    rows, facts = gpu_lanes.measure(3, 2, load_mib=4, kernels_ms=(1,), pages_mib=(1,))
    assert [row["count"] for row in rows] == [3, 4, 3, 5, 1]
    assert min(row["p50_us"] for row in rows) > 0
    assert min(facts.values()) > 0


@pytest.mark.slow
def test_what_registrations_do_to_a_gpu_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLOCKWORK_FAKE_STALL", "CLOCKWORK_FAKE_SPEED", "CLOCKWORK_FAKE_STALLS"):
        monkeypatch.setenv(name, "0:0:0:0")  # so that the variable is restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    FakeDriver().setup(device_bytes=1 << 30)
    rows, facts = gpu_registration.measure(2, 40.0, 1.0)
    assert [row["requests"] for row in rows[:3]] == ["alone", "registering elsewhere", "registering here"]
    assert all(row["served"] > 0 for row in rows[:3])
    assert facts["models registered"] == 2
    assert str(facts["calls that stall, outside of RESERVEs"]).startswith("0 of ")
    assert facts["RESERVEs"] > 10


@pytest.mark.slow
def test_many_models_go_through_the_memory_of_a_few_gpu_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    FakeDriver().setup(device_bytes=1 << 30)
    rows, facts = gpu_serving.measure(
        models=8, room=3, pages=2, rate=40.0, seconds=1.5, page_bytes=1 << 18, host_bytes=""
    )
    assert facts["answered"] > 0
    assert facts["LOADs"] > 8
    assert facts["pages in use at the end"] <= 6
    assert {row["predicted"] for row in rows} >= {"infer duration", "load duration"}


@pytest.mark.parametrize("name", ["gpu", "gpu_serving", "gpu_registration", "gpu_peers.__main__"])
def test_without_a_gpu_a_sentence_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes(zoo.digits().SerializeToString())
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", "libcuda_nowhere.so.1")
    monkeypatch.setattr(sys, "argv", [name, "--quick", *([str(model), "--cpu"] if "peers" in name else [])])
    with pytest.raises(SystemExit, match=r"^cannot use a CUDA device: no CUDA driver: libcuda_nowhere"):
        importlib.import_module(f"bench.{name}").main()


def test_a_package_of_an_older_card_of_the_family_is_held_against_its_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a build for 8.0 on an A10."""
    gpu_serving.write_package(tmp_path / "package", b"a cubin", "sm_80", 1, 1 << 12, 1.0)
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    FakeDriver().card(86)
    try:
        site = ours.Site(tmp_path / "site", tmp_path / "package", 8)
    finally:
        FakeDriver().restore()
    assert site.target == "sm_80"
    assert site.variant(3).batch == 4


def test_a_result_is_shown_where_onnx_runtime_is_the_one_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This package replaces the other, as docs/gpu.md says: its distribution has another name."""
    found = report.version

    def installed(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.31.1" if name == "onnxruntime-gpu" else found(name)

    monkeypatch.setattr(report, "version", installed)
    assert report.conditions(0)["versions"]["onnxruntime"] == "1.31.1"
    monkeypatch.setattr(report, "PACKAGES", ("nowhere",))
    assert report.conditions(0)["versions"] == {"nowhere": "unknown"}


def test_answers_that_are_no_floats_are_held_against_each_other() -> None:
    times = ours.Times([1000, 2000], [3000, 4000])
    answers = [np.array([True, False]), np.array([1, 2], np.uint8)]
    row = gpu_peers_row(1, "fp32", "one", "alone", times, answers, [np.array([True, True]), answers[1]])
    assert row["apart by"] == 1


@pytest.mark.skipif(
    theirs.CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has the providers"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_peers_whose_libraries_are_missing_are_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu, which lists TensorRT's provider whether or not TensorRT is installed."""
    for listed, said in (([], "has no"), ([theirs.CUDA, theirs.TENSORRT], "cannot load")):
        monkeypatch.setattr(
            onnxruntime, "get_available_providers", lambda listed=listed: [*listed, "CPUExecutionProvider"]
        )
        found, lacking = theirs.available((*theirs.PEERS, *ON_A_CPU))
        assert found == list(ON_A_CPU)
        assert [
            f"{said} {provider}" in why
            for provider, why in zip((theirs.CUDA, theirs.TENSORRT), lacking, strict=True)
        ] == [True, True]


def test_peers_on_a_card_are_told_what_they_take_and_are_timed_without_their_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's provider takes no other words for yes and no.

    A run returns before the card has done it, so that an event recorded behind it is reached at once; a
    session made beside it has streams of its own.
    """
    made: list[dict[str, dict[str, str]]] = []
    synchronised: list[str] = []

    class Session:
        def __init__(self, path: str, options: object, providers: Any, enable_fallback: int) -> None:
            made.append(dict(providers))
            for name, value in made[-1].get(theirs.TENSORRT, {}).items():
                if name.endswith("_enable") and value not in ("True", "False"):
                    raise RuntimeError(f"the value for the key {name} should be True or False")

        def get_providers(self) -> list[str]:
            return list(made[-1])

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

        def io_binding(self) -> Any:
            return SimpleNamespace(copy_outputs_to_cpu=list)

        def run_with_iobinding(self, binding: object, options: Any = None) -> None:
            known = options is not None and options.get_run_config_entry(theirs.UNSYNCHRONISED)
            synchronised.append("no" if known == "1" else "yes")

    class Event:
        def record(self, stream: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    cuda = SimpleNamespace(
        Stream=lambda non_blocking: SimpleNamespace(ptr=4096), Event=Event, get_elapsed_time=lambda *_: 1.0
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    model = tmp_path / "digits.onnx"
    model.write_bytes(zoo.digits().SerializeToString())
    for peer in theirs.PEERS:
        made.clear()
        side = theirs.Side(model, peer, tmp_path)
        assert {options["user_compute_stream"] for options in made[0].values()} == {"4096"}
        _, times = side.run([], [], 3, "registrations")
        assert len(made) > len(times.registered_s) > 0
        assert not any("user_compute_stream" in options for one in made[1:] for options in one.values())
    assert set(synchronised) == {"no"}


@pytest.mark.skipif(
    not compiler.is_installed(), reason="compiling needs tinygrad: pip install 'clockwork-serving[compile]'"
)
@pytest.mark.slow
def test_a_compiled_model_is_held_against_onnx_runtime_kernel_by_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOCKWORK_CUDA_DRIVER", str(LIBRARY))
    FakeDriver().setup(device_bytes=1 << 30)
    model = tmp_path / "digits.onnx"
    model.write_bytes(zoo.digits().SerializeToString())
    dtypes = ("fp32", "tf32", "fp16")
    failing = ON_A_CPU[0]._replace(name="one that fails")
    peers = (*ON_A_CPU, failing)

    def side(path: Path, peer: theirs.Peer, *others: Path) -> theirs.Side:
        return theirs.Side(tmp_path / "nowhere.onnx" if peer is failing else path, peer, *others)

    monkeypatch.setattr(gpu_peers, "Side", side)
    serve = ours.Serving.run
    loaded: dict[str, int] = Counter()

    def counted(self: ours.Serving, inputs: Any, runs: int, beside: str = "warm") -> Any:
        before = FakeDriver().calls("cuModuleLoadData")
        try:
            return serve(self, inputs, runs, beside)
        finally:
            loaded[beside] += FakeDriver().calls("cuModuleLoadData") - before

    monkeypatch.setattr(ours.Serving, "run", counted)
    infer, predicted = ours.Infer, []

    def noted(*fields: Any) -> Any:
        predicted.append(infer(*fields).expected_ns)
        return infer(*fields)

    monkeypatch.setattr(ours, "Infer", noted)
    rows, lists, facts = gpu_peers.measure(model, model, [1], dtypes, peers, runs=5, listed=3)
    unpredicted = ours.WARM_UP
    assert not any(predicted[:unpredicted])
    assert predicted[unpredicted] > 0, "as a controller would: without, an end is noticed late"
    beside = [row["registered"] for row in rows if row["beside"] == "registrations"]
    assert len(beside) == 5
    assert min(beside) > 0
    assert loaded["registrations"] >= 3, "what is registered is a program of its own"
    assert sum(loaded.values()) == loaded["registrations"]
    assert "batch 1: one that fails: " in facts["not measured"], "and the others are measured all the same"
    assert facts["launches"][1] > 3
    exact = [row for row in rows if row["dtype"] == "fp32"]
    assert [(row["side"], row["beside"]) for row in exact] == [
        ("Clockwork", "alone"),
        ("Clockwork", "LOADs"),
        ("Clockwork", "registrations"),
        ("ONNX Runtime, CPU", "alone"),
        ("ONNX Runtime, CPU", "registrations"),
    ]
    assert {row["apart by"] < (2e-2 if row["dtype"] == "fp16" else 1e-4) for row in rows} == {True}
    assert all(0 < row["event p50_us"] <= row["event p99.99_us"] for row in rows)
    has_rival = {row["dtype"]: row["times the best"] for row in rows if row["times the best"]}
    assert has_rival.keys() == {"fp32", "fp16"}, "nobody cuts products to tf32 on a processor"
    assert list(dict.fromkeys(one["dtype"] for one in lists)) == list(dtypes)
    assert [one["side"] for one in lists[:6]] == ["clockwork"] * 3 + ["ONNX Runtime, CPU"] * 3


@pytest.mark.slow
def test_checks_of_stored_bytes_after_a_start(tmp_path: Path) -> None:
    assert rot.fill(tmp_path, 3, 64) > 100_000
    for kept in (True, False):
        rot.take_checksums(tmp_path, kept)
        found = rot.start(tmp_path, 3, "64M")
        assert min(found["ready_s"], found["first answer_s"], found["first answer of others_s"]) > 0
    assert found["checked in idle time"] == 0  # no answers to compare


@pytest.mark.slow
def test_what_was_planned_of_a_cluster_is_offered_to_it() -> None:
    rows = promise.measure(1.5, 1, POLICY, (0.5,))
    assert rows[0]["promised/s"] > 0
    assert rows[0]["offered/s"] == pytest.approx(0.5 * rows[0]["promised/s"], rel=0.7)
    assert rows[0]["bad_%"] < 100


@pytest.mark.slow
def test_a_worker_that_stood_still_serves_again() -> None:
    (found,) = recovery.measure("stop", "adaptive", 1, recovery.QUICK)
    assert found.steady + found.first + found.second > 0, "nothing was answered"


def test_a_simulated_spike_has_windows_in_it_and_after_it() -> None:
    rows = spike.measure(spike.QUICK_SHAPES, spike.POLICIES, 1, spike.QUICK)
    assert [(row["shape"], row["policy"]) for row in rows] == [
        (shape, policy) for shape in spike.QUICK_SHAPES for policy in spike.POLICIES
    ]
    assert all(row["of"] == row["of windows"] == 9 for row in rows)
    assert all(row["spike least"] > 0 and row["offered"] > 0 for row in rows)


@pytest.mark.slow
def test_live_rounds_of_a_spike_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "spike.jsonl"
    for kinds in (("emulated",), ("cpu",)):
        [windows] = spike.live_rounds(kinds, ("adaptive",), 1, spike.QUICK, out)[kinds[0], "adaptive"]
        assert windows.spike.sum() + windows.quiet_good.sum() > 0, "nothing was answered"
        assert windows.offered.sum() > 0
    monkeypatch.setattr(spike, "LIVE", {})
    again = spike.live_rounds(("cpu",), ("adaptive",), 1, spike.QUICK, out)["cpu", "adaptive"][0]
    assert again.to_json() == windows.to_json()


@pytest.mark.slow
def test_what_hostile_peers_take() -> None:
    pytest.importorskip("aiohttp", reason="the gateway's libraries are not installed ([gateway])")
    rows = attacks.measure(list(attacks.ATTACKS), quick=True, apart=False)
    assert [row["attack"] for row in rows] == list(attacks.ATTACKS)
    assert all(row["wrong"] == 0 < row["answers"] for row in rows)
    became = {row["attack"]: row["attacker"] for row in rows}
    for name in ("unread answers", "endless message"):
        assert became[name].startswith("disconnected"), became
    assert became["HTTP bodies"] == f"answered 413 x {thrown.QUICK.bodies}"
    assert became["gRPC without token"] == f"answered 16 x {thrown.QUICK.calls}", "UNAUTHENTICATED"
    for name in ("gRPC submessages", "gRPC empty bytes", "gRPC contents"):
        assert became[name] == f"answered OUT_OF_RANGE x {gateway_bytes.QUICK.calls}"
    assert became["JSON lists"] == f"answered 413 x {gateway_bytes.QUICK.bodies}"
    # Unbounded, the total would be 1.6 GB of answers and 600 MiB of one message.
    grown = {row["attack"]: row["grew_MiB"] for row in rows}
    assert 50 < grown["unread answers"] < 600, "nothing was thrown, or nothing bounds it"
    # libzmq reads on while the controller waits for its processor
    assert grown["endless message"] < 500
    assert became["wrong bools"] == f"InvalidInput x {lent.QUICK.requests}"
    assert became["leased memory"] == f"InvalidInput x {lent.QUICK.requests}"
    assert became["huge memory"] == f"answered x {len(lent.HUGE_BYTES)}"
    assert max(grown[name] for name in lent.ATTACKS) < 400
    assert "refused (InvalidModel)" in became["swelling models"]
    assert became["endless models"].startswith("an honest registration behind 4 of")
    assert became["hostile attributes"] == "refused x 6"
    slow = next(row for row in rows if row["attack"] == "slow by data")
    assert slow["ZeroMQ_attacked_max_ms"] < 0.9 * 1000 * slow["took_s"], "others wait for all of its loops"
    assert "answered x" in became["heavy images"], became["heavy images"]
    assert became["small images"] == "InvalidInput x 5, answered x 1"
    assert became["endless words"] == "InvalidInput x 4, answered x 7"
    assert became["heap"] == "strings: ExecutionFailed x 1; places: ExecutionFailed x 1"
    assert grown["heap"] < EXECUTION_WORKSPACE_BYTES / MIB + 200
    for name in ("silent connections", "idle clients"):
        assert "a newcomer was answered" in became[name], became[name]
    assert "a listener heard" in became["silent connections"]
    assert became["idle uploads"].startswith("a registration took"), became["idle uploads"]
    assert became["fat stats"] == "readiness 200, status was answered"
    assert became["large headers"] == f"answered HelloNeeded x {seats.QUICK.headers}"
    assert became["late reader"].startswith("Answer x"), became["late reader"]
    assert became["late reader"].endswith(f"of {seats.QUICK.answers}")
    for name in gateway_seats.ATTACKS:
        count = gateway_seats.NEWCOMERS
        assert f"{count} of {count} newcomers answered" in became[name], (name, became[name])
    for name in ("silent HTTP", "unsent bodies", "TLS handshakes", "silent gRPC"):
        assert int(became[name].partition(" ")[0]) < CONNECTIONS_MAX, (name, became[name])
    assert became["HPACK tables"].startswith("disconnected"), became["HPACK tables"]


@pytest.mark.slow
def test_sentences_of_different_length_in_one_batch_and_of_one() -> None:
    small = {"layers": 1, "width": 64, "heads": 2, "vocabulary": 100}
    [row], facts = lengths.live(12.0, 0.6, 0.25, 1.0, 1, (1.0,), **small)
    assert "lengths share a batch (S)" in facts["shared"]
    assert "one length in a batch" in facts["same-shape"]
    assert row["shared/s"] > 0
    assert row["same-shape/s"] > 0
    assert facts["largest relative error of a checked answer"] < lengths.TOLERANCE


def test_sentences_of_different_length_simulated() -> None:
    small = {"layers": 1, "width": 64, "heads": 2, "vocabulary": 100}
    [row], facts = lengths.simulated(12.0, 0.6, 0.25, 1.0, 1, (0.5,), **small)
    assert row["shared/s"] > 0
    assert row["same-shape/s"] > 0
    assert facts["requests one by one, /s"] > 0


def test_recordings_are_read_folded_and_explained() -> None:
    found = history.measure(4, 1000.0, quick=True)
    assert found["answered"] <= found["requests"]
    assert found["both_per_cpu_s"] > 100


def test_requests_outside_of_their_slo_are_counted_live_and_blamed() -> None:
    setting = million.Setting("adaptive", 200, 200.0, 1, warmup_s=0.2, models=5)
    row = million.measure(setting, Console(file=io.StringIO()))
    assert 120 < row["requests"] < 280
    assert (
        row["outside"]
        == len(row["listed"])
        == sum(row[f"outside, {verdict}"] for verdict in million.VERDICTS)
    )
    assert row["machine"]["seconds"] > 0
    assert row["controller, cores"] > 0
    assert len(million_tables.live({"rows": [row]})) >= 5
    unanswered = row | {name: None for name in row if name.endswith("_ms")}
    assert "| - | - | - | - |" in million_tables.live({"rows": [unanswered]})[2]
