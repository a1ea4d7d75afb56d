"""Two workers with stores of their own and different measurements serve one set of models, real and
emulated."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clockwork import Client
from clockwork.device.cpu import fingerprint as device_fingerprint
from clockwork.errors import DeadlineMissed, Refused
from clockwork.formats.prepared import PreparedModel, prepared_directory
from clockwork.formats.profile_package import prepared_from_profile
from clockwork.formats.profiles import ModelProfile
from clockwork.models import zoo
from clockwork.models.prepare import prepare
from clockwork.system.clock import MS
from clockwork.wire.packages import MODEL_FILE
from tests.patience import PATIENCE_NS, PATIENCE_S, eventually
from tests.process.cluster import Cluster, Reference, running_cluster, same

PAGE_BYTES = 256 << 10
ROWS = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def measured(
    store: Path, package: Path, holding: str, batch_max: int, slower: float, threads: int = 1
) -> PreparedModel:
    """Make a worker's store in which a model was prepared before: with this holding, these batch sizes, this
    slowness, and so many threads."""
    fingerprint = device_fingerprint(threads)
    prepared = prepare(package, store, fingerprint, PAGE_BYTES, {"holding": holding})
    found = prepared_directory(store, prepared.digest, fingerprint, {"holding": holding})
    target = prepared_directory(store, prepared.digest, fingerprint, {})
    os.rename(found, target)
    prepared = PreparedModel.read(target)
    prepared.batch_max = batch_max
    prepared.profile = [
        dataclasses.replace(point, exec_ns=int(point.exec_ns * slower))
        for point in prepared.profile
        if point.batch <= batch_max
    ]
    prepared.write(target)
    return prepared


def preparations(client: Client, name: str) -> dict[str, Any]:
    return {one["worker"]: one for one in client.model(name).raw["preparations"]}


def served(client: Client) -> dict[str, int]:
    return {
        worker["name"]: sum(device["plan"]["served"] for device in worker["devices"])
        for worker in client.status()["workers"]
    }


@pytest.mark.slow
def test_two_cpu_workers_that_measured_differently_serve_one_set_of_models(tmp_path: Path) -> None:
    base = zoo.build("mlp")
    models = {f"model-{index}": zoo.fine_tune(base, index) for index in range(3)}
    expected = {name: Reference(model)(ROWS) for name, model in models.items()}
    for name, model in models.items():
        package = tmp_path / name
        package.mkdir()
        onnx.save(model, package / MODEL_FILE)
        wide = measured(tmp_path / "data" / "wide", package, "bound", 16, 1)
        narrow = measured(tmp_path / "data" / "narrow", package, "packed", 2, 2)
    assert wide.runs != narrow.runs
    with running_cluster(tmp_path / "data", workers=0, controller_options=("--policy", "edf")) as cluster:
        workers = {name: cluster.start_worker(name=name, store=name) for name in ("wide", "narrow")}
        with cluster.client() as client, concurrent.futures.ThreadPoolExecutor(16) as pool:
            for name in models:
                client.register(name, str(tmp_path / name / MODEL_FILE))
                shown = preparations(client, name)
                assert {one: shown[one]["state"] for one in shown} == {"wide": "ready", "narrow": "ready"}
                assert (shown["wide"]["holding"], shown["wide"]["batch_max"]) == ("bound", 16)
                assert (shown["narrow"]["holding"], shown["narrow"]["batch_max"]) == ("packed", 2)
                assert shown["wide"]["pages"] == sum(wide.runs)
                assert shown["narrow"]["pages"] == sum(narrow.runs)

            def ask(number: int) -> None:
                name, row = f"model-{number % 3}", number % 64
                assert same(
                    client.infer(name, ROWS[row : row + 1], slo=PATIENCE_S), expected[name][row : row + 1]
                )

            list(pool.map(ask, range(90)))
            assert sum(served(client).values()) == 90
            status, text = cluster.run("models", "show", "model-0")
            assert status == 0
            assert "on wide: ready" in text
            assert "on narrow: ready" in text
            assert cluster.run("probe", "--worker", "narrow")[0] == 0
            assert cluster.run("probe", "--model", "model-1")[0] == 0
            assert cluster.run("probe", "--ready")[0] == 0
            # Whichever drains, the other serves alone.
            assert workers["wide"].stop() == 0
            eventually(lambda: list(served(client)) == ["narrow"], "it is gone")
            before = served(client)["narrow"]
            list(pool.map(ask, range(90)))
            assert served(client)["narrow"] == before + 90
            cluster.start_worker(name="wide", store="wide")
            eventually(
                lambda: preparations(client, "model-2").get("wide", {}).get("state") == "ready", "it is back"
            )
            assert workers["narrow"].stop() == 0
            eventually(lambda: list(served(client)) == ["wide"], "the other is gone")
            list(pool.map(ask, range(90)))
            assert served(client) == {"wide": 90}
            assert cluster.workers[-1].stop() == 0
            eventually(lambda: not served(client), "nobody is left")
            assert {one.state for one in client.models()} == {"unserved"}
            status, text = cluster.run("probe", "--model", "model-1")
            assert (status, text) == (
                1, "clockwork: model-1@1 is unserved: no worker that is connected serves it",
            )  # fmt: skip
            assert cluster.run("probe", "--ready") == (
                1, "clockwork: the cluster is not ready: no worker is connected",
            )  # fmt: skip
            counts = client.status()["counts"]
            assert counts["failed"] == counts["missed"] == counts["refused"] == 0


@pytest.mark.slow
def test_a_worker_of_several_threads_serves_what_one_thread_executes_too_slowly(tmp_path: Path) -> None:
    model = zoo.build("mlp")
    package = tmp_path / "package"
    package.mkdir()
    onnx.save(model, package / MODEL_FILE)
    measured(tmp_path / "data" / "wide", package, "bound", 16, 1, threads=2)
    narrow = measured(tmp_path / "data" / "narrow", package, "bound", 16, 1)
    narrow.profile = [dataclasses.replace(point, exec_ns=10 * PATIENCE_NS) for point in narrow.profile]
    narrow.by_threads = [[2, MS]]
    narrow.write(prepared_directory(tmp_path / "data" / "narrow", narrow.digest, narrow.fingerprint, {}))
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        cluster.start_worker(name="narrow", store="narrow")
        cluster.start_worker("--threads", "2", name="wide", store="wide")
        client.register("tight", str(package / MODEL_FILE), slo=PATIENCE_S)
        shown = preparations(client, "tight")
        assert shown["wide"]["state"] == "ready"
        assert shown["narrow"]["state"].startswith("its SLO of 180000 ms is below its execution time of")
        assert shown["narrow"]["state"].endswith(
            "with 2 threads it takes 1 ms: serve it by workers with --threads 2"
        )
        client.register("loose", zoo.fine_tune(model, 1))
        assert {one["state"] for one in preparations(client, "loose").values()} == {"ready"}
        for _ in range(10):
            assert same(client.infer("tight", ROWS), Reference(model)(ROWS))
        assert served(client) == {"wide": 10, "narrow": 0}


def emulated(cluster: Cluster, name: str, *options: str) -> Any:
    return cluster.start_worker("--device", "emulated", *options, arena="1GiB", name=name, store=name)


@pytest.mark.parametrize("policy", ["edf", "adaptive"])
def test_emulated_workers_of_other_kinds_and_profiles_serve_one_set_of_models(
    tmp_path: Path, policy: str
) -> None:
    profile = ModelProfile("small", {1: 2 * MS, 16: 8 * MS}, 1 << 20, MS, input_bytes=100, output_bytes=7)
    options = ("--policy", policy)
    with running_cluster(tmp_path / "data", workers=0, controller_options=options) as cluster:
        emulated(cluster, "fast")
        with cluster.client() as client:
            for index in range(4):
                client.register(f"small-{index}", profile)
            # In an earlier measurement the second worker was half as fast, and batches of more than 4 did not
            # help.
            store = tmp_path / "data" / "slow"
            for digest in {client.model(info.name).digest for info in client.models()}:
                found = next((tmp_path / "data" / "fast" / "prepared").glob(f"{digest}-*"))
                body = json.loads((found / "prepared.json").read_text())
                slow = prepared_from_profile(profile, digest, body["fingerprint"], body["page_bytes"], {})
                slow.runs = [len(slow.runs)]
                slow.batch_max = 4
                slow.profile = [
                    dataclasses.replace(point, batch=min(point.batch, 4), exec_ns=2 * point.exec_ns)
                    for point in slow.profile
                ]
                (store / "prepared" / found.name).mkdir(parents=True)
                slow.write(store / "prepared" / found.name)
            emulated(cluster, "slow")
            emulated(cluster, "other", "--page-size", "1MiB")
            ready = {"fast": "ready", "slow": "ready", "other": "ready"}

            def all_ready() -> bool:
                found = [preparations(client, f"small-{index}") for index in range(4)]
                return all({name: one[name]["state"] for name in one} == ready for one in found)

            eventually(all_ready, "all have prepared all")
            shown = preparations(client, "small-0")
            assert (shown["fast"]["batch_max"], shown["slow"]["batch_max"]) == (16, 4)
            inputs = np.ones((1, 100), np.uint8)

            def work() -> bool:
                futures = [client.submit(f"small-{number % 4}", inputs, slo=0.1) for number in range(400)]
                answered = 0
                for future in futures:
                    # the load exceeds the capacity of all workers
                    with contextlib.suppress(Refused, DeadlineMissed):
                        assert future.result().shape == (1, 7)
                        answered += 1
                assert answered > 0
                return min(served(client).values()) > 0

            eventually(work, "all three work")
            assert client.status()["counts"]["failed"] == 0
