"""Registration: the one call of several messages each way, in which the package of a model is uploaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clockwork import config
from clockwork.client import calls
from clockwork.client.calls import ProgressCallback
from clockwork.client.channel import CallStream, Channel
from clockwork.errors import ClockworkError, InvalidModel
from clockwork.formats.package import MODEL_FILE, PROFILE_FILE, PROGRAM_JSON, hash_file
from clockwork.formats.profiles import ModelProfile
from clockwork.wire.description import ModelInfo
from clockwork.wire.messages import Progress, UploadAck, UploadChunk, UploadNeed
from clockwork.wire.tensors import as_array


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
    calls.checked_model(name)
    tell = progress if progress is not None else lambda stage, done, total: None
    files = _package(model, examples)
    rows = []
    for index, (path, source) in enumerate(files):
        tell("hash", index, len(files))
        rows.append([path, *_size_and_sha256(source)])
    stall_ns = config.CLIENT_STALL_NS if timeout_ns is None else timeout_ns
    stream = channel.open_stream(calls.REGISTER, stall_ns, timeout_ns is None, name, rows, options)
    if opened is not None:
        opened(stream)
    try:
        return _upload(stream, [source for _, source in files], rows, tell)
    finally:
        stream.close()


def _package(model: Any, examples: Any) -> list[tuple[str, Path | bytes]]:
    _check_examples(examples)
    if isinstance(model, ModelProfile):
        if examples is not None:
            raise InvalidModel("a profile has been measured already: it takes no examples")
        from clockwork.formats.profiled import encode_profile

        return [(PROFILE_FILE, encode_profile(model))]
    if isinstance(model, str) and "://" in model:
        raise InvalidModel(
            f"{model} is a URL: `clockwork models add` takes it; register() takes what is on this machine"
        )
    if isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
        if examples is not None:
            raise InvalidModel("a compiled program brings its own checks: it takes no examples")
        from clockwork.formats import program

        _check_folder(Path(model))
        return program.package_files(Path(model))
    from clockwork.models import onnx_import  # here, because onnx takes half a second to import

    data: bytes | None = None
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
    else:
        data = model if isinstance(model, bytes) else getattr(model, "SerializeToString", lambda: None)()
        if not isinstance(data, bytes):
            raise InvalidModel(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
        path = Path(MODEL_FILE)  # the name in error messages
    if examples is not None and not isinstance(examples, Mapping):
        rows = examples if isinstance(examples, Sequence) else [examples]
        if not all(isinstance(row, Mapping) for row in rows):
            proto = onnx_import.check_model(path, data)
            names = [value.name for value in onnx_import.real_inputs(proto)]
            if len(names) != 1:
                raise InvalidModel(f"examples of a model with the inputs {names} are dicts by input name")
            examples = {names[0]: as_array(examples)}
    return onnx_import.package_files(path, examples, data)


def _check_folder(folder: Path) -> None:
    """Raise InvalidModel for a folder that holds no compiled program."""
    if (folder / PROGRAM_JSON).is_file():
        return
    text = f"{folder} is a folder without {PROGRAM_JSON}: a model is an ONNX file, or the folder of a compiled program"
    if found := sorted([*folder.glob("*.onnx"), *folder.glob("*/*.onnx")])[:1]:
        text += f"; this one holds {found[0].relative_to(folder)}, which can be given itself"
    raise InvalidModel(text)


def _check_examples(examples: Any) -> None:
    """Raise InvalidModel for a path, and for a list of no examples."""
    if isinstance(examples, (str, bytes, os.PathLike)):
        path = os.fsdecode(examples)
        raise InvalidModel(
            f"examples are arrays, not the path {path!r}: read the file first, as with dict(numpy.load({path!r}))"
        )
    if isinstance(examples, Sequence) and not examples:
        raise InvalidModel("examples is empty: give at least one, or leave it out, and inputs are made up")


def _size_and_sha256(source: Path | bytes) -> tuple[int, str]:
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    try:
        return hash_file(source)
    except OSError as error:
        raise InvalidModel(f"{source} cannot be read: {error.strerror}") from None


def _upload(
    stream: CallStream,
    sources: Sequence[Path | bytes],
    rows: Sequence[Sequence[Any]],
    tell: ProgressCallback,
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
            # What is sent and not acknowledged is in this process's memory.
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
