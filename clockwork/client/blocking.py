"""The Python client: everything an application says to a cluster."""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, cast

from clockwork import config
from clockwork.client.channel import CallStream, Channel
from clockwork.errors import ClockworkError, InvalidInput, InvalidModel, RequestTimeout
from clockwork.formats.package import MODEL_FILE, PROFILE_FILE, hash_file
from clockwork.formats.profiles import ModelProfile
from clockwork.system.clock import now_ns, to_ns, to_seconds
from clockwork.wire import codec
from clockwork.wire.description import ClusterStatus, ModelInfo, RouteInfo
from clockwork.wire.keys import PeerKeys, read_peer_keys
from clockwork.wire.messages import (
    Answer,
    InferRequest,
    NamedTensorRef,
    Offer,
    Progress,
    Promote,
    Query,
    Register,
    Reply,
    Rollback,
    Route,
    Unregister,
    UploadAck,
    UploadChunk,
    UploadNeed,
)
from clockwork.wire.telling import tell as tell_value
from clockwork.wire.tensors import Array, as_array, decode_tensor, encode_array
from clockwork.wire.transport import Frame

Inputs: TypeAlias = Any
"""One array (or nested list of numbers, or scalar), or a mapping from input name to such."""

Outputs: TypeAlias = Array | dict[str, Array]
Batching: TypeAlias = Literal["auto", "on", "off"]
ProgressCallback: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total); total 0 is unknown. Stages: hash, upload, store, prepare."""

Made = TypeVar("Made")

Keys: TypeAlias = PeerKeys | str | os.PathLike[str] | None


class Client:
    """A connection to a cluster. Thread-safe; one serves a whole process.

        with Client() as client:
            y = client.infer("digits", x)

    endpoint: of the controller; else CLOCKWORK_ENDPOINT, else the default on this machine.
    timeout: seconds that a call waits for its answer unless it says otherwise.
    keys: the peer's key file (or its content); else CLOCKWORK_KEY, else none.
    name: how this client appears in the controller's logs.

    It connects in the background and, when the connection is lost, again: calls under way then fail
    with ConnectionLost, later ones wait for the new connection (a few seconds at most).

    Times are seconds. Every call ends: with its result, with an error of clockwork.errors, or with
    RequestTimeout. Ctrl-C during a call cancels the request.
    """

    channel_type: ClassVar[type[Channel]] = Channel

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout: float = config.CLIENT_TIMEOUT_NS / 1e9,
        keys: Keys = None,
        name: str = "",
    ) -> None:
        self._timeout_ns = _checked_ns(timeout, "timeout")
        self._channel = self.channel_type(
            endpoint if endpoint is not None else config.client_endpoint(), _read_keys(keys), name
        )
        # Not __del__: this also runs at exit, while sockets can still be closed in order.
        self._finalizer = weakref.finalize(self, self._channel.close)

    @property
    def endpoint(self) -> str:
        """Where the controller is expected."""
        return self._channel.endpoint

    # ----- inference -------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Outputs:
        """The model's outputs for these inputs.

        model: ``name``, or ``name@version`` for one version of it.
        inputs: exactly as the ONNX model takes them, batch axis included. One array, for a model with
        one input, gives one array back if the model has one output; a mapping by input name always
        gives a dict by output name. Arrays keep their dtype; of plain Python numbers, floats become
        float32 and integers int64.
        slo: seconds from the controller's receipt in which the answer is due (None: the model's own).
        priority: 1 is the highest, larger is lower, 0 the default level.

        The arrays returned are read-only views of the received message; ``.copy()`` gives writable
        ones. Arrays passed in must not be changed by other threads meanwhile.
        """
        limit_ns = self._limit_ns(timeout)
        request_id = self._channel.next_id()
        header, frames, single = encode_request(request_id, model, inputs, slo, priority)
        return decode_answer(*self._channel.call(request_id, header, frames, limit_ns), single)

    def submit(
        self,
        model: str,
        inputs: Inputs,
        *,
        slo: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> concurrent.futures.Future[Outputs]:
        """Like infer(), at once: a future of the outputs. cancel() cancels the request itself.

        The arrays passed in are sent without a copy: do not change them before the future is done.
        Callbacks of the future run on the client's I/O thread, and must not wait for another call.
        """
        limit_ns = self._limit_ns(timeout)
        request_id = self._channel.next_id()
        header, frames, single = encode_request(request_id, model, inputs, slo, priority)
        return self._channel.submit(
            request_id, header, frames, limit_ns, lambda message, rest: decode_answer(message, rest, single)
        )

    # ----- models ----------------------------------------------------------------------------

    def register(
        self,
        name: str,
        model: str | os.PathLike[str] | bytes | Any,
        *,
        slo: float | None = None,
        examples: Any = None,
        batching: Batching = "auto",
        batch_max: int | None = None,
        version: int | None = None,
        origin: str = "",
        timeout: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> ModelInfo:
        """Make a model known, and return once it is ready to serve: optimised, profiled, on the workers.

        model: an ONNX file (external data beside it is followed, within its folder), its bytes, or an
        onnx.ModelProto; a directory with a compiled program; for emulated devices, a
        clockwork.formats.profiles.ModelProfile. Other content under a known name becomes its next version.
        slo: the default of its requests. examples: real inputs, for profiling and checks: a dict by
        input name, a list of such, or one array for a model of one input.
        batching: "on" and "off" overrule what registration finds out. batch_max: an upper bound.
        version: the number of the version, if it is free; else, and without one, it is the next. origin: whose it
        is, for whoever keeps models as they are elsewhere; shown in ``options`` of its description.
        timeout: for the whole; without one, only a registration that shows no progress is given up.
        """
        return register(
            self._channel, name, model, registration_options(slo, batching, batch_max, version, origin), examples,
            None if timeout is None else _checked_ns(timeout, "timeout"), progress,
        )  # fmt: skip

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Every registered model, by name and version."""
        return made(models_of, self._query("models", "", timeout))

    def model(self, name: str, *, timeout: float | None = None) -> ModelInfo:
        """One model; its newest version, or the one in ``name@version``. Raises ModelNotFound."""
        return made(ModelInfo.from_wire, self._query("model", checked_model(name), timeout))

    def unregister(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a model, or one version of it. What was admitted is still answered."""
        request_id = self._channel.next_id()
        header = codec.encode(Unregister(request_id, checked_model(name)))
        self._channel.call(request_id, header, (), self._limit_ns(timeout))

    def load(self, name: str, *, timeout: float | None = None) -> None:
        """Have a model that was unloaded serve again; returns when it does. Nothing to do where it does already."""
        self._offer(name, True, timeout)

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Have a model, or one version of it, serve nobody and take no memory, until load(); it stays registered.

        What was admitted is still answered. Raises ModelNotFound.
        """
        self._offer(name, False, timeout)

    def route(
        self,
        name: str,
        shares: Mapping[int, float] | None = None,
        *,
        shadow: Mapping[int, float] | None = None,
        tolerance: float = config.SHADOW_TOLERANCE,
        timeout: float | None = None,
    ) -> RouteInfo:
        """Split a model's traffic between its versions; from then on no new version takes any by itself.

        shares: of requests that name no version, from 0 to 1, in steps of 0.0001: ``{2: 0.1}`` gives version 2
        every tenth; those that are not named share the rest, as they shared before. None: as they are.
        shadow: a version that is to answer as well, and for which part of the requests that go to others
        (``{2: 1.0}``); its answers are compared and dropped, see description.ShadowInfo. None: as it is;
        ``{}``: no longer. tolerance: of the relative difference of such answers.
        Versions must be ready, and take the same inputs.
        """
        request_id = self._channel.next_id()
        header = encode_route(request_id, name, shares, shadow, tolerance)
        return made(RouteInfo.from_wire, self._reply(request_id, header, timeout))

    def promote(self, name: str, version: int, *, timeout: float | None = None) -> RouteInfo:
        """Give all of a model's traffic to one version, at once; a shadow ends.

        version: 0 for the newest that is ready, and from then on for each newer one once it is ready, as before
        there was a route.
        """
        request_id = self._channel.next_id()
        header = codec.encode(Promote(request_id, checked_model(name), checked_version(version)))
        return made(RouteInfo.from_wire, self._reply(request_id, header, timeout))

    def rollback(self, name: str, *, timeout: float | None = None) -> RouteInfo:
        """Go back to the route before the last route() or promote(), at once; several times, one by one."""
        request_id = self._channel.next_id()
        header = codec.encode(Rollback(request_id, checked_model(name)))
        return made(RouteInfo.from_wire, self._reply(request_id, header, timeout))

    def status(self, *, timeout: float | None = None) -> ClusterStatus:
        """The cluster as its controller sees it; see clockwork.wire.description.ClusterStatus."""
        return status_of(self._query("status", "", timeout))

    # ----- life ------------------------------------------------------------------------------

    def metrics(self, model: str = "", *, timeout: float | None = None) -> dict[str, Any]:
        """Every number that the controller has, as plain data: see docs/metrics.md. model: of its versions alone."""
        pages = MetricsPages(self._limit_ns(timeout))
        while pages.add(self._query("metrics", pages.following or model, pages.left_s())):
            pass
        return pages.body

    def close(self) -> None:
        """Disconnect. What is still waited for ends with ConnectionLost. Idempotent."""
        self._finalizer.detach()
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit_ns(self, timeout: float | None) -> int:
        return self._timeout_ns if timeout is None else _checked_ns(timeout, "timeout")

    def _offer(self, name: str, offered: bool, timeout: float | None) -> None:
        request_id = self._channel.next_id()
        header = codec.encode(Offer(request_id, checked_model(name), offered))
        self._channel.call(request_id, header, (), self._limit_ns(timeout))

    def _query(self, what: str, argument: str, timeout: float | None) -> Any:
        request_id = self._channel.next_id()
        return self._reply(request_id, codec.encode(Query(request_id, what, argument)), timeout)

    def _reply(self, request_id: int, header: bytes, timeout: float | None) -> Any:
        return reply_body(*self._channel.call(request_id, header, (), self._limit_ns(timeout)))


# ----- requests and answers ------------------------------------------------------------------


def encode_request(
    request_id: int, model: str, inputs: Inputs, slo: float | None, priority: int
) -> tuple[bytes, list[Frame], bool]:
    """(header, frames, whether one array was given without a name). Raises InvalidInput."""
    slo_ns = 0 if slo is None else _checked_ns(slo, "slo")
    if type(priority) is not int or not 0 <= priority <= config.PRIORITY_MAX:
        raise InvalidInput(
            f"priority {priority!r}: an integer from 0 (the default) to {config.PRIORITY_MAX}",
            expected=f"0 to {config.PRIORITY_MAX}",
            got=repr(priority),
        )
    checked_model(model)
    references: list[NamedTensorRef] = []
    frames: list[Frame] = []
    single = not isinstance(inputs, Mapping)
    for name, value in [("", inputs)] if single else inputs.items():
        if type(name) is not str:
            raise InvalidInput(f"the name of an input is a str, not {type(name).__name__}", got=repr(name))
        try:
            dtype, shape, frame = encode_array(as_array(value))
        except InvalidInput as error:
            raise InvalidInput(f"input {name!r}: {error}", name, error.expected, error.got) from None
        references.append([name, dtype, shape, len(frames)])
        frames.append(frame)
    return request_header(InferRequest(request_id, model, slo_ns, priority, references)), frames, single


def request_header(request: InferRequest) -> bytes:
    """The header of a request. Raises InvalidInput of more inputs, or longer names, than a controller takes."""
    count = len(request.tensors)
    if count > config.TENSORS_MAX:
        raise InvalidInput(
            f"the request has {count} inputs, at most {config.TENSORS_MAX} are taken",
            expected=f"at most {config.TENSORS_MAX} inputs", got=str(count),
        )  # fmt: skip
    try:
        return codec.encode(request)
    except codec.TooLarge as error:
        raise InvalidInput(
            f"names and shapes of the request's {count} inputs are too long: {error}",
            expected=f"at most {config.REQUEST_HEADER_BYTES_MAX} bytes", got=str(error),
        ) from None  # fmt: skip


def decode_answer(message: Any, frames: list[Frame], single: bool) -> Outputs:
    """The arrays of an Answer. Raises ClockworkError if they are not what the message says."""
    outputs: dict[str, Array] = {}
    try:
        if type(message) is not Answer:
            raise ValueError(f"{type(message).__name__} answers no inference")
        for name, dtype, shape, frame in message.tensors:
            outputs[name] = decode_tensor(dtype, shape, frames[frame])
    except (ValueError, TypeError, IndexError) as error:
        raise _damaged(str(error)) from None
    if single and len(outputs) == 1:
        return next(iter(outputs.values()))
    return outputs


def reply_body(message: Any, frames: list[Frame]) -> Any:
    if type(message) is not Reply:
        raise _damaged(f"{type(message).__name__} answers no query")
    return message.body


def made(make: Callable[[Any], Made], body: Any) -> Made:
    """What ``make`` makes of a reply's body. Raises ClockworkError where that is not what such a reply has."""
    try:
        return make(body)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise _damaged(f"{type(error).__name__}: {tell_value(str(error))}") from None


def _damaged(text: str) -> ClockworkError:
    return ClockworkError(f"the controller's answer is damaged: {text}")


class MetricsPages:
    """The answers to one query for metrics, page by page, within one time limit and bounds of their number."""

    def __init__(self, limit_ns: int) -> None:
        self.body: dict[str, Any] = {}
        self.following = ""  # what the query for the next page asks for
        self._until_ns = now_ns() + limit_ns
        self._limit_ns = limit_ns

    def left_s(self) -> float:
        """Until the limit, for the next page. Raises RequestTimeout."""
        left_ns = self._until_ns - now_ns()
        if left_ns <= 0:
            raise RequestTimeout(f"no answer within {to_seconds(self._limit_ns):g} s")
        return to_seconds(left_ns)

    def add(self, page: Any) -> bool:
        """Take the next page; whether one follows. Raises ClockworkError of what no page can be."""
        if type(page) is not dict or type(models := page.get("models")) is not list:
            raise _damaged("it is no page of metrics")
        self.following = page.pop("next", "")
        if type(self.following) is not str or (self.following and not models):
            raise _damaged("a page of metrics without a model is followed by another")
        if not self.body:
            self.body = page
        else:
            self.body["models"] += models
        if len(self.body["models"]) > config.MODELS_MAX:
            raise _damaged(f"it has metrics of more than {config.MODELS_MAX} models")
        return bool(self.following)


def models_of(body: Any) -> list[ModelInfo]:
    return [ModelInfo.from_wire(one) for one in body] if isinstance(body, list) else []


def status_of(body: Any) -> ClusterStatus:
    return cast(ClusterStatus, body if isinstance(body, dict) else {})


def encode_route(
    request_id: int,
    name: str,
    shares: Mapping[int, float] | None,
    shadow: Mapping[int, float] | None,
    tolerance: float,
) -> bytes:
    """The header of a Route message. Raises InvalidInput."""
    checked_model(name)
    if not shares and shadow is None:
        raise InvalidInput("a route is shares, a shadow, or both", expected="shares={2: 0.1}", got="neither")
    parts = [[checked_version(version), _parts(share)] for version, share in (shares or {}).items()]
    asked: list[Any] = []
    if shadow is not None:
        if not isinstance(shadow, Mapping):
            raise InvalidInput(
                f"shadow {shadow!r}: a version and its part of the requests", expected="{3: 1.0}"
            )
        if len(shadow) > 1:
            raise InvalidInput(f"{len(shadow)} shadows; a model has one at most")
        asked = [0, 0, 0.0]
        for version, share in shadow.items():
            try:
                asked = [checked_version(version), _parts(share), float(tolerance)]
            except (TypeError, ValueError):
                raise InvalidInput(f"tolerance {tolerance!r}: a number") from None
    return codec.encode(Route(request_id, name, parts, asked))


def _parts(share: float) -> int:
    """A share as parts of SHARE_WHOLE. Raises InvalidInput outside [0, 1], and for what would become 0."""
    if isinstance(share, int | float) and 0 <= share <= 1:
        parts = round(share * config.SHARE_WHOLE)
        if parts or not share:
            return parts
    expected = f"from 0 to 1, in steps of {1 / config.SHARE_WHOLE:g}"
    raise InvalidInput(f"share {share!r}: must be {expected}", expected=expected, got=repr(share))


def checked_version(version: int) -> int:
    """Raises InvalidInput where this cannot be a version's number."""
    if type(version) is not int or not 0 <= version < 1 << 63:
        raise InvalidInput(
            f"version {version!r}: an integer of at least 0", expected=">= 0", got=repr(version)[:80]
        )
    return version


def checked_model(model: str) -> str:
    """Raises InvalidInput where this cannot be a model's name."""
    if type(model) is not str or not 0 < len(model) <= config.MODEL_REFERENCE_MAX:
        raise InvalidInput(
            f"a model is named by 1 to {config.MODEL_REFERENCE_MAX} characters, not by {repr(model)[:80]}",
            expected="name or name@version",
            got=repr(model)[:80],
        )
    return model


def _checked_ns(seconds: float, what: str) -> int:
    """Seconds as nanoseconds. Raises InvalidInput outside (0, SECONDS_MAX], and for NaN."""
    try:
        sound = 0 < seconds <= config.SECONDS_MAX and math.isfinite(seconds)
    except TypeError:
        sound = False
    if not sound:
        expected = f"above 0 s and at most {config.SECONDS_MAX} s"
        raise InvalidInput(f"{what} {seconds!r}: must be {expected}", expected=expected, got=repr(seconds))
    return max(1, to_ns(float(seconds)))


def _read_keys(keys: Keys) -> PeerKeys | None:
    if isinstance(keys, PeerKeys):
        return keys
    path = config.key_file() if keys is None else Path(keys)
    return None if path is None else read_peer_keys(path)


# ----- registration --------------------------------------------------------------------------


def registration_options(
    slo: float | None, batching: str, batch_max: int | None, version: int | None = None, origin: str = ""
) -> dict[str, Any]:
    """The options of a Register message. Raises InvalidInput."""
    if batching not in ("auto", "on", "off"):
        raise InvalidInput(
            f"batching {batching!r}: auto, on or off", expected="auto, on or off", got=repr(batching)
        )
    if batch_max is not None and (type(batch_max) is not int or batch_max < 1):
        raise InvalidInput(
            f"batch_max {batch_max!r}: an integer of at least 1", expected=">= 1", got=repr(batch_max)
        )
    if version is not None and (type(version) is not int or version < 1):
        raise InvalidInput(
            f"version {version!r}: an integer of at least 1", expected=">= 1", got=repr(version)
        )
    return {
        "slo_ns": 0 if slo is None else _checked_ns(slo, "slo"),
        "batching": batching,
        "batch_max": batch_max or 0,
        **({} if version is None else {"version": version}),
        **({"origin": origin} if origin else {}),
    }


def register(
    channel: Channel,
    name: str,
    model: Any,
    options: dict[str, Any],
    examples: Any,
    timeout_ns: int | None,
    progress: ProgressCallback | None,
    opened: Callable[[CallStream], None] | None = None,
) -> ModelInfo:
    """Client.register(); blocks its thread. ``opened`` is called with the stream once there is one."""
    checked_model(name)
    tell = progress if progress is not None else lambda stage, done, total: None
    files = _package(model, examples)
    rows = []
    for index, (path, source) in enumerate(files):
        tell("hash", index, len(files))
        rows.append([path, *_size_and_sha256(source)])
    request_id = channel.next_id()
    try:
        header = codec.check(Register(request_id, name, rows, options))
    except codec.WireError as error:
        raise InvalidModel(f"a package of {len(files)} files: {error}") from None
    stall_ns = config.CLIENT_STALL_NS if timeout_ns is None else timeout_ns
    stream = channel.open_stream(request_id, header, stall_ns, renewed=timeout_ns is None)
    if opened is not None:
        opened(stream)
    try:
        return made(
            ModelInfo.from_wire,
            _upload(stream, request_id, [source for _, source in files], rows, tell),
        )
    finally:
        stream.close()


def _package(model: Any, examples: Any) -> list[tuple[str, Path | bytes]]:
    if isinstance(model, ModelProfile):
        if examples is not None:
            raise InvalidModel("a profile has been measured already: it takes no examples")
        from clockwork.formats.profiled import encode_profile

        return [(PROFILE_FILE, encode_profile(model))]
    if isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
        if examples is not None:
            raise InvalidModel("a compiled program brings its own checks: it takes no examples")
        from clockwork.formats import program

        return program.package_files(Path(model))
    from clockwork.models import onnx_import  # here, because onnx takes half a second to import

    data: bytes | None = None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
    else:
        data = model if isinstance(model, bytes) else getattr(model, "SerializeToString", lambda: None)()
        if not isinstance(data, bytes):
            raise InvalidModel(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
        path = Path(MODEL_FILE)  # by which name it is spoken of
    if examples is not None and not isinstance(examples, Mapping):
        rows = examples if isinstance(examples, Sequence) else [examples]
        if not all(isinstance(row, Mapping) for row in rows):
            proto = onnx_import.check_model(path, data)
            names = [value.name for value in onnx_import.real_inputs(proto)]
            if len(names) != 1:
                raise InvalidModel(f"examples of a model with the inputs {names} are dicts by input name")
            examples = {names[0]: as_array(examples)}
    return onnx_import.package_files(path, examples, data)


def _size_and_sha256(source: Path | bytes) -> tuple[int, str]:
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    try:
        return hash_file(source)
    except OSError as error:
        raise InvalidModel(f"{source} cannot be read: {error.strerror}") from None


def _upload(
    stream: CallStream,
    request_id: int,
    sources: Sequence[Path | bytes],
    rows: Sequence[Sequence[Any]],
    tell: ProgressCallback,
) -> Any:
    """Answer what the controller asks for, until it replies; the reply's body."""
    total = sum(row[1] for row in rows)
    chunks: Iterator[tuple[int, int, bytes | memoryview]] = iter(())
    sent_bytes = window = unacknowledged = 0
    while True:
        message, frames = stream.receive()
        if type(message) is Progress:
            tell(message.stage, message.done, message.total)
        elif type(message) is UploadNeed:
            if window:
                raise ClockworkError("the controller asks for the package a second time")
            chunks = _chunks(sources, rows, message.chunk_bytes)
            # What is sent and not acknowledged is in this process's memory.
            window = min(message.window, max(1, config.UPLOAD_AHEAD_BYTES_MAX // message.chunk_bytes))
        elif type(message) is UploadAck:
            unacknowledged = max(0, unacknowledged - message.chunks)
        else:
            return reply_body(message, frames)
        while unacknowledged < window and (chunk := next(chunks, None)) is not None:
            file, offset, data = chunk
            stream.send(UploadChunk(request_id, file, offset), [data])
            unacknowledged += 1
            sent_bytes += len(data)
            tell("upload", sent_bytes, total)


def _chunks(
    sources: Sequence[Path | bytes], rows: Sequence[Sequence[Any]], chunk_bytes: int
) -> Iterator[tuple[int, int, bytes | memoryview]]:
    """(file, offset, bytes) of every chunk; an empty file has none. Raises InvalidModel if a file shrank."""
    for index, (source, row) in enumerate(zip(sources, rows)):
        size = row[1]
        if isinstance(source, bytes):
            for offset in range(0, size, chunk_bytes):
                yield index, offset, memoryview(source)[offset : offset + chunk_bytes]
            continue
        with open(source, "rb") as file:
            for offset in range(0, size, chunk_bytes):
                data = file.read(min(chunk_bytes, size - offset))
                if len(data) != min(chunk_bytes, size - offset):
                    raise InvalidModel(f"{source} changed while it was sent")
                yield index, offset, data
