"""Workers' reports fit into an answer, whatever they report and however many they are."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from bench import zmtp
from clockwork.config import WORKER_DEVICES_MAX
from clockwork.config.controller import STATS_BYTES_DEVICE, STATS_BYTES_WORKER, STATUS_ROWS_MAX
from clockwork.controller.peers.links import count_values
from clockwork.wire import codec, messages
from tests.patience import eventually
from tests.process.cluster import running_cluster
from tests.process.gateways import Http, running_gateway
from tests.process.peers import Served, serving


def joined(
    stack: contextlib.ExitStack, served: Served, number: int, devices: int, text: str
) -> socket.socket:
    """A worker with so many devices, each with long reports."""
    device = {
        "kind": text[:64], "name": text[:256], "fingerprint": text[:500], "page_bytes": 4096, "page_count": 4, "run_ahead": 2,
    }  # fmt: skip
    hello = messages.WorkerHello(
        messages.PROTOCOL_VERSION, "test", text[:200], 100 + number, [device] * devices
    )
    one = stack.enter_context(zmtp.open_connection(served.controller.worker_endpoint))
    one.sendall(zmtp.message([codec.encode(hello)]))
    assert type(codec.decode(zmtp.read_message(one)[0], messages.TO_WORKER)) is messages.WorkerWelcome
    return one


def beat(one: socket.socket, stats: dict[str, Any]) -> None:
    one.sendall(zmtp.message([codec.encode(messages.Heartbeat(1, 1, stats))]))


@pytest.mark.parametrize(
    "stats",
    [
        {"text": "x" * (STATS_BYTES_WORKER + STATS_BYTES_DEVICE)},
        {"list": [1] * 300},
        {"deep": [[[[1] * 100] * 3]]},
        {"all": "y" * 900_000},
        {"devices": 1},
        {"devices": [{}, {}]},
        {"devices": [7]},
        {"devices": [{"gpu": "x"}]},
        {"devices": [{"gpu": {"throttled": [1]}}]},
        {"devices_lost": [1]},
        {"rss_bytes": "many"},
    ],
)
def test_a_worker_with_fat_or_odd_stats_is_let_go(tmp_path: Path, stats: dict[str, Any]) -> None:
    with serving(tmp_path) as served, contextlib.ExitStack() as stack:
        one = joined(stack, served, 0, 1, "fat")
        beat(one, {"rss_bytes": 1})
        eventually(
            lambda: served.status()["workers"][1]["stats"] == {"rss_bytes": 1}, "what is usual is shown"
        )
        beat(one, stats)
        eventually(lambda: [one["name"] for one in served.status()["workers"]] == ["fake1"], "it is gone")
        assert served.status()["complaints"]["worker malformed"] == 1
        served.check()


def test_status_describes_honest_workers_beside_any_others(tmp_path: Path) -> None:
    count = 24
    with serving(tmp_path) as served, contextlib.ExitStack() as stack:
        stats = {"devices": [{"x": "z" * 900}] * WORKER_DEVICES_MAX}
        for number in range(count):
            one = joined(stack, served, number, WORKER_DEVICES_MAX, "w" * 1_000)
            beat(one, stats)
        served.check()
        body = served.status()
        assert len(body["workers"]) == 1 + count
        assert len(body["workers"][0]["devices"]) == 1
        shown = [len(one["devices"]) for one in body["workers"]]
        assert sum(shown) <= STATUS_ROWS_MAX
        assert sum(shown) + sum(one["left_out"] for one in body["workers"]) == 1 + count * WORKER_DEVICES_MAX


def test_an_honest_workers_stats_are_a_third_of_what_they_may_be(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data") as cluster, cluster.client() as client:
        eventually(lambda: client.status()["workers"][0]["stats"], "it has told some")
        stats = client.status()["workers"][0]["stats"]
        assert count_values(stats, 1_000) <= 75
        assert len(codec.encode(messages.Heartbeat(1, 1, stats))) <= 2_000


def test_readiness_is_asked_for_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clockwork.controller.views.queries.Queries.status", lambda self: 1 / 0)
    with running_cluster(tmp_path / "data") as cluster, running_gateway(cluster.endpoint) as gateway:
        http = Http(gateway.ports["http"])
        eventually(lambda: http.ask("GET", "/v2/health/ready").status == 200, "status has no part in it")
        http.close()
        with cluster.client() as client:
            assert client.why_not_ready() == ""
