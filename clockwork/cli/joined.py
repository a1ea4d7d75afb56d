"""Image decoding, tokenization and labels that `clockwork models add` joins to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from clockwork.errors import InvalidInput

if TYPE_CHECKING:
    import onnx


def with_images(
    file: Path | None,
    shortest: int | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    resampling: str | None,
) -> onnx.ModelProto:
    """Return an ONNX file's model with decoding of JPEG images. Raises InvalidInput, InvalidModel."""
    from clockwork.models import compose

    flags = compose.ImageFlags(
        shortest=shortest or 0,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        scale=scale,
        filter=resampling or compose.FILTERS[0],
    )
    return compose.with_images(_read(file), flags)


def with_texts(
    file: Path | None, directory: Path, tokens_max: int | None, truncates: bool
) -> onnx.ModelProto:
    """Return an ONNX file's model with tokenization of texts. Raises InvalidInput, InvalidModel,
    ConfigError."""
    from clockwork.models import tokenizers

    return tokenizers.with_texts(_read(file), directory, tokenizers.TextFlags(tokens_max or 0, truncates))


def with_labels(model: onnx.ModelProto | Path | None, path: Path) -> onnx.ModelProto:
    """Return the model with the labels of a file: a line each, or a JSON list. Raises InvalidInput,
    InvalidModel."""
    from clockwork.models import compose

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--labels {path} cannot be read as text: {error}") from None
    if path.suffix == ".json":
        try:
            labels = json.loads(text)
        except ValueError as error:
            raise InvalidInput(f"--labels {path} is not JSON: {error}") from None
        if not isinstance(labels, list):
            raise InvalidInput(f"--labels {path} holds no list")
    else:
        labels = text.splitlines()
    whole = _read(model) if model is None or isinstance(model, Path) else model
    return compose.with_labels(whole, [str(label) for label in labels])


def _read(file: Path | None) -> onnx.ModelProto:
    from clockwork.models import compose

    assert file is not None, "models add names a file"
    if file.is_dir():
        raise InvalidInput(f"{file} is a compiled program; strings and images go before an ONNX file")
    return compose.read_whole(file)


def _numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"{flag} {text!r}: numbers with commas between them, one for each channel"
        ) from None
