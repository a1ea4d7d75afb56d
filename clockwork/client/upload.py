"""Registration: the only call with several messages each way, which uploads a model's package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clockwork import config
from clockwork.client import calls
from clockwork.client.calls import ProgressCallback
from clockwork.client.channel import CallStream, Channel
from clockwork.config import client as bounds
from clockwork.errors import ClockworkError, InvalidModel
from clockwork.wire.description import ModelInfo
from clockwork.wire.messages import Progress, UploadAck, UploadChunk, UploadNeed
from clockwork.wire.packages import PackageFiles


def register(
    channel: Channel,
    name: str,
    model: Any,
    options: dict[str, Any],
    examples: Any,
    timeout_ns: int | None,
    progress: ProgressCallback | None,
    share: float | None = None,
    opened: Callable[[CallStream], None] | None = None,
    optional: Sequence[str] | None = None,
) -> ModelInfo:
    """Carry out Client.register(), which blocks its thread.

    opened: called with the stream when it is open. optional: names of optional inputs; see Client.register().
    share: part of the name's requests, for a version that is registered without traffic (see "traffic" of
    messages.Register).
    """
    calls.checked_model(name)
    tell = progress if progress is not None else lambda stage, done, total: None
    limit_ns = config.CLIENT_TIMEOUT_NS if timeout_ns is None else timeout_ns
    files = _package(model, examples, calls.checked_names(optional))
    rows, sources = [], []
    for index, (path, source) in enumerate(files):
        tell("hash", index, len(files))
        sources.append(_held(source))
        rows.append([path, *_size_and_sha256(sources[-1])])
    stall_ns = bounds.CLIENT_STALL_NS if timeout_ns is None else timeout_ns
    stream = channel.open_stream(calls.REGISTER, stall_ns, timeout_ns is None, name, rows, options)
    if opened is not None:
        opened(stream)
    try:
        info = _upload(stream, sources, rows, tell)
    finally:
        stream.close()
    if not share:
        return info
    channel.call(calls.ROUTE, limit_ns, name, {info.version: share}, None, config.SHADOW_TOLERANCE)
    return channel.call(calls.MODEL, limit_ns, info.reference)


def _package(model: Any, examples: Any, optional: Sequence[str] | None) -> PackageFiles:
    """Return the files of a model's package. Raises InvalidModel.

    With clockwork-serving, whose readers know the formats, files are checked before they are sent. With
    clockwork-client alone, the worker that prepares the model checks them.
    """
    try:
        from clockwork.models.packaging import package_of
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("clockwork"):
            raise
        from clockwork.client.plain_package import package_of
    return package_of(model, examples, optional)


def _held(source: Path | bytes) -> Path | bytes:
    """Return the content of a small file, so that it is read once for its hash and its upload."""
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes() if source.stat().st_size <= bounds.HELD_BYTES_MAX else source
    except OSError as error:
        raise InvalidModel(f"{source} cannot be read: {error.strerror}") from None


def _size_and_sha256(source: Path | bytes) -> tuple[int, str]:
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    try:
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return file.tell(), digest.hexdigest()
    except OSError as error:
        raise InvalidModel(f"{source} cannot be read: {error.strerror}") from None


def _upload(
    stream: CallStream, sources: Sequence[Path | bytes], rows: Sequence[Sequence[Any]], tell: ProgressCallback
) -> ModelInfo:
    """Send the chunks that the controller asks for, until it replies."""
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
            # Chunks that are sent and not acknowledged take this process's memory.
            window = min(message.window, max(1, config.UPLOAD_AHEAD_BYTES_MAX // message.chunk_bytes))
        elif type(message) is UploadAck:
            unacknowledged = max(0, unacknowledged - message.chunks)
        else:
            return calls.REGISTER.decode(message, frames)
        while unacknowledged < window and (chunk := next(chunks, None)) is not None:
            file, offset, data = chunk
            stream.send(UploadChunk(stream.request_id, file, offset), [data])
            unacknowledged += 1
            sent_bytes += len(data)
            tell("upload", sent_bytes, total)


def _chunks(
    sources: Sequence[Path | bytes], rows: Sequence[Sequence[Any]], chunk_bytes: int
) -> Iterator[tuple[int, int, bytes | memoryview]]:
    """Yield (file, offset, bytes) of every chunk; an empty file has none.

    Raises InvalidModel if a file shrank.
    """
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
