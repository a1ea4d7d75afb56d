"""How a name's traffic is split: shares that add up, exact turns, rollbacks, and differences."""

from __future__ import annotations

import math
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from clockwork.config import SHARE_WHOLE
from clockwork.config.controller import ROUTES_KEPT
from clockwork.controller.catalog.routes import (
    NameRoute,
    Shadow,
    TrafficSplit,
    changed,
    check_inputs,
    divide,
    read_shadow,
    serving,
    share_out,
    whole,
)
from clockwork.errors import InvalidInput, InvalidModel
from clockwork.formats.prepared import TensorSpec
from clockwork.wire.tensors import encode_array
from tests.native import _tested
from tests.native._tested import difference, turns

ALL = SHARE_WHOLE


def test_both_sides_count_in_the_same_parts() -> None:
    assert _tested.SHARE_WHOLE == SHARE_WHOLE


# ----- whose turn it is --------------------------------------------------------------------------


def test_a_tenth_is_one_of_every_ten_wherever_one_begins_to_count() -> None:
    order = turns([9 * ALL // 10, ALL // 10], 1000)
    assert all(Counter(order[start : start + 10])[1] == 1 for start in range(0, 990))


@pytest.mark.parametrize("shares", [[5000, 5000], [1, 9999], [3333, 3333, 3334], [100, 900, 2000, 7000]])
def test_nobody_is_ever_more_than_a_request_away_from_his_share(shares: list[int]) -> None:
    order = turns(shares, ALL)
    # over the whole, counts equal the shares exactly
    assert [Counter(order)[place] for place in range(len(shares))] == shares
    had = [0] * len(shares)
    for count, place in enumerate(order, 1):
        had[place] += 1
        assert all(abs(seen - count * parts / ALL) <= 1 for seen, parts in zip(had, shares))


# ----- shares ------------------------------------------------------------------------------------


def test_the_rest_stays_with_those_that_have_the_traffic() -> None:
    assert share_out([(1, ALL)], [[2, 1000]]) == ((1, 9000), (2, 1000))
    assert share_out([(1, 9000), (2, 1000)], [[2, 5000]]) == ((1, 5000), (2, 5000))
    assert share_out([(1, 6000), (2, 2000), (3, 2000)], [[3, 6000]]) == ((1, 3000), (2, 1000), (3, 6000))
    assert share_out([(1, 9000), (2, 1000)], [[3, 1]]) == ((1, 8999), (2, 1000), (3, 1))
    assert share_out([(1, 9000), (2, 1000)], [[2, 0]]) == ((1, ALL),)
    assert share_out([(1, 9000), (2, 1000)], [[2, ALL]]) == ((2, ALL),)
    assert share_out([(1, ALL)], [[1, 2500], [2, 7500]]) == ((1, 2500), (2, 7500))


def test_parts_are_whole_and_none_is_lost() -> None:
    parts = divide(ALL, [(1, 1), (2, 1), (3, 1)])
    assert parts == {1: 3334, 2: 3333, 3: 3333}
    assert sum(divide(9_999, [(1, 3), (2, 7), (5, 90)]).values()) == 9_999


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([[1, 6000], [2, 6000]], "the shares add up to 120 %"),
        ([[1, 2000], [2, 2000]], "add up to 40 %, and no other version has traffic"),
        ([[2, -1]], "the share of version 2 is -0.01 %"),
        ([[2, ALL + 1]], "the share of version 2 is 100.01 %"),
        ([[2, 1], [2, 1]], "version 2 is named twice"),
        ([[2]], "a share is"),
        ([[2, True]], "a share is"),
        ([["2", 1]], "a share is"),
        ([[one, 1] for one in range(1, 30)], "29 versions are named"),
    ],
)
def test_shares_that_make_no_sense(asked: list[list[int]], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        share_out([(1, 9000), (2, 1000)], asked)


def test_while_one_cannot_serve_the_others_have_its_part() -> None:
    split = TrafficSplit(((1, 6000), (2, 3000), (3, 1000)))
    assert serving(split, [1, 2, 3, 4]) == [(1, 6000), (2, 3000), (3, 1000)]
    assert serving(split, [1, 2, 4]) == [(1, 6667), (2, 3333)]
    assert serving(split, [3]) == [(3, ALL)]
    assert serving(split, [4]) == []


def test_a_shadow_comes_stays_and_goes() -> None:
    shadow = Shadow(2, ALL, 0.5)
    assert read_shadow([2, ALL, 0.5], None) == shadow
    assert read_shadow([], shadow) == shadow
    assert read_shadow([0, 0, 0.0], shadow) is None
    for wrong in ([2, ALL + 1, 0.1], [2, 1, -1.0], [2, 1, math.nan], [2, 1], ["2", 1, 1.0]):
        with pytest.raises(InvalidInput):
            read_shadow(wrong, None)


def test_nobody_is_his_own_shadow() -> None:
    shadow = [2, ALL, 0.5]
    now = changed(whole(1), [], shadow)
    assert now == TrafficSplit(((1, ALL),), Shadow(2, ALL, 0.5))
    assert changed(now, [[2, 1000]], []) == TrafficSplit(((1, 9000), (2, 1000)), Shadow(2, ALL, 0.5))
    assert changed(now, [[2, ALL]], []) == whole(2)  # with all the traffic the version is no canary
    with pytest.raises(InvalidInput, match="version 2 has all the traffic"):
        changed(whole(2), [], shadow)


# ----- going back --------------------------------------------------------------------------------


def test_each_change_can_be_gone_back_from_and_a_change_of_nothing_counts_for_none() -> None:
    route = NameRoute("m")
    route.change(whole(1), whole(1))  # sets explicitly the split that was automatic before
    assert route.earlier == []
    tenth = TrafficSplit(((1, 9000), (2, 1000)))
    route.change(tenth, whole(1))
    route.change(whole(2), tenth)
    assert route.earlier == [whole(1), tenth]
    assert route.forget(1)
    assert route.earlier == []
    for version in range(2, 40):
        route.change(whole(version + 1), whole(version))
    assert len(route.earlier) == ROUTES_KEPT
    assert route.earlier[-1] == whole(39)


def test_a_route_is_read_as_it_was_written_and_a_damaged_one_is_not() -> None:
    route = NameRoute("m", TrafficSplit(((1, 9000), (2, 1000)), Shadow(3, 500, 0.25)), [whole(1)])
    for one in (route, NameRoute("m")):
        assert NameRoute.from_row(one.to_row("somebody", 7)) == one
    shares = {"shares": [[1, 9000], [2, 1000]], "shadow": None}
    good = {"name": "m", "split": shares, "earlier": [shares]}
    assert NameRoute.from_body(good).split == TrafficSplit(((1, 9000), (2, 1000)))
    shadow = {"version": 3, "parts": 500, "tolerance": 0.25}
    for wrong in (
        {}, {"name": "../m"}, {"name": "m\0"}, {"name": ["m"]}, {"split": []}, {"earlier": {}}, {"earlier": [shares] * 9},
        {"split": {"shares": [[1, 9001], [2, 1000]], "shadow": None}},
        {"split": {"shares": [[1, 10_000], [2, 0]], "shadow": None}},
        {"split": {"shares": [[1, 5000], [1, 5000]], "shadow": None}},
        {"split": {"shares": [["1", 10_000]], "shadow": None}},
        {"split": {"shares": [[True, 10_000]], "shadow": None}},
        {"split": {"shares": [[2**63, 10_000]], "shadow": None}},
        {"split": {"shares": [[1.0, 10_000]], "shadow": None}},
        {"split": {"shares": [], "shadow": None}},
        {"split": {"shares": [[1, 1]] * 10_000, "shadow": None}},
        {"split": shares | {"shadow": shadow | {"tolerance": float("nan")}}},
        {"split": shares | {"shadow": shadow | {"parts": 10**30}}},
        {"split": shares | {"shadow": []}},
        {"earlier": [{"shares": [[1, 1]], "shadow": None}]},
    ):  # fmt: skip
        with pytest.raises((ValueError, KeyError, TypeError, InvalidModel)):
            NameRoute.from_body((good | wrong) if wrong else {})


def test_versions_that_take_other_inputs_share_nothing() -> None:
    plain = [TensorSpec("x", 1, ("N", 3)), TensorSpec("m", 7, ("N",))]
    told = [*plain, TensorSpec("told", 9, (1,))]
    check_inputs({1: plain, 2: told}, "net", {1: [], 2: ["told"]})
    check_inputs({1: told, 2: told}, "net", {1: ["told"], 2: ["told"]})
    for optional in ({1: [], 2: []}, {1: ["told"], 2: []}):
        with pytest.raises(InvalidInput, match="told"):
            check_inputs({1: plain if not optional[1] else told, 2: told}, "net", optional)
    check_inputs({1: plain, 2: [TensorSpec("m", 7, ("batch",)), TensorSpec("x", 1, ("batch", 3))]}, "net")
    for other in (
        [TensorSpec("y", 1, ("N", 3)), plain[1]],
        [TensorSpec("x", 11, ("N", 3)), plain[1]],
        [TensorSpec("x", 1, (1, 3)), plain[1]],
        [plain[0]],
    ):
        with pytest.raises(
            InvalidInput, match=r"net@2 takes .*, net@1 takes m int64 \[\?\], x float32 \[\?, 3\]"
        ):
            check_inputs({1: plain, 2: other}, "net")


# ----- how far answers are apart -----------------------------------------------------------------

DTYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16,
    np.uint32, np.uint64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_differences_are_numpys(dtype: type) -> None:
    rng = np.random.default_rng(5)
    first = np.abs(rng.standard_normal(1000) * 50).astype(dtype)
    other = (first.astype(np.float64) + rng.integers(0, 2, 1000)).astype(dtype)
    code, _, one = encode_array(first)
    _, _, two = encode_array(other)
    apart = np.abs(first.astype(np.float64) - other.astype(np.float64)).max()
    scale = np.abs(first.astype(np.float64)).max()
    assert difference(code, bytes(one), bytes(two)) == (False, apart, apart / scale)
    assert difference(code, bytes(one), bytes(one)) == (False, 0, 0)


def test_what_is_not_a_number_is_infinitely_far_from_what_is_one() -> None:
    numbers = np.array([1, np.nan, np.inf], np.float32)
    assert difference(1, numbers.tobytes(), (-numbers).tobytes())[1] == math.inf
    quiet = np.array([1.5, np.nan, np.inf], np.float32)  # where both values are equal, the rest counts
    assert difference(1, numbers.tobytes(), quiet.tobytes()) == (False, 0.5, 0.5)
    gone = np.array([1, np.nan, 2], np.float32)
    assert difference(1, gone.tobytes(), np.array([np.nan, np.nan, 2], np.float32).tobytes())[2] == math.inf


def test_from_nothing_every_difference_is_whole() -> None:
    zeros, ones = np.zeros(3, np.float32), np.full(3, 1e-9, np.float32)
    assert difference(1, zeros.tobytes(), ones.tobytes())[2] == 1


def test_strings_and_small_types_are_alike_or_not() -> None:
    assert difference(8, b"\x01\0\0\0a", b"\x01\0\0\0b") == (False, 1, 1)
    assert difference(8, b"\x01\0\0\0a", b"\x02\0\0\0ab") == (False, 1, 1)
    assert difference(22, b"\x12", b"\x13") == (False, 1, 1)
    assert difference(9, b"\x00\x01", b"\x01\x01") == (False, 1, 1)
