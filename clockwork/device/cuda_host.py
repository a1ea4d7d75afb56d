"""The host store of CUDA devices: laid-out weights in pinned memory, once for all devices of a process.

One of two: whatever is prepared is there (PinnedFiles), or what the controller has ordered to be there, within a
budget (BudgetedHost). Pinning memory stalls a GPU that serves, so that all of it is pinned at start. Called from the worker's loop and from the thread that prepares.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from clockwork.config import machine_bytes
from clockwork.device._cuda_host import HostCopy, HostPages, Link
from clockwork.device._cudriver import CudaError, PinnedBytes
from clockwork.device.cuda_memory import DeviceMemory
from clockwork.errors import ConfigError


class HostStore(abc.ABC):
    """What both have: pages in one piece of pinned memory, which is taken when the store is made, and nothing after.

    memories: of some of the devices, and the store's own: they go when the last device has left. What one has pinned is
    every device's to use. wanted_bytes: rounded down to whole pages. Raises ConfigError for less than one, or more than
    can be pinned.
    """

    budget_bytes = 0  # of a store with a budget
    staging: PinnedBytes | None = None  # a page for a model that is not in the store and is tried

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        self._memories = memories
        self.link = Link()
        self.page_bytes = page_bytes
        self._devices = 0
        self._lock = threading.Lock()
        count = wanted_bytes // page_bytes
        self.pinned_bytes = count * page_bytes
        try:
            if count < 1:
                raise ConfigError(
                    f"a host store of {wanted_bytes} bytes has no room for one page of {page_bytes}"
                )
            memories[0].make_current()
            self._pinned = memories[0].allocate_host(self.pinned_bytes)
        except (ConfigError, CudaError, MemoryError) as error:
            for memory in memories:
                memory.close()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"cannot pin a host store of {self.pinned_bytes} bytes, where machine or container have "
                f"{machine_bytes()}: {error} (--pinned-bytes or --host-bytes say how much)"
            ) from None
        self._pages = HostPages(self._pinned, page_bytes, count)

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
        with contextlib.suppress(CudaError):  # its context broke, and it goes with that
            self._memories[0].make_current()
            self._memories[0].release_host(self._pinned)
            if self.staging is not None:
                self._memories[0].release_host(self.staging)
        for memory in self._memories:
            memory.close()

    @abc.abstractmethod
    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> HostCopy:
        """The weights of a model, or where they will be; to be given back with drop().

        page_bytes: of each page of its file, how much is weights. Raises OSError, InvalidModel.
        """

    @abc.abstractmethod
    def drop(self, model_id: int, path: Path) -> None:
        """Give back what take() gave; its pages go with its last user."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Forget what was fetched, and is being fetched."""

    @property
    def used_bytes(self) -> int:
        """What models have of it."""
        return self._pages.used_bytes


class PinnedFiles(HostStore):
    """Whatever is prepared is there, a file once however many models and devices share it."""

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        super().__init__(memories, page_bytes, wanted_bytes)
        self._files: dict[Path, _Placed] = {}

    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> HostCopy:
        with self._lock:  # while a file is read; nobody waits for it but who prepares or forgets
            found = self._files.get(path)
            if found is None:
                found = _Placed(HostCopy(page_bytes, os.fsencode(path), self._pages, is_fixed=True))
                try:
                    found.copy.read()
                except MemoryError:
                    free, size = self.pinned_bytes - self.used_bytes, len(page_bytes) * self.page_bytes
                    raise MemoryError(
                        f"the weights take {size} bytes of pinned memory, of which {free} of {self.pinned_bytes} are free: "
                        "start the worker with a larger --pinned-bytes, or with --host-bytes, into which models are "
                        "fetched as they are needed"
                    ) from None
                self._files[path] = found
            found.users += 1
            return found.copy

    def drop(self, model_id: int, path: Path) -> None:
        with self._lock:
            found = self._files[path]
            found.users -= 1
            if found.users == 0:
                found.copy.abandon()
                del self._files[path]

    def clear(self) -> None:
        """Nothing is fetched into it."""


class BudgetedHost(HostStore):
    """A model has pages from its FETCH to its DROP."""

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        super().__init__(memories, page_bytes, wanted_bytes)
        self.budget_bytes = self.pinned_bytes
        self._copies: dict[int, _Placed] = {}
        try:
            self.staging = memories[0].allocate_host(page_bytes)
        except (CudaError, MemoryError) as error:
            self.close()
            raise ConfigError(f"cannot pin a page of {page_bytes} bytes: {error}") from None

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


@dataclasses.dataclass(slots=True)
class _Placed:
    copy: HostCopy
    users: int = 0
