"""The keeper that makes a cluster's models follow repositories, before a cluster that fails requests."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.client.blocking import Client
from clockwork.config.repository import REGISTERING_MAX
from clockwork.errors import ConnectionLost, InvalidInput, InvalidModel, ModelNotFound, Unavailable
from clockwork.repository.keeper import RepositoryKeeper
from clockwork.system.clock import SECOND, now_ns, to_ns
from clockwork.wire.description import ModelInfo
from tests.patience import PATIENCE_S

LOOK_S = 0.01


class FakeClient:
    """A cluster's models, and the failures to inject."""

    def __init__(self) -> None:
        self.served: dict[str, str] = {}  # origin of each name@version
        self.fail_register: Exception | None = None
        self.fail_unregister: Exception | None = None
        self.changed = threading.Condition()
        self.asked = 0
        self.asked_ns: list[int] = []
        self.reports: list[tuple[str, str]] = []  # reported sources with their errors
        self.blocks = False  # registrations, until close()
        self.closed = threading.Event()

    def register(self, name: str, path: Path, *, version: int, origin: str, **more: Any) -> Any:
        with self.changed:
            self.asked += 1
            self.asked_ns.append(now_ns())
            self.changed.notify_all()
        if self.blocks:
            assert self.closed.wait(2 * PATIENCE_S)
            raise ConnectionLost("the client was closed")
        if self.fail_register is not None:
            raise self.fail_register
        if path.read_bytes() == b"bad":
            raise InvalidModel("model.onnx is not an ONNX model")
        with self.changed:
            self.served[f"{name}@{version}"] = origin
            self.changed.notify_all()
        return SimpleNamespace(version=version, digest=f"sha256:{path.read_bytes().hex()}")

    def unregister(self, label: str) -> None:
        with self.changed:
            self.changed.notify_all()
            if self.fail_unregister is not None:
                raise self.fail_unregister
            del self.served[label]

    def report_source(self, source: str, text: str) -> None:
        with self.changed:
            self.reports.append((source, text))
            self.changed.notify_all()

    def models(self) -> list[Any]:
        rows = []
        for label, origin in self.served.items():
            name, _, version = label.partition("@")
            row = {"name": name, "version": int(version), "origin": origin, "state": "ready"}
            rows.append(ModelInfo.from_wire(row))
        return rows

    def model(self, label: str) -> Any:
        raise ModelNotFound(f"{label}: descriptions are not known here")

    def close(self) -> None:
        self.closed.set()

    def wait(self, until: Callable[[], bool]) -> None:
        """Return once the condition holds: checked after each call, and every LOOK_S for notes that the
        keeper makes after a call."""
        until_ns = now_ns() + to_ns(PATIENCE_S)
        with self.changed:
            while not until():
                assert now_ns() < until_ns, "it does not become so"
                self.changed.wait(LOOK_S)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1/model.onnx").write_bytes(b"onnx")
    return tmp_path


def keeper_of(root: Path, client: FakeClient, mode: str = "poll", poll_s: float = 0.02) -> RepositoryKeeper:
    return RepositoryKeeper([root], mode, poll_s, lambda: cast(Client, client))


def take_away(folder: Path) -> None:
    (folder / "1/model.onnx").unlink()
    (folder / "1").rmdir()
    folder.rmdir()


def test_what_cannot_be_unregistered_now_is_so_later_and_holds_up_nothing(root: Path) -> None:
    client = FakeClient()
    keeper = keeper_of(root, client)
    keeper.start()
    client.wait(lambda: set(client.served) == {"a@1", "b@1"})
    client.fail_unregister = InvalidInput("a@1 has a part in the route of a")
    take_away(root / "a")
    (root / "c/1").mkdir(parents=True)
    (root / "c/1/model.onnx").write_bytes(b"onnx")
    client.wait(lambda: "c@1" in client.served)
    assert "a@1" in client.served
    client.fail_unregister = None
    client.wait(lambda: "a@1" not in client.served)
    keeper.close()


def test_a_folder_that_cannot_be_read_is_reported_until_it_can(root: Path) -> None:
    client = FakeClient()
    keeper = keeper_of(root, client)
    keeper.start()
    client.wait(lambda: set(client.served) == {"a@1", "b@1"})
    assert client.reports == []
    away = root.with_name(f"{root.name}-away")
    root.rename(away)
    client.wait(lambda: len(client.reports) > 1)  # the source is reported again at each look
    away.rename(root)
    client.wait(lambda: client.reports[-1] == (str(root), ""))
    keeper.close()
    assert {source for source, _ in client.reports} == {str(root)}
    assert all(str(root) in text for _, text in client.reports[:-1])
    assert set(client.served) == {"a@1", "b@1"}


def test_the_start_is_over_when_the_cluster_has_said_something_of_every_model(root: Path) -> None:
    client = FakeClient()
    client.fail_register = ConnectionLost("there is no controller yet")
    keeper = keeper_of(root, client)
    assert keeper.why_not_ready() == "2 models of the repository are not served yet, among them a@1"
    keeper.start()
    client.wait(lambda: client.asked >= 4)  # waits for more than one look
    assert keeper.why_not_ready() == "2 models of the repository are not served yet, among them a@1"
    take_away(root / "a")
    client.wait(lambda: keeper.why_not_ready() == "b@1 of the model repository is not served yet")
    client.fail_register = InvalidInput("b is no model")
    client.wait(lambda: not keeper.why_not_ready())
    client.fail_register = None
    (root / "c/1").mkdir(parents=True)
    (root / "c/1/model.onnx").write_bytes(b"onnx")
    client.wait(lambda: "c@1" in client.served)
    assert keeper.why_not_ready() == ""
    keeper.close()


@pytest.mark.parametrize(
    ("first", "awaited", "begins"), [((), 0, ""), (("b", "none such"), 1, "b@1"), (("*",), 2, "2")]
)
def test_in_explicit_mode_the_start_is_what_is_loaded_first(
    root: Path, first: tuple[str, ...], awaited: int, begins: str
) -> None:
    client = FakeClient()
    keeper = RepositoryKeeper([root], "explicit", 0.02, lambda: cast(Client, client), first)
    assert keeper.why_not_ready().partition(" ")[0] == begins
    keeper.start()
    keeper._thread.join(PATIENCE_S)
    assert keeper.why_not_ready() == ""
    assert len(client.served) == awaited
    keeper.close()


def test_what_an_earlier_run_registered_stays_while_it_cannot_be_registered_again(root: Path) -> None:
    client = FakeClient()
    keeper = keeper_of(root, client, mode="none")
    keeper.start()
    client.wait(lambda: set(client.served) == {"a@1", "b@1"})
    keeper.close()
    take_away(root / "b")
    client.fail_register = Unavailable("128 uploads are under way")
    again = keeper_of(root, client, poll_s=3600)
    again.start()
    client.wait(lambda: "b@1" not in client.served)  # it looked, and knows which models are gone
    again.close()
    assert set(client.served) == {"a@1"}
    assert [row["reason"] for row in again.missing()] == ["128 uploads are under way"]


def test_a_version_of_an_earlier_run_serves_until_a_good_one_takes_its_place(root: Path) -> None:
    client = FakeClient()
    keeper = keeper_of(root, client, mode="none")
    keeper.start()
    keeper._thread.join(PATIENCE_S)
    keeper.close()
    (root / "a/2").mkdir()
    (root / "a/2/model.onnx").write_bytes(b"bad")
    take_away(root / "b")
    again = keeper_of(root, client)
    again.start()
    client.wait(lambda: "b@1" not in client.served and client.asked == 3)
    (root / "c/1").mkdir(parents=True)
    (root / "c/1/model.onnx").write_bytes(b"onnx")
    client.wait(lambda: "c@1" in client.served)  # waits for some further looks
    assert set(client.served) == {"a@1", "c@1"}
    assert client.asked == 4, "what is broken is tried once"
    (root / "a/2/model.onnx").write_bytes(b"good")
    client.wait(lambda: set(client.served) == {"a@2", "c@1"})
    again.close()


def test_what_the_cluster_cannot_take_now_is_tried_again_after_pauses_that_double(root: Path) -> None:
    """Each try may cost an upload and a preparation."""
    take_away(root / "b")
    client = FakeClient()
    client.fail_register = Unavailable("no worker could prepare a@1 now")
    keeper = keeper_of(root, client, poll_s=0.05)
    keeper.start()
    client.wait(lambda: client.asked >= 5)
    keeper.close()
    gaps = [later - sooner for sooner, later in itertools.pairwise(client.asked_ns[:5])]
    for times, gap_ns in enumerate(gaps):
        assert gap_ns >= 0.05 * 2**times * SECOND, gaps


def test_a_mistake_of_ours_is_said_of_its_model_and_ends_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient()
    client.fail_register = KeyError(0)
    keeper = keeper_of(root, client, mode="none")
    keeper.start()
    keeper._thread.join(PATIENCE_S)
    assert [row["reason"] for row in keeper.missing()] == ["KeyError: 0"] * 2
    keeper.close()


def test_it_ends_while_some_are_being_registered_and_others_wait_for_that(root: Path) -> None:
    for index in range(2 * REGISTERING_MAX):
        (root / f"more{index}/1").mkdir(parents=True)
        (root / f"more{index}/1/model.onnx").write_bytes(b"onnx")
    client = FakeClient()
    client.blocks = True
    keeper = keeper_of(root, client)
    keeper.start()
    client.wait(lambda: client.asked == REGISTERING_MAX)
    closer = threading.Thread(target=keeper.close, daemon=True)
    closer.start()
    closer.join(PATIENCE_S)
    assert not closer.is_alive()
    assert client.asked == REGISTERING_MAX


def test_one_that_never_started_is_closed(root: Path) -> None:
    client = FakeClient()
    keeper_of(root, client).close()
    assert client.closed.is_set()
    assert client.asked == 0
