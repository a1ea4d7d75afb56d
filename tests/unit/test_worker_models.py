"""The models of a worker: what a check of stored bytes concerns, however many models there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clockwork.device.base import Kept
from clockwork.formats.package import PackageStore
from clockwork.wire import codec
from clockwork.wire.messages import FROM_WORKER, Announce, NotStored, Prepare, Prepared, Status, StillResident
from clockwork.worker.checks import Checked
from clockwork.worker.models import WorkerModels
from clockwork.worker.opening import WorkerModel
from clockwork.worker.stores import BoundedStore
from tests.patience import PATIENCE_S
from tests.unit.test_worker_stores import prepare

SUMS = {"weights.bin": 1}


class Road:
    """The road's side: which models it was told of."""

    def __init__(self) -> None:
        self.whole: list[int] = []
        self.gone: list[int] = []
        self.ended: list[tuple[int, Status, str]] = []

    def model_ready(
        self,
        model_id: int,
        outputs: Sequence[tuple[int, list[int] | None]],
        verified: bool,
        batches: bool,
        strings_max: int,
        output_bytes_max: int,
    ) -> None:
        pass

    def model_gone(self, model_id: int, absence: str = "") -> None:
        self.gone.append(model_id)

    def model_whole(self, model_id: int) -> None:
        self.whole.append(model_id)

    def store_ended(self, action_id: int, status: int, text: str = "") -> None:
        self.ended.append((action_id, Status(status), text))


class Sums(dict[Path, dict[str, int]]):
    """Checksums that count how often they are asked for a directory."""

    asked = 0

    def __contains__(self, directory: object) -> bool:
        Sums.asked += 1
        return super().__contains__(directory)


@pytest.fixture
def road() -> Road:
    return Road()


@pytest.fixture
def models(tmp_path: Path, road: Road) -> Iterator[WorkerModels]:
    def nothing(*_: Any) -> None:
        pass

    made = WorkerModels([], PackageStore(tmp_path), road, nothing, lambda: None, nothing, nothing)
    yield made
    made.close()


def enter(models: WorkerModels, model_id: int, *directories: Path, bundle: str = "") -> None:
    """Enter a model that was found prepared in these directories. bundle: its digest, if it has one."""
    model = WorkerModel(Prepare(model_id, "m", 1, "ab" * 32, [], {}, 0))
    model.layout = ([1], True, 1, "bound", "cafe")
    model.bundle = (bundle, ("prepared.json", "program.onnx") if bundle else ())
    model.checksums = Sums(dict.fromkeys(directories, SUMS))
    given: Any = SimpleNamespace(declared=lambda: ([], False, False, 0, 0))
    model.given = given
    models._enter(model)


def test_a_check_looks_at_the_models_of_its_directory_alone(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    for model_id in range(300):
        enter(models, model_id, tmp_path / str(model_id))
    Sums.asked = 0
    models._note_checked(Checked(tmp_path / "7", ""))
    models.forget(9)
    assert road.whole == [7]
    assert road.gone == [9]
    assert Sums.asked <= 2, "the other models were looked at"


def test_models_that_share_a_directory_are_whole_together(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    enter(models, 1, shared)
    enter(models, 2, shared, own)
    models.forget(1)
    models._note_checked(Checked(shared, ""))
    assert road.whole == []  # the other directory of model 2 was not checked
    models._note_checked(Checked(own, ""))
    assert road.whole == [2]
    enter(models, 3, shared)
    assert road.whole == [2, 3]  # the check of a directory holds while a model has it
    for model_id in (2, 3):
        models.forget(model_id)
    enter(models, 4, shared)
    assert road.whole == [2, 3]  # nobody had it meanwhile: it may have been written again


def test_a_damaged_directory_is_the_end_of_all_its_models(
    models: WorkerModels, road: Road, tmp_path: Path
) -> None:
    for model_id, name in ((1, "a"), (2, "b"), (3, "a")):
        enter(models, model_id, tmp_path / name)
    models._note_checked(Checked(tmp_path / "a", "weights.bin is damaged"))
    assert road.gone == [1, 3]
    assert set(models.ready) == {2}


# ----- another controller -----------------------------------------------------------------------


class KeepingDevice:
    """A device that keeps what it has for the next session. known: the ids by which it knows models."""

    keeps = True
    fault = ""
    is_untidy = False
    reserves = False
    info: Any = SimpleNamespace(name="cpu", kind="cpu", fingerprint="f", page_bytes=1)

    def __init__(self) -> None:
        self.known: list[int] = []

    def rename(self, model_id: int, other: int) -> None:
        assert other not in self.known
        self.known[self.known.index(model_id)] = other

    def forget(self, model_id: int) -> None:
        self.known.remove(model_id)

    def end_reserve(self) -> None:
        """Nobody waits."""


class Sessions:
    """A worker's models, with the messages that it sends, from one session to the next."""

    def __init__(self, root: Path, road: Road) -> None:
        self.sent: list[Any] = []
        self.device: Any = KeepingDevice()
        self.models = WorkerModels(
            [self.device], PackageStore(root), road, self._send, lambda: None, lambda: None, lambda *_: None
        )  # fmt: skip

    def _send(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        self.sent.append(codec.decode(header, FROM_WORKER))

    def enter(self, model_id: int, name: str, directory: Path) -> None:
        enter(self.models, model_id, directory)
        model = self.models._known[model_id]
        model.message, model.opened = request(model_id, name), [self.device]
        model.reply = codec.encode(Prepared(model_id, Status.OK, "", {"batch_max": 4}))
        self.device.known.append(model_id)


def request(model_id: int, name: str, **more: Any) -> Prepare:
    given = {"digest": "ab" * 32, "options": {"a": 1, "b": 2}, "owner": model_id} | more
    return Prepare(model_id, name, 1, given["digest"], [], given["options"], given["owner"])


@pytest.fixture
def sessions(tmp_path: Path, road: Road) -> Iterator[Sessions]:
    """A worker with the models 1, which is resident and whole, and 2."""
    made = Sessions(tmp_path, road)
    for model_id, name in ((1, "one"), (2, "two")):
        made.enter(model_id, name, tmp_path / name)
    made.models._note_checked(Checked(tmp_path / "one", ""))
    road.whole.clear()
    yield made
    made.models.close()


RESIDENT = {1: [(0, Kept(1, 33, [4, 9]))]}


def test_another_controller_finds_ready_models_under_its_own_numbers(sessions: Sessions, road: Road) -> None:
    sessions.models.reset(RESIDENT)
    assert sorted(road.gone) == [1, 2]
    assert not sessions.models.ready
    sessions.models.prepare(request(2, "one", options={"b": 2, "a": 1}))
    assert sessions.sent == [
        Prepared(2, Status.OK, "", {"batch_max": 4}), StillResident(2, 0, 33, [4, 9]),
    ]  # fmt: skip
    assert road.whole == [2], "its files were checked before"
    sessions.models.prepare(request(1, "two"))
    assert sessions.sent[2:] == [Prepared(1, Status.OK, "", {"batch_max": 4})]
    assert road.whole == [2], "its files were not"
    assert sorted(sessions.device.known) == sorted(sessions.models.ready) == [1, 2]
    sessions.models.prepare(request(1, "one"))
    assert sessions.sent[-1].text == "model id 1 was announced twice"


def test_a_model_that_is_another_by_a_word_is_not_taken_for_it(sessions: Sessions) -> None:
    sessions.models.reset(RESIDENT)
    for message in (
        request(1, "one", options={"a": 1}), request(2, "one", digest="cd" * 32), request(3, "three"),
    ):  # fmt: skip
        sessions.models.prepare(message)
        assert message.model_id not in sessions.models.ready
    assert all(model_id < 0 for model_id in sessions.device.known), "both are still put aside"


def test_models_stay_from_session_to_session_and_residencies_as_long_as_devices_have_them(
    sessions: Sessions,
) -> None:
    sessions.models.reset(RESIDENT)
    aside = dict.fromkeys(sessions.device.known)
    sessions.models.reset({min(aside): [(1, Kept(min(aside), 50, [0]))]})  # the last that was put aside
    sessions.models.prepare(request(7, "one"))
    sessions.models.prepare(request(8, "two"))
    assert [type(message) for message in sessions.sent] == [Prepared, Prepared, StillResident]
    assert sessions.sent[-1] == StillResident(8, 1, 50, [0])


def test_models_that_nobody_asks_for_are_forgotten(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.models.reset(RESIDENT)
    sessions.models.prepare(request(5, "one"))
    sessions.models.beat()
    assert len(sessions.device.known) == 2
    monkeypatch.setattr(sessions.models, "_kept_until_ns", 0)
    sessions.models.beat()
    assert sessions.device.known == [5]


def test_a_bundle_can_be_read_as_long_as_a_model_has_it(models: WorkerModels, tmp_path: Path) -> None:
    digest, place = "ef" * 32, tmp_path / "prepared" / "x"
    paths = [place / "prepared.json", tmp_path / "programs" / "cafe" / "program.onnx"]
    assert models._paths(digest) == []
    for model_id in (1, 2, 3):
        enter(models, model_id, place, bundle=digest)
    for model_id in (1, 3, 2):
        assert models._paths(digest) == paths
        models.forget(model_id)
    assert models._paths(digest) == []


# ----- stores with a bound -------------------------------------------------------------------------


class Device:
    """A device that forgets no model that is resident."""

    fault = ""
    reserves = is_untidy = False
    info = SimpleNamespace(kind="cpu", name="cpu", fingerprint="f", page_bytes=4096, page_count=8)

    def __init__(self) -> None:
        self.resident: set[int] = set()

    def forget(self, model_id: int) -> None:
        if model_id in self.resident:
            raise ValueError(f"model {model_id} is resident")

    def end_reserve(self) -> None:
        pass


class Store:
    """A worker with models in a store with a bound."""

    def __init__(self, root: Path, road: Road, models: Sequence[str]) -> None:
        self.road, self.device = road, Device()
        self.sent: list[Any] = []
        self._woken = threading.Event()
        self.paths = [prepare(root, name, 1000) for name in models]
        self.bounded = BoundedStore(root, 10_000, self._woken.set)
        devices: Any = [self.device]
        self.models = WorkerModels(
            devices,
            PackageStore(root),
            road,
            self._send,
            self._woken.set,
            lambda: None,
            lambda *_: None,
            self.bounded,
        )
        for model_id, path in enumerate(self.paths, 1):
            enter(self.models, model_id, path)
            self.models._known[model_id].opened = list(devices)
            assert self.bounded.claim(path)

    def _send(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        self.sent.append(codec.decode(header, FROM_WORKER))

    def poll_until(self, count: int) -> None:
        """Poll until so many orders have been answered."""
        self.models.poll()
        while len(self.road.ended) < count:
            assert self._woken.wait(PATIENCE_S)
            self._woken.clear()
            self.models.poll()

    def close(self) -> None:
        self.models.close()
        self.bounded.close()


@pytest.fixture
def store(tmp_path: Path, road: Road) -> Iterator[Store]:
    made = Store(tmp_path, road, ["a", "b"])
    yield made
    made.close()


def test_a_dropped_model_is_removed_before_its_drop_is_answered(store: Store, road: Road) -> None:
    store.models.drop(7, 1)
    assert road.gone == [1]
    assert set(store.models.ready) == {2}
    store.poll_until(1)
    assert road.ended == [(7, Status.OK, "")]
    assert not store.paths[0].exists()
    assert store.sent == [NotStored(1, "")]
    assert (store.bounded.used, store.bounded.count) == (1000, 1)
    store.models.drop(8, 1)
    store.models.drop(9, 99)
    assert [(action, status) for action, status, _ in road.ended[1:]] == [
        (8, Status.OK), (9, Status.UNKNOWN_MODEL),
    ]  # fmt: skip


def test_a_model_that_is_resident_is_removed_once_it_is_unloaded(store: Store, road: Road) -> None:
    store.device.resident.add(1)
    store.models.drop(7, 1)
    assert road.ended == [(7, Status.OK, "")]
    assert store.sent == [NotStored(1, "")]
    assert road.gone == []  # its executions go on
    store.models.beat()
    assert store.paths[0].is_dir()
    assert store.bounded.used == 2000
    store.device.resident.clear()
    store.models.beat()
    assert road.gone == [1]
    store.models.drop(8, 1)  # waits for nothing: it is removed already
    while store.bounded.is_removing:
        store.models.poll()
    assert not store.paths[0].exists()
    assert store.bounded.used == 1000


def test_models_of_the_same_files_are_removed_together(tmp_path: Path, store: Store, road: Road) -> None:
    enter(store.models, 3, store.paths[0])
    store.models.drop(7, 1)
    assert road.ended == [(7, Status.OK, "")]
    assert store.paths[0].is_dir()
    store.models.drop(8, 3)
    store.poll_until(2)
    assert not store.paths[0].exists()


def test_a_fetch_waits_for_what_is_being_removed(store: Store, road: Road) -> None:
    store.models.drop(7, 1)
    store.models.fetch(8, 99, 1 << 60)
    assert road.ended == []  # what goes makes the room in which it comes
    store.poll_until(2)
    assert road.ended[0] == (7, Status.OK, "")
    action_id, status, text = road.ended[1]
    assert (action_id, status) == (8, Status.UNKNOWN_MODEL)
    assert "was not announced" in text


def test_a_fetch_of_what_is_there_is_done(store: Store, road: Road) -> None:
    store.models.fetch(8, 1, 1 << 60)
    assert road.ended == [(8, Status.OK, "")]


def test_a_damaged_model_of_a_store_with_a_bound_is_lost_and_not_made_again(store: Store, road: Road) -> None:
    store.models._note_checked(Checked(store.paths[0], "weights.bin is damaged"))
    assert road.gone == [1]
    (told,) = store.sent
    assert (told.model_id, "weights.bin is damaged" in told.text) == (1, True)
    while store.bounded.is_removing:
        store.models.poll()
    assert not store.paths[0].exists()
    assert set(store.models.ready) == {2}


def test_what_nobody_names_is_removed_when_the_announced_have_been_looked_up(
    tmp_path: Path, store: Store
) -> None:
    store.models.reset({})  # another controller
    assert store.bounded.count == 0
    store.models.announce(Announce(1, "m", 1, "cd" * 32, [], {}))
    while any(path.exists() for path in store.paths):
        assert store._woken.wait(PATIENCE_S)
        store._woken.clear()
        store.models.poll()
    assert store.sent == [NotStored(1, "")]
    store.models.announce(Announce(1, "m", 1, "cd" * 32, [], {}))
    assert store.sent[-1].text == "model id 1 was announced twice"


def test_a_worker_without_a_bound_that_is_announced_a_model_says_so(models: WorkerModels) -> None:
    sent: list[bytes] = []
    models._send = lambda header, frames=(): sent.append(header)
    models.announce(Announce(1, "m", 1, "cd" * 32, [], {}))
    assert codec.decode(sent[0], FROM_WORKER) == NotStored(1, "this worker's store has no bound")
