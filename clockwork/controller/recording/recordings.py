"""A controller's recordings of its scheduler's steps: the ring in memory, and the files that follow it."""

from __future__ import annotations

import time

from clockwork.config import VERSION
from clockwork.config.recorder import RECORDER_SPAN_NS
from clockwork.controller._exchange import Ring
from clockwork.controller.recording.recorder import RecordingFile
from clockwork.controller.recording.telemetry import TelemetryProcess
from clockwork.controller.settings import ControllerSettings
from clockwork.scheduler.recording import Header
from clockwork.system.clock import now_ns


class Recordings:
    """The ring, made at once, and the files with their followers, owned until close()."""

    def __init__(self, settings: ControllerSettings) -> None:
        self.ring = Ring(settings.recorder_bytes, RECORDER_SPAN_NS)
        self.header = Header(settings.policy, settings.memory, settings.options, VERSION)
        self._settings = settings
        self._file: RecordingFile | None = None
        self._telemetry: TelemetryProcess | None = None

    def open(self) -> None:
        """Begin the files that the settings ask for. Raises ConfigError, with no file left open."""
        settings = self._settings
        if settings.record is not None:
            self._file = RecordingFile(settings.record, self.header, self.ring, settings.record_bytes_max)
        if settings.telemetry is None:
            return
        try:
            self._telemetry = TelemetryProcess(
                settings.telemetry, settings.telemetry_bytes_max, self.header, self.ring, time.time_ns() - now_ns()
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def failure(self) -> tuple[str, str]:
        """The folder of telemetry that is no longer written, and the reason; "" twice without a failure."""
        if self._telemetry is None or not (text := self._telemetry.failure()):
            return "", ""
        return str(self._telemetry.folder), text

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._telemetry is not None:
            self._telemetry.close()
