"""The Open Inference Protocol over HTTP, with Triton's extensions, on aiohttp.

InferenceService (service.py) answers. This module receives requests and sends answers; http_inference.py
encodes both. It uses aiohttp's server without the application layer: for a dozen paths, a router and
middlewares would cost more than they save.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from aiohttp import web

from clockwork.config import gateway as bounds
from clockwork.errors import ClockworkError, Forbidden, InvalidInput, Unavailable
from clockwork.gateway import openapi
from clockwork.gateway.answers import HeldAnswer
from clockwork.gateway.callers import Caller, Endpoint
from clockwork.gateway.errors import NotFound, TooLarge, TooSlow, Unsupported, WrongMethod, tell
from clockwork.gateway.http_inference import (
    HEADER_LENGTH,
    Wants,
    dumps,
    inference_of,
    json_length,
    parameters_of,
    parts_of,
)
from clockwork.gateway.inflate import Inflater
from clockwork.gateway.listener import SocketListener
from clockwork.gateway.long_json import read_inference, read_object
from clockwork.gateway.regions import NO_CUDA_MEMORY, Shared
from clockwork.gateway.security import Tokens, bearer, is_loopback, names_of
from clockwork.gateway.service import Inference, InferenceService, reference_of, timeout_of
from clockwork.gateway.settings import GatewaySettings
from clockwork.gateway.tensors import Listed
from clockwork.system.clock import now_ns, to_ns
from clockwork.web.pages import Asking, Names, refusal
from clockwork.web.seats import Seat, ServerSeats, Standing
from clockwork.wire import inflow, telling
from clockwork.wire.roles import HTTP, Right
from clockwork.wire.tensors import STRING, join_strings

log = logging.getLogger("clockwork.gateway")

TIMEOUT = "X-Clockwork-Timeout-Us"


PROTOCOL = "http"
OTHER = "other"  # The method under which requests for unknown paths are counted
GONE = 0  # Counted in place of a status where the client disconnected


Handler = Callable[[Any, web.BaseRequest, list[str]], Awaitable[web.StreamResponse]]
"""A method of HttpServer; its arguments are the server, the request and the segments of the path."""

GET: tuple[str, ...] = ("GET", "HEAD")
POST: tuple[str, ...] = ("POST",)


class Path:
    """A path of a server: its handler, its methods, and the right that a request for it needs."""

    __slots__ = ("changes", "handler", "methods", "name", "right", "words")

    def __init__(self, template: str, handler: Handler, methods: tuple[str, ...]) -> None:
        """template: a key of clockwork.wire.roles.HTTP, which names the right; {word} matches any segment."""
        self.handler = handler
        self.methods = methods
        self.name = handler.__name__[1:]  # the name under which requests are counted
        self.right = HTTP[template]
        self.words = template.split("/")[1:]
        # Regions belong to the caller, so a client's right is enough to change them.
        self.changes = self.right is Right.OPERATE or self.words[-1] in ("register", "unregister")

    def fits(self, words: list[str]) -> bool:
        """Whether the segments of a request's path match the template."""
        return len(words) == len(self.words) and all(
            mine == word or mine[:1] == "{" for mine, word in zip(self.words, words)
        )


class _Connection(web.RequestHandler):
    """A client's connection: its seat, and the time since which the server waits for headers."""

    __slots__ = ("asked", "seat", "since")

    def __init__(self, manager: _Connections, seat: Seat, **more: Any) -> None:
        super().__init__(manager, **more)
        self.seat = seat
        self.asked = False  # a request with complete headers is not answered yet
        self.since = 0.0  # arrival of the first byte of incomplete headers; 0: there are none

    @property
    def is_busy(self) -> bool:
        """Whether a request is coming, is worked on, or its answer is being sent."""
        return bool(self.asked or self.since or self._messages or self._request_in_progress)

    def data_received(self, data: bytes) -> None:
        if not self.asked and not self.since:
            self.since = self._loop.time()
        super().data_received(data)

    def reset(self) -> None:
        """End the connection, and drop the unsent bytes in the kernel, which its client does not read."""
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            if connection is not None:  # for example of TLS, after the peer has gone
                # Without a duplicate, because no descriptor may be left for it
                inflow.drop_unsent(connection)
            self.transport.abort()

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log an error, except for a broken body, with which any client could fill the log."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to an error that aiohttp finds, mostly bytes that are not HTTP."""
        self.asked = False  # no handler sees the request
        if status == 500:
            log.error("a request failed: %s %s", request.method, request.raw_path[:200], exc_info=exc)
            text = "the gateway failed; its log says how"
        else:
            text = message.split("\n")[0][:200] if message else _one_line(exc)
        response = _json(status, {"error": text, "reason": "internal" if status == 500 else "malformed_http"})
        response.force_close()
        return response


def _one_line(error: BaseException | None) -> str:
    """Return an error of aiohttp in one line, without the status at its beginning."""
    text = " ".join(str(error or "").split())
    return text.removeprefix("400, message: ")[:200] or "it is no HTTP"


class _Connections(web.Server):
    """A server's connections, each of which has a seat."""

    def __init__(
        self, handler: Any, settings: GatewaySettings, seats: ServerSeats, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            handler, request_factory=self._new_request, handler_cancellation=True, keepalive_timeout=settings.idle_s,
            auto_decompress=False, access_log=None, max_line_size=bounds.HEADER_BYTES_MAX, max_field_size=bounds.HEADER_BYTES_MAX, lingering_time=bounds.LINGER_S,
            logger=log,
        )  # fmt: skip
        self._settings = settings
        self._seats = seats
        self._running = loop
        self.has_ended = asyncio.Event()  # whether a connection has ended since drain() looked

    def protocol_of(self, seat: Seat) -> asyncio.Protocol:
        return _Connection(self, seat, loop=self._running, **self._kwargs)

    def _new_request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        protocol.asked, protocol.since = True, 0.0
        protocol.seat.progress(now_ns())
        return web.BaseRequest(message, payload, protocol, writer, task, self._running)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        seat = cast(_Connection, handler).seat
        seat.close = transport.abort  # close() would wait until the client has read the buffered bytes
        if seat not in self._seats:  # the seat was vacated while the handshake ended
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        connection = cast(_Connection, handler)
        connection.asked, connection.since = False, 0.0
        self._seats.leave(connection.seat)
        self.has_ended.set()

    async def drain(self, within_s: float) -> None:
        """End all connections, those with a request once it is answered, for a bounded time.

        aiohttp's own shutdown drops what still comes of a request's body.
        """
        until = self._running.time() + within_s
        for connection in cast(list[_Connection], self.connections):
            if not connection.is_busy:
                connection.force_close()
        while any(connection.is_busy for connection in cast(list[_Connection], self.connections)):
            self.has_ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.has_ended.wait(), until - self._running.time())
            if self._running.time() >= until:
                break
        await self.shutdown(max(0.0, until - self._running.time()))

    def sweep(self) -> None:
        """Close the connections whose clients take too long to authenticate, to send headers, or to read
        answers."""
        settings = self._settings
        for seat in self._seats.overdue(now_ns(), to_ns(settings.headers_s)):
            seat.close()
        now = self._running.time()
        for connection in cast(list[_Connection], list(self._connections)):
            transport, seat = connection.transport, connection.seat
            if connection.asked or transport is None:
                continue
            waited_ns = now_ns() - seat.idle_since_ns
            if waited_ns > to_ns(settings.body_s) and transport.get_write_buffer_size() > 0:
                connection.reset()
            elif connection.since and now - connection.since > settings.headers_s:
                transport.abort()


class HttpServer:
    """Serve the protocol until close(). tokens: the bearer tokens that requests must have."""

    def __init__(
        self, service: InferenceService, settings: GatewaySettings, tokens: Tokens, seats_max: int
    ) -> None:
        self._service = service
        self._settings = settings
        self._tokens = tokens
        self._names = Names(names_of(settings))
        self._checks_host = is_loopback(settings.host)
        self._seats = ServerSeats(seats_max)
        self._inflater = Inflater()
        self._connections: _Connections | None = None
        self._listener: SocketListener | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take over a bound socket."""
        loop = asyncio.get_running_loop()
        self._connections = _Connections(self._handle, self._settings, self._seats, loop)
        self._listener = SocketListener(listening, tls, self._seats, self._connections.protocol_of)
        self._sweeper = loop.create_task(self._sweep())

    async def close(self) -> None:
        """Accept no more requests, and let those under way end, for a bounded time."""
        if self._connections is None or self._listener is None or self._sweeper is None:
            return
        self._listener.close()
        await self._connections.drain(self._settings.drain_s)
        self._sweeper.cancel()
        self._inflater.close()

    async def _sweep(self) -> None:
        assert self._connections is not None
        while True:
            await asyncio.sleep(bounds.SWEEP_S)
            self._connections.sweep()

    # ----- from request to response ------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        counters = self._service.counters
        begun_ns, method = counters.begin(PROTOCOL), OTHER
        status, sent = GONE, 0
        seat = cast(_Connection, request.protocol).seat
        seat.begin()
        try:
            host, path = _target(request)
            found = self._find(path)
            standing = self._admit(request, found, host)
            if self._tokens.guard(found.right):
                self._seats.recognize(seat, standing)
            if request.method not in found.methods:
                raise WrongMethod(
                    f"{request.method} is not for {request.raw_path[:200]}", ", ".join(found.methods)
                )
            method = found.name
            with self._service.admitted():
                response = await found.handler(self, request, path)
                self._hang_up_if_leaving(response)
                is_large = (
                    isinstance(response, web.Response)
                    and (response.content_length or 0) > bounds.JOINED_BYTES_MAX
                )
                if is_large and request.method != "HEAD":
                    response = await self._send_large(request, cast(web.Response, response))
            if found.right is not Right.OPEN:
                self._seats.recognize(seat, standing)
            status, sent = response.status, response.content_length or response.body_length
            return response
        except ClockworkError as error:
            response = self._error(error)
            self._hang_up_if_leaving(response)
            status, sent = response.status, response.content_length or 0
            return response
        except Exception:  # a defect of the gateway, which handle_error() logs
            status = 500
            raise
        finally:
            if status == GONE:
                counters.abandon(PROTOCOL)
            else:
                counters.end(PROTOCOL, method, status, begun_ns, request.content_length or 0, sent)
            seat.end(now_ns())
            cast(_Connection, request.protocol).asked = False

    def _hang_up_if_leaving(self, response: web.StreamResponse) -> None:
        """Have a response say that its connection ends, so that no client sends a request on a connection
        that is just being closed."""
        if self._service.is_leaving and not response.prepared:
            response.force_close()

    def _admit(self, request: web.BaseRequest, path: Path, host: str) -> Standing:
        """Return the standing that the request's token gives.

        host: the server's name in the request. Raises Unauthorized, and Forbidden, also for requests that a
        web page may have sent.
        """
        if path.right is Right.OPEN:
            return Standing.STRANGER
        headers = request.headers
        authorization = headers.get("Authorization", "")
        asking = Asking(
            host, headers.get("Origin", ""), headers.get("Content-Type", ""),
            headers.get("User-Agent", ""), authorization,
        )  # fmt: skip
        # Beyond loopback, proxies have names of their own; a change without a token is checked even there.
        checks_host = self._checks_host or (path.changes and not self._tokens.guard(path.right))
        if wrong := refusal(asking, self._names, checks_host, path.changes):
            raise Forbidden(wrong)
        return self._tokens.check(path.right, bearer(authorization.encode("utf-8", "surrogateescape")))

    def _find(self, path: list[str]) -> Path:
        """Return the Path that matches the segments of a request's path. Raises NotFound."""
        words = path[1:] if path[1:] != ["v2", ""] else ["v2"]
        for candidate in PATHS:
            if candidate.fits(words):
                return candidate
        raise NotFound(f"there is no {'/'.join(path)[:200]!r}; /openapi.json lists all paths")

    async def _body(self, request: web.BaseRequest, limit: int) -> bytes | bytearray:
        """Return a request's body, whose bytes are held until the caller releases them.

        Raises TooLarge, TooSlow or Refused.
        """
        length = request.content_length
        if length is not None and length > limit:
            raise TooLarge(f"the request has {length} bytes, at most {limit} are taken")
        content = request.content
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            # otherwise the client waits before it sends the body
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        held = 0
        body: bytes | bytearray
        try:
            if content.is_eof():
                body = content.read_nowait()
                self._service.hold(len(body))
                held = len(body)
            else:
                # a bytearray grows without a copy of its bytes; joining pieces would copy them
                body = bytearray()
                begun = asyncio.get_running_loop().time()
                while piece := await self._piece(request, begun, held):
                    self._service.hold(len(piece))
                    held += len(piece)
                    body += piece
                    if held > limit:
                        raise TooLarge(f"the request has more than {limit} bytes")
        except BaseException as error:
            self._service.hold(-held)
            if isinstance(error, web.RequestPayloadError):
                raise InvalidInput(f"the request's body is broken: {_one_line(error)}") from None
            raise
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return body
        try:
            return await self._inflater.inflate(body, encoding, limit, self._service.hold)
        finally:
            self._service.hold(-held)

    async def _piece(self, request: web.BaseRequest, begun: float, received: int) -> bytes:
        """Return the next bytes of a body; b"" at its end. received: bytes so far. Raises TooSlow."""
        settings, seat = self._settings, cast(_Connection, request.protocol).seat
        due_s = min(settings.body_s, bounds.BODY_GRACE_S + received / bounds.BODY_BYTES_PER_S_MIN)
        seat.end(now_ns())  # while it waits, the connection may lose its seat
        try:
            async with asyncio.timeout_at(begun + due_s):
                return await request.content.readany()
        except TimeoutError:
            raise TooSlow(
                f"{received} bytes of the request's body came within {due_s:.3g} s: after {bounds.BODY_GRACE_S:g} s it must "
                f"come at {bounds.BODY_BYTES_PER_S_MIN} bytes/s at least, and be whole within {settings.body_s:g} s"
            ) from None
        finally:
            seat.begin()

    async def _json_body(self, request: web.BaseRequest) -> dict[str, Any]:
        """The body as JSON; an empty body is an empty object."""
        body = await self._body(request, bounds.JSON_AT_ONCE_BYTES)
        self._service.hold(-len(body))
        return read_object(body, "the body") if body.strip() else {}

    # ----- inference ---------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        limit, service = self._settings.request_bytes_max, self._service
        body = await self._body(request, limit)
        shared = service.shared(lambda: _user_of(request), limit)
        connection = cast(_Connection, request.protocol)
        held = HeldAnswer(connection, 1, connection.reset)
        converted = 0
        try:
            try:
                if request.headers.get(HEADER_LENGTH) == "0":
                    inference, wants = await self._read_raw(request, path, body)
                else:
                    try:
                        inference, wants = await self._read(request, path, body, shared)
                        # Elements in JSON became raw bytes, which may be more than their JSON.
                        if (size := sum(map(len, inference.frames)) - len(body)) > 0:
                            service.hold(size)
                            converted = size
                        await shared.read(inference.frames)
                    except InvalidInput as error:
                        raise await service.blame(*_named(path), error) from None
                service.answers.ask(held, inference.model, now_ns())
                answer, frames = await service.infer(inference, PROTOCOL, request.headers)
                service.answers.come(held, sum(map(len, frames)), now_ns())
                chosen = service.chosen(inference, answer)
                chosen, frames = await service.classified(inference, chosen, answer, frames)
                delivered = await shared.deliver(chosen, frames)
                parts = parts_of(inference, wants, answer, chosen, frames, delivered)
            finally:
                shared.release()
                service.hold(-len(body) - converted)
            return _at_once(*parts) or await self._send(request, held, *parts)
        finally:
            service.answers.release(held)

    async def _send_large(self, request: web.BaseRequest, response: web.Response) -> web.StreamResponse:
        """Send a response with an account for its bytes, as for a large answer. Raises Refused."""
        answers, connection = self._service.answers, cast(_Connection, request.protocol)
        held, body = HeldAnswer(connection, 1, connection.reset), cast(bytes, response.body)
        try:
            answers.come(held, len(body), now_ns())
            return await self._send(request, held, dict(response.headers), [body], [])
        finally:
            answers.release(held)

    async def _send(
        self,
        request: web.BaseRequest,
        held: HeldAnswer,
        headers: dict[str, str],
        text: list[bytes | Listed],
        binary: list[Any],
    ) -> web.StreamResponse:
        """Send a large answer, its JSON and then its binary data, in pieces.

        Each piece waits until the connection has taken the piece before (backpressure).
        """
        answers = self._service.answers
        if binary:  # a header has the length of the JSON
            header = b"".join([piece async for piece in self._pieces(text)])
            headers |= {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
            text = [header]
        response = web.StreamResponse(headers={"Content-Type": "application/json"} | headers)
        if all(isinstance(part, bytes) for part in text):
            response.content_length = sum(map(len, [*cast(list[bytes], text), *binary]))
        seat = cast(_Connection, request.protocol).seat
        # The client of a valid request has more time to read than a stranger has to send a request.
        self._seats.recognize(seat, Standing.CLIENT)
        seat.end(now_ns())  # while the client reads, the connection may lose its seat
        try:
            # The end of the connection also cancels this coroutine.
            with contextlib.suppress(ConnectionResetError):
                await response.prepare(request)
                async for piece in self._pieces([*text, *binary]):
                    await response.write(piece)
                    answers.move(held, now_ns())
                    seat.progress(now_ns())
                await response.write_eof()
        finally:
            seat.begin()
        return response

    async def _pieces(self, parts: list[Any]) -> AsyncIterator[Any]:
        """Yield the parts of an answer in pieces that a connection takes at once.

        Lists become JSON beside the loop.
        """
        for part in parts:
            at = 0
            if isinstance(part, Listed):
                while at < part.nbytes:
                    piece, at = await self._service.writing.run(0, part.piece, at)
                    yield piece
            else:
                view = memoryview(part)
                for at in range(0, len(view), bounds.ANSWER_PIECE_BYTES):
                    yield view[at : at + bounds.ANSWER_PIECE_BYTES]

    async def _read(
        self, request: web.BaseRequest, path: list[str], body: bytes | bytearray, shared: Shared
    ) -> tuple[Inference, Wants]:
        """Return the inference that a request asks for, and the form of its outputs.

        Raises InvalidInput, TooLarge.
        """
        length = json_length(request.headers.get(HEADER_LENGTH), len(body))
        text = body if length == len(body) else body[:length]
        if length <= bounds.JSON_AT_ONCE_BYTES:
            fields = read_object(text, "the request")
        else:
            fields = await self._service.reading.run(length, read_inference, text, "the request")
        return inference_of(
            fields, memoryview(body)[length:], shared, *_named(path), _header_timeout(request)
        )

    async def _read_raw(
        self, request: web.BaseRequest, path: list[str], body: bytes | bytearray
    ) -> tuple[Inference, Wants]:
        """Return the inference of a request whose body is its model's only input, raw; outputs are raw as
        well."""
        named = _named(path)
        name, code, shape = await self._service.only_input(*named, len(body))
        if code == STRING:
            body = join_strings([body])
        timeout_ns = _header_timeout(request)
        inference = Inference(
            reference_of(*named), "", [[name, code, shape, 0]], [memoryview(body)], [], timeout_ns, 0
        )
        return inference, Wants({}, True, {})

    # ----- everything else ---------------------------------------------------------------------

    async def _server(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, self._service.server())

    async def _live(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, {"live": True})

    async def _ready(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        why = await self._service.why_not_ready()
        return self._error(Unavailable(f"not ready: {why}")) if why else _json(200, {"ready": True})

    async def _model_ready(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        name, version = _named(path)
        if await self._service.model_ready(name, version):
            return _json(200, {"name": name, "ready": True})
        return _json(400, {"error": "Model version not ready", "reason": "not_ready"})

    async def _metadata(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, await self._service.metadata(*_named(path)))

    async def _config(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, await self._service.config(*_named(path)))

    async def _statistics(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        name, version = _named(path) if len(path) > 4 else ("", "")
        return _json(200, {"model_stats": await self._service.statistics(name, version)})

    async def _models(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        """Answer with the names of models that can be asked, as KServe's server does."""
        rows = await self._service.index(only_ready=True)
        return _json(200, {"models": list(dict.fromkeys(row["name"] for row in rows))})

    async def _index(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        only_ready = (await self._json_body(request)).get("ready", False)
        if type(only_ready) is not bool:
            raise InvalidInput(f"ready must be true or false, got {telling.tell(only_ready)}")
        return _json(200, await self._service.index(only_ready))

    async def _load(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        service = self._service
        limit = self._settings.request_bytes_max if service.takes_models else bounds.JSON_AT_ONCE_BYTES
        body = await self._body(request, limit)
        try:
            fields: dict[str, Any] = {}
            if len(body) > bounds.JSON_AT_ONCE_BYTES:
                fields = await service.reading.run(len(body), read_object, body, "the body")
            elif body.strip():
                fields = read_object(body, "the body")
            await service.load(path[4], parameters_of(fields, "the request"))
        finally:
            service.hold(-len(body))
        return _json(200, {})

    async def _unload(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        parameters = parameters_of(await self._json_body(request), "the request")
        await self._service.unload(path[4], parameters)
        return _json(200, {})

    async def _region_status(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        regions = self._service.regions()
        found = regions.status(_user_of(request), _region(path))
        return _json(200, [region.described() for region in found])

    async def _register_region(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        regions, fields = self._service.regions(), await self._json_body(request)
        regions.register(
            _user_of(request), path[4], fields.get("key"), fields.get("offset", 0), fields.get("byte_size")
        )
        return _json(200, {})

    async def _unregister_region(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        regions, _ = self._service.regions(), await self._json_body(request)
        regions.unregister(_user_of(request), _region(path))
        return _json(200, {})

    async def _cuda_status(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        if name := _region(path):
            raise NotFound(f"Unable to find cuda shared memory region: {name[:80]!r}")
        return _json(200, [])

    async def _register_cuda(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        await self._json_body(request)
        raise Unsupported(NO_CUDA_MEMORY)

    async def _unregister_cuda(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        await self._json_body(request)
        return _json(200, {})

    async def _openapi(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, openapi.document(bool(self._tokens), self._settings.status_codes))

    def _error(self, error: ClockworkError) -> web.Response:
        told = tell(error, self._settings.status_codes)
        return _json(told.status, told.body, told.headers)


PATHS = (
    # Inference comes first, because it has to be found fastest.
    Path("/v2/models/{model}/infer", HttpServer._infer, POST),
    Path("/v2/models/{model}/versions/{version}/infer", HttpServer._infer, POST),
    Path("/v2", HttpServer._server, GET),
    Path("/v2/health/live", HttpServer._live, GET),
    Path("/v2/health/ready", HttpServer._ready, GET),
    Path("/v2/models", HttpServer._models, GET),
    Path("/v2/models/stats", HttpServer._statistics, GET),
    Path("/v2/models/{model}", HttpServer._metadata, GET),
    Path("/v2/models/{model}/ready", HttpServer._model_ready, GET),
    Path("/v2/models/{model}/config", HttpServer._config, GET),
    Path("/v2/models/{model}/stats", HttpServer._statistics, GET),
    Path("/v2/models/{model}/versions/{version}", HttpServer._metadata, GET),
    Path("/v2/models/{model}/versions/{version}/ready", HttpServer._model_ready, GET),
    Path("/v2/models/{model}/versions/{version}/config", HttpServer._config, GET),
    Path("/v2/models/{model}/versions/{version}/stats", HttpServer._statistics, GET),
    Path("/v2/systemsharedmemory/status", HttpServer._region_status, GET),
    Path("/v2/systemsharedmemory/unregister", HttpServer._unregister_region, POST),
    Path("/v2/systemsharedmemory/region/{region}/status", HttpServer._region_status, GET),
    Path("/v2/systemsharedmemory/region/{region}/register", HttpServer._register_region, POST),
    Path("/v2/systemsharedmemory/region/{region}/unregister", HttpServer._unregister_region, POST),
    Path("/v2/cudasharedmemory/status", HttpServer._cuda_status, GET),
    Path("/v2/cudasharedmemory/unregister", HttpServer._unregister_cuda, POST),
    Path("/v2/cudasharedmemory/region/{region}/status", HttpServer._cuda_status, GET),
    Path("/v2/cudasharedmemory/region/{region}/register", HttpServer._register_cuda, POST),
    Path("/v2/cudasharedmemory/region/{region}/unregister", HttpServer._unregister_cuda, POST),
    Path("/v2/repository/index", HttpServer._index, POST),
    Path("/v2/repository/models/{model}/load", HttpServer._load, POST),
    Path("/v2/repository/models/{model}/unload", HttpServer._unload, POST),
    Path("/openapi.json", HttpServer._openapi, GET),
)
"""The server's paths, in the order in which they are tried."""


def _target(request: web.BaseRequest) -> tuple[str, list[str]]:
    """Return the server's name in the request ("": none), and the segments of the path."""
    host, path = request.headers.get("Host", ""), request.raw_path
    if path[:1] != "/" and path[:8].lower().startswith(("http://", "https://")):
        # The absolute form, as for a proxy: the URL's host takes precedence over Host (RFC 9112, 3.2.2).
        host, slash, path = path.partition("://")[2].partition("?")[0].partition("/")
        path = slash + path
    segments = path.partition("?")[0].split("/")
    if "%" in path:
        segments = [urllib.parse.unquote(segment) for segment in segments]
    return host, segments


def _named(path: list[str]) -> tuple[str, str]:
    """Return model and version ("": none) of the path /v2/models/NAME[/versions/VERSION]."""
    return path[3], path[5] if path[4:5] == ["versions"] else ""


def _region(path: list[str]) -> str:
    """Return the region of the path /v2/systemsharedmemory[/region/NAME]/ACTION; "": all."""
    return path[4] if path[3] == "region" else ""


def _user_of(request: web.BaseRequest) -> int:
    """Return the user id of the program that made a request. Raises Forbidden; see Caller.user()."""
    transport = request.transport
    peer, served = (
        (transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        if transport
        else (None, None)
    )
    if peer is None or served is None:
        raise Forbidden("the connection of this request has ended")
    return Caller(Endpoint(*peer[:2]), Endpoint(*served[:2]), request.headers).user()


def _header_timeout(request: web.BaseRequest) -> int:
    """The timeout in the header X-Clockwork-Timeout-Us, in nanoseconds; 0: none. Raises InvalidInput."""
    text = request.headers.get(TIMEOUT)
    if text is None:
        return 0
    whole = text.isascii() and text.isdigit() and len(text) < 20
    return timeout_of(int(text) if whole else text, f"header {TIMEOUT}")


def _json(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=dumps(body), status=status, headers=headers, content_type="application/json")


def _at_once(headers: dict[str, str], text: list[bytes | Listed], binary: list[Any]) -> web.Response | None:
    """Return an answer as a single response; None: it is too large for that."""
    if len(text) > 1 or sum(piece.nbytes for piece in binary) > bounds.JOINED_BYTES_MAX:
        return None
    header = cast(bytes, text[0])
    if not binary:
        return web.Response(body=header, content_type="application/json", headers=headers)
    headers |= {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return web.Response(body=b"".join([header, *binary]), headers=headers)
