"""The real dashboard: what it serves, to whom, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.cluster import PATIENCE_S, Program, eventually, session_members
from tests.sim.test_dashboard import busy_world, recorded, steps_of

pytest.importorskip("bokeh", reason="the extra [dashboard] is not installed")

TOKEN = "s3cret-of-the-operator"


@contextmanager
def running_dashboard(*options: str) -> Iterator[tuple[Program, str]]:
    """A dashboard and its URL. At the end it has stopped at SIGTERM, with status 0, and nothing is left of it."""
    program = Program(["dashboard", "--port", "0", *options])
    try:
        url = program.wait_for(r"The dashboard is at (\S+) ")[1]
        yield program, url
        program.send(signal.SIGTERM)
        assert program.wait() == 0, program.text
        assert session_members(program.pid) == []
    finally:
        program.destroy()


def recording_in(folder: Path) -> Path:
    path = folder / "it.rec"
    path.write_bytes(recorded(steps_of(busy_world())))
    return path


def fetch(url: str, **headers: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=PATIENCE_S
        ) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def live_state(url: str, **headers: str) -> dict[str, Any]:
    """The page's state, read over its websocket once it is live."""
    from bokeh.client import pull_session

    session = pull_session(url=url)
    try:
        source = session.document.get_model_by_name("state")

        def state() -> dict[str, Any]:
            session.force_roundtrip()
            return dict(json.loads(source.data["json"][0]))

        return dict(eventually(lambda: (found := state()).get("tiles") and found, "the page has numbers"))
    finally:
        session.close()


def session_token(page: str) -> str:
    """The token of a page's session, with which it opens its websocket."""
    match = re.search(r'"token":"([^"]+)"', page)
    assert match is not None
    return match[1]


def opened(url: str, origin: str, session: str, more: str = "") -> int:
    """The status with which a websocket is answered."""
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(
            (
                f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Origin: {origin}\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Protocol: bokeh, {session}\r\n{more}\r\n"
            ).encode()
        )
        return int(connection.recv(4096).split()[1])


def test_a_page_and_its_websocket_have_what_happened(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):
        status, text, headers = fetch(url)
        assert status == 200
        assert "<title>Clockwork</title>" in text
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        named = re.findall(r"""(?:src|href)=["'](?!data:)([^"']+)""", text)
        assert any("bokeh.min.js" in one for one in named)
        assert all(one.startswith(("static/", "#", "/")) and not one.startswith("//") for one in named), named
        script = next(one for one in named if "bokeh.min.js" in one)
        assert fetch(urllib.parse.urljoin(url, script))[0] == 200
        state = live_state(url)
        assert state["state"] == "live"
        assert state["tiles"]["devices"] >= 1
        assert {row[2] for row in state["requests"]} >= {"answered", "refused"}


def test_beyond_loopback_it_takes_tls_and_a_token(tmp_path: Path) -> None:
    program = Program(
        ["dashboard", "--port", "0", "--host", "0.0.0.0", "--recording", str(recording_in(tmp_path))]
    )
    try:
        assert program.wait() != 0
        assert (
            "0.0.0.0 is reachable from other machines: give --tls-cert and --tls-key and --token-file"
            in program.text
        )
    finally:
        program.destroy()


def test_whoever_has_no_token_sees_nothing(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    options = ("--recording", str(recording_in(tmp_path)), "--token-file", str(token))
    with running_dashboard(*options) as (_, url):
        status, text, _ = fetch(url)
        assert (status, "The operator's token" in text, "docs_json" in text) == (200, True, False), "the form"
        for path in ("autoload.js?bokeh-autoload-element=1", "metadata"):
            assert fetch(url + path)[0] == 401, path
        assert fetch(url, Authorization="Bearer wrong")[0] == 401
        status, text, _ = fetch(url, Authorization=f"Bearer {TOKEN}")
        assert (status, "Refused" in text) == (200, True)
        assert TOKEN not in text
        session = session_token(text)
        assert opened(url, url.rstrip("/"), session) == 401
        assert opened(url, url.rstrip("/"), session, f"Authorization: Bearer {TOKEN}\r\n") == 101

        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with pytest.raises(urllib.error.HTTPError, match="403") as wrong:
            opener.open(f"{url}login", b"token=wrong", timeout=PATIENCE_S)
        wrong.value.close()
        with opener.open(f"{url}login", f"token={TOKEN}".encode(), timeout=PATIENCE_S) as answer:
            assert "Refused" in answer.read().decode()


def test_a_websocket_is_taken_from_its_own_pages_alone(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--origin", "proxy.example:443") as (
        _,
        url,
    ):
        session = session_token(fetch(url)[1])
        for origin, status in (
            ("http://evil.example", 403),
            ("http://127.0.0.1:1", 403),
            ("https://proxy.example:443", 101),
            (url.rstrip("/"), 101),
        ):
            assert opened(url, origin, session) == status, origin


def test_pages_have_a_bound(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--pages", "2") as (_, url):
        texts = [fetch(url)[1] for _ in range(3)]
        assert all("Refused" in text for text in texts[:-1])
        assert "2 pages of this dashboard are open already" in texts[-1]


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.rec"
    path.write_bytes(b"nothing")
    program = Program(["dashboard", "--port", "0", "--recording", str(path)])
    try:
        assert program.wait() != 0
        assert "this is no recording of a controller" in program.text
    finally:
        program.destroy()
