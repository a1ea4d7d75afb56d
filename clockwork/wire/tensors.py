"""Tensors on the wire: conversion between numpy arrays and bytes, and the checks before it.

A tensor's frame holds its elements in C order, little-endian, exactly as ONNX Runtime keeps them:

* strings: for each element a 4-byte little-endian length and that many bytes (UTF-8);
* elements below a byte (int4, uint4, float4e2m1, int2, uint2): packed, the first in the lowest bits;
* everything else: its native bytes; bfloat16 and the float8 types are ``ml_dtypes``' dtypes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from clockwork.config import MESSAGE_BYTES_MAX, RANK_MAX, STRINGS_MAX
from clockwork.config.wire import DIMENSIONS_MAX, LENGTH_CLASS_MIN, STRING_SIZE_MIN
from clockwork.errors import InvalidInput
from clockwork.wire.telling import tell

Array: TypeAlias = npt.NDArray[Any]

FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64, STRING, BOOL, FLOAT16 = range(1, 11)
DOUBLE, UINT32, UINT64, COMPLEX64, COMPLEX128, BFLOAT16 = range(11, 17)
FLOAT8E4M3FN, FLOAT8E4M3FNUZ, FLOAT8E5M2, FLOAT8E5M2FNUZ = range(17, 21)
UINT4, INT4, FLOAT4E2M1, FLOAT8E8M0, UINT2, INT2 = range(21, 27)


class DType(NamedTuple):
    """One of ONNX's element types."""

    name: str  # numpy's (or ml_dtypes') name; "string" for strings
    bits: int  # bits of an element on the wire; strings: of the length before each
    native: bool  # whether numpy has the type without ml_dtypes


DTYPES: dict[int, DType] = {
    FLOAT: DType("float32", 32, True),
    UINT8: DType("uint8", 8, True),
    INT8: DType("int8", 8, True),
    UINT16: DType("uint16", 16, True),
    INT16: DType("int16", 16, True),
    INT32: DType("int32", 32, True),
    INT64: DType("int64", 64, True),
    STRING: DType("string", 32, False),
    BOOL: DType("bool", 8, True),
    FLOAT16: DType("float16", 16, True),
    DOUBLE: DType("float64", 64, True),
    UINT32: DType("uint32", 32, True),
    UINT64: DType("uint64", 64, True),
    COMPLEX64: DType("complex64", 64, True),
    COMPLEX128: DType("complex128", 128, True),
    BFLOAT16: DType("bfloat16", 16, False),
    FLOAT8E4M3FN: DType("float8_e4m3fn", 8, False),
    FLOAT8E4M3FNUZ: DType("float8_e4m3fnuz", 8, False),
    FLOAT8E5M2: DType("float8_e5m2", 8, False),
    FLOAT8E5M2FNUZ: DType("float8_e5m2fnuz", 8, False),
    UINT4: DType("uint4", 4, False),
    INT4: DType("int4", 4, False),
    FLOAT4E2M1: DType("float4_e2m1fn", 4, False),
    FLOAT8E8M0: DType("float8_e8m0fnu", 8, False),
    UINT2: DType("uint2", 2, False),
    INT2: DType("int2", 2, False),
}
"""ONNX's element types by TensorProto.DataType."""

_CODE_OF_NAME = {kind.name: code for code, kind in DTYPES.items() if code != STRING}
_CODE_OF_NATIVE = {np.dtype(kind.name): code for code, kind in DTYPES.items() if kind.native}
_LENGTH = struct.Struct("<I")


def dtype_name(dtype: int) -> str:
    """The name of a dtype code: ``"float32"`` for 1. An unknown code gives a text that says so."""
    kind = DTYPES.get(dtype)
    return kind.name if kind is not None else f"unknown dtype {dtype}"


def code_of(name: str) -> int:
    """Inverse of dtype_name(). Raises InvalidInput."""
    code = STRING if name == DTYPES[STRING].name else _CODE_OF_NAME.get(name)
    if code is None:
        raise InvalidInput(f"dtype {name!r} is not one of ONNX's", expected="an ONNX dtype", got=name)
    return code


def numpy_dtype(dtype: int) -> np.dtype[Any]:
    """The numpy dtype of decode_tensor()'s arrays for a dtype code. Raises InvalidInput if it is unknown."""
    kind = DTYPES.get(dtype)
    if kind is None:
        raise InvalidInput(f"dtype {dtype} is not one of ONNX's", expected="an ONNX dtype", got=str(dtype))
    if kind.native:
        return np.dtype(kind.name)
    if dtype == STRING:
        return np.dtype(object)
    try:
        import ml_dtypes  # here, because few use such types and everybody would pay for it
    except ModuleNotFoundError:
        raise InvalidInput(
            f"dtype {kind.name} needs ml_dtypes: pip install ml_dtypes", expected=kind.name
        ) from None

    scalar = getattr(ml_dtypes, kind.name, None)
    if scalar is None:
        raise InvalidInput(f"dtype {kind.name} needs a newer ml_dtypes", expected=kind.name)
    dtype_of_scalar: np.dtype[Any] = np.dtype(scalar)
    return dtype_of_scalar


# ----- errors of tensors, whose checks are here and in csrc/controller/checks.cpp -----------------


def unknown_dtype(dtype: Any) -> InvalidInput:
    return InvalidInput(
        f"dtype {tell(dtype)} is not one of ONNX's", expected="an ONNX dtype", got=tell(dtype)
    )


def unnatural_dimension(dimension: Any) -> InvalidInput:
    return InvalidInput(
        f"dimension {tell(dimension)} is not a natural number",
        expected="dimensions >= 0",
        got=tell(dimension),
    )


def overflowing_dimensions(shape: Sequence[int]) -> InvalidInput:
    return InvalidInput("the product of the dimensions overflows", got=str(list(shape)))


def too_many_bytes(size: int) -> InvalidInput:
    return InvalidInput(
        f"a tensor of {size} bytes; at most {MESSAGE_BYTES_MAX}",
        expected=f"<= {MESSAGE_BYTES_MAX} bytes",
        got=f"{size} bytes",
    )


def other_bytes(dtype: int, shape: Sequence[int], size: int, frame_bytes: int) -> InvalidInput:
    return InvalidInput(
        f"{dtype_name(dtype)} {list(shape)} takes {size} bytes, its frame has {frame_bytes}",
        expected=f"{size} bytes",
        got=f"{frame_bytes} bytes",
    )


def too_many_strings(count: int) -> InvalidInput:
    return InvalidInput(
        f"a tensor of {count} strings; at most {STRINGS_MAX} (STRINGS_MAX)",
        expected=f"<= {STRINGS_MAX} strings",
        got=f"{count} strings",
    )


def string_outside(index: int, count: int, frame_bytes: int) -> InvalidInput:
    return InvalidInput(f"string {index} of {count} lies outside its frame of {frame_bytes} bytes")


def bytes_behind_strings(left: int, count: int) -> InvalidInput:
    return InvalidInput(f"{left} bytes follow the last of {count} strings")


# ----- checks --------------------------------------------------------------------------------


def tensor_bytes(dtype: int, shape: Sequence[int]) -> int:
    """Bytes of a tensor on the wire; for strings a lower bound (4 for each element).

    Nothing declared is trusted: raises InvalidInput for a dtype that is not ONNX's, a rank over
    RANK_MAX, a dimension that is negative or not an integer, or a size over MESSAGE_BYTES_MAX.
    """
    kind = DTYPES.get(dtype) if type(dtype) is int else None
    if kind is None:
        raise unknown_dtype(dtype)
    if not isinstance(shape, (list, tuple)):
        raise InvalidInput(f"a shape is a list, not {type(shape).__name__}", got=type(shape).__name__)
    if len(shape) > RANK_MAX:
        raise InvalidInput(
            f"a tensor of rank {len(shape)}; at most {RANK_MAX}",
            expected=f"rank <= {RANK_MAX}",
            got=f"rank {len(shape)}",
        )
    count, product = 1, 1
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            raise unnatural_dimension(dimension)
        count *= dimension
        product *= dimension or 1
        if product > DIMENSIONS_MAX:
            raise overflowing_dimensions(shape)
    size = (count * kind.bits + 7) >> 3
    if size > MESSAGE_BYTES_MAX:
        raise too_many_bytes(size)
    return size


def check_tensor(dtype: int, shape: Sequence[int], frame_bytes: int) -> None:
    """Raises InvalidInput unless a frame of ``frame_bytes`` bytes can hold a tensor of this dtype and shape.

    Exact and cheap, whatever the size, but for strings, where only a lower bound is checked: their
    lengths are proven by check_strings().
    """
    size = tensor_bytes(dtype, shape)
    if frame_bytes != size and not (dtype == STRING and frame_bytes > size):
        raise other_bytes(dtype, shape, size, frame_bytes)


def check_strings(count: int, frame: Any) -> None:
    """Raises InvalidInput unless ``count`` strings, at most STRINGS_MAX, fill the frame exactly."""
    if count > STRINGS_MAX:
        raise too_many_strings(count)
    view = memoryview(frame).cast("B")
    total = view.nbytes
    length_at = _LENGTH.unpack_from
    last = total - 4  # the last place at which a length may begin
    offset = 0
    for index in range(count):
        if offset > last:
            raise string_outside(index, count, total)
        offset += 4 + length_at(view, offset)[0]
    if offset > total:
        raise string_outside(count - 1, count, total)
    if offset != total:
        raise bytes_behind_strings(total - offset, count)


def string_size(count: int, total_work: int) -> int:
    """The size as which executions are timed for ``count`` strings of this work (csrc/wire/string_work.h).

    The size is the mean, rounded up to a power of two: the time to read a string follows its bytes, or the
    work of decoding an image, as an execution's time follows a shape.
    """
    size = STRING_SIZE_MIN
    while size * count < total_work:
        size *= 2
    return size


def length_class(size: int, limit: int = 0) -> int:
    """The class of a size in a dimension in which requests of different length share batches: 4, 6, 8, 12,
    ...

    limit: the largest size that the model takes, which ends its class; 0: none is known. A size of 0 is a
    class of its own.
    """
    if size == 0:
        return 0
    found = LENGTH_CLASS_MIN
    while found < size:
        found += found // 2 if found & (found - 1) == 0 else found // 3
    return min(found, limit) if size <= limit else found


def length_classes(longest: int, limit: int = 0) -> list[int]:
    """The classes of sizes from 1 to ``longest``."""
    found = [length_class(1, limit)]
    while found[-1] < longest:
        found.append(length_class(found[-1] + 1, limit))
    return found


def split_strings(count: int, frame: Any) -> list[bytes]:
    """The elements of a tensor of ``count`` strings. Raises InvalidInput unless they fill the frame."""
    view = memoryview(frame).cast("B")
    total = view.nbytes
    if total < 4 * count:
        raise InvalidInput(f"{count} strings do not fit into {total} bytes", got=f"{total} bytes")
    elements = []
    offset = 0
    for index in range(count):
        begin = offset + 4
        if begin > total:
            raise string_outside(index, count, total)
        offset = begin + _LENGTH.unpack_from(view, offset)[0]
        if offset > total:
            raise string_outside(index, count, total)
        elements.append(bytes(view[begin:offset]))
    if offset != total:
        raise bytes_behind_strings(total - offset, count)
    return elements


def join_strings(elements: Sequence[bytes | bytearray]) -> bytes:
    """Inverse of split_strings()."""
    pieces: list[bytes | bytearray] = []
    for element in elements:
        pieces.append(_LENGTH.pack(len(element)))
        pieces.append(element)
    return b"".join(pieces)


def as_array(value: Any) -> Array:
    """A caller's tensor as an array.

    Arrays (and whatever offers ``__array__``) keep their dtype. Plain Python values, or lists of
    them, get the dtypes that most models take: float becomes float32, int int64, bool bool, str a
    string. Raises InvalidInput for ragged lists.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{type(value).__name__} does not make an array: {error}") from None
    if (
        array.dtype == np.float64
        and isinstance(value, (float, list, tuple))
        and not isinstance(value, np.generic)
    ):
        return array.astype(np.float32)
    return array


def encode_array(array: Array) -> tuple[int, list[int], Any]:
    """(dtype code, shape, frame) of an array.

    The frame is a flat view of the array's own memory where that is possible: the array must not
    change before the message has left. A copy is made of arrays that are not
    C-contiguous or not little-endian, of strings, and of packed types. Raises InvalidInput for a
    dtype that ONNX does not have, or a size beyond the bounds.
    """
    dtype = array.dtype
    code = _CODE_OF_NATIVE.get(dtype)
    if code is None:
        if dtype.kind in "OUST":
            return _encode_strings(array)
        if dtype.byteorder == ">":
            array = array.astype(dtype.newbyteorder("<"))
            dtype = array.dtype
        code = _CODE_OF_NATIVE.get(dtype, _CODE_OF_NAME.get(dtype.name))
        if code is None:
            raise InvalidInput(
                f"dtype {dtype} is not one of ONNX's", expected="an ONNX dtype", got=str(dtype)
            )
    shape = list(array.shape)
    size = tensor_bytes(code, shape)
    if size == 0:
        return code, shape, b""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array).reshape(array.shape)
    flat = array.reshape(-1).view(np.uint8)
    bits = DTYPES[code].bits
    if bits < 8:
        flat = _pack(flat, bits)
    return code, shape, flat.data


def decode_tensor(dtype: int, shape: Sequence[int], frame: Any) -> Array:
    """The array in a frame (bytes-like). Raises InvalidInput if the frame cannot hold it.

    The array is read-only and, where possible, a view that keeps the frame alive; ``.copy()`` gives a
    writable array. Copies are made of strings (an object array of ``str``), packed types, and
    frames whose memory is not aligned for the dtype.
    """
    view = memoryview(frame).cast("B")
    check_tensor(dtype, shape, view.nbytes)
    target = numpy_dtype(dtype)
    bits = DTYPES[dtype].bits
    if dtype == STRING:
        count = tensor_bytes(dtype, shape) // 4
        array = np.empty(count, dtype=object)
        array[:] = [element.decode("utf-8", "surrogateescape") for element in split_strings(count, view)]
    elif bits < 8:
        count = 1
        for dimension in shape:
            count *= dimension
        array = _unpack(np.frombuffer(view, np.uint8), bits, count, dtype in (INT4, INT2)).view(target)
    elif view.nbytes == 0:
        array = np.empty(0, target)
    else:
        array = np.frombuffer(view, np.uint8).view(target)
        if not array.flags.aligned:
            array = array.copy()
    try:
        array = array.reshape(shape)
    except ValueError as error:  # NumPy has no array of some shapes that have no elements: (2^60, 0)
        raise InvalidInput(f"shape {tell(shape)} is none that NumPy has: {error}") from None
    array.flags.writeable = False
    return array


def _encode_strings(array: Array) -> tuple[int, list[int], bytes]:
    shape = list(array.shape)
    tensor_bytes(STRING, shape)
    elements = []
    for element in array.reshape(-1).tolist():
        if isinstance(element, str):
            elements.append(element.encode("utf-8", "surrogateescape"))
        elif isinstance(element, bytes):
            elements.append(element)
        else:
            raise InvalidInput(
                f"an array of objects holds strings, not {type(element).__name__}",
                expected="str or bytes",
                got=type(element).__name__,
            )
    frame = join_strings(elements)
    check_tensor(STRING, shape, len(frame))
    if len(frame) > MESSAGE_BYTES_MAX:
        raise InvalidInput(f"strings of {len(frame)} bytes; at most {MESSAGE_BYTES_MAX}")
    return STRING, shape, frame


def _pack(flat: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack elements of ``bits`` bits, each in a byte of its own, so that a byte holds 8 // bits of them.

    The first element is in the lowest bits.
    """
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat & ((1 << bits) - 1)
    packed = np.zeros(padded.size // per_byte, np.uint8)
    for place in range(per_byte):
        packed |= padded[place::per_byte] << (place * bits)
    return packed


def _unpack(packed: npt.NDArray[np.uint8], bits: int, count: int, signed: bool) -> npt.NDArray[np.uint8]:
    """Inverse of _pack(); negative numbers get their sign extended to the byte."""
    per_byte = 8 // bits
    flat = np.empty(packed.size * per_byte, np.uint8)
    mask = (1 << bits) - 1
    for place in range(per_byte):
        flat[place::per_byte] = (packed >> (place * bits)) & mask
    flat = flat[:count]
    if signed:
        flat[flat >= 1 << (bits - 1)] |= np.uint8(0xFF & ~mask)
    return flat
