"""Triton's classification extension: an output's highest values, with their indices and labels, replace all
values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clockwork.config.gateway import CLASSES_MAX
from clockwork.errors import InvalidInput
from clockwork.protocol.datatypes import NAME_OF
from clockwork.wire import tensors
from clockwork.wire.transport import Frame

CLASSIFIED = (
    tensors.UINT8, tensors.UINT16, tensors.UINT32, tensors.UINT64, tensors.INT8, tensors.INT16, tensors.INT32,
    tensors.INT64, tensors.FLOAT16, tensors.FLOAT, tensors.DOUBLE,
)  # fmt: skip
"""Datatypes of outputs whose values can be compared."""


def class_count(value: Any, name: str) -> int:
    """Return the number of classes that a request wants of an output; 0: its values. Raises InvalidInput."""
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise InvalidInput(
            f"parameter classification of output {name!r} is a count of classes, got {repr(value)[:80]}",
            expected="a count of classes", got=repr(value)[:80],
        )  # fmt: skip
    return value


def check_classified(code: int, name: str) -> None:
    """Raises InvalidInput unless outputs of that datatype have classes."""
    if code not in CLASSIFIED:
        raise InvalidInput(
            f"output {name!r} of datatype {NAME_OF[code]} has no classes: numbers have",
            name,
            got=NAME_OF[code],
        )


def classify(
    code: int, shape: Sequence[int], frame: Frame, count: int, batched: bool, labels: Sequence[str]
) -> tuple[list[int], bytes]:
    """Return the shape and the frame of strings, ``value:index`` or ``value:index:label``, of the highest
    values.

    The result has ``count`` strings, the highest value first; of equal values, the first comes first.
    batched: count them in each row of the first dimension, not in the whole output. Raises InvalidInput past
    CLASSES_MAX.
    """
    rows = shape[0] if batched and shape else 1
    values = np.frombuffer(frame, tensors.numpy_dtype(code)).reshape(
        rows, math.prod(shape) // rows if rows else 0
    )
    count = min(count, values.shape[1])
    if rows * count > CLASSES_MAX:
        raise InvalidInput(
            f"{count} classes of each of {rows} rows; at most {CLASSES_MAX} are sent in an answer",
            expected=f"at most {CLASSES_MAX} classes",
        )
    # NaN sorts below all numbers: if NaN came first, a broken output would look certain.
    keys = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    strings: list[bytes] = []
    for row, key in zip(values, keys, strict=True):
        if count < len(row):
            least = np.partition(key, len(row) - count)[len(row) - count] if count else 0
            above = np.flatnonzero(key > least)
            found = np.concatenate([above, np.flatnonzero(key == least)[: count - len(above)]])
        else:
            found = np.arange(len(row))
        # Unsigned values cannot be negated: the order is reversed, which also reverses equal values.
        order = found[::-1][np.argsort(key[found][::-1], kind="stable")][::-1]
        for index in order[:count]:
            value = f"{row[index]:f}" if values.dtype.kind == "f" else str(row[index])
            label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
            strings.append(f"{value}:{index}{label}".encode())
    return ([rows, count] if batched else [count]), tensors.join_strings(strings)
