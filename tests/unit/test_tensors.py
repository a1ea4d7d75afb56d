"""Arrays to frames and back, for every dtype; and frames that are refused before memory is touched."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from clockwork.config import MESSAGE_BYTES_MAX, RANK_MAX, STRINGS_MAX
from clockwork.errors import InvalidInput
from clockwork.wire import tensors
from clockwork.wire.tensors import (
    as_array,
    check_strings,
    check_tensor,
    decode_tensor,
    encode_array,
    tensor_bytes,
)

EVERY_DTYPE = [code for code in tensors.DTYPES if code != tensors.STRING]


@pytest.mark.parametrize("code", EVERY_DTYPE, ids=tensors.dtype_name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (3, 7), (2, 0, 3), (2, 3, 5)], ids=str)
def test_every_dtype_returns_as_it_went(code: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    dtype = tensors.numpy_dtype(code)
    array = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if code not in (tensors.BOOL, tensors.UINT2, tensors.UINT4, tensors.FLOAT8E8M0) and array.size:
        array = (array.real.astype(np.float32) - 1).astype(dtype) if dtype.kind != "u" else array
    got_code, got_shape, frame = encode_array(array)
    assert (got_code, got_shape) == (code, list(shape))
    assert memoryview(frame).nbytes == tensor_bytes(code, shape)
    back = decode_tensor(code, got_shape, frame)
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.astype(np.complex128).tobytes() == array.astype(np.complex128).tobytes()
    assert not back.flags.writeable


@pytest.mark.parametrize("code", tensors.DTYPES)
def test_names_and_codes_are_inverse(code: int) -> None:
    assert tensors.code_of(tensors.dtype_name(code)) == code
    with pytest.raises(InvalidInput):
        tensors.code_of("float31")


def test_int4_is_packed_as_onnx_packs_it() -> None:
    array = np.array([1, -2, 7, -8, 3], ml_dtypes.int4)
    code, shape, frame = encode_array(array)
    assert bytes(frame) == bytes([0xE1, 0x87, 0x03])
    assert decode_tensor(code, shape, frame).astype(int).tolist() == [1, -2, 7, -8, 3]


def test_int2_is_packed_four_to_a_byte() -> None:
    code, shape, frame = encode_array(np.array([1, -2, -1, 0, 1], ml_dtypes.int2))
    assert bytes(frame) == bytes([0b00_11_10_01, 0b01])
    assert decode_tensor(code, shape, frame).astype(int).tolist() == [1, -2, -1, 0, 1]


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "bc"], ["", "äöü€"]]),
        np.array([["a", "bc"], ["", "äöü€"]], dtype=object),
        np.array([[b"a", b"bc"], [b"", "äöü€".encode()]], dtype=object),
    ],
    ids=["unicode", "object", "bytes"],
)
def test_strings(array: np.ndarray) -> None:
    code, shape, frame = encode_array(array)
    assert (code, shape) == (tensors.STRING, [2, 2])
    assert decode_tensor(code, shape, frame).tolist() == [["a", "bc"], ["", "äöü€"]]


def test_strings_that_are_not_utf8_survive() -> None:
    code, shape, frame = encode_array(np.array([b"\xff\xfe"], dtype=object))
    again = encode_array(decode_tensor(code, shape, frame))
    assert bytes(again[2]) == bytes(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01\0\0\0",  # a length whose bytes are missing
        b"\x01\0\0\0a",  # the second of two strings is missing
        b"\x01\0\0\0a\xff\xff\xff\xffb",  # a second string with a length of 4 GiB
        b"\x01\0\0\0a\x01\0\0\0bX",  # a byte behind the last string
        b"\x06\0\0\0\x01\0\0\0b",  # the first swallows the second's length
    ],
)
def test_strings_whose_lengths_lie(frame: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_tensor(tensors.STRING, [2], frame)
    with pytest.raises(InvalidInput):
        check_strings(2, frame)


def test_checking_strings_finds_nothing_wrong_with_right_ones() -> None:
    frame = encode_array(np.array(["", "b", "äöü"]))[2]
    check_strings(3, frame)
    check_strings(0, b"")
    for count in (0, 2, 4):
        with pytest.raises(InvalidInput):
            check_strings(count, frame)


def test_checking_strings_stops_at_a_bound() -> None:
    check_strings(STRINGS_MAX, bytes(4 * STRINGS_MAX))
    with pytest.raises(InvalidInput, match=rf"at most {STRINGS_MAX} \(STRINGS_MAX\)"):
        check_strings(STRINGS_MAX + 1, bytes(4 * STRINGS_MAX + 4))


def test_encoding_copies_nothing_and_neither_does_decoding() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    code, shape, frame = encode_array(array)
    back = decode_tensor(code, shape, frame)
    assert np.shares_memory(array, back)


def test_unaligned_frames_are_copied_into_aligned_arrays() -> None:
    frame = memoryview(b"x" + np.arange(3, dtype=np.float64).tobytes())[1:]
    back = decode_tensor(tensors.DOUBLE, [3], frame)
    assert back.flags.aligned
    assert back.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32)[::2],
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.arange(12, dtype=">f4").reshape(3, 4),
        np.broadcast_to(np.float32(3), (2, 2)),
    ],
    ids=["transposed", "strided", "fortran", "big-endian", "broadcast"],
)
def test_other_layouts_arrive_in_c_order(array: np.ndarray) -> None:
    code, shape, frame = encode_array(array)
    assert decode_tensor(code, shape, frame).tolist() == array.tolist()


@pytest.mark.parametrize("array", [np.zeros(2, "M8[s]"), np.zeros(2, "V4"), np.array([1, None], object)])
def test_dtypes_that_onnx_lacks(array: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        encode_array(array)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (0, [1]),
        (27, [1]),
        (-1, [1]),
        (True, [1]),
        ([], [1]),
        ("float32", [1]),
        (1, 3),
        (1, None),
        (1, [1] * (RANK_MAX + 1)),
        (1, [-1]),
        (1, [-2, -3]),
        (1, [1.0]),
        (1, ["n"]),
        (1, [True]),
        (1, [2**62, 4]),
        (1, [2**32, 2**32]),
        (1, [0, 2**62, 2**62]),
        (1, [MESSAGE_BYTES_MAX // 4 + 1]),
        (tensors.STRING, [2**31]),
    ],
)
def test_declarations_that_are_refused(dtype: int, shape: list[int]) -> None:
    with pytest.raises(InvalidInput):
        tensor_bytes(dtype, shape)


def test_the_largest_tensor_is_allowed() -> None:
    assert tensor_bytes(tensors.UINT8, [MESSAGE_BYTES_MAX]) == MESSAGE_BYTES_MAX
    assert tensor_bytes(tensors.FLOAT, [1] * RANK_MAX) == 4


@pytest.mark.parametrize(("shape", "size"), [([2, 3], 23), ([2, 3], 25), ([2, 3], 0), ([0], 1), ([], 0)])
def test_frames_of_another_size(shape: list[int], size: int) -> None:
    with pytest.raises(InvalidInput, match="bytes"):
        check_tensor(tensors.FLOAT, shape, size)
    with pytest.raises(InvalidInput, match="bytes"):
        decode_tensor(tensors.FLOAT, shape, bytes(size))


def test_python_values_get_the_dtypes_that_models_take() -> None:
    assert as_array([1.0, 2.0]).dtype == np.float32
    assert as_array(3.5).dtype == np.float32
    assert as_array([[1, 2]]).dtype == np.int64
    assert as_array([True]).dtype == np.bool_
    assert encode_array(as_array(["a"]))[0] == tensors.STRING
    assert as_array(np.float64(1)).dtype == np.float64
    assert as_array(np.zeros(2)).dtype == np.float64


def test_ragged_lists_are_no_array() -> None:
    with pytest.raises(InvalidInput):
        as_array([[1, 2], [3]])
