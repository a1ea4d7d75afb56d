"""A server of the Open Inference Protocol with a mode set by a test, in the place of another server.

    python stub_peer.py PORT MODE MODEL.onnx CHECKED

CHECKED requests come before the first cell. MODE: honest; wrong (false answers); silent (it is never ready);
ends (at the first cell's requests); hoarder (it queues all requests and does them all, even for clients that
have gone); refuser (it refuses every second request). In every mode it ignores SIGTERM and has started a
process in a session of its own, as some servers do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "peers" / "servers"))
from session import session

HEADER_LENGTH = "Inference-Header-Content-Length"
HOARDED_S = 0.03
"""Time that the hoarder takes for a request."""


class Stub:
    def __init__(self, mode: str, model: str, checked: int) -> None:
        self._mode = mode
        self._session = session(model)
        self._turn = asyncio.Lock()
        self._asked = 0
        self._checked = checked

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, more, answer = await self.answer(lines[0], headers, body)
                fields = f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n{more}\r\n"
                writer.write(fields.encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, line: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        if line.startswith("GET"):
            return (503 if self._mode == "silent" else 200), "", b""
        self._asked += 1
        if self._mode == "ends" and self._asked > self._checked:
            sys.stderr.write("a fatal error\n")
            sys.stderr.flush()
            os._exit(3)
        if self._mode == "refuser" and self._asked > self._checked and (self._asked - self._checked) % 2:
            return 503, "", b"no"
        image = np.frombuffer(body[int(headers[HEADER_LENGTH.lower()]) :], np.float32).reshape(1, 3, 64, 64)
        if self._mode == "hoarder":  # shielded: a client's disconnect does not end the work
            scores = await asyncio.shield(asyncio.ensure_future(self.hoarded(image)))
        else:
            scores = self._session.run(None, {"image": image})[0]
        data = (scores + (self._mode == "wrong")).astype(np.float32).tobytes()
        header = json.dumps({"outputs": []}).encode()
        return 200, f"{HEADER_LENGTH}: {len(header)}\r\n", header + data

    async def hoarded(self, image: np.ndarray) -> np.ndarray:
        async with self._turn:
            await asyncio.sleep(0)
            scores = self._session.run(None, {"image": image})[0]
            until = time.monotonic() + HOARDED_S
            while time.monotonic() < until:
                pass
            return np.asarray(scores)


async def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    stub = Stub(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    server = await asyncio.start_server(stub.serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
