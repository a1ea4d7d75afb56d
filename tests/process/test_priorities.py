"""Priorities over HTTP: of requests that wait for a device, those of the higher level are executed first."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clockwork import Client
from clockwork.formats.profiles import ModelProfile
from clockwork.observe.history import History, SeenRequest
from clockwork.observe.live import ClusterDescription, look_back
from clockwork.system.clock import MS, SECOND
from tests.patience import PATIENCE_S, eventually
from tests.process.cluster import running_cluster
from tests.process.gateways import running_gateway

pytestmark = pytest.mark.slow

BLOCKER = ModelProfile("blocker", {1: 4 * SECOND}, 1 << 20, MS, input_bytes=1, output_bytes=1)
SERVED = ModelProfile("served", {1: 10 * MS}, 1 << 20, MS, input_bytes=1, output_bytes=1)


def ask(url: str, client: Client, model: str, priority: int) -> int:
    """Return the status of an answer to a request of this priority (1 is the highest)."""
    (declared,) = client.model(model).inputs
    tensor = {"name": declared.name, "shape": [1, 1], "datatype": "UINT8", "data": [1]}
    body = json.dumps({"inputs": [tensor], "parameters": {"priority": priority}}).encode()
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        answer.read()
        return int(answer.status)


def answered(client: Client) -> Iterator[SeenRequest]:
    """Return requests in the order of their answers, as the controller recorded them."""
    history = History()
    look_back(
        client.recorder,
        history,
        ClusterDescription(client.status(), [one.raw for one in client.models()]),
        600 * SECOND,
    )
    yield from sorted(history.requests.values(), key=lambda one: one.answered_ns)


def test_five_of_the_highest_level_overtake_twenty_that_wait(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster, cluster.client() as client:
        cluster.start_worker("--device", "emulated", "--page-size", "16MiB", arena="128MiB")
        for profile in (BLOCKER, SERVED):
            client.register(profile.name, profile)
        with (
            running_gateway(cluster.endpoint) as gateway,
            concurrent.futures.ThreadPoolExecutor(32) as threads,
        ):
            url = f"http://127.0.0.1:{gateway.ports['http']}"

            def send(count: int, model: str, priority: int) -> list[concurrent.futures.Future[int]]:
                return [threads.submit(ask, url, client, model, priority) for _ in range(count)]

            def wait_until_held(count: int) -> None:
                eventually(lambda: client.status()["requests_held"] == count, f"{count} requests are held")

            assert ask(url, client, "served", 5) == 200  # from here on the model is loaded
            blocker = send(1, "blocker", 3)
            wait_until_held(1)
            asked = send(20, "served", 5)
            wait_until_held(21)
            asked += send(5, "served", 1)
            wait_until_held(26)
            assert not blocker[0].done(), "all wait before the device is free"
            assert [one.result(PATIENCE_S) for one in [*blocker, *asked]] == [200] * 26
        assert [one.priority for one in answered(client)] == [5, 3, *[1] * 5, *[5] * 20]
