"""Summaries of models that workers have prepared.

The package declares a model's inputs and outputs (models.interface); the layout, the times and the largest
batch that helps are each worker's own measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from clockwork.config import BATCH_SIZE_MAX
from clockwork.config.controller import RUN_PAGES_MAX
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.bundles import parse_bundle
from clockwork.formats.package import PackageFile
from clockwork.formats.prepared import PreparedModel
from clockwork.scheduler.types import ProfilePoint
from clockwork.wire.optional import is_value
from clockwork.wire.telling import tell

SIZE_END = 1 << 62  # A bound above every size of a dimension


def read_summary(summary: dict[str, Any]) -> PreparedModel:
    """Read a summary, which has its message's form. Raises InvalidInput for contradictory values."""
    try:
        prepared = PreparedModel.from_dict(summary | {"weights": []})
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"a summary that cannot be read: {type(error).__name__}: {tell(str(error))}"
        ) from None
    if sum(prepared.runs) > RUN_PAGES_MAX:
        raise InvalidInput(f"a summary's runs have at most {RUN_PAGES_MAX} pages")
    if not all(type(text) is str for text in prepared.metadata.values()):
        raise InvalidInput("a summary's metadata are texts by name")
    try:
        prepared.defaults()
    except InvalidModel as error:
        raise InvalidInput(f"a summary of a model that cannot be: {error}") from None
    if not all(type(limit) is int and 0 <= limit < SIZE_END for limit in prepared.lengths.values()):
        raise InvalidInput(f"a summary's lengths are sizes below {SIZE_END} by symbol")
    return prepared


def read_bundle(rows: Sequence[Sequence[Any]]) -> list[PackageFile]:
    """Read the files of a bundle, or none, which have their message's form. Raises InvalidInput."""
    try:
        return parse_bundle(rows) if rows else []
    except InvalidModel as error:
        raise InvalidInput(str(error)) from None


def may_share_lengths(prepared: PreparedModel, lengths: Iterable[str]) -> bool:
    """Whether a prepared program takes batches of requests whose sizes differ in these symbols."""
    return all(symbol in prepared.lengths for symbol in lengths)


def as_counted(points: Iterable[ProfilePoint], batches: bool) -> list[ProfilePoint]:
    """Measurements with shape and batch as requests are counted, of a worker that differs from the others in
    whether it batches the model (batches: whether the others do)."""
    found = []
    for point in points:
        if not batches:
            shape = tuple(dims if is_value(dims) else (point.batch, *dims) for dims in point.shape)
            found.append(ProfilePoint(shape, 1, point.exec_ns))
            continue
        rows = {dims[0] if dims else 0 for dims in point.shape if not is_value(dims)}
        if len(rows) == 1 and 0 < (batch := rows.pop()) <= BATCH_SIZE_MAX:
            shape = tuple(dims if is_value(dims) else dims[1:] for dims in point.shape)
            found.append(ProfilePoint(shape, batch, point.exec_ns))
    return found
