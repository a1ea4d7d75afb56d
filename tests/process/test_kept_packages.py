"""A controller whose packages are in an object store; a folder takes its place, so no library is needed.

tests/process/test_packages.py has whole clusters beside an S3.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.catalog import objects
from clockwork.controller.process import Controller
from clockwork.errors import ConfigError
from clockwork.sources import objects as sources
from clockwork.sources.location import Location
from clockwork.sources.reading import SourceFailed
from clockwork.wire import messages
from tests.folder_store import URL, FolderStore
from tests.patience import PATIENCE_S, eventually
from tests.process.peers import FakeWorker, RawClient, controller_settings, running_controller


class Site:
    """A controller, a worker and a client. ``store`` outlives the controller."""

    def __init__(self, root: Path, store: FolderStore) -> None:
        self.root = root
        self.store = store
        self._number = 0
        self._epoch = 0
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        self._epoch += 1
        self.controller = self._stack.enter_context(running_controller(self.root, packages=URL))
        self.worker = self._stack.enter_context(FakeWorker(self.controller, epoch=self._epoch))
        self.client = self._stack.enter_context(RawClient(self.controller))

    def stop(self) -> None:
        self._stack.close()

    def ask(self, message: Any) -> Any:
        self._number += 1
        self.client.send(message(self._number))
        while True:
            answer, _ = self.client.receive()
            if type(answer) in (messages.Reply, messages.Failure) and answer.request_id == self._number:
                return answer

    def register(self, name: str, content: bytes, *, is_prepared: bool = True) -> Any:
        self._number += 1
        if not is_prepared:
            return self.client.register(name, content, self._number)
        with self.worker.preparing():
            return self.client.register(name, content, self._number)

    def unregister(self, name: str) -> Any:
        return self.ask(lambda number: messages.Unregister(number, name))

    def stored(self) -> set[str]:
        """The packages with a list."""
        return {path.parent.name for path in self.store.root.glob("packages/*/package.json")}

    def troubles(self) -> set[str]:
        body = self.ask(lambda number: messages.Query(number, "status", "")).body
        return {trouble["kind"] for trouble in body["troubles"]["open"]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    found = FolderStore(tmp_path / "bucket")
    monkeypatch.setattr(sources, "require_library", lambda location: None)
    monkeypatch.setattr(objects, "ObjectStore", lambda location: found)
    monkeypatch.setattr(objects, "STORE_RETRY_S", 0.0)
    return found


@pytest.fixture
def site(tmp_path: Path, store: FolderStore) -> Iterator[Site]:
    site = Site(tmp_path / "data", store)
    yield site
    site.stop()


def away(what: str, path: str) -> None:
    raise SourceFailed(f"{URL}/{path} cannot be reached: no route to host")


def test_a_model_is_answered_once_stored_and_its_package_goes_with_it(site: Site) -> None:
    assert type(site.register("m", b"model")) is messages.Reply
    assert len(site.stored()) == 1
    assert type(site.register("twin", b"model")) is messages.Reply
    assert len(site.stored()) == 1
    assert type(site.unregister("m")) is messages.Reply
    assert type(site.register("n", b"another")) is messages.Reply
    assert len(site.stored()) == 2
    site.unregister("twin")
    eventually(lambda: len(site.stored()) == 1, "the package of no model goes")


def test_a_worker_gets_the_bytes_of_the_store_after_a_restart(site: Site) -> None:
    site.register("m", b"model")
    (digest,) = site.stored()
    site.stop()
    for path in (site.root / "cache" / "packages" / digest).iterdir():
        path.unlink()
    (site.root / "cache" / "packages" / digest).rmdir()
    site.start()
    prepare, _ = site.worker.receive(messages.Prepare)
    assert prepare.digest == digest
    site.worker.send(messages.Fetch(digest, 0, 1, 3))
    chunk, frames = site.worker.receive(messages.Chunk)
    assert (chunk.status, frames) == (messages.Status.OK, [b"ode"])


def test_what_a_crash_left_is_removed_at_the_next_start_and_nothing_of_others(site: Site) -> None:
    site.register("m", b"model")
    (digest,) = site.stored()
    site.stop()
    for name in ("f" * 64, "0" * 64, "readme", "F" * 64):
        place = site.store.root / "packages" / name
        place.mkdir()
        (place / "model.onnx").write_bytes(b"?")
    (site.store.root / "packages" / ("f" * 64) / "package.json").write_bytes(b"[]")
    site.start()
    left = site.store.root / "packages"
    eventually(lambda: not (left / ("f" * 64)).exists() and not (left / ("0" * 64)).exists(), "strays go")
    assert {path.name for path in left.iterdir()} == {digest, "readme", "F" * 64}


def test_while_the_store_is_away_registrations_fail_and_all_else_goes_on(site: Site) -> None:
    site.register("m", b"model")
    site.register("gone", b"another")
    site.store.fault = away
    failure = site.register("new", b"third", is_prepared=False)
    assert type(failure) is messages.Failure
    assert failure.text.startswith(f"the controller cannot store the model: {URL}/")
    assert "no route to host" in failure.text
    eventually(lambda: "packages_unreachable" in site.troubles(), "the trouble is told")
    assert type(site.unregister("gone")) is messages.Reply
    site.store.fault = lambda what, path: None
    eventually(lambda: "packages_unreachable" not in site.troubles(), "the trouble is over")
    eventually(lambda: len(site.stored()) == 1, "the removal is made up for")
    assert type(site.register("new", b"third")) is messages.Reply


def test_a_store_that_stands_still_holds_up_neither_other_models_nor_routes(site: Site) -> None:
    site.register("gone", b"another")
    holding, go_on = threading.Event(), threading.Event()

    def hold(what: str, path: str) -> None:
        if what == "keep" and path.endswith("model.onnx") and not holding.is_set():
            holding.set()
            assert go_on.wait(PATIENCE_S)

    site.store.fault = hold
    with RawClient(site.controller) as other:
        thread = threading.Thread(target=lambda: other.register("slow", b"slow", 1))
        thread.start()
        assert holding.wait(PATIENCE_S)
        assert type(site.register("quick", b"quick")) is messages.Reply
        assert type(site.unregister("gone")) is messages.Reply
        assert thread.is_alive()
        with site.worker.preparing():
            go_on.set()
            thread.join()


def test_a_place_that_cannot_be_is_an_error_before_anything_is_opened(
    tmp_path: Path, store: FolderStore
) -> None:
    for place in ("s3://key:secret@bucket", "https://server/x", "s3://bucket/../x"):
        with pytest.raises(ConfigError):
            Controller(controller_settings(tmp_path / "data", packages=place))
    assert not (tmp_path / "data").exists()
    assert store.location == Location(URL, "s3")
