"""The backup of SQLite's catalogue, kept by itself: a copy in one file, written within a second of a change.

A thread of its own copies the database with SQLite's backup calls, compares the copy with its checksums, and
renames it into its place, so that a damaged database never replaces a good backup.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from clockwork.config.controller import BACKUP_BUSY_SHARE, BACKUP_PAUSE_S, BACKUP_RETRY_S, BACKUP_ROWS_AT_ONCE
from clockwork.controller.catalog.database import (
    FILE,
    SQLITE,
    TABLES,
    as_os_error,
    connect,
    find_flaw,
    sync_file,
)
from clockwork.controller.catalog.recovery import BACKUP, flaw_of_backup, newest_of

log = logging.getLogger("clockwork.controller")

Report = Callable[[int, str, str], None]
"""Takes the number of the newest change that the backup has, or that no backup hides; why there is no new
backup ("": there is one); and what was wrong with the backup at the start ("": nothing).

Called on the backups' thread."""


class BackedUpDamage(Exception):
    """The database could be copied, and the copy is damaged."""


def copy_database(root: Path, target: Path) -> None:
    """Copy the catalogue of a data directory, of which a controller may have changes under way, into a new
    file. Raises OSError."""
    try:
        with contextlib.closing(connect(root / FILE)) as source, contextlib.closing(_plain(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        raise as_os_error(error) from error


def back_up(root: Path, pause: Callable[[], None] = lambda: None) -> int:
    """Write the backup anew. Returns the number of the newest change in it. Raises OSError, BackedUpDamage.

    pause: called now and then while the copy is compared with its checksums.
    """
    new = root / f".{BACKUP}"
    new.unlink(missing_ok=True)
    try:
        copy_database(root, new)
        with contextlib.closing(connect(new, is_only_read=True)) as target:
            flaw = find_flaw(target)
            number = 0
            for table in TABLES:
                rows = target.execute(SQLITE.all[table.name])
                while found := rows.fetchmany(BACKUP_ROWS_AT_ONCE):
                    for *columns, checksum in found:
                        if table.checksum(tuple(columns)) != checksum:
                            flaw = flaw or f"a row of {table.name} differs from its checksum"
                    pause()
            number = target.execute("SELECT max(number) FROM changes").fetchone()[0] or 0
    except sqlite3.Error as error:
        _remove(new)
        raise as_os_error(error) from error
    except OSError:
        _remove(new)
        raise
    if flaw:
        _remove(new)
        raise BackedUpDamage(flaw)
    os.replace(new, root / BACKUP)
    sync_file(root / BACKUP)
    return int(number)


def _plain(path: Path) -> sqlite3.Connection:
    """A connection to a new file that is synced when it is whole."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class BackupKeeper:
    """Keeps the backup of a data directory's catalogue on a thread of its own."""

    def __init__(self, root: Path, number: int, report: Report) -> None:
        """number: of the newest change in the database."""
        self._root = root
        self._report = report
        self._lock = threading.Lock()  # guards the two fields below
        self._number = number
        self._frees = False  # whether packages are to be removed that the backup names
        self._is_due = threading.Event()
        self._stop = threading.Event()
        self._backed_up = 0  # number of the newest change in the backup; the thread's, until it has ended
        self._thread = threading.Thread(target=self._run, name="backup", daemon=True)
        self._thread.start()

    def note(self, number: int, frees: bool) -> None:
        """Have a change backed up soon. frees: whether packages go once it is. Any thread may call it."""
        with self._lock:
            self._number = max(self._number, number)
            self._frees |= frees
        self._is_due.set()

    def stop(self) -> None:
        """Finish a backup that is under way. There is no report afterwards."""
        self._stop.set()
        self._is_due.set()
        self._thread.join()

    def close(self) -> None:
        """Stop, and back up the latest changes if they are not in the backup yet."""
        self.stop()
        if self._backed_up < self._number:
            try:
                back_up(self._root)
            except (OSError, BackedUpDamage) as error:
                log.error("the catalogue is closed without a new backup: %s", error)

    # ----- inside ------------------------------------------------------------------------------

    def _run(self) -> None:
        path = self._root / BACKUP
        flaw = flaw_of_backup(path) if path.exists() else ""
        self._backed_up = 0 if flaw else newest_of(path)
        self._report(self._backed_up, "", flaw)
        is_behind = bool(flaw) or self._backed_up < self._number or not path.exists()
        while not self._stop.is_set():
            if not is_behind:
                self._is_due.wait()
            self._is_due.clear()
            if self._stop.is_set():
                return
            begun = time.monotonic()
            is_behind = self._is_failing()
            took_s = time.monotonic() - begun
            least_s = BACKUP_RETRY_S if is_behind else BACKUP_PAUSE_S
            self._stop.wait(max(least_s, took_s / BACKUP_BUSY_SHARE))

    def _is_failing(self) -> bool:
        """Try to write the backup. Whether there has to be another try."""
        with self._lock:
            number, frees, self._frees = self._number, self._frees, False
        try:
            self._backed_up = back_up(self._root, lambda: time.sleep(0))
        except BackedUpDamage as error:
            self._report(self._backed_up, f"the catalogue is damaged on the disk: {error}", "")
            return True
        except OSError as error:
            # Without a backup, none hides that packages are not needed: their removal makes room.
            is_gone = frees and error.errno == errno.ENOSPC and self._give_up()
            with self._lock:
                self._frees |= frees and not is_gone
            self._report(number if is_gone else self._backed_up, error.strerror or str(error), "")
            return True
        self._report(self._backed_up, "", "")
        return False

    def _give_up(self) -> bool:
        """Remove the backup, if there is one, from a full disk. Whether there is none now."""
        try:
            (self._root / BACKUP).unlink(missing_ok=True)
        except OSError:
            return False
        return True
