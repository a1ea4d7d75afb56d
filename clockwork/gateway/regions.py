"""Triton's system shared memory: tensors in POSIX shared memory that the caller made, in place of a request's
body.

A region belongs to the user who registered it (callers.py). The memory, a file in /dev/shm, must belong to
the same user. Other users see neither. The gateway opens the file for each request, and uses pread() and
pwrite(). With a mapping, the gateway would end with SIGBUS when the caller truncates the file; a descriptor
that stays open would keep memory alive that its caller has freed. A request therefore reads a copy that
cannot change, and between requests the gateway keeps only the region's row in a table.

The owner of the memory can delay a copy, for example a write while the owner makes the file larger. Therefore
threads beside the event loop copy, in turns of the owners (system/copies.py). Opening a file never waits:
only files on the mount of FOLDER itself are opened, which is memory, and no file with a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clockwork.config import COPY_PIECE_BYTES
from clockwork.config import gateway as bounds
from clockwork.errors import InvalidInput, Refused
from clockwork.gateway.errors import NotFound, TooLarge, Unsupported
from clockwork.gateway.listener import NO_ROOM
from clockwork.gateway.tensors import check_size
from clockwork.system.copies import Copies, Work
from clockwork.system.files import mount_of
from clockwork.wire.messages import NamedTensorRef, Reason
from clockwork.wire.telling import tell
from clockwork.wire.transport import Frame

FOLDER = Path("/dev/shm")  # The folder of the files of shm_open(3)
REGION = "shared_memory_region"
SIZE = "shared_memory_byte_size"
OFFSET = "shared_memory_offset"  # Parameters of a tensor in shared memory


@dataclasses.dataclass(slots=True)
class Region:
    """A part of a shared-memory file, under a name that its owner chose."""

    name: str
    key: str  # name as registered, with or without a leading slash
    offset: int
    byte_size: int
    file: tuple[int, int]  # device and inode, because another file may get the same key
    unheld: int = 0  # sweeps in a row in which no process had the file open or mapped

    def described(self) -> dict[str, Any]:
        """Return the region in the form of status answers."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class RegionPlace(NamedTuple):
    """The place of a tensor in a region."""

    region: Region
    offset: int  # bytes from the region's beginning
    size: int


class Regions:
    """The regions that callers have registered, by owner (a user id) and name."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._owners: dict[int, dict[str, Region]] = {}
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._copies = Copies(self._wake, "user")

    def register(self, owner: int, name: Any, key: Any, offset: Any, byte_size: Any) -> None:
        """Register memory that the user ``owner`` owns under a name.

        Raises InvalidInput, and Refused past the bounds.
        """
        name = _name(name)
        if not name:
            raise InvalidInput("a shared memory region needs a name")
        offset, byte_size = _count(offset, "offset"), _count(byte_size, "byte_size")
        file_name = _file_name(key)
        mine = self._owners.get(owner, {})
        old = mine.get(name)
        with self._opened(owner, file_name, key, os.O_RDWR) as descriptor:
            found = os.fstat(descriptor)
            file = (found.st_dev, found.st_ino)
            if old is not None and self._is_there(owner, old):
                raise InvalidInput(
                    f"shared memory region {name!r} is already in manager; unregister it first", name
                )
            if offset + byte_size > found.st_size:
                raise InvalidInput(
                    f"shared memory region {name!r} of {byte_size} bytes at offset {offset} does not fit into "
                    f"{key!r}, which has {found.st_size} bytes",
                    name, f"at most {found.st_size} bytes", f"{offset + byte_size} bytes",
                )  # fmt: skip
        if old is None:
            for count, most, whose in (
                (len(mine), bounds.OWNER_REGIONS_MAX, f"user {owner} has"),
                (self._count, bounds.REGIONS_MAX, "the gateway has"),
            ):
                if count >= most:
                    raise Refused(
                        f"{whose} {most} shared memory regions, which is the most", Reason.OVERLOADED.value
                    )
            self._count += 1
        self._owners.setdefault(owner, mine)[name] = Region(name, key, offset, byte_size, file)

    def unregister(self, owner: int, name: str) -> None:
        """Forget a region of the owner, or all regions of the owner if ``name`` is "".

        The region may be missing.
        """
        mine = self._owners.get(owner, {})
        for region_name in [name] if name else list(mine):
            if mine.pop(region_name, None) is not None:
                self._count -= 1
        if not mine:
            self._owners.pop(owner, None)

    def status(self, owner: int, name: str) -> list[Region]:
        """Return the owner's region of that name, or all regions of the owner if ``name`` is "".

        Raises NotFound.
        """
        mine = self._owners.get(owner, {})
        if not name:
            return list(mine.values())
        if name not in mine:
            raise NotFound(f"Unable to find system shared memory region: {name[:80]!r}")
        return [mine[name]]

    def place(self, owner: int, parameters: Mapping[str, Any], subject: str) -> RegionPlace:
        """Return the place that a tensor's parameters name. Raises InvalidInput."""
        name = _name(parameters.get(REGION))
        region = self._owners.get(owner, {}).get(name)
        if region is None:
            raise InvalidInput(
                f"{subject}: Unable to find shared memory region: {name[:80]!r}",
                expected="a region that the same user has registered", got=name[:80],
            )  # fmt: skip
        if SIZE not in parameters:
            raise InvalidInput(f"{subject} is in shared memory and has no parameter {SIZE}", expected=SIZE)
        size = _count(parameters[SIZE], f"parameter {SIZE} of {subject}")
        offset = _count(parameters.get(OFFSET, 0), f"parameter {OFFSET} of {subject}")
        if offset + size > region.byte_size:
            raise InvalidInput(
                f"{subject}: Invalid offset + byte size for shared memory region: {name!r} has {region.byte_size} "
                f"bytes, {size} at offset {offset} were asked for",
                expected=f"at most {region.byte_size}", got=str(offset + size),
            )  # fmt: skip
        return RegionPlace(region, offset, size)

    async def read(self, owner: int, places: Sequence[RegionPlace]) -> list[Frame]:
        """Return copies of the bytes at places.

        Raises InvalidInput where a file was removed or truncated, or where copying takes longer than
        REGION_COPY_S.
        """
        frames: list[Frame] = []
        await self._carry_out(owner, self._reading(owner, places, frames))
        return frames

    async def write(self, owner: int, places: Sequence[tuple[RegionPlace, Frame]]) -> None:
        """Copy the bytes of tensors to places, which are large enough. Raises as read()."""
        await self._carry_out(owner, self._writing(owner, places))

    def _reading(self, owner: int, places: Sequence[RegionPlace], frames: list[Frame]) -> Work:
        for place in places:
            frames.append(bytearray(place.size))
            region, left = place.region, memoryview(frames[-1])
            begin = region.offset + place.offset
            with self._of(owner, region, os.O_RDONLY) as descriptor:
                while left:
                    try:
                        count = os.preadv(descriptor, [left[:COPY_PIECE_BYTES]], begin)
                    except OSError as error:
                        raise _failed("read from", region, error) from None
                    if count == 0:
                        raise _too_short(region)
                    left, begin = left[count:], begin + count
                    yield

    def _writing(self, owner: int, places: Sequence[tuple[RegionPlace, Frame]]) -> Work:
        for place, frame in places:
            region, left = place.region, memoryview(frame).cast("B")
            assert left.nbytes <= place.size
            begin = region.offset + place.offset
            with self._of(owner, region, os.O_RDWR) as descriptor:
                while left:
                    # A write beyond the file's end would make the file longer again.
                    if os.fstat(descriptor).st_size < begin + left.nbytes:
                        raise _too_short(region)
                    try:
                        count = os.pwrite(descriptor, left[:COPY_PIECE_BYTES], begin)
                    except OSError as error:  # a sparse file, and no memory is left for its page
                        raise _failed("write to", region, error) from None
                    left, begin = left[count:], begin + count
                    yield

    async def _carry_out(self, owner: int, work: Work) -> None:
        """Run a copy beside the loop, and wait for its end. Raises InvalidInput."""
        self._loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = self._loop.create_future()
        copy = self._copies.submit(owner, work, done)
        try:
            async with asyncio.timeout(bounds.REGION_COPY_S):
                await done
        except TimeoutError:
            raise InvalidInput(
                f"the shared memory of user {owner} was not copied within {bounds.REGION_COPY_S:g} s",
                expected=f"at most {bounds.REGION_COPY_S:g} s",
            ) from None
        finally:
            self._copies.drop(copy)

    def _wake(self) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._take_copies)

    def _take_copies(self) -> None:
        for copy in self._copies.ended():
            if not copy.subject.done():
                if copy.error is not None:
                    copy.subject.set_exception(copy.error)
                else:
                    copy.subject.set_result(None)

    def close(self) -> None:
        """End the threads."""
        self._copies.close()

    def sweep(self) -> None:
        """Forget regions that their callers have abandoned.

        These are regions whose file was removed or replaced, and regions whose file no process has had open
        or mapped for REGION_UNHELD_SWEEPS sweeps. The file itself stays.
        """
        with contextlib.suppress(Refused):  # the next sweep tries again
            for owner, mine in list(self._owners.items()):
                for name, region in list(mine.items()):
                    region.unheld = 0 if self._is_held(owner, region) else region.unheld + 1
                    if region.unheld >= bounds.REGION_UNHELD_SWEEPS or not self._is_there(owner, region):
                        self.unregister(owner, name)

    # ----- files -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, owner: int, file_name: str, key: str, mode: int) -> Iterator[int]:
        """Return a descriptor of a shared-memory file that the owner owns.

        Raises InvalidInput, and Refused where this process can have no more descriptors.
        """
        with contextlib.ExitStack() as stack:

            def opened(path: Path | str, how: int) -> int:
                found = os.open(path, how | os.O_CLOEXEC)
                stack.callback(os.close, found)
                return found

            try:
                # O_PATH: opening a FIFO, a device or a file of a user's own file system may wait, or have an
                # effect.
                folder = opened(self._folder, os.O_PATH)
                seen = opened(self._folder / file_name, os.O_PATH | os.O_NOFOLLOW)
                if mount_of(seen) != mount_of(folder):
                    raise OSError(errno.EXDEV, "it is on another file system")
                found = os.fstat(seen)
                if stat.S_ISLNK(found.st_mode):
                    raise OSError(errno.ELOOP, "it is a symbolic link")
                # The answer tells the caller no more about another user's file than `ls` does.
                if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
                    raise InvalidInput(
                        f"Unable to open shared memory region: {key!r}: it is no shared memory of user {owner}, "
                        "whose program asks",
                        expected=f"memory of user {owner}", got=key,
                    )  # fmt: skip
                # O_NONBLOCK: opening a file with a lease fails at once.
                descriptor = opened(f"/proc/self/fd/{seen}", mode | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise Refused(
                        f"the gateway cannot open shared memory region {key!r} now: {error.strerror}",
                        Reason.OVERLOADED.value,
                    ) from None
                why = {
                    errno.ENOENT: f"there is no {self._folder / file_name} on the gateway's machine",
                    errno.EACCES: f"the gateway (user {os.geteuid()}) has no right to it",
                }.get(error.errno or 0, error.strerror)
                raise InvalidInput(f"Unable to open shared memory region: {key!r}: {why}", got=key) from None
            yield descriptor

    @contextlib.contextmanager
    def _of(self, owner: int, region: Region, mode: int) -> Iterator[int]:
        """Return a descriptor of the file for which a region was registered. Raises as _opened()."""
        with self._opened(owner, _file_name(region.key), region.key, mode) as descriptor:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != region.file:
                raise InvalidInput(
                    f"the memory {region.key!r} of shared memory region {region.name!r} was made anew since the region "
                    "was registered; register it again",
                    got=region.key,
                )  # fmt: skip
            yield descriptor

    def _is_there(self, owner: int, region: Region) -> bool:
        try:
            with self._of(owner, region, os.O_RDONLY):
                return True
        except InvalidInput:
            return False

    def _is_held(self, owner: int, region: Region) -> bool:
        """Whether any process may have a region's file open or mapped.

        The kernel grants a write lease on a file only while no other process has it open. Where the kernel
        grants no leases (on another user's file), the answer is True.
        """
        try:
            with self._of(owner, region, os.O_RDONLY) as descriptor:
                # A process that opens the file meanwhile waits some microseconds until the lease is released.
                # The kernel sends the holder a signal, by default SIGIO, which ends a process.
                fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        except InvalidInput:
            return False
        return False


class Shared:
    """The inputs of a request that are in shared memory, and the places there for its outputs."""

    __slots__ = ("_find_owner", "_held", "_hold", "_inputs", "_limit", "_outputs", "_owner", "_regions")

    def __init__(
        self, regions: Regions | None, find_owner: Callable[[], int], hold: Callable[[int], None], limit: int
    ) -> None:
        """find_owner: returns the caller's user id; raises where the caller may not use shared memory.

        hold: counts bytes of inputs; raises Refused past its bound. limit: the most bytes of all inputs.
        """
        self._regions = regions
        self._find_owner = find_owner
        self._owner: int | None = None
        self._hold = hold
        self._held = 0
        self._limit = limit
        self._inputs: dict[int, RegionPlace] = {}  # places by the number of the frame
        self._outputs: dict[str, RegionPlace] = {}

    def input(
        self, parameters: Mapping[str, Any], code: int, shape: Sequence[int], name: str, frame: int
    ) -> None:
        """Note the place of an input.

        frame: the number of its frame. Raises InvalidInput, TooLarge or Refused.
        """
        regions, owner = self._known(f"input {name!r}")
        place = regions.place(owner, parameters, f"input {name!r}")
        check_size(code, shape, place.size, name)
        if self._held + place.size > self._limit:
            raise TooLarge(
                f"the request's inputs in shared memory have more than {self._limit} bytes, which are the most"
            )
        self._hold(place.size)
        self._held += place.size
        self._inputs[frame] = place

    async def read(self, frames: list[Frame]) -> None:
        """Read the inputs from shared memory into ``frames``. Raises InvalidInput."""
        if self._inputs:
            regions, owner = self._known("an input")
            found = await regions.read(owner, list(self._inputs.values()))
            for number, frame in zip(self._inputs, found):
                frames[number] = frame

    def output(self, parameters: Mapping[str, Any], name: str) -> None:
        """Note the place for an output. Raises InvalidInput."""
        regions, owner = self._known(f"output {name!r}")
        self._outputs[name] = regions.place(owner, parameters, f"output {name!r}")

    async def deliver(self, chosen: Sequence[NamedTensorRef], frames: Sequence[Frame]) -> Collection[str]:
        """Write outputs to their places in shared memory, and return the names of these outputs.

        The answer has only the shape of these outputs, because perf_analyzer takes any parameter of an output
        to mean binary data. Raises InvalidInput where an output does not fit.
        """
        found = {}
        for name, _, _, frame in chosen:
            place = self._outputs.get(name)
            if place is None:
                continue
            size = memoryview(frames[frame]).nbytes
            if size > place.size:
                raise InvalidInput(
                    f"shared memory size specified with the request for output {name!r} ({place.size} bytes) should be at "
                    f"least {size} bytes to hold the results",
                    name, f"at least {size} bytes", f"{place.size} bytes",
                )  # fmt: skip
            found[name] = (place, frames[frame])
        if found:
            regions, owner = self._known("an output")
            await regions.write(owner, list(found.values()))
        return found

    def release(self) -> None:
        """Stop counting the inputs' bytes."""
        self._hold(-self._held)
        self._held = 0

    def _known(self, subject: str) -> tuple[Regions, int]:
        if self._regions is None:
            raise Unsupported(f"{subject}: {OFF_HERE}")
        if self._owner is None:
            self._owner = self._find_owner()
        return self._regions, self._owner


OFF_HERE = "shared memory is off: it is on where the gateway listens on loopback, or was started with --shared-memory"


NO_CUDA_MEMORY = "CUDA shared memory is not supported; system shared memory is"


def _name(value: Any) -> str:
    if type(value) is not str or len(value) > bounds.REGION_NAME_CHARS_MAX or not _is_text(value):
        raise InvalidInput(
            f"the name of a shared memory region is a text of at most {bounds.REGION_NAME_CHARS_MAX} characters, "
            f"got {tell(value)}",
            got=tell(value),
        )  # fmt: skip
    return value


def _is_text(value: str) -> bool:
    """Whether UTF-8 can encode the text: JSON can contain half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(value: Any, subject: str) -> int:
    if type(value) is not int or not 0 <= value <= bounds.REGION_BYTES_MAX:
        raise InvalidInput(
            f"{subject} is a count of bytes from 0 to {bounds.REGION_BYTES_MAX}, got {tell(value)}",
            expected=f"0 to {bounds.REGION_BYTES_MAX}", got=tell(value),
        )  # fmt: skip
    return value


def _file_name(key: Any) -> str:
    """Return the name of a key's file in /dev/shm, by the rules of shm_open(3). Raises InvalidInput."""
    name = key.removeprefix("/") if type(key) is str and _is_text(key) else ""
    if (
        not 0 < len(name.encode()) <= bounds.SHARED_MEMORY_KEY_BYTES_MAX
        or "/" in name
        or "\0" in name
        or name in (".", "..")
    ):
        raise InvalidInput(
            f"the key of a shared memory region is the name that shm_open() was given: 1 to "
            f"{bounds.SHARED_MEMORY_KEY_BYTES_MAX} bytes without a slash inside, got {tell(key)}",
            expected="a name of shared memory", got=tell(key),
        )  # fmt: skip
    return name


def _failed(how: str, region: Region, error: OSError) -> InvalidInput:
    return InvalidInput(f"cannot {how} shared memory region {region.name!r}: {error.strerror}")


def _too_short(region: Region) -> InvalidInput:
    return InvalidInput(
        f"the memory {region.key!r} of shared memory region {region.name!r} has become shorter than the region",
        got=region.key,
    )
