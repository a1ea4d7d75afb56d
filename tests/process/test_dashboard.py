"""The real dashboard: the pages it serves, the access it grants, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import re
import signal
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clockwork.config.dashboard import DASHBOARD_CONNECTIONS_MAX
from clockwork.formats.profiles import ModelProfile
from clockwork.observe.dashboard.follower import FollowedSteps, Follower
from clockwork.observe.dashboard.picture import PredictionsPicture
from clockwork.system.clock import MS
from clockwork.workloads import load_generator
from tests.patience import PATIENCE_S
from tests.process.cluster import Program, running_cluster, session_members
from tests.sim.test_dashboard import busy_world, recorded, steps_of

pytest.importorskip("bokeh", reason="the extra [dashboard] is not installed")

TOKEN = "s3cret-of-the-operator"


@contextmanager
def running_dashboard(*options: str) -> Iterator[tuple[Program, str]]:
    """A dashboard and its URL.

    At the end it has stopped at SIGTERM, with status 0, and nothing is left of it.
    """
    program = Program(["dashboard", "--port", "0", *options])
    try:
        url = program.wait_for(r"The dashboard is at (\S+) ")[1]
        yield program, url
        program.send(signal.SIGTERM)
        assert program.wait() == 0, program.text
        assert "Traceback" not in program.text, program.text
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


def session_token(page: str) -> str:
    """Return the token of a page's session, with which it opens its websocket."""
    match = re.search(r'"token":"([^"]+)"', page)
    assert match is not None
    return match[1]


def opened(url: str, origin: str, session: str, more: str = "", host: str = "") -> int:
    """Return the status with which a websocket is answered."""
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(
            (
                f"GET /ws HTTP/1.1\r\nHost: {host or f'127.0.0.1:{port}'}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Origin: {origin}\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Protocol: bokeh, {session}\r\n{more}\r\n"
            ).encode()
        )
        return int(connection.recv(4096).split()[1])


def test_a_page_and_its_websocket_have_what_happened(tmp_path: Path) -> None:
    from bokeh.client import pull_session

    with running_dashboard("--recording", str(recording_in(tmp_path)), "--from", "10") as (_, url):
        status, text, headers = fetch(url)
        assert status == 200
        assert "<title>Clockwork</title>" in text
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert f"connect-src 'self' ws://{urllib.parse.urlsplit(url).netloc} " in policy
        assert headers["Referrer-Policy"] == "same-origin", (
            "by which browsers send the token's form with its Origin"
        )
        named = re.findall(r"""(?:src|href)=["'](?!data:)([^"']+)""", text)
        assert any("bokeh.min.js" in one for one in named)
        assert all(one.startswith(("static/", "#", "/")) and not one.startswith("//") for one in named), named
        script = next(one for one in named if "bokeh.min.js" in one)
        assert fetch(urllib.parse.urljoin(url, script))[0] == 200
        session = pull_session(url=url)
        state = json.loads(session.document.get_model_by_name("state").data["json"][0])
        session.close()
        assert state["state"] == "live"
        assert state["tiles"]["devices"] >= 1
        assert {row[2] for row in state["requests"]} >= {"answered", "refused"}


def test_a_controller_is_asked_only_while_a_page_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from clockwork.observe.dashboard import server

    looked: queue.SimpleQueue[bool] = queue.SimpleQueue()

    class Counted:
        def look(self, has_rested: bool = False) -> FollowedSteps:
            looked.put(has_rested)
            return FollowedSteps(1, ())

    class Loop:
        def add_callback(self, take: Callable[[Any], None], look: Any) -> None:
            take(look)

    monkeypatch.setattr(server.bounds, "DASHBOARD_LOOK_S", 0.01)
    monkeypatch.setattr(server.bounds, "DASHBOARD_REST_S", 0.1)
    with socket.socket() as bound:
        dashboard = server.Dashboard(server.DashboardSettings(bound, (), "it"), Counted())
    dashboard._loop = Loop()  # type: ignore[assignment]
    reader = threading.Thread(target=dashboard._read)
    reader.start()
    try:
        assert not looked.get(timeout=PATIENCE_S), "so that the first page finds something"
        with pytest.raises(queue.Empty):
            looked.get(timeout=0.3)
        dashboard._wanted.set()
        assert looked.get(timeout=PATIENCE_S), "it has rested"
    finally:
        dashboard._ended.set()
        dashboard._wanted.set()
        reader.join(PATIENCE_S)
    assert not reader.is_alive()


@pytest.mark.parametrize(
    ("least", "labels"), [(0.02, {0.03, 0.1, 0.3, 3, 30}), (0.001, {0.001, 0.01, 0.1, 1, 10})]
)
def test_an_axis_of_predictions_has_short_labels_that_fit(least: float, labels: set[float]) -> None:
    from clockwork.observe.dashboard.figures import PredictionsFigure

    found = PredictionsFigure()
    columns = {
        "predicted": [least, 20.0],
        "measured": [least, 20.0],
        "color": ["#000"] * 2,
        "model": ["m"] * 2,
        "batch": [1, 1],
    }
    empty: dict[str, list[Any]] = {name: [] for name in columns}
    found.show(PredictionsPicture(columns, empty, 1.0, 0.0, 2))
    for axis in found.plot.axis:
        shown = [one for one in axis.ticker.ticks if least <= one <= 20 * 1.25 * 2]
        assert labels <= set(shown)
        assert len(shown) <= 8
        assert max(len(str(one)) for one in shown) <= 5


def test_a_page_asks_for_looks_while_it_is_watched_and_not_hidden() -> None:
    from bokeh.document import Document

    from clockwork.observe.dashboard.page import Board, Page

    document, looks, watched = Document(), [], True
    page = Page(document, Board(Follower(), "it"), lambda: watched, lambda: looks.append(1))
    control = document.get_model_by_name("control")
    assert control is not None

    def looks_of(*ticks: object, **wish: bool) -> int:
        looks.clear()
        if wish:
            control.data = {"json": [json.dumps(wish)]}
        for _ in ticks:
            page._tick()
        return len(looks)

    assert looks_of(1, 2) == 2
    assert looks_of(1, 2, hidden=True) == 0
    assert looks_of(hidden=False) == 1, "at once"
    assert looks_of(1, 2) == 2
    watched = False
    assert looks_of(1, 2) == 0


SMALL = ModelProfile("small", {1: 2 * MS, 4: 4 * MS}, 40 << 20, 3 * MS, input_bytes=100, output_bytes=7)


class Watched:
    """A page of a dashboard that gets the messages of its websocket, as a browser does."""

    def __init__(self, url: str) -> None:
        self._url = f"ws{url.removeprefix('http')}ws"
        self._session = session_token(fetch(url)[1])

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        """Return the first state sent to the page for which the condition is true."""
        return asyncio.run(asyncio.wait_for(self._until(condition, what), PATIENCE_S))

    async def _until(self, condition: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        from tornado.websocket import websocket_connect

        connection = await websocket_connect(self._url, subprotocols=["bokeh", self._session])
        try:
            while (fragment := await connection.read_message()) is not None:
                for state in states_in(fragment):
                    if condition(state):
                        return state
        finally:
            connection.close()
        pytest.fail(f"{what}: the page was closed before")


def states_in(fragment: str | bytes) -> Iterator[dict[str, Any]]:
    """Yield the states within a message of Bokeh's protocol: in a patch, the JSON in the source "state"."""
    if not isinstance(fragment, str) or "endpoint" not in fragment:
        return
    for event in json.loads(fragment).get("events", ()):
        if event["kind"] == "ColumnDataChanged":
            found = json.loads(dict(event["data"]["entries"])["json"][0])
            if "endpoint" in found:
                yield found


@pytest.mark.slow
def test_a_real_cluster_is_followed_over_a_restart(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "cluster", workers=0) as cluster:
        emulated = ("--device", "emulated", "--page-size", "16MiB", "--devices", "2")
        cluster.start_worker(*emulated, arena="128MiB", name="gpus")
        with cluster.client() as client:
            for number in range(6):  # more connections than fit
                client.register(f"small-{number}", SMALL)
        with running_dashboard("--endpoint", cluster.endpoint) as (_, url):
            page = Watched(url)
            page.until(
                lambda found: found["state"] == "live" and found["tiles"]["models"] == 6, "names are known"
            )
            with cluster.client() as client:
                settings = load_generator.LoadSettings(
                    models=tuple(f"small-{number}" for number in range(6)), rate=300.0, duration_s=1.5, slo_s=PATIENCE_S,
                )  # fmt: skip
                report = load_generator.run(client, settings)
            state = page.until(lambda found: found["requests"], "requests are seen")
            assert report.answered > 10
            assert {row[2] for row in state["requests"]} >= {"answered"}
            assert state["models"][0][0].startswith("small-")
            assert state["used"] > 0
            assert state["share"] == 1.0
            assert state["restarted"] == 0
            with cluster.client() as client:
                devices = [device for worker in client.metrics()["workers"] for device in worker["devices"]]
            free, pages = (sum(device[name] for device in devices) for name in ("free_pages", "pages"))
            with running_dashboard("--endpoint", cluster.endpoint) as (_, late):
                Watched(late).until(lambda found: found.get("used") == (pages - free) / pages, "pages in use")

            assert cluster.controller.stop() == 0
            away = page.until(lambda found: found["state"] == "disconnected", "it is missed")
            assert away["note"]
            assert away["tiles"]["good"] > 0, "the last picture stays"
            cluster.start_controller()
            page.until(lambda found: found["state"] == "live" and found["restarted"] > 0, "it is back")


def test_it_ends_in_order_while_pages_are_open(tmp_path: Path) -> None:
    from tornado.websocket import websocket_connect

    recording = str(recording_in(tmp_path))

    async def watch(program: Program, url: str) -> int:
        """End it while four pages get updates."""
        pages = []
        for _ in range(4):
            session = session_token(await asyncio.to_thread(lambda: fetch(url)[1]))
            pages.append(
                await websocket_connect(f"ws{url.removeprefix('http')}ws", subprotocols=["bokeh", session])
            )
        told = 0
        while told < 8:
            told += bool(list(states_in(await pages[0].read_message() or "")))
        program.send(signal.SIGINT)
        return await asyncio.to_thread(program.wait)

    with running_dashboard("--recording", recording, "--from", "1") as (program, url):
        assert asyncio.run(watch(program, url)) == 0, program.text


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
            ("https://proxy.example", 101),  # an origin as browsers write it
            ("https://proxy.example:8443", 403),
            (url.rstrip("/"), 101),
        ):
            assert opened(url, origin, session) == status, origin


def test_a_foreign_name_that_points_here_sees_nothing(tmp_path: Path) -> None:
    with running_dashboard("--recording", str(recording_in(tmp_path)), "--origin", "proxy.example:443") as (
        _,
        url,
    ):
        session = session_token(fetch(url)[1])
        port = url.rstrip("/").rpartition(":")[2]
        for host, status in (
            ("evil.example", 403),
            (f"evil.example:{port}", 403),
            (f"127.0.0.1.evil.example:{port}", 403),
            (f"localhost:{port}", 200),
            ("proxy.example", 200),
        ):
            for path in ("", "static/js/bokeh.min.js"):
                found, text, _ = fetch(f"{url}{path}", Host=host)
                assert found == status, (host, path)
                assert status == 200 or "--origin" in text
            websocket = opened(url, f"http://{host}", session, host=host)
            assert websocket == (101 if status == 200 else 403), host
        assert fetch(url, Origin="https://evil.example")[0] == 403


@pytest.mark.parametrize("has_token", [False, True], ids=["open", "with a token"])
def test_silent_connections_keep_no_browser_out(tmp_path: Path, has_token: bool) -> None:
    (tmp_path / "token").write_text(TOKEN)
    more = ["--token-file", str(tmp_path / "token")] if has_token else []
    with (
        running_dashboard("--recording", str(recording_in(tmp_path)), *more) as (_, url),
        contextlib.ExitStack() as stack,
    ):
        address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
        held = [
            stack.enter_context(socket.create_connection(address, PATIENCE_S))
            for _ in range(DASHBOARD_CONNECTIONS_MAX + 20)
        ]
        for number in range(3):
            assert fetch(url, Authorization=f"Bearer {TOKEN}")[0] == 200, number
        for one in held[:20]:
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b"", "the longest silent ones make room"


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


@pytest.mark.slow
def test_the_demo_is_one_command_that_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    program = Program(
        ["demo", "--devices", "4", "--rate", "200", "--dashboard-port", "0"], {"TMPDIR": str(folder)}
    )
    try:
        url = program.wait_for(r"^The dashboard is at (\S+)$")[1]
        state = Watched(url).until(lambda found: found.get("requests"), "requests are seen")
        assert state["tiles"]["devices"] == 4
        members = session_members(program.pid)
        program.send(signal.SIGINT)
        assert program.wait() == 0, program.text
        assert program.text.count("The dashboard is at") == 1
        assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []
        assert list(folder.iterdir()) == []
    finally:
        program.destroy()
