"""The storage thread: jobs begin in order, and syncs of several jobs happen together."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.storage.thread import StorageThread
from clockwork.errors import InvalidModel
from clockwork.formats.durable import ALONE, Steps, sync_directory
from clockwork.formats.package import PackageFile, PackageStore
from tests.patience import readable

Ended = tuple[str, Any, BaseException | None]


class Site:
    """A storage thread, and what came of its jobs in the order of their ends."""

    def __init__(self) -> None:
        self.thread = StorageThread()
        self.ended: list[Ended] = []

    def submit(self, name: str, job: Callable[[], Any]) -> None:
        self.thread.submit(job, lambda value, error: self.ended.append((name, value, error)))

    def names_of_ended(self, count: int) -> list[str]:
        """Wait until so many jobs have ended. Return their names."""
        while len(self.ended) < count:
            assert readable(self.thread.fileno()), self.ended
            self.thread.drain(lambda error: pytest.fail(str(error)))
        return [name for name, _, _ in self.ended]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.thread.close()


def held(site: Site) -> Callable[[], None]:
    """Have the thread wait, so that jobs gather behind. Returns the function that lets it go on."""
    ours, theirs = os.pipe()

    def hold() -> None:
        os.read(ours, 1)
        os.close(ours)

    def release() -> None:
        os.write(theirs, b"x")
        os.close(theirs)

    site.submit("hold", hold)
    return release


def writing(log: list[str], name: str, rounds: Sequence[Sequence[int]]) -> Steps[str]:
    for index, descriptors in enumerate(rounds):
        log.append(f"{name}{index}")
        yield descriptors
    log.append(f"{name}.")
    return name


def test_jobs_that_wait_for_syncs_go_on_together_and_a_failed_sync_is_its_jobs_alone(
    site: Site, tmp_path: Path
) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    closed = os.dup(file)
    os.close(closed)
    log: list[str] = []
    release = held(site)
    site.submit("a", lambda: writing(log, "a", [[file], [file]]))
    site.submit("bad", lambda: writing(log, "bad", [[file, closed]]))
    site.submit("plain", lambda: log.append("plain"))
    site.submit("b", lambda: writing(log, "b", [[file]]))
    release()
    assert site.names_of_ended(5) == ["hold", "plain", "bad", "b", "a"]
    assert log == ["a0", "bad0", "plain", "b0", "a1", "b.", "a."]
    assert [value for _, value, _ in site.ended] == [None, None, None, "b", "a"]
    [error] = [error for _, _, error in site.ended if error is not None]
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF
    os.close(file)


def test_a_job_that_has_to_be_alone_waits_for_those_before_it_and_those_behind_it_wait(
    site: Site, tmp_path: Path
) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    log: list[str] = []
    release = held(site)
    site.submit("a", lambda: writing(log, "a", [[file], [file]]))
    site.submit("alone", lambda: writing(log, "alone", [ALONE, [file]]))
    site.submit("b", lambda: writing(log, "b", [[file]]))
    release()
    assert site.names_of_ended(4) == ["hold", "a", "alone", "b"]
    assert log == ["a0", "alone0", "a1", "a.", "alone1", "alone.", "b0", "b."]
    os.close(file)


class Shared:
    """Something that several jobs share, and that is synced once. number: of an OSError; 0: none."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.threads: list[str] = []

    def sync(self) -> None:
        if not self.threads:
            self.threads.append(threading.current_thread().name)
        if self.number:
            raise OSError(self.number, os.strerror(self.number))


def test_what_jobs_share_is_synced_on_their_thread_and_fails_all_of_them(site: Site, tmp_path: Path) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    shared, bad = Shared(), Shared(errno.ENOSPC)
    log: list[str] = []

    def using(name: str, *unsynced: int | Shared) -> Steps[str]:
        yield unsynced
        log.append(name)
        return name

    release = held(site)
    for name, unsynced in {
        "a": (shared,), "b": (file, shared), "c": (bad,), "d": (bad, file), "e": (file,)
    }.items():  # fmt: skip
        site.submit(name, lambda name=name, unsynced=unsynced: using(name, *unsynced))
    release()
    site.names_of_ended(6)
    assert shared.threads == bad.threads == ["storage"]
    assert log == ["a", "b", "e"]
    failed = {name: error for name, _, error in site.ended if error is not None}
    assert {name: getattr(error, "errno", 0) for name, error in failed.items()} == {
        "c": errno.ENOSPC, "d": errno.ENOSPC
    }  # fmt: skip
    os.close(file)


def test_closing_finishes_the_jobs_under_way(tmp_path: Path) -> None:
    site = Site()
    for index in range(20):

        def writing_one(path: Path = tmp_path / str(index)) -> Steps[None]:
            path.write_text(path.name)
            yield from sync_directory(tmp_path)
            path.write_text(path.name * 2)

        site.submit(str(index), writing_one)
    site.thread.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(index): str(index) * 2 for index in range(20)
    }


@pytest.mark.parametrize(
    "chunks",
    [
        [(0, 0, 4), (0, 4, 8)],
        [(0, 4, 8), (0, 0, 4)],
        [(0, 0, 4), (1, 0, 3), (0, 4, 8)],
        [(0, 0, 8), (0, 2, 4)],
        [(0, 0, 4), (0, 0, 4), (0, 4, 8)],
    ],
)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_package_is_checked_whatever_the_order_of_its_chunks(
    tmp_path: Path, chunks: list[tuple[int, int, int]], is_damaged: bool
) -> None:
    contents = [b"abcdefgh", b"xyz"]
    files = [
        PackageFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in zip(("model.onnx", "data"), contents, strict=True)
    ]
    store = PackageStore(tmp_path)
    writer = store.writer(files)
    if all(file != 1 for file, _, _ in chunks):
        writer.write(1, 0, contents[1])
    for number, (file, begin, end) in enumerate(chunks):
        data = contents[file][begin:end]
        writer.write(file, begin, data[:-1] + b"!" if is_damaged and number == len(chunks) - 1 else data)
    if is_damaged:
        with pytest.raises(InvalidModel, match="arrived damaged"):
            writer.commit()
        assert [path.name for path in (tmp_path / "packages").iterdir()] == []
    else:
        writer.commit()
        assert (store.directory(writer.digest) / "model.onnx").read_bytes() == contents[0]
