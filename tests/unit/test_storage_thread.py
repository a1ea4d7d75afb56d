"""The storage thread: jobs begin in order, and syncs of several jobs happen together."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clockwork.controller.storage.thread import StorageThread
from clockwork.errors import InvalidModel
from clockwork.formats.durable import ALONE, Journal, Steps
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


def test_closing_finishes_the_jobs_under_way(tmp_path: Path) -> None:
    site = Site()
    journal = Journal(tmp_path, ["models"])
    (tmp_path / "models").mkdir()
    for index in range(20):
        path = tmp_path / "models" / str(index)
        site.submit(str(index), lambda path=path: journal.change_in_steps({path: path.name.encode()}))
    site.thread.close()
    assert {path.name: path.read_text() for path in (tmp_path / "models").iterdir()} == {
        str(index): str(index) for index in range(20)
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
