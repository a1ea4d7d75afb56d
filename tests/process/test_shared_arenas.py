"""A worker whose devices cannot share the arena that they name is told why, and is not admitted."""

from __future__ import annotations

from pathlib import Path

from clockwork.wire import messages
from tests.process.peers import Peer, serving

OWN = {"kind": "cpu", "name": "x", "fingerprint": "f", "page_bytes": 4096, "page_count": 8, "run_ahead": 2}


def hello(*devices: dict[str, object]) -> messages.WorkerHello:
    return messages.WorkerHello(messages.PROTOCOL_VERSION, "test", "w", 7, list(devices))


def test_a_worker_is_told_why_its_devices_cannot_share_an_arena(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        before = len(served.status()["workers"])
        with Peer(served.controller.worker_endpoint, messages.TO_WORKER) as worker:
            worker.send(hello(OWN, OWN | {"arena": 0, "page_count": 9}))
            refused, _ = worker.receive(messages.Mismatch)
            assert refused.text == (
                "device 1 executes from the arena of device 0, but its page_count is 9, not 8"
            )
            assert len(served.status()["workers"]) == before
            worker.send(hello(OWN, OWN | {"arena": 0}))
            worker.receive(messages.WorkerWelcome)
            assert len(served.status()["workers"]) == before + 1
