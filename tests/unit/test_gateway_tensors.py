"""Tensors of the Open Inference Protocol: every datatype, both ways, and the errors for mismatches."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from clockwork.config import STRINGS_MAX
from clockwork.config.gateway import LISTED_AT_ONCE_BYTES
from clockwork.errors import InvalidInput
from clockwork.gateway.tensors import Listed, check_size, checked_shape, code_of, frame_of_json
from clockwork.protocol.datatypes import DATATYPES, NAME_OF, STANDARD
from clockwork.wire import tensors


def listed(code: int, raw: bytes, name: str) -> Any:
    """An output's elements, read from its pieces of JSON."""
    found, at, text = Listed(code, raw, name), 0, b""
    while at < found.nbytes:
        piece, at = found.piece(at)
        text += piece
    return json.loads(b"[" + text + b"]")


IN_JSON: list[tuple[str, list[Any], bytes]] = [
    ("BOOL", [True, False], b"\1\0"),
    ("UINT8", [0, 255], np.array([0, 255], np.uint8).tobytes()),
    ("UINT16", [0, 65535], np.array([0, 65535], np.uint16).tobytes()),
    ("UINT32", [0, 2**32 - 1], np.array([0, 2**32 - 1], np.uint32).tobytes()),
    ("UINT64", [0, 2**64 - 1], np.array([0, 2**64 - 1], np.uint64).tobytes()),
    ("INT8", [-128, 127], np.array([-128, 127], np.int8).tobytes()),
    ("INT16", [-32768, 32767], np.array([-32768, 32767], np.int16).tobytes()),
    ("INT32", [-(2**31), 2**31 - 1], np.array([-(2**31), 2**31 - 1], np.int32).tobytes()),
    ("INT64", [-(2**63), 2**63 - 1], np.array([-(2**63), 2**63 - 1], np.int64).tobytes()),
    ("FP16", [0.5, -65504.0], np.array([0.5, -65504.0], np.float16).tobytes()),
    ("FP32", [0.5, -2.0], np.array([0.5, -2.0], np.float32).tobytes()),
    ("FP64", [0.1, -1e300], np.array([0.1, -1e300], np.float64).tobytes()),
    ("BYTES", ["", "näher"], b"\0\0\0\0\6\0\0\0n\xc3\xa4her"),
]


@pytest.mark.parametrize(("datatype", "elements", "raw"), IN_JSON, ids=[row[0] for row in IN_JSON])
def test_elements_in_json_become_the_bytes_of_their_datatype_and_come_back(
    datatype: str, elements: list[Any], raw: bytes
) -> None:
    code = code_of(datatype, "x")
    assert frame_of_json(code, [2], elements, "x") == raw
    assert frame_of_json(code, [2, 1], [[elements[0]], [elements[1]]], "x") == raw
    assert listed(code, raw, "y") == elements
    assert frame_of_json(code, [0, 3], [], "x") == b""


def test_every_datatype_of_the_protocol_has_onnxs_code_and_every_code_a_name() -> None:
    assert set(NAME_OF) == set(tensors.DTYPES)
    assert {row[0] for row in IN_JSON} | {"BF16"} == set(STANDARD)
    assert len(DATATYPES) == len(tensors.DTYPES)


MISFITS = [
    ("UINT8", [1, 256], "256"),
    ("UINT8", [1, -1], "-1"),
    ("INT32", [1, 1.5], "1.5"),
    ("INT64", [1, 2**63], str(2**63)),
    ("INT64", [1, "7"], "'7'"),
    ("INT64", [1, None], "None"),
    ("INT64", [1, True], "True"),
    ("FP32", ["1.5", 2], "'1.5'"),
    ("FP16", [[], 2], "[]"),
    ("BOOL", [True, 1], "1"),
    ("BYTES", ["a", 1], "1"),
    ("FP64", [1, {}], "{}"),
]


@pytest.mark.parametrize(("datatype", "elements", "got"), MISFITS)
def test_an_element_that_does_not_fit_is_named(datatype: str, elements: list[Any], got: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        frame_of_json(code_of(datatype, "x"), [2], elements, "x")
    assert caught.value.tensor == "x"
    if elements[0] != []:  # uneven nesting has an error text of its own
        assert caught.value.got == got
        assert datatype in str(caught.value)


def test_the_first_misfit_of_many_is_found() -> None:
    elements = [0] * 100_000
    elements[77_777] = 300
    elements[88_888] = 400
    with pytest.raises(InvalidInput, match="300"):
        frame_of_json(tensors.UINT8, [100_000], elements, "x")


@pytest.mark.parametrize("datatype", ["BOOL", "INT16", "FP16", "FP64", "BYTES"])
def test_long_lists_are_written_in_pieces(datatype: str) -> None:
    code, count = code_of(datatype, "y"), 3 * LISTED_AT_ONCE_BYTES + 5
    kinds = {"BOOL": bool, "BYTES": str}
    elements = [kinds.get(datatype, float if "FP" in datatype else int)(one % 500) for one in range(count)]
    raw = frame_of_json(code, [count], elements, "x")
    pieces, at = [], 0
    while at < len(raw):
        piece, at = Listed(code, raw, "y").piece(at)
        pieces.append(piece)
        assert len(json.loads(b"[" + piece.removeprefix(b",") + b"]")) <= LISTED_AT_ONCE_BYTES
    assert len(pieces) == -(-len(raw) // LISTED_AT_ONCE_BYTES) or datatype == "BYTES"
    assert len(pieces) >= 4
    assert json.loads(b"[" + b"".join(pieces) + b"]") == elements


def test_there_are_no_more_strings_than_a_controller_takes() -> None:
    with pytest.raises(
        InvalidInput, match=f"'x': a tensor of {STRINGS_MAX + 1} strings; at most {STRINGS_MAX}"
    ):
        frame_of_json(tensors.STRING, [STRINGS_MAX + 1], ["a"] * (STRINGS_MAX + 1), "x")


def test_numbers_that_are_no_numbers_survive() -> None:
    raw = frame_of_json(tensors.FLOAT, [3], json.loads("[NaN, Infinity, -Infinity]"), "x")
    found = listed(tensors.FLOAT, raw, "y")
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("shape", "data"), [([2], [1]), ([2], [1, 2, 3]), ([2, 2], [[1, 2], [3]]), ([], []), ([2], [[1], 2])]
)
def test_the_count_of_elements_is_that_of_the_shape(shape: list[int], data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        frame_of_json(tensors.INT64, shape, data, "x")


@pytest.mark.parametrize("datatype", ["BF16", "FLOAT8_E4M3FN", "COMPLEX64", "INT4"])
def test_what_json_has_no_form_for_is_raw_only(datatype: str) -> None:
    code = code_of(datatype, "x")
    with pytest.raises(InvalidInput, match="send binary data"):
        frame_of_json(code, [1], [1], "x")
    with pytest.raises(InvalidInput, match="ask for binary data"):
        listed(code, bytes(8), "y")


def test_bf16_has_two_bytes() -> None:
    raw = np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    check_size(code_of("BF16", "x"), [2], len(raw), "x")


def test_a_wrong_count_of_bytes_is_said_with_what_was_expected() -> None:
    with pytest.raises(
        InvalidInput, match=r"takes 8 bytes, got 4 \(expecting 4 additional bytes\)"
    ) as caught:
        check_size(tensors.FLOAT, [1, 2], 4, "x")
    assert (caught.value.tensor, caught.value.expected, caught.value.got) == ("x", "8 bytes", "4 bytes")
    with pytest.raises(InvalidInput, match="too many"):
        check_size(tensors.FLOAT, [1, 2], 9, "x")
    with pytest.raises(InvalidInput, match="overflows"):
        check_size(tensors.FLOAT, [1 << 61, 1 << 61], 4, "x")


@pytest.mark.parametrize("shape", [None, "1", [1.0], [-1], [True], [1 << 62], [1] * 33, {"0": 1}])
def test_a_shape_is_a_list_of_natural_numbers(shape: Any) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        checked_shape(shape, "x")


@pytest.mark.parametrize("datatype", [None, 1, "float32", "FP8", ""])
def test_a_datatype_is_one_of_the_protocols(datatype: Any) -> None:
    with pytest.raises(InvalidInput, match="BOOL"):
        code_of(datatype, "x")
