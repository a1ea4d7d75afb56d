"""JSON of megabytes, read in pieces, equals JSON read as a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clockwork.config.gateway import JSON_AT_ONCE_BYTES, JSON_CONTAINERS_MAX
from clockwork.errors import InvalidInput
from clockwork.gateway.errors import TooLarge
from clockwork.gateway.long_json import read_inference, read_object

WHOLE = 1 << 40

TEXTS = [
    '{"a": [1, 2.5, -3e7, true, false, null, NaN, Infinity, -Infinity, 12345678901234567890]}',
    '{"a":[[1,2],[3,4],[],[[5]]],"b":["x","[1,2","é\\u00e9\\"",{"c":[1,"2",3]}]}',
    ' { "a" : [ ] , "b" : [ 1 , 2 ] , "a" : [\n1\n,\n2\n] } ',
    '{"a":[11111111111111111111111,2]}',
    '{"\\ud800": ["\\ud800", 1]}',
]
BROKEN = [
    '{"a":[1,,2,3,4,5,6]}', '{"a":[1,2,3,4,5,]}', '{"a":[,1,2,3,4,5,6]}', '{"a":[1,2,3,4 5,6,7]}', '{"a":[1,2,3,4,5,6', '{"a":[1,2,3,tru,4,5]}',
    '{"a":[1,2,3,4,5]]', '{"a":[1,2,3,4:5,6]}', "[1,2,3,4,5,6,7]", '{"a":[1,2,3,4,5,6]} x', "",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_pieces_of_any_size_are_the_whole(text: str, at_once: int) -> None:
    assert repr(read_object(text.encode(), "it", at_once)) == repr(read_object(text.encode(), "it", WHOLE))


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_what_is_broken_as_a_whole_is_broken_in_pieces(text: str, at_once: int) -> None:
    for size in (at_once, WHOLE):
        with pytest.raises(InvalidInput, match=r"is no JSON|is a JSON object"):
            read_object(text.encode(), "it", size)


def test_the_place_of_a_mistake_is_that_in_the_whole() -> None:
    body = b'{"a":[' + b"1," * JSON_AT_ONCE_BYTES + b"oh,2]}"
    with pytest.raises(InvalidInput) as caught:
        read_object(body, "it")
    with pytest.raises(InvalidInput) as wanted:
        read_object(body, "it", WHOLE)
    assert str(caught.value) == str(wanted.value)
    assert f"char {body.index(b'oh')}" in str(caught.value)


def test_lists_and_objects_are_counted_before_any_is_made() -> None:
    body = b'{"a":[' + b"[]," * JSON_CONTAINERS_MAX + b"0]}"
    with pytest.raises(TooLarge, match=str(JSON_CONTAINERS_MAX + 2)):
        read_object(body, "it")


def row(data: Any, datatype: Any = "INT32", shape: Any = (2,)) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": list(shape), "data": data}


def test_the_data_of_inputs_are_frames_or_what_is_wrong_with_them() -> None:
    rows = [
        row([1, 2]), row([1, 2.5]), row([[1], [2]]), row([1]), row("text"), row(None), row([1], "INT33"), row([1], shape=[-1]),
        {"name": 7, "data": [1]}, "no row",
    ]  # fmt: skip
    read = read_inference(json.dumps({"inputs": rows}).encode(), "it")["inputs"]
    assert [bytes(read[place]["data"]) for place in (0, 2)] == 2 * [b"\1\0\0\0\2\0\0\0"]
    for place, words in ((1, "2.5"), (3, "2 elements, got 1"), (6, "INT33"), (7, "-1")):
        assert isinstance(read[place]["data"], InvalidInput)
        assert words in str(read[place]["data"])
    assert read[4:6] == rows[4:6]
    assert read[8:] == rows[8:]
