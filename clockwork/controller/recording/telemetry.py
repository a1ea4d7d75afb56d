"""The process that writes every request and every action to files, fed from the flight recorder's ring.

The process is `clockwork telemetry` with its input piped, so that its work takes none of the controller's
time or memory: a thread copies from the ring into a socket that is the process's standard input, without the
interpreter's lock. Where the process is so slow that the ring comes round, the lost bytes are counted, here
and in the files. The input is a socket and no pipe, because shutting a socket down ends a write that waits; a
pipe has no such call.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import subprocess
import sys
from pathlib import Path

import msgpack

from clockwork.config.recorder import TELEMETRY_END_S, TELEMETRY_READY_S
from clockwork.controller._exchange import Ring
from clockwork.controller.recording.followers import RingFollower
from clockwork.errors import ConfigError
from clockwork.scheduler.recording import Header

log = logging.getLogger("clockwork.controller")


class TelemetryProcess:
    """The process and the follower that feeds it.

    folder: of the files. bytes_max: bound of their sum. wall_ns: offset that makes the controller's clock the
    time of day. Raises ConfigError where the process cannot begin to write; the process has said why.
    """

    def __init__(self, folder: Path, bytes_max: int, header: Header, ring: Ring, wall_ns: int) -> None:
        self.folder = folder
        self.lost_bytes = 0
        self._failure = ""
        self._is_closing = False
        self._ring = ring
        note = json.dumps({"policy": header.policy, "version": header.version, "wall_ns": wall_ns})
        self._input, standard_input = socket.socketpair()
        with standard_input:
            self._child: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "clockwork", "telemetry", str(folder), "--bytes", str(bytes_max), "--piped", note],
                stdin=standard_input.fileno(), stdout=subprocess.PIPE,
            )  # fmt: skip
        if not self._is_ready():
            self._end()
            raise ConfigError(f"telemetry cannot be written to {folder}")
        self._follower = RingFollower("telemetry", ring, self._take)

    def failure(self) -> str:
        """A sentence about the failure since the last call; else ""."""
        found, self._failure = self._failure, ""
        return found

    def close(self) -> None:
        """End the telemetry process, after it has written the rest of the recording."""
        # the thread may be waiting for a process that does not read
        if not self._follower.close(TELEMETRY_END_S):
            self._is_closing = True
            self._input.shutdown(socket.SHUT_WR)
            self._follower.close()
        self._end()

    def _is_ready(self) -> bool:
        """Whether the process says that it can write."""
        output = self._child.stdout
        assert output is not None
        poll = select.poll()  # select() takes no descriptor above 1,023, and each client is one
        poll.register(output, select.POLLIN)
        return bool(poll.poll(TELEMETRY_READY_S * 1000)) and output.readline() == b"ready\n"

    def _take(self, place: int, piece: bytes, lost: int) -> bool:
        """Hand on a piece; an empty piece, when there is nothing more, lets the process end old files."""
        if lost:
            self.lost_bytes += lost
            self._failure = f"it was too slow: {self.lost_bytes} bytes of steps were lost since the start"
            log.warning("telemetry in %s: %s", self.folder, self._failure)
        answer = {
            "epoch": 0, "place": place, "bytes": piece, "next": place + len(piece), "end": self._ring.state()["end"],
        }  # fmt: skip
        try:
            self._input.sendall(msgpack.packb(answer))
        except OSError as error:
            if not self._is_closing:
                self._failure = (
                    f"nothing is written any more, because its process has ended ({error.strerror})"
                )
                log.error("telemetry in %s: %s", self.folder, self._failure)
            return False
        return True

    def _end(self) -> None:
        """End the input: the process writes the rest, and ends."""
        self._input.close()
        assert self._child.stdout is not None
        self._child.stdout.close()
        try:
            self._child.wait(TELEMETRY_END_S)
        except subprocess.TimeoutExpired:
            log.error("telemetry's process did not end, and the file that it was writing is lost")
            self._child.kill()
            self._child.wait()
