"""A worker's side of bundles: what it asks for, and that it takes nothing but what was offered."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clockwork.config.worker import BUNDLE_CHUNK_BYTES, BUNDLES_AT_ONCE
from clockwork.formats.package import PackageFile, digest_of, rows_of
from clockwork.wire import codec
from clockwork.wire.messages import (
    FROM_WORKER,
    BundleOffer,
    BundleRefused,
    BundleWanted,
    Chunk,
    Fetch,
    Prepare,
    Status,
)
from clockwork.worker.bundles import BundleTaker, Taken
from clockwork.worker.opening import WorkerModel
from clockwork.worker.preparation import Job, JobDone
from tests.patience import PATIENCE_S

CONTENTS = [b'{"about": 1}', bytes(range(256)) * 4096, b"program"]
NAMES = ("prepared.json", "weights.bin", "program.onnx")
FILES = [
    PackageFile(name, len(content), hashlib.sha256(content).hexdigest())
    for name, content in zip(NAMES, CONTENTS)
]
DIGEST = digest_of(FILES)


class Process:
    """In place of the process that tries bundles: ends each job as the test says, and keeps what it saw."""

    def __init__(self) -> None:
        self.text = ""
        self.seen: list[dict[str, bytes]] = []
        self._done: list[JobDone] = []

    def submit(self, job_id: int, job: Job) -> None:
        folder = Path(job["bundle"])
        self.seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        status = Status.INVALID_MODEL if self.text else Status.OK
        self._done.append(JobDone(job_id, status, self.text))

    def poll(self) -> list[JobDone]:
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        pass


class Side:
    """A worker's bundles, and the controller's part of the conversation."""

    def __init__(self, store: Path) -> None:
        self.sent: list[Any] = []
        self._woken = threading.Event()
        self.bundles = BundleTaker(store / "prepared", self._send, self._woken.set, lambda model: {})
        self.bundles._process.close()
        self.process = Process()
        stand_in: Any = self.process
        self.bundles._process = stand_in
        self.contents = list(CONTENTS)

    def _send(self, header: bytes) -> None:
        self.sent.append(codec.decode(header, FROM_WORKER))

    def take(self, kind: type) -> list[Any]:
        """Return the messages of this kind since the last call."""
        found = [message for message in self.sent if type(message) is kind]
        self.sent = [message for message in self.sent if type(message) is not kind]
        return found

    def want(self, model_id: int) -> WorkerModel:
        model = WorkerModel(Prepare(model_id, "m", 1, "ab" * 32, [], {}, 0))
        self.bundles.want(model)
        return model

    def offer(self, model_id: int, files: list[PackageFile] = FILES) -> None:
        self.bundles.on_offer(BundleOffer(model_id, "peer", rows_of(files)))

    def give(self, fetch: Fetch, status: Status = Status.OK) -> None:
        piece = self.contents[fetch.file][fetch.offset : fetch.offset + fetch.length]
        self.bundles.on_chunk(Chunk(fetch.digest, fetch.file, fetch.offset, status), piece)

    def poll(self) -> list[Taken]:
        assert self._woken.wait(PATIENCE_S)
        self._woken.clear()
        return self.bundles.poll()

    def serve(self) -> list[Taken]:
        """Answer every Fetch until models end."""
        while True:
            for fetch in self.take(Fetch):
                assert fetch.length <= BUNDLE_CHUNK_BYTES
                self.give(fetch)
            if ended := self.poll() or self.bundles.poll():
                return ended


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path)
    yield side
    side.bundles.close()
    assert not list(tmp_path.glob("prepared/*")), "something was left"


def test_a_bundle_is_tried_when_all_of_it_has_come(side: Side) -> None:
    model = side.want(1)
    assert side.take(BundleWanted) == [BundleWanted(1)]
    side.offer(1)
    assert side.serve() == [Taken(model, True, "")]
    (seen,) = side.process.seen
    assert {name: seen[name] for name in NAMES} == dict(zip(NAMES, CONTENTS))
    assert side.take(BundleRefused) == []
    assert side.bundles.count == 0


def test_without_an_offer_a_model_is_prepared_here(side: Side) -> None:
    model = side.want(1)
    side.offer(1, [])
    assert side.poll() == [Taken(model, False, "")]
    assert side.take(BundleRefused) == []


@pytest.mark.parametrize("file", range(3))
def test_other_bytes_than_those_offered_are_never_tried(side: Side, file: int) -> None:
    model = side.want(1)
    side.offer(1)
    content = bytearray(CONTENTS[file])
    content[len(content) // 2] ^= 1
    side.contents[file] = bytes(content)
    (ended,) = side.serve()
    assert (ended.model, ended.is_taken) == (model, False)
    assert "as worker peer has prepared it" in ended.text
    assert f"{NAMES[file]!r} arrived damaged" in ended.text
    assert side.take(BundleRefused) == [BundleRefused(1, ended.text)]
    assert side.process.seen == []


@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_piece_of_another_size_ends_the_attempt(side: Side, size: int) -> None:
    side.want(1)
    side.offer(1)
    fetch = side.take(Fetch)[0]
    piece = CONTENTS[0] + b"more" if size > 0 else CONTENTS[0][:size]
    side.bundles.on_chunk(Chunk(DIGEST, fetch.file, fetch.offset, Status.OK), piece)
    (ended,) = side.poll()
    assert not ended.is_taken
    assert "were asked for" in ended.text
    side.give(fetch)  # late pieces are dropped
    assert side.process.seen == []


def test_a_peer_that_is_lost_in_the_middle_ends_the_attempt(side: Side) -> None:
    model = side.want(1)
    side.offer(1)
    first, second = side.take(Fetch)
    side.give(first)
    side.give(second, Status.INTERNAL)
    (ended,) = side.poll()
    assert (ended.model, ended.is_taken) == (model, False)
    assert "'weights.bin' of package" in ended.text
    assert len(side.take(BundleRefused)) == 1


def test_a_disk_that_is_full_is_not_the_peers_fault(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    models = [side.want(1), side.want(2)]
    side.offer(1)
    side.offer(2)
    monkeypatch.setattr(os, "pwrite", write)
    ended = side.serve()
    monkeypatch.undo()
    assert [taken.model for taken in ended] == models
    for taken in ended:
        assert not taken.is_taken
        assert taken.text.startswith("as worker peer has prepared it: package ")
        assert "No space left" in taken.text
    assert side.take(BundleRefused) == [BundleRefused(1, ""), BundleRefused(2, "")]


def test_a_bundle_that_fails_its_trial_is_refused(side: Side) -> None:
    side.process.text = "its program is another than it names"
    side.want(1)
    side.offer(1)
    (ended,) = side.serve()
    assert not ended.is_taken
    assert ended.text == "as worker peer has prepared it: its program is another than it names"
    assert side.take(BundleRefused) == [BundleRefused(1, ended.text)]


@pytest.mark.parametrize("name", ["../weights.bin", "/tmp/weights.bin", "package.json", ".", ""])
def test_no_file_is_opened_under_another_name(side: Side, name: str, tmp_path: Path) -> None:
    side.want(1)
    side.offer(1, [FILES[0], PackageFile(name, 1, "0" * 64), FILES[2]])
    (ended,) = side.poll()
    assert "the files of a prepared model are not" in ended.text
    assert side.take(Fetch) == []
    assert not (tmp_path / "prepared").exists()


def test_a_bounded_number_is_asked_for_at_once_in_order(side: Side) -> None:
    models = [side.want(number) for number in range(1, BUNDLES_AT_ONCE + 4)]
    asked = [wanted.model_id for wanted in side.take(BundleWanted)]
    assert asked == list(range(1, BUNDLES_AT_ONCE + 1))
    assert side.bundles.count == len(models)
    side.offer(2, [])
    assert [wanted.model_id for wanted in side.take(BundleWanted)] == [BUNDLES_AT_ONCE + 1]
    assert side.bundles.drop(models[0])  # it was asked for ...
    assert side.bundles.drop(models[-1])  # ... and this one waits
    assert not side.bundles.drop(models[1])  # it has ended
    assert [wanted.model_id for wanted in side.take(BundleWanted)] == [BUNDLES_AT_ONCE + 2]
    side.offer(1)  # of a model that is dropped
    assert side.take(Fetch) == []


def test_models_of_equal_content_are_fetched_once(side: Side) -> None:
    models = [side.want(1), side.want(2)]
    side.offer(1)
    side.offer(2)
    side.offer(2)  # twice
    assert side.bundles.drop(models[0])
    assert side.serve() == [Taken(models[1], True, "")]
    assert len(side.process.seen) == 1


def test_a_dropped_model_stops_its_transfer(side: Side) -> None:
    model = side.want(1)
    side.offer(1)
    fetches = side.take(Fetch)
    assert side.bundles.drop(model)
    for fetch in fetches:
        side.give(fetch)
    side.want(2)
    side.offer(2)
    assert [ended.model.message.model_id for ended in side.serve()] == [2]


def test_a_new_session_forgets_everything(side: Side) -> None:
    side.want(1)
    side.offer(1)
    fetches = side.take(Fetch)
    side.bundles.reset()
    assert side.bundles.count == 0
    for fetch in fetches:
        side.give(fetch)
    side.offer(1)
    assert side.take(Fetch) == []
    assert side.take(BundleRefused) == []
