"""More load than capacity: every request has one outcome, and work for clients that are gone ends.

Nothing is timed here: tests/sim has the decisions, and bench/ the performance.
"""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clockwork import Client
from clockwork.models import zoo
from clockwork.system.clock import SECOND, now_ns
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import Cluster, running_cluster

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)

CROWD = """
import sys, threading
import numpy as np
from clockwork import Client
client = Client(sys.argv[1], timeout=600)
image = np.zeros((1, 3, 64, 64), np.float32)
futures = [client.submit("net", image) for _ in range(2000)]
futures[0].result()
print("sent", flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        with cluster.client() as client:
            client.register("net", zoo.build("residual_cnn"))
            client.register("small", zoo.build("mlp"))
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with cluster.client() as client:
        yield client


def execution_s(client: Client) -> float:
    """Return the shortest time of a few requests, with its round trip."""
    found = []
    for _ in range(20):
        begin_ns = now_ns()
        client.infer("net", IMAGE)
        found.append((now_ns() - begin_ns) / SECOND)
    return min(found)


def test_more_than_can_be_done(cluster: Cluster, client: Client) -> None:
    rate = 10 / execution_s(client)  # the machine may be less busy in a moment
    before = client.status()["counts"]
    status, text = cluster.run(
        "load", "net", "--rate", f"{rate:.1f}", "--slo", "0.2", "--duration", "3", "--json"
    )
    assert status == 0, text
    report = json.loads(text[text.index("{") :])
    print(json.dumps({key: report[key] for key in report if key != "settings"}))
    after = client.status()["counts"]
    assert not report["errors"]
    assert report["timeouts"] == 0
    assert report["offered"] == report["answered"] + report["refused"] + report["missed"]
    assert report["refused"] > 0
    # infeasible only if the machine is that slow
    assert set(report["refusals"]) <= {"deadline", "infeasible"}
    assert after["answered"] - before["answered"] == report["answered"]


def test_a_cancelled_request_frees_its_place(client: Client) -> None:
    before = client.status()["counts"]["answered"]
    futures = [client.submit("net", IMAGE) for _ in range(300)]
    for future in futures[1:]:
        future.cancel()
    client.infer("net", IMAGE)
    assert client.status()["counts"]["answered"] - before < 300, "requests that were cancelled are executed"
    concurrent.futures.wait(futures)
    eventually(lambda: client.status()["requests_held"] == 0, "nothing is held")


def test_a_client_killed_with_requests_queued_leaves_the_device_idle(
    cluster: Cluster, client: Client
) -> None:
    before = client.status()["counts"]["answered"]
    crowd = cluster.program([cluster.endpoint], code=CROWD)
    crowd.wait_for("sent")
    assert client.status()["requests_held"] > 100
    cluster.kill(crowd)

    def idle() -> bool:
        status = client.status()
        return status["requests_held"] == 0 and all(not worker["actions"] for worker in status["workers"])

    eventually(idle, "the device is idle")
    assert client.status()["counts"]["answered"] - before < 2_000, "requests of nobody are executed"


def test_registering_under_load_refuses_no_feasible_request_of_another_model(
    cluster: Cluster, client: Client, tmp_path: Path
) -> None:
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    client.infer("small", x)
    load = cluster.program([
        "load", "small", "--rate", "100", "--slo", f"{PATIENCE_S}", "--duration", "4", "--json", "--endpoint", cluster.endpoint,
    ])  # fmt: skip
    names = []
    while load.process.poll() is None:
        name = f"added-{len(names)}"
        client.register(name, zoo.build("cnn", widths=(16, 32 + 8 * len(names))))
        names.append(name)
    assert load.wait() == 0, load.text
    assert len(names) >= 2
    report = json.loads(load.text[load.text.index("{") :])
    print(len(names), "models;", report["latency_ms"])
    assert report["answered"] == report["offered"]
    for name in names:
        client.unregister(name)
