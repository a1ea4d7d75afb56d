"""Writing down what the scheduler is told, for `clockwork replay`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from clockwork.config.wire import BUFFER_BYTES
from clockwork.errors import ConfigError
from clockwork.scheduler.recording import Header, encode_header, encode_step
from clockwork.scheduler.types import Command, Event

log = logging.getLogger("clockwork.controller")


class Recorder:
    """A file that takes steps until it is full, or the disk is."""

    def __init__(self, path: Path, header: Header, bytes_max: int) -> None:
        """Raises ConfigError if the file cannot be written."""
        self._path = path
        self._left = bytes_max
        try:
            self._file = path.open("wb", buffering=BUFFER_BYTES)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        self._open = True
        self._write(encode_header(header))

    def record(self, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """One step of the scheduler: what it was told, and what it ordered."""
        if self._open:
            self._write(encode_step(events, commands))

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            self._file.close()
        except OSError as error:
            log.error("the end of the recording %s is lost: %s", self._path, error.strerror)

    def _write(self, body: bytes) -> None:
        if len(body) > self._left:
            log.warning("the recording %s is full and ends here", self._path)
            self.close()
            return
        self._left -= len(body)
        try:
            self._file.write(body)
        except OSError as error:
            log.error("the recording %s ends here: %s", self._path, error.strerror)
            self.close()
