"""The Open Inference Protocol over gRPC, with Triton's extensions, on grpc.aio.

InferenceService (service.py) answers; this module reads requests and writes answers. A table names the protocol's
methods, in place of generated code: grpcio needs no more.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import logging
import math
import socket
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any, NamedTuple, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf import json_format

from clockwork.config import SECONDS_MAX
from clockwork.config.gateway import (
    ANSWER_PIECE_BYTES,
    DETAILS_MAX,
    ELEMENTS_AT_ONCE,
    GRPC_ANSWER_BYTES_MAX,
    GRPC_IDLE_S,
    GRPC_METADATA_BYTES_MAX,
    GRPC_SETTINGS_S,
    GRPC_SWEEP_S,
    GRPC_WAITING_MAX,
    KEEPALIVE_S,
    STREAM_WINDOW,
    STREAMS_MAX,
)
from clockwork.errors import (
    ClockworkError,
    ConfigError,
    DeadlineMissed,
    Forbidden,
    InvalidInput,
    ModelNotFound,
    Refused,
    Unavailable,
)
from clockwork.gateway._join import join
from clockwork.gateway.answers import Held
from clockwork.gateway.aside import Aside
from clockwork.gateway.callers import Address, Caller
from clockwork.gateway.classification import class_count
from clockwork.gateway.connections import Connections
from clockwork.gateway.errors import NotFound, Told, TooLarge, TooSlow, Unsupported, tell
from clockwork.gateway.inflate import Inflater
from clockwork.gateway.listener import NO_ROOM
from clockwork.gateway.protocol import inference_pb2 as pb
from clockwork.gateway.protocol.split import Reader, Split
from clockwork.gateway.regions import NO_CUDA_MEMORY, REGION, Shared
from clockwork.gateway.security import Tokens, bearer
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
from clockwork.gateway.tensors import NAME_OF, check_size, checked_shape, code_of
from clockwork.system.clock import now_ns, to_ns, to_seconds
from clockwork.web.seats import Seat, Seats, Standing
from clockwork.wire import tensors
from clockwork.wire.messages import NamedTensorRef, Reason
from clockwork.wire.references import name_of
from clockwork.wire.roles import GRPC
from clockwork.wire.transport import Frame

log = logging.getLogger("clockwork.gateway")


def _is_defect(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC's log tells more than that a client went before it had its answer: with that, anybody could
    fill the log."""
    return not record.getMessage().startswith("ExecuteBatchError")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_defect)

SERVICE = "inference.GRPCInferenceService"

PROTOCOL = "grpc"

ROUNDED_UP = 0.99
"""Factor for a call's deadline: gRPC rounds the deadline up to three digits on the wire, and an answer after the
client's own deadline is of no use."""

Context: TypeAlias = Any
"""grpc.aio.ServicerContext, which says little of its types."""

Method: TypeAlias = Callable[[Any, Context], Awaitable[Any]]

_RAW_OUTPUT = b"\x32"
"""The tag of ModelInferResponse.raw_output_contents."""

_STREAM_ANSWER = b"\x12"
"""The tag of ModelStreamInferResponse.infer_response."""

WANTS_FINAL, FINAL = "triton_enable_empty_final_response", "triton_final_response"
"""The parameter of a request whose answers are to say which is the last, and the parameter of such an answer."""

CALL_BYTES = 128
"""More than a header, or a frame of HTTP/2 in a record of TLS, adds to what is in it."""

COPIES = 2
"""How many times gRPC has an answer's bytes until the peer has taken them: as they were handed over, and in its own buffer."""

_CONTENTS: dict[int, tuple[str, str]] = {
    tensors.UINT8: ("uint_contents", "B"), tensors.UINT16: ("uint_contents", "H"),
    tensors.UINT32: ("uint_contents", "I"), tensors.UINT64: ("uint64_contents", "Q"),
    tensors.INT8: ("int_contents", "b"), tensors.INT16: ("int_contents", "h"),
    tensors.INT32: ("int_contents", "i"), tensors.INT64: ("int64_contents", "q"),
    tensors.FLOAT: ("fp32_contents", "f"), tensors.DOUBLE: ("fp64_contents", "d"),
    tensors.BOOL: ("bool_contents", "B"),
}  # fmt: skip
"""By datatype: the field for elements that are not sent raw, and their code in Python's array."""


class GrpcServer:
    """Serves until close(). tokens: those that the metadata's authorization must bear."""

    def __init__(
        self, service: InferenceService, settings: GatewaySettings, tokens: Tokens, seats_max: int
    ) -> None:
        self._service = service
        self._settings = settings
        self._tokens = tokens
        self._inflater = Inflater()
        self._copying = asyncio.Lock()
        self._seats = Seats(seats_max)
        self._connections: Connections | None = None
        self._calls = Seats(settings.requests_max + GRPC_WAITING_MAX)
        self._sweeper: asyncio.Task[None] | None = None
        self._server: Any = None
        self._host, self._port = "", 0  # its listening address; "": every address

    async def start(self, bound: socket.socket, tls: tuple[bytes, bytes] | None) -> None:
        """Take over the address of a bound socket, which is closed. Raises ConfigError."""
        settings = self._settings
        self._server = grpc.aio.server(options=[
            ("grpc.max_receive_message_length", settings.request_bytes_max),
            ("grpc.per_message_decompression", 0),  # gRPC's own has no bound on all messages together
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", GRPC_METADATA_BYTES_MAX),
            ("grpc.absolute_max_metadata_size", GRPC_METADATA_BYTES_MAX),
            # An entry of HPACK's table keeps the buffer in which it came, 64 KiB, and a call the entries that it names.
            ("grpc.http2.hpack_table_size.decoder", 0),
            ("grpc.http2.settings_timeout", round(GRPC_SETTINGS_S * 1000)),
            ("grpc.max_concurrent_streams", STREAMS_MAX),
            ("grpc.max_allowed_incoming_connections", 2 * self._seats.seats_max),  # until the next look at them
            ("grpc.max_connection_idle_ms", round(GRPC_IDLE_S * 1000)),
            ("grpc.server_handshake_timeout_ms", round(settings.headers_s * 1000)),
            ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.so_reuseport", 0),  # else a second gateway would silently share the port
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
        self._connections = Connections(port, self._seats)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(self._connections))

    async def close(self) -> None:
        """Accept no more calls, and let those under way end, for a bounded time."""
        if self._server is not None:
            await self._server.stop(self._settings.drain_s)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._inflater.close()

    def calls(self) -> int:
        """Calls that have begun and not ended, whether or not their messages have come."""
        return len(self._calls)

    async def _sweep(self, connections: Connections) -> None:
        stranger_ns = to_ns(self._settings.headers_s)
        while True:
            await asyncio.sleep(GRPC_SWEEP_S)
            try:
                connections.sweep(stranger_ns)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise

    # ----- the service -------------------------------------------------------------------------

    def _methods(self) -> dict[str, Callable[[bytes | None, int], Any]]:
        """Makers of a call's handler, by path, of the call's token and of the bytes that it takes on the wire."""
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
        # As if the client sent a stream: gRPC then reads no message of a call before it is asked for it.
        methods = {
            name: _maker(
                grpc.stream_unary_rpc_method_handler,
                self._guarded(name, method),
                _sized(getattr(pb, f"{name}Request")),
            )
            for name, method in unary.items()
        }
        methods["ModelStreamInfer"] = _maker(
            grpc.stream_stream_rpc_method_handler,
            self._guarded("ModelStreamInfer", self._infer, is_stream=True),
            _sized(pb.ModelInferRequest),
        )
        return {f"/{SERVICE}/{name}": maker for name, maker in methods.items()}

    def _guarded(self, name: str, method: Method, is_stream: bool = False) -> Callable[..., Awaitable[Any]]:
        """The method, for whoever has its right, within the bounds on calls, its errors sent as statuses."""
        right, counted_as = GRPC[name], "stream" if is_stream else method.__name__[1:]
        waited = (
            f"no message came within {self._settings.body_s:g} s, or the call had to make room for others because "
            "too many were without one"
        )

        async def guarded(
            token: bytes | None, begun_bytes: int, requests: AsyncIterator[Any], context: Context
        ) -> Any:
            assert self._connections is not None
            peer = context.peer()
            call = _Call(peer, self._connections.seat_of(peer))
            try:
                try:
                    try:
                        standing = self._tokens.check(right, token)
                        self._seats.recognize(call.connection, standing)
                        self._take(call, standing)
                        async with asyncio.timeout(
                            None if is_stream else self._settings.body_s
                        ) as call.patience:
                            with self._connections.receiving(peer):
                                self._connections.take(peer, begun_bytes)
                                if is_stream:
                                    return await self._stream(requests, context, call)
                                sized = await anext(requests, None)
                    except TimeoutError:
                        raise self._count_failure(counted_as, TooSlow(waited)) from None
                    except ClockworkError as error:
                        raise self._count_failure(counted_as, error) from None
                    if sized is None:
                        raise InvalidInput("the call ended before its message came")
                    message, size = sized
                    self._connections.take(peer, _on_the_wire(size))
                    with call.work(), self._counted(counted_as, size), self._service.admitted(size):
                        async with self._read(message) as read:
                            if method == self._infer:
                                return await self._infer(read, context)
                            answer = (await method(read.message, context)).SerializeToString()
                            self._service.answers.come(self._room(context), len(answer), now_ns())
                            return answer
                except (ClockworkError, grpc.aio.BaseError):
                    raise
                except Exception as error:  # a mistake of ours: the log has it, and the client a status
                    log.error("a call of %s failed", name, exc_info=error)
                    raise ClockworkError("the gateway failed; its log says how") from None
            except ClockworkError as error:
                told = self._tell(error)
            finally:
                self._calls.leave(call)
                call.end_for_good()
            return await context.abort(
                getattr(grpc.StatusCode, told.grpc), told.body["error"][:DETAILS_MAX], told.metadata()
            )

        return guarded

    def _tell(self, error: ClockworkError) -> Told:
        return tell(error, self._settings.status_codes)

    def _take(self, call: _Call, standing: Standing) -> None:
        """Seat a call. Raises Refused where only calls that are worked on could make room."""
        vacated = self._calls.take(call)
        if vacated is call:
            raise Refused(
                f"the gateway has {self._calls.seats_max} calls, which is the most", Reason.OVERLOADED.value
            )
        if vacated is not None:
            vacated.close()
        self._calls.recognize(call, standing)

    def _count_failure(self, method: str, error: ClockworkError) -> ClockworkError:
        """Count a call that failed before its message was there; returns the error."""
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
    async def _read(self, message: Split | _Compressed | ClockworkError) -> AsyncIterator[Split]:
        """A message as _sized() gives it; a compressed message is inflated, and its bytes are held meanwhile.

        Raises InvalidInput, TooLarge, Refused."""
        if isinstance(message, ClockworkError):
            raise message
        if type(message) is not _Compressed:
            yield cast(Split, message)
            return
        limit, hold = self._settings.request_bytes_max, self._service.hold
        data = await self._inflater.inflate(message.data, message.encoding, limit, hold)
        try:
            yield message.reader.read(data)
        finally:
            hold(-len(data))

    async def _infer(self, read: Split, context: Context) -> bytes:
        return await self._joined(await self._answered(read, context, self._room(context)))

    async def _joined(self, pieces: list[Any]) -> bytes:
        """The pieces of a message, as gRPC takes it. Large messages are joined beside the loop, one at a time, and the
        loop is free for others for as long as it takes gRPC to copy a message on it."""
        size = sum(map(len, pieces))
        if size <= ANSWER_PIECE_BYTES:
            return b"".join(pieces)
        await self._copying.acquire()
        took_ns = 0
        try:
            joined, took_ns = await self._service.writing.run(size, _join, pieces)
            return joined
        finally:
            # gRPC copies it as soon as it is returned, in about the same time.
            asyncio.get_running_loop().call_later(3 * to_seconds(took_ns), self._copying.release)

    def _held(self, context: Context) -> Held:
        """Room for an answer to a call; without room, the connection of a peer that does not read is ended."""
        assert self._connections is not None
        return Held(peer := context.peer(), COPIES, functools.partial(self._connections.end, peer))

    def _room(self, context: Context) -> Held:
        """Room for a call's one answer, until the call is over: then its peer has let all of the bytes through."""
        held = self._held(context)
        context.add_done_callback(lambda _: self._service.answers.release(held))
        return held

    async def _answered(self, read: Split, context: Context, held: Held) -> list[Any]:
        """The pieces of an inference's answer, a ModelInferResponse."""
        assert self._connections is not None
        request, service = read.message, self._service
        shared = service.shared(lambda: self._user_of(context), self._settings.request_bytes_max)
        converted = 0
        try:
            try:
                inference = await _read(read, context.time_remaining(), shared, service.reading)
                await shared.read(inference.frames)
                if request.inputs and not read.raw:
                    size = _converted_bytes(request, inference.frames)
                    service.hold(size)
                    converted = size
            except InvalidInput as error:
                raise await service.blame(request.model_name, request.model_version, error) from None
            service.answers.ask(held, inference.model, now_ns())
            answer, frames = await service.infer(inference, PROTOCOL, context.invocation_metadata() or ())
            size = sum(map(len, frames))
            if size > GRPC_ANSWER_BYTES_MAX:
                raise TooLarge(
                    f"the answer has {size} bytes, at most {GRPC_ANSWER_BYTES_MAX} are sent over gRPC; ask over HTTP for "
                    "binary data, or for fewer outputs"
                )
            service.answers.come(held, size, now_ns())
            self._connections.take(
                context.peer(), size // 512
            )  # in which the peer tells what it has taken of it
            chosen = service.chosen(inference, answer)
            chosen, frames = await service.classified(inference, chosen, answer, frames)
            delivered = await shared.deliver(chosen, frames)
            pieces, sent = _response(
                inference, chosen, answer.model_version, frames, delivered, _wants_final(request)
            )
        finally:
            shared.release()
            service.hold(-converted)
        service.counters.sent(PROTOCOL, sent)
        return pieces

    async def _stream(self, requests: AsyncIterator[Any], context: Context, call: _Call) -> None:
        """Answer in the order of the requests, at most STREAM_WINDOW of which are under way."""
        assert self._connections is not None
        answers, peer = self._service.answers, context.peer()
        window: asyncio.Queue[tuple[asyncio.Task[bytes], Held] | None] = asyncio.Queue(STREAM_WINDOW)
        under_way: dict[Held, None] = {}

        async def write() -> None:
            while (found := await window.get()) is not None:
                task, held = found
                await context.write(await task)
                answers.release(held)
                del under_way[held]

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                async for request in requests:
                    self._connections.take(peer, _on_the_wire(request[1]))
                    held = self._held(context)
                    under_way[held] = None
                    await window.put((group.create_task(self._streamed(request, context, held, call)), held))
                await window.put(None)
        finally:
            for held in under_way:
                answers.release(held)

    async def _streamed(self, sized: tuple[Any, int], context: Context, held: Held, call: _Call) -> bytes:
        message, size = sized
        request: Any = None
        try:
            with call.work(), self._counted("stream_infer", size), self._service.admitted(size):
                async with self._read(message) as read:
                    request = read.message
                    pieces = await self._answered(read, context, held)
                    return await self._joined([*_begun(_STREAM_ANSWER, sum(map(len, pieces))), *pieces])
        except ClockworkError as error:
            refusal = pb.ModelStreamInferResponse(
                error_message=self._tell(error).body["error"],
                infer_response=pb.ModelInferResponse(
                    model_name=request.model_name if request is not None else "",
                    id=request.id if request is not None else "",
                ),
            )
            if request is not None and _wants_final(request):
                refusal.infer_response.parameters[FINAL].bool_param = True
            return bytes(refusal.SerializeToString())

    async def _server_live(self, request: Any, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=not await self._service.why_not_ready())

    async def _model_ready(self, request: Any, context: Context) -> Any:
        try:
            ready = await self._service.model_ready(request.name, request.version)
        except (ModelNotFound, Unavailable):  # as Triton's server, whose clients ask until a model is there
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def _server_metadata(self, request: Any, context: Context) -> Any:
        return pb.ServerMetadataResponse(**self._service.server())

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        return pb.ModelMetadataResponse(**await self._service.metadata(request.name, request.version))

    async def _model_config(self, request: Any, context: Context) -> Any:
        config = await self._service.config(request.name, request.version)
        known = set(pb.DataType.keys())
        for tensor in (*config["input"], *config["output"]):
            if tensor["data_type"] not in known:  # ONNX's own: the message has no word for it
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
        # gRPC does not say which of its addresses a call came to. On one machine, both ends have the same, unless the
        # server listens on one only.
        served = Address(self._host or address.host, self._port)
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
        await self._service.load(request.model_name, _parameters(request))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> Any:
        await self._service.unload(request.model_name, _parameters(request))
        return pb.RepositoryModelUnloadResponse()


def _join(pieces: list[Any]) -> tuple[bytes, int]:
    """The pieces in one, and the nanoseconds that it took."""
    begun_ns = now_ns()
    return join(pieces), now_ns() - begun_ns


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a call, which is told what the call's headers say.

    gRPC makes an object of each header whenever it is asked for them. It has made them here; calls may wait by the
    thousand, and of their headers they keep none: the garbage collector would look at half a million objects."""

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
    """A deserializer: (message, bytes received). To ask the message for its size would serialize it again.

    The message is an error where the bytes are none: grpcio would log whatever a deserializer raises, at length, every
    time. It is a _Compressed where it is still to be inflated.
    """
    reader = Reader(kind)

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
    reader: Reader
    data: bytes
    encoding: str


def _encoding_of(data: bytes) -> str:
    """A message's compression, by gRPC's name; "": none. The bytes tell: no message of the service begins with wire
    type 7, which protobuf does not have, or with a field 15."""
    if data[:2] == b"\x1f\x8b":
        return "gzip"
    return "deflate" if data[:1] == b"\x78" and int.from_bytes(data[:2]) % 31 == 0 else ""


class _Call(Seat):
    """A call, on a seat among all calls, beside its connection's seat."""

    __slots__ = ("connection", "patience")

    def __init__(self, peer: str, connection: Seat) -> None:
        super().__init__(peer, now_ns(), self._give_up)
        self.connection = connection
        self.patience: asyncio.Timeout | None = None  # while it waits for its client

    def end_for_good(self) -> None:
        """Let go of its task, which has the call: the garbage collector is left no cycle."""
        self.patience, self.close = None, _nothing

    def _give_up(self) -> None:
        if self.patience is not None and not self.patience.expired():  # else its task is about to end it
            self.patience.reschedule(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """While a message of the call is worked on."""
        self.begin()
        self.connection.begin()
        try:
            yield
        finally:
            self.end(now_ns())
            self.connection.end(now_ns())


def _nothing() -> None:
    """Close a call that has ended."""


def _address_of(peer: str) -> Address | None:
    """Of a call's peer, as gRPC writes it; None for a peer that is not connected over TCP."""
    kind, _, rest = peer.partition(":")
    host, _, port = urllib.parse.unquote(rest).rpartition(":")
    return Address(host, int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def _on_the_wire(size: int) -> int:
    """At least what a message takes on the wire, with HTTP/2's frames and TLS's records around its pieces."""
    return CALL_BYTES + size + size // 64


def _token_and_bytes(metadata: Any) -> tuple[bytes | None, int]:
    """The first bearer token in a call's metadata, and at least what the begin and the end of the call take on the wire."""
    token, size = None, CALL_BYTES
    for key, value in metadata:
        size += CALL_BYTES + len(key) + len(value)
        if token is None and key == "authorization":
            token = bearer(value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape"))
    return token, size


def _parameters(message: Any) -> dict[str, Any]:
    """The parameters of a request or a tensor, as JSON would have them."""
    found = {}
    for key, value in message.parameters.items():
        choice = value.WhichOneof("parameter_choice")
        found[key] = getattr(value, choice) if choice is not None else None
    return found


def _wants_final(request: Any) -> bool:
    """Whether answers to a request are to say that they are its last, as each of them is."""
    return WANTS_FINAL in request.parameters and request.parameters[WANTS_FINAL].bool_param


def _converted_bytes(request: Any, frames: list[Frame]) -> int:
    """Bytes of the elements in a message: as protobuf has them, and as the frames that were made of them."""
    return 2 * sum(len(frame) for tensor, frame in zip(request.inputs, frames) if tensor.HasField("contents"))


async def _read(read: Split, left_s: float | None, shared: Shared, reading: Aside) -> Inference:
    """The inference that a message asks for. left_s: until the call's own deadline. Raises InvalidInput."""
    request, raw = read
    timeout_ns = priority = 0
    if request.parameters:
        parameters = _parameters(request)
        refuse_sequences(parameters)
        timeout_ns = timeout_of(parameters.get("timeout", 0), "parameter timeout")
        priority = priority_of(parameters)
    if left_s is not None:
        if left_s <= 0:
            raise DeadlineMissed("the call's deadline passed before the request was read")
        if left_s < SECONDS_MAX:
            timeout_ns = least(timeout_ns, max(1, to_ns(left_s * ROUNDED_UP)))
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    remote = [REGION in tensor.parameters for tensor in request.inputs]
    if raw and len(raw) != remote.count(False):
        raise InvalidInput(
            f"raw_input_contents has {len(raw)} tensors for {remote.count(False)} inputs",
            expected=str(remote.count(False)), got=str(len(raw)),
        )  # fmt: skip
    contents = iter(raw)
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        code = code_of(tensor.datatype, name)
        shape = checked_shape(list(tensor.shape), name)
        if remote[index]:
            if tensor.HasField("contents"):
                raise InvalidInput(f"input {name!r} is in shared memory, and in the request as well", name)
            shared.input(_parameters(tensor), code, shape, name, index)
            frame: Frame = b""  # until Shared.read()
        elif raw:
            if tensor.HasField("contents"):
                raise InvalidInput(f"input {name!r} has contents, and raw_input_contents as well", name)
            frame = next(contents)
            check_size(code, shape, len(frame), name)
        else:
            elements = _elements_of_contents(code, shape, tensor.contents, name)
            if len(elements) <= ELEMENTS_AT_ONCE:
                frame = _frame_of(code, elements, name)
            else:
                frame = await reading.run(len(elements), _frame_of, code, elements, name)
        references.append([name, code, shape, index])
        frames.append(frame)
    classes: dict[str, int] = {}
    for output in request.outputs:
        if output.parameters:
            its = _parameters(output)
            if count := class_count(its.get("classification", 0), output.name):
                classes[output.name] = count
                if REGION in its:
                    raise InvalidInput(f"output {output.name!r}: classes are not written to shared memory")
            if REGION in its:
                shared.output(its, output.name)
    return Inference(
        reference_of(request.model_name, request.model_version), request.id, references, frames,
        list(dict.fromkeys(output.name for output in request.outputs)),  # each once: names are cheaper than what they ask for
        timeout_ns, priority, classes,
    )  # fmt: skip


def _elements_of_contents(code: int, shape: list[int], contents: Any, name: str) -> Any:
    """The elements of an input that is not sent raw, as many as it has. Raises InvalidInput."""
    count = math.prod(shape)
    if code == tensors.STRING:
        elements = contents.bytes_contents
    elif code in _CONTENTS:
        elements = getattr(contents, _CONTENTS[code][0])
    else:
        raise InvalidInput(
            f"input {name!r} of datatype {NAME_OF[code]} is sent as raw_input_contents",
            name,
            "raw_input_contents",
        )
    if len(elements) != count:
        raise InvalidInput(
            f"input {name!r} of shape {shape} has {count} elements, got {len(elements)}",
            name, f"{count} elements", f"{len(elements)} elements",
        )  # fmt: skip
    return elements


def _frame_of(code: int, elements: Any, name: str) -> Frame:
    """The raw bytes of elements, made piece by piece, so that no piece holds the interpreter's lock for long."""
    if code == tensors.STRING:
        return tensors.join_strings(list(elements))
    found = array.array(_CONTENTS[code][1])
    try:
        for begin in range(0, len(elements), ELEMENTS_AT_ONCE):
            found.extend(elements[begin : begin + ELEMENTS_AT_ONCE])
    except OverflowError as error:
        raise InvalidInput(
            f"input {name!r} of datatype {NAME_OF[code]} cannot hold its contents: {error}",
            name,
            NAME_OF[code],
        ) from None
    return memoryview(found).cast("B")


def _response(
    inference: Inference,
    chosen: list[NamedTensorRef],
    version: int,
    frames: list[Frame],
    delivered: Collection[str],
    tells_final: bool,
) -> tuple[list[Any], int]:
    """The pieces of a ModelInferResponse, and the bytes of tensors in it. delivered: the outputs that have been written to
    shared memory. tells_final: say that it is the last of its request.

    protobuf would copy the tensors into its message, and once more out of it: they are put behind its bytes instead, as
    the fields that they are on the wire."""
    sent = 0
    response = pb.ModelInferResponse(
        model_name=name_of(inference.model), model_version=str(version), id=inference.request_id
    )
    if tells_final:
        response.parameters[FINAL].bool_param = True
    raw: list[Any] = []
    for name, code, shape, frame in chosen:
        response.outputs.add(name=name, datatype=NAME_OF[code], shape=shape)
        # An output in shared memory has an empty place here, because clients count the places by outputs.
        content = b"" if name in delivered else frames[frame]
        raw += [*_begun(_RAW_OUTPUT, len(content)), content]
        sent += len(content)
    return [response.SerializeToString(), *raw], sent


def _begun(tag: bytes, size: int) -> tuple[bytes, bytes]:
    """What a field of so many bytes begins with: its tag, and its length as a varint."""
    found = bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return tag, bytes(found)
