"""Jobs about packages in an object store: in order for each package, and never in the way of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clockwork.controller.catalog.options import check_options
from clockwork.controller.catalog.records import Change, ModelRecord
from clockwork.controller.catalog.store import Catalog
from clockwork.controller.effects import (
    AbortUpload,
    CommitUpload,
    Job,
    ListPackages,
    OpenUpload,
    ReadChunk,
    RemovePackage,
    WriteChange,
    WriteChunk,
)
from clockwork.controller.storage.lanes import JobLanes, ObjectJobs
from clockwork.controller.storage.thread import StorageThread
from clockwork.formats.durable import ALONE, Steps
from clockwork.formats.package import PackageFile, digest_of
from tests.catalogues import sql
from tests.patience import PATIENCE_S, eventually

FILES = [PackageFile("model.onnx", 4, "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7")]
DIGEST = digest_of(FILES)
RECORD = ModelRecord("m", 1, DIGEST, FILES, check_options({}))


class Held:
    """Calls that a test lets go on: each waits for its name in ``let``."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let: dict[str, threading.Event] = {}

    def hold(self, name: str) -> None:
        self.let[name] = threading.Event()

    def __call__(self, name: str) -> None:
        self.begun.append(name)
        event = self.let.get(name)
        assert event is None or event.wait(PATIENCE_S)


class Packages:
    """Packages of which only the calls count. stored: digests."""

    def __init__(self, held: Held) -> None:
        self.held_calls = held
        self.stored: set[str] = set()
        self.failure = ""
        self.tries = 0
        self.place = "s3://bucket"

    def open(self) -> None: ...

    def close(self) -> None: ...

    def is_whole(self, digest: str) -> bool:
        self.held_calls(f"look {digest[:1]}")
        return digest in self.stored

    def writer(self, files: Any) -> Any:
        def commit() -> Steps[None]:
            yield ALONE
            self.held_calls("commit")
            self.stored.add(DIGEST)

        return SimpleNamespace(
            write=lambda *_: self.held_calls("write"),
            commit_in_steps=commit,
            abort=lambda: self.held_calls("abort"),
        )

    def remove(self, digest: str) -> None:
        self.held_calls(f"remove {digest[:1]}")
        self.stored.discard(digest)

    def listed(self) -> list[str]:
        return sorted(self.stored)

    def try_again(self) -> None:
        self.tries += 1


class Rig:
    def __init__(self, root: Path) -> None:
        self.calls = Held()
        self.packages: Any = Packages(self.calls)
        self.catalog = Catalog(root, self.packages)
        self.catalog.open()
        self.thread = StorageThread()
        self.jobs = ObjectJobs(self.catalog, self.thread, self.packages)
        self.ended: list[tuple[Job, Any, BaseException | None]] = []

    def submit(self, *jobs: Job) -> None:
        for job in jobs:
            self.jobs.submit(job, lambda value, error, job=job: self.ended.append((job, value, error)))

    def wait_for(self, count: int) -> list[Any]:
        """The values of so many ended jobs, in the order of their ends."""

        def has_ended() -> bool:
            self.thread.drain(lambda error: pytest.fail(str(error)))
            return len(self.ended) >= count

        eventually(has_ended, f"{count} jobs end")
        return [error or value for _, value, error in self.ended]

    def close(self) -> None:
        for event in self.calls.let.values():
            event.set()
        self.jobs.close()
        self.thread.close()
        self.catalog.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def begun(rig: Rig, name: str) -> None:
    eventually(lambda: name in rig.calls.begun, name)


def test_an_upload_of_content_that_is_being_removed_finds_it_gone(rig: Rig) -> None:
    rig.packages.stored.add(DIGEST)
    rig.calls.hold("remove " + DIGEST[0])
    rig.submit(RemovePackage(DIGEST), OpenUpload(1, DIGEST, FILES))
    begun(rig, "remove " + DIGEST[0])
    assert "look " + DIGEST[0] not in rig.calls.begun
    rig.calls.let["remove " + DIGEST[0]].set()
    assert rig.wait_for(2)[1] is True, "the bytes are not asked for, and would be gone"


def test_an_upload_that_is_given_up_while_the_store_is_asked_leaves_no_writer(rig: Rig) -> None:
    rig.calls.hold("look " + DIGEST[0])
    rig.submit(OpenUpload(1, DIGEST, FILES))
    begun(rig, "look " + DIGEST[0])
    rig.submit(AbortUpload(1))
    rig.calls.let["look " + DIGEST[0]].set()
    rig.wait_for(2)
    assert rig.calls.begun[-1] == "abort"
    assert rig.jobs._digests == {}


def test_a_slow_package_delays_neither_others_nor_the_catalog(rig: Rig) -> None:
    rig.calls.hold("look " + DIGEST[0])
    rig.submit(OpenUpload(1, DIGEST, FILES))
    begun(rig, "look " + DIGEST[0])
    rig.submit(OpenUpload(2, "0" * 64, FILES))
    assert rig.wait_for(1) == [True]
    rig.submit(WriteChunk(2, 0, 0, b"data"), CommitUpload(2), WriteChange("m", Change(save=[RECORD])))
    rig.wait_for(4)
    assert rig.jobs._digests == {1: DIGEST}
    assert sql(rig.catalog.root, "SELECT name FROM versions") == [("m",)]


def test_every_kind_of_job_ends(rig: Rig) -> None:
    rig.packages.stored.add(DIGEST)
    piece = ReadChunk(1, DIGEST, 0, FILES[0], 0, 4)
    rig.submit(ListPackages(), RemovePackage(DIGEST), AbortUpload(7), piece)
    listed, *_ = rig.wait_for(4)
    assert listed in ([DIGEST], None)
    found = {type(job): error for job, _, error in rig.ended}
    assert isinstance(found.pop(ReadChunk), AttributeError)  # these packages have no files
    assert set(found.values()) == {None}


def test_a_store_that_failed_is_asked_again_now_and_then(rig: Rig) -> None:
    assert rig.jobs.beat(0) == ""
    rig.packages.failure = "away"
    second = 1_000_000_000
    assert rig.jobs.beat(20 * second) == "away"
    eventually(lambda: rig.packages.tries == 1, "the store is asked")
    rig.jobs.beat(25 * second)
    rig.thread.drain(lambda error: None)
    rig.jobs.beat(40 * second)

    def is_asked() -> bool:
        rig.thread.drain(lambda error: None)
        rig.jobs.beat(60 * second)
        return bool(rig.packages.tries >= 2)

    eventually(is_asked, "the store is asked again")


def test_jobs_of_a_key_run_in_order_and_closing_finishes_all() -> None:
    ends: list[int] = []
    lock = threading.Lock()

    def report(done: Callable[..., None], value: Any, error: BaseException | None) -> None:
        with lock:
            done(value, error)

    lanes = JobLanes("lanes", 3, report)
    for number in range(300):
        lanes.submit(str(number % 4), lambda number=number: number, lambda value, error: ends.append(value))
    lanes.close()
    assert sorted(ends) == list(range(300))
    for key in range(4):
        of_key = [number for number in ends if number % 4 == key]
        assert of_key == sorted(of_key)
