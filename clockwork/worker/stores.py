"""A worker's store of prepared models with a bound (--store-bytes): what lies there, and what still fits.

The controller decides which models lie in such a store, by FETCH and DROP. The directory is this worker's
alone. At the start, leftovers of a crash are removed, and the rest is counted. A model that lies there is
claimed when the controller names it; what it has not named when all its announcements have been looked up is
removed. Counted are the bytes of prepared models, and of the programs that they share.

Models are removed by a thread of their own: files of gigabytes take a while. Their bytes count until then.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from clockwork.errors import ConfigError
from clockwork.formats.durable import remove_tree
from clockwork.formats.prepared import read_body
from clockwork.system.locks import lock_file

log = logging.getLogger("clockwork.worker")

LOCK_FILE = "store.lock"
BUNDLES_PREFIX = ".incoming-bundles-"  # of the directory in which worker.bundles has them arrive


class Removed(NamedTuple):
    """The end of a removal. failure: a sentence; "" if nothing of it is left."""

    path: Path
    failure: str


@dataclasses.dataclass(slots=True)
class _Lying:
    """A prepared model on the disk."""

    bytes: int
    program: str  # the name of the program that it shares with others; "": it has none
    is_claimed: bool = False


class BoundedStore:
    """The prepared models of a store with a bound. Every method belongs to the loop's thread.

    wake: has the loop call poll() soon, from any thread.
    """

    def __init__(self, root: Path, bytes_max: int, wake: Callable[[], None]) -> None:
        """Lock the store, remove a crash's leftovers, and count the rest. Raises ConfigError, OSError."""
        self.bytes_max = bytes_max
        self._root = root
        self._wake = wake
        self._lock = _lock(root)
        self._models: dict[Path, _Lying] = {}
        self._programs: dict[str, int] = {}  # bytes, by name
        self._users: dict[str, dict[Path, None]] = {}  # models on the disk, by program
        self._claims: dict[str, int] = {}  # the number of claimed models, by program
        self._used = self._claimed = 0  # bytes of all that lies there, and of what is claimed
        self._claimed_count = 0
        self._reserved: dict[int, int] = {}  # bytes of what is coming, by model id
        self._removing: set[Path] = set()
        self._stuck: set[Path] = set()  # what could not be removed
        self._ended: deque[tuple[Path, Future[str]]] = deque()
        self._thread = ThreadPoolExecutor(1, "store")
        self._survey()

    def close(self) -> None:
        """Finish the removals, and give the store to another worker."""
        self._thread.shutdown()
        os.close(self._lock)

    # ----- what lies there ---------------------------------------------------------------------

    @property
    def used(self) -> int:
        """The bytes of all that lies there."""
        return self._used

    @property
    def count(self) -> int:
        """The number of claimed models."""
        return self._claimed_count

    def claim(self, directory: Path) -> bool:
        """Count a prepared model as one of the controller's. False: the models claimed leave no room for it.

        A model that has just been written is measured now. False as well while it is being removed."""
        if directory in self._removing:
            return False
        if directory not in self._models:
            self._enter(directory)
        lying = self._models[directory]
        if lying.is_claimed:
            return True
        is_first = bool(lying.program) and not self._claims.get(lying.program)
        size = lying.bytes + (self._programs[lying.program] if is_first else 0)
        if self._claimed + size > self.bytes_max:
            return False
        lying.is_claimed = True
        self._claimed += size
        self._claimed_count += 1
        if lying.program:
            self._claims[lying.program] = self._claims.get(lying.program, 0) + 1
        return True

    def disclaim_all(self) -> None:
        """Count no model as the controller's, and give all room back: another controller names its own."""
        for lying in self._models.values():
            if lying.is_claimed:
                self._disclaim(lying)
        self._reserved.clear()

    def _disclaim(self, lying: _Lying) -> None:
        lying.is_claimed = False
        self._claimed -= lying.bytes
        self._claimed_count -= 1
        if lying.program:
            self._claims[lying.program] -= 1
            if not self._claims[lying.program]:
                del self._claims[lying.program]
                self._claimed -= self._programs[lying.program]

    def unclaimed(self) -> list[Path]:
        """The models that the controller has not named."""
        return [
            path
            for path, lying in self._models.items()
            if not lying.is_claimed and path not in self._removing
        ]

    # ----- what comes --------------------------------------------------------------------------

    def reserve(self, model_id: int, size: int) -> str:
        """Keep room for a model that comes. Returns a sentence if there is none, else ""."""
        free = self.bytes_max - self._used - sum(self._reserved.values())
        if size > free:
            return f"it takes {size} bytes, and the store of {self.bytes_max} bytes has {max(free, 0)} left"
        self._reserved[model_id] = self._reserved.get(model_id, 0) + size
        return ""

    def release(self, model_id: int) -> None:
        """Give the room back: the model lies there and has been claimed, or does not come."""
        self._reserved.pop(model_id, None)

    # ----- what goes ---------------------------------------------------------------------------

    def remove(self, directory: Path) -> None:
        """Remove a prepared model; poll() returns the end."""
        lying = self._models.get(directory)
        if lying is not None and lying.is_claimed:
            self._disclaim(lying)
        self._remove(directory)

    def discard(self, path: Path) -> None:
        """Remove a package, whose bytes do not count, or a program. A path that could not be removed stays
        until the next start."""
        if path not in self._stuck:
            self._remove(path)

    def remove_strays(self) -> None:
        """Remove what lies among the models and is none: damaged ones, and what was taken or made for a model
        that was dropped meanwhile. Not while a model is being prepared or taken."""
        for entry in (self._root / "prepared").iterdir():
            is_kept = (
                entry in self._models or entry in self._removing or entry.name.startswith(BUNDLES_PREFIX)
            )
            if entry.is_dir() and not is_kept:
                self.discard(entry)

    def sweep(self) -> None:
        """Remove programs that no model uses. Not while a model is being prepared or taken: its program lies
        there before it does."""
        for name in [name for name in self._programs if not self._users.get(name)]:
            self.discard(self._root / "programs" / name)

    @property
    def is_removing(self) -> bool:
        """Whether something is being removed."""
        return bool(self._removing)

    def poll(self) -> list[Removed]:
        """Return the removals that ended since the last call."""
        found = []
        for _ in range(len(self._ended)):
            path, future = self._ended.popleft()
            self._removing.discard(path)
            failure = future.result()
            if failure:
                self._stuck.add(path)
                log.error("%s", failure)
            elif path.parent.name == "programs":
                self._used -= self._programs.pop(path.name)
                self._users.pop(path.name, None)
            else:
                self._leave(path)
            found.append(Removed(path, failure))
        return found

    # ----- inside ------------------------------------------------------------------------------

    def _remove(self, path: Path) -> None:
        if path in self._removing:
            return

        def end(future: Future[str]) -> None:
            self._ended.append((path, future))
            self._wake()

        self._removing.add(path)
        self._thread.submit(_try_to_remove, path).add_done_callback(end)

    def _survey(self) -> None:
        """Remove the leftovers of a crash, and count the rest."""
        for name in ("prepared", "programs", "packages"):
            folder = self._root / name
            folder.mkdir(parents=True, exist_ok=True)
            for entry in folder.iterdir():
                if not entry.is_dir() or entry.is_symlink():
                    continue
                # A package is fetched for a preparation, and goes with its end
                if entry.name.startswith(".") or name == "packages":
                    shutil.rmtree(entry)
                elif name == "prepared":
                    self._enter(entry)
                else:
                    self._enter_program(entry.name)

    def _enter(self, directory: Path) -> None:
        try:
            program = str(read_body(directory)[0].get("program") or "")
        except (OSError, ValueError):  # damaged: the model is not found there when the controller names it
            program = ""
        is_name = bool(program) and "/" not in program and not program.startswith(".")
        if not is_name or not (self._root / "programs" / program).is_dir():
            program = ""
        lying = self._models[directory] = _Lying(_size(directory), program)
        self._used += lying.bytes
        if program:
            self._enter_program(program)
            self._users.setdefault(program, {})[directory] = None

    def _enter_program(self, name: str) -> None:
        if name not in self._programs:
            self._programs[name] = _size(self._root / "programs" / name)
            self._used += self._programs[name]

    def _leave(self, directory: Path) -> None:
        lying = self._models.pop(directory, None)
        if lying is None:
            return
        self._used -= lying.bytes
        if lying.program:
            self._users[lying.program].pop(directory, None)


def _lock(root: Path) -> int:
    """Return the open, locked file of a store that is this worker's alone. Raises ConfigError, OSError."""
    if (root / "format").exists():
        raise ConfigError(
            f"{root} is a controller's directory: a worker with --store-bytes needs one of its own (--store)"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        return lock_file(root / LOCK_FILE)
    except BlockingIOError:
        raise ConfigError(
            f"another worker uses {root}: each worker with --store-bytes needs a directory of its own (--store)"
        ) from None


def _size(directory: Path) -> int:
    """The bytes of a directory's files. A file that goes meanwhile counts as none."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def _try_to_remove(path: Path) -> str:
    try:
        remove_tree(path)
    except OSError as error:
        return f"{path} cannot be removed: {error.strerror}"
    return ""
