"""A headless Chromium for tests and pictures, driven over the DevTools protocol.

The browser must be on the path as `chromium`, and tornado must be installed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MESSAGE_BYTES = 64 << 20
"""Bound of a message, which may hold a whole screenshot."""


def program() -> str | None:
    """Return the path of an installed browser, or None."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Tab:
    """A page, with its errors and requests since it was opened."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.requested: list[str] = []  # URLs that pages have requested
        self._reading = asyncio.ensure_future(self._read())

    async def call(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol. Raises AssertionError if the browser refuses it."""
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._awaited[self._number] = answer
        await self._socket.write_message(
            json.dumps({"id": self._number, "method": method, "params": parameters})
        )
        found = await asyncio.wait_for(answer, 30)
        assert "error" not in found, f"{method}: {found['error']}"
        return found["result"]

    async def run(self, script: str) -> Any:
        """Return the value of a script, awaited if it is a promise."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str, within_s: float = 30.0) -> Any:
        """Return the value of a script once it is true."""
        pause = asyncio.Event()
        limit = asyncio.get_running_loop().time() + within_s
        while not (value := await self.run(condition)):
            assert asyncio.get_running_loop().time() < limit, (
                f"{condition} is not true within {within_s:g} s; {self.complaints}"
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pause.wait(), 0.05)
        return value

    async def open(self, url: str, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        await self.size(width, height, phone)
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        await self.call("Page.navigate", url=url)

    async def size(self, width: int, height: int, phone: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                text="\r" if key == "Enter" and kind == "keyDown" else "",
            )  # fmt: skip

    async def screenshot(self, path: Path, selector: str = "", whole: bool = False) -> None:
        """Write a PNG of the window, of the whole page, or of an element."""
        more: dict[str, Any] = {}
        if selector:
            box = await self.run(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return [b.x + scrollX, b.y + scrollY, b.width, b.height]; })()"
            )
            more = {"captureBeyondViewport": True,
                    "clip": dict(zip(("x", "y", "width", "height"), box), scale=1)}  # fmt: skip
        elif whole:
            size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
            more = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        found = await self.call("Page.captureScreenshot", format="png", **more)
        path.write_bytes(base64.b64decode(found["data"]))

    async def _read(self) -> None:
        while (message := await self._socket.read_message()) is not None:
            told = json.loads(message)
            if "id" in told:
                answer = self._awaited.pop(told["id"])
                if not answer.done():
                    answer.set_result(told)
                continue
            self._note(told["method"], told["params"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(
                f"{details['text']} {details.get('exception', {}).get('description', '')}"[:600]
            )
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(
                f"{told['type']}: {[argument.get('value', argument.get('description')) for argument in told['args']]}"
            )
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(
                f"{told['entry']['source']}: {told['entry']['text']} {told['entry'].get('url', '')}"
            )
        elif method in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            self.requested.append(told["request"]["url"] if "request" in told else told["url"])


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """Start a browser with a tab. The browser and its profile are removed at the end."""
    found = program()
    assert found is not None, f"none of {', '.join(PROGRAMS)} is on the path"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--force-color-profile=srgb", "--font-render-hinting=none",
                f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            lines = iter(process.stderr)
            match = next((m for line in lines if (m := re.search(r"listening on ws://([^/]+)/", line))), None)
            assert match is not None, "the browser ended at its start"
            answer = await AsyncHTTPClient().fetch(f"http://{match[1]}/json/list")
            page = next(target for target in json.loads(answer.body) if target["type"] == "page")
            socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=MESSAGE_BYTES)
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            try:
                yield tab
            finally:
                socket.close()
                await tab._reading
        finally:
            with contextlib.suppress(ProcessLookupError):
                import os

                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
