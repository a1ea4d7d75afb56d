"""A reply follows the disk, whatever fails there, and whenever the controller dies.

For every order that changes the registry, every system call of its storage fails once, alone and with all
that follow; and before each of them the process is killed, and the machine crashes. An acknowledged change
holds after a restart, a refused one does not, and no change holds in part.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clockwork.config import SHARE_WHOLE
from clockwork.config.controller import CHANGES_WAITING_MAX
from clockwork.controller.catalog.recovery import BACKUP, newest_of
from clockwork.controller.process import Controller
from clockwork.controller.registration import registrar
from clockwork.controller.troubles import TroubleKind
from clockwork.system.clock import MS, SECOND, now_ns
from clockwork.wire import codec, messages
from clockwork.wire.messages import Status
from tests.catalogues import open_catalog, sql
from tests.disks import small_disk
from tests.patience import PATIENCE_NS, eventually
from tests.process.faulty_disk import Disk, Synced
from tests.process.peers import FakeWorker, RawClient, prepared_model, running_controller

ERRORS = ((errno.ENOSPC, False), (errno.EIO, False), (errno.EROFS, False), (errno.EROFS, True))
"""The error of a failing call, and whether all later calls fail, too."""

HALF = SHARE_WHOLE // 2
BAD = b"what no worker can prepare"

State = tuple[Any, ...]


class Stage:
    """A controller, a worker that prepares on request, and a client; all but the controller on this
    thread."""

    def __init__(self, stack: ExitStack, data: Path) -> None:
        self.data = data
        self.controller: Controller = stack.enter_context(running_controller(data))
        self.worker = stack.enter_context(FakeWorker(self.controller, pages=16))
        self.client = stack.enter_context(RawClient(self.controller))
        self._number = 0
        self.wait_for_all()

    def ask(self, message: Callable[[int], Any], content: bytes = b"") -> Any:
        """Return the Reply or Failure to an order, while the worker does its work. content: of an upload."""
        self._number += 1
        number = self._number
        self.client.send(message(number))
        deadline = now_ns() + PATIENCE_NS
        while True:
            self.serve()
            frames = self.client.dealer.receive()
            if frames is None:
                assert now_ns() < deadline, "no answer came"
                self.client.wait(MS)
                continue
            answer = codec.decode(frames[0], messages.TO_CLIENT)
            if type(answer) is messages.UploadNeed:
                self.client.send(messages.UploadChunk(number, 0, 0), content)
            elif type(answer) in (messages.Reply, messages.Failure) and answer.request_id == number:
                return answer

    def serve(self) -> None:
        while (frames := self.worker.dealer.receive()) is not None:
            message = codec.decode(frames[0], messages.TO_WORKER)
            if type(message) is messages.Ping:
                self.worker.pong(message)
            elif type(message) is messages.Prepare:
                size = message.files[0][1]
                if size == len(BAD):
                    self.worker.send(messages.Prepared(message.model_id, Status.INVALID_MODEL, "bad", {}))
                else:
                    summary = prepared_model(digest=message.digest).summary()
                    self.worker.send(messages.Prepared(message.model_id, Status.OK, "", summary))

    def register(self, name: str, content: bytes, **options: Any) -> Any:
        row = ["model.onnx", len(content), hashlib.sha256(content).hexdigest()]
        return self.ask(lambda number: messages.Register(number, name, [row], options), content)

    def models(self) -> list[dict[str, Any]]:
        body = self.ask(lambda number: messages.Query(number, "models", "")).body["models"]
        return sorted(body, key=lambda one: (one["name"], one["version"]))

    def wait_for_all(self) -> None:
        deadline = now_ns() + PATIENCE_NS
        while any(model["state"] not in ("ready", "unloaded") for model in self.models()):
            assert now_ns() < deadline
            self.client.wait(MS)

    def state(self) -> State:
        """Return the registry's state as the controller reports it."""
        models, routes = [], {}
        for model in self.models():
            assert model["state"] in ("ready", "unloaded"), model
            models.append((model["name"], model["version"], model["state"] == "ready", model["slo_ns"]))
            if model["state"] == "ready":
                reply = self.ask(lambda number, name=model["name"]: messages.Query(number, "model", name))
                route = reply.body["route"]
                if not route["automatic"] or route["earlier"]:
                    routes[model["name"]] = (
                        not route["automatic"] and route["shares"],
                        len(route["earlier"]),
                    )
        return tuple(models), routes

    def troubles(self) -> list[tuple[str, str]]:
        body = self.ask(lambda number: messages.Query(number, "status", "")).body
        return [(one["kind"], one["subject"]) for one in body["troubles"]["open"]]


def state_of(data: Path, place: Path, *, is_torn: bool = False) -> State:
    """Return the state that a controller finds that starts on a copy of this directory.

    is_torn: the end of the log may have been left in a state that looks like damage.
    """
    with open_catalog(copied(data, place / "copy")) as catalog:
        records, complaints = catalog.records()
        routes, more = catalog.routes()
        assert [one for one in complaints + more if not (is_torn and one.mended)] == []
        for record in records:
            for file in record.files:
                with catalog.store.held(record.digest) as package:
                    content = (package / file.path).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
        names = {record.name for record in records if record.offered}
        return (
            tuple((one.name, one.version, one.offered, one.options["slo_ns"]) for one in records),
            {
                one.name: (
                    one.split is not None and [list(share) for share in one.split.shares],
                    len(one.earlier),
                )
                for one in routes
                if one.name in names
            },
        )


def copied(data: Path, target: Path) -> Path:
    """Copy a directory, also while packages are removed from it or its backup is written."""

    def is_copied() -> bool:
        shutil.rmtree(target, ignore_errors=True)
        try:
            shutil.copytree(data, target, ignore=shutil.ignore_patterns(".dropped-*", ".catalog.backup*"))
        except shutil.Error as error:
            gone = [Path(source) for source, _, _ in error.args[0]]
            if any("packages" not in path.relative_to(data).parts or path.exists() for path in gone):
                raise
            return False
        return True

    eventually(is_copied, "it is copied whole")
    return target


def packages_of(data: Path) -> int:
    return sum(not path.name.startswith(".") for path in (data / "packages").iterdir())


def fill(stage: Stage) -> None:
    """a: two versions, a split and a history; b: one; c: one, unloaded; d: two; e: two, unloaded."""
    for content in (b"a1", b"a2", b"b1", b"c1", b"d1", b"d2", b"e1", b"e2"):
        assert type(stage.register(content[:1].decode(), content)) is messages.Reply
    for order in (
        lambda number: messages.Promote(number, "a", 1),
        lambda number: messages.Route(number, "a", [[2, 1000]], []),
        lambda number: messages.Offer(number, "c", False),
        lambda number: messages.Offer(number, "e", False),
    ):
        assert type(stage.ask(order)) is messages.Reply


class Order(NamedTuple):
    """An order of a client; packages: how many more there are afterwards."""

    act: Callable[[Stage], Any]
    packages: int = 0


ORDERS = {
    "register a name": Order(lambda stage: stage.register("new", b"n1"), 1),
    "register a version": Order(lambda stage: stage.register("b", b"b2"), 1),
    "register content that is there": Order(lambda stage: stage.register("new", b"b1")),
    "change an SLO": Order(lambda stage: stage.register("b", b"b1", slo_ns=SECOND)),
    "register what is unloaded": Order(lambda stage: stage.register("c", b"c1", slo_ns=SECOND)),
    "unregister a name": Order(lambda stage: stage.ask(lambda n: messages.Unregister(n, "b")), -1),
    "unregister versions and a route": Order(
        lambda stage: stage.ask(lambda n: messages.Unregister(n, "a")), -2
    ),
    "unregister a version": Order(lambda stage: stage.ask(lambda n: messages.Unregister(n, "d@1")), -1),
    "unregister what is unloaded": Order(lambda stage: stage.ask(lambda n: messages.Unregister(n, "c")), -1),
    "unregister versions that are unloaded": Order(
        lambda stage: stage.ask(lambda n: messages.Unregister(n, "e")), -2
    ),
    "unload a name": Order(lambda stage: stage.ask(lambda n: messages.Offer(n, "b", False))),
    "unload versions": Order(lambda stage: stage.ask(lambda n: messages.Offer(n, "d", False))),
    "unload a version": Order(lambda stage: stage.ask(lambda n: messages.Offer(n, "d@2", False))),
    "load": Order(lambda stage: stage.ask(lambda n: messages.Offer(n, "c", True))),
    "route": Order(lambda stage: stage.ask(lambda n: messages.Route(n, "a", [[2, HALF]], []))),
    "promote": Order(lambda stage: stage.ask(lambda n: messages.Promote(n, "b", 1))),
    "promote the newest": Order(lambda stage: stage.ask(lambda n: messages.Promote(n, "a", 0))),
    "roll back": Order(lambda stage: stage.ask(lambda n: messages.Rollback(n, "a"))),
}


@pytest.fixture(scope="module")
def memory() -> Path | None:
    """Return a place where syncs are immediate, if this machine has one: thousands happen here."""
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) else None


@pytest.fixture(scope="module")
def filled(memory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as place:
        data = Path(place) / "data"
        with ExitStack() as stack:
            fill(Stage(stack, data))
        yield data


@pytest.fixture
def tmp_path(memory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


@pytest.fixture
def stages(filled: Path, tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    """Each call returns a stage on a fresh copy of the filled directory, and closes the stage before."""
    with ExitStack() as outer:
        current = outer.enter_context(ExitStack())
        count = 0

        def begin() -> Stage:
            nonlocal count
            current.close()
            count += 1
            data = tmp_path / f"data{count}"
            shutil.copytree(filled, data)
            return Stage(current, data)

        yield begin


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_refused_does_not_hold_and_what_is_acknowledged_does(
    name: str, stages: Callable[[], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ORDERS[name]
    disk = Disk(monkeypatch)
    stage = stages()
    before, count = stage.state(), packages_of(stage.data)
    assert before == state_of(stage.data, tmp_path)
    disk.fail(-1, 0)
    assert type(order.act(stage)) is messages.Reply
    calls = list(disk.calls)
    after = stage.state()
    assert after == state_of(stage.data, tmp_path) != before
    eventually(
        lambda: packages_of(stage.data) == count + order.packages, "unused packages go after the backup"
    )
    assert {"pwrite", "fsync"} <= set(calls)

    refused = 0
    stage = stages()
    for index in range(len(calls)):
        for code, for_ever in ERRORS:
            disk.fail(index, code, for_ever)
            answer = order.act(stage)
            disk.heal()
            where = f"{os.strerror(code)} at call {index} ({calls[index]}){' and after' if for_ever else ''}"
            if type(answer) is messages.Failure:
                refused += 1
                texts = {os.strerror(code), os.strerror(errno.EIO)}  # SQLite knows few kinds of errors
                assert any(text in answer.text for text in texts), where
                assert stage.state() == before, where
                found = state_of(stage.data, tmp_path, is_torn=for_ever)
                unsure = "may find it changed" in answer.text
                assert found == before or (unsure and found == after), where
                assert not unsure or for_ever, where
                assert packages_of(stage.data) <= count + max(0, order.packages), where
            else:
                assert stage.state() == after, where
                assert state_of(stage.data, tmp_path) == after, where
                stage = stages()
    assert refused
    assert type(order.act(stage)) is messages.Reply
    assert stage.state() == state_of(stage.data, tmp_path) == after
    assert not [one for one in stage.troubles() if one[0] == TroubleKind.STORAGE_FAILED]


@pytest.mark.parametrize("name", ORDERS)
def test_a_crash_between_any_two_calls_leaves_all_of_an_order_or_nothing(
    name: str, stages: Callable[[], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    stage = stages()
    before = stage.state()
    left: list[Path] = []
    synced = Synced(stage.data)

    def crash(call: str, args: tuple[Any, ...]) -> None:
        synced.before(call, args)
        left.append(copied(stage.data, tmp_path / "killed" / str(len(left))))
        left.append(synced.materialise(tmp_path / "lost" / str(len(left))))

    disk.watch(crash, synced.after)
    answer = ORDERS[name].act(stage)
    acknowledged = len(left)
    disk.watch(None)
    assert type(answer) is messages.Reply
    after = stage.state()
    left.append(synced.materialise(tmp_path / "lost" / "at last"))
    synced.close()
    found = [state_of(path, tmp_path) for path in left]
    assert [one for one in found if one not in (before, after)] == []
    assert set(map(str, found[acknowledged:])) == {str(after)}  # later records of the model change nothing
    assert found[0] == before
    for kind in (0, 1):  # the process is killed, and the machine: a change that once holds continues to hold
        holds = [one == after for one in found[kind:acknowledged:2]]
        assert holds == sorted(holds)


class Inline(concurrent.futures.ThreadPoolExecutor):
    """An executor that does everything on the caller's thread, where a Disk sees it."""

    def map(self, function: Any, *columns: Any, **_: Any) -> Iterator[Any]:
        return map(function, *columns)


def test_registrations_that_share_syncs_each_hold_once_they_are_acknowledged(
    stages: Callable[[], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Inline)
    disk = Disk(monkeypatch)
    stage = stages()
    before = {model["name"] for model in stage.models()}
    left: list[Path] = []
    synced = Synced(stage.data)

    def crash(call: str, args: tuple[Any, ...]) -> None:
        synced.before(call, args)
        if call in ("fsync", "replace", "rename"):
            left.append(copied(stage.data, tmp_path / "killed" / str(len(left))))
            left.append(synced.materialise(tmp_path / "lost" / str(len(left))))

    disk.watch(crash, synced.after)
    contents = {400 + index: f"new{index}".encode() for index in range(6)}
    for number, content in contents.items():
        row = ["model.onnx", len(content), hashlib.sha256(content).hexdigest()]
        stage.client.send(messages.Register(number, content.decode(), [row], {}))
    acknowledged: dict[str, int] = {}
    deadline = now_ns() + PATIENCE_NS
    while len(acknowledged) < len(contents):
        assert now_ns() < deadline, acknowledged
        stage.serve()
        frames = stage.client.dealer.receive()
        if frames is None:
            stage.client.wait(MS)
            continue
        answer = codec.decode(frames[0], messages.TO_CLIENT)
        if type(answer) is messages.UploadNeed:
            chunk = messages.UploadChunk(answer.request_id, 0, 0)
            stage.client.send(chunk, contents[answer.request_id])
        elif type(answer) is not messages.UploadAck and type(answer) is not messages.Progress:
            assert type(answer) is messages.Reply, answer
            acknowledged[contents[answer.request_id].decode()] = len(left)
    disk.watch(None)
    left.append(synced.materialise(tmp_path / "lost" / "at last"))
    synced.close()
    for index, path in enumerate(left):
        found = {name for name, *_ in state_of(path, tmp_path)[0]}
        assert before <= found
        assert {name for name, since in acknowledged.items() if since <= index} <= found - before
    assert disk.calls.count("fsync") > 2 * len(contents)


def test_a_version_that_was_refused_and_cannot_be_erased_is_erased_when_it_can(
    stages: Callable[[], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "ERASE_RETRY_NS", 0)
    disk = Disk(monkeypatch)
    stage = stages()
    before = stage.state()
    disk.fail(-1, 0)
    assert stage.register("new", BAD).status == Status.INVALID_MODEL
    *_, before_last, last = (index for index, call in enumerate(disk.calls) if call == "fsync")
    erasing = disk.calls.index("pwrite", before_last)
    assert erasing < last
    assert state_of(stage.data, tmp_path) == before
    disk.fail(erasing, errno.EIO, for_ever=True)
    assert stage.register("new", BAD).status == Status.INVALID_MODEL
    assert [(one["name"], one["state"]) for one in stage.models() if one["name"] == "new"] == [
        ("new", "failed")
    ]
    assert (TroubleKind.STORAGE_FAILED, "data directory") in stage.troubles()
    disk.heal()
    deadline = now_ns() + PATIENCE_NS
    while any(one["name"] == "new" for one in stage.models()):
        assert now_ns() < deadline
        stage.client.wait(10 * MS)
    assert stage.state() == state_of(stage.data, tmp_path) == before
    assert not stage.troubles()


def test_orders_of_one_name_wait_for_each_other_and_those_of_a_client_that_left_are_dropped(
    stages: Callable[[], Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten unregistrations and loads sent together: each finds the state that the one before has left."""
    stage = stages()
    for number in range(100, 110):
        stage.client.send(messages.Offer(number, "b", number % 2 == 1))
    stage.client.send(messages.Unregister(110, "b"))
    stage.client.send(messages.Unregister(111, "b"))
    answers: dict[int, Any] = {}
    deadline = now_ns() + PATIENCE_NS
    while len(answers) < 12:
        assert now_ns() < deadline, answers
        stage.serve()
        frames = stage.client.dealer.receive()
        if frames is not None:
            answer = codec.decode(frames[0], messages.TO_CLIENT)
            if type(answer) in (messages.Reply, messages.Failure):
                answers[answer.request_id] = answer
    assert type(answers[100]) is messages.Reply
    assert type(answers[110]) is messages.Reply
    assert answers[111].status == Status.MODEL_NOT_FOUND
    assert "b" not in [model["name"] for model in stage.models()]
    assert stage.state() == state_of(stage.data, tmp_path)


def test_a_defect_costs_the_order_that_it_is_in_and_none_that_waits_behind_it(
    stages: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages()
    registrar = stage.controller._registrar
    whole = registrar._load_or_wait

    def broken(waiter: Any, text: str) -> None:
        monkeypatch.setattr(registrar, "_load_or_wait", whole)
        raise RuntimeError("a defect")

    monkeypatch.setattr(registrar, "_load_or_wait", broken)
    stage.client.send(messages.Offer(300, "b", False))
    # this order waits for that change, and meets the defect
    stage.client.send(messages.Offer(301, "b", True))
    assert type(stage.ask(lambda number: messages.Unregister(number, "b"))) is messages.Reply
    assert "b" not in [model["name"] for model in stage.models()]


def test_more_orders_of_one_name_than_may_wait_are_refused(
    stages: Callable[[], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages()
    turns = stage.controller._registrar._turns
    turns._following["b"] = None  # a change that never ends keeps the name's turn
    for number in range(200, 200 + CHANGES_WAITING_MAX + 1):
        stage.client.send(messages.Offer(number, "b", False))
    refusal, _ = stage.client.receive(messages.Failure)
    assert (refusal.request_id, refusal.status) == (200 + CHANGES_WAITING_MAX, Status.UNAVAILABLE)
    assert "wait to be written" in refusal.text
    stage.client.send(messages.Bye())
    deadline = now_ns() + PATIENCE_NS
    while turns._waiting["b"]:
        assert now_ns() < deadline
        stage.worker.wait(MS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(tmp_path / "disk", 1 << 20) as place:
        yield place


def test_a_full_disk_refuses_what_needs_room_and_is_emptied_by_unregistering(
    filled: Path, disk: Path
) -> None:
    data = disk / "data"
    shutil.copytree(filled, data)
    with ExitStack() as stack:
        stage = Stage(stack, data)
        assert type(stage.register("large", bytes(200_000))) is messages.Reply
        before = stage.state()
        newest = "SELECT max(number) FROM changes"
        eventually(
            lambda: sql(data, newest) == [(newest_of(data / BACKUP),)], "the backup needs no more room"
        )

        def fill_up() -> None:
            with open(disk / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass

        for name in (
            "unload a name",
            "unload versions",
            "load",
            "route",
            "promote",
            "change an SLO",
            "register a name",
        ):
            fill_up()  # a refusal writes SQLite's log back, which may make room
            answer = ORDERS[name].act(stage)
            assert type(answer) is messages.Failure, name
            assert "No space left" in answer.text
            assert stage.state() == before
        assert (TroubleKind.STORAGE_FAILED, "data directory") in stage.troubles()
    fill_up()
    with ExitStack() as stack:  # the controller starts on a full disk, too
        stage = Stage(stack, data)
        assert stage.state() == before
        for name in ("b", "a", "large"):
            fill_up()
            assert type(stage.ask(lambda n, name=name: messages.Unregister(n, name))) is messages.Reply
        eventually(lambda: packages_of(data) == 5, "the packages go, at the cost of a backup")
        assert type(ORDERS["unload versions"].act(stage)) is messages.Reply
        eventually(lambda: not stage.troubles(), "all that failed has been made up for")
        after = stage.state()
    with ExitStack() as stack:
        assert Stage(stack, data).state() == after
