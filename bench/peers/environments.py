"""The environments of other servers: made once, from pinned versions, and kept in a cache directory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
PYTHON = (3, 11)
"""The Python release that the pinned versions are known to work with."""

CACHE = Path.home() / ".cache" / "clockwork" / "peers"
INSTALL_S = 1800


def python() -> str:
    """A Python interpreter of the release PYTHON."""
    if sys.version_info[:2] == PYTHON:
        return str(Path(sys.base_prefix) / "bin" / f"python{PYTHON[0]}.{PYTHON[1]}")
    name = f"python{PYTHON[0]}.{PYTHON[1]}"
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"the peers need {name}, which is not on PATH")
    return found


class Environment:
    """A virtual environment with the packages of ``requirements/NAME.lock``."""

    def __init__(self, name: str, cache: Path = CACHE) -> None:
        self.name = name
        self._lock = REQUIREMENTS / f"{name}.lock"
        digest = hashlib.sha256(self._lock.read_bytes()).hexdigest()[:12]
        self.path = cache / f"{name}-{digest}"
        self._stamp = self.path / ".complete"

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def packages(self) -> Path:
        """The directory of the installed packages."""
        return self.path / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"

    @property
    def is_ready(self) -> bool:
        return self._stamp.exists()

    def make(self, install: Callable[[list[str], Path], None] | None = None) -> None:
        """Create the environment if it is missing or incomplete, one process at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_suffix(".lock")):
            if self.is_ready:
                return
            shutil.rmtree(self.path, ignore_errors=True)
            run = install or _run
            log = self.path.with_suffix(".log")
            run([python(), "-m", "venv", str(self.path)], log)
            pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
            run([*pip, "--no-deps", "--requirement", str(self._lock)], log)
            self._stamp.touch()


def _run(command: list[str], log: Path) -> None:
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=file, timeout=INSTALL_S, check=False)
    if done.returncode:
        said = log.read_text(errors="replace")[-2000:]
        raise SystemExit(
            f"{' '.join(command)} ended with status {done.returncode}:\n{said}\n(all of it: {log})"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
