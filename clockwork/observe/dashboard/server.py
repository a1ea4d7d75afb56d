"""The dashboard's server: a Bokeh application on one event loop, and a thread that reads the controller.

The pages reveal the traffic of a cluster. So beyond loopback they require a token: as ``Authorization:
Bearer``, or typed in once; the browser then gets a cookie that only this process knows. Pages load nothing
from other hosts, by their Content-Security-Policy. The server answers only requests under the dashboard's own
names (``--origin`` adds names) and from its own pages, websockets included.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import hmac
import logging
import re
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.auth_provider import AuthProvider
from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from jinja2 import Template
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.web import HTTPError, OutputTransform, RequestHandler

from clockwork.config import dashboard as bounds
from clockwork.errors import ClockworkError, ConfigError
from clockwork.observe.dashboard.follower import FollowedSteps, Follower, StepSource
from clockwork.observe.dashboard.page import FILES, Board, Page
from clockwork.system.clock import now_ns, to_ns
from clockwork.system.limits import raise_descriptor_limit
from clockwork.web.pages import Asking, Names, refusal
from clockwork.web.seats import Seat, ServerSeats, Standing

log = logging.getLogger("clockwork.dashboard")

POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'{sockets}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page: it loads only from its own server and its own websocket.

The websocket is named because some browsers do not count it as 'self'. Bokeh evaluates its formatters of
ticks, hence 'unsafe-eval'.
"""

HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,260}")
"""A Host header that may be repeated in a header of the answer."""

LOGIN = "/login"


@dataclasses.dataclass(slots=True)
class DashboardSettings:
    """The settings of a dashboard. bound: a socket bound to the address, which the server makes listen."""

    bound: socket.socket
    origins: tuple[str, ...]  # HOST:PORT of the pages, as browsers write it
    endpoint: str  # the controller's address, shown in pages
    token: bytes | None = None
    tls: ssl.SSLContext | None = None
    pages_max: int = bounds.DASHBOARD_PAGES_MAX


class Dashboard:
    """The server of a dashboard."""

    def __init__(self, settings: DashboardSettings, source: StepSource) -> None:
        self._source = source
        self._settings = settings
        self.follower = Follower()
        self._board = Board(self.follower, settings.endpoint)
        self._pages: dict[str, Page] = {}
        self._ended = threading.Event()
        self._taken = threading.Event()
        self._wanted = threading.Event()  # whether a visible page has asked for a look since the last look
        self._wanted.set()

    def run(self, started: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT. started: called once browsers can connect."""
        asyncio.run(self._serve(started))

    async def _serve(self, started: Callable[[], None]) -> None:
        settings = self._settings
        gc.freeze()
        gc.set_threshold(*bounds.DASHBOARD_GARBAGE)
        logging.getLogger("bokeh").setLevel(logging.ERROR)  # Bokeh warns of every page that is closed
        self._loop = IOLoop.current()
        self._stop = asyncio.Event()
        running = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            running.add_signal_handler(number, self._stop.set)
        seats = _BrowserSeats(_seats_max())
        self._application = application = _Guarded(
            Names(settings.origins),
            # _Guarded has checked the origins of websockets.
            {"/": Application(FunctionHandler(self._open))}, use_index=False, extra_websocket_origins=["*"],
            sign_sessions=False, include_headers=[], include_cookies=[],
            check_unused_sessions_milliseconds=2000, unused_session_lifetime_milliseconds=round(bounds.DASHBOARD_UNUSED_S * 1000),
            websocket_max_message_size_bytes=bounds.DASHBOARD_MESSAGE_BYTES, ico_path="none",
            auth_provider=_Tokens(settings.token, settings.bound.getsockname()[1], settings.tls is not None),
            transforms=[functools.partial(_Headers, seats=seats)],
        )  # fmt: skip
        http = _Server(
            application, ssl_options=settings.tls, max_body_size=bounds.DASHBOARD_TOKEN_FORM_BYTES,
            idle_connection_timeout=bounds.DASHBOARD_IDLE_S, body_timeout=bounds.DASHBOARD_STRANGER_S,
        )  # fmt: skip
        http.seats = seats
        settings.bound.listen()
        settings.bound.setblocking(False)
        http.add_socket(settings.bound)
        server = BaseServer(self._loop, application, http)
        server.start()
        reader = threading.Thread(target=self._read, name="dashboard-reader", daemon=True)
        reader.start()
        sweeper = running.create_task(seats.sweep())
        try:
            started()
            await self._stop.wait()
        finally:
            self._ended.set()
            self._taken.set()
            self._wanted.set()
            sweeper.cancel()
            await self._end_pages()
            server.stop(wait=False)

    async def _end_pages(self) -> None:
        """Wait until pending messages to pages are sent, for DASHBOARD_END_S at most. Bokeh's errors about
        cut connections are not logged."""
        for page in self._pages.values():
            page.end()
        logging.getLogger("bokeh").setLevel(logging.CRITICAL)
        sending = asyncio.all_tasks() - {asyncio.current_task()}
        if sending:
            await asyncio.wait(sending, timeout=bounds.DASHBOARD_END_S)

    # ----- reading -------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read the controller repeatedly while a page is visible. The event loop takes each look before the
        next begins."""
        wait = 0.0
        while not self._ended.wait(wait):
            due = time.monotonic()
            self._wanted.wait()
            self._wanted.clear()
            began = time.monotonic()
            try:
                look: FollowedSteps | str = self._source.look(began - due > bounds.DASHBOARD_REST_S)
            except ClockworkError as error:
                look = str(error)
            self._taken.clear()
            if self._ended.is_set():
                return
            self._loop.add_callback(self._take, look)
            self._taken.wait()
            is_behind = isinstance(look, FollowedSteps) and look.is_behind
            if is_behind:
                self._wanted.set()
            wait = 0.0 if is_behind else max(0.0, bounds.DASHBOARD_LOOK_S - (time.monotonic() - began))

    def _take(self, look: FollowedSteps | str) -> None:
        try:
            if isinstance(look, str):
                self.follower.fail(look, time.time())
            else:
                self.follower.take(look, time.time())
        finally:
            self._taken.set()

    # ----- pages ---------------------------------------------------------------------------------

    def _open(self, document: Document) -> None:
        if len(self._pages) >= self._settings.pages_max:
            document.template = Template((FILES / "full.html").read_text(encoding="utf-8"))
            document.template_variables["pages"] = self._settings.pages_max
            return
        context = document.session_context
        assert context is not None
        number = str(context.id)
        self._pages[number] = Page(
            document, self._board, lambda: self._is_watched(number), self._wanted.set
        )  # fmt: skip
        self._wanted.set()
        document.on_session_destroyed(lambda _: self._forget(number))

    def _is_watched(self, number: str) -> bool:
        """Return whether a browser is connected to the page."""
        return bool(self._application.get_session("/", number).connection_count)

    def _forget(self, number: str) -> None:
        self._pages.pop(number, None)


def _seats_max() -> int:
    """Return the number of connections that the limit of open files allows. Raises ConfigError if it is too
    low."""
    limit = raise_descriptor_limit()
    if limit < 2 * bounds.DASHBOARD_DESCRIPTORS_KEPT:
        raise ConfigError(
            f"{limit} open files are too few, it takes {2 * bounds.DASHBOARD_DESCRIPTORS_KEPT}: raise ulimit -n"
        )
    return min(bounds.DASHBOARD_CONNECTIONS_MAX, limit - bounds.DASHBOARD_DESCRIPTORS_KEPT)


class _BrowserSeats:
    """The connections of browsers. A connection takes a seat before its TLS handshake."""

    def __init__(self, seats_max: int) -> None:
        self._seats = ServerSeats(seats_max)
        self._taken: dict[IOStream, Seat] = {}

    def take(self, stream: IOStream, address: str) -> bool:
        """Seat a new connection. False: there is no room, even by closing another."""
        self._forget_ended()
        seat = Seat(address, now_ns(), stream.close)
        vacated = self._seats.take(seat)
        if vacated is not None:
            vacated.close()
        if vacated is seat:
            return False
        self._taken[stream] = seat
        return True

    def answered(self, request: HTTPServerRequest, status: int) -> None:
        """Note an answer to a connection: a client that was let in is no longer a stranger."""
        seat = self._taken.get(getattr(request.connection, "stream", None))
        if seat is None:
            return
        seat.progress(now_ns())
        if status < 400 and request.path != LOGIN:
            self._seats.recognize(seat, Standing.CLIENT)
        if status == 101:
            seat.begin()  # a websocket: the page is watched

    def _forget_ended(self) -> None:
        for stream in [stream for stream in self._taken if stream.closed()]:
            self._seats.leave(self._taken.pop(stream))

    async def sweep(self) -> None:
        """Drop closed connections, and close those of strangers that are overdue."""
        while True:
            await asyncio.sleep(bounds.DASHBOARD_SWEEP_S)
            self._forget_ended()
            for seat in self._seats.overdue(now_ns(), to_ns(bounds.DASHBOARD_STRANGER_S)):
                seat.close()


class _Server(HTTPServer):
    """An HTTP server that accepts a connection only if there is a seat."""

    seats: _BrowserSeats

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        if self.seats.take(stream, str(address[0])):
            super().handle_stream(stream, address)
        else:
            stream.close()


class _Guarded(BokehTornado):
    """A Bokeh application that refuses requests from pages of other sites, websockets included."""

    def __init__(self, names: Names, *arguments: Any, **more: Any) -> None:
        self._names = names
        super().__init__(*arguments, **more)

    def find_handler(self, request: HTTPServerRequest, **more: Any) -> Any:
        headers = request.headers
        asking = Asking(host=headers.get("Host", ""), origin=headers.get("Origin", ""))
        if wrong := refusal(asking, self._names, check_host=True, changes=False):
            return self.get_handler_delegate(
                request, _Refusal, {"wrong": wrong.replace("--allowed-host", "--origin")}
            )
        return super().find_handler(request, **more)


class _Refusal(RequestHandler):
    """The answer to a refused request, with the reason."""

    def initialize(self, wrong: str) -> None:
        self._wrong = wrong

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(f"{self._wrong}\n")


class _Headers(OutputTransform):
    """Adds security headers to every answer."""

    def __init__(self, request: HTTPServerRequest, seats: _BrowserSeats) -> None:
        self._request, self._seats = request, seats
        host = request.host if HOST.fullmatch(request.host) else ""
        self._policy = POLICY.format(sockets=f" ws://{host} wss://{host}" if host else "")

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        self._seats.answered(self._request, status_code)
        headers["Content-Security-Policy"] = self._policy
        # With "no-referrer" Chromium sends the token's form with Origin: null, which is refused.
        headers["Referrer-Policy"] = "same-origin"
        headers["X-Content-Type-Options"] = "nosniff"
        return status_code, headers, chunk


class _Tokens(AuthProvider):
    """The check of tokens. token None: everybody who can connect may see the pages."""

    def __init__(self, token: bytes | None, port: int, is_secure: bool) -> None:
        self._token = token
        self._cookie = secrets.token_urlsafe(32)
        self._cookie_name = f"clockwork-dashboard-{port}"  # cookies are shared by the ports of a host
        self._is_secure = is_secure
        super().__init__()

    @property
    def get_user(self) -> None:
        return None

    @property
    def get_user_async(self) -> Callable[[Any], Awaitable[str | None]] | None:
        """Bokeh calls this before anything else, so that a websocket is not begun without a token."""
        return None if self._token is None else self._user

    @property
    def login_url(self) -> str | None:
        return None if self._token is None else LOGIN

    @property
    def get_login_url(self) -> None:
        return None

    @property
    def login_handler(self) -> type[RequestHandler] | None:
        if self._token is None:
            return None
        tokens = self

        class Login(RequestHandler):
            """A form for the token."""

            def get(self) -> None:
                self._form(200, "")

            def post(self) -> None:
                given = self.get_body_argument("token", "").strip().encode()
                if not tokens.is_right(given):
                    self._form(403, "That is not the token.")
                    return
                self.set_cookie(
                    tokens._cookie_name, tokens._cookie, httponly=True, samesite="Strict", secure=tokens._is_secure,
                )  # fmt: skip
                self.redirect("/")

            def _form(self, status: int, wrong: str) -> None:
                self.set_status(status)
                self.set_header("Content-Type", "text/html; charset=UTF-8")
                style = (FILES / "page.css").read_text(encoding="utf-8")
                self.finish(
                    Template((FILES / "login.html").read_text(encoding="utf-8")).render(
                        style=style, wrong=wrong
                    )
                )

        return Login

    @property
    def logout_url(self) -> None:
        return None

    @property
    def logout_handler(self) -> None:
        return None

    def is_right(self, given: bytes) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given, self._token)

    async def _user(self, handler: RequestHandler) -> str | None:
        scheme, _, rest = handler.request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self.is_right(rest.strip().encode()):
                return "operator"
            raise HTTPError(401, reason="that is not the token")
        cookie = handler.get_cookie(self._cookie_name, "") or ""
        if hmac.compare_digest(cookie.encode(), self._cookie.encode()):
            return "operator"
        if handler.request.path != "/":  # browsers are redirected to the form from the page only
            raise HTTPError(401, reason="this takes the operator's token")
        return None
