"""Regions of shared memory: their owners, the allowed names, and their removal.

Files in a folder of the test's.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf", reason="the gateway's libraries are not installed ([gateway])")

from clockwork.config.gateway import OWNER_REGIONS_MAX, REGION_UNHELD_SWEEPS, REGIONS_MAX
from clockwork.errors import Forbidden, InvalidInput, Refused
from clockwork.gateway import callers, regions
from clockwork.gateway.callers import Caller, Endpoint
from clockwork.gateway.errors import NotFound, TooLarge, Unsupported
from clockwork.gateway.regions import Region, RegionPlace, Regions, Shared
from clockwork.wire import tensors
from tests.patience import PATIENCE_S

ME = os.getuid()
OTHER = ME + 1


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Regions]:
    table = Regions(tmp_path)
    yield table
    table.close()


def read(table: Regions, owner: int, place: RegionPlace) -> bytes:
    [found] = asyncio.run(table.read(owner, [place]))
    return bytes(found)


def write(table: Regions, owner: int, place: RegionPlace, data: bytes) -> None:
    asyncio.run(table.write(owner, [(place, data)]))


def make(folder: Path, name: str = "memory", content: bytes = bytes(range(64))) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def parameters(size: Any = 8, offset: Any = None, region: Any = "r") -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return found if offset is None else found | {"shared_memory_offset": offset}


def test_a_place_is_read_and_written_by_region_and_offset(table: Regions, tmp_path: Path) -> None:
    path = make(tmp_path)
    table.register(ME, "r", "/memory", 16, 32)
    place = table.place(ME, parameters(4, 8), "input")
    assert read(table, ME, place) == bytes(range(24, 28))
    write(table, ME, place, b"abcd")
    assert path.read_bytes() == bytes(range(24)) + b"abcd" + bytes(range(28, 64))
    described = {"name": "r", "key": "/memory", "offset": 16, "byte_size": 32}
    assert [one.described() for one in table.status(ME, "")] == [described]


@pytest.mark.parametrize("key", [
    "/etc/passwd", "../memory", "a/b", "/", "", ".", "..", "/..", "//memory", "x\0y", "x" * 256, "\ud800", 7, None,
])  # fmt: skip
def test_a_key_names_a_file_in_the_folder_and_nothing_else(table: Regions, key: Any) -> None:
    with pytest.raises(InvalidInput, match="the name that shm_open"):
        table.register(ME, "r", key, 0, 1)


def test_what_is_no_memory_of_the_users_own_is_not_opened(table: Regions, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "memory")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for owner, key, words in (
        (ME, "nope", "there is no .*/nope on the gateway's machine"),
        (ME, "link", "symbolic link"),
        (ME, "fifo", f"no shared memory of user {ME}"),
        (ME, "folder", f"no shared memory of user {ME}"),
        (OTHER, "memory", f"no shared memory of user {OTHER}"),
    ):
        with pytest.raises(InvalidInput, match=words):
            table.register(owner, "r", key, 0, 1)
        assert table.status(owner, "") == []


def test_files_on_other_mounts_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may mount a file system of his own there, on which an open() never returns."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    folder, _, name = next(
        where.rpartition("/") for where in (line.split()[4] for line in mounts) if where.count("/") > 1
    )
    assert os.path.ismount(f"{folder}/{name}")
    table = Regions(Path(folder))
    with pytest.raises(InvalidInput, match="on another file system"):
        table.register(ME, "r", name, 0, 1)
    table.close()


def test_a_file_with_a_lease_is_refused_at_once(table: Regions, tmp_path: Path) -> None:
    """An open() that waits for the lease would take 45 s (/proc/sys/fs/lease-break-time)."""
    path = make(tmp_path)
    with open(path, "r+b") as holder:
        fcntl.fcntl(holder, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(InvalidInput, match="temporarily unavailable"):
            table.register(ME, "r", "memory", 0, 64)
    table.register(ME, "r", "memory", 0, 64)


def test_memory_that_is_not_copied_in_time_is_an_error(
    table: Regions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    place = table.place(ME, parameters(), "input")
    gate, real = threading.Event(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *all: gate.wait(PATIENCE_S) and real(*all))
    monkeypatch.setattr(regions.bounds, "REGION_COPY_S", 0.01)
    with pytest.raises(InvalidInput, match=rf"memory of user {ME} was not copied within 0\.01 s"):
        write(table, ME, place, b"12345678")
    gate.set()


def test_nobody_sees_names_or_removes_anothers_region(table: Regions, tmp_path: Path) -> None:
    make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    with pytest.raises(InvalidInput, match="Unable to find shared memory region"):
        table.place(OTHER, parameters(), "input")
    assert table.status(OTHER, "") == []
    with pytest.raises(NotFound, match="Unable to find system shared memory region"):
        table.status(OTHER, "r")
    table.unregister(OTHER, "r")
    table.unregister(OTHER, "")
    assert [region.name for region in table.status(ME, "r")] == ["r"]
    # Nor does the memory open for another user, whatever he has registered.
    place = table.place(ME, parameters(), "input")
    with pytest.raises(InvalidInput, match=f"no shared memory of user {OTHER}"):
        read(table, OTHER, place)


def test_a_name_is_registered_once_and_again_when_its_memory_is_new(table: Regions, tmp_path: Path) -> None:
    path = make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    with pytest.raises(InvalidInput, match="already in manager"):
        table.register(ME, "r", "memory", 0, 64)
    place = table.place(ME, parameters(), "input")
    path.rename(tmp_path / "old")  # renaming keeps the inode, so that the new file has another
    make(tmp_path, content=b"new memory")
    with pytest.raises(InvalidInput, match="was made anew"):
        read(table, ME, place)
    table.register(ME, "r", "memory", 0, 10)
    assert read(table, ME, table.place(ME, parameters(3), "input")) == b"new"


def test_bounds_of_regions_and_places(table: Regions, tmp_path: Path) -> None:
    make(tmp_path)
    for offset, size in ((0, 65), (1, 64), (64, 1)):
        with pytest.raises(InvalidInput, match="does not fit into 'memory', which has 64 bytes"):
            table.register(ME, "r", "memory", offset, size)
    for offset, size in (
        (-1, 1),
        (0, -1),
        (1 << 62, 1),
        (0, 1 << 63),
        (True, 1),
        ("0", 1),
        (0, None),
        (0, 1.0),
    ):
        with pytest.raises(InvalidInput, match="a count of bytes"):
            table.register(ME, "r", "memory", offset, size)
    for name in ("", "x" * 257, "\ud800", 7):
        with pytest.raises(InvalidInput, match="name"):
            table.register(ME, name, "memory", 0, 1)
    table.register(ME, "r", "memory", 32, 32)
    for good in ((32, None), (32, 0), (0, 32), (1, 31)):
        assert table.place(ME, parameters(*good), "input").size == good[0]
    for wrong in ((33, None), (32, 1), (1, 32)):
        with pytest.raises(InvalidInput, match="Invalid offset"):
            table.place(ME, parameters(*wrong), "input")
    for wrong in ((-1, 0), (1 << 62, 1 << 62), ("8", 0), (8, -1), (True, 0)):
        with pytest.raises(InvalidInput, match="a count of bytes"):
            table.place(ME, parameters(*wrong), "input")
    with pytest.raises(InvalidInput, match="no parameter shared_memory_byte_size"):
        table.place(ME, {"shared_memory_region": "r"}, "input")


def test_memory_that_shrinks_is_an_error_and_no_signal(table: Regions, tmp_path: Path) -> None:
    path = make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    place = table.place(ME, parameters(64), "input")
    os.truncate(path, 10)
    with pytest.raises(InvalidInput, match="has become shorter"):
        read(table, ME, place)
    with pytest.raises(InvalidInput, match="has become shorter"):
        write(table, ME, place, bytes(64))
    assert path.stat().st_size == 10, "and it is not made longer again"
    path.unlink()
    for call in (lambda: read(table, ME, place), lambda: write(table, ME, place, b"x")):
        with pytest.raises(InvalidInput, match="there is no"):
            call()


def test_there_are_so_many_regions_and_no_more(
    table: Regions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    for number in range(OWNER_REGIONS_MAX):
        table.register(ME, str(number), "memory", 0, 1)
    with pytest.raises(Refused, match=f"user {ME} has {OWNER_REGIONS_MAX} shared memory regions"):
        table.register(ME, "one more", "memory", 0, 1)
    table.unregister(ME, "7")
    table.register(ME, "one more", "memory", 0, 1)
    assert REGIONS_MAX > OWNER_REGIONS_MAX, "one user does not take all"
    monkeypatch.setattr(regions.bounds, "OWNER_REGIONS_MAX", REGIONS_MAX + 1)
    for number in range(REGIONS_MAX - OWNER_REGIONS_MAX):
        table.register(ME, f"more {number}", "memory", 0, 1)
    with pytest.raises(Refused, match=f"the gateway has {REGIONS_MAX}"):
        table.register(ME, "two more", "memory", 0, 1)
    table.unregister(ME, "")
    table.register(ME, "r", "memory", 0, 1)


def names(table: Regions) -> list[str]:
    return [region.name for region in table.status(ME, "")]


def test_what_a_dead_caller_left_is_forgotten(table: Regions, tmp_path: Path) -> None:
    """A file that a process maps, as callers do while they run; a file that was deleted; a file that nobody
    holds."""
    for name in ("held", "gone", "left"):
        make(tmp_path, name)
        table.register(ME, name, name, 0, 64)
    with open(tmp_path / "held", "r+b") as file, mmap.mmap(file.fileno(), 64) as mapped:
        file.close()
        (tmp_path / "gone").unlink()
        table.sweep()
        assert names(table) == ["held", "left"], "a caller may be between two uses"
        for _ in range(REGION_UNHELD_SWEEPS):
            table.sweep()
        assert names(table) == ["held"]
        assert mapped[3] == 3
    assert (tmp_path / "left").exists(), "a file is its owner's"
    for _ in range(REGION_UNHELD_SWEEPS):
        table.sweep()
    assert names(table) == []


def test_without_a_descriptor_left_nothing_is_forgotten(
    table: Regions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_descriptor)
        for _ in range(REGION_UNHELD_SWEEPS):
            table.sweep()
        with pytest.raises(Refused, match="Too many open files"):
            table.register(ME, "s", "memory", 0, 64)
    assert names(table) == ["r"]


def test_a_region_that_is_used_between_two_sweeps_stays(table: Regions, tmp_path: Path) -> None:
    path = make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    for _ in range(3):
        for _ in range(REGION_UNHELD_SWEEPS - 1):
            table.sweep()
        with open(path, "rb"):
            table.sweep()
    assert names(table) == ["r"]


# ----- one request ---------------------------------------------------------------------------------


class Held:
    def __init__(self) -> None:
        self.now = self.most = 0

    def __call__(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def test_a_request_counts_what_it_reads_and_reads_no_more_than_a_request_may(
    table: Regions, tmp_path: Path
) -> None:
    make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    held = Held()
    shared = Shared(table, lambda: ME, held, 100)
    shared.input(parameters(64), tensors.UINT8, [64], "a", 1)
    with pytest.raises(TooLarge, match="more than 100 bytes"):
        shared.input(parameters(64), tensors.UINT8, [64], "b", 2)
    with pytest.raises(InvalidInput, match="takes 12 bytes, got 8"):
        shared.input(parameters(8), tensors.FLOAT, [3], "c", 2)
    frames = [b"sent", b""]
    asyncio.run(shared.read(frames))
    assert frames == [b"sent", bytes(range(64))]
    shared.release()
    assert (held.now, held.most) == (0, 64)


def test_an_output_is_written_where_it_fits(table: Regions, tmp_path: Path) -> None:
    path = make(tmp_path)
    table.register(ME, "r", "memory", 0, 64)
    shared = Shared(table, lambda: ME, Held(), 100)

    def delivered(*outputs: tuple[str, bytes]) -> list[str]:
        chosen = [[name, tensors.UINT8, [len(data)], number] for number, (name, data) in enumerate(outputs)]
        return list(asyncio.run(shared.deliver(chosen, [data for _, data in outputs])))

    assert delivered(("y", b"12345678")) == [], "it was not asked for there"
    shared.output(parameters(8, 8), "y")
    assert delivered(("z", b"123456789"), ("y", b"1234")) == ["y"]
    assert path.read_bytes()[8:16] == b"1234" + bytes(range(12, 16))
    with pytest.raises(InvalidInput, match=r"for output 'y' \(8 bytes\) should be at least 9 bytes"):
        delivered(("y", b"123456789"))


def test_where_shared_memory_is_off_a_request_for_it_is_refused() -> None:
    shared = Shared(None, lambda: ME, Held(), 100)
    with pytest.raises(Unsupported, match="--shared-memory"):
        shared.input(parameters(), tensors.UINT8, [8], "x", 0)
    with pytest.raises(Unsupported, match="--shared-memory"):
        shared.output(parameters(), "y")


# ----- who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-Forwarded-For", "forwarded", "Via", "Origin"])
def test_who_asks_through_a_proxy_or_from_a_page_is_nobody(header: str) -> None:
    caller = Caller(Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2), ["Accept", header])
    with pytest.raises(Forbidden, match=f"the header {header}"):
        caller.user()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.0.2.1", "no address", ""])
def test_a_connection_that_is_not_here_is_nobodys(host: str) -> None:
    assert callers.user_of(Endpoint(host, 1), Endpoint(host, 2)) is None
    with pytest.raises(Forbidden, match="programs on the gateway's machine"):
        Caller(Endpoint(host, 1), Endpoint(host, 2), []).user()


def test_a_place_is_only_written_as_far_as_it_goes(table: Regions, tmp_path: Path) -> None:
    found = make(tmp_path).stat()
    region = Region("r", "memory", 0, 64, (found.st_dev, found.st_ino))
    with pytest.raises(AssertionError):
        write(table, ME, RegionPlace(region, 0, 4), b"12345")
