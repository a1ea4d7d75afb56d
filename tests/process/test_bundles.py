"""A worker takes models as another worker of its kind has prepared them, and prepares what it cannot take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clockwork import Client
from clockwork.config import VERSION
from clockwork.device.cpu import fingerprint
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.models import zoo
from clockwork.wire import messages
from clockwork.wire.messages import Status
from tests.patience import eventually
from tests.process.cluster import Reference, running_cluster, same
from tests.process.peers import HasWorkers, echo_model, prepared_model
from tests.process.threaded_worker import ThreadedWorker

PAGE_BYTES = 256 << 10
ROWS = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
X = np.arange(2, dtype=np.float32).reshape(1, 2)


def stats_of(client: Client, name: str) -> dict[str, Any]:
    found = [worker for worker in client.status()["workers"] if worker["name"] == name]
    return dict(found[0]["stats"]) if found else {}


def ready_on(client: Client, name: str) -> int:
    """The number of models that a worker has ready."""
    found = [worker for worker in client.status()["workers"] if worker["name"] == name]
    return int(found[0]["models"]["ready"]) if found else 0


def contents(store: Path) -> dict[str, bytes]:
    paths = [path for path in store.glob("prepared/[!.]*/*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in paths}


def leftovers(store: Path) -> list[str]:
    """Directories in which bundles arrived. A preparation that gave way to others leaves its own, too."""
    return [path.name for path in (store / "prepared").glob(".incoming-*")]


def test_a_second_worker_takes_what_the_first_has_prepared(tmp_path: Path) -> None:
    base = zoo.build("mlp")
    models = {f"model-{index}": zoo.fine_tune(base, index) for index in range(3)}
    expected = {name: Reference(model)(ROWS) for name, model in models.items()}
    stores = [tmp_path / "data" / name for name in ("a", "b")]
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        first = cluster.start_worker(name="a", store="a")
        for name, model in models.items():
            client.register(name, model)
        cluster.start_worker(name="b", store="b")
        eventually(lambda: ready_on(client, "b") == len(models), "the second worker has all models")
        eventually(lambda: stats_of(client, "b").get("models_taken") == len(models), "and has prepared none")
        assert contents(stores[1]) == contents(stores[0])
        assert not list((stores[1] / "packages").iterdir())
        first.stop()
        for name, rows in expected.items():
            assert same(client.infer(name, ROWS), rows)
        assert client.status()["troubles"]["open"] == []
    assert leftovers(stores[1]) == []


# ----- lying peers -------------------------------------------------------------------------------

CONTENTS = {"prepared.json": b"about", "program.onnx": bytes(range(256)) * 5000}
Lie = Callable[[messages.Fetch, bytes], tuple[Status, bytes]]


def bundle(name: str) -> list[PackageFile]:
    """The files that the liar says a model has."""
    given = {path: content + name.encode() for path, content in CONTENTS.items()}
    return [
        PackageFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in given.items()
    ]


class LyingPeer(ThreadedWorker):
    """Says that it has prepared each model, and lies about its bytes as the model's name says."""

    def __init__(self, controller: HasWorkers, lies: dict[str, Lie]) -> None:
        self.lies = lies
        self.has_died = False
        self.names: dict[str, str] = {}  # by digest of a bundle
        super().__init__(controller, 1)

    def hello(self) -> None:
        device = {
            "kind": "cpu", "name": "fake", "fingerprint": fingerprint(1), "page_bytes": PAGE_BYTES,
            "page_count": 256, "run_ahead": 2,
        }  # fmt: skip
        self.send(messages.WorkerHello(messages.PROTOCOL_VERSION, VERSION, "liar", self.epoch, [device]))
        self.receive(messages.WorkerWelcome)

    def _prepare(self, message: Any) -> None:
        files = bundle(message.name)
        self.names[digest_of(files)] = message.name
        summary = prepared_model(
            digest=message.digest, fingerprint=fingerprint(1), page_bytes=PAGE_BYTES
        ).summary()
        told = messages.Prepared(message.model_id, Status.OK, "", summary | {"bundle": rows_of(files)})
        self.send(told)

    def obey(self, message: Any, frames: list[bytes]) -> None:
        if not isinstance(message, messages.Fetch):
            super().obey(message, frames)
            return
        name = self.names[message.digest]
        if name == "dies":
            self.has_died = True
            self._stop.set()
            self._transport.close()
            return
        path = [*CONTENTS][message.file]
        content = CONTENTS[path] + name.encode()
        piece = content[message.offset : message.offset + message.length]
        status, piece = self.lies[name](message, piece)
        self.send(messages.Chunk(message.digest, message.file, message.offset, status), piece)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if not self.has_died:
            self._transport.close()


LIES: dict[str, Lie] = {
    "other-bytes": lambda fetch, piece: (Status.OK, bytes(len(piece))),
    "one-bit": lambda fetch, piece: (Status.OK, bytes([piece[0] ^ 1]) + piece[1:]),
    "cut": lambda fetch, piece: (Status.OK, piece[:-1]),
    "too-long": lambda fetch, piece: (Status.OK, piece + b"more"),
    "lost": lambda fetch, piece: (Status.INTERNAL, b""),
    "lost-in-the-middle": lambda fetch, piece: (Status.INTERNAL if fetch.offset else Status.OK, piece),
    "right-bytes-that-are-no-model": lambda fetch, piece: (Status.OK, piece),
}


def test_a_peer_that_serves_other_bytes_is_found_out_and_the_model_prepared(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        liar = LyingPeer(cluster, LIES)
        try:
            for name in LIES:
                client.register(name, echo_model(note=name))
            honest = cluster.start_worker(name="b", store="b")
            eventually(lambda: ready_on(client, "b") == len(LIES), "the honest worker prepares them")
            subjects = {trouble["subject"] for trouble in client.status()["troubles"]["open"]}
        finally:
            liar.close()
        assert subjects == {f"{name}@1 as prepared by worker liar" for name in LIES}
        for name in LIES:
            honest.wait_for(f"{name}@1 is prepared here: as worker liar has prepared it: ")
            assert np.array_equal(client.infer(name, X), X)
        assert stats_of(client, "b")["models_taken"] == 0
    assert leftovers(tmp_path / "data" / "b") == []


@pytest.mark.slow
def test_a_peer_that_dies_while_it_gives_a_model_holds_up_nothing(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", workers=0) as cluster, cluster.client() as client:
        liar = LyingPeer(cluster, LIES)
        try:
            client.register("dies", echo_model())
            cluster.start_worker(name="b", store="b")
            eventually(lambda: ready_on(client, "b") == 1, "the other worker prepares the model")
            assert liar.has_died
        finally:
            liar.close()
        assert np.array_equal(client.infer("dies", X), X)
