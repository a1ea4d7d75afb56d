"""The highest values of an output, with their places and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip(
    "google.protobuf", reason="the gateway's packages are not installed (clockwork-serving[gateway])"
)

from clockwork.config.gateway import CLASSES_MAX
from clockwork.errors import InvalidInput
from clockwork.gateway.classification import check_classified, classify
from clockwork.wire import tensors


def classes(array: np.ndarray[Any, Any], count: int, *, batched: bool = False, labels: Any = ()) -> Any:
    code, shape, frame = tensors.encode_array(array)
    shape, strings = classify(code, shape, frame, count, batched, labels)
    return tensors.decode_tensor(tensors.STRING, shape, strings).tolist()


def test_the_highest_come_first_with_place_and_label() -> None:
    scores = np.array([0.25, 0.5, -1, 0.5], np.float32)
    assert classes(scores, 3, labels=["a", "b", "c"]) == ["0.500000:1:b", "0.500000:3", "0.250000:0:a"]
    assert classes(scores, 1) == ["0.500000:1"], "of equal ones, the first"
    assert len(classes(scores, 1000)) == 4


def test_a_batch_has_classes_row_by_row_and_another_output_as_a_whole() -> None:
    scores = np.array([[1, 3, 2], [5, 4, 6]], np.uint8)
    assert classes(scores, 2, batched=True) == [["3:1", "2:2"], ["6:2", "5:0"]]
    assert classes(scores, 2) == ["6:5", "5:3"]
    assert classes(scores[:0], 2, batched=True) == []


def test_a_nan_is_below_everything() -> None:
    assert classes(np.array([np.nan, -1, 3], np.float64), 2) == ["3.000000:2", "-1.000000:1"]


def test_more_than_an_answer_holds_is_refused() -> None:
    with pytest.raises(InvalidInput, match=f"at most {CLASSES_MAX}"):
        classes(np.zeros((CLASSES_MAX, 2), np.uint8), 2, batched=True)
    for code in (tensors.STRING, tensors.BOOL, tensors.BFLOAT16):
        with pytest.raises(InvalidInput, match="has no classes"):
            check_classified(code, "y")


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 40),
    st.sampled_from([np.uint8, np.int64, np.uint64, np.float16, np.float32]),
)
def test_they_are_those_of_a_sort(values: list[int], count: int, dtype: Any) -> None:
    found = classes(np.array(values, dtype), count)
    order = sorted(range(len(values)), key=lambda index: -values[index])[:count]
    assert [int(text.split(":")[1]) for text in found] == order
