"""Estimates: a single outlier moves nothing, a real shift is followed, sizes of batches in between are
interpolated."""

from __future__ import annotations

import random

import pytest

from clockwork.scheduler._core import (
    BATCH_TABLE_MAX,
    BOUND_RATIO_MAX,
    Curve,
    Estimates,
    LoadEstimates,
    ProgramEstimates,
    with_margin,
)
from clockwork.scheduler.types import ProfilePoint

MS = 1_000_000
SHAPE = ((3, 8, 8),)


def curve(**points: int) -> Curve:
    made = Curve()
    for batch, ns in points.items():
        made.seed(int(batch[1:]), ns)
    return made


def test_the_profile_is_the_first_estimate() -> None:
    made = curve(b1=5 * MS, b4=8 * MS)
    assert [made.exec_ns(b) for b in (1, 2, 3, 4)] == [5 * MS, 6 * MS, 7 * MS, 8 * MS]
    assert made.exec_ns(8) == 16 * MS, "beyond the last point: in proportion"
    assert made.planned_ns(1) == with_margin(5 * MS) > 5 * MS


def test_estimates_never_fall_with_the_batch() -> None:
    made = curve(b1=5 * MS, b2=4 * MS, b8=20 * MS)
    values = [made.exec_ns(b) for b in range(1, 20)]
    assert values == sorted(values)


def test_one_outlier_moves_nothing() -> None:
    made = curve(b1=5 * MS)
    for _ in range(5):
        made.measure(1, 5 * MS)
    assert not made.measure(1, 50 * MS)
    assert made.exec_ns(1) == 5 * MS
    first = curve(b1=5 * MS)
    first.measure(1, 50 * MS)
    assert first.exec_ns(1) == 5 * MS, "not even as the first sample"


def test_two_outliers_among_ten_move_nothing() -> None:
    """A model of 6 ms took 141 ms, and eight executions later 302 ms: 141 ms were expected of every other
    execution then."""
    made = curve(b1=6 * MS)
    for took_ms in (6, 6, 6, 141, 6, 6, 6, 6, 302, 6, 6, 6, 6):
        made.measure(1, took_ms * MS)
        assert made.exec_ns(1) == 6 * MS, took_ms


def test_two_in_a_row_are_followed_until_the_next_that_is_not_long() -> None:
    made = curve(b1=6 * MS)
    for took_ms, expected_ms in ((6, 6), (6, 6), (90, 6), (70, 70), (6, 6), (6, 6)):
        made.measure(1, took_ms * MS)
        assert made.exec_ns(1) == expected_ms * MS, took_ms


def test_three_of_ten_are_no_accident() -> None:
    made = curve(b1=6 * MS)
    for took_ms in (6, 6, 6, 6, 40, 6, 6, 30, 6):
        made.measure(1, took_ms * MS)
        assert made.exec_ns(1) == 6 * MS
    made.measure(1, 20 * MS)
    assert made.exec_ns(1) == 30 * MS, "the second largest"


def test_devices_that_stall_together_make_one_outlier() -> None:
    made = curve(b1=6 * MS)
    made.exec_ns(1)
    for place in range(10):
        made.measure(1, 6 * MS, place * 6 * MS)
    for device in range(8):
        made.measure(1, 300 * MS, 400 * MS + device)
        assert made.exec_ns(1) == 6 * MS
    made.measure(1, 300 * MS, 701 * MS)
    assert made.exec_ns(1) == 300 * MS, "once more, behind that"


@pytest.mark.parametrize("shift", [0.5, 0.9, 1.1, 3.0])
def test_a_real_shift_is_followed_within_twenty_actions(shift: float) -> None:
    made = curve(b1=5 * MS)
    for _ in range(30):
        made.measure(1, 5 * MS)
    target = int(5 * MS * shift)
    for _ in range(20):
        made.measure(1, target)
        if abs(made.exec_ns(1) - target) <= target * 0.03:
            break
    assert abs(made.exec_ns(1) - target) <= target * 0.03


def test_noise_is_covered_but_not_chased() -> None:
    rng = random.Random(1)
    made = curve(b1=5 * MS)
    published = sum(made.measure(1, int(5 * MS * rng.uniform(0.95, 1.05))) for _ in range(1000))
    assert 5 * MS <= made.exec_ns(1) <= 5.3 * MS
    assert published < 250, "the plans would be timed anew all the time"


def test_a_seed_that_never_ran_drifts_with_its_neighbour() -> None:
    made = curve(b1=5 * MS, b8=12 * MS)
    for _ in range(10):
        made.measure(1, 10 * MS)
    assert made.exec_ns(8) == pytest.approx(24 * MS, rel=0.02)


def test_a_measured_batch_between_two_points_gets_its_own_value() -> None:
    made = curve(b1=1 * MS, b9=9 * MS)
    for _ in range(10):
        made.measure(5, 7 * MS)
    assert made.exec_ns(5) == 7 * MS
    assert made.exec_ns(3) == pytest.approx(4 * MS, rel=0.01)


def test_a_monstrous_batch_costs_no_memory() -> None:
    made = curve(b1=MS)
    assert made.exec_ns(10**9) >= 10**9 * (MS // 2)
    made.measure(10**9, MS)
    assert made.exec_ns(BATCH_TABLE_MAX) == BATCH_TABLE_MAX * MS


def test_models_of_one_program_teach_each_other_per_device_kind() -> None:
    estimates = Estimates()
    for kind in ("cpu", "cuda"):
        estimates.program("p", kind).seed([ProfilePoint(SHAPE, 1, 5 * MS)])
    for _ in range(10):
        estimates.program("p", "cpu").measure(SHAPE, 1, 9 * MS)
    # the next fine-tuned model registers
    estimates.program("p", "cpu").seed([ProfilePoint(SHAPE, 1, 5 * MS)])
    assert estimates.program("p", "cpu").curve(SHAPE).exec_ns(1) == 9 * MS
    assert estimates.program("p", "cuda").curve(SHAPE).exec_ns(1) == 5 * MS


def test_the_bound_of_an_unseen_shape_is_quadratic_and_capped() -> None:
    program = ProgramEstimates()
    assert program.bound_ns(SHAPE, 1) == 0, "no ground for any bound"
    program.seed([ProfilePoint(SHAPE, 1, 4 * MS)])
    assert program.is_profiled(SHAPE)
    assert not program.is_profiled(((3, 8, 16),))
    assert program.bound_ns(((3, 8, 16),), 1) == with_margin(16 * MS)
    assert program.bound_ns(((3, 4, 4),), 1) == with_margin(4 * MS), (
        "a smaller shape is not promised to be faster"
    )
    assert program.bound_ns(((3, 8, 8 * BOUND_RATIO_MAX + 8),), 1) == 0
    program.measure(((3, 8, 16),), 1, 6 * MS)
    assert program.is_profiled(((3, 8, 16),))
    assert program.curve(((3, 8, 16),)).exec_ns(1) == 6 * MS


def test_callers_cannot_have_ever_larger_shapes_let_in() -> None:
    """Each executed shape gave evidence about one of eight times as many elements."""
    program = ProgramEstimates()
    program.seed([ProfilePoint(((64,),), 1, MS)])
    most = 64 * BOUND_RATIO_MAX
    assert program.bound_ns(((most,),), 1) == with_margin(BOUND_RATIO_MAX**2 * MS)
    program.measure(((most,),), 1, 2 * MS)
    assert program.bound_ns(((2 * most,),), 1) == 0
    assert program.bound_ns(((most // 2,),), 1) == with_margin(2 * MS), "smaller ones are bounded by it"


def test_an_unseen_shape_is_bounded_by_the_smallest_that_is_as_large() -> None:
    program = ProgramEstimates()
    program.seed([ProfilePoint(((length,),), 1, length * MS) for length in (512, 64, 128)])
    for length, bound_ms in ((1, 64), (64, 64), (65, 128), (128, 128), (129, 512), (512, 512), (1024, 2048)):
        assert program.bound_ns(((length,),), 1) == with_margin(bound_ms * MS), length


def test_loads_know_the_program_the_profile_and_the_machine() -> None:
    loads = LoadEstimates()
    assert loads.load_ns(1, 10 * MS, 100) == 10 * MS
    for _ in range(10):
        loads.measure(1, 10 * MS, 100, 20 * MS)
    assert loads.load_ns(1, 10 * MS, 100) == 20 * MS
    assert loads.load_ns(2, 5 * MS, 50) == 10 * MS, "this machine takes twice what profiles say"
    assert loads.load_ns(3, 0, 50) == 10 * MS, "without a profile: by the page"
    loads.measure(1, 10 * MS, 100, 500 * MS)
    assert loads.load_ns(1, 10 * MS, 100) == 20 * MS, "one outlier"
    loads.release(1, 100)
    assert loads.load_ns(1, 10 * MS, 100) < 25 * MS
