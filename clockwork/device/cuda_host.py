"""The host store of CUDA devices: laid-out weights in pinned memory, once for all devices of a process.

There are two kinds. PinnedFiles holds all prepared models. BudgetedHost holds, within a budget, the models
that the controller has fetched. Pinning memory stalls a GPU that serves, so all memory is pinned at the
start. The worker's loop and the opening thread call the store.
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
from clockwork.device._cuda_host import HostLink, HostPages, WeightsCopy
from clockwork.device._cudriver import CudaError, PinnedBytes
from clockwork.device.cuda_memory import DeviceMemory
from clockwork.errors import ConfigError


class HostStore(abc.ABC):
    """The base of both stores: pages in one block of pinned memory, which is allocated once, at the start.

    memories: the store's own handles of some of the devices, closed when the last device has left. Memory
    pinned by one is usable by all devices. wanted_bytes: rounded down to whole pages. Raises ConfigError for
    less than a page, or more than can be pinned.
    """

    budget_bytes = 0  # 0 means a store without a budget
    staging: PinnedBytes | None = None  # a page for the trial of a model outside the store

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        self._memories = memories
        self.link = HostLink()
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
        """Count one more device that uses the store."""
        with self._lock:
            self._devices += 1

    def leave(self) -> None:
        """Count one device less. The device must have dropped all that it took. Raises CudaError."""
        with self._lock:
            self._devices -= 1
            if self._devices == 0:
                self.close()

    def close(self) -> None:
        """Release the memory, once no device is left. Raises CudaError."""
        with contextlib.suppress(CudaError):  # a broken context's memory is freed with the context
            self._memories[0].make_current()
            self._memories[0].release_host(self._pinned)
            if self.staging is not None:
                self._memories[0].release_host(self.staging)
        for memory in self._memories:
            memory.close()

    @abc.abstractmethod
    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> WeightsCopy:
        """Return the host copy of a model's weights, filled or to be filled; drop() gives it back.

        page_bytes: the bytes of weights in each page of its file. Raises OSError, InvalidModel.
        """

    @abc.abstractmethod
    def drop(self, model_id: int, path: Path) -> None:
        """Give back the copy of take(). Its pages are freed with its last user."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Forget all fetched models, also those that are being fetched."""

    @property
    def used_bytes(self) -> int:
        """The bytes that models use."""
        return self._pages.used_bytes


class PinnedFiles(HostStore):
    """A store of all prepared models. Each file is held once, however many models and devices share it."""

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        super().__init__(memories, page_bytes, wanted_bytes)
        self._files: dict[Path, _Placed] = {}

    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> WeightsCopy:
        with self._lock:  # held while a file is read; only preparing and forgetting wait for it
            found = self._files.get(path)
            if found is None:
                found = _Placed(WeightsCopy(page_bytes, os.fsencode(path), self._pages, is_fixed=True))
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
        """Do nothing: no FETCH uses this store."""


class BudgetedHost(HostStore):
    """A store in which a model has pages from its FETCH to its DROP."""

    def __init__(self, memories: Sequence[DeviceMemory], page_bytes: int, wanted_bytes: int) -> None:
        super().__init__(memories, page_bytes, wanted_bytes)
        self.budget_bytes = self.pinned_bytes
        self._copies: dict[int, _Placed] = {}
        try:
            self.staging = memories[0].allocate_host(page_bytes)
        except (CudaError, MemoryError) as error:
            self.close()
            raise ConfigError(f"cannot pin a page of {page_bytes} bytes: {error}") from None

    def take(self, model_id: int, path: Path, page_bytes: list[int]) -> WeightsCopy:
        with self._lock:
            placed = self._copies.get(model_id)
            if placed is None:
                placed = self._copies[model_id] = _Placed(
                    WeightsCopy(page_bytes, os.fsencode(path), self._pages)
                )
            placed.users += 1
            return placed.copy

    def drop(self, model_id: int, path: Path) -> None:
        with self._lock:
            placed = self._copies[model_id]
            placed.users -= 1
            if placed.users == 0:
                placed.copy.abandon()  # no read is under way: its users had no running action
                del self._copies[model_id]

    def clear(self) -> None:
        with self._lock:
            for placed in self._copies.values():
                placed.copy.abandon()


@dataclasses.dataclass(slots=True)
class _Placed:
    copy: WeightsCopy
    users: int = 0
