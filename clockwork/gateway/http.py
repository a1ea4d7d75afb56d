"""The Open Inference Protocol over HTTP, with Triton's extensions, on aiohttp.

InferenceService (service.py) answers; this module reads requests and writes answers. It uses aiohttp's server without
its application layer: for a dozen paths, a router and middlewares would cost more than they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, cast

from aiohttp import web

from clockwork.client.calls import request_of
from clockwork.config import TENSORS_MAX
from clockwork.config.gateway import (
    ANSWER_PIECE_BYTES,
    BODY_BYTES_PER_S_MIN,
    BODY_GRACE_S,
    HEADER_BYTES_MAX,
    JOINED_BYTES_MAX,
    JSON_ANSWER_BYTES_MAX,
    JSON_AT_ONCE_BYTES,
    JSON_BYTES_MAX,
    LINGER_S,
    LISTED_AT_ONCE_BYTES,
    SWEEP_S,
)
from clockwork.errors import ClockworkError, Forbidden, InvalidInput, Unavailable
from clockwork.gateway import openapi
from clockwork.gateway.answers import Held
from clockwork.gateway.callers import Address, Caller
from clockwork.gateway.errors import REQUEST, NotFound, TooLarge, TooSlow, Unsupported, WrongMethod, tell
from clockwork.gateway.inflate import Inflater
from clockwork.gateway.listener import Listener
from clockwork.gateway.long_json import read_inference, read_object
from clockwork.gateway.regions import NO_CUDA_MEMORY, REGION, Shared
from clockwork.gateway.security import Tokens, bearer, is_loopback, names_of
from clockwork.gateway.service import (
    Inference,
    InferenceService,
    least,
    priority_of,
    reference_of,
    refuse_sequences,
    timeout_of,
)
from clockwork.gateway.settings import GatewaySettings
from clockwork.gateway.tensors import (
    NAME_OF,
    Listed,
    check_size,
    checked_shape,
    code_of,
    frame_of_json,
)
from clockwork.system.clock import now_ns, to_ns
from clockwork.web.pages import Asking, Names, refusal
from clockwork.web.seats import Seat, Seats, Standing
from clockwork.wire import inflow, telling
from clockwork.wire.messages import Answer, NamedTensorRef
from clockwork.wire.references import name_of
from clockwork.wire.roles import HTTP, Right
from clockwork.wire.tensors import STRING, join_strings
from clockwork.wire.transport import Frame

log = logging.getLogger("clockwork.gateway")

HEADER_LENGTH = "Inference-Header-Content-Length"
TIMEOUT = "X-Clockwork-Timeout-Us"


PROTOCOL = "http"
OTHER = "other"
"""The method under which requests for unknown paths are counted."""

GONE = 0
"""In place of a status: the client went away."""


Handler = Callable[[Any, web.BaseRequest, list[str]], Awaitable[web.StreamResponse]]
"""A method of a server, which is its first argument; then the request and the segments of its path."""

GET: tuple[str, ...] = ("GET", "HEAD")
POST: tuple[str, ...] = ("POST",)


class Path:
    """A path of a server: its handler, its methods, and the right that a request for it needs."""

    __slots__ = ("changes", "handler", "methods", "name", "right", "words")

    def __init__(self, template: str, handler: Handler, methods: tuple[str, ...]) -> None:
        """template: a key of clockwork.wire.roles.HTTP, which gives the right; {word} stands for any segment."""
        self.handler = handler
        self.methods = methods
        self.name = handler.__name__[1:]  # under which its requests are counted
        self.right = HTTP[template]
        self.words = template.split("/")[1:]
        # Regions are changed with a client's right: they are the caller's own.
        self.changes = self.right is Right.OPERATE or self.words[-1] in ("register", "unregister")

    def fits(self, words: list[str]) -> bool:
        """Whether a request's path, as segments, is this one."""
        return len(words) == len(self.words) and all(
            mine == word or mine[:1] == "{" for mine, word in zip(self.words, words)
        )


class _Connection(web.RequestHandler):
    """A client's connection: its seat, and since when the client has kept the server waiting for headers."""

    __slots__ = ("asked", "seat", "since")

    def __init__(self, manager: _Connections, seat: Seat, **more: Any) -> None:
        super().__init__(manager, **more)
        self.seat = seat
        self.asked = False  # headers are complete whose request is not yet answered
        self.since = 0.0  # when the first byte of a request came whose headers are not complete; 0: none

    def data_received(self, data: bytes) -> None:
        if not self.asked and not self.since:
            self.since = self._loop.time()
        super().data_received(data)

    def reset(self) -> None:
        """End the connection, and drop the bytes that the kernel holds for it: its client does not read them."""
        if self.transport is not None:
            connection = self.transport.get_extra_info("socket")
            if connection is not None:  # as for TLS, once the peer has gone
                inflow.drop_unsent(connection)  # by no duplicate: there may be no descriptor left for it
            self.transport.abort()

    def log_exception(self, *args: Any, **more: Any) -> None:
        """Log, except for a broken body: its client is told, and anybody could fill the log with them."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The response to an error that aiohttp itself finds: mostly bytes that are not HTTP."""
        self.asked = False  # the request goes no further
        if status == 500:
            log.error("a request failed: %s %s", request.method, request.raw_path[:200], exc_info=exc)
            text = "the gateway failed; its log says how"
        else:
            text = message.split("\n")[0][:200] if message else _one_line(exc)
        response = _json(status, {"error": text, "reason": "internal" if status == 500 else "malformed_http"})
        response.force_close()
        return response


def _one_line(error: BaseException | None) -> str:
    """An error of aiohttp's in one line, without the status that it begins with."""
    text = " ".join(str(error or "").split())
    return text.removeprefix("400, message: ")[:200] or "it is no HTTP"


class _Connections(web.Server):
    """A server's connections, each on a seat."""

    def __init__(
        self, handler: Any, settings: GatewaySettings, seats: Seats, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            handler, request_factory=self._new_request, handler_cancellation=True, keepalive_timeout=settings.idle_s,
            auto_decompress=False, access_log=None, max_line_size=HEADER_BYTES_MAX, max_field_size=HEADER_BYTES_MAX, lingering_time=LINGER_S,
            logger=log,
        )  # fmt: skip
        self._settings = settings
        self._seats = seats
        self._running = loop

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
        seat.close = transport.abort  # close() would wait for what the client does not read
        if seat not in self._seats:  # vacated as the handshake ended
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._seats.leave(cast(_Connection, handler).seat)

    def sweep(self) -> None:
        """Close the connections whose clients take too long to say who they are, to send headers, or to read answers."""
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
    """Serves until close(). tokens: those that Authorization must bear."""

    def __init__(
        self, service: InferenceService, settings: GatewaySettings, tokens: Tokens, seats_max: int
    ) -> None:
        self._service = service
        self._settings = settings
        self._tokens = tokens
        self._names = Names(names_of(settings))
        self._checks_host = is_loopback(settings.host)
        self._seats = Seats(seats_max)
        self._inflater = Inflater()
        self._connections: _Connections | None = None
        self._listener: Listener | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take over a bound socket."""
        loop = asyncio.get_running_loop()
        self._connections = _Connections(self._handle, self._settings, self._seats, loop)
        self._listener = Listener(listening, tls, self._seats, self._connections.protocol_of)
        self._sweeper = loop.create_task(self._sweep())

    async def close(self) -> None:
        """Accept no more requests, and let those under way end, for a bounded time."""
        if self._connections is None or self._listener is None or self._sweeper is None:
            return
        self._listener.close()
        self._connections.pre_shutdown()
        await self._connections.shutdown(self._settings.drain_s)
        self._sweeper.cancel()
        self._inflater.close()

    async def _sweep(self) -> None:
        assert self._connections is not None
        while True:
            await asyncio.sleep(SWEEP_S)
            self._connections.sweep()

    # ----- from request to response ------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        counters = self._service.counters
        begun_ns, method = counters.begin(PROTOCOL), OTHER
        status, sent = GONE, 0
        seat = cast(_Connection, request.protocol).seat
        seat.begin()
        try:
            path = request.raw_path.partition("?")[0].split("/")
            if "%" in request.raw_path:
                path = [urllib.parse.unquote(segment) for segment in path]
            found = self._find(path)
            standing = self._admit(request, found)
            if self._tokens.guard(found.right):
                self._seats.recognize(seat, standing)
            if request.method not in found.methods:
                raise WrongMethod(
                    f"{request.method} is not for {request.raw_path[:200]}", ", ".join(found.methods)
                )
            method = found.name
            with self._service.admitted():
                response = await found.handler(self, request, path)
                is_large = (
                    isinstance(response, web.Response) and (response.content_length or 0) > JOINED_BYTES_MAX
                )
                if is_large and request.method != "HEAD":
                    response = await self._send_large(request, cast(web.Response, response))
            if found.right is not Right.OPEN:
                self._seats.recognize(seat, standing)
            status, sent = response.status, response.content_length or response.body_length
            return response
        except ClockworkError as error:
            response = _error(error)
            status, sent = response.status, response.content_length or 0
            return response
        except Exception:  # a mistake of ours, which handle_error() tells of
            status = 500
            raise
        finally:
            if status == GONE:
                counters.abandon(PROTOCOL)
            else:
                counters.end(PROTOCOL, method, status, begun_ns, request.content_length or 0, sent)
            seat.end(now_ns())
            cast(_Connection, request.protocol).asked = False

    def _admit(self, request: web.BaseRequest, path: Path) -> Standing:
        """The standing of who asks, by token. Raises Unauthorized; Forbidden also for what a web page may have sent."""
        if path.right is Right.OPEN:
            return Standing.STRANGER
        headers = request.headers
        authorization = headers.get("Authorization", "")
        asking = Asking(
            headers.get("Host", ""), headers.get("Origin", ""), headers.get("Content-Type", ""),
            headers.get("User-Agent", ""), authorization,
        )  # fmt: skip
        # Beyond loopback there are proxies, with names of their own; a change without a token is all the same checked.
        checks_host = self._checks_host or (path.changes and not self._tokens.guard(path.right))
        if wrong := refusal(asking, self._names, checks_host, path.changes):
            raise Forbidden(wrong)
        return self._tokens.check(path.right, bearer(authorization.encode("utf-8", "surrogateescape")))

    def _find(self, path: list[str]) -> Path:
        """The Path for a request, by the segments of the request's path. Raises NotFound."""
        words = path[1:] if path[1:] != ["v2", ""] else ["v2"]
        for candidate in PATHS:
            if candidate.fits(words):
                return candidate
        raise NotFound(f"there is no {'/'.join(path)[:200]!r}; /openapi.json lists what there is")

    async def _body(self, request: web.BaseRequest, limit: int) -> bytes | bytearray:
        """A request's body, whose bytes are held until the caller releases them. Raises TooLarge, TooSlow or Refused."""
        length = request.content_length
        if length is not None and length > limit:
            raise TooLarge(f"the request has {length} bytes, at most {limit} are taken")
        content = request.content
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(
                b"HTTP/1.1 100 Continue\r\n\r\n"
            )  # else a client waits before it sends the body
        held = 0
        body: bytes | bytearray
        try:
            if content.is_eof():
                body = content.read_nowait()
                self._service.hold(len(body))
                held = len(body)
            else:
                body = (
                    bytearray()
                )  # which grows without a copy of what is there, as to join the pieces would be
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
        """The next bytes of a body of which so many have come; b"" at its end. Raises TooSlow."""
        settings, seat = self._settings, cast(_Connection, request.protocol).seat
        due_s = min(settings.body_s, BODY_GRACE_S + received / BODY_BYTES_PER_S_MIN)
        seat.end(now_ns())  # until they come, the connection may have to make room
        try:
            async with asyncio.timeout_at(begun + due_s):
                return await request.content.readany()
        except TimeoutError:
            raise TooSlow(
                f"{received} bytes of the request's body came within {due_s:.3g} s: after {BODY_GRACE_S:g} s it must "
                f"come at {BODY_BYTES_PER_S_MIN} bytes/s at least, and be whole within {settings.body_s:g} s"
            ) from None
        finally:
            seat.begin()

    async def _json_body(self, request: web.BaseRequest) -> dict[str, Any]:
        """The body as JSON; an empty body is an empty object."""
        body = await self._body(request, JSON_AT_ONCE_BYTES)
        self._service.hold(-len(body))
        return read_object(body, "the body") if body.strip() else {}

    # ----- inference ---------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        limit, service = self._settings.request_bytes_max, self._service
        body = await self._body(request, limit)
        shared = service.shared(lambda: _user_of(request), limit)
        connection = cast(_Connection, request.protocol)
        held = Held(connection, 1, connection.reset)
        converted = 0
        try:
            try:
                if request.headers.get(HEADER_LENGTH) == "0":
                    inference, wants = await self._read_raw(request, path, body)
                else:
                    try:
                        inference, wants = await self._read(request, path, body, shared)
                        # What elements in JSON became, which may be more than they were.
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
                delivered = await shared.deliver(chosen, frames)
                response = _answer(inference, wants, answer, chosen, frames, delivered)
            finally:
                shared.release()
                service.hold(-len(body) - converted)
            if isinstance(response, web.Response):
                return response
            return await self._send(request, held, *response)
        finally:
            service.answers.release(held)

    async def _send_large(self, request: web.BaseRequest, response: web.Response) -> web.StreamResponse:
        """Send a response as a large answer is sent. Raises Refused."""
        answers, connection = self._service.answers, cast(_Connection, request.protocol)
        held, body = Held(connection, 1, connection.reset), cast(bytes, response.body)
        try:
            answers.come(held, len(body), now_ns())
            return await self._send(request, held, dict(response.headers), [body], [])
        finally:
            answers.release(held)

    async def _send(
        self,
        request: web.BaseRequest,
        held: Held,
        headers: dict[str, str],
        text: list[bytes | Listed],
        binary: list[Any],
    ) -> web.StreamResponse:
        """Send a large answer, its JSON and then its binary data, piece by piece: the next when the connection has taken
        the one before."""
        answers = self._service.answers
        if binary:  # a header says how long the JSON is
            header = b"".join([piece async for piece in self._pieces(text)])
            headers |= {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
            text = [header]
        response = web.StreamResponse(headers={"Content-Type": "application/json"} | headers)
        if all(isinstance(part, bytes) for part in text):
            response.content_length = sum(map(len, [*cast(list[bytes], text), *binary]))
        seat = cast(_Connection, request.protocol).seat
        # The request was a good one: its client has longer for the answer than a stranger for a request.
        self._seats.recognize(seat, Standing.CLIENT)
        seat.end(now_ns())  # until the client has read it, the connection may have to make room
        try:
            # The connection's end, by its caller or because the answer is not read, also cancels this.
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
        """Parts of an answer, in pieces that a connection takes at once. Lists become JSON beside the loop."""
        for part in parts:
            at = 0
            if isinstance(part, Listed):
                while at < part.nbytes:
                    piece, at = await self._service.writing.run(0, part.piece, at)
                    yield piece
            else:
                view = memoryview(part)
                for at in range(0, len(view), ANSWER_PIECE_BYTES):
                    yield view[at : at + ANSWER_PIECE_BYTES]

    async def _read(
        self, request: web.BaseRequest, path: list[str], body: bytes | bytearray, shared: Shared
    ) -> tuple[Inference, _Wants]:
        """The inference that a request asks for, and the form of its outputs. Raises InvalidInput."""
        headers = request.headers
        length_text = headers.get(HEADER_LENGTH)
        if not body:
            raise InvalidInput(
                "the request has no body; it is a JSON object with inputs",
                expected="a JSON object",
                got="0 bytes",
            )
        if length_text is None:
            length = len(body)
        elif length_text.isascii() and length_text.isdigit() and len(length_text) < 12:
            length = int(length_text)
        else:
            length = -1
        if not 0 < length <= len(body):
            raise InvalidInput(
                f"{HEADER_LENGTH} {str(length_text)[:40]!r} for a body of {len(body)} bytes: "
                "the bytes of JSON that it begins with",
                expected=f"1 to {len(body)}", got=str(length_text)[:40],
            )  # fmt: skip
        if length > JSON_BYTES_MAX:
            raise TooLarge(f"JSON of {length} bytes, at most {JSON_BYTES_MAX} are taken; send binary data")
        text = body if length == len(body) else body[:length]
        if length <= JSON_AT_ONCE_BYTES:
            fields = read_object(text, "the request")
        else:
            fields = await self._service.reading.run(length, read_inference, text, "the request")
        parameters = _parameters(fields, "the request")
        refuse_sequences(parameters)
        timeout_ns = timeout_of(parameters.get("timeout", 0), "parameter timeout")
        request_id = fields.get("id", "")
        if type(request_id) is not str:
            raise InvalidInput(
                f"id must be a string, got {telling.tell(request_id)}", got=telling.tell(request_id)
            )
        references, frames = _inputs(fields, memoryview(body)[length:], shared)
        wants = _wants(fields, parameters, shared)
        inference = Inference(
            reference_of(*_named(path)), request_id, references, frames,
            list(wants.named), least(timeout_ns, _header_timeout(request)), priority_of(parameters),
        )  # fmt: skip
        return inference, wants

    async def _read_raw(
        self, request: web.BaseRequest, path: list[str], body: bytes | bytearray
    ) -> tuple[Inference, _Wants]:
        """A request that is nothing but the raw bytes of its model's one input; all outputs come raw as well."""
        named = _named(path)
        name, code, shape = await self._service.only_input(*named, len(body))
        if code == STRING:
            body = join_strings([body])
        timeout_ns = _header_timeout(request)
        inference = Inference(
            reference_of(*named), "", [[name, code, shape, 0]], [memoryview(body)], [], timeout_ns, 0
        )
        return inference, _Wants({}, True)

    # ----- everything else ---------------------------------------------------------------------

    async def _server(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, self._service.server())

    async def _live(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        return _json(200, {"live": True})

    async def _ready(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        why = await self._service.why_not_ready()
        return _error(Unavailable(f"not ready: {why}")) if why else _json(200, {"ready": True})

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
        """As KServe's server answers: the names of models that can be asked."""
        rows = await self._service.index(only_ready=True)
        return _json(200, {"models": list(dict.fromkeys(row["name"] for row in rows))})

    async def _index(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        only_ready = (await self._json_body(request)).get("ready", False)
        if type(only_ready) is not bool:
            raise InvalidInput(f"ready must be true or false, got {telling.tell(only_ready)}")
        return _json(200, await self._service.index(only_ready))

    async def _load(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        parameters = _parameters(await self._json_body(request), "the request")
        await self._service.load(path[4], parameters)
        return _json(200, {})

    async def _unload(self, request: web.BaseRequest, path: list[str]) -> web.StreamResponse:
        _parameters(await self._json_body(request), "the request")
        await self._service.unload(path[4])
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
        return _json(200, openapi.document(with_token=bool(self._tokens)))


PATHS = (
    # Inference comes first, because it must be found fastest.
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
"""Searched in order; the first that fits is used."""


class _Wants:
    """Which outputs a client asked for, and in which form."""

    __slots__ = ("named", "otherwise")

    def __init__(self, named: dict[str, bool], otherwise: bool) -> None:
        self.named = named  # whether binary, by name
        self.otherwise = otherwise  # whether binary, for outputs that are not named

    def binary(self, name: str) -> bool:
        return self.named.get(name, self.otherwise)


def _named(path: list[str]) -> tuple[str, str]:
    """Model and version ("" for none) of /v2/models/NAME[/versions/VERSION]."""
    return path[3], path[5] if path[4:5] == ["versions"] else ""


def _region(path: list[str]) -> str:
    """The region of /v2/systemsharedmemory[/region/NAME]/ACTION; "": all."""
    return path[4] if path[3] == "region" else ""


def _user_of(request: web.BaseRequest) -> int:
    """The user who runs the program that made a request. Raises Forbidden; see Caller.user()."""
    transport = request.transport
    peer, served = (
        (transport.get_extra_info("peername"), transport.get_extra_info("sockname"))
        if transport
        else (None, None)
    )
    if peer is None or served is None:
        raise Forbidden("the connection of this request has ended")
    return Caller(Address(*peer[:2]), Address(*served[:2]), request.headers).user()


def _header_timeout(request: web.BaseRequest) -> int:
    """The timeout in the header X-Clockwork-Timeout-Us, in nanoseconds; 0: none. Raises InvalidInput."""
    text = request.headers.get(TIMEOUT)
    if text is None:
        return 0
    whole = text.isascii() and text.isdigit() and len(text) < 20
    return timeout_of(int(text) if whole else text, f"header {TIMEOUT}")


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _json(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_dumps(body), status=status, headers=headers, content_type="application/json")


def _error(error: ClockworkError) -> web.Response:
    told = tell(error)
    return _json(told.status, told.body, told.headers)


def _parameters(fields: dict[str, Any], subject: str) -> dict[str, Any]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidInput(f"parameters of {subject} are a JSON object, got {telling.tell(parameters)}")
    return parameters


def _listed(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = fields.get(key)
    if type(rows) is list and len(rows) > TENSORS_MAX:
        raise InvalidInput(
            f"{key} has {len(rows)} objects, at most {TENSORS_MAX} are taken",
            expected=f"at most {TENSORS_MAX} {key}", got=str(len(rows)),
        )  # fmt: skip
    if type(rows) is not list or not all(type(row) is dict and type(row.get("name")) is str for row in rows):
        raise InvalidInput(f"{key} must be a list of objects with a name, got {telling.tell(rows)}")
    for row in rows:
        if not row["name"].isascii():
            _check_text(row["name"], key)
    return rows


def _check_text(name: str, key: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise InvalidInput(f"{key} has the name {ascii(name)[:80]}, which is no Unicode text") from None


def _flag(parameters: dict[str, Any], key: str, subject: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise InvalidInput(f"parameter {key} of {subject} must be true or false, got {telling.tell(value)}")
    return value


def _inputs(
    fields: dict[str, Any], rest: memoryview, shared: Shared
) -> tuple[list[NamedTensorRef], list[Frame]]:
    """Every input of a request; ``rest`` is what follows its JSON."""
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    offset = 0
    for row in _listed(fields, "inputs"):
        name = row["name"]
        code = code_of(row.get("datatype"), name)
        shape = checked_shape(row.get("shape"), name)
        parameters = _parameters(row, f"input {name!r}")
        size = parameters.get("binary_data_size")
        if REGION in parameters:
            if size is not None or "data" in row:
                raise InvalidInput(f"input {name!r} is in shared memory, and in the request as well", name)
            shared.input(parameters, code, shape, name, len(frames))
            frame: Frame = b""  # until Shared.read()
        elif size is None:
            frame = _frame(code, shape, row.get("data"), name)
        elif type(size) is not int or not 0 <= size <= len(rest) - offset:
            raise InvalidInput(
                f"input {name!r} has binary_data_size {repr(size)[:40]}, but {len(rest) - offset} bytes are left",
                name, f"at most {len(rest) - offset}", repr(size)[:40],
            )  # fmt: skip
        else:
            check_size(code, shape, size, name)
            frame = rest[offset : offset + size]
            offset += size
        references.append([name, code, shape, len(frames)])
        frames.append(frame)
    if offset != len(rest):
        raise InvalidInput(
            f"{len(rest) - offset} bytes follow the last input's",
            expected=f"{offset} bytes", got=f"{len(rest)} bytes",
        )  # fmt: skip
    return references, frames


def _frame(code: int, shape: list[int], data: Any, name: str) -> Frame:
    """Of an input's data, which read_inference() may have read already."""
    if isinstance(data, InvalidInput):
        raise data
    return data if isinstance(data, bytes | memoryview) else frame_of_json(code, shape, data, name)


def _wants(fields: dict[str, Any], parameters: dict[str, Any], shared: Shared) -> _Wants:
    otherwise = _flag(parameters, "binary_data_output", "the request", False)
    named: dict[str, bool] = {}
    if fields.get("outputs"):
        for row in _listed(fields, "outputs"):
            name = row["name"]
            its = _parameters(row, f"output {name!r}")
            if REGION in its:
                shared.output(its, name)
            if its.get("classification"):
                raise Unsupported(f"output {name!r}: classification is not supported")
            named[name] = _flag(its, "binary_data", f"output {name!r}", otherwise)
    return _Wants(named, otherwise)


def _answer(
    inference: Inference,
    wants: _Wants,
    answer: Answer,
    chosen: list[NamedTensorRef],
    frames: list[Frame],
    delivered: Collection[str],
) -> web.Response | tuple[dict[str, str], list[bytes | Listed], list[Any]]:
    """A response; or, if it is large, its headers, the parts of its JSON, and its binary data. delivered: the outputs that
    have been written to shared memory.

    Raises TooLarge, and InvalidInput for an output that has no form in JSON."""
    rows: list[tuple[dict[str, Any], Listed | None]] = []
    binary: list[Any] = []
    binary_bytes = listed_bytes = 0
    for name, code, shape, frame in chosen:
        row: dict[str, Any] = {"name": name, "datatype": NAME_OF[code], "shape": shape}
        listed: Listed | None = None
        if name in delivered:
            pass
        elif wants.binary(name):
            piece = memoryview(frames[frame])
            row["parameters"] = {"binary_data_size": piece.nbytes}
            binary_bytes += piece.nbytes
            binary.append(piece)
        else:
            listed = Listed(code, frames[frame], name)
            listed_bytes += listed.nbytes
        rows.append((row, listed))
    if listed_bytes > JSON_ANSWER_BYTES_MAX:
        raise TooLarge(
            f"the answer has {listed_bytes} bytes of tensors, at most {JSON_ANSWER_BYTES_MAX} are written as JSON; ask for "
            'binary data ("parameters": {"binary_data_output": true})'
        )
    body = {"model_name": name_of(inference.model), "model_version": str(answer.model_version)}
    request = request_of(answer)
    headers = {} if request is None else {REQUEST: str(request)}
    text = _json_parts(body, rows, inference.request_id, listed_bytes <= LISTED_AT_ONCE_BYTES)
    if len(text) > 1 or binary_bytes > JOINED_BYTES_MAX:
        return headers, text, binary
    header = cast(bytes, text[0])
    if not binary:
        return web.Response(body=header, content_type="application/json", headers=headers)
    headers |= {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return web.Response(body=b"".join([header, *binary]), headers=headers)


def _json_parts(
    body: dict[str, Any], rows: list[tuple[dict[str, Any], Listed | None]], request_id: str, at_once: bool
) -> list[bytes | Listed]:
    """An answer's JSON. Lists are parts of their own, unless they are to be written at once; all else is joined."""
    parts: list[bytes | Listed] = []
    joined = [_dumps(body)[:-1], b',"outputs":[']
    for index, (row, listed) in enumerate(rows):
        joined += [b"," if index else b"", _dumps(row)[:-1]]
        if listed is not None:
            joined.append(b',"data":[')
            if at_once:
                joined.append(listed.piece(0)[0])
            else:
                parts += [b"".join(joined), listed]
                joined = []
            joined.append(b"]")
        joined.append(b"}")
    joined.append(b"]")
    if request_id:
        joined += [b',"id":', _dumps(request_id)]
    joined.append(b"}")
    return [*parts, b"".join(joined)]
