"""The host store of CUDA devices: laid-out weights in pinned memory, once for all devices of a process.

One of two: whatever is prepared is there (PinnedFiles), or what the controller has ordered to be there, within a
budget (BudgetedHost). Called from the worker's loop and from the thread that prepares.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from clockwork.device._cuda_host import HostCopy, HostPages, Link
from clockwork.device._cudriver import CudaError, PinnedBytes
from clockwork.device.cuda_memory import DeviceMemory
from clockwork.errors import ConfigError


class HostStore(abc.ABC):
    """What both have. memories: of some of the devices, and the store's own: they go when the last device has left.

    What one has pinned is every device's to use."""

    budget_bytes = 0  # of a store with a budget

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int) -> None:
        self._memories = memories
        self.link = Link()
        self.page_bytes = page_bytes
        self._devices = 0
        self._lock = threading.Lock()

    def join(self) -> None:
        """One more device uses it."""
        with self._lock:
            self._devices += 1

    def leave(self) -> None:
        """A device that has dropped all that it took needs it no more. Raises CudaError."""
        with self._lock:
            self._devices -= 1
            if self._devices == 0:
                self.close()

    def close(self) -> None:
        """Without any device. Raises CudaError."""
        for memory in self._memories:
            memory.close()

    @abc.abstractmethod
    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> HostCopy:
        """The weights of a model, or where they will be; to be given back with drop().

        page_bytes: of each page of its file, how much is weights. Raises OSError, MemoryError, CudaError. The thread's
        current context may become the store's.
        """

    @abc.abstractmethod
    def drop(self, model_id: int, path: Path) -> None:
        """Give back what take() gave; the memory goes with its last user. Raises CudaError."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Forget what was fetched, and is being fetched."""

    @property
    @abc.abstractmethod
    def pinned_bytes(self) -> int:
        """For weights."""

    @property
    @abc.abstractmethod
    def used_bytes(self) -> int:
        """Of a budget, what models have."""


class PinnedFiles(HostStore):
    """Whatever is prepared is there, a file once however many models and devices share it."""

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int) -> None:
        super().__init__(memories, page_bytes)
        self._files: dict[Path, _Pinned] = {}
        self._pinned_bytes = 0

    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> HostCopy:
        if not page_bytes:
            return HostCopy([])
        with self._lock:  # while a file is read; nobody waits for it but who prepares or forgets
            found = self._files.get(path)
            if found is None:
                size = len(page_bytes) * self.page_bytes
                pinned, memory = self._pin(size)
                try:
                    _read(path, pinned)
                except BaseException:
                    memory.release_host(pinned)
                    raise
                found = self._files[path] = _Pinned(pinned, memory)
                self._pinned_bytes += size
            found.users += 1
            return HostCopy(page_bytes, memory=found.pinned, stride=self.page_bytes)

    def drop(self, model_id: int, path: Path) -> None:
        with self._lock:
            found = self._files.get(path)
            if found is None:
                return  # a model without weights
            found.users -= 1
            if found.users == 0:
                del self._files[path]
                self._pinned_bytes -= found.pinned.size
                with contextlib.suppress(CudaError):  # its context broke, and it goes with that
                    found.memory.make_current()
                    found.memory.release_host(found.pinned)

    def _pin(self, size: int) -> tuple[PinnedBytes, DeviceMemory]:
        """Memory, and whose it is: the first device's whose context is whole."""
        *others, last = self._memories
        for memory in others:
            with contextlib.suppress(CudaError):
                memory.make_current()
                return memory.allocate_host(size), memory
        last.make_current()
        return last.allocate_host(size), last

    def clear(self) -> None:
        """Nothing is fetched into it."""

    @property
    def pinned_bytes(self) -> int:
        return self._pinned_bytes

    @property
    def used_bytes(self) -> int:
        return 0


class BudgetedHost(HostStore):
    """Pinned pages, all taken when it is made; a model has some from its FETCH to its DROP.

    budget_bytes: rounded down to whole pages. Raises ConfigError for less than one, or more than can be pinned.
    """

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, budget_bytes: int) -> None:
        super().__init__(memories, page_bytes)
        memory = self._memories[0]
        count = budget_bytes // page_bytes
        if count < 1:
            raise ConfigError(
                f"a host store of {budget_bytes} bytes has no room for one page of {page_bytes}"
            )
        self.budget_bytes = count * page_bytes
        try:
            memory.make_current()
            self._pinned = memory.allocate_host(self.budget_bytes)
        except (CudaError, MemoryError) as error:
            raise ConfigError(f"cannot pin a host store of {self.budget_bytes} bytes: {error}") from None
        self._pages = HostPages(self._pinned, page_bytes, count)
        self._copies: dict[int, _Placed] = {}

    def close(self) -> None:
        with contextlib.suppress(CudaError):  # its context broke, and it goes with that
            self._memories[0].make_current()
            self._memories[0].release_host(self._pinned)
        super().close()

    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> HostCopy:
        with self._lock:
            one = self._copies.get(model_id)
            if one is None:
                one = self._copies[model_id] = _Placed(HostCopy(page_bytes, os.fsencode(path), self._pages))
            one.users += 1
            return one.copy

    def drop(self, model_id: int, path: Path) -> None:
        with self._lock:
            one = self._copies[model_id]
            one.users -= 1
            if one.users == 0:
                one.copy.abandon()  # nothing reads into it any more: who knew it had no action under way
                del self._copies[model_id]

    def clear(self) -> None:
        with self._lock:
            for one in self._copies.values():
                one.copy.abandon()

    @property
    def pinned_bytes(self) -> int:
        return self.budget_bytes

    @property
    def used_bytes(self) -> int:
        return self._pages.used_bytes


@dataclasses.dataclass(slots=True)
class _Pinned:
    pinned: PinnedBytes
    memory: DeviceMemory
    users: int = 0


@dataclasses.dataclass(slots=True)
class _Placed:
    copy: HostCopy
    users: int = 0


def _read(path: Path, pinned: PinnedBytes) -> None:
    """Fill memory with a file's first bytes."""
    with open(path, "rb", buffering=0) as file, memoryview(pinned) as target:
        done = 0
        while done < pinned.size:
            count = file.readinto(target[done:])
            if not count:
                raise OSError(f"{path} ends at {done} bytes of {pinned.size}")
            done += count
