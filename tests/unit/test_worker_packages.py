"""Fetching packages: the order and size of requests, and that only complete packages arrive."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clockwork.config import CHUNK_BYTES, CHUNK_WINDOW
from clockwork.config.formats import TRANSFERS_MAX
from clockwork.formats.fetching import Fetched, PackageFetcher
from clockwork.formats.package import PackageFile, PackageStore, digest_of
from clockwork.wire.messages import Chunk, Fetch, Status
from tests.patience import PATIENCE_S


def package(**contents: bytes) -> tuple[str, list[PackageFile], list[bytes]]:
    names = {"model": "model.onnx", "data": "sub/weights.bin", "empty": "empty"}
    files = [
        PackageFile(names[name], len(body), hashlib.sha256(body).hexdigest())
        for name, body in contents.items()
    ]
    return digest_of(files), files, list(contents.values())


class Side:
    """The fetcher and a controller's part of the conversation, played by hand."""

    def __init__(self, root: Path) -> None:
        self.store = PackageStore(root)
        self.asked: list[Fetch] = []
        self._woken = threading.Event()
        self.fetcher = PackageFetcher(self.store, self.asked.append, self._woken.set)

    def take(self) -> list[Fetch]:
        asked, self.asked[:] = list(self.asked), []
        return asked

    def give(self, fetch: Fetch, bodies: list[bytes], status: Status = Status.OK) -> Fetched | None:
        body = bodies[fetch.file][fetch.offset : fetch.offset + fetch.length]
        return self.fetcher.on_chunk(Chunk(fetch.digest, fetch.file, fetch.offset, status), body)

    def poll(self) -> list[Fetched]:
        """Return poll()'s result once the writer has done something."""
        assert self._woken.wait(PATIENCE_S)
        self._woken.clear()
        return self.fetcher.poll()

    def serve(self, bodies: list[bytes]) -> list[Fetched]:
        """Answer every Fetch until transfers end."""
        while True:
            for fetch in self.take():
                self.give(fetch, bodies)
            if ended := self.poll():
                return ended

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in (self.store.root / "packages").glob(".*"))


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path)
    yield side
    side.fetcher.close()
    assert side.leftovers() == []


def test_a_package_arrives_whole_with_its_empty_files(side: Side) -> None:
    bodies = bytes(range(256)) * 9000  # content of 2.2 MB: three chunks
    digest, files, contents = package(model=b"onnx", data=bodies, empty=b"")
    side.fetcher.start(digest, files)
    assert side.serve(contents) == [Fetched(digest, Status.OK, "")]
    assert side.store.has(digest)
    assert (side.store.directory(digest) / "sub/weights.bin").read_bytes() == bodies
    assert (side.store.directory(digest) / "empty").read_bytes() == b""


def test_at_most_a_window_is_under_way(side: Side) -> None:
    digest, files, contents = package(model=bytes(CHUNK_BYTES * (CHUNK_WINDOW + 2) + 5))
    side.fetcher.start(digest, files)
    first = side.take()
    assert [fetch.offset for fetch in first] == [CHUNK_BYTES * index for index in range(CHUNK_WINDOW)]
    side.give(first[0], contents)
    assert side.take() == []  # received, but not yet written
    assert side.poll() == []
    assert [fetch.offset for fetch in side.take()] == [CHUNK_BYTES * CHUNK_WINDOW]


def test_the_chunks_may_come_in_any_order(side: Side) -> None:
    body = bytes(range(251)) * 20_000
    digest, files, contents = package(model=body)
    side.fetcher.start(digest, files)
    for fetch in reversed(side.take()):
        side.give(fetch, contents)
    assert side.serve(contents) == [Fetched(digest, Status.OK, "")]
    assert (side.store.directory(digest) / "model.onnx").read_bytes() == body


def test_content_that_does_not_match_its_checksum_never_arrives(side: Side) -> None:
    digest, files, _ = package(model=b"right")
    side.fetcher.start(digest, files)
    (ended,) = side.serve([b"wrong"])
    assert ended.status == Status.INTERNAL
    assert "arrived damaged" in ended.text
    assert not side.store.has(digest)


def test_a_chunk_of_another_length_ends_the_transfer(side: Side) -> None:
    digest, files, _ = package(model=b"four")
    side.fetcher.start(digest, files)
    ended = side.give(side.take()[0], [b"fou"])
    assert ended is not None
    assert "3 bytes, 4 were asked for" in ended.text


def test_a_controller_that_cannot_read_ends_the_transfer(side: Side) -> None:
    digest, files, _ = package(model=b"four")
    side.fetcher.start(digest, files)
    ended = side.give(side.take()[0], [b""], Status.INTERNAL)
    assert ended is not None
    assert "'model.onnx' of package" in ended.text


def test_chunks_that_nobody_asked_for_are_dropped(side: Side) -> None:
    digest, files, contents = package(model=b"four")
    assert side.fetcher.on_chunk(Chunk("0" * 64, 0, 0, Status.OK), b"data") is None
    side.fetcher.start(digest, files)
    assert side.fetcher.on_chunk(Chunk(digest, 7, 0, Status.OK), b"data") is None
    assert side.fetcher.on_chunk(Chunk(digest, -1, 0, Status.OK), b"data") is None
    assert side.serve(contents) == [Fetched(digest, Status.OK, "")]


def test_a_cancelled_transfer_may_begin_again(side: Side) -> None:
    digest, files, contents = package(model=bytes(3 * CHUNK_BYTES))
    side.fetcher.start(digest, files)
    side.give(side.take()[0], contents)
    side.fetcher.cancel(digest)
    assert side.fetcher.count == 0
    side.fetcher.start(digest, files)
    assert side.serve(contents) == [Fetched(digest, Status.OK, "")]


def test_only_some_packages_travel_at_once(side: Side) -> None:
    packages = [package(model=bytes([index])) for index in range(TRANSFERS_MAX + 1)]
    for digest, files, _ in packages:
        side.fetcher.start(digest, files)
    asked = side.take()
    assert [fetch.digest for fetch in asked] == [digest for digest, _, _ in packages[:TRANSFERS_MAX]]
    side.give(asked[0], packages[0][2])
    while not side.poll():
        pass
    assert [fetch.digest for fetch in side.take()] == [packages[-1][0]]


def test_two_stores_in_one_directory_agree(side: Side) -> None:
    """Another worker that shares the store was first: that is no failure."""
    digest, files, contents = package(model=b"shared")
    side.fetcher.start(digest, files)
    writer = PackageStore(side.store.root).writer(files)
    writer.write(0, 0, b"shared")
    writer.commit()
    assert side.serve(contents) == [Fetched(digest, Status.OK, "")]


def test_a_package_may_have_more_files_than_a_process_descriptors(tmp_path: Path) -> None:
    bodies = [b"%d" % index for index in range(200)]
    files = [
        PackageFile(
            "model.onnx" if not index else f"weights/{index}", len(body), hashlib.sha256(body).hexdigest()
        )
        for index, body in enumerate(bodies)
    ]
    store = PackageStore(tmp_path)
    writer = store.writer(files)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_already = len(os.listdir("/proc/self/fd"))  # includes descriptors of other tests in this process
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_already + 100, limits[1]))
    try:
        for index in (*range(0, 200, 2), *range(1, 200, 2)):
            writer.write(index, 0, bodies[index][:1])
        for index, body in enumerate(bodies):
            writer.write(index, 1, body[1:])
        writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    directory = store.directory(digest_of(files))
    assert [(directory / file.path).read_bytes() for file in files] == bodies
