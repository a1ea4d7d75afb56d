"""A PostgreSQL server of a test's own, on a socket in a temporary directory."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S, eventually

_PORT = 5432  # names the socket, and is bound by nobody


def _programs() -> Path | None:
    """The directory of PostgreSQL's programs, as Debian places them, or anybody's in the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if found is not None:
        places.insert(0, Path(found).parent)
    return places[-1] if places else None


def _user() -> dict[str, Any]:
    """Arguments of Popen: PostgreSQL refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


class PostgresServer:
    """A server. Its superuser needs no password on the socket."""

    def __init__(self, place: Path) -> None:
        programs = _programs()
        assert programs is not None
        self._programs, self.place = programs, place
        self._data = place / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._run("initdb", "-D", self._data, "-U", "clockwork", "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        command = [
            self._programs / "postgres", "-D", self._data, "-k", self.place, "-p", str(_PORT), "-c", "listen_addresses=",
            "-c", "fsync=off",
        ]  # fmt: skip
        with open(self.place / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.place, **_user()
            )
        eventually(self._is_ready, "PostgreSQL takes connections")

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server: in order with SIGINT, at once with SIGQUIT."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE_S)
            self._process = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://clockwork@/{database}?host={self.place}&port={_PORT}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        self.sql(self.url(), f"CREATE DATABASE {name}")
        return self.url(name)

    def sql(self, url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description is not None else []

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.place / "log").read_text()
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            return self.sql(self.url(), "SELECT 1") == [(1,)]
        return False

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.place, check=False, **_user())
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server until the block ends. Skips the test where PostgreSQL or psycopg is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed ([postgres])")
    if _programs() is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="pg") as directory:  # short: a socket's path has 107 bytes
        place = Path(directory)
        if os.geteuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        server = PostgresServer(place)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
