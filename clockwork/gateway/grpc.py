"""The Open Inference Protocol over gRPC, with Triton's extensions, on grpc.aio.

InferenceService (service.py) answers; this module reads requests and writes answers. A table names the
protocol's methods, in place of generated code: grpcio needs no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf import json_format

from clockwork.config import gateway as bounds
from clockwork.errors import (
    ClockworkError,
    ConfigError,
    Forbidden,
    InvalidInput,
    ModelNotFound,
    Refused,
    Unavailable,
)
from clockwork.gateway import reflection
from clockwork.gateway._join import join
from clockwork.gateway.answers import HeldAnswer
from clockwork.gateway.callers import Caller, Endpoint
from clockwork.gateway.connections import ServerConnections
from clockwork.gateway.errors import ErrorAnswer, NotFound, TooLarge, TooSlow, Unsupported, tell
from clockwork.gateway.grpc_inference import (
    FINAL,
    begun,
    converted_bytes,
    inference_of,
    parameters_of,
    response_of,
    wants_final,
)
from clockwork.gateway.health import Health
from clockwork.gateway.inflate import Inflater
from clockwork.gateway.listener import NO_ROOM
from clockwork.gateway.regions import NO_CUDA_MEMORY
from clockwork.gateway.security import Tokens, bearer
from clockwork.gateway.service import InferenceService
from clockwork.gateway.settings import GatewaySettings
from clockwork.gateway.split import MessageReader, SplitMessage
from clockwork.protocol import health_pb2 as health_pb
from clockwork.protocol import inference_pb2 as pb
from clockwork.protocol import reflection_pb2 as reflection_pb
from clockwork.system.clock import now_ns, to_ns, to_seconds
from clockwork.web.seats import Seat, ServerSeats, Standing
from clockwork.wire.messages import Reason
from clockwork.wire.roles import GRPC, GRPC_COMMON, Right

log = logging.getLogger("clockwork.gateway")

ENDS_STREAM = ("triton_grpc_error", "true")
"""Metadata of a stream whose first error is to end it with a status of gRPC, as Triton knows it."""


def _is_defect(record: logging.LogRecord) -> bool:
    """Whether a log record of gRPC tells more than that a client left before its answer.

    Any client could fill the log with such records.
    """
    return not record.getMessage().startswith("ExecuteBatchError")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_defect)

SERVICE = "inference.GRPCInferenceService"
PROTOCOL = "grpc"

LIVENESS = "liveness"
"""The service of health checks that is healthy while the gateway runs, for liveness probes."""

HEALTH = ("", SERVICE, LIVENESS)
"""The services of health checks. Models are left out: anybody may ask for health, and model names need a
token."""

SERVING = health_pb.HealthCheckResponse.SERVING
NOT_SERVING = health_pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb.HealthCheckResponse.SERVICE_UNKNOWN

Context: TypeAlias = Any  # grpc.aio.ServicerContext, whose type annotations are incomplete

Method: TypeAlias = Callable[[Any, Context], Awaitable[Any]]

Stream: TypeAlias = Callable[[Context, "_Call"], Awaitable[ErrorAnswer | None]]
"""A method that reads the call's messages, each with its size in bytes, and writes its answers itself.

It returns or raises the error that ends the call.
"""

_STREAM_ANSWER = b"\x12"  # The tag of ModelStreamInferResponse.infer_response

CALL_BYTES = 128
"""Upper bound of the bytes that a header, or an HTTP/2 frame in a TLS record, adds to its content."""

COPIES = 2
"""Copies of an answer's bytes until the peer has received them: the gateway's message and gRPC's buffer."""


class GrpcServer:
    """Serve the protocol until close(). tokens: the bearer tokens that calls must have in their metadata."""

    def __init__(
        self, service: InferenceService, settings: GatewaySettings, tokens: Tokens, seats_max: int
    ) -> None:
        self._service = service
        self._settings = settings
        self._tokens = tokens
        self._inflater = Inflater()
        self._copying = asyncio.Lock()
        self._seats = ServerSeats(seats_max)
        self._connections: ServerConnections | None = None
        self._calls = ServerSeats(settings.requests_max + bounds.GRPC_WAITING_MAX)
        self._sweeper: asyncio.Task[None] | None = None
        self._health = Health(self._can_serve)
        self._server: Any = None
        self._host, self._port = "", 0  # the listening address; "": every address

    async def start(self, bound: socket.socket, tls: tuple[bytes, bytes] | None) -> None:
        """Take over the address of a bound socket, which is closed. Raises ConfigError."""
        settings = self._settings
        self._server = grpc.aio.server(options=[
            ("grpc.max_receive_message_length", settings.request_bytes_max),
            # gRPC's own decompression has no bound on all messages together
            ("grpc.per_message_decompression", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", bounds.GRPC_METADATA_BYTES_MAX),
            ("grpc.absolute_max_metadata_size", bounds.GRPC_METADATA_BYTES_MAX),
            # An entry of HPACK's table keeps the 64 KiB buffer in which it came, and a call keeps the entries
            # that it refers to. Proxies that have no table of their own take it that ours has HTTP/2's size.
            ("grpc.http2.hpack_table_size.decoder", bounds.PROXY_TABLE_BYTES if settings.behind_proxy else 0),
            ("grpc.http2.settings_timeout", round(bounds.GRPC_SETTINGS_S * 1000)),
            ("grpc.max_concurrent_streams", bounds.STREAMS_MAX),
            # The connections may exceed the seats until the next sweep.
            ("grpc.max_allowed_incoming_connections", 2 * self._seats.seats_max),
            ("grpc.max_connection_idle_ms", round(bounds.GRPC_IDLE_S * 1000)),
            ("grpc.server_handshake_timeout_ms", round(settings.headers_s * 1000)),
            ("grpc.keepalive_time_ms", bounds.KEEPALIVE_S * 1000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.so_reuseport", 0),  # otherwise a second gateway would silently share the port
        ])  # fmt: skip
        self._server.add_generic_rpc_handlers((_Handlers(self._methods()),))
        host, port = bound.getsockname()[:2]
        self._host, self._port = "" if host in ("0.0.0.0", "::") else host, port
        bound.close()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self._server.add_insecure_port(address)
            else:
                certificate, key = tls
                self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address} (--grpc-port): {error}") from None
        await self._server.start()
        self._connections = ServerConnections(port, self._seats)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(self._connections))

    async def close(self) -> None:
        """Accept no more calls, and let those under way end, for a bounded time."""
        await self._health.close()
        if self._server is not None:
            await self._server.stop(self._settings.drain_s)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._inflater.close()

    def calls(self) -> int:
        """Return the number of calls that have begun and not ended, with or without their messages."""
        return len(self._calls)

    async def _sweep(self, connections: ServerConnections) -> None:
        stranger_ns = to_ns(self._settings.headers_s)
        while True:
            await asyncio.sleep(bounds.GRPC_SWEEP_S)
            try:
                connections.sweep(stranger_ns)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise

    # ----- the service -------------------------------------------------------------------------

    def _methods(self) -> dict[str, Callable[[bytes | None, int], Any]]:
        """Return functions by path, each of which makes a call's handler from its token and its bytes on the
        wire."""
        unary: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "SystemSharedMemoryStatus": self._region_status,
            "SystemSharedMemoryRegister": self._register_region,
            "SystemSharedMemoryUnregister": self._unregister_region,
            "CudaSharedMemoryStatus": self._cuda_status,
            "CudaSharedMemoryRegister": self._register_cuda,
            "CudaSharedMemoryUnregister": self._unregister_cuda,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        streams: dict[str, tuple[Stream, Any]] = {
            f"/{SERVICE}/ModelStreamInfer": (self._stream, pb.ModelInferRequest),
            "/grpc.health.v1.Health/Watch": (self._watch_health, health_pb.HealthCheckRequest),
        }
        for version in (reflection.V1, reflection.V1ALPHA):
            path = f"/{version}.ServerReflection/ServerReflectionInfo"
            streams[path] = self._reflect, reflection_pb.ServerReflectionRequest
        needed = rights()
        kinds = {
            f"/{SERVICE}/{name}": (method, getattr(pb, f"{name}Request")) for name, method in unary.items()
        }
        kinds["/grpc.health.v1.Health/Check"] = self._check_health, health_pb.HealthCheckRequest
        # Declared as a stream of requests: gRPC then reads a call's message only when it is asked for the
        # message.
        return {
            path: _maker(grpc.stream_unary_rpc_method_handler, self._guarded(needed[path], method), _sized(kind))
            for path, (method, kind) in kinds.items()
        } | {
            path: _maker(grpc.stream_stream_rpc_method_handler, self._guarded(needed[path], stream, True), _sized(kind))
            for path, (stream, kind) in streams.items()
        }  # fmt: skip

    def _guarded(self, right: Right, method: Any, is_stream: bool = False) -> Callable[..., Awaitable[Any]]:
        """Return a Method or Stream with the checks of rights and bounds before it, which sends errors as
        statuses."""
        counted_as = method.__name__[1:]
        waited = (
            f"no message came within {self._settings.body_s:g} s, or the call had to make room for others because "
            "too many were without one"
        )

        async def answered(
            token: bytes | None, begun_bytes: int, context: Context
        ) -> bytes | ErrorAnswer | None:
            """Return the answer of a unary call, None for a stream, or the error that ends either."""
            assert self._connections is not None
            peer = context.peer()
            call = _Call(peer, self._connections.seat_of(peer), begun_bytes)
            has_begun = False  # for a stream
            try:
                try:
                    try:
                        standing = self._tokens.check(right, token)
                        self._seats.recognize(call.connection, standing)
                        self._take(call, standing)
                        async with asyncio.timeout(
                            None if is_stream else self._settings.body_s
                        ) as call.patience:
                            if is_stream:
                                has_begun = True
                                return cast(ErrorAnswer | None, await method(context, call))
                            sized = await self._first(context, call)
                    except TimeoutError:
                        raise self._count_failure(counted_as, TooSlow(waited)) from None
                    except ClockworkError as error:
                        if has_begun:  # the stream has counted the request
                            raise
                        raise self._count_failure(counted_as, error) from None
                    message, size = sized
                    with call.work(), self._counted(counted_as, size), self._service.admitted(size):
                        async with self._read(message) as read:
                            if method == self._infer:
                                return await self._infer(read, context)
                            answer = cast(bytes, (await method(read.message, context)).SerializeToString())
                            self._service.answers.come(self._room(context), len(answer), now_ns())
                            return answer
                except (ClockworkError, grpc.aio.BaseError):
                    raise
                except Exception as error:  # a defect of the gateway: logged here, and sent as a status
                    log.error("a call of %s failed", counted_as, exc_info=error)
                    raise ClockworkError("the gateway failed; its log says how") from None
            except ClockworkError as error:
                return self._tell(error)
            finally:
                self._calls.leave(call)
                call.end_for_good()

        async def guarded(token: bytes | None, begun_bytes: int, requests: object, context: Context) -> Any:
            answer = await answered(token, begun_bytes, context)
            if not isinstance(answer, ErrorAnswer):
                return answer
            aborting = context.abort(
                getattr(grpc.StatusCode, answer.grpc),
                answer.body["error"][: bounds.DETAILS_MAX],
                answer.metadata(),
            )
            # gRPC's call keeps the error that ends it, and with it this frame, which must not refer to the
            # call: such a cycle keeps the request until the next full collection.
            del answer, requests, context
            return await aborting

        return guarded

    @contextlib.contextmanager
    def _receiving(self, call: _Call) -> Iterator[None]:
        """Count a call as waiting for messages while the context is open; _received() counts the messages."""
        assert self._connections is not None
        with self._connections.receiving(call.address):
            self._connections.take(call.address, call.begun_bytes)
            yield

    def _received(self, call: _Call, size: int) -> None:
        """Count a message of ``size`` bytes that was received completely."""
        assert self._connections is not None
        self._connections.take(call.address, _on_the_wire(size))

    async def _first(self, context: Context, call: _Call) -> tuple[Any, int]:
        """Return a call's only message, and its size. Raises InvalidInput where none comes."""
        with self._receiving(call):
            sized = await context.read()
        if sized is grpc.aio.EOF:
            raise InvalidInput("the call ended before its message came")
        self._received(call, sized[1])
        return cast(tuple[Any, int], sized)

    def _tell(self, error: ClockworkError) -> ErrorAnswer:
        return tell(error, self._settings.status_codes)

    def _take(self, call: _Call, standing: Standing) -> None:
        """Seat a call. Raises Refused where all seats have calls whose messages are being worked on."""
        vacated = self._calls.take(call)
        if vacated is call:
            raise Refused(
                f"the gateway has {self._calls.seats_max} calls, which is the most", Reason.OVERLOADED.value
            )
        if vacated is not None:
            vacated.close()
        self._calls.recognize(call, standing)

    def _count_failure(self, method: str, error: ClockworkError) -> ClockworkError:
        """Count a call that failed before its message came, and return the error."""
        with contextlib.suppress(ClockworkError), self._counted(method, 0):
            raise error
        return error

    @contextlib.contextmanager
    def _counted(self, method: str, size: int) -> Iterator[None]:
        """Count one request of ``size`` bytes by its outcome."""
        counters = self._service.counters
        begun_ns, code = counters.begin(PROTOCOL), ""
        try:
            yield
            code = "OK"
        except ClockworkError as error:
            code = self._tell(error).grpc
            raise
        finally:
            if code:
                counters.end(PROTOCOL, method, code, begun_ns, size)
            else:
                counters.abandon(PROTOCOL)

    @contextlib.asynccontextmanager
    async def _read(
        self, message: SplitMessage | _Compressed | ClockworkError
    ) -> AsyncIterator[SplitMessage]:
        """Return the message that _sized() made, inflated where it is compressed; its bytes are held
        meanwhile.

        Raises InvalidInput, TooLarge, Refused.
        """
        if isinstance(message, ClockworkError):
            raise message
        if type(message) is not _Compressed:
            yield cast(SplitMessage, message)
            return
        limit, hold = self._settings.request_bytes_max, self._service.hold
        data = await self._inflater.inflate(message.data, message.encoding, limit, hold)
        try:
            yield message.reader.read(data)
        finally:
            hold(-len(data))

    async def _infer(self, read: SplitMessage, context: Context) -> bytes:
        return await self._joined(await self._answered(read, context, self._room(context)))

    async def _joined(self, pieces: list[Any]) -> bytes:
        """Join the pieces of a message for gRPC, large ones beside the loop and one at a time.

        gRPC copies each message on the loop. After a large one, the next waits, so that the loop is free for
        others for some time.
        """
        size = sum(map(len, pieces))
        if size <= bounds.ANSWER_PIECE_BYTES:
            return b"".join(pieces)
        await self._copying.acquire()
        took_ns = 0
        try:
            joined, took_ns = await self._service.writing.run(size, _join, pieces)
            return joined
        finally:
            # gRPC copies the message as soon as it is returned, in about the time of joining it.
            asyncio.get_running_loop().call_later(3 * to_seconds(took_ns), self._copying.release)

    def _held(self, context: Context) -> HeldAnswer:
        """Return an answer's account, whose end() shuts down the connection of a peer that does not read."""
        assert self._connections is not None
        return HeldAnswer(peer := context.peer(), COPIES, functools.partial(self._connections.end, peer))

    def _room(self, context: Context) -> HeldAnswer:
        """Return the account of a call's only answer; it is released when the call is over."""
        held = self._held(context)
        task = asyncio.current_task()
        assert task is not None  # a call's task ends with the call
        # The context's own callbacks are a reference cycle: the call keeps them, and they keep the call.
        task.add_done_callback(lambda _: self._service.answers.release(held))
        return held

    async def _answered(self, read: SplitMessage, context: Context, held: HeldAnswer) -> list[Any]:
        """Infer, and return the pieces of the ModelInferResponse."""
        assert self._connections is not None
        request, service = read.message, self._service
        shared = service.shared(lambda: self._user_of(context), self._settings.request_bytes_max)
        converted = 0
        try:
            try:
                inference = await inference_of(read, context.time_remaining(), shared, service.reading)
                await shared.read(inference.frames)
                if request.inputs and not read.raw:
                    size = converted_bytes(request, inference.frames)
                    service.hold(size)
                    converted = size
            except InvalidInput as error:
                raise await service.blame(request.model_name, request.model_version, error) from None
            service.answers.ask(held, inference.model, now_ns())
            answer, frames = await service.infer(inference, PROTOCOL, context.invocation_metadata() or ())
            size = sum(map(len, frames))
            if size > bounds.GRPC_ANSWER_BYTES_MAX:
                raise TooLarge(
                    f"the answer has {size} bytes, at most {bounds.GRPC_ANSWER_BYTES_MAX} are sent over gRPC; ask over HTTP for "
                    "binary data, or for fewer outputs"
                )
            service.answers.come(held, size, now_ns())
            self._connections.take(context.peer(), size // 512)  # window updates for the answer
            chosen = service.chosen(inference, answer)
            chosen, frames = await service.classified(inference, chosen, answer, frames)
            delivered = await shared.deliver(chosen, frames)
            pieces, sent = response_of(
                inference, chosen, answer.model_version, frames, delivered, wants_final(request)
            )
        finally:
            shared.release()
            service.hold(-converted)
        service.counters.sent(PROTOCOL, sent)
        return pieces

    async def _stream(self, context: Context, call: _Call) -> ErrorAnswer | None:
        """Answer the requests of a stream in their order, with at most STREAM_WINDOW of them under way.

        An error is a message of the stream. With ENDS_STREAM in the stream's metadata, the first error ends
        the stream instead, after the answers to earlier requests, and is returned.
        """
        answers = self._service.answers
        window: asyncio.Queue[HeldAnswer | None] = asyncio.Queue(bounds.STREAM_WINDOW)
        under_way: dict[HeldAnswer, asyncio.Task[bytes | ErrorAnswer]] = {}
        ends = ENDS_STREAM in (context.invocation_metadata() or ())

        async def read() -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                self._received(call, request[1])
                held = self._held(context)
                under_way[held] = asyncio.create_task(self._streamed(request, context, held, call, ends))
                await window.put(held)
            await window.put(None)

        async def write() -> ErrorAnswer | None:
            while (held := await window.get()) is not None:
                answer = await under_way[held]
                if isinstance(answer, ErrorAnswer):
                    reading.cancel()
                    return answer
                await context.write(answer)
                answers.release(held)
                del under_way[held]
            return None

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        try:
            with self._receiving(call):
                await asyncio.wait((reading, writing), return_when=asyncio.FIRST_EXCEPTION)
                if reading.done() and not reading.cancelled():
                    reading.result()
                return await writing
        finally:
            tasks = reading, writing, *under_way.values()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for held in under_way:
                answers.release(held)

    async def _streamed(
        self, sized: tuple[Any, int], context: Context, held: HeldAnswer, call: _Call, ends: bool
    ) -> bytes | ErrorAnswer:
        """Return the message of the answer to a stream's request. ends: an error is returned as itself."""
        message, size = sized
        request: Any = None
        try:
            with call.work(), self._counted("stream_infer", size), self._service.admitted(size):
                async with self._read(message) as read:
                    request = read.message
                    pieces = await self._answered(read, context, held)
                    return await self._joined([*begun(_STREAM_ANSWER, sum(map(len, pieces))), *pieces])
        except ClockworkError as error:
            told = self._tell(error)
        if ends:
            return told
        refusal = pb.ModelStreamInferResponse(
            error_message=told.body["error"],
            infer_response=pb.ModelInferResponse(
                model_name=request.model_name if request is not None else "",
                id=request.id if request is not None else "",
            ),
        )
        if request is not None and wants_final(request):
            refusal.infer_response.parameters[FINAL].bool_param = True
        return bytes(refusal.SerializeToString())

    # ----- health and reflection ---------------------------------------------------------------

    async def _can_serve(self) -> bool:
        return not await self._service.why_not_ready()

    async def _check_health(self, request: Any, context: Context) -> Any:
        if request.service not in HEALTH:
            raise NotFound(
                f"there is no service {request.service[:80]!r} whose health is known; there are {HEALTH}"
            )
        can_serve = request.service == LIVENESS or await self._can_serve()
        return health_pb.HealthCheckResponse(status=SERVING if can_serve else NOT_SERVING)

    async def _watch_health(self, context: Context, call: _Call) -> None:
        """Send a service's health, and each change of it, until the gateway ends. The call holds a seat."""
        async with asyncio.timeout(self._settings.body_s):
            message, size = await self._first(context, call)
        with self._counted("watch_health", size), self._service.admitted(size):
            async with self._read(message) as read:
                service = read.message.service

        async def say(status: int) -> None:
            await context.write(health_pb.HealthCheckResponse(status=status).SerializeToString())

        if service not in HEALTH or service == LIVENESS:
            await say(SERVING if service == LIVENESS else SERVICE_UNKNOWN)
        # A watch counts as a call of a stranger, so the connection stays while there are seats.
        watching = self._health.watch(lambda: call.connection.progress(now_ns()))
        async with contextlib.aclosing(watching):
            async for can_serve in watching:
                if service in HEALTH and service != LIVENESS:
                    await say(SERVING if can_serve else NOT_SERVING)

    async def _reflect(self, context: Context, call: _Call) -> None:
        """Answer the requests of a reflection stream, one after the other."""
        answers = self._service.answers
        with self._receiving(call):
            while (sized := await context.read()) is not grpc.aio.EOF:
                message, size = sized
                self._received(call, size)
                with call.work(), self._counted("reflect", size), self._service.admitted(size):
                    async with self._read(message) as read:
                        if (length := read.message.ByteSize()) > bounds.REFLECTION_BYTES_MAX:
                            raise TooLarge(
                                f"the request has {length} bytes, at most {bounds.REFLECTION_BYTES_MAX} are taken"
                            )
                        answer = reflection.answer(read.message).SerializeToString()
                held = self._held(context)
                try:
                    answers.come(held, len(answer), now_ns())
                    await context.write(answer)
                finally:
                    answers.release(held)

    # ----- everything else ---------------------------------------------------------------------

    async def _server_live(self, request: Any, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=await self._can_serve())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        try:
            ready = await self._service.model_ready(request.name, request.version)
        # As Triton's server answers, because its clients poll until a model is ready
        except (ModelNotFound, Unavailable):
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        return pb.ServerMetadataResponse(**self._service.server())

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        body = await self._service.metadata(request.name, request.version)
        for tensor in body["inputs"]:
            tensor.pop("optional", None)  # the protocol's message has no such field; ModelConfig has
        return pb.ModelMetadataResponse(**body)

    async def _model_config(self, request: Any, context: Context) -> Any:
        config = await self._service.config(request.name, request.version)
        known = set(pb.DataType.keys())
        for tensor in (*config["input"], *config["output"]):
            if tensor["data_type"] not in known:  # an ONNX datatype without an equivalent in the message
                tensor["data_type"] = "TYPE_INVALID"
        return pb.ModelConfigResponse(config=json_format.ParseDict(config, pb.ModelConfig()))

    async def _model_statistics(self, request: Any, context: Context) -> Any:
        found = await self._service.statistics(request.name, request.version)
        return json_format.ParseDict(
            {"model_stats": found}, pb.ModelStatisticsResponse(), ignore_unknown_fields=True
        )

    def _user_of(self, context: Context) -> int:
        """The user who runs the program that made a call. Raises Forbidden; see Caller.user()."""
        address = _address_of(context.peer())
        if address is None:
            raise Forbidden(
                f"shared memory is for programs that connect over TCP, not {context.peer()[:40]!r}"
            )
        names = [name for name, _ in context.invocation_metadata() or ()]
        # gRPC does not tell the local address of a call. Within one machine both ends have the same address,
        # unless the server listens on a single address.
        served = Endpoint(self._host or address.host, self._port)
        return Caller(address, served, names).user()

    async def _region_status(self, request: Any, context: Context) -> Any:
        found = self._service.regions().status(self._user_of(context), request.name)
        status = pb.SystemSharedMemoryStatusResponse.RegionStatus
        return pb.SystemSharedMemoryStatusResponse(
            regions={region.name: status(**region.described()) for region in found}
        )

    async def _register_region(self, request: Any, context: Context) -> Any:
        regions, owner = self._service.regions(), self._user_of(context)
        regions.register(owner, request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def _unregister_region(self, request: Any, context: Context) -> Any:
        self._service.regions().unregister(self._user_of(context), request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _cuda_status(self, request: Any, context: Context) -> Any:
        if request.name:
            raise NotFound(f"Unable to find cuda shared memory region: {request.name[:80]!r}")
        return pb.CudaSharedMemoryStatusResponse()

    async def _register_cuda(self, request: Any, context: Context) -> Any:
        raise Unsupported(NO_CUDA_MEMORY)

    async def _unregister_cuda(self, request: Any, context: Context) -> Any:
        return pb.CudaSharedMemoryUnregisterResponse()

    async def _index(self, request: Any, context: Context) -> Any:
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(**row)
                for row in await self._service.index(request.ready)
            ]
        )

    async def _load(self, request: Any, context: Context) -> Any:
        await self._service.load(request.model_name, parameters_of(request))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> Any:
        await self._service.unload(request.model_name, parameters_of(request))
        return pb.RepositoryModelUnloadResponse()


def rights() -> dict[str, Right]:
    """The right that each method needs, by path."""
    return {f"/{SERVICE}/{name}": right for name, right in GRPC.items()} | dict(GRPC_COMMON)


def _join(pieces: list[Any]) -> tuple[bytes, int]:
    """Return the joined pieces, and the nanoseconds that joining took."""
    begun_ns = now_ns()
    return join(pieces), now_ns() - begun_ns


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds a call's handler, and gives it the token and the size of the call's headers.

    gRPC makes an object of each header whenever it is asked for them, and has made them here. Thousands of
    calls may wait. They keep no headers, because the garbage collector would visit half a million objects.
    """

    def __init__(self, methods: dict[str, Callable[[bytes | None, int], Any]]) -> None:
        self._methods = methods

    def service(self, handler_call_details: Any) -> Any:
        maker = self._methods.get(handler_call_details.method)
        return None if maker is None else maker(*_token_and_bytes(handler_call_details.invocation_metadata))


def _maker(
    kind: Any, method: Callable[..., Awaitable[Any]], read: Callable[[bytes], Any]
) -> Callable[[bytes | None, int], Any]:
    return lambda token, size: kind(functools.partial(method, token, size), request_deserializer=read)


def _sized(kind: Any) -> Callable[[bytes], tuple[Any, int]]:
    """Return a deserializer, which returns (message, bytes received).

    The message's own ByteSize() would serialize the message again.

    For bytes that are no message, the deserializer returns an error: grpcio logs a traceback for each
    exception of a deserializer. For a compressed message it returns a _Compressed.
    """
    reader = MessageReader(kind)

    def read(data: bytes) -> tuple[Any, int]:
        encoding = _encoding_of(data)
        if encoding:
            return _Compressed(reader, data, encoding), len(data)
        try:
            return reader.read(data), len(data)
        except ClockworkError as error:
            return error, len(data)

    return read


class _Compressed(NamedTuple):
    reader: MessageReader
    data: bytes
    encoding: str


def _encoding_of(data: bytes) -> str:
    """Return gRPC's name of a message's compression; "": none.

    The first bytes tell: no message of the service begins with wire type 7, which protobuf does not have, or
    with a field 15.
    """
    if data[:2] == b"\x1f\x8b":
        return "gzip"
    return "deflate" if data[:1] == b"\x78" and int.from_bytes(data[:2]) % 31 == 0 else ""


class _Call(Seat):
    """A call, which has a seat among all calls; its connection has another seat."""

    __slots__ = ("begun_bytes", "connection", "patience")

    def __init__(self, peer: str, connection: Seat, begun_bytes: int) -> None:
        super().__init__(peer, now_ns(), self._give_up)
        self.connection = connection
        self.begun_bytes = begun_bytes  # upper bound of the bytes of the call's begin and end on the wire
        self.patience: asyncio.Timeout | None = None  # set while the call waits for its client

    def end_for_good(self) -> None:
        """Drop the reference to the task, which refers to the call, so that no reference cycle is left."""
        self.patience, self.close = None, _nothing

    def _give_up(self) -> None:
        # Otherwise the task is about to end the call
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Mark the call as worked on while the context is open."""
        self.begin()
        self.connection.begin()
        try:
            yield
        finally:
            self.end(now_ns())
            self.connection.end(now_ns())


def _nothing() -> None:
    """Close a call that has ended."""


def _address_of(peer: str) -> Endpoint | None:
    """Return the address of a call's peer from gRPC's text; None: the peer is not connected over TCP."""
    kind, _, rest = peer.partition(":")
    host, _, port = urllib.parse.unquote(rest).rpartition(":")
    return Endpoint(host, int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def _on_the_wire(size: int) -> int:
    """Return an upper bound of a message's bytes on the wire, HTTP/2 frames and TLS records included."""
    return CALL_BYTES + size + size // 64


def _token_and_bytes(metadata: Any) -> tuple[bytes | None, int]:
    """Return the first bearer token in a call's metadata, and an upper bound of the bytes of its begin and
    end."""
    token, size = None, CALL_BYTES
    for key, value in metadata:
        size += CALL_BYTES + len(key) + len(value)
        if token is None and key == "authorization":
            token = bearer(value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape"))
    return token, size
